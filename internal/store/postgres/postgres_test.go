package postgres_test

import (
	"strings"
	"testing"

	"github.com/mintmark-dev/mintmark/internal/store/postgres"
	"github.com/mintmark-dev/mintmark/internal/store/storetest"
	testpostgres "github.com/mintmark-dev/mintmark/test/postgres"
)

func TestMain(m *testing.M) { testpostgres.Main(m) }

func open(t *testing.T, url string) *postgres.Store {
	t.Helper()
	s, err := postgres.Open(t.Context(), postgres.Config{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Open {
		url := testpostgres.NewDatabase(t)
		if err := open(t, url).Migrate(t.Context()); err != nil {
			t.Fatal(err)
		}
		return func(t *testing.T) storetest.Store { return open(t, url) }
	})
}

func TestAURLThatCannotBeReadIsNotRepeated(t *testing.T) {
	_, err := postgres.Open(t.Context(), postgres.Config{URL: "postgres://user:hunter2@host:notaport/db"})
	if err == nil || strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), "postgres://user:password@host") {
		t.Errorf("the error is %v", err)
	}
}
