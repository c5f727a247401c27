// Package listwatch follows one resource of the API server without keeping it:
// what it lists and watches goes to a [Sink], object by object, and is forgotten.
//
// A Loop that knows nothing yet begins with a streaming list: a watch that first tells
// everything there is, consistently, one object at a time, and then what changes. Where
// the API server refuses that or breaks it off, and for every later list, it lists
// consistently in pages
// and watches from the list's resourceVersion on. That watch starts with the first page
// and is read while the rest of the list is still coming, so that a change made during a
// long relist is told within milliseconds; a streaming list would tell it last. What the
// watch has told about an object is never overwritten by the older list.
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

	// These belong to Run's goroutine: the newest resourceVersion seen, and whether the
	// API server refuses streaming lists.
	lastRV string
	paged  bool

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
	f := &following{events: make(chan watch.Event, 64), watchErr: make(chan error, 1)}
	if l.lastRV == "" && !l.paged {
		w, err := l.stream(ctx)
		switch {
		case err == nil:
			rv, err := l.tellInitial(ctx, w)
			if err != nil {
				w.Stop()
				return err
			}
			l.streamed(rv, began)
			workers.Go(func() { f.watchErr <- l.readEvents(ctx, w, rv, f.events) })
			return l.follow(ctx, f, began)
		case !refusesStreams(err):
			return err
		}
		l.paged = true
	}
	first, err := l.page(ctx, "")
	if err != nil {
		return err
	}
	if err := l.advance(first.rv); err != nil {
		return err
	}
	l.inTouch()
	l.config.Sink.BeginList()
	f.pages, f.pageErr, f.touched = make(chan page), make(chan error, 1), map[types.UID]struct{}{}
	workers.Go(func() { f.pageErr <- l.readPages(ctx, first, f.pages) })
	workers.Go(func() { f.watchErr <- l.readEvents(ctx, nil, first.rv, f.events) })
	return l.follow(ctx, f, began)
}

// advance notes the resourceVersion of a consistent list, which cannot fall.
func (l *Loop) advance(rv string) error {
	if l.lastRV != "" {
		order, err := resourceversion.CompareResourceVersion(rv, l.lastRV)
		if err != nil {
			return fmt.Errorf("comparing resourceVersion %q with %q: %w", rv, l.lastRV, err)
		}
		if order < 0 {
			return ErrRestored
		}
	}
	l.lastRV = rv
	return nil
}

// following is the list and the watch of a session, under way.
type following struct {
	events   chan watch.Event
	watchErr chan error
	// Nil where the list is through.
	pages   chan page
	pageErr chan error
	// touched by the watch, while the list is not through.
	touched map[types.UID]struct{}
}

// follow tells what pages and events bring, until something ends the session.
func (l *Loop) follow(ctx context.Context, f *following, began time.Time) error {
	var timer <-chan time.Time
	if l.config.RelistEvery > 0 {
		timer = time.After(spread(l.config.RelistEvery))
	}
	var asked <-chan struct{} // heeded once the list is through: one that never ends is none
	if f.pages == nil {
		asked = l.relist
	}
	for {
		select {
		case e := <-f.events:
			l.tell(e, f.touched)
		case p := <-f.pages:
			l.tellPage(p, f.touched, f.events)
		case err := <-f.pageErr:
			if err != nil {
				return err
			}
			f.pageErr, f.touched, asked = nil, nil, l.relist
			l.config.Sink.EndList()
			l.toldWhole(began)
		case err := <-f.watchErr:
			// What was read before the end counts.
			for len(f.events) > 0 {
				l.tell(<-f.events, f.touched)
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

// stream opens a watch that begins with everything there is (KEP-3157). Without a
// resourceVersion that is as consistent as a list is.
func (l *Loop) stream(ctx context.Context) (watch.Interface, error) {
	initial := true
	return l.config.Source.Watch(ctx, metav1.ListOptions{
		SendInitialEvents: &initial, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan, AllowWatchBookmarks: true,
		TimeoutSeconds: watchTimeout(),
	})
}

// refusesStreams tells whether the API server knows no streaming lists, or has them
// switched off.
func refusesStreams(err error) bool {
	return apierrors.IsInvalid(err) || apierrors.IsBadRequest(err) || apierrors.IsMethodNotSupported(err) || apierrors.IsNotAcceptable(err)
}

// streamIdle is how long a streaming list may say nothing. The API server takes up to
// three seconds before it begins; one that goes on saying nothing has opened an ordinary
// watch, which would end in minutes.
const streamIdle = 10 * time.Second

// tellInitial tells what a streaming list begins with, up to the bookmark that ends it,
// whose resourceVersion it gives. Changes may be among it; each object's are in order.
func (l *Loop) tellInitial(ctx context.Context, w watch.Interface) (rv string, err error) {
	l.inTouch()
	l.config.Sink.BeginList()
	idle := time.NewTimer(streamIdle)
	defer idle.Stop()
	for ; ; idle.Reset(streamIdle) {
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-idle.C:
			l.paged = true
			return "", fmt.Errorf("the streaming list has said nothing for %s: listing in pages from now on", streamIdle)
		case e, open := <-w.ResultChan():
			switch {
			case !open:
				return "", errors.New("the streaming list ended before it was through")
			case e.Type == watch.Error:
				if err := apierrors.FromObject(e.Object); !isGone(err) {
					return "", err
				}
				return "", errGone
			case e.Type != watch.Bookmark:
				l.tell(e, nil)
				continue
			}
			accessor, err := meta.Accessor(e.Object)
			if err != nil {
				return "", err
			}
			if accessor.GetAnnotations()[metav1.InitialEventsAnnotationKey] == "true" {
				return accessor.GetResourceVersion(), nil
			}
		}
	}
}

// streamed notes that a streaming list is through.
func (l *Loop) streamed(rv string, began time.Time) {
	l.lastRV = rv
	l.config.Sink.EndList()
	l.toldWhole(began)
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
// tell what came after what it told last: errGone. It begins with a watch that is open
// already, if there is one.
func (l *Loop) readEvents(ctx context.Context, w watch.Interface, rv string, events chan<- watch.Event) error {
	var retry backoff
	broken := false // the API server may be another one since
	for {
		began := time.Now()
		var newer string
		err := l.notAhead(ctx, rv, broken)
		if newer = rv; err == nil {
			newer, err = l.watchOnce(ctx, w, rv, events)
		}
		broken = err != nil || time.Since(began) < shortestWatch
		w = nil
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
		case errors.Is(err, errGone), isGone(err):
			return errGone
		case err != nil:
			l.broken("watch", err)
		}
		if !retry.wait(ctx) {
			return ctx.Err()
		}
	}
}

// notAhead is nil unless the API server has not come as far as rv, after a watch broke off: it
// takes a watch from a resourceVersion of the future and says nothing until it gets there, and
// a cluster that was restored from a backup would not be noticed before the next list. Then
// its error is errGone, for a list to tell.
func (l *Loop) notAhead(ctx context.Context, rv string, broken bool) error {
	if !broken {
		return nil
	}
	list, err := l.config.Source.List(ctx, metav1.ListOptions{Limit: 1})
	if err != nil {
		return err
	}
	accessor, err := meta.ListAccessor(list)
	if err != nil {
		return err
	}
	if order, err := resourceversion.CompareResourceVersion(accessor.GetResourceVersion(), rv); err == nil && order < 0 {
		return errGone
	}
	return nil
}

// shortestWatch is how long a watch lasts at least that nothing breaks off.
const shortestWatch = 300 * time.Second

// watchTimeout is spread, so that watches do not all end together.
func watchTimeout() *int64 {
	seconds := int64(shortestWatch/time.Second) + int64(rand.IntN(300))
	return &seconds
}

// watchOnce is one watch: the one that is open, or another. It returns the newest
// resourceVersion it told.
func (l *Loop) watchOnce(ctx context.Context, w watch.Interface, rv string, events chan<- watch.Event) (string, error) {
	if w == nil {
		var err error
		w, err = l.config.Source.Watch(ctx, metav1.ListOptions{ResourceVersion: rv, AllowWatchBookmarks: true, TimeoutSeconds: watchTimeout()})
		if err != nil {
			return rv, err
		}
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
