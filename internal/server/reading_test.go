package server

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/audit"
	"github.com/mintmark-dev/mintmark/internal/credential"
	"github.com/mintmark-dev/mintmark/internal/management"
	"github.com/mintmark-dev/mintmark/internal/store"
	"github.com/mintmark-dev/mintmark/internal/store/database"
	testpostgres "github.com/mintmark-dev/mintmark/test/postgres"
)

// engine is a database that is up, whichever it is.
type engine struct {
	database.Engine

	url string
}

func (*engine) State() store.State { return store.State{Configured: true, Up: true} }

// exec runs SQL past the store, as somebody with an account of the database might.
func (s *engine) exec(t *testing.T, statement string) {
	t.Helper()
	driver, source := "pgx", s.url
	if path, ok := strings.CutPrefix(s.url, "sqlite://"); ok {
		driver, source = "sqlite", path
	} else {
		statement = "SET search_path = mintmark; SET mintmark.tenant = '*'; " + statement
	}
	db, err := sql.Open(driver, source)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(t.Context(), statement); err != nil {
		t.Fatal(err)
	}
}

// onBothEngines runs a test with a database of its own on SQLite and on PostgreSQL.
func onBothEngines(t *testing.T, test func(t *testing.T, s *engine)) {
	t.Helper()
	for name, url := range map[string]func(t *testing.T) string{
		"SQLite": func(t *testing.T) string { return "sqlite://" + filepath.Join(t.TempDir(), "mintmark.db") },
		"PostgreSQL": func(t *testing.T) string {
			cluster := testpostgres.StartFor(t, testpostgres.Options{})
			return cluster.URL(testpostgres.Owner, cluster.DatabaseFor(t))
		},
	} {
		t.Run(name, func(t *testing.T) {
			test(t, openEngine(t, url(t)))
		})
	}
}

func openEngine(t *testing.T, url string) *engine {
	t.Helper()
	s := &engine{url: url}
	var err error
	if s.Engine, err = database.Open(t.Context(), s.url, 5, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	if err := s.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

// library is a server with an audit log that can be read.
type library struct {
	*edge
	trail *trail
	admin *minted
}

// newLibrary makes one. Changes are to what it is set up with.
func newLibrary(t *testing.T, s management.Store, change ...func(*management.Config)) *library {
	t.Helper()
	tr, a := newTrail(t)
	c := &management.Config{Store: s, Recorder: a.recorder}
	for _, f := range change {
		f(c)
	}
	r := &library{edge: newEdge(t, setup{audit: a, management: c}), trail: tr}
	if err := r.index.SetClass("operators", &v1alpha1.CredentialClassSpec{Rules: []v1alpha1.ClassRule{{Permissions: []v1alpha1.Permission{"*"}}}}); err != nil {
		t.Fatal(err)
	}
	r.index.SetNamespace("shop", nil)
	r.admin = r.mint("admin", func(rec *credential.Record) { rec.Admin, rec.Permissions, rec.Roles = true, nil, nil })
	return r
}

// operator makes a credential that may do these things in its namespace.
func (r *library) operator(name, namespace string, permissions ...string) *minted {
	return r.mint(name, func(rec *credential.Record) {
		rec.Class, rec.Namespace, rec.Permissions, rec.Roles = "operators", namespace, permissions, nil
	})
}

// get asks as somebody, and reads the answer into a value where there is one.
func (r *library) get(m *minted, path string, status int, into any) answer {
	r.t.Helper()
	return r.send(m, "GET", path, "", status, into)
}

func (r *library) send(m *minted, method, path, body string, status int, into any, headers ...string) answer {
	r.t.Helper()
	if body != "" {
		headers = append(headers, "Content-Type", "application/json")
	}
	got := r.ask(method, path, body, append(headers, "X-API-Key", m.value())...)
	if got.status != status {
		r.t.Fatalf("%s %s: %d, want %d: %s", method, path, got.status, status, got.body)
	}
	if into != nil {
		if err := json.Unmarshal([]byte(got.body), into); err != nil {
			r.t.Fatalf("%s %s: %v: %s", method, path, err, got.body)
		}
	}
	return got
}

type eventsPage struct {
	Items []audit.Event `json:"items"`
	Next  string        `json:"next"`
}

var epoch = time.Now().UTC().Truncate(24 * time.Hour).Add(-48 * time.Hour)

// history is stored as three batches of one chain and one of another.
func history(t *testing.T, s *engine) []audit.Event {
	t.Helper()
	var all []audit.Event
	chain := audit.NewSealer("one_1")
	for batch := range 3 {
		var events []audit.Event
		for i := range 20 {
			n := batch*20 + i
			e := audit.Event{
				ID: audit.FixedID("event", fmt.Sprint(n)), At: epoch.Add(time.Duration(n/2) * time.Minute), Type: audit.TypeAuthentication, Outcome: audit.Allowed,
				Reason: "Accepted", Subject: "servicetoken:payments:ci", UID: "uid-ci", Kind: "ServiceToken", Namespace: "payments", Name: "ci", Class: "operators",
				Version: int64(1 + batch), Prefix: "sk_81ac", Slot: audit.SlotCurrent, Client: netip.MustParseAddr("192.0.2.7"), RequestID: audit.Text(fmt.Sprintf("r-%d", n)),
				Method: "GET", Endpoint: "/orders/7", Server: "one", Took: 38 * time.Microsecond,
			}
			switch n % 10 {
			case 3:
				e.Outcome, e.Reason = audit.Denied, "Permission"
			case 5:
				e.Namespace, e.Subject, e.UID, e.Name, e.Client = "shop", "apikey:shop:till", "uid-till", "till", netip.MustParseAddr("2001:db8::7")
			case 7:
				e = audit.Event{ID: e.ID, At: e.At, Type: audit.TypeServerStarted, Outcome: audit.Done, Server: "one"}
			}
			events = append(events, e)
		}
		all = append(all, events...)
		appendTo(t, s, chain, events)
	}
	other := []audit.Event{{ID: audit.FixedID("other"), At: epoch, Type: audit.TypeRevocation, Outcome: audit.Done, Name: "leak", Detail: map[string]audit.Text{"all": "true"}}}
	appendTo(t, s, audit.NewSealer("two_1"), other)
	return append(all, other...)
}

func appendTo(t *testing.T, s *engine, chain *audit.Sealer, events []audit.Event) {
	t.Helper()
	b, err := chain.Seal(events)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Append(t.Context(), b); err != nil {
		t.Fatal(err)
	}
}

func TestTheAuditLogIsSearchedByWhoMaySeeIt(t *testing.T) {
	onBothEngines(t, func(t *testing.T, s *engine) {
		all := history(t, s)
		r := newLibrary(t, s)
		payments, shop := r.operator("payments-reader", "payments", "mintmark:audit:read"), r.operator("shop-reader", "shop", "mintmark:audit:read")
		count := func(match func(e *audit.Event) bool) (n int) {
			for i := range all {
				if match(&all[i]) {
					n++
				}
			}
			return n
		}
		of := func(namespace string) func(*audit.Event) bool {
			return func(e *audit.Event) bool { return e.Namespace == namespace }
		}
		for name, c := range map[string]struct {
			who   *minted
			query string
			want  int
		}{
			"everything, by an administrator":        {r.admin, "", len(all)},
			"one's own namespace, by an operator":    {payments, "", count(of("payments"))},
			"another's own namespace":                {shop, "", count(of("shop"))},
			"another's namespace is as if empty":     {shop, "namespace=payments", 0},
			"another's credential too":               {shop, "uid=uid-ci", 0},
			"nor by who sent a request":              {shop, "request_id=r-0", 0},
			"nor by where it came from":              {shop, "client=192.0.2.0/24", 0},
			"a namespace, by an administrator":       {r.admin, "namespace=shop", count(of("shop"))},
			"by type":                                {r.admin, "type=server.started", 6},
			"by types, with commas":                  {r.admin, "type=server.started,revocation", 7},
			"by types, repeated":                     {r.admin, "type=server.started&type=revocation", 7},
			"by a type there is nothing of":          {r.admin, "type=cicd", 0},
			"by outcome":                             {r.admin, "outcome=denied", 6},
			"by outcomes":                            {r.admin, "outcome=denied,done", 13},
			"by reason":                              {r.admin, "reason=Permission", 6},
			"by credential":                          {r.admin, "uid=uid-till", 6},
			"by subject":                             {r.admin, "subject=apikey:shop:till", 6},
			"by request":                             {r.admin, "request_id=r-4", 1},
			"by address":                             {r.admin, "client=192.0.2.7", 48},
			"by network":                             {r.admin, "client=192.0.2.0/24", 48},
			"by a network that is written sloppily":  {r.admin, "client=192.0.2.99/24", 48},
			"by a network of IPv6":                   {r.admin, "client=2001:db8::/32", 6},
			"by another network":                     {r.admin, "client=198.51.100.0/24", 0},
			"since":                                  {r.admin, "since=" + url.QueryEscape(epoch.Add(25*time.Minute).Format(time.RFC3339)), 10},
			"until, which is not included":           {r.admin, "until=" + url.QueryEscape(epoch.Add(25*time.Minute).Format(time.RFC3339Nano)), len(all) - 10},
			"in another time zone":                   {r.admin, "since=" + url.QueryEscape(epoch.Add(25*time.Minute).In(time.FixedZone("", 3600)).Format(time.RFC3339)), 10},
			"all of it together":                     {payments, "type=authentication&outcome=denied&reason=Permission&uid=uid-ci&client=192.0.2.0/24", 6},
			"nothing that looks like a statement":    {r.admin, "subject=" + url.QueryEscape("' OR ''='"), 0},
			"a namespace that looks like everything": {shop, "namespace=*", 0},
		} {
			var page eventsPage
			r.get(c.who, "/api/v1/audit/events?limit=1000&"+c.query, http.StatusOK, &page)
			if len(page.Items) != c.want || page.Next != "" {
				t.Errorf("%s: %d events, want %d", name, len(page.Items), c.want)
			}
		}
		var page eventsPage
		r.get(r.admin, "/api/v1/audit/events?request_id=r-3", http.StatusOK, &page)
		if diff := cmp.Diff(all[3:4], page.Items, cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("the event is another (-recorded +read):\n%s", diff)
		}
	})
}

func TestPagesOfEventsHaveEachOfThemOnce(t *testing.T) {
	onBothEngines(t, func(t *testing.T, s *engine) {
		all := history(t, s)
		r := newLibrary(t, s)
		for _, order := range []string{"asc", "desc"} {
			seen, last := map[audit.ID]bool{}, time.Time{}
			path := "/api/v1/audit/events?limit=7&order=" + order
			for pages := 0; path != ""; pages++ {
				if pages > len(all) {
					t.Fatal("it has no end")
				}
				var page eventsPage
				got := r.get(r.admin, path, http.StatusOK, &page)
				for _, e := range page.Items {
					if seen[e.ID] {
						t.Errorf("%s: %s comes twice", order, e.ID)
					}
					if !last.IsZero() && (order == "asc") == e.At.Before(last) && !e.At.Equal(last) {
						t.Errorf("%s: %s comes after %s", order, e.At, last)
					}
					seen[e.ID], last = true, e.At
				}
				link := got.header.Get("Link")
				if (link == "") != (page.Next == "") || link != "" && !strings.Contains(link, `; rel="next"`) {
					t.Errorf("the link is %q, and next is %q", link, page.Next)
				}
				path, _, _ = strings.Cut(strings.TrimPrefix(link, "<"), ">")
			}
			if len(seen) != len(all) {
				t.Errorf("%s: %d events, want %d", order, len(seen), len(all))
			}
		}
	})
}

func TestAQuestionThatIsNoneNamesWhatIsWrong(t *testing.T) {
	s := &stubStore{}
	r := newLibrary(t, s)
	for query, c := range map[string]struct {
		status int
		named  string
	}{
		"events?colour=red":                         {422, "colour"},
		"events?limit=0":                            {422, "limit"},
		"events?limit=1001":                         {422, "limit"},
		"events?limit=many":                         {422, "limit"},
		"events?order=up":                           {422, "order"},
		"events?since=yesterday":                    {422, "since"},
		"events?until=2026-01-01":                   {422, "until"},
		"events?client=example.com":                 {422, "client"},
		"events?client=10.0.0.0/99":                 {422, "client"},
		"events?client=fe80::1%25eth0":              {422, "client"},
		"events?outcome=good":                       {422, "outcome"},
		"events?type=Server%20Started":              {422, "type"},
		"events?cursor=nonsense":                    {400, "cursor"},
		"events?reason=" + strings.Repeat("a", 129): {422, "reason"},
		"events?reason=a&reason=b":                  {422, "reason"},
		"events?type=a&type=b&reason=%zz":           {400, "query"},
		"events?reason=a;b":                         {400, "query"},
		"batches":                                   {422, "chain"},
		"batches?chain=a&after=-1":                  {422, "after"},
		"batches?chain=a&limit=101":                 {422, "limit"},
	} {
		got := r.get(r.admin, "/api/v1/audit/"+query, c.status, nil)
		if !strings.Contains(got.body, c.named) || got.header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: %s does not name %s", query, got.body, c.named)
		}
	}
	for query, named := range map[string]string{"days=0": "days", "days=401": "days", "top=101": "top", "idle_days=0": "idle_days", "month=3": "month"} {
		if got := r.get(r.admin, "/api/v1/analytics?"+query, 422, nil); !strings.Contains(got.body, named) {
			t.Errorf("%s: %s does not name %s", query, got.body, named)
		}
	}
	if s.asked.Load() != 1 { // for the cursor
		t.Errorf("the store was asked %d times", s.asked.Load())
	}
}

func TestChainsAreForAdministratorsAndCanBeCheckedByAnybodyWhoHasThem(t *testing.T) {
	onBothEngines(t, func(t *testing.T, s *engine) {
		history(t, s)
		r := newLibrary(t, s)
		operator := r.operator("reader", "payments", "mintmark:audit:read", "mintmark:analytics:read")
		for _, path := range []string{"GET /api/v1/audit/chains", "GET /api/v1/audit/batches?chain=one_1", "POST /api/v1/audit/verify"} {
			method, path, _ := strings.Cut(path, " ")
			body := map[string]string{"POST": "{}"}[method]
			r.send(operator, method, path, body, http.StatusForbidden, nil)
		}

		var chains struct{ Items []management.Chain }
		r.get(r.admin, "/api/v1/audit/chains", http.StatusOK, &chains)
		var got []string
		for next := "/api/v1/audit/chains?limit=1"; next != ""; {
			var page struct {
				Items []management.Chain
				Next  string
			}
			answer := r.get(r.admin, next, http.StatusOK, &page)
			for _, c := range page.Items {
				got = append(got, fmt.Sprint(c.Name, " ", c.FirstNumber, " ", c.LastNumber))
			}
			if next, _, _ = strings.Cut(strings.TrimPrefix(answer.header.Get("Link"), "<"), ">"); (next == "") != (page.Next == "") {
				t.Errorf("the link is %q, and next %q", next, page.Next)
			}
		}
		if diff := cmp.Diff([]string{"one_1 1 3", "two_1 1 1"}, got); diff != "" || len(chains.Items) != 2 {
			t.Fatalf("%d at once, and in pages: %s", len(chains.Items), diff)
		}
		r.get(r.admin, "/api/v1/audit/chains?cursor=??", http.StatusBadRequest, nil)

		// As a client would that believes nobody.
		var before *audit.Batch
		path := "/api/v1/audit/batches?chain=one_1&limit=2"
		for path != "" {
			var part struct{ Items []*audit.Batch }
			answer := r.get(r.admin, path, http.StatusOK, &part)
			for _, b := range part.Items {
				if err := b.Verify(before); err != nil {
					t.Error(err)
				}
				before = b
			}
			path, _, _ = strings.Cut(strings.TrimPrefix(answer.header.Get("Link"), "<"), ">")
		}
		one := chains.Items[slices.IndexFunc(chains.Items, func(c management.Chain) bool { return c.Name == "one_1" })]
		if before == nil || before.Sequence != 3 || before.Digest.String() != one.Head {
			t.Errorf("the last batch is %+v, and the head %s", before, one.Head)
		}

		verify := func(body string) map[string]string {
			results, cursor := map[string]string{}, ""
			for {
				var out struct {
					Chains []management.VerifiedChain
					Next   string
				}
				asked := body
				if cursor != "" {
					asked = fmt.Sprintf(`{"cursor":%q}`, cursor)
				}
				r.send(r.admin, "POST", "/api/v1/audit/verify", asked, http.StatusOK, &out)
				for _, c := range out.Chains {
					results[c.Name] = fmt.Sprint(c.OK, " ", c.Batches, " ", c.Events, " ", c.Problem)
				}
				if cursor = out.Next; cursor == "" {
					return results
				}
			}
		}
		if diff := cmp.Diff(map[string]string{"one_1": "true 3 60 ", "two_1": "true 1 1 "}, verify(`{}`)); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff(map[string]string{"two_1": "true 1 1 "}, verify(`{"chain":"two_1"}`)); diff != "" {
			t.Error(diff)
		}
		r.send(r.admin, "POST", "/api/v1/audit/verify", `{"chain":"three"}`, http.StatusNotFound, nil)
		r.send(r.admin, "POST", "/api/v1/audit/verify", `{"cursor":"??"}`, http.StatusBadRequest, nil)
		r.send(r.admin, "POST", "/api/v1/audit/verify", `{"chian":"one_1"}`, http.StatusUnprocessableEntity, nil)

		s.exec(t, "UPDATE events SET outcome = 'allowed' WHERE reason = 'Permission' AND request_id = 'r-33'")
		changed := verify(`{}`)
		if !strings.HasPrefix(changed["one_1"], "false 1 20 ") || !strings.Contains(changed["one_1"], "batch 2 of chain one_1") || changed["two_1"] != "true 1 1 " {
			t.Errorf("with a row that was changed: %v", changed)
		}
	})
}

func TestTheCheckOfALongChainGoesOnInTheNextCall(t *testing.T) {
	s := openEngine(t, "sqlite://"+filepath.Join(t.TempDir(), "mintmark.db"))
	batches := map[string]int64{"a": 230, "b": 1, "c": 1, "d": 1, "e": 230}
	for name, n := range batches {
		chain := audit.NewSealer(name)
		for i := range n {
			appendTo(t, s, chain, []audit.Event{{ID: audit.FixedID(name, fmt.Sprint(i)), At: epoch, Type: audit.TypeServerStarted, Outcome: audit.Done}})
		}
	}
	var looks atomic.Int64
	r := newLibrary(t, s, func(c *management.Config) {
		c.Now = func() time.Time { return epoch.Add(time.Duration(looks.Add(1)) * 3 * time.Second) } // each look takes three seconds
	})
	calls, cursor, results := 0, "", map[string]int64{}
	for calls == 0 || cursor != "" {
		var out struct {
			Chains []management.VerifiedChain
			Next   string
		}
		r.send(r.admin, "POST", "/api/v1/audit/verify", fmt.Sprintf(`{"cursor":%q}`, cursor), http.StatusOK, &out)
		for _, c := range out.Chains {
			if _, twice := results[c.Name]; twice || !c.OK {
				t.Errorf("%+v", c)
			}
			results[c.Name] = c.Batches
		}
		cursor = out.Next
		if calls++; calls > 50 {
			t.Fatal("it has no end")
		}
	}
	// Two looks a call, and of each chain one that finds nothing more: short ones take their
	// time as well.
	if diff := cmp.Diff(batches, results); diff != "" || calls < 7 {
		t.Errorf("%d calls: %s", calls, diff)
	}
}

// stubStore fails, or waits, as tests want it to.
type stubStore struct {
	management.Store

	asked atomic.Int64
	fail  func(ctx context.Context) error
}

func (s *stubStore) Events(ctx context.Context, _ store.Tenant, _ store.EventFilter, p store.Page) (store.Events, error) {
	s.asked.Add(1)
	if p.Cursor != "" {
		_, err := store.ParseCursor(p.Cursor)
		return store.Events{}, err
	}
	return store.Events{}, s.fail(ctx)
}

func TestASearchThatCannotBeAnsweredSaysWhenToTryAgain(t *testing.T) {
	down := func(context.Context) error { return errors.New("dial tcp 10.0.0.1:5432: connection refused") }
	for name, c := range map[string]struct {
		store management.Store
		told  string
	}{
		"there is no database":          {nil, "has no database"},
		"it is down":                    {&stubStore{fail: down}, "cannot be asked at the moment"},
		"it is not open":                {database.New(database.Config{}), "cannot be asked at the moment"},
		"the search takes far too long": {&stubStore{fail: func(ctx context.Context) error { return context.DeadlineExceeded }}, "cannot be asked at the moment"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newLibrary(t, c.store)
			got := r.get(r.admin, "/api/v1/audit/events", http.StatusServiceUnavailable, nil)
			if !strings.Contains(got.body, c.told) || strings.Contains(got.body, "10.0.0.1") || got.header.Get("Retry-After") == "" || got.header.Get("Content-Type") != "application/problem+json" {
				t.Errorf("%s %v", got.body, got.header)
			}
			// What it is all for goes on.
			if status := r.ask("GET", "/forward-auth", "", "X-API-Key", r.admin.value()).status; status != http.StatusOK {
				t.Errorf("a verification: %d", status)
			}
		})
	}
}

func TestSearchesThatHangDoNotAddUp(t *testing.T) {
	release := make(chan struct{})
	s := &stubStore{fail: func(ctx context.Context) error {
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}}
	r := newLibrary(t, s)
	shop, payments := r.operator("shop-reader", "shop", "mintmark:audit:read"), r.operator("payments-reader", "payments", "mintmark:audit:read")
	var hanging sync.WaitGroup
	for range 2 {
		hanging.Go(func() { r.get(shop, "/api/v1/audit/events", http.StatusOK, nil) })
	}
	eventually(t, 5*time.Second, "two searches hang", func() bool { return s.asked.Load() == 2 })
	// A third of the same tenant finds no place, and one of another tenant does.
	if got := r.get(shop, "/api/v1/audit/events", http.StatusServiceUnavailable, nil); !strings.Contains(got.body, "Too much") || got.header.Get("Retry-After") == "" {
		t.Errorf("%s %v", got.body, got.header)
	}
	hanging.Go(func() { r.get(payments, "/api/v1/audit/events", http.StatusOK, nil) })
	eventually(t, 5*time.Second, "another tenant's search is under way", func() bool { return s.asked.Load() == 3 })
	close(release)
	hanging.Wait()
	r.get(shop, "/api/v1/audit/events", http.StatusOK, nil)
}

func TestASearchIsRecordedOnceHoweverLongItIsFollowed(t *testing.T) {
	s := &stubStore{fail: func(context.Context) error { return nil }}
	r := newLibrary(t, s)
	operator := r.operator("reader", "payments", "mintmark:audit:read")
	for i := range 20 {
		r.get(operator, fmt.Sprintf("/api/v1/audit/events?type=authentication&since=2026-01-01T00:00:%02dZ", i), http.StatusOK, nil)
	}
	r.get(operator, "/api/v1/audit/events?uid=uid-ci", http.StatusOK, nil)
	r.get(r.admin, "/api/v1/audit/events?type=authentication", http.StatusOK, nil)
	r.get(r.operator("nobody", "payments"), "/api/v1/audit/events", http.StatusForbidden, nil)
	events, _ := r.trail.all()
	var got []string
	for _, e := range events {
		got = append(got, fmt.Sprint(e.Type, " ", e.Outcome, " ", e.Actor, " ", e.Detail["operation"], " ", e.Detail["search"]))
	}
	slices.Sort(got)
	if diff := cmp.Diff([]string{
		"management.read allowed servicetoken:payments:admin audit-events type=authentication",
		"management.read allowed servicetoken:payments:reader audit-events type=authentication",
		"management.read allowed servicetoken:payments:reader audit-events uid=uid-ci",
		"management.read denied servicetoken:payments:nobody audit-events ",
	}, got); diff != "" {
		t.Error(diff)
	}
}

func TestAnalyticsAreOfWhatOneMaySee(t *testing.T) {
	onBothEngines(t, func(t *testing.T, s *engine) {
		history(t, s)
		now := time.Now()
		if err := s.PutCredentials(t.Context(), []store.Credential{
			{UID: "uid-ci", Kind: "ServiceToken", Namespace: "payments", Name: "ci", Class: "operators", Created: now, State: store.StateActive, Applied: 1},
			{UID: "uid-old", Kind: "ServiceToken", Namespace: "payments", Name: "old", Class: "operators", Created: now, State: store.StateActive, Applied: 2},
			{UID: "uid-gone", Kind: "APIKey", Namespace: "shop", Name: "gone", Class: "operators", Created: now, State: store.StateRevoked, Applied: 3},
		}); err != nil {
			t.Fatal(err)
		}
		r := newLibrary(t, s)
		payments, shop := r.operator("p", "payments", "mintmark:analytics:read"), r.operator("s", "shop", "mintmark:analytics:read")
		r.mint("ci", func(rec *credential.Record) { rec.Class = "operators" })
		summary := func(who *minted, path string) string {
			var a management.Analytics
			r.get(who, path, http.StatusOK, &a)
			text := fmt.Sprint("allowed ", a.Requests.Allowed, " denied ", a.Requests.Denied, " days ", len(a.Daily))
			if a.Requests.SuccessRate != nil {
				text += fmt.Sprintf(" rate %.2f", *a.Requests.SuccessRate)
			}
			if a.Totals != nil {
				text += fmt.Sprintf(" totals %+v", *a.Totals)
			}
			for _, u := range a.Top {
				text += fmt.Sprint(" top ", u.Subject, " ", u.Allowed, "/", u.Denied)
			}
			for _, i := range a.Idle {
				text += " idle " + i.Subject
			}
			for _, v := range a.Versions {
				text += fmt.Sprint(" v", v.Version, " ", v.Uses, "/", v.Denied, " ", v.LastClient, " ", v.LastSlot)
			}
			return text
		}
		ofCI := "allowed 42 denied 6 days 1 rate 0.88 v3 14/2 192.0.2.0/24 current v2 14/2 192.0.2.0/24 current v1 14/2 192.0.2.0/24 current"
		for path, want := range map[string]string{
			"/api/v1/analytics?days=7":                    "allowed 42 denied 6 days 1 rate 0.88 totals {All:2 Active:1 Inactive:1 Expired:0 Revoked:0} top servicetoken:payments:ci 42/6 idle servicetoken:payments:old",
			"/api/v1/analytics?days=1":                    "allowed 0 denied 0 days 0 totals {All:2 Active:1 Inactive:1 Expired:0 Revoked:0} idle servicetoken:payments:old",
			"/api/v1/analytics?days=7&uid=uid-ci":         "allowed 42 denied 6 days 1 rate 0.88",
			"/api/v1/analytics?days=7&uid=uid-till":       "allowed 0 denied 0 days 0",
			"/api/v1/auth/tokens/uid-ci/analytics?days=7": ofCI,
			"/api/auth/keys/uid-ci/analytics?days=7":      ofCI,
		} {
			if diff := cmp.Diff(want, summary(payments, path)); diff != "" {
				t.Errorf("%s: %s", path, diff)
			}
		}
		if got := summary(shop, "/api/v1/analytics?days=7"); got != "allowed 6 denied 0 days 1 rate 1.00 totals {All:1 Active:0 Inactive:0 Expired:0 Revoked:1} top apikey:shop:till 6/0" {
			t.Errorf("another tenant sees %s", got)
		}
		// One that is deleted has left its usage; one of another tenant is as if there were none.
		if got := summary(r.admin, "/api/v1/auth/tokens/uid-till/analytics?days=7"); !strings.HasPrefix(got, "allowed 6 denied 0 days 1") {
			t.Errorf("of one that is deleted: %s", got)
		}
		missing := r.get(shop, "/api/v1/auth/tokens/uid-nothing/analytics", http.StatusNotFound, nil)
		if other := r.get(shop, "/api/v1/auth/tokens/uid-ci/analytics", http.StatusNotFound, nil); other.body != missing.body {
			t.Errorf("another tenant's: %s, one that is not there: %s", other.body, missing.body)
		}
	})
}

func TestWhatAPipelineTellsIsOneEvent(t *testing.T) {
	onBothEngines(t, func(t *testing.T, s *engine) {
		tr := new(trail)
		servers := make([]*library, 2)
		for i := range servers {
			once := newLedger(s, tr, fmt.Sprint("server-", i), fmt.Sprint("server-", i), slog.New(slog.DiscardHandler))
			servers[i] = newLibrary(t, s, func(c *management.Config) { c.Once = once.put })
		}
		r := servers[0]
		ci := r.operator("pipeline", "payments", "audit_log")
		ci2 := servers[1].operator("pipeline", "payments", "audit_log")
		body := `{"event":"deploy.started","pipeline":"deploy","repository":"octo/shop","ref":"refs/heads/main","commit":"6dcb09b5b57875f334f61aebed695e2e4193db5e",` +
			`"status":"started","environment":"production","url":"https://ci.example.com/runs/7?token=abc","detail":{"run":"7"}}`
		ids := make(chan string, 20)
		var sending sync.WaitGroup
		for i := range 20 {
			sending.Go(func() {
				var out struct{ ID string }
				who, at := ci, r
				if i%2 == 1 {
					who, at = ci2, servers[1]
				}
				// As long as it is told to try again, as a pipeline would.
				for {
					got := at.ask("POST", "/api/v1/audit/cicd-event", body, "X-API-Key", who.value(), "Content-Type", "application/json", "Idempotency-Key", `"run-7"`)
					if got.status == http.StatusServiceUnavailable {
						continue
					}
					if err := json.Unmarshal([]byte(got.body), &out); err != nil || got.status != http.StatusAccepted {
						t.Errorf("%d %s", got.status, got.body)
					}
					break
				}
				ids <- out.ID
			})
		}
		sending.Wait()
		close(ids)
		var all []string
		for id := range ids {
			all = append(all, id)
		}
		if all = slices.Compact(all); len(all) != 1 {
			t.Errorf("the ids are %v", all)
		}
		var page eventsPage
		r.get(r.admin, "/api/v1/audit/events?type=cicd", http.StatusOK, &page)
		if len(page.Items) != 1 {
			t.Fatalf("%d events", len(page.Items))
		}
		e := page.Items[0]
		want := map[string]audit.Text{
			"pipeline": "deploy", "repository": "octo/shop", "ref": "refs/heads/main", "commit": "6dcb09b5b57875f334f61aebed695e2e4193db5e", "status": "started",
			"environment": "production", "url": "https://ci.example.com/runs/7", "detail.run": "7",
		}
		if diff := cmp.Diff(want, e.Detail); diff != "" {
			t.Error(diff)
		}
		if e.ID.String() != all[0] || e.Reason != "deploy.started" || e.Outcome != audit.Done || e.Subject != "servicetoken:payments:pipeline" || e.Actor != "servicetoken:payments:pipeline" ||
			e.Namespace != "payments" || e.UID != "uid-pipeline" || e.Prefix == "" || e.Client.String() != "127.0.0.1" || e.Method != "POST" {
			t.Errorf("the event is %+v", e)
		}
		// Another key, another caller, or none: another event.
		finished := strings.Replace(body, "deploy.started", "deploy.finished", 1)
		for name, c := range map[string]struct {
			body    string
			headers []string
		}{
			"another key": {body, []string{"Idempotency-Key", "run-8"}}, "something else with the same key": {finished, []string{"Idempotency-Key", "run-7"}},
			"no key": {body, nil}, "no key again": {body, nil},
		} {
			var out struct{ ID string }
			r.send(ci, "POST", "/api/v1/audit/cicd-event", c.body, http.StatusAccepted, &out, c.headers...)
			if slices.Contains(all, out.ID) {
				t.Errorf("%s: the same event", name)
			}
			all = append(all, out.ID)
		}
		var out struct{ ID string }
		const long = "deployer-of-the-shop-in-eu-central-1-production" // as long as what is masked
		r.send(r.operator(long, "shop", "audit_log"), "POST", "/api/v1/audit/cicd-event", strings.Replace(body, `"started"`, `"failure"`, 1), http.StatusAccepted, &out, "Idempotency-Key", `"run-7"`)
		page = eventsPage{}
		r.get(r.admin, "/api/v1/audit/events?type=cicd&outcome=failed&namespace=shop", http.StatusOK, &page)
		if len(page.Items) != 1 || page.Items[0].ID.String() != out.ID || page.Items[0].Subject != "servicetoken:shop:"+long || string(page.Items[0].Actor) != page.Items[0].Subject {
			t.Errorf("%+v", page.Items)
		}
		if events, _ := r.trail.all(); slices.ContainsFunc(events, func(e audit.Event) bool { return e.Type == audit.TypeManagement }) {
			t.Errorf("it is recorded beside itself: %+v", events)
		}
	})
}

func TestAPipelineCanPutNoCredentialAndNoLineBreakIntoTheLog(t *testing.T) {
	r := newLibrary(t, nil)
	ci := r.operator("pipeline", "payments", "audit_log")
	secret := ci.value()
	for name, body := range map[string]map[string]any{
		"no event":             {},
		"a blank event":        {"event": " "},
		"a break":              {"event": "a\nb"},
		"a status of its own":  {"event": "x", "status": "fine"},
		"a commit that is not": {"event": "x", "commit": "main"},
		"a script":             {"event": "x", "url": "javascript:alert(1)"},
		"a field too many":     {"event": "x", "namespace": "shop"},
		"a detail that nests":  {"event": "x", "detail": map[string]any{"a": map[string]any{}}},
		"a detail's name":      {"event": "x", "detail": map[string]any{"a b": "c"}},
		"a detail too long":    {"event": "x", "detail": map[string]any{"a": strings.Repeat("é", 300)}},
		"too many details": {"event": "x", "detail": maps.Collect(func(yield func(string, any) bool) {
			for i := range 17 {
				yield(fmt.Sprint("k", i), "v")
			}
		})},
		"a name that is long": {"event": strings.Repeat("x", 65)},
	} {
		text, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		if got := r.send(ci, "POST", "/api/v1/audit/cicd-event", string(text), 422, nil); strings.Contains(got.body, "javascript") {
			t.Errorf("%s: %s", name, got.body)
		}
	}
	r.send(r.operator("nobody", "payments"), "POST", "/api/v1/audit/cicd-event", `{"event":"x"}`, http.StatusForbidden, nil)
	text, err := json.Marshal(map[string]any{
		"event": "x", "pipeline": secret, "repository": secret, "ref": secret, "environment": secret, "url": "https://x/" + secret + "?" + secret, "commit": secret[3:67],
		"detail": map[string]any{"a": "line\r\nline " + secret, "b": secret},
	})
	if err != nil {
		t.Fatal(err)
	}
	r.send(ci, "POST", "/api/v1/audit/cicd-event", string(text), http.StatusAccepted, nil)
	events, lines := r.trail.all()
	if strings.Contains(lines, secret[3:]) || strings.Contains(r.log.String(), secret[3:]) {
		t.Errorf("the value is in the log:\n%s", lines)
	}
	var kept []audit.Event
	for _, e := range events {
		if e.Type == audit.TypeCICD {
			kept = append(kept, e)
		}
	}
	if len(kept) != 1 || kept[0].Detail["detail.a"] != `line\r\nline sk_[masked]` || kept[0].Detail["commit"] != "[masked]" {
		t.Errorf("%+v", kept)
	}
}

func TestAnEventThatCannotBeStoredIsSentAgain(t *testing.T) {
	for name, c := range map[string]struct {
		config func(*management.Config)
		told   string
	}{
		"the database is down": {func(c *management.Config) {
			c.Once = func(context.Context, []audit.Event) error { return errors.New("refused by 10.0.0.1") }
		}, "same Idempotency-Key"},
		"nothing is recorded": {func(c *management.Config) { c.Recorder = nil }, "keeps no audit log"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newLibrary(t, nil, c.config)
			got := r.send(r.operator("pipeline", "payments", "audit_log"), "POST", "/api/v1/audit/cicd-event", `{"event":"x"}`, http.StatusServiceUnavailable, nil)
			if !strings.Contains(got.body, c.told) || strings.Contains(got.body, "10.0.0.1") || got.header.Get("Retry-After") == "" {
				t.Errorf("%s %v", got.body, got.header)
			}
		})
	}
}
