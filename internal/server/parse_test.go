package server

import (
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/mintmark-dev/mintmark/internal/credential"
)

func TestTheClientsAddress(t *testing.T) {
	trusted := proxies{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::/32")}
	for name, c := range map[string]struct {
		peer   string
		header http.Header
		want   string // empty: none
	}{
		"no proxy":                             {"198.51.100.1:1", nil, "198.51.100.1"},
		"a header from a peer not trusted":     {"198.51.100.1:1", http.Header{"X-Forwarded-For": {"203.0.113.7"}}, "198.51.100.1"},
		"one trusted hop":                      {"10.0.0.1:1", http.Header{"X-Forwarded-For": {"203.0.113.7"}}, "203.0.113.7"},
		"an address put in front":              {"10.0.0.1:1", http.Header{"X-Forwarded-For": {"192.0.2.1, 203.0.113.7"}}, "203.0.113.7"},
		"two trusted hops":                     {"10.0.0.1:1", http.Header{"X-Forwarded-For": {"192.0.2.1, 203.0.113.7, 10.2.3.4"}}, "203.0.113.7"},
		"trusted hops alone":                   {"10.0.0.1:1", http.Header{"X-Forwarded-For": {"10.9.9.9, 10.2.3.4"}}, "10.9.9.9"},
		"lines are one list":                   {"10.0.0.1:1", http.Header{"X-Forwarded-For": {"192.0.2.1", "203.0.113.7"}}, "203.0.113.7"},
		"IPv6":                                 {"[2001:db8::1]:1", http.Header{"X-Forwarded-For": {"2001:db9::7"}}, "2001:db9::7"},
		"IPv6 with brackets and a port":        {"[2001:db8::1]:1", http.Header{"X-Forwarded-For": {"[2001:db9::7]:44"}}, "2001:db9::7"},
		"a zone does not count":                {"10.0.0.1:1", http.Header{"X-Forwarded-For": {"fe80::1%eth0"}}, "fe80::1"},
		"a peer in IPv6 form":                  {"[::ffff:10.0.0.1]:1", http.Header{"X-Forwarded-For": {"203.0.113.7"}}, "203.0.113.7"},
		"garbage nearest to us":                {"10.0.0.1:1", http.Header{"X-Forwarded-For": {"203.0.113.7, unknown"}}, ""},
		"garbage behind the client":            {"10.0.0.1:1", http.Header{"X-Forwarded-For": {"garbage, 203.0.113.7"}}, "203.0.113.7"},
		"Forwarded":                            {"10.0.0.1:1", http.Header{"Forwarded": {`for=192.0.2.1;proto=http, For="203.0.113.7:9";by=10.0.0.1`}}, "203.0.113.7"},
		"Forwarded by a hop that hides itself": {"10.0.0.1:1", http.Header{"Forwarded": {"for=203.0.113.7, proto=https"}}, ""},
		"two headers that agree":               {"10.0.0.1:1", http.Header{"Forwarded": {"for=203.0.113.7"}, "X-Forwarded-For": {"203.0.113.7"}}, "203.0.113.7"},
		"two headers that do not":              {"10.0.0.1:1", http.Header{"Forwarded": {"for=203.0.113.8"}, "X-Forwarded-For": {"203.0.113.7"}}, ""},
		"a peer without an address":            {"@", http.Header{"X-Forwarded-For": {"203.0.113.7"}}, ""},
	} {
		r := &http.Request{RemoteAddr: c.peer, Header: c.header}
		got := trusted.clientAddr(r, peerAddr(r))
		if got.IsValid() != (c.want != "") || got.IsValid() && got.String() != c.want {
			t.Errorf("%s: %s, want %q", name, got, c.want)
		}
	}
}

func FuzzTheClientsAddress(f *testing.F) {
	f.Add("203.0.113.7, 10.0.0.1", `for="[::1]:80"`)
	f.Add(",,,", ";;;=,for")
	trusted := proxies{netip.MustParsePrefix("10.0.0.0/8")}
	f.Fuzz(func(t *testing.T, xff, forwarded string) {
		for _, h := range []http.Header{{"X-Forwarded-For": {xff}}, {"Forwarded": {forwarded}}, {"X-Forwarded-For": {xff}, "Forwarded": {forwarded}}} {
			from := &http.Request{RemoteAddr: "192.0.2.1:1", Header: h}
			if got := trusted.clientAddr(from, peerAddr(from)); got.String() != "192.0.2.1" {
				t.Errorf("a peer that is not trusted is taken for %s", got)
			}
			from.RemoteAddr = "10.0.0.1:1"
			trusted.clientAddr(from, peerAddr(from))
		}
	})
}

func FuzzWhatIsPresented(f *testing.F) {
	f.Add("", "Bearer sk_"+strings.Repeat("0", 64))
	f.Add("mk123456.abc", "")
	f.Add("", "Bearer a.b.c")
	f.Fuzz(func(t *testing.T, key, authorization string) {
		h := http.Header{}
		if key != "" {
			h["X-Api-Key"] = []string{key}
		}
		if authorization != "" {
			h["Authorization"] = []string{authorization}
		}
		got, how := readPresented(carriedBy(h))
		switch how {
		case presentedKey:
			if v := got.key.Reveal(); v == "" || v != key && !strings.HasSuffix(authorization, v) || strings.ContainsAny(v, " ,\x00\r\n") {
				t.Errorf("%q and %q give the key %q", key, authorization, v)
			}
			if _, err := credential.Parse(got.key.Reveal()); err != nil {
				t.Errorf("a key that does not parse: %q", got.key.Reveal())
			}
		case presentedJWT:
			if key != "" || strings.Count(got.jwt, ".") != 2 {
				t.Errorf("%q and %q give the JWT %q", key, authorization, got.jwt)
			}
		case presentedNone:
			if len(h) != 0 {
				t.Errorf("%q and %q are taken for nothing", key, authorization)
			}
		}
	})
}

func FuzzRequirements(f *testing.F) {
	f.Add("permission=a:b&audience=https%3A%2F%2Fx")
	f.Add("permission=%zz")
	f.Fuzz(func(t *testing.T, query string) {
		n, problem := parseNeed(query, false)
		if (n == nil) == (problem == nil) {
			t.Fatal("neither a requirement nor a problem, or both")
		}
		if problem != nil {
			if problem.Status != 400 {
				t.Errorf("%q: %d", query, problem.Status)
			}
			return
		}
		for _, p := range n.permissions {
			if p == "" || strings.ContainsAny(p, "\"\\*\r\n ") || !utf8.ValidString(p) {
				t.Errorf("%q requires %q", query, p)
			}
		}
	})
}

func FuzzCanonicalTarget(f *testing.F) {
	for _, s := range []string{"/", "/a/%2e%2e/b", "//", "/a;b/..;c", "https://x//y", "/%25", "*"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, target string) {
		if !canonicalTarget(target) {
			return
		}
		if i := strings.Index(target, "://"); i >= 0 && !strings.ContainsAny(target[:i], "/?#") {
			return
		}
		path, _, _ := strings.Cut(target, "?")
		for _, bad := range []string{"//", "/../", "/./", "\\", "#", "%00", "%25", "%2f", "%2F", "/..;"} {
			if strings.Contains(path, bad) {
				t.Errorf("%q is taken for canonical", target)
			}
		}
	})
}

func TestRequirementsAreKeptWithinBounds(t *testing.T) {
	var n needs
	for i := range 3 * maxKnownNeeds / 2 {
		if _, problem := n.of("permission=p" + strings.Repeat("x", i%100) + strings.Repeat("y", i/100)); problem != nil {
			t.Fatal(problem.Detail)
		}
	}
	if kept := len(*n.known.Load()); kept > maxKnownNeeds {
		t.Errorf("%d are kept, more than %d", kept, maxKnownNeeds)
	}
	again, _ := n.of("permission=p")
	once, _ := n.of("permission=p")
	if again != once {
		t.Error("the same query is parsed twice")
	}
}
