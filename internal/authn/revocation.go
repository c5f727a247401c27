package authn

import (
	"fmt"
	"iter"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// revocation is a Revocation object, compiled.
type revocation struct {
	all        bool
	kinds      []string
	namespaces []string
	selector   labels.Selector // nil where the spec has none
}

func newRevocation(spec *v1alpha1.RevocationSpec) (*revocation, error) {
	r := &revocation{all: spec.All, kinds: cloneStrings(spec.Kinds), namespaces: cloneStrings(spec.Namespaces)}
	if spec.Selector != nil {
		selector, err := metav1.LabelSelectorAsSelector(spec.Selector)
		if err != nil {
			return nil, fmt.Errorf("spec.selector cannot be read, so nothing is revoked by it: create another Revocation: %w", err)
		}
		// An empty selector matches everything, and is no way to say so.
		if selector.Empty() {
			return nil, fmt.Errorf("spec.selector is empty, so nothing is revoked by it: create another Revocation, with all: true if that is meant")
		}
		r.selector = selector
	}
	if !r.all && r.kinds == nil && r.namespaces == nil && r.selector == nil {
		return nil, fmt.Errorf("spec selects nothing, so nothing is revoked by it: create another Revocation, with all: true if everything is meant")
	}
	return r, nil
}

// selects tells whether the Revocation takes the credential: by its labels as
// they are or as they were sealed, so that changing them slips nothing.
func (r *revocation) selects(h *holder) bool {
	if r.all {
		return true
	}
	if r.kinds != nil && !slices.Contains(r.kinds, string(h.Kind)) {
		return false
	}
	if r.namespaces != nil && !slices.Contains(r.namespaces, h.Namespace) {
		return false
	}
	return r.selector == nil || r.selector.Matches(h.live.labels.set()) || h.sealed != nil && r.selector.Matches(h.sealed.labels.set())
}

// takes tells whether the Revocation of this UID revokes the credential: it
// selects it, and the record does not account for it.
func (r *revocation) takes(uid string, h *holder) bool {
	return !h.sealed.accountsFor(uid) && r.selects(h)
}

func (l *labelSet) set() labels.Set {
	if l == nil {
		return nil
	}
	return l.labels
}

// SetRevocation takes in a Revocation. It takes every version of what it selects,
// but for credentials whose record accounts for it. What it has taken once it
// keeps, until a record accounts for it. An error means that it selects nothing
// that could be told, and revokes nothing.
func (x *Index) SetRevocation(object *v1alpha1.Revocation) error {
	r, err := newRevocation(&object.Spec)
	if err != nil {
		return fmt.Errorf("Revocation %s: %w", object.Name, err)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	uid := strings.Clone(string(object.UID))
	x.revocations[uid] = r
	x.brake.Store(&brake{uid, r})
	defer x.brake.Store(nil)
	for h := range x.within(r.namespaces) {
		if !slices.Contains(h.marks.revocations, uid) && r.takes(uid, h) {
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

func (x *Index) braked(uid string) bool {
	b := x.brake.Load()
	if b == nil {
		return false
	}
	h, ok := x.holders.Load(uid)
	return !ok || b.takes(b.uid, h)
}

// within gives the credentials of some namespaces; of all where none are named.
func (x *Index) within(namespaces []string) iter.Seq[*holder] {
	return func(yield func(*holder) bool) {
		if namespaces == nil {
			x.holders.Range(func(_ string, h *holder) bool { return yield(h) })
			return
		}
		for _, name := range namespaces {
			if ns := x.namespaces[name]; ns != nil {
				for uid := range ns.holders {
					if h, ok := x.holders.Load(uid); ok && !yield(h) {
						return
					}
				}
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
	for _, h := range x.holders.Range {
		if !slices.Contains(h.marks.revocations, uid) {
			continue
		}
		next := *h
		next.marks.revocations = slices.DeleteFunc(slices.Clone(h.marks.revocations), func(u string) bool { return u == uid })
		if !settled {
			next.marks.through = max(next.marks.through, h.marks.latest)
		}
		next.take(x.revocations)
		x.publish(h, &next)
	}
}
