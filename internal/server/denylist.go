package server

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
)

// RevokedTokensConfigMap is the name of the ConfigMap, in the installation's namespace,
// with the JWTs that were revoked before their time. An entry's name is the id of the
// first token of a chain of renewals, its value when the last of them can have ended, in
// seconds since 1970. Whoever installs Mintmark makes it, empty; the servers fill it.
const RevokedTokensConfigMap = "mintmark-revoked-tokens"

// maxDenied bounds the entries, so that the object stays well below what the API server
// takes.
const maxDenied = 10_000

// denyTimeout bounds how long writing an entry may take, other replicas being in the way.
const denyTimeout = 5 * time.Second

var errDenyListFull = fmt.Errorf("the ConfigMap %s holds %d revoked tokens that are still alive, and takes no more: "+
	"revoke the versions of the credentials instead", RevokedTokensConfigMap, maxDenied)

// denyList is what this server knows of the ConfigMap. What it has once read stays until
// it is over, whatever becomes of the object.
type denyList struct {
	now   func() time.Time
	known atomic.Pointer[map[string]int64]
	mu    sync.Mutex // for writers of known
}

// has is asked for every JWT that is verified. It takes no lock.
func (d *denyList) has(id string) bool {
	known := d.known.Load()
	if known == nil {
		return false
	}
	_, found := (*known)[id]
	return found
}

// add takes in entries, and drops those that are over.
func (d *denyList) add(entries map[string]string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	merged := map[string]int64{}
	if known := d.known.Load(); known != nil {
		maps.Copy(merged, *known)
	}
	for id, text := range entries {
		// What cannot be read was not written here, and cannot be told from a token that
		// ends late.
		until, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			until = d.now().Add(time.Hour).Unix()
		}
		merged[id] = max(merged[id], until)
	}
	maps.DeleteFunc(merged, func(_ string, until int64) bool { return over(until, d.now()) })
	d.known.Store(&merged)
}

func over(until int64, now time.Time) bool { return until <= now.Unix() }

// The list is fed by the watch on the ConfigMap.

func (d *denyList) BeginList() {}

func (d *denyList) EndList() {}

func (d *denyList) Put(object runtime.Object) {
	if list, ok := object.(*corev1.ConfigMap); ok && list.Name == RevokedTokensConfigMap {
		d.add(list.Data)
	}
}

func (d *denyList) Delete(runtime.Object) {}

// revoker puts an end to single JWTs, on every server. It returns once that is certain to
// happen; an error means that it may not have.
type revoker interface {
	revoke(ctx context.Context, id string, until time.Time) error
}

// sharedDenyList revokes by writing into the ConfigMap, from which every replica reads.
type sharedDenyList struct {
	*denyList
	core      rest.Interface
	namespace string
	writing   sync.Mutex // one at a time, or this server's requests would be in each other's way
}

func (s *sharedDenyList) revoke(ctx context.Context, id string, until time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, denyTimeout)
	defer cancel()
	s.writing.Lock()
	defer s.writing.Unlock()
	for {
		err := s.write(ctx, id, until)
		if !apierrors.IsConflict(err) {
			return err
		}
		if ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
	}
}

func (s *sharedDenyList) write(ctx context.Context, id string, until time.Time) error {
	list := new(corev1.ConfigMap)
	if err := s.core.Get().Namespace(s.namespace).Resource("configmaps").Name(RevokedTokensConfigMap).Do(ctx).Into(list); err != nil {
		return fmt.Errorf("reading ConfigMap %s/%s: %w", s.namespace, RevokedTokensConfigMap, err)
	}
	now := s.now()
	maps.DeleteFunc(list.Data, func(_, text string) bool {
		until, err := strconv.ParseInt(text, 10, 64)
		return err == nil && over(until, now)
	})
	if list.Data == nil {
		list.Data = map[string]string{}
	}
	if _, there := list.Data[id]; !there && len(list.Data) >= maxDenied {
		return errDenyListFull
	}
	list.Data[id] = strconv.FormatInt(until.Unix(), 10)
	// Under the resourceVersion it was read at.
	err := s.core.Put().Namespace(s.namespace).Resource("configmaps").Name(RevokedTokensConfigMap).Body(list).Do(ctx).Into(new(corev1.ConfigMap))
	if err != nil {
		return fmt.Errorf("updating ConfigMap %s/%s: %w", s.namespace, RevokedTokensConfigMap, err)
	}
	s.add(map[string]string{id: list.Data[id]})
	return nil
}
