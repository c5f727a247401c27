package server

import (
	"context"
	"crypto"
	"log/slog"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

// heldKey is a signing key whose checks of signatures can be held up.
type heldKey struct {
	crypto.Signer

	hold    atomic.Bool
	calls   atomic.Int64
	entered chan struct{}
	release chan struct{}
}

// Public is asked for before a check waits for its turn, and again within it.
func (k *heldKey) Public() crypto.PublicKey {
	if k.hold.Load() && k.calls.Add(1)%2 == 0 {
		k.entered <- struct{}{}
		<-k.release
	}
	return k.Signer.Public()
}

// THREATS 16, I17.
func TestWhileSignaturesAreCheckedForOthers(t *testing.T) {
	e := newEdge(t, setup{proxies: localProxies})
	e.guard(1)
	e.operators()
	m, service := e.mint("ci"), e.operator("service", "payments", PermissionIntrospect)
	seen, fresh := e.jwtFor(m, ""), e.jwtFor(m, "")
	others := make([]string, max(1, runtime.GOMAXPROCS(0)/2))
	for i := range others {
		others[i] = e.jwtFor(m, "")
	}
	key := &heldKey{Signer: e.signing.Current.Key, entered: make(chan struct{}), release: make(chan struct{})}
	e.signing.Current.Key = key // it signs no more: that takes the bare key
	if got := e.from(bystander, seen); got.status != http.StatusOK {
		t.Fatal(got)
	}
	var held sync.WaitGroup
	key.hold.Store(true)
	for _, token := range others {
		held.Go(func() {
			if got := e.from(bystander, token); got.status != http.StatusOK {
				t.Errorf("whose turn it was: %d", got.status)
			}
		})
		<-key.entered
	}
	key.hold.Store(false)
	for name, c := range map[string]struct {
		got  answer
		want int
	}{
		"a key":                   {e.from(bystander, m.value()), http.StatusOK},
		"a token seen before":     {e.from(bystander, seen), http.StatusOK},
		"an unknown key":          {e.from(bystander, newValue(t, nil)), http.StatusTooManyRequests}, // the first that counts against the address
		"a token not seen before": {e.from(attacker, fresh), http.StatusServiceUnavailable},
		"the same, introspected":  {e.post(introspectionPath, tokenForm(fresh), service.value()), http.StatusServiceUnavailable},
		"the same, revoked":       {e.post(revocationPath, tokenForm(fresh), m.value()), http.StatusServiceUnavailable},
	} {
		if c.got.status != c.want {
			t.Errorf("%s: %d, want %d", name, c.got.status, c.want)
		}
		if c.want == http.StatusServiceUnavailable && c.got.header.Get("Retry-After") == "" {
			t.Errorf("%s: no Retry-After", name)
		}
	}
	if n := e.public.guard.blockedNow(e.now()); n != 1 {
		t.Errorf("%d addresses are blocked, want that of the unknown key alone", n)
	}
	if text := scrape(t, e.registry); !strings.Contains(text, `code="Busy",route="forward-auth"} 1`) {
		t.Error("it is not counted as Busy")
	}
	close(key.release)
	held.Wait()
	if got := e.from(attacker, fresh); got.status != http.StatusOK {
		t.Errorf("afterwards: %d, %s", got.status, got.body)
	}
}

// blockedLog takes a line only once it may.
type blockedLog struct {
	slog.Handler

	may chan struct{}
}

func (l *blockedLog) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelInfo {
		<-l.may
	}
	return l.Handler.Handle(ctx, r)
}

func (l *blockedLog) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelInfo
}

// I16: a revoked key has a line in the log, and an unknown one has not.
func TestTheAnswerToARevokedKeyDoesNotWaitForTheLog(t *testing.T) {
	e := newEdge(t, setup{})
	log := &blockedLog{Handler: e.log.logger().Handler(), may: make(chan struct{})}
	e.public.log = slog.New(log)
	revoked := e.mint("revoked")
	e.change(revoked, func(r *credential.Record) { r.Versions[0].State = v1alpha1.VersionRevoked })
	e.client.Timeout = 10 * time.Second
	for range 3 {
		if got := e.ask("GET", "/forward-auth", "", bearerOf(revoked.value())...); got.status != http.StatusUnauthorized {
			t.Fatal(got)
		}
	}
	if strings.Contains(e.log.String(), "uid-revoked") {
		t.Error("the line is there before it may be written")
	}
	close(log.may)
	eventually(t, 10*time.Second, "the lines are written", func() bool { return strings.Count(e.log.String(), "uid-revoked") == 3 })
}
