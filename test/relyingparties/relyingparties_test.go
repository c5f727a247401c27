//go:build e2e

package relyingparties

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/server"
	"github.com/mintmark-dev/mintmark/test/authority"
	"github.com/mintmark-dev/mintmark/test/controlplane"
	"github.com/mintmark-dev/mintmark/test/controlplane/process"
)

// clusterAudience is what the tokens for Kubernetes are for.
const clusterAudience = "https://kubernetes.example.com"

// startIssuer runs a server that is reached at its own issuer's URL.
func startIssuer(t *testing.T) (a *authority.Authority, issuer string) {
	t.Helper()
	address, err := process.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	issuer = "https://" + address
	a = authority.Start(t, func(c *server.Config) { c.BindAddress, c.Issuer = address, issuer })
	for _, algorithm := range []string{"ES256", "EdDSA", "RS256", "HS256"} {
		a.Create(t, &v1alpha1.CredentialClass{
			ObjectMeta: metav1.ObjectMeta{Name: className(algorithm)}, Spec: v1alpha1.CredentialClassSpec{JWTAlgorithm: algorithm},
		})
	}
	return a, issuer
}

func className(algorithm string) string { return "jwt-" + strings.ToLower(algorithm) }

// tokenOf mints a credential of the algorithm's class and exchanges it.
func tokenOf(t *testing.T, a *authority.Authority, algorithm, name string, audiences ...string) string {
	t.Helper()
	key := a.Mint(t, &v1alpha1.ServiceToken{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       v1alpha1.CredentialSpec{CredentialClassName: className(algorithm), JWT: &v1alpha1.JWT{Audiences: audiences}},
	}, "api:read")
	token := a.Exchange(t, key)
	header, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[0])
	var said struct{ Alg string }
	if err != nil || json.Unmarshal(header, &said) != nil || said.Alg != algorithm {
		t.Fatalf("a token of the class %s has the header %s", className(algorithm), header)
	}
	return token
}

func TestKubernetesAcceptsAJWTOfOurs(t *testing.T) {
	a, issuer := startIssuer(t)
	authorities, err := os.ReadFile(a.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := os.ReadFile("testdata/authentication.yaml")
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(t.TempDir(), "authentication.yaml")
	text := strings.NewReplacer(
		"https://mintmark.example.com", issuer, clusterAudience, clusterAudience,
		"      PEM", "      "+strings.ReplaceAll(strings.TrimSpace(string(authorities)), "\n", "\n      "),
	).Replace(string(manifest))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	trusting, err := a.Plane.AddAPIServer(t.Context(), "--authentication-config="+config)
	if err != nil {
		t.Fatal(err)
	}
	kubectl := newKubectl(t, a, trusting.Config)

	good := tokenOf(t, a, "ES256", "ci-deploy", clusterAudience)
	who := "mintmark:servicetoken:" + authority.Namespace + ":ci-deploy"
	a.Create(t, &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: "deployer"}, Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"configmaps"}, Verbs: []string{"get", "list"}}},
	})
	a.Create(t, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "mintmark-ci-deploy"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "deployer"},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: who}},
	})
	// The API server looks for the discovery document once it runs, and again if need be.
	deadline, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for {
		out, err := kubectl(good, "auth", "whoami", "-o", "jsonpath={.status.userInfo.username} {.status.userInfo.extra.mintmark\\.dev/scope}")
		if err == nil {
			if out != who+` ["api:read"]` {
				t.Errorf("Kubernetes takes it for %s", out)
			}
			break
		}
		select {
		case <-deadline.Done():
			t.Fatalf("not accepted: %s %v", out, err)
		case <-time.After(250 * time.Millisecond):
		}
	}
	if out, err := kubectl(good, "get", "configmaps", "-n", authority.Namespace); err != nil {
		t.Errorf("kubectl get as %s: %s %v", who, out, err)
	}
	if out, err := kubectl(good, "create", "namespace", "of-its-own"); err == nil || !strings.Contains(out, who) || !strings.Contains(out, "orbidden") {
		t.Errorf("what RBAC does not allow: %s %v", out, err)
	}
	if out, err := kubectl(tokenOf(t, a, "RS256", "rsa", clusterAudience), "auth", "whoami"); err != nil || !strings.Contains(out, "servicetoken:payments:rsa") {
		t.Errorf("RS256: %s %v", out, err)
	}
	for sentence, token := range map[string]string{
		"one for another audience": tokenOf(t, a, "ES256", "elsewhere", "https://api.example.com"),
		"one for our own servers":  tokenOf(t, a, "ES256", "own"),
		"one signed with HS256":    tokenOf(t, a, "HS256", "isolated", clusterAudience),
		// kube-apiserver knows RSA and ECDSA alone.
		"one signed with EdDSA":    tokenOf(t, a, "EdDSA", "edwards", clusterAudience),
		"one with a bit turned":    good[:len(good)-8] + "AAAAAAAA",
		"one of another algorithm": base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","typ":"at+jwt"}`)) + "." + strings.Split(good, ".")[1] + ".",
	} {
		if out, err := kubectl(token, "auth", "whoami"); err == nil || !strings.Contains(out, "must be logged in") && !strings.Contains(out, "nauthorized") {
			t.Errorf("%s: %s %v", sentence, out, err)
		}
	}
}

// newKubectl gives a kubectl for the API server, which is run with a token.
func newKubectl(t *testing.T, a *authority.Authority, server *rest.Config) func(token string, args ...string) (string, error) {
	t.Helper()
	binary, err := controlplane.Binary(t.Context(), os.Stderr, controlplane.Kubectl)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	return func(token string, args ...string) (string, error) {
		config := rest.AnonymousClientConfig(server)
		config.BearerToken = token
		path := filepath.Join(dir, "kubeconfig")
		if err := a.Plane.WriteKubeconfig(path, config); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), binary, append([]string{"--kubeconfig=" + path, "--cache-dir=" + dir}, args...)...)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		err := cmd.Run()
		return strings.TrimSpace(out.String()), err
	}
}

func TestGoOIDCVerifiesByDiscovery(t *testing.T) {
	a, issuer := startIssuer(t)
	ctx := oidc.ClientContext(t.Context(), a.Client)
	provider, err := oidc.NewProvider(ctx, issuer)
	if err != nil {
		t.Fatal(err)
	}
	const audience = "https://api.example.com"
	verifier := provider.Verifier(&oidc.Config{ClientID: audience})
	for _, algorithm := range []string{"ES256", "EdDSA", "RS256"} {
		token, err := verifier.Verify(ctx, tokenOf(t, a, algorithm, "ci-"+strings.ToLower(algorithm), audience, "https://other.example.com"))
		if err != nil {
			t.Errorf("%s: %v", algorithm, err)
			continue
		}
		var claims struct {
			Scope   string `json:"scope"`
			Version int64  `json:"mintmark.dev/version"`
		}
		if err := token.Claims(&claims); err != nil || claims.Scope != "api:read" || claims.Version != 1 || !slices.Contains(token.Audience, audience) {
			t.Errorf("%s: %+v %+v %v", algorithm, token, claims, err)
		}
	}
	for sentence, token := range map[string]string{
		"one for another audience": tokenOf(t, a, "ES256", "elsewhere", "https://other.example.com"),
		"one signed with HS256":    tokenOf(t, a, "HS256", "isolated", audience),
	} {
		if _, err := verifier.Verify(ctx, token); err == nil {
			t.Error(sentence)
		}
	}
	var metadata struct {
		Introspection string   `json:"introspection_endpoint"`
		Revocation    string   `json:"revocation_endpoint"`
		Algorithms    []string `json:"id_token_signing_alg_values_supported"`
	}
	if err := provider.Claims(&metadata); err != nil || metadata.Introspection != issuer+"/oauth2/introspect" || metadata.Revocation != issuer+"/oauth2/revoke" ||
		fmt.Sprint(metadata.Algorithms) != "[ES256 EdDSA RS256]" {
		t.Errorf("%+v %v", metadata, err)
	}
}
