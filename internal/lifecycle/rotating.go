package lifecycle

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

// What makes versions: declaration, and rotation for whatever reason.

const (
	// maxLive bounds the versions accepted at a time. What rotates faster than
	// the overlap lets go waits.
	maxLive = v1alpha1.MaxLiveVersions
	// maxOrphans is how many versions more there may be that were lost before
	// delivery. Beyond them the oldest ends, though a paused controller might
	// still hold its value: the schema of status has room for 64.
	maxOrphans = 8
)

// examine finds what keeps anything new from being made.
func (p *plan) examine() {
	switch {
	case p.Class == nil:
		p.block(v1alpha1.ReasonClassNotFound, p.ClassProblem)
	case p.Conflict != "":
		p.block(v1alpha1.ReasonDigestConflict, fmt.Sprintf("%s declares the same value and is older: one value is one credential", p.Conflict))
	default:
		if errs := Validate(p.Kind, p.Name, p.Spec, p.Class, p.Rule); len(errs) > 0 {
			reason := v1alpha1.ReasonInvalidSpec
			if slices.ContainsFunc(errs, isCeiling) {
				reason = v1alpha1.ReasonNotAllowed
			}
			p.block(reason, errs.ToAggregate().Error())
		}
	}
	if size := p.sealedSize(&p.settings); p.blocked == nil && size > maxGranted {
		p.block(v1alpha1.ReasonInvalidSpec, fmt.Sprintf("labels, permissions, roles, attributes, networks and audiences have %d kB, "+
			"more than the %d kB that can be sealed: use fewer", size>>10, maxGranted>>10))
	}
	p.refused = p.blocked != nil
	if p.blocked == nil && p.flooded {
		p.block(v1alpha1.ReasonTooManyRevocations, fmt.Sprintf(
			"more than %d Revocations of the last hour select it: a new version is made once they are an hour old, or the settled ones deleted", maxNamed))
	}
	if p.blocked == nil && p.Pepper == "" {
		p.block(v1alpha1.ReasonKeysUnavailable, "the installation's pepper is not there yet: see the controller's log")
	}
}

func (p *plan) block(reason, message string) { p.blocked = &problem{reason, message} }

// declare gives each digest the holder declared a version of its own, and
// retires those that are no longer declared.
func (p *plan) declare() {
	if p.Spec.External == nil {
		return
	}
	if p.Conflict != "" {
		// What the older credential holds was never ours: forgotten rather than
		// ended, so that it can be had once the other is gone. What is ours stays
		// as it is.
		p.status.Versions = slices.DeleteFunc(p.status.Versions, func(v v1alpha1.CredentialVersion) bool { return v.State.Live() && p.contests(&v) })
		return
	}
	if p.blocked != nil {
		return
	}
	declared := map[int64]bool{}
	for slot, digests := range p.Declared {
		v := p.declaredVersion(digests)
		if v == nil {
			v = p.add(becauseDeclared, p.Annotations[v1alpha1.AnnotationRequestedBy])
			v.Pepper, v.Digest = p.Pepper, digests[p.Pepper]
			v.Prefix = p.declaredPrefix(slot)
		}
		declared[v.Version] = true
		if !v.State.Live() {
			continue // declared again after its end: it stays ended
		}
		if v.Pepper != p.Pepper {
			v.Pepper, v.Digest = p.Pepper, digests[p.Pepper]
		}
		switch {
		case slot == 0:
			v.State, v.Superseded = v1alpha1.VersionActive, nil
			p.status.CurrentVersion = v.Version
			if v.Activated == nil {
				v.Activated = stamp(p.now)
			}
		case v.State != v1alpha1.VersionSuperseded:
			v.State, v.Superseded = v1alpha1.VersionSuperseded, stampUp(p.now)
		}
	}
	for i := range p.status.Versions {
		if v := &p.status.Versions[i]; v.State.Live() && !declared[v.Version] {
			p.end(v, v1alpha1.VersionRetired, "no longer declared")
			p.noteEnder(v, p.Annotations[v1alpha1.AnnotationRequestedBy])
		}
	}
}

// declaredPrefix is the public part of a declared value, where its holder has said it.
// What is said of another value is not taken for it.
func (p *plan) declaredPrefix(slot int) string {
	prefix, of, ok := strings.Cut(p.Annotations[v1alpha1.AnnotationPrefix], " ")
	if !ok || len(of) < leastOfDigest || slot >= len(p.Spec.External.SHA256) || !strings.HasPrefix(p.Spec.External.SHA256[slot], of) || !credential.IsPrefix(prefix) {
		return ""
	}
	return prefix
}

// leastOfDigest is how many digits of a SHA-256 tell it from the others of a credential.
const leastOfDigest = 8

func (p *plan) declaredVersion(digests map[string]string) *v1alpha1.CredentialVersion {
	for i := range p.status.Versions {
		if v := &p.status.Versions[i]; v.Digest != "" && digests[v.Pepper] == v.Digest {
			return v
		}
	}
	return nil
}

// rotate orders a new version where one is due.
func (p *plan) rotate() {
	asked := request(p.Annotations, v1alpha1.AnnotationRotateRequestedAt)
	forced := requested(asked, p.status.Handled.Rotate)
	if p.Spec.External != nil {
		if forced {
			p.status.Handled.Rotate = asked // its holder rotates it, by declaring another digest
		}
		return
	}
	if p.blocked != nil {
		if p.replace != nil {
			p.event(true, v1alpha1.ReasonRequestRefused,
				"Not replaced after Revocation %s: put right what Ready says, and request a rotation", p.replace.revocation)
		}
		return
	}
	if p.foreign() && p.replace == nil {
		return // a value that cannot be delivered is not worth having
	}
	if pending := p.pending(); pending != nil {
		if p.deliverable(pending) {
			return // on its way
		}
		// Another controller may be about to deliver it: one that has just lost its
		// lead, or has it without our knowing. Two that take each other's versions
		// for lost would go on for ever.
		if age := p.now.Sub(pending.Created.Time); age >= 0 && age < lostAfter {
			p.wake(pending.Created.Add(lostAfter))
			return
		}
		// Whoever committed it may have delivered it before the Secret was taken away
		// or written over: what was read from it meanwhile is accepted for the overlap.
		if active := p.active(); active != nil && p.Secret.Current != active.Version && pending.Superseded == nil {
			pending.Superseded = stampUp(p.now)
		}
		p.dropOrphan()
		why, actor := cmp.Or(pending.Reason, "Rotated"), pending.Actor
		if pending.Activated != nil { // it was to be rolled back to, which whoever had it made did not ask for
			why, actor = p.requestReason(), p.Annotations[v1alpha1.AnnotationRequestedBy]
		}
		why, _, _ = strings.Cut(why, " (again")
		p.order(why+" (again: version "+strconv.FormatInt(pending.Version, 10)+" was lost before delivery)", actor)
		return
	}
	switch {
	case forced && p.over():
		p.status.Handled.Rotate = asked
		p.event(true, v1alpha1.ReasonRequestRefused, "Not rotated, for spec.expiresAt has passed: extend it first")
	case p.live() >= maxLive:
		// dueReason is asked for what it tells people as well.
		p.crowded = p.dueReason() != "" || p.replace != nil
		if forced {
			p.status.Handled.Rotate = asked
			p.event(true, v1alpha1.ReasonRequestRefused,
				"Not rotated, for %d versions are accepted already: discard those that came before the current one first", p.live())
		}
	case forced:
		p.status.Handled.Rotate = asked
		p.order(p.requestReason(), p.Annotations[v1alpha1.AnnotationRequestedBy])
	case p.replace != nil:
		p.order("Replaced after Revocation "+p.replace.revocation, p.replace.actor)
	case p.ended():
		return
	default:
		switch why := p.dueReason(); why {
		case "":
		case becauseCreated:
			p.order(why, p.Annotations[v1alpha1.AnnotationRequestedBy])
		default:
			p.order(why, "")
		}
	}
}

// live counts the versions that are accepted.
func (p *plan) live() int {
	n := 0
	for _, v := range p.status.Versions {
		if v.State.Live() {
			n++
		}
	}
	return n
}

// lostAfter is how old a Pending version is that counts as lost, when its value is
// not to be had.
const lostAfter = 4 * time.Second

// dropOrphan ends the oldest version that was lost before delivery, where there
// are too many of them.
func (p *plan) dropOrphan() {
	if p.live() < maxLive+maxOrphans {
		return
	}
	for i := len(p.status.Versions) - 1; i >= 0; i-- {
		if v := &p.status.Versions[i]; v.State == v1alpha1.VersionPending {
			p.end(v, v1alpha1.VersionRetired, "never delivered")
			return
		}
	}
}

// ended tells whether the credential is over, so that only a request revives it.
func (p *plan) ended() bool {
	if p.over() {
		return true
	}
	if r := p.status.Revocation; r != nil && r.ThroughVersion >= p.latest() {
		return true
	}
	last := p.version(p.latest())
	return last != nil && last.State == v1alpha1.VersionExpired && p.active() == nil && (p.Class == nil || !p.settings.Revives(last))
}

// Revives tells whether a credential whose last version has expired gets another one by
// itself: where it is rotated by itself, or was ended by a spec.expiresAt that has been put
// off since.
func (s *Settings) Revives(last *v1alpha1.CredentialVersion) bool {
	// By when it ended and not by what time it is: a clock that jumps revives nothing.
	early := last.Expires == nil || last.Ended != nil && last.Ended.Before(last.Expires)
	return early || s.RotateEvery > 0 || s.Calendar.schedule != nil
}

// over tells whether spec.expiresAt has passed.
func (p *plan) over() bool {
	return !p.settings.ExpiresAt.IsZero() && !p.now.Before(p.settings.ExpiresAt)
}

func (p *plan) lastState() v1alpha1.VersionState {
	if v := p.version(p.latest()); v != nil {
		return v.State
	}
	return ""
}

// becauseCreated is why there is a first version: whoever made the credential asked for it.
const becauseCreated = "Created"

// becauseDeclared is why there is a version that was made elsewhere.
const becauseDeclared = "Declared"

// dueReason is why a version is due though nobody asked; empty where none is.
func (p *plan) dueReason() string {
	active := p.active()
	switch {
	case active == nil && p.latest() == 0:
		return becauseCreated
	case active == nil:
		return "Replaced, for no version was left"
	case !p.Secret.Exists:
		return "Replaced, for the Secret was gone"
	case (p.Secret.Ours || p.adopting()) && p.Secret.Current != active.Version:
		return "Replaced, for the Secret's value was not ours"
	}
	at, why := p.nextRotation(active)
	p.status.NextRotation = ""
	if at.IsZero() || p.settings.Suspend {
		return ""
	}
	// Where it is overdue, the window that counts is one from now on; what status
	// shows does not move with the clock.
	opening := p.settings.Calendar.Opening(later(at, p.now))
	if opening.IsZero() {
		return "" // no window ever opens again
	}
	if opening.After(p.now) {
		at = opening
	}
	p.status.NextRotation = at.UTC().Format(time.RFC3339)
	if !p.due(opening) {
		return ""
	}
	return why
}

// nextRotation is when the active version is to be replaced, windows aside, and
// why. Zero is never.
func (p *plan) nextRotation(active *v1alpha1.CredentialVersion) (time.Time, string) {
	var (
		at    time.Time
		why   string
		since = active.Created.Time // what age counts from
	)
	if active.Activated != nil && active.Activated.After(since) {
		since = active.Activated.Time // it was rolled back to
	}
	consider := func(t time.Time, reason string) {
		if !t.IsZero() && (at.IsZero() || t.Before(at)) {
			at, why = t, reason
		}
	}
	if every := p.settings.RotateEvery; every > 0 {
		consider(since.Add(every-jitter(p.UID, active.Version, every)), "Age")
		// Before it expires, unless the credential itself ends by then.
		if end := p.renewable(active); !end.IsZero() {
			consider(since.Add(end.Sub(since)/3*2), "Expiring") // divided first: a life of centuries overflows
		}
	}
	if every := p.settings.HighUsage.Every; p.highlyUsed(active) {
		consider(since.Add(every-jitter(p.UID, active.Version, every)), "HighUsage")
	}
	consider(p.settings.Calendar.Scheduled(since), "Schedule")
	return at, why
}

// renewable is the end of a version that a new one would outlive; zero where
// none would.
func (p *plan) renewable(v *v1alpha1.CredentialVersion) time.Time {
	end := expiry(v)
	if p.settings.TTL > 0 {
		end = earliest(end, v.Created.Add(p.settings.TTL))
	}
	if end.IsZero() || (!p.settings.ExpiresAt.IsZero() && !end.Before(p.settings.ExpiresAt)) {
		return time.Time{}
	}
	return end
}

// jitter spreads the rotations of credentials that were made together over the
// last twentieth of their age, at most six hours. It is the same every time it
// is asked for.
func jitter(uid string, version int64, every time.Duration) time.Duration {
	span := min(every/20, 6*time.Hour)
	if span <= 0 {
		return 0
	}
	h := fnv.New64a()
	fmt.Fprintf(h, "%s/%d", uid, version)
	return time.Duration(h.Sum64() % uint64(span)) // span is positive, and the remainder smaller than it
}

// order puts a new version into the status and has it minted.
func (p *plan) order(reason, actor string) {
	if p.blocked != nil || p.Spec.External != nil || p.Class == nil {
		return
	}
	v := p.add(reason, actor)
	p.mint = &Mint{Version: v.Version, Adopt: p.adopting() && p.active() == nil}
}

func (p *plan) add(reason, actor string) *v1alpha1.CredentialVersion {
	number := p.latest() + 1
	for p.Spec.Revoked != nil && slices.Contains(p.Spec.Revoked.Versions, number) {
		number++ // it would be revoked as it is made
	}
	v := v1alpha1.CredentialVersion{
		Version: number, State: v1alpha1.VersionPending, Created: *stamp(p.now),
		Reason: clip(reason, maxReason/2), Actor: clip(actor, maxActor),
	}
	// spec.expiresAt is not put in here, for it can be extended: the controller
	// and the servers add it where they ask for the end.
	if p.settings.TTL > 0 {
		v.Expires = stamp(v.Created.Add(p.settings.TTL))
	}
	p.status.Versions = slices.Insert(p.status.Versions, 0, v)
	return &p.status.Versions[0]
}
