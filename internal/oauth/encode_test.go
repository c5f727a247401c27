package oauth_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mintmark-dev/mintmark/internal/oauth"
)

func TestClaimsComeBackAsTheyWereWritten(t *testing.T) {
	at := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	least := oauth.Claims{
		Issuer: "https://mintmark.example.com", Subject: "servicetoken:payments:ci", ClientID: "servicetoken:payments:ci", Audience: []string{"https://a"},
		IssuedAt: at, NotBefore: at, Expires: at.Add(time.Hour), AuthTime: at, Session: "id", ID: "id", CredentialUID: "uid", Version: 1,
	}
	all := least
	all.Audience, all.Session, all.AuthTime, all.Permissions, all.Roles, all.Admin, all.Version = []string{"https://a", "https://b"}, "first", at.Add(-time.Hour),
		[]string{"api:read", "deploy:*"}, []string{"deployer", "reader"}, true, 1<<53+1
	all.Foreign = &oauth.Foreign{
		TrustedIssuer: "github", Permissions: []string{"api:read"}, Roles: []string{"reader"}, Attributes: map[string]string{"a": "b"}, Email: "a@example.com",
	}
	nasty := all
	nasty.Subject, nasty.ClientID, nasty.Roles = "issuer:\"x\\y\"\n\u2028é</script>", "\x00\x7f", []string{`","is_admin":true,"x":"`, "]"}
	for name, claims := range map[string]oauth.Claims{"the least": least, "all there are": all, "with something to escape": nasty} {
		t.Run(name, func(t *testing.T) {
			text := oauth.EncodeClaims(&claims)
			if !json.Valid(text) {
				t.Fatalf("no JSON: %s", text)
			}
			got, err := oauth.DecodeClaims(text)
			if err != nil {
				t.Fatalf("%v\n%s", err, text)
			}
			if diff := cmp.Diff(claims, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A token that says one thing twice would be read in two ways.
func TestATokenHasEachClaimOnce(t *testing.T) {
	c := oauth.Claims{Subject: `x","sub":"root`, ClientID: "x", Audience: []string{`a"],"aud":["b`}}
	var members map[string]any
	if err := json.Unmarshal(oauth.EncodeClaims(&c), &members); err != nil {
		t.Fatal(err)
	}
	if members["sub"] != c.Subject || members["aud"].([]any)[0] != c.Audience[0] {
		t.Errorf("%v", members)
	}
}
