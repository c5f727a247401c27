package server

import (
	"encoding/json"
	"net/http"
)

// problem is an RFC 9457 problem document. There is one for each outcome, never one for
// each cause: what callers see does not tell an unknown credential from a wrong,
// expired, revoked or retired one. Operators read the cause in logs and metrics.
type problem struct {
	Status int    `json:"status"`
	Title  string `json:"title"`
	Detail string `json:"detail,omitempty"`
	// Error and ErrorDescription are for OAuth clients (RFC 6749, section 5.2).
	Error            string `json:"error,omitempty"`
	ErrorDescription string `json:"error_description,omitempty"`

	outcome outcome
	body    []byte
	// contentType of the body; nil: that of a problem document.
	contentType []string
}

const problemType = "application/problem+json"

func newProblem(status int, o outcome, detail string) *problem {
	return (&problem{Status: status, Title: http.StatusText(status), Detail: detail, outcome: o}).encoded()
}

// encoded is the problem with its body, which is made once.
func (p *problem) encoded() *problem {
	body, err := json.Marshal(p)
	if err != nil {
		panic(err) // strings and a number
	}
	p.body = append(body, '\n')
	return p
}

var (
	problemUnauthenticated = newProblem(http.StatusUnauthorized, outcomeUnauthenticated,
		"A valid credential is needed, in the header X-API-Key or Authorization: Bearer.")
	problemForbidden = newProblem(http.StatusForbidden, outcomeForbidden,
		"The credential is valid and may not do this.")
	problemNotExchangeable = newProblem(http.StatusForbidden, outcomeForbidden,
		"A JWT cannot be exchanged for another one: present the API key or the service token.")
	problemPath = newProblem(http.StatusForbidden, outcomeForbidden,
		"The path of the original request is not in canonical form.")
	problemNeedUntrusted = newProblem(http.StatusForbidden, outcomeForbidden,
		"require=header: the header X-Mintmark-Require is believed from trusted proxies only.")
	problemNeedMissing = newProblem(http.StatusForbidden, outcomeForbidden,
		"require=header: the header X-Mintmark-Require has to be there once.")
	problemRequirement = newProblem(http.StatusForbidden, outcomeForbidden,
		"What this route needs cannot be read: see the gateway's configuration.")
	problemNotFound = newProblem(http.StatusNotFound, outcomeInvalid,
		"There is nothing at this path.")
	problemMethod = newProblem(http.StatusMethodNotAllowed, outcomeInvalid,
		"This path does not support the method. The header Allow lists those it does.")
	problemMediaType = newProblem(http.StatusUnsupportedMediaType, outcomeInvalid,
		"Send application/json or application/x-www-form-urlencoded, without content coding.")
	problemTooLarge = newProblem(http.StatusRequestEntityTooLarge, outcomeInvalid,
		"The body is larger than 16 KiB.")
	problemUnavailable = newProblem(http.StatusServiceUnavailable, outcomeUnavailable,
		"This server cannot decide at the moment. Try again, or another replica.")
	problemInternal = newProblem(http.StatusInternalServerError, outcomeFailed,
		"Something went wrong here. The request id names it in the log.")
)

// badRequest is a problem whose detail names the field and the remedy. The detail must not
// repeat what was sent.
func badRequest(detail string) *problem {
	return newProblem(http.StatusBadRequest, outcomeInvalid, detail)
}

func (p *problem) write(w http.ResponseWriter) {
	h := w.Header()
	h["Content-Type"] = problemContentType
	if p.contentType != nil {
		h["Content-Type"] = p.contentType
	}
	h["Cache-Control"] = noStore
	w.WriteHeader(p.Status)
	_, _ = w.Write(p.body)
}

// Header values made once, for setting them by the canonical key saves an allocation.
var (
	problemContentType = []string{problemType}
	jsonContentType    = []string{"application/json"}
	noStore            = []string{"no-store"}
)
