package lifecycle

import (
	"maps"
	"slices"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

// maxGranted is how large what a record grants may be, in bytes, labels and all. The
// schema of status has room for 96 kB; the rest is for versions and Revocations.
const maxGranted = 40 << 10

// sealedSize is about how large what the record is to grant is, in bytes.
func (o *Observed) sealedSize(settings *Settings) int {
	size := 0
	for key, value := range o.Labels {
		size += len(key) + len(value) + 2*textHead
	}
	for key, value := range o.Spec.Attributes {
		size += len(key) + len(value) + 2*textHead
	}
	return size + sizeOf(o.Spec.Permissions) + sizeOf(o.Spec.AllowedCIDRs) + sizeOf(o.Spec.Roles) + sizeOf(settings.JWT.Audiences)
}

// textHead is CBOR's, of a text that is not short.
const textHead = 3

func sizeOf[T ~string](texts []T) (size int) {
	for _, text := range texts {
		size += len(text) + textHead
	}
	return size
}

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
