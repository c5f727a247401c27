package controllers

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

// HeartbeatLease is the Lease whose spec.renewTime the leader moves. Servers
// measure by it how far behind what they see is.
const HeartbeatLease = "mintmark-heartbeat"

// heartbeatEvery is how often, and how long one attempt may take.
const heartbeatEvery = 2 * time.Second

// HeartbeatConfig is what a Heartbeat needs.
type HeartbeatConfig struct {
	// Client writes the Lease. It does not read it.
	Client client.Client
	// Namespace of the installation.
	Namespace string
	// Identity of this process, as the Lease's holder.
	Identity string
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Heartbeat moves the heartbeat Lease for as long as this process leads. It is a
// manager.Runnable.
type Heartbeat struct {
	cfg HeartbeatConfig
}

// NewHeartbeat makes a Heartbeat; Start runs it.
func NewHeartbeat(cfg HeartbeatConfig) *Heartbeat {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Heartbeat{cfg: cfg}
}

// NeedLeaderElection implements manager.LeaderElectionRunnable: a heartbeat says
// that there is a leader.
func (*Heartbeat) NeedLeaderElection() bool { return true }

// Start beats until the context ends. A beat that fails is no reason to stop:
// the servers see its absence, and the next one makes up for it.
func (h *Heartbeat) Start(ctx context.Context) error {
	ticker := time.NewTicker(heartbeatEvery)
	defer ticker.Stop()
	logger := log.FromContext(ctx).WithName("heartbeat")
	failing := false
	for {
		err := h.beat(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			heartbeats.WithLabelValues("failed").Inc()
			if !failing {
				logger.Error(err, "The heartbeat stopped: servers will report what they know as old until it goes on")
			}
		default:
			heartbeats.WithLabelValues("renewed").Inc()
			if failing {
				logger.Info("The heartbeat goes on")
			}
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// beat writes without having read: a patch of one field conflicts with nobody.
func (h *Heartbeat) beat(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, heartbeatEvery)
	defer cancel()
	lease := &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Namespace: h.cfg.Namespace, Name: HeartbeatLease},
		Spec: coordinationv1.LeaseSpec{
			HolderIdentity:       ptr.To(h.cfg.Identity),
			LeaseDurationSeconds: ptr.To(int32(5 * heartbeatEvery / time.Second)),
			RenewTime:            ptr.To(metav1.NewMicroTime(h.cfg.Now())),
		},
	}
	patch, err := json.Marshal(map[string]any{"spec": lease.Spec})
	if err != nil {
		return fmt.Errorf("encoding the heartbeat: %w", err)
	}
	err = h.cfg.Client.Patch(ctx, lease.DeepCopy(), client.RawPatch(types.MergePatchType, patch))
	if apierrors.IsNotFound(err) {
		if err = h.cfg.Client.Create(ctx, lease); apierrors.IsAlreadyExists(err) {
			return nil // another leader's, this moment: as good as ours
		}
	}
	if err != nil {
		return fmt.Errorf("renewing Lease %s/%s: %w", h.cfg.Namespace, HeartbeatLease, err)
	}
	return nil
}

var heartbeats = prometheus.NewCounterVec(prometheus.CounterOpts{
	Name: "mintmark_heartbeats_total",
	Help: "Attempts of the leading controller to move the heartbeat Lease, by result (renewed, failed).",
}, []string{"result"})

// skewFreshness is how long a comparison of clocks counts. The heartbeat alone
// makes one every two seconds.
const skewFreshness = 30 * time.Second

// ServerClock compares this process's clock with the API server's, by the Date
// header (RFC 9110, section 6.6.1) of the responses that pass through Wrap. It
// is safe for concurrent use.
type ServerClock struct {
	now func() time.Time

	mu    sync.Mutex
	skew  time.Duration
	worst time.Time // when skew was found
	at    time.Time // of the latest comparison; zero: nothing compared yet
}

// NewServerClock compares against now; nil is time.Now.
func NewServerClock(now func() time.Time) *ServerClock {
	if now == nil {
		now = time.Now
	}
	return &ServerClock{now: now}
}

// Skew is by how much this process's clock is ahead of the API server's
// (negative: behind), and false where they have not been compared lately. It is
// the least skew that explains what was seen: a slow answer, or a pause of this
// process, does not look like a wrong clock. Of what was seen lately it is the
// worst: where one of several API servers is wrong, nobody is to be told the one
// thing and the other in turns.
func (c *ServerClock) Skew() (time.Duration, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.skew, !c.at.IsZero() && c.now().Sub(c.at).Abs() <= skewFreshness
}

// Wrap measures every response of a transport. It is for rest.Config.Wrap.
func (c *ServerClock) Wrap(next http.RoundTripper) http.RoundTripper {
	return roundTripperFunc(func(request *http.Request) (*http.Response, error) {
		sent := c.now()
		response, err := next.RoundTrip(request)
		if err == nil {
			c.compare(sent, c.now(), response.Header.Get("Date"))
		}
		return response, err
	})
}

// compare takes what one exchange proves. The header tells the second in which
// the response was begun, which is after the request was sent and before the
// response came in.
func (c *ServerClock) compare(sent, received time.Time, header string) {
	date, err := http.ParseTime(header)
	if err != nil {
		return // a proxy that strips or garbles it; Skew says that it does not know
	}
	var skew time.Duration
	if least := sent.Sub(date.Add(time.Second)); least > 0 {
		skew = least
	} else if most := received.Sub(date); most < 0 {
		skew = most
	}
	c.mu.Lock()
	if c.at = received; skew.Abs() >= c.skew.Abs() || received.Sub(c.worst).Abs() > skewFreshness {
		c.skew, c.worst = skew, received
	}
	clockSkew.Set(c.skew.Seconds())
	c.mu.Unlock()
}

var clockSkew = prometheus.NewGauge(prometheus.GaugeOpts{
	Name: "mintmark_clock_skew_seconds",
	Help: "By how much the controller's clock is ahead of the API server's. Beyond 30 seconds either way nothing is rotated or retired by time.",
})

type roundTripperFunc func(*http.Request) (*http.Response, error)

func (f roundTripperFunc) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
