package server

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/authz"
	"github.com/mintmark-dev/mintmark/internal/oauth"
)

// authenticate finds out who the caller is. Whatever is not a good credential ends
// here, in one answer for all of it.
func (p *public) authenticate(x *exchange) *problem {
	if x.route.access == accessAnyone {
		return nil
	}
	var given presented
	given, x.how = readPresented(x.r.Header)
	switch x.how {
	case presentedKey:
		x.verdict = p.index.Verify(given.key, authn.Request{IP: x.client}, x.now)
	case presentedJWT:
		p.verifyJWT(x, given.jwt)
	case presentedNone, presentedBad:
		x.verdict = authn.Verdict{Reason: authn.ReasonMalformed}
	}
	p.decided.count(x.how, x.verdict.Reason)
	switch {
	case !x.verdict.OK:
		return refusal(x.verdict.Reason)
	case x.route.access == accessKey && x.how != presentedKey:
		return problemNotExchangeable
	}
	return nil
}

// refusal is what the caller is told. Only what does not depend on the value presented
// is told apart from a bad one: that this server cannot say, and that a good credential
// may not be used from where it was.
func refusal(reason authn.Reason) *problem {
	switch reason {
	case authn.ReasonStale:
		return problemUnavailable
	case authn.ReasonNetwork:
		return problemForbidden
	default:
		return problemUnauthenticated
	}
}

// verifyJWT checks the token itself, and then whether what it was issued for is still
// good.
func (p *public) verifyJWT(x *exchange, token string) {
	claims, err := p.issuer.Verify(token, x.now, oauth.Expect{})
	if err != nil {
		x.verdict = authn.Verdict{Reason: authn.ReasonMalformed}
		x.note = err.Error()
		return
	}
	x.claims, x.scope = claims, authz.NewSet(claims.Permissions)
	x.verdict = p.index.VerifyUse(claims.CredentialUID, claims.Version, authn.Request{IP: x.client}, x.now)
}

// allows tells whether the caller may do what needs the permission. A JWT allows what it
// says, as far as its credential still does.
func (x *exchange) allows(permission string) bool {
	if x.how == presentedJWT && !x.claims.Admin && !x.scope.Allows(permission) {
		return false
	}
	return x.caller().Allows(permission)
}

// mandate is what a caller may do, as it is told to others.
type mandate struct {
	permissions, roles string // separated by spaces
	admin              bool
}

func (x *exchange) may() mandate {
	who := x.caller()
	if x.how != presentedJWT {
		return mandate{strings.Join(who.Permissions, " "), strings.Join(who.Roles, " "), who.Admin}
	}
	roles := slices.DeleteFunc(slices.Clone(x.claims.Roles), func(r string) bool { return !slices.Contains(who.Roles, r) })
	m := mandate{roles: strings.Join(roles, " "), admin: x.claims.Admin && who.Admin}
	if m.admin {
		m.permissions = authz.Everything
		return m
	}
	// Of two patterns that overlap one covers the other, so what both sides have is what
	// each says and the other allows.
	both := slices.DeleteFunc(slices.Clone(x.claims.Permissions), func(p string) bool { return !x.allows(p) })
	for _, p := range who.Permissions {
		if x.scope.Allows(p) && !slices.Contains(both, p) {
			both = append(both, p)
		}
	}
	slices.Sort(both)
	m.permissions = strings.Join(both, " ")
	return m
}

// challenge is the WWW-Authenticate of a 401 (RFC 6750, section 3): without an error
// where nothing was presented.
func (x *exchange) challenge() []string {
	if x.how == presentedNone {
		return challengeNone
	}
	return challengeInvalid
}

var (
	challengeNone    = []string{`Bearer realm="mintmark"`}
	challengeInvalid = []string{`Bearer realm="mintmark", error="invalid_token"`}
)

// challengeScope is the WWW-Authenticate of a 403 for the want of permissions.
func challengeScope(permissions []string) []string {
	return []string{`Bearer realm="mintmark", error="insufficient_scope", scope="` + strings.Join(permissions, " ") + `"`}
}

// decisions counts verdicts, the counters being looked up once.
type decisions [2][]prometheus.Counter

func newDecisions(m *metrics) (d decisions) {
	for i, presented := range [...]string{"key", "jwt"} {
		for _, reason := range authn.Reasons() {
			d[i] = append(d[i], m.decisions.WithLabelValues(presented, reason.Code()))
		}
	}
	return d
}

func (d *decisions) count(how presentation, reason authn.Reason) {
	kind := 0
	if how == presentedJWT {
		kind = 1
	}
	d[kind][reason].Inc()
}

// record writes the request's line to the log: at debug for every one, at info where an
// operator should know. It holds the credential's public prefix and nothing else
// of what the caller sent: a path or a query may hold what should not be there.
func (p *public) record(x *exchange, took time.Duration) {
	level := slog.LevelDebug
	if p.notable(x) {
		level = slog.LevelInfo
	}
	if !p.log.Enabled(context.Background(), level) {
		return
	}
	if level == slog.LevelInfo && !p.lines.allow() {
		return
	}
	attrs := make([]slog.Attr, 0, 16)
	attrs = append(attrs,
		slog.String("request_id", x.id), slog.String("route", x.route.name), slog.String("method", methodName(x.r.Method)),
		slog.Int("status", x.status), slog.String("outcome", x.outcome.String()),
		slog.String("client", x.client.String()), slog.String("took", took.String()))
	if x.peer != x.client {
		attrs = append(attrs, slog.String("peer", x.peer.String()))
	}
	if x.how == presentedKey || x.how == presentedJWT {
		attrs = append(attrs, slog.String("reason", x.verdict.Reason.Code()))
	}
	whose := x.verdict.Principal
	if whose == nil {
		whose = x.verdict.Refused
	}
	if whose != nil {
		attrs = append(attrs, slog.String("credential", whose.Subject), slog.String("uid", whose.UID),
			slog.Int64("version", whose.Version), slog.String("prefix", whose.Prefix))
	}
	if x.note != "" {
		attrs = append(attrs, slog.String("note", x.note))
	}
	p.log.LogAttrs(context.Background(), level, "request "+verb(x.outcome), attrs...)
}

// notable: a credential of ours that is no good any more, or is used from where it may
// not be, is still in somebody's hands.
func (p *public) notable(x *exchange) bool {
	return x.verdict.Refused != nil || x.outcome == outcomeFailed
}

func verb(o outcome) string {
	switch o {
	case outcomeOK:
		return "allowed"
	case outcomeUnauthenticated, outcomeForbidden, outcomeLimited, outcomeUnavailable:
		return "denied"
	case outcomeInvalid:
		return "invalid"
	default:
		return "failed"
	}
}

// methodName keeps what callers make up out of the log.
func methodName(m string) string {
	switch m {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete,
		http.MethodOptions, http.MethodConnect, http.MethodTrace:
		return m
	}
	return "other"
}

// lineLimit bounds how many lines at info callers can cause.
type lineLimit struct{ limiter *rate.Limiter }

func newLineLimit() *lineLimit { return &lineLimit{rate.NewLimiter(50, 200)} }

func (l *lineLimit) allow() bool { return l.limiter.Allow() }

// gate tells whether this server may decide at all.
type gate interface {
	// open is nil while it may; its error says why not, for operators.
	open(now time.Time) error
	// ready is nil while it is in service.
	ready(now time.Time) error
	// draining: the server is about to stop.
	draining() bool
}

// Why a gate is closed.
var (
	errCold  = errors.New("not everything has been listed yet")
	errStale = errors.New("what this server knows is older than --max-staleness")
)
