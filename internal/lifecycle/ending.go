package lifecycle

import (
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

// What ends versions: revocation, expiry, retirement, and being forgotten.

// quietBefore is how long a superseded version must have been unused before
// WhenUnused retires it.
const quietBefore = time.Hour

// lookAgain is how often a version that may be retired on proof is looked at,
// while there is none.
const lookAgain = 15 * time.Minute

// revoke settles spec.revoked and the Revocations.
func (p *plan) revoke() {
	if r := p.Spec.Revoked; r != nil {
		if len(r.Versions) > 0 {
			p.revokeVersions(r)
		} else if p.revokedSpec() != credential.RevokedDigest(r) {
			p.revokeAll(r.Reason, p.Annotations[v1alpha1.AnnotationRevokedBy])
		}
	}
	for _, r := range p.Revocations {
		if p.settles(&r) {
			continue
		}
		if len(p.status.SettledRevocations) >= maxNamed {
			// Servers go on refusing everything, for the record does not account for it.
			p.flooded = true
			if p.live() > 0 {
				p.revokeAll(r.Reason, r.Actor)
			}
			continue
		}
		p.status.SettledRevocations = append(p.status.SettledRevocations, r.UID)
		// One that is older than the credential has nothing to take from it.
		if r.Created.Before(p.Created) && len(p.status.Versions) == 0 {
			continue
		}
		// What was over before stays over: there is nothing to replace.
		replace := r.Replace && (p.replace != nil || !p.ended())
		p.revokeAll(r.Reason, r.Actor)
		if p.replace = nil; replace {
			p.replace = &replacement{r.Name, r.Actor}
		}
	}
}

// revokedSpec is the spec.revoked that the sealed record accounts for.
func (p *plan) revokedSpec() string {
	if p.Record == nil {
		return ""
	}
	return p.Record.RevokedSpec
}

func (p *plan) revokeVersions(r *v1alpha1.Revoked) {
	for i := range p.status.Versions {
		v := &p.status.Versions[i]
		// One that has ended too: the JWTs of a retired version live on, those of a
		// revoked one do not.
		if v.State != v1alpha1.VersionRevoked && slices.Contains(r.Versions, v.Version) {
			p.end(v, v1alpha1.VersionRevoked, "revoked: "+r.Reason)
			p.noteEnder(v, p.Annotations[v1alpha1.AnnotationRevokedBy])
			p.event(true, v1alpha1.ReasonRevoked, "Revoked version %d: %s", v.Version, r.Reason)
		}
	}
}

func (p *plan) revokeAll(reason, actor string) {
	// What is declared and could not be accepted yet must not be later, for being
	// new then.
	for _, digests := range p.Declared {
		if p.Pepper != "" && p.declaredVersion(digests) == nil {
			v := p.add(becauseDeclared, p.Annotations[v1alpha1.AnnotationRequestedBy])
			v.Pepper, v.Digest = p.Pepper, digests[p.Pepper]
		}
	}
	for i := range p.status.Versions {
		if v := &p.status.Versions[i]; v.State.Live() {
			p.end(v, v1alpha1.VersionRevoked, "revoked: "+reason)
			p.noteEnder(v, actor)
		}
	}
	// What was asked for before is void: only what is asked for after a revocation
	// brings a credential back, and one that was waiting must not.
	p.status.Handled = p.standingRequests()
	p.status.Revocation = &v1alpha1.RevocationStatus{
		At: metav1.NewTime(p.now.Truncate(time.Second)), Reason: clip(reason, maxReason/2), Actor: clip(actor, maxActor), ThroughVersion: p.latest(),
	}
	p.event(true, v1alpha1.ReasonRevoked, "Revoked the whole credential, versions up to %d: %s", p.latest(), reason)
}

// expire ends what has reached its end. Servers do not wait for it.
func (p *plan) expire() {
	for i := range p.status.Versions {
		v := &p.status.Versions[i]
		if !v.State.Live() {
			continue
		}
		end := earliest(expiry(v), p.settings.ExpiresAt)
		if !p.due(end) {
			continue
		}
		if v.State == v1alpha1.VersionActive {
			p.event(true, v1alpha1.ReasonExpired, "Version %d expired", v.Version)
		}
		p.end(v, v1alpha1.VersionExpired, "expired")
	}
}

// discard tells, once it is done, that every superseded version was ended as
// asked. See outlived.
func (p *plan) discard() {
	asked := request(p.Annotations, v1alpha1.AnnotationDiscardRequestedAt)
	if !requested(asked, p.status.Handled.Discard) {
		return
	}
	if p.Spec.External != nil {
		p.status.Handled.Discard = asked
		p.event(true, v1alpha1.ReasonRequestRefused, "Not discarded, for its holder says which values there are: take the hash out of spec.external.sha256")
		return
	}
	// Rolled back to, and not delivered yet: what is to go is still the current version.
	if pending := p.pending(); pending != nil && pending.Activated != nil {
		return
	}
	if p.latestIn(v1alpha1.VersionSuperseded) == nil {
		p.status.Handled.Discard = asked
		p.event(false, v1alpha1.ReasonDiscarded, "Discarded what came before the current version")
	}
}

func (p *plan) discarding() bool {
	return requested(request(p.Annotations, v1alpha1.AnnotationDiscardRequestedAt), p.status.Handled.Discard)
}

// retire ends superseded versions whose time is over: first they leave the
// Secret (see deliver), then acceptance.
func (p *plan) retire() {
	if p.Class == nil {
		return
	}
	for i := range p.status.Versions {
		v := &p.status.Versions[i]
		if v.State == v1alpha1.VersionSuperseded && p.outlived(v) && p.Secret.Previous != v.Version && p.Secret.Current != v.Version {
			p.overlapEnded(v)
			p.end(v, v1alpha1.VersionRetired, "retired")
			if p.discarding() {
				p.noteEnder(v, p.Annotations[v1alpha1.AnnotationRequestedBy])
			}
		}
	}
}

// outlived tells whether a superseded version's time is over.
func (p *plan) outlived(v *v1alpha1.CredentialVersion) bool {
	if v.Superseded == nil {
		return false
	}
	if p.Spec.External != nil {
		return p.declaredOutlived(v)
	}
	if p.settings.Retire == v1alpha1.RetireImmediately || p.discarding() {
		return true
	}
	switch p.settings.Retire {
	case v1alpha1.RetireAfterOverlap:
		return p.due(v.Superseded.Add(p.settings.Overlap)) && (!p.unadopted() || p.due(v.Superseded.Add(p.settings.MaxOverlap)))
	default:
		return p.due(v.Superseded.Add(p.settings.MaxOverlap)) ||
			(p.due(v.Superseded.Add(p.settings.Overlap)) && !p.unadopted() && p.unused(v))
	}
}

// declaredOutlived tells whether the time of a declared value is over that came before
// the current one. Its holder takes it out, unless the object says itself that the overlap
// ends it; a class's default does not, for what is declared was chosen by somebody.
func (p *plan) declaredOutlived(v *v1alpha1.CredentialVersion) bool {
	r := p.Spec.Rotation
	return r != nil && r.Retire == v1alpha1.RetireAfterOverlap && p.due(v.Superseded.Add(p.settings.Overlap))
}

// overlapEnded warns of a version that ends for its longest overlap is over, and
// not for being unused, nor for every workload running with another: whoever still
// has it is refused from now on.
func (p *plan) overlapEnded(v *v1alpha1.CredentialVersion) {
	waits := p.unadopted()
	if p.settings.Retire == v1alpha1.RetireImmediately || p.discarding() ||
		!waits && (p.settings.Retire != v1alpha1.RetireWhenUnused || p.unused(v)) {
		return
	}
	known := "and not every server could tell whether it is still used"
	if p.Usage != nil {
		known = "and no server saw the new one used"
		if at, used := p.Usage.LastUsed[v.Version]; used {
			known = "and it was last used at " + at.UTC().Format(time.RFC3339)
		}
	}
	if waits {
		known += "; Adopted names the workloads that may run with it"
	}
	p.event(true, v1alpha1.ReasonOverlapEnded, "Retired version %d, for maxOverlap (%s) is over, %s", v.Version, duration.HumanDuration(p.settings.MaxOverlap), known)
}

// unused tells whether every server has seen the successor in use and v not at
// all for a while.
func (p *plan) unused(v *v1alpha1.CredentialVersion) bool {
	current := p.active()
	if p.Usage == nil || current == nil {
		p.wake(p.now.Add(lookAgain))
		return false
	}
	if _, inUse := p.Usage.LastUsed[current.Version]; !inUse {
		p.wake(p.now.Add(lookAgain))
		return false
	}
	last := p.Usage.Since
	if used, ok := p.Usage.LastUsed[v.Version]; ok && used.After(last) {
		last = used
	}
	quiet := p.Usage.Through.Sub(last)
	if quiet < quietBefore {
		p.wake(p.now.Add(max(quietBefore-quiet, lookSoon)))
		return false
	}
	return true
}

// trim forgets the oldest ended versions.
func (p *plan) trim() {
	kept, latest := 0, p.latest()
	p.status.Versions = slices.DeleteFunc(p.status.Versions, func(v v1alpha1.CredentialVersion) bool {
		if v.State.Live() || v.Version == latest || p.declares(&v) {
			return false
		}
		kept++
		return kept > max(p.settings.History, 1)
	})
	if p.active() == nil {
		p.status.NextRotation = ""
	}
	p.forgetRevocations()
}

// declares tells whether the spec still declares the value of a version. Such a
// one is remembered, so that an ended value does not come back by being there.
func (p *plan) declares(v *v1alpha1.CredentialVersion) bool {
	return slices.ContainsFunc(p.Declared, func(digests map[string]string) bool { return digests[v.Pepper] == v.Digest })
}

// contests tells whether the value of a version is that of an older credential.
func (p *plan) contests(v *v1alpha1.CredentialVersion) bool {
	for i, digests := range p.Declared {
		if i < len(p.Contested) && p.Contested[i] && digests[v.Pepper] == v.Digest {
			return true
		}
	}
	return false
}

func (p *plan) end(v *v1alpha1.CredentialVersion, state v1alpha1.VersionState, why string) {
	v.State = state
	v.Ended = stamp(p.now)
	if v.Reason != "" {
		why = v.Reason + "; " + why
	}
	v.Reason = clip(why, maxReason)
}

// noteEnder notes who had a version ended, which is seldom who asked for it.
func (p *plan) noteEnder(v *v1alpha1.CredentialVersion, actor string) {
	if p.endedBy == nil {
		p.endedBy = map[int64]string{}
	}
	p.endedBy[v.Version] = actor
}
