package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/mintmark-dev/mintmark/internal/audit"
	"github.com/mintmark-dev/mintmark/internal/store"
)

// Store is what a server keeps outside the cluster. All its methods may fail at any
// time, for a database may be down. It is safe for concurrent use.
type Store interface {
	audit.Store
	// AppendOnce is Append for events that are recorded once for good, whoever tells
	// of them: store.ErrDuplicate where one of them is there already, and then nothing
	// is stored.
	AppendOnce(ctx context.Context, b *audit.Batch) error
	// Missing gives the IDs of those of the events that AppendOnce has not stored. What
	// is older than what retention has cleared out counts as stored.
	Missing(ctx context.Context, events []audit.Event) ([]audit.ID, error)
	// PutCredentials takes credentials into the inventory. What is there already, or of
	// a newer object, is not written.
	PutCredentials(ctx context.Context, all []store.Credential) error
	// Credentials lists the inventory.
	Credentials(ctx context.Context, t store.Tenant, f store.CredentialFilter, p store.Page) (store.Credentials, error)
	// NewestCredential is the greatest resourceVersion that a row of it was made of, and
	// RewindCredentials forgets those greater than one.
	NewestCredential(ctx context.Context) (int64, error)
	RewindCredentials(ctx context.Context, after int64) error
	// PutTombstones stores tombstones; those that are there already stay as they are.
	PutTombstones(ctx context.Context, all []store.Tombstone) error
	// Tombstones gives those stored after a number, in order.
	Tombstones(ctx context.Context, after int64, limit int) ([]store.Tombstone, error)
	// AwaitDenied waits until somebody has stored a tombstone, or the context ends.
	AwaitDenied(ctx context.Context) error
	// State is how the store was when it was last looked at. It does not wait.
	State() store.State
}

// ledger stores events that are there once for good, whichever server tells of them and
// however often: what a controller hands over, and what every server sees. Their chain
// is one of their own. It is safe for concurrent use.
type ledger struct {
	store    Store
	exporter audit.Exporter // nil: nobody is told
	server   string
	name     string // of the run, uniquely
	log      *slog.Logger

	mu     sync.Mutex // orders the chain
	chains int
	chain  *audit.Sealer

	waitingMu sync.Mutex
	waiting   map[audit.ID]audit.Event
	lost      int64
	wake      chan struct{}
}

const (
	// maxOnce is how many events a batch has at most.
	maxOnce = 1000
	// maxWaiting bounds what waits for the store, and what finds no room is counted.
	maxWaiting  = 10_000
	onceTimeout = 10 * time.Second
	// A store that is down is tried again after these.
	onceRetry, onceLastRetry = 500 * time.Millisecond, 30 * time.Second
)

func newLedger(s Store, e audit.Exporter, server, name string, log *slog.Logger) *ledger {
	return &ledger{store: s, exporter: e, server: server, name: name, log: log, waiting: map[audit.ID]audit.Event{}, wake: make(chan struct{}, 1)}
}

// put stores the events that are not there yet. When it returns nil all are.
func (l *ledger) put(ctx context.Context, events []audit.Event) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		missing, err := l.missing(ctx, events)
		if err != nil || len(missing) == 0 {
			return err
		}
		err = l.append(ctx, missing)
		if !errors.Is(err, store.ErrDuplicate) {
			return err
		}
		// Another server was faster.
	}
}

// missing are the events that are not stored, each once.
func (l *ledger) missing(ctx context.Context, events []audit.Event) ([]audit.Event, error) {
	byID, once := make(map[audit.ID]*audit.Event, len(events)), make([]audit.Event, 0, len(events))
	for i := range events {
		if e := &events[i]; byID[e.ID] == nil {
			byID[e.ID] = e
			once = append(once, *e)
		}
	}
	missing, err := l.store.Missing(ctx, once)
	if err != nil {
		return nil, err
	}
	out := make([]audit.Event, len(missing))
	for i, id := range missing {
		out[i] = *byID[id]
	}
	return out, nil
}

// append makes one attempt. The chain goes on only with what is stored; where that is
// not known another one begins.
func (l *ledger) append(ctx context.Context, events []audit.Event) error {
	if l.chain == nil {
		l.chains++
		l.chain = audit.NewSealer(l.name + "/once/" + strconv.Itoa(l.chains))
	}
	next := *l.chain
	batch, err := next.Seal(events)
	if err != nil {
		return err
	}
	switch err := l.store.AppendOnce(ctx, batch); {
	case err == nil:
		l.chain = &next
	case errors.Is(err, store.ErrDuplicate): // and nothing was stored
		return err
	default:
		l.chain = nil
		return fmt.Errorf("storing %d events that are recorded once: %w", len(events), err)
	}
	if l.exporter != nil {
		if err := l.exporter.Export(ctx, batch.Events); err != nil {
			l.log.Error("exporting events of the audit log", "error", err.Error())
		}
	}
	return nil
}

// later has an event stored as soon as the store takes it.
func (l *ledger) later(e audit.Event) {
	e.Server = l.server
	l.waitingMu.Lock()
	if _, known := l.waiting[e.ID]; !known && len(l.waiting) >= maxWaiting {
		l.lost++
	} else {
		l.waiting[e.ID] = e
	}
	l.waitingMu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// depth is how much waits, and how much found no room.
func (l *ledger) depth() (waiting int, lost int64) {
	if l == nil {
		return 0, 0
	}
	l.waitingMu.Lock()
	defer l.waitingMu.Unlock()
	return len(l.waiting), l.lost
}

// Run stores what waits until the context ends, and then once more.
func (l *ledger) Run(ctx context.Context) {
	wait := onceRetry
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			continue
		case <-l.wake:
		}
		for l.flush(ctx) != nil && ctx.Err() == nil {
			timer := time.NewTimer(wait)
			select {
			case <-ctx.Done():
			case <-timer.C:
			}
			timer.Stop()
			wait = min(2*wait, onceLastRetry)
		}
		wait = onceRetry
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if l.flush(last) != nil {
		waiting, _ := l.depth()
		l.log.Warn("events that this server alone need not tell of were not stored; another server, or this one after a restart, tells of what still holds", "events", waiting)
	}
}

// flush stores what waits.
func (l *ledger) flush(ctx context.Context) error {
	for {
		l.waitingMu.Lock()
		events := make([]audit.Event, 0, min(len(l.waiting), maxOnce))
		for _, e := range l.waiting {
			if len(events) < maxOnce {
				events = append(events, e)
			}
		}
		l.waitingMu.Unlock()
		if len(events) == 0 {
			return nil
		}
		slices.SortFunc(events, func(a, b audit.Event) int { return a.At.Compare(b.At) })
		attempt, cancel := context.WithTimeout(ctx, onceTimeout)
		err := l.put(attempt, events)
		cancel()
		if err != nil {
			return err
		}
		l.waitingMu.Lock()
		for i := range events {
			delete(l.waiting, events[i].ID)
		}
		l.waitingMu.Unlock()
	}
}
