package oauth

import (
	"crypto/sha256"
	"encoding/binary"
	"sync/atomic"
)

// cacheSize is how many verified tokens are remembered. Each takes about a kilobyte, and
// never more than a token's length and a half.
const cacheSize = 4096

// cache remembers tokens whose signature was found to hold, by their SHA-256. What is
// remembered is the signature alone: key, times, revocation and the credential are
// looked at on every use.
//
// A token has one place, that of the first bits of its hash, and takes it over from
// whichever other was there. So memory is bounded, nothing needs a lock, and there is
// nothing to fill for one who has no good tokens.
type cache struct {
	places []atomic.Pointer[remembered]
}

type remembered struct {
	sum    [sha256.Size]byte
	claims Claims
}

func newCache() cache { return cache{places: make([]atomic.Pointer[remembered], cacheSize)} }

func (c *cache) place(sum [sha256.Size]byte) *atomic.Pointer[remembered] {
	return &c.places[binary.LittleEndian.Uint32(sum[:])%cacheSize]
}

// load gives the claims of a token seen before; nil for others.
func (c *cache) load(sum [sha256.Size]byte) *Claims {
	if r := c.place(sum).Load(); r != nil && r.sum == sum {
		return &r.claims
	}
	return nil
}

func (c *cache) store(sum [sha256.Size]byte, claims *Claims) {
	c.place(sum).Store(&remembered{sum, *claims})
}
