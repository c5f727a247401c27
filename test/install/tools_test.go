package install_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/mintmark-dev/mintmark/test/controlplane"
)

// buildTimeout is for a tool that was never built on this machine.
const buildTimeout = 30 * time.Minute

// tool is a program built from a module of its own under hack/tools, once per run
// of the tests. The build cache makes that seconds.
type tool struct {
	module, pkg string

	once sync.Once
	path string
	err  error
}

var (
	helm      = &tool{module: "helm", pkg: "helm.sh/helm/v4/cmd/helm"}
	helm3     = &tool{module: "helm3", pkg: "helm.sh/helm/v3/cmd/helm"}
	kustomize = &tool{module: "generate", pkg: "sigs.k8s.io/kustomize/kustomize/v5"}
)

// workDir is the scratch folder of the test binary. TestMain makes it.
var workDir string

func root(t testing.TB) string {
	t.Helper()
	dir, err := controlplane.Root()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func (b *tool) binary(t testing.TB) string {
	t.Helper()
	dir := root(t)
	b.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), buildTimeout)
		defer cancel()
		b.path = filepath.Join(workDir, b.module)
		cmd := exec.CommandContext(ctx, "go", "build", "-o", b.path, b.pkg)
		cmd.Dir = filepath.Join(dir, "hack", "tools", b.module)
		if out, err := cmd.CombinedOutput(); err != nil {
			b.err = fmt.Errorf("build %s in %s: %w\n%s", b.pkg, cmd.Dir, err, out)
		}
	})
	if b.err != nil {
		t.Fatal(b.err)
	}
	return b.path
}

// try runs the tool in the repository and returns what it writes to stdout. The
// error carries what it writes to stderr.
func (b *tool) try(t testing.TB, args ...string) ([]byte, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, b.binary(t), args...)
	cmd.Dir = root(t)
	// Neither the plugins nor the repositories of whoever runs the tests matter.
	cmd.Env = append(os.Environ(), "HELM_CONFIG_HOME="+workDir, "HELM_CACHE_HOME="+workDir, "HELM_DATA_HOME="+workDir)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.Bytes(), fmt.Errorf("%s %v: %w\n%s", b.module, args, err, stderr.Bytes())
	}
	return stdout.Bytes(), nil
}

func (b *tool) run(t testing.TB, args ...string) []byte {
	t.Helper()
	out, err := b.try(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
