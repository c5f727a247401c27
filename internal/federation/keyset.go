package federation

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"
)

// Limits of an issuer's keys.
const (
	maxKeySetLen = 512 << 10
	maxKeys      = 100
	// Of RSA: RFC 7518, section 3.3, wants 2048 bits, and verifying takes the longer
	// the longer the key is.
	minRSABits = 2048
	maxRSABits = 8192
	maxRSAExp  = 1<<31 - 1
	// maxTries is how many keys are tried for a token that does not say its kid, or
	// where several keys share one.
	maxTries = 4
)

// method is how to verify signatures of one alg (RFC 7518, section 3), and with which
// keys.
type method struct {
	signing jwt.SigningMethod
	fits    func(crypto.PublicKey) bool
}

// methods are those that can be trusted. All of them are asymmetric: a secret shared with
// an issuer would let us forge its tokens.
var methods = map[string]method{
	"RS256": {jwt.SigningMethodRS256, isRSA},
	"RS384": {jwt.SigningMethodRS384, isRSA},
	"RS512": {jwt.SigningMethodRS512, isRSA},
	"PS256": {jwt.SigningMethodPS256, isRSA},
	"ES256": {jwt.SigningMethodES256, onCurve(elliptic.P256())},
	"ES384": {jwt.SigningMethodES384, onCurve(elliptic.P384())},
	"ES512": {jwt.SigningMethodES512, onCurve(elliptic.P521())},
	"EdDSA": {jwt.SigningMethodEdDSA, isEd25519},
}

func algorithmNames() []string { return slices.Sorted(maps.Keys(methods)) }

func isRSA(key crypto.PublicKey) bool {
	_, ok := key.(*rsa.PublicKey)
	return ok
}

func isEd25519(key crypto.PublicKey) bool {
	_, ok := key.(ed25519.PublicKey)
	return ok
}

func onCurve(curve elliptic.Curve) func(crypto.PublicKey) bool {
	return func(key crypto.PublicKey) bool {
		public, ok := key.(*ecdsa.PublicKey)
		return ok && public.Curve == curve
	}
}

// verificationKey is one public key of an issuer.
type verificationKey struct {
	id  string
	alg string // the only one it is for; empty: any that fits
	key crypto.PublicKey
}

// keySet is what an issuer published. It does not change.
type keySet struct {
	keys    []verificationKey
	fetched time.Time
}

// Why a key set is not taken.
var (
	errNotKeySet  = errors.New("not a JWK Set (RFC 7517): it has to be a JSON object with the member keys")
	errTooLong    = fmt.Errorf("longer than %d KiB", maxKeySetLen>>10)
	errNoKeys     = errors.New("it holds no public key to verify signatures with")
	errPrivateKey = errors.New("it holds a private or a symmetric key: take it out, and consider it known to others")
)

// parseKeySet reads a JWK Set. Keys that are of no use are left out, as RFC 7517, section
// 5, wants it; with strict, a private one is an error, for somebody has published it in
// a manifest.
func parseKeySet(data []byte, strict bool) (*keySet, error) {
	if len(data) > maxKeySetLen {
		return nil, errTooLong
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(data, &set); err != nil || set.Keys == nil {
		return nil, errNotKeySet
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("it holds %d keys, more than %d", len(set.Keys), maxKeys)
	}
	parsed := new(keySet)
	for _, raw := range set.Keys {
		var key jose.JSONWebKey
		if key.UnmarshalJSON(raw) != nil {
			continue
		}
		if !key.IsPublic() {
			if strict {
				return nil, errPrivateKey
			}
			continue
		}
		if len(key.KeyID) <= maxKeyIDLen && (key.Use == "" || key.Use == "sig") && verifies(raw) && acceptable(key.Key) {
			parsed.keys = append(parsed.keys, verificationKey{id: key.KeyID, alg: key.Algorithm, key: key.Key})
		}
	}
	if len(parsed.keys) == 0 {
		return nil, errNoKeys
	}
	return parsed, nil
}

// verifies tells whether key_ops, where a key has it, includes verify (RFC 7517, section
// 4.3).
func verifies(raw []byte) bool {
	var key struct {
		Operations []string `json:"key_ops"`
	}
	return json.Unmarshal(raw, &key) == nil && (key.Operations == nil || slices.Contains(key.Operations, "verify"))
}

func acceptable(key crypto.PublicKey) bool {
	switch public := key.(type) {
	case *rsa.PublicKey:
		return public.N.BitLen() >= minRSABits && public.N.BitLen() <= maxRSABits && public.E >= 3 && public.E%2 == 1 && public.E <= maxRSAExp
	case *ecdsa.PublicKey:
		return public.Curve == elliptic.P256() || public.Curve == elliptic.P384() || public.Curve == elliptic.P521()
	case ed25519.PublicKey:
		return len(public) == ed25519.PublicKeySize
	}
	return false
}

// candidates are the keys that a token of this kid and alg may have been signed with: a
// token that does not say its kid may be of any.
func (s *keySet) candidates(kid, alg string) []crypto.PublicKey {
	if s == nil {
		return nil
	}
	var found []crypto.PublicKey
	for _, k := range s.keys {
		if (kid == "" || k.id == kid) && (k.alg == "" || k.alg == alg) && methods[alg].fits(k.key) && len(found) < maxTries {
			found = append(found, k.key)
		}
	}
	return found
}

// signedBy tells whether the token's signature holds with one of the keys.
func (t *token) signedBy(keys []crypto.PublicKey) bool {
	return slices.ContainsFunc(keys, func(key crypto.PublicKey) bool {
		return methods[t.alg].signing.Verify(t.signed, t.signature, key) == nil
	})
}
