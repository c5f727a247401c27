package server

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/test/controlplane"
)

// clusterIssuer is the iss of the test API server's service account tokens.
const clusterIssuer = "https://kubernetes.default.svc.cluster.local"

// published stands for a cluster whose API server lets everybody see its keys: it asks
// the API server for them, as an account that may.
func (in *installation) published() *httptest.Server {
	in.t.Helper()
	asAdmin, err := rest.HTTPClientFor(in.plane.Config)
	if err != nil {
		in.t.Fatal(err)
	}
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		resp, err := asAdmin.Get(in.plane.Config.Host + r.URL.Path)
		if err != nil {
			http.Error(w, "the API server does not answer", http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, resp.Body)
	}))
	in.t.Cleanup(server.Close)
	return server
}

// exchange asks a running server for a token of ours.
func (r *running) exchange(subjectToken string) (int, exchangeResponse) {
	r.in.t.Helper()
	form := url.Values{"grant_type": {grantTokenExchange}, "subject_token": {subjectToken}, "subject_token_type": {tokenTypeJWT}}
	req, err := http.NewRequest(http.MethodPost, testIssuer+tokenPath, strings.NewReader(form.Encode()))
	if err != nil {
		r.in.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	got := send(r.in.t, r.public, req)
	var issued exchangeResponse
	if got.status == http.StatusOK {
		if err := json.Unmarshal([]byte(got.body), &issued); err != nil {
			r.in.t.Fatal(err)
		}
	}
	return got.status, issued
}

func (r *running) forwardAuth(token, query string) answer {
	r.in.t.Helper()
	req, err := http.NewRequest(http.MethodGet, testIssuer+"/forward-auth?"+query, nil)
	if err != nil {
		r.in.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	return send(r.in.t, r.public, req)
}

// A pod exchanges the token of its service account, made and signed by a real API server,
// and its account, its TrustedIssuer and its role decide what it may do, as they are.
func TestAPodNeedsNoKey(t *testing.T) {
	for name, keys := range map[string]func(*testing.T, *httptest.Server, *v1alpha1.TrustedIssuerSpec){
		"with the keys fetched": func(_ *testing.T, public *httptest.Server, s *v1alpha1.TrustedIssuerSpec) {
			s.JWKSURL = public.URL + "/openid/v1/jwks"
			s.CABundle = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: public.Certificate().Raw})
		},
		"with the keys written down": func(t *testing.T, public *httptest.Server, s *v1alpha1.TrustedIssuerSpec) {
			resp, err := public.Client().Get(public.URL + "/openid/v1/jwks")
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			text, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			s.JWKS = string(text)
		},
	} {
		t.Run(name, func(t *testing.T) {
			in := newInstallation(t)
			public := in.published()
			in.servesPods(func(s *v1alpha1.TrustedIssuerSpec) { keys(t, public, s) })
		})
	}
}

func (in *installation) servesPods(keys func(*v1alpha1.TrustedIssuerSpec)) {
	t := in.t
	t.Helper()
	role := &v1alpha1.AccessRole{ObjectMeta: metav1.ObjectMeta{GenerateName: "reader-"}, Spec: v1alpha1.AccessRoleSpec{Permissions: []v1alpha1.Permission{"report:read"}}}
	in.create(role)
	// An audience of the test's own, for other installations share the API server.
	audience := "https://" + in.serverName() + "/" + role.Name
	trusted := &v1alpha1.TrustedIssuer{ObjectMeta: metav1.ObjectMeta{GenerateName: "cluster-"}, Spec: v1alpha1.TrustedIssuerSpec{
		Issuer: clusterIssuer, Audiences: []string{audience}, MaxTokenAge: "1d",
		Validations: []v1alpha1.ClaimValidation{{Expression: "claims['kubernetes.io'].namespace == '" + in.namespace + "'", Message: "only pods of ours"}},
		Mapping: v1alpha1.ClaimMapping{
			Subject:    "claims['kubernetes.io'].namespace + ':' + claims['kubernetes.io'].serviceaccount.name",
			Roles:      "claims.sub == 'system:serviceaccount:" + in.namespace + ":reporter' ? ['" + role.Name + "'] : []",
			Attributes: "{'namespace': claims['kubernetes.io'].namespace}",
		},
		Ceiling: v1alpha1.IssuerCeiling{Permissions: []v1alpha1.Permission{"report:*"}, Roles: []string{role.Name}},
	}}
	keys(&trusted.Spec)
	in.create(trusted)
	t.Cleanup(func() { _ = in.client.Delete(context.WithoutCancel(t.Context()), role) })
	r := in.startReady(func(c *Config) {
		c.IssuerNetworks = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	})
	token := func(namespace, name string, audiences ...string) string {
		t.Helper()
		token, err := in.plane.ServiceAccount(t.Context(), namespace, name, audiences...)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}

	pod := token(in.namespace, "reporter", audience)
	status, issued := r.exchange(pod)
	if status != http.StatusOK || issued.Scope != "report:read" || issued.ExpiresIn != 900 {
		t.Fatalf("%d %+v", status, issued)
	}
	subject := "issuer:" + trusted.Name + ":" + in.namespace + ":reporter"
	if got := r.forwardAuth(issued.AccessToken, "permission=report:read"); got.status != http.StatusOK || got.header.Get("X-User-Id") != subject {
		t.Errorf("%d, the subject is %q, want %q", got.status, got.header.Get("X-User-Id"), subject)
	}
	if got := r.forwardAuth(issued.AccessToken, "permission=report:write"); got.status != http.StatusForbidden {
		t.Errorf("what it may not: %d", got.status)
	}
	if got := r.forwardAuth(pod, "permission=report:read"); got.status != http.StatusUnauthorized {
		t.Errorf("the service account's token as it is: %d", got.status)
	}
	if status, issued := r.exchange(token(in.namespace, "other", audience)); status != http.StatusOK || issued.Scope != "" {
		t.Errorf("another account: %d %+v", status, issued)
	}
	for name, refused := range map[string]string{
		"the API server's own audience":      token(in.namespace, "reporter"),
		"the internal audience":              token(in.namespace, "reporter", "mintmark-internal"),
		"an account of another namespace":    token(in.namespace+"-other", "reporter", audience),
		"the token of this server's account": in.config.BearerToken,
	} {
		if status, _ := r.exchange(refused); status != http.StatusBadRequest {
			t.Errorf("%s: %d", name, status)
		}
	}

	role.Spec.Permissions = []v1alpha1.Permission{"report:list"}
	if err := in.client.Update(t.Context(), role); err != nil {
		t.Fatal(err)
	}
	eventually(t, soon+4*time.Second, "the role is as it is now", func() bool {
		return r.forwardAuth(issued.AccessToken, "permission=report:read").status == http.StatusForbidden
	})
	if err := in.client.Delete(t.Context(), trusted); err != nil {
		t.Fatal(err)
	}
	eventually(t, soon+4*time.Second, "nothing stands without the TrustedIssuer", func() bool { return r.forwardAuth(issued.AccessToken, "").status == http.StatusUnauthorized })
	if status, _ := r.exchange(pod); status != http.StatusBadRequest {
		t.Errorf("an exchange without the TrustedIssuer: %d", status)
	}
}

// Without the operator's word no server fetches from the API server, or from anything
// else that is not on the public internet.
func TestAServerDoesNotFetchFromItsOwnNetworks(t *testing.T) {
	in := newInstallation(t)
	trusted := &v1alpha1.TrustedIssuer{ObjectMeta: metav1.ObjectMeta{GenerateName: "probe-"}, Spec: v1alpha1.TrustedIssuerSpec{
		Issuer: clusterIssuer, JWKSURL: in.plane.Config.Host + "/openid/v1/jwks", CABundle: in.plane.Config.CAData, Audiences: []string{in.namespace},
	}}
	in.create(trusted)
	t.Cleanup(func() { _ = in.client.Delete(context.WithoutCancel(t.Context()), trusted) })
	r := in.startReady()
	eventually(t, 10*time.Second, "the fetch is refused", func() bool { return strings.Contains(r.log.String(), "--allow-issuer-networks") })
	if _, text := r.probe("/metrics"); !strings.Contains(text, `mintmark_issuer_keys_age_seconds{issuer="`+trusted.Name+`"} NaN`) {
		t.Errorf("the metrics do not show it")
	}
}

// What the page shows can be applied as it is.
func TestTheAPIServerTakesTheManifestsOfThePage(t *testing.T) {
	in := bareInstallation(t)
	root, err := controlplane.Root()
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(root, "docs", "trusted-issuers.md"))
	if err != nil {
		t.Fatal(err)
	}
	applied := 0
	for i, block := range strings.Split(string(page), "```yaml\n") {
		text, _, _ := strings.Cut(block, "```")
		if i == 0 || !strings.Contains(text, "apiVersion: mintmark.dev") {
			continue
		}
		for _, manifest := range strings.Split(text, "---\n") {
			object := &unstructured.Unstructured{}
			if err := utilyaml.NewYAMLOrJSONDecoder(strings.NewReader(manifest), 4096).Decode(object); err != nil {
				t.Fatal(err)
			}
			object.SetName(object.GetName() + "-" + in.namespace)
			strict := client.WithFieldValidation(in.client, metav1.FieldValidationStrict)
			if err := strict.Create(t.Context(), object, client.DryRunAll); err != nil {
				t.Errorf("%v in\n%s", err, manifest)
			}
			applied++
		}
	}
	if applied != 6 {
		t.Errorf("the page has %d manifests", applied)
	}
	for name, change := range map[string]func(*v1alpha1.TrustedIssuerSpec){
		"by http":      func(s *v1alpha1.TrustedIssuerSpec) { s.Issuer = "http://issuer.example.com" },
		"no audience":  func(s *v1alpha1.TrustedIssuerSpec) { s.Audiences = nil },
		"HS256":        func(s *v1alpha1.TrustedIssuerSpec) { s.Algorithms = []string{"HS256"} },
		"keys twice":   func(s *v1alpha1.TrustedIssuerSpec) { s.JWKS, s.JWKSURL = "{}", "https://issuer.example.com/keys" },
		"a file":       func(s *v1alpha1.TrustedIssuerSpec) { s.JWKSURL = "file:///etc/passwd" },
		"empty issued": func(s *v1alpha1.TrustedIssuerSpec) { s.IssuedAudiences = []string{""} },
	} {
		object := &v1alpha1.TrustedIssuer{ObjectMeta: metav1.ObjectMeta{Name: "bad-" + in.namespace}, Spec: v1alpha1.TrustedIssuerSpec{
			Issuer: "https://issuer.example.com", Audiences: []string{"mintmark"},
		}}
		change(&object.Spec)
		if err := in.client.Create(t.Context(), object, client.DryRunAll); !apierrors.IsInvalid(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
