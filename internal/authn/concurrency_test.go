package authn_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

// TestReadersSeeNoGap: while everything around it changes, and it is itself
// applied again and again, a good credential is good at every moment, a deleted
// one at none, and one that is revoked stays so.
func TestReadersSeeNoGap(t *testing.T) {
	f := newFixture(t)
	x := f.index()
	sample := fill(t, x, f.pepper, 500)
	gone, revoked := newFixture(t), newFixture(t)
	gone.live.UID, gone.rec.UID = "uid-gone", "uid-gone"
	revoked.live.UID, revoked.rec.UID = "uid-revoked", "uid-revoked"
	x.Apply(gone.live, gone.rec)
	x.Apply(revoked.live, revoked.rec)
	x.Delete("uid-gone")
	revoked.live.Revoked, _ = revokedWhole("leak")
	x.Apply(revoked.live, revoked.rec)

	var done atomic.Bool
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for i := 0; !done.Load(); i++ {
				if v := f.verify(x); !v.OK || !v.Principal.Allows("api:read") || v.Principal.UID != "uid-1" {
					t.Errorf("the good one: %+v", v)
					return
				}
				if v := x.VerifyUse("uid-1", 1, f.req, f.now); !v.OK {
					t.Errorf("its use: %+v", v)
					return
				}
				if gone.verify(x).OK || revoked.verify(x).OK || x.VerifyUse("uid-revoked", 1, f.req, f.now).OK {
					t.Error("a bad one is accepted")
					return
				}
				if !x.Accepts("uid-1", 1) {
					t.Error("what was accepted is no longer")
					return
				}
				x.Verify(sample[i%len(sample)], f.req, f.now)
			}
		})
	}
	readers.Go(func() {
		for cursor := uint64(0); !done.Load(); {
			_, cursor = x.UsageSince(cursor, 10)
			x.Stats()
			changed := x.Changed()
			if !done.Load() {
				<-changed
			}
		}
	})

	writer := newFixture(t)
	for i := range int64(600) {
		f.rec.Epoch = i + 2
		x.Apply(f.live, f.rec)
		switch i % 5 {
		case 0:
			mustSetClass(t, x, "default", &v1alpha1.CredentialClassSpec{Rules: []v1alpha1.ClassRule{rule("api:*", v1alpha1.Permission(fmt.Sprintf("x:%d", i)))}})
		case 1:
			x.SetNamespace("payments", map[string]string{"i": fmt.Sprint(i)})
		case 2:
			r := revocation(fmt.Sprint(i), v1alpha1.RevocationSpec{Namespaces: []string{fmt.Sprintf("team-%02d", i%100)}})
			if err := x.SetRevocation(r); err != nil {
				t.Fatal(err)
			}
			x.DeleteRevocation(settled(r))
		case 3:
			x.SetPeppers(credential.Peppers{pepper(t, fmt.Sprintf("new-%d", i)), f.pepper})
		case 4:
			writer.live.UID = fmt.Sprintf("uid-w-%d", i)
			writer.rec = writer.record(1)
			delete(writer.tokens, 1)
			writer.addVersion(1, v1alpha1.VersionActive)
			x.Apply(writer.live, writer.rec)
			x.Delete(writer.live.UID)
		}
	}
	done.Store(true)
	x.Apply(authn.Live{UID: "last"}, nil) // wakes the one that waits for a change
	readers.Wait()
}

// TestAWaiterMissesNothing follows the order that Changed documents.
func TestAWaiterMissesNothing(t *testing.T) {
	f := newFixture(t)
	x := f.index()
	const last = 2000
	var waiter sync.WaitGroup
	waiter.Go(func() {
		for epoch := int64(2); epoch <= last; epoch++ {
			for {
				changed := x.Changed()
				if x.Accepts("uid-1", epoch) {
					break
				}
				<-changed
			}
		}
	})
	for f.rec.Epoch = 2; f.rec.Epoch <= last; f.rec.Epoch++ {
		x.Apply(f.live, f.rec)
	}
	waiter.Wait()
}
