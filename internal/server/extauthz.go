package server

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"

	"github.com/mintmark-dev/mintmark/internal/audit"
)

// extAuthz is Envoy's external authorization API (envoy.service.auth.v3). Every call is
// answered; a refusal is a denied response and never an error of gRPC, for
// failure_mode_allow would let those through.
//
// What a route needs stands in its context_extensions, which only Envoy's configuration
// can write. Nothing of that is taken from headers.
type extAuthz struct {
	*public

	route *route
}

func newExtAuthz(p *public) *extAuthz {
	return &extAuthz{public: p, route: &route{
		name: "ext-authz", path: "ext-authz", event: audit.TypeAuthentication, forGateways: true, observers: p.metrics.route("ext-authz"),
	}}
}

// extAuthzService is what gRPC knows of the service. Its messages are read and written
// here, for the general way costs as much again as all the rest of a call.
var extAuthzService = grpc.ServiceDesc{
	ServiceName: authv3.Authorization_ServiceDesc.ServiceName,
	HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{MethodName: "Check", Handler: func(
		service any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor,
	) (any, error) {
		ask := new(envoyCheck)
		if err := decode(ask); err != nil {
			return nil, err
		}
		return service.(*extAuthz).check(ctx, ask), nil
	}}},
	Metadata: authv3.Authorization_ServiceDesc.Metadata,
}

// check decides about a request that Envoy holds back.
func (a *extAuthz) check(ctx context.Context, ask *envoyCheck) (answer *envoyAnswer) {
	now := a.now()
	v := &visit{route: a.route, began: now, method: http.MethodPost, evaluation: evaluation{now: now}}
	defer func() {
		if thrown := recover(); thrown != nil {
			a.metrics.panics.Inc()
			// The value is not logged: it may be made of what the request held.
			a.log.Error("a request ended in a panic", "panic", fmt.Sprintf("%T", thrown), "stack", stack(), "request_id", v.id, "route", v.route.name)
			v.code = codePanic
			answer = denied(v, problemInternal)
		}
		a.account(v)
	}()
	v.peer = peerOf(ctx)
	v.trusted = len(a.proxies) > 0 && a.proxies.trust(v.peer)
	headers := a.readHeaders(ask.headers)
	if !v.trusted || !a.foreign.direct() {
		headers.carried.assertions = nil
	}
	v.carried, v.client = headers.carried, a.extAuthzClient(v, ask.source, headers.forwardedFor)
	v.suspect = a.heldTo(v)
	if v.trusted {
		v.id = acceptedID([]string{ask.id})
	}
	if v.id == "" {
		v.id = a.ids.next()
	}
	if problem := a.decider.admit(&v.evaluation); problem != nil {
		return denied(v, problem)
	}
	var problem *problem
	if v.need, problem = needOfExtensions(ask.extensions); problem != nil {
		v.code, v.note = codeRequirement, problem.Detail
		return denied(v, problemRequirement)
	}
	v.request = ask.original()
	v.request.userAgent = headers.userAgent
	if d := a.authorize(&v.evaluation); !d.allowed {
		return denied(v, d.told())
	}
	v.status = http.StatusOK
	return a.allowed(v, headers)
}

func peerOf(ctx context.Context) netip.Addr {
	p, ok := peer.FromContext(ctx)
	if !ok || p.Addr == nil {
		return netip.Addr{}
	}
	at, err := netip.ParseAddrPort(p.Addr.String())
	if err != nil {
		return netip.Addr{}
	}
	return at.Addr().Unmap()
}

// extAuthzClient is the address the request came from: what a trusted Envoy says is its
// peer, or, where that is a trusted proxy too, the nearest hop in X-Forwarded-For
// that is not. Without trust it is whoever asks.
func (a *extAuthz) extAuthzClient(v *visit, told string, forwardedFor []string) netip.Addr {
	if !v.trusted {
		return v.peer
	}
	source, ok := hopAddr(told)
	if !ok {
		return netip.Addr{}
	}
	if len(forwardedFor) == 0 || !a.proxies.trust(source) {
		return source
	}
	return a.proxies.nearest(hopsOfXForwardedFor(forwardedFor), source)
}

// extAuthzHeaders is what the headers of a request come down to.
type extAuthzHeaders struct {
	carried      carried
	forwardedFor []string
	userAgent    string
	// remove are the client's headers that must not reach the backend beside those
	// that never do: other spellings of an identity header or of one with a credential.
	remove []string
}

// readHeaders looks at each header once. Envoy sends names in lower case, and lines of
// one name joined by commas, or all lines by themselves (encode_raw_headers).
func (a *extAuthz) readHeaders(lines []pair) (h extAuthzHeaders) {
	for i := range lines {
		a.readHeader(&h, lines[i].name, lines[i].value)
	}
	return h
}

func (a *extAuthz) readHeader(h *extAuthzHeaders, name, value string) {
	switch name {
	case "authorization":
		h.carried.authorizations = append(h.carried.authorizations, value)
		return
	case "x-api-key":
		h.carried.keys = append(h.carried.keys, value)
		return
	case "x-forwarded-for":
		h.forwardedFor = append(h.forwardedFor, value)
		return
	case "user-agent":
		h.userAgent = value
		return
	case assertionHeaderLower:
		h.carried.assertions = append(h.carried.assertions, value)
		return
	case "connection":
		// It would have the next hop take away what it names.
		if a.namesIdentity(value) && !slices.Contains(h.remove, name) {
			h.remove = append(h.remove, name)
		}
		return
	}
	if a.imitates(name) && !slices.Contains(h.remove, name) {
		h.remove = append(h.remove, name)
	}
}

// imitates tells whether a backend could take the header for one that we set or take
// away: the name differs in case and in punctuation alone.
func (a *extAuthz) imitates(name string) bool {
	// Nearly all headers begin otherwise; names are short.
	if name == "" || len(name) > 128 || name[0] == ':' {
		return false
	}
	for i, plain := range a.identity.plain {
		if name != a.identity.lower[i] && samePlain(name, plain) {
			return true
		}
	}
	return samePlain(name, "xapikey") || samePlain(name, "authorization")
}

// samePlain tells whether plainName(name) is plain, without making it.
func samePlain(name, plain string) bool {
	at := 0
	for i := range len(name) {
		c := name[i]
		switch {
		case 'A' <= c && c <= 'Z':
			c += 'a' - 'A'
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
		default:
			continue
		}
		if at == len(plain) || plain[at] != c {
			return false
		}
		at++
	}
	return at == len(plain)
}

func (a *extAuthz) namesIdentity(connection string) bool {
	for name := range strings.SplitSeq(connection, ",") {
		name = strings.TrimSpace(name)
		for _, plain := range a.identity.plain {
			if samePlain(name, plain) {
				return true
			}
		}
	}
	return false
}

func (c *envoyCheck) original() original {
	o := original{method: c.method, scheme: c.scheme, host: c.host, ambiguous: !canonicalTarget(c.path)}
	// CONNECT and OPTIONS * have no path; there is nothing of it to misread.
	if c.path == "" && c.method == http.MethodConnect || c.path == "*" && c.method == http.MethodOptions {
		o.ambiguous = false
		return o
	}
	if !o.ambiguous {
		o.path = pathOf(c.path)
	}
	return o
}

// Keys of context_extensions. Others that begin with mintmark. are refused, for a misspelt
// requirement would let everybody through; what other filters put there is let be.
const (
	extensionPrefix      = "mintmark."
	extensionPermissions = "mintmark.permissions"
	extensionAudiences   = "mintmark.audiences"
	extensionResource    = "mintmark.resource."
)

// needOfExtensions reads what the route needs. Lists are separated by spaces or commas.
func needOfExtensions(extensions []pair) (*need, *problem) {
	n := new(need)
	for _, e := range extensions {
		key, value := e.name, e.value
		if !strings.HasPrefix(key, extensionPrefix) {
			continue
		}
		attribute, ofResource := strings.CutPrefix(key, extensionResource)
		switch {
		case key == extensionPermissions:
			n.permissions = append(n.permissions, listed(value)...)
		case key == extensionAudiences:
			n.audiences = append(n.audiences, listed(value))
		case ofResource:
			if problem := n.describe(attribute, value); problem != nil {
				return nil, problem
			}
		default:
			return nil, badRequest("context_extensions has a key that begins with mintmark. and is none of " +
				"mintmark.permissions, mintmark.audiences and mintmark.resource.NAME.")
		}
	}
	if problem := n.check(); problem != nil {
		return nil, problem
	}
	return n, nil
}

func listed(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return r == ' ' || r == ',' })
}

// stripped are the headers that never reach the backend.
var stripped = [...]string{"authorization", "x-api-key"}

// allowed lets the request through. Who it is from replaces what the client sent; an
// identity header without a value is taken away, for Envoy does not set empty ones in
// every version.
func (a *extAuthz) allowed(v *visit, headers extAuthzHeaders) *envoyAnswer {
	who, may := v.caller(), v.may()
	answer := &envoyAnswer{code: codes.OK, remove: append(headers.remove, stripped[:]...), metadata: &v.evaluation, id: v.id, respond: v.quotaPairs()}
	for i, value := range [...]string{who.Subject, may.email, may.roles, may.permissions} {
		if value == "" {
			answer.remove = append(answer.remove, a.identity.lower[i])
			continue
		}
		answer.set = append(answer.set, pair{a.identity.lower[i], value})
	}
	return answer
}

// denied refuses the request with the same answer as forward-auth. dynamic_metadata says
// nothing of why: access logs are read by others than operators of Mintmark.
func denied(v *visit, p *problem) *envoyAnswer {
	v.outcome, v.status = p.outcome, p.Status
	answer := &envoyAnswer{code: statusCode(p.Status), status: p.Status, body: p.body}
	answer.set = append(answer.set, pair{"content-type", problemType}, pair{"cache-control", "no-store"})
	if challenge := v.challenge(p.Status); challenge != nil {
		answer.set = append(answer.set, pair{"www-authenticate", challenge[0]})
	}
	if p.Status == http.StatusServiceUnavailable {
		answer.set = append(answer.set, pair{"retry-after", retryAfter[0]})
	}
	if seconds := v.retrySeconds(); seconds != "" {
		answer.set = append(answer.set, pair{"retry-after", seconds})
	}
	answer.set = append(answer.set, v.quotaPairs()...)
	return answer
}

// statusCode is never OK.
func statusCode(status int) codes.Code {
	switch status {
	case http.StatusUnauthorized:
		return codes.Unauthenticated
	case http.StatusForbidden:
		return codes.PermissionDenied
	case http.StatusTooManyRequests:
		return codes.ResourceExhausted
	case http.StatusServiceUnavailable:
		return codes.Unavailable
	}
	return codes.Internal
}
