package authn

import (
	"cmp"
	"slices"
	"time"
)

// Usage is how often one version has been accepted by this process.
type Usage struct {
	UID     string
	Version int64
	// Uses since the version was first applied here.
	Uses int64
	// LastUsed is when it was last accepted, to the second.
	LastUsed time.Time
}

// restAfter is how long after its latest use, in seconds, a credential gives up the
// memory it was told with.
const restAfter = 600

// UsageSince lists the versions used since the cursor was returned, in the order
// their use was first noticed, at most limit of them (all of them where limit is
// not positive), and the cursor to ask with next. Cursor 0 asks for every version
// ever used; a cursor this index has never returned counts as 0. Any number of
// callers may ask, each with its own cursor. It looks at every version held.
func (x *Index) UsageSince(cursor uint64, limit int) (items []Usage, next uint64) {
	x.usageMu.Lock()
	defer x.usageMu.Unlock()
	if cursor > x.usageSeq {
		cursor = 0
	}
	type change struct {
		seq uint64
		Usage
	}
	var changes []change
	idle := x.usedLatest - restAfter
	for h := range x.holders.All() {
		for e := range h.counted {
			u := e.use
			if u.changed.CompareAndSwap(unreported, x.usageSeq+1) {
				x.usageSeq++
			}
			last := u.last.Load()
			x.usedLatest = max(x.usedLatest, last)
			if last < idle {
				e.told.Store(nil)
			}
			if seq := u.changed.Load(); seq > cursor && seq != unreported {
				changes = append(changes, change{seq, Usage{h.uid(), e.number, u.uses.Load(), time.Unix(last, 0).UTC()}})
			}
		}
	}
	slices.SortFunc(changes, func(a, b change) int { return cmp.Compare(a.seq, b.seq) })
	if limit > 0 && len(changes) > limit {
		changes = changes[:limit]
	}
	next = cursor
	for _, c := range changes {
		items, next = append(items, c.Usage), c.seq
	}
	return items, next
}
