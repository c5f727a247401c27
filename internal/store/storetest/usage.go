package storetest

import (
	"net/netip"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mintmark-dev/mintmark/internal/audit"
	"github.com/mintmark-dev/mintmark/internal/store"
)

func usage(t *testing.T, open Open) {
	s := open(t)
	seal := newSealer("one/1")
	second := func(e *audit.Event) { e.Version, e.Slot, e.Prefix = 2, audit.SlotPrevious, "p2" }
	denied := func(e *audit.Event) { e.Outcome, e.Reason = audit.Denied, "Expired" }
	elsewhere := func(e *audit.Event) { e.Client = netip.MustParseAddr("2001:db8:1:2::3") }
	revocation := func(e *audit.Event) { e.Type, e.Outcome = audit.TypeRevocation, audit.Done }
	must(t, s.Append(t.Context(), seal.seal(t, event(10), event(5), event(11, second), event(12, denied), event(13, revocation))))
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
	// A request to the management API is a use of what it was made with, whatever it is about.
	managed := event(40, second, func(e *audit.Event) {
		e.Type, e.Outcome, e.Actor, e.Detail = audit.TypeManagement, audit.Done, audit.Text(e.Subject), map[string]audit.Text{}
		e.KeepUse()
		e.UID, e.Namespace, e.Subject, e.Name = "uid-other", "billing", "apikey:billing:x", "x"
	})
	search := event(41, func(e *audit.Event) { e.Type, e.Took = audit.TypeManagementRead, 5*time.Second })
	pipeline := event(42, func(e *audit.Event) { e.Type, e.Outcome = audit.TypeCICD, audit.Failed })
	must(t, s.Append(t.Context(), newSealer("three/1").seal(t, managed, search, pipeline)))
	got, err = s.Usage(t.Context(), store.TenantOf("payments"), "uid-1")
	must(t, err)
	want[0].Uses++
	want[0].LastUsed, want[0].LastClient = noon.Add(40*time.Second), netip.MustParsePrefix("192.0.2.0/24")
	want[1].Uses += 2
	want[1].LastUsed, want[1].LastClient = noon.Add(42*time.Second), netip.MustParsePrefix("192.0.2.0/24")
	if diff := cmp.Diff(want, got, addresses); diff != "" {
		t.Errorf("after requests to the management API it differs:\n%s", diff)
	}
	if other, err := s.Usage(t.Context(), store.AllTenants(), "uid-other"); err != nil || len(other) != 0 {
		t.Errorf("what was changed counts as used: %+v (%v)", other, err)
	}
	a, err := s.Analytics(t.Context(), store.AllTenants(), store.AnalyticsFilter{})
	must(t, err)
	if len(a.Top) != 1 || a.Top[0].Namespace != "payments" || a.Latency.P99 > time.Millisecond {
		t.Errorf("analytics count them as %+v, and their time as %+v", a.Top, a.Latency)
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

func totals(t *testing.T, open Open) {
	s := open(t)
	state := func(state string) func(*store.Credential) { return func(c *store.Credential) { c.State = state } }
	must(t, s.PutCredentials(t.Context(), []store.Credential{
		credential("uid-1", "payments", "used"), credential("uid-2", "payments", "never"), credential("uid-3", "payments", "revoked", state(store.StateRevoked)),
		credential("uid-4", "payments", "expired", state(store.StateExpired)), credential("uid-5", "payments", "gone", state(store.StateDeleted)),
		credential("uid-6", "payments", "lapsed", func(c *store.Credential) { c.Expires = noon }), credential("uid-7", "billing", "other"),
	}))
	must(t, s.Append(t.Context(), newSealer("one/1").seal(t, event(10))))
	for name, c := range map[string]struct {
		tenant store.Tenant
		filter store.AnalyticsFilter
		want   store.Totals
	}{
		"all":                   {store.AllTenants(), store.AnalyticsFilter{IdleBefore: noon, Now: noon.Add(time.Hour)}, store.Totals{Active: 1, Inactive: 2, Expired: 2, Revoked: 1}},
		"as the inventory says": {store.AllTenants(), store.AnalyticsFilter{IdleBefore: noon}, store.Totals{Active: 1, Inactive: 3, Expired: 1, Revoked: 1}},
		"not used since":        {store.AllTenants(), store.AnalyticsFilter{IdleBefore: noon.Add(time.Hour), Now: noon.Add(time.Hour)}, store.Totals{Inactive: 3, Expired: 2, Revoked: 1}},
		"of a tenant":           {store.TenantOf("billing"), store.AnalyticsFilter{IdleBefore: noon, Now: noon}, store.Totals{Inactive: 1}},
		"of one":                {store.AllTenants(), store.AnalyticsFilter{UID: "uid-3", IdleBefore: noon, Now: noon}, store.Totals{Revoked: 1}},
		"not asked for":         {store.AllTenants(), store.AnalyticsFilter{}, store.Totals{}},
		"of nobody":             {store.Tenant{}, store.AnalyticsFilter{IdleBefore: noon}, store.Totals{}},
	} {
		t.Run(name, func(t *testing.T) {
			a, err := s.Analytics(t.Context(), c.tenant, c.filter)
			must(t, err)
			if diff := cmp.Diff(c.want, a.Totals); diff != "" {
				t.Errorf("it differs:\n%s", diff)
			}
		})
	}
}
