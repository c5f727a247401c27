package install_test

import (
	"flag"
	"fmt"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

var update = flag.Bool("update", false, "rewrite the golden files in testdata")

func scheme(t testing.TB) *runtime.Scheme {
	t.Helper()
	s := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(s); err != nil {
		t.Fatal(err)
	}
	if err := v1alpha1.AddToScheme(s); err != nil {
		t.Fatal(err)
	}
	return s
}

// tenant is a namespace of somebody who uses Mintmark.
const tenant = "payments"

// TestAccountsMayDoWhatIsListed is `kubectl auth can-i --list` of both accounts,
// in the installation's namespace and in a tenant's, against a golden file. What
// any account may do is left out.
func TestAccountsMayDoWhatIsListed(t *testing.T) {
	plane := installation(t)
	admin, _ := clients(t, plane.Config)
	newNamespace(t, admin, tenant, nil)
	nobody, err := plane.ServiceAccountConfig(t.Context(), tenant, "nobody")
	if err != nil {
		t.Fatal(err)
	}
	for _, account := range []string{"mintmark-controller", "mintmark-server"} {
		t.Run(account, func(t *testing.T) {
			cfg, err := plane.ServiceAccountConfig(t.Context(), namespace, account)
			if err != nil {
				t.Fatal(err)
			}
			var listed strings.Builder
			for _, ns := range []string{namespace, tenant} {
				anybody := rules(t, nobody, ns)
				fmt.Fprintf(&listed, "In namespace %s, %s may:\n", ns, account)
				for _, line := range rules(t, cfg, ns) {
					if !slices.Contains(anybody, line) {
						fmt.Fprintln(&listed, "  "+line)
					}
				}
			}
			golden := filepath.Join("testdata", account+".can-i.golden")
			if *update {
				write(t, golden, listed.String())
			}
			if diff := cmp.Diff(read(t, golden), listed.String()); diff != "" {
				t.Errorf("%s may do other things than %s lists (if that is meant: go test -update):\n%s", account, golden, diff)
			}
		})
	}
}

// rules lists what an account may do in a namespace, a line for each resource,
// name and verb, so that how roles are cut does not matter.
func rules(t testing.TB, cfg *rest.Config, ns string) []string {
	t.Helper()
	api, _ := clients(t, cfg)
	review := &authorizationv1.SelfSubjectRulesReview{Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: ns}}
	answer, err := api.AuthorizationV1().SelfSubjectRulesReviews().Create(t.Context(), review, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if answer.Status.Incomplete {
		t.Fatalf("the API server does not list all: %s", answer.Status.EvaluationError)
	}
	verbs := map[string][]string{}
	for _, rule := range answer.Status.ResourceRules {
		for _, what := range targets(rule.APIGroups, rule.Resources, rule.ResourceNames) {
			verbs[what] = append(verbs[what], rule.Verbs...)
		}
	}
	for _, rule := range answer.Status.NonResourceRules {
		for _, url := range rule.NonResourceURLs {
			verbs[url] = append(verbs[url], rule.Verbs...)
		}
	}
	lines := make([]string, 0, len(verbs))
	for what, may := range verbs {
		sort.Strings(may)
		lines = append(lines, what+": "+strings.Join(slices.Compact(may), " "))
	}
	sort.Strings(lines)
	return lines
}

func targets(groups, resources, names []string) []string {
	var all []string
	for _, group := range groups {
		for _, resource := range resources {
			if group != "" {
				resource += "." + group
			}
			if len(names) == 0 {
				all = append(all, resource)
			}
			for _, name := range names {
				all = append(all, resource+" "+name)
			}
		}
	}
	return all
}

// The golden file would pass a wrong rule that somebody wrote into it. These hold
// whatever it says.
func TestAccountsNeverMay(t *testing.T) {
	plane := installation(t)
	admin, _ := clients(t, plane.Config)
	newNamespace(t, admin, tenant, nil)
	type ask = authorizationv1.ResourceAttributes
	const own = "mintmark.dev"
	refused := map[string]map[string]ask{
		"mintmark-server": {
			"read a workload's Secret":                        {Namespace: tenant, Verb: "get", Resource: "secrets", Name: "ci-deploy"},
			"list Secrets anywhere":                           {Verb: "list", Resource: "secrets"},
			"list the Secrets beside it":                      {Namespace: namespace, Verb: "list", Resource: "secrets"},
			"read the webhooks' key":                          {Namespace: namespace, Verb: "get", Resource: "secrets", Name: "mintmark-webhook-tls"},
			"change the pepper":                               {Namespace: namespace, Verb: "update", Resource: "secrets", Name: "mintmark-pepper"},
			"write status":                                    {Namespace: tenant, Verb: "patch", Group: own, Resource: "servicetokens", Subresource: "status"},
			"make a credential":                               {Namespace: tenant, Verb: "create", Group: own, Resource: "servicetokens"},
			"revoke":                                          {Verb: "create", Group: own, Resource: "revocations"},
			"raise a ceiling":                                 {Verb: "patch", Group: own, Resource: "credentialclasses", Name: "default"},
			"ask for another account's token":                 {Namespace: namespace, Verb: "create", Resource: "serviceaccounts", Subresource: "token"},
			"change the webhooks":                             {Verb: "update", Group: "admissionregistration.k8s.io", Resource: "validatingwebhookconfigurations", Name: "mintmark-webhook"},
			"run pods beside the keys":                        {Namespace: namespace, Verb: "create", Resource: "pods"},
			"write Leases elsewhere":                          {Namespace: "kube-system", Verb: "update", Group: "coordination.k8s.io", Resource: "leases"},
			"impersonate":                                     {Verb: "impersonate", Resource: "users", Name: "admin"},
			"hand out permissions":                            {Verb: "grant", Group: own, Resource: "permissions"},
			"ask what others may (the controller's business)": {Verb: "create", Group: "authorization.k8s.io", Resource: "subjectaccessreviews"},
		},
		"mintmark-controller": {
			"escalate":                        {Verb: "escalate", Group: rbacv1.GroupName, Resource: "clusterroles"},
			"bind":                            {Verb: "bind", Group: rbacv1.GroupName, Resource: "clusterroles"},
			"impersonate users":               {Verb: "impersonate", Resource: "users", Name: "admin"},
			"impersonate groups":              {Verb: "impersonate", Resource: "groups", Name: "system:masters"},
			"impersonate accounts":            {Verb: "impersonate", Resource: "serviceaccounts"},
			"write roles":                     {Verb: "create", Group: rbacv1.GroupName, Resource: "clusterroles"},
			"bind roles":                      {Namespace: tenant, Verb: "create", Group: rbacv1.GroupName, Resource: "rolebindings"},
			"ask for another account's token": {Namespace: tenant, Verb: "create", Resource: "serviceaccounts", Subresource: "token"},
			"make a credential":               {Namespace: tenant, Verb: "create", Group: own, Resource: "servicetokens"},
			"edit what people declared":       {Namespace: tenant, Verb: "patch", Group: own, Resource: "apikeys"},
			"raise a ceiling":                 {Verb: "patch", Group: own, Resource: "credentialclasses", Name: "default"},
			"revoke":                          {Verb: "create", Group: own, Resource: "revocations"},
			"restart workloads unless told":   {Namespace: tenant, Verb: "patch", Group: "apps", Resource: "deployments"},
			"run pods":                        {Namespace: tenant, Verb: "create", Resource: "pods"},
			"exec into pods":                  {Namespace: tenant, Verb: "create", Resource: "pods", Subresource: "exec"},
			"change others' webhooks":         {Verb: "update", Group: "admissionregistration.k8s.io", Resource: "validatingwebhookconfigurations", Name: "cert-manager-webhook"},
			"change the policies":             {Verb: "update", Group: "admissionregistration.k8s.io", Resource: "validatingadmissionpolicies", Name: "mintmark-status"},
			"hold another's Lease":            {Namespace: "kube-system", Verb: "update", Group: "coordination.k8s.io", Resource: "leases", Name: "kube-scheduler"},
		},
	}
	for account, asks := range refused {
		for name, what := range asks {
			t.Run(account+" may not "+name, func(t *testing.T) {
				if allowed(t, plane.Config, "system:serviceaccount:"+namespace+":"+account, what) {
					t.Errorf("it may")
				}
			})
		}
	}
}

// allowed asks as `kubectl auth can-i --as` does.
func allowed(t testing.TB, cfg *rest.Config, user string, what authorizationv1.ResourceAttributes) bool {
	t.Helper()
	api, _ := clients(t, cfg)
	review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: user, Groups: []string{"system:authenticated"}, ResourceAttributes: &what,
	}}
	answer, err := api.AuthorizationV1().SubjectAccessReviews().Create(t.Context(), review, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return answer.Status.Allowed
}

// People get their rights through the roles every cluster has.
func TestPeopleMayByTheClustersRoles(t *testing.T) {
	plane := installation(t)
	admin, _ := clients(t, plane.Config)
	newNamespace(t, admin, tenant, nil)
	for _, role := range []string{"view", "edit", "admin"} {
		binding := &rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: "people-" + role, Namespace: tenant},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
			Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: "person-" + role}},
		}
		if _, err := admin.RbacV1().RoleBindings(tenant).Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	token := func(verb, subresource string) authorizationv1.ResourceAttributes {
		return authorizationv1.ResourceAttributes{
			Namespace: tenant, Verb: verb, Group: "mintmark.dev", Resource: "servicetokens", Subresource: subresource,
		}
	}
	class := func(name string) authorizationv1.ResourceAttributes {
		return authorizationv1.ResourceAttributes{
			Namespace: tenant, Verb: "use", Group: "mintmark.dev", Resource: "credentialclasses", Name: name,
		}
	}
	grant := authorizationv1.ResourceAttributes{
		Namespace: tenant, Verb: "grant", Group: "mintmark.dev", Resource: "permissions", Name: "deploy:write",
	}
	// The aggregation controller has to have seen the roles first.
	eventually(t, 30*time.Second, func() error {
		if !allowed(t, plane.Config, "person-edit", token("create", "")) {
			return fmt.Errorf("whoever has edit in a namespace may not make credentials there")
		}
		return nil
	})
	for name, test := range map[string]struct {
		role string
		what authorizationv1.ResourceAttributes
		want bool
	}{
		"view reads credentials":                 {"view", token("list", ""), true},
		"view changes none":                      {"view", token("update", ""), false},
		"view uses no class":                     {"view", class("default"), false},
		"edit deletes credentials":               {"edit", token("delete", ""), true},
		"edit uses the default class":            {"edit", class("default"), true},
		"edit does not use the admins' class":    {"edit", class("mintmark-admin"), false},
		"edit hands out no permission":           {"edit", grant, false},
		"edit does not write status":             {"edit", token("update", "status"), false},
		"admin of a namespace makes credentials": {"admin", token("create", ""), true},
		"admin hands out no permission":          {"admin", grant, false},
		"admin does not write status":            {"admin", token("patch", "status"), false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := allowed(t, plane.Config, "person-"+test.role, test.what); got != test.want {
				t.Errorf("whoever has %s in a namespace: allowed = %t, want %t", test.role, got, test.want)
			}
		})
	}
}

func TestTheWidestRolesAreBoundToNobody(t *testing.T) {
	plane := installation(t)
	admin, _ := clients(t, plane.Config)
	bindings, err := admin.RbacV1().ClusterRoleBindings().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, binding := range bindings.Items {
		// Tests bind them to people.
		person := len(binding.Subjects) == 1 && strings.HasPrefix(binding.Subjects[0].Name, "person-")
		if role := binding.RoleRef.Name; (role == "mintmark-grant-all" || role == "mintmark-explain") && !person {
			t.Errorf("ClusterRoleBinding %s binds %s", binding.Name, role)
		}
	}
	for _, role := range []string{"mintmark-grant-all", "mintmark-explain"} {
		if _, err := admin.RbacV1().ClusterRoles().Get(t.Context(), role, metav1.GetOptions{}); err != nil {
			t.Error(err)
		}
	}
}
