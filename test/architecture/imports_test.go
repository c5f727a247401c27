// Package architecture holds the import rules that docs/architecture.md tells of.
// The linter says early where one is broken; this test says so in any case, and
// looks at what is linked in the end, through whatever package.
package architecture

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/mintmark-dev/mintmark/"

// list asks the go command about a package.
func list(t *testing.T, args ...string) []string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list"}, args...)...)
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %s: %v", strings.Join(args, " "), err)
	}
	return strings.Fields(string(out))
}

func TestWhatEachPartLinks(t *testing.T) {
	pure := []string{"k8s.io/client-go/...", "sigs.k8s.io/controller-runtime/...", "database/sql"}
	for name, tc := range map[string]struct {
		pkg       string
		forbidden []string
	}{
		"the controller neither verifies, nor issues, nor opens the store": {
			"./cmd/controller", []string{module + "internal/server/...", module + "internal/authn/...", module + "internal/oauth/...", module + "internal/store/..."},
		},
		"the server neither mints nor admits": {
			"./cmd/server", []string{module + "controllers/...", module + "webhook/...", module + "internal/delivery/...", "sigs.k8s.io/controller-runtime/..."},
		},
		"reconcilers": {
			"./controllers", []string{module + "internal/server/...", module + "internal/authn/...", module + "internal/oauth/...", module + "internal/store/..."},
		},
		"the management API authenticates nobody": {
			"./internal/management", []string{module + "internal/server/...", module + "internal/oauth/...", module + "controllers/...", module + "webhook/..."},
		},
		"the API imports nothing of ours": {"./api/v1alpha1", []string{module + "..."}},
		"the middleware is for everybody": {"./api/middleware", []string{
			module + "internal/...", module + "controllers/...", module + "webhook/...", module + "api/v1alpha1", "k8s.io/...", "google.golang.org/grpc/...",
		}},
		"that for gRPC too":  {"./api/middleware/grpcmw", []string{module + "internal/...", module + "controllers/...", module + "webhook/...", "k8s.io/..."}},
		"credential is pure": {"./internal/credential", pure},
		"lifecycle is pure":  {"./internal/lifecycle", pure},
		"authn is pure":      {"./internal/authn", pure},
		"authz is pure":      {"./internal/authz", pure},
		"policies are pure":  {"./internal/authz/policy", pure},
		"keyring is pure":    {"./internal/keyring", pure},
		"delivery is pure":   {"./internal/delivery", pure},
		"nothing of the tests is shipped with the controller": {"./cmd/controller", []string{module + "test/...", module + "hack/...", "testing"}},
		"nothing of the tests is shipped with the server":     {"./cmd/server", []string{module + "test/...", module + "hack/...", "testing"}},
		"nothing of the tests is shipped with the CLI":        {"./cmd/mintmark", []string{module + "test/...", module + "hack/...", "testing"}},
	} {
		t.Run(name, func(t *testing.T) {
			self := module + strings.TrimPrefix(tc.pkg, "./")
			for _, dep := range list(t, "-deps", tc.pkg) {
				if dep != self && slices.ContainsFunc(tc.forbidden, func(rule string) bool { return matches(rule, dep) }) {
					t.Errorf("%s links %s", tc.pkg, dep)
				}
			}
		})
	}
}

// What decides about credentials is a function of what it is handed: it has no
// clock, no randomness, no logger and does no I/O of its own.
func TestPurePackagesImportNothingThatActs(t *testing.T) {
	// log/slog is absent, for a credential says by slog.LogValuer that it is not to
	// be logged.
	acting := []string{"context", "crypto/rand", "log", "math/rand/...", "net/http/...", "os/...", "github.com/go-logr/...", "k8s.io/klog/..."}
	for _, pkg := range []string{"credential", "lifecycle", "authn", "authz", "authz/policy", "keyring", "delivery"} {
		t.Run(pkg, func(t *testing.T) {
			for _, imported := range list(t, "-f", `{{join .Imports "\n"}}`, "./internal/"+pkg) {
				if slices.ContainsFunc(acting, func(rule string) bool { return matches(rule, imported) }) {
					t.Errorf("internal/%s imports %s", pkg, imported)
				}
			}
		})
	}
}

// matches reports whether a package is meant by a rule: itself, or, with /..., a
// folder and what is below it.
func matches(rule, pkg string) bool {
	folder, below := strings.CutSuffix(rule, "...")
	if !below {
		return pkg == rule
	}
	return strings.HasPrefix(pkg+"/", folder)
}
