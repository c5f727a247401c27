package controllers

import (
	"testing"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/lifecycle"
)

func TestAChangeOfWhatIsGrantedIsStoredOnceThroughOutagesAndRestarts(t *testing.T) {
	l := new(ledger)
	c := recording(t, l)
	first := c.goOn(nil)
	token := c.token("ci")
	c.ready(token)
	c.eventually(token, "the mint is recorded", func() bool { return l.is("ci", "Minted 1", "Delivered 1") })
	l.set(true) // down
	token.Spec.Permissions = append(token.Spec.Permissions, "deploy:other")
	token.Annotations = map[string]string{v1alpha1.AnnotationChangedBy: lifecycle.GrantMark(&token.Spec) + " ann"}
	if err := c.client.Update(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	changed := func() *v1alpha1.Transition {
		for i := range token.Status.Transitions {
			if tr := &token.Status.Transitions[i]; tr.Type == lifecycle.TransitionChanged {
				return tr
			}
		}
		return nil
	}
	c.eventually(token, "the change stands in status", func() bool { return changed() != nil })
	if tr := changed(); tr.Reason != "permissions +deploy:other" || tr.Actor != "ann" || tr.Version != 1 {
		t.Errorf("the transition is %+v", tr)
	}
	first.stop()
	c.goOn(nil).stop()
	l.set(false)
	second := c.goOn(nil)
	want := []string{"Minted 1", "Delivered 1", "Changed 1"}
	c.eventually(token, "the change is recorded", func() bool { return l.is("ci", want...) })
	second.stop()
	c.goOn(nil)
	// What is not granted is no change.
	token.Spec.Description = "another"
	if err := c.client.Update(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	c.eventually(token, "the description is seen", func() bool { return token.Status.ObservedGeneration == token.Generation })
	if !l.is("ci", want...) {
		t.Errorf("recorded: %v", l.told("ci"))
	}
}
