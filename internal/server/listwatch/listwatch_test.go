package listwatch_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/mintmark-dev/mintmark/internal/server/listwatch"
)

// apiServer is an API server with one resource, in memory.
type apiServer struct {
	mu      sync.Mutex
	rv      int
	objects map[string]*metav1.PartialObjectMetadata
	history []watch.Event
	oldest  int // resourceVersion before which the history is lost
	watches map[*watch.FakeWatcher]struct{}
	lists   int

	listErr, watchErr error
	// streams: it knows streaming lists. breakAfter is after how many objects one breaks
	// off, while it is positive, and with what; streamed counts those that were begun.
	streams    bool
	breakAfter int
	breakWith  error
	stalls     bool // it does not break off, but says no more
	streamed   int
	// onPage is called before a page after the first is given.
	onPage func()
}

func newAPIServer() *apiServer {
	return &apiServer{rv: 100, objects: map[string]*metav1.PartialObjectMetadata{}, watches: map[*watch.FakeWatcher]struct{}{}}
}

func (a *apiServer) put(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.rv++
	kind := watch.Modified
	if a.objects[name] == nil {
		kind = watch.Added
	}
	a.objects[name] = a.object(name)
	a.event(kind, a.objects[name])
}

func (a *apiServer) object(name string) *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name), ResourceVersion: strconv.Itoa(a.rv)}}
}

func (a *apiServer) remove(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.rv++
	delete(a.objects, name)
	a.event(watch.Deleted, a.object(name))
}

func (a *apiServer) event(kind watch.EventType, o runtime.Object) {
	e := watch.Event{Type: kind, Object: o}
	a.history = append(a.history, e)
	for w := range a.watches {
		if !w.IsStopped() {
			w.Action(e.Type, e.Object)
		}
	}
}

// cut ends every watch. With lost, what happened until now cannot be watched any more.
func (a *apiServer) cut(lost bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if lost {
		a.oldest = a.rv
	}
	for w := range a.watches {
		w.Stop()
	}
	clear(a.watches)
}

func (a *apiServer) list(_ context.Context, o metav1.ListOptions) (runtime.Object, error) {
	if o.Continue != "" && a.onPage != nil {
		a.onPage()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.listErr != nil {
		return nil, a.listErr
	}
	rv, after, first := strconv.Itoa(a.rv), "", true
	if o.Continue != "" {
		first = false
		if _, err := fmt.Sscanf(o.Continue, "%s %s", &rv, &after); err != nil {
			return nil, err
		}
	}
	if first {
		a.lists++
	}
	list := &metav1.PartialObjectMetadataList{ListMeta: metav1.ListMeta{ResourceVersion: rv}}
	for _, name := range slices.Sorted(maps.Keys(a.objects)) {
		if name <= after {
			continue
		}
		if int64(len(list.Items)) == o.Limit {
			list.Continue = rv + " " + after
			break
		}
		list.Items = append(list.Items, *a.objects[name])
		after = name
	}
	return list, nil
}

func (a *apiServer) watch(_ context.Context, o metav1.ListOptions) (watch.Interface, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.watchErr != nil {
		return nil, a.watchErr
	}
	if o.SendInitialEvents != nil && *o.SendInitialEvents {
		return a.stream(o)
	}
	from, err := strconv.Atoi(o.ResourceVersion)
	if err != nil {
		return nil, err
	}
	if from < a.oldest {
		return nil, apierrors.NewResourceExpired("too old resource version")
	}
	if from > a.rv {
		return nil, &apierrors.StatusError{ErrStatus: metav1.Status{Reason: metav1.StatusReasonTimeout, Details: &metav1.StatusDetails{
			Causes: []metav1.StatusCause{{Type: metav1.CauseTypeResourceVersionTooLarge}}}}}
	}
	w := watch.NewFakeWithChanSize(1000, false)
	for _, e := range a.history {
		if rv, _ := strconv.Atoi(e.Object.(*metav1.PartialObjectMetadata).ResourceVersion); rv > from {
			w.Action(e.Type, e.Object)
		}
	}
	a.watches[w] = struct{}{}
	return w, nil
}

// stream is a streaming list.
func (a *apiServer) stream(o metav1.ListOptions) (watch.Interface, error) {
	if !a.streams {
		return nil, apierrors.NewInvalid(schema.GroupKind{Kind: "ListOptions"}, "", field.ErrorList{field.Forbidden(field.NewPath("sendInitialEvents"), "the feature is off")})
	}
	if o.ResourceVersion != "" || o.ResourceVersionMatch != metav1.ResourceVersionMatchNotOlderThan || !o.AllowWatchBookmarks {
		return nil, errors.New("not a consistent streaming list")
	}
	a.streamed++
	w := watch.NewFakeWithChanSize(1000, false)
	for i, name := range slices.Sorted(maps.Keys(a.objects)) {
		if a.breakAfter > 0 && i == a.breakAfter {
			a.breakAfter = 0
			if a.stalls {
				return w, nil
			}
			if a.breakWith != nil {
				status := a.breakWith.(apierrors.APIStatus).Status()
				w.Error(&status)
			} else {
				w.Stop()
			}
			return w, nil
		}
		w.Add(a.objects[name])
	}
	bookmark := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{ResourceVersion: strconv.Itoa(a.rv)}}
	w.Action(watch.Bookmark, bookmark.DeepCopy())
	bookmark.Annotations = map[string]string{metav1.InitialEventsAnnotationKey: "true"}
	w.Action(watch.Bookmark, bookmark)
	a.watches[w] = struct{}{}
	return w, nil
}

// An API server that knows nothing of streaming lists and opens a watch all the same
// must not keep a server from starting for as long as that watch lasts.
func TestAStreamingListThatSaysNoMoreIsGivenUp(t *testing.T) {
	a := newAPIServer()
	a.streams, a.stalls, a.breakAfter = true, true, 3
	for i := range 7 {
		a.put(fmt.Sprint("object-", i))
	}
	follow(t, a, nil, func(loop *listwatch.Loop, m *mirror, _ <-chan error) {
		time.Sleep(15 * time.Second)
		synctest.Wait()
		select {
		case <-loop.Synced():
		default:
			t.Fatal("not synced")
		}
		same(t, a, m)
		a.put("object-7")
		synctest.Wait()
		same(t, a, m)
	})
}

// mirror is a Sink that keeps what it is told.
type mirror struct {
	mu      sync.Mutex
	objects map[string]string // resourceVersion by name
	listed  map[string]bool
	told    []string
}

func (m *mirror) BeginList() { m.listed = map[string]bool{} }

func (m *mirror) EndList() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name := range m.objects {
		if !m.listed[name] {
			delete(m.objects, name)
		}
	}
	m.listed = nil
}

func (m *mirror) Put(o runtime.Object) {
	m.mu.Lock()
	defer m.mu.Unlock()
	object := o.(*metav1.PartialObjectMetadata)
	if m.listed != nil {
		m.listed[object.Name] = true
	}
	m.objects[object.Name] = object.ResourceVersion
	m.told = append(m.told, object.Name)
}

func (m *mirror) Delete(o runtime.Object) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, o.(*metav1.PartialObjectMetadata).Name)
}

func (m *mirror) holds() map[string]string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.objects)
}

func (a *apiServer) holds() map[string]string {
	a.mu.Lock()
	defer a.mu.Unlock()
	held := map[string]string{}
	for name, o := range a.objects {
		held[name] = o.ResourceVersion
	}
	return held
}

// follow runs a loop over the API server in simulated time, while the test does.
func follow(t *testing.T, a *apiServer, change func(*listwatch.Config), test func(*listwatch.Loop, *mirror, <-chan error)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m := &mirror{objects: map[string]string{}}
		c := listwatch.Config{Name: "things", Source: listwatch.Source{List: a.list, Watch: a.watch}, Sink: m, PageSize: 2}
		if change != nil {
			change(&c)
		}
		loop := listwatch.New(c)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- loop.Run(ctx) }()
		synctest.Wait()
		test(loop, m, ended)
		cancel()
		synctest.Wait()
	})
}

// settle lets enough time pass for every retry.
func settle() {
	time.Sleep(10 * time.Second)
	synctest.Wait()
}

func same(t *testing.T, a *apiServer, m *mirror) {
	t.Helper()
	if diff := cmp.Diff(a.holds(), m.holds()); diff != "" {
		t.Errorf("what was told differs from what there is (-want +got):\n%s", diff)
	}
}

func TestEverythingListedAndWatchedIsTold(t *testing.T) {
	a := newAPIServer()
	for i := range 7 {
		a.put(fmt.Sprint("object-", i))
	}
	follow(t, a, nil, func(loop *listwatch.Loop, m *mirror, _ <-chan error) {
		same(t, a, m)
		select {
		case <-loop.Synced():
		default:
			t.Error("not synced")
		}
		a.put("object-7")
		a.put("object-1")
		a.remove("object-2")
		synctest.Wait()
		same(t, a, m)
	})
}

func TestAStreamingListTellsEverythingAndThenWhatChanges(t *testing.T) {
	for name, with := range map[string]struct {
		after int
		err   error
	}{
		"at once":                     {},
		"after it ended half-way":     {after: 3},
		"after it failed half-way":    {3, apierrors.NewInternalError(errors.New("etcd is slow"))},
		"after it was too far behind": {3, apierrors.NewResourceExpired("too old")},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPIServer()
			a.streams, a.breakAfter, a.breakWith = true, with.after, with.err
			for i := range 7 {
				a.put(fmt.Sprint("object-", i))
			}
			follow(t, a, nil, func(loop *listwatch.Loop, m *mirror, _ <-chan error) {
				if with.after > 0 {
					select {
					case <-loop.Synced():
						t.Error("synced half-way")
					default:
					}
					a.remove("object-0") // and was told
					settle()
				}
				same(t, a, m)
				select {
				case <-loop.Synced():
				default:
					t.Error("not synced")
				}
				a.put("object-7")
				a.put("object-1")
				a.remove("object-2")
				synctest.Wait()
				same(t, a, m)
				if (a.lists != 0) != (with.after > 0) {
					t.Errorf("%d lists in pages as well", a.lists)
				}
				pages := a.lists
				// What happens during a later list is told at once, which pages allow.
				begun := a.streamed
				loop.Relist()
				a.cut(true)
				settle()
				a.put("object-8")
				synctest.Wait()
				same(t, a, m)
				if a.lists == pages || a.streamed != begun {
					t.Errorf("listed again: %d times in pages, %d times streaming", a.lists, a.streamed-begun)
				}
			})
		})
	}
}

func TestAChangeDuringALongListIsToldAtOnceAndNotUndoneByIt(t *testing.T) {
	a := newAPIServer()
	for i := range 6 {
		a.put(fmt.Sprint("object-", i))
	}
	synctest.Test(t, func(t *testing.T) {
		reached, proceed := make(chan struct{}), make(chan struct{})
		a.onPage = sync.OnceFunc(func() { close(reached); <-proceed })
		m := &mirror{objects: map[string]string{}}
		loop := listwatch.New(listwatch.Config{Name: "things", Source: listwatch.Source{List: a.list, Watch: a.watch}, Sink: m, PageSize: 2})
		ctx, cancel := context.WithCancel(t.Context())
		go func() { _ = loop.Run(ctx) }()
		<-reached
		a.put("object-5") // not listed yet
		a.remove("object-4")
		a.put("new")
		synctest.Wait()
		if m.holds()["object-5"] != a.holds()["object-5"] || m.holds()["new"] == "" {
			t.Error("a change during the list waits for its end")
		}
		close(proceed)
		synctest.Wait()
		same(t, a, m)
		if n := len(m.told); n != 6 {
			t.Errorf("told %d objects (%v), want 6: four listed, two watched", n, m.told)
		}
		cancel()
		synctest.Wait()
	})
}

func TestNothingIsMissedWhen(t *testing.T) {
	for name, fault := range map[string]func(*apiServer){
		"watches end":                         func(a *apiServer) { a.cut(false) },
		"the history is lost (410)":           func(a *apiServer) { a.cut(true) },
		"the history is lost again and again": func(a *apiServer) { a.cut(true); a.put("more"); a.cut(true) },
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPIServer()
			a.put("kept")
			a.put("removed")
			follow(t, a, nil, func(_ *listwatch.Loop, m *mirror, _ <-chan error) {
				a.mu.Lock()
				a.watchErr = errors.New("out of order")
				a.mu.Unlock()
				a.cut(false)
				a.put("made meanwhile")
				a.put("kept")
				a.remove("removed")
				fault(a)
				a.mu.Lock()
				a.watchErr = nil
				a.mu.Unlock()
				settle()
				same(t, a, m)
			})
		})
	}
}

func TestAnUnreachableAPIServerShowsInHealth(t *testing.T) {
	a := newAPIServer()
	follow(t, a, nil, func(loop *listwatch.Loop, m *mirror, _ <-chan error) {
		if h := loop.Health(); h.Err != nil || !h.BrokenSince.IsZero() || h.Listed.IsZero() {
			t.Errorf("in touch, the health is %+v", h)
		}
		down := errors.New("connection refused")
		a.mu.Lock()
		a.listErr, a.watchErr = down, down
		a.mu.Unlock()
		broke := time.Now()
		a.cut(true)
		settle()
		h := loop.Health()
		if !errors.Is(h.Err, down) || h.BrokenSince.Before(broke) || h.BrokenSince.After(broke.Add(3*time.Second)) {
			t.Errorf("cut off at %s, the health is %+v", broke, h)
		}
		a.mu.Lock()
		a.listErr, a.watchErr = nil, nil
		a.mu.Unlock()
		a.put("new")
		settle()
		if h := loop.Health(); h.Err != nil || !h.BrokenSince.IsZero() {
			t.Errorf("in touch again, the health is %+v", h)
		}
		same(t, a, m)
	})
}

func TestEventsThatWereLostAreFoundByListingAgain(t *testing.T) {
	a := newAPIServer()
	a.put("removed")
	follow(t, a, func(c *listwatch.Config) { c.RelistEvery = time.Hour }, func(loop *listwatch.Loop, m *mirror, _ <-chan error) {
		lose := func(name string) {
			a.mu.Lock()
			clear(a.watches)
			a.mu.Unlock()
			a.put(name)
		}
		lose("lost")
		a.remove("removed")
		settle()
		if m.holds()["lost"] != "" {
			t.Fatal("the event was not lost")
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		same(t, a, m)
		lose("lost again")
		loop.Relist()
		synctest.Wait()
		same(t, a, m)
	})
}

func TestAskingForListsWhileOneIsUnderWayDoesNotKeepItFromEnding(t *testing.T) {
	a := newAPIServer()
	for i := range 40 {
		a.put(fmt.Sprintf("object-%02d", i))
	}
	var asking atomic.Pointer[listwatch.Loop]
	pages := 0
	a.onPage = func() {
		if loop := asking.Load(); loop != nil && pages < 100 {
			pages++
			loop.Relist()
		}
	}
	follow(t, a, nil, func(loop *listwatch.Loop, m *mirror, _ <-chan error) {
		asking.Store(loop)
		loop.Relist()
		settle()
		same(t, a, m)
		// 20 pages a list, 19 of which ask again: once for each list that is told whole.
		if pages < 100 || a.lists > 8 {
			t.Errorf("asked %d times, listed %d times", pages, a.lists)
		}
	})
}

func TestARestoredClusterEndsTheLoop(t *testing.T) {
	for name, streams := range map[string]bool{"listed in pages": false, "listed as a stream": true} {
		t.Run(name, func(t *testing.T) { testRestored(t, streams) })
	}
}

func testRestored(t *testing.T, streams bool) {
	a := newAPIServer()
	a.streams = streams
	a.put("one")
	follow(t, a, nil, func(_ *listwatch.Loop, _ *mirror, ended <-chan error) {
		a.mu.Lock()
		a.rv, a.history = 50, nil
		a.mu.Unlock()
		a.cut(false)
		settle()
		select {
		case err := <-ended:
			if !errors.Is(err, listwatch.ErrRestored) {
				t.Errorf("the loop ended with %v", err)
			}
		default:
			t.Error("the loop goes on")
		}
	})
}

func TestRunEndsWithItsContext(t *testing.T) {
	a := newAPIServer()
	synctest.Test(t, func(t *testing.T) {
		loop := listwatch.New(listwatch.Config{Name: "things", Source: listwatch.Source{List: a.list, Watch: a.watch}, Sink: &mirror{objects: map[string]string{}}})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- loop.Run(ctx) }()
		synctest.Wait()
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("it ended with %v", err)
		}
	})
}
