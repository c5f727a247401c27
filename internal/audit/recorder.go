package audit

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// Store keeps batches for good.
type Store interface {
	// Append stores the batch whole or not at all. A batch of the same chain and
	// sequence that is there already, and an event of the same ID, is stored once: then
	// it succeeds without changing anything.
	Append(ctx context.Context, b *Batch) error
}

// Exporter hands events on, beside the store. It is called by one goroutine, and an
// error is counted and not tried again.
type Exporter interface {
	Export(ctx context.Context, events []Event) error
}

// Config of a Recorder.
type Config struct {
	// Server names the server in every event; Chain names this run of it, uniquely.
	Server, Chain string
	// Store and Spool may be nil. Without a store, events go to the exporters alone.
	Store Store
	Spool *Spool
	// Exporters get every event that was taken in.
	Exporters []Exporter
	// Queue is how many events wait in memory at most; default 65,536.
	Queue int
	// Batch is how many events are stored at once at most, and Flush how long an
	// event waits at most to be; default 10,000 and 250 ms.
	Batch int
	Flush time.Duration
	// Timeout of one attempt at the store; default 5 s. What is spooled, for which nobody
	// waits, may take six times as long: a store that is slow gets through it all the same.
	Timeout time.Duration

	Log    *slog.Logger
	Now    func() time.Time
	Random io.Reader
}

const (
	defaultQueue = 1 << 16
	defaultBatch = 10_000
	// batchBytes is what the text of a batch has at most, unless a single event has more.
	batchBytes     = maxRecord / 4
	defaultFlush   = 250 * time.Millisecond
	defaultTimeout = 5 * time.Second
	// firstRetry and lastRetry bound how long a store that failed is left alone.
	firstRetry = 200 * time.Millisecond
	lastRetry  = 5 * time.Second
	// lossEvery is how often events that were lost are reported.
	lossEvery = 10 * time.Second
	// patience of the replay is so many timeouts.
	patience = 6
)

// Recorder takes events in without waiting, and sees to it that they are stored.
type Recorder struct {
	cfg   Config
	queue *queue
	chain *Sealer

	mu       sync.Mutex // orders what goes to the store directly and what is spooled
	backlog  []*Batch   // without a spool: what the store has not taken yet
	spooling bool
	retry    chan struct{}

	taken, stored, lost, exportFailures atomic.Int64
	lastStored                          atomic.Int64 // Unix nanoseconds
	trouble                             atomic.Pointer[string]
	full                                atomic.Bool
}

// New makes a Recorder; Run stores what it takes in. It does no I/O.
func New(c Config) *Recorder {
	if c.Queue <= 0 {
		c.Queue = defaultQueue
	}
	if c.Batch <= 0 {
		c.Batch = defaultBatch
	}
	if c.Flush <= 0 {
		c.Flush = defaultFlush
	}
	if c.Timeout <= 0 {
		c.Timeout = defaultTimeout
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Random == nil {
		c.Random = rand.Reader
	}
	r := &Recorder{cfg: c, queue: newQueue(c.Queue), chain: NewSealer(c.Chain), retry: make(chan struct{}, 1)}
	if c.Spool != nil {
		batches, _, _ := c.Spool.Len()
		r.spooling = batches > 0
	}
	return r
}

// Record takes an event in, and tells whether there was room for it. It does not wait,
// and does not keep the event. ID, At and Server are filled in where they are zero.
func (r *Recorder) Record(e *Event) bool {
	if e.At.IsZero() {
		e.At = r.cfg.Now()
	}
	if e.Server == "" {
		e.Server = r.cfg.Server
	}
	if !r.queue.put(e) {
		return false
	}
	r.taken.Add(1)
	return true
}

// Health tells how the recording goes.
type Health struct {
	// Taken in, Stored and Lost count events since the start. What was taken in
	// and is neither stored nor lost waits.
	Taken, Stored, Lost int64
	// Queued waits in memory; Spooled batches, and their bytes, on disk.
	Queued, Spooled, SpooledBytes int64
	// Damaged records of the spool were left out.
	Damaged int64
	// ExportFailures count calls of exporters.
	ExportFailures int64
	// LastStored is when the store took something last; zero before.
	LastStored time.Time
	// Trouble is what the store last said; empty while it takes what it is given.
	Trouble string
	// Full: events are being lost.
	Full bool
}

// Health tells how the recording goes.
func (r *Recorder) Health() Health {
	waiting := r.queue.waiting()
	h := Health{
		Taken: r.taken.Load(), Stored: r.stored.Load(), Lost: r.lost.Load() + r.queue.lostSoFar(), Queued: int64(waiting),
		ExportFailures: r.exportFailures.Load(), Full: r.full.Load(),
	}
	if at := r.lastStored.Load(); at != 0 {
		h.LastStored = time.Unix(0, at)
	}
	if t := r.trouble.Load(); t != nil {
		h.Trouble = *t
	}
	if r.cfg.Spool != nil {
		h.Spooled, h.SpooledBytes, h.Damaged = r.cfg.Spool.Len()
	}
	return h
}

// Full tells whether events are being lost, for those who would rather deny than go
// on unseen.
func (r *Recorder) Full() bool { return r.full.Load() }

// Run stores what is taken in until the context ends, and then what is left: directly,
// or in the spool.
func (r *Recorder) Run(ctx context.Context) error {
	var replaying sync.WaitGroup
	if r.cfg.Store != nil {
		replaying.Go(func() { r.replay(ctx) })
	}
	ticker := time.NewTicker(r.cfg.Flush)
	defer ticker.Stop()
	var reported time.Time
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-ticker.C:
		case <-r.queue.ready:
		}
		r.flush(ctx)
		if now := r.cfg.Now(); now.Sub(reported) >= lossEvery || now.Before(reported) {
			reported = now
			r.reportLoss()
		}
	}
	replaying.Wait()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.cfg.Timeout)
	defer cancel()
	r.reportLoss()
	r.flush(last)
	r.drain(last)
	if left := r.abandon(last); left > 0 {
		return fmt.Errorf("%d events of the audit log were lost: the store did not take them, and there is no spool or it is full", left)
	}
	return nil
}

// flush batches everything that waits.
func (r *Recorder) flush(ctx context.Context) {
	for {
		events := r.queue.take(r.cfg.Batch)
		if len(events) == 0 {
			return
		}
		if err := r.identify(events); err != nil {
			r.lose(events, err)
			return
		}
		for len(events) > 0 {
			n := fitting(events)
			r.seal(ctx, events[:n:n])
			events = events[n:]
		}
	}
}

// identify gives an ID to each event that has none.
func (r *Recorder) identify(events []Event) error {
	random := make([]byte, idRandom*len(events))
	if _, err := io.ReadFull(r.cfg.Random, random); err != nil {
		return fmt.Errorf("making ids of events: %w", err)
	}
	for i := range events {
		if e := &events[i]; e.ID == (ID{}) {
			e.ID = idOf(e.At, [idRandom]byte(random[idRandom*i:]))
		}
	}
	return nil
}

// seal makes a batch of events and has it kept.
func (r *Recorder) seal(ctx context.Context, events []Event) {
	b, err := r.chain.Seal(events)
	if err != nil {
		r.lose(events, err)
		return
	}
	r.export(ctx, events)
	if r.cfg.Store == nil {
		r.stored.Add(int64(len(events)))
		return
	}
	r.keep(ctx, b)
}

// fitting is how many of the events make a batch: all, unless they have much to say. What
// is too long for a record of the spool would be lost with the store down.
func fitting(events []Event) int {
	total := 0
	for i := range events {
		if total += events[i].length(); total > batchBytes && i > 0 {
			return i
		}
	}
	return len(events)
}

func (r *Recorder) export(ctx context.Context, events []Event) {
	for _, e := range r.cfg.Exporters {
		if err := e.Export(ctx, events); err != nil {
			if r.exportFailures.Add(1) == 1 {
				r.cfg.Log.Error("exporting events of the audit log", "error", err.Error())
			}
		}
	}
}

// keep stores the batch, or spools it where the store has failed and not caught up yet:
// order is kept.
func (r *Recorder) keep(ctx context.Context, b *Batch) {
	r.mu.Lock()
	waiting := r.spooling || len(r.backlog) > 0
	r.mu.Unlock()
	if !waiting {
		err := r.store(ctx, b, r.cfg.Timeout)
		if err == nil {
			return
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cfg.Spool == nil {
		if len(r.backlog)*r.cfg.Batch >= r.cfg.Queue {
			r.lose(b.Events, errors.New("there is no spool (--audit-spool-dir)"))
			return
		}
		r.backlog = append(r.backlog, b)
	} else if err := r.cfg.Spool.Append(b); err != nil {
		r.lose(b.Events, err)
		return
	} else {
		r.spooling = true
	}
	r.full.Store(false)
	select {
	case r.retry <- struct{}{}:
	default:
	}
}

// store makes one attempt at the store.
func (r *Recorder) store(ctx context.Context, b *Batch, timeout time.Duration) error {
	attempt, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := r.cfg.Store.Append(attempt, b); err != nil {
		if ctx.Err() != nil {
			return err // it is we who stop
		}
		text := err.Error()
		if r.trouble.Swap(&text) == nil {
			r.cfg.Log.Error("the store does not take events; they are kept until it does", "error", text, "spool", r.cfg.Spool != nil)
		}
		return err
	}
	if r.trouble.Swap(nil) != nil {
		r.cfg.Log.Info("the store takes events again")
	}
	r.full.Store(false)
	r.stored.Add(int64(len(b.Events)))
	r.lastStored.Store(r.cfg.Now().UnixNano())
	return nil
}

// replay hands what was kept to the store, in order, for as long as there is any.
func (r *Recorder) replay(ctx context.Context) {
	wait := firstRetry
	for ctx.Err() == nil {
		b, err := r.oldest()
		switch {
		case err != nil:
			r.cfg.Log.Error("a batch of the audit log cannot be read from the spool, and is left out", "error", err.Error())
			r.drop((*Spool).Skip)
			continue
		case b == nil:
			select {
			case <-ctx.Done():
			case <-r.retry:
			}
			continue
		}
		if r.store(ctx, b, patience*r.cfg.Timeout) == nil {
			wait = firstRetry
			r.drop((*Spool).Drop)
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
		wait = min(2*wait, lastRetry)
	}
}

func (r *Recorder) oldest() (*Batch, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cfg.Spool != nil {
		return r.cfg.Spool.Oldest()
	}
	if len(r.backlog) == 0 {
		return nil, nil
	}
	return r.backlog[0], nil
}

// drop lets go of the oldest of what was kept.
func (r *Recorder) drop(from func(*Spool) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cfg.Spool == nil {
		r.backlog = r.backlog[1:]
		return
	}
	if err := from(r.cfg.Spool); err != nil {
		r.cfg.Log.Error("removing from the spool what has been stored; it is stored once all the same", "error", err.Error())
	}
	batches, _, _ := r.cfg.Spool.Len()
	r.spooling = batches > 0
}

// lose counts events that cannot be kept. Where one of them was to tell of others, those
// are to be told of again.
func (r *Recorder) lose(events []Event, err error) {
	r.lost.Add(int64(len(events)))
	for i := range events {
		if events[i].Type != TypeEventsLost {
			continue
		}
		if n, err := strconv.ParseInt(string(events[i].Detail[lostEvents]), 10, 64); err == nil {
			r.queue.told.Add(-n)
			r.lost.Add(n)
		}
	}
	if !r.full.Swap(true) {
		r.cfg.Log.Error("events of the audit log are being lost", "events", len(events), "error", err.Error())
	}
}

// lostEvents is the detail of how many were.
const lostEvents = "events"

// reportLoss puts into the log itself that events are missing from it.
func (r *Recorder) reportLoss() {
	lost := r.queue.unreported() + r.lost.Swap(0)
	if lost == 0 {
		return
	}
	r.queue.told.Add(lost)
	e := Event{
		At: r.cfg.Now(), Type: TypeEventsLost, Outcome: Failed, Reason: "Overflow", Server: r.cfg.Server,
		Detail: map[string]Text{lostEvents: Text(strconv.FormatInt(lost, 10))},
	}
	if !r.Record(&e) {
		r.queue.told.Add(-lost)
		r.lost.Add(lost)
	}
}

// drain stores what is spooled, for as long as the store takes it: the disk may not be
// there any more when the next run begins.
func (r *Recorder) drain(ctx context.Context) {
	if r.cfg.Spool == nil || r.cfg.Store == nil {
		return
	}
	for {
		b, err := r.oldest()
		if err != nil || b == nil || r.store(ctx, b, r.cfg.Timeout) != nil {
			return
		}
		r.drop((*Spool).Drop)
	}
}

// abandon counts what is neither stored nor on disk at the end.
func (r *Recorder) abandon(ctx context.Context) int {
	r.mu.Lock()
	left := r.backlog
	r.backlog = nil
	r.mu.Unlock()
	for len(left) > 0 && r.store(ctx, left[0], r.cfg.Timeout) == nil {
		left = left[1:]
	}
	n := 0
	for _, b := range left {
		n += len(b.Events)
	}
	return n
}
