package install_test

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	authorizationv1 "k8s.io/api/authorization/v1"
)

func TestManagementIsEnabledSomewhere(t *testing.T) {
	if _, err := helm.try(t, "template", "mintmark", chart, "--set", "management.enabled=true"); err == nil || !strings.Contains(err.Error(), "management.namespaces") {
		t.Errorf("management without a namespace: %v", err)
	}
	for _, name := range []string{"admin", "external", "adoption"} {
		if _, err := helm.try(t, "template", "mintmark", chart, "--set", "management.permissions={"+name+"}"); err == nil {
			t.Errorf("management.permissions takes %q, which is no permission but the right to make such credentials", name)
		}
	}
	own := rendered(t, helm, "--set", "management.enabled=true,management.namespaces={"+namespace+"},watchNamespaces={billing}")
	if own["RoleBinding "+namespace+"/mintmark-server-management"] == nil {
		t.Error("management in the namespace of the installation, which is always watched, binds the server nowhere")
	}
	everywhere := rendered(t, helm, "--set", "management.enabled=true,management.namespaces={*},management.roles={deployer},management.className=rest")
	if everywhere["ClusterRoleBinding mintmark-server-management"] == nil {
		t.Error("management.namespaces=* binds the server nowhere")
	}
	text := fmt.Sprint(everywhere["ValidatingAdmissionPolicy mintmark-management"].Object)
	if strings.Contains(text, "mintmark-rest") || !strings.Contains(text, "== 'rest'") {
		t.Error("the policy does not follow management.className")
	}
}

// What the server's account may where management is enabled, against a golden file, and
// that all of it is taken back where it is not any more.
func TestManagementIsBoundWhereItIsEnabled(t *testing.T) {
	plane := installation(t)
	api, _ := clients(t, plane.Config)
	newNamespace(t, api, tenant, nil)
	newNamespace(t, api, "billing", nil)
	t.Cleanup(func() { helm.run(t, upgradeFlags()...) })
	helm.run(t, upgradeFlags("--set", "management.enabled=true,management.namespaces={"+tenant+"},management.permissions={orders:*}")...)
	type ask = authorizationv1.ResourceAttributes
	const own, server = "mintmark.dev", "system:serviceaccount:" + namespace + ":mintmark-server"
	create := ask{Namespace: tenant, Verb: "create", Group: own, Resource: "servicetokens"}
	eventually(t, 30*time.Second, func() error {
		if !allowed(t, plane.Config, server, create) {
			return fmt.Errorf("the server may not make credentials where management is enabled")
		}
		return nil
	})
	cfg, err := plane.ServiceAccountConfig(t.Context(), namespace, "mintmark-server")
	if err != nil {
		t.Fatal(err)
	}
	nobody, err := plane.ServiceAccountConfig(t.Context(), tenant, "nobody")
	if err != nil {
		t.Fatal(err)
	}
	anybody := rules(t, nobody, tenant)
	var listed strings.Builder
	fmt.Fprintf(&listed, "Where management is enabled, mintmark-server may:\n")
	for _, line := range rules(t, cfg, tenant) {
		if !slices.Contains(anybody, line) {
			fmt.Fprintln(&listed, "  "+line)
		}
	}
	golden := filepath.Join("testdata", "mintmark-server.management.can-i.golden")
	if *update {
		write(t, golden, listed.String())
	}
	if diff := cmp.Diff(read(t, golden), listed.String()); diff != "" {
		t.Errorf("the server may do other things than %s lists (if that is meant: go test -update):\n%s", golden, diff)
	}
	for name, what := range map[string]ask{
		"make a credential elsewhere":    {Namespace: "billing", Verb: "create", Group: own, Resource: "servicetokens"},
		"patch one elsewhere":            {Namespace: namespace, Verb: "patch", Group: own, Resource: "apikeys"},
		"delete one":                     {Namespace: tenant, Verb: "delete", Group: own, Resource: "apikeys"},
		"write status":                   {Namespace: tenant, Verb: "patch", Group: own, Resource: "servicetokens", Subresource: "status"},
		"read a workload's Secret":       {Namespace: tenant, Verb: "get", Resource: "secrets", Name: "ci-deploy"},
		"use another class":              {Namespace: tenant, Verb: "use", Group: own, Resource: "credentialclasses", Name: "default"},
		"use the administrators' class":  {Namespace: tenant, Verb: "use", Group: own, Resource: "credentialclasses", Name: "mintmark-admin"},
		"hand out administrators' power": {Namespace: tenant, Verb: "grant", Group: own, Resource: "permissions", Name: "admin"},
		"hand out what is not named":     {Namespace: tenant, Verb: "grant", Group: own, Resource: "permissions", Name: "deploy:*"},
		"hand out elsewhere":             {Namespace: "billing", Verb: "grant", Group: own, Resource: "permissions", Name: "orders:*"},
		"change a Revocation":            {Verb: "patch", Group: own, Resource: "revocations"},
		"raise a ceiling":                {Verb: "patch", Group: own, Resource: "credentialclasses", Name: "mintmark-rest"},
	} {
		if allowed(t, plane.Config, server, what) {
			t.Errorf("the server may %s", name)
		}
	}
	helm.run(t, upgradeFlags()...)
	eventually(t, 30*time.Second, func() error {
		for _, what := range []ask{create, {Verb: "create", Group: own, Resource: "revocations"}, {Namespace: tenant, Verb: "grant", Group: own, Resource: "permissions", Name: "orders:*"}} {
			if allowed(t, plane.Config, server, what) {
				return fmt.Errorf("the server may still %s %s", what.Verb, what.Resource)
			}
		}
		return nil
	})
}
