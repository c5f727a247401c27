package controllers

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/internalapi"
	"github.com/mintmark-dev/mintmark/internal/lifecycle"
)

const (
	// gather is how long the first question of a batch waits for company.
	gather = 2 * time.Millisecond
	// longPoll is how long a server may hold a batch until it accepts it all.
	longPoll = time.Second
	// askAgain is how long what some server did not accept waits for the next
	// batch.
	askAgain = 250 * time.Millisecond
	// lagAfter is when a server that holds things up is named in a condition.
	lagAfter = 3 * time.Second
	// logAgain is how long a failure that goes on is not told of again in the log.
	logAgain = time.Minute
	// batches are asked at the same time at most: while one is under way the next
	// one gathers.
	batches = 3
)

// Question asks whether every server accepts a credential's record.
type Question struct {
	Kind  v1alpha1.Kind
	Key   types.NamespacedName
	UID   types.UID
	Epoch int64
}

// Propagation finds out whether every server accepts what has been committed.
// Reconcilers ask and go away; they are woken through Changes. It is a
// manager.Runnable of the leader, and safe for concurrent use.
//
// It compares no resourceVersions. A server makes its Lease before its
// consistent list, so one whose Lease is not there yet when a batch lists them
// will list what has been committed before.
type Propagation struct {
	fleet   *Fleet
	now     func() time.Time
	changes map[v1alpha1.Kind]chan event.GenericEvent
	wake    chan struct{}

	mu        sync.Mutex
	questions map[types.UID]*question
	// open are those that some server has not accepted yet.
	open map[types.UID]*question
	// accepted is the epoch that every server accepted last. Of what is answered nothing
	// else is kept, for it is as much as there are credentials.
	accepted map[types.UID]int64
	// logged is when a failure was told of in the log last.
	logged time.Time
}

type question struct {
	Question
	since    time.Time
	asking   bool // it is with the servers
	asked    bool // it has been before
	accepted bool
	lagging  []string
	problem  string // why nobody can be asked
	told     bool
}

// NewPropagation makes a Propagation; Start runs it.
func NewPropagation(fleet *Fleet) *Propagation {
	return &Propagation{
		fleet: fleet, now: fleet.cfg.Now,
		wake: make(chan struct{}, 1),
		changes: map[v1alpha1.Kind]chan event.GenericEvent{
			v1alpha1.KindServiceToken: make(chan event.GenericEvent, 1024),
			v1alpha1.KindAPIKey:       make(chan event.GenericEvent, 1024),
		},
		questions: map[types.UID]*question{}, open: map[types.UID]*question{}, accepted: map[types.UID]int64{},
	}
}

// Changes tells which credentials of a kind have an answer.
func (p *Propagation) Changes(kind v1alpha1.Kind) <-chan event.GenericEvent { return p.changes[kind] }

// Answer is what is known about a question; asking nothing.
func (p *Propagation) Answer(q Question) lifecycle.Propagation {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.known(q)
}

// known is the answer to a question so far. The caller holds the lock.
func (p *Propagation) known(q Question) lifecycle.Propagation {
	if epoch, ok := p.accepted[q.UID]; ok && epoch == q.Epoch {
		return lifecycle.Propagation{Accepted: true}
	}
	if known := p.questions[q.UID]; known != nil && known.Epoch == q.Epoch {
		return lifecycle.Propagation{Lagging: known.lagging, Problem: known.problem}
	}
	return lifecycle.Propagation{}
}

// Ask is Answer, and has the question put to the servers if it was not yet.
func (p *Propagation) Ask(q Question) lifecycle.Propagation {
	p.mu.Lock()
	answer := p.known(q)
	if known := p.questions[q.UID]; !answer.Accepted && (known == nil || known.Epoch != q.Epoch) {
		known = &question{Question: q, since: p.now()}
		p.questions[q.UID], p.open[q.UID] = known, known
	}
	p.mu.Unlock()
	if !answer.Accepted {
		p.nudge()
	}
	return answer
}

// Forget drops a question nobody waits for any more.
func (p *Propagation) Forget(uid types.UID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.questions, uid)
	delete(p.open, uid)
	delete(p.accepted, uid)
}

func (p *Propagation) nudge() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (*Propagation) NeedLeaderElection() bool { return true }

// Start asks until the context ends.
func (p *Propagation) Start(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	slots := make(chan struct{}, batches)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.wake:
		}
		if !pause(ctx, gather) {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case slots <- struct{}{}:
		}
		batch := p.take()
		if len(batch) == 0 {
			<-slots
			continue
		}
		running.Go(func() {
			defer func() { <-slots }()
			p.ask(ctx, batch)
		})
	}
}

// take takes the questions that nobody is asking, as many as fit one request.
func (p *Propagation) take() []*question {
	p.mu.Lock()
	defer p.mu.Unlock()
	// New questions go without those that some server has not accepted yet, for
	// a server holds a batch until it accepts it all.
	fresh := false
	for _, q := range p.open {
		fresh = fresh || !q.asked
	}
	var batch []*question
	for _, q := range p.open {
		if q.asking {
			continue
		}
		if fresh && q.asked {
			p.nudge()
			continue
		}
		if len(batch) == internalapi.MaxAcceptsItems {
			p.nudge()
			break
		}
		q.asking, q.asked = true, true
		batch = append(batch, q)
	}
	return batch
}

// ask puts a batch to every server that holds a Lease now, and sees that what
// is still open is asked again.
func (p *Propagation) ask(ctx context.Context, batch []*question) {
	answers, err := p.askServers(ctx, batch)
	if err != nil && ctx.Err() == nil && p.logs() {
		log.FromContext(ctx).WithName("propagation").Error(err, "Asking the servers; delivery waits", "credentials", len(batch))
	}
	p.mu.Lock()
	open := 0
	for i, q := range batch {
		if !p.settle(q, i, answers, err) {
			open++
		}
	}
	p.mu.Unlock()
	for _, q := range batch {
		p.tell(ctx, q)
	}
	if open > 0 && pause(ctx, askAgain) {
		p.nudge()
	}
}

// logs tells whether a failure is to be told of in the log: it is tried again several times
// a second.
func (p *Propagation) logs() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	if !p.logged.IsZero() && now.Sub(p.logged).Abs() < logAgain {
		return false
	}
	p.logged = now
	return true
}

// settle takes the servers' answers to one question. The caller holds the lock.
func (p *Propagation) settle(q *question, i int, answers []serverAnswer, err error) bool {
	q.asking = false
	var lagging []string
	for _, a := range answers {
		if a.accepted == nil || !a.accepted[i] {
			lagging = append(lagging, a.server)
		}
	}
	if err == nil && len(lagging) == 0 {
		if !q.accepted {
			propagationSeconds.Observe(p.now().Sub(q.since).Seconds())
		}
		q.accepted, q.lagging, q.problem, q.told = true, nil, "", false
		if p.open[q.UID] == q {
			delete(p.open, q.UID)
			p.accepted[q.UID] = q.Epoch
		}
		return true
	}
	problem := ""
	if answers == nil && err != nil && !passes(err) {
		problem = cut(err.Error(), maxProblem)
	}
	if p.now().Sub(q.since) >= lagAfter && (!slices.Equal(q.lagging, lagging) || q.problem != problem) {
		q.lagging, q.problem, q.told = lagging, problem, false
	} else if !q.accepted && q.lagging == nil {
		q.told = true // nothing to tell yet
	}
	return false
}

// passes tells whether an error is of an API server that is away or busy, which is not for
// people to put right.
func passes(err error) bool {
	var (
		transport *url.Error
		answer    apierrors.APIStatus
	)
	return errors.As(err, &transport) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) ||
		errors.As(err, &answer) && (answer.Status().Code >= http.StatusInternalServerError || answer.Status().Code == http.StatusTooManyRequests)
}

// tell wakes the reconciler of a question, if there is anything new.
func (p *Propagation) tell(ctx context.Context, q *question) {
	p.mu.Lock()
	current := p.questions[q.UID] == q
	tell := !q.told && current
	q.told = true
	if q.accepted && current {
		delete(p.questions, q.UID)
	}
	p.mu.Unlock()
	if !tell {
		return
	}
	var object client.Object = &v1alpha1.ServiceToken{}
	if q.Kind == v1alpha1.KindAPIKey {
		object = &v1alpha1.APIKey{}
	}
	object.SetNamespace(q.Key.Namespace)
	object.SetName(q.Key.Name)
	select {
	case p.changes[q.Kind] <- event.GenericEvent{Object: object}:
	case <-ctx.Done():
	}
}

type serverAnswer struct {
	server   string
	accepted []bool // nil: it did not answer
}

func (p *Propagation) askServers(ctx context.Context, batch []*question) ([]serverAnswer, error) {
	session, err := p.fleet.session(ctx)
	if err != nil {
		return nil, err
	}
	request := internalapi.AcceptsRequest{WaitMillis: longPoll.Milliseconds(), Items: make([]internalapi.AcceptsItem, len(batch))}
	for i, q := range batch {
		request.Items[i] = internalapi.AcceptsItem{UID: string(q.UID), Epoch: q.Epoch}
	}
	answers, problems := make([]serverAnswer, len(session.servers)), make([]error, len(session.servers))
	var asking sync.WaitGroup
	for i, server := range session.servers {
		asking.Go(func() {
			answers[i].server = server.name
			var answer internalapi.AcceptsResponse
			if problems[i] = session.call(ctx, server, http.MethodPost, internalapi.AcceptsPath, request, &answer); problems[i] != nil {
				return
			}
			if len(answer.Accepted) != len(batch) {
				problems[i] = fmt.Errorf("server %s answered %d of %d questions", server.name, len(answer.Accepted), len(batch))
				return
			}
			answers[i].accepted = answer.Accepted
		})
	}
	asking.Wait()
	return answers, errors.Join(problems...)
}

// pause waits, and tells whether the context still runs.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
