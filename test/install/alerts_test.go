package install_test

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
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
				Annotations      struct {
					Summary, Description string
					RunbookURL           string `json:"runbook_url"`
				}
			}
		}
	}
	if err := yaml.UnmarshalStrict([]byte(read(t, filepath.Join(root(t), chart, "files", "alerts.yaml"))), &file); err != nil {
		t.Fatal(err)
	}
	exported := exportedMetrics(t)
	metric := regexp.MustCompile(`mintmark_[a-z_]+`)
	// Values of labels: conditions, reasons, results.
	matched, word := regexp.MustCompile(`[!=]~?"([^"]+)"`), regexp.MustCompile(`[A-Za-z][A-Za-z0-9-]*`)
	kubernetes := []string{"True", "False", "mintmark-controller-metrics"} // known to it, not to us
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
			for _, value := range matched.FindAllStringSubmatch(rule.Expr, -1) {
				for _, name := range word.FindAllString(value[1], -1) {
					if !strings.Contains(exported, `"`+name+`"`) && !slices.Contains(kubernetes, name) {
						t.Errorf("%s is on %q, which no label has", rule.Alert, name)
					}
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

// A panel on a metric that nobody exports stays empty.
func TestTheDashboardIsOnMetricsThatExist(t *testing.T) {
	rendered := rendered(t, helm, "--set", "metrics.dashboard.enabled=true").named(t, "ConfigMap", "mintmark-dashboard")
	if rendered.GetLabels()["grafana_dashboard"] != "1" {
		t.Errorf("Grafana's sidecar does not find it: %v", rendered.GetLabels())
	}
	text, _ := at(t, rendered, "data", "mintmark.json").(string)
	var dashboard struct {
		Panels []struct {
			Title, Description string
			Targets            []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(text), &dashboard); err != nil {
		t.Fatal(err)
	}
	if len(dashboard.Panels) < 10 {
		t.Errorf("there are %d panels", len(dashboard.Panels))
	}
	exported := exportedMetrics(t)
	for _, panel := range dashboard.Panels {
		if panel.Title == "" || panel.Description == "" || len(panel.Targets) == 0 {
			t.Errorf("panel %q shows nothing, or does not say what", panel.Title)
		}
		for _, target := range panel.Targets {
			names := regexp.MustCompile(`mintmark_[a-z_]+`).FindAllString(target.Expr, -1)
			if len(names) == 0 {
				t.Errorf("panel %q is on no metric of ours: %s", panel.Title, target.Expr)
			}
			for _, name := range names {
				base := strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_count")
				if !strings.Contains(exported, `"`+base+`"`) {
					t.Errorf("panel %q is on %s, which no program exports", panel.Title, name)
				}
			}
		}
	}
}

// exportedMetrics is the source of the packages that export metrics, and of those that name
// what their labels tell.
func exportedMetrics(t testing.TB) string {
	t.Helper()
	var source strings.Builder
	for _, dir := range []string{"controllers", "internal/server", "api"} {
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
