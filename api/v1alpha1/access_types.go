package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// AccessRole is a bundle of permissions with a name. A credential that holds the
// role holds them, as far as the ceiling of its class allows.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName=arole,categories=mintmark
// +kubebuilder:printcolumn:name="Permissions",type=string,JSONPath=`.spec.permissions`
// +kubebuilder:printcolumn:name="Description",type=string,priority=1,JSONPath=`.spec.description`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type AccessRole struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// spec of the role.
	// +required
	Spec AccessRoleSpec `json:"spec"`
}

// AccessRoleList is a list of AccessRoles.
//
// +kubebuilder:object:root=true
type AccessRoleList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []AccessRole `json:"items"`
}

// AccessRoleSpec is the spec of an AccessRole.
type AccessRoleSpec struct {
	// description says whom the role is for.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Description string `json:"description,omitempty"`

	// permissions that the role bundles. A wildcard that the ceiling of a class
	// has a hole in allows the rest of it.
	// +required
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=256
	Permissions []Permission `json:"permissions"`
}

// AccessPolicy narrows what good credentials may do, by rules over the subject,
// the resource, the request and the environment. It never widens: what the
// credential holds no permission for stays refused.
//
// Of the policies whose matchConditions hold, a Deny policy one of whose rules
// is true refuses the request, whatever else allows it. Where there are Allow
// policies among them, one rule of one of them has to be true.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:path=accesspolicies,scope=Cluster,shortName=apol,categories=mintmark
// +kubebuilder:printcolumn:name="Effect",type=string,JSONPath=`.spec.effect`
// +kubebuilder:printcolumn:name="Enforcement",type=string,JSONPath=`.spec.enforcement`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type AccessPolicy struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// spec of the policy.
	// +required
	Spec AccessPolicySpec `json:"spec"`
}

// AccessPolicyList is a list of AccessPolicies.
//
// +kubebuilder:object:root=true
type AccessPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []AccessPolicy `json:"items"`
}

// AccessPolicySpec is the spec of an AccessPolicy.
type AccessPolicySpec struct {
	// description says what the policy is for.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Description string `json:"description,omitempty"`

	// effect of a rule that is true.
	// +required
	Effect PolicyEffect `json:"effect"`

	// enforcement: Enforce refuses; DryRun only records what would have been
	// refused.
	// +optional
	// +kubebuilder:default=Enforce
	Enforcement PolicyEnforcement `json:"enforcement,omitempty"`

	// matchConditions all have to hold for the policy to have a say. None: it has
	// one in every request. One that cannot be evaluated counts as holding.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=16
	MatchConditions []PolicyExpression `json:"matchConditions,omitempty"`

	// rules. One of a Deny policy that is true refuses; of the Allow policies that
	// have a say, one rule has to be true. One that cannot be evaluated counts
	// against the request: in a Deny policy as true, in an Allow policy as false.
	// +required
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	Rules []PolicyExpression `json:"rules"`
}

// PolicyEffect is what a rule does that is true.
//
// +kubebuilder:validation:Enum=Allow;Deny
type PolicyEffect string

const (
	// PolicyAllow lets the request through, as far as this policy goes.
	PolicyAllow PolicyEffect = "Allow"
	// PolicyDeny refuses it.
	PolicyDeny PolicyEffect = "Deny"
)

// PolicyEnforcement says whether a policy refuses or only records.
//
// +kubebuilder:validation:Enum=Enforce;DryRun
type PolicyEnforcement string

const (
	// PolicyEnforce refuses.
	PolicyEnforce PolicyEnforcement = "Enforce"
	// PolicyDryRun records what would have been refused.
	PolicyDryRun PolicyEnforcement = "DryRun"
)

// PolicyExpression is one named expression in CEL that gives a bool.
type PolicyExpression struct {
	// name of the expression, for logs and for explanations.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')",message="use lowercase letters, digits, - and ."
	Name string `json:"name"`

	// expression in CEL over subject, resource, request and environment.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=4096
	Expression string `json:"expression"`
}
