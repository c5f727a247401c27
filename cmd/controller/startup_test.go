package main

import (
	"bytes"
	"net"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/mintmark-dev/mintmark/test/controlplane"
)

// failsToStart runs the controller in a process of its own and returns its log.
func failsToStart(t *testing.T, kubeconfig string, args ...string) string {
	t.Helper()
	c := startController(t, kubeconfig, 0, args...)
	if err := c.wait(); err == nil {
		t.Error("it ended without an error")
	}
	return c.logged()
}

func TestWithoutAClusterItSaysHowToNameOne(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	t.Setenv("KUBECONFIG", "")
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	var out, log bytes.Buffer
	if code := execute(t.Context(), nil, noEnvironment, &out, &log); code != exitFailed || !strings.Contains(log.String(), "give one by --kubeconfig") {
		t.Errorf("exit %d, logged %s", code, &log)
	}
	log.Reset()
	if code := execute(t.Context(), []string{"--kubeconfig=/nonexistent"}, noEnvironment, &out, &log); code != exitFailed || !strings.Contains(log.String(), "/nonexistent") {
		t.Errorf("exit %d, logged %s", code, &log)
	}
}

func TestWithAClusterThatIsDownItSaysSo(t *testing.T) {
	plane := controlplane.ForTest(t)
	down := rest.CopyConfig(plane.Config)
	down.Host = "https://" + loopback(freePort(t))
	if log := failsToStart(t, kubeconfig(t, plane, down)); !strings.Contains(log, "the API server does not answer: is the cluster up") {
		t.Errorf("logged %s", log)
	}
}

func TestWithoutItsResourceDefinitionsItSaysHowToInstallThem(t *testing.T) {
	plane, err := controlplane.Start(t.Context(), controlplane.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer plane.Stop()
	log := failsToStart(t, plane.Kubeconfig())
	for _, want := range []string{"does not know the kind ServiceToken", "Helm chart"} {
		if !strings.Contains(log, want) {
			t.Errorf("it does not say %q, but %s", want, log)
		}
	}
}

func TestWithoutItsNamespaceItSaysSo(t *testing.T) {
	plane := controlplane.ForTest(t)
	if log := failsToStart(t, plane.Kubeconfig(), "--namespace=nowhere"); !strings.Contains(log, `the namespace \"nowhere\" of the installation does not exist`) {
		t.Errorf("logged %s", log)
	}
}

func TestWithoutItsRulesItNamesThem(t *testing.T) {
	plane := controlplane.ForTest(t)
	clients := kubernetes.NewForConfigOrDie(plane.Config)
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "powerless", Namespace: "default"}}
	if _, err := clients.CoreV1().ServiceAccounts("default").Create(t.Context(), account, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	config, err := plane.ServiceAccountConfig(t.Context(), "default", "powerless")
	if err != nil {
		t.Fatal(err)
	}
	log := failsToStart(t, kubeconfig(t, plane, config), "--namespace=default", "--watch-namespaces=team")
	for _, want := range []string{
		"this account may not get servicetokens.mintmark.dev in namespace team", "update apikeys.mintmark.dev/status in namespace team",
		"create secrets in namespace default", "patch mutatingwebhookconfigurations.admissionregistration.k8s.io mintmark-webhook",
		"patch leases.coordination.k8s.io mintmark-heartbeat in namespace default",
	} {
		if !strings.Contains(log, want) {
			t.Errorf("it does not name %q, but says %s", want, log)
		}
	}
}

func TestOfAPortInUseItNamesTheFlag(t *testing.T) {
	plane := controlplane.ForTest(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, flag := range []string{"--metrics-bind-address", "--health-probe-bind-address", "--webhook-bind-address"} {
		t.Run(flag, func(t *testing.T) {
			log := failsToStart(t, plane.Kubeconfig(), "--namespace=default", flag+"="+taken.Addr().String())
			if want := "the address " + taken.Addr().String() + " is in use by another process: choose another with " + flag; !strings.Contains(log, want) {
				t.Errorf("it does not say %q, but %s", want, log)
			}
		})
	}
}
