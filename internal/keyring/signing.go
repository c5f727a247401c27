package keyring

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"slices"
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

// ES256 is ECDSA on P-256 with SHA-256 (RFC 7518, section 3.4).
const ES256 = "ES256"

// SigningKey is a key that signs JWTs, with its life so far. Times are in UTC,
// to the second; one that has not come is zero.
type SigningKey struct {
	// ID is the key's kid: its RFC 7638 thumbprint, in base64url.
	ID string
	// Algorithm is the JWS algorithm (RFC 7518) the key is for.
	Algorithm string
	// Key holds the private key.
	Key crypto.Signer
	// Created is when the key was made, Published when the servers could first
	// show it in the JWKS, Activated when it began to sign, and Retired when it
	// ceased to.
	Created, Published, Activated, Retired time.Time
}

// NewSigningKey makes a key of 32 bytes drawn from a cryptographically secure
// source. It is not published yet.
func NewSigningKey(random io.Reader, now time.Time) (*SigningKey, error) {
	private, err := newP256Key(random)
	if err != nil {
		return nil, err
	}
	return &SigningKey{ID: Thumbprint(&private.PublicKey), Algorithm: ES256, Key: private, Created: stamp(now)}, nil
}

// newP256Key draws scalars until one is in range (FIPS 186-5, A.2.2: rejection
// sampling), which the first is but once in 2^32 times. crypto/ecdsa's own
// GenerateKey does not take the randomness it is handed.
func newP256Key(random io.Reader) (*ecdsa.PrivateKey, error) {
	for {
		var scalar [32]byte
		if _, err := io.ReadFull(random, scalar[:]); err != nil {
			return nil, fmt.Errorf("reading randomness for a P-256 key: %w", err)
		}
		if key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), scalar[:]); err == nil {
			return key, nil
		}
	}
}

// Thumbprint is the RFC 7638 thumbprint of a P-256 key's JWK, SHA-256 in
// base64url without padding.
func Thumbprint(key *ecdsa.PublicKey) string {
	point, err := key.Bytes()
	if err != nil {
		panic(fmt.Sprintf("a P-256 key off its curve: %v", err)) // no decoder here lets one pass
	}
	// RFC 7638, section 3.2: the required members alone, in lexical order,
	// without space. The point is 4 || X || Y.
	encode := base64.RawURLEncoding.EncodeToString
	sum := sha256.Sum256([]byte(`{"crv":"P-256","kty":"EC","x":"` + encode(point[1:33]) + `","y":"` + encode(point[33:]) + `"}`))
	return encode(sum[:])
}

func stamp(t time.Time) time.Time { return t.UTC().Truncate(time.Second) }

// SigningKeys are the keys of an installation, each in its slot.
type SigningKeys struct {
	// Next is published and does not sign yet; nil where there is none.
	Next *SigningKey
	// Current signs; nil only before the first key.
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
	for _, key := range s.All() {
		if key.ID == kid {
			return key
		}
	}
	return nil
}

// slots is the JSON of the entry slots.json.
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
func (s *SigningKeys) Encode() (map[string][]byte, error) {
	data := make(map[string][]byte)
	for _, key := range s.All() {
		der, err := x509.MarshalPKCS8PrivateKey(key.Key)
		if err != nil {
			return nil, fmt.Errorf("encoding the signing key %s: %w", key.ID, err)
		}
		data[key.ID+pemSuffix] = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	}
	layout := slots{Next: slotOf(s.Next), Current: slotOf(s.Current)}
	for _, key := range s.Previous {
		layout.Previous = append(layout.Previous, *slotOf(key))
	}
	text, err := json.MarshalIndent(layout, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encoding %s: %w", slotsEntry, err)
	}
	data[slotsEntry] = text
	return data, nil
}

func slotOf(k *SigningKey) *slot {
	if k == nil {
		return nil
	}
	return &slot{KID: k.ID, Algorithm: k.Algorithm, Created: k.Created, Published: k.Published, Activated: k.Activated, Retired: k.Retired}
}

// DecodeSigningKeys reads the Secret's data. There is always a current key in
// what it returns without an error. Entries that slots.json does not name are
// not looked at.
func DecodeSigningKeys(data map[string][]byte) (*SigningKeys, error) {
	text, ok := data[slotsEntry]
	if !ok {
		return decodeLoneKey(data)
	}
	var layout slots
	if err := json.Unmarshal(text, &layout); err != nil {
		return nil, fmt.Errorf("the entry %s is not what Mintmark writes: %w", slotsEntry, err)
	}
	if layout.Current == nil {
		return nil, fmt.Errorf("the entry %s names no current key: every other slot may be empty, that one not", slotsEntry)
	}
	keys := new(SigningKeys)
	var err error
	if keys.Current, err = layout.Current.decode(data); err != nil {
		return nil, err
	}
	if layout.Next != nil {
		if keys.Next, err = layout.Next.decode(data); err != nil {
			return nil, err
		}
	}
	for i := range layout.Previous {
		key, err := layout.Previous[i].decode(data)
		if err != nil {
			return nil, err
		}
		keys.Previous = append(keys.Previous, key)
	}
	return keys, keys.distinct()
}

// decodeLoneKey reads a Secret that somebody else supplies.
func decodeLoneKey(data map[string][]byte) (*SigningKeys, error) {
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
			"add one with an EC P-256 private key", slotsEntry, pemSuffix)
	}
	private, err := decodeP256Key(data[name])
	if err != nil {
		return nil, fmt.Errorf("the entry %q: %w", name, err)
	}
	return &SigningKeys{Current: &SigningKey{ID: Thumbprint(&private.PublicKey), Algorithm: ES256, Key: private}}, nil
}

func (s *slot) decode(data map[string][]byte) (*SigningKey, error) {
	if s.Algorithm != ES256 {
		return nil, fmt.Errorf("%s gives the key %q the algorithm %q: only %s is known here", slotsEntry, s.KID, s.Algorithm, ES256)
	}
	entry, ok := data[s.KID+pemSuffix]
	if !ok {
		return nil, fmt.Errorf("%s names the key %q, and there is no entry %q", slotsEntry, s.KID, s.KID+pemSuffix)
	}
	private, err := decodeP256Key(entry)
	if err != nil {
		return nil, fmt.Errorf("the entry %q: %w", s.KID+pemSuffix, err)
	}
	// A kid that is not the thumbprint could come to name two keys.
	if kid := Thumbprint(&private.PublicKey); kid != s.KID {
		return nil, fmt.Errorf("the entry %q holds the key %q: name it by its RFC 7638 thumbprint", s.KID+pemSuffix, kid)
	}
	return &SigningKey{
		ID: s.KID, Algorithm: s.Algorithm, Key: private,
		Created: stamp(s.Created), Published: stamp(s.Published), Activated: stamp(s.Activated), Retired: stamp(s.Retired),
	}, nil
}

func (s *SigningKeys) distinct() error {
	seen := make(map[string]bool)
	for _, key := range s.All() {
		if seen[key.ID] {
			return fmt.Errorf("%s puts the key %q into two slots", slotsEntry, key.ID)
		}
		seen[key.ID] = true
	}
	return nil
}

// decodeP256Key reads PEM in PKCS #8, or in SEC 1 as `openssl ecparam -genkey`
// writes it, which puts a block with the parameters before the key.
func decodeP256Key(text []byte) (*ecdsa.PrivateKey, error) {
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			return nil, errors.New("no PEM block PRIVATE KEY in it: write what `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256` prints")
		}
		text = rest
		switch block.Type {
		case "PRIVATE KEY":
			key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if err != nil {
				return nil, errors.New("the PEM block PRIVATE KEY is not PKCS #8")
			}
			return p256(key)
		case "EC PRIVATE KEY":
			key, err := x509.ParseECPrivateKey(block.Bytes)
			if err != nil {
				return nil, errors.New("the PEM block EC PRIVATE KEY is not SEC 1")
			}
			return p256(key)
		case "ENCRYPTED PRIVATE KEY":
			return nil, errors.New("the private key is encrypted: write it without a passphrase, the Secret is what protects it")
		}
	}
}

func p256(key any) (*ecdsa.PrivateKey, error) {
	private, ok := key.(*ecdsa.PrivateKey)
	if !ok || private.Curve != elliptic.P256() {
		return nil, fmt.Errorf("the private key is not an EC key on P-256, which %s needs", ES256)
	}
	return private, nil
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
	case s.Next != nil:
		return time.Time{}, false
	case s.Current == nil:
		return time.Time{}, true
	case p.RotateEvery <= 0 || s.Current.Activated.IsZero():
		return time.Time{}, false
	}
	return s.Current.Activated.Add(p.RotateEvery - p.PublishBefore), true
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
	case s.Current == nil:
		return time.Time{}, true
	}
	return s.Next.Published.Add(p.PublishBefore), true
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
	if s.Current != nil {
		s.Current.Retired = stamp(now)
		s.Previous = slices.Insert(s.Previous, 0, s.Current)
	}
	s.Next.Activated = stamp(now)
	s.Current, s.Next = s.Next, nil
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
	for _, key := range s.Previous {
		consider(key.Retired.Add(p.KeepAfter), !key.Retired.IsZero())
	}
	return first, found
}
