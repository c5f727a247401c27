package controllers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/lifecycle"
)

const (
	// DefaultParallelRestarts is how many rollouts go on at once in a cluster.
	DefaultParallelRestarts = 5
	// refusedAgain and refusedAtMost are how long a restart that was refused waits
	// for the next attempt: twice as long each time.
	refusedAgain  = 10 * time.Second
	refusedAtMost = 10 * time.Minute
	// restartOwner is the field manager of the annotations.
	restartOwner = "mintmark-controller"
	// maxServed is how many credentials the event of a restart names.
	maxServed = 5
)

// RestartConfig is what Restarts needs.
type RestartConfig struct {
	// WatchNamespaces are those whose workloads are watched; empty means all.
	WatchNamespaces []string
	// Parallel is how many rollouts go on at once; 0 is DefaultParallelRestarts.
	Parallel int
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Restarts restarts workloads for the credentials that wait for it: one patch
// for all that wait for the same workload. What to restart and when is decided
// by package lifecycle.
//
// It remembers nothing that matters: that a workload has been restarted stands
// in its pod template, and what is owed to a credential in its status. So a
// process that begins hears again from each credential what it waits for, and
// restarts nothing that was restarted before.
//
// Workloads are watched from the first time a restart is owed. It is a
// manager.Runnable of the leader, and safe for concurrent use.
type Restarts struct {
	cfg      RestartConfig
	cache    cache.Cache
	client   client.Client
	recorder eventRecorder
	changes  map[v1alpha1.Kind]chan event.GenericEvent
	need     chan struct{} // closed when a restart is owed for the first time
	needed   func()
	wake     chan struct{}
	tell     chan struct{}

	mu      sync.Mutex
	since   time.Time // of Start
	synced  bool
	problem string
	waiting map[types.UID]*waiting
	// workloads that somebody waits for.
	workloads map[lifecycle.WorkloadName]*awaited
	// changed are the credentials to be looked at again.
	changed map[types.UID]struct{}
}

// waiting is a credential that waits for workloads.
type waiting struct {
	kind    v1alpha1.Kind
	key     types.NamespacedName
	version int64
	wishes  []lifecycle.RestartWish
	// follows are the workloads it waits for, and those that it waited for and that
	// have been seen to run with this version.
	follows map[lifecycle.WorkloadName]struct{}
}

// awaited is what this process knows of a workload that credentials wait for.
type awaited struct {
	by map[types.UID]struct{}
	// uid and generation are those of the workload as our patch left it at the time
	// restarted: no cache that is behind it tells anything.
	uid        types.UID
	generation int64
	restarted  time.Time
	completed  time.Time // a restart whose rollout was seen to end
	// conflict is the resourceVersion that was not the workload\'s any more when it was
	// to be restarted.
	conflict string
	refused  string
	attempts int
	again    time.Time
}

// NewRestarts makes a Restarts; the caller adds it to the manager.
func NewRestarts(mgr ctrl.Manager, cfg RestartConfig) (*Restarts, error) {
	if cfg.Parallel == 0 {
		cfg.Parallel = DefaultParallelRestarts
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	recorder, err := newRecorder(mgr)
	if err != nil {
		return nil, err
	}
	r := &Restarts{
		cfg: cfg, client: mgr.GetClient(), recorder: recorder,
		changes: map[v1alpha1.Kind]chan event.GenericEvent{
			v1alpha1.KindServiceToken: make(chan event.GenericEvent),
			v1alpha1.KindAPIKey:       make(chan event.GenericEvent),
		},
		need: make(chan struct{}), wake: make(chan struct{}, 1), tell: make(chan struct{}, 1),
		waiting: map[types.UID]*waiting{}, workloads: map[lifecycle.WorkloadName]*awaited{}, changed: map[types.UID]struct{}{},
	}
	r.needed = sync.OnceFunc(func() { close(r.need) })
	options := cache.Options{
		HTTPClient: mgr.GetHTTPClient(), Scheme: mgr.GetScheme(), Mapper: mgr.GetRESTMapper(),
		DefaultTransform: slim, DefaultUnsafeDisableDeepCopy: ptrTo(true), ReaderFailOnMissingInformer: true,
		DefaultWatchErrorHandler: r.unwatched,
	}
	if len(cfg.WatchNamespaces) > 0 {
		options.DefaultNamespaces = map[string]cache.Config{}
		for _, namespace := range cfg.WatchNamespaces {
			options.DefaultNamespaces[namespace] = cache.Config{}
		}
	}
	if r.cache, err = cache.New(mgr.GetConfig(), options); err != nil {
		return nil, fmt.Errorf("making the cache of workloads: %w", err)
	}
	return r, nil
}

// Changes tells which credentials of a kind wait for a workload that has
// changed.
func (r *Restarts) Changes(kind v1alpha1.Kind) <-chan event.GenericEvent { return r.changes[kind] }

// Observe finds the workloads that a credential has restarted. The first call
// has them watched, and they are not known until that has caught up.
func (r *Restarts) Observe(ctx context.Context, namespace, secret string, spec *v1alpha1.Restart) (lifecycle.Restarts, error) {
	r.needed()
	r.mu.Lock()
	found := lifecycle.Restarts{Enabled: true, Known: r.synced, Problem: r.problem}
	r.mu.Unlock()
	if !found.Known {
		return found, nil
	}
	chooser := newChooser(spec, secret)
	there := map[v1alpha1.WorkloadReference]bool{}
	for _, kind := range workloadKinds {
		list := kind.newList()
		if err := r.cache.List(ctx, list, client.InNamespace(namespace)); err != nil {
			return found, fmt.Errorf("listing every %s of namespace %s: %w", kind.kind, namespace, err)
		}
		for _, o := range kind.items(list) {
			if o.GetDeletionTimestamp() == nil && chooser.chooses(o) {
				found.Workloads = append(found.Workloads, r.observe(o))
				there[v1alpha1.WorkloadReference{Kind: kind.kind, Name: o.GetName()}] = true
			}
		}
	}
	for _, named := range spec.Workloads {
		if !there[named] {
			found.Missing = append(found.Missing, lifecycle.WorkloadName{Namespace: namespace, Kind: named.Kind, Name: named.Name})
		}
	}
	return found, nil
}

// observe is what is known of one workload: what it says itself, and what this
// process remembers.
func (r *Restarts) observe(o client.Object) lifecycle.Workload {
	w := lifecycle.Workload{
		WorkloadName: workloadName(o), Created: o.GetCreationTimestamp().Time, Restarted: restartedBy(o, r.cfg.Now()),
		Recorded: restartedAt(o.GetAnnotations(), annotationRestartedAt), Rollout: rolloutOf(o),
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.workloads[w.WorkloadName]
	if a == nil || (a.uid != "" && a.uid != o.GetUID()) {
		return w
	}
	if o.GetGeneration() < a.generation { // the cache has yet to hear of our patch
		w.Restarted, w.Rollout = a.restarted, lifecycle.RolloutRolling
		return w
	}
	if w.Rollout == lifecycle.RolloutComplete && w.Restarted.After(a.completed) {
		a.uid, a.completed = o.GetUID(), w.Restarted
	}
	if a.restarted.After(w.Recorded) {
		w.Recorded = a.restarted
	}
	w.Completed, w.Refused = a.completed, a.refused
	return w
}

// Ask takes what a credential waits for now, in place of what it waited for
// before; no wishes end the wait. A credential of which the workloads are not
// known yet asks for nothing and is told when they are.
func (r *Restarts) Ask(c v1alpha1.Credential, wishes []lifecycle.RestartWish) {
	uid := c.GetUID()
	r.mu.Lock()
	before := r.waiting[uid]
	if len(wishes) > 0 || (!r.synced && lifecycle.AwaitsAdoption(c.CredentialSpec(), c.CredentialStatus())) {
		r.wait(c, wishes, before)
	} else {
		r.drop(uid)
	}
	changed := before == nil && len(wishes) > 0 || before != nil && !slices.Equal(before.wishes, wishes)
	r.mu.Unlock()
	if changed {
		nudge(r.wake)
	}
	nudge(r.tell)
}

// wait has a credential wait for workloads, in place of those it waited for before.
// A workload that it waited for, and that has been seen to run, is followed on for
// as long as it waits for others with the same version: what becomes of it later is
// not taken for a rollout that failed. The caller holds the lock.
func (r *Restarts) wait(c v1alpha1.Credential, wishes []lifecycle.RestartWish, before *waiting) {
	uid := c.GetUID()
	w := &waiting{
		kind: c.CredentialKind(), key: client.ObjectKeyFromObject(c.(client.Object)),
		version: c.CredentialStatus().CurrentVersion, wishes: slices.Clone(wishes),
		follows: make(map[lifecycle.WorkloadName]struct{}, len(wishes)),
	}
	r.waiting[uid] = w
	for _, wish := range wishes {
		a := r.workloads[wish.Workload]
		if a == nil {
			a = &awaited{by: map[types.UID]struct{}{}}
			r.workloads[wish.Workload] = a
		}
		if _, follows := a.by[uid]; !follows {
			a.by[uid] = struct{}{}
			r.changed[uid] = struct{}{} // of what happened to it since it was looked at, nobody was told
		}
		w.follows[wish.Workload] = struct{}{}
	}
	if before == nil {
		return
	}
	for name := range before.follows {
		if before.version == w.version {
			w.follows[name] = struct{}{}
		} else if _, follows := w.follows[name]; !follows {
			r.unfollow(uid, name)
		}
	}
}

// Forget drops what a credential waits for.
func (r *Restarts) Forget(uid types.UID) {
	r.mu.Lock()
	r.drop(uid)
	r.mu.Unlock()
	nudge(r.wake) // what it waited for counts no longer among the rollouts that go on
}

// drop takes a credential from those that wait. The caller holds the lock.
func (r *Restarts) drop(uid types.UID) {
	if w := r.waiting[uid]; w != nil {
		delete(r.waiting, uid)
		for name := range w.follows {
			r.unfollow(uid, name)
		}
	}
}

// unfollow forgets a workload that nobody waits for any more. The caller holds the
// lock.
func (r *Restarts) unfollow(uid types.UID, name lifecycle.WorkloadName) {
	if a := r.workloads[name]; a != nil {
		if delete(a.by, uid); len(a.by) == 0 {
			delete(r.workloads, name)
		}
	}
}

// round restarts what is to be restarted now, and says how long nothing else is.
func (r *Restarts) round(ctx context.Context) time.Duration {
	const idle = time.Hour
	now := r.cfg.Now()
	orders, next := r.choose(now)
	for _, order := range orders {
		if err := r.restart(ctx, order); err != nil && ctx.Err() == nil {
			log.FromContext(ctx).WithName("restarts").Error(err, "Restarting; it is tried again")
		}
	}
	if len(orders) > 0 {
		_, next = r.choose(r.cfg.Now())
	}
	if next.IsZero() {
		return idle
	}
	return min(max(next.Sub(r.cfg.Now()), 10*time.Millisecond), idle)
}

func (r *Restarts) choose(now time.Time) ([]lifecycle.RestartOrder, time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var (
		wishes = map[lifecycle.WorkloadName][]lifecycle.RestartWish{}
		retry  time.Time
	)
	if !r.synced {
		return nil, time.Time{}
	}
	for _, w := range r.waiting {
		for _, wish := range w.wishes {
			if a := r.workloads[wish.Workload]; now.Before(a.again) {
				wish.Begin = false
				if retry.IsZero() || a.again.Before(retry) {
					retry = a.again
				}
			}
			wishes[wish.Workload] = append(wishes[wish.Workload], wish)
		}
	}
	orders, next := lifecycle.NextRestarts(wishes, r.since, r.cfg.Parallel, now)
	if next.IsZero() || (!retry.IsZero() && retry.Before(next)) {
		next = retry
	}
	return orders, next
}

// restart makes the one write: the time of the restart into the pod template's
// annotations, as kubectl rollout restart does, and into the workload's own.
// Under the resourceVersion that was looked at, so that of two controllers, or
// of us and a person, one restarts.
func (r *Restarts) restart(ctx context.Context, order lifecycle.RestartOrder) error {
	o := newWorkload(order.Workload.Kind)
	key := types.NamespacedName{Namespace: order.Workload.Namespace, Name: order.Workload.Name}
	switch err := r.cache.Get(ctx, key, o); {
	case apierrors.IsNotFound(err):
		r.workloadGone(order.Workload)
		return nil
	case err != nil:
		r.postpone(order.Workload, tryAgain)
		return fmt.Errorf("reading %s %s: %w", order.Workload.Kind, key, err)
	}
	at := r.cfg.Now().UTC().Truncate(time.Second)
	if !at.After(order.After) {
		at = order.After.UTC().Truncate(time.Second).Add(time.Second) // by the clock of another controller
	}
	if restartedBy(o, r.cfg.Now()).After(order.After) {
		r.workloadChanged(o) // those who wait have not heard of it yet
		r.postpone(order.Workload, tryAgain)
		return nil
	}
	if r.conflicted(order.Workload, o.GetResourceVersion()) {
		r.postpone(order.Workload, tryAgain) // the cache is still behind
		return nil
	}
	annotations := map[string]string{annotationRestartedAt: at.Format(time.RFC3339)}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": o.GetResourceVersion(), "annotations": annotations},
		"spec":     map[string]any{"template": map[string]any{"metadata": map[string]any{"annotations": annotations}}},
	})
	if err != nil {
		return err
	}
	written := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}}
	written.SetGroupVersionKind(schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: order.Workload.Kind})
	err = r.client.Patch(ctx, written, client.RawPatch(types.MergePatchType, patch), client.FieldOwner(restartOwner))
	switch {
	case apierrors.IsNotFound(err):
		r.workloadGone(order.Workload)
		return nil
	case apierrors.IsConflict(err): // the cache is about to hear of what was written
		r.noteConflict(order.Workload, o.GetResourceVersion())
		r.postpone(order.Workload, tryAgain)
		return nil
	case err != nil:
		r.refuse(order.Workload, err)
		return fmt.Errorf("%s %s: %w", order.Workload.Kind, key, err)
	}
	restarts.WithLabelValues(order.Workload.Kind).Inc()
	served := r.restarted(order.Workload, written, at)
	r.recorder.Eventf(written, nil, corev1.EventTypeNormal, "Restarted", "Restart", "Restarted, so that its pods run with %s", served)
	return nil
}

// restarted notes that a restart has begun, and names the credentials it serves.
func (r *Restarts) restarted(name lifecycle.WorkloadName, written client.Object, at time.Time) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.workloads[name]
	if a == nil {
		return "the current values" // those who waited have gone meanwhile
	}
	a.uid, a.generation, a.restarted = written.GetUID(), written.GetGeneration(), at
	a.refused, a.attempts, a.again = "", 0, time.Time{}
	var served []string
	for uid := range a.by {
		w := r.waiting[uid]
		for i := range w.wishes {
			if wish := &w.wishes[i]; wish.Workload == name && wish.Delivered.Before(at) {
				wish.Begin, wish.Restarted = false, at
				served = append(served, fmt.Sprintf("version %d of %s %s", w.version, w.kind, w.key.Name))
			}
		}
		r.changed[uid] = struct{}{}
	}
	nudge(r.tell)
	slices.Sort(served)
	if more := len(served) - maxServed; more > 0 {
		return fmt.Sprintf("%s and %d more credentials", strings.Join(served[:maxServed], ", "), more)
	}
	return strings.Join(served, ", ")
}

// refuse notes that the API server did not let us restart a workload.
func (r *Restarts) refuse(name lifecycle.WorkloadName, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.workloads[name]
	if a == nil || errors.Is(err, context.Canceled) {
		return
	}
	a.again = r.cfg.Now().Add(min(refusedAgain<<min(a.attempts, 10), refusedAtMost))
	a.attempts++
	a.refused = cut(lasting(err), maxProblem)
	for uid := range a.by {
		r.changed[uid] = struct{}{}
	}
	nudge(r.tell)
}

// noteConflict notes the resourceVersion under which a restart was not made.
func (r *Restarts) noteConflict(name lifecycle.WorkloadName, resourceVersion string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if a := r.workloads[name]; a != nil {
		a.conflict = resourceVersion
	}
}

// conflicted tells whether a restart has not been made under that resourceVersion,
// and so never will be.
func (r *Restarts) conflicted(name lifecycle.WorkloadName, resourceVersion string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.workloads[name]
	return a != nil && a.conflict == resourceVersion
}

// postpone has a restart chosen again no sooner than after a while.
func (r *Restarts) postpone(name lifecycle.WorkloadName, d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if a := r.workloads[name]; a != nil {
		a.again = r.cfg.Now().Add(d)
	}
}

// workloadGone has those who wait for a workload that is not there any more look
// again.
func (r *Restarts) workloadGone(name lifecycle.WorkloadName) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if a := r.workloads[name]; a != nil {
		a.again = r.cfg.Now().Add(tryAgain)
		for uid := range a.by {
			r.changed[uid] = struct{}{}
		}
	}
	nudge(r.tell)
}
