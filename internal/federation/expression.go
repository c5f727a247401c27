package federation

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/ast"
	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/common/types/traits"
	"github.com/google/cel-go/ext"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Limits of expressions.
const (
	maxExpressionLen = 4096
	maxNesting       = 2 // of comprehensions
	maxReplacement   = 64
	// costLimit of one evaluation: about one for each step and for each byte
	// or element that a step makes. A token's claims are a few kilobytes.
	costLimit = 20_000
)

// result is what an expression has to give.
type result struct {
	what   string
	typ    *cel.Type
	native reflect.Type
}

var (
	resultBool   = result{"true or false", cel.BoolType, reflect.TypeFor[bool]()}
	resultString = result{"a string", cel.StringType, reflect.TypeFor[string]()}
	resultList   = result{"a list of strings", cel.ListType(cel.StringType), reflect.TypeFor[[]string]()}
	resultMap    = result{"a map of strings", cel.MapType(cel.StringType, cel.StringType), reflect.TypeFor[map[string]string]()}
)

// expression is one of CEL over claims.
type expression struct {
	path    *field.Path
	program cel.Program
	want    result
	// claims that it asks for, by name.
	claims []string
}

// environment is what expressions can use: the claims, the standard library, and the
// extensions for strings, sets and maps.
var environment = sync.OnceValues(func() (*cel.Env, error) {
	return cel.NewEnv(
		cel.Variable("claims", cel.MapType(cel.StringType, cel.DynType)),
		cel.OptionalTypes(),
		cel.CrossTypeNumericComparisons(true),
		cel.DefaultUTCTimeZone(true),
		cel.EagerlyValidateDeclarations(true),
		cel.ParserExpressionSizeLimit(maxExpressionLen),
		cel.ASTValidators(cel.ValidateRegexLiterals(), cel.ValidateDurationLiterals(), cel.ValidateTimestampLiterals(),
			cel.ValidateComprehensionNestingLimit(maxNesting)),
		ext.Strings(), ext.Sets(), ext.TwoVarComprehensions(),
	)
})

func compileExpression(path *field.Path, text string, want result) (*expression, *field.Error) {
	if len(text) > maxExpressionLen {
		return nil, field.TooLong(path, "", maxExpressionLen)
	}
	env, err := environment()
	if err != nil {
		return nil, field.InternalError(path, err)
	}
	compiled, issues := env.Compile(text)
	if issues.Err() != nil {
		return nil, field.Invalid(path, text, describe(issues))
	}
	if grows(compiled.NativeRep()) {
		return nil, field.Invalid(path, text, fmt.Sprintf("what replace() puts in has to be a literal of at most %d characters", maxReplacement))
	}
	if !gives(compiled.OutputType(), want.typ) {
		problem := fmt.Sprintf("it gives %s, and has to give %s", compiled.OutputType(), want.what)
		if compiled.OutputType().Kind() == types.OpaqueKind {
			problem += ": say by .orValue() what holds where there is none"
		}
		return nil, field.Invalid(path, text, problem)
	}
	program, err := env.Program(compiled, cel.CostLimit(costLimit), cel.CostTracking(sizes{}), cel.EvalOptions(cel.OptOptimize))
	if err != nil {
		return nil, field.Invalid(path, text, err.Error())
	}
	return &expression{path: path, program: program, want: want, claims: claimsOf(compiled.NativeRep())}, nil
}

// describe tells the issues in one line, each with where it is.
func describe(issues *cel.Issues) string {
	var parts []string
	for _, e := range issues.Errors() {
		parts = append(parts, fmt.Sprintf("line %d, column %d: %s", e.Location.Line(), e.Location.Column()+1, strings.ReplaceAll(e.Message, "\n", " ")))
	}
	return strings.Join(parts, "; ")
}

// gives tells whether a type may turn out to be the one wanted.
func gives(got, want *cel.Type) bool {
	if got.Kind() == types.DynKind {
		return true
	}
	if got.Kind() != want.Kind() || got.Kind() == types.OpaqueKind {
		return false
	}
	for i, p := range want.Parameters() {
		if i < len(got.Parameters()) && got.Parameters()[i].Kind() != types.TypeParamKind && !gives(got.Parameters()[i], p) {
			return false
		}
	}
	return true
}

// claimsOf lists the claims an expression asks for and cannot do without.
func claimsOf(a *ast.AST) []string {
	names := map[string]bool{}
	ast.PostOrderVisit(a.Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		if e.Kind() != ast.SelectKind {
			return
		}
		s := e.AsSelect()
		if operand := s.Operand(); !s.IsTestOnly() && operand.Kind() == ast.IdentKind && operand.AsIdent() == "claims" {
			names[s.FieldName()] = true
		}
	}))
	return slices.Sorted(maps.Keys(names))
}

// grows tells whether a replace() may put in what a token says, or much. In a single step
// it could make a text of the product of two sizes, before anything can charge for it.
func grows(a *ast.AST) (found bool) {
	ast.PostOrderVisit(a.Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		if e.Kind() != ast.CallKind || e.AsCall().FunctionName() != "replace" {
			return
		}
		args := e.AsCall().Args()
		if len(args) < 2 || args[1].Kind() != ast.LiteralKind {
			found = true
			return
		}
		text, ok := args[1].AsLiteral().(types.String)
		found = found || !ok || len(text) > maxReplacement
	}))
	return found
}

// sizes charges a step for what it makes, so that a chain of them can neither take long
// nor fill the memory.
type sizes struct{}

// CallCost implements interpreter.ActualCostEstimator.
func (sizes) CallCost(_, _ string, _ []ref.Val, made ref.Val) *uint64 {
	sizer, ok := made.(traits.Sizer)
	if !ok {
		return nil
	}
	n, ok := sizer.Size().(types.Int)
	if !ok || n < 0 {
		return nil
	}
	cost := uint64(n) + 1
	return &cost
}

// problem is why an expression gave nothing. It names claims, never their values.
type problem struct {
	path *field.Path
	text string
}

func (p *problem) Error() string { return p.path.String() + ": " + p.text }

// eval evaluates the expression and gives what it has to give.
func (e *expression) eval(claims map[string]any) (any, error) {
	out, _, err := e.program.Eval(map[string]any{"claims": claims})
	if err != nil {
		return nil, &problem{e.path, e.explain(err, claims)}
	}
	native, err := out.ConvertToNative(e.want.native)
	if err != nil || out.Type() == types.NullType {
		return nil, &problem{e.path, fmt.Sprintf("it gave %s, and has to give %s", typeName(out), e.want.what)}
	}
	return native, nil
}

func typeName(v ref.Val) string {
	switch list, ok := v.(traits.Lister); {
	case ok:
		for it := list.Iterator(); it.HasNext() == types.True; {
			if item := it.Next(); item.Type() != types.StringType {
				return "a list with a " + item.Type().TypeName()
			}
		}
	case v.Type() == types.MapType:
		return "a map of other values"
	}
	return "a value of type " + v.Type().TypeName()
}

// explain tells why an evaluation failed. The error of the library is not repeated, for
// some hold the value they are about.
func (e *expression) explain(err error, claims map[string]any) string {
	var missing []string
	for _, name := range e.claims {
		if _, ok := claims[name]; !ok {
			missing = append(missing, name)
		}
	}
	switch {
	case strings.Contains(err.Error(), "cost limit exceeded"):
		return fmt.Sprintf("it costs more than %d steps with these claims: make it simpler", costLimit)
	case len(missing) > 0:
		return fmt.Sprintf("the token has no claim %s: write claims.?%s.orValue(...) where it may be missing", strings.Join(missing, ", "), missing[0])
	}
	return "it cannot be evaluated with these claims, " + strings.Join(e.claims, ", ") + ": one is of another type, or lacks a member"
}
