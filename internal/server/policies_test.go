package server

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authz/policy"
)

// policyRule is a policy of one rule.
func policyRule(name string, effect v1alpha1.PolicyEffect, expression string) *v1alpha1.AccessPolicy {
	return &v1alpha1.AccessPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.AccessPolicySpec{
		Effect: effect, Enforcement: v1alpha1.PolicyEnforce, Rules: []v1alpha1.PolicyExpression{{Name: "rule", Expression: expression}},
	}}
}

func dryRun(p *v1alpha1.AccessPolicy) *v1alpha1.AccessPolicy {
	p.Spec.Enforcement = v1alpha1.PolicyDryRun
	return p
}

// policyBench is a sink with what it writes to.
type policyBench struct {
	*policySink
	registry *prometheus.Registry
	log      *journal
}

func newPolicyBench() *policyBench {
	b := &policyBench{registry: prometheus.NewRegistry(), log: new(journal)}
	b.policySink = &policySink{policies: newPolicies(b.registry, b.log.logger())}
	return b
}

func (b *policyBench) list(all ...*v1alpha1.AccessPolicy) {
	b.BeginList()
	for _, p := range all {
		b.Put(p)
	}
	b.EndList()
}

// refuser is the policy that refuses a request; empty where none does.
func (b *policyBench) refuser() string {
	d := b.policies.current().Decide(&policy.Input{Request: policy.Request{Method: "GET"}})
	if d.Allowed {
		return ""
	}
	return d.Policy
}

// metric reads a metric by its name and the values of its labels.
func (b *policyBench) metric(t *testing.T, name string, labels ...string) float64 {
	t.Helper()
	families, err := b.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			var values []string
			for _, l := range m.GetLabel() {
				values = append(values, l.GetValue())
			}
			if family.GetName() == name && strings.Join(values, ",") == strings.Join(labels, ",") {
				return m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

func TestPoliciesComeIntoForceAsTheyAreToldOf(t *testing.T) {
	b := newPolicyBench()
	refuses := func(want, when string) {
		t.Helper()
		if got := b.refuser(); got != want {
			t.Errorf("%s: refused by %q, want %q", when, got, want)
		}
	}
	if !b.policies.current().Empty() {
		t.Error("there are policies before the first list")
	}
	b.BeginList()
	b.Put(policyRule("a", v1alpha1.PolicyDeny, "true"))
	refuses("", "before the end of the first list")
	b.EndList()
	refuses("a", "after it")
	b.Put(policyRule("a", v1alpha1.PolicyDeny, "false"))
	refuses("", "a change")
	b.Put(policyRule("b", v1alpha1.PolicyDeny, "true"))
	refuses("b", "another one")
	b.Delete(policyRule("b", v1alpha1.PolicyDeny, "true"))
	refuses("", "its deletion")
	b.Put(policyRule("c", v1alpha1.PolicyDeny, "true"))
	b.list(policyRule("a", v1alpha1.PolicyDeny, "false"))
	refuses("", "a list that no longer holds it")
	b.BeginList()
	b.Put(policyRule("d", v1alpha1.PolicyDeny, "true"))
	b.list(policyRule("a", v1alpha1.PolicyDeny, "true"))
	refuses("a", "a list after one that broke off")
	b.list()
	refuses("", "a list of none")
}

func TestAPolicyThatCannotBeCompiledRefusesAndSaysSo(t *testing.T) {
	b := newPolicyBench()
	broken := policyRule("typo", v1alpha1.PolicyAllow, "subject.rols == []")
	b.list(broken, policyRule("good", v1alpha1.PolicyAllow, "true"))
	if got := b.refuser(); got != "typo" {
		t.Errorf("refused by %q", got)
	}
	for _, part := range []string{`"level":"ERROR"`, `"audit":true`, `"policy":"typo"`, "EVERY REQUEST", "spec.rules[0].expression", "undefined field 'rols'", "kubectl edit accesspolicy typo"} {
		if !strings.Contains(b.log.String(), part) {
			t.Errorf("the log lacks %s:\n%s", part, b.log)
		}
	}
	if broken, enforced := b.metric(t, "mintmark_policies", "broken"), b.metric(t, "mintmark_policies", "enforced"); broken != 1 || enforced != 1 {
		t.Errorf("%v broken, %v enforced", broken, enforced)
	}
	b.Put(policyRule("typo", v1alpha1.PolicyAllow, "subject.roles == []"))
	if got := b.refuser(); got != "" {
		t.Errorf("mended, and refused by %q", got)
	}
	b.Put(dryRun(broken))
	if got := b.refuser(); got != "" || b.metric(t, "mintmark_policies", "broken") != 1 {
		t.Errorf("a dry run that cannot be compiled: refused by %q", got)
	}
	narrow := policyRule("typo", v1alpha1.PolicyDeny, "subject.rols == []")
	narrow.Spec.MatchConditions = []v1alpha1.PolicyExpression{{Name: "m", Expression: "request.method == 'DELETE'"}}
	b.Put(narrow)
	if got := b.refuser(); got != "" {
		t.Errorf("what its conditions rule out is refused by %q", got)
	}
}

func TestPoliciesAreCountedAndLoggedOnce(t *testing.T) {
	b, now := newPolicyBench(), time.Unix(1_800_000_000, 0)
	b.list(dryRun(policyRule("trial", v1alpha1.PolicyDeny, "true")), policyRule("odd", v1alpha1.PolicyAllow, "subject.attributes.a == 'x' || request.method == 'PUT'"),
		policyRule("open", v1alpha1.PolicyAllow, "request.method == 'GET'"))
	decide := func(method string, at time.Time) {
		d := b.policies.current().Decide(&policy.Input{Request: policy.Request{Method: method}})
		b.policies.observe(&d, "servicetoken:a:b", at)
	}
	for range 3 {
		decide("GET", now)
	}
	decide("DELETE", now)
	for _, want := range []struct {
		policy, result, rule string
		count                float64
	}{
		{"trial", "would_refuse", "rule", 3}, {"odd", "error", "rule", 4}, {"odd", "refused", "rule", 1}, {"open", "refused", "", 0},
	} {
		if got := b.metric(t, "mintmark_policy_results_total", want.policy, want.result, want.rule); got != want.count {
			t.Errorf("%+v: counted %v", want, got)
		}
	}
	logged := func() (trial, odd int) {
		for _, line := range strings.Split(b.log.String(), "\n") {
			if strings.Contains(line, "in a dry run would have refused") && strings.Contains(line, `"subject":"servicetoken:a:b"`) {
				trial++
			}
			if strings.Contains(line, "could not be evaluated") && strings.Contains(line, "no such key: a") {
				odd++
			}
		}
		return trial, odd
	}
	if trial, odd := logged(); trial != 1 || odd != 1 {
		t.Errorf("logged %d and %d times", trial, odd)
	}
	decide("GET", now.Add(findingEvery))
	if trial, odd := logged(); trial != 2 || odd != 2 {
		t.Errorf("a minute later: %d and %d times", trial, odd)
	}
	b.list()
	if got := b.metric(t, "mintmark_policy_results_total", "trial", "would_refuse", "rule"); got != 0 {
		t.Errorf("a policy that is gone is still counted: %v", got)
	}
}

func TestPoliciesAreReadWhileTheyChange(t *testing.T) {
	b := newPolicyBench()
	b.list(policyRule("a", v1alpha1.PolicyDeny, "true"))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if b.refuser() == "" {
				t.Error("a moment without a policy")
				return
			}
		}
	}()
	for range 200 {
		b.list(policyRule("a", v1alpha1.PolicyDeny, "request.method != ''"), policyRule("b", v1alpha1.PolicyAllow, "true"))
		b.list(policyRule("a", v1alpha1.PolicyDeny, "true"))
	}
	cancel()
	<-done
}

func TestAServerFollowsPolicies(t *testing.T) {
	in := newInstallation(t)
	c := in.credential()
	r := in.startReady()
	r.expect(0+soon, c, 200, "before there is a policy")

	p := policyRule(in.namespace, v1alpha1.PolicyDeny, "true")
	p.Spec.MatchConditions = []v1alpha1.PolicyExpression{{Name: "here", Expression: "subject.namespace == '" + in.namespace + "'"}}
	in.create(p)
	t.Cleanup(func() { _ = in.client.Delete(context.WithoutCancel(t.Context()), p) })
	r.expect(soon, c, 403, "a policy that denies")

	change := func(do func()) {
		t.Helper()
		do()
		if err := in.client.Update(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	change(func() { p.Spec.Enforcement = v1alpha1.PolicyDryRun })
	r.expect(soon, c, 200, "a dry run of it")
	eventually(t, soon, "the dry run is in the log", func() bool { return strings.Contains(r.log.String(), "in a dry run would have refused") })
	// Nobody compiled this before it was stored: there are no webhooks here.
	change(func() {
		p.Spec.Enforcement, p.Spec.Rules[0].Expression = v1alpha1.PolicyEnforce, "subject.nothing == 'x'"
	})
	r.expect(soon, c, 403, "one that cannot be compiled")
	if _, metrics := r.probe("/metrics"); !strings.Contains(metrics, `mintmark_policies{state="broken"} 1`) {
		t.Error("the metrics do not tell of it")
	}
	change(func() { p.Spec.Rules[0].Expression = "subject.name != '" + c.object.Name + "'" })
	r.expect(soon, c, 200, "one that is mended")
	change(func() { p.Spec.Rules[0].Expression = "request.path == ''" })
	r.expect(soon, c, 403, "one that denies again, for no gateway is trusted to tell the path")
	eventually(t, soon, "the log warns of that", func() bool { return strings.Contains(r.log.String(), "no gateway is among --trusted-proxies") })
	if err := in.client.Delete(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	r.expect(soon, c, 200, "its deletion")
}

func TestAPolicyThatReadsWhatNoGatewayTellsIsWarnedOf(t *testing.T) {
	const warning = "fields of the request that are empty"
	for name, c := range map[string]struct {
		expression string
		untrusting bool
		want       string // fields; empty: no warning
	}{
		"the path, and no gateway is trusted":       {"request.path.startsWith('/admin') || request.method == 'DELETE'", true, `["method","path"]`},
		"the path, and a gateway is trusted":        {"request.path.startsWith('/admin')", false, ""},
		"what the service says, and none is":        {"request.action == 'pay' && subject.admin", true, ""},
		"a field of that name of something else":    {"resource.attributes.path == 'x'", true, ""},
		"how the caller authenticated":              {"subject.method == 'jwt'", true, ""},
		"the path within a macro":                   {"subject.roles.exists(r, r == request.path)", true, `["path"]`},
		"whether there is one, and none is trusted": {"has(request.userAgent)", true, `["userAgent"]`},
	} {
		t.Run(name, func(t *testing.T) {
			b := newPolicyBench()
			b.policies.noGateway = c.untrusting
			b.list(policyRule("p", v1alpha1.PolicyDeny, c.expression))
			log := b.log.String()
			if got := strings.Contains(log, warning); got != (c.want != "") || !strings.Contains(log, c.want) {
				t.Errorf("warned: %v, want %v of %s\n%s", got, c.want != "", c.want, log)
			}
		})
	}
}
