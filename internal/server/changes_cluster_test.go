package server

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/audit"
	"github.com/mintmark-dev/mintmark/internal/store"
)

func TestAChangeOfWhoMayDoWhatIsOneRowHoweverManyServersSeeIt(t *testing.T) {
	in := newInstallation(t)
	s := openEngine(t, "sqlite://"+filepath.Join(t.TempDir(), "mintmark.db"))
	name := in.namespace // nobody else's
	recording := func(id string) func(*Config) {
		return func(c *Config) {
			_, a := newTrail(t)
			c.ID, c.Audit = id, Audit{Recorder: a.recorder, Store: s}
		}
	}
	rows := func() (all []string) {
		page, err := s.Events(t.Context(), store.AllTenants(), store.EventFilter{Types: []audit.Type{audit.TypeConfiguration}}, store.Page{Limit: 1000, OldestFirst: true})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range page.Items {
			if strings.HasPrefix(e.Name, name) {
				all = append(all, fmt.Sprint(e.Kind, " ", e.Reason, " ", e.Detail["generation"], " by ", e.Actor))
			}
		}
		slices.Sort(all)
		return all
	}
	expect := func(what string, want ...string) {
		t.Helper()
		slices.Sort(want)
		deadline := time.Now().Add(15 * time.Second)
		for !slices.Equal(rows(), want) && time.Now().Before(deadline) {
			select {
			case <-t.Context().Done():
			case <-time.After(20 * time.Millisecond):
			}
		}
		if diff := cmp.Diff(want, rows()); diff != "" {
			t.Fatalf("%s (-want +got):\n%s", what, diff)
		}
	}

	role := &v1alpha1.AccessRole{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{v1alpha1.AnnotationChangedBy: "1 ann"}},
		Spec:       v1alpha1.AccessRoleSpec{Permissions: []v1alpha1.Permission{"api:read"}},
	}
	in.create(role)
	one, two := in.startReady(recording("one")), in.startReady(recording("two"))
	// Made before they started; the class has no annotation, and was made by this test.
	before := []string{"AccessRole Created 1 by ann", "CredentialClass Created 1 by with server.test"}
	expect("what was there", before...)

	update := func(by string, change func()) {
		t.Helper()
		change()
		if by != "" {
			role.Annotations = map[string]string{v1alpha1.AnnotationChangedBy: by}
		}
		if err := in.client.Update(t.Context(), role); err != nil {
			t.Fatal(err)
		}
	}
	update("2 bob", func() { role.Spec.Permissions = append(role.Spec.Permissions, "api:write") })
	update("", func() { role.Labels = map[string]string{"a": "b"} })
	update("", func() { role.Spec.Description = "nobody knows who" })
	live := append(slices.Clone(before), "AccessRole Changed 2 by bob", "AccessRole Changed 3 by with server.test")
	expect("what was changed", live...)

	// One server at a time is gone, and then both, while it is changed and deleted.
	if err := one.stop(); err != nil {
		t.Fatal(err)
	}
	update("4 ann", func() { role.Spec.Permissions = nil; role.Spec.Permissions = []v1alpha1.Permission{"api:*"} })
	live = append(live, "AccessRole Changed 4 by ann")
	expect("what one server saw", live...)
	if err := two.stop(); err != nil {
		t.Fatal(err)
	}
	update("5 bob", func() { role.Spec.Permissions = []v1alpha1.Permission{"api:read"} })
	in.startReady(recording("one"))
	in.startReady(recording("three"))
	live = append(live, "AccessRole Changed 5 by bob")
	expect("what was changed while nobody looked", live...)
	if err := in.client.Delete(t.Context(), role, client.GracePeriodSeconds(0)); err != nil {
		t.Fatal(err)
	}
	expect("what was deleted", append(live, "AccessRole Deleted  by ")...)

	page, err := s.Events(t.Context(), store.AllTenants(), store.EventFilter{UID: string(role.UID), Reason: "Changed"}, store.Page{OldestFirst: true})
	if err != nil {
		t.Fatal(err)
	}
	// Times are as exact as Kubernetes has them: to the second.
	at := slices.IndexFunc(page.Items, func(e audit.Event) bool { return e.Detail["generation"] == "2" })
	if e := page.Items[at]; e.Subject != "accessrole:"+name || e.Detail["spec"] != `{"permissions":["api:read","api:write"]}` || e.At.Before(role.CreationTimestamp.Time) ||
		time.Since(e.At) > time.Minute {
		t.Errorf("the event is %+v", e)
	}
}
