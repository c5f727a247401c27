package controllers

import (
	"context"
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// credentialsByCondition is what alerts on credentials that are not as they should be look
// at. Its labels are constants of the API, so it has some dozens of series.
var credentialsByCondition = prometheus.NewGaugeVec(prometheus.GaugeOpts{
	Name: "mintmark_credentials",
	Help: "Credentials by kind and by what a condition of theirs says. Told by the leading controller.",
}, []string{"kind", "condition", "status", "reason"})

// SetupInventory has the leading controller count credentials by their conditions, as
// its cache has them.
func SetupInventory(mgr ctrl.Manager) error {
	var twice prometheus.AlreadyRegisteredError
	if err := metrics.Registry.Register(credentialsByCondition); err != nil && !errors.As(err, &twice) {
		return fmt.Errorf("registering metrics: %w", err)
	}
	return mgr.Add(manager.RunnableFunc(func(ctx context.Context) error {
		credentialsByCondition.Reset()
		for kind, object := range map[v1alpha1.Kind]client.Object{
			v1alpha1.KindServiceToken: &v1alpha1.ServiceToken{}, v1alpha1.KindAPIKey: &v1alpha1.APIKey{},
		} {
			informer, err := mgr.GetCache().GetInformer(ctx, object)
			if err != nil {
				return fmt.Errorf("counting objects of kind %s: %w", kind, err)
			}
			if _, err := informer.AddEventHandler(inventory{kind, credentialsByCondition}); err != nil {
				return fmt.Errorf("counting objects of kind %s: %w", kind, err)
			}
		}
		<-ctx.Done()
		return nil
	}))
}

// inventory counts credentials of one kind. It is told of each change with what was there
// before, so it needs to look at nothing else.
type inventory struct {
	kind  v1alpha1.Kind
	gauge *prometheus.GaugeVec
}

// OnAdd implements cache.ResourceEventHandler.
func (i inventory) OnAdd(o any, _ bool) { i.count(o, 1) }

// OnUpdate implements cache.ResourceEventHandler.
func (i inventory) OnUpdate(before, after any) {
	i.count(after, 1)
	i.count(before, -1)
}

// OnDelete implements cache.ResourceEventHandler.
func (i inventory) OnDelete(o any) {
	if missed, ok := o.(cache.DeletedFinalStateUnknown); ok {
		o = missed.Obj
	}
	i.count(o, -1)
}

// count adds a credential, or takes it away. One that no controller has looked at yet has
// no conditions, and counts as one whose readiness is not known.
func (i inventory) count(o any, by float64) {
	c, ok := o.(v1alpha1.Credential)
	if !ok {
		return
	}
	ready := false
	for _, condition := range c.CredentialStatus().Conditions {
		ready = ready || condition.Type == v1alpha1.ConditionReady
		i.gauge.WithLabelValues(string(i.kind), condition.Type, string(condition.Status), condition.Reason).Add(by)
	}
	if !ready {
		i.gauge.WithLabelValues(string(i.kind), v1alpha1.ConditionReady, string(metav1.ConditionUnknown), "").Add(by)
	}
}
