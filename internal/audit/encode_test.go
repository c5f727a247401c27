package audit

import (
	"bytes"
	"math"
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestEventsAreDigestedInTheCodingOfTheLibrary compares the bytes that digests are made of
// with those that the library writes of the wire form.
func TestEventsAreDigestedInTheCodingOfTheLibrary(t *testing.T) {
	check := func(t interface{ Fatalf(string, ...any) }, e *Event) {
		want, err := encoding.Marshal(e.wire())
		if err != nil {
			t.Fatalf("the library: %v", err)
		}
		before := []byte("what was there")
		got := e.appendCBOR(bytes.Clone(before))
		if !bytes.Equal(got, append(before, want...)) {
			t.Fatalf("of %+v\n got  %x\n want %x", e, got, want)
		}
	}
	check(t, &Event{At: time.Unix(0, 0)})
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.OneOf(rapid.Just(""), rapid.StringN(0, 40, 40), rapid.StringN(200, 300, 300), rapid.StringN(0, 70_000, 70_000))
		short := rapid.OneOf(rapid.Just(""), rapid.StringN(0, 30, 30))
		e := &Event{
			At: time.UnixMicro(rapid.Int64Range(-1<<50, 1<<55).Draw(t, "at")), Type: Type(short.Draw(t, "type")), Outcome: Outcome(short.Draw(t, "outcome")),
			Reason: short.Draw(t, "reason"), Subject: text.Draw(t, "subject"), UID: short.Draw(t, "uid"), Kind: short.Draw(t, "kind"),
			Namespace: short.Draw(t, "namespace"), Name: short.Draw(t, "name"), Class: short.Draw(t, "class"),
			Version: rapid.OneOf(rapid.SampledFrom([]int64{0, 1, 23, 24, 255, 256, 65535, 65536, math.MaxUint32, math.MaxUint32 + 1, math.MaxInt64, math.MinInt64, -1, -24, -25}),
				rapid.Int64()).Draw(t, "version"),
			Slot: Slot(short.Draw(t, "slot")), Prefix: short.Draw(t, "prefix"), Actor: Text(short.Draw(t, "actor")), UserAgent: Text(text.Draw(t, "agent")),
			Method: short.Draw(t, "method"), Endpoint: Text(short.Draw(t, "endpoint")), RequestID: Text(short.Draw(t, "request")), Server: short.Draw(t, "server"),
			Took: time.Duration(rapid.Int64Range(0, int64(48*time.Hour)).Draw(t, "took")),
		}
		copy(e.ID[:], rapid.SliceOfN(rapid.Byte(), len(e.ID), len(e.ID)).Draw(t, "id"))
		switch rapid.IntRange(0, 3).Draw(t, "client") {
		case 1:
			e.Client = netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "v4")))
		case 2:
			e.Client = netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "v6")))
		case 3:
			e.Client = netip.MustParseAddr("::ffff:192.0.2.1")
		}
		e.Detail = map[string]Text{}
		for key, value := range rapid.MapOfN(rapid.StringN(0, 300, 300), rapid.StringN(0, 300, 300), 0, 40).Draw(t, "detail") {
			e.Detail[key] = Text(value)
		}
		check(t, e)
	})
}

// BenchmarkSeal seals batches of the size that a busy server makes.
func BenchmarkSeal(b *testing.B) {
	const size = 1000
	event := Event{
		At: time.Unix(1_800_000_000, 123_456_000), Type: TypeAuthentication, Outcome: Allowed, Reason: "Accepted", Subject: "servicetoken:payments:ci-deploy",
		UID: "6f0c2f5e-52d0-4c3e-a0a5-0d7b8f5c2b11", Kind: "ServiceToken", Namespace: "payments", Name: "ci-deploy", Class: "production", Version: 4,
		Slot: SlotCurrent, Prefix: "sk_81ac", Client: netip.MustParseAddr("192.0.2.7"), UserAgent: "curl/8", Method: "GET", Endpoint: "/orders/7",
		RequestID: "0123456789abcdef", Server: "mintmark-server-0", Took: 38 * time.Microsecond,
	}
	events := make([]Event, size)
	for i := range events {
		events[i] = event
	}
	sealer := NewSealer("bench")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := sealer.Seal(events); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/size, "ns/event")
}
