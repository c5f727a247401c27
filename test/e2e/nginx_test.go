//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mintmark-dev/mintmark/test/controlplane/process"
)

// startNginx puts nginx with auth_request in front of a backend that answers with
// the headers it was sent. It returns nginx's URL.
func startNginx(t *testing.T) string {
	t.Helper()
	binary, err := exec.LookPath("nginx")
	if err != nil {
		binary = "/usr/sbin/nginx" // not in the PATH of people who are not root
		if _, err := os.Stat(binary); err != nil {
			t.Fatal("nginx is missing: apt-get install nginx")
		}
	}
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewEncoder(w).Encode(r.Header)
	}))
	t.Cleanup(backend.Close)
	ports, err := process.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	port := ports[0]

	// The configuration is that of docs/gateways, with this machine's addresses
	// and folders.
	dir := t.TempDir()
	var scratch strings.Builder
	for _, module := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		scratch.WriteString("\n    " + module + "_temp_path " + filepath.Join(dir, module) + ";")
	}
	fill := strings.NewReplacer(
		"mintmark-server.mintmark-system.svc:443", strings.TrimPrefix(env(t, "MINTMARK_URL"), "https://"),
		"reports.payments.svc:8080", strings.TrimPrefix(backend.URL, "http://"),
		"listen 80;", "listen 127.0.0.1:"+strconv.Itoa(port)+";",
		"http {", "http {"+scratch.String(),
		"/etc/mintmark/ca.crt", env(t, "MINTMARK_CACERT"), "/etc/nginx/", dir+"/", "/var/log/nginx/", dir+"/", "/run/", dir+"/",
	)
	for _, name := range []string{"nginx.conf", "mintmark-check.conf", "mintmark-identity.conf"} {
		text, err := os.ReadFile(filepath.Join("..", "..", "docs", "gateways", "nginx", name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(fill.Replace(string(text))), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	globals := "daemon off;"
	if os.Getuid() == 0 {
		globals += " user root;" // its workers are to read the folder of the test
	}
	nginx, err := process.Start(process.Config{
		Name: "nginx", Path: binary, LogFile: filepath.Join(dir, "output.log"),
		Args: []string{"-p", dir, "-c", filepath.Join(dir, "nginx.conf"), "-e", filepath.Join(dir, "error.log"), "-g", globals},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nginx.Stop(10 * time.Second) })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := nginx.Wait(ctx, func(ctx context.Context) error {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", "127.0.0.1:"+strconv.Itoa(port))
		if err == nil {
			_ = conn.Close()
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return "http://127.0.0.1:" + strconv.Itoa(port)
}

// seen is what the backend was sent.
func seen(t *testing.T, body string) http.Header {
	t.Helper()
	var h http.Header
	if err := json.Unmarshal([]byte(body), &h); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	return h
}

func TestNginxAsksMintmarkAboutEveryRequest(t *testing.T) {
	ns := namespace(t, "edge")
	apply(t, serviceToken(ns, "caller", "reports:read"))
	ready(t, ns, "servicetoken/caller")
	key := value(t, ns, "caller", "token")
	site := startNginx(t)

	t.Run("a good key reaches the backend, with who it is and without the key", func(t *testing.T) {
		status, body := curl(t, bearer(key), site+"/reports/today")
		if status != "200" {
			t.Fatalf("%s: %s", status, body)
		}
		h := seen(t, body)
		if !strings.Contains(h.Get("X-User-Id"), "caller") || h.Get("X-User-Permissions") != "reports:read" {
			t.Errorf("X-User-ID %q, X-User-Permissions %q", h.Get("X-User-Id"), h.Get("X-User-Permissions"))
		}
		if strings.Contains(body, key) {
			t.Error("the backend was sent the key itself")
		}
	})

	t.Run("a JWT had for the key reaches the backend too", func(t *testing.T) {
		_, body := curl(t, bearer(key), `-X POST "$MINTMARK_URL/api/auth/token"`)
		var issued struct {
			Token string `json:"token"`
		}
		if err := json.Unmarshal([]byte(body), &issued); err != nil {
			t.Fatal(err)
		}
		if status, _ := curl(t, bearer(issued.Token), site+"/reports/today"); status != "200" {
			t.Errorf("%s, want 200", status)
		}
	})

	t.Run("identity headers of the client never reach the backend", func(t *testing.T) {
		for _, spoofed := range []string{
			"X-User-ID: root", "x-user-id: root", "X_User_Id: root", "X.User.Id: root", "X-User-ID: root\nX-User-ID: root",
			"X-User-ID: root\nConnection: X-User-ID", "X-User-Email: root@example.com", "X-User-Roles: root", "X-User-Permissions: root",
		} {
			status, body := curl(t, bearer(key)+"\n"+spoofed, site+"/reports/today")
			if status != "200" {
				t.Errorf("with %q: %s, want 200", spoofed, status)
				continue
			}
			if strings.Contains(body, "root") {
				t.Errorf("%q reached the backend: %s", spoofed, body)
			}
			if ids := seen(t, body)["X-User-Id"]; !slices.ContainsFunc(ids, func(id string) bool { return strings.Contains(id, "caller") }) || len(ids) != 1 {
				t.Errorf("with %q X-User-ID is %q", spoofed, ids)
			}
		}
	})

	t.Run("what is no credential is refused with 401", func(t *testing.T) {
		for _, headers := range []string{
			"X-Nothing: 1", bearer("x"), bearer(key + "x"), bearer(key[:len(key)-1]), "Authorization: Basic cm9vdDpyb290",
			"User-Agent: kube-probe/1.36", "X-User-ID: root", bearer(key) + ", " + bearer(key),
		} {
			if status, _ := curl(t, headers, site+"/reports/today"); status != "401" {
				t.Errorf("%q: %s, want 401", strings.ReplaceAll(headers, key, "KEY"), status)
			}
		}
		// Two headers: nginx itself refuses the request.
		if status, _ := curl(t, bearer(key)+"\n"+bearer("sk_live_other"), site+"/reports/today"); status != "400" && status != "401" {
			t.Errorf("with two Authorization headers: %s, want 400 or 401", status)
		}
	})

	t.Run("a good key without the permission is refused with 403", func(t *testing.T) {
		if status, _ := curl(t, bearer(key), site+"/reports/publish/now"); status != "403" {
			t.Errorf("%s, want 403", status)
		}
	})

	t.Run("a client cannot ask the check itself, nor change what it demands", func(t *testing.T) {
		if status, _ := curl(t, bearer(key), site+"/_mintmark/read"); status != "404" {
			t.Errorf("the internal location answers %s, want 404", status)
		}
		if status, _ := curl(t, bearer(key), "'"+site+"/reports/publish/now?permission=reports:read'"); status != "403" {
			t.Errorf("with permission= in its own query: %s, want 403", status)
		}
	})

	t.Run("a path that can be read in two ways is refused", func(t *testing.T) {
		for _, path := range []string{"/reports/%2e/publish/now", "/reports/x/..%2fpublish/now", "/reports//today", "/reports/a%23b", "/reports/..;/publish"} {
			if status, _ := curl(t, bearer(key), "--path-as-is '"+site+path+"'"); status == "200" {
				t.Errorf("%s reaches the backend", path)
			}
		}
	})

	t.Run("a revocation is felt through nginx", func(t *testing.T) {
		must(t, "kubectl -n "+ns+` patch servicetoken caller --type=merge -p '{"spec":{"revoked":{"reason":"tested"}}}'`)
		began := time.Now()
		eventually(t, bound, "nginx refuses the key", func() bool {
			status, _ := curl(t, bearer(key), site+"/reports/today")
			return status == "401"
		})
		t.Logf("refused through nginx after %s", time.Since(began).Round(time.Millisecond))
	})
}
