package cicd

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/test/controlplane"
)

// examples is the folder of the examples.
func examples(t *testing.T) string {
	t.Helper()
	root, err := controlplane.Root()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(root, "docs", "examples")
}

func read(t *testing.T, path ...string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// repository is laid out as the example says.
func repository(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	from := filepath.Join(examples(t), "github-actions")
	for to, source := range map[string]string{
		".git/HEAD":                              "",
		".github/workflows/deploy.yaml":          "deploy.yaml",
		".github/workflows/deploy-with-key.yaml": "deploy-with-key.yaml",
		".github/actions/mintmark/action.yml":    "mintmark/action.yml",
		".github/actions/mintmark/mintmark.sh":   "mintmark/mintmark.sh",
	} {
		text := []byte("ref: refs/heads/main\n")
		if source != "" {
			text = read(t, from, source)
		}
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, to)), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, to), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// actionlint builds the linter, and looks at the workflows of a repository with it.
func actionlint(t *testing.T, dir string) (output string, ok bool) {
	t.Helper()
	root, err := controlplane.Root()
	if err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(t.TempDir(), "actionlint")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "github.com/rhysd/actionlint/cmd/actionlint")
	build.Dir = filepath.Join(root, "hack", "tools", "actionlint")
	build.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building actionlint: %v\n%s", err, out)
	}
	lint := exec.CommandContext(t.Context(), binary, "-no-color")
	lint.Dir = dir
	out, err := lint.CombinedOutput()
	return string(out), err == nil
}

func TestTheWorkflowsAreSuchAsGitHubRuns(t *testing.T) {
	dir := repository(t)
	if out, ok := actionlint(t, dir); !ok {
		t.Errorf("actionlint:\n%s", out)
	}
	// The linter looks at what the action takes, and at expressions.
	path := filepath.Join(dir, ".github/workflows/deploy.yaml")
	good := string(read(t, path))
	broken := strings.NewReplacer("event: deploy.started", "evnt: deploy.started", "steps.mintmark.outputs.header-file", "steps.mintmark.outputs.header").Replace(good)
	if err := os.WriteFile(path, []byte(broken), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, ok := actionlint(t, dir); ok || !strings.Contains(out, `"evnt"`) || !strings.Contains(out, `"header"`) {
		t.Errorf("a broken workflow passes:\n%s", out)
	}
}

// action is the metadata of a composite action, all that there may be of it.
type action struct {
	Name        string `json:"name"`
	Description string `json:"description"`
	Author      string `json:"author"`
	Inputs      map[string]struct {
		Description string  `json:"description"`
		Required    *bool   `json:"required"`
		Default     *string `json:"default"`
	} `json:"inputs"`
	Outputs map[string]struct {
		Description string `json:"description"`
		Value       string `json:"value"`
	} `json:"outputs"`
	Runs struct {
		Using string `json:"using"`
		Steps []struct {
			ID    string            `json:"id"`
			Shell string            `json:"shell"`
			Env   map[string]string `json:"env"`
			Run   string            `json:"run"`
		} `json:"steps"`
	} `json:"runs"`
}

func TestTheActionHandsItsInputsOverInTheEnvironmentAlone(t *testing.T) {
	var a action
	if err := yaml.UnmarshalStrict(read(t, examples(t), "github-actions/mintmark/action.yml"), &a); err != nil {
		t.Fatal(err)
	}
	if a.Name == "" || a.Description == "" || a.Runs.Using != "composite" || len(a.Runs.Steps) != 1 || a.Runs.Steps[0].Shell != "bash" {
		t.Fatalf("%+v", a)
	}
	step := a.Runs.Steps[0]
	if strings.Contains(step.Run, "${{") {
		t.Error("an expression stands in the script: what it gives could be a command")
	}
	var taken []string
	input := regexp.MustCompile(`^\$\{\{ inputs\.([a-z-]+) \}\}$`)
	script := string(read(t, examples(t), "github-actions/mintmark/mintmark.sh"))
	for name, value := range step.Env {
		match := input.FindStringSubmatch(value)
		if match == nil {
			t.Errorf("%s is %s: not an input alone", name, value)
			continue
		}
		taken = append(taken, match[1])
		if name != "MINTMARK_CA_CERTIFICATE" && !strings.Contains(script, name) {
			t.Errorf("the script does not know %s", name)
		}
	}
	var inputs []string
	for name, in := range a.Inputs {
		inputs = append(inputs, name)
		if in.Description == "" || in.Required == nil || *in.Required == (in.Default != nil) {
			t.Errorf("input %s lacks a description, or is neither required nor has a default", name)
		}
	}
	slices.Sort(taken)
	slices.Sort(inputs)
	if diff := cmp.Diff(inputs, taken); diff != "" {
		t.Errorf("inputs and the environment differ:\n%s", diff)
	}
	for name, out := range a.Outputs {
		if out.Value != "${{ steps."+step.ID+".outputs."+name+" }}" || !strings.Contains(script, name+"=%s") {
			t.Errorf("output %s is %s", name, out.Value)
		}
	}
	if info, err := os.Stat(filepath.Join(examples(t), "github-actions/mintmark/mintmark.sh")); err != nil || info.Mode()&0o111 == 0 {
		t.Errorf("the script cannot be run: %v", err)
	}
}

func TestTheScriptIsSound(t *testing.T) {
	script := filepath.Join(examples(t), "github-actions/mintmark/mintmark.sh")
	if out, err := exec.CommandContext(t.Context(), "bash", "-n", script).CombinedOutput(); err != nil {
		t.Errorf("bash -n: %v\n%s", err, out)
	}
	shellcheck, err := exec.LookPath("shellcheck")
	if err != nil {
		t.Log("shellcheck is not installed: bash -n alone")
		return
	}
	if out, err := exec.CommandContext(t.Context(), shellcheck, "--severity=style", script).CombinedOutput(); err != nil {
		t.Errorf("shellcheck: %v\n%s", err, out)
	}
}

func TestTheManifestsAndTheOtherPipelinesParse(t *testing.T) {
	kinds := map[string]int{}
	for _, text := range strings.Split(string(read(t, examples(t), "github-actions/mintmark.yaml")), "\n---\n") {
		var object struct{ Kind string }
		if err := yaml.Unmarshal([]byte(text), &object); err != nil {
			t.Fatal(err)
		}
		var into any
		switch object.Kind {
		case "TrustedIssuer":
			into = new(v1alpha1.TrustedIssuer)
		case "AccessRole":
			into = new(v1alpha1.AccessRole)
		}
		if err := yaml.UnmarshalStrict([]byte(text), into); err != nil {
			t.Errorf("%s: %v", object.Kind, err)
		}
		kinds[object.Kind]++
	}
	if diff := cmp.Diff(map[string]int{"TrustedIssuer": 1, "AccessRole": 2}, kinds); diff != "" {
		t.Error(diff)
	}
	var pipeline map[string]struct {
		Image        string                       `json:"image"`
		Environment  string                       `json:"environment"`
		IDTokens     map[string]map[string]string `json:"id_tokens"`
		Variables    map[string]string            `json:"variables"`
		BeforeScript []string                     `json:"before_script"`
		Script       []string                     `json:"script"`
		AfterScript  []string                     `json:"after_script"`
	}
	if err := yaml.UnmarshalStrict(read(t, examples(t), "gitlab-ci/.gitlab-ci.yml"), &pipeline); err != nil {
		t.Fatal(err)
	}
	for name, job := range pipeline {
		for _, line := range slices.Concat(job.BeforeScript, job.Script, job.AfterScript) {
			if out, err := exec.CommandContext(t.Context(), "bash", "-n", "-c", line).CombinedOutput(); err != nil {
				t.Errorf("%s: %q: %v\n%s", name, line, err, out)
			}
		}
	}
}
