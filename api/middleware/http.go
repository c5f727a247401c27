package middleware

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// Require lets through whoever presents a good credential that holds all of the
// permissions; without permissions any good credential will do. Handlers find who it is
// by [FromContext].
func (g *Guard) Require(permissions ...string) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			presented, found := Credential(r.Header.Values("X-Api-Key"), r.Header.Values("Authorization"))
			call := Call{
				Credential: presented, Permissions: permissions, Method: r.Method, Host: r.Host, Path: r.URL.EscapedPath(), UserAgent: r.UserAgent(),
				ClientIP: g.config.ClientIP(r),
			}
			id, err := g.Check(r.Context(), call)
			if err != nil {
				refuse(w, err, found, permissions)
				return
			}
			next.ServeHTTP(w, r.WithContext(NewContext(r.Context(), id, call)))
		})
	}
}

// Credential takes the credential out of the lines of X-API-Key and Authorization (RFC
// 6750, section 2.1); empty where there is none that could be good. found tells whether
// there was anything. Two that differ are none, and no header may be there twice: another
// program could look at the other one.
func Credential(keys, authorizations []string) (credential string, found bool) {
	if len(keys) == 0 && len(authorizations) == 0 {
		return "", false
	}
	if len(keys) > 1 || len(authorizations) > 1 {
		return "", true
	}
	if len(authorizations) == 1 {
		scheme, rest, ok := strings.Cut(authorizations[0], " ")
		if !ok || !strings.EqualFold(scheme, "Bearer") {
			return "", true
		}
		credential = strings.TrimLeft(rest, " ")
	}
	if len(keys) == 1 {
		if len(authorizations) == 1 && keys[0] != credential || isJWT(keys[0]) {
			return "", true
		}
		credential = keys[0]
	}
	// A comma is how a proxy joins two headers; it is in no credential of ours, nor is
	// anything but visible ASCII.
	for i := range len(credential) {
		if c := credential[i]; c == ',' || c <= ' ' || c > '~' {
			return "", true
		}
	}
	if len(credential) > maxCredential {
		return "", true
	}
	return credential, true
}

// maxCredential in bytes: no JWT of Mintmark is longer.
const maxCredential = 8 << 10

func isJWT(credential string) bool { return strings.Count(credential, ".") == 2 }

// refuse answers as the server does (RFC 6750, section 3; RFC 9457).
func refuse(w http.ResponseWriter, err error, found bool, permissions []string) {
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("Cache-Control", "no-store")
	status, detail := http.StatusServiceUnavailable, "Credentials cannot be checked at the moment. Try again."
	switch {
	case errors.Is(err, ErrUnauthenticated):
		status, detail = http.StatusUnauthorized, "A valid credential is needed, in the header X-API-Key or Authorization: Bearer."
		challenge := `Bearer realm="mintmark"`
		if found {
			challenge += `, error="invalid_token"`
		}
		h.Set("WWW-Authenticate", challenge)
	case errors.Is(err, ErrForbidden):
		status, detail = http.StatusForbidden, "The credential is valid and may not do this."
		if len(permissions) > 0 {
			h.Set("WWW-Authenticate", `Bearer realm="mintmark", error="insufficient_scope", scope="`+strings.Join(permissions, " ")+`"`)
		}
	default:
		h.Set("Retry-After", "1")
	}
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(problem{Status: status, Title: http.StatusText(status), Detail: detail})
}

// problem is an RFC 9457 problem document.
type problem struct {
	Status int    `json:"status"`
	Title  string `json:"title"`
	Detail string `json:"detail"`
}

func peerOf(r *http.Request) netip.Addr {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return peer.Addr().Unmap().WithZone("")
}

func newClient(roots *x509.CertPool) *http.Client {
	return &http.Client{
		Timeout: 5 * time.Second,
		// A credential must not follow a redirect to somewhere else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true,
			MaxIdleConnsPerHost: 64, IdleConnTimeout: 90 * time.Second, TLSHandshakeTimeout: 5 * time.Second,
		},
	}
}
