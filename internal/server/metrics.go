package server

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/mintmark-dev/mintmark/internal/authn"
)

// outcome of a request, as metrics and logs name it.
type outcome uint8

const (
	outcomeOK outcome = iota
	outcomeUnauthenticated
	outcomeForbidden
	outcomeLimited
	outcomeInvalid
	outcomeUnavailable
	outcomeFailed
	outcomes // their number
)

var outcomeNames = [outcomes]string{"ok", "unauthenticated", "forbidden", "rate_limited", "invalid", "unavailable", "failed"}

func (o outcome) String() string { return outcomeNames[o] }

// metrics are the server's own. Gauges that tell a state are read when they are scraped.
type metrics struct {
	requests  *prometheus.HistogramVec
	decisions *prometheus.CounterVec
	denials   *prometheus.CounterVec
	refused   *prometheus.CounterVec
	limited   *prometheus.CounterVec
	issued    prometheus.Counter
	reviews   *prometheus.CounterVec
	restored  prometheus.Counter
	panics    prometheus.Counter
}

// gauges are read at each scrape.
type gauges struct {
	indexed      func() float64
	refused      func() float64
	heartbeatAge func() float64
	knownAge     func() float64
	leaseHeld    func() float64
	ready        func() float64
	signingKeys  func() float64
	blocked      func() float64
	servers      func() float64
}

func newMetrics(registry prometheus.Registerer) *metrics {
	m := &metrics{
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "mintmark_server_request_duration_seconds",
			Help: "Time to answer a request, by route and outcome.",
			Buckets: []float64{25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3,
				100e-3, 250e-3, 1, 2.5},
		}, []string{"route", "outcome"}),
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mintmark_server_decisions_total",
			Help: "Credentials presented, by what they were and the reason of the verdict.",
		}, []string{"presented", "reason"}),
		denials: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mintmark_server_denials_total",
			Help: "Requests refused, by route and the step of the decision that refused them.",
		}, []string{"route", "code"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mintmark_server_refused_records_total",
			Help: "Sealed records that were refused, by reason. Each is in the log with its object.",
		}, []string{"reason"}),
		limited: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mintmark_server_limited_total",
			Help: "Requests refused for there were too many, by whose: of one credential, or from one address.",
		}, []string{"by"}),
		issued: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mintmark_server_issued_tokens_total", Help: "JWTs issued.",
		}),
		reviews: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mintmark_server_internal_callers_total",
			Help: "Callers of the internal listener, by the result of their authentication.",
		}, []string{"result"}),
		restored: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mintmark_server_cold_starts_total",
			Help: "Times the index was dropped because the cluster was restored from a backup.",
		}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mintmark_server_panics_total", Help: "Requests that ended in a panic.",
		}),
	}
	registry.MustRegister(m.requests, m.decisions, m.denials, m.refused, m.limited, m.issued, m.reviews, m.restored, m.panics,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	// An alert looks for an increase, and what appears with the value 1 has not increased.
	for _, reason := range []string{refusedSeal, refusedPepper, refusedContent, refusedMissing, string(authn.RecordForeign), string(authn.RecordOutdated)} {
		m.refused.WithLabelValues(reason)
	}
	return m
}

func registerGauges(registry prometheus.Registerer, g gauges) {
	for _, def := range []struct {
		name, help string
		value      func() float64
	}{
		{"mintmark_server_index_credentials", "Credentials in the index.", g.indexed},
		{"mintmark_server_refused_credentials", "Credentials whose latest record is refused at present.", g.refused},
		{"mintmark_server_heartbeat_age_seconds", "Age of the controller's heartbeat; NaN before the first.", g.heartbeatAge},
		{"mintmark_server_staleness_seconds", "How old what this server knows may be. Beyond --max-staleness it denies everything.", g.knownAge},
		{"mintmark_server_lease_held", "1 while this server holds its Lease.", g.leaseHeld},
		{"mintmark_server_ready", "1 while this server is ready.", g.ready},
		{"mintmark_server_signing_keys", "Keys in the published key set.", g.signingKeys},
		{"mintmark_server_addresses_blocked", "Addresses that are blocked at this server for the bad credentials they presented.", g.blocked},
		{"mintmark_server_limit_shares", "Servers that rate limits are shared among, as this one counts them.", g.servers},
	} {
		registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: def.name, Help: def.help}, def.value))
	}
}

// observers holds a route's histogram for each outcome, looked up once.
type observers [outcomes]prometheus.Observer

func (m *metrics) route(name string) (o observers) {
	for i, outcome := range outcomeNames {
		o[i] = m.requests.WithLabelValues(name, outcome)
	}
	return o
}

func (o *observers) observe(result outcome, took time.Duration) { o[result].Observe(took.Seconds()) }
