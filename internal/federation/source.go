package federation

import (
	"bytes"
	"context"
	"crypto"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// pace is how often keys are fetched, and how long anybody waits for them.
type pace struct {
	// least and most are between two fetches that go well; usual where the issuer does
	// not say by Cache-Control.
	least, usual, most time.Duration
	// retry is after the first fetch that fails, doubled up to retryMost.
	retry, retryMost time.Duration
	// extra is how far apart the fetches are that tokens of an unknown kid cause, after
	// the first few.
	extra      time.Duration
	extraBurst int
	// wait is the longest that a request waits for a fetch, and waiters how many may.
	wait    time.Duration
	waiters int
	// stale is for how long keys are used that could not be fetched again.
	stale time.Duration
	// timeout of one fetch.
	timeout time.Duration
}

// defaultPace: keys that an issuer has withdrawn are used for an hour at most while it
// can be reached, and for MaxStale while it cannot.
var defaultPace = pace{
	least: 5 * time.Minute, usual: 10 * time.Minute, most: time.Hour, retry: time.Second, retryMost: time.Minute,
	extra: 30 * time.Second, extraBurst: 3, wait: MaxWait, waiters: 64, stale: MaxStale, timeout: fetchTimeout,
}

const (
	// MaxWait is the longest that a request waits for the keys of an issuer.
	MaxWait = 2 * time.Second
	// MaxStale is how long keys are used that could not be fetched again.
	MaxStale = 6 * time.Hour
)

// source is the keys of one issuer.
type source struct {
	compiled *Compiled // of which the issuer, its URLs and its certificates matter
	fetcher  *fetcher
	pace     pace
	now      func() time.Time
	log      *slog.Logger

	ask     chan struct{} // asks for a fetch out of turn
	waiting chan struct{} // holds an element for each request that waits
	extra   *rate.Limiter

	mu       sync.Mutex
	keys     *keySet
	busy     bool
	attempt  chan struct{} // closed at the end of the next attempt
	failures uint64
	failing  bool
}

func newSource(c *Compiled, d *dialer, p pace, now func() time.Time, log *slog.Logger) *source {
	s := &source{
		compiled: c, pace: p, now: now, log: log, ask: make(chan struct{}, 1), waiting: make(chan struct{}, p.waiters),
		extra: rate.NewLimiter(rate.Every(p.extra), p.extraBurst), attempt: make(chan struct{}), keys: c.static,
	}
	if c.static == nil {
		s.fetcher = newFetcher(c, d)
		s.busy = true // the first attempt is about to begin
	}
	return s
}

// serves tells whether the source is as good for another form of its TrustedIssuer.
func (s *source) serves(c *Compiled) bool {
	have := s.compiled
	return have.issuer == c.issuer && have.jwksURL == c.jwksURL && have.inline == c.inline && bytes.Equal(have.bundle, c.bundle)
}

// run keeps the keys fresh until the context ends.
func (s *source) run(ctx context.Context) {
	if s.fetcher == nil {
		return
	}
	failed := 0
	for {
		next, err := s.fetch(ctx)
		if err != nil {
			next = min(s.pace.retry<<min(failed, 16), s.pace.retryMost)
			failed++
		} else {
			failed = 0
		}
		// Spread, so that neither servers nor issuers fall into step.
		timer := time.NewTimer(next - rand.N(next/10+1)) //nolint:gosec // spreads load and keeps no secret
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-s.ask:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// fetch makes one attempt and gives when the next one is due.
func (s *source) fetch(ctx context.Context) (next time.Duration, err error) {
	s.mu.Lock()
	s.busy = true
	s.mu.Unlock()
	limited, cancel := context.WithTimeout(ctx, s.pace.timeout)
	defer cancel()
	keys, keep, err := s.fetcher.keys(limited, s.compiled)
	if keep == 0 {
		keep = s.pace.usual
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		keys.fetched = s.now()
		s.keys = keys
	}
	s.report(ctx, err)
	s.busy = false
	close(s.attempt)
	s.attempt = make(chan struct{})
	return min(max(keep, s.pace.least), s.pace.most), err
}

// report logs what changed. The caller holds mu.
func (s *source) report(ctx context.Context, err error) {
	switch {
	case ctx.Err() != nil:
	case err != nil:
		s.failures++
		if !s.failing {
			s.log.Warn("the keys of a trusted issuer cannot be fetched; those fetched before go on being used for some hours",
				"trustedIssuer", s.compiled.name, "issuer", s.compiled.issuer, "error", err.Error(), "used", s.keys != nil)
		}
		s.failing = true
	case s.failing:
		s.failing = false
		s.log.Info("the keys of a trusted issuer can be fetched again", "trustedIssuer", s.compiled.name, "issuer", s.compiled.issuer)
	}
}

// current are the keys as far as they are fresh enough; nil where there are none.
func (s *source) current() *keySet {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fresh(s.keys)
}

func (s *source) fresh(keys *keySet) *keySet {
	if keys == nil || s.fetcher != nil && s.now().Sub(keys.fetched) > s.pace.stale {
		return nil
	}
	return keys
}

// find gives the keys for a token of this kid and alg. Where there are none it asks for
// a fetch, as far as its limit allows, and waits for it no longer than stated.
func (s *source) find(ctx context.Context, kid, alg string) ([]crypto.PublicKey, error) {
	keys := s.current()
	if found := keys.candidates(kid, alg); len(found) > 0 {
		return found, nil
	}
	if s.fetcher != nil {
		s.await(ctx, keys)
		keys = s.current()
	}
	if keys == nil {
		return nil, ErrNoKeys
	}
	if found := keys.candidates(kid, alg); len(found) > 0 {
		return found, nil
	}
	return nil, ErrUnknownKey
}

// await waits for keys other than those at hand.
func (s *source) await(ctx context.Context, have *keySet) {
	attempt := s.begin(have)
	if attempt == nil {
		return
	}
	select {
	case s.waiting <- struct{}{}:
	default:
		return // enough others wait
	}
	defer func() { <-s.waiting }()
	timer := time.NewTimer(s.pace.wait)
	defer timer.Stop()
	select {
	case <-attempt:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// begin gives the end of the attempt to wait for, one under way or one that is asked for
// now; nil where there is nothing to wait for.
func (s *source) begin(have *keySet) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fresh(s.keys) != have {
		return nil // there are others already
	}
	if !s.busy {
		if !s.extra.Allow() {
			return nil
		}
		s.busy = true
		select {
		case s.ask <- struct{}{}:
		default: // it has been asked for already
		}
	}
	return s.attempt
}

// state for metrics and health.
func (s *source) state() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	state := State{Name: s.compiled.name, Failures: s.failures, Inline: s.fetcher == nil}
	if s.keys != nil {
		state.Keys, state.Fetched = len(s.keys.keys), s.keys.fetched
	}
	return state
}
