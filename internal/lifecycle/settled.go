package lifecycle

import (
	"slices"
	"time"
)

// Which Revocations a credential's record accounts for. It names them, and once
// there are many, says of those that are old enough: all of them.

const (
	// maxNamed is how many Revocations a record names at most. The schema of status
	// has room for 1,024.
	maxNamed = 1000
	// namedAlone is how many are named before the old ones are taken together.
	namedAlone = 256
	// settledAge is how old a Revocation is that is taken together with others. By
	// then every controller has heard of it: a watch is begun anew after ten
	// minutes at the latest.
	settledAge = time.Hour
	// maxGone is how many are named that no longer exist. A server that has yet to
	// see one deleted must not take it for unsettled.
	maxGone = 64
)

// settles tells whether the record will account for a Revocation.
func (p *plan) settles(r *Revocation) bool {
	return p.old(r) || slices.Contains(p.status.SettledRevocations, r.UID)
}

func (p *plan) old(r *Revocation) bool {
	before := p.settledBefore
	if p.Record != nil {
		before = max(before, p.Record.SettledBefore)
	}
	return r.Created.Unix() > 0 && r.Created.Unix() < before
}

// forgetRevocations keeps what is named within bounds.
func (p *plan) forgetRevocations() {
	p.takeTogether()
	exists := make(map[string]bool, len(p.Revocations))
	for i := range p.Revocations {
		if !p.old(&p.Revocations[i]) {
			exists[p.Revocations[i].UID] = true
		}
	}
	// Those that are gone, the longest settled first. One that is old and still
	// there is not named any more either.
	excess := -maxGone
	for _, uid := range p.status.SettledRevocations {
		if !exists[uid] {
			excess++
		}
	}
	p.status.SettledRevocations = slices.DeleteFunc(p.status.SettledRevocations, func(uid string) bool {
		if exists[uid] || excess <= 0 {
			return false
		}
		excess--
		return true
	})
}

// takeTogether has the record say that it accounts for everything before a time,
// where it names many: not later than the first one that it does not account for.
func (p *plan) takeTogether() {
	if p.flooded && len(p.Revocations) > 0 {
		p.wake(p.now.Add(settledAge / 6))
	}
	if len(p.status.SettledRevocations) <= namedAlone || p.ClockSkewed {
		return
	}
	before := p.now.Add(-settledAge).Truncate(time.Second)
	for i := range p.Revocations {
		if r := &p.Revocations[i]; !p.settles(r) && r.Created.Before(before) {
			before = r.Created
		}
	}
	if slices.ContainsFunc(p.Revocations, func(r Revocation) bool {
		return r.Created.Before(before) && !p.old(&r)
	}) {
		p.settledBefore = before.Unix()
	}
}
