package oauth_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"

	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/credential"
	"github.com/mintmark-dev/mintmark/internal/keyring"
	"github.com/mintmark-dev/mintmark/internal/oauth"
)

func keyFor(t testing.TB, algorithm string) *keyring.SigningKey {
	t.Helper()
	key, err := keyring.NewSigningKey(rand.Reader, algorithm, now)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// fullRing has a key of each kind; RSA keys take long to make, so there is one.
var fullRing = sync.OnceValue(func() keyring.Ring {
	var sets []*keyring.SigningKeys
	for _, algorithm := range keyring.Algorithms() {
		key, err := keyring.NewSigningKey(rand.Reader, algorithm, now)
		if err != nil {
			panic(err)
		}
		sets = append(sets, &keyring.SigningKeys{Current: key})
	}
	return keyring.RingOf(sets...)
})

// secrets are those of two peppers, agreed for the credentials of some UIDs.
type secrets struct {
	peppers credential.Peppers
	agreed  map[string]bool
}

func newSecrets(t testing.TB, agreed ...string) *secrets {
	t.Helper()
	s := &secrets{agreed: map[string]bool{}}
	for _, id := range []string{"p2", "p1"} {
		pepper, err := credential.NewPepper(id, []byte(strings.Repeat(id, credential.PepperLen/2)))
		if err != nil {
			t.Fatal(err)
		}
		s.peppers = append(s.peppers, pepper)
	}
	for _, uid := range agreed {
		s.agreed[uid] = true
	}
	return s
}

func (s *secrets) Current(uid string, version int64) (string, []byte, bool) {
	if len(s.peppers) == 0 {
		return "", nil, false
	}
	return s.peppers[0].ID(), s.peppers[0].JWTSecret(uid, version), true
}

func (s *secrets) Agreed(pepper, uid string, version int64, _ time.Time) ([]byte, bool) {
	p := s.peppers.ByID(pepper)
	if p == nil || !s.agreed[uid] {
		return nil, false
	}
	return p.JWTSecret(uid, version), true
}

func issuerOf(t testing.TB, cfg oauth.Config) *oauth.Issuer {
	t.Helper()
	cfg.Issuer = issuerURL
	if cfg.Keys == nil {
		cfg.Keys = fullRing
	}
	i, err := oauth.NewIssuer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func principalFor(algorithm string) *authn.Principal {
	p := principal()
	p.JWT.Algorithm = algorithm
	return p
}

func mustIssue(t testing.TB, i *oauth.Issuer, p *authn.Principal) (string, oauth.Claims) {
	t.Helper()
	token, claims, err := i.Issue(p, now, oauth.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return token, claims
}

// Each algorithm's tokens verify here, and with two libraries that know no more than the
// JWKS, each of which is told to take that algorithm alone.
func TestATokenOfEachPublicAlgorithmVerifiesHereAndElsewhere(t *testing.T) {
	i := issuerOf(t, oauth.Config{})
	document, err := json.Marshal(i.KeySet())
	if err != nil {
		t.Fatal(err)
	}
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(document, &set); err != nil {
		t.Fatal(err)
	}
	for _, algorithm := range keyring.Algorithms() {
		t.Run(algorithm, func(t *testing.T) {
			token, issued := mustIssue(t, i, principalFor(algorithm))
			if issued.Algorithm != algorithm || issued.KeyID != fullRing()[algorithm].Current.ID {
				t.Errorf("signed with %s and the key %s", issued.Algorithm, issued.KeyID)
			}
			for range 2 { // the second time from memory
				if got, err := i.Verify(token, now, oauth.Expect{}); err != nil || got.ID != issued.ID || got.Algorithm != algorithm {
					t.Errorf("%+v %v", got, err)
				}
			}
			parsed, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.SignatureAlgorithm(algorithm)})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := parsed.Verify(set); err != nil {
				t.Errorf("go-jose: %v", err)
			}
			// golang-jwt, with a key read from the document by its kid.
			_, err = jwt.Parse(token, func(unverified *jwt.Token) (any, error) {
				return set.Key(unverified.Header["kid"].(string))[0].Key, nil
			}, jwt.WithValidMethods([]string{algorithm}), jwt.WithIssuer(issuerURL), jwt.WithAudience("https://b.example"), jwt.WithTimeFunc(func() time.Time { return now }))
			if err != nil {
				t.Errorf("golang-jwt: %v", err)
			}
		})
	}
	for _, key := range set.Keys {
		if !key.IsPublic() || !key.Valid() {
			t.Errorf("the JWKS has a key that is private or not valid: %s", key.KeyID)
		}
	}
	if len(set.Keys) != 3 {
		t.Errorf("%d keys are published", len(set.Keys))
	}
	if got := i.Metadata().IDTokenSigningAlgValuesSupported; strings.Join(got, " ") != "ES256 EdDSA RS256" {
		t.Errorf("the metadata have the algorithms %q", got)
	}
}

func TestAnAlgorithmWithoutAKeyThatSignsFallsBackToTheDefault(t *testing.T) {
	ring := keyring.Ring{keyring.ES256: fullRing()[keyring.ES256], keyring.RS256: {Next: fullRing()[keyring.RS256].Current}}
	i := issuerOf(t, oauth.Config{Keys: func() keyring.Ring { return ring }})
	for _, asked := range []string{keyring.RS256, keyring.EdDSA, "", "ES512"} {
		if _, claims := mustIssue(t, i, principalFor(asked)); claims.Algorithm != keyring.ES256 {
			t.Errorf("%q: signed with %s", asked, claims.Algorithm)
		}
	}
}

// THREATS 16: the kid decides the key, the key decides the algorithm, and the header has
// to agree. Each token is signed properly with one key and says it is for another.
func TestNoKeyCanBeTakenForAnother(t *testing.T) {
	s := newSecrets(t, "0b1f2c3d", "u")
	i := issuerOf(t, oauth.Config{Secrets: s})
	ring := fullRing()
	isolated := s.peppers[0].JWTSecret("u", 1)
	type how struct {
		alg  string
		sign func(signed string) []byte
	}
	digest := func(signed string) []byte { sum := sha256.Sum256([]byte(signed)); return sum[:] }
	mac := func(key []byte) func(string) []byte {
		return func(signed string) []byte {
			m := hmac.New(sha256.New, key)
			m.Write([]byte(signed))
			return m.Sum(nil)
		}
	}
	must := func(signature []byte, err error) []byte {
		if err != nil {
			t.Fatal(err)
		}
		return signature
	}
	ways := map[string]how{
		keyring.ES256: {keyring.ES256, func(signed string) []byte { return forger{t, ring[keyring.ES256].Current}.sign(signed) }},
		keyring.EdDSA: {keyring.EdDSA, func(signed string) []byte {
			return ed25519.Sign(ring[keyring.EdDSA].Current.Key.(ed25519.PrivateKey), []byte(signed))
		}},
		keyring.RS256: {keyring.RS256, func(signed string) []byte {
			return must(rsa.SignPKCS1v15(nil, ring[keyring.RS256].Current.Key.(*rsa.PrivateKey), crypto.SHA256, digest(signed)))
		}},
		"PS256 with the RSA key": {"PS256", func(signed string) []byte {
			return must(rsa.SignPSS(rand.Reader, ring[keyring.RS256].Current.Key.(*rsa.PrivateKey), crypto.SHA256, digest(signed), nil))
		}},
		"HS256 of the credential":       {oauth.HS256, mac(isolated)},
		"HS256 with an empty secret":    {oauth.HS256, mac(nil)},
		"none":                          {"none", func(string) []byte { return []byte{0} }},
		"HS256 of the pepper's own key": {oauth.HS256, mac([]byte(strings.Repeat("p2", 16)))},
	}
	for _, algorithm := range keyring.Algorithms() {
		der, err := x509.MarshalPKIXPublicKey(ring[algorithm].Current.Key.Public())
		if err != nil {
			t.Fatal(err)
		}
		ways["HS256 with the public "+algorithm+" key as PEM"] = how{oauth.HS256, mac(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))}
		ways["HS256 with the public "+algorithm+" key as DER"] = how{oauth.HS256, mac(der)}
	}
	kids := map[string]string{"hs256:p2": "HS256 of the credential", "hs256:p1": "", "hs256:": "", "hs256:p3": "", "HS256:p2": ""}
	for _, algorithm := range keyring.Algorithms() {
		kids[ring[algorithm].Current.ID] = algorithm
	}
	for kid, owner := range kids {
		for name, way := range ways {
			for _, alg := range []string{keyring.ES256, keyring.EdDSA, keyring.RS256, oauth.HS256, "PS256", "none", "Ed25519", "rs256"} {
				signed := b64(fmt.Appendf(nil, `{"alg":%q,"kid":%q,"typ":"at+jwt"}`, alg, kid)) + "." + b64([]byte(goodClaims))
				_, err := i.Verify(signed+"."+b64(way.sign(signed)), forgedAt, oauth.Expect{})
				if good := name == owner && alg == way.alg; (err == nil) != good {
					t.Errorf("kid %s, signed as %s, alg %s: %v", kid, name, alg, err)
				}
			}
		}
	}
}

func TestHS256IsForOneVersionOfOneCredential(t *testing.T) {
	s := newSecrets(t, "0b1f2c3d", "other")
	i := issuerOf(t, oauth.Config{Secrets: s})
	token, claims := mustIssue(t, i, principalFor(oauth.HS256))
	if claims.KeyID != "hs256:p2" || claims.Algorithm != oauth.HS256 {
		t.Errorf("signed with %s, %s", claims.Algorithm, claims.KeyID)
	}
	got, err := i.Verify(token, now, oauth.Expect{Audience: "https://a.example"})
	if err != nil || got.ID != claims.ID {
		t.Fatalf("%+v %v", got, err)
	}
	for _, key := range i.KeySet().Keys {
		if strings.HasPrefix(key.KeyID, "hs256") {
			t.Error("a secret is published")
		}
	}
	// Its holder, who can see the token and not the secret, and a holder of another
	// credential's secret, get nowhere.
	parts := strings.Split(token, ".")
	resign := func(payload string, secret []byte) string {
		m := hmac.New(sha256.New, secret)
		m.Write([]byte(parts[0] + "." + b64([]byte(payload))))
		return parts[0] + "." + b64([]byte(payload)) + "." + b64(m.Sum(nil))
	}
	claimsOf := func(uid string, version int) string {
		return strings.NewReplacer(`"mintmark.dev/uid":"u"`, fmt.Sprintf(`"mintmark.dev/uid":%q`, uid), `"mintmark.dev/version":1`, fmt.Sprintf(`"mintmark.dev/version":%d`, version)).Replace(goodClaims)
	}
	own := s.peppers[0].JWTSecret("0b1f2c3d", 3)
	for sentence, test := range map[string]struct {
		token string
		want  error
	}{
		"its own":                      {resign(claimsOf("0b1f2c3d", 3), own), nil},
		"another credential":           {resign(claimsOf("other", 3), own), oauth.ErrSignature},
		"another version":              {resign(claimsOf("0b1f2c3d", 4), own), oauth.ErrSignature},
		"a credential not agreed on":   {resign(claimsOf("third", 3), s.peppers[0].JWTSecret("third", 3)), oauth.ErrUnknownKey},
		"the secret of another pepper": {resign(claimsOf("0b1f2c3d", 3), s.peppers[1].JWTSecret("0b1f2c3d", 3)), oauth.ErrSignature},
		"no claims at all":             {resign("{}", own), oauth.ErrMalformed},
		"nothing changed and no key":   {token[:len(token)-2] + "AA", oauth.ErrSignature},
	} {
		if _, err := i.Verify(test.token, forgedAt, oauth.Expect{}); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", sentence, err, test.want)
		}
	}
	// After a rotation of the pepper the token's kid still finds its own.
	s.peppers[0], s.peppers[1] = s.peppers[1], s.peppers[0]
	if _, err := i.Verify(token, now, oauth.Expect{}); err != nil {
		t.Errorf("after the pepper was rotated: %v", err)
	}
	if _, claims := mustIssue(t, i, principalFor(oauth.HS256)); claims.KeyID != "hs256:p1" {
		t.Errorf("the new pepper is not signed with: %s", claims.KeyID)
	}
	s.agreed["0b1f2c3d"] = false
	if _, err := i.Verify(token, now, oauth.Expect{}); !errors.Is(err, oauth.ErrUnknownKey) {
		t.Errorf("a credential that has left HS256: %v", err)
	}
	s.peppers = nil
	if _, _, err := i.Issue(principalFor(oauth.HS256), now, oauth.Options{}); !errors.Is(err, oauth.ErrNoSigningKey) {
		t.Errorf("without a pepper: %v", err)
	}
	without := issuerOf(t, oauth.Config{})
	if _, _, err := without.Issue(principalFor(oauth.HS256), now, oauth.Options{}); !errors.Is(err, oauth.ErrNoSigningKey) {
		t.Errorf("without secrets: %v", err)
	}
	if _, err := without.Verify(token, now, oauth.Expect{}); !errors.Is(err, oauth.ErrUnknownKey) {
		t.Errorf("without secrets: %v", err)
	}
}

// A token that was verified before is looked at again in everything but its signature.
func TestWhatWasVerifiedIsCheckedAgainOnEveryUse(t *testing.T) {
	key := keyFor(t, keyring.ES256)
	ring := keyring.RingOf(&keyring.SigningKeys{Current: key})
	denied := map[string]bool{}
	i := issuerOf(t, oauth.Config{Keys: func() keyring.Ring { return ring }, Denied: func(id string) bool { return denied[id] }})
	token, claims := mustIssue(t, i, principal())
	verify := func(at time.Time, expect oauth.Expect) error { _, err := i.Verify(token, at, expect); return err }
	if err := verify(now, oauth.Expect{}); err != nil {
		t.Fatal(err)
	}
	if err := verify(now.Add(time.Hour), oauth.Expect{}); !errors.Is(err, oauth.ErrExpired) {
		t.Errorf("after its end: %v", err)
	}
	if err := verify(now, oauth.Expect{Audience: "https://c.example"}); !errors.Is(err, oauth.ErrWrongAudience) {
		t.Errorf("for another audience: %v", err)
	}
	denied[claims.Session] = true
	if err := verify(now, oauth.Expect{}); !errors.Is(err, oauth.ErrRevoked) {
		t.Errorf("revoked: %v", err)
	}
	denied[claims.Session] = false
	if _, err := i.Verify(token[:len(token)-4]+"AAAA", now, oauth.Expect{}); err == nil {
		t.Error("another signature over the same claims is taken from memory")
	}
	ring = keyring.RingOf(&keyring.SigningKeys{Current: keyFor(t, keyring.ES256)})
	if err := verify(now, oauth.Expect{}); !errors.Is(err, oauth.ErrUnknownKey) {
		t.Errorf("its key is gone: %v", err)
	}
	ring = nil
	if err := verify(now, oauth.Expect{}); !errors.Is(err, oauth.ErrUnknownKey) {
		t.Errorf("all keys are gone: %v", err)
	}
}

// More tokens than are remembered, several at once.
func TestMemoryOfTokensIsBoundedAndShared(t *testing.T) {
	i := issuerOf(t, oauth.Config{Secrets: newSecrets(t)})
	tokens := make([]string, 64)
	for n := range tokens {
		tokens[n], _ = mustIssue(t, i, principalFor(keyring.EdDSA))
	}
	var wait sync.WaitGroup
	for worker := range 4 {
		wait.Go(func() {
			for n := range 500 {
				if _, err := i.Verify(tokens[(n*7+worker)%len(tokens)], now, oauth.Expect{}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wait.Wait()
}

func FuzzHeader(f *testing.F) {
	s := newSecrets(f, "u")
	i := issuerOf(f, oauth.Config{Secrets: s})
	key := fullRing()[keyring.ES256].Current
	forge := forger{f, key}
	for _, seed := range []string{
		forge.header(), `{"alg":"HS256","kid":"hs256:p2","typ":"at+jwt"}`, `{"alg":"none","kid":"","typ":"at+jwt"}`, `{}`, `[]`, `{"kid":null}`,
		`{"alg":"RS256","kid":"hs256:","typ":"at+jwt","crit":["b64"]}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, header string) {
		token := forge.token(header, goodClaims)
		claims, err := i.Verify(token, forgedAt, oauth.Expect{})
		if err != nil {
			if invalid := (*oauth.InvalidError)(nil); !errors.As(err, &invalid) {
				t.Errorf("%q: %v is no InvalidError", header, err)
			}
			return
		}
		var said struct{ Alg, Kid, Typ string }
		if json.Unmarshal([]byte(header), &said) != nil || said.Alg != keyring.ES256 || said.Kid != key.ID || said.Typ != "at+jwt" || claims.KeyID != key.ID {
			t.Errorf("%q was accepted", header)
		}
	})
}

// floorSign is the bare signature of each algorithm, floorVerify the bare check of it.
func floors(b *testing.B, algorithm string) (sign func(), verify func()) {
	message := []byte(strings.Repeat("x", 500))
	hash := sha256.Sum256(message)
	switch key := fullRing()[algorithm].Current.Key.(type) {
	case *ecdsa.PrivateKey:
		signature, _ := ecdsa.SignASN1(rand.Reader, key, hash[:])
		return func() { _, _ = ecdsa.SignASN1(rand.Reader, key, hash[:]) }, func() { ecdsa.VerifyASN1(&key.PublicKey, hash[:], signature) }
	case ed25519.PrivateKey:
		signature := ed25519.Sign(key, message)
		return func() { ed25519.Sign(key, message) }, func() { ed25519.Verify(key.Public().(ed25519.PublicKey), message, signature) }
	case *rsa.PrivateKey:
		signature, _ := rsa.SignPKCS1v15(nil, key, crypto.SHA256, hash[:])
		return func() { _, _ = rsa.SignPKCS1v15(nil, key, crypto.SHA256, hash[:]) },
			func() { _ = rsa.VerifyPKCS1v15(&key.PublicKey, crypto.SHA256, hash[:], signature) }
	}
	b.Fatal(algorithm)
	return nil, nil
}

// BenchmarkIssue stands beside the bare signature.
func BenchmarkIssue(b *testing.B) {
	i := issuerOf(b, oauth.Config{Secrets: newSecrets(b)})
	for _, algorithm := range append(keyring.Algorithms(), oauth.HS256) {
		if algorithm != oauth.HS256 {
			b.Run(algorithm+"/floor", func(b *testing.B) {
				sign, _ := floors(b, algorithm)
				for b.Loop() {
					sign()
				}
			})
		}
		b.Run(algorithm+"/token", func(b *testing.B) {
			p := principalFor(algorithm)
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := i.Issue(p, now, oauth.Options{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkVerify stands beside the bare check of the signature: once for tokens never
// seen before, once for the same one again.
func BenchmarkVerify(b *testing.B) {
	for _, algorithm := range append(keyring.Algorithms(), oauth.HS256) {
		i := issuerOf(b, oauth.Config{Secrets: newSecrets(b, "0b1f2c3d")})
		token, _ := mustIssue(b, i, principalFor(algorithm))
		if algorithm != oauth.HS256 {
			b.Run(algorithm+"/floor", func(b *testing.B) {
				_, verify := floors(b, algorithm)
				for b.Loop() {
					verify()
				}
			})
		}
		b.Run(algorithm+"/new", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				i.Forget()
				if _, err := i.Verify(token, now, oauth.Expect{}); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(algorithm+"/again", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := i.Verify(token, now, oauth.Expect{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
