package install_test

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// There is no container runtime in the tests, so the Dockerfile is held to what it
// must not forget.
func TestDockerfileBuildsWhatTheManifestsRun(t *testing.T) {
	dockerfile := read(t, filepath.Join(root(t), "Dockerfile"))
	for k, o := range built(t, "config/default").only("Deployment") {
		command, _ := at(t, o, "spec", "template", "spec", "containers", 0, "command").([]any)
		if len(command) != 1 || !strings.Contains(dockerfile, "-o /out"+command[0].(string)+" ") {
			t.Errorf("%s runs %v, which the Dockerfile does not build", k, command)
		}
	}
	if !strings.Contains(dockerfile, "\nUSER 65532:65532\n") {
		t.Error("the image runs as another user than the pods")
	}
}

func TestDockerfileCopiesWhatIsCompiled(t *testing.T) {
	const module = "github.com/mintmark-dev/mintmark/"
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "./cmd/...")
	cmd.Dir = root(t)
	packages, err := cmd.Output()
	if err != nil {
		t.Fatalf("list what the programs are made of: %v", err)
	}
	dockerfile, ignore := read(t, filepath.Join(root(t), "Dockerfile")), read(t, filepath.Join(root(t), ".dockerignore"))
	var copied []string
	for _, match := range regexp.MustCompile(`(?m)^COPY (\w+) (\w+)$`).FindAllStringSubmatch(dockerfile, -1) {
		copied = append(copied, match[1])
		if !strings.Contains(ignore, "\n!"+match[1]+"\n") {
			t.Errorf(".dockerignore keeps %s from the builder", match[1])
		}
	}
	for line := range strings.Lines(string(packages)) {
		path, own := strings.CutPrefix(strings.TrimSpace(line), module)
		folder, _, _ := strings.Cut(path, "/")
		if own && !slices.Contains(copied, folder) {
			t.Errorf("package %s is compiled in, but the Dockerfile does not copy %s", path, folder)
		}
	}
}
