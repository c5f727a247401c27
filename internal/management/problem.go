package management

import (
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/validation"

	"github.com/mintmark-dev/mintmark/internal/audit"
)

// Problem is what goes wrong, as callers are told (RFC 9457). It has the shape of every
// problem of this server.
type Problem struct {
	Status int    `json:"status" doc:"HTTP status code." minimum:"400" maximum:"599"`
	Title  string `json:"title" doc:"What kind of problem it is: the text of the status code."`
	Detail string `json:"detail,omitempty" doc:"What is wrong, and what to do about it."`
}

// Error implements error.
func (p *Problem) Error() string { return p.Detail }

// GetStatus implements huma.StatusError.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType implements huma.ContentTypeFilter.
func (p *Problem) ContentType(string) string { return "application/problem+json" }

// problem makes one. The detail says what to do, and repeats nothing that was sent but
// names.
func problem(status int, detail string) *Problem {
	return &Problem{Status: status, Title: http.StatusText(status), Detail: detail}
}

// Problems that say the same each time.
var (
	errUnauthenticated = problem(http.StatusUnauthorized, "A valid credential is needed, in the header X-API-Key or Authorization: Bearer.")
	errNotFound        = problem(http.StatusNotFound, "There is no such credential that you may see. The id is the UID of its object.")
	errInternal        = problem(http.StatusInternalServerError, "Something went wrong here. The request id names it in the log.")
	errUnavailable     = problem(http.StatusServiceUnavailable, "The API server cannot be reached at the moment. Nothing is known to have changed: look before you try again.")
	errNoStore         = problem(http.StatusServiceUnavailable, "This server has no database, or cannot reach it: see GET /api/v1/system/status.")
)

// Bounds of what a problem says.
const (
	maxNamedErrors = 8
	maxDetail      = 2048
	maxErrorText   = 512
)

// noBody is what huma says where there has to be a body.
const noBody = "request body is required"

// newError makes the problems of requests that do not fit the operation. Names of fields
// come from the caller and may be anything: they are shown as the audit log would show
// them, and values are not shown at all.
func newError(status int, message string, errs ...error) huma.StatusError {
	switch {
	case status >= http.StatusInternalServerError:
		// What went wrong inside is nobody's outside.
		return problem(status, errInternal.Detail)
	case status == http.StatusRequestEntityTooLarge:
		return problem(status, "body: it is larger than 1 MiB.")
	case status == http.StatusUnsupportedMediaType:
		return problem(status, "body: send JSON, with Content-Type: application/json.")
	case message == noBody:
		return problem(status, "body: there is none: send a JSON object, {} where nothing is to be said.")
	}
	var said []string
	for _, err := range errs {
		detail, ok := err.(huma.ErrorDetailer)
		if !ok {
			continue
		}
		d := detail.ErrorDetail()
		text := d.Message
		if d.Location != "" {
			text = d.Location + ": " + text
		}
		if text = string(audit.Clean(text, maxErrorText)); !slices.Contains(said, text) {
			said = append(said, text)
		}
	}
	if len(said) > maxNamedErrors {
		said = append(said[:maxNamedErrors], "and more")
	}
	detail := strings.Join(said, "; ")
	if detail == "" {
		detail = message
	}
	return problem(status, string(audit.Clean(detail, maxDetail)))
}

// setUp has huma make problems of this shape, and tell field from Field as the decoder
// does. These are global settings of huma's, and this is its only user here.
var setUp = sync.OnceFunc(func() {
	huma.ValidateStrictCasing = true
	// Names alone are of one form or another.
	validation.MsgExpectedMatchExactlyOneSchema = "write a list of names, each of 1 to 253 characters, or one text with spaces between them"
	huma.NewError = newError
	huma.NewErrorWithContext = func(_ huma.Context, status int, message string, errs ...error) huma.StatusError {
		return newError(status, message, errs...)
	}
})
