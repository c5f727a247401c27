package authn

import (
	"fmt"
	"iter"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

// revocation is a Revocation object, compiled.
type revocation struct {
	credential.Selector
	fingerprint uint64 // of the labels that it asks for
	created     int64  // Unix seconds
	generation  int64  // of the object that was compiled; 0 where that is not known
}

func newRevocation(object *v1alpha1.Revocation) (*revocation, error) {
	selector, err := credential.NewSelector(&object.Spec)
	if err != nil {
		return nil, fmt.Errorf("Revocation %s: %w", object.Name, err)
	}
	return &revocation{
		Selector: selector, fingerprint: selector.Fingerprint(), created: object.CreationTimestamp.Unix(), generation: object.Generation,
	}, nil
}

// takes tells whether the Revocation of this UID revokes the credential: it
// selects it, by its labels as they are or as they were sealed, and the record
// does not account for it.
func (r *revocation) takes(uid string, h *holder) bool {
	if !h.labels.may(r.fingerprint) {
		return false // found out without the labels themselves, which are all over memory
	}
	c := h.cohort
	if c.accountsFor(uid, r) {
		return false
	}
	if c.terms == nil || h.labels == nil || h.labels.same {
		return r.Selects(c.kind, c.namespace, h.labels.live())
	}
	return r.Selects(c.kind, c.namespace, h.labels.live(), h.labels.sealed())
}

// take marks a credential with the Revocations that select it, and unmarks those
// the record accounts for.
func (x *Index) take(h *holder, m *marks) {
	var taken []string
	for _, uid := range m.revocations {
		if !h.cohort.accountsFor(uid, x.revocations[uid]) {
			taken = append(taken, uid)
		}
	}
	for uid, r := range x.revocations {
		if !slices.Contains(taken, uid) && r.takes(uid, h) {
			taken = append(taken, uid)
		}
	}
	m.revocations = taken
}

func (h *holder) takenBy(uid string) bool {
	return h.more != nil && slices.Contains(h.more.revoked.marks.revocations, uid)
}

// SetRevocation takes in a Revocation. It takes every version of what it selects,
// but for credentials whose record accounts for it. What it has taken once it
// keeps, until a record accounts for it. An error means that it selects nothing
// that could be told, and revokes nothing.
func (x *Index) SetRevocation(object *v1alpha1.Revocation) error {
	r, err := newRevocation(object)
	if err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if known := x.revocations[string(object.UID)]; known != nil && known.generation > 0 && known.generation == r.generation {
		return nil // its status has been written: what it takes is marked, and what came since was when it came
	}
	uid := strings.Clone(string(object.UID))
	x.revocations[uid] = r
	x.brake.Store(&brake{uid, r})
	defer x.brake.Store(nil)
	for h := range x.within(r.Namespaces()) {
		if !h.takenBy(uid) && r.takes(uid, h) {
			x.refresh(h)
		}
	}
	return nil
}

// brake is a Revocation that is being carried out. Marking every credential it
// takes can last, at a million of them for seconds, so meanwhile each use is
// checked against it.
type brake struct {
	uid string
	*revocation
}

func (x *Index) braked(h *holder) bool {
	b := x.brake.Load()
	return b != nil && b.takes(b.uid, h)
}

// within gives the credentials of some namespaces; of all where none are named.
func (x *Index) within(namespaces []string) iter.Seq[*holder] {
	return func(yield func(*holder) bool) {
		for h := range x.holders.All() {
			if (namespaces == nil || slices.Contains(namespaces, h.cohort.namespace)) && !yield(h) {
				return
			}
		}
	}
}

// DeleteRevocation takes in that a Revocation has been deleted, in the state it
// was last seen in. Where it had been settled the records account for it. Where
// it had not, the versions it took stay revoked for as long as the process
// lives: deleting it undoes nothing. Versions made later are not touched.
func (x *Index) DeleteRevocation(object *v1alpha1.Revocation) {
	x.mu.Lock()
	defer x.mu.Unlock()
	uid := string(object.UID)
	delete(x.revocations, uid)
	settled := meta.IsStatusConditionTrue(object.Status.Conditions, v1alpha1.ConditionSettled)
	for h := range x.holders.All() {
		if !h.takenBy(uid) {
			continue
		}
		f := x.open(h)
		marks := &f.revoked.marks
		marks.revocations = slices.DeleteFunc(slices.Clone(marks.revocations), func(u string) bool { return u == uid })
		if !settled {
			marks.through = max(marks.through, marks.latest)
		}
		next := x.pack(f)
		next.seen = h.seen
		x.publish(h, next)
	}
}
