package storetest

import (
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mintmark-dev/mintmark/internal/audit"
	"github.com/mintmark-dev/mintmark/internal/store"
)

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

// calendar has events in the last and the first microsecond of months, also of February in
// leap years and in others.
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
	chains, err := s.Chains(t.Context(), "", 10)
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
