package federation

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/mintmark-dev/mintmark/internal/authz"
)

// Limits of what a mapping may give.
const (
	maxSubjectLen   = 512
	maxEmailLen     = 254
	maxRoles        = 64
	maxPermissions  = 256
	maxAttributes   = 32
	maxAttributeKey = 64
	maxAttribute    = 1024
)

// condition is one on the claims.
type condition struct {
	*expression
	message string
}

// mapping says who the holder of a token is; nil expressions give nothing.
type mapping struct {
	subject, email, roles, permissions, attributes *expression
}

// SubjectPrefix begins the subjects of holders: "issuer:<TrustedIssuer>:<subject>".
const SubjectPrefix = "issuer:"

// validate is nil where every validation holds.
func (c *Compiled) validate(claims map[string]any) error {
	for _, v := range c.validations {
		holds, err := v.eval(claims)
		if err != nil {
			return err
		}
		if holds != true {
			text := "the validation does not hold"
			if v.message != "" {
				text += ": " + v.message
			}
			return &problem{v.path, text}
		}
	}
	return nil
}

// apply says who the holder of the claims is, under the ceiling.
func (c *Compiled) apply(claims map[string]any) (*Holder, error) {
	subject, err := evaluate[string](c.mapping.subject, claims)
	if err != nil {
		return nil, err
	}
	if subject == "" || len(subject) > maxSubjectLen || !printable(subject) {
		return nil, &problem{c.mapping.subject.path, fmt.Sprintf("a subject is 1 to %d printable ASCII characters, without spaces around: map it to such", maxSubjectLen)}
	}
	h := &Holder{Subject: SubjectPrefix + c.name + ":" + subject}
	if h.Email, err = evaluate[string](c.mapping.email, claims); err != nil {
		return nil, err
	}
	if h.Email != "" && !isEmail(h.Email) {
		return nil, &problem{c.mapping.email.path, "it gave something that is not an email address"}
	}
	if h.Roles, err = c.mapRoles(claims); err != nil {
		return nil, err
	}
	if h.Permissions, err = c.mapPermissions(claims); err != nil {
		return nil, err
	}
	h.Attributes, err = c.mapAttributes(claims)
	return h, err
}

func evaluate[T any](e *expression, claims map[string]any) (value T, err error) {
	if e == nil {
		return value, nil
	}
	native, err := e.eval(claims)
	if err != nil {
		return value, err
	}
	return native.(T), nil // as compileExpression was told
}

func (c *Compiled) mapRoles(claims map[string]any) ([]string, error) {
	roles, err := evaluate[[]string](c.mapping.roles, claims)
	if err != nil {
		return nil, err
	}
	if len(roles) > maxRoles {
		return nil, &problem{c.mapping.roles.path, fmt.Sprintf("it gave more than %d roles", maxRoles)}
	}
	if slices.ContainsFunc(roles, func(r string) bool { return len(validation.IsDNS1123Subdomain(r)) > 0 }) {
		return nil, &problem{c.mapping.roles.path, "it gave something that is not the name of an AccessRole"}
	}
	return c.limitRoles(roles), nil
}

// permissionShape is v1alpha1.Permission's.
var permissionShape = regexp.MustCompile(`\A([*]|\w[\w./-]*(:\w[\w./-]*)*(:[*])?)\z`)

const maxPermissionLen = 128

func (c *Compiled) mapPermissions(claims map[string]any) ([]string, error) {
	permissions, err := evaluate[[]string](c.mapping.permissions, claims)
	if err != nil {
		return nil, err
	}
	if len(permissions) > maxPermissions {
		return nil, &problem{c.mapping.permissions.path, fmt.Sprintf("it gave more than %d permissions", maxPermissions)}
	}
	if slices.ContainsFunc(permissions, func(p string) bool { return len(p) > maxPermissionLen || !permissionShape.MatchString(p) }) {
		return nil, &problem{c.mapping.permissions.path, "it gave something that is not a permission such as deploy:write"}
	}
	return c.limitPermissions(permissions), nil
}

// limitPermissions keeps what the ceiling allows. Of two patterns that overlap one covers
// the other, so what two sets have in common are the patterns of each that the other
// covers.
func (c *Compiled) limitPermissions(permissions []string) []string {
	held := authz.NewSet(permissions)
	var common []string
	for _, p := range held.Strings() {
		if c.permissions.Allows(p) {
			common = append(common, p)
		}
	}
	for _, p := range c.permissions.Strings() {
		if held.Allows(p) {
			common = append(common, p)
		}
	}
	return authz.NewSet(common).Strings()
}

func (c *Compiled) mapAttributes(claims map[string]any) (map[string]string, error) {
	attributes, err := evaluate[map[string]string](c.mapping.attributes, claims)
	if err != nil {
		return nil, err
	}
	if len(attributes) > maxAttributes {
		return nil, &problem{c.mapping.attributes.path, fmt.Sprintf("it gave more than %d attributes", maxAttributes)}
	}
	for key, value := range attributes {
		if key == "" || len(key) > maxAttributeKey || len(value) > maxAttribute {
			return nil, &problem{c.mapping.attributes.path, fmt.Sprintf("a key has 1 to %d bytes and a value at most %d", maxAttributeKey, maxAttribute)}
		}
	}
	return maps.Clone(attributes), nil
}

// limitRoles keeps the roles the ceiling allows, sorted and each once.
func (c *Compiled) limitRoles(roles []string) []string {
	kept := slices.DeleteFunc(slices.Clone(roles), func(r string) bool { return !slices.Contains(c.roles, r) })
	slices.Sort(kept)
	return slices.Compact(kept)
}

// printable keeps what stands in a header and in a log line as it is.
func printable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return strings.TrimSpace(s) == s
}

func isEmail(s string) bool {
	local, domain, ok := strings.Cut(s, "@")
	return ok && local != "" && domain != "" && len(s) <= maxEmailLen && printable(s) && !strings.ContainsAny(s, " ,;<>\"") && !strings.Contains(domain, "@")
}
