package policy

import (
	"fmt"
	"math"
	"sync"
	_ "time/tzdata" // expressions name time zones, and images have none

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/checker"
	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/ext"
	apiservercel "k8s.io/apiserver/pkg/cel"
	"k8s.io/apiserver/pkg/cel/library"
)

// Costs are in CEL's own unit, about what it takes to read a field.
const (
	// maxExpressionCost is what one expression may cost, as estimated from the
	// largest input when it is compiled, and as counted when it is evaluated.
	maxExpressionCost = 50_000
	// maxDecisionCost is what all expressions of one decision may cost together.
	maxDecisionCost = 50_000
	// lightCost is the estimate up to which an expression is not counted when it
	// is evaluated, for an input no larger than what was estimated with: counting
	// would cost more than it does.
	lightCost = 1000
)

// environment is what expressions are compiled in: CEL with the libraries that
// Kubernetes has for its own policies, but for those that ask its API, and the
// variables of the input.
var environment = sync.OnceValue(func() *cel.Env {
	base, err := cel.NewEnv(
		cel.HomogeneousAggregateLiterals(),
		cel.EagerlyValidateDeclarations(true),
		cel.DefaultUTCTimeZone(true),
		cel.CrossTypeNumericComparisons(true),
		cel.OptionalTypes(),
		cel.ASTValidators(
			cel.ValidateDurationLiterals(), cel.ValidateTimestampLiterals(), cel.ValidateRegexLiterals(),
			cel.ValidateHomogeneousAggregateLiterals(),
		),
		ext.Strings(ext.StringsVersion(2)), ext.Sets(), ext.TwoVarComprehensions(), ext.Lists(ext.ListsVersion(3)),
		library.URLs(), library.Regex(), library.Lists(library.ListsVersion(1)), library.Quantity(), library.IP(), library.CIDR(),
		library.Format(), library.SemverLib(library.SemverVersion(1)),
	)
	if err != nil {
		panic(fmt.Sprintf("policy: the environment of CEL: %v", err)) // nothing in it depends on input
	}
	known := inputTypes{base.CELTypeProvider(), base.CELTypeAdapter()}
	options := []cel.EnvOption{cel.CustomTypeProvider(known), cel.CustomTypeAdapter(known)}
	for _, o := range objects {
		options = append(options, cel.Variable(o.variable, o.typ))
	}
	env, err := base.Extend(options...)
	if err != nil {
		panic(fmt.Sprintf("policy: the environment of CEL: %v", err))
	}
	return env
})

// sizes tells the estimator of costs how large the input can be.
type sizes struct{}

func (sizes) EstimateSize(node checker.AstNode) *checker.SizeEstimate {
	path := node.Path()
	if len(path) >= 2 {
		for _, o := range objects {
			if o.variable == path[0] {
				return o.estimate(path[1:])
			}
		}
	}
	switch node.Type().Kind() {
	case types.TimestampKind, types.DurationKind:
		return upTo(64)
	}
	if node.Type().IsExactType(apiservercel.IPType) || node.Type().IsExactType(apiservercel.CIDRType) {
		return upTo(64)
	}
	return nil
}

func (o *object) estimate(path []string) *checker.SizeEstimate {
	most, ok := o.sizes[path[0]]
	switch {
	case !ok:
		return nil
	case len(path) == 1 && most.elements > 0:
		return upTo(most.elements)
	case len(path) == 2 && path[1] == "@keys":
		return upTo(most.key)
	case len(path) <= 2: // a string, or one in a list or map
		return upTo(max(most.text, 1))
	}
	return upTo(math.MaxInt32)
}

func (sizes) EstimateCallCost(string, string, *checker.AstNode, []checker.AstNode) *checker.CallEstimate {
	return nil
}

func upTo(n int) *checker.SizeEstimate { return &checker.SizeEstimate{Min: 0, Max: uint64(n)} }

// estimate is what evaluating the expression costs with the largest input.
func estimate(env *cel.Env, ast *cel.Ast) (uint64, error) {
	cost, err := env.EstimateCost(ast, &library.CostEstimator{SizeEstimator: sizes{}})
	return cost.Max, err
}

var counting = []cel.ProgramOption{cel.CostLimit(maxExpressionCost), cel.CostTracking(&library.CostEstimator{})}

func program(env *cel.Env, ast *cel.Ast, options ...cel.ProgramOption) (cel.Program, error) {
	return env.Program(ast, append([]cel.ProgramOption{cel.EvalOptions(cel.OptOptimize), cel.OptimizeRegex(loadedZones()...)}, options...)...)
}
