package oauth

import (
	"strconv"
	"strings"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/mintmark-dev/mintmark/internal/keyring"
)

// Paths of the documents. An issuer that has a path of its own has it before
// JWKSPath and DiscoveryPath, and after MetadataPath (RFC 8414, section 3).
const (
	JWKSPath = "/.well-known/jwks.json"
	// MetadataPath is that of RFC 8414.
	MetadataPath = "/.well-known/oauth-authorization-server"
	// DiscoveryPath is that of OpenID Connect Discovery, which some verifiers of
	// plain JWTs look for.
	DiscoveryPath = "/.well-known/openid-configuration"
)

// JWKSMaxAge is how long the documents may be kept by whoever fetched them. A
// new key is published for longer than that before it signs (see
// keyring.Policy.PublishBefore), so that no copy misses it.
const JWKSMaxAge = 5 * time.Minute

// CacheControl is the header value to serve the documents with.
func CacheControl() string { return "public, max-age=" + strconv.Itoa(int(JWKSMaxAge.Seconds())) }

// KeySet is the JWKS (RFC 7517, section 5): the public keys of every algorithm and
// slot. It encodes with encoding/json. Without keys it is an empty set.
func (i *Issuer) KeySet() jose.JSONWebKeySet {
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{}}
	for _, key := range i.keys().All() {
		// Of the public key alone: a JWK made from the signer would hold the
		// private one.
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: key.Key.Public(), KeyID: key.ID, Algorithm: key.Algorithm, Use: "sig"})
	}
	return set
}

// Metadata is the authorization server metadata (RFC 8414, section 2), with the
// members that OpenID Connect Discovery adds and its clients insist on. What is
// empty is not there.
type Metadata struct {
	Issuer                string `json:"issuer"`
	JWKSURI               string `json:"jwks_uri"`
	TokenEndpoint         string `json:"token_endpoint,omitempty"`
	IntrospectionEndpoint string `json:"introspection_endpoint,omitempty"`
	RevocationEndpoint    string `json:"revocation_endpoint,omitempty"`
	ServiceDocumentation  string `json:"service_documentation,omitempty"`

	ResponseTypesSupported                    []string `json:"response_types_supported"`
	GrantTypesSupported                       []string `json:"grant_types_supported,omitempty"`
	TokenEndpointAuthMethodsSupported         []string `json:"token_endpoint_auth_methods_supported,omitempty"`
	IntrospectionEndpointAuthMethodsSupported []string `json:"introspection_endpoint_auth_methods_supported,omitempty"`
	RevocationEndpointAuthMethodsSupported    []string `json:"revocation_endpoint_auth_methods_supported,omitempty"`
	SubjectTypesSupported                     []string `json:"subject_types_supported"`
	IDTokenSigningAlgValuesSupported          []string `json:"id_token_signing_alg_values_supported"`
	ClaimsSupported                           []string `json:"claims_supported,omitempty"`
}

// Metadata describes this issuer. The caller adds the endpoints it serves.
func (i *Issuer) Metadata() Metadata {
	return Metadata{
		Issuer:  i.issuer,
		JWKSURI: i.Endpoint(JWKSPath),
		// Required, though nothing here has an authorization endpoint; what
		// kube-apiserver says of itself as an issuer.
		ResponseTypesSupported:           []string{"id_token"},
		SubjectTypesSupported:            []string{"public"},
		IDTokenSigningAlgValuesSupported: i.algorithms(),
		ClaimsSupported: []string{
			"iss", "sub", "aud", "exp", "nbf", "iat", "auth_time", "jti", "sid", "client_id", "scope", claimRoles, claimAdmin, claimUID, claimVersion,
		},
	}
}

// Endpoint is the URL of one of the server's paths, below the issuer's own.
func (i *Issuer) Endpoint(path string) string { return strings.TrimSuffix(i.issuer, "/") + path }

// algorithms are those of the published keys, the default one first: it signs in any
// case, before there are keys too.
func (i *Issuer) algorithms() []string {
	found := []string{}
	ring := i.keys()
	for _, algorithm := range keyring.Algorithms() {
		if ring[algorithm] != nil && len(ring[algorithm].All()) > 0 {
			found = append(found, algorithm)
		}
	}
	if len(found) == 0 {
		return []string{keyring.DefaultAlgorithm}
	}
	return found
}
