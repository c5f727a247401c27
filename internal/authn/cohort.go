package authn

import (
	"slices"
	"strings"
	"sync/atomic"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// cohort is everything that credentials can have in common: where they are, under
// which class, what was sealed for them and what is wanted. So what depends on the
// class, on the namespace and on roles is worked out once for all of them, and a
// change of it reaches them all in one write.
type cohort struct {
	cohortKey
	settled []string // the UIDs of the key's
	// now is what the rest of the index makes of it.
	now atomic.Pointer[standing]
}

type cohortKey struct {
	kind      v1alpha1.Kind
	namespace string

	// As sealed; terms is nil where there is no record.
	class         string
	terms         *terms
	pepper        string // of the newest version
	settled       string
	settledBefore int64
	external      bool

	// As the live object is.
	liveClass string
	liveTerms *terms
	deleting  bool
	declared  bool
}

// standing is how a cohort stands under the class, the namespace and the roles as they
// are. It does not change: a change makes another one.
type standing struct {
	grant *Grant // nil where there is no record
	// reason is what stands against all of them; ReasonAccepted where nothing does.
	reason Reason
	// awaiting: the class or the namespace has not been seen.
	awaiting bool
}

func (c *cohort) isExternal() bool { return c.external || c.declared }

// governing is the class that must allow the credential.
func (c *cohort) governing() string {
	if c.terms != nil {
		return c.class
	}
	return c.liveClass
}

// accountsFor tells whether the record accounts for a Revocation. r is nil where
// nothing but its UID is known any more.
func (c *cohort) accountsFor(uid string, r *revocation) bool {
	return c.terms != nil && (r != nil && r.created > 0 && r.created < c.settledBefore || slices.Contains(c.settled, uid))
}

// cohortOf finds the cohort that a credential belongs to.
func (x *Index) cohortOf(f *facts, pepper string) *cohort {
	key := cohortKey{
		kind: f.kind, namespace: f.namespace, liveClass: f.live.class, liveTerms: f.live.terms, deleting: f.live.deleting, declared: f.live.declared,
	}
	if s := f.sealed; s != nil {
		key.class, key.terms, key.pepper, key.external = s.class, s.terms, pepper, s.external
		key.settled, key.settledBefore = strings.Join(s.settled, "\x00"), s.settledBefore
	}
	return x.cohorts.get(key, func() *cohort {
		c := &cohort{cohortKey: key}
		if f.sealed != nil {
			c.settled = f.sealed.settled
		}
		x.judge(c)
		return c
	})
}

// judge works out anew how a cohort stands.
func (x *Index) judge(c *cohort) {
	s := &standing{awaiting: true}
	defer c.now.Store(s)
	if c.terms == nil {
		return
	}
	ceil := x.ceiling(c.class, c.namespace)
	_, classKnown := x.classes[c.class]
	s.awaiting = !classKnown || ceil == nil && !x.knows(c.namespace)
	key := grantKey{c.class, c.terms, c.liveTerms, ceil}
	s.grant = x.grants.get(key, func() *Grant { return newGrant(key.class, key.sealed, key.live, key.ceiling, x.roles) })
	switch {
	case c.deleting:
		s.reason = ReasonDeleted
	case c.liveClass != "" && c.liveClass != c.class, ceil == nil, c.isExternal() && !ceil.external:
		s.reason = ReasonClass
	default:
		s.reason = ReasonAccepted
	}
}

// rejudge works out anew how those cohorts stand that a change concerns.
func (x *Index) rejudge(concerned func(*cohort) bool) {
	for c := range x.cohorts.all {
		if concerned(c) {
			x.judge(c)
		}
	}
	x.broadcast()
}
