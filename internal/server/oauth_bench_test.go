package server

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/credential"
	"github.com/mintmark-dev/mintmark/internal/keyring"
	"github.com/mintmark-dev/mintmark/internal/oauth"
)

// BenchmarkFloorPost is the floor of what takes a form: a bare Go handler that reads it.
func BenchmarkFloorPost(b *testing.B) {
	e := newEdge(b, setup{discard: true})
	e.http.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, "hello\n")
	})
	e.postLoad(b, "/", "x", "token="+strings.Repeat("x", 67))
}

// BenchmarkIntrospect asks about one key, and about one JWT: verified before, as in a
// service's second request with it, and each time anew.
func BenchmarkIntrospect(b *testing.B) {
	e := newEdge(b, setup{discard: true})
	e.operators()
	service := e.operator("gateway", "payments", PermissionIntrospect).value()
	m := e.mint("ci")
	b.Run("key", func(b *testing.B) { e.postLoad(b, introspectionPath, service, "token="+m.value()) })
	token := e.jwtFor(m, "")
	b.Run("JWT seen before", func(b *testing.B) { e.postLoad(b, introspectionPath, service, "token="+token) })
	tokens := make([]string, 8192)
	for i := range tokens {
		issued, _, err := e.issuer.Issue(e.index.Verify(m.token, authn.Request{}, e.now()).Principal, e.now(), oauth.Options{})
		if err != nil {
			b.Fatal(err)
		}
		tokens[i] = "token=" + issued
	}
	b.Run("JWT", func(b *testing.B) { e.postLoad(b, introspectionPath, service, tokens...) })
}

// BenchmarkTokenOf exchanges a key for a JWT of each algorithm.
func BenchmarkTokenOf(b *testing.B) {
	e := newEdge(b, setup{discard: true})
	e.others = []*keyring.SigningKeys{ringKey(b, keyring.EdDSA), ringKey(b, keyring.RS256)}
	for _, algorithm := range append(keyring.Algorithms(), oauth.HS256) {
		m := e.mint("ci-"+strings.ToLower(algorithm), func(r *credential.Record) { r.JWT.Algorithm = algorithm })
		b.Run(algorithm, func(b *testing.B) { loadMethod(b, e.onHTTP1(), http.MethodPost, "/api/auth/token", m.value()) })
	}
}

// postLoad sends the bodies in turn over connections that are kept.
func (e *edge) postLoad(b *testing.B, path, value string, bodies ...string) {
	b.Helper()
	server := e.onHTTP1()
	client := server.Client()
	client.Transport.(*http.Transport).MaxIdleConnsPerHost = 64
	b.SetParallelism(8)
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for n := 0; pb.Next(); n++ {
			req, err := http.NewRequest(http.MethodPost, server.URL+path, strings.NewReader(bodies[n%len(bodies)]))
			if err != nil {
				b.Error(err)
				return
			}
			req.Header["Authorization"] = []string{"Bearer " + value}
			req.Header["Content-Type"] = []string{"application/x-www-form-urlencoded"}
			resp, err := client.Do(req)
			if err != nil {
				b.Error(err)
				return
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			if resp.Body.Close() != nil || resp.StatusCode != http.StatusOK {
				b.Error(resp.Status)
				return
			}
		}
	})
}
