package controllers

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/internalapi"
)

// stubServer is a server's internal listener with a Lease, whose answers the
// test decides: a real server cannot be made to lag on demand.
type stubServer struct {
	*httptest.Server
	mu      sync.Mutex
	accepts bool
	usage   internalapi.UsageResponse
	asked   int
	tokens  map[string]bool
	// ledger answers for the audit log.
	ledger func(internalapi.TransitionsRequest) (internalapi.TransitionsResponse, bool)
}

func (c *cluster) serve(name string, accepts bool) *stubServer {
	c.t.Helper()
	s := c.listener(accepts)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: "servers"}, Data: map[string][]byte{"ca.crt": ca}}
	if err := client.IgnoreAlreadyExists(c.client.Create(c.t.Context(), secret)); err != nil {
		c.t.Fatal(err)
	}
	c.lease(name, s.URL)
	return s
}

// listener is one without a Lease.
func (c *cluster) listener(accepts bool) *stubServer {
	s := &stubServer{accepts: accepts, tokens: map[string]bool{}}
	s.Server = httptest.NewTLSServer(http.HandlerFunc(s.answer))
	c.t.Cleanup(s.Close)
	return s
}

func (c *cluster) lease(name, url string) *coordinationv1.Lease {
	c.t.Helper()
	now := metav1.NowMicro()
	lease := &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: c.namespace, Name: leasePrefix + name,
			Labels: map[string]string{v1alpha1.LabelServer: "true"}, Annotations: map[string]string{v1alpha1.AnnotationInternalURL: url},
		},
		Spec: coordinationv1.LeaseSpec{LeaseDurationSeconds: ptrTo(int32(15)), RenewTime: &now, HolderIdentity: ptrTo(name + "-1")},
	}
	if err := c.client.Create(c.t.Context(), lease); err != nil {
		c.t.Fatal(err)
	}
	return lease
}

func (s *stubServer) answer(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokens[r.Header.Get("Authorization")] = true
	if r.URL.Path == internalapi.UsagePath {
		_ = json.NewEncoder(w).Encode(s.usage)
		return
	}
	if r.URL.Path == internalapi.TransitionsPath {
		s.store(w, r)
		return
	}
	s.asked++
	var q internalapi.AcceptsRequest
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	answer := internalapi.AcceptsResponse{Server: "s", Accepted: make([]bool, len(q.Items))}
	for i := range answer.Accepted {
		answer.Accepted[i] = s.accepts
	}
	_ = json.NewEncoder(w).Encode(answer)
}

// store answers as a server whose database is down, unless the test says otherwise.
func (s *stubServer) store(w http.ResponseWriter, r *http.Request) {
	var ask internalapi.TransitionsRequest
	if err := json.NewDecoder(r.Body).Decode(&ask); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if s.ledger != nil {
		if answer, ok := s.ledger(ask); ok {
			_ = json.NewEncoder(w).Encode(answer)
			return
		}
	}
	http.Error(w, "the database is down", http.StatusServiceUnavailable)
}

func (s *stubServer) set(accepts bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.accepts = accepts
}

func (c *cluster) fleet() *Fleet {
	c.t.Helper()
	token := filepath.Join(c.t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("the-token\n"), 0o600); err != nil {
		c.t.Fatal(err)
	}
	return NewFleet(FleetConfig{
		Reader: c.client, Namespace: c.namespace, TokenFile: token, AuthoritySecret: "servers", ServerName: "example.com",
	})
}

func TestAServerThatLagsHoldsDeliveryBackAndIsNamed(t *testing.T) {
	c := newCluster(t)
	good, late := c.serve("good", true), c.serve("late", false)
	c.start(nil, NewPropagation(c.fleet()))
	token := c.token("ci")
	c.eventually(token, "ServerLagging", func() bool { return reason(token, v1alpha1.ConditionPropagated) == v1alpha1.ReasonServerLagging })
	for _, condition := range token.Status.Conditions {
		if condition.Type == v1alpha1.ConditionPropagated && (!strings.Contains(condition.Message, "late") || strings.Contains(condition.Message, "good")) {
			t.Errorf("the condition does not name the late server alone: %s", condition.Message)
		}
	}
	secret := &corev1.Secret{}
	if err := c.client.Get(t.Context(), client.ObjectKey{Namespace: c.namespace, Name: "ci"}, secret); err == nil {
		t.Error("the Secret was delivered before every server accepted")
	}
	late.set(true)
	c.ready(token)
	if !good.tokens["Bearer the-token"] || len(good.tokens) != 1 {
		t.Errorf("the servers were asked with %v", good.tokens)
	}
}

func TestAServerThatDoesNotAnswerHoldsDeliveryBackUntilItsLeaseIsGone(t *testing.T) {
	c := newCluster(t)
	c.serve("good", true)
	lease := c.lease("gone", "https://127.0.0.1:1")
	c.start(nil, NewPropagation(c.fleet()))
	token := c.token("ci")
	c.eventually(token, "ServerLagging", func() bool { return reason(token, v1alpha1.ConditionPropagated) == v1alpha1.ReasonServerLagging })
	if err := c.client.Delete(t.Context(), lease); err != nil {
		t.Fatal(err)
	}
	c.ready(token)
}

// Whoever discards a value because it leaked does not wait for a server that is late.
func TestAValueIsDiscardedThoughANewOneWaitsForAServer(t *testing.T) {
	c := newCluster(t)
	s := c.serve("late", true)
	c.start(nil, NewPropagation(c.fleet()))
	token := c.token("ci")
	c.ready(token)
	c.annotate(token, v1alpha1.AnnotationRotateRequestedAt)
	c.eventually(token, "version 2", func() bool { return token.Status.CurrentVersion == 2 && ready(token) })
	key, previous := token.CredentialKind().SecretKey(), token.CredentialKind().PreviousSecretKey()
	second := c.secret("ci")
	s.set(false)
	c.annotate(token, v1alpha1.AnnotationRotateRequestedAt)
	c.eventually(token, "ServerLagging", func() bool { return reason(token, v1alpha1.ConditionPropagated) == v1alpha1.ReasonServerLagging })
	if c.secret("ci").Data[previous] == nil {
		t.Fatal("the Secret carries no previous value, so there is none to discard")
	}
	c.annotate(token, v1alpha1.AnnotationDiscardRequestedAt)
	c.eventually(token, "version 1 retired", func() bool { return state(token, 1) == v1alpha1.VersionRetired })
	if secret := c.secret("ci"); secret.Data[previous] != nil || string(secret.Data[key]) != string(second.Data[key]) {
		t.Errorf("the Secret carries a previous value: %t", secret.Data[previous] != nil)
	}
	s.set(true)
	c.eventually(token, "version 3", func() bool { return token.Status.CurrentVersion == 3 && ready(token) })
	if secret := c.secret("ci"); string(secret.Data[previous]) != string(second.Data[key]) {
		t.Error("what was current is not the previous value now")
	}
}

func TestWhyNoServerCanBeAskedIsTold(t *testing.T) {
	c := newCluster(t)
	lease := c.lease("gone", "https://127.0.0.1:1") // and nothing that says whom to trust
	c.start(nil, NewPropagation(c.fleet()))
	token := c.token("ci")
	c.eventually(token, "the reason", func() bool {
		p := meta.FindStatusCondition(token.Status.Conditions, v1alpha1.ConditionPropagated)
		return p != nil && p.Reason == v1alpha1.ReasonPropagating && strings.Contains(p.Message, `reading the servers' authorities: secrets "servers" not found`)
	})
	c.serve("good", true)
	if err := c.client.Delete(t.Context(), lease); err != nil {
		t.Fatal(err)
	}
	c.ready(token)
}

func TestManyCredentialsAreAskedForInFewRequests(t *testing.T) {
	c := newCluster(t)
	s := c.serve("good", true)
	c.start(nil, NewPropagation(c.fleet()))
	const n = 60
	var tokens []*v1alpha1.ServiceToken
	for i := range n {
		tokens = append(tokens, c.token(fmt.Sprintf("ci-%d", i)))
	}
	for _, token := range tokens {
		c.ready(token)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked > n {
		t.Errorf("%d requests for %d credentials", s.asked, n)
	}
}

func TestALeaseLivesByOurOwnClock(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	f := NewFleet(FleetConfig{Now: func() time.Time { return now }})
	moved := metav1.NewMicroTime(now.Add(-24 * time.Hour)) // the server's clock is a day behind
	lease := coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: leasePrefix + "a", UID: "1"},
		Spec:       coordinationv1.LeaseSpec{LeaseDurationSeconds: ptrTo(int32(15)), RenewTime: &moved},
	}
	for _, step := range []struct {
		what  string
		after time.Duration
		renew bool
		live  int
	}{
		{"seen for the first time", 0, false, 1},
		{"not moved, but within its duration", 15 * time.Second, false, 1},
		{"moved just in time", 2 * time.Second, true, 1},
		{"not moved again", 16 * time.Second, false, 1},
		{"not moved for longer than it lasts", 2 * time.Second, false, 0},
		{"moved after all", time.Second, true, 1},
	} {
		now = now.Add(step.after)
		if step.renew {
			moved = metav1.NewMicroTime(moved.Add(time.Second))
		}
		if got := len(f.live([]coordinationv1.Lease{lease})); got != step.live {
			t.Errorf("%s: %d live, want %d", step.what, got, step.live)
		}
	}
}

func TestUsageIsEvidenceOnlyWhileEveryServerTells(t *testing.T) {
	c := newCluster(t)
	now := time.Now()
	at := now.Add(-time.Minute).UTC().Truncate(time.Second)
	one, two := c.serve("one", true), c.serve("two", true)
	one.usage = internalapi.UsageResponse{Cursor: 5, Items: []internalapi.UsageItem{{UID: "u", Version: 2, Uses: 3, LastUsed: at}}}
	two.usage = internalapi.UsageResponse{Cursor: 9, Items: []internalapi.UsageItem{{UID: "u", Version: 2, Uses: 1, LastUsed: at.Add(-time.Hour)}, {UID: "u", Version: 1, Uses: 1, LastUsed: at}}}
	fleet := c.fleet()
	fleet.cfg.Now = func() time.Time { return now }
	u := NewUsageCollector(fleet)
	if u.Of("u") != nil {
		t.Fatal("evidence before anybody was asked")
	}
	if err := u.round(t.Context()); err != nil {
		t.Fatal(err)
	}
	usage := u.Of("u")
	if usage == nil || !usage.LastUsed[2].Equal(at) || !usage.LastUsed[1].Equal(at) || !usage.Since.Equal(now) || !usage.Through.Equal(now) {
		t.Fatalf("the evidence is %+v", usage)
	}
	select {
	case e := <-u.Changes(v1alpha1.KindServiceToken):
		if e.Object.GetUID() != "u" {
			t.Errorf("told of %q", e.Object.GetUID())
		}
	default:
		t.Error("nobody was told of the first use")
	}
	// A server whose clock is behind tells of a use that it had not told of before.
	now = now.Add(3 * time.Second)
	one.mu.Lock()
	one.usage = internalapi.UsageResponse{Cursor: 6, Items: []internalapi.UsageItem{{UID: "u", Version: 1, Uses: 4, LastUsed: at.Add(time.Second)}}}
	one.mu.Unlock()
	if err := u.round(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := u.Of("u").LastUsed[1]; got.Before(now.Add(-3 * time.Second)) {
		t.Errorf("used since the round before, and taken for used at %v, before it", got)
	}
	began := now
	two.Close()
	now = now.Add(10 * time.Second)
	if err := u.round(t.Context()); err == nil || !strings.Contains(err.Error(), "two") {
		t.Errorf("a server that does not answer is not named: %v", err)
	}
	if u.Of("u") == nil {
		t.Error("the latest complete round still counts for a while")
	}
	now = now.Add(time.Minute)
	if u.Of("u") != nil {
		t.Error("evidence, though a server has not answered for long")
	}
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: leasePrefix + "one"}}
	c.read(lease)
	lease.Spec.RenewTime = ptrTo(metav1.NowMicro())
	if err := c.client.Update(t.Context(), lease); err != nil {
		t.Fatal(err)
	}
	if err := c.client.Delete(t.Context(), &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: leasePrefix + "two"}}); err != nil {
		t.Fatal(err)
	}
	if err := u.round(t.Context()); err != nil {
		t.Fatal(err)
	}
	if usage := u.Of("u"); usage == nil || !usage.Since.Equal(now) || usage.Since.Equal(began) {
		t.Errorf("with a server gone the evidence begins anew: %+v", usage)
	}
}
