package controllers

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// changes are the writes since the nth, without events.
func (w *writes) changes(n int) []string {
	return slices.DeleteFunc(w.all()[n:], func(what string) bool { return strings.Contains(what, "/events") })
}

func TestARotationIsThreeWritesAndItsEndTwo(t *testing.T) {
	c := newCluster(t)
	p := c.start(nil, nil)
	token := c.token("ci", func(s *v1alpha1.CredentialSpec) {
		s.Rotation = &v1alpha1.Rotation{Overlap: "2s", Retire: v1alpha1.RetireAfterOverlap}
	})
	c.ready(token)
	events := func() int { return len(p.writes.all()) - len(p.writes.changes(0)) }
	c.eventually(token, "told of by an event, which comes later", func() bool { return events() == 1 })
	begin := len(p.writes.all())
	c.annotate(token, v1alpha1.AnnotationRotateRequestedAt)
	c.eventually(token, "version 1 retired", func() bool { return token.Status.CurrentVersion == 2 && state(token, 1) == v1alpha1.VersionRetired })
	status, secret := "PUT /apis/mintmark.dev/v1alpha1/namespaces/"+c.namespace+"/servicetokens/ci/status", "PUT /api/v1/namespaces/"+c.namespace+"/secrets/ci"
	if got, want := p.writes.changes(begin), []string{status, secret, status, secret, status}; !slices.Equal(got, want) {
		t.Errorf("a rotation makes these writes:\n%s\nnot these:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if told := events() - 1; told > 1 {
		t.Errorf("and %d events, where one tells it", told)
	}
}

// Whoever promises an overlap by a clock that is slow must not have it end sooner
// by the clock of whoever leads next.
func TestAPromiseMadeByASlowClockIsKept(t *testing.T) {
	const slow = time.Hour
	c := newCluster(t)
	c.now = func() time.Time { return time.Now().Add(-slow) }
	c.skew = func() (time.Duration, bool) { return -slow, true }
	c.start(nil, nil)
	token := c.token("ci")
	c.ready(token)
	c.annotate(token, v1alpha1.AnnotationRotateRequestedAt)
	c.eventually(token, "version 2", func() bool { return token.Status.CurrentVersion == 2 })
	i := slices.IndexFunc(token.Status.Versions, func(v v1alpha1.CredentialVersion) bool { return v.Version == 1 })
	if superseded := token.Status.Versions[i].Superseded; time.Since(superseded.Time) > slow/2 {
		t.Errorf("superseded at %s, by the slow clock", superseded)
	}
}

func TestARevocationThatNothingMatchesSaysSo(t *testing.T) {
	c := newCluster(t)
	c.start(nil, nil)
	token := c.token("ci")
	c.ready(token)
	rv := &v1alpha1.Revocation{ObjectMeta: metav1.ObjectMeta{GenerateName: "typo-"}, Spec: v1alpha1.RevocationSpec{
		Reason: "leak", Namespaces: []string{c.namespace}, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"team": "paymnets"}},
	}}
	if err := c.client.Create(t.Context(), rv); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.client.Delete(context.WithoutCancel(t.Context()), rv) })
	c.eventually(rv, "told that it selects nothing", func() bool {
		settled := meta.FindStatusCondition(rv.Status.Conditions, v1alpha1.ConditionSettled)
		return settled != nil && settled.Reason == v1alpha1.ReasonNothingSelected && strings.Contains(settled.Message, "NOTHING is revoked")
	})
	if c.read(token); !ready(token) {
		t.Error("the credential is not Ready any more")
	}
}

// renew has a server's Lease held by another process, at another address.
func (c *cluster) renew(name, process, url string) {
	c.t.Helper()
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: leasePrefix + name}}
	c.read(lease)
	lease.Annotations[v1alpha1.AnnotationInternalURL] = url
	lease.Spec.HolderIdentity, lease.Spec.RenewTime = &process, ptrTo(metav1.NowMicro())
	if err := c.client.Update(c.t.Context(), lease); err != nil {
		c.t.Fatal(err)
	}
}

func TestServersAndControllersRestartOneAfterTheOther(t *testing.T) {
	c := newCluster(t)
	// Each is replaced by another listener: all of them show one certificate, as the
	// replicas of a server do.
	now := map[string]*stubServer{}
	for _, name := range []string{"one", "two", "three"} {
		now[name] = c.serve(name, true)
	}
	p := c.start(nil, NewPropagation(c.fleet()))
	made := 0
	next := func() *v1alpha1.ServiceToken { made++; return c.token(fmt.Sprintf("ci-%d", made)) }
	c.ready(next())
	for _, name := range []string{"one", "two", "three"} {
		now[name].Close()
		waiting := next() // asked for while the server is gone and its Lease is not
		c.eventually(waiting, "ServerLagging", func() bool { return reason(waiting, v1alpha1.ConditionPropagated) == v1alpha1.ReasonServerLagging })
		if propagated := meta.FindStatusCondition(waiting.Status.Conditions, v1alpha1.ConditionPropagated); !strings.HasSuffix(propagated.Message, ": "+name) {
			t.Errorf("the server that is gone is not named alone: %s", propagated.Message)
		}
		successor := c.listener(false) // it lists
		c.renew(name, name+"-2", successor.URL)
		p.stop()
		p = c.start(nil, NewPropagation(c.fleet())) // and so does the controller: what it held is lost
		c.eventually(waiting, "a version of the new controller's", func() bool {
			return slices.ContainsFunc(waiting.Status.Versions, func(v v1alpha1.CredentialVersion) bool { return v.Version == 2 })
		})
		var secret corev1.Secret
		if err := c.client.Get(t.Context(), client.ObjectKeyFromObject(waiting), &secret); !apierrors.IsNotFound(err) {
			t.Errorf("delivered before %s accepts: %v", name, err)
		}
		successor.set(true)
		c.ready(waiting)
		now[name] = successor
	}
	c.ready(next())
}
