package webhook_test

import (
	"strings"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

func TestALoweredCeilingKeepsNobodyFromOtherChanges(t *testing.T) {
	in := cluster(t)
	namespace := in.namespace(t, nil)
	class := in.class(t, v1alpha1.ClassRule{Permissions: []v1alpha1.Permission{"*"}})
	credential := token(namespace, "ci", v1alpha1.CredentialSpec{CredentialClassName: class.Name, Permissions: []v1alpha1.Permission{"a", "b", "c"}})
	in.create(t, credential)
	in.change(t, class.Name, class, func() { class.Spec.Rules[0].Permissions = []v1alpha1.Permission{"c", "d"} })

	credential.Spec.Description = "still in use"
	expect(t, in.admin.Update(t.Context(), credential))
	credential.Spec.Permissions = []v1alpha1.Permission{"b", "c"} // what is left stands at another place now
	expect(t, in.admin.Update(t.Context(), credential))
	more := credential.DeepCopy()
	more.Spec.Permissions = append(more.Spec.Permissions, "d")
	expect(t, in.admin.Update(t.Context(), more), `spec.permissions[0]`, `does not allow "b" in this namespace`)
	shorter := credential.DeepCopy()
	shorter.Spec.TTL = "1s"
	expect(t, in.admin.Update(t.Context(), shorter), "spec.ttl", "must be at least")

	in.change(t, class.Name, class, func() { class.Spec.Rules[0].NamespaceSelector = labelled("team", "other") })
	credential.Spec.Description = "no rule for this namespace is left"
	expect(t, in.admin.Update(t.Context(), credential))
	if err := in.admin.Delete(t.Context(), class); err != nil {
		t.Fatal(err)
	}
	credential.Spec.Description = "nor the class"
	expect(t, in.admin.Update(t.Context(), credential.DeepCopy()), "spec.credentialClassName", "have this one made")
	credential = credential.DeepCopy()
	if err := in.admin.Get(t.Context(), client.ObjectKeyFromObject(credential), credential); err != nil {
		t.Fatal(err)
	}
	credential.Spec.Revoked = &v1alpha1.Revoked{Reason: "class gone"}
	expect(t, in.admin.Update(t.Context(), credential))
}

func TestRequestsAreTimes(t *testing.T) {
	in := cluster(t)
	namespace := in.namespace(t, nil)
	for sentence, test := range map[string]struct {
		annotation, value string
		says              []string
	}{
		"now":                        {v1alpha1.AnnotationRotateRequestedAt, now(), nil},
		"with fractions of a second": {v1alpha1.AnnotationRollbackRequestedAt, "2026-01-31T08:00:00.123456Z", nil},
		"a clock a little ahead":     {v1alpha1.AnnotationDiscardRequestedAt, time.Now().Add(time.Minute).Format(time.RFC3339), nil},
		"no time":                    {v1alpha1.AnnotationRotateRequestedAt, "now", []string{"metadata.annotations[mintmark.dev/rotate-requested-at]", "RFC 3339"}},
		"a year ahead":               {v1alpha1.AnnotationRollbackRequestedAt, "2999-01-01T00:00:00Z", []string{"rollback-requested-at]", "lies in the future: give the present time"}},
		"a novel for a reason":       {v1alpha1.AnnotationReason, strings.Repeat("x", 1025), []string{"metadata.annotations[mintmark.dev/reason]", "may not be more than 1024"}},
	} {
		t.Run(sentence, func(t *testing.T) {
			credential := token(namespace, "ci", v1alpha1.CredentialSpec{})
			credential.Annotations = map[string]string{test.annotation: test.value}
			expect(t, in.admin.Create(t.Context(), credential, client.DryRunAll), test.says...)
		})
	}
}

func TestGroupsAreAskedForToo(t *testing.T) {
	in := cluster(t)
	user, namespace := userOf(t), in.namespace(t, nil)
	in.allow(t, user, namespace, edits())
	role := &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{GenerateName: "test-", Namespace: namespace},
		Rules: []rbacv1.PolicyRule{grants("deploy:*"), uses("credentialclasses", "default")}}
	in.create(t, role)
	in.create(t, &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "test-", Namespace: namespace},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.GroupKind, APIGroup: rbacv1.GroupName, Name: "deployers"}},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: role.Name},
	})
	config := rest.CopyConfig(in.config)
	config.Impersonate = rest.ImpersonationConfig{UserName: user, Groups: []string{"system:authenticated", "deployers"}}
	author, err := client.New(config, client.Options{Scheme: testScheme()})
	if err != nil {
		t.Fatal(err)
	}
	if err := until(func() error {
		return author.Create(t.Context(), token(namespace, "ci", v1alpha1.CredentialSpec{Permissions: []v1alpha1.Permission{"deploy:write"}}))
	}); err != nil {
		t.Error(err)
	}
}

// TestTheControllerIsNotAsked: it hands out nothing, and has no grants.
func TestTheControllerIsNotAsked(t *testing.T) {
	in := cluster(t)
	namespace := in.namespace(t, nil)
	in.allow(t, controllerUser, namespace, edits())
	controller := in.as(t, controllerUser)
	credential := token(namespace, "ci", v1alpha1.CredentialSpec{Permissions: []v1alpha1.Permission{"deploy:write"}})
	expect(t, controller.Create(t.Context(), credential))
	credential.Spec.Permissions = []v1alpha1.Permission{"mintmark:x"}
	expect(t, controller.Update(t.Context(), credential), "does not allow")
}
