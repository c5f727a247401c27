package install_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/go-logr/logr"
	ctrl "sigs.k8s.io/controller-runtime"
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "mintmark-install-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	workDir = dir
	ctrl.SetLogger(logr.Discard()) // the clients' library complains otherwise
	defer func() { _ = os.RemoveAll(dir) }()
	defer stopCluster()
	return m.Run()
}
