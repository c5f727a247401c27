//go:build faults

package faults

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// scenario is something that is asked of the controller.
type scenario struct {
	name string
	// overlap of the credential.
	overlap time.Duration
	// setup comes before the writes that are counted, act with them.
	setup, act []step
	// settled tells what keeps the final state from being reached.
	settled func(context.Context, *trial) error
	// undisturbed is settled where no fault is made; nil is the same.
	undisturbed func(context.Context, *trial) error
	// deliveries is how many values the Secret carries in the course of it all.
	deliveries int
}

// step is one step of a scenario, and what to wait for after it, if anything.
type step struct {
	do    func(*trial, context.Context) error
	until func(context.Context, *trial) error
}

var (
	mint = scenario{
		name: "mint", overlap: longOverlap, act: []step{{do: (*trial).create}}, settled: settledAt(1), deliveries: 1,
	}
	rotate = scenario{
		name: "rotate", overlap: longOverlap,
		setup: []step{{(*trial).create, settledAt(1)}}, act: []step{{do: (*trial).rotate}}, settled: settledAt(2), deliveries: 2,
	}
	rollBack = scenario{
		name: "roll back", overlap: longOverlap,
		setup: []step{{(*trial).create, settledAt(1)}, {(*trial).rotate, settledAt(2)}}, act: []step{{do: (*trial).rollBack}},
		settled: rolledBack, deliveries: 2,
	}
	retire = scenario{
		name: "retire", overlap: shortOverlap,
		setup: []step{{(*trial).create, settledAt(1)}, {(*trial).rotate, delivered(2)}}, settled: retired, deliveries: 2,
	}
	retireAtOnce = scenario{
		name:  "retire immediately",
		setup: []step{{(*trial).create, settledAt(1)}}, act: []step{{do: (*trial).rotate}}, settled: retired, deliveries: 2,
	}
	discard = scenario{
		name: "discard", overlap: longOverlap,
		setup: []step{{(*trial).create, settledAt(1)}, {(*trial).rotate, settledAt(2)}}, act: []step{{do: (*trial).discard}},
		settled: retired, deliveries: 2,
	}
	revoke = scenario{
		name: "revoke", overlap: longOverlap,
		setup: []step{{(*trial).create, settledAt(1)}}, act: []step{{do: (*trial).revoke}}, settled: revoked, deliveries: 1,
	}
	replace = scenario{
		name: "Revocation, replace", overlap: longOverlap,
		setup: []step{{(*trial).create, settledAt(1)}}, act: []step{{do: (*trial).replace}}, settled: replacedBy(2), deliveries: 2,
	}
	deleteAmid = scenario{
		name: "delete amid a rotation", overlap: longOverlap,
		setup: []step{{(*trial).create, settledAt(1)}}, act: []step{{do: (*trial).rotate}}, settled: gone, deliveries: 2,
		undisturbed: settledAt(2),
	}
	revokeAmid = scenario{
		name: "revoke amid a rotation", overlap: longOverlap,
		setup: []step{{(*trial).create, settledAt(1)}}, act: []step{{do: (*trial).rotate}}, settled: revoked, deliveries: 2,
		undisturbed: settledAt(2),
	}
	replaceAmid = scenario{
		name: "Revocation amid a rotation", overlap: longOverlap,
		setup: []step{{(*trial).create, settledAt(1)}}, act: []step{{do: (*trial).rotate}}, settled: replacedBy(3), deliveries: 2,
		undisturbed: settledAt(2),
	}
	declare = scenario{
		name: "declare", overlap: longOverlap,
		setup: []step{{(*trial).declareFirst, declared(1)}},
		act:   []step{{(*trial).declareNext, declared(2)}, {do: (*trial).declareLast}}, settled: onlyDeclared(2), deliveries: 2,
	}
)

// settledAt is where at least this version is current, Secret and status agree, and
// every request is handled.
func settledAt(version int64) func(context.Context, *trial) error {
	return func(ctx context.Context, t *trial) error {
		c, secret, err := t.look(ctx)
		if err != nil {
			return err
		}
		if err := consistent(c, secret, t.more); err != nil {
			return err
		}
		s := c.CredentialStatus()
		if s.CurrentVersion < version {
			return fmt.Errorf("version %d is current still", s.CurrentVersion)
		}
		return t.handled(s)
	}
}

// delivered is where at least this version is current, and the overlap goes on.
func delivered(version int64) func(context.Context, *trial) error {
	return func(ctx context.Context, t *trial) error {
		c, _, err := t.look(ctx)
		if err == nil && (c == nil || c.CredentialStatus().CurrentVersion < version) {
			err = fmt.Errorf("version %d is not current yet", version)
		}
		return err
	}
}

func (t *trial) handled(s *v1alpha1.CredentialStatus) error {
	if t.asked.IsZero() {
		return nil
	}
	if h := s.Handled; h != nil {
		if (h.Rotate != nil && h.Rotate.Equal(&t.asked)) || (h.Rollback != nil && h.Rollback.Equal(&t.asked)) ||
			(h.Discard != nil && h.Discard.Equal(&t.asked)) {
			return nil
		}
	}
	return errors.New("the request has not been handled")
}

func rolledBack(ctx context.Context, t *trial) error {
	if err := settledAt(1)(ctx, t); err != nil {
		return err
	}
	c, _, err := t.look(ctx)
	if err == nil && c.CredentialStatus().CurrentVersion != 1 {
		err = fmt.Errorf("version %d is current still", c.CredentialStatus().CurrentVersion)
	}
	return err
}

func retired(ctx context.Context, t *trial) error {
	if err := settledAt(2)(ctx, t); err != nil {
		return err
	}
	c, _, err := t.look(ctx)
	if err != nil {
		return err
	}
	for _, v := range c.CredentialStatus().Versions {
		if v.State == v1alpha1.VersionSuperseded {
			return fmt.Errorf("version %d is superseded still", v.Version)
		}
	}
	return nil
}

func revoked(ctx context.Context, t *trial) error {
	c, secret, err := t.look(ctx)
	switch {
	case err != nil:
		return err
	case c == nil:
		return errors.New("the credential is gone")
	case secret != nil:
		return errors.New("the Secret is there still")
	}
	ready := meta.FindStatusCondition(c.CredentialStatus().Conditions, v1alpha1.ConditionReady)
	if ready == nil || ready.Reason != v1alpha1.ReasonRevoked || c.CredentialStatus().ObservedGeneration != c.GetGeneration() {
		return fmt.Errorf("the status does not tell of the revocation: %v", ready)
	}
	return nil
}

// replacedBy is where a Revocation is settled, and this version in the place of those it
// took.
func replacedBy(version int64) func(context.Context, *trial) error {
	return func(ctx context.Context, t *trial) error {
		if err := settledAt(version)(ctx, t); err != nil {
			return err
		}
		var r v1alpha1.Revocation
		if err := t.admin.Get(ctx, types.NamespacedName{Name: t.namespace}, &r); err != nil {
			return err
		}
		if !meta.IsStatusConditionTrue(r.Status.Conditions, v1alpha1.ConditionSettled) || r.Status.Matched != 1 {
			return fmt.Errorf("the Revocation is not settled: %+v", r.Status)
		}
		return nil
	}
}

// declared is where the credential has this version of its holder's values as the
// current one, and every server accepts what is declared.
func declared(version int64) func(context.Context, *trial) error {
	return func(ctx context.Context, t *trial) error {
		c, _, err := t.look(ctx)
		switch {
		case err != nil:
			return err
		case c == nil || c.CredentialStatus().CurrentVersion != version:
			return fmt.Errorf("version %d is not the current one", version)
		case !meta.IsStatusConditionTrue(c.CredentialStatus().Conditions, v1alpha1.ConditionReady) ||
			c.CredentialStatus().ObservedGeneration != c.GetGeneration():
			return fmt.Errorf("it is not Ready: %v", c.CredentialStatus().Conditions)
		}
		text := t.held[len(t.held)-1]
		for i := range t.servers {
			if status, err := t.prober.ask(ctx, i, text, ""); status != http.StatusOK {
				return fmt.Errorf("%s answers %d (%v) to what is declared", t.servers[i].name, status, err)
			}
		}
		t.prober.declare(t.namespace, text, version)
		return nil
	}
}

func onlyDeclared(version int64) func(context.Context, *trial) error {
	return func(ctx context.Context, t *trial) error {
		if err := declared(version)(ctx, t); err != nil {
			return err
		}
		c, _, err := t.look(ctx)
		if err != nil {
			return err
		}
		for _, v := range c.CredentialStatus().Versions {
			if v.Version != version && v.State.Live() {
				return fmt.Errorf("version %d is accepted still", v.Version)
			}
		}
		return nil
	}
}

func gone(ctx context.Context, t *trial) error {
	c, secret, err := t.look(ctx)
	if err == nil && (c != nil || secret != nil) {
		err = errors.New("the credential or its Secret is there still")
	}
	return err
}
