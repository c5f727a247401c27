package server

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/audit"
	"github.com/mintmark-dev/mintmark/internal/credential"
	"github.com/mintmark-dev/mintmark/internal/store"
)

// countingStore counts the rows of the inventory that it is given.
type countingStore struct {
	*sqliteStore
	rows atomic.Int64
	fail atomic.Bool
}

func (s *countingStore) PutCredentials(ctx context.Context, all []store.Credential) error {
	if s.fail.Load() {
		return context.DeadlineExceeded
	}
	s.rows.Add(int64(len(all)))
	return s.sqliteStore.PutCredentials(ctx, all)
}

func (s *countingStore) State() store.State { return store.State{Configured: true, Up: !s.fail.Load()} }

// stocked starts a server that has a store.
func (in *installation) stocked(s Store, change ...func(*Config)) *running {
	in.t.Helper()
	recorder := audit.New(audit.Config{Server: "one", Chain: "one_" + processID(), Store: s})
	var recording sync.WaitGroup
	stop := start(&recording, func(ctx context.Context) {
		if err := recorder.Run(ctx); err != nil {
			in.t.Error(err)
		}
	})
	in.t.Cleanup(func() {
		stop()
		recording.Wait()
	})
	r := in.startReady(append(change, func(c *Config) {
		c.WatchNamespaces = []string{in.namespace}
		c.Audit = Audit{Recorder: recorder, Store: s}
	})...)
	in.t.Cleanup(func() { _ = r.stop() })
	return r
}

func found(t *testing.T, s *sqliteStore, f store.CredentialFilter) []store.Credential {
	t.Helper()
	page, err := s.Credentials(t.Context(), store.AllTenants(), f, store.Page{})
	if err != nil {
		t.Fatal(err)
	}
	return page.Items
}

func TestTheInventoryFollowsTheCluster(t *testing.T) {
	in := newInstallation(t)
	s := &countingStore{sqliteStore: openSQLite(t, filepath.Join(t.TempDir(), "mintmark.db"))}
	owned := func(o *v1alpha1.ServiceToken) {
		o.Labels = map[string]string{"app": "shop"}
		o.Spec.Owner, o.Spec.Description, o.Spec.Metadata = "team-a", "for the shop", map[string]v1alpha1.MetadataValue{"ticket": "T-1"}
	}
	before := in.credential(owned)
	r := in.stocked(s)
	eventually(t, 10*time.Second, "what was there before is brought in", func() bool { return len(found(t, s.sqliteStore, store.CredentialFilter{})) == 1 })
	got := found(t, s.sqliteStore, store.CredentialFilter{Metadata: map[string]string{"ticket": "T-1"}, Labels: map[string]string{"app": "shop"}})
	want := []store.Credential{{
		UID: string(before.object.UID), Kind: "ServiceToken", Namespace: in.namespace, Name: before.object.Name, Class: in.class, Owner: "team-a", Description: "for the shop",
		Labels: map[string]string{"app": "shop"}, Metadata: map[string]string{"ticket": "T-1"}, Created: before.object.CreationTimestamp.UTC(),
		State: store.StateActive, Applied: resourceVersion(before.object),
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("it differs:\n%s", diff)
	}

	after := in.credential(func(o *v1alpha1.ServiceToken) { o.Spec.Metadata = map[string]v1alpha1.MetadataValue{"ticket": "T-2"} })
	by := func(ticket string) func() bool {
		return func() bool {
			return len(found(t, s.sqliteStore, store.CredentialFilter{Metadata: map[string]string{"ticket": ticket}})) == 1
		}
	}
	eventually(t, 10*time.Second, "what is made later is brought in", by("T-2"))
	if err := in.client.Patch(t.Context(), after.object, client.RawPatch(types.MergePatchType, []byte(`{"spec":{"metadata":{"ticket":"T-3"}}}`))); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "what changes is", by("T-3"))

	// What changes in status alone, and what is listed again, is nothing to write.
	eventually(t, 5*time.Second, "nothing waits", func() bool { return r.server.inventory.depth() == 0 })
	wrote := s.rows.Load()
	after.mint()
	lists := func() (n int) {
		for _, call := range r.wire.seen() {
			if call == "LIST servicetokens" {
				n++
			}
		}
		return n
	}
	listed := lists()
	r.server.feed.relist()
	eventually(t, 10*time.Second, "everything is listed again", func() bool { return lists() > listed })
	r.expect(soon, after, 200, "the new version")
	before.revoke("leaked")
	state := func(s *sqliteStore, state string, n int) func() bool {
		return func() bool { return len(found(t, s, store.CredentialFilter{State: state})) == n }
	}
	eventually(t, 10*time.Second, "what is revoked is said to be", state(s.sqliteStore, store.StateRevoked, 1))
	if n := s.rows.Load() - wrote; n != 1 {
		t.Errorf("%d rows were written for one that changed", n)
	}
	if err := in.client.Delete(t.Context(), after.object); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "what is deleted is said to be", state(s.sqliteStore, store.StateDeleted, 1))

	// What goes while no server runs is found missing by the next.
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if err := in.client.Delete(t.Context(), before.object); err != nil {
		t.Fatal(err)
	}
	r = in.stocked(s)
	eventually(t, 10*time.Second, "what was deleted meanwhile is said to be", state(s.sqliteStore, store.StateDeleted, 2))
}

func TestServersThatShareAnInventoryDoNotWriteItAgain(t *testing.T) {
	in := newInstallation(t)
	path := filepath.Join(t.TempDir(), "mintmark.db")
	shared := openSQLite(t, path)
	s := &countingStore{sqliteStore: shared}
	for range 20 {
		in.credential()
	}
	one := in.stocked(s)
	eventually(t, 10*time.Second, "the first brings everything in", func() bool {
		return len(found(t, shared, store.CredentialFilter{})) == 20 && one.server.inventory.passed.Load() == 1
	})
	first := found(t, shared, store.CredentialFilter{})
	two := in.stocked(s, func(c *Config) { c.ID = "two" })
	eventually(t, 10*time.Second, "the second has looked", func() bool { return two.server.inventory.passed.Load() == 1 })
	if diff := cmp.Diff(first, found(t, shared, store.CredentialFilter{})); diff != "" {
		t.Errorf("it changed:\n%s", diff)
	}
}

func TestTheInventoryOfARestoredClusterIsOfThatCluster(t *testing.T) {
	in := newInstallation(t)
	s := openSQLite(t, filepath.Join(t.TempDir(), "mintmark.db"))
	c := in.credential(func(o *v1alpha1.ServiceToken) { o.Spec.Owner = "as in the backup" })
	future := rowOf(c.object, nil, time.Now())
	future.Owner, future.Applied = "after the backup", future.Applied+1_000_000
	lost := store.Credential{UID: "lost", Kind: "ServiceToken", Namespace: in.namespace, Name: "lost", State: store.StateActive, Created: time.Now(), Applied: future.Applied}
	elsewhere := store.Credential{UID: "elsewhere", Kind: "ServiceToken", Namespace: "elsewhere", Name: "x", State: store.StateActive, Created: time.Now(), Applied: 1}
	if err := s.PutCredentials(t.Context(), []store.Credential{future, lost, elsewhere}); err != nil {
		t.Fatal(err)
	}
	in.stocked(s)
	eventually(t, 10*time.Second, "it is as the backup has it", func() bool {
		all := found(t, s, store.CredentialFilter{Namespace: in.namespace, WithDeleted: true})
		return len(all) == 2 && all[0].Owner == "as in the backup" && all[1].State == store.StateDeleted
	})
	if all := found(t, s, store.CredentialFilter{Namespace: "elsewhere"}); len(all) != 1 {
		t.Error("a namespace that this server does not watch was touched")
	}
}

func TestAnInventoryThatCannotBeWrittenIsBoundedAndCatchesUp(t *testing.T) {
	in := newInstallation(t)
	s := &countingStore{sqliteStore: openSQLite(t, filepath.Join(t.TempDir(), "mintmark.db"))}
	i := newInventory(s, func() bool { return true }, slog.New(slog.DiscardHandler), time.Now)
	for n := range maxInventory + 100 {
		i.see(&v1alpha1.ServiceToken{ObjectMeta: metav1.ObjectMeta{UID: types.UID(fmt.Sprint("uid-", n)), ResourceVersion: "7"}}, nil)
	}
	if n := i.depth(); n != maxInventory {
		t.Errorf("%d wait, want the bound of %d", n, maxInventory)
	}

	s.fail.Store(true)
	c := in.credential()
	r := in.stocked(s)
	r.expect(soon, c, 200, "while the store takes nothing")
	s.fail.Store(false)
	eventually(t, 15*time.Second, "it catches up", func() bool { return len(found(t, s.sqliteStore, store.CredentialFilter{})) == 1 })
}

func TestTheStateOfACredentialInTheInventory(t *testing.T) {
	now := time.Date(2026, 1, 15, 12, 0, 0, 0, time.UTC)
	version := func(state v1alpha1.VersionState, expires time.Time) credential.SealedVersion {
		v := credential.SealedVersion{Number: 1, State: state}
		if !expires.IsZero() {
			v.Expires = expires.Unix()
		}
		return v
	}
	soon, ago := now.Add(time.Hour), now.Add(-time.Hour)
	revoked := &v1alpha1.Revoked{Reason: "leaked"}
	digest := credential.RevokedDigest(revoked)
	for name, c := range map[string]struct {
		spec    v1alpha1.CredentialSpec
		record  *credential.Record
		state   string
		expires time.Time
	}{
		"not minted yet":            {state: store.StateActive},
		"minted for ever":           {record: &credential.Record{Epoch: 1, Versions: []credential.SealedVersion{version(v1alpha1.VersionActive, time.Time{})}}, state: store.StateActive},
		"minted until later":        {record: &credential.Record{Epoch: 1, Versions: []credential.SealedVersion{version(v1alpha1.VersionActive, soon)}}, state: store.StateActive, expires: soon},
		"one of two lives for ever": {record: &credential.Record{Versions: []credential.SealedVersion{version(v1alpha1.VersionActive, time.Time{}), version(v1alpha1.VersionSuperseded, ago)}}, state: store.StateActive},
		"ended by the spec": {spec: v1alpha1.CredentialSpec{ExpiresAt: &metav1.Time{Time: ago}}, state: store.StateExpired, expires: ago,
			record: &credential.Record{Versions: []credential.SealedVersion{version(v1alpha1.VersionActive, soon)}}},
		"past its time":              {record: &credential.Record{Versions: []credential.SealedVersion{version(v1alpha1.VersionActive, ago)}}, state: store.StateExpired, expires: ago},
		"expired and left out":       {record: &credential.Record{Epoch: 3}, state: store.StateExpired},
		"revoked just now":           {spec: v1alpha1.CredentialSpec{Revoked: revoked}, record: &credential.Record{Versions: []credential.SealedVersion{version(v1alpha1.VersionActive, soon)}}, state: store.StateRevoked, expires: soon},
		"revoked and settled":        {spec: v1alpha1.CredentialSpec{Revoked: revoked}, record: &credential.Record{RevokedSpec: digest, RevokedThrough: 1, Versions: []credential.SealedVersion{version(v1alpha1.VersionRevoked, soon)}}, state: store.StateRevoked},
		"revoked and made anew":      {spec: v1alpha1.CredentialSpec{Revoked: revoked}, record: &credential.Record{RevokedSpec: digest, RevokedThrough: 1, Versions: []credential.SealedVersion{version(v1alpha1.VersionRevoked, soon), version(v1alpha1.VersionActive, soon)}}, state: store.StateActive, expires: soon},
		"one version revoked, alone": {record: &credential.Record{RevokedVersions: []int64{1}, Versions: []credential.SealedVersion{version(v1alpha1.VersionRevoked, soon)}}, state: store.StateRevoked},
	} {
		t.Run(name, func(t *testing.T) {
			state, expires := stateOf(&c.spec, c.record, now)
			if state != c.state || !expires.Equal(c.expires) {
				t.Errorf("it is %s until %s, want %s until %s", state, expires, c.state, c.expires)
			}
		})
	}
}

// BenchmarkTheInventorySees is what a credential costs that passes by in a server with a
// database: told for the first time, told again as it was, and changed in status alone. It is in
// the goroutine that feeds the index, not in any request.
func BenchmarkTheInventorySees(b *testing.B) {
	object := &v1alpha1.ServiceToken{
		ObjectMeta: metav1.ObjectMeta{UID: "uid", Name: "ci", Namespace: "payments", ResourceVersion: "1", Labels: map[string]string{"app": "shop", "tier": "1"}},
		Spec:       v1alpha1.CredentialSpec{Owner: "team-a", Description: "of the shop", Metadata: map[string]v1alpha1.MetadataValue{"ticket": "T-1", "cost": "7"}},
	}
	warm := false
	for name, next := range map[string]func(n int){
		"first": func(n int) {
			warm = false
			object.UID = types.UID(fmt.Sprint("uid-", n))
		},
		"again": func(int) {},
		"in status alone": func(n int) {
			warm = true
			object.ResourceVersion = fmt.Sprint(n)
		},
	} {
		b.Run(name, func(b *testing.B) {
			i := newInventory(&sqliteStore{}, func() bool { return warm }, slog.New(slog.DiscardHandler), time.Now)
			b.ReportAllocs()
			for n := 0; b.Loop(); n++ {
				next(n)
				i.see(object, nil)
			}
		})
	}
}
