package federation

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// signer is a key of an issuer.
type signer struct {
	id, alg string
	private crypto.Signer
}

var keysOnce = sync.OnceValue(func() map[string]crypto.Signer {
	made := map[string]crypto.Signer{}
	must := func(name string, key crypto.Signer, err error) {
		if err != nil {
			panic(err)
		}
		made[name] = key
	}
	for _, name := range []string{"rsa-1", "rsa-2"} {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		must(name, key, err)
	}
	for name, curve := range map[string]elliptic.Curve{"ec-1": elliptic.P256(), "ec-2": elliptic.P256(), "p384": elliptic.P384(), "p521": elliptic.P521()} {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		must(name, key, err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	must("ed", ed, err)
	return made
})

// newSigner is a key by the name of its kind.
func newSigner(name, alg string) signer { return signer{id: name, alg: alg, private: keysOnce()[name]} }

// sign makes a token, with changes to its header.
func (s signer) sign(t testing.TB, claims map[string]any, change ...func(map[string]any)) string {
	t.Helper()
	unsigned := jwt.NewWithClaims(methods[s.alg].signing, jwt.MapClaims(claims))
	unsigned.Header["kid"] = s.id
	for _, c := range change {
		c(unsigned.Header)
	}
	token, err := unsigned.SignedString(s.private)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// keySetOf is the JWK Set of these keys.
func keySetOf(t testing.TB, signers ...signer) string {
	t.Helper()
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{}}
	for _, s := range signers {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: s.private.Public(), KeyID: s.id, Algorithm: s.alg, Use: "sig"})
	}
	text, err := json.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// issuer is one over real HTTPS. It is reached as https://example.com, which the tests'
// resolver knows.
type issuer struct {
	t      testing.TB
	server *httptest.Server
	url    string

	mu      sync.Mutex
	keys    []signer
	header  http.Header
	answer  http.HandlerFunc // instead of the usual ones
	fetches []string         // paths
}

func newIssuer(t testing.TB, keys ...signer) *issuer {
	t.Helper()
	i := &issuer{t: t, keys: keys, header: http.Header{}}
	i.server = httptest.NewUnstartedServer(http.HandlerFunc(i.serve))
	i.server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	i.server.StartTLS()
	t.Cleanup(func() {
		i.server.CloseClientConnections()
		i.server.Close()
	})
	at, err := url.Parse(i.server.URL)
	if err != nil {
		t.Fatal(err)
	}
	i.url = "https://example.com:" + at.Port()
	return i
}

func (i *issuer) serve(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	i.fetches = append(i.fetches, r.URL.Path)
	answer, keys := i.answer, slices.Clone(i.keys)
	for name, values := range i.header {
		w.Header()[name] = values
	}
	i.mu.Unlock()
	switch {
	case answer != nil:
		answer(w, r)
	case r.URL.Path == DiscoveryPath:
		_ = json.NewEncoder(w).Encode(map[string]any{"issuer": i.url, "jwks_uri": i.url + "/keys"})
	case r.URL.Path == "/keys":
		_, _ = io.WriteString(w, keySetOf(i.t, keys...))
	default:
		http.NotFound(w, r)
	}
}

func (i *issuer) set(change func(*issuer)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	change(i)
}

// count is how often a path was asked for.
func (i *issuer) count(path string) (n int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, p := range i.fetches {
		if p == path {
			n++
		}
	}
	return n
}

func (i *issuer) bundle() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.server.Certificate().Raw})
}

// spec of a TrustedIssuer for it.
func (i *issuer) spec(change ...func(*v1alpha1.TrustedIssuerSpec)) *v1alpha1.TrustedIssuerSpec {
	s := &v1alpha1.TrustedIssuerSpec{
		Issuer: i.url, CABundle: i.bundle(), Audiences: []string{"mintmark"}, Algorithms: []string{"RS256", "ES256"},
		Ceiling: v1alpha1.IssuerCeiling{Permissions: []v1alpha1.Permission{"deploy:*"}},
	}
	for _, c := range change {
		c(s)
	}
	return s
}

// claims of a good token.
func (i *issuer) claims(change ...func(map[string]any)) map[string]any {
	now := time.Now().Unix()
	c := map[string]any{"iss": i.url, "sub": "somebody", "aud": "mintmark", "exp": now + 300, "iat": now, "nbf": now}
	for _, f := range change {
		f(c)
	}
	return c
}

// journal is a log that tests can read.
type journal struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.String()
}

// quick is a pace for tests.
var quick = pace{
	least: 50 * time.Millisecond, usual: 50 * time.Millisecond, most: 200 * time.Millisecond, retry: 10 * time.Millisecond, retryMost: 50 * time.Millisecond,
	extra: time.Hour, extraBurst: 3, wait: 5 * time.Second, waiters: 64, stale: time.Hour, timeout: 5 * time.Second,
}

// seldom fetches only when it is asked to.
var seldom = func() pace {
	p := quick
	p.least, p.usual, p.most = time.Hour, time.Hour, time.Hour
	return p
}()

// running is a Federation that runs, whose issuers may be on this host.
type running struct {
	*Federation
	log *journal
}

func run(t testing.TB, p pace, change ...func(*Config)) *running {
	t.Helper()
	r := &running{log: new(journal)}
	c := Config{
		OwnIssuer: "https://mintmark.example.com", Networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Log: slog.New(slog.NewJSONHandler(r.log, nil)),
		Resolve: func(context.Context, string) ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
		},
	}
	for _, f := range change {
		f(&c)
	}
	r.Federation = New(c)
	r.pace = p
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.Run(ctx)
	}()
	t.Cleanup(func() {
		stop()
		<-ended
	})
	return r
}

func (r *running) trust(t testing.TB, name string, spec *v1alpha1.TrustedIssuerSpec) {
	t.Helper()
	if err := r.Set(name, "uid-"+name, spec); err != nil {
		t.Fatal(err)
	}
}

// verify for an exchange, now.
func (r *running) verify(token string) (*Holder, error) {
	return r.Verify(context.Background(), token, ForExchange, time.Now())
}

// eventually polls until the check holds.
func eventually(t testing.TB, what string, check func() bool) {
	t.Helper()
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !check() {
		select {
		case <-deadline.C:
			t.Fatalf("not within 10s: %s", what)
		case <-tick.C:
		}
	}
}

// How holders are compared.
var (
	equateEmpty = cmpopts.EquateEmpty()
	ignoreTrust = cmpopts.IgnoreUnexported(Trust{})
)
