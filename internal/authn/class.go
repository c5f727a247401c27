package authn

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authz"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

// class is a CredentialClass as the index needs it. It does not change: a
// changed class is another one.
type class struct {
	spec     *v1alpha1.CredentialClassSpec
	format   *format                          // of external values; nil where the class says none, or none that compiles
	ceilings map[*v1alpha1.ClassRule]*ceiling // by the rules of spec
}

// ceiling is one rule of a class. Its address stands for it: a credential whose
// ceiling is the same one need not be worked out again.
type ceiling struct {
	authz.Ceiling
	permissions authz.Set
	external    bool
	format      *format
}

func newClass(spec *v1alpha1.CredentialClassSpec) (*class, error) {
	c := &class{spec: spec.DeepCopy(), ceilings: make(map[*v1alpha1.ClassRule]*ceiling)}
	var problems []error
	if f := c.spec.ExternalFormat; f != nil {
		var err error
		if c.format, err = newFormat(f); err != nil {
			problems = append(problems, err)
		}
	}
	for i := range c.spec.Rules {
		rule := &c.spec.Rules[i]
		if _, err := metav1.LabelSelectorAsSelector(rule.NamespaceSelector); err != nil {
			problems = append(problems, fmt.Errorf("spec.rules[%d].namespaceSelector cannot be read, so this rule and those after it allow nothing: %w", i, err))
		}
		c.ceilings[rule] = &ceiling{
			Ceiling: authz.NewCeiling(rule), permissions: authz.NewSet(authz.Strings(rule.Permissions)), external: rule.External, format: c.format,
		}
	}
	return c, errors.Join(problems...)
}

// ceilingFor finds the rule that holds in a namespace; nil where none does. What
// the labels of a namespace are that has not been seen yet is not known, so
// there a rule holds only if it does so whatever they are.
func (c *class) ceilingFor(ns *namespace) *ceiling {
	if !ns.known {
		if len(c.spec.Rules) > 0 && c.spec.Rules[0].NamespaceSelector == nil {
			return c.ceilings[&c.spec.Rules[0]]
		}
		return nil
	}
	rule, err := authz.SelectRule(c.spec, ns.labels)
	if err != nil {
		return nil
	}
	return c.ceilings[rule]
}

// namespace is a namespace, and the credentials in it.
type namespace struct {
	known    bool
	labels   map[string]string
	holders  int
	ceilings map[string]*ceiling // by class, as far as worked out
}

// format is the shape of external values of a class.
type format struct {
	whole     *regexp.Regexp
	minLength int
}

func newFormat(f *v1alpha1.ExternalFormat) (*format, error) {
	// The pattern must be one by itself, or it could close the group put around
	// it and match anything.
	whole, err := regexp.Compile(f.Pattern)
	if err == nil {
		whole, err = regexp.Compile(`\A(?:` + f.Pattern + `)\z`)
	}
	if err != nil {
		return nil, fmt.Errorf("spec.externalFormat.pattern cannot be read, so no declared value is accepted: %w", err)
	}
	return &format{whole: whole, minLength: max(int(f.MinLength), credential.MinExternalLen)}, nil
}

func (f *format) matches(value string) bool {
	return len(value) >= f.minLength && f.whole.MatchString(value)
}

// SetClass takes in a CredentialClass, new or changed. An error tells of what
// cannot be read in it and therefore allows nothing; the class is in force
// nevertheless.
func (x *Index) SetClass(name string, spec *v1alpha1.CredentialClassSpec) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if held, ok := x.classes[name]; ok && reflect.DeepEqual(held.spec, spec) {
		return nil
	}
	c, err := newClass(spec)
	x.classes[name] = c
	x.classChanged(name)
	if err != nil {
		return fmt.Errorf("CredentialClass %s: %w", name, err)
	}
	return nil
}

// DeleteClass forgets a CredentialClass. Its credentials are refused from then
// on.
func (x *Index) DeleteClass(name string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if _, ok := x.classes[name]; !ok {
		return
	}
	delete(x.classes, name)
	x.classChanged(name)
}

func (x *Index) classChanged(name string) {
	x.publishFormats()
	for _, ns := range x.namespaces {
		delete(ns.ceilings, name)
	}
	x.rejudge(func(c *cohort) bool { return c.governing() == name })
}

// publishFormats hands the shapes of external values to Verify.
func (x *Index) publishFormats() {
	formats := make([]*format, 0, len(x.classes))
	seen := make(map[v1alpha1.ExternalFormat]bool)
	for _, c := range x.classes {
		if c.format != nil && !seen[*c.spec.ExternalFormat] {
			seen[*c.spec.ExternalFormat] = true
			formats = append(formats, c.format)
		}
	}
	x.formats.Store(&formats)
}

// SetNamespace takes in a namespace's labels, by which classes choose the
// ceiling.
func (x *Index) SetNamespace(name string, labels map[string]string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	ns := x.namespace(name)
	if ns.known && maps.Equal(ns.labels, labels) {
		return
	}
	ns.known, ns.labels = true, maps.Clone(labels)
	x.namespaceChanged(name, ns)
}

// DeleteNamespace forgets a namespace. Credentials still in it are refused,
// unless the ceiling is the same in every namespace.
func (x *Index) DeleteNamespace(name string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	ns, ok := x.namespaces[name]
	if !ok {
		return
	}
	ns.known, ns.labels = false, nil
	x.namespaceChanged(name, ns)
	x.dropEmpty(name)
}

func (x *Index) namespaceChanged(name string, ns *namespace) {
	clear(ns.ceilings)
	x.rejudge(func(c *cohort) bool { return c.namespace == name })
}

func (x *Index) namespace(name string) *namespace {
	ns, ok := x.namespaces[name]
	if !ok {
		ns = &namespace{ceilings: make(map[string]*ceiling)}
		x.namespaces[intern(name)] = ns
	}
	return ns
}

// dropEmpty forgets a namespace that neither exists nor holds anything.
func (x *Index) dropEmpty(name string) {
	if ns := x.namespaces[name]; ns != nil && !ns.known && ns.holders == 0 {
		delete(x.namespaces, name)
	}
}

// ceiling finds the ceiling of a class in a namespace; nil where nothing is
// allowed.
func (x *Index) ceiling(className, namespaceName string) *ceiling {
	c, ok := x.classes[className]
	if !ok {
		return nil
	}
	ns := x.namespaces[namespaceName]
	if ns == nil {
		return c.ceilingFor(new(namespace))
	}
	found, ok := ns.ceilings[className]
	if !ok {
		found = c.ceilingFor(ns)
		ns.ceilings[intern(className)] = found
	}
	return found
}

// knows tells whether a namespace has been seen.
func (x *Index) knows(name string) bool {
	ns := x.namespaces[name]
	return ns != nil && ns.known
}
