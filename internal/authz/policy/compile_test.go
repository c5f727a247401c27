package policy_test

import (
	"strings"
	"testing"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authz/policy"
)

func TestErrorsPointAtTheExpression(t *testing.T) {
	for sentence, test := range map[string]struct {
		spec *v1alpha1.AccessPolicySpec
		want []string
	}{
		"a misspelt field": {
			allow("true", "true", "subject.rols.exists(r, r == 'x')"),
			[]string{"spec.rules[2].expression: ", "column 8: undefined field 'rols' (subject has admin, attributes, class, ", "roles"},
		},
		"a misspelt field in a condition": {
			where(deny("true"), "true", "request.pth == '/'"), []string{"spec.matchConditions[1].expression: ", "column 8: undefined field 'pth' (request has"},
		},
		"a misspelt variable": {
			allow("subjct.id == 'x'"), []string{"column 1: undeclared reference to 'subjct'", "the variables are subject, resource, request and environment"},
		},
		"two mistakes":              {allow("subject.a == 'x' || subject.b == 'x'"), []string{"column 8: undefined field 'a'", "column 28: undefined field 'b'"}},
		"a mistake on another line": {allow("true &&\n  subject.a == 'x'"), []string{"line 2, column 10: undefined field 'a'"}},
		"a syntax error":            {allow("subject.id =="), []string{"column 14: Syntax error"}},
		"a condition that is none":  {allow("subject.id"), []string{"gives string and not bool"}},
		"a type that does not fit":  {allow("subject.version == 'three'"), []string{"found no matching overload for '_==_' applied to '(int, string)'"}},
		"a value of a type of ours": {allow("mintmark.subject{id: 'x'}.id == 'x'"), []string{"cannot be made in an expression"}},
		"a time zone nobody knows": {
			allow("environment.now.getHours('Europe/Berln') > 8"), []string{`column 26: "Europe/Berln" is not a time zone: write one like Europe/Berlin`},
		},
		"an offset that is none":        {allow("environment.now.getHours('2:99') > 8"), []string{`"2:99" is not a time zone`}},
		"a regular expression":          {allow("request.path.matches('(')"), []string{"column 22: invalid matches argument (not a regular expression: RE2 syntax)"}},
		"a time that is none":           {allow("environment.now > timestamp('tomorrow')"), []string{"invalid timestamp argument"}},
		"a length of time that is none": {allow("environment.now - resource.created > duration('2 days')"), []string{"invalid duration argument"}},
		"macros within macros": {
			allow("subject.permissions.all(a, subject.permissions.all(b, a == b))"), []string{"can cost", "at most 50000 is allowed", "macros within macros"},
		},
		"costs beyond counting": {
			allow("subject.permissions.all(a, subject.permissions.all(b, subject.permissions.all(c, subject.permissions.all(d, a + b == c + d))))"),
			[]string{"can cost", "at most 50000 is allowed"},
		},
		"parts compared as a whole": {allow("subject == subject"), []string{"can cost more than can be told"}},
		"an effect nobody knows":    {spec("Perhaps", nil, "true"), []string{`spec.effect: Unsupported value: "Perhaps"`, `"Allow", "Deny"`}},
		"no rules":                  {allow(), []string{"spec.rules: Required value"}},
		"nested beyond reason":      {allow(strings.Repeat("(", 1000) + "true" + strings.Repeat(")", 1000)), []string{"spec.rules[0].expression"}},
		"several expressions":       {allow("subject.a == 1", "true", "subject.b == 2"), []string{"spec.rules[0].expression", "spec.rules[2].expression"}},
	} {
		t.Run(sentence, func(t *testing.T) {
			c, err := policy.Compile("p", test.spec)
			if err == nil || c != nil {
				t.Fatalf("Compile = %v, %v", c, err)
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error lacks %q:\n%v", want, err)
				}
			}
			if errs := policy.Validate(test.spec); errs.ToAggregate().Error() != err.Error() {
				t.Errorf("Validate says otherwise: %v", errs)
			}
		})
	}
}

func TestSurprisesAreWarnedOf(t *testing.T) {
	for sentence, test := range map[string]struct {
		spec *v1alpha1.AccessPolicySpec
		want []string
	}{
		"an allow policy over everything":                 {allow("true"), []string{"spec.matchConditions: without any"}},
		"an allow policy over something":                  {where(allow("resource.owner == 'x'"), "request.method == 'GET'"), nil},
		"a deny policy over everything":                   {deny("request.method == 'GET'"), nil},
		"a deny rule that reads what may not be known":    {deny("resource.classification == 'secret'"), []string{"spec.rules[0].expression: where resource.classification is not known, the request is refused"}},
		"a condition that reads what may not be known":    {where(allow("true"), "environment.device == 'x'"), []string{"spec.matchConditions[0].expression: where environment.device is not known, the policy has a say"}},
		"one that asks first":                             {deny("has(resource.classification) && resource.classification == 'secret'"), nil},
		"one that a condition has asked for":              {where(deny("resource.classification == 'secret'"), "has(resource.classification)"), nil},
		"one that says what to take instead":              {deny("resource.?classification.orValue('') == 'secret'"), nil},
		"one that asks for something else":                {deny("has(resource.owner) && resource.id == '1'"), []string{"resource.id is not known"}},
		"what cannot be compiled is for others to refuse": {deny("("), nil},
	} {
		t.Run(sentence, func(t *testing.T) {
			got := policy.Warnings(test.spec)
			if len(got) != len(test.want) {
				t.Fatalf("%d warnings, want %d: %q", len(got), len(test.want), got)
			}
			for i := range got {
				if !strings.Contains(got[i], test.want[i]) {
					t.Errorf("%q lacks %q", got[i], test.want[i])
				}
			}
		})
	}
}
