//go:build faults

package faults

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// refusedWithin is the time within which a revocation holds on every server (I5).
const refusedWithin = time.Second

// recovery is how long after a fault has ended a server may take to catch up that says
// meanwhile that it is not fresh (I5), and after which what it knows is at most so old
// as the cluster is.
const recovery = 5 * time.Second

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

// ailment is what befalls a server.
type ailment int

const (
	// late: what happens in the cluster may not reach it.
	late ailment = iota
	// paused: it does nothing. Resumed, it must not pass for Ready before it has caught up.
	paused
	// cutOff: it reaches no API server. It verifies on, until it is staler than it may be.
	cutOff
	// cold: it was started while it reaches no API server. It accepts nothing.
	cold
)

// impairment is a time in which something befalls a server.
type impairment struct {
	server      int
	what        ailment
	from, until time.Time // until is zero as long as it goes on
}

// showing is what a server said of itself at one time.
type showing struct {
	at time.Time
	// asOf is the time as of which it claimed to know everything.
	asOf time.Time
}

// over tells whether the impairment was so long before t that nothing is left of it.
func (i *impairment) over(t time.Time) bool {
	return !i.until.IsZero() && t.After(i.until.Add(recovery))
}

// history is what the checker reads.
type history struct {
	values      []value
	servers     []*server
	impairments []impairment
	// shown is, by server, what it said of itself, in order.
	shown [][]showing
	// calm: nothing befell any server until the final state was reached.
	calm bool
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
		if val.forged {
			for _, p := range val.probes {
				v.check("I3", p.status != http.StatusOK, "%s accepts what somebody else wrote into the Secret", h.servers[p.server].name)
			}
			continue
		}
		other, twice := texts[val.version]
		v.check("I3", !twice || other == val.text, "version %d of %s had two values", val.version, val.namespace)
		texts[val.version] = val.text
		v.check("I3", len(val.misnamed) == 0, "the Secret in %s carried the value of version %d as that of %v", val.namespace, val.version, val.misnamed)
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
		if w := &writes[i]; w.said != "" && w.before != "" {
			out[i] += ": " + cmp.Diff(strings.Split(w.before, ","), strings.Split(w.said, ","))
		}
	}
	return out
}

func (h *history) judgeProbe(v *verdict, val *value, p probe) {
	what := fmt.Sprintf("%s answered %d (%v) to version %d, sent %s after it was first read", h.servers[p.server].name, p.status, p.err,
		val.version, p.sent.Sub(val.seen).Round(time.Millisecond))
	accepted := p.status == http.StatusOK
	if h.calm && !p.done.After(h.settled) {
		v.check("I14", p.ready, "%s, and was not Ready, though nothing had befallen it", what)
	}
	if h.judgeCutOff(v, val, p, what) {
		return
	}
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
		if h.mayBeLate(p) && !h.claimsToKnow(p, val.ended) {
			return
		}
		if accepted && p.sent.After(val.ended) {
			v.slowest = max(v.slowest, p.sent.Sub(val.ended))
		}
		if p.sent.After(val.ended.Add(refusedWithin)) {
			v.check("I5", !accepted, "%s, %s after it was revoked", what, p.sent.Sub(val.ended).Round(time.Millisecond))
		}
		return
	}
	if !h.settled.IsZero() && !h.mayBeLate(p) && p.sent.After(h.settled.Add(refusedWithin)) && !h.live(val.version) {
		v.check("I3", !accepted, "%s, though no such version is live", what)
	}
}

// judgeCutOff judges what a server says while it reaches no API server (I14): one that
// was warm goes on for as long as it may, and then denies everything, and one that was
// started since accepts nothing. It tells whether nothing more is to be asked.
func (h *history) judgeCutOff(v *verdict, val *value, p probe, what string) bool {
	accepted := p.status == http.StatusOK
	for _, i := range h.impairments {
		if i.server != p.server || p.sent.Before(i.from) || (!i.until.IsZero() && p.done.After(i.until)) {
			continue
		}
		age, most := p.sent.Sub(i.from), h.servers[p.server].staleness
		switch {
		case i.what == cold:
			v.check("I14", !accepted && !p.ready, "%s (Ready: %t), started while it reached no API server", what, p.ready)
			return true
		case i.what != cutOff:
		case age > most+time.Second:
			v.check("I14", !accepted && !p.ready, "%s (Ready: %t), %s after it was cut off, and it may be %s stale",
				what, p.ready, age.Round(time.Millisecond), most)
			return true
		case age > most-recovery:
			return true // it was a little behind before, and denies any time now
		case val.seen.Before(i.from) && val.ending.IsZero() && val.left.IsZero():
			v.check("I14", accepted, "%s, %s after it was cut off", what, age.Round(time.Millisecond))
		}
	}
	return false
}

// mayBeLate tells whether the server could not know yet what has ended, and said so by
// not being fresh or not being Ready.
func (h *history) mayBeLate(p probe) bool {
	for _, i := range h.impairments {
		if i.server == p.server && !p.sent.Before(i.from) && !i.over(p.sent) && (i.what != paused || !p.ready) {
			return true
		}
	}
	return false
}

// claimsToKnow tells whether the server has said of itself, for as long as a revocation
// may take, that it knows what happened at a time.
func (h *history) claimsToKnow(p probe, happened time.Time) bool {
	shown := h.shown[p.server]
	n, _ := slices.BinarySearchFunc(shown, p.sent, func(s showing, at time.Time) int { return s.at.Compare(at) })
	for _, s := range slices.Backward(shown[:n]) {
		switch {
		case !s.asOf.After(happened):
			return false
		case p.sent.Sub(s.at) > refusedWithin:
			return true
		}
	}
	return false
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
