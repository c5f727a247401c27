package server

import "github.com/mintmark-dev/mintmark/internal/oauth"

// documents are what verifiers of our JWTs fetch.
type documents struct{ issuer *oauth.Issuer }

var publicCache = []string{oauth.CacheControl()}

// keySet answers with the JWKS. Without keys there is no answer rather than an empty one
// that would be kept for minutes.
func (d *documents) keySet(x *exchange) *problem {
	set := d.issuer.KeySet()
	if len(set.Keys) == 0 {
		return problemUnavailable
	}
	x.w.Header()["Cache-Control"] = publicCache
	return writeJSON(x.w, set)
}

// metadata answers with the RFC 8414 document.
func (d *documents) metadata(x *exchange) *problem {
	x.w.Header()["Cache-Control"] = publicCache
	m := d.issuer.Metadata()
	// Not the bare key exchange at /api/auth/token, whose requests are no OAuth.
	m.TokenEndpoint, m.GrantTypesSupported, m.TokenEndpointAuthMethodsSupported = d.issuer.Endpoint(tokenPath), []string{grantTokenExchange}, []string{"none"}
	m.IntrospectionEndpoint, m.IntrospectionEndpointAuthMethodsSupported = d.issuer.Endpoint(introspectionPath), bearerMethod
	m.RevocationEndpoint, m.RevocationEndpointAuthMethodsSupported = d.issuer.Endpoint(revocationPath), bearerMethod
	return writeJSON(x.w, m)
}

// bearerMethod: callers present a key or a JWT of their own (RFC 6750), which RFC 8414,
// section 2, calls by the name of the access token type.
var bearerMethod = []string{"Bearer"}
