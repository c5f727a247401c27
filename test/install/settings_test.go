package install_test

import (
	"encoding/json"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

// schema is as much of a JSON schema, or of a CRD's, as is compared here.
type schema struct {
	Enum                 []any
	AdditionalProperties any
	Properties           map[string]*schema
	Items                *schema
}

// The chart's schema repeats what a class may say, so that helm refuses what the API
// server would: it has to keep up.
func TestTheChartKnowsEveryFieldOfAClass(t *testing.T) {
	var values schema
	if err := json.Unmarshal([]byte(read(t, filepath.Join(root(t), chart, "values.schema.json"))), &values); err != nil {
		t.Fatal(err)
	}
	var crd struct {
		Spec struct {
			Versions []struct {
				Schema struct{ OpenAPIV3Schema schema }
			}
		}
	}
	if err := yaml.Unmarshal([]byte(read(t, filepath.Join(root(t), "config/crd/bases/mintmark.dev_credentialclasses.yaml"))), &crd); err != nil {
		t.Fatal(err)
	}
	compareFields(t, "spec", crd.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["spec"], values.Properties["defaultClass"].Properties["spec"])
}

// compareFields looks as deep as the chart's schema does.
func compareFields(t *testing.T, path string, api, values *schema) {
	t.Helper()
	if api.Items != nil && values.Items != nil {
		compareFields(t, path+"[]", api.Items, values.Items)
	}
	if len(values.Properties) == 0 {
		return // anything goes, and the API server checks it
	}
	if diff := cmp.Diff(slices.Sorted(maps.Keys(api.Properties)), slices.Sorted(maps.Keys(values.Properties))); diff != "" {
		t.Errorf("%s of a class (-) and values.schema.json (+) have other fields:\n%s", path, diff)
		return
	}
	for name, field := range values.Properties {
		if diff := cmp.Diff(api.Properties[name].Enum, field.Enum); diff != "" {
			t.Errorf("%s.%s of a class (-) and values.schema.json (+) allow other values:\n%s", path, name, diff)
		}
		compareFields(t, path+"."+name, api.Properties[name], field)
	}
}

// A value that no schema describes is accepted however it is misspelt.
func TestEveryValueOfTheChartHasASchema(t *testing.T) {
	var known schema
	if err := json.Unmarshal([]byte(read(t, filepath.Join(root(t), chart, "values.schema.json"))), &known); err != nil {
		t.Fatal(err)
	}
	var values map[string]any
	if err := yaml.Unmarshal([]byte(read(t, filepath.Join(root(t), chart, "values.yaml"))), &values); err != nil {
		t.Fatal(err)
	}
	covered(t, "", values, &known)
}

func covered(t *testing.T, path string, values map[string]any, known *schema) {
	t.Helper()
	if closed, ok := known.AdditionalProperties.(bool); (!ok || closed) && len(known.Properties) > 0 {
		t.Errorf("values.schema.json lets anything be under %q", path)
	}
	for name, value := range values {
		field, ok := known.Properties[name]
		if !ok {
			t.Errorf("values.schema.json does not know %s%s", path, name)
			continue
		}
		if fields, ok := value.(map[string]any); ok && len(field.Properties) > 0 {
			covered(t, path+name+".", fields, field)
		}
	}
}

// The notes are what whoever installs it reads, if anything.
func TestTheNotesSayWhatIsMissing(t *testing.T) {
	const (
		noDatabase = "who used which credential is recorded nowhere"
		onTheNode  = "events wait on the node, and are lost with the pod"
		nobody     = "Nobody is alerted"
		pepper     = "Back up the Secret mintmark-system/mintmark-pepper"
	)
	for name, test := range map[string]struct {
		flags        []string
		says, silent []string
	}{
		"as it comes": {nil, []string{noDatabase, nobody, pepper, "deployment/mintmark-server"}, []string{onTheNode}},
		"with PostgreSQL": {
			[]string{"--set", "database.existingSecret=db"}, []string{onTheNode, pepper}, []string{noDatabase},
		},
		"with all there is": {
			[]string{
				"--set", "database.existingSecret=db", "--set", "audit.spool.persistence.enabled=true", "--set", "metrics.prometheusRule.enabled=true",
			}, []string{pepper, "statefulset/mintmark-server"}, []string{noDatabase, onTheNode, nobody},
		},
	} {
		t.Run(name, func(t *testing.T) {
			out := string(helm.run(t, append([]string{"install", "mintmark", chart, "--dry-run=client", "--namespace", namespace}, test.flags...)...))
			_, notes, _ := strings.Cut(out, "\nNOTES:\n")
			for _, text := range test.says {
				if !strings.Contains(notes, text) {
					t.Errorf("the notes do not say %q:\n%s", text, notes)
				}
			}
			for _, text := range test.silent {
				if strings.Contains(notes, text) {
					t.Errorf("the notes say %q:\n%s", text, notes)
				}
			}
		})
	}
}
