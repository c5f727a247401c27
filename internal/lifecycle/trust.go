package lifecycle

import (
	"cmp"
	"encoding/hex"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

// Trusted gives the status to plan by: what people may have edited is put back
// to what the sealed record says, so that nobody gets a value of their own
// sealed by writing its digest into status. rec is nil where there is no record
// whose seal holds; then no version is live.
func Trusted(status *v1alpha1.CredentialStatus, rec *credential.Record) *v1alpha1.CredentialStatus {
	trusted := status.DeepCopy()
	if rec == nil {
		rec = &credential.Record{}
	}
	trusted.Versions = slices.DeleteFunc(trusted.Versions, func(v v1alpha1.CredentialVersion) bool {
		return sealed(rec, v.Version) != nil
	})
	for i := range trusted.Versions {
		if v := &trusted.Versions[i]; v.State.Live() {
			v.State, v.Reason = v1alpha1.VersionRetired, "not vouched for by the sealed record"
		}
	}
	for i := range rec.Versions {
		trusted.Versions = append(trusted.Versions, restore(status, &rec.Versions[i]))
	}
	slices.SortFunc(trusted.Versions, func(a, b v1alpha1.CredentialVersion) int { return cmp.Compare(b.Version, a.Version) })
	trusted.Epoch = rec.Epoch
	trusted.SettledRevocations = slices.Clone(rec.Settled)
	switch {
	case rec.RevokedSpec == "" && rec.RevokedThrough == 0 && len(rec.Settled) == 0:
		trusted.Revocation = nil
	case trusted.Revocation != nil:
		trusted.Revocation.ThroughVersion = rec.RevokedThrough
	case rec.RevokedThrough > 0 || rec.RevokedSpec != "":
		trusted.Revocation = &v1alpha1.RevocationStatus{ThroughVersion: rec.RevokedThrough}
	}
	return trusted
}

func sealed(rec *credential.Record, number int64) *credential.SealedVersion {
	for i := range rec.Versions {
		if rec.Versions[i].Number == number {
			return &rec.Versions[i]
		}
	}
	return nil
}

// restore makes a version of status from the sealed one, with what status says
// beside it for people.
func restore(status *v1alpha1.CredentialStatus, v *credential.SealedVersion) v1alpha1.CredentialVersion {
	var restored v1alpha1.CredentialVersion
	for _, s := range status.Versions {
		if s.Version == v.Number {
			restored = v1alpha1.CredentialVersion{Reason: s.Reason, Actor: s.Actor, Uses: s.Uses, LastUsed: s.LastUsed}
			if !v.State.Live() {
				restored.Ended = s.Ended
			}
		}
	}
	restored.Version, restored.State, restored.Prefix = v.Number, v.State, v.Prefix
	restored.Digest, restored.Pepper = hex.EncodeToString(v.Digest), v.Pepper
	restored.Created = metav1.NewTime(time.Unix(v.Created, 0).UTC())
	restored.Activated = unix(v.Activated)
	restored.Superseded = unix(v.Superseded)
	restored.Expires = unix(v.Expires)
	return restored
}

func unix(seconds int64) *metav1.Time {
	if seconds == 0 {
		return nil
	}
	return stamp(time.Unix(seconds, 0))
}

func seconds(t *metav1.Time) int64 {
	if t == nil {
		return 0
	}
	return t.Unix()
}

// vouched tells whether a version that has been revoked stays in the record, so
// that servers know a use of it for what it is. Only what was sealed before does:
// for nobody but the record says whose value a digest in status is of.
func vouched(rec *credential.Record, v *v1alpha1.CredentialVersion) bool {
	if rec == nil || v.State != v1alpha1.VersionRevoked {
		return false
	}
	before := sealed(rec, v.Version)
	return before != nil && hex.EncodeToString(before.Digest) == v.Digest && before.Pepper == v.Pepper
}

// BuildRecord makes the record that vouches for what was decided, with the epoch
// of the record before it: the caller raises it if anything else differs. It is
// nil where there is nothing to vouch for. Digests that cannot be read are an
// error, for they can only be a defect.
func BuildRecord(o *Observed, d *Decision) (*credential.Record, error) {
	st := d.Status
	r := &credential.Record{
		UID: o.UID, Kind: o.Kind, Namespace: o.Namespace, Name: o.Name, Epoch: st.Epoch,
		Settled: st.SettledRevocations, External: o.Spec.External != nil,
	}
	if o.Record != nil {
		r.SettledBefore = o.Record.SettledBefore
		r.RevokedThrough, r.RevokedSpec, r.RevokedVersions = o.Record.RevokedThrough, o.Record.RevokedSpec, slices.Clone(o.Record.RevokedVersions)
	}
	r.SettledBefore = max(r.SettledBefore, d.SettledBefore)
	grant(r, o, d.Refused)
	if rv := st.Revocation; rv != nil {
		r.RevokedThrough = max(r.RevokedThrough, rv.ThroughVersion)
	}
	if digest := credential.RevokedDigest(o.Spec.Revoked); digest != "" {
		r.RevokedSpec = digest
	}
	for i := len(st.Versions) - 1; i >= 0; i-- {
		v := &st.Versions[i]
		if !v.State.Live() {
			if v.State == v1alpha1.VersionRevoked && v.Version > r.RevokedThrough && !slices.Contains(r.RevokedVersions, v.Version) {
				r.RevokedVersions = append(r.RevokedVersions, v.Version)
			}
			if !vouched(o.Record, v) {
				continue
			}
		}
		digest, err := credential.ParseDigest(v.Digest)
		if err != nil {
			return nil, err
		}
		r.Versions = append(r.Versions, credential.SealedVersion{
			Number: v.Version, Digest: digest[:], Pepper: v.Pepper, Prefix: v.Prefix, State: v.State,
			Created: v.Created.Unix(), Activated: seconds(v.Activated), Superseded: seconds(v.Superseded), Expires: seconds(v.Expires),
		})
	}
	slices.Sort(r.RevokedVersions)
	if len(r.Versions) == 0 && o.Record == nil && len(r.Settled) == 0 && r.RevokedSpec == "" {
		return nil, nil
	}
	return r, nil
}
