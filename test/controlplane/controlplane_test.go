package controlplane_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/mintmark-dev/mintmark/test/controlplane"
)

func TestMain(m *testing.M) {
	if os.Getenv("CONTROLPLANE_TEST_CRASH") != "" {
		crash()
	}
	controlplane.Main(m)
}

func client(t *testing.T, c *controlplane.ControlPlane) *kubernetes.Clientset {
	t.Helper()
	k, err := kubernetes.NewForConfig(c.Config)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// eventually polls until check is true.
func eventually(t *testing.T, what string, check func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !check(); {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 60 s", what)
		}
		<-time.After(50 * time.Millisecond)
	}
}

func TestAServiceAccountHasARealTokenAndItsOwnPermissions(t *testing.T) {
	ctx, plane := t.Context(), controlplane.ForTest(t)
	token, err := plane.ServiceAccount(ctx, "tokens", "worker", "mintmark-internal")
	if err != nil {
		t.Fatal(err)
	}
	for audience, want := range map[string]bool{"mintmark-internal": true, "another": false} {
		review, err := client(t, plane).AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{
			Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{audience}},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if review.Status.Authenticated != want {
			t.Errorf("TokenReview for audience %q says %v, want %v", audience, review.Status.Authenticated, want)
		}
		if want && review.Status.User.Username != "system:serviceaccount:tokens:worker" {
			t.Errorf("the token is that of %q", review.Status.User.Username)
		}
	}

	cfg, err := plane.ServiceAccountConfig(ctx, "tokens", "worker")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := plane.WriteKubeconfig(path, cfg); err != nil {
		t.Fatal(err)
	}
	loaded, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		t.Fatal(err)
	}
	worker, err := kubernetes.NewForConfig(loaded)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := worker.CoreV1().Secrets("tokens").List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("a service account without roles lists Secrets: %v", err)
	}
}

func TestGarbageCollectionAndNamespaceDeletionWork(t *testing.T) {
	ctx, k := t.Context(), client(t, controlplane.ForTest(t))
	ns, err := k.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "collected"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	owner, err := k.CoreV1().ConfigMaps(ns.Name).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "owner"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	owned := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "owned", OwnerReferences: []metav1.OwnerReference{
		{APIVersion: "v1", Kind: "ConfigMap", Name: owner.Name, UID: owner.UID},
	}}}
	if _, err := k.CoreV1().Secrets(ns.Name).Create(ctx, owned, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := k.CoreV1().ConfigMaps(ns.Name).Delete(ctx, owner.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the Secret of a deleted owner is collected", func() bool {
		_, err := k.CoreV1().Secrets(ns.Name).Get(ctx, owned.Name, metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
	if err := k.CoreV1().Namespaces().Delete(ctx, ns.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the namespace goes", func() bool {
		_, err := k.CoreV1().Namespaces().Get(ctx, ns.Name, metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
}

func TestTheCRDsAreServed(t *testing.T) {
	k := client(t, controlplane.ForTest(t))
	list, err := k.Discovery().ServerResourcesForGroupVersion("mintmark.dev/v1alpha1")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"servicetokens", "servicetokens/status", "apikeys", "credentialclasses", "revocations"} {
		if !slices.ContainsFunc(list.APIResources, func(r metav1.APIResource) bool { return r.Name == want }) {
			t.Errorf("%s is not served", want)
		}
	}
}

func TestTwoControlPlanesRunSideBySideAndAnAPIServerComesBackWithItsData(t *testing.T) {
	ctx, first := t.Context(), controlplane.ForTest(t)
	second, err := controlplane.Start(ctx, controlplane.Options{Out: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	defer second.Stop()
	k := client(t, second)
	mark := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "only-in-the-second"}}
	if _, err := k.CoreV1().ConfigMaps("default").Create(ctx, mark, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := client(t, first).CoreV1().ConfigMaps("default").Get(ctx, mark.Name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the first control plane knows what was written to the second: %v", err)
	}

	second.StopAPIServer()
	if _, err := k.CoreV1().ConfigMaps("default").Get(ctx, mark.Name, metav1.GetOptions{}); err == nil {
		t.Error("a stopped API server answers")
	}
	if err := second.StartAPIServer(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := k.CoreV1().ConfigMaps("default").Get(ctx, mark.Name, metav1.GetOptions{}); err != nil {
		t.Errorf("after a restart: %v", err)
	}
}

func TestAnotherAPIServerSharesTheDataAndEndsWithoutTheFirst(t *testing.T) {
	ctx, plane := t.Context(), controlplane.ForTest(t)
	other, err := plane.AddAPIServer(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Stop()
	first := client(t, plane).CoreV1().ConfigMaps("default")
	k, err := kubernetes.NewForConfig(other.Config)
	if err != nil {
		t.Fatal(err)
	}
	second := k.CoreV1().ConfigMaps("default")
	mark := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "written-to-the-first"}}
	if _, err := first.Create(ctx, mark, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := second.Get(ctx, mark.Name, metav1.GetOptions{}); err != nil {
		t.Errorf("the other API server: %v", err)
	}
	other.Kill()
	if _, err := first.Get(ctx, mark.Name, metav1.GetOptions{}); err != nil {
		t.Errorf("with the other API server gone: %v", err)
	}
	if _, err := second.Get(ctx, mark.Name, metav1.GetOptions{}); err == nil {
		t.Error("a killed API server answers")
	}
	if err := other.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := second.Get(ctx, mark.Name, metav1.GetOptions{}); err != nil {
		t.Errorf("after a restart: %v", err)
	}
}

func TestAPortInUseIsNamed(t *testing.T) {
	taken := controlplane.ForTest(t).Config.Host
	port, err := strconv.Atoi(taken[strings.LastIndex(taken, ":")+1:])
	if err != nil {
		t.Fatal(err)
	}
	plane, err := controlplane.Start(t.Context(), controlplane.Options{Port: port})
	if err == nil {
		plane.Stop()
		t.Fatal("started on a port that is in use")
	}
	if want := "port " + strconv.Itoa(port) + " of 127.0.0.1 is in use"; !strings.Contains(err.Error(), want) {
		t.Errorf("the error does not say %q: %v", want, err)
	}
}

// crash is what a test binary does that dies: it starts a control plane, writes
// the process ids down and kills itself.
func crash() {
	plane, err := controlplane.Start(context.Background(), controlplane.Options{})
	if err != nil {
		panic(err)
	}
	var pids []string
	for _, p := range plane.Processes() {
		pids = append(pids, strconv.Itoa(p.PID()))
	}
	if _, err := os.Stdout.WriteString(strings.Join(pids, " ")); err != nil {
		panic(err)
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
}

func TestNoProcessOutlivesATestBinaryThatDies(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "CONTROLPLANE_TEST_CRASH=1")
	out, err := cmd.Output()
	if err == nil {
		t.Fatal("the binary did not die")
	}
	pids := strings.Fields(string(out))
	if len(pids) != 2 {
		t.Fatalf("process ids: %q, %v", out, err)
	}
	for _, s := range pids {
		pid, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "process "+s+" ends", func() bool { return ended(pid) })
	}
}

// ended reports whether a process is gone, or dead and not yet reaped by init.
func ended(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return true
	}
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && strings.HasPrefix(string(stat[strings.LastIndexByte(string(stat), ')')+1:]), " Z")
}
