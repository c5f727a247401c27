package oauth

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/keyring"
)

// Limits of the tokens.
const (
	// MinTTL and MaxTTL bound how long a token lives, DefaultTTL is for
	// credentials that do not say. A credential's own end may cut it shorter.
	MinTTL     = time.Minute
	MaxTTL     = time.Hour
	DefaultTTL = 15 * time.Minute
	// Leeway is by how much the clocks of issuer and verifier may differ.
	Leeway = 30 * time.Second
	// MaxTokenLen is the longest token issued or looked at, in bytes. Most
	// servers take no longer header line.
	MaxTokenLen = 8 << 10
)

// tokenType is the typ of RFC 9068, section 2.1, which keeps ID tokens and other
// JWTs from passing as access tokens.
const tokenType = "at+jwt"

// jtiBytes makes it unlikely that two tokens ever share an id.
const jtiBytes = 16

// Why a token could not be issued. The first two are the caller's to mend, the
// third is its owner's, the fourth the operator's.
var (
	ErrTTL          = fmt.Errorf("the life asked for is out of range: ask for %s to %s, or for none", MinTTL, MaxTTL)
	ErrAudience     = errors.New("the credential's tokens are not for this audience: ask for one of spec.jwt.audiences, or for none")
	ErrTooLong      = fmt.Errorf("the token would be longer than %d bytes: give the credential fewer permissions, roles or audiences", MaxTokenLen)
	ErrNoSigningKey = errors.New("there is no signing key yet")
	// ErrCredentialExpired: the credential has come to its end meanwhile.
	ErrCredentialExpired = errors.New("the credential has expired")
)

// Config is what an Issuer is made from.
type Config struct {
	// Issuer is the iss of the tokens: an https URL without query and fragment
	// (RFC 8414, section 2). It is compared byte by byte.
	Issuer string
	// Keys gives the signing keys as they are now; nil while there are none. It
	// must be safe for concurrent use, and the keys must not change once given.
	Keys func() *keyring.SigningKeys
	// Random is the source of token ids; nil is crypto/rand.
	Random io.Reader
}

// Issuer issues and verifies tokens. It is safe for concurrent use.
type Issuer struct {
	issuer string
	keys   func() *keyring.SigningKeys
	random io.Reader
}

// NewIssuer checks the configuration.
func NewIssuer(cfg Config) (*Issuer, error) {
	u, err := url.Parse(cfg.Issuer)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || strings.ContainsAny(cfg.Issuer, "?#") {
		return nil, fmt.Errorf("issuer %q: use an https URL without user, query and fragment, such as https://auth.example.com", cfg.Issuer)
	}
	if cfg.Keys == nil {
		return nil, errors.New("an issuer needs a source of signing keys")
	}
	if cfg.Random == nil {
		cfg.Random = rand.Reader
	}
	return &Issuer{issuer: cfg.Issuer, keys: cfg.Keys, random: cfg.Random}, nil
}

// Issuer is the iss of the tokens.
func (i *Issuer) Issuer() string { return i.issuer }

// Options are what a caller may ask for.
type Options struct {
	// TTL asks for a shorter life than the credential's tokens have; zero does
	// not ask. A longer one is not given.
	TTL time.Duration
	// Audience asks for some of the audiences the credential's tokens may be
	// for; empty asks for all of them.
	Audience []string
}

// Claims are what a token says. Times are in UTC, to the second.
type Claims struct {
	Issuer  string
	Subject string
	// ClientID is whoever asked for the token: for one that a credential was
	// exchanged for, its subject.
	ClientID  string
	Audience  []string
	IssuedAt  time.Time
	NotBefore time.Time
	Expires   time.Time
	// ID is the token's own (jti).
	ID string
	// Permissions are the scope.
	Permissions []string
	Roles       []string
	Admin       bool
	// CredentialUID and Version say what the token was issued for.
	CredentialUID string
	Version       int64
	// KeyID is the kid of the key it is signed with.
	KeyID string
}

// Scope is the permissions as OAuth writes them (RFC 6749, section 3.3).
func (c Claims) Scope() string { return strings.Join(c.Permissions, " ") }

// Names of the claims that no RFC has.
const (
	claimRoles   = "roles"
	claimAdmin   = "is_admin"
	claimUID     = "mintmark.dev/uid"
	claimVersion = "mintmark.dev/version"
)

// Issue makes a token for a principal that has just been verified. The errors
// are those above; any other is a fault of the key or the randomness.
func (i *Issuer) Issue(p *authn.Principal, now time.Time, opts Options) (token string, claims Claims, err error) {
	key := i.signingKey()
	if key == nil {
		return "", Claims{}, ErrNoSigningKey
	}
	private, ok := key.Key.(*ecdsa.PrivateKey)
	if !ok || key.Algorithm != keyring.ES256 || private.Curve != elliptic.P256() {
		return "", Claims{}, fmt.Errorf("signing key %s: not a P-256 key for %s", key.ID, keyring.ES256)
	}
	if claims, err = i.claims(p, now, opts); err != nil {
		return "", Claims{}, err
	}
	claims.KeyID = key.ID
	unsigned := jwt.NewWithClaims(jwt.SigningMethodES256, claims.mapClaims())
	unsigned.Header["typ"], unsigned.Header["kid"] = tokenType, key.ID
	if token, err = unsigned.SignedString(private); err != nil {
		return "", Claims{}, fmt.Errorf("signing with key %s: %w", key.ID, err)
	}
	if len(token) > MaxTokenLen {
		return "", Claims{}, ErrTooLong
	}
	return token, claims, nil
}

func (i *Issuer) signingKey() *keyring.SigningKey {
	if keys := i.keys(); keys != nil {
		return keys.Current
	}
	return nil
}

func (i *Issuer) claims(p *authn.Principal, now time.Time, opts Options) (Claims, error) {
	issued := now.UTC().Truncate(time.Second)
	expires, err := expiry(p, issued, opts.TTL)
	if err != nil {
		return Claims{}, err
	}
	audience, err := i.audience(p, opts.Audience)
	if err != nil {
		return Claims{}, err
	}
	var id [jtiBytes]byte
	if _, err := io.ReadFull(i.random, id[:]); err != nil {
		return Claims{}, fmt.Errorf("reading randomness for a token's id: %w", err)
	}
	return Claims{
		Issuer: i.issuer, Subject: p.Subject, ClientID: p.Subject, Audience: audience, IssuedAt: issued, NotBefore: issued, Expires: expires,
		ID: base64.RawURLEncoding.EncodeToString(id[:]), Permissions: p.Permissions, Roles: p.Roles, Admin: p.Admin,
		CredentialUID: p.UID, Version: p.Version,
	}, nil
}

func expiry(p *authn.Principal, issued time.Time, asked time.Duration) (time.Time, error) {
	ttl := p.JWT.TTL
	if ttl == 0 {
		ttl = DefaultTTL
	}
	ttl = min(max(ttl, MinTTL), MaxTTL)
	if asked != 0 {
		if asked < MinTTL || asked > MaxTTL {
			return time.Time{}, ErrTTL
		}
		ttl = min(ttl, asked)
	}
	expires := issued.Add(ttl.Truncate(time.Second))
	if !p.Expires.IsZero() && p.Expires.Before(expires) {
		expires = p.Expires.UTC().Truncate(time.Second)
	}
	if !expires.After(issued) {
		return time.Time{}, ErrCredentialExpired
	}
	return expires, nil
}

// audience is what the token is for: RFC 9068 wants one in every token, so where
// the credential names none it is for the issuer itself.
func (i *Issuer) audience(p *authn.Principal, asked []string) ([]string, error) {
	allowed := p.JWT.Audiences
	if len(allowed) == 0 {
		allowed = []string{i.issuer}
	}
	if len(asked) == 0 {
		return allowed, nil
	}
	var audience []string
	for _, a := range asked {
		if !slices.Contains(allowed, a) {
			return nil, ErrAudience
		}
		if !slices.Contains(audience, a) {
			audience = append(audience, a)
		}
	}
	return audience, nil
}

func (c Claims) mapClaims() jwt.MapClaims {
	m := jwt.MapClaims{
		"iss": c.Issuer, "sub": c.Subject, "aud": c.Audience, "exp": c.Expires.Unix(), "nbf": c.NotBefore.Unix(), "iat": c.IssuedAt.Unix(),
		"jti": c.ID, "client_id": c.ClientID, claimAdmin: c.Admin, claimUID: c.CredentialUID, claimVersion: c.Version,
	}
	// RFC 9068, section 2.2.3: a scope that is empty is not there.
	if len(c.Permissions) > 0 {
		m["scope"] = c.Scope()
	}
	if len(c.Roles) > 0 {
		m[claimRoles] = c.Roles
	}
	return m
}
