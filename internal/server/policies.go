package server

import (
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authz/policy"
)

// policies are the AccessPolicies in force. Reading takes no lock; each change makes
// another set and puts it in the place of the one before as a whole.
type policies struct {
	set     atomic.Pointer[policy.Set]
	log     *slog.Logger
	audit   *auditor // nil: nothing is recorded
	states  *prometheus.GaugeVec
	results *prometheus.CounterVec
	// noGateway: no gateway's word is taken on the request it asks about.
	noGateway bool

	mu     sync.Mutex
	known  map[string]knownPolicy
	logged map[policy.Finding]time.Time
}

// knownPolicy is an AccessPolicy as it was compiled.
type knownPolicy struct {
	spec     *v1alpha1.AccessPolicySpec
	compiled *policy.Compiled
	state    string
}

// States of a policy, as the metric has them.
const (
	policyEnforced = "enforced"
	policyDryRun   = "dry_run"
	// policyBroken policies cannot be compiled: see compilePolicy.
	policyBroken = "broken"
)

// Results of a policy, as the metric has them.
const (
	policyRefused     = "refused"
	policyWouldRefuse = "would_refuse"
	policyFailed      = "error"
)

func newPolicies(registry prometheus.Registerer, log *slog.Logger) *policies {
	p := &policies{
		log: log, known: map[string]knownPolicy{}, logged: map[policy.Finding]time.Time{},
		states: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "mintmark_policies",
			Help: "AccessPolicies, by state. A broken one cannot be compiled, and refuses what it could have had a say in.",
		}, []string{"state"}),
		results: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mintmark_policy_results_total",
			Help: "Requests that an AccessPolicy refused or, in a dry run, would have, and expressions that could not be evaluated.",
		}, []string{"policy", "rule", "result"}),
	}
	registry.MustRegister(p.states, p.results)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.publish()
	return p
}

// current is the set in force; never nil.
func (p *policies) current() *policy.Set { return p.set.Load() }

// put compiles a policy. publish has to follow.
func (p *policies) put(name string, spec *v1alpha1.AccessPolicySpec) (changed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if was, ok := p.known[name]; ok && equality.Semantic.DeepEqual(was.spec, spec) {
		return false
	}
	p.known[name] = p.compile(name, spec.DeepCopy())
	return true
}

// compile compiles a policy. One that cannot be compiled got past admission, and what it
// was meant to refuse cannot be told: so everything is refused that it could have had a
// say in.
func (p *policies) compile(name string, spec *v1alpha1.AccessPolicySpec) knownPolicy {
	known := knownPolicy{spec: spec, state: policyEnforced}
	var err error
	if known.compiled, err = policy.Compile(name, spec); err != nil {
		known.compiled, known.state = policy.Refuse(name, spec), policyBroken
		if known.compiled.DryRun {
			p.log.Warn("AccessPolicy cannot be compiled; it is a dry run and refuses nothing", "policy", name, "error", err.Error())
			return known
		}
		p.log.Error("AccessPolicy cannot be compiled: EVERY REQUEST that its match conditions do not rule out IS REFUSED until it is mended or deleted",
			"audit", true, "policy", name, "error", err.Error(), "remedy", "kubectl edit accesspolicy "+name)
		return known
	}
	if known.compiled.DryRun {
		known.state = policyDryRun
	}
	p.log.Info("AccessPolicy in force", "audit", true, "policy", name, "effect", string(spec.Effect), "state", known.state)
	if fields := toldByGateways(known.compiled); p.noGateway && len(fields) > 0 {
		p.log.Warn("AccessPolicy reads fields of the request that are empty at /forward-auth, for no gateway is among --trusted-proxies; "+
			"ext_authz and the check call tell them in any case", "policy", name, "fields", fields, "remedy", "--trusted-proxies, server.trustedProxies in the chart")
	}
	return known
}

// toldByGateways are the fields that the policy reads and that /forward-auth knows from
// headers of trusted gateways alone.
func toldByGateways(c *policy.Compiled) []string {
	return slices.DeleteFunc(c.RequestFields(), func(field string) bool {
		return !slices.Contains([]string{"method", "scheme", "host", "path", "userAgent"}, field)
	})
}

// remove forgets a policy. publish has to follow.
func (p *policies) remove(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.known[name]; !ok {
		return
	}
	delete(p.known, name)
	p.results.DeletePartialMatch(prometheus.Labels{"policy": name})
	p.log.Info("AccessPolicy is gone", "audit", true, "policy", name)
}

// reload puts what is known into force.
func (p *policies) reload() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.publish()
}

func (p *policies) publish() {
	all := make([]*policy.Compiled, 0, len(p.known))
	count := map[string]float64{policyEnforced: 0, policyDryRun: 0, policyBroken: 0}
	for _, known := range p.known {
		all = append(all, known.compiled)
		count[known.state]++
	}
	p.set.Store(policy.NewSet(all))
	for state, n := range count {
		p.states.WithLabelValues(state).Set(n)
	}
}

// Findings are logged once in findingEvery each, for every request can have the same.
const (
	findingEvery = time.Minute
	maxLogged    = 4096
)

// observe counts a decision, and logs what was found beside it. It is for every decision
// and does nothing where there is nothing to tell.
func (p *policies) observe(d *policy.Decision, subject string, now time.Time) {
	if !d.Allowed {
		p.results.WithLabelValues(d.Policy, d.Rule, policyRefused).Inc()
	}
	for i := range d.Findings {
		f := &d.Findings[i]
		if f.DryRun {
			p.results.WithLabelValues(f.Policy, f.Rule, policyWouldRefuse).Inc()
		} else {
			p.results.WithLabelValues(f.Policy, f.Rule, policyFailed).Inc()
		}
		if p.shouldLog(*f, now) {
			p.logFinding(f, subject)
		}
	}
}

func (p *policies) shouldLog(f policy.Finding, now time.Time) bool {
	f.Error = "" // it can differ with every request
	p.mu.Lock()
	defer p.mu.Unlock()
	if last, ok := p.logged[f]; ok && now.Sub(last) < findingEvery {
		return false
	}
	if len(p.logged) >= maxLogged {
		clear(p.logged)
	}
	p.logged[f] = now
	return true
}

func (p *policies) logFinding(f *policy.Finding, subject string) {
	if f.DryRun {
		p.audit.dryRun(f, subject)
		p.log.Info("an AccessPolicy in a dry run would have refused a request", "audit", true,
			"policy", f.Policy, "rule", f.Rule, "code", f.Code, "subject", subject)
		return
	}
	p.log.Warn("an expression of an AccessPolicy could not be evaluated, which counts against the request",
		"policy", f.Policy, "rule", f.Rule, "code", f.Code, "error", f.Error, "subject", subject)
}

// policySink applies AccessPolicies. What a list brings comes into force at its end, all
// at once; what a watch brings at once.
type policySink struct {
	policies *policies
	listed   roster
	listing  bool
}

func (s *policySink) BeginList() {
	s.listed.begin()
	s.listing = true
}

func (s *policySink) EndList() {
	s.listed.end(s.policies.remove)
	s.listing = false
	s.policies.reload()
}

func (s *policySink) Put(object runtime.Object) {
	a, ok := object.(*v1alpha1.AccessPolicy)
	if !ok {
		return
	}
	s.listed.put(a.Name)
	if s.policies.put(a.Name, &a.Spec) && !s.listing {
		s.policies.reload()
	}
}

func (s *policySink) Delete(object runtime.Object) {
	if a, ok := object.(*v1alpha1.AccessPolicy); ok {
		s.listed.drop(a.Name)
		s.policies.remove(a.Name)
		if !s.listing {
			s.policies.reload()
		}
	}
}
