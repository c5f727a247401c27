package credential

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

const (
	revokedLeaked = "YMsCZPBnuCCGvzc2"
	revokedAgain  = "ygnrMAmRn2JtAXK1"
)

func microTime(s string) *metav1.MicroTime {
	at, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		panic(err)
	}
	m := metav1.NewMicroTime(at)
	return &m
}

func newPepper(t testing.TB, id string, fill byte) *Pepper {
	t.Helper()
	p, err := NewPepper(id, bytes.Repeat([]byte{fill}, PepperLen))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func sampleRecord() *Record {
	return &Record{
		UID: "u", Kind: v1alpha1.KindServiceToken, Namespace: "n", Name: "c", Epoch: 3, Class: "default", Permissions: []string{"api:read"},
		Versions: []SealedVersion{{Number: 1, Digest: bytes.Repeat([]byte{7}, 32), Pepper: "a", State: v1alpha1.VersionActive, Created: 5}},
	}
}

func TestNewPepper(t *testing.T) {
	key := make([]byte, PepperLen)
	for _, c := range []struct {
		name string
		id   string
		key  []byte
		ok   bool
	}{
		{"a pepper", "p-2026", key, true},
		{"the longest id", strings.Repeat("x", 64), key, true},
		{"an id too long for status", strings.Repeat("x", 65), key, false},
		{"no id", "", key, false},
		{"a dot in the id would split the seal elsewhere", "a.b", key, false},
		{"a space in the id", "a b", key, false},
		{"a line end in the id", "a\n", key, false},
		{"a short key", "p", key[:31], false},
		{"a long key", "p", append(key, 0), false},
		{"no key", "p", nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := NewPepper(c.id, c.key)
			if (err == nil) != c.ok {
				t.Fatalf("error: %v", err)
			}
			if c.ok && p.ID() != c.id {
				t.Errorf("the id is %q", p.ID())
			}
		})
	}
}

func TestPepperKeepsItsKey(t *testing.T) {
	key := bytes.Repeat([]byte{1}, PepperLen)
	p, err := NewPepper("p", key)
	if err != nil {
		t.Fatal(err)
	}
	before := p.Digest(Inner{})
	clear(key)
	if p.Digest(Inner{}) != before {
		t.Error("wiping the caller's key changed the pepper")
	}
	if p.Digest(Inner{}) == newPepper(t, "q", 2).Digest(Inner{}) {
		t.Error("two peppers make the same digest")
	}
}

func TestPeppers(t *testing.T) {
	a, b := newPepper(t, "a", 1), newPepper(t, "b", 2)
	if p := (Peppers{}).Current(); p != nil {
		t.Error("there is a current pepper among none")
	}
	all := Peppers{a, b}
	if all.Current() != a || all.ByID("a") != a || all.ByID("b") != b || all.ByID("c") != nil || all.ByID("") != nil {
		t.Error("peppers are not found by their ids")
	}
}

func TestParseDigest(t *testing.T) {
	good := strings.Repeat("0f", 32)
	for _, c := range []struct {
		name, in string
		ok       bool
	}{
		{"a digest", good, true},
		{"one digit less", good[1:], false},
		{"one digit more", good + "0", false},
		{"no digits", strings.Repeat("0g", 32), false},
		{"nothing", "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, err := ParseDigest(c.in)
			if (err == nil) != c.ok {
				t.Fatalf("error: %v", err)
			}
			if c.ok && d.String() != c.in {
				t.Errorf("read as %s", d)
			}
		})
	}
}

func TestOpenRecordRefuses(t *testing.T) {
	pepper, other := newPepper(t, "a", 1), newPepper(t, "a", 2)
	record, seal, err := sampleRecord().Seal(pepper)
	if err != nil {
		t.Fatal(err)
	}
	_, otherSeal, err := sampleRecord().Seal(other)
	if err != nil {
		t.Fatal(err)
	}
	sealed := func(raw []byte) ([]byte, string) { return raw, "a." + pepper.tag(raw) }
	versionRecord, versionSeal := sealed(append([]byte{RecordVersion + 1}, record[1:]...))
	zeroRecord, zeroSeal := sealed(append([]byte{0}, record[1:]...))
	emptyRecord, emptySeal := sealed(nil)
	brokenRecord, brokenSeal := sealed([]byte{RecordVersion, 0xff})
	trailingRecord, trailingSeal := sealed(append(bytes.Clone(record), 0))
	twiceRecord, twiceSeal := sealed([]byte{RecordVersion, 0xa2, 0x05, 0x01, 0x05, 0x02})
	for _, c := range []struct {
		name   string
		record []byte
		seal   string
		want   error
	}{
		{"no seal", record, "", ErrSeal},
		{"a seal without a pepper's id", record, strings.TrimPrefix(seal, "a."), ErrSeal},
		{"the seal of a pepper unknown here", record, "b" + seal[1:], ErrUnknownPepper},
		{"a seal made with another key under the same id", record, otherSeal, ErrSeal},
		{"a byte changed", append(bytes.Clone(record[:9]), append([]byte{record[9] ^ 1}, record[10:]...)...), seal, ErrSeal},
		{"a byte less", record[:len(record)-1], seal, ErrSeal},
		{"a byte more", append(bytes.Clone(record), 0), seal, ErrSeal},
		{"nothing under another record's seal", nil, seal, ErrSeal},
		{"a tag cut short", record, seal[:len(seal)-1], ErrSeal},
		{"no tag", record, "a.", ErrSeal},
		{"a tag that is no base64", record, "a." + strings.Repeat("!", 43), ErrSeal},
		{"another text of the same tag", record, seal + "\n", ErrSeal},
		{"a padded tag", record, seal + "=", ErrSeal},
		{"the encoding of a later version", versionRecord, versionSeal, ErrRecord},
		{"no version", zeroRecord, zeroSeal, ErrRecord},
		{"nothing, sealed", emptyRecord, emptySeal, ErrRecord},
		{"what is no CBOR, sealed", brokenRecord, brokenSeal, ErrRecord},
		{"something behind the record, sealed", trailingRecord, trailingSeal, ErrRecord},
		{"a field twice, sealed", twiceRecord, twiceSeal, ErrRecord},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := OpenRecord(Peppers{pepper}, c.record, c.seal)
			if !errors.Is(err, c.want) || r != nil {
				t.Errorf("got %v, %v; want %v", r, err, c.want)
			}
		})
	}
}

// The unused bits of the last base64 digit make several texts of one tag: only
// the one that was written is taken.
func TestSealHasOneText(t *testing.T) {
	pepper := newPepper(t, "a", 1)
	record, seal, err := sampleRecord().Seal(pepper)
	if err != nil {
		t.Fatal(err)
	}
	const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	taken := 0
	for _, d := range digits {
		if _, err := OpenRecord(Peppers{pepper}, record, seal[:len(seal)-1]+string(d)); err == nil {
			taken++
		}
	}
	if taken != 1 {
		t.Errorf("%d texts of the seal are taken, want 1", taken)
	}
}

func TestSealRefusesWhatCannotBeOpened(t *testing.T) {
	pepper := newPepper(t, "a", 1)
	many := map[string]string{}
	for i := range maxRecordItems + 1 {
		many[fmt.Sprintf("label-%d", i)] = ""
	}
	for name, spoil := range map[string]func(*Record){
		"more labels than a reader takes":      func(r *Record) { r.Labels = many },
		"more permissions than a reader takes": func(r *Record) { r.Permissions = slices.Collect(maps.Keys(many)) },
		"text that is not UTF-8":               func(r *Record) { r.Class = "\xff" },
	} {
		t.Run(name, func(t *testing.T) {
			r := sampleRecord()
			spoil(r)
			record, seal, err := r.Seal(pepper)
			if err == nil || record != nil || seal != "" {
				t.Fatalf("sealed: %d bytes, %q, %v", len(record), seal, err)
			}
			if !strings.Contains(err.Error(), "ServiceToken n/c") {
				t.Errorf("the error does not name the credential: %v", err)
			}
		})
	}
}

func TestMustPanicsOnWrongConstants(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	must(0, errors.New("wrong constant"))
}

func drawRecord(t *rapid.T) *Record {
	text := rapid.StringN(1, 20, 40)
	texts := rapid.SliceOfN(text, 1, 5)
	r := &Record{
		UID: text.Draw(t, "uid"), Kind: rapid.SampledFrom([]v1alpha1.Kind{v1alpha1.KindAPIKey, v1alpha1.KindServiceToken}).Draw(t, "kind"),
		Namespace: text.Draw(t, "namespace"), Name: text.Draw(t, "name"), Epoch: rapid.Int64().Draw(t, "epoch"), Class: text.Draw(t, "class"),
		Admin: rapid.Bool().Draw(t, "admin"), External: rapid.Bool().Draw(t, "external"), RevokedThrough: rapid.Int64().Draw(t, "through"),
	}
	if rapid.Bool().Draw(t, "rich") {
		r.Labels = rapid.MapOfN(text, text, 1, 5).Draw(t, "labels")
		r.Permissions = texts.Draw(t, "permissions")
		r.Settled = texts.Draw(t, "settled")
		r.Rate = &RecordRate{Requests: rapid.Int64().Draw(t, "requests"), PerMillis: 1, Burst: 1}
		r.JWT = RecordJWT{TTLSeconds: rapid.Int64().Draw(t, "ttl"), Audiences: texts.Draw(t, "audiences")}
		r.Versions = []SealedVersion{{
			Number: rapid.Int64().Draw(t, "number"), Digest: rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "digest"), Pepper: "a",
			State: v1alpha1.VersionActive, Expires: rapid.Int64().Draw(t, "expires"),
		}}
	}
	return r
}

func TestRecordProperties(t *testing.T) {
	pepper, next := newPepper(t, "a", 1), newPepper(t, "b", 2)
	rapid.Check(t, func(rt *rapid.T) {
		want := drawRecord(rt)
		record, seal, err := want.Seal(pepper)
		if err != nil {
			rt.Fatal(err)
		}
		got, err := OpenRecord(Peppers{next, pepper}, record, seal)
		if err != nil {
			rt.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			rt.Fatal(diff)
		}
		again, againSeal, err := got.Seal(pepper)
		if err != nil || !bytes.Equal(again, record) || againSeal != seal {
			rt.Fatalf("sealing is not deterministic: %v", err)
		}
		bit := rapid.IntRange(0, 8*len(record)-1).Draw(rt, "bit")
		flipped := bytes.Clone(record)
		flipped[bit/8] ^= 1 << (bit % 8)
		if _, err := OpenRecord(Peppers{next, pepper}, flipped, seal); !errors.Is(err, ErrSeal) {
			rt.Fatalf("bit %d flipped: %v", bit, err)
		}
	})
}

// A few bytes that claim to hold billions of items cost no memory, even when
// the controller itself should have sealed them.
func TestOpenRecordBoundsMemory(t *testing.T) {
	pepper := newPepper(t, "a", 1)
	for name, body := range map[string][]byte{
		"an array of 2^32 items":  {0xa1, 0x08, 0x9a, 0xff, 0xff, 0xff, 0xff},
		"an array of 2^63 items":  {0xa1, 0x08, 0x9b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
		"a map of 2^32 pairs":     {0xa1, 0x07, 0xba, 0xff, 0xff, 0xff, 0xff},
		"a text of 4 GB":          {0xa1, 0x01, 0x7a, 0xff, 0xff, 0xff, 0xff},
		"bytes of 2^62":           {0xa1, 0x0f, 0x81, 0xa1, 0x02, 0x5b, 0x40, 0, 0, 0, 0, 0, 0, 0},
		"a thousand levels":       bytes.Repeat([]byte{0x81}, 1000),
		"an array without an end": {0xa1, 0x08, 0x9f, 0x61, 0x61, 0xff},
		"a tag":                   {0xc2, 0x41, 0x01},
	} {
		t.Run(name, func(t *testing.T) {
			raw := append([]byte{RecordVersion}, body...)
			seal := "a." + pepper.tag(raw)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			r, err := OpenRecord(Peppers{pepper}, raw, seal)
			runtime.ReadMemStats(&after)
			if !errors.Is(err, ErrRecord) || r != nil {
				t.Errorf("got %v, %v", r, err)
			}
			if used := after.TotalAlloc - before.TotalAlloc; used > 1<<20 {
				t.Errorf("used %d bytes", used)
			}
		})
	}
}

// FuzzOpenRecord presents anything as a record: whatever the pepper did not seal
// is refused, and what it did seal never panics.
func FuzzOpenRecord(f *testing.F) {
	pepper, stranger := newPepper(f, "a", 1), newPepper(f, "a", 2)
	v := readVectors(f)
	for _, vector := range v.Records {
		f.Add(unhex(f, vector.Record), vector.Seal)
	}
	record, seal, err := sampleRecord().Seal(stranger)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(record, seal)
	f.Add([]byte{}, "a.")
	f.Add([]byte{RecordVersion, 0xa0}, ".")
	f.Fuzz(func(t *testing.T, record []byte, seal string) {
		if seal != "a."+pepper.tag(record) {
			if r, err := OpenRecord(Peppers{pepper}, record, seal); err == nil || r != nil {
				t.Fatalf("opened what the pepper did not seal: %+v", r)
			}
		}
		r, err := OpenRecord(Peppers{pepper}, record, "a."+pepper.tag(record))
		if err != nil {
			if !errors.Is(err, ErrRecord) {
				t.Fatalf("refused with %v", err)
			}
			return
		}
		if _, _, err := r.Seal(pepper); err != nil {
			t.Fatalf("opened, but cannot be sealed again: %v", err)
		}
	})
}
