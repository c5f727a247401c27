package server

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

// check makes the check call with this credential.
func (e *edge) check(value, body string) answer {
	e.t.Helper()
	headers := []string{"Content-Type", "application/json"}
	if value != "" {
		headers = append(headers, bearerOf(value)...)
	}
	return e.ask("POST", "/api/v1/auth/check", body, headers...)
}

// said is the answer of a check call.
func said(t *testing.T, a answer) map[string]any {
	t.Helper()
	out := map[string]any{}
	if err := json.Unmarshal([]byte(a.body), &out); err != nil {
		t.Fatalf("%d %s", a.status, a.body)
	}
	return out
}

// policy puts an AccessPolicy into force.
func (e *edge) policy(name string, effect v1alpha1.PolicyEffect, expression string) {
	e.t.Helper()
	e.policies.put(name, &v1alpha1.AccessPolicySpec{Effect: effect, Rules: []v1alpha1.PolicyExpression{{Name: "rule", Expression: expression}}})
	e.policies.reload()
}

func TestACheckSaysWhatTheCredentialMayDo(t *testing.T) {
	e := newEdge(t, setup{})
	m := e.mint("ci", func(r *credential.Record) { r.JWT.Audiences = []string{"https://api.example.com"} })
	for name, value := range map[string]string{"a key": m.value(), "a JWT": e.jwtFor(m, "")} {
		t.Run(name, func(t *testing.T) {
			for body, allowed := range map[string]bool{
				`{"action":"deploy:write","audience":"https://api.example.com"}`:                                  true,
				`{"action":"deploy:write","permissions":["api:read"],"audience":["x","https://api.example.com"]}`: true,
				`{"audience":"https://api.example.com"}`:                                                          true,
				`{"action":"api:write","audience":"https://api.example.com"}`:                                     false,
				`{"action":"api:read","permissions":["api:write"],"audience":"https://api.example.com"}`:          false,
				`{"action":"api:read","audience":"https://other.example.com"}`:                                    false,
				`{"action":"api:read","audience":"https://api.example.com","request":{"path":"/a/../b"}}`:         false,
				`{"action":"api:read","audience":"https://api.example.com","request":{"path":"/a?b=.."}}`:         true,
			} {
				got := e.check(value, body)
				answer := said(t, got)
				if got.status != 200 || answer["allowed"] != allowed || answer["authenticated"] != true {
					t.Errorf("%s: %d %s", body, got.status, got.body)
				}
				if !allowed && len(answer) != 2 {
					t.Errorf("%s: a refusal says more than it may: %s", body, got.body)
				}
				if allowed && (answer["subject"] != "servicetoken:payments:ci" || answer["key_id"] != "uid-ci" || answer["permissions"] != "api:read deploy:*") {
					t.Errorf("%s: %s", body, got.body)
				}
			}
		})
	}
}

func TestACheckOfWhatIsNoGoodCredentialIsA401LikeAnyOther(t *testing.T) {
	e := newEdge(t, setup{})
	revoked := e.mint("old")
	e.index.Delete("uid-old")
	want := e.ask("GET", "/forward-auth", "", bearerOf("sk_"+strings.Repeat("0", 64))...)
	for _, value := range []string{revoked.value(), "sk_" + strings.Repeat("1", 64), "x"} {
		for _, body := range []string{`{}`, `{"action":"a:b"}`, `{"token":"x"}`, `nonsense`} {
			if got := e.check(value, body); got.status != 401 || got.body != want.body {
				t.Errorf("%s: %d %s", body, got.status, got.body)
			}
		}
	}
	if got := e.check("", `{}`); got.status != 401 {
		t.Errorf("without a credential: %d", got.status)
	}
}

func TestOnlyWhoMayCheckAsksAboutOtherCredentials(t *testing.T) {
	e := newEdge(t, setup{})
	if err := e.index.SetClass("checkers", &v1alpha1.CredentialClassSpec{Rules: []v1alpha1.ClassRule{{Permissions: []v1alpha1.Permission{PermissionCheck}}}}); err != nil {
		t.Fatal(err)
	}
	service := e.mint("service", func(r *credential.Record) {
		r.Class, r.Permissions, r.Roles = "checkers", []string{PermissionCheck}, nil
	})
	// The class that ships keeps mintmark:* to itself, whatever a credential says.
	other := e.mint("other", func(r *credential.Record) { r.Permissions = []string{PermissionCheck, "api:read"} })
	caller := e.mint("caller", func(r *credential.Record) { r.CIDRs = []string{"203.0.113.0/24"} })
	jwt := e.jwtFor(e.mint("jwt"), "")
	gone := e.mint("gone")
	e.index.Delete("uid-gone")
	ask := func(token, more string) string { return fmt.Sprintf(`{"token":%q,"action":"api:read"%s}`, token, more) }
	const near, far = `,"request":{"clientIP":"203.0.113.9"}`, `,"request":{"clientIP":"198.51.100.1"}`

	if got := e.check(other.value(), ask(caller.value(), near)); got.status != 403 || strings.Contains(got.body, "caller") {
		t.Errorf("without mintmark:check: %d %s", got.status, got.body)
	}
	unknown := e.check(service.value(), ask("sk_"+strings.Repeat("0", 64), near))
	for name, c := range map[string]struct {
		body                   string
		allowed, authenticated bool
	}{
		"a good one":             {ask(caller.value(), near), true, true},
		"from another network":   {ask(caller.value(), far), false, true},
		"from nowhere":           {ask(caller.value(), ""), false, true},
		"without the permission": {`{"token":"` + caller.value() + `","action":"api:write"` + near + `}`, false, true},
		"a JWT":                  {ask(jwt, ""), true, true},
		"an unknown one":         {ask("sk_"+strings.Repeat("0", 64), near), false, false},
		"one that is gone":       {ask(gone.value(), near), false, false},
		"what is no credential":  {ask("a b", near), false, false},
		"two of them":            {ask(caller.value()+","+caller.value(), near), false, false},
		"the end of a header":    {ask(caller.value()+"\r\nx: y", near), false, false},
	} {
		got := e.check(service.value(), c.body)
		answer := said(t, got)
		if got.status != 200 || answer["allowed"] != c.allowed || answer["authenticated"] != c.authenticated {
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
		if !c.authenticated && got.body != unknown.body {
			t.Errorf("%s is told from an unknown one: %s", name, got.body)
		}
	}
	e.gate.set(errCold, false)
	if got := e.check(service.value(), ask(caller.value(), near)); got.status != 503 {
		t.Errorf("while nothing can be decided: %d, want 503", got.status)
	}
}

func TestPoliciesDecideWithWhatTheServiceSaysOfTheResource(t *testing.T) {
	e := newEdge(t, setup{})
	e.policy("own-orders", v1alpha1.PolicyAllow, `request.action != "deploy:order" || resource.type == "order" && has(resource.owner) && resource.owner == subject.id`)
	e.policy("secret", v1alpha1.PolicyDeny, `has(resource.classification) && resource.classification == "secret" && "cleared" in resource.attributes == false`)
	m := e.mint("ci")
	const own = `"type":"order","owner":"servicetoken:payments:ci"`
	for body, allowed := range map[string]bool{
		`{"action":"deploy:order","resource":{` + own + `}}`:                                      true,
		`{"action":"deploy:order","resource":{"type":"order","owner":"servicetoken:payments:x"}}`: false,
		`{"action":"deploy:order"}`: false,
		`{"action":"deploy:other"}`: true,
		`{"action":"deploy:order","resource":{` + own + `,"classification":"secret"}}`:                                false,
		`{"action":"deploy:order","resource":{` + own + `,"classification":"secret","attributes":{"cleared":"yes"}}}`: true,
	} {
		if got := e.check(m.value(), body); said(t, got)["allowed"] != allowed {
			t.Errorf("%s: %s", body, got.body)
		}
	}
	if !strings.Contains(e.log.String(), "own-orders") {
		t.Error("the log does not name the policy that refused")
	}
	if text := scrape(t, e.registry); !strings.Contains(text, `mintmark_server_denials_total{code="Policy",route="check"} 3`) {
		t.Error("the metrics do not say that a policy refused")
	}
}

// One decision: what a policy refuses is refused at every door, and none but by it.
func TestEveryDoorDecidesAlike(t *testing.T) {
	e := newEdge(t, setup{proxies: localProxies})
	conn := e.rpc()
	e.policy("no-deletes", v1alpha1.PolicyDeny, `request.method == "DELETE" && request.path.startsWith("/orders/") && resource.type == "order"`)
	m := e.mint("ci")
	for _, permission := range []string{"deploy:write", "api:write"} {
		for _, method := range []string{"GET", "DELETE"} {
			for _, path := range []string{"/orders/1", "/other/1", "/orders/../x"} {
				want := 200
				if permission == "api:write" || strings.Contains(path, "..") || method == "DELETE" && path == "/orders/1" {
					want = 403
				}
				forward := e.ask("GET", "/forward-auth?resource.type=order&permission="+permission, "",
					append(bearerOf(m.value()), "X-Forwarded-Method", method, "X-Forwarded-Uri", path)...)
				header := e.ask("GET", "/forward-auth?require=header", "", append(bearerOf(m.value()), "X-Original-Method", method, "X-Original-Uri", path,
					"X-Mintmark-Require", "permission="+permission+";resource.type=order")...)
				envoys := e.askEnvoy(conn, envoy{method: method, path: path, headers: map[string]string{"authorization": "Bearer " + m.value()},
					extensions: map[string]string{"mintmark.permissions": permission, "mintmark.resource.type": "order"}})
				check := e.check(m.value(), fmt.Sprintf(`{"action":%q,"resource":{"type":"order"},"request":{"method":%q,"path":%q}}`, permission, method, path))
				checked := 403
				if said(t, check)["allowed"] == true {
					checked = 200
				}
				if forward.status != want || header.status != want || told(envoys) != want || checked != want {
					t.Errorf("%s %s for %s: forward-auth %d, with a header %d, ext_authz %d, check %d; want %d",
						method, path, permission, forward.status, header.status, told(envoys), checked, want)
				}
			}
		}
	}
}

func TestTheStepsOfADecisionAreInThisOrder(t *testing.T) {
	var names []string
	for _, s := range slices.Concat(admission, authorization) {
		names = append(names, s.name)
	}
	if diff := cmp.Diff([]string{"gate", "authenticate", "limits", "path", "audience", "permissions", "policies"}, names); diff != "" {
		t.Errorf("the steps differ (-want +got):\n%s", diff)
	}
}

// I15: what nobody decided is refused.
func TestNothingIsAllowedThatNoStepAllowed(t *testing.T) {
	e := newEdge(t, setup{})
	if (decision{}).allowed || (decision{}).told().Status != 500 {
		t.Error("the zero decision does not refuse")
	}
	for name, ev := range map[string]evaluation{
		"nothing": {}, "a need": {need: new(need)}, "nobody who was admitted": {need: new(need), how: presentedKey, now: time.Now()},
	} {
		if d := e.public.authorize(&ev); d.allowed {
			t.Errorf("%s is allowed", name)
		}
	}
	everyone := admission
	defer func() { admission = everyone }()
	admission = nil
	if p := e.public.decider.admit(new(evaluation)); p == nil {
		t.Error("without steps somebody is admitted")
	}
}

func TestABodyThatIsNoCheckIsRefusedWithoutRepeatingIt(t *testing.T) {
	e := newEdge(t, setup{})
	m := e.mint("ci")
	const marker = "MARKER4711"
	long := strings.Repeat("x", 600)
	for name, body := range map[string]string{
		"nothing": "", "no JSON": marker, "a list": `["` + marker + `"]`, "an unknown field": `{"` + marker + `":1}`, "a field in another case": `{"Action":"api:read"}`,
		"a field twice": `{"action":"api:read","action":"api:write"}`, "an action that is no permission": `{"action":"` + marker + ` x"}`, "a wildcard": `{"action":"api:*"}`,
		"another type": `{"action":{"` + marker + `":1}}`, "an empty audience": `{"audience":""}`, "an audience of nothing": `{"audience":null}`,
		"a time that is none": `{"resource":{"created":"` + marker + `"}}`, "an attribute that is too long": `{"resource":{"attributes":{"a":"` + long + `"}}}`,
		"an attribute with an odd name": `{"resource":{"attributes":{"a b":"` + marker + `"}}}`, "an owner that is too long": `{"resource":{"owner":"` + long + `"}}`,
		"an address without a token": `{"request":{"clientIP":"203.0.113.1"}}`, "an address that is none": `{"token":"` + marker + `","request":{"clientIP":"` + marker + `"}}`,
	} {
		got := e.check(m.value(), body)
		if got.status != 400 || strings.Contains(got.body, marker) {
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
	}
	if got := e.ask("POST", "/api/v1/auth/check", "{}", bearerOf(m.value())...); got.status != 415 {
		t.Errorf("without a media type: %d, want 415", got.status)
	}
	if got := e.check(m.value(), `{"action":"`+strings.Repeat("x", maxBody)+`"}`); got.status != 413 {
		t.Errorf("too large: %d, want 413", got.status)
	}
	if strings.Contains(e.log.String(), marker) {
		t.Error("the log repeats it")
	}
}

func TestRequirementsInAHeaderAreBelievedFromTrustedPeersOnly(t *testing.T) {
	const header = "X-Mintmark-Require"
	behind, open := newEdge(t, setup{proxies: localProxies}), newEdge(t, setup{})
	keys := map[*edge]*minted{behind: behind.mint("ci"), open: open.mint("ci")}
	for name, c := range map[string]struct {
		e       *edge
		query   string
		headers []string
		status  int
	}{
		"from a trusted peer":                        {behind, "?require=header", []string{header, "permission=deploy:write;permission=api:read"}, 200},
		"without the permission":                     {behind, "?require=header", []string{header, "permission=api:write"}, 403},
		"beside the query, which says no":            {behind, "?require=header&permission=api:write", []string{header, "permission=api:read"}, 403},
		"beside the query, both of which say yes":    {behind, "?require=header&permission=deploy:a", []string{header, "permission=api:read"}, 200},
		"for an audience of its own":                 {behind, "?require=header&audience=" + testIssuer, []string{header, "audience=https://other.example.com"}, 403},
		"missing":                                    {behind, "?require=header", nil, 403},
		"empty":                                      {behind, "?require=header", []string{header, ""}, 403},
		"twice":                                      {behind, "?require=header", []string{header, "permission=api:read", header, "permission=api:read"}, 403},
		"misspelt":                                   {behind, "?require=header", []string{header, "permissions=api:read"}, 400},
		"that asks for another header":               {behind, "?require=header", []string{header, "require=header"}, 400},
		"from a peer that is not trusted":            {open, "?require=header", []string{header, "permission=api:read"}, 403},
		"from a client, which nobody asked for":      {open, "?permission=api:read", []string{header, "permission=api:write"}, 200},
		"from a client behind a trusted peer, ditto": {behind, "?permission=api:read", []string{header, "permission=api:write"}, 200},
		"require of something else":                  {behind, "?require=nothing", nil, 400},
		"a resource described twice":                 {behind, "?require=header&resource.type=a", []string{header, "resource.owner=b"}, 400},
	} {
		if got := c.e.ask("GET", "/forward-auth"+c.query, "", append(bearerOf(keys[c.e].value()), c.headers...)...); got.status != c.status {
			t.Errorf("%s: %d %s, want %d", name, got.status, got.body, c.status)
		}
	}
}

func TestTheIdentityHeadersHaveTheNamesThatWereChosen(t *testing.T) {
	e := newEdge(t, setup{identity: IdentityHeaders{ID: "X-Auth-Subject", Permissions: "X-Auth-Scope"}})
	got := e.ask("GET", "/forward-auth", "", bearerOf(e.mint("ci").value())...)
	want := map[string]string{"X-Auth-Subject": "servicetoken:payments:ci", "X-Auth-Scope": "api:read deploy:*", "X-User-Roles": "deployer", "X-User-Email": ""}
	for name, value := range want {
		if lines := got.header[name]; len(lines) != 1 || lines[0] != value {
			t.Errorf("%s is %q, want %q", name, lines, value)
		}
	}
	if got.header["X-User-Id"] != nil {
		t.Error("the default name is there too")
	}
	for name, bad := range map[string]IdentityHeaders{
		"no name": {ID: "X User"}, "a colon": {ID: "X:User"}, "an underscore": {ID: "X_User"}, "Authorization": {ID: "Authorization"}, "Forwarded": {Email: "X-Forwarded-For"},
		"two the same": {ID: "X-User", Email: "x-user"}, "two that are alike": {ID: "X-User", Email: "XUser"}, "one of the defaults": {ID: "X-User-Roles"}, "Host": {Roles: "Host"},
	} {
		if bad.Check() == nil {
			t.Errorf("%s is taken: %+v", name, bad)
		}
	}
}

// A gateway sets one of the headers with the original path; another one is the client's.
func TestTwoOriginalPathsThatDifferAreNone(t *testing.T) {
	e := newEdge(t, setup{proxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}})
	m := e.mint("ci")
	for name, c := range map[string]struct {
		headers map[string]string
		status  int
	}{
		"one":         {map[string]string{"X-Forwarded-Uri": "/a"}, 200},
		"both alike":  {map[string]string{"X-Forwarded-Uri": "/a", "X-Original-Uri": "/a"}, 200},
		"both differ": {map[string]string{"X-Forwarded-Uri": "/a", "X-Original-Uri": "/public"}, 403},
	} {
		headers := bearerOf(m.value())
		for _, k := range slices.Sorted(maps.Keys(c.headers)) {
			headers = append(headers, k, c.headers[k])
		}
		if got := e.ask("GET", "/forward-auth", "", headers...); got.status != c.status {
			t.Errorf("%s: %d, want %d", name, got.status, c.status)
		}
	}
}

func FuzzCheck(f *testing.F) {
	for _, s := range []string{`{}`, `{"action":"a:b","resource":{"type":"x","created":"2026-01-01T00:00:00Z"}}`, `{"token":"x","request":{"clientIP":"::1"}}`, `[`, `null`} {
		f.Add(s)
	}
	e := newEdge(f, setup{discard: true})
	m := e.mint("ci")
	f.Fuzz(func(t *testing.T, body string) {
		w := &recorder{header: map[string][]string{}}
		r := newCheckRequest(t, body, m.value())
		e.public.ServeHTTP(w, r)
		if w.status >= 500 || w.status == 401 {
			t.Fatalf("%d %s", w.status, w.body)
		}
	})
}

func newCheckRequest(t *testing.T, body, value string) *http.Request {
	t.Helper()
	r, err := http.NewRequest("POST", "/api/v1/auth/check", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header["Authorization"], r.Header["Content-Type"] = []string{"Bearer " + value}, []string{"application/json"}
	return r
}
