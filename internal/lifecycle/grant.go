package lifecycle

import (
	"maps"
	"slices"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

// grant fills in what the record grants: what the spec asks for, or, where the
// spec is refused, what the record before it granted.
func grant(r *credential.Record, o *Observed, refused bool) {
	if refused || o.Class == nil {
		if before := o.Record; before != nil {
			r.Class, r.Labels = before.Class, before.Labels
			r.Permissions, r.Roles, r.Admin, r.Attributes = before.Permissions, before.Roles, before.Admin, before.Attributes
			r.CIDRs, r.Rate, r.JWT = before.CIDRs, before.Rate, before.JWT
		}
		return
	}
	spec, settings := o.Spec, Effective(o.Spec, o.Class)
	r.Class, r.Labels = spec.CredentialClassName, maps.Clone(o.Labels)
	r.Permissions, r.Roles, r.Admin = texts(spec.Permissions), slices.Sorted(slices.Values(spec.Roles)), spec.Admin
	for key, value := range spec.Attributes {
		if r.Attributes == nil {
			r.Attributes = map[string]string{}
		}
		r.Attributes[key] = string(value)
	}
	r.CIDRs = texts(spec.AllowedCIDRs)
	if l := spec.RateLimit; l != nil {
		r.Rate = &credential.RecordRate{Requests: l.Requests, PerMillis: l.Per.Or(defaultRatePeriod).Milliseconds(), Burst: l.Burst}
		if r.Rate.Burst == 0 {
			r.Rate.Burst = l.Requests
		}
	}
	r.JWT = credential.RecordJWT{
		TTLSeconds: int64(settings.JWT.TTL.Seconds()), Audiences: slices.Sorted(slices.Values(settings.JWT.Audiences)), Algorithm: settings.JWT.Algorithm,
	}
}

// texts is the sorted text of a set, so that its order in the manifest makes no
// new record.
func texts[T ~string](set []T) []string {
	if len(set) == 0 {
		return nil
	}
	out := make([]string, len(set))
	for i, s := range set {
		out[i] = string(s)
	}
	slices.Sort(out)
	return out
}

// Permissions as plain strings, sorted.
func Permissions(spec *v1alpha1.CredentialSpec) []string { return texts(spec.Permissions) }
