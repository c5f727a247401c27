// Package authn answers whether a presented value is a good credential, and
// whose.
//
// An [Index] holds one compact holding per credential: what the controller
// vouched for in the sealed record ([credential.Record]), and beside it what the
// object says now ([Live]). Both must agree, so the live object can narrow what
// was sealed, at once and with the controller down, and can widen nothing:
//
//	watch  -> Apply(Live, Record)      what credentials are and hold
//	       -> SetClass, SetNamespace   under which ceiling
//	       -> SetRevocation            the emergency brake
//	       -> SetPeppers               how values are keyed
//	request -> Verify(Token)           is this value good, and whose is it?
//	        -> VerifyUse(UID, version) is what was issued for it still good?
//
// Everything that does not depend on the request is worked out when something
// is written. What is left for Verify is the digest, one look-up in a table of
// digests for each pepper in use, and comparisons: it takes no lock, allocates
// nothing, and costs the same for values that are known and that are not.
//
// Whatever is missing, unknown or unreadable means refused: a class or a
// namespace not seen yet, a network that does not parse, a client address that
// was not handed in. The one exception is deliberate: a record that is refused,
// for its seal or for its epoch, leaves the last good one in force.
//
// The package is pure. It has no clock, no client, no logger and no randomness.
package authn
