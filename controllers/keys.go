package controllers

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/keyring"
)

// AnnotationRotationHandled is on the Secrets with keys: the rotate-requested-at that was
// carried out last.
const AnnotationRotationHandled = "mintmark.dev/rotation-handled-at"

const (
	// foreignPoll is how often Secrets are read that somebody else supplies: they
	// lack our label, so no watch tells of them.
	foreignPoll = 30 * time.Second
	// keysResync bounds how long the keys go without being looked at, should an
	// event be lost.
	keysResync = time.Hour
)

// KeyConfig is what a KeyReconciler needs.
type KeyConfig struct {
	// Namespace of the installation.
	Namespace string
	// WatchNamespaces are those whose credentials the installation looks after;
	// empty means all.
	WatchNamespaces []string
	// Policy of the signing keys; the zero value is keyring.DefaultPolicy.
	Policy keyring.Policy
	// Peppers is filled with what is found.
	Peppers *PepperHolder
	// ClockSkew is ServerClock.Skew; nil means that the clock is right.
	ClockSkew func() (time.Duration, bool)
	// Random is a cryptographically secure source; nil is crypto/rand.
	Random io.Reader
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// KeyReconciler makes and rotates the installation's own keys: the pepper and
// the signing keys. It runs in the leader alone, and yet no step relies on there
// being one leader: a Secret is made by create, and changed under the
// resourceVersion it was read at.
//
// A Secret without Mintmark's label is somebody else's (Vault Agent, External
// Secrets, a person): it is used as it is, and never written.
type KeyReconciler struct {
	installationSecrets
	cfg KeyConfig
	// seenPepper is the data of our pepper Secret as last read, so that a Secret
	// deleted by mistake comes back as it was.
	seenPepper map[string][]byte
}

// SetupKeys adds a KeyReconciler to the manager.
func SetupKeys(mgr ctrl.Manager, cfg KeyConfig) error {
	if cfg.Policy == (keyring.Policy{}) {
		cfg.Policy = keyring.DefaultPolicy()
	}
	if cfg.Random == nil {
		cfg.Random = rand.Reader
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.ClockSkew == nil {
		cfg.ClockSkew = func() (time.Duration, bool) { return 0, true }
	}
	if err := registerMetrics(); err != nil {
		return err
	}
	r := &KeyReconciler{installationSecrets: secretsOf(mgr, cfg.Namespace), cfg: cfg}
	toSigningKeys, algorithmChanged := classesToSigningKeys(cfg.Namespace)
	return ctrl.NewControllerManagedBy(mgr).
		Named("keys").
		For(&corev1.Secret{}, builder.WithPredicates(secretsNamed(cfg.Namespace, keyring.PepperSecret, keyring.SigningKeysSecret))).
		Watches(&v1alpha1.CredentialClass{}, toSigningKeys, builder.WithPredicates(algorithmChanged)).
		WatchesRawSource(atStart(cfg.Namespace, keyring.PepperSecret, keyring.SigningKeysSecret)).
		Complete(r)
}

// secretsNamed lets through the Secrets of the installation with these names.
func secretsNamed(namespace string, names ...string) predicate.Predicate {
	return predicate.NewPredicateFuncs(func(o client.Object) bool {
		for _, name := range names {
			if o.GetNamespace() == namespace && o.GetName() == name {
				return true
			}
		}
		return false
	})
}

// atStart asks once for each of these Secrets, so that one that does not exist
// is looked at as well.
func atStart(namespace string, names ...string) source.Source {
	start := make(chan event.GenericEvent, len(names))
	for _, name := range names {
		start <- event.GenericEvent{Object: &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}}
	}
	return source.Channel(start, &handler.EnqueueRequestForObject{})
}

// Reconcile implements reconcile.Reconciler.
func (r *KeyReconciler) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	secret, err := r.read(ctx, request.Name)
	if err != nil {
		return reconcile.Result{}, err
	}
	var next time.Duration
	switch request.Name {
	case keyring.PepperSecret:
		next, err = r.reconcilePepper(ctx, secret)
	case keyring.SigningKeysSecret:
		next, err = r.reconcileSigningKeys(ctx, secret)
	}
	return settle(ctx, next, err)
}

// settle turns what a reconciler found into a result. A lost race is no error:
// the winner's Secret is looked at next. Nor is a Secret that only people can
// put right retried ever more slowly: it is looked at again at a steady pace.
func settle(ctx context.Context, next time.Duration, err error) (reconcile.Result, error) {
	var unusable *unusableError
	switch {
	case err == nil:
		return reconcile.Result{RequeueAfter: next}, nil
	case apierrors.IsConflict(err), apierrors.IsAlreadyExists(err):
		return reconcile.Result{RequeueAfter: time.Second}, nil
	case errors.As(err, &unusable):
		log.FromContext(ctx).Error(err, "A Secret of the installation needs attention")
		return reconcile.Result{RequeueAfter: foreignPoll}, nil
	}
	return reconcile.Result{}, err
}

// rotationRequest is the value of the annotation that asks for a rotation, if it
// is later than the one handled last; else empty.
func (r *KeyReconciler) rotationRequest(secret *corev1.Secret) string {
	request := secret.Annotations[v1alpha1.AnnotationRotateRequestedAt]
	if request == "" {
		return ""
	}
	at, err := time.Parse(time.RFC3339, request)
	if err != nil {
		r.event(secret.Name, corev1.EventTypeWarning, "InvalidRequest", "Rotate", fmt.Sprintf(
			"The annotation %s is no time in RFC 3339, such as 2026-01-31T08:00:00Z, and is ignored", v1alpha1.AnnotationRotateRequestedAt))
		return ""
	}
	if handled, err := time.Parse(time.RFC3339, secret.Annotations[AnnotationRotationHandled]); err == nil && !at.After(handled) {
		return ""
	}
	return request
}

// clockTrusted tells whether steps may be taken that only time calls for.
func (r *KeyReconciler) clockTrusted() bool {
	skew, known := r.cfg.ClockSkew()
	return known && skew.Abs() <= maxClockSkew
}
