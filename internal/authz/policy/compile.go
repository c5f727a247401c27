package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common"
	"github.com/google/cel-go/common/ast"
	"github.com/google/cel-go/common/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// Compiled is an AccessPolicy, ready to decide with.
type Compiled struct {
	// Name of the AccessPolicy.
	Name string
	// DryRun policies refuse nothing.
	DryRun bool

	deny       bool
	conditions []expression
	rules      []expression
}

// expression of a policy. One without a program could not be compiled, and
// cannot be evaluated.
type expression struct {
	name, source string
	// program counts what it costs. quick does not, and is there where that need
	// not be known: see lightCost.
	program, quick cel.Program
	problem        error
	// reads are the fields of the request that it looks at.
	reads []string
}

// Compile compiles the policy of that name. The error lists everything that is
// wrong with it, each with its place in the manifest, such as
// spec.rules[2].expression, and in the expression.
func Compile(name string, spec *v1alpha1.AccessPolicySpec) (*Compiled, error) {
	compiled, errs := compile(name, spec)
	if len(errs) > 0 {
		return nil, errs.ToAggregate()
	}
	return compiled, nil
}

// Validate says what is wrong with a policy, as [Compile] does.
func Validate(spec *v1alpha1.AccessPolicySpec) field.ErrorList {
	_, errs := compile("", spec)
	return errs
}

// Refuse is what stands in for a policy that cannot be compiled: it refuses
// whatever the policy could have had a say in, as a Deny policy with an error,
// and only records that where the policy is a dry run.
func Refuse(name string, spec *v1alpha1.AccessPolicySpec) *Compiled {
	compiled, errs := compile(name, spec)
	compiled.deny = true
	compiled.rules = []expression{{problem: fmt.Errorf("the policy cannot be compiled: %w", errs.ToAggregate())}}
	return compiled
}

func compile(name string, spec *v1alpha1.AccessPolicySpec) (*Compiled, field.ErrorList) {
	var errs field.ErrorList
	at := field.NewPath("spec")
	c := &Compiled{Name: name, DryRun: spec.Enforcement == v1alpha1.PolicyDryRun, deny: spec.Effect == v1alpha1.PolicyDeny}
	if spec.Effect != v1alpha1.PolicyAllow && spec.Effect != v1alpha1.PolicyDeny {
		errs = append(errs, field.NotSupported(at.Child("effect"), spec.Effect, []v1alpha1.PolicyEffect{v1alpha1.PolicyAllow, v1alpha1.PolicyDeny}))
	}
	switch spec.Enforcement {
	case "", v1alpha1.PolicyEnforce, v1alpha1.PolicyDryRun:
	default:
		errs = append(errs, field.NotSupported(at.Child("enforcement"), spec.Enforcement,
			[]v1alpha1.PolicyEnforcement{v1alpha1.PolicyEnforce, v1alpha1.PolicyDryRun}))
	}
	if len(spec.Rules) == 0 {
		errs = append(errs, field.Required(at.Child("rules"), "give at least one"))
	}
	for i, e := range spec.MatchConditions {
		compiled, wrong := compileExpression(at.Child("matchConditions").Index(i), e)
		c.conditions, errs = append(c.conditions, compiled), append(errs, wrong...)
	}
	for i, e := range spec.Rules {
		compiled, wrong := compileExpression(at.Child("rules").Index(i), e)
		c.rules, errs = append(c.rules, compiled), append(errs, wrong...)
	}
	return c, errs
}

func compileExpression(at *field.Path, e v1alpha1.PolicyExpression) (expression, field.ErrorList) {
	var errs field.ErrorList
	refuse := func(detail string) (expression, field.ErrorList) {
		errs = append(errs, field.Invalid(at.Child("expression"), e.Expression, detail))
		return expression{name: e.Name, source: e.Expression, problem: errs.ToAggregate()}, errs
	}
	env := environment()
	checked, issues := env.Compile(e.Expression)
	if issues.Err() != nil {
		return refuse(describe(e.Expression, issues.Errors()))
	}
	if !checked.OutputType().IsExactType(types.BoolType) {
		return refuse(fmt.Sprintf("gives %s and not bool: write a condition, such as a comparison", checked.OutputType()))
	}
	if problem := refuseConstruction(checked); problem != "" {
		return refuse(problem)
	}
	if problem := unknownZone(checked); problem != "" {
		return refuse(problem)
	}
	cost, err := estimate(env, checked)
	if err != nil {
		return refuse("what it costs cannot be estimated: " + err.Error())
	}
	if cost > maxExpressionCost {
		return refuse(fmt.Sprintf("can cost %s, and at most %d is allowed: avoid macros within macros (all, exists, filter, map) and long "+
			"regular expressions over long text; compare, or use startsWith, in and sets functions", howMuch(cost), maxExpressionCost))
	}
	ready := expression{name: e.Name, source: e.Expression, reads: requestFields(checked)}
	if ready.program, err = program(env, checked, counting...); err != nil {
		return refuse("cannot be prepared: " + err.Error())
	}
	if cost <= lightCost {
		if ready.quick, err = program(env, checked); err != nil {
			return refuse("cannot be prepared: " + err.Error())
		}
	}
	return ready, nil
}

func howMuch(cost uint64) string {
	const countable = 1 << 40
	if cost > countable {
		return "more than can be told"
	}
	return fmt.Sprint(cost)
}

// maxDescribed bounds how many mistakes of one expression are told.
const maxDescribed = 5

// describe tells what is wrong with an expression and where.
func describe(source string, mistakes []*common.Error) string {
	sorted := slices.SortedStableFunc(slices.Values(mistakes), func(a, b *common.Error) int {
		return cmp.Or(a.Location.Line()-b.Location.Line(), a.Location.Column()-b.Location.Column())
	})
	var told []string
	for _, m := range sorted {
		place := fmt.Sprintf("column %d", m.Location.Column()+1)
		if strings.Contains(source, "\n") {
			place = fmt.Sprintf("line %d, %s", m.Location.Line(), place)
		}
		if m.Location.Line() < 1 {
			place = "as a whole"
		}
		line := place + ": " + m.Message + hint(source, m)
		if !slices.Contains(told, line) {
			told = append(told, line)
		}
		if len(told) == maxDescribed {
			break
		}
	}
	return strings.Join(told, "; ")
}

// hint names what there is where something is named that there is not.
func hint(source string, m *common.Error) string {
	if strings.HasPrefix(m.Message, "undeclared reference to") {
		return " (the variables are subject, resource, request and environment)"
	}
	if strings.HasPrefix(m.Message, "invalid matches argument") {
		return " (not a regular expression: RE2 syntax)"
	}
	if !strings.HasPrefix(m.Message, "undefined field") {
		return ""
	}
	lines := strings.Split(source, "\n")
	if n := m.Location.Line(); n < 1 || n > len(lines) {
		return ""
	}
	before := []rune(lines[m.Location.Line()-1])
	before = before[:min(max(m.Location.Column(), 0), len(before))]
	for _, o := range objects {
		if strings.HasSuffix(strings.TrimRight(string(before), " ."), o.variable) {
			return fmt.Sprintf(" (%s has %s)", o.variable, strings.Join(o.names(), ", "))
		}
	}
	return ""
}

// refuseConstruction finds expressions that make a value of a type of the input.
func refuseConstruction(checked *cel.Ast) string {
	problem := ""
	visit(checked, func(e ast.Expr) {
		if e.Kind() == ast.StructKind && objectOf(e.AsStruct().TypeName()) != nil {
			problem = e.AsStruct().TypeName() + " cannot be made in an expression"
		}
	})
	return problem
}

func visit(checked *cel.Ast, see func(ast.Expr)) {
	ast.PostOrderVisit(checked.NativeRep().Expr(), ast.NewExprVisitor(see))
}
