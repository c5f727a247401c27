package server

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"encoding/json"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
	"github.com/mintmark-dev/mintmark/internal/federation"
	"github.com/mintmark-dev/mintmark/internal/oauth"
)

// idp is an issuer of somebody else's, over real HTTPS, at the host it has in life. The
// tests' resolver finds it on this host.
type idp struct {
	t      testing.TB
	iss    string
	bundle []byte
	server *httptest.Server

	mu     sync.Mutex
	kid    string
	key    *rsa.PrivateKey
	answer http.HandlerFunc // instead of the usual one
}

var idpKeys = sync.OnceValue(func() (keys [2]*rsa.PrivateKey) {
	for i := range keys {
		var err error
		if keys[i], err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
			panic(err)
		}
	}
	return keys
})

// newIDP publishes its keys at keysPath, and says so in a discovery document.
func newIDP(t testing.TB, host, keysPath string) *idp {
	t.Helper()
	i := &idp{t: t, kid: "first", key: idpKeys()[0]}
	cert, key, _ := certificate(t, host)
	i.bundle = cert
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	i.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i.mu.Lock()
		answer, kid, key := i.answer, i.kid, i.key
		i.mu.Unlock()
		switch {
		case answer != nil:
			answer(w, r)
		case r.URL.Path == federation.DiscoveryPath:
			_ = json.NewEncoder(w).Encode(map[string]any{"issuer": i.iss, "jwks_uri": i.iss + keysPath, "subject_types_supported": []string{"public"}})
		case r.URL.Path == keysPath:
			_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: kid, Algorithm: "RS256", Use: "sig"}}})
		default:
			http.NotFound(w, r)
		}
	}))
	i.server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	i.server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	i.server.StartTLS()
	t.Cleanup(func() {
		i.server.CloseClientConnections()
		i.server.Close()
	})
	i.iss = "https://" + host + ":" + strconv.Itoa(i.server.Listener.Addr().(*net.TCPAddr).Port)
	return i
}

func (i *idp) set(change func(*idp)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	change(i)
}

// token signs claims, with iss and times added where they are not given.
func (i *idp) token(claims map[string]any) string {
	i.t.Helper()
	now := time.Now().Unix()
	all := jwt.MapClaims{"iss": i.iss, "iat": now, "nbf": now, "exp": now + 600}
	maps.Copy(all, claims)
	i.mu.Lock()
	defer i.mu.Unlock()
	unsigned := jwt.NewWithClaims(jwt.SigningMethodRS256, all)
	unsigned.Header["kid"], unsigned.Header["x5t"] = i.kid, "dGh1bWJwcmludA"
	token, err := unsigned.SignedString(i.key)
	if err != nil {
		i.t.Fatal(err)
	}
	return token
}

// newFederatedEdge is an edge that can trust issuers on this host.
func newFederatedEdge(t testing.TB, s setup) *edge {
	t.Helper()
	s.issuers = &federation.Config{
		OwnIssuer: testIssuer, Networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
		Resolve: func(context.Context, string) ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
		},
	}
	e := newEdge(t, s)
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		e.foreign.Run(ctx)
	}()
	t.Cleanup(func() {
		stop()
		<-ended
	})
	return e
}

func (e *edge) trust(name string, spec v1alpha1.TrustedIssuerSpec) {
	e.t.Helper()
	if err := e.foreign.federation.Set(name, "uid-"+name, &spec); err != nil {
		e.t.Fatal(err)
	}
}

// exchange asks for a token of ours.
func (e *edge) exchange(subjectToken string, params ...string) answer {
	e.t.Helper()
	form := url.Values{"grant_type": {grantTokenExchange}, "subject_token": {subjectToken}, "subject_token_type": {tokenTypeJWT}}
	for i := 0; i+1 < len(params); i += 2 {
		form.Add(params[i], params[i+1])
	}
	return e.ask("POST", tokenPath, form.Encode(), "Content-Type", "application/x-www-form-urlencoded")
}

func (e *edge) exchanged(subjectToken string, params ...string) exchangeResponse {
	e.t.Helper()
	got := e.exchange(subjectToken, params...)
	var issued exchangeResponse
	if err := json.Unmarshal([]byte(got.body), &issued); err != nil || got.status != http.StatusOK {
		e.t.Fatalf("exchanging: %d %s", got.status, got.body)
	}
	return issued
}

// githubClaims are those of a workflow run as GitHub Actions has them.
func githubClaims(change map[string]any) map[string]any {
	claims := map[string]any{
		"jti": "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee", "sub": "repo:octo-org/octo-repo:ref:refs/heads/main", "aud": testIssuer, "ref": "refs/heads/main",
		"sha": "6dcb09b5b57875f334f61aebed695e2e4193db5e", "repository": "octo-org/octo-repo", "repository_owner": "octo-org", "repository_owner_id": "65",
		"run_id": "9301230123", "run_number": "10", "run_attempt": "2", "repository_visibility": "private", "repository_id": "74", "actor_id": "12",
		"actor": "octocat", "workflow": "deploy", "head_ref": "", "base_ref": "", "event_name": "push", "ref_protected": "true", "ref_type": "branch",
		"workflow_ref":     "octo-org/octo-repo/.github/workflows/deploy.yaml@refs/heads/main",
		"job_workflow_ref": "octo-org/octo-repo/.github/workflows/deploy.yaml@refs/heads/main", "runner_environment": "github-hosted",
	}
	maps.Copy(claims, change)
	return claims
}

// githubSpec trusts one repository's main branch.
func githubSpec(i *idp) v1alpha1.TrustedIssuerSpec {
	return v1alpha1.TrustedIssuerSpec{
		Issuer: i.iss, CABundle: i.bundle, Audiences: []string{testIssuer}, MaxTTL: "10m", IssuedAudiences: []string{testIssuer, "https://api.example.com"},
		Validations: []v1alpha1.ClaimValidation{
			{Expression: "claims.repository_id == '74' && claims.repository_owner_id == '65'", Message: "only octo-org/octo-repo"},
			{Expression: "claims.ref == 'refs/heads/main' && claims.event_name == 'push'", Message: "only pushes to main"},
		},
		Mapping: v1alpha1.ClaimMapping{
			Subject: "claims.repository + ':' + claims.workflow", Roles: "['deployer', 'root']", Permissions: "['api:read', 'secret:read']",
			Attributes: "{'repository': claims.repository, 'run': claims.run_id}",
		},
		Ceiling: v1alpha1.IssuerCeiling{Permissions: []v1alpha1.Permission{"api:*", "deploy:*"}, Roles: []string{"deployer"}},
	}
}

func TestACIJobNeedsNoKey(t *testing.T) {
	github := newIDP(t, "token.actions.example.com", "/.well-known/jwks")
	e := newFederatedEdge(t, setup{})
	e.index.SetRole("deployer", []string{"deploy:write", "cluster:admin"})
	e.trust("github", githubSpec(github))
	issued := e.exchanged(github.token(githubClaims(nil)))
	if issued.IssuedTokenType != tokenTypeAccess || issued.TokenType != "Bearer" || issued.ExpiresIn < 595 || issued.ExpiresIn > 600 || issued.Scope != "api:read deploy:write" {
		t.Errorf("the answer is %+v", issued)
	}
	claims, err := e.issuer.Verify(issued.AccessToken, time.Now(), oauth.Expect{Audience: "https://api.example.com"})
	if err != nil {
		t.Fatal(err)
	}
	if claims.Subject != "issuer:github:octo-org/octo-repo:deploy" || claims.ClientID != claims.Subject || claims.Admin || claims.CredentialUID != "uid-github" {
		t.Errorf("the claims are %+v", claims)
	}

	bearer := bearerOf(issued.AccessToken)
	got := e.ask("GET", "/forward-auth?permission=deploy:write&audience=https://api.example.com", "", bearer...)
	want := map[string]string{
		"X-User-Id": "issuer:github:octo-org/octo-repo:deploy", "X-User-Roles": "deployer", "X-User-Permissions": "api:read deploy:write", "X-User-Email": "",
	}
	for name, value := range want {
		if got.status != http.StatusOK || got.header.Get(name) != value {
			t.Errorf("%d, %s is %q, want %q", got.status, name, got.header.Get(name), value)
		}
	}
	for permission, status := range map[string]int{"api:read": 200, "api:write": 403, "secret:read": 403, "cluster:admin": 403, "deploy:read": 403} {
		if got := e.ask("GET", "/forward-auth?permission="+permission, "", bearer...); got.status != status {
			t.Errorf("%s: %d, want %d", permission, got.status, status)
		}
	}
	if got := e.ask("GET", "/api/auth/profile", "", bearer...); got.status != http.StatusOK || !strings.Contains(got.body, `"subject":"issuer:github:octo-org/octo-repo:deploy"`) {
		t.Errorf("the profile is %d %s", got.status, got.body)
	}
	if got := e.ask("POST", "/api/auth/token", "", bearer...); got.status != http.StatusForbidden {
		t.Errorf("exchanged again: %d", got.status)
	}

	// As roles, ceiling and trust are when the token is used, not when it was issued.
	allowed := func(permission string) int {
		return e.ask("GET", "/forward-auth?permission="+permission, "", bearer...).status
	}
	e.index.SetRole("deployer", []string{"deploy:read", "api:write"})
	if got := []int{allowed("deploy:write"), allowed("deploy:read"), allowed("api:write")}; !cmp.Equal(got, []int{403, 403, 403}) {
		t.Errorf("with another role: %v", got)
	}
	e.index.SetRole("deployer", []string{"deploy:*"})
	if got := allowed("deploy:write"); got != http.StatusOK {
		t.Errorf("with the role back: %d", got)
	}
	lower := githubSpec(github)
	lower.Ceiling.Permissions = []v1alpha1.Permission{"deploy:*"}
	e.trust("github", lower)
	if got := []int{allowed("deploy:write"), allowed("api:read")}; !cmp.Equal(got, []int{200, 403}) {
		t.Errorf("under a lower ceiling: %v", got)
	}
	lower.Ceiling.Roles = nil
	e.trust("github", lower)
	if got := e.ask("GET", "/forward-auth", "", bearer...); got.status != http.StatusOK || got.header.Get("X-User-Roles") != "" || got.header.Get("X-User-Permissions") != "" {
		t.Errorf("without the role: %d %v", got.status, got.header)
	}
	stricter := githubSpec(github)
	stricter.Validations = append(stricter.Validations, v1alpha1.ClaimValidation{Expression: "claims.runner_environment == 'self-hosted'"})
	e.trust("github", stricter)
	if got := allowed("deploy:write"); got != http.StatusUnauthorized {
		t.Errorf("under another validation: %d", got)
	}
	e.trust("github", githubSpec(github))
	if got := allowed("deploy:write"); got != http.StatusOK {
		t.Errorf("with everything as it was: %d", got)
	}
	e.foreign.federation.Delete("github")
	if got := allowed("deploy:write"); got != http.StatusUnauthorized {
		t.Errorf("with the TrustedIssuer gone: %d", got)
	}
}

func TestATokenThatIsNotForUsIsRefusedInOneAnswer(t *testing.T) {
	github := newIDP(t, "token.actions.example.com", "/.well-known/jwks")
	e := newFederatedEdge(t, setup{})
	spec := githubSpec(github)
	spec.DirectUse = true
	e.trust("github", spec)
	now := time.Now().Unix()
	good := github.token(githubClaims(nil))
	var first string
	for name, c := range map[string]struct{ token, logged string }{
		"another repository":    {github.token(githubClaims(map[string]any{"repository_id": "75", "repository": "octo-org/octo-repo"})), "only octo-org/octo-repo"},
		"another branch":        {github.token(githubClaims(map[string]any{"ref": "refs/heads/evil"})), "only pushes to main"},
		"a pull request":        {github.token(githubClaims(map[string]any{"event_name": "pull_request"})), "only pushes to main"},
		"a claim of wrong type": {github.token(githubClaims(map[string]any{"workflow": 7})), "mapping.subject"},
		"another audience":      {github.token(githubClaims(map[string]any{"aud": "https://github.com/octo-org"})), ""},
		"the API server's":      {github.token(githubClaims(map[string]any{"aud": []string{"https://kubernetes.default.svc.cluster.local"}})), ""},
		"expired":               {github.token(githubClaims(map[string]any{"exp": now - 60})), ""},
		"another issuer":        {github.token(githubClaims(map[string]any{"iss": "https://evil.example.com"})), ""},
		"a broken signature":    {good[:len(good)-6] + "AAAAAA", ""},
		"garbage":               {"garbage", ""},
		"garbage in three":      {"a.b.c", ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := e.exchange(c.token)
			if got.status != http.StatusBadRequest || got.header.Get("Content-Type") != "application/json" || got.header.Get("Cache-Control") != "no-store" {
				t.Errorf("%d %v", got.status, got.header)
			}
			if first == "" {
				first = got.body
			}
			if got.body != first || !strings.Contains(got.body, `"error":"invalid_request"`) {
				t.Errorf("the answer is %s, and was %s", got.body, first)
			}
			if strings.Count(c.token, ".") == 2 {
				if direct, wrong := e.ask("GET", "/forward-auth", "", bearerOf(c.token)...), e.ask("GET", "/forward-auth", "", bearerOf("x.y.z")...); direct.status != 401 || direct.body != wrong.body {
					t.Errorf("used as it is: %d %s", direct.status, direct.body)
				}
			}
			if log := e.log.String(); c.logged != "" && !strings.Contains(log, c.logged) {
				t.Errorf("the log does not say %q:\n%s", c.logged, log)
			}
		})
	}
	log := e.log.String()
	for _, secret := range []string{good, "refs/heads/evil", strings.Split(good, ".")[2]} {
		if strings.Contains(log, secret) {
			t.Errorf("the log repeats %q", secret)
		}
	}
	if text := scrape(t, e.registry); !strings.Contains(text, `mintmark_issuer_tokens_total{result="Validation",use="exchange"}`) ||
		!strings.Contains(text, `mintmark_issuer_keys_age_seconds{issuer="github"}`) || !strings.Contains(text, `mintmark_issuer_refresh_failures_total{issuer="github"} 0`) {
		t.Errorf("the metrics lack something:\n%s", text)
	}
}

func TestWhatAnExchangeMayAskFor(t *testing.T) {
	github := newIDP(t, "token.actions.example.com", "/.well-known/jwks")
	e := newFederatedEdge(t, setup{})
	e.index.SetRole("deployer", []string{"deploy:write"})
	e.trust("github", githubSpec(github))
	token := github.token(githubClaims(nil))
	short := github.token(githubClaims(map[string]any{"exp": time.Now().Unix() + 90}))
	for name, c := range map[string]struct {
		subject string
		params  []string
		code    string // of the error; empty: issued
		scope   string
		ttl     int64 // at most, and nearly
	}{
		"nothing":                              {token, nil, "", "api:read deploy:write", 600},
		"less":                                 {token, []string{"scope", "api:read"}, "", "api:read", 600},
		"all of it":                            {token, []string{"scope", "deploy:write  api:read"}, "", "api:read deploy:write", 600},
		"more":                                 {token, []string{"scope", "api:read api:write"}, "invalid_scope", "", 0},
		"everything":                           {token, []string{"scope", "*"}, "invalid_scope", "", 0},
		"a wildcard over what it has":          {token, []string{"scope", "deploy:*"}, "invalid_scope", "", 0},
		"an audience":                          {token, []string{"audience", "https://api.example.com"}, "", "api:read deploy:write", 600},
		"a resource":                           {token, []string{"resource", "https://api.example.com"}, "", "api:read deploy:write", 600},
		"an audience nobody allowed":           {token, []string{"audience", "https://other.example.com"}, "invalid_target", "", 0},
		"a resource that is none":              {token, []string{"resource", "api"}, "invalid_target", "", 0},
		"a resource with a fragment":           {token, []string{"resource", "https://api.example.com#x"}, "invalid_target", "", 0},
		"a JWT":                                {token, []string{"requested_token_type", tokenTypeJWT}, "", "api:read deploy:write", 600},
		"a refresh token":                      {token, []string{"requested_token_type", "urn:ietf:params:oauth:token-type:refresh_token"}, "invalid_request", "", 0},
		"a shorter life":                       {token, []string{"ttl", "2m"}, "", "api:read deploy:write", 120},
		"a longer life than it may have":       {token, []string{"ttl", "1h"}, "", "api:read deploy:write", 600},
		"a life that is none":                  {token, []string{"ttl", "soon"}, "invalid_request", "", 0},
		"a life out of range":                  {token, []string{"ttl", "5"}, "invalid_request", "", 0},
		"with a token that ends soon":          {short, nil, "", "api:read deploy:write", 90},
		"for an actor":                         {token, []string{"actor_token", token}, "invalid_request", "", 0},
		"with two subjects":                    {token, []string{"subject_token", token}, "invalid_request", "", 0},
		"with two scopes":                      {token, []string{"scope", "api:read", "scope", "deploy:write"}, "invalid_request", "", 0},
		"without a subject":                    {"", nil, "invalid_request", "", 0},
		"with a parameter nobody knows":        {token, []string{"client_id", "ci", "foo", "bar"}, "", "api:read deploy:write", 600},
		"with parameters that have no value":   {token, []string{"scope", "", "audience", "", "requested_token_type", ""}, "", "api:read deploy:write", 600},
		"more audiences than there can be":     {token, strings.Split(strings.Repeat("audience,a,", 20)+"audience,a", ","), "invalid_target", "", 0},
		"an audience that is far too long":     {token, []string{"audience", strings.Repeat("a", 600)}, "invalid_target", "", 0},
		"a scope that is far too long":         {token, []string{"scope", strings.Repeat("a ", 300)}, "invalid_scope", "", 0},
		"with something larger than there is":  {token, []string{"foo", strings.Repeat("x", maxForm)}, "invalid_request", "", 0},
		"with a token that is larger than any": {strings.Repeat("x", federation.MaxTokenLen) + ".y.z", nil, "invalid_request", "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			got := e.exchange(c.subject, c.params...)
			var answered struct {
				exchangeResponse
				Error string `json:"error"`
			}
			if err := json.Unmarshal([]byte(got.body), &answered); err != nil {
				t.Fatalf("%v: %s", err, got.body)
			}
			if got.header.Get("Cache-Control") != "no-store" || answered.Error != c.code {
				t.Fatalf("%d %s", got.status, got.body)
			}
			if c.code == "" && (answered.Scope != c.scope || answered.ExpiresIn > c.ttl || answered.ExpiresIn < c.ttl-5) {
				t.Errorf("the answer is %s", got.body)
			}
		})
	}
	form := "application/x-www-form-urlencoded"
	for name, c := range map[string]struct{ body, contentType, code string }{
		"another grant":     {"grant_type=client_credentials", form, "unsupported_grant_type"},
		"no grant":          {"subject_token=x", form, "invalid_request"},
		"no type":           {"grant_type=" + grantTokenExchange + "&subject_token=x", form, "invalid_request"},
		"another type":      {"grant_type=" + grantTokenExchange + "&subject_token=x&subject_token_type=urn:ietf:params:oauth:token-type:saml2", form, "invalid_request"},
		"JSON":              {`{"grant_type":"x"}`, "application/json", "invalid_request"},
		"a form that isn't": {"grant_type=%zz", form, "invalid_request"},
	} {
		if got := e.ask("POST", tokenPath, c.body, "Content-Type", c.contentType); got.status != 400 || !strings.Contains(got.body, `"error":"`+c.code+`"`) {
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
	}
	if got := e.ask("GET", tokenPath+"?grant_type="+grantTokenExchange, ""); got.status != http.StatusMethodNotAllowed {
		t.Errorf("GET: %d", got.status)
	}

	// Who asked for less has less, and no role whose permissions they did not ask for.
	less := e.exchanged(token, "scope", "deploy:write")
	if got := e.ask("GET", "/forward-auth?permission=deploy:write", "", bearerOf(less.AccessToken)...); got.status != 200 || got.header.Get("X-User-Roles") != "" {
		t.Errorf("what was asked for: %d, roles %q", got.status, got.header.Get("X-User-Roles"))
	}
	if got := e.ask("GET", "/forward-auth?permission=api:read", "", bearerOf(less.AccessToken)...); got.status != http.StatusForbidden {
		t.Errorf("what was not asked for: %d", got.status)
	}
	e.index.DeleteRole("deployer")
	if got := e.ask("GET", "/forward-auth?permission=deploy:write", "", bearerOf(less.AccessToken)...); got.status != http.StatusForbidden {
		t.Errorf("with the role gone: %d", got.status)
	}
	e.gate.set(errCold, false)
	if got := e.exchange(token); got.status != http.StatusServiceUnavailable || got.header.Get("Retry-After") == "" || !strings.Contains(got.body, "temporarily_unavailable") {
		t.Errorf("cold: %d %s", got.status, got.body)
	}
}

func TestWithoutTrustedIssuersNothingIsExchanged(t *testing.T) {
	e := newEdge(t, setup{})
	github := newIDP(t, "token.actions.example.com", "/.well-known/jwks")
	if got := e.exchange(github.token(githubClaims(nil))); got.status != http.StatusBadRequest {
		t.Errorf("%d %s", got.status, got.body)
	}
	m := e.mint("ci")
	if got := e.exchange(e.jwtFor(m, "")); got.status != http.StatusBadRequest {
		t.Errorf("one of ours: %d %s", got.status, got.body)
	}
	if got := e.ask("GET", "/forward-auth", "", "Cf-Access-Jwt-Assertion", e.jwtFor(m, "")); got.status != http.StatusUnauthorized {
		t.Errorf("one of ours as an assertion: %d", got.status)
	}
}

// accessSpec trusts a team of Cloudflare Access, whose tokens are taken as they are.
func accessSpec(i *idp) v1alpha1.TrustedIssuerSpec {
	return v1alpha1.TrustedIssuerSpec{
		Issuer: i.iss, CABundle: i.bundle, JWKSURL: i.iss + "/cdn-cgi/access/certs", DirectUse: true,
		Audiences:   []string{"32eafc7626e737902ca2a3e7c2b8b0a4"},
		Validations: []v1alpha1.ClaimValidation{{Expression: "claims.type == 'app' && claims.email.endsWith('@example.com')"}},
		Mapping: v1alpha1.ClaimMapping{
			Subject: "claims.sub", Email: "claims.email", Roles: "'payments' in claims.custom.groups ? ['payer'] : []", Attributes: "{'country': claims.country}",
		},
		Ceiling: v1alpha1.IssuerCeiling{Permissions: []v1alpha1.Permission{"invoice:*"}, Roles: []string{"payer"}},
	}
}

func accessClaims(change map[string]any) map[string]any {
	claims := map[string]any{
		"aud": []string{"32eafc7626e737902ca2a3e7c2b8b0a4"}, "email": "ann@example.com", "type": "app", "identity_nonce": "6ei69kawdKzMIAPF",
		"sub": "7335d417-61da-459d-899c-0a01c76a2f94", "country": "DE", "custom": map[string]any{"groups": []string{"payments", "people"}},
	}
	maps.Copy(claims, change)
	return claims
}

func TestCloudflareAccessVouchesForAPerson(t *testing.T) {
	team := newIDP(t, "team.cloudflareaccess.example.com", "/cdn-cgi/access/certs")
	e := newFederatedEdge(t, setup{proxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}})
	e.index.SetRole("payer", []string{"invoice:pay"})
	e.trust("access", accessSpec(team))
	token := team.token(accessClaims(nil))
	for name, headers := range map[string][]string{"as a bearer": bearerOf(token), "as an assertion": {"Cf-Access-Jwt-Assertion", token}} {
		got := e.ask("GET", "/forward-auth?permission=invoice:pay", "", headers...)
		want := map[string]string{
			"X-User-Id": "issuer:access:7335d417-61da-459d-899c-0a01c76a2f94", "X-User-Email": "ann@example.com", "X-User-Roles": "payer", "X-User-Permissions": "invoice:pay",
		}
		for header, value := range want {
			if got.status != http.StatusOK || got.header.Get(header) != value {
				t.Errorf("%s: %d, %s is %q, want %q", name, got.status, header, got.header.Get(header), value)
			}
		}
		if got := e.ask("GET", "/forward-auth?permission=invoice:read", "", headers...); got.status != http.StatusForbidden {
			t.Errorf("%s, what the role does not hold: %d", name, got.status)
		}
		if got := e.ask("GET", "/forward-auth?audience=https://api.example.com", "", headers...); got.status != http.StatusUnauthorized {
			t.Errorf("%s, for another audience: %d", name, got.status)
		}
	}
	// The exchange keeps the address.
	issued := e.exchanged(token)
	if got := e.ask("GET", "/forward-auth", "", bearerOf(issued.AccessToken)...); got.header.Get("X-User-Email") != "ann@example.com" {
		t.Errorf("after the exchange the address is %q", got.header.Get("X-User-Email"))
	}
	m := e.mint("ci")
	if got := e.ask("GET", "/forward-auth", "", append(bearerOf(m.value()), "Cf-Access-Jwt-Assertion", token)...); got.header.Get("X-User-Id") != "servicetoken:payments:ci" || got.header.Get("X-User-Email") != "" {
		t.Errorf("beside a credential of its own the caller is %q", got.header.Get("X-User-Id"))
	}
	if got := e.ask("GET", "/forward-auth", "", append(bearerOf("not.a.token"), "Cf-Access-Jwt-Assertion", token)...); got.status != http.StatusUnauthorized {
		t.Errorf("beside a bad credential: %d", got.status)
	}
	for name, headers := range map[string][]string{
		"twice":       {"Cf-Access-Jwt-Assertion", token, "Cf-Access-Jwt-Assertion", token},
		"joined":      {"Cf-Access-Jwt-Assertion", token + "," + token},
		"empty":       {"Cf-Access-Jwt-Assertion", ""},
		"of a guest":  {"Cf-Access-Jwt-Assertion", team.token(accessClaims(map[string]any{"email": "eve@example.org"}))},
		"of the team": {"Cf-Access-Jwt-Assertion", team.token(accessClaims(map[string]any{"aud": "other"}))},
	} {
		if got := e.ask("GET", "/forward-auth", "", headers...); got.status != http.StatusUnauthorized {
			t.Errorf("an assertion %s: %d", name, got.status)
		}
	}

	strangers := newFederatedEdge(t, setup{})
	strangers.trust("access", accessSpec(team))
	if got := strangers.ask("GET", "/forward-auth", "", "Cf-Access-Jwt-Assertion", token); got.status != http.StatusUnauthorized {
		t.Errorf("an assertion from a peer nobody trusts: %d", got.status)
	}
	if got := strangers.ask("GET", "/forward-auth", "", bearerOf(token)...); got.status != http.StatusOK {
		t.Errorf("the same as a bearer: %d", got.status)
	}
}

func TestAnIssuersKeysMayChangeAtAnyTime(t *testing.T) {
	github := newIDP(t, "token.actions.example.com", "/.well-known/jwks")
	e := newFederatedEdge(t, setup{})
	e.trust("github", githubSpec(github))
	e.exchanged(github.token(githubClaims(nil)))
	github.set(func(i *idp) { i.kid, i.key = "second", idpKeys()[1] })
	e.exchanged(github.token(githubClaims(nil)))
}

func TestAnIssuerThatHangsHoldsUpNobody(t *testing.T) {
	hanging := newIDP(t, "slow.example.com", "/keys")
	released := make(chan struct{})
	defer close(released)
	hanging.answer = func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-released:
		case <-r.Context().Done():
		case <-time.After(30 * time.Second):
		}
	}
	github := newIDP(t, "token.actions.example.com", "/.well-known/jwks")
	e := newFederatedEdge(t, setup{})
	e.trust("slow", githubSpec(hanging))
	e.trust("github", githubSpec(github))
	m := e.mint("ci")
	var callers sync.WaitGroup
	var refused atomic.Int64
	for range 20 {
		callers.Go(func() {
			if got := e.exchange(hanging.token(githubClaims(nil))); got.status == http.StatusBadRequest {
				refused.Add(1)
			}
		})
	}
	began := time.Now()
	e.exchanged(github.token(githubClaims(nil)))
	for range 50 {
		if got := e.ask("GET", "/forward-auth", "", bearerOf(m.value())...); got.status != http.StatusOK {
			t.Fatalf("a key: %d", got.status)
		}
	}
	if took := time.Since(began); took > federation.MaxWait {
		t.Errorf("others took %s", took)
	}
	callers.Wait()
	if took := time.Since(began); refused.Load() != 20 || took > federation.MaxWait+5*time.Second {
		t.Errorf("%d of 20 were refused, after %s", refused.Load(), took)
	}
}

// What is not ours is found out before a signature of ours is checked; what has our kid
// is never handed on.
func TestATokenOfOursStaysOurs(t *testing.T) {
	team := newIDP(t, "team.cloudflareaccess.example.com", "/cdn-cgi/access/certs")
	e := newFederatedEdge(t, setup{})
	e.trust("access", accessSpec(team))
	m := e.mint("ci", func(r *credential.Record) { r.JWT.TTLSeconds = 60 })
	ours := e.jwtFor(m, "")
	if got := e.ask("GET", "/forward-auth", "", bearerOf(ours)...); got.status != http.StatusOK || got.header.Get("X-User-Id") != "servicetoken:payments:ci" {
		t.Errorf("ours: %d", got.status)
	}
	if got := e.exchange(ours); got.status != http.StatusBadRequest {
		t.Errorf("ours in exchange for ours: %d %s", got.status, got.body)
	}
	for _, err := range []error{oauth.ErrSignature, oauth.ErrExpired, oauth.ErrWrongIssuer, oauth.ErrRevoked, oauth.ErrNotYetValid, oauth.ErrImplausible} {
		if neverSigned(err) {
			t.Errorf("%v is handed on", err)
		}
	}
}

func TestTheSinkAppliesTrustedIssuersAndSaysWhatIsWrong(t *testing.T) {
	github := newIDP(t, "token.actions.example.com", "/.well-known/jwks")
	e := newFederatedEdge(t, setup{})
	sink := &issuerSink{foreign: e.foreign}
	object := &v1alpha1.TrustedIssuer{Spec: githubSpec(github)}
	object.Name, object.UID = "github", "u"
	token := github.token(githubClaims(nil))

	sink.BeginList()
	sink.Put(object)
	sink.EndList()
	e.exchanged(token)

	broken := object.DeepCopy()
	broken.Spec.Mapping.Roles = "claims.repository +"
	sink.Put(broken)
	sink.Put(broken)
	if got := e.exchange(token); got.status != http.StatusBadRequest {
		t.Errorf("with an expression that is none: %d", got.status)
	}
	if n := strings.Count(e.log.String(), "TrustedIssuer cannot be applied"); n != 1 || !strings.Contains(e.log.String(), "spec.mapping.roles") {
		t.Errorf("it was logged %d times:\n%s", n, e.log)
	}
	sink.Put(object)
	e.exchanged(token)
	sink.BeginList()
	sink.EndList()
	if got := e.exchange(token); got.status != http.StatusBadRequest {
		t.Errorf("after a list without it: %d", got.status)
	}
	sink.Put(object)
	e.exchanged(token)
	sink.Delete(object)
	if got := e.exchange(token); got.status != http.StatusBadRequest {
		t.Errorf("after it was deleted: %d", got.status)
	}
}

func FuzzExchangeForm(f *testing.F) {
	f.Add("grant_type=" + grantTokenExchange + "&subject_token=a.b.c&subject_token_type=" + tokenTypeJWT + "&scope=a+b&audience=x&resource=https://a&ttl=5m")
	f.Add("scope=%00&ttl=99999999999999999999d&resource=%zz")
	f.Fuzz(func(t *testing.T, body string) {
		r := httptest.NewRequest("POST", tokenPath, strings.NewReader(body))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		parsed, p := readForm(httptest.NewRecorder(), r)
		if p != nil {
			return
		}
		ask, p := readExchange(parsed)
		if p == nil && (ask.subject == "" || ask.issue == "" || len(ask.targets) > maxAudiences || len(ask.scope) > maxScopes) {
			t.Fatalf("%+v", ask)
		}
	})
}
