package server

import (
	"errors"
	"net/http"
	"strings"

	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/oauth"
)

var revocationNeed = &need{permissions: []string{PermissionRevoke}}

var (
	problemKeyNotRevocable = oauthProblem(http.StatusBadRequest, "unsupported_token_type",
		"A key is revoked in its object: spec.revoked, or mintmark revoke. Here, JWTs are.")
	problemNoDenyList = oauthProblem(http.StatusBadRequest, "unsupported_token_type", "This server revokes no single JWTs.")
	problemNotYours   = oauthProblem(http.StatusForbidden, "unauthorized_client", "The token is another namespace's.")
	problemNotRevoked = oauthProblem(http.StatusServiceUnavailable, "temporarily_unavailable",
		"The token could not be revoked and is still good. Try again.")
)

// revoke ends a single JWT, and all that were renewed from it or that it was renewed from
// (RFC 7009). Its holder may, with any credential of the same object, and whoever holds
// mintmark:revoke in the namespace. It says 200 of what is no token, or none any more
// (section 2.2), and only once every server is bound to hear of it.
func (p *public) revoke(x *exchange) *problem {
	form, problem := readOAuthForm(x.w, x.r)
	if problem != nil {
		return problem
	}
	token := form.Get("token")
	switch {
	case strings.Count(token, ".") != 2:
		return problemKeyNotRevocable
	case p.revoker == nil:
		return problemNoDenyList
	}
	claims, err := p.issuer.Verify(token, x.now, oauth.Expect{})
	if errors.Is(err, oauth.ErrBusy) {
		return x.refuse(codeBusy, err.Error(), problemUnavailable) // it is not known to be no token
	}
	if err != nil {
		x.note = "nothing to revoke: " + err.Error()
		return revoked(x)
	}
	if problem := p.mayRevoke(x, claims); problem != nil {
		return problem
	}
	until := claims.AuthTime.Add(oauth.MaxRenewal + oauth.Leeway)
	if err := p.revoker.revoke(x.r.Context(), claims.Session, tenantOf(&claims), until); err != nil {
		p.log.Error("a JWT could not be revoked", "error", err.Error(), "request_id", x.id)
		x.w.Header()["Retry-After"] = retryAfter
		return problemNotRevoked
	}
	x.note = "revoked " + claims.ID + " of " + claims.Subject
	p.log.Info("a JWT was revoked", "jti", claims.ID, "session", claims.Session, "subject", claims.Subject, "by", x.caller().Subject, "request_id", x.id)
	return revoked(x)
}

func revoked(x *exchange) *problem {
	x.w.WriteHeader(http.StatusOK)
	return nil
}

// tenantOf is whose token it is, of those who share the room for revoked ones: a namespace,
// or a TrustedIssuer.
func tenantOf(c *oauth.Claims) string {
	if c.Foreign != nil {
		return "issuer:" + c.Foreign.TrustedIssuer
	}
	_, rest, _ := strings.Cut(c.Subject, ":") // kind:namespace:name
	namespace, _, _ := strings.Cut(rest, ":")
	return "namespace:" + namespace
}

// mayRevoke tells whether the token is the caller's to revoke.
func (p *public) mayRevoke(x *exchange, claims oauth.Claims) *problem {
	who := x.caller()
	if claims.CredentialUID == who.UID && claims.Subject == who.Subject {
		return nil
	}
	x.need = revocationNeed
	if d := p.authorize(&x.evaluation); !d.allowed {
		return d.told()
	}
	if x.allows(PermissionRevokeEverywhere) {
		return nil
	}
	if claims.Foreign == nil {
		verdict := p.index.VerifyUse(claims.CredentialUID, claims.Version, authn.Request{}, x.now)
		whose := verdict.Principal
		if whose == nil {
			whose = verdict.Refused
		}
		if whose != nil && whose.Namespace == who.Namespace && who.Namespace != "" {
			return nil
		}
	}
	return x.refuse(codePermission, "the token is another namespace's", problemNotYours)
}
