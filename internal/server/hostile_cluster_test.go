package server

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// What the schema lets through and Go cannot read is the trouble of whoever wrote it, and
// of nobody else.
func TestAnObjectThatCannotBeReadHoldsUpNoOther(t *testing.T) {
	in := newInstallation(t)
	before := in.credential()
	one := in.startReady()
	one.expect(30*time.Second, before, http.StatusOK, "the key is known")
	taken := 0
	for n, change := range []map[string]any{
		{"expiresAt": "2030-01-01t00:00:00z"}, {"expiresAt": "2030-01-01T00:00:00x5Z"}, {"expiresAt": "2030-01-01T00:00:00+99:99"}, {"expiresAt": "2030-01-01 00:00:00Z"},
		{"expiresAt": "2030-01-01T00:00:00,5Z"}, {"rateLimit": map[string]any{"requests": 10.5, "per": "1s"}}, {"rateLimit": map[string]any{"requests": 1e30, "per": "1s"}},
		{"rateLimit": map[string]any{"requests": 10, "per": "1x"}}, {"revoked": map[string]any{"versions": []any{1.0, 9.3e18}}}, {"revoked": map[string]any{"versions": []any{1e16}}},
		{"Admin": true}, {"ttl": 5}, {"jwt": map[string]any{"audiences": []any{nil}}}, {"attributes": map[string]any{"a": nil}},
		{"rotation": map[string]any{"overlap": "99999999d"}}, {"external": map[string]any{"sha256": []any{}}},
	} {
		spec := map[string]any{"credentialClassName": in.class, "permissions": []any{"api:read"}}
		maps.Copy(spec, change)
		text, err := json.Marshal(map[string]any{
			"apiVersion": v1alpha1.GroupVersion.String(), "kind": "ServiceToken", "metadata": map[string]any{"name": fmt.Sprintf("odd-%d", n), "namespace": in.namespace}, "spec": spec,
		})
		if err != nil {
			t.Fatal(err)
		}
		if in.post(text) == nil {
			taken++
		}
	}
	for _, record := range []string{"*", "A", "AQ=", "AQ==AQ==", "-_-_", " AQ==", "AQ==\n"} {
		odd := in.credential()
		patch := fmt.Sprintf(`{"status":{"record":%q,"seal":"x"}}`, record)
		if in.client.Status().Patch(t.Context(), odd.object, client.RawPatch(types.MergePatchType, []byte(patch))) == nil {
			taken++
		}
	}
	after := in.credential()
	one.expect(5*time.Second, after, http.StatusOK, "one made later is known")
	two := in.startReady(func(c *Config) { c.ID = "two" })
	two.expect(5*time.Second, after, http.StatusOK, "a server that comes later knows it")
	t.Logf("%d odd ones were taken", taken)
}

// post creates a ServiceToken from this text as it is.
func (in *installation) post(text []byte) error {
	clients, err := newClients(in.plane.Config)
	if err != nil {
		return err
	}
	return clients.mintmark.rest.Post().Namespace(in.namespace).Resource("servicetokens").SetHeader("Content-Type", "application/json").
		Body(text).Do(in.t.Context()).Error()
}
