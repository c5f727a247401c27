package federation

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

func TestOnlyThePublicInternetIsPublic(t *testing.T) {
	for address, want := range map[string]bool{
		"1.1.1.1": true, "140.82.112.3": true, "2606:4700::1111": true, "64:ff9b::8c52:7003": true, "::ffff:1.1.1.1": true,
		"127.0.0.1": false, "127.8.8.8": false, "::1": false, "0.0.0.0": false, "::": false, "10.0.0.1": false, "172.16.0.1": false,
		"192.168.1.1": false, "169.254.169.254": false, "fe80::1": false, "fd00::1": false, "fc00:ec2::254": false, "fec0::1": false, "100.64.0.1": false,
		"100.100.100.200": false, "168.63.129.16": false, "192.0.0.192": false, "198.18.0.1": false, "224.0.0.1": false, "ff02::1": false,
		"255.255.255.255": false, "240.0.0.1": false, "::ffff:127.0.0.1": false, "::ffff:10.0.0.1": false, "::127.0.0.1": false,
		"64:ff9b::7f00:1": false, "64:ff9b::a9fe:a9fe": false, "64:ff9b:1::1": false, "2002:7f00:1::": false, "2001:0:7f00:1::": false,
		"2001:db8::1": false, "100::1": false, "5f00::1": false,
	} {
		if got := public(netip.MustParseAddr(address)); got != want {
			t.Errorf("%s: public is %t, want %t", address, got, want)
		}
	}
}

// resolver answers each look-up with the next address, and the last from then on.
func resolver(addresses ...string) func(context.Context, string) ([]netip.Addr, error) {
	var n atomic.Int64
	return func(context.Context, string) ([]netip.Addr, error) {
		at := min(int(n.Add(1)), len(addresses)) - 1
		return []netip.Addr{netip.MustParseAddr(addresses[at])}, nil
	}
}

func TestNothingIsFetchedFromWhereItMustNotBe(t *testing.T) {
	i := newIssuer(t, newSigner("ec-1", "ES256"))
	port := i.url[strings.LastIndexByte(i.url, ':'):]
	loopback := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	for name, c := range map[string]struct {
		url      string
		networks []netip.Prefix
		shielded []string
		resolve  func(context.Context, string) ([]netip.Addr, error)
		want     error
	}{
		"loopback by a name":                   {i.url, nil, nil, resolver("127.0.0.1"), errForbidden},
		"loopback by its address":              {"https://127.0.0.1" + port, nil, nil, resolver("127.0.0.1"), errForbidden},
		"loopback in IPv6 form":                {"https://[::ffff:127.0.0.1]" + port, nil, nil, resolver("127.0.0.1"), errForbidden},
		"the metadata of a cloud":              {"https://169.254.169.254" + port, nil, nil, resolver("127.0.0.1"), errForbidden},
		"a private network":                    {i.url, nil, nil, resolver("10.1.2.3"), errForbidden},
		"link-local, loopback is allowed":      {i.url, loopback, nil, resolver("169.254.169.254"), errForbidden},
		"the API server":                       {i.url, nil, []string{"api.example.com"}, resolver("1.1.1.1"), errForbidden},
		"loopback where that is allowed":       {i.url, loopback, nil, resolver("127.0.0.1"), nil},
		"the API server where that is allowed": {i.url, loopback, []string{"api.example.com"}, resolver("127.0.0.1"), nil},
	} {
		t.Run(name, func(t *testing.T) {
			before := i.count("/keys")
			compiled, err := Compile("ci", i.spec(func(s *v1alpha1.TrustedIssuerSpec) { s.JWKSURL = c.url + "/keys" }))
			if err != nil {
				t.Fatal(err)
			}
			d := &dialer{networks: c.networks, shielded: c.shielded, resolve: c.resolve}
			keys, _, err := newFetcher(compiled, d).keys(t.Context(), compiled)
			if !errors.Is(err, c.want) || (err == nil) != (keys != nil) {
				t.Fatalf("the error is %v, want %v", err, c.want)
			}
			if fetched := i.count("/keys") - before; c.want != nil && fetched != 0 {
				t.Errorf("it was fetched all the same, %d times", fetched)
			}
			if c.want != nil && !strings.Contains(err.Error(), "--allow-issuer-networks") {
				t.Errorf("the error does not say what to do: %v", err)
			}
		})
	}
}

// A name that is public when it is looked at, and loopback when it is connected to.
func TestANameThatIsReboundIsNotFollowed(t *testing.T) {
	i := newIssuer(t, newSigner("ec-1", "ES256"))
	compiled, err := Compile("ci", i.spec())
	if err != nil {
		t.Fatal(err)
	}
	d := &dialer{resolve: resolver("198.51.100.1", "127.0.0.1")}
	for range 3 {
		if _, _, err := newFetcher(compiled, d).keys(t.Context(), compiled); !errors.Is(err, errForbidden) {
			t.Fatalf("the error is %v", err)
		}
	}
	if n := i.count(DiscoveryPath); n != 0 {
		t.Errorf("it was asked %d times", n)
	}
	// Of several addresses those that are not allowed are left out.
	d = &dialer{networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}, resolve: func(context.Context, string) ([]netip.Addr, error) {
		return []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("127.0.0.1")}, nil
	}}
	if _, _, err := newFetcher(compiled, d).keys(t.Context(), compiled); err != nil {
		t.Errorf("with one address that is allowed: %v", err)
	}
}

func TestAnswersThatAreNoKeysAreRefused(t *testing.T) {
	key := newSigner("ec-1", "ES256")
	elsewhere := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, keySetOf(t, key)) }))
	defer elsewhere.Close()
	text := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		}
	}
	redirect := func(to string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/moved" {
				_, _ = io.WriteString(w, keySetOf(t, key))
				return
			}
			http.Redirect(w, r, to, http.StatusFound)
		}
	}
	i := newIssuer(t, key)
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		want   string // empty: the keys are taken
	}{
		"HTML":                    {text(200, "<!doctype html><title>Sign in</title>"), "not a JWK Set"},
		"10 MB of keys":           {text(200, `{"keys":[`+strings.Repeat(`{"kty":"x"},`, 900_000)+`{}]}`), "longer than 512 KiB"},
		"an error":                {text(500, "oops, token=hunter2"), "status 500"},
		"nothing":                 {text(200, ""), "not a JWK Set"},
		"a redirect to loopback":  {redirect("https://127.0.0.1:1/keys"), "another origin"},
		"a redirect to elsewhere": {redirect(elsewhere.URL), "another origin"},
		"a redirect to http":      {redirect(strings.Replace(i.url, "https", "http", 1) + "/moved"), "another origin"},
		"a redirect to itself":    {redirect("/keys"), "redirects"},
		"a redirect on the host":  {redirect("/moved"), ""},
		"a body that ends early": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = io.WriteString(w, `{"keys":[`)
		}, "unexpected EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			i.set(func(i *issuer) { i.answer = c.answer })
			compiled, err := Compile("ci", i.spec(func(s *v1alpha1.TrustedIssuerSpec) { s.JWKSURL = i.url + "/keys" }))
			if err != nil {
				t.Fatal(err)
			}
			d := &dialer{networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, resolve: resolver("127.0.0.1")}
			keys, _, err := newFetcher(compiled, d).keys(t.Context(), compiled)
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || keys != nil {
				t.Fatalf("the error is %v, want one with %q", err, c.want)
			}
			if strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), i.url) {
				t.Errorf("the error repeats the answer, or does not say whose it is: %v", err)
			}
		})
	}
}

func TestDiscoveryHasToBeTheIssuers(t *testing.T) {
	i := newIssuer(t, newSigner("ec-1", "ES256"))
	for name, c := range map[string]struct{ document, want string }{
		"of another issuer":      {`{"issuer":"https://evil.example.com","jwks_uri":"` + i.url + `/keys"}`, "another issuer"},
		"with a slash more":      {`{"issuer":"` + i.url + `/","jwks_uri":"` + i.url + `/keys"}`, "another issuer"},
		"without keys":           {`{"issuer":"` + i.url + `"}`, "jwks_uri"},
		"with keys by http":      {`{"issuer":"` + i.url + `","jwks_uri":"http://example.com/keys"}`, "https"},
		"with keys in a file":    {`{"issuer":"` + i.url + `","jwks_uri":"file:///etc/passwd"}`, "https"},
		"with keys on loopback":  {`{"issuer":"` + i.url + `","jwks_uri":"https://[::1]/keys"}`, "--allow-issuer-networks"},
		"in HTML":                {`<html>`, "not a discovery document"},
		"in HTML after a while ": {strings.Repeat(" ", maxDiscoveryLen+1), "longer than"},
	} {
		t.Run(name, func(t *testing.T) {
			i.set(func(i *issuer) {
				i.answer = func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, c.document) }
			})
			compiled, err := Compile("ci", i.spec())
			if err != nil {
				t.Fatal(err)
			}
			d := &dialer{networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, resolve: resolver("127.0.0.1")}
			if _, _, err = newFetcher(compiled, d).keys(t.Context(), compiled); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("the error is %v, want one with %q", err, c.want)
			}
		})
	}
}

func TestAnIssuerIsWhoeverItsCertificateSays(t *testing.T) {
	i := newIssuer(t, newSigner("ec-1", "ES256"))
	compiled, err := Compile("ci", i.spec(func(s *v1alpha1.TrustedIssuerSpec) { s.CABundle = nil }))
	if err != nil {
		t.Fatal(err)
	}
	d := &dialer{networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, resolve: resolver("127.0.0.1")}
	if _, _, err := newFetcher(compiled, d).keys(t.Context(), compiled); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("without caBundle the error is %v", err)
	}
}

func TestEnvironmentProxiesAreNotUsed(t *testing.T) {
	i := newIssuer(t, newSigner("ec-1", "ES256"))
	var asked atomic.Int64
	proxy := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	defer proxy.Close()
	t.Setenv("HTTPS_PROXY", proxy.URL)
	t.Setenv("https_proxy", proxy.URL)
	compiled, err := Compile("ci", i.spec())
	if err != nil {
		t.Fatal(err)
	}
	f := newFetcher(compiled, &dialer{networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, resolve: resolver("127.0.0.1")})
	if f.http.Transport.(*http.Transport).Proxy != nil {
		t.Error("there is a proxy")
	}
	if _, _, err := f.keys(t.Context(), compiled); err != nil || asked.Load() != 0 {
		t.Errorf("%v; the proxy was asked %d times", err, asked.Load())
	}
}

func TestCacheControlSaysForHowLong(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"": 0, "public, max-age=600": 10 * time.Minute, "max-age=\"60\"": time.Minute, "no-store": 1, "no-cache, max-age=60": 1, "max-age=-1": 0,
		"max-age=99999999999999999999": 0, "MAX-AGE=1": time.Second, "max-age=0": 1, "private": 0,
	} {
		if got := maxAge(http.Header{"Cache-Control": {text}}); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}

func ExampleCompile() {
	_, err := Compile("github", &v1alpha1.TrustedIssuerSpec{
		Issuer: "https://token.actions.githubusercontent.com", Audiences: []string{"https://mintmark.example.com"},
		Mapping: v1alpha1.ClaimMapping{Roles: "claims.repo == 'octo/app' ? 'deployer' : ''"},
	})
	fmt.Println(err)
	// Output: TrustedIssuer github: spec.mapping.roles: Invalid value: "claims.repo == 'octo/app' ? 'deployer' : ''": it gives string, and has to give a list of strings
}
