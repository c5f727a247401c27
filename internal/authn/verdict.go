package authn

import "net/netip"

// Request is what a verdict depends on beside the value and the time.
type Request struct {
	// IP of the client, as far as the caller trusts it. A credential that is
	// limited to networks is refused where it is not valid.
	IP netip.Addr
}

// Verdict is the answer to whether a credential is good. The zero Verdict is a
// refusal. A refusal is no error: an error would mean that the system failed.
type Verdict struct {
	// OK alone lets the caller in.
	OK bool
	// Reason is for operators: logs, audit, metrics. Callers never learn it, for
	// a bad credential and an unknown one look the same to them.
	Reason Reason
	// Principal is whose credential it is; nil unless OK. It is shared and must
	// not be changed.
	Principal *Principal
	// Refused is whose credential was refused, for logs and audit; nil where
	// that is not known. It must not let anybody in.
	Refused *Principal
}

// Reason says why a verdict fell as it did.
type Reason uint8

// The reasons. Their codes (see [Reason.Code]) are stable: dashboards and alerts
// are built on them.
const (
	// ReasonUnknown: no credential has this value, or this UID.
	ReasonUnknown Reason = iota
	// ReasonAccepted: the credential is good.
	ReasonAccepted
	// ReasonMalformed: the value has no shape that any credential has.
	ReasonMalformed
	// ReasonDeleted: the object is being deleted.
	ReasonDeleted
	// ReasonRevoked: by spec.revoked, by a Revocation, or as sealed.
	ReasonRevoked
	// ReasonExpired: the version, or the whole credential.
	ReasonExpired
	// ReasonRetired: the version has ended as planned.
	ReasonRetired
	// ReasonNetwork: the client's address is in none of the allowed networks.
	ReasonNetwork
	// ReasonClass: the class is unknown, is not the one sealed, or allows no
	// such credential in the namespace.
	ReasonClass
	// ReasonUndeclared: the value's SHA-256 is no longer declared.
	ReasonUndeclared
	// ReasonDigestConflict: an older credential has the same value.
	ReasonDigestConflict
	// ReasonStale: the index is older than it may be (see [Index.SetDeadline]).
	ReasonStale
	reasonCount
)

var reasonCodes = [reasonCount]string{
	ReasonUnknown: "Unknown", ReasonAccepted: "Accepted", ReasonMalformed: "Malformed", ReasonDeleted: "Deleted",
	ReasonRevoked: "Revoked", ReasonExpired: "Expired", ReasonRetired: "Retired", ReasonNetwork: "Network", ReasonClass: "Class",
	ReasonUndeclared: "Undeclared", ReasonDigestConflict: "DigestConflict", ReasonStale: "Stale",
}

// Code names the reason for operators. It never varies with the request, so it
// can be a metric's label.
func (r Reason) Code() string {
	if r >= reasonCount {
		return reasonCodes[ReasonUnknown]
	}
	return reasonCodes[r]
}

// String is the code.
func (r Reason) String() string { return r.Code() }

// Reasons lists every reason, so that metrics can begin at zero.
func Reasons() []Reason {
	all := make([]Reason, reasonCount)
	for i := range all {
		all[i] = Reason(i)
	}
	return all
}

func refuse(reason Reason, whose *Principal) Verdict { return Verdict{Reason: reason, Refused: whose} }
