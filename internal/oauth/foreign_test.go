package oauth_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mintmark-dev/mintmark/internal/oauth"
)

func TestATokenSaysOfItsForeignHolderWhatItWasTold(t *testing.T) {
	i := newIssuer(t, slots(newKey(t)))
	foreign := &oauth.Foreign{
		TrustedIssuer: "github", Permissions: []string{"api:read"}, Roles: []string{"deployer"},
		Attributes: map[string]string{"team": "payments"}, Email: "ann@example.com",
	}
	token, _, err := i.Issue(principal(), now, oauth.Options{Foreign: foreign})
	if err != nil {
		t.Fatal(err)
	}
	// Read twice: from the token, and from what is remembered of it.
	for range 2 {
		claims, err := i.Verify(token, now, oauth.Expect{})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(foreign, claims.Foreign); diff != "" {
			t.Errorf("what it says differs (-want +got):\n%s", diff)
		}
		if _, _, err := i.Renew(principal(), claims, now.Add(time.Minute), oauth.Options{}); !errors.Is(err, oauth.ErrForeign) {
			t.Errorf("renewing it: %v", err)
		}
	}
	token, _, err = i.Issue(principal(), now, oauth.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if claims, err := i.Verify(token, now, oauth.Expect{}); err != nil || claims.Foreign != nil {
		t.Errorf("of a credential's: %+v, %v", claims.Foreign, err)
	}
}

// A token that says it is foreign and does not say whose must not pass as a credential's.
func TestAForeignClaimOfAnotherFormIsNotIgnored(t *testing.T) {
	key := newKey(t)
	i, f := newIssuer(t, slots(key)), forger{key: key}
	for name, value := range map[string]string{
		"null": `null`, "a string": `"github"`, "a list": `[]`, "empty": `{}`, "no issuer": `{"email":"a@b"}`, "an empty issuer": `{"issuer":""}`,
		"an unknown member": `{"issuer":"github","admin":true}`, "a member twice": `{"issuer":"github","issuer":"github"}`,
		"a member in another case": `{"issuer":"github","Roles":["a"]}`, "roles of another type": `{"issuer":"github","roles":"a"}`,
		"attributes of another type": `{"issuer":"github","attributes":{"a":1}}`,
	} {
		token := f.token(f.header(), strings.Replace(with("", ""), "{", `{"mintmark.dev/foreign":`+value+`,`, 1))
		if _, err := i.Verify(token, forgedAt, oauth.Expect{}); !errors.Is(err, oauth.ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	token := f.token(f.header(), strings.Replace(with("", ""), "{", `{"mintmark.dev/foreign":{"issuer":"github"},`, 1))
	if claims, err := i.Verify(token, forgedAt, oauth.Expect{}); err != nil || claims.Foreign == nil {
		t.Errorf("a good one: %v", err)
	}
}
