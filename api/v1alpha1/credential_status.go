package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// CredentialStatus is what Mintmark tells about a credential. Only the
// controller writes it.
type CredentialStatus struct {
	// observedGeneration is the generation of the spec this status answers to.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	// conditions: Ready, SecretDelivered, Propagated, Adopted where workloads are to
	// be restarted, and Expiring where nothing will renew it before it ends.
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=16
	Conditions []metav1.Condition `json:"conditions,omitempty"`

	// currentVersion is the number of the version the Secret carries as current.
	// +optional
	CurrentVersion int64 `json:"currentVersion,omitempty"`

	// adopted tells which version the workloads of spec.restart run with. While it
	// is not the current one, they are being restarted.
	// +optional
	Adopted *Adoption `json:"adopted,omitempty"`

	// versions of the credential, latest first. Ended ones are kept as history
	// for a while.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	Versions []CredentialVersion `json:"versions,omitempty"`

	// secretName is the name of the Secret that carries the value.
	// +optional
	SecretName string `json:"secretName,omitempty"`

	// nextRotation is when the current version is to be replaced (RFC 3339).
	// +optional
	NextRotation string `json:"nextRotation,omitempty"`

	// expires is when the current version expires (RFC 3339), or "Never".
	// +optional
	Expires string `json:"expires,omitempty"`

	// lastUsed is the day the credential was last used (2006-01-02).
	// +optional
	LastUsed string `json:"lastUsed,omitempty"`

	// usage tells how old the uses of the versions are. They are for people, and for
	// rotation by high usage; nothing is retired on their evidence.
	// +optional
	Usage *UsageStatus `json:"usage,omitempty"`

	// handled tells which requests made by annotation have been carried out.
	// +optional
	Handled *HandledRequests `json:"handled,omitempty"`

	// revocation tells of the latest revocation of the whole credential.
	// +optional
	Revocation *RevocationStatus `json:"revocation,omitempty"`

	// settledRevocations are the UIDs of the Revocation objects this status
	// already accounts for.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=1024
	SettledRevocations []string `json:"settledRevocations,omitempty"`

	// transitions not yet known to be stored in the audit log, oldest first.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	Transitions []Transition `json:"transitions,omitempty"`

	// record is what the servers verify by. It is opaque, and worth nothing
	// without its seal.
	// +optional
	// +kubebuilder:validation:MaxLength=131072
	Record []byte `json:"record,omitempty"`

	// seal authenticates record.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	Seal string `json:"seal,omitempty"`

	// epoch counts the records made of this credential.
	// +optional
	Epoch int64 `json:"epoch,omitempty"`
}

// VersionState is where a version stands in its life.
//
// +kubebuilder:validation:Enum=Pending;Active;Superseded;Retired;Revoked;Expired
type VersionState string

const (
	// VersionPending is committed and accepted, but not delivered yet.
	VersionPending VersionState = "Pending"
	// VersionActive is the one the Secret carries as current.
	VersionActive VersionState = "Active"
	// VersionSuperseded is still accepted beside its successor.
	VersionSuperseded VersionState = "Superseded"
	// VersionRetired has ended as planned.
	VersionRetired VersionState = "Retired"
	// VersionRevoked has been ended by somebody.
	VersionRevoked VersionState = "Revoked"
	// VersionExpired has reached its end.
	VersionExpired VersionState = "Expired"
)

// Live tells whether a version in this state is accepted.
func (s VersionState) Live() bool {
	return s == VersionPending || s == VersionActive || s == VersionSuperseded
}

// Adoption tells which version workloads run with.
type Adoption struct {
	// version that nothing has to be restarted for any more. Where restarts were
	// asked for after a version had been delivered, they begin with the next one.
	// +required
	// +kubebuilder:validation:Minimum=1
	Version int64 `json:"version"`

	// at is when the last of the workloads was found to run with it; none where no
	// restart was waited for.
	// +optional
	At *metav1.Time `json:"at,omitempty"`
}

// CredentialVersion is one value in the life of a credential.
type CredentialVersion struct {
	// version numbers the values of a credential from 1.
	// +required
	// +kubebuilder:validation:Minimum=1
	Version int64 `json:"version"`

	// +required
	State VersionState `json:"state"`

	// prefix is the public part of the value, for logs and lists.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	Prefix string `json:"prefix,omitempty"`

	// digest of the value: keyed, in hex.
	// +required
	// +kubebuilder:validation:MaxLength=64
	Digest string `json:"digest"`

	// pepper is the id of the pepper the digest is keyed with.
	// +required
	// +kubebuilder:validation:MaxLength=64
	Pepper string `json:"pepper"`

	// created is when the version was committed.
	// +required
	Created metav1.Time `json:"created"`

	// activated is when it became current.
	// +optional
	Activated *metav1.Time `json:"activated,omitempty"`

	// superseded is when a later one became current.
	// +optional
	Superseded *metav1.Time `json:"superseded,omitempty"`

	// ended is when it was retired, revoked or found expired.
	// +optional
	Ended *metav1.Time `json:"ended,omitempty"`

	// expires is when its ttl ends. spec.expiresAt may end it before.
	// +optional
	Expires *metav1.Time `json:"expires,omitempty"`

	// reason says why the version was made and, after a semicolon, why it ended.
	// +optional
	// +kubebuilder:validation:MaxLength=2200
	Reason string `json:"reason,omitempty"`

	// actor is who asked for the version.
	// +optional
	// +kubebuilder:validation:MaxLength=512
	Actor string `json:"actor,omitempty"`

	// uses is how often the version had been used by status.usage.through, as far
	// as the servers told: at least so often.
	// +optional
	Uses int64 `json:"uses,omitempty"`

	// lastUsed is when it had last been used by then.
	// +optional
	LastUsed *metav1.Time `json:"lastUsed,omitempty"`
}

// UsageStatus tells how old the numbers of uses are. They are written once a day
// at most, when a version becomes highly used, and when asked for.
type UsageStatus struct {
	// through is up to when uses and lastUsed of the versions tell.
	// +required
	Through metav1.Time `json:"through"`

	// requestedAt is the latest request, made by annotation, that they answer.
	// +optional
	RequestedAt *metav1.MicroTime `json:"requestedAt,omitempty"`
}

// HandledRequests tells which requests made by annotation have been carried
// out: the annotations' values, as times.
type HandledRequests struct {
	// +optional
	Rotate *metav1.MicroTime `json:"rotate,omitempty"`
	// +optional
	Rollback *metav1.MicroTime `json:"rollback,omitempty"`
	// +optional
	Discard *metav1.MicroTime `json:"discard,omitempty"`
}

// RevocationStatus tells of a revocation of the whole credential.
type RevocationStatus struct {
	// at is when the controller accounted for it. Servers refused the credential
	// before that.
	// +required
	At metav1.Time `json:"at"`
	// reason as given.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Reason string `json:"reason,omitempty"`
	// actor is who revoked.
	// +optional
	// +kubebuilder:validation:MaxLength=512
	Actor string `json:"actor,omitempty"`
	// throughVersion is the last version it took; later ones it did not touch.
	// +required
	ThroughVersion int64 `json:"throughVersion"`
}

// Transition is a change of state that the audit log must hold exactly once.
type Transition struct {
	// id is fixed when the transition is committed.
	// +required
	// +kubebuilder:validation:MaxLength=64
	ID string `json:"id"`
	// type, such as Minted, Rotated, Retired, Revoked, Expired, RolledBack.
	// +required
	// +kubebuilder:validation:MaxLength=64
	Type string `json:"type"`
	// +required
	Version int64 `json:"version"`
	// +required
	At metav1.Time `json:"at"`
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Reason string `json:"reason,omitempty"`
	// +optional
	// +kubebuilder:validation:MaxLength=512
	Actor string `json:"actor,omitempty"`
}
