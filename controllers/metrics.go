package controllers

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

var (
	transitions = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "mintmark_transitions_total",
		Help: "Completed changes in the life of credentials, by kind of credential and reason (Minted, Rotated, Retired, Revoked, Expired).",
	}, []string{"kind", "reason"})
	warnings = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "mintmark_warnings_total",
		Help: "Warnings told as events, by kind of credential and reason (Expiring, TooManyVersions, OverlapEnded).",
	}, []string{"kind", "reason"})
	recordsRejected = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "mintmark_records_rejected_total",
		Help: "Records found in status that the controller had not written, by kind of credential. Anything but 0 deserves a look.",
	}, []string{"kind"})
	propagationSeconds = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name:    "mintmark_propagation_seconds",
		Help:    "From the commit of a version to every server accepting it.",
		Buckets: prometheus.ExponentialBuckets(0.002, 2, 14),
	})
	restarts = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "mintmark_restarts_total",
		Help: "Workloads restarted for credentials, by kind of workload.",
	}, []string{"workload"})
)

var keySecretUsable = prometheus.NewGaugeVec(prometheus.GaugeOpts{
	Name: "mintmark_key_secret_usable",
	Help: "1 where the Secret with this name holds usable keys, 0 where it is missing or broken. Set by the leading controller.",
}, []string{"secret"})

// registerMetrics registers what this package measures about keys, certificates
// and clocks, once per process.
func registerMetrics() error {
	for _, collector := range []prometheus.Collector{keySecretUsable, certificateExpiry, clockSkew, heartbeats, transitions, warnings, recordsRejected, propagationSeconds, restarts} {
		var twice prometheus.AlreadyRegisteredError
		if err := metrics.Registry.Register(collector); err != nil && !errors.As(err, &twice) {
			return fmt.Errorf("registering metrics: %w", err)
		}
	}
	startAtZero()
	return nil
}

// startAtZero makes the series that alerts look at for an increase: what appears with the
// value 1 has not increased.
func startAtZero() {
	for _, kind := range []v1alpha1.Kind{v1alpha1.KindServiceToken, v1alpha1.KindAPIKey} {
		recordsRejected.WithLabelValues(string(kind))
		for _, reason := range []string{v1alpha1.ReasonExpiring, v1alpha1.ReasonTooManyVersions, v1alpha1.ReasonOverlapEnded} {
			warnings.WithLabelValues(string(kind), reason)
		}
	}
}
