package management_test

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// The document is held to be true: every operation of it is sent inputs that are made up
// from its own schemas, fitting and not fitting, and whatever is answered has a status, a
// media type and a body that the document has for it.
func TestEveryAnswerIsAsTheDocumentSays(t *testing.T) {
	s := running(t)
	d := readDocument(t, s)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	for _, o := range d.operations() {
		t.Run(o.id, func(t *testing.T) {
			succeeded := 0
			for n := range 24 {
				// The first one has what is required and nothing else: what is optional can
				// be at odds with itself, such as two times.
				in := d.input(o, random, s.pathID(t, o, n), n == 0)
				if o.id == "emergencyRevoke" {
					in.body = map[string]any{"reason": "contract", "namespaces": []any{"nobody-is-here"}}
				}
				got := in.send(t, s)
				d.check(t, o, in, got)
				if got.status < 300 {
					succeeded++
				}
				if got.status == 401 || got.status >= 500 {
					t.Errorf("%s: answered %s", in, got)
				}
			}
			if succeeded == 0 {
				t.Error("none of the inputs that fit was taken: the document asks for something else than the server does")
			}
			for range 24 {
				in := d.input(o, random, s.pathID(t, o, 0), false)
				what := in.spoil(d, o, random)
				if what == "" {
					continue
				}
				got := in.send(t, s)
				d.check(t, o, in, got)
				if got.status != 400 && got.status != 422 {
					t.Errorf("%s, of which %s: answered %s", in, what, got)
				}
			}
		})
	}
}

// pathID is the id of a credential: one that is made for the operation, or, once in a while,
// none.
func (s *system) pathID(t *testing.T, o *operation, n int) string {
	t.Helper()
	if !strings.Contains(o.path, "{id}") {
		return ""
	}
	if n%4 == 3 {
		return "0d3c0d3c-0000-4000-8000-000000000000"
	}
	return s.send(t, 0, "POST", "/api/auth/keys", s.admin, map[string]any{}).want(t, 201).text("id")
}

func TestTheDocumentIsServedToAnybody(t *testing.T) {
	s := running(t)
	got := s.send(t, 0, "GET", "/openapi.json", "", nil).want(t, 200)
	if got.header.Get("Content-Type") != "application/openapi+json;version=3.1" || got.field("openapi") != "3.1.0" {
		t.Errorf("it is %s of version %v", got.header.Get("Content-Type"), got.field("openapi"))
	}
}

// document is an OpenAPI document, read as any client would read it.
type document struct {
	Paths      map[string]map[string]*operation `json:"paths"`
	Components struct {
		Schemas map[string]*schema `json:"schemas"`
	} `json:"components"`
}

type operation struct {
	method, path, id string

	OperationID string       `json:"operationId"`
	Parameters  []*parameter `json:"parameters"`
	RequestBody *struct {
		Required bool               `json:"required"`
		Content  map[string]content `json:"content"`
	} `json:"requestBody"`
	Responses map[string]struct {
		Content map[string]content `json:"content"`
	} `json:"responses"`
}

type content struct {
	Schema *schema `json:"schema"`
}

type parameter struct {
	Name     string  `json:"name"`
	In       string  `json:"in"`
	Required bool    `json:"required"`
	Explode  *bool   `json:"explode"`
	Schema   *schema `json:"schema"`
}

// schema is as much of JSON Schema as the document makes use of.
type schema struct {
	Ref                  string             `json:"$ref"`
	Type                 typeNames          `json:"type"`
	Enum                 []any              `json:"enum"`
	OneOf                []*schema          `json:"oneOf"`
	Format               string             `json:"format"`
	Pattern              string             `json:"pattern"`
	MinLength            *int               `json:"minLength"`
	MaxLength            *int               `json:"maxLength"`
	Minimum              *float64           `json:"minimum"`
	Maximum              *float64           `json:"maximum"`
	MinItems             *int               `json:"minItems"`
	MaxItems             *int               `json:"maxItems"`
	Items                *schema            `json:"items"`
	Properties           map[string]*schema `json:"properties"`
	Required             []string           `json:"required"`
	AdditionalProperties *additional        `json:"additionalProperties"`
}

// typeNames are one, or several.
type typeNames []string

func (t *typeNames) UnmarshalJSON(text []byte) error {
	var one string
	if json.Unmarshal(text, &one) == nil {
		*t = typeNames{one}
		return nil
	}
	return json.Unmarshal(text, (*[]string)(t))
}

// additional is a schema, or whether there may be any.
type additional struct {
	allowed bool
	schema  *schema
}

func (a *additional) UnmarshalJSON(text []byte) error {
	if json.Unmarshal(text, &a.allowed) == nil {
		return nil
	}
	a.allowed, a.schema = true, new(schema)
	return json.Unmarshal(text, a.schema)
}

func readDocument(t *testing.T, s *system) *document {
	t.Helper()
	d := new(document)
	if err := json.Unmarshal(s.send(t, 0, "GET", "/openapi.json", "", nil).want(t, 200).body, d); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *document) operations() (all []*operation) {
	for _, path := range sorted(d.Paths) {
		for _, method := range sorted(d.Paths[path]) {
			o := d.Paths[path][method]
			o.method, o.path, o.id = strings.ToUpper(method), path, o.OperationID
			all = append(all, o)
		}
	}
	return all
}

// resolve follows a reference.
func (d *document) resolve(s *schema) *schema {
	for s != nil && s.Ref != "" {
		s = d.Components.Schemas[strings.TrimPrefix(s.Ref, "#/components/schemas/")]
	}
	return s
}

// check compares an answer with the document.
func (d *document) check(t *testing.T, o *operation, in *input, got *reply) {
	t.Helper()
	said, ok := o.Responses[strconv.Itoa(got.status)]
	if !ok {
		t.Errorf("%s: %s is in the document under no status", in, got)
		return
	}
	if len(said.Content) == 0 {
		if len(got.body) > 0 {
			t.Errorf("%s: %s has a body, and by the document none", in, got)
		}
		return
	}
	media, _, _ := strings.Cut(got.header.Get("Content-Type"), ";")
	c, ok := said.Content[media]
	if !ok {
		t.Errorf("%s: answered %d in %q, and the document has %v", in, got.status, media, sorted(said.Content))
		return
	}
	var body any
	if err := json.Unmarshal(got.body, &body); err != nil {
		t.Errorf("%s: %s is not JSON: %v", in, got, err)
		return
	}
	for _, problem := range d.problems(c.Schema, "body", body) {
		t.Errorf("%s: %s does not fit the document: %s", in, got, problem)
	}
}

// problems are where a value does not fit a schema.
func (d *document) problems(s *schema, at string, value any) (all []string) {
	s = d.resolve(s)
	if s == nil {
		return []string{at + ": the reference leads nowhere"}
	}
	if len(s.OneOf) > 0 {
		fit := 0
		for _, one := range s.OneOf {
			if len(d.problems(one, at, value)) == 0 {
				fit++
			}
		}
		if fit != 1 {
			return []string{fmt.Sprintf("%s: it fits %d of the schemas, and one is to be", at, fit)}
		}
		return nil
	}
	say := func(format string, args ...any) { all = append(all, at+": "+fmt.Sprintf(format, args...)) }
	if len(s.Type) > 0 && !slices.ContainsFunc(s.Type, func(name string) bool { return isType(name, value) }) {
		say("%v is none of %v", value, s.Type)
		return all
	}
	if len(s.Enum) > 0 && value != nil && !slices.Contains(s.Enum, value) {
		say("%v is none of %v", value, s.Enum)
	}
	switch v := value.(type) {
	case string:
		if n := utf8.RuneCountInString(v); s.MinLength != nil && n < *s.MinLength || s.MaxLength != nil && n > *s.MaxLength {
			say("%d characters", n)
		}
		if s.Pattern != "" && !regexp.MustCompile(s.Pattern).MatchString(v) {
			say("%q does not match %s", v, s.Pattern)
		}
		if s.Format == "date-time" {
			if _, err := time.Parse(time.RFC3339, v); err != nil {
				say("%q is no time", v)
			}
		}
	case float64:
		if s.Minimum != nil && v < *s.Minimum || s.Maximum != nil && v > *s.Maximum {
			say("%v is out of range", v)
		}
	case []any:
		if s.MinItems != nil && len(v) < *s.MinItems || s.MaxItems != nil && len(v) > *s.MaxItems {
			say("%d items", len(v))
		}
		for i, item := range v {
			all = append(all, d.problems(s.Items, at+"["+strconv.Itoa(i)+"]", item)...)
		}
	case map[string]any:
		for _, name := range s.Required {
			if _, ok := v[name]; !ok {
				say("%s is missing", name)
			}
		}
		for name, field := range v {
			switch p, known := s.Properties[name]; {
			case known:
				all = append(all, d.problems(p, at+"."+name, field)...)
			case s.AdditionalProperties != nil && !s.AdditionalProperties.allowed:
				say("there is %s", name)
			case s.AdditionalProperties != nil && s.AdditionalProperties.schema != nil:
				all = append(all, d.problems(s.AdditionalProperties.schema, at+"."+name, field)...)
			}
		}
	}
	return all
}

func isType(name string, value any) bool {
	switch v := value.(type) {
	case nil:
		return name == "null"
	case string:
		return name == "string"
	case bool:
		return name == "boolean"
	case float64:
		return name == "number" || name == "integer" && v == math.Trunc(v)
	case []any:
		return name == "array"
	case map[string]any:
		return name == "object"
	}
	return false
}

// input is what an operation is sent.
type input struct {
	operation *operation
	id        string
	query     url.Values
	headers   map[string]string
	body      any // nil: none
}

func (in *input) String() string {
	body, _ := json.Marshal(in.body)
	return fmt.Sprintf("%s %s?%s %v %s", in.operation.method, in.operation.path, in.query.Encode(), in.headers, cut(string(body)))
}

func cut(text string) string {
	if len(text) > 300 {
		return text[:300] + "..."
	}
	return text
}

func (in *input) send(t *testing.T, s *system) *reply {
	t.Helper()
	path := strings.ReplaceAll(in.operation.path, "{id}", in.id)
	if len(in.query) > 0 {
		path += "?" + in.query.Encode()
	}
	var headers []string
	for name, value := range in.headers {
		headers = append(headers, name, value)
	}
	return s.send(t, 0, in.operation.method, path, s.admin, in.body, headers...)
}

// input makes one up that fits; the least one has nothing that may be left out.
func (d *document) input(o *operation, r *rand.Rand, id string, least bool) *input {
	in := &input{operation: o, id: id, query: url.Values{}, headers: map[string]string{}}
	for _, p := range o.Parameters {
		if p.In == "path" || !p.Required && (least || r.IntN(3) > 0) {
			continue
		}
		value := d.make(p.Schema, p.Name, r, 0)
		switch p.In {
		case "query":
			if list, ok := value.([]any); ok {
				for _, item := range list {
					in.query.Add(p.Name, fmt.Sprint(item))
				}
			} else {
				in.query.Set(p.Name, plain(value))
			}
		case "header":
			if text := plain(value); strings.TrimSpace(text) != "" {
				in.headers[p.Name] = text
			}
		}
	}
	if b := o.RequestBody; b != nil && (b.Required || !least && r.IntN(2) == 0) {
		in.body = d.make(b.Content["application/json"].Schema, "", r, 0)
	}
	return in
}

func plain(value any) string {
	if f, ok := value.(float64); ok {
		return strconv.FormatFloat(f, 'f', -1, 64)
	}
	return fmt.Sprint(value)
}

// samples are what strings are taken from: the first that fits, from a place by chance.
var samples = []string{
	"a", "x1", "90d", "1h", "24h", "orders:read", "deploy:*", "10.0.0.0/8", "2031-01-31T08:00:00Z", "team=payments", "deploy.started", "sha256",
	"https://ci.example.com/run/1", "main", "0d3c0d3c-0000-4000-8000-000000000000", "Payments & more", "ü", "127.0.0.1", "127.0.0.0/8", "2026-01-15", "",
}

// make makes a value up that fits a schema.
func (d *document) make(s *schema, name string, r *rand.Rand, depth int) any {
	s = d.resolve(s)
	if len(s.OneOf) > 0 {
		return d.make(s.OneOf[r.IntN(len(s.OneOf))], name, r, depth)
	}
	if len(s.Enum) > 0 {
		return s.Enum[r.IntN(len(s.Enum))]
	}
	kind := "object"
	if len(s.Type) > 0 {
		kind = s.Type[0]
	}
	switch kind {
	case "string":
		from := r.IntN(len(samples))
		for i := range samples {
			if text := samples[(from+i)%len(samples)]; len(d.problems(s, name, text)) == 0 {
				return text
			}
		}
		panic("no sample fits " + name + " " + s.Pattern)
	case "integer", "number":
		low, high := 0.0, 1000.0
		if s.Minimum != nil {
			low = *s.Minimum
		}
		if s.Maximum != nil {
			high = min(*s.Maximum, low+1000)
		}
		return math.Trunc(low + r.Float64()*(high-low))
	case "boolean":
		return r.IntN(2) == 0
	case "array":
		n, most := r.IntN(3), math.MaxInt
		if s.MaxItems != nil {
			most = *s.MaxItems
		}
		if s.MinItems != nil {
			n = max(n, *s.MinItems)
		}
		list := []any{}
		for range min(n, most) {
			list = append(list, d.make(s.Items, name, r, depth+1))
		}
		return list
	}
	object := map[string]any{}
	for _, field := range sorted(s.Properties) {
		if slices.Contains(s.Required, field) || r.IntN(4) == 0 {
			object[field] = d.make(s.Properties[field], field, r, depth+1)
		}
	}
	if a := s.AdditionalProperties; a != nil && a.schema != nil && depth < 3 && r.IntN(2) == 0 {
		object["key"] = d.make(a.schema, "key", r, depth+1)
	}
	return object
}

// spoil makes one thing of an input unfit, and says what; empty where there is nothing.
func (in *input) spoil(d *document, o *operation, r *rand.Rand) string {
	var ways []func() string
	ways = append(ways, func() string {
		in.query.Set("nothing-of-this-name", "1")
		return "a query parameter is unknown"
	})
	for _, p := range o.Parameters {
		s := d.resolve(p.Schema)
		if p.In != "query" {
			continue
		}
		if s.MaxLength != nil {
			ways = append(ways, func() string {
				in.query.Set(p.Name, strings.Repeat("a", *s.MaxLength+1))
				return p.Name + " is too long"
			})
		}
		if len(s.Enum) > 0 {
			ways = append(ways, func() string { in.query.Set(p.Name, "neither"); return p.Name + " is none of its values" })
		}
		if slices.Contains(s.Type, "integer") {
			ways = append(ways, func() string { in.query.Set(p.Name, "many"); return p.Name + " is no number" },
				func() string { in.query.Set(p.Name, "-1"); return p.Name + " is out of range" })
		}
	}
	if o.RequestBody != nil {
		body := d.resolve(o.RequestBody.Content["application/json"].Schema)
		object := func() map[string]any {
			if fields, ok := in.body.(map[string]any); ok {
				return fields
			}
			fields := d.make(body, "", r, 0).(map[string]any)
			in.body = fields
			return fields
		}
		ways = append(ways,
			func() string { object()["nothing-of-this-name"] = 1; return "a field is unknown" },
			func() string { in.body = "{"; return "the body is cut off" },
			func() string { in.body = []any{}; return "the body is an array" },
			func() string { in.body = "null"; return "the body is null" })
		for _, name := range sorted(body.Properties) {
			field := d.resolve(body.Properties[name])
			ways = append(ways, func() string {
				if slices.Contains(field.Type, "object") {
					object()[name] = []any{}
				} else {
					object()[name] = map[string]any{"a": 1}
				}
				return name + " is of another type"
			})
			if field.MaxLength != nil {
				ways = append(ways, func() string { object()[name] = strings.Repeat("a", *field.MaxLength+1); return name + " is too long" })
			}
			if slices.Contains(body.Required, name) {
				ways = append(ways, func() string { delete(object(), name); return name + " is missing" })
			}
			if len(field.Enum) > 0 {
				ways = append(ways, func() string { object()[name] = "neither"; return name + " is none of its values" })
			}
		}
	}
	return ways[r.IntN(len(ways))]()
}
