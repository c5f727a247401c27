package controllers

import (
	"errors"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// silent records no event.
type silent struct{}

func (silent) Eventf(runtime.Object, runtime.Object, string, string, string, string, ...any) {}

// One that is deleted at once holds until it has settled, and so somebody has to settle it.
func TestWhatADeletedRevocationTakesIsLookedAt(t *testing.T) {
	c := newCluster(t)
	hit := c.token("hit")
	r := &credentials{cfg: CredentialConfig{Keys: c.peppers}, kind: serviceTokens, client: c.client, labels: newSealedLabels()}
	rv := &v1alpha1.Revocation{
		ObjectMeta: metav1.ObjectMeta{Name: "drill", UID: "r", Finalizers: []string{"mintmark.dev/settle"}, DeletionTimestamp: ptrTo(metav1.Now())},
		Spec:       v1alpha1.RevocationSpec{Reason: "drill", Namespaces: []string{c.namespace}},
	}
	if requests := r.ofRevocation(t.Context(), rv); len(requests) != 1 || requests[0].NamespacedName != client.ObjectKeyFromObject(hit) {
		t.Errorf("while it is being deleted %v are looked at", requests)
	}
	rv.Finalizers = nil
	if requests := r.ofRevocation(t.Context(), rv); len(requests) != 0 {
		t.Errorf("when it is gone %v are looked at", requests)
	}
}

// What a Revocation took is revoked by its being there until the status of each credential
// says so: whoever could narrow it, or take it away before, would bring them back.
func TestARevocationCannotBeChangedAndStaysUntilItHasSettled(t *testing.T) {
	c := newCluster(t)
	hit := c.token("hit") // no controller looks after it: it never settles
	rv := &v1alpha1.Revocation{ObjectMeta: metav1.ObjectMeta{Name: c.namespace}, Spec: v1alpha1.RevocationSpec{
		Reason: "incident 7", Namespaces: []string{c.namespace},
	}}
	if err := c.client.Create(t.Context(), rv); err != nil {
		t.Fatal(err)
	}
	key := client.ObjectKeyFromObject(rv)
	r := &revocations{client: c.client, keys: c.peppers, recorder: silent{}, memory: newMemory(), labels: newSealedLabels()}
	settle := func() {
		t.Helper()
		if _, err := r.Reconcile(t.Context(), reconcile.Request{NamespacedName: key}); err != nil {
			t.Fatal(err)
		}
	}
	settle()
	c.read(rv)
	if rv.Status.Matched != 1 || rv.Status.Settled != 0 {
		t.Fatalf("%d of %d are settled, where one is matched that nobody settles", rv.Status.Settled, rv.Status.Matched)
	}
	for name, change := range map[string]func(*v1alpha1.RevocationSpec){
		"narrowed":  func(s *v1alpha1.RevocationSpec) { s.Namespaces = []string{"nobody-is-here"} },
		"widened":   func(s *v1alpha1.RevocationSpec) { s.Namespaces, s.All = nil, true },
		"replacing": func(s *v1alpha1.RevocationSpec) { s.Replace = "Immediately" },
		"renamed":   func(s *v1alpha1.RevocationSpec) { s.Reason = "another" },
	} {
		changed := rv.DeepCopy()
		change(&changed.Spec)
		err := c.client.Update(t.Context(), changed)
		if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "create another one") {
			t.Errorf("it could be %s, or the message does not say what to do: %v", name, err)
		}
	}

	if err := c.client.Delete(t.Context(), rv); err != nil {
		t.Fatal(err)
	}
	settle()
	if err := c.client.Get(t.Context(), key, rv); err != nil {
		t.Errorf("deleted before it had settled, it is gone: %v", err)
	}
	if err := c.client.Delete(t.Context(), hit); err != nil { // nothing is left to settle
		t.Fatal(err)
	}
	waitFor(t, "the credential to go", func() bool {
		return apierrors.IsNotFound(c.client.Get(t.Context(), client.ObjectKeyFromObject(hit), hit))
	})
	settle()
	if err := c.client.Get(t.Context(), key, rv); !apierrors.IsNotFound(err) {
		t.Errorf("with nothing left to settle it is still there: %v", err)
	}
}

// Each look at a Revocation is one at every credential.
func TestOfARevocationOnlyWhatOthersWroteIsLookedAt(t *testing.T) {
	c := newCluster(t)
	c.token("hit")
	rv := &v1alpha1.Revocation{ObjectMeta: metav1.ObjectMeta{Name: c.namespace}, Spec: v1alpha1.RevocationSpec{
		Reason: "incident 8", Namespaces: []string{c.namespace},
	}}
	if err := c.client.Create(t.Context(), rv); err != nil {
		t.Fatal(err)
	}
	before := rv.DeepCopy()
	r := &revocations{client: c.client, keys: c.peppers, recorder: silent{}, memory: newMemory(), labels: newSealedLabels()}
	if _, err := r.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKeyFromObject(rv)}); err != nil {
		t.Fatal(err)
	}
	c.read(rv)
	if rv.Status.Matched != 1 || r.others(event.UpdateEvent{ObjectOld: before, ObjectNew: rv}) {
		t.Errorf("of %d matched the own write is looked at again", rv.Status.Matched)
	}
	if !r.others(event.UpdateEvent{ObjectOld: rv, ObjectNew: rv}) {
		t.Error("a resync is passed over")
	}
	theirs := rv.DeepCopy()
	theirs.Status.Settled = 1
	if err := c.client.Status().Update(t.Context(), theirs); err != nil {
		t.Fatal(err)
	}
	if !r.others(event.UpdateEvent{ObjectOld: rv, ObjectNew: theirs}) {
		t.Error("what somebody else wrote into the status is believed")
	}
	if err := errors.Join(c.client.Delete(t.Context(), theirs), client.IgnoreNotFound(c.client.Get(t.Context(), client.ObjectKeyFromObject(rv), rv))); err != nil {
		t.Fatal(err)
	}
	rv.Finalizers = nil
	if err := client.IgnoreNotFound(c.client.Update(t.Context(), rv)); err != nil {
		t.Fatal(err)
	}
}
