package main

import (
	"bytes"
	"encoding/pem"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/mintmark-dev/mintmark/internal/audit"
)

func TestEventsAreSentToAnOTLPReceiverUntilTheEnd(t *testing.T) {
	var got atomic.Int64
	server := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if r.URL.Path == "/v1/logs" && r.Header.Get("Authorization") == "Bearer hunter2" {
			got.Add(1)
		}
	}))
	defer server.Close()
	dir := t.TempDir()
	headers, ca := filepath.Join(dir, "headers"), filepath.Join(dir, "ca.crt")
	for name, text := range map[string][]byte{
		headers: []byte("Authorization: Bearer hunter2\n"), ca: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}),
	} {
		if err := os.WriteFile(name, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	o := auditOptions{
		log: filepath.Join(dir, "audit.jsonl"), overflow: "continue", successes: "all",
		otlp: otlpOptions{endpoint: server.URL, headersFile: headers, caFile: ca},
	}
	a, err := o.start("one", slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	a.Recorder.Record(&audit.Event{Type: audit.TypeServerStarted, Outcome: audit.Done})
	if err := a.Exporter.Export(t.Context(), []audit.Event{{Type: audit.TypeRevocation, Outcome: audit.Done}}); err != nil {
		t.Error(err)
	}
	if err := a.end(); err != nil {
		t.Fatal(err)
	}
	if h := a.OTLP.Health(); h.Sent != 2 || got.Load() != 2 {
		t.Errorf("%d requests arrived: %+v", got.Load(), h)
	}
	lines, err := os.ReadFile(o.log)
	if err != nil || bytes.Count(lines, []byte("\n")) != 2 {
		t.Errorf("the file holds %q, %v", lines, err)
	}
}

func TestFlagsForAnOTLPReceiverThatDoNotGoTogetherAreRefused(t *testing.T) {
	pod := environment("POD_IP", "10.1.2.3", "POD_NAME", "p")
	for want, args := range map[string][]string{
		"--audit-otlp-endpoint: not the URL":      {"--audit-otlp-endpoint=collector:4317"},
		"neither user, query nor fragment":        {"--audit-otlp-endpoint=https://user:hunter2@collector"},
		"are for --audit-otlp-endpoint: give it":  {"--audit-otlp-headers-file=f"},
		"are for --audit-otlp-endpoint: give it ": {"--audit-otlp-ca-file=f"},
	} {
		if _, err := parse(args, pod, new(bytes.Buffer)); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%v: %v, want %q", args, err, want)
		}
	}
	empty := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(empty, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{empty, "/no/such/file"} {
		o := otlpOptions{endpoint: "https://collector:4318", caFile: file}
		if _, err := o.open("one", slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "--audit-otlp-ca-file") {
			t.Errorf("%s: %v", file, err)
		}
	}
	o := otlpOptions{endpoint: "https://collector:4318", headersFile: empty}
	if _, err := o.headers(); err == nil || !strings.Contains(err.Error(), "--audit-otlp-headers-file: line 1") {
		t.Errorf("%v", err)
	}
}
