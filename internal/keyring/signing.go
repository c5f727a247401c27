package keyring

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"time"
)

// The JWS algorithms that keys are made for.
const (
	// ES256 is ECDSA on P-256 with SHA-256 (RFC 7518, section 3.4).
	ES256 = "ES256"
	// EdDSA is Ed25519 (RFC 8037, section 3.1).
	EdDSA = "EdDSA"
	// RS256 is RSASSA-PKCS1-v1_5 with SHA-256 (RFC 7518, section 3.3).
	RS256 = "RS256"
)

// DefaultAlgorithm signs where nothing else is asked for, or is ready to.
const DefaultAlgorithm = ES256

// Algorithms are those that keys are made for, the default one first.
func Algorithms() []string { return []string{ES256, EdDSA, RS256} }

// Lengths of RSA moduli in bits. RFC 7518 allows nothing below 2048; what is
// longer than 8192 would make a signature cost a second.
const (
	rsaBits    = 2048
	maxRSABits = 8192
)

// SigningKey is a key that signs JWTs, with its life so far. Times are in UTC,
// to the second; one that has not come is zero.
type SigningKey struct {
	// ID is the key's kid: its RFC 7638 thumbprint, in base64url.
	ID string
	// Algorithm is the JWS algorithm the key is for, one of Algorithms. The type
	// and the size of Key are that algorithm's.
	Algorithm string
	// Key holds the private key: *ecdsa.PrivateKey on P-256, ed25519.PrivateKey
	// or *rsa.PrivateKey.
	Key crypto.Signer
	// Created is when the key was made, Published when the servers could first
	// show it in the JWKS, Activated when it began to sign, and Retired when it
	// ceased to.
	Created, Published, Activated, Retired time.Time
}

// NewSigningKey makes a key for one of Algorithms from a cryptographically secure
// source. It is not published yet.
func NewSigningKey(random io.Reader, algorithm string, now time.Time) (*SigningKey, error) {
	private, err := newPrivateKey(random, algorithm)
	if err != nil {
		return nil, err
	}
	return &SigningKey{ID: Thumbprint(private.Public()), Algorithm: algorithm, Key: private, Created: stamp(now)}, nil
}

func newPrivateKey(random io.Reader, algorithm string) (crypto.Signer, error) {
	switch algorithm {
	case ES256:
		return newP256Key(random)
	case EdDSA:
		seed := make([]byte, ed25519.SeedSize)
		if _, err := io.ReadFull(random, seed); err != nil {
			return nil, fmt.Errorf("reading randomness for an Ed25519 key: %w", err)
		}
		return ed25519.NewKeyFromSeed(seed), nil
	case RS256:
		// crypto/rsa asks the operating system whatever it is handed.
		key, err := rsa.GenerateKey(random, rsaBits)
		if err != nil {
			return nil, fmt.Errorf("making an RSA key of %d bits: %w", rsaBits, err)
		}
		return key, nil
	}
	return nil, fmt.Errorf("no keys are made for the algorithm %q: use one of %q", algorithm, Algorithms())
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

// Thumbprint is the RFC 7638 thumbprint of a public key's JWK, SHA-256 in
// base64url without padding. The key is one of those a SigningKey has.
func Thumbprint(public crypto.PublicKey) string {
	encode := base64.RawURLEncoding.EncodeToString
	// RFC 7638, section 3.2: the required members alone, in lexical order,
	// without space.
	var jwk string
	switch key := public.(type) {
	case *ecdsa.PublicKey:
		point, err := key.Bytes() // 4 || X || Y
		if err != nil {
			panic(fmt.Sprintf("a P-256 key off its curve: %v", err)) // no decoder here lets one pass
		}
		jwk = `{"crv":"P-256","kty":"EC","x":"` + encode(point[1:33]) + `","y":"` + encode(point[33:]) + `"}`
	case ed25519.PublicKey:
		jwk = `{"crv":"Ed25519","kty":"OKP","x":"` + encode(key) + `"}` // RFC 8037, appendix A.3
	case *rsa.PublicKey:
		jwk = `{"e":"` + encode(big.NewInt(int64(key.E)).Bytes()) + `","kty":"RSA","n":"` + encode(key.N.Bytes()) + `"}`
	default:
		panic(fmt.Sprintf("a signing key of type %T", public))
	}
	sum := sha256.Sum256([]byte(jwk))
	return encode(sum[:])
}

func stamp(t time.Time) time.Time { return t.UTC().Truncate(time.Second) }

// decodePrivateKey reads PEM in PKCS #8, in SEC 1 as `openssl ecparam -genkey`
// writes it, which puts a block with the parameters before the key, or in PKCS #1.
// It says which algorithm the key is for.
func decodePrivateKey(text []byte) (crypto.Signer, string, error) {
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			return nil, "", errors.New("no PEM block PRIVATE KEY in it: write what `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256` prints")
		}
		text = rest
		switch block.Type {
		case "PRIVATE KEY":
			key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if err != nil {
				return nil, "", errors.New("the PEM block PRIVATE KEY is not PKCS #8")
			}
			return usable(key)
		case "EC PRIVATE KEY":
			key, err := x509.ParseECPrivateKey(block.Bytes)
			if err != nil {
				return nil, "", errors.New("the PEM block EC PRIVATE KEY is not SEC 1")
			}
			return usable(key)
		case "RSA PRIVATE KEY":
			key, err := x509.ParsePKCS1PrivateKey(block.Bytes)
			if err != nil {
				return nil, "", errors.New("the PEM block RSA PRIVATE KEY is not PKCS #1")
			}
			return usable(key)
		case "ENCRYPTED PRIVATE KEY":
			return nil, "", errors.New("the private key is encrypted: write it without a passphrase, the Secret is what protects it")
		}
	}
}

// usable tells which algorithm a key is for.
func usable(key any) (crypto.Signer, string, error) {
	switch private := key.(type) {
	case *ecdsa.PrivateKey:
		if private.Curve == elliptic.P256() {
			return private, ES256, nil
		}
	case ed25519.PrivateKey:
		return private, EdDSA, nil
	case *rsa.PrivateKey:
		if bits := private.N.BitLen(); bits >= rsaBits && bits <= maxRSABits {
			return private, RS256, nil
		}
	}
	return nil, "", fmt.Errorf("the private key is neither an EC key on P-256, which %s needs, nor an Ed25519 key for %s, "+
		"nor an RSA key of %d to %d bits for %s", ES256, EdDSA, rsaBits, maxRSABits, RS256)
}
