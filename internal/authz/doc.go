// Package authz decides what a credential may do, and what may be handed out
// under a class.
//
// A permission is a name ("api:read"); a pattern is a permission or a wildcard
// over permissions ("api:*", "*"). [Covers] and [Overlaps] relate patterns to
// each other, and everything else follows from these two:
//
//   - [Set] holds the patterns of a credential and answers for one permission
//     on the path of every request, without allocating.
//   - [Ceiling] is the limit a class sets for the namespaces one of its rules
//     selects ([SelectRule]). It holds twice: when a permission is handed out
//     ([Ceiling.AllowsGrant]) and again whenever it is used
//     ([Ceiling.AllowsUse]), so that lowering a ceiling narrows credentials
//     made before.
//   - [Added] and [Covering] are what admission asks the API server about.
//
// Whatever is empty, absent or malformed is not allowed. The package is pure:
// no client, clock, logger or randomness. Its values do not change once made
// and may be used by any number of goroutines at once.
package authz
