package operations

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// alert is a rule of the chart's alerts.
type alert struct {
	Alert, Expr, For string
	Labels           struct{ Severity string }
	Annotations      struct {
		Summary, Description string
		RunbookURL           string `json:"runbook_url"`
	}
}

func alerts(t testing.TB) map[string]alert {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root(t), "charts/mintmark/files/alerts.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct {
			Name  string
			Rules []alert
		}
	}
	if err := yaml.UnmarshalStrict(text, &file); err != nil {
		t.Fatal(err)
	}
	all := map[string]alert{}
	for _, group := range file.Groups {
		for _, rule := range group.Rules {
			all[rule.Alert] = rule
		}
	}
	if len(all) < 10 {
		t.Fatalf("there are %d alerts", len(all))
	}
	return all
}

// unexported are the metrics of an expression that no program exports.
func unexported(exported map[string]bool, expr string) []string {
	return slices.DeleteFunc(metricName.FindAllString(expr, -1), func(name string) bool {
		return exported[strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_count")]
	})
}

// An alert on a metric that nobody exports never fires.
func TestAlertsAreOnMetricsThatExist(t *testing.T) {
	exported := exportedMetrics(t)
	// Values of labels: conditions, reasons, results.
	code := sources(t, []string{".go"}, "controllers", "internal/server", "api")
	matched, word := regexp.MustCompile(`[!=]~?"([^"]+)"`), regexp.MustCompile(`[A-Za-z][A-Za-z0-9-]*`)
	kubernetes := []string{"True", "False", "mintmark-controller-metrics"} // known to it, not to us
	for name, rule := range alerts(t) {
		for _, metric := range unexported(exported, rule.Expr) {
			t.Errorf("%s is on %s, which no program exports", name, metric)
		}
		for _, value := range matched.FindAllStringSubmatch(rule.Expr, -1) {
			for _, label := range word.FindAllString(value[1], -1) {
				if !strings.Contains(code, `"`+label+`"`) && !slices.Contains(kubernetes, label) {
					t.Errorf("%s is on %q, which no label has", name, label)
				}
			}
		}
		if rule.Annotations.Summary == "" || rule.Annotations.Description == "" {
			t.Errorf("%s does not say what is wrong and what to do", name)
		}
		if s := rule.Labels.Severity; s != "warning" && s != "critical" {
			t.Errorf("%s has the severity %q", name, s)
		}
	}
}

// A panel on a metric that nobody exports stays empty.
func TestTheDashboardIsOnMetricsThatExist(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root(t), "charts/mintmark/files/dashboard.json"))
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			Title, Description string
			Targets            []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
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
			if !metricName.MatchString(target.Expr) {
				t.Errorf("panel %q is on no metric of ours: %s", panel.Title, target.Expr)
			}
			for _, metric := range unexported(exported, target.Expr) {
				t.Errorf("panel %q is on %s, which no program exports", panel.Title, metric)
			}
		}
	}
}

const published = "https://github.com/mintmark-dev/mintmark/blob/main/"

// Whoever is woken by an alert is told where to read on, and reads of that alert there.
func TestEveryAlertHasItsRunbook(t *testing.T) {
	all := map[string]page{}
	for _, p := range pages(t) {
		all[p.path] = p
	}
	for name, rule := range alerts(t) {
		path, ok := strings.CutPrefix(rule.Annotations.RunbookURL, published)
		if !ok {
			t.Errorf("%s has the runbook %q, not one of %s", name, rule.Annotations.RunbookURL, published)
			continue
		}
		path, anchor, _ := strings.Cut(path, "#")
		p, ok := all[path]
		if !ok || !slices.Contains(p.anchors(), anchor) {
			t.Errorf("%s names the runbook %s#%s, which is not there", name, path, anchor)
			continue
		}
		if !strings.Contains(p.section(anchor), name) {
			t.Errorf("the runbook of %s, %s#%s, does not speak of it", name, path, anchor)
		}
	}
}
