package server

import (
	"crypto/rand"
	"log/slog"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/credential"
	"github.com/mintmark-dev/mintmark/internal/limit"
)

// noon is a time at which nothing else happens.
var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// limit has the edge hold credentials to their rates, as one of n servers.
func (e *edge) limit(n int) {
	e.public.limits = newCredentialLimits(e.public.metrics, func() int { return n })
}

// rated gives a credential a rate.
func rated(requests int64, per time.Duration, burst int64) func(*credential.Record) {
	return func(r *credential.Record) {
		r.Rate = &credential.RecordRate{Requests: requests, PerMillis: per.Milliseconds(), Burst: burst}
	}
}

// change gives another record of the same credential.
func (e *edge) change(m *minted, change func(*credential.Record)) {
	e.t.Helper()
	m.record.Epoch++
	change(m.record)
	e.apply(m)
}

// at stops the clock.
func (e *edge) at(clock time.Time) *edge {
	e.setClock(clock)
	return e
}

func TestACredentialIsHeldToItsRateAtEveryDoor(t *testing.T) {
	for name, ask := range map[string]func(e *edge, value, jwt, asker string) answer{
		"forward-auth": func(e *edge, value, _, _ string) answer { return e.ask("GET", "/forward-auth", "", "X-API-Key", value) },
		"a JWT":        func(e *edge, _, jwt, _ string) answer { return e.ask("GET", "/forward-auth", "", bearerOf(jwt)...) },
		"the profile": func(e *edge, value, _, _ string) answer {
			return e.ask("GET", "/api/auth/profile", "", "X-API-Key", value)
		},
		"issuing a JWT": func(e *edge, value, _, _ string) answer {
			return e.ask("POST", "/api/auth/token", "", "X-API-Key", value)
		},
		"renewing one":   func(e *edge, _, jwt, _ string) answer { return e.ask("POST", "/api/auth/renew", "", bearerOf(jwt)...) },
		"the check call": func(e *edge, value, _, _ string) answer { return e.check(value, `{"action":"api:read"}`) },
		"asked by others": func(e *edge, value, _, asker string) answer {
			return e.check(asker, `{"token":"`+value+`","action":"api:read"}`)
		},
		"introspection": func(e *edge, value, _, _ string) answer {
			return e.post(introspectionPath, tokenForm("sk_"+strings.Repeat("0", 64)), value)
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEdge(t, setup{}).at(noon)
			e.operators()
			m := e.operator("ci", "payments", "api:read", PermissionIntrospect)
			jwt, asker := e.jwtFor(m, ""), e.operator("asker", "payments", PermissionCheck).value()
			e.limit(1)
			e.change(m, rated(3, time.Minute, 3))
			for i := range 3 {
				if got := ask(e, m.value(), jwt, asker); got.status != http.StatusOK {
					t.Fatalf("request %d: %d %s", i, got.status, got.body)
				}
			}
			got := ask(e, m.value(), jwt, asker)
			if got.status != http.StatusTooManyRequests || got.header.Get("Retry-After") != "20" || got.header.Get("Content-Type") != problemType {
				t.Fatalf("the fourth: %d, Retry-After %q, %s", got.status, got.header.Get("Retry-After"), got.body)
			}
			if p := got.members(t); p["status"] != 429.0 || p["title"] != "Too Many Requests" || p["detail"] == "" {
				t.Errorf("the problem is %s", got.body)
			}
			e.setClock(noon.Add(20 * time.Second))
			if got := ask(e, m.value(), jwt, asker); got.status != http.StatusOK {
				t.Errorf("after what Retry-After says: %d %s", got.status, got.body)
			}
			if got := ask(e, m.value(), jwt, asker); got.status != http.StatusTooManyRequests {
				t.Errorf("and another one: %d %s", got.status, got.body)
			}
			metrics := scrape(t, e.registry)
			for _, want := range []string{`mintmark_server_limited_total{by="credential"} 2`, `code="RateLimit"`, `outcome="rate_limited"`} {
				if !strings.Contains(metrics, want) {
					t.Errorf("the metrics lack %s", want)
				}
			}
		})
	}
}

func TestWhoHasARateIsToldOfItInEveryAnswer(t *testing.T) {
	e := newEdge(t, setup{}).at(noon)
	e.limit(1)
	m := e.mint("ci", rated(100, time.Minute, 3))
	for i, want := range []string{`"credential";r=2;t=1`, `"credential";r=1;t=2`, `"credential";r=0;t=2`, `"credential";r=0;t=2`} {
		path, status := "/forward-auth", 200
		switch i {
		case 1:
			path, status = "/forward-auth?permission=none:none", 403
		case 3:
			status = 429
		}
		got := e.ask("GET", path, "", "X-API-Key", m.value())
		if got.status != status || got.header.Get("RateLimit") != want || got.header.Get("RateLimit-Policy") != `"credential";q=100;w=60` {
			t.Errorf("%d: %d, RateLimit %s, RateLimit-Policy %s", i, got.status, got.header.Get("RateLimit"), got.header.Get("RateLimit-Policy"))
		}
	}
	got := e.ask("GET", "/forward-auth", "", "X-API-Key", e.mint("free").value())
	if got.status != 200 || got.header.Get("RateLimit") != "" || got.header.Get("RateLimit-Policy") != "" || got.header.Get("Retry-After") != "" {
		t.Errorf("without a rate: %d %v", got.status, got.header)
	}
}

func TestAKeyItsVersionsAndItsJWTsShareABucket(t *testing.T) {
	e := newEdge(t, setup{}).at(noon)
	m := e.mint("ci")
	first, jwt := m.value(), e.jwtFor(m, "")
	token, err := credential.Format{Kind: v1alpha1.KindServiceToken}.Mint(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	digest := e.peppers.Current().Digest(token.Inner())
	e.change(m, func(r *credential.Record) {
		rated(4, time.Hour, 4)(r)
		r.Versions[0].State, r.Versions[0].Superseded = v1alpha1.VersionSuperseded, noon.Unix()
		r.Versions = append(r.Versions, credential.SealedVersion{Number: 2, Digest: digest[:], Pepper: "p1", Prefix: token.Prefix(), State: v1alpha1.VersionActive})
	})
	e.limit(1)
	for i, value := range []string{first, jwt, token.Reveal(), first} {
		if got := e.ask("GET", "/forward-auth", "", bearerOf(value)...); got.status != 200 {
			t.Fatalf("%d: %d %s", i, got.status, got.body)
		}
	}
	for i, value := range []string{first, jwt, token.Reveal()} {
		if got := e.ask("GET", "/forward-auth", "", bearerOf(value)...); got.status != 429 {
			t.Errorf("%d: %d, want 429", i, got.status)
		}
	}
}

func TestALimitThatIsEditedActsAtOnce(t *testing.T) {
	e := newEdge(t, setup{}).at(noon)
	e.limit(1)
	m := e.mint("ci", rated(10, time.Hour, 10))
	ask := func() int { return e.ask("GET", "/forward-auth", "", "X-API-Key", m.value()).status }
	if got := ask(); got != 200 {
		t.Fatal(got)
	}
	// By the owner alone, as the object is edited and before the controller seals it.
	m.object.Spec.RateLimit = &v1alpha1.RateLimit{Requests: 1, Per: "1h"}
	e.apply(m)
	if got := []int{ask(), ask()}; !slices.Equal(got, []int{200, 429}) {
		t.Errorf("narrowed: %v", got)
	}
	m.object.Spec.RateLimit = nil
	e.change(m, func(r *credential.Record) { r.Rate = nil })
	if got := []int{ask(), ask()}; !slices.Equal(got, []int{200, 200}) {
		t.Errorf("lifted: %v", got)
	}
}

// What somebody tries with a value that was revoked or has expired costs its owner, who
// holds another one, nothing of the rate.
func TestWhatIsRefusedTakesNothingOfTheRate(t *testing.T) {
	e := newEdge(t, setup{}).at(noon)
	e.limit(1)
	m := e.mint("ci", rated(2, time.Hour, 2))
	good := m.record.Versions[0]
	var bad []string
	e.change(m, func(r *credential.Record) {
		for i, change := range []func(*credential.SealedVersion){
			func(v *credential.SealedVersion) { v.State = v1alpha1.VersionRevoked },
			func(v *credential.SealedVersion) { v.Expires = noon.Add(-time.Minute).Unix() },
		} {
			token, err := credential.Format{Kind: v1alpha1.KindServiceToken}.Mint(rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			digest := e.peppers.Current().Digest(token.Inner())
			v := good
			v.Number, v.Digest, v.Prefix = int64(i+2), digest[:], token.Prefix()
			change(&v)
			r.Versions, bad = append(r.Versions, v), append(bad, token.Reveal())
		}
	})
	for range 5 {
		for _, value := range bad {
			if got := e.ask("GET", "/forward-auth", "", "X-API-Key", value); got.status != 401 || got.header.Get("RateLimit") != "" {
				t.Fatalf("%d, RateLimit %q", got.status, got.header.Get("RateLimit"))
			}
		}
	}
	if got := e.ask("GET", "/forward-auth", "", "X-API-Key", m.value()); got.status != 200 || got.header.Get("RateLimit") != `"credential";r=1;t=1800` {
		t.Errorf("%d, RateLimit %s", got.status, got.header.Get("RateLimit"))
	}
}

// structured is an item of a structured field list (RFC 9651) as the draft has it: a
// string and integers.
var structured = regexp.MustCompile(`^"[ -!#-\[\]-~]+"(;[a-z]+=(0|[1-9][0-9]{0,14}))+$`)

func TestTheHeadersOfARateAreStructuredFields(t *testing.T) {
	for name, c := range map[string]struct {
		rate         limit.Rate
		left         limit.Result
		policy, told string
	}{
		"a minute":              {limit.Rate{Requests: 100, Per: time.Minute}, limit.Result{Remaining: 50, Reset: 30 * time.Second}, `"credential";q=100;w=60`, `"credential";r=50;t=30`},
		"rounded up":            {limit.Rate{Requests: 1, Per: time.Second}, limit.Result{Reset: time.Nanosecond}, `"credential";q=1;w=1`, `"credential";r=0;t=1`},
		"half a second":         {limit.Rate{Requests: 10, Per: time.Second / 2}, limit.Result{Remaining: 10}, `"credential";q=20;w=1`, `"credential";r=10;t=0`},
		"a second and a half":   {limit.Rate{Requests: 3, Per: 3 * time.Second / 2}, limit.Result{Remaining: 3}, `"credential";q=4;w=2`, `"credential";r=3;t=0`},
		"the most there can be": {limit.Rate{Requests: 1e9, Per: time.Millisecond}, limit.Result{Remaining: 1e9}, `"credential";q=1000000000000;w=1`, `"credential";r=1000000000;t=0`},
		"a year":                {limit.Rate{Requests: 1, Per: 8760 * time.Hour}, limit.Result{Reset: 8760 * time.Hour}, `"credential";q=1;w=31536000`, `"credential";r=0;t=31536000`},
	} {
		t.Run(name, func(t *testing.T) {
			q := quota{c.rate, c.left}
			policy, told := q.headers()
			if diff := cmp.Diff([]string{c.policy, c.told}, []string{policy, told}); diff != "" {
				t.Error(diff)
			}
			if !structured.MatchString(policy) || !structured.MatchString(told) {
				t.Errorf("%s or %s is no structured field", policy, told)
			}
		})
	}
}

func TestEnvoyIsToldOfRatesAndTellsTheClient(t *testing.T) {
	e := newEdge(t, setup{proxies: localProxies}).at(noon)
	e.limit(1)
	conn := e.rpc()
	m := e.mint("ci", rated(1, time.Minute, 1))
	q := envoy{headers: map[string]string{"authorization": "Bearer " + m.value()}}
	answer := e.askEnvoy(conn, q)
	if told(answer) != 200 {
		t.Fatal(answer)
	}
	headers := map[string]string{}
	for _, h := range answer.GetOkResponse().GetResponseHeadersToAdd() {
		headers[h.GetHeader().GetKey()] = h.GetHeader().GetValue()
	}
	want := map[string]string{"ratelimit-policy": `"credential";q=1;w=60`, "ratelimit": `"credential";r=0;t=60`}
	if diff := cmp.Diff(want, headers); diff != "" {
		t.Errorf("the client gets other headers (-want +got):\n%s", diff)
	}
	for _, h := range answer.GetOkResponse().GetHeaders() {
		if strings.HasPrefix(h.GetHeader().GetKey(), "ratelimit") {
			t.Error("the backend is told of the rate")
		}
	}
	answer = e.askEnvoy(conn, q)
	if told(answer) != 429 || answer.GetStatus().GetCode() != int32(codes.ResourceExhausted) {
		t.Fatal(answer)
	}
	clear(headers)
	for _, h := range answer.GetDeniedResponse().GetHeaders() {
		headers[h.GetHeader().GetKey()] = h.GetHeader().GetValue()
	}
	want["retry-after"], want["content-type"], want["cache-control"] = "60", problemType, "no-store"
	if diff := cmp.Diff(want, headers); diff != "" {
		t.Errorf("the client gets other headers (-want +got):\n%s", diff)
	}
	free := e.askEnvoy(conn, envoy{headers: map[string]string{"authorization": "Bearer " + e.mint("free").value()}})
	if told(free) != 200 || len(free.GetOkResponse().GetResponseHeadersToAdd()) != 0 {
		t.Errorf("without a rate: %v", free)
	}
}

// nginx knows 401 and 403 for refusals.
func TestAGatewayChoosesTheStatusOfALimit(t *testing.T) {
	e := newEdge(t, setup{}).at(noon)
	e.limit(1)
	m := e.mint("ci", rated(1, time.Hour, 1))
	for query, want := range map[string]int{
		"": 429, "?limited=429": 429, "?limited=403": 403, "?permission=api:read&limited=403": 403, "?limited=200": 429, "?limited=403&limited=403": 429,
	} {
		e.ask("GET", "/forward-auth", "", "X-API-Key", m.value())
		got := e.ask("GET", "/forward-auth"+query, "", "X-API-Key", m.value())
		if got.status != want || got.header.Get("Retry-After") != "3600" || got.header.Get("RateLimit") == "" || got.header.Get("Www-Authenticate") != "" {
			t.Errorf("%s: %d, want %d, %v", query, got.status, want, got.header)
		}
	}
	free := e.mint("free")
	for query, want := range map[string]int{"?limited=403": 200, "?limited=429": 200, "?limited=200": 400, "?limited=403&limited=403": 400, "?limited": 400} {
		if got := e.ask("GET", "/forward-auth"+query, "", "X-API-Key", free.value()); got.status != want {
			t.Errorf("%s: %d, want %d", query, got.status, want)
		}
	}
	if got := e.ask("GET", "/api/auth/profile?limited=403", "", "X-API-Key", m.value()); got.status != 429 {
		t.Errorf("at another door: %d, want 429", got.status)
	}
}

func TestServersTogetherLetThroughWhatTheRateSays(t *testing.T) {
	for _, n := range []int{1, 2, 3, 7} {
		t.Run(strconv.Itoa(n), func(t *testing.T) {
			m := newMetricsOfItsOwn()
			servers := make([]*credentialLimits, n)
			for i := range servers {
				servers[i] = newCredentialLimits(m, func() int { return n })
			}
			who := &authn.Principal{Identity: &authn.Identity{UID: "uid-ci"}, Grant: &authn.Grant{Rate: &authn.Rate{Requests: 50, Per: time.Second, Burst: 50}}}
			passed, seconds := 0, 20
			for tick := range seconds * 1000 {
				e := &evaluation{now: noon.Add(time.Duration(tick) * time.Millisecond), verdict: authn.Verdict{OK: true, Principal: who}}
				if servers[tick%n].admit(e) == nil {
					passed++
				}
			}
			// What the rate gives, and the burst at the beginning.
			want := 50*seconds + 50
			if off := float64(passed-want) / float64(want); off < -0.03 || off > 0.03 {
				t.Errorf("%d passed, want about %d", passed, want)
			}
		})
	}
}

func TestServersAreCountedByLeasesThatAreRenewed(t *testing.T) {
	r := &replicas{log: slog.New(slog.DiscardHandler)}
	if r.number() != 1 {
		t.Errorf("%d before anything was listed, want 1", r.number())
	}
	lease := func(name string, renewed time.Time) coordinationv1.Lease {
		at := metav1.NewMicroTime(renewed)
		return coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: coordinationv1.LeaseSpec{RenewTime: &at}}
	}
	// The other's clock is an hour off, and that is nothing.
	theirs := noon.Add(-time.Hour)
	for _, step := range []struct {
		what   string
		after  time.Duration
		leases []coordinationv1.Lease
		want   int
	}{
		{"nothing yet", 0, nil, 1},
		{"two", 0, []coordinationv1.Lease{lease("a", noon), lease("b", theirs)}, 2},
		{"both renewed", 10 * time.Second, []coordinationv1.Lease{lease("a", noon.Add(10*time.Second)), lease("b", theirs.Add(9*time.Second))}, 2},
		{"one is not any more", 24 * time.Second, []coordinationv1.Lease{lease("a", noon.Add(24*time.Second)), lease("b", theirs.Add(9*time.Second))}, 2},
		{"for as long as a Lease lasts", 25 * time.Second, []coordinationv1.Lease{lease("a", noon.Add(25*time.Second)), lease("b", theirs.Add(9*time.Second))}, 1},
		{"and is again", 30 * time.Second, []coordinationv1.Lease{lease("a", noon.Add(30*time.Second)), lease("b", theirs.Add(30*time.Second))}, 2},
		{"one is gone", 31 * time.Second, []coordinationv1.Lease{lease("b", theirs.Add(31*time.Second))}, 1},
		{"a third without a time", 32 * time.Second, []coordinationv1.Lease{lease("b", theirs.Add(32*time.Second)), {ObjectMeta: metav1.ObjectMeta{Name: "c"}}}, 2},
	} {
		r.observe(step.leases, noon.Add(step.after))
		if got := r.number(); got != step.want {
			t.Errorf("%s: %d, want %d", step.what, got, step.want)
		}
	}
}

// Three real servers, with the permissions that are installed, and a credential whose rate
// gives next to nothing beyond the burst for as long as the test takes.
func TestTheServersOfAnInstallationShareARate(t *testing.T) {
	in := newInstallation(t)
	var servers []*running
	for _, id := range []string{"one", "two", "three"} {
		servers = append(servers, in.startReady(func(c *Config) { c.ID = id }))
	}
	for _, s := range servers {
		eventually(t, 15*time.Second, "every server counts three", func() bool { return s.server.replicas.number() == 3 })
	}
	s := in.credential(func(o *v1alpha1.ServiceToken) { o.Spec.RateLimit = &v1alpha1.RateLimit{Requests: 30, Per: "24h"} })
	passed := 0
	for _, r := range servers {
		r.expect(soon, s, 200, "the credential has arrived")
		passed++
	}
	// What was asked before it was accepted took nothing.
	for _, r := range servers {
		for range 20 {
			switch got := r.check(s.token.Reveal()); got {
			case 200:
				passed++
			case 429:
			default:
				t.Fatalf("%d, want 200 or 429", got)
			}
		}
	}
	if passed != 30 {
		t.Errorf("%d passed, want 30", passed)
	}
	if _, metrics := servers[0].probe("/metrics"); !strings.Contains(metrics, "mintmark_server_limit_shares 3") {
		t.Error("the metrics do not tell of three shares")
	}

	// Edited, it acts as soon as the servers have heard of it.
	patch := []byte(`{"spec":{"rateLimit":null}}`)
	if err := in.client.Patch(t.Context(), s.object, client.RawPatch(types.MergePatchType, patch)); err != nil {
		t.Fatal(err)
	}
	servers[1].expect(soon, s, 200, "the limit is lifted")

	// Whoever leaves leaves the rate to the others.
	if err := servers[0].stop(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 15*time.Second, "two servers are left", func() bool {
		return servers[1].server.replicas.number() == 2 && servers[2].server.replicas.number() == 2
	})
	// And when nobody can be asked, what was last known stands.
	servers[1].wire.set(func(w *wire) { w.down = true })
	servers[1].server.replicas.refresh(t.Context())
	if got := servers[1].server.replicas.number(); got != 2 {
		t.Errorf("cut off it counts %d, want 2", got)
	}
}

func TestTheLimitOfACredentialIsNotInItsWay(t *testing.T) {
	// A Principal of no record, which has no rate.
	l := newCredentialLimits(newMetricsOfItsOwn(), nil)
	for name, who := range map[string]*authn.Principal{
		"nobody": nil, "no grant": {Identity: &authn.Identity{UID: "x"}}, "no rate": {Identity: &authn.Identity{UID: "x"}, Grant: new(authn.Grant)},
	} {
		e := &evaluation{now: noon, verdict: authn.Verdict{Principal: who}}
		if p := l.admit(e); p != nil || e.quota.known() || e.quotaPairs() != nil {
			t.Errorf("%s: %v", name, p)
		}
	}
	if l.buckets.Len() != 0 {
		t.Error("they have a bucket")
	}
}
