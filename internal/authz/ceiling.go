package authz

import (
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// Ceiling is what one rule of a class allows the credentials of the namespaces
// it selects, compiled. The zero Ceiling allows nothing.
type Ceiling struct {
	permissions Set
	except      Set
	admin       bool
	// attributes by key, and the values each may have; none means any value.
	attributes   map[string][]string
	anyAttribute bool
}

// NewCeiling compiles the rule. Without a rule nothing is allowed.
func NewCeiling(rule *v1alpha1.ClassRule) Ceiling {
	if rule == nil {
		return Ceiling{}
	}
	c := Ceiling{
		permissions: NewSet(Strings(rule.Permissions)),
		except:      NewSet(Strings(rule.Except)),
		admin:       rule.Admin,
		// Left out and empty differ: see v1alpha1.ClassRule.
		anyAttribute: rule.Attributes == nil,
	}
	if len(rule.Attributes) > 0 {
		c.attributes = make(map[string][]string, len(rule.Attributes))
	}
	for _, allowed := range rule.Attributes {
		values := make([]string, len(allowed.Values))
		for i, value := range allowed.Values {
			values[i] = string(value)
		}
		c.attributes[allowed.Key] = values
	}
	return c
}

// AllowsGrant tells whether a credential may be given the pattern: an entry of
// permissions covers it, and no entry of except overlaps it. So a wildcard that
// would include what except takes out is not allowed at all.
func (c Ceiling) AllowsGrant(pattern string) bool {
	return c.permissions.Allows(pattern) && !c.except.Overlaps(pattern)
}

// AllowsUse tells whether a credential that holds the permission may use it now.
// For a permission it is the same as [Ceiling.AllowsGrant], and does not
// allocate; a credential that was given a wildcard before the ceiling sank
// keeps what is left of it.
func (c Ceiling) AllowsUse(permission string) bool { return c.AllowsGrant(permission) }

// AllowsAttribute tells whether a credential may carry the attribute. It does not
// allocate.
func (c Ceiling) AllowsAttribute(key, value string) bool {
	if c.anyAttribute {
		return true
	}
	values, ok := c.attributes[key]
	return ok && (len(values) == 0 || slices.Contains(values, value))
}

// Admin tells whether admin credentials are allowed.
func (c Ceiling) Admin() bool { return c.admin }

// SelectRule is the first rule of the class whose selector matches the
// namespace's labels; a rule without a selector matches every namespace. It is
// nil where none matches, and then nothing may be made or used there. A
// selector that cannot be read is an error even if a later rule would match:
// which rule was meant to hold cannot be told.
func SelectRule(class *v1alpha1.CredentialClassSpec, namespaceLabels map[string]string) (*v1alpha1.ClassRule, error) {
	if class == nil {
		return nil, nil
	}
	for i := range class.Rules {
		rule := &class.Rules[i]
		if rule.NamespaceSelector == nil {
			return rule, nil
		}
		selector, err := metav1.LabelSelectorAsSelector(rule.NamespaceSelector)
		if err != nil {
			return nil, fmt.Errorf("spec.rules[%d].namespaceSelector of the class cannot be read: %w", i, err)
		}
		if selector.Matches(labels.Set(namespaceLabels)) {
			return rule, nil
		}
	}
	return nil, nil
}

// Strings are the permissions as plain strings.
func Strings(permissions []v1alpha1.Permission) []string {
	plain := make([]string, len(permissions))
	for i, permission := range permissions {
		plain[i] = string(permission)
	}
	return plain
}
