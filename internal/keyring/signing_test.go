package keyring_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/mintmark-dev/mintmark/internal/keyring"
)

var start = time.Date(2026, time.March, 1, 12, 0, 0, 0, time.UTC)

func mustKey(t testing.TB, seed byte, now time.Time) *keyring.SigningKey {
	t.Helper()
	made, err := keyring.NewSigningKey(counting(seed), keyring.ES256, now)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func mustEncode(t testing.TB, keys *keyring.SigningKeys) map[string][]byte {
	t.Helper()
	data, err := keyring.RingOf(keys).Encode()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func publicKey(t *testing.T, x, y string) *ecdsa.PublicKey {
	t.Helper()
	number := func(text string) *big.Int {
		raw, err := base64.RawURLEncoding.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		return new(big.Int).SetBytes(raw)
	}
	return &ecdsa.PublicKey{Curve: elliptic.P256(), X: number(x), Y: number(y)}
}

func TestThumbprintIsThatOfRFC7638(t *testing.T) {
	for name, test := range map[string]struct{ x, y, want string }{
		"the example of RFC 9449, section 6.1": {
			x:    "l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs",
			y:    "9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDA",
			want: "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I",
		},
	} {
		t.Run(name, func(t *testing.T) {
			if got := keyring.Thumbprint(publicKey(t, test.x, test.y)); got != test.want {
				t.Errorf("thumbprint %s, want %s", got, test.want)
			}
		})
	}
	defer func() {
		if recover() == nil {
			t.Error("a point off the curve has a thumbprint")
		}
	}()
	keyring.Thumbprint(&ecdsa.PublicKey{Curve: elliptic.P256(), X: big.NewInt(1), Y: big.NewInt(1)})
}

func TestNewSigningKey(t *testing.T) {
	made := mustKey(t, 1, start.Add(time.Millisecond).In(time.FixedZone("", 3600)))
	private := made.Key.(*ecdsa.PrivateKey)
	if made.ID != keyring.Thumbprint(&private.PublicKey) || made.Algorithm != keyring.ES256 || made.Created != start {
		t.Errorf("key %q %q %v: want its thumbprint, ES256 and the time in UTC to the second", made.ID, made.Algorithm, made.Created)
	}
	if raw, _ := private.Bytes(); !bytes.Equal(raw, key(1)) {
		t.Error("the key is not what the source of randomness gave")
	}
	// A scalar over the group's order must be drawn again, never reduced.
	after := io.MultiReader(bytes.NewReader(bytes.Repeat([]byte{0xff}, 32)), counting(1))
	if again, err := keyring.NewSigningKey(after, keyring.ES256, start); err != nil || again.ID != made.ID {
		t.Errorf("after a scalar out of range: %v, want the key of the next one", err)
	}
	if _, err := keyring.NewSigningKey(iotest.ErrReader(errNoRandomness), keyring.ES256, start); !errors.Is(err, errNoRandomness) {
		t.Errorf("error %v, want the source's", err)
	}
}

func TestSigningKeysComeBackAsTheyWere(t *testing.T) {
	keys := &keyring.SigningKeys{Current: mustKey(t, 1, start), Next: mustKey(t, 2, start), Previous: []*keyring.SigningKey{
		mustKey(t, 3, start), mustKey(t, 4, start),
	}}
	keys.Current.Activated, keys.Next.Published, keys.Previous[0].Retired = start, start.Add(time.Hour), start.Add(2*time.Hour)
	data := mustEncode(t, keys)
	again, err := keyring.DecodeSigningKeys(data)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(keyring.RingOf(keys), again); diff != "" {
		t.Errorf("keys (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(data, mustEncode(t, again[keyring.ES256])); diff != "" {
		t.Errorf("encoding is not stable:\n%s", diff)
	}
	if got := len(again.All()); got != 4 {
		t.Errorf("%d keys to publish, want 4", got)
	}
	for _, k := range keys.All() {
		if found := again.ByID(k.ID); found == nil || found.ID != k.ID {
			t.Errorf("key %s is not found by its kid", k.ID)
		}
	}
	if again.ByID("unknown") != nil {
		t.Error("found a key that is not there")
	}
}

func TestWhatCannotBeEncodedIsAnError(t *testing.T) {
	broken := mustKey(t, 1, start)
	broken.Key = struct{ crypto.Signer }{}
	if _, err := keyring.RingOf(&keyring.SigningKeys{Current: broken}).Encode(); err == nil {
		t.Error("encoded a key of an unknown type")
	}
	late := mustKey(t, 1, start)
	late.Retired = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)
	if _, err := keyring.RingOf(&keyring.SigningKeys{Current: late}).Encode(); err == nil {
		t.Error("encoded a time that JSON has no form for")
	}
}

func pemOf(kind string, der []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func TestDecodeSigningKeys(t *testing.T) {
	one, two := mustKey(t, 1, start), mustKey(t, 2, start)
	der, err := x509.MarshalPKCS8PrivateKey(one.Key)
	pkcs8 := pemOf("PRIVATE KEY", der, err)
	der, err = x509.MarshalECPrivateKey(one.Key.(*ecdsa.PrivateKey))
	sec1 := pemOf("EC PRIVATE KEY", der, err)
	parameters := pemOf("EC PARAMETERS", []byte{6, 8, 42, 134, 72, 206, 61, 3, 1, 7}, nil)
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	der, err = x509.MarshalPKCS8PrivateKey(p384)
	otherCurve := pemOf("PRIVATE KEY", der, err)
	weakKey, err := x509.ParsePKCS8PrivateKey(weakRSA(t))
	if err != nil {
		t.Fatal(err)
	}
	der, err = x509.MarshalPKCS8PrivateKey(weakKey)
	weak := pemOf("PRIVATE KEY", der, err)
	slots := func(format string, args ...any) map[string][]byte {
		data := mustEncode(t, &keyring.SigningKeys{Current: one, Next: two})
		data["slots.json"] = fmt.Appendf(nil, format, args...)
		return data
	}
	for name, test := range map[string]struct {
		data map[string][]byte
		err  string // empty: key one is current
	}{
		"a lone PEM of any name is current":           {data: map[string][]byte{"signing-key.pem": pkcs8}},
		"entries that are no PEM do not matter to it": {data: map[string][]byte{"k.pem": pkcs8, "README": []byte("made by hand"), "ca.crt": nil}},
		"SEC 1 is what openssl ecparam writes":        {data: map[string][]byte{"k.pem": append(parameters, sec1...)}},
		"current alone is enough":                     {data: slots(`{"current":{"kid":%q,"algorithm":"ES256"}}`, one.ID)},
		"an entry that no slot names does not matter": {data: func() map[string][]byte {
			data := slots(`{"current":{"kid":%q,"algorithm":"ES256"}}`, one.ID)
			data["old.pem"] = []byte("garbage")
			return data
		}()},
		"an empty Secret has no key":   {err: "there is neither an entry slots.json nor one whose name ends in .pem"},
		"two PEMs need slots":          {data: map[string][]byte{"a.pem": pkcs8, "b.pem": sec1}, err: "there are several *.pem entries, and no slots.json"},
		"no PEM in the entry":          {data: map[string][]byte{"a.pem": []byte("hello")}, err: `the entry "a.pem": no PEM block PRIVATE KEY`},
		"a public key is no key":       {data: map[string][]byte{"a.pem": pemOf("PUBLIC KEY", []byte{1}, nil)}, err: "no PEM block PRIVATE KEY"},
		"an encrypted key":             {data: map[string][]byte{"a.pem": pemOf("ENCRYPTED PRIVATE KEY", []byte{1}, nil)}, err: "without a passphrase"},
		"garbage for PKCS #8":          {data: map[string][]byte{"a.pem": pemOf("PRIVATE KEY", []byte("secret bytes"), nil)}, err: "is not PKCS #8"},
		"garbage for SEC 1":            {data: map[string][]byte{"a.pem": pemOf("EC PRIVATE KEY", []byte("secret bytes"), nil)}, err: "is not SEC 1"},
		"another curve":                {data: map[string][]byte{"a.pem": otherCurve}, err: "neither an EC key on P-256, which ES256 needs"},
		"an RSA key that is too short": {data: map[string][]byte{"a.pem": weak}, err: "nor an RSA key of 2048 to 8192 bits for RS256"},
		"slots that are no JSON":       {data: slots("current: a"), err: "the entry slots.json is not what Mintmark writes"},
		"slots without a current key":  {data: slots(`{"next":{"kid":%q,"algorithm":"ES256"}}`, two.ID), err: "names no current key"},
		"a slot whose key is missing":  {data: slots(`{"current":{"kid":"gone","algorithm":"ES256"}}`), err: `there is no entry "gone.pem"`},
		"an algorithm of the future":   {data: slots(`{"current":{"kid":%q,"algorithm":"ML-DSA-44"}}`, one.ID), err: `the algorithm "ML-DSA-44"`},
		"a broken key in a slot": {data: func() map[string][]byte {
			data := slots(`{"current":{"kid":%q,"algorithm":"ES256"}}`, one.ID)
			data[one.ID+".pem"] = []byte("hello")
			return data
		}(), err: "no PEM block PRIVATE KEY"},
		"a broken next key": {
			data: slots(`{"current":{"kid":%q,"algorithm":"ES256"},"next":{"kid":"x","algorithm":"ES256"}}`, one.ID), err: `no entry "x.pem"`,
		},
		"a broken previous key": {
			data: slots(`{"current":{"kid":%q,"algorithm":"ES256"},"previous":[{"kid":"x","algorithm":"ES256"}]}`, one.ID), err: `no entry "x.pem"`,
		},
		"a kid that is not the thumbprint": {data: func() map[string][]byte {
			data := slots(`{"current":{"kid":"mine","algorithm":"ES256"}}`)
			data["mine.pem"] = pkcs8
			return data
		}(), err: "name it by its RFC 7638 thumbprint"},
		"a key in two slots": {
			data: slots(`{"current":{"kid":%q,"algorithm":"ES256"},"next":{"kid":%[1]q,"algorithm":"ES256"}}`, one.ID), err: "into two slots",
		},
	} {
		t.Run(name, func(t *testing.T) {
			keys, err := keyring.DecodeSigningKeys(test.data)
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Fatalf("error %v, want one with %q", err, test.err)
				}
				if strings.Contains(err.Error(), "secret bytes") {
					t.Errorf("the error gives away what it is about: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			current := keys.Signer(keyring.ES256)
			if current == nil || current.ID != one.ID || !current.Key.(*ecdsa.PrivateKey).Equal(one.Key) {
				t.Errorf("the current key is %+v, want %s", current, one.ID)
			}
		})
	}
}

// A life of signing keys under simulated time: what happens is written down when
// it happens, as <days>d<hours>h<minutes>m since the start.
func TestTheLifeOfSigningKeys(t *testing.T) {
	policy := keyring.DefaultPolicy()
	for name, test := range map[string]struct {
		keys   keyring.SigningKeys
		policy keyring.Policy
		for_   time.Duration
		want   string
	}{
		"a key is published an hour before it signs, and kept until nothing it signed is alive": {
			policy: policy, for_: 200 * 24 * time.Hour,
			want: `
0d0h0m publish A
0d0h0m activate A
89d23h0m publish B
90d0h0m activate B, A verifies
90d1h30m drop A
179d23h0m publish C
180d0h0m activate C, B verifies
180d1h30m drop B
`,
		},
		"with keys that rotate faster than they may be dropped, several verify": {
			policy: keyring.Policy{RotateEvery: time.Hour, PublishBefore: 10 * time.Minute, KeepAfter: 150 * time.Minute}, for_: 5 * time.Hour,
			want: `
0d0h0m publish A
0d0h0m activate A
0d0h50m publish B
0d1h0m activate B, A verifies
0d1h50m publish C
0d2h0m activate C, BA verifies
0d2h50m publish D
0d3h0m activate D, CBA verifies
0d3h30m drop A
0d3h50m publish E
0d4h0m activate E, DCB verifies
0d4h30m drop B
0d4h50m publish F
0d5h0m activate F, EDC verifies
`,
		},
		"without an age, a key signs until a rotation is asked for": {
			policy: keyring.Policy{PublishBefore: time.Hour, KeepAfter: time.Hour}, for_: 400 * 24 * time.Hour,
			want: `
0d0h0m publish A
0d0h0m activate A
`,
		},
		"a key that somebody else supplied is not replaced by age": {
			keys:   keyring.SigningKeys{Current: mustKey(t, 200, start)},
			policy: policy, for_: 400 * 24 * time.Hour,
			want: "\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, "\n"+narrate(t, test.keys, test.policy, test.for_)); diff != "" {
				t.Errorf("narrative (-want +got):\n%s", diff)
			}
		})
	}
}

// narrate lives through a time, looking only when NextChange says so.
func narrate(t *testing.T, keys keyring.SigningKeys, policy keyring.Policy, span time.Duration) string {
	var b strings.Builder
	names := make(map[string]string)
	now := start
	tell := func(format string, args ...any) {
		since := now.Sub(start)
		fmt.Fprintf(&b, "%dd%dh%dm ", since/(24*time.Hour), since/time.Hour%24, since/time.Minute%60)
		fmt.Fprintf(&b, format+"\n", args...)
	}
	for !now.After(start.Add(span)) {
		if keys.ShouldPrepare(now, policy) {
			made := mustKey(t, byte(len(names)), now)
			names[made.ID] = string(rune('A' + len(names)))
			keys.Prepare(made, now)
			tell("publish %s", names[made.ID])
		}
		if keys.ShouldActivate(now, policy) {
			keys.Activate(now)
			verify := ""
			for _, k := range keys.Previous {
				verify += names[k.ID]
			}
			if verify != "" {
				verify = ", " + verify + " verifies"
			}
			tell("activate %s%s", names[keys.Current.ID], verify)
		}
		for _, k := range keys.Drop(now, policy) {
			tell("drop %s", names[k.ID])
		}
		next, ok := keys.NextChange(policy)
		if !ok {
			break
		}
		if !next.After(now) {
			t.Fatalf("at %v the next change is at %v: everything due was done", now, next)
		}
		// Nothing is due a second before.
		early := next.Add(-time.Second)
		if keys.ShouldPrepare(early, policy) || keys.ShouldActivate(early, policy) {
			t.Fatalf("something is due before %v", next)
		}
		now = next
	}
	return b.String()
}

func TestAnEarlyRotationPublishesFirst(t *testing.T) {
	policy := keyring.DefaultPolicy()
	keys := new(keyring.SigningKeys)
	if at, ok := keys.NextChange(policy); !ok || at.After(start) {
		t.Errorf("without a key, the next change is at %v (%v), want at once", at, ok)
	}
	keys.Prepare(mustKey(t, 1, start), start)
	if at, ok := keys.NextChange(policy); !ok || at.After(start) {
		t.Errorf("with the first key published, the next change is at %v (%v), want at once", at, ok)
	}
	if !keys.ShouldActivate(start, policy) {
		t.Error("the first key waits, and nothing could sign meanwhile")
	}
	keys.Activate(start)
	asked := start.Add(24 * time.Hour)
	if keys.ShouldPrepare(asked, policy) || keys.ShouldActivate(asked, policy) {
		t.Error("something is due on the second day")
	}
	keys.Prepare(mustKey(t, 2, asked), asked)
	if keys.ShouldPrepare(asked, policy) {
		t.Error("a second next key is asked for")
	}
	if keys.ShouldActivate(asked.Add(policy.PublishBefore-time.Second), policy) {
		t.Error("a key would sign that not every server and cache has")
	}
	if !keys.ShouldActivate(asked.Add(policy.PublishBefore), policy) {
		t.Error("a published key does not sign")
	}
}

func TestAKeyThatWasNeverRetiredIsNotDropped(t *testing.T) {
	keys := &keyring.SigningKeys{Current: mustKey(t, 1, start), Previous: []*keyring.SigningKey{mustKey(t, 2, start)}}
	policy := keyring.DefaultPolicy()
	if dropped := keys.Drop(start.Add(1000*time.Hour), policy); len(dropped) != 0 || len(keys.Previous) != 1 {
		t.Errorf("dropped %v: nobody knows when what it signed ends", dropped)
	}
	if at, ok := keys.NextChange(policy); ok {
		t.Errorf("the next change is at %v, want none", at)
	}
}

func FuzzDecodeSigningKeys(f *testing.F) {
	one, two := mustKey(f, 1, start), mustKey(f, 2, start)
	data := mustEncode(f, &keyring.SigningKeys{Current: one, Next: two})
	f.Add(data["slots.json"], data[one.ID+".pem"], data[two.ID+".pem"])
	f.Add([]byte(`{"current":{"kid":"x","algorithm":"ES256"},"previous":[null]}`), []byte("-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----"), []byte{})
	f.Add([]byte(nil), data[one.ID+".pem"], []byte(nil))
	f.Fuzz(func(t *testing.T, slots, first, second []byte) {
		data := map[string][]byte{one.ID + ".pem": first, two.ID + ".pem": second}
		if slots != nil {
			data["slots.json"] = slots
		}
		keys, err := keyring.DecodeSigningKeys(data)
		if err != nil {
			return
		}
		if keys.Signer(keyring.ES256) == nil {
			t.Fatal("no current key, and no error")
		}
		encoded, err := keys.Encode()
		if err != nil {
			return // a year that JSON cannot write
		}
		again, err := keyring.DecodeSigningKeys(encoded)
		if err != nil {
			t.Fatalf("what was encoded is not understood: %v", err)
		}
		if diff := cmp.Diff(keys, again, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("changed on the way:\n%s", diff)
		}
	})
}
