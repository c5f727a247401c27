package operations

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	metricName   = regexp.MustCompile(`\bmintmark_[a-z_]+`)
	quotedMetric = regexp.MustCompile(`"(mintmark_[a-z_]+)"`)
	alertName    = regexp.MustCompile(`\bMintmark[A-Z][A-Za-z]+`)
)

// notMetrics have a metric's form of name: roles of the database.
var notMetrics = []string{"mintmark_app", "mintmark_readonly", "mintmark_migrate"}

func exportedMetrics(t testing.TB) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	for _, m := range quotedMetric.FindAllStringSubmatch(sources(t, []string{".go"}, "controllers", "internal/server", "cmd"), -1) {
		found[m[1]] = true
	}
	return found
}

func TestEveryMetricAndAlertOnAPageExists(t *testing.T) {
	exported, rules := exportedMetrics(t), alerts(t)
	for _, p := range pages(t) {
		if strings.HasPrefix(p.path, "docs/adr/") || strings.HasPrefix(p.path, "docs/gateways/") || p.path == "CHANGELOG.md" {
			continue // tell of what was, or have variables of a gateway's own
		}
		for _, name := range metricName.FindAllString(p.text, -1) {
			base := name
			for _, suffix := range []string{"_bucket", "_count", "_sum"} {
				base = strings.TrimSuffix(base, suffix)
			}
			if !exported[name] && !exported[base] && !slices.Contains(notMetrics, name) {
				t.Errorf("%s: nothing exports %s", p.path, name)
			}
		}
		for _, name := range alertName.FindAllString(p.text, -1) {
			if _, ok := rules[name]; !ok {
				t.Errorf("%s: there is no alert %s", p.path, name)
			}
		}
	}
}

// Metrics that no page explains are of use to nobody.
func TestThePageOfMetricsHasThemAllAndMarksThoseWithAnAlert(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root(t), "docs/metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	alerted := map[string]bool{}
	for _, rule := range alerts(t) {
		for _, name := range metricName.FindAllString(rule.Expr, -1) {
			alerted[strings.TrimSuffix(name, "_bucket")] = true
		}
	}
	for name := range exportedMetrics(t) {
		row := regexp.MustCompile("(?m)^\\| [^|]*`" + name + "`[^|]*\\|").FindString(string(text))
		if row == "" {
			t.Errorf("docs/metrics.md does not explain %s", name)
			continue
		}
		if marked := strings.Contains(row, "`"+name+"` *"); marked != alerted[name] {
			t.Errorf("docs/metrics.md marks %s as having an alert: %t, and there is one: %t", name, marked, alerted[name])
		}
	}
}

var (
	condition = regexp.MustCompile(`^([A-Z][A-Za-z]+)=(?:True|False|Unknown)$`)
	camel     = regexp.MustCompile(`^[A-Z][a-z0-9]+(?:[A-Z][a-z0-9]+)+$`)
)

// notOurs are names of Kubernetes and its surroundings.
var notOurs = []string{
	"AdmissionReview", "ClusterRole", "ClusterRoleBinding", "ConfigMap", "EmptyDir", "NetworkPolicy", "PersistentVolumeClaim", "PodDisruptionBudget",
	"PrometheusRule", "ReadWriteOnce", "RoleBinding", "ServiceMonitor", "StatefulSet", "SubjectAccessReview", "TokenReview",
	"ValidatingAdmissionPolicy",
}

func TestEveryConditionAndReasonOnAPageExists(t *testing.T) {
	code := sources(t, []string{".go"}, "api", "controllers", "internal", "webhook")
	chart := sources(t, []string{".yaml"}, "charts/mintmark/files")
	for _, p := range forOperators(t) {
		for _, span := range p.spans() {
			name := span
			if m := condition.FindStringSubmatch(span); m != nil {
				name = m[1]
			} else if !camel.MatchString(span) || slices.Contains(notOurs, span) {
				continue
			}
			quoted := regexp.MustCompile(`["/]` + name + `["/]|\b` + name + `\b[^\n]*\b(?:struct|Reason|string|Kind)\b|kind: ` + name + `\b|alert: ` + name + `\b`)
			if !quoted.MatchString(code) && !quoted.MatchString(chart) {
				t.Errorf("%s: nothing is called %s", p.path, name)
			}
		}
	}
}

// A package that the map leaves out is one that nobody is told of.
func TestThePageOfArchitectureNamesEveryPackage(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root(t), "docs/architecture.md"))
	if err != nil {
		t.Fatal(err)
	}
	packages, err := os.ReadDir(filepath.Join(root(t), "internal"))
	if err != nil || len(packages) == 0 {
		t.Fatalf("%d packages (%v)", len(packages), err)
	}
	for _, p := range packages {
		if !strings.Contains(string(text), "`internal/"+p.Name()+"`") {
			t.Errorf("docs/architecture.md does not name internal/%s", p.Name())
		}
	}
}

// Whoever removes everything, or backs it up, types what the page lists; whoever chooses the
// chart reads what it brings.
func TestThePageOfInstallationNamesEveryKind(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root(t), "docs/install.md"))
	if err != nil {
		t.Fatal(err)
	}
	crds, err := filepath.Glob(filepath.Join(root(t), "config/crd/bases/*.yaml"))
	if err != nil || len(crds) == 0 {
		t.Fatalf("%d CRDs (%v)", len(crds), err)
	}
	chart, err := os.ReadFile(filepath.Join(root(t), "charts/mintmark/Chart.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	project, err := os.ReadFile(filepath.Join(root(t), "PROJECT"))
	if err != nil {
		t.Fatal(err)
	}
	if listed := strings.Count(string(project), "\n  kind: "); listed != len(crds) {
		t.Errorf("PROJECT lists %d kinds, and there are %d", listed, len(crds))
	}
	for _, line := range []string{"kubectl delete crd", "`kubectl get servicetokens"} {
		_, after, found := strings.Cut(string(text), line)
		command := after[:min(len(after), 400)]
		if !found {
			t.Errorf("docs/install.md does not say %q", line)
		}
		for _, crd := range crds {
			plural := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(crd), "mintmark.dev_"), ".yaml")
			if !strings.Contains(line+command, plural) {
				t.Errorf("docs/install.md: %q leaves %s out", line, plural)
			}
			if !strings.Contains(string(chart), "name: "+plural+".mintmark.dev\n") {
				t.Errorf("charts/mintmark/Chart.yaml does not list %s", plural)
			}
		}
	}
}

var (
	heading = regexp.MustCompile(`(?m)^(#{1,6}) +(.+)$`)
	markup  = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
	named   = regexp.MustCompile(`<a (?:id|name)="([^"]+)"`)
	linked  = regexp.MustCompile(`\[[^\]]*\]\(([^)\s]+)\)`)
)

// anchors are those that GitHub gives to headings.
func (p page) anchors() (anchors []string) {
	seen := map[string]int{}
	for _, m := range heading.FindAllStringSubmatch(fence.ReplaceAllString(p.text, ""), -1) {
		title := linked.ReplaceAllStringFunc(m[2], func(link string) string { return link[1:strings.Index(link, "](")] })
		anchor := strings.ReplaceAll(markup.ReplaceAllString(strings.ToLower(title), ""), " ", "-")
		if n := seen[anchor]; n > 0 {
			anchors = append(anchors, anchor+"-"+string(rune('0'+n)))
		} else {
			anchors = append(anchors, anchor)
		}
		seen[anchor]++
	}
	for _, m := range named.FindAllStringSubmatch(p.text, -1) {
		anchors = append(anchors, m[1])
	}
	return anchors
}

// section is the text from a heading to the next one of its level or above.
func (p page) section(anchor string) string {
	matches := heading.FindAllStringSubmatchIndex(p.text, -1)
	for i, m := range matches {
		title := markup.ReplaceAllString(strings.ToLower(p.text[m[4]:m[5]]), "")
		if strings.ReplaceAll(title, " ", "-") != anchor {
			continue
		}
		for _, next := range matches[i+1:] {
			if next[3]-next[2] <= m[3]-m[2] {
				return p.text[m[0]:next[0]]
			}
		}
		return p.text[m[0]:]
	}
	return ""
}

func TestEveryLinkLeadsSomewhere(t *testing.T) {
	dir, all := root(t), map[string]page{}
	for _, p := range pages(t) {
		all[p.path] = p
	}
	for _, path := range slices.Sorted(maps.Keys(all)) {
		p := all[path]
		if path == "docs/reference/api.md" { // generated, with patterns that look like links
			continue
		}
		for _, m := range linked.FindAllStringSubmatch(fence.ReplaceAllString(p.text, ""), -1) {
			link := strings.TrimPrefix(m[1], published)
			within := link != m[1]
			if strings.Contains(link, "://") || strings.HasPrefix(link, "mailto:") {
				continue
			}
			target, anchor, _ := strings.Cut(link, "#")
			switch {
			case target == "":
				target = path
			case !within:
				target = filepath.Join(filepath.Dir(path), target)
			}
			if _, err := os.Stat(filepath.Join(dir, target)); err != nil {
				t.Errorf("%s: the link to %s leads nowhere", path, m[1])
				continue
			}
			if to, ok := all[target]; ok && anchor != "" && !slices.Contains(to.anchors(), anchor) && target != "docs/reference/api.md" {
				t.Errorf("%s: %s has no heading #%s", path, target, anchor)
			}
		}
	}
}
