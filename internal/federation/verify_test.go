package federation

import (
	"context"
	"crypto/hmac"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

func segment(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }

// raw puts a token together as it is written, and signs it with the signer's key.
func (s signer) raw(t testing.TB, header, payload string) string {
	t.Helper()
	signed := segment(header) + "." + segment(payload)
	signature, err := methods[s.alg].signing.Sign(signed, s.private)
	if err != nil {
		t.Fatal(err)
	}
	return signed + "." + base64.RawURLEncoding.EncodeToString(signature)
}

// hs256 signs with a shared secret.
func hs256(header, payload string, secret []byte) string {
	signed := segment(header) + "." + segment(payload)
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(signed))
	return signed + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

func TestTokensThatAreNoGoodAreRefused(t *testing.T) {
	rsaKey, ecKey, edKey := newSigner("rsa-1", "RS256"), newSigner("ec-1", "ES256"), newSigner("ed", "EdDSA")
	i := newIssuer(t, rsaKey, ecKey, edKey)
	r := run(t, seldom)
	r.trust(t, "ci", i.spec(func(s *v1alpha1.TrustedIssuerSpec) {
		s.MaxTokenAge = "1h"
		s.Validations = []v1alpha1.ClaimValidation{{Expression: "claims.sub != 'banned'"}}
	}))
	now := time.Now().Unix()
	with := func(name string, value any) map[string]any {
		return i.claims(func(c map[string]any) { c[name] = value })
	}
	without := func(name string) map[string]any { return i.claims(func(c map[string]any) { delete(c, name) }) }
	text := func(claims map[string]any) string {
		b, err := json.Marshal(claims)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	good := rsaKey.sign(t, i.claims())
	publicDER, err := x509.MarshalPKIXPublicKey(rsaKey.private.Public())
	if err != nil {
		t.Fatal(err)
	}
	publicPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: publicDER})
	stranger := signer{id: "rsa-1", alg: "RS256", private: newSigner("rsa-2", "RS256").private}
	parts := strings.Split(good, ".")
	header := func(more string) string { return `{"alg":"RS256","kid":"rsa-1"` + more + `}` }

	for name, c := range map[string]struct {
		token string
		want  *RefusedError // nil: accepted
	}{
		"a good one by RS256":                {good, nil},
		"a good one by ES256":                {ecKey.sign(t, i.claims()), nil},
		"one without kid":                    {rsaKey.sign(t, i.claims(), func(h map[string]any) { delete(h, "kid") }), nil},
		"typ at+jwt":                         {rsaKey.sign(t, i.claims(), func(h map[string]any) { h["typ"] = "at+jwt" }), nil},
		"no typ":                             {rsaKey.raw(t, header(""), text(i.claims())), nil},
		"several audiences, ours among them": {rsaKey.sign(t, with("aud", []string{"a", "mintmark"})), nil},
		"times with a fraction":              {rsaKey.sign(t, with("iat", float64(now)-0.5)), nil},
		"a clock that is a little ahead":     {rsaKey.sign(t, with("iat", now+20)), nil},
		"expired, within the leeway":         {rsaKey.sign(t, with("exp", now-20)), nil},
		"a key in the header, not looked at": {rsaKey.sign(t, i.claims(), func(h map[string]any) { h["jku"], h["x5t"] = "https://evil.example.com", "x" }), nil},

		"alg none":                   {segment(`{"alg":"none"}`) + "." + parts[1] + ".", ErrMalformed},
		"alg none with signature":    {segment(`{"alg":"none","kid":"rsa-1"}`) + "." + parts[1] + "." + parts[2], ErrAlgorithm},
		"alg None":                   {segment(`{"alg":"None","kid":"rsa-1"}`) + "." + parts[1] + "." + parts[2], ErrAlgorithm},
		"HS256 with the public key":  {hs256(`{"alg":"HS256","kid":"rsa-1"}`, text(i.claims()), publicPEM), ErrAlgorithm},
		"an alg that is not allowed": {edKey.sign(t, i.claims()), ErrAlgorithm},
		"alg in another case":        {rsaKey.raw(t, `{"alg":"rs256","kid":"rsa-1"}`, text(i.claims())), ErrAlgorithm},
		"another alg for the key":    {ecKey.raw(t, `{"alg":"ES256","kid":"rsa-1"}`, text(i.claims())), ErrUnknownKey},
		"a kid that is unknown":      {rsaKey.sign(t, i.claims(), func(h map[string]any) { h["kid"] = "../../etc/passwd" }), ErrUnknownKey},
		"a kid that is a number":     {rsaKey.raw(t, `{"alg":"RS256","kid":1}`, text(i.claims())), ErrMalformed},
		"a kid that is long":         {rsaKey.sign(t, i.claims(), func(h map[string]any) { h["kid"] = strings.Repeat("k", 600) }), ErrMalformed},
		"crit":                       {rsaKey.raw(t, header(`,"crit":["exp"]`), text(i.claims())), ErrMalformed},
		"crit that is empty":         {rsaKey.raw(t, header(`,"crit":[]`), text(i.claims())), ErrMalformed},
		"b64":                        {rsaKey.raw(t, header(`,"b64":false`), text(i.claims())), ErrMalformed},
		"zip":                        {rsaKey.raw(t, header(`,"zip":"DEF"`), text(i.claims())), ErrMalformed},
		"two algs":                   {rsaKey.raw(t, `{"alg":"RS256","kid":"rsa-1","alg":"RS256"}`, text(i.claims())), ErrMalformed},
		"a key of its own":           {stranger.sign(t, i.claims(), func(h map[string]any) { h["jwk"] = json.RawMessage(`{"kty":"RSA"}`) }), ErrSignature},
		"a key of its own elsewhere": {stranger.sign(t, i.claims(), func(h map[string]any) {
			h["jku"], h["x5u"] = "https://evil.example.com/keys", "https://evil.example.com/x"
		}), ErrSignature},
		"a logout token":   {rsaKey.sign(t, i.claims(), func(h map[string]any) { h["typ"] = "logout+jwt" }), ErrType},
		"a security event": {rsaKey.sign(t, i.claims(), func(h map[string]any) { h["typ"] = "application/secevent+jwt" }), ErrType},

		"an issuer nobody trusts":       {rsaKey.sign(t, with("iss", "https://evil.example.com")), ErrUnknownIssuer},
		"iss with a slash at the end":   {rsaKey.sign(t, with("iss", i.url+"/")), ErrUnknownIssuer},
		"iss in another case":           {rsaKey.sign(t, with("iss", strings.ToUpper(i.url))), ErrUnknownIssuer},
		"iss that is a list":            {rsaKey.sign(t, with("iss", []string{i.url})), ErrMalformed},
		"no iss":                        {rsaKey.sign(t, without("iss")), ErrMalformed},
		"two iss":                       {rsaKey.raw(t, header(""), `{"iss":"https://evil.example.com",`+text(i.claims())[1:]), ErrMalformed},
		"a claim twice, deep inside":    {rsaKey.raw(t, header(""), `{"x":{"a":1,"a":2},`+text(i.claims())[1:]), ErrMalformed},
		"iss by another name":           {rsaKey.raw(t, header(""), `{"ISS":"`+i.url+`","aud":"mintmark","exp":99999999999}`), ErrMalformed},
		"our own issuer":                {rsaKey.sign(t, with("iss", "https://mintmark.example.com")), ErrUnknownIssuer},
		"another audience":              {rsaKey.sign(t, with("aud", "https://kubernetes.default.svc")), ErrAudience},
		"an audience that begins alike": {rsaKey.sign(t, with("aud", "mintmark2")), ErrAudience},
		"no audience":                   {rsaKey.sign(t, without("aud")), ErrAudience},
		"an audience that is a number":  {rsaKey.sign(t, with("aud", 1)), ErrMalformed},
		"an audience of two types":      {rsaKey.sign(t, with("aud", []any{"mintmark", 1})), ErrMalformed},
		"expired":                       {rsaKey.sign(t, with("exp", now-31)), ErrExpired},
		"without an end":                {rsaKey.sign(t, without("exp")), ErrMalformed},
		"an end that is a string":       {rsaKey.sign(t, with("exp", "99999999999")), ErrMalformed},
		"an end beyond time":            {rsaKey.raw(t, header(""), `{"exp":9223372036854775808,`+text(without("exp"))[1:]), ErrMalformed},
		"an end below time":             {rsaKey.sign(t, with("exp", -1)), ErrMalformed},
		"an end that is null":           {rsaKey.sign(t, with("exp", nil)), ErrMalformed},
		"not valid yet":                 {rsaKey.sign(t, with("nbf", now+60)), ErrNotYetValid},
		"issued in the future":          {rsaKey.sign(t, with("iat", now+60)), ErrNotYetValid},
		"issued too long ago":           {rsaKey.sign(t, with("iat", now-3700)), ErrTooOld},
		"issued nobody knows when":      {rsaKey.sign(t, without("iat")), ErrTooOld},
		"banned":                        {rsaKey.sign(t, with("sub", "banned")), ErrValidation},
		"a subject of the wrong type":   {rsaKey.sign(t, with("sub", 7)), ErrMapping},

		"signed by somebody else":     {stranger.sign(t, i.claims()), ErrSignature},
		"claims that were changed":    {parts[0] + "." + segment(text(with("sub", "admin"))) + "." + parts[2], ErrSignature},
		"a signature that is cut":     {good[:len(good)-2], ErrSignature},
		"no signature":                {parts[0] + "." + parts[1] + ".", ErrMalformed},
		"padding":                     {good + "==", ErrMalformed},
		"a dot at the end":            {good + ".", ErrMalformed},
		"a line end":                  {good + "\n", ErrMalformed},
		"a NUL":                       {good + "\x00", ErrMalformed},
		"two segments":                {parts[0] + "." + parts[1], ErrMalformed},
		"a million segments":          {strings.Repeat(".", 1<<20), ErrMalformed},
		"a huge one":                  {parts[0] + "." + strings.Repeat("A", MaxTokenLen) + "." + parts[2], ErrMalformed},
		"a JSON serialisation":        {`{"payload":"` + parts[1] + `"}`, ErrMalformed},
		"claims that are a list":      {rsaKey.raw(t, header(""), `[]`), ErrMalformed},
		"claims that are null":        {rsaKey.raw(t, header(""), `null`), ErrMalformed},
		"claims of two documents":     {rsaKey.raw(t, header(""), text(i.claims())+`{}`), ErrMalformed},
		"claims nested without end":   {rsaKey.raw(t, header(""), `{"x":`+strings.Repeat("[", 4000)+strings.Repeat("]", 4000)+`,`+text(i.claims())[1:]), ErrMalformed},
		"claims that are not UTF-8":   {rsaKey.raw(t, header(""), "{\"x\":\"\xff\","+text(i.claims())[1:]), ErrMalformed},
		"an ES256 signature in zeros": {segment(`{"alg":"ES256","kid":"ec-1"}`) + "." + segment(text(i.claims())) + "." + base64.RawURLEncoding.EncodeToString(make([]byte, 64)), ErrSignature},
		"nothing":                     {"", ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			holder, err := r.verify(c.token)
			if c.want == nil {
				if err != nil || holder.Subject != "issuer:ci:somebody" {
					t.Fatalf("refused: %v", err)
				}
				return
			}
			if !errors.Is(err, c.want) || holder != nil {
				t.Fatalf("the error is %v, want %s", err, c.want.Code)
			}
		})
	}
	if n := i.count("/keys"); n > 1+seldom.extraBurst {
		t.Errorf("the keys were fetched %d times", n)
	}
}

func TestEveryAlgorithmVerifiesWithItsOwnKeysAlone(t *testing.T) {
	kinds := map[string]string{
		"RS256": "rsa-1", "RS384": "rsa-1", "RS512": "rsa-1", "PS256": "rsa-1", "ES256": "ec-1", "ES384": "p384", "ES512": "p521", "EdDSA": "ed",
	}
	var signers []signer
	for alg, kind := range kinds {
		s := newSigner(kind, alg)
		s.id = alg
		signers = append(signers, s)
	}
	spec := minimal(func(s *v1alpha1.TrustedIssuerSpec) {
		s.JWKS, s.Algorithms = keySetOf(t, signers...), algorithmNames()
	})
	r := run(t, seldom)
	r.trust(t, "ci", spec)
	claims := map[string]any{"iss": spec.Issuer, "sub": "x", "aud": "mintmark", "exp": time.Now().Unix() + 60}
	for _, s := range signers {
		if _, err := r.verify(s.sign(t, claims)); err != nil {
			t.Errorf("%s: %v", s.alg, err)
		}
		for _, other := range signers {
			if other.alg == s.alg {
				continue
			}
			if _, err := r.verify(s.sign(t, claims, func(h map[string]any) { h["kid"] = other.id })); !errors.Is(err, ErrUnknownKey) {
				t.Errorf("%s with the kid of %s: %v", s.alg, other.alg, err)
			}
		}
	}
}

func TestDirectUseHasToBeSaid(t *testing.T) {
	key := newSigner("ec-1", "ES256")
	r := run(t, seldom)
	spec := minimal(func(s *v1alpha1.TrustedIssuerSpec) { s.JWKS = keySetOf(t, key) })
	r.trust(t, "ci", spec)
	token := key.sign(t, map[string]any{"iss": spec.Issuer, "sub": "x", "aud": "mintmark", "exp": time.Now().Unix() + 60})
	if _, err := r.Verify(t.Context(), token, ForAccess, time.Now()); !errors.Is(err, ErrNotDirect) || r.Direct() {
		t.Errorf("without directUse: %v", err)
	}
	spec.DirectUse = true
	r.trust(t, "ci", spec)
	if _, err := r.Verify(t.Context(), token, ForAccess, time.Now()); err != nil || !r.Direct() {
		t.Errorf("with directUse: %v", err)
	}
}

func TestOfSeveralTrustedIssuersTheAudienceDecidesAndThenTheName(t *testing.T) {
	key := newSigner("ec-1", "ES256")
	r := run(t, seldom)
	for name, audiences := range map[string][]string{"b": {"shared", "of-b"}, "a": {"shared", "of-a"}, "c": {"of-c"}} {
		r.trust(t, name, minimal(func(s *v1alpha1.TrustedIssuerSpec) { s.JWKS, s.Audiences = keySetOf(t, key), audiences }))
	}
	if log := r.log.String(); strings.Count(log, "in common") != 1 || !strings.Contains(log, `"first":"a"`) {
		t.Errorf("the log does not tell that a and b have an audience in common:\n%s", log)
	}
	for audience, want := range map[string]string{"shared": "a", "of-a": "a", "of-b": "b", "of-c": "c"} {
		h, err := r.verify(key.sign(t, map[string]any{"iss": "https://issuer.example.com", "sub": "x", "aud": audience, "exp": time.Now().Unix() + 60}))
		if err != nil || h.Trust.Name != want {
			t.Errorf("audience %s: %v, %v", audience, h, err)
		}
	}
}

func TestWhatIsIssuedStandsAsLongAsTheTrustedIssuerDoes(t *testing.T) {
	r := run(t, seldom)
	key := newSigner("ec-1", "ES256")
	spec := minimal(func(s *v1alpha1.TrustedIssuerSpec) {
		s.JWKS = keySetOf(t, key)
		s.Ceiling = v1alpha1.IssuerCeiling{Permissions: []v1alpha1.Permission{"deploy:*"}, Roles: []string{"deployer", "auditor"}}
	})
	r.trust(t, "ci", spec)
	h, err := r.verify(key.sign(t, map[string]any{"iss": spec.Issuer, "sub": "x", "aud": "mintmark", "exp": time.Now().Unix() + 60}))
	if err != nil {
		t.Fatal(err)
	}
	trust, ok := r.Standing("ci", h.Trust.UID, h.Trust.Version)
	if !ok {
		t.Fatal("it does not stand")
	}
	if roles, permissions := trust.Limit([]string{"deployer", "root"}, []string{"*"}); !slices.Equal(roles, []string{"deployer"}) || !slices.Equal(permissions, []string{"deploy:*"}) {
		t.Errorf("the limits are %v, %v", roles, permissions)
	}

	narrower := spec.DeepCopy()
	narrower.Ceiling = v1alpha1.IssuerCeiling{Permissions: []v1alpha1.Permission{"deploy:read"}}
	r.trust(t, "ci", narrower)
	trust, ok = r.Standing("ci", h.Trust.UID, h.Trust.Version)
	if roles, permissions := trust.Limit([]string{"deployer"}, []string{"deploy:*"}); !ok || len(roles) != 0 || !slices.Equal(permissions, []string{"deploy:read"}) {
		t.Errorf("under the lower ceiling: %t, %v, %v", ok, roles, permissions)
	}

	for name, change := range map[string]func(){
		"another validation": func() {
			s := spec.DeepCopy()
			s.Validations = []v1alpha1.ClaimValidation{{Expression: "claims.sub == 'y'"}}
			r.trust(t, "ci", s)
		},
		"made anew": func() {
			r.Delete("ci")
			if err := r.Set("ci", "another-uid", spec); err != nil {
				t.Fatal(err)
			}
		},
		"not to be compiled": func() {
			s := spec.DeepCopy()
			s.Mapping.Subject = "("
			if r.Set("ci", "uid-ci", s) == nil {
				t.Fatal("it compiles")
			}
		},
		"gone": func() { r.Delete("ci") },
	} {
		r.trust(t, "ci", spec)
		if _, ok := r.Standing("ci", h.Trust.UID, h.Trust.Version); !ok {
			t.Fatalf("before %s it does not stand", name)
		}
		change()
		if _, ok := r.Standing("ci", h.Trust.UID, h.Trust.Version); ok {
			t.Errorf("%s: what was issued still stands", name)
		}
	}
	if err := r.Set("self", "u", minimal(func(s *v1alpha1.TrustedIssuerSpec) { s.Issuer = "https://mintmark.example.com" })); err == nil {
		t.Error("our own issuer is trusted")
	}
}

func TestKeySetsAreTakenWithCare(t *testing.T) {
	good := keySetOf(t, newSigner("ec-1", "ES256"))
	key := strings.TrimSuffix(strings.TrimPrefix(good, `{"keys":[`), `]}`)
	weak := func(bits int) string {
		n := make([]byte, bits/8)
		n[0], n[len(n)-1] = 0xff, 1
		return `{"kty":"RSA","kid":"weak","n":"` + base64.RawURLEncoding.EncodeToString(n) + `","e":"AQAB"}`
	}
	for name, c := range map[string]struct {
		text string
		keys int // 0: refused
	}{
		"one key":                      {good, 1},
		"a key of another kind beside": {`{"keys":[{"kty":"AKP2","kid":"new"},` + key + `]}`, 1},
		"a key that cannot be read":    {`{"keys":[{"kty":"EC","crv":"P-256","x":"AA","y":"AA"},` + key + `]}`, 1},
		"a secret beside":              {`{"keys":[{"kty":"oct","k":"c2VjcmV0"},` + key + `]}`, 1},
		"a key for encryption beside":  {`{"keys":[` + strings.Replace(key, `"use":"sig"`, `"use":"enc"`, 1) + `,` + key + `]}`, 1},
		"a key to sign with beside":    {`{"keys":[` + strings.Replace(key, `"use":"sig"`, `"key_ops":["sign"]`, 1) + `,` + key + `]}`, 1},
		"a key that is short beside":   {`{"keys":[` + weak(1024) + `,` + key + `]}`, 1},
		"a key that is enormous":       {`{"keys":[` + weak(16384) + `]}`, 0},
		"a secret alone":               {`{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}`, 0},
		"none":                         {`{"keys":[]}`, 0},
		"no set":                       {key, 0},
		"null":                         {`null`, 0},
		"HTML":                         {`<!doctype html><html>sign in</html>`, 0},
		"more than there can be":       {`{"keys":[` + strings.Repeat(key+",", maxKeys) + key + `]}`, 0},
		"far too long":                 {good + strings.Repeat(" ", maxKeySetLen), 0},
	} {
		t.Run(name, func(t *testing.T) {
			set, err := parseKeySet([]byte(c.text), false)
			if c.keys == 0 {
				if err == nil {
					t.Fatalf("taken: %+v", set)
				}
				return
			}
			if err != nil || len(set.keys) != c.keys {
				t.Fatalf("%+v, %v", set, err)
			}
		})
	}
	if _, ok := newSigner("rsa-1", "RS256").private.Public().(*rsa.PublicKey); !ok {
		t.Fatal("not RSA")
	}
}

func FuzzVerify(f *testing.F) {
	key := newSigner("ec-1", "ES256")
	spec := minimal(func(s *v1alpha1.TrustedIssuerSpec) { s.JWKS = keySetOf(f, key) })
	federation := New(Config{})
	if err := federation.Set("ci", "uid", spec); err != nil {
		f.Fatal(err)
	}
	now := time.Now()
	good := key.sign(f, map[string]any{"iss": spec.Issuer, "sub": "x", "aud": "mintmark", "exp": now.Unix() + 1<<30})
	f.Add(good)
	f.Add(segment(`{"alg":"none"}`) + "." + segment(`{"iss":"https://issuer.example.com"}`) + ".")
	f.Add(segment(`{"alg":"ES256","alg":"RS256"}`) + "." + segment(`{"iss":1,"aud":["a",2],"exp":1e400}`) + ".AA")
	f.Fuzz(func(t *testing.T, token string) {
		h, err := federation.Verify(context.Background(), token, ForExchange, now)
		var refused *RefusedError
		switch {
		case err == nil && h == nil, err != nil && h != nil, err != nil && !errors.As(err, &refused):
			t.Fatalf("%v, %v", h, err)
		case err == nil && token != good:
			t.Fatalf("accepted: %q", token)
		}
	})
}

func FuzzKeySet(f *testing.F) {
	f.Add([]byte(keySetOf(f, newSigner("ec-1", "ES256"), newSigner("rsa-1", "RS256"), newSigner("ed", "EdDSA"))))
	f.Add([]byte(`{"keys":[{"kty":"EC","crv":"P-256","x":"","y":""}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		set, err := parseKeySet(data, false)
		if err == nil && (len(set.keys) == 0 || len(set.keys) > maxKeys) {
			t.Fatalf("%d keys", len(set.keys))
		}
	})
}
