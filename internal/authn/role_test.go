package authn_test

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

func TestRolesExpand(t *testing.T) {
	for name, test := range map[string]struct {
		spoil  func(f *fixture, x *authn.Index)
		want   []string
		denied []string
	}{
		"a role that exists adds its permissions": {
			func(_ *fixture, x *authn.Index) { x.SetRole("deployer", []string{"release:*", "audit:read"}) },
			[]string{"api:read", "audit:read", "deploy:*", "release:*"}, nil,
		},
		"a role that does not exist adds nothing": {
			func(*fixture, *authn.Index) {}, []string{"api:read", "deploy:*"}, []string{"release:cut"},
		},
		"a role that is deleted adds nothing more": {
			func(_ *fixture, x *authn.Index) {
				x.SetRole("deployer", []string{"release:*"})
				x.DeleteRole("deployer")
			},
			[]string{"api:read", "deploy:*"}, []string{"release:cut"},
		},
		"a role that is narrowed takes back at once": {
			func(_ *fixture, x *authn.Index) {
				x.SetRole("deployer", []string{"release:*", "audit:read"})
				x.SetRole("deployer", []string{"audit:read"})
			},
			[]string{"api:read", "audit:read", "deploy:*"}, []string{"release:cut"},
		},
		"a role that only the record names adds nothing": {
			func(f *fixture, x *authn.Index) {
				x.SetRole("deployer", []string{"release:*"})
				f.live.Roles = nil
				x.Apply(f.live, f.rec)
			},
			[]string{"api:read", "deploy:*"}, []string{"release:cut"},
		},
		"a role that only the live object names adds nothing": {
			func(f *fixture, x *authn.Index) {
				x.SetRole("admin", []string{"release:*"})
				f.live.Roles = append(f.live.Roles, "admin")
				x.Apply(f.live, f.rec)
			},
			[]string{"api:read", "deploy:*"}, []string{"release:cut"},
		},
		"a role adds nothing above the ceiling": {
			func(_ *fixture, x *authn.Index) {
				x.SetRole("deployer", []string{"mintmark:credentials", "audit:read"})
			},
			[]string{"api:read", "audit:read", "deploy:*"}, []string{"mintmark:credentials"},
		},
		"a wildcard of a role keeps what the ceiling leaves of it": {
			func(_ *fixture, x *authn.Index) { x.SetRole("deployer", []string{"*"}) },
			nil, []string{"mintmark:credentials"},
		},
		"a role makes nobody an admin": {
			func(_ *fixture, x *authn.Index) { x.SetRole("deployer", []string{"*"}) }, nil, []string{"mintmark:x"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.live.Roles, f.rec.Roles = []string{"deployer"}, []string{"deployer"}
			x := f.index()
			test.spoil(f, x)
			p := f.verify(x).Principal
			if p == nil {
				t.Fatal("refused")
			}
			if p.Admin {
				t.Error("an admin")
			}
			if diff := cmp.Diff(test.want, p.Permissions); test.want != nil && diff != "" {
				t.Error(diff)
			}
			for _, permission := range test.want {
				if !p.Allows(permission) {
					t.Errorf("%s is listed and not allowed", permission)
				}
			}
			for _, permission := range test.denied {
				if p.Allows(permission) || slices.Contains(p.Permissions, permission) {
					t.Errorf("allows %s", permission)
				}
			}
		})
	}
}

// TestARoleHoldsWhicheverCameFirst: the role, its holders, or what changes them.
func TestARoleHoldsWhicheverCameFirst(t *testing.T) {
	before, after := newFixture(t), newFixture(t)
	before.live.Roles, before.rec.Roles = []string{"deployer"}, []string{"deployer"}
	after.live.Roles, after.rec.Roles = []string{"deployer"}, []string{"deployer"}
	after.live.UID, after.rec.UID, after.live.Name, after.rec.Name = "uid-2", "uid-2", "other", "other"
	x := before.index()
	x.SetRole("deployer", []string{"audit:read"})
	x.Apply(after.live, after.rec)
	for name, f := range map[string]*fixture{"before": before, "after": after} {
		if !f.verify(x).Principal.Allows("audit:read") {
			t.Errorf("what was applied %s the role has nothing of it", name)
		}
	}
	if err := x.SetClass("default", &v1alpha1.CredentialClassSpec{Rules: []v1alpha1.ClassRule{rule("api:*")}}); err != nil {
		t.Fatal(err)
	}
	if before.verify(x).Principal.Allows("audit:read") {
		t.Error("the ceiling has sunk, and the role is above it")
	}
}

func TestAttributesAreThoseOfBothSidesUnderTheCeiling(t *testing.T) {
	f := newFixture(t)
	f.rec.Attributes = map[string]string{"department": "payments", "tier": "1", "region": "eu", "sealed": "only"}
	f.live.Attributes = map[string]string{"department": "payments", "tier": "2", "region": "eu", "live": "only"}
	f.class.Rules[0].Attributes = []v1alpha1.AttributeRule{
		{Key: "department", Values: []v1alpha1.MetadataValue{"payments"}}, {Key: "tier"}, {Key: "region", Values: []v1alpha1.MetadataValue{"us"}},
	}
	x := f.index()
	if diff := cmp.Diff(map[string]string{"department": "payments"}, f.verify(x).Principal.Attributes); diff != "" {
		t.Error(diff)
	}
	f.class.Rules[0].Attributes = nil
	mustSetClass(t, x, "default", f.class)
	if diff := cmp.Diff(map[string]string{"department": "payments", "region": "eu"}, f.verify(x).Principal.Attributes); diff != "" {
		t.Error(diff)
	}
}

func TestTheNarrowerRateHolds(t *testing.T) {
	sealed := &credential.RecordRate{Requests: 100, PerMillis: 1000, Burst: 200}
	for name, test := range map[string]struct {
		sealed *credential.RecordRate
		live   *authn.Rate
		want   *authn.Rate
	}{
		"none is no limit":                    {nil, nil, nil},
		"the record's where the live is none": {sealed, nil, &authn.Rate{Requests: 100, Per: time.Second, Burst: 200}},
		"the live one where none is sealed":   {nil, &authn.Rate{Requests: 1, Per: time.Minute, Burst: 1}, &authn.Rate{Requests: 1, Per: time.Minute, Burst: 1}},
		"the slower":                          {sealed, &authn.Rate{Requests: 200, Per: time.Minute, Burst: 300}, &authn.Rate{Requests: 200, Per: time.Minute, Burst: 200}},
		"not the faster":                      {sealed, &authn.Rate{Requests: 1000, Per: time.Second, Burst: 20}, &authn.Rate{Requests: 100, Per: time.Second, Burst: 20}},
		"as large as they come": {
			sealed, &authn.Rate{Requests: 1e9, Per: 24 * time.Hour, Burst: 1e9}, &authn.Rate{Requests: 100, Per: time.Second, Burst: 200},
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.rec.Rate, f.live.Rate = test.sealed, test.live
			if diff := cmp.Diff(test.want, f.verify(f.index()).Principal.Rate); diff != "" {
				t.Error(diff)
			}
		})
	}
}
