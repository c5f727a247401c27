// Command settings writes docs/reference/settings.md: every flag, environment variable
// and default there is, read from the programs' --help, from the chart and from the CRDs.
// Run it in the root of the repository.
package main

import (
	"bytes"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"text/template"

	"sigs.k8s.io/yaml"
)

const (
	chartDir = "charts/mintmark"
	page     = "docs/reference/settings.md"
)

//go:embed settings.md.tmpl
var text string

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "settings:", err)
		os.Exit(1)
	}
}

func run() error {
	s := &settings{}
	if err := s.read(); err != nil {
		return err
	}
	out, err := s.render()
	if err != nil {
		return err
	}
	return os.WriteFile(page, out, 0o644)
}

// settings are what there is to set.
type settings struct {
	flags    map[string][]flag // by program
	charted  map[string]map[string][]string
	values   map[string]any
	defaults map[string][]fieldDefault // by resource
}

func (s *settings) read() (err error) {
	s.flags, s.charted = map[string][]flag{}, map[string]map[string][]string{}
	for _, program := range []string{"controller", "server"} {
		help, err := helpOf(program)
		if err != nil {
			return err
		}
		if s.flags[program] = parseFlags(help); len(s.flags[program]) == 0 {
			return fmt.Errorf("mintmark-%s --help lists no flags:\n%s", program, help)
		}
		path := filepath.Join(chartDir, "templates", program+".yaml")
		source, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		s.charted[program] = valuesOfFlags(string(source))
		for name := range s.charted[program] {
			if _, ok := s.flag(program, name); !ok {
				return fmt.Errorf("%s gives --%s, which mintmark-%s does not know", path, name, program)
			}
		}
	}
	source, err := os.ReadFile(filepath.Join(chartDir, "values.yaml"))
	if err != nil {
		return err
	}
	if err := yaml.Unmarshal(source, &s.values); err != nil {
		return err
	}
	s.defaults, err = readDefaults("config/crd/bases")
	return err
}

// helpOf runs a program in an environment that sets nothing.
func helpOf(program string) (string, error) {
	cmd := exec.Command("go", "run", "./cmd/"+program, "--help")
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "POD_") && !strings.HasPrefix(variable, "MINTMARK_") {
			cmd.Env = append(cmd.Env, variable)
		}
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go run ./cmd/%s --help: %w\n%s", program, err, out)
	}
	return string(out), nil
}

// flag is one line of --help.
type flag struct {
	Name, Kind, Usage, Default string
	// Told: the default is a text about it.
	Told bool
}

var (
	flagLine    = regexp.MustCompile(`^ {2,}(?:-\w, )?(?: {4})?--([a-z0-9-]+)(?: (\S+))? {2,}(.*)$`)
	flagDefault = regexp.MustCompile(` \(default ("[^"]*"|\[\]|[^() ]+)\)$`)
	ownDefault  = regexp.MustCompile(`\s*(?:\((?:(\$\w+); )?default: ([^()]+)\)|; default: (.+))$`)
)

// parseFlags reads the usage that pflag writes. Where the usage itself says what the default is, that
// is the default.
func parseFlags(help string) (flags []flag) {
	for line := range strings.Lines(help) {
		line = strings.TrimRight(line, "\n")
		if m := flagLine.FindStringSubmatch(line); m != nil {
			flags = append(flags, flag{Name: m[1], Kind: m[2], Usage: m[3]})
			continue
		}
		if len(flags) > 0 && strings.HasPrefix(line, "          ") { // goes on
			flags[len(flags)-1].Usage += " " + strings.TrimSpace(line)
		}
	}
	for i := range flags {
		f := &flags[i]
		if m := flagDefault.FindStringSubmatch(f.Usage); m != nil {
			f.Usage, f.Default = strings.TrimSuffix(f.Usage, m[0]), strings.Trim(m[1], `"`)
			if strings.HasSuffix(f.Default, "m0s") { // as Go writes minutes
				f.Default = strings.TrimSuffix(f.Default, "0s")
			}
		}
		if m := ownDefault.FindStringSubmatch(f.Usage); m != nil {
			f.Usage, f.Default, f.Told = strings.TrimSuffix(f.Usage, m[0]), m[2]+m[3], true
			if m[1] != "" {
				f.Usage += " (" + m[1] + ")"
			}
		}
		if f.Default == "" && f.Kind == "" {
			f.Default = "false"
		}
		if f.Default == "" && (strings.HasPrefix(f.Kind, "int") || f.Kind == "float") {
			f.Default = "0"
		}
	}
	return flags
}

func (s *settings) flag(program, name string) (flag, bool) {
	i := slices.IndexFunc(s.flags[program], func(f flag) bool { return f.Name == name })
	if i < 0 {
		return flag{}, false
	}
	return s.flags[program][i], true
}

var (
	argument  = regexp.MustCompile(`^\s*- --([a-z0-9-]+)`)
	reference = regexp.MustCompile(`(\.Values|\$[a-z]+)\.([A-Za-z0-9.]+)`)
	alias     = regexp.MustCompile(`{{-? *(\$[a-z]+) := \.Values\.([A-Za-z0-9.]+) *}}`)
	relative  = regexp.MustCompile(`[ (]\.([a-z][A-Za-z0-9.]*)`)
	scope     = regexp.MustCompile(`{{-? *with (\S+) *-?}}`)
	opens     = regexp.MustCompile(`{{-? *(?:if|with|range|define) `)
	turns     = regexp.MustCompile(`{{-? *else`)
	closes    = regexp.MustCompile(`{{-? *end *-?}}`)
)

// valuesOfFlags tells which values of the chart set which flag: those that the flag's line in the
// template names, and those of the condition that it stands under.
func valuesOfFlags(source string) map[string][]string {
	found := map[string][]string{}
	aliases := map[string]string{".Values": ""}
	for _, m := range alias.FindAllStringSubmatch(source, -1) {
		aliases[m[1]] = m[2] + "."
	}
	named := func(line string) (names []string) {
		if strings.Contains(line, `include "mintmark.watchNamespaces"`) {
			return []string{"watchNamespaces"}
		}
		for _, m := range reference.FindAllStringSubmatch(line, -1) {
			if prefix, ok := aliases[m[1]]; ok {
				names = append(names, prefix+m[2])
			}
		}
		return names
	}
	var blocks []string // the conditions that hold, innermost last
	// within gives the values that a line names relative to the block it stands in.
	within := func(line string) (names []string) {
		for i := len(blocks) - 1; i >= 0; i-- {
			m := scope.FindStringSubmatch(blocks[i])
			if m == nil {
				continue
			}
			for _, object := range named(m[1]) {
				for _, field := range relative.FindAllStringSubmatch(line, -1) {
					names = append(names, object+"."+field[1])
				}
			}
			break
		}
		return names
	}
	before := ""
	for line := range strings.Lines(source) {
		switch opened, closed := opens.MatchString(line), closes.MatchString(line); {
		case opened && closed: // all of it on one line
		case opened:
			blocks = append(blocks, line)
		case closed && len(blocks) > 0:
			blocks = blocks[:len(blocks)-1]
		case turns.MatchString(line) && len(blocks) > 0:
			blocks[len(blocks)-1] = line
		}
		if m := argument.FindStringSubmatch(line); m != nil {
			names := append(named(line), within(line)...)
			if len(blocks) > 0 && (len(names) == 0 || before == blocks[len(blocks)-1]) {
				names = append(named(blocks[len(blocks)-1]), names...)
			}
			for _, name := range names {
				if !slices.Contains(found[m[1]], name) {
					found[m[1]] = append(found[m[1]], name)
				}
			}
		}
		before = line
	}
	return found
}

// value is the chart's default of a value by its path.
func (s *settings) value(path string) (any, error) {
	var current any = s.values
	for step := range strings.SplitSeq(path, ".") {
		fields, ok := current.(map[string]any)
		if !ok || fields[step] == nil {
			return nil, fmt.Errorf("the chart has no value %s", path)
		}
		current = fields[step]
	}
	return current, nil
}

func (s *settings) render() ([]byte, error) {
	t, err := template.New(page).Funcs(template.FuncMap{
		"flags": func(program string) []flag { return s.flags[program] },
		"flag": func(program, name string) (string, error) {
			f, ok := s.flag(program, name)
			if !ok {
				return "", fmt.Errorf("mintmark-%s has no flag --%s", program, name)
			}
			return f.Default, nil
		},
		"charted": func(program, name string) (string, error) {
			var names []string
			for _, value := range s.charted[program][name] {
				if _, err := s.value(value); err != nil {
					return "", err
				}
				names = append(names, "`"+value+"`")
			}
			return strings.Join(names, ", "), nil
		},
		"value":     s.value,
		"defaults":  func(resource string) []fieldDefault { return s.defaults[resource] },
		"default":   s.fieldDefault,
		"variables": func() ([]variable, error) { return environment() },
		"cell":      cell,
		"code":      code,
	}).Parse(text)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := t.Execute(&out, nil); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// cell is a text that may stand in a table.
func cell(s string) string {
	s = strings.ReplaceAll(strings.Join(strings.Fields(s), " "), "|", "\\|")
	return strings.NewReplacer("<", "&lt;", "*", "\\*").Replace(s)
}

// code is a value as code, or nothing.
func code(s string) string {
	if s == "" || s == "[]" {
		return ""
	}
	return "`" + s + "`"
}
