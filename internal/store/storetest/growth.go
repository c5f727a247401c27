package storetest

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/mintmark-dev/mintmark/internal/audit"
	"github.com/mintmark-dev/mintmark/internal/store"
)

// checkChain verifies what is stored of a chain, and tells how many batches there are and
// how many of them have been cleared.
func checkChain(t *testing.T, s Store, chain string) (batches, cleared int) {
	t.Helper()
	var before *audit.Batch
	for {
		after := uint64(0)
		if before != nil {
			after = before.Sequence
		}
		page, err := s.Batches(t.Context(), chain, after, 3)
		must(t, err)
		if len(page) == 0 {
			return batches, cleared
		}
		for _, b := range page {
			must(t, b.Verify(before))
			if before = b; b.Cleared {
				cleared++
			}
			batches++
		}
	}
}

func retention(t *testing.T, open Open) {
	s := open(t)
	seal := newSealer("one/1")
	for month := range 6 {
		must(t, s.Append(t.Context(), seal.seal(t, event(month, func(e *audit.Event) { e.At = noon.AddDate(0, month, 0) }))))
	}
	months, err := s.Retain(t.Context(), noon.AddDate(0, 3, 0), noon.AddDate(0, 5, 0))
	must(t, err)
	if n := count(t, s, store.EventFilter{}); months != 3 || n != 3 {
		t.Errorf("%d months went and %d events are left, want 3 and 3", months, n)
	}
	if n, cleared := checkChain(t, s, "one/1"); n != 4 || cleared != 1 {
		t.Errorf("of the chain %d batches are left, %d of them cleared; want 4, of which the first is", n, cleared)
	}
	must(t, s.Append(t.Context(), seal.seal(t, event(100)))) // into a month that went
	if n := count(t, s, store.EventFilter{}); n != 4 {
		t.Errorf("%d events are left, want 4", n)
	}
	if months, err = s.Retain(t.Context(), noon.AddDate(0, 3, 0), noon.AddDate(0, 5, 0)); err != nil || months != 1 {
		t.Errorf("the next time %d months went (%v), want 1", months, err)
	}
	checkChain(t, s, "one/1")
}

// calendar has events in the last and the first microsecond of months, also of February in a
// leap year and of a year that is none though four divides it... which is every hundredth.
func calendar(t *testing.T, open Open) {
	s := open(t)
	seal := newSealer("one/1")
	var all []audit.Event
	for i, first := range []time.Time{
		time.Date(2000, 3, 1, 0, 0, 0, 0, time.UTC), // after a 29th, for four hundred divides it
		time.Date(2023, 3, 1, 0, 0, 0, 0, time.UTC), time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2024, 2, 1, 0, 0, 0, 0, time.UTC),
		time.Date(2024, 3, 1, 0, 0, 0, 0, time.UTC), time.Date(2024, 11, 1, 0, 0, 0, 0, time.UTC), time.Date(2025, 3, 1, 0, 0, 0, 0, time.UTC),
	} {
		for n, at := range []time.Time{first.Add(-time.Microsecond), first} {
			all = append(all, event(2*i+n, func(e *audit.Event) { e.At = at }))
		}
	}
	must(t, s.Append(t.Context(), seal.seal(t, slices.Clone(all)...)))
	left := func(from time.Time) (n int) {
		for i := range all {
			if !all[i].At.Before(from) {
				n++
			}
		}
		return n
	}
	for _, c := range []struct{ before, from time.Time }{
		{time.Date(2000, 2, 29, 23, 59, 59, 0, time.UTC), time.Date(2000, 2, 1, 0, 0, 0, 0, time.UTC)},
		{time.Date(2000, 3, 1, 0, 0, 0, 0, time.UTC), time.Date(2000, 3, 1, 0, 0, 0, 0, time.UTC)},
		{time.Date(2024, 2, 29, 23, 59, 59, 999999000, time.UTC), time.Date(2024, 2, 1, 0, 0, 0, 0, time.UTC)},
		{time.Date(2024, 3, 1, 0, 0, 0, 0, time.UTC), time.Date(2024, 3, 1, 0, 0, 0, 0, time.UTC)},
		// Where it is March already, and February still for the server.
		{time.Date(2025, 3, 1, 1, 0, 0, 0, time.FixedZone("east", 2*3600)), time.Date(2025, 2, 1, 0, 0, 0, 0, time.UTC)},
		{time.Date(2025, 3, 31, 23, 0, 0, 0, time.UTC), time.Date(2025, 3, 1, 0, 0, 0, 0, time.UTC)},
	} {
		_, err := s.Retain(t.Context(), c.before, c.before)
		must(t, err)
		if got, want := count(t, s, store.EventFilter{}), left(c.from); got != want {
			t.Errorf("%d events are left before %s, want the %d from %s on", got, c.before, want, c.from)
		}
	}
	// The partition of the month to come is made on a 31st too, for a month that has none.
	for _, now := range []time.Time{time.Date(2024, 1, 31, 12, 0, 0, 0, time.UTC), time.Date(2023, 12, 31, 23, 59, 59, 0, time.UTC)} {
		_, err := s.Retain(t.Context(), time.Time{}, now)
		must(t, err)
	}
}

func clearedIDs(t *testing.T, open Open) {
	s := open(t)
	seal := newSealer("one/1/once")
	old, young := event(1), event(2, func(e *audit.Event) { e.At = noon.AddDate(0, 4, 0) })
	must(t, s.AppendOnce(t.Context(), seal.seal(t, old, young)))
	_, err := s.Retain(t.Context(), noon.AddDate(0, 3, 0), noon.AddDate(0, 5, 0))
	must(t, err)
	missing, err := s.Missing(t.Context(), []audit.Event{
		old, young, event(3, func(e *audit.Event) { e.At = noon.AddDate(0, 1, 0) }), event(4, func(e *audit.Event) { e.At = noon.AddDate(0, 3, 0) }),
	})
	must(t, err)
	if diff := cmp.Diff([]audit.ID{event(4).ID}, missing); diff != "" {
		t.Errorf("of those that were stored, or are older than what is kept, one is missing:\n%s", diff)
	}
	if n, cleared := checkChain(t, s, "one/1/once"); n != 1 || cleared != 1 {
		t.Errorf("of the chain %d batches are left, %d of them cleared; want the one, half of which is gone", n, cleared)
	}
}

func growth(t *testing.T, open Open) {
	s := open(t)
	for chain := range 3 {
		seal := newSealer("run/" + strconv.Itoa(chain))
		for i := range 40 {
			must(t, s.Append(t.Context(), seal.seal(t, event(chain*100+i, func(e *audit.Event) { e.At = noon.AddDate(0, 2*chain, i) }))))
		}
	}
	must(t, s.PutCredentials(t.Context(), []store.Credential{credential("1", "a", "x"), credential("2", "a", "y", func(c *store.Credential) { c.State = store.StateDeleted })}))
	before := noon.AddDate(0, 4, 0)
	first := time.Date(before.Year(), before.Month(), 1, 0, 0, 0, 0, time.UTC)
	_, err := s.Retain(t.Context(), before, noon.AddDate(0, 5, 0))
	must(t, err)
	chains, err := s.Chains(t.Context())
	must(t, err)
	for _, c := range chains {
		n, cleared := checkChain(t, s, c.Name)
		// The first chain is gone but for its end, the second was under way.
		if cleared > 1 || n-cleared > 0 && c.Last.Before(first) {
			t.Errorf("chain %s has %d batches, %d of them cleared", c.Name, n, cleared)
		}
	}
	a, err := s.Analytics(t.Context(), store.AllTenants(), store.AnalyticsFilter{})
	must(t, err)
	if len(a.Daily) == 0 || a.Daily[0].Day.Before(first) {
		t.Errorf("usage by day is kept from %v on, want from %s on", a.Daily, first)
	}
	found, err := s.Credentials(t.Context(), store.AllTenants(), store.CredentialFilter{WithDeleted: true}, store.Page{})
	must(t, err)
	if len(found.Items) != 2 {
		t.Errorf("%d credentials are left, want both: one was deleted just now", len(found.Items))
	}
	_, err = s.Retain(t.Context(), time.Now().AddDate(0, 2, 0), time.Now())
	must(t, err)
	if found, err = s.Credentials(t.Context(), store.AllTenants(), store.CredentialFilter{WithDeleted: true}, store.Page{}); err != nil || len(found.Items) != 1 {
		t.Errorf("%d credentials are left (%v), want the one that is there", len(found.Items), err)
	}
}

func newestFirst(t *testing.T, open Open) {
	s, other := open(t), open(t)
	at := func(version int64, owner string) store.Credential {
		return credential("1", "a", "x", func(c *store.Credential) { c.Applied, c.Owner = version, owner })
	}
	for _, c := range []struct {
		put  store.Credential
		by   Store
		want string
	}{
		{at(10, "ten"), s, "ten"}, {at(9, "nine"), other, "ten"}, {at(10, "ten, by a newer server"), other, "ten, by a newer server"},
		{at(12, "twelve"), other, "twelve"}, {at(11, "eleven"), s, "twelve"}, {at(0, "who knows"), s, "who knows"}, {at(1, "one"), s, "one"},
	} {
		must(t, c.by.PutCredentials(t.Context(), []store.Credential{c.put}))
		found, err := s.Credentials(t.Context(), store.AllTenants(), store.CredentialFilter{}, store.Page{})
		must(t, err)
		if len(found.Items) != 1 || found.Items[0].Owner != c.want {
			t.Errorf("after %q of %d it is %+v, want %q", c.put.Owner, c.put.Applied, found.Items, c.want)
		}
	}
	must(t, s.PutCredentials(t.Context(), []store.Credential{at(500, "future"), credential("2", "a", "y", func(c *store.Credential) { c.Applied = 20 })}))
	newest, err := other.NewestCredential(t.Context())
	must(t, err)
	if newest != 500 {
		t.Errorf("the newest is %d, want 500", newest)
	}
	must(t, s.RewindCredentials(t.Context(), 30))
	must(t, s.PutCredentials(t.Context(), []store.Credential{at(25, "restored")}))
	found, err := s.Credentials(t.Context(), store.AllTenants(), store.CredentialFilter{}, store.Page{})
	must(t, err)
	if len(found.Items) != 2 || found.Items[0].Owner != "restored" || found.Items[1].Applied != 20 {
		t.Errorf("after a restore it is %+v", found.Items)
	}
}

func oddMetadata(t *testing.T, open Open) {
	s := open(t)
	odd := []string{`a"b`, "it's", "ünïcødé 🎉", "a b", "", "a:b=c", `{"a":1}`, "%", "x\x00y", "x\\u0000y", "tab\tnewline\n", "true", "1", "null", "[1]"}
	var all []store.Credential
	for i, value := range odd {
		all = append(all, credential(strconv.Itoa(100+i), "a", "n"+strconv.Itoa(i), func(c *store.Credential) {
			c.Labels, c.Metadata = map[string]string{"l": value}, map[string]string{"k" + value: value, "same": "s"}
		}))
	}
	// The same text on the other side of the border between key and value.
	all = append(all, credential("200", "a", "z1", func(c *store.Credential) { c.Labels, c.Metadata = nil, map[string]string{"ab": "c", "same": "s"} }),
		credential("201", "a", "z2", func(c *store.Credential) {
			c.Labels, c.Metadata = map[string]string{"a": "bc"}, map[string]string{"a": "bc", "same": "s"}
		}))
	must(t, s.PutCredentials(t.Context(), all))
	find := func(f store.CredentialFilter) (uids []string) {
		t.Helper()
		found, err := s.Credentials(t.Context(), store.AllTenants(), f, store.Page{Limit: 1000})
		must(t, err)
		for _, c := range found.Items {
			uids = append(uids, c.UID)
		}
		slices.Sort(uids)
		return uids
	}
	for i, value := range odd {
		want := []string{strconv.Itoa(100 + i)}
		for name, f := range map[string]store.CredentialFilter{
			"a label": {Labels: map[string]string{"l": value}}, "metadata": {Metadata: map[string]string{"k" + value: value}},
			"both": {Metadata: map[string]string{"k" + value: value, "same": "s"}, Labels: map[string]string{"l": value}},
		} {
			if diff := cmp.Diff(want, find(f)); diff != "" {
				t.Errorf("%q by %s:\n%s", value, name, diff)
			}
		}
		if got := find(store.CredentialFilter{Labels: map[string]string{"k" + value: value}}); got != nil {
			t.Errorf("%q of metadata is found as a label: %v", value, got)
		}
	}
	if n := len(find(store.CredentialFilter{Metadata: map[string]string{"same": "s"}})); n != len(all) {
		t.Errorf("%d of %d have what all have", n, len(all))
	}
	if diff := cmp.Diff([]string{"200"}, find(store.CredentialFilter{Metadata: map[string]string{"ab": "c"}})); diff != "" {
		t.Errorf("the border between key and value:\n%s", diff)
	}
	// What changes is found by what it is, not by what it was.
	all[0].Labels, all[0].Metadata = map[string]string{"l": "new"}, nil
	must(t, s.PutCredentials(t.Context(), all[:1]))
	if got := find(store.CredentialFilter{Labels: map[string]string{"l": odd[0]}}); got != nil {
		t.Errorf("it is found by what it was: %v", got)
	}
	if diff := cmp.Diff([]string{"100"}, find(store.CredentialFilter{Labels: map[string]string{"l": "new"}})); diff != "" {
		t.Errorf("after a change:\n%s", diff)
	}
	found, err := s.Credentials(t.Context(), store.TenantOf("b"), store.CredentialFilter{Metadata: map[string]string{"same": "s"}}, store.Page{})
	must(t, err)
	if len(found.Items) != 0 {
		t.Errorf("another tenant finds %d", len(found.Items))
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

func networks(t *testing.T, open Open) {
	s := open(t)
	addresses := []string{"10.0.0.0", "10.0.0.255", "10.0.1.0", "9.255.255.255", "255.255.255.255", "0.0.0.0", "2001:db8::", "2001:db8:0:0:ffff::", "2001:db8:0:1::", "a00::", "::ffff:ffff"}
	var all []audit.Event
	for i, address := range addresses {
		all = append(all, event(i, func(e *audit.Event) { e.Client = netip.MustParseAddr(address) }))
	}
	all = append(all, event(100, func(e *audit.Event) { e.Client = netip.Addr{} }))
	must(t, s.Append(t.Context(), newSealer("one/1").seal(t, all...)))
	for _, network := range []string{
		"10.0.0.0/24", "10.0.0.0/32", "10.0.0.77/24", "0.0.0.0/0", "::/0", "2001:db8::/64", "2001:db8::/63", "10.0.0.0/8", "a00::/8", "255.255.255.255/32", "::ffff:10.0.0.0/120",
	} {
		p := netip.MustParsePrefix(network)
		plain := p
		if p.Addr().Is4In6() {
			plain = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		var want []string
		for _, address := range addresses {
			if plain.Masked().Contains(netip.MustParseAddr(address)) {
				want = append(want, address)
			}
		}
		page, err := s.Events(t.Context(), store.AllTenants(), store.EventFilter{Client: p}, store.Page{OldestFirst: true})
		must(t, err)
		var got []string
		for _, e := range page.Items {
			got = append(got, e.Client.String())
		}
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s: %s", network, fmt.Sprint(diff))
		}
	}
}
