package credential

import (
	"bytes"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"strconv"
	"strings"
	"sync"
	"unsafe"
)

// PepperLen is the length of a pepper in bytes.
const PepperLen = 32

// Digest is the keyed digest of a value, HMAC-SHA-256(pepper, SHA-256(value)):
// what is stored of a credential, and the key it is looked up by. Since nobody
// without the pepper can aim at a digest, a map look-up by it needs no
// constant-time comparison.
type Digest [sha256.Size]byte

// String is the digest in hex, as status shows it.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// ParseDigest reads what String wrote.
func ParseDigest(s string) (Digest, error) {
	var d Digest
	if len(s) != hex.EncodedLen(len(d)) {
		return d, fmt.Errorf("%q is not a digest of %d hexadecimal digits", s, hex.EncodedLen(len(d)))
	}
	if _, err := hex.Decode(d[:], []byte(s)); err != nil {
		return d, fmt.Errorf("%q is not a digest in hexadecimal digits", s)
	}
	return d, nil
}

// Pepper is the installation's secret key for digests and seals, with the id by
// which digests name it. It is safe for concurrent use.
type Pepper struct {
	id      string
	sealKey []byte
	jwtKey  []byte
	macs    sync.Pool // of hash.Hash keyed with the pepper
}

// NewPepper makes a pepper from its key of PepperLen bytes. The id is public
// and never used again for another key.
func NewPepper(id string, key []byte) (*Pepper, error) {
	if id == "" || len(id) > 64 || strings.ContainsAny(id, ". \n") {
		return nil, fmt.Errorf("pepper id %q: use 1 to 64 characters without dots and spaces", id)
	}
	if len(key) != PepperLen {
		return nil, fmt.Errorf("pepper %s has %d bytes, not %d", id, len(key), PepperLen)
	}
	digestKey := bytes.Clone(key)
	p := &Pepper{
		id:      id,
		sealKey: must(hkdf.Key(sha256.New, key, nil, "mintmark record seal v1", PepperLen)),
		jwtKey:  must(hkdf.Key(sha256.New, key, nil, "mintmark jwt hs256 v1", PepperLen)),
	}
	p.macs.New = func() any { return &keyedHash{Hash: hmac.New(sha256.New, digestKey)} }
	return p, nil
}

// keyedHash carries its own buffers, so that a digest allocates nothing.
type keyedHash struct {
	hash.Hash
	in  Inner
	out [sha256.Size]byte
}

// ID is the pepper's id.
func (p *Pepper) ID() string { return p.id }

// Digest keys an inner hash.
func (p *Pepper) Digest(in Inner) Digest {
	mac := p.macs.Get().(*keyedHash)
	mac.Reset()
	mac.in = in
	mac.Write(mac.in[:])
	mac.Sum(mac.out[:0])
	d := Digest(mac.out)
	p.macs.Put(mac)
	return d
}

// JWTSecret is the secret that one version of a credential has for HS256 (RFC 7518,
// section 3.2): HKDF-SHA-256 (RFC 5869) of the pepper under a label of its own, the
// credential's UID and the number of the version. It is stored nowhere, and tells
// nothing of the pepper, nor of any other's secret.
func (p *Pepper) JWTSecret(uid string, version int64) []byte {
	// The number comes last and has no slash, so no two pairs are written alike.
	return must(hkdf.Expand(sha256.New, p.jwtKey, uid+"/"+strconv.FormatInt(version, 10), sha256.Size))
}

// unsafeBytes views a string as bytes without copying it. The callers only hash
// what they get.
func unsafeBytes(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }
