package controllers

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

// settlePoll is how often a Revocation that is not settled yet counts again.
const settlePoll = 2 * time.Second

// SetupRevocations adds the reconciler that follows Revocations until every
// status accounts for them. The reconcilers of the credentials do the settling,
// and servers wait for neither.
func SetupRevocations(mgr ctrl.Manager, keys KeySource) error {
	recorder, err := newRecorder(mgr)
	if err != nil {
		return err
	}
	r := &revocations{
		client: mgr.GetClient(), cache: mgr.GetCache(), keys: keys, recorder: recorder, memory: newMemory(), labels: newSealedLabels(),
	}
	return ctrl.NewControllerManagedBy(mgr).
		Named("revocation").
		For(&v1alpha1.Revocation{}, builder.WithPredicates(predicate.Funcs{UpdateFunc: r.others})).
		Complete(r)
}

// others lets through the changes that others made, and resyncs: to count again for what
// this wrote itself is a look at every credential for nothing.
func (r *revocations) others(e event.UpdateEvent) bool {
	return e.ObjectOld.GetResourceVersion() == e.ObjectNew.GetResourceVersion() ||
		!r.memory.ours(client.ObjectKeyFromObject(e.ObjectNew), e.ObjectNew.GetResourceVersion())
}

type revocations struct {
	client   client.Client
	cache    cache.Informers
	labels   *sealedLabels
	keys     KeySource
	recorder eventRecorder
	memory   *memory // of what was written, not of values
}

// Reconcile implements reconcile.Reconciler.
func (r *revocations) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var rv v1alpha1.Revocation
	if err := r.client.Get(ctx, req.NamespacedName, &rv); err != nil {
		r.memory.forget(req.NamespacedName, "")
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if rv.DeletionTimestamp == nil && controllerutil.AddFinalizer(&rv, v1alpha1.FinalizerRevocation) {
		if err := r.client.Update(ctx, &rv); err != nil {
			return quietly(err)
		}
		r.wrote(&rv)
	}
	selector, err := credential.NewSelector(&rv.Spec)
	if err != nil {
		return r.selectsNothing(ctx, &rv, err)
	}
	matched, settled, err := r.progress(ctx, &rv, selector)
	if errors.Is(err, errPeppersNotRead) {
		return reconcile.Result{RequeueAfter: tryAgain}, nil
	}
	if err != nil {
		return reconcile.Result{}, err
	}
	before := rv.Status.DeepCopy()
	rv.Status.Matched, rv.Status.Settled = matched, settled
	condition := metav1.Condition{
		Type: v1alpha1.ConditionSettled, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonSettled, ObservedGeneration: rv.Generation,
		Message: fmt.Sprintf("%d credentials are revoked, and their status says so", matched),
	}
	switch {
	case matched == 0:
		condition.Reason, condition.Message = v1alpha1.ReasonNothingSelected, nothingSelected
	case settled < matched:
		condition.Status, condition.Reason = metav1.ConditionFalse, v1alpha1.ReasonSettling
		condition.Message = "every server refuses what is selected; the status of some credentials is still to be written"
	}
	was := meta.FindStatusCondition(before.Conditions, v1alpha1.ConditionSettled)
	meta.SetStatusCondition(&rv.Status.Conditions, condition)
	if !equality.Semantic.DeepEqual(before, &rv.Status) {
		if err := r.client.Status().Update(ctx, &rv); err != nil {
			return quietly(err)
		}
		r.wrote(&rv)
		if matched == 0 && was == nil {
			r.recorder.Eventf(&rv, nil, corev1.EventTypeWarning, v1alpha1.ReasonNothingSelected, "Settle", nothingSelected)
		}
	}
	if settled < matched || matched == 0 && was == nil { // the cache may lag behind whoever made both
		return reconcile.Result{RequeueAfter: settlePoll}, nil
	}
	return r.release(ctx, &rv)
}

func (r *revocations) wrote(rv *v1alpha1.Revocation) {
	r.memory.wrote(client.ObjectKeyFromObject(rv), rv.UID, rv.ResourceVersion, "")
}

// nothingSelected is told of a Revocation that selects no credential. It is no
// mistake that could be refused: whoever pulls the brake is not held up by a look
// around the cluster.
const nothingSelected = "NOTHING is revoked: no credential made before it is selected; check kinds, namespaces and labels, and create another Revocation"

// release lets a Revocation go that is being deleted.
func (r *revocations) release(ctx context.Context, rv *v1alpha1.Revocation) (reconcile.Result, error) {
	if rv.DeletionTimestamp != nil && controllerutil.RemoveFinalizer(rv, v1alpha1.FinalizerRevocation) {
		if err := r.client.Update(ctx, rv); err != nil {
			return quietly(err)
		}
	}
	return reconcile.Result{}, nil
}

// selectsNothing says of a Revocation whose selector is none that it revokes
// nothing: whoever pulled the brake must not believe that it holds.
func (r *revocations) selectsNothing(ctx context.Context, rv *v1alpha1.Revocation, problem error) (reconcile.Result, error) {
	changed := meta.SetStatusCondition(&rv.Status.Conditions, metav1.Condition{
		Type: v1alpha1.ConditionSettled, Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonInvalidSpec, ObservedGeneration: rv.Generation,
		Message: fmt.Sprintf("NOTHING is revoked: %v; create another Revocation with a selector that can be read", problem),
	})
	if changed {
		if err := r.client.Status().Update(ctx, rv); err != nil {
			return quietly(err)
		}
	}
	return r.release(ctx, rv)
}

// quietly takes a conflict for what it is: somebody else wrote, and the watch
// will tell.
func quietly(err error) (reconcile.Result, error) {
	if abandoned(err) {
		return reconcile.Result{RequeueAfter: tryAgain}, nil
	}
	return reconcile.Result{}, client.IgnoreNotFound(err)
}

// progress counts the credentials a Revocation selects, and those whose sealed
// record accounts for it. Those made after it are none of its business.
func (r *revocations) progress(
	ctx context.Context, rv *v1alpha1.Revocation, selector credential.Selector,
) (matched, settled int64, err error) {
	peppers, err := r.keys.Peppers()
	if err != nil {
		return 0, 0, fmt.Errorf("revocation %s waits for the installation's keys: %w", rv.Name, err)
	}
	there := 0
	for _, kind := range []credentialKind{serviceTokens, apiKeys} {
		n, err := kind.each(ctx, r.client, r.cache, func(c v1alpha1.Credential) {
			if c.GetDeletionTimestamp() != nil || c.GetCreationTimestamp().Time.After(rv.CreationTimestamp.Time) ||
				!selector.Selects(kind.kind, c.GetNamespace(), r.labels.sets(peppers, c)...) {
				return
			}
			matched++
			if accounted(peppers, c, rv) {
				settled++
			}
		})
		if err != nil {
			return 0, 0, err
		}
		there += n
	}
	r.labels.prune(there)
	return matched, settled, nil
}

// accounted tells whether the record of a credential knows of the Revocation.
func accounted(peppers credential.Peppers, c v1alpha1.Credential, rv *v1alpha1.Revocation) bool {
	rec, err := credential.OpenRecord(peppers, c.CredentialStatus().Record, c.CredentialStatus().Seal)
	return err == nil && rec.Accounts(string(rv.UID), rv.CreationTimestamp.Time)
}
