package server

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"
)

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
type discardWriter struct {
	header http.Header
	status int
}

func (d *discardWriter) Header() http.Header         { return d.header }
func (d *discardWriter) Write(p []byte) (int, error) { return len(p), nil }
func (d *discardWriter) WriteHeader(status int)      { d.status = status }

// encoded sends and receives messages as they are on the wire: what the caller, who in
// truth is no Go program, makes of them is not ours to measure.
type encoded struct{}

func (encoded) Name() string { return "proto" }

func (encoded) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }

func (encoded) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = data
	return nil
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
