package lifecycle

import (
	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// What moves values into the Secret and back.

// promote makes the version that the Secret carries the active one. That the
// Secret carries it is what decides, whoever wrote it there.
func (p *plan) promote() {
	delivered := p.version(p.Secret.Current)
	if delivered == nil || delivered.State != v1alpha1.VersionPending {
		return
	}
	previous, back := p.active(), delivered.Activated != nil
	p.promoted = true
	delivered.State, delivered.Superseded = v1alpha1.VersionActive, nil
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
		if back {
			reason, what = v1alpha1.ReasonRolledBack, "Rolled back"
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
	if p.Spec.External != nil {
		p.event(true, v1alpha1.ReasonRequestRefused, "Not rolled back, for its holder says which value is current: put that one's hash first in spec.external.sha256")
		return
	}
	previous := p.version(p.Secret.Previous)
	if previous == nil || previous.State != v1alpha1.VersionSuperseded || p.active() == nil {
		p.event(true, v1alpha1.ReasonRequestRefused, "Not rolled back, for no previous version is accepted any more: request a rotation instead")
		return
	}
	previous.State = v1alpha1.VersionPending
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
	carried := active != nil && p.Secret.Current == active.Version
	if pending := p.pending(); pending != nil {
		p.deliverPending(pending, active)
		if carried && p.mint == nil && p.Secret.Previous != pending.Version {
			p.retirePrevious(active)
		}
		return
	}
	switch {
	case carried:
		p.secret = p.carrying(active)
	case active == nil && p.Secret.Ours:
		// Revoked or expired: what is dead need not lie about.
		p.secret = SecretWant{Action: SecretDelete}
	}
}

// retirePrevious takes out of the Secret what came before the active version, where its
// time is over and a new version waits, which may last. Where it is discarded that comes
// first in any case: after the delivery the active version would be what is discarded.
func (p *plan) retirePrevious(active *v1alpha1.CredentialVersion) {
	want := p.carrying(active)
	if want.Previous != p.Secret.Previous && (p.secret.Action == SecretKeep || p.discarding()) {
		p.secret = want
	}
}

// carrying is the Secret as it is: with the active version, and with the one before it
// while that is accepted.
func (p *plan) carrying(active *v1alpha1.CredentialVersion) SecretWant {
	want := SecretWant{Action: SecretWrite, Current: active.Version}
	if v := p.version(p.Secret.Previous); v != nil && v.State == v1alpha1.VersionSuperseded && !p.outlived(v) {
		want.Previous = v.Version
	}
	return want
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
