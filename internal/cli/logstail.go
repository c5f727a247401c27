package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/mintmark-dev/mintmark/internal/audit"
)

// logEvent is an event with the JSON it came in.
type logEvent struct {
	audit.Event
	raw json.RawMessage
}

// UnmarshalJSON implements json.Unmarshaler.
func (e *logEvent) UnmarshalJSON(data []byte) error {
	e.raw = bytes.Clone(data)
	return json.Unmarshal(data, &e.Event)
}

// eventPage is the answer of GET /api/v1/audit/events.
type eventPage struct {
	Items []logEvent `json:"items"`
	Next  string     `json:"next"`
}

// events reads events, a page at a time, until there are no more or each says stop.
func (r *reader) events(ctx context.Context, filter url.Values, oldestFirst bool, most int, each func(logEvent) error) error {
	q := url.Values{}
	for name, values := range filter {
		q[name] = values
	}
	q.Set("order", "desc")
	if oldestFirst {
		q.Set("order", "asc")
	}
	for read := 0; ; {
		size := eventsPage
		if most > 0 {
			size = min(size, most-read)
		}
		q.Set("limit", strconv.Itoa(size))
		var page eventPage
		if err := r.get(ctx, pathEvents, q, permissionRead, &page); err != nil {
			return err
		}
		for _, e := range page.Items {
			if err := each(e); err != nil {
				return err
			}
		}
		read += len(page.Items)
		if page.Next == "" || most > 0 && read >= most {
			return nil
		}
		q.Set("cursor", page.Next)
	}
}

// tail shows events in the order of time, and goes on with those that come. Servers store
// theirs a moment after they happened, and not all at the same pace: so each look begins a
// little before the last, and what was shown is remembered.
type tail struct {
	reader *reader
	filter url.Values
	print  func(logEvent) error
	note   func(format string, args ...any)
	late   time.Duration
	// idle is the shortest pause between two looks.
	idle time.Duration

	from time.Time // nothing before is of interest
	last time.Time // the server's time at the last look
	seen map[audit.ID]time.Time
	// shown counts events.
	shown int
}

// begin shows what there is: the latest, or all since a time.
func (t *tail) begin(ctx context.Context, since time.Time, limit int) error {
	t.seen, t.from = map[audit.ID]time.Time{}, since
	if !since.IsZero() {
		t.filter.Set("since", since.UTC().Format(time.RFC3339Nano))
	}
	if limit == 0 {
		if err := t.reader.events(ctx, t.filter, true, 0, func(e logEvent) error {
			// From here on others may come late before what was read, however long the rest takes.
			if now := t.now(); t.last.IsZero() && e.At.After(now.Add(-t.late)) {
				t.last = now
			}
			return t.show(e)
		}); err != nil {
			return err
		}
	} else {
		var latest []logEvent
		if err := t.reader.events(ctx, t.filter, false, limit, func(e logEvent) error {
			if len(latest) == 0 {
				t.last = t.now() // what comes while older pages are read comes after this
			}
			latest = append(latest, e)
			return nil
		}); err != nil {
			return err
		}
		slices.Reverse(latest)
		for _, e := range latest {
			if err := t.show(e); err != nil {
				return err
			}
		}
		if len(latest) == limit { // there are others before them, which were not asked for
			t.from = latest[0].At
		}
	}
	if t.last.IsZero() {
		t.last = t.now()
	}
	return nil
}

// now is the server's time.
func (t *tail) now() time.Time {
	now, _ := t.reader.server.clock.now()
	return now
}

// show prints an event unless it was printed already. What no look will read again is not
// remembered.
func (t *tail) show(e logEvent) error {
	if _, known := t.seen[e.ID]; known {
		return nil
	}
	if t.shown++; e.At.After(t.now().Add(-t.late - forgetAfter)) {
		t.seen[e.ID] = e.At
	}
	return t.print(e)
}

// forgetAfter is how much longer events are remembered than they may come again.
const forgetAfter = time.Minute

// Pauses between two looks.
const (
	longestIdle    = 5 * time.Second
	longestBackOff = 30 * time.Second
)

// follow looks again and again until the context ends. What fails for a moment is told
// and tried again, and costs no event.
func (t *tail) follow(ctx context.Context) error {
	wait, told := t.idle, ""
	for {
		select {
		case <-ctx.Done():
			return &exitError{code: exitInterrupted}
		case <-time.After(wait):
		}
		before := t.shown
		err := t.look(ctx)
		switch {
		case ctx.Err() != nil:
			return &exitError{code: exitInterrupted}
		case err != nil && !passes(err):
			return err
		case err != nil:
			if err.Error() != told {
				told = err.Error()
				t.note("%s; trying again", told)
			}
			wait = min(max(2*wait, t.idle), longestBackOff)
			var refused *refusedError
			if errors.As(err, &refused) {
				wait = min(max(wait, refused.retryAfter), 10*longestBackOff)
			}
		case t.shown > before:
			wait, told = t.idle, ""
		default:
			wait, told = min(wait+t.idle/2, max(longestIdle, t.idle)), ""
		}
	}
}

// look reads what has come since the last look, and what may have come late before it.
func (t *tail) look(ctx context.Context) error {
	since := t.last.Add(-t.late)
	if since.Before(t.from) {
		since = t.from
	}
	t.filter.Set("since", since.UTC().Format(time.RFC3339Nano))
	var began time.Time // of the first page: the others are read later, and have more
	if err := t.reader.events(ctx, t.filter, true, 0, func(e logEvent) error {
		if began.IsZero() {
			began = t.now()
		}
		return t.show(e)
	}); err != nil {
		return err
	}
	if t.last = began; began.IsZero() {
		t.last = t.now()
	}
	for id, at := range t.seen {
		if at.Before(t.last.Add(-t.late - forgetAfter)) {
			delete(t.seen, id)
		}
	}
	return nil
}
