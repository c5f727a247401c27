package authn

import (
	"encoding/binary"
	"hash/maphash"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authn/table"
	"github.com/mintmark-dev/mintmark/internal/authz"
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
	digests  *table.Table[credential.Digest, entry]
	holders  *table.Table[string, holder] // by UID
	peppers  atomic.Pointer[[]*credential.Pepper]
	formats  atomic.Pointer[[]*format]
	brake    atomic.Pointer[brake]
	deadline atomic.Int64 // Unix nanoseconds; 0 is none
	changed  atomic.Pointer[chan struct{}]
	bundles  atomic.Pointer[map[string]authz.Set] // roles, for Foreign

	// What writers write, under mu.
	mu          sync.Mutex
	keys        credential.Peppers
	keyed       map[string]int // versions by pepper
	classes     map[string]*class
	roles       map[string]authz.Set
	namespaces  map[string]*namespace
	revocations map[string]*revocation // by UID
	tombstones  map[credential.Digest]struct{}
	contested   map[credential.Digest]map[string]struct{}
	deleted     deletions
	relists     uint32 // begun
	terms       pool[string, terms]
	labels      pool[string, labels]
	grants      pool[grantKey, Grant]
	cohorts     pool[cohortKey, cohort]

	usageMu    sync.Mutex
	usageSeq   uint64
	usedLatest int64 // Unix seconds
}

type grantKey struct {
	class        string
	sealed, live *terms
	ceiling      *ceiling
}

// New makes an empty index. It refuses everything until it is told more.
func New(cfg Config) *Index {
	x := &Index{
		digests:     table.New(cfg.SizeHint, func(e *entry) credential.Digest { return e.digest }, hashDigest),
		holders:     table.New(cfg.SizeHint, (*holder).uid, hashUID()),
		keyed:       make(map[string]int),
		classes:     make(map[string]*class),
		roles:       make(map[string]authz.Set),
		namespaces:  make(map[string]*namespace),
		revocations: make(map[string]*revocation),
		contested:   make(map[credential.Digest]map[string]struct{}),
		tombstones:  make(map[credential.Digest]struct{}),
	}
	x.formats.Store(new([]*format))
	x.SetPeppers(cfg.Peppers)
	return x
}

// hashDigest takes a part of the digest: without the pepper nobody can choose any.
func hashDigest(d credential.Digest) uint64 { return binary.LittleEndian.Uint64(d[:]) }

func hashUID() func(string) uint64 {
	seed := maphash.MakeSeed()
	return func(uid string) uint64 { return maphash.String(seed, uid) }
}

// Outcome tells what became of what was handed to [Index.Apply], for the log and
// the audit trail.
type Outcome struct {
	// Record says whether the record was taken in.
	Record RecordOutcome
	// Orphaned: a record is in force, and none was handed in.
	Orphaned bool
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
	// RecordOutdated: refused, for its epoch is not higher than that of the record
	// in force, which is another one.
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
	if len(live.UID)+len(live.Namespace)+len(live.Name) > maxText || live.UID == "" {
		return Outcome{Record: RecordForeign} // no object of any API server
	}
	before := x.holders.Get(live.UID)
	f := &facts{identity: identityOf(live)}
	if before != nil {
		f = x.open(before)
	}
	outcome := x.admit(f, live, rec)
	f.want(x.wanted(live), live.Revoked)
	f.revoked.marks.latest = max(f.revoked.marks.latest, f.latest())
	return Outcome{Record: outcome, Orphaned: rec == nil && f.sealed != nil, Conflicts: x.publish(before, x.pack(f))}
}

// admit takes the record into the facts, or says why not.
func (x *Index) admit(f *facts, live Live, rec *credential.Record) RecordOutcome {
	inForce := f.sealed != nil
	// Of what the object says beside a record in force nothing is accepted.
	f.disputed = inForce
	switch {
	case rec == nil:
		return RecordAbsent
	case rec.UID != live.UID || rec.Kind != live.Kind || rec.Namespace != live.Namespace || rec.Name != live.Name:
		return RecordForeign
	case inForce && rec.Epoch < f.sealed.epoch:
		return RecordOutdated
	}
	s := x.seal(rec, f.sealed)
	if inForce && rec.Epoch == f.sealed.epoch {
		if !f.holds(s, rec) {
			return RecordOutdated
		}
		f.disputed = false
		return RecordHeld
	}
	f.accept(s, rec)
	f.disputed = false
	return RecordAccepted
}

// refresh works a credential out anew after something it depends on changed.
func (x *Index) refresh(h *holder) {
	next := x.pack(x.open(h))
	next.seen = h.seen
	x.publish(h, next)
}

// publish lets readers see the holder. It returns the versions whose digest belongs to
// another credential.
func (x *Index) publish(before, next *holder) (conflicts []int64) {
	x.countPeppers(before, next)
	for e := range next.versions {
		if !x.claim(e) {
			conflicts = append(conflicts, e.number)
		}
	}
	x.releaseExcept(before, next)
	// After the entries: Accepts must not be true before they can be found.
	x.holders.Put(next)
	if before == nil {
		x.namespace(next.cohort.namespace).holders++
	}
	x.broadcast()
	return conflicts
}

// Delete forgets a credential for good: objects never come back under the same
// UID, so whatever still says so is late.
func (x *Index) Delete(uid string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.deleted.add(strings.Clone(uid))
	x.remove(x.holders.Get(uid))
}

func (x *Index) remove(h *holder) {
	if h == nil {
		return
	}
	x.releaseExcept(h, nil)
	x.holders.Delete(h.uid())
	x.countPeppers(h, nil)
	x.namespace(h.cohort.namespace).holders--
	x.dropEmpty(h.cohort.namespace)
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
	number    uint32
}

// BeginRelist begins a list of all the credentials of one kind, of one namespace
// or, with an empty one, of all. Apply what the list holds and call Seen for each
// object of it, then End. Until then what was known stays in force.
func (x *Index) BeginRelist(kind v1alpha1.Kind, namespace string) *Relist {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.relists++
	return &Relist{index: x, kind: kind, namespace: namespace, number: x.relists}
}

// Seen notes that the list holds this UID, whether or not it could be applied. What
// has been applied since the list began is seen.
func (r *Relist) Seen(uid string) {
	r.index.mu.Lock()
	defer r.index.mu.Unlock()
	if h := r.index.holders.Get(uid); h != nil {
		h.seen = r.index.relists
	}
}

// End removes the credentials that the list did not hold, and returns their UIDs.
// Call it only for a complete and consistent list. One that turns up later is
// taken in again, for a list may come from a server that lags behind.
func (r *Relist) End() []string {
	x := r.index
	x.mu.Lock()
	defer x.mu.Unlock()
	var gone []*holder
	for h := range x.holders.All() {
		if h.seen < r.number && h.cohort.kind == r.kind && (r.namespace == "" || h.cohort.namespace == r.namespace) {
			gone = append(gone, h)
		}
	}
	var uids []string
	for _, h := range gone {
		x.remove(h)
		uids = append(uids, h.uid())
	}
	return uids
}

// Reset forgets every credential, and the epochs and revocations known of them,
// for a cluster that has been restored to an earlier state. Classes, namespaces,
// Revocation objects, peppers and tombstones stay.
func (x *Index) Reset() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.digests.Clear()
	x.holders.Clear()
	x.deleted = deletions{}
	clear(x.contested)
	clear(x.keyed)
	for name, ns := range x.namespaces {
		ns.holders = 0
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
	for h := range x.holders.All() {
		if h.cohort.isExternal() {
			x.refresh(h)
		}
	}
}

// countPeppers keeps count of the versions under each pepper, for Verify tries
// those in use only.
func (x *Index) countPeppers(before, next *holder) {
	changed := false
	count := func(h *holder, by int) {
		if h == nil {
			return
		}
		for _, id := range h.counted {
			was := x.keyed[id]
			changed = changed || (was == 0) != (was+by == 0)
			if x.keyed[id] = was + by; was+by == 0 {
				delete(x.keyed, id)
			}
		}
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
// as far as servers go: the record that the object carries is in force, and the class
// and namespace it depends on have been seen. It is false for a credential that is
// not known, and for one whose latest record was refused, whatever its epoch.
func (x *Index) Accepts(uid string, epoch int64) bool {
	h := x.holders.Get(uid)
	return h != nil && h.cohort.terms != nil && h.epoch >= epoch && !h.cohort.now.Load().awaiting && (h.more == nil || !h.more.disputed)
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
	// Orphaned: a record is in force, and none was handed in.
	Orphaned bool
	// Conflicts are digests that more than one credential claims.
	Conflicts int
}

// Stats counts what the index holds, for metrics. It waits for writers.
func (x *Index) Stats() Stats {
	x.mu.Lock()
	defer x.mu.Unlock()
	return Stats{
		Credentials: x.holders.Len(), Digests: x.digests.Len(), Classes: len(x.classes), Namespaces: len(x.namespaces),
		Revocations: len(x.revocations), Conflicts: len(x.contested),
	}
}

// Len is the number of credentials known.
func (x *Index) Len() int { return x.holders.Len() }
