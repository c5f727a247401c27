package gateways

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/encoding/protojson"
	yamlreader "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authz/policy"
	"github.com/mintmark-dev/mintmark/test/controlplane"
)

// What people copy from a page is what the tests run.
func TestThePagesShowTheFilesThatAreTested(t *testing.T) {
	root, err := controlplane.Root()
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(root, "docs", "gateways", "*", "*"))
	if err != nil || len(files) < 6 {
		t.Fatalf("%d files (%v)", len(files), err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		page, err := os.ReadFile(filepath.Dir(file) + ".md")
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(page), "\n"+strings.TrimRight(string(text), "\n")+"\n```\n") {
			t.Errorf("%s.md does not show %s as it is", filepath.Dir(file), filepath.Base(file))
		}
	}
}

// documents gives every document of every YAML block of these pages, by page.
func documents(t *testing.T, patterns ...string) map[string][][]byte {
	t.Helper()
	root, err := controlplane.Root()
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)\n```yaml\n(.*?)\n```\n")
	found := map[string][][]byte{}
	for _, pattern := range patterns {
		pages, err := filepath.Glob(filepath.Join(root, "docs", pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, page := range pages {
			text, err := os.ReadFile(page)
			if err != nil {
				t.Fatal(err)
			}
			for _, b := range block.FindAllSubmatch(text, -1) {
				r := yamlreader.NewYAMLReader(bufio.NewReader(strings.NewReader(string(b[1]))))
				for {
					document, err := r.Read()
					if errors.Is(err, io.EOF) {
						break
					}
					if err != nil {
						t.Fatal(err)
					}
					found[filepath.Base(page)] = append(found[filepath.Base(page)], document)
				}
			}
		}
	}
	return found
}

func TestEveryManifestInThePagesCanBeRead(t *testing.T) {
	found := documents(t, "gateways/*.md", "check.md")
	for _, page := range []string{"envoy.md", "envoy-gateway.md", "istio.md", "gateway-api.md", "traefik.md", "check.md"} {
		if len(found[page]) == 0 {
			t.Errorf("%s has no manifest", page)
		}
	}
	for page, all := range found {
		for _, document := range all {
			var object struct {
				APIVersion string `json:"apiVersion"`
				Kind       string `json:"kind"`
				Metadata   struct {
					Name string `json:"name"`
				} `json:"metadata"`
			}
			var anything map[string]any
			if err := yaml.UnmarshalStrict(document, &anything); err != nil {
				t.Errorf("%s: %v\n%s", page, err, document)
				continue
			}
			if err := yaml.Unmarshal(document, &object); err != nil {
				t.Errorf("%s: %v", page, err)
			}
			if object.APIVersion == "" {
				continue // a program's own configuration
			}
			if object.Kind == "" || object.Metadata.Name == "" && object.Kind != "IstioOperator" {
				t.Errorf("%s: an object without kind or name:\n%s", page, document)
			}
			checkOurs(t, page, object.APIVersion, object.Kind, document)
			checkContextExtensions(t, page, anything)
		}
	}
}

// checkOurs reads our own kinds by their types, and compiles policies.
func checkOurs(t *testing.T, page, version, kind string, document []byte) {
	t.Helper()
	if version != v1alpha1.GroupVersion.String() {
		return
	}
	object := map[string]any{
		"AccessPolicy": new(v1alpha1.AccessPolicy), "CredentialClass": new(v1alpha1.CredentialClass), "ServiceToken": new(v1alpha1.ServiceToken),
	}[kind]
	if err := yaml.UnmarshalStrict(document, object); err != nil {
		t.Errorf("%s: %s: %v", page, kind, err)
		return
	}
	if p, ok := object.(*v1alpha1.AccessPolicy); ok {
		if _, err := policy.Compile(p.Name, &p.Spec); err != nil {
			t.Errorf("%s: %v", page, err)
		}
	}
}

// checkContextExtensions looks for what a route needs, wherever it stands, and holds it to
// Envoy's schema and to our keys.
func checkContextExtensions(t *testing.T, page string, node any) {
	t.Helper()
	switch n := node.(type) {
	case map[string]any:
		if kind, _ := n["@type"].(string); strings.HasSuffix(kind, "ExtAuthzPerRoute") {
			text, err := json.Marshal(n)
			if err != nil {
				t.Fatal(err)
			}
			perRoute := new(extauthzv3.ExtAuthzPerRoute)
			without := regexp.MustCompile(`"@type":"[^"]*",`).ReplaceAll(text, nil)
			if err := protojson.Unmarshal(without, perRoute); err != nil {
				t.Errorf("%s: %v", page, err)
			}
			for key := range perRoute.GetCheckSettings().GetContextExtensions() {
				if key != "mintmark.permissions" && key != "mintmark.audiences" && !strings.HasPrefix(key, "mintmark.resource.") {
					t.Errorf("%s: %s is refused by the server", page, key)
				}
			}
		}
		for _, child := range n {
			checkContextExtensions(t, page, child)
		}
	case []any:
		for _, child := range n {
			checkContextExtensions(t, page, child)
		}
	}
}

func TestEnvoyTakesItsConfiguration(t *testing.T) {
	root, err := controlplane.Root()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, "docs", "gateways", "envoy", "envoy.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	asJSON, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		t.Fatal(err)
	}
	config := new(bootstrapv3.Bootstrap)
	if err := protojson.Unmarshal(asJSON, config); err != nil {
		t.Fatal(err)
	}
	if err := config.ValidateAll(); err != nil {
		t.Fatal(err)
	}
	for _, listener := range config.GetStaticResources().GetListeners() {
		for _, chain := range listener.GetFilterChains() {
			for _, filter := range chain.GetFilters() {
				message, err := filter.GetTypedConfig().UnmarshalNew()
				if err != nil {
					t.Fatal(err)
				}
				if v, ok := message.(interface{ ValidateAll() error }); !ok || v.ValidateAll() != nil {
					t.Errorf("%s: %v", filter.GetName(), v.ValidateAll())
				}
			}
		}
	}
	var asMap any
	if err := json.Unmarshal(asJSON, &asMap); err != nil {
		t.Fatal(err)
	}
	checkContextExtensions(t, "envoy.yaml", asMap)
}
