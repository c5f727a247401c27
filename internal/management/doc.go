// Package management is the management API: credentials made, listed, rotated and
// revoked over REST, the emergency brake, and what is read of the audit log and of usage.
//
// It is one implementation behind two families of paths, /api/auth/... and /api/v1/...,
// and one table, [Operations], says of every operation where it is, what permission it
// takes and how it is recorded. Package server mounts that table behind its chain, which
// authenticates, limits and records; what arrives here has a [Caller] in its context, and
// no handler looks at a credential by itself.
//
// What is written is written as the server's own account, which may little: it makes and
// changes credentials that are declared by their SHA-256, of one class, in the namespaces
// where management is enabled, and asks for the rotation or the revocation of others there.
// Admission holds it to that. Beyond it, a caller hands out no more than it holds itself,
// and sees its own namespace alone unless it is an administrator.
//
// The value of a credential made here exists in memory until it is in the answer. It is in
// no log, no event and no object; who loses the answer rotates.
package management
