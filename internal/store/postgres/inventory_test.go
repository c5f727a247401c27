package postgres_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mintmark-dev/mintmark/internal/store"
	testpostgres "github.com/mintmark-dev/mintmark/test/postgres"
)

// asOwner opens a connection of the owner that sees everything.
func asOwner(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	if _, err := conn.Exec(t.Context(), "SET search_path = mintmark; SET mintmark.tenant = '*'"); err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestARowThatDoesNotDifferIsNotTouched(t *testing.T) {
	url := testpostgres.NewDatabase(t)
	s := open(t, url)
	if err := s.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	conn := asOwner(t, url)
	row := store.Credential{UID: "1", Kind: "ServiceToken", Namespace: "a", Name: "x", State: store.StateActive, Created: time.Now(), Applied: 10, Metadata: map[string]string{"k": "v"}}
	version := func() (v string) {
		t.Helper()
		// Both change where a row is written, and the second where it is locked.
		if err := conn.QueryRow(t.Context(), "SELECT xmin::text || '/' || xmax::text FROM credentials").Scan(&v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	put := func() string {
		t.Helper()
		if err := s.PutCredentials(t.Context(), []store.Credential{row}); err != nil {
			t.Fatal(err)
		}
		return version()
	}
	first := put()
	for _, applied := range []int64{10, 11, 9, 0} {
		if row.Applied = applied; put() != first {
			t.Errorf("the same, of resourceVersion %d, is written or locked", applied)
		}
	}
	row.Applied, row.Owner = 9, "older"
	if put() != first {
		t.Error("what is older locks the row")
	}
	row.Applied, row.Owner = 12, "newer"
	if put() == first {
		t.Error("what differs is not written")
	}
}

func TestOfTwoServersAtOnceTheOneThatHasSeenMoreWins(t *testing.T) {
	url := testpostgres.NewDatabase(t)
	s := open(t, url)
	if err := s.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	row := store.Credential{UID: "1", Kind: "ServiceToken", Namespace: "a", Name: "x", State: store.StateActive, Created: time.Now(), Applied: 10}
	if err := s.PutCredentials(t.Context(), []store.Credential{row}); err != nil {
		t.Fatal(err)
	}
	newer, watching := asOwner(t, url), asOwner(t, url)
	tx, err := newer.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "UPDATE credentials SET owner = 'newer', applied = 20"); err != nil {
		t.Fatal(err)
	}
	older := make(chan error, 1)
	go func() {
		row.Applied, row.Owner = 15, "older"
		older <- s.PutCredentials(t.Context(), []store.Credential{row})
	}()
	for deadline := time.Now().Add(20 * time.Second); ; {
		var waiting bool
		if err := watching.QueryRow(t.Context(), "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'INSERT INTO credentials%')").Scan(&waiting); err != nil {
			t.Fatal(err)
		}
		if waiting {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the older write does not wait for the newer one")
		}
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-older; err != nil {
		t.Fatal(err)
	}
	found, err := s.Credentials(t.Context(), store.AllTenants(), store.CredentialFilter{}, store.Page{})
	if err != nil || len(found.Items) != 1 || found.Items[0].Owner != "newer" {
		t.Errorf("it is %+v (%v)", found.Items, err)
	}
}
