package server

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mintmark-dev/mintmark/internal/audit"
)

// brokenStore takes nothing.
type brokenStore struct{}

func (brokenStore) Append(context.Context, *audit.Batch) error {
	return errors.New("connection refused")
}

// The database is asked for its state every few seconds; that it takes no events is known
// with the first of them.
func TestTheStatusSaysAtOnceThatEventsWaitForTheDatabase(t *testing.T) {
	recorder := audit.New(audit.Config{
		Server: "one", Chain: "one_1", Store: brokenStore{}, Flush: time.Millisecond, Log: slog.New(slog.DiscardHandler),
	})
	var recording sync.WaitGroup
	stop := start(&recording, func(ctx context.Context) { _ = recorder.Run(ctx) }) // what is left is lost, and says so
	defer recording.Wait()
	defer stop()
	k := new(keys)
	k.public = &k.internal
	s := &system{
		id: "one", ready: &readiness{freshness: newFreshness(time.Now()), maxStaleness: time.Minute, keys: k, presence: &presence{}},
		indexed: func() int { return 0 }, recorder: recorder,
	}
	const problem = "audit: events wait for the database: connection refused"
	if got := s.status(time.Now()).Problems; slices.Contains(got, problem) {
		t.Fatalf("before anything was recorded the problems are %q", got)
	}
	recorder.Record(&audit.Event{Type: audit.TypeAuthentication, Outcome: audit.Allowed})
	eventually(t, 10*time.Second, "the status says that events wait", func() bool {
		return slices.Contains(s.status(time.Now()).Problems, problem)
	})
}

// Prometheus sees no increase in what appears with the value 1.
func TestRefusedRecordsAreCountedFromZero(t *testing.T) {
	series := make(chan prometheus.Metric, 1024)
	newMetrics(prometheus.NewRegistry()).refused.Collect(series)
	if len(series) != 6 {
		t.Errorf("%d series of refused records, 6 reasons are documented", len(series))
	}
}
