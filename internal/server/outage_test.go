package server

import (
	"context"
	"log/slog"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mintmark-dev/mintmark/internal/audit"
	"github.com/mintmark-dev/mintmark/internal/store"
	"github.com/mintmark-dev/mintmark/internal/store/database"
	"github.com/mintmark-dev/mintmark/test/postgres"
)

// outage is a server under load that records into a database with troubles.
type outage struct {
	t       *testing.T
	edge    *edge
	db      *database.Database
	record  *audit.Recorder
	end     func()
	asked   atomic.Int64
	refused atomic.Int64
	slowest atomic.Int64 // nanoseconds
}

func newOutage(t *testing.T, url string) *outage {
	t.Helper()
	spool, err := audit.OpenSpool(filepath.Join(t.TempDir(), "spool"), 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	o := &outage{t: t, db: database.New(database.Config{URL: func() (string, error) { return url, nil }, AutoMigrate: true})}
	o.record = audit.New(audit.Config{
		Server: "one", Chain: "one_1", Store: o.db, Spool: spool, Timeout: 500 * time.Millisecond, Flush: 20 * time.Millisecond,
		Log: slog.New(slog.DiscardHandler),
	})
	var recording, storing sync.WaitGroup
	stopRecording := start(&recording, func(ctx context.Context) {
		if err := o.record.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	stopStoring := start(&storing, o.db.Run)
	o.end = sync.OnceFunc(func() {
		stopRecording()
		recording.Wait()
		stopStoring()
		storing.Wait()
		if err := spool.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(o.end)
	o.edge = newEdge(t, setup{discard: true, audit: &auditor{recorder: o.record}})
	return o
}

func start(running *sync.WaitGroup, run func(context.Context)) context.CancelFunc {
	ctx, cancel := context.WithCancel(context.Background())
	running.Go(func() { run(ctx) })
	return cancel
}

// load asks from several callers until the function that it gives is called.
func (o *outage) load() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var asking sync.WaitGroup
	for i := range 4 {
		m := o.edge.mint("caller-" + string(rune('a'+i)))
		asking.Go(func() {
			for ctx.Err() == nil {
				req, err := http.NewRequest(http.MethodGet, o.edge.http.URL+"/forward-auth?permission=deploy:write", http.NoBody)
				if err != nil {
					o.t.Error(err)
					return
				}
				req.Header.Set("Authorization", "Bearer "+m.value())
				began := time.Now()
				got, err := try(o.edge.client, req)
				if err != nil || got.status != http.StatusOK {
					o.refused.Add(1)
				}
				o.asked.Add(1)
				took := int64(time.Since(began))
				for was := o.slowest.Load(); took > was && !o.slowest.CompareAndSwap(was, took); was = o.slowest.Load() {
				}
				select {
				case <-ctx.Done():
				case <-time.After(2 * time.Millisecond):
				}
			}
		})
	}
	return func() {
		cancel()
		asking.Wait()
	}
}

// more waits until so many more requests have been answered.
func (o *outage) more(n int64) {
	o.t.Helper()
	until := o.asked.Load() + n
	eventually(o.t, time.Minute, "requests are answered", func() bool { return o.asked.Load() >= until })
}

func TestNoEventIsLostAndNoRequestRefusedWhateverHappensToTheDatabase(t *testing.T) {
	cluster, err := postgres.Start(t.Context(), postgres.Options{Durable: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Stop)
	name, err := cluster.Database(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	url := cluster.URL(postgres.Owner, name)
	admin := func(statement string) {
		t.Helper()
		conn, err := pgx.Connect(t.Context(), cluster.URL("postgres", "postgres"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(t.Context())
		if _, err := conn.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	s := newOutage(t, url)
	stop := s.load()
	recovered := func(what string) {
		t.Helper()
		eventually(t, time.Minute, "what was spooled is stored after the database was "+what, func() bool {
			h := s.record.Health()
			return h.Spooled == 0 && h.Trouble == ""
		})
	}
	trouble := func(what string) {
		t.Helper()
		eventually(t, 20*time.Second, "events are spooled while the database is "+what, func() bool { return s.record.Health().Spooled > 0 })
		s.more(200)
	}
	eventually(t, time.Minute, "events are stored", func() bool { return s.record.Health().Stored > 100 })

	cluster.Kill()
	trouble("killed")
	if err := cluster.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	recovered("killed")

	if err := cluster.Pause(); err != nil {
		t.Fatal(err)
	}
	trouble("paused")
	if err := cluster.Resume(); err != nil {
		t.Fatal(err)
	}
	recovered("paused")

	// As a full disk has it: every write fails.
	admin("ALTER DATABASE " + name + " SET default_transaction_read_only = on")
	admin("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '" + name + "'")
	trouble("read-only")
	admin("ALTER DATABASE " + name + " RESET default_transaction_read_only")
	admin("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '" + name + "'")
	recovered("read-only")

	stop()
	s.end()
	h := s.record.Health()
	t.Logf("%d requests, none refused; slowest answer %s; %d events recorded, %d stored, %d spooled at the end, %d lost",
		s.asked.Load(), time.Duration(s.slowest.Load()), h.Taken, h.Stored, h.Spooled, h.Lost)
	if n := s.refused.Load(); n != 0 {
		t.Errorf("%d of %d requests were refused", n, s.asked.Load())
	}
	if h.Lost != 0 || h.Taken != s.asked.Load() || h.Stored != h.Taken || h.Spooled != 0 {
		t.Errorf("of %d requests %d events were recorded, %d stored, %d batches are spooled, and %d lost", s.asked.Load(), h.Taken, h.Stored, h.Spooled, h.Lost)
	}
	engine, err := database.Open(t.Context(), url, 2, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	verifyChains(t, engine)
	analytics, err := engine.Analytics(t.Context(), store.AllTenants(), store.AnalyticsFilter{Since: time.Now().Add(-48 * time.Hour), Until: time.Now().Add(24 * time.Hour)})
	if err != nil || analytics.Allowed != s.asked.Load() {
		t.Errorf("the database counts %d requests, of %d (%v)", analytics.Allowed, s.asked.Load(), err)
	}
}

func TestAServerWhoseDatabaseIsDownAtTheStartServesAndStoresLater(t *testing.T) {
	cluster, err := postgres.Start(t.Context(), postgres.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Stop)
	name, err := cluster.Database(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cluster.Kill()
	s := newOutage(t, cluster.URL(postgres.Owner, name))
	m := s.edge.mint("ci")
	for range 10 {
		if got := s.edge.ask("GET", "/forward-auth", "", "Authorization", "Bearer "+m.value()); got.status != http.StatusOK {
			t.Fatalf("answered %d while the database is down", got.status)
		}
	}
	eventually(t, 10*time.Second, "events are spooled", func() bool { return s.record.Health().Spooled > 0 })
	if st := s.db.State(); st.Up || st.Trouble == "" {
		t.Errorf("the database is said to be %+v", st)
	}
	if err := cluster.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "they are stored", func() bool { return s.record.Health().Stored == 10 })
	eventually(t, time.Minute, "the database is said to be up", func() bool { return s.db.State().Up })
}
