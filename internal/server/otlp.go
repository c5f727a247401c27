package server

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mintmark-dev/mintmark/internal/audit"
)

// registerOTLP has measured what is sent on; nothing where nobody gets events.
func registerOTLP(registry prometheus.Registerer, o *audit.OTLP) {
	if o == nil {
		return
	}
	for result, of := range map[string]func(audit.OTLPHealth) int64{
		"sent":     func(h audit.OTLPHealth) int64 { return h.Sent },
		"rejected": func(h audit.OTLPHealth) int64 { return h.Rejected },
		"dropped":  func(h audit.OTLPHealth) int64 { return h.Dropped },
	} {
		registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "mintmark_audit_otlp_events_total", ConstLabels: prometheus.Labels{"result": result},
			Help: "Events for the OTLP receiver since the start: sent, rejected by it, and dropped for want of room while it failed.",
		}, func() float64 { return float64(of(o.Health())) }))
	}
	registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "mintmark_audit_otlp_queue_events", Help: "Events that wait for the OTLP receiver.",
	}, func() float64 { return float64(o.Health().Queued) }))
}
