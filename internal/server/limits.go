package server

import (
	"context"
	"log/slog"
	"math"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationclient "k8s.io/client-go/kubernetes/typed/coordination/v1"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/limit"
)

// credentialLimits holds credentials to their rates, spec.rateLimit. All versions of a
// credential and the JWTs issued for them take from one bucket. Each server enforces its
// share of the rate and asks nobody.
type credentialLimits struct {
	buckets *limit.Buckets[string] // by UID
	// replicas is how many servers there are; nil: this one alone.
	replicas func() int
	limited  prometheus.Counter
}

// limitedCredentials is about how many credentials with a rate are kept count of.
const limitedCredentials = 1 << 17

func newCredentialLimits(m *metrics, replicas func() int) *credentialLimits {
	return &credentialLimits{
		buckets: limit.NewBuckets[string](limitedCredentials), replicas: replicas, limited: m.limited.WithLabelValues("credential"),
	}
}

// admit takes one from the caller's bucket. Only who was let in so far comes here: what
// somebody else tries with a wrong or revoked value takes nothing away.
func (l *credentialLimits) admit(e *evaluation) *problem {
	who := e.caller()
	if who == nil || who.Grant == nil || who.Rate == nil {
		return nil
	}
	whole, n := limit.Rate{Requests: who.Rate.Requests, Per: who.Rate.Per, Burst: who.Rate.Burst}, 1
	if l.replicas != nil {
		n = l.replicas()
	}
	e.quota = quota{rate: whole, Result: l.buckets.Take(who.UID, whole.Share(n), e.now)}
	if e.quota.OK {
		return nil
	}
	l.limited.Inc()
	e.retry = e.quota.RetryAfter
	return e.refuse(codeRateLimit, "over its rate of "+strconv.FormatInt(whole.Requests, 10)+" in "+whole.Per.String(), problemLimited)
}

// quota is how a credential stands with its rate. The zero quota is of one that has none.
type quota struct {
	rate limit.Rate
	limit.Result
}

// Names of the header fields, draft-ietf-httpapi-ratelimit-headers.
const (
	rateLimitHeader       = "RateLimit"
	rateLimitPolicyHeader = "RateLimit-Policy"
)

// headers are what the caller is told: the rate as a whole, and what is left of it at
// this server.
func (q *quota) headers() (policy, left string) {
	const name = `"credential"`
	requests, window := q.rate.Requests, wholeSeconds(q.rate.Per)
	if exact := time.Duration(window) * time.Second; exact != q.rate.Per {
		// The window is told in whole seconds, so of a rate per half a second it is that
		// per second.
		requests = int64(float64(requests) * (exact.Seconds() / q.rate.Per.Seconds()))
	}
	policy = name + ";q=" + strconv.FormatInt(requests, 10) + ";w=" + strconv.FormatInt(window, 10)
	left = name + ";r=" + strconv.FormatInt(q.Remaining, 10) + ";t=" + strconv.FormatInt(wholeSeconds(q.Reset), 10)
	return policy, left
}

// known tells whether the credential has a rate.
func (q *quota) known() bool { return q.rate.Per > 0 }

// wholeSeconds rounds up, so that who waits as long has waited long enough.
func wholeSeconds(d time.Duration) int64 { return int64(math.Ceil(d.Seconds())) }

// retrySeconds is for Retry-After (RFC 9110, section 10.2.3); empty where there is
// nothing to wait for.
func (e *evaluation) retrySeconds() string {
	if e.retry <= 0 {
		return ""
	}
	return strconv.FormatInt(wholeSeconds(e.retry), 10)
}

// tellQuota sets the header fields of the caller's rate.
func (x *exchange) tellQuota() {
	if !x.quota.known() {
		return
	}
	policy, left := x.quota.headers()
	h := x.w.Header()
	h[rateLimitPolicyHeader], h[rateLimitHeader] = []string{policy}, []string{left}
}

// quotaPairs are the same for Envoy, which sends them to the client.
func (e *evaluation) quotaPairs() []pair {
	if !e.quota.known() {
		return nil
	}
	policy, left := e.quota.headers()
	return []pair{{"ratelimit-policy", policy}, {"ratelimit", left}}
}

var (
	problemLimited = newProblem(http.StatusTooManyRequests, outcomeLimited,
		"Too many requests. The header Retry-After says when to try again.")
	problemLimitedForbidden = newProblem(http.StatusForbidden, outcomeLimited,
		"Too many requests. The header Retry-After says when to try again.")
)

// limitedAs is the refusal in the form the gateway wants: nginx takes a 403 for a
// refusal, and a 429 for a failure of ours.
func (p *public) limitedAs(x *exchange, told *problem) *problem {
	if told.Status != http.StatusTooManyRequests || !x.route.forGateways {
		return told
	}
	if n, bad := p.needs.of(x.r.URL.RawQuery); bad == nil && n.limitedForbidden {
		return problemLimitedForbidden
	}
	return told
}

// replicas counts the servers of the installation by their Leases. One is there while its
// Lease is renewed, by our clock and not by what it says. When the API server cannot
// be asked the last count stands.
type replicas struct {
	leases coordinationclient.LeaseInterface
	now    func() time.Time
	log    *slog.Logger

	// present is told when a tenure of our own Lease begins: nothing is counted before.
	present chan struct{}
	count   atomic.Int64
	seen    map[string]renewal // by the Lease's name; belongs to the goroutine of Run
}

// renewal is the latest one of a Lease.
type renewal struct {
	told  time.Time // what the Lease says
	noted time.Time // when we first saw that
}

// countEvery is how often servers are counted.
const countEvery = 3 * time.Second

func newReplicas(leases coordinationclient.LeaseInterface, now func() time.Time, log *slog.Logger) *replicas {
	return &replicas{leases: leases, now: now, log: log, present: make(chan struct{}, 1)}
}

// joined has the servers counted at once, this one among them.
func (r *replicas) joined() {
	select {
	case r.present <- struct{}{}:
	default: // it is told already
	}
}

// number is at least 1: this server.
func (r *replicas) number() int { return int(max(r.count.Load(), 1)) }

// Run counts until the context ends.
func (r *replicas) Run(ctx context.Context) {
	var tick <-chan time.Time // nil, which never ticks, before the first tenure
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.present:
			if tick == nil {
				ticker := time.NewTicker(countEvery)
				defer ticker.Stop()
				tick = ticker.C
			}
		case <-tick:
		}
		r.refresh(ctx)
	}
}

func (r *replicas) refresh(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	list, err := r.leases.List(ctx, metav1.ListOptions{LabelSelector: v1alpha1.LabelServer + "=true"})
	if err != nil {
		r.log.Debug("servers could not be counted; the last count stands", "count", r.number(), "error", err.Error())
		return
	}
	r.observe(list.Items, r.now())
}

func (r *replicas) observe(leases []coordinationv1.Lease, now time.Time) {
	next := make(map[string]renewal, len(leases))
	live := int64(0)
	for i := range leases {
		l := &leases[i]
		is := renewal{noted: now}
		if l.Spec.RenewTime != nil {
			is.told = l.Spec.RenewTime.Time
		}
		if was, ok := r.seen[l.Name]; ok && was.told.Equal(is.told) {
			is.noted = was.noted
		}
		next[l.Name] = is
		if now.Sub(is.noted) < leaseDuration {
			live++
		}
	}
	r.seen = next
	if was := r.count.Swap(live); was != live && was > 0 {
		r.log.Info("rate limits are shared among another number of servers", "servers", r.number(), "before", was)
	}
}
