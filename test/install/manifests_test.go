package install_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
)

const (
	namespace = "mintmark-system"
	chart     = "charts/mintmark"
	// kubeVersion stands for the cluster's where there is none to ask.
	kubeVersion = "1.36.0"
)

// manifests are objects by "Kind namespace/name".
type manifests map[string]*unstructured.Unstructured

func key(o *unstructured.Unstructured) string {
	if o.GetNamespace() == "" {
		return o.GetKind() + " " + o.GetName()
	}
	return o.GetKind() + " " + o.GetNamespace() + "/" + o.GetName()
}

func parse(t testing.TB, data []byte) manifests {
	t.Helper()
	objects := manifests{}
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(data), 4096)
	for {
		o := &unstructured.Unstructured{}
		err := decoder.Decode(&o.Object)
		if errors.Is(err, io.EOF) {
			return objects
		}
		if err != nil {
			t.Fatalf("read the manifests: %v", err)
		}
		if len(o.Object) == 0 {
			continue
		}
		if objects[key(o)] != nil {
			t.Fatalf("%s is rendered twice", key(o))
		}
		objects[key(o)] = o
	}
}

// rendered is the chart with the values given as Helm's flags, in the namespace of
// the installation.
func rendered(t testing.TB, b *tool, flags ...string) manifests {
	t.Helper()
	return parse(t, b.run(t, append([]string{"template", "mintmark", chart, "--namespace", namespace, "--kube-version", kubeVersion}, flags...)...))
}

// built is what kustomize makes of a folder.
func built(t testing.TB, dir string) manifests {
	t.Helper()
	return parse(t, kustomize.run(t, "build", dir))
}

var inConfig = regexp.MustCompile(`\bconfig/[a-z/]+`)

// overlay is a folder with this kustomization, in which folders of the repository go by
// their path there, such as config/default.
func overlay(t testing.TB, kustomization string) string {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "kustomization.yaml"), inConfig.ReplaceAllStringFunc(kustomization, func(path string) string {
		relative, err := filepath.Rel(dir, filepath.Join(root(t), path))
		if err != nil {
			t.Fatal(err)
		}
		return relative
	}))
	return dir
}

// named returns the object of that kind and name, wherever it is.
func (m manifests) named(t testing.TB, kind, name string) *unstructured.Unstructured {
	t.Helper()
	for _, o := range m {
		if o.GetKind() == kind && o.GetName() == name {
			return o
		}
	}
	t.Fatalf("there is no %s %s among %s", kind, name, strings.Join(m.keys(), ", "))
	return nil
}

func (m manifests) keys() []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

// only keeps the objects of some kinds.
func (m manifests) only(kinds ...string) manifests {
	kept := manifests{}
	for k, o := range m {
		for _, kind := range kinds {
			if o.GetKind() == kind {
				kept[k] = o
			}
		}
	}
	return kept
}

// normalized drops what one way of installing adds and the other does not: Helm's
// labels and annotations. Everything else has to be the same.
func (m manifests) normalized() map[string]any {
	plain := map[string]any{}
	for k, o := range m {
		o = o.DeepCopy()
		o.SetLabels(without(o.GetLabels(), "helm.sh/", "app.kubernetes.io/"))
		o.SetAnnotations(without(o.GetAnnotations(), "helm.sh/", "meta.helm.sh/"))
		plain[k] = o.Object
	}
	return plain
}

func without(all map[string]string, prefixes ...string) map[string]string {
	kept := map[string]string{}
	for k, v := range all {
		drop := false
		for _, prefix := range prefixes {
			drop = drop || strings.HasPrefix(k, prefix)
		}
		if !drop {
			kept[k] = v
		}
	}
	if len(kept) == 0 {
		return nil
	}
	return kept
}

// at reads a field by its path; numbers index lists.
func at(t testing.TB, o *unstructured.Unstructured, path ...any) any {
	t.Helper()
	var current any = o.Object
	for _, step := range path {
		switch step := step.(type) {
		case string:
			fields, ok := current.(map[string]any)
			if !ok {
				t.Fatalf("%s has no field %s", key(o), fmt.Sprint(path...))
			}
			current = fields[step]
		case int:
			items, ok := current.([]any)
			if !ok || step >= len(items) {
				t.Fatalf("%s has no item %s", key(o), fmt.Sprint(path...))
			}
			current = items[step]
		}
	}
	return current
}
