package lifecycle

import (
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authz"
	"github.com/mintmark-dev/mintmark/internal/delivery"
)

// Validate says what is wrong with a spec, under the rule its class has for the
// namespace; a nil rule allows nothing. The schema has checked lengths, formats
// and immutability already; here is what a schema cannot say. Errors of type
// Forbidden are those of the ceiling.
func Validate(kind v1alpha1.Kind, name string, spec *v1alpha1.CredentialSpec, class *v1alpha1.CredentialClassSpec, rule *v1alpha1.ClassRule) field.ErrorList {
	at := field.NewPath("spec")
	errs := validateCeiling(at, spec, rule)
	errs = append(errs, validateTimes(at, spec, class, rule)...)
	for i, cidr := range spec.AllowedCIDRs {
		if _, err := netip.ParsePrefix(string(cidr)); err != nil {
			errs = append(errs, field.Invalid(at.Child("allowedCIDRs").Index(i), cidr, "not a network: write it like 10.0.0.0/8 or 2001:db8::/32"))
		}
	}
	if spec.RateLimit != nil && spec.RateLimit.Per != "" {
		if per, ok, err := spec.RateLimit.Per.Parse(); err != nil || !ok || per <= 0 {
			errs = append(errs, field.Invalid(at.Child("rateLimit", "per"), spec.RateLimit.Per, "give a period such as 1s or 1m"))
		}
	}
	if spec.Secret != nil {
		errs = append(errs, delivery.ValidateTemplate(at.Child("secret", "template"), kind, spec.Secret.Template)...)
	}
	if spec.External == nil && len(SecretName(name, spec)) > 253 {
		errs = append(errs, field.Invalid(at.Child("secret", "name"), SecretName(name, spec), "has more than 253 characters"))
	}
	return append(errs, validateRestart(at.Child("restart"), spec.Restart)...)
}

// defaultRatePeriod is what a rate limit counts by where it does not say.
const defaultRatePeriod = time.Second

func isCeiling(err *field.Error) bool { return err.Type == field.ErrorTypeForbidden }

func validateCeiling(at *field.Path, spec *v1alpha1.CredentialSpec, rule *v1alpha1.ClassRule) field.ErrorList {
	if rule == nil {
		return field.ErrorList{field.Forbidden(at.Child("credentialClassName"),
			fmt.Sprintf("class %s has no rule for this namespace: choose another class, or have a rule added to it", spec.CredentialClassName))}
	}
	var (
		errs    field.ErrorList
		ceiling = authz.NewCeiling(rule)
	)
	for i, permission := range spec.Permissions {
		if !ceiling.AllowsGrant(string(permission)) {
			errs = append(errs, field.Forbidden(at.Child("permissions").Index(i),
				fmt.Sprintf("class %s does not allow %q in this namespace: leave it out, or choose a class that does", spec.CredentialClassName, permission)))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(spec.Attributes)) {
		if value := spec.Attributes[key]; !ceiling.AllowsAttribute(key, string(value)) {
			errs = append(errs, field.Forbidden(at.Child("attributes").Key(key), fmt.Sprintf(
				"class %s does not allow the value %q in this namespace: leave it out, or choose a class that does", spec.CredentialClassName, value)))
		}
	}
	if spec.Admin && !rule.Admin {
		errs = append(errs, field.Forbidden(at.Child("admin"), fmt.Sprintf(
			"class %s does not allow admin credentials in this namespace: leave it out, or choose a class that does", spec.CredentialClassName)))
	}
	if spec.External != nil && !rule.External {
		errs = append(errs, field.Forbidden(at.Child("external"), fmt.Sprintf(
			"class %s does not allow credentials declared by their SHA-256 in this namespace: choose a class that does", spec.CredentialClassName)))
	}
	if spec.Secret != nil && spec.Secret.ConflictPolicy == v1alpha1.ConflictAdopt && !rule.Adoption {
		errs = append(errs, field.Forbidden(at.Child("secret", "conflictPolicy"), fmt.Sprintf(
			"class %s does not allow Adopt in this namespace: use Refuse, or choose a class that does", spec.CredentialClassName)))
	}
	return errs
}

func validateTimes(at *field.Path, spec *v1alpha1.CredentialSpec, class *v1alpha1.CredentialClassSpec, rule *v1alpha1.ClassRule) field.ErrorList {
	var errs field.ErrorList
	errs = append(errs, validateLength(at.Child("ttl"), spec.TTL, true, time.Minute)...)
	if rule != nil {
		errs = append(errs, validateMaxTTL(at, spec, class, rule.MaxTTL)...)
	}
	if spec.JWT != nil {
		errs = append(errs, validateJWTTTL(at.Child("jwt", "ttl"), spec.JWT.TTL)...)
	}
	r, at := spec.Rotation, at.Child("rotation")
	if r == nil {
		return errs
	}
	errs = append(errs, validateLength(at.Child("every"), r.Every, true, time.Minute)...)
	errs = append(errs, validateLength(at.Child("overlap"), r.Overlap, false, 0)...)
	errs = append(errs, validateLength(at.Child("maxOverlap"), r.MaxOverlap, false, 0)...)
	if r.HighUsage != nil {
		errs = append(errs, validateLength(at.Child("highUsage", "every"), r.HighUsage.Every, false, time.Minute)...)
	}
	if least := class.MinOverlap.Or(fallbackMinOverlap); r.Overlap != "" && r.Overlap.Or(least) < least && r.Retire != v1alpha1.RetireImmediately {
		errs = append(errs, field.Invalid(at.Child("overlap"), r.Overlap, fmt.Sprintf(
			"class %s asks for at least %s: give more, or retire: Immediately where the old value must die at once", spec.CredentialClassName, class.MinOverlap)))
	}
	if r.MaxOverlap != "" {
		overlap := r.Overlap
		if overlap == "" {
			overlap = class.Defaults.Rotation.Overlap
		}
		if r.MaxOverlap.Or(0) < overlap.Or(fallbackOverlap) {
			errs = append(errs, field.Invalid(at.Child("maxOverlap"), r.MaxOverlap, fmt.Sprintf("is shorter than the overlap of %s: give more, or a shorter overlap", overlap)))
		}
	}
	_, calendar := parseCalendar(r)
	return append(errs, calendar...)
}

func validateLength(at *field.Path, d v1alpha1.Duration, never bool, least time.Duration) field.ErrorList {
	if d == "" {
		return nil
	}
	length, ok, err := d.Parse()
	switch {
	case err != nil:
		return field.ErrorList{field.Invalid(at, d, "not a duration: write it like 90d, 12h or 1d12h")}
	case !ok && !never:
		return field.ErrorList{field.Invalid(at, d, "must end: write it like 90d, 12h or 1d12h")}
	case ok && length < least:
		return field.ErrorList{field.Invalid(at, d, fmt.Sprintf("must be at least %s", least))}
	default:
		return nil
	}
}

func validateMaxTTL(at *field.Path, spec *v1alpha1.CredentialSpec, class *v1alpha1.CredentialClassSpec, limit v1alpha1.Duration) field.ErrorList {
	longest, limited, err := limit.Parse()
	if err != nil || !limited {
		return nil
	}
	ttl := spec.TTL
	if ttl == "" {
		ttl = class.Defaults.TTL
	}
	if length, ends, err := ttl.Parse(); err == nil && (!ends || length > longest) {
		return field.ErrorList{field.Forbidden(at.Child("ttl"), fmt.Sprintf(
			"%s is more than the %s that class %s allows in this namespace: ask for less", ttl, limit, spec.CredentialClassName))}
	}
	return nil
}

func validateJWTTTL(at *field.Path, d v1alpha1.Duration) field.ErrorList {
	if d == "" {
		return nil
	}
	if length, ok, err := d.Parse(); err != nil || !ok || length < MinJWTTTL || length > MaxJWTTTL {
		return field.ErrorList{field.Invalid(at, d, "must be from 1m to 60m")}
	}
	return nil
}

func validateSelector(at *field.Path, selector *metav1.LabelSelector) field.ErrorList {
	if selector == nil {
		return nil
	}
	if _, err := metav1.LabelSelectorAsSelector(selector); err != nil {
		return field.ErrorList{field.Invalid(at, selector, err.Error())}
	}
	if len(selector.MatchLabels)+len(selector.MatchExpressions) == 0 {
		return field.ErrorList{field.Invalid(at, selector, "selects everything: name labels")}
	}
	return nil
}

// ValidateClass says what is wrong with a class.
func ValidateClass(class *v1alpha1.CredentialClassSpec) field.ErrorList {
	var (
		errs field.ErrorList
		at   = field.NewPath("spec")
		def  = at.Child("defaults")
		rot  = def.Child("rotation")
	)
	errs = append(errs, validateLength(def.Child("ttl"), class.Defaults.TTL, true, time.Minute)...)
	errs = append(errs, validateLength(rot.Child("every"), class.Defaults.Rotation.Every, true, time.Minute)...)
	errs = append(errs, validateLength(rot.Child("overlap"), class.Defaults.Rotation.Overlap, false, 0)...)
	errs = append(errs, validateLength(rot.Child("maxOverlap"), class.Defaults.Rotation.MaxOverlap, false, 0)...)
	errs = append(errs, validateJWTTTL(def.Child("jwt", "ttl"), class.Defaults.JWT.TTL)...)
	errs = append(errs, validateLength(at.Child("minOverlap"), class.MinOverlap, false, 0)...)
	errs = append(errs, validateLength(at.Child("expired", "after"), class.Expired.After, false, 0)...)
	least := class.MinOverlap.Or(fallbackMinOverlap)
	if class.Defaults.Rotation.Overlap.Or(fallbackOverlap) < least {
		errs = append(errs, field.Invalid(rot.Child("overlap"), class.Defaults.Rotation.Overlap, fmt.Sprintf("is shorter than minOverlap, %s", least)))
	}
	if class.Defaults.Rotation.MaxOverlap.Or(fallbackMaxOverlap) < class.Defaults.Rotation.Overlap.Or(fallbackOverlap) {
		errs = append(errs, field.Invalid(rot.Child("maxOverlap"), class.Defaults.Rotation.MaxOverlap, "is shorter than overlap"))
	}
	for i := range class.Rules {
		rule, at := &class.Rules[i], at.Child("rules").Index(i)
		if s := rule.NamespaceSelector; s != nil {
			if _, err := metav1.LabelSelectorAsSelector(s); err != nil {
				errs = append(errs, field.Invalid(at.Child("namespaceSelector"), s, err.Error()))
			}
		}
		errs = append(errs, validateLength(at.Child("maxTTL"), rule.MaxTTL, true, time.Minute)...)
	}
	if f := class.ExternalFormat; f != nil {
		if _, err := regexp.Compile(f.Pattern); err != nil {
			errs = append(errs, field.Invalid(at.Child("externalFormat", "pattern"), f.Pattern, "not a regular expression (RE2 syntax): "+err.Error()))
		}
	}
	return errs
}

// Warnings tells what is allowed but risky about a spec, or hardly meant.
func Warnings(spec *v1alpha1.CredentialSpec, class *v1alpha1.CredentialClassSpec, now time.Time) []string {
	var warnings []string
	s := Effective(spec, class)
	if !s.ExpiresAt.IsZero() && !s.ExpiresAt.After(now) {
		warnings = append(warnings, "spec.expiresAt: "+s.ExpiresAt.UTC().Format(time.RFC3339)+" has passed: no value is accepted, and none made")
	}
	for i, cidr := range spec.AllowedCIDRs {
		if network, err := netip.ParsePrefix(string(cidr)); err == nil && network != network.Masked() {
			warnings = append(warnings, fmt.Sprintf("spec.allowedCIDRs[%d]: %s allows all of %s; one address alone is %s/%d",
				i, cidr, network.Masked(), network.Addr(), network.Addr().BitLen()))
		}
	}
	if s.TTL == 0 && s.ExpiresAt.IsZero() && spec.External == nil {
		warnings = append(warnings, "spec.ttl: the credential never expires: whoever copies it can use it for ever")
	}
	if spec.External != nil && s.TTL == 0 && s.ExpiresAt.IsZero() {
		warnings = append(warnings, "spec.expiresAt: a credential declared by its SHA-256 is not rotated, and this one never expires")
	}
	if spec.External != nil && class.ExternalFormat == nil {
		warnings = append(warnings, fmt.Sprintf("spec.external: class %s has no externalFormat, so only values in Mintmark's own formats are accepted",
			spec.CredentialClassName))
	}
	if s.RotateEvery == 0 && spec.External == nil && (spec.Rotation == nil || spec.Rotation.Schedule == "") {
		warnings = append(warnings, "spec.rotation.every: the credential is never rotated by itself, and ends when its ttl does")
	}
	if spec.External != nil && spec.Restart != nil {
		warnings = append(warnings, "spec.restart: nothing is restarted for a credential declared by its SHA-256, whose value no Secret delivers")
	}
	for _, p := range spec.Permissions {
		if p == "*" || strings.HasSuffix(string(p), ":*") {
			warnings = append(warnings, fmt.Sprintf("spec.permissions: %q is a wildcard: it also takes in what is added later", p))
		}
	}
	if spec.Admin {
		warnings = append(warnings, "spec.admin: the credential holds every permission")
	}
	if spec.Rotation != nil && spec.Rotation.Retire == v1alpha1.RetireImmediately {
		warnings = append(warnings, "spec.rotation.retire: Immediately refuses the old value before workloads have read the new one")
	}
	return warnings
}

func list(names []string) string {
	if len(names) > 5 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:5], ", "), len(names)-5)
	}
	return strings.Join(names, ", ")
}
