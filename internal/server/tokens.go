package server

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	strictjson "sigs.k8s.io/json"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/jsontext"
	"github.com/mintmark-dev/mintmark/internal/oauth"
)

// tokens exchanges keys for JWTs.
type tokens struct {
	index   *authn.Index
	issuer  *oauth.Issuer
	metrics *metrics
	log     *slog.Logger
}

// tokenResponse is the answer of POST /api/auth/token.
type tokenResponse struct {
	Token     string `json:"token"`
	ExpiresIn int64  `json:"expires_in"` // seconds
	TokenType string `json:"token_type"`
	// KeyID is the credential's, the UID of its object.
	KeyID string `json:"key_id"`
	// Permissions are separated by spaces.
	Permissions string `json:"permissions"`
	IsAdmin     bool   `json:"is_admin"`
}

// exchange issues a JWT for the key presented.
func (t *tokens) exchange(x *exchange) *problem {
	options, p := readTokenRequest(x.w, x.r)
	if p != nil {
		return p
	}
	token, claims, err := t.issuer.Issue(x.caller(), x.now, options)
	if err != nil {
		return t.failed(x, err)
	}
	t.metrics.issued.Inc()
	return answerJSON(x.w, answerWith(token, &claims).appendJSON(make([]byte, 0, 1536)))
}

func answerWith(token string, claims *oauth.Claims) *tokenResponse {
	return &tokenResponse{
		Token: token, ExpiresIn: int64(claims.Expires.Sub(claims.IssuedAt) / time.Second), TokenType: "Bearer",
		KeyID: claims.CredentialUID, Permissions: claims.Scope(), IsAdmin: claims.Admin,
	}
}

// appendJSON writes what encoding/json would.
func (t *tokenResponse) appendJSON(b []byte) []byte {
	b = jsontext.AppendString(append(b, `{"token":`...), t.Token)
	b = strconv.AppendInt(append(b, `,"expires_in":`...), t.ExpiresIn, 10)
	b = jsontext.AppendString(append(b, `,"token_type":`...), t.TokenType)
	b = jsontext.AppendString(append(b, `,"key_id":`...), t.KeyID)
	b = jsontext.AppendString(append(b, `,"permissions":`...), t.Permissions)
	b = strconv.AppendBool(append(b, `,"is_admin":`...), t.IsAdmin)
	return append(b, '}')
}

// answerJSON sends JSON.
func answerJSON(w http.ResponseWriter, body []byte) *problem {
	w.Header()["Content-Type"] = jsonContentType
	_, _ = w.Write(body)
	return nil
}

func (t *tokens) failed(x *exchange, err error) *problem {
	switch {
	case errors.Is(err, oauth.ErrTTL), errors.Is(err, oauth.ErrAudience):
		return badRequest(err.Error())
	case errors.Is(err, oauth.ErrTooLong):
		return newProblem(http.StatusUnprocessableEntity, outcomeInvalid, err.Error())
	case errors.Is(err, oauth.ErrCredentialExpired):
		x.note = err.Error()
		return problemUnauthenticated
	case errors.Is(err, oauth.ErrNoSigningKey):
		x.note = err.Error()
		return problemUnavailable
	}
	t.log.Error("cannot issue a token", "error", err.Error(), "request_id", x.id)
	return problemInternal
}

// maxBody of a request to the public interface.
const maxBody = 16 << 10

// tokenRequest is the body of POST /api/auth/token, which may be left out.
type tokenRequest struct {
	// Audience, one or several of those the credential's tokens may be for.
	Audience oneOrMore `json:"audience"`
	// TTL of the token, "15m" or in seconds.
	TTL ttl `json:"ttl"`
}

// details of what may be wrong with it. They do not repeat what was sent.
const (
	detailBody     = `The body is not a JSON object, or a form, with no other fields than audience and ttl.`
	detailAudience = `audience: send a string or a list of at most 16 strings of at most 512 characters.`
	detailTTL      = `ttl: send a length of time such as "15m", or a number of seconds.`
)

func readTokenRequest(w http.ResponseWriter, r *http.Request) (oauth.Options, *problem) {
	body, p := readBody(w, r, maxBody)
	if p != nil || len(body) == 0 {
		return oauth.Options{}, p
	}
	var ask tokenRequest
	switch mediaType(r.Header) {
	case mediaTypeJSON:
		strict, err := strictjson.UnmarshalStrict(body, &ask)
		var bad *fieldError
		switch {
		case errors.As(err, &bad):
			return oauth.Options{}, badRequest(bad.detail)
		case err != nil || len(strict) > 0:
			return oauth.Options{}, badRequest(detailBody)
		}
	case mediaTypeForm:
		if p := ask.readForm(string(body)); p != nil {
			return oauth.Options{}, p
		}
	default:
		return oauth.Options{}, problemMediaType
	}
	return oauth.Options{Audience: ask.Audience, TTL: time.Duration(ask.TTL)}, nil
}

func (ask *tokenRequest) readForm(body string) *problem {
	form, err := url.ParseQuery(body)
	if err != nil {
		return badRequest(detailBody)
	}
	for name, values := range form {
		switch name {
		case "audience":
			if err := ask.Audience.set(values); err != nil {
				return badRequest(detailAudience)
			}
		case "ttl":
			if err := ask.TTL.parse(values[0]); err != nil || len(values) > 1 {
				return badRequest(detailTTL)
			}
		default:
			return badRequest(detailBody)
		}
	}
	return nil
}

// fieldError is a field of a body that cannot be read.
type fieldError struct{ detail string }

func (e *fieldError) Error() string { return e.detail }

// oneOrMore is a string or a list of strings.
type oneOrMore []string

const maxAudiences = 16

func (o *oneOrMore) set(values []string) error {
	if len(values) > maxAudiences {
		return &fieldError{detailAudience}
	}
	for _, v := range values {
		if v == "" || len(v) > maxAudienceLen {
			return &fieldError{detailAudience}
		}
	}
	*o = values
	return nil
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *oneOrMore) UnmarshalJSON(data []byte) error {
	var one string
	if err := json.Unmarshal(data, &one); err == nil && string(data) != "null" {
		return o.set([]string{one})
	}
	var several []string
	if err := json.Unmarshal(data, &several); err != nil || several == nil {
		return &fieldError{detailAudience}
	}
	return o.set(several)
}

// ttl is a length of time in words, or in seconds.
type ttl time.Duration

func (t *ttl) parse(text string) error {
	if seconds, err := strconv.ParseInt(text, 10, 32); err == nil && seconds > 0 {
		*t = ttl(time.Duration(seconds) * time.Second)
		return nil
	}
	length, ok, err := v1alpha1.Duration(text).Parse()
	if err != nil || !ok || length <= 0 {
		return &fieldError{detailTTL}
	}
	*t = ttl(length)
	return nil
}

// UnmarshalJSON implements json.Unmarshaler.
func (t *ttl) UnmarshalJSON(data []byte) error {
	text := string(data)
	if strings.HasPrefix(text, `"`) {
		if err := json.Unmarshal(data, &text); err != nil {
			return &fieldError{detailTTL}
		}
	}
	return t.parse(text)
}

// readBody reads a body of at most limit bytes, as it was sent: nothing is unpacked.
func readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, *problem) {
	if coding := r.Header.Get("Content-Encoding"); coding != "" && coding != "identity" {
		return nil, problemMediaType
	}
	if r.ContentLength > limit {
		return nil, problemTooLarge
	}
	var body []byte
	var err error
	switch r.ContentLength {
	case 0:
	case -1: // it does not say how long it is
		body, err = io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	default:
		body = make([]byte, r.ContentLength)
		_, err = io.ReadFull(r.Body, body)
	}
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, problemTooLarge
	case err != nil:
		return nil, badRequest("The body could not be read.")
	}
	return body, nil
}

// Media types of what is sent here.
const (
	mediaTypeForm = "application/x-www-form-urlencoded"
	mediaTypeJSON = "application/json"
)

func mediaType(h http.Header) string {
	if len(h["Content-Type"]) != 1 {
		return ""
	}
	told := h["Content-Type"][0]
	if told == mediaTypeForm || told == mediaTypeJSON {
		return told // as nearly everybody writes it
	}
	parsed, _, err := mime.ParseMediaType(told)
	if err != nil {
		return ""
	}
	return parsed
}

// profileResponse is the answer of GET /api/auth/profile.
type profileResponse struct {
	Subject string `json:"subject"`
	// KeyID is the UID of the credential's object.
	KeyID     string `json:"key_id"`
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Class     string `json:"credential_class"`
	Version   int64  `json:"version"`
	Prefix    string `json:"prefix,omitempty"`
	// Permissions and Roles are separated by spaces.
	Permissions string `json:"permissions"`
	Roles       string `json:"roles"`
	IsAdmin     bool   `json:"is_admin"`
	// Method is how the caller authenticated: "key" or "jwt".
	Method string `json:"method"`
	// ExpiresAt is when the key, or the JWT, is accepted no longer; absent: never.
	ExpiresAt *time.Time `json:"expires_at,omitempty"`
	// Audience of the JWT.
	Audience []string `json:"audience,omitempty"`
}

// profile tells callers who they are. It takes a JWT of any audience: it tells nothing
// that is not in the token.
func (p *public) profile(x *exchange) *problem {
	who, may := x.caller(), x.may()
	answer := profileResponse{
		Subject: who.Subject, KeyID: who.UID, Kind: string(who.Kind), Namespace: who.Namespace, Name: who.Name,
		Class: who.Class, Version: who.Version, Prefix: who.Prefix,
		Permissions: may.permissions, Roles: may.roles, IsAdmin: may.admin, Method: "key",
	}
	expires := who.Expires
	if x.how == presentedJWT {
		answer.Method, answer.Audience, expires = "jwt", x.claims.Audience, x.claims.Expires
	}
	if !expires.IsZero() {
		expires = expires.UTC()
		answer.ExpiresAt = &expires
	}
	return writeJSON(x.w, answer)
}

// health tells in public whether this server answers, and nothing else.
func (p *public) health(x *exchange) *problem {
	if err := p.gate.ready(x.now); err != nil {
		return problemUnavailable
	}
	return writeJSON(x.w, struct {
		Status string `json:"status"`
	}{"ok"})
}
