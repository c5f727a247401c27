package controllers

import (
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

func TestWhatIsCachedHasOneCopyOfWhatIsCommonAndLacksNothing(t *testing.T) {
	meta := func() metav1.ObjectMeta {
		return metav1.ObjectMeta{
			Namespace: "payments", Name: "ci", UID: "u", ResourceVersion: "7", Labels: map[string]string{"app": "x"}, Annotations: map[string]string{"a": "b"},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "K", Name: "n"}}, Finalizers: []string{"f"},
		}
	}
	token := &v1alpha1.ServiceToken{ObjectMeta: meta(), Spec: v1alpha1.CredentialSpec{
		CredentialClassName: "default", Permissions: []v1alpha1.Permission{"a:b"}, Roles: []string{"r"}, Owner: "o",
	}, Status: v1alpha1.CredentialStatus{
		Conditions: []metav1.Condition{{Type: v1alpha1.ConditionPropagated, Status: "True", Reason: "Propagated", Message: string([]byte("m"))}}, Record: []byte{1}, Seal: "s", LastUsed: "2026-01-01",
		Versions: []v1alpha1.CredentialVersion{{Version: 1, State: v1alpha1.VersionActive, Pepper: "p", Digest: "d", Reason: "Created", Actor: "me"}},
	}}
	secret := &corev1.Secret{ObjectMeta: meta(), Data: map[string][]byte{"token": []byte("x")}, Type: corev1.SecretTypeOpaque}
	for _, o := range []client.Object{token, secret, &v1alpha1.Revocation{ObjectMeta: meta()}} {
		want := o.DeepCopyObject()
		o.SetManagedFields([]metav1.ManagedFieldsEntry{{Manager: "kubectl"}})
		if _, isCredential := o.(v1alpha1.Credential); isCredential {
			o.GetAnnotations()[corev1.LastAppliedConfigAnnotation] = "{}"
		}
		for range 2 { // an object can come by more than once
			if _, err := Transform(o); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, o, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("%T: %s", o, diff)
			}
		}
	}
	other := token.DeepCopy()
	other.Status.Conditions[0].Message = string([]byte("m"))
	if _, err := Transform(other); err != nil {
		t.Fatal(err)
	}
	if unsafe.StringData(other.Status.Conditions[0].Message) != unsafe.StringData(token.Status.Conditions[0].Message) {
		t.Error("two copies of one text")
	}
	if _, err := Transform("a tombstone"); err != nil {
		t.Error(err)
	}
}
