package authn

import (
	"slices"
	"strings"
	"time"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authz"
)

// Principal is who presented a good credential. It does not change once made
// and is shared between requests.
type Principal struct {
	// Identity is which credential it is; never nil in a verdict.
	*Identity
	// Version of the value presented, or of the one a JWT was issued for.
	Version int64
	// Prefix is the public part of that value, where it is known.
	Prefix string
	// Expires is when the version is accepted no longer; zero is never.
	Expires time.Time
	// Grant is what the credential may do; never nil in a verdict.
	*Grant
}

// Identity is what never changes of a credential. All its versions share one.
type Identity struct {
	// UID of the object: the credential's identity, and its id in every API.
	UID       string
	Kind      v1alpha1.Kind
	Namespace string
	Name      string
	// Subject names the credential as "kind:namespace:name", for example
	// "servicetoken:payments:ci-deploy". A credential deleted and made again
	// has the same subject and another UID.
	Subject string

	created  int64 // Unix seconds
	declared bool  // by its SHA-256: spec.external never comes or goes
}

// Grant is what a credential may do under the ceiling that holds now. Many
// credentials share one.
type Grant struct {
	// Class is the name of the CredentialClass.
	Class string
	// Permissions in force, sorted, wildcards as they are; of an admin "*". A
	// wildcard the ceiling has a hole in is left out, for no pattern says what
	// remains of it: [Grant.Allows] goes on allowing that.
	Permissions []string
	// Roles are names of AccessRoles, sorted.
	Roles []string
	// Admin credentials hold every permission.
	Admin bool
	JWT   JWT

	sealed, live *terms
	ceiling      *ceiling
}

// JWT shapes the tokens issued for a credential.
type JWT struct {
	// TTL of the tokens; zero leaves it to the issuer.
	TTL time.Duration
	// Audiences the tokens may be for. None: the issuer itself alone.
	Audiences []string
	// Algorithm to sign with (RFC 7518); empty leaves it to the issuer.
	Algorithm string
}

// Allows tells whether the credential holds a permission now: sealed, still
// wanted, and under the ceiling. It does not allocate. A Grant that comes from
// no index allows nothing.
func (g *Grant) Allows(permission string) bool {
	if g == nil || g.ceiling == nil || permission == "" {
		return false
	}
	if g.Admin {
		return true
	}
	admin := g.ceiling.Admin()
	return g.sealed.covers(permission, admin) && (g.live == g.sealed || g.live.covers(permission, admin)) &&
		g.ceiling.AllowsUse(permission)
}

// newGrant narrows what was sealed by what is wanted now and by the ceiling. With
// no ceiling nothing is left.
func newGrant(class string, sealed, live *terms, c *ceiling) *Grant {
	g := &Grant{Class: class, sealed: sealed, live: live, ceiling: c}
	if c == nil {
		return g
	}
	g.Admin = sealed.admin && live.admin && c.Admin()
	g.Permissions = g.effective()
	g.Roles = slices.DeleteFunc(slices.Clone(sealed.roles), func(r string) bool { return !slices.Contains(live.roles, r) })
	g.JWT = sealed.jwt
	if live.jwt.TTL > 0 && (g.JWT.TTL == 0 || live.jwt.TTL < g.JWT.TTL) {
		g.JWT.TTL = live.jwt.TTL
	}
	if len(live.jwt.Audiences) > 0 {
		g.JWT.Audiences = slices.DeleteFunc(slices.Clone(sealed.jwt.Audiences), func(a string) bool {
			return !slices.Contains(live.jwt.Audiences, a)
		})
	}
	return g
}

// effective is the intersection of three sets of patterns. Of two patterns that
// overlap one covers the other, so what two sets have in common are the patterns
// of each that the other covers.
func (g *Grant) effective() []string {
	if g.Admin {
		return []string{authz.Everything}
	}
	common := intersect(g.sealed.patterns(g.ceiling.Admin()), g.live.patterns(g.ceiling.Admin()))
	common = intersect(common, g.ceiling.permissions)
	return slices.DeleteFunc(common.Strings(), func(p string) bool { return !g.ceiling.AllowsGrant(p) })
}

func intersect(a, b authz.Set) authz.Set {
	var common []string
	for _, p := range a.Strings() {
		if b.Allows(p) {
			common = append(common, p)
		}
	}
	for _, p := range b.Strings() {
		if a.Allows(p) {
			common = append(common, p)
		}
	}
	return authz.NewSet(common)
}

func newIdentity(live Live) *Identity {
	// One string holds them all.
	text := live.UID + strings.ToLower(string(live.Kind)) + ":" + live.Namespace + ":" + live.Name
	nameAt := len(text) - len(live.Name)
	return &Identity{
		UID: text[:len(live.UID)], Kind: v1alpha1.Kind(intern(string(live.Kind))), Namespace: text[nameAt-1-len(live.Namespace) : nameAt-1],
		Name: text[nameAt:], Subject: text[len(live.UID):], created: live.Created.Unix(), declared: live.External != nil,
	}
}

// older tells whether i keeps a digest that both claim: what was minted before what
// is declared, for the digest of a value can be known to others; then by age.
func (i *Identity) older(other *Identity) bool {
	if i.declared != other.declared {
		return other.declared
	}
	if i.created != other.created {
		return i.created < other.created
	}
	return i.UID < other.UID
}
