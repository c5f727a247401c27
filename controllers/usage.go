package controllers

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"net/http"
	"slices"
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
	// usageGap is the least time between two rounds.
	usageGap = 200 * time.Millisecond
	// goneFor is how long a credential that is gone is remembered as such.
	goneFor = 10 * time.Minute
	// leftFor is how long a process is remembered that holds no Lease any more: one that was
	// cut off for a while goes on from what it has told.
	leftFor = 24 * time.Hour
)

// UsageCollector asks the servers what they saw used, so that a superseded
// version can be retired on proof, and one that is used a lot rotated sooner. The
// evidence is what this process heard from the servers themselves, never what
// status says; it begins anew with the process, and whenever a server goes whose
// last word nobody heard. It is a manager.Runnable of the leader, and safe for
// concurrent use.
type UsageCollector struct {
	fleet   *Fleet
	changes map[v1alpha1.Kind]chan event.GenericEvent
	asked   chan struct{}

	mu        sync.Mutex
	used      map[types.UID]map[int64]*versionUse
	processes map[string]*serverProcess
	left      map[string]*serverProcess // which hold no Lease any more
	since     time.Time                 // no gap since then
	through   time.Time                 // the latest complete round of answers
	looked    time.Time                 // the latest look at who is there
	// gone are credentials that were forgotten lately, and when: servers may tell of
	// uses that they had counted by then.
	gone map[types.UID]time.Time
	// fresh are the credentials to be told of once a round is complete.
	fresh map[types.UID]bool
}

// serverProcess is one process of a server, and how far it has told.
type serverProcess struct {
	cursor uint64
	since  time.Time // it counts since then, by its own clock
	told   time.Time // when it was asked last; what it tells next was used after that
	left   time.Time // when it was found to hold no Lease any more
}

// versionUse is what is known of the use of one version.
type versionUse struct {
	last   time.Time
	counts []processCount
	// tellAt is the number of uses to be told of; 0 is none.
	tellAt int64
}

// processCount is what one process has counted. The process may have gone.
type processCount struct {
	process *serverProcess
	uses    int64
	// before is what it had counted when it began anew.
	before int64
}

// maxCounts bounds the counts of processes that are kept apart.
const maxCounts = 8

func (v *versionUse) total() (n int64) {
	for _, c := range v.counts {
		n += c.before + c.uses
	}
	return n
}

func (v *versionUse) count(process *serverProcess, uses int64) {
	for i := range v.counts {
		if c := &v.counts[i]; c.process == process {
			if uses < c.uses {
				c.before += c.uses
			}
			c.uses = uses
			return
		}
	}
	v.counts = append(v.counts, processCount{process: process, uses: uses})
	if len(v.counts) > maxCounts {
		slices.SortStableFunc(v.counts, func(a, b processCount) int { return a.process.since.Compare(b.process.since) })
		v.counts[1].before += v.counts[0].before + v.counts[0].uses
		v.counts = slices.Delete(v.counts, 0, 1)
	}
}

// NewUsageCollector makes a UsageCollector; Start runs it.
func NewUsageCollector(fleet *Fleet) *UsageCollector {
	return &UsageCollector{
		fleet: fleet, used: map[types.UID]map[int64]*versionUse{}, processes: map[string]*serverProcess{}, left: map[string]*serverProcess{},
		fresh: map[types.UID]bool{}, gone: map[types.UID]time.Time{}, asked: make(chan struct{}, 1),
		changes: map[v1alpha1.Kind]chan event.GenericEvent{
			v1alpha1.KindServiceToken: make(chan event.GenericEvent, 1024), v1alpha1.KindAPIKey: make(chan event.GenericEvent, 1024),
		},
	}
}

// Changes gives an object with the UID of each credential that was used on a
// day it had not been used before, or as often as was asked for.
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
	usage := &lifecycle.Usage{Since: u.since, Through: u.through}
	if versions := u.used[uid]; len(versions) > 0 {
		usage.LastUsed, usage.Uses = make(map[int64]time.Time, len(versions)), make(map[int64][]lifecycle.Count, len(versions))
		for version, use := range versions {
			if use.last.IsZero() {
				continue
			}
			usage.LastUsed[version] = use.last
			for _, c := range use.counts {
				usage.Uses[version] = append(usage.Uses[version], lifecycle.Count{Since: c.process.since, Uses: c.before + c.uses})
			}
		}
	}
	return usage
}

// TellAt has the credential told of once its version has been used so often.
func (u *UsageCollector) TellAt(uid types.UID, version, uses int64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	use := u.use(uid, version)
	if use.tellAt = uses; use.total() >= uses {
		u.fresh[uid] = true // used meanwhile: told of with the next round
	}
}

// Ask has the servers asked now.
func (u *UsageCollector) Ask() {
	select {
	case u.asked <- struct{}{}:
	default:
	}
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
		select {
		case <-ctx.Done():
			return nil
		case <-u.asked:
			if !pause(ctx, usageGap) { // so that many who ask are one round
				return nil
			}
		case <-time.After(usagePoll):
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
		asking.Go(func() { problems[i] = u.ask(ctx, session, server, begin) })
	}
	asking.Wait()
	if err := errors.Join(problems...); err != nil {
		return err
	}
	u.mu.Lock()
	u.through = begin
	fresh := slices.Collect(maps.Keys(u.fresh))
	clear(u.fresh)
	u.mu.Unlock()
	for _, uid := range fresh {
		u.tell(ctx, uid)
	}
	return nil
}

// meet notes who is there. With one that has gone, what it saw since it was last
// asked is lost, and the evidence begins anew; what it had counted by then stays.
func (u *UsageCollector) meet(servers []server, now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	there := make(map[string]*serverProcess, len(servers))
	for _, s := range servers {
		known := cmp.Or(u.processes[s.process], u.left[s.process])
		if known == nil {
			known = &serverProcess{told: u.through} // it was not there then
		}
		there[s.process] = known
		delete(u.left, s.process)
	}
	gone := false
	for name, process := range u.processes {
		if there[name] == nil {
			gone, process.left, u.left[name] = true, now, process
		}
	}
	maps.DeleteFunc(u.left, func(_ string, process *serverProcess) bool { return now.Sub(process.left) > leftFor })
	// Where nobody looked for long, one can have come and gone unseen.
	if gone || u.since.IsZero() || now.Sub(u.looked) > usageStale {
		u.since = now
	}
	u.processes, u.looked = there, now
	maps.DeleteFunc(u.gone, func(_ types.UID, at time.Time) bool { return now.Sub(at) > goneFor })
}

// ask has one server tell everything that it has to tell by now.
func (u *UsageCollector) ask(ctx context.Context, session *session, server server, now time.Time) error {
	for {
		u.mu.Lock()
		process := u.processes[server.process]
		cursor := process.cursor
		u.mu.Unlock()
		var answer internalapi.UsageResponse
		path := internalapi.UsagePath + "?" + internalapi.CursorParameter + "=" + strconv.FormatUint(cursor, 10)
		if err := session.call(ctx, server, http.MethodGet, path, nil, &answer); err != nil {
			return err
		}
		u.take(process, &answer)
		if answer.Cursor == cursor || len(answer.Items) < internalapi.MaxUsageItems {
			u.mu.Lock()
			process.told = now
			u.mu.Unlock()
			return nil
		}
	}
}

// take adds an answer to what is known.
func (u *UsageCollector) take(process *serverProcess, answer *internalapi.UsageResponse) {
	u.mu.Lock()
	defer u.mu.Unlock()
	process.cursor, process.since = answer.Cursor, answer.Since
	for _, item := range answer.Items {
		if _, gone := u.gone[types.UID(item.UID)]; gone {
			continue
		}
		use := u.use(types.UID(item.UID), item.Version)
		use.count(process, item.Uses)
		if use.tellAt > 0 && use.total() >= use.tellAt {
			use.tellAt, u.fresh[types.UID(item.UID)] = 0, true
		}
		// What the server tells now it did not when it was asked before, or it was
		// not there yet: that much is sure whatever the server's clock says.
		used := item.LastUsed
		if used.Before(process.told) {
			used = process.told
		}
		if !used.After(use.last) {
			continue
		}
		// The first use of a version can be what its predecessor waits for.
		if use.last.IsZero() || use.last.UTC().Format(time.DateOnly) != used.UTC().Format(time.DateOnly) {
			u.fresh[types.UID(item.UID)] = true
		}
		use.last = used
	}
}

// use gives what is known of a version. The caller holds the lock.
func (u *UsageCollector) use(uid types.UID, version int64) *versionUse {
	versions := u.used[uid]
	if versions == nil {
		versions = map[int64]*versionUse{}
		u.used[uid] = versions
	}
	if versions[version] == nil {
		versions[version] = new(versionUse)
	}
	return versions[version]
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
	delete(u.used, uid)
	delete(u.fresh, uid)
	u.gone[uid] = u.fleet.cfg.Now()
}

// Keep drops what is known of versions that are not in the status of a credential
// any more: they have ended, and been forgotten. One that is later than those is
// kept, for a cache can be behind.
func (u *UsageCollector) Keep(uid types.UID, versions []v1alpha1.CredentialVersion) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.used[uid]) <= len(versions) {
		return // most of the time
	}
	var latest int64
	for _, v := range versions {
		latest = max(latest, v.Version)
	}
	maps.DeleteFunc(u.used[uid], func(version int64, _ *versionUse) bool {
		return version < latest && !slices.ContainsFunc(versions, func(v v1alpha1.CredentialVersion) bool { return v.Version == version })
	})
}
