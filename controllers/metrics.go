package controllers

import "github.com/prometheus/client_golang/prometheus"

var (
	transitions = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "mintmark_transitions_total",
		Help: "Completed changes in the life of credentials, by kind of credential and reason (Minted, Rotated, Retired, Revoked, Expired).",
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
)
