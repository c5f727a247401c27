package postgres_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mintmark-dev/mintmark/internal/audit"
	"github.com/mintmark-dev/mintmark/internal/store/postgres"
	testpostgres "github.com/mintmark-dev/mintmark/test/postgres"
)

// BenchmarkIngest records events as a server does, from the queue over batches in a chain into
// the database with what they add to usage, and copies the same rows by themselves into a table
// of the same columns and indexes. The rounds of the two take turns, so that the machine's moods
// meet both; the server syncs what is committed, as in production.
func BenchmarkIngest(b *testing.B) {
	cluster := testpostgres.StartFor(b, testpostgres.Options{Durable: true, Settings: map[string]string{"shared_buffers": "256MB", "max_wal_size": "4GB"}})
	url := cluster.URL(testpostgres.Owner, cluster.DatabaseFor(b))
	s, err := postgres.Open(b.Context(), postgres.Config{URL: url})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(s.Close)
	if err := s.Migrate(b.Context()); err != nil {
		b.Fatal(err)
	}
	const round = 50_000
	random := rand.New(rand.NewPCG(1, 2))
	var recorded, copied, bare time.Duration
	for n := 0; b.Loop(); n++ {
		events := make([]audit.Event, round)
		for i := range events {
			events[i] = request(random, n*round+i)
		}
		recorded += record(b, s, n, events)
		copied += copyRows(b, url, "floor", "INCLUDING DEFAULTS INCLUDING INDEXES", n)
		bare += copyRows(b, url, "bare", "INCLUDING DEFAULTS", n)
	}
	rate := func(took time.Duration) float64 { return float64(b.N*round) / took.Seconds() }
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(rate(recorded), "events/s")
	b.ReportMetric(rate(copied), "COPY-rows/s")
	b.ReportMetric(rate(bare), "COPY-unindexed-rows/s")
	b.ReportMetric(rate(recorded)/rate(copied), "of-COPY")
	b.ReportMetric(rate(recorded)/rate(bare), "of-COPY-unindexed")
}

// request is an event as most are.
func request(random *rand.Rand, i int) audit.Event {
	uid := random.IntN(2000)
	ns := strconv.Itoa(uid % 100)
	return audit.Event{
		At: time.Now(), Type: audit.TypeAuthentication, Outcome: audit.Allowed, Reason: "Accepted", Subject: "servicetoken:ns-" + ns + ":name-" + strconv.Itoa(uid),
		UID: fmt.Sprintf("6f0c0000-0000-4000-8000-%012d", uid), Kind: "ServiceToken", Namespace: "ns-" + ns, Name: "name-" + strconv.Itoa(uid), Class: "default", Version: 3, Slot: audit.SlotCurrent,
		Prefix: "sk_81ac", Client: netip.AddrFrom4([4]byte{10, byte(uid), byte(random.IntN(256)), byte(random.IntN(256))}), UserAgent: "kubernetes-client/1.36 (linux/amd64)", Method: "GET",
		Endpoint: audit.Text("/api/v2/orders/" + strconv.Itoa(random.IntN(100_000))), RequestID: audit.Text(fmt.Sprintf("%08x%08x%08x%08x", random.Uint32(), random.Uint32(), random.Uint32(), i)),
		Server: "one", Took: 38 * time.Microsecond,
	}
}

// counting tells when so many events are stored.
type counting struct {
	*postgres.Store

	left int
	all  chan struct{}
}

// Append implements audit.Store. One batch is stored after another.
func (c *counting) Append(ctx context.Context, b *audit.Batch) error {
	err := c.Store.Append(ctx, b)
	if err == nil {
		if c.left -= len(b.Events); c.left == 0 {
			close(c.all)
		}
	}
	return err
}

// record hands events to a Recorder, and waits until the last is stored.
func record(b *testing.B, s *postgres.Store, n int, events []audit.Event) time.Duration {
	b.Helper()
	// The queue has room for bursts, not for a round of one flood at once.
	stored := &counting{Store: s, left: len(events), all: make(chan struct{})}
	r := audit.New(audit.Config{Server: "one", Chain: "one_" + strconv.Itoa(n), Store: stored, Queue: 4 * len(events)})
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	began := time.Now()
	var running sync.WaitGroup
	running.Go(func() {
		if err := r.Run(ctx); err != nil {
			b.Error(err)
		}
	})
	for i := range events {
		if !r.Record(&events[i]) {
			b.Fatal("an event found no room")
		}
	}
	// Told by the store itself, for looking takes time from what is measured.
	select {
	case <-stored.all:
	case <-time.After(time.Minute):
		b.Fatalf("it is not stored: %+v", r.Health())
	}
	took := time.Since(began)
	cancel()
	running.Wait()
	return took
}

// copyRows copies the rows of a chain's events into a table, in one stream.
func copyRows(b *testing.B, url, table, like string, n int) time.Duration {
	b.Helper()
	connect := func() *pgx.Conn {
		conn, err := pgx.Connect(b.Context(), url)
		if err == nil {
			_, err = conn.Exec(b.Context(), "SET search_path = mintmark; SET mintmark.tenant = '*'")
		}
		if err != nil {
			b.Fatal(err)
		}
		return conn
	}
	reader, writer := connect(), connect()
	defer reader.Close(b.Context())
	defer writer.Close(b.Context())
	if _, err := writer.Exec(b.Context(), "CREATE TABLE IF NOT EXISTS "+table+" (LIKE events "+like+")"); err != nil {
		b.Fatal(err)
	}
	found, err := reader.Query(b.Context(), "SELECT e.* FROM events e JOIN batches ON batches.id = e.batch WHERE chain = $1 ORDER BY batch, ordinal", "one_"+strconv.Itoa(n))
	if err != nil {
		b.Fatal(err)
	}
	var columns []string
	for _, f := range found.FieldDescriptions() {
		columns = append(columns, f.Name)
	}
	rows, err := pgx.CollectRows(found, func(row pgx.CollectableRow) ([]any, error) { return row.Values() })
	if err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	if _, err := writer.CopyFrom(b.Context(), pgx.Identifier{table}, columns, pgx.CopyFromRows(rows)); err != nil {
		b.Fatal(err)
	}
	return time.Since(began)
}
