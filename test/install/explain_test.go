package install_test

import (
	"testing"

	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Whoever has view in a namespace needs mintmark-explain beside it to run `mintmark
// explain`, and nothing else.
func TestExplainTakesARoleOfItsOwn(t *testing.T) {
	plane := installation(t)
	admin, _ := clients(t, plane.Config)
	const ns, without, with = "explained", "person-without", "person-with"
	newNamespace(t, admin, ns, nil)
	for _, person := range []string{without, with} {
		if _, err := admin.RbacV1().RoleBindings(ns).Create(t.Context(), &rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: person, Namespace: ns},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "view"},
			Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: person}},
		}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := admin.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: with},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "mintmark-explain"},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: with}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	const own = "mintmark.dev"
	for what, ask := range map[string]authorizationv1.ResourceAttributes{
		"the class":       {Verb: "get", Group: own, Resource: "credentialclasses", Name: "default"},
		"a role":          {Verb: "get", Group: own, Resource: "accessroles", Name: "deployer"},
		"the policies":    {Verb: "list", Group: own, Resource: "accesspolicies"},
		"the revocations": {Verb: "list", Group: own, Resource: "revocations"},
	} {
		if !allowed(t, plane.Config, with, ask) {
			t.Errorf("with mintmark-explain bound, %s cannot be read", what)
		}
		if allowed(t, plane.Config, without, ask) {
			t.Errorf("without it, %s can be read: say in the docs that the role is not needed", what)
		}
	}
	for _, person := range []string{without, with} {
		if !allowed(t, plane.Config, person, authorizationv1.ResourceAttributes{Namespace: ns, Verb: "get", Resource: "namespaces", Name: ns}) {
			t.Errorf("%s cannot read the namespace", person)
		}
	}
	for what, ask := range map[string]authorizationv1.ResourceAttributes{
		"change a policy": {Verb: "update", Group: own, Resource: "accesspolicies"}, "revoke": {Verb: "create", Group: own, Resource: "revocations"},
		"read credentials elsewhere": {Namespace: "default", Verb: "get", Group: own, Resource: "servicetokens"},
	} {
		if allowed(t, plane.Config, with, ask) {
			t.Errorf("with mintmark-explain bound one may %s", what)
		}
	}
}
