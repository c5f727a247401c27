package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// CredentialClass carries the defaults and the ceiling of the credentials made
// under it. The class annotated mintmark.dev/is-default-class: "true" is written
// into credentials that name none.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:path=credentialclasses,scope=Cluster,shortName=cclass,categories=mintmark
// +kubebuilder:printcolumn:name="Environment",type=string,JSONPath=`.spec.environment`
// +kubebuilder:printcolumn:name="Default",type=string,JSONPath=`.metadata.annotations.mintmark\.dev/is-default-class`
// +kubebuilder:printcolumn:name="TTL",type=string,JSONPath=`.spec.defaults.ttl`
// +kubebuilder:printcolumn:name="Rotation",type=string,JSONPath=`.spec.defaults.rotation.every`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type CredentialClass struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// spec of the class.
	// +optional
	// +kubebuilder:default={}
	Spec CredentialClassSpec `json:"spec,omitempty"`
}

// CredentialClassList is a list of CredentialClasses.
//
// +kubebuilder:object:root=true
type CredentialClassList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []CredentialClass `json:"items"`
}

// CredentialClassSpec is the spec of a CredentialClass.
type CredentialClassSpec struct {
	// environment goes into the prefix of service tokens: "live" makes
	// sk_live_..., empty sk_....
	// +optional
	// +kubebuilder:validation:MaxLength=16
	// +kubebuilder:validation:XValidation:rule="self.matches('^([a-z][a-z0-9]*)?$')",message="not an environment: use lowercase letters and digits, a letter first, such as live or test"
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="environment cannot be changed: make a class of its own for the other environment"
	// +kubebuilder:default=""
	Environment string `json:"environment"`

	// checksum appends a checksum of 8 hexadecimal digits to service tokens, so
	// that scanners and typing errors are caught offline. API keys always have
	// one.
	// +optional
	Checksum bool `json:"checksum,omitempty"`

	// defaults for what a credential leaves open.
	// +optional
	// +kubebuilder:default={}
	Defaults ClassDefaults `json:"defaults,omitempty"`

	// minOverlap is the least overlap a credential may ask for, and what one
	// gets that asks for none.
	// +optional
	// +kubebuilder:default="1h"
	MinOverlap Duration `json:"minOverlap,omitempty"`

	// rules are the ceiling. The first rule whose namespaceSelector matches
	// the credential's namespace holds; where none matches, nothing may be made
	// under this class.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:default={{permissions: {"*"}, except: {"mintmark:*"}}}
	Rules []ClassRule `json:"rules,omitempty"`

	// externalFormat is the shape of values declared by their SHA-256.
	// +optional
	ExternalFormat *ExternalFormat `json:"externalFormat,omitempty"`

	// jwtAlgorithm signs the short-lived tokens of credentials of this class:
	// ES256, EdDSA and RS256 with keys that are published, HS256 with a secret of
	// the credential's own, which the servers alone can derive.
	// +optional
	// +kubebuilder:default=ES256
	// +kubebuilder:validation:Enum=ES256;EdDSA;RS256;HS256
	JWTAlgorithm string `json:"jwtAlgorithm,omitempty"`

	// historyLimit is how many ended versions status keeps.
	// +optional
	// +kubebuilder:default=5
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=20
	HistoryLimit *int32 `json:"historyLimit,omitempty"`

	// expired says what becomes of a credential that has expired for good.
	// +optional
	// +kubebuilder:default={}
	Expired ExpiredPolicy `json:"expired,omitempty"`
}

// ClassDefaults is what a credential gets where it says nothing.
type ClassDefaults struct {
	// ttl of each version, or "Never".
	// +optional
	// +kubebuilder:default="180d"
	TTL Duration `json:"ttl,omitempty"`

	// +optional
	// +kubebuilder:default={}
	Rotation RotationDefaults `json:"rotation,omitempty"`

	// +optional
	// +kubebuilder:default={}
	JWT JWTDefaults `json:"jwt,omitempty"`
}

// RotationDefaults is how credentials rotate that do not say how.
type RotationDefaults struct {
	// every is the age at which a version is replaced, or "Never".
	// +optional
	// +kubebuilder:default="90d"
	Every Duration `json:"every,omitempty"`
	// +optional
	// +kubebuilder:default="24h"
	Overlap Duration `json:"overlap,omitempty"`
	// +optional
	// +kubebuilder:default=WhenUnused
	Retire RetirePolicy `json:"retire,omitempty"`
	// +optional
	// +kubebuilder:default="7d"
	MaxOverlap Duration `json:"maxOverlap,omitempty"`
}

// JWTDefaults shapes the tokens of credentials that do not say how.
type JWTDefaults struct {
	// +optional
	// +kubebuilder:default="15m"
	TTL Duration `json:"ttl,omitempty"`
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=512
	Audiences []string `json:"audiences,omitempty"`
}

// ClassRule is the ceiling for some namespaces.
type ClassRule struct {
	// namespaceSelector chooses the namespaces. Left out: all of them.
	// +optional
	NamespaceSelector *metav1.LabelSelector `json:"namespaceSelector,omitempty"`

	// permissions that credentials may hold: what none of these covers is over
	// the ceiling.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=256
	Permissions []Permission `json:"permissions,omitempty"`

	// except takes permissions out again. A wildcard that would include one of
	// these is over the ceiling as well.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=256
	Except []Permission `json:"except,omitempty"`

	// attributes that credentials may carry, for policies to rely on. Left out:
	// any; empty: none.
	// +optional
	// +listType=map
	// +listMapKey=key
	// +kubebuilder:validation:MaxItems=32
	Attributes []AttributeRule `json:"attributes,omitzero"`

	// admin allows admin credentials.
	// +optional
	Admin bool `json:"admin,omitempty"`

	// external allows credentials declared by the SHA-256 of their value.
	// +optional
	External bool `json:"external,omitempty"`

	// adoption allows credentials to take over a Secret that exists already.
	// +optional
	Adoption bool `json:"adoption,omitempty"`

	// maxTTL is the longest life of a version. Empty or "Never": no limit.
	// +optional
	MaxTTL Duration `json:"maxTTL,omitempty"`
}

// AttributeRule allows an attribute.
type AttributeRule struct {
	// key of the attribute.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=64
	Key string `json:"key"`

	// values it may have. Empty: any.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	Values []MetadataValue `json:"values,omitempty"`
}

// ExternalFormat is the shape of values declared by their SHA-256. What does not
// have it is refused before it is hashed.
type ExternalFormat struct {
	// pattern the whole value matches (RE2 syntax).
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=512
	Pattern string `json:"pattern"`

	// minLength of the value.
	// +optional
	// +kubebuilder:default=32
	// +kubebuilder:validation:Minimum=20
	// +kubebuilder:validation:Maximum=512
	MinLength int32 `json:"minLength,omitempty"`
}

// ExpiredPolicy says what becomes of a credential that has expired for good.
type ExpiredPolicy struct {
	// action: Deactivate keeps the credential, without a Secret; Delete deletes
	// it.
	// +optional
	// +kubebuilder:default=Deactivate
	// +kubebuilder:validation:Enum=Deactivate;Delete
	Action string `json:"action,omitempty"`

	// after is how long after expiry the action is taken.
	// +optional
	// +kubebuilder:default="30d"
	After Duration `json:"after,omitempty"`
}
