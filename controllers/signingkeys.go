package controllers

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/keyring"
)

// reconcileSigningKeys sees to it that there are signing keys for every algorithm that a
// class asks for, and moves them through their slots. It returns after how long to
// look again.
func (r *KeyReconciler) reconcileSigningKeys(ctx context.Context, secret *corev1.Secret) (time.Duration, error) {
	ring := keyring.Ring{}
	request := ""
	if secret != nil {
		var err error
		if ring, err = keyring.DecodeSigningKeys(secret.Data); err != nil {
			return 0, r.unusable(keyring.SigningKeysSecret, "KeysInvalid", err)
		}
		keySecretUsable.WithLabelValues(keyring.SigningKeysSecret).Set(1)
		switch request = r.rotationRequest(secret); {
		case !ours(secret):
			return foreignPoll, nil
		case !r.clockTrusted():
			return maxClockSkew, nil
		}
	}
	wanted, err := r.algorithmsWanted(ctx)
	if err != nil {
		return 0, err
	}
	changes, due, err := r.advance(ring, wanted, request != "")
	if err != nil {
		return 0, err
	}
	if len(changes) > 0 || request != "" {
		if err := r.writeSigningKeys(ctx, secret, ring, request); err != nil {
			return 0, err
		}
		for _, change := range changes {
			r.report(ctx, keyring.SigningKeysSecret, corev1.EventTypeNormal, change.reason, "Update", change.note)
		}
	}
	if due.IsZero() {
		return keysResync, nil
	}
	return min(max(due.Sub(r.cfg.Now()), time.Second), keysResync), nil
}

// algorithmsWanted are those that keys are to be there for: what the classes ask for, and
// the default one, which signs while another's first key is not ready.
func (r *KeyReconciler) algorithmsWanted(ctx context.Context) ([]string, error) {
	classes := new(v1alpha1.CredentialClassList)
	if err := r.live.List(ctx, classes); err != nil {
		return nil, fmt.Errorf("looking which algorithms the CredentialClasses ask for: %w", err)
	}
	wanted := []string{keyring.DefaultAlgorithm}
	for i := range classes.Items {
		wanted = append(wanted, classes.Items[i].Spec.JWTAlgorithm)
	}
	return wanted, nil
}

// classesToSigningKeys has the signing keys looked at where a class begins or ceases to
// ask for an algorithm.
func classesToSigningKeys(namespace string) (handler.EventHandler, predicate.Predicate) {
	request := reconcile.Request{NamespacedName: client.ObjectKey{Namespace: namespace, Name: keyring.SigningKeysSecret}}
	algorithm := func(o client.Object) string {
		class, ok := o.(*v1alpha1.CredentialClass)
		if !ok {
			return ""
		}
		return class.Spec.JWTAlgorithm
	}
	return handler.EnqueueRequestsFromMapFunc(func(context.Context, client.Object) []reconcile.Request { return []reconcile.Request{request} }),
		predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool { return algorithm(e.ObjectOld) != algorithm(e.ObjectNew) }}
}

type keyChange struct{ reason, note string }

// advance takes every step that is due, in the keys handed in. It returns when the next
// is; zero: none is, until somebody asks for one.
func (r *KeyReconciler) advance(ring keyring.Ring, wanted []string, requested bool) (changes []keyChange, next time.Time, err error) {
	for _, algorithm := range keyring.Algorithms() {
		policy := r.cfg.Policy
		policy.Beside = algorithm != keyring.DefaultAlgorithm
		policy.Unwanted = !slices.Contains(wanted, algorithm)
		keys := ring[algorithm]
		if keys == nil {
			if policy.Unwanted {
				continue
			}
			keys = new(keyring.SigningKeys)
			ring[algorithm] = keys
		}
		made, err := r.advanceOne(keys, algorithm, policy, requested)
		if err != nil {
			return nil, time.Time{}, err
		}
		changes = append(changes, made...)
		if len(keys.All()) == 0 {
			delete(ring, algorithm)
			continue
		}
		if due, ok := keys.NextChange(policy); ok && (next.IsZero() || due.Before(next)) {
			next = due
		}
	}
	return changes, next, nil
}

// advanceOne does so for the keys of one algorithm.
func (r *KeyReconciler) advanceOne(keys *keyring.SigningKeys, algorithm string, policy keyring.Policy, requested bool) ([]keyChange, error) {
	now := r.cfg.Now()
	var changes []keyChange
	change := func(reason, format string, key *keyring.SigningKey) {
		changes = append(changes, keyChange{reason, fmt.Sprintf(format, algorithm, key.ID)})
	}
	if keys.ShouldPrepare(now, policy) || requested && keys.Next == nil && !policy.Unwanted {
		key, err := keyring.NewSigningKey(r.cfg.Random, algorithm, now)
		if err != nil {
			return nil, err
		}
		keys.Prepare(key, now)
		change("SigningKeyPublished", "Published the %s signing key %s", key)
	}
	if keys.ShouldActivate(now, policy) {
		keys.Activate(now)
		change("SigningKeyActivated", "%s JWTs are signed with the key %s", keys.Current)
	}
	if keys.ShouldRetire(now, policy) {
		retired := keys.Current
		keys.Retire(now)
		change("SigningKeyRetired", "No class asks for %s any more: retired the signing key %s", retired)
	}
	for _, key := range keys.Drop(now, policy) {
		change("SigningKeyDropped", "Dropped the %s signing key %s: nothing it signed is alive", key)
	}
	return changes, nil
}

func (r *KeyReconciler) writeSigningKeys(ctx context.Context, secret *corev1.Secret, ring keyring.Ring, request string) error {
	data, err := ring.Encode()
	if err != nil {
		return err
	}
	var annotations map[string]string
	if request != "" {
		annotations = map[string]string{AnnotationRotationHandled: request}
	}
	_, err = r.write(ctx, keyring.SigningKeysSecret, secret, data, annotations)
	return err
}
