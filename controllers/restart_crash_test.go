package controllers

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// A controller that dies at a restart, or before it has told of it, leaves a workload to
// the next one that is restarted once, not twice and not never.
func TestAControllerThatDiesAtARestartLeavesItRestartedOnce(t *testing.T) {
	restarts := func(what string) bool { return strings.HasPrefix(what, "PATCH /apis/apps/") }
	for name, tc := range map[string]struct {
		after bool                                   // the write has been carried out
		at    func(what string, restarted bool) bool // which write it dies at
	}{
		"before the restart":                 {false, func(what string, _ bool) bool { return restarts(what) }},
		"before it learns of the restart":    {true, func(what string, _ bool) bool { return restarts(what) }},
		"before the status that tells of it": {false, func(what string, restarted bool) bool { return restarted && strings.HasSuffix(what, "/status") }},
	} {
		t.Run(name, func(t *testing.T) {
			c := restartCluster(t, 0)
			c.kubelet()
			web := c.deployment("web", 2, "ci")
			var (
				mu              sync.Mutex
				restarted, dead bool
			)
			died := make(chan struct{})
			die := func(after bool) func(int, string) error {
				return func(_ int, what string) error {
					mu.Lock()
					defer mu.Unlock()
					switch {
					case dead:
						return errDead
					case after == tc.after && tc.at(what, restarted):
						dead = true
						close(died)
						return errDead
					}
					restarted = restarted || (after && restarts(what))
					return nil
				}
			}
			first := c.start(&writes{before: die(false), after: die(true)}, nil)
			token := c.token("ci", restart(v1alpha1.Restart{Consumers: true}))
			c.ready(token)
			c.rotate(token)
			select {
			case <-died:
			case <-time.After(time.Minute):
				t.Fatal("it never came to that write")
			}
			first.stop()
			next := c.start(nil, nil)
			c.adoption(token, v1alpha1.ReasonAdopted, "Deployment web is restarted for version 2")
			if c.read(web); web.Generation != 2 {
				t.Errorf("restarted %d times; the next controller wrote %s", web.Generation-1, workloadWrites(next.writes))
			}
		})
	}
}
