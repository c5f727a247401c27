package storetest

import (
	"context"
	"errors"
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

// noText asks for text that PostgreSQL cannot hold, as anybody may who writes a query.
func noText(t *testing.T, open Open) {
	s := open(t)
	must(t, s.Append(t.Context(), newSealer("one/1").seal(t, event(0))))
	odd := credential("1", "a", "x", func(c *store.Credential) { c.Owner = "team\x00a" })
	must(t, s.PutCredentials(t.Context(), []store.Credential{odd, credential("2", "a", "y")}))
	for _, text := range []string{"\x00", "ci\x00", "\xff", "a\xc3"} {
		for name, f := range map[string]store.EventFilter{
			"reason": {Reason: text}, "namespace": {Namespace: text}, "uid": {UID: text}, "subject": {Subject: text}, "request": {RequestID: text},
		} {
			if page, err := s.Events(t.Context(), store.AllTenants(), f, store.Page{}); err != nil || len(page.Items) != 0 {
				t.Errorf("events by %s %q: %d (%v)", name, text, len(page.Items), err)
			}
		}
		for name, f := range map[string]store.CredentialFilter{
			"kind": {Kind: text}, "namespace": {Namespace: text}, "name": {Name: text}, "class": {Class: text}, "owner": {Owner: text}, "state": {State: text},
			"label": {Labels: map[string]string{text: text}}, "metadata": {Metadata: map[string]string{text: text}},
		} {
			if page, err := s.Credentials(t.Context(), store.AllTenants(), f, store.Page{}); err != nil || len(page.Items) != 0 {
				t.Errorf("credentials by %s %q: %d (%v)", name, text, len(page.Items), err)
			}
		}
		cursor := store.CredentialCursor(store.Credential{UID: text, Name: text})
		if _, err := s.Credentials(t.Context(), store.AllTenants(), store.CredentialFilter{}, store.Page{Cursor: cursor}); err != nil && !errors.Is(err, store.ErrCursor) {
			t.Errorf("credentials after %q: %v", text, err)
		}
		if _, err := s.Chains(t.Context(), text, 10); err != nil {
			t.Errorf("chains after %q: %v", text, err)
		}
		if batches, err := s.Batches(t.Context(), text, 0, 10); err != nil || len(batches) != 0 {
			t.Errorf("chain %q: %d batches (%v)", text, len(batches), err)
		}
		if usage, err := s.Usage(t.Context(), store.AllTenants(), text); err != nil || len(usage) != 0 {
			t.Errorf("usage of %q: %+v (%v)", text, usage, err)
		}
		if a, err := s.Analytics(t.Context(), store.AllTenants(), store.AnalyticsFilter{UID: text, IdleBefore: noon}); err != nil || a.Allowed != 0 || a.Totals.All() != 0 {
			t.Errorf("analytics of %q: %+v (%v)", text, a, err)
		}
	}
	found, err := s.Credentials(t.Context(), store.AllTenants(), store.CredentialFilter{Owner: odd.Owner}, store.Page{})
	if err != nil || len(found.Items) != 1 || found.Items[0].UID != "1" {
		t.Errorf("an owner of such text is found as %+v (%v)", found.Items, err)
	}
}
