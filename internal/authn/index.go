package authn

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/puzpuzpuz/xsync/v4"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

// Config is what an Index begins with.
type Config struct {
	// Peppers to digest presented values with; see [Index.SetPeppers].
	Peppers credential.Peppers
	// SizeHint is about how many credentials there will be; zero is fine.
	SizeHint int
}

// Index holds every credential of the cluster, or of the namespaces watched.
//
// Any number of goroutines may read: Verify, VerifyUse, Accepts, UsageSince and
// the counts take no lock that a writer could hold. Writers wait for each
// other. They must hand in the changes of one object in their order, oldest
// first; between objects any order ends in the same index, and a change handed
// in twice changes nothing.
type Index struct {
	// What readers read.
	table    *xsync.Map[credential.Digest, *entry]
	holders  *xsync.Map[string, *holder] // by UID
	peppers  atomic.Pointer[[]*credential.Pepper]
	formats  atomic.Pointer[[]*format]
	brake    atomic.Pointer[brake]
	deadline atomic.Int64 // Unix nanoseconds; 0 is none
	changed  atomic.Pointer[chan struct{}]

	// What writers write, under mu.
	mu          sync.Mutex
	keys        credential.Peppers
	keyed       map[string]int // versions by pepper
	classes     map[string]*class
	namespaces  map[string]*namespace
	revocations map[string]*revocation // by UID
	contested   map[credential.Digest]map[string]struct{}
	deleted     deletions
	terms       pool[string, terms]
	labelSets   pool[string, labelSet]
	grants      pool[grantKey, Grant]

	usageMu  sync.Mutex
	usageSeq uint64
}

type grantKey struct {
	class        string
	sealed, live *terms
	ceiling      *ceiling
}

// New makes an empty index. It refuses everything until it is told more.
func New(cfg Config) *Index {
	x := &Index{
		table:       xsync.NewMap[credential.Digest, *entry](xsync.WithPresize(2 * cfg.SizeHint)),
		holders:     xsync.NewMap[string, *holder](xsync.WithPresize(cfg.SizeHint)),
		keyed:       make(map[string]int),
		classes:     make(map[string]*class),
		namespaces:  make(map[string]*namespace),
		revocations: make(map[string]*revocation),
		contested:   make(map[credential.Digest]map[string]struct{}),
	}
	x.formats.Store(new([]*format))
	x.SetPeppers(cfg.Peppers)
	return x
}

// Outcome tells what became of what was handed to [Index.Apply], for the log and
// the audit trail.
type Outcome struct {
	// Record says whether the record was taken in.
	Record RecordOutcome
	// Conflicts are the numbers of the versions whose digest an older credential
	// holds. They are not accepted as this credential.
	Conflicts []int64
}

// RecordOutcome says what became of a record.
type RecordOutcome string

// What can become of a record. Where it is refused, the last good one stays in
// force, narrowed by the live object as ever.
const (
	// RecordAbsent: none was handed in.
	RecordAbsent RecordOutcome = "Absent"
	// RecordAccepted: it is in force now.
	RecordAccepted RecordOutcome = "Accepted"
	// RecordHeld: it was in force already.
	RecordHeld RecordOutcome = "Held"
	// RecordForeign: refused, for it was made for another object.
	RecordForeign RecordOutcome = "Foreign"
	// RecordOutdated: refused, for its epoch is lower than the one in force.
	RecordOutdated RecordOutcome = "Outdated"
	// RecordDeleted: refused, for the object has been deleted.
	RecordDeleted RecordOutcome = "Deleted"
)

// Refused tells whether a record was handed in and not taken: somebody edited
// the status, put an older one back, or copied another object's.
func (o RecordOutcome) Refused() bool { return o == RecordForeign || o == RecordOutdated }

// Apply takes in a credential, new or changed, with its record where there is one
// whose seal holds. Without a record the one in force stays, or the credential is
// known and not accepted yet. Neither argument is kept.
func (x *Index) Apply(live Live, rec *credential.Record) Outcome {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.deleted.has(live.UID) {
		return Outcome{Record: RecordDeleted}
	}
	before, _ := x.holders.Load(live.UID)
	outcome := admit(before, live, rec)

	next := &holder{live: x.wanted(live)}
	if before != nil {
		next.Identity, next.sealed = before.Identity, before.sealed
	} else {
		next.Identity = newIdentity(live)
	}
	if outcome == RecordAccepted {
		next.sealed = x.seal(rec, next.sealed)
	}
	if before != nil {
		next.carry(before)
	}
	next.marks.latest = max(next.marks.latest, next.sealed.latest())
	next.take(x.revocations)
	return Outcome{Record: outcome, Conflicts: x.publish(before, next)}
}

func admit(before *holder, live Live, rec *credential.Record) RecordOutcome {
	switch {
	case rec == nil:
		return RecordAbsent
	case rec.UID != live.UID || rec.Kind != live.Kind || rec.Namespace != live.Namespace || rec.Name != live.Name:
		return RecordForeign
	case before == nil || before.sealed == nil || before.sealed.epoch < rec.Epoch:
		return RecordAccepted
	case before.sealed.epoch == rec.Epoch:
		return RecordHeld
	}
	return RecordOutdated
}

// refresh works a credential out anew after something it depends on changed.
func (x *Index) refresh(h *holder) {
	next := *h
	next.take(x.revocations)
	x.publish(h, &next)
}

// publish works out what follows from the holder, and lets readers see it. It
// returns the versions whose digest belongs to another credential.
func (x *Index) publish(before, next *holder) (conflicts []int64) {
	x.resolve(next)
	x.countPeppers(before, next)
	for _, e := range next.entries {
		if !x.claim(next, e) {
			conflicts = append(conflicts, e.principal.Version)
		}
	}
	x.releaseExcept(before, next)
	// After the entries: Accepts must not be true before they can be found.
	x.holders.Store(next.UID, next)
	x.namespace(next.Namespace).holders[next.UID] = struct{}{}
	x.broadcast()
	return conflicts
}

// resolve works out what depends on classes, namespaces and peppers.
func (x *Index) resolve(h *holder) {
	if h.sealed == nil {
		h.grant, h.entries, h.awaiting = nil, nil, true
		return
	}
	c := x.ceiling(h.sealed.class, h.Namespace)
	_, classKnown := x.classes[h.sealed.class]
	h.awaiting = !classKnown || c == nil && !x.namespace(h.Namespace).known
	key := grantKey{h.sealed.class, h.sealed.terms, h.live.terms, c}
	h.grant = x.grants.get(key, func() *Grant { return newGrant(key.class, key.sealed, key.live, key.ceiling) })
	h.work(x.keys)
}

// Delete forgets a credential for good: objects never come back under the same
// UID, so whatever still says so is late.
func (x *Index) Delete(uid string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.deleted.add(uid)
	x.remove(uid)
}

func (x *Index) remove(uid string) {
	h, ok := x.holders.Load(uid)
	if !ok {
		return
	}
	x.releaseExcept(h, nil)
	x.holders.Delete(uid)
	x.countPeppers(h, nil)
	delete(x.namespace(h.Namespace).holders, uid)
	x.dropEmpty(h.Namespace)
}

// deletions remembers the UIDs deleted last, against objects that come late from
// an API server lagging behind.
type deletions struct {
	uids  map[string]struct{}
	order []string
	next  int
}

const maxDeletions = 1 << 16

func (d *deletions) has(uid string) bool {
	_, ok := d.uids[uid]
	return ok
}

func (d *deletions) add(uid string) {
	if d.has(uid) {
		return
	}
	if d.uids == nil {
		d.uids = make(map[string]struct{})
	}
	if len(d.order) < maxDeletions {
		d.order = append(d.order, uid)
	} else {
		delete(d.uids, d.order[d.next])
		d.order[d.next] = uid
		d.next = (d.next + 1) % maxDeletions
	}
	d.uids[uid] = struct{}{}
}

// Relist is a list of one kind of credential under way; see [Index.BeginRelist].
type Relist struct {
	index     *Index
	kind      v1alpha1.Kind
	namespace string
	seen      map[string]struct{}
}

// BeginRelist begins a list of all the credentials of one kind, of one namespace
// or, with an empty one, of all. Apply what the list holds and call Seen for each
// object of it, then End. Until then what was known stays in force.
func (x *Index) BeginRelist(kind v1alpha1.Kind, namespace string) *Relist {
	return &Relist{index: x, kind: kind, namespace: namespace, seen: make(map[string]struct{})}
}

// Seen notes that the list holds this UID, whether or not it could be applied.
func (r *Relist) Seen(uid string) { r.seen[uid] = struct{}{} }

// End removes the credentials that the list did not hold, and returns their UIDs.
// Call it only for a complete and consistent list. One that turns up later is
// taken in again, for a list may come from a server that lags behind.
func (r *Relist) End() []string {
	x := r.index
	x.mu.Lock()
	defer x.mu.Unlock()
	var gone []string
	for uid, h := range x.holders.Range {
		if _, ok := r.seen[uid]; !ok && h.Kind == r.kind && (r.namespace == "" || h.Namespace == r.namespace) {
			gone = append(gone, uid)
		}
	}
	for _, uid := range gone {
		x.remove(uid)
	}
	return gone
}

// Reset forgets every credential, and the epochs and revocations known of them,
// for a cluster that has been restored to an earlier state. Classes, namespaces,
// Revocation objects and peppers stay.
func (x *Index) Reset() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.table.Clear()
	x.holders.Clear()
	x.deleted = deletions{}
	clear(x.contested)
	clear(x.keyed)
	for name, ns := range x.namespaces {
		clear(ns.holders)
		x.dropEmpty(name)
	}
	x.publishPeppers()
	x.broadcast()
}

// SetPeppers changes the peppers. Records sealed with one not known before were
// refused by credential.OpenRecord, so what they are on must be listed again.
func (x *Index) SetPeppers(peppers credential.Peppers) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.keys = peppers
	x.publishPeppers()
	for _, h := range x.holders.Range {
		if h.sealed != nil && h.isExternal() {
			x.refresh(h)
		}
	}
}

// countPeppers keeps count of the versions under each pepper, for Verify tries
// those in use only.
func (x *Index) countPeppers(before, next *holder) {
	changed := false
	count := func(h *holder, by int) {
		if h == nil || h.sealed == nil {
			return
		}
		for i := range h.sealed.versions {
			id := h.sealed.versions[i].pepper
			was := x.keyed[id]
			changed = changed || (was == 0) != (was+by == 0)
			if x.keyed[id] = was + by; was+by == 0 {
				delete(x.keyed, id)
			}
		}
	}
	if before != nil && next != nil && before.sealed == next.sealed {
		return
	}
	count(next, 1)
	count(before, -1)
	if changed {
		x.publishPeppers()
	}
}

// publishPeppers hands Verify the current pepper, used or not, so that an empty
// index takes as long as a full one, and the others that are in use.
func (x *Index) publishPeppers() {
	inUse := make([]*credential.Pepper, 0, len(x.keys))
	for i, p := range x.keys {
		if i == 0 || x.keyed[p.ID()] > 0 {
			inUse = append(inUse, p)
		}
	}
	x.peppers.Store(&inUse)
}

// SetDeadline says until when the index may be trusted: the time of the last sign
// of life from the API server, and how stale an answer may be. After it every
// credential is refused with ReasonStale. The zero time, as in the beginning, is
// no deadline.
func (x *Index) SetDeadline(t time.Time) {
	if t.IsZero() {
		x.deadline.Store(0)
		return
	}
	x.deadline.Store(t.UnixNano())
}

// Accepts tells whether values of the record of at least this epoch are accepted
// as far as servers go: the record is in force, and the class and namespace it
// depends on have been seen. It is false for a credential that is not known.
func (x *Index) Accepts(uid string, epoch int64) bool {
	h, ok := x.holders.Load(uid)
	return ok && h.sealed != nil && h.sealed.epoch >= epoch && !h.awaiting
}

// Changed gives a channel that is closed at the next change after the call. To
// wait for Accepts, call Changed first, then Accepts, then wait.
func (x *Index) Changed() <-chan struct{} {
	for {
		if waiting := x.changed.Load(); waiting != nil {
			return *waiting
		}
		waiting := make(chan struct{})
		if x.changed.CompareAndSwap(nil, &waiting) {
			return waiting
		}
	}
}

func (x *Index) broadcast() {
	if waiting := x.changed.Swap(nil); waiting != nil {
		close(*waiting)
	}
}

// Stats counts what the index holds.
type Stats struct {
	// Credentials known, with a record or without.
	Credentials int
	// Digests are the values that can be told from unknown ones.
	Digests int
	// Classes, Namespaces and Revocations taken in.
	Classes, Namespaces, Revocations int
	// Conflicts are digests that more than one credential claims.
	Conflicts int
}

// Stats counts what the index holds, for metrics. It waits for writers.
func (x *Index) Stats() Stats {
	x.mu.Lock()
	defer x.mu.Unlock()
	return Stats{
		Credentials: x.holders.Size(), Digests: x.table.Size(), Classes: len(x.classes), Namespaces: len(x.namespaces),
		Revocations: len(x.revocations), Conflicts: len(x.contested),
	}
}

// Len is the number of credentials known.
func (x *Index) Len() int { return x.holders.Size() }
