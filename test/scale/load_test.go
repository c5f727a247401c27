//go:build scale

package scale

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// workers is how many requests the bare client and the person who creates and
// annotates have under way: as many as the controller has workers.
const workers = 12

// inParallel does something n times.
func inParallel(ctx context.Context, n int, do func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		next atomic.Int64
		busy sync.WaitGroup
	)
	for range workers {
		busy.Go(func() {
			for i := int(next.Add(1)) - 1; i < n && ctx.Err() == nil; i = int(next.Add(1)) - 1 {
				if err := do(ctx, i); err != nil {
					cancel(err)
				}
			}
		})
	}
	busy.Wait()
	return context.Cause(ctx)
}

// cost is what each of many took.
type cost struct {
	rate float64 // per second
	cpu  float64 // of all processes, in ms
	of   string  // the same by process
}

func (c cost) String() string { return fmt.Sprintf("%.0f/s (CPU: %s)", c.rate, c.of) }

func mean(a, b cost) cost { return cost{rate: (a.rate + b.rate) / 2, cpu: (a.cpu + b.cpu) / 2} }

// each has n made of something, and tells what each cost.
func (r *rig) each(n int, do func() error) (cost, error) {
	begin, before := time.Now(), r.cpu()
	err := do()
	took, after := time.Since(begin), r.cpu()
	c := cost{rate: float64(n) / took.Seconds()}
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(after)) {
		ms := float64((after[name] - before[name]).Microseconds()) / 1000 / float64(n)
		c.cpu += ms
		parts = append(parts, fmt.Sprintf("%s %.2f", name, ms))
	}
	c.of = strings.Join(parts, ", ") + " ms"
	return c, err
}

// floor has a bare client make the writes of a mint, from the credential's own creation,
// and then of rotations, from the request on: to statuses of these shapes, one after the
// other. On an installation they are made as those people and programs who may make them,
// webhooks and policies are asked, and servers watch; only the controller looks elsewhere.
func (r *rig) floor(ctx context.Context, namespace string, n int, shapes ...shape) (costs []cost, err error) {
	if err := r.client.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}); err != nil {
		return nil, err
	}
	own := r.client
	if r.controller != nil {
		config, err := r.plane.ServiceAccountConfig(ctx, systemNamespace, "mintmark-controller")
		if err != nil {
			return nil, err
		}
		config.QPS = -1
		if own, err = client.New(config, client.Options{Scheme: r.client.Scheme()}); err != nil {
			return nil, err
		}
	}
	tokens, secrets := make([]*v1alpha1.ServiceToken, n), make([]*corev1.Secret, n)
	for version, is := range shapes {
		write := func(ctx context.Context, i int) error {
			if version == 0 {
				tokens[i] = newToken(namespace, i)
				secrets[i] = &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: tokens[i].Name}, Data: secretData(1)}
				return errors.Join(
					r.client.Create(ctx, tokens[i]), status(ctx, own, tokens[i], v1alpha1.VersionPending, is), own.Create(ctx, secrets[i]),
					status(ctx, own, tokens[i], v1alpha1.VersionActive, is), event(ctx, own, tokens[i], "Minted"))
			}
			secrets[i].Data = secretData(2)
			return errors.Join(
				request(ctx, r.client, tokens[i]), status(ctx, own, tokens[i], v1alpha1.VersionPending, is), own.Update(ctx, secrets[i]),
				status(ctx, own, tokens[i], v1alpha1.VersionActive, is), event(ctx, own, tokens[i], "Rotated"))
		}
		each, err := r.each(n, func() error { return inParallel(ctx, n, write) })
		if err != nil {
			return nil, err
		}
		costs = append(costs, each)
	}
	return costs, errors.Join(
		r.client.DeleteAllOf(ctx, &v1alpha1.ServiceToken{}, client.InNamespace(namespace)), r.client.DeleteAllOf(ctx, &corev1.Secret{}, client.InNamespace(namespace)))
}

// shape is what a status is like: how many versions it tells of, and its size in bytes.
type shape struct{ versions, size int }

// usual are the shapes after minting, after the first rotation, and after the second.
var usual = []shape{{1, 1750}, {2, 2260}, {3, 2735}}

// cpu is the processor time that each process has used so far; the test itself is the
// client.
func (r *rig) cpu() map[string]time.Duration {
	used := map[string]time.Duration{"client": processorTime(os.Getpid())}
	for _, p := range r.plane.Processes() {
		used[p.Name()] += processorTime(p.PID())
	}
	for _, s := range r.servers {
		used["servers"] += processorTime(s.PID())
	}
	if r.controller != nil {
		used["controller"] += processorTime(r.controller.PID())
	}
	return used
}

// processorTime of a process, as proc(5) counts it: in hundredths of a second.
func processorTime(pid int) time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

func secretData(versions int) map[string][]byte {
	data := map[string][]byte{"token": make([]byte, 72), "version": []byte("1")}
	if versions > 1 {
		data["token.previous"], data["version.previous"] = make([]byte, 72), []byte("1")
	}
	return data
}

// status writes one of the size and shape of what the controller writes.
func status(ctx context.Context, c client.Client, token *v1alpha1.ServiceToken, state v1alpha1.VersionState, is shape) error {
	now := metav1.Now()
	st := v1alpha1.CredentialStatus{
		Epoch: 1, SecretName: token.Name, ObservedGeneration: 1, Handled: &v1alpha1.HandledRequests{},
		CurrentVersion: 1, Expires: now.Format(time.RFC3339), NextRotation: now.Format(time.RFC3339),
		Transitions: []v1alpha1.Transition{{ID: "01a204ba-3203-8002-9b2a-c771ae78e8d8", Type: "Rotated", Version: int64(is.versions), At: now, Reason: "scale", Actor: "mintmark-admin"}},
	}
	for n := is.versions; n > 0; n-- {
		st.Versions = append(st.Versions, v1alpha1.CredentialVersion{
			Version: int64(n), State: state, Digest: strings.Repeat("0", 64), Pepper: "p0a5b0a8c412077c1", Prefix: "sk_0000",
			Created: now, Activated: &now, Expires: &now, Reason: "scale", Actor: "mintmark-admin",
		})
		state = v1alpha1.VersionSuperseded
	}
	for _, kind := range []string{v1alpha1.ConditionReady, v1alpha1.ConditionPropagated, v1alpha1.ConditionSecretDelivered} {
		st.Conditions = append(st.Conditions, metav1.Condition{
			Type: kind, Status: metav1.ConditionTrue, Reason: "Reason", Message: "every server accepted", LastTransitionTime: now,
		})
	}
	text, err := json.Marshal(st)
	if err != nil {
		return err
	}
	// Where the controller has a record and its seal. Those of nobody would be reported.
	st.Conditions[0].Message += strings.Repeat(".", max(0, is.size-len(text)))
	token.Status = st
	return c.Status().Update(ctx, token)
}

func event(ctx context.Context, c client.Client, token *v1alpha1.ServiceToken, reason string) error {
	return c.Create(ctx, &eventsv1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: token.Namespace, GenerateName: token.Name}, EventTime: metav1.NowMicro(),
		ReportingController: "bare", ReportingInstance: "bare", Action: "Reconcile", Reason: reason, Type: corev1.EventTypeNormal,
		Regarding: corev1.ObjectReference{Kind: "ServiceToken", Namespace: token.Namespace, Name: token.Name, UID: token.UID}, Note: "from version 1 to 2",
	})
}

// namespaces the credentials are spread over.
const namespaces = 20

func newToken(namespace string, i int) *v1alpha1.ServiceToken {
	if namespace == "" {
		namespace = fmt.Sprintf("team-%02d", i%namespaces)
	}
	return &v1alpha1.ServiceToken{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: fmt.Sprintf("token-%05d", i),
			Labels: map[string]string{"app": "scale", "serial": strconv.Itoa(i)},
		},
		Spec: v1alpha1.CredentialSpec{CredentialClassName: "default", Permissions: []v1alpha1.Permission{"api:read", "deploy:write"}},
	}
}

// request asks for a rotation, as `mintmark rotate -l` does for each of its
// selection.
func request(ctx context.Context, c client.Client, token *v1alpha1.ServiceToken) error {
	patch := fmt.Sprintf(`{"metadata":{"annotations":{%q:%q,%q:"scale"}}}`,
		v1alpha1.AnnotationRotateRequestedAt, time.Now().UTC().Format(time.RFC3339Nano), v1alpha1.AnnotationReason)
	return c.Patch(ctx, token, client.RawPatch("application/merge-patch+json", []byte(patch)))
}

// createAll creates the credentials, through the webhooks.
func (r *rig) createAll(ctx context.Context, n int) error {
	for i := range namespaces {
		if err := r.client.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("team-%02d", i)}}); err != nil {
			return err
		}
	}
	return inParallel(ctx, n, func(ctx context.Context, i int) error { return r.client.Create(ctx, newToken("", i)) })
}

func (r *rig) rotateAll(ctx context.Context, n int) error {
	return inParallel(ctx, n, func(ctx context.Context, i int) error { return request(ctx, r.client, newToken("", i)) })
}

// value of a credential, as a consumer reads it.
func (r *rig) value(ctx context.Context, i int) (string, error) {
	var secret corev1.Secret
	err := r.client.Get(ctx, client.ObjectKeyFromObject(newToken("", i)), &secret)
	return string(secret.Data["token"]), err
}

// askAgain is how long after an answer a server is asked again whether it refuses a value
// by now. To ask without a pause would take of the processors what the API server and the
// servers need to hear of the Revocation.
const askAgain = 500 * time.Microsecond

// refused waits until a server refuses a value, and gives the time at which it
// was first seen to.
func (r *rig) refused(ctx context.Context, s *program, value string) (time.Time, error) {
	for ; ; time.Sleep(askAgain) {
		code, err := r.present(ctx, s, value)
		switch {
		case err != nil:
			return time.Time{}, err
		case code == http.StatusUnauthorized:
			return time.Now(), nil
		case code != http.StatusOK:
			return time.Time{}, fmt.Errorf("%s answers %d", s.Name(), code)
		}
	}
}

func (r *rig) present(ctx context.Context, s *program, value string) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+"/forward-auth", nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+value)
	res, err := r.http.Do(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = res.Body.Close() }()
	_, err = io.Copy(io.Discard, res.Body)
	return res.StatusCode, err
}

// revoke revokes one credential by a Revocation, and gives how long each server
// went on accepting it after the API server had answered: the slowest of them. A
// server that refuses it before that counts as zero.
func (r *rig) revoke(ctx context.Context, i int) (time.Duration, error) {
	value, err := r.value(ctx, i)
	if err != nil {
		return 0, err
	}
	for _, s := range r.servers {
		if code, err := r.present(ctx, s, value); err != nil || code != http.StatusOK {
			return 0, fmt.Errorf("%s refuses a good value: %d, %w", s.Name(), code, err)
		}
	}
	var (
		refused  = make([]time.Time, len(r.servers))
		problems = make([]error, len(r.servers))
		polling  sync.WaitGroup
	)
	for n, s := range r.servers {
		polling.Go(func() { refused[n], problems[n] = r.refused(ctx, s, value) })
	}
	err = r.client.Create(ctx, &v1alpha1.Revocation{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "scale-"},
		Spec:       v1alpha1.RevocationSpec{Reason: "measured", Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"serial": strconv.Itoa(i)}}},
	})
	accepted := time.Now()
	if err != nil {
		return 0, err
	}
	polling.Wait()
	last := slices.MaxFunc(refused, time.Time.Compare)
	return max(last.Sub(accepted), 0), errors.Join(problems...)
}

// Metrics.

var sample = regexp.MustCompile(`^([a-z_]+)(?:\{(.*)\})? ([-+0-9.e]+)$`)

// scrape reads the samples of some metrics: name and labels, and value.
func scrape(text io.Reader, names ...string) map[string]float64 {
	found := map[string]float64{}
	lines := bufio.NewScanner(text)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if m := sample.FindStringSubmatch(lines.Text()); m != nil && slices.Contains(names, m[1]) {
			if v, err := strconv.ParseFloat(m[3], 64); err == nil {
				found[m[1]+"{"+m[2]+"}"] = v
			}
		}
	}
	return found
}

func (p *program) scrape(ctx context.Context, names ...string) (map[string]float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.metrics+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }()
	return scrape(res.Body, names...), nil
}

// transitions of a reason that the controller has completed.
func (r *rig) transitions(ctx context.Context, reason string) (int, error) {
	found, err := r.controller.scrape(ctx, "mintmark_transitions_total")
	return int(found[`mintmark_transitions_total{kind="ServiceToken",reason="`+reason+`"}`]), err
}

// until waits until so many transitions were completed.
func (r *rig) until(ctx context.Context, reason string, n int) error {
	for {
		done, err := r.transitions(ctx, reason)
		if err != nil || done >= n {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d of %d are %s: %w", done, n, reason, ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// quiet waits until the controller has had nothing to do for a second.
func (r *rig) quiet(ctx context.Context) error {
	for idle := 0; idle < 10; {
		found, err := r.controller.scrape(ctx, "workqueue_depth", "controller_runtime_active_workers")
		if err != nil {
			return err
		}
		idle++
		for _, busy := range found {
			if busy > 0 {
				idle = 0
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the controller does not come to rest: %w", ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
	return nil
}

var label = regexp.MustCompile(`([a-z_]+)="([^"]*)"`)

// writes counts what the API server was asked about credentials, by verb and
// resource: changes, and reads past the caches.
func (r *rig) writes(ctx context.Context) (map[string]float64, error) {
	httpClient, err := r.apiClient()
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.plane.Config.Host+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	res, err := httpClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }()
	counts := map[string]float64{}
	for key, value := range scrape(res.Body, "apiserver_request_total") {
		labels := map[string]string{}
		for _, m := range label.FindAllStringSubmatch(key, -1) {
			labels[m[1]] = m[2]
		}
		resource := labels["resource"]
		if sub := labels["subresource"]; sub != "" {
			resource += "/" + sub
		}
		switch labels["verb"] {
		case "POST", "PUT", "PATCH", "APPLY", "DELETE", "GET", "LIST":
			if slices.Contains([]string{"servicetokens", "servicetokens/status", "secrets", "events", "revocations", "revocations/status"}, resource) {
				counts[labels["verb"]+" "+resource] += value
			}
		}
	}
	return counts, nil
}

// perCredential says what was written between two counts, for each of n.
func perCredential(before, after map[string]float64, n int) string {
	var parts []string
	for _, key := range slices.Sorted(maps.Keys(after)) {
		if each := (after[key] - before[key]) / float64(n); each >= 0.005 {
			parts = append(parts, fmt.Sprintf("%s %.2f", key, each))
		}
	}
	return strings.Join(parts, ", ")
}

// memory is what a process has resident, now and at most, in MB.
func (p *program) memory() (now, peak int) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	if err != nil {
		return 0, 0
	}
	read := func(field string) int {
		_, rest, _ := strings.Cut(string(text), field+":")
		kb, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
		n, _ := strconv.Atoi(kb)
		return n / 1024
	}
	return read("VmRSS"), read("VmHWM")
}

// heap is what the Go runtime holds in objects, live or not collected yet, in MB.
func (p *program) heap(ctx context.Context) int {
	found, err := p.scrape(ctx, "go_memstats_heap_alloc_bytes")
	if err != nil {
		return 0
	}
	return int(found["go_memstats_heap_alloc_bytes{}"]) >> 20
}
