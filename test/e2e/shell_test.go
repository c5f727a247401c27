//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// shell runs a command as a person would who has sourced .dev/env, and returns
// what it wrote, and whether it succeeded.
func shell(t testing.TB, command string) (output string, ok bool) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", `. "$0"; `+command, filepath.Join(running.dev(), "env"))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return strings.TrimSpace(out.String()), err == nil
}

// must runs a command that has to succeed.
func must(t testing.TB, command string) string {
	t.Helper()
	out, ok := shell(t, command)
	if !ok {
		t.Fatalf("%s\n%s", command, out)
	}
	return out
}

// refused runs a command that has to fail, saying each of these.
func refused(t testing.TB, command string, because ...string) {
	t.Helper()
	out, ok := shell(t, command)
	if ok {
		t.Errorf("accepted: %s\n%s", command, out)
		return
	}
	for _, text := range because {
		if !strings.Contains(out, text) {
			t.Errorf("%s\nis refused without saying %q:\n%s", command, text, out)
		}
	}
}

// apply applies a manifest.
func apply(t testing.TB, manifest string) {
	t.Helper()
	must(t, "kubectl apply -f - <<'MANIFEST'\n"+manifest+"\nMANIFEST")
}

// namespace makes one for this test, allowed by the class production.
func namespace(t testing.TB, name string) string {
	t.Helper()
	must(t, "kubectl create namespace "+name+" && kubectl label namespace "+name+" environment=production")
	return name
}

// serviceToken is the manifest of one.
func serviceToken(namespace, name string, permissions ...string) string {
	return `apiVersion: mintmark.dev/v1alpha1
kind: ServiceToken
metadata: {name: ` + name + `, namespace: ` + namespace + `}
spec:
  credentialClassName: production
  permissions: ["` + strings.Join(permissions, `", "`) + `"]`
}

// ready waits for a credential.
func ready(t testing.TB, namespace, object string) {
	t.Helper()
	must(t, "kubectl -n "+namespace+" wait --for=condition=Ready --timeout=150s "+object)
}

// value reads a value from a Secret.
func value(t testing.TB, namespace, secret, key string) string {
	t.Helper()
	return must(t, "kubectl -n "+namespace+" get secret "+secret+
		` -o go-template='{{with index .data "`+key+`"}}{{base64decode .}}{{end}}'`)
}

// env is one variable of .dev/env.
func env(t testing.TB, name string) string {
	t.Helper()
	return must(t, `printf %s "$`+name+`"`)
}

// curl runs curl; the headers go in through stdin, so that no credential shows in
// the list of processes.
func curl(t testing.TB, headers string, args string) (status, body string) {
	t.Helper()
	out := must(t, `curl -sS --cacert "$MINTMARK_CACERT" -w '\n%{http_code}' -H @- `+args+" <<'HEADERS'\n"+headers+"\nHEADERS")
	at := strings.LastIndex(out, "\n")
	return out[at+1:], strings.TrimSpace(out[:max(0, at)])
}

func bearer(value string) string { return "Authorization: Bearer " + value }

// eventually polls until check says yes.
func eventually(t testing.TB, within time.Duration, what string, check func() bool) {
	t.Helper()
	for deadline := time.Now().Add(within); !check(); {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s", what, within)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// edge is a client that trusts the servers and is fast enough to measure with.
var edge = sync.OnceValues(func() (*http.Client, error) {
	ca, err := os.ReadFile(filepath.Join(running.dev(), "ca.crt"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	return &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
	}}, nil
})

// servers are the URLs of both.
func servers(t testing.TB) []string {
	t.Helper()
	return []string{env(t, "MINTMARK_URL"), env(t, "MINTMARK_URL_2")}
}

// ask asks one server what it thinks of a value.
func ask(ctx context.Context, server, value string) (status int, err error) {
	client, err := edge()
	if err != nil {
		return 0, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, server+"/forward-auth", nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+value)
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, resp.Body.Close()
}

// statusAt is the answer of one server to one value.
func statusAt(t testing.TB, server, value string) int {
	t.Helper()
	status, err := ask(t.Context(), server, value)
	if err != nil {
		t.Fatal(err)
	}
	return status
}

// dies measures how long all servers take until none accepts value, and fails
// the test where that is longer than the bound.
func dies(t testing.TB, value string, bound time.Duration) {
	t.Helper()
	urls, began := servers(t), time.Now()
	for _, server := range urls {
		eventually(t, bound, "a dead value is refused by "+server, func() bool {
			return statusAt(t, server, value) == http.StatusUnauthorized
		})
	}
	t.Logf("refused by %d servers after %s", len(urls), time.Since(began).Round(time.Millisecond))
}

// accepted checks that every server accepts value.
func accepted(t testing.TB, value, what string) {
	t.Helper()
	for _, server := range servers(t) {
		if status := statusAt(t, server, value); status != http.StatusOK {
			t.Errorf("%s is answered with %d by %s", what, status, server)
		}
	}
}
