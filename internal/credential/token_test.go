package credential

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"log/slog"
	mathrand "math/rand/v2"
	"reflect"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
	"sigs.k8s.io/yaml"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

var (
	plainFormat   = Format{Kind: v1alpha1.KindServiceToken}
	liveFormat    = Format{Kind: v1alpha1.KindServiceToken, Environment: "live"}
	checkedFormat = Format{Kind: v1alpha1.KindServiceToken, Environment: "test", Checksum: true}
	apiKeyFormat  = Format{Kind: v1alpha1.KindAPIKey}
	formats       = map[string]Format{"plain": plainFormat, "live": liveFormat, "checked": checkedFormat, "API key": apiKeyFormat}
)

// seeded is a stream of bytes that is the same in every run.
func seeded(seed byte) io.Reader { return mathrand.NewChaCha8([32]byte{seed}) }

func mint(t testing.TB, f Format, random io.Reader) Token {
	t.Helper()
	token, err := f.Mint(random)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestMintedValuesHaveTheirShape(t *testing.T) {
	for name, shape := range map[string]string{
		"plain":   `^sk_[0-9a-f]{64}$`,
		"live":    `^sk_live_[0-9a-f]{64}$`,
		"checked": `^sk_test_[0-9a-f]{72}$`,
		"API key": `^mk[0-9A-Za-z]{6}\.[0-9A-Za-z]{49}$`,
	} {
		t.Run(name, func(t *testing.T) {
			re := regexp.MustCompile(shape)
			seen := map[string]bool{}
			for range 1000 {
				value := mint(t, formats[name], rand.Reader).Reveal()
				if !re.MatchString(value) {
					t.Fatalf("%s does not match %s", value, shape)
				}
				if seen[value] {
					t.Fatal("the same value twice")
				}
				seen[value] = true
			}
		})
	}
}

func TestParse(t *testing.T) {
	var (
		plain   = mint(t, plainFormat, seeded(1)).Reveal()
		live    = mint(t, liveFormat, seeded(2)).Reveal()
		checked = mint(t, checkedFormat, seeded(3)).Reveal()
		key     = mint(t, apiKeyFormat, seeded(4)).Reveal()
	)
	other := func(c byte, among string) string {
		return string(among[(strings.IndexByte(among, c)+1)%len(among)])
	}
	last := func(s, among string) string { return s[:len(s)-1] + other(s[len(s)-1], among) }
	const hexDigits = "0123456789abcdef"

	const (
		refused  = shapeNone
		external = shapeExternal // another system's, as far as anybody can tell: to be looked up, and found nowhere
	)
	for _, c := range []struct {
		name string
		in   string
		want shape
	}{
		{"a service token", plain, shapeServiceToken},
		{"a service token of an environment", live, shapeServiceToken},
		{"a service token with a checksum", checked, shapeServiceToken},
		{"an API key", key, shapeAPIKey},
		{"a token of another system", "glpat-0123456789_abcdefgh", external},
		{"another system's token that begins like ours", "sk_live_51H8sQeKb2Xn4Vd7Lp0Zc3Tf6", external},
		{"the shortest of another system", strings.Repeat("x", MinExternalLen), external},
		{"the longest of another system", strings.Repeat("x", MaxLen), external},

		{"nothing", "", refused},
		{"too short to be a secret", strings.Repeat("x", MinExternalLen-1), refused},
		{"too long", strings.Repeat("x", MaxLen+1), refused},
		{"a megabyte", strings.Repeat("x", 1<<20), refused},
		{"a megabyte that begins like a token", plain + strings.Repeat("0", 1<<20), refused},
		{"the lead alone", "sk_", refused},

		{"a service token with a NUL", plain + "\x00", refused},
		{"a service token with a line end", plain + "\n", refused},
		{"a service token with CRLF", plain + "\r\n", refused},
		{"a service token with a space before", " " + plain, refused},
		{"a service token with a space behind", plain + " ", refused},
		{"a service token with a tab inside", plain[:10] + "\t" + plain[11:], refused},
		{"a service token in upper case", "sk_" + strings.ToUpper(plain[3:]), refused},
		{"a service token with one digit in upper case", upperOne(plain), refused},
		{"a service token with a letter beyond f", plain[:20] + "g" + plain[21:], refused},
		{"a service token with full-width digits", plain[:3] + strings.Repeat("0", 61) + "\uff10", refused},
		{"a service token with an Arabic digit", plain[:20] + "\u0660" + plain[21:], refused},
		{"a service token behind a byte order mark", "\ufeff" + plain, refused},
		{"a service token with a zero-width joiner", plain + "\u200d", refused},
		{"a service token with a DEL", plain[:20] + "\x7f" + plain[21:], refused},
		{"a service token with invalid UTF-8", plain[:20] + "\xff" + plain[21:], refused},
		{"a wrong checksum", last(checked, hexDigits), refused},
		{"a checksum of the wrong value", checked[:20] + other(checked[20], hexDigits) + checked[21:], refused},
		{"a checksummed token under another environment", "sk_live_" + checked[len("sk_test_"):], refused},
		{"a checksummed token without its environment", "sk_" + checked[len("sk_test_"):], refused},
		{"eight digits behind a token without checksum", plain + "00000000", refused},
		{"an environment that begins with a digit", "sk_1live_" + plain[3:], external},
		{"an environment in upper case", "sk_LIVE_" + plain[3:], external},
		{"an environment of 17 characters", "sk_abcdefghijklmnopq_" + plain[3:], external},
		{"an empty environment", "sk__" + plain[3:], external},
		{"two environments", "sk_live_eu_" + plain[3:], external},
		{"another lead", "pk_" + plain[3:], external},
		{"the lead in upper case", "SK_" + plain[3:], external},
		{"a service token, one digit less", plain[:len(plain)-1], external},
		{"a service token, one digit more", plain + "0", external},
		{"a checksummed token, one digit less", checked[:len(checked)-1], external},
		{"a checksummed token, one digit more", checked + "0", external},
		{"two tokens joined by a comma", plain + "," + plain, external},
		{"two tokens joined by a comma and a space", plain + ", " + plain, refused},

		{"an API key with a wrong checksum", last(key, base62), refused},
		{"an API key with another prefix", key[:7] + other(key[7], base62) + key[8:], refused},
		{"an API key with the case of a letter changed", flipCase(key), refused},
		{"an API key with a second dot", key[:20] + "." + key[21:], refused},
		{"an API key with a hyphen", key[:20] + "-" + key[21:], refused},
		{"an API key with a letter that is not ASCII", key[:20] + "\u00e9" + key[22:], refused},
		{"an API key with a line end", key + "\n", refused},
		{"an API key with a NUL", key + "\x00", refused},
		{"an API key with a space before", " " + key, refused},
		{"an API key without its dot", key[:8] + "x" + key[9:], external},
		{"an API key, one character less", key[:len(key)-1], external},
		{"an API key, one character more", key + "0", external},
		{"an API key with another lead", "xx" + key[2:], external},
	} {
		t.Run(c.name, func(t *testing.T) {
			token, err := Parse(c.in)
			if c.want == refused {
				if !errors.Is(err, ErrMalformed) {
					t.Fatalf("error %v, want ErrMalformed", err)
				}
				if err.Error() != "malformed credential" {
					t.Errorf("the error says %q", err)
				}
			} else if err != nil {
				t.Fatal(err)
			}
			if token.format != c.want {
				t.Fatalf("taken for format %d, want %d", token.format, c.want)
			}
			if err == nil && token.Reveal() != c.in {
				t.Errorf("reveals %q", token.Reveal())
			}
			if token.External() != (c.want == external) {
				t.Errorf("External() is %v", token.External())
			}
		})
	}
}

func upperOne(s string) string {
	i := strings.IndexAny(s[3:], "abcdef") + 3
	return s[:i] + strings.ToUpper(s[i:i+1]) + s[i+1:]
}

func flipCase(key string) string {
	for i := APIKeyPrefixLen + 1; i < len(key); i++ {
		if c := key[i : i+1]; strings.ToUpper(c) != c {
			return key[:i] + strings.ToUpper(c) + key[i+1:]
		}
	}
	panic("a key without lower-case letters")
}

func TestPrefixShowsWhatMayBeShown(t *testing.T) {
	for _, c := range []struct {
		name string
		f    Format
		want string
	}{
		{"an API key's first eight characters", apiKeyFormat, `^mk[0-9A-Za-z]{6}$`},
		{"a service token's lead and four digits", plainFormat, `^sk_[0-9a-f]{4}$`},
		{"a service token's environment as well", liveFormat, `^sk_live_[0-9a-f]{4}$`},
	} {
		t.Run(c.name, func(t *testing.T) {
			token := mint(t, c.f, rand.Reader)
			if !regexp.MustCompile(c.want).MatchString(token.Prefix()) || !strings.HasPrefix(token.Reveal(), token.Prefix()) {
				t.Errorf("the prefix is %q", token.Prefix())
			}
		})
	}
	foreign, err := Parse("another-systems-secret-value")
	if err != nil {
		t.Fatal(err)
	}
	if foreign.Prefix() != "" || (Token{}).Prefix() != "" {
		t.Error("a value of unknown format shows part of itself")
	}
}

func TestZeroToken(t *testing.T) {
	var zero Token
	if zero.Reveal() != "" || zero.External() || zero.Kind() != "" || zero.String() != "[redacted ]" || zero.GoString() != zero.String() {
		t.Errorf("the zero Token is %q, %v, %q, %q", zero.Reveal(), zero.External(), zero.Kind(), zero.String())
	}
	empty := zero.Inner()
	if hex.EncodeToString(empty[:]) != "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" {
		t.Error("the inner hash of nothing is not the SHA-256 of nothing (FIPS 180-4)")
	}
}

// failAfter gives n bytes and then fails.
func failAfter(n int) io.Reader {
	return io.MultiReader(bytes.NewReader(make([]byte, n)), errReader{})
}

type errReader struct{}

var errNoRandomness = errors.New("no randomness")

func (errReader) Read([]byte) (int, error) { return 0, errNoRandomness }

func TestMintFailsWithItsSource(t *testing.T) {
	for _, c := range []struct {
		name string
		f    Format
		from io.Reader
	}{
		{"a service token, at once", plainFormat, failAfter(0)},
		{"a service token, one byte short", plainFormat, failAfter(31)},
		{"an API key, in its prefix", apiKeyFormat, failAfter(0)},
		{"an API key, in its random part", apiKeyFormat, failAfter(64)},
	} {
		t.Run(c.name, func(t *testing.T) {
			token, err := c.f.Mint(c.from)
			if !errors.Is(err, errNoRandomness) {
				t.Errorf("error: %v", err)
			}
			if token.Reveal() != "" {
				t.Error("a value came out all the same")
			}
		})
	}
}

// Bytes from 248 on would favour the first characters: they are drawn again.
func TestMintDrawsAgain(t *testing.T) {
	high := bytes.Repeat([]byte{248, 255}, 64)
	low := make([]byte, 128)
	token, err := apiKeyFormat.Mint(io.MultiReader(bytes.NewReader(high), bytes.NewReader(low)))
	if err != nil {
		t.Fatal(err)
	}
	if want := "mk000000." + strings.Repeat("0", apiKeyRandomLen); !strings.HasPrefix(token.Reveal(), want) {
		t.Errorf("minted %s", token.Reveal())
	}
}

// chiSquare of the counts against an equal share for each.
func chiSquare(counts []int) float64 {
	total := 0
	for _, n := range counts {
		total += n
	}
	expected := float64(total) / float64(len(counts))
	sum := 0.0
	for _, n := range counts {
		d := float64(n) - expected
		sum += d * d / expected
	}
	return sum
}

// Every character of every position is equally likely. The critical values are
// those a fair source stays under 99.9 times in 100 (61 and 15 degrees of
// freedom); taking bytes modulo 62 gives over 5,000 for all positions together.
func TestMintIsUnbiased(t *testing.T) {
	const mints = 20000
	for _, c := range []struct {
		name     string
		f        Format
		alphabet string
		from, to int // of the random characters
		critical float64
		// positionCritical allows for the many positions looked at: 1 in 10^6.
		positionCritical float64
	}{
		{"an API key's prefix", apiKeyFormat, base62, len(apiKeyLead), APIKeyPrefixLen, 100.9, 130.4},
		{"an API key's random part", apiKeyFormat, base62, APIKeyPrefixLen + 1, APIKeyPrefixLen + 1 + apiKeyRandomLen, 100.9, 130.4},
		{"a service token", liveFormat, "0123456789abcdef", len("sk_live_"), len("sk_live_") + tokenRandomLen, 37.7, 56.5},
	} {
		t.Run(c.name, func(t *testing.T) {
			random := seeded(42)
			all := make([]int, len(c.alphabet))
			each := make([][]int, c.to-c.from)
			for i := range each {
				each[i] = make([]int, len(c.alphabet))
			}
			for range mints {
				value := mint(t, c.f, random).Reveal()
				for i, ch := range []byte(value[c.from:c.to]) {
					n := strings.IndexByte(c.alphabet, ch)
					all[n]++
					each[i][n]++
				}
			}
			if x := chiSquare(all); x > c.critical {
				t.Errorf("chi-square over all positions is %.1f, over %.1f: the characters are not equally likely", x, c.critical)
			}
			for i, counts := range each {
				if x := chiSquare(counts); x > c.positionCritical {
					t.Errorf("chi-square at position %d is %.1f, over %.1f", i, x, c.positionCritical)
				}
			}
		})
	}
}

// holder is what other packages do with a Token: they keep it in fields, which
// fmt and slog print by reflection where they are not exported.
type holder struct {
	Open    Token
	hidden  Token
	pointer *Token
	inside  struct{ deeper []Token }
	byName  map[string]Token
	any     any
}

func TestTokensDoNotPrint(t *testing.T) {
	for name, f := range formats {
		t.Run(name, func(t *testing.T) {
			token := mint(t, f, rand.Reader)
			h := holder{Open: token, hidden: token, pointer: &token, byName: map[string]Token{"k": token}, any: token}
			h.inside.deeper = []Token{token}
			wrapped := fmt.Errorf("wrapping %v of %w", token, fmt.Errorf("%+v", h))
			var printed strings.Builder
			for _, value := range []any{token, &token, h, &h, []Token{token}, []any{token, h}, map[string]any{"k": h}, wrapped, token.LogValue()} {
				for _, flags := range []string{"", "+", "#", "-", " ", "0", "90", ".90"} {
					for verb := byte('A'); verb <= 'z'; verb++ {
						fmt.Fprintf(&printed, "%"+flags+string(verb)+"\n", value)
					}
				}
				fmt.Fprintln(&printed, value)
				slog.New(slog.NewTextHandler(&printed, nil)).Info("event", "value", value, slog.Group("g", "v", value))
				slog.New(slog.NewJSONHandler(&printed, nil)).Info("event", "value", value, slog.Any("v", value))
				encode(&printed, value)
			}
			encode(&printed, map[string]Token{"k": token})
			if where := leak(printed.String(), token); where != "" {
				t.Fatalf("the value was printed: %s", where)
			}
			if !strings.Contains(printed.String(), "[redacted "+token.Prefix()+"]") {
				t.Error("what is printed does not show which value it was")
			}
		})
	}
}

func encode(w io.Writer, value any) {
	for _, marshal := range []func(any) ([]byte, error){json.Marshal, xml.Marshal, func(v any) ([]byte, error) { return yaml.Marshal(v) }} {
		data, err := marshal(value)
		fmt.Fprintf(w, "%s %v\n", data, err)
	}
}

// leak finds the secret part of a value, plain and as verbs like %x and %d would
// write it, and gives what stands before it; empty where there is none.
func leak(printed string, token Token) string {
	secret := token.Reveal()[len(token.Prefix()):][1:17]
	for _, form := range []string{
		secret, fmt.Sprintf("%x", secret), fmt.Sprintf("%X", secret), fmt.Sprintf("% x", secret), fmt.Sprintf("% X", secret),
		strings.Trim(fmt.Sprint([]byte(secret)), "[]"), strings.Trim(fmt.Sprintf("%#v", []byte(secret)), "[]byte{}"),
	} {
		if i := strings.Index(printed, form); i >= 0 {
			return "..." + printed[max(0, i-200):i]
		}
	}
	return ""
}

// A leak the test above could not see would make it worthless.
func TestLeaksAreSeen(t *testing.T) {
	token := mint(t, plainFormat, rand.Reader)
	for _, verb := range []string{"%s", "%x", "%X", "% x", "%#v", "%q", "%d", "%v"} {
		if leak(fmt.Sprintf(verb, token.Reveal())+fmt.Sprintf(verb, []byte(token.Reveal())), token) == "" {
			t.Errorf("a value printed with %s is not recognised", verb)
		}
	}
}

// Two Tokens cannot be compared with ==, which would compare addresses.
func TestTokensAreNotComparable(t *testing.T) {
	if reflect.TypeFor[Token]().Comparable() {
		t.Error("Token is comparable")
	}
}

func TestTokenKeepsItsText(t *testing.T) {
	buffer := []byte(strings.Repeat("k", 40))
	token, err := Parse(string(buffer))
	if err != nil {
		t.Fatal(err)
	}
	before := token.Inner()
	clear(buffer)
	runtime.GC()
	if token.Inner() != before || token.Reveal() != strings.Repeat("k", 40) {
		t.Error("the Token changed with the buffer it was read from")
	}
}

func TestParseInner(t *testing.T) {
	good := strings.Repeat("0f", 32)
	for _, c := range []struct {
		name, in string
		ok       bool
	}{
		{"a SHA-256", good, true},
		{"in upper case", strings.ToUpper(good), false},
		{"one digit less", good[1:], false},
		{"one digit more", good + "0", false},
		{"no digits", strings.Repeat("zz", 32), false},
		{"nothing", "", false},
		{"the value in the place of its hash", mint(t, plainFormat, seeded(9)).Reveal(), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			in, err := ParseInner(c.in)
			if (err == nil) != c.ok {
				t.Fatalf("error: %v", err)
			}
			switch {
			case c.ok && hex.EncodeToString(in[:]) != c.in:
				t.Errorf("read as %x", in)
			case !c.ok && in != Inner{}:
				t.Error("a hash came out all the same")
			case !c.ok && c.in != "" && strings.Contains(err.Error(), c.in):
				t.Error("the error repeats what was given")
			}
		})
	}
}

func drawFormat(t *rapid.T) Format {
	if rapid.Bool().Draw(t, "API key") {
		return apiKeyFormat
	}
	return Format{
		Kind: v1alpha1.KindServiceToken, Checksum: rapid.Bool().Draw(t, "checksum"),
		Environment: rapid.StringMatching(`([a-z][a-z0-9]{0,15})?`).Draw(t, "environment"),
	}
}

type drawReader struct{ t *rapid.T }

func (r drawReader) Read(p []byte) (int, error) {
	copy(p, rapid.SliceOfN(rapid.Byte(), len(p), len(p)).Draw(r.t, "random"))
	p[0] %= 248 // else a draw of nothing but high bytes never ends
	return len(p), nil
}

func TestFormatProperties(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		f := drawFormat(rt)
		token, err := f.Mint(drawReader{rt})
		if err != nil {
			rt.Fatal(err)
		}
		value := token.Reveal()
		parsed, err := Parse(value)
		if err != nil || parsed.format != token.format || parsed.Reveal() != value || parsed.Prefix() != token.Prefix() {
			rt.Fatalf("minted %s, parsed %v, %v", value, parsed, err)
		}
		if parsed.Inner() != token.Inner() {
			rt.Fatal("the inner hash depends on where the value came from")
		}
		if f.Kind == v1alpha1.KindServiceToken && !f.Checksum {
			return
		}
		// One character replaced, or two neighbours swapped, is seen offline.
		i := rapid.IntRange(0, len(value)-1).Draw(rt, "at")
		typo := value[:i] + string(rune(rapid.IntRange('!', '~').Draw(rt, "character"))) + value[i+1:]
		if rapid.Bool().Draw(rt, "swap") && i > 0 {
			typo = value[:i-1] + value[i:i+1] + value[i-1:i] + value[i+1:]
		}
		if wrong, err := Parse(typo); typo != value && err == nil && !wrong.External() {
			rt.Fatalf("%s was taken for %s", typo, value)
		}
	})
}

// FuzzParse presents anything: it never panics, and what is taken for one of
// our own formats has that format to the letter.
func FuzzParse(f *testing.F) {
	for _, vector := range readVectors(f).Tokens {
		f.Add(vector.Value)
		f.Add(vector.Value + "\x00")
		f.Add(vector.Value[1:])
	}
	for _, s := range []string{"", "sk_", "sk_live_", "mk000000.", strings.Repeat("é", 40), strings.Repeat("_", 90), "sk_" + strings.Repeat("F", 64)} {
		f.Add(s)
	}
	serviceToken := regexp.MustCompile(`^sk_([a-z][a-z0-9]{0,15}_)?[0-9a-f]{64}([0-9a-f]{8})?$`)
	apiKey := regexp.MustCompile(`^mk[0-9A-Za-z]{6}\.[0-9A-Za-z]{49}$`)
	printable := regexp.MustCompile(`^[!-~]{20,512}$`)
	f.Fuzz(func(t *testing.T, presented string) {
		token, err := Parse(presented)
		if err != nil {
			if !errors.Is(err, ErrMalformed) || token.Reveal() != "" {
				t.Fatalf("refused with %v and %q", err, token.Reveal())
			}
			return
		}
		want := map[shape]*regexp.Regexp{shapeServiceToken: serviceToken, shapeAPIKey: apiKey, shapeExternal: printable}[token.format]
		if want == nil || !want.MatchString(presented) || token.Reveal() != presented {
			t.Fatalf("%q was taken for format %d", presented, token.format)
		}
		if !strings.HasPrefix(presented, token.Prefix()) || len(token.Prefix()) > 24 {
			t.Fatalf("the prefix of %q is %q", presented, token.Prefix())
		}
		token.Inner()
	})
}

// What a server does for every request allocates nothing: not for a good value,
// not for garbage.
func TestVerifyingDoesNotAllocate(t *testing.T) {
	if raceDetector {
		t.Log("the race detector empties pools at random: checked without it")
		return
	}
	pepper := newPepper(t, "p", 1)
	values := map[string]string{"garbage": strings.Repeat("x", 1000), "another system's": strings.Repeat("x", 40)}
	for name, f := range formats {
		values[name] = mint(t, f, rand.Reader).Reveal()
	}
	for name, value := range values {
		t.Run(name, func(t *testing.T) {
			var sink Digest
			if n := testing.AllocsPerRun(1000, func() {
				if token, err := Parse(value); err == nil {
					sink = pepper.Digest(token.Inner())
				}
			}); n != 0 {
				t.Errorf("%v allocations", n)
			}
			_ = sink
		})
	}
}

// The requirement: less than 1 ms each, and less than 50 MB for a thousand.
func TestMintingIsCheap(t *testing.T) {
	for name, f := range formats {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			start := time.Now()
			for range 1000 {
				mint(t, f, rand.Reader)
			}
			elapsed := time.Since(start)
			runtime.ReadMemStats(&after)
			if elapsed > time.Second {
				t.Errorf("a thousand took %s", elapsed)
			}
			if used := after.TotalAlloc - before.TotalAlloc; used > 50<<20 {
				t.Errorf("a thousand took %d bytes", used)
			}
		})
	}
}

func BenchmarkMint(b *testing.B) {
	for name, f := range formats {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				mint(b, f, rand.Reader)
			}
		})
	}
}

// BenchmarkMint1000 mints and digests a thousand values, as the controller does
// when a thousand credentials fall due together.
func BenchmarkMint1000(b *testing.B) {
	pepper := newPepper(b, "p", 1)
	b.ReportAllocs()
	for b.Loop() {
		for range 1000 {
			pepper.Digest(mint(b, plainFormat, rand.Reader).Inner())
		}
	}
}

func BenchmarkParseAndDigest(b *testing.B) {
	pepper := newPepper(b, "p", 1)
	for name, f := range formats {
		value := mint(b, f, rand.Reader).Reveal()
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					token, err := Parse(value)
					if err != nil {
						b.Fatal(err)
					}
					pepper.Digest(token.Inner())
				}
			})
		})
	}
}

func BenchmarkOpenRecord(b *testing.B) {
	pepper := newPepper(b, "p", 1)
	record, seal, err := sampleRecord().Seal(pepper)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := OpenRecord(Peppers{pepper}, record, seal); err != nil {
			b.Fatal(err)
		}
	}
}
