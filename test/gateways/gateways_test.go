//go:build e2e

package gateways

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/test/controlplane"
	"github.com/mintmark-dev/mintmark/test/controlplane/process"
)

// gateway is one of those documented.
type gateway struct {
	name string
	// start runs it in front of the backend and gives its address.
	start func(t *testing.T, m *mintmark, backend string) string
}

func gateways() []gateway {
	return []gateway{{"nginx", startNginx}, {"caddy", startCaddy}, {"haproxy", startHAProxy}, {"traefik", startTraefik}}
}

func startNginx(t *testing.T, m *mintmark, backend string) string {
	dir, port := t.TempDir(), freePort(t)
	var temporary strings.Builder
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		fmt.Fprintf(&temporary, "\n    %s_temp_path %s/%s;", kind, dir, kind)
	}
	fill(t, "nginx", dir, map[string]string{
		"listen 80;": "listen 127.0.0.1:" + port + ";", "server mintmark-server.mintmark-system.svc:443;": "server " + m.Address + ";",
		"server reports.payments.svc:8080;": "server " + backend + ";", "/etc/mintmark/ca.crt": m.CAFile, "/etc/nginx/": dir + "/",
		"/run/nginx.pid": dir + "/nginx.pid", "/var/log/nginx/": dir + "/", "http {": "http {" + temporary.String(),
	})
	return run(t, dir, port, process.Config{
		Name: "nginx", Path: debian(t, "nginx", "nginx-light"), Args: []string{"-p", dir, "-c", dir + "/nginx.conf", "-e", dir + "/error.log", "-g", "daemon off;"},
	})
}

func startCaddy(t *testing.T, m *mintmark, backend string) string {
	dir, port := t.TempDir(), freePort(t)
	fill(t, "caddy", dir, map[string]string{
		":80 {": "http://127.0.0.1:" + port + ", http://reports.example.com:" + port + " {", "reports.payments.svc:8080": backend,
		"https://mintmark-server.mintmark-system.svc:443": "https://" + m.Address, "/etc/mintmark/ca.crt": m.CAFile,
	})
	return run(t, dir, port, process.Config{
		Name: "caddy", Path: build(t, "caddy", "github.com/caddyserver/caddy/v2/cmd/caddy"),
		Args: []string{"run", "--config", dir + "/Caddyfile", "--adapter", "caddyfile"},
		Env:  append(os.Environ(), "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir),
	})
}

func startHAProxy(t *testing.T, m *mintmark, backend string) string {
	dir, port := t.TempDir(), freePort(t)
	fill(t, "haproxy", dir, map[string]string{
		"bind :80": "bind 127.0.0.1:" + port, "/etc/haproxy/": dir + "/", "reports.payments.svc:8080": backend,
		"mintmark-server.mintmark-system.svc:443": m.Address, "/etc/mintmark/ca.crt": m.CAFile,
		// The names of abstract sockets are the machine's.
		"abns@mintmark": "abns@mintmark-" + port,
	})
	return run(t, dir, port, process.Config{Name: "haproxy", Path: debian(t, "haproxy", "haproxy"), Args: []string{"-db", "-f", dir + "/haproxy.cfg"}})
}

// debian finds a program that a package of Debian's brings.
func debian(t *testing.T, program, pkg string) string {
	t.Helper()
	binary, err := exec.LookPath(program)
	if err != nil {
		binary = "/usr/sbin/" + program // not in the PATH of people who are not root
		if _, err := os.Stat(binary); err != nil {
			t.Fatalf("%s is missing: run `apt-get install %s`", program, pkg)
		}
	}
	return binary
}

func startTraefik(t *testing.T, m *mintmark, backend string) string {
	dir, port := t.TempDir(), freePort(t)
	fill(t, "traefik", dir, map[string]string{
		`":80"`: `"127.0.0.1:` + port + `"`, "/etc/traefik/": dir + "/", "http://reports.payments.svc:8080": "http://" + backend,
		"https://mintmark-server.mintmark-system.svc/": "https://" + m.Address + "/", "/etc/mintmark/ca.crt": m.CAFile,
	})
	return run(t, dir, port, process.Config{
		Name: "traefik", Path: build(t, "traefik", "github.com/traefik/traefik/v3/cmd/traefik"), Args: []string{"--configFile=" + dir + "/traefik.yaml"}, Dir: dir,
	})
}

// build builds a gateway from its own module under hack/tools into bin/.
func build(t *testing.T, name, pkg string) string {
	t.Helper()
	root, err := controlplane.Root()
	if err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(root, "bin", name)
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", binary, pkg)
	cmd.Dir, cmd.Env = filepath.Join(root, "hack", "tools", name), append(os.Environ(), "GOWORK=off", "GOFLAGS=", "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building %s in hack/tools/%s: %v\n%s", pkg, name, err, out)
	}
	return binary
}

// run starts a gateway and waits until it listens.
func run(t *testing.T, dir, port string, cfg process.Config) string {
	t.Helper()
	cfg.LogFile = filepath.Join(dir, "output.log")
	p, err := process.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of %s's output:\n%s", cfg.Name, p.Tail(20))
		}
		p.Stop(10 * time.Second)
	})
	address := net.JoinHostPort("127.0.0.1", port)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := p.Wait(ctx, func(ctx context.Context) error {
		// A route that is not there yet answers 404; one that is wants a credential.
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/reports/", nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized {
			return fmt.Errorf("it answers %s", resp.Status)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return address
}

func bearer(value string) string { return "Authorization: Bearer " + value }

// alike are the names of the headers that some backend could take for X-User-ID and
// its like: those that differ in case and in punctuation alone.
func alike(h http.Header, name string) (names []string) {
	plain := func(s string) string {
		return strings.Map(func(r rune) rune {
			if 'a' <= r && r <= 'z' || '0' <= r && r <= '9' {
				return r
			}
			return -1
		}, strings.ToLower(s))
	}
	for have := range h {
		if plain(have) == plain(name) {
			names = append(names, have)
		}
	}
	return names
}

func TestGateways(t *testing.T) {
	m := startMintmark(t)
	for _, g := range gateways() {
		t.Run(g.name, func(t *testing.T) {
			b := startBackend(t)
			e := &edge{m: m, backend: b, address: g.start(t, m, b.address)}
			t.Run("a good credential reaches the backend, which learns whose it is", e.goodCredentials)
			t.Run("the credential does not reach the backend", e.credentialIsStripped)
			t.Run("identity headers of the client never reach the backend", e.spoofedIdentity)
			t.Run("what is no good credential is answered with 401", e.badCredentials)
			t.Run("a good credential without the permission is answered with 403", e.withoutPermission)
			t.Run("a credential over its rate is answered with 429 and Retry-After", func(t *testing.T) { e.overItsRate(t, g.name) })
			t.Run("no method is a way around", e.methods)
			t.Run("a path that can be read in two ways does not reach the backend as it is", e.ambiguousPaths)
		})
	}
}

func (e *edge) overItsRate(t *testing.T, name string) {
	value := e.m.Mint(t, &v1alpha1.ServiceToken{
		ObjectMeta: metav1.ObjectMeta{Name: "limited-" + name}, Spec: v1alpha1.CredentialSpec{RateLimit: &v1alpha1.RateLimit{Requests: 3, Per: "24h"}},
	}, "reports:read")
	for i := range 2 { // one more was taken when it was minted
		if resp, seen := e.ask(t, http.MethodGet, "/reports/today", bearer(value)); resp.StatusCode != http.StatusOK || seen == nil {
			t.Errorf("request %d: %s, want 200", i, resp.Status)
		}
	}
	resp, seen := e.ask(t, http.MethodGet, "/reports/today", bearer(value))
	if resp.StatusCode != http.StatusTooManyRequests || seen != nil {
		t.Errorf("the third: %s, reaching the backend: %v; want 429", resp.Status, seen != nil)
	}
	if seconds, err := strconv.Atoi(resp.Header.Get("Retry-After")); err != nil || seconds <= 0 || seconds > 12*60*60 {
		t.Errorf("Retry-After is %q", resp.Header.Get("Retry-After"))
	}
}

// edge is a gateway in front of a backend.
type edge struct {
	m       *mintmark
	backend *backend
	address string
}

// ask sends a request through the gateway; seen is what reached the backend, nil if
// nothing did.
func (e *edge) ask(t *testing.T, method, path string, headers ...string) (resp *http.Response, seen http.Header) {
	t.Helper()
	e.backend.take()
	resp = exchangeRaw(t, e.address, method, path, headers...)
	return resp, e.backend.take()
}

func (e *edge) goodCredentials(t *testing.T) {
	for name, c := range map[string]struct {
		header, subject, permissions string
	}{
		"a service token":                     {bearer(e.m.serviceToken), "servicetoken:payments:publisher", "reports:read reports:write"},
		"a service token in X-API-Key":        {"X-API-Key: " + e.m.serviceToken, "servicetoken:payments:publisher", "reports:read reports:write"},
		"an API key":                          {"X-API-Key: " + e.m.apiKey, "apikey:payments:partner", "reports:*"},
		"an API key as a bearer token":        {bearer(e.m.apiKey), "apikey:payments:partner", "reports:*"},
		"a JWT":                               {bearer(e.m.jwt), "servicetoken:payments:publisher", "reports:read reports:write"},
		"the scheme's name in another case":   {"authorization: bearer " + e.m.apiKey, "apikey:payments:partner", "reports:*"},
		"a body that the check does not want": {bearer(e.m.apiKey) + "\r\nContent-Length: 0", "apikey:payments:partner", "reports:*"},
	} {
		for _, path := range []string{"/reports/today", "/reports/publish/today?permission=reports:none"} {
			resp, seen := e.ask(t, http.MethodPost, path, c.header)
			if resp.StatusCode != http.StatusOK || seen == nil {
				t.Errorf("%s: %s: %s, want 200", name, path, resp.Status)
				continue
			}
			if got := seen["X-User-Id"]; len(got) != 1 || got[0] != c.subject {
				t.Errorf("%s: X-User-ID is %q, want %q", name, got, c.subject)
			}
			if got := seen["X-User-Permissions"]; len(got) != 1 || got[0] != c.permissions {
				t.Errorf("%s: X-User-Permissions is %q, want %q", name, got, c.permissions)
			}
		}
	}
}

func (e *edge) credentialIsStripped(t *testing.T) {
	for _, value := range []string{e.m.serviceToken, e.m.apiKey, e.m.jwt} {
		for _, headers := range [][]string{{bearer(value)}, {"X-API-Key: " + value, bearer(value)}} {
			if value == e.m.jwt && len(headers) > 1 {
				continue // a JWT is no API key
			}
			resp, seen := e.ask(t, http.MethodGet, "/reports/today", headers...)
			if resp.StatusCode != http.StatusOK {
				t.Errorf("%s, want 200", resp.Status)
			}
			for name, values := range seen {
				if strings.Contains(strings.Join(values, " "), value) || name == "Authorization" || name == "X-Api-Key" {
					t.Errorf("the backend was sent %s", name)
				}
			}
		}
	}
}

// THREATS 13.
func (e *edge) spoofedIdentity(t *testing.T) {
	const root = "root"
	names := map[string]string{
		"X-User-ID": "servicetoken:payments:reader", "X-User-Email": "", "X-User-Roles": "", "X-User-Permissions": "reports:read",
	}
	for name, want := range names {
		spelt := func(by string) string { return strings.ReplaceAll(name, "-", by) }
		for what, headers := range map[string][]string{
			"as it is":                   {name + ": " + root},
			"in lower case":              {strings.ToLower(name) + ": " + root},
			"with underscores":           {spelt("_") + ": " + root},
			"with dots":                  {spelt(".") + ": " + root},
			"with one underscore":        {strings.Replace(name, "-", "_", 1) + ": " + root},
			"with a dash and a dot":      {"X-" + strings.ReplaceAll(name[2:], "-", ".") + ": " + root},
			"twice":                      {name + ": " + root, name + ": " + root},
			"twice, in different cases":  {name + ": " + root, strings.ToUpper(name) + ": " + root},
			"named in Connection":        {name + ": " + root, "Connection: " + name},
			"named in Connection beside": {name + ": " + root, "Connection: keep-alive, " + strings.ToLower(name)},
			"named in Connection twice":  {"Connection: close", "Connection: " + name, name + ": " + root},
		} {
			resp, seen := e.ask(t, http.MethodGet, "/reports/today", append(headers, bearer(e.m.reader))...)
			switch {
			case resp.StatusCode == http.StatusBadRequest && seen == nil:
				continue // refused: nothing reached the backend
			case resp.StatusCode != http.StatusOK:
				t.Errorf("%s %s: %s, want 200 or 400", name, what, resp.Status)
				continue
			}
			for have, values := range seen {
				if strings.Contains(strings.Join(values, " "), root) {
					t.Errorf("%s %s: the backend was sent %s: %q", name, what, have, values)
				}
			}
			if have := alike(seen, name); len(have) > 1 || strings.Join(seen[http.CanonicalHeaderKey(name)], "|") != want {
				t.Errorf("%s %s: the backend was sent %q, of value %q, want %q", name, what, have, seen[http.CanonicalHeaderKey(name)], want)
			}
		}
	}
}

func (e *edge) badCredentials(t *testing.T) {
	key := e.m.serviceToken
	for name, headers := range map[string][]string{
		"nothing":                             nil,
		"an identity of the client's own":     {"X-User-ID: root", "X-User-Permissions: *"},
		"any bearer token":                    {bearer("x")},
		"a health checker's user agent":       {"User-Agent: kube-probe/1.36"},
		"a character more":                    {bearer(key + "0")},
		"a character less":                    {bearer(key[:len(key)-1])},
		"another environment's prefix":        {bearer("sk_live_" + key[3:])},
		"an unknown key":                      {bearer("sk_" + strings.Repeat("0", 64))},
		"basic authentication":                {"Authorization: Basic cm9vdDpyb290"},
		"two keys in one header":              {bearer(key + "," + key)},
		"a JWT that was altered":              {bearer(e.m.jwt[:len(e.m.jwt)-4] + "AAAA")},
		"a JWT as an API key":                 {"X-API-Key: " + e.m.jwt},
		"two keys that differ":                {"X-API-Key: " + e.m.apiKey, bearer(key)},
		"a good key that Connection takes":    {"X-API-Key: x", bearer(key), "Connection: X-API-Key"},
		"the original path set by the client": {"X-Original-URI: /public", "X-Forwarded-Uri: /public"},
	} {
		resp, seen := e.ask(t, http.MethodGet, "/reports/today", headers...)
		if name == "a good key that Connection takes" && resp.StatusCode == http.StatusOK && seen != nil {
			continue // one credential was left, and it is good
		}
		if resp.StatusCode != http.StatusUnauthorized || seen != nil {
			t.Errorf("%s: %s, reaching the backend: %v; want 401", name, resp.Status, seen != nil)
		}
		if !strings.HasPrefix(resp.Header.Get("Www-Authenticate"), "Bearer ") {
			t.Errorf("%s: WWW-Authenticate is %q", name, resp.Header.Get("Www-Authenticate"))
		}
	}
	for _, headers := range [][]string{{bearer(key), bearer(e.m.apiKey)}, {"X-API-Key: " + key, "X-API-Key: " + e.m.apiKey}} {
		resp, seen := e.ask(t, http.MethodGet, "/reports/today", headers...)
		if resp.StatusCode != http.StatusUnauthorized && resp.StatusCode != http.StatusBadRequest || seen != nil {
			t.Errorf("a header twice: %s, reaching the backend: %v; want 401 or 400", resp.Status, seen != nil)
		}
	}
	if resp, seen := e.ask(t, http.MethodGet, "/reports/today?token="+key+"&api_key="+key); resp.StatusCode != http.StatusUnauthorized || seen != nil {
		t.Errorf("a key in the query: %s, want 401", resp.Status)
	}
}

func (e *edge) withoutPermission(t *testing.T) {
	for _, path := range []string{"/reports/publish/today", "/reports/publish/today?permission=reports:read"} {
		if resp, seen := e.ask(t, http.MethodGet, path, bearer(e.m.reader)); resp.StatusCode != http.StatusForbidden || seen != nil {
			t.Errorf("%s: %s, reaching the backend: %v; want 403", path, resp.Status, seen != nil)
		}
	}
}

// THREATS 15.
func (e *edge) methods(t *testing.T) {
	for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "get"} {
		for _, override := range []string{"", "X-HTTP-Method-Override: OPTIONS", "X-Method-Override: GET"} {
			headers := []string{"X-Nothing: 1"}
			if override != "" {
				headers = append(headers, override)
			}
			resp, seen := e.ask(t, method, "/reports/today", headers...)
			// Some gateways do not know every method.
			if resp.StatusCode != http.StatusUnauthorized && resp.StatusCode != http.StatusMethodNotAllowed && resp.StatusCode != http.StatusBadRequest || seen != nil {
				t.Errorf("%s %s: %s, reaching the backend: %v; want 401", method, override, resp.Status, seen != nil)
			}
		}
	}
}

// THREATS 14.
func (e *edge) ambiguousPaths(t *testing.T) {
	for _, path := range []string{
		"/reports/%2e%2e/admin", "/reports/..%2fadmin", "/reports/..%2Fpublish/x", "/reports//today", "/reports/a%23b", "/reports/..;/admin",
		"/reports/%252e%252e/admin", "/reports/a%5cb", "/reports/x/%2e%2e/publish/x", "/reports/..%5cpublish/x",
	} {
		resp, seen := e.ask(t, http.MethodGet, path, bearer(e.m.reader))
		// A gateway may put the path right first, for the check and the backend alike.
		if seen != nil && e.backend.path() != "/reports/today" {
			t.Errorf("%s reaches the backend as %s: %s", path, e.backend.path(), resp.Status)
		}
	}
}
