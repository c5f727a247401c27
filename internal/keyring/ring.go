package keyring

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"strings"
	"time"
)

// SigningKeysSecret is the name of the Secret with the keys that sign JWTs.
//
// Each key is an entry KID.pem (PKCS #8); the entry "slots.json" says which is
// next, current and previous. A Secret without slots.json is one that somebody
// else supplies: its only *.pem entry, of whatever name, is the current key.
const SigningKeysSecret = "mintmark-signing-keys"

const (
	slotsEntry = "slots.json"
	pemSuffix  = ".pem"
)

// Ring is the signing keys of an installation, by their algorithm.
type Ring map[string]*SigningKeys

// RingOf puts keys together, each set under the algorithm of its keys. Sets that are
// nil or empty are left out.
func RingOf(sets ...*SigningKeys) Ring {
	r := make(Ring, len(sets))
	for _, s := range sets {
		if s == nil {
			continue
		}
		if all := s.All(); len(all) > 0 {
			r[all[0].Algorithm] = s
		}
	}
	return r
}

// All are the keys to publish in the JWKS: of each algorithm the current one, the
// next, the previous ones.
func (r Ring) All() []*SigningKey {
	var all []*SigningKey
	for _, algorithm := range Algorithms() {
		if s := r[algorithm]; s != nil {
			all = append(all, s.All()...)
		}
	}
	return all
}

// ByID finds a key by its kid, whatever its slot; nil where there is none.
func (r Ring) ByID(kid string) *SigningKey {
	for _, s := range r {
		if key := s.ByID(kid); key != nil {
			return key
		}
	}
	return nil
}

// Signer is the key that signs for those who ask for an algorithm. Where it has
// none that signs yet, the default algorithm's does, and else the first that there is:
// a class that changes its algorithm must not leave its credentials without
// tokens until the new key has been published long enough. Nil where nothing signs.
func (r Ring) Signer(algorithm string) *SigningKey {
	if s := r[algorithm]; s != nil && s.Current != nil {
		return s.Current
	}
	for _, algorithm := range Algorithms() {
		if s := r[algorithm]; s != nil && s.Current != nil {
			return s.Current
		}
	}
	return nil
}

// layout is the JSON of the entry slots.json. The slots of the default algorithm
// stand outside, where versions of Mintmark that knew no other look for them.
type layout struct {
	slots
	Others []slots `json:"others,omitempty"`
}

type slots struct {
	Next     *slot  `json:"next,omitempty"`
	Current  *slot  `json:"current,omitempty"`
	Previous []slot `json:"previous,omitempty"`
}

type slot struct {
	KID       string    `json:"kid"`
	Algorithm string    `json:"algorithm"`
	Created   time.Time `json:"created,omitzero"`
	Published time.Time `json:"published,omitzero"`
	Activated time.Time `json:"activated,omitzero"`
	Retired   time.Time `json:"retired,omitzero"`
}

// Encode gives the Secret's data. The only errors are keys that cannot be
// written in PKCS #8, and times beyond the year 9999.
func (r Ring) Encode() (map[string][]byte, error) {
	data := make(map[string][]byte)
	var written layout
	outside := r.Signer(DefaultAlgorithm)
	for _, algorithm := range Algorithms() {
		keys := r[algorithm]
		if keys == nil {
			continue
		}
		for _, key := range keys.All() {
			der, err := x509.MarshalPKCS8PrivateKey(key.Key)
			if err != nil {
				return nil, fmt.Errorf("encoding the signing key %s: %w", key.ID, err)
			}
			data[key.ID+pemSuffix] = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
		}
		if outside != nil && algorithm == outside.Algorithm {
			written.slots = slotsOf(keys)
		} else {
			written.Others = append(written.Others, slotsOf(keys))
		}
	}
	text, err := json.MarshalIndent(written, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encoding %s: %w", slotsEntry, err)
	}
	data[slotsEntry] = text
	return data, nil
}

func slotsOf(keys *SigningKeys) slots {
	s := slots{Next: slotOf(keys.Next), Current: slotOf(keys.Current)}
	for _, key := range keys.Previous {
		s.Previous = append(s.Previous, *slotOf(key))
	}
	return s
}

func slotOf(k *SigningKey) *slot {
	if k == nil {
		return nil
	}
	return &slot{KID: k.ID, Algorithm: k.Algorithm, Created: k.Created, Published: k.Published, Activated: k.Activated, Retired: k.Retired}
}

// DecodeSigningKeys reads the Secret's data. In what it returns without an error
// there is always a key that signs. Entries that slots.json does not name are not
// looked at.
func DecodeSigningKeys(data map[string][]byte) (Ring, error) {
	text, ok := data[slotsEntry]
	if !ok {
		return decodeLoneKey(data)
	}
	var written layout
	if err := json.Unmarshal(text, &written); err != nil {
		return nil, fmt.Errorf("the entry %s is not what Mintmark writes: %w", slotsEntry, err)
	}
	if written.Current == nil {
		return nil, fmt.Errorf("the entry %s names no current key: every other slot may be empty, that one not", slotsEntry)
	}
	r := make(Ring, 1+len(written.Others))
	seen := make(map[string]bool)
	for _, s := range append([]slots{written.slots}, written.Others...) {
		keys, err := s.decode(data)
		if err != nil {
			return nil, err
		}
		all := keys.All()
		for _, key := range all {
			if key.Algorithm != all[0].Algorithm {
				return nil, fmt.Errorf("%s mixes %s and %s in one set of slots: give each algorithm its own", slotsEntry, all[0].Algorithm, key.Algorithm)
			}
			if seen[key.ID] {
				return nil, fmt.Errorf("%s puts the key %q into two slots", slotsEntry, key.ID)
			}
			seen[key.ID] = true
		}
		if len(all) == 0 {
			continue
		}
		if _, twice := r[all[0].Algorithm]; twice {
			return nil, fmt.Errorf("%s has two sets of slots for %s", slotsEntry, all[0].Algorithm)
		}
		r[all[0].Algorithm] = keys
	}
	return r, nil
}

// decodeLoneKey reads a Secret that somebody else supplies.
func decodeLoneKey(data map[string][]byte) (Ring, error) {
	var name string
	for entry := range data {
		if !strings.HasSuffix(entry, pemSuffix) {
			continue
		}
		if name != "" {
			return nil, fmt.Errorf("there are several *%s entries, and no %s to say which of them signs: leave one, or add that entry", pemSuffix, slotsEntry)
		}
		name = entry
	}
	if name == "" {
		return nil, fmt.Errorf("there is neither an entry %s nor one whose name ends in %s: "+
			"add one with an EC P-256, Ed25519 or RSA private key", slotsEntry, pemSuffix)
	}
	private, algorithm, err := decodePrivateKey(data[name])
	if err != nil {
		return nil, fmt.Errorf("the entry %q: %w", name, err)
	}
	return RingOf(&SigningKeys{Current: &SigningKey{ID: Thumbprint(private.Public()), Algorithm: algorithm, Key: private}}), nil
}

func (s *slots) decode(data map[string][]byte) (keys *SigningKeys, err error) {
	keys = new(SigningKeys)
	if s.Current != nil {
		if keys.Current, err = s.Current.decode(data); err != nil {
			return nil, err
		}
	}
	if s.Next != nil {
		if keys.Next, err = s.Next.decode(data); err != nil {
			return nil, err
		}
	}
	for i := range s.Previous {
		key, err := s.Previous[i].decode(data)
		if err != nil {
			return nil, err
		}
		keys.Previous = append(keys.Previous, key)
	}
	return keys, nil
}

func (s *slot) decode(data map[string][]byte) (*SigningKey, error) {
	entry, ok := data[s.KID+pemSuffix]
	if !ok {
		return nil, fmt.Errorf("%s names the key %q, and there is no entry %q", slotsEntry, s.KID, s.KID+pemSuffix)
	}
	private, algorithm, err := decodePrivateKey(entry)
	if err != nil {
		return nil, fmt.Errorf("the entry %q: %w", s.KID+pemSuffix, err)
	}
	// A key signs for one algorithm, or a verifier could be told to take it for
	// another.
	if s.Algorithm != algorithm {
		return nil, fmt.Errorf("%s gives the key %q the algorithm %q: it is one for %s", slotsEntry, s.KID, s.Algorithm, algorithm)
	}
	// A kid that is not the thumbprint could come to name two keys.
	if kid := Thumbprint(private.Public()); kid != s.KID {
		return nil, fmt.Errorf("the entry %q holds the key %q: name it by its RFC 7638 thumbprint", s.KID+pemSuffix, kid)
	}
	return &SigningKey{
		ID: s.KID, Algorithm: algorithm, Key: private,
		Created: stamp(s.Created), Published: stamp(s.Published), Activated: stamp(s.Activated), Retired: stamp(s.Retired),
	}, nil
}
