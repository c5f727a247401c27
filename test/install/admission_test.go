package install_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// With the webhooks gone the policy still holds: it is the API server's own.
func TestOnlyTheControllerWritesStatus(t *testing.T) {
	plane := installation(t)
	api, admin := clients(t, plane.Config)
	withoutWebhooks(t)
	newNamespace(t, api, "status", nil)

	cfg, err := plane.ServiceAccountConfig(t.Context(), namespace, "mintmark-controller")
	if err != nil {
		t.Fatal(err)
	}
	_, controller := clients(t, cfg)

	for name, object := range map[string]client.Object{
		"servicetokens": &v1alpha1.ServiceToken{ObjectMeta: metav1.ObjectMeta{Name: "guarded", Namespace: "status"}},
		"apikeys":       &v1alpha1.APIKey{ObjectMeta: metav1.ObjectMeta{Name: "guarded", Namespace: "status"}},
		"revocations": &v1alpha1.Revocation{
			ObjectMeta: metav1.ObjectMeta{Name: "guarded"},
			Spec:       v1alpha1.RevocationSpec{Reason: "a test", Namespaces: []string{"nobody-is-here"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if err := admin.Create(t.Context(), object); err != nil {
				t.Fatal(err)
			}
			// The API server takes a moment to obey a policy it has just been given.
			var refusal error
			eventually(t, 30*time.Second, func() error {
				refusal = admin.Status().Patch(t.Context(), withStatus(object), client.Merge)
				if refusal == nil {
					return errors.New("a cluster admin could write status")
				}
				return nil
			})
			if !apierrors.IsForbidden(refusal) {
				t.Errorf("a cluster admin is refused by something else than the policy: %v", refusal)
			}
			for _, say := range []string{"only system:serviceaccount:mintmark-system:mintmark-controller writes the status of " + name, "change the spec"} {
				if !strings.Contains(refusal.Error(), say) {
					t.Errorf("the message does not say %q: %v", say, refusal)
				}
			}
			if err := controller.Status().Patch(t.Context(), withStatus(object), client.Merge); err != nil {
				t.Errorf("the controller cannot write status: %v", err)
			}
		})
	}
}

// withStatus is the object with some status that the schema allows.
func withStatus(object client.Object) client.Object {
	changed := object.DeepCopyObject().(client.Object)
	changed.SetResourceVersion("")
	changed.SetManagedFields(nil)
	condition := metav1.Condition{
		Type: "Tested", Status: metav1.ConditionTrue, Reason: "Tested", LastTransitionTime: metav1.Now(),
	}
	switch o := changed.(type) {
	case *v1alpha1.ServiceToken:
		o.Status.Conditions = []metav1.Condition{condition}
	case *v1alpha1.APIKey:
		o.Status.Conditions = []metav1.Condition{condition}
	case *v1alpha1.Revocation:
		o.Status.Conditions = []metav1.Condition{condition}
	}
	return changed
}

func TestServerWritesOnlyLeasesOfServers(t *testing.T) {
	plane := installation(t)
	_, admin := clients(t, plane.Config)
	cfg, err := plane.ServiceAccountConfig(t.Context(), namespace, "mintmark-server")
	if err != nil {
		t.Fatal(err)
	}
	_, server := clients(t, cfg)
	lease := func(name string, labels map[string]string) *coordinationv1.Lease {
		return &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: labels}}
	}
	servers := map[string]string{v1alpha1.LabelServer: "true"}

	heartbeat := lease("mintmark-heartbeat", nil)
	if err := admin.Create(t.Context(), heartbeat); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, func() error {
		if err := server.Create(t.Context(), lease("unlabelled", nil), client.DryRunAll); !apierrors.IsForbidden(err) {
			return errors.Join(errors.New("a server could make a Lease that is no server's"), err)
		}
		return nil
	})
	if err := server.Delete(t.Context(), heartbeat.DeepCopy()); !apierrors.IsForbidden(err) {
		t.Errorf("a server could delete the heartbeat: %v", err)
	}
	forged := heartbeat.DeepCopy()
	forged.Spec.RenewTime = &metav1.MicroTime{Time: time.Now()}
	if err := server.Update(t.Context(), forged); !apierrors.IsForbidden(err) {
		t.Errorf("a server could renew the heartbeat: %v", err)
	}
	forged.Labels = servers
	if err := server.Update(t.Context(), forged); !apierrors.IsForbidden(err) {
		t.Errorf("a server could make the heartbeat a Lease of its own: %v", err)
	}
	if err := admin.Delete(t.Context(), heartbeat); err != nil {
		t.Errorf("others cannot write Leases as before: %v", err)
	}
	mine := lease("mintmark-server-0", servers)
	if err := server.Create(t.Context(), mine); err != nil {
		t.Fatalf("a server cannot make its Lease: %v", err)
	}
	mine.Spec.RenewTime = &metav1.MicroTime{Time: time.Now()}
	if err := server.Update(t.Context(), mine); err != nil {
		t.Errorf("a server cannot renew its Lease: %v", err)
	}
	if err := server.Delete(t.Context(), mine); err != nil {
		t.Errorf("a server cannot delete its Lease: %v", err)
	}
}

// The pods of every Deployment and StatefulSet, as rendered, with every option that changes them.
func TestPodsPassTheRestrictedProfile(t *testing.T) {
	plane := installation(t)
	api, _ := clients(t, plane.Config)
	newNamespace(t, api, "restricted", map[string]string{
		"pod-security.kubernetes.io/enforce":         "restricted",
		"pod-security.kubernetes.io/enforce-version": "latest",
	})
	account := &corev1.ServiceAccount{}
	for _, name := range []string{"mintmark-controller", "mintmark-server"} {
		account.Name = name
		if _, err := api.CoreV1().ServiceAccounts("restricted").Create(t.Context(), account.DeepCopy(), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	dryRun := metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}

	forbidden := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "root"},
		Spec:       corev1.PodSpec{ServiceAccountName: "mintmark-server", Containers: []corev1.Container{{Name: "root", Image: "mintmark"}}},
	}
	if _, err := api.CoreV1().Pods("restricted").Create(t.Context(), forbidden, dryRun); !apierrors.IsForbidden(err) {
		t.Fatalf("the profile is not enforced here: %v", err)
	}
	for name, objects := range map[string]manifests{
		"kustomize":                built(t, "config/default"),
		"chart":                    rendered(t, helm),
		"chart with a certificate": rendered(t, helm, "--set", "certificates.public.existingSecret=edge"),
		"chart with PostgreSQL":    rendered(t, helm, "--set", "database.existingSecret=db"),
		"chart with SQLite":        rendered(t, helm, "--set", "database.sqlite.enabled=true", "--set", "server.replicas=1"),
		"chart with volumes":       rendered(t, helm, "--set", "database.existingSecret=db", "--set", "audit.spool.persistence.enabled=true"),
	} {
		for k, o := range objects.only("Deployment", "StatefulSet") {
			t.Run(name+" "+o.GetName(), func(t *testing.T) {
				pod := podOf(t, o)
				if _, err := api.CoreV1().Pods("restricted").Create(t.Context(), pod, dryRun); err != nil {
					t.Errorf("a pod of %s is refused: %v", k, err)
				}
			})
		}
	}
}

// podOf is a pod of a Deployment or of a StatefulSet, with the volumes that the latter's
// controller would add.
func podOf(t testing.TB, o *unstructured.Unstructured) *corev1.Pod {
	t.Helper()
	set := &appsv1.StatefulSet{} // has all that is read of a Deployment
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, set); err != nil {
		t.Fatal(err)
	}
	pod := &corev1.Pod{ObjectMeta: set.Spec.Template.ObjectMeta, Spec: set.Spec.Template.Spec}
	pod.Name = o.GetName()
	for _, claim := range set.Spec.VolumeClaimTemplates {
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: claim.Name, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim.Name + "-" + pod.Name + "-0"},
		}})
	}
	return pod
}

// withoutWebhooks takes the webhook configurations away until the test ends, as an
// attacker or an accident would.
func withoutWebhooks(t testing.TB) {
	t.Helper()
	removeWebhooks(t)
	t.Cleanup(func() { restoreWebhooks(t) })
}

func removeWebhooks(t testing.TB) {
	t.Helper()
	_, admin := clients(t, cluster.plane.Config)
	name := metav1.ObjectMeta{Name: "mintmark-webhook"}
	for _, configuration := range []client.Object{
		&admissionv1.ValidatingWebhookConfiguration{ObjectMeta: name}, &admissionv1.MutatingWebhookConfiguration{ObjectMeta: name},
	} {
		if err := client.IgnoreNotFound(admin.Delete(context.Background(), configuration)); err != nil {
			t.Fatal(err)
		}
	}
}

// restoreWebhooks brings them back as the chart has them.
func restoreWebhooks(t testing.TB) {
	t.Helper()
	removeWebhooks(t)
	helm.run(t, upgradeFlags()...)
}
