package database

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mintmark-dev/mintmark/internal/audit"
	"github.com/mintmark-dev/mintmark/internal/store"
	"github.com/mintmark-dev/mintmark/test/postgres"
)

func TestMain(m *testing.M) { postgres.Main(m) }

// run runs a Database until the test ends or stop is called.
func run(t *testing.T, c Config) (d *Database, stop func()) {
	t.Helper()
	d = New(c)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { d.Run(ctx) })
	stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
	t.Cleanup(stop)
	return d, stop
}

func eventually(t *testing.T, what string, check func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !check(); {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
		select {
		case <-t.Context().Done():
			t.Fatal(what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func always(url string) func() (string, error) { return func() (string, error) { return url, nil } }

func batchOf(t *testing.T, chain string) *audit.Batch {
	t.Helper()
	b, err := audit.NewSealer(chain).Seal([]audit.Event{{ID: audit.FixedID(chain), At: time.Now(), Type: audit.TypeServerStarted, Outcome: audit.Done}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestAURLThatCannotBeOpenedIsRefusedWithoutRepeatingIt(t *testing.T) {
	for url, ok := range map[string]bool{
		"postgres://mintmark:hunter2@db:5432/mintmark": true, "postgresql://db/mintmark": true, "sqlite:///var/lib/mintmark.db": true,
		"postgres://u@a:5432,b:5433/db?target_session_attrs=read-write": true, "postgres://u@[::1]:5432,[::2]:5433/db": true,
		"sqlite://relative.db": false, "sqlite:relative.db": false, "sqlite:///": false, "sqlite:///a?mode=ro": false, "mysql://root:hunter2@db/x": false,
		"": false, "db.example.com": false, "postgres://user:hunter2%@db/x": false,
	} {
		err := CheckURL(url)
		if (err == nil) != ok {
			t.Errorf("%q: %v", url, err)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the error repeats the password: %v", err)
		}
	}
}

func TestADatabaseThatIsNotThereYetIsOpenedOnceItIs(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "volume")
	var log bytes.Buffer
	d, stop := run(t, Config{URL: always("sqlite://" + filepath.Join(folder, "mintmark.db")), AutoMigrate: true, Log: slog.New(slog.NewJSONHandler(&log, nil))})
	eventually(t, "it says what is missing", func() bool { return strings.Contains(d.State().Trouble, "volume") })
	if err := d.Append(t.Context(), batchOf(t, "a")); !errors.Is(err, ErrNotOpen) {
		t.Errorf("appending to what is not open: %v", err)
	}
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is open", func() bool { return d.State().Up && d.State().Health.Engine == "SQLite" })
	if err := d.Append(t.Context(), batchOf(t, "a")); err != nil {
		t.Fatal(err)
	}
	stop()
	if n := strings.Count(log.String(), `"level":"ERROR"`); n != 1 {
		t.Errorf("%d lines about one outage:\n%s", n, log.String())
	}
}

func TestTwoServersMigrateOneDatabaseAtOnce(t *testing.T) {
	url := postgres.NewDatabase(t)
	all := make([]*Database, 4)
	for i := range all {
		all[i], _ = run(t, Config{URL: always(url), AutoMigrate: true, MaxConnections: 5, RetainMonths: 13})
	}
	for i, d := range all {
		eventually(t, "it is open", func() bool { return d.State().Up })
		if err := d.Append(t.Context(), batchOf(t, string(rune('a'+i)))); err != nil {
			t.Error(err)
		}
	}
	if h := all[0].State().Health; h.Schema == 0 || h.MaxConnections != 5 {
		eventually(t, "its health is known", func() bool { return all[0].State().Health.Schema > 0 && all[0].State().Health.MaxConnections == 5 })
	}
}

func TestASchemaThatMayNotBeMigratedIsSaidToBeMissing(t *testing.T) {
	url := postgres.NewDatabase(t)
	d, stop := run(t, Config{URL: always(url)})
	eventually(t, "it says so", func() bool { return strings.Contains(d.State().Trouble, "--migrate") })
	if d.State().Up {
		t.Error("up without a schema")
	}
	stop()
	engine, err := Open(t.Context(), url, 2, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	if err := engine.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	d, _ = run(t, Config{URL: always(url)})
	eventually(t, "it is open", func() bool { return d.State().Up })
}

func TestAPasswordIsInNoTrouble(t *testing.T) {
	d, _ := run(t, Config{URL: always("postgres://mintmark:hunter2@127.0.0.1:1/mintmark"), AutoMigrate: true})
	eventually(t, "it cannot be reached", func() bool { return d.State().Trouble != "not opened yet" })
	if s := d.State(); s.Up || strings.Contains(s.Trouble, "hunter2") {
		t.Errorf("%+v", s)
	}
	if _, err := d.Engine(); !errors.Is(err, ErrNotOpen) || strings.Contains(err.Error(), "hunter2") {
		t.Error(err)
	}
}

func TestAFileWithTheURLIsReadAnewUntilItCanBeOpened(t *testing.T) {
	good := "sqlite://" + filepath.Join(t.TempDir(), "mintmark.db")
	var mu sync.Mutex
	url := "mysql://no"
	d, _ := run(t, Config{AutoMigrate: true, URL: func() (string, error) {
		mu.Lock()
		defer mu.Unlock()
		return url, nil
	}})
	eventually(t, "it is refused", func() bool { return strings.Contains(d.State().Trouble, "write it like") })
	mu.Lock()
	url = good
	mu.Unlock()
	eventually(t, "it is open", func() bool { return d.State().Up })
	if all, err := d.Tombstones(t.Context(), 0, 10); err != nil || len(all) != 0 {
		t.Errorf("%v, %v", all, err)
	}
	if err := d.PutTombstones(t.Context(), []store.Tombstone{{Digest: make([]byte, 32), RevokedAt: time.Now()}}); err != nil {
		t.Error(err)
	}
}
