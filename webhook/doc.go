// Package webhook is admission: it says no before anything is stored. What is
// valid it takes from internal/lifecycle; its own part is what needs a look at
// the cluster, or at who is asking.
//
// # Paths
//
//	/mutate-mintmark-dev-v1alpha1-servicetoken     writes the default class and who asked, into new and
//	/mutate-mintmark-dev-v1alpha1-apikey           changed credentials
//	/mutate-mintmark-dev-v1alpha1-actor            writes who revoked, and can refuse nothing
//	/validate-mintmark-dev-v1alpha1-servicetoken   the class's ceiling, and whether the author may hand out what
//	/validate-mintmark-dev-v1alpha1-apikey         the change adds
//	/validate-mintmark-dev-v1alpha1-credentialclass
//	/validate-mintmark-dev-v1alpha1-accessrole     what the role bundles anew
//	/validate-mintmark-dev-v1alpha1-accesspolicy   compiles the expressions
//	/validate-mintmark-dev-v1alpha1-trustedissuer  compiles its expressions, and what its tokens can get anew
//
// config/webhook says when the API server calls which of them.
//
// # Who may hand out what
//
// Whoever writes a credential hands out what it holds, be it to themselves. So
// the API server is asked, by SubjectAccessReview, whether the author may, and
// only about what the change adds: grants made before stay as they are,
// whoever made them. In the namespace of the credential, and for a class in the
// whole cluster (a Role in one namespace cannot allow it):
//
//	a permission             verb grant on permissions.mintmark.dev, unnamed (everything), or named by
//	                         the permission or by a wildcard that covers it
//	admin                    the same, unnamed or by the name "admin"; no wildcard covers it
//	a role                   verb use on accessroles.mintmark.dev
//	the class                verb use on credentialclasses.mintmark.dev
//	workloads to restart     verb patch on them; on all of their kinds where selector or consumers chooses them
//	a rule of a class        grant on its permissions, on what is no longer taken out by except, and by
//	                         the names "admin", "external" and "adoption" on these
//	a permission of a role   grant on it
//	the ceiling of an issuer grant on its permissions, use on its roles
//
// Some changes name no permission and yet give everything the credential holds
// to somebody new, or for longer, or in more places. Then everything is asked
// for again: a digest added to external (a new holder), a Secret of another
// name, Adopt (a value made elsewhere), networks, audiences or an end that grew
// wider or later, attributes (policies go by them), and what brings a revoked
// credential back. A class rule is asked for again where its selector, its
// place among the rules, its attributes or its maxTTL lets it reach further, and
// the ceiling of a TrustedIssuer where it lets in others than before. An
// AccessPolicy hands out nothing, and nobody is asked.
//
// Not asked: ttl, rotation, template and rateLimit, which the class bounds or
// which reach nobody new; changes by the controller; deletion, for which there
// is no webhook.
//
// # Failing
//
// Every error refuses. Revocation alone is never in the way of a failure: an
// update that does nothing but revoke is not sent to what fails closed, by the
// matchConditions of config/webhook. A class may be written while no webhook
// answers by whoever may grant everything in the cluster, for that author has
// nothing to be asked, and the installation itself writes classes before the
// controller runs.
package webhook
