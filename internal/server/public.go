package server

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"path"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/mintmark-dev/mintmark/internal/audit"
	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/management"
	"github.com/mintmark-dev/mintmark/internal/oauth"
)

// public is the HTTPS interface for callers and gateways.
//
// Every request takes the way of dispatch: the chain, then the route's handler. The
// chain decides who the caller is, and stops the request where that fails, so that a
// handler with access needing a credential runs with one or not at all. Handlers return what
// went wrong as a problem; nothing else writes an error.
type public struct {
	decider
	proxies proxies
	metrics *metrics
	log     *slog.Logger
	ids     requestIDs
	now     func() time.Time

	identity identityHeaders
	needs    needs
	notFound *route
	lines    *lineLimit
	revoker  revoker // nil: no single JWT is revoked here
	audit    *auditor
	system   *system         // nil: nothing tells of the system
	manager  *management.API // nil: nothing is managed here
	handler  http.Handler
}

// publicConfig is what the public interface is made of.
type publicConfig struct {
	index   *authn.Index
	issuer  *oauth.Issuer
	gate    gate
	proxies proxies
	metrics *metrics
	log     *slog.Logger
	now     func() time.Time
	// identity is how the identity headers are called; zero: by their default names.
	identity IdentityHeaders
	limits   limiter
	guard    *addressGuard // nil: no address is limited or blocked
	policies *policies
	revoker  revoker // nil: no single JWT is revoked here
	foreign  *foreign
	audit    *auditor // nil: nothing is recorded
	system   *system
	manager  *management.API
}

// newPublic makes the handler of the public listener.
func newPublic(c publicConfig) *public {
	p := &public{
		decider: decider{
			index: c.index, issuer: c.issuer, gate: c.gate, decided: newDecisions(c.metrics), limits: c.limits, policies: c.policies,
			foreign: c.foreign, guard: c.guard,
		},
		proxies: c.proxies, metrics: c.metrics, log: c.log, now: c.now, identity: c.identity.prepare(),
		ids: newRequestIDs(), lines: newLineLimit(), revoker: c.revoker,
		audit: c.audit, system: c.system, manager: c.manager,
	}
	if p.audit != nil {
		p.audit.ids = &p.ids
	}
	p.handler = p.mount(&tokens{index: c.index, issuer: c.issuer, metrics: c.metrics, log: c.log}, &documents{issuer: c.issuer})
	return p
}

// ServeHTTP answers on the public listener.
func (p *public) ServeHTTP(w http.ResponseWriter, r *http.Request) { p.handler.ServeHTTP(w, r) }

// access says who may call a route.
type access uint8

const (
	// accessCredential lets in whoever presents a good credential, key or JWT. It is the
	// zero value: a route that says nothing is closed.
	accessCredential access = iota
	// accessKey lets in keys alone.
	accessKey
	// accessAnyone lets in everybody: what is answered is public.
	accessAnyone
)

// route is one operation of the public interface.
type route struct {
	name    string // in metrics and logs
	methods string // separated by spaces; empty means any
	path    string
	access  access
	// forGateways: what is allowed goes no further than the gateway that asks, and no
	// browser sees the answer. A refusal is passed on.
	forGateways bool
	serve       func(*exchange) *problem
	// event is what a request is recorded as; empty: it is not.
	event audit.Type
	// managed: it is an operation of the management API.
	managed bool

	observers observers
}

// mount wires every path. This is the whole public surface.
func (p *public) mount(tokens *tokens, documents *documents) http.Handler {
	routes := []*route{
		{name: "token", event: audit.TypeTokenIssued, methods: "POST", path: "/api/auth/token", access: accessKey, serve: tokens.exchange},
		{name: "renew", event: audit.TypeTokenIssued, methods: "POST", path: "/api/auth/renew", access: accessCredential, serve: tokens.renew},
		{name: "introspect", event: audit.TypeIntrospection, methods: "POST", path: introspectionPath, access: accessCredential, serve: p.introspect},
		{name: "revoke", event: audit.TypeTokenRevoked, methods: "POST", path: revocationPath, access: accessCredential, serve: p.revoke},
		{name: "profile", event: audit.TypeAuthentication, methods: "GET HEAD", path: "/api/auth/profile", access: accessCredential, serve: p.profile},
		{name: "me", event: audit.TypeAuthentication, methods: "GET HEAD", path: "/api/v1/auth/me", access: accessCredential, serve: p.profile},
		{name: "oauth-token", event: audit.TypeTokenExchanged, methods: "POST", path: tokenPath, access: accessAnyone, serve: (&tokenEndpoint{p}).serve},
		{name: "forward-auth", event: audit.TypeAuthentication, path: "/forward-auth", access: accessCredential, forGateways: true, serve: p.forwardAuth},
		{name: "check", event: audit.TypeAuthentication, methods: "POST", path: "/api/v1/auth/check", access: accessCredential, serve: p.check},
		{name: "health", methods: "GET HEAD", path: "/api/v1/auth/health", access: accessAnyone, serve: p.health},
		{name: "system-health", methods: "GET HEAD", path: "/api/v1/system/health", access: accessAnyone, serve: p.health},
		{name: "system-status", event: audit.TypeAuthentication, methods: "GET HEAD", path: systemStatusPath, access: accessCredential, serve: p.systemStatus},
		{name: "jwks", methods: "GET HEAD", path: oauth.JWKSPath, access: accessAnyone, serve: documents.keySet},
		{name: "metadata", methods: "GET HEAD", path: oauth.MetadataPath, access: accessAnyone, serve: documents.metadata},
		{name: "discovery", methods: "GET HEAD", path: oauth.DiscoveryPath, access: accessAnyone, serve: documents.metadata},
	}
	p.notFound = &route{name: "none", access: accessAnyone, serve: func(*exchange) *problem { return problemNotFound }}
	p.notFound.observers = p.metrics.route(p.notFound.name)

	// What gateways ask about every request is one of these: they are found by their paths.
	exact := make(map[string]*route, len(routes))
	for _, r := range routes {
		r.observers, exact[r.path] = p.metrics.route(r.name), r
	}
	mux := http.NewServeMux()
	p.mountManagement(mux)
	mux.HandleFunc("/", func(w http.ResponseWriter, req *http.Request) { p.dispatch(w, req, p.notFound) })
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if r := exact[req.URL.Path]; r != nil && req.URL.RawPath == "" {
			p.dispatch(w, req, r)
			return
		}
		// The mux would answer a path that is not clean with a redirect to one that is.
		if !canonicalOwnPath(req) {
			p.dispatch(w, req, p.notFound)
			return
		}
		mux.ServeHTTP(w, req)
	})
}

// chain is what every request passes, in this order, before its handler.
var chain = []struct {
	name string
	step func(*public, *exchange) *problem
}{
	{"headers", (*public).harden},
	{"identify", (*public).identify},
	{"admit", (*public).admit},
	// After the caller is known, so that no method is answered otherwise than another to
	// whom it is not.
	{"method", (*public).checkMethod},
}

// visit is one request at any door, as logs and metrics tell of it.
type visit struct {
	evaluation

	route *route
	began time.Time
	id    string
	// method of the request to us, which is not the one asked about.
	method string
	peer   netip.Addr
	agent  string // its User-Agent
	// trusted: the peer's word is taken on whom it forwards.
	trusted bool
	outcome outcome
	status  int
	// report is what an operation of the management API says of itself.
	report *management.Report
}

// exchange is one HTTP request on its way through the chain.
type exchange struct {
	visit

	w http.ResponseWriter
	r *http.Request
}

var exchanges = sync.Pool{New: func() any { return new(exchange) }}

// dispatch takes a request through the chain to the route's handler.
func (p *public) dispatch(w http.ResponseWriter, r *http.Request, rt *route) {
	x := exchanges.Get().(*exchange)
	now := p.now()
	*x = exchange{w: w, r: r}
	x.route, x.now, x.began, x.status, x.method = rt, now, now, http.StatusOK, r.Method
	defer p.finish(x)
	for i := range chain {
		if problem := chain[i].step(p, x); problem != nil {
			x.fail(problem)
			return
		}
	}
	if problem := rt.serve(x); problem != nil {
		x.fail(problem)
	}
}

func (x *exchange) fail(p *problem) {
	x.outcome, x.status = p.outcome, p.Status
	if x.route.forGateways {
		hardenForBrowsers(x.w.Header())
	}
	if challenge := x.challenge(p.Status); challenge != nil {
		x.w.Header()["Www-Authenticate"] = challenge
	}
	if p.Status == http.StatusServiceUnavailable {
		x.w.Header()["Retry-After"] = retryAfter
	}
	if seconds := x.retrySeconds(); seconds != "" {
		x.w.Header()["Retry-After"] = []string{seconds}
	}
	p.write(x.w)
}

// finish recovers a panic and records what came of the request.
func (p *public) finish(x *exchange) {
	if thrown := recover(); thrown != nil {
		p.metrics.panics.Inc()
		// The value is not logged: it may be made of what the request held.
		p.log.Error("a request ended in a panic", "panic", fmt.Sprintf("%T", thrown), "stack", stack(), "request_id", x.id, "route", x.route.name)
		x.code = codePanic
		x.fail(problemInternal)
	}
	p.account(&x.visit)
	*x = exchange{}
	exchanges.Put(x)
}

// account tells metrics and the log what came of a request.
func (p *public) account(v *visit) {
	took := p.now().Sub(v.began)
	v.route.observers.observe(v.outcome, took)
	if v.code != "" && v.outcome != outcomeOK {
		p.metrics.denials.WithLabelValues(v.route.name, v.code).Inc()
	}
	p.record(v, took)
	p.audit.request(v, took)
}

func stack() string { return string(debug.Stack()) }

// harden sets the headers every answer has. Handlers may loosen Cache-Control.
func (p *public) harden(x *exchange) *problem {
	h := x.w.Header()
	h["Cache-Control"] = noStore
	if !x.route.forGateways {
		hardenForBrowsers(h)
	}
	if p.gate.draining() {
		// The client opens its next connection to another replica.
		h["Connection"] = connectionClose
	}
	return nil
}

// hardenForBrowsers sets what browsers heed.
func hardenForBrowsers(h http.Header) {
	h["X-Content-Type-Options"] = nosniff
	h["Strict-Transport-Security"] = strictTransport
	h["Content-Security-Policy"] = contentSecurity
}

var (
	nosniff         = []string{"nosniff"}
	strictTransport = []string{"max-age=31536000"}
	contentSecurity = []string{"default-src 'none'; frame-ancestors 'none'"}
	connectionClose = []string{"close"}
)

// identify finds out where the request came from and gives it an id.
func (p *public) identify(x *exchange) *problem {
	x.peer, x.agent = peerAddr(x.r), agentOf(x.r.Header)
	x.trusted = len(p.proxies) > 0 && p.proxies.trust(x.peer)
	x.client = p.proxies.clientAddr(x.r, x.peer)
	x.suspect = p.heldTo(&x.visit)
	if x.trusted {
		x.id = acceptedID(x.r.Header["X-Request-Id"])
	}
	if x.id == "" {
		x.id = p.ids.next()
	}
	x.w.Header()["X-Request-Id"] = []string{x.id}
	return nil
}

// checkMethod refuses what the route has no answer to. TRACE would show a caller its own
// headers, CONNECT would open a tunnel: neither exists here.
func (p *public) checkMethod(x *exchange) *problem {
	m := x.r.Method
	if m != http.MethodTrace && m != http.MethodConnect {
		if x.route.methods == "" {
			return nil
		}
		for allowed := range strings.SplitSeq(x.route.methods, " ") {
			if m == allowed {
				return nil
			}
		}
	}
	if x.route.methods != "" {
		x.w.Header()["Allow"] = []string{strings.ReplaceAll(x.route.methods, " ", ", ")}
	}
	return problemMethod
}

var retryAfter = []string{"1"}

// canonicalOwnPath: none of our own paths has anything to encode or to clean.
func canonicalOwnPath(r *http.Request) bool {
	p := r.URL.Path
	if r.URL.RawPath != "" || p == "" || p[0] != '/' {
		return false
	}
	return p == "/" || path.Clean(p) == p && len(r.URL.EscapedPath()) == len(p)
}
