package lifecycle

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// What people read: conditions, events and summaries.

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
	p.reportUsage()
	p.removeExpired(active)
	if p.Spec.External == nil {
		p.condition(v1alpha1.ConditionSecretDelivered, p.deliveredCondition(active))
	}
	p.condition(v1alpha1.ConditionPropagated, p.propagatedCondition())
	p.reportAdoption(active)
	ready := p.readyCondition(active)
	if before := meta.FindStatusCondition(p.status.Conditions, v1alpha1.ConditionReady); p.crowded && ready.ok && (before == nil || before.Reason != ready.reason) {
		p.event(true, v1alpha1.ReasonTooManyVersions, "%s", ready.message)
	}
	p.condition(v1alpha1.ConditionReady, ready)
	p.warn(active)
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
			"version %d waits for servers that hold a Lease and do not accept it yet: %s", pending.Version, list(p.Propagation.Lagging))}
	case pending != nil && p.Propagation.Problem != "":
		return verdict{false, v1alpha1.ReasonPropagating, fmt.Sprintf(
			"version %d waits, for the servers cannot be asked whether they accept it: %s", pending.Version, p.Propagation.Problem)}
	case pending != nil:
		return verdict{false, v1alpha1.ReasonPropagating, fmt.Sprintf("version %d is on its way to the servers", pending.Version)}
	default:
		return verdict{true, v1alpha1.ReasonPropagated, "every server accepted the current version before it was delivered"}
	}
}

func (p *plan) readyCondition(active *v1alpha1.CredentialVersion) verdict {
	switch {
	case active == nil && p.flooded && p.blocked != nil:
		return verdict{false, p.blocked.reason, p.blocked.message}
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
	case p.crowded:
		return verdict{true, v1alpha1.ReasonTooManyVersions, fmt.Sprintf("usable, but %d versions are accepted, which is the most there may be: "+
			"rotation waits until one of them ends; discard those before the current one, or choose a shorter overlap", maxLive)}
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
