package server

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mintmark-dev/mintmark/internal/oauth"
)

// FuzzParameters holds the reader of forms to url.ParseQuery.
func FuzzParameters(f *testing.F) {
	for _, body := range []string{
		"", "token=x", "token=x&client_ip=10.0.0.1", "&&token=x&", "token=%41+b", "token=x&token=y", "token", "=x", "a;b=c", "%zz=1", "a=%z", "to%6ben=x&token=y",
		"a=b=c", strings.Repeat("&", 50), "a&b&c&d&e&f&g&h&i&j&k&l&m&n&o&p&q&r&s&t&u&v&w&x&y&z&0&1&2&3&4&5&6",
	} {
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body string) {
		got, wrong := parseParameters(body)
		want, err := url.ParseQuery(body)
		twice := false
		for _, values := range want {
			twice = twice || len(values) > 1
		}
		if refused := err != nil || twice || len(want) > maxParameters; refused != (wrong != "") {
			t.Fatalf("%q is refused: %v (%s), by url.ParseQuery: %v", body, wrong != "", wrong, err)
		}
		if wrong != "" {
			return
		}
		if len(got) != len(want) {
			t.Fatalf("%q has %d parameters, want %d", body, len(got), len(want))
		}
		for name := range want {
			if got.Get(name) != want.Get(name) {
				t.Errorf("%s of %q is %q, want %q", name, body, got.Get(name), want.Get(name))
			}
		}
	})
}

func TestWhatIsWrittenByHandIsWhatEncodingJSONWrites(t *testing.T) {
	nasty := "a\"b\\c\nd\u2028é\x7f"
	for name, value := range map[string]interface{ appendJSON([]byte) []byte }{
		"a token": &tokenResponse{Token: "a.b.c", ExpiresIn: 900, TokenType: "Bearer", KeyID: "uid", Permissions: "api:read deploy:*", IsAdmin: true},
		"a token, nasty": &tokenResponse{
			Token: nasty, ExpiresIn: -1, TokenType: nasty, KeyID: nasty, Permissions: nasty,
		},
		"an active token": &activeToken{
			Active: true, Scope: "api:read", Permissions: "api:read", Roles: "deployer", ClientID: "servicetoken:payments:ci", Username: "ci",
			TokenType: "Bearer", Expires: 2, IssuedAt: 1, NotBefore: 1, Subject: "servicetoken:payments:ci", Audience: []string{"https://a", "https://b"},
			Issuer: testIssuer, ID: "jti", Namespace: "payments", Kind: "ServiceToken", KeyID: "uid", Version: 3, IsAdmin: true, Method: "jwt",
		},
		"an active token of which little is known": &activeToken{Active: true},
		"an active token, nasty": &activeToken{
			Active: true, Scope: nasty, Permissions: nasty, Roles: nasty, ClientID: nasty, Username: nasty, TokenType: nasty, Expires: -1, IssuedAt: -1,
			NotBefore: -1, Subject: nasty, Audience: []string{nasty, ""}, Issuer: nasty, ID: nasty, Namespace: nasty, Kind: nasty, KeyID: nasty, Version: -1, Method: nasty,
		},
	} {
		t.Run(name, func(t *testing.T) {
			want, err := json.Marshal(value)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(value.appendJSON(nil))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// FuzzPlainTarget: what the quick look passes, the careful one would.
func FuzzPlainTarget(f *testing.F) {
	for _, target := range []string{"/", "/a/b-c_d?x=//..", "//a", "/a//b", "/a/../b", "/a.b", "/a;b", "/%61", "a", "", "/a/", "/a?"} {
		f.Add(target)
	}
	f.Fuzz(func(t *testing.T, target string) {
		if plainTarget(target) && (!soundTarget(target) || pathOf(target) != strings.SplitN(target, "?", 2)[0]) {
			t.Errorf("%q passes the quick look alone", target)
		}
	})
}

func TestAQuickLookIsEnoughForUsualPaths(t *testing.T) {
	for _, target := range []string{"/", "/reports/today", "/reports/today/?page=2", "/api/v1/Things_2/a-b"} {
		if !plainTarget(target) {
			t.Errorf("%s gets a careful look", target)
		}
	}
}

func TestABodyIsReadAsFarAsItIsAllowedToBe(t *testing.T) {
	for name, c := range map[string]struct {
		body   string
		length int64
		want   string
		refuse *problem
	}{
		"none":                         {"", 0, "", nil},
		"of a length that is told":     {"token=x", 7, "token=x", nil},
		"of a length that is not told": {"token=x", -1, "token=x", nil},
		"as long as it may be":         {strings.Repeat("x", 16), 16, strings.Repeat("x", 16), nil},
		"too long, and told":           {strings.Repeat("x", 17), 17, "", problemTooLarge},
		"too long, and not told":       {strings.Repeat("x", 17), -1, "", problemTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(c.body))
			r.ContentLength = c.length
			body, refused := readBody(httptest.NewRecorder(), r, 16)
			if refused != c.refuse || string(body) != c.want {
				t.Errorf("%q, %v; want %q, %v", body, refused, c.want, c.refuse)
			}
		})
	}
	r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader("short"))
	r.ContentLength = 10
	if _, refused := readBody(httptest.NewRecorder(), r, 16); refused == nil || refused.Status != http.StatusBadRequest {
		t.Errorf("a body that ends early: %v", refused)
	}
}

// A JWT that says what its credential still may is told as one that says more: sorted, and
// no more than both.
func TestWhatAJWTMayIsTheSameHoweverItIsFound(t *testing.T) {
	e := newEdge(t, setup{})
	m := e.mint("ci")
	token := e.jwtFor(m, "")
	before := e.ask("GET", "/api/auth/profile", "", bearerOf(token)...)
	claims, err := e.issuer.Verify(token, e.now(), oauth.Expect{})
	if err != nil {
		t.Fatal(err)
	}
	var told profileResponse
	if err := json.Unmarshal([]byte(before.body), &told); err != nil {
		t.Fatal(err)
	}
	if told.Permissions != claims.Scope() || told.Permissions != "api:read deploy:*" || told.Roles != "deployer" {
		t.Errorf("permissions %q and roles %q of a token for %q", told.Permissions, told.Roles, claims.Scope())
	}
}
