package server

import (
	"errors"
	"net/http"

	"github.com/mintmark-dev/mintmark/internal/oauth"
)

// problemNotRenewable is for keys: they are exchanged.
var problemNotRenewable = newProblem(http.StatusForbidden, outcomeForbidden,
	"Only a JWT can be renewed: exchange a key at /api/auth/token.")

// problemRenewalOver is for what goes back to a key that may not be in use any more.
var problemRenewalOver = newProblem(http.StatusForbidden, outcomeForbidden,
	"This JWT cannot be renewed any more: exchange the key again.")

// renew issues a JWT in place of the one presented, for those who do not want to keep the
// key at hand. A chain of renewals ends with the version of the key it began with, and
// in any case oauth.MaxRenewal after that was exchanged.
func (t *tokens) renew(x *exchange) *problem {
	if x.how != presentedJWT {
		return problemNotRenewable
	}
	options, p := readTokenRequest(x.w, x.r)
	if p != nil {
		return p
	}
	if x.claims.Foreign == nil && !t.index.InUse(x.claims.CredentialUID, x.claims.Version, x.now) {
		return x.refuse(codeRenewal, "the version it was issued for has been retired", problemRenewalOver)
	}
	token, claims, err := t.issuer.Renew(x.caller(), x.claims, x.now, options)
	switch {
	case errors.Is(err, oauth.ErrRenewalOver), errors.Is(err, oauth.ErrForeign):
		return x.refuse(codeRenewal, err.Error(), problemRenewalOver)
	case err != nil:
		return t.failed(x, err)
	}
	t.metrics.issued.Inc()
	return answerJSON(x.w, answerWith(token, &claims).appendJSON(make([]byte, 0, 1536)))
}
