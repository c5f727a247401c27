package server

import (
	"log/slog"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mintmark-dev/mintmark/internal/limit"
)

// addressGuard keeps those who present one bad credential after another from finding out
// much, and from costing much. Many callers can share an address, so what it does to one
// is never to refuse a good key: while the address is blocked, bad credentials are
// answered by 429 in place of 401, all of them alike, and few signatures are checked for
// it. A nil guard does nothing. It is safe for concurrent use.
type addressGuard struct {
	blocker *limit.Blocker
	// work bounds the signatures checked for blocked addresses.
	work *limit.Buckets[netip.Addr]
	// every bounds all requests of an address with a credential, by rate; zero: nothing.
	every    *limit.Buckets[netip.Addr]
	rate     limit.Rate
	allowed  proxies
	replicas func() int // nil: this server alone
	limited  prometheus.Counter
	lines    *lineLimit
	audit    *auditor
	log      *slog.Logger
}

// guardConfig is what an addressGuard is made of.
type guardConfig struct {
	// perSecond bounds the requests of an address at all servers together; 0: not.
	perSecond int
	// failures in a minute block an address; 0: never.
	failures int
	// allowed addresses are neither blocked nor limited.
	allowed  []netip.Prefix
	replicas func() int
	metrics  *metrics
	audit    *auditor // nil: nothing is recorded
	log      *slog.Logger
}

// blockedWork is how many signatures are checked for one blocked address: a few, so that
// those who share it with an attacker get in with a JWT not seen here before.
var blockedWork = limit.Rate{Requests: 5, Per: time.Second, Burst: 20}

// limitedAddresses is about how many addresses are kept count of.
const limitedAddresses = 1 << 16

func newAddressGuard(c guardConfig) *addressGuard {
	blocking := limit.DefaultBlocker()
	blocking.Failures, blocking.Allowed, blocking.Size = c.failures, c.allowed, limitedAddresses
	return &addressGuard{
		blocker: limit.NewBlocker(blocking), work: limit.NewBuckets[netip.Addr](limitedAddresses), every: limit.NewBuckets[netip.Addr](limitedAddresses),
		rate: limit.Rate{Requests: int64(c.perSecond), Per: time.Second}, allowed: c.allowed, replicas: c.replicas,
		limited: c.metrics.limited.WithLabelValues("address"), lines: newLineLimit(), audit: c.audit, log: c.log,
	}
}

// heldTo is the address that what is wrong with a request is held against; invalid where
// it would be that of a proxy, which forwards everybody's.
func (p *public) heldTo(v *visit) netip.Addr {
	if v.route.forGateways && !v.trusted || p.proxies.trust(v.client) {
		return netip.Addr{}
	}
	return v.client
}

// admit lets a request in as far as the rate of its address goes.
func (g *addressGuard) admit(e *evaluation) *problem {
	if g == nil || g.rate.Requests <= 0 || !e.suspect.IsValid() || g.allowed.trust(e.suspect) {
		return nil
	}
	n := 1
	if g.replicas != nil {
		n = g.replicas()
	}
	if took := g.every.Take(limit.Subscriber(e.suspect), g.rate.Share(n), e.now); !took.OK {
		return g.refuse(e, took.RetryAfter, codeRateLimit, "over the rate of an address")
	}
	return nil
}

// mayCheck tells whether a signature may be checked for this request; nil: any number.
func (g *addressGuard) mayCheck(e *evaluation) func() bool {
	if g == nil || !e.suspect.IsValid() || g.blocker.Blocked(e.suspect, e.now) == 0 {
		return nil
	}
	return func() bool { return g.work.Take(limit.Subscriber(e.suspect), blockedWork, e.now).OK }
}

// unchecked refuses a token of a blocked address that nobody looked at.
func (g *addressGuard) unchecked(e *evaluation) *problem {
	return g.refuse(e, g.blocker.Blocked(e.suspect, e.now), codeBlocked, "not looked at, for its address is blocked")
}

// failed notes that the request presented a bad credential. It gives the answer where
// that is another one than to bad credentials otherwise; the cause does not matter.
func (g *addressGuard) failed(e *evaluation) *problem {
	if g == nil || !e.suspect.IsValid() {
		return nil
	}
	left := g.blocker.Blocked(e.suspect, e.now)
	if left == 0 {
		if left = g.blocker.Fail(e.suspect, e.now); left == 0 {
			return nil
		}
		if g.lines.allow() {
			g.audit.addressBlocked(e.suspect, e.verdict.Reason.Code(), e.now.Add(left))
			g.log.Warn("an address is blocked for its bad credentials", "client", e.suspect.String(), "for", left.String(), "latest", e.verdict.Reason.Code())
		}
	}
	return g.refuse(e, left, codeBlocked, e.note)
}

func (g *addressGuard) refuse(e *evaluation, wait time.Duration, code, note string) *problem {
	g.limited.Inc()
	e.retry = max(wait, time.Nanosecond)
	return e.refuse(code, note, problemLimited)
}

// blockedNow counts blocked addresses.
func (g *addressGuard) blockedNow(now time.Time) int {
	if g == nil {
		return 0
	}
	return g.blocker.BlockedNow(now)
}
