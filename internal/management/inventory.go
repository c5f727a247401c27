package management

import (
	"context"
	"encoding/base64"
	"errors"
	"strings"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/store"
)

const (
	// inventoryCursor begins the cursors of the inventory, which those of the API server do
	// not: it is no character of theirs.
	inventoryCursor = "~"
	// maxLookups are made at once of what the inventory has found.
	maxLookups = 16
)

// inventoried tells whether the inventory of the database is to find what is asked for. It
// has indexes over metadata, which the API server does not: that would have every
// credential looked at.
func (a *API) inventoried(in *ListInput) bool {
	if in.Cursor != "" {
		return strings.HasPrefix(in.Cursor, inventoryCursor)
	}
	return a.config.Store != nil && (len(in.Metadata) > 0 || in.Owner != "" || in.Class != "")
}

// inventory is a page of what the inventory finds. What it finds is read as it is now, and
// looked at again: the inventory is a moment behind, and knows less.
func (a *API) inventory(ctx context.Context, c *Caller, in *ListInput) (*CredentialList, error) {
	filter, metadata, err := in.search()
	if err != nil {
		return nil, err
	}
	cursor, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(in.Cursor, inventoryCursor))
	if err != nil {
		return nil, a.readError(ctx, c, "", store.ErrCursor)
	}
	found, err := read(ctx, a, c, "searching the inventory", func(ctx context.Context, s Store, t store.Tenant) (store.Credentials, error) {
		return s.Credentials(ctx, t, filter, store.Page{Limit: in.Limit, Cursor: string(cursor)})
	})
	if err != nil {
		return nil, err
	}
	objects, err := a.lookUp(ctx, c, found.Items)
	if err != nil {
		return nil, err
	}
	page, now := &CredentialList{Items: []Credential{}}, a.config.Now()
	for _, o := range objects {
		if o == nil {
			continue // gone since
		}
		if d := describe(o, now); in.matches(&d, metadata) && in.labelled(&d, filter.Labels) {
			page.Items = append(page.Items, d)
		}
	}
	if found.Next != "" {
		page.Next = inventoryCursor + base64.RawURLEncoding.EncodeToString([]byte(found.Next))
	}
	a.searched(c, "credentials", in.query().Encode())
	return page, nil
}

// search is what the inventory is asked for. The state is left to what is there now: time
// alone changes it.
func (in *ListInput) search() (f store.CredentialFilter, metadata map[string]string, err error) {
	if _, metadata, err = in.selectors(); err != nil {
		return f, nil, err
	}
	labels, err := pairs("label", in.Label)
	return store.CredentialFilter{
		Kind: in.Kind, Namespace: in.Namespace, Name: in.Name, Class: in.Class, Owner: in.Owner, Labels: labels, Metadata: metadata,
	}, metadata, err
}

// labelled tells whether the labels are still there.
func (in *ListInput) labelled(c *Credential, wanted map[string]string) bool {
	for key, value := range wanted {
		if have, ok := c.Labels[key]; !ok || have != value {
			return false
		}
	}
	return true
}

// lookUp reads what was found as it is now, in order; nil for what is gone.
func (a *API) lookUp(ctx context.Context, c *Caller, found []store.Credential) ([]v1alpha1.Credential, error) {
	objects, errs := make([]v1alpha1.Credential, len(found)), make([]error, len(found))
	var looking sync.WaitGroup
	places := make(chan struct{}, maxLookups)
	for i := range found {
		if !c.sees(found[i].Namespace) {
			continue // the database has held the tenant apart already
		}
		looking.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			o, err := a.cluster.get(ctx, v1alpha1.Kind(found[i].Kind), found[i].Namespace, found[i].Name)
			switch {
			case apierrors.IsNotFound(err) || err == nil && string(o.GetUID()) != found[i].UID:
			case err != nil:
				errs[i] = err
			default:
				objects[i] = o
			}
		})
	}
	looking.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, a.clusterError(c, "listing credentials", err)
	}
	return objects, nil
}
