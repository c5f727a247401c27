package authn

import "github.com/mintmark-dev/mintmark/internal/credential"

// claim puts the entry into the table, unless an older credential has the same
// digest. It tells whether the digest is this credential's.
func (x *Index) claim(h *holder, e *entry) bool {
	held, ok := x.table.Load(e.digest)
	if ok && held.principal.UID != h.UID {
		claimants := x.contested[e.digest]
		if claimants == nil {
			claimants = map[string]struct{}{held.principal.UID: {}}
			x.contested[e.digest] = claimants
		}
		claimants[h.UID] = struct{}{}
		if owner, known := x.holders.Load(held.principal.UID); known && owner.older(h.Identity) {
			return false
		}
	}
	x.table.Store(e.digest, e)
	return true
}

// releaseExcept takes out of the table what before has and next has not.
func (x *Index) releaseExcept(before, next *holder) {
	if before == nil {
		return
	}
	for _, e := range before.entries {
		if next == nil || !next.has(e.digest) {
			x.release(before.UID, e.digest)
		}
	}
}

func (h *holder) has(d credential.Digest) bool {
	for _, e := range h.entries {
		if e.digest == d {
			return true
		}
	}
	return false
}

// release gives up one credential's claim to a digest. The oldest of the others
// takes over.
func (x *Index) release(uid string, d credential.Digest) {
	claimants := x.contested[d]
	delete(claimants, uid)
	if len(claimants) < 2 {
		delete(x.contested, d)
	}
	if held, ok := x.table.Load(d); !ok || held.principal.UID != uid {
		return
	}
	var heir *holder
	for other := range claimants {
		if h, ok := x.holders.Load(other); ok && (heir == nil || h.older(heir.Identity)) {
			heir = h
		}
	}
	if heir != nil {
		for _, e := range heir.entries {
			if e.digest == d {
				x.table.Store(d, e)
				return
			}
		}
	}
	x.table.Delete(d)
}
