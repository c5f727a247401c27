// Package oauth issues the short-lived JWTs that credentials are exchanged for,
// and verifies them.
//
// Tokens follow RFC 9068, the JWT profile for OAuth 2.0 access tokens. Whoever
// knows the JWKS ([Issuer.KeySet]) can verify them; the servers themselves do so
// with [Issuer.Verify], which takes exactly what [Issuer.Issue] makes and nothing
// else that RFC 7515 would allow. A good signature is half of the answer: whether
// the credential behind the token still stands is for authn.Index.VerifyUse,
// with the UID and version the claims carry.
//
// The keys and the time are handed in. A key signs while it is current, and
// verifies in whatever slot it is.
package oauth
