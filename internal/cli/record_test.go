package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"
	"k8s.io/cli-runtime/pkg/genericiooptions"

	"github.com/mintmark-dev/mintmark/internal/audit"
)

// auditServer answers as the server does, from what it is given.
type auditServer struct {
	mu      sync.Mutex
	events  []audit.Event
	batches map[string][]*audit.Batch
	// fail answers the next requests with these statuses.
	fail  []int
	asked []string
	// stuck answers with the same batches for ever.
	stuck bool
	url   string
	// page is called before each page of events is answered, and gives the server's time.
	page func(n int) time.Time
	// pages counts them.
	pages int
}

// cut stands among the statuses of fail for an answer that breaks off.
const cut = -1

func newAuditServer(t *testing.T) *auditServer {
	t.Helper()
	s := &auditServer{batches: map[string][]*audit.Batch{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+pathEvents, s.listEvents)
	mux.HandleFunc("GET "+pathChains, s.listChains)
	mux.HandleFunc("GET "+pathBatches, s.listBatches)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.asked = append(s.asked, r.URL.Path+"?"+r.URL.RawQuery)
		status := 0
		if len(s.fail) > 0 {
			status, s.fail = s.fail[0], s.fail[1:]
		}
		s.mu.Unlock()
		switch {
		case status == cut:
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write([]byte(`{"items":[`))
		case status != 0:
			w.WriteHeader(status)
			_, _ = w.Write([]byte(`{"title":"x","detail":"for a moment"}`))
		case r.Header.Get("Authorization") != "Bearer key":
			w.WriteHeader(http.StatusUnauthorized)
		default:
			mux.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(server.Close)
	s.url = server.URL
	return s
}

func (s *auditServer) add(events ...audit.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, events...)
	slices.SortStableFunc(s.events, func(a, b audit.Event) int { return a.At.Compare(b.At) })
}

func answerJSON(w http.ResponseWriter, v any) { _ = json.NewEncoder(w).Encode(v) }

func (s *auditServer) listEvents(w http.ResponseWriter, r *http.Request) {
	if s.page != nil {
		s.pages++
		w.Header().Set("Date", s.page(s.pages).UTC().Format(http.TimeFormat))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	q := r.URL.Query()
	since, _ := time.Parse(time.RFC3339Nano, q.Get("since"))
	var found []audit.Event
	for _, e := range s.events {
		if !e.At.Before(since) {
			found = append(found, e)
		}
	}
	if q.Get("order") == "desc" {
		slices.Reverse(found)
	}
	from, _ := strconv.Atoi(q.Get("cursor"))
	limit, _ := strconv.Atoi(q.Get("limit"))
	limit = min(limit, 3) // pages are small here
	answer := map[string]any{"items": found[min(from, len(found)):min(from+limit, len(found))]}
	if from+limit < len(found) {
		answer["next"] = strconv.Itoa(from + limit)
	}
	answerJSON(w, answer)
}

func (s *auditServer) listChains(w http.ResponseWriter, r *http.Request) {
	items := []chainInfo{}
	for name, batches := range s.batches {
		last := batches[len(batches)-1]
		items = append(items, chainInfo{Name: name, Head: last.Digest, LastNumber: last.Sequence, First: noonOf(1), Last: noonOf(9)})
	}
	slices.SortFunc(items, func(a, b chainInfo) int { return strings.Compare(a.Name, b.Name) })
	items = slices.DeleteFunc(items, func(c chainInfo) bool { return c.Name <= r.URL.Query().Get("cursor") })
	answer := map[string]any{"items": items[:min(1, len(items))]} // pages are small here
	if len(items) > 1 {
		answer["next"] = items[0].Name
	}
	answerJSON(w, answer)
}

func (s *auditServer) listBatches(w http.ResponseWriter, r *http.Request) {
	after, _ := strconv.ParseUint(r.URL.Query().Get("after"), 10, 64)
	items := []*audit.Batch{}
	for _, b := range s.batches[r.URL.Query().Get("chain")] {
		if (b.Sequence > after || s.stuck) && len(items) < 2 {
			items = append(items, b)
		}
	}
	answerJSON(w, map[string]any{"items": items})
}

func noonOf(day int) time.Time { return time.Date(2026, 1, day, 12, 0, 0, 0, time.UTC) }

func anEvent(n int, at time.Time) audit.Event {
	return audit.Event{
		ID: audit.FixedID("event", strconv.Itoa(n)), At: at, Type: audit.TypeAuthentication, Outcome: audit.Allowed, Reason: "Accepted",
		Subject: "servicetoken:payments:ci-" + strconv.Itoa(n), Namespace: "payments", Client: netip.MustParseAddr("192.0.2.7"), Took: 38 * time.Microsecond,
	}
}

// mintmark runs the command against the server.
func (s *auditServer) mintmark(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	streams, in, out, errOut := genericiooptions.NewTestIOStreams()
	in.WriteString("")
	code = Run(t.Context(), Config{Streams: streams, Getenv: func(name string) string {
		return map[string]string{envURL: s.url, envKey: "key"}[name]
	}}, args)
	return code, out.String(), errOut.String()
}

func TestLogsShowTheLatestTheOldestFirst(t *testing.T) {
	s := newAuditServer(t)
	for n := range 10 {
		s.add(anEvent(n, noonOf(1).Add(time.Duration(n)*time.Second)))
	}
	code, out, errOut := s.mintmark(t, "logs", "--limit", "7")
	if lines := strings.Count(out, "\n"); code != 0 || lines != 8 || !strings.Contains(out, "ci-3") || strings.Contains(out, "ci-2") ||
		strings.Index(out, "ci-3") > strings.Index(out, "ci-9") {
		t.Errorf("exit %d, %d lines:\n%s%s", code, lines, out, errOut)
	}
	if _, out, _ := s.mintmark(t, "logs", "--since", "2026-01-01T12:00:08Z", "-o", "json"); strings.Count(out, "\n") != 2 {
		t.Errorf("since a time:\n%s", out)
	}
	if _, out, _ := s.mintmark(t, "logs", "--limit", "0", "-o", "json"); strings.Count(out, "\n") != 10 {
		t.Errorf("all:\n%s", out)
	}
}

func TestNothingInAnEventCommandsTheTerminal(t *testing.T) {
	s := newAuditServer(t)
	e := anEvent(1, noonOf(1))
	e.Reason, e.UserAgent, e.Name = "\x1b[2J", "a\u009b31m\u202eb\nc", "\x07"
	e.Subject, e.Endpoint = "", "/\x00\x1b]0;title\a"
	e.Detail = map[string]audit.Text{"\x1bkey": "\U000e0041hidden"}
	s.add(e)
	for _, output := range []string{"table", "wide", "json"} {
		_, out, _ := s.mintmark(t, "logs", "-o", output)
		for _, r := range out {
			if r != '\n' && !unicode.IsPrint(r) {
				t.Errorf("-o %s writes %q:\n%q", output, r, out)
			}
		}
		if output == "json" {
			var back audit.Event
			if err := json.Unmarshal([]byte(out), &back); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(e, back, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
				t.Errorf("the JSON is another (-sent +read):\n%s", diff)
			}
		} else if strings.Count(out, "\n") != 2 {
			t.Errorf("-o %s: one event is one line:\n%q", output, out)
		}
	}
}

// following runs a tail against the server, with short pauses.
func following(t *testing.T, s *auditServer, limit int) (seen func() []string, notes func() string) {
	t.Helper()
	a := newApp(Config{Streams: genericiooptions.IOStreams{In: strings.NewReader("key"), Out: &bytes.Buffer{}, ErrOut: &bytes.Buffer{}}})
	r, err := a.reader(t.Context(), &serverFlags{url: s.url, timeout: time.Minute}, new(keySource))
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var subjects, told []string
	tail := &tail{
		reader: r, filter: map[string][]string{}, late: 15 * time.Second, idle: time.Millisecond,
		print: func(e logEvent) error {
			mu.Lock()
			defer mu.Unlock()
			subjects = append(subjects, e.Subject)
			return nil
		},
		note: func(format string, args ...any) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, fmt.Sprintf(format, args...))
		},
	}
	if err := tail.begin(t.Context(), time.Time{}, limit); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- tail.follow(t.Context()) }()
	t.Cleanup(func() {
		select {
		case err := <-done:
			if exit := (*exitError)(nil); !errors.As(err, &exit) || exit.code != exitInterrupted {
				t.Errorf("it ends with %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("it does not end with its context")
		}
	})
	return func() []string {
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(subjects)
		}, func() string {
			mu.Lock()
			defer mu.Unlock()
			return strings.Join(told, "\n")
		}
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func TestFollowingShowsEachEventOnceAlsoThoseThatComeLate(t *testing.T) {
	s := newAuditServer(t)
	now := time.Now().UTC()
	for n := range 5 {
		s.add(anEvent(n, now.Add(time.Duration(n-6)*time.Second)))
	}
	seen, _ := following(t, s, 3)
	until(t, "what was there", func() bool { return len(seen()) == 3 })
	s.add(anEvent(10, now), anEvent(11, now))
	until(t, "what came", func() bool { return len(seen()) == 5 })
	// Of another server, which took its time; and one in the same microsecond.
	s.add(anEvent(12, now.Add(-3*time.Second)), anEvent(13, now))
	until(t, "what came late", func() bool { return len(seen()) == 7 })
	asked := func() int {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.asked)
	}
	before := asked()
	until(t, "more looks", func() bool { return asked() > before+10 })
	subjects := seen()
	if len(subjects) != 7 || len(unique(subjects)) != 7 || !slices.Contains(subjects, "servicetoken:payments:ci-12") || slices.Contains(subjects, "servicetoken:payments:ci-1") {
		t.Errorf("seen: %q", subjects)
	}
}

func TestFollowingGoesOnAfterAFailureWithoutAGap(t *testing.T) {
	s := newAuditServer(t)
	seen, notes := following(t, s, 100)
	s.mu.Lock()
	s.fail = []int{503, 500, cut, 429, 503}
	s.mu.Unlock()
	s.add(anEvent(1, time.Now().UTC()))
	until(t, "the event", func() bool { return len(seen()) == 1 })
	if !strings.Contains(notes(), "trying again") {
		t.Errorf("told: %s", notes())
	}
}

// Reading all there is may take long. What comes late to a place that was read already is
// shown by the look that follows, as after a short reading.
func TestNothingIsLostWhileALongLogIsRead(t *testing.T) {
	s := newAuditServer(t)
	start := noonOf(15)
	for n := range 5 {
		s.add(anEvent(n, start.Add(time.Duration(n-1000)*time.Second)))
	}
	s.add(anEvent(5, start.Add(-time.Second)), anEvent(6, start))
	s.page = func(n int) time.Time {
		if n < 3 {
			return start
		}
		if n == 3 {
			s.add(anEvent(7, start.Add(-2*time.Second)))
		}
		return start.Add(time.Minute)
	}
	a := newApp(Config{Streams: genericiooptions.IOStreams{In: strings.NewReader("key"), Out: &bytes.Buffer{}, ErrOut: &bytes.Buffer{}}})
	r, err := a.reader(t.Context(), &serverFlags{url: s.url, timeout: time.Minute}, new(keySource))
	if err != nil {
		t.Fatal(err)
	}
	var seen []string
	tail := &tail{reader: r, filter: map[string][]string{}, late: 15 * time.Second, print: func(e logEvent) error {
		seen = append(seen, e.Subject)
		return nil
	}}
	if err := errors.Join(tail.begin(t.Context(), time.Time{}, 0), tail.look(t.Context())); err != nil {
		t.Fatal(err)
	}
	if len(seen) != 8 || len(unique(seen)) != 8 || s.pages < 4 {
		t.Errorf("after %d pages seen: %q", s.pages, seen)
	}
}

// An answer that breaks off is no answer: neither a yes nor a no.
func TestAnAnswerThatBreaksOffIsNone(t *testing.T) {
	s := newAuditServer(t)
	for _, args := range [][]string{{"verify"}, {"token"}, {"logs"}, {"logs", "verify"}, {"analytics"}} {
		s.fail = []int{cut}
		if code, out, errOut := s.mintmark(t, args...); code != exitUnanswered || out != "" || !strings.Contains(errOut, "reading the answer of "+s.url) {
			t.Errorf("%s: exit %d\n%s%s", strings.Join(args, " "), code, out, errOut)
		}
	}
}

func TestNothingInPlainOutputCommandsTheTerminal(t *testing.T) {
	var out bytes.Buffer
	a := newApp(Config{Streams: genericiooptions.IOStreams{Out: &out}})
	for _, format := range []string{"json", "yaml"} {
		out.Reset()
		if err := a.printPlain(analytics{Top: []analyticsTop{{Subject: "a\u009b31m\x1b[2J"}}}, format); err != nil {
			t.Fatal(err)
		}
		if text := out.String(); strings.ContainsFunc(text, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }) || !strings.Contains(text, "31m") {
			t.Errorf("%s: %q", format, text)
		}
	}
}

// sealed makes a chain of batches of two events.
func sealed(t *testing.T, name string, batches int) []*audit.Batch {
	t.Helper()
	sealer := audit.NewSealer(name)
	var out []*audit.Batch
	for n := range batches {
		of := 10*n + 1000*len(strings.TrimPrefix(name, "one/1")) // each chain has its own
		b, err := sealer.Seal([]audit.Event{anEvent(of, noonOf(n+1)), anEvent(of+1, noonOf(n+1).Add(time.Second))})
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b)
	}
	return out
}

func TestVerifyingFindsWhatWasDoneToTheLog(t *testing.T) {
	for name, c := range map[string]struct {
		tamper func(t *testing.T, s *auditServer)
		args   []string
		want   string // in standard output; empty: everything holds
	}{
		"a log as it was recorded holds": {},
		"an event that says something else": {
			tamper: func(_ *testing.T, s *auditServer) { s.batches["one/1"][2].Events[1].Outcome = audit.Denied },
			want:   "one/1 .*DOES NOT HOLD: batch 3 is not what was recorded: of its events between 2026-01-03T12:00:00Z .* one was changed",
		},
		"a field that only JSON could lose": {
			tamper: func(_ *testing.T, s *auditServer) { s.batches["one/1"][2].Events[1].Namespace = "orders" },
			want:   "batch 3 is not what was recorded",
		},
		"an event that was removed": {
			tamper: func(_ *testing.T, s *auditServer) {
				s.batches["one/1"][0].Events = s.batches["one/1"][0].Events[:1]
			},
			want: "batch 1 is not what was recorded",
		},
		"all events of a batch": {
			tamper: func(_ *testing.T, s *auditServer) { s.batches["one/1"][1].Events = nil },
			want:   "the events of batch 2 were removed",
		},
		"all events of a batch, said to be retention": {
			tamper: func(_ *testing.T, s *auditServer) {
				s.batches["one/1"][2].Events, s.batches["one/1"][2].Cleared = nil, true
			},
			want: "batch 3 is marked as cleared by retention, and those before it, up to 2026-01-02T12:00:01Z, are there",
		},
		"a batch that was removed": {
			tamper: func(_ *testing.T, s *auditServer) { s.batches["one/1"] = slices.Delete(s.batches["one/1"], 1, 2) },
			want:   "batch 3 of chain one/1 does not follow batch 1",
		},
		"the first batch removed": {
			tamper: func(_ *testing.T, s *auditServer) { s.batches["one/1"] = s.batches["one/1"][1:] },
			want:   "chain one/1 begins with batch 2",
		},
		"a batch recomputed after it was changed": {
			tamper: func(t *testing.T, s *auditServer) {
				b := sealed(t, "one/1", 2)[1]
				b.Events[0].Subject = "servicetoken:payments:somebody-else"
				again := audit.NewSealer("one/1")
				if _, err := again.Seal(sealed(t, "one/1", 1)[0].Events); err != nil {
					t.Fatal(err)
				}
				forged, err := again.Seal(b.Events)
				if err != nil {
					t.Fatal(err)
				}
				s.batches["one/1"][1] = forged
			},
			want: "batch 3 of chain one/1 does not follow batch 2",
		},
		"the end cut off, where it was written down": {
			tamper: func(_ *testing.T, s *auditServer) { s.batches["one/1"] = s.batches["one/1"][:2] },
			args:   []string{"--checkpoint", "CHECKPOINT"},
			want:   "it ended with batch 4 or later when the checkpoint was made, and does so no longer",
		},
		"a chain made anew, where it was written down": {
			tamper: func(t *testing.T, s *auditServer) {
				again := audit.NewSealer("one/1")
				s.batches["one/1"] = nil
				for n := range 4 {
					b, err := again.Seal([]audit.Event{anEvent(100+n, noonOf(n+1))})
					if err != nil {
						t.Fatal(err)
					}
					s.batches["one/1"] = append(s.batches["one/1"], b)
				}
			},
			args: []string{"--checkpoint", "CHECKPOINT"},
			want: "batch 4 is not the one that the checkpoint has",
		},
		"a chain removed, where it was written down": {
			tamper: func(_ *testing.T, s *auditServer) { delete(s.batches, "one/1") },
			args:   []string{"--checkpoint", "CHECKPOINT"},
			want:   "chain one/1 is in the checkpoint, and not in the audit log any more",
		},
		"a chain removed, where its events were exported": {
			tamper: func(_ *testing.T, s *auditServer) { delete(s.batches, "one/1") },
			args:   []string{"--export", "EXPORT"},
			want:   "exported in line 1, is not in the audit log",
		},
		"a chain made anew, where its events were exported": {
			tamper: func(t *testing.T, s *auditServer) {
				again := audit.NewSealer("one/1")
				e := anEvent(0, noonOf(1))
				e.Outcome = audit.Denied
				b, err := again.Seal([]audit.Event{e})
				if err != nil {
					t.Fatal(err)
				}
				s.batches["one/1"] = []*audit.Batch{b}
			},
			args: []string{"--export", "EXPORT"},
			want: "exported in line 1, says something else in the audit log",
		},
		"with an export and a checkpoint a log that grew holds": {args: []string{"--export", "EXPORT", "--checkpoint", "CHECKPOINT"}},
		"what retention removed holds": {tamper: func(_ *testing.T, s *auditServer) {
			s.batches["one/1"][1].Events, s.batches["one/1"][1].Cleared = nil, true
			s.batches["one/1"] = s.batches["one/1"][1:]
		}},
		"what retention removed, of a time that is to be there": {
			tamper: func(_ *testing.T, s *auditServer) {
				s.batches["one/1"][0].Events, s.batches["one/1"][0].Cleared = nil, true
			},
			args: []string{"--retained-from", "2025-12-01"},
			want: "events of 1 batches are missing, and none may be since 2025-12-01",
		},
		"a server that never comes to an end": {
			tamper: func(_ *testing.T, s *auditServer) { s.stuck = true },
			want:   "something else than the batches after 2",
		},
		"a hole that the server does not tell of": {
			tamper: func(_ *testing.T, s *auditServer) {
				s.batches["one/1"][3] = &audit.Batch{Chain: "two/1", Sequence: 9}
			},
			want: "something else than the batches after",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, dir := newAuditServer(t), t.TempDir()
			s.batches["one/1"], s.batches["two/1"] = sealed(t, "one/1", 4), sealed(t, "two/1", 1)
			writeEvidence(t, s, dir)
			grown, err := resume(t, s.batches["two/1"])
			if err != nil {
				t.Fatal(err)
			}
			s.batches["two/1"] = grown
			if c.tamper != nil {
				c.tamper(t, s)
			}
			args := []string{"logs", "verify"}
			for _, arg := range c.args {
				args = append(args, strings.NewReplacer("CHECKPOINT", filepath.Join(dir, "checkpoint"), "EXPORT", filepath.Join(dir, "export")).Replace(arg))
			}
			code, out, errOut := s.mintmark(t, args...)
			if c.want == "" {
				if code != 0 || strings.Contains(out, "DOES NOT") {
					t.Errorf("exit %d:\n%s%s", code, out, errOut)
				}
				return
			}
			if code != 1 || !matches(c.want, out) {
				t.Errorf("exit %d, want %q in:\n%s%s", code, c.want, out, errOut)
			}
		})
	}
}

// To read the whole log and then not be able to write what it came to would be a pity.
func TestACheckpointThatCannotBeWrittenIsToldBeforeTheLogIsRead(t *testing.T) {
	s := newAuditServer(t)
	s.batches["one/1"] = sealed(t, "one/1", 1)
	file := filepath.Join(t.TempDir(), "none", "checkpoint")
	code, _, errOut := s.mintmark(t, "logs", "verify", "--checkpoint", file)
	if code != 1 || !strings.Contains(errOut, "writing "+file) || len(s.asked) != 0 {
		t.Errorf("exit %d after %d requests: %s", code, len(s.asked), errOut)
	}
}

// writeEvidence keeps elsewhere how the log is.
func writeEvidence(t *testing.T, s *auditServer, dir string) {
	t.Helper()
	if code, out, errOut := s.mintmark(t, "logs", "verify", "--checkpoint", filepath.Join(dir, "checkpoint")); code != 0 {
		t.Fatalf("exit %d: %s%s", code, out, errOut)
	}
	var lines bytes.Buffer
	if err := audit.NewJSONLines(&lines).Export(t.Context(), s.batches["one/1"][0].Events); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "export"), lines.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}

// resume makes the chain once more, a batch longer.
func resume(t *testing.T, chain []*audit.Batch) ([]*audit.Batch, error) {
	t.Helper()
	sealer := audit.NewSealer(chain[0].Chain)
	var out []*audit.Batch
	for _, b := range chain {
		again, err := sealer.Seal(b.Events)
		if err != nil {
			return nil, err
		}
		out = append(out, again)
	}
	b, err := sealer.Seal([]audit.Event{anEvent(99, noonOf(20))})
	return append(out, b), err
}

func TestChartsAreAsLongAsTheirNumbers(t *testing.T) {
	for _, c := range []struct {
		n, most int64
		ascii   bool
		want    string
	}{
		{0, 10, false, ""},
		{10, 10, false, "██████████"},
		{5, 10, false, "█████"},
		{1, 80, false, "▏"},
		{1, 1 << 40, false, "▏"}, // what is not nothing is seen
		{9, 16, false, "█████▋"},
		{10, 10, true, "##########"},
		{1, 1 << 40, true, "#"},
		{3, 0, true, ""},
	} {
		if got := (canvas{ascii: c.ascii}).bar(c.n, c.most, 10); got != c.want {
			t.Errorf("%d of %d: got %q, want %q", c.n, c.most, got, c.want)
		}
	}
	for locale, want := range map[string]bool{"": false, "C": false, "de_DE.UTF-8": true, "en_US.utf8": true, "de_DE@euro": false} {
		if got := utf8Locale(func(name string) string { return map[string]string{"LANG": locale}[name] }); got != want {
			t.Errorf("%q: got %t", locale, got)
		}
	}
}

func TestAnalyticsAreDrawn(t *testing.T) {
	rate := 0.96875
	a := analytics{
		Since: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), Until: noonOf(4), Totals: &analyticsTotals{All: 1234, Active: 1000, Inactive: 200, Expired: 30, Revoked: 4},
		Daily:   []analyticsDay{{"2026-01-01", 1000, 0}, {"2026-01-03", 400, 100}},
		Latency: &analyticsLatency{64, 128, 4096},
		Top:     []analyticsTop{{"u1", "servicetoken:payments:ci\x1b[2J", "payments", 1400, 100}, {"", "", "", 0, 3}},
		Idle:    []analyticsIdle{{"u2", "apikey:payments:old", "payments", nil}},
	}
	a.Requests.Allowed, a.Requests.Denied, a.Requests.SuccessRate = 1400, 100, &rate
	var out bytes.Buffer
	if err := a.draw(&out, canvas{width: 60, ascii: true}, 30, false); err != nil {
		t.Fatal(err)
	}
	want := `2026-01-01 to 2026-01-04 (UTC)

Credentials:    1,234   (1,000 active, 200 inactive, 30 expired, 4 revoked)
Requests:       1,500   (1,400 allowed, 100 denied)
Success rate:   96.88 %
Latency:        64µs    (p50), 128µs (p90), 4.096ms (p99)

Requests a day
2026-01-01  ##############################  1,000
2026-01-02                                  0
2026-01-03  ###############                 500 (100 denied)
2026-01-04                                  0

Most used
  servicetoken:payments:ci[2J   1,500   93.33 % allowed   ####################
  (nobody known)                3       0.00 % allowed    #

Not used for 30 days
  apikey:payments:old   never
`
	if diff := cmp.Diff(strings.Split(want, "\n"), strings.Split(out.String(), "\n")); diff != "" {
		t.Errorf("it differs (-want +got):\n%s\n%s", diff, out.String())
	}
}

func matches(pattern, text string) bool { return regexp.MustCompile(pattern).MatchString(text) }
