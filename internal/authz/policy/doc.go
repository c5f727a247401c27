// Package policy decides by AccessPolicies: rules in CEL over who asks
// (subject), for what (resource), how (request), and when and from where
// (environment).
//
// Policies only narrow. They are asked once a credential is good and holds the
// permissions that are needed, and without any policy that is enough. Of the
// policies whose match conditions hold, a Deny policy one of whose rules is true
// refuses, whatever else allows; where there are Allow policies among them, one
// rule of one of them has to be true.
//
// Whatever cannot be told counts against the request: a match condition that
// cannot be evaluated holds, a Deny rule that cannot be evaluated is true, an
// Allow rule that cannot be evaluated is not. An optional field nobody knows
// (see [Input]) is not empty but absent, and to read it is such an error, unless
// the expression asks first: has(resource.owner), resource.?owner.orValue("").
//
// [Compile] checks an AccessPolicy against the types of the input, so that a
// misspelt field is an error there and not a refusal later, and against a bound
// on what it can cost. A [Set] of compiled policies decides ([Set.Decide])
// within such a bound as well: an expression, or a decision, that costs more is
// refused.
//
// The package is pure: no client, clock, logger or randomness. Compiled policies
// and sets do not change once made and may be used by any number of goroutines
// at once.
package policy
