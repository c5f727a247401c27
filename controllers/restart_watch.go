package controllers

import (
	"context"
	"fmt"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (*Restarts) NeedLeaderElection() bool { return true }

// Start restarts what is waited for until the context ends.
func (r *Restarts) Start(ctx context.Context) error {
	r.mu.Lock()
	r.since = r.cfg.Now()
	r.mu.Unlock()
	select {
	case <-ctx.Done():
		return nil
	case <-r.need:
	}
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, 1)
	running.Go(func() {
		if err := r.cache.Start(ctx); err != nil {
			failed <- fmt.Errorf("watching workloads: %w", err)
		}
	})
	if err := r.watch(ctx); err != nil {
		return err
	}
	running.Go(func() { r.sync(ctx) })
	running.Go(func() { r.tellAll(ctx) })
	for {
		next := r.round(ctx)
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case err := <-failed:
			timer.Stop()
			return err
		case <-r.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// watch begins to watch workloads.
func (r *Restarts) watch(ctx context.Context) error {
	for _, kind := range workloadKinds {
		informer, err := r.cache.GetInformer(ctx, kind.new(), cache.BlockUntilSynced(false))
		if err != nil {
			return fmt.Errorf("watching every %s: %w", kind.kind, err)
		}
		if _, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
			AddFunc: r.workloadChanged, UpdateFunc: func(_, o any) { r.workloadChanged(o) }, DeleteFunc: r.workloadChanged,
		}); err != nil {
			return fmt.Errorf("watching every %s: %w", kind.kind, err)
		}
	}
	return nil
}

// sync has every credential that waits looked at once the workloads are known.
func (r *Restarts) sync(ctx context.Context) {
	if !r.cache.WaitForCacheSync(ctx) {
		return
	}
	r.mu.Lock()
	r.synced, r.problem = true, ""
	for uid := range r.waiting {
		r.changed[uid] = struct{}{}
	}
	r.mu.Unlock()
	nudge(r.tell)
}

// unwatched notes why workloads cannot be watched.
func (r *Restarts) unwatched(ctx context.Context, reflector *toolscache.Reflector, err error) {
	toolscache.DefaultWatchErrorHandler(ctx, reflector, err)
	if !apierrors.IsForbidden(err) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.synced {
		r.problem = "the controller may not list workloads: bind the ClusterRole mintmark-controller-restart to its account " +
			"(restart.enabled in the chart, or config/components/restart)"
	}
}

// workloadChanged has the credentials that wait for a workload looked at again.
func (r *Restarts) workloadChanged(o any) {
	if gone, ok := o.(toolscache.DeletedFinalStateUnknown); ok {
		o = gone.Obj
	}
	w, ok := o.(client.Object)
	if !ok {
		return
	}
	r.mu.Lock()
	a := r.workloads[workloadName(w)]
	if a != nil {
		for uid := range a.by {
			r.changed[uid] = struct{}{}
		}
	}
	r.mu.Unlock()
	if a != nil {
		nudge(r.tell)
	}
}

// tellAll wakes the reconcilers of the credentials to be looked at again.
func (r *Restarts) tellAll(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.tell:
		}
		r.mu.Lock()
		var changed []waiting
		for uid := range r.changed {
			if w := r.waiting[uid]; w != nil {
				changed = append(changed, *w)
			}
		}
		clear(r.changed)
		r.mu.Unlock()
		for _, w := range changed {
			object := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Namespace: w.key.Namespace, Name: w.key.Name}}
			object.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind(string(w.kind)))
			select {
			case r.changes[w.kind] <- event.GenericEvent{Object: object}:
			case <-ctx.Done():
				return
			}
		}
	}
}

func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
