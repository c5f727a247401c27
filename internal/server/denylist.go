package server

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
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
// seconds since 1970, and a hash of whose they are. Whoever installs Mintmark makes it, empty; the servers fill it.
const RevokedTokensConfigMap = "mintmark-revoked-tokens"

// maxDenied bounds the entries, so that the object stays well below what the API server
// takes.
const maxDenied = 10_000

// maxDeniedOf bounds those of one tenant, a namespace or a TrustedIssuer: who revokes all
// their own tokens must leave room for the others'.
const maxDeniedOf = maxDenied / 10

// denyTimeout bounds how long writing an entry may take, other replicas being in the way.
const denyTimeout = 5 * time.Second

var errDenyListFull = fmt.Errorf("the ConfigMap %s holds %d revoked tokens that are still alive, and takes no more: "+
	"revoke the versions of the credentials instead", RevokedTokensConfigMap, maxDenied)

var errDenyListShare = fmt.Errorf("the ConfigMap %s holds %d revoked tokens of this tenant that are still alive, and takes no more of its: "+
	"revoke the versions of its credentials instead", RevokedTokensConfigMap, maxDeniedOf)

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
		until, _, err := parseDenied(text)
		if err != nil {
			until = d.now().Add(time.Hour).Unix()
		}
		merged[id] = max(merged[id], until)
	}
	maps.DeleteFunc(merged, func(_ string, until int64) bool { return over(until, d.now()) })
	d.known.Store(&merged)
}

func over(until int64, now time.Time) bool { return until <= now.Unix() }

// parseDenied reads the value of an entry: when it is over, and whose it is.
func parseDenied(text string) (until int64, owner string, err error) {
	first, owner, _ := strings.Cut(text, " ")
	until, err = strconv.ParseInt(first, 10, 64)
	return until, owner, err
}

// enterDenied adds an entry to the data of the ConfigMap, and takes out those that are over.
func enterDenied(data map[string]string, id, tenant string, until, now time.Time) error {
	sum := sha256.Sum256([]byte(tenant))
	mine, held := base64.RawURLEncoding.EncodeToString(sum[:8]), 0
	for other, text := range data {
		switch ends, owner, err := parseDenied(text); {
		case err == nil && over(ends, now):
			delete(data, other)
		case owner == mine:
			held++
		}
	}
	if _, there := data[id]; !there {
		switch {
		case held >= maxDeniedOf:
			return errDenyListShare
		case len(data) >= maxDenied:
			return errDenyListFull
		}
	}
	data[id] = strconv.FormatInt(until.Unix(), 10) + " " + mine
	return nil
}

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
	// revoke ends a chain of tokens of this tenant, the last of which can end so late.
	revoke(ctx context.Context, id, tenant string, until time.Time) error
}

// sharedDenyList revokes by writing into the ConfigMap, from which every replica reads.
type sharedDenyList struct {
	*denyList
	core      rest.Interface
	namespace string
	writing   sync.Mutex // one at a time, or this server's requests would be in each other's way
}

func (s *sharedDenyList) revoke(ctx context.Context, id, tenant string, until time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, denyTimeout)
	defer cancel()
	s.writing.Lock()
	defer s.writing.Unlock()
	for {
		err := s.write(ctx, id, tenant, until)
		if !apierrors.IsConflict(err) {
			return err
		}
		if ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
	}
}

func (s *sharedDenyList) write(ctx context.Context, id, tenant string, until time.Time) error {
	list := new(corev1.ConfigMap)
	if err := s.core.Get().Namespace(s.namespace).Resource("configmaps").Name(RevokedTokensConfigMap).Do(ctx).Into(list); err != nil {
		return fmt.Errorf("reading ConfigMap %s/%s: %w", s.namespace, RevokedTokensConfigMap, err)
	}
	if list.Data == nil {
		list.Data = map[string]string{}
	}
	if err := enterDenied(list.Data, id, tenant, until, s.now()); err != nil {
		return err
	}
	// Under the resourceVersion it was read at.
	err := s.core.Put().Namespace(s.namespace).Resource("configmaps").Name(RevokedTokensConfigMap).Body(list).Do(ctx).Into(new(corev1.ConfigMap))
	if err != nil {
		return fmt.Errorf("updating ConfigMap %s/%s: %w", s.namespace, RevokedTokensConfigMap, err)
	}
	s.add(map[string]string{id: list.Data[id]})
	return nil
}
