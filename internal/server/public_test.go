package server

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	oidc "github.com/coreos/go-oidc/v3/oidc"
	"github.com/google/go-cmp/cmp"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

func bearerOf(value string) []string { return []string{"Authorization", "Bearer " + value} }

// jwtFor exchanges a key for a JWT.
func (e *edge) jwtFor(m *minted, body string) string {
	e.t.Helper()
	got := e.ask("POST", "/api/auth/token", body, append(bearerOf(m.value()), "Content-Type", "application/json")...)
	if got.status != http.StatusOK {
		e.t.Fatalf("exchanging a key: %d %s", got.status, got.body)
	}
	var issued tokenResponse
	if err := json.Unmarshal([]byte(got.body), &issued); err != nil {
		e.t.Fatal(err)
	}
	return issued.Token
}

func TestAKeyIsExchangedForAJWT(t *testing.T) {
	e := newEdge(t, setup{})
	m := e.mint("ci")
	got := e.ask("POST", "/api/auth/token", "", "X-API-Key", m.value())
	var issued map[string]any
	if err := json.Unmarshal([]byte(got.body), &issued); err != nil {
		t.Fatalf("%v: %s", err, got.body)
	}
	token, _ := issued["token"].(string)
	delete(issued, "token")
	want := map[string]any{
		"expires_in": 900.0, "token_type": "Bearer", "key_id": "uid-ci", "permissions": "api:read deploy:*", "is_admin": false,
	}
	if diff := cmp.Diff(want, issued); diff != "" {
		t.Errorf("the answer differs (-want +got):\n%s", diff)
	}
	if got.header.Get("Cache-Control") != "no-store" {
		t.Errorf("Cache-Control is %q", got.header.Get("Cache-Control"))
	}
	if got := e.ask("GET", "/api/auth/profile", "", bearerOf(token)...); got.status != http.StatusOK {
		t.Errorf("the JWT is answered with %d %s", got.status, got.body)
	}
}

func TestATokenRequestMayAskForAnAudienceAndALife(t *testing.T) {
	e := newEdge(t, setup{})
	m := e.mint("ci", func(r *credential.Record) {
		r.JWT.Audiences = []string{"https://a.example.com", "https://b.example.com"}
		r.JWT.TTLSeconds = 1800
	})
	const form, asJSON = "application/x-www-form-urlencoded", "application/json"
	for name, c := range map[string]struct {
		contentType, body string
		status            int
		expiresIn         int64
	}{
		"nothing asked":                     {"", "", 200, 1800},
		"an empty body of no type":          {"text/plain", "", 200, 1800},
		"a length of time":                  {asJSON, `{"ttl":"10m"}`, 200, 600},
		"a number of seconds":               {asJSON, `{"ttl":120}`, 200, 120},
		"one audience":                      {asJSON, `{"audience":"https://a.example.com"}`, 200, 1800},
		"several audiences":                 {asJSON, `{"audience":["https://a.example.com","https://b.example.com"]}`, 200, 1800},
		"a form":                            {form, "audience=https%3A%2F%2Fa.example.com&ttl=5m", 200, 300},
		"a form with a charset":             {form + "; charset=utf-8", "ttl=300", 200, 300},
		"a longer life than it has":         {asJSON, `{"ttl":"59m"}`, 200, 1800},
		"a life out of range":               {asJSON, `{"ttl":"2h"}`, 400, 0},
		"a life that is none":               {asJSON, `{"ttl":"soon"}`, 400, 0},
		"a life without an end":             {asJSON, `{"ttl":"Never"}`, 400, 0},
		"a negative life":                   {asJSON, `{"ttl":-60}`, 400, 0},
		"an audience it is not for":         {asJSON, `{"audience":"https://c.example.com"}`, 400, 0},
		"an empty audience":                 {asJSON, `{"audience":""}`, 400, 0},
		"an audience of the wrong type":     {asJSON, `{"audience":{"a":1}}`, 400, 0},
		"a null audience":                   {asJSON, `{"audience":null}`, 400, 0},
		"an unknown field":                  {asJSON, `{"scope":"admin"}`, 400, 0},
		"a field twice":                     {asJSON, `{"ttl":60,"ttl":120}`, 400, 0},
		"a field in another case":           {asJSON, `{"TTL":60}`, 400, 0},
		"no JSON":                           {asJSON, `ttl=60`, 400, 0},
		"two JSON documents":                {asJSON, `{}{}`, 400, 0},
		"a JSON list":                       {asJSON, `[]`, 400, 0},
		"an unknown form field":             {form, "scope=admin", 400, 0},
		"a form field twice":                {form, "ttl=60&ttl=120", 400, 0},
		"a form that does not parse":        {form, "ttl=%zz", 400, 0},
		"another media type":                {"text/plain", `{"ttl":60}`, 415, 0},
		"XML":                               {"application/xml", `<ttl/>`, 415, 0},
		"a body of no type":                 {"", `{"ttl":60}`, 415, 0},
		"a body that is too large":          {asJSON, `{"ttl":"` + strings.Repeat("1", maxBody) + `"}`, 413, 0},
		"a deep body":                       {asJSON, strings.Repeat("[", maxBody/2), 400, 0},
		"an audience that is far too long":  {asJSON, `{"audience":"` + strings.Repeat("a", 600) + `"}`, 400, 0},
		"more audiences than there can be":  {asJSON, `{"audience":[` + strings.Repeat(`"a",`, 20) + `"a"]}`, 400, 0},
		"a life that does not fit a number": {asJSON, `{"ttl":99999999999999999999}`, 400, 0},
	} {
		t.Run(name, func(t *testing.T) {
			headers := bearerOf(m.value())
			if c.contentType != "" {
				headers = append(headers, "Content-Type", c.contentType)
			}
			got := e.ask("POST", "/api/auth/token", c.body, headers...)
			if got.status != c.status {
				t.Fatalf("%d, want %d: %s", got.status, c.status, got.body)
			}
			if c.status != 200 {
				if got.header.Get("Content-Type") != problemType {
					t.Errorf("Content-Type is %q", got.header.Get("Content-Type"))
				}
				return
			}
			var issued tokenResponse
			if err := json.Unmarshal([]byte(got.body), &issued); err != nil || issued.ExpiresIn != c.expiresIn {
				t.Errorf("expires_in is %d, want %d (%v)", issued.ExpiresIn, c.expiresIn, err)
			}
		})
	}
	if got := e.ask("POST", "/api/auth/token", `{"ttl":60}`, append(bearerOf(m.value()), "Content-Type", asJSON, "Content-Encoding", "gzip")...); got.status != 415 {
		t.Errorf("a packed body is answered with %d, want 415", got.status)
	}
}

func TestAJWTCannotBeExchanged(t *testing.T) {
	e := newEdge(t, setup{})
	token := e.jwtFor(e.mint("ci"), "")
	if got := e.ask("POST", "/api/auth/token", "", bearerOf(token)...); got.status != http.StatusForbidden {
		t.Errorf("%d, want 403: %s", got.status, got.body)
	}
}

func TestTheProfileTellsWhoTheCallerIs(t *testing.T) {
	e := newEdge(t, setup{})
	m := e.mint("ci", func(r *credential.Record) { r.Versions[0].Expires = 1893456000 })
	expires := time.Unix(1893456000, 0).UTC()
	want := profileResponse{
		Subject: "servicetoken:payments:ci", KeyID: "uid-ci", Kind: "ServiceToken", Namespace: "payments", Name: "ci", Class: "default",
		Version: 1, Prefix: m.token.Prefix(), Permissions: "api:read deploy:*", Roles: "deployer", Method: "key", ExpiresAt: &expires,
	}
	for _, path := range []string{"/api/auth/profile", "/api/v1/auth/me"} {
		got := e.ask("GET", path, "", bearerOf(m.value())...)
		var profile profileResponse
		if err := json.Unmarshal([]byte(got.body), &profile); err != nil {
			t.Fatalf("%v: %s", err, got.body)
		}
		if diff := cmp.Diff(want, profile); diff != "" {
			t.Errorf("%s differs (-want +got):\n%s", path, diff)
		}
	}
	got := e.ask("GET", "/api/v1/auth/me", "", bearerOf(e.jwtFor(m, ""))...)
	var profile profileResponse
	if err := json.Unmarshal([]byte(got.body), &profile); err != nil {
		t.Fatalf("%v: %s", err, got.body)
	}
	if profile.Method != "jwt" || !slices.Equal(profile.Audience, []string{testIssuer}) || profile.KeyID != "uid-ci" {
		t.Errorf("the profile of a JWT is %+v", profile)
	}
}

func TestForwardAuthLetsThroughWhoMayAndSaysWhoItIs(t *testing.T) {
	e := newEdge(t, setup{})
	m := e.mint("ci", func(r *credential.Record) { r.JWT.Audiences = []string{"https://api.example.com"} })
	plain := e.mint("plain")
	admin := e.mint("root", func(r *credential.Record) { r.Admin, r.Permissions, r.Roles = true, nil, nil })
	token, ownToken := e.jwtFor(m, ""), e.jwtFor(plain, "")
	for name, c := range map[string]struct {
		credential, query string
		status            int
		permissions       string
	}{
		"a key where nothing is required":                    {m.value(), "", 200, "api:read deploy:*"},
		"a key with the permission":                          {m.value(), "?permission=api:read", 200, "api:read deploy:*"},
		"a key with a wildcard over the permission":          {m.value(), "?permission=deploy:write", 200, "api:read deploy:*"},
		"a key with all of several permissions":              {m.value(), "?permission=deploy:write&permission=api:read", 200, "api:read deploy:*"},
		"a key with one of several permissions":              {m.value(), "?permission=api:read&permission=api:write", 403, ""},
		"a key without the permission":                       {m.value(), "?permission=api:write", 403, ""},
		"a key that may have a JWT for the audience":         {m.value(), "?audience=https%3A%2F%2Fapi.example.com", 200, "api:read deploy:*"},
		"a key that may not have a JWT for the audience":     {m.value(), "?audience=https%3A%2F%2Fother.example.com", 403, ""},
		"a key for the issuer itself":                        {plain.value(), "?audience=https%3A%2F%2Fmintmark.example.com", 200, "api:read deploy:*"},
		"an admin's key":                                     {admin.value(), "?permission=anything:at-all", 200, "*"},
		"a JWT for the audience":                             {token, "?audience=https%3A%2F%2Fapi.example.com&permission=deploy:x", 200, "api:read deploy:*"},
		"a JWT for one of several audiences":                 {token, "?audience=https%3A%2F%2Fx.example.com&audience=https%3A%2F%2Fapi.example.com", 200, "api:read deploy:*"},
		"a JWT for another audience than this issuer":        {token, "", 401, ""},
		"a JWT for this issuer":                              {ownToken, "", 200, "api:read deploy:*"},
		"a JWT for this issuer where another one is wanted":  {ownToken, "?audience=https%3A%2F%2Fapi.example.com", 401, ""},
		"a JWT without the permission":                       {ownToken, "?permission=api:write", 403, ""},
		"a misspelt requirement":                             {m.value(), "?permision=api:write", 400, ""},
		"a requirement with another parameter beside it":     {m.value(), "?permission=api:read&x=1", 400, ""},
		"a query that does not parse":                        {m.value(), "?permission=%zz", 400, ""},
		"an empty permission":                                {m.value(), "?permission=", 400, ""},
		"a wildcard required":                                {m.value(), "?permission=deploy:*", 400, ""},
		"a permission that would break out of the challenge": {m.value(), "?permission=a%22%0d%0ab", 400, ""},
		"no credential":                                      {"", "?permission=api:read", 401, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var headers []string
			if c.credential != "" {
				headers = bearerOf(c.credential)
			}
			for _, method := range []string{"GET", "POST", "DELETE", "OPTIONS", "PROPFIND"} {
				got := e.ask(method, "/forward-auth"+c.query, "", headers...)
				if got.status != c.status {
					t.Fatalf("%s: %d, want %d: %s", method, got.status, c.status, got.body)
				}
				if c.status != 200 {
					continue
				}
				for _, h := range []string{"X-User-Id", "X-User-Email", "X-User-Roles", "X-User-Permissions"} {
					if len(got.header[h]) != 1 {
						t.Errorf("%s is there %d times, want once", h, len(got.header[h]))
					}
				}
				if got.header.Get("X-User-Permissions") != c.permissions {
					t.Errorf("X-User-Permissions is %q, want %q", got.header.Get("X-User-Permissions"), c.permissions)
				}
				if !strings.HasPrefix(got.header.Get("X-User-Id"), "servicetoken:payments:") || got.body != "" {
					t.Errorf("X-User-Id is %q, body %q", got.header.Get("X-User-Id"), got.body)
				}
			}
		})
	}
	denied := e.ask("GET", "/forward-auth?permission=api:write&permission=x:y", "", bearerOf(m.value())...)
	if want := `Bearer realm="mintmark", error="insufficient_scope", scope="api:write x:y"`; denied.header.Get("Www-Authenticate") != want {
		t.Errorf("WWW-Authenticate is %q, want %q", denied.header.Get("Www-Authenticate"), want)
	}
}

func TestAJWTAllowsWhatItSaysAsFarAsItsCredentialStillDoes(t *testing.T) {
	e := newEdge(t, setup{})
	m := e.mint("ci")
	before := e.jwtFor(m, "")
	m.record.Epoch, m.record.Permissions, m.record.Roles = 2, []string{"api:read", "api:write"}, []string{"other"}
	m.object.Spec.Permissions, m.object.Spec.Roles = []v1alpha1.Permission{"api:read", "api:write"}, []string{"other"}
	e.apply(m)
	for permission, status := range map[string]int{"api:read": 200, "api:write": 403, "deploy:x": 403} {
		got := e.ask("GET", "/forward-auth?permission="+permission, "", bearerOf(before)...)
		if got.status != status {
			t.Errorf("%s: %d, want %d", permission, got.status, status)
		}
		if status == 200 && (got.header.Get("X-User-Permissions") != "api:read" || got.header.Get("X-User-Roles") != "") {
			t.Errorf("X-User-Permissions %q, X-User-Roles %q", got.header.Get("X-User-Permissions"), got.header.Get("X-User-Roles"))
		}
	}

	// What a credential is given later is not in a token issued before.
	m.record.Epoch, m.record.Admin, m.record.Permissions, m.record.Roles = 3, true, nil, nil
	m.object.Spec.Permissions, m.object.Spec.Roles, m.object.Spec.Admin = nil, nil, true
	e.apply(m)
	if got := e.ask("GET", "/forward-auth?permission=other:x", "", bearerOf(before)...); got.status != 403 {
		t.Errorf("a token from before its credential became an admin's: %d, want 403", got.status)
	}
}

func TestAJWTDiesWithItsCredential(t *testing.T) {
	for name, kill := range map[string]func(*edge, *minted){
		"deleted": func(e *edge, m *minted) { e.index.Delete(m.record.UID) },
		"revoked by its spec": func(e *edge, m *minted) {
			m.object.Spec.Revoked = &v1alpha1.Revoked{Reason: "leaked"}
			e.apply(m)
		},
		"one version revoked by its spec": func(e *edge, m *minted) {
			m.object.Spec.Revoked = &v1alpha1.Revoked{Reason: "leaked", Versions: []int64{1}}
			e.apply(m)
		},
		"revoked by a Revocation": func(e *edge, _ *minted) {
			r := &v1alpha1.Revocation{Spec: v1alpha1.RevocationSpec{Reason: "all", All: true}}
			r.Name, r.UID = "all", "r1"
			if err := e.index.SetRevocation(r); err != nil {
				e.t.Fatal(err)
			}
		},
		"revoked as sealed": func(e *edge, m *minted) {
			m.record.Epoch, m.record.RevokedThrough, m.record.Versions = 2, 1, nil
			e.apply(m)
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEdge(t, setup{})
			m := e.mint("ci")
			token := e.jwtFor(m, "")
			kill(e, m)
			for what, value := range map[string]string{"the JWT": token, "the key": m.value()} {
				if got := e.ask("GET", "/forward-auth", "", bearerOf(value)...); got.status != 401 {
					t.Errorf("%s is answered with %d, want 401", what, got.status)
				}
			}
		})
	}
}

func TestAJWTOfARetiredVersionLivesToItsEnd(t *testing.T) {
	e := newEdge(t, setup{})
	m := e.mint("ci")
	token := e.jwtFor(m, "")
	m.record.Epoch, m.record.Versions = 2, nil
	e.apply(m)
	if got := e.ask("GET", "/forward-auth", "", bearerOf(m.value())...); got.status != 401 {
		t.Errorf("the key of the retired version is answered with %d, want 401", got.status)
	}
	if got := e.ask("GET", "/forward-auth", "", bearerOf(token)...); got.status != 200 {
		t.Errorf("its JWT is answered with %d, want 200", got.status)
	}
	e.setClock(time.Now().Add(20 * time.Minute))
	if got := e.ask("GET", "/forward-auth", "", bearerOf(token)...); got.status != 401 {
		t.Errorf("its JWT after its end is answered with %d, want 401", got.status)
	}
}

func TestAnIndependentVerifierAcceptsTheJWT(t *testing.T) {
	e := newEdge(t, setup{})
	m := e.mint("ci", func(r *credential.Record) { r.JWT.Audiences = []string{"https://api.example.com"} })
	token := e.jwtFor(m, "")
	// Discovery, JWKS and verification by coreos/go-oidc, as a relying party does it.
	ctx := oidc.ClientContext(context.Background(), tlsClient(e.client.Transport.(*http.Transport).TLSClientConfig.RootCAs,
		"example.com", strings.TrimPrefix(e.http.URL, "https://")))
	provider, err := oidc.NewProvider(ctx, testIssuer)
	if err != nil {
		t.Fatal(err)
	}
	verifier := provider.VerifierContext(ctx, &oidc.Config{ClientID: "https://api.example.com", SupportedSigningAlgs: []string{"ES256"}})
	verified, err := verifier.Verify(ctx, token)
	if err != nil {
		t.Fatal(err)
	}
	if verified.Subject != "servicetoken:payments:ci" || verified.Issuer != testIssuer {
		t.Errorf("sub %q, iss %q", verified.Subject, verified.Issuer)
	}
	if _, err := provider.VerifierContext(ctx, &oidc.Config{ClientID: "https://other.example.com"}).Verify(ctx, token); err == nil {
		t.Error("it is accepted for another audience")
	}
	spoiled := token[:len(token)-4] + "AAAA"
	if _, err := verifier.Verify(ctx, spoiled); err == nil {
		t.Error("it is accepted with another signature")
	}
}

func TestTheDocumentsCanBeCached(t *testing.T) {
	e := newEdge(t, setup{})
	for _, path := range []string{"/.well-known/jwks.json", "/.well-known/oauth-authorization-server"} {
		got := e.ask("GET", path, "")
		if got.status != 200 || got.header.Get("Cache-Control") != "public, max-age=300" {
			t.Errorf("%s: %d, Cache-Control %q", path, got.status, got.header.Get("Cache-Control"))
		}
		if strings.Contains(got.body, `"d"`) {
			t.Errorf("%s shows a private key", path)
		}
	}
	e.signing = nil
	if got := e.ask("GET", "/.well-known/jwks.json", ""); got.status != 503 || got.header.Get("Cache-Control") != "no-store" {
		t.Errorf("without keys: %d, Cache-Control %q, want 503 and no-store", got.status, got.header.Get("Cache-Control"))
	}
	if got := e.ask("POST", "/api/auth/token", "", bearerOf(e.mint("ci").value())...); got.status != 503 {
		t.Errorf("exchanging a key without signing keys: %d, want 503", got.status)
	}
}

func TestAServerThatCannotDecideDenies(t *testing.T) {
	for name, spoil := range map[string]func(*edge){
		"cold":  func(e *edge) { e.gate.set(errCold, false) },
		"stale": func(e *edge) { e.index.SetDeadline(time.Now().Add(-time.Second)) },
	} {
		t.Run(name, func(t *testing.T) {
			e := newEdge(t, setup{})
			m := e.mint("ci")
			token := e.jwtFor(m, "")
			spoil(e)
			for _, value := range []string{m.value(), token} {
				for _, path := range []string{"/forward-auth", "/api/auth/profile"} {
					if got := e.ask("GET", path, "", bearerOf(value)...); got.status != 503 {
						t.Errorf("%s: %d, want 503", path, got.status)
					}
				}
			}
			if got := e.ask("GET", "/.well-known/jwks.json", ""); got.status != 200 {
				t.Errorf("the JWKS: %d, want 200", got.status)
			}
		})
	}
}

func TestACredentialOfAnotherNetworkIsGoodAndMayNotBeUsed(t *testing.T) {
	limited := func(r *credential.Record) { r.CIDRs = []string{"203.0.113.0/24"} }
	e := newEdge(t, setup{})
	m := e.mint("ci", limited)
	if got := e.ask("GET", "/forward-auth", "", append(bearerOf(m.value()), "X-Forwarded-For", "203.0.113.7")...); got.status != 403 {
		t.Errorf("from a peer that is not trusted: %d, want 403", got.status)
	}
	behind := newEdge(t, setup{proxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	m = behind.mint("ci", limited)
	for name, c := range map[string]struct {
		headers []string
		status  int
	}{
		"the client's address":             {[]string{"X-Forwarded-For", "203.0.113.7"}, 200},
		"with a port":                      {[]string{"X-Forwarded-For", "203.0.113.7:1234"}, 200},
		"by RFC 7239":                      {[]string{"Forwarded", `for="203.0.113.7:80";proto=https`}, 200},
		"both of them alike":               {[]string{"X-Forwarded-For", "203.0.113.7", "Forwarded", "for=203.0.113.7"}, 200},
		"both of them, and they differ":    {[]string{"X-Forwarded-For", "203.0.113.7", "Forwarded", "for=198.51.100.1"}, 403},
		"an address the client made up":    {[]string{"X-Forwarded-For", "203.0.113.7, 198.51.100.1"}, 403},
		"in two headers":                   {[]string{"X-Forwarded-For", "203.0.113.7", "X-Forwarded-For", "198.51.100.1"}, 403},
		"through a trusted hop":            {[]string{"X-Forwarded-For", "203.0.113.7, 127.0.0.9"}, 200},
		"nothing that can be read":         {[]string{"X-Forwarded-For", "203.0.113.7, garbage"}, 403},
		"a hop that hides itself":          {[]string{"Forwarded", "for=203.0.113.7, for=_hidden"}, 403},
		"an IPv4 address in IPv6 form":     {[]string{"X-Forwarded-For", "::ffff:203.0.113.7"}, 200},
		"the proxy itself":                 {nil, 403},
		"an empty list":                    {[]string{"X-Forwarded-For", ""}, 403},
		"an IPv6 address with brackets":    {[]string{"Forwarded", `for="[2001:db8::1]"`}, 403},
		"a header by another name ignored": {[]string{"X-Real-IP", "203.0.113.7"}, 403},
	} {
		t.Run(name, func(t *testing.T) {
			if got := behind.ask("GET", "/forward-auth", "", append(bearerOf(m.value()), c.headers...)...); got.status != c.status {
				t.Errorf("%d, want %d", got.status, c.status)
			}
		})
	}
}

func TestRequestIDsAreTakenFromTrustedProxiesOnly(t *testing.T) {
	e := newEdge(t, setup{})
	if got := e.ask("GET", "/forward-auth", "", "X-Request-Id", "mine"); got.header.Get("X-Request-Id") == "mine" {
		t.Error("a peer that is not trusted chose the request's id")
	}
	behind := newEdge(t, setup{proxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}})
	for id, taken := range map[string]bool{
		"mine": true, "3c1b0f0e-7d0f-4d2b-9f5e-0a7a3f1f2b11": true, "": false, "a b": false, "mk123456.abc": false,
		"sk_" + strings.Repeat("0", 64): false, `"}{`: false,
	} {
		got := behind.ask("GET", "/forward-auth", "", "X-Request-Id", id).header.Get("X-Request-Id")
		if (got == id) != taken || got == "" {
			t.Errorf("id %q: answered with %q", id, got)
		}
	}
}

func TestADrainingServerAsksItsClientsToGo(t *testing.T) {
	e := newEdge(t, setup{})
	m := e.mint("ci")
	e.gate.set(nil, true)
	e.client.Transport.(*http.Transport).ForceAttemptHTTP2 = false
	e.client.Transport.(*http.Transport).TLSNextProto = nil
	got := e.ask("GET", "/forward-auth", "", bearerOf(m.value())...)
	if got.status != 200 {
		t.Errorf("%d, want 200", got.status)
	}
	if health := e.ask("GET", "/api/v1/auth/health", ""); health.status != 503 {
		t.Errorf("health: %d, want 503", health.status)
	}
}

func TestEveryRouteNeedsACredentialUnlessItSaysOtherwise(t *testing.T) {
	e := newEdge(t, setup{})
	p := &public{decider: decider{index: e.index, issuer: e.issuer, gate: e.gate, decided: newDecisions(newMetricsOfItsOwn())},
		metrics: newMetricsOfItsOwn(), log: e.log.logger(), now: time.Now, ids: newRequestIDs(), lines: newLineLimit()}
	reached := false
	r := &route{name: "new", path: "/new", serve: func(*exchange) *problem { reached = true; return nil }}
	r.observers = p.metrics.route("new")
	w := &recorder{header: http.Header{}}
	req, err := http.NewRequest("GET", "/new", nil)
	if err != nil {
		t.Fatal(err)
	}
	p.dispatch(w, req, r)
	if reached || w.status != 401 {
		t.Errorf("a handler that says nothing of access was reached without a credential (%d)", w.status)
	}
}

func TestTheChainIsInThisOrder(t *testing.T) {
	var names []string
	for _, c := range chain {
		names = append(names, c.name)
	}
	if diff := cmp.Diff([]string{"headers", "identify", "admit", "method"}, names); diff != "" {
		t.Errorf("the chain differs (-want +got):\n%s", diff)
	}
}

func TestAPanicEndsInAnAnswerThatSaysNothing(t *testing.T) {
	e := newEdge(t, setup{})
	m := newMetricsOfItsOwn()
	p := &public{decider: decider{index: e.index, issuer: e.issuer, gate: e.gate, decided: newDecisions(m)},
		metrics: m, log: e.log.logger(), now: time.Now, ids: newRequestIDs(), lines: newLineLimit()}
	const marker = "MARKER-4711"
	r := &route{name: "bad", access: accessAnyone, serve: func(x *exchange) *problem { panic(errors.New(x.r.Header.Get("X-Api-Key"))) }}
	r.observers = m.route("bad")
	w := &recorder{header: http.Header{}}
	req, err := http.NewRequest("GET", "/bad", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Api-Key", marker)
	p.dispatch(w, req, r)
	if w.status != 500 || strings.Contains(w.body, marker) {
		t.Errorf("%d %s", w.status, w.body)
	}
	if strings.Contains(e.log.String(), marker) || !strings.Contains(e.log.String(), "panic") {
		t.Errorf("the log shows what the request held, or no panic: %s", e.log.String())
	}
}

func TestUseIsCounted(t *testing.T) {
	e := newEdge(t, setup{})
	m := e.mint("ci")
	for range 3 {
		e.ask("GET", "/forward-auth", "", bearerOf(m.value())...)
	}
	used, _ := e.index.UsageSince(0, 0)
	if len(used) != 1 || used[0].Uses != 3 || used[0].UID != "uid-ci" {
		t.Errorf("usage is %+v", used)
	}
	text := scrape(t, e.registry)
	for _, want := range []string{
		`mintmark_server_request_duration_seconds_count{outcome="ok",route="forward-auth"} 3`,
		`mintmark_server_decisions_total{presented="key",reason="` + authn.ReasonAccepted.Code() + `"} 3`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the metrics lack %s", want)
		}
	}
}
