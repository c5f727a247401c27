// Package storetest is what every store has to pass.
package storetest

import (
	"fmt"
	"net/netip"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/mintmark-dev/mintmark/internal/audit"
	"github.com/mintmark-dev/mintmark/internal/store"
	"github.com/mintmark-dev/mintmark/internal/store/database"
)

// Store is everything a store can do.
type Store = database.Engine

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
		"migrating twice changes nothing, and the schema fits":              migrating,
		"an event comes back as it was stored":                              roundTrip,
		"a batch is stored once, and another one in its place is refused":   onceEach,
		"a batch is stored whole or not at all":                             wholeOrNot,
		"an event that is recorded once for good is refused the next time":  onceForGood,
		"events are filtered, and pages follow one another without a gap":   pages,
		"a tenant sees its own and nothing else":                            tenants,
		"the chain can be checked from what is stored":                      chains,
		"a chain is read in parts, none of which is too large":              parts,
		"what no text holds finds nothing":                                  noText,
		"usage adds up":                                                     usage,
		"analytics adds up":                                                 analytics,
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

func health(t *testing.T, open Open) {
	h, err := open(t).Health(t.Context())
	must(t, err)
	if h.Engine == "" || h.Version == "" || h.Schema == 0 || h.Size == 0 || h.Latency == 0 {
		t.Errorf("health is %+v", h)
	}
}
