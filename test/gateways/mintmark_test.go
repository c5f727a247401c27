//go:build e2e

package gateways

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
	"github.com/mintmark-dev/mintmark/internal/keyring"
	"github.com/mintmark-dev/mintmark/internal/server"
	"github.com/mintmark-dev/mintmark/test/controlplane"
)

const (
	installation = "mintmark-system"
	namespace    = "payments"
	serverName   = "mintmark-server.mintmark-system.svc"
)

// mintmark is a server, and the credentials it knows.
type mintmark struct {
	address string // of the public listener
	caFile  string
	client  *http.Client
	kube    client.Client

	serviceToken, apiKey, jwt, reader string
}

// startMintmark runs a server on the keys and the sealed records that a controller
// would have written.
func startMintmark(t *testing.T) *mintmark {
	t.Helper()
	plane, err := controlplane.Start(t.Context(), controlplane.Options{Out: os.Stderr, CRDs: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(plane.Stop)
	m := &mintmark{kube: kubernetes(t, plane)}
	for _, name := range []string{installation, namespace} {
		m.create(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
	}
	pepper := m.writeKeys(t)
	m.create(t, &v1alpha1.CredentialClass{ObjectMeta: metav1.ObjectMeta{Name: "default"}})
	m.serviceToken = m.mint(t, pepper, &v1alpha1.ServiceToken{ObjectMeta: metav1.ObjectMeta{Name: "publisher"}}, "reports:read", "reports:write")
	m.apiKey = m.mint(t, pepper, &v1alpha1.APIKey{ObjectMeta: metav1.ObjectMeta{Name: "partner"}}, "reports:*")
	m.reader = m.mint(t, pepper, &v1alpha1.ServiceToken{ObjectMeta: metav1.ObjectMeta{Name: "reader"}}, "reports:read")

	s, err := server.New(server.Config{
		ID: "gateways", Namespace: installation, Kubernetes: plane.Config, Issuer: "https://" + serverName,
		BindAddress: "127.0.0.1:0", InternalBindAddress: "127.0.0.1:0", MetricsBindAddress: "127.0.0.1:0",
		TrustedProxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	eventually(t, time.Minute, "the server is ready", s.Ready)
	m.address = s.Addresses().Public.String()
	m.jwt = m.exchange(t, m.serviceToken)
	return m
}

func kubernetes(t *testing.T, plane *controlplane.ControlPlane) client.Client {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	c, err := client.New(plane.Config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (m *mintmark) create(t *testing.T, o client.Object) {
	t.Helper()
	if err := m.kube.Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
}

// writeKeys makes the installation's Secrets, and gives the pepper.
func (m *mintmark) writeKeys(t *testing.T) *credential.Pepper {
	t.Helper()
	id, key, err := keyring.NewPepper(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pepper, err := credential.NewPepper(id, key)
	if err != nil {
		t.Fatal(err)
	}
	signing, err := keyring.NewSigningKey(rand.Reader, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	signingData, err := (&keyring.SigningKeys{Current: signing}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	serving, err := keyring.NewServing(rand.Reader, []string{serverName, "127.0.0.1"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	servingData, err := serving.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]map[string][]byte{
		keyring.PepperSecret: keyring.EncodePeppers(id, map[string][]byte{id: key}), keyring.SigningKeysSecret: signingData, keyring.ServerTLSSecret: servingData,
	} {
		m.create(t, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: installation, Name: name}, Data: data})
	}
	m.caFile = filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(m.caFile, serving.Authorities, 0o600); err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(serving.Authorities)
	m.client = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
	}}
	return pepper
}

// mint makes a credential as the controller does, and gives its value.
func (m *mintmark) mint(t *testing.T, pepper *credential.Pepper, o v1alpha1.Credential, permissions ...string) string {
	t.Helper()
	token, err := credential.Format{Kind: o.CredentialKind()}.Mint(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	o.SetNamespace(namespace)
	o.CredentialSpec().CredentialClassName = "default"
	for _, p := range permissions {
		o.CredentialSpec().Permissions = append(o.CredentialSpec().Permissions, v1alpha1.Permission(p))
	}
	m.create(t, o.(client.Object))
	digest := pepper.Digest(token.Inner())
	record := &credential.Record{
		UID: string(o.GetUID()), Kind: o.CredentialKind(), Namespace: namespace, Name: o.GetName(), Epoch: 1, Class: "default", Permissions: permissions,
		Versions: []credential.SealedVersion{{Number: 1, Digest: digest[:], Pepper: pepper.ID(), Prefix: token.Prefix(), State: v1alpha1.VersionActive}},
	}
	status := o.CredentialStatus()
	if status.Record, status.Seal, err = record.Seal(pepper); err != nil {
		t.Fatal(err)
	}
	if err := m.kube.Status().Update(t.Context(), o.(client.Object)); err != nil {
		t.Fatal(err)
	}
	return token.Reveal()
}

func (m *mintmark) exchange(t *testing.T, key string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+m.address+"/api/auth/token", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-API-Key", key)
	resp, err := m.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var issued struct {
		Token string `json:"token"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&issued); err != nil || issued.Token == "" {
		t.Fatalf("exchanging a key: %s (%v)", resp.Status, err)
	}
	return issued.Token
}

// backend answers 200 and keeps what it was sent.
type backend struct {
	address string

	mu     sync.Mutex
	header http.Header
	uri    string
}

func startBackend(t *testing.T) *backend {
	t.Helper()
	b := new(backend)
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.header, b.uri = r.Header.Clone(), r.RequestURI
	}))
	t.Cleanup(s.Close)
	b.address = s.Listener.Addr().String()
	return b
}

// take gives the headers of the one request there was since the last call; nil where
// there was none.
func (b *backend) take() http.Header {
	b.mu.Lock()
	defer b.mu.Unlock()
	seen := b.header
	b.header = nil
	return seen
}

// path is the target of the last request.
func (b *backend) path() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.uri
}

// exchangeRaw sends a request of exactly these lines, for no client library lets
// through what an attacker sends.
func exchangeRaw(t *testing.T, address, method, path string, headers ...string) *http.Response {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(15 * time.Second)); err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	fmt.Fprintf(&text, "%s %s HTTP/1.1\r\nHost: reports.example.com\r\n", method, path)
	for _, h := range headers {
		text.WriteString(h + "\r\n")
	}
	text.WriteString("\r\n")
	if _, err := io.WriteString(conn, text.String()); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	return resp
}

// fill copies the files of a folder of docs/gateways into dir, with what is replaced
// in all of them together. Each replacement must be found, so that the test notices
// when the documentation says something else.
func fill(t *testing.T, folder, dir string, replace map[string]string) {
	t.Helper()
	root, err := controlplane.Root()
	if err != nil {
		t.Fatal(err)
	}
	source := filepath.Join(root, "docs", "gateways", folder)
	files, err := os.ReadDir(source)
	if err != nil {
		t.Fatal(err)
	}
	missing := maps.Clone(replace)
	for _, f := range files {
		text, err := os.ReadFile(filepath.Join(source, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		filled := string(text)
		for from, to := range replace {
			if strings.Contains(filled, from) {
				delete(missing, from)
			}
			filled = strings.ReplaceAll(filled, from, to)
		}
		if err := os.WriteFile(filepath.Join(dir, f.Name()), []byte(filled), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for from := range missing {
		t.Fatalf("docs/gateways/%s no longer holds %q: change the test with it", folder, from)
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// eventually polls until check is nil.
func eventually(t *testing.T, within time.Duration, what string, check func() error) {
	t.Helper()
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-deadline.C:
			t.Fatalf("not within %s: %s: %v", within, what, err)
		case <-tick.C:
		}
	}
}
