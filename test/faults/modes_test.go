//go:build faults

package faults

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"syscall"
	"time"
)

// mode is a way in which a fault befalls a write.
type mode struct {
	name string
	plan func(context.Context, *trial, *fault)
}

var (
	killedBefore = mode{"killed before", func(_ context.Context, t *trial, f *fault) { f.before, f.abandon = t.controller.kill, true }}
	killedAfter  = mode{"killed after", func(_ context.Context, t *trial, f *fault) { f.after, f.drop = t.controller.kill, true }}
	answerLost   = mode{"answer lost", func(_ context.Context, _ *trial, f *fault) { f.drop = true }}
	conflict     = answered("409", http.StatusConflict)
	tooMany      = answered("429", http.StatusTooManyRequests)
	broken       = answered("500", http.StatusInternalServerError)
	// overtaken has the controller stopped with its write under way; another one
	// takes over and does everything; then the first one's write arrives.
	overtaken = mode{"overtaken", func(ctx context.Context, t *trial, f *fault) {
		f.before, f.after = t.overtake(ctx, func() error { return t.reached(ctx) })
	}}
	// crossed is overtaken halfway: the first one's write arrives when the other one has
	// committed a version of its own that every server accepts, just before that one's
	// next write. From then on both work, until the first one finds its Lease gone.
	crossed = mode{"crossed", func(ctx context.Context, t *trial, f *fault) {
		answered := make(chan struct{})
		other := &fault{process: standbyName, about: aboutNamespace(t.namespace), nth: 2, before: func() {
			select {
			case <-answered:
			case <-ctx.Done():
			}
		}}
		t.dueled = true
		before, after := t.overtake(ctx, func() error {
			if t.proxy.struck(other) != nil {
				return nil
			}
			return t.reached(ctx)
		})
		f.before = func() {
			t.proxy.arm(other)
			before()
		}
		f.after = func() {
			close(answered)
			after()
		}
	}}
	// What is revoked amid a rotation takes what the rotation has committed, too.
	revokedBefore = mode{"revoked before", func(ctx context.Context, t *trial, f *fault) {
		t.fewer = true
		f.before = func() { t.must(t.revoke(ctx)) }
	}}
	revokedAfter = mode{"revoked after", func(ctx context.Context, t *trial, f *fault) {
		t.fewer = true
		f.after = func() { t.must(t.revoke(ctx)) }
	}}
	revokedKilled = mode{"revoked, killed after", func(ctx context.Context, t *trial, f *fault) {
		t.fewer = true
		f.after, f.drop = func() { t.must(t.revoke(ctx)); t.controller.kill() }, true
	}}
	replacedBefore = mode{"a Revocation made before", func(ctx context.Context, t *trial, f *fault) {
		t.more = true
		f.before = func() { t.must(t.revocation(ctx, 2)) }
	}}
	replacedAfter = mode{"a Revocation made after", func(ctx context.Context, t *trial, f *fault) {
		t.more = true
		f.after = func() { t.must(t.revocation(ctx, 2)) }
	}}
	deletedBefore = mode{"deleted before", func(ctx context.Context, t *trial, f *fault) { f.before = func() { t.must(t.remove(ctx)) } }}
	deletedAfter  = mode{"deleted after", func(ctx context.Context, t *trial, f *fault) { f.after = func() { t.must(t.remove(ctx)) } }}
	deletedKilled = mode{"deleted, killed after", func(ctx context.Context, t *trial, f *fault) {
		f.after, f.drop = func() { t.must(t.remove(ctx)); t.controller.kill() }, true
	}}

	// What befalls watches does so when the first write has been answered.
	watchesCut  = mode{"watches cut", func(_ context.Context, t *trial, f *fault) { f.after = func() { t.cutWatches(0) } }}
	watchesGone = mode{"watches cut, then 410", func(_ context.Context, t *trial, f *fault) { f.after = func() { t.cutWatches(3) } }}
	// stale lasts for longer than after which a controller takes the version of another
	// one for lost.
	stale = mode{"controller's cache stale for 6s", func(ctx context.Context, t *trial, f *fault) {
		f.after = func() {
			thaw := t.proxy.freeze(controllerName)
			t.during(func() {
				last(ctx, 6*time.Second)
				thaw()
			})
		}
	}}
	// conflicts answers every write of the controller for a while as if somebody else
	// had always written first.
	conflicts = mode{"409 to every write for 3s", func(ctx context.Context, t *trial, f *fault) {
		f.answer = http.StatusConflict
		f.before = func() {
			t.proxy.change(controllerName, func(w *route) { w.storm = http.StatusConflict })
			t.during(func() {
				last(ctx, 3*time.Second)
				t.proxy.change(controllerName, func(w *route) { w.storm = 0 })
			})
		}
	}}
	lagging = mode{"one server lags for 2s", func(_ context.Context, t *trial, f *fault) {
		f.before = func() {
			over := t.impair(late, 1)
			thaw := t.proxy.freeze("server-2")
			time.AfterFunc(2*time.Second, func() { thaw(); over() })
		}
	}}
)

func answered(name string, code int) mode {
	return mode{name, func(_ context.Context, _ *trial, f *fault) { f.answer = code }}
}

// must ends a trial that cannot go on: the fault could not be made.
func (t *trial) must(err error) {
	if err != nil {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.broken = errors.Join(t.broken, err)
	}
}

func (t *trial) cutWatches(gone int) {
	for _, s := range t.servers {
		// A server that cannot watch is not fresh, so what ends is told to the
		// controller alone to be gone.
		t.proxy.cutWatches(s.name, 0)
	}
	t.proxy.cutWatches(controllerName, gone)
}

// overtake stops the controller with its write under way and has another one lead,
// until enough has been done. What it returns lets the first one go on.
func (t *trial) overtake(ctx context.Context, enough func() error) (before, after func()) {
	return t.supplant(ctx, t.releaseLeadership, enough)
}

// supplant is overtake, with what becomes of the Lease of the one that is stopped.
func (t *trial) supplant(ctx context.Context, release func(context.Context) error, enough func() error) (before, after func()) {
	return func() {
			t.must(t.controller.signal(syscall.SIGSTOP))
			t.controller.mu.Lock()
			t.controller.release = func(context.Context) error { return nil } // the other one's
			t.controller.mu.Unlock()
			t.must(release(ctx))
			t.mu.Lock()
			t.overtook = true
			t.mu.Unlock()
			t.must(t.standby.start(ctx))
			t.must(poll(ctx, settleTimeout, enough))
		}, func() {
			t.must(t.controller.signal(syscall.SIGCONT))
		}
}

// reinstate ends the controller that has overtaken the first one, if one has.
func (t *trial) reinstate() {
	t.mu.Lock()
	overtook := t.overtook
	t.mu.Unlock()
	if !overtook {
		return
	}
	t.standby.stop()
	t.controller.mu.Lock()
	t.controller.release = t.releaseLeadership
	t.controller.mu.Unlock()
}

// ghost has the controller killed with its write under way. The next one does
// everything, and then the dead one's write arrives.
var ghost = mode{"killed, its write arrives at the end", func(ctx context.Context, t *trial, f *fault) {
	f.before = func() {
		t.controller.kill()
		t.must(poll(ctx, settleTimeout, func() error { return t.reached(ctx) }))
	}
}}

// lapsed is overtaken, but that the other one waits until the Lease has lapsed.
var lapsed = mode{"paused past its Lease", func(ctx context.Context, t *trial, f *fault) {
	f.before, f.after = t.supplant(ctx, func(context.Context) error { return nil }, func() error { return t.reached(ctx) })
}}

// Servers.

// victim is the server that a fault befalls, another one in the next trial.
func (t *trial) victim() int { return t.number % len(t.servers) }

var (
	serverKilledBefore = mode{"a server killed before", func(_ context.Context, t *trial, f *fault) {
		f.before = t.servers[t.victim()].kill
	}}
	serverKilledAfter = mode{"a server killed after", func(_ context.Context, t *trial, f *fault) {
		f.after = t.servers[t.victim()].kill
	}}
	serverJoins = mode{"a server joins", func(ctx context.Context, t *trial, f *fault) {
		joining := t.servers[t.victim()]
		f.arming = joining.stop
		f.before = func() { t.during(func() { t.must(joining.start(ctx)) }) }
	}}
	// serverJoinsBehind has a server begin to list just before the write, and be told
	// everything a second late: what it has listed is of before the write when it becomes
	// Ready, and it hears of it a second later.
	serverJoinsBehind = mode{"a server joins, a second behind", func(ctx context.Context, t *trial, f *fault) {
		joining := t.servers[t.victim()]
		f.arming = func() {
			joining.stop()
			t.proxy.change(joining.name, func(w *route) { w.lag = time.Second })
		}
		f.before = func() {
			over := t.impair(late, t.victim())
			t.during(func() {
				t.must(joining.start(ctx))
				last(ctx, 2*time.Second)
				t.proxy.change(joining.name, func(w *route) { w.lag = 0 })
				t.proxy.cutWatches(joining.name, 0)
				over()
			})
			t.must(poll(ctx, settleTimeout, func() error {
				if !t.proxy.listed(joining.name, "servicetokens") || !t.proxy.listed(joining.name, "apikeys") {
					return fmt.Errorf("no credentials have been listed for %s yet", joining.name)
				}
				return nil
			}))
			// Long enough before the write for a server that nobody waits for to be caught
			// Ready without it, and sooner than it has been told of the list.
			last(ctx, 700*time.Millisecond)
		}
	}}
	// rolling restarts every server in turn, and the controller at the same time.
	rolling = mode{"everything restarted in turn", func(ctx context.Context, t *trial, f *fault) {
		f.before = func() {
			t.during(func() {
				for _, s := range t.servers {
					t.must(s.restart(ctx))
				}
			})
			t.during(func() { t.must(t.controller.restart(ctx)) })
		}
	}}
	// serverPaused stops a server until its Lease has lapsed and the rest have gone on
	// without it, and lets it go on with what it knew then.
	serverPaused = mode{"a server paused past its Lease", func(ctx context.Context, t *trial, f *fault) {
		const beyond = 20 * time.Second // 15 of the Lease, 2 of grace
		f.before = func() {
			over := t.impair(paused, 1)
			t.must(t.servers[1].signal(syscall.SIGSTOP))
			t.during(func() {
				last(ctx, beyond)
				t.must(t.servers[1].signal(syscall.SIGCONT))
				over()
			})
		}
	}}
)

// API servers.

// all are the servers of Mintmark.
func (t *trial) all() []int {
	out := make([]int, len(t.servers))
	for i := range out {
		out[i] = i
	}
	return out
}

// apiPaused stops the second API server for a while; others of Mintmark's processes
// than those that always do may be made to talk to it before.
func apiPaused(name string, processes func(*trial) []string) mode {
	return mode{name, func(ctx context.Context, t *trial, f *fault) {
		t.move(secondAPI, processes(t)...)
		f.before = func() {
			over := t.impair(late, t.all()...)
			t.must(t.second.Signal(syscall.SIGSTOP))
			t.during(func() {
				last(ctx, 3*time.Second)
				t.must(t.second.Signal(syscall.SIGCONT))
				over()
			})
		}
	}}
}

// deafened drops every event on its way to a process for a while. Then its watches
// end, and as many of the next ones are answered with 410.
func deafened(name, process string, gone int, servers ...int) mode {
	return mode{name, func(ctx context.Context, t *trial, f *fault) {
		f.before = func() {
			over := t.impair(late, servers...)
			t.proxy.change(process, func(w *route) { w.deaf = true })
			t.during(func() {
				last(ctx, 2*time.Second)
				t.proxy.change(process, func(w *route) { w.deaf = false })
				t.proxy.cutWatches(process, gone)
				over()
			})
		}
	}}
}

var (
	oneAPIPaused = apiPaused("an API server paused for 3s, with two servers at it", func(*trial) []string { return nil })
	itsAPIPaused = apiPaused("the controller's API server paused for 3s", func(*trial) []string { return []string{controllerName} })
	theAPIPaused = apiPaused("the only API server paused for 3s", func(t *trial) []string { return t.everybody() })

	// apiKilled kills an API server and starts it again.
	apiKilled = mode{"the controller's API server killed and started again", func(ctx context.Context, t *trial, f *fault) {
		t.move(secondAPI, controllerName)
		f.before = func() {
			over := t.impair(late, t.all()...)
			t.second.Kill()
			t.must(t.second.Start(ctx))
			over()
		}
	}}
	// restartedBehind has the controller started again at an API server that lags: what
	// it lists is as it was before anything was asked for, and no event comes for a while.
	restartedBehind = mode{"killed, restarted onto an API server 3s behind", func(ctx context.Context, t *trial, f *fault) {
		var then string
		f.arming = func() {
			var err error
			then, err = t.present(ctx)
			t.must(err)
		}
		f.drop = true
		f.after = func() {
			thaw := t.proxy.freeze(controllerName)
			t.proxy.change(controllerName, func(w *route) { w.upstream, w.behind = secondAPI, then })
			t.controller.kill()
			t.during(func() {
				last(ctx, 3*time.Second)
				t.proxy.change(controllerName, func(w *route) { w.behind = "" })
				thaw()
			})
		}
	}}
	deafServer         = deafened("events to a server dropped for 2s", "server-2", 0, 1)
	deafServerGone     = deafened("events to a server dropped for 2s, then 410", "server-2", 3, 1)
	deafController     = deafened("events to the controller dropped for 2s", controllerName, 0)
	deafControllerGone = deafened("events to the controller dropped for 2s, then 410", controllerName, 3)
)

// Outages.

var (
	slowAPI = mode{"300ms of latency", func(_ context.Context, t *trial, f *fault) {
		f.arming = func() {
			for _, name := range t.everybody() {
				t.proxy.change(name, func(w *route) { w.latency = 300 * time.Millisecond })
			}
		}
	}}
	overloadedAPI = mode{"429 to everything for 3s", func(ctx context.Context, t *trial, f *fault) {
		f.before = func() {
			over := t.impair(late, t.all()...)
			t.overload(true)
			t.during(func() {
				last(ctx, 3*time.Second)
				t.overload(false)
				over()
			})
		}
	}}
	// apiDown lasts longer than one of the servers may be stale.
	apiDown = mode{"no API server for 9s", func(ctx context.Context, t *trial, f *fault) {
		t.move(secondAPI, t.everybody()...)
		f.before = func() {
			cut, over := t.impair(cutOff, t.all()...), t.impair(late, t.all()...)
			t.second.Kill()
			last(ctx, 9*time.Second)
			for i := range t.servers {
				t.shows(ctx, i, 6*time.Second)
			}
			cut()
			t.must(t.second.Start(ctx))
			over()
		}
	}}
	coldStart = mode{"a server killed while there is no API server", func(ctx context.Context, t *trial, f *fault) {
		t.move(secondAPI, t.everybody()...)
		f.before = func() {
			over := t.impair(late, t.all()...)
			t.second.Kill()
			t.servers[1].kill()
			started := t.impair(cold, 1)
			last(ctx, 3*time.Second)
			started()
			t.must(t.second.Start(ctx))
			over()
		}
	}}
)

// What is revoked or deleted while a server cannot hear of it.

// unheard has something befall servers before anything is asked for, and undone after a
// while.
func unheard(name string, lasts time.Duration, what ailment, befall func(context.Context, *trial) (undo func()), servers ...int) mode {
	return mode{name, func(ctx context.Context, t *trial, f *fault) {
		f.arming = func() {
			over := t.impair(what, servers...)
			undo := befall(ctx, t)
			t.during(func() {
				last(ctx, lasts)
				undo()
				over()
			})
		}
	}}
}

// deleting is a mode amid which the credential is deleted.
func deleting(m mode) mode {
	return mode{"deleted, " + m.name, func(ctx context.Context, t *trial, f *fault) {
		m.plan(ctx, t, f)
		f.before = func() { t.must(t.remove(ctx)) }
	}}
}

var (
	unheardLate = unheard("while a server lags for 3s", 3*time.Second, late, func(_ context.Context, t *trial) func() {
		return t.proxy.freeze("server-2")
	}, 1)
	unheardDropped = unheard("while events to a server are dropped for 3s", 3*time.Second, late, dropped(0), 1)
	unheardGone    = unheard("while events to a server are dropped for 3s, then 410", 3*time.Second, late, dropped(3), 1)
	unheardAPI     = unheard("while the API server of two servers is paused for 3s", 3*time.Second, late, func(_ context.Context, t *trial) func() {
		t.must(t.second.Signal(syscall.SIGSTOP))
		return func() { t.must(t.second.Signal(syscall.SIGCONT)) }
	}, 1, 2)
	unheardPaused = unheard("while a server is paused past its Lease", 20*time.Second, paused, func(_ context.Context, t *trial) func() {
		t.must(t.servers[1].signal(syscall.SIGSTOP))
		return func() { t.must(t.servers[1].signal(syscall.SIGCONT)) }
	}, 1)
	// silent lasts for so long that the server must show it.
	silent = unheard("while a server hears nothing for 7s", 7*time.Second, late, func(ctx context.Context, t *trial) func() {
		thaw := t.proxy.freeze("server-2")
		return func() {
			t.shows(ctx, 1, 4*time.Second)
			thaw()
		}
	}, 1)
)

func dropped(gone int) func(context.Context, *trial) func() {
	return func(_ context.Context, t *trial) func() {
		t.proxy.change("server-2", func(w *route) { w.deaf = true })
		return func() {
			t.proxy.change("server-2", func(w *route) { w.deaf = false })
			t.proxy.cutWatches("server-2", gone)
		}
	}
}

func (t *trial) overload(is bool) {
	for _, name := range t.everybody() {
		t.proxy.change(name, func(w *route) { w.overloaded = is })
	}
}
