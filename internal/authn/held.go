package authn

import "time"

// InUse tells whether the value of a version of a credential is accepted at this time
// itself, not only what was issued for it before: it has been neither retired nor
// ended otherwise. It says nothing of networks, nor of staleness (see
// [Index.VerifyUse]).
func (x *Index) InUse(uid string, version int64, now time.Time) bool {
	h := x.holders.Get(uid)
	if h == nil {
		return false
	}
	e := h.version(version)
	return e != nil && h.cohort.now.Load().reason == ReasonAccepted && e.refusal == ReasonAccepted && !expired(e.notAfter(), now)
}
