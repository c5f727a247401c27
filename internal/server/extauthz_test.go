package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/mintmark-dev/mintmark/internal/credential"
)

// rpc serves the edge over gRPC and gives a connection to it.
func (e *edge) rpc() *grpc.ClientConn {
	e.t.Helper()
	cert, key, pool := certificate(e.t, "mintmark-server")
	serving := new(serving)
	if err := serving.set(cert, key); err != nil {
		e.t.Fatal(err)
	}
	socket, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		e.t.Fatal(err)
	}
	l := &rpcListener{socket: socket, stopping: make(chan struct{})}
	l.server = newRPC(e.public, serving.config(), l.stopping)
	ended := make(chan error, 1)
	go func() { ended <- l.serve() }()
	e.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = l.stop(ctx)
		if err := <-ended; err != nil {
			e.t.Error(err)
		}
	})
	return dialRPC(e.t, socket.Addr().String(), pool)
}

func dialRPC(t testing.TB, address string, roots *x509.CertPool) *grpc.ClientConn {
	t.Helper()
	config := &tls.Config{RootCAs: roots, ServerName: "mintmark-server", MinVersion: tls.VersionTLS12}
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// envoy is what an Envoy asks: names in lower case, pseudo headers among them, its own
// headers beside the client's, and lines of one name joined.
type envoy struct {
	method, path string
	headers      map[string]string
	raw          [][2]string // encode_raw_headers
	extensions   map[string]string
	source       string
	id           string
}

func (q envoy) request() *authv3.CheckRequest {
	method, path, source := or(q.method, "GET"), or(q.path, "/orders/1?x=1"), or(q.source, "203.0.113.7")
	own := map[string]string{
		":authority": "orders.example.com", ":method": method, ":path": path, ":scheme": "https", "user-agent": "curl/8", "accept": "*/*",
		"x-forwarded-proto": "https", "x-request-id": "6f3b0a9e-1f7a-4d52-9d5d-0d6d3c9a4d11", "x-envoy-internal": "true",
	}
	http := &authv3.AttributeContext_HttpRequest{
		Id: or(q.id, "9162115398254567890"), Method: method, Path: path, Host: "orders.example.com", Scheme: "https", Protocol: "HTTP/1.1", Size: -1,
	}
	if q.raw != nil {
		http.HeaderMap = &corev3.HeaderMap{}
		for name, value := range own {
			http.HeaderMap.Headers = append(http.HeaderMap.Headers, &corev3.HeaderValue{Key: name, RawValue: []byte(value)})
		}
		for _, h := range q.raw {
			http.HeaderMap.Headers = append(http.HeaderMap.Headers, &corev3.HeaderValue{Key: h[0], RawValue: []byte(h[1])})
		}
	} else {
		maps.Copy(own, q.headers)
		http.Headers = own
	}
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Source: peerAt(source), Destination: peerAt("10.0.0.9"), Request: &authv3.AttributeContext_Request{Http: http}, ContextExtensions: q.extensions,
	}}
}

func peerAt(ip string) *authv3.AttributeContext_Peer {
	return &authv3.AttributeContext_Peer{Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: ip, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 40000},
	}}}}
}

// upstream is what Envoy makes of the answer for the client's headers.
func upstream(client map[string]string, ok *authv3.OkHttpResponse) map[string]string {
	sent := maps.Clone(client)
	for _, h := range ok.GetHeaders() {
		if h.GetAppendAction() != corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD {
			sent[h.GetHeader().GetKey()] += "," + h.GetHeader().GetValue()
			continue
		}
		sent[h.GetHeader().GetKey()] = h.GetHeader().GetValue()
	}
	for _, name := range ok.GetHeadersToRemove() {
		delete(sent, name)
	}
	return sent
}

func (e *edge) askEnvoy(conn *grpc.ClientConn, q envoy) *authv3.CheckResponse {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	answer, err := authv3.NewAuthorizationClient(conn).Check(ctx, q.request())
	if err != nil {
		e.t.Fatal(err)
	}
	return answer
}

// told is the HTTP status the client gets; 200 where the request goes on.
func told(answer *authv3.CheckResponse) int {
	if denied := answer.GetDeniedResponse(); denied != nil || answer.GetStatus().GetCode() != int32(codes.OK) {
		if answer.GetStatus().GetCode() == int32(codes.OK) || answer.GetOkResponse() != nil {
			return 0 // it says both
		}
		return int(denied.GetStatus().GetCode())
	}
	if answer.GetOkResponse() == nil {
		return 0
	}
	return 200
}

var localProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

func TestEnvoyLetsThroughWhatIsAllowedWithWhoItIsFrom(t *testing.T) {
	e := newEdge(t, setup{proxies: localProxies})
	conn := e.rpc()
	m := e.mint("ci")
	for name, headers := range map[string]map[string]string{
		"a key as a bearer token": {"authorization": "Bearer " + m.value()},
		"a key":                   {"x-api-key": m.value()},
		"both alike":              {"x-api-key": m.value(), "authorization": "bearer " + m.value()},
		"a JWT":                   {"authorization": "Bearer " + e.jwtFor(m, "")},
	} {
		t.Run(name, func(t *testing.T) {
			answer := e.askEnvoy(conn, envoy{headers: headers, extensions: map[string]string{"mintmark.permissions": "deploy:write api:read", "other": "filter"}})
			if got := told(answer); got != 200 {
				t.Fatalf("%d, want 200: %v", got, answer)
			}
			sent := upstream(headers, answer.GetOkResponse())
			want := map[string]string{"x-user-id": "servicetoken:payments:ci", "x-user-roles": "deployer", "x-user-permissions": "api:read deploy:*"}
			if diff := cmp.Diff(want, sent); diff != "" {
				t.Errorf("the backend gets other headers (-want +got):\n%s", diff)
			}
			meta := answer.GetDynamicMetadata().AsMap()
			if meta["subject"] != "servicetoken:payments:ci" || meta["uid"] != "uid-ci" || meta["version"] != 1.0 || meta["request_id"] == "" {
				t.Errorf("the metadata is %v", meta)
			}
		})
	}
}

func TestEnvoyIsToldToRefuse(t *testing.T) {
	e := newEdge(t, setup{proxies: localProxies})
	conn := e.rpc()
	m := e.mint("ci")
	limited := e.mint("limited", func(r *credential.Record) { r.CIDRs = []string{"203.0.113.0/24"} })
	jwt := e.jwtFor(e.mint("api", func(r *credential.Record) { r.JWT.Audiences = []string{"https://api.example.com"} }), "")
	good := func(value string) map[string]string { return map[string]string{"authorization": "Bearer " + value} }
	needs := func(pairs ...string) map[string]string {
		out := map[string]string{}
		for i := 0; i < len(pairs); i += 2 {
			out[pairs[i]] = pairs[i+1]
		}
		return out
	}
	const invalid, none = `Bearer realm="mintmark", error="invalid_token"`, `Bearer realm="mintmark"`
	for name, c := range map[string]struct {
		q         envoy
		status    int
		challenge string
	}{
		"no credential":                            {envoy{}, 401, none},
		"an unknown key":                           {envoy{headers: good("sk_" + strings.Repeat("0", 64))}, 401, invalid},
		"basic authentication":                     {envoy{headers: map[string]string{"authorization": "Basic cm9vdDpyb290"}}, 401, invalid},
		"two lines, joined":                        {envoy{headers: good(m.value() + "," + m.value())}, 401, invalid},
		"two lines, raw":                           {envoy{raw: [][2]string{{"authorization", "Bearer " + m.value()}, {"authorization", "Bearer " + m.value()}}}, 401, invalid},
		"one line, raw":                            {envoy{raw: [][2]string{{"authorization", "Bearer " + m.value()}}}, 200, ""},
		"two that differ":                          {envoy{headers: map[string]string{"authorization": "Bearer " + m.value(), "x-api-key": limited.value()}}, 401, invalid},
		"without the permission":                   {envoy{headers: good(m.value()), extensions: needs("mintmark.permissions", "api:read,api:write")}, 403, `Bearer realm="mintmark", error="insufficient_scope", scope="api:read api:write"`},
		"for another audience":                     {envoy{headers: good(m.value()), extensions: needs("mintmark.audiences", "https://other.example.com")}, 403, ""},
		"a JWT for another audience":               {envoy{headers: good(jwt)}, 401, invalid},
		"a JWT for this audience":                  {envoy{headers: good(jwt), extensions: needs("mintmark.audiences", "https://x https://api.example.com")}, 200, ""},
		"a misspelt requirement":                   {envoy{headers: good(m.value()), extensions: needs("mintmark.permission", "api:read")}, 403, ""},
		"a requirement that is no permission":      {envoy{headers: good(m.value()), extensions: needs("mintmark.permissions", "api:*")}, 403, ""},
		"an empty list of audiences":               {envoy{headers: good(m.value()), extensions: needs("mintmark.audiences", " ")}, 403, ""},
		"an unknown attribute of the resource":     {envoy{headers: good(m.value()), extensions: needs("mintmark.resource.ownr", "x")}, 403, ""},
		"a requirement in the client's headers":    {envoy{headers: map[string]string{"authorization": "Bearer " + m.value(), "x-mintmark-require": "permission=none:none"}}, 200, ""},
		"from its network":                         {envoy{headers: good(limited.value())}, 200, ""},
		"from another network":                     {envoy{headers: good(limited.value()), source: "198.51.100.1"}, 403, ""},
		"from its network through a trusted proxy": {envoy{headers: map[string]string{"authorization": "Bearer " + limited.value(), "x-forwarded-for": "1.2.3.4, 203.0.113.9, 127.0.0.5"}, source: "127.0.0.5"}, 200, ""},
		"from a network it made up":                {envoy{headers: map[string]string{"authorization": "Bearer " + limited.value(), "x-forwarded-for": "203.0.113.9"}, source: "198.51.100.1"}, 403, ""},
		"from a pipe":                              {envoy{headers: good(limited.value()), source: "/run/x.sock"}, 403, ""},
		"OPTIONS *":                                {envoy{headers: good(m.value()), method: "OPTIONS", path: "*"}, 200, ""},
		"another method for *":                     {envoy{headers: good(m.value()), path: "*"}, 403, ""},
	} {
		t.Run(name, func(t *testing.T) {
			answer := e.askEnvoy(conn, c.q)
			if got := told(answer); got != c.status {
				t.Fatalf("%d, want %d: %v", got, c.status, answer)
			}
			if c.status == 200 {
				return
			}
			headers := map[string]string{}
			for _, h := range answer.GetDeniedResponse().GetHeaders() {
				headers[h.GetHeader().GetKey()] = h.GetHeader().GetValue()
			}
			if headers["www-authenticate"] != c.challenge || headers["content-type"] != problemType || headers["cache-control"] != "no-store" {
				t.Errorf("the client gets %v", headers)
			}
			if body := answer.GetDeniedResponse().GetBody(); !strings.Contains(body, fmt.Sprintf(`"status":%d`, c.status)) {
				t.Errorf("the client gets %s", body)
			}
			if answer.GetDynamicMetadata() != nil {
				t.Errorf("a refusal says more than it may: %v", answer.GetDynamicMetadata())
			}
		})
	}
}

// THREATS 12: an Envoy that is not trusted is believed nothing about whom it forwards.
func TestAnEnvoyThatIsNotTrustedSpeaksForItself(t *testing.T) {
	e := newEdge(t, setup{})
	conn := e.rpc()
	there := e.mint("there", func(r *credential.Record) { r.CIDRs = []string{"203.0.113.0/24"} })
	here := e.mint("here", func(r *credential.Record) { r.CIDRs = []string{"127.0.0.1/32"} })
	headers := func(m *minted) map[string]string {
		return map[string]string{"authorization": "Bearer " + m.value(), "x-forwarded-for": "203.0.113.7"}
	}
	if got := told(e.askEnvoy(conn, envoy{headers: headers(there)})); got != 403 {
		t.Errorf("%d, want 403", got)
	}
	answer := e.askEnvoy(conn, envoy{headers: headers(here), id: "chosen"})
	if got := told(answer); got != 200 {
		t.Errorf("%d, want 200", got)
	}
	if id := answer.GetDynamicMetadata().AsMap()["request_id"]; id == "chosen" {
		t.Error("it chose the request's id")
	}
}

// THREATS 13.
func TestNoSpellingOfAnIdentityHeaderGetsPastEnvoy(t *testing.T) {
	e := newEdge(t, setup{proxies: localProxies, identity: IdentityHeaders{ID: "X-Auth-Subject"}})
	conn := e.rpc()
	m := e.mint("ci", func(r *credential.Record) { r.Roles = nil })
	for _, name := range []string{"X-Auth-Subject", "X-User-Email", "X-User-Roles", "X-User-Permissions", "X-API-Key", "Authorization"} {
		for what, spelt := range map[string]string{
			"as it is": strings.ToLower(name), "with underscores": strings.ReplaceAll(strings.ToLower(name), "-", "_"),
			"with dots": strings.ReplaceAll(strings.ToLower(name), "-", "."), "in capitals": strings.ReplaceAll(name, "-", "_"),
			"without punctuation": strings.ReplaceAll(strings.ToLower(name), "-", ""), "with more of it": strings.ReplaceAll(strings.ToLower(name), "-", "--") + "_",
		} {
			headers := map[string]string{"authorization": "Bearer " + m.value(), "connection": "keep-alive, " + spelt}
			if spelt != "authorization" && spelt != "x-api-key" {
				headers[spelt] = "root"
			}
			answer := e.askEnvoy(conn, envoy{headers: headers})
			if got := told(answer); got != 200 {
				t.Fatalf("%s %s: %d, want 200", name, what, got)
			}
			sent := upstream(headers, answer.GetOkResponse())
			for have, value := range sent {
				if value == "root" || strings.Contains(value, m.value()) {
					t.Errorf("%s %s: the backend gets %s: %s", name, what, have, value)
				}
			}
			if sent["x-auth-subject"] != "servicetoken:payments:ci" {
				t.Errorf("%s %s: the backend gets %v", name, what, sent)
			}
			if isIdentity := slices.Contains(e.public.identity.plain[:], plainName(name)); isIdentity && sent["connection"] != "" {
				t.Errorf("%s %s: Connection names it still: %s", name, what, sent["connection"])
			}
		}
	}
}

// THREATS 14.
func TestEnvoyRefusesPathsThatCanBeReadInTwoWays(t *testing.T) {
	e := newEdge(t, setup{proxies: localProxies})
	conn := e.rpc()
	m := e.mint("ci")
	for path, status := range map[string]int{
		"/orders/1": 200, "/orders/1?x=//..": 200, "/caf%C3%A9": 200, "/a%20b": 200,
		"/a%23b": 403, "//orders": 403, "/orders/%2e%2e/admin": 403, "/orders/..;/admin": 403, "/orders/../admin": 403, "/orders%2f1": 403, "/%61dmin": 403,
		"/orders;v=1/x": 403, "/a%5cb": 403, "/a\\b": 403, "/%252e": 403, "/a%00": 403, "orders": 403, "": 403,
	} {
		q := envoy{headers: map[string]string{"authorization": "Bearer " + m.value()}}
		request := q.request()
		request.Attributes.Request.Http.Path = path
		answer, err := authv3.NewAuthorizationClient(conn).Check(t.Context(), request)
		if err != nil {
			t.Fatal(err)
		}
		if got := told(answer); got != status {
			t.Errorf("%q: %d, want %d", path, got, status)
		}
	}
}

func TestEnvoyIsAnsweredWith503WhereNothingCanBeDecided(t *testing.T) {
	e := newEdge(t, setup{proxies: localProxies})
	conn := e.rpc()
	m := e.mint("ci")
	e.gate.set(errCold, false)
	for _, headers := range []map[string]string{{"authorization": "Bearer " + m.value()}, nil} {
		// A refusal, for failure_mode_allow would let an error through.
		if got := told(e.askEnvoy(conn, envoy{headers: headers})); got != 503 {
			t.Errorf("%d, want 503", got)
		}
	}
	if text := scrape(t, e.registry); !strings.Contains(text, `mintmark_server_denials_total{code="Cold",route="ext-authz"} 2`) {
		t.Error("the metrics do not say why")
	}
}

func TestNothingInACheckRequestIsTakenForGranted(t *testing.T) {
	e := newEdge(t, setup{proxies: localProxies})
	conn := e.rpc()
	for name, request := range map[string]*authv3.CheckRequest{
		"nothing":       {},
		"no request":    {Attributes: &authv3.AttributeContext{Source: peerAt("127.0.0.1")}},
		"no HTTP":       {Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{}}},
		"a nil peer":    {Attributes: &authv3.AttributeContext{Source: &authv3.AttributeContext_Peer{}}},
		"empty headers": {Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{Headers: map[string]string{"": ""}}}}},
	} {
		answer, err := authv3.NewAuthorizationClient(conn).Check(t.Context(), request)
		if err != nil || told(answer) != 401 {
			t.Errorf("%s: %v %v, want 401", name, answer, err)
		}
	}
}

func TestAPanicInADecisionIsARefusal(t *testing.T) {
	e := newEdge(t, setup{proxies: localProxies})
	conn := e.rpc()
	m := e.mint("ci")
	e.public.limits = limits(func(*evaluation) *problem { panic(errors.New("MARKER-4711")) })
	if got := told(e.askEnvoy(conn, envoy{headers: map[string]string{"authorization": "Bearer " + m.value()}})); got != 500 {
		t.Errorf("%d, want 500", got)
	}
	if strings.Contains(e.log.String(), "MARKER-4711") {
		t.Error("the log shows what the panic held")
	}
	e.public.limits = nil
	if got := told(e.askEnvoy(conn, envoy{headers: map[string]string{"authorization": "Bearer " + m.value()}})); got != 200 {
		t.Errorf("afterwards: %d, want 200", got)
	}
}

// limits is a limiter that tests write.
type limits func(*evaluation) *problem

func (l limits) admit(e *evaluation) *problem { return l(e) }

func TestACheckRequestThatIsTooLargeIsNoReasonToLetItThrough(t *testing.T) {
	e := newEdge(t, setup{proxies: localProxies})
	conn := e.rpc()
	q := envoy{headers: map[string]string{"x": strings.Repeat("x", maxMessage)}}
	if _, err := authv3.NewAuthorizationClient(conn).Check(t.Context(), q.request()); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("%v, want ResourceExhausted", err)
	}
}

func TestGRPCHealthTellsOfReadiness(t *testing.T) {
	e := newEdge(t, setup{})
	health := healthv1.NewHealthClient(e.rpc())
	check := func(service string) (healthv1.HealthCheckResponse_ServingStatus, error) {
		got, err := health.Check(t.Context(), &healthv1.HealthCheckRequest{Service: service})
		return got.GetStatus(), err
	}
	for _, service := range []string{"", "envoy.service.auth.v3.Authorization"} {
		if got, err := check(service); err != nil || got != healthv1.HealthCheckResponse_SERVING {
			t.Errorf("%q: %s %v", service, got, err)
		}
	}
	if _, err := check("other"); status.Code(err) != codes.NotFound {
		t.Errorf("another service: %v, want NotFound", err)
	}
	watch, err := health.Watch(t.Context(), &healthv1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []healthv1.HealthCheckResponse_ServingStatus{healthv1.HealthCheckResponse_SERVING, healthv1.HealthCheckResponse_NOT_SERVING} {
		got, err := watch.Recv()
		if err != nil || got.GetStatus() != want {
			t.Fatalf("%s %v, want %s", got.GetStatus(), err, want)
		}
		e.gate.set(errCold, false)
	}
	if got, err := check(""); err != nil || got != healthv1.HealthCheckResponse_NOT_SERVING {
		t.Errorf("a server that is not ready: %s %v", got, err)
	}
}

func FuzzHeaderSpellings(f *testing.F) {
	for _, s := range []string{"x-user-id", "X_User_Id", "x.user.id", "xuserid", "x-user-idx", ":path", ""} {
		f.Add(s)
	}
	a := newExtAuthz(&public{metrics: newMetricsOfItsOwn(), identity: IdentityHeaders{}.prepare()})
	f.Fuzz(func(t *testing.T, name string) {
		plain := plainName(name)
		if samePlain(name, "xuserid") != (plain == "xuserid") {
			t.Errorf("%q: plainName is %q", name, plain)
		}
		if len(name) <= 128 && !strings.HasPrefix(name, ":") && plain == "xuserid" && name != "x-user-id" && !a.imitates(name) {
			t.Errorf("%q is not taken for an imitation", name)
		}
	})
}
