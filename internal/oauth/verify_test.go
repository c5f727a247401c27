package oauth_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/mintmark-dev/mintmark/internal/keyring"
	"github.com/mintmark-dev/mintmark/internal/oauth"
)

func b64(data []byte) string { return base64.RawURLEncoding.EncodeToString(data) }

// forger signs whatever it is told with the key that the issuer trusts.
type forger struct {
	t   testing.TB
	key *keyring.SigningKey
}

func (f forger) private() *ecdsa.PrivateKey { return f.key.Key.(*ecdsa.PrivateKey) }

func (f forger) header() string {
	return fmt.Sprintf(`{"alg":"ES256","kid":%q,"typ":"at+jwt"}`, f.key.ID)
}

const goodClaims = `{"aud":["https://a.example"],"client_id":"c","exp":1795332900,"iat":1795332000,"is_admin":false,"iss":"https://auth.example.com",` +
	`"jti":"j","mintmark.dev/uid":"u","mintmark.dev/version":1,"nbf":1795332000,"roles":["r"],"scope":"api:read deploy:*","sub":"s"}`

var forgedAt = time.Unix(1795332000, 0)

func (f forger) sign(signed string) []byte {
	hash := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, f.private(), hash[:])
	if err != nil {
		f.t.Fatal(err)
	}
	return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
}

func (f forger) token(header, payload string) string {
	signed := b64([]byte(header)) + "." + b64([]byte(payload))
	return signed + "." + b64(f.sign(signed))
}

// with replaces a claim, or adds one; an empty value takes it away.
func with(claim, value string) string {
	var claims map[string]json.RawMessage
	if err := json.Unmarshal([]byte(goodClaims), &claims); err != nil {
		panic(err)
	}
	claims[claim] = json.RawMessage(value)
	if value == "" {
		delete(claims, claim)
	}
	out, err := json.Marshal(claims)
	if err != nil {
		panic(err)
	}
	return string(out)
}

// TestForgedTokens is THREATS 16, as far as it is about tokens of our own. Each
// forgery is signed with the right key unless it is about the signature.
func TestForgedTokens(t *testing.T) {
	f := forger{t, newKey(t)}
	i := newIssuer(t, &keyring.SigningKeys{Current: f.key})
	good := f.token(f.header(), goodClaims)
	if _, err := i.Verify(good, forgedAt, oauth.Expect{}); err != nil {
		t.Fatalf("the token the forgeries are made from: %v", err)
	}
	signed, signature := good[:strings.LastIndexByte(good, '.')], good[strings.LastIndexByte(good, '.')+1:]
	order := elliptic.P256().Params().N
	withRS := func(r, s *big.Int) string {
		return signed + "." + b64(append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...))
	}
	zero := big.NewInt(0)
	header := func(format string, args ...any) string { return f.token(fmt.Sprintf(format, args...), goodClaims) }
	kid := f.key.ID

	forgeries := map[string]struct {
		token string
		want  error
	}{
		"nothing":                        {"", oauth.ErrMalformed},
		"two dots":                       {"..", oauth.ErrMalformed},
		"one segment":                    {b64([]byte(f.header())), oauth.ErrMalformed},
		"no signature segment":           {signed, oauth.ErrMalformed},
		"an empty signature":             {signed + ".", oauth.ErrMalformed},
		"a trailing dot":                 {good + ".", oauth.ErrMalformed},
		"a fourth segment":               {good + ".AAAA", oauth.ErrMalformed},
		"five segments, as a JWE has":    {good + ".AAAA.AAAA", oauth.ErrMalformed},
		"millions of segments":           {strings.Repeat(".", 4<<20), oauth.ErrMalformed},
		"thousands of segments":          {strings.Repeat(".", 8000), oauth.ErrMalformed},
		"padding":                        {signed + "." + signature + "==", oauth.ErrMalformed},
		"a line end":                     {signed + "." + signature + "\n", oauth.ErrMalformed},
		"a line end within":              {signed + ".\r\n" + signature, oauth.ErrMalformed},
		"a space before":                 {" " + good, oauth.ErrMalformed},
		"NUL after":                      {good + "\x00", oauth.ErrMalformed},
		"the standard alphabet":          {signed + "." + strings.Repeat("+", 86), oauth.ErrMalformed},
		"bits beyond the last byte":      {signed + "." + signature[:85] + nextChar(signature[85]), oauth.ErrMalformed},
		"more than the limit":            {f.token(f.header(), with("pad", `"`+strings.Repeat("x", oauth.MaxTokenLen)+`"`)), oauth.ErrMalformed},
		"the JSON serialisation":         {`{"payload":"` + b64([]byte(goodClaims)) + `","signatures":[]}`, oauth.ErrMalformed},
		"a header that is no object":     {f.token(`["ES256"]`, goodClaims), oauth.ErrMalformed},
		"a header with something after":  {f.token(f.header()+"{}", goodClaims), oauth.ErrMalformed},
		"a header cut off":               {f.token(strings.TrimSuffix(f.header(), "}"), goodClaims), oauth.ErrMalformed},
		"a header that is no UTF-8":      {f.token("{\"alg\":\"ES256\",\"kid\":\"\xff\",\"typ\":\"at+jwt\"}", goodClaims), oauth.ErrMalformed},
		"a payload that is no object":    {f.token(f.header(), `"claims"`), oauth.ErrMalformed},
		"a payload nested without end":   {f.token(f.header(), with("x", strings.Repeat("[", 2000)+strings.Repeat("]", 2000))), nil},
		"a payload with something after": {f.token(f.header(), goodClaims+"1"), oauth.ErrMalformed},

		"alg none, unsigned":          {b64([]byte(fmt.Sprintf(`{"alg":"none","kid":%q,"typ":"at+jwt"}`, kid))) + "." + b64([]byte(goodClaims)) + ".", oauth.ErrMalformed},
		"alg none":                    {header(`{"alg":"none","kid":%q,"typ":"at+jwt"}`, kid), oauth.ErrAlgorithm},
		"alg nOnE":                    {header(`{"alg":"nOnE","kid":%q,"typ":"at+jwt"}`, kid), oauth.ErrAlgorithm},
		"alg es256":                   {header(`{"alg":"es256","kid":%q,"typ":"at+jwt"}`, kid), oauth.ErrAlgorithm},
		"alg ES384":                   {header(`{"alg":"ES384","kid":%q,"typ":"at+jwt"}`, kid), oauth.ErrAlgorithm},
		"alg HS256":                   {hs256(f), oauth.ErrAlgorithm},
		"no alg":                      {header(`{"kid":%q,"typ":"at+jwt"}`, kid), oauth.ErrAlgorithm},
		"alg that is no string":       {header(`{"alg":["ES256"],"kid":%q,"typ":"at+jwt"}`, kid), oauth.ErrMalformed},
		"alg null":                    {header(`{"alg":null,"kid":%q,"typ":"at+jwt"}`, kid), oauth.ErrMalformed},
		"alg twice":                   {header(`{"alg":"none","alg":"ES256","kid":%q,"typ":"at+jwt"}`, kid), oauth.ErrMalformed},
		"alg twice, once escaped":     {header(`{"\u0061lg":"none","alg":"ES256","kid":%q,"typ":"at+jwt"}`, kid), oauth.ErrMalformed},
		"alg twice, once in capitals": {header(`{"alg":"ES256","ALG":"none","kid":%q,"typ":"at+jwt"}`, kid), oauth.ErrMalformed},
		"an embedded jwk":             {header(`{"alg":"ES256","kid":%q,"typ":"at+jwt","jwk":{"kty":"EC"}}`, kid), oauth.ErrMalformed},
		"jku":                         {header(`{"alg":"ES256","kid":%q,"typ":"at+jwt","jku":"https://evil.example"}`, kid), oauth.ErrMalformed},
		"x5u":                         {header(`{"alg":"ES256","kid":%q,"typ":"at+jwt","x5u":"https://evil.example"}`, kid), oauth.ErrMalformed},
		"x5c":                         {header(`{"alg":"ES256","kid":%q,"typ":"at+jwt","x5c":["MII"]}`, kid), oauth.ErrMalformed},
		"an unknown crit":             {header(`{"alg":"ES256","kid":%q,"typ":"at+jwt","crit":["exp"],"exp":1}`, kid), oauth.ErrMalformed},
		"an empty crit":               {header(`{"alg":"ES256","kid":%q,"typ":"at+jwt","crit":[]}`, kid), oauth.ErrMalformed},
		"b64 false":                   {header(`{"alg":"ES256","kid":%q,"typ":"at+jwt","b64":false}`, kid), oauth.ErrMalformed},
		"zip":                         {header(`{"alg":"ES256","kid":%q,"typ":"at+jwt","zip":"DEF"}`, kid), oauth.ErrMalformed},
		"no kid":                      {header(`{"alg":"ES256","typ":"at+jwt"}`), oauth.ErrUnknownKey},
		"another kid":                 {header(`{"alg":"ES256","kid":"x","typ":"at+jwt"}`), oauth.ErrUnknownKey},
		"kid as a path":               {header(`{"alg":"ES256","kid":"../../%s","typ":"at+jwt"}`, kid), oauth.ErrUnknownKey},
		"kid with NUL":                {header(`{"alg":"ES256","kid":"%s\u0000","typ":"at+jwt"}`, kid), oauth.ErrUnknownKey},
		"kid of a megabyte":           {header(`{"alg":"ES256","kid":%q,"typ":"at+jwt"}`, strings.Repeat("k", 1<<20)), oauth.ErrMalformed},
		"kid in other letters":        {header(`{"alg":"ES256","kid":%q,"typ":"at+jwt"}`, swapCase(kid)), oauth.ErrUnknownKey},
		"no typ":                      {header(`{"alg":"ES256","kid":%q}`, kid), oauth.ErrType},
		"an ID token's typ":           {header(`{"alg":"ES256","kid":%q,"typ":"JWT"}`, kid), oauth.ErrType},

		"another key's signature": {forger{t, newKey(t)}.token(f.header(), goodClaims), oauth.ErrSignature},
		"a changed payload":       {b64([]byte(f.header())) + "." + b64([]byte(with("is_admin", "true"))) + "." + signature, oauth.ErrSignature},
		"a signature of 63 bytes": {signed + "." + b64(f.sign(signed)[:63]), oauth.ErrSignature},
		"a signature of 65 bytes": {signed + "." + b64(append(f.sign(signed), 0)), oauth.ErrSignature},
		"a signature in DER":      {signed + "." + b64(der(f, signed)), oauth.ErrSignature},
		"r and s zero":            {withRS(zero, zero), oauth.ErrSignature},
		"r and s the order":       {withRS(order, order), oauth.ErrSignature},
		"r zero, s one":           {withRS(zero, big.NewInt(1)), oauth.ErrSignature},
		"r one, s zero":           {withRS(big.NewInt(1), zero), oauth.ErrSignature},
		"r and s the greatest":    {signed + "." + b64([]byte(strings.Repeat("\xff", 64))), oauth.ErrSignature},

		"another issuer":                     {f.token(f.header(), with("iss", `"https://evil.example"`)), oauth.ErrWrongIssuer},
		"the issuer and a slash":             {f.token(f.header(), with("iss", `"https://auth.example.com/"`)), oauth.ErrWrongIssuer},
		"the issuer in a list":               {f.token(f.header(), with("iss", `["https://auth.example.com"]`)), oauth.ErrMalformed},
		"a claim twice":                      {f.token(f.header(), strings.Replace(goodClaims, `"exp"`, `"exp":9795332900,"exp"`, 1)), oauth.ErrMalformed},
		"a claim twice, once escaped":        {f.token(f.header(), strings.Replace(goodClaims, `"exp"`, `"\u0065xp":9795332900,"exp"`, 1)), oauth.ErrMalformed},
		"exp of 2^63":                        {f.token(f.header(), with("exp", "9223372036854775808")), oauth.ErrMalformed},
		"exp of 2^63-1":                      {f.token(f.header(), with("exp", "9223372036854775807")), oauth.ErrMalformed},
		"exp below zero":                     {f.token(f.header(), with("exp", "-1")), oauth.ErrMalformed},
		"exp in a string":                    {f.token(f.header(), with("exp", `"1795332900"`)), oauth.ErrMalformed},
		"exp with a fraction":                {f.token(f.header(), with("exp", "1795332900.5")), oauth.ErrMalformed},
		"exp with an exponent":               {f.token(f.header(), with("exp", "1e10")), oauth.ErrMalformed},
		"exp null":                           {f.token(f.header(), with("exp", "null")), oauth.ErrMalformed},
		"exp in capitals alone":              {f.token(f.header(), strings.Replace(goodClaims, `"exp"`, `"EXP"`, 1)), oauth.ErrMalformed},
		"a life of more than an hour":        {f.token(f.header(), with("exp", "1795335601")), oauth.ErrImplausible},
		"an end before its beginning":        {f.token(f.header(), with("exp", "1795331999")), oauth.ErrImplausible},
		"nbf after exp":                      {f.token(f.header(), with("nbf", "1795332901")), oauth.ErrImplausible},
		"nbf beyond the leeway":              {f.token(f.header(), with("nbf", "1795332031")), oauth.ErrNotYetValid},
		"issued in the future":               {f.token(f.header(), strings.Replace(with("iat", "1795332031"), "1795332900", "1795332931", 1)), oauth.ErrNotYetValid},
		"a scope that is a list":             {f.token(f.header(), with("scope", `["*"]`)), oauth.ErrMalformed},
		"roles that are no list":             {f.token(f.header(), with("roles", `"admin"`)), oauth.ErrMalformed},
		"roles that are numbers":             {f.token(f.header(), with("roles", `[1]`)), oauth.ErrMalformed},
		"is_admin in a string":               {f.token(f.header(), with("is_admin", `"true"`)), oauth.ErrMalformed},
		"aud null":                           {f.token(f.header(), with("aud", "null")), oauth.ErrMalformed},
		"aud of nothing":                     {f.token(f.header(), with("aud", "[]")), oauth.ErrMalformed},
		"version zero":                       {f.token(f.header(), with("mintmark.dev/version", "0")), oauth.ErrMalformed},
		"a claim that is no UTF-8":           {f.token(f.header(), strings.Replace(goodClaims, `"jti":"j"`, "\"jti\":\"\xff\"", 1)), oauth.ErrMalformed},
		"an unknown claim is let be":         {f.token(f.header(), with("x", "{}")), nil},
		"an audience alone is a list of one": {f.token(f.header(), with("aud", `"https://a.example"`)), nil},
	}
	for _, claim := range []string{"aud", "client_id", "exp", "iat", "is_admin", "iss", "jti", "mintmark.dev/uid", "mintmark.dev/version", "nbf", "sub"} {
		forgeries["without "+claim] = struct {
			token string
			want  error
		}{f.token(f.header(), with(claim, "")), oauth.ErrMalformed}
	}
	for sentence, forgery := range forgeries {
		t.Run(sentence, func(t *testing.T) {
			claims, err := i.Verify(forgery.token, forgedAt, oauth.Expect{})
			if !errors.Is(err, forgery.want) {
				t.Errorf("%v, want %v", err, forgery.want)
			}
			if err == nil {
				return
			}
			if invalid := (*oauth.InvalidError)(nil); !errors.As(err, &invalid) || invalid.Code == "" {
				t.Errorf("%v is no InvalidError", err)
			}
			if claims.Subject != "" {
				t.Error("an error and claims")
			}
		})
	}
}

// nextChar differs from a base64url character in the lowest bit, which in the
// last character of 64 bytes stands for nothing.
func nextChar(c byte) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return string(alphabet[strings.IndexByte(alphabet, c)^1])
}

func swapCase(s string) string {
	if upper := strings.ToUpper(s); upper != s {
		return upper
	}
	return strings.ToLower(s)
}

// hs256 uses the public key, as everybody can read it, for a shared secret.
func hs256(f forger) string {
	raw, err := x509.MarshalPKIXPublicKey(f.private().Public())
	if err != nil {
		f.t.Fatal(err)
	}
	signed := b64([]byte(fmt.Sprintf(`{"alg":"HS256","kid":%q,"typ":"at+jwt"}`, f.key.ID))) + "." + b64([]byte(goodClaims))
	mac := hmac.New(sha256.New, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: raw}))
	mac.Write([]byte(signed))
	return signed + "." + b64(mac.Sum(nil))
}

func der(f forger, signed string) []byte {
	hash := sha256.Sum256([]byte(signed))
	signature, err := ecdsa.SignASN1(rand.Reader, f.private(), hash[:])
	if err != nil {
		f.t.Fatal(err)
	}
	return signature
}

func TestTimes(t *testing.T) {
	f := forger{t, newKey(t)}
	i := newIssuer(t, &keyring.SigningKeys{Current: f.key})
	token := f.token(f.header(), goodClaims)
	for sentence, test := range map[string]struct {
		at   time.Duration
		want error
	}{
		"a verifier's clock may be behind by the leeway": {-oauth.Leeway, nil},
		"and no more":                                   {-oauth.Leeway - time.Second, oauth.ErrNotYetValid},
		"a token is good to its end":                    {15*time.Minute - time.Second, nil},
		"a verifier's clock may be ahead by the leeway": {15*time.Minute + oauth.Leeway - 1, nil},
		"at the end of the leeway it has expired":       {15*time.Minute + oauth.Leeway, oauth.ErrExpired},
		"a clock far ahead takes nothing":               {24 * time.Hour, oauth.ErrExpired},
		"a clock far behind takes nothing":              {-24 * time.Hour, oauth.ErrNotYetValid},
	} {
		if _, err := i.Verify(token, forgedAt.Add(test.at), oauth.Expect{}); !errors.Is(err, test.want) {
			t.Errorf("%s: %v", sentence, err)
		}
	}
}

func TestAudience(t *testing.T) {
	f := forger{t, newKey(t)}
	i := newIssuer(t, &keyring.SigningKeys{Current: f.key})
	token := f.token(f.header(), with("aud", `["https://a.example","https://b.example"]`))
	for audience, want := range map[string]error{
		"": nil, "https://a.example": nil, "https://b.example": nil, "https://c.example": oauth.ErrWrongAudience, "https://a.example/": oauth.ErrWrongAudience,
		"https://a.example https://b.example": oauth.ErrWrongAudience,
	} {
		if _, err := i.Verify(token, forgedAt, oauth.Expect{Audience: audience}); !errors.Is(err, want) {
			t.Errorf("%q: %v", audience, err)
		}
	}
}

// FuzzVerify changes a good token in every way: nothing but its own claims comes
// out of it.
func FuzzVerify(f *testing.F) {
	forge := forger{f, newKey(f)}
	i := newIssuer(f, &keyring.SigningKeys{Current: forge.key})
	good := forge.token(forge.header(), goodClaims)
	for _, seed := range []string{good, good + ".", good[1:], "a.b.c", "..", strings.ReplaceAll(good, ".", "=."), forge.token(`{"alg":"none"}`, "{}")} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, token string) {
		claims, err := i.Verify(token, forgedAt, oauth.Expect{})
		if err == nil && (claims.Subject != "s" || token[:strings.LastIndexByte(token, '.')] != good[:strings.LastIndexByte(good, '.')]) {
			t.Errorf("%q was never signed", token)
		}
	})
}

// FuzzClaims signs whatever payload comes along: no panic, and what is accepted
// is whole.
func FuzzClaims(f *testing.F) {
	forge := forger{f, newKey(f)}
	i := newIssuer(f, &keyring.SigningKeys{Current: forge.key})
	for _, seed := range []string{goodClaims, "{}", "[]", `{"exp":1e999}`, with("aud", `"x"`), with("roles", "null")} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, payload string) {
		claims, err := i.Verify(forge.token(forge.header(), payload), forgedAt, oauth.Expect{})
		if err == nil && (claims.Issuer != issuerURL || claims.Subject == "" || claims.CredentialUID == "" || claims.Version <= 0 || len(claims.Audience) == 0 ||
			claims.Expires.Before(forgedAt.Add(-oauth.Leeway)) || claims.Expires.Sub(claims.IssuedAt) > oauth.MaxTTL) {
			t.Errorf("%q gives %+v", payload, claims)
		}
	})
}
