package audit

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

func TestABatchComesBackFromJSONAsItWasSealed(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		c := NewSealer("server-0/0190a5c4")
		var before *Batch
		for range rapid.IntRange(1, 3).Draw(rt, "batches") {
			var events []Event
			for range rapid.IntRange(0, 4).Draw(rt, "events") {
				e := anEvent(rt)
				e.Namespace = rapid.SampledFrom([]string{"", "payments"}).Draw(rt, "namespace")
				e.Name = rapid.SampledFrom([]string{"", "<ci> & \u2028"}).Draw(rt, "name")
				events = append(events, e)
			}
			b, err := c.Seal(events)
			if err != nil {
				rt.Fatal(err)
			}
			b.Cleared = rapid.Bool().Draw(rt, "cleared")
			text, err := json.Marshal(b)
			if err != nil {
				rt.Fatal(err)
			}
			back := new(Batch)
			if err := json.Unmarshal(text, back); err != nil {
				rt.Fatal(err)
			}
			if diff := cmp.Diff(b, back, cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
				rt.Fatalf("it differs (-sealed +read):\n%s", diff)
			}
			if err := back.Verify(before); err != nil {
				rt.Fatal(err)
			}
			before = back
		}
	})
}

func TestWhatIsNoEventOrBatchIsRefused(t *testing.T) {
	for text, want := range map[string]string{
		`{"id":"1","time":"2026-01-15T12:00:00Z"}`:                                                                     "not an event of the audit log",
		`{"id":"0190a5c4-7f00-7abc-8def-000000000000","time":"noon"}`:                                                  "the time of event 0190a5c4-7f00-7abc-8def-000000000000",
		`{"id":"0190a5c4-7f00-7abc-8def-000000000000","time":"2026-01-15T12:00:00Z","client":"here"}`:                  "is not an address",
		`{"id":"0190a5c4-7f00-7abc-8def-000000000000","time":"2026-01-15T12:00:00Z","took_us":9223372036854775807}`:    "no length of time",
		`{"id":"0190a5c4-7f00-7abc-8def-000000000000","time":"2026-01-15T12:00:00Z","credential":{"version":"first"}}`: "not an event of the audit log",
	} {
		var e Event
		if err := json.Unmarshal([]byte(text), &e); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
	}
	for _, text := range []string{`[]`, `{"digest":"00"}`, `{"digest":"` + strings.Repeat("0g", 32) + `"}`, `{"sequence":-1}`} {
		var b Batch
		if err := json.Unmarshal([]byte(text), &b); err == nil || !strings.Contains(err.Error(), "not a batch") {
			t.Errorf("%s: got %v", text, err)
		}
	}
}

func FuzzEventJSON(f *testing.F) {
	f.Add([]byte(`{"id":"0190a5c4-7f00-7abc-8def-000000000000","time":"2026-01-15T12:00:00.123456Z","type":"authentication","outcome":"allowed","client":"192.0.2.7","took_us":38}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var e, again Event
		if json.Unmarshal(data, &e) != nil {
			return
		}
		e.normalise()
		text, err := json.Marshal(e)
		if err != nil {
			t.Skip() // a year of five digits
		}
		if err := json.Unmarshal(text, &again); err != nil {
			t.Fatalf("what was written cannot be read: %v\n%s", err, text)
		}
		if diff := cmp.Diff(e, again, cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Fatalf("it differs:\n%s", diff)
		}
	})
}
