package controllers

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// BenchmarkMint makes credentials in the thousands and compares with its floor:
// a bare client that makes the same writes for each (status, Secret, status and
// an event), with the same parallelism, right before. Read "ratio": the rates themselves are the
// machine's. Run it with -benchtime=1x.
func BenchmarkMint(b *testing.B) {
	for _, n := range []int{500, 2000} {
		b.Run(fmt.Sprintf("%d", n), func(b *testing.B) {
			for range b.N {
				floor := bareWrites(b, n)
				c := newCluster(b)
				c.createAll(n)
				begin := time.Now()
				p := c.start(nil, nil)
				c.allReady(p.cache, n)
				minted := float64(n) / time.Since(begin).Seconds()
				p.stop()
				b.ReportMetric(floor, "floor/s")
				b.ReportMetric(minted, "minted/s")
				b.ReportMetric(minted/floor, "ratio")
			}
		})
	}
}

// BenchmarkRotate asks for the rotation of every credential at once, as `mintmark
// rotate -l` does, and compares with its floor: a bare client that makes the same
// writes (the request, status, Secret, status and an event), with the same
// parallelism, right before. Read "ratio". Run it with -benchtime=1x.
func BenchmarkRotate(b *testing.B) {
	const n = 1000
	for range b.N {
		floor := bareRotations(b, n)
		c := newCluster(b)
		tokens := c.createAll(n)
		p := c.start(nil, nil)
		c.allReady(p.cache, n)
		begin := time.Now()
		c.inParallel(n, func(i int) error { return c.request(tokens[i]) })
		c.allAt(p.cache, n, 2)
		rotated := n / time.Since(begin).Seconds()
		p.stop()
		b.ReportMetric(floor, "floor/s")
		b.ReportMetric(rotated, "rotated/s")
		b.ReportMetric(rotated/floor, "ratio")
	}
}

// request asks for a rotation.
func (c *cluster) request(token *v1alpha1.ServiceToken) error {
	patch := fmt.Sprintf(`{"metadata":{"annotations":{%q:%q}}}`, v1alpha1.AnnotationRotateRequestedAt, time.Now().UTC().Format(time.RFC3339Nano))
	return c.client.Patch(context.Background(), token, client.RawPatch(types.MergePatchType, []byte(patch)))
}

// bareRotations gives the rate at which a client with nothing else to do makes
// the writes of a rotation.
func bareRotations(b *testing.B, n int) float64 {
	c := newCluster(b)
	tokens, secrets := c.createAll(n), make([]*corev1.Secret, n)
	c.inParallel(n, func(i int) error {
		secrets[i] = &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: tokens[i].Name}, Data: map[string][]byte{"token": make([]byte, 72)}}
		if err := c.client.Create(context.Background(), secrets[i]); err != nil {
			return err
		}
		tokens[i].Status = sameStatus(tokens[i], v1alpha1.VersionActive)
		return c.client.Status().Update(context.Background(), tokens[i])
	})
	begin := time.Now()
	c.inParallel(n, func(i int) error {
		token, secret := tokens[i], secrets[i]
		if err := c.request(token); err != nil {
			return err
		}
		again := func(state v1alpha1.VersionState) error {
			token.Status = sameStatus(token, state)
			old := *token.Status.Versions[0].DeepCopy()
			old.Version, old.State, old.Superseded = 2, v1alpha1.VersionSuperseded, &old.Created
			token.Status.Versions = append(token.Status.Versions, old)
			return c.client.Status().Update(context.Background(), token)
		}
		if err := again(v1alpha1.VersionPending); err != nil {
			return err
		}
		secret.Data = map[string][]byte{"token": make([]byte, 72), "version": []byte("2"), "token.previous": make([]byte, 72), "version.previous": []byte("1")}
		if err := c.client.Update(context.Background(), secret); err != nil {
			return err
		}
		if err := again(v1alpha1.VersionActive); err != nil {
			return err
		}
		return c.bareEvent(token, "Rotated")
	})
	return float64(n) / time.Since(begin).Seconds()
}

func (c *cluster) bareEvent(token *v1alpha1.ServiceToken, reason string) error {
	return c.client.Create(context.Background(), &eventsv1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: token.Name}, EventTime: metav1.NowMicro(),
		ReportingController: "bare", ReportingInstance: "bare", Action: "Reconcile", Reason: reason, Type: corev1.EventTypeNormal,
		Regarding: corev1.ObjectReference{Kind: "ServiceToken", Namespace: c.namespace, Name: token.Name, UID: token.UID}, Note: reason + " version 1",
	})
}

// bareWrites gives the rate at which a client with nothing else to do writes a
// status, a Secret, a status again and an event.
func bareWrites(b *testing.B, n int) float64 {
	c := newCluster(b)
	tokens := c.createAll(n)
	secretData := map[string][]byte{"token": make([]byte, 72), "version": []byte("1")}
	begin := time.Now()
	c.inParallel(n, func(i int) error {
		token := tokens[i]
		token.Status = sameStatus(token, v1alpha1.VersionPending)
		if err := c.client.Status().Update(context.Background(), token); err != nil {
			return err
		}
		secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: token.Name}, Data: secretData}
		if err := c.client.Create(context.Background(), secret); err != nil {
			return err
		}
		token.Status = sameStatus(token, v1alpha1.VersionActive)
		if err := c.client.Status().Update(context.Background(), token); err != nil {
			return err
		}
		return c.bareEvent(token, "Minted")
	})
	return float64(n) / time.Since(begin).Seconds()
}

// sameStatus is of the size and shape of what the controller writes.
func sameStatus(token *v1alpha1.ServiceToken, state v1alpha1.VersionState) v1alpha1.CredentialStatus {
	now := metav1.Now()
	st := v1alpha1.CredentialStatus{
		Epoch: 1, Record: make([]byte, 300), Seal: strings.Repeat("x", 60), SecretName: token.Name, ObservedGeneration: 1,
		Handled: &v1alpha1.HandledRequests{},
		Versions: []v1alpha1.CredentialVersion{{
			Version: 1, State: state, Digest: strings.Repeat("0", 64), Pepper: "p1", Prefix: "sk_test_0000", Created: now, Expires: &now, Reason: "Created",
		}},
	}
	status, message := metav1.ConditionFalse, "version 1 is on its way to the servers"
	if state == v1alpha1.VersionActive {
		st.CurrentVersion, st.Epoch, st.Expires, st.NextRotation = 1, 2, now.Format(time.RFC3339), now.Format(time.RFC3339)
		st.Versions[0].Activated = &now
		status, message = metav1.ConditionTrue, "every server accepted the current version before it was delivered"
	}
	for _, kind := range []string{v1alpha1.ConditionReady, v1alpha1.ConditionPropagated, v1alpha1.ConditionSecretDelivered} {
		st.Conditions = append(st.Conditions, metav1.Condition{Type: kind, Status: status, Reason: "Reason", Message: message, LastTransitionTime: now})
	}
	return st
}

func (c *cluster) createAll(n int) []*v1alpha1.ServiceToken {
	tokens := make([]*v1alpha1.ServiceToken, n)
	c.inParallel(n, func(i int) error {
		tokens[i] = &v1alpha1.ServiceToken{
			ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: fmt.Sprintf("token-%05d", i)},
			Spec:       v1alpha1.CredentialSpec{CredentialClassName: c.class, Permissions: []v1alpha1.Permission{"api:read"}},
		}
		return c.client.Create(context.Background(), tokens[i])
	})
	return tokens
}

func (c *cluster) inParallel(n int, do func(i int) error) {
	c.t.Helper()
	var next atomic.Int64
	var failed atomic.Pointer[error]
	var workers sync.WaitGroup
	for range defaultWorkers {
		workers.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				if err := do(i); err != nil {
					failed.CompareAndSwap(nil, &err)
					return
				}
			}
		})
	}
	workers.Wait()
	if err := failed.Load(); err != nil {
		c.t.Fatal(*err)
	}
}

func (c *cluster) allReady(cache client.Reader, n int) {
	c.t.Helper()
	c.allAt(cache, n, 1)
}

// allAt waits until every credential is Ready at a version, by the cache of the
// process: listing them from the API server again and again would slow it down.
func (c *cluster) allAt(cache client.Reader, n int, version int64) {
	c.t.Helper()
	deadline := time.Now().Add(5 * time.Minute)
	for {
		var list v1alpha1.ServiceTokenList
		if err := cache.List(context.Background(), &list, client.InNamespace(c.namespace), client.UnsafeDisableDeepCopy); err != nil {
			c.t.Fatal(err)
		}
		done := 0
		for i := range list.Items {
			if ready(&list.Items[i]) && list.Items[i].Status.CurrentVersion == version {
				done++
			}
		}
		if done == n {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("%d of %d credentials are Ready after 5 minutes", done, n)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
