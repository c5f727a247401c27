package lifecycle

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// MaxTransitions is how many transitions status has room for.
const MaxTransitions = 64

// Types of transitions, beside those that are reasons of events as well: Minted, Rotated,
// RolledBack, Revoked and Expired.
const (
	// TransitionDelivered: the first version is in the Secret, or is declared, and accepted.
	TransitionDelivered = "Delivered"
	// TransitionRetired: a version that was superseded, or never delivered, has ended.
	TransitionRetired = "Retired"
	// TransitionForgotten: a declared version was given up, for it is another credential's.
	TransitionForgotten = "Forgotten"
	// TransitionLost stands for so many transitions, its version, that found no room.
	TransitionLost = "Lost"
)

// chronicle notes every change of state of a version that the audit log is to hold. It
// goes by what the versions were and are, so that nothing changes one unnoticed.
func (p *plan) chronicle() {
	was := make(map[int64]v1alpha1.CredentialVersion, len(p.Observed.Status.Versions))
	for _, v := range p.Observed.Status.Versions {
		was[v.Version] = v
	}
	rotated := slices.ContainsFunc(p.Observed.Status.Versions, func(v v1alpha1.CredentialVersion) bool { return v.Activated != nil })
	versions := slices.Clone(p.status.Versions)
	slices.SortFunc(versions, func(a, b v1alpha1.CredentialVersion) int { return int(min(max(a.Version-b.Version, -1), 1)) })
	for i := range versions {
		v := &versions[i]
		before, known := was[v.Version]
		delete(was, v.Version)
		if !known {
			p.transition(v1alpha1.ReasonMinted, v, v.Actor)
		}
		if before.State == v.State {
			continue
		}
		switch v.State {
		case v1alpha1.VersionActive:
			what, activated := activation(known, before, rotated), *v
			if what == v1alpha1.ReasonRolledBack { // a request of its own
				activated.Reason, activated.Actor = p.requestReason(), p.Annotations[v1alpha1.AnnotationRequestedBy]
			}
			p.transition(what, &activated, activated.Actor)
		case v1alpha1.VersionRevoked:
			p.transition(v1alpha1.ReasonRevoked, v, p.endedBy[v.Version])
		case v1alpha1.VersionExpired:
			p.transition(v1alpha1.ReasonExpired, v, "")
		case v1alpha1.VersionRetired:
			p.transition(TransitionRetired, v, p.endedBy[v.Version])
		}
	}
	for _, v := range p.Observed.Status.Versions {
		if _, gone := was[v.Version]; gone && v.State.Live() {
			p.transition(TransitionForgotten, &v, "")
		}
	}
	p.change()
	p.makeRoom()
}

// activation is what it is called that a version becomes the active one.
func activation(known bool, before v1alpha1.CredentialVersion, rotated bool) string {
	switch {
	case known && before.Activated != nil:
		return v1alpha1.ReasonRolledBack
	case rotated:
		return v1alpha1.ReasonRotated
	}
	return TransitionDelivered
}

// requestReason is why somebody asked, as far as they say.
func (p *plan) requestReason() string {
	if p.Spec.External != nil {
		return becauseDeclared
	}
	return cmp.Or(p.Annotations[v1alpha1.AnnotationReason], "Requested")
}

// maxTransitionReason is what the API allows, in bytes. A version's own reason may be longer:
// it tells of its beginning and of its end.
const maxTransitionReason = 1024

// transition notes what became of a version, and who wanted that; nobody where it came by itself.
func (p *plan) transition(what string, v *v1alpha1.CredentialVersion, actor string) {
	p.status.Transitions = append(p.status.Transitions, v1alpha1.Transition{
		ID: transitionID(p.UID, what, v.Version, p.Observed.Status.Epoch, len(p.status.Transitions), p.now), Type: what, Version: v.Version, At: *stamp(p.now),
		Reason: clip(v.Reason, maxTransitionReason), Actor: clip(actor, maxActor),
	})
}

// makeRoom has one entry stand for the oldest, where there are more than status has room
// for: that a change is not stored yet must not keep it from being made.
func (p *plan) makeRoom() {
	all := p.status.Transitions
	over := len(all) - MaxTransitions
	if over <= 0 {
		return
	}
	over++ // for the entry itself
	lost := int64(0)
	for _, t := range all[:over] {
		if t.Type == TransitionLost {
			lost += t.Version
		} else {
			lost++
		}
	}
	entry := v1alpha1.Transition{
		ID: transitionID(p.UID, TransitionLost, lost, p.Observed.Status.Epoch, 0, p.now), Type: TransitionLost, Version: lost, At: *stamp(p.now),
		Reason: strconv.FormatInt(lost, 10) + " earlier changes were not stored in the audit log in time: see the servers' database",
	}
	p.status.Transitions = append([]v1alpha1.Transition{entry}, all[over:]...)
}

// transitionID is fixed once the transition is committed: of two that are worked out from
// the same status one at most is. It is a UUID of version 8 (RFC 9562, section 5.8): the
// milliseconds, the place among the others, and 62 bits of a hash; so that those of one
// second, which is as exact as status is, sort as they came.
func transitionID(uid, what string, version, epoch int64, place int, now time.Time) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d:%s %d:%s %d %d %d", len(uid), uid, len(what), what, version, epoch, now.UnixNano()))
	id := sum[:16]
	var millis [8]byte
	binary.BigEndian.PutUint64(millis[:], uint64(max(now.UnixMilli(), 0)))
	copy(id[:6], millis[2:])
	binary.BigEndian.PutUint16(id[6:8], uint16(place)&0x0fff)
	id[6] |= 0x80
	id[8] = id[8]&0x3f | 0x80
	text := hex.EncodeToString(id)
	return text[:8] + "-" + text[8:12] + "-" + text[12:16] + "-" + text[16:20] + "-" + text[20:]
}
