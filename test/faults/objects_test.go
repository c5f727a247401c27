//go:build faults

package faults

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// What somebody does meanwhile to the Secret, the credential or the namespace.

var (
	secretDeleted = mode{"the Secret deleted after", func(ctx context.Context, t *trial, f *fault) {
		t.more = true
		f.after = func() { t.must(t.deleteSecret(ctx)) }
	}}
	secretDeletedKilled = mode{"the Secret deleted and the controller killed after", func(ctx context.Context, t *trial, f *fault) {
		t.more = true
		f.after, f.drop = func() { t.must(t.deleteSecret(ctx)); t.controller.kill() }, true
	}}
	secretForged = mode{"another value put into the Secret after", func(ctx context.Context, t *trial, f *fault) {
		t.more = true
		forged := "forged-in-" + t.namespace
		f.after = func() {
			t.prober.forge(forged)
			t.mu.Lock()
			t.settles = func(ctx context.Context) error {
				_, secret, err := t.look(ctx)
				if err == nil && secret != nil && string(secret.Data[t.kind.SecretKey()]) == forged {
					err = errors.New("the Secret carries still what somebody else put into it")
				}
				return errors.Join(err, t.scenario.settled(ctx, t))
			}
			t.mu.Unlock()
			t.must(t.changeSecret(ctx, func(secret *corev1.Secret) { secret.Data[t.kind.SecretKey()] = []byte(forged) }))
		}
	}}
	// secretImmutable freezes the Secret, and deletes it after a while, which is the only
	// way out.
	secretImmutable = mode{"the Secret immutable for 2s", func(ctx context.Context, t *trial, f *fault) {
		t.more = true
		f.before = func() {
			immutable := true
			t.must(t.changeSecret(ctx, func(secret *corev1.Secret) { secret.Immutable = &immutable }))
			t.during(func() {
				last(ctx, 2*time.Second)
				t.must(t.deleteSecret(ctx))
			})
		}
	}}
	overQuota = mode{"no more Secrets allowed for 3s", func(ctx context.Context, t *trial, f *fault) {
		quota := &corev1.ResourceQuota{
			ObjectMeta: metav1.ObjectMeta{Namespace: t.namespace, Name: "none"},
			Spec:       corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{corev1.ResourceSecrets: resource.MustParse("0")}},
		}
		f.arming = func() { t.must(t.enforce(ctx, quota)) }
		f.before = func() {
			t.during(func() {
				last(ctx, 3*time.Second)
				t.must(insist(ctx, func() error { return client.IgnoreNotFound(t.admin.Delete(ctx, quota)) }))
			})
		}
	}}
	// foreignSecret has somebody else's Secret where the credential's should be.
	foreignSecret = mode{"somebody else's Secret in its place for 3s", func(ctx context.Context, t *trial, f *fault) {
		theirs := &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: t.namespace, Name: "it"}, StringData: map[string]string{"password": "somebody's"},
		}
		f.arming = func() {
			t.must(insist(ctx, func() error { return client.IgnoreAlreadyExists(t.admin.Create(ctx, theirs)) }))
		}
		f.before = func() {
			t.during(func() {
				last(ctx, 3*time.Second)
				t.must(t.untouched(ctx, theirs))
				t.must(t.deleteSecret(ctx))
			})
		}
	}}
	// foreignRaced has somebody else make a Secret where the credential's is about to be,
	// labelled as if it were one of ours.
	foreignRaced = mode{"somebody else's Secret made before the credential's, for 3s", func(ctx context.Context, t *trial, f *fault) {
		theirs := &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: t.namespace, Name: "it", Labels: map[string]string{v1alpha1.LabelManaged: "true"}},
			StringData: map[string]string{"password": "somebody's"},
		}
		f.before = func() {
			t.must(insist(ctx, func() error { return t.admin.Create(ctx, theirs) }))
			t.during(func() {
				last(ctx, 3*time.Second)
				t.must(t.untouched(ctx, theirs))
				t.must(t.deleteSecret(ctx))
			})
		}
	}}
	specChangedBefore = mode{"the spec changed before", func(ctx context.Context, t *trial, f *fault) {
		f.before = func() { t.must(t.widen(ctx)) }
	}}
	specChangedAfter = mode{"the spec changed after", func(ctx context.Context, t *trial, f *fault) {
		f.after = func() { t.must(t.widen(ctx)) }
	}}
	namespaceDeleted = mode{"the namespace deleted after", func(ctx context.Context, t *trial, f *fault) {
		f.after = func() {
			ended := sync.OnceFunc(t.prober.ending(t.namespace, math.MaxInt64))
			t.mu.Lock()
			t.settles = func(ctx context.Context) error {
				c, _, err := t.look(ctx)
				if err == nil && c == nil {
					ended() // not when the namespace began to end, but when the credential was gone
				}
				return errors.Join(err, gone(ctx, t))
			}
			t.mu.Unlock()
			t.must(insist(ctx, func() error {
				return client.IgnoreNotFound(t.admin.Delete(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: t.namespace}}))
			}))
		}
	}}
)

func (t *trial) deleteSecret(ctx context.Context) error {
	return insist(ctx, func() error {
		return client.IgnoreNotFound(t.admin.Delete(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: t.namespace, Name: "it"}}))
	})
}

// changeSecret changes the credential's Secret, if there is one.
func (t *trial) changeSecret(ctx context.Context, change func(*corev1.Secret)) error {
	return insist(ctx, func() error {
		var secret corev1.Secret
		if err := t.admin.Get(ctx, t.key(), &secret); err != nil {
			return client.IgnoreNotFound(err)
		}
		change(&secret)
		return client.IgnoreNotFound(t.admin.Update(ctx, &secret))
	})
}

// enforce makes a quota and waits until it holds.
func (t *trial) enforce(ctx context.Context, quota *corev1.ResourceQuota) error {
	return insist(ctx, func() error {
		err := t.admin.Create(ctx, quota.DeepCopy())
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return err
		}
		var now corev1.ResourceQuota
		if err := t.admin.Get(ctx, client.ObjectKeyFromObject(quota), &now); err != nil {
			return err
		}
		if len(now.Status.Hard) == 0 {
			return errors.New("the quota does not hold yet")
		}
		return nil
	})
}

// untouched checks that a Secret is as its owner made it (I9).
func (t *trial) untouched(ctx context.Context, theirs *corev1.Secret) error {
	var now corev1.Secret
	if err := t.admin.Get(ctx, t.key(), &now); err != nil {
		return fmt.Errorf("I9: somebody else's Secret: %w", err)
	}
	if now.UID != theirs.UID || now.ResourceVersion != theirs.ResourceVersion {
		return errors.New("I9: somebody else's Secret was written")
	}
	return nil
}

// widen lets the credential do more; in the end every server must agree (I4).
func (t *trial) widen(ctx context.Context) error {
	t.mu.Lock()
	t.settles = func(ctx context.Context) error {
		if err := t.scenario.settled(ctx, t); err != nil {
			return err
		}
		values := t.prober.of(t.namespace)
		for i := range t.servers {
			status, err := t.prober.ask(ctx, i, values[len(values)-1].text, "?permission=api:write")
			if err != nil || status != http.StatusOK {
				return fmt.Errorf("%s answers %d (%v) to what the spec allows now", t.servers[i].name, status, err)
			}
		}
		return nil
	}
	t.mu.Unlock()
	return t.change(ctx, func(c v1alpha1.Credential) {
		c.CredentialSpec().Permissions = []v1alpha1.Permission{"api:read", "api:write"}
	})
}

// present is the cluster's resourceVersion.
func (t *trial) present(ctx context.Context) (string, error) {
	var list v1alpha1.ServiceTokenList
	err := insist(ctx, func() error { return t.admin.List(ctx, &list, client.InNamespace(t.namespace)) })
	return list.ResourceVersion, err
}
