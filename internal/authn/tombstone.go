package authn

import (
	"time"

	"github.com/mintmark-dev/mintmark/internal/credential"
)

// Revoked is a version that is refused for having been revoked, in whatever way.
type Revoked struct {
	Version int64
	Digest  credential.Digest
	// Pepper is the id of the one the digest was made with.
	Pepper string
	// Expires is when the version would have ended by itself; zero is never.
	Expires time.Time
}

// SetTombstones adds digests that have been revoked. Versions that have them are
// refused as revoked from now on, whatever any record says: one from a backup, for
// example. Nothing takes a tombstone back, not even Reset.
func (x *Index) SetTombstones(digests []credential.Digest) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, d := range digests {
		if x.buried(d) {
			continue
		}
		x.tombstones[d] = struct{}{}
		if e := x.digests.Get(d); e != nil {
			x.refresh(e.holder)
		}
		// Others may have the digest as well, and wait for whoever holds it to go.
		for uid := range x.contested[d] {
			if h := x.holders.Get(uid); h != nil {
				x.refresh(h)
			}
		}
	}
}

// buried tells whether a digest has a tombstone. The caller holds mu.
func (x *Index) buried(d credential.Digest) bool {
	_, ok := x.tombstones[d]
	return ok
}

// RevokedOf gives the versions of a credential that are revoked and have no tombstone
// yet. One whose digest belongs to another credential is not among them: who declares
// somebody else's digest must not be able to bury it. So nothing may be made of the
// answer before every credential has been listed. It waits for writers.
func (x *Index) RevokedOf(uid string) []Revoked {
	h := x.holders.Get(uid)
	if h == nil {
		return nil
	}
	var all []Revoked
	for e, pepper := range h.counted {
		owner := x.digests.Get(e.digest)
		if e.refusal != ReasonRevoked || owner == nil || owner.uid() != uid {
			continue
		}
		r := Revoked{Version: e.number, Digest: e.digest, Pepper: pepper}
		if notAfter := e.notAfter(); notAfter != 0 {
			r.Expires = time.Unix(notAfter, 0).UTC()
		}
		all = append(all, r)
	}
	if all == nil {
		return nil
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	fresh := all[:0]
	for _, r := range all {
		if !x.buried(r.Digest) {
			fresh = append(fresh, r)
		}
	}
	return fresh
}
