package main

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mintmark-dev/mintmark/internal/audit"
)

func TestFlagsOfTheAuditLogThatDoNotGoTogetherAreRefused(t *testing.T) {
	pod := environment("POD_IP", "10.1.2.3", "POD_NAME", "p")
	for want, args := range map[string][]string{
		"give one":                         {"--database-url=sqlite:///a.db", "--database-url-file=f"},
		"--audit-overflow \"drop\"":        {"--audit-overflow=drop"},
		"--audit-overflow=deny is for":     {"--audit-overflow=deny"},
		"--audit-spool-dir is for":         {"--audit-spool-dir=/tmp"},
		"--audit-successes \"some\"":       {"--audit-successes=some"},
		"--audit-retention -1":             {"--audit-retention=-1"},
		"--audit-spool-max-bytes 0":        {"--audit-spool-max-bytes=0"},
		"--database-max-connections 0":     {"--database-max-connections=0"},
		"--migrate: give --database-url":   {"--migrate"},
		"--database-url: write it like":    {"--database-url=mysql://root:hunter2@db"},
		"write the path of the file whole": {"--database-url=sqlite://a.db"},
	} {
		_, err := parse(args, pod, new(bytes.Buffer))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%v: %v, want %q", args, err, want)
		}
	}
	o, err := parse(nil, environment("POD_IP", "10.1.2.3", "POD_NAME", "p", "MINTMARK_DATABASE_URL", "sqlite:///a.db"), new(bytes.Buffer))
	if err != nil || o.audit.url != "sqlite:///a.db" || o.audit.retention != 13 || !o.audit.autoMigrate {
		t.Errorf("%+v, %v", o, err)
	}
}

func TestMigrateMakesTheSchemaAndExits(t *testing.T) {
	url := filepath.Join(t.TempDir(), "url")
	path := filepath.Join(t.TempDir(), "mintmark.db")
	if err := os.WriteFile(url, []byte("sqlite://"+path+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		var stderr bytes.Buffer
		if code := run(t.Context(), []string{"--migrate", "--database-url-file=" + url},
			environment(), &stderr); code != exitOK {
			t.Fatalf("exit %d: %s", code, stderr.String())
		}
	}
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
	var stderr bytes.Buffer
	if code := run(t.Context(), []string{"--migrate", "--database-url=sqlite:///no/such/folder/x.db"},
		environment(), &stderr); code != exitFailure || !strings.Contains(stderr.String(), "/no/such/folder") {
		t.Errorf("exit %d: %s", code, stderr.String())
	}
}

func TestWithoutFlagsNothingIsRecorded(t *testing.T) {
	a, err := new(auditOptions).start("one", slog.New(slog.DiscardHandler), nil)
	if err != nil || a.Recorder != nil || a.Store != nil {
		t.Errorf("%+v, %v", a, err)
	}
	if err := a.end(); err != nil {
		t.Error(err)
	}
}

func TestEventsGoToAFileAndTheDatabaseUntilTheEnd(t *testing.T) {
	dir := t.TempDir()
	o := auditOptions{
		url: "sqlite://" + filepath.Join(dir, "mintmark.db"), log: filepath.Join(dir, "audit.jsonl"), spoolDir: filepath.Join(dir, "spool"), spoolMaxBytes: 1 << 20,
		maxConnections: 1, autoMigrate: true, overflow: "deny", successes: "none", retention: 1,
	}
	for run := range 2 { // the file is appended to
		a, err := o.start("one", slog.New(slog.DiscardHandler), nil)
		if err != nil {
			t.Fatal(err)
		}
		if !a.DenyOnOverflow || !a.FailuresOnly || a.Exporter == nil {
			t.Errorf("the flags are not heeded: %+v", a.Audit)
		}
		for deadline := time.Now().Add(10 * time.Second); !a.Store.State().Up; {
			if time.Now().After(deadline) {
				t.Fatalf("the database is not opened: %+v", a.Store.State())
			}
			select {
			case <-t.Context().Done():
			case <-time.After(time.Millisecond):
			}
		}
		a.Recorder.Record(&audit.Event{Type: audit.TypeServerStarted, Outcome: audit.Done})
		if err := a.end(); err != nil {
			t.Fatal(err)
		}
		if h := a.Recorder.Health(); h.Stored != 1 || h.Lost != 0 {
			t.Errorf("run %d: %+v", run, h)
		}
	}
	text, err := os.ReadFile(o.log)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	if len(lines) != 2 || !json.Valid([]byte(lines[1])) {
		t.Errorf("the file holds %q", lines)
	}
}
