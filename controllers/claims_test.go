package controllers

import (
	"fmt"
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"pgregory.net/rapid"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

var kinds = []v1alpha1.Kind{v1alpha1.KindServiceToken, v1alpha1.KindAPIKey}

// TestClaimsAreThoseOfTheObjectsThereAre changes objects at random, and compares what
// claims knows with what can be read off the objects.
func TestClaimsAreThoseOfTheObjectsThereAre(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := newClaims(nil)
		queues := map[v1alpha1.Kind]workqueue.TypedRateLimitingInterface[reconcile.Request]{}
		for _, kind := range kinds {
			queues[kind] = workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[reconcile.Request]())
			defer queues[kind].ShutDown()
			c.queues[kind] = queues[kind]
		}
		there, uids := map[string]v1alpha1.Credential{}, 0
		digest := func(n int) credential.Digest { return credential.Digest{byte(n)} }
		claimants := func(n int) []types.UID {
			var all []types.UID
			for _, o := range there {
				if slices.Contains(liveDigests(o), digest(n)) {
					all = append(all, o.GetUID())
				}
			}
			slices.Sort(all)
			return all
		}
		for range rapid.IntRange(1, 30).Draw(t, "changes") {
			kind := rapid.SampledFrom(kinds).Draw(t, "kind")
			name := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "name")
			slot := string(kind) + name
			before := map[int][]types.UID{}
			for n := range 5 {
				before[n] = claimants(n)
			}
			old := there[slot]
			switch what := rapid.IntRange(0, 3).Draw(t, "what"); {
			case what == 0 && old != nil:
				delete(there, slot)
				if rapid.Bool().Draw(t, "missed") {
					c.replace(kind, toolscache.DeletedFinalStateUnknown{Obj: old}, nil)
				} else {
					c.replace(kind, old, nil)
				}
			default:
				now := newCredential(kind)
				now.SetNamespace("default")
				now.SetName(name)
				if old != nil && what > 1 {
					now.SetUID(old.GetUID())
				} else { // or another one of the name
					uids++
					now.SetUID(types.UID(fmt.Sprintf("uid-%d", uids)))
				}
				for n := range 5 {
					if rapid.Bool().Draw(t, "has") {
						state := rapid.SampledFrom([]v1alpha1.VersionState{v1alpha1.VersionActive, v1alpha1.VersionRetired}).Draw(t, "state")
						now.CredentialStatus().Versions = append(now.CredentialStatus().Versions,
							v1alpha1.CredentialVersion{Version: int64(n), Digest: digest(n).String(), State: state})
					}
				}
				there[slot] = now
				if old == nil {
					c.replace(kind, nil, now)
				} else {
					c.replace(kind, old, now)
				}
			}
			told := map[string]bool{}
			for kind, queue := range queues {
				for queue.Len() > 0 {
					request, _ := queue.Get()
					queue.Done(request)
					told[string(kind)+request.Name] = true
				}
			}
			for n := range 5 {
				var got []types.UID
				for _, who := range c.holders(digest(n)) {
					got = append(got, who.uid)
				}
				slices.Sort(got)
				after := claimants(n)
				if !slices.Equal(got, after) {
					t.Fatalf("digest %d is held by %v, not %v", n, got, after)
				}
				if slices.Equal(before[n], after) || len(before[n]) < 2 && len(after) < 2 {
					continue
				}
				for slot, o := range there {
					if slices.Contains(after, o.GetUID()) && !told[slot] {
						t.Fatalf("digest %d was held by %v and is by %v, and %s was not told", n, before[n], after, slot)
					}
				}
			}
			for slot, o := range there {
				key, ok := c.name(v1alpha1.Kind(slot[:len(slot)-1]), o.GetUID())
				if !ok || key.Name != o.GetName() {
					t.Fatalf("%s is known as %s, %t", slot, key, ok)
				}
			}
			if len(c.byUID) != len(there) {
				t.Fatalf("%d are known, and %d there", len(c.byUID), len(there))
			}
		}
	})
}

func newCredential(kind v1alpha1.Kind) v1alpha1.Credential {
	if kind == v1alpha1.KindAPIKey {
		return apiKeys.new()
	}
	return serviceTokens.new()
}

func TestWhoHasTheBetterClaim(t *testing.T) {
	at := func(seconds int64, uid string, declared bool) *claimant {
		o := serviceTokens.new()
		o.SetCreationTimestamp(metav1.NewTime(time.Unix(seconds, 0)))
		o.SetUID(types.UID(uid))
		if declared {
			o.CredentialSpec().External = &v1alpha1.External{}
		}
		return claimantOf(v1alpha1.KindServiceToken, o)
	}
	for name, test := range map[string]struct{ first, second *claimant }{
		"what was minted, to what is declared": {at(20, "b", false), at(10, "a", true)},
		"the older":                            {at(10, "b", true), at(20, "a", true)},
		"of one second, the lower UID":         {at(10, "a", true), at(10, "b", true)},
	} {
		t.Run(name, func(t *testing.T) {
			if !test.first.precedes(test.second) || test.second.precedes(test.first) {
				t.Error("it does not precede the other, or is preceded by it")
			}
		})
	}
}
