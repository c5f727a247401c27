package architecture

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/mintmark-dev/mintmark/test/controlplane"
)

// field is as much of a CRD's schema as says which fields there are.
type field struct {
	Properties map[string]*field
	Items      *field
}

// What a credential refers to is in its own namespace, or is the cluster's: a user of one
// namespace reaches nothing of another by naming it.
func TestACredentialNamesNothingInAnotherNamespace(t *testing.T) {
	root, err := controlplane.Root()
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"servicetokens", "apikeys"} {
		source, err := os.ReadFile(filepath.Join(root, "config/crd/bases/mintmark.dev_"+kind+".yaml"))
		if err != nil {
			t.Fatal(err)
		}
		var crd struct {
			Spec struct {
				Scope    string
				Versions []struct {
					Schema struct{ OpenAPIV3Schema field }
				}
			}
		}
		if err := yaml.Unmarshal(source, &crd); err != nil {
			t.Fatal(err)
		}
		if crd.Spec.Scope != "Namespaced" {
			t.Errorf("%s are %s", kind, crd.Spec.Scope)
		}
		names := fieldsOf("spec", crd.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["spec"])
		if !slices.Contains(names, "spec.secret.name") {
			t.Fatalf("the fields of %s were not found: %v", kind, names)
		}
		for _, name := range names {
			if strings.Contains(strings.ToLower(name), "namespace") {
				t.Errorf("%s have the field %s: whose namespace may it name?", kind, name)
			}
		}
	}
}

func fieldsOf(path string, f *field) (names []string) {
	if f == nil {
		return nil
	}
	names = append(names, path)
	for name, child := range f.Properties {
		names = append(names, fieldsOf(path+"."+name, child)...)
	}
	return append(names, fieldsOf(path+"[]", f.Items)...)
}
