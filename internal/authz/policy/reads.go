package policy

import (
	"slices"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/ast"
)

// RequestFields are the fields of the request that the policy looks at, such as path,
// sorted. A field that is asked for as request[name] is not among them.
func (p *Compiled) RequestFields() []string {
	var fields []string
	for _, expressions := range [][]expression{p.conditions, p.rules} {
		for i := range expressions {
			fields = append(fields, expressions[i].reads...)
		}
	}
	slices.Sort(fields)
	return slices.Compact(fields)
}

func requestFields(checked *cel.Ast) (fields []string) {
	visit(checked, func(e ast.Expr) {
		if e.Kind() == ast.SelectKind && e.AsSelect().Operand().Kind() == ast.IdentKind && e.AsSelect().Operand().AsIdent() == "request" {
			fields = append(fields, e.AsSelect().FieldName())
		}
	})
	return fields
}
