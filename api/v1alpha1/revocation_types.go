package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Revocation is the emergency brake: one write that every server obeys as soon
// as it sees it. It takes every version, made before it or in the same moment,
// of the credentials it selects. Its spec cannot be changed, and deleting it
// undoes nothing.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,categories=mintmark
// +kubebuilder:printcolumn:name="Settled",type=string,JSONPath=`.status.conditions[?(@.type=="Settled")].status`
// +kubebuilder:printcolumn:name="Matched",type=integer,JSONPath=`.status.matched`
// +kubebuilder:printcolumn:name="Done",type=integer,JSONPath=`.status.settled`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.spec.reason`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Revocation struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// spec says what is revoked.
	// +required
	Spec RevocationSpec `json:"spec"`
	// status tells how far the controller has come.
	// +optional
	Status RevocationObjectStatus `json:"status,omitempty"`
}

// RevocationList is a list of Revocations.
//
// +kubebuilder:object:root=true
type RevocationList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Revocation `json:"items"`
}

// RevocationSpec says what is revoked: what every field given agrees to.
//
// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="a Revocation cannot be changed: create another one"
// +kubebuilder:validation:XValidation:rule="has(self.all) && self.all ? !has(self.kinds) && !has(self.namespaces) && !has(self.selector) : has(self.kinds) || has(self.namespaces) || has(self.selector)",message="say what to revoke: kinds, namespaces or selector, or all: true and none of them"
type RevocationSpec struct {
	// reason, for the record.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	Reason string `json:"reason"`

	// all revokes every credential of the cluster.
	// +optional
	All bool `json:"all,omitempty"`

	// kinds of credential.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=2
	// +kubebuilder:validation:items:Enum=ServiceToken;APIKey
	Kinds []string `json:"kinds,omitempty"`

	// namespaces the credentials are in.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=63
	Namespaces []string `json:"namespaces,omitempty"`

	// selector of the credentials' labels, as they are or as they were sealed.
	// +optional
	// +kubebuilder:validation:XValidation:rule="(has(self.matchLabels) && size(self.matchLabels) > 0) || (has(self.matchExpressions) && size(self.matchExpressions) > 0)",message="an empty selector selects everything: say all: true if that is meant"
	// +kubebuilder:validation:XValidation:rule="!has(self.matchExpressions) || self.matchExpressions.all(e, e.operator in ['In', 'NotIn'] ? size(e.?values.orValue([])) > 0 : e.operator in ['Exists', 'DoesNotExist'] && size(e.?values.orValue([])) == 0)",message="an expression has the operator In or NotIn and values, or Exists or DoesNotExist and none"
	Selector *metav1.LabelSelector `json:"selector,omitempty"`

	// replace says whether new versions are made at once.
	// +optional
	// +kubebuilder:default=Never
	// +kubebuilder:validation:Enum=Never;Immediately
	Replace string `json:"replace,omitempty"`
}

// RevocationObjectStatus tells how far the controller has come in writing the
// revocation into the status of each credential. The servers do not wait for it.
type RevocationObjectStatus struct {
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// matched is the number of credentials selected.
	// +optional
	Matched int64 `json:"matched"`
	// settled is the number of those whose status accounts for it.
	// +optional
	Settled int64 `json:"settled"`
}
