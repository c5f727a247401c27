package controllers

import (
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/lifecycle"
)

const (
	// annotationRestartedAt is when a workload was restarted (RFC 3339). On the pod
	// template it is what restarts it; on the workload itself it tells of a restart
	// even when the pod template has been put back.
	annotationRestartedAt = "mintmark.dev/restarted-at"
	// annotationKubectlRestartedAt is what kubectl rollout restart leaves in the pod
	// template, and other tools in its place.
	annotationKubectlRestartedAt = "kubectl.kubernetes.io/restartedAt"
)

// Kinds of workload.
const (
	kindDeployment  = "Deployment"
	kindStatefulSet = "StatefulSet"
	kindDaemonSet   = "DaemonSet"
)

// workloadKind is how the three kinds are dealt with alike.
type workloadKind struct {
	kind    string
	new     func() client.Object
	newList func() client.ObjectList
	items   func(client.ObjectList) []client.Object
}

var workloadKinds = []workloadKind{
	{kindDeployment, func() client.Object { return &appsv1.Deployment{} }, func() client.ObjectList { return &appsv1.DeploymentList{} },
		func(l client.ObjectList) []client.Object { return objects(l.(*appsv1.DeploymentList).Items) }},
	{kindStatefulSet, func() client.Object { return &appsv1.StatefulSet{} }, func() client.ObjectList { return &appsv1.StatefulSetList{} },
		func(l client.ObjectList) []client.Object { return objects(l.(*appsv1.StatefulSetList).Items) }},
	{kindDaemonSet, func() client.Object { return &appsv1.DaemonSet{} }, func() client.ObjectList { return &appsv1.DaemonSetList{} },
		func(l client.ObjectList) []client.Object { return objects(l.(*appsv1.DaemonSetList).Items) }},
}

func objects[T any, P interface {
	*T
	client.Object
}](items []T) []client.Object {
	out := make([]client.Object, len(items))
	for i := range items {
		out[i] = P(&items[i])
	}
	return out
}

// newWorkload makes an empty workload of a kind; nil for one that is none.
func newWorkload(kind string) client.Object {
	for _, k := range workloadKinds {
		if k.kind == kind {
			return k.new()
		}
	}
	return nil
}

func kindOf(o client.Object) string {
	switch o.(type) {
	case *appsv1.Deployment:
		return kindDeployment
	case *appsv1.StatefulSet:
		return kindStatefulSet
	case *appsv1.DaemonSet:
		return kindDaemonSet
	default:
		return ""
	}
}

func workloadName(o client.Object) lifecycle.WorkloadName {
	return lifecycle.WorkloadName{Namespace: o.GetNamespace(), Kind: kindOf(o), Name: o.GetName()}
}

// podTemplate points into the workload.
func podTemplate(o client.Object) *corev1.PodTemplateSpec {
	switch w := o.(type) {
	case *appsv1.Deployment:
		return &w.Spec.Template
	case *appsv1.StatefulSet:
		return &w.Spec.Template
	case *appsv1.DaemonSet:
		return &w.Spec.Template
	default:
		return &corev1.PodTemplateSpec{}
	}
}

// chooser tells which workloads spec.restart chooses.
type chooser struct {
	named    []v1alpha1.WorkloadReference
	selector labels.Selector
	secret   string // whose consumers are chosen; empty for none
}

func newChooser(r *v1alpha1.Restart, secret string) chooser {
	c := chooser{named: r.Workloads, selector: labels.Nothing()}
	if r.Selector != nil {
		if selector, err := metav1.LabelSelectorAsSelector(r.Selector); err == nil && !selector.Empty() {
			c.selector = selector // Validate has refused any other
		}
	}
	if r.Consumers {
		c.secret = secret
	}
	return c
}

func (c chooser) chooses(o client.Object) bool {
	return slices.Contains(c.named, v1alpha1.WorkloadReference{Kind: kindOf(o), Name: o.GetName()}) ||
		c.selector.Matches(labels.Set(o.GetLabels())) || (c.secret != "" && consumes(podTemplate(o), c.secret))
}

// consumes tells whether pods of the template use a Secret in a way that does
// not show them a new value by itself: in an environment variable, which is set
// once, or mounted by subPath, which the kubelet does not update.
func consumes(template *corev1.PodTemplateSpec, secret string) bool {
	var volumes []string
	for i := range template.Spec.Volumes {
		if v := &template.Spec.Volumes[i]; carries(v, secret) {
			volumes = append(volumes, v.Name)
		}
	}
	uses := func(c corev1.Container) bool {
		return slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool {
			return e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil && e.ValueFrom.SecretKeyRef.Name == secret
		}) || slices.ContainsFunc(c.EnvFrom, func(e corev1.EnvFromSource) bool {
			return e.SecretRef != nil && e.SecretRef.Name == secret
		}) || slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool {
			return (m.SubPath != "" || m.SubPathExpr != "") && slices.Contains(volumes, m.Name)
		})
	}
	return slices.ContainsFunc(template.Spec.Containers, uses) || slices.ContainsFunc(template.Spec.InitContainers, uses)
}

// carries tells whether a volume has files of a Secret.
func carries(v *corev1.Volume, secret string) bool {
	if v.Secret != nil {
		return v.Secret.SecretName == secret
	}
	return v.Projected != nil && slices.ContainsFunc(v.Projected.Sources, func(p corev1.VolumeProjection) bool {
		return p.Secret != nil && p.Secret.Name == secret
	})
}

// slim leaves of a workload what is looked at here, so that the cache of a
// cluster of large pod templates stays small.
func slim(o any) (any, error) {
	w, ok := o.(client.Object)
	if !ok || kindOf(w) == "" {
		return o, nil // a tombstone
	}
	w.SetManagedFields(nil)
	w.SetOwnerReferences(nil)
	w.SetFinalizers(nil)
	w.SetAnnotations(only(w.GetAnnotations(), annotationRestartedAt))
	template := podTemplate(w)
	*template = corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Annotations: only(template.Annotations, annotationRestartedAt, annotationKubectlRestartedAt)},
		Spec:       slimPod(&template.Spec),
	}
	switch w := w.(type) {
	case *appsv1.Deployment:
		w.Spec.Selector = nil
		w.Status.Conditions = slices.DeleteFunc(w.Status.Conditions, func(c appsv1.DeploymentCondition) bool { return c.Type != appsv1.DeploymentProgressing })
	case *appsv1.StatefulSet:
		w.Spec.Selector, w.Spec.VolumeClaimTemplates, w.Status.Conditions = nil, nil, nil
	case *appsv1.DaemonSet:
		w.Spec.Selector, w.Status.Conditions = nil, nil
	}
	return w, nil
}

func slimPod(pod *corev1.PodSpec) corev1.PodSpec {
	var kept corev1.PodSpec
	for _, v := range pod.Volumes {
		if v.Secret != nil {
			kept.Volumes = append(kept.Volumes, corev1.Volume{Name: v.Name, VolumeSource: corev1.VolumeSource{
				Secret: &corev1.SecretVolumeSource{SecretName: v.Secret.SecretName},
			}})
		} else if v.Projected != nil {
			var secrets []corev1.VolumeProjection
			for _, p := range v.Projected.Sources {
				if p.Secret != nil {
					secrets = append(secrets, corev1.VolumeProjection{Secret: &corev1.SecretProjection{LocalObjectReference: p.Secret.LocalObjectReference}})
				}
			}
			kept.Volumes = append(kept.Volumes, corev1.Volume{Name: v.Name, VolumeSource: corev1.VolumeSource{
				Projected: &corev1.ProjectedVolumeSource{Sources: secrets},
			}})
		}
	}
	kept.Containers, kept.InitContainers = slimContainers(pod.Containers), slimContainers(pod.InitContainers)
	return kept
}

func slimContainers(containers []corev1.Container) []corev1.Container {
	var kept []corev1.Container
	for _, c := range containers {
		var k corev1.Container
		for _, e := range c.Env {
			if e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil {
				k.Env = append(k.Env, corev1.EnvVar{ValueFrom: &corev1.EnvVarSource{
					SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: e.ValueFrom.SecretKeyRef.LocalObjectReference},
				}})
			}
		}
		for _, e := range c.EnvFrom {
			if e.SecretRef != nil {
				k.EnvFrom = append(k.EnvFrom, corev1.EnvFromSource{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: e.SecretRef.LocalObjectReference}})
			}
		}
		for _, m := range c.VolumeMounts {
			if m.SubPath != "" || m.SubPathExpr != "" {
				k.VolumeMounts = append(k.VolumeMounts, corev1.VolumeMount{Name: m.Name, SubPath: m.SubPath, SubPathExpr: m.SubPathExpr})
			}
		}
		if len(k.Env)+len(k.EnvFrom)+len(k.VolumeMounts) > 0 {
			kept = append(kept, k)
		}
	}
	return kept
}

func only(all map[string]string, keys ...string) map[string]string {
	var kept map[string]string
	for _, key := range keys {
		if value, ok := all[key]; ok {
			if kept == nil {
				kept = map[string]string{}
			}
			kept[key] = value
		}
	}
	return kept
}

// restartedAt is the latest restart an object's annotations tell of, zero where
// there is none or it cannot be read.
func restartedAt(annotations map[string]string, keys ...string) time.Time {
	var latest time.Time
	for _, key := range keys {
		if t, err := time.Parse(time.RFC3339, annotations[key]); err == nil && t.After(latest) {
			latest = t
		}
	}
	return latest.UTC()
}

// restartedBy is the latest restart the pod template tells of, whoever made it. One
// by others that lies in the future is not believed: it would pass for a restart
// after every delivery until then.
func restartedBy(o client.Object, now time.Time) time.Time {
	annotations := podTemplate(o).Annotations
	ours, others := restartedAt(annotations, annotationRestartedAt), restartedAt(annotations, annotationKubectlRestartedAt)
	if others.After(ours) && !others.After(now.Add(maxClockSkew)) {
		return others
	}
	return ours
}

// rolloutOf tells how far the pods of a workload are those of its template.
func rolloutOf(o client.Object) lifecycle.Rollout {
	switch w := o.(type) {
	case *appsv1.Deployment:
		return deploymentRollout(w)
	case *appsv1.StatefulSet:
		return statefulSetRollout(w)
	case *appsv1.DaemonSet:
		return daemonSetRollout(w)
	default:
		return lifecycle.RolloutIdle
	}
}

func deploymentRollout(d *appsv1.Deployment) lifecycle.Rollout {
	wanted, status := replicas(d.Spec.Replicas), &d.Status
	ending := status.TerminatingReplicas != nil && *status.TerminatingReplicas > 0
	switch {
	case wanted == 0 && status.Replicas == 0 && !ending && status.ObservedGeneration >= d.Generation:
		return lifecycle.RolloutIdle
	case d.Spec.Paused:
		return lifecycle.RolloutPaused
	case status.ObservedGeneration < d.Generation:
		return lifecycle.RolloutRolling
	case slices.ContainsFunc(status.Conditions, func(c appsv1.DeploymentCondition) bool {
		return c.Type == appsv1.DeploymentProgressing && c.Status == corev1.ConditionFalse && c.Reason == "ProgressDeadlineExceeded"
	}):
		return lifecycle.RolloutFailed
	case status.UpdatedReplicas < wanted || status.Replicas > status.UpdatedReplicas || ending:
		return lifecycle.RolloutRolling
	case status.AvailableReplicas < status.UpdatedReplicas:
		return lifecycle.RolloutUnavailable
	default:
		return lifecycle.RolloutComplete
	}
}

func statefulSetRollout(s *appsv1.StatefulSet) lifecycle.Rollout {
	wanted, status := replicas(s.Spec.Replicas), &s.Status
	switch {
	case status.ObservedGeneration < s.Generation:
		return lifecycle.RolloutRolling
	case wanted == 0 && status.Replicas == 0:
		return lifecycle.RolloutIdle
	case status.UpdatedReplicas < status.Replicas && byHand(&s.Spec.UpdateStrategy, status.UpdatedReplicas, wanted):
		return lifecycle.RolloutManual
	case status.UpdatedReplicas < wanted || status.Replicas > status.UpdatedReplicas:
		return lifecycle.RolloutRolling
	case status.AvailableReplicas < wanted:
		return lifecycle.RolloutUnavailable
	default:
		return lifecycle.RolloutComplete
	}
}

// byHand tells whether the pods that are left are for people to replace: all are
// with OnDelete, and below the partition those of RollingUpdate.
func byHand(s *appsv1.StatefulSetUpdateStrategy, updated, wanted int32) bool {
	if s.Type == appsv1.OnDeleteStatefulSetStrategyType {
		return true
	}
	return s.RollingUpdate != nil && s.RollingUpdate.Partition != nil && *s.RollingUpdate.Partition > 0 &&
		updated >= wanted-*s.RollingUpdate.Partition
}

func daemonSetRollout(d *appsv1.DaemonSet) lifecycle.Rollout {
	status := &d.Status
	switch {
	case status.ObservedGeneration < d.Generation:
		return lifecycle.RolloutRolling
	case status.DesiredNumberScheduled == 0 && status.CurrentNumberScheduled == 0:
		return lifecycle.RolloutIdle
	case status.UpdatedNumberScheduled < status.CurrentNumberScheduled && d.Spec.UpdateStrategy.Type == appsv1.OnDeleteDaemonSetStrategyType:
		return lifecycle.RolloutManual
	case status.UpdatedNumberScheduled < status.DesiredNumberScheduled:
		return lifecycle.RolloutRolling
	case status.NumberAvailable < status.DesiredNumberScheduled:
		return lifecycle.RolloutUnavailable
	default:
		return lifecycle.RolloutComplete
	}
}

// replicas are one where nothing is said.
func replicas(declared *int32) int32 {
	if declared == nil {
		return 1
	}
	return *declared
}
