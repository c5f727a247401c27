package controllers

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
)

func TestTheHeartbeatMovesItsLease(t *testing.T) {
	i := newInstallation(t)
	h := NewHeartbeat(HeartbeatConfig{Client: i.client, Namespace: i.namespace, Identity: "controller-0", Now: func() time.Time { return i.clock }})
	lease := new(coordinationv1.Lease)
	for range 3 {
		i.clock = i.clock.Add(heartbeatEvery)
		i.must(h.beat(t.Context()))
		i.must(i.client.Get(t.Context(), client.ObjectKey{Namespace: i.namespace, Name: HeartbeatLease}, lease))
		if !lease.Spec.RenewTime.Time.Equal(i.clock) || ptr.Deref(lease.Spec.HolderIdentity, "") != "controller-0" {
			t.Errorf("Lease renewed at %v by %v, want %v by controller-0", lease.Spec.RenewTime, lease.Spec.HolderIdentity, i.clock)
		}
	}
	// What others keep on the Lease is theirs, and no conflict stops a heart.
	lease.Labels = map[string]string{"team": "platform"}
	i.must(i.client.Update(t.Context(), lease))
	other := NewHeartbeat(HeartbeatConfig{Client: i.client, Namespace: i.namespace, Identity: "controller-1"})
	i.must(other.beat(t.Context()))
	i.must(i.client.Get(t.Context(), client.ObjectKeyFromObject(lease), lease))
	if lease.Labels["team"] != "platform" || ptr.Deref(lease.Spec.HolderIdentity, "") != "controller-1" {
		t.Errorf("Lease %v held by %v: want the label kept and controller-1", lease.Labels, lease.Spec.HolderIdentity)
	}
	if !h.NeedLeaderElection() {
		t.Error("a process that does not lead has a heartbeat")
	}
}

func TestTheHeartbeatGoesOnAfterFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var beats []time.Duration
		hang, broken := 2, 4
		c := interceptor.NewClient(fake.NewClientBuilder().Build(), interceptor.Funcs{
			Patch: func(ctx context.Context, _ client.WithWatch, _ client.Object, _ client.Patch, _ ...client.PatchOption) error {
				beats = append(beats, time.Since(began))
				switch len(beats) {
				case hang:
					<-ctx.Done()
					return ctx.Err()
				case broken:
					return errors.New("the API server is down")
				}
				return nil
			},
		})
		ctx, cancel := context.WithTimeout(t.Context(), 9*time.Second)
		defer cancel()
		if err := NewHeartbeat(HeartbeatConfig{Client: c, Namespace: "ns"}).Start(ctx); err != nil {
			t.Errorf("it ended with %v, want nothing: a beat that fails is no reason to stop", err)
		}
		for n, want := range []time.Duration{0, 2 * time.Second, 4 * time.Second, 6 * time.Second, 8 * time.Second} {
			if n >= len(beats) || beats[n] != want {
				t.Fatalf("beats at %v, want one every %v", beats, heartbeatEvery)
			}
		}
		if elapsed := time.Since(began); elapsed != 9*time.Second {
			t.Errorf("it ended after %v, want with its context", elapsed)
		}
	})
}

func TestServerClock(t *testing.T) {
	server := time.Date(2026, time.March, 1, 12, 0, 0, 0, time.UTC)
	for name, test := range map[string]struct {
		sent, received time.Duration // of this process's clock, against the server's Date
		header         string        // instead of the server's Date
		want           time.Duration
		unknown        bool
	}{
		"the same second":                     {sent: 100 * time.Millisecond, received: 200 * time.Millisecond},
		"a second is as exact as Date is":     {sent: 900 * time.Millisecond, received: time.Second},
		"ahead by five minutes":               {sent: 5*time.Minute + time.Second, received: 5*time.Minute + 2*time.Second, want: 5 * time.Minute},
		"behind by a day":                     {sent: -24*time.Hour - time.Second, received: -24 * time.Hour, want: -24 * time.Hour},
		"a slow answer is no wrong clock":     {sent: -time.Minute, received: 10 * time.Millisecond},
		"a pause after it is no wrong clock":  {sent: 0, received: 10 * time.Minute},
		"no Date, as behind some proxies":     {header: "-", unknown: true},
		"a Date that is none":                 {header: "yesterday", unknown: true},
		"a clock that jumped during the call": {sent: 0, received: -time.Hour, want: -time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			now := server.Add(test.sent)
			clock := NewServerClock(func() time.Time { return now })
			if _, known := clock.Skew(); known {
				t.Error("knows a skew before it compared anything")
			}
			transport := clock.Wrap(roundTripperFunc(func(*http.Request) (*http.Response, error) {
				now = server.Add(test.received)
				header := http.Header{"Date": {server.Format(http.TimeFormat)}}
				if test.header != "" {
					header = http.Header{"Date": {test.header}}
				}
				return &http.Response{Header: header}, nil
			}))
			if _, err := transport.RoundTrip(nil); err != nil {
				t.Fatal(err)
			}
			skew, known := clock.Skew()
			if known == test.unknown || skew != test.want {
				t.Errorf("skew %v, known %v; want %v, %v", skew, known, test.want, !test.unknown)
			}
			now = now.Add(skewFreshness + time.Second)
			if _, known := clock.Skew(); known {
				t.Error("still vouches for a comparison of long ago")
			}
		})
	}
}

// Of several API servers one is wrong: what is told does not change with whoever
// has answered last.
func TestServerClockKeepsToTheWorstOfLate(t *testing.T) {
	begin := time.Date(2026, time.March, 1, 12, 0, 0, 0, time.UTC)
	now := begin
	clock := NewServerClock(func() time.Time { return now })
	answer := func(skew time.Duration) {
		clock.compare(now, now, now.Add(-skew).Format(http.TimeFormat))
	}
	for _, step := range []struct {
		after, skew, want time.Duration
	}{
		{0, 0, 0},
		{time.Second, time.Minute, time.Minute - time.Second}, // a second is as exact as Date is
		{2 * time.Second, 0, time.Minute - time.Second},
		{29 * time.Second, 0, time.Minute - time.Second},
		{40 * time.Second, 0, 0},
		{41 * time.Second, -time.Hour, -time.Hour},
		{72 * time.Second, 0, 0},
	} {
		now = begin.Add(step.after)
		answer(step.skew)
		if got, known := clock.Skew(); !known || got != step.want {
			t.Errorf("after %s: skew %s (%t), want %s", step.after, got, known, step.want)
		}
	}
}

func TestServerClockPassesErrorsOn(t *testing.T) {
	clock := NewServerClock(nil)
	down := errors.New("down")
	transport := clock.Wrap(roundTripperFunc(func(*http.Request) (*http.Response, error) { return nil, down }))
	if _, err := transport.RoundTrip(nil); !errors.Is(err, down) {
		t.Errorf("error %v, want the transport's", err)
	}
	if _, known := clock.Skew(); known {
		t.Error("knows a skew from no answer")
	}
}
