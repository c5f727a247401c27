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
	for i, w := range r.Windows {
		at := at.Child("windows").Index(i)
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
		c.windows = append(c.windows, window{opens: opens, length: length})
	}
	return c, errs
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
		spec.Location = location
	}
	// robfig/cron looks five years ahead; any expression that ever holds does so
	// within eight, for leap days can be that far apart. 2096 is such a gap.
	if schedule.Next(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)).IsZero() {
		return nil, invalid("never holds: no such date exists")
	}
	return schedule, nil
}
