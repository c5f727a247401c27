package lifecycle

import (
	"slices"
	"testing"
	"time"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// Clocks go forward and back: by an hour or, on Lord Howe Island, by half of one;
// at two in the morning or at midnight.
func TestSchedulesWhenTheClocksChange(t *testing.T) {
	for name, test := range map[string]struct {
		schedule, zone, from string
		want                 []string
	}{
		"Berlin, forward over it":                    {"30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", []string{"2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"}},
		"Berlin, forward over it, once a week":       {"0 2 * * SUN", "Europe/Berlin", "2026-03-28T12:00:00Z", []string{"2026-03-29T01:00:00Z", "2026-04-05T00:00:00Z"}},
		"Berlin, back over it":                       {"30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", []string{"2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"}},
		"Berlin, asked between the two":              {"30 2 * * *", "Europe/Berlin", "2026-10-25T01:10:00Z", []string{"2026-10-26T01:30:00Z"}},
		"Berlin, the end of the hour that is double": {"0 3 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", []string{"2026-10-25T02:00:00Z", "2026-10-26T02:00:00Z"}},
		"New York, forward":                          {"30 2 * * *", "America/New_York", "2026-03-07T12:00:00Z", []string{"2026-03-08T07:00:00Z", "2026-03-09T06:30:00Z"}},
		"New York, back":                             {"30 1 * * *", "America/New_York", "2026-10-31T12:00:00Z", []string{"2026-11-01T05:30:00Z", "2026-11-02T06:30:00Z"}},
		"Lord Howe, forward by half an hour":         {"15 2 * * *", "Australia/Lord_Howe", "2026-10-03T00:00:00Z", []string{"2026-10-03T15:30:00Z", "2026-10-04T15:15:00Z"}},
		"Lord Howe, back by half an hour":            {"45 1 * * *", "Australia/Lord_Howe", "2026-04-04T00:00:00Z", []string{"2026-04-04T14:45:00Z", "2026-04-05T15:15:00Z"}},
		"Cairo, forward at midnight, once a week":    {"0 0 * * FRI", "Africa/Cairo", "2026-04-20T00:00:00Z", []string{"2026-04-23T22:00:00Z", "2026-04-30T21:00:00Z"}},
		"Kathmandu, which never changes":             {"0 0 * * *", "Asia/Kathmandu", "2026-03-28T12:00:00Z", []string{"2026-03-28T18:15:00Z", "2026-03-29T18:15:00Z"}},
	} {
		t.Run(name, func(t *testing.T) {
			calendar, errs := parseCalendar(&v1alpha1.Rotation{Schedule: test.schedule, TimeZone: test.zone})
			if len(errs) > 0 {
				t.Fatal(errs)
			}
			var got []string
			for at, _ := time.Parse(time.RFC3339, test.from); len(got) < len(test.want); {
				at = calendar.Scheduled(at)
				got = append(got, at.UTC().Format(time.RFC3339))
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

func TestWindowsWhenTheClocksChange(t *testing.T) {
	for name, test := range map[string]struct {
		schedule, duration, zone, now, opening string
	}{
		"one that opens in the hour that does not exist":  {"0 2 * * SUN", "1h", "Europe/Berlin", "2026-03-29T00:30:00Z", "2026-03-29T01:00:00Z"},
		"is open for its whole length":                    {"0 2 * * SUN", "1h", "Europe/Berlin", "2026-03-29T01:59:00Z", "2026-03-29T01:59:00Z"},
		"and not longer":                                  {"0 2 * * SUN", "1h", "Europe/Berlin", "2026-03-29T02:00:00Z", "2026-04-05T00:00:00Z"},
		"one that opens in the hour that comes twice":     {"0 2 * * SUN", "30m", "Europe/Berlin", "2026-10-24T12:00:00Z", "2026-10-25T00:00:00Z"},
		"does not open twice":                             {"0 2 * * SUN", "30m", "Europe/Berlin", "2026-10-25T00:45:00Z", "2026-11-01T01:00:00Z"},
		"one over a change is as long as it says":         {"0 1 * * SUN", "4h", "Europe/Berlin", "2026-10-25T02:59:00Z", "2026-10-25T02:59:00Z"},
		"Lord Howe, in the half hour that does not exist": {"0 2 * * *", "1h", "Australia/Lord_Howe", "2026-10-03T15:00:00Z", "2026-10-03T15:30:00Z"},
		"Lord Howe, in the half hour that comes twice":    {"45 1 * * *", "10m", "Australia/Lord_Howe", "2026-04-04T15:00:00Z", "2026-04-05T15:15:00Z"},
	} {
		t.Run(name, func(t *testing.T) {
			calendar, errs := parseCalendar(&v1alpha1.Rotation{Windows: []v1alpha1.Window{{
				Schedule: test.schedule, Duration: v1alpha1.Duration(test.duration), TimeZone: test.zone,
			}}})
			if len(errs) > 0 {
				t.Fatal(errs)
			}
			now, err := time.Parse(time.RFC3339, test.now)
			if err != nil {
				t.Fatal(err)
			}
			if got := calendar.Opening(now).UTC().Format(time.RFC3339); got != test.opening {
				t.Errorf("opens at %s, want %s", got, test.opening)
			}
		})
	}
}
