// Package storetest is what every store has to pass.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/mintmark-dev/mintmark/internal/audit"
	"github.com/mintmark-dev/mintmark/internal/store"
)

// Store is everything a store can do.
type Store interface {
	audit.Store
	Migrate(ctx context.Context) error
	CheckSchema(ctx context.Context) error
	Health(ctx context.Context) (store.Health, error)
	AppendOnce(ctx context.Context, b *audit.Batch) error
	Missing(ctx context.Context, events []audit.Event) ([]audit.ID, error)
	Events(ctx context.Context, t store.Tenant, f store.EventFilter, p store.Page) (store.Events, error)
	Chains(ctx context.Context) ([]store.Chain, error)
	Batches(ctx context.Context, chain string, after uint64, limit int) ([]*audit.Batch, error)
	Usage(ctx context.Context, t store.Tenant, uid string) ([]store.VersionUsage, error)
	Analytics(ctx context.Context, t store.Tenant, f store.AnalyticsFilter) (store.Analytics, error)
	PutCredentials(ctx context.Context, all []store.Credential) error
	NewestCredential(ctx context.Context) (int64, error)
	RewindCredentials(ctx context.Context, after int64) error
	Credentials(ctx context.Context, t store.Tenant, f store.CredentialFilter, p store.Page) (store.Credentials, error)
	PutTombstones(ctx context.Context, all []store.Tombstone) error
	Tombstones(ctx context.Context, after int64, limit int) ([]store.Tombstone, error)
	DenyTokens(ctx context.Context, all []store.DeniedToken) error
	DeniedTokens(ctx context.Context, after int64, now time.Time, limit int) ([]store.DeniedToken, error)
	AwaitDenied(ctx context.Context) error
	Retain(ctx context.Context, before, now time.Time) (months int, err error)
	Close()
}

// Open opens the store under test, or opens it once more: what one has stored the other
// finds.
type Open func(t *testing.T) Store

var (
	noon      = time.Date(2026, 1, 15, 12, 0, 0, 123456000, time.UTC)
	addresses = cmp.Options{
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmpopts.EquateEmpty(),
	}
)

// Run runs every test. fresh gives an Open for a store of its own, empty and migrated.
func Run(t *testing.T, fresh func(t *testing.T) Open) {
	for name, test := range map[string]func(t *testing.T, open Open){
		"migrating twice changes nothing, and the schema fits":             migrating,
		"an event comes back as it was stored":                             roundTrip,
		"a batch is stored once, and another one in its place is refused":  onceEach,
		"a batch is stored whole or not at all":                            wholeOrNot,
		"an event that is recorded once for good is refused the next time": onceForGood,
		"events are filtered, and pages follow one another without a gap":  pages,
		"a tenant sees its own and nothing else":                           tenants,
		"the chain can be checked from what is stored":                     chains,
		"usage adds up":     usage,
		"analytics adds up": analytics,
		"the inventory is searched by labels and metadata":                  inventory,
		"tombstones are handed out in order, each one once":                 tombstones,
		"tokens are refused until they expire":                              deniedTokens,
		"old months go, and what is expired":                                retention,
		"a month ends where the calendar says":                              calendar,
		"what is recorded once stays so after it was cleared out":           clearedIDs,
		"what no event is left of goes with it":                             growth,
		"the inventory keeps what is newest, whoever writes last":           newestFirst,
		"labels and metadata of every kind are found":                       oddMetadata,
		"the inventory is counted":                                          totals,
		"networks are ranges of addresses":                                  networks,
		"many may store at the same time, and nothing is lost or twice":     concurrency,
		"text of every kind is kept, and nothing of it becomes a statement": hostileText,
		"who waits is told of what is refused":                              waiting,
		"health tells what it is":                                           health,
	} {
		t.Run(name, func(t *testing.T) { test(t, fresh(t)) })
	}
}

// event makes one of many different events.
func event(i int, change ...func(*audit.Event)) audit.Event {
	e := audit.Event{
		ID: audit.FixedID("event", strconv.Itoa(i)), At: noon.Add(time.Duration(i) * time.Second), Type: audit.TypeAuthentication, Outcome: audit.Allowed,
		Subject: "servicetoken:payments:ci", UID: "uid-1", Kind: "ServiceToken", Namespace: "payments", Name: "ci", Class: "default", Version: 1,
		Slot: audit.SlotCurrent, Prefix: "sk_live_", Client: netip.MustParseAddr("192.0.2.77"), UserAgent: audit.Clean("curl/8", 100), Method: "GET",
		Endpoint: "/orders", RequestID: "r-1", Server: "one", Took: 150 * time.Microsecond,
	}
	for _, f := range change {
		f(&e)
	}
	return e
}

// sealer makes batches of a chain.
type sealer struct{ chain *audit.Sealer }

func newSealer(name string) *sealer { return &sealer{audit.NewSealer(name)} }

func (s *sealer) seal(t *testing.T, events ...audit.Event) *audit.Batch {
	t.Helper()
	b, err := s.chain.Seal(events)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func count(t *testing.T, s Store, f store.EventFilter) int {
	t.Helper()
	n, cursor := 0, ""
	for {
		page, err := s.Events(t.Context(), store.AllTenants(), f, store.Page{Limit: 1000, Cursor: cursor})
		must(t, err)
		n += len(page.Items)
		if cursor = page.Next; cursor == "" {
			return n
		}
	}
}

func migrating(t *testing.T, open Open) {
	s := open(t)
	must(t, s.Migrate(t.Context()))
	must(t, s.CheckSchema(t.Context()))
	must(t, open(t).Migrate(t.Context()))
}

func roundTrip(t *testing.T, open Open) {
	s := open(t)
	want := []audit.Event{
		event(0),
		event(1, func(e *audit.Event) {
			*e = audit.Event{ID: e.ID, At: e.At, Type: audit.TypeServerStarted, Outcome: audit.Done}
		}),
		event(2, func(e *audit.Event) { e.Client = netip.MustParseAddr("2001:db8::1") }),
		event(3, func(e *audit.Event) {
			e.Detail = map[string]audit.Text{"a": "1", "ü": audit.Clean("line\nbreak", 100)}
		}),
		event(4, func(e *audit.Event) { e.At = noon.AddDate(0, 3, 0); e.Actor = "user:anna" }),
		event(5, func(e *audit.Event) { e.At = time.Date(2026, 1, 31, 23, 59, 59, 999999000, time.UTC) }),
		event(6, func(e *audit.Event) { e.At = time.Date(2026, 2, 1, 0, 0, 0, 0, time.UTC) }),
	}
	must(t, s.Append(t.Context(), newSealer("one/1").seal(t, want...)))
	got, err := open(t).Events(t.Context(), store.AllTenants(), store.EventFilter{}, store.Page{OldestFirst: true})
	must(t, err)
	slices.SortFunc(want, func(a, b audit.Event) int { return a.At.Compare(b.At) })
	if diff := cmp.Diff(want, got.Items, addresses); diff != "" {
		t.Errorf("it differs (-stored +read):\n%s", diff)
	}
}

func onceEach(t *testing.T, open Open) {
	s := open(t)
	b := newSealer("one/1").seal(t, event(0), event(1))
	for range 3 {
		must(t, s.Append(t.Context(), b))
	}
	if n := count(t, s, store.EventFilter{}); n != 2 {
		t.Errorf("%d events are stored, want 2", n)
	}
	usage, err := s.Usage(t.Context(), store.AllTenants(), "uid-1")
	must(t, err)
	if len(usage) != 1 || usage[0].Uses != 2 {
		t.Errorf("usage counts them again: %+v", usage)
	}
	if err := s.Append(t.Context(), newSealer("one/1").seal(t, event(9))); !errors.Is(err, store.ErrConflict) {
		t.Errorf("another batch in its place: %v, want ErrConflict", err)
	}
}

func wholeOrNot(t *testing.T, open Open) {
	s := open(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	b := newSealer("one/1").seal(t, event(0), event(1))
	if err := s.Append(ctx, b); err == nil {
		t.Error("stored though the context had ended")
	}
	if n := count(t, s, store.EventFilter{}); n != 0 {
		t.Errorf("%d events are stored", n)
	}
	must(t, s.Append(t.Context(), b))
	if n := count(t, s, store.EventFilter{}); n != 2 {
		t.Errorf("%d events are stored, want 2", n)
	}
}

func onceForGood(t *testing.T, open Open) {
	s := open(t)
	one, two := newSealer("one/1/once"), newSealer("two/1/once")
	transition := func(e *audit.Event) { e.Type, e.Outcome = audit.TypeCredential, audit.Done }
	first := one.seal(t, event(0, transition), event(1, transition))
	must(t, s.AppendOnce(t.Context(), first))
	must(t, s.AppendOnce(t.Context(), first)) // the same batch again is no second telling
	if err := s.AppendOnce(t.Context(), two.seal(t, event(1, transition), event(2, transition))); !errors.Is(err, store.ErrDuplicate) {
		t.Errorf("told by another server as well: %v, want ErrDuplicate", err)
	}
	if n := count(t, s, store.EventFilter{}); n != 2 {
		t.Errorf("%d events are stored, want 2", n)
	}
	missing, err := s.Missing(t.Context(), []audit.Event{event(2), event(0), event(3)})
	must(t, err)
	if diff := cmp.Diff([]audit.ID{audit.FixedID("event", "2"), audit.FixedID("event", "3")}, missing); diff != "" {
		t.Errorf("missing differ:\n%s", diff)
	}
}

func pages(t *testing.T, open Open) {
	s := open(t)
	var all []audit.Event
	for i := range 250 {
		all = append(all, event(i, func(e *audit.Event) {
			e.At = noon.Add(time.Duration(i/10) * time.Hour) // many at the same time
			if i%5 == 0 {
				e.Outcome, e.Reason = audit.Denied, "Expired"
			}
			if i%7 == 0 {
				e.UID, e.Namespace, e.Subject = "uid-2", "billing", "apikey:billing:x"
			}
			if i%11 == 0 {
				e.Type, e.Client = audit.TypeTokenIssued, netip.MustParseAddr("10.1.2.3")
			}
			e.RequestID = audit.Text("r-" + strconv.Itoa(i))
		}))
	}
	seal := newSealer("one/1")
	for part := range slices.Chunk(all, 40) {
		must(t, s.Append(t.Context(), seal.seal(t, part...)))
	}
	for name, c := range map[string]struct {
		filter store.EventFilter
		keep   func(e audit.Event) bool
	}{
		"all":               {store.EventFilter{}, func(audit.Event) bool { return true }},
		"of a credential":   {store.EventFilter{UID: "uid-2"}, func(e audit.Event) bool { return e.UID == "uid-2" }},
		"of a namespace":    {store.EventFilter{Namespace: "payments"}, func(e audit.Event) bool { return e.Namespace == "payments" }},
		"of a subject":      {store.EventFilter{Subject: "apikey:billing:x"}, func(e audit.Event) bool { return e.Subject == "apikey:billing:x" }},
		"of a type":         {store.EventFilter{Types: []audit.Type{audit.TypeTokenIssued}}, func(e audit.Event) bool { return e.Type == audit.TypeTokenIssued }},
		"refused":           {store.EventFilter{Outcomes: []audit.Outcome{audit.Denied, audit.Failed}}, func(e audit.Event) bool { return e.Outcome == audit.Denied }},
		"for a reason":      {store.EventFilter{Reason: "Expired"}, func(e audit.Event) bool { return e.Reason == "Expired" }},
		"of a request":      {store.EventFilter{RequestID: "r-17"}, func(e audit.Event) bool { return e.RequestID == "r-17" }},
		"from a network":    {store.EventFilter{Client: netip.MustParsePrefix("10.0.0.0/8")}, func(e audit.Event) bool { return e.Client == netip.MustParseAddr("10.1.2.3") }},
		"between two times": {store.EventFilter{Since: noon.Add(3 * time.Hour), Until: noon.Add(5 * time.Hour)}, func(e audit.Event) bool { h := e.At.Sub(noon).Hours(); return h >= 3 && h < 5 }},
		"of nothing at all": {store.EventFilter{UID: "nobody"}, func(audit.Event) bool { return false }},
		"of several at a time": {store.EventFilter{Types: []audit.Type{audit.TypeAuthentication}, Outcomes: []audit.Outcome{audit.Denied}, Namespace: "billing"},
			func(e audit.Event) bool {
				return e.Type == audit.TypeAuthentication && e.Outcome == audit.Denied && e.Namespace == "billing"
			}},
	} {
		for _, oldestFirst := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, oldest first %v", name, oldestFirst), func(t *testing.T) {
				var want []audit.Event
				for _, e := range all {
					if c.keep(e) {
						want = append(want, e)
					}
				}
				slices.SortFunc(want, func(a, b audit.Event) int {
					order := a.At.Compare(b.At)
					if order == 0 {
						order = slices.Compare(a.ID[:], b.ID[:])
					}
					if !oldestFirst {
						order = -order
					}
					return order
				})
				var got []audit.Event
				cursor := ""
				for {
					page, err := s.Events(t.Context(), store.AllTenants(), c.filter, store.Page{Limit: 7, Cursor: cursor, OldestFirst: oldestFirst})
					must(t, err)
					got = append(got, page.Items...)
					if cursor = page.Next; cursor == "" {
						break
					}
				}
				if diff := cmp.Diff(want, got, addresses); diff != "" {
					t.Errorf("%d of %d; it differs:\n%s", len(got), len(want), diff)
				}
			})
		}
	}
	if _, err := s.Events(t.Context(), store.AllTenants(), store.EventFilter{}, store.Page{Cursor: "' OR 1=1"}); !errors.Is(err, store.ErrCursor) {
		t.Errorf("a cursor of somebody's own making: %v, want ErrCursor", err)
	}
}

func tenants(t *testing.T, open Open) {
	s := open(t)
	other := func(e *audit.Event) { e.UID, e.Namespace, e.Subject = "uid-2", "billing", "apikey:billing:x" }
	nobody := func(e *audit.Event) { e.UID, e.Namespace, e.Subject, e.Version = "", "", "", 0 }
	must(t, s.Append(t.Context(), newSealer("one/1").seal(t, event(0), event(1, other), event(2, other), event(3, nobody))))
	must(t, s.PutCredentials(t.Context(), []store.Credential{credential("uid-1", "payments", "ci"), credential("uid-2", "billing", "x")}))
	for name, c := range map[string]struct {
		tenant store.Tenant
		events int
		uses   map[string]int
	}{
		"all":                  {store.AllTenants(), 4, map[string]int{"uid-1": 1, "uid-2": 2}},
		"one":                  {store.TenantOf("payments"), 1, map[string]int{"uid-1": 1}},
		"the other":            {store.TenantOf("billing"), 2, map[string]int{"uid-2": 2}},
		"one that has nothing": {store.TenantOf("empty"), 0, nil},
		"none":                 {store.Tenant{}, 0, nil},
		"one with no name":     {store.TenantOf(""), 0, nil},
		"one called *":         {store.TenantOf("*"), 0, nil},
		"one called %":         {store.TenantOf("%"), 0, nil},
	} {
		t.Run(name, func(t *testing.T) {
			page, err := s.Events(t.Context(), c.tenant, store.EventFilter{}, store.Page{})
			must(t, err)
			if len(page.Items) != c.events {
				t.Errorf("it sees %d events, want %d", len(page.Items), c.events)
			}
			total := 0
			for _, uid := range []string{"uid-1", "uid-2"} {
				versions, err := s.Usage(t.Context(), c.tenant, uid)
				must(t, err)
				uses := 0
				for _, v := range versions {
					uses += int(v.Uses)
				}
				if uses != c.uses[uid] {
					t.Errorf("it sees %d uses of %s, want %d", uses, uid, c.uses[uid])
				}
				total += uses
			}
			a, err := s.Analytics(t.Context(), c.tenant, store.AnalyticsFilter{IdleBefore: noon.AddDate(1, 0, 0)})
			must(t, err)
			if int(a.Allowed) != c.events || len(a.Top) != len(c.uses) || len(a.Idle) != len(c.uses) {
				t.Errorf("analytics: %+v, want %d requests of %d credentials", a, c.events, len(c.uses))
			}
			found, err := s.Credentials(t.Context(), c.tenant, store.CredentialFilter{}, store.Page{})
			must(t, err)
			if len(found.Items) != len(c.uses) {
				t.Errorf("it sees %d credentials, want %d", len(found.Items), len(c.uses))
			}
		})
	}
}

func chains(t *testing.T, open Open) {
	s := open(t)
	one, two := newSealer("one/1"), newSealer("two/1")
	number := 0
	next := func() audit.Event {
		number++
		return event(number, func(e *audit.Event) { e.At = noon.AddDate(0, 0, number*9) })
	}
	for range 5 {
		must(t, s.Append(t.Context(), one.seal(t, next(), next(), next())))
		must(t, s.Append(t.Context(), two.seal(t, next())))
	}
	found, err := s.Chains(t.Context())
	must(t, err)
	if len(found) != 2 || found[0].Name != "one/1" || found[0].Batches != 5 || found[0].Events != 15 || found[0].FirstNumber != 1 || found[0].LastNumber != 5 || found[1].Events != 5 {
		t.Fatalf("the chains are %+v", found)
	}
	for _, c := range found {
		var before *audit.Batch
		for {
			after := uint64(0)
			if before != nil {
				after = before.Sequence
			}
			batches, err := s.Batches(t.Context(), c.Name, after, 2)
			must(t, err)
			if len(batches) == 0 {
				break
			}
			for _, b := range batches {
				must(t, b.Verify(before))
				before = b
			}
		}
		if before == nil || before.Digest != c.Head || before.Sequence != c.LastNumber {
			t.Errorf("chain %s ends with %+v, want %x", c.Name, before, c.Head)
		}
	}
}

func usage(t *testing.T, open Open) {
	s := open(t)
	seal := newSealer("one/1")
	second := func(e *audit.Event) { e.Version, e.Slot, e.Prefix = 2, audit.SlotPrevious, "p2" }
	denied := func(e *audit.Event) { e.Outcome, e.Reason = audit.Denied, "Expired" }
	elsewhere := func(e *audit.Event) { e.Client = netip.MustParseAddr("2001:db8:1:2::3") }
	management := func(e *audit.Event) { e.Type = audit.TypeManagement }
	must(t, s.Append(t.Context(), seal.seal(t, event(10), event(5), event(11, second), event(12, denied), event(13, management))))
	must(t, s.Append(t.Context(), seal.seal(t, event(7), event(20, elsewhere), event(21, denied), event(30, second, denied))))
	got, err := s.Usage(t.Context(), store.AllTenants(), "uid-1")
	must(t, err)
	want := []store.VersionUsage{
		{Version: 2, Prefix: "p2", Uses: 1, Denied: 1, LastUsed: noon.Add(11 * time.Second), LastClient: netip.MustParsePrefix("192.0.2.0/24"), LastSlot: audit.SlotPrevious},
		{Version: 1, Prefix: "sk_live_", Uses: 4, Denied: 2, LastUsed: noon.Add(20 * time.Second), LastClient: netip.MustParsePrefix("2001:db8:1::/48"), LastSlot: audit.SlotCurrent},
	}
	if diff := cmp.Diff(want, got, addresses); diff != "" {
		t.Errorf("it differs:\n%s", diff)
	}
	// What comes late is counted, and is not the last.
	must(t, s.Append(t.Context(), newSealer("two/1").seal(t, event(1, elsewhere, second))))
	got, err = s.Usage(t.Context(), store.AllTenants(), "uid-1")
	must(t, err)
	if want[0].Uses++; !cmp.Equal(want, got, addresses) {
		t.Errorf("after a late one it differs:\n%s", cmp.Diff(want, got, addresses))
	}
}

func analytics(t *testing.T, open Open) {
	s := open(t)
	seal := newSealer("one/1")
	var events []audit.Event
	for i := range 100 {
		events = append(events, event(i, func(e *audit.Event) {
			e.At = noon.AddDate(0, 0, i%4)
			e.UID = "uid-" + strconv.Itoa(i%10)
			e.Subject, e.Name = "servicetoken:payments:"+e.UID, e.UID
			e.Took = time.Duration(100) * time.Microsecond
			if i%10 == 3 {
				e.Outcome = audit.Denied
			}
			if i == 50 {
				e.Took = 40 * time.Millisecond
			}
		}))
	}
	events = append(events, event(1000, func(e *audit.Event) { e.At, e.UID, e.Outcome, e.Version = noon, "", audit.Denied, 0 }))
	must(t, s.Append(t.Context(), seal.seal(t, events...)))
	a, err := s.Analytics(t.Context(), store.AllTenants(), store.AnalyticsFilter{Since: noon, Until: noon.AddDate(0, 0, 2), Top: 3})
	must(t, err)
	if a.Allowed+a.Denied != 76 || len(a.Daily) != 3 || !a.Daily[0].Day.Equal(time.Date(2026, 1, 15, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("of three days: %+v", a)
	}
	if len(a.Top) != 3 || a.Top[0].Allowed+a.Top[0].Denied < a.Top[2].Allowed+a.Top[2].Denied || a.Top[0].UID == "" || a.Top[0].Namespace != "payments" {
		t.Errorf("the most used are %+v", a.Top)
	}
	if a.Latency.P50 != 128*time.Microsecond || a.Latency.P99 < 128*time.Microsecond {
		t.Errorf("latency: %+v", a.Latency)
	}
	one, err := s.Analytics(t.Context(), store.AllTenants(), store.AnalyticsFilter{UID: "uid-3"})
	must(t, err)
	if one.Allowed != 0 || one.Denied != 10 {
		t.Errorf("of one credential: %+v", one)
	}
	must(t, s.PutCredentials(t.Context(), []store.Credential{
		credential("uid-3", "payments", "uid-3"), credential("uid-4", "payments", "uid-4"), credential("never", "payments", "never"),
		credential("gone", "payments", "gone", func(c *store.Credential) { c.State = "Deleted" }),
	}))
	idle, err := s.Analytics(t.Context(), store.AllTenants(), store.AnalyticsFilter{IdleBefore: noon.AddDate(0, 0, 1)})
	must(t, err)
	var uids []string
	for _, i := range idle.Idle {
		uids = append(uids, i.UID)
	}
	// uid-3 was refused each time: that is no use.
	if !slices.Equal(uids, []string{"never", "uid-3"}) || idle.Idle[0].Subject != "servicetoken:payments:never" || !idle.Idle[0].LastUsed.IsZero() {
		t.Errorf("idle are %+v", idle.Idle)
	}
}

func credential(uid, namespace, name string, change ...func(*store.Credential)) store.Credential {
	c := store.Credential{
		UID: uid, Kind: "ServiceToken", Namespace: namespace, Name: name, Class: "default", Owner: "team-a", Description: "of " + name,
		Labels: map[string]string{"app": name}, Metadata: map[string]string{"ticket": "T-" + uid}, Created: noon, State: "Active",
	}
	for _, f := range change {
		f(&c)
	}
	return c
}

func inventory(t *testing.T, open Open) {
	s := open(t)
	all := []store.Credential{
		credential("1", "a", "x"), credential("2", "a", "y", func(c *store.Credential) { c.Kind, c.Expires = "APIKey", noon.AddDate(1, 0, 0) }),
		credential("3", "b", "x", func(c *store.Credential) { c.Metadata["team"] = "it's \"quoted\""; c.Admin = true }),
		credential("4", "b", "z", func(c *store.Credential) { c.State, c.Labels, c.Metadata = "Deleted", nil, nil }),
	}
	must(t, s.PutCredentials(t.Context(), all))
	must(t, s.PutCredentials(t.Context(), all[:2]))
	for name, c := range map[string]struct {
		filter store.CredentialFilter
		want   []int
	}{
		"all but those deleted":         {store.CredentialFilter{}, []int{0, 1, 2}},
		"all":                           {store.CredentialFilter{WithDeleted: true}, []int{0, 1, 2, 3}},
		"those deleted":                 {store.CredentialFilter{State: "Deleted"}, []int{3}},
		"by kind":                       {store.CredentialFilter{Kind: "APIKey"}, []int{1}},
		"by namespace and name":         {store.CredentialFilter{Namespace: "b", Name: "x"}, []int{2}},
		"by label":                      {store.CredentialFilter{Labels: map[string]string{"app": "x"}}, []int{0, 2}},
		"by metadata":                   {store.CredentialFilter{Metadata: map[string]string{"team": "it's \"quoted\"", "ticket": "T-3"}}, []int{2}},
		"by metadata that one half has": {store.CredentialFilter{Metadata: map[string]string{"team": "it's \"quoted\"", "ticket": "T-1"}}, nil},
		"by owner":                      {store.CredentialFilter{Owner: "team-b"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var got []store.Credential
			cursor := ""
			for {
				page, err := s.Credentials(t.Context(), store.AllTenants(), c.filter, store.Page{Limit: 2, Cursor: cursor})
				must(t, err)
				got = append(got, page.Items...)
				if cursor = page.Next; cursor == "" {
					break
				}
			}
			var want []store.Credential
			for _, i := range c.want {
				want = append(want, all[i])
			}
			if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("it differs:\n%s", diff)
			}
		})
	}
	changed := all[0]
	changed.Owner, changed.State, changed.Metadata = "team-b", "Revoked", map[string]string{"ticket": "new"}
	must(t, s.PutCredentials(t.Context(), []store.Credential{changed}))
	found, err := s.Credentials(t.Context(), store.AllTenants(), store.CredentialFilter{Metadata: map[string]string{"ticket": "new"}}, store.Page{})
	must(t, err)
	if diff := cmp.Diff([]store.Credential{changed}, found.Items, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("after a change it differs:\n%s", diff)
	}
	if _, err := s.Credentials(t.Context(), store.AllTenants(), store.CredentialFilter{}, store.Page{Cursor: "x"}); !errors.Is(err, store.ErrCursor) {
		t.Errorf("a cursor of somebody's own making: %v, want ErrCursor", err)
	}
}

func tombstone(i int) store.Tombstone {
	return store.Tombstone{
		Digest: []byte(fmt.Sprintf("digest %025d", i)), Pepper: "p1", UID: "uid-" + strconv.Itoa(i), Namespace: "payments", Version: 3, Reason: "leaked",
		RevokedAt: noon, Until: noon.AddDate(0, 0, i),
	}
}

func tombstones(t *testing.T, open Open) {
	s := open(t)
	var want []store.Tombstone
	for i := range 25 {
		want = append(want, tombstone(i+1))
	}
	want[24].Until = time.Time{}
	must(t, s.PutTombstones(t.Context(), want[:20]))
	must(t, s.PutTombstones(t.Context(), want[10:])) // some again
	var got []store.Tombstone
	after := int64(0)
	for {
		page, err := s.Tombstones(t.Context(), after, 10)
		must(t, err)
		if len(page) == 0 {
			break
		}
		for _, stone := range page {
			if stone.Number <= after {
				t.Fatalf("number %d comes after %d", stone.Number, after)
			}
			after = stone.Number
		}
		got = append(got, page...)
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(store.Tombstone{}, "Number")); diff != "" {
		t.Errorf("it differs:\n%s", diff)
	}
	if _, err := s.Retain(t.Context(), time.Time{}, noon.AddDate(0, 0, 10).Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	left, err := s.Tombstones(t.Context(), 0, 100)
	must(t, err)
	if len(left) != 15 {
		t.Errorf("%d are left after ten have expired, want 15", len(left))
	}
}

func deniedTokens(t *testing.T, open Open) {
	s := open(t)
	tokens := []store.DeniedToken{{Key: []byte("a"), Namespace: "payments", Until: noon.Add(time.Minute)}, {Key: []byte("b"), Until: noon.Add(time.Hour)}}
	must(t, s.DenyTokens(t.Context(), tokens))
	must(t, s.DenyTokens(t.Context(), tokens[1:]))
	got, err := s.DeniedTokens(t.Context(), 0, noon, 10)
	must(t, err)
	if diff := cmp.Diff(tokens, got, cmpopts.IgnoreFields(store.DeniedToken{}, "Number")); diff != "" {
		t.Errorf("it differs:\n%s", diff)
	}
	if got, err = s.DeniedTokens(t.Context(), got[0].Number, noon, 10); err != nil || len(got) != 1 || string(got[0].Key) != "b" {
		t.Errorf("after the first: %+v, %v", got, err)
	}
	if got, err = s.DeniedTokens(t.Context(), 0, noon.Add(2*time.Minute), 10); err != nil || len(got) != 1 {
		t.Errorf("after one has expired: %+v, %v", got, err)
	}
}

func concurrency(t *testing.T, open Open) {
	const writers, batches, size = 6, 15, 20
	var all sync.WaitGroup
	for w := range writers {
		s := open(t)
		all.Go(func() {
			seal := newSealer(fmt.Sprintf("server-%d/1", w))
			for b := range batches {
				var events []audit.Event
				for i := range size {
					events = append(events, event((w*batches+b)*size+i, func(e *audit.Event) {
						e.UID = "uid-" + strconv.Itoa((w+i)%5)
						e.At = noon.AddDate(0, b%3, 0).Add(time.Duration(i) * time.Millisecond)
					}))
				}
				sealed, err := seal.chain.Seal(events)
				if err == nil {
					err = s.Append(t.Context(), sealed)
				}
				if err == nil && b%3 == 0 {
					err = s.Append(t.Context(), sealed)
				}
				if err == nil {
					err = s.PutTombstones(t.Context(), []store.Tombstone{tombstone(w*batches + b + 1)})
				}
				if err == nil {
					_, err = s.Events(t.Context(), store.AllTenants(), store.EventFilter{}, store.Page{})
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	s := open(t)
	if n := count(t, s, store.EventFilter{}); n != writers*batches*size {
		t.Errorf("%d events are stored, want %d", n, writers*batches*size)
	}
	uses := int64(0)
	for i := range 5 {
		versions, err := s.Usage(t.Context(), store.AllTenants(), "uid-"+strconv.Itoa(i))
		must(t, err)
		for _, v := range versions {
			uses += v.Uses
		}
	}
	if uses != writers*batches*size {
		t.Errorf("%d uses are counted, want %d", uses, writers*batches*size)
	}
	stones, err := s.Tombstones(t.Context(), 0, 1000)
	must(t, err)
	if len(stones) != writers*batches {
		t.Errorf("%d tombstones, want %d", len(stones), writers*batches)
	}
}

func hostileText(t *testing.T, open Open) {
	s := open(t)
	for i, text := range []string{`'; DROP TABLE events; --`, `" OR 1=1`, `\'`, `$1`, `%`, `{"a":1}`, "tab\there", "ünïcødé 🎉", `\u0000`} {
		e := event(i, func(e *audit.Event) {
			e.Subject, e.UserAgent, e.Detail = "s"+strconv.Itoa(i), audit.Clean(text, 200), map[string]audit.Text{string(audit.Clean(text, 60)): audit.Clean(text, 200)}
		})
		must(t, s.Append(t.Context(), newSealer("c/"+strconv.Itoa(i)).seal(t, e)))
		page, err := s.Events(t.Context(), store.AllTenants(), store.EventFilter{Subject: e.Subject}, store.Page{})
		must(t, err)
		if diff := cmp.Diff([]audit.Event{e}, page.Items, addresses); diff != "" {
			t.Errorf("%q differs:\n%s", text, diff)
		}
		page, err = s.Events(t.Context(), store.TenantOf(text), store.EventFilter{Subject: text, Reason: text, UID: text}, store.Page{})
		must(t, err)
		if len(page.Items) != 0 {
			t.Errorf("%q finds %d events", text, len(page.Items))
		}
	}
}

func waiting(t *testing.T, open Open) {
	s, other := open(t), open(t)
	for name, put := range map[string]func(i int) error{
		"a tombstone": func(i int) error { return other.PutTombstones(t.Context(), []store.Tombstone{tombstone(i)}) },
		"a token": func(i int) error {
			return other.DenyTokens(t.Context(), []store.DeniedToken{{Key: []byte(strconv.Itoa(i)), Until: noon}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			told := make(chan error, 1)
			go func() { told <- s.AwaitDenied(t.Context()) }()
			deadline := time.After(10 * time.Second)
			for i := 1; ; i++ { // until it listens
				must(t, put(i))
				select {
				case err := <-told:
					must(t, err)
					return
				case <-deadline:
					t.Fatal("it was not told")
				case <-time.After(50 * time.Millisecond):
				}
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.AwaitDenied(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end of the context: %v", err)
	}
}

func health(t *testing.T, open Open) {
	h, err := open(t).Health(t.Context())
	must(t, err)
	if h.Engine == "" || h.Version == "" || h.Schema == 0 || h.Size == 0 || h.Latency == 0 {
		t.Errorf("health is %+v", h)
	}
}
