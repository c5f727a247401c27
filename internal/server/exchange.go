package server

import (
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/authz"
	"github.com/mintmark-dev/mintmark/internal/federation"
	"github.com/mintmark-dev/mintmark/internal/oauth"
)

// Names of RFC 8693.
const (
	grantTokenExchange = "urn:ietf:params:oauth:grant-type:token-exchange"

	tokenTypeJWT    = "urn:ietf:params:oauth:token-type:jwt"
	tokenTypeID     = "urn:ietf:params:oauth:token-type:id_token"
	tokenTypeAccess = "urn:ietf:params:oauth:token-type:access_token"
)

// tokenPath is that of the OAuth token endpoint.
const tokenPath = "/oauth2/token"

// tokenEndpoint is the OAuth token endpoint (RFC 6749, section 3.2). It gives a JWT of
// ours for a token of a TrustedIssuer's: token exchange, RFC 8693. The token is what
// authenticates the caller; there are no clients.
type tokenEndpoint struct{ *public }

// exchangeResponse is the answer (RFC 8693, section 2.2.1).
type exchangeResponse struct {
	AccessToken     string `json:"access_token"`
	IssuedTokenType string `json:"issued_token_type"`
	TokenType       string `json:"token_type"`
	ExpiresIn       int64  `json:"expires_in"` // seconds
	Scope           string `json:"scope,omitempty"`
}

// serve answers a request to the endpoint.
func (t *tokenEndpoint) serve(x *exchange) *problem {
	if err := t.gate.open(x.now); err != nil {
		return x.refuse(codeCold, err.Error(), oauthUnavailable)
	}
	form, p := readForm(x.w, x.r)
	if p != nil {
		return p
	}
	switch grant, _ := form.one("grant_type"); grant {
	case grantTokenExchange:
		return t.exchange(x, form)
	case "":
		return oauthError(errInvalidRequest, "grant_type is missing")
	default:
		return oauthError(errUnsupportedGrant, "send grant_type="+grantTokenExchange)
	}
}

func (t *tokenEndpoint) exchange(x *exchange, form form) *problem {
	ask, p := readExchange(form)
	if p != nil {
		return p
	}
	if t.foreign == nil {
		return x.refuse(federation.ErrUnknownIssuer.Code, "", oauthRefused)
	}
	if p := t.mayTry(x); p != nil {
		return p
	}
	holder, err := t.foreign.verify(ask.subject, federation.ForExchange, x.now)
	if err != nil {
		return t.refused(x, err)
	}
	who := t.foreign.principal(holder)
	if who, p = narrowed(who, ask.scope); p != nil {
		return p
	}
	token, claims, err := t.issuer.Issue(who, x.now, oauth.Options{TTL: ask.ttl, Audience: ask.targets, Foreign: claimOf(holder)})
	if err != nil {
		return t.failed(x, err)
	}
	t.metrics.issued.Inc()
	x.verdict.Principal = who
	return writeJSON(x.w, exchangeResponse{
		AccessToken: token, IssuedTokenType: ask.issue, TokenType: "Bearer",
		ExpiresIn: int64(claims.Expires.Sub(claims.IssuedAt) / time.Second), Scope: claims.Scope(),
	})
}

// mayTry holds the caller to what its address may do.
func (t *tokenEndpoint) mayTry(x *exchange) *problem {
	if t.guard.admit(&x.evaluation) != nil {
		return oauthLimited
	}
	if mayCheck := t.guard.mayCheck(&x.evaluation); mayCheck != nil && !mayCheck() {
		t.guard.unchecked(&x.evaluation)
		return oauthLimited
	}
	return nil
}

// refused is the answer to a subject token that is no good.
func (t *tokenEndpoint) refused(x *exchange, err error) *problem {
	told := x.refuse(codeOf(err), err.Error(), oauthRefused)
	if !errors.Is(err, federation.ErrNoKeys) && t.guard.failed(&x.evaluation) != nil {
		return oauthLimited
	}
	return told
}

// narrowed keeps of what the holder may do what was asked for. Who asks for less does not
// hold the roles either, for a backend that goes by them would see all they stand for.
func narrowed(who *authn.Principal, scope []string) (*authn.Principal, *problem) {
	if len(scope) == 0 {
		return who, nil
	}
	held := authz.NewSet(who.Permissions)
	// What covers any permission covers any text, and the scope ends up in headers.
	if slices.ContainsFunc(scope, func(p string) bool { return !isPattern(p) || !held.Allows(p) }) {
		return nil, oauthError(errInvalidScope, "scope asks for more than the token is worth here")
	}
	asked := authz.NewSet(scope)
	grant := *who.Grant
	if grant.Permissions = asked.Strings(); !slices.Equal(grant.Permissions, who.Permissions) {
		grant.Roles = nil
	}
	less := *who
	less.Grant = &grant
	return &less, nil
}

func (t *tokenEndpoint) failed(x *exchange, err error) *problem {
	switch {
	case errors.Is(err, oauth.ErrAudience):
		return oauthError(errInvalidTarget, "tokens are not issued for this audience here: ask for one of spec.issuedAudiences of the TrustedIssuer, or for none")
	case errors.Is(err, oauth.ErrTTL):
		return oauthError(errInvalidRequest, "ttl is out of range: ask for 1m to 1h, or for none")
	case errors.Is(err, oauth.ErrTooLong):
		return oauthError(errInvalidRequest, "the token would be too long: ask for less by scope, or have the TrustedIssuer map fewer permissions and attributes")
	case errors.Is(err, oauth.ErrCredentialExpired):
		return x.refuse(federation.ErrExpired.Code, err.Error(), oauthRefused)
	case errors.Is(err, oauth.ErrNoSigningKey):
		x.note = err.Error()
		return oauthUnavailable
	}
	t.log.Error("cannot issue a token", "error", err.Error(), "request_id", x.id)
	return oauthInternal
}

// exchangeRequest is what is asked for (RFC 8693, section 2.1).
type exchangeRequest struct {
	subject string // do not log
	targets []string
	scope   []string
	issue   string // the type of token wanted
	ttl     time.Duration
}

// Limits of a request.
const (
	maxForm   = 24 << 10 // the longest token, and the rest
	maxScopes = 256
	maxScope  = 16 << 10
)

// readExchange reads the parameters. Others than these are ignored (RFC 6749, section
// 3.2), but for an actor, whom nothing here would remember.
func readExchange(f form) (ask exchangeRequest, p *problem) {
	fields := map[string]string{}
	for _, name := range []string{"subject_token", "subject_token_type", "requested_token_type", "scope", "ttl"} {
		value, ok := f.one(name)
		if !ok {
			return ask, oauthError(errInvalidRequest, name+" is there more than once")
		}
		fields[name] = value
	}
	if f.has("actor_token") || f.has("actor_token_type") {
		return ask, oauthError(errInvalidRequest, "actor_token is not supported: tokens are issued to the subject itself")
	}
	if ask.subject = fields["subject_token"]; ask.subject == "" {
		return ask, oauthError(errInvalidRequest, "subject_token is missing")
	}
	if !slices.Contains([]string{tokenTypeJWT, tokenTypeID, tokenTypeAccess}, fields["subject_token_type"]) {
		return ask, oauthError(errInvalidRequest, "subject_token_type has to be "+tokenTypeJWT+", or id_token or access_token in its place")
	}
	switch ask.issue = or(fields["requested_token_type"], tokenTypeAccess); ask.issue {
	case tokenTypeAccess, tokenTypeJWT:
	default:
		return ask, oauthError(errInvalidRequest, "requested_token_type can be "+tokenTypeAccess+" or "+tokenTypeJWT)
	}
	if len(fields["scope"]) > maxScope {
		return ask, oauthError(errInvalidScope, "scope is too long")
	}
	if ask.scope = strings.Fields(fields["scope"]); len(ask.scope) > maxScopes {
		return ask, oauthError(errInvalidScope, "scope names more than 256 permissions")
	}
	if text := fields["ttl"]; text != "" {
		var length ttl
		if length.parse(text) != nil {
			return ask, oauthError(errInvalidRequest, `ttl: send a length of time such as "15m", or a number of seconds`)
		}
		ask.ttl = time.Duration(length)
	}
	ask.targets, p = readTargets(f)
	return ask, p
}

// readTargets reads audience and resource, which mean the same here: the aud of the
// token. RFC 8693 allows several of each; a resource is an absolute URI without fragment
// (RFC 8707, section 2).
func readTargets(f form) (targets []string, p *problem) {
	targets = append(f.all("audience"), f.all("resource")...)
	if len(targets) > maxAudiences {
		return nil, oauthError(errInvalidTarget, "there are more than 16 audiences")
	}
	for _, t := range targets {
		if len(t) > maxAudienceLen {
			return nil, oauthError(errInvalidTarget, "an audience is longer than 512 characters")
		}
	}
	for _, r := range f.all("resource") {
		if u, err := url.Parse(r); err != nil || !u.IsAbs() || strings.Contains(r, "#") {
			return nil, oauthError(errInvalidTarget, "a resource is an absolute URI without a fragment")
		}
	}
	return targets, nil
}

// form is a body of parameters. One without a value counts as absent (RFC 6749, section
// 3.2).
type form url.Values

func readForm(w http.ResponseWriter, r *http.Request) (form, *problem) {
	if mediaType(r.Header) != "application/x-www-form-urlencoded" {
		return nil, oauthError(errInvalidRequest, "send the parameters as application/x-www-form-urlencoded in the body")
	}
	body, p := readBody(w, r, maxForm)
	if p != nil {
		return nil, asJSON(oauthProblem(p.Status, errInvalidRequest, "the body cannot be read, is larger than 24 KiB, or has a content coding"))
	}
	values, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, oauthError(errInvalidRequest, "the body is not application/x-www-form-urlencoded")
	}
	return form(values), nil
}

func (f form) all(name string) []string {
	return slices.DeleteFunc(slices.Clone(f[name]), func(v string) bool { return v == "" })
}

func (f form) has(name string) bool { return len(f.all(name)) > 0 }

// one is the value of a parameter; false where there are several.
func (f form) one(name string) (string, bool) {
	switch values := f.all(name); len(values) {
	case 0:
		return "", true
	case 1:
		return values[0], true
	}
	return "", false
}

// Errors of RFC 6749, section 5.2, and RFC 8693, section 2.2.2.
const (
	errInvalidRequest   = "invalid_request"
	errInvalidTarget    = "invalid_target"
	errInvalidScope     = "invalid_scope"
	errUnsupportedGrant = "unsupported_grant_type"
)

// asJSON has the problem said to be JSON, as RFC 6749, section 5.2, wants it of the token
// endpoint: clients look for its members only there.
func asJSON(p *problem) *problem {
	same := *p
	same.contentType = jsonContentType
	return &same
}

// oauthError is what the caller can mend.
func oauthError(code, description string) *problem {
	return asJSON(oauthProblem(http.StatusBadRequest, code, description))
}

var (
	// oauthRefused is the one answer to every subject token that is no good. RFC 8693,
	// section 2.2.2, wants invalid_request for it.
	oauthRefused = asJSON(oauthProblem(http.StatusBadRequest, errInvalidRequest,
		"The subject_token is not accepted: it has to be a JWT of a TrustedIssuer, for its audience and not expired. Operators find the cause in the log."))
	oauthUnavailable = asJSON(oauthProblem(http.StatusServiceUnavailable, "temporarily_unavailable",
		"This server cannot decide at the moment: try again, or another replica."))
	oauthLimited = asJSON(oauthProblem(http.StatusTooManyRequests, "temporarily_unavailable",
		"Too many requests. The header Retry-After says when to try again."))
	oauthInternal = asJSON(oauthProblem(http.StatusInternalServerError, "server_error",
		"Something went wrong here. The request id names it in the log."))
)
