package management

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// IdempotencyInput is the header by which a request that is sent again is known
// (draft-ietf-httpapi-idempotency-key-header).
type IdempotencyInput struct {
	Key string `header:"Idempotency-Key" maxLength:"255" pattern:"^[!-~]+( [!-~]+)*$" doc:"Names this request, uniquely among the caller's. Sent again with the same key, it is not carried out again; its value is not shown again either."`
}

// once is a request that is to be carried out once. It is written into the object, which
// is where all servers look, so it holds for as long as the object exists. A nil once is a
// request without a key.
type once struct {
	key     string // SHA-256 of caller, operation and key, in hex
	request string // SHA-256 of what was asked for, in hex
}

// once reads the header. What is asked for is part of it: the same key for something else is
// a mistake of the caller's.
func (in *IdempotencyInput) once(c *Caller, operation string, request any) (*once, error) {
	// The draft has a string of RFC 8941, in quotes; most clients leave these out.
	key := in.Key
	if len(key) >= 2 && strings.HasPrefix(key, `"`) && strings.HasSuffix(key, `"`) {
		key = key[1 : len(key)-1]
	}
	if key == "" {
		return nil, nil
	}
	text, err := json.Marshal(request)
	if err != nil {
		return nil, fmt.Errorf("writing down a request: %w", err)
	}
	return &once{key: hash(c.UID, c.Subject, operation, key), request: hash(string(text))}, nil
}

func hash(parts ...string) string {
	h := sha256.New()
	for _, part := range parts {
		_, _ = fmt.Fprintf(h, "%d:%s", len(part), part)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// mark writes the request into the annotations of what it makes or changes.
func (o *once) mark(annotations map[string]string) {
	if o != nil {
		annotations[v1alpha1.AnnotationIdempotencyKey] = o.key + "." + o.request
	}
}

// marks tells whether this very request has been carried out on the object.
func (o *once) marks(annotations map[string]string) bool {
	return o != nil && annotations[v1alpha1.AnnotationIdempotencyKey] == o.key+"."+o.request
}

// check refuses the key of another request.
func (o *once) check(annotations map[string]string) error {
	if o == nil {
		return nil
	}
	key, request, _ := strings.Cut(annotations[v1alpha1.AnnotationIdempotencyKey], ".")
	if key == o.key && request != o.request {
		return problem(http.StatusUnprocessableEntity, "header.Idempotency-Key: it has been used for another request. Take a new key for each request that is not the same.")
	}
	return nil
}
