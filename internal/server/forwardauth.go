package server

import (
	"net/http"
	"net/url"
	"strings"
	"unicode/utf8"
)

// forwardAuth answers a gateway: 200 lets the request through, with who it is from in
// headers that are always set, so that a gateway that copies them overwrites what the
// client put there itself; every other status refuses it.
//
// What the route needs stands in the query, which the gateway's configuration writes:
// permission=, all of which the credential must hold, audience=, one of which it must be
// for, and resource.NAME=, what policies are told of the resource. limited=403 is for
// gateways that take a 429 for a failure of ours. With require=header
// more of it stands in the header X-Mintmark-Require, for gateways that cannot write a
// query for each route; only a trusted peer may send it.
//
// A parameter of any other name is refused, for a misspelt requirement would let
// everybody through.
func (p *public) forwardAuth(x *exchange) *problem {
	var problem *problem
	if x.need, problem = p.needs.of(x.r.URL.RawQuery); problem != nil {
		return x.refuse(codeRequirement, "", problem)
	}
	if x.need.inHeader {
		if problem = p.needHeader(x); problem != nil {
			return problem
		}
	}
	if x.trusted {
		x.request = originalOf(x.r.Header)
	}
	d := p.authorize(&x.evaluation)
	if !d.allowed {
		return d.told()
	}
	p.identity.set(x.w.Header(), x.caller().Subject, x.may())
	return nil
}

// requireHeader holds what a route needs, where the query says require=header.
const requireHeader = "X-Mintmark-Require"

// needHeader adds what stands in the header. Without it nothing is let through: the
// gateway has forgotten to set it, or somebody calls here who is no gateway.
func (p *public) needHeader(x *exchange) (problem *problem) {
	lines := x.r.Header[requireHeader]
	switch {
	case !x.trusted:
		return x.refuse(codeRequirement, "require=header from a peer that is not among --trusted-proxies", problemNeedUntrusted)
	case len(lines) != 1 || lines[0] == "":
		return x.refuse(codeRequirement, "require=header and "+requireHeader+" is missing or there twice", problemNeedMissing)
	}
	if x.need, problem = p.needs.with(x.r.URL.RawQuery, lines[0]); problem != nil {
		return x.refuse(codeRequirement, "", problem)
	}
	return nil
}

// originalOf reads what a trusted gateway tells of the request it asks about. Traefik
// and Caddy do it in X-Forwarded-*, nginx configurations in X-Original-*.
func originalOf(h http.Header) original {
	target, canonical := originalTarget(h)
	o := original{
		method: single(h, "X-Forwarded-Method", "X-Original-Method"), scheme: single(h, "X-Forwarded-Proto"), host: single(h, "X-Forwarded-Host"),
		userAgent: single(h, "User-Agent"), ambiguous: !canonical,
	}
	if canonical && target != "" {
		o.path = pathOf(target)
	}
	return o
}

// single is what these headers say; empty where they say two things.
func single(h http.Header, names ...string) (value string) {
	for _, name := range names {
		for i, line := range h[name] {
			if i > 0 || value != "" && value != line {
				return ""
			}
			value = line
		}
	}
	return value
}

// pathOf is the path of a canonical request target, decoded: a policy that names /a:b means
// /a%3Ab as well, and what is canonical decodes to one path only.
func pathOf(target string) string {
	if _, rest, absolute := strings.Cut(target, "://"); absolute && target[0] != '/' {
		slash := strings.IndexByte(rest, '/')
		if slash < 0 {
			return "/"
		}
		target = rest[slash:]
	}
	path, _, _ := strings.Cut(target, "?")
	if decoded, err := url.PathUnescape(path); err == nil {
		return decoded
	}
	return path
}

// originalHeaders are where gateways put the path of the request they ask about: Traefik
// and Caddy in the first, nginx configurations in the others.
var originalHeaders = [...]string{"X-Forwarded-Uri", "X-Original-Uri", "X-Original-Url"}

// originalTarget is the request target the gateway tells of, empty where it tells of none,
// and whether its path can be read in one way only. What a gateway matched and what a
// backend makes of it must not differ.
func originalTarget(h http.Header) (told string, canonical bool) {
	for _, name := range originalHeaders {
		lines := h[name]
		switch {
		case len(lines) > 1:
			return "", false
		case len(lines) == 0:
			continue
		case !canonicalTarget(lines[0]) || told != "" && told != lines[0]:
			// The gateway sets one of them; another one is the client's.
			return "", false
		}
		told = lines[0]
	}
	return told, true
}

// canonicalTarget tells whether a request target's path can be read in one way only: no
// dot segments, empty segments or path parameters, no backslashes, no encoded characters
// that would change its structure once decoded, nothing that is no UTF-8 (%c0%af is a slash
// to some), encoded once only, and nothing encoded that need not be (RFC 3986, section 6.2.2.2): a gateway that compares /%61dmin with
// /admin may find them different where a backend does not.
func canonicalTarget(target string) bool { return plainTarget(target) || soundTarget(target) }

// soundTarget looks at everything.
func soundTarget(target string) bool {
	if scheme, rest, absolute := strings.Cut(target, "://"); absolute && !strings.ContainsAny(scheme, "/?#") {
		// With a query and no path there is nothing for a slash in the query to begin.
		slash := strings.IndexAny(rest, "/?")
		if slash < 0 {
			slash = len(rest)
		}
		if strings.ContainsAny(rest[:slash], "\\%#") || strings.HasPrefix(rest[slash:], "?") {
			return false
		}
		if target = rest[slash:]; target == "" {
			return true
		}
	}
	p, _, _ := strings.Cut(target, "?")
	if p == "" || p[0] != '/' || strings.ContainsAny(p, "\\#") {
		return false
	}
	decoded, err := url.PathUnescape(p)
	if err != nil || !utf8.ValidString(decoded) || strings.ContainsAny(decoded, "\\#?%;\x00") || strings.Count(decoded, "/") != strings.Count(p, "/") {
		return false
	}
	for i := range len(decoded) {
		if decoded[i] < ' ' || decoded[i] == 0x7f {
			return false
		}
	}
	return !needlesslyEncoded(p) && !hasOddSegments(decoded)
}

// plainTarget tells of the common case, a path of nothing but letters, digits, dashes,
// underscores and single slashes, and perhaps a query: it can be read in one way only.
func plainTarget(target string) bool {
	if target == "" || target[0] != '/' {
		return false
	}
	for i := 1; i < len(target); i++ {
		switch c := target[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_':
		case c == '/' && target[i-1] != '/':
		default:
			return c == '?'
		}
	}
	return true
}

// needlesslyEncoded looks for encoded unreserved characters. The encoding is sound.
func needlesslyEncoded(path string) bool {
	for i := 0; i+2 < len(path); i++ {
		if path[i] != '%' {
			continue
		}
		switch c := unhex(path[i+1])<<4 | unhex(path[i+2]); {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '.', c == '_', c == '~':
			return true
		}
	}
	return false
}

func unhex(c byte) byte {
	switch {
	case c >= 'a':
		return c - 'a' + 10
	case c >= 'A':
		return c - 'A' + 10
	}
	return c - '0'
}

// hasOddSegments looks for empty segments but the last, and those of dots.
func hasOddSegments(decoded string) bool {
	rest := decoded[1:]
	for {
		segment, after, more := strings.Cut(rest, "/")
		if segment == "." || segment == ".." || segment == "" && more {
			return true
		}
		if !more {
			return false
		}
		rest = after
	}
}
