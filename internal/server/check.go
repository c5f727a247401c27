package server

import (
	"errors"
	"net/http"
	"net/netip"
	"time"

	strictjson "sigs.k8s.io/json"

	"github.com/mintmark-dev/mintmark/internal/authz/policy"
)

// PermissionCheck is what a service holds that may ask about credentials other than the
// one it presents itself.
const PermissionCheck = "mintmark:check"

var checkNeed = &need{permissions: []string{PermissionCheck}}

// checkRequest is the body of POST /api/v1/auth/check: what the credential is to be used
// for. Resource and request have the names that policies know them by.
type checkRequest struct {
	// Token is the credential asked about, a key or a JWT. Without it that is the one the
	// request carries; with it the one the request carries has to hold mintmark:check.
	Token string `json:"token"`
	// Action is a permission the credential must hold, and what policies see as
	// request.action.
	Action string `json:"action"`
	// Permissions that it must hold besides.
	Permissions []string `json:"permissions"`
	// Audience, for one of which it must be.
	Audience oneOrMore       `json:"audience"`
	Resource checkedResource `json:"resource"`
	Request  checkedRequest  `json:"request"`
}

type checkedResource struct {
	Type            string            `json:"type"`
	ID              string            `json:"id"`
	Owner           string            `json:"owner"`
	OwnerDepartment string            `json:"ownerDepartment"`
	Classification  string            `json:"classification"`
	Created         *time.Time        `json:"created"`
	Attributes      map[string]string `json:"attributes"`
}

type checkedRequest struct {
	Method    string `json:"method"`
	Scheme    string `json:"scheme"`
	Host      string `json:"host"`
	Path      string `json:"path"`
	UserAgent string `json:"userAgent"`
	// ClientIP is where the service was called from; only beside token.
	ClientIP string `json:"clientIP"`
}

// checkResponse is the answer. Why something is not allowed is in the log of this server,
// and in no answer.
type checkResponse struct {
	Allowed bool `json:"allowed"`
	// Authenticated: the credential is good, whether it may or not.
	Authenticated bool `json:"authenticated"`
	// The rest is there where it is allowed.
	*checkedIdentity
}

// checkedIdentity says who the credential is of.
type checkedIdentity struct {
	Subject string `json:"subject"`
	// KeyID is the UID of the credential's object.
	KeyID   string `json:"key_id"`
	Version int64  `json:"version"`
	// Permissions and Roles are separated by spaces.
	Permissions string `json:"permissions"`
	Roles       string `json:"roles"`
	IsAdmin     bool   `json:"is_admin"`
	// ExpiresAt is when the credential is accepted no longer; absent: never.
	ExpiresAt *time.Time `json:"expires_at,omitempty"`
}

const (
	detailCheck = `The body is not a JSON object with no other fields than token, action, permissions, audience, resource and request, ` +
		`each of the type and size that docs/check.md gives.`
	detailClientIP = `request.clientIP: send an IP address, and token beside it: without token the address is that of whoever calls.`
)

var problemMayNotCheck = newProblem(http.StatusForbidden, outcomeForbidden,
	"token: asking about another credential than the one presented needs the permission mintmark:check.")

// check answers a service whether a credential may be used for something. It decides as
// forward-auth does.
//
// Whoever presents a credential may ask what it is good for, as at any door; that tells a
// caller nothing that trying would not. Only who holds mintmark:check may ask about a
// credential in the body: then the service is known by its own one, and what its callers
// send wrong is not held against it.
func (p *public) check(x *exchange) *problem {
	var ask checkRequest
	if problem := readCheck(x, &ask); problem != nil {
		return problem
	}
	if ask.Token != "" {
		x.need = checkNeed
		if problem := p.checkAudience(&x.evaluation); problem != nil {
			return problem
		}
		if !x.allows(PermissionCheck) {
			return x.refuse(codePermission, "lacks "+PermissionCheck, problemMayNotCheck)
		}
		x.evaluation = evaluation{
			now: x.now, client: ask.clientIP(), carried: carried{authorizations: []string{"Bearer " + ask.Token}}, note: "asked by " + x.caller().Subject,
		}
		if problem := p.decider.admit(&x.evaluation); problem != nil {
			if problem.Status != http.StatusUnauthorized && problem.Status != http.StatusForbidden {
				return problem // it is not known whether the credential is good
			}
			x.outcome = problem.outcome
			return writeJSON(x.w, checkResponse{Authenticated: problem.Status == http.StatusForbidden})
		}
	}
	x.need, x.request = ask.need(), ask.original()
	if problem := x.need.check(); problem != nil {
		return problem
	}
	d := p.authorize(&x.evaluation)
	if !d.allowed {
		x.outcome = d.told().outcome
		return writeJSON(x.w, checkResponse{Authenticated: true})
	}
	return writeJSON(x.w, checkResponse{Allowed: true, Authenticated: true, checkedIdentity: x.identity()})
}

// identity is who the credential is of, for whom it is told.
func (e *evaluation) identity() *checkedIdentity {
	who, may := e.caller(), e.may()
	id := &checkedIdentity{
		Subject: who.Subject, KeyID: who.UID, Version: who.Version, Permissions: may.permissions, Roles: may.roles, IsAdmin: may.admin,
	}
	expires := who.Expires
	if e.how == presentedJWT {
		expires = e.claims.Expires
	}
	if !expires.IsZero() {
		expires = expires.UTC()
		id.ExpiresAt = &expires
	}
	return id
}

func readCheck(x *exchange, ask *checkRequest) *problem {
	body, problem := readBody(x.w, x.r, maxBody)
	if problem != nil {
		return problem
	}
	if mediaType(x.r.Header) != "application/json" {
		return problemMediaType
	}
	strict, err := strictjson.UnmarshalStrict(body, ask)
	var bad *fieldError
	switch {
	case errors.As(err, &bad):
		return badRequest(bad.detail)
	case err != nil || len(strict) > 0 || !ask.fits():
		return badRequest(detailCheck)
	case ask.Request.ClientIP != "" && (ask.Token == "" || !ask.clientIP().IsValid()):
		return badRequest(detailClientIP)
	}
	return nil
}

// fits bounds what policies are handed. The body as a whole is bounded before.
func (ask *checkRequest) fits() bool {
	r, q := &ask.Resource, &ask.Request
	for _, text := range []string{ask.Action, r.Type, r.ID, r.Owner, r.OwnerDepartment, r.Classification, q.Method, q.Scheme, q.Host, q.UserAgent} {
		if len(text) > maxAttributeValue {
			return false
		}
	}
	if len(r.Attributes) > maxAttributes {
		return false
	}
	for name, value := range r.Attributes {
		if !isAttribute(name) || len(value) > maxAttributeValue {
			return false
		}
	}
	return true
}

func (ask *checkRequest) clientIP() netip.Addr {
	ip, err := netip.ParseAddr(ask.Request.ClientIP)
	if err != nil {
		return netip.Addr{}
	}
	return ip.Unmap().WithZone("")
}

func (ask *checkRequest) need() *need {
	r := &ask.Resource
	n := &need{permissions: ask.Permissions, resource: &policy.Resource{
		Type: r.Type, ID: r.ID, Owner: r.Owner, OwnerDepartment: r.OwnerDepartment, Classification: r.Classification, Attributes: r.Attributes,
	}}
	if r.Created != nil {
		n.resource.Created = r.Created.UTC()
	}
	if ask.Action != "" {
		n.permissions = append([]string{ask.Action}, ask.Permissions...)
	}
	if len(ask.Audience) > 0 {
		n.audiences = [][]string{ask.Audience}
	}
	return n
}

func (ask *checkRequest) original() original {
	q := &ask.Request
	o := original{
		method: q.Method, scheme: q.Scheme, host: q.Host, action: ask.Action, userAgent: q.UserAgent,
		ambiguous: q.Path != "" && !canonicalTarget(q.Path),
	}
	if q.Path != "" && !o.ambiguous {
		o.path = pathOf(q.Path)
	}
	return o
}
