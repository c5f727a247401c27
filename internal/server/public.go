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

	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/authz"
	"github.com/mintmark-dev/mintmark/internal/oauth"
)

// public is the HTTPS interface for callers and gateways.
//
// Every request takes the way of dispatch: the chain, then the route's handler. The
// chain decides who the caller is, and stops the request where that fails, so that a
// handler with access needing a credential runs with one or not at all. Handlers return what
// went wrong as a problem; nothing else writes an error.
type public struct {
	index   *authn.Index
	issuer  *oauth.Issuer
	gate    gate
	proxies proxies
	metrics *metrics
	log     *slog.Logger
	ids     requestIDs
	now     func() time.Time

	needs    needs
	decided  decisions
	notFound *route
	lines    *lineLimit
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
}

// newPublic makes the handler of the public listener.
func newPublic(c publicConfig) http.Handler {
	p := &public{
		index: c.index, issuer: c.issuer, gate: c.gate, proxies: c.proxies, metrics: c.metrics, log: c.log, now: c.now,
		ids: newRequestIDs(), decided: newDecisions(c.metrics), lines: newLineLimit(),
	}
	return p.mount(&tokens{issuer: c.issuer, metrics: c.metrics, log: c.log}, &documents{issuer: c.issuer})
}

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
	path    string // as http.ServeMux has it
	access  access
	serve   func(*exchange) *problem

	observers observers
}

// mount wires every path. This is the whole public surface.
func (p *public) mount(tokens *tokens, documents *documents) http.Handler {
	routes := []*route{
		{name: "token", methods: "POST", path: "/api/auth/token", access: accessKey, serve: tokens.exchange},
		{name: "profile", methods: "GET HEAD", path: "/api/auth/profile", access: accessCredential, serve: p.profile},
		{name: "me", methods: "GET HEAD", path: "/api/v1/auth/me", access: accessCredential, serve: p.profile},
		{name: "forward-auth", path: "/forward-auth", access: accessCredential, serve: p.forwardAuth},
		{name: "health", methods: "GET HEAD", path: "/api/v1/auth/health", access: accessAnyone, serve: p.health},
		{name: "jwks", methods: "GET HEAD", path: oauth.JWKSPath, access: accessAnyone, serve: documents.keySet},
		{name: "metadata", methods: "GET HEAD", path: oauth.MetadataPath, access: accessAnyone, serve: documents.metadata},
		{name: "discovery", methods: "GET HEAD", path: oauth.DiscoveryPath, access: accessAnyone, serve: documents.metadata},
	}
	p.notFound = &route{name: "none", access: accessAnyone, serve: func(*exchange) *problem { return problemNotFound }}
	p.notFound.observers = p.metrics.route(p.notFound.name)

	mux := http.NewServeMux()
	for _, r := range routes {
		r.observers = p.metrics.route(r.name)
		mux.HandleFunc(r.path, func(w http.ResponseWriter, req *http.Request) { p.dispatch(w, req, r) })
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, req *http.Request) { p.dispatch(w, req, p.notFound) })
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
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
	{"gate", (*public).checkGate},
	{"authenticate", (*public).authenticate},
	// After the caller is known, so that no method is answered otherwise than another to
	// whom it is not.
	{"method", (*public).checkMethod},
}

// exchange is one request on its way through the chain.
type exchange struct {
	w     http.ResponseWriter
	r     *http.Request
	route *route
	now   time.Time
	began time.Time
	id    string
	peer  netip.Addr
	// trusted: the peer's word is taken on whom it forwards.
	trusted bool
	client  netip.Addr

	how     presentation
	verdict authn.Verdict
	claims  oauth.Claims // of a JWT
	scope   authz.Set    // of a JWT: what it says it is for
	outcome outcome
	status  int
	note    string // for operators, beside the verdict's reason
}

// caller is who presented a good credential; nil on routes open to anyone.
func (x *exchange) caller() *authn.Principal { return x.verdict.Principal }

var exchanges = sync.Pool{New: func() any { return new(exchange) }}

// dispatch takes a request through the chain to the route's handler.
func (p *public) dispatch(w http.ResponseWriter, r *http.Request, rt *route) {
	x := exchanges.Get().(*exchange)
	now := p.now()
	*x = exchange{w: w, r: r, route: rt, now: now, began: now, status: http.StatusOK}
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
	if p.Status == http.StatusUnauthorized {
		x.w.Header()["Www-Authenticate"] = x.challenge()
	}
	p.write(x.w)
}

// finish recovers a panic and records what came of the request.
func (p *public) finish(x *exchange) {
	if thrown := recover(); thrown != nil {
		p.metrics.panics.Inc()
		// The value is not logged: it may be made of what the request held.
		p.log.Error("a request ended in a panic", "panic", fmt.Sprintf("%T", thrown), "stack", stack(), "request_id", x.id, "route", x.route.name)
		x.fail(problemInternal)
	}
	took := p.now().Sub(x.began)
	x.route.observers.observe(x.outcome, took)
	p.record(x, took)
	*x = exchange{}
	exchanges.Put(x)
}

func stack() string { return string(debug.Stack()) }

// harden sets the headers every answer has. Handlers may loosen Cache-Control.
func (p *public) harden(x *exchange) *problem {
	h := x.w.Header()
	h["X-Content-Type-Options"] = nosniff
	h["Cache-Control"] = noStore
	h["Strict-Transport-Security"] = strictTransport
	h["Content-Security-Policy"] = contentSecurity
	if p.gate.draining() {
		// The client opens its next connection to another replica.
		h["Connection"] = connectionClose
	}
	return nil
}

var (
	nosniff         = []string{"nosniff"}
	strictTransport = []string{"max-age=31536000"}
	contentSecurity = []string{"default-src 'none'; frame-ancestors 'none'"}
	connectionClose = []string{"close"}
)

// identify finds out where the request came from and gives it an id.
func (p *public) identify(x *exchange) *problem {
	x.peer = peerAddr(x.r)
	x.trusted = len(p.proxies) > 0 && p.proxies.trust(x.peer)
	x.client = p.proxies.clientAddr(x.r, x.peer)
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

// checkGate refuses to decide anything while this server cannot: cold, or staler than it
// may be. What is public is answered all the same.
func (p *public) checkGate(x *exchange) *problem {
	if x.route.access == accessAnyone {
		return nil
	}
	if err := p.gate.open(x.now); err != nil {
		x.note = err.Error()
		x.w.Header()["Retry-After"] = retryAfter
		return problemUnavailable
	}
	return nil
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
