package authn

import (
	"slices"

	"github.com/mintmark-dev/mintmark/internal/authz"
)

// SetRole takes in an AccessRole, new or changed. Its permissions are in force at
// once for every credential whose record and live object both name it, under the
// ceiling of each.
func (x *Index) SetRole(name string, permissions []string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	set := authz.NewSet(cloneStrings(permissions))
	if held, ok := x.roles[name]; ok && slices.Equal(held.Strings(), set.Strings()) {
		return
	}
	x.roles[intern(name)] = set
	x.roleChanged(name)
}

// DeleteRole forgets an AccessRole. Who holds it has no more from it.
func (x *Index) DeleteRole(name string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if _, ok := x.roles[name]; !ok {
		return
	}
	delete(x.roles, name)
	x.roleChanged(name)
}

func (x *Index) roleChanged(name string) {
	x.publishRoles()
	x.grants.forget(func(g *Grant) bool { return slices.Contains(g.Roles, name) })
	x.rejudge(func(c *cohort) bool {
		grant := c.now.Load().grant
		return grant != nil && slices.Contains(grant.Roles, name)
	})
}
