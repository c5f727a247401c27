package lifecycle

import (
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// Warnings of an end that nothing will put off: Low, Medium, High, Critical.

const (
	aDay = 24 * time.Hour
	// heldUpFor is how long a delivery may be held up before it counts as not coming.
	heldUpFor = 10 * time.Minute
)

// alert is a warning: so long before the end, under this reason.
type alert struct {
	before time.Duration
	reason string
	level  string
}

// alerts, the latest first.
var alerts = []alert{
	{1 * aDay, v1alpha1.ReasonWithin1Day, "Critical"},
	{7 * aDay, v1alpha1.ReasonWithin7Days, "High"},
	{14 * aDay, v1alpha1.ReasonWithin14Days, "Medium"},
	{30 * aDay, v1alpha1.ReasonWithin30Days, "Low"},
}

// warn shows that the credential ends soon and nothing will renew it, and tells
// so once at each level: what is in status was told, whoever told it.
func (p *plan) warn(active *v1alpha1.CredentialVersion) {
	told := ""
	if before := meta.FindStatusCondition(p.status.Conditions, v1alpha1.ConditionExpiring); before != nil {
		told = before.Reason
	}
	if p.ClockSkewed && active != nil {
		return // neither raised nor cleared by a clock that is wrong
	}
	found, end := p.alert(active)
	if found == nil {
		meta.RemoveStatusCondition(&p.status.Conditions, v1alpha1.ConditionExpiring)
		return
	}
	message := fmt.Sprintf("version %d ends at %s: %s", active.Version, end.UTC().Format(time.RFC3339), p.remedy(active))
	if p.status.LastUsed != "" {
		message += "; it was last used on " + p.status.LastUsed
	}
	p.condition(v1alpha1.ConditionExpiring, verdict{true, found.reason, message})
	if told != found.reason {
		p.event(true, v1alpha1.ReasonExpiring, "%s: %s", found.level, message)
	}
}

// alert is the one that holds now, and the end it warns of; nil where none does.
// A warning counts where it leaves at least half of the life without one, so that
// what lives for a day is not in alarm from the beginning.
func (p *plan) alert(active *v1alpha1.CredentialVersion) (*alert, time.Time) {
	if active == nil {
		return nil, time.Time{}
	}
	end := earliest(expiry(active), p.settings.ExpiresAt)
	if end.IsZero() || p.renewed(active, end) {
		return nil, end
	}
	life := end.Sub(active.Created.Time)
	if end.Equal(p.settings.ExpiresAt) {
		life = end.Sub(p.Created) // the credential's, whatever versions it has had
	}
	i := slices.IndexFunc(alerts, func(a alert) bool { return 2*a.before <= life && p.due(end.Add(-a.before)) })
	if i < 0 {
		return nil, end
	}
	return &alerts[i], end
}

// renewed tells whether a new version will come before the end.
func (p *plan) renewed(active *v1alpha1.CredentialVersion, end time.Time) bool {
	switch {
	case p.renewable(active).IsZero() || p.blocked != nil || p.foreign():
		return false
	case p.mint != nil || p.pending() != nil:
		return !p.heldUp() // on its way
	case p.Secret.Problem != "":
		return false
	}
	next, err := time.Parse(time.RFC3339, p.status.NextRotation)
	return err == nil && next.Before(end) && !p.crowded
}

// heldUp tells whether a new version has been waiting for its delivery for so long
// that somebody should look: servers that restart hold one up for a moment.
func (p *plan) heldUp() bool {
	pending := p.pending()
	return pending != nil && (len(p.Propagation.Lagging) > 0 || p.Propagation.Problem != "" || p.Secret.Problem != "") && p.due(pending.Created.Add(heldUpFor))
}

// remedy says what would renew it.
func (p *plan) remedy(active *v1alpha1.CredentialVersion) string {
	switch {
	case p.renewable(active).IsZero() && !p.settings.ExpiresAt.IsZero():
		return "extend spec.expiresAt if it is to live on"
	case p.Spec.External != nil:
		return "have its holder declare another value"
	case p.blocked != nil:
		return "it cannot be renewed before what Ready says is put right"
	case p.foreign():
		return "it cannot be renewed while its Secret is somebody else's: SecretDelivered says what to do"
	case p.crowded:
		return "it cannot be renewed before another version ends"
	case p.settings.Suspend:
		return "rotations are suspended (spec.rotation.suspend): request one, or resume them"
	case p.pending() != nil || p.Secret.Problem != "":
		return "a new version is waiting to be delivered: the other conditions say for what"
	default:
		return "nothing rotates it before: request a rotation"
	}
}
