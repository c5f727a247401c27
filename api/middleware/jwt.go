package middleware

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// Leeway is by how much the clocks of issuer and service may differ.
const Leeway = 30 * time.Second

// algorithms that a published key can have, and HS256, which has none: what is signed by
// it the server alone can verify.
var algorithms = []jose.SignatureAlgorithm{jose.ES256, jose.EdDSA, jose.RS256, jose.HS256}

// errAskServer: only the server can tell.
var errAskServer = errors.New("the server has to be asked")

// claims are those of RFC 9068 and Mintmark's own.
type claims struct {
	jwt.Claims

	Scope   string   `json:"scope"`
	Roles   []string `json:"roles"`
	Admin   bool     `json:"is_admin"`
	UID     string   `json:"mintmark.dev/uid"`
	Version int64    `json:"mintmark.dev/version"`
}

// verify checks a JWT by the published keys: alg that of the key, typ at+jwt, nothing in
// the header that could steer the verification, iss, aud, exp and nbf.
func (g *Guard) verify(ctx context.Context, token string) (*Identity, error) {
	parsed, err := jwt.ParseSigned(token, algorithms)
	if err != nil || len(parsed.Headers) != 1 {
		return nil, ErrUnauthenticated
	}
	header := parsed.Headers[0]
	if typ, ok := header.ExtraHeaders[jose.HeaderType].(string); !ok || typ != "at+jwt" || header.JSONWebKey != nil || header.KeyID == "" {
		return nil, ErrUnauthenticated
	}
	for name := range header.ExtraHeaders {
		if name != jose.HeaderType {
			return nil, ErrUnauthenticated
		}
	}
	if header.Algorithm == string(jose.HS256) {
		return nil, errAskServer
	}
	key, err := g.keys.find(ctx, header.KeyID)
	if err != nil {
		return nil, err
	}
	if key.Algorithm != header.Algorithm {
		return nil, ErrUnauthenticated
	}
	var c claims
	if err := parsed.Claims(key.Key, &c); err != nil {
		return nil, ErrUnauthenticated
	}
	return g.identityOf(&c)
}

func (g *Guard) identityOf(c *claims) (*Identity, error) {
	now := g.config.Now()
	switch {
	case c.Issuer != g.config.Issuer, c.Subject == "", c.UID == "", c.Version <= 0, c.Expiry == nil, c.IssuedAt == nil:
		return nil, ErrUnauthenticated
	case !now.Before(c.Expiry.Time().Add(Leeway)), now.Add(Leeway).Before(c.IssuedAt.Time()):
		return nil, ErrUnauthenticated
	case c.NotBefore != nil && now.Add(Leeway).Before(c.NotBefore.Time()):
		return nil, ErrUnauthenticated
	case !slices.ContainsFunc(g.config.Audiences, func(a string) bool { return slices.Contains(c.Audience, a) }):
		return nil, ErrUnauthenticated
	}
	return &Identity{
		Subject: c.Subject, UID: c.UID, Version: c.Version, Permissions: strings.Fields(c.Scope), Roles: c.Roles, Admin: c.Admin,
		Expires: c.Expiry.Time(),
	}, nil
}

// Limits of the key set.
const (
	// refreshAfter is how old the keys get before they are fetched again.
	refreshAfter = 5 * time.Minute
	// fetchEvery bounds how often that is tried: what callers put into kid cannot make
	// it more.
	fetchEvery = 10 * time.Second
	// keepFor is how long the keys are used while none can be fetched.
	keepFor    = time.Hour
	maxKeys    = 64
	maxKeysDoc = 256 << 10
)

// keySet is the issuer's published keys.
type keySet struct {
	config Config
	known  atomic.Pointer[fetchedKeys]

	mu    sync.Mutex
	tried time.Time
}

type fetchedKeys struct {
	byID map[string]jose.JSONWebKey
	at   time.Time
}

func newKeySet(c Config) *keySet { return &keySet{config: c} }

// find gives the key of this id, after fetching the keys where it is not known or they
// are old. Keys that are merely old go on serving while that fails, or lasts.
func (s *keySet) find(ctx context.Context, id string) (jose.JSONWebKey, error) {
	now := s.config.Now()
	known := s.known.Load()
	key, ok := known.find(id)
	if ok && now.Sub(known.at) < refreshAfter {
		return key, nil
	}
	serves := ok && now.Sub(known.at) < keepFor
	if !serves {
		s.mu.Lock()
	} else if !s.mu.TryLock() {
		return key, nil // somebody fetches them
	}
	fetched, err := s.refresh(ctx, now)
	if err == nil {
		known = fetched
		if key, ok = known.find(id); !ok {
			return key, ErrUnauthenticated
		}
		return key, nil
	}
	if serves {
		return key, nil
	}
	return jose.JSONWebKey{}, ErrUnavailable
}

func (k *fetchedKeys) find(id string) (jose.JSONWebKey, bool) {
	if k == nil {
		return jose.JSONWebKey{}, false
	}
	key, ok := k.byID[id]
	return key, ok
}

var errTooSoon = errors.New("the keys were fetched a moment ago without success")

// refresh fetches the keys, unless somebody did a moment ago: then theirs are it. The
// caller holds mu, which is given up here.
func (s *keySet) refresh(ctx context.Context, now time.Time) (*fetchedKeys, error) {
	defer s.mu.Unlock()
	if known := s.known.Load(); !s.tried.IsZero() && now.Sub(s.tried) < fetchEvery {
		if known != nil && !known.at.Before(s.tried) {
			return known, nil
		}
		return nil, errTooSoon
	}
	s.tried = now
	fetched, err := s.fetch(ctx, now)
	if err != nil {
		s.config.Log.WarnContext(ctx, "Mintmark's keys cannot be fetched", "error", err.Error())
		return nil, err
	}
	s.known.Store(fetched)
	return fetched, nil
}

func (s *keySet) fetch(ctx context.Context, now time.Time) (*fetchedKeys, error) {
	// Others wait for this: it does not end with the one request that began it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.config.ServerURL+"/.well-known/jwks.json", nil)
	if err != nil {
		return nil, err
	}
	resp, err := s.config.HTTPClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %s", req.URL, resp.Status)
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxKeysDoc+1))
	if err != nil {
		return nil, err
	}
	var set jose.JSONWebKeySet
	if len(text) > maxKeysDoc {
		return nil, fmt.Errorf("%s: larger than %d bytes", req.URL, maxKeysDoc)
	}
	if err := json.Unmarshal(text, &set); err != nil {
		return nil, fmt.Errorf("%s: %w", req.URL, err)
	}
	return usable(set, now), nil
}

// usable are the keys that sign tokens, by id. One without an algorithm, or of another,
// is for somebody else.
func usable(set jose.JSONWebKeySet, now time.Time) *fetchedKeys {
	keys := &fetchedKeys{byID: make(map[string]jose.JSONWebKey), at: now}
	for _, key := range set.Keys {
		asymmetric := slices.Contains(algorithms, jose.SignatureAlgorithm(key.Algorithm)) && key.Algorithm != string(jose.HS256)
		if asymmetric && key.KeyID != "" && key.IsPublic() && key.Valid() && (key.Use == "" || key.Use == "sig") && len(keys.byID) < maxKeys {
			keys.byID[key.KeyID] = key
		}
	}
	return keys
}
