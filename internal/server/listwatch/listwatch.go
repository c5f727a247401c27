// Package listwatch follows one resource of the API server without keeping it:
// what it lists and watches goes to a [Sink], object by object, and is forgotten.
//
// A Loop lists consistently (a quorum read, in pages) and watches from the list's
// resourceVersion on. The watch starts with the first page and is read while the rest of
// the list is still coming, so that a change made during a long relist is told within
// milliseconds. What the watch has told about an object is never overwritten by the
// older list.
//
// A Loop survives everything a watch can do: it may end, break, fall behind (410
// Gone) or be answered by an API server that lags. One thing it does not survive: a list
// older than what was seen before. That is a cluster restored from a backup, which
// nothing learned so far can be trusted about; [ErrRestored] says so.
package listwatch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/apimachinery/pkg/watch"
)

// ErrRestored is returned by Run when the API server's history has gone back: the
// cluster was restored from a backup.
var ErrRestored = errors.New("the resourceVersion of a consistent list has fallen: the cluster was restored from a backup")

// Source is how a resource is listed and watched. Each call ends with its context.
type Source struct {
	List  func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error)
	Watch func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error)
}

// Sink is told what a Loop sees, by one goroutine, in order. It must not keep the
// objects if memory matters to it.
type Sink interface {
	// BeginList says that everything is about to be told again. A list that fails
	// half-way is followed by another BeginList.
	BeginList()
	// Put tells an object as it is now.
	Put(object runtime.Object)
	// Delete tells that an object is gone.
	Delete(object runtime.Object)
	// EndList says that what was not Put since BeginList no longer exists.
	EndList()
}

// Config of a Loop.
type Config struct {
	// Name of what is followed, for messages: "servicetokens.mintmark.dev".
	Name   string
	Source Source
	Sink   Sink
	// PageSize of lists; 0 means 500.
	PageSize int64
	// RelistEvery bounds for how long an event the API server failed to send can
	// stay unnoticed. It is spread by a tenth. 0 means never.
	RelistEvery time.Duration
	// Log gets one line per failure; nil means none.
	Log *slog.Logger
}

// Loop follows one resource. Make it with New; Run it once at a time.
type Loop struct {
	config Config
	relist chan struct{}
	synced chan struct{}

	// lastRV is the newest resourceVersion seen. It belongs to Run's goroutine.
	lastRV string

	mu          sync.Mutex
	listed      time.Time
	brokenSince time.Time
	lastError   error
	reportedAt  time.Time
}

// New makes a Loop. It does nothing until Run.
func New(c Config) *Loop {
	if c.PageSize == 0 {
		c.PageSize = 500
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Loop{config: c, relist: make(chan struct{}, 1), synced: make(chan struct{})}
}

// Name is the Config's.
func (l *Loop) Name() string { return l.config.Name }

// Synced is closed once the first list has been told whole.
func (l *Loop) Synced() <-chan struct{} { return l.synced }

// Relist asks for everything to be listed again: soon, or when the list under way is
// through; and once, however often it is called until then.
func (l *Loop) Relist() {
	select {
	case l.relist <- struct{}{}:
	default:
	}
}

// Health of a Loop.
type Health struct {
	// Listed is when the latest list that was told whole began; zero before the first.
	Listed time.Time
	// BrokenSince is when the loop lost touch with the API server; zero while it is
	// in touch.
	BrokenSince time.Time
	// Err is why; nil while in touch.
	Err error
}

// Health tells how the loop is doing. It is safe for concurrent use.
func (l *Loop) Health() Health {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Health{Listed: l.listed, BrokenSince: l.brokenSince, Err: l.lastError}
}

func (l *Loop) inTouch() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.brokenSince, l.lastError = time.Time{}, nil
}

// reportEvery is how often a failure that goes on is logged.
const reportEvery = 30 * time.Second

// broken notes and logs that the loop is out of touch.
func (l *Loop) broken(doing string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if l.brokenSince.IsZero() {
		l.brokenSince = now
	}
	if l.lastError == nil || now.Sub(l.reportedAt) >= reportEvery {
		l.reportedAt = now
		l.config.Log.Warn("cannot "+doing+" "+l.config.Name, "error", err.Error(), "remedy", remedy(err, l.config.Name))
	}
	l.lastError = err
}

func (l *Loop) toldWhole(began time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.listed.IsZero() {
		close(l.synced)
	}
	l.listed = began
}

// What ends a session and is no failure.
var (
	errAsked = errors.New("asked to list again")
	errGone  = errors.New("the watch cannot be continued")
)

// Run follows the resource until the context ends, whose error it returns, or until
// it finds the cluster restored: ErrRestored.
func (l *Loop) Run(ctx context.Context) error {
	var retry backoff
	for {
		began := time.Now()
		err := l.session(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, ErrRestored):
			return fmt.Errorf("following %s: %w", l.config.Name, err)
		case errors.Is(err, errAsked):
			continue
		case !errors.Is(err, errGone):
			l.broken("list", err)
		}
		if time.Since(began) > steady {
			retry.reset()
		}
		if !retry.wait(ctx) {
			return ctx.Err()
		}
	}
}

// steady is how long a session has to last for the next failure to be taken for a
// first one.
const steady = 10 * time.Second

// session is one list and the watch that follows it.
func (l *Loop) session(parent context.Context) error {
	ctx, cancel := context.WithCancel(parent)
	var workers sync.WaitGroup
	defer workers.Wait()
	defer cancel()

	began := time.Now()
	first, err := l.page(ctx, "")
	if err != nil {
		return err
	}
	if l.lastRV != "" {
		order, err := resourceversion.CompareResourceVersion(first.rv, l.lastRV)
		if err != nil {
			return fmt.Errorf("comparing resourceVersion %q with %q: %w", first.rv, l.lastRV, err)
		}
		if order < 0 {
			return ErrRestored
		}
	}
	l.lastRV = first.rv
	l.inTouch()
	l.config.Sink.BeginList()

	pages, events := make(chan page), make(chan watch.Event, 64)
	pageErr, watchErr := make(chan error, 1), make(chan error, 1)
	workers.Go(func() { pageErr <- l.readPages(ctx, first, pages) })
	workers.Go(func() { watchErr <- l.readEvents(ctx, first.rv, events) })

	var timer <-chan time.Time
	if l.config.RelistEvery > 0 {
		timer = time.After(spread(l.config.RelistEvery))
	}
	touched := map[types.UID]struct{}{} // by the watch, while the list is not through
	var asked <-chan struct{}           // heeded once it is: a list that never ends is none
	for {
		select {
		case e := <-events:
			l.tell(e, touched)
		case p := <-pages:
			l.tellPage(p, touched, events)
		case err := <-pageErr:
			if err != nil {
				return err
			}
			pageErr, touched, asked = nil, nil, l.relist
			l.config.Sink.EndList()
			l.toldWhole(began)
		case err := <-watchErr:
			// What was read before the end counts.
			for len(events) > 0 {
				l.tell(<-events, touched)
			}
			return err
		case <-timer:
			timer = nil
			l.Relist()
		case <-asked:
			return errAsked
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// tellPage tells a page of the list, letting events pass that arrive meanwhile.
func (l *Loop) tellPage(p page, touched map[types.UID]struct{}, events <-chan watch.Event) {
	for i, object := range p.items {
		for len(events) > 0 {
			l.tell(<-events, touched)
		}
		if accessor, err := meta.Accessor(object); err == nil {
			if _, newer := touched[accessor.GetUID()]; !newer {
				l.config.Sink.Put(object)
			}
		}
		p.items[i] = nil
	}
}

// tell tells an event. touched is nil once the list is through.
func (l *Loop) tell(e watch.Event, touched map[types.UID]struct{}) {
	accessor, err := meta.Accessor(e.Object)
	if err != nil {
		return
	}
	if rv := accessor.GetResourceVersion(); rv != "" {
		l.lastRV = rv
	}
	if e.Type == watch.Bookmark {
		return
	}
	if touched != nil {
		touched[accessor.GetUID()] = struct{}{}
	}
	if e.Type == watch.Deleted {
		l.config.Sink.Delete(e.Object)
	} else {
		l.config.Sink.Put(e.Object)
	}
}

type page struct {
	items    []runtime.Object
	rv, next string
}

func (l *Loop) page(ctx context.Context, next string) (page, error) {
	// resourceVersion is left empty: a consistent read, whatever server answers.
	list, err := l.config.Source.List(ctx, metav1.ListOptions{Limit: l.config.PageSize, Continue: next})
	if err != nil {
		return page{}, err
	}
	accessor, err := meta.ListAccessor(list)
	if err != nil {
		return page{}, err
	}
	p := page{rv: accessor.GetResourceVersion(), next: accessor.GetContinue()}
	p.items = make([]runtime.Object, 0, meta.LenList(list))
	err = meta.EachListItem(list, func(o runtime.Object) error { p.items = append(p.items, o); return nil })
	return p, err
}

// readPages hands on the first page and those after it, the next one being fetched
// while one is told.
func (l *Loop) readPages(ctx context.Context, p page, pages chan<- page) error {
	for {
		select {
		case pages <- p:
		case <-ctx.Done():
			return ctx.Err()
		}
		if p.next == "" {
			return nil
		}
		var err error
		if p, err = l.page(ctx, p.next); err != nil {
			return err
		}
	}
}

// readEvents watches from rv on, again and again, until the API server can no longer
// tell what came after what it told last: errGone.
func (l *Loop) readEvents(ctx context.Context, rv string, events chan<- watch.Event) error {
	var retry backoff
	for {
		began := time.Now()
		newer, err := l.watchOnce(ctx, rv, events)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if newer != rv {
			rv = newer
			retry.reset()
		}
		switch {
		case err == nil && time.Since(began) > time.Second:
			continue // ended by its own time limit
		case isGone(err):
			return errGone
		case err != nil:
			l.broken("watch", err)
		}
		if !retry.wait(ctx) {
			return ctx.Err()
		}
	}
}

// watchOnce is one watch. It returns the newest resourceVersion it told.
func (l *Loop) watchOnce(ctx context.Context, rv string, events chan<- watch.Event) (string, error) {
	seconds := int64(300 + rand.IntN(300)) // spread, so that watches do not all end together
	w, err := l.config.Source.Watch(ctx, metav1.ListOptions{
		ResourceVersion: rv, AllowWatchBookmarks: true, TimeoutSeconds: &seconds,
	})
	if err != nil {
		return rv, err
	}
	defer w.Stop()
	l.inTouch()
	for {
		select {
		case <-ctx.Done():
			return rv, ctx.Err()
		case e, open := <-w.ResultChan():
			if !open {
				return rv, nil
			}
			if e.Type == watch.Error {
				return rv, apierrors.FromObject(e.Object)
			}
			select {
			case events <- e:
			case <-ctx.Done():
				return rv, ctx.Err()
			}
			if accessor, err := meta.Accessor(e.Object); err == nil {
				rv = accessor.GetResourceVersion()
			}
		}
	}
}

// isGone: the history after our resourceVersion is lost, or our resourceVersion is
// ahead of the server. A list will tell which.
func isGone(err error) bool {
	if err == nil {
		return false
	}
	if apierrors.HasStatusCause(err, metav1.CauseTypeResourceVersionTooLarge) {
		return true
	}
	return apierrors.IsResourceExpired(err) || apierrors.IsGone(err) || apierrors.IsInvalid(err) || apierrors.IsBadRequest(err)
}

func spread(d time.Duration) time.Duration {
	return d + time.Duration(rand.Int64N(int64(d)/10+1))
}

func remedy(err error, name string) string {
	switch {
	case apierrors.IsForbidden(err):
		return "grant this service account the verbs list and watch on " + name + " (ClusterRole mintmark-server)"
	case apierrors.IsUnauthorized(err):
		return "the API server does not accept this server's token: check the service account or the kubeconfig"
	case apierrors.IsNotFound(err):
		return "install the custom resource definitions of Mintmark"
	default:
		return "check that the API server can be reached; trying again"
	}
}

// backoff between failures, doubling from 50 ms to 3 s, with jitter.
type backoff struct{ delay time.Duration }

func (b *backoff) reset() { b.delay = 0 }

// wait is false when the context ended first.
func (b *backoff) wait(ctx context.Context) bool {
	b.delay = min(max(2*b.delay, 50*time.Millisecond), 3*time.Second)
	t := time.NewTimer(b.delay/2 + rand.N(b.delay))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
