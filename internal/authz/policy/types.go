package policy

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	apiservercel "k8s.io/apiserver/pkg/cel"
)

// object is the CEL type of a part of the input. Its fields are read from the Go
// struct itself, without reflection.
type object struct {
	variable string
	typ      *types.Type
	fields   map[string]*types.FieldType
	// optional fields can be absent.
	optional []string
	// sizes are the most that the parts of a field are taken to hold when costs
	// are estimated.
	sizes map[string]size
}

// size is how much of something there is at most: elements of a list or map, and
// bytes of a string.
type size struct{ elements, key, text int }

// definition of a field of T.
type definition[T any] struct {
	name string
	typ  *types.Type
	size size
	// optional: read can say that there is none.
	optional bool
	// read gives the value, and whether there is one.
	read func(*T) (any, bool)
}

func newObject[T any](variable string, definitions []definition[T]) *object {
	o := &object{
		variable: variable, typ: types.NewObjectType("mintmark." + variable), fields: make(map[string]*types.FieldType, len(definitions)),
		sizes: make(map[string]size, len(definitions)),
	}
	for _, d := range definitions {
		o.sizes[d.name] = d.size
		if d.optional {
			o.optional = append(o.optional, d.name)
		}
		o.fields[d.name] = &types.FieldType{
			Type: d.typ,
			IsSet: func(target any) bool {
				t, ok := target.(*T)
				if !ok {
					return false
				}
				_, set := d.read(t)
				return set
			},
			GetFrom: func(target any) (any, error) {
				t, ok := target.(*T)
				if !ok {
					return nil, fmt.Errorf("no such field: %s.%s", variable, d.name)
				}
				value, set := d.read(t)
				if !set {
					return nil, fmt.Errorf("%s.%s is not known: ask first, with has(%s.%s)", variable, d.name, variable, d.name)
				}
				return value, nil
			},
		}
	}
	return o
}

func (o *object) names() []string { return slices.Sorted(maps.Keys(o.fields)) }

func text[T any](name string, longest int, of func(*T) string) definition[T] {
	return definition[T]{name, types.StringType, size{text: longest}, false, func(t *T) (any, bool) { return types.String(of(t)), true }}
}

func optionalText[T any](name string, longest int, of func(*T) string) definition[T] {
	return definition[T]{name, types.StringType, size{text: longest}, true, func(t *T) (any, bool) {
		s := of(t)
		return types.String(s), s != ""
	}}
}

func optionalTime[T any](name string, of func(*T) time.Time) definition[T] {
	return definition[T]{name, types.TimestampType, size{}, true, func(t *T) (any, bool) {
		when := of(t)
		return types.Timestamp{Time: when}, !when.IsZero()
	}}
}

func when[T any](name string, of func(*T) time.Time) definition[T] {
	d := optionalTime(name, of)
	d.optional = false // whoever decides knows the time
	return d
}

func texts[T any](name string, most size, of func(*T) []string) definition[T] {
	return definition[T]{name, types.NewListType(types.StringType), most, false, func(t *T) (any, bool) { return of(t), true }}
}

func pairs[T any](name string, most size, of func(*T) map[string]string) definition[T] {
	return definition[T]{name, types.NewMapType(types.StringType, types.StringType), most, false, func(t *T) (any, bool) { return of(t), true }}
}

// How long and how many things are taken to be, by the schema where that says.
// Input that is larger costs more than was estimated, which the limit at run
// time sees to.
const (
	nameLength = 253
	textLength = 1024
	pathLength = 4096
)

var (
	rolesSize       = size{elements: 64, text: nameLength}
	neededSize      = size{elements: 64, text: 512}
	permissionsSize = size{elements: 512, text: 128}
	attributesSize  = size{elements: 32, key: 64, text: textLength}
)

var objects = []*object{
	newObject("subject", []definition[Subject]{
		text("id", 512, func(s *Subject) string { return s.ID }),
		text("kind", 16, func(s *Subject) string { return s.Kind }),
		text("namespace", 63, func(s *Subject) string { return s.Namespace }),
		text("name", nameLength, func(s *Subject) string { return s.Name }),
		text("class", nameLength, func(s *Subject) string { return s.Class }),
		{"version", types.IntType, size{}, false, func(s *Subject) (any, bool) { return types.Int(s.Version), true }},
		text("issuer", 512, func(s *Subject) string { return s.Issuer }),
		text("method", 16, func(s *Subject) string { return s.Method }),
		texts("roles", rolesSize, func(s *Subject) []string { return s.Roles }),
		texts("permissions", permissionsSize, func(s *Subject) []string { return s.Permissions }),
		{"admin", types.BoolType, size{}, false, func(s *Subject) (any, bool) { return types.Bool(s.Admin), true }},
		pairs("attributes", attributesSize, func(s *Subject) map[string]string { return s.Attributes }),
		optionalText("email", 320, func(s *Subject) string { return s.Email }),
	}),
	newObject("resource", []definition[Resource]{
		text("type", nameLength, func(r *Resource) string { return r.Type }),
		optionalText("id", textLength, func(r *Resource) string { return r.ID }),
		optionalText("owner", textLength, func(r *Resource) string { return r.Owner }),
		optionalText("ownerDepartment", textLength, func(r *Resource) string { return r.OwnerDepartment }),
		optionalText("classification", nameLength, func(r *Resource) string { return r.Classification }),
		optionalTime("created", func(r *Resource) time.Time { return r.Created }),
		pairs("attributes", attributesSize, func(r *Resource) map[string]string { return r.Attributes }),
	}),
	newObject("request", []definition[Request]{
		text("method", 32, func(r *Request) string { return r.Method }),
		text("scheme", 16, func(r *Request) string { return r.Scheme }),
		text("host", nameLength, func(r *Request) string { return r.Host }),
		text("path", pathLength, func(r *Request) string { return r.Path }),
		text("action", nameLength, func(r *Request) string { return r.Action }),
		texts("permissions", neededSize, func(r *Request) []string { return r.Permissions }),
		texts("audiences", neededSize, func(r *Request) []string { return r.Audiences }),
		text("userAgent", textLength, func(r *Request) string { return r.UserAgent }),
		pairs("headers", attributesSize, func(r *Request) map[string]string { return r.Headers }),
	}),
	newObject("environment", []definition[Environment]{
		when("now", func(e *Environment) time.Time { return e.Now }),
		{"ip", apiservercel.IPType, size{text: 45}, true, func(e *Environment) (any, bool) {
			return apiservercel.IP{Addr: e.IP}, e.IP.IsValid()
		}},
		optionalText("device", nameLength, func(e *Environment) string { return e.Device }),
	}),
}

// usual tells whether no part of the input is larger than estimates go by.
func (in *Input) usual() bool {
	s, r, q := &in.Subject, &in.Resource, &in.Request
	return len(s.Roles) <= rolesSize.elements && len(s.Permissions) <= permissionsSize.elements && usualPairs(s.Attributes) && usualPairs(r.Attributes) &&
		usualPairs(q.Headers) && len(q.Permissions) <= neededSize.elements && len(q.Audiences) <= neededSize.elements && len(q.Path) <= pathLength &&
		max(len(s.ID), len(s.Issuer), len(s.Email), len(r.Type), len(r.ID), len(r.Owner), len(r.OwnerDepartment), len(r.Classification),
			len(q.Host), len(q.Action), len(q.UserAgent), len(in.Environment.Device)) <= textLength
}

func usualPairs(m map[string]string) bool { return len(m) <= attributesSize.elements }

func objectOf(typeName string) *object {
	for _, o := range objects {
		if o.typ.TypeName() == typeName {
			return o
		}
	}
	return nil
}

// inputTypes adds the types of the input to those of CEL itself.
type inputTypes struct {
	types.Provider
	types.Adapter
}

func (p inputTypes) FindStructType(name string) (*types.Type, bool) {
	if o := objectOf(name); o != nil {
		return types.NewTypeTypeWithParam(o.typ), true
	}
	return p.Provider.FindStructType(name)
}

func (p inputTypes) FindStructFieldNames(name string) ([]string, bool) {
	if o := objectOf(name); o != nil {
		return o.names(), true
	}
	return p.Provider.FindStructFieldNames(name)
}

func (p inputTypes) FindStructFieldType(name, field string) (*types.FieldType, bool) {
	if o := objectOf(name); o != nil {
		f, ok := o.fields[field]
		return f, ok
	}
	return p.Provider.FindStructFieldType(name, field)
}

// NewValue is never called for a type of the input by an expression that
// compiled: see refuseConstruction.
func (p inputTypes) NewValue(name string, fields map[string]ref.Val) ref.Val {
	if objectOf(name) != nil {
		return types.NewErr("%s cannot be made in an expression", name)
	}
	return p.Provider.NewValue(name, fields)
}

func (p inputTypes) NativeToValue(value any) ref.Val {
	switch value.(type) {
	case *Subject:
		return part{objects[0], value}
	case *Resource:
		return part{objects[1], value}
	case *Request:
		return part{objects[2], value}
	case *Environment:
		return part{objects[3], value}
	}
	return p.Adapter.NativeToValue(value)
}

// part is a part of the input where an expression uses it as a value, and not to
// select a field of it.
type part struct {
	object *object
	value  any
}

func (p part) ConvertToNative(desc reflect.Type) (any, error) {
	return nil, fmt.Errorf("%s cannot be converted to %v", p.object.variable, desc)
}

func (p part) ConvertToType(t ref.Type) ref.Val {
	if t == types.TypeType {
		return p.object.typ
	}
	return types.NewErr("%s cannot be converted to %s", p.object.variable, t.TypeName())
}

func (p part) Equal(other ref.Val) ref.Val {
	o, ok := other.(part)
	return types.Bool(ok && o.value == p.value)
}

func (p part) Type() ref.Type { return p.object.typ }
func (p part) Value() any     { return p.value }

// Get implements traits.Indexer, for a part whose type the checker lost sight of.
func (p part) Get(index ref.Val) ref.Val {
	name, ok := index.(types.String)
	if !ok {
		return types.MaybeNoSuchOverloadErr(index)
	}
	f, ok := p.object.fields[string(name)]
	if !ok {
		return types.NewErr("no such field: %s.%s", p.object.variable, string(name))
	}
	value, err := f.GetFrom(p.value)
	if err != nil {
		return types.WrapErr(err)
	}
	return types.DefaultTypeAdapter.NativeToValue(value)
}

// IsSet implements traits.FieldTester.
func (p part) IsSet(field ref.Val) ref.Val {
	name, ok := field.(types.String)
	if !ok {
		return types.MaybeNoSuchOverloadErr(field)
	}
	f, ok := p.object.fields[string(name)]
	return types.Bool(ok && f.IsSet(p.value))
}

// activation hands the input to a program.
type activation struct{ input *Input }

func (a *activation) ResolveName(name string) (any, bool) {
	switch name {
	case "subject":
		return &a.input.Subject, true
	case "resource":
		return &a.input.Resource, true
	case "request":
		return &a.input.Request, true
	case "environment":
		return &a.input.Environment, true
	}
	return nil, false
}

func (a *activation) Parent() cel.Activation { return nil }
