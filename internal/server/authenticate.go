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

	"github.com/mintmark-dev/mintmark/internal/audit"
	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/authz"
	"github.com/mintmark-dev/mintmark/internal/oauth"
)

// admit finds out who the caller is, where the route wants to know. Whatever is not a
// good credential ends here, in one answer for all of it.
func (p *public) admit(x *exchange) *problem {
	if x.route.access == accessAnyone {
		return nil
	}
	x.carried = carriedBy(x.r.Header)
	if x.trusted && p.foreign.direct() {
		x.carried.assertions = x.r.Header[assertionHeader]
	}
	problem := p.decider.admit(&x.evaluation)
	x.tellQuota()
	if problem != nil {
		return p.limitedAs(x, problem)
	}
	if x.route.access == accessKey && x.how != presentedKey {
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
// good. A problem is about neither: the token was not looked at.
func (d *decider) verifyJWT(e *evaluation, token string) *problem {
	mayCheck := d.guard.mayCheck(e)
	claims, err := d.issuer.Verify(token, e.now, oauth.Expect{MayCheck: mayCheck})
	switch {
	case errors.Is(err, oauth.ErrUnchecked):
		return d.guard.unchecked(e)
	case errors.Is(err, oauth.ErrBusy):
		return e.refuse(codeBusy, err.Error(), problemUnavailable)
	}
	if err != nil {
		if d.foreign.direct() && neverSigned(err) && mayCheck != nil && !mayCheck() {
			return d.guard.unchecked(e)
		}
		if d.foreign.admit(e, token, err) {
			return nil
		}
		e.verdict = authn.Verdict{Reason: authn.ReasonMalformed}
		if errors.Is(err, oauth.ErrRevoked) {
			e.verdict.Reason = authn.ReasonRevoked
		}
		e.note = err.Error()
		return nil
	}
	e.claims, e.scope = claims, authz.NewSet(claims.Permissions)
	if claims.Foreign != nil {
		e.verdict, e.note = d.foreign.use(claims)
		return nil
	}
	e.verdict = d.index.VerifyUse(claims.CredentialUID, claims.Version, authn.Request{IP: e.client}, e.now)
	return nil
}

// allows tells whether the caller may do what needs the permission. A JWT allows what it
// says, as far as its credential still does.
func (e *evaluation) allows(permission string) bool {
	if e.how == presentedJWT && !e.claims.Admin && !e.scope.Allows(permission) {
		return false
	}
	return e.caller().Allows(permission)
}

// mandate is what a caller may do, as it is told to others.
type mandate struct {
	permissions, roles string // separated by spaces
	email              string
	admin              bool
}

func (e *evaluation) may() mandate {
	who := e.caller()
	if e.how != presentedJWT {
		return mandate{permissions: who.PermissionList(), roles: who.RoleList(), admin: who.Admin}
	}
	m := mandate{roles: strings.Join(both(e.claims.Roles, who.Roles), " "), email: e.email(), admin: e.claims.Admin && who.Admin}
	if m.admin {
		m.permissions = authz.Everything
		return m
	}
	if slices.Equal(e.claims.Permissions, who.Permissions) && slices.IsSorted(who.Permissions) {
		m.permissions = who.PermissionList() // nothing has changed since it was issued
		return m
	}
	// Of two patterns that overlap one covers the other, so what both sides have is what
	// each says and the other allows.
	shared := slices.DeleteFunc(slices.Clone(e.claims.Permissions), func(p string) bool { return !e.allows(p) })
	for _, p := range who.Permissions {
		if e.scope.Allows(p) && !slices.Contains(shared, p) {
			shared = append(shared, p)
		}
	}
	slices.Sort(shared)
	m.permissions = strings.Join(shared, " ")
	return m
}

// both is what is in one list and in the other.
func both(one, other []string) []string {
	if slices.Equal(one, other) {
		return one
	}
	return slices.DeleteFunc(slices.Clone(one), func(s string) bool { return !slices.Contains(other, s) })
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
func (p *public) record(v *visit, took time.Duration) {
	level := slog.LevelDebug
	if p.notable(v) {
		level = slog.LevelInfo
	}
	if !p.log.Enabled(context.Background(), level) {
		return
	}
	if level != slog.LevelInfo {
		p.writeLine(level, v, took)
		return
	}
	if !p.lines.allow() {
		return
	}
	// Only what was one of ours has a line of its own: it must not make the answer later
	// than that to an unknown value (I16). lineLimit bounds how many are under way.
	late := *v
	go p.writeLine(level, &late, took)
}

func (p *public) writeLine(level slog.Level, v *visit, took time.Duration) {
	attrs := make([]slog.Attr, 0, 16)
	attrs = append(attrs,
		slog.String("request_id", v.id), slog.String("route", v.route.name), slog.String("method", methodName(v.method)),
		slog.Int("status", v.status), slog.String("outcome", v.outcome.String()),
		slog.String("client", v.client.String()), slog.String("took", took.String()))
	if v.peer != v.client {
		attrs = append(attrs, slog.String("peer", v.peer.String()))
	}
	if v.how == presentedKey || v.how == presentedJWT {
		attrs = append(attrs, slog.String("reason", v.verdict.Reason.Code()))
	}
	whose := v.verdict.Principal
	if whose == nil {
		whose = v.verdict.Refused
	}
	if whose != nil {
		attrs = append(attrs, slog.String("credential", whose.Subject), slog.String("uid", whose.UID),
			slog.Int64("version", whose.Version), slog.String("prefix", whose.Prefix))
	}
	if v.code != "" {
		attrs = append(attrs, slog.String("code", v.code))
	}
	if v.note != "" {
		// A requirement may be what the caller wrote, where no gateway stands before us.
		attrs = append(attrs, slog.String("note", string(audit.Clean(v.note, maxNoteText))))
	}
	p.log.LogAttrs(context.Background(), level, "request "+verb(v.outcome), attrs...)
}

// notable: a credential of ours that is no good any more, or is used from where it may
// not be, is still in somebody's hands.
func (p *public) notable(v *visit) bool {
	return v.verdict.Refused != nil || v.outcome == outcomeFailed
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
	errCold   = errors.New("not everything has been listed yet")
	errStale  = errors.New("what this server knows is older than --max-staleness")
	errLosing = errors.New("events of the audit log are being lost, and --audit-overflow=deny")
)
