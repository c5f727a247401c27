package postgres_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/mintmark-dev/mintmark/internal/audit"
	"github.com/mintmark-dev/mintmark/internal/store"
	"github.com/mintmark-dev/mintmark/internal/store/postgres"
	testpostgres "github.com/mintmark-dev/mintmark/test/postgres"
)

// page gives the blocks of SQL of docs/database.md by name.
func page(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", "database.md"))
	if err != nil {
		t.Fatal(err)
	}
	blocks := map[string]string{}
	for _, m := range regexp.MustCompile("(?s)```sql ([a-z-]+)\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		if blocks[m[1]] != "" {
			t.Fatalf("docs/database.md has two blocks %q", m[1])
		}
		blocks[m[1]] = m[2]
	}
	if n := strings.Count(string(text), "```sql"); n != len(blocks) || n == 0 {
		t.Fatalf("docs/database.md has %d blocks of SQL, of which %d have a name: each is to be run", n, len(blocks))
	}
	return blocks
}

// installed is a database made as docs/database.md says, by psql.
type installed struct {
	t       *testing.T
	cluster *testpostgres.Cluster
	blocks  map[string]string
}

// begin starts a server of PostgreSQL, and does nothing that the page says yet.
func begin(t *testing.T, o testpostgres.Options) *installed {
	t.Helper()
	return &installed{t: t, cluster: testpostgres.StartFor(t, o), blocks: page(t)}
}

func install(t *testing.T, o testpostgres.Options) *installed {
	t.Helper()
	i := begin(t, o)
	i.psql("postgres", "postgres", i.blocks["accounts"])
	if err := i.open("mintmark_migrate").Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return i
}

func (i *installed) open(account string) *postgres.Store {
	return open(i.t, i.cluster.URL(account, "mintmark"))
}

// psql runs statements that have to succeed.
func (i *installed) psql(account, database, statements string) string {
	i.t.Helper()
	out, err := i.cluster.Psql(i.t.Context(), account, database, statements)
	if err != nil {
		i.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// fill stores something of two tenants and of nobody, as a server does.
func (i *installed) fill() *postgres.Store {
	i.t.Helper()
	s := i.open("mintmark_app")
	var events []audit.Event
	for n, namespace := range []string{"payments", "billing", "billing", ""} {
		e := audit.Event{
			ID: audit.FixedID(fmt.Sprint("event-", n)), At: time.Now().Add(-time.Minute), Type: audit.TypeAuthentication, Outcome: audit.Denied, Reason: "Unknown", Took: time.Millisecond,
		}
		if namespace != "" {
			e.Subject, e.UID, e.Kind, e.Namespace, e.Name, e.Version = "servicetoken:"+namespace+":ci", "uid-"+namespace, "ServiceToken", namespace, "ci", 1
			e.Outcome = audit.Allowed
		}
		events = append(events, e)
	}
	b, err := audit.NewSealer("one/1").Seal(events)
	if err == nil {
		err = s.AppendOnce(i.t.Context(), b)
	}
	if err == nil {
		err = s.PutCredentials(i.t.Context(), []store.Credential{
			{UID: "uid-payments", Kind: "ServiceToken", Namespace: "payments", Name: "ci", State: store.StateActive, Created: time.Now(), Metadata: map[string]string{"ticket": "T-1"}},
			{UID: "uid-billing", Kind: "ServiceToken", Namespace: "billing", Name: "ci", State: store.StateActive, Created: time.Now(), Metadata: map[string]string{"ticket": "T-1"}},
		})
	}
	if err == nil {
		err = s.PutTombstones(i.t.Context(), []store.Tombstone{{Digest: []byte("p"), Namespace: "payments", RevokedAt: time.Now()}, {Digest: []byte("b"), Namespace: "billing", RevokedAt: time.Now()}})
	}
	if err == nil {
		err = s.DenyTokens(i.t.Context(), []store.DeniedToken{{Key: []byte("b"), Namespace: "billing", Until: time.Now().Add(time.Hour)}})
	}
	if err == nil {
		_, err = s.Retain(i.t.Context(), time.Now().AddDate(0, -2, 0), time.Now())
	}
	if err != nil {
		i.t.Fatalf("the servers' account cannot do its work: %v", err)
	}
	return s
}

var tenantTables = []string{"events", "usage", "usage_daily", "latency_daily", "credentials", "credential_facts"}

func TestAnotherTenantSeesNothingInPsql(t *testing.T) {
	i := install(t, testpostgres.Options{})
	i.fill()
	i.psql("mintmark_migrate", "mintmark", "INSERT INTO mintmark.tenant_roles VALUES ('nobody_there', 'billing')")
	i.psql("postgres", "mintmark", i.blocks["tenant"])
	i.psql("postgres", "mintmark", "CREATE ROLE empty_auditor LOGIN; GRANT mintmark_readonly TO empty_auditor; CREATE ROLE stranger LOGIN; GRANT CONNECT ON DATABASE mintmark TO stranger")
	if out := i.psql("payments_auditor", "mintmark", i.blocks["asks"]); strings.Count(out, "\n") != 0 || !strings.Contains(out, "servicetoken:payments:ci") {
		t.Errorf("the example of the page shows the tenant:\n%s", out)
	}
	namespacesOf := func(account, before, table string) string {
		return i.psql(account, "mintmark", before+"; SELECT coalesce(string_agg(DISTINCT namespace, ' ' ORDER BY namespace), 'nothing') FROM mintmark."+table)
	}
	// What a query adds to the tenant's own conditions, in the way of a defect.
	bug := " WHERE namespace = 'billing' OR true"
	for _, table := range tenantTables {
		for account, want := range map[string]string{"payments_auditor": "payments", "empty_auditor": "nothing"} {
			for _, before := range []string{"SELECT", "SET mintmark.tenant = '*'", "SET mintmark.tenant = 'billing'", "SET row_security = on", "SET search_path = mintmark, pg_temp"} {
				if got := namespacesOf(account, before, table+bug); got != want {
					t.Errorf("after %s %s sees in %s: %s, want %s", before, account, table, got, want)
				}
			}
		}
	}
	// A server's query with a defect in it: the tenant is set, its condition is not.
	for _, table := range append(tenantTables, "tombstones", "denied_tokens") {
		for before, want := range map[string]string{
			"SELECT": "nothing", "SET mintmark.tenant = ''": "nothing", "SET mintmark.tenant = 'empty'": "nothing", "SET mintmark.tenant = 'payments'": "payments",
		} {
			if table == "denied_tokens" && want == "payments" {
				want = "nothing"
			}
			for _, account := range []string{"mintmark_app", "mintmark_migrate"} { // the owner as well
				if got := namespacesOf(account, before, table+bug); got != want {
					t.Errorf("after %s %s sees in %s: %s, want %s", before, account, table, got, want)
				}
			}
		}
	}
	partition := "events_" + time.Now().UTC().Format("200601")
	for statement, accounts := range map[string][]string{
		"SELECT FROM mintmark." + partition: {"payments_auditor", "mintmark_app", "stranger"}, "SELECT FROM mintmark.events": {"stranger"},
		"SELECT FROM mintmark.tombstones": {"payments_auditor"}, "SELECT FROM mintmark.batches": {"payments_auditor"}, "SELECT FROM mintmark.tenant_roles": {"payments_auditor", "mintmark_app"},
		"INSERT INTO mintmark.tenant_roles VALUES ('payments_auditor', 'billing')": {"payments_auditor", "mintmark_app"},
		"SET row_security = off; SELECT FROM mintmark.events":                      {"payments_auditor", "mintmark_app", "mintmark_migrate"},
		"SET ROLE mintmark_app":     {"payments_auditor"},
		"SET ROLE mintmark_migrate": {"payments_auditor", "mintmark_app"},
	} {
		for _, account := range accounts {
			if out, err := i.cluster.Psql(t.Context(), account, "mintmark", statement); err == nil {
				t.Errorf("%s may %s: %s", account, statement, out)
			}
		}
	}
}

func TestTheServersAccountCannotChangeTheAuditLog(t *testing.T) {
	i := install(t, testpostgres.Options{})
	i.fill()
	partition := "mintmark.events_" + time.Now().UTC().Format("200601")
	for _, statement := range []string{
		"UPDATE mintmark.events SET outcome = 'allowed'", "DELETE FROM mintmark.events", "TRUNCATE mintmark.events", "DROP TABLE mintmark.events", "ALTER TABLE mintmark.events ADD x int",
		"UPDATE " + partition + " SET outcome = 'allowed'", "DELETE FROM " + partition, "TRUNCATE " + partition, "DROP TABLE " + partition,
		"ALTER TABLE mintmark.events DETACH PARTITION " + partition, "UPDATE mintmark.batches SET digest = ''", "DELETE FROM mintmark.batches", "DELETE FROM mintmark.event_ids",
		"UPDATE mintmark.retention SET least_months = 1", "UPDATE mintmark.retention SET cleared_before = now()", "INSERT INTO mintmark.goose_db_version (version_id, is_applied) VALUES (99, true)",
		"CREATE TABLE mintmark.x ()", "ALTER TABLE mintmark.events DISABLE ROW LEVEL SECURITY", "DROP POLICY tenant ON mintmark.events",
		"CREATE OR REPLACE FUNCTION mintmark.tenant_setting() RETURNS text LANGUAGE sql AS $$ SELECT '*' $$",
	} {
		if out, err := i.cluster.Psql(t.Context(), "mintmark_app", "mintmark", statement); err == nil {
			t.Errorf("mintmark_app may %s: %s", statement, out)
		}
	}
	count := "SET mintmark.tenant = '*'; SELECT count(*) FROM mintmark.events"
	// It may have months dropped, and not those that the owner keeps.
	if got := i.psql("mintmark_app", "mintmark", "SELECT mintmark.drop_events_before('2999-01-01'); "+count); !strings.HasSuffix(got, "\n4") {
		t.Errorf("after it had everything dropped that it may, this is left: %s", got)
	}
	i.psql("mintmark_migrate", "mintmark", i.blocks["retention"])
	i.psql("mintmark_migrate", "mintmark", "SELECT mintmark.ensure_events_partition((now() - interval '5 months')::date); SELECT mintmark.ensure_events_partition((now() - interval '15 months')::date)")
	if got := i.psql("mintmark_app", "mintmark", "SELECT mintmark.drop_events_before('2999-01-01')"); got != "1" {
		t.Errorf("%s months were dropped, want the one that is older than the owner keeps", got)
	}
}

func TestRolesThatComeLaterAreGrantedWhatTheyNeed(t *testing.T) {
	i := begin(t, testpostgres.Options{})
	i.psql("postgres", "postgres", "CREATE ROLE mintmark_migrate LOGIN; CREATE DATABASE mintmark OWNER mintmark_migrate")
	if err := i.open("mintmark_migrate").Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	i.psql("mintmark_migrate", "mintmark", "SELECT mintmark.ensure_events_partition(now()::date)")
	i.psql("postgres", "mintmark", "CREATE ROLE mintmark_app LOGIN; CREATE ROLE mintmark_readonly")
	i.psql("mintmark_migrate", "mintmark", i.blocks["grants"])
	i.fill()
}

func TestTheExampleForOnesOwnTables(t *testing.T) {
	i := install(t, testpostgres.Options{})
	i.psql("postgres", "mintmark", "CREATE ROLE shop_owner LOGIN CREATEROLE; GRANT CREATE, CONNECT ON DATABASE mintmark TO shop_owner WITH GRANT OPTION")
	i.psql("shop_owner", "mintmark", i.blocks["own-tables"])
	i.psql("shop_owner", "mintmark", "GRANT CONNECT ON DATABASE mintmark TO shop_service")
	if out := i.psql("shop_service", "mintmark", i.blocks["own-request"]); !strings.Contains(out, "1|payments|servicetoken:payments:ci-deploy|a chair") {
		t.Errorf("the example shows:\n%s", out)
	}
	as := func(caller, permissions, statement string) (string, error) {
		out, err := i.cluster.Psql(t.Context(), "shop_service", "mintmark", fmt.Sprintf("BEGIN; SELECT set_config('shop.caller', '%s', true), set_config('shop.permissions', '%s', true); %s; COMMIT",
			caller, permissions, statement))
		_, out, _ = strings.Cut(out, "\n")
		return strings.TrimSpace(out), err
	}
	const count, place = "SELECT count(*) FROM shop.orders WHERE true OR tenant = 'payments'", "INSERT INTO shop.orders (item) VALUES ('x')"
	for name, c := range map[string]struct{ caller, permissions, statement, want string }{
		"its own":                            {"servicetoken:payments:other", "orders:read", count, "1"},
		"with a wildcard":                    {"servicetoken:payments:other", "users:read orders:*", count, "1"},
		"with everything":                    {"servicetoken:payments:admin", "*", count, "1"},
		"another tenant's":                   {"servicetoken:billing:ci", "orders:read", count, "0"},
		"without the permission":             {"servicetoken:payments:ci", "orders:readonly", count, "0"},
		"nobody":                             {"", "", count, "0"},
		"a name that has the tenant's in it": {"servicetoken:payments2:ci", "*", count, "0"},
		"changing another tenant's":          {"servicetoken:billing:ci", "*", "UPDATE shop.orders SET item = 'stolen'; " + count, "0"},
		"placing for another":                {"servicetoken:billing:ci", "*", "INSERT INTO shop.orders (tenant, item) VALUES ('payments', 'x')", "refused"},
		"placing in another's name":          {"servicetoken:payments:ci", "*", "INSERT INTO shop.orders (placed_by, item) VALUES ('somebody', 'x')", "refused"},
		"placing without the permission":     {"servicetoken:payments:ci", "orders:read", place, "refused"},
		"deleting":                           {"servicetoken:payments:ci", "*", "DELETE FROM shop.orders", "refused"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := as(c.caller, c.permissions, c.statement)
			if err != nil {
				got = "refused"
			}
			if got != c.want {
				t.Errorf("it is %q, want %q (%v)", got, c.want, err)
			}
		})
	}
	if got := i.psql("shop_service", "mintmark", count); got != "0" {
		t.Errorf("a service that sets nothing sees %s orders", got)
	}
	if got := i.psql("shop_service", "mintmark", i.blocks["own-request"]+count); !strings.HasSuffix(got, "\n0") {
		t.Errorf("after the transaction the connection still sees: %s", got)
	}
}
