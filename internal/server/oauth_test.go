package server

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
	"github.com/mintmark-dev/mintmark/internal/keyring"
	"github.com/mintmark-dev/mintmark/internal/oauth"
)

// localRevoker revokes on this server alone.
type localRevoker struct {
	denyList
	fault error
}

func (l *localRevoker) revoke(_ context.Context, id, tenant string, until time.Time) error {
	if l.fault != nil {
		return l.fault
	}
	data := map[string]string{}
	if err := enterDenied(data, id, tenant, until, l.now()); err != nil {
		return err
	}
	l.add(data)
	return nil
}

// operators adds a class whose credentials may be given mintmark:*, in two namespaces.
func (e *edge) operators() {
	e.t.Helper()
	e.index.SetNamespace("billing", nil)
	if err := e.index.SetClass("operators", &v1alpha1.CredentialClassSpec{Rules: []v1alpha1.ClassRule{{
		Permissions: []v1alpha1.Permission{"*"}, Admin: true,
	}}}); err != nil {
		e.t.Fatal(err)
	}
}

// operator mints a credential of that class.
func (e *edge) operator(name, namespace string, permissions ...string) *minted {
	return e.mint(name, func(r *credential.Record) {
		r.Class, r.Namespace, r.Permissions, r.Roles = "operators", namespace, permissions, nil
	})
}

// post sends a form.
func (e *edge) post(path string, form url.Values, value string) answer {
	e.t.Helper()
	return e.ask("POST", path, form.Encode(), append(bearerOf(value), "Content-Type", "application/x-www-form-urlencoded")...)
}

func tokenForm(token string, more ...string) url.Values {
	form := url.Values{"token": {token}}
	for i := 0; i+1 < len(more); i += 2 {
		form.Set(more[i], more[i+1])
	}
	return form
}

func (a answer) members(t testing.TB) map[string]any {
	t.Helper()
	var members map[string]any
	if err := json.Unmarshal([]byte(a.body), &members); err != nil {
		t.Fatalf("%d %q: %v", a.status, a.body, err)
	}
	return members
}

func (e *edge) renewed(token, body string) (answer, tokenResponse) {
	e.t.Helper()
	headers := bearerOf(token)
	if body != "" {
		headers = append(headers, "Content-Type", "application/json")
	}
	got := e.ask("POST", "/api/auth/renew", body, headers...)
	var issued tokenResponse
	if got.status == http.StatusOK {
		if err := json.Unmarshal([]byte(got.body), &issued); err != nil {
			e.t.Fatal(err)
		}
	}
	return got, issued
}

func TestAJWTIsRenewedBeforeItEnds(t *testing.T) {
	e := newEdge(t, setup{})
	m := e.mint("ci")
	began := time.Now().Truncate(time.Second)
	e.setClock(began)
	token := e.jwtFor(m, "")
	for elapsed := 10 * time.Minute; elapsed < oauth.MaxRenewal; elapsed += 10 * time.Minute {
		e.setClock(began.Add(elapsed))
		got, next := e.renewed(token, "")
		if got.status != 200 || next.Token == token || next.TokenType != "Bearer" || next.KeyID != "uid-ci" || next.Permissions != "api:read deploy:*" {
			t.Fatalf("after %s: %d %s", elapsed, got.status, got.body)
		}
		if left := oauth.MaxRenewal - elapsed; next.ExpiresIn != int64(min(left, 15*time.Minute).Seconds()) {
			t.Fatalf("after %s: a life of %d seconds", elapsed, next.ExpiresIn)
		}
		token = next.Token
	}
	e.setClock(began.Add(oauth.MaxRenewal))
	if got, _ := e.renewed(token, ""); got.status != 403 {
		t.Errorf("a day after the exchange: %d %s, want 403, for the leeway alone is left", got.status, got.body)
	}
	e.setClock(began.Add(oauth.MaxRenewal + time.Minute))
	if got, _ := e.renewed(token, ""); got.status != 401 {
		t.Errorf("after the end: %d", got.status)
	}
}

func TestOnlyAJWTOfAVersionInUseIsRenewed(t *testing.T) {
	for sentence, test := range map[string]struct {
		change func(e *edge, m *minted)
		status int
	}{
		"in use": {func(*edge, *minted) {}, 200},
		"superseded": {func(e *edge, m *minted) {
			m.record.Epoch++
			m.record.Versions[0].State = v1alpha1.VersionSuperseded
			e.apply(m)
		}, 200},
		"retired: the JWT lives to its end, and no longer": {func(e *edge, m *minted) {
			m.record.Epoch++
			m.record.Versions[0].Number = 2
			m.record.Versions[0].Digest = slices.Repeat([]byte{7}, 32)
			e.apply(m)
		}, 403},
		"revoked": {func(e *edge, m *minted) {
			m.object.Spec.Revoked = &v1alpha1.Revoked{Reason: "leaked"}
			e.apply(m)
		}, 401},
		"deleted": {func(e *edge, m *minted) { e.index.Delete(m.record.UID) }, 401},
		"its version has expired": {func(e *edge, m *minted) {
			m.record.Epoch++
			m.record.Versions[0].Expires = time.Now().Add(-time.Second).Unix()
			e.apply(m)
		}, 401},
	} {
		t.Run(sentence, func(t *testing.T) {
			e := newEdge(t, setup{})
			m := e.mint("ci")
			token := e.jwtFor(m, "")
			test.change(e, m)
			if got, _ := e.renewed(token, ""); got.status != test.status {
				t.Errorf("%d %s, want %d", got.status, got.body, test.status)
			}
		})
	}
	e := newEdge(t, setup{})
	m := e.mint("ci")
	if got, _ := e.renewed(m.value(), ""); got.status != 403 || !strings.Contains(got.body, "/api/auth/token") {
		t.Errorf("a key: %d %s", got.status, got.body)
	}
	if got := e.ask("POST", "/api/auth/renew", ""); got.status != 401 {
		t.Errorf("nothing presented: %d", got.status)
	}
	if got, _ := e.renewed(e.jwtFor(m, ""), `{"ttl":"90m"}`); got.status != 400 {
		t.Errorf("a life out of range: %d", got.status)
	}
}

func TestARenewedJWTHasNoMoreThanTheOldOneAndItsCredential(t *testing.T) {
	e := newEdge(t, setup{})
	m := e.mint("ci", func(r *credential.Record) { r.JWT.Audiences = []string{"https://a.example", "https://b.example"} })
	narrow := e.jwtFor(m, `{"audience":"https://a.example"}`)
	if got, _ := e.renewed(narrow, `{"audience":"https://b.example"}`); got.status != 400 {
		t.Errorf("an audience the old one was not for: %d", got.status)
	}
	m.record.Epoch++
	m.record.Permissions = []string{"api:read", "api:write", "deploy:write"}
	m.object.Spec.Permissions = []v1alpha1.Permission{"api:read", "api:write", "deploy:write"}
	e.apply(m)
	_, next := e.renewed(narrow, "")
	if next.Permissions != "api:read deploy:write" {
		t.Errorf("permissions %q: those that both have", next.Permissions)
	}
	claims, err := e.issuer.Verify(next.Token, time.Now(), oauth.Expect{})
	if err != nil || !slices.Equal(claims.Audience, []string{"https://a.example"}) {
		t.Errorf("%+v %v", claims, err)
	}
}

func TestIntrospectionTellsWhatATokenIs(t *testing.T) {
	e := newEdge(t, setup{})
	e.operators()
	service := e.operator("gateway", "payments", PermissionIntrospect)
	end := time.Now().Add(30 * 24 * time.Hour).Unix()
	m := e.mint("ci", func(r *credential.Record) {
		r.JWT.Audiences, r.Versions[0].Expires = []string{"https://api.example"}, end
	})
	got := e.post("/oauth2/introspect", tokenForm(m.value(), "token_type_hint", "access_token"), service.value())
	want := map[string]any{
		"active": true, "scope": "api:read deploy:*", "permissions": "api:read deploy:*", "roles": "deployer", "client_id": "servicetoken:payments:ci",
		"username": "ci", "token_type": "Bearer", "exp": float64(end), "sub": "servicetoken:payments:ci", "aud": []any{"https://api.example"}, "iss": testIssuer,
		"namespace": "payments", "kind": "ServiceToken", "key_id": "uid-ci", "version": 1.0, "is_admin": false, "method": "key",
	}
	if diff := cmp.Diff(want, got.members(t)); diff != "" || got.status != 200 || got.header.Get("Cache-Control") != "no-store" {
		t.Errorf("%d %v\n%s", got.status, got.header, diff)
	}
	token := e.jwtFor(m, "")
	claims, err := e.issuer.Verify(token, time.Now(), oauth.Expect{})
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(want, map[string]any{
		"method": "jwt", "jti": claims.ID, "exp": float64(claims.Expires.Unix()), "iat": float64(claims.IssuedAt.Unix()), "nbf": float64(claims.NotBefore.Unix()),
	})
	for range 2 { // the second time from memory
		if diff := cmp.Diff(want, e.post("/oauth2/introspect", tokenForm(token), service.value()).members(t)); diff != "" {
			t.Error(diff)
		}
	}
	// A JWT of the service's own does as well, where it is for this issuer.
	if got := e.post("/oauth2/introspect", tokenForm(token), e.jwtFor(service, "")); got.members(t)["active"] != true {
		t.Errorf("asked with a JWT: %d %s", got.status, got.body)
	}
}

// THREATS 20.
func TestIntrospectionTellsNobodyElse(t *testing.T) {
	e := newEdge(t, setup{})
	e.operators()
	own, other := e.mint("ci"), e.operator("ci-billing", "billing", "api:read")
	ownJWT, otherJWT := e.jwtFor(own, ""), e.jwtFor(other, "")
	revoked := e.mint("revoked")
	revokedJWT := e.jwtFor(revoked, "")
	revoked.object.Spec.Revoked = &v1alpha1.Revoked{Reason: "leaked"}
	e.apply(revoked)
	bound := e.mint("bound", func(r *credential.Record) { r.CIDRs = []string{"192.0.2.0/24"} })
	service := e.operator("gateway", "payments", PermissionIntrospect).value()
	everywhere := e.operator("everywhere", "billing", PermissionIntrospect, PermissionIntrospectEverywhere).value()
	foreignAudience := e.jwtFor(e.mint("aud", func(r *credential.Record) {
		r.Class, r.Permissions, r.JWT.Audiences = "operators", []string{PermissionIntrospect}, []string{"https://elsewhere.example"}
	}), "")
	for sentence, test := range map[string]struct {
		caller string
		form   url.Values
		status int
		active bool
	}{
		"its own namespace's key":                         {service, tokenForm(own.value()), 200, true},
		"its own namespace's JWT":                         {service, tokenForm(ownJWT), 200, true},
		"another namespace's key":                         {service, tokenForm(other.value()), 200, false},
		"another namespace's JWT":                         {service, tokenForm(otherJWT), 200, false},
		"another namespace's with the right to any":       {everywhere, tokenForm(ownJWT), 200, true},
		"a revoked key":                                   {service, tokenForm(revoked.value()), 200, false},
		"a revoked key's JWT":                             {service, tokenForm(revokedJWT), 200, false},
		"a key nobody has":                                {service, tokenForm("sk_" + strings.Repeat("0", 64)), 200, false},
		"garbage":                                         {service, tokenForm("x"), 200, false},
		"a JWT with another signature":                    {service, tokenForm(ownJWT[:len(ownJWT)-8] + "AAAAAAAA"), 200, false},
		"a key bound to networks, from who knows where":   {service, tokenForm(bound.value()), 200, false},
		"a key bound to networks, from one of them":       {service, tokenForm(bound.value(), "client_ip", "192.0.2.7"), 200, true},
		"a key bound to networks, from somewhere else":    {service, tokenForm(bound.value(), "client_ip", "198.51.100.1"), 200, false},
		"an address that is none":                         {service, tokenForm(bound.value(), "client_ip", "localhost"), 400, false},
		"no token":                                        {service, url.Values{"token_type_hint": {"access_token"}}, 400, false},
		"two tokens":                                      {service, url.Values{"token": {ownJWT, ownJWT}}, 400, false},
		"a token of a megabyte":                           {service, tokenForm(strings.Repeat("x", 1<<20)), 413, false},
		"nobody":                                          {"", tokenForm(ownJWT), 401, false},
		"a stranger":                                      {"sk_" + strings.Repeat("1", 64), tokenForm(ownJWT), 401, false},
		"a revoked caller":                                {revoked.value(), tokenForm(ownJWT), 401, false},
		"a caller without the permission":                 {own.value(), tokenForm(own.value()), 403, false},
		"a caller's JWT without the permission":           {ownJWT, tokenForm(ownJWT), 403, false},
		"a caller's JWT that is for somebody else":        {foreignAudience, tokenForm(ownJWT), 401, false},
		"a parameter that is not known is let be":         {service, tokenForm(ownJWT, "resource", "x"), 200, true},
		"a hint that is wrong does no harm":               {service, tokenForm(ownJWT, "token_type_hint", "refresh_token"), 200, true},
		"a namespace beside the one with the right to it": {service, tokenForm(everywhere), 200, false},
	} {
		t.Run(sentence, func(t *testing.T) {
			got := e.ask("POST", "/oauth2/introspect", test.form.Encode(), append(bearerOf(test.caller), "Content-Type", "application/x-www-form-urlencoded")...)
			if got.status != test.status {
				t.Fatalf("%d %s, want %d", got.status, got.body, test.status)
			}
			members := got.members(t)
			if active, _ := members["active"].(bool); active != test.active {
				t.Errorf("active %v, want %v", active, test.active)
			}
			if got.status == 200 && !test.active && got.body != `{"active":false}` {
				t.Errorf("of what is not active it tells %s", got.body)
			}
			if got.status == 400 && members["error"] != "invalid_request" {
				t.Errorf("an OAuth client would not understand %s", got.body)
			}
		})
	}
	if got := e.ask("POST", "/oauth2/introspect", `{"token":"x"}`, append(bearerOf(service), "Content-Type", "application/json")...); got.status != 415 {
		t.Errorf("JSON: %d", got.status)
	}
	if got := e.ask("POST", "/oauth2/introspect?token="+ownJWT, "", append(bearerOf(service), "Content-Type", "application/x-www-form-urlencoded")...); got.status != 400 {
		t.Errorf("the token in the query: %d", got.status)
	}
	if got := e.ask("GET", "/oauth2/introspect?token="+ownJWT, "", bearerOf(service)...); got.status != 405 {
		t.Errorf("GET: %d", got.status)
	}
	if strings.Contains(e.log.String(), ownJWT) || strings.Contains(e.log.String(), own.value()) {
		t.Error("a token that was asked about is in the log")
	}
	e.index.SetDeadline(time.Now().Add(-time.Second))
	if got := e.post("/oauth2/introspect", tokenForm(ownJWT), service); got.status != 503 {
		t.Errorf("a server that cannot know: %d %s, want 503", got.status, got.body)
	}
}

func TestAJWTIsRevokedWithAllThatWereRenewedFromIt(t *testing.T) {
	e := newEdge(t, setup{})
	m := e.mint("ci")
	first, bystander := e.jwtFor(m, ""), e.jwtFor(m, "")
	_, second := e.renewed(first, "")
	_, third := e.renewed(second.Token, "")
	good := func(token string) bool {
		return e.ask("GET", "/api/auth/profile", "", bearerOf(token)...).status == 200
	}
	if !good(first) || !good(second.Token) || !good(third.Token) {
		t.Fatal("they are not good to begin with")
	}
	if got := e.post("/oauth2/revoke", tokenForm(second.Token, "token_type_hint", "access_token"), m.value()); got.status != 200 || got.body != "" {
		t.Fatalf("%d %s", got.status, got.body)
	}
	if good(first) || good(second.Token) || good(third.Token) {
		t.Error("some of the chain are still good")
	}
	if got, _ := e.renewed(third.Token, ""); got.status != 401 {
		t.Errorf("one that was revoked is renewed: %d", got.status)
	}
	if !good(bystander) || !good(m.value()) {
		t.Error("the key, or another JWT of it, went too")
	}
	if got := e.post("/oauth2/revoke", tokenForm(second.Token), m.value()); got.status != 200 {
		t.Errorf("revoked again: %d, want 200 (RFC 7009, section 2.2)", got.status)
	}
	// With the token itself for a credential.
	if got := e.post("/oauth2/revoke", tokenForm(bystander), bystander); got.status != 200 || good(bystander) {
		t.Errorf("by itself: %d, still good: %v", got.status, good(bystander))
	}
}

// THREATS 20.
func TestNobodyRevokesWhatIsNotTheirs(t *testing.T) {
	e := newEdge(t, setup{})
	e.operators()
	own, neighbour, other := e.mint("ci"), e.mint("neighbour"), e.operator("ci-billing", "billing", "api:read")
	operator := e.operator("operator", "payments", PermissionRevoke)
	everywhere := e.operator("everywhere", "payments", PermissionRevoke, PermissionRevokeEverywhere)
	for sentence, test := range map[string]struct {
		caller string
		of     *minted
		status int
		dead   bool
	}{
		"by its holder":                               {own.value(), own, 200, true},
		"by a neighbour":                              {neighbour.value(), own, 403, false},
		"by another tenant":                           {other.value(), own, 403, false},
		"by an operator of the namespace":             {operator.value(), own, 200, true},
		"by an operator of another namespace":         {operator.value(), other, 403, false},
		"by one who may everywhere":                   {everywhere.value(), other, 200, true},
		"by nobody":                                   {"", own, 401, false},
		"by a stranger":                               {"sk_" + strings.Repeat("1", 64), own, 401, false},
		"by a JWT of the operator's":                  {e.jwtFor(operator, ""), own, 200, true},
		"by a JWT of the holder's, another than this": {e.jwtFor(own, ""), own, 200, true},
	} {
		t.Run(sentence, func(t *testing.T) {
			token := e.jwtFor(test.of, "")
			got := e.post("/oauth2/revoke", tokenForm(token), test.caller)
			if got.status != test.status {
				t.Errorf("%d %s, want %d", got.status, got.body, test.status)
			}
			if dead := e.ask("GET", "/api/auth/profile", "", bearerOf(token)...).status == 401; dead != test.dead {
				t.Errorf("revoked: %v, want %v", dead, test.dead)
			}
		})
	}
	for sentence, test := range map[string]struct {
		form   url.Values
		status int
		error  string
	}{
		"a key":           {tokenForm(own.value()), 400, "unsupported_token_type"},
		"what is nothing": {tokenForm("x.y.z"), 200, ""},
		"no token":        {url.Values{}, 400, "invalid_request"},
	} {
		got := e.post("/oauth2/revoke", test.form, own.value())
		if got.status != test.status || test.error != "" && got.members(t)["error"] != test.error {
			t.Errorf("%s: %d %s", sentence, got.status, got.body)
		}
	}
	if e.ask("GET", "/api/auth/profile", "", bearerOf(own.value())...).status != 200 {
		t.Error("the key was revoked")
	}
	token := e.jwtFor(own, "")
	e.revoker.fault = errors.New("the API server is away")
	got := e.post("/oauth2/revoke", tokenForm(token), own.value())
	if got.status != 503 || got.header.Get("Retry-After") == "" || strings.Contains(got.body, "API server") {
		t.Errorf("while nothing can be written: %d %s %v, want 503", got.status, got.body, got.header)
	}
	if e.ask("GET", "/api/auth/profile", "", bearerOf(token)...).status != 200 {
		t.Error("said 503, and revoked it")
	}
}

func TestTheDenyListForgetsWhatIsOverAndNothingElse(t *testing.T) {
	at := time.Unix(1_800_000_000, 0)
	list := &denyList{now: func() time.Time { return at }}
	if list.has("a") {
		t.Error("an empty list has an entry")
	}
	list.add(map[string]string{"a": "1800000100", "b": "1800000200", "over": "1800000000", "unreadable": "soon"})
	list.add(nil) // the object was deleted, or restored from before
	if !list.has("a") || !list.has("b") || !list.has("unreadable") || list.has("over") {
		t.Errorf("knows %v", *list.known.Load())
	}
	list.add(map[string]string{"b": "1800000101"})
	at = at.Add(150 * time.Second)
	list.add(nil)
	if list.has("a") || !list.has("b") {
		t.Errorf("later it knows %v: the later end counts", *list.known.Load())
	}
	at = at.Add(time.Hour)
	list.add(nil)
	if len(*list.known.Load()) != 0 {
		t.Errorf("in the end it knows %v", *list.known.Load())
	}
}

func TestTheMetadataNameWhatIsThere(t *testing.T) {
	e := newEdge(t, setup{})
	e.others = []*keyring.SigningKeys{ringKey(t, keyring.EdDSA), ringKey(t, keyring.RS256)}
	for _, path := range []string{oauth.MetadataPath, oauth.DiscoveryPath} {
		m := e.ask("GET", path, "").members(t)
		if m["introspection_endpoint"] != testIssuer+"/oauth2/introspect" || m["revocation_endpoint"] != testIssuer+"/oauth2/revoke" || m["issuer"] != testIssuer {
			t.Errorf("%s: %v", path, m)
		}
		if diff := cmp.Diff([]any{"ES256", "EdDSA", "RS256"}, m["id_token_signing_alg_values_supported"]); diff != "" {
			t.Error(diff)
		}
		// Each of them exists.
		for name, value := range m {
			text, _ := value.(string)
			if !strings.HasSuffix(name, "_endpoint") && name != "jwks_uri" {
				continue
			}
			if got := e.ask("POST", strings.TrimPrefix(text, testIssuer), ""); got.status == 404 {
				t.Errorf("%s is %s, which is not there", name, text)
			}
		}
	}
	set := e.ask("GET", oauth.JWKSPath, "").members(t)
	if keys, _ := set["keys"].([]any); len(keys) != 3 {
		t.Errorf("%d keys are published, want one of each algorithm", len(keys))
	}
}

func ringKey(t testing.TB, algorithm string) *keyring.SigningKeys {
	t.Helper()
	key, err := keyring.NewSigningKey(rand.Reader, algorithm, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return &keyring.SigningKeys{Current: key}
}

// HS256, end to end: the credential's record has it, and nobody but the servers can tell
// anything from the token.
func TestAnIsolatedJWTIsForTheServersAlone(t *testing.T) {
	e := newEdge(t, setup{})
	m := e.mint("ci", func(r *credential.Record) { r.JWT.Algorithm = oauth.HS256 })
	token := e.jwtFor(m, "")
	header, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[0])
	if err != nil || string(header) != `{"alg":"HS256","kid":"hs256:p1","typ":"at+jwt"}` {
		t.Errorf("header %s %v", header, err)
	}
	good := func() int {
		return e.ask("GET", "/forward-auth?permission=deploy:write", "", bearerOf(token)...).status
	}
	if good() != 200 {
		t.Errorf("%d", good())
	}
	var set jose.JSONWebKeySet
	if err := json.Unmarshal([]byte(e.ask("GET", oauth.JWKSPath, "").body), &set); err != nil || len(set.Key("hs256:p1")) != 0 {
		t.Errorf("published: %v %v", set, err)
	}
	if _, err := jwt.Parse(token, func(*jwt.Token) (any, error) { return set.Keys[0].Key, nil }); err == nil {
		t.Error("verified with a published key")
	}
	if got, next := e.renewed(token, ""); got.status != 200 || !strings.HasPrefix(next.Token, strings.Split(token, ".")[0]) {
		t.Errorf("renewed: %d %s", got.status, got.body)
	}
	// Its secret is good for it alone.
	other := e.mint("other")
	forged := strings.Split(token, ".")
	payload, _ := base64.RawURLEncoding.DecodeString(forged[1])
	forged[1] = base64.RawURLEncoding.EncodeToString([]byte(strings.ReplaceAll(string(payload), "uid-ci", other.record.UID)))
	signature, err := jwt.SigningMethodHS256.Sign(forged[0]+"."+forged[1], e.peppers[0].JWTSecret(other.record.UID, 1))
	if err != nil {
		t.Fatal(err)
	}
	forged[2] = base64.RawURLEncoding.EncodeToString(signature)
	if got := e.ask("GET", "/forward-auth", "", bearerOf(strings.Join(forged, "."))...); got.status != 401 {
		t.Errorf("signed with the right secret of a credential that is not signed for so: %d, want 401", got.status)
	}
	m.object.Spec.Revoked = &v1alpha1.Revoked{Versions: []int64{1}, Reason: "leaked"}
	e.apply(m)
	if good() != 401 {
		t.Errorf("its version revoked: %d", good())
	}
}

// I8: keys of every algorithm rotate while tokens are issued, and whoever keeps the JWKS as
// long as it may be kept verifies each of them from issue to end.
func TestEveryLiveJWTVerifiesWhileKeysRotate(t *testing.T) {
	e := newEdge(t, setup{discard: true})
	policy := keyring.Policy{RotateEvery: 2 * time.Hour, PublishBefore: time.Hour, KeepAfter: 90 * time.Minute}
	began := time.Now().Truncate(time.Second)
	at := began
	ring := keyring.Ring{}
	var guard sync.Mutex
	credentials := map[string]*minted{}
	for _, algorithm := range keyring.Algorithms() {
		credentials[algorithm] = e.mint("ci-"+strings.ToLower(algorithm), func(r *credential.Record) { r.JWT.Algorithm, r.JWT.TTLSeconds = algorithm, 3600 })
	}
	// RSA keys take long to make: a handful goes around, none twice at a time.
	spare := map[string][]*keyring.SigningKey{}
	for range 4 {
		spare[keyring.RS256] = append(spare[keyring.RS256], ringKey(t, keyring.RS256).Current)
	}
	fresh := func(algorithm string) *keyring.SigningKey {
		if keys := spare[algorithm]; len(keys) > 0 {
			spare[algorithm] = append(keys[1:], keys[0])
			reused := *keys[0]
			reused.Published, reused.Activated, reused.Retired = time.Time{}, time.Time{}, time.Time{}
			return &reused
		}
		return ringKey(t, algorithm).Current
	}
	turn := func() {
		guard.Lock()
		defer guard.Unlock()
		for _, algorithm := range keyring.Algorithms() {
			p := policy
			p.Beside = algorithm != keyring.DefaultAlgorithm
			if ring[algorithm] == nil {
				ring[algorithm] = new(keyring.SigningKeys)
			}
			if ring[algorithm].ShouldPrepare(at, p) {
				ring[algorithm].Prepare(fresh(algorithm), at)
			}
			if ring[algorithm].ShouldActivate(at, p) {
				ring[algorithm].Activate(at)
			}
			ring[algorithm].Drop(at, p)
		}
		// What servers hold does not change under them.
		data, err := ring.Encode()
		if err != nil {
			t.Fatal(err)
		}
		decoded, err := keyring.DecodeSigningKeys(data)
		if err != nil {
			t.Fatal(err)
		}
		e.others, e.signing = []*keyring.SigningKeys{decoded[keyring.EdDSA], decoded[keyring.RS256]}, decoded[keyring.ES256]
	}
	type live struct {
		token string
		ends  time.Time
	}
	var tokens []live
	var cached jose.JSONWebKeySet
	var fetched time.Time
	seen := map[string]map[string]bool{}
	for ; at.Before(began.Add(12 * time.Hour)); at = at.Add(time.Minute) {
		e.setClock(at)
		turn()
		if at.Sub(fetched) >= oauth.JWKSMaxAge {
			cached, fetched = jose.JSONWebKeySet{}, at
			if err := json.Unmarshal([]byte(e.ask("GET", oauth.JWKSPath, "").body), &cached); err != nil {
				t.Fatal(err)
			}
		}
		if at.Sub(began)%(10*time.Minute) == 0 {
			for algorithm, m := range credentials {
				token := e.jwtFor(m, "")
				parsed, _ := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES256, jose.EdDSA, jose.RS256})
				signed := parsed.Signatures[0].Header
				if seen[algorithm] == nil {
					seen[algorithm] = map[string]bool{}
				}
				seen[algorithm][signed.Algorithm+" "+signed.KeyID] = true
				if late := at.Sub(began) > policy.PublishBefore; late && signed.Algorithm != algorithm {
					t.Fatalf("%s after the start a token for %s is signed with %s", at.Sub(began), algorithm, signed.Algorithm)
				}
				tokens = append(tokens, live{token, at.Add(time.Hour)})
			}
		}
		tokens = slices.DeleteFunc(tokens, func(l live) bool { return !l.ends.After(at) })
		for _, l := range tokens {
			parsed, err := jose.ParseSignedCompact(l.token, []jose.SignatureAlgorithm{jose.ES256, jose.EdDSA, jose.RS256})
			if err != nil {
				t.Fatal(err)
			}
			kid := parsed.Signatures[0].Header.KeyID
			if len(cached.Key(kid)) != 1 {
				t.Fatalf("%s after the start, with a JWKS of %s, a live token's key %s is missing", at.Sub(began), fetched.Sub(began), kid)
			}
			if at.Sub(began)%(15*time.Minute) == 0 {
				if _, err := parsed.Verify(cached); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for algorithm, keys := range seen {
		if len(keys) < 5 {
			t.Errorf("%s: in twelve hours only the keys %v signed", algorithm, slices.Sorted(maps.Keys(keys)))
		}
	}
}
