package authn

import "github.com/mintmark-dev/mintmark/internal/credential"

// claim puts the entry into the table, unless an older credential has the same
// digest. It tells whether the digest is this credential's.
func (x *Index) claim(e *entry) bool {
	if held := x.digests.Get(e.digest); held != nil && held.uid() != e.uid() {
		claimants := x.contested[e.digest]
		if claimants == nil {
			claimants = map[string]struct{}{held.uid(): {}}
			x.contested[e.digest] = claimants
		}
		claimants[e.uid()] = struct{}{}
		if held.holder.older(e.holder) {
			return false
		}
	}
	x.digests.Put(e)
	return true
}

// releaseExcept takes out of the table what before has and next has not.
func (x *Index) releaseExcept(before, next *holder) {
	if before == nil {
		return
	}
	for e := range before.versions {
		if next == nil || !next.has(e.digest) {
			x.release(before.uid(), e.digest)
		}
	}
}

// release gives up one credential's claim to a digest. The oldest of the others
// takes over.
func (x *Index) release(uid string, d credential.Digest) {
	claimants := x.contested[d]
	delete(claimants, uid)
	if len(claimants) < 2 {
		delete(x.contested, d)
	}
	if held := x.digests.Get(d); held == nil || held.uid() != uid {
		return
	}
	if heir := x.heir(claimants, d); heir != nil {
		x.digests.Put(heir)
		return
	}
	x.digests.Delete(d)
}

// heir is the version of the oldest claimant that has the digest.
func (x *Index) heir(claimants map[string]struct{}, d credential.Digest) (heir *entry) {
	for uid := range claimants {
		h := x.holders.Get(uid)
		if h == nil || heir != nil && !h.older(heir.holder) {
			continue
		}
		for e := range h.versions {
			if e.digest == d {
				heir = e
			}
		}
	}
	return heir
}
