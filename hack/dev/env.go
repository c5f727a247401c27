package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/mintmark-dev/mintmark/test/controlplane"
	"github.com/mintmark-dev/mintmark/test/controlplane/process"
)

// writeCA writes down the authority that signed the servers' certificates.
func (s *system) writeCA(ctx context.Context) error {
	client, err := kubernetes.NewForConfig(s.plane.Config)
	if err != nil {
		return err
	}
	secret, err := client.CoreV1().Secrets(namespace).Get(ctx, "mintmark-server-tls", metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("read the servers' certificate authority: %w", err)
	}
	ca := secret.Data[corev1.ServiceAccountRootCAKey]
	if len(ca) == 0 {
		return fmt.Errorf("Secret %s/%s has no %s", namespace, secret.Name, corev1.ServiceAccountRootCAKey)
	}
	return os.WriteFile(s.path("ca.crt"), ca, 0o644)
}

// writeEnv writes what other shells source.
func (s *system) writeEnv(ctx context.Context) (string, error) {
	path := filepath.Join(s.settings.root, "bin")
	if _, err := exec.LookPath(controlplane.Kubectl); err != nil {
		if err := s.linkKubectl(ctx); err != nil {
			return "", err
		}
		path = s.path("bin") + ":" + path
	}
	lines := []struct{ name, value string }{
		{"KUBECONFIG", s.plane.Kubeconfig()},
		{"MINTMARK_URL", s.serverURL(0)},
		{"MINTMARK_GRPC", process.Loopback(s.ports.servers[0].grpc)},
		{"MINTMARK_CACERT", s.path("ca.crt")},
		{"MINTMARK_METRICS_URL", "http://" + process.Loopback(s.ports.servers[0].metrics)},
		{"MINTMARK_CONTROLLER_METRICS_URL", "http://" + process.Loopback(s.ports.metrics)},
	}
	for i := 1; i < len(s.ports.servers); i++ {
		lines = append(lines, struct{ name, value string }{fmt.Sprintf("MINTMARK_URL_%d", i+1), s.serverURL(i)})
	}
	if s.settings.database != "" {
		lines = append(lines, struct{ name, value string }{"DATABASE_URL", s.settings.database})
	}
	var text strings.Builder
	text.WriteString("# Written by `make run`; removed when it stops.\n")
	for _, l := range lines {
		fmt.Fprintf(&text, "export %s=%s\n", l.name, quote(l.value))
	}
	fmt.Fprintf(&text, "export PATH=%s:\"$PATH\"\n", quote(path))
	temporary := s.path("env.tmp")
	if err := os.WriteFile(temporary, []byte(text.String()), 0o644); err != nil {
		return "", err
	}
	return "", os.Rename(temporary, s.path("env"))
}

// linkKubectl provides kubectl on machines that have none.
func (s *system) linkKubectl(ctx context.Context) error {
	kubectl, err := controlplane.Binary(ctx, s.out, controlplane.Kubectl)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(s.path("bin"), 0o755); err != nil {
		return err
	}
	link := s.path("bin", controlplane.Kubectl)
	if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.Symlink(kubectl, link)
}

// quote makes a word of the shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func (s *system) sayHowToGoOn() {
	s.out.line(`Mintmark runs at %[1]s. In another shell:

    . %[2]s
    kubectl get servicetokens,apikeys -A
    kubectl -n payments describe servicetoken ci-deploy

    # exchange the key for a JWT, and ask who it is
    KEY=$(kubectl -n payments get secret ci-deploy -o jsonpath='{.data.token}' | base64 -d)
    curl --cacert "$MINTMARK_CACERT" -X POST -H "Authorization: Bearer $KEY" "$MINTMARK_URL/api/auth/token"
    curl --cacert "$MINTMARK_CACERT" -H "Authorization: Bearer $KEY" "$MINTMARK_URL/api/auth/profile"

    # rotate it, and revoke it
    kubectl -n payments annotate servicetoken ci-deploy --overwrite mintmark.dev/rotate-requested-at="$(date -u +%%FT%%TZ)"
    kubectl -n payments patch servicetoken ci-deploy --type=merge -p '{"spec":{"revoked":{"reason":"trying it out"}}}'

Logs are in %[3]s. Ctrl-C stops everything.`, s.serverURL(0), s.relative("env"), s.relative("log"))
}
