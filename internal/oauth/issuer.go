package oauth

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/authz"
	"github.com/mintmark-dev/mintmark/internal/keyring"
)

// Limits of the tokens.
const (
	// MinTTL and MaxTTL bound how long a token lives, DefaultTTL is for
	// credentials that do not say. A credential's own end may cut it shorter.
	MinTTL     = time.Minute
	MaxTTL     = time.Hour
	DefaultTTL = 15 * time.Minute
	// MaxRenewal is how long after the exchange of the key its tokens can be renewed,
	// and the last of them ends. Who has got hold of a token, but not of the key, is shut
	// out then.
	MaxRenewal = 24 * time.Hour
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
// third is its owner's, the fourth the operator's; for the others the key has to be
// presented again, if it is still good.
var (
	ErrTTL          = fmt.Errorf("the life asked for is out of range: ask for %s to %s, or for none", MinTTL, MaxTTL)
	ErrAudience     = errors.New("the credential's tokens are not for this audience: ask for one of spec.jwt.audiences, or for none")
	ErrTooLong      = fmt.Errorf("the token would be longer than %d bytes: give the credential fewer permissions, roles or audiences", MaxTokenLen)
	ErrNoSigningKey = errors.New("there is no signing key yet")
	// ErrCredentialExpired: the credential has come to its end meanwhile.
	ErrCredentialExpired = errors.New("the credential has expired")
	// ErrRenewalOver: the token goes back to an exchange too long ago.
	ErrRenewalOver = fmt.Errorf("tokens are renewed for %s after the key was exchanged: exchange the key again", MaxRenewal)
)

// Config is what an Issuer is made from.
type Config struct {
	// Issuer is the iss of the tokens: an https URL without query and fragment
	// (RFC 8414, section 2). It is compared byte by byte.
	Issuer string
	// Keys gives the signing keys as they are now; nil while there are none. It
	// must be safe for concurrent use, and the keys must not change once given.
	Keys func() keyring.Ring
	// Secrets gives the secrets of credentials whose tokens are signed with HS256;
	// nil: there are none. It must be safe for concurrent use.
	Secrets Secrets
	// Denied tells of a good token whether its Session was revoked before its time;
	// nil: none was. It must be safe for concurrent use.
	Denied func(session string) bool
	// Random is the source of token ids; nil is crypto/rand.
	Random io.Reader
}

// Issuer issues and verifies tokens. It is safe for concurrent use.
type Issuer struct {
	issuer  string
	keys    func() keyring.Ring
	secrets Secrets
	denied  func(session string) bool
	random  io.Reader
	seen    cache
	checks  checks
}

// Secrets derives what is known to the servers alone: for each version of a
// credential a secret of its own, from a pepper that has an id. Nothing of it is
// stored.
type Secrets interface {
	// Current is the secret to sign with, and the id of its pepper. It is false where
	// there is no pepper.
	Current(uid string, version int64) (pepper string, secret []byte, ok bool)
	// Agreed is the secret under the pepper of that id. It is false where there is no
	// such pepper, or where tokens of this credential are not to be signed so.
	Agreed(pepper, uid string, version int64, now time.Time) (secret []byte, ok bool)
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
	if cfg.Denied == nil {
		cfg.Denied = func(string) bool { return false }
	}
	return &Issuer{
		issuer: cfg.Issuer, keys: cfg.Keys, secrets: cfg.Secrets, denied: cfg.Denied, random: cfg.Random, seen: newCache(), checks: newChecks(),
	}, nil
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
	// Foreign goes into the token of a holder whom no credential here tells of.
	Foreign *Foreign
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
	// AuthTime is when the key was exchanged. A renewed token keeps it.
	AuthTime time.Time
	// Session is the ID of the token that the key was exchanged for. A renewed token
	// keeps it too, and is revoked with it.
	Session string
	// ID is the token's own (jti).
	ID string
	// Permissions are the scope.
	Permissions []string
	Roles       []string
	Admin       bool
	// CredentialUID and Version say what the token was issued for.
	CredentialUID string
	Version       int64
	// Foreign is nil unless the token was issued for one of another issuer.
	Foreign *Foreign
	// KeyID is the kid of the key it is signed with, Algorithm the key's.
	KeyID, Algorithm string
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
	if claims, err = i.claims(p, now, opts, i.audiences(p)); err != nil {
		return "", Claims{}, err
	}
	return i.sign(claims, p.JWT.Algorithm)
}

// Renew makes a token in place of one that Verify has just accepted, for the
// principal that it was issued for. The new one is for no other audience and
// allows nothing that the old one did not, nor anything that its principal may no
// longer do. The caller sees to it that the version of the credential is still in
// use: a retired one's tokens end. The errors are those of Issue, ErrRenewalOver
// and ErrForeign.
func (i *Issuer) Renew(p *authn.Principal, old Claims, now time.Time, opts Options) (token string, claims Claims, err error) {
	if old.Foreign != nil {
		return "", Claims{}, ErrForeign
	}
	allowed := slices.DeleteFunc(slices.Clone(i.audiences(p)), func(a string) bool { return !slices.Contains(old.Audience, a) })
	if len(allowed) == 0 {
		return "", Claims{}, ErrAudience
	}
	if claims, err = i.claims(p, now, opts, allowed); err != nil {
		return "", Claims{}, err
	}
	end := old.AuthTime.Add(MaxRenewal)
	if !end.After(claims.IssuedAt) || old.AuthTime.After(now.Add(Leeway)) {
		return "", Claims{}, ErrRenewalOver
	}
	if claims.Expires.After(end) {
		claims.Expires = end
	}
	claims.AuthTime, claims.Session = old.AuthTime, old.Session
	claims.Admin = claims.Admin && old.Admin
	claims.Permissions = Mandate(p, old)
	claims.Roles = slices.DeleteFunc(slices.Clone(p.Roles), func(r string) bool { return !slices.Contains(old.Roles, r) })
	return i.sign(claims, p.JWT.Algorithm)
}

// Mandate is what a token allows as far as its credential still does, sorted: the
// permissions that both the claims and the principal hold.
func Mandate(p *authn.Principal, c Claims) []string {
	if p.Admin && c.Admin {
		return []string{authz.Everything}
	}
	scope := authz.NewSet(c.Permissions)
	// Of two patterns that overlap one covers the other, so what both sides have is
	// what each says and the other allows.
	var both []string
	for _, permission := range c.Permissions {
		if p.Allows(permission) {
			both = append(both, permission)
		}
	}
	for _, permission := range p.Permissions {
		if scope.Allows(permission) {
			both = append(both, permission)
		}
	}
	slices.Sort(both)
	return slices.Compact(both)
}

func (i *Issuer) sign(c Claims, algorithm string) (string, Claims, error) {
	k, err := i.signingKey(algorithm, c.CredentialUID, c.Version)
	if err != nil {
		return "", Claims{}, err
	}
	c.KeyID, c.Algorithm = k.id, k.method.Alg()
	token := c.encode()
	signature, err := k.method.Sign(string(token), k.private)
	if err != nil {
		return "", Claims{}, fmt.Errorf("signing with key %s: %w", k.id, err)
	}
	token = base64.RawURLEncoding.AppendEncode(append(token, '.'), signature)
	if len(token) > MaxTokenLen {
		return "", Claims{}, ErrTooLong
	}
	return string(token), c, nil
}

// claims are those of a token for some of the audiences allowed.
func (i *Issuer) claims(p *authn.Principal, now time.Time, opts Options, allowed []string) (Claims, error) {
	issued := now.UTC().Truncate(time.Second)
	expires, err := expiry(p, issued, opts.TTL)
	if err != nil {
		return Claims{}, err
	}
	audience, err := narrow(allowed, opts.Audience)
	if err != nil {
		return Claims{}, err
	}
	var id [jtiBytes]byte
	if _, err := io.ReadFull(i.random, id[:]); err != nil {
		return Claims{}, fmt.Errorf("reading randomness for a token's id: %w", err)
	}
	jti := base64.RawURLEncoding.EncodeToString(id[:])
	return Claims{
		Issuer: i.issuer, Subject: p.Subject, ClientID: p.Subject, Audience: audience,
		IssuedAt: issued, NotBefore: issued, Expires: expires, AuthTime: issued,
		ID: jti, Session: jti, Permissions: p.Permissions, Roles: p.Roles, Admin: p.Admin,
		CredentialUID: p.UID, Version: p.Version, Foreign: opts.Foreign,
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

// audiences are what tokens of a credential may be for: RFC 9068 wants one in every
// token, so where the credential names none it is for the issuer itself.
func (i *Issuer) audiences(p *authn.Principal) []string {
	if len(p.JWT.Audiences) == 0 {
		return []string{i.issuer}
	}
	return p.JWT.Audiences
}

// narrow takes those asked for of what is allowed, and all of it where none is.
func narrow(allowed, asked []string) ([]string, error) {
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
