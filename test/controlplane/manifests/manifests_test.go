package manifests_test

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/mintmark-dev/mintmark/test/controlplane"
	"github.com/mintmark-dev/mintmark/test/controlplane/manifests"
)

func TestMain(m *testing.M) { controlplane.Main(m) }

func TestWebhooksAreCalledOnLoopbackAtTheirPaths(t *testing.T) {
	hooks := &unstructured.Unstructured{Object: map[string]any{
		"kind": "ValidatingWebhookConfiguration",
		"webhooks": []any{map[string]any{
			"name": "a.mintmark.dev",
			"clientConfig": map[string]any{
				"service": map[string]any{"name": "mintmark-webhook", "namespace": "mintmark-system", "path": "/validate"},
			},
		}},
	}}
	if err := manifests.WebhooksOnLoopback([]*unstructured.Unstructured{hooks}, 9443); err != nil {
		t.Fatal(err)
	}
	want := []any{map[string]any{
		"name": "a.mintmark.dev", "clientConfig": map[string]any{"url": "https://127.0.0.1:9443/validate"},
	}}
	if diff := cmp.Diff(want, hooks.Object["webhooks"]); diff != "" {
		t.Errorf("webhooks (-want +got):\n%s", diff)
	}
}

func TestEveryWebhookThatUsersInstallCanBeCalledOnLoopback(t *testing.T) {
	root, err := controlplane.Root()
	if err != nil {
		t.Fatal(err)
	}
	objects, err := manifests.Build(filepath.Join(root, "config", "default"))
	if err != nil {
		t.Fatal(err)
	}
	if err := manifests.WebhooksOnLoopback(objects, 9443); err != nil {
		t.Fatal(err)
	}
	var urls []string
	for _, o := range objects {
		hooks, _, err := unstructured.NestedSlice(o.Object, "webhooks")
		if err != nil {
			t.Fatal(err)
		}
		for _, hook := range hooks {
			url, _, err := unstructured.NestedString(hook.(map[string]any), "clientConfig", "url")
			if err != nil || !strings.HasPrefix(url, "https://127.0.0.1:9443/") {
				t.Errorf("%s %s is called at %q", o.GetKind(), o.GetName(), url)
			}
			urls = append(urls, url)
		}
	}
	if len(urls) == 0 {
		t.Error("config/default has no webhook")
	}
}

func TestWhatUsersInstallIsAcceptedByAnAPIServerTwice(t *testing.T) {
	root, err := controlplane.Root()
	if err != nil {
		t.Fatal(err)
	}
	all, err := manifests.Build(filepath.Join(root, "config", "default"))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(all, func(o *unstructured.Unstructured) bool { return o.GetKind() == "Deployment" }) {
		t.Error("config/default has no Deployment")
	}
	plane := controlplane.ForTest(t)
	for range 2 {
		applied, err := manifests.Install(t.Context(), plane.Config, root, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range applied {
			if o.GetKind() == "Deployment" || o.GetKind() == "ValidatingWebhookConfiguration" {
				t.Errorf("%s %s was not to be installed", o.GetKind(), o.GetName())
			}
		}
	}
}
