package controllers

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/lifecycle"
)

// Between the look at a workload and the patch somebody else restarts it. The
// patch must not be taken then: it would be a second restart.
func TestARestartIsUnderTheResourceVersionThatWasLookedAt(t *testing.T) {
	c := restartCluster(t, 0)
	c.kubelet()
	web := c.deployment("web", 1, "ci")
	var (
		mu     sync.Mutex
		bodies []string
		codes  []int
		once   sync.Once
	)
	people := c.client
	c.config = rest.CopyConfig(c.config)
	c.config.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return roundTripperFunc(func(r *http.Request) (*http.Response, error) {
			if r.Method != http.MethodPatch || !strings.HasSuffix(r.URL.Path, "/deployments/web") {
				return next.RoundTrip(r)
			}
			var err error
			once.Do(func() { // as kubectl rollout restart does
				patch := `{"spec":{"template":{"metadata":{"annotations":{"kubectl.kubernetes.io/restartedAt":"` + time.Now().UTC().Format(time.RFC3339) + `"}}}}}`
				other := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: "web"}}
				err = people.Patch(r.Context(), other, client.RawPatch(types.StrategicMergePatchType, []byte(patch)))
			})
			if err != nil {
				return nil, err
			}
			body, err := r.GetBody()
			if err != nil {
				return nil, err
			}
			text, err := io.ReadAll(body)
			response, failed := next.RoundTrip(r)
			mu.Lock()
			defer mu.Unlock()
			bodies = append(bodies, string(text))
			if failed == nil {
				codes = append(codes, response.StatusCode)
			}
			return response, errors.Join(err, failed)
		})
	})
	c.start(nil, nil)
	token := c.token("ci", restart(v1alpha1.Restart{Consumers: true}))
	c.ready(token)
	before := web.DeepCopy()
	c.read(before)
	c.rotate(token)
	c.adoption(token, v1alpha1.ReasonAdopted, "Deployment web is restarted for version 2")
	c.read(web)
	if web.Generation != 2 || web.Spec.Template.Annotations[annotationRestartedAt] != "" {
		t.Errorf("generation %d, annotations %v: want the one restart that was not ours", web.Generation, web.Spec.Template.Annotations)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(bodies) != 1 || len(codes) != 1 || codes[0] != http.StatusConflict {
		t.Fatalf("patches answered by %v:\n%s", codes, strings.Join(bodies, "\n"))
	}
	var patch struct {
		Metadata struct{ ResourceVersion string }
	}
	if err := json.Unmarshal([]byte(bodies[0]), &patch); err != nil || patch.Metadata.ResourceVersion != before.ResourceVersion {
		t.Errorf("the precondition is resourceVersion %q, looked at was %s: %s (%v)", patch.Metadata.ResourceVersion, before.ResourceVersion, bodies[0], err)
	}
}

// A workload that was seen to run with a version goes on counting while the
// others of the credential are restarted: that it is scaled, or loses a pod, is
// no failed rollout.
func TestAWorkloadThatHasRolledOutStaysSo(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	r := newTestRestarts(&now)
	var (
		web    = rolledOut("web", now)
		worker = lifecycle.WorkloadName{Namespace: "ns", Kind: kindDeployment, Name: "worker"}
		token  = &v1alpha1.ServiceToken{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "ci", UID: "u"}}
		wish   = func(name lifecycle.WorkloadName) lifecycle.RestartWish {
			return lifecycle.RestartWish{Workload: name, Delivered: now.Add(-time.Minute), Timeout: time.Minute}
		}
	)
	r.Ask(token, []lifecycle.RestartWish{wish(workloadName(web)), wish(worker)})
	if got := r.observe(web); !got.Completed.Equal(now) {
		t.Fatalf("completed at %s", got.Completed)
	}
	r.Ask(token, []lifecycle.RestartWish{wish(worker)}) // web is done
	web.Status.AvailableReplicas = 0
	if got := r.observe(web); got.Rollout != lifecycle.RolloutUnavailable || !got.Completed.Equal(now) {
		t.Errorf("with a pod lost: rollout %d, completed at %s", got.Rollout, got.Completed)
	}
	clear(r.changed)
	if r.workloadChanged(web); len(r.changed) != 1 {
		t.Errorf("to be told of: %v", r.changed)
	}
	token.Status.CurrentVersion = 2 // for the next version, what was done for this one is nothing
	r.Ask(token, []lifecycle.RestartWish{wish(worker)})
	if len(r.workloads) != 1 {
		t.Errorf("remembered: %v", r.workloads)
	}
	r.Ask(token, nil)
	if len(r.workloads) != 0 || len(r.waiting) != 0 {
		t.Errorf("remembered of a credential that waits for nothing: %v, %v", r.workloads, r.waiting)
	}
}

func TestACredentialThatIsGoneMakesRoomForOtherRestarts(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	r := newTestRestarts(&now)
	token := &v1alpha1.ServiceToken{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "ci", UID: "u"}}
	r.Ask(token, []lifecycle.RestartWish{{Workload: workloadName(rolledOut("web", now)), Restarted: now, Timeout: time.Hour}})
	<-r.wake
	if r.Forget("u"); len(r.wake) != 1 || len(r.workloads) != 0 {
		t.Errorf("forgotten without choosing again; %v is remembered", r.workloads)
	}
}

// Whatever is written by somebody whose clock is wrong, or by mistake, is no proof
// of a restart for all time to come.
func TestARestartByHandInTheFutureIsNotBelieved(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	for sentence, test := range map[string]struct {
		ours, others time.Time
		want         time.Time
	}{
		"by hand, a moment ago":                     {others: now.Add(-time.Second), want: now.Add(-time.Second)},
		"by hand, a clock that is a little ahead":   {others: now.Add(20 * time.Second), want: now.Add(20 * time.Second)},
		"by hand, years ahead":                      {others: now.AddDate(73, 0, 0)},
		"by hand, years ahead, and ours before":     {ours: now.Add(-time.Hour), others: now.AddDate(73, 0, 0), want: now.Add(-time.Hour)},
		"ours, later than the last delivery we saw": {ours: now.Add(time.Minute), want: now.Add(time.Minute)},
	} {
		t.Run(sentence, func(t *testing.T) {
			web := rolledOut("web", test.ours)
			if test.ours.IsZero() {
				web.Spec.Template.Annotations = map[string]string{}
			}
			web.Spec.Template.Annotations[annotationKubectlRestartedAt] = test.others.Format(time.RFC3339)
			if got := restartedBy(web, now); !got.Equal(test.want) {
				t.Errorf("restarted at %s, want %s", got, test.want)
			}
		})
	}
}

// A cache that is behind for long is no reason to write again and again.
func TestARestartIsNotTriedTwiceUnderOneResourceVersion(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	r := newTestRestarts(&now)
	web := rolledOut("web", now.Add(-time.Hour))
	web.ResourceVersion = "7"
	api := &conflicting{}
	r.cache, r.client = &behind{object: web}, api
	token := &v1alpha1.ServiceToken{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "ci", UID: "u"}}
	order := lifecycle.RestartOrder{Workload: workloadName(web), After: now.Add(-time.Minute)}
	r.Ask(token, []lifecycle.RestartWish{{Workload: order.Workload, Delivered: order.After, Begin: true}})
	for range 5 {
		if err := r.restart(t.Context(), order); err != nil {
			t.Fatal(err)
		}
	}
	if api.patches != 1 {
		t.Errorf("%d patches under one resourceVersion", api.patches)
	}
	web.ResourceVersion = "8"
	if err := r.restart(t.Context(), order); err != nil || api.patches != 2 {
		t.Errorf("%d patches once the cache has caught up (%v)", api.patches, err)
	}
}

// behind is a cache with one Deployment.
type behind struct {
	cache.Cache
	object *appsv1.Deployment
}

func (b *behind) Get(_ context.Context, _ client.ObjectKey, o client.Object, _ ...client.GetOption) error {
	b.object.DeepCopyInto(o.(*appsv1.Deployment))
	return nil
}

// conflicting is an API server where somebody else has always written first.
type conflicting struct {
	client.Client
	patches int
}

func (c *conflicting) Patch(context.Context, client.Object, client.Patch, ...client.PatchOption) error {
	c.patches++
	return apierrors.NewConflict(appsv1.Resource("deployments"), "web", errors.New("changed"))
}

func newTestRestarts(now *time.Time) *Restarts {
	return &Restarts{
		cfg: RestartConfig{Now: func() time.Time { return *now }}, wake: make(chan struct{}, 1), tell: make(chan struct{}, 1), synced: true,
		waiting: map[types.UID]*waiting{}, workloads: map[lifecycle.WorkloadName]*awaited{}, changed: map[types.UID]struct{}{},
	}
}

// rolledOut is a Deployment of one pod that was restarted at a time.
func rolledOut(name string, at time.Time) *appsv1.Deployment {
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: "d"}}
	d.Spec.Template.Annotations = map[string]string{annotationRestartedAt: at.Format(time.RFC3339)}
	d.Status = appsv1.DeploymentStatus{Replicas: 1, UpdatedReplicas: 1, AvailableReplicas: 1}
	return d
}
