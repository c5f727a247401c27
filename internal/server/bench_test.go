package server

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"

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

// loadMethod asks over 16 connections that are kept. The client does next to nothing: it
// writes the same bytes each time and looks for the end of the answer.
func loadMethod(b *testing.B, server *httptest.Server, method, path, value string) {
	b.Helper()
	request := method + " " + path + " HTTP/1.1\r\nHost: example.com\r\nUser-Agent: bench\r\nAccept-Encoding: gzip\r\n"
	if value != "" {
		request += "Authorization: Bearer " + value + "\r\n"
	}
	if method == http.MethodPost {
		request += "Content-Length: 0\r\n"
	}
	ask := []byte(request + "\r\n")
	config := server.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	config.ServerName, config.NextProtos = "example.com", nil
	b.SetParallelism(8) // of 2 processors
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		conn, err := tls.Dial("tcp", server.Listener.Addr().String(), config)
		if err != nil {
			b.Error(err)
			return
		}
		defer conn.Close()
		answers := bufio.NewReader(conn)
		for pb.Next() {
			if _, err := conn.Write(ask); err != nil {
				b.Error(err)
				return
			}
			if err := skipAnswer(answers); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// skipAnswer reads an answer of HTTP/1.1 with a Content-Length.
func skipAnswer(r *bufio.Reader) error {
	length := 0
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		if text, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(text))); err != nil {
				return err
			}
		}
		if len(line) == 2 {
			_, err = r.Discard(length)
			return err
		}
	}
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

// BenchmarkFloorUnary is the floor of BenchmarkExtAuthz: an empty gRPC call behind the
// same TLS listener with the same limits.
func BenchmarkFloorUnary(b *testing.B) {
	e := newEdge(b, setup{discard: true})
	loadRPC(b, e.rpc(), healthv1.Health_Check_FullMethodName, new(healthv1.HealthCheckRequest))
}

// BenchmarkExtAuthz answers what Envoy asks, with the headers it sends.
func BenchmarkExtAuthz(b *testing.B) {
	for _, n := range []int{10, 10_000} {
		b.Run(fmt.Sprintf("%d credentials", n), func(b *testing.B) {
			e := newEdge(b, setup{discard: true, proxies: localProxies})
			var m *minted
			for i := range n {
				m = e.mint(fmt.Sprintf("key-%d", i))
			}
			conn := e.rpc()
			for _, c := range []struct{ name, value string }{{"good", m.value()}, {"unknown", "sk_" + fmt.Sprintf("%064x", n)}} {
				q := envoy{headers: map[string]string{"authorization": "Bearer " + c.value}, extensions: map[string]string{"mintmark.permissions": "deploy:write"}}
				b.Run(c.name, func(b *testing.B) { loadRPC(b, conn, authv3.Authorization_Check_FullMethodName, q.request()) })
			}
		})
	}
}

// encoded sends and receives messages as they are on the wire: what the caller, who in
// truth is no Go program, makes of them is not ours to measure.
type encoded struct{}

func (encoded) Name() string { return "proto" }

func (encoded) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }

func (encoded) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = data
	return nil
}

// loadRPC calls 16 at a time over one connection, as a worker of Envoy does.
func loadRPC(b *testing.B, conn *grpc.ClientConn, method string, message proto.Message) {
	b.Helper()
	ask, err := proto.Marshal(message)
	if err != nil {
		b.Fatal(err)
	}
	b.SetParallelism(8) // of 2 processors
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			var answer []byte
			if err := conn.Invoke(context.Background(), method, &ask, &answer, grpc.ForceCodec(encoded{})); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// BenchmarkExtAuthzHandler is our own part of a check, without gRPC around it.
func BenchmarkExtAuthzHandler(b *testing.B) {
	e := newEdge(b, setup{discard: true, proxies: localProxies})
	m := e.mint("ci")
	a := newExtAuthz(e.public)
	q := envoy{headers: map[string]string{"authorization": "Bearer " + m.value()}, extensions: map[string]string{"mintmark.permissions": "deploy:write"}}
	ask, err := proto.Marshal(q.request())
	if err != nil {
		b.Fatal(err)
	}
	ctx := peer.NewContext(context.Background(), &peer.Peer{Addr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 4000}})
	b.ReportAllocs()
	for b.Loop() {
		read := new(envoyCheck)
		if err := read.decode(ask); err != nil {
			b.Fatal(err)
		}
		if answer := a.check(ctx, read); answer.code != codes.OK || len(answer.encode()) == 0 {
			b.Fatal(answer)
		}
	}
}
