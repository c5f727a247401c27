package storetest

import (
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"

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
	found, err := s.Chains(t.Context(), "", 10)
	must(t, err)
	if len(found) != 2 || found[0].Name != "one/1" || found[0].FirstNumber != 1 || found[0].LastNumber != 5 || !found[0].First.Equal(noon.AddDate(0, 0, 9)) || found[1].Name != "two/1" ||
		!found[1].Last.Equal(noon.AddDate(0, 0, number*9)) {
		t.Fatalf("the chains are %+v", found)
	}
	for after, want := range map[string]int{"": 1, "one": 1, "one/1": 1, "p": 1, "two/1": 0} {
		if page, err := s.Chains(t.Context(), after, 1); err != nil || len(page) != want {
			t.Errorf("after %q, one at a time: %+v (%v)", after, page, err)
		}
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

// parts reads a chain whose batches have many events: not too many at once, and all of them.
func parts(t *testing.T, open Open) {
	s := open(t)
	seal := newSealer("one/1")
	const big = store.MaxBatchEvents - 1
	for number, size := range []int{1, big, 1, store.MaxBatchEvents + 1, 2} {
		events := make([]audit.Event, size)
		for i := range events {
			events[i] = event(number*10*store.MaxBatchEvents + i)
		}
		must(t, s.Append(t.Context(), seal.seal(t, events...)))
	}
	var before *audit.Batch
	var got []int
	for {
		after := uint64(0)
		if before != nil {
			after = before.Sequence
		}
		part, err := s.Batches(t.Context(), "one/1", after, 100)
		must(t, err)
		if len(part) == 0 {
			break
		}
		got = append(got, len(part))
		for _, b := range part {
			must(t, b.Verify(before))
			before = b
		}
	}
	if diff := cmp.Diff([]int{2, 1, 1, 1}, got); diff != "" {
		t.Errorf("batches in each part:\n%s", diff)
	}
	for _, after := range []uint64{5, math.MaxInt64, math.MaxInt64 + 1, math.MaxUint64} {
		if part, err := s.Batches(t.Context(), "one/1", after, 10); err != nil || len(part) != 0 {
			t.Errorf("after batch %d there are %d (%v)", after, len(part), err)
		}
	}
}
