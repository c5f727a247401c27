package federation

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

func TestARotatedKeyIsFoundWithoutWaitingForItsTurn(t *testing.T) {
	old, next := newSigner("ec-1", "ES256"), newSigner("ec-2", "ES256")
	i := newIssuer(t, old)
	r := run(t, seldom)
	r.trust(t, "ci", i.spec())
	if _, err := r.verify(old.sign(t, i.claims())); err != nil {
		t.Fatal(err)
	}
	i.set(func(i *issuer) { i.keys = []signer{next, old} })
	if _, err := r.verify(next.sign(t, i.claims())); err != nil {
		t.Errorf("the next key: %v", err)
	}
	if _, err := r.verify(old.sign(t, i.claims())); err != nil {
		t.Errorf("the old key, which is still there: %v", err)
	}
	if n := i.count("/keys"); n != 2 {
		t.Errorf("the keys were fetched %d times, want 2", n)
	}
}

func TestAKeyThatWasWithdrawnIsForgotten(t *testing.T) {
	old, next := newSigner("ec-1", "ES256"), newSigner("ec-2", "ES256")
	i := newIssuer(t, old)
	r := run(t, quick)
	r.trust(t, "ci", i.spec())
	if _, err := r.verify(old.sign(t, i.claims())); err != nil {
		t.Fatal(err)
	}
	i.set(func(i *issuer) { i.keys = []signer{next} })
	eventually(t, "the old key is refused", func() bool {
		_, err := r.verify(old.sign(t, i.claims()))
		return errors.Is(err, ErrUnknownKey)
	})
}

func TestAFloodOfUnknownKeysFetchesLittle(t *testing.T) {
	key, unknown := newSigner("ec-1", "ES256"), newSigner("ec-2", "ES256")
	i := newIssuer(t, key)
	r := run(t, seldom)
	r.trust(t, "ci", i.spec())
	if _, err := r.verify(key.sign(t, i.claims())); err != nil {
		t.Fatal(err)
	}
	var callers sync.WaitGroup
	for range 200 {
		callers.Go(func() {
			token := unknown.sign(t, i.claims())
			for range 20 {
				if _, err := r.verify(token); !errors.Is(err, ErrUnknownKey) {
					t.Errorf("the error is %v", err)
				}
			}
		})
	}
	callers.Wait()
	if n := i.count("/keys"); n > 1+seldom.extraBurst {
		t.Errorf("4,000 tokens of unknown keys fetched the keys %d times, want at most %d", n, 1+seldom.extraBurst)
	}
	if _, err := r.verify(key.sign(t, i.claims())); err != nil {
		t.Errorf("a good token afterwards: %v", err)
	}
}

func TestAnIssuerThatIsDownAtTheStartIsFoundLater(t *testing.T) {
	key := newSigner("ec-1", "ES256")
	i := newIssuer(t, key)
	i.answer = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }
	p := quick
	p.wait = 20 * time.Millisecond
	r := run(t, p)
	r.trust(t, "ci", i.spec())
	if _, err := r.verify(key.sign(t, i.claims())); !errors.Is(err, ErrNoKeys) {
		t.Fatalf("while it is down: %v", err)
	}
	eventually(t, "failures are counted and logged", func() bool {
		s := r.States()
		return len(s) == 1 && s[0].Failures > 0 && s[0].Keys == 0 && strings.Contains(r.log.String(), "status 502")
	})
	i.set(func(i *issuer) { i.answer = nil })
	eventually(t, "a token is accepted", func() bool {
		_, err := r.verify(key.sign(t, i.claims()))
		return err == nil
	})
	eventually(t, "the log says so", func() bool { return strings.Contains(r.log.String(), "can be fetched again") })
}

func TestKeysAreUsedWhileTheIssuerIsDownAndNotForEver(t *testing.T) {
	key := newSigner("ec-1", "ES256")
	i := newIssuer(t, key)
	var ahead atomic.Int64
	p := quick
	p.wait = 10 * time.Millisecond
	r := run(t, p, func(c *Config) { c.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) } })
	r.trust(t, "ci", i.spec())
	eventually(t, "the keys are there", func() bool { return r.States()[0].Keys > 0 })
	i.set(func(i *issuer) {
		i.answer = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }
	})
	eventually(t, "fetches fail", func() bool { return r.States()[0].Failures > 2 })
	if _, err := r.verify(key.sign(t, i.claims())); err != nil {
		t.Errorf("shortly after it went down: %v", err)
	}
	ahead.Store(int64(p.stale - time.Minute))
	if _, err := r.verify(key.sign(t, i.claims())); err != nil {
		t.Errorf("a minute before the keys are stale: %v", err)
	}
	ahead.Store(int64(p.stale + time.Minute))
	if _, err := r.verify(key.sign(t, i.claims())); !errors.Is(err, ErrNoKeys) {
		t.Errorf("when the keys are stale: %v", err)
	}
	i.set(func(i *issuer) { i.answer = nil })
	eventually(t, "the keys are fresh again", func() bool {
		_, err := r.verify(key.sign(t, i.claims()))
		return err == nil
	})
}

func TestASlowIssuerHoldsUpNobodyElse(t *testing.T) {
	key := newSigner("ec-1", "ES256")
	slow, fast := newIssuer(t, key), newIssuer(t, key)
	released := make(chan struct{})
	defer close(released)
	slow.answer = func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-released:
		case <-r.Context().Done():
		case <-time.After(30 * time.Second):
		}
	}
	p := seldom
	p.timeout, p.wait, p.waiters = 30*time.Second, 300*time.Millisecond, 4
	r := run(t, p)
	r.trust(t, "slow", slow.spec())
	r.trust(t, "fast", fast.spec())
	eventually(t, "the slow one is being asked", func() bool { return slow.count(DiscoveryPath) > 0 })

	var waiting sync.WaitGroup
	var longest atomic.Int64
	for range 50 {
		waiting.Go(func() {
			began := time.Now()
			if _, err := r.verify(key.sign(t, slow.claims())); !errors.Is(err, ErrNoKeys) {
				t.Errorf("of the slow one: %v", err)
			}
			for took := int64(time.Since(began)); ; {
				if have := longest.Load(); took <= have || longest.CompareAndSwap(have, took) {
					return
				}
			}
		})
	}
	began := time.Now()
	if _, err := r.verify(key.sign(t, fast.claims())); err != nil {
		t.Errorf("of the fast one: %v", err)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("the fast one took %s", took)
	}
	waiting.Wait()
	if took := time.Duration(longest.Load()); took > 5*time.Second {
		t.Errorf("somebody waited %s for the slow one, and should %s at most", took, p.wait)
	}
}

func TestACallerWhoGoesAwayDoesNotWait(t *testing.T) {
	key := newSigner("ec-1", "ES256")
	r := run(t, quick, func(c *Config) {
		c.Resolve = func(ctx context.Context, _ string) ([]netip.Addr, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
	})
	i := newIssuer(t, key)
	r.trust(t, "ci", i.spec())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	began := time.Now()
	if _, err := r.Verify(ctx, key.sign(t, i.claims()), ForExchange, time.Now()); !errors.Is(err, ErrNoKeys) || time.Since(began) > 3*time.Second {
		t.Errorf("%v after %s", err, time.Since(began))
	}
}

func TestKeysStayWhenOnlyTheMappingChanges(t *testing.T) {
	key := newSigner("ec-1", "ES256")
	i := newIssuer(t, key)
	r := run(t, seldom)
	r.trust(t, "ci", i.spec())
	if _, err := r.verify(key.sign(t, i.claims())); err != nil {
		t.Fatal(err)
	}
	r.trust(t, "ci", i.spec(func(s *v1alpha1.TrustedIssuerSpec) { s.Mapping.Subject = "'other'" }))
	h, err := r.verify(key.sign(t, i.claims()))
	if err != nil || h.Subject != "issuer:ci:other" {
		t.Errorf("%v, %v", h, err)
	}
	if n := i.count("/keys"); n != 1 {
		t.Errorf("the keys were fetched %d times, want once", n)
	}
	r.trust(t, "ci", i.spec(func(s *v1alpha1.TrustedIssuerSpec) { s.JWKSURL = i.url + "/keys" }))
	if _, err := r.verify(key.sign(t, i.claims())); err != nil || i.count("/keys") != 2 {
		t.Errorf("with another URL: %v, fetched %d times", err, i.count("/keys"))
	}
}

func TestAnIssuerThatIsGoneIsAskedNoMore(t *testing.T) {
	key := newSigner("ec-1", "ES256")
	i := newIssuer(t, key)
	r := run(t, quick)
	r.trust(t, "ci", i.spec())
	eventually(t, "it is asked", func() bool { return i.count("/keys") > 1 })
	r.Delete("ci")
	ended := make(chan struct{})
	go func() { r.workers.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("its goroutine goes on")
	}
	if len(r.States()) != 0 {
		t.Errorf("states: %v", r.States())
	}
	if _, err := r.verify(key.sign(t, i.claims())); !errors.Is(err, ErrUnknownIssuer) {
		t.Errorf("the error is %v", err)
	}
}
