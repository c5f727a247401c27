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
	// Slot tells which of the credential's values that is.
	Slot Slot
	// Expires is when the version is accepted no longer; zero is never.
	Expires time.Time
	// Grant is what the credential may do; never nil in a verdict.
	*Grant
}

// Slot is the place of a value among those of its credential.
type Slot uint8

const (
	// SlotNone is neither, for the version is not accepted any more, or not known.
	SlotNone Slot = iota
	// SlotCurrent is the value to use, one on its way into the Secret included.
	SlotCurrent
	// SlotPrevious has been superseded, and is in its overlap.
	SlotPrevious
)

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
	// Roles are names of AccessRoles, sorted. The permissions of those that exist
	// are in force as well.
	Roles []string
	// Admin credentials hold every permission.
	Admin bool
	JWT   JWT
	// Attributes, for policies: those sealed that the live object has with the same
	// value and the ceiling allows. It must not be changed.
	Attributes map[string]string
	// Rate is how often the credential may be used; nil is without limit.
	Rate *Rate

	permissions, roles string    // separated by spaces
	held               authz.Set // before the ceiling
	sealed, live       *terms
	ceiling            *ceiling
}

// Rate bounds how often a credential may be used: so many requests in each period,
// and so many at once.
type Rate struct {
	Requests int64
	Per      time.Duration
	Burst    int64
}

// narrower is the slower of two rates, with the lesser burst; nil is no limit.
func narrower(a, b *Rate) *Rate {
	switch {
	case a == nil:
		return b
	case b == nil || *a == *b:
		return a
	}
	slower := *a
	// As floating point, for the product of the integers can overflow.
	if float64(b.Requests)*float64(a.Per) < float64(a.Requests)*float64(b.Per) {
		slower = *b
	}
	slower.Burst = min(a.Burst, b.Burst)
	return &slower
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

// Allows tells whether the credential holds a permission now: sealed and still
// wanted, itself or by a role, and under the ceiling. It does not allocate. A Grant
// that comes from no index allows nothing.
func (g *Grant) Allows(permission string) bool {
	if g == nil || g.ceiling == nil || permission == "" {
		return false
	}
	return g.Admin || g.held.Allows(permission) && g.ceiling.AllowsUse(permission)
}

// PermissionList is the permissions, separated by spaces.
func (g *Grant) PermissionList() string {
	if g.permissions == "" {
		return strings.Join(g.Permissions, " ")
	}
	return g.permissions
}

// RoleList is the roles, separated by spaces.
func (g *Grant) RoleList() string {
	if g.roles == "" {
		return strings.Join(g.Roles, " ")
	}
	return g.roles
}

// newGrant narrows what was sealed by what is wanted now and by the ceiling. With
// no ceiling nothing is left. Roles are expanded as they are now; one that does not
// exist adds nothing.
func newGrant(class string, sealed, live *terms, c *ceiling, roles map[string]authz.Set) *Grant {
	g := &Grant{Class: class, sealed: sealed, live: live, ceiling: c, Rate: narrower(sealed.rate, live.rate)}
	if c == nil {
		return g
	}
	g.Admin = sealed.admin && live.admin && c.Admin()
	g.Roles = slices.DeleteFunc(slices.Clone(sealed.roles), func(r string) bool { return !slices.Contains(live.roles, r) })
	g.held = intersect(sealed.patterns(c.Admin()), live.patterns(c.Admin()))
	if expanded := expand(g.Roles, roles); len(expanded) > 0 {
		g.held = authz.NewSet(append(expanded, g.held.Strings()...))
	}
	g.Permissions = g.effective()
	g.permissions, g.roles = strings.Join(g.Permissions, " "), strings.Join(g.Roles, " ")
	g.Attributes = attributes(sealed.attributes, live.attributes, c)
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

// effective is what is held under the ceiling, as patterns.
func (g *Grant) effective() []string {
	if g.Admin {
		return []string{authz.Everything}
	}
	common := intersect(g.held, g.ceiling.permissions)
	return slices.DeleteFunc(common.Strings(), func(p string) bool { return !g.ceiling.AllowsGrant(p) })
}

// expand gives the permissions of the roles that exist.
func expand(names []string, roles map[string]authz.Set) []string {
	var permissions []string
	for _, name := range names {
		permissions = append(permissions, roles[name].Strings()...)
	}
	return permissions
}

// attributes are those of one value on both sides, under the ceiling.
func attributes(sealed, live map[string]string, c *ceiling) map[string]string {
	both := make(map[string]string, len(sealed))
	for key, value := range sealed {
		if wanted, ok := live[key]; ok && wanted == value && c.AllowsAttribute(key, value) {
			both[key] = value
		}
	}
	if len(both) == 0 {
		return nil
	}
	return both
}

// intersect is what two sets have in common. Of two patterns that overlap one
// covers the other, so it is the patterns of each that the other covers.
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
