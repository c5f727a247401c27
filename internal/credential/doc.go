// Package credential is the cryptographic core: the formats of the values, how
// they are made, parsed and digested, and the sealed record by which servers
// verify them.
//
// The package is pure. It has no clock, no client and no logger, and the source
// of randomness is handed to it.
//
// A value's way through it:
//
//	Format.Mint(rand)  -> Token            made, in memory only
//	Token.Inner()      -> SHA-256(value)   what an external credential declares
//	Pepper.Digest(...) -> Digest           HMAC-SHA-256(pepper, inner): stored
//	Record.Seal(...)   -> record, seal     what servers trust of a status
//
// and back, at a server:
//
//	Parse(presented)   -> Token            garbage is refused before hashing
//	Pepper.Digest(...) -> the index's key
package credential
