package controllers

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

func TestInventoryCountsCredentialsByWhatTheirConditionsSay(t *testing.T) {
	with := func(conditions ...metav1.Condition) *v1alpha1.ServiceToken {
		c := &v1alpha1.ServiceToken{}
		c.Status.Conditions = conditions
		return c
	}
	is := func(kind string, status metav1.ConditionStatus, reason string) metav1.Condition {
		return metav1.Condition{Type: kind, Status: status, Reason: reason}
	}
	ready, refused := is("Ready", metav1.ConditionTrue, "Ready"), is("Ready", metav1.ConditionFalse, "NotAllowed")
	expiring := is("Expiring", metav1.ConditionTrue, "Within7Days")
	for name, test := range map[string]struct {
		tell func(inventory)
		want []string
	}{
		"one that nobody has looked at yet": {
			func(i inventory) { i.OnAdd(with(), true) }, []string{"Ready=Unknown : 1"},
		},
		"each condition counts": {
			func(i inventory) { i.OnAdd(with(ready, expiring), true); i.OnAdd(with(ready), false) },
			[]string{"Expiring=True Within7Days: 1", "Ready=True Ready: 2"},
		},
		"one that changes counts where it is now": {
			func(i inventory) {
				i.OnAdd(with(ready, expiring), true)
				i.OnUpdate(with(ready, expiring), with(refused))
			},
			[]string{"Ready=False NotAllowed: 1"},
		},
		"one that is gone does not count": {
			func(i inventory) { i.OnAdd(with(ready), false); i.OnDelete(with(ready)) }, nil,
		},
		"nor one that went while nobody watched": {
			func(i inventory) {
				i.OnAdd(with(ready), false)
				i.OnDelete(cache.DeletedFinalStateUnknown{Key: "payments/ci", Obj: with(ready)})
			}, nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			gauge := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "counted"}, []string{"kind", "condition", "status", "reason"})
			test.tell(inventory{v1alpha1.KindServiceToken, gauge})
			if diff := cmp.Diff(test.want, counted(t, gauge)); diff != "" {
				t.Errorf("counted otherwise (-want +got):\n%s", diff)
			}
		})
	}
}

// Prometheus sees no increase in what appears with the value 1.
func TestCountersThatAlertsLookAtAreThereBeforeAnythingHappens(t *testing.T) {
	if err := registerMetrics(); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		counter *prometheus.CounterVec
		least   int
	}{"warnings": {warnings, 6}, "records rejected": {recordsRejected, 2}} {
		series := make(chan prometheus.Metric, 1024)
		test.counter.Collect(series)
		if len(series) < test.least {
			t.Errorf("%s: %d series, at least %d are wanted", name, len(series), test.least)
		}
	}
}

// counted are the series that are not 0, as lines.
func counted(t *testing.T, gauge *prometheus.GaugeVec) (lines []string) {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(gauge)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			labels := map[string]string{}
			for _, l := range metric.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			if n := metric.GetGauge().GetValue(); n != 0 {
				lines = append(lines, fmt.Sprintf("%s=%s %s: %v", labels["condition"], labels["status"], labels["reason"], n))
			}
			if got := slices.Sorted(maps.Values(labels)); !slices.Contains(got, "ServiceToken") {
				t.Errorf("a series names no kind: %v", labels)
			}
		}
	}
	slices.Sort(lines)
	return lines
}
