package gateways

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mintmark-dev/mintmark/test/controlplane"
)

// What people copy from a page is what the tests run.
func TestThePagesShowTheFilesThatAreTested(t *testing.T) {
	root, err := controlplane.Root()
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(root, "docs", "gateways", "*", "*"))
	if err != nil || len(files) < 6 {
		t.Fatalf("%d files (%v)", len(files), err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		page, err := os.ReadFile(filepath.Dir(file) + ".md")
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(page), "\n"+strings.TrimRight(string(text), "\n")+"\n```\n") {
			t.Errorf("%s.md does not show %s as it is", filepath.Dir(file), filepath.Base(file))
		}
	}
}
