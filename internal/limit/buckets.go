package limit

import (
	"hash/maphash"
	"math"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Rate is how often something may be done.
type Rate struct {
	// Requests allowed in each period.
	Requests int64
	Per      time.Duration
	// Burst is how many may come at once; 0 is as many as Requests.
	Burst int64
}

// Share is the part of the rate that falls to one of n who divide it among themselves.
// None gets nothing at all: the parts may add up to a little more than the whole.
func (r Rate) Share(n int) Rate {
	if n <= 1 {
		return r
	}
	r.Burst = max((r.burst()+int64(n)-1)/int64(n), 1)
	r.Per *= time.Duration(min(n, maxShares))
	return r
}

// maxShares keeps a period from overflowing: a year by this is less than the longest
// time.Duration.
const maxShares = 256

func (r Rate) burst() int64 {
	if r.Burst > 0 {
		return r.Burst
	}
	return max(r.Requests, 1)
}

// limit is the rate in events a second.
func (r Rate) limit() rate.Limit {
	if r.Requests <= 0 || r.Per <= 0 {
		return 0
	}
	return rate.Limit(float64(r.Requests) / r.Per.Seconds())
}

// Result is what came of taking from a bucket.
type Result struct {
	// OK: there was one to take. The zero Result refuses.
	OK bool
	// Limit is how many the bucket holds, Remaining how many are left.
	Limit, Remaining int64
	// Reset is when the bucket is full again, RetryAfter when there is one to take: 0
	// where there is one now. Both count from now.
	Reset, RetryAfter time.Duration
}

// Buckets are token buckets by key.
type Buckets[K comparable] struct {
	seed   maphash.Seed
	shards [shards]bucketShard[K]
}

const (
	shards = 64
	// sample is how many buckets are looked at to find one to drop.
	sample = 8
)

type bucketShard[K comparable] struct {
	mu      sync.Mutex
	limit   int
	buckets map[K]*rate.Limiter
	_       [40]byte // keeps the locks of two shards off one cache line
}

// NewBuckets makes a table of about size buckets.
func NewBuckets[K comparable](size int) *Buckets[K] {
	b := &Buckets[K]{seed: maphash.MakeSeed()}
	for i := range b.shards {
		b.shards[i].limit = max((size+shards-1)/shards, sample)
		b.shards[i].buckets = make(map[K]*rate.Limiter)
	}
	return b
}

// Take takes one from the bucket of the key. A rate other than the last one of this
// key applies from now on; what the bucket holds already stays in it.
//
// A table that is full drops a bucket that is full itself, if it finds one at once,
// which is the same as keeping it, and otherwise the fullest of a few.
func (b *Buckets[K]) Take(key K, r Rate, now time.Time) Result {
	s := &b.shards[maphash.Comparable(b.seed, key)%shards]
	s.mu.Lock()
	defer s.mu.Unlock()
	bucket := s.buckets[key]
	if bucket == nil {
		if len(s.buckets) >= s.limit {
			s.drop(now)
		}
		bucket = rate.NewLimiter(r.limit(), burstOf(r))
		s.buckets[key] = bucket
	}
	if bucket.Limit() != r.limit() {
		bucket.SetLimitAt(now, r.limit())
	}
	if bucket.Burst() != burstOf(r) {
		bucket.SetBurstAt(now, burstOf(r))
	}
	return take(bucket, now)
}

func burstOf(r Rate) int { return int(min(r.burst(), math.MaxInt32)) }

func take(bucket *rate.Limiter, now time.Time) Result {
	ok := bucket.AllowN(now, 1)
	left := bucket.TokensAt(now)
	result := Result{OK: ok, Limit: int64(bucket.Burst()), Remaining: int64(max(left, 0))}
	if perSecond := float64(bucket.Limit()); perSecond > 0 {
		result.Reset = seconds((float64(bucket.Burst()) - left) / perSecond)
		if !ok {
			result.RetryAfter = max(seconds((1-left)/perSecond), time.Nanosecond)
		}
	}
	return result
}

func seconds(s float64) time.Duration {
	const most = float64(math.MaxInt64/int64(time.Second)) - 1
	return time.Duration(min(max(s, 0), most) * float64(time.Second))
}

// drop makes room for one. Ranging over a map begins anywhere.
func (s *bucketShard[K]) drop(now time.Time) {
	var (
		victim  K
		fullest = math.Inf(-1)
		seen    int
	)
	for key, bucket := range s.buckets {
		if missing := bucket.TokensAt(now) - float64(bucket.Burst()); missing > fullest {
			victim, fullest = key, missing
		}
		if seen++; seen == sample || fullest >= 0 {
			break
		}
	}
	delete(s.buckets, victim)
}

// Len counts the buckets.
func (b *Buckets[K]) Len() int {
	n := 0
	for i := range b.shards {
		b.shards[i].mu.Lock()
		n += len(b.shards[i].buckets)
		b.shards[i].mu.Unlock()
	}
	return n
}
