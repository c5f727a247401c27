package postgres

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/mintmark-dev/mintmark/internal/store"
	testpostgres "github.com/mintmark-dev/mintmark/test/postgres"
)

// versionBefore is the schema of the version before, whose statements are in testdata.
const versionBefore = 2

// statementsOf gives what the program of a schema version does, a transaction to a line,
// with $N where each round has its number.
func statementsOf(t *testing.T, version int) (all []string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", fmt.Sprintf("statements_of_version_%d.sql", version)))
	if err != nil {
		t.Fatal(err)
	}
	for part := range strings.SplitSeq(string(text), "\n\n") {
		if part = strings.TrimSpace(part); part != "" && !strings.HasPrefix(part, "--") {
			all = append(all, part)
		}
	}
	if len(all) < 10 {
		t.Fatalf("%d transactions", len(all))
	}
	return all
}

// TestServersOfTheVersionBeforeGoOnThroughAnUpgrade has what the program of the version before
// does go on, before, during and after the migration, on the same connection and on new ones.
func TestServersOfTheVersionBeforeGoOnThroughAnUpgrade(t *testing.T) {
	url := testpostgres.NewDatabase(t)
	s, err := Open(t.Context(), Config{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	if _, err := s.pool.Exec(t.Context(), "CREATE SCHEMA mintmark"); err != nil {
		t.Fatal(err)
	}
	provider, done, err := s.provider(true)
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	if _, err := provider.UpTo(t.Context(), versionBefore); err != nil {
		t.Fatal(err)
	}
	if have, need, err := s.versions(t.Context()); err != nil || have != versionBefore || need <= versionBefore {
		t.Fatalf("the schema is at %d of %d (%v): this test is of the step to the latest", have, need, err)
	}
	statements := statementsOf(t, versionBefore)
	var rounds atomic.Int64
	round := func(ctx context.Context, conn *pgx.Conn) error {
		n := rounds.Add(1)
		for _, statement := range statements {
			if _, err := conn.Exec(ctx, "BEGIN; "+strings.ReplaceAll(statement, "$N", fmt.Sprint(n))+"; COMMIT"); err != nil {
				return fmt.Errorf("round %d: %s: %w", n, statement, err)
			}
		}
		return nil
	}
	connect := func(ctx context.Context) *pgx.Conn {
		conn, err := pgx.Connect(ctx, url)
		if err == nil {
			_, err = conn.Exec(ctx, "SET search_path = mintmark")
		}
		if err != nil {
			t.Error(err)
		}
		return conn
	}
	conn := connect(t.Context())
	defer conn.Close(context.WithoutCancel(t.Context()))
	if err := round(t.Context(), conn); err != nil {
		t.Fatalf("before the upgrade: %v", err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	var old sync.WaitGroup
	for range 2 {
		c := connect(t.Context())
		defer c.Close(context.WithoutCancel(t.Context()))
		old.Go(func() {
			for ctx.Err() == nil {
				if err := round(context.WithoutCancel(ctx), c); err != nil {
					t.Errorf("during the upgrade: %v", err)
					return
				}
			}
		})
	}
	if err := s.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	cancel()
	old.Wait()
	if err := round(t.Context(), conn); err != nil {
		t.Errorf("after the upgrade, on a connection from before: %v", err)
	}
	late := connect(t.Context())
	defer late.Close(context.WithoutCancel(t.Context()))
	if err := round(t.Context(), late); err != nil {
		t.Errorf("after the upgrade, on a new connection: %v", err)
	}

	// The new program finds what the old one wrote, and counts it.
	if err := s.CheckSchema(t.Context()); err != nil {
		t.Error(err)
	}
	n := rounds.Load()
	usage, err := s.Usage(t.Context(), store.AllTenants(), "uid-1")
	if err != nil || len(usage) != 1 || usage[0].Uses != n {
		t.Errorf("of %d uses the new program sees %+v (%v)", n, usage, err)
	}
	for name, f := range map[string]store.CredentialFilter{"a label": {Labels: map[string]string{"app": "old"}}, "metadata": {Metadata: map[string]string{"ticket": fmt.Sprint("T-", n)}}} {
		found, err := s.Credentials(t.Context(), store.AllTenants(), f, store.Page{})
		if err != nil || len(found.Items) != 1 {
			t.Errorf("by %s that the old program wrote the new one finds %+v (%v)", name, found.Items, err)
		}
	}
	t.Logf("%d rounds of %d transactions", n, len(statements))
}
