package server

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
	"github.com/mintmark-dev/mintmark/internal/internalapi"
	"github.com/mintmark-dev/mintmark/internal/keyring"
)

func TestAServerFollowsWhatTheControllerSeals(t *testing.T) {
	in := newInstallation(t)
	before := in.credential()
	r := in.startReady()
	r.expect(0+soon, before, 200, "a credential made before the start")

	c := in.credential()
	r.expect(soon, c, 200, "a credential made after the start")
	old := *c
	c.mint()
	r.expect(soon, c, 200, "its second version")
	r.expect(soon, &old, 401, "its first version, retired")
	c.revoke("leaked")
	r.expect(soon, c, 401, "revoked by its spec")

	labelled := in.credential(func(s *v1alpha1.ServiceToken) { s.Labels = map[string]string{"team": in.namespace} })
	r.expect(soon, labelled, 200, "a credential with a label")
	revocation := &v1alpha1.Revocation{ObjectMeta: metav1.ObjectMeta{Name: in.namespace}, Spec: v1alpha1.RevocationSpec{
		Reason: "test", Namespaces: []string{in.namespace}, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"team": in.namespace}},
	}}
	in.create(revocation)
	r.expect(soon, labelled, 401, "revoked by a Revocation")
	if err := in.client.Delete(t.Context(), revocation); err != nil {
		t.Fatal(err)
	}
	after := in.credential()
	r.expect(soon, after, 200, "a credential made after the Revocation was deleted")
	if status := r.check(labelled.token.Reveal()); status != 401 {
		t.Errorf("deleting the Revocation brought the credential back: %d", status)
	}

	if err := in.client.Delete(t.Context(), after.object); err != nil {
		t.Fatal(err)
	}
	r.expect(soon, after, 401, "deleted")
	if status := r.check(before.token.Reveal()); status != 200 {
		t.Errorf("an unrelated credential: %d, want 200", status)
	}
}

// THREATS 6: nothing in status is believed without its seal.
func TestRecordsThatAreNotTheControllersAreRefused(t *testing.T) {
	in := newInstallation(t)
	a, b := in.credential(), in.credential()
	r := in.startReady(func(c *Config) { c.WatchNamespaces = []string{in.namespace} })
	r.expect(soon, a, 200, "the good record")

	reason := func(want string) {
		t.Helper()
		eventually(t, soon, "the log tells the refusal: "+want, func() bool {
			return strings.Contains(r.log.String(), `"name":"`+a.object.Name+`"`) && strings.Contains(r.log.String(), `"reason":"`+want+`"`)
		})
		if status := r.check(a.token.Reveal()); status != 200 {
			t.Errorf("%s: the last good record no longer holds: %d", want, status)
		}
	}
	record, seal, err := b.record.Seal(in.pepper)
	if err != nil {
		t.Fatal(err)
	}
	a.status(record, seal)
	reason("Foreign")
	a.status(append(record[:len(record)-1:len(record)-1], record[len(record)-1]^1), seal)
	reason("Seal")
	a.status(nil, "")
	reason("Missing")
	later := *a.record
	later.Epoch = 7
	a.write(&later, in.pepper)
	eventually(t, soon, "the later record is in force", func() bool { return r.server.index.Accepts(a.record.UID, 7) })
	earlier := later
	earlier.Epoch = 6
	a.write(&earlier, in.pepper)
	reason("Outdated")
	_, text := r.probe("/metrics")
	for _, want := range []string{`mintmark_server_refused_records_total{reason="Seal"} 1`, "mintmark_server_refused_credentials 1"} {
		if !strings.Contains(text, want) {
			t.Errorf("the metrics lack %q", want)
		}
	}
}

func TestARecordUnderAPepperNotYetKnownIsOpenedWhenThePepperComes(t *testing.T) {
	in := newInstallation(t)
	r := in.startReady()
	next, err := credential.NewPepper("p2", []byte("0123456789abcdef0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	c := in.credential()
	digest := next.Digest(c.token.Inner())
	c.record.Epoch, c.record.Versions[0].Digest, c.record.Versions[0].Pepper = 2, digest[:], "p2"
	c.write(c.record, next)
	eventually(t, soon, "the record waits for its pepper", func() bool { return strings.Contains(r.log.String(), refusedPepper) })
	secret := new(corev1.Secret)
	if err := in.client.Get(t.Context(), client.ObjectKey{Namespace: in.namespace, Name: keyring.PepperSecret}, secret); err != nil {
		t.Fatal(err)
	}
	secret.Data["p2"], secret.Data["current"] = []byte("0123456789abcdef0123456789abcdef"), []byte("p2")
	if err := in.client.Update(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "the record is in force", func() bool { return r.server.index.Accepts(c.record.UID, 2) })
	r.expect(soon, c, 200, "the credential under the new pepper")

	// A Secret that cannot be read leaves what was read before in use.
	secret.Data["current"] = []byte("p3")
	if err := in.client.Update(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	eventually(t, soon, "the log tells of it", func() bool { return strings.Contains(r.log.String(), `there is no such entry`) })
	r.expect(soon, c, 200, "with a pepper Secret that cannot be read")
	if err := r.server.Ready(); err != nil {
		t.Errorf("not ready: %v", err)
	}
}

func TestTheLeaseComesBeforeTheLists(t *testing.T) {
	in := newInstallation(t)
	in.fault = func(w *wire) { w.leaseless = 1 }
	r := in.start()
	eventually(t, 10*time.Second, "the Lease is tried again and again", func() bool {
		r.wire.mu.Lock()
		defer r.wire.mu.Unlock()
		return r.wire.leaseless > 3
	})
	if calls := r.wire.seen(); len(calls) > 0 {
		t.Fatalf("without a Lease the server calls %v", calls)
	}
	r.wire.set(func(w *wire) { w.leaseless = 0 })
	eventually(t, 10*time.Second, "the server is ready", func() bool { return r.server.Ready() == nil })
	calls := r.wire.seen()
	if len(calls) == 0 || calls[0] != "POST leases" {
		t.Fatalf("the calls begin with %v", calls[:min(4, len(calls))])
	}
	for _, resource := range []string{"servicetokens", "apikeys", "credentialclasses", "revocations", "namespaces", "secrets", "leases"} {
		if !slices.Contains(calls, "LIST "+resource) {
			t.Errorf("no list of %s", resource)
		}
	}
	lease, err := in.lease("one")
	if err != nil {
		t.Fatal(err)
	}
	if lease.Labels[v1alpha1.LabelServer] != "true" || lease.Annotations[v1alpha1.AnnotationInternalURL] != "https://"+r.server.Addresses().Internal.String() ||
		*lease.Spec.LeaseDurationSeconds != 15 || !strings.HasPrefix(*lease.Spec.HolderIdentity, "one_") {
		t.Errorf("the Lease is %+v", lease)
	}
	renewed := lease.Spec.RenewTime.Time
	eventually(t, 2*renewEvery, "the Lease is renewed", func() bool {
		lease, err := in.lease("one")
		return err == nil && lease.Spec.RenewTime.After(renewed)
	})
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	if _, err := in.lease("one"); !apierrors.IsNotFound(err) {
		t.Errorf("the Lease after the end: %v, want none", err)
	}
}

func TestAServerWithoutItsKeysIsNotReadyAndSaysWhy(t *testing.T) {
	in := bareInstallation(t)
	r := in.start()
	eventually(t, 10*time.Second, "everything but the keys is there", func() bool {
		_, report := r.probe("/readyz")
		return strings.Contains(report, "[+] listed") && strings.Contains(report, "[-] keys")
	})
	status, report := r.probe("/readyz")
	if status != 503 {
		t.Errorf("/readyz: %d, want 503", status)
	}
	for _, want := range []string{keyring.PepperSecret, keyring.SigningKeysSecret, certificateSecret, "[+] lease"} {
		if !strings.Contains(report, want) {
			t.Errorf("/readyz does not tell of %s: %s", want, report)
		}
	}
	for _, path := range []string{"/livez", "/healthz"} {
		if status, _ := r.probe(path); status != 200 {
			t.Errorf("%s: %d, want 200", path, status)
		}
	}
	in.createKeys()
	eventually(t, soon, "the server is ready", func() bool { return r.server.Ready() == nil })
	status, report = r.probe("/readyz?verbose")
	if status != 200 || !strings.Contains(report, "[ ] heartbeat: none seen yet") {
		t.Errorf("/readyz?verbose: %d %s", status, report)
	}
}

func TestNothingIsMissedWhenWatchesEndOrFallBehind(t *testing.T) {
	in := newInstallation(t)
	r := in.startReady()
	c := in.credential()
	r.expect(soon, c, 200, "to begin with")
	for round := range 3 {
		r.wire.set(func(w *wire) { w.gone = "servicetokens" })
		old := *c
		c.mint()
		r.wire.set(func(w *wire) { w.gone = "" })
		r.expect(5*time.Second, c, 200, "a version made while the watch was gone")
		r.expect(soon, &old, 401, "the version before it")
		if round == 2 {
			if err := in.client.Delete(t.Context(), c.object); err != nil {
				t.Fatal(err)
			}
			r.wire.set(func(*wire) {})
			r.expect(5*time.Second, c, 401, "deleted while watches were cut")
		}
	}
	if !strings.Contains(r.log.String(), `"level":"DEBUG"`) || strings.Contains(r.log.String(), `"level":"ERROR"`) {
		t.Error("the log shows an error, or nothing")
	}
}

func TestAnEventThatWasLostIsFoundWhenAControllerAsksForIt(t *testing.T) {
	in := newInstallation(t)
	r := in.startReady()
	kept := in.credential()
	r.expect(soon, kept, 200, "before events are lost")
	r.wire.mu.Lock()
	r.wire.muted = "servicetokens"
	r.wire.mu.Unlock()
	lost := in.credential()
	asker := in.controller(r)
	accepted := func() bool {
		return asker.accepts(t, internalapi.AcceptsRequest{WaitMillis: 600, Items: []internalapi.AcceptsItem{{UID: lost.record.UID, Epoch: 1}}}).Accepted[0]
	}
	if accepted() {
		t.Fatal("the event was not lost")
	}
	for asked := 1; !accepted(); asked++ {
		if asked == 20 {
			t.Fatal("nothing was listed again")
		}
	}
	r.expect(soon, lost, 200, "found by listing again")
}

// An event that is late is no event that was lost.
func TestWhatIsAskedForInVainIsOverdueAfterAWhile(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	one, two := internalapi.AcceptsItem{UID: "one", Epoch: 1}, internalapi.AcceptsItem{UID: "two", Epoch: 7}
	var late lateItems
	for i, c := range []struct {
		after    time.Duration
		items    []internalapi.AcceptsItem
		accepted []bool
		want     bool
	}{
		{0, []internalapi.AcceptsItem{one}, []bool{false}, false},
		{patience - 1, []internalapi.AcceptsItem{one, two}, []bool{false, false}, false},
		{1, []internalapi.AcceptsItem{one, two}, []bool{false, false}, true},
		{1, []internalapi.AcceptsItem{one, two}, []bool{true, false}, false},
		{1, []internalapi.AcceptsItem{one}, []bool{false}, false}, // it had arrived, and is asked for anew
		{patience, []internalapi.AcceptsItem{two}, []bool{false}, true},
		{forgotten + 1, []internalapi.AcceptsItem{two}, []bool{false}, false}, // nobody had asked for long
		{patience, []internalapi.AcceptsItem{two}, []bool{false}, true},
	} {
		now = now.Add(c.after)
		if got := late.overdue(c.items, c.accepted, now); got != c.want {
			t.Errorf("%d: overdue: %t", i, got)
		}
	}
	for i := range int64(2 * maxLateItems) {
		late.overdue([]internalapi.AcceptsItem{{UID: "many", Epoch: i}}, []bool{false}, now)
	}
	if len(late.items) > maxLateItems+1 {
		t.Errorf("%d are remembered", len(late.items))
	}
}

// asker asks a server's internal listener as a controller does.
type asker struct {
	client *http.Client
	base   string
	token  string
}

func (in *installation) controller(r *running) *asker {
	in.t.Helper()
	token, err := in.plane.ServiceAccount(in.t.Context(), in.namespace, "mintmark-controller", internalapi.Audience)
	if err != nil {
		in.t.Fatal(err)
	}
	lease, err := in.lease("one")
	if err != nil {
		in.t.Fatal(err)
	}
	return &asker{tlsClient(in.pool, in.serverName(), ""), lease.Annotations[v1alpha1.AnnotationInternalURL], token}
}

func (a *asker) do(t testing.TB, method, path, body, token string) answer {
	t.Helper()
	req, err := http.NewRequest(method, a.base+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	return send(t, a.client, req)
}

func (a *asker) accepts(t testing.TB, ask internalapi.AcceptsRequest) internalapi.AcceptsResponse {
	t.Helper()
	body, err := json.Marshal(ask)
	if err != nil {
		t.Fatal(err)
	}
	got := a.do(t, http.MethodPost, internalapi.AcceptsPath, string(body), a.token)
	var out internalapi.AcceptsResponse
	if err := json.Unmarshal([]byte(got.body), &out); got.status != 200 || err != nil || len(out.Accepted) != len(ask.Items) {
		t.Fatalf("%d %s (%v)", got.status, got.body, err)
	}
	return out
}

func TestTheInternalListenerAnswersTheController(t *testing.T) {
	in := newInstallation(t)
	r := in.startReady()
	a := in.controller(r)
	c := in.credential()
	unknown := internalapi.AcceptsItem{UID: "no-such-uid", Epoch: 1}
	answer := a.accepts(t, internalapi.AcceptsRequest{WaitMillis: 2000, Items: []internalapi.AcceptsItem{{UID: c.record.UID, Epoch: 1}}})
	if answer.Server != "one" || !answer.Accepted[0] {
		t.Errorf("the answer is %+v", answer)
	}
	answer = a.accepts(t, internalapi.AcceptsRequest{Items: []internalapi.AcceptsItem{{UID: c.record.UID, Epoch: 1}, unknown, {UID: c.record.UID, Epoch: 2}}})
	if !slices.Equal(answer.Accepted, []bool{true, false, false}) {
		t.Errorf("accepted is %v", answer.Accepted)
	}

	// It answers as soon as what was asked for has come.
	began := time.Now()
	uid, minted := c.record.UID, make(chan struct{})
	go func() {
		defer close(minted)
		c.mint()
	}()
	waited := a.accepts(t, internalapi.AcceptsRequest{WaitMillis: 2000, Items: []internalapi.AcceptsItem{{UID: uid, Epoch: 2}}})
	if <-minted; !waited.Accepted[0] || time.Since(began) > 1500*time.Millisecond {
		t.Errorf("%+v after %s", waited, time.Since(began))
	}

	for range 5 {
		r.check(c.token.Reveal())
	}
	got := a.do(t, http.MethodGet, internalapi.UsagePath+"?cursor=0", "", a.token)
	var usage internalapi.UsageResponse
	if err := json.Unmarshal([]byte(got.body), &usage); err != nil {
		t.Fatal(err)
	}
	if len(usage.Items) != 1 || usage.Items[0].Uses != 5 || usage.Items[0].Version != 2 || usage.Server != "one" || usage.Since.IsZero() {
		t.Errorf("usage is %+v", usage)
	}
	for body, status := range map[string]int{
		`{"items":[]}`: 200, `{"items":null}`: 200, `{"items":[{"uid":"x","epoch":1}],"more":1}`: 400, `[]`: 400, ``: 400, `{"waitMillis":-1,"items":[]}`: 400,
		`{"items":[` + strings.Repeat(`{"uid":"x","epoch":1},`, internalapi.MaxAcceptsItems) + `{"uid":"x","epoch":1}]}`: 400,
		`{"items":"` + strings.Repeat("x", maxAcceptsBody) + `"}`:                                                        413,
	} {
		if got := a.do(t, http.MethodPost, internalapi.AcceptsPath, body, a.token); got.status != status {
			t.Errorf("%.60s: %d, want %d", body, got.status, status)
		}
	}
	if got := a.do(t, http.MethodGet, internalapi.UsagePath+"?cursor=x", "", a.token); got.status != 400 {
		t.Errorf("a cursor that is no number: %d, want 400", got.status)
	}
}

// THREATS 29.
func TestTheInternalListenerAnswersNobodyElse(t *testing.T) {
	in := newInstallation(t)
	r := in.startReady()
	a := in.controller(r)
	token := func(name string, audiences ...string) string {
		t.Helper()
		text, err := in.plane.ServiceAccount(t.Context(), in.namespace, name, audiences...)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	for name, presented := range map[string]string{
		"no token": "", "garbage": "x.y.z", "the controller's token for the API server": token("mintmark-controller"),
		"the server's own token of the right audience": token("mintmark-server", internalapi.Audience),
		"another account's":                            token("somebody", internalapi.Audience),
		"the controller's for another audience":        token("mintmark-controller", "somebody-else"),
		"a credential of ours":                         in.credential().token.Reveal(),
	} {
		for _, path := range []string{internalapi.AcceptsPath, internalapi.UsagePath} {
			method := http.MethodGet
			if path == internalapi.AcceptsPath {
				method = http.MethodPost
			}
			if got := a.do(t, method, path, `{"items":[]}`, presented); got.status != 401 {
				t.Errorf("%s: %s: %d, want 401", name, path, got.status)
			}
		}
	}
	if got := a.do(t, http.MethodPost, internalapi.AcceptsPath, `{"items":[]}`, a.token); got.status != 200 {
		t.Errorf("the controller: %d, want 200", got.status)
	}
	for _, path := range []string{"/forward-auth", "/api/auth/token", "/metrics", "/"} {
		if got := a.do(t, http.MethodGet, path, "", a.token); got.status != 404 {
			t.Errorf("%s on the internal listener: %d, want 404", path, got.status)
		}
	}
}

func TestACutOffServerGoesOnForAWhileAndThenDenies(t *testing.T) {
	in := newInstallation(t)
	c := in.credential()
	r := in.startReady(func(c *Config) { c.MaxStaleness = 2 * time.Second })
	r.expect(soon, c, 200, "in touch")
	r.wire.set(func(w *wire) { w.down = true })
	cut := time.Now()
	eventually(t, 10*time.Second, "it denies", func() bool {
		status := r.check(c.token.Reveal())
		if status != 200 && time.Since(cut) < 1500*time.Millisecond {
			t.Fatalf("%d already %s after it was cut off", status, time.Since(cut))
		}
		return status == 503
	})
	if err := r.server.Ready(); err == nil || !strings.Contains(err.Error(), "fresh") {
		t.Errorf("readiness says %v", err)
	}
	if status := r.check("sk_" + strings.Repeat("0", 64)); status != 503 {
		t.Errorf("an unknown credential: %d, want 503", status)
	}
	r.wire.set(func(w *wire) { w.down = false })
	r.expect(10*time.Second, c, 200, "in touch again")
	eventually(t, 10*time.Second, "it is ready again", func() bool { return r.server.Ready() == nil })
}

func TestWithoutAControllerListsKeepAServerFresh(t *testing.T) {
	in := newInstallation(t)
	c := in.credential()
	r := in.startReady(func(c *Config) { c.MaxStaleness = time.Second })
	until := time.Now().Add(3 * time.Second)
	eventually(t, 5*time.Second, "three times the staleness allowed has passed", func() bool {
		if status := r.check(c.token.Reveal()); status != 200 {
			t.Fatalf("%d while in touch with the API server", status)
		}
		return time.Now().After(until)
	})
}

func TestTheHeartbeatIsFollowed(t *testing.T) {
	in := newInstallation(t)
	r := in.startReady()
	now := metav1.NowMicro()
	holder := "controller-1"
	in.create(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: HeartbeatLease, Namespace: in.namespace},
		Spec: coordinationv1.LeaseSpec{HolderIdentity: &holder, RenewTime: &now}})
	eventually(t, soon, "the heartbeat is seen", func() bool {
		_, seen := r.server.ready.freshness.heartbeatAge(time.Now())
		return seen
	})
	if _, text := r.probe("/metrics"); !strings.Contains(text, "mintmark_server_heartbeat_age_seconds 0.") {
		t.Error("the metrics do not show the heartbeat's age")
	}
}

func TestARestoredClusterStartsCold(t *testing.T) {
	in := newInstallation(t)
	c := in.credential()
	r := in.startReady()
	r.expect(soon, c, 200, "before")
	r.wire.set(func(w *wire) { w.restored, w.gone = true, "revocations" })
	eventually(t, 10*time.Second, "it drops what it knew", func() bool { return strings.Contains(r.log.String(), "restored from a backup") })
	r.wire.set(func(w *wire) { w.restored, w.gone = false, "" })
	eventually(t, 10*time.Second, "it is ready again", func() bool { return r.server.Ready() == nil })
	r.expect(soon, c, 200, "listed again")
	if _, text := r.probe("/metrics"); !strings.Contains(text, "mintmark_server_cold_starts_total") {
		t.Error("the metrics do not count it")
	}
}

func TestAServerThatRestartsTakesItsLeaseOver(t *testing.T) {
	in := newInstallation(t)
	first := in.startReady()
	before, err := in.lease("one")
	if err != nil {
		t.Fatal(err)
	}
	second := in.startReady()
	after, err := in.lease("one")
	if err != nil {
		t.Fatal(err)
	}
	if *before.Spec.HolderIdentity == *after.Spec.HolderIdentity || *after.Spec.LeaseTransitions != 1 ||
		after.Annotations[v1alpha1.AnnotationInternalURL] != "https://"+second.server.Addresses().Internal.String() {
		t.Errorf("the Lease after a restart is %+v", after)
	}
	// The former process, where it still runs, is out of service and ends: its URL is
	// asked by nobody any more.
	select {
	case <-first.ended:
	case <-time.After(3 * renewEvery):
		t.Fatal("two servers of one id run beside each other")
	}
	if err := first.stop(); err == nil || !strings.Contains(err.Error(), "--id") {
		t.Errorf("the former process ends with %v", err)
	}
	if _, err := in.lease("one"); err != nil {
		t.Errorf("it took the Lease of the other one with it: %v", err)
	}
	if second.server.Ready() != nil {
		t.Errorf("the new process is not ready: %v", second.server.Ready())
	}
}

func TestALeaseThatWasMissingCallsForNewLists(t *testing.T) {
	in := newInstallation(t)
	r := in.startReady()
	lists := func() (n int) {
		for _, call := range r.wire.seen() {
			if call == "LIST servicetokens" {
				n++
			}
		}
		return n
	}
	before := lists()
	lease, err := in.lease("one")
	if err != nil {
		t.Fatal(err)
	}
	if err := in.client.Delete(t.Context(), lease); err != nil {
		t.Fatal(err)
	}
	eventually(t, 3*renewEvery, "the Lease is made anew and everything is listed again", func() bool {
		_, err := in.lease("one")
		return err == nil && lists() > before && r.server.Ready() == nil
	})
}

func TestShutdownDropsNoRequest(t *testing.T) {
	in := newInstallation(t)
	c := in.credential()
	r := in.startReady(func(c *Config) { c.ShutdownDelay = time.Second })
	r.expect(soon, c, 200, "before")
	// A load balancer looks every so often whether the server is in service, and sends
	// requests until it has seen that it is not.
	var seenOut atomic.Bool
	var asked atomic.Int64
	var clients sync.WaitGroup
	for i := range 8 {
		clients.Go(func() {
			transport := r.public.Transport.(*http.Transport).Clone()
			if i%2 == 0 {
				transport.ForceAttemptHTTP2 = false
				transport.TLSClientConfig.NextProtos = []string{"http/1.1"}
			}
			hc := &http.Client{Transport: transport}
			for !seenOut.Load() {
				req, err := http.NewRequest(http.MethodGet, testIssuer+"/forward-auth", nil)
				if err != nil {
					t.Error(err)
					return
				}
				req.Header.Set("X-API-Key", c.token.Reveal())
				if got, err := try(hc, req); err != nil || got.status != 200 {
					t.Errorf("a request was answered with %d, %v", got.status, err)
				}
				asked.Add(1)
			}
		})
	}
	eventually(t, 5*time.Second, "load", func() bool { return asked.Load() > 200 })
	stopped := make(chan error, 1)
	go func() { stopped <- r.stop() }()
	eventually(t, soon, "it is out of service", func() bool { return r.server.Ready() != nil })
	out := asked.Load()
	eventually(t, soon, "requests are answered out of service", func() bool { return asked.Load() > out+100 })
	if _, err := in.lease("one"); err != nil {
		t.Errorf("the Lease while requests are still answered: %v", err)
	}
	seenOut.Store(true)
	clients.Wait()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	t.Logf("%d requests, %d of them when out of service", asked.Load(), asked.Load()-out)
	if _, err := in.lease("one"); !apierrors.IsNotFound(err) {
		t.Errorf("the Lease after the end: %v, want none", err)
	}
}

func TestOnlyWatchedNamespacesAreServed(t *testing.T) {
	in := newInstallation(t)
	other := in.namespace + "-other"
	in.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: other}})
	inside := in.credential()
	outside := in.credential(func(s *v1alpha1.ServiceToken) { s.Namespace = other })
	r := in.startReady(func(c *Config) { c.WatchNamespaces = []string{in.namespace} })
	r.expect(soon, inside, 200, "in the namespace watched")
	if status := r.check(outside.token.Reveal()); status != 401 {
		t.Errorf("in another namespace: %d, want 401", status)
	}
	r.expect(soon, in.credential(), 200, "made later")
}

func TestARenewedCertificateIsServedAtOnce(t *testing.T) {
	in := newInstallation(t)
	r := in.startReady()
	cert, key, pool := certificate(t, in.serverName())
	secret := new(corev1.Secret)
	if err := in.client.Get(t.Context(), client.ObjectKey{Namespace: in.namespace, Name: certificateSecret}, secret); err != nil {
		t.Fatal(err)
	}
	secret.Data["tls.crt"], secret.Data["tls.key"] = cert, key
	if err := in.client.Update(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	eventually(t, soon, "the new certificate is served", func() bool {
		resp, err := tlsClient(pool, in.serverName(), r.server.Addresses().Public.String()).Get(testIssuer + "/api/v1/auth/health")
		if err == nil {
			_ = resp.Body.Close()
		}
		return err == nil
	})
}

func TestMissingPermissionsAreNamed(t *testing.T) {
	in := newInstallation(t)
	bare, err := in.plane.ServiceAccountConfig(t.Context(), in.namespace, "nobody")
	if err != nil {
		t.Fatal(err)
	}
	r := in.start(func(c *Config) { c.Kubernetes = bare })
	eventually(t, 5*time.Second, "the log says what to grant", func() bool {
		return strings.Contains(r.log.String(), "get, create, update and delete on leases.coordination.k8s.io")
	})
	if r.server.Ready() == nil {
		t.Error("it is ready without any permission")
	}
}
