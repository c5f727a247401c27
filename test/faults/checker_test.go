//go:build faults

package faults

import (
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// refusedWithin is the time within which a revocation holds on every server (I5).
const refusedWithin = time.Second

// fewAttempts is how many writes that change nothing may come after the final state:
// a controller whose watches were cut learns late that somebody, or it itself, has done
// already what it is about to do.
const fewAttempts = 3

// verdict is what the history of one trial shows.
type verdict struct {
	checks   map[string]int // by invariant, how often it was checked
	requests int            // that had to be let through
	failed   int            // of these
	slowest  time.Duration  // from a revocation to the last request let through
	problems []string
}

func (v *verdict) check(invariant string, holds bool, format string, args ...any) {
	v.checks[invariant]++
	if !holds {
		v.problems = append(v.problems, invariant+": "+fmt.Sprintf(format, args...))
	}
}

// history is what the checker reads.
type history struct {
	values  []value
	servers []*server
	// overlap is how long a superseded value is promised to be accepted.
	overlap time.Duration
	// settled is when the final state was found; final is the status then, nil where
	// the credential is gone.
	settled time.Time
	final   *v1alpha1.CredentialStatus
	// digests are those that each version has had, as far as the status told.
	digests map[int64]map[string]bool
	// late are the writes that came after the final state.
	late []write
}

// judge reads a history against the invariants.
func judge(h *history) *verdict {
	v := &verdict{checks: map[string]int{}}
	texts := map[int64]string{}
	for i := range h.values {
		val := &h.values[i]
		other, twice := texts[val.version]
		v.check("I3", !twice || other == val.text, "version %d of %s had two values", val.version, val.namespace)
		texts[val.version] = val.text
		for _, p := range val.probes {
			h.judgeProbe(v, val, p)
		}
	}
	for version, digests := range h.digests {
		v.check("I3", len(digests) == 1, "version %d had %d digests", version, len(digests))
	}
	changes := slices.DeleteFunc(slices.Clone(h.late), func(w write) bool { return w.code >= http.StatusBadRequest })
	v.check("I4", len(changes) == 0, "the controller went on writing: %v", describe(changes))
	v.check("I4", len(h.late) <= fewAttempts, "the controller went on trying to write: %v", describe(h.late))
	return v
}

func describe(writes []write) []string {
	out := make([]string, len(writes))
	for i := range writes {
		out[i] = fmt.Sprintf("%s (%d)", writes[i].String(), writes[i].code)
	}
	return out
}

func (h *history) judgeProbe(v *verdict, val *value, p probe) {
	what := fmt.Sprintf("%s answered %d (%v) to version %d, sent %s after it was first read", h.servers[p.server].name, p.status, p.err,
		val.version, p.sent.Sub(val.seen).Round(time.Millisecond))
	accepted := p.status == http.StatusOK
	if until := h.promised(val); p.ready && !p.sent.Before(val.seen) && (until.IsZero() || !p.done.After(until)) {
		v.requests++
		if !accepted {
			v.failed++
		}
		invariant := "I2"
		if p.first {
			invariant = "I1"
		}
		v.check(invariant, accepted, "%s; in the Secret until %s, promised until %s", what, clock(val.left), clock(until))
		return
	}
	if !val.ended.IsZero() {
		if accepted && p.sent.After(val.ended) {
			v.slowest = max(v.slowest, p.sent.Sub(val.ended))
		}
		if p.sent.After(val.ended.Add(refusedWithin)) {
			v.check("I5", !accepted, "%s, %s after it was revoked", what, p.sent.Sub(val.ended).Round(time.Millisecond))
		}
		return
	}
	if !h.settled.IsZero() && p.sent.After(h.settled.Add(refusedWithin)) && !h.live(val.version) {
		v.check("I3", !accepted, "%s, though no such version is live", what)
	}
}

func clock(t time.Time) string {
	if t.IsZero() {
		return "the end"
	}
	return t.Format("15:04:05.000")
}

// promised is until when a value must be accepted; zero is for as long as anybody
// looked.
func (h *history) promised(val *value) time.Time {
	if !val.ending.IsZero() {
		return val.ending
	}
	if val.left.IsZero() {
		return time.Time{}
	}
	if over := val.superseded.Add(h.overlap); over.After(val.left) {
		return over
	}
	return val.left
}

func (h *history) live(version int64) bool {
	if h.final == nil {
		return false
	}
	for _, v := range h.final.Versions {
		if v.Version == version {
			return v.State.Live()
		}
	}
	return false
}
