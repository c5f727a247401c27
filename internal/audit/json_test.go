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
	comesBack(t, func(rt *rapid.T, b *Batch) *Batch {
		b.Cleared = rapid.Bool().Draw(rt, "cleared")
		text, err := json.Marshal(b)
		if err != nil {
			rt.Fatal(err)
		}
		back := new(Batch)
		if err := json.Unmarshal(text, back); err != nil {
			rt.Fatal(err)
		}
		return back
	})
}

func TestWhatIsNoEventOrBatchIsRefused(t *testing.T) {
	for text, want := range map[string]string{
		`{"id":"1","time":"2026-01-15T12:00:00Z"}`:                                                                     "not an event of the audit log",
		`{"id":"0190a5c4-7f00-7abc-8def-000000000000","time":"9999-12-31T23:59:59-00:01"}`:                             "its year is 10000",
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
	// Years that have other than four digits in UTC.
	f.Add([]byte(`{"id":"0190a5c4-7f00-7abc-8def-000000000000","time":"9999-12-31T23:59:59-00:01"}`))
	f.Add([]byte(`{"id":"0190a5c4-7f00-7abc-8def-000000000000","time":"0000-01-01T00:00:00+00:01"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var e, again Event
		if json.Unmarshal(data, &e) != nil {
			return
		}
		e.normalise()
		text, err := json.Marshal(e)
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		if err := json.Unmarshal(text, &again); err != nil {
			t.Fatalf("what was written cannot be read: %v\n%s", err, text)
		}
		if diff := cmp.Diff(e, again, cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Fatalf("it differs:\n%s", diff)
		}
	})
}
