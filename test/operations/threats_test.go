package operations

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	testFunction = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)[A-Za-z0-9_]+)\(`)
	namedTest    = regexp.MustCompile("`([a-z][a-zA-Z0-9/_-]*)\\.((?:Test|Fuzz)[A-Za-z0-9_]+)`")
	threatRow    = regexp.MustCompile(`(?m)^\| ([0-9]+|F[0-9]+) \|.*$`)
)

// testsIn are the tests of the tree, by folder.
func testsIn(t testing.TB) map[string][]string {
	t.Helper()
	dir, found := root(t), map[string][]string{}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() && (entry.Name() == "bin" || strings.HasPrefix(entry.Name(), ".")) {
			if entry != nil && entry.IsDir() && err == nil {
				return fs.SkipDir
			}
			return err
		}
		if !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		source, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		folder, err := filepath.Rel(dir, filepath.Dir(path))
		for _, m := range testFunction.FindAllSubmatch(source, -1) {
			found[folder] = append(found[folder], string(m[1]))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// What the security model says is held by a test is held by a test that is there.
func TestTheSecurityModelNamesTestsThatExist(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root(t), "docs/security-model.md"))
	if err != nil {
		t.Fatal(err)
	}
	tests, count := testsIn(t), 0
	for _, m := range namedTest.FindAllStringSubmatch(string(text), -1) {
		count++
		if !slices.Contains(tests[m[1]], m[2]) {
			t.Errorf("docs/security-model.md names %s of %s, which is not there", m[2], m[1])
		}
	}
	if count < 80 {
		t.Errorf("only %d tests are named", count)
	}
	rows := map[string]bool{}
	for _, m := range threatRow.FindAllStringSubmatch(string(text), -1) {
		if rows[m[1]] {
			t.Errorf("row %s is there twice", m[1])
		}
		rows[m[1]] = true
		if !namedTest.MatchString(m[0]) && !strings.Contains(m[0], "not built yet") {
			t.Errorf("row %s names no test", m[1])
		}
	}
	if len(rows) < 40 {
		t.Errorf("only %d rows were found: %v", len(rows), slices.Sorted(maps.Keys(rows)))
	}
}
