package authn

import (
	"maps"
	"strings"
	"time"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authz"
)

// Foreign is somebody of whom no record here tells: the holder of another issuer's
// token, whom the caller has verified.
type Foreign struct {
	// Name and UID of the TrustedIssuer, and the version of what it decided by.
	Name, UID string
	Version   int64
	// Subject names the holder, and begins with "issuer:" and Name.
	Subject string
	// Expires is when the token is accepted no longer.
	Expires time.Time
	// Permissions and Roles the holder has. What the roles hold now comes to the
	// permissions.
	Permissions, Roles []string
	// Ceiling is the most of it that is in force.
	Ceiling    authz.Set
	Attributes map[string]string
	JWT        JWT
}

// Foreign makes the principal. It is never an admin, is bound to no network and has no
// rate of its own. It takes no lock; nothing of it is kept in the index.
func (x *Index) Foreign(f Foreign) *Principal {
	var roles map[string]authz.Set
	if bundles := x.bundles.Load(); bundles != nil {
		roles = *bundles
	}
	rule := &v1alpha1.ClassRule{}
	for _, p := range f.Ceiling.Strings() {
		rule.Permissions = append(rule.Permissions, v1alpha1.Permission(p))
	}
	limit := &ceiling{Ceiling: authz.NewCeiling(rule), permissions: f.Ceiling}
	own := draft{permissions: f.Permissions, roles: f.Roles, audiences: f.JWT.Audiences, attributes: f.Attributes, ttl: f.JWT.TTL}.compile()
	return &Principal{
		Identity: &Identity{UID: f.UID, Name: f.Name, Subject: strings.Clone(f.Subject)}, Version: f.Version, Expires: f.Expires,
		Grant: newGrant("", own, own, limit, roles),
	}
}

// publishRoles lets Foreign see the roles as they are now, before the credentials that
// hold them are worked out anew, which takes longer. The caller holds mu.
func (x *Index) publishRoles() {
	bundles := maps.Clone(x.roles)
	x.bundles.Store(&bundles)
}
