package cli

import (
	"context"
	"strings"
	"time"

	"github.com/mintmark-dev/mintmark/internal/store/postgres"
)

// envDatabaseURL names the database to check, as it does for servers.
const envDatabaseURL = "MINTMARK_DATABASE_URL"

// databaseTimeout bounds the whole check.
const databaseTimeout = 20 * time.Second

// database checks the database that a URL names, with the account in it.
func (e *examination) database(ctx context.Context) bool {
	url := e.options.database
	if url == "" {
		url = e.options.getenv(envDatabaseURL)
	}
	switch {
	case url == "":
		return true
	case strings.HasPrefix(url, "sqlite:"):
		e.ok("SQLite is a file of the server, which checks it: see /api/v1/system/status")
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, databaseTimeout)
	defer cancel()
	var now func() time.Time
	if _, known := e.clock.now(); known {
		now = func() time.Time {
			at, _ := e.clock.now()
			return at
		}
	}
	found, err := postgres.Examine(ctx, url, now)
	for _, f := range found {
		switch f.Severity {
		case postgres.Failure:
			e.fail(f.Message, f.Remedy)
		case postgres.Warning:
			e.warn(f.Message, f.Remedy)
		default:
			e.ok("%s", f.Message)
		}
	}
	if err != nil {
		e.fail(err.Error(), "check --database-url, and that the database can be reached from here; servers go on without it, and keep events until it is back")
	}
	return true
}
