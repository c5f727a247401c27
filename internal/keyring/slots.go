package keyring

import (
	"slices"
	"time"
)

// SigningKeys are the keys for one algorithm, each in its slot.
type SigningKeys struct {
	// Next is published and does not sign yet; nil where there is none.
	Next *SigningKey
	// Current signs; nil before the first key, and after the last.
	Current *SigningKey
	// Previous no longer sign, and verify what they signed. The latest is first.
	Previous []*SigningKey
}

// All are the keys to publish in the JWKS: the current one, the next, the
// previous ones.
func (s *SigningKeys) All() []*SigningKey {
	all := make([]*SigningKey, 0, 2+len(s.Previous))
	for _, key := range append([]*SigningKey{s.Current, s.Next}, s.Previous...) {
		if key != nil {
			all = append(all, key)
		}
	}
	return all
}

// ByID finds a key by its kid, whatever its slot; nil where there is none.
func (s *SigningKeys) ByID(kid string) *SigningKey {
	if s.Current != nil && s.Current.ID == kid {
		return s.Current
	}
	if s.Next != nil && s.Next.ID == kid {
		return s.Next
	}
	for _, key := range s.Previous {
		if key.ID == kid {
			return key
		}
	}
	return nil
}

// Policy says when signing keys change slots.
type Policy struct {
	// RotateEvery is how long a key signs. Zero: until it is asked for.
	RotateEvery time.Duration
	// PublishBefore is how long a key is published before it signs: until every
	// server has it and every copy of the JWKS made before it has lapsed.
	PublishBefore time.Duration
	// KeepAfter is how long a key stays published after it ceased to sign: the
	// longest life of a JWT, and the time for which a server that is cut off may
	// go on signing with it.
	KeepAfter time.Duration
	// Beside: the keys of another algorithm sign while these have no current one,
	// so that the first of these is published as long as any other before it signs.
	Beside bool
	// Unwanted: nobody asks for the algorithm. Its keys stay for as long as one
	// signs, in case that was a mistake, and have no successor.
	Unwanted bool
}

// DefaultPolicy suits JWTs of up to one hour, JWKS cached for up to half an
// hour, and servers that are cut off for up to ten minutes.
func DefaultPolicy() Policy {
	return Policy{RotateEvery: 90 * 24 * time.Hour, PublishBefore: time.Hour, KeepAfter: 90 * time.Minute}
}

// ShouldPrepare tells whether a next key is to be made: there is none, and the
// current one is missing or due so soon that its successor must be published now.
// A current key that has never been activated was supplied by somebody else, and
// is not replaced by age.
func (s *SigningKeys) ShouldPrepare(now time.Time, p Policy) bool {
	due, ok := s.prepareAt(p)
	return ok && !now.Before(due)
}

func (s *SigningKeys) prepareAt(p Policy) (time.Time, bool) {
	switch {
	case s.Next != nil || p.Unwanted:
		return time.Time{}, false
	case s.Current == nil:
		return time.Time{}, true
	case !s.replaced(p):
		return time.Time{}, false
	}
	return s.Current.Activated.Add(p.RotateEvery - p.PublishBefore), true
}

// replaced tells whether the current key is replaced by age.
func (s *SigningKeys) replaced(p Policy) bool {
	return p.RotateEvery > 0 && !s.Current.Activated.IsZero()
}

// ShouldActivate tells whether the next key is to sign: it has been published
// long enough, or no other key could sign meanwhile.
func (s *SigningKeys) ShouldActivate(now time.Time, p Policy) bool {
	due, ok := s.activateAt(p)
	return ok && !now.Before(due)
}

func (s *SigningKeys) activateAt(p Policy) (time.Time, bool) {
	switch {
	case s.Next == nil:
		return time.Time{}, false
	case s.Current == nil && !p.Beside:
		return time.Time{}, true
	}
	return s.Next.Published.Add(p.PublishBefore), true
}

// ShouldRetire tells whether the current key has signed for long enough and
// nobody asks for its algorithm any more.
func (s *SigningKeys) ShouldRetire(now time.Time, p Policy) bool {
	due, ok := s.retireAt(p)
	return ok && !now.Before(due)
}

func (s *SigningKeys) retireAt(p Policy) (time.Time, bool) {
	if !p.Unwanted || s.Current == nil || s.Next != nil || !s.replaced(p) {
		return time.Time{}, false
	}
	return s.Current.Activated.Add(p.RotateEvery), true
}

// ShouldDrop tells whether nothing that a previous key signed can be alive.
func (k *SigningKey) ShouldDrop(now time.Time, p Policy) bool {
	return !k.Retired.IsZero() && !now.Before(k.Retired.Add(p.KeepAfter))
}

// Prepare makes key the next one, published from now on.
func (s *SigningKeys) Prepare(key *SigningKey, now time.Time) {
	key.Published = stamp(now)
	s.Next = key
}

// Activate makes the next key the current one, and the current one previous.
func (s *SigningKeys) Activate(now time.Time) {
	s.Retire(now)
	s.Next.Activated = stamp(now)
	s.Current, s.Next = s.Next, nil
}

// Retire makes the current key a previous one. Nothing signs until another is
// activated.
func (s *SigningKeys) Retire(now time.Time) {
	if s.Current == nil {
		return
	}
	s.Current.Retired = stamp(now)
	s.Previous = slices.Insert(s.Previous, 0, s.Current)
	s.Current = nil
}

// Drop forgets the previous keys that are due, and returns them.
func (s *SigningKeys) Drop(now time.Time, p Policy) []*SigningKey {
	var dropped []*SigningKey
	s.Previous = slices.DeleteFunc(s.Previous, func(k *SigningKey) bool {
		if !k.ShouldDrop(now, p) {
			return false
		}
		dropped = append(dropped, k)
		return true
	})
	return dropped
}

// NextChange is when the first of the slots is due to change, which may be past;
// false where nothing is, until somebody asks for a rotation.
func (s *SigningKeys) NextChange(p Policy) (time.Time, bool) {
	var first time.Time
	found := false
	consider := func(at time.Time, ok bool) {
		if ok && (!found || at.Before(first)) {
			first, found = at, true
		}
	}
	consider(s.prepareAt(p))
	consider(s.activateAt(p))
	consider(s.retireAt(p))
	for _, key := range s.Previous {
		consider(key.Retired.Add(p.KeepAfter), !key.Retired.IsZero())
	}
	return first, found
}
