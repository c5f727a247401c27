package server

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
	"github.com/mintmark-dev/mintmark/internal/keyring"
)

// rawAnswer sends bytes as they are over TLS and gives the status line's code; 0 where the
// connection was closed without one.
func (e *edge) rawAnswer(request string) (int, string) {
	e.t.Helper()
	config := e.client.Transport.(*http.Transport).TLSClientConfig.Clone()
	config.NextProtos = nil
	config.ServerName = "example.com"
	conn, err := tls.Dial("tcp", e.http.Listener.Addr().String(), config)
	if err != nil {
		e.t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, request); err != nil {
		return 0, ""
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, ""
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body)
}

// THREATS 17 and I16: whatever is wrong with a key, the answer is the same.
func TestEveryBadCredentialGetsTheSameAnswer(t *testing.T) {
	e := newEdge(t, setup{})
	good := e.mint("good")
	expired := e.mint("expired", func(r *credential.Record) { r.Versions[0].Expires = time.Now().Add(-time.Minute).Unix() })
	revoked := e.mint("revoked")
	revoked.object.Spec.Revoked = &v1alpha1.Revoked{Reason: "leaked"}
	e.apply(revoked)
	retired := e.mint("retired")
	retired.record.Epoch, retired.record.Versions = 2, nil
	e.apply(retired)
	deleted := e.mint("deleted")
	e.index.Delete(deleted.record.UID)
	classless := e.mint("classless", func(r *credential.Record) { r.Class = "no-such-class" })
	unknown, err := credential.Format{Kind: v1alpha1.KindServiceToken}.Mint(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, err := credential.Format{Kind: v1alpha1.KindServiceToken, Environment: "live"}.Mint(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := credential.Format{Kind: v1alpha1.KindAPIKey}.Mint(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	v := good.value()
	flipped := []byte(v)
	flipped[len(flipped)-1] ^= 1
	want := e.ask("GET", "/forward-auth", "", bearerOf(unknown.Reveal())...)
	if want.status != 401 || want.header.Get("Content-Type") != problemType {
		t.Fatalf("an unknown credential: %d %s", want.status, want.header.Get("Content-Type"))
	}
	for name, headers := range map[string][]string{
		"expired":                           bearerOf(expired.value()),
		"revoked":                           bearerOf(revoked.value()),
		"retired":                           bearerOf(retired.value()),
		"deleted":                           bearerOf(deleted.value()),
		"of a class that is not there":      bearerOf(classless.value()),
		"of another environment":            bearerOf(other.Reveal()),
		"an unknown API key":                {"X-API-Key", key.Reveal()},
		"an API key with a wrong checksum":  {"X-API-Key", key.Reveal()[:len(key.Reveal())-1] + "!"},
		"one character flipped":             bearerOf(string(flipped)),
		"one character more":                bearerOf(v + "0"),
		"one character less":                bearerOf(v[:len(v)-1]),
		"upper case":                        bearerOf(strings.ToUpper(v)),
		"a space inside":                    bearerOf(v[:10] + " " + v[10:]),
		"a tab at the end":                  bearerOf(v + "\tx"),
		"no token after the scheme":         {"Authorization", "Bearer"},
		"nothing but spaces after it":       {"Authorization", "Bearer  "},
		"no scheme":                         {"Authorization", v},
		"Basic":                             {"Authorization", "Basic " + base64.StdEncoding.EncodeToString([]byte(v+":"))},
		"Digest":                            {"Authorization", "Digest username=" + v},
		"two schemes":                       {"Authorization", "Bearer " + v + ", Basic eDp5"},
		"two Authorization headers":         {"Authorization", "Bearer " + v, "Authorization", "Bearer " + v},
		"two different ones":                {"Authorization", "Bearer " + v, "Authorization", "Bearer " + unknown.Reveal()},
		"two X-API-Key headers":             {"X-API-Key", v, "X-API-Key", v},
		"comma-joined":                      {"X-API-Key", v + "," + v},
		"comma-joined with a space":         {"Authorization", "Bearer " + v + ", Bearer " + v},
		"both headers, and they differ":     {"Authorization", "Bearer " + v, "X-API-Key", unknown.Reveal()},
		"both headers, one of them Basic":   {"Authorization", "Basic eDp5", "X-API-Key", v},
		"both headers, one of them empty":   {"Authorization", "Bearer " + v, "X-API-Key", ""},
		"an empty X-API-Key":                {"X-API-Key", ""},
		"any non-empty bearer":              bearerOf("x"),
		"a very long bearer":                bearerOf(strings.Repeat("a", 20000)),
		"a JWT in X-API-Key":                {"X-API-Key", e.jwtFor(good, "")},
		"a JWT of nothing":                  bearerOf(".."),
		"a health checker's user agent":     {"User-Agent", "kube-probe/1.36", "Authorization", "Bearer x"},
		"a method override":                 {"X-HTTP-Method-Override", "OPTIONS", "Authorization", "Bearer x"},
		"identity headers of one's own":     {"X-User-ID", "root", "X-User-Permissions", "*", "Authorization", "Bearer x"},
		"another path, as if it were asked": {"X-Original-URL", "/api/v1/auth/health", "Authorization", "Bearer x"},
	} {
		t.Run(name, func(t *testing.T) {
			got := e.ask("GET", "/forward-auth", "", headers...)
			if got.status != want.status || got.body != want.body || got.header.Get("Www-Authenticate") != want.header.Get("Www-Authenticate") {
				t.Errorf("%d %q %q\nwant %d %q %q", got.status, got.header.Get("Www-Authenticate"), got.body,
					want.status, want.header.Get("Www-Authenticate"), want.body)
			}
			if len(got.header["X-User-Id"]) != 0 {
				t.Error("an identity is told")
			}
		})
	}
	for name, headers := range map[string][]string{
		"the scheme in lower case":     {"Authorization", "bearer " + v},
		"the scheme in upper case":     {"Authorization", "BEARER " + v},
		"several spaces after it":      {"Authorization", "Bearer   " + v},
		"both headers, and they agree": {"Authorization", "Bearer " + v, "X-API-Key", v},
	} {
		if got := e.ask("GET", "/forward-auth", "", headers...); got.status != 200 {
			t.Errorf("%s: %d, want 200", name, got.status)
		}
	}
	for _, query := range []string{"access_token=", "api_key=", "token=", "key=", "X-API-Key="} {
		if got := e.ask("GET", "/api/auth/profile?"+query+v, ""); got.status != 401 {
			t.Errorf("in the query as %s: %d, want 401", query, got.status)
		}
	}
	for name, raw := range map[string]string{
		"NUL appended":        "GET /forward-auth HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-API-Key: " + v + "\x00\r\n\r\n",
		"bare CR appended":    "GET /forward-auth HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-API-Key: " + v + "\rx\r\n\r\n",
		"a folded line":       "GET /forward-auth HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-API-Key: " + v + "\r\n x\r\n\r\n",
		"a name with a space": "GET /forward-auth HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-API-Key : " + v + "\r\n\r\n",
	} {
		if status, _ := e.rawAnswer(raw); status != 400 && status != 401 {
			t.Errorf("%s: %d, want 400 or 401", name, status)
		}
	}
}

// THREATS 15: nothing but GET and its like gets an answer, and no method is a way around.
func TestMethodsAndPathsThatAreNotThere(t *testing.T) {
	e := newEdge(t, setup{})
	v := e.mint("ci").value()
	for _, c := range []struct {
		method, path string
		status       int
	}{
		{"TRACE", "/forward-auth", 405}, {"TRACE", "/", 405}, {"TRACE", "/api/auth/profile", 405},
		{"POST", "/api/auth/profile", 405}, {"DELETE", "/api/auth/token", 405}, {"GET", "/api/auth/token", 405},
		{"PUT", "/.well-known/jwks.json", 405}, {"HEAD", "/api/auth/profile", 200},
		{"GET", "/", 404}, {"GET", "/api", 404}, {"GET", "/api/auth/", 404}, {"GET", "/api/auth/profile/", 404},
		{"GET", "/internal/v1/usage", 404}, {"POST", "/internal/v1/accepts", 404}, {"GET", "/metrics", 404},
		{"GET", "/readyz", 404}, {"GET", "/debug/pprof/", 404},
		{"GET", "//api/auth/profile", 404}, {"GET", "/api/../api/auth/profile", 404}, {"GET", "/api/auth/./profile", 404},
		{"GET", "/api/auth/%70rofile", 404}, {"GET", "/api/auth/profile%00", 404}, {"GET", "/api/auth/profile%23", 404},
		{"GET", "/api%2fauth%2fprofile", 404}, {"GET", "/api/auth/..;/auth/profile", 404}, {"GET", "/x/%2e%2e/forward-auth", 404},
		{"GET", "/FORWARD-AUTH", 404}, {"GET", "/forward-auth;x", 404},
	} {
		got := e.ask(c.method, c.path, "", bearerOf(v)...)
		if got.status != c.status {
			t.Errorf("%s %s: %d, want %d", c.method, c.path, got.status, c.status)
		}
		if got.status >= 400 && got.header.Get("Content-Type") != problemType {
			t.Errorf("%s %s: Content-Type is %q", c.method, c.path, got.header.Get("Content-Type"))
		}
	}
	for _, method := range []string{"GET", "TRACE", "POST", "OPTIONS", "PROPFIND"} {
		for name, headers := range map[string][]string{"nothing": nil, "a value that is nobody's": bearerOf("sk_" + strings.Repeat("0", 64))} {
			if got := e.ask(method, "/forward-auth", "", headers...); got.status != 401 {
				t.Errorf("%s with %s: %d, want 401", method, name, got.status)
			}
		}
	}
	if got := e.ask("POST", "/api/auth/profile", "", bearerOf(v)...); got.header.Get("Allow") != "GET, HEAD" {
		t.Errorf("Allow is %q", got.header.Get("Allow"))
	}
	for _, raw := range []string{
		"CONNECT evil.example.com:443 HTTP/1.1\r\nHost: evil.example.com:443\r\nConnection: close\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		"GET http://evil.example.com/forward-auth HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		"GET forward-auth HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		"G\x00T / HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /forward-auth HTTP/1.1\r\n\r\n",
	} {
		if status, body := e.rawAnswer(raw); status >= 500 || status > 0 && status < 400 {
			t.Errorf("%q: %d %s", raw, status, body)
		}
	}
}

// THREATS 14: the path the gateway asks about, where its peer is trusted to tell it.
func TestOriginalPathsThatCanBeReadInTwoWaysAreDenied(t *testing.T) {
	trusted := newEdge(t, setup{proxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}})
	v := trusted.mint("ci").value()
	untrusted := newEdge(t, setup{})
	for path, canonical := range map[string]bool{
		"/": true, "/reports/today": true, "/reports/": true, "/reports?x=//..%2f": true, "/a%20b": true, "/a;v=1/b": false, "/a%3bv/b": false, "/caf%C3%A9": true, "/%61": false, "/a%7Eb": false, "/a%2Db": false,
		"/.well-known/x": true, "/a..b/c": true, "https://example.com/reports": true, "https://example.com": true, "/~a/-_.!$&'()*+,=:@": true,
		"/a%23b": false, "//a": false, "/a//b": false, "/%2e%2e/a": false, "/a/../b": false, "/a/./b": false, "/a/..;/b": false, "/a/..;x=1/b": false,
		"/a/.;/b": false, "/a%2fb": false, "/a%5cb": false, "/a\\b": false, "/a%00": false, "/a%3fb": false, "/%252e%252e/a": false,
		"/a%zz": false, "": false, "a": false, "/a#b": false, "/a/%0d%0ab": false, "/..": false, "/a/..": false, "/;/a": false, "https://example.com//a": false,
	} {
		for _, header := range []string{"X-Original-URI", "X-Forwarded-Uri", "X-Original-URL"} {
			got := trusted.ask("GET", "/forward-auth", "", append(bearerOf(v), header, path)...)
			if (got.status == 200) != canonical {
				t.Errorf("%s: %q: %d, want it to be let through: %v", header, path, got.status, canonical)
			}
		}
	}
	if got := trusted.ask("GET", "/forward-auth", "", append(bearerOf(v), "X-Original-URI", "/a", "X-Original-URI", "/b")...); got.status != 403 {
		t.Errorf("two original paths: %d, want 403", got.status)
	}
	// From anybody else they are not listened to.
	if got := untrusted.ask("GET", "/forward-auth", "", append(bearerOf(untrusted.mint("ci").value()), "X-Original-URI", "//")...); got.status != 200 {
		t.Errorf("from a peer that is not trusted: %d, want 200", got.status)
	}
}

// jws puts a token together from its parts, signed with the key unless a signature is
// given.
func jws(header, payload string, key *ecdsa.PrivateKey, signature []byte) string {
	encode := base64.RawURLEncoding.EncodeToString
	signed := encode([]byte(header)) + "." + encode([]byte(payload))
	if signature == nil {
		sum := sha256.Sum256([]byte(signed))
		r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
		if err != nil {
			panic(err)
		}
		signature = make([]byte, 64)
		r.FillBytes(signature[:32])
		s.FillBytes(signature[32:])
	}
	return signed + "." + encode(signature)
}

// THREATS 16, through HTTP: never accepted, never a 5xx.
func TestForgedJWTsAreNeverAccepted(t *testing.T) {
	e := newEdge(t, setup{})
	m := e.mint("ci")
	token := e.jwtFor(m, "")
	parts := strings.Split(token, ".")
	headerText, _ := base64.RawURLEncoding.DecodeString(parts[0])
	payloadText, _ := base64.RawURLEncoding.DecodeString(parts[1])
	key := e.signing.Current.Key.(*ecdsa.PrivateKey)
	kid := e.signing.Current.ID
	header, payload := string(headerText), string(payloadText)
	change := func(name string, value any) string {
		var claims map[string]any
		if err := json.Unmarshal(payloadText, &claims); err != nil {
			t.Fatal(err)
		}
		if value == nil {
			delete(claims, name)
		} else {
			claims[name] = value
		}
		out, err := json.Marshal(claims)
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	if got := e.ask("GET", "/forward-auth", "", bearerOf(jws(header, payload, key, nil))...); got.status != 200 {
		t.Fatalf("the token put together by this test: %d", got.status)
	}

	sum := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	der, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	hs := func(header string, secret []byte) string {
		signed := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + parts[1]
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(signed))
		return signed + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
	}
	raw, _ := base64.RawURLEncoding.DecodeString(parts[2])
	var rs struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &rs); err != nil {
		t.Fatal(err)
	}
	other := newSigningKeys(t).Current
	rsWithout := func(tokens ...string) []string { return tokens }
	for name, forged := range map[string][]string{
		"alg none": rsWithout(
			jws(`{"alg":"none","kid":"`+kid+`","typ":"at+jwt"}`, payload, nil, []byte{}),
			jws(`{"alg":"None","kid":"`+kid+`","typ":"at+jwt"}`, payload, nil, []byte{}),
			jws(`{"alg":"nOnE","typ":"at+jwt"}`, payload, nil, raw), parts[0]+"."+parts[1]+"."),
		"HS256 with the public key": rsWithout(
			hs(`{"alg":"HS256","kid":"`+kid+`","typ":"at+jwt"}`, point), hs(`{"alg":"HS256","kid":"`+kid+`","typ":"at+jwt"}`, nil)),
		"another algorithm for the key": rsWithout(
			jws(`{"alg":"ES384","kid":"`+kid+`","typ":"at+jwt"}`, payload, key, nil), jws(`{"alg":"RS256","kid":"`+kid+`","typ":"at+jwt"}`, payload, key, nil),
			jws(`{"alg":"EdDSA","kid":"`+kid+`","typ":"at+jwt"}`, payload, key, nil), jws(`{"alg":"","kid":"`+kid+`","typ":"at+jwt"}`, payload, key, nil)),
		"a key of its own": rsWithout(
			jws(`{"alg":"ES256","kid":"`+kid+`","typ":"at+jwt","jwk":{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}}`, payload, key, nil),
			jws(`{"alg":"ES256","kid":"`+kid+`","typ":"at+jwt","jku":"https://evil.example.com/jwks"}`, payload, key, nil),
			jws(`{"alg":"ES256","kid":"`+kid+`","typ":"at+jwt","x5u":"https://evil.example.com/x"}`, payload, key, nil),
			jws(`{"alg":"ES256","kid":"`+kid+`","typ":"at+jwt","x5c":["AA"]}`, payload, key, nil)),
		"an extension": rsWithout(
			jws(`{"alg":"ES256","kid":"`+kid+`","typ":"at+jwt","crit":["x"],"x":1}`, payload, key, nil),
			jws(`{"alg":"ES256","kid":"`+kid+`","typ":"at+jwt","b64":false}`, payload, key, nil),
			jws(`{"alg":"ES256","kid":"`+kid+`","typ":"at+jwt","zip":"DEF"}`, payload, key, nil)),
		"kids": rsWithout(
			jws(`{"alg":"ES256","kid":"../../etc/passwd","typ":"at+jwt"}`, payload, key, nil), jws(`{"alg":"ES256","kid":"\u0000","typ":"at+jwt"}`, payload, key, nil),
			jws(`{"alg":"ES256","kid":"`+kid+`\u0000","typ":"at+jwt"}`, payload, key, nil), jws(`{"alg":"ES256","kid":["`+kid+`"],"typ":"at+jwt"}`, payload, key, nil),
			jws(`{"alg":"ES256","kid":"`+strings.Repeat("k", 9000)+`","typ":"at+jwt"}`, payload, key, nil),
			jws(`{"alg":"ES256","typ":"at+jwt"}`, payload, key, nil), jws(`{"alg":"ES256","kid":"`+other.ID+`","typ":"at+jwt"}`, payload, other.Key.(*ecdsa.PrivateKey), nil)),
		"types": rsWithout(
			jws(`{"alg":"ES256","kid":"`+kid+`","typ":"JWT"}`, payload, key, nil), jws(`{"alg":"ES256","kid":"`+kid+`"}`, payload, key, nil),
			jws(`{"alg":"ES256","kid":"`+kid+`","typ":"AT+JWT "}`, payload, key, nil)),
		"claims": rsWithout(
			jws(header, change("iss", "https://evil.example.com"), key, nil), jws(header, change("iss", nil), key, nil), jws(header, change("iss", testIssuer+"/"), key, nil),
			jws(header, change("aud", "https://other.example.com"), key, nil), jws(header, change("aud", nil), key, nil), jws(header, change("aud", []string{}), key, nil),
			jws(header, change("exp", nil), key, nil), jws(header, change("exp", 1), key, nil), jws(header, change("exp", uint64(1)<<63), key, nil),
			jws(header, change("exp", -1), key, nil), jws(header, change("exp", "9999999999"), key, nil), jws(header, change("exp", 1e30), key, nil),
			jws(header, change("nbf", time.Now().Add(time.Hour).Unix()), key, nil), jws(header, change("iat", time.Now().Add(time.Hour).Unix()), key, nil),
			jws(header, change("mintmark.dev/uid", "uid-other"), key, nil), jws(header, change("mintmark.dev/uid", nil), key, nil),
			jws(header, change("mintmark.dev/version", -1), key, nil),
			jws(header, strings.TrimSuffix(payload, "}")+`,"iss":"`+testIssuer+`"}`, key, nil), jws(header, `null`, key, nil), jws(header, `[]`, key, nil), jws(header, `{}`, key, nil),
			jws(header, payload+payload, key, nil), jws(header, strings.Repeat("[", 3000), key, nil)),
		"signatures": rsWithout(
			jws(header, payload, nil, make([]byte, 64)), jws(header, payload, nil, der), jws(header, payload, nil, raw[:63]), jws(header, payload, nil, append(raw, 0)),
			jws(header, payload, other.Key.(*ecdsa.PrivateKey), nil), jws(header, change("is_admin", true), nil, raw)),
		"shapes": rsWithout(
			token+".", token+"=", parts[0]+"=."+parts[1]+"."+parts[2], "."+parts[1]+"."+parts[2], parts[0]+".."+parts[2], token+"\t", token+"."+parts[2]+"."+parts[2],
			`{"payload":"`+parts[1]+`","signatures":[{"protected":"`+parts[0]+`","signature":"`+parts[2]+`"}]}`, strings.Repeat(".", 30000), strings.Repeat("a.", 15000),
			parts[0]+"."+parts[1]+"."+parts[2][:len(parts[2])-1]),
	} {
		for i, f := range forged {
			got := e.ask("GET", "/forward-auth", "", bearerOf(f)...)
			if got.status != 401 {
				t.Errorf("%s, number %d: %d, want 401: %.120s", name, i, got.status, f)
			}
		}
	}
	// A key that has left the key set verifies nothing any more.
	e.signing = &keyring.SigningKeys{Current: other, Previous: []*keyring.SigningKey{e.signing.Current}}
	if got := e.ask("GET", "/forward-auth", "", bearerOf(token)...); got.status != 200 {
		t.Errorf("signed with the previous key: %d, want 200", got.status)
	}
	e.signing = &keyring.SigningKeys{Current: other}
	if got := e.ask("GET", "/forward-auth", "", bearerOf(token)...); got.status != 401 {
		t.Errorf("signed with a key that is gone: %d, want 401", got.status)
	}
}

// THREATS 26: limits and timeouts hold, and other clients are served.
func TestHostileConnections(t *testing.T) {
	e := newEdge(t, setup{})
	v := e.mint("ci").value()
	for name, c := range map[string]struct {
		raw    string
		status []int
	}{
		"content length and chunked": {"POST /api/auth/token HTTP/1.1\r\nHost: x\r\nX-API-Key: " + v +
			"\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", []int{400, 200}},
		"two content lengths":     {"POST /api/auth/token HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde", []int{400}},
		"a negative length":       {"POST /api/auth/token HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", []int{400}},
		"an unknown coding":       {"POST /api/auth/token HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n", []int{400, 501}},
		"a chunk that is no size": {"POST /api/auth/token HTTP/1.1\r\nHost: x\r\nX-API-Key: " + v + "\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n", []int{400}},
		"a header of 1 MB":        {"GET /forward-auth HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("a", 1<<20) + "\r\n\r\n", []int{431, 0}},
		"10,000 headers":          {"GET /forward-auth HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("A: b\r\n", 10000) + "\r\n", []int{431, 0}},
		"HTTP/0.9":                {"GET /forward-auth\r\n\r\n", []int{400}},
		"two hosts":               {"GET /forward-auth HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", []int{400}},
		"an expectation":          {"POST /api/auth/token HTTP/1.1\r\nHost: x\r\nExpect: something\r\nContent-Length: 4\r\n\r\n", []int{417}},
	} {
		t.Run(name, func(t *testing.T) {
			status, body := e.rawAnswer(c.raw)
			ok := false
			for _, s := range c.status {
				ok = ok || s == status
			}
			if !ok {
				t.Errorf("%d, want one of %v: %s", status, c.status, body)
			}
			if strings.Contains(body, v) {
				t.Error("the answer holds the key")
			}
		})
	}
	if got := e.ask("GET", "/forward-auth", "", bearerOf(v)...); got.status != 200 {
		t.Errorf("afterwards: %d, want 200", got.status)
	}
}

// THREATS 26: HTTP/2 rapid reset. Streams opened and reset as fast as they can be.
func TestRapidResetsLeaveOthersServed(t *testing.T) {
	e := newEdge(t, setup{})
	v := e.mint("ci").value()
	config := e.client.Transport.(*http.Transport).TLSClientConfig.Clone()
	config.NextProtos, config.ServerName = []string{"h2"}, "example.com"
	conn, err := tls.Dial("tcp", e.http.Listener.Addr().String(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, conn) }()
	framer := http2.NewFramer(conn, nil)
	if err := framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for _, f := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "x"}, {":path", "/forward-auth"}, {"x-api-key", v}} {
		_ = encoder.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	for id := uint32(1); id < 20001; id += 2 {
		err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: true})
		if err == nil {
			err = framer.WriteRSTStream(id, http2.ErrCodeCancel)
		}
		if err != nil {
			break // the server has had enough
		}
		if id%2000 == 1 {
			if got := e.ask("GET", "/forward-auth", "", bearerOf(v)...); got.status != 200 {
				t.Fatalf("another client during it: %d, want 200", got.status)
			}
		}
	}
}

// THREATS 26: the limits of the real listeners are set.
func TestSlowClientsAreCutOff(t *testing.T) {
	s, err := New(validConfig())
	if err != nil {
		t.Fatal(err)
	}
	listeners, err := s.listen(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range listeners {
		if l.server.ReadHeaderTimeout != 5*time.Second || l.server.ReadTimeout <= 0 || l.server.IdleTimeout <= 0 || l.server.WriteTimeout <= 0 ||
			l.server.MaxHeaderBytes != 32<<10 || l.server.HTTP2.MaxConcurrentStreams != maxConcurrentStreams {
			t.Errorf("%s lacks a limit: %+v", l.name, l.server)
		}
		if l.server.TLSConfig != nil && l.server.TLSConfig.MinVersion != tls.VersionTLS12 {
			t.Errorf("%s takes TLS %x", l.name, l.server.TLSConfig.MinVersion)
		}
		_ = l.server.Close()
	}
	a := s.Addresses()
	for _, addr := range []net.Addr{a.Public, a.Internal, a.Metrics} {
		if conn, err := net.Dial("tcp", addr.String()); err == nil {
			_ = conn.Close()
		}
	}
}

// THREATS 27: a secret sent in every wrong place is in no answer, log or metric.
func TestAMarkerSentEverywhereIsFoundNowhere(t *testing.T) {
	const marker = "MARKER0123456789abcdefMARKER"
	for name, proxies := range map[string][]netip.Prefix{"plain": nil, "behind a trusted proxy": {netip.MustParsePrefix("127.0.0.1/32")}} {
		t.Run(name, func(t *testing.T) {
			e := newEdge(t, setup{proxies: proxies})
			m := e.mint("ci")
			token := e.jwtFor(m, "")
			payload := base64.RawURLEncoding.EncodeToString([]byte(`{"` + marker + `":"` + marker + `"}`))
			bodies := []string{"", marker, `{"audience":"` + marker + `"}`, `{"` + marker + `":1}`, `{"ttl":"` + marker + `"}`, `{"ttl":{"` + marker + `":1}}`,
				`["` + marker + `"]`, `audience=` + marker, marker + `=1`, `ttl=` + marker, "<" + marker + ">", "a: [" + marker}
			paths := []string{"/", "/forward-auth", "/forward-auth?permission=" + marker + "%00", "/forward-auth?" + marker + "=1", "/forward-auth?audience=" + marker,
				"/api/auth/token", "/api/auth/profile?access_token=" + marker, "/" + marker, "/api/auth/keys/" + marker, "/api/v1/auth/me/" + marker}
			credentials := [][]string{
				nil, bearerOf(marker), bearerOf(marker + marker), {"X-API-Key", marker}, {"Authorization", marker}, {"Authorization", "Basic " + marker},
				bearerOf("sk_" + marker), bearerOf(marker + "." + marker + "." + marker), bearerOf("e30." + payload + ".AA"), bearerOf(token + marker),
				bearerOf(m.value() + marker), bearerOf(m.value()), bearerOf(token),
				{"Cookie", "session=" + marker}, {"User-Agent", marker, "Referer", marker}, {"X-Request-Id", marker + marker}, {"X-Request-Id", "." + marker},
				{"X-Forwarded-For", marker}, {"Forwarded", "for=" + marker}, {"X-Original-URI", "//" + marker}, {"X-Forwarded-Uri", "/" + marker},
				{"X-" + marker, marker}, {"X-User-ID", marker},
			}
			for _, path := range paths {
				for _, method := range []string{"GET", "POST", marker} {
					for _, c := range credentials {
						for i, body := range bodies {
							if i > 0 && (method != "POST" || path != "/api/auth/token") {
								break
							}
							contentType := []string{"application/json", "application/x-www-form-urlencoded", marker + "/x"}[i%3]
							req, err := http.NewRequest(method, e.http.URL+"/", strings.NewReader(body))
							if err != nil {
								t.Fatal(err)
							}
							req.URL.Opaque = path
							req.Header.Set("Content-Type", contentType)
							for j := 0; j+1 < len(c); j += 2 {
								req.Header[http.CanonicalHeaderKey(c[j])] = []string{c[j+1]}
							}
							got := send(t, e.client, req)
							if got.status >= 500 {
								t.Errorf("%s %s %v: %d", method, path, c, got.status)
							}
							if text := fmt.Sprint(got.header) + got.body; strings.Contains(text, marker) {
								t.Errorf("%s %s %v: the answer holds it: %s", method, path, c, text)
							}
						}
					}
				}
			}
			for _, raw := range []string{
				"GET /%zz" + marker + " HTTP/1.1\r\nHost: x\r\n\r\n", "GET /forward-auth HTTP/1.1\r\nHost: x\r\nX-API-Key: " + marker + "\x00\r\n\r\n",
				marker + "\r\n\r\n", "GET / HTTP/1.1\r\nHost: " + marker + "\r\n" + marker + "\r\n\r\n",
			} {
				if status, body := e.rawAnswer(raw); status >= 500 || strings.Contains(body, marker) {
					t.Errorf("%q: %d %s", raw, status, body)
				}
			}
			for what, text := range map[string]string{"log": e.log.String(), "metrics": scrape(t, e.registry)} {
				for secret, value := range map[string]string{"the marker": marker, "the key": m.value(), "the JWT": token, "its signature": strings.Split(token, ".")[2]} {
					if at := strings.Index(text, value); at >= 0 {
						t.Errorf("%s is in the %s: ...%s...", secret, what, text[max(0, at-200):min(len(text), at+100)])
					}
				}
			}
		})
	}
}
