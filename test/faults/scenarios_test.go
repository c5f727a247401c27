//go:build faults

package faults

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"syscall"
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
	// deliveries is how many values the Secret carries in the course of it all.
	deliveries int
	// modes of fault at each write.
	modes []mode
	// upsets are faults that befall the watches, not a write.
	upsets []mode
}

// step is one step of a scenario, and what to wait for after it, if anything.
type step struct {
	do    func(*trial, context.Context) error
	until func(context.Context, *trial) error
}

// mode is a way in which a fault befalls a write.
type mode struct {
	name string
	plan func(context.Context, *trial, *fault)
}

var (
	killedBefore = mode{"killed before", func(_ context.Context, t *trial, f *fault) { f.before, f.abandon = t.controller.kill, true }}
	killedAfter  = mode{"killed after", func(_ context.Context, t *trial, f *fault) { f.after, f.drop = t.controller.kill, true }}
	answerLost   = mode{"answer lost", func(_ context.Context, _ *trial, f *fault) { f.drop = true }}
	conflict     = answered("409", http.StatusConflict)
	tooMany      = answered("429", http.StatusTooManyRequests)
	broken       = answered("500", http.StatusInternalServerError)
	// overtaken has the controller stopped with its write under way; another one
	// takes over and does everything; then the first one's write arrives.
	overtaken = mode{"overtaken", func(ctx context.Context, t *trial, f *fault) {
		f.before, f.after = t.overtake(ctx, func() error { return t.scenario.settled(ctx, t) })
	}}
	// crossed is overtaken halfway: the first one's write arrives when the other one has
	// committed a version of its own that every server accepts, just before that one's
	// next write. From then on both work, until the first one finds its Lease gone.
	crossed = mode{"crossed", func(ctx context.Context, t *trial, f *fault) {
		answered := make(chan struct{})
		other := &fault{process: standbyName, about: aboutNamespace(t.namespace), nth: 2, before: func() {
			select {
			case <-answered:
			case <-ctx.Done():
			}
		}}
		t.dueled = true
		before, after := t.overtake(ctx, func() error {
			if t.proxy.struck(other) != nil {
				return nil
			}
			return t.scenario.settled(ctx, t)
		})
		f.before = func() {
			t.proxy.arm(other)
			before()
		}
		f.after = func() {
			close(answered)
			after()
		}
	}}
	deletedBefore = mode{"deleted before", func(ctx context.Context, t *trial, f *fault) { f.before = func() { t.must(t.remove(ctx)) } }}
	deletedAfter  = mode{"deleted after", func(ctx context.Context, t *trial, f *fault) { f.after = func() { t.must(t.remove(ctx)) } }}
	deletedKilled = mode{"deleted, killed after", func(ctx context.Context, t *trial, f *fault) {
		f.after, f.drop = func() { t.must(t.remove(ctx)); t.controller.kill() }, true
	}}

	// What befalls watches does so when the first write has been answered.
	watchesCut  = mode{"watches cut", func(_ context.Context, t *trial, f *fault) { f.after = func() { t.cutWatches(0) } }}
	watchesGone = mode{"watches cut, then 410", func(_ context.Context, t *trial, f *fault) { f.after = func() { t.cutWatches(3) } }}
	stale       = mode{"controller's cache stale for 2s", func(_ context.Context, t *trial, f *fault) {
		f.after = func() { time.AfterFunc(2*time.Second, t.proxy.freeze(controllerName)) }
	}}
	lagging = mode{"one server lags for 2s", func(_ context.Context, t *trial, f *fault) {
		f.before = func() { time.AfterFunc(2*time.Second, t.proxy.freeze("server-2")) }
	}}
)

func answered(name string, code int) mode {
	return mode{name, func(_ context.Context, _ *trial, f *fault) { f.answer = code }}
}

// must ends a trial that cannot go on: the fault could not be made.
func (t *trial) must(err error) {
	if err != nil {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.broken = errors.Join(t.broken, err)
	}
}

func (t *trial) cutWatches(gone int) {
	for _, s := range t.servers {
		// A server that cannot watch is not fresh, so what ends is told to the
		// controller alone to be gone.
		t.proxy.cutWatches(s.name, 0)
	}
	t.proxy.cutWatches(controllerName, gone)
}

// overtake stops the controller with its write under way and has another one lead,
// until enough has been done. What it returns lets the first one go on.
func (t *trial) overtake(ctx context.Context, enough func() error) (before, after func()) {
	return func() {
			t.must(t.controller.signal(syscall.SIGSTOP))
			t.controller.mu.Lock()
			t.controller.release = func(context.Context) error { return nil } // the other one's
			t.controller.mu.Unlock()
			t.must(t.releaseLeadership(ctx))
			t.mu.Lock()
			t.overtook = true
			t.mu.Unlock()
			t.must(t.standby.start(ctx))
			t.must(poll(ctx, settleTimeout, enough))
		}, func() {
			t.must(t.controller.signal(syscall.SIGCONT))
		}
}

// reinstate ends the controller that has overtaken the first one, if one has.
func (t *trial) reinstate() {
	t.mu.Lock()
	overtook := t.overtook
	t.mu.Unlock()
	if !overtook {
		return
	}
	t.standby.stop()
	t.controller.mu.Lock()
	t.controller.release = t.releaseLeadership
	t.controller.mu.Unlock()
}

var (
	ordinary = []mode{killedBefore, killedAfter, answerLost, conflict, tooMany, broken}
	all      = append(append([]mode{}, ordinary...), overtaken, crossed)
)

var scenarios = []scenario{
	{
		name: "mint", overlap: longOverlap, act: []step{{do: (*trial).create}}, settled: settledAt(1), deliveries: 1,
		modes: all, upsets: []mode{lagging, watchesCut, watchesGone, stale},
	},
	{
		name: "rotate", overlap: longOverlap,
		setup: []step{{(*trial).create, settledAt(1)}}, act: []step{{do: (*trial).rotate}}, settled: settledAt(2), deliveries: 2,
		modes: all, upsets: []mode{lagging, watchesCut, watchesGone, stale},
	},
	{
		name: "roll back", overlap: longOverlap,
		setup: []step{{(*trial).create, settledAt(1)}, {(*trial).rotate, settledAt(2)}}, act: []step{{do: (*trial).rollBack}},
		settled: rolledBack, deliveries: 2,
		modes: all, upsets: []mode{lagging, watchesCut, watchesGone, stale},
	},
	{
		name: "retire", overlap: shortOverlap,
		setup: []step{{(*trial).create, settledAt(1)}, {(*trial).rotate, delivered(2)}}, settled: retired, deliveries: 2,
		modes: ordinary, upsets: []mode{watchesCut, watchesGone, stale},
	},
	{
		name: "revoke", overlap: longOverlap,
		setup: []step{{(*trial).create, settledAt(1)}}, act: []step{{do: (*trial).revoke}}, settled: revoked, deliveries: 1,
		modes: ordinary, upsets: []mode{watchesCut, watchesGone, stale},
	},
	{
		name: "Revocation, replace", overlap: longOverlap,
		setup: []step{{(*trial).create, settledAt(1)}}, act: []step{{do: (*trial).replace}}, settled: replaced, deliveries: 2,
		modes: ordinary, upsets: []mode{watchesCut, watchesGone, stale},
	},
	{
		name: "delete amid a rotation", overlap: longOverlap,
		setup: []step{{(*trial).create, settledAt(1)}}, act: []step{{do: (*trial).rotate}}, settled: gone, deliveries: 2,
		modes: []mode{deletedBefore, deletedAfter, deletedKilled},
	},
}

// settledAt is where at least this version is current, Secret and status agree, and
// every request is handled.
func settledAt(version int64) func(context.Context, *trial) error {
	return func(ctx context.Context, t *trial) error {
		c, secret, err := t.look(ctx)
		if err != nil {
			return err
		}
		if err := consistent(c, secret); err != nil {
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
		if (h.Rotate != nil && h.Rotate.Equal(&t.asked)) || (h.Rollback != nil && h.Rollback.Equal(&t.asked)) {
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

func replaced(ctx context.Context, t *trial) error {
	if err := settledAt(2)(ctx, t); err != nil {
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

func gone(ctx context.Context, t *trial) error {
	c, secret, err := t.look(ctx)
	if err == nil && (c != nil || secret != nil) {
		err = errors.New("the credential or its Secret is there still")
	}
	return err
}
