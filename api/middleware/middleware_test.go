package middleware_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"

	"github.com/mintmark-dev/mintmark/api/middleware"
)

// mint is a stand-in for the server, for what a real one cannot be made to do.
type mint struct {
	t      testing.TB
	http   *httptest.Server
	issuer string
	keys   map[string]signer

	mu       sync.Mutex
	now      time.Time
	down     bool
	fetched  atomic.Int64
	asked    atomic.Int64
	answer   func(w http.ResponseWriter, r *http.Request, body map[string]any)
	lastBody map[string]any
	lastAuth string
}

type signer struct {
	key crypto.Signer
	alg jose.SignatureAlgorithm
}

func newMint(t testing.TB) *mint {
	t.Helper()
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rs, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	m := &mint{t: t, now: time.Unix(1_800_000_000, 0), keys: map[string]signer{"ec": {ec, jose.ES256}, "ed": {ed, jose.EdDSA}, "rs": {rs, jose.RS256}}}
	m.http = httptest.NewTLSServer(http.HandlerFunc(m.serve))
	t.Cleanup(m.http.Close)
	m.issuer = m.http.URL
	m.answer = func(w http.ResponseWriter, _ *http.Request, _ map[string]any) {
		_, _ = w.Write([]byte(`{"allowed":true,"authenticated":true,"subject":"servicetoken:a:b","key_id":"u1","version":1,"permissions":"orders:*","roles":"","is_admin":false}`))
	}
	return m
}

func (m *mint) clock() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.now
}

func (m *mint) advance(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now = m.now.Add(d)
}

func (m *mint) set(change func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change()
}

func (m *mint) serve(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down {
		http.Error(w, "down", http.StatusBadGateway)
		return
	}
	switch r.URL.Path {
	case "/.well-known/jwks.json":
		m.fetched.Add(1)
		var set jose.JSONWebKeySet
		for id, s := range m.keys {
			set.Keys = append(set.Keys, jose.JSONWebKey{Key: s.key.Public(), KeyID: id, Algorithm: string(s.alg), Use: "sig"})
		}
		_ = json.NewEncoder(w).Encode(set)
	case "/api/v1/auth/check":
		m.asked.Add(1)
		m.lastBody, m.lastAuth = nil, r.Header.Get("Authorization")
		_ = json.NewDecoder(r.Body).Decode(&m.lastBody)
		m.answer(w, r, m.lastBody)
	default:
		http.NotFound(w, r)
	}
}

func (m *mint) guard(change ...func(*middleware.Config)) *middleware.Guard {
	m.t.Helper()
	c := middleware.Config{ServerURL: m.http.URL, HTTPClient: m.http.Client(), Now: m.clock}
	for _, f := range change {
		f(&c)
	}
	g, err := middleware.New(c)
	if err != nil {
		m.t.Fatal(err)
	}
	return g
}

func (m *mint) claims() map[string]any {
	now := m.clock().Unix()
	return map[string]any{
		"iss": m.issuer, "sub": "servicetoken:a:b", "aud": []string{m.issuer}, "iat": now, "nbf": now, "exp": now + 900, "jti": "j", "client_id": "c",
		"scope": "orders:read billing:*", "roles": []string{"r"}, "is_admin": false, "mintmark.dev/uid": "u1", "mintmark.dev/version": 1,
	}
}

// sign makes a token of these claims, by the key kid, with what is given added to the
// header.
func (m *mint) sign(kid string, claims map[string]any, header map[jose.HeaderKey]any) string {
	m.t.Helper()
	s := m.keys[kid]
	options := (&jose.SignerOptions{}).WithType("at+jwt").WithHeader("kid", kid)
	for k, v := range header {
		options = options.WithHeader(k, v)
	}
	maker, err := jose.NewSigner(jose.SigningKey{Algorithm: s.alg, Key: s.key}, options)
	if err != nil {
		m.t.Fatal(err)
	}
	token, err := jwt.Signed(maker).Claims(claims).Serialize()
	if err != nil {
		m.t.Fatal(err)
	}
	return token
}

func with(claims map[string]any, name string, value any) map[string]any {
	if value == nil {
		delete(claims, name)
	} else {
		claims[name] = value
	}
	return claims
}

func TestJWTsAreVerifiedWithoutAskingTheServer(t *testing.T) {
	m := newMint(t)
	g := m.guard()
	for _, kid := range []string{"ec", "ed", "rs"} {
		id, err := g.Check(t.Context(), middleware.Call{Credential: m.sign(kid, m.claims(), nil), Permissions: []string{"orders:read", "billing:invoice:write"}})
		if err != nil || id.Subject != "servicetoken:a:b" || id.UID != "u1" || id.Version != 1 || len(id.Roles) != 1 {
			t.Errorf("%s: %+v %v", kid, id, err)
		}
	}
	if m.asked.Load() != 0 || m.fetched.Load() != 1 {
		t.Errorf("the server was asked %d times, its keys %d times; want 0 and 1", m.asked.Load(), m.fetched.Load())
	}
	if _, err := g.Check(t.Context(), middleware.Call{Credential: m.sign("ec", m.claims(), nil), Permissions: []string{"orders:write"}}); !errors.Is(err, middleware.ErrForbidden) {
		t.Errorf("without the permission: %v", err)
	}
	admin := m.sign("ec", with(m.claims(), "is_admin", true), nil)
	if _, err := g.Check(t.Context(), middleware.Call{Credential: admin, Permissions: []string{"any:thing"}}); err != nil {
		t.Errorf("an admin: %v", err)
	}
}

// THREATS 16.
func TestJWTsThatAreNotOursAreRefused(t *testing.T) {
	m := newMint(t)
	g := m.guard()
	now := m.clock().Unix()
	other := newMint(t)
	good := m.sign("ec", m.claims(), nil)
	parts := strings.Split(good, ".")
	for name, token := range map[string]string{
		"the key of somebody else":     other.sign("ec", m.claims(), nil),
		"another issuer":               m.sign("ec", with(m.claims(), "iss", "https://evil.example.com"), nil),
		"another audience":             m.sign("ec", with(m.claims(), "aud", "https://other.example.com"), nil),
		"no audience":                  m.sign("ec", with(m.claims(), "aud", nil), nil),
		"expired":                      m.sign("ec", with(m.claims(), "exp", now-31), nil),
		"without an end":               m.sign("ec", with(m.claims(), "exp", nil), nil),
		"not yet valid":                m.sign("ec", with(m.claims(), "nbf", now+60), nil),
		"issued in the future":         m.sign("ec", with(m.claims(), "iat", now+60), nil),
		"no subject":                   m.sign("ec", with(m.claims(), "sub", nil), nil),
		"no credential":                m.sign("ec", with(m.claims(), "mintmark.dev/uid", nil), nil),
		"an ID token":                  m.sign("ec", m.claims(), map[jose.HeaderKey]any{"typ": "JWT"}),
		"a key in the header":          m.sign("ec", m.claims(), map[jose.HeaderKey]any{"jku": "https://evil.example.com"}),
		"an unknown extension":         m.sign("ec", m.claims(), map[jose.HeaderKey]any{"x-thing": 1}),
		"no signature":                 parts[0] + "." + parts[1] + ".",
		"a signature of another token": parts[0] + "." + parts[1] + "." + strings.Split(m.sign("ec", with(m.claims(), "sub", "x"), nil), ".")[2],
		"alg none":                     "eyJhbGciOiJub25lIiwidHlwIjoiYXQrand0Iiwia2lkIjoiZWMifQ." + parts[1] + ".",
		"a JWT of nothing":             "..",
	} {
		if id, err := g.Check(t.Context(), middleware.Call{Credential: token}); !errors.Is(err, middleware.ErrUnauthenticated) || id != nil {
			t.Errorf("%s: %+v %v", name, id, err)
		}
	}
	if m.asked.Load() != 0 {
		t.Errorf("the server was asked %d times", m.asked.Load())
	}
}

func TestAJWTWithItsCredentialsOwnKeyIsForTheServerToVerify(t *testing.T) {
	m := newMint(t)
	maker, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: make([]byte, 32)}, (&jose.SignerOptions{}).WithType("at+jwt").WithHeader("kid", "x"))
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.Signed(maker).Claims(m.claims()).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.guard().Check(t.Context(), middleware.Call{Credential: token}); err != nil || m.asked.Load() != 1 {
		t.Errorf("%v, asked %d times", err, m.asked.Load())
	}
}

func TestKeysAreFetchedAgainForANewOneAndNotMoreOftenThanThat(t *testing.T) {
	m := newMint(t)
	g := m.guard()
	check := func(kid string) error {
		_, err := g.Check(t.Context(), middleware.Call{Credential: m.sign(kid, m.claims(), nil)})
		return err
	}
	if err := check("ec"); err != nil {
		t.Fatal(err)
	}
	m.set(func() { m.keys["new"] = m.keys["ed"] })
	for range 100 {
		if err := check("new"); !errors.Is(err, middleware.ErrUnauthenticated) {
			t.Fatalf("a moment after the last fetch: %v", err)
		}
	}
	if m.fetched.Load() != 1 {
		t.Fatalf("whoever makes up key ids causes %d fetches", m.fetched.Load())
	}
	m.advance(10 * time.Second)
	if err := check("new"); err != nil || m.fetched.Load() != 2 {
		t.Errorf("%v after %d fetches", err, m.fetched.Load())
	}
	m.set(func() { delete(m.keys, "rs"); m.keys["gone"] = m.keys["ec"] })
	m.advance(6 * time.Minute)
	if err := check("ec"); err != nil {
		t.Error(err)
	}
	if err := check("gone"); err != nil {
		t.Errorf("a key that came with the regular fetch: %v", err)
	}
}

func TestKeysGoOnServingForAnHourWhileTheServerIsDown(t *testing.T) {
	m := newMint(t)
	g := m.guard()
	check := func() error {
		_, err := g.Check(t.Context(), middleware.Call{Credential: m.sign("ec", m.claims(), nil)})
		return err
	}
	m.set(func() { m.down = true })
	if err := check(); !errors.Is(err, middleware.ErrUnavailable) {
		t.Fatalf("without keys: %v", err)
	}
	m.set(func() { m.down = false })
	m.advance(11 * time.Second)
	if err := check(); err != nil {
		t.Fatal(err)
	}
	m.set(func() { m.down = true })
	m.advance(59 * time.Minute)
	if err := check(); err != nil {
		t.Errorf("after 59 minutes: %v", err)
	}
	m.advance(2 * time.Minute)
	if err := check(); !errors.Is(err, middleware.ErrUnavailable) {
		t.Errorf("after more than an hour: %v", err)
	}
}

func TestAServerThatHangsHoldsUpNobodyWhoseKeyIsKnown(t *testing.T) {
	m := newMint(t)
	release, hanging := make(chan struct{}), make(chan struct{}, 1)
	client := *m.http.Client()
	transport := client.Transport
	var hang atomic.Bool
	client.Transport = roundTrip(func(r *http.Request) (*http.Response, error) {
		if hang.Load() {
			hanging <- struct{}{}
			<-release
		}
		return transport.RoundTrip(r)
	})
	g := m.guard(func(c *middleware.Config) { c.HTTPClient = &client })
	token := m.sign("ec", with(m.claims(), "exp", m.clock().Add(time.Hour).Unix()), nil)
	check := func() error {
		_, err := g.Check(context.Background(), middleware.Call{Credential: token})
		return err
	}
	if err := check(); err != nil {
		t.Fatal(err)
	}
	hang.Store(true)
	m.advance(6 * time.Minute)
	first := make(chan error, 1)
	go func() { first <- check() }()
	<-hanging
	others := make(chan error, 1)
	go func() { others <- check() }()
	select {
	case err := <-others:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(2 * time.Second):
		t.Error("everybody waits for the one who fetches the keys")
	}
	close(release)
	if err := <-first; err != nil {
		t.Error(err)
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestKeysAreAskedAboutAndTheAnswerIsUsedForSeconds(t *testing.T) {
	m := newMint(t)
	g := m.guard()
	call := middleware.Call{Credential: "sk_x", Permissions: []string{"orders:read"}, Method: "GET", Host: "h", Path: "/orders", ClientIP: netip.MustParseAddr("192.0.2.1")}
	for range 5 {
		if id, err := g.Check(t.Context(), call); err != nil || id.UID != "u1" {
			t.Fatalf("%+v %v", id, err)
		}
	}
	if m.asked.Load() != 1 {
		t.Errorf("the server was asked %d times, want once", m.asked.Load())
	}
	if m.lastAuth != "Bearer sk_x" || m.lastBody["token"] != nil || m.lastBody["request"].(map[string]any)["clientIP"] != nil {
		t.Errorf("it was asked %v with %q", m.lastBody, m.lastAuth)
	}
	for name, other := range map[string]func(*middleware.Call){
		"another credential": func(c *middleware.Call) { c.Credential = "sk_y" }, "another permission": func(c *middleware.Call) { c.Permissions = []string{"orders:write"} },
		"another path": func(c *middleware.Call) { c.Path = "/admin" }, "another method": func(c *middleware.Call) { c.Method = "DELETE" },
		"another host": func(c *middleware.Call) { c.Host = "x" },
	} {
		before, changed := m.asked.Load(), call
		other(&changed)
		if _, err := g.Check(t.Context(), changed); err != nil || m.asked.Load() != before+1 {
			t.Errorf("%s: %v, and the answer was another question's", name, err)
		}
	}
	m.set(func() {
		m.answer = func(w http.ResponseWriter, _ *http.Request, _ map[string]any) { w.WriteHeader(http.StatusUnauthorized) }
	})
	m.advance(4 * time.Second)
	if _, err := g.Check(t.Context(), call); err != nil {
		t.Errorf("within the time: %v", err)
	}
	m.advance(time.Second)
	if _, err := g.Check(t.Context(), call); !errors.Is(err, middleware.ErrUnauthenticated) {
		t.Errorf("a revoked key after the time: %v", err)
	}
}

func TestNothingIsKeptWhereThatIsAskedFor(t *testing.T) {
	m := newMint(t)
	g := m.guard(func(c *middleware.Config) { c.CacheTTL = -1 })
	for range 3 {
		if _, err := g.Check(t.Context(), middleware.Call{Credential: "sk_x"}); err != nil {
			t.Fatal(err)
		}
	}
	if m.asked.Load() != 3 {
		t.Errorf("asked %d times, want 3", m.asked.Load())
	}
}

func TestManyBadCredentialsDriveOutNoGoodOne(t *testing.T) {
	m := newMint(t)
	g := m.guard(func(c *middleware.Config) { c.CacheSize = 4; c.CacheTTL = time.Hour })
	if _, err := g.Check(t.Context(), middleware.Call{Credential: "sk_good"}); err != nil {
		t.Fatal(err)
	}
	ok := m.answer
	m.set(func() {
		m.answer = func(w http.ResponseWriter, _ *http.Request, _ map[string]any) { w.WriteHeader(http.StatusUnauthorized) }
	})
	for i := range 100 {
		if _, err := g.Check(t.Context(), middleware.Call{Credential: "sk_" + strings.Repeat("x", i+1)}); !errors.Is(err, middleware.ErrUnauthenticated) {
			t.Fatal(err)
		}
	}
	if _, err := g.Check(t.Context(), middleware.Call{Credential: "sk_good"}); err != nil {
		t.Error(err)
	}
	m.set(func() { m.answer = ok })
}

func TestWithoutAnAnswerNobodyIsLetIn(t *testing.T) {
	m := newMint(t)
	for name, answer := range map[string]func(http.ResponseWriter){
		"an error":                func(w http.ResponseWriter) { w.WriteHeader(http.StatusInternalServerError) },
		"a redirect":              func(w http.ResponseWriter) { w.Header().Set("Location", "/"); w.WriteHeader(http.StatusFound) },
		"limited":                 func(w http.ResponseWriter) { w.WriteHeader(http.StatusTooManyRequests) },
		"nothing":                 func(http.ResponseWriter) {},
		"no JSON":                 func(w http.ResponseWriter) { _, _ = w.Write([]byte("ok")) },
		"JSON of another type":    func(w http.ResponseWriter) { _, _ = w.Write([]byte(`{"allowed":"true","authenticated":"true"}`)) },
		"allowed and nobody":      func(w http.ResponseWriter) { _, _ = w.Write([]byte(`{"allowed":true,"authenticated":true}`)) },
		"allowed and no good one": func(w http.ResponseWriter) { _, _ = w.Write([]byte(`{"allowed":true,"subject":"a","key_id":"b"}`)) },
		"a good one, not allowed": func(w http.ResponseWriter) {
			_, _ = w.Write([]byte(`{"authenticated":true,"subject":"a","key_id":"b"}`))
		},
		"an answer that is broken": func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", "100")
			_, _ = w.Write([]byte(`{"allowed":true`))
		},
	} {
		m.set(func() { m.answer = func(w http.ResponseWriter, _ *http.Request, _ map[string]any) { answer(w) } })
		if id, err := m.guard().Check(t.Context(), middleware.Call{Credential: "sk_" + name}); err == nil || id != nil {
			t.Errorf("%s: %+v %v", name, id, err)
		}
	}
	gone := m.guard()
	m.http.Close()
	if _, err := gone.Check(t.Context(), middleware.Call{Credential: "sk_x"}); !errors.Is(err, middleware.ErrUnavailable) {
		t.Errorf("a server that is gone: %v", err)
	}
}

func TestTheServicesOwnCredentialIsWhatItAsksWith(t *testing.T) {
	m := newMint(t)
	g := m.guard(func(c *middleware.Config) {
		c.Token = func(context.Context) (string, error) { return "sk_own", nil }
	})
	if _, err := g.Check(t.Context(), middleware.Call{Credential: "sk_x", ClientIP: netip.MustParseAddr("192.0.2.1")}); err != nil {
		t.Fatal(err)
	}
	if m.lastAuth != "Bearer sk_own" || m.lastBody["token"] != "sk_x" || m.lastBody["request"].(map[string]any)["clientIP"] != "192.0.2.1" {
		t.Errorf("it asked %v with %q", m.lastBody, m.lastAuth)
	}
	// The service's own fault is not the caller's.
	for _, status := range []int{401, 403} {
		m.set(func() {
			m.answer = func(w http.ResponseWriter, _ *http.Request, _ map[string]any) { w.WriteHeader(status) }
		})
		if _, err := g.Check(t.Context(), middleware.Call{Credential: "sk_y"}); !errors.Is(err, middleware.ErrUnavailable) {
			t.Errorf("%d: %v", status, err)
		}
	}
	failing := m.guard(func(c *middleware.Config) {
		c.Token = func(context.Context) (string, error) { return "", errors.New("no file") }
	})
	if _, err := failing.Check(t.Context(), middleware.Call{Credential: "sk_x"}); !errors.Is(err, middleware.ErrUnavailable) {
		t.Errorf("without a credential of its own: %v", err)
	}
}

func TestRequireAnswersAsTheServerDoes(t *testing.T) {
	m := newMint(t)
	g := m.guard()
	var seen *middleware.Identity
	handler := g.Require("orders:read")(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen, _ = middleware.FromContext(r.Context())
		w.WriteHeader(http.StatusNoContent)
	}))
	good := m.sign("ec", m.claims(), nil)
	poor := m.sign("ec", with(m.claims(), "scope", "other"), nil)
	for name, c := range map[string]struct {
		header    http.Header
		status    int
		challenge string
	}{
		"nothing":                 {http.Header{}, 401, `Bearer realm="mintmark"`},
		"a JWT":                   {http.Header{"Authorization": {"bearer " + good}}, 204, ""},
		"a JWT as an API key":     {http.Header{"X-Api-Key": {good}}, 401, `Bearer realm="mintmark", error="invalid_token"`},
		"two lines":               {http.Header{"Authorization": {"Bearer " + good, "Bearer " + good}}, 401, `Bearer realm="mintmark", error="invalid_token"`},
		"joined":                  {http.Header{"Authorization": {"Bearer " + good + "," + good}}, 401, `Bearer realm="mintmark", error="invalid_token"`},
		"two that differ":         {http.Header{"Authorization": {"Bearer " + good}, "X-Api-Key": {"sk_x"}}, 401, `Bearer realm="mintmark", error="invalid_token"`},
		"basic authentication":    {http.Header{"Authorization": {"Basic eA=="}}, 401, `Bearer realm="mintmark", error="invalid_token"`},
		"too long":                {http.Header{"X-Api-Key": {strings.Repeat("x", 9000)}}, 401, `Bearer realm="mintmark", error="invalid_token"`},
		"without the permission":  {http.Header{"Authorization": {"Bearer " + poor}}, 403, `Bearer realm="mintmark", error="insufficient_scope", scope="orders:read"`},
		"an identity made up":     {http.Header{"X-User-Id": {"root"}}, 401, `Bearer realm="mintmark"`},
		"a key":                   {http.Header{"X-Api-Key": {"sk_x"}}, 204, ""},
		"the same key, two times": {http.Header{"X-Api-Key": {"sk_x"}, "Authorization": {"Bearer sk_x"}}, 204, ""},
	} {
		seen = nil
		w, r := httptest.NewRecorder(), httptest.NewRequest("GET", "/orders", nil)
		r.Header = c.header
		handler.ServeHTTP(w, r)
		if w.Code != c.status || w.Header().Get("WWW-Authenticate") != c.challenge || (seen != nil) != (c.status == 204) {
			t.Errorf("%s: %d %q, handler reached: %v", name, w.Code, w.Header().Get("WWW-Authenticate"), seen != nil)
		}
		if c.status != 204 && (!json.Valid(w.Body.Bytes()) || w.Header().Get("Content-Type") != "application/problem+json") {
			t.Errorf("%s: %s", name, w.Body)
		}
	}
}

func TestConfigurationsThatCannotWorkAreRefused(t *testing.T) {
	for _, url := range []string{"", "http://mintmark", "https://", "https://u:p@mintmark", "https://mintmark?x", "::"} {
		if _, err := middleware.New(middleware.Config{ServerURL: url}); err == nil || !strings.Contains(err.Error(), "ServerURL") {
			t.Errorf("%q: %v", url, err)
		}
	}
	if _, err := middleware.New(middleware.Config{ServerURL: "https://x", Audiences: []string{""}}); err == nil {
		t.Error("an empty audience is taken")
	}
}

func TestAContextOfNobodyAllowsNothing(t *testing.T) {
	m := newMint(t)
	if id, ok := middleware.FromContext(t.Context()); ok || id != nil {
		t.Error("somebody is there")
	}
	if err := m.guard().Allowed(t.Context(), "orders:read", middleware.Resource{}); !errors.Is(err, middleware.ErrUnauthenticated) {
		t.Errorf("%v", err)
	}
	var nobody *middleware.Identity
	if nobody.Allows("x") || (&middleware.Identity{Admin: true}).Allows("") {
		t.Error("nobody may something")
	}
}
