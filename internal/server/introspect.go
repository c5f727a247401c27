package server

import (
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/mintmark-dev/mintmark/internal/jsontext"
	"github.com/mintmark-dev/mintmark/internal/oauth"
)

// Paths of the OAuth endpoints.
const (
	introspectionPath = "/oauth2/introspect"
	revocationPath    = "/oauth2/revoke"
)

// Permissions for what is done about other credentials than the caller's own. Each reaches
// the caller's namespace, and every other one with Everywhere beside it.
const (
	PermissionIntrospect           = "mintmark:introspect"
	PermissionIntrospectEverywhere = "mintmark:introspect:any"
	PermissionRevoke               = "mintmark:revoke"
	PermissionRevokeEverywhere     = "mintmark:revoke:any"
)

var introspectionNeed = &need{permissions: []string{PermissionIntrospect}}

// activeToken is the answer of POST /oauth2/introspect (RFC 7662, section 2.2) about a token
// that is active. Of what is not nothing is told.
type activeToken struct {
	Active bool `json:"active"` // always
	// Scope is the permissions, and Permissions the same: some clients look for one, some
	// for the other. Roles too are separated by spaces.
	Scope       string `json:"scope,omitempty"`
	Permissions string `json:"permissions,omitempty"`
	Roles       string `json:"roles,omitempty"`
	ClientID    string `json:"client_id"`
	Username    string `json:"username"`
	TokenType   string `json:"token_type"`
	// Expires, IssuedAt and NotBefore are in seconds since 1970; those of a key are not
	// there where it has no end, and where nothing tells when it began.
	Expires   int64    `json:"exp,omitempty"`
	IssuedAt  int64    `json:"iat,omitempty"`
	NotBefore int64    `json:"nbf,omitempty"`
	Subject   string   `json:"sub"`
	Audience  []string `json:"aud,omitempty"`
	Issuer    string   `json:"iss"`
	ID        string   `json:"jti,omitempty"`
	Namespace string   `json:"namespace,omitempty"`
	Kind      string   `json:"kind,omitempty"`
	KeyID     string   `json:"key_id"`
	Version   int64    `json:"version"`
	IsAdmin   bool     `json:"is_admin"`
	// Method is "key" or "jwt", as in the profile.
	Method string `json:"method"`
}

// introspect tells a service whether a token is good, and what it may do (RFC 7662). The
// service presents a credential of its own that holds mintmark:introspect, and sees
// credentials of its own namespace. What is bad and what is not for its eyes look the same.
func (p *public) introspect(x *exchange) *problem {
	x.need = introspectionNeed
	if d := p.authorize(&x.evaluation); !d.allowed {
		return d.told()
	}
	form, problem := readOAuthForm(x.w, x.r)
	if problem != nil {
		return problem
	}
	i := introspections.Get().(*introspection)
	defer i.release()
	asked := &i.asked
	asked.now, asked.carried.token = x.now, form.Get("token")
	// A credential that is bound to networks is good in a request from there, which only
	// the service can know of. Without an address it is in none of them.
	if text := form.Get("client_ip"); text != "" {
		ip, err := netip.ParseAddr(text)
		if err != nil {
			return oauthProblem(http.StatusBadRequest, "invalid_request", "client_ip: send an IP address.")
		}
		asked.client = ip
	}
	if problem := p.decider.authenticate(asked); problem != nil && problem.Status == http.StatusServiceUnavailable {
		return problem // it is not known, and that is not to say no
	}
	switch {
	case !asked.verdict.OK:
		x.note = "introspected: " + asked.verdict.Reason.Code()
		return answerJSON(x.w, notActive)
	case !x.reaches(asked, PermissionIntrospectEverywhere):
		x.note = "introspected: of another namespace"
		return answerJSON(x.w, notActive)
	}
	x.note = "introspected: " + asked.caller().Subject
	t := p.describe(asked)
	i.answer = t.appendJSON(i.answer[:0])
	return answerJSON(x.w, i.answer)
}

// introspection is what is asked about, and the answer. They are used again, for services
// ask about every request.
type introspection struct {
	asked  evaluation
	answer []byte
}

var introspections = sync.Pool{New: func() any { return &introspection{answer: make([]byte, 0, 768)} }}

func (i *introspection) release() {
	i.asked = evaluation{}
	introspections.Put(i)
}

// notActive is the whole answer about what is not active.
var notActive = []byte(`{"active":false}`)

// describe tells what an active token is.
func (p *public) describe(e *evaluation) activeToken {
	who, may := e.caller(), e.may()
	t := activeToken{
		Active: true, Scope: may.permissions, Permissions: may.permissions, Roles: may.roles, ClientID: who.Subject, Username: who.Name, TokenType: "Bearer",
		Subject: who.Subject, Audience: who.JWT.Audiences, Issuer: p.issuer.Issuer(), Namespace: who.Namespace, Kind: string(who.Kind),
		KeyID: who.UID, Version: who.Version, IsAdmin: may.admin, Method: "key",
	}
	if e.how != presentedJWT {
		if len(t.Audience) == 0 {
			t.Audience = []string{t.Issuer}
		}
		if !who.Expires.IsZero() {
			t.Expires = who.Expires.Unix()
		}
		return t
	}
	c := e.claims
	t.Method, t.ClientID, t.Audience, t.ID = "jwt", c.ClientID, c.Audience, c.ID
	t.Expires, t.IssuedAt, t.NotBefore = c.Expires.Unix(), c.IssuedAt.Unix(), c.NotBefore.Unix()
	// Whichever ends first.
	if !who.Expires.IsZero() {
		t.Expires = min(t.Expires, who.Expires.Unix())
	}
	return t
}

// appendJSON writes what encoding/json would.
func (t *activeToken) appendJSON(b []byte) []byte {
	text := func(name, value string) {
		if value != "" {
			b = jsontext.AppendString(append(b, name...), value)
		}
	}
	number := func(name string, value int64) {
		if value != 0 {
			b = strconv.AppendInt(append(b, name...), value, 10)
		}
	}
	b = strconv.AppendBool(append(b, `{"active":`...), t.Active)
	text(`,"scope":`, t.Scope)
	text(`,"permissions":`, t.Permissions)
	text(`,"roles":`, t.Roles)
	b = jsontext.AppendString(append(b, `,"client_id":`...), t.ClientID)
	b = jsontext.AppendString(append(b, `,"username":`...), t.Username)
	b = jsontext.AppendString(append(b, `,"token_type":`...), t.TokenType)
	number(`,"exp":`, t.Expires)
	number(`,"iat":`, t.IssuedAt)
	number(`,"nbf":`, t.NotBefore)
	b = jsontext.AppendString(append(b, `,"sub":`...), t.Subject)
	if len(t.Audience) > 0 {
		b = jsontext.AppendStrings(append(b, `,"aud":`...), t.Audience)
	}
	b = jsontext.AppendString(append(b, `,"iss":`...), t.Issuer)
	text(`,"jti":`, t.ID)
	text(`,"namespace":`, t.Namespace)
	text(`,"kind":`, t.Kind)
	b = jsontext.AppendString(append(b, `,"key_id":`...), t.KeyID)
	b = strconv.AppendInt(append(b, `,"version":`...), t.Version, 10)
	b = strconv.AppendBool(append(b, `,"is_admin":`...), t.IsAdmin)
	b = jsontext.AppendString(append(b, `,"method":`...), t.Method)
	return append(b, '}')
}

// reaches tells whether the caller's permission, which it holds, is for the credential
// asked about: tenants do not see one another.
func (x *exchange) reaches(asked *evaluation, everywhere string) bool {
	own, other := x.caller().Namespace, asked.caller().Namespace
	return own != "" && own == other || x.allows(everywhere)
}

// readOAuthForm reads the body of a request to the OAuth endpoints. A parameter that is
// not known is let be, one that comes twice is not (RFC 6749, section 3.2). The query is
// not read: logs would keep it.
func readOAuthForm(w http.ResponseWriter, r *http.Request) (parameters, *problem) {
	if mediaType(r.Header) != mediaTypeForm {
		return nil, problemForm
	}
	body, p := readBody(w, r, maxBody)
	if p != nil {
		return nil, p
	}
	form, wrong := parseParameters(string(body))
	if wrong != "" {
		return nil, oauthProblem(http.StatusBadRequest, "invalid_request", wrong)
	}
	if token := form.Get("token"); token == "" || len(token) > oauth.MaxTokenLen || strings.ContainsAny(token, " ,\r\n") {
		return nil, oauthProblem(http.StatusBadRequest, "invalid_request", "token: send one token.")
	}
	return form, nil
}

// parameters are those of a form, each there once.
type parameters []parameter

type parameter struct{ name, value string }

// maxParameters is more than OAuth has. It bounds the search for those that come twice.
const maxParameters = 32

// What may be wrong with a form.
const (
	detailNoForm = "The body is not a form."
	detailTwice  = "A parameter is there more than once."
	detailMany   = "There are more than 32 parameters."
)

// parseParameters reads what url.ParseQuery reads, without a map: there are one or two. It
// tells what is wrong, if something is.
func parseParameters(body string) (form parameters, wrong string) {
	form = make(parameters, 0, 2)
	for body != "" {
		var text string
		text, body, _ = strings.Cut(body, "&")
		if text == "" {
			continue
		}
		if strings.IndexByte(text, ';') >= 0 {
			return nil, detailNoForm
		}
		name, value, _ := strings.Cut(text, "=")
		name, err := url.QueryUnescape(name)
		if err != nil {
			return nil, detailNoForm
		}
		if value, err = url.QueryUnescape(value); err != nil {
			return nil, detailNoForm
		}
		switch {
		case form.has(name):
			return nil, detailTwice
		case len(form) == maxParameters:
			return nil, detailMany
		}
		form = append(form, parameter{name, value})
	}
	return form, ""
}

func (f parameters) has(name string) bool {
	return slices.ContainsFunc(f, func(p parameter) bool { return p.name == name })
}

// Get is the value of a parameter; empty where it is not there.
func (f parameters) Get(name string) string {
	for i := range f {
		if f[i].name == name {
			return f[i].value
		}
	}
	return ""
}

var problemForm = newProblem(http.StatusUnsupportedMediaType, outcomeInvalid, "Send application/x-www-form-urlencoded, without content coding.")

// oauthProblem is a problem with the members that OAuth clients look for (RFC 6749,
// section 5.2).
func oauthProblem(status int, code, description string) *problem {
	p := &problem{
		Status: status, Title: http.StatusText(status), Detail: description, Error: code, ErrorDescription: description, outcome: outcomeInvalid,
	}
	switch status {
	case http.StatusForbidden:
		p.outcome = outcomeForbidden
	case http.StatusServiceUnavailable:
		p.outcome = outcomeUnavailable
	case http.StatusTooManyRequests:
		p.outcome = outcomeLimited
	}
	return p.encoded()
}
