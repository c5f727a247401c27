package controllers

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/internalapi"
)

// ledger is a server's audit log.
type ledger struct {
	mu       sync.Mutex
	down     bool
	noStore  bool
	stored   map[string]internalapi.TransitionItem
	exported int
	handed   int
}

func (l *ledger) take(ask internalapi.TransitionsRequest) (internalapi.TransitionsResponse, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.handed += len(ask.Items)
	if l.noStore {
		if ask.Export {
			l.exported += len(ask.Items)
		}
		return internalapi.TransitionsResponse{NoStore: true}, true
	}
	if l.down {
		return internalapi.TransitionsResponse{}, false
	}
	for _, item := range ask.Items {
		l.stored[item.ID] = item
	}
	return internalapi.TransitionsResponse{Stored: true}, true
}

func (l *ledger) set(down bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = down
}

// told are what is stored, as "Type version", of one credential.
func (l *ledger) told(name string) map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := map[string]int{}
	for _, item := range l.stored {
		if item.Name == name {
			all[fmt.Sprintf("%s %d", item.Type, item.Version)]++
		}
	}
	return all
}

func (l *ledger) is(name string, want ...string) bool {
	told := l.told(name)
	for _, w := range want {
		if told[w] != 1 {
			return false
		}
	}
	return len(told) == len(want)
}

// recording makes a cluster whose only server has this ledger.
func recording(t *testing.T, l *ledger) *cluster {
	t.Helper()
	c := newCluster(t)
	l.stored = map[string]internalapi.TransitionItem{}
	s := c.serve("one", true)
	s.mu.Lock()
	s.ledger = l.take
	s.mu.Unlock()
	return c
}

// goOn starts a controller process that records, with what it remembers anew.
func (c *cluster) goOn(w *writes) *process {
	fleet := c.fleet()
	c.transitions = NewTransitions(fleet)
	return c.start(w, NewPropagation(fleet))
}

func TestAMintCostsNoMoreWritesForBeingRecorded(t *testing.T) {
	l := new(ledger)
	c := recording(t, l)
	p := c.goOn(nil)
	token := c.token("ci")
	c.ready(token)
	c.eventually(token, "the mint is recorded", func() bool { return l.is("ci", "Minted 1", "Delivered 1") })
	count := func() (n int) {
		for _, w := range p.writes.all() {
			if !strings.Contains(w, "/events") {
				n++
			}
		}
		return n
	}
	if n := count(); n != 3 {
		t.Errorf("a mint makes %d writes, want 3: %v", n, p.writes.all())
	}
	// What is stored leaves with the writes of the next change.
	token.Annotations = map[string]string{v1alpha1.AnnotationRotateRequestedAt: time.Now().UTC().Format(time.RFC3339Nano)}
	if err := c.client.Update(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	c.eventually(token, "it is rotated", func() bool { return token.Status.CurrentVersion == 2 })
	for _, tr := range token.Status.Transitions {
		if tr.Version == 1 && (tr.Type == "Minted" || tr.Type == "Delivered") {
			t.Errorf("%s of version %d is stored, and stands in status still", tr.Type, tr.Version)
		}
	}
}

func TestATransitionIsStoredOnceThroughOutagesAndRestarts(t *testing.T) {
	l := &ledger{down: true}
	c := recording(t, l)
	first := c.goOn(nil)
	token := c.token("ci")
	c.ready(token)
	if len(l.told("ci")) != 0 {
		t.Fatal("stored though the database is down")
	}
	if len(token.Status.Transitions) != 2 {
		t.Fatalf("status holds %d transitions while nobody stores them, want 2", len(token.Status.Transitions))
	}
	first.stop()
	l.set(false)
	c.goOn(nil)
	c.eventually(token, "the mint is recorded by the next process", func() bool { return l.is("ci", "Minted 1", "Delivered 1") })
}

func TestWithoutAStoreTransitionsAreWrittenOutOnceAndDoNotPileUp(t *testing.T) {
	l := &ledger{noStore: true}
	c := recording(t, l)
	c.goOn(nil)
	token := c.token("ci")
	c.ready(token)
	c.eventually(token, "they are written out", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.exported == 2
	})
	token.Annotations = map[string]string{v1alpha1.AnnotationRotateRequestedAt: time.Now().UTC().Format(time.RFC3339Nano)}
	if err := c.client.Update(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	c.eventually(token, "only what is new stands in status", func() bool {
		return token.Status.CurrentVersion == 2 && len(token.Status.Transitions) <= 2
	})
}

func TestACrowdedStatusIsWrittenOnceItsTransitionsAreStored(t *testing.T) {
	l := &ledger{down: true}
	c := recording(t, l)
	p := c.goOn(nil)
	token := c.token("ci")
	c.ready(token)
	for i := range crowdedTransitions {
		token.Status.Transitions = append(token.Status.Transitions, v1alpha1.Transition{
			ID: fmt.Sprintf("00000000-0000-8000-8000-%012d", i), Type: "Rotated", Version: 1, At: metav1.Now(),
		})
	}
	if err := c.client.Status().Update(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	l.set(false)
	c.eventually(token, "status is cleared", func() bool { return len(token.Status.Transitions) == 0 })
	l.mu.Lock()
	defer l.mu.Unlock()
	if want := crowdedTransitions + 2; len(l.stored) != want {
		t.Errorf("%d transitions are stored of %d; writes %v", len(l.stored), want, p.writes.all())
	}
}

func TestWhatIsKnownOfTransitionsGoesWithTheCredential(t *testing.T) {
	tr := NewTransitions(NewFleet(FleetConfig{}))
	token := &v1alpha1.ServiceToken{ObjectMeta: metav1.ObjectMeta{UID: "u", Name: "ci"}}
	token.Status.Transitions = []v1alpha1.Transition{{ID: "a"}, {ID: "b"}}
	tr.Note(v1alpha1.KindServiceToken, token)
	batch := tr.take()
	if len(batch) != 2 {
		t.Fatalf("%d wait, want 2", len(batch))
	}
	tr.settle(batch[:1])
	if left := tr.Prune("u", token.Status.Transitions); len(left) != 1 || left[0].ID == batch[0].ID {
		t.Errorf("left are %v, want what is not stored", left)
	}
	tr.Forget("u")
	tr.settle(batch[1:])
	if len(tr.stored)+len(tr.waiting)+len(tr.crowded)+len(tr.there) != 0 {
		t.Errorf("of a credential that is gone something is kept: %+v", tr)
	}
	if left := tr.Prune(types.UID("u"), token.Status.Transitions); len(left) != 2 {
		t.Errorf("left are %v, want all", left)
	}
}
