package install_test

import (
	"context"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/test/controlplane"
)

// cluster is the control plane all tests of this package share, with the chart
// installed by `helm install`: the CRDs too, so it is not controlplane.ForTest's.
var cluster struct {
	once  sync.Once
	plane *controlplane.ControlPlane
	err   error
}

func stopCluster() {
	if cluster.plane != nil {
		cluster.plane.Stop()
	}
}

// installation returns the control plane with the chart installed in it.
func installation(t testing.TB) *controlplane.ControlPlane {
	t.Helper()
	helm.binary(t) // its failure is no failure of the installation
	cluster.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 45*time.Minute)
		defer cancel()
		cluster.plane, cluster.err = controlplane.Start(ctx, controlplane.Options{Out: os.Stderr, ControllerManager: true})
		if cluster.err == nil {
			_, cluster.err = helm.try(t, installFlags()...)
		}
	})
	if cluster.err != nil {
		t.Fatal(cluster.err)
	}
	return cluster.plane
}

// installFlags are the arguments of helm install on the shared control plane.
func installFlags(more ...string) []string {
	return append([]string{
		"install", "mintmark", chart, "--namespace", namespace, "--kubeconfig", cluster.plane.Kubeconfig(), "--create-namespace",
	}, more...)
}

// upgradeFlags are those of helm upgrade. Without --reset-values Helm takes the
// values of the last upgrade where none are given, which was another test's.
func upgradeFlags(more ...string) []string {
	return append([]string{
		"upgrade", "mintmark", chart, "--namespace", namespace, "--kubeconfig", cluster.plane.Kubeconfig(), "--reset-values",
	}, more...)
}

// clients of a configuration: the typed one and one for our own kinds.
func clients(t testing.TB, cfg *rest.Config) (kubernetes.Interface, client.Client) {
	t.Helper()
	typed, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	own, err := client.New(cfg, client.Options{Scheme: scheme(t)})
	if err != nil {
		t.Fatal(err)
	}
	return typed, own
}

// newNamespace makes a namespace of the test's own, with labels.
func newNamespace(t testing.TB, api kubernetes.Interface, name string, labels map[string]string) {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	if _, err := api.CoreV1().Namespaces().Create(t.Context(), ns, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
}

// eventually polls until check answers nil, for at most the time given.
func eventually(t testing.TB, within time.Duration, check func() error) {
	t.Helper()
	deadline := time.After(within)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("after %s: %v", within, err)
		case <-tick.C:
		}
	}
}

func TestHelmInstallsClassesWithTheTypes(t *testing.T) {
	plane := installation(t)
	_, own := clients(t, plane.Config)
	for _, name := range []string{"default", "mintmark-admin"} {
		class := &v1alpha1.CredentialClass{}
		if err := own.Get(t.Context(), client.ObjectKey{Name: name}, class); err != nil {
			t.Errorf("helm install made no class %s: %v", name, err)
		}
	}
}

func TestHelmUpgradeTakesTheClassesOver(t *testing.T) {
	plane := installation(t)
	helm.run(t, upgradeFlags("--set", "defaultClass.spec.minOverlap=2h")...)
	_, own := clients(t, plane.Config)
	class := &v1alpha1.CredentialClass{}
	if err := own.Get(t.Context(), client.ObjectKey{Name: "default"}, class); err != nil {
		t.Fatal(err)
	}
	if class.Spec.MinOverlap != "2h" {
		t.Errorf("helm upgrade left minOverlap of the class default at %q", class.Spec.MinOverlap)
	}
	manifest := string(helm.run(t, "get", "manifest", "mintmark", "--namespace", namespace, "--kubeconfig", plane.Kubeconfig()))
	if !strings.Contains(manifest, "kind: CredentialClass") {
		t.Error("the classes are not part of the release after an upgrade")
	}
}

// What an administrator changed by hand is neither overwritten nor lost.
func TestHelmUpgradeDoesNotOverwriteAClassChangedByHand(t *testing.T) {
	plane := installation(t)
	_, admin := clients(t, plane.Config)
	helm.run(t, upgradeFlags()...) // the classes belong to the release from here on
	patch := client.RawPatch(types.MergePatchType, []byte(`{"spec":{"rules":[{"permissions":["orders:*"]}]}}`))
	class := &v1alpha1.CredentialClass{ObjectMeta: metav1.ObjectMeta{Name: "default"}}
	t.Cleanup(func() { // back to what the chart makes
		if err := admin.Delete(context.Background(), class); err != nil {
			t.Error(err)
		}
		helm.run(t, upgradeFlags()...)
	})
	if err := admin.Patch(t.Context(), class, patch, client.FieldOwner("kubectl-edit")); err != nil {
		t.Fatal(err)
	}
	_, err := helm.try(t, upgradeFlags()...)
	if err == nil || !strings.Contains(err.Error(), "conflict") || !strings.Contains(err.Error(), ".spec.rules") {
		t.Errorf("helm upgrade says nothing of the rules changed by hand: %v", err)
	}
	helm.run(t, upgradeFlags("--set", "defaultClass.create=false")...)
	if err := admin.Get(t.Context(), client.ObjectKeyFromObject(class), class); err != nil {
		t.Fatalf("with defaultClass.create=false the class is gone: %v", err)
	}
	if got := class.Spec.Rules[0].Permissions; len(got) != 1 || got[0] != "orders:*" {
		t.Errorf("the rules changed by hand have become %v", got)
	}
}

// Servers become a StatefulSet when their spools go onto volumes, stay one through an
// upgrade that changes what may change, and become a Deployment again; the volumes stay.
func TestHelmUpgradeMovesTheSpoolsOntoVolumesAndBack(t *testing.T) {
	plane := installation(t)
	api, _ := clients(t, plane.Config)
	t.Cleanup(func() { helm.run(t, upgradeFlags()...); restoreWebhooks(t) })
	kept := []string{"--set", "database.existingSecret=db", "--set", "audit.spool.persistence.enabled=true"}
	for _, step := range []struct {
		what string
		more []string
	}{{what: "at first"}, {"with another image", []string{"--set", "image.tag=v9", "--set", "server.replicas=3"}}} {
		what := step.what
		helm.run(t, upgradeFlags(slices.Concat(kept, step.more)...)...)
		set, err := api.AppsV1().StatefulSets(namespace).Get(t.Context(), "mintmark-server", metav1.GetOptions{})
		if err != nil {
			t.Fatalf("%s, there is no StatefulSet: %v", what, err)
		}
		if claims := set.Spec.VolumeClaimTemplates; len(claims) != 1 || claims[0].Spec.Resources.Requests.Storage().String() != "2Gi" {
			t.Errorf("%s, the servers' volumes are %+v", what, claims)
		}
		if _, err := api.AppsV1().Deployments(namespace).Get(t.Context(), "mintmark-server", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("%s, the Deployment is still there (%v)", what, err)
		}
	}
	// As docs/operations.md has it.
	larger := upgradeFlags(slices.Concat(kept, []string{"--set", "audit.spool.persistence.size=10Gi"})...)
	if _, err := helm.try(t, larger...); err == nil || !strings.Contains(err.Error(), "statefulset") {
		t.Errorf("helm says nothing of volumes that cannot be changed in place: %v", err)
	}
	kubectl(t, plane, nil, "-n", namespace, "delete", "statefulset", "mintmark-server", "--cascade=orphan")
	helm.run(t, larger...)
	set, err := api.AppsV1().StatefulSets(namespace).Get(t.Context(), "mintmark-server", metav1.GetOptions{})
	if err != nil || set.Spec.VolumeClaimTemplates[0].Spec.Resources.Requests.Storage().String() != "10Gi" {
		t.Errorf("the volumes to come are not larger (%v)", err)
	}
	helm.run(t, upgradeFlags("--set", "database.existingSecret=db")...)
	if _, err := api.AppsV1().Deployments(namespace).Get(t.Context(), "mintmark-server", metav1.GetOptions{}); err != nil {
		t.Errorf("without volumes there is no Deployment: %v", err)
	}
}

func TestSecondInstallationIsRefused(t *testing.T) {
	plane := installation(t)
	_, err := helm.try(t, "install", "second", chart, "--namespace", "elsewhere", "--create-namespace", "--kubeconfig", plane.Kubeconfig())
	if err == nil {
		t.Fatal("a second Mintmark could be installed")
	}
	if want := "installed in this cluster already, by release mintmark in namespace mintmark-system"; !strings.Contains(err.Error(), want) {
		t.Errorf("the message does not say %q:\n%v", want, err)
	}
}
