package lifecycle

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// lookSoon is the least time to wait for proof: it comes in rounds.
const lookSoon = time.Minute

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
		p.expectAdoption,
		p.promote,
		p.adopt,
		p.rollBack,
		p.retire,
		p.discard,
		p.examine,
		p.declare,
		p.rotate,
		p.deliver,
		p.chronicle,
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
	// promoted: a version became the active one just now.
	promoted bool
	// endedBy is who had versions ended, by their numbers. One that is not there ended by
	// itself.
	endedBy map[int64]string
	// adoption is how far the workloads are, where that was looked at.
	adoption *adoption

	// crowded: a rotation waits, for as many versions are accepted as may be.
	crowded bool
	// flooded: more Revocations select the credential than its record can name.
	flooded       bool
	settledBefore int64 // see credential.Record
	mark          UsageMark
	askUsage      bool
}

type problem struct{ reason, message string }

// replacement is a new version that a Revocation wants in place of those it took.
type replacement struct{ revocation, actor string }

func (p *plan) decision() Decision {
	return Decision{
		Status: p.status, Mint: p.mint, Secret: p.secret, Refused: p.refused, AwaitPropagation: p.await,
		Next: p.next, Events: p.events, Delete: p.remove, Mark: p.mark, AskUsage: p.askUsage, Restarts: p.adoption.wishesOf(), SettledBefore: p.settledBefore,
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
	p.status.Handled = p.standingRequests()
}

// standingRequests are the requests as they stand now, or what was handled where
// that is later.
func (p *plan) standingRequests() *v1alpha1.HandledRequests {
	before := p.status.Handled
	if before == nil {
		before = &v1alpha1.HandledRequests{}
	}
	standing := func(annotation string, handled *metav1.MicroTime) *metav1.MicroTime {
		if asked := request(p.Annotations, annotation); requested(asked, handled) {
			return asked
		}
		return handled
	}
	return &v1alpha1.HandledRequests{
		Rotate:   standing(v1alpha1.AnnotationRotateRequestedAt, before.Rotate),
		Rollback: standing(v1alpha1.AnnotationRollbackRequestedAt, before.Rollback),
		Discard:  standing(v1alpha1.AnnotationDiscardRequestedAt, before.Discard),
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
