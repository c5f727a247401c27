//go:build e2e

package gateways

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/test/authority"
	"github.com/mintmark-dev/mintmark/test/controlplane"
	"github.com/mintmark-dev/mintmark/test/controlplane/process"
)

// mintmark is a server, and the credentials the tests present.
type mintmark struct {
	*authority.Authority

	serviceToken, apiKey, jwt, reader string
}

func startMintmark(t *testing.T) *mintmark {
	t.Helper()
	m := &mintmark{Authority: authority.Start(t)}
	m.serviceToken = m.Mint(t, &v1alpha1.ServiceToken{ObjectMeta: metav1.ObjectMeta{Name: "publisher"}}, "reports:read", "reports:write")
	m.apiKey = m.Mint(t, &v1alpha1.APIKey{ObjectMeta: metav1.ObjectMeta{Name: "partner"}}, "reports:*")
	m.reader = m.Mint(t, &v1alpha1.ServiceToken{ObjectMeta: metav1.ObjectMeta{Name: "reader"}}, "reports:read")
	m.jwt = m.Exchange(t, m.serviceToken)
	return m
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
	ports, err := process.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	return strconv.Itoa(ports[0])
}
