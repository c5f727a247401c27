package credential

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// vectors are known answers, computed by other means than this package (see
// their comment). That they hold is what keeps values, digests and seals that
// were made by one version readable to the next.
type vectors struct {
	PepperID string
	Pepper   string
	Tokens   []tokenVector
	Records  []recordVector
}

type tokenVector struct {
	Value       string
	Kind        v1alpha1.Kind
	Environment string
	Checksum    bool
	Prefix      string
	Inner       string
	Digest      string
}

type recordVector struct{ Name, Record, Seal string }

func readVectors(t testing.TB) vectors {
	t.Helper()
	data, err := os.ReadFile("testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var v vectors
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	if len(v.Tokens) == 0 || len(v.Records) == 0 {
		t.Fatal("testdata/vectors.json holds no vectors")
	}
	return v
}

func (v vectors) pepper(t testing.TB) *Pepper {
	t.Helper()
	p, err := NewPepper(v.PepperID, unhex(t, v.Pepper))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestTokenVectors(t *testing.T) {
	v := readVectors(t)
	pepper := v.pepper(t)
	for _, vector := range v.Tokens {
		t.Run(vector.Value, func(t *testing.T) {
			token, err := Parse(vector.Value)
			if err != nil {
				t.Fatal(err)
			}
			inner := token.Inner()
			digest := pepper.Digest(inner)
			for what, pair := range map[string][2]string{
				"value":  {token.Reveal(), vector.Value},
				"prefix": {token.Prefix(), vector.Prefix},
				"inner":  {hex.EncodeToString(inner[:]), vector.Inner},
				"digest": {digest.String(), vector.Digest},
			} {
				if pair[0] != pair[1] {
					t.Errorf("%s is %s, want %s", what, pair[0], pair[1])
				}
			}
			if token.Kind() != vector.Kind || token.External() != (vector.Kind == "") {
				t.Errorf("kind %q, External() %v; want kind %q", token.Kind(), token.External(), vector.Kind)
			}
			if parsed, err := ParseInner(vector.Inner); err != nil || parsed != inner {
				t.Errorf("ParseInner: %v, %v", parsed, err)
			}
			if parsed, err := ParseDigest(vector.Digest); err != nil || parsed != digest {
				t.Errorf("ParseDigest: %v, %v", parsed, err)
			}
		})
	}
}

// The service tokens among the vectors were made of the bytes 0 to 31.
func TestMintVectors(t *testing.T) {
	for _, vector := range readVectors(t).Tokens {
		var random []byte
		switch {
		case vector.Kind == v1alpha1.KindServiceToken:
			random = counting(secretBytes)
		case vector.Prefix == "mk000000":
			random = make([]byte, 256)
		default:
			continue
		}
		token, err := Format{vector.Kind, vector.Environment, vector.Checksum}.Mint(bytes.NewReader(random))
		if err != nil {
			t.Fatal(err)
		}
		if token.Reveal() != vector.Value || token.Prefix() != vector.Prefix {
			t.Errorf("minted %s (%s), want %s (%s)", token.Reveal(), token.Prefix(), vector.Value, vector.Prefix)
		}
	}
}

func counting(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i)
	}
	return b
}

func TestRecordVectors(t *testing.T) {
	v := readVectors(t)
	pepper := v.pepper(t)
	records := map[string]Record{
		"everything": {
			UID: "0b1c2d3e-0000-4000-8000-000000000001", Kind: v1alpha1.KindServiceToken, Namespace: "payments", Name: "ci-deploy",
			Epoch: 7, Class: "production", Labels: map[string]string{"team": "payments", "a": "1"},
			Permissions: []string{"api:read", "deploy:*"}, Roles: []string{"deployer"}, Attributes: map[string]string{"department": "payments"},
			CIDRs: []string{"10.0.0.0/8"}, Rate: &RecordRate{Requests: 100, PerMillis: 1000, Burst: 200},
			JWT: RecordJWT{TTLSeconds: 900, Audiences: []string{"https://api.example.com"}, Algorithm: "ES256"},
			Versions: []SealedVersion{
				{
					Number: 2, Digest: unhex(t, v.Tokens[0].Digest), Pepper: "p1", Prefix: "sk_0001", State: v1alpha1.VersionSuperseded,
					Created: 1760000000, Superseded: 1767776000, Expires: 1775552000,
				},
				{
					Number: 3, Digest: unhex(t, v.Tokens[2].Digest), Pepper: "p1", Prefix: "sk_live_0001", State: v1alpha1.VersionActive,
					Created: 1767776000,
				},
			},
			RevokedThrough: 1, RevokedVersions: []int64{1}, RevokedSpec: "mNTGEyVBOSbAbCdE", Settled: []string{"0b1c2d3e-0000-4000-8000-000000000009"},
		},
		"nothing but who it is": {
			UID: "0b1c2d3e-0000-4000-8000-000000000002", Kind: v1alpha1.KindAPIKey, Namespace: "default", Name: "k", Epoch: 1, Class: "default",
		},
	}
	for _, vector := range v.Records {
		t.Run(vector.Name, func(t *testing.T) {
			want, ok := records[vector.Name]
			if !ok {
				t.Fatal("a vector this test does not know")
			}
			got, err := OpenRecord(Peppers{pepper}, unhex(t, vector.Record), vector.Seal)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(&want, got); diff != "" {
				t.Errorf("opened (-want +got):\n%s", diff)
			}
			record, seal, err := want.Seal(pepper)
			if err != nil {
				t.Fatal(err)
			}
			if hex.EncodeToString(record) != vector.Record || seal != vector.Seal {
				t.Errorf("sealed\n%x %s, want\n%s %s", record, seal, vector.Record, vector.Seal)
			}
		})
	}
}

func TestRevokedDigestVectors(t *testing.T) {
	// printf 'leaked' | openssl dgst -sha256 -binary | head -c 12 | basenc --base64url, and so on.
	for _, c := range []struct {
		name string
		in   *v1alpha1.Revoked
		want string
	}{
		{"nothing is revoked", nil, ""},
		{"single versions are no revocation of the whole", &v1alpha1.Revoked{Versions: []int64{1}, Reason: "leaked"}, ""},
		{"the whole credential", &v1alpha1.Revoked{Reason: "leaked"}, revokedLeaked},
		{"again, for the same reason", &v1alpha1.Revoked{Reason: "leaked", RequestedAt: microTime("2026-11-22T07:00:00.5Z")}, revokedAgain},
		{"in another zone the moment is the same", &v1alpha1.Revoked{Reason: "leaked", RequestedAt: microTime("2026-11-22T08:00:00.5+01:00")}, revokedAgain},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := RevokedDigest(c.in); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}
