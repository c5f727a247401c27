package server

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/store"
	"github.com/mintmark-dev/mintmark/test/controlplane"
)

// TestWhatWasRevokedStaysSoWhenEtcdIsRestored puts a backup of etcd, from before revocations,
// in its place. A server that runs through it and one that starts after it refuse what was
// revoked since, and accept what was not; one without a database cannot know.
func TestWhatWasRevokedStaysSoWhenEtcdIsRestored(t *testing.T) {
	plane, err := controlplane.Start(t.Context(), controlplane.Options{CRDs: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(plane.Stop)
	in := bareInstallationOn(t, plane)
	in.createKeys()
	labelled := func(o *v1alpha1.ServiceToken) { o.Labels = map[string]string{"app": "leaky"} }
	kept, revoked, selected, gone, busy := in.credential(), in.credential(), in.credential(labelled), in.credential(), in.credential()

	s := openSQLite(t, filepath.Join(t.TempDir(), "mintmark.db"))
	r := in.stocked(s)
	r.expect(soon, revoked, 200, "before the backup")
	backup := filepath.Join(t.TempDir(), "backup")
	if err := plane.Backup(t.Context(), backup); err != nil {
		t.Fatal(err)
	}
	r.expect(30*time.Second, revoked, 200, "after the backup")

	// What happens after the backup, and is not in it.
	later := in.credential()
	r.expect(30*time.Second, later, 200, "made after the backup")
	revoked.revoke("leaked")
	gone.revoke("leaked too")
	revocation := &v1alpha1.Revocation{ObjectMeta: metav1.ObjectMeta{Name: "leaky"}, Spec: v1alpha1.RevocationSpec{
		Reason: "leaked", Namespaces: []string{in.namespace}, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "leaky"}},
	}}
	in.create(revocation)
	for _, c := range []*sealed{revoked, selected, gone} {
		r.expect(30*time.Second, c, 401, "revoked")
	}
	if err := in.client.Delete(t.Context(), gone.object); err != nil {
		t.Fatal(err)
	}
	// As the controller does with each that a Revocation selects.
	selected.record.Epoch++
	selected.record.RevokedThrough, selected.record.Settled, selected.record.Versions[0].State = 1, []string{string(revocation.UID)}, v1alpha1.VersionRevoked
	selected.write(selected.record, in.pepper)
	eventually(t, 30*time.Second, "three tombstones are stored", func() bool {
		all, err := s.Tombstones(t.Context(), 0, 10)
		return err == nil && len(all) == 3
	})

	// A cluster writes all the time, and an API server when it starts: what the server has
	// seen before the restore has to be more, or history seems to go on where it forked.
	for n := range 500 {
		patch := fmt.Sprintf(`{"metadata":{"annotations":{"n":"%d"}}}`, n)
		if err := in.client.Patch(t.Context(), busy.object, client.RawPatch(types.MergePatchType, []byte(patch))); err != nil {
			t.Fatal(err)
		}
	}
	if err := plane.Restore(t.Context(), backup); err != nil {
		t.Fatal(err)
	}
	verdicts := func(r *running, what string, after int) {
		t.Helper()
		r.expect(time.Minute, kept, 200, what+": kept")
		for name, c := range map[string]*sealed{"revoked by its spec": revoked, "revoked by a selection": selected, "revoked and deleted": gone} {
			r.expect(time.Minute, c, after, what+": "+name)
		}
		r.expect(time.Minute, later, 401, what+": made after the backup")
	}
	eventually(t, time.Minute, "the server sees that the cluster was restored", func() bool { return strings.Contains(r.log.String(), "restored from a backup") })
	eventually(t, time.Minute, "it is ready again", func() bool { return r.server.Ready() == nil })
	verdicts(r, "through the restore", 401)

	fresh := in.stocked(s, func(c *Config) { c.ID = "two" })
	eventually(t, 10*time.Second, "the tombstones are read", fresh.server.buried.loaded.Load)
	verdicts(fresh, "started after it", 401)

	blind := in.startReady(func(c *Config) { c.ID = "three" })
	verdicts(blind, "without a database", 200)

	// The inventory is of the restored cluster: what is not in it is gone.
	eventually(t, time.Minute, "the inventory is of the restored cluster", func() bool {
		there, lost := found(t, s, store.CredentialFilter{}), found(t, s, store.CredentialFilter{State: store.StateDeleted})
		return len(there) == 5 && len(lost) == 1 && lost[0].UID == string(later.object.UID)
	})
}
