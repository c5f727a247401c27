package audit

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// memory is a Store that keeps what it is given, as a database would: each batch and each
// event once, and not in any order but that of the chain.
type memory struct {
	mu      sync.Mutex
	fail    func(b *Batch) (commit bool, err error)
	batches map[string]bool
	last    map[string]*Batch
	events  map[ID]Event
	order   []ID
	broken  error
}

func newMemory() *memory {
	return &memory{batches: map[string]bool{}, last: map[string]*Batch{}, events: map[ID]Event{}}
}

func (m *memory) Append(ctx context.Context, b *Batch) error {
	m.mu.Lock()
	fail := m.fail
	m.mu.Unlock()
	var answer error
	if fail != nil {
		commit, err := fail(b)
		if !commit {
			return err
		}
		answer = err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	key := b.Chain + "/" + strconv.FormatUint(b.Sequence, 10)
	if m.batches[key] {
		return answer
	}
	if err := b.Verify(m.last[b.Chain]); err != nil && m.broken == nil {
		m.broken = err
	}
	m.batches[key], m.last[b.Chain] = true, b
	for _, e := range b.Events {
		if _, again := m.events[e.ID]; !again {
			m.events[e.ID] = e
			m.order = append(m.order, e.ID)
		}
	}
	return answer
}

func (m *memory) failing(f func(*Batch) (bool, error)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = f
}

func (m *memory) count() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.events)
}

func down(*Batch) (bool, error) { return false, errors.New("connection refused") }

func authentication(i int) *Event {
	return &Event{Type: TypeAuthentication, Outcome: Allowed, UID: "u" + strconv.Itoa(i%7), Detail: map[string]Text{"n": Text(strconv.Itoa(i))}}
}

func openSpool(t *testing.T, dir string, limit int64) *Spool {
	t.Helper()
	s, err := OpenSpool(dir, limit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func start(t *testing.T, r *Recorder) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	var once sync.Once
	var err error
	stop = func() error {
		once.Do(func() { cancel(); err = <-done })
		return err
	}
	t.Cleanup(func() { _ = stop() })
	return stop
}

func TestWhatIsRecordedIsStoredInItsOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		r := New(Config{Server: "one", Chain: "one/1", Store: store, Batch: 100})
		stop := start(t, r)
		for i := range 1000 {
			e := authentication(i)
			e.UID = "u" // one lane
			if !r.Record(e) {
				t.Fatal("there was no room")
			}
		}
		time.Sleep(time.Second)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if store.count() != 1000 || store.broken != nil {
			t.Fatalf("%d events are stored; the chain: %v", store.count(), store.broken)
		}
		for i, id := range store.order {
			if got := store.events[id]; got.Detail["n"] != Text(strconv.Itoa(i)) || got.Server != "one" || got.At.IsZero() {
				t.Fatalf("event %d is %+v", i, got)
			}
		}
		if h := r.Health(); h.Taken != 1000 || h.Stored != 1000 || h.Lost != 0 || h.Trouble != "" || h.LastStored.IsZero() {
			t.Errorf("health: %+v", h)
		}
	})
}

func TestAStoreThatFailsLosesNothingAndTakesEachEventOnce(t *testing.T) {
	for name, spooled := range map[string]bool{"with a spool": true, "without one": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := newMemory()
				c := Config{Server: "one", Chain: "one/1", Store: store, Batch: 50}
				if spooled {
					c.Spool = openSpool(t, t.TempDir(), 0)
				}
				r := New(c)
				stop := start(t, r)
				random := rand.New(rand.NewPCG(1, 2))
				var attempts atomic.Int64
				store.failing(func(*Batch) (bool, error) {
					switch attempts.Add(1); random.IntN(4) {
					case 0:
						return false, errors.New("connection refused")
					case 1:
						return true, errors.New("the answer was lost")
					default:
						return true, nil
					}
				})
				for i := range 5000 {
					if !r.Record(authentication(i)) {
						t.Fatal("there was no room")
					}
					if i%100 == 0 {
						time.Sleep(300 * time.Millisecond)
					}
				}
				store.failing(nil)
				time.Sleep(time.Minute)
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				if store.count() != 5000 || store.broken != nil {
					t.Errorf("%d of 5000 events are stored after %d attempts; the chain: %v", store.count(), attempts.Load(), store.broken)
				}
				if h := r.Health(); h.Lost != 0 || h.Spooled != 0 || h.Trouble != "" || h.Stored != 5000 {
					t.Errorf("health: %+v", h)
				}
			})
		})
	}
}

func TestAHungStoreDoesNotHoldUpRecording(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hung := make(chan struct{})
		r := New(Config{Server: "one", Chain: "one/1", Store: stuck(hung), Spool: openSpool(t, t.TempDir(), 0), Timeout: time.Second})
		stop := start(t, r)
		for i := range 10_000 {
			e := authentication(i)
			e.UID = "u" + strconv.Itoa(i)
			if !r.Record(e) {
				t.Fatal("there was no room")
			}
		}
		time.Sleep(10 * time.Second)
		if h := r.Health(); h.Queued != 0 || h.Spooled == 0 || h.Lost != 0 || h.Trouble == "" {
			t.Errorf("health: %+v", h)
		}
		_ = stop()
	})
}

// stuck is a Store that does not answer.
type stuck chan struct{}

func (s stuck) Append(ctx context.Context, _ *Batch) error {
	select {
	case <-s:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func TestTheSpoolOfAnEarlierProcessIsStoredFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, store := t.TempDir(), newMemory()
		store.failing(down)
		first := New(Config{Server: "one", Chain: "one/1", Store: store, Spool: openSpool(t, dir, 0), Batch: 10})
		stop := start(t, first)
		for i := range 100 {
			first.Record(authentication(i))
		}
		time.Sleep(time.Second)
		if err := stop(); err != nil {
			t.Fatalf("what was spooled counts as lost: %v", err)
		}
		store.failing(nil)
		second := New(Config{Server: "one", Chain: "one/2", Store: store, Spool: openSpool(t, dir, 0), Batch: 10})
		stop = start(t, second)
		for i := range 100 {
			second.Record(authentication(100 + i))
		}
		time.Sleep(time.Minute)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if store.count() != 200 || store.broken != nil {
			t.Fatalf("%d events of 200 are stored; the chain: %v", store.count(), store.broken)
		}
		for i, id := range store.order {
			// Lanes are emptied in turn, so that order is that of each credential.
			if n, _ := strconv.Atoi(string(store.events[id].Detail["n"])); n >= 100 && i < 100 {
				t.Fatalf("event %d is number %d", i, n)
			}
		}
		if files, _ := os.ReadDir(dir); len(files) != 0 {
			t.Errorf("%d files are left in the spool", len(files))
		}
	})
}

func TestBeyondTheSpoolsLimitLossIsCountedAndRecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		store.failing(down)
		r := New(Config{Server: "one", Chain: "one/1", Store: store, Spool: openSpool(t, t.TempDir(), 20_000), Batch: 50})
		stop, full := start(t, r), false
		for i := range 2000 {
			if !r.Record(authentication(i)) {
				t.Fatal("there was no room")
			}
			if i%100 == 0 {
				time.Sleep(300 * time.Millisecond)
				full = full || r.Full() && r.Health().Full
			}
		}
		time.Sleep(time.Second)
		// What tells of the loss may be small enough for what room is left.
		h := r.Health()
		if h.Lost == 0 || !full || h.SpooledBytes > 20_000 {
			t.Errorf("health: %+v, full: %t", h, full)
		}
		store.failing(nil)
		time.Sleep(time.Minute)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		told := 0
		for _, e := range store.events {
			if e.Type == TypeEventsLost {
				n, err := strconv.Atoi(string(e.Detail["events"]))
				if err != nil {
					t.Fatal(err)
				}
				told += n
			}
		}
		stored := 0
		for _, e := range store.events {
			if e.Type == TypeAuthentication {
				stored++
			}
		}
		// An event about loss can itself have been lost and told of later.
		if stored+told < 2000 || stored == 2000 || r.Full() {
			t.Errorf("%d stored and %d told of as lost, of 2000; health: %+v", stored, told, r.Health())
		}
	})
}

func TestTheFloodOfOneCredentialLeavesRoomForTheOthers(t *testing.T) {
	r := New(Config{Server: "one", Chain: "one/1", Store: newMemory(), Queue: 32 * 100}) // not run: nothing is taken out
	refused := 0
	for range 100_000 {
		if !r.Record(&Event{UID: "flood"}) {
			refused++
		}
	}
	if refused < 99_000 {
		t.Fatalf("%d refused, want nearly all", refused)
	}
	others := 0
	for i := range 100 {
		if r.Record(&Event{UID: fmt.Sprintf("other-%d", i)}) {
			others++
		}
	}
	if others < 90 { // one lane in 32 is full
		t.Errorf("%d of 100 others found room", others)
	}
	if h := r.Health(); h.Lost != int64(refused+100-others) {
		t.Errorf("%d count as lost, and %d were refused", h.Lost, refused+100-others)
	}
}

// TestACrashLeavesEverythingAcknowledged cuts the spool's file after every byte.
func TestACrashLeavesEverythingAcknowledged(t *testing.T) {
	dir := t.TempDir()
	s := openSpool(t, dir, 0)
	c := NewSealer("one/1")
	var ends []int64
	for i := range 3 {
		b, err := c.Seal([]Event{{ID: FixedID(strconv.Itoa(i)), At: noon, Subject: "s"}})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Append(b); err != nil {
			t.Fatal(err)
		}
		_, size, _ := s.Len()
		ends = append(ends, size)
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	whole, err := os.ReadFile(filepath.Join(dir, files[0].Name()))
	if err != nil {
		t.Fatal(err)
	}
	for cut := range int64(len(whole)) + 1 {
		crashed := t.TempDir()
		if err := os.WriteFile(filepath.Join(crashed, files[0].Name()), whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		want := 0
		for _, end := range ends {
			if cut >= end {
				want++
			}
		}
		again, err := OpenSpool(crashed, 0)
		if err != nil {
			t.Fatal(err)
		}
		// What is appended after the crash comes after what was there.
		next := NewSealer("one/2")
		b, err := next.Seal([]Event{{ID: FixedID("next"), At: noon}})
		if err != nil {
			t.Fatal(err)
		}
		if err := again.Append(b); err != nil {
			t.Fatal(err)
		}
		for i := range want + 1 {
			got, err := again.Oldest()
			if err != nil || got == nil {
				t.Fatalf("cut at %d: batch %d of %d: %v, %v", cut, i, want+1, got, err)
			}
			if expected := FixedID(strconv.Itoa(i)); i < want && got.Events[0].ID != expected || i == want && got.Chain != "one/2" {
				t.Fatalf("cut at %d: batch %d is %+v", cut, i, got)
			}
			if err := again.Drop(); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := again.Oldest(); got != nil || err != nil {
			t.Fatalf("cut at %d: %v and %v after the last", cut, got, err)
		}
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestADamagedRecordIsLeftOutAndCounted(t *testing.T) {
	dir := t.TempDir()
	s := openSpool(t, dir, 0)
	c := NewSealer("one/1")
	for i := range 2 {
		b, err := c.Seal([]Event{{ID: FixedID(strconv.Itoa(i)), At: noon}})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Append(b); err != nil {
			t.Fatal(err)
		}
	}
	files, _ := os.ReadDir(dir)
	path := filepath.Join(dir, files[0].Name())
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text[recordHeader+5] ^= 1
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	store := newMemory()
	r := New(Config{Server: "one", Chain: "one/2", Store: store, Spool: s})
	stop := start(t, r)
	r.Record(&Event{UID: "u"})
	for deadline := time.Now().Add(10 * time.Second); store.count() < 2 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if h := r.Health(); h.Damaged != 1 || h.Spooled != 0 || store.count() != 2 {
		t.Errorf("health: %+v, %d stored", h, store.count())
	}
}

func TestTheSpoolRemovesWhatHasBeenRead(t *testing.T) {
	s := openSpool(t, t.TempDir(), 0)
	c := NewSealer("one/1")
	big := make(map[string]Text, 30)
	for i := range 30 {
		big[strconv.Itoa(i)] = Text(fmt.Sprintf("%01000d", i))
	}
	events := make([]Event, 200)
	for i := range events {
		events[i] = Event{ID: FixedID(strconv.Itoa(i)), At: noon, Detail: big}
	}
	for range 12 { // several segments
		b, err := c.Seal(events)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Append(b); err != nil {
			t.Fatal(err)
		}
	}
	before, _ := os.ReadDir(s.dir)
	if len(before) < 3 {
		t.Fatalf("%d segments, want several", len(before))
	}
	for i := range uint64(12) {
		b, err := s.Oldest()
		if err != nil || b == nil || b.Sequence != i+1 {
			t.Fatalf("batch %d: %v, %v", i+1, b, err)
		}
		if err := s.Drop(); err != nil {
			t.Fatal(err)
		}
	}
	after, _ := os.ReadDir(s.dir)
	if batches, bytes, damaged := s.Len(); batches != 0 || bytes != 0 || damaged != 0 || len(after) != 0 {
		t.Errorf("%d batches and %d bytes, %d damaged, %d files are left", batches, bytes, damaged, len(after))
	}
}

func FuzzSpooledBatch(f *testing.F) {
	c := NewSealer("one/1")
	b, err := c.Seal([]Event{{ID: FixedID("a"), At: noon, Detail: map[string]Text{"a": "b"}}})
	if err != nil {
		f.Fatal(err)
	}
	text, err := b.marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Fuzz(func(_ *testing.T, data []byte) {
		if b, err := unmarshalBatch(data); err == nil {
			_ = b.Verify(nil)
		}
	})
}

func BenchmarkRecord(b *testing.B) {
	r := New(Config{Server: "one", Chain: "one/1"})
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	go func() { _ = r.Run(ctx) }()
	e := Event{At: noon, Type: TypeAuthentication, Outcome: Allowed, Subject: "servicetoken:payments:ci", UID: "u", Namespace: "payments", Name: "ci"}
	b.ReportAllocs()
	for b.Loop() {
		r.Record(&e)
	}
}

func TestEventsThatHaveMuchToSayMakeSmallerBatches(t *testing.T) {
	long := map[string]Text{}
	for i := range maxDetail {
		long[fmt.Sprint("detail-", i)] = Text(strings.Repeat("x", maxDetailText))
	}
	spool, err := OpenSpool(t.TempDir(), 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	defer spool.Close()
	down := newMemory()
	down.fail = func(*Batch) (bool, error) { return false, errors.New("down") }
	r := New(Config{Server: "one", Chain: "one/1", Store: down, Spool: spool, Timeout: time.Second, Queue: 64 * defaultBatch})
	const events = 4000 // 130 MB, twice what a record of the spool can have
	for i := range events {
		if !r.Record(&Event{Type: TypeCICD, Outcome: Done, UID: fmt.Sprint("uid-", i), Detail: long}) {
			t.Fatal("no room")
		}
	}
	r.flush(t.Context())
	if h := r.Health(); h.Lost != 0 || h.Spooled < 2 {
		t.Errorf("of %d events with much to say %d are lost, in %d batches", events, h.Lost, h.Spooled)
	}
}
