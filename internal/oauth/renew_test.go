package oauth_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/oauth"
)

func TestARenewedTokenIsTheSameAndLater(t *testing.T) {
	i := issuerOf(t, oauth.Config{})
	token, first := mustIssue(t, i, principal())
	verified, err := i.Verify(token, now, oauth.Expect{})
	if err != nil {
		t.Fatal(err)
	}
	later := now.Add(10 * time.Minute)
	renewed, second, err := i.Renew(principal(), verified, later, oauth.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if second.ID == first.ID || second.Session != first.ID || !second.AuthTime.Equal(first.AuthTime) || !second.Expires.Equal(first.Expires.Add(10*time.Minute)) {
		t.Errorf("renewed %+v from %+v", second, first)
	}
	again, err := i.Verify(renewed, later, oauth.Expect{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(second, again); diff != "" {
		t.Error(diff)
	}
	third, _, err := i.Renew(principal(), again, later.Add(10*time.Minute), oauth.Options{Audience: []string{"https://a.example"}, TTL: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := i.Verify(third, later.Add(10*time.Minute), oauth.Expect{}); err != nil || got.Session != first.ID || !got.AuthTime.Equal(first.AuthTime) {
		t.Errorf("renewed twice: %+v %v", got, err)
	}
}

// Allows needs an index, which a principal made here has none of: wildcards are for the
// server's tests.
func TestARenewedTokenNeverSaysMoreThanTheOldOneNorThanItsCredential(t *testing.T) {
	i := issuerOf(t, oauth.Config{})
	old := func(change func(*oauth.Claims)) oauth.Claims {
		_, c := mustIssue(t, i, principal())
		if change != nil {
			change(&c)
		}
		return c
	}
	who := func(change func(*authn.Principal)) *authn.Principal {
		p := principal()
		if change != nil {
			change(p)
		}
		return p
	}
	for sentence, test := range map[string]struct {
		old  func(*oauth.Claims)
		who  func(*authn.Principal)
		opts oauth.Options
		at   time.Duration
		err  error
		want func(oauth.Claims) bool
	}{
		"fewer permissions in the old one": {
			old: func(c *oauth.Claims) { c.Permissions = []string{"api:read"} }, want: func(c oauth.Claims) bool { return slices.Equal(c.Permissions, []string{"api:read"}) },
		},
		"fewer permissions in the credential": {
			who: func(p *authn.Principal) { p.Permissions = []string{"deploy:write"} }, want: func(c oauth.Claims) bool { return slices.Equal(c.Permissions, []string{"deploy:write"}) },
		},
		"more permissions in the credential": {
			who:  func(p *authn.Principal) { p.Permissions = append(p.Permissions, "admin:all") },
			want: func(c oauth.Claims) bool { return !slices.Contains(c.Permissions, "admin:all") },
		},
		"no permission in common": {
			who: func(p *authn.Principal) { p.Permissions = []string{"x"} }, want: func(c oauth.Claims) bool { return len(c.Permissions) == 0 && c.Scope() == "" },
		},
		"a role the old one had not": {
			old: func(c *oauth.Claims) { c.Roles = nil }, want: func(c oauth.Claims) bool { return len(c.Roles) == 0 },
		},
		"an admin now, and not then": {
			who: func(p *authn.Principal) { p.Admin, p.Permissions = true, []string{"*"} }, want: func(c oauth.Claims) bool { return !c.Admin && !slices.Contains(c.Permissions, "*") },
		},
		"an admin then, and not now": {
			old: func(c *oauth.Claims) { c.Admin, c.Permissions = true, []string{"*"} },
			want: func(c oauth.Claims) bool {
				return !c.Admin && slices.Equal(c.Permissions, []string{"api:read", "deploy:*"})
			},
		},
		"an admin then and now": {
			old: func(c *oauth.Claims) { c.Admin, c.Permissions = true, []string{"*"} }, who: func(p *authn.Principal) { p.Admin, p.Permissions = true, []string{"*"} },
			want: func(c oauth.Claims) bool { return c.Admin && c.Scope() == "*" },
		},
		"fewer audiences in the old one": {
			old:  func(c *oauth.Claims) { c.Audience = []string{"https://b.example"} },
			want: func(c oauth.Claims) bool { return slices.Equal(c.Audience, []string{"https://b.example"}) },
		},
		"an audience the old one had not": {
			old: func(c *oauth.Claims) { c.Audience = []string{"https://b.example"} }, opts: oauth.Options{Audience: []string{"https://a.example"}}, err: oauth.ErrAudience,
		},
		"no audience in common":      {old: func(c *oauth.Claims) { c.Audience = []string{"https://z.example"} }, err: oauth.ErrAudience},
		"a life out of range":        {opts: oauth.Options{TTL: 2 * time.Hour}, err: oauth.ErrTTL},
		"a credential that ends":     {who: func(p *authn.Principal) { p.Expires = now.Add(3 * time.Minute) }, want: func(c oauth.Claims) bool { return c.Expires.Equal(now.Add(3 * time.Minute).Truncate(time.Second)) }},
		"a credential that is over":  {who: func(p *authn.Principal) { p.Expires = now }, err: oauth.ErrCredentialExpired},
		"one that came from a trust": {old: func(c *oauth.Claims) { c.Foreign = &oauth.Foreign{TrustedIssuer: "github"} }, err: oauth.ErrForeign},
		"a day after the exchange":   {at: oauth.MaxRenewal, err: oauth.ErrRenewalOver},
		"nearly a day after it": {at: oauth.MaxRenewal - 5*time.Minute, want: func(c oauth.Claims) bool {
			return c.Expires.Equal(now.Add(oauth.MaxRenewal).Truncate(time.Second))
		}},
		"an exchange in the future": {old: func(c *oauth.Claims) { c.AuthTime = now.Add(time.Hour) }, err: oauth.ErrRenewalOver},
	} {
		t.Run(sentence, func(t *testing.T) {
			token, got, err := i.Renew(who(test.who), old(test.old), now.Add(test.at), test.opts)
			if !errors.Is(err, test.err) || (err != nil) != (token == "") {
				t.Fatalf("%v, want %v", err, test.err)
			}
			if test.want != nil && !test.want(got) {
				t.Errorf("%+v", got)
			}
		})
	}
}

// What servers from before there was renewal issued can be renewed, from when they were
// issued.
func TestATokenWithoutTheNewClaimsIsReadAsTheFirstOfItsChain(t *testing.T) {
	f := forger{t, newKey(t)}
	i := newIssuer(t, slots(f.key))
	claims, err := i.Verify(f.token(f.header(), goodClaims), forgedAt, oauth.Expect{})
	if err != nil || !claims.AuthTime.Equal(claims.IssuedAt) || claims.Session != claims.ID {
		t.Errorf("%+v %v", claims, err)
	}
	for _, bad := range []string{`"1"`, "null", "0", "-1"} {
		if _, err := i.Verify(f.token(f.header(), with("auth_time", bad)), forgedAt, oauth.Expect{}); !errors.Is(err, oauth.ErrMalformed) {
			t.Errorf("auth_time %s: %v", bad, err)
		}
	}
	if _, err := i.Verify(f.token(f.header(), with("sid", `""`)), forgedAt, oauth.Expect{}); !errors.Is(err, oauth.ErrMalformed) {
		t.Errorf("an empty sid: %v", err)
	}
}
