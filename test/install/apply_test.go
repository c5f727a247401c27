package install_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/test/controlplane"
)

// ownCluster is a control plane of one test's own, with nothing installed.
func ownCluster(t testing.TB) *controlplane.ControlPlane {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 45*time.Minute)
	defer cancel()
	plane, err := controlplane.Start(ctx, controlplane.Options{Out: os.Stderr, ControllerManager: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(plane.Stop)
	return plane
}

func kubectl(t testing.TB, plane *controlplane.ControlPlane, stdin []byte, args ...string) string {
	t.Helper()
	binary, err := controlplane.Binary(t.Context(), os.Stderr, controlplane.Kubectl)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), binary, append([]string{"--kubeconfig", plane.Kubeconfig()}, args...)...)
	cmd.Dir, cmd.Stdin = root(t), bytes.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// The commands of docs/install.md, twice: the second time is an upgrade.
func TestKubectlAppliesTheManifests(t *testing.T) {
	plane := ownCluster(t)
	_, admin := clients(t, plane.Config)
	for _, what := range []string{"the first time", "again"} {
		kubectl(t, plane, nil, "apply", "--server-side", "-k", "config/crd")
		kubectl(t, plane, nil, "apply", "--server-side", "-k", "config/default")
		class := &v1alpha1.CredentialClass{}
		if err := admin.Get(t.Context(), client.ObjectKey{Name: "default"}, class); err != nil {
			t.Errorf("%s, there is no default class: %v", what, err)
		}
	}
}

// Credentials outlive the release, and so does what they live under. A new release
// finds them and takes over. So it is with both Helms that people use.
func TestUninstallKeepsCredentials(t *testing.T) {
	for name, tool := range map[string]*tool{"Helm 4": helm, "Helm 3": helm3} {
		t.Run(name, func(t *testing.T) { uninstallKeepsCredentials(t, tool) })
	}
}

func uninstallKeepsCredentials(t *testing.T, b *tool) {
	plane := ownCluster(t)
	api, admin := clients(t, plane.Config)
	in := func(command string, more ...string) {
		t.Helper()
		b.run(t, append([]string{command, "mintmark", "--namespace", namespace, "--kubeconfig", plane.Kubeconfig()}, more...)...)
	}
	in("install", chart, "--create-namespace")
	in("upgrade", chart) // takes over what the installation made as a hook
	in("uninstall")

	credential := &v1alpha1.ServiceToken{ObjectMeta: metav1.ObjectMeta{Name: "kept", Namespace: metav1.NamespaceDefault}}
	if err := admin.Create(t.Context(), credential); err != nil { // nobody serves the webhooks that have gone with it
		t.Fatalf("after helm uninstall a credential cannot be made: %v", err)
	}
	if _, err := api.RbacV1().ClusterRoles().Get(t.Context(), "mintmark-controller", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("helm uninstall left the ClusterRole mintmark-controller (%v)", err)
	}
	for _, class := range []string{"default", "mintmark-admin"} {
		if err := admin.Get(t.Context(), client.ObjectKey{Name: class}, &v1alpha1.CredentialClass{}); err != nil {
			t.Errorf("helm uninstall took the class %s away: %v", class, err)
		}
	}

	in("install", chart)
	if err := admin.Get(t.Context(), client.ObjectKeyFromObject(credential), credential); err != nil {
		t.Errorf("the credential is gone: %v", err)
	}
}
