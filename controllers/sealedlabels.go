package controllers

import (
	"context"
	"fmt"
	"maps"
	"sync"

	"k8s.io/apimachinery/pkg/types"
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
func (k credentialKind) each(ctx context.Context, r client.Reader, informers cache.Informers, do func(v1alpha1.Credential)) (n int, err error) {
	all, ok, err := stored(ctx, informers, k.new())
	if err != nil {
		return 0, fmt.Errorf("reading what is known of kind %s: %w", k.kind, err)
	}
	if ok {
		for _, o := range all {
			do(o.(v1alpha1.Credential))
		}
		return len(all), nil
	}
	list, err := k.list(ctx, r, client.UnsafeDisableDeepCopy)
	for _, o := range list {
		do(o)
	}
	return len(list), err
}
