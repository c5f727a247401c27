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
		e, ok := x.table.Load(pepper.Digest(inner))
		if !ok {
			continue
		}
		reason := e.judge(tok, req, now)
		if reason == ReasonAccepted && x.braked(e.principal.UID) {
			reason = ReasonRevoked
		}
		if reason != ReasonAccepted {
			verdict = refuse(reason, &e.principal)
			continue
		}
		e.usage.count(now.Unix())
		return Verdict{OK: true, Reason: ReasonAccepted, Principal: &e.principal}
	}
	return verdict
}

// judge checks what was left open when the entry was worked out.
func (e *entry) judge(tok credential.Token, req Request, now time.Time) Reason {
	if e.refusal != ReasonAccepted {
		return e.refusal
	}
	if expired(e.notAfter, now) {
		return ReasonExpired
	}
	g := e.principal.Grant
	// Of the format of the credential's own class, not only of any.
	if tok.External() && (g.ceiling.format == nil || !g.ceiling.format.matches(tok.Reveal())) {
		return ReasonMalformed
	}
	if !g.from(req) {
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
	h, ok := x.holders.Load(uid)
	if !ok || h.sealed == nil {
		return refuse(ReasonUnknown, nil)
	}
	if version <= 0 {
		return refuse(ReasonMalformed, nil)
	}
	e := h.entry(version)
	if e == nil {
		e = &entry{principal: h.principal(version, "", h.live.expires), notAfter: h.live.expires}
	} else if owner, held := x.table.Load(e.digest); held && owner.principal.UID != uid {
		return refuse(ReasonDigestConflict, &e.principal)
	}
	reason := h.judgeUse(e, version, req, now)
	if reason == ReasonAccepted && x.braked(uid) {
		reason = ReasonRevoked
	}
	if reason != ReasonAccepted {
		return refuse(reason, &e.principal)
	}
	return Verdict{OK: true, Reason: ReasonAccepted, Principal: &e.principal}
}

func (h *holder) judgeUse(e *entry, version int64, req Request, now time.Time) Reason {
	switch standing := h.standing(); {
	case h.live.deleting:
		return ReasonDeleted
	case h.revoked(version):
		return ReasonRevoked
	case standing != ReasonAccepted:
		return standing
	case expired(e.notAfter, now):
		return ReasonExpired
	case !h.grant.from(req):
		return ReasonNetwork
	}
	return ReasonAccepted
}
