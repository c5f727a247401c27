package lifecycle

import (
	"testing"
	"time"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

func TestUsesAreNeverCountedTwice(t *testing.T) {
	written := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	before, after := written.Add(-time.Hour), written.Add(time.Hour)
	for name, test := range map[string]struct {
		kept  int64
		usage *Usage
		want  int64
	}{
		"no evidence: what status says":                       {40, nil, 40},
		"never used":                                          {0, &Usage{}, 0},
		"the same leader, the same servers":                   {40, &Usage{Uses: map[int64][]Count{1: {{before, 30}, {before, 25}}}}, 55},
		"a server has restarted, and its number is known":     {40, &Usage{Uses: map[int64][]Count{1: {{before, 30}, {before, 25}, {after, 5}}}}, 60},
		"another leader, which knows only what came after":    {40, &Usage{Uses: map[int64][]Count{1: {{after, 5}}}}, 45},
		"another leader, and a server that has not restarted": {40, &Usage{Uses: map[int64][]Count{1: {{before, 30}, {after, 5}}}}, 45},
		"one that began in the minute of the writing":         {40, &Usage{Uses: map[int64][]Count{1: {{written.Add(30 * time.Second), 5}}}}, 40},
		"another version":                                     {40, &Usage{Uses: map[int64][]Count{2: {{after, 5}}}}, 40},
	} {
		t.Run(name, func(t *testing.T) {
			p := &plan{Observed: &Observed{Usage: test.usage}, status: &v1alpha1.CredentialStatus{Usage: &v1alpha1.UsageStatus{Through: *stamp(written)}}}
			if got := p.uses(&v1alpha1.CredentialVersion{Version: 1, Uses: test.kept}); got != test.want {
				t.Errorf("%d uses, want %d", got, test.want)
			}
		})
	}
}

func TestHighUsageHasDefaults(t *testing.T) {
	if got := highUsage(nil); got.Threshold != 0 {
		t.Errorf("where none is asked for: %+v", got)
	}
	if got := highUsage(&v1alpha1.HighUsage{}); got.Threshold != 1000 || got.Every != 30*24*time.Hour {
		t.Errorf("%+v", got)
	}
}

func TestWarningsOfTheEnd(t *testing.T) {
	start := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	for name, test := range map[string]struct {
		spec   v1alpha1.CredentialSpec
		after  v1alpha1.Duration
		change func(*world)
		want   string
	}{
		"rotated in time":                      {v1alpha1.CredentialSpec{TTL: "180d"}, "89d", nil, ""},
		"rotated before its ttl":               {v1alpha1.CredentialSpec{TTL: "60d"}, "39d", nil, ""},
		"suspended, a month to go":             {v1alpha1.CredentialSpec{Rotation: &v1alpha1.Rotation{Suspend: true}}, "150d", nil, v1alpha1.ReasonWithin30Days},
		"suspended, more than a month to go":   {v1alpha1.CredentialSpec{Rotation: &v1alpha1.Rotation{Suspend: true}}, "149d", nil, ""},
		"a day to go":                          {v1alpha1.CredentialSpec{Rotation: &v1alpha1.Rotation{Every: "Never"}}, "179d", nil, v1alpha1.ReasonWithin1Day},
		"what lives for a day is not in alarm": {v1alpha1.CredentialSpec{TTL: "1d", Rotation: &v1alpha1.Rotation{Every: "Never"}}, "23h", nil, ""},
		"what lives for three days, on the last": {
			v1alpha1.CredentialSpec{TTL: "3d", Rotation: &v1alpha1.Rotation{Every: "Never"}}, "2d", nil, v1alpha1.ReasonWithin1Day,
		},
		"a fixed end that no rotation puts off": {
			v1alpha1.CredentialSpec{ExpiresAt: stamp(start.Add(60 * aDay)), Rotation: &v1alpha1.Rotation{Every: "10d"}}, "51d", nil, v1alpha1.ReasonWithin14Days,
		},
		"a fixed end, and the version is older": {
			v1alpha1.CredentialSpec{ExpiresAt: stamp(start.Add(60 * aDay)), Rotation: &v1alpha1.Rotation{Every: "Never"}}, "46d", nil, v1alpha1.ReasonWithin14Days,
		},
		"a window that opens too late": {
			v1alpha1.CredentialSpec{TTL: "60d", Rotation: &v1alpha1.Rotation{Windows: []v1alpha1.Window{{Schedule: "0 0 1 12 *", Duration: "1h"}}}}, "46d", nil, v1alpha1.ReasonWithin14Days,
		},
		"a server that lags":              {v1alpha1.CredentialSpec{TTL: "60d"}, "50d", func(w *world) { w.lagging, w.o.Propagation.Lagging = true, []string{"s"} }, v1alpha1.ReasonWithin14Days},
		"a Secret that cannot be written": {v1alpha1.CredentialSpec{TTL: "60d"}, "50d", func(w *world) { w.refused = "quota" }, v1alpha1.ReasonWithin14Days},
		"a class that is gone":            {v1alpha1.CredentialSpec{TTL: "60d"}, "50d", func(w *world) { w.o.Class, w.o.Rule = nil, nil }, v1alpha1.ReasonWithin14Days},
		"a Secret that is somebody else's": {
			v1alpha1.CredentialSpec{TTL: "60d"}, "50d", func(w *world) { w.o.Secret = Secret{Exists: true, HasCurrent: true} }, v1alpha1.ReasonWithin14Days,
		},
		"a clock that is wrong tells nothing": {
			v1alpha1.CredentialSpec{Rotation: &v1alpha1.Rotation{Suspend: true}}, "150d", func(w *world) { w.o.ClockSkewed = true }, "",
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, &test.spec)
			w.run()
			if test.change != nil {
				test.change(w)
			}
			w.command([]string{"wait", string(test.after)})
			got := ""
			for _, c := range w.o.Status.Conditions {
				if c.Type == v1alpha1.ConditionExpiring {
					got = c.Reason
				}
			}
			if got != test.want {
				t.Errorf("warned of %q, want %q\n%s", got, test.want, w.out.String())
			}
		})
	}
}
