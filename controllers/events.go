package controllers

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/reference"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

// reportingController is who events are from.
const reportingController = "mintmark-controller"

const (
	// eventWorkers write events, and eventQueue of them wait. When that is full, whoever
	// has another to report writes it, and is slowed down by that.
	eventWorkers = 2
	eventQueue   = 256
	eventTries   = 3
	eventTimeout = 5 * time.Second
	eventPause   = time.Second
)

// recorder reports events, in bounded memory. That of client-go keeps each for minutes,
// to count those that are alike, which ours never are, and starts two goroutines for each:
// ten thousand rotations would hold a hundred megabytes. It is a manager.Runnable, and
// implements what is used of events.EventRecorder.
type recorder struct {
	client   client.Client
	scheme   *runtime.Scheme
	instance string
	now      func() time.Time
	queue    chan *eventsv1.Event
}

// eventRecorder is what reports use of a recorder.
type eventRecorder interface {
	Eventf(regarding, related runtime.Object, eventtype, reason, action, note string, args ...any)
}

// newRecorder makes a recorder that the manager runs.
func newRecorder(mgr ctrl.Manager) (*recorder, error) {
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("naming who reports events: %w", err)
	}
	r := &recorder{
		client: mgr.GetClient(), scheme: mgr.GetScheme(), instance: reportingController + "-" + host, now: time.Now,
		queue: make(chan *eventsv1.Event, eventQueue),
	}
	return r, mgr.Add(r)
}

// Eventf reports what has happened to an object.
func (r *recorder) Eventf(regarding, related runtime.Object, eventtype, reason, action, note string, args ...any) {
	about, err := reference.GetReference(r.scheme, regarding)
	if err != nil {
		log.Log.WithName("events").Error(err, "An event about an object without a name", "reason", reason)
		return
	}
	var also *corev1.ObjectReference
	if related != nil {
		also, _ = reference.GetReference(r.scheme, related)
	}
	now, namespace := r.now(), about.Namespace
	if namespace == "" {
		namespace = metav1.NamespaceDefault // where events about cluster-scoped objects are
	}
	e := &eventsv1.Event{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%.200s.%x", about.Name, now.UnixNano()), Namespace: namespace},
		EventTime:  metav1.NewMicroTime(now), ReportingController: reportingController, ReportingInstance: cut(r.instance, 128),
		Action: action, Reason: reason, Regarding: *about, Related: also, Note: fmt.Sprintf(note, args...), Type: eventtype,
	}
	select {
	case r.queue <- e:
	default:
		r.write(context.Background(), e, 1)
	}
}

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (*recorder) NeedLeaderElection() bool { return false }

// Start writes until the context ends, and then what is left.
func (r *recorder) Start(ctx context.Context) error {
	var writing sync.WaitGroup
	for range eventWorkers {
		writing.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case e := <-r.queue:
					r.write(ctx, e, eventTries)
				}
			}
		})
	}
	writing.Wait()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), eventTimeout)
	defer cancel()
	for last.Err() == nil {
		select {
		case e := <-r.queue:
			r.write(last, e, 1)
		default:
			return nil
		}
	}
	return nil
}

// write makes an event. One that cannot be made is lost: events tell people what
// happened, and nothing goes by them.
func (r *recorder) write(ctx context.Context, e *eventsv1.Event, tries int) {
	for {
		attempt, cancel := context.WithTimeout(context.WithoutCancel(ctx), eventTimeout)
		err := r.client.Create(attempt, e)
		cancel()
		tries--
		switch {
		case err == nil, apierrors.IsAlreadyExists(err):
			return
		case apierrors.IsNotFound(err), apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
			return // its namespace is gone
		case tries == 0:
			log.Log.WithName("events").Info("An event was not written", "about", e.Regarding.Name, "reason", e.Reason, "error", err.Error())
			return
		}
		if !pause(ctx, eventPause) {
			return
		}
	}
}
