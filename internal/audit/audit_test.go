package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

var noon = time.Date(2026, 1, 15, 12, 0, 0, 123456000, time.UTC)

const (
	serviceToken = "sk_live_3f9a1c5e7b2d4f6081a3c5e7092b4d6f8e1a3c5e7f9b1d3f507294b6d8fa0c2e"
	apiKey       = "AbCd1234.Zm9vYmFyYmF6cXV4MTIzNDU2Nzg5MGFiY2RlZmdoaWprbG1ub3A"
	jwt          = "eyJhbGciOiJFUzI1NiIsInR5cCI6ImF0K2p3dCJ9.eyJpc3MiOiJodHRwczovL2V4YW1wbGUuY29tIiwic3ViIjoiYSJ9.MEUCIQDx7h3v9hS1kq2m3n4b5v6c7x8z9a0"
)

func TestWhatComesFromOutsideIsMadeSafe(t *testing.T) {
	for name, c := range map[string]struct {
		in    string
		limit int
		want  Text
	}{
		"plain text stays":                      {"curl/8.5.0", 100, "curl/8.5.0"},
		"a browser stays":                       {"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko)", 200, "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko)"},
		"a path stays":                          {"/api/v1/customers/0190a5c4-7f00-7000-8000-000000000000/orders", 200, "/api/v1/customers/0190a5c4-7f00-7000-8000-000000000000/orders"},
		"long words stay":                       {"/internationalization-configuration", 200, "/internationalization-configuration"},
		"umlauts stay":                          {"Müller & Söhne", 100, "Müller & Söhne"},
		"line breaks are escaped":               {"a\r\nb", 100, `a\r\nb`},
		"escape sequences are escaped":          {"\x1b[31mred\x1b[0m", 100, `\u001b[31mred\u001b[0m`},
		"text that runs backwards is escaped":   {"a\u202eb", 100, `a\u202eb`},
		"what is not UTF-8 is replaced":         {"a\xffb", 100, "a\ufffdb"},
		"NUL is escaped":                        {"a\x00b", 100, `a\u0000b`},
		"long text is cut":                      {strings.Repeat("ab ", 100), 12, "ab ab ab …"},
		"it is not cut in the middle of a rune": {"aaaaaaaäää", 12, "aaaaaaaä…"},
		"a service token is masked":             {"x " + serviceToken, 200, "x sk_live_[masked]"},
		"an API key keeps its public prefix":    {apiKey, 200, "AbCd1234.[masked]"},
		"half a service token is masked":        {serviceToken[:50], 200, "sk_live_[masked]"},
		"one without a prefix is masked":        {serviceToken[8:], 200, "[masked]"},
		"one in a query is masked":              {"/x?key=" + serviceToken + "&y=1", 200, "/x?key=sk_live_[masked]&y=1"},
		"one that would be cut is masked first": {serviceToken, 30, "sk_live_[masked]"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Clean(c.in, c.limit); got != c.want {
				t.Errorf("it is %q, want %q", got, c.want)
			}
		})
	}
	if got := string(Clean("token="+jwt, 500)); strings.Contains(got, "MEUCIQ") || strings.Contains(got, "eyJpc3") {
		t.Errorf("of a JWT there remains %q", got)
	}
}

func FuzzClean(f *testing.F) {
	f.Add("a\nb", serviceToken, 20)
	f.Add("\xff\u202e", apiKey, 3)
	f.Fuzz(func(t *testing.T, before, after string, limit int) {
		limit = 16 + limit&0x3ff
		got := string(Clean(before+" "+serviceToken+" "+after, limit))
		if strings.Contains(got, serviceToken[8:40]) {
			t.Fatalf("a secret got through: %q", got)
		}
		if len(got) > limit || !utf8.ValidString(got) || strings.ContainsAny(got, "\r\n\x00\x1b\u2028\u202e") {
			t.Fatalf("not safe within %d bytes: %q", limit, got)
		}
	})
}

func anEvent(rt *rapid.T) Event {
	text := rapid.StringN(0, 40, 60)
	e := Event{
		At: noon.Add(time.Duration(rapid.Int64Range(0, 1e15).Draw(rt, "at"))), Type: TypeAuthentication, Outcome: rapid.SampledFrom([]Outcome{Allowed, Denied}).Draw(rt, "outcome"),
		Reason: text.Draw(rt, "reason"), Subject: text.Draw(rt, "subject"), UID: text.Draw(rt, "uid"), Version: rapid.Int64Range(0, 9).Draw(rt, "version"),
		Actor: Clean(text.Draw(rt, "actor"), maxActor), UserAgent: Clean(text.Draw(rt, "agent"), maxUserAgent), Took: time.Duration(rapid.Int64Range(0, 1e12).Draw(rt, "took")),
		Client: rapid.SampledFrom([]netip.Addr{{}, netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("::ffff:192.0.2.1"), netip.MustParseAddr("fe80::1%eth0")}).Draw(rt, "client"),
	}
	e.Namespace = rapid.SampledFrom([]string{"", "payments"}).Draw(rt, "namespace")
	e.Name = rapid.SampledFrom([]string{"", "<ci> & \u2028"}).Draw(rt, "of")
	for range rapid.IntRange(0, 3).Draw(rt, "details") {
		if e.Detail == nil {
			e.Detail = map[string]Text{}
		}
		e.Detail[text.Draw(rt, "name")] = Clean(text.Draw(rt, "detail"), 100)
	}
	e.ID = FixedID(e.Reason, e.Subject)
	e.normalise()
	return e
}

func TestABatchComesBackAsItWasSpooled(t *testing.T) {
	comesBack(t, func(rt *rapid.T, b *Batch) *Batch {
		text, err := b.marshal()
		if err != nil {
			rt.Fatal(err)
		}
		back, err := unmarshalBatch(text)
		if err != nil {
			rt.Fatal(err)
		}
		return back
	})
}

// comesBack has batches of any events written and read, and fails the test where one differs
// then or does not follow the one before.
func comesBack(t *testing.T, through func(rt *rapid.T, b *Batch) *Batch) {
	t.Helper()
	rapid.Check(t, func(rt *rapid.T) {
		c := NewSealer("server-0/0190a5c4")
		var before *Batch
		for range rapid.IntRange(1, 3).Draw(rt, "batches") {
			var events []Event
			for range rapid.IntRange(0, 4).Draw(rt, "events") {
				events = append(events, anEvent(rt))
			}
			b, err := c.Seal(events)
			if err != nil {
				rt.Fatal(err)
			}
			back := through(rt, b)
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

func TestNormalisingTwiceChangesNothing(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		once := anEvent(rt)
		twice := once
		twice.normalise()
		if diff := cmp.Diff(once, twice, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			rt.Fatalf("it differs:\n%s", diff)
		}
	})
}

func TestWhatIsChangedLaterShows(t *testing.T) {
	c := NewSealer("one/1")
	var batches []*Batch
	for i := range 3 {
		events := []Event{{ID: FixedID("a", string(rune('0'+i))), At: noon, Subject: "a"}, {ID: FixedID("b", string(rune('0'+i))), At: noon, Subject: "b"}}
		b, err := c.Seal(events)
		if err != nil {
			t.Fatal(err)
		}
		batches = append(batches, b)
	}
	verify := func(batches []*Batch) error {
		var before *Batch
		for _, b := range batches {
			if err := b.Verify(before); err != nil {
				return err
			}
			before = b
		}
		return nil
	}
	if err := verify(batches); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		spoil func(b []*Batch) []*Batch
		want  error
	}{
		"an event altered":          {func(b []*Batch) []*Batch { b[1].Events[0].Subject = "c"; return b }, ErrAltered},
		"an event taken out":        {func(b []*Batch) []*Batch { b[1].Events = b[1].Events[:1]; return b }, ErrAltered},
		"two events swapped":        {func(b []*Batch) []*Batch { e := b[1].Events; e[0], e[1] = e[1], e[0]; return b }, ErrAltered},
		"an event of the last":      {func(b []*Batch) []*Batch { b[2].Events[0].At = noon.Add(time.Microsecond); return b }, ErrAltered},
		"a batch taken out":         {func(b []*Batch) []*Batch { return []*Batch{b[0], b[2]} }, ErrBroken},
		"the first batch taken out": {func(b []*Batch) []*Batch { return b[1:] }, ErrBroken},
		"a batch sealed anew":       {func(b []*Batch) []*Batch { b[1].Events[0].Subject = "c"; b[1].Digest = b[1].digest(); return b }, ErrBroken},
		"a batch of another chain":  {func(b []*Batch) []*Batch { b[1].Chain = "two/1"; b[1].Digest = b[1].digest(); return b }, ErrBroken},
	} {
		t.Run(name, func(t *testing.T) {
			copies := make([]*Batch, len(batches))
			for i, b := range batches {
				made := *b
				made.Events = append([]Event(nil), b.Events...)
				copies[i] = &made
			}
			if err := verify(c.spoil(copies)); !errors.Is(err, c.want) {
				t.Errorf("the error is %v, want %v", err, c.want)
			}
		})
	}
}

func TestIDsAreUUIDsThatSortAsTimeDoes(t *testing.T) {
	random := bytes.NewReader(bytes.Repeat([]byte{0xff}, 100))
	first, err := NewID(noon, random)
	if err != nil {
		t.Fatal(err)
	}
	second, err := NewID(noon.Add(time.Millisecond), random)
	if err != nil {
		t.Fatal(err)
	}
	if first.String() >= second.String() {
		t.Errorf("%s does not come before %s", first, second)
	}
	if got := first.String(); got != "019bc186-de7b-7fff-bfff-ffffffffffff" {
		t.Errorf("it is %s", got)
	}
	if _, err := NewID(noon, random); err != nil {
		t.Error(err)
	}
	if _, err := NewID(noon, bytes.NewReader(nil)); err == nil {
		t.Error("no error without randomness")
	}
	if FixedID("a", "bc") == FixedID("ab", "c") {
		t.Error("different names have the same id")
	}
	if FixedID("a").String()[14] != '8' {
		t.Errorf("%s is not of version 8", FixedID("a"))
	}
	for _, text := range []string{"", "x", strings.ToUpper(first.String()) + "0", first.String()[:35] + "g", strings.ReplaceAll(first.String(), "-", "+")} {
		if _, err := ParseID(text); !errors.Is(err, ErrID) {
			t.Errorf("%q: the error is %v", text, err)
		}
	}
	if back, err := ParseID(first.String()); err != nil || back != first {
		t.Errorf("it comes back as %s, %v", back, err)
	}
}

func TestALineOfJSONIsOneEvent(t *testing.T) {
	var out bytes.Buffer
	e := Event{
		ID: FixedID("a"), At: noon, Type: TypeAuthentication, Outcome: Denied, Reason: "Expired", Subject: "servicetoken:payments:ci", UID: "u", Kind: "ServiceToken",
		Namespace: "payments", Name: "ci", Version: 3, Slot: SlotPrevious, Client: netip.MustParseAddr("192.0.2.1"), UserAgent: Clean("x\n{}", 100), Took: 42 * time.Microsecond,
	}
	if err := NewJSONLines(&out).Export(t.Context(), []Event{e, {ID: FixedID("b"), At: noon}}); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 2 {
		t.Fatalf("%d lines:\n%s", len(lines), out.String())
	}
	var got map[string]any
	if err := json.Unmarshal([]byte(lines[0]), &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"id": FixedID("a").String(), "time": "2026-01-15T12:00:00.123456Z", "type": "authentication", "outcome": "denied", "reason": "Expired",
		"subject": "servicetoken:payments:ci", "client": "192.0.2.1", "user_agent": `x\n{}`, "took_us": 42.0,
		"credential": map[string]any{"id": "u", "kind": "ServiceToken", "namespace": "payments", "name": "ci", "version": 3.0, "slot": "previous"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("it differs (-want +got):\n%s", diff)
	}
}

func TestDetailsThatNoStoreGivesBackAreCutAndEscaped(t *testing.T) {
	many := map[string]Text{}
	for i := range maxDetail + 1 {
		many[fmt.Sprint("name", i)] = "x"
	}
	for what, detail := range map[string]map[string]Text{
		"a long text": {"note": Text(strings.Repeat("x", maxDetailText+1))}, "a long name": {strings.Repeat("n", maxDetailKey+1): "x"},
		"a line end in a text": {"note": "a\nb"}, "a command in a name": {"a\x1bb": "x"}, "too many": many,
	} {
		b, err := NewSealer("one/1").Seal([]Event{{At: noon, Type: TypeAuthentication, Detail: detail}})
		if err != nil {
			t.Fatal(err)
		}
		kept := b.Events[0].Detail
		if len(kept) == 0 || len(kept) > maxDetail {
			t.Errorf("%s: %d details", what, len(kept))
		}
		for name, text := range kept {
			if len(name) > maxDetailKey || len(text) > maxDetailText || strings.ContainsAny(name+string(text), "\n\x1b") {
				t.Errorf("%s: %q: %q", what, name, text)
			}
		}
	}
}
