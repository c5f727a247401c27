package controllers

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/internalapi"
	"github.com/mintmark-dev/mintmark/internal/lifecycle"
)

const (
	// usagePoll is how often the servers are asked what was used.
	usagePoll = 15 * time.Second
	// usageStale is how old the latest complete round of answers may be.
	usageStale = time.Minute
)

// UsageCollector asks the servers what they saw used, so that a superseded
// version can be retired on proof. The evidence is what this process heard from
// the servers themselves, never what status says; it begins anew with the
// process, and whenever a server goes whose last word nobody heard. It is a
// manager.Runnable of the leader, and safe for concurrent use.
type UsageCollector struct {
	fleet   *Fleet
	changes map[v1alpha1.Kind]chan event.GenericEvent

	mu       sync.Mutex
	versions map[types.UID]map[int64]time.Time
	cursors  map[string]uint64 // by process
	since    time.Time         // no gap since then
	through  time.Time         // the latest complete round of answers
}

// NewUsageCollector makes a UsageCollector; Start runs it.
func NewUsageCollector(fleet *Fleet) *UsageCollector {
	return &UsageCollector{
		fleet: fleet, versions: map[types.UID]map[int64]time.Time{}, cursors: map[string]uint64{},
		changes: map[v1alpha1.Kind]chan event.GenericEvent{
			v1alpha1.KindServiceToken: make(chan event.GenericEvent, 1024), v1alpha1.KindAPIKey: make(chan event.GenericEvent, 1024),
		},
	}
}

// Changes gives an object with the UID of each credential that was used on a
// day it had not been used before.
func (u *UsageCollector) Changes(kind v1alpha1.Kind) <-chan event.GenericEvent {
	return u.changes[kind]
}

// Of is the evidence about one credential; nil where there is none, for some
// server has not answered lately.
func (u *UsageCollector) Of(uid types.UID) *lifecycle.Usage {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.through.IsZero() || u.fleet.cfg.Now().Sub(u.through) > usageStale {
		return nil
	}
	usage := &lifecycle.Usage{LastUsed: make(map[int64]time.Time, len(u.versions[uid])), Since: u.since, Through: u.through}
	for version, at := range u.versions[uid] {
		usage.LastUsed[version] = at
	}
	return usage
}

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (*UsageCollector) NeedLeaderElection() bool { return true }

// Start asks until the context ends.
func (u *UsageCollector) Start(ctx context.Context) error {
	failing := false
	for {
		err := u.round(ctx)
		if err != nil && !failing && ctx.Err() == nil {
			log.FromContext(ctx).WithName("usage").Error(err, "Asking the servers what was used; nothing is retired on proof meanwhile")
		}
		failing = err != nil
		if !pause(ctx, usagePoll) {
			return nil
		}
	}
}

// round asks every server once, to the end of what it has to tell.
func (u *UsageCollector) round(ctx context.Context) error {
	begin := u.fleet.cfg.Now()
	session, err := u.fleet.session(ctx)
	if err != nil {
		return err
	}
	u.meet(session.servers, begin)
	problems := make([]error, len(session.servers))
	var asking sync.WaitGroup
	for i, server := range session.servers {
		asking.Go(func() { problems[i] = u.ask(ctx, session, server) })
	}
	asking.Wait()
	if err := errors.Join(problems...); err != nil {
		return err
	}
	u.mu.Lock()
	u.through = begin
	u.mu.Unlock()
	return nil
}

// meet notes who is there. With one that has gone, what it saw since it was last
// asked is lost, and the evidence begins anew.
func (u *UsageCollector) meet(servers []server, now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	cursors := make(map[string]uint64, len(servers))
	for _, s := range servers {
		cursors[s.process] = u.cursors[s.process]
	}
	gone := false
	for process := range u.cursors {
		if _, there := cursors[process]; !there {
			gone = true
		}
	}
	if gone || u.since.IsZero() {
		u.since = now
	}
	u.cursors = cursors
}

func (u *UsageCollector) ask(ctx context.Context, session *session, server server) error {
	for {
		u.mu.Lock()
		cursor := u.cursors[server.process]
		u.mu.Unlock()
		var answer internalapi.UsageResponse
		path := internalapi.UsagePath + "?" + internalapi.CursorParameter + "=" + strconv.FormatUint(cursor, 10)
		if err := session.call(ctx, server, http.MethodGet, path, nil, &answer); err != nil {
			return err
		}
		for _, fresh := range u.take(server, &answer) {
			u.tell(ctx, fresh)
		}
		if answer.Cursor == cursor || len(answer.Items) < internalapi.MaxUsageItems {
			return nil
		}
	}
}

// take adds an answer to what is known, and gives the credentials that were
// used on a new day.
func (u *UsageCollector) take(server server, answer *internalapi.UsageResponse) []types.UID {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.cursors[server.process] = answer.Cursor
	var fresh []types.UID
	for _, item := range answer.Items {
		uid := types.UID(item.UID)
		known := u.versions[uid]
		if known == nil {
			known = map[int64]time.Time{}
			u.versions[uid] = known
		}
		// What the server tells now it did not when it was asked before, or it was
		// not there yet: that much is sure whatever the server's clock says.
		used := item.LastUsed
		if used.Before(u.through) {
			used = u.through
		}
		last, again := known[item.Version]
		if !used.After(last) {
			continue
		}
		known[item.Version] = used
		// The first use of a version can be what its predecessor waits for.
		if !again || last.UTC().Format(time.DateOnly) != used.UTC().Format(time.DateOnly) {
			fresh = append(fresh, uid)
		}
	}
	return fresh
}

func (u *UsageCollector) tell(ctx context.Context, uid types.UID) {
	for kind, object := range map[v1alpha1.Kind]client.Object{v1alpha1.KindServiceToken: &v1alpha1.ServiceToken{}, v1alpha1.KindAPIKey: &v1alpha1.APIKey{}} {
		object.SetUID(uid)
		select {
		case u.changes[kind] <- event.GenericEvent{Object: object}:
		case <-ctx.Done():
		}
	}
}

// Forget drops what is known of a credential that is gone.
func (u *UsageCollector) Forget(uid types.UID) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.versions, uid)
}
