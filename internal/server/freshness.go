package server

import (
	"sync"
	"time"
)

// HeartbeatLease is the name of the Lease a controller renews every 2 seconds.
const HeartbeatLease = "mintmark-heartbeat"

// freshness measures how old what the server knows may be, by the controller's
// heartbeat as it arrives through a watch.
//
// The two clocks need not agree. What is measured is how much later than in the best case
// a heartbeat comes: the least difference ever seen between a heartbeat's time, by the
// controller's clock, and its arrival, by ours, stands for the difference of the clocks.
// Arrival is taken on the monotonic clock, so that stepping our clock changes nothing; when
// the controller's steps back, or another controller takes over, the measure begins anew.
type freshness struct {
	mu     sync.Mutex
	start  time.Time // origin of the monotonic readings
	holder string
	beat   time.Time     // of the latest heartbeat, by the controller's clock
	offset time.Duration // arrival minus heartbeat, in the best case
	asOf   time.Duration // what is known is as of then, since start
	known  bool          // anything known at all
	beats  int
}

func newFreshness(now time.Time) *freshness { return &freshness{start: now} }

// listed says that a consistent list was begun at this time: until the first heartbeat
// after it, what it told is the measure.
func (f *freshness) listed(at time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asOf, f.known = max(f.asOf, at.Sub(f.start)), true
}

// heartbeat says that a heartbeat of that time arrived at now. One that was seen
// already changes nothing.
func (f *freshness) heartbeat(holder string, beat, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if beat.Equal(f.beat) && holder == f.holder {
		return
	}
	arrival := now.Sub(f.start)
	offset := arrival - time.Duration(beat.UnixNano())
	if f.beats == 0 || holder != f.holder || beat.Before(f.beat) {
		f.offset = offset
	}
	f.holder, f.beat = holder, beat
	f.beats++
	f.offset = min(f.offset, offset)
	f.asOf, f.known = max(f.asOf, time.Duration(beat.UnixNano())+f.offset), true
}

// forget begins anew: nothing is known.
func (f *freshness) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.known, f.beats, f.asOf, f.beat, f.holder = false, 0, 0, time.Time{}, ""
}

// age of what is known, at now; ok is false where nothing is.
func (f *freshness) age(now time.Time) (age time.Duration, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return max(0, now.Sub(f.start)-f.asOf), f.known
}

// heartbeatAge is how long ago the latest heartbeat was sent; seen is false before the
// first.
func (f *freshness) heartbeatAge(now time.Time) (age time.Duration, seen bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.beats == 0 {
		return 0, false
	}
	return max(0, now.Sub(f.start)-time.Duration(f.beat.UnixNano())-f.offset), true
}
