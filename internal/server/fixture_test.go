package server

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/credential"
	"github.com/mintmark-dev/mintmark/internal/federation"
	"github.com/mintmark-dev/mintmark/internal/keyring"
	"github.com/mintmark-dev/mintmark/internal/management"
	"github.com/mintmark-dev/mintmark/internal/oauth"
)

const testIssuer = "https://mintmark.example.com"

// journal is a log that tests can read while it is written.
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

func (j *journal) logger() *slog.Logger {
	return slog.New(slog.NewJSONHandler(j, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// openGate is a gate that tests close.
type openGate struct {
	mu       sync.Mutex
	closed   error
	stopping bool
}

func (g *openGate) open(time.Time) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.closed
}

func (g *openGate) ready(now time.Time) error {
	if g.draining() {
		return errors.New("stopping")
	}
	return g.open(now)
}

func (g *openGate) draining() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.stopping
}

func (g *openGate) set(closed error, stopping bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed, g.stopping = closed, stopping
}

// edge is the public interface over real TLS, with a real index and real records.
type edge struct {
	t        testing.TB
	index    *authn.Index
	issuer   *oauth.Issuer
	peppers  credential.Peppers
	signing  *keyring.SigningKeys
	others   []*keyring.SigningKeys // of further algorithms
	revoker  *localRevoker
	gate     *openGate
	log      *journal
	registry *prometheus.Registry
	policies *policies
	foreign  *foreign
	public   *public
	http     *httptest.Server
	client   *http.Client

	mu    sync.Mutex
	clock time.Time // zero: the real one
}

// setup of an edge.
type setup struct {
	proxies  []netip.Prefix
	identity IdentityHeaders
	issuers  *federation.Config // trusted issuers; nil: there are none
	discard  bool               // no log
	audit    *auditor           // nil: nothing is recorded
	// management is the management API's; nil: there is none.
	management *management.Config
}

func newEdge(t testing.TB, s setup) *edge {
	t.Helper()
	e := &edge{t: t, gate: new(openGate), log: new(journal), registry: prometheus.NewRegistry()}
	key := sha256.Sum256([]byte("a pepper for tests"))
	pepper, err := credential.NewPepper("p1", key[:])
	if err != nil {
		t.Fatal(err)
	}
	e.peppers = credential.Peppers{pepper}
	e.signing = newSigningKeys(t)
	e.index = authn.New(authn.Config{Peppers: e.peppers})
	if err := e.index.SetClass("default", &v1alpha1.CredentialClassSpec{Rules: []v1alpha1.ClassRule{{
		Permissions: []v1alpha1.Permission{"*"}, Except: []v1alpha1.Permission{"mintmark:*"}, Admin: true,
	}}}); err != nil {
		t.Fatal(err)
	}
	e.index.SetNamespace("payments", nil)
	e.revoker = &localRevoker{denyList: denyList{now: e.now}}
	if e.issuer, err = oauth.NewIssuer(oauth.Config{
		Issuer: testIssuer, Keys: func() keyring.Ring { return keyring.RingOf(append(e.others, e.signing)...) },
		Secrets: &isolated{peppers: func() credential.Peppers { return e.peppers }, index: e.index}, Denied: e.revoker.has,
	}); err != nil {
		t.Fatal(err)
	}
	log := e.log.logger()
	if s.discard {
		log = slog.New(slog.DiscardHandler)
	}
	e.policies = newPolicies(e.registry, log)
	e.policies.audit = s.audit
	if s.issuers != nil {
		e.foreign = newForeign(foreignConfig{federation: *s.issuers, index: e.index, registry: e.registry, log: log})
	}
	var manager *management.API
	if s.management != nil {
		c := *s.management
		c.Index, c.Log = e.index, log
		if c.Now == nil {
			c.Now = e.now
		}
		if manager, err = management.New(c); err != nil {
			t.Fatal(err)
		}
	}
	e.public = newPublic(publicConfig{
		manager: manager,
		index:   e.index, issuer: e.issuer, gate: e.gate, proxies: s.proxies, metrics: newMetrics(e.registry), log: log, now: e.now,
		identity: s.identity, policies: e.policies, foreign: e.foreign, revoker: e.revoker, audit: s.audit,
	})
	e.http = httptest.NewUnstartedServer(e.public)
	e.http.EnableHTTP2 = true
	e.http.Config.MaxHeaderBytes = maxHeaderBytes
	e.http.Config.DisableGeneralOptionsHandler = true
	e.http.Config.ErrorLog = slog.NewLogLogger(log.Handler(), slog.LevelDebug)
	e.http.StartTLS()
	t.Cleanup(e.http.Close)
	e.client = e.http.Client()
	e.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return e
}

func newSigningKeys(t testing.TB) *keyring.SigningKeys {
	t.Helper()
	key, err := keyring.NewSigningKey(rand.Reader, keyring.ES256, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return &keyring.SigningKeys{Current: key}
}

func (e *edge) now() time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.clock.IsZero() {
		return time.Now()
	}
	return e.clock
}

func (e *edge) setClock(at time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.clock = at
}

// minted is a credential as the controller would have it after minting.
type minted struct {
	token  credential.Token
	object *v1alpha1.ServiceToken
	record *credential.Record
}

func (m *minted) value() string { return m.token.Reveal() }

// mint makes a service token that is good, with changes to its record, which the live
// object follows.
func (e *edge) mint(name string, change ...func(*credential.Record)) *minted {
	e.t.Helper()
	token, err := credential.Format{Kind: v1alpha1.KindServiceToken}.Mint(rand.Reader)
	if err != nil {
		e.t.Fatal(err)
	}
	digest := e.peppers.Current().Digest(token.Inner())
	m := &minted{token: token, record: &credential.Record{
		UID: "uid-" + name, Kind: v1alpha1.KindServiceToken, Namespace: "payments", Name: name, Epoch: 1, Class: "default",
		Permissions: []string{"api:read", "deploy:*"}, Roles: []string{"deployer"},
		Versions: []credential.SealedVersion{{Number: 1, Digest: digest[:], Pepper: "p1", Prefix: token.Prefix(), State: v1alpha1.VersionActive}},
	}}
	for _, c := range change {
		c(m.record)
	}
	m.object = &v1alpha1.ServiceToken{ObjectMeta: metav1.ObjectMeta{
		Name: name, Namespace: m.record.Namespace, UID: types.UID(m.record.UID), CreationTimestamp: metav1.Now(), Labels: m.record.Labels,
	}}
	spec := &m.object.Spec
	spec.CredentialClassName, spec.Roles, spec.Admin = m.record.Class, m.record.Roles, m.record.Admin
	for _, p := range m.record.Permissions {
		spec.Permissions = append(spec.Permissions, v1alpha1.Permission(p))
	}
	for _, c := range m.record.CIDRs {
		spec.AllowedCIDRs = append(spec.AllowedCIDRs, v1alpha1.CIDR(c))
	}
	e.apply(m)
	return m
}

// apply hands the credential to the index as the feed does.
func (e *edge) apply(m *minted) {
	e.t.Helper()
	record, seal, err := m.record.Seal(e.peppers.Current())
	if err != nil {
		e.t.Fatal(err)
	}
	opened, err := credential.OpenRecord(e.peppers, record, seal)
	if err != nil {
		e.t.Fatal(err)
	}
	if out := e.index.Apply(authn.LiveOf(m.object), opened); out.Record.Refused() {
		e.t.Fatalf("the record was refused: %s", out.Record)
	}
}

// answer is a response, read.
type answer struct {
	status int
	header http.Header
	body   string
}

// ask sends a request. Headers come in pairs; one that is given twice is sent twice.
func (e *edge) ask(method, path, body string, headers ...string) answer {
	e.t.Helper()
	req, err := http.NewRequest(method, e.http.URL+path, strings.NewReader(body))
	if err != nil {
		e.t.Fatal(err)
	}
	if body == "" {
		req.Body = http.NoBody
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header[http.CanonicalHeaderKey(headers[i])] = append(req.Header[http.CanonicalHeaderKey(headers[i])], headers[i+1])
	}
	return send(e.t, e.client, req)
}

func send(t testing.TB, client *http.Client, req *http.Request) answer {
	t.Helper()
	got, err := try(client, req)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func try(client *http.Client, req *http.Request) (answer, error) {
	resp, err := client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	read, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(read)}, err
}

// scrape gives the metrics as Prometheus sees them.
func scrape(t testing.TB, registry *prometheus.Registry) string {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&text, f); err != nil {
			t.Fatal(err)
		}
	}
	return text.String()
}

// eventually polls until the check holds.
func eventually(t testing.TB, within time.Duration, what string, check func() bool) {
	t.Helper()
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !check() {
		select {
		case <-deadline.C:
			t.Fatalf("not within %s: %s", within, what)
		case <-tick.C:
		}
	}
}

// certificate makes a self-signed serving certificate for these names.
func certificate(t testing.TB, names ...string) (cert, key []byte, pool *x509.CertPool) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	key = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
	pool = x509.NewCertPool()
	pool.AppendCertsFromPEM(cert)
	return cert, key, pool
}

// tlsClient trusts the pool and, where an address is given, dials it for every host.
func tlsClient(pool *x509.CertPool, serverName, address string) *http.Client {
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: serverName}, ForceAttemptHTTP2: true}
	if address != "" {
		transport.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, address)
		}
	}
	return &http.Client{Transport: transport, Timeout: 10 * time.Second}
}

func newMetricsOfItsOwn() *metrics { return newMetrics(prometheus.NewRegistry()) }

// recorder is a response in memory.
type recorder struct {
	header http.Header
	status int
	body   string
}

func (r *recorder) Header() http.Header { return r.header }

func (r *recorder) WriteHeader(status int) { r.status = status }

func (r *recorder) Write(p []byte) (int, error) {
	r.body += string(p)
	return len(p), nil
}
