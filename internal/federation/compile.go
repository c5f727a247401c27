package federation

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authz"
)

// Bounds of spec.maxTTL.
const (
	minTTL     = time.Minute
	maxTTL     = time.Hour
	defaultTTL = 15 * time.Minute
)

// defaultAlgorithms are those of spec.algorithms where it is empty.
var defaultAlgorithms = []string{"RS256", "ES256"}

// Compiled is a TrustedIssuer made ready: expressions compiled, keys and
// certificates parsed. It does not change and is safe for concurrent use.
type Compiled struct {
	name        string
	issuer      string
	jwksURL     string
	bundle      []byte
	roots       *x509.CertPool // nil: those of the system
	static      *keySet        // spec.jwks; nil: fetched
	inline      string
	audiences   []string
	algorithms  []string
	validations []condition
	mapping     mapping
	permissions authz.Set // of the ceiling
	roles       []string  // of the ceiling
	issued      []string
	maxTTL      time.Duration
	maxTokenAge time.Duration
	direct      bool
	version     int64
}

// Issuer is the iss of the tokens it is about.
func (c *Compiled) Issuer() string { return c.issuer }

// Audiences are those of which a token must name one.
func (c *Compiled) Audiences() []string { return slices.Clone(c.audiences) }

// InvalidError lists what is wrong with a TrustedIssuer.
type InvalidError struct {
	// Name of the TrustedIssuer.
	Name string
	// Fields are the errors, each with the path of the field it is in.
	Fields field.ErrorList
}

// Error implements error.
func (e *InvalidError) Error() string {
	return fmt.Sprintf("TrustedIssuer %s: %s", e.Name, e.Fields.ToAggregate())
}

// Compile makes a TrustedIssuer ready. Every error is an *[InvalidError]. It does no
// I/O, and what the schema of the API holds is held here again, for a server may
// see objects that were written before.
func Compile(name string, spec *v1alpha1.TrustedIssuerSpec) (*Compiled, error) {
	c := &Compiled{
		name: strings.Clone(name), issuer: spec.Issuer, jwksURL: spec.JWKSURL, bundle: slices.Clone(spec.CABundle), inline: spec.JWKS,
		audiences: slices.Clone(spec.Audiences), algorithms: slices.Clone(spec.Algorithms), issued: slices.Clone(spec.IssuedAudiences),
		permissions: authz.NewSet(authz.Strings(spec.Ceiling.Permissions)), roles: slices.Clone(spec.Ceiling.Roles), direct: spec.DirectUse,
	}
	if len(c.algorithms) == 0 {
		c.algorithms = defaultAlgorithms
	}
	path := field.NewPath("spec")
	errs := c.checkIssuer(path, spec)
	errs = append(errs, c.readKeys(path, spec)...)
	errs = append(errs, c.readTimes(path, spec)...)
	errs = append(errs, c.readExpressions(path, spec)...)
	if len(errs) > 0 {
		return nil, &InvalidError{Name: name, Fields: errs}
	}
	c.version = fingerprint(spec)
	return c, nil
}

// Validate lists what is wrong with the spec of a TrustedIssuer, for admission.
func Validate(spec *v1alpha1.TrustedIssuerSpec) field.ErrorList {
	var invalid *InvalidError
	if _, err := Compile("", spec); errors.As(err, &invalid) {
		return invalid.Fields
	}
	return nil
}

func (c *Compiled) checkIssuer(path *field.Path, spec *v1alpha1.TrustedIssuerSpec) (errs field.ErrorList) {
	for _, u := range []struct {
		name, value string
		required    bool
	}{{"issuer", spec.Issuer, true}, {"jwksURL", spec.JWKSURL, false}} {
		if u.value == "" && !u.required {
			continue
		}
		if problem := checkURL(u.value); problem != "" {
			errs = append(errs, field.Invalid(path.Child(u.name), u.value, problem))
		}
	}
	if len(spec.Audiences) == 0 {
		errs = append(errs, field.Required(path.Child("audiences"), "a token must be for an audience of yours: name it here"))
	}
	if i := slices.Index(spec.Audiences, ""); i >= 0 {
		errs = append(errs, field.Invalid(path.Child("audiences").Index(i), "", "an audience is not empty"))
	}
	for i, alg := range spec.Algorithms {
		if _, ok := methods[alg]; !ok {
			errs = append(errs, field.NotSupported(path.Child("algorithms").Index(i), alg, algorithmNames()))
		}
	}
	return errs
}

// checkURL says what is wrong with a URL to fetch from.
func checkURL(text string) string {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Scheme != "https" || u.Host == "" || u.Opaque != "":
		return "write an https URL such as https://issuer.example.com"
	case u.User != nil || u.Fragment != "" || strings.Contains(text, "#"):
		return "the URL may have neither a user nor a fragment"
	}
	return ""
}

func (c *Compiled) readKeys(path *field.Path, spec *v1alpha1.TrustedIssuerSpec) (errs field.ErrorList) {
	if spec.JWKS != "" {
		if spec.JWKSURL != "" {
			errs = append(errs, field.Forbidden(path.Child("jwks"), "give jwksURL or jwks, not both"))
		}
		keys, err := parseKeySet([]byte(spec.JWKS), true)
		if err != nil {
			errs = append(errs, field.Invalid(path.Child("jwks"), field.OmitValueType{}, err.Error()))
		}
		c.static = keys
	}
	if len(spec.CABundle) > 0 {
		c.roots = x509.NewCertPool()
		if !c.roots.AppendCertsFromPEM(spec.CABundle) {
			errs = append(errs, field.Invalid(path.Child("caBundle"), field.OmitValueType{}, "it holds no certificate in PEM"))
		}
	}
	return errs
}

func (c *Compiled) readTimes(path *field.Path, spec *v1alpha1.TrustedIssuerSpec) (errs field.ErrorList) {
	ttl, given, err := spec.MaxTTL.Parse()
	switch {
	case err != nil:
		errs = append(errs, field.Invalid(path.Child("maxTTL"), string(spec.MaxTTL), err.Error()))
	case !given && spec.MaxTTL == "":
		ttl = defaultTTL
	case ttl < minTTL || ttl > maxTTL:
		errs = append(errs, field.Invalid(path.Child("maxTTL"), string(spec.MaxTTL), "write a length of time from 1m to 60m"))
	}
	c.maxTTL = ttl
	age, given, err := spec.MaxTokenAge.Parse()
	switch {
	case err != nil:
		errs = append(errs, field.Invalid(path.Child("maxTokenAge"), string(spec.MaxTokenAge), err.Error()))
	case given && age <= 0:
		errs = append(errs, field.Invalid(path.Child("maxTokenAge"), string(spec.MaxTokenAge), "write a length of time such as 1h, or leave it out"))
	}
	c.maxTokenAge = age
	return errs
}

func (c *Compiled) readExpressions(path *field.Path, spec *v1alpha1.TrustedIssuerSpec) (errs field.ErrorList) {
	for i, v := range spec.Validations {
		at := path.Child("validations").Index(i).Child("expression")
		e, err := compileExpression(at, v.Expression, resultBool)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		c.validations = append(c.validations, condition{expression: e, message: v.Message})
	}
	subject := spec.Mapping.Subject
	if subject == "" {
		subject = "claims.sub"
	}
	for _, m := range []struct {
		name, text string
		want       result
		into       **expression
	}{
		{"subject", subject, resultString, &c.mapping.subject},
		{"email", spec.Mapping.Email, resultString, &c.mapping.email},
		{"roles", spec.Mapping.Roles, resultList, &c.mapping.roles},
		{"permissions", spec.Mapping.Permissions, resultList, &c.mapping.permissions},
		{"attributes", spec.Mapping.Attributes, resultMap, &c.mapping.attributes},
	} {
		if m.text == "" {
			continue
		}
		e, err := compileExpression(path.Child("mapping", m.name), m.text, m.want)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		*m.into = e
	}
	return errs
}

// fingerprint is a number for what decides who gets in as whom: it goes into the
// JWTs of ours, which are refused once it is another one, for what they were issued
// under no longer holds. What only narrows or lengthens them is not part of it, for
// that is looked at when they are used.
func fingerprint(spec *v1alpha1.TrustedIssuerSpec) int64 {
	expressions := make([]string, len(spec.Validations))
	for i, v := range spec.Validations {
		expressions[i] = v.Expression
	}
	slices.Sort(expressions)
	audiences := slices.Sorted(slices.Values(spec.Audiences))
	text, err := json.Marshal([]any{spec.Issuer, audiences, expressions, spec.Mapping})
	if err != nil {
		panic(err) // strings
	}
	sum := sha256.Sum256(text)
	// A positive number that every JSON parser holds exactly (RFC 8259, section 6).
	return int64(binary.BigEndian.Uint64(sum[:8])>>12) | 1
}

// overlaps tells whether some token could be for both: they have the issuer and an
// audience in common.
func (c *Compiled) overlaps(other *Compiled) bool {
	return c.issuer == other.issuer && slices.ContainsFunc(c.audiences, func(a string) bool { return slices.Contains(other.audiences, a) })
}
