package operations

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/mintmark-dev/mintmark/test/controlplane"
)

// page is one file of the documentation.
type page struct {
	path string // within the repository
	text string
}

func root(t testing.TB) string {
	t.Helper()
	dir, err := controlplane.Root()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// pages are all pages, of which some are written for operators.
func pages(t testing.TB) (all []page) {
	t.Helper()
	dir := root(t)
	add := func(path string) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, page{name, string(text)})
	}
	for _, name := range []string{"README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md", "charts/mintmark/README.md"} {
		add(filepath.Join(dir, name))
	}
	err := filepath.WalkDir(filepath.Join(dir, "docs"), func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() && strings.HasSuffix(path, ".md") {
			add(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// forOperators are the pages whose every word is held to what there is.
func forOperators(t testing.TB) []page {
	t.Helper()
	kept := slices.DeleteFunc(pages(t), func(p page) bool {
		return !strings.HasPrefix(p.path, "docs/runbooks/") && !slices.Contains([]string{
			"docs/operations.md", "docs/security-model.md", "docs/troubleshooting.md", "docs/install.md", "docs/metrics.md", "SECURITY.md",
		}, p.path)
	})
	if len(kept) < 8 {
		t.Fatalf("there are %d pages for operators", len(kept))
	}
	return kept
}

var fence = regexp.MustCompile("(?ms)^( *)```([a-z]*)[^\n]*\n(.*?)^ *```$")

// shell are the blocks of the page to be typed into a shell.
func (p page) shell() (blocks []string) {
	for _, m := range fence.FindAllStringSubmatch(p.text, -1) {
		if slices.Contains([]string{"sh", "bash", "shell", "console"}, m[2]) {
			var block strings.Builder
			session := strings.HasPrefix(m[3], m[1]+"$ ") // what is typed, and what comes of it
			for line := range strings.Lines(m[3]) {
				line, typed := strings.CutPrefix(strings.TrimPrefix(line, m[1]), "$ ")
				if typed || !session {
					block.WriteString(line)
				}
			}
			blocks = append(blocks, block.String())
		}
	}
	return blocks
}

var spanPattern = regexp.MustCompile("`([^`\n]+)`")

// spans are the words set as code, outside blocks.
func (p page) spans() (spans []string) {
	for _, m := range spanPattern.FindAllStringSubmatch(fence.ReplaceAllString(p.text, ""), -1) {
		spans = append(spans, m[1])
	}
	return spans
}

// sources is the text of the files below these folders that are not tests and end so.
func sources(t testing.TB, suffixes []string, dirs ...string) string {
	t.Helper()
	var text strings.Builder
	for _, dir := range dirs {
		err := filepath.WalkDir(filepath.Join(root(t), dir), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || strings.HasSuffix(path, "_test.go") ||
				!slices.ContainsFunc(suffixes, func(suffix string) bool { return strings.HasSuffix(path, suffix) }) {
				return err
			}
			data, err := os.ReadFile(path)
			text.Write(data)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return text.String()
}
