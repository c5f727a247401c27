// Package federation judges JWTs of other issuers: of a CI system, of an
// identity-aware proxy, of a cluster's service accounts.
//
//	TrustedIssuer -> Compile      its expressions, its ceiling: pure, at admission too
//	watch         -> Set, Delete  which issuers are trusted now
//	Run           -> their keys, fetched and kept fresh, each issuer by itself
//	request       -> Verify       whose token is this, and what is that worth here?
//	              -> Standing     is what was exchanged for one still trusted?
//
// The iss of a token selects the TrustedIssuer before anything else is looked at,
// and nothing that the token says of its own verification counts: the algorithms
// are those of the TrustedIssuer, the keys those of its issuer.
//
// No request waits for an issuer longer than a stated bound. Keys are fetched in
// the background, one goroutine for each issuer, so one that hangs holds up
// nobody else, and those fetched before go on being used for some hours.
//
// Whoever may write a TrustedIssuer has a server fetch from an address of their
// choice. So addresses are looked at when they are dialled: what is not on the
// public internet is not, unless the operator says so.
package federation
