package lifecycle

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// How much a version is used: for rotation by high usage, and for people. What
// status says counts here, for a server that restarts begins to count anew; it
// counts nowhere else, and retires nothing.

const (
	// startedAfter is by how much later than the numbers in status a process must
	// have begun to count for its count not to be in them: clocks differ.
	startedAfter = time.Minute
	// usageTurns is the time at the beginning of a day over which the first uses of the
	// day are shown.
	usageTurns = time.Hour
	// usageSoon is when to look again for numbers that were asked for.
	usageSoon = time.Second

	fallbackThreshold = 1000
	fallbackHighUsage = 30 * 24 * time.Hour
)

// HighUsage is the pace of rotation of a version that is used a lot. A Threshold
// of zero is none.
type HighUsage struct {
	Threshold int64
	Every     time.Duration
}

func highUsage(h *v1alpha1.HighUsage) HighUsage {
	if h == nil {
		return HighUsage{}
	}
	settings := HighUsage{Threshold: h.Threshold, Every: h.Every.Or(fallbackHighUsage)}
	if settings.Threshold <= 0 {
		settings.Threshold = fallbackThreshold
	}
	return settings
}

// uses is how often a version has been used, at least. What status says may hold
// part of what processes that began before it was written have counted, and is
// not added to that: rather too few than the same twice.
func (p *plan) uses(v *v1alpha1.CredentialVersion) int64 {
	if p.Usage == nil {
		return v.Uses
	}
	var before, since int64
	for _, c := range p.Usage.Uses[v.Version] {
		if kept := p.status.Usage; kept == nil || c.Since.After(kept.Through.Add(startedAfter)) {
			since += c.Uses
		} else {
			before += c.Uses
		}
	}
	return max(v.Uses, before) + since
}

// highlyUsed tells whether a version counts as highly used.
func (p *plan) highlyUsed(v *v1alpha1.CredentialVersion) bool {
	threshold := p.settings.HighUsage.Threshold
	return threshold > 0 && p.uses(v) >= threshold
}

// reportUsage shows the day of the last use. To the day, so that use costs no
// more than one write a day; the numbers are written along with it, when a
// version becomes highly used, and when somebody asks.
func (p *plan) reportUsage() {
	asked := request(p.Annotations, v1alpha1.AnnotationUsageRequestedAt)
	waiting := asked != nil && (p.status.Usage == nil || requested(asked, p.status.Usage.RequestedAt))
	answered := waiting && p.answers(asked)
	if waiting && !answered {
		p.askUsage = true
		soon := usageSoon
		if p.now.Sub(asked.Time) > lookSoon {
			soon = lookSoon // some server does not answer: whoever asked has gone
		}
		p.wake(p.now.Add(soon))
	}
	if active := p.active(); active != nil {
		if left := p.settings.HighUsage.Threshold - p.uses(active); left > 0 {
			p.mark = UsageMark{Version: active.Version, Left: left}
		}
	}
	if p.Usage == nil {
		return
	}
	write := answered
	for i := range p.status.Versions {
		v := &p.status.Versions[i]
		write = write || (v.State.Live() && p.highlyUsed(v) && v.Uses < p.settings.HighUsage.Threshold)
	}
	var latest time.Time
	for _, at := range p.Usage.LastUsed {
		latest = later(latest, at.UTC())
	}
	if day := latest.Format(time.DateOnly); !latest.IsZero() && day > p.status.LastUsed && (write || p.turn(latest)) {
		p.status.LastUsed, write = day, true
	}
	if write {
		p.writeUsage(asked, answered)
	}
}

// turn tells whether the day of a use is to be shown by now. What is used day after
// day has its turn in the first hour: all of it would be written at midnight.
func (p *plan) turn(used time.Time) bool {
	day := used.Truncate(aDay)
	if p.status.LastUsed != day.Add(-aDay).Format(time.DateOnly) {
		return true
	}
	return p.due(day.Add(jitter(p.UID, 0, 20*usageTurns)))
}

// answers tells whether what the servers told is later than the request. One of a
// clock that is ahead is answered all the same.
func (p *plan) answers(asked *metav1.MicroTime) bool {
	return p.Usage != nil && (!p.Usage.Through.Before(asked.Time) || asked.After(p.now.Add(usageSoon)))
}

func (p *plan) writeUsage(asked *metav1.MicroTime, answered bool) {
	through := &v1alpha1.UsageStatus{Through: *stamp(p.Usage.Through)}
	if p.status.Usage != nil {
		through.RequestedAt = p.status.Usage.RequestedAt
	}
	if answered {
		through.RequestedAt = asked
	}
	for i := range p.status.Versions {
		v := &p.status.Versions[i]
		v.Uses = p.uses(v)
		if at, used := p.Usage.LastUsed[v.Version]; used && (v.LastUsed == nil || at.After(v.LastUsed.Time)) {
			v.LastUsed = stamp(at)
		}
	}
	p.status.Usage = through
}
