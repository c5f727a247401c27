package oauth_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/mintmark-dev/mintmark/internal/keyring"
	"github.com/mintmark-dev/mintmark/internal/oauth"
)

// Whoever sends tokens that were never signed takes turns from nobody but others whose
// signature has not been checked either.
func TestWhoSendsForgedTokensHoldsUpNobodyElse(t *testing.T) {
	key := newKey(t)
	i := newIssuer(t, &keyring.SigningKeys{Current: key})
	seen, _ := mustIssue(t, i, principal())
	if _, err := i.Verify(seen, now, oauth.Expect{}); err != nil {
		t.Fatal(err)
	}
	fresh, _ := mustIssue(t, i, principal())
	foreign, _ := mustIssue(t, newIssuer(t, &keyring.SigningKeys{Current: newKey(t)}), principal())
	free := i.Occupy()
	if _, err := i.Verify(seen, now, oauth.Expect{}); err != nil {
		t.Errorf("a token seen before: %v", err)
	}
	for name, c := range map[string]struct {
		token string
		want  error
	}{
		"a token that was not seen before": {fresh, oauth.ErrBusy},
		"one of a key that is not ours":    {foreign, oauth.ErrUnknownKey},
		"what is no token":                 {"a.b.c", oauth.ErrMalformed},
	} {
		if _, err := i.Verify(c.token, now, oauth.Expect{}); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	free()
	if _, err := i.Verify(fresh, now, oauth.Expect{}); err != nil {
		t.Errorf("once there is a turn again: %v", err)
	}
}

func TestATokenWaitsForItsTurn(t *testing.T) {
	i := newIssuer(t, &keyring.SigningKeys{Current: newKey(t)})
	token, _ := mustIssue(t, i, principal())
	free := i.Occupy()
	var verified error
	var waiting sync.WaitGroup
	waiting.Go(func() { _, verified = i.Verify(token, now, oauth.Expect{}) })
	free()
	waiting.Wait()
	if verified != nil {
		t.Error(verified)
	}
	// Every turn has been given back.
	i.Occupy()()
}

// What is remembered of a token is that all of it was signed, however long it is.
func TestATokenSeenBeforeIsNotAnotherThatBeginsLikeIt(t *testing.T) {
	for name, permissions := range map[string]int{"a short token": 1, "a long token": 200} {
		t.Run(name, func(t *testing.T) {
			i, p := newIssuer(t, &keyring.SigningKeys{Current: newKey(t)}), principal()
			p.Permissions = nil
			for n := range permissions {
				p.Permissions = append(p.Permissions, fmt.Sprintf("resource-%03d:write", n))
			}
			token, _ := mustIssue(t, i, p)
			if _, err := i.Verify(token, now, oauth.Expect{}); err != nil {
				t.Fatal(err)
			}
			at := len(token) - 40 // within the signature
			other := "A"
			if token[at] == 'A' {
				other = "B"
			}
			if _, err := i.Verify(token[:at]+other+token[at+1:], now, oauth.Expect{}); !errors.Is(err, oauth.ErrSignature) {
				t.Errorf("with another signature: %v, want %v", err, oauth.ErrSignature)
			}
		})
	}
}
