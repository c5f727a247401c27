package controllers

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// These run in parallel, for a restart waits seconds for company.

func restartCluster(t *testing.T, parallel int) *cluster {
	t.Helper()
	t.Parallel()
	c := newCluster(t)
	c.restarts = &RestartConfig{Parallel: parallel}
	return c
}

func (c *cluster) restarter(mgr ctrl.Manager) *Restarts {
	if c.restarts == nil {
		return nil
	}
	cfg := *c.restarts
	cfg.WatchNamespaces = []string{c.namespace}
	restarts, err := NewRestarts(mgr, cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	if err := mgr.Add(restarts); err != nil {
		c.t.Fatal(err)
	}
	return restarts
}

// kubelet has the pods of the namespace become ready, if they may.
type kubelet struct {
	mu  sync.Mutex
	may func(*corev1.Pod) bool
}

func (k *kubelet) let(may func(*corev1.Pod) bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.may = may
}

func every(*corev1.Pod) bool { return true }
func none(*corev1.Pod) bool  { return false }

// restartedPod tells whether a pod is of a template that has been restarted.
func restartedPod(p *corev1.Pod) bool { return p.Annotations[annotationRestartedAt] != "" }

func (c *cluster) kubelet() *kubelet {
	k := &kubelet{may: every}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	c.t.Cleanup(func() { cancel(); <-done })
	go func() {
		defer close(done)
		for pause(ctx, 50*time.Millisecond) {
			var pods corev1.PodList
			if err := c.client.List(ctx, &pods, client.InNamespace(c.namespace)); err != nil {
				continue // the next round tells
			}
			k.mu.Lock()
			may := k.may
			k.mu.Unlock()
			for i := range pods.Items {
				if p := &pods.Items[i]; p.Status.Phase != corev1.PodRunning && p.DeletionTimestamp == nil && may(p) {
					p.Status.Phase = corev1.PodRunning
					p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now()}}
					_ = c.client.Status().Update(ctx, p) // the next round tells
				}
			}
		}
	}()
	return k
}

// consumer is a pod template that has Secrets in its environment.
func consumer(name string, secrets ...string) corev1.PodTemplateSpec {
	container := corev1.Container{Name: "main", Image: "registry.invalid/main"}
	for _, secret := range secrets {
		container.EnvFrom = append(container.EnvFrom, corev1.EnvFromSource{
			SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: secret}},
		})
	}
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"run": name}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{container}, TerminationGracePeriodSeconds: ptrTo(int64(0))},
	}
}

func (c *cluster) deployment(name string, replicas int32, secrets ...string) *appsv1.Deployment {
	c.t.Helper()
	d := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: name, Labels: map[string]string{"app": "shop"}},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"run": name}},
			Template: consumer(name, secrets...), ProgressDeadlineSeconds: ptrTo(int32(300)),
		},
	}
	if err := c.client.Create(c.t.Context(), d); err != nil {
		c.t.Fatal(err)
	}
	c.eventually(d, "rolled out", func() bool {
		return d.Status.AvailableReplicas == replicas && d.Status.ObservedGeneration == d.Generation
	})
	return d
}

func restart(r v1alpha1.Restart) func(*v1alpha1.CredentialSpec) {
	return func(s *v1alpha1.CredentialSpec) {
		s.Restart = &r
		s.Rotation = &v1alpha1.Rotation{Overlap: "1s", MaxOverlap: "1h", Retire: v1alpha1.RetireAfterOverlap}
	}
}

// named restarts Deployments by name.
func named(deployments ...string) v1alpha1.Restart {
	var r v1alpha1.Restart
	for _, name := range deployments {
		r.Workloads = append(r.Workloads, v1alpha1.WorkloadReference{Kind: "Deployment", Name: name})
	}
	return r
}

// rotate has a credential rotated, and waits until it is.
func (c *cluster) rotate(token *v1alpha1.ServiceToken) {
	c.t.Helper()
	c.read(token)
	before := token.Status.CurrentVersion
	c.annotate(token, v1alpha1.AnnotationRotateRequestedAt)
	c.eventually(token, "rotated", func() bool { return token.Status.CurrentVersion > before })
}

func (c *cluster) adoption(token *v1alpha1.ServiceToken, reasonWanted, message string) {
	c.t.Helper()
	c.patiently(token, fmt.Sprintf("Adopted with the reason %s and a message that says %q", reasonWanted, message), func() bool {
		a := meta.FindStatusCondition(token.Status.Conditions, v1alpha1.ConditionAdopted)
		return a != nil && a.Reason == reasonWanted && strings.Contains(a.Message, message)
	})
}

// patiently is eventually with more time, for a restart takes its own.
func (c *cluster) patiently(o client.Object, what string, as func() bool) {
	c.t.Helper()
	deadline := time.Now().Add(90 * time.Second)
	for {
		c.read(o)
		if as() {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("%s: not so after 90 s; it is %s", what, describe(o))
		}
		if !pause(c.t.Context(), 50*time.Millisecond) {
			c.t.Fatal(what)
		}
	}
}

// workloadWrites are the writes to workloads among those of a process.
func workloadWrites(w *writes) []string {
	return slices.DeleteFunc(w.all(), func(what string) bool { return !strings.Contains(what, "/apis/apps/") })
}

func (c *cluster) event(reason, note string) {
	c.t.Helper()
	waitFor(c.t.(*testing.T), fmt.Sprintf("an event with the reason %s that says %q", reason, note), func() bool {
		var list eventsv1.EventList
		if err := c.client.List(c.t.Context(), &list, client.InNamespace(c.namespace)); err != nil {
			c.t.Fatal(err)
		}
		return slices.ContainsFunc(list.Items, func(e eventsv1.Event) bool { return e.Reason == reason && strings.Contains(e.Note, note) })
	})
}

func TestCredentialsRotatedTogetherRestartAWorkloadOnceAndAControllerThatBeginsRestartsNothing(t *testing.T) {
	c := restartCluster(t, 0)
	c.kubelet()
	const credentials = 20
	var (
		tokens  []*v1alpha1.ServiceToken
		secrets []string
	)
	p := c.start(nil, nil)
	for i := range credentials {
		token := c.token(fmt.Sprintf("ci-%02d", i), restart(v1alpha1.Restart{Consumers: true}))
		tokens, secrets = append(tokens, token), append(secrets, token.Name)
	}
	for _, token := range tokens {
		c.ready(token)
	}
	web := c.deployment("web", 2, secrets...)
	other := c.deployment("other", 1)
	if got := workloadWrites(p.writes); len(got) > 0 {
		t.Fatalf("nothing is to be restarted for a first version: %s", got)
	}
	for _, token := range tokens {
		c.rotate(token)
	}
	for _, token := range tokens {
		c.adoption(token, v1alpha1.ReasonAdopted, "Deployment web is restarted for version 2")
		if a := token.Status.Adopted; a == nil || a.Version != 2 || a.At == nil {
			t.Errorf("%s: adopted is %+v", token.Name, a)
		}
	}
	want := []string{"PATCH /apis/apps/v1/namespaces/" + c.namespace + "/deployments/web"}
	if got := workloadWrites(p.writes); !slices.Equal(got, want) {
		t.Errorf("%d credentials write to workloads:\n%s\nwant one patch", credentials, strings.Join(got, "\n"))
	}
	c.read(web)
	c.read(other)
	if web.Generation != 2 || other.Generation != 1 {
		t.Errorf("generations: web %d, other %d", web.Generation, other.Generation)
	}
	c.event("Restarted", "version 2 of ServiceToken ci-00, version 2 of ServiceToken ci-01")
	c.event(v1alpha1.ReasonAdopted, "Deployment web is restarted for version 2")

	// A controller that knows nothing comes to the same conclusions, and writes
	// nothing. That it has looked at everything shows in a credential made since.
	p.stop()
	p = c.start(nil, nil)
	sentinel := c.token("sentinel")
	c.ready(sentinel)
	for _, what := range p.writes.all() {
		if !strings.Contains(what, "sentinel") && !strings.HasSuffix(what, "/secrets") && !strings.Contains(what, "/events") {
			t.Errorf("a controller that begins writes: %s", what)
		}
	}
}

func TestARestartUnderWayIsTakenUpByTheNextController(t *testing.T) {
	c := restartCluster(t, 0)
	k := c.kubelet()
	web := c.deployment("web", 1, "ci")
	p := c.start(nil, nil)
	token := c.token("ci", restart(named("web")))
	c.ready(token)
	k.let(none)
	c.rotate(token)
	c.patiently(web, "restarted", func() bool { return web.Generation == 2 })
	p.stop()
	p = c.start(nil, nil)
	sentinel := c.token("sentinel", restart(named("web")))
	c.ready(sentinel)
	k.let(every)
	c.adoption(token, v1alpha1.ReasonAdopted, "Deployment web is restarted for version 2")
	if got := workloadWrites(p.writes); len(got) > 0 {
		t.Errorf("the next controller writes to workloads: %s", got)
	}
}

func TestARolloutThatFailsStopsTheOthersAndKeepsThePreviousVersion(t *testing.T) {
	c := restartCluster(t, 0)
	k := c.kubelet()
	web, worker := c.deployment("web", 2, "ci"), c.deployment("worker", 1, "ci")
	web.Spec.ProgressDeadlineSeconds = ptrTo(int32(2))
	if err := c.client.Update(t.Context(), web); err != nil {
		t.Fatal(err)
	}
	before := web.Generation
	c.start(nil, nil)
	token := c.token("ci", restart(v1alpha1.Restart{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "shop"}}}))
	c.ready(token)
	k.let(func(p *corev1.Pod) bool { return !restartedPod(p) })
	c.rotate(token)
	c.adoption(token, v1alpha1.ReasonRestartFailed, "Deployment web did not roll out within its progressDeadlineSeconds")
	c.event(v1alpha1.ReasonRestartFailed, "Deployment web did not roll out")
	c.read(web)
	c.read(worker)
	if web.Generation != before+1 || worker.Generation != 1 {
		t.Errorf("generations: web %d, worker %d; want web restarted once, and worker not", web.Generation, worker.Generation)
	}
	waitFor(t, "the overlap to be over", func() bool { return time.Now().After(token.Status.Versions[1].Superseded.Add(2 * time.Second)) })
	c.read(token)
	if got := state(token, 1); got != v1alpha1.VersionSuperseded || len(c.secret("ci").Data["token.previous"]) == 0 {
		t.Errorf("version 1 is %s", got)
	}
	k.let(every)
	c.adoption(token, v1alpha1.ReasonAdopted, "Deployment web, Deployment worker are restarted for version 2")
	c.read(worker)
	if worker.Generation != 2 {
		t.Errorf("worker was restarted %d times once web was put right", worker.Generation-1)
	}
}

func TestRestartsWaitForTheirWindow(t *testing.T) {
	c := restartCluster(t, 0)
	c.kubelet()
	web := c.deployment("web", 1, "ci")
	c.start(nil, nil)
	closed := named("web")
	closed.Windows = []v1alpha1.Window{{Schedule: "0 0 29 2 *", Duration: "1m"}}
	token := c.token("ci", restart(closed))
	c.ready(token)
	c.rotate(token)
	c.adoption(token, v1alpha1.ReasonAwaitingWindow, "Deployment web is to be restarted for version 2 in the next of spec.restart.windows")
	c.read(web)
	if web.Generation != 1 {
		t.Error("restarted outside of the windows")
	}
	token.Spec.Restart.Windows = []v1alpha1.Window{{Schedule: "* * * * *", Duration: "1h"}}
	if err := c.client.Update(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	c.adoption(token, v1alpha1.ReasonAdopted, "Deployment web is restarted for version 2")
}

func TestRolloutsAreBoundedOverTheCluster(t *testing.T) {
	c := restartCluster(t, 2)
	k := c.kubelet()
	p := c.start(nil, nil)
	var (
		tokens      []*v1alpha1.ServiceToken
		deployments []*appsv1.Deployment
	)
	for i := range 4 {
		name := fmt.Sprintf("w%d", i)
		deployments = append(deployments, c.deployment(name, 1, name))
		tokens = append(tokens, c.token(name, restart(named(name))))
		c.ready(tokens[i])
	}
	k.let(func(p *corev1.Pod) bool { return !restartedPod(p) })
	for _, token := range tokens {
		c.rotate(token)
	}
	for _, token := range tokens {
		c.adoption(token, v1alpha1.ReasonRestarting, "for version 2")
	}
	waiting := func() []*appsv1.Deployment {
		return slices.DeleteFunc(slices.Clone(deployments), func(d *appsv1.Deployment) bool { c.read(d); return d.Generation > 1 })
	}
	last := tokens[len(tokens)-1] // by then every restart that may begin has
	c.patiently(last, "settled for a second and more", func() bool {
		return len(waiting()) <= 2 && time.Since(last.Status.Versions[0].Activated.Time) > 13*time.Second
	})
	if got := workloadWrites(p.writes); len(got) != 2 {
		t.Fatalf("at once: %s", got)
	}
	k.let(every)
	for i, token := range tokens {
		c.adoption(token, v1alpha1.ReasonAdopted, "is restarted for version 2")
		c.read(deployments[i])
		if deployments[i].Generation != 2 {
			t.Errorf("%s was restarted %d times", token.Name, deployments[i].Generation-1)
		}
	}
}

func TestAToolThatPutsThePodTemplateBackIsNotFought(t *testing.T) {
	c := restartCluster(t, 0)
	k := c.kubelet()
	web := c.deployment("web", 1, "ci")
	manifest := web.DeepCopy()
	p := c.start(nil, nil)
	token := c.token("ci", restart(v1alpha1.Restart{Consumers: true}))
	c.ready(token)
	k.let(none)
	c.rotate(token)
	c.patiently(web, "restarted", func() bool { return web.Generation == 2 })
	// As kubectl replace does, and Argo CD with Replace=true: nothing of ours stays.
	manifest.ResourceVersion = ""
	if err := c.client.Update(t.Context(), manifest); err != nil {
		t.Fatal(err)
	}
	k.let(every)
	c.adoption(token, v1alpha1.ReasonRestartFailed, "Deployment web has had its pod template put back after the restart")
	if got := workloadWrites(p.writes); len(got) != 1 {
		t.Errorf("written to the workload: %s", got)
	}
	// A restart by hand is as good.
	patch := `{"spec":{"template":{"metadata":{"annotations":{"kubectl.kubernetes.io/restartedAt":"` + time.Now().Add(time.Second).Format(time.RFC3339) + `"}}}}}`
	if err := c.client.Patch(t.Context(), web, client.RawPatch(types.StrategicMergePatchType, []byte(patch))); err != nil {
		t.Fatal(err)
	}
	c.adoption(token, v1alpha1.ReasonAdopted, "Deployment web is restarted for version 2")
	if got := workloadWrites(p.writes); len(got) != 1 {
		t.Errorf("written to the workload: %s", got)
	}
}

func TestTurningRestartsOnRestartsNothing(t *testing.T) {
	c := restartCluster(t, 0)
	c.kubelet()
	config := c.restarts
	c.restarts = nil
	c.deployment("web", 1, "ci")
	p := c.start(nil, nil)
	token := c.token("ci", restart(v1alpha1.Restart{Consumers: true}))
	c.ready(token)
	c.rotate(token)
	c.adoption(token, v1alpha1.ReasonRestartDisabled, "--enable-restarts")
	c.eventually(token, "version 1 retired", func() bool { return state(token, 1) == v1alpha1.VersionRetired })
	p.stop()
	c.restarts = config
	p = c.start(nil, nil)
	c.adoption(token, v1alpha1.ReasonAdopted, "restarts begin with the version after 2")
	if got := workloadWrites(p.writes); len(got) > 0 {
		t.Errorf("written to workloads: %s", got)
	}
}

func TestWhatHasNoOldPodsIsNotRestarted(t *testing.T) {
	c := restartCluster(t, 0)
	c.kubelet()
	zero := c.deployment("zero", 0, "ci")
	p := c.start(nil, nil)
	token := c.token("ci", restart(named("zero", "gone")))
	c.ready(token)
	c.rotate(token)
	c.adoption(token, v1alpha1.ReasonAdopted, "no workload runs with a version before 2; Deployment gone is named in spec.restart.workloads and not there")
	c.read(zero)
	if got := workloadWrites(p.writes); len(got) > 0 || zero.Generation != 1 {
		t.Errorf("written to workloads: %s", got)
	}
}

func TestAWorkloadDeletedMeanwhileIsNotWaitedFor(t *testing.T) {
	c := restartCluster(t, 0)
	k := c.kubelet()
	web := c.deployment("web", 1, "ci")
	c.start(nil, nil)
	token := c.token("ci", restart(named("web")))
	c.ready(token)
	k.let(none)
	c.rotate(token)
	c.patiently(web, "restarted", func() bool { return web.Generation == 2 })
	if err := c.client.Delete(t.Context(), web, client.PropagationPolicy(metav1.DeletePropagationBackground)); err != nil {
		t.Fatal(err)
	}
	c.adoption(token, v1alpha1.ReasonAdopted, "Deployment web is named in spec.restart.workloads and not there")
}

func TestPodsThatPeopleDeleteAreWaitedFor(t *testing.T) {
	c := restartCluster(t, 0)
	c.kubelet()
	db := &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: "db"},
		Spec: appsv1.StatefulSetSpec{
			Replicas: ptrTo(int32(2)), Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"run": "db"}}, Template: consumer("db", "ci"),
			UpdateStrategy: appsv1.StatefulSetUpdateStrategy{Type: appsv1.OnDeleteStatefulSetStrategyType},
		},
	}
	if err := c.client.Create(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	c.eventually(db, "rolled out", func() bool { return db.Status.AvailableReplicas == 2 })
	p := c.start(nil, nil)
	token := c.token("ci", restart(v1alpha1.Restart{Consumers: true}))
	c.ready(token)
	c.rotate(token)
	c.adoption(token, v1alpha1.ReasonRestarting, "StatefulSet db leaves the replacement of pods to people")
	if err := c.client.DeleteAllOf(t.Context(), &corev1.Pod{}, client.InNamespace(c.namespace), client.GracePeriodSeconds(0)); err != nil {
		t.Fatal(err)
	}
	c.adoption(token, v1alpha1.ReasonAdopted, "StatefulSet db is restarted for version 2")
	if got := workloadWrites(p.writes); len(got) != 1 {
		t.Errorf("written to workloads: %s", got)
	}
}

// as has the controllers of the cluster run under an account of these rights.
func (c *cluster) as(rules ...rbacv1.PolicyRule) {
	c.t.Helper()
	user := "controller-of-" + c.namespace
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: user}, Rules: rules}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: user}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: user},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: user}},
	}
	for _, o := range []client.Object{role, binding} {
		if err := c.client.Create(c.t.Context(), o); err != nil {
			c.t.Fatal(err)
		}
	}
	c.config = rest.CopyConfig(c.config)
	c.config.Impersonate = rest.ImpersonationConfig{UserName: user}
}

var controllerRules = []rbacv1.PolicyRule{
	{APIGroups: []string{"mintmark.dev", "", "coordination.k8s.io", "events.k8s.io"}, Resources: []string{"*"}, Verbs: []string{"*"}},
}

func workloadRule(verbs ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{APIGroups: []string{"apps"}, Resources: []string{"deployments", "statefulsets", "daemonsets"}, Verbs: verbs}
}

func TestARestartThatIsRefusedIsToldAndTriedAgain(t *testing.T) {
	c := restartCluster(t, 0)
	c.kubelet()
	web := c.deployment("web", 1, "ci")
	c.as(append(controllerRules, workloadRule("get", "list", "watch"))...)
	c.start(nil, nil)
	token := c.token("ci", restart(named("web")))
	c.ready(token)
	c.rotate(token)
	c.adoption(token, v1alpha1.ReasonRestartFailed, `Deployment web could not be restarted: deployments.apps "web" is forbidden`)
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "controller-of-" + c.namespace}}
	c.read(role)
	role.Rules = append(role.Rules, workloadRule("patch"))
	if err := c.client.Update(t.Context(), role); err != nil {
		t.Fatal(err)
	}
	c.adoption(token, v1alpha1.ReasonAdopted, "Deployment web is restarted for version 2")
	c.read(web)
	if web.Generation != 2 {
		t.Errorf("restarted %d times", web.Generation-1)
	}
}

func TestWorkloadsThatMayNotBeListedAreToldOf(t *testing.T) {
	c := restartCluster(t, 0)
	c.as(controllerRules...)
	c.start(nil, nil)
	token := c.token("ci", restart(named("web")))
	c.ready(token)
	c.rotate(token)
	c.adoption(token, v1alpha1.ReasonRestartFailed, "bind the ClusterRole mintmark-controller-restart")
}

func TestWhatARestartWrites(t *testing.T) {
	c := restartCluster(t, 0)
	c.kubelet()
	web := c.deployment("web", 1, "ci")
	web.Spec.Template.Annotations = map[string]string{"mine": "kept"}
	if err := c.client.Update(t.Context(), web); err != nil {
		t.Fatal(err)
	}
	before := web.DeepCopy()
	c.start(nil, nil)
	token := c.token("ci", restart(v1alpha1.Restart{Consumers: true}))
	c.ready(token)
	c.rotate(token)
	c.adoption(token, v1alpha1.ReasonAdopted, "Deployment web is restarted for version 2")
	c.read(web)
	at := web.Spec.Template.Annotations[annotationRestartedAt]
	if t1, err := time.Parse(time.RFC3339, at); err != nil || !t1.After(token.Status.Versions[0].Activated.Time) {
		t.Errorf("restarted at %q, delivered at %s", at, token.Status.Versions[0].Activated)
	}
	if web.Annotations[annotationRestartedAt] != at {
		t.Errorf("the workload's own annotations say %q", web.Annotations[annotationRestartedAt])
	}
	delete(web.Spec.Template.Annotations, annotationRestartedAt)
	if got, want := mustJSON(t, web.Spec), mustJSON(t, before.Spec); string(got) != string(want) {
		t.Errorf("the spec has changed by more than the annotation:\n%s\n%s", want, got)
	}
	for _, f := range web.ManagedFields {
		if f.Manager == restartOwner {
			var fields map[string]any
			if err := json.Unmarshal(f.FieldsV1.GetRawBytes(), &fields); err != nil || len(fields) != 2 || strings.Contains(f.FieldsV1.GetRawString(), "mine") {
				t.Errorf("%s manages %s (%v)", restartOwner, f.FieldsV1.GetRawString(), err)
			}
			return
		}
	}
	t.Errorf("nothing is managed by %s", restartOwner)
}

func TestTwoControllersRestartAWorkloadOnce(t *testing.T) {
	c := restartCluster(t, 0)
	c.kubelet()
	web := c.deployment("web", 2, "ci")
	processes := []*process{c.start(nil, nil), c.start(nil, nil)}
	token := c.token("ci", restart(v1alpha1.Restart{Consumers: true}))
	c.ready(token)
	for version := range int64(2) {
		c.rotate(token)
		c.adoption(token, v1alpha1.ReasonAdopted, fmt.Sprintf("Deployment web is restarted for version %d", version+2))
	}
	c.read(web)
	if web.Generation != 3 {
		t.Errorf("restarted %d times for two rotations: %s and %s", web.Generation-1, workloadWrites(processes[0].writes), workloadWrites(processes[1].writes))
	}
}
