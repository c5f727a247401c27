package federation

import (
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// documented are the TrustedIssuers of the page and of the samples, by name.
func documented(t *testing.T) map[string]*v1alpha1.TrustedIssuerSpec {
	t.Helper()
	page, err := os.ReadFile("../../docs/trusted-issuers.md")
	if err != nil {
		t.Fatal(err)
	}
	sample, err := os.ReadFile("../../config/samples/trustedissuer.yaml")
	if err != nil {
		t.Fatal(err)
	}
	blocks := []string{string(sample)}
	for i, block := range strings.Split(string(page), "```yaml\n") {
		if i > 0 {
			text, _, _ := strings.Cut(block, "```")
			blocks = append(blocks, strings.Split(text, "---\n")...)
		}
	}
	found := map[string]*v1alpha1.TrustedIssuerSpec{}
	for _, text := range blocks {
		switch {
		case strings.Contains(text, "kind: TrustedIssuer"):
			var object v1alpha1.TrustedIssuer
			if err := yaml.UnmarshalStrict([]byte(text), &object); err != nil {
				t.Fatalf("%v in\n%s", err, text)
			}
			found[object.Name] = &object.Spec
		case strings.Contains(text, "kind: AccessRole"):
			if err := yaml.UnmarshalStrict([]byte(text), new(v1alpha1.AccessRole)); err != nil {
				t.Fatalf("%v in\n%s", err, text)
			}
		}
	}
	return found
}

// Every manifest of the page does what the page says of it, with claims as the issuers
// have them.
func TestTheManifestsOfThePageDoWhatItSays(t *testing.T) {
	page := documented(t)
	if names := slices.Sorted(maps.Keys(page)); !slices.Equal(names, []string{"access", "build-cluster", "ci-example", "github-actions", "gitlab", "this-cluster"}) {
		t.Fatalf("the page and the samples have %v", names)
	}
	github := map[string]any{
		"sub": "repo:octo-org/octo-repo:ref:refs/heads/main", "ref": "refs/heads/main", "repository": "octo-org/octo-repo", "repository_id": "74",
		"repository_owner": "octo-org", "repository_owner_id": "65", "run_id": "9301230123", "actor": "octocat", "workflow": "deploy", "event_name": "push",
		"job_workflow_ref": "octo-org/octo-repo/.github/workflows/deploy.yaml@refs/heads/main", "environment": "", "ref_protected": "true",
	}
	pod := map[string]any{
		"sub": "system:serviceaccount:reports:reporter", "jti": "ea28ed49", "kubernetes.io": map[string]any{
			"namespace": "reports", "node": map[string]any{"name": "n1", "uid": "1"}, "pod": map[string]any{"name": "reporter-0", "uid": "2"},
			"serviceaccount": map[string]any{"name": "reporter", "uid": "3"},
		},
	}
	build := map[string]any{
		"sub": "system:serviceaccount:builds:images", "kubernetes.io": map[string]any{"namespace": "builds", "serviceaccount": map[string]any{"name": "images", "uid": "3"}},
	}
	person := map[string]any{
		"type": "app", "email": "ann@example.com", "sub": "7335d417-61da-459d-899c-0a01c76a2f94", "country": "DE", "identity_nonce": "x",
		"custom": map[string]any{"groups": []any{"payments"}},
	}
	service := map[string]any{"type": "app", "common_name": "e367826f93b8d71185e03fe518aff3b4.access", "sub": ""}
	gitlab := map[string]any{
		"namespace_id": "72", "namespace_path": "my-group", "project_id": "20", "project_path": "my-group/my-project", "ref": "main", "ref_type": "branch",
		"ref_protected": "true", "environment": "production", "sub": "project_path:my-group/my-project:ref_type:branch:ref:main", "pipeline_source": "push",
	}
	sample := map[string]any{"project": "payments", "branch": "main", "job": "deploy"}
	for name, c := range map[string]struct {
		issuer string
		claims map[string]any
		change map[string]any
		want   *Holder // nil: refused
	}{
		"a push to main": {"github-actions", github, nil, &Holder{
			Subject: "issuer:github-actions:octo-org/octo-repo:deploy", Roles: []string{"deployer"},
			Attributes: map[string]string{"repository": "octo-org/octo-repo", "run": "9301230123", "actor": "octocat"},
		}},
		"a push to another branch": {"github-actions", github, map[string]any{"ref": "refs/heads/feature"}, nil},
		"a pull request":           {"github-actions", github, map[string]any{"event_name": "pull_request"}, nil},
		"a repository of the same name, made by somebody else later": {"github-actions", github, map[string]any{"repository_id": "75"}, nil},
		"another workflow": {"github-actions", github, map[string]any{"job_workflow_ref": "octo-org/octo-repo/.github/workflows/evil.yaml@refs/heads/main"}, nil},
		"the reporter":     {"this-cluster", pod, nil, &Holder{Subject: "issuer:this-cluster:reports:reporter", Roles: []string{"reader"}, Attributes: map[string]string{"namespace": "reports"}}},
		"another account":  {"this-cluster", pod, map[string]any{"sub": "system:serviceaccount:reports:other"}, &Holder{Subject: "issuer:this-cluster:reports:reporter", Attributes: map[string]string{"namespace": "reports"}}},
		"a token of no pod": {"this-cluster", pod, map[string]any{"kubernetes.io": map[string]any{
			"namespace": "reports", "serviceaccount": map[string]any{"name": "reporter", "uid": "3"},
		}}, nil},
		"the builder":                {"build-cluster", build, nil, &Holder{Subject: "issuer:build-cluster:builds:images", Permissions: []string{"artifact:images"}}},
		"somebody of that cluster":   {"build-cluster", pod, nil, nil},
		"a person":                   {"access", person, nil, &Holder{Subject: "issuer:access:7335d417-61da-459d-899c-0a01c76a2f94", Email: "ann@example.com", Roles: []string{"payer"}, Attributes: map[string]string{"country": "DE"}}},
		"a person without a group":   {"access", person, map[string]any{"custom": map[string]any{}}, &Holder{Subject: "issuer:access:7335d417-61da-459d-899c-0a01c76a2f94", Email: "ann@example.com", Attributes: map[string]string{"country": "DE"}}},
		"a guest":                    {"access", person, map[string]any{"email": "eve@example.org"}, nil},
		"a service token":            {"access", service, nil, &Holder{Subject: "issuer:access:service:e367826f93b8d71185e03fe518aff3b4.access", Attributes: map[string]string{"country": ""}}},
		"a token of the team itself": {"access", person, map[string]any{"type": "org"}, nil},
		"a deployment":               {"gitlab", gitlab, nil, &Holder{Subject: "issuer:gitlab:my-group/my-project:main", Roles: []string{"deployer"}}},
		"a job of no environment":    {"gitlab", gitlab, map[string]any{"environment": ""}, &Holder{Subject: "issuer:gitlab:my-group/my-project:main"}},
		"a tag called main":          {"gitlab", gitlab, map[string]any{"ref_type": "tag"}, nil},
		"an unprotected branch":      {"gitlab", gitlab, map[string]any{"ref_protected": "false"}, nil},
		"another project":            {"gitlab", gitlab, map[string]any{"project_id": "21"}, nil},
		"the sample":                 {"ci-example", sample, nil, &Holder{Subject: "issuer:ci-example:payments:deploy", Permissions: []string{"deploy:write"}, Attributes: map[string]string{"project": "payments"}}},
		"the sample's other branch":  {"ci-example", sample, map[string]any{"branch": "feature"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			key := newSigner("ec-1", "ES256")
			spec := page[c.issuer].DeepCopy()
			// As written it has to compile; to sign for it the issuer's key would be needed.
			if _, err := Compile(c.issuer, spec); err != nil {
				t.Fatal(err)
			}
			spec.JWKSURL, spec.JWKS, spec.Algorithms = "", keySetOf(t, key), []string{"ES256"}
			federation := New(Config{})
			if err := federation.Set(c.issuer, "uid", spec); err != nil {
				t.Fatal(err)
			}
			now := time.Now()
			claims := map[string]any{"iss": spec.Issuer, "aud": spec.Audiences, "iat": now.Unix(), "nbf": now.Unix(), "exp": now.Unix() + 300}
			maps.Copy(claims, c.claims)
			maps.Copy(claims, c.change)
			got, err := federation.Verify(t.Context(), key.sign(t, claims), ForExchange, now)
			if (err == nil) != (c.want != nil) {
				t.Fatalf("%+v, %v", got, err)
			}
			if c.want == nil {
				return
			}
			got.Trust, got.Expires = Trust{}, time.Time{}
			if diff := cmp.Diff(c.want, got, equateEmpty, ignoreTrust); diff != "" {
				t.Errorf("the holder differs (-want +got):\n%s", diff)
			}
		})
	}
}
