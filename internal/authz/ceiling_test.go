package authz_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authz"
)

func TestCeiling(t *testing.T) {
	shipped := rule([]string{"*"}, []string{"mintmark:*"})
	for sentence, test := range map[string]struct {
		rule       *v1alpha1.ClassRule
		permission string
		grant, use bool
	}{
		"the shipped rule allows a permission":                {shipped, "deploy:write", true, true},
		"the shipped rule allows a wildcard":                  {shipped, "deploy:*", true, true},
		"what is taken out is not allowed":                    {shipped, "mintmark:tokens", false, false},
		"the wildcard taken out is not allowed":               {shipped, "mintmark:*", false, false},
		"the star includes what is taken out":                 {shipped, "*", false, false},
		"a name beside the exception is allowed":              {shipped, "mintmark", true, true},
		"a wildcard with a hole is not allowed":               {rule([]string{"*"}, []string{"deploy:prod"}), "deploy:*", false, false},
		"what is left of that wildcard is allowed":            {rule([]string{"*"}, []string{"deploy:prod"}), "deploy:test", true, true},
		"what no entry covers is not allowed":                 {rule([]string{"api:*"}, nil), "deploy:write", false, false},
		"two entries do not add up to the wildcard over both": {rule([]string{"a:b", "a:c"}, nil), "a:*", false, false},
		"the star is allowed where nothing is taken out":      {rule([]string{"*"}, nil), "*", true, true},
		"a rule without permissions allows nothing":           {rule(nil, nil), "a", false, false},
		"without a rule nothing is allowed":                   {nil, "a", false, false},
		"the empty permission is never allowed":               {rule([]string{"*"}, nil), "", false, false},
	} {
		t.Run(sentence, func(t *testing.T) {
			ceiling := authz.NewCeiling(test.rule)
			if got := ceiling.AllowsGrant(test.permission); got != test.grant {
				t.Errorf("AllowsGrant(%q) = %v", test.permission, got)
			}
			if got := ceiling.AllowsUse(test.permission); got != test.use {
				t.Errorf("AllowsUse(%q) = %v", test.permission, got)
			}
		})
	}
}

func TestAdminIsAllowedByTheRuleAlone(t *testing.T) {
	if !authz.NewCeiling(&v1alpha1.ClassRule{Admin: true}).Admin() {
		t.Error("a rule that allows admin does not")
	}
	if authz.NewCeiling(rule([]string{"*"}, nil)).Admin() || authz.NewCeiling(nil).Admin() {
		t.Error("admin is allowed without the rule saying so")
	}
}

func TestAttributesUnderTheCeiling(t *testing.T) {
	listed := &v1alpha1.ClassRule{Attributes: []v1alpha1.AttributeRule{
		{Key: "department", Values: []v1alpha1.MetadataValue{"payments", ""}}, {Key: "team"},
	}}
	for sentence, test := range map[string]struct {
		rule       *v1alpha1.ClassRule
		key, value string
		want       bool
	}{
		"a rule that does not say allows any":          {&v1alpha1.ClassRule{}, "clearance", "9", true},
		"a rule that lists none allows none":           {&v1alpha1.ClassRule{Attributes: []v1alpha1.AttributeRule{}}, "team", "x", false},
		"without a rule none is allowed":               {nil, "team", "x", false},
		"a key without values allows any value":        {listed, "team", "x", true},
		"a value that is listed is allowed":            {listed, "department", "payments", true},
		"so is the empty one where it is listed":       {listed, "department", "", true},
		"a value that is not is not":                   {listed, "department", "security", false},
		"a key that is not listed is not":              {listed, "clearance", "1", false},
		"case counts":                                  {listed, "Department", "payments", false},
		"a key that begins like a listed one is not":   {listed, "team-lead", "x", false},
		"a rule with permissions alone says nothing":   {rule([]string{"*"}, nil), "team", "x", true},
		"the empty key is one that is not listed here": {listed, "", "", false},
	} {
		t.Run(sentence, func(t *testing.T) {
			if got := authz.NewCeiling(test.rule).AllowsAttribute(test.key, test.value); got != test.want {
				t.Errorf("AllowsAttribute(%q, %q) = %v", test.key, test.value, got)
			}
		})
	}
	ceiling := authz.NewCeiling(listed)
	if n := testing.AllocsPerRun(100, func() { ceiling.AllowsAttribute("department", "payments") }); n != 0 {
		t.Errorf("AllowsAttribute allocates %v times", n)
	}
}

// What a client writes back after reading a class is what the class said.
func TestNoAttributesAndAnyAreToldApartInJSON(t *testing.T) {
	for _, text := range []string{`{"attributes":[]}`, `{}`} {
		var r v1alpha1.ClassRule
		if err := json.Unmarshal([]byte(text), &r); err != nil {
			t.Fatal(err)
		}
		if written, err := json.Marshal(r.DeepCopy()); err != nil || string(written) != text {
			t.Errorf("%s becomes %s (%v)", text, written, err)
		}
	}
}

func TestSelectRule(t *testing.T) {
	team := func(name string) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchLabels: map[string]string{"team": name}}
	}
	broken := &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "team", Operator: "Like"}}}
	everyone := &metav1.LabelSelector{}
	for sentence, test := range map[string]struct {
		selectors []*metav1.LabelSelector
		labels    map[string]string
		want      int // index of the rule, -1 for none
		err       string
	}{
		"the first that matches holds":                    {[]*metav1.LabelSelector{team("a"), team("b"), nil}, map[string]string{"team": "b"}, 1, ""},
		"a rule without a selector matches every one":     {[]*metav1.LabelSelector{team("a"), nil, nil}, nil, 1, ""},
		"an empty selector matches every one":             {[]*metav1.LabelSelector{everyone}, map[string]string{"x": "y"}, 0, ""},
		"no rule matches":                                 {[]*metav1.LabelSelector{team("a")}, map[string]string{"team": "b"}, -1, ""},
		"there are no rules":                              {nil, nil, -1, ""},
		"a selector that cannot be read stops the search": {[]*metav1.LabelSelector{team("a"), broken, nil}, nil, -1, "spec.rules[1].namespaceSelector"},
		"an earlier match comes before a broken selector": {[]*metav1.LabelSelector{nil, broken}, nil, 0, ""},
	} {
		t.Run(sentence, func(t *testing.T) {
			class := &v1alpha1.CredentialClassSpec{}
			for _, selector := range test.selectors {
				class.Rules = append(class.Rules, v1alpha1.ClassRule{NamespaceSelector: selector})
			}
			got, err := authz.SelectRule(class, test.labels)
			if test.err != "" {
				if err == nil || got != nil || !strings.Contains(err.Error(), test.err) {
					t.Fatalf("SelectRule = %v, %v; want an error with %q", got, err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if index := slices.IndexFunc(class.Rules, func(r v1alpha1.ClassRule) bool {
				return got != nil && got.NamespaceSelector == r.NamespaceSelector
			}); index != test.want {
				t.Errorf("rule %d holds, want %d", index, test.want)
			}
		})
	}
	if got, err := authz.SelectRule(nil, nil); got != nil || err != nil {
		t.Errorf("without a class: %v, %v", got, err)
	}
}

func TestCeilingHoldsAtUseWhatItHeldAtIssue(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		allowed, except := patterns.Draw(t, "permissions"), patterns.Draw(t, "except")
		granted, used := pattern.Draw(t, "granted"), pattern.Draw(t, "used")
		ceiling := authz.NewCeiling(rule(allowed, except))
		if ceiling.AllowsUse(used) {
			if !coveredByAny(allowed, used) {
				t.Fatalf("%q may be used and is not under %q", used, allowed)
			}
			if coveredByAny(except, used) {
				t.Fatalf("%q may be used although %q takes it out", used, except)
			}
		}
		if ceiling.AllowsGrant(granted) && authz.Covers(granted, used) && !ceiling.AllowsUse(used) {
			t.Fatalf("%q was granted, and %q under it may not be used (%q except %q)", granted, used, allowed, except)
		}
	})
}

func rule(permissions, except []string) *v1alpha1.ClassRule {
	return &v1alpha1.ClassRule{Permissions: typed(permissions), Except: typed(except)}
}

func typed(plain []string) []v1alpha1.Permission {
	var permissions []v1alpha1.Permission
	for _, p := range plain {
		permissions = append(permissions, v1alpha1.Permission(p))
	}
	return permissions
}
