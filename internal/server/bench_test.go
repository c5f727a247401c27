package server

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/mintmark-dev/mintmark/internal/credential"
)

// BenchmarkFloorHello is the floor of BenchmarkForwardAuth: a bare Go handler behind the
// same TLS listener and the same client. Only the ratio of the two, from one run, says
// anything.
func BenchmarkFloorHello(b *testing.B) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "hello\n")
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	b.Cleanup(server.Close)
	load(b, server, "/", "")
}

func BenchmarkForwardAuth(b *testing.B) {
	for _, n := range []int{10, 10_000} {
		b.Run(fmt.Sprintf("%d credentials", n), func(b *testing.B) {
			e := newEdge(b, setup{discard: true})
			var m *minted
			for i := range n {
				m = e.mint(fmt.Sprintf("key-%d", i))
			}
			server := e.onHTTP1()
			b.Run("good", func(b *testing.B) { load(b, server, "/forward-auth?permission=deploy:write", m.value()) })
			b.Run("unknown", func(b *testing.B) {
				load(b, server, "/forward-auth?permission=deploy:write", "sk_"+fmt.Sprintf("%064x", n))
			})
		})
	}
}

// BenchmarkForwardAuthJWT verifies an ES256 signature in each request.
func BenchmarkForwardAuthJWT(b *testing.B) {
	e := newEdge(b, setup{discard: true})
	token := e.jwtFor(e.mint("ci"), "")
	load(b, e.onHTTP1(), "/forward-auth?permission=deploy:write", token)
}

// BenchmarkToken issues an ES256 token in each request.
func BenchmarkToken(b *testing.B) {
	e := newEdge(b, setup{discard: true})
	m := e.mint("ci", func(r *credential.Record) { r.JWT.TTLSeconds = 900 })
	loadMethod(b, e.onHTTP1(), http.MethodPost, "/api/auth/token", m.value())
}

// onHTTP1 serves the same handler without HTTP/2, as gateways ask it.
func (e *edge) onHTTP1() *httptest.Server {
	server := httptest.NewUnstartedServer(e.http.Config.Handler)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	e.t.Cleanup(server.Close)
	return server
}

func load(b *testing.B, server *httptest.Server, path, value string) {
	b.Helper()
	loadMethod(b, server, http.MethodGet, path, value)
}

// loadMethod asks over 16 connections that are kept.
func loadMethod(b *testing.B, server *httptest.Server, method, path, value string) {
	b.Helper()
	client := server.Client()
	client.Transport.(*http.Transport).MaxIdleConnsPerHost = 64
	b.SetParallelism(8) // of 2 processors
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			req, err := http.NewRequest(method, server.URL+path, nil)
			if err != nil {
				b.Error(err)
				return
			}
			if value != "" {
				req.Header["Authorization"] = []string{"Bearer " + value}
			}
			resp, err := client.Do(req)
			if err != nil {
				b.Error(err)
				return
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		}
	})
}

// discardWriter is a response nobody reads: what is left is our own work.
type discardWriter struct{ header http.Header }

func (d *discardWriter) Header() http.Header         { return d.header }
func (d *discardWriter) Write(p []byte) (int, error) { return len(p), nil }
func (d *discardWriter) WriteHeader(int)             {}

// BenchmarkForwardAuthHandler is our own part of a check, without net/http around it.
func BenchmarkForwardAuthHandler(b *testing.B) {
	e := newEdge(b, setup{discard: true})
	m := e.mint("ci")
	req := httptest.NewRequest(http.MethodGet, "/forward-auth?permission=deploy:write", nil)
	req.Header["Authorization"] = []string{"Bearer " + m.value()}
	handler := e.http.Config.Handler
	w := &discardWriter{http.Header{}}
	b.ReportAllocs()
	for b.Loop() {
		clear(w.header)
		handler.ServeHTTP(w, req)
	}
}
