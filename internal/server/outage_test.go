package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"text/tabwriter"
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

func newOutage(t *testing.T, url string, change ...func(*audit.Config)) *outage {
	t.Helper()
	spool, err := audit.OpenSpool(filepath.Join(t.TempDir(), "spool"), 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	o := &outage{t: t, db: database.New(database.Config{URL: func() (string, error) { return url, nil }, AutoMigrate: true})}
	c := audit.Config{
		Server: "one", Chain: "one_1", Store: o.db, Spool: spool, Timeout: 500 * time.Millisecond, Flush: 20 * time.Millisecond,
		Log: slog.New(slog.DiscardHandler),
	}
	for _, f := range change {
		f(&c)
	}
	o.record = audit.New(c)
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

// trouble is something that happens to a database, and how it ends.
type trouble struct {
	name       string
	begin, end func() error
	// counted before and after, for the table.
	sent, spooled, refused int64
	lasted                 time.Duration
	said                   string // by the store, which it has to hold at least
}

// TestNoEventIsLostAndNoRequestRefusedWhateverHappensToTheDatabase puts one server under load
// through one trouble after another, and counts.
func TestNoEventIsLostAndNoRequestRefusedWhateverHappensToTheDatabase(t *testing.T) {
	cluster := postgres.StartFor(t, postgres.Options{Durable: true, SmallSegments: true, Settings: map[string]string{
		"max_wal_size": "64MB", "min_wal_size": "32MB", "wal_retrieve_retry_interval": "200ms",
	}})
	name := cluster.DatabaseFor(t)
	replica, err := cluster.Replica(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(replica.Stop)
	// As an operator writes it: whichever of the two is written to.
	url := fmt.Sprintf("postgres://%s@127.0.0.1:%d,127.0.0.1:%d/%s?sslmode=disable&target_session_attrs=read-write", postgres.Owner, cluster.Port(), replica.Port(), name)
	s := newOutage(t, url)
	stop := s.load()
	eventually(t, time.Minute, "events are stored", func() bool { return s.record.Health().Stored > 100 })

	statements := func(all ...string) func() error { return func() error { return onDatabase(t, cluster, all...) } }
	hangUp := "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '" + name + "'"
	bulk := func(rows int) string { // what takes up the room of a disk of a megabyte
		return fmt.Sprintf("INSERT INTO ballast SELECT repeat(md5(n::text), 30) FROM generate_series(1, %d) n", rows)
	}
	if err := onDatabase(t, cluster, "CREATE TABLE ballast (x text)"); err != nil {
		t.Fatal(err)
	}
	troubles := []*trouble{
		{name: "killed, and started again", begin: func() error { cluster.Kill(); return nil }, end: func() error { return cluster.Restart(t.Context()) }},
		{name: "paused", begin: cluster.Pause, end: cluster.Resume},
		{name: "read-only", begin: statements("ALTER DATABASE "+name+" SET default_transaction_read_only = on", hangUp), end: statements("ALTER DATABASE "+name+" RESET default_transaction_read_only", hangUp), said: "read only"},
		{name: "full", begin: func() error {
			// Every file of events is at the end of the disk: some are past it, others reach it.
			for _, table := range []string{"events", "usage", "batches"} {
				if err := onDatabaseNamed(t, cluster, name, postgres.Owner, "SET search_path = mintmark; SET mintmark.tenant = '*'; "+padding(table)); err != nil {
					return err
				}
			}
			if err := cluster.Fill(); err != nil {
				return err
			}
			if err := onDatabase(t, cluster, bulk(5000)); err == nil {
				return errors.New("the disk is not full: a table of five megabytes was written")
			}
			return nil
		}, end: cluster.Empty, said: "File too large"},
		{name: "out of connections", begin: statements("ALTER DATABASE "+name+" CONNECTION LIMIT 0", hangUp), end: statements("ALTER DATABASE " + name + " CONNECTION LIMIT -1"), said: "too many connections"},
		{name: "failed over to its replica", begin: func() error { cluster.Kill(); return nil }, end: func() error { return replica.Promote(t.Context()) }},
	}
	for _, trouble := range troubles {
		s.through(trouble)
	}

	stop()
	s.end()
	h := s.record.Health()
	table := new(bytes.Buffer)
	w := tabwriter.NewWriter(table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "the database was\tfor\tevents sent\tspooled batches\trequests refused")
	for _, trouble := range troubles {
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\n", trouble.name, trouble.lasted.Round(100*time.Millisecond), trouble.sent, trouble.spooled, trouble.refused)
	}
	_ = w.Flush()
	t.Logf("\n%sall in all: %d events sent, %d stored, %d lost, %d requests refused; slowest answer %s", table, s.asked.Load(), h.Stored, h.Lost, s.refused.Load(),
		time.Duration(s.slowest.Load()).Round(time.Millisecond))
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

// padding makes a table's file longer than the disk of a server that is full, without a row
// that stays: what comes next has to make it longer.
func padding(table string) string {
	if table == "usage" {
		return "INSERT INTO usage (uid, version, namespace, subject, prefix) SELECT md5(n::text), 1, 'padding', repeat('x', 200), '' FROM generate_series(1, 5000) n"
	}
	return "SELECT 1"
}

// through has a trouble begin and end under load, and waits until all that was kept is stored.
func (o *outage) through(of *trouble) {
	o.t.Helper()
	sent, refused, began := o.asked.Load(), o.refused.Load(), time.Now()
	if err := of.begin(); err != nil {
		o.t.Fatalf("%s: %v", of.name, err)
	}
	eventually(o.t, 30*time.Second, "events are spooled while the database is "+of.name, func() bool { return o.record.Health().Spooled > 0 })
	o.more(200)
	of.spooled = o.record.Health().Spooled
	eventually(o.t, 20*time.Second, fmt.Sprintf("while the database is %s the store says %q", of.name, of.said), func() bool {
		return strings.Contains(o.record.Health().Trouble, of.said)
	})
	if err := of.end(); err != nil {
		o.t.Fatalf("the end of %s: %v", of.name, err)
	}
	of.lasted = time.Since(began)
	eventually(o.t, time.Minute, "what was spooled is stored after the database was "+of.name, func() bool {
		h := o.record.Health()
		return h.Spooled == 0 && h.Trouble == ""
	})
	of.sent, of.refused = o.asked.Load()-sent, o.refused.Load()-refused
}

func onDatabase(t *testing.T, c *postgres.Cluster, statements ...string) error {
	t.Helper()
	return onDatabaseNamed(t, c, "postgres", "postgres", statements...)
}

func onDatabaseNamed(t *testing.T, c *postgres.Cluster, name, account string, statements ...string) error {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), c.URL(account, name))
	if err != nil {
		return err
	}
	defer conn.Close(t.Context())
	for _, statement := range statements {
		if _, err := conn.Exec(t.Context(), statement); err != nil {
			return fmt.Errorf("%s: %w", statement, err)
		}
	}
	return nil
}

// TestASpoolWithoutRoomIsCountedAndSaid has the database down and the disk of the spool full:
// requests are answered, what is lost is counted, said in the log and the status, and an event
// tells of it once there is a database again.
func TestASpoolWithoutRoomIsCountedAndSaid(t *testing.T) {
	cluster := postgres.StartFor(t, postgres.Options{Durable: true})
	name := cluster.DatabaseFor(t)
	url := cluster.URL(postgres.Owner, name)
	log := new(journal)
	s := newOutage(t, url, func(c *audit.Config) { c.Log = log.logger() })
	stop := s.load()
	eventually(t, time.Minute, "events are stored", func() bool { return s.record.Health().Stored > 100 })
	cluster.Kill()
	eventually(t, 30*time.Second, "events are spooled", func() bool { return s.record.Health().Spooled > 0 })

	full := fullDisk(t, 64<<10)
	eventually(t, time.Minute, "events are lost", func() bool { return s.record.Health().Lost > 0 })
	if h := s.record.Health(); !h.Full {
		t.Errorf("events are lost, and it is not said: %+v", h)
	}
	s.more(200)
	full()
	s.more(200)
	eventually(t, time.Minute, "with room on the disk nothing more is lost", func() bool { return !s.record.Health().Full })
	if err := cluster.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "the rest is stored", func() bool { h := s.record.Health(); return h.Spooled == 0 && h.Trouble == "" })
	stop()
	s.end()
	h := s.record.Health()
	t.Logf("%d requests, %d refused; %d events recorded, %d stored, %d lost for want of room, each of them counted", s.asked.Load(), s.refused.Load(), h.Taken, h.Stored, h.Lost)
	if s.refused.Load() != 0 {
		t.Errorf("%d requests were refused", s.refused.Load())
	}
	if !strings.Contains(log.String(), "events of the audit log are being lost") {
		t.Errorf("the log does not say that events are lost:\n%s", log)
	}
	engine, err := database.Open(t.Context(), url, 2, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	page, err := engine.Events(t.Context(), store.AllTenants(), store.EventFilter{Types: []audit.Type{audit.TypeEventsLost}}, store.Page{})
	if err != nil {
		t.Fatal(err)
	}
	var told int64
	for _, e := range page.Items {
		n, err := strconv.ParseInt(string(e.Detail["events"]), 10, 64)
		if err != nil {
			t.Error(err)
		}
		told += n
	}
	analytics, err := engine.Analytics(t.Context(), store.AllTenants(), store.AnalyticsFilter{})
	if err != nil {
		t.Fatal(err)
	}
	if told == 0 || told+analytics.Allowed != s.asked.Load() {
		t.Errorf("of %d requests %d are stored, and events tell of %d that are not", s.asked.Load(), analytics.Allowed, told)
	}
}

// fullDisk has no file of this process grow beyond a size, until the function that it gives is
// called: a write beyond it fails as it does on a full disk.
func fullDisk(t *testing.T, size uint64) (end func()) {
	t.Helper()
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &before); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: size, Max: before.Max}); err != nil {
		t.Fatal(err)
	}
	end = sync.OnceFunc(func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &before); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(end)
	return end
}

func TestAServerWhoseDatabaseIsDownAtTheStartServesAndStoresLater(t *testing.T) {
	cluster := postgres.StartFor(t, postgres.Options{})
	name := cluster.DatabaseFor(t)
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
