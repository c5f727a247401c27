package webhook_test

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/test/controlplane"
)

// writes is a rule that lets somebody write a resource, and no more than that.
func writes(resource string) rbacv1.PolicyRule {
	rule := ours("create", resource)
	rule.Verbs = []string{"create", "update", "get", "patch", "delete"}
	return rule
}

// made makes an object of the test's own, deleted after it.
func made[T client.Object](t *testing.T, in *installation, object T) T {
	t.Helper()
	object.SetGenerateName("test-")
	in.create(t, object)
	t.Cleanup(func() { _ = in.admin.Delete(context.WithoutCancel(t.Context()), object) })
	return object
}

func TestEditingARoleNeedsWhatItAdds(t *testing.T) {
	in := cluster(t)
	for sentence, test := range map[string]struct {
		may         []rbacv1.PolicyRule
		permissions []v1alpha1.Permission
		says        []string
	}{
		"taking away is free":                       {permissions: []v1alpha1.Permission{"api:read"}},
		"what a wildcard held already is free":      {permissions: []v1alpha1.Permission{"api:read", "deploy:write"}},
		"a permission is asked for in the cluster":  {permissions: []v1alpha1.Permission{"api:read", "api:write"}, says: []string{`spec.permissions "api:write"`, "ClusterRole cluster-wide", `resourceNames: ["api:write"]`}},
		"the wildcard over what was held is":        {permissions: []v1alpha1.Permission{"api:*"}, says: []string{`spec.permissions "api:*"`}},
		"a permission may be granted by name":       {may: []rbacv1.PolicyRule{grants("api:write")}, permissions: []v1alpha1.Permission{"api:read", "api:write"}},
		"a permission may be granted by a wildcard": {may: []rbacv1.PolicyRule{grants("api:*")}, permissions: []v1alpha1.Permission{"api:read", "api:write"}},
		"the star needs the star":                   {may: []rbacv1.PolicyRule{grants("api:*")}, permissions: []v1alpha1.Permission{"*"}, says: []string{`spec.permissions "*"`}},
	} {
		t.Run(sentence, func(t *testing.T) {
			user := userOf(t)
			role := made(t, in, &v1alpha1.AccessRole{Spec: v1alpha1.AccessRoleSpec{Permissions: []v1alpha1.Permission{"api:read", "deploy:*"}}})
			in.allow(t, user, "", append(test.may, writes("accessroles"))...)
			// Rights in one namespace do not allow what holds in all.
			in.allow(t, user, in.namespace(t, nil), grants())
			role.Spec.Permissions = test.permissions
			forbidden(t, in.as(t, user).Update(t.Context(), role), test.says...)
		})
	}
	t.Run("making one needs all of it", func(t *testing.T) {
		user := userOf(t)
		in.allow(t, user, "", writes("accessroles"), grants("api:read"))
		role := &v1alpha1.AccessRole{ObjectMeta: metaNamed(user), Spec: v1alpha1.AccessRoleSpec{Permissions: []v1alpha1.Permission{"api:read", "deploy:*"}}}
		forbidden(t, in.as(t, user).Create(t.Context(), role), `may not hand out spec.permissions "deploy:*":`)
		role.Spec.Permissions = role.Spec.Permissions[:1]
		expect(t, in.as(t, user).Create(t.Context(), role, client.DryRunAll))
	})
	t.Run("the description is free", func(t *testing.T) {
		user := userOf(t)
		role := made(t, in, &v1alpha1.AccessRole{Spec: v1alpha1.AccessRoleSpec{Permissions: []v1alpha1.Permission{"*"}}})
		in.allow(t, user, "", writes("accessroles"))
		role.Spec.Description, role.Labels = "for nobody", map[string]string{"a": "b"}
		expect(t, in.as(t, user).Update(t.Context(), role))
		expect(t, in.as(t, user).Delete(t.Context(), role))
	})
}

func TestEditingATrustedIssuerNeedsWhatItAdds(t *testing.T) {
	in := cluster(t)
	for sentence, test := range map[string]struct {
		may    []rbacv1.PolicyRule
		change func(*v1alpha1.TrustedIssuerSpec)
		says   []string
	}{
		"narrowing is free": {change: func(s *v1alpha1.TrustedIssuerSpec) {
			s.Ceiling.Permissions, s.Ceiling.Roles, s.Audiences, s.MaxTTL, s.MaxTokenAge = s.Ceiling.Permissions[:1], nil, s.Audiences[:1], "5m", "10m"
			s.Validations = append(s.Validations, v1alpha1.ClaimValidation{Expression: "claims.ref == 'x'"})
		}},
		"a permission is asked for": {
			change: func(s *v1alpha1.TrustedIssuerSpec) { s.Ceiling.Permissions = append(s.Ceiling.Permissions, "x:y") },
			says:   []string{`may not hand out spec.ceiling.permissions "x:y":`, "ClusterRole cluster-wide"},
		},
		"a permission may be granted": {
			may:    []rbacv1.PolicyRule{grants("x:*")},
			change: func(s *v1alpha1.TrustedIssuerSpec) { s.Ceiling.Permissions = append(s.Ceiling.Permissions, "x:y") },
		},
		"a role is asked for": {
			change: func(s *v1alpha1.TrustedIssuerSpec) { s.Ceiling.Roles = append(s.Ceiling.Roles, "auditor") },
			says:   []string{`spec.ceiling.roles "auditor"`, `resources: [accessroles], resourceNames: ["auditor"], verbs: [use]`},
		},
		"a role may be used": {
			may:    []rbacv1.PolicyRule{uses("accessroles", "auditor")},
			change: func(s *v1alpha1.TrustedIssuerSpec) { s.Ceiling.Roles = append(s.Ceiling.Roles, "auditor") },
		},
		"another issuer":        {change: func(s *v1alpha1.TrustedIssuerSpec) { s.Issuer = "https://evil.example" }, says: []string{"spec.issuer is another one", `"deploy:*"`, `"deployer"`}},
		"other keys":            {change: func(s *v1alpha1.TrustedIssuerSpec) { s.JWKSURL = "https://evil.example/keys" }, says: []string{"keys come from elsewhere", `"deploy:*"`}},
		"another authority":     {change: func(s *v1alpha1.TrustedIssuerSpec) { s.CABundle = []byte("x") }, says: []string{"keys come from elsewhere"}},
		"another audience":      {change: func(s *v1alpha1.TrustedIssuerSpec) { s.Audiences = append(s.Audiences, "c") }, says: []string{"spec.audiences has a new audience"}},
		"another algorithm":     {change: func(s *v1alpha1.TrustedIssuerSpec) { s.Algorithms = []string{"PS256"} }, says: []string{"spec.algorithms has a new"}},
		"JWTs for others":       {change: func(s *v1alpha1.TrustedIssuerSpec) { s.IssuedAudiences = []string{"https://kubernetes.default.svc"} }, says: []string{"spec.issuedAudiences has a new"}},
		"a validation less":     {change: func(s *v1alpha1.TrustedIssuerSpec) { s.Validations = nil }, says: []string{"spec.validations checks less"}},
		"another validation":    {change: func(s *v1alpha1.TrustedIssuerSpec) { s.Validations[0].Expression = "true" }, says: []string{"spec.validations checks less"}},
		"another mapping":       {change: func(s *v1alpha1.TrustedIssuerSpec) { s.Mapping.Roles = "['deployer']" }, says: []string{"spec.mapping says otherwise"}},
		"a longer life":         {change: func(s *v1alpha1.TrustedIssuerSpec) { s.MaxTTL = "30m" }, says: []string{"spec.maxTTL is longer"}},
		"older tokens":          {change: func(s *v1alpha1.TrustedIssuerSpec) { s.MaxTokenAge = "" }, says: []string{"spec.maxTokenAge is longer"}},
		"tokens as they are":    {change: func(s *v1alpha1.TrustedIssuerSpec) { s.DirectUse = true }, says: []string{"spec.directUse accepts"}},
		"all of it, if granted": {may: []rbacv1.PolicyRule{grants(), uses("accessroles")}, change: func(s *v1alpha1.TrustedIssuerSpec) { s.DirectUse, s.Issuer = true, "https://other.example" }},
	} {
		t.Run(sentence, func(t *testing.T) {
			user := userOf(t)
			issuer := made(t, in, &v1alpha1.TrustedIssuer{Spec: v1alpha1.TrustedIssuerSpec{
				Issuer: "https://ci.example", Audiences: []string{"a", "b"}, MaxTTL: "15m", MaxTokenAge: "1h",
				Validations: []v1alpha1.ClaimValidation{{Expression: "claims.sub != ''"}},
				Ceiling:     v1alpha1.IssuerCeiling{Permissions: []v1alpha1.Permission{"api:read", "deploy:*"}, Roles: []string{"deployer"}},
			}})
			in.allow(t, user, "", append(test.may, writes("trustedissuers"))...)
			test.change(&issuer.Spec)
			forbidden(t, in.as(t, user).Update(t.Context(), issuer), test.says...)
		})
	}
}

func TestCredentialsNeedTheUseOfTheirRoles(t *testing.T) {
	in := cluster(t)
	user, namespace := userOf(t), in.namespace(t, nil)
	in.allow(t, user, namespace, edits(), uses("credentialclasses", "default"))
	credential := token(namespace, "ci", v1alpha1.CredentialSpec{CredentialClassName: "default", Roles: []string{"deployer"}})
	forbidden(t, in.as(t, user).Create(t.Context(), credential), `spec.roles "deployer"`, `resources: [accessroles], resourceNames: ["deployer"], verbs: [use]`)
	in.allow(t, user, namespace, uses("accessroles", "deployer"))
	expect(t, in.as(t, user).Create(t.Context(), credential, client.DryRunAll))
}

func TestAttributesStayUnderTheCeiling(t *testing.T) {
	in := cluster(t)
	class := in.class(t, v1alpha1.ClassRule{Permissions: []v1alpha1.Permission{"*"}, Attributes: []v1alpha1.AttributeRule{
		{Key: "department", Values: []v1alpha1.MetadataValue{"payments", "billing"}}, {Key: "team"},
	}})
	none := in.class(t, v1alpha1.ClassRule{Permissions: []v1alpha1.Permission{"*"}, Attributes: []v1alpha1.AttributeRule{}})
	namespace := in.namespace(t, nil)
	for sentence, test := range map[string]struct {
		class      string
		attributes map[string]v1alpha1.MetadataValue
		says       []string
	}{
		"a value that is allowed":               {class.Name, map[string]v1alpha1.MetadataValue{"department": "billing"}, nil},
		"any value where none are listed":       {class.Name, map[string]v1alpha1.MetadataValue{"team": "x"}, nil},
		"a value that is not":                   {class.Name, map[string]v1alpha1.MetadataValue{"department": "security"}, []string{"spec.attributes[department]", `does not allow the value "security"`}},
		"a key that is not":                     {class.Name, map[string]v1alpha1.MetadataValue{"clearance": "3"}, []string{"spec.attributes[clearance]", "choose a class that does"}},
		"a rule that allows none allows none":   {none.Name, map[string]v1alpha1.MetadataValue{"team": "x"}, []string{"spec.attributes[team]"}},
		"a rule that does not say allows every": {"default", map[string]v1alpha1.MetadataValue{"clearance": "3"}, nil},
	} {
		t.Run(sentence, func(t *testing.T) {
			credential := token(namespace, "ci", v1alpha1.CredentialSpec{CredentialClassName: test.class, Attributes: test.attributes})
			expect(t, in.admin.Create(t.Context(), credential, client.DryRunAll), test.says...)
		})
	}
}

func TestWideningTheAttributesOfAClassHandsItOutAnew(t *testing.T) {
	in := cluster(t)
	user := userOf(t)
	in.allow(t, user, "", writes("credentialclasses"))
	values := []v1alpha1.MetadataValue{"payments", "billing"}
	for sentence, test := range map[string]struct {
		before, updated []v1alpha1.AttributeRule
		asked           bool
	}{
		"another key":         {[]v1alpha1.AttributeRule{{Key: "a"}}, []v1alpha1.AttributeRule{{Key: "a"}, {Key: "b"}}, true},
		"another value":       {[]v1alpha1.AttributeRule{{Key: "a", Values: values[:1]}}, []v1alpha1.AttributeRule{{Key: "a", Values: values}}, true},
		"any value":           {[]v1alpha1.AttributeRule{{Key: "a", Values: values}}, []v1alpha1.AttributeRule{{Key: "a"}}, true},
		"any attribute":       {[]v1alpha1.AttributeRule{{Key: "a"}}, nil, true},
		"any instead of none": {[]v1alpha1.AttributeRule{}, nil, true},
		"a value less":        {[]v1alpha1.AttributeRule{{Key: "a", Values: values}}, []v1alpha1.AttributeRule{{Key: "a", Values: values[1:]}}, false},
		"a key less":          {[]v1alpha1.AttributeRule{{Key: "a"}, {Key: "b"}}, []v1alpha1.AttributeRule{{Key: "b"}}, false},
		"none":                {nil, []v1alpha1.AttributeRule{}, false},
	} {
		t.Run(sentence, func(t *testing.T) {
			class := in.class(t, v1alpha1.ClassRule{Permissions: []v1alpha1.Permission{"api:read"}, Attributes: test.before})
			class.Spec.Rules[0].Attributes = test.updated
			err := in.as(t, user).Update(t.Context(), class)
			if !test.asked {
				expect(t, err)
				return
			}
			forbidden(t, err, "spec.rules[0].attributes, which policies go by, allows more than before", `"api:read"`)
		})
	}
}

func rules(expressions ...string) []v1alpha1.PolicyExpression {
	var all []v1alpha1.PolicyExpression
	for i, e := range expressions {
		all = append(all, v1alpha1.PolicyExpression{Name: fmt.Sprintf("rule-%d", i), Expression: e})
	}
	return all
}

func TestPoliciesAreCompiledAtAdmission(t *testing.T) {
	in := cluster(t)
	for sentence, test := range map[string]struct {
		spec v1alpha1.AccessPolicySpec
		says []string
	}{
		"a good one": {v1alpha1.AccessPolicySpec{Effect: "Allow", Rules: rules("environment.now.getHours('Europe/Berlin') < 18")}, nil},
		"a misspelt field": {
			v1alpha1.AccessPolicySpec{Effect: "Deny", Rules: rules("false", "false", "subject.rols.size() == 0")},
			[]string{"spec.rules[2].expression", "column 8: undefined field 'rols' (subject has"},
		},
		"a condition that costs too much": {
			v1alpha1.AccessPolicySpec{Effect: "Deny", Rules: rules("true"), MatchConditions: rules("subject.permissions.all(p, subject.permissions.all(q, p == q))")},
			[]string{"spec.matchConditions[0].expression", "can cost", "is allowed"},
		},
		"no rules":                {v1alpha1.AccessPolicySpec{Effect: "Deny"}, []string{"spec.rules"}},
		"an unknown effect":       {v1alpha1.AccessPolicySpec{Effect: "Maybe", Rules: rules("true")}, []string{"spec.effect", `supported values: "Allow", "Deny"`}},
		"two rules of one name":   {v1alpha1.AccessPolicySpec{Effect: "Deny", Rules: append(rules("true"), rules("true")...)}, []string{"spec.rules[1]", "Duplicate value"}},
		"a name nobody can read":  {v1alpha1.AccessPolicySpec{Effect: "Deny", Rules: []v1alpha1.PolicyExpression{{Name: "A b", Expression: "true"}}}, []string{"spec.rules[0].name", "use lowercase letters"}},
		"an expression too long":  {v1alpha1.AccessPolicySpec{Effect: "Deny", Rules: rules("true || '" + strings.Repeat("x", 4096) + "' == ''")}, []string{"spec.rules[0].expression", "4096"}},
		"10,000 rules":            {v1alpha1.AccessPolicySpec{Effect: "Deny", Rules: rules(full(10000)...)}, []string{"spec.rules", "must have at most 32 items"}},
		"as many as there may be": {v1alpha1.AccessPolicySpec{Effect: "Deny", Rules: rules(full(32)...), MatchConditions: rules(full(16)...)}, nil},
	} {
		t.Run(sentence, func(t *testing.T) {
			for _, dryRun := range []v1alpha1.PolicyEnforcement{"", v1alpha1.PolicyDryRun} {
				test.spec.Enforcement = dryRun
				p := &v1alpha1.AccessPolicy{ObjectMeta: metaNamed("test"), Spec: test.spec}
				err := in.admin.Create(t.Context(), p, client.DryRunAll)
				if err != nil && !apierrors.IsInvalid(err) {
					t.Errorf("refused, but not as invalid: %v", err)
				}
				expect(t, err, test.says...)
			}
		})
	}
	t.Run("a change is compiled too", func(t *testing.T) {
		p := made(t, in, &v1alpha1.AccessPolicy{Spec: v1alpha1.AccessPolicySpec{Effect: "Deny", Rules: rules("false")}})
		if p.Spec.Enforcement != v1alpha1.PolicyEnforce {
			t.Errorf("enforcement is %q where nothing is said", p.Spec.Enforcement)
		}
		p.Spec.Rules[0].Expression = "subject.nothing"
		expect(t, in.admin.Update(t.Context(), p), "undefined field 'nothing'")
	})
	t.Run("a surprise is warned of", func(t *testing.T) {
		var warnings []string
		p := &v1alpha1.AccessPolicy{ObjectMeta: metaNamed("test"), Spec: v1alpha1.AccessPolicySpec{Effect: "Deny", Rules: rules("resource.classification == 'secret'")}}
		expect(t, in.withWarnings(t, &warnings).Create(t.Context(), p, client.DryRunAll))
		if len(warnings) != 1 || !strings.Contains(warnings[0], "where resource.classification is not known, the request is refused") {
			t.Errorf("warnings: %q", warnings)
		}
	})
}

// full is a list of n expressions.
func full(n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = "request.path.matches('^/api/v[0-9]+/')"
	}
	return all
}

func TestKubectlPrintsWhatIsWrongWithAPolicy(t *testing.T) {
	cluster(t)
	assets, err := controlplane.Assets(t.Context(), t.Output())
	if err != nil {
		t.Fatal(err)
	}
	kubeconfig := controlplane.ForTest(t).Kubeconfig()
	const manifest = `apiVersion: mintmark.dev/v1alpha1
kind: AccessPolicy
metadata: {name: office-hours}
spec:
  effect: Allow
  rules:
  - {name: weekdays, expression: "environment.now.getDayOfWeek('Europe/Berln') in [1, 2, 3, 4, 5]"}
`
	command := exec.CommandContext(t.Context(), filepath.Join(assets, "kubectl"), "--kubeconfig", kubeconfig, "apply", "-f", "-")
	command.Stdin = strings.NewReader(manifest)
	out, err := command.CombinedOutput()
	want := `The AccessPolicy "office-hours" is invalid: spec.rules[0].expression: Invalid value: "environment.now.getDayOfWeek('Europe/Berln') in [1, 2, 3, 4, 5]": ` +
		`column 30: "Europe/Berln" is not a time zone: write one like Europe/Berlin, UTC or +02:00`
	if err == nil || strings.TrimSpace(string(out)) != want {
		t.Errorf("kubectl apply (%v) prints\n%s\nwant\n%s", err, out, want)
	}
}
