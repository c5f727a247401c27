package server

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// forwardAuth answers a gateway: 200 lets the request through, with who it is from in
// headers that are always set, so that a gateway that copies them overwrites what the
// client put there itself; every other status refuses it. What the route needs stands in
// the query, which the gateway's configuration writes: permission=, all of which the
// credential must hold, and audience=, one of which it must be for.
//
// A parameter of any other name is refused, for a misspelt requirement would let
// everybody through.
func (p *public) forwardAuth(x *exchange) *problem {
	need, problem := p.needs.of(x.r.URL.RawQuery)
	if problem != nil {
		return problem
	}
	if x.trusted && !canonicalOriginal(x.r.Header) {
		x.note = "the original path is not canonical"
		return problemPath
	}
	if !need.audienceOf(x, p.issuer.Issuer()) {
		x.note = "not for the audience required"
		if x.how == presentedJWT {
			return problemUnauthenticated // RFC 6750, section 3.1: invalid_token
		}
		return problemForbidden
	}
	for _, permission := range need.permissions {
		if !x.allows(permission) {
			x.note = "lacks " + permission
			x.w.Header()["Www-Authenticate"] = need.challenge
			return problemForbidden
		}
	}
	x.setIdentity()
	return nil
}

// setIdentity sets the identity headers. All of them are always set.
func (x *exchange) setIdentity() {
	h, may := x.w.Header(), x.may()
	values := []string{x.caller().Subject, may.roles, may.permissions}
	h["X-User-Id"] = values[0:1:1]
	h["X-User-Roles"] = values[1:2:2]
	h["X-User-Permissions"] = values[2:3:3]
	h["X-User-Email"] = emptyValue
}

var emptyValue = []string{""}

// needs is what a route demands of a credential.
type need struct {
	permissions []string
	audiences   []string
	challenge   []string
}

// audienceOf tells whether the credential is for this route. Without audience= a JWT
// must be for this issuer itself. A key is not made for an audience; it passes where a
// JWT for one of them could be had with it.
func (n *need) audienceOf(x *exchange, issuer string) bool {
	if len(n.audiences) == 0 {
		return x.how == presentedKey || slices.Contains(x.claims.Audience, issuer)
	}
	have := x.claims.Audience
	if x.how == presentedKey {
		have = x.caller().JWT.Audiences
		if len(have) == 0 {
			have = []string{issuer}
		}
	}
	for _, wanted := range n.audiences {
		if slices.Contains(have, wanted) {
			return true
		}
	}
	return false
}

// needs parses queries, and keeps what it parsed: gateways send the same few.
type needs struct {
	known atomic.Pointer[map[string]*need]
	mu    sync.Mutex
}

const (
	maxKnownNeeds  = 1024
	maxRequired    = 64
	maxAudienceLen = 512
)

func (n *needs) of(query string) (*need, *problem) {
	known := n.known.Load()
	if known != nil {
		if hit := (*known)[query]; hit != nil {
			return hit, nil
		}
	}
	parsed, problem := parseNeed(query)
	if problem == nil {
		n.keep(query, parsed)
	}
	return parsed, problem
}

// keep copies the table, so that reading it takes no lock. A full table stays as it is:
// only callers who vary the query find it so.
func (n *needs) keep(query string, parsed *need) {
	n.mu.Lock()
	defer n.mu.Unlock()
	grown := map[string]*need{}
	if known := n.known.Load(); known != nil {
		if len(*known) >= maxKnownNeeds {
			return
		}
		for k, v := range *known {
			grown[k] = v
		}
	}
	grown[strings.Clone(query)] = parsed
	n.known.Store(&grown)
}

func parseNeed(query string) (*need, *problem) {
	values, err := url.ParseQuery(query)
	if err != nil {
		return nil, badRequest("The query cannot be parsed: write it like ?permission=deploy:write&audience=https://api.example.com, percent-encoded.")
	}
	for name := range values {
		if name != "permission" && name != "audience" {
			return nil, badRequest("The query has a parameter other than permission and audience.")
		}
	}
	parsed := &need{permissions: values["permission"], audiences: values["audience"]}
	if len(parsed.permissions) > maxRequired || len(parsed.audiences) > maxRequired {
		return nil, badRequest("The query has more than 64 values of permission or of audience.")
	}
	if !slices.ContainsFunc(parsed.permissions, func(s string) bool { return !isPermission(s) }) &&
		!slices.ContainsFunc(parsed.audiences, func(s string) bool { return s == "" || len(s) > maxAudienceLen }) {
		parsed.challenge = challengeScope(parsed.permissions)
		return parsed, nil
	}
	return nil, badRequest("A value of permission is not a permission such as deploy:write, or a value of audience is empty or too long.")
}

// isPermission: a plain permission as the API has it, at most 128 of [A-Za-z0-9_./:-]. A
// wildcard is a pattern, and nothing a request can need.
func isPermission(s string) bool {
	if s == "" || len(s) > 128 {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("_./:-", c) >= 0:
		default:
			return false
		}
	}
	return true
}

// originalHeaders are where gateways put the path of the request they ask about: Traefik
// and Caddy in the first, nginx configurations in the others.
var originalHeaders = [...]string{"X-Forwarded-Uri", "X-Original-Uri", "X-Original-Url"}

// canonicalOriginal tells whether the path the gateway tells of can be read in one way
// only. What a gateway matched and what a backend makes of it must not differ.
func canonicalOriginal(h http.Header) bool {
	for _, name := range originalHeaders {
		lines := h[name]
		if len(lines) > 1 {
			return false
		}
		if len(lines) == 1 && !canonicalTarget(lines[0]) {
			return false
		}
	}
	return true
}

// canonicalTarget tells whether a request target's path has no dot segments, empty
// segments, path parameters on dots, backslashes, or encoded characters that would change
// its structure once decoded, and is encoded once only.
func canonicalTarget(target string) bool {
	if scheme, rest, absolute := strings.Cut(target, "://"); absolute && !strings.ContainsAny(scheme, "/?#") {
		slash := strings.IndexByte(rest, '/')
		if slash < 0 {
			return !strings.ContainsAny(rest, "\\%#")
		}
		target = rest[slash:]
	}
	p, _, _ := strings.Cut(target, "?")
	if p == "" || p[0] != '/' || strings.ContainsAny(p, "\\#") {
		return false
	}
	decoded, err := url.PathUnescape(p)
	if err != nil || strings.ContainsAny(decoded, "\\#?%\x00") || strings.Count(decoded, "/") != strings.Count(p, "/") {
		return false
	}
	for i := range len(decoded) {
		if decoded[i] < ' ' || decoded[i] == 0x7f {
			return false
		}
	}
	segments := strings.Split(decoded[1:], "/")
	for i, segment := range segments {
		name, _, _ := strings.Cut(segment, ";")
		if name == "." || name == ".." || segment == "" && i < len(segments)-1 || name == "" && segment != "" {
			return false
		}
	}
	return true
}
