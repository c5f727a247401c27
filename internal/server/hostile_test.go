package server

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	kjson "sigs.k8s.io/json"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/credential"
	"github.com/mintmark-dev/mintmark/internal/oauth"
)

// A JWT of a service's that is for another audience has been handed to that audience, which
// must not ask here in the service's name.
func TestWhoMayCheckIsAskedWithACredentialThatIsForThisServer(t *testing.T) {
	e := newEdge(t, setup{})
	e.operators()
	caller := e.mint("caller")
	service := e.operator("service", "payments", PermissionCheck)
	elsewhere := e.mint("elsewhere", func(r *credential.Record) {
		r.Class, r.Permissions, r.Roles, r.JWT.Audiences = "operators", []string{PermissionCheck}, nil, []string{"https://api.example.com"}
	})
	body := `{"token":"` + caller.value() + `","action":"api:read"}`
	for name, c := range map[string]struct {
		value  string
		status int
	}{
		"its key": {service.value(), 200}, "its JWT": {e.jwtFor(service, ""), 200}, "a JWT for another audience": {e.jwtFor(elsewhere, ""), 401},
	} {
		if got := e.check(c.value, body); got.status != c.status || c.status == 200 && said(t, got)["allowed"] != true {
			t.Errorf("%s: %d %s, want %d", name, got.status, got.body, c.status)
		}
	}
}

// What somebody asks for by scope ends up in headers, where a comma can begin another
// permission.
func TestAScopeIsMadeOfPermissionsAlone(t *testing.T) {
	github := newIDP(t, "token.actions.example.com", "/.well-known/jwks")
	e := newFederatedEdge(t, setup{})
	spec := githubSpec(github)
	spec.Mapping.Permissions, spec.Ceiling.Permissions = "['deploy:*']", []v1alpha1.Permission{"deploy:*"}
	e.trust("github", spec)
	token := github.token(githubClaims(nil))
	for _, scope := range []string{
		"deploy:a,admin:all", `deploy:"`, "deploy:\x7f", "deploy:\x01", "deploy:é", "deploy:a*", "deploy:*:a", "deploy:a;b", "deploy:a=b", "deploy:" + strings.Repeat("x", 200),
	} {
		if got := e.exchange(token, "scope", scope); got.status != http.StatusBadRequest || !strings.Contains(got.body, `"error":"invalid_scope"`) {
			t.Errorf("%q: %d %s", scope, got.status, got.body)
		}
	}
	for _, scope := range []string{"deploy:write", "deploy:*", "deploy:a:*", "deploy:a:b deploy:c.d_e/f-g"} {
		if got := e.exchanged(token, "scope", scope); got.Scope != scope {
			t.Errorf("%q: the scope is %q", scope, got.Scope)
		}
	}
}

// THREATS 14: of one path there are several spellings, and a policy that names it means all
// of them.
func TestAPolicyMeansAPathHoweverItIsSpelt(t *testing.T) {
	e := newEdge(t, setup{proxies: localProxies})
	conn := e.rpc()
	e.policy("no-cancel", v1alpha1.PolicyDeny, `request.path.endsWith(":cancel") || request.path == "/café"`)
	m := e.mint("ci")
	for path, want := range map[string]int{
		"/orders/1:cancel": 403, "/orders/1%3Acancel": 403, "/orders/1%3acancel?x=1": 403, "https://api.example.com/orders/1%3acancel": 403,
		"/caf%C3%A9": 403, "/caf%c3%a9": 403, "/caf\xc3\xa9": 403, "/orders/1": 200, "/a%20b": 200, "/a+b": 200,
		// Some read an overlong slash, and nobody knows how what is no UTF-8 is read.
		"/a/..%c0%afb": 403, "/a%ff": 403,
		// The path of this one is empty, whatever its query.
		"https://api.example.com?/orders/1": 403, "https://api.example.com#/orders/1": 403,
	} {
		forward := e.ask("GET", "/forward-auth", "", append(bearerOf(m.value()), "X-Forwarded-Uri", path)...)
		if forward.status != want {
			t.Errorf("%q: forward-auth %d, want %d", path, forward.status, want)
		}
		if strings.Contains(path, "\xc3") {
			continue // no string of protocol buffers that Go would send
		}
		if got := told(e.askEnvoy(conn, envoy{path: path, headers: map[string]string{"authorization": "Bearer " + m.value()}})); got != want {
			t.Errorf("%q: ext_authz %d, want %d", path, got, want)
		}
	}
}

// Behind Envoy as behind any other gateway: an assertion counts from trusted peers, of an
// issuer whose tokens are taken as they are, and tells the address of who it is.
func TestAnAssertionIsBelievedFromATrustedEnvoyOnly(t *testing.T) {
	team := newIDP(t, "team.cloudflareaccess.example.com", "/cdn-cgi/access/certs")
	token := team.token(accessClaims(nil))
	trusted, stranger := newFederatedEdge(t, setup{proxies: localProxies}), newFederatedEdge(t, setup{})
	for _, e := range []*edge{trusted, stranger} {
		e.trust("access", accessSpec(team))
	}
	ask := func(e *edge, token string) (int, map[string]string) {
		answer := e.askEnvoy(e.rpc(), envoy{headers: map[string]string{assertionHeaderLower: token}})
		return told(answer), upstream(map[string]string{}, answer.GetOkResponse())
	}
	if got, headers := ask(trusted, token); got != 200 || headers["x-user-email"] != "ann@example.com" {
		t.Errorf("from a trusted Envoy: %d %v", got, headers)
	}
	if got, _ := ask(stranger, token); got != 401 {
		t.Errorf("from any other: %d, want 401", got)
	}
	trusted.foreign.federation.Delete("access")
	if got, _ := ask(trusted, trusted.jwtFor(trusted.mint("ci"), "")); got != 401 {
		t.Errorf("one of ours, where no issuer's tokens are taken: %d, want 401", got)
	}
}

// I17: whoever revokes all they have leaves room for the others.
func TestNoTenantFillsTheDenyList(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	until, data := now.Add(time.Hour), map[string]string{}
	enter := func(tenant, id string) error { return enterDenied(data, id, tenant, until, now) }
	for n := range maxDeniedOf {
		if err := enter("namespace:eve", "eve-"+strconv.Itoa(n)); err != nil {
			t.Fatal(err)
		}
	}
	if err := enter("namespace:eve", "one-more"); !errors.Is(err, errDenyListShare) {
		t.Errorf("beyond its share: %v", err)
	}
	if err := enter("namespace:eve", "eve-7"); err != nil {
		t.Errorf("one that is there already: %v", err)
	}
	if err := enter("namespace:payments", "ours"); err != nil {
		t.Errorf("another tenant: %v", err)
	}
	list := &denyList{now: func() time.Time { return now }}
	list.add(data)
	if len(*list.known.Load()) != maxDeniedOf+1 || !list.has("ours") || !list.has("eve-0") {
		t.Errorf("a server knows %d", len(*list.known.Load()))
	}
	now = until
	if err := enter("namespace:eve", "later"); err != nil || len(data) != 0 && data["eve-0"] != "" {
		t.Errorf("once they are over: %v, %d left", err, len(data))
	}
	a, b := oauth.Claims{Subject: "apikey:eve:a:b"}, oauth.Claims{Subject: "servicetoken:eve:b"}
	c := oauth.Claims{Subject: "issuer:eve:a", Foreign: &oauth.Foreign{TrustedIssuer: "eve"}}
	if tenantOf(&a) != tenantOf(&b) || tenantOf(&a) == tenantOf(&c) {
		t.Errorf("tenants are %s, %s, %s", tenantOf(&a), tenantOf(&b), tenantOf(&c))
	}
}

// FuzzCredential reads an object as the typed decoder does that everything else in Kubernetes
// uses: names count by their case, and none is there twice.
func FuzzCredential(f *testing.F) {
	text, err := json.Marshal(full())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(text))
	for _, seed := range []string{
		`{}`, `null`, `{"metadata":null,"spec":null,"status":null}`, `{"spec":{"permissions":["a"],"Permissions":["*"]}}`, `{"Spec":{"admin":true},"spec":{"Admin":true}}`,
		`{"\u0073pec":{"adm\u0069n":true}}`, `{"metadata":{"labels":{"a":null},"uid":"\u0061","UID":"b"}}`, `{"status":{"record":null,"seal":null,"Seal":"x"}}`,
		`{"spec":{"revoked":{"versions":[1,2.0]}}}`, `{"spec":{"rateLimit":{"requests":1e3,"per":"1s"}}}`, `{"spec":{"expiresAt":"2030-01-01T00:00:00Z"}}`,
		`{"spec":{"external":{}}}`, `{"spec":{"external":{"sha256":null}}}`, `{"metadata":{"deletionTimestamp":null,"creationTimestamp":"2030-01-01T00:00:00Z"}}`,
		`{"spec":{"attributes":{"a":"b","A":"c"},"jwt":{"ttl":"5m","audiences":["x"]}}}`, `{"metadata":{"name":"\ud800","namespace":"é"}}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		want := new(v1alpha1.ServiceToken)
		strict, err := kjson.UnmarshalStrict([]byte(text), want, kjson.DisallowDuplicateFields)
		if err != nil || len(strict) > 0 {
			return
		}
		got := new(v1alpha1.ServiceToken)
		if err := decodeCredential([]byte(text), got); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if diff := cmp.Diff(authn.LiveOf(want), authn.LiveOf(got)); diff != "" {
			t.Errorf("%s (-typed +read):\n%s", text, diff)
		}
		if string(want.Status.Record) != string(got.Status.Record) || want.Status.Seal != got.Status.Seal || want.ResourceVersion != got.ResourceVersion {
			t.Errorf("%s: read as %+v %+v", text, got.ObjectMeta, got.Status)
		}
	})
}
