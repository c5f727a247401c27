package install_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// An alert on a metric that nobody exports never fires.
func TestAlertsAreOnMetricsThatExist(t *testing.T) {
	var file struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert, Expr, For string
				Labels           struct{ Severity string }
				Annotations      struct{ Summary, Description string }
			}
		}
	}
	if err := yaml.UnmarshalStrict([]byte(read(t, filepath.Join(root(t), chart, "files", "alerts.yaml"))), &file); err != nil {
		t.Fatal(err)
	}
	exported := exportedMetrics(t)
	metric := regexp.MustCompile(`mintmark_[a-z_]+`)
	count := 0
	for _, group := range file.Groups {
		for _, rule := range group.Rules {
			count++
			for _, name := range metric.FindAllString(rule.Expr, -1) {
				base := strings.TrimSuffix(name, "_bucket")
				if !strings.Contains(exported, `"`+base+`"`) {
					t.Errorf("%s is on %s, which no program exports", rule.Alert, name)
				}
			}
			if rule.Annotations.Summary == "" || rule.Annotations.Description == "" {
				t.Errorf("%s does not say what is wrong and what to do", rule.Alert)
			}
			if s := rule.Labels.Severity; s != "warning" && s != "critical" {
				t.Errorf("%s has the severity %q", rule.Alert, s)
			}
		}
	}
	if count == 0 {
		t.Error("there are no alerts")
	}
}

// exportedMetrics is the source of the packages that export metrics.
func exportedMetrics(t testing.TB) string {
	t.Helper()
	var source strings.Builder
	for _, dir := range []string{"controllers", "internal/server"} {
		err := filepath.WalkDir(filepath.Join(root(t), dir), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			data, err := os.ReadFile(path)
			source.Write(data)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return source.String()
}
