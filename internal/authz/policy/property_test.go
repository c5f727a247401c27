package policy_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authz/policy"
)

// truth of an expression: it can also be that there is none.
type truth string

const (
	yes     truth = "true"
	no      truth = "false"
	unknown truth = fails
)

// simple is a policy of which the truth of every expression is known.
type simple struct {
	name              string
	deny, dry         bool
	conditions, rules []truth
}

var truths = rapid.SampledFrom([]truth{yes, no, unknown})

func drawPolicies(t *rapid.T, label string) []simple {
	count := rapid.IntRange(0, 6).Draw(t, label+" number")
	var all []simple
	for i := range count {
		all = append(all, drawPolicy(t, fmt.Sprintf("%s-%d", label, i)))
	}
	return all
}

func drawPolicy(t *rapid.T, name string) simple {
	return simple{
		name: name, deny: rapid.Bool().Draw(t, name+" denies"), dry: rapid.Bool().Draw(t, name+" is a dry run"),
		conditions: rapid.SliceOfN(truths, 0, 2).Draw(t, name+" conditions"), rules: rapid.SliceOfN(truths, 1, 3).Draw(t, name+" rules"),
	}
}

// ready compiles few distinct policies, and keeps them.
var ready = map[string]*policy.Compiled{}

func (s simple) compiled(t *rapid.T) *policy.Compiled {
	key := fmt.Sprint(s)
	if ready[key] == nil {
		effect, enforcement := v1alpha1.PolicyAllow, v1alpha1.PolicyEnforce
		if s.deny {
			effect = v1alpha1.PolicyDeny
		}
		if s.dry {
			enforcement = v1alpha1.PolicyDryRun
		}
		compiled, err := policy.Compile(s.name, &v1alpha1.AccessPolicySpec{
			Effect: effect, Enforcement: enforcement, MatchConditions: named("c", texts(s.conditions)), Rules: named("r", texts(s.rules)),
		})
		if err != nil {
			t.Fatal(err)
		}
		ready[key] = compiled
	}
	return ready[key]
}

func texts(all []truth) []string {
	var out []string
	for _, one := range all {
		out = append(out, string(one))
	}
	return out
}

func decide(t *rapid.T, policies []simple) policy.Decision {
	var all []*policy.Compiled
	for _, s := range policies {
		all = append(all, s.compiled(t))
	}
	return policy.NewSet(all).Decide(payments())
}

// The definition, word by word as in api/v1alpha1: whether the policies let a
// request through.
func allowedByDefinition(policies []simple) bool {
	hasASay := func(s simple) bool { return !s.dry && !slices.Contains(s.conditions, no) }
	for _, s := range policies {
		if hasASay(s) && s.deny && (slices.Contains(s.rules, yes) || slices.Contains(s.rules, unknown)) {
			return false
		}
	}
	allowing := slices.DeleteFunc(slices.Clone(policies), func(s simple) bool { return s.deny || !hasASay(s) })
	return len(allowing) == 0 || slices.ContainsFunc(allowing, func(s simple) bool { return slices.Contains(s.rules, yes) })
}

func TestDecisionsAreWhatTheDefinitionSays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		policies := drawPolicies(t, "p")
		if got, want := decide(t, policies), allowedByDefinition(policies); got.Allowed != want {
			t.Fatalf("%+v: %+v", policies, got)
		}
	})
}

func TestTheOrderOfPoliciesDoesNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		policies := drawPolicies(t, "p")
		shuffled := rapid.Permutation(policies).Draw(t, "shuffled")
		if a, b := fmt.Sprint(decide(t, policies)), fmt.Sprint(decide(t, shuffled)); a != b {
			t.Fatalf("%s\n%s", a, b)
		}
	})
}

func TestPoliciesOnlyNarrow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		policies, added := drawPolicies(t, "p"), drawPolicy(t, "q")
		before, after := decide(t, policies), decide(t, append(slices.Clone(policies), added))
		// The one thing that a further policy can allow is what an Allow policy asks for
		// by its being there: that a rule of one of them is true.
		another := !added.deny && !added.dry && (before.Code == policy.CodeNotAllowed || before.Code == policy.CodeError) &&
			slices.ContainsFunc(policies, func(s simple) bool { return s.name == before.Policy && !s.deny })
		if !before.Allowed && after.Allowed && !another {
			t.Fatalf("%+v let through by %+v: %+v", before, added, after)
		}
		if added.dry && (after.Allowed != before.Allowed || after.Code != before.Code || after.Policy != before.Policy) {
			t.Fatalf("a dry run changed %+v to %+v", before, after)
		}
		if added.deny && after.Allowed && !before.Allowed {
			t.Fatalf("a Deny policy let through what %+v refused", before)
		}
	})
}

func TestADryRunTellsWhatEnforcingItWouldDo(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		policies, trial := drawPolicies(t, "p"), drawPolicy(t, "q")
		policies = slices.DeleteFunc(policies, func(s simple) bool { return s.dry }) // this one alone is on trial
		trial.dry = true
		tried := decide(t, append(slices.Clone(policies), trial))
		trial.dry = false
		enforced := decide(t, append(slices.Clone(policies), trial))
		would := slices.ContainsFunc(tried.Findings, func(f policy.Finding) bool { return f.DryRun && f.Policy == trial.name })
		if tried.Allowed && would == enforced.Allowed {
			t.Fatalf("a dry run said %v (%+v), and enforced it is %+v", would, tried, enforced)
		}
	})
}

// FuzzPolicies looks for expressions and input that make compiling or deciding
// panic, or a decision that contradicts itself.
func FuzzPolicies(f *testing.F) {
	for _, e := range []string{
		"true", "subject.id == 'x'", "subject.roles.exists(r, r.matches(request.path))", "environment.ip.family() == 4", "has(resource.owner)",
		"environment.now.getHours(request.path) > 3", "cidr(request.path).containsIP(environment.ip)", "url(request.path).getHost() == ''",
		"subject.attributes.all(k, v, k != v)", "dyn(subject)[request.path] == 1", "request.path.split('/').map(x, x + x).size() > 3",
		"subject.?email.orValue('') == ''", "[subject].exists(s, s.admin)", "int(request.path) / int(subject.id) == 0", "subject == subject", "type(subject) == string",
		"request.path.format([subject])=='x'", "{subject.id: subject}[subject.id].id == 'x'", "mintmark.subject{}.id == ''", "'%s'.format([subject]) == ''",
	} {
		f.Add(e, "/a/b", "10.0.0.1")
	}
	f.Fuzz(func(t *testing.T, expression, text, key string) {
		s := &v1alpha1.AccessPolicySpec{Effect: v1alpha1.PolicyDeny, Rules: named("r", []string{expression})}
		c, err := policy.Compile("p", s)
		if (err == nil) != (c != nil) {
			t.Fatalf("Compile = %v, %v", c, err)
		}
		policy.Warnings(s)
		if err != nil {
			if !strings.Contains(err.Error(), "spec.rules[0].expression") {
				t.Fatalf("an error that points nowhere: %v", err)
			}
			c = policy.Refuse("p", s)
		}
		in := payments()
		in.Request.Path, in.Subject.ID, in.Subject.Attributes = text, key, map[string]string{key: text}
		for _, in := range []*policy.Input{in, {}} {
			d := policy.NewSet([]*policy.Compiled{c}).Decide(in)
			if d.Allowed != (d.Code == policy.CodeAllowed) || err != nil && d.Allowed {
				t.Fatalf("%+v", d)
			}
		}
	})
}
