// Package delivery decides what a target Secret holds: the value, the previous
// value while it is accepted, their versions, and what the template adds.
//
// It is pure, and its results hold plaintext: they go into the Secret and
// nowhere else.
package delivery

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"text/template"
	"text/template/parse"

	"k8s.io/apimachinery/pkg/api/validate/content"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// MaxSize bounds a Secret's data, in bytes; the API server's own limit is 1 MiB.
const MaxSize = 512 << 10

// Values are what a Secret is rendered from. Previous is empty, and
// PreviousVersion zero, where no previous value is accepted.
type Values struct {
	Namespace, Name          string
	Current, Previous        string
	Version, PreviousVersion int64
}

// Render gives the Secret's data.
func Render(kind v1alpha1.Kind, target *v1alpha1.SecretTarget, values Values) (map[string][]byte, error) {
	data := map[string][]byte{
		kind.SecretKey():          []byte(values.Current),
		v1alpha1.SecretKeyVersion: strconv.AppendInt(nil, values.Version, 10),
	}
	if values.PreviousVersion > 0 {
		data[kind.PreviousSecretKey()] = []byte(values.Previous)
		data[v1alpha1.SecretKeyPreviousVersion] = strconv.AppendInt(nil, values.PreviousVersion, 10)
	}
	if target == nil || target.Template == nil {
		return data, nil
	}
	size := 0
	for key, text := range target.Template.Data {
		rendered, err := render(key, string(text), values)
		if err != nil {
			return nil, err
		}
		if size += len(rendered); size > MaxSize {
			return nil, fmt.Errorf("spec.secret.template.data: renders to more than %d bytes", MaxSize)
		}
		data[key] = rendered
	}
	return data, nil
}

// ValidateTemplate says what is wrong with a template. It renders it once, with
// values that are nobody's.
func ValidateTemplate(at *field.Path, kind v1alpha1.Kind, t *v1alpha1.SecretTemplate) field.ErrorList {
	if t == nil {
		return nil
	}
	var errs field.ErrorList
	if m := t.Metadata; m != nil {
		for _, key := range sorted(m.Labels) {
			at := at.Child("metadata", "labels").Key(key)
			errs = append(errs, validateKey(at, key)...)
			for _, problem := range content.IsLabelValue(m.Labels[key]) {
				errs = append(errs, field.Invalid(at, m.Labels[key], problem))
			}
		}
		for _, key := range sorted(m.Annotations) {
			errs = append(errs, validateKey(at.Child("metadata", "annotations").Key(key), key)...)
		}
	}
	sample := Values{Namespace: "namespace", Name: "name", Current: strings.Repeat("x", 80), Previous: strings.Repeat("y", 80), Version: 2, PreviousVersion: 1}
	for _, key := range sorted(t.Data) {
		at := at.Child("data").Key(key)
		if slices.Contains([]string{kind.SecretKey(), kind.PreviousSecretKey(), v1alpha1.SecretKeyVersion, v1alpha1.SecretKeyPreviousVersion}, key) {
			errs = append(errs, field.Invalid(at, key, "is Mintmark's own key: choose another"))
			continue
		}
		if _, err := render(key, string(t.Data[key]), sample); err != nil {
			errs = append(errs, field.Invalid(at, string(t.Data[key]), err.Error()))
		}
	}
	return errs
}

// validateKey refuses the names that make other controllers act: a Secret
// labelled for one of them could be used to reach what its author may not.
func validateKey(at *field.Path, key string) field.ErrorList {
	for _, problem := range content.IsLabelKey(key) {
		return field.ErrorList{field.Invalid(at, key, problem)}
	}
	domain, _, _ := strings.Cut(key, "/")
	for _, reserved := range []string{"kubernetes.io", "k8s.io", "mintmark.dev"} {
		if domain == reserved || strings.HasSuffix(domain, "."+reserved) {
			return field.ErrorList{field.Invalid(at, key, "is reserved: choose a name outside "+reserved)}
		}
	}
	return nil
}

// functions is all that a template can call: nothing that reads, waits or
// grows without bound.
var functions = template.FuncMap{
	"b64enc":   func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) },
	"urlquery": url.QueryEscape,
	"quote":    strconv.Quote,
	// The built-in ones that could be used to build huge texts are taken away.
	"print": unavailable("print"), "println": unavailable("println"), "html": unavailable("html"), "js": unavailable("js"),
	"call": unavailable("call"), "slice": unavailable("slice"),
	"printf": printf,
}

func unavailable(name string) func(...any) (string, error) {
	return func(...any) (string, error) {
		return "", fmt.Errorf("function %s is not available: use b64enc, urlquery, quote or printf", name)
	}
}

// printf takes no width or precision: "%999999999d" would ask for a gigabyte.
func printf(format string, args ...any) (string, error) {
	for rest := format; ; {
		i := strings.IndexByte(rest, '%')
		if i < 0 {
			return fmt.Sprintf(format, args...), nil
		}
		if i+1 == len(rest) || !strings.ContainsRune("%vsdqxX", rune(rest[i+1])) {
			return "", errors.New("printf knows %v, %s, %d, %q, %x and %X alone, without width")
		}
		rest = rest[i+2:]
	}
}

func render(key, text string, values Values) ([]byte, error) {
	t, err := template.New(key).Option("missingkey=error").Funcs(functions).Parse(text)
	if err != nil {
		return nil, fmt.Errorf("not a template: %w", strip(err))
	}
	if len(t.Templates()) > 1 || t.Tree != nil && !bounded(t.Tree.Root) {
		return nil, errors.New("range, define, block and template are not available")
	}
	out := &limited{}
	err = t.Execute(out, map[string]any{
		"token": values.Current, "previous": values.Previous, "version": values.Version, "previousVersion": values.PreviousVersion,
		"name": values.Name, "namespace": values.Namespace,
	})
	if err != nil {
		return nil, fmt.Errorf("cannot be rendered: %w", strip(err))
	}
	return out.data, nil
}

// bounded tells whether a template does no more work than its length: a range
// over a number would do any amount.
func bounded(list *parse.ListNode) bool {
	if list == nil {
		return true
	}
	for _, node := range list.Nodes {
		switch n := node.(type) {
		case *parse.TextNode, *parse.ActionNode, *parse.CommentNode:
		case *parse.IfNode:
			if !bounded(n.List) || !bounded(n.ElseList) {
				return false
			}
		case *parse.WithNode:
			if !bounded(n.List) || !bounded(n.ElseList) {
				return false
			}
		default:
			return false
		}
	}
	return true
}

// strip keeps of a template's error what names the place and the fault.
// Template errors quote the template, never the values.
func strip(err error) error {
	return errors.New(strings.TrimPrefix(err.Error(), "template: "))
}

type limited struct{ data []byte }

func (l *limited) Write(p []byte) (int, error) {
	if len(l.data)+len(p) > MaxSize {
		return 0, io.ErrShortWrite
	}
	l.data = append(l.data, p...)
	return len(p), nil
}

func sorted[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
