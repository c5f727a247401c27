package limit

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// BlockerConfig is how patient a Blocker is.
type BlockerConfig struct {
	// Failures within Window block an address.
	Failures int
	Window   time.Duration
	// Base is how long the first time. Each time after that takes twice as long, up to
	// Max. After as long as Max without another the count begins anew.
	Base, Max time.Duration
	// Allowed are never blocked.
	Allowed []netip.Prefix
	// Size is about how many addresses are remembered.
	Size int
}

// DefaultBlocker lets an address fail thirty times a minute, and then makes it wait for
// half a minute, a minute, two, and so on up to an hour.
func DefaultBlocker() BlockerConfig {
	return BlockerConfig{Failures: 30, Window: time.Minute, Base: 30 * time.Second, Max: time.Hour, Size: 1 << 16}
}

// Blocker blocks addresses that present one bad credential after another. An IPv6
// address counts as its /64, which is what one subscriber has. A success changes
// nothing, or who holds one good key could try others for ever.
type Blocker struct {
	cfg    BlockerConfig
	seed   maphash.Seed
	shards [shards]blockShard
	// blocked counts the entries that may be blocked, so that nobody looks for one
	// while there is none.
	blocked atomic.Int64
}

type blockShard struct {
	mu      sync.Mutex
	limit   int
	entries map[netip.Addr]*suspect
	_       [40]byte
}

// suspect is an address that has failed. Times are Unix nanoseconds.
type suspect struct {
	windowEnds int64
	failures   int
	until      int64 // blocked until then; 0 is not
	times      int   // that it has been blocked
}

// NewBlocker makes a Blocker. With no Failures it blocks nobody.
func NewBlocker(cfg BlockerConfig) *Blocker {
	b := &Blocker{cfg: cfg, seed: maphash.MakeSeed()}
	for i := range b.shards {
		b.shards[i].limit = max((cfg.Size+shards-1)/shards, sample)
		b.shards[i].entries = make(map[netip.Addr]*suspect)
	}
	return b
}

// Blocked tells for how long the address is blocked still; 0 is not at all.
func (b *Blocker) Blocked(ip netip.Addr, now time.Time) time.Duration {
	if b.blocked.Load() == 0 {
		return 0
	}
	ip = Subscriber(ip)
	s := b.shard(ip)
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[ip]
	if e == nil || e.until == 0 {
		return 0
	}
	left := e.until - now.UnixNano()
	if left <= 0 || left > int64(b.cfg.Max) { // a clock that was set back does not block for longer
		e.until = 0
		b.blocked.Add(-1)
		return 0
	}
	return time.Duration(left)
}

// Fail notes that the address presented a bad credential, and tells for how long it is
// blocked from now on; 0 is not.
func (b *Blocker) Fail(ip netip.Addr, now time.Time) time.Duration {
	ip = Subscriber(ip)
	if b.cfg.Failures <= 0 || !ip.IsValid() || b.allowed(ip) {
		return 0
	}
	s := b.shard(ip)
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[ip]
	if e == nil {
		if len(s.entries) >= s.limit {
			b.drop(s, now.UnixNano())
		}
		e = new(suspect)
		s.entries[ip] = e
	}
	at := now.UnixNano()
	if at >= e.windowEnds || e.windowEnds-at > int64(b.cfg.Window) {
		if at-e.windowEnds > int64(b.cfg.Max) {
			e.times = 0
		}
		e.windowEnds, e.failures = at+int64(b.cfg.Window), 0
	}
	if e.failures++; e.failures < b.cfg.Failures {
		return 0
	}
	length := b.cfg.Max
	if e.times < 32 {
		length = min(b.cfg.Base<<e.times, b.cfg.Max)
	}
	e.times++
	if e.until == 0 {
		b.blocked.Add(1)
	}
	e.until = at + int64(length)
	// What it does while it is blocked does not count, so the next window begins after.
	e.windowEnds, e.failures = e.until, 0
	return length
}

// drop makes room for one: for the one, of a few, that has failed least.
func (b *Blocker) drop(s *blockShard, now int64) {
	var (
		victim netip.Addr
		least  *suspect
		seen   int
	)
	for ip, e := range s.entries {
		if least == nil || e.weight(now) < least.weight(now) {
			victim, least = ip, e
		}
		if seen++; seen == sample {
			break
		}
	}
	if least.until != 0 {
		b.blocked.Add(-1)
	}
	delete(s.entries, victim)
}

// weight orders suspects by what would be forgotten with them.
func (e *suspect) weight(now int64) int {
	switch {
	case e.until > now:
		return 1<<20 + e.times
	case e.windowEnds > now:
		return e.times<<8 + min(e.failures, 255)
	}
	return e.times
}

func (b *Blocker) shard(ip netip.Addr) *blockShard {
	return &b.shards[maphash.Comparable(b.seed, ip)%shards]
}

func (b *Blocker) allowed(ip netip.Addr) bool {
	for _, p := range b.cfg.Allowed {
		if p.Contains(ip) {
			return true
		}
	}
	return false
}

// Len counts the addresses remembered, and those of them that may be blocked.
func (b *Blocker) Len() (known, blocked int) {
	for i := range b.shards {
		b.shards[i].mu.Lock()
		known += len(b.shards[i].entries)
		b.shards[i].mu.Unlock()
	}
	return known, int(b.blocked.Load())
}

// BlockedNow counts the addresses that are blocked at this time. It looks at all that are
// remembered, and is meant for metrics.
func (b *Blocker) BlockedNow(now time.Time) (n int) {
	at := now.UnixNano()
	for i := range b.shards {
		s := &b.shards[i]
		s.mu.Lock()
		for _, e := range s.entries {
			switch {
			case e.until == 0:
			case e.until <= at || e.until-at > int64(b.cfg.Max):
				e.until = 0
				b.blocked.Add(-1)
			default:
				n++
			}
		}
		s.mu.Unlock()
	}
	return n
}

// Subscriber is the address that stands for all that one subscriber has: of IPv6 a /64.
func Subscriber(ip netip.Addr) netip.Addr {
	ip = ip.Unmap().WithZone("")
	if ip.Is6() {
		if p, err := ip.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return ip
}
