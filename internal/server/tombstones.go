package server

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/audit"
	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/credential"
	"github.com/mintmark-dev/mintmark/internal/store"
)

// tombstones sees to it that what was revoked stays so, whatever a restored cluster
// says: the digests of revoked versions go into the store, and those found there are
// refused. It is safe for concurrent use; one that is nil does nothing.
type tombstones struct {
	store Store
	index *authn.Index
	warm  func() bool // everything has been listed: see authn.Index.RevokedOf
	log   *slog.Logger
	now   func() time.Time

	loaded atomic.Bool // the store has been read once

	mu   sync.Mutex
	seen map[string]place // credentials with revoked versions, by UID
	dug  map[credential.Digest]store.Tombstone
	wake chan struct{}
}

// place is what a tombstone says of a credential beside its digest.
type place struct{ namespace, reason string }

const (
	tombstonePage    = 1000
	tombstonePoll    = 30 * time.Second
	tombstoneTimeout = 10 * time.Second
	tombstoneRetry   = time.Second
	// tombstoneFailures in a row are worth a warning: a database takes a moment to open.
	tombstoneFailures = 3
	// tombstoneLeeway is added to when a value would have expired, for clocks differ.
	tombstoneLeeway = time.Hour
	// maxDug bounds what waits for the store; the versions of credentials that are
	// there still are found again.
	maxDug = 100_000
)

func newTombstones(s Store, index *authn.Index, warm func() bool, log *slog.Logger, now func() time.Time) *tombstones {
	return &tombstones{
		store: s, index: index, warm: warm, log: log, now: now, seen: map[string]place{}, dug: map[credential.Digest]store.Tombstone{},
		wake: make(chan struct{}, 1),
	}
}

// see looks whether a credential that was applied has versions to be buried.
func (t *tombstones) see(c v1alpha1.Credential) {
	if t == nil {
		return
	}
	uid := string(c.GetUID())
	if len(t.index.RevokedOf(uid)) == 0 {
		return
	}
	t.mu.Lock()
	t.seen[uid] = placeOf(c)
	t.mu.Unlock()
	t.nudge()
}

func placeOf(c v1alpha1.Credential) place {
	p := place{namespace: c.GetNamespace()}
	if r := c.CredentialSpec().Revoked; r != nil {
		p.reason = r.Reason
	}
	return p
}

// going is see for a credential that is about to be forgotten.
func (t *tombstones) going(c v1alpha1.Credential) {
	if t == nil || !t.warm() {
		return
	}
	t.dig(string(c.GetUID()), placeOf(c))
	t.nudge()
}

// dig notes the tombstones of a credential's revoked versions.
func (t *tombstones) dig(uid string, at place) {
	now := t.now()
	for _, r := range t.index.RevokedOf(uid) {
		until := time.Time{}
		if !r.Expires.IsZero() {
			if until = r.Expires.Add(tombstoneLeeway); until.Before(now) {
				continue
			}
		}
		t.mu.Lock()
		if len(t.dug) < maxDug {
			t.dug[r.Digest] = store.Tombstone{
				Digest: r.Digest[:], Pepper: r.Pepper, UID: uid, Namespace: at.namespace, Version: r.Version, Reason: string(audit.Clean(at.reason, maxSubjectText)),
				RevokedAt: now.UTC().Truncate(time.Microsecond), Until: until,
			}
		}
		t.mu.Unlock()
	}
}

func (t *tombstones) nudge() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// Run stores and reads tombstones until the context ends.
func (t *tombstones) Run(ctx context.Context) {
	var waiting sync.WaitGroup
	defer waiting.Wait()
	waiting.Go(func() { t.listen(ctx) })
	var after int64
	var failures int
	for ctx.Err() == nil {
		err := t.round(ctx, &after)
		switch {
		case err == nil && failures >= tombstoneFailures:
			t.log.Info("tombstones are read and stored again", "audit", true)
		case err != nil && failures == tombstoneFailures-1 && ctx.Err() == nil:
			t.log.Warn("tombstones cannot be read or stored: in a cluster restored from a backup, credentials revoked since may pass until they can",
				"audit", true, "read before", t.loaded.Load(), "error", err.Error())
		}
		if failures++; err == nil {
			failures = 0
		}
		pause := tombstonePoll
		switch {
		case err != nil:
			pause = tombstoneRetry
		case !t.idle():
			pause = tombstoneRetry / 4
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-t.wake:
		}
		timer.Stop()
	}
}

// idle: nothing waits.
func (t *tombstones) idle() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.seen) == 0 && len(t.dug) == 0
}

// listen has the store read as soon as somebody has stored something.
func (t *tombstones) listen(ctx context.Context) {
	for ctx.Err() == nil {
		if t.store.AwaitDenied(ctx) == nil {
			t.nudge()
			continue
		}
		timer := time.NewTimer(tombstoneRetry)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
}

// round reads what is new, and stores what waits.
func (t *tombstones) round(ctx context.Context, after *int64) error {
	ctx, cancel := context.WithTimeout(ctx, tombstoneTimeout)
	defer cancel()
	if err := t.load(ctx, after); err != nil {
		return err
	}
	if t.warm() {
		t.mu.Lock()
		seen := t.seen
		t.seen = map[string]place{}
		t.mu.Unlock()
		for uid, at := range seen {
			t.dig(uid, at)
		}
	}
	return t.flush(ctx)
}

// load refuses what the store says.
func (t *tombstones) load(ctx context.Context, after *int64) error {
	for {
		page, err := t.store.Tombstones(ctx, *after, tombstonePage)
		if err != nil {
			return err
		}
		var digests []credential.Digest
		for i := range page {
			*after = max(*after, page[i].Number)
			if len(page[i].Digest) == len(credential.Digest{}) {
				digests = append(digests, credential.Digest(page[i].Digest))
			}
		}
		if len(digests) > 0 {
			t.index.SetTombstones(digests)
		}
		if len(page) < tombstonePage {
			t.loaded.Store(true)
			return nil
		}
	}
}

// flush stores what waits.
func (t *tombstones) flush(ctx context.Context) error {
	for {
		t.mu.Lock()
		var batch []store.Tombstone
		for _, stone := range t.dug {
			if batch = append(batch, stone); len(batch) == tombstonePage {
				break
			}
		}
		t.mu.Unlock()
		if len(batch) == 0 {
			return nil
		}
		if err := t.store.PutTombstones(ctx, batch); err != nil {
			return err
		}
		digests := make([]credential.Digest, len(batch))
		t.mu.Lock()
		for i := range batch {
			digests[i] = credential.Digest(batch[i].Digest)
			delete(t.dug, digests[i])
		}
		t.mu.Unlock()
		t.index.SetTombstones(digests)
	}
}
