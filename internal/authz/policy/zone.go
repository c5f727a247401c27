package policy

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/ast"
	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/interpreter"
)

// zoned are the functions on a timestamp that take a time zone. CEL's own load
// the zone at each call, which costs more than all the rest of a rule.
var zoned = map[string]func(time.Time) int{
	"getDate":         time.Time.Day,
	"getDayOfMonth":   func(t time.Time) int { return t.Day() - 1 },
	"getDayOfWeek":    func(t time.Time) int { return int(t.Weekday()) },
	"getDayOfYear":    func(t time.Time) int { return t.YearDay() - 1 },
	"getFullYear":     time.Time.Year,
	"getHours":        time.Time.Hour,
	"getMilliseconds": func(t time.Time) int { return t.Nanosecond() / int(time.Millisecond) },
	"getMinutes":      time.Time.Minute,
	"getMonth":        func(t time.Time) int { return int(t.Month()) - 1 },
	"getSeconds":      time.Time.Second,
}

// loadedZones has the time zones that an expression names loaded when it is
// compiled. CEL offers a place for that under the name of what it uses it for
// itself: a call with a constant argument can be replaced.
func loadedZones() []*interpreter.RegexOptimization {
	var replaced []*interpreter.RegexOptimization
	for function, of := range zoned {
		replaced = append(replaced, &interpreter.RegexOptimization{
			Function: function, RegexIndex: 1,
			Factory: func(call interpreter.InterpretableCall, name string) (interpreter.InterpretableCall, error) {
				zone, err := loadZone(name)
				if err != nil {
					return nil, err
				}
				return interpreter.NewCall(call.ID(), call.Function(), call.OverloadID(), call.Args(), func(values ...ref.Val) ref.Val {
					when, ok := values[0].(types.Timestamp)
					if !ok {
						return types.MaybeNoSuchOverloadErr(values[0])
					}
					return types.Int(of(when.In(zone)))
				}), nil
			},
		})
	}
	return replaced
}

// loadZone knows the zones that CEL knows: by name, or by offset.
func loadZone(name string) (*time.Location, error) {
	hours, minutes, isOffset := strings.Cut(name, ":")
	if !isOffset {
		return time.LoadLocation(name)
	}
	h, err := strconv.Atoi(hours)
	m, errMinutes := strconv.Atoi(minutes)
	if err != nil || errMinutes != nil || h < -23 || h > 23 || m < 0 || m > 59 {
		return nil, fmt.Errorf("%q is not an offset such as +02:00", name)
	}
	if strings.HasPrefix(name, "-") {
		m = -m
	}
	return time.FixedZone("", (h*60+m)*60), nil
}

// unknownZone finds time zones that do not exist: to evaluate them is an error.
func unknownZone(checked *cel.Ast) string {
	problem := ""
	visit(checked, func(e ast.Expr) {
		if e.Kind() != ast.CallKind || zoned[e.AsCall().FunctionName()] == nil {
			return
		}
		for _, arg := range e.AsCall().Args() {
			if arg.Kind() != ast.LiteralKind {
				continue
			}
			name, ok := arg.AsLiteral().Value().(string)
			if _, err := loadZone(name); ok && err != nil {
				column := checked.NativeRep().SourceInfo().GetStartLocation(arg.ID()).Column() + 1
				problem = fmt.Sprintf("column %d: %q is not a time zone: write one like Europe/Berlin, UTC or +02:00", column, name)
			}
		}
	})
	return problem
}
