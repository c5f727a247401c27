package server

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
	"github.com/mintmark-dev/mintmark/internal/oauth"
)

// guard has the edge block addresses after so many failures a minute.
func (e *edge) guard(failures int, change ...func(*guardConfig)) {
	c := guardConfig{failures: failures, metrics: e.public.metrics, log: e.log.logger()}
	for _, f := range change {
		f(&c)
	}
	e.public.guard = newAddressGuard(c)
}

// from asks forward-auth as a gateway that is trusted does for a client.
func (e *edge) from(client, value string) answer {
	e.t.Helper()
	headers := []string{"X-Forwarded-For", client}
	if value != "" {
		headers = append(headers, "Authorization", "Bearer "+value)
	}
	return e.ask("GET", "/forward-auth", "", headers...)
}

const (
	attacker  = "203.0.113.66"
	bystander = "203.0.113.7"
)

// badValues are credentials that are none, in every way that callers must not tell apart.
func (e *edge) badValues() map[string]string {
	e.t.Helper()
	revoked, expired, deleted, gone := e.mint("revoked"), e.mint("expired"), e.mint("deleted"), e.mint("gone")
	jwt, good := e.jwtFor(gone, ""), e.jwtFor(e.mint("signed"), "")
	e.change(revoked, func(r *credential.Record) { r.Versions[0].State = v1alpha1.VersionRevoked })
	e.change(expired, func(r *credential.Record) { r.Versions[0].Expires = e.now().Add(-time.Hour).Unix() })
	e.index.Delete("uid-deleted")
	e.index.Delete("uid-gone")
	unknown := newValue(e.t, nil)
	wrongChecksum := []byte(unknown)
	wrongChecksum[len(wrongChecksum)-1] ^= 1
	return map[string]string{
		"unknown": unknown, "revoked": revoked.value(), "expired": expired.value(), "deleted": deleted.value(),
		"the wrong secret behind a prefix that exists": newValue(e.t, revoked.token.Reveal), "a wrong checksum": string(wrongChecksum),
		"no credential of any format": "x", "a JWT of a credential that is gone": jwt, "a JWT that is none": "a.b.c",
		"a JWT with a bad signature": forged(good),
	}
}

// newValue is a well-formed value that is nobody's; with like it differs from that one in
// the end of the secret alone.
func newValue(t testing.TB, like func() string) string {
	t.Helper()
	random := make([]byte, 32)
	_, _ = rand.Read(random)
	if like != nil {
		secret, err := hex.DecodeString(like()[len("sk_") : len("sk_")+64])
		if err != nil {
			t.Fatal(err)
		}
		copy(random, secret[:31])
	}
	token, err := credential.Format{Kind: v1alpha1.KindServiceToken}.Mint(bytes.NewReader(random))
	if err != nil {
		t.Fatal(err)
	}
	return token.Reveal()
}

// forged is the JWT with another signature.
func forged(jwt string) string {
	signature := make([]byte, 64)
	_, _ = rand.Read(signature)
	return jwt[:strings.LastIndexByte(jwt, '.')+1] + base64.RawURLEncoding.EncodeToString(signature)
}

// seen is what a client sees of an answer, but for what tells one request from another.
func (a answer) seen() map[string]any {
	header := a.header.Clone()
	header.Del("X-Request-Id")
	header.Del("Date")
	return map[string]any{"status": a.status, "header": map[string][]string(header), "body": a.body}
}

// I16: what is unknown, wrong, revoked, expired or deleted looks the same to the caller,
// in the answers before the address is blocked, in when it is, and in those after.
func TestEveryBadCredentialIsAnsweredAlikeBeforeAndAfterTheAddressIsBlocked(t *testing.T) {
	e := newEdge(t, setup{proxies: localProxies}).at(noon)
	const failures = 5
	var want []map[string]any
	for name, value := range e.badValues() {
		e.guard(failures)
		var got []map[string]any
		for range failures + 2 {
			got = append(got, e.from(attacker, value).seen())
		}
		if want == nil {
			want = got
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s is answered otherwise (-others +it):\n%s", name, diff)
		}
	}
	for i, a := range want {
		status, retry := 401, []string(nil)
		if i >= failures-1 {
			status, retry = 429, []string{"30"}
		}
		header := a["header"].(map[string][]string)
		if a["status"] != status || !slices.Equal(header["Retry-After"], retry) {
			t.Errorf("answer %d is %v with Retry-After %v, want %d with %v", i, a["status"], header["Retry-After"], status, retry)
		}
	}
}

func TestABlockedAddressIsInNobodyElsesWay(t *testing.T) {
	e := newEdge(t, setup{proxies: localProxies}).at(noon)
	m := e.mint("ci")
	known := e.jwtFor(m, "")
	if got := e.from(bystander, known); got.status != 200 {
		t.Fatal(got)
	}
	limited := e.mint("limited", func(r *credential.Record) { r.CIDRs = []string{"192.0.2.0/24"} })
	e.guard(3)
	bad := newValue(t, nil)
	for range 3 {
		e.from(attacker, bad)
	}
	for _, c := range []struct {
		what, client, value string
		want                int
	}{
		{"a bad key", attacker, bad, 429},
		{"another bad key", attacker, newValue(t, nil), 429},
		{"a good key", attacker, m.value(), 200},
		{"a JWT that was verified before", attacker, known, 200},
		{"a JWT that was not", attacker, e.jwtFor(m, ""), 200},
		{"a good key that may not be used from there", attacker, limited.value(), 403},
		{"no credential", attacker, "", 401},
		{"a bad key from elsewhere", bystander, bad, 401},
		{"a bad key from an address that cannot be read", "unknown", bad, 401},
	} {
		if got := e.from(c.client, c.value); got.status != c.want {
			t.Errorf("%s: %d, want %d: %s", c.what, got.status, c.want, got.body)
		}
	}
	if metrics := scrape(t, e.registry); !strings.Contains(metrics, `mintmark_server_limited_total{by="address"} 3`) || !strings.Contains(metrics, `code="Blocked"`) {
		t.Errorf("the metrics are\n%s", metrics)
	}
	if n := e.public.guard.blockedNow(noon); n != 1 {
		t.Errorf("%d addresses are blocked, want 1", n)
	}
	if lines := strings.Count(e.log.String(), "an address is blocked"); lines != 1 || !strings.Contains(e.log.String(), attacker) {
		t.Errorf("%d lines tell of it, want 1", lines)
	}
	if strings.Contains(e.log.String(), bad) {
		t.Error("the log shows the value")
	}

	e.setClock(noon.Add(31 * time.Second))
	if got := e.from(attacker, bad); got.status != 401 {
		t.Errorf("afterwards: %d, want 401", got.status)
	}
	if n := e.public.guard.blockedNow(e.now()); n != 0 {
		t.Errorf("%d addresses are blocked afterwards, want 0", n)
	}
	e.from(attacker, bad)
	if got := e.from(attacker, bad); got.status != 429 || got.header.Get("Retry-After") != "60" {
		t.Errorf("the second time: %d for %s s, want 429 for 60", got.status, got.header.Get("Retry-After"))
	}
}

func TestWhatIsNoFailureBlocksNobody(t *testing.T) {
	e := newEdge(t, setup{proxies: localProxies}).at(noon)
	e.guard(2)
	limited := e.mint("limited", func(r *credential.Record) { r.CIDRs = []string{"192.0.2.0/24"} })
	m := e.mint("ci")
	for range 10 {
		for name, got := range map[string]answer{
			"no credential": e.from(attacker, ""), "from another network": e.from(attacker, limited.value()), "a good one": e.from(attacker, m.value()),
			"without the permission": e.ask("GET", "/forward-auth?permission=none:none", "", "X-Forwarded-For", attacker, "X-API-Key", m.value()),
		} {
			if got.status == 429 {
				t.Fatalf("%s: 429", name)
			}
		}
	}
	e.gate.set(errStale, false)
	for range 5 {
		if got := e.from(attacker, newValue(t, nil)); got.status != 503 {
			t.Fatal(got.status)
		}
	}
	e.gate.set(nil, false)
	if got := e.from(attacker, newValue(t, nil)); got.status != 401 {
		t.Errorf("%d, want 401", got.status)
	}
}

func TestFailuresAtEveryDoorCount(t *testing.T) {
	for name, fail := range map[string]func(*edge, string){
		"forward-auth": func(e *edge, bad string) {
			e.ask("GET", "/forward-auth", "", "X-Forwarded-For", attacker, "X-API-Key", bad)
		},
		"issuing a JWT": func(e *edge, bad string) {
			e.ask("POST", "/api/auth/token", "", "X-Forwarded-For", attacker, "X-API-Key", bad)
		},
		"renewing one": func(e *edge, bad string) {
			e.ask("POST", "/api/auth/renew", "", "X-Forwarded-For", attacker, "X-API-Key", bad)
		},
		"the profile": func(e *edge, bad string) {
			e.ask("GET", "/api/v1/auth/me", "", "X-Forwarded-For", attacker, "X-API-Key", bad)
		},
		"introspection": func(e *edge, bad string) {
			e.ask("POST", introspectionPath, "token=x", "X-Forwarded-For", attacker, "X-API-Key", bad)
		},
		"revocation": func(e *edge, bad string) {
			e.ask("POST", revocationPath, "token=x", "X-Forwarded-For", attacker, "X-API-Key", bad)
		},
		"the check call": func(e *edge, bad string) {
			e.ask("POST", "/api/v1/auth/check", "{}", "X-Forwarded-For", attacker, "X-API-Key", bad)
		},
		"two credentials": func(e *edge, bad string) {
			e.ask("GET", "/forward-auth", "", "X-Forwarded-For", attacker, "X-API-Key", bad, "X-API-Key", bad)
		},
		"token exchange": func(e *edge, bad string) {
			form := "grant_type=" + grantTokenExchange + "&subject_token_type=" + tokenTypeJWT + "&subject_token=" + bad
			e.ask("POST", tokenPath, form, "X-Forwarded-For", attacker, "Content-Type", "application/x-www-form-urlencoded")
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := newFederatedEdge(t, setup{proxies: localProxies}).at(noon)
			e.guard(3)
			for range 3 {
				fail(e, newValue(t, nil))
			}
			if got := e.from(attacker, newValue(t, nil)); got.status != 429 {
				t.Errorf("after three failures: %d, want 429", got.status)
			}
			if got := e.exchange("a.b.c", "x", "y"); got.status != 400 {
				t.Errorf("an exchange from elsewhere: %d, want 400", got.status)
			}
		})
	}
	t.Run("Envoy", func(t *testing.T) {
		e := newEdge(t, setup{proxies: localProxies}).at(noon)
		e.guard(3)
		conn := e.rpc()
		q := envoy{headers: map[string]string{"authorization": "Bearer " + newValue(t, nil)}, source: attacker}
		for i, want := range []int{401, 401, 429, 429} {
			if got := told(e.askEnvoy(conn, q)); got != want {
				t.Errorf("%d: %d, want %d", i, got, want)
			}
		}
		if got := e.from(attacker, newValue(t, nil)); got.status != 429 {
			t.Errorf("at forward-auth: %d, want 429", got.status)
		}
	})
}

// What a service asks about is not held against it: others sent it.
func TestWhatServicesAskAboutIsNotHeldAgainstThem(t *testing.T) {
	e := newEdge(t, setup{}).at(noon)
	e.operators()
	service := e.operator("service", "payments", PermissionCheck, PermissionIntrospect).value()
	e.guard(2)
	for range 10 {
		if got := e.check(service, `{"token":"`+newValue(t, nil)+`"}`); got.status != 200 {
			t.Fatalf("%d %s", got.status, got.body)
		}
		if got := e.post(introspectionPath, tokenForm(newValue(t, nil), "client_ip", bystander), service); got.status != 200 {
			t.Fatalf("%d %s", got.status, got.body)
		}
	}
	if got := e.ask("GET", "/api/auth/profile", "", "X-API-Key", newValue(t, nil)); got.status != 401 {
		t.Errorf("%d, want 401", got.status)
	}
}

// A gateway that is not trusted, and one that does not say whom it forwards, would be
// blocked for all who come through it.
func TestAGatewayIsNotBlocked(t *testing.T) {
	for name, c := range map[string]struct {
		proxies   []netip.Prefix
		forwarded string
	}{
		"that is not trusted":                            {nil, ""},
		"that is not trusted and says whom it forwards":  {nil, attacker},
		"that is trusted and does not say":               {localProxies, ""},
		"that is trusted and names another trusted peer": {localProxies, "127.0.0.9"},
		"that is trusted and cannot be understood":       {localProxies, "unknown"},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEdge(t, setup{proxies: c.proxies}).at(noon)
			e.guard(2, func(g *guardConfig) { g.perSecond = 1 })
			conn := e.rpc()
			for range 5 {
				headers := []string{"X-API-Key", newValue(t, nil)}
				q := envoy{headers: map[string]string{"x-api-key": headers[1]}, source: or(c.forwarded, "127.0.0.1")}
				if c.forwarded != "" {
					headers = append(headers, "X-Forwarded-For", c.forwarded)
				}
				if got := e.ask("GET", "/forward-auth", "", headers...); got.status != 401 {
					t.Fatalf("%d, want 401", got.status)
				}
				if got := told(e.askEnvoy(conn, q)); got != 401 {
					t.Fatalf("Envoy: %d, want 401", got)
				}
			}
		})
	}
	t.Run("but who calls another door without one is", func(t *testing.T) {
		e := newEdge(t, setup{}).at(noon)
		e.guard(2)
		for _, want := range []int{401, 429} {
			if got := e.ask("GET", "/api/auth/profile", "", "X-API-Key", newValue(t, nil)); got.status != want {
				t.Fatalf("%d, want %d", got.status, want)
			}
		}
	})
}

func TestAddressesThatAreAllowedAreNeitherBlockedNorLimited(t *testing.T) {
	e := newEdge(t, setup{proxies: localProxies}).at(noon)
	e.guard(2, func(g *guardConfig) {
		g.allowed, g.perSecond = []netip.Prefix{netip.MustParsePrefix("203.0.113.64/30")}, 1
	})
	for range 10 {
		if got := e.from(attacker, newValue(t, nil)); got.status != 401 {
			t.Fatalf("%d, want 401", got.status)
		}
	}
}

func TestAnAddressIsHeldToARateWhereOneIsSet(t *testing.T) {
	e := newEdge(t, setup{proxies: localProxies}).at(noon)
	servers := 1
	e.guard(0, func(g *guardConfig) { g.perSecond, g.replicas = 4, func() int { return servers } })
	m := e.mint("ci")
	ask := func(client string) (statuses []int) {
		for range 5 {
			got := e.from(client, m.value())
			if got.status == 429 && got.header.Get("Retry-After") != "1" {
				t.Errorf("Retry-After %q, want 1", got.header.Get("Retry-After"))
			}
			statuses = append(statuses, got.status)
		}
		return statuses
	}
	if diff := cmp.Diff([]int{200, 200, 200, 200, 429}, ask(bystander)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]int{200, 200, 200, 200, 429}, ask("2001:db8::1")); diff != "" {
		t.Error(diff)
	}
	if got := e.from("2001:db8::2", m.value()); got.status != 429 {
		t.Errorf("another address of the same subscriber: %d, want 429", got.status)
	}
	servers = 2
	if diff := cmp.Diff([]int{200, 200, 429, 429, 429}, ask(attacker)); diff != "" {
		t.Errorf("as one of two servers: %s", diff)
	}
	if got := e.ask("GET", oauth.JWKSPath, "", "X-Forwarded-For", attacker); got.status != 200 {
		t.Errorf("what is public: %d, want 200", got.status)
	}
}

// I17: signatures are checked for a blocked address a few times a second and no more.
func TestFewSignaturesAreCheckedForABlockedAddress(t *testing.T) {
	e := newEdge(t, setup{proxies: localProxies}).at(noon)
	m := e.mint("ci")
	known, fresh := e.jwtFor(m, ""), e.jwtFor(m, "")
	e.from(bystander, known)
	e.guard(3)
	for range 3 {
		e.from(attacker, newValue(t, nil))
	}
	checked := func() int { return strings.Count(e.log.String(), oauth.ErrSignature.Error()) }
	for range 200 {
		if got := e.from(attacker, forged(known)); got.status != 429 {
			t.Fatal(got.status)
		}
	}
	if got := int64(checked()); got != blockedWork.Burst {
		t.Errorf("%d signatures were checked, want %d", got, blockedWork.Burst)
	}
	for _, c := range []struct {
		what, client, value string
		want                int
	}{
		{"a new JWT", attacker, fresh, 429}, {"one that was verified before", attacker, known, 200}, {"a key", attacker, m.value(), 200},
		{"a new JWT from elsewhere", bystander, fresh, 200},
	} {
		if got := e.from(c.client, c.value); got.status != c.want {
			t.Errorf("%s: %d, want %d", c.what, got.status, c.want)
		}
	}
	e.setClock(noon.Add(time.Second))
	if got := e.from(attacker, e.jwtFor(m, "")); got.status != 200 {
		t.Errorf("a new JWT a second later: %d, want 200", got.status)
	}
}

func TestFewTokensOfOtherIssuersAreLookedAtForABlockedAddress(t *testing.T) {
	github := newIDP(t, "token.actions.example.com", "/.well-known/jwks")
	e := newFederatedEdge(t, setup{proxies: localProxies})
	spec := githubSpec(github)
	spec.DirectUse = true
	e.trust("github", spec)
	job := github.token(githubClaims(nil))
	eventually(t, 10*time.Second, "the issuer's keys are there", func() bool { return e.exchange(job).status == 200 })
	e.setClock(time.Now())
	e.guard(3)
	exchange := func(client, token string) answer {
		form := "grant_type=" + grantTokenExchange + "&subject_token_type=" + tokenTypeJWT + "&subject_token=" + token
		return e.ask("POST", tokenPath, form, "X-Forwarded-For", client, "Content-Type", "application/x-www-form-urlencoded")
	}
	for i, want := range []int{400, 400, 429} {
		if got := exchange(attacker, forged(job)); got.status != want {
			t.Fatalf("%d: %d, want %d: %s", i, got.status, want, got.body)
		}
	}
	if got := exchange(attacker, job); got.status != 200 {
		t.Errorf("a good one: %d, want 200", got.status)
	}
	for i := range int(blockedWork.Burst) {
		if i%2 == 0 {
			exchange(attacker, forged(job))
		} else {
			e.from(attacker, forged(job))
		}
	}
	for what, got := range map[string]answer{"exchanged": exchange(attacker, job), "as it is": e.from(attacker, job)} {
		if got.status != 429 || got.header.Get("Retry-After") != "30" {
			t.Errorf("%s: %d, want 429 after 30 s: %s", what, got.status, got.body)
		}
	}
	if got := exchange(attacker, job); got.members(t)["error"] != "temporarily_unavailable" || got.header.Get("Content-Type") != "application/json" {
		t.Errorf("no answer for an OAuth client: %s", got.body)
	}
	for what, got := range map[string]answer{"exchanged": exchange(bystander, job), "as it is": e.from(bystander, job)} {
		if got.status != 200 {
			t.Errorf("%s, from elsewhere: %d, want 200: %s", what, got.status, got.body)
		}
	}
}

// That an issuer is down is no fault of those who present its tokens.
func TestAnIssuerThatIsDownBlocksNobody(t *testing.T) {
	down := newIDP(t, "down.example.com", "/keys")
	down.set(func(i *idp) {
		i.answer = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }
	})
	e := newFederatedEdge(t, setup{proxies: localProxies})
	spec := githubSpec(down)
	spec.DirectUse = true
	e.trust("github", spec)
	e.guard(2)
	job := down.token(githubClaims(nil))
	for range 4 {
		form := "grant_type=" + grantTokenExchange + "&subject_token_type=" + tokenTypeJWT + "&subject_token=" + job
		got := e.ask("POST", tokenPath, form, "X-Forwarded-For", attacker, "Content-Type", "application/x-www-form-urlencoded")
		if got.status != 400 {
			t.Fatalf("%d, want 400", got.status)
		}
		if got := e.from(attacker, job); got.status != 401 {
			t.Fatalf("%d, want 401", got.status)
		}
	}
}
