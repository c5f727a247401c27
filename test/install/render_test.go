package install_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// One of the two would be forgotten when the other is changed.
func TestChartAndKustomizeInstallTheSame(t *testing.T) {
	fromKustomize := built(t, "config/default")
	delete(fromKustomize, "Namespace "+namespace) // Helm's user chooses and makes it
	if diff := cmp.Diff(fromKustomize.normalized(), rendered(t, helm).normalized()); diff != "" {
		t.Errorf("config/default (-) and charts/mintmark (+) differ:\n%s", diff)
	}
}

func TestComponentsAreTheChartsOptions(t *testing.T) {
	for component, option := range map[string]struct{ values, adds string }{
		"restart":    {"restart.enabled=true", "ClusterRole mintmark-controller-restart"},
		"management": {"management.enabled=true,management.namespaces={default}", "ClusterRole mintmark-server-management"},
	} {
		t.Run(component, func(t *testing.T) {
			fromKustomize := built(t, overlay(t, "resources: [config/default]\ncomponents: [config/components/"+component+"]\n"))
			delete(fromKustomize, "Namespace "+namespace)
			fromChart := rendered(t, helm, "--set", option.values)
			if diff := cmp.Diff(fromKustomize.normalized(), fromChart.normalized()); diff != "" {
				t.Errorf("config/components/%s (-) and %s (+) differ:\n%s", component, option.values, diff)
			}
			if fromChart[option.adds] == nil {
				t.Errorf("%s renders no %s", option.values, option.adds)
			}
		})
	}
}

func TestAnotherNamespaceIsFollowedEverywhere(t *testing.T) {
	moved := overlay(t, "namespace: credentials\nresources: [config/default]\ntransformers: [config/namespace]\n")
	for name, output := range map[string][]byte{
		"kustomize": kustomize.run(t, "build", moved),
		"the chart": helm.run(t, "template", "other", chart, "--namespace", "credentials"),
	} {
		for i, line := range strings.Split(string(output), "\n") {
			if strings.Contains(line, namespace) {
				t.Errorf("installed in credentials by %s, line %d still says %q", name, i+1, line)
			}
		}
	}
}

// A dashboard that Grafana's sidecar does not find shows nothing.
func TestTheDashboardIsAsInTheFile(t *testing.T) {
	dashboard := rendered(t, helm, "--set", "metrics.dashboard.enabled=true").named(t, "ConfigMap", "mintmark-dashboard")
	if dashboard.GetLabels()["grafana_dashboard"] != "1" {
		t.Errorf("Grafana's sidecar does not find it: %v", dashboard.GetLabels())
	}
	if diff := cmp.Diff(read(t, filepath.Join(root(t), chart, "files", "dashboard.json")), at(t, dashboard, "data", "mintmark.json")); diff != "" {
		t.Errorf("the file (-) and the ConfigMap (+) differ:\n%s", diff)
	}
}

func TestClusterScopedObjectsHaveNoNamespace(t *testing.T) {
	for k, o := range built(t, "config/default").only("ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition",
		"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding", "CredentialClass",
		"MutatingWebhookConfiguration", "ValidatingWebhookConfiguration") {
		if o.GetNamespace() != "" {
			t.Errorf("kustomize put %s into a namespace", k)
		}
	}
}

func TestChartCarriesTheGeneratedFiles(t *testing.T) {
	for generated, copies := range map[string]string{
		"config/crd/bases/*.yaml":       "charts/mintmark/files/crds",
		"config/webhook/manifests.yaml": "charts/mintmark/files",
	} {
		paths, err := filepath.Glob(filepath.Join(root(t), generated))
		if err != nil || len(paths) == 0 {
			t.Fatalf("no file matches %s (%v)", generated, err)
		}
		for _, path := range paths {
			name := filepath.Base(path)
			if name == "manifests.yaml" {
				name = "webhooks.yaml"
			}
			if diff := cmp.Diff(read(t, path), read(t, filepath.Join(root(t), copies, name))); diff != "" {
				t.Errorf("%s/%s is not %s: run make generate\n%s", copies, name, path, diff)
			}
		}
	}
}

func TestChartRendersTheSameWithHelm3(t *testing.T) {
	if diff := cmp.Diff(rendered(t, helm).normalized(), rendered(t, helm3).normalized()); diff != "" {
		t.Errorf("Helm 4 (-) and Helm 3 (+) render differently:\n%s", diff)
	}
}

func TestWatchNamespacesBindSecretsThereOnly(t *testing.T) {
	objects := rendered(t, helm, "--set", "watchNamespaces={payments,orders}")
	for _, role := range []string{"mintmark-controller-credentials", "mintmark-controller-expiry", "mintmark-server-credentials"} {
		if objects["ClusterRoleBinding "+role] != nil {
			t.Errorf("%s is still bound in the whole cluster", role)
		}
		for _, ns := range []string{"payments", "orders", namespace} {
			binding := objects["RoleBinding "+ns+"/"+role]
			if binding == nil {
				t.Errorf("%s is not bound in %s", role, ns)
				continue
			}
			if got := at(t, binding, "subjects", 0, "namespace"); got != namespace {
				t.Errorf("%s in %s is bound to an account in %v", role, ns, got)
			}
		}
	}
	for _, deployment := range []string{"mintmark-controller", "mintmark-server"} {
		if !hasArg(t, objects.named(t, "Deployment", deployment), "--watch-namespaces=mintmark-system,orders,payments") {
			t.Errorf("%s is not told which namespaces to watch", deployment)
		}
	}
}

func TestValuesReachTheManifests(t *testing.T) {
	server := func(m manifests) *unstructured.Unstructured { return m.named(t, "Deployment", "mintmark-server") }
	for name, test := range map[string]struct {
		flags []string
		check func(t *testing.T, m manifests)
	}{
		"a digest decides which image runs": {
			[]string{"--set", "image.tag=v9", "--set", "image.digest=sha256:" + strings.Repeat("a", 64)},
			func(t *testing.T, m manifests) {
				want := "ghcr.io/mintmark-dev/mintmark@sha256:" + strings.Repeat("a", 64)
				if got := at(t, server(m), "spec", "template", "spec", "containers", 0, "image"); got != want {
					t.Errorf("the image is %v, not %s", got, want)
				}
			},
		},
		"trusted proxies, issuer and staleness are the server's arguments": {
			[]string{
				"--set", "server.trustedProxies={10.0.0.0/8,2001:db8::/32}",
				"--set", "server.issuer=https://id.example.com", "--set", "server.maxStaleness=1m",
			},
			func(t *testing.T, m manifests) {
				for _, arg := range []string{
					"--trusted-proxies=10.0.0.0/8,2001:db8::/32", "--issuer=https://id.example.com", "--max-staleness=1m",
				} {
					if !hasArg(t, server(m), arg) {
						t.Errorf("the server is not given %s", arg)
					}
				}
			},
		},
		"limits by address are the server's arguments": {
			[]string{"--set", "server.rateLimitPerAddress=2000000", "--set", "server.blocking.failures=0", "--set", "server.blocking.allow={10.0.0.0/8}"},
			func(t *testing.T, m manifests) {
				for _, arg := range []string{"--rate-limit-per-address=2000000", "--block-failures=0", "--block-allow=10.0.0.0/8"} {
					if !hasArg(t, server(m), arg) {
						t.Errorf("the server is not given %s", arg)
					}
				}
			},
		},
		"PostgreSQL is named by a file, and events wait for it on a disk": {
			[]string{"--set", "database.existingSecret=db", "--set", "audit.overflow=deny"},
			func(t *testing.T, m manifests) {
				for _, arg := range []string{"--database-url-file=/etc/mintmark/database/url", "--audit-spool-dir=/var/lib/mintmark/spool", "--audit-overflow=deny"} {
					if !hasArg(t, server(m), arg) {
						t.Errorf("the server is not given %s", arg)
					}
				}
			},
		},
		"a spool on a volume makes the servers a StatefulSet, whose volumes are kept": {
			[]string{
				"--set", "database.existingSecret=db", "--set", "audit.spool.persistence.enabled=true",
				"--set", "audit.spool.persistence.storageClassName=fast", "--set", "audit.spool.maxBytes=2000000000",
			},
			func(t *testing.T, m manifests) {
				if m["Deployment "+namespace+"/mintmark-server"] != nil {
					t.Error("there is a Deployment of servers as well")
				}
				set := m.named(t, "StatefulSet", "mintmark-server")
				for _, arg := range []string{"--audit-spool-dir=/var/lib/mintmark/spool", "--audit-spool-max-bytes=2000000000"} {
					if !hasArg(t, set, arg) {
						t.Errorf("the server is not given %s", arg)
					}
				}
				if got := at(t, set, "spec", "volumeClaimTemplates", 0, "spec", "storageClassName"); got != "fast" {
					t.Errorf("the volumes are of the class %v", got)
				}
				policy, _ := at(t, set, "spec", "persistentVolumeClaimRetentionPolicy").(map[string]any)
				if policy["whenDeleted"] != "Retain" || policy["whenScaled"] != "Retain" {
					t.Errorf("events go with the volumes: %v", policy)
				}
				if spread, _ := at(t, set, "spec", "template", "spec", "topologySpreadConstraints").([]any); len(spread) != 2 {
					t.Errorf("the servers are spread by %v", spread)
				}
				m.named(t, "Service", at(t, set, "spec", "serviceName").(string))
			},
		},
		"SQLite is on a volume that is kept, and one server has it at a time": {
			[]string{"--set", "database.sqlite.enabled=true", "--set", "server.replicas=1"},
			func(t *testing.T, m manifests) {
				if got := at(t, server(m), "spec", "strategy", "type"); got != "Recreate" {
					t.Errorf("the strategy is %v, not Recreate", got)
				}
				claim := m.named(t, "PersistentVolumeClaim", "mintmark-server-data")
				if claim.GetAnnotations()["helm.sh/resource-policy"] != "keep" || !hasArg(t, server(m), "--database-url=sqlite:///var/lib/mintmark/mintmark.db") {
					t.Error("the file is not on a volume that is kept")
				}
			},
		},
		"events go to an OTLP receiver with what a Secret says": {
			[]string{
				"--set", "audit.otlp.endpoint=https://collector.example.com:4318", "--set", "audit.otlp.existingSecret=otlp", "--set", "audit.otlp.caKey=ca.crt",
			},
			func(t *testing.T, m manifests) {
				for _, arg := range []string{
					"--audit-otlp-endpoint=https://collector.example.com:4318", "--audit-otlp-headers-file=/etc/mintmark/otlp/headers",
					"--audit-otlp-ca-file=/etc/mintmark/otlp/ca.crt",
				} {
					if !hasArg(t, server(m), arg) {
						t.Errorf("the server is not given %s", arg)
					}
				}
				if got := at(t, server(m), "spec", "template", "spec", "volumes", 0, "secret", "secretName"); got != "otlp" {
					t.Errorf("the Secret mounted is %v", got)
				}
			},
		},
		"a certificate of one's own is mounted and named": {
			[]string{"--set", "certificates.public.existingSecret=edge"},
			func(t *testing.T, m manifests) {
				if !hasArg(t, server(m), "--tls-cert-file=/etc/mintmark/tls/tls.crt") ||
					!hasArg(t, server(m), "--tls-key-file=/etc/mintmark/tls/tls.key") {
					t.Error("the server is not told of its certificate")
				}
				if got := at(t, server(m), "spec", "template", "spec", "volumes", 0, "secret", "secretName"); got != "edge" {
					t.Errorf("the Secret mounted is %v", got)
				}
			},
		},
		"the CRDs can be left to somebody else": {
			[]string{"--set", "crds.install=false"},
			func(t *testing.T, m manifests) {
				if crds := m.only("CustomResourceDefinition"); len(crds) > 0 {
					t.Errorf("rendered all the same: %v", crds.keys())
				}
			},
		},
		"the CRDs are kept unless told otherwise": {
			nil,
			func(t *testing.T, m manifests) {
				for k, crd := range m.only("CustomResourceDefinition") {
					if crd.GetAnnotations()["helm.sh/resource-policy"] != "keep" {
						t.Errorf("%s and with it every credential would go with the release", k)
					}
				}
			},
		},
		"the CRDs go with the release where that is asked for": {
			[]string{"--set", "crds.keep=false"},
			func(t *testing.T, m manifests) {
				for k, crd := range m.only("CustomResourceDefinition") {
					if crd.GetAnnotations()["helm.sh/resource-policy"] != "" {
						t.Errorf("%s is kept", k)
					}
				}
			},
		},
		"monitoring objects are there when asked for": {
			[]string{
				"--set", "metrics.serviceMonitor.enabled=true", "--set", "metrics.prometheusRule.enabled=true",
				"--set", "metrics.serviceMonitor.labels.release=prometheus",
			},
			func(t *testing.T, m manifests) {
				if m.named(t, "ServiceMonitor", "mintmark").GetLabels()["release"] != "prometheus" {
					t.Error("the ServiceMonitor has not the label asked for")
				}
				m.named(t, "PrometheusRule", "mintmark")
			},
		},
		"network policies, budgets and aggregation can be switched off": {
			[]string{
				"--set", "networkPolicy.enabled=false", "--set", "controller.podDisruptionBudget.enabled=false",
				"--set", "server.podDisruptionBudget.enabled=false", "--set", "rbac.aggregate=false", "--set", "expiry.delete=false",
			},
			func(t *testing.T, m manifests) {
				if left := m.only("NetworkPolicy", "PodDisruptionBudget"); len(left) > 0 {
					t.Errorf("still there: %v", left.keys())
				}
				if m["ClusterRole mintmark-controller-expiry"] != nil {
					t.Error("the controller may still delete credentials")
				}
				for label := range m.named(t, "ClusterRole", "mintmark-edit").GetLabels() {
					if strings.HasPrefix(label, "rbac.authorization.k8s.io/") {
						t.Errorf("mintmark-edit is still aggregated (%s)", label)
					}
				}
			},
		},
	} {
		t.Run(name, func(t *testing.T) { test.check(t, rendered(t, helm, test.flags...)) })
	}
}

func TestBadValuesAreRefusedByName(t *testing.T) {
	for name, test := range map[string]struct{ set, want string }{
		"a value the chart does not know":         {"replicas=3", "additional properties 'replicas' not allowed"},
		"a misspelt value deep inside":            {"server.trustedProxy={10.0.0.0/8}", "additional properties 'trustedProxy' not allowed"},
		"no replica":                              {"server.replicas=0", "/server/replicas"},
		"a network that is none":                  {"server.trustedProxies={10.0.0.0/33}", "/server/trustedProxies/0"},
		"an address instead of a network":         {"server.trustedProxies={10.0.0.1}", "/server/trustedProxies/0"},
		"a file for several servers":              {"database.sqlite.enabled=true", "set server.replicas=1, or use PostgreSQL"},
		"two databases":                           {"server.replicas=1,database.sqlite.enabled=true,database.existingSecret=db", "choose one"},
		"to deny without a database":              {"audit.overflow=deny", "audit.overflow: deny is for a database"},
		"a spool kept without a database":         {"audit.spool.persistence.enabled=true", "there is nothing to keep without a database"},
		"a spool kept beside SQLite":              {"server.replicas=1,database.sqlite.enabled=true,audit.spool.persistence.enabled=true", "is for PostgreSQL"},
		"a volume the spool does not fit":         {"database.existingSecret=db,audit.spool.persistence.enabled=true,audit.spool.persistence.size=1Gi", "size 1Gi has no room for audit.spool.maxBytes 1073741824"},
		"a log on no volume":                      {"database.existingSecret=db,audit.log=/var/log/audit.jsonl", "audit.log: /var/log/audit.jsonl is on no volume"},
		"a log on the volume there is not":        {"audit.log=/var/lib/mintmark/audit.jsonl", "where there is a database"},
		"one port for two":                        {"server.service.port=8445", "are both 8445: choose another"},
		"a database in no Secret of that name":    {"database.existingSecret=My_Secret", "/database/existingSecret"},
		"management where nothing is watched":     {"management.enabled=true,management.namespaces={payments},watchNamespaces={billing}", "payments is not among watchNamespaces"},
		"management everywhere, of a few watched": {"management.enabled=true,management.namespaces={*},watchNamespaces={billing}", "* is not among watchNamespaces"},
		"a size that is none":                     {"audit.spool.persistence.size=2GB", "/audit/spool/persistence/size"},
		"an algorithm that does not exist":        {"defaultClass.spec.jwtAlgorithm=none", "/defaultClass/spec/jwtAlgorithm"},
		"headers for no receiver":                 {"audit.otlp.existingSecret=otlp", "set audit.otlp.endpoint"},
		"authorities in no Secret":                {"audit.otlp.endpoint=https://c.example.com,audit.otlp.caKey=ca.crt", "set that too"},
		"a receiver that is no URL":               {"audit.otlp.endpoint=collector:4318", "/audit/otlp/endpoint"},
		"an overflow that does not exist":         {"audit.overflow=drop", "/audit/overflow"},
		"a rate that is no number":                {"server.rateLimitPerAddress=1/s", "/server/rateLimitPerAddress"},
		"an allowed address without its length":   {"server.blocking.allow={10.0.0.1}", "/server/blocking/allow/0"},
		"a duration without a unit":               {"server.maxStaleness=10", "/server/maxStaleness"},
		"an issuer that is not https":             {"server.issuer=http://id.example.com", "/server/issuer"},
		"a digest that is none":                   {"image.digest=sha256:abc", "/image/digest"},
		"a namespace that cannot exist":           {"watchNamespaces={Payments}", "/watchNamespaces/0"},
		"a log level that does not exist":         {"logLevel=verbose", "/logLevel"},
		"a boolean written as a word":             {"networkPolicy.enabled=yes", "/networkPolicy/enabled"},
		"a pod label the selectors need":          {"server.podLabels.app\\.kubernetes\\.io/name=x", "/server/podLabels"},
		"a common label the chart sets":           {"commonLabels.helm\\.sh/chart=x", "/commonLabels/helm.sh~1chart"},
		"a network peer with a misspelt selector": {"networkPolicy.publicFrom[0].namespaceSelektor.a=b", "/networkPolicy/publicFrom/0"},
		"a class rule with a misspelt field":      {"defaultClass.spec.rules[0].permission={a:b}", "/defaultClass/spec/rules/0"},
		"a disruption budget over 100 percent":    {"server.podDisruptionBudget.maxUnavailable=101%", "/server/podDisruptionBudget/maxUnavailable"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := helm.try(t, "template", "mintmark", chart, "--set", test.set)
			if err == nil {
				t.Fatalf("--set %s is accepted", test.set)
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("--set %s: the message does not say %q:\n%v", test.set, test.want, err)
			}
		})
	}
}

func hasArg(t testing.TB, deployment *unstructured.Unstructured, arg string) bool {
	t.Helper()
	args, _ := at(t, deployment, "spec", "template", "spec", "containers", 0, "args").([]any)
	for _, a := range args {
		if a == arg {
			return true
		}
	}
	return false
}

func read(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func write(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
