package keyring_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"github.com/mintmark-dev/mintmark/internal/credential"
	"github.com/mintmark-dev/mintmark/internal/keyring"
)

// counting is a source of randomness that is none: bytes counting up from seed.
func counting(seed byte) io.Reader { return &counter{next: seed} }

type counter struct{ next byte }

func (c *counter) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = c.next
		c.next++
	}
	return len(p), nil
}

var errNoRandomness = errors.New("no randomness")

func key(seed byte) []byte {
	out := make([]byte, credential.PepperLen)
	_, _ = counting(seed).Read(out)
	return out
}

func idsOf(peppers credential.Peppers) []string {
	var ids []string
	for _, p := range peppers {
		ids = append(ids, p.ID())
	}
	return ids
}

func TestDecodePeppers(t *testing.T) {
	text := base64.StdEncoding.EncodeToString(key(1))
	for name, test := range map[string]struct {
		data map[string][]byte
		want []string // ids, the current one first
		err  string
	}{
		"raw bytes are a key": {
			data: map[string][]byte{"current": []byte("a"), "a": key(1)},
			want: []string{"a"},
		},
		"base64 text is a key": {
			data: map[string][]byte{"current": []byte("a"), "a": []byte(text)},
			want: []string{"a"},
		},
		"a line's end behind text is what editors and templates leave": {
			data: map[string][]byte{"current": []byte("a\n"), "a": []byte(text + "\r\n")},
			want: []string{"a"},
		},
		"padding may be missing": {
			data: map[string][]byte{"current": []byte("a"), "a": []byte(strings.TrimRight(text, "="))},
			want: []string{"a"},
		},
		"the current one is first and the others follow by id": {
			data: map[string][]byte{"current": []byte("b"), "c": key(3), "b": key(2), "a": key(1)},
			want: []string{"b", "a", "c"},
		},
		"raw bytes that end like a line are raw bytes": {
			data: map[string][]byte{"current": []byte("a"), "a": append(key(1)[:31], '\n')},
			want: []string{"a"},
		},
		"an empty Secret lacks current": {err: `the entry "current" is missing or empty`},
		"current is a name, not nothing": {
			data: map[string][]byte{"current": []byte("\n"), "a": key(1)},
			err:  `the entry "current" is missing or empty`,
		},
		"current names a pepper that is there": {
			data: map[string][]byte{"current": []byte("b"), "a": key(1)},
			err:  `names the pepper "b", and there is no such entry`,
		},
		"current does not name itself": {
			data: map[string][]byte{"current": []byte("current")},
			err:  `names the pepper "current", and there is no such entry`,
		},
		"raw bytes with a line's end are not raw bytes": {
			data: map[string][]byte{"current": []byte("a"), "a": append(key(1), '\n')},
			err:  `the pepper in the entry "a" has 33 bytes`,
		},
		"hexadecimal text would be another key than its author thinks": {
			data: map[string][]byte{"current": []byte("a"), "a": []byte(hex.EncodeToString(key(1)))},
			err:  `the pepper in the entry "a" has 64 characters: hexadecimal`,
		},
		"URL-safe base64 is not standard base64": {
			data: map[string][]byte{"current": []byte("a"), "a": []byte(base64.URLEncoding.EncodeToString(slices.Repeat([]byte{0xfb, 0xff}, 16)))},
			err:  `the pepper in the entry "a" has 44 bytes`,
		},
		"text with a line's end inside is not one word": {
			data: map[string][]byte{"current": []byte("a"), "a": []byte(text[:20] + "\n" + text[20:])},
			err:  `the pepper in the entry "a" has 45 bytes`,
		},
		"text whose last bits mean nothing was changed on its way": {
			data: map[string][]byte{"current": []byte("a"), "a": []byte(strings.TrimSuffix(text, "A=") + "B=")},
			err:  `the pepper in the entry "a" has 44 bytes`,
		},
		"a shorter key is refused": {
			data: map[string][]byte{"current": []byte("a"), "a": []byte(base64.StdEncoding.EncodeToString(key(1)[:31]))},
			err:  `the pepper in the entry "a" has 44 bytes`,
		},
		"an empty entry is refused": {
			data: map[string][]byte{"current": []byte("a"), "a": nil},
			err:  `the pepper in the entry "a" has 0 bytes`,
		},
		"a placeholder is refused": {
			data: map[string][]byte{"current": []byte("a"), "a": make([]byte, 32)},
			err:  `the pepper in the entry "a" is one byte over and over`,
		},
		"a broken old pepper is an error too, for records may depend on it": {
			data: map[string][]byte{"current": []byte("a"), "a": key(1), "b": []byte("short")},
			err:  `the pepper in the entry "b" has 5 bytes`,
		},
		"an id with a dot could not be told from the seal behind it": {
			data: map[string][]byte{"current": []byte("a.b"), "a.b": key(1)},
			err:  `pepper id "a.b"`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			peppers, err := keyring.DecodePeppers(test.data)
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Fatalf("error %v, want one with %q", err, test.err)
				}
				for id, value := range test.data {
					if id != "current" && len(value) > 4 && strings.Contains(err.Error(), string(value)) {
						t.Errorf("the error gives the entry %s away: %v", id, err)
					}
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, idsOf(peppers)); diff != "" {
				t.Errorf("ids (-want +got):\n%s", diff)
			}
		})
	}
}

func TestEveryFormOfAPepperIsTheSameKey(t *testing.T) {
	raw := key(7)
	inner := credential.Inner{1, 2, 3}
	digests := make(map[credential.Digest]string)
	for form, value := range map[string][]byte{
		"raw": raw, "text": []byte(base64.StdEncoding.EncodeToString(raw)), "encoded": keyring.EncodePeppers("p", map[string][]byte{"p": raw})["p"],
	} {
		peppers, err := keyring.DecodePeppers(map[string][]byte{"current": []byte("p"), "p": value})
		if err != nil {
			t.Fatalf("%s: %v", form, err)
		}
		digests[peppers.Current().Digest(inner)] = form
	}
	if len(digests) != 1 {
		t.Errorf("the forms make different digests: %v", digests)
	}
}

func TestNewPepper(t *testing.T) {
	id, made, err := keyring.NewPepper(counting(0))
	if err != nil {
		t.Fatal(err)
	}
	if want := key(0); !bytes.Equal(made, want) {
		t.Errorf("key %x, want what the source gave, %x", made, want)
	}
	// Known answer: HMAC-SHA-256 over the label, by
	// printf 'mintmark pepper id v1' | openssl mac -digest SHA256 -macopt hexkey:000102..1f HMAC
	if want := "p9322465b1b7d781b"; id != want {
		t.Errorf("id %s, want %s", id, want)
	}
	if other, _, _ := keyring.NewPepper(counting(1)); other == id {
		t.Error("two keys have one id")
	}
	if _, _, err := keyring.NewPepper(iotest.ErrReader(errNoRandomness)); !errors.Is(err, errNoRandomness) {
		t.Errorf("error %v, want the source's", err)
	}
}

func TestRotatingPeppersKeepsTheOldOnesAsTheyWereWritten(t *testing.T) {
	before := map[string][]byte{"current": []byte("a\n"), "a": key(1)}
	untouched := maps.Clone(before)
	after, id, err := keyring.RotatePeppers(before, counting(9))
	if err != nil {
		t.Fatal(err)
	}
	peppers, err := keyring.DecodePeppers(after)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{id, "a"}, idsOf(peppers)); diff != "" {
		t.Errorf("ids (-want +got):\n%s", diff)
	}
	if !bytes.Equal(after["a"], before["a"]) {
		t.Error("the old pepper was written anew")
	}
	if diff := cmp.Diff(untouched, before); diff != "" {
		t.Errorf("the data handed in changed:\n%s", diff)
	}
	if _, _, err := keyring.RotatePeppers(before, iotest.ErrReader(errNoRandomness)); !errors.Is(err, errNoRandomness) {
		t.Errorf("error %v, want the source's", err)
	}
}

func TestDroppingPeppers(t *testing.T) {
	data := map[string][]byte{"current": []byte("c\n"), "a": key(1), "b": key(2), "c": key(3)}
	for name, test := range map[string]struct {
		inUse   string
		dropped []string
		left    []string
	}{
		"what is in use stays":                              {inUse: "abc", left: []string{"c", "a", "b"}},
		"what is not in use goes":                           {inUse: "b", dropped: []string{"a"}, left: []string{"c", "b"}},
		"the current one stays though nothing uses it, yet": {dropped: []string{"a", "b"}, left: []string{"c"}},
	} {
		t.Run(name, func(t *testing.T) {
			kept, dropped := keyring.DropPeppers(data, func(id string) bool { return strings.Contains(test.inUse, id) })
			if diff := cmp.Diff(test.dropped, dropped); diff != "" {
				t.Errorf("dropped (-want +got):\n%s", diff)
			}
			peppers, err := keyring.DecodePeppers(kept)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.left, idsOf(peppers)); diff != "" {
				t.Errorf("left (-want +got):\n%s", diff)
			}
			if len(data) != 4 {
				t.Errorf("the data handed in changed")
			}
		})
	}
}

func FuzzDecodePeppers(f *testing.F) {
	f.Add("a", key(1), []byte("short"))
	f.Add("a\n", []byte(base64.StdEncoding.EncodeToString(key(1))), key(2))
	f.Add("b", []byte{}, bytes.Repeat([]byte("="), 32))
	f.Fuzz(func(t *testing.T, current string, a, b []byte) {
		peppers, err := keyring.DecodePeppers(map[string][]byte{"current": []byte(current), "a": a, "b": b})
		if err != nil {
			if peppers != nil {
				t.Error("peppers beside an error")
			}
			return
		}
		if len(peppers) != 2 || peppers.Current().ID() != strings.TrimRight(current, "\r\n") {
			t.Errorf("current %q gives %v", current, idsOf(peppers))
		}
	})
}
