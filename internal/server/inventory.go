package server

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
	"github.com/mintmark-dev/mintmark/internal/server/listwatch"
	"github.com/mintmark-dev/mintmark/internal/store"
)

// inventory sees to it that the store knows which credentials there are, to search by
// what nobody verifies by: owner, description, labels, metadata. It is safe for concurrent
// use; one that is nil does nothing.
//
// What changes is written as it passes by. What has not passed by since this server
// started, or found no room, is brought by a round of its own: lists in pages, apart from
// those that the index is fed from, one page held at a time. Of an object the server keeps
// here two numbers. All servers write, and a row that is there already, or was made of a
// newer object, is left alone: so it is written once, whoever comes first.
type inventory struct {
	store Store
	warm  func() bool // everything has been listed once
	log   *slog.Logger
	now   func() time.Time
	// each is the time between rounds, and pause that between pages of one.
	each, pause time.Duration

	seed   maphash.Seed
	shelf  []shelf
	passed atomic.Int64 // rounds

	mu      sync.Mutex
	seen    map[uint64]sighting // by the hash of the UID
	waiting map[string]store.Credential
	due     bool
	wake    chan struct{}
}

// shelf is the credentials of a kind, of one namespace or of all.
type shelf struct {
	kind      v1alpha1.Kind
	namespace string
	source    listwatch.Source
	open      func(v1alpha1.Credential) (*credential.Record, string)
}

// sighting is how an object was last seen: its resourceVersion, and a hash of the row; 0
// where that was not worked out.
type sighting struct {
	version int64
	row     uint64
}

const (
	inventoryPage  = 500
	inventoryEvery = 6 * time.Hour
	inventoryPause = 25 * time.Millisecond
	// inventoryDelay gathers what changes together, in one statement.
	inventoryDelay              = 500 * time.Millisecond
	inventoryTimeout            = 30 * time.Second
	inventoryRetry, inventoryLR = time.Second, time.Minute
	// maxInventory bounds what waits for the store. What finds no room is brought by
	// the next round.
	maxInventory = 5000
)

func newInventory(s Store, warm func() bool, log *slog.Logger, now func() time.Time) *inventory {
	return &inventory{
		store: s, warm: warm, log: log, now: now, each: inventoryEvery, pause: inventoryPause, seed: maphash.MakeSeed(), seen: map[uint64]sighting{},
		waiting: map[string]store.Credential{}, due: true, wake: make(chan struct{}, 1),
	}
}

// add has the credentials of a source brought in.
func (i *inventory) add(s shelf) {
	if i != nil {
		i.shelf = append(i.shelf, s)
	}
}

// see takes note of a credential that is as it is now.
func (i *inventory) see(c v1alpha1.Credential, record *credential.Record) {
	if i == nil {
		return
	}
	uid, version := maphash.String(i.seed, string(c.GetUID())), resourceVersion(c)
	i.mu.Lock()
	was, known := i.seen[uid]
	i.mu.Unlock()
	if known && was.version == version && version != 0 {
		return // told again
	}
	if !i.warm() {
		// The first lists: the round after them brings it in, and they are not to wait.
		i.mu.Lock()
		i.seen[uid] = sighting{version: version}
		i.mu.Unlock()
		return
	}
	row := rowOf(c, record, i.now())
	now := sighting{version: version, row: i.hash(&row)}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.seen[uid] = now
	if !known || was.row != now.row {
		i.put(row)
	}
}

// going takes note of a credential that is gone.
func (i *inventory) going(c v1alpha1.Credential) {
	if i == nil {
		return
	}
	row := rowOf(c, nil, i.now())
	row.State = store.StateDeleted
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.seen, maphash.String(i.seed, row.UID))
	i.put(row)
}

// missed takes note that a credential is gone, of which nothing more is known.
func (i *inventory) missed(uid string) {
	if i == nil {
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.seen, maphash.String(i.seed, uid))
	i.due = true
	i.nudge()
}

// restored forgets everything: the cluster is another one.
func (i *inventory) restored() {
	if i == nil {
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	clear(i.seen)
	clear(i.waiting)
	i.due = true
}

// put has a row written. The lock is held.
func (i *inventory) put(row store.Credential) {
	if _, ok := i.waiting[row.UID]; !ok && len(i.waiting) >= maxInventory {
		i.due = true
	} else {
		i.waiting[row.UID] = row
	}
	i.nudge()
}

func (i *inventory) nudge() {
	select {
	case i.wake <- struct{}{}:
	default:
	}
}

// depth is how many rows wait.
func (i *inventory) depth() int {
	if i == nil {
		return 0
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	return len(i.waiting)
}

// resourceVersion of an object, as a number: the API server's are numbers that grow. 0
// where it is none.
func resourceVersion(c metav1.Object) int64 {
	n, err := strconv.ParseInt(c.GetResourceVersion(), 10, 64)
	if err != nil || n < 0 {
		return 0
	}
	return n
}

// rowOf is the row of a credential whose seal holds, or that has no record yet. What is
// told to people is of the object as it is.
func rowOf(c v1alpha1.Credential, record *credential.Record, now time.Time) store.Credential {
	spec := c.CredentialSpec()
	row := store.Credential{
		UID: string(c.GetUID()), Kind: string(c.CredentialKind()), Namespace: c.GetNamespace(), Name: c.GetName(), Class: spec.CredentialClassName,
		Owner: spec.Owner, Description: spec.Description, Labels: c.GetLabels(), Admin: spec.Admin,
		Created: c.GetCreationTimestamp().UTC(), Applied: resourceVersion(c),
	}
	if len(spec.Metadata) > 0 {
		row.Metadata = make(map[string]string, len(spec.Metadata))
	}
	for key, value := range spec.Metadata {
		row.Metadata[key] = string(value)
	}
	row.State, row.Expires = stateOf(spec, record, now)
	return row
}

// stateOf is what became of a credential, and when the last of its values expires; zero
// is never.
func stateOf(spec *v1alpha1.CredentialSpec, record *credential.Record, now time.Time) (state string, expires time.Time) {
	if spec.ExpiresAt != nil {
		expires = spec.ExpiresAt.UTC()
	}
	revoked := credential.RevokedDigest(spec.Revoked)
	accepted, forever, latest := 0, false, int64(0)
	if record != nil {
		if revoked == record.RevokedSpec {
			revoked = "" // accounted for: what is accepted was made since
		}
		for _, v := range record.Versions {
			if v.State == v1alpha1.VersionRevoked {
				continue
			}
			accepted++
			forever = forever || v.Expires == 0
			latest = max(latest, v.Expires)
		}
		if at := time.Unix(latest, 0).UTC(); accepted > 0 && !forever && (expires.IsZero() || at.Before(expires)) {
			expires = at
		}
	}
	switch {
	case revoked != "", record != nil && accepted == 0 && (record.RevokedThrough > 0 || len(record.RevokedVersions) > 0):
		return store.StateRevoked, expires
	case !expires.IsZero() && !expires.After(now):
		return store.StateExpired, expires
	case record != nil && accepted == 0 && record.Epoch > 1:
		return store.StateExpired, expires // a record leaves out what has expired
	}
	return store.StateActive, expires
}

// hash tells one row from another.
func (i *inventory) hash(c *store.Credential) uint64 {
	var h maphash.Hash
	h.SetSeed(i.seed)
	write := func(all ...string) {
		for _, s := range all {
			_, _ = h.WriteString(strconv.Itoa(len(s)))
			_, _ = h.WriteString(":" + s)
		}
	}
	write(c.Class, c.Owner, c.Description, c.State, strconv.FormatBool(c.Admin), strconv.FormatInt(c.Expires.Unix(), 10))
	for _, m := range []map[string]string{c.Labels, c.Metadata} {
		write(strconv.Itoa(len(m)))
		for _, key := range slices.Sorted(maps.Keys(m)) {
			write(key, m[key])
		}
	}
	return h.Sum64()
}

// Run writes until the context ends.
func (i *inventory) Run(ctx context.Context) {
	wait := inventoryRetry
	next := time.Time{} // of the round
	for ctx.Err() == nil {
		err := i.flush(ctx)
		if err == nil && i.warm() && i.store.State().Up && (i.isDue() || !i.now().Before(next)) {
			if err = i.round(ctx); err == nil {
				// Spread, so that servers that started together part.
				next = i.now().Add(i.each/2 + rand.N(i.each)) //nolint:gosec // nothing depends on its being hard to guess
			}
		}
		pause := inventoryRetry
		switch {
		case err != nil:
			if wait == inventoryRetry && ctx.Err() == nil {
				i.log.Warn("the inventory of credentials in the database is behind; requests do not need it", "error", err.Error())
			}
			wait = min(2*wait, inventoryLR)
			pause = wait
		default:
			wait = inventoryRetry
			if !i.idle() {
				pause = inventoryDelay
			}
		}
		i.sleep(ctx, pause, err == nil)
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = i.flush(last) // what is not written now is brought by the round after the next start
}

// sleep waits for a time, or for something to write.
func (i *inventory) sleep(ctx context.Context, pause time.Duration, woken bool) {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	wake := i.wake
	if !woken {
		wake = nil
	}
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-wake:
		// A little later more has changed.
		later := time.NewTimer(inventoryDelay)
		defer later.Stop()
		select {
		case <-ctx.Done():
		case <-later.C:
		}
	}
}

func (i *inventory) isDue() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.due
}

func (i *inventory) idle() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return len(i.waiting) == 0 && !i.due
}

// flush writes what waits.
func (i *inventory) flush(ctx context.Context) error {
	for {
		i.mu.Lock()
		batch := make([]store.Credential, 0, min(len(i.waiting), inventoryPage))
		for _, row := range i.waiting {
			if batch = append(batch, row); len(batch) == inventoryPage {
				break
			}
		}
		i.mu.Unlock()
		if len(batch) == 0 {
			return nil
		}
		if err := i.write(ctx, batch); err != nil {
			return err
		}
		i.mu.Lock()
		for at := range batch {
			if row := &batch[at]; i.waiting[row.UID].Applied == row.Applied { // not changed again meanwhile
				delete(i.waiting, row.UID)
			}
		}
		i.mu.Unlock()
	}
}

func (i *inventory) write(ctx context.Context, rows []store.Credential) error {
	ctx, cancel := context.WithTimeout(ctx, inventoryTimeout)
	defer cancel()
	return i.store.PutCredentials(ctx, rows)
}

// round brings in everything there is, and marks what is not there any more.
func (i *inventory) round(ctx context.Context) (err error) {
	i.mu.Lock()
	i.due = false
	i.mu.Unlock()
	defer func() {
		if err != nil {
			i.mu.Lock()
			i.due = true
			i.mu.Unlock()
		}
	}()
	began, rows, gone := i.now(), 0, 0
	newest, err := i.store.NewestCredential(ctx)
	if err != nil {
		return err
	}
	for at := range i.shelf {
		s := &i.shelf[at]
		n, left, err := i.bring(ctx, s, newest)
		if err != nil {
			return fmt.Errorf("bringing in the %ss: %w", s.kind, err)
		}
		rows, gone = rows+n, gone+left
	}
	i.passed.Add(1)
	i.log.Info("the inventory in the database is whole", "credentials", rows, "gone", gone, "took", i.now().Sub(began).Round(time.Millisecond).String())
	return nil
}

// bring does so for a shelf. newest is what the store knew before the list was begun: the
// list is consistent, so that it cannot be older, unless the cluster was restored from a
// backup.
func (i *inventory) bring(ctx context.Context, s *shelf, newest int64) (rows, gone int, err error) {
	there := map[uint64]struct{}{}
	var at int64
	options := metav1.ListOptions{Limit: inventoryPage}
	for {
		page, err := i.page(ctx, s, options)
		if err != nil {
			return 0, 0, err
		}
		if options.Continue == "" {
			if at = resourceVersion(&metav1.ObjectMeta{ResourceVersion: page.ResourceVersion}); at == 0 {
				return 0, 0, errors.New("the API server's list has no resourceVersion that is a number")
			}
			if at < newest {
				if err := i.store.RewindCredentials(ctx, at); err != nil {
					return 0, 0, err
				}
			}
		}
		batch := make([]store.Credential, len(page.Items))
		for n, c := range page.Items {
			record, _ := s.open(c)
			batch[n] = rowOf(c, record, i.now())
			there[maphash.String(i.seed, batch[n].UID)] = struct{}{}
		}
		if len(batch) > 0 {
			if err := i.write(ctx, batch); err != nil {
				return 0, 0, err
			}
		}
		if rows += len(batch); page.Continue == "" {
			break
		}
		options.Continue = page.Continue
		select { // others want the processor too
		case <-ctx.Done():
			return 0, 0, ctx.Err()
		case <-time.After(i.pause):
		}
	}
	gone, err = i.sweep(ctx, s, there, at)
	return rows, gone, err
}

func (i *inventory) page(ctx context.Context, s *shelf, options metav1.ListOptions) (*slimList, error) {
	ctx, cancel := context.WithTimeout(ctx, inventoryTimeout)
	defer cancel()
	object, err := s.source.List(ctx, options)
	if err != nil {
		return nil, err
	}
	page, ok := object.(*slimList)
	if !ok {
		return nil, fmt.Errorf("a list of %T", object)
	}
	return page, nil
}

// sweep marks those as deleted that the store has, and a list of a resourceVersion has not.
// What the store knows from later on is left alone.
func (i *inventory) sweep(ctx context.Context, s *shelf, there map[uint64]struct{}, at int64) (gone int, err error) {
	filter := store.CredentialFilter{Kind: string(s.kind), Namespace: s.namespace}
	for cursor := ""; ; {
		page, err := i.stored(ctx, filter, cursor)
		if err != nil {
			return gone, err
		}
		var left []store.Credential
		for _, row := range page.Items {
			if _, ok := there[maphash.String(i.seed, row.UID)]; !ok && row.Applied <= at {
				row.State, row.Applied = store.StateDeleted, at
				left = append(left, row)
			}
		}
		if len(left) > 0 {
			if err := i.write(ctx, left); err != nil {
				return gone, err
			}
		}
		gone += len(left)
		if cursor = page.Next; cursor == "" {
			return gone, nil
		}
	}
}

func (i *inventory) stored(ctx context.Context, f store.CredentialFilter, cursor string) (store.Credentials, error) {
	ctx, cancel := context.WithTimeout(ctx, inventoryTimeout)
	defer cancel()
	return i.store.Credentials(ctx, store.AllTenants(), f, store.Page{Limit: 2 * inventoryPage, Cursor: cursor})
}
