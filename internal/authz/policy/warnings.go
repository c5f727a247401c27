package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/cel-go/common/ast"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// Warnings tells what is allowed but surprising about a policy that compiles.
func Warnings(spec *v1alpha1.AccessPolicySpec) []string {
	var warnings []string
	if spec.Effect == v1alpha1.PolicyAllow && len(spec.MatchConditions) == 0 {
		warnings = append(warnings, "spec.matchConditions: without any, the policy has a say in every request, "+
			"and those that no rule of an Allow policy is true of are refused")
	}
	asked := map[string]bool{} // a condition that asks has ruled out, for the rules, that there is nothing
	for i, e := range spec.MatchConditions {
		warnings = append(warnings, unguarded(fmt.Sprintf("spec.matchConditions[%d]", i), e.Expression, "the policy has a say", asked)...)
	}
	if spec.Effect != v1alpha1.PolicyDeny {
		return warnings
	}
	for i, e := range spec.Rules {
		warnings = append(warnings, unguarded(fmt.Sprintf("spec.rules[%d]", i), e.Expression, "the request is refused", maps.Clone(asked))...)
	}
	return warnings
}

// unguarded names the optional fields that an expression reads and nowhere asks
// for; what it asks for it adds to asked.
func unguarded(at, source, outcome string, asked map[string]bool) []string {
	checked, issues := environment().Compile(source)
	if issues.Err() != nil {
		return nil
	}
	read := map[string]bool{}
	visit(checked, func(e ast.Expr) {
		// resource.?owner is a call, and no select.
		if e.Kind() != ast.SelectKind || e.AsSelect().Operand().Kind() != ast.IdentKind {
			return
		}
		variable, field := e.AsSelect().Operand().AsIdent(), e.AsSelect().FieldName()
		for _, o := range objects {
			if o.variable == variable && slices.Contains(o.optional, field) {
				name := variable + "." + field
				asked[name] = asked[name] || e.AsSelect().IsTestOnly()
				read[name] = true
			}
		}
	})
	var names []string
	for name := range read {
		if !asked[name] {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	slices.Sort(names)
	return []string{fmt.Sprintf("%s.expression: where %s is not known, %s; if that is not meant, begin with has(%s) &&",
		at, strings.Join(names, " or "), outcome, names[0])}
}
