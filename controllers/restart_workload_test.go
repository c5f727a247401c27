package controllers

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/lifecycle"
)

func TestConsumersAreThoseThatDoNotSeeANewValue(t *testing.T) {
	for sentence, test := range map[string]struct {
		pod  string
		uses bool
	}{
		"nothing of it": {`containers: [{name: a, image: a}]`, false},
		"an environment variable": {
			`containers: [{name: a, env: [{name: T, valueFrom: {secretKeyRef: {name: ci, key: token}}}]}]`, true},
		"an environment variable of another Secret": {
			`containers: [{name: a, env: [{name: T, valueFrom: {secretKeyRef: {name: ci2, key: token}}}]}]`, false},
		"an environment variable of a ConfigMap of the name": {
			`containers: [{name: a, env: [{name: T, valueFrom: {configMapKeyRef: {name: ci, key: token}}}]}]`, false},
		"the second variable of the second container": {
			`containers: [{name: a}, {name: b, env: [{name: X, value: y}, {name: T, valueFrom: {secretKeyRef: {name: ci, key: token}}}]}]`, true},
		"an init container": {
			`{containers: [{name: a}], initContainers: [{name: i, env: [{name: T, valueFrom: {secretKeyRef: {name: ci, key: token}}}]}]}`, true},
		"a sidecar's whole environment": {
			`{containers: [{name: a}], initContainers: [{name: s, restartPolicy: Always, envFrom: [{secretRef: {name: ci}}]}]}`, true},
		"the whole environment":                {`containers: [{name: a, envFrom: [{prefix: P_, secretRef: {name: ci, optional: true}}]}]`, true},
		"the whole environment of a ConfigMap": {`containers: [{name: a, envFrom: [{configMapRef: {name: ci}}]}]`, false},
		"a volume mounted whole": {
			`{volumes: [{name: v, secret: {secretName: ci}}], containers: [{name: a, volumeMounts: [{name: v, mountPath: /v}]}]}`, false},
		"a volume mounted by subPath": {
			`{volumes: [{name: v, secret: {secretName: ci}}], containers: [{name: a, volumeMounts: [{name: v, mountPath: /v/t, subPath: token}]}]}`, true},
		"a volume mounted by subPathExpr": {
			`{volumes: [{name: v, secret: {secretName: ci}}], containers: [{name: a, volumeMounts: [{name: v, mountPath: /v/t, subPathExpr: $(X)}]}]}`, true},
		"another volume mounted by subPath": {
			`{volumes: [{name: v, secret: {secretName: ci}}, {name: w, emptyDir: {}}], containers: [{name: a, volumeMounts: [{name: v, mountPath: /v}, {name: w, mountPath: /w, subPath: x}]}]}`, false},
		"a volume nobody mounts": {`{volumes: [{name: v, secret: {secretName: ci}}], containers: [{name: a}]}`, false},
		"one source of a projected volume, mounted by subPath": {
			`{volumes: [{name: v, projected: {sources: [{configMap: {name: ci}}, {secret: {name: ci}}]}}], containers: [{name: a, volumeMounts: [{name: v, mountPath: /t, subPath: t}]}]}`, true},
		"a projected volume mounted whole": {
			`{volumes: [{name: v, projected: {sources: [{secret: {name: ci}}]}}], containers: [{name: a, volumeMounts: [{name: v, mountPath: /t}]}]}`, false},
		"a projected volume of a ConfigMap of the name": {
			`{volumes: [{name: v, projected: {sources: [{configMap: {name: ci}}]}}], containers: [{name: a, volumeMounts: [{name: v, mountPath: /t, subPath: t}]}]}`, false},
		"credentials of the registry": {`{imagePullSecrets: [{name: ci}], containers: [{name: a}]}`, false},
	} {
		t.Run(sentence, func(t *testing.T) {
			template := corev1.PodTemplateSpec{}
			if err := yaml.UnmarshalStrict([]byte(test.pod), &template.Spec); err != nil {
				t.Fatal(err)
			}
			if got := consumes(&template, "ci"); got != test.uses {
				t.Errorf("consumes: %t", got)
			}
			kept, err := slim(&appsv1.DaemonSet{Spec: appsv1.DaemonSetSpec{Template: *template.DeepCopy()}})
			if err != nil {
				t.Fatal(err)
			}
			if got := consumes(podTemplate(kept.(client.Object)), "ci"); got != test.uses {
				t.Errorf("as it is cached, consumes: %t", got)
			}
		})
	}
}

func TestWhatARestartChooses(t *testing.T) {
	deployment := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "web", Labels: map[string]string{"app": "shop"}}}
	deployment.Spec.Template.Spec.Containers = []corev1.Container{{EnvFrom: []corev1.EnvFromSource{
		{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "ci"}}},
	}}}
	for sentence, test := range map[string]struct {
		restart v1alpha1.Restart
		chosen  bool
	}{
		"nothing":                        {v1alpha1.Restart{}, false},
		"by name":                        {v1alpha1.Restart{Workloads: []v1alpha1.WorkloadReference{{Kind: "Deployment", Name: "web"}}}, true},
		"another kind of the name":       {v1alpha1.Restart{Workloads: []v1alpha1.WorkloadReference{{Kind: "DaemonSet", Name: "web"}}}, false},
		"by label":                       {v1alpha1.Restart{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "shop"}}}, true},
		"by another label":               {v1alpha1.Restart{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "x"}}}, false},
		"a selector of everything":       {v1alpha1.Restart{Selector: &metav1.LabelSelector{}}, false},
		"a selector that says nonsense":  {v1alpha1.Restart{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"!": "!"}}}, false},
		"as a consumer":                  {v1alpha1.Restart{Consumers: true}, true},
		"by any of them where one holds": {v1alpha1.Restart{Consumers: true, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "x"}}}, true},
	} {
		t.Run(sentence, func(t *testing.T) {
			if got := newChooser(&test.restart, "ci").chooses(deployment); got != test.chosen {
				t.Errorf("chosen: %t", got)
			}
		})
	}
}

func TestTheCacheKeepsLittleOfAWorkload(t *testing.T) {
	deployment := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "n", Name: "web", UID: "u", ResourceVersion: "7", Generation: 3, Labels: map[string]string{"app": "shop"},
			Annotations:   map[string]string{"kubectl.kubernetes.io/last-applied-configuration": "long", annotationRestartedAt: "2026-01-01T00:00:00Z"},
			ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubectl"}},
		},
		Spec: appsv1.DeploymentSpec{Paused: true, Template: corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"a": "b"}, Annotations: map[string]string{
				annotationRestartedAt: "2026-01-01T00:00:00Z", annotationKubectlRestartedAt: "2026-01-02T00:00:00Z", "other": "x",
			}},
			Spec: corev1.PodSpec{
				Volumes: []corev1.Volume{{Name: "w"}}, Affinity: &corev1.Affinity{},
				Containers: []corev1.Container{{Name: "a", Image: "a", Args: []string{"x"}, Env: []corev1.EnvVar{{Name: "A", Value: "b"}}}},
			},
		}},
		Status: appsv1.DeploymentStatus{Replicas: 1, Conditions: []appsv1.DeploymentCondition{{Type: appsv1.DeploymentAvailable}, {Type: appsv1.DeploymentProgressing}}},
	}
	want := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "n", Name: "web", UID: "u", ResourceVersion: "7", Generation: 3, Labels: map[string]string{"app": "shop"},
			Annotations: map[string]string{annotationRestartedAt: "2026-01-01T00:00:00Z"},
		},
		Spec: appsv1.DeploymentSpec{Paused: true, Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{
			annotationRestartedAt: "2026-01-01T00:00:00Z", annotationKubectlRestartedAt: "2026-01-02T00:00:00Z",
		}}}},
		Status: appsv1.DeploymentStatus{Replicas: 1, Conditions: []appsv1.DeploymentCondition{{Type: appsv1.DeploymentProgressing}}},
	}
	got, err := slim(deployment)
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("-want +got:\n%s (%v)", diff, err)
	}
	if at := restartedBy(deployment, time.Date(2026, 1, 3, 0, 0, 0, 0, time.UTC)); !at.Equal(time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("restarted at %s, want the later of the two", at)
	}
}

func TestARestartOfKubectlCountsInItsOwnTimeZone(t *testing.T) {
	for text, want := range map[string]time.Time{
		"2026-01-02T03:00:00+02:00": time.Date(2026, 1, 2, 1, 0, 0, 0, time.UTC),
		"yesterday":                 {},
		"":                          {},
	} {
		if got := restartedAt(map[string]string{"a": text}, "a"); !got.Equal(want) {
			t.Errorf("%q is read as %s, want %s", text, got, want)
		}
	}
}

func TestHowFarARolloutIs(t *testing.T) {
	const (
		complete    = lifecycle.RolloutComplete
		idle        = lifecycle.RolloutIdle
		unavailable = lifecycle.RolloutUnavailable
		rolling     = lifecycle.RolloutRolling
		failed      = lifecycle.RolloutFailed
		paused      = lifecycle.RolloutPaused
		manual      = lifecycle.RolloutManual
	)
	for sentence, test := range map[string]struct {
		workload client.Object
		text     string
		want     lifecycle.Rollout
	}{
		"a Deployment all of whose pods are up to date": {&appsv1.Deployment{},
			`{metadata: {generation: 2}, spec: {replicas: 3}, status: {observedGeneration: 2, replicas: 3, updatedReplicas: 3, availableReplicas: 3}}`, complete},
		"a Deployment the controller has yet to look at": {&appsv1.Deployment{},
			`{metadata: {generation: 3}, spec: {replicas: 3}, status: {observedGeneration: 2, replicas: 3, updatedReplicas: 3, availableReplicas: 3}}`, rolling},
		"a Deployment with a pod too few": {&appsv1.Deployment{},
			`{spec: {replicas: 3}, status: {replicas: 3, updatedReplicas: 2, availableReplicas: 3}}`, rolling},
		"a Deployment with an old pod too many": {&appsv1.Deployment{},
			`{spec: {replicas: 3}, status: {replicas: 4, updatedReplicas: 3, availableReplicas: 4}}`, rolling},
		"a Deployment whose old pods are ending": {&appsv1.Deployment{},
			`{spec: {replicas: 3}, status: {replicas: 3, updatedReplicas: 3, availableReplicas: 3, terminatingReplicas: 1}}`, rolling},
		"a Deployment that waits for readiness": {&appsv1.Deployment{},
			`{spec: {replicas: 3}, status: {replicas: 3, updatedReplicas: 3, availableReplicas: 1}}`, unavailable},
		"a Deployment past its deadline": {&appsv1.Deployment{},
			`{spec: {replicas: 3}, status: {replicas: 4, updatedReplicas: 1, availableReplicas: 3, conditions: [{type: Progressing, status: "False", reason: ProgressDeadlineExceeded}]}}`, failed},
		"a Deployment past its deadline, changed since": {&appsv1.Deployment{},
			`{metadata: {generation: 2}, spec: {replicas: 3}, status: {observedGeneration: 1, replicas: 4, updatedReplicas: 1, availableReplicas: 3, conditions: [{type: Progressing, status: "False", reason: ProgressDeadlineExceeded}]}}`, rolling},
		"a paused Deployment":                    {&appsv1.Deployment{}, `{spec: {replicas: 3, paused: true}, status: {replicas: 3, updatedReplicas: 3, availableReplicas: 3}}`, paused},
		"a Deployment scaled to zero":            {&appsv1.Deployment{}, `{spec: {replicas: 0}}`, idle},
		"a paused Deployment scaled to zero":     {&appsv1.Deployment{}, `{spec: {replicas: 0, paused: true}}`, idle},
		"a Deployment that is scaled to zero":    {&appsv1.Deployment{}, `{spec: {replicas: 0}, status: {replicas: 1, updatedReplicas: 1}}`, unavailable},
		"a Deployment whose last pod is ending":  {&appsv1.Deployment{}, `{spec: {replicas: 0}, status: {terminatingReplicas: 1}}`, rolling},
		"a Deployment that says no replicas":     {&appsv1.Deployment{}, `{status: {replicas: 1, updatedReplicas: 1, availableReplicas: 1}}`, complete},
		"a Deployment that an HPA has scaled up": {&appsv1.Deployment{}, `{spec: {replicas: 5}, status: {replicas: 3, updatedReplicas: 3, availableReplicas: 3}}`, rolling},

		"a StatefulSet all of whose pods are up to date": {&appsv1.StatefulSet{},
			`{spec: {replicas: 3}, status: {replicas: 3, updatedReplicas: 3, availableReplicas: 3}}`, complete},
		"a StatefulSet the controller has yet to look at": {&appsv1.StatefulSet{},
			`{metadata: {generation: 1}, spec: {replicas: 3}, status: {replicas: 3, updatedReplicas: 3, availableReplicas: 3}}`, rolling},
		"a StatefulSet with an old pod":          {&appsv1.StatefulSet{}, `{spec: {replicas: 3}, status: {replicas: 3, updatedReplicas: 2, availableReplicas: 3}}`, rolling},
		"a StatefulSet that waits for readiness": {&appsv1.StatefulSet{}, `{spec: {replicas: 3}, status: {replicas: 3, updatedReplicas: 3, availableReplicas: 2}}`, unavailable},
		"a StatefulSet scaled to zero":           {&appsv1.StatefulSet{}, `{spec: {replicas: 0}}`, idle},
		"a StatefulSet above its partition": {&appsv1.StatefulSet{},
			`{spec: {replicas: 3, updateStrategy: {type: RollingUpdate, rollingUpdate: {partition: 1}}}, status: {replicas: 3, updatedReplicas: 1, availableReplicas: 3}}`, rolling},
		"a StatefulSet down to its partition": {&appsv1.StatefulSet{},
			`{spec: {replicas: 3, updateStrategy: {type: RollingUpdate, rollingUpdate: {partition: 1}}}, status: {replicas: 3, updatedReplicas: 2, availableReplicas: 3}}`, manual},
		"a StatefulSet all of which is below the partition": {&appsv1.StatefulSet{},
			`{spec: {replicas: 3, updateStrategy: {type: RollingUpdate, rollingUpdate: {partition: 7}}}, status: {replicas: 3, updatedReplicas: 0, availableReplicas: 3}}`, manual},
		"a StatefulSet with a partition whose pods are all up to date": {&appsv1.StatefulSet{},
			`{spec: {replicas: 3, updateStrategy: {type: RollingUpdate, rollingUpdate: {partition: 1}}}, status: {replicas: 3, updatedReplicas: 3, availableReplicas: 3}}`, complete},
		"a StatefulSet whose pods are for people to delete": {&appsv1.StatefulSet{},
			`{spec: {replicas: 3, updateStrategy: {type: OnDelete}}, status: {replicas: 3, updatedReplicas: 1, availableReplicas: 3}}`, manual},
		"a StatefulSet whose pods people have deleted": {&appsv1.StatefulSet{},
			`{spec: {replicas: 3, updateStrategy: {type: OnDelete}}, status: {replicas: 3, updatedReplicas: 3, availableReplicas: 3}}`, complete},

		"a DaemonSet all of whose pods are up to date": {&appsv1.DaemonSet{},
			`{status: {desiredNumberScheduled: 4, currentNumberScheduled: 4, updatedNumberScheduled: 4, numberAvailable: 4}}`, complete},
		"a DaemonSet the controller has yet to look at": {&appsv1.DaemonSet{},
			`{metadata: {generation: 1}, status: {desiredNumberScheduled: 4, currentNumberScheduled: 4, updatedNumberScheduled: 4, numberAvailable: 4}}`, rolling},
		"a DaemonSet with an old pod": {&appsv1.DaemonSet{},
			`{status: {desiredNumberScheduled: 4, currentNumberScheduled: 4, updatedNumberScheduled: 3, numberAvailable: 4}}`, rolling},
		"a DaemonSet that waits for readiness": {&appsv1.DaemonSet{},
			`{status: {desiredNumberScheduled: 4, currentNumberScheduled: 4, updatedNumberScheduled: 4, numberAvailable: 3}}`, unavailable},
		"a DaemonSet without a node": {&appsv1.DaemonSet{}, `{}`, idle},
		"a DaemonSet whose pods are for people to delete": {&appsv1.DaemonSet{},
			`{spec: {updateStrategy: {type: OnDelete}}, status: {desiredNumberScheduled: 4, currentNumberScheduled: 4, updatedNumberScheduled: 1, numberAvailable: 4}}`, manual},
	} {
		t.Run(sentence, func(t *testing.T) {
			if err := yaml.UnmarshalStrict([]byte(test.text), test.workload); err != nil {
				t.Fatal(err)
			}
			if got := rolloutOf(test.workload); got != test.want {
				t.Errorf("rollout %s, want %s", rolloutText(got), rolloutText(test.want))
			}
			kept, err := slim(test.workload)
			if err != nil {
				t.Fatal(err)
			}
			if got := rolloutOf(kept.(client.Object)); got != test.want {
				t.Errorf("as it is cached: %s, want %s", rolloutText(got), rolloutText(test.want))
			}
		})
	}
}

func rolloutText(r lifecycle.Rollout) string {
	return fmt.Sprint([]string{"complete", "idle", "unavailable", "rolling", "failed", "paused", "manual"}[r])
}
