package oauth_test

import (
	"crypto/ecdsa"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	josejwt "github.com/go-jose/go-jose/v4/jwt"
	"github.com/google/go-cmp/cmp"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/keyring"
	"github.com/mintmark-dev/mintmark/internal/oauth"
)

var now = time.Date(2026, 11, 22, 7, 0, 0, 500, time.UTC)

const issuerURL = "https://auth.example.com"

func newKey(t testing.TB) *keyring.SigningKey {
	t.Helper()
	key, err := keyring.NewSigningKey(rand.Reader, keyring.ES256, now)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newIssuer(t testing.TB, keys *keyring.SigningKeys) *oauth.Issuer {
	t.Helper()
	i, err := oauth.NewIssuer(oauth.Config{Issuer: issuerURL, Keys: func() keyring.Ring { return keyring.RingOf(keys) }})
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func principal() *authn.Principal {
	return &authn.Principal{
		Identity: &authn.Identity{UID: "0b1f2c3d", Kind: v1alpha1.KindServiceToken, Namespace: "payments", Name: "ci-deploy", Subject: "servicetoken:payments:ci-deploy"},
		Version:  3,
		Grant: &authn.Grant{
			Class: "default", Permissions: []string{"api:read", "deploy:*"}, Roles: []string{"deployer"},
			JWT: authn.JWT{TTL: 20 * time.Minute, Audiences: []string{"https://a.example", "https://b.example"}, Algorithm: "ES256"},
		},
	}
}

func TestNewIssuer(t *testing.T) {
	keys := func() keyring.Ring { return nil }
	for issuer, ok := range map[string]bool{
		issuerURL: true, "https://auth.example.com:8443/tenant/": true, "http://auth.example.com": false, "": false, "auth.example.com": false,
		"https://auth.example.com?a": false, "https://auth.example.com#a": false, "https://user@auth.example.com": false, "https://": false, "https://a\x00b": false,
	} {
		if _, err := oauth.NewIssuer(oauth.Config{Issuer: issuer, Keys: keys}); (err == nil) != ok {
			t.Errorf("issuer %q: %v", issuer, err)
		}
	}
	if _, err := oauth.NewIssuer(oauth.Config{Issuer: issuerURL}); err == nil {
		t.Error("an issuer without keys")
	}
}

func TestIssueAndVerify(t *testing.T) {
	key := newKey(t)
	i := newIssuer(t, &keyring.SigningKeys{Current: key})
	token, issued, err := i.Issue(principal(), now, oauth.Options{})
	if err != nil {
		t.Fatal(err)
	}
	whole := now.Truncate(time.Second)
	want := oauth.Claims{
		Issuer: issuerURL, Subject: "servicetoken:payments:ci-deploy", ClientID: "servicetoken:payments:ci-deploy",
		Audience: []string{"https://a.example", "https://b.example"}, IssuedAt: whole, NotBefore: whole, Expires: whole.Add(20 * time.Minute),
		AuthTime: whole, ID: issued.ID, Session: issued.ID, Permissions: []string{"api:read", "deploy:*"}, Roles: []string{"deployer"}, CredentialUID: "0b1f2c3d", Version: 3, KeyID: key.ID, Algorithm: keyring.ES256,
	}
	if diff := cmp.Diff(want, issued); diff != "" {
		t.Error(diff)
	}
	verified, err := i.Verify(token, now, oauth.Expect{Audience: "https://b.example"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, verified); diff != "" {
		t.Error(diff)
	}
	if len(issued.ID) != 22 {
		t.Errorf("jti %q", issued.ID)
	}
	if _, again, _ := i.Issue(principal(), now, oauth.Options{}); again.ID == issued.ID {
		t.Error("two tokens of one id")
	}
}

// TestTheTokenOnTheWire holds the token to RFC 9068, as another library reads it
// with nothing but the published JWKS.
func TestTheTokenOnTheWire(t *testing.T) {
	key, old := newKey(t), newKey(t)
	i := newIssuer(t, &keyring.SigningKeys{Current: key, Previous: []*keyring.SigningKey{old}})
	p := principal()
	p.Admin, p.Permissions = true, []string{"*"}
	token, issued, err := i.Issue(p, now, oauth.Options{Audience: []string{"https://b.example", "https://b.example"}, TTL: 5 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	var set jose.JSONWebKeySet
	document, err := json.Marshal(i.KeySet())
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(document, &set); err != nil {
		t.Fatal(err)
	}
	parsed, err := josejwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	if h := parsed.Headers[0]; h.KeyID != key.ID || h.ExtraHeaders[jose.HeaderType] != "at+jwt" {
		t.Errorf("header %+v", h)
	}
	var got map[string]any
	if err := parsed.Claims(set, &got); err != nil {
		t.Fatal(err)
	}
	whole := now.Unix()
	want := map[string]any{
		"iss": issuerURL, "sub": "servicetoken:payments:ci-deploy", "client_id": "servicetoken:payments:ci-deploy", "aud": []any{"https://b.example"},
		"iat": float64(whole), "nbf": float64(whole), "exp": float64(whole + 300), "auth_time": float64(whole), "jti": issued.ID, "scope": "*", "roles": []any{"deployer"},
		"is_admin": true, "mintmark.dev/uid": "0b1f2c3d", "mintmark.dev/version": float64(3),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestIssueLimits(t *testing.T) {
	many := make([]string, 0, 256)
	for n := range 256 {
		many = append(many, fmt.Sprintf("a-rather-long-permission:number-%d", n))
	}
	for sentence, test := range map[string]struct {
		spoil func(*authn.Principal)
		opts  oauth.Options
		ttl   time.Duration
		aud   []string
		err   error
	}{
		"what the credential says holds":                      {ttl: 20 * time.Minute},
		"a credential that does not say gets the default":     {spoil: func(p *authn.Principal) { p.JWT.TTL = 0 }, ttl: oauth.DefaultTTL},
		"a shorter life can be asked for":                     {opts: oauth.Options{TTL: time.Minute}, ttl: time.Minute},
		"a longer one is not given":                           {opts: oauth.Options{TTL: time.Hour}, ttl: 20 * time.Minute},
		"less than a minute is refused":                       {opts: oauth.Options{TTL: 59 * time.Second}, err: oauth.ErrTTL},
		"less than nothing is refused":                        {opts: oauth.Options{TTL: -time.Minute}, err: oauth.ErrTTL},
		"more than an hour is refused":                        {opts: oauth.Options{TTL: time.Hour + 1}, err: oauth.ErrTTL},
		"a sealed life of more than an hour is an hour":       {spoil: func(p *authn.Principal) { p.JWT.TTL = 24 * time.Hour }, ttl: time.Hour},
		"a sealed life of a second is a minute":               {spoil: func(p *authn.Principal) { p.JWT.TTL = time.Second }, ttl: time.Minute},
		"the credential's end cuts it short":                  {spoil: func(p *authn.Principal) { p.Expires = now.Add(10 * time.Second) }, ttl: 10 * time.Second},
		"a later end does not lengthen it":                    {spoil: func(p *authn.Principal) { p.Expires = now.Add(time.Hour) }, ttl: 20 * time.Minute},
		"after its end nothing is issued":                     {spoil: func(p *authn.Principal) { p.Expires = now }, err: oauth.ErrCredentialExpired},
		"one audience can be asked for":                       {opts: oauth.Options{Audience: []string{"https://b.example"}}, ttl: 20 * time.Minute, aud: []string{"https://b.example"}},
		"an audience that is not the credential's is refused": {opts: oauth.Options{Audience: []string{"https://b.example", "https://c.example"}}, err: oauth.ErrAudience},
		"the issuer is no audience where others are named":    {opts: oauth.Options{Audience: []string{issuerURL}}, err: oauth.ErrAudience},
		"without audiences it is for the issuer":              {spoil: func(p *authn.Principal) { p.JWT.Audiences = nil }, ttl: 20 * time.Minute, aud: []string{issuerURL}},
		"without audiences no other can be asked for": {
			spoil: func(p *authn.Principal) { p.JWT.Audiences = nil }, opts: oauth.Options{Audience: []string{"https://a.example"}}, err: oauth.ErrAudience,
		},
		"without permissions and roles there is no scope": {spoil: func(p *authn.Principal) { p.Permissions, p.Roles = nil, nil }, ttl: 20 * time.Minute},
		"what nobody would take is not issued":            {spoil: func(p *authn.Principal) { p.Permissions = many }, err: oauth.ErrTooLong},
	} {
		t.Run(sentence, func(t *testing.T) {
			i := newIssuer(t, &keyring.SigningKeys{Current: newKey(t)})
			p := principal()
			if test.spoil != nil {
				test.spoil(p)
			}
			token, claims, err := i.Issue(p, now, test.opts)
			if !errors.Is(err, test.err) {
				t.Fatalf("%v, want %v", err, test.err)
			}
			if err != nil {
				if token != "" {
					t.Error("an error and a token")
				}
				return
			}
			if got := claims.Expires.Sub(claims.IssuedAt); got != test.ttl {
				t.Errorf("lives %s, want %s", got, test.ttl)
			}
			if diff := cmp.Diff(test.aud, claims.Audience); test.aud != nil && diff != "" {
				t.Error(diff)
			}
			verified, err := i.Verify(token, now, oauth.Expect{})
			if diff := cmp.Diff(claims, verified); err != nil || diff != "" {
				t.Errorf("%v %s", err, diff)
			}
		})
	}
}

func TestIssueNeedsAKeyAndRandomness(t *testing.T) {
	for sentence, keys := range map[string]*keyring.SigningKeys{"no keys": nil, "no current key": {Next: newKey(t)}} {
		if _, _, err := newIssuer(t, keys).Issue(principal(), now, oauth.Options{}); !errors.Is(err, oauth.ErrNoSigningKey) {
			t.Errorf("%s: %v", sentence, err)
		}
	}
	key := newKey(t)
	key.Algorithm = "RS256"
	if _, _, err := newIssuer(t, &keyring.SigningKeys{Current: key}).Issue(principal(), now, oauth.Options{}); err == nil || !strings.Contains(err.Error(), key.ID) {
		t.Errorf("a key of another algorithm: %v", err)
	}
	key.Algorithm = keyring.ES256
	i, err := oauth.NewIssuer(oauth.Config{
		Issuer: issuerURL, Random: strings.NewReader("short"), Keys: func() keyring.Ring { return keyring.RingOf(&keyring.SigningKeys{Current: key}) },
	})
	if err != nil {
		t.Fatal(err)
	}
	if token, _, err := i.Issue(principal(), now, oauth.Options{}); err == nil || token != "" {
		t.Errorf("without randomness: %q %v", token, err)
	}
}

func TestKeySetHoldsEverySlotAndNoPrivateKey(t *testing.T) {
	next, current, previous := newKey(t), newKey(t), newKey(t)
	i := newIssuer(t, &keyring.SigningKeys{Next: next, Current: current, Previous: []*keyring.SigningKey{previous}})
	document, err := json.Marshal(i.KeySet())
	if err != nil {
		t.Fatal(err)
	}
	var set struct{ Keys []map[string]string }
	if err := json.Unmarshal(document, &set); err != nil {
		t.Fatal(err)
	}
	kids := make(map[string]bool)
	for _, key := range set.Keys {
		kids[key["kid"]] = true
		if diff := cmp.Diff([]string{"EC", "P-256", "ES256", "sig"}, []string{key["kty"], key["crv"], key["alg"], key["use"]}); diff != "" {
			t.Error(diff)
		}
		if len(key) != 7 {
			t.Errorf("more than a public key needs: %v", key)
		}
	}
	if !kids[next.ID] || !kids[current.ID] || !kids[previous.ID] || len(kids) != 3 {
		t.Errorf("%v", kids)
	}
	for _, key := range []*keyring.SigningKey{next, current, previous} {
		raw, err := key.Key.(*ecdsa.PrivateKey).Bytes()
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(document), base64.RawURLEncoding.EncodeToString(raw)) {
			t.Error("a private key is published")
		}
	}
	if empty, err := json.Marshal(newIssuer(t, nil).KeySet()); err != nil || string(empty) != `{"keys":[]}` {
		t.Errorf("without keys: %s %v", empty, err)
	}
}

func TestMetadata(t *testing.T) {
	document, err := json.Marshal(newIssuer(t, nil).Metadata())
	if err != nil {
		t.Fatal(err)
	}
	want := `{"issuer":"https://auth.example.com","jwks_uri":"https://auth.example.com/.well-known/jwks.json",` +
		`"response_types_supported":["id_token"],"subject_types_supported":["public"],"id_token_signing_alg_values_supported":["ES256"],` +
		`"claims_supported":["iss","sub","aud","exp","nbf","iat","auth_time","jti","sid","client_id","scope","roles","is_admin","mintmark.dev/uid","mintmark.dev/version"]}`
	if got := string(document); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	if got := oauth.CacheControl(); got != "public, max-age=300" {
		t.Error(got)
	}
	if oauth.JWKSMaxAge >= keyring.DefaultPolicy().PublishBefore {
		t.Error("a key would sign before copies of the JWKS without it have lapsed")
	}
}

func TestAKeyVerifiesInEverySlotAndNotAfterwards(t *testing.T) {
	key, other := newKey(t), newKey(t)
	token, _, err := newIssuer(t, &keyring.SigningKeys{Current: key}).Issue(principal(), now, oauth.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for sentence, test := range map[string]struct {
		keys *keyring.SigningKeys
		want error
	}{
		"next":     {&keyring.SigningKeys{Next: key, Current: other}, nil},
		"current":  {&keyring.SigningKeys{Current: key}, nil},
		"previous": {&keyring.SigningKeys{Current: other, Previous: []*keyring.SigningKey{key}}, nil},
		"dropped":  {&keyring.SigningKeys{Current: other}, oauth.ErrUnknownKey},
		"no keys":  {nil, oauth.ErrUnknownKey},
	} {
		if _, err := newIssuer(t, test.keys).Verify(token, now, oauth.Expect{}); !errors.Is(err, test.want) {
			t.Errorf("%s: %v", sentence, err)
		}
	}
}

func slots(current *keyring.SigningKey) *keyring.SigningKeys {
	return &keyring.SigningKeys{Current: current}
}
