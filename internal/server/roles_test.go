package server

import (
	"context"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authn"
)

// TestRolesAreFollowed: what an AccessRole says holds for its holders at once, and so do
// its changes and its end.
func TestRolesAreFollowed(t *testing.T) {
	in := newInstallation(t)
	role := &v1alpha1.AccessRole{ObjectMeta: metav1.ObjectMeta{Name: in.namespace}, Spec: v1alpha1.AccessRoleSpec{Permissions: []v1alpha1.Permission{"audit:read"}}}
	in.create(role)
	t.Cleanup(func() { _ = in.client.Delete(context.WithoutCancel(t.Context()), role) })
	c := in.credential(func(token *v1alpha1.ServiceToken) { token.Spec.Roles = []string{role.Name} })
	c.record.Roles, c.record.Epoch = []string{role.Name}, c.record.Epoch+1
	c.write(c.record, in.pepper)
	r := in.startReady()
	may := func(permission string) bool {
		v := r.server.index.Verify(c.token, authn.Request{}, time.Now())
		return v.OK && v.Principal.Allows(permission)
	}
	if !may("api:read") || !may("audit:read") {
		t.Error("a role that was there at the start adds nothing")
	}
	role.Spec.Permissions = []v1alpha1.Permission{"release:*"}
	if err := in.client.Update(t.Context(), role); err != nil {
		t.Fatal(err)
	}
	eventually(t, soon, "the role is another", func() bool { return may("release:cut") && !may("audit:read") && may("api:read") })
	if err := in.client.Delete(t.Context(), role, client.GracePeriodSeconds(0)); err != nil {
		t.Fatal(err)
	}
	eventually(t, soon, "the role is gone", func() bool { return !may("release:cut") && may("api:read") })
}
