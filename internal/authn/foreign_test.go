package authn

import (
	"slices"
	"testing"

	"github.com/mintmark-dev/mintmark/internal/authz"
)

func TestSomebodyForeignHoldsWhatTheCeilingAllows(t *testing.T) {
	x := New(Config{})
	x.SetRole("deployer", []string{"deploy:*", "cluster:admin"})
	holder := func() *Principal {
		return x.Foreign(Foreign{
			Name: "github", UID: "u", Version: 7, Subject: "issuer:github:repo", Permissions: []string{"api:read", "secret:read", "*"},
			Roles: []string{"deployer", "nobody-knows"}, Ceiling: authz.NewSet([]string{"api:read", "deploy:write"}),
			Attributes: map[string]string{"team": "payments"}, JWT: JWT{Audiences: []string{"https://api.example.com"}},
		})
	}
	p := holder()
	if p.Subject != "issuer:github:repo" || p.UID != "u" || p.Version != 7 || p.Admin || p.Kind != "" || p.Attributes["team"] != "payments" || p.Rate != nil {
		t.Errorf("the principal is %+v", p)
	}
	if !slices.Equal(p.Permissions, []string{"api:read", "deploy:write"}) || !slices.Equal(p.JWT.Audiences, []string{"https://api.example.com"}) {
		t.Errorf("permissions are %v, audiences %v", p.Permissions, p.JWT.Audiences)
	}
	for permission, want := range map[string]bool{"api:read": true, "deploy:write": true, "deploy:read": false, "secret:read": false, "cluster:admin": false, "": false} {
		if p.Allows(permission) != want {
			t.Errorf("%s: allowed is %t", permission, !want)
		}
	}

	narrow := func() *Principal {
		return x.Foreign(Foreign{Subject: "issuer:a:b", Roles: []string{"deployer"}, Ceiling: authz.NewSet([]string{"*"})})
	}
	before := narrow()
	x.SetRole("deployer", []string{"deploy:read"})
	if after := narrow(); !before.Allows("deploy:write") || after.Allows("deploy:write") || !after.Allows("deploy:read") {
		t.Error("a role is not taken as it is now")
	}
	x.DeleteRole("deployer")
	if narrow().Allows("deploy:read") {
		t.Error("a role that is gone still counts")
	}
	if x.Foreign(Foreign{Subject: "issuer:a:b", Permissions: []string{"*"}}).Allows("api:read") {
		t.Error("without a ceiling something is allowed")
	}
}
