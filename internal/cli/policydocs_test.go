package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mintmark-dev/mintmark/internal/authz/policy"
)

// docsBlocks are the blocks of code of a page of the documentation.
func docsBlocks(t *testing.T, file, language string) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", file))
	if err != nil {
		t.Fatal(err)
	}
	var blocks []string
	for i, part := range strings.Split(string(text), "\n```") {
		if code, ok := strings.CutPrefix(part, language+"\n"); ok && i%2 == 1 {
			blocks = append(blocks, code+"\n")
		}
	}
	return blocks
}

// Every policy of docs/policies.md compiles, every table of cases there comes out as it
// says, and no policy is without one.
func TestThePoliciesOfThePageDoWhatItSays(t *testing.T) {
	manifests, tables := map[string]string{}, []string{}
	for _, block := range docsBlocks(t, "policies.md", "yaml") {
		switch {
		case strings.Contains(block, "kind: AccessPolicy"):
			read, err := readPolicies("policies.md", []byte(block))
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range read {
				manifests[p.Name+".yaml"] = block
				if warnings := policy.Warnings(&p.Spec); len(warnings) > 0 && p.Name != "internal-networks" {
					t.Errorf("AccessPolicy %s: %s", p.Name, warnings)
				}
			}
		case strings.Contains(block, "cases:"):
			tables = append(tables, block)
		default:
			t.Errorf("neither a policy nor a table:\n%s", block)
		}
	}
	if len(manifests) < 9 || len(tables) != len(manifests) {
		t.Fatalf("%d policies and %d tables", len(manifests), len(tables))
	}
	tested := map[string]bool{}
	for i, block := range tables {
		table, set, err := readTable(fmt.Sprintf("table %d", i), []byte(block), func(file string) ([]byte, error) {
			tested[file] = true
			if manifests[file] == "" {
				return nil, fmt.Errorf("%s is not on the page", file)
			}
			return []byte(manifests[file]), nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range table.Cases {
			result, err := table.run(set, c)
			if err != nil || len(result.Diff) > 0 {
				t.Errorf("table %d, %s: %v\n%s%s", i, c.Name, err, indented(result.Diff, "  "), indented(result.Why, "    "))
			}
		}
	}
	for file := range manifests {
		if !tested[file] {
			t.Errorf("%s is not tested", file)
		}
	}
}

// The samples are applied as they stand.
func TestTheSamplePoliciesCompile(t *testing.T) {
	data, err := os.ReadFile(filepath.Join("..", "..", "config", "samples", "accesspolicy.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	read, err := readPolicies("accesspolicy.yaml", data)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range read {
		if errs := policy.Validate(&p.Spec); len(errs) > 0 {
			t.Errorf("%s: %v", p.Name, errs)
		}
	}
}

// What the page shows of the command is what it prints.
func TestThePageShowsWhatIsPrinted(t *testing.T) {
	for _, block := range docsBlocks(t, "policies.md", "console") {
		if strings.HasPrefix(block, "$ mintmark policy test") && !strings.Contains(block, "no rule allows it\n      condition deployments: true ['deploy:write' in request.permissions]") {
			t.Errorf("not as it is printed:\n%s", block)
		}
	}
}
