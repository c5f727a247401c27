//go:build scale

package store

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mintmark-dev/mintmark/internal/audit"
	"github.com/mintmark-dev/mintmark/internal/store"
	storepostgres "github.com/mintmark-dev/mintmark/internal/store/postgres"
	"github.com/mintmark-dev/mintmark/test/postgres"
)

// What is generated, for the whole of it.
const (
	defaultEvents = 5_000_000
	months        = 13
	namespaces    = 200
	credentials   = 10_000
	inventory     = 100_000
	batchSize     = 1000
	// slowest is what any query may take; the machine is shared.
	slowest = 3 * time.Second
)

// last is the end of what is generated.
var last = time.Date(2026, 8, 1, 0, 0, 0, 0, time.UTC)

// TestQueriesOfManyEvents runs each query of the store on MINTMARK_EVENTS generated events
// of thirteen months, prints how long it took and by which plan, and fails where one scans
// a partition.
func TestQueriesOfManyEvents(t *testing.T) {
	events := defaultEvents
	if text := os.Getenv("MINTMARK_EVENTS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 100_000 {
			t.Fatalf("MINTMARK_EVENTS=%q: give a number from 100000 on", text)
		}
		events = n
	}
	cluster := postgres.StartFor(t, postgres.Options{Settings: map[string]string{
		"session_preload_libraries": "auto_explain", "auto_explain.log_analyze": "on", "auto_explain.log_buffers": "on", "auto_explain.log_timing": "off",
		"shared_buffers": "1GB", "maintenance_work_mem": "512MB", "max_wal_size": "4GB", "wal_level": "minimal", "max_wal_senders": "0", "autovacuum": "off",
	}})
	name := cluster.DatabaseFor(t)
	url := cluster.URL(postgres.Owner, name)
	g := &generator{t: t, url: url, events: events}
	g.run()
	admin(t, cluster.URL("postgres", name), "ALTER DATABASE "+name+" SET auto_explain.log_min_duration = 0")
	s := openStore(t, url)
	measure(t, s, cluster.Log())
}

func openStore(t *testing.T, url string) *storepostgres.Store {
	t.Helper()
	s, err := storepostgres.Open(t.Context(), storepostgres.Config{URL: url, MaxConnections: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func admin(t *testing.T, url string, statements ...string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	for _, statement := range statements {
		if _, err := conn.Exec(t.Context(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
}

// generator fills a database as servers would have in thirteen months.
type generator struct {
	t      *testing.T
	url    string
	events int
}

func (g *generator) run() {
	g.t.Helper()
	began := time.Now()
	s := openStore(g.t, g.url)
	if err := s.Migrate(g.t.Context()); err != nil {
		g.t.Fatal(err)
	}
	// Two months at a time, for two processors. The indexes are made of the whole.
	var loading sync.WaitGroup
	todo := make(chan int)
	for range 2 {
		loading.Go(func() {
			for month := range todo {
				g.month(month)
			}
		})
	}
	for month := range months {
		todo <- month
	}
	close(todo)
	loading.Wait()
	g.t.Logf("%d events of %d months were generated in %s", g.events, months, time.Since(began).Round(time.Second))
	admin(g.t, g.url, "SET search_path = mintmark", "SET mintmark.tenant = '*'",
		fmt.Sprintf(`INSERT INTO usage SELECT 'uid-' || u, v, 'ns-' || u %% %d, 'servicetoken:ns-' || u %% %[1]d || ':name-' || u, 'sk_live_', 1000, 3,
			timestamptz '2026-08-01' - make_interval(days => u %% 90), '192.0.2.0/24', 'current' FROM generate_series(0, %d) u, generate_series(1, 4) v`, namespaces, credentials-1),
		fmt.Sprintf(`INSERT INTO usage_daily SELECT date '2026-07-31' - d, 'uid-' || u, 'ns-' || u %% %d, 'servicetoken:ns-' || u %% %[1]d || ':name-' || u, 100 + u %% 7, u %% 3
			FROM generate_series(0, %d) u, generate_series(0, 394) d`, namespaces, credentials-1),
		fmt.Sprintf(`INSERT INTO latency_daily SELECT date '2026-07-31' - d, 'ns-' || n, b, 1000 FROM generate_series(0, 394) d, generate_series(0, %d) n, generate_series(5, 12) b`, namespaces-1),
		fmt.Sprintf(`INSERT INTO credentials (uid, kind, namespace, name, class, owner, description, labels, metadata, admin, created, state)
			SELECT 'uid-' || u, 'ServiceToken', 'ns-' || u %% %d, 'name-' || u, 'default', 'team-' || u %% 50, 'of ' || u, jsonb_build_object('app', 'app-' || u %% 1000, 'tier', 't' || u %% 3),
			jsonb_build_object('ticket', 'T-' || u, 'cost', 'c' || u %% 20), false, now(), 'Active' FROM generate_series(0, %d) u`, namespaces, inventory-1),
		fmt.Sprintf(`INSERT INTO event_ids SELECT gen_random_uuid(), timestamptz '2025-07-01' + make_interval(secs => n * 300) FROM generate_series(1, %d) n`, 100_000),
		"ANALYZE")
	var size string
	conn, err := pgx.Connect(g.t.Context(), g.url)
	if err != nil {
		g.t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(g.t.Context()))
	if err := conn.QueryRow(g.t.Context(), "SELECT pg_size_pretty(pg_database_size(current_database()))").Scan(&size); err != nil {
		g.t.Fatal(err)
	}
	g.t.Logf("the database has %s, after %s", size, time.Since(began).Round(time.Second))
}

// month makes a partition: filled first, and attached then, which makes its indexes.
func (g *generator) month(number int) {
	first := last.AddDate(0, number-months, 0)
	next := first.AddDate(0, 1, 0)
	table := "events_" + first.Format("200601")
	n := g.events / months
	conn, err := pgx.Connect(g.t.Context(), g.url)
	if err != nil {
		g.t.Error(err)
		return
	}
	defer conn.Close(context.WithoutCancel(g.t.Context()))
	exec := func(statement string) {
		if _, err := conn.Exec(g.t.Context(), statement); err != nil {
			g.t.Errorf("%s: %v", statement, err)
		}
	}
	exec("SET search_path = mintmark")
	exec("BEGIN")
	exec("CREATE TABLE " + table + " (LIKE events INCLUDING DEFAULTS)")
	read, write := io.Pipe()
	go func() { _ = write.CloseWithError(rows(write, uint64(number), first, next, n)) }()
	if _, err := conn.PgConn().CopyFrom(g.t.Context(), read, "COPY "+table+" FROM STDIN"); err != nil {
		g.t.Error(err)
	}
	exec("COMMIT")
	exec(fmt.Sprintf("ALTER TABLE %s ADD CHECK (at >= '%s' AND at < '%s')", table, first.Format(time.RFC3339), next.Format(time.RFC3339)))
	exec(fmt.Sprintf("ALTER TABLE events ATTACH PARTITION %s FOR VALUES FROM ('%s') TO ('%s')", table, first.Format(time.RFC3339), next.Format(time.RFC3339)))
	exec(fmt.Sprintf(`INSERT INTO batches (id, chain, sequence, previous, digest, events, first_at, last_at) OVERRIDING SYSTEM VALUE
		SELECT batch, 'server_%d', row_number() OVER (ORDER BY batch), ''::bytea, ''::bytea, count(*), min(at), max(at) FROM %s GROUP BY batch`, number, table))
}

// rows writes events in the text format of COPY, evenly over the time.
func rows(to io.Writer, seed uint64, first, next time.Time, n int) error {
	random := rand.New(rand.NewPCG(seed, 1))
	popular := rand.NewZipf(random, 1.2, 50, credentials-1)
	step := next.Sub(first) / time.Duration(n)
	var b bytes.Buffer
	for i := range n {
		at := first.Add(time.Duration(i) * step)
		uid, outcome, reason, kind := popular.Uint64(), "allowed", "Accepted", "authentication"
		switch random.IntN(200) {
		case 0, 1:
			outcome, reason = "denied", "Expired"
		case 2:
			kind, outcome, reason = "credential", "done", "Rotated"
		}
		id := audit.ID{}
		for part := 0; part < len(id); part += 4 {
			bits := random.Uint32()
			id[part], id[part+1], id[part+2], id[part+3] = byte(bits), byte(bits>>8), byte(bits>>16), byte(bits>>24)
		}
		ns := uid % namespaces
		fmt.Fprintf(&b, "%s\t%s\t%d\t%d\t%s\t%s\t%s\tservicetoken:ns-%d:name-%d\tuid-%[9]d\tServiceToken\tns-%[8]d\tname-%[9]d\tdefault\t%[10]d\tcurrent\tsk_live_\t\t10.%d.%d.%d\t"+
			"kubernetes-client/1.36 (linux/amd64)\tGET\t/api/v2/orders/%d\t%08x%08x%08x%08x\tserver-%d\t%d\t\\N\n",
			at.Format("2006-01-02 15:04:05.000000Z07"), id, int(seed)*100_000_000+i/batchSize+1, i%batchSize, kind, outcome, reason, ns, uid, 1+uid%4,
			uid%100, random.IntN(256), random.IntN(256), random.IntN(100_000), random.Uint32(), random.Uint32(), seed, i, seed%3, 20+random.IntN(400))
		if b.Len() > 1<<20 {
			if _, err := to.Write(b.Bytes()); err != nil {
				return err
			}
			b.Reset()
		}
	}
	_, err := to.Write(b.Bytes())
	return err
}

// measure runs each query several times, and then prints the slowest and fastest of them and the
// plan of the last.
func measure(t *testing.T, s *storepostgres.Store, log string) {
	one := store.TenantOf("ns-7")
	list := func(tenant store.Tenant, f store.EventFilter) func() (int, error) {
		return func() (int, error) {
			page, err := s.Events(t.Context(), tenant, f, store.Page{Limit: 100})
			return len(page.Items), err
		}
	}
	request := someRequest(t, s)
	all := store.AllTenants()
	month := store.AnalyticsFilter{Since: last.AddDate(0, 0, -30), Until: last, IdleBefore: last.AddDate(0, 0, -30)}
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "query\trows\tcold\twarm\tblocks\tby")
	var plans strings.Builder
	for _, q := range []struct {
		name string
		run  func() (int, error)
	}{
		{"the latest events", list(all, store.EventFilter{})},
		{"events of a tenant", list(one, store.EventFilter{})},
		{"events of a busy credential", list(all, store.EventFilter{UID: "uid-3"})},
		{"events of a quiet credential", list(all, store.EventFilter{UID: "uid-9977"})},
		{"events of another tenant's credential", list(one, store.EventFilter{UID: "uid-3"})},
		{"events of a subject", list(all, store.EventFilter{Subject: "servicetoken:ns-77:name-9877"})},
		{"events of nobody's subject", list(all, store.EventFilter{Subject: "https://issuer.example.com|nobody"})},
		{"events from a /24", list(all, store.EventFilter{Client: netip.MustParsePrefix("10.3.7.0/24")})},
		{"events from a /16", list(all, store.EventFilter{Client: netip.MustParsePrefix("10.3.0.0/16")})},
		{"events from an address of a tenant", list(one, store.EventFilter{Client: netip.MustParsePrefix("10.7.7.7/32")})},
		{"events from an address never seen", list(all, store.EventFilter{Client: netip.MustParsePrefix("192.0.2.1/32")})},
		{"events of a request", list(all, store.EventFilter{RequestID: request})},
		{"events of a request never seen", list(all, store.EventFilter{RequestID: "ffffffffffffffffffffffffffffffff"})},
		{"events of an hour a year ago", list(all, store.EventFilter{Since: last.AddDate(-1, 0, 0), Until: last.AddDate(-1, 0, 0).Add(time.Hour)})},
		{"what was refused", list(all, store.EventFilter{Outcomes: []audit.Outcome{audit.Denied, audit.Failed}})},
		{"what was refused in a tenant in a day", list(one, store.EventFilter{Outcomes: []audit.Outcome{audit.Denied}, Since: last.AddDate(0, 0, -100), Until: last.AddDate(0, 0, -99)})},
		{"changes of credentials", list(all, store.EventFilter{Types: []audit.Type{audit.TypeCredential}})},
		{"changes of a credential", list(all, store.EventFilter{UID: "uid-3", Types: []audit.Type{audit.TypeCredential}})},
		{"usage of a credential", func() (int, error) { u, err := s.Usage(t.Context(), all, "uid-3"); return len(u), err }},
		{"analytics of 30 days, idle ones, totals", func() (int, error) {
			a, err := s.Analytics(t.Context(), all, month)
			return len(a.Daily), err
		}},
		{"analytics of a tenant", func() (int, error) {
			a, err := s.Analytics(t.Context(), one, month)
			return len(a.Daily), err
		}},
		{"analytics of a credential, 13 months", func() (int, error) {
			a, err := s.Analytics(t.Context(), all, store.AnalyticsFilter{UID: "uid-3"})
			return len(a.Daily), err
		}},
		{"credentials by metadata", func() (int, error) {
			c, err := s.Credentials(t.Context(), all, store.CredentialFilter{Metadata: map[string]string{"ticket": "T-4711"}}, store.Page{})
			return len(c.Items), err
		}},
		{"credentials by label in a tenant", func() (int, error) {
			c, err := s.Credentials(t.Context(), one, store.CredentialFilter{Labels: map[string]string{"app": "app-7"}}, store.Page{})
			return len(c.Items), err
		}},
		{"the chains", func() (int, error) { c, err := s.Chains(t.Context(), "", 100); return len(c), err }},
		{"100 batches of a chain, to verify", func() (n int, err error) {
			for after := uint64(100); after < 200; {
				b, err := s.Batches(t.Context(), "server_5", after, 100)
				if err != nil || len(b) == 0 {
					return n, err
				}
				n, after = n+len(b)*batchSize, b[len(b)-1].Sequence
			}
			return n, nil
		}},
		{"events recorded once", func() (int, error) {
			missing, err := s.Missing(t.Context(), []audit.Event{{ID: audit.FixedID("x"), At: last}})
			return len(missing), err
		}},
	} {
		var took []time.Duration
		var n int
		from := sizeOf(t, log)
		for range 3 {
			from = sizeOf(t, log)
			began := time.Now()
			var err error
			if n, err = q.run(); err != nil {
				t.Fatalf("%s: %v", q.name, err)
			}
			took = append(took, time.Since(began))
		}
		plan := planOf(t, log, from)
		by := means(plan)
		fmt.Fprintf(table, "%s\t%d\t%s\t%s\t%s\t%s\n", q.name, n, took[0].Round(10*time.Microsecond), slices.Min(took).Round(10*time.Microsecond), blocks(plan), by)
		if took[0] > slowest {
			t.Errorf("%s took %s", q.name, took[0])
		}
		if scan := scanned.FindString(plan); scan != "" {
			t.Errorf("%s: %s", q.name, scan)
		}
		fmt.Fprintf(&plans, "\n--- %s\n%s\n", q.name, plan)
	}
	_ = table.Flush()
	if file := os.Getenv("MINTMARK_PLANS"); file != "" {
		if err := os.WriteFile(file, []byte(plans.String()), 0o600); err != nil {
			t.Error(err)
		}
		return
	}
	t.Log(plans.String())
}

func someRequest(t *testing.T, s *storepostgres.Store) string {
	t.Helper()
	page, err := s.Events(t.Context(), store.AllTenants(), store.EventFilter{Since: last.AddDate(0, -5, 0)}, store.Page{Limit: 1, OldestFirst: true})
	if err != nil || len(page.Items) != 1 {
		t.Fatalf("no event is found: %v", err)
	}
	return string(page.Items[0].RequestID)
}

var (
	scanned = regexp.MustCompile(`(Parallel )?Seq Scan on events_\d+[^\n]*\(actual rows=[^\n]*`)
	scans   = regexp.MustCompile(`(Index Only Scan|Index Scan|Bitmap Index Scan|Seq Scan)(?: Backward)?(?: using (\S+))? on (\S+)[^\n]*\(actual`)
	hits    = regexp.MustCompile(`Buffers: shared (?:hit=(\d+))? ?(?:read=(\d+))?`)
	suffix  = regexp.MustCompile(`_?\d{6}(_|$)`)
)

// means are the indexes that a plan went by.
func means(plan string) string {
	var all []string
	for _, m := range scans.FindAllStringSubmatch(plan, -1) {
		by := m[2]
		if by == "" {
			by = m[3]
		}
		by = strings.TrimSuffix(suffix.ReplaceAllString(by, "$1"), "_")
		if m[1] == "Seq Scan" {
			by = "all of " + by
		}
		if !slices.Contains(all, by) {
			all = append(all, by)
		}
	}
	return strings.Join(all, ", ")
}

// blocks are those that the top of each plan has touched.
func blocks(plan string) string {
	n := 0
	for _, one := range strings.Split(plan, "Query Text:") {
		if m := hits.FindStringSubmatch(one); m != nil {
			hit, _ := strconv.Atoi(m[1])
			read, _ := strconv.Atoi(m[2])
			n += hit + read
		}
	}
	return strconv.Itoa(n)
}

func sizeOf(t *testing.T, file string) int64 {
	t.Helper()
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// planOf gives what auto_explain has written since, without what was not executed.
func planOf(t *testing.T, file string, from int64) string {
	t.Helper()
	log, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	if _, err := log.Seek(from, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(log)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	lines := strings.Split(string(text), "\n")
	for i := 0; i < len(lines); i++ {
		if strings.Contains(lines[i], "(never executed)") {
			for depth := indent(lines[i]); i+1 < len(lines) && indent(lines[i+1]) > depth; i++ {
				continue
			}
			continue
		}
		out = append(out, lines[i])
	}
	return strings.Join(out, "\n")
}

func indent(line string) int { return len(line) - len(strings.TrimLeft(line, "\t ->")) }
