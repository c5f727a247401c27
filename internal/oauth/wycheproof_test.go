package oauth_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/mintmark-dev/mintmark/internal/keyring"
	"github.com/mintmark-dev/mintmark/internal/oauth"
)

// vectors reads a file of Wycheproof's from the module cache, where the Go command puts
// it and checks it against the go.sum in testdata.
func vectors(t *testing.T, name string, into any) {
	t.Helper()
	dir, err := wycheproof()
	if err != nil {
		t.Fatalf("fetching the module in testdata/wycheproof: %v", err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "testvectors", name))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, into); err != nil {
		t.Fatal(err)
	}
}

var wycheproof = sync.OnceValues(func() (string, error) {
	cmd := exec.Command("go", "mod", "download", "-json", "github.com/google/wycheproof")
	cmd.Dir = filepath.Join("testdata", "wycheproof")
	cmd.Env = append(os.Environ(), "GOFLAGS=", "GOWORK=off")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return "", err
	}
	var module struct{ Dir string }
	return module.Dir, json.Unmarshal(out, &module)
})

// verifierOnly is a key of which only the public half is known.
type verifierOnly struct {
	crypto.Signer
	public crypto.PublicKey
}

func (v verifierOnly) Public() crypto.PublicKey { return v.public }

// TestWycheproof has each signature of the suite judged as one of a token would be: ECDSA
// on P-256 in the form that JWS has it, Ed25519, and RSA with 2048 bits.
func TestWycheproof(t *testing.T) {
	for algorithm, suite := range map[string]struct {
		file string
		// read the public key of a group; nil: none that we would take.
		key func(t *testing.T, group testGroup) crypto.PublicKey
	}{
		keyring.ES256: {"ecdsa_secp256r1_sha256_p1363_test.json", func(t *testing.T, g testGroup) crypto.PublicKey {
			key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), unhex(t, g.Key.Uncompressed))
			if err != nil {
				t.Fatal(err)
			}
			return key
		}},
		keyring.EdDSA: {"eddsa_test.json", func(t *testing.T, g testGroup) crypto.PublicKey { return ed25519.PublicKey(unhex(t, g.Key.PK)) }},
		keyring.RS256: {"rsa_signature_2048_sha256_test.json", func(t *testing.T, g testGroup) crypto.PublicKey {
			key, err := x509.ParsePKIXPublicKey(unhex(t, g.KeyDER))
			if err != nil {
				t.Fatal(err)
			}
			return key
		}},
	} {
		t.Run(algorithm, func(t *testing.T) {
			var file struct {
				NumberOfTests int
				TestGroups    []testGroup
			}
			vectors(t, suite.file, &file)
			ran := 0
			for _, group := range file.TestGroups {
				public := suite.key(t, group)
				kid := keyring.Thumbprint(public)
				ring := keyring.RingOf(&keyring.SigningKeys{Current: &keyring.SigningKey{ID: kid, Algorithm: algorithm, Key: verifierOnly{public: public}}})
				i := issuerOf(t, oauth.Config{Keys: func() keyring.Ring { return ring }})
				for _, test := range group.Tests {
					err := i.CheckSignature(algorithm, kid, string(unhex(t, test.Msg)), unhex(t, test.Sig))
					switch {
					case test.Result == "valid" && err != nil:
						t.Errorf("%d, %s: %v", test.TCID, test.Comment, err)
					case test.Result == "invalid" && err == nil:
						t.Errorf("%d, %s: accepted", test.TCID, test.Comment)
					}
					ran++
				}
			}
			if ran == 0 || ran != file.NumberOfTests {
				t.Errorf("%d vectors were run of %d", ran, file.NumberOfTests)
			}
			t.Logf("%d vectors", ran)
		})
	}
}

type testGroup struct {
	Key    struct{ Uncompressed, PK string }
	KeyDER string
	Tests  []struct {
		TCID              int
		Comment, Msg, Sig string
		Result            string
	}
}

func unhex(t *testing.T, text string) []byte {
	t.Helper()
	out, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
