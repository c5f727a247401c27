package limit

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"
)

var noon = time.Date(2026, 1, 15, 12, 0, 0, 0, time.UTC)

func TestABucketHoldsItsBurstAndFillsAtItsRate(t *testing.T) {
	b, r := NewBuckets[string](1000), Rate{Requests: 10, Per: time.Second, Burst: 20}
	for i := range 20 {
		got := b.Take("a", r, noon)
		if !got.OK || got.Limit != 20 || got.Remaining != int64(19-i) || got.RetryAfter != 0 {
			t.Fatalf("request %d of the burst: %+v", i, got)
		}
	}
	got := b.Take("a", r, noon)
	if got.OK || got.Remaining != 0 || got.RetryAfter != 100*time.Millisecond || got.Reset != 2*time.Second {
		t.Errorf("after the burst: %+v", got)
	}
	if b.Take("a", r, noon.Add(99*time.Millisecond)).OK {
		t.Error("allowed before there was one to take")
	}
	if !b.Take("a", r, noon.Add(100*time.Millisecond)).OK {
		t.Error("refused when there was one to take")
	}
	if !b.Take("b", r, noon).OK {
		t.Error("another key has a bucket of its own")
	}
}

func TestOverAnHourARateLetsThroughWhatItSays(t *testing.T) {
	b, r := NewBuckets[string](100), Rate{Requests: 100, Per: time.Minute}
	passed := 0
	for at := noon; at.Before(noon.Add(time.Hour)); at = at.Add(100 * time.Millisecond) {
		if b.Take("a", r, at).OK {
			passed++
		}
	}
	if want := 100 + 100*60; passed < want-2 || passed > want {
		t.Errorf("%d passed, want the burst and an hour's worth, %d", passed, want)
	}
}

func TestTheSharesOfARateAddUpToIt(t *testing.T) {
	whole := Rate{Requests: 100, Per: time.Second, Burst: 200}
	for _, n := range []int{1, 2, 3, 7} {
		passed := 0
		for range n {
			b := NewBuckets[string](100)
			for at := noon; at.Before(noon.Add(10 * time.Second)); at = at.Add(time.Millisecond) {
				if b.Take("a", whole.Share(n), at).OK {
					passed++
				}
			}
		}
		if want := 200 + 1000; passed < want-2*n || passed > want+2*n {
			t.Errorf("%d replicas let %d through, want about %d", n, passed, want)
		}
	}
	if got := (Rate{Requests: 1, Per: time.Second}).Share(10); got.burst() != 1 {
		t.Errorf("a share that lets nothing through: %+v", got)
	}
}

func TestANewRateAppliesFromNowOn(t *testing.T) {
	b := NewBuckets[string](100)
	wide, narrow := Rate{Requests: 100, Per: time.Second}, Rate{Requests: 1, Per: time.Second}
	for range 50 {
		b.Take("a", wide, noon)
	}
	b.Take("a", narrow, noon)
	if got := b.Take("a", narrow, noon); got.OK {
		t.Errorf("two at once under a rate of one: %+v", got)
	}
	if got := b.Take("a", wide, noon.Add(time.Second)); !got.OK || got.Limit != 100 {
		t.Errorf("after the rate was raised: %+v", got)
	}
}

func TestARateOfNothingLetsItsBurstThroughOnce(t *testing.T) {
	b, r := NewBuckets[string](100), Rate{}
	if !b.Take("a", r, noon).OK || b.Take("a", r, noon.Add(time.Hour)).OK {
		t.Error("want one and no more")
	}
}

func TestAFullTableStaysBoundedAndForgetsWhoHasTakenLeast(t *testing.T) {
	b, r := NewBuckets[int](6400), Rate{Requests: 1, Per: time.Hour, Burst: 100}
	for range 100 {
		b.Take(-1, r, noon) // has nothing left
	}
	for i := range 200_000 {
		b.Take(i, r, noon)
	}
	if n := b.Len(); n > 6400 {
		t.Errorf("%d buckets, want at most 6400", n)
	}
	if b.Take(-1, r, noon).OK {
		t.Error("who had taken everything was forgotten for those who had taken one")
	}
}

func TestFailuresBlockForLongerEachTime(t *testing.T) {
	b := NewBlocker(BlockerConfig{Failures: 3, Window: time.Minute, Base: time.Second, Max: 10 * time.Second, Size: 100})
	ip, now := netip.MustParseAddr("192.0.2.1"), noon
	for _, want := range []time.Duration{1, 2, 4, 8, 10, 10} {
		for range 2 {
			if got := b.Fail(ip, now); got != 0 {
				t.Fatalf("blocked for %s before the third failure", got)
			}
		}
		if got := b.Fail(ip, now); got != want*time.Second {
			t.Fatalf("blocked for %s, want %s", got, want*time.Second)
		}
		if got := b.Blocked(ip, now.Add(want*time.Second-1)); got != 1 {
			t.Errorf("a nanosecond before the end: %s left", got)
		}
		now = now.Add(want * time.Second)
		if got := b.Blocked(ip, now); got != 0 {
			t.Errorf("at the end: %s left", got)
		}
	}
	if got := b.Blocked(netip.MustParseAddr("192.0.2.2"), noon); got != 0 {
		t.Errorf("another address: blocked for %s", got)
	}
	// As long as Max without a failure, and it is as if there had been none.
	now = now.Add(time.Minute + 11*time.Second)
	for range 2 {
		b.Fail(ip, now)
	}
	if got := b.Fail(ip, now); got != time.Second {
		t.Errorf("after a quiet time: blocked for %s, want a second", got)
	}
}

func TestSlowFailuresDoNotBlock(t *testing.T) {
	b := NewBlocker(DefaultBlocker())
	for i := range 1000 {
		if got := b.Fail(netip.MustParseAddr("192.0.2.1"), noon.Add(time.Duration(i)*3*time.Second)); got != 0 {
			t.Fatalf("failure %d, one every three seconds: blocked for %s", i, got)
		}
	}
}

func TestWhoIsAllowedIsNeverBlocked(t *testing.T) {
	cfg := DefaultBlocker()
	cfg.Allowed = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	b := NewBlocker(cfg)
	for range 1000 {
		if b.Fail(netip.MustParseAddr("::ffff:10.1.2.3"), noon) != 0 {
			t.Fatal("blocked")
		}
	}
	if known, _ := b.Len(); known != 0 {
		t.Errorf("%d addresses are remembered", known)
	}
}

func TestANetworkOfIPv6CountsAsOneAddress(t *testing.T) {
	b := NewBlocker(DefaultBlocker())
	for i := range 30 {
		b.Fail(netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", i+1)), noon)
	}
	if b.Blocked(netip.MustParseAddr("2001:db8::ffff"), noon) == 0 {
		t.Error("another address of the /64 is not blocked")
	}
	if b.Blocked(netip.MustParseAddr("2001:db8:0:1::1"), noon) != 0 {
		t.Error("another /64 is blocked")
	}
}

func TestAClockSetBackDoesNotBlockForLonger(t *testing.T) {
	b := NewBlocker(BlockerConfig{Failures: 1, Window: time.Minute, Base: time.Second, Max: time.Minute, Size: 100})
	ip := netip.MustParseAddr("192.0.2.1")
	b.Fail(ip, noon)
	if got := b.Blocked(ip, noon.Add(-24*time.Hour)); got != 0 {
		t.Errorf("blocked for %s", got)
	}
}

func TestAFloodOfAddressesIsBoundedAndDoesNotFreeWhoIsBlocked(t *testing.T) {
	cfg := DefaultBlocker()
	cfg.Size = 6400
	b := NewBlocker(cfg)
	bad := netip.MustParseAddr("192.0.2.1")
	for range 30 {
		b.Fail(bad, noon)
	}
	for i := range 200_000 {
		b.Fail(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), noon)
	}
	known, blocked := b.Len()
	if known > 6400 || blocked != 1 {
		t.Errorf("%d known and %d blocked, want at most 6400 and 1", known, blocked)
	}
	if b.Blocked(bad, noon) == 0 {
		t.Error("the flood freed who was blocked")
	}
}

func TestManyMayCallAtOnce(t *testing.T) {
	buckets, blocker := NewBuckets[int](1000), NewBlocker(DefaultBlocker())
	r := Rate{Requests: 1, Per: time.Hour, Burst: 1000}
	var passed [8]int
	var callers sync.WaitGroup
	for i := range passed {
		callers.Go(func() {
			for range 1000 {
				if buckets.Take(1, r, noon).OK {
					passed[i]++
				}
				blocker.Fail(netip.MustParseAddr("192.0.2.1"), noon)
				blocker.Blocked(netip.MustParseAddr("192.0.2.1"), noon)
			}
		})
	}
	callers.Wait()
	total := 0
	for _, n := range passed {
		total += n
	}
	if total != 1000 {
		t.Errorf("%d passed, want the burst, 1000", total)
	}
	if _, blocked := blocker.Len(); blocked != 1 {
		t.Errorf("%d are blocked, want 1", blocked)
	}
}

func BenchmarkTake(b *testing.B) {
	buckets, r := NewBuckets[string](1000), Rate{Requests: 1e9, Per: time.Second}
	now := noon
	b.ReportAllocs()
	for b.Loop() {
		now = now.Add(time.Microsecond)
		buckets.Take("a", r, now)
	}
}

func BenchmarkBlockedNobody(b *testing.B) {
	blocker, ip := NewBlocker(DefaultBlocker()), netip.MustParseAddr("192.0.2.1")
	b.ReportAllocs()
	for b.Loop() {
		blocker.Blocked(ip, noon)
	}
}
