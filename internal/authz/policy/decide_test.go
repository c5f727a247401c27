package policy_test

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authz/policy"
)

// fails cannot be evaluated: nothing has that attribute.
const fails = "subject.attributes.nothing == 'x'"

func TestDecisions(t *testing.T) {
	type policies = map[string]*v1alpha1.AccessPolicySpec
	refused := func(name, rule, code string) policy.Decision {
		return policy.Decision{Policy: name, Rule: rule, Code: code}
	}
	allowed := func(name, rule string) policy.Decision {
		return policy.Decision{Allowed: true, Policy: name, Rule: rule, Code: policy.CodeAllowed}
	}
	found := func(d policy.Decision, findings ...policy.Finding) policy.Decision {
		d.Findings = findings
		return d
	}
	failed := func(name, expression string) policy.Finding {
		return policy.Finding{Policy: name, Rule: expression, Code: policy.CodeError, Error: "no such key: nothing"}
	}
	would := func(name, rule, code string) policy.Finding {
		return policy.Finding{Policy: name, Rule: rule, DryRun: true, Code: code}
	}
	for sentence, test := range map[string]struct {
		policies policies
		want     policy.Decision
	}{
		"without policies everything is let through": {nil, allowed("", "")},
		"a deny rule that is true refuses":           {policies{"p": deny("false", "true")}, refused("p", "rule-1", policy.CodeDenied)},
		"a deny rule that is false does not":         {policies{"p": deny("false")}, allowed("", "")},
		"a deny rule that cannot be evaluated refuses": {
			policies{"p": deny("false", fails)}, found(refused("p", "rule-1", policy.CodeError), failed("p", "rule-1")),
		},
		"one rule of an allow policy is enough":       {policies{"p": allow("false", "true")}, allowed("p", "rule-1")},
		"without a true rule an allow policy refuses": {policies{"p": allow("false", "false")}, refused("p", "", policy.CodeNotAllowed)},
		"one rule of one of the allow policies is":    {policies{"a": allow("false"), "b": allow("true")}, allowed("b", "rule-0")},
		"deny wins": {policies{"a": allow("true"), "b": deny("true")}, refused("b", "rule-0", policy.CodeDenied)},
		"of two that deny the first by name is told": {policies{"b": deny("true"), "a": deny("true")}, refused("a", "rule-0", policy.CodeDenied)},
		"of two that allow not the first is told":    {policies{"b": allow("false"), "a": allow("false")}, refused("a", "", policy.CodeNotAllowed)},
		"an allow rule that cannot be evaluated is no": {
			policies{"p": allow(fails)}, found(refused("p", "rule-0", policy.CodeError), failed("p", "rule-0")),
		},
		"an allow rule that cannot be evaluated leaves the others": {
			policies{"p": allow(fails, "true")}, found(allowed("p", "rule-1"), failed("p", "rule-0")),
		},
		"a policy whose condition is false has no say":        {policies{"p": where(deny("true"), "true", "false")}, allowed("", "")},
		"an allow policy whose condition is false has no say": {policies{"p": where(allow("false"), "false")}, allowed("", "")},
		"a policy whose conditions hold has":                  {policies{"p": where(deny("true"), "true", "true")}, refused("p", "rule-0", policy.CodeDenied)},
		"a condition that cannot be evaluated holds": {
			policies{"p": where(deny("true"), fails)}, found(refused("p", "rule-0", policy.CodeDenied), failed("p", "condition-0")),
		},
		"a condition that cannot be evaluated does not outweigh one that is false": {
			policies{"p": where(deny("true"), fails, "false")}, found(allowed("", ""), failed("p", "condition-0")),
		},
		"a dry run that would deny is recorded": {
			policies{"p": dry(deny("true"))}, found(allowed("", ""), would("p", "rule-0", policy.CodeDenied)),
		},
		"a dry run that would not allow is recorded": {
			policies{"p": dry(allow("false"))}, found(allowed("", ""), would("p", "", policy.CodeNotAllowed)),
		},
		"a dry run that cannot be evaluated is recorded": {
			policies{"p": dry(deny(fails))}, found(allowed("", ""), failed("p", "rule-0"), would("p", "rule-0", policy.CodeError)),
		},
		"a dry run that allows is nothing to record":         {policies{"p": dry(allow("true"))}, allowed("", "")},
		"a dry run allows nothing":                           {policies{"a": dry(allow("true")), "b": allow("false")}, refused("b", "", policy.CodeNotAllowed)},
		"a dry run beside a policy that allows is enough":    {policies{"a": dry(allow("false")), "b": allow("true")}, allowed("b", "rule-0")},
		"a dry run beside another one that allows is enough": {policies{"a": dry(allow("false")), "b": dry(allow("true"))}, allowed("", "")},
		"a dry run has nothing to say of what is refused":    {policies{"a": dry(deny("true")), "b": deny("true")}, refused("b", "rule-0", policy.CodeDenied)},
		"a dry run without a say records nothing":            {policies{"p": dry(where(deny("true"), "false"))}, allowed("", "")},
		"a policy that says nothing of enforcement is enforced": {
			policies{"p": {Effect: v1alpha1.PolicyDeny, Rules: named("rule", []string{"true"})}}, refused("p", "rule-0", policy.CodeDenied),
		},
	} {
		t.Run(sentence, func(t *testing.T) {
			if diff := cmp.Diff(test.want, set(t, test.policies).Decide(payments()), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("the decision (-want +got):\n%s", diff)
			}
		})
	}
}

func TestExpressionsSeeTheWholeInput(t *testing.T) {
	for _, expression := range []string{
		"subject.id == 'servicetoken:payments:ci-deploy' && subject.kind == 'ServiceToken'",
		"subject.namespace == 'payments' && subject.name == 'ci-deploy' && subject.class == 'production'",
		"subject.version == 3 && subject.version > 2.5 && !subject.admin",
		"subject.issuer == '' && subject.method == 'key'",
		"'deployer' in subject.roles && subject.roles.all(r, r.startsWith('dep'))",
		"sets.contains(subject.permissions, ['deploy:write'])",
		"subject.attributes.department == resource.ownerDepartment",
		"has(subject.attributes.department) && !has(subject.attributes.nothing) && !has(subject.email)",
		"int(subject.attributes.clearance) >= {'public': 0, 'internal': 1, 'secret': 3}[resource.classification]",
		"resource.type == 'invoice' && resource.id == '42' && resource.owner == 'jane'",
		"environment.now - resource.created < duration('96h')",
		"resource.attributes.currency == 'EUR'",
		"request.method == 'POST' && request.scheme == 'https' && request.host.endsWith('.example.com')",
		"request.path.matches('^/invoices/[0-9]+$') && request.action == 'pay'",
		"'invoice:pay' in request.permissions && 'https://api.example.com' in request.audiences",
		"request.userAgent.startsWith('curl/') && request.headers['x-tenant'] == 'eu'",
		"cidr('10.0.0.0/8').containsIP(environment.ip) && environment.ip.family() == 4 && string(environment.ip) == '10.1.2.3'",
		"environment.device == 'managed' && environment.now > timestamp('2026-01-01T00:00:00Z')",
		"environment.now.getHours('Europe/Berlin') == 9 && environment.now.getHours() == 8 && environment.now.getHours('-02:30') == 6",
		"environment.now.getDayOfWeek('Asia/Tokyo') == 1 && environment.now.getMinutes('+05:45') == 15",
		"environment.now.getFullYear('UTC') == 2026 && environment.now.getMonth('UTC') == 10 && environment.now.getDate('UTC') == 23",
		"environment.now.getDayOfMonth('UTC') == 22 && environment.now.getDayOfYear('UTC') == 326",
		"environment.now.getSeconds('UTC') == 0 && environment.now.getMilliseconds('UTC') == 0",
		"environment.now.getHours(subject.attributes.?zone.orValue('Europe/Berlin')) == 9",
		"resource.?owner.orValue('') == 'jane' && subject.?email.orValue('none') == 'none'",
		"dyn(subject).name == 'ci-deploy' && [subject][0].name == 'ci-deploy' && has(dyn(resource).owner) && !has(dyn(subject).email)",
		"semver('1.2.3').isGreaterThan(semver('1.0.0')) && quantity('1Gi').isGreaterThan(quantity('1M')) && isURL('https://example.com')",
	} {
		if d := set(t, map[string]*v1alpha1.AccessPolicySpec{"p": allow(expression)}).Decide(payments()); !d.Allowed {
			t.Errorf("%s is not true: %+v", expression, d)
		}
	}
}

func TestWhatIsNotKnownCannotBeRead(t *testing.T) {
	for _, field := range []string{
		"subject.email", "resource.id", "resource.owner", "resource.ownerDepartment", "resource.classification", "environment.device",
	} {
		for sentence, test := range map[string]struct {
			expression string
			want       bool
		}{
			"an empty one equals nothing, not even the empty text": {field + " == ''", false},
			"it differs from nothing":                              {field + " != 'x'", false},
			"it can be asked for":                                  {"!has(" + field + ")", true},
		} {
			if d := set(t, map[string]*v1alpha1.AccessPolicySpec{"p": allow(test.expression)}).Decide(&policy.Input{}); d.Allowed != test.want {
				t.Errorf("%s: %s: %+v", field, sentence, d)
			}
		}
	}
	for _, expression := range []string{
		"environment.ip.family() == 4", "!environment.ip.isLoopback()", "resource.created < environment.now", "environment.now > timestamp('2020-01-01T00:00:00Z')",
		"subject.attributes.a == ''", "dyn(subject).email == ''",
	} {
		d := set(t, map[string]*v1alpha1.AccessPolicySpec{"p": deny(expression)}).Decide(&policy.Input{})
		if d.Allowed || d.Code != policy.CodeError {
			t.Errorf("%s: %+v", expression, d)
		}
	}
}

func TestTwoUnknownsAreNotTheSame(t *testing.T) {
	in := payments()
	in.Resource.OwnerDepartment = ""
	in.Subject.Attributes = map[string]string{"department": ""}
	if d := set(t, map[string]*v1alpha1.AccessPolicySpec{"p": allow("resource.ownerDepartment == subject.attributes.department")}).Decide(in); d.Allowed {
		t.Error("a resource without an owner's department passes for that of a subject without one")
	}
}

func TestAPolicyThatCannotBeCompiledRefusesWhatItHasASayIn(t *testing.T) {
	broken := func(conditions ...string) *v1alpha1.AccessPolicySpec {
		return where(allow("subject.nothing == 'x'", "true"), conditions...)
	}
	for sentence, test := range map[string]struct {
		spec *v1alpha1.AccessPolicySpec
		want string
	}{
		"all of it refuses everything":                    {broken(), policy.CodeError},
		"what its conditions rule out is let through":     {broken("request.method == 'GET'"), policy.CodeAllowed},
		"what they do not is refused":                     {broken("request.method == 'POST'"), policy.CodeError},
		"a condition that cannot be compiled holds":       {broken("request.nothing == 'GET'"), policy.CodeError},
		"a false one beside it still rules out":           {broken("request.nothing == 'GET'", "false"), policy.CodeAllowed},
		"an effect nobody knows is one that denies":       {spec("Perhaps", nil, "false"), policy.CodeError},
		"an enforcement nobody knows is one that refuses": {&v1alpha1.AccessPolicySpec{Effect: "Deny", Enforcement: "Sometimes", Rules: named("r", []string{"false"})}, policy.CodeError},
		"a policy without rules is broken too":            {allow(), policy.CodeError},
		"a dry run refuses nothing":                       {dry(broken()), policy.CodeAllowed},
	} {
		t.Run(sentence, func(t *testing.T) {
			if _, err := policy.Compile("p", test.spec); err == nil {
				t.Fatal("the policy compiles")
			}
			d := policy.NewSet([]*policy.Compiled{policy.Refuse("p", test.spec), compiled(t, "q", allow("true"))}).Decide(payments())
			if d.Code != test.want || d.Allowed != (test.want == policy.CodeAllowed) {
				t.Errorf("%+v", d)
			}
		})
	}
}

func TestWhatCostsTooMuchIsRefused(t *testing.T) {
	// Within the estimate for what the schema allows, and beyond it for this.
	in := payments()
	in.Subject.Roles = make([]string, 30_000)
	costly := "subject.roles.all(r, r.size() == 0 && r.startsWith('') && r != 'x')"
	d := set(t, map[string]*v1alpha1.AccessPolicySpec{"p": allow(costly)}).Decide(in)
	if d.Allowed || d.Code != policy.CodeError || !strings.Contains(d.Findings[0].Error, "cost") {
		t.Errorf("one expression without an end: %.300v", d)
	}

	in.Subject.Roles = make([]string, 5_000)
	policies := map[string]*v1alpha1.AccessPolicySpec{}
	for i := range 100 {
		policies[fmt.Sprintf("p%02d", i)] = deny("!(" + costly + ")")
	}
	d = set(t, policies).Decide(in)
	if d.Allowed || d.Code != policy.CodeCost {
		t.Errorf("many together: %.300v", d)
	}
	in.Subject.Roles = make([]string, 64)
	if d = set(t, policies).Decide(in); !d.Allowed {
		t.Errorf("as many as there can be: %.300v", d)
	}
}

func TestManyErrorsAreNotAllRecorded(t *testing.T) {
	policies := map[string]*v1alpha1.AccessPolicySpec{}
	for i := range 100 {
		policies[fmt.Sprintf("p%02d", i)] = dry(deny(fails))
	}
	if d := set(t, policies).Decide(payments()); !d.Allowed || len(d.Findings) != 64 {
		t.Errorf("%d findings", len(d.Findings))
	}
}

func TestAnEmptySetIsToldApart(t *testing.T) {
	var none *policy.Set
	if !none.Empty() || !policy.NewSet(nil).Empty() || !none.Decide(payments()).Allowed {
		t.Error("no policies refuse")
	}
	if set(t, map[string]*v1alpha1.AccessPolicySpec{"p": dry(deny("true"))}).Empty() {
		t.Error("a set of dry runs passes for empty")
	}
}

func TestDecidingIsSafeFromManyGoroutines(t *testing.T) {
	s := set(t, map[string]*v1alpha1.AccessPolicySpec{
		"a": deny("!cidr('10.0.0.0/8').containsIP(environment.ip)"),
		"b": allow("request.path.matches('^/invoices/[0-9]+$') && environment.now.getHours('Europe/Berlin') == 9"),
		"c": dry(deny("subject.permissions.exists(p, p == 'deploy:write')")),
	})
	var running sync.WaitGroup
	for i := range 8 {
		running.Go(func() {
			for range 200 {
				in := payments()
				if i%2 == 0 {
					in.Environment.IP = netip.MustParseAddr("192.0.2.1")
				}
				if d := s.Decide(in); d.Allowed != (i%2 == 1) {
					t.Errorf("%d: %+v", i, d)
				}
			}
		})
	}
	running.Wait()
}

func TestTimeZonesHaveTheirSummer(t *testing.T) {
	s := set(t, map[string]*v1alpha1.AccessPolicySpec{"p": allow("environment.now.getHours('Europe/Berlin') == 9")})
	for when, want := range map[string]bool{
		"2026-01-15T08:30:00Z": true, "2026-07-15T08:30:00Z": false, "2026-07-15T07:30:00Z": true,
	} {
		in := payments()
		var err error
		if in.Environment.Now, err = time.Parse(time.RFC3339, when); err != nil {
			t.Fatal(err)
		}
		if d := s.Decide(in); d.Allowed != want {
			t.Errorf("%s: %+v", when, d)
		}
	}
}
