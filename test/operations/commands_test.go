package operations

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"sigs.k8s.io/yaml"

	"github.com/mintmark-dev/mintmark/internal/cli"
	"github.com/mintmark-dev/mintmark/internal/management"
)

// A shell that does not understand a block is no help in an incident.
func TestEveryShellBlockCanBeRead(t *testing.T) {
	count := 0
	for _, p := range pages(t) {
		for _, block := range p.shell() {
			count++
			cmd := exec.CommandContext(t.Context(), "bash", "-n")
			cmd.Stdin = strings.NewReader(block)
			if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
				t.Errorf("%s: bash does not take (%v: %s)\n%s", p.path, err, bytes.TrimSpace(out), block)
			}
		}
	}
	if count < 30 {
		t.Errorf("only %d blocks were found", count)
	}
}

// command is one call of the tool: its words, without redirections.
var command = regexp.MustCompile(`(?m)(?:^|[|;&(]|\$\(|\bdo|\bthen|\bif|\bwhile|\buntil|!)\s*(?:kubectl )?mintmark((?: +(?:"[^"]*"|'[^']*'|\$\([^()]*\)|[^\s|;&()<>"'#]+)+)*)`)

var word = regexp.MustCompile(`(?:"[^"]*"|'[^']*'|\$\([^()]*\)|[^\s"'])+`)

func TestEveryCommandOnAPageExistsWithItsFlags(t *testing.T) {
	count := 0
	for _, p := range pages(t) {
		if strings.HasPrefix(p.path, "docs/adr/") { // tell of what was
			continue
		}
		texts := p.shell()
		for _, span := range p.spans() {
			if strings.HasPrefix(span, "mintmark ") || strings.HasPrefix(span, "kubectl mintmark ") {
				texts = append(texts, span)
			}
		}
		for _, text := range texts {
			text = strings.ReplaceAll(text, "\\\n", " ")
			for _, m := range command.FindAllStringSubmatch(text, -1) {
				count++
				if problem := checkCommand(word.FindAllString(m[1], -1)); problem != "" {
					t.Errorf("%s: mintmark%s: %s", p.path, m[1], problem)
				}
			}
		}
	}
	if count < 60 {
		t.Errorf("only %d commands were found", count)
	}
}

func newCommand() *cobra.Command {
	return cli.New(cli.Config{Streams: genericiooptions.IOStreams{In: strings.NewReader(""), Out: io.Discard, ErrOut: io.Discard}, Program: "mintmark"})
}

// checkCommand says what is wrong with a call; nothing if it could be made.
func checkCommand(words []string) string {
	found, rest, err := newCommand().Find(words)
	if err != nil {
		return err.Error()
	}
	takes := strings.Contains(found.Use, "KIND") // arguments beside its commands, as its usage says
	if found.HasSubCommands() && !takes && len(rest) > 0 && !strings.HasPrefix(rest[0], "-") {
		return "there is no command " + rest[0]
	}
	found.InheritedFlags() // merges them
	for i, word := range words {
		if word == "--" {
			break
		}
		name, _, _ := strings.Cut(word, "=")
		switch {
		case word == "-", i > 0 && words[i-1] == "-n":
		case strings.HasPrefix(name, "--"):
			if found.Flags().Lookup(name[2:]) == nil && found.InheritedFlags().Lookup(name[2:]) == nil {
				return "it has no flag " + name
			}
		case strings.HasPrefix(name, "-"):
			if found.Flags().ShorthandLookup(name[1:2]) == nil {
				return "it has no flag " + name
			}
		}
	}
	return ""
}

// The test above finds nothing wrong where it looks at nothing.
func TestACommandThatDoesNotExistIsNoticed(t *testing.T) {
	for call, want := range map[string]string{
		"revoke servicetoken ci --reason x": "", "revoke servicetoken ci --because x": "--because", "revoc servicetoken": "revoc",
		"policy chek f": "chek", "list -A -q": "-q",
	} {
		problem := checkCommand(strings.Fields(call))
		if (problem == "") != (want == "") || !strings.Contains(problem, want) {
			t.Errorf("mintmark %s: the problem should name %q: %q", call, want, problem)
		}
	}
}

var (
	setFlag = regexp.MustCompile(`--set[= ]"?([^\s"` + "`" + `]+)`)
	// valueSpan is a value of the chart by its path: two words at least, the first one the chart's.
	valueSpan = regexp.MustCompile(`^([a-zA-Z]+)((?:\.[a-zA-Z]+)+)(?:[=:].*)?$`)
)

func TestEveryValueOfTheChartOnAPageExists(t *testing.T) {
	source, err := os.ReadFile(filepath.Join(root(t), "charts/mintmark/values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var values map[string]any
	if err := yaml.Unmarshal(source, &values); err != nil {
		t.Fatal(err)
	}
	exists := func(path string) bool {
		var current any = values
		for step := range strings.SplitSeq(path, ".") {
			step, _, _ = strings.Cut(step, "[")
			fields, ok := current.(map[string]any)
			if !ok || len(fields) == 0 {
				return true // what is below is anybody's
			}
			if current, ok = fields[step]; !ok {
				return false
			}
		}
		return true
	}
	// audit.lost and the like are types of events.
	code := sources(t, []string{".go"}, "internal")
	for _, p := range pages(t) {
		for _, block := range p.shell() {
			for _, m := range setFlag.FindAllStringSubmatch(block, -1) {
				for setting := range strings.SplitSeq(m[1], ",") {
					if path, _, ok := strings.Cut(setting, "="); ok && !exists(path) {
						t.Errorf("%s: --set %s: the chart has no such value", p.path, path)
					}
				}
			}
		}
		for _, span := range p.spans() {
			m := valueSpan.FindStringSubmatch(span)
			if m == nil || values[m[1]] == nil || m[1] == "restart" || // a field of the spec as well
				strings.Contains(code, `"`+span+`"`) || strings.ToLower(m[2][1:2]) != m[2][1:2] {
				continue
			}
			if !exists(m[1] + m[2]) {
				t.Errorf("%s: the chart has no value %s", p.path, m[1]+m[2])
			}
		}
	}
}

var calledPath = regexp.MustCompile(`(?:\$MINTMARK_URL|\$URL)"?(/[a-z][A-Za-z0-9/_.\-{}$]*)`)

func TestEveryPathOnAPageIsServed(t *testing.T) {
	routes := sources(t, []string{".go"}, "internal/server", "internal/oauth")
	managed := map[string]bool{}
	for _, operation := range management.Operations() {
		for _, path := range operation.Paths {
			managed[path.Path] = true
		}
	}
	variable := regexp.MustCompile(`\$\{?[A-Z][A-Z_]*\}?|\{[A-Z]+\}`)
	for _, p := range pages(t) {
		for _, block := range slices.Concat(p.shell(), p.spans()) {
			for _, m := range calledPath.FindAllStringSubmatch(block, -1) {
				path := variable.ReplaceAllString(strings.TrimRight(m[1], "/"), "{id}")
				if !managed[path] && !strings.Contains(routes, `"`+path+`"`) {
					t.Errorf("%s: %s is not served", p.path, path)
				}
			}
		}
	}
}
