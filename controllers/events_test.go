package controllers

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

func testRecorder(t *testing.T, create func(context.Context, client.WithWatch, client.Object, ...client.CreateOption) error) (*recorder, client.Client) {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	c := fake.NewClientBuilder().WithScheme(scheme).WithInterceptorFuncs(interceptor.Funcs{Create: create}).Build()
	var tick atomic.Int64
	return &recorder{
		client: c, scheme: scheme, instance: "test", queue: make(chan *eventsv1.Event, 4),
		now: func() time.Time { return time.Unix(1_800_000_000, tick.Add(1)) },
	}, c
}

func aToken(name string) *v1alpha1.ServiceToken {
	return &v1alpha1.ServiceToken{ObjectMeta: metav1.ObjectMeta{Namespace: "payments", Name: name, UID: "u-1", ResourceVersion: "7"}}
}

func TestEveryEventIsWrittenThoughTheQueueIsShort(t *testing.T) {
	r, c := testRecorder(t, nil)
	ctx, stop := context.WithCancel(t.Context())
	for i := range 50 { // more than fit, with nobody taking them out yet
		r.Eventf(aToken(fmt.Sprintf("ci-%d", i%3)), nil, corev1.EventTypeNormal, v1alpha1.ReasonRotated, "Reconcile", "from version %d", i)
	}
	stop()
	if err := r.Start(ctx); err != nil {
		t.Fatal(err)
	}
	var list eventsv1.EventList
	if err := c.List(t.Context(), &list, client.InNamespace("payments")); err != nil {
		t.Fatal(err)
	}
	if len(list.Items) != 50 {
		t.Fatalf("%d events were written, want 50", len(list.Items))
	}
	e := list.Items[0]
	if e.Regarding.Kind != "ServiceToken" || e.Regarding.UID != "u-1" || e.ReportingController != reportingController || e.Reason != v1alpha1.ReasonRotated ||
		e.Action != "Reconcile" || e.Type != corev1.EventTypeNormal || e.EventTime.IsZero() {
		t.Errorf("an event is %+v", e)
	}
}

func TestAnEventThatCannotBeWrittenIsTriedAgainAndThenLost(t *testing.T) {
	var attempts atomic.Int64
	r, _ := testRecorder(t, func(context.Context, client.WithWatch, client.Object, ...client.CreateOption) error {
		attempts.Add(1)
		return errors.New("etcd is away")
	})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- r.Start(ctx) }()
	r.Eventf(aToken("ci"), nil, corev1.EventTypeNormal, v1alpha1.ReasonRotated, "Reconcile", "x")
	for deadline := time.Now().Add(20 * time.Second); attempts.Load() < eventTries; {
		if time.Now().After(deadline) {
			t.Fatalf("%d attempts", attempts.Load())
		}
		time.Sleep(10 * time.Millisecond)
	}
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if n := attempts.Load(); n != eventTries {
		t.Errorf("%d attempts, want %d", n, eventTries)
	}
}

func TestAnEventAboutAClusterScopedObjectIsInTheDefaultNamespace(t *testing.T) {
	r, c := testRecorder(t, nil)
	r.queue = nil // written at once
	r.Eventf(&v1alpha1.Revocation{ObjectMeta: metav1.ObjectMeta{Name: "leak", UID: "u-2"}}, nil, corev1.EventTypeWarning, "NothingSelected", "Settle", "x")
	var list eventsv1.EventList
	if err := c.List(t.Context(), &list, client.InNamespace(metav1.NamespaceDefault)); err != nil || len(list.Items) != 1 {
		t.Errorf("%d events, %v", len(list.Items), err)
	}
}
