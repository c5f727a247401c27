package authn

import (
	"time"

	"github.com/mintmark-dev/mintmark/internal/credential"
)

// Verify tells whether a presented value is a good credential at this time, and
// whose. It counts the use of one that is. It takes no lock and does not
// allocate.
func (x *Index) Verify(tok credential.Token, req Request, now time.Time) Verdict {
	if x.stale(now) {
		return refuse(ReasonStale, nil)
	}
	value := tok.Reveal()
	if value == "" || tok.External() && !x.shaped(value) {
		return refuse(ReasonMalformed, nil)
	}
	inner := tok.Inner()
	verdict := refuse(ReasonUnknown, nil)
	// A refusal goes on to the other peppers, so that it takes as long as not
	// finding the value at all.
	for _, pepper := range *x.peppers.Load() {
		e := x.digests.Get(pepper.Digest(inner))
		if e == nil {
			continue
		}
		last := e.use.last.Load()
		stands := e.holder.cohort.now.Load()
		reason := e.judge(stands, tok, req, now)
		if reason == ReasonAccepted && x.braked(e.holder) {
			reason = ReasonRevoked
		}
		whose := e.principal(stands.grant)
		if reason != ReasonAccepted {
			verdict = refuse(reason, whose)
			continue
		}
		e.use.count(now.Unix(), last)
		return Verdict{OK: true, Reason: ReasonAccepted, Principal: whose}
	}
	return verdict
}

// judge checks everything about the version; stands is how its cohort does.
func (e *entry) judge(stands *standing, tok credential.Token, req Request, now time.Time) Reason {
	switch {
	case stands.reason == ReasonDeleted:
		return ReasonDeleted
	case e.refusal == ReasonRevoked:
		return ReasonRevoked
	case stands.reason != ReasonAccepted:
		return stands.reason
	case e.refusal != ReasonAccepted:
		return e.refusal
	case expired(e.notAfter(), now):
		return ReasonExpired
	}
	// Of the format of the credential's own class, not only of any.
	if f := stands.grant.ceiling.format; tok.External() && (f == nil || !f.matches(tok.Reveal())) {
		return ReasonMalformed
	}
	if !stands.grant.from(req) {
		return ReasonNetwork
	}
	return ReasonAccepted
}

// from tells whether the request comes from where both the record and the live
// object allow.
func (g *Grant) from(req Request) bool {
	return g.sealed.networks.allow(req.IP) && g.live.networks.allow(req.IP)
}

func expired(notAfter int64, now time.Time) bool { return notAfter != 0 && now.Unix() >= notAfter }

func (x *Index) stale(now time.Time) bool {
	deadline := x.deadline.Load()
	return deadline != 0 && now.UnixNano() > deadline
}

// shaped tells whether some class declares values of this shape.
func (x *Index) shaped(value string) bool {
	for _, f := range *x.formats.Load() {
		if f.matches(value) {
			return true
		}
	}
	return false
}

// VerifyUse tells whether what was issued for a version of a credential, a JWT,
// is still good. It fails once the credential is gone or being deleted, has
// expired, or the version is revoked, in whatever way; the class and the
// networks hold as for the value itself. A version that has merely been retired,
// or is not known here yet, passes: the caller has checked a signature of ours
// over its number, and the time it carries. The use is not counted as a use of the
// value.
//
// It takes no lock, and allocates only for a version that is not held any more.
func (x *Index) VerifyUse(uid string, version int64, req Request, now time.Time) Verdict {
	if x.stale(now) {
		return refuse(ReasonStale, nil)
	}
	h := x.holders.Get(uid)
	if h == nil || h.cohort.terms == nil {
		return refuse(ReasonUnknown, nil)
	}
	if version <= 0 {
		return refuse(ReasonMalformed, nil)
	}
	stands := h.cohort.now.Load()
	whose, revoked, notAfter := h.user(version, stands.grant)
	if e := h.version(version); e != nil {
		if owner := x.digests.Get(e.digest); owner != nil && owner.uid() != uid {
			return refuse(ReasonDigestConflict, whose)
		}
	}
	reason := stands.judgeUse(revoked, notAfter, req, now)
	if reason == ReasonAccepted && x.braked(h) {
		reason = ReasonRevoked
	}
	if reason != ReasonAccepted {
		return refuse(reason, whose)
	}
	return Verdict{OK: true, Reason: ReasonAccepted, Principal: whose}
}

// user is whose version something was issued for, and how that stands, whether or not
// it is held.
func (h *holder) user(version int64, grant *Grant) (whose *Principal, revoked bool, notAfter int64) {
	if e := h.version(version); e != nil {
		return e.principal(grant), e.refusal == ReasonRevoked, e.notAfter()
	}
	if h.more != nil {
		notAfter = h.more.expires
	}
	return newPrincipal(&h.entry, version, "", grant, notAfter), h.revokes(version), notAfter
}

func (s *standing) judgeUse(revoked bool, notAfter int64, req Request, now time.Time) Reason {
	switch {
	case s.reason == ReasonDeleted:
		return ReasonDeleted
	case revoked:
		return ReasonRevoked
	case s.reason != ReasonAccepted:
		return s.reason
	case expired(notAfter, now):
		return ReasonExpired
	case !s.grant.from(req):
		return ReasonNetwork
	}
	return ReasonAccepted
}
