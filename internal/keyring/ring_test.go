package keyring_test

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/mintmark-dev/mintmark/internal/keyring"
)

// weakRSA is a key of 1024 bits, in PKCS #8. crypto/rsa makes none any more, so it is put
// together from two primes.
func weakRSA(t testing.TB) []byte {
	t.Helper()
	t.Setenv("GODEBUG", "rsa1024min=0")
	key, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func keyFor(t testing.TB, algorithm string) *keyring.SigningKey {
	t.Helper()
	made, err := keyring.NewSigningKey(rand.Reader, algorithm, start)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// The thumbprints of RFC 7638 (section 3.1) and RFC 8037 (appendix A.3), and those of
// another implementation for keys made here.
func TestThumbprintsOfEachKindOfKey(t *testing.T) {
	modulus, err := base64.RawURLEncoding.DecodeString("0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknj" +
		"hMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw")
	if err != nil {
		t.Fatal(err)
	}
	if got := keyring.Thumbprint(&rsa.PublicKey{N: new(big.Int).SetBytes(modulus), E: 65537}); got != "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs" {
		t.Errorf("RSA: %s is not what RFC 7638 has", got)
	}
	point, err := hex.DecodeString("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
	if err != nil {
		t.Fatal(err)
	}
	if got := keyring.Thumbprint(ed25519.PublicKey(point)); got != "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k" {
		t.Errorf("Ed25519: %s is not what RFC 8037 has", got)
	}
	for _, algorithm := range keyring.Algorithms() {
		made := keyFor(t, algorithm)
		sum, err := (&jose.JSONWebKey{Key: made.Key.Public()}).Thumbprint(crypto.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		if want := base64.RawURLEncoding.EncodeToString(sum); made.ID != want || made.Algorithm != algorithm {
			t.Errorf("%s: kid %s of algorithm %s, want %s", algorithm, made.ID, made.Algorithm, want)
		}
	}
	if _, err := keyring.NewSigningKey(rand.Reader, "HS256", start); err == nil {
		t.Error("made a key for HS256, which has none")
	}
}

func TestARingComesBackAsItWas(t *testing.T) {
	ring := keyring.RingOf(
		&keyring.SigningKeys{Current: keyFor(t, keyring.ES256), Next: keyFor(t, keyring.ES256)},
		&keyring.SigningKeys{Next: keyFor(t, keyring.RS256)},
		&keyring.SigningKeys{Current: keyFor(t, keyring.EdDSA), Previous: []*keyring.SigningKey{keyFor(t, keyring.EdDSA)}},
	)
	data, err := ring.Encode()
	if err != nil {
		t.Fatal(err)
	}
	again, err := keyring.DecodeSigningKeys(data)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(ring, again); diff != "" {
		t.Errorf("the ring (-want +got):\n%s", diff)
	}
	var order []string
	for _, k := range again.All() {
		order = append(order, k.Algorithm)
		if found := again.ByID(k.ID); found == nil || found.ID != k.ID {
			t.Errorf("key %s is not found by its kid", k.ID)
		}
	}
	if got := strings.Join(order, " "); got != "ES256 ES256 EdDSA EdDSA RS256" {
		t.Errorf("published in the order %s", got)
	}
}

// What a version of Mintmark wrote that knew ES256 alone is read, and such a version reads
// what is written now: the outer slots are all it looks at.
func TestTheEntryOfAnEarlierVersionIsRead(t *testing.T) {
	one := keyFor(t, keyring.ES256)
	data, err := keyring.RingOf(&keyring.SigningKeys{Current: one}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(data["slots.json"]), "others") {
		t.Errorf("with ES256 alone the entry is not what it was: %s", data["slots.json"])
	}
	data["slots.json"] = fmt.Appendf(nil, `{"current":{"kid":%q,"algorithm":"ES256","created":"2026-01-01T00:00:00Z"},"previous":[]}`, one.ID)
	ring, err := keyring.DecodeSigningKeys(data)
	if err != nil || ring.Signer(keyring.ES256) == nil || ring.Signer(keyring.ES256).ID != one.ID {
		t.Errorf("%v, error %v, want the key %s", ring, err, one.ID)
	}
}

func TestASuppliedKeyOfAnyKindSignsForEverybody(t *testing.T) {
	for _, algorithm := range keyring.Algorithms() {
		made := keyFor(t, algorithm)
		data, err := keyring.RingOf(&keyring.SigningKeys{Current: made}).Encode()
		if err != nil {
			t.Fatal(err)
		}
		ring, err := keyring.DecodeSigningKeys(map[string][]byte{"from-vault.pem": data[made.ID+".pem"]})
		if err != nil {
			t.Fatal(err)
		}
		for _, asked := range append(keyring.Algorithms(), "") {
			if got := ring.Signer(asked); got == nil || got.ID != made.ID || got.Algorithm != algorithm {
				t.Errorf("with a lone key for %s, %q is signed with %+v", algorithm, asked, got)
			}
		}
	}
	pkcs1 := pemOf("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(keyFor(t, keyring.RS256).Key.(*rsa.PrivateKey)), nil)
	if ring, err := keyring.DecodeSigningKeys(map[string][]byte{"k.pem": pkcs1}); err != nil || ring.Signer(keyring.RS256) == nil {
		t.Errorf("PKCS #1 is not read: %v", err)
	}
	if _, err := keyring.DecodeSigningKeys(map[string][]byte{"k.pem": pemOf("RSA PRIVATE KEY", []byte{1}, nil)}); err == nil {
		t.Error("garbage for PKCS #1 is read")
	}
}

func TestAnEntryThatMixesAlgorithmsIsRefused(t *testing.T) {
	es, ed, rs := keyFor(t, keyring.ES256), keyFor(t, keyring.EdDSA), keyFor(t, keyring.RS256)
	data, err := keyring.RingOf(&keyring.SigningKeys{Current: es}, &keyring.SigningKeys{Current: ed}, &keyring.SigningKeys{Current: rs}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	for sentence, test := range map[string]struct{ slots, err string }{
		"two algorithms in one set of slots": {
			fmt.Sprintf(`{"current":{"kid":%q,"algorithm":"ES256"},"next":{"kid":%q,"algorithm":"EdDSA"}}`, es.ID, ed.ID), "mixes ES256 and EdDSA",
		},
		"two sets of slots for one algorithm": {
			fmt.Sprintf(`{"current":{"kid":%q,"algorithm":"EdDSA"},"others":[{"current":{"kid":%q,"algorithm":"ES256"}},{"next":{"kid":%q,"algorithm":"ES256"}}]}`,
				ed.ID, es.ID, es.ID), "into two slots",
		},
		"an algorithm that is not the key's": {
			fmt.Sprintf(`{"current":{"kid":%q,"algorithm":"RS256"}}`, es.ID), "it is one for ES256",
		},
		"a broken key of another algorithm": {
			fmt.Sprintf(`{"current":{"kid":%q,"algorithm":"ES256"},"others":[{"current":{"kid":"x","algorithm":"RS256"}}]}`, es.ID), `no entry "x.pem"`,
		},
	} {
		t.Run(sentence, func(t *testing.T) {
			data["slots.json"] = []byte(test.slots)
			if _, err := keyring.DecodeSigningKeys(data); err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("error %v, want one with %q", err, test.err)
			}
		})
	}
}

func TestWhoAsksForAnAlgorithmIsServedByTheDefaultUntilItsKeySigns(t *testing.T) {
	es, rs := keyFor(t, keyring.ES256), keyFor(t, keyring.RS256)
	ring := keyring.RingOf(&keyring.SigningKeys{Current: es}, &keyring.SigningKeys{Next: rs})
	if got := ring.Signer(keyring.RS256); got.ID != es.ID {
		t.Errorf("signed with %s before the key was published long enough", got.Algorithm)
	}
	policy := keyring.DefaultPolicy()
	policy.Beside = true
	slots := ring[keyring.RS256]
	slots.Prepare(rs, start)
	if slots.ShouldActivate(start.Add(policy.PublishBefore-time.Second), policy) || !slots.ShouldActivate(start.Add(policy.PublishBefore), policy) {
		t.Error("the first key of an algorithm is not published as long as any other")
	}
	slots.Activate(start.Add(policy.PublishBefore))
	if got := ring.Signer(keyring.RS256); got.ID != rs.ID {
		t.Errorf("signed with %s when the key is active", got.Algorithm)
	}
	if got := keyring.Ring(nil).Signer(keyring.ES256); got != nil {
		t.Error("no keys at all, and one signs")
	}
}

func TestAnAlgorithmNobodyAsksForHasNoSuccessor(t *testing.T) {
	policy := keyring.DefaultPolicy()
	policy.Beside, policy.Unwanted = true, true
	keys := &keyring.SigningKeys{}
	if keys.ShouldPrepare(start, policy) {
		t.Error("a key is made that nobody asks for")
	}
	keys.Prepare(keyFor(t, keyring.EdDSA), start)
	keys.Activate(start)
	end := start.Add(policy.RotateEvery)
	if keys.ShouldPrepare(end, policy) || keys.ShouldRetire(end.Add(-time.Second), policy) {
		t.Error("it is replaced, or retired early")
	}
	if at, ok := keys.NextChange(policy); !ok || !at.Equal(end) {
		t.Errorf("the next change is at %v (%v), want %v", at, ok, end)
	}
	if !keys.ShouldRetire(end, policy) {
		t.Fatal("it is not retired when it would have been replaced")
	}
	keys.Retire(end)
	keys.Retire(end) // nothing more to retire
	if keys.Current != nil || len(keys.Previous) != 1 {
		t.Fatalf("after retiring: %+v", keys)
	}
	if dropped := keys.Drop(end.Add(policy.KeepAfter), policy); len(dropped) != 1 || len(keys.All()) != 0 {
		t.Errorf("dropped %v, left %v", dropped, keys.All())
	}
	policy.Unwanted = false
	if !keys.ShouldPrepare(end, policy) {
		t.Error("asked for again, it gets no key")
	}
}
