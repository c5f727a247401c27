package server

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/mintmark-dev/mintmark/internal/credential"
)

// BenchmarkHandlers is our own part of requests, without net/http around it.
func BenchmarkHandlers(b *testing.B) {
	e := asInstalled(b)
	good := e.mint("ci", func(r *credential.Record) { r.JWT.TTLSeconds = 3600 })
	service, jwt := e.operator("gateway", "payments", PermissionIntrospect), e.jwtFor(good, "")
	for _, c := range []struct{ name, request string }{
		{"forward-auth of a key", forwarded("/forward-auth?permission=deploy:write", benchClient, good.value())},
		{"forward-auth of a JWT seen before", forwarded("/forward-auth?permission=deploy:write", benchClient, jwt)},
		{"token", posted("/api/auth/token", good.value(), "")},
		{"renewal", posted("/api/auth/renew", jwt, "")},
		{"introspection of a key", posted(introspectionPath, service.value(), "token="+good.value())},
		{"introspection of a JWT seen before", posted(introspectionPath, service.value(), "token="+jwt)},
	} {
		b.Run(c.name, func(b *testing.B) {
			req, err := http.ReadRequest(bufio.NewReader(strings.NewReader(c.request)))
			if err != nil {
				b.Fatal(err)
			}
			text, err := io.ReadAll(req.Body)
			if err != nil {
				b.Fatal(err)
			}
			req.RemoteAddr = "127.0.0.1:4711"
			body := bytes.NewReader(text)
			req.Body = io.NopCloser(body)
			w := &discardWriter{header: http.Header{}}
			b.ReportAllocs()
			for b.Loop() {
				clear(w.header)
				body.Reset(text)
				e.public.ServeHTTP(w, req)
			}
			if w.status != 0 && w.status != http.StatusOK {
				b.Fatal(w.status)
			}
		})
	}
}
