package server

import (
	"net/http"
	"testing"
)

// What proxies and frameworks have let in at some time or other.
func TestNothingButACredentialIsAWayIn(t *testing.T) {
	e := newEdge(t, setup{})
	good := e.mint("ci").value()
	for name, headers := range map[string][]string{
		"any bearer":                       bearerOf("x"),
		"null":                             bearerOf("null"),
		"undefined":                        bearerOf("undefined"),
		"true":                             bearerOf("true"),
		"an empty key":                     {"X-API-Key", ""},
		"a kubelet's probe":                {"User-Agent", "kube-probe/1.36"},
		"a load balancer's check":          {"User-Agent", "ELB-HealthChecker/2.0"},
		"another's":                        {"User-Agent", "GoogleHC/1.0"},
		"a monitor":                        {"User-Agent", "Prometheus/3.0"},
		"from here, it says":               {"X-Forwarded-For", "127.0.0.1", "X-Real-Ip", "127.0.0.1", "Forwarded", "for=127.0.0.1"},
		"another method":                   {"X-HTTP-Method-Override", "OPTIONS", "X-Method-Override", "OPTIONS", "X-HTTP-Method", "OPTIONS"},
		"a preflight":                      {"Origin", "https://example.com", "Access-Control-Request-Method", "DELETE"},
		"a preflight that a gateway asks":  {"X-Forwarded-Method", "OPTIONS", "X-Original-Method", "OPTIONS"},
		"a path that is public":            {"X-Original-URL", "/api/v1/auth/health", "X-Rewrite-URL", "/.well-known/jwks.json"},
		"somebody, it says":                {"X-User-ID", "admin", "X-User-Permissions", "*", "X-Remote-User", "system:admin"},
		"a client certificate, it says":    {"X-Forwarded-Client-Cert", "Subject=\"CN=admin\"", "X-Ssl-Client-Verify", "SUCCESS"},
		"within the cluster, it says":      {"Host", "localhost", "X-Forwarded-Host", "localhost"},
		"a cookie":                         {"Cookie", "token=" + good + "; Authorization=" + good},
		"a good value in another header":   {"X-Auth-Token", good, "Proxy-Authorization", "Bearer " + good},
		"a good value as a user's name":    {"X-Forwarded-User", good},
		"a key with a name in front of it": {"Authorization", "ApiKey " + good},
	} {
		for _, path := range []string{"/forward-auth", "/api/auth/profile", "/api/v1/auth/me", systemStatusPath} {
			if got := e.ask("GET", path, "", headers...); got.status != http.StatusUnauthorized {
				t.Errorf("%s at %s: %d, want 401", name, path, got.status)
			}
		}
	}
	for _, query := range []string{"token=", "access_token=", "api_key=", "apikey=", "key="} {
		for _, path := range []string{"/api/auth/profile", "/api/v1/auth/me"} {
			if got := e.ask("GET", path+"?"+query+good, ""); got.status != http.StatusUnauthorized {
				t.Errorf("a good value in the query of %s, as %s: %d, want 401", path, query, got.status)
			}
		}
	}
	if got := e.ask("GET", "/api/auth/profile", "", bearerOf(good)...); got.status != http.StatusOK {
		t.Fatalf("a good credential: %d", got.status)
	}
}
