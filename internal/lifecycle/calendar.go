package lifecycle

import (
	"strings"
	"time"

	"github.com/robfig/cron/v3"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// Calendar is the part of a rotation that follows the clock on the wall: fixed
// times to rotate at, and windows rotations may start in.
type Calendar struct {
	schedule cron.Schedule // nil: none
	windows  []window
}

type window struct {
	opens  cron.Schedule
	length time.Duration
}

// wallClock reads an expression by the clock on the wall of a zone. An hour that
// does not exist, when clocks go forward, counts as the moment after it, so that
// what happens once a week is not left out; one that comes twice, when they go
// back, counts once. (The parser's own zones leave out the one and repeat the
// other.)
type wallClock struct {
	expression cron.Schedule // over wall times, written as if they were UTC
	zone       *time.Location
}

// Next implements cron.Schedule.
func (w wallClock) Next(from time.Time) time.Time {
	wall := wallTime(from.In(w.zone))
	for {
		if wall = w.expression.Next(wall); wall.IsZero() {
			return wall
		}
		if at := w.instant(wall); at.After(from) {
			return at.In(from.Location())
		}
	}
}

// instant is when the clock on the wall first shows a time, or would if it were
// not put forward over it.
func (w wallClock) instant(wall time.Time) time.Time {
	var at [2]time.Time // by the offset before a change of clocks, and after it
	for i, nearby := range []time.Time{wall.Add(-24 * time.Hour), wall.Add(24 * time.Hour)} {
		_, offset := nearby.In(w.zone).Zone()
		at[i] = wall.Add(-time.Duration(offset) * time.Second).In(w.zone)
	}
	for _, t := range at { // where both hold, clocks go back, and the first is the earlier
		if wallTime(t).Equal(wall) {
			return t
		}
	}
	after, _ := at[0].ZoneBounds()
	return after
}

// wallTime is what the clock on the wall shows, as if it were UTC.
func wallTime(t time.Time) time.Time {
	return time.Date(t.Year(), t.Month(), t.Day(), t.Hour(), t.Minute(), t.Second(), 0, time.UTC)
}

// cronParser reads the five classic fields, and none of the names with an @: an
// "@every 1s" would rotate each second.
var cronParser = cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow)

// Scheduled is the first time after from at which the schedule asks for a
// rotation; zero where there is no schedule, or it never does.
func (c Calendar) Scheduled(from time.Time) time.Time {
	if c.schedule == nil {
		return time.Time{}
	}
	return c.schedule.Next(from)
}

// Opening is the first moment from now on at which a rotation may start: now
// itself where no windows are set or one is open.
func (c Calendar) Opening(now time.Time) time.Time {
	if len(c.windows) == 0 {
		return now
	}
	var first time.Time
	for _, w := range c.windows {
		// The window that is open now opened at most its own length ago.
		opened := w.opens.Next(now.Add(-w.length))
		if opened.IsZero() {
			continue
		}
		if !opened.After(now) {
			return now
		}
		if first.IsZero() || opened.Before(first) {
			first = opened
		}
	}
	return first
}

// Closing is a time up to which the windows that are open now are open, and at which to
// look again; zero where none is set, or none open.
func (c Calendar) Closing(now time.Time) time.Time {
	var closing time.Time
	for _, w := range c.windows {
		// It may have been opened again since. That is for the next look.
		if opened := w.opens.Next(now.Add(-w.length)); !opened.IsZero() && !opened.After(now) {
			closing = later(closing, opened.Add(w.length))
		}
	}
	return closing
}

func parseCalendar(r *v1alpha1.Rotation) (Calendar, field.ErrorList) {
	var (
		c    Calendar
		errs field.ErrorList
		at   = field.NewPath("spec", "rotation")
	)
	if r.Schedule != "" {
		schedule, err := parseCron(at, r.Schedule, r.TimeZone)
		if err != nil {
			errs = append(errs, err)
		}
		c.schedule = schedule
	} else if r.TimeZone != "" {
		errs = append(errs, field.Invalid(at.Child("timeZone"), r.TimeZone, "belongs to schedule, which is not set; a window has a timeZone of its own"))
	}
	windows, invalid := parseWindows(at.Child("windows"), r.Windows)
	c.windows = windows
	return c, append(errs, invalid...)
}

func parseWindows(path *field.Path, declared []v1alpha1.Window) ([]window, field.ErrorList) {
	var (
		windows []window
		errs    field.ErrorList
	)
	for i, w := range declared {
		at := path.Index(i)
		opens, invalid := parseCron(at, w.Schedule, w.TimeZone)
		if invalid != nil {
			errs = append(errs, invalid)
			continue
		}
		length, ok, err := w.Duration.Parse()
		if err != nil || !ok || length < time.Minute {
			errs = append(errs, field.Invalid(at.Child("duration"), w.Duration, "give how long the window stays open, at least 1m"))
			continue
		}
		windows = append(windows, window{opens: opens, length: length})
	}
	return windows, errs
}

// parseCron parses an expression and makes sure that it will ever hold: "0 0 30
// 2 *" does not. Both stand under the path: as schedule and as timeZone.
func parseCron(at *field.Path, expression, zone string) (cron.Schedule, *field.Error) {
	invalid := func(why string) *field.Error { return field.Invalid(at.Child("schedule"), expression, why) }
	if strings.Contains(expression, "TZ=") {
		return nil, invalid("write the time zone into timeZone, not into the expression")
	}
	location := time.UTC
	if zone != "" {
		l, err := time.LoadLocation(zone)
		if err != nil || zone == "Local" {
			return nil, field.Invalid(at.Child("timeZone"), zone, "not a known time zone: use an IANA name such as Europe/Berlin")
		}
		location = l
	}
	schedule, err := cronParser.Parse(expression)
	if err != nil {
		return nil, invalid("not a cron expression of five fields, such as \"0 3 * * SUN\": " + err.Error())
	}
	if spec, ok := schedule.(*cron.SpecSchedule); ok {
		spec.Location = time.UTC // see wallClock
	}
	schedule = wallClock{schedule, location}
	// robfig/cron looks five years ahead; any expression that ever holds does so
	// within eight, for leap days can be that far apart. 2096 is such a gap.
	if schedule.Next(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)).IsZero() {
		return nil, invalid("never holds: no such date exists")
	}
	return schedule, nil
}
