package controllers

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/internalapi"
	"github.com/mintmark-dev/mintmark/internal/lifecycle"
)

const (
	// transitionGather is how long the first of a batch waits for company.
	transitionGather = 200 * time.Millisecond
	// What the servers did not store is handed over again after these.
	transitionRetry, transitionLastRetry = time.Second, 30 * time.Second
	// crowdedTransitions is how many there may be in a status before those that are
	// stored are a reason to write it.
	crowdedTransitions = lifecycle.MaxTransitions / 2
)

// Transitions hands the changes in the life of credentials over to the servers, which
// store them in the audit log. They stand in status until a server has said so, and leave
// it with a write that is made anyway. It is a manager.Runnable of the leader, and safe
// for concurrent use.
type Transitions struct {
	fleet   *Fleet
	changes map[v1alpha1.Kind]chan event.GenericEvent
	wake    chan struct{}

	mu      sync.Mutex
	waiting map[string]internalapi.TransitionItem // by id
	stored  map[types.UID][]string                // of those that stand in status still
	crowded map[types.UID]types.NamespacedName    // to be told of once theirs are stored
	there   map[types.UID]struct{}                // credentials that are not gone
}

// NewTransitions makes a Transitions; Start runs it.
func NewTransitions(fleet *Fleet) *Transitions {
	return &Transitions{
		fleet: fleet, wake: make(chan struct{}, 1), waiting: map[string]internalapi.TransitionItem{}, stored: map[types.UID][]string{},
		crowded: map[types.UID]types.NamespacedName{}, there: map[types.UID]struct{}{},
		changes: map[v1alpha1.Kind]chan event.GenericEvent{
			v1alpha1.KindServiceToken: make(chan event.GenericEvent, 1024), v1alpha1.KindAPIKey: make(chan event.GenericEvent, 1024),
		},
	}
}

// Changes tells which credentials of a kind have many transitions that are stored now.
func (t *Transitions) Changes(kind v1alpha1.Kind) <-chan event.GenericEvent { return t.changes[kind] }

// Note takes in what stands in the status of a credential. Nothing that is committed is
// lost by the process ending: it stands there still.
func (t *Transitions) Note(kind v1alpha1.Kind, c v1alpha1.Credential) {
	status, uid := c.CredentialStatus(), c.GetUID()
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(status.Transitions) == 0 {
		t.forget(uid)
		return
	}
	t.there[uid] = struct{}{}
	known := t.stored[uid]
	var kept []string
	added := false
	for i := range status.Transitions {
		id := status.Transitions[i].ID
		if slices.Contains(known, id) {
			kept = append(kept, id)
			continue
		}
		if _, ok := t.waiting[id]; !ok {
			t.waiting[id] = itemOf(kind, c, &status.Transitions[i])
			added = true
		}
	}
	if len(kept) > 0 {
		t.stored[uid] = kept
	} else {
		delete(t.stored, uid)
	}
	if len(status.Transitions) > crowdedTransitions {
		t.crowded[uid] = types.NamespacedName{Namespace: c.GetNamespace(), Name: c.GetName()}
	} else {
		delete(t.crowded, uid)
	}
	if added {
		t.nudge()
	}
}

func itemOf(kind v1alpha1.Kind, c v1alpha1.Credential, t *v1alpha1.Transition) internalapi.TransitionItem {
	item := internalapi.TransitionItem{
		ID: t.ID, UID: string(c.GetUID()), Kind: string(kind), Namespace: c.GetNamespace(), Name: c.GetName(),
		Class: c.CredentialSpec().CredentialClassName, Type: t.Type, Version: t.Version, At: t.At.UTC(), Reason: t.Reason, Actor: t.Actor,
	}
	for i := range c.CredentialStatus().Versions {
		if v := &c.CredentialStatus().Versions[i]; v.Version == t.Version && t.Type != lifecycle.TransitionLost {
			item.Prefix = v.Prefix
		}
	}
	return item
}

func (t *Transitions) nudge() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// Prune takes what is stored out of the transitions of a status that is about to be
// written.
func (t *Transitions) Prune(uid types.UID, all []v1alpha1.Transition) []v1alpha1.Transition {
	t.mu.Lock()
	defer t.mu.Unlock()
	known := t.stored[uid]
	if len(known) == 0 {
		return all
	}
	left := slices.DeleteFunc(slices.Clone(all), func(tr v1alpha1.Transition) bool { return slices.Contains(known, tr.ID) })
	if len(left) == 0 {
		return nil
	}
	return left
}

// Forget drops what is known of a credential that is gone. What of it is not stored is
// handed over all the same.
func (t *Transitions) Forget(uid types.UID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.forget(uid)
}

// forget is Forget. The caller holds the lock.
func (t *Transitions) forget(uid types.UID) {
	delete(t.stored, uid)
	delete(t.crowded, uid)
	delete(t.there, uid)
}

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (*Transitions) NeedLeaderElection() bool { return true }

// Start hands over until the context ends.
func (t *Transitions) Start(ctx context.Context) error {
	logger := log.FromContext(ctx).WithName("transitions")
	wait, failing := transitionRetry, false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.wake:
		}
		if !pause(ctx, transitionGather) {
			return nil
		}
		err := t.round(ctx)
		if err == nil {
			if failing {
				logger.Info("Changes of credentials are stored in the audit log again")
			}
			wait, failing = transitionRetry, false
			continue
		}
		if !failing && ctx.Err() == nil {
			const waiting = "Changes of credentials stay in status until a server has stored them in the audit log"
			if errors.Is(err, errNoServer) {
				logger.Info(waiting, "cause", err.Error())
			} else {
				logger.Error(err, waiting)
			}
		}
		failing = true
		if !pause(ctx, wait) {
			return nil
		}
		wait = min(2*wait, transitionLastRetry)
		t.nudge()
	}
}

var errNoServer = errors.New("no server is there to store them")

// round hands everything that waits over.
func (t *Transitions) round(ctx context.Context) error {
	for {
		batch := t.take()
		if len(batch) == 0 {
			return nil
		}
		if err := t.hand(ctx, batch); err != nil {
			return err
		}
		for key, kind := range t.settle(batch) {
			t.tell(ctx, key, kind)
		}
	}
}

// take gives what waits, as much as fits one request.
func (t *Transitions) take() []internalapi.TransitionItem {
	t.mu.Lock()
	defer t.mu.Unlock()
	batch := make([]internalapi.TransitionItem, 0, min(len(t.waiting), internalapi.MaxTransitions))
	for _, item := range t.waiting {
		if len(batch) == internalapi.MaxTransitions {
			break
		}
		batch = append(batch, item)
	}
	return batch
}

// hand asks the servers in turn, until one has stored the batch. Where every server that
// there is says that it has no store, nobody is going to: one of them writes the batch to
// where its events go, and that is all.
func (t *Transitions) hand(ctx context.Context, batch []internalapi.TransitionItem) error {
	session, err := t.fleet.session(ctx)
	if err != nil {
		return err
	}
	if len(session.servers) == 0 {
		return errNoServer
	}
	var problems []error
	for _, server := range session.servers {
		var answer internalapi.TransitionsResponse
		err := session.call(ctx, server, http.MethodPost, internalapi.TransitionsPath, internalapi.TransitionsRequest{Items: batch}, &answer)
		switch {
		case err != nil:
			problems = append(problems, err)
		case answer.Stored:
			return nil
		}
	}
	if len(problems) > 0 {
		return errors.Join(problems...)
	}
	var answer internalapi.TransitionsResponse
	return session.call(ctx, session.servers[0], http.MethodPost, internalapi.TransitionsPath,
		internalapi.TransitionsRequest{Items: batch, Export: true}, &answer)
}

// settle notes what is stored, and gives the credentials to be told of, by kind.
func (t *Transitions) settle(batch []internalapi.TransitionItem) map[types.NamespacedName]v1alpha1.Kind {
	t.mu.Lock()
	defer t.mu.Unlock()
	tell := map[types.NamespacedName]v1alpha1.Kind{}
	for _, item := range batch {
		delete(t.waiting, item.ID)
		uid := types.UID(item.UID)
		if _, ok := t.there[uid]; !ok {
			continue
		}
		if !slices.Contains(t.stored[uid], item.ID) {
			t.stored[uid] = append(t.stored[uid], item.ID)
		}
		if key, ok := t.crowded[uid]; ok {
			tell[key] = v1alpha1.Kind(item.Kind)
		}
	}
	if len(t.waiting) == 0 {
		t.waiting = map[string]internalapi.TransitionItem{} // a map keeps the room of what it has held
	}
	return tell
}

func (t *Transitions) tell(ctx context.Context, key types.NamespacedName, kind v1alpha1.Kind) {
	var object client.Object = &v1alpha1.ServiceToken{}
	if kind == v1alpha1.KindAPIKey {
		object = &v1alpha1.APIKey{}
	}
	object.SetNamespace(key.Namespace)
	object.SetName(key.Name)
	select {
	case t.changes[kind] <- event.GenericEvent{Object: object}:
	case <-ctx.Done():
	}
}
