package lifecycle

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

func TestAChangeOfWhatIsGrantedIsOneTransition(t *testing.T) {
	for what, tc := range map[string]struct {
		change func(*v1alpha1.CredentialSpec)
		want   string // empty: it is none
	}{
		"a permission more":    {func(s *v1alpha1.CredentialSpec) { s.Permissions = append(s.Permissions, "deploy:write") }, "permissions +deploy:write"},
		"others":               {func(s *v1alpha1.CredentialSpec) { s.Permissions = []v1alpha1.Permission{"b:c", "a:b"} }, "permissions +a:b +b:c -api:read -api:write"},
		"in another order":     {func(s *v1alpha1.CredentialSpec) { slices.Reverse(s.Permissions) }, ""},
		"a role":               {func(s *v1alpha1.CredentialSpec) { s.Roles = []string{"deployer"} }, "roles +deployer"},
		"another time to live": {func(s *v1alpha1.CredentialSpec) { s.TTL = "30d" }, ""},
		"another description":  {func(s *v1alpha1.CredentialSpec) { s.Description = "x" }, ""},
		"a network less":       {func(s *v1alpha1.CredentialSpec) { s.AllowedCIDRs = nil }, "networks -10.0.0.0/8"},
		"a network more":       {func(s *v1alpha1.CredentialSpec) { s.AllowedCIDRs = append(s.AllowedCIDRs, "0.0.0.0/0") }, "networks +0.0.0.0/0"},
		"an attribute that is another, and one more": {func(s *v1alpha1.CredentialSpec) {
			s.Attributes = map[string]v1alpha1.MetadataValue{"tier": "gold", "region": "eu"}
		}, "attributes +region=eu +tier=gold -tier=free"},
		"an audience":                   {func(s *v1alpha1.CredentialSpec) { s.JWT = &v1alpha1.JWT{Audiences: []string{"billing"}} }, "audiences +billing"},
		"a rate":                        {func(s *v1alpha1.CredentialSpec) { s.RateLimit = &v1alpha1.RateLimit{Requests: 5} }, "rate without limit -> 5 in 1s, 5 at once"},
		"a JWT that lives longer":       {func(s *v1alpha1.CredentialSpec) { s.JWT = &v1alpha1.JWT{TTL: "5m"} }, ""},
		"a role instead of permissions": {func(s *v1alpha1.CredentialSpec) { s.Roles, s.Permissions = []string{"r"}, nil }, "permissions -api:read -api:write; roles +r"},
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t, &v1alpha1.CredentialSpec{
				Permissions: []v1alpha1.Permission{"api:read", "api:write"}, AllowedCIDRs: []v1alpha1.CIDR{"10.0.0.0/8"},
				Attributes: map[string]v1alpha1.MetadataValue{"tier": "free"},
			})
			w.command([]string{"run"})
			before := len(w.o.Status.Transitions)
			tc.change(w.o.Spec)
			w.o.Annotations = map[string]string{v1alpha1.AnnotationChangedBy: GrantMark(w.o.Spec) + " ann for bob"}
			w.command([]string{"run"})
			w.command([]string{"run"})
			var got []v1alpha1.Transition
			for _, tr := range w.o.Status.Transitions[before:] {
				got = append(got, v1alpha1.Transition{Type: tr.Type, Version: tr.Version, Reason: tr.Reason, Actor: tr.Actor})
			}
			var want []v1alpha1.Transition
			if tc.want != "" {
				want = []v1alpha1.Transition{{Type: TransitionChanged, Version: 1, Reason: tc.want, Actor: "ann for bob"}}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestWhoChangedAnotherThingDidNotChangeThis(t *testing.T) {
	w := newWorld(t, &v1alpha1.CredentialSpec{Permissions: []v1alpha1.Permission{"api:read"}})
	w.command([]string{"run"})
	// Admission wrote down the change before; of this one it knew nothing.
	w.o.Annotations = map[string]string{v1alpha1.AnnotationChangedBy: GrantMark(w.o.Spec) + " ann"}
	w.o.Spec.Permissions = []v1alpha1.Permission{"api:write"}
	w.command([]string{"run"})
	last := w.o.Status.Transitions[len(w.o.Status.Transitions)-1]
	if last.Type != TransitionChanged || last.Actor != "" {
		t.Errorf("the last transition is %+v", last)
	}
}
