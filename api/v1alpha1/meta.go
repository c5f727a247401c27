package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// Credential is what ServiceToken and APIKey have in common, for code that does
// not care which of them it has.
//
// +kubebuilder:object:generate=false
type Credential interface {
	metav1.Object
	runtime.Object
	// CredentialKind is the kind's name, whatever TypeMeta holds.
	CredentialKind() Kind
	// CredentialSpec and CredentialStatus point into the object itself.
	CredentialSpec() *CredentialSpec
	CredentialStatus() *CredentialStatus
}

// Kind is a kind of credential.
type Kind string

const (
	// KindServiceToken is the kind of ServiceToken.
	KindServiceToken Kind = "ServiceToken"
	// KindAPIKey is the kind of APIKey.
	KindAPIKey Kind = "APIKey"
)

// SecretKey is the key of the target Secret under which the value stands.
func (k Kind) SecretKey() string {
	if k == KindAPIKey {
		return "api-key"
	}
	return "token"
}

// PreviousSecretKey is the key under which the previous value stands while it
// is still accepted.
func (k Kind) PreviousSecretKey() string { return k.SecretKey() + ".previous" }

// Keys of the target Secret that both kinds share.
const (
	SecretKeyVersion         = "version"
	SecretKeyPreviousVersion = "version.previous"
)

// CredentialKind implements Credential.
func (*ServiceToken) CredentialKind() Kind { return KindServiceToken }

// CredentialSpec implements Credential.
func (t *ServiceToken) CredentialSpec() *CredentialSpec { return &t.Spec }

// CredentialStatus implements Credential.
func (t *ServiceToken) CredentialStatus() *CredentialStatus { return &t.Status }

// CredentialKind implements Credential.
func (*APIKey) CredentialKind() Kind { return KindAPIKey }

// CredentialSpec implements Credential.
func (k *APIKey) CredentialSpec() *CredentialSpec { return &k.Spec }

// CredentialStatus implements Credential.
func (k *APIKey) CredentialStatus() *CredentialStatus { return &k.Status }

// Annotations people, tools and Git write. The first three hold a time (RFC
// 3339); each acts once, if it is later than the last one handled.
const (
	AnnotationRotateRequestedAt   = "mintmark.dev/rotate-requested-at"
	AnnotationRollbackRequestedAt = "mintmark.dev/rollback-requested-at"
	AnnotationDiscardRequestedAt  = "mintmark.dev/discard-requested-at"
	// AnnotationUsageRequestedAt asks, with a time, for the use of each version to
	// be written into status now instead of at the next day.
	AnnotationUsageRequestedAt = "mintmark.dev/usage-requested-at"
	// AnnotationReason is the reason given with a request.
	AnnotationReason = "mintmark.dev/reason"
	// AnnotationRequestedBy is who made the latest request, or declared the values that
	// stand there. Admission writes it.
	AnnotationRequestedBy = "mintmark.dev/requested-by"
	// AnnotationRevokedBy is who wrote spec.revoked, or made a Revocation. Admission
	// writes it.
	AnnotationRevokedBy = "mintmark.dev/revoked-by"
	// AnnotationOnBehalfOf is for whom whoever asks does so: a server writes here who
	// called it. Admission adds it to the two above where it is new.
	AnnotationOnBehalfOf = "mintmark.dev/on-behalf-of"
	// AnnotationChangedBy is who last changed what an object allows: a mark of that
	// change, a space, and the user's name. The mark is the generation of an object
	// that is no credential, and for a credential a digest of what it grants. Admission
	// writes it.
	AnnotationChangedBy = "mintmark.dev/changed-by"
	// AnnotationIdempotencyKey tells which request to the management API made the
	// latest change. It holds digests.
	AnnotationIdempotencyKey = "mintmark.dev/idempotency-key"
	// AnnotationPrefix is the public part of a value that spec.external declares, and
	// after a space the first 8 digits of its SHA-256, for lists and logs. Whoever made
	// the value knows it.
	AnnotationPrefix = "mintmark.dev/prefix"
	// AnnotationDefaultClass marks the CredentialClass for credentials that name
	// none.
	AnnotationDefaultClass = "mintmark.dev/is-default-class"
)

// MaxLiveVersions is how many versions of a credential are accepted at a time.
// What would make more waits.
const MaxLiveVersions = 32

// Marks on the objects Mintmark itself makes.
const (
	// LabelManaged is on every Secret Mintmark writes, with the value "true":
	// the controller caches no others.
	LabelManaged = "mintmark.dev/managed"
	// LabelKind and LabelCredential name the credential a Secret belongs to.
	LabelKind = "mintmark.dev/kind"
	// AnnotationCredentialUID is the UID of that credential.
	AnnotationCredentialUID = "mintmark.dev/credential-uid"
	// LabelServer marks the Leases servers hold.
	LabelServer = "mintmark.dev/server"
	// AnnotationInternalURL on such a Lease is where the controller reaches the
	// server.
	AnnotationInternalURL = "mintmark.dev/internal-url"
	// FinalizerRevocation keeps a Revocation until it is settled.
	FinalizerRevocation = "mintmark.dev/settle"
)

// Conditions of ServiceToken and APIKey.
const (
	// ConditionReady: the Secret carries a value every server accepts.
	ConditionReady = "Ready"
	// ConditionPropagated: every server accepts every live version.
	ConditionPropagated = "Propagated"
	// ConditionSecretDelivered: the Secret is ours and carries what it should.
	ConditionSecretDelivered = "SecretDelivered"
	// ConditionAdopted: the workloads to be restarted run with the current value.
	ConditionAdopted = "Adopted"
	// ConditionExpiring: the credential ends soon, and nothing will renew it. It is
	// there only while that is so; its reason says how soon.
	ConditionExpiring = "Expiring"
	// ConditionSettled is on a Revocation: every status accounts for it.
	ConditionSettled = "Settled"
)

// Reasons of these conditions, and of events.
const (
	ReasonReady            = "Ready"
	ReasonMinting          = "Minting"
	ReasonPropagating      = "Propagating"
	ReasonServerLagging    = "ServerLagging"
	ReasonDelivered        = "Delivered"
	ReasonPropagated       = "Propagated"
	ReasonSecretConflict   = "SecretConflict"
	ReasonSecretNotWritten = "SecretNotWritten"
	ReasonDigestConflict   = "DigestConflict"
	ReasonDeclared         = "Declared"
	ReasonClassNotFound    = "ClassNotFound"
	ReasonNotAllowed       = "NotAllowed"
	ReasonInvalidSpec      = "InvalidSpec"
	ReasonKeysUnavailable  = "KeysUnavailable"
	ReasonClockSkewed      = "ClockSkewed"
	ReasonExpired          = "Expired"
	ReasonRevoked          = "Revoked"
	ReasonMinted           = "Minted"
	ReasonRotated          = "Rotated"
	ReasonRetired          = "Retired"
	ReasonRolledBack       = "RolledBack"
	ReasonDiscarded        = "Discarded"
	ReasonRequestRefused   = "RequestRefused"
	ReasonRecordRejected   = "RecordRejected"
	ReasonAdopted          = "Adopted"
	ReasonRestarting       = "Restarting"
	ReasonAwaitingWindow   = "AwaitingWindow"
	ReasonRestartFailed    = "RestartFailed"
	ReasonRestartDisabled  = "RestartDisabled"
	ReasonTooManyVersions  = "TooManyVersions"
	// ReasonTooManyRevocations: more Revocations select the credential at a time
	// than its record can name.
	ReasonTooManyRevocations = "TooManyRevocations"
	// ReasonExpiring and ReasonOverlapEnded are of warnings told as events.
	ReasonExpiring     = "Expiring"
	ReasonOverlapEnded = "OverlapEnded"
	// Reasons of Expiring, by how soon: the alerts Low, Medium, High and Critical.
	ReasonWithin30Days = "Within30Days"
	ReasonWithin14Days = "Within14Days"
	ReasonWithin7Days  = "Within7Days"
	ReasonWithin1Day   = "Within1Day"
	// Reasons of Settled, on a Revocation.
	ReasonSettled         = "Settled"
	ReasonSettling        = "Settling"
	ReasonNothingSelected = "NothingSelected"
)
