package server

import (
	"context"
	"sync"
	"testing"

	"github.com/mintmark-dev/mintmark/internal/audit"
)

// BenchmarkForwardAuthRecorded is BenchmarkForwardAuth with the audit log on: each
// request is an event, sealed in a chain and handed to a store that forgets it. With
// "not recorded" from the same run it says what recording costs.
func BenchmarkForwardAuthRecorded(b *testing.B) {
	for _, recorded := range []bool{false, true} {
		name := "not recorded"
		if recorded {
			name = "recorded"
		}
		b.Run(name, func(b *testing.B) {
			s := setup{discard: true}
			if recorded {
				s.audit = runRecorder(b)
			}
			e := newEdge(b, s)
			m := e.mint("ci")
			load(b, e.onHTTP1(), "/forward-auth?permission=deploy:write", m.value())
		})
	}
}

// forgetful is a store that keeps nothing.
type forgetful struct{}

func (forgetful) Append(context.Context, *audit.Batch) error { return nil }

func runRecorder(t testing.TB) *auditor {
	r := audit.New(audit.Config{Server: "one", Chain: "one_1", Store: forgetful{}})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := r.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
		if h := r.Health(); h.Lost > 0 {
			t.Logf("of %d events %d found no room", h.Taken+h.Lost, h.Lost)
		}
	})
	return &auditor{recorder: r}
}
