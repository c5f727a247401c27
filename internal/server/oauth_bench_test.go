package server

import (
	"net/http"
	"strings"
	"testing"

	"github.com/mintmark-dev/mintmark/internal/credential"
	"github.com/mintmark-dev/mintmark/internal/keyring"
	"github.com/mintmark-dev/mintmark/internal/oauth"
)

// BenchmarkTokenOf exchanges a key for a JWT of each algorithm.
func BenchmarkTokenOf(b *testing.B) {
	e := newEdge(b, setup{discard: true})
	e.others = []*keyring.SigningKeys{ringKey(b, keyring.EdDSA), ringKey(b, keyring.RS256)}
	for _, algorithm := range append(keyring.Algorithms(), oauth.HS256) {
		m := e.mint("ci-"+strings.ToLower(algorithm), func(r *credential.Record) { r.JWT.Algorithm = algorithm })
		b.Run(algorithm, func(b *testing.B) { loadMethod(b, e.onHTTP1(), http.MethodPost, "/api/auth/token", m.value()) })
	}
}
