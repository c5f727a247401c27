package policy

// Explanation is how one policy stands to an input: every condition and every
// rule, also those that a decision would not have come to.
type Explanation struct {
	Policy       string
	Deny, DryRun bool
	// HasSay: no condition is false.
	HasSay bool
	// Refuses: by itself, the policy would refuse.
	Refuses           bool
	Conditions, Rules []Result
}

// Result of one expression.
type Result struct {
	Name, Expression string
	True             bool
	// Error, where it could not be evaluated.
	Error string
}

// Explain asks every policy by itself, in the order in which [Set.Decide] asks.
func (s *Set) Explain(in *Input) []Explanation {
	if s == nil {
		return nil
	}
	var all []Explanation
	for _, group := range [][]*Compiled{s.deny, s.allow, s.dryDeny, s.dryAllow} {
		for _, p := range group {
			all = append(all, p.explain(in))
		}
	}
	return all
}

func (p *Compiled) explain(in *Input) Explanation {
	x := Explanation{Policy: p.Name, Deny: p.deny, DryRun: p.DryRun, HasSay: true}
	for i := range p.conditions {
		r := p.result(in, &p.conditions[i])
		x.Conditions, x.HasSay = append(x.Conditions, r), x.HasSay && (r.True || r.Error != "")
	}
	anyTrue, anyFailed := false, false
	for i := range p.rules {
		r := p.result(in, &p.rules[i])
		x.Rules, anyTrue, anyFailed = append(x.Rules, r), anyTrue || r.True, anyFailed || r.Error != ""
	}
	x.Refuses = x.HasSay && (p.deny && (anyTrue || anyFailed) || !p.deny && !anyTrue)
	return x
}

func (p *Compiled) result(in *Input, x *expression) Result {
	e := evaluation{vars: activation{in}, left: maxExpressionCost, quick: in.usual()}
	value, code := e.evaluate(p, x)
	r := Result{Name: x.name, Expression: x.source, True: value}
	if code != "" {
		r.Error = e.findings[0].Error
	}
	return r
}
