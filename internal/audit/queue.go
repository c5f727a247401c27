package audit

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
)

// queue holds events until they are batched. It has as many lanes as it takes for the
// flood of one credential, or of one address, to fill one of them and leave the others
// to the rest. The lanes are emptied in turn.
type queue struct {
	seed  maphash.Seed
	ready chan struct{} // has one element while there may be a batch's worth
	lanes [lanes]lane
	next  int
	told  atomic.Int64 // losses that the log itself tells of
}

const lanes = 32

type lane struct {
	mu     sync.Mutex
	events []Event // a ring
	head   int
	count  int
	lost   int64
	_      [24]byte
}

func newQueue(size int) *queue {
	q := &queue{seed: maphash.MakeSeed(), ready: make(chan struct{}, 1)}
	for i := range q.lanes {
		q.lanes[i].events = make([]Event, max((size+lanes-1)/lanes, 1))
	}
	return q
}

// put takes the event in, if there is room in its lane.
func (q *queue) put(e *Event) bool {
	l := &q.lanes[q.lane(e)]
	l.mu.Lock()
	if l.count == len(l.events) {
		l.lost++
		l.mu.Unlock()
		return false
	}
	l.events[(l.head+l.count)%len(l.events)] = *e
	l.count++
	half := l.count == (len(l.events)+1)/2
	l.mu.Unlock()
	if half {
		q.wake()
	}
	return true
}

func (q *queue) wake() {
	select {
	case q.ready <- struct{}{}:
	default:
	}
}

// lane is by credential, and by address where there is none.
func (q *queue) lane(e *Event) uint64 {
	var h maphash.Hash
	h.SetSeed(q.seed)
	if e.UID != "" {
		_, _ = h.WriteString(e.UID)
	} else if e.Client.IsValid() {
		ip := e.Client.As16()
		_, _ = h.Write(ip[:8]) // a subscriber's network
		if e.Client.Is4() || e.Client.Is4In6() {
			_, _ = h.Write(ip[8:])
		}
	}
	return h.Sum64() % lanes
}

// take gives up to limit events, a few of each lane in turn.
func (q *queue) take(limit int) []Event {
	out := make([]Event, 0, min(limit, q.waiting()))
	const turn = 16
	for idle := 0; idle < lanes && len(out) < limit; {
		l := &q.lanes[q.next]
		q.next = (q.next + 1) % lanes
		l.mu.Lock()
		n := min(turn, l.count, limit-len(out))
		for range n {
			out = append(out, l.events[l.head])
			l.events[l.head] = Event{}
			l.head = (l.head + 1) % len(l.events)
		}
		l.count -= n
		l.mu.Unlock()
		if n == 0 {
			idle++
		} else {
			idle = 0
		}
	}
	return out
}

// waiting is how many wait.
func (q *queue) waiting() (n int) {
	for i := range q.lanes {
		q.lanes[i].mu.Lock()
		n += q.lanes[i].count
		q.lanes[i].mu.Unlock()
	}
	return n
}

// unreported is how many found no room, since it was last asked.
func (q *queue) unreported() (n int64) {
	for i := range q.lanes {
		q.lanes[i].mu.Lock()
		n += q.lanes[i].lost
		q.lanes[i].lost = 0
		q.lanes[i].mu.Unlock()
	}
	return n
}

// lostSoFar is how many found no room, reported or not.
func (q *queue) lostSoFar() int64 {
	n := q.told.Load()
	for i := range q.lanes {
		q.lanes[i].mu.Lock()
		n += q.lanes[i].lost
		q.lanes[i].mu.Unlock()
	}
	return n
}
