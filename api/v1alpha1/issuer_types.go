package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TrustedIssuer lets callers in who present a JWT of somebody else's: of a CI
// system, of an identity-aware proxy, of a cluster's service accounts. Such a
// JWT can be exchanged for one of ours (RFC 8693), so that its holder needs no
// key, and where directUse says so it can be presented as it is.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName=tissuer,categories=mintmark
// +kubebuilder:printcolumn:name="Issuer",type=string,JSONPath=`.spec.issuer`
// +kubebuilder:printcolumn:name="Direct",type=boolean,JSONPath=`.spec.directUse`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type TrustedIssuer struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// spec of the issuer.
	// +required
	Spec TrustedIssuerSpec `json:"spec"`
}

// TrustedIssuerList is a list of TrustedIssuers.
//
// +kubebuilder:object:root=true
type TrustedIssuerList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []TrustedIssuer `json:"items"`
}

// TrustedIssuerSpec is the spec of a TrustedIssuer.
//
// +kubebuilder:validation:XValidation:rule="!(has(self.jwksURL) && has(self.jwks))",message="give jwksURL or jwks, not both; with neither the issuer's discovery document is asked",fieldPath=".jwks"
type TrustedIssuerSpec struct {
	// issuer is the iss claim, to the letter. Its discovery document
	// (.well-known/openid-configuration) tells where its keys are, unless jwksURL
	// or jwks does.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=512
	// +kubebuilder:validation:XValidation:rule="isURL(self) && url(self).getScheme() == 'https'",message="an issuer is an https URL, exactly as in the iss claim of its tokens"
	Issuer string `json:"issuer"`

	// jwksURL is where the issuer publishes its keys.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	// +kubebuilder:validation:XValidation:rule="isURL(self) && url(self).getScheme() == 'https'",message="write an https URL"
	JWKSURL string `json:"jwksURL,omitempty"`

	// jwks are the issuer's keys themselves, a JWK Set (RFC 7517) of public keys,
	// for an issuer that cannot be reached.
	// +optional
	// +kubebuilder:validation:MaxLength=65536
	JWKS string `json:"jwks,omitempty"`

	// caBundle are the PEM certificates to check the issuer's own certificate
	// with. Default: those of the system.
	// +optional
	// +kubebuilder:validation:MaxLength=262144
	CABundle []byte `json:"caBundle,omitempty"`

	// audiences of which a token must name one.
	// +required
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=512
	Audiences []string `json:"audiences"`

	// algorithms that tokens may be signed with. Default: RS256 and ES256.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=8
	// +kubebuilder:validation:items:Enum=RS256;RS384;RS512;PS256;ES256;ES384;ES512;EdDSA
	Algorithms []string `json:"algorithms,omitempty"`

	// validations that all have to hold, in CEL over claims.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=32
	Validations []ClaimValidation `json:"validations,omitempty"`

	// mapping says who the holder of a token is here.
	// +optional
	// +kubebuilder:default={}
	Mapping ClaimMapping `json:"mapping,omitempty"`

	// ceiling is the most that any token of this issuer can get here. Without it
	// a token tells who its holder is, and allows nothing.
	// +optional
	// +kubebuilder:default={}
	Ceiling IssuerCeiling `json:"ceiling,omitempty"`

	// issuedAudiences are what the JWTs of ours may be for that its tokens are
	// exchanged for. Default: this server's issuer alone.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=512
	IssuedAudiences []string `json:"issuedAudiences,omitempty"`

	// maxTTL is the longest life of the JWTs of ours that its tokens are exchanged
	// for, from 1m to 60m. They do not outlive the token either.
	// +optional
	// +kubebuilder:default="15m"
	MaxTTL Duration `json:"maxTTL,omitempty"`

	// maxTokenAge refuses tokens issued longer ago, whatever their exp says.
	// Default: no limit.
	// +optional
	MaxTokenAge Duration `json:"maxTokenAge,omitempty"`

	// directUse accepts the issuer's tokens wherever ours are accepted. Otherwise
	// they are good for the exchange alone.
	// +optional
	DirectUse bool `json:"directUse,omitempty"`
}

// ClaimValidation is a condition on the claims of a token.
type ClaimValidation struct {
	// expression in CEL over claims that has to be true.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=4096
	Expression string `json:"expression"`

	// message for operators where it is not.
	// +optional
	// +kubebuilder:validation:MaxLength=512
	Message string `json:"message,omitempty"`
}

// ClaimMapping are expressions in CEL over claims.
type ClaimMapping struct {
	// subject gives a string that names the holder among those of the issuer.
	// Default: claims.sub.
	// +optional
	// +kubebuilder:default="claims.sub"
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=4096
	Subject string `json:"subject,omitempty"`

	// email gives a string, for X-User-Email.
	// +optional
	// +kubebuilder:validation:MaxLength=4096
	Email string `json:"email,omitempty"`

	// roles gives a list of names of AccessRoles.
	// +optional
	// +kubebuilder:validation:MaxLength=4096
	Roles string `json:"roles,omitempty"`

	// permissions gives a list of permissions.
	// +optional
	// +kubebuilder:validation:MaxLength=4096
	Permissions string `json:"permissions,omitempty"`

	// attributes gives a map of strings, for policies.
	// +optional
	// +kubebuilder:validation:MaxLength=4096
	Attributes string `json:"attributes,omitempty"`
}

// IssuerCeiling is the most that tokens of an issuer can get.
type IssuerCeiling struct {
	// permissions that they may hold, by themselves or by their roles.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=256
	Permissions []Permission `json:"permissions,omitempty"`

	// roles that they may hold.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=253
	Roles []string `json:"roles,omitempty"`
}
