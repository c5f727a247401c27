package controllers

import (
	"bytes"
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
	"github.com/mintmark-dev/mintmark/internal/lifecycle"
)

// commit writes the status, if it differs from the one that is there. This is
// the one place where the status of a credential is written: under the
// resourceVersion that was read, so that of two controllers one wins, and with
// a record sealed over exactly what is written.
func (r *credentials) commit(ctx context.Context, s *scope, d *lifecycle.Decision) (wrote bool, err error) {
	var value *heldValue
	if d.Mint != nil {
		if value, err = r.mint(s, d); err != nil {
			return false, err
		}
	}
	if err := r.seal(s, d); err != nil {
		return false, err
	}
	crowded := r.cfg.Transitions != nil && len(d.Status.Transitions) > crowdedTransitions
	if !crowded && equality.Semantic.DeepEqual(s.credential.CredentialStatus(), d.Status) {
		return false, nil
	}
	if r.cfg.Transitions != nil {
		d.Status.Transitions = r.cfg.Transitions.Prune(s.credential.GetUID(), d.Status.Transitions)
	}
	if crowded && equality.Semantic.DeepEqual(s.credential.CredentialStatus(), d.Status) {
		return false, nil
	}
	previous, replaced := *s.credential.CredentialStatus(), s.credential.GetResourceVersion()
	*s.credential.CredentialStatus() = *d.Status
	if err := r.client.Status().Update(ctx, s.credential.(client.Object)); err != nil {
		*s.credential.CredentialStatus() = previous
		return false, fmt.Errorf("writing the status of %s %s: %w", r.kind.kind, s.key(), err)
	}
	r.memory.wrote(s.key(), s.credential.GetUID(), s.credential.GetResourceVersion(), replaced)
	if value != nil {
		r.memory.hold(s.key(), s.credential.GetUID(), value)
	}
	if r.cfg.Transitions != nil {
		r.cfg.Transitions.Note(r.kind.kind, s.credential)
	}
	r.tell(s, d)
	return true, r.adopt(s)
}

// mint makes the value that was ordered, or takes the one that is to be
// adopted, and puts its digest into the status to be committed.
func (r *credentials) mint(s *scope, d *lifecycle.Decision) (*heldValue, error) {
	token, adopted := r.adoptable(s, d)
	if !adopted {
		format := credential.Format{Kind: r.kind.kind, Environment: s.observed.Class.Environment, Checksum: s.observed.Class.Checksum}
		var err error
		if token, err = format.Mint(r.cfg.Random); err != nil {
			return nil, fmt.Errorf("minting %s %s: %w", r.kind.kind, s.key(), err)
		}
	}
	pepper := s.peppers.Current()
	digest := pepper.Digest(token.Inner()).String()
	for i := range d.Status.Versions {
		if v := &d.Status.Versions[i]; v.Version == d.Mint.Version {
			v.Digest, v.Pepper, v.Prefix = digest, pepper.ID(), token.Prefix()
			if adopted {
				v.Reason = "Adopted from Secret " + s.secret.Name
			}
		}
	}
	value := &heldValue{version: d.Mint.Version, digest: digest, token: token}
	if s.secret != nil {
		value.secretVersion = s.secret.ResourceVersion
	}
	return value, nil
}

// adoptable is the value of the Secret that is to be taken over, if it has the
// format of the kind and is nobody else's.
func (r *credentials) adoptable(s *scope, d *lifecycle.Decision) (credential.Token, bool) {
	if !d.Mint.Adopt || s.secret == nil {
		return credential.Token{}, false
	}
	token, err := credential.Parse(string(s.secret.Data[r.kind.kind.SecretKey()]))
	if err != nil || token.Kind() != r.kind.kind {
		return credential.Token{}, false
	}
	for _, p := range s.peppers {
		digest := p.Digest(token.Inner())
		if slices.ContainsFunc(s.observed.Status.Versions, func(v v1alpha1.CredentialVersion) bool { return !v.State.Live() && v.Digest == digest.String() }) {
			return credential.Token{}, false // a value of our own that has ended: revoked, perhaps
		}
		if r.olderHolder(s, digest) != "" {
			return credential.Token{}, false
		}
	}
	return token, true
}

// seal puts into the decided status the record that vouches for it: the one
// that is there, where it says the same, and else a new one of a higher epoch.
func (r *credentials) seal(s *scope, d *lifecycle.Decision) error {
	rec, err := lifecycle.BuildRecord(&s.observed, d)
	if err != nil {
		return fmt.Errorf("sealing %s %s: %w", r.kind.kind, s.key(), err)
	}
	if rec == nil {
		d.Status.Record, d.Status.Seal, d.Status.Epoch = nil, "", 0
		return nil
	}
	known := r.memory.sealed(s.key(), s.credential.GetUID())
	if s.observed.Record != nil && reflect.DeepEqual(normal(s.observed.Record), normal(rec)) {
		record, seal := s.credential.CredentialStatus().Record, s.credential.CredentialStatus().Seal
		if s.tampered != "" {
			record, seal = known.record, known.seal
		}
		if strings.HasPrefix(seal, s.peppers.Current().ID()+".") {
			d.Status.Record, d.Status.Seal, d.Status.Epoch = bytes.Clone(record), seal, rec.Epoch
			return nil
		}
	}
	rec.Epoch = s.epochFloor(known) + 1
	d.Status.Epoch = rec.Epoch
	d.Status.Record, d.Status.Seal, err = rec.Seal(s.peppers.Current())
	return err
}

// normal is a record in the form that decoding gives it: an empty list and none
// are the same.
func normal(r *credential.Record) credential.Record {
	n := *r
	v := reflect.ValueOf(&n).Elem()
	for i := range v.NumField() {
		if f := v.Field(i); (f.Kind() == reflect.Slice || f.Kind() == reflect.Map) && f.Len() == 0 {
			f.SetZero()
		}
	}
	if len(n.JWT.Audiences) == 0 {
		n.JWT.Audiences = nil
	}
	return n
}

// adopt takes what was written for the new observation.
func (r *credentials) adopt(s *scope) error {
	st, o := s.credential.CredentialStatus(), &s.observed
	o.Record = nil
	if len(st.Record) > 0 {
		rec, err := credential.OpenRecord(s.peppers, st.Record, st.Seal)
		if err != nil {
			return fmt.Errorf("reading back the record of %s %s: %w", r.kind.kind, s.key(), err)
		}
		o.Record = rec
		r.memory.remember(s.key(), s.credential.GetUID(), rec.Epoch, st.Record, st.Seal)
	}
	s.tampered = ""
	o.Status = lifecycle.Trusted(st, o.Record)
	o.Held = r.memory.held(s.key(), s.credential.GetUID(), o.Status)
	o.Propagation = r.cfg.Propagation.Answer(s.question())
	s.setSecret(s.secret)
	return nil
}

// tell reports what has been completed: at most one event a write.
func (r *credentials) tell(s *scope, d *lifecycle.Decision) {
	if s.tampered != "" {
		recordsRejected.WithLabelValues(string(r.kind.kind)).Inc()
		r.recorder.Eventf(s.credential, nil, corev1.EventTypeWarning, v1alpha1.ReasonRecordRejected, "Restore",
			"status.record was not what the controller had written, and was put right: %s", s.tampered)
	}
	for _, e := range d.Events {
		switch e.Reason {
		case v1alpha1.ReasonRequestRefused:
			continue // nothing was completed
		case v1alpha1.ReasonExpiring, v1alpha1.ReasonTooManyVersions, v1alpha1.ReasonOverlapEnded:
			warnings.WithLabelValues(string(r.kind.kind), e.Reason).Inc()
			continue
		}
		transitions.WithLabelValues(string(r.kind.kind), e.Reason).Inc()
	}
	if len(d.Events) == 0 {
		return
	}
	e, kind := d.Events[0], corev1.EventTypeNormal
	messages := make([]string, len(d.Events))
	for i, other := range d.Events {
		messages[i] = other.Message
		if other.Warning {
			kind, e = corev1.EventTypeWarning, other
		}
	}
	const maxNote = 1024 // the API's limit
	r.recorder.Eventf(s.credential, nil, kind, e.Reason, "Reconcile", "%s", cut(strings.Join(messages, "; "), maxNote))
}
