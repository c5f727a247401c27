package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	// maxPage is the longest page of events that is read.
	maxPage = 64 << 20
	// maxDays is how far back usage is asked for.
	maxDays = 400
)

// reader reads what a server keeps: the audit log and usage, as the holder of a key.
type reader struct {
	server *server
	key    string
}

func (a *app) reader(ctx context.Context, f *serverFlags, k *keySource) (*reader, error) {
	s, err := a.connect(f)
	if err != nil {
		return nil, err
	}
	s.limit = maxPage
	key, err := k.read(ctx, a)
	if err != nil {
		return nil, err
	}
	return &reader{server: s, key: key}, nil
}

// refusedError is an answer that is no success.
type refusedError struct {
	status     int
	retryAfter time.Duration
	err        error
}

func (e *refusedError) Error() string { return e.err.Error() }
func (e *refusedError) Unwrap() error { return e.err }

// Of a server that is busy for a moment another answer is asked for, a few times.
const (
	mostTries    = 4
	longestRetry = 10 * time.Second
)

// get reads one answer. permission is what the operation needs, for errors.
func (r *reader) get(ctx context.Context, path string, query url.Values, permission string, into any) error {
	for try := 1; ; try++ {
		got, err := r.server.call(ctx, http.MethodGet, path, query, r.key, nil)
		if err != nil {
			return err
		}
		busy := got.status == http.StatusTooManyRequests || got.status == http.StatusServiceUnavailable
		switch {
		case got.status == http.StatusOK:
			if err := json.Unmarshal(got.body, into); err != nil {
				return unanswered("%s did not answer as Mintmark's server does at %s: %w", r.server.base, path, err)
			}
			return nil
		case !busy || try == mostTries || got.retryAfter <= 0 || got.retryAfter > longestRetry:
			return &refusedError{got.status, got.retryAfter, r.refusal(got, path, permission)}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(got.retryAfter):
		}
	}
}

func (r *reader) refusal(got answer, path, permission string) error {
	switch got.status {
	case http.StatusForbidden:
		return fmt.Errorf("the key is good, but may not: it needs the permission %s, or to be an admin's: %s", permission, printable(got.reason()))
	case http.StatusNotFound:
		if strings.Contains(string(got.body), `"detail"`) {
			return fmt.Errorf("%s: %s", path, printable(got.reason()))
		}
		return unanswered("%s has nothing at %s: is it Mintmark's server, and as new as this command?", r.server.base, path)
	case http.StatusBadRequest, http.StatusUnprocessableEntity:
		return usageError("%s", printable(got.reason()))
	case http.StatusServiceUnavailable:
		return unanswered("not available: %s", printable(got.reason()))
	}
	return refusal(got)
}

// checkUID refuses what is no UID, a key above all: it would stand in a URL, and be
// recorded as what was looked for.
func checkUID(id string) error {
	if len(id) > 64 || strings.ContainsFunc(id, func(r rune) bool {
		return r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	}) {
		return usageError("--id %s is no UID: it is what .metadata.uid of the credential has", publicPart(id))
	}
	return nil
}

// passes tells whether an error may be gone in a moment.
func passes(err error) bool {
	var refused *refusedError
	if errors.As(err, &refused) {
		return refused.status == http.StatusTooManyRequests || refused.status >= http.StatusInternalServerError
	}
	var usage *exitError
	return errors.As(err, &usage) && usage.code == exitUnanswered
}

// colours tells whether to write colours: at a terminal that has them, unless it is said
// otherwise (no-color.org).
func (a *app) colours(flag string) (bool, error) {
	switch flag {
	case "always":
		return true, nil
	case "never":
		return false, nil
	case "auto":
		return asTerminal(a.Out) != nil && a.getenv("NO_COLOR") == "" && a.getenv("TERM") != "dumb", nil
	}
	return false, usageError("--color %q: auto, always or never", flag)
}

// writeJSON writes a value as indented JSON in which nothing commands a terminal.
func writeJSON(out io.Writer, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%s\n", safeJSON(data))
	return err
}
