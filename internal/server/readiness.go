package server

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/mintmark-dev/mintmark/internal/server/listwatch"
)

// readiness puts together what decides whether this server is in service, and whether it
// may decide anything.
//
// The two differ. A server that has lost its Lease, or is stopping, goes out of service
// and yet answers rightly what still reaches it. One that is cold, or staler than it may be, denies.
type readiness struct {
	presence     *presence
	keys         *keys
	freshness    *freshness
	maxStaleness time.Duration
	// losing tells whether events of the audit log are being lost, where that means to
	// deny; nil: it never does.
	losing func() bool

	// loops of the present session; nil while there is none.
	loops  atomic.Pointer[[]*listwatch.Loop]
	warm   atomic.Bool  // everything was listed once in this session
	until  atomic.Int64 // Unix nanoseconds: when what is known is too old
	leaves atomic.Bool  // shutting down
}

// checks are what readiness consists of, by the names /readyz?verbose shows.
func (r *readiness) checks() []check {
	return []check{
		{"running", r.checkRunning},
		{"keys", func(time.Time) error { return r.keys.missing() }},
		{"lease", func(now time.Time) error { _, err := r.presence.held(now); return err }},
		{"listed", r.checkListed},
		{"fresh", r.checkFresh},
	}
}

type check struct {
	name string
	run  func(now time.Time) error
}

// ready is nil while this server is in service.
func (r *readiness) ready(now time.Time) error {
	var errs []error
	for _, c := range r.checks() {
		if err := c.run(now); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", c.name, err))
		}
	}
	return errors.Join(errs...)
}

func (r *readiness) checkRunning(time.Time) error {
	if r.leaves.Load() {
		return errors.New("shutting down")
	}
	return nil
}

// checkListed: everything has been listed whole, by lists begun under the Lease as it is
// held now.
func (r *readiness) checkListed(now time.Time) error {
	loops := r.loops.Load()
	if loops == nil {
		return errCold
	}
	tenure, err := r.presence.held(now)
	if err != nil {
		return errors.New("waiting for the Lease")
	}
	for _, l := range *loops {
		switch listed := l.Health().Listed; {
		case listed.IsZero():
			return fmt.Errorf("%s: not listed yet", l.Name())
		case listed.Before(tenure):
			return fmt.Errorf("%s: not listed again since the Lease was regained", l.Name())
		}
	}
	return nil
}

func (r *readiness) checkFresh(now time.Time) error {
	age, ok := r.age(now)
	switch {
	case !ok:
		return errCold
	case age > r.maxStaleness:
		return fmt.Errorf("what this server knows is %s old, more than %s: it denies everything", age.Round(time.Second), r.maxStaleness)
	}
	// The age falls as soon as a heartbeat comes or a list is through; the deadline that
	// verdicts go by is moved on a moment later, and until then everything is denied.
	return r.open(now)
}

// age of what this server knows: by the heartbeat, or by how long a watch has been
// broken, whichever is more.
func (r *readiness) age(now time.Time) (time.Duration, bool) {
	age, ok := r.freshness.age(now)
	loops := r.loops.Load()
	if !ok || loops == nil {
		return 0, false
	}
	for _, l := range *loops {
		if h := l.Health(); !h.BrokenSince.IsZero() {
			age = max(age, now.Sub(h.BrokenSince))
		}
	}
	return age, true
}

// open implements gate.
func (r *readiness) open(now time.Time) error {
	switch {
	case !r.warm.Load():
		return errCold
	case now.UnixNano() > r.until.Load():
		return errStale
	case r.losing != nil && r.losing():
		return errLosing
	}
	return nil
}

// draining implements gate.
func (r *readiness) draining() bool { return r.leaves.Load() }
