package authn

import (
	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

// Find tells which credential has the UID, good or not.
func (x *Index) Find(uid string) (Identity, bool) {
	h := x.holders.Get(uid)
	if h == nil {
		return Identity{}, false
	}
	c := h.cohort
	return Identity{UID: h.uid(), Kind: c.kind, Namespace: c.namespace, Name: h.name(), Subject: h.subject()}, true
}

// Holder is the UID of the credential whose value has this inner hash; empty where no
// record that has arrived here holds it. It says nothing of whether the value is good, and
// counts no use.
func (x *Index) Holder(inner credential.Inner) string {
	for _, pepper := range *x.peppers.Load() {
		if e := x.digests.Get(pepper.Digest(inner)); e != nil {
			return e.uid()
		}
	}
	return ""
}

// Covers tells whether the credential holds everything that the pattern covers, now: itself
// or by a role, and under the ceiling. For a permission it is the same as [Grant.Allows].
func (g *Grant) Covers(pattern string) bool {
	if g == nil || g.ceiling == nil || pattern == "" {
		return false
	}
	return g.Admin || g.held.Allows(pattern) && g.ceiling.AllowsGrant(pattern)
}

// Selected counts the credentials that a Revocation of this spec would take: those known
// here. Its error says what of the spec cannot be read.
func (x *Index) Selected(spec *v1alpha1.RevocationSpec) (int, error) {
	s, err := credential.NewSelector(spec)
	if err != nil {
		return 0, err
	}
	n := 0
	for h := range x.within(s.Namespaces()) {
		if c := h.cohort; s.Selects(c.kind, c.namespace, h.labels.live(), h.labels.sealed()) {
			n++
		}
	}
	return n, nil
}
