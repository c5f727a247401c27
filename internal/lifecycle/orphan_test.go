package lifecycle

import (
	"strings"
	"testing"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// TestAVersionThatMayHaveBeenReadIsNotEndedAsNeverDelivered: the controller that committed
// it has died, and the Secret does not say any more what it had written there.
func TestAVersionThatMayHaveBeenReadIsNotEndedAsNeverDelivered(t *testing.T) {
	for what, tc := range map[string]struct {
		secret Secret
		read   bool
	}{
		"the Secret is gone":                       {Secret{}, true},
		"the Secret was written over":              {Secret{Exists: true, Ours: true, HasCurrent: true}, true},
		"the Secret carries the version before it": {Secret{Exists: true, Ours: true, HasCurrent: true, Current: 1}, false},
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t, &v1alpha1.CredentialSpec{Permissions: []v1alpha1.Permission{"api:read"}})
			w.command([]string{"run"})
			before := w.o.Status.DeepCopy()
			pending := *before.Versions[0].DeepCopy()
			pending.Version, pending.State, pending.Digest = 2, v1alpha1.VersionPending, strings.Repeat("ab", 32)
			pending.Created, pending.Activated = *stamp(w.now), nil
			before.Versions = append([]v1alpha1.CredentialVersion{pending}, before.Versions...)
			w.o.Status, w.o.Held, w.o.Secret = before, 0, tc.secret
			w.now = w.now.Add(2 * lostAfter)
			d := Plan(&w.o, w.now)
			if d.Mint == nil || d.Mint.Version != 3 {
				t.Fatalf("the plan mints %+v, want version 3", d.Mint)
			}
			for _, v := range d.Status.Versions {
				if v.Version == 2 && (v.Superseded != nil) != tc.read {
					t.Errorf("version 2 is %s, superseded %v; read, perhaps: %v", v.State, v.Superseded, tc.read)
				}
			}
		})
	}
}
