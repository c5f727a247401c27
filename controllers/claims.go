package controllers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

// claims are the digests that the credentials of both kinds have, as the cache tells of
// them, and who is behind a UID. An index of the cache would take ten times the memory:
// it keeps a set for each value, twice. It is safe for concurrent use.
type claims struct {
	cache cache.Cache

	mu     sync.RWMutex
	byUID  map[types.UID]*claimant
	sole   map[credential.Digest]*claimant
	shared map[credential.Digest][]*claimant // what more than one has, which sole does not hold
	queues map[v1alpha1.Kind]workqueue.TypedRateLimitingInterface[reconcile.Request]
	synced []toolscache.InformerSynced
}

// claimant is a credential, as far as claims go.
type claimant struct {
	kind     v1alpha1.Kind
	key      types.NamespacedName
	uid      types.UID
	created  int64 // Unix seconds, as precise as Kubernetes is
	declared bool
}

func newClaims(c cache.Cache) *claims {
	return &claims{
		cache: c, byUID: map[types.UID]*claimant{}, sole: map[credential.Digest]*claimant{}, shared: map[credential.Digest][]*claimant{},
		queues: map[v1alpha1.Kind]workqueue.TypedRateLimitingInterface[reconcile.Request]{},
	}
}

func claimantOf(kind v1alpha1.Kind, c v1alpha1.Credential) *claimant {
	return &claimant{
		kind: kind, key: types.NamespacedName{Namespace: c.GetNamespace(), Name: c.GetName()}, uid: c.GetUID(),
		created: c.GetCreationTimestamp().Unix(), declared: c.CredentialSpec().External != nil,
	}
}

// precedes orders the claims of two credentials to one digest: what we minted
// comes before what somebody declares, whose digest can be of a value that was
// overheard; then the older comes first, and then the lower UID.
func (a *claimant) precedes(b *claimant) bool {
	if a.declared != b.declared {
		return b.declared
	}
	if a.created != b.created {
		return a.created < b.created
	}
	return a.uid < b.uid
}

// holders are the credentials that have a digest.
func (c *claims) holders(d credential.Digest) []*claimant {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if one := c.sole[d]; one != nil {
		return []*claimant{one}
	}
	return slices.Clone(c.shared[d])
}

// name of the credential of a kind with this UID.
func (c *claims) name(kind v1alpha1.Kind, uid types.UID) (types.NamespacedName, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	who := c.byUID[uid]
	if who == nil || who.kind != kind {
		return types.NamespacedName{}, false
	}
	return who.key, true
}

// of is the source of requests for one kind: those whose digest somebody else has too,
// when either changes. Of two that declare the same value the older keeps it, and the
// other must be told.
func (c *claims) of(kind v1alpha1.Kind) *claimsOf { return &claimsOf{c, kind} }

// claimsOf implements source.SyncingSource.
type claimsOf struct {
	claims *claims
	kind   v1alpha1.Kind
}

// Start begins to listen to the cache, to both kinds whichever comes first: a controller
// looks for rivals of both.
func (s *claimsOf) Start(ctx context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
	c := s.claims
	c.mu.Lock()
	c.queues[s.kind] = queue
	begun := c.synced != nil
	c.mu.Unlock()
	if begun {
		return nil
	}
	for _, kind := range []credentialKind{serviceTokens, apiKeys} {
		informer, err := c.cache.GetInformer(ctx, kind.new(), cache.BlockUntilSynced(false))
		if err != nil {
			return fmt.Errorf("listening to changes of kind %s: %w", kind.kind, err)
		}
		registration, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
			AddFunc:    func(o any) { c.replace(kind.kind, nil, o) },
			UpdateFunc: func(before, after any) { c.replace(kind.kind, before, after) },
			DeleteFunc: func(o any) { c.replace(kind.kind, o, nil) },
		})
		if err != nil {
			return fmt.Errorf("listening to changes of kind %s: %w", kind.kind, err)
		}
		c.mu.Lock()
		c.synced = append(c.synced, registration.HasSynced)
		c.mu.Unlock()
	}
	return nil
}

// WaitForSync waits until what the cache holds has been taken in.
func (s *claimsOf) WaitForSync(ctx context.Context) error {
	s.claims.mu.RLock()
	synced := slices.Clone(s.claims.synced)
	s.claims.mu.RUnlock()
	if !toolscache.WaitForCacheSync(ctx.Done(), synced...) {
		return errors.New("the digests of credentials have not been read in time")
	}
	return nil
}

// replace takes in a change: what was there before, and what is there now.
func (c *claims) replace(kind v1alpha1.Kind, before, after any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var (
		gone, come []credential.Digest
		moved      []*claimant
	)
	if missed, ok := before.(toolscache.DeletedFinalStateUnknown); ok {
		before = missed.Obj
	}
	old, was := before.(v1alpha1.Credential)
	now, is := after.(v1alpha1.Credential)
	if was {
		gone = liveDigests(old)
	}
	if is {
		come = liveDigests(now)
	}
	if was && (!is || old.GetUID() != now.GetUID()) {
		if who := c.byUID[old.GetUID()]; who != nil {
			for _, d := range gone {
				moved = append(moved, c.drop(d, who)...)
			}
			delete(c.byUID, who.uid)
		}
		gone = nil
	}
	if is {
		who := c.byUID[now.GetUID()]
		if who == nil {
			who, gone = claimantOf(kind, now), nil
			c.byUID[who.uid] = who
		}
		who.declared = now.CredentialSpec().External != nil
		for _, d := range gone {
			if !slices.Contains(come, d) {
				moved = append(moved, c.drop(d, who)...)
			}
		}
		for _, d := range come {
			moved = append(moved, c.add(d, who)...)
		}
	}
	for _, who := range moved {
		if queue := c.queues[who.kind]; queue != nil {
			queue.Add(reconcile.Request{NamespacedName: who.key})
		}
	}
}

// add has a credential claim a digest. It returns all that claim it, if that is news to
// any of them.
func (c *claims) add(d credential.Digest, who *claimant) []*claimant {
	one, many := c.sole[d], c.shared[d]
	switch {
	case one == who || slices.Contains(many, who):
		return nil
	case one != nil:
		delete(c.sole, d)
		c.shared[d] = []*claimant{one, who}
	case many != nil:
		c.shared[d] = append(many, who)
	default:
		c.sole[d] = who
		return nil
	}
	return c.shared[d]
}

// drop ends a claim. It returns those who claim the digest still.
func (c *claims) drop(d credential.Digest, who *claimant) []*claimant {
	if c.sole[d] == who {
		delete(c.sole, d)
		return nil
	}
	left := slices.DeleteFunc(slices.Clone(c.shared[d]), func(other *claimant) bool { return other == who })
	switch len(left) {
	case 0:
		return nil
	case 1:
		delete(c.shared, d)
		c.sole[d] = left[0]
	default:
		c.shared[d] = left
	}
	return left
}

// liveDigests are those that a credential claims.
func liveDigests(c v1alpha1.Credential) []credential.Digest {
	versions := c.CredentialStatus().Versions
	digests := make([]credential.Digest, 0, len(versions))
	for i := range versions {
		if !versions[i].State.Live() {
			continue
		}
		if d, err := credential.ParseDigest(versions[i].Digest); err == nil {
			digests = append(digests, d)
		}
	}
	return digests
}

// olderHolder names the credential of either kind that has the digest and a
// better claim to it than this one.
func (r *credentials) olderHolder(s *scope, digest credential.Digest) string {
	own := claimantOf(r.kind.kind, s.credential)
	for _, holder := range r.claims.holders(digest) {
		if holder.uid == own.uid || !holder.precedes(own) {
			continue
		}
		if holder.key.Namespace != own.key.Namespace {
			return "a credential of another namespace" // whose name is none of this one's business
		}
		return fmt.Sprintf("%s %s", holder.kind, holder.key.Name)
	}
	return ""
}

// used finds the credential the servers saw used, by its UID.
func (r *credentials) used(_ context.Context, o client.Object) []reconcile.Request {
	key, ok := r.claims.name(r.kind.kind, o.GetUID())
	if !ok {
		return nil
	}
	return []reconcile.Request{{NamespacedName: key}}
}
