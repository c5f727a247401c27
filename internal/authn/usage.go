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
	for uid, h := range x.holders.Range {
		if h.sealed == nil {
			continue
		}
		for i := range h.sealed.versions {
			v := &h.sealed.versions[i]
			uses := v.usage.uses.Load()
			if uses != v.usage.reported {
				x.usageSeq++
				v.usage.reported, v.usage.changed = uses, x.usageSeq
			}
			if v.usage.changed > cursor {
				changes = append(changes, change{v.usage.changed, Usage{uid, v.number, uses, time.Unix(v.usage.last.Load(), 0).UTC()}})
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
