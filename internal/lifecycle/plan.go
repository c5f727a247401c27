package lifecycle

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

// quietBefore is how long a superseded version must have been unused before
// WhenUnused retires it.
const quietBefore = time.Hour

// lookAgain is how often a version that may be retired on proof is looked at,
// while there is none.
const lookAgain = 15 * time.Minute

// lookSoon is the least time to wait for proof: it comes in rounds.
const lookSoon = time.Minute

const (
	// maxLive bounds the versions accepted at a time. What rotates faster than
	// the overlap lets go waits.
	maxLive = 32
	// maxOrphans is how many versions more there may be that were lost before
	// delivery. Beyond them the oldest ends, though a paused controller might
	// still hold its value: the schema of status has room for 64.
	maxOrphans = 8
)

// Plan decides what is to be done about a credential now.
//
// The steps run in this order, each seeing what the ones before it decided.
// What ends versions comes first and needs no valid spec: a revocation waits
// for nothing.
func Plan(o *Observed, now time.Time) Decision {
	if o.Deleting {
		return Decision{Status: o.Status}
	}
	p := &plan{Observed: o, now: now, status: o.Status.DeepCopy()}
	if o.Class != nil {
		p.settings = Effective(o.Spec, o.Class)
	}
	for _, step := range []func(){
		p.baseline,
		p.revoke,
		p.expire,
		p.promote,
		p.rollBack,
		p.retire,
		p.discard,
		p.examine,
		p.declare,
		p.rotate,
		p.deliver,
		p.trim,
		p.report,
	} {
		step()
	}
	return p.decision()
}

type plan struct {
	*Observed
	now      time.Time
	settings Settings
	status   *v1alpha1.CredentialStatus

	// blocked is why nothing may be minted, as reason and message for Ready.
	blocked *problem
	refused bool // the spec, not the surroundings, is what blocks
	replace *replacement
	mint    *Mint
	secret  SecretWant
	await   bool
	next    time.Time
	events  []Event
	remove  bool
}

type problem struct{ reason, message string }

// replacement is a new version that a Revocation wants in place of those it took.
type replacement struct{ revocation, actor string }

func (p *plan) decision() Decision {
	return Decision{
		Status: p.status, Mint: p.mint, Secret: p.secret, Refused: p.refused, AwaitPropagation: p.await,
		Next: p.next, Events: p.events, Delete: p.remove,
	}
}

// wake asks to be run again at t, if that comes before the other reasons to.
func (p *plan) wake(t time.Time) {
	if !t.IsZero() && (p.next.IsZero() || t.Before(p.next)) {
		p.next = t
	}
}

// due tells whether t has come, and asks to be woken then if not. A process
// that cannot trust its clock takes nothing for due.
func (p *plan) due(t time.Time) bool {
	if t.IsZero() || p.ClockSkewed {
		return false
	}
	if !p.now.Before(t) {
		return true
	}
	p.wake(t)
	return false
}

// baseline takes what a new credential carries as handled: a manifest that was
// rotated by annotation long ago does not rotate when it is applied to a new
// cluster.
func (p *plan) baseline() {
	if r := p.status.Revocation; r != nil && r.At.IsZero() {
		r.At = *stamp(p.now) // restored from the record, which does not know when
	}
	if p.status.Handled != nil {
		return
	}
	p.status.Handled = &v1alpha1.HandledRequests{
		Rotate:   request(p.Annotations, v1alpha1.AnnotationRotateRequestedAt),
		Rollback: request(p.Annotations, v1alpha1.AnnotationRollbackRequestedAt),
		Discard:  request(p.Annotations, v1alpha1.AnnotationDiscardRequestedAt),
	}
}

// request reads a request annotation. One that cannot be read asks for nothing;
// admission has refused it.
func request(annotations map[string]string, key string) *metav1.MicroTime {
	t, err := time.Parse(time.RFC3339Nano, annotations[key])
	if err != nil {
		return nil
	}
	m := metav1.NewMicroTime(t.UTC().Truncate(time.Microsecond))
	return &m
}

// requested tells whether the request was made later than the one handled.
func requested(asked, handled *metav1.MicroTime) bool {
	return asked != nil && (handled == nil || asked.After(handled.Time))
}

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
		if slices.Contains(p.status.SettledRevocations, r.UID) {
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
			p.event(true, v1alpha1.ReasonRevoked, "Revoked version %d: %s", v.Version, r.Reason)
		}
	}
}

func (p *plan) revokeAll(reason, actor string) {
	// What is declared and could not be accepted yet must not be later, for being
	// new then.
	for _, digests := range p.Declared {
		if p.Pepper != "" && p.declaredVersion(digests) == nil {
			v := p.add("Declared", p.Annotations[v1alpha1.AnnotationRequestedBy])
			v.Pepper, v.Digest = p.Pepper, digests[p.Pepper]
		}
	}
	for i := range p.status.Versions {
		if v := &p.status.Versions[i]; v.State.Live() {
			p.end(v, v1alpha1.VersionRevoked, "revoked: "+reason)
		}
	}
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

// promote makes the version that the Secret carries the active one. That the
// Secret carries it is what decides, whoever wrote it there.
func (p *plan) promote() {
	delivered := p.version(p.Secret.Current)
	if delivered == nil || delivered.State != v1alpha1.VersionPending {
		return
	}
	previous := p.active()
	delivered.State = v1alpha1.VersionActive
	delivered.Activated = stamp(p.now)
	p.status.CurrentVersion = delivered.Version
	if previous == nil {
		p.event(false, v1alpha1.ReasonMinted, "Minted version %d into Secret %s", delivered.Version, p.secretName())
	} else {
		if p.settings.Retire == v1alpha1.RetireImmediately {
			p.end(previous, v1alpha1.VersionRetired, "retired immediately")
		} else {
			previous.State = v1alpha1.VersionSuperseded
			previous.Superseded = stampUp(p.now)
		}
		reason, what := v1alpha1.ReasonRotated, "Rotated"
		if delivered.Version < previous.Version {
			reason, what, delivered.Superseded = v1alpha1.ReasonRolledBack, "Rolled back", nil
		}
		p.event(false, reason, "%s from version %d to %d in Secret %s", what, previous.Version, delivered.Version, p.secretName())
	}
	// Orphans: committed before this one, by a process that can no longer
	// deliver them, since this delivery has changed the Secret.
	for i := range p.status.Versions {
		v := &p.status.Versions[i]
		switch {
		case v.State != v1alpha1.VersionPending || v.Version >= delivered.Version:
		case v.Superseded != nil: // it was to be rolled back to, and has been in the Secret: its overlap goes on
			v.State = v1alpha1.VersionSuperseded
		default:
			p.end(v, v1alpha1.VersionRetired, "never delivered")
		}
	}
}

// rollBack makes the previous version the one to deliver, where that was asked
// for. The intent is committed before the Secret is written: the version becomes
// Pending again, and its value is the one the Secret carries as previous. Every
// server accepts it already, so nothing is waited for.
func (p *plan) rollBack() {
	asked := request(p.Annotations, v1alpha1.AnnotationRollbackRequestedAt)
	if !requested(asked, p.status.Handled.Rollback) || p.pending() != nil {
		return
	}
	p.status.Handled.Rollback = asked
	previous := p.version(p.Secret.Previous)
	if previous == nil || previous.State != v1alpha1.VersionSuperseded || p.active() == nil {
		p.event(true, v1alpha1.ReasonRequestRefused, "Not rolled back, for no previous version is accepted any more: request a rotation instead")
		return
	}
	previous.State = v1alpha1.VersionPending
}

// discard tells, once it is done, that every superseded version was ended as
// asked. See outlived.
func (p *plan) discard() {
	asked := request(p.Annotations, v1alpha1.AnnotationDiscardRequestedAt)
	if requested(asked, p.status.Handled.Discard) && p.latestIn(v1alpha1.VersionSuperseded) == nil {
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
			p.end(v, v1alpha1.VersionRetired, "retired")
		}
	}
}

// outlived tells whether a superseded version's time is over.
func (p *plan) outlived(v *v1alpha1.CredentialVersion) bool {
	if v.Superseded == nil || p.Spec.External != nil {
		return false
	}
	if p.settings.Retire == v1alpha1.RetireImmediately || p.discarding() {
		return true
	}
	switch p.settings.Retire {
	case v1alpha1.RetireAfterOverlap:
		return p.due(v.Superseded.Add(p.settings.Overlap))
	default:
		return p.due(v.Superseded.Add(p.settings.MaxOverlap)) || (p.due(v.Superseded.Add(p.settings.Overlap)) && p.unused(v))
	}
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
	p.refused = p.blocked != nil
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
			v = p.add("Declared", p.Annotations[v1alpha1.AnnotationRequestedBy])
			v.Pepper, v.Digest = p.Pepper, digests[p.Pepper]
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
		}
	}
}

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
		p.dropOrphan()
		why, _, _ := strings.Cut(cmp.Or(pending.Reason, "Rotated"), " (again")
		p.order(why+" (again: version "+strconv.FormatInt(pending.Version, 10)+" was lost before delivery)", pending.Actor)
		return
	}
	switch {
	case forced && p.over():
		p.status.Handled.Rotate = asked
		p.event(true, v1alpha1.ReasonRequestRefused, "Not rotated, for spec.expiresAt has passed: extend it first")
	case p.live() >= maxLive:
		if forced {
			p.status.Handled.Rotate = asked
			p.event(true, v1alpha1.ReasonRequestRefused,
				"Not rotated, for %d versions are accepted already: discard those that came before the current one first", p.live())
		}
	case forced:
		p.status.Handled.Rotate = asked
		p.order(cmp.Or(p.Annotations[v1alpha1.AnnotationReason], "Requested"), p.Annotations[v1alpha1.AnnotationRequestedBy])
	case p.replace != nil:
		p.order("Replaced after Revocation "+p.replace.revocation, p.replace.actor)
	case p.ended():
		return
	default:
		if why := p.dueReason(); why != "" {
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
	// Never rotated by itself, and expired.
	return p.latest() > 0 && p.active() == nil && p.settings.RotateEvery == 0 && p.lastState() == v1alpha1.VersionExpired
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

// dueReason is why a version is due though nobody asked; empty where none is.
func (p *plan) dueReason() string {
	active := p.active()
	switch {
	case active == nil && p.latest() == 0:
		return "Created"
	case active == nil:
		return "Replaced, for no version was left"
	case !p.Secret.Exists:
		return "Replaced, for the Secret was gone"
	case p.Secret.Ours && p.Secret.Current != active.Version:
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
			consider(since.Add(end.Sub(since)*2/3), "Expiring")
		}
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

// deliver says what the Secret should carry.
func (p *plan) deliver() {
	if p.Spec.External != nil || p.Class == nil {
		return
	}
	p.status.SecretName = p.secretName()
	if p.foreign() {
		return
	}
	active := p.active()
	if pending := p.pending(); pending != nil {
		p.deliverPending(pending, active)
		return
	}
	switch {
	case active != nil && p.Secret.Current == active.Version:
		p.secret = SecretWant{Action: SecretWrite, Current: active.Version}
		if v := p.version(p.Secret.Previous); v != nil && v.State == v1alpha1.VersionSuperseded && !p.outlived(v) {
			p.secret.Previous = v.Version
		}
	case active == nil && p.Secret.Ours:
		// Revoked or expired: what is dead need not lie about.
		p.secret = SecretWant{Action: SecretDelete}
	}
}

func (p *plan) deliverPending(pending, active *v1alpha1.CredentialVersion) {
	if p.mint != nil {
		return // not committed yet
	}
	if !p.deliverable(pending) {
		if p.blocked != nil && active == nil && p.Secret.Ours {
			p.secret = SecretWant{Action: SecretDelete} // nothing will replace what is dead in it
		}
		return
	}
	if pending.Version == p.Held && !p.Propagation.Accepted {
		p.await = true
		return
	}
	p.secret = SecretWant{Action: SecretWrite, Current: pending.Version}
	if active != nil && p.Secret.Current == active.Version && p.settings.Retire != v1alpha1.RetireImmediately {
		p.secret.Previous = active.Version
	}
}

// deliverable tells whether the value of a pending version is to be had: in this
// process, or, of one that is rolled back to, in the Secret.
func (p *plan) deliverable(pending *v1alpha1.CredentialVersion) bool {
	return pending.Version == p.Held || (p.Secret.Ours && p.Secret.Previous == pending.Version)
}

// foreign tells whether the Secret is somebody else's and stays so.
func (p *plan) foreign() bool { return p.Secret.Exists && !p.Secret.Ours && !p.adopting() }

func (p *plan) adopting() bool {
	return p.Secret.Exists && !p.Secret.Ours && p.Secret.Adoptable && p.Rule != nil && p.Rule.Adoption &&
		p.Spec.Secret != nil && p.Spec.Secret.ConflictPolicy == v1alpha1.ConflictAdopt
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

// maxSettled is how many settled Revocations are remembered beyond those that
// still exist. A server that has yet to see one deleted must not take it for
// unsettled.
const maxSettled = 64

func (p *plan) forgetRevocations() {
	excess := len(p.status.SettledRevocations) - maxSettled
	if excess <= 0 {
		return
	}
	p.status.SettledRevocations = slices.DeleteFunc(p.status.SettledRevocations, func(uid string) bool {
		exists := slices.ContainsFunc(p.Revocations, func(r Revocation) bool { return r.UID == uid })
		if exists || excess == 0 {
			return false
		}
		excess--
		return true
	})
}

// report writes the conditions and what else people read.
func (p *plan) report() {
	p.status.ObservedGeneration = p.Generation
	active := p.active()
	p.status.CurrentVersion, p.status.Expires = 0, ""
	if active != nil {
		p.status.CurrentVersion = active.Version
		p.status.Expires = "Never"
		if end := earliest(expiry(active), p.settings.ExpiresAt); !end.IsZero() {
			p.status.Expires = end.UTC().Format(time.RFC3339)
		}
	}
	p.lastUse()
	p.removeExpired(active)
	if p.Spec.External == nil {
		p.condition(v1alpha1.ConditionSecretDelivered, p.deliveredCondition(active))
	}
	p.condition(v1alpha1.ConditionPropagated, p.propagatedCondition())
	p.condition(v1alpha1.ConditionReady, p.readyCondition(active))
}

// lastUse shows the day of the last use. To the day, so that use costs no more
// than one write a day.
func (p *plan) lastUse() {
	if p.Usage == nil {
		return
	}
	for _, at := range p.Usage.LastUsed {
		if day := at.UTC().Format(time.DateOnly); day > p.status.LastUsed {
			p.status.LastUsed = day
		}
	}
}

// removeExpired deletes a credential that has been over for as long as its
// class says, where the class says so.
func (p *plan) removeExpired(active *v1alpha1.CredentialVersion) {
	if p.Class == nil || p.Class.Expired.Action != "Delete" || active != nil || p.lastState() != v1alpha1.VersionExpired {
		return
	}
	last := p.version(p.latest())
	if last.Ended != nil && p.ended() {
		p.remove = p.due(last.Ended.Add(p.Class.Expired.After.Or(30 * 24 * time.Hour)))
	}
}

type verdict struct {
	ok              bool
	reason, message string
}

func (p *plan) deliveredCondition(active *v1alpha1.CredentialVersion) verdict {
	switch {
	case p.foreign():
		return verdict{false, v1alpha1.ReasonSecretConflict, fmt.Sprintf(
			"Secret %s exists and is not ours: delete it, choose another spec.secret.name, or have it adopted where the class allows it", p.secretName())}
	case p.Secret.Problem != "" && p.secret.Action != SecretKeep:
		return verdict{false, v1alpha1.ReasonSecretNotWritten, p.Secret.Problem}
	case active != nil && p.Secret.Current == active.Version:
		return verdict{true, v1alpha1.ReasonDelivered, fmt.Sprintf("Secret %s carries version %d", p.secretName(), active.Version)}
	default:
		return verdict{false, v1alpha1.ReasonMinting, fmt.Sprintf("Secret %s does not carry the value yet", p.secretName())}
	}
}

func (p *plan) propagatedCondition() verdict {
	pending := p.pending()
	switch {
	case pending != nil && len(p.Propagation.Lagging) > 0:
		return verdict{false, v1alpha1.ReasonServerLagging, fmt.Sprintf(
			"version %d waits for %s, which hold a Lease but do not accept it yet", pending.Version, list(p.Propagation.Lagging))}
	case pending != nil:
		return verdict{false, v1alpha1.ReasonPropagating, fmt.Sprintf("version %d is on its way to the servers", pending.Version)}
	default:
		return verdict{true, v1alpha1.ReasonPropagated, "every server accepted the current version before it was delivered"}
	}
}

func (p *plan) readyCondition(active *v1alpha1.CredentialVersion) verdict {
	switch {
	case active == nil && p.Conflict == "" && p.status.Revocation != nil && p.status.Revocation.ThroughVersion >= p.latest():
		return verdict{false, v1alpha1.ReasonRevoked, "revoked: " + p.status.Revocation.Reason + "; " + p.revival()}
	case p.blocked != nil:
		return verdict{false, p.blocked.reason, p.blocked.message}
	case active == nil && p.Spec.External != nil:
		return verdict{false, cmp.Or(string(p.lastState()), v1alpha1.ReasonMinting), "what is declared has ended, and does not come back; " + p.revival()}
	case active == nil && p.pending() == nil && p.ended():
		return verdict{false, v1alpha1.ReasonExpired, "expired; extend spec.expiresAt or request a rotation to make it usable again"}
	case p.foreign():
		return verdict{false, v1alpha1.ReasonSecretConflict, fmt.Sprintf("Secret %s exists and is not ours", p.secretName())}
	case active == nil:
		return verdict{false, v1alpha1.ReasonMinting, "the first value is being made"}
	case p.Spec.External != nil:
		return verdict{true, v1alpha1.ReasonDeclared, "its holder keeps the value; servers accept it by its digest"}
	case p.Secret.Current != active.Version:
		return verdict{false, v1alpha1.ReasonSecretNotWritten, "the Secret does not carry the current value; a new one is being made"}
	case p.ClockSkewed:
		return verdict{true, v1alpha1.ReasonClockSkewed, "usable, but the controller's clock is wrong: nothing is rotated or retired by the time"}
	default:
		return verdict{true, v1alpha1.ReasonReady, fmt.Sprintf("version %d is in Secret %s", active.Version, p.secretName())}
	}
}

// revival says what makes a credential usable again that is over.
func (p *plan) revival() string {
	if p.Spec.External != nil {
		return "declare another value to make it usable again"
	}
	return "request a rotation to make it usable again"
}

func (p *plan) condition(kind string, v verdict) {
	status := metav1.ConditionFalse
	if v.ok {
		status = metav1.ConditionTrue
	}
	message := v.message
	if len(message) > maxMessage {
		message = clip(message, maxMessage-len("...")) + "..."
	}
	meta.SetStatusCondition(&p.status.Conditions, metav1.Condition{
		Type: kind, Status: status, Reason: v.reason, Message: message,
		ObservedGeneration: p.Generation, LastTransitionTime: *stamp(p.now),
	})
}

func (p *plan) event(warning bool, reason, format string, args ...any) {
	p.events = append(p.events, Event{Reason: reason, Message: fmt.Sprintf(format, args...), Warning: warning})
}

func (p *plan) end(v *v1alpha1.CredentialVersion, state v1alpha1.VersionState, why string) {
	v.State = state
	v.Ended = stamp(p.now)
	if v.Reason != "" {
		why = v.Reason + "; " + why
	}
	v.Reason = clip(why, maxReason)
}

// Lengths that the schema of status has room for. Admission keeps what people
// write within them, and may be gone.
const (
	maxReason  = 2200
	maxActor   = 512
	maxMessage = 2048
)

// clip cuts a text to so many bytes, between two characters.
func clip(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "")
}

func (p *plan) secretName() string { return SecretName(p.Name, p.Spec) }

func (p *plan) version(number int64) *v1alpha1.CredentialVersion {
	for i := range p.status.Versions {
		if v := &p.status.Versions[i]; v.Version == number {
			return v
		}
	}
	return nil
}

// latest is the highest number ever given: the latest version is never
// forgotten.
func (p *plan) latest() int64 {
	var n int64
	for _, v := range p.status.Versions {
		n = max(n, v.Version)
	}
	if p.Record != nil {
		n = max(n, p.Record.RevokedThrough)
		for _, revoked := range p.Record.RevokedVersions {
			n = max(n, revoked)
		}
	}
	return n
}

// pending is the latest version not delivered yet.
func (p *plan) pending() *v1alpha1.CredentialVersion {
	return p.latestIn(v1alpha1.VersionPending)
}

func (p *plan) active() *v1alpha1.CredentialVersion { return p.latestIn(v1alpha1.VersionActive) }

func (p *plan) latestIn(state v1alpha1.VersionState) *v1alpha1.CredentialVersion {
	var found *v1alpha1.CredentialVersion
	for i := range p.status.Versions {
		if v := &p.status.Versions[i]; v.State == state && (found == nil || v.Version > found.Version) {
			found = v
		}
	}
	return found
}

func expiry(v *v1alpha1.CredentialVersion) time.Time {
	if v.Expires == nil {
		return time.Time{}
	}
	return v.Expires.Time
}

// earliest is the earlier of two times, either of which may be zero for "never".
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || (!b.IsZero() && b.Before(a)) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// stamp is a time as status keeps it, to the second.
func stamp(t time.Time) *metav1.Time {
	m := metav1.NewTime(t.UTC().Truncate(time.Second))
	return &m
}

// stampUp rounds up, where rounding down would shorten a promise.
func stampUp(t time.Time) *metav1.Time {
	return stamp(t.Add(time.Second - time.Nanosecond))
}
