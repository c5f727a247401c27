package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
)

// Why a decision fell, or what was found, for operators. Callers never learn it.
const (
	// CodeAllowed: no policy refuses.
	CodeAllowed = "Allowed"
	// CodeDenied: a rule of a Deny policy is true.
	CodeDenied = "PolicyDenied"
	// CodeNotAllowed: no rule is true of the Allow policies that have a say.
	CodeNotAllowed = "PolicyNotAllowed"
	// CodeError: an expression could not be evaluated.
	CodeError = "PolicyError"
	// CodeCost: the policies cost more than a decision may.
	CodeCost = "PolicyCost"
)

// Decision of a [Set].
type Decision struct {
	// Allowed: the policies have nothing against the request.
	Allowed bool
	// Policy and Rule that decided; where Allow policies refuse, the first that
	// had a say, and the rule of it that could not be evaluated, if any. Empty
	// where no policy had a say.
	Policy, Rule string
	// Code is one of the constants of this package.
	Code string
	// Findings of dry runs, and of expressions that could not be evaluated.
	Findings []Finding
}

// Finding is something to record that did not refuse the request by itself.
type Finding struct {
	// Policy and, where it is about one, the condition or rule.
	Policy, Rule string
	// DryRun: the policy would have refused.
	DryRun bool
	// Code says why.
	Code string
	// Error of an expression that could not be evaluated. It can quote what was
	// asked for, and never holds a credential.
	Error string
}

// Set of policies that decide together. The zero Set, and nil, refuse nothing.
type Set struct {
	deny, allow       []*Compiled
	dryDeny, dryAllow []*Compiled
}

// NewSet puts policies together. Their order does not matter: they are asked by
// name, the Deny policies first.
func NewSet(policies []*Compiled) *Set {
	s := &Set{}
	for _, p := range slices.SortedStableFunc(slices.Values(policies), func(a, b *Compiled) int { return strings.Compare(a.Name, b.Name) }) {
		group := &s.allow
		switch {
		case p.DryRun && p.deny:
			group = &s.dryDeny
		case p.DryRun:
			group = &s.dryAllow
		case p.deny:
			group = &s.deny
		}
		*group = append(*group, p)
	}
	return s
}

// Empty tells whether there is no policy at all: then there is no need to put
// an input together.
func (s *Set) Empty() bool { return s == nil || s.Len() == 0 }

// Len is the number of policies.
func (s *Set) Len() int { return len(s.deny) + len(s.allow) + len(s.dryDeny) + len(s.dryAllow) }

// Decide asks the policies. It reads the input and keeps nothing of it.
//
// Dry runs are asked about what the others let through, as if all of them were
// enforced beside the others.
func (s *Set) Decide(in *Input) Decision {
	if s.Empty() {
		return Decision{Allowed: true, Code: CodeAllowed}
	}
	e := evaluation{vars: activation{in}, left: maxDecisionCost, quick: in.usual()}
	decision, satisfied := e.enforce(s)
	if decision.Allowed && len(s.dryDeny)+len(s.dryAllow) > 0 {
		e.left = maxDecisionCost // of their own: a dry run refuses nothing
		e.dryRun(s, satisfied)
	}
	decision.Findings = e.findings
	return decision
}

// evaluation is one decision under way.
type evaluation struct {
	vars     activation
	left     uint64 // of the cost it may have
	quick    bool   // the input is no larger than estimates go by
	findings []Finding
}

// enforce asks the policies that count. satisfied tells whether Allow policies
// had a say.
func (e *evaluation) enforce(s *Set) (d Decision, satisfied bool) {
	for _, p := range s.deny {
		if !e.matches(p) {
			continue
		}
		if rule, code, refuses := e.denies(p); refuses {
			return Decision{Policy: p.Name, Rule: rule, Code: code}, false
		}
	}
	refusal := Decision{}
	for _, p := range s.allow {
		if !e.matches(p) {
			continue
		}
		rule, code, allows := e.allows(p)
		if allows {
			return Decision{Allowed: true, Policy: p.Name, Rule: rule, Code: CodeAllowed}, true
		}
		if refusal.Code == "" {
			refusal = Decision{Policy: p.Name, Rule: rule, Code: code}
		}
	}
	if refusal.Code != "" {
		return refusal, false
	}
	return Decision{Allowed: true, Code: CodeAllowed}, false
}

// dryRun records what the policies on trial would have refused of what the
// others let through.
func (e *evaluation) dryRun(s *Set, satisfied bool) {
	for _, p := range s.dryDeny {
		if !e.matches(p) {
			continue
		}
		if rule, code, refuses := e.denies(p); refuses {
			e.find(Finding{Policy: p.Name, Rule: rule, DryRun: true, Code: code})
		}
	}
	if satisfied {
		return
	}
	var would []Finding
	for _, p := range s.dryAllow {
		if !e.matches(p) {
			continue
		}
		rule, code, allows := e.allows(p)
		if allows {
			return
		}
		would = append(would, Finding{Policy: p.Name, Rule: rule, DryRun: true, Code: code})
	}
	e.findings = append(e.findings, would...)
}

// matches tells whether the policy has a say. A condition that cannot be
// evaluated holds.
func (e *evaluation) matches(p *Compiled) bool {
	for i := range p.conditions {
		if holds, code := e.evaluate(p, &p.conditions[i]); code == "" && !holds {
			return false
		}
	}
	return true
}

// denies tells whether a rule is true, or cannot be evaluated.
func (e *evaluation) denies(p *Compiled) (rule, code string, refuses bool) {
	for i := range p.rules {
		holds, problem := e.evaluate(p, &p.rules[i])
		if problem != "" {
			return p.rules[i].name, problem, true
		}
		if holds {
			return p.rules[i].name, CodeDenied, true
		}
	}
	return "", "", false
}

// allows tells whether a rule is true; otherwise the code says whether one could
// not be evaluated.
func (e *evaluation) allows(p *Compiled) (rule, code string, allows bool) {
	code = CodeNotAllowed
	for i := range p.rules {
		holds, problem := e.evaluate(p, &p.rules[i])
		if problem == "" && holds {
			return p.rules[i].name, CodeAllowed, true
		}
		if problem != "" && code == CodeNotAllowed {
			rule, code = p.rules[i].name, problem
		}
	}
	return rule, code, false
}

// evaluate gives the value of an expression; code says why there is none.
func (e *evaluation) evaluate(p *Compiled, x *expression) (holds bool, code string) {
	if x.program == nil {
		return false, e.failed(p, x, CodeError, x.problem)
	}
	if e.left == 0 {
		return false, e.failed(p, x, CodeCost, errTooCostly)
	}
	value, err := e.run(x)
	if err != nil {
		return false, e.failed(p, x, CodeError, err)
	}
	b, ok := value.(types.Bool)
	if !ok {
		return false, e.failed(p, x, CodeError, fmt.Errorf("gives %s and not bool", value.Type().TypeName()))
	}
	return bool(b), ""
}

var errTooCostly = fmt.Errorf("the policies before it cost %d together, which is all that one decision may", maxDecisionCost)

func (e *evaluation) run(x *expression) (ref.Val, error) {
	if e.quick && x.quick != nil {
		value, _, err := x.quick.Eval(&e.vars)
		return value, err
	}
	value, details, err := x.program.Eval(&e.vars)
	// One that was stopped does not say what it cost, and cost all that one may.
	spent := uint64(maxExpressionCost)
	if cost := details.ActualCost(); cost != nil {
		spent = *cost
	}
	e.left -= min(e.left, spent)
	return value, err
}

func (e *evaluation) failed(p *Compiled, x *expression, code string, err error) string {
	e.find(Finding{Policy: p.Name, Rule: x.name, Code: code, Error: err.Error()})
	return code
}

// maxFindings bounds what one request can have recorded.
const maxFindings = 64

func (e *evaluation) find(f Finding) {
	if len(e.findings) < maxFindings {
		e.findings = append(e.findings, f)
	}
}
