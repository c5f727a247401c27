package oauth

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"fmt"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/mintmark-dev/mintmark/internal/keyring"
)

// HS256 is HMAC with SHA-256 (RFC 7518, section 3.2), with a secret that each
// version of a credential has for itself. The servers alone can verify such a
// token: no key for it is published.
const HS256 = "HS256"

// isolatedPrefix begins the kid of tokens signed with HS256, and the id of the
// pepper follows. No thumbprint has a colon in it, so no kid names both a
// published key and a secret.
const isolatedPrefix = "hs256:"

// signingKey is what one token is signed with.
type signingKey struct {
	id      string
	method  jwt.SigningMethod
	private any
}

// signingKey finds what to sign with for one who asks for an algorithm.
func (i *Issuer) signingKey(algorithm, uid string, version int64) (signingKey, error) {
	if algorithm == HS256 {
		if i.secrets == nil {
			return signingKey{}, ErrNoSigningKey
		}
		pepper, secret, ok := i.secrets.Current(uid, version)
		if !ok {
			return signingKey{}, ErrNoSigningKey
		}
		return signingKey{isolatedPrefix + pepper, jwt.SigningMethodHS256, secret}, nil
	}
	key := i.keys().Signer(algorithm)
	if key == nil {
		return signingKey{}, ErrNoSigningKey
	}
	method, ok := methodFor(key.Algorithm, key.Key.Public())
	if !ok {
		return signingKey{}, fmt.Errorf("signing key %s: a %T is no key for %s", key.ID, key.Key, key.Algorithm)
	}
	return signingKey{key.ID, method, key.Key}, nil
}

// methodFor is how a key of an algorithm signs; false where the key is none for it.
func methodFor(algorithm string, public crypto.PublicKey) (jwt.SigningMethod, bool) {
	switch key := public.(type) {
	case *ecdsa.PublicKey:
		return jwt.SigningMethodES256, algorithm == keyring.ES256 && key.Curve == elliptic.P256()
	case ed25519.PublicKey:
		return jwt.SigningMethodEdDSA, algorithm == keyring.EdDSA
	case *rsa.PublicKey:
		return jwt.SigningMethodRS256, algorithm == keyring.RS256
	}
	return nil, false
}

// checkPublished checks a signature by one of the published keys. One of ES256 is r
// and s of 32 bytes each (RFC 7518, section 3.4), and nothing in DER.
func (i *Issuer) checkPublished(h header, signed string, signature []byte, mayCheck func() bool) error {
	key := i.keys().ByID(h.kid)
	if key == nil {
		return ErrUnknownKey
	}
	if err := h.holdTo(key.Algorithm); err != nil {
		return err
	}
	method, ok := methodFor(key.Algorithm, key.Key.Public())
	if !ok {
		return ErrAlgorithm
	}
	if mayCheck != nil && !mayCheck() {
		return ErrUnchecked
	}
	if !i.checks.enter() {
		return ErrBusy
	}
	defer i.checks.leave()
	if err := method.Verify(signed, signature, key.Key.Public()); err != nil {
		return ErrSignature
	}
	return nil
}

// checkIsolated checks a signature by the secret that the claims, unverified as yet,
// name.
func (i *Issuer) checkIsolated(h header, pepper string, claims Claims, now time.Time, signed string, signature []byte) error {
	if err := h.holdTo(HS256); err != nil {
		return err
	}
	if i.secrets == nil {
		return ErrUnknownKey
	}
	secret, ok := i.secrets.Agreed(pepper, claims.CredentialUID, claims.Version, now)
	if !ok {
		return ErrUnknownKey
	}
	if err := jwt.SigningMethodHS256.Verify(signed, signature, secret); err != nil {
		return ErrSignature
	}
	return nil
}
