package controllers

import (
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// What is kept in Git: a credential that was once asked to rotate, and to tell its
// use, and the workload that it restarts.
const inGit = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: NAMESPACE, labels: {app: shop}}
spec:
  replicas: 1
  selector: {matchLabels: {run: web}}
  template:
    metadata: {labels: {run: web}, annotations: {team: shop}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: main, image: registry.invalid/main, envFrom: [{secretRef: {name: ci}}]}]
---
apiVersion: mintmark.dev/v1alpha1
kind: ServiceToken
metadata:
  name: ci
  namespace: NAMESPACE
  annotations: {mintmark.dev/rotate-requested-at: "2026-01-01T00:00:00Z", mintmark.dev/usage-requested-at: "2026-01-01T00:00:00Z"}
spec:
  credentialClassName: NAMESPACE
  permissions: ["api:read"]
  rotation: {every: 30d, overlap: 1s, maxOverlap: 1h, retire: AfterOverlap, highUsage: {every: 10d}}
  restart: {consumers: true, timeout: 15m}
`

func TestAToolThatAppliesFromGitAndTheControllerHaveNothingToFightOver(t *testing.T) {
	c := restartCluster(t, 0)
	c.kubelet()
	apply := func() {
		t.Helper()
		for document := range strings.SplitSeq(strings.ReplaceAll(inGit, "NAMESPACE", c.namespace), "---\n") {
			object := &unstructured.Unstructured{}
			if err := yaml.Unmarshal([]byte(document), &object.Object); err != nil {
				t.Fatal(err)
			}
			if err := c.client.Apply(t.Context(), client.ApplyConfigurationFromUnstructured(object), client.FieldOwner("git"), client.ForceOwnership); err != nil {
				t.Fatal(err)
			}
		}
	}
	apply()
	p := c.start(nil, nil)
	token := &v1alpha1.ServiceToken{}
	token.Namespace, token.Name = c.namespace, "ci"
	c.ready(token)
	web := rolledOut("web", time.Time{})
	web.Namespace = c.namespace
	c.eventually(web, "rolled out", func() bool {
		return web.Status.AvailableReplicas == 1 && web.Status.ObservedGeneration == web.Generation
	})

	c.rotate(token) // by a person, and Git goes on putting the older request back
	c.patiently(token, "adopted", func() bool {
		apply()
		a := meta.FindStatusCondition(token.Status.Conditions, v1alpha1.ConditionAdopted)
		return a != nil && a.Reason == v1alpha1.ReasonAdopted && strings.Contains(a.Message, "Deployment web is restarted for version 2")
	})
	written := len(p.writes.all())
	for range 5 {
		apply()
	}
	sentinel := c.token("sentinel") // once it is ready, everything before it has been looked at
	c.ready(sentinel)
	for _, what := range p.writes.all()[written:] {
		if !strings.Contains(what, "sentinel") && !strings.HasSuffix(what, "/secrets") && !strings.Contains(what, "/events") {
			t.Errorf("what is applied again has the controller write: %s", what)
		}
	}
	c.read(token)
	c.read(web)
	if token.Generation != 1 || token.Status.CurrentVersion != 2 || web.Generation != 2 {
		t.Errorf("generation %d and version %d of the credential, generation %d of the workload; want 1, 2 and 2",
			token.Generation, token.Status.CurrentVersion, web.Generation)
	}
	for _, f := range token.ManagedFields {
		if f.Manager != "git" && f.Subresource == "" && strings.Contains(f.FieldsV1.GetRawString(), `"f:spec"`) {
			t.Errorf("%s writes into the spec: %s", f.Manager, f.FieldsV1.GetRawString())
		}
	}
}
