package server

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/audit"
	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/authz/policy"
	"github.com/mintmark-dev/mintmark/internal/credential"
	"github.com/mintmark-dev/mintmark/internal/internalapi"
	"github.com/mintmark-dev/mintmark/internal/store"
	"github.com/mintmark-dev/mintmark/internal/store/sqlite"
)

// trail is an audit log in memory.
type trail struct {
	mu     sync.Mutex
	events []audit.Event
	lines  bytes.Buffer
	stop   func()
}

func (tr *trail) Export(ctx context.Context, events []audit.Event) error {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.events = append(tr.events, events...)
	return audit.NewJSONLines(&tr.lines).Export(ctx, events)
}

// all ends the recording and gives what was recorded.
func (tr *trail) all() ([]audit.Event, string) {
	tr.stop()
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.events, tr.lines.String()
}

func newTrail(t testing.TB) (*trail, *auditor) {
	t.Helper()
	tr := new(trail)
	recorder := audit.New(audit.Config{Server: "one", Chain: "one_1", Exporters: []audit.Exporter{tr}, Flush: time.Millisecond})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := recorder.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	tr.stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
	t.Cleanup(tr.stop)
	return tr, &auditor{recorder: recorder}
}

func TestARequestIsOneEvent(t *testing.T) {
	proxy := []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
	for what, tc := range map[string]struct {
		ask  func(e *edge, m *minted) answer
		want audit.Event
	}{
		"a gateway asks about a request that is let through": {
			func(e *edge, m *minted) answer {
				return e.ask("GET", "/forward-auth?permission=deploy:write", "", "Authorization", "Bearer "+m.value(), "User-Agent", "curl/8",
					"X-Forwarded-For", "192.0.2.7", "X-Forwarded-Method", "DELETE", "X-Forwarded-Uri", "/orders/7?token=x", "X-Request-Id", "0123456789abcdef0123456789abcdef")
			},
			audit.Event{
				Type: audit.TypeAuthentication, Outcome: audit.Allowed, Reason: "Accepted", Client: netip.MustParseAddr("192.0.2.7"), UserAgent: "curl/8",
				Method: "DELETE", Endpoint: "/orders/7", RequestID: "0123456789abcdef0123456789abcdef", Slot: audit.SlotCurrent,
			},
		},
		"one that lacks a permission": {
			func(e *edge, m *minted) answer {
				return e.ask("GET", "/forward-auth?permission=admin:all", "", "Authorization", "Bearer "+m.value(), "X-Request-Id", "r-1", "User-Agent", "x")
			},
			audit.Event{
				Type: audit.TypeAuthentication, Outcome: audit.Denied, Reason: "Permission", Client: netip.MustParseAddr("127.0.0.1"), UserAgent: "x",
				Method: "GET", Endpoint: "/forward-auth", RequestID: "r-1", Slot: audit.SlotCurrent, Detail: map[string]audit.Text{"note": "lacks admin:all"},
			},
		},
		"a token is issued": {
			func(e *edge, m *minted) answer {
				return e.ask("POST", "/api/auth/token", "", "Authorization", "Bearer "+m.value(), "X-Request-Id", "r-2", "User-Agent", "x")
			},
			audit.Event{
				Type: audit.TypeTokenIssued, Outcome: audit.Allowed, Reason: "Accepted", Client: netip.MustParseAddr("127.0.0.1"), UserAgent: "x",
				Method: "POST", Endpoint: "/api/auth/token", RequestID: "r-2", Slot: audit.SlotCurrent,
			},
		},
	} {
		t.Run(what, func(t *testing.T) {
			tr, a := newTrail(t)
			e := newEdge(t, setup{proxies: proxy, audit: a})
			m := e.mint("ci")
			tc.ask(e, m)
			events, _ := tr.all()
			if len(events) != 1 {
				t.Fatalf("%d events, want 1: %+v", len(events), events)
			}
			want := tc.want
			want.Subject, want.UID, want.Kind, want.Namespace, want.Name = "servicetoken:payments:ci", "uid-ci", "ServiceToken", "payments", "ci"
			want.Class, want.Version, want.Prefix, want.Server = "default", 1, m.token.Prefix(), "one"
			if diff := cmp.Diff(want, events[0], cmpopts.IgnoreFields(audit.Event{}, "ID", "At", "Took"), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
				t.Errorf("the event differs (-want +got):\n%s", diff)
			}
			if events[0].Took <= 0 || events[0].At.IsZero() || events[0].ID == (audit.ID{}) {
				t.Errorf("id, time or length are missing: %+v", events[0])
			}
		})
	}
}

func TestWhatIsPublicIsNoEvent(t *testing.T) {
	tr, a := newTrail(t)
	e := newEdge(t, setup{audit: a})
	for _, path := range []string{"/.well-known/jwks.json", "/api/v1/auth/health", "/api/v1/system/health", "/nothing"} {
		e.ask("GET", path, "")
	}
	if events, _ := tr.all(); len(events) != 0 {
		t.Errorf("events of what everybody may read: %+v", events)
	}
}

func TestFailuresAloneAreRecordedWhereThatIsAskedFor(t *testing.T) {
	tr, a := newTrail(t)
	a.failuresOnly = true
	e := newEdge(t, setup{audit: a})
	m := e.mint("ci")
	e.ask("GET", "/forward-auth", "", "Authorization", "Bearer "+m.value())
	e.ask("POST", "/api/auth/token", "", "Authorization", "Bearer "+m.value())
	e.ask("GET", "/forward-auth", "", "Authorization", "Bearer sk_"+strings.Repeat("0", 64))
	events, _ := tr.all()
	var got []string
	for _, ev := range events {
		got = append(got, string(ev.Type)+" "+string(ev.Outcome))
	}
	if diff := cmp.Diff([]string{"authentication denied", "token.issued allowed"}, got, cmpopts.SortSlices(func(a, b string) bool { return a < b })); diff != "" {
		t.Error(diff)
	}
}

// THREATS 27, for the audit log.
func TestASecretInTheWrongPlaceIsInNoEvent(t *testing.T) {
	for name, proxies := range map[string][]netip.Prefix{"plain": nil, "behind a trusted proxy": {netip.MustParsePrefix("127.0.0.1/32")}} {
		t.Run(name, func(t *testing.T) {
			tr, a := newTrail(t)
			e := newEdge(t, setup{proxies: proxies, audit: a})
			m, other := e.mint("ci"), e.mint("other")
			key, err := credential.Format{Kind: v1alpha1.KindAPIKey}.Mint(strings.NewReader(strings.Repeat("mintmark-secret-", 64)))
			if err != nil {
				t.Fatal(err)
			}
			jwt := e.jwtFor(other, "")
			for _, secret := range []string{other.value(), other.value()[3:], key.Reveal(), jwt, strings.Split(jwt, ".")[2]} {
				for _, header := range []string{"User-Agent", "X-Request-Id", "X-Forwarded-For", "X-Forwarded-Uri", "X-Original-Uri", "X-Forwarded-Host", "X-Forwarded-Method",
					"X-Forwarded-Proto", "Referer", "Cookie", "X-Mintmark-Require", "X-Api-Key", "Forwarded"} {
					for _, value := range []string{secret, "/a/" + secret + "/b?k=" + secret, "Mozilla/5.0 (" + secret + ") x"} {
						for _, path := range []string{"/forward-auth", "/forward-auth?permission=" + secret, "/api/auth/token", "/" + secret} {
							e.ask("GET", path, "", "Authorization", "Bearer "+m.value(), header, value)
							e.ask("GET", path, "", header, value)
						}
					}
				}
				for _, body := range []string{secret, `{"permission":"` + secret + `"}`, `{"action":"` + secret + `"}`, `{"path":"/x/` + secret + `","method":"` + secret + `"}`,
					`{"request":{"path":"/x/` + secret + `","action":"` + secret + `"}}`} {
					e.ask("POST", "/api/v1/auth/check", body, "Authorization", "Bearer "+m.value(), "Content-Type", "application/json")
				}
				e.ask("POST", "/oauth2/token", "grant_type=urn:ietf:params:oauth:grant-type:token-exchange&subject_token="+secret+
					"&subject_token_type=urn:ietf:params:oauth:token-type:jwt", "Content-Type", "application/x-www-form-urlencoded")
				e.ask("POST", "/oauth2/introspect", "token="+secret, "Authorization", "Bearer "+m.value(), "Content-Type", "application/x-www-form-urlencoded")
				e.ask("POST", "/oauth2/revoke", "token="+secret, "Authorization", "Bearer "+m.value(), "Content-Type", "application/x-www-form-urlencoded")
				item := internalapi.TransitionItem{ID: audit.FixedID("x").String(), UID: "u", Type: secret, Reason: "for " + secret, Actor: secret, At: time.Now()}
				event, err := eventOf(&item, "one", time.Now())
				if err != nil {
					t.Fatal(err)
				}
				a.recorder.Record(&event)
				a.dryRun(&policy.Finding{Policy: "p", Rule: "r", Code: "c"}, secret)
				a.revocation(&v1alpha1.Revocation{Spec: v1alpha1.RevocationSpec{Reason: "leaked: " + secret}})
			}
			events, lines := tr.all()
			if len(events) < 100 {
				t.Fatalf("%d events: too few for the test to mean anything", len(events))
			}
			for what, text := range map[string]string{"an event": lines, "the log": e.log.String(), "the metrics": scrape(t, e.registry)} {
				for kind, secret := range map[string]string{
					"a service token": other.value()[8:], "its own": m.value()[8:], "an API key": key.Reveal()[12:], "a JWT's signature": strings.Split(jwt, ".")[2], "a JWT's claims": strings.Split(jwt, ".")[1],
				} {
					if at := strings.Index(text, secret); at >= 0 {
						t.Errorf("%s is in %s: ...%.200s", kind, what, text[max(at-150, 0):])
					}
				}
			}
		})
	}
}

// THREATS 25.
func TestWhatCallersSendMakesNoLineOfItsOwn(t *testing.T) {
	tr, a := newTrail(t)
	v := &visit{route: &route{path: "/forward-auth", event: audit.TypeAuthentication}, began: time.Now(), id: "a\nb", agent: "x\r\n{\"id\":1}\u2028\u202e\x00"}
	v.request = original{path: "/a\n{\"outcome\":\"allowed\"}", method: "GET\nX", action: "do\u0085it"}
	v.note = "n\nn"
	a.request(v, time.Millisecond)
	_, lines := tr.all()
	if got := strings.Split(strings.TrimSuffix(lines, "\n"), "\n"); len(got) != 1 || strings.ContainsAny(lines, "\r\x00\u2028\u202e\u0085") {
		t.Fatalf("one event is these lines: %q", got)
	}
	var document map[string]any
	if err := json.Unmarshal([]byte(lines), &document); err != nil || document["method"] != "other" {
		t.Errorf("%v: %s", err, lines)
	}
}

func TestRecordingARequestTakesNoMemory(t *testing.T) {
	// Nothing empties the queue: what finds no room is counted and costs the same.
	a := &auditor{recorder: audit.New(audit.Config{Queue: 1 << 10})}
	x := authn.New(authn.Config{})
	who := x.Foreign(authn.Foreign{UID: "u", Subject: "s"})
	who.Kind = v1alpha1.KindServiceToken
	v := &visit{
		route: &route{path: "/forward-auth", event: audit.TypeAuthentication}, began: time.Now(), id: "0123456789abcdef0123456789abcdef",
		agent: "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36",
	}
	v.verdict = authn.Verdict{OK: true, Principal: who}
	v.request = original{path: "/api/v1/orders/7/items", method: "GET"}
	v.client = netip.MustParseAddr("192.0.2.1")
	if n := testing.AllocsPerRun(100, func() { a.request(v, time.Millisecond) }); n != 0 {
		t.Errorf("%v allocations for a request, want none", n)
	}
}

func openSQLite(t *testing.T, path string) *sqliteStore {
	t.Helper()
	s, err := sqlite.Open(t.Context(), sqlite.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	if err := s.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return &sqliteStore{s}
}

// sqliteStore is a Store that is up.
type sqliteStore struct{ *sqlite.Store }

func (*sqliteStore) State() store.State { return store.State{Configured: true, Up: true} }

func TestATransitionIsStoredOnceHoweverManyServersAreTold(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mintmark.db")
	s := openSQLite(t, path)
	tr, a := newTrail(t)
	var items []internalapi.TransitionItem
	for i := range 20 {
		items = append(items, internalapi.TransitionItem{
			ID: audit.FixedID("t", string(rune('a'+i))).String(), UID: "u", Kind: "ServiceToken", Namespace: "payments", Name: "ci", Type: "Rotated", Version: int64(i), At: time.Now(),
		})
	}
	body, err := json.Marshal(internalapi.TransitionsRequest{Items: append(items, items[0])})
	if err != nil {
		t.Fatal(err)
	}
	var asking sync.WaitGroup
	for _, id := range []string{"one", "two", "three"} {
		l := &internalListener{id: id, log: slog.New(slog.DiscardHandler), audit: a, once: newLedger(s, tr, id, id, slog.New(slog.DiscardHandler))}
		asking.Go(func() {
			for range 5 {
				var answer internalapi.TransitionsResponse
				if p := callTransitions(t, l, body, &answer); p != nil || !answer.Stored {
					t.Errorf("%s: %+v, %+v", id, p, answer)
				}
			}
		})
	}
	asking.Wait()
	page, err := s.Events(t.Context(), store.AllTenants(), store.EventFilter{}, store.Page{Limit: 1000})
	if err != nil || len(page.Items) != len(items) {
		t.Errorf("%d events of %d transitions (%v)", len(page.Items), len(items), err)
	}
	if exported, _ := tr.all(); len(exported) != len(items) {
		t.Errorf("%d were exported of %d", len(exported), len(items))
	}
	verifyChains(t, s)
}

// unlucky is a store where another server is faster, or the answer is lost, once each.
type unlucky struct {
	*sqliteStore
	late, lost bool
}

func (u *unlucky) Missing(ctx context.Context, events []audit.Event) ([]audit.ID, error) {
	if u.late {
		u.late = false
		ids := make([]audit.ID, len(events)) // as it was before the other server stored them
		for i := range events {
			ids[i] = events[i].ID
		}
		return ids, nil
	}
	return u.sqliteStore.Missing(ctx, events)
}

func (u *unlucky) AppendOnce(ctx context.Context, b *audit.Batch) error {
	if err := u.sqliteStore.AppendOnce(ctx, b); err != nil {
		return err
	}
	if u.lost {
		u.lost = false
		return context.DeadlineExceeded
	}
	return nil
}

func TestTheChainOfWhatIsStoredOnceHoldsWhateverComesBetween(t *testing.T) {
	s := openSQLite(t, filepath.Join(t.TempDir(), "mintmark.db"))
	u := &unlucky{sqliteStore: s}
	log := slog.New(slog.DiscardHandler)
	mine, other := newLedger(u, nil, "one", "one", log), newLedger(s, nil, "two", "two", log)
	event := func(name string) []audit.Event {
		return []audit.Event{{ID: audit.FixedID(name), At: time.Now(), Type: audit.TypeCredential, Outcome: audit.Done}}
	}
	put := func(l *ledger, name string) {
		t.Helper()
		if err := l.put(t.Context(), event(name)); err != nil {
			t.Fatal(err)
		}
	}
	put(other, "a")
	u.late = true
	put(mine, "a")
	put(mine, "b")
	u.lost = true
	if err := mine.put(t.Context(), event("c")); err == nil {
		t.Fatal("an answer that was lost counts as good")
	}
	put(mine, "c")
	put(mine, "d")
	page, err := s.Events(t.Context(), store.AllTenants(), store.EventFilter{}, store.Page{})
	if err != nil || len(page.Items) != 4 {
		t.Errorf("%d events of 4 (%v)", len(page.Items), err)
	}
	verifyChains(t, s)
}

func TestWhatEveryServerSeesIsStoredOnce(t *testing.T) {
	s := openSQLite(t, filepath.Join(t.TempDir(), "mintmark.db"))
	var running sync.WaitGroup
	defer running.Wait() // after both have been told to stop
	for _, id := range []string{"one", "two"} {
		_, a := newTrail(t)
		a.once = newLedger(s, nil, id, id, slog.New(slog.DiscardHandler))
		defer start(&running, a.once.Run)()
		said := map[string]string{v1alpha1.AnnotationRevokedBy: "ann", v1alpha1.AnnotationRequestedBy: "root"}
		a.revocation(&v1alpha1.Revocation{
			ObjectMeta: metav1.ObjectMeta{Name: "leak", UID: "r-1", CreationTimestamp: metav1.Now(), Annotations: said},
			Spec:       v1alpha1.RevocationSpec{Reason: "leaked", All: true},
		})
		a.deleted(&v1alpha1.ServiceToken{ObjectMeta: metav1.ObjectMeta{Namespace: "payments", Name: "ci", UID: "u-1"}}, v1alpha1.KindServiceToken, time.Now())
		eventually(t, 10*time.Second, "nothing waits", func() bool { waiting, _ := a.once.depth(); return waiting == 0 })
	}
	page, err := s.Events(t.Context(), store.AllTenants(), store.EventFilter{}, store.Page{})
	if err != nil || len(page.Items) != 2 {
		t.Errorf("%d events, want a revocation and a deletion (%v): %+v", len(page.Items), err, page.Items)
	}
	for _, e := range page.Items {
		if e.Type == audit.TypeRevocation && e.Actor != "ann" {
			t.Errorf("ann made the Revocation, as admission says, and the log says %q", e.Actor)
		}
	}
}

func callTransitions(t *testing.T, l *internalListener, body []byte, answer *internalapi.TransitionsResponse) *problem {
	w := &recorder{header: http.Header{}}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, internalapi.TransitionsPath, bytes.NewReader(body))
	if err != nil {
		t.Error(err)
		return problemInternal
	}
	if p := l.transitions(w, r); p != nil {
		return p
	}
	if err := json.Unmarshal([]byte(w.body), answer); err != nil {
		t.Error(err)
	}
	return nil
}

// chained is what verifyChains reads.
type chained interface {
	Chains(ctx context.Context, after string, limit int) ([]store.Chain, error)
	Batches(ctx context.Context, chain string, after uint64, limit int) ([]*audit.Batch, error)
}

// verifyChains checks every chain to its end.
func verifyChains(t *testing.T, s chained) {
	t.Helper()
	chains, err := s.Chains(t.Context(), "", 1000)
	if err != nil || len(chains) == 0 {
		t.Fatalf("%d chains (%v)", len(chains), err)
	}
	for _, c := range chains {
		var before *audit.Batch
		for after := uint64(0); ; {
			batches, err := s.Batches(t.Context(), c.Name, after, 100)
			if err != nil {
				t.Fatal(err)
			}
			for _, b := range batches {
				if err := b.Verify(before); err != nil {
					t.Fatal(err)
				}
				before, after = b, b.Sequence
			}
			if len(batches) == 0 {
				break
			}
		}
	}
}

func TestAServerWithoutAStoreSaysSoAndWritesTransitionsOutOnlyWhenAsked(t *testing.T) {
	tr, a := newTrail(t)
	l := &internalListener{id: "one", log: slog.New(slog.DiscardHandler), audit: a}
	for _, export := range []bool{false, true} {
		body, err := json.Marshal(internalapi.TransitionsRequest{Export: export, Items: []internalapi.TransitionItem{{ID: audit.FixedID("t").String(), Type: "Minted"}}})
		if err != nil {
			t.Fatal(err)
		}
		var answer internalapi.TransitionsResponse
		if p := callTransitions(t, l, body, &answer); p != nil || answer.Stored || !answer.NoStore {
			t.Errorf("%+v, %+v", p, answer)
		}
	}
	if events, _ := tr.all(); len(events) != 1 || events[0].Reason != "Minted" {
		t.Errorf("written out were %+v, want the transition once", events)
	}
}

func TestWhatWasRevokedStaysSoInARestoredCluster(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mintmark.db")
	log := slog.New(slog.DiscardHandler)
	bury := func(e *edge, s Store) (stones *tombstones, stop func()) {
		stones = newTombstones(s, e.index, func() bool { return true }, log, time.Now)
		ctx, cancel := context.WithCancel(context.Background())
		var running sync.WaitGroup
		running.Go(func() { stones.Run(ctx) })
		stop = sync.OnceFunc(func() {
			cancel()
			running.Wait()
		})
		t.Cleanup(stop)
		return stones, stop
	}

	e, s := newEdge(t, setup{}), openSQLite(t, path)
	m := e.mint("ci")
	older := *m.record
	older.Versions = append([]credential.SealedVersion(nil), m.record.Versions...)
	stones, stop := bury(e, s)
	m.record.Epoch, m.record.Versions[0].State = 2, v1alpha1.VersionRevoked
	e.apply(m)
	stones.see(m.object)
	eventually(t, 5*time.Second, "the tombstone is stored", func() bool {
		all, err := s.Tombstones(t.Context(), 0, 10)
		return err == nil && len(all) == 1 && all[0].UID == m.record.UID
	})
	stop()

	// Another server, on the cluster as it was before.
	restored := newEdge(t, setup{})
	m.record = &older
	restored.apply(m)
	ask := func() int {
		return restored.ask("GET", "/forward-auth", "", "Authorization", "Bearer "+m.value()).status
	}
	if got := ask(); got != http.StatusOK {
		t.Fatalf("before the store is read: %d, want 200, or the test means nothing", got)
	}
	again, _ := bury(restored, s)
	eventually(t, 5*time.Second, "what was revoked is refused", func() bool { return ask() == http.StatusUnauthorized })
	if !again.loaded.Load() {
		t.Error("it does not say that it has read the tombstones")
	}
}

func TestACredentialDeletedWhileItIsRevokedLeavesATombstone(t *testing.T) {
	e, s := newEdge(t, setup{}), openSQLite(t, filepath.Join(t.TempDir(), "mintmark.db"))
	m := e.mint("ci")
	m.object.Spec.Revoked = &v1alpha1.Revoked{Reason: "leaked"}
	e.apply(m) // servers heed the spec, and no controller has settled it
	stones := newTombstones(s, e.index, func() bool { return true }, slog.New(slog.DiscardHandler), time.Now)
	stones.going(m.object)
	e.index.Delete(m.record.UID)
	var after int64
	if err := stones.round(t.Context(), &after); err != nil {
		t.Fatal(err)
	}
	all, err := s.Tombstones(t.Context(), 0, 10)
	if err != nil || len(all) != 1 || all[0].Reason != "leaked" || all[0].Namespace != "payments" {
		t.Errorf("tombstones are %+v (%v)", all, err)
	}
}

func TestTheGateIsClosedWhileEventsAreLostWhereThatIsAskedFor(t *testing.T) {
	losing := false
	r := &readiness{losing: func() bool { return losing }}
	r.warm.Store(true)
	now := time.Now()
	r.until.Store(now.Add(time.Minute).UnixNano())
	if err := r.open(now); err != nil {
		t.Fatal(err)
	}
	if losing = true; r.open(now) == nil {
		t.Error("open while events are lost")
	}
}

// stateless is a store of which only the state is asked.
type stateless struct {
	Store
	state store.State
}

func (s *stateless) State() store.State { return s.state }

func TestTheStatusIsForThoseWhoMayKnowIt(t *testing.T) {
	_, a := newTrail(t)
	e := newEdge(t, setup{audit: a})
	k := new(keys)
	k.public = &k.internal
	r := &readiness{freshness: newFreshness(time.Now()), maxStaleness: time.Minute, keys: k, presence: &presence{}}
	db := &stateless{state: store.State{Configured: true, Trouble: "connection refused"}}
	e.public.system = &system{id: "one", started: time.Now(), ready: r, indexed: e.index.Len, recorder: a.recorder, store: db}
	admin := e.mint("admin", func(rec *credential.Record) { rec.Admin = true })
	for what, tc := range map[string]struct {
		value string
		want  int
	}{
		"nobody":             {"", http.StatusUnauthorized},
		"who may do little":  {e.mint("ci").value(), http.StatusForbidden},
		"an administrator":   {admin.value(), http.StatusOK},
		"somebody with none": {"sk_" + strings.Repeat("0", 64), http.StatusUnauthorized},
	} {
		headers := []string{}
		if tc.value != "" {
			headers = []string{"Authorization", "Bearer " + tc.value}
		}
		got := e.ask("GET", systemStatusPath, "", headers...)
		if got.status != tc.want {
			t.Errorf("%s: %d, want %d: %s", what, got.status, tc.want, got.body)
		}
		if got.status != http.StatusOK {
			continue
		}
		var status systemStatus
		if err := json.Unmarshal([]byte(got.body), &status); err != nil {
			t.Fatal(err)
		}
		if status.Server != "one" || status.Status != "unavailable" || status.Database == nil || status.Database.Up || status.Database.Trouble != "connection refused" || status.Audit == nil {
			t.Errorf("the status is %s", got.body)
		}
	}
	if got := e.ask("GET", "/api/v1/system/health", ""); got.status != http.StatusOK {
		t.Errorf("health: %d", got.status)
	}
	e.gate.set(errCold, false)
	if got := e.ask("GET", "/api/v1/system/health", ""); got.status != http.StatusServiceUnavailable {
		t.Errorf("health of a cold server: %d", got.status)
	}
}
