package server

import (
	"context"
	"encoding/json"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/management"
)

// operator makes a credential that may do these things; an administrator where there are
// none.
func (in *installation) operator(namespace string, permissions ...string) *sealed {
	in.t.Helper()
	s := in.credential(func(o *v1alpha1.ServiceToken) {
		o.Namespace = namespace
		o.Spec.CredentialClassName, o.Spec.Permissions, o.Spec.Admin = in.class+"-operators", nil, len(permissions) == 0
		for _, p := range permissions {
			o.Spec.Permissions = append(o.Spec.Permissions, v1alpha1.Permission(p))
		}
	})
	s.record.Class, s.record.Permissions, s.record.Admin, s.record.Epoch = in.class+"-operators", permissions, len(permissions) == 0, s.record.Epoch+1
	s.write(s.record, in.pepper)
	return s
}

func TestCredentialsAreFoundByWhatTheInventoryKnows(t *testing.T) {
	in := newInstallation(t)
	other := in.namespace + "-b"
	in.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: other}})
	operators := &v1alpha1.CredentialClass{ObjectMeta: metav1.ObjectMeta{Name: in.class + "-operators"}, Spec: v1alpha1.CredentialClassSpec{
		Rules: []v1alpha1.ClassRule{{Permissions: []v1alpha1.Permission{"*"}, Admin: true}},
	}}
	in.create(operators)
	t.Cleanup(func() { _ = in.client.Delete(context.WithoutCancel(t.Context()), operators) })
	of := func(namespace, team, owner string) *sealed {
		return in.credential(func(o *v1alpha1.ServiceToken) {
			o.Namespace, o.Spec.Owner, o.Labels = namespace, owner, map[string]string{"team": team}
			o.Spec.Metadata = map[string]v1alpha1.MetadataValue{"cost centre": v1alpha1.MetadataValue(team)}
		})
	}
	var blue []string
	for range 3 {
		blue = append(blue, of(in.namespace, "blue", "ann").object.Name)
	}
	gone := of(in.namespace, "blue", "ann")
	red, elsewhere := of(in.namespace, "red", "bob"), of(other, "blue", "ann")
	operator, admin := in.operator(in.namespace, "mintmark:credentials:read"), in.operator(in.namespace)

	s := openEngine(t, "sqlite://"+filepath.Join(t.TempDir(), "mintmark.db"))
	_, a := newTrail(t)
	r := in.startReady(func(c *Config) {
		c.Audit, c.Management = Audit{Recorder: a.recorder, Store: s}, Management{Store: s}
	})
	list := func(who *sealed, query string) (names []string) {
		path := "/api/v1/auth/tokens?" + query
		for path != "" {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, testIssuer+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("X-API-Key", who.token.Reveal())
			got := send(t, r.public, req)
			var page management.CredentialList
			if err := json.Unmarshal([]byte(got.body), &page); err != nil || got.status != http.StatusOK {
				t.Fatalf("%s: %d %s", path, got.status, got.body)
			}
			for _, c := range page.Items {
				names = append(names, c.Name)
			}
			path, _, _ = strings.Cut(strings.TrimPrefix(got.header.Get("Link"), "<"), ">")
		}
		slices.Sort(names)
		return names
	}
	all := append(slices.Clone(blue), gone.object.Name)
	slices.Sort(all)
	eventually(t, 20*time.Second, "the inventory knows them all", func() bool { return len(list(admin, "owner=ann")) == 5 })
	everywhere := append(slices.Clone(all), elsewhere.object.Name)
	slices.Sort(everywhere)
	for query, want := range map[string][]string{
		"metadata=cost+centre%3Dblue":                    all,
		"metadata=cost+centre%3Dblue&limit=1":            all,
		"metadata=cost+centre%3Dblue&namespace=" + other: nil,
		"metadata=cost+centre%3Dgreen":                   nil,
		"metadata=cost+centre%3Dblue&label=team%3Dred":   nil,
		"owner=bob":               {red.object.Name},
		"owner=bob&state=Revoked": nil,
		"owner=ann&label=team%3Dblue&name=" + blue[0]: {blue[0]},
		"class=" + in.class + "-operators":            {operator.object.Name, admin.object.Name},
		"owner=ann&kind=APIKey":                       nil,
		"label=team%3Dred":                            {red.object.Name},
	} {
		slices.Sort(want)
		if diff := cmp.Diff(want, list(operator, query)); diff != "" {
			t.Errorf("%s: %s", query, diff)
		}
	}
	if diff := cmp.Diff(everywhere, list(admin, "metadata=cost+centre%3Dblue&limit=2")); diff != "" {
		t.Errorf("an administrator: %s", diff)
	}
	// What is gone is not shown, however late the inventory hears of it.
	if err := in.client.Delete(t.Context(), gone.object); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(blue, list(operator, "owner=ann")); diff != "" {
		t.Errorf("after a deletion: %s", diff)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, testIssuer+"/api/v1/auth/tokens?cursor=~nonsense", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-API-Key", operator.token.Reveal())
	if got := send(t, r.public, req); got.status != http.StatusBadRequest || !strings.Contains(got.body, "cursor") {
		t.Errorf("a cursor that is none: %d %s", got.status, got.body)
	}
}
