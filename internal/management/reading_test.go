package management

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/go-cmp/cmp"

	"github.com/mintmark-dev/mintmark/internal/audit"
)

// full is an event that has everything.
func full() audit.Event {
	return audit.Event{
		ID: audit.FixedID("x"), At: time.Date(2026, 1, 15, 12, 0, 0, 123456000, time.UTC), Type: audit.TypeAuthentication, Outcome: audit.Denied, Reason: "Expired",
		Subject: "servicetoken:payments:ci", UID: "u", Kind: "ServiceToken", Namespace: "payments", Name: "ci", Class: "c", Version: 4, Slot: audit.SlotPrevious,
		Prefix: "sk_81ac", Actor: "a", Client: netip.MustParseAddr("192.0.2.7"), UserAgent: "curl", Method: "GET", Endpoint: "/x", RequestID: "r", Server: "s",
		Took: time.Millisecond, Detail: map[string]audit.Text{"a": "b"},
	}
}

func TestTheDocumentDescribesEventsAndBatchesAsTheyAreWritten(t *testing.T) {
	e := full()
	b, err := audit.NewSealer("one").Seal([]audit.Event{e})
	if err != nil {
		t.Fatal(err)
	}
	b.Cleared = true
	for name, c := range map[string]struct{ written, described any }{
		"an event": {Event{e}, new(eventDocument)}, "a batch": {Batch{b}, new(batchDocument)},
	} {
		text, err := json.Marshal(c.written)
		if err != nil {
			t.Fatal(err)
		}
		// Every field that is written is described, and every field that is described is written.
		strict := json.NewDecoder(bytes.NewReader(text))
		strict.DisallowUnknownFields()
		if err := strict.Decode(c.described); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		var fields map[string]json.RawMessage
		if err := json.Unmarshal(text, &fields); err != nil {
			t.Fatal(err)
		}
		of := reflect.TypeOf(c.described).Elem()
		for i := range of.NumField() {
			field, _, _ := strings.Cut(of.Field(i).Tag.Get("json"), ",")
			if _, ok := fields[field]; !ok {
				t.Errorf("%s: %s is described and not written", name, field)
			}
		}
		// And they are valid by the schema that the document has of them.
		registry := huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer)
		schema := registry.Schema(reflect.TypeOf(c.written), true, "x")
		var value any
		if err := json.Unmarshal(text, &value); err != nil {
			t.Fatal(err)
		}
		var result huma.ValidateResult
		huma.Validate(registry, schema, huma.NewPathBuffer(nil, 0), huma.ModeReadFromServer, value, &result)
		if len(result.Errors) > 0 {
			t.Errorf("%s: %v", name, result.Errors)
		}
	}
	var again audit.Batch
	text, _ := json.Marshal(Batch{b})
	if err := json.Unmarshal(text, &again); err != nil || again.Digest != b.Digest {
		t.Errorf("%v: %+v", err, again)
	}
}

func TestASearchIsNewAgainAfterAMinuteAndTheMemoryOfItIsBounded(t *testing.T) {
	now := time.Date(2026, 1, 15, 12, 0, 0, 0, time.UTC)
	r := newReads(func() time.Time { return now })
	var got []bool
	for _, step := range []time.Duration{0, 30 * time.Second, 29 * time.Second, time.Second, -time.Hour} {
		now = now.Add(step)
		got = append(got, r.again("a"))
	}
	if diff := cmp.Diff([]bool{false, true, true, false, false}, got); diff != "" {
		t.Error(diff)
	}
	for i := range 3 * maxSameReads {
		r.again(fmt.Sprint(i))
	}
	if len(r.known) > maxSameReads {
		t.Errorf("%d are remembered", len(r.known))
	}
}

func FuzzWhatIsAskedOfTheAuditLog(f *testing.F) {
	f.Add("token.issued,cicd", "allowed", "203.0.113.0/24")
	f.Add("", "good", "fe80::1%eth0")
	f.Add("a", "done,denied", "::ffff:10.0.0.1")
	f.Fuzz(func(t *testing.T, types, outcomes, client string) {
		in := EventsInput{Type: []string{types}, Outcome: []string{outcomes}, Client: client}
		filter, err := in.filter()
		if err != nil {
			if p, ok := err.(*Problem); !ok || p.Status != 422 {
				t.Errorf("%v", err)
			}
			return
		}
		if client != "" && (!filter.Client.IsValid() || filter.Client != filter.Client.Masked() || filter.Client.Addr().Zone() != "") {
			t.Errorf("%q is read as %v", client, filter.Client)
		}
		for _, o := range filter.Outcomes {
			switch o {
			case audit.Allowed, audit.Denied, audit.Failed, audit.Done:
			default:
				t.Errorf("%q is an outcome", o)
			}
		}
	})
}
