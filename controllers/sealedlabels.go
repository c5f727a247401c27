package controllers

import (
	"context"
	"fmt"
	"maps"
	"sync"

	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

// sealedLabels remembers the labels that records were sealed with, so that of ten thousand
// credentials a hundred Revocations open each record once. It is safe for concurrent use.
type sealedLabels struct {
	mu sync.Mutex
	of map[types.UID]labelsSealed
}

// labelsSealed are the labels in the record under a seal.
type labelsSealed struct {
	seal   string
	labels map[string]string
}

func newSealedLabels() *sealedLabels { return &sealedLabels{of: map[types.UID]labelsSealed{}} }

// sets are a credential's labels as they are and, where those are others, as they were
// sealed. c is as the cache holds it, and not changed.
func (s *sealedLabels) sets(peppers credential.Peppers, c v1alpha1.Credential) []map[string]string {
	live, status := c.GetLabels(), c.CredentialStatus()
	s.mu.Lock()
	defer s.mu.Unlock()
	known, ok := s.of[c.GetUID()]
	if !ok || known.seal != status.Seal {
		rec, err := credential.OpenRecord(peppers, status.Record, status.Seal)
		if err != nil {
			return []map[string]string{live}
		}
		known = labelsSealed{status.Seal, rec.Labels}
	}
	same := maps.Equal(known.labels, live)
	if same {
		known.labels = live // and not a copy of them
	}
	s.of[c.GetUID()] = known
	if same {
		return []map[string]string{live}
	}
	return []map[string]string{live, known.labels}
}

// prune forgets those that are gone, where they are many beside those there are.
func (s *sealedLabels) prune(there int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.of) > 2*there+1024 {
		clear(s.of)
	}
}

// each calls do with every credential of the kind, as the cache holds it. do changes none.
// A list would copy each of them; it is what there is where the cache has an informer for
// each of several namespaces, or informers is nil.
func (k credentialKind) each(ctx context.Context, r client.Reader, informers cache.Informers, do func(v1alpha1.Credential)) (n int, err error) {
	if informers != nil {
		informer, err := informers.GetInformer(ctx, k.new())
		if err != nil {
			return 0, fmt.Errorf("reading what is known of kind %s: %w", k.kind, err)
		}
		if one, ok := informer.(toolscache.SharedIndexInformer); ok {
			all := one.GetStore().List()
			for _, o := range all {
				do(o.(v1alpha1.Credential))
			}
			return len(all), nil
		}
	}
	all, err := k.list(ctx, r, client.UnsafeDisableDeepCopy)
	for _, o := range all {
		do(o)
	}
	return len(all), err
}
