package server

import (
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/authz"
	"github.com/mintmark-dev/mintmark/internal/authz/policy"
	"github.com/mintmark-dev/mintmark/internal/oauth"
)

// evaluation is one question, whether somebody may do something, and what is known of the
// answer so far. It holds nothing of HTTP or gRPC: forward-auth, ext_authz and the check
// call ask in the same terms, and are answered by the same steps.
type evaluation struct {
	now time.Time
	// client is who asks, as far as what tells so is believed; an invalid address is in no
	// network.
	client  netip.Addr
	carried carried
	// request is what the credential is to be used for.
	request original
	need    *need

	how     presentation
	verdict authn.Verdict
	claims  oauth.Claims // of a JWT
	scope   authz.Set    // of a JWT: what it says it is for
	code    string       // why it was refused, for metrics and logs
	// suspect is the address that a bad credential is held against; invalid: nobody's.
	suspect netip.Addr
	// blameless: that a credential is not good is not for the caller to mend.
	blameless bool
	quota     quota
	retry     time.Duration // after which to try again; 0: nothing is known of that
	note      string        // more of it, for logs
}

// original is the request a gateway or a service asks about. What is not known is empty.
type original struct {
	method, scheme, host string
	// path is without query, decoded. It is there only where it was found canonical.
	path string
	// ambiguous: the path can be read in more than one way.
	ambiguous bool
	// action is what a service says is to be done.
	action    string
	userAgent string
}

// caller is who presented a good credential; nil before that is known.
func (e *evaluation) caller() *authn.Principal { return e.verdict.Principal }

// Why a request was refused, beside the reasons of package authn. Operators see them in
// mintmark_server_denials_total and in the log, callers never.
const (
	codeCold        = "Cold"
	codeStale       = "Stale"
	codeAudit       = "AuditLost"
	codePath        = "Path"
	codeRequirement = "Requirement"
	codeAudience    = "Audience"
	codePermission  = "Permission"
	codePolicy      = "Policy"
	codePanic       = "Panic"
	codeRenewal     = "Renewal"
	codeRateLimit   = "RateLimit"
	codeBlocked     = "Blocked"
	codeBusy        = "Busy"
)

// refuse notes why, and gives what the caller is told.
func (e *evaluation) refuse(code, note string, told *problem) *problem {
	e.code, e.note = code, note
	return told
}

// decision is how an evaluation ended. The zero decision refuses.
type decision struct {
	allowed bool
	problem *problem // what the caller is told; nil where allowed
}

// told is the refusal for the caller, whatever happened.
func (d decision) told() *problem {
	if d.problem == nil {
		return problemInternal
	}
	return d.problem
}

// decider decides for every door. It is safe for concurrent use.
type decider struct {
	index    *authn.Index
	issuer   *oauth.Issuer
	gate     gate
	decided  decisions
	limits   limiter // nil limits nobody
	guard    *addressGuard
	policies *policies // nil narrows nothing
	foreign  *foreign  // nil: no other issuer is trusted
}

// limiter bounds what callers may ask for. A problem ends the evaluation.
type limiter interface {
	admit(e *evaluation) *problem
}

// step of a decision: nil lets the evaluation go on to the next one.
type step struct {
	name string
	run  func(*decider, *evaluation) *problem
}

// admission is what every request with a credential passes, whatever it is for: at the end
// it is known who asks.
var admission = []step{
	{"gate", (*decider).checkGate},
	{"authenticate", (*decider).authenticate},
	{"limits", (*decider).checkLimits},
}

// authorization is what a request passes after that where it needs a decision: at the end
// they may.
var authorization = []step{
	{"path", (*decider).checkPath},
	{"audience", (*decider).checkAudience},
	{"permissions", (*decider).checkPermissions},
	{"policies", (*decider).checkPolicies},
}

// admit finds out who asks; nil where they are known and may ask.
func (d *decider) admit(e *evaluation) *problem {
	for i := range admission {
		if p := admission[i].run(d, e); p != nil {
			return p
		}
	}
	if !e.verdict.OK || e.caller() == nil {
		return problemUnauthenticated // no step let them in
	}
	return nil
}

// authorize decides for one who was admitted. What the route needs has to be known.
func (d *decider) authorize(e *evaluation) decision {
	if !e.verdict.OK || e.caller() == nil || e.need == nil {
		return decision{}
	}
	for i := range authorization {
		if p := authorization[i].run(d, e); p != nil {
			return decision{problem: p}
		}
	}
	return decision{allowed: true}
}

// checkGate refuses to decide anything while this server cannot: cold, or staler than it
// may be.
func (d *decider) checkGate(e *evaluation) *problem {
	if err := d.gate.open(e.now); err != nil {
		code := codeCold
		switch {
		case errors.Is(err, errStale):
			code = codeStale
		case errors.Is(err, errLosing):
			code = codeAudit
		}
		return e.refuse(code, err.Error(), problemUnavailable)
	}
	return nil
}

// authenticate finds out whose credential it is. Whatever is not a good one ends here,
// in one answer for all of it.
func (d *decider) authenticate(e *evaluation) *problem {
	var given presented
	given, e.how = readPresented(e.carried)
	if p := d.guard.admit(e); p != nil {
		return p
	}
	switch e.how {
	case presentedKey:
		e.verdict = d.index.Verify(given.key, authn.Request{IP: e.client}, e.now)
	case presentedJWT:
		if p := d.verifyJWT(e, given.jwt); p != nil {
			return p
		}
	case presentedNone, presentedBad:
		e.verdict = authn.Verdict{Reason: authn.ReasonMalformed}
	}
	d.decided.count(e.how, e.verdict.Reason)
	if !e.verdict.OK {
		return d.refused(e)
	}
	return nil
}

// refused is the answer to what is no good credential. To all that callers must not tell
// apart it is one: 401, and 429 where the address has presented too many.
func (d *decider) refused(e *evaluation) *problem {
	e.code = e.verdict.Reason.Code()
	told := refusal(e.verdict.Reason)
	if told != problemUnauthenticated || e.how == presentedNone || e.blameless {
		return told
	}
	if limited := d.guard.failed(e); limited != nil {
		return limited
	}
	return told
}

func (d *decider) checkLimits(e *evaluation) *problem {
	if d.limits == nil {
		return nil
	}
	return d.limits.admit(e)
}

// checkPath: what a gateway matched and what a backend makes of it must not differ.
func (d *decider) checkPath(e *evaluation) *problem {
	if e.request.ambiguous {
		return e.refuse(codePath, "the original path is not canonical", problemPath)
	}
	return nil
}

func (d *decider) checkAudience(e *evaluation) *problem {
	if e.need.audienceOf(e, d.issuer.Issuer()) {
		return nil
	}
	if e.how == presentedJWT {
		// RFC 6750, section 3.1: invalid_token.
		return e.refuse(codeAudience, "not for the audience required", problemUnauthenticated)
	}
	return e.refuse(codeAudience, "not for the audience required", problemForbidden)
}

func (d *decider) checkPermissions(e *evaluation) *problem {
	for _, permission := range e.need.permissions {
		if !e.allows(permission) {
			return e.refuse(codePermission, "lacks "+permission, problemForbidden)
		}
	}
	return nil
}

// checkPolicies comes last, for policies only narrow what permissions allow.
func (d *decider) checkPolicies(e *evaluation) *problem {
	if d.policies == nil {
		return nil
	}
	set := d.policies.current()
	if set.Empty() {
		return nil
	}
	decided := set.Decide(d.policyInput(e))
	d.policies.observe(&decided, e.caller().Subject, e.now)
	if !decided.Allowed {
		return e.refuse(codePolicy, strings.Join([]string{"policy", decided.Policy, "rule", decided.Rule, decided.Code}, " "), problemForbidden)
	}
	return nil
}

// policyInput is what expressions see of the evaluation.
func (d *decider) policyInput(e *evaluation) *policy.Input {
	who, may := e.caller(), e.may()
	in := &policy.Input{
		Subject: policy.Subject{
			ID: who.Subject, Kind: string(who.Kind), Namespace: who.Namespace, Name: who.Name, Class: who.Class, Version: who.Version, Method: "key",
			Roles: strings.Fields(may.roles), Permissions: strings.Fields(may.permissions), Admin: may.admin, Attributes: who.Attributes,
		},
		Request: policy.Request{
			Method: e.request.method, Scheme: e.request.scheme, Host: e.request.host, Path: e.request.path, Action: e.request.action,
			Permissions: e.need.permissions, Audiences: slices.Concat(e.need.audiences...), UserAgent: e.request.userAgent,
		},
		Environment: policy.Environment{Now: e.now, IP: e.client},
	}
	if e.how == presentedJWT {
		in.Subject.Method, in.Subject.Issuer, in.Subject.Email = "jwt", e.claims.Issuer, may.email
	}
	if e.need.resource != nil {
		in.Resource = *e.need.resource
	}
	return in
}

// challenge is the WWW-Authenticate of a refusal (RFC 6750, section 3); nil where there
// is none. A 401 has an error only where something was presented, a 403 names the
// permissions only where one of them was lacking.
func (e *evaluation) challenge(status int) []string {
	switch {
	case status == http.StatusUnauthorized && e.how == presentedNone:
		return challengeNone
	case status == http.StatusUnauthorized:
		return challengeInvalid
	case status == http.StatusForbidden && e.code == codePermission && e.need != nil:
		return challengeScope(e.need.permissions)
	}
	return nil
}

var (
	challengeNone    = []string{`Bearer realm="mintmark"`}
	challengeInvalid = []string{`Bearer realm="mintmark", error="invalid_token"`}
)

// challengeScope is the WWW-Authenticate of a 403 for the want of permissions.
func challengeScope(permissions []string) []string {
	return []string{`Bearer realm="mintmark", error="insufficient_scope", scope="` + strings.Join(permissions, " ") + `"`}
}
