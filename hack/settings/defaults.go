package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// fieldDefault is the default of a field of a resource.
type fieldDefault struct{ Path, Default, Description string }

// node is as much of a CRD's schema as is read here.
type node struct {
	Description string
	Default     json.RawMessage
	Properties  map[string]*node
	Items       *node
}

// readDefaults gives what the API server fills in, by the plural name of the resource.
func readDefaults(dir string) (map[string][]fieldDefault, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil {
		return nil, err
	}
	if len(paths) == 0 {
		return nil, fmt.Errorf("%s has no CRDs", dir)
	}
	all := map[string][]fieldDefault{}
	for _, path := range paths {
		source, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		var crd struct {
			Spec struct {
				Names    struct{ Plural string }
				Versions []struct {
					Schema struct{ OpenAPIV3Schema node }
				}
			}
		}
		if err := yaml.Unmarshal(source, &crd); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		found := collect("spec", crd.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["spec"])
		slices.SortFunc(found, func(a, b fieldDefault) int { return strings.Compare(a.Path, b.Path) })
		all[crd.Spec.Names.Plural] = found
	}
	return all, nil
}

func collect(path string, n *node) (found []fieldDefault) {
	if n == nil {
		return nil
	}
	if text := string(n.Default); text != "" && text != "{}" {
		found = append(found, fieldDefault{path, strings.Trim(text, `"`), firstSentence(n.Description)})
	}
	for name, child := range n.Properties {
		found = append(found, collect(path+"."+name, child)...)
	}
	return append(found, collect(path+"[]", n.Items)...)
}

// firstSentence is what a table has room for.
func firstSentence(description string) string {
	description = strings.Join(strings.Fields(description), " ")
	sentence, _, _ := strings.Cut(description, ". ")
	if strings.HasPrefix(sentence, "Duration is") { // of the type: the name says enough
		return ""
	}
	return strings.TrimSuffix(sentence, ".")
}

// fieldDefault gives the default of one field, for a text that tells of it.
func (s *settings) fieldDefault(resource, path string) (string, error) {
	for _, f := range s.defaults[resource] {
		if f.Path == path {
			return f.Default, nil
		}
	}
	return "", fmt.Errorf("%s of %s has no default", path, resource)
}
