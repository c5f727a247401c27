// Package v1alpha1 holds the resources of the group mintmark.dev: what people
// write into manifests, and what Mintmark tells them back in status.
//
// ServiceToken and APIKey are the credentials. They share one spec and one
// status ([CredentialSpec], [CredentialStatus]) and differ in the format of the
// value alone. A CredentialClass plays the part a StorageClass plays for
// volumes: it carries defaults and the ceiling under which credentials are
// made. A Revocation is the emergency brake. AccessRoles bundle permissions,
// AccessPolicies narrow what credentials may do, and a TrustedIssuer lets in
// who brings somebody else's JWT.
//
// What people read in status is a copy. The servers trust status.record, and
// that only under status.seal (see internal/credential).
//
// +kubebuilder:object:generate=true
// +groupName=mintmark.dev
package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion is the group and version of every type in this package.
var GroupVersion = schema.GroupVersion{Group: "mintmark.dev", Version: "v1alpha1"}

// SchemeBuilder collects the types of this package.
var SchemeBuilder = runtime.NewSchemeBuilder(addKnownTypes)

// AddToScheme registers the types of this package with a scheme.
var AddToScheme = SchemeBuilder.AddToScheme

func addKnownTypes(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion,
		&ServiceToken{}, &ServiceTokenList{},
		&APIKey{}, &APIKeyList{},
		&CredentialClass{}, &CredentialClassList{},
		&Revocation{}, &RevocationList{},
		&AccessRole{}, &AccessRoleList{},
		&AccessPolicy{}, &AccessPolicyList{},
		&TrustedIssuer{}, &TrustedIssuerList{},
	)
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}
