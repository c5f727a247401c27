package authn_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

// revokedWhole is a spec.revoked of the whole credential, and its digest.
func revokedWhole(reason string) (*v1alpha1.Revoked, string) {
	r := &v1alpha1.Revoked{Reason: reason}
	return r, credential.RevokedDigest(r)
}

func TestVerify(t *testing.T) {
	otherTeam := &metav1.LabelSelector{MatchLabels: map[string]string{"team": "b"}}
	for sentence, test := range map[string]struct {
		spoil func(*fixture)
		want  authn.Reason
	}{
		"a good value is accepted": {func(*fixture) {}, authn.ReasonAccepted},
		"a value that nobody has is unknown": {func(f *fixture) {
			f.present = mint(f.t, v1alpha1.KindServiceToken)
		}, authn.ReasonUnknown},
		"the zero token is malformed": {func(f *fixture) { f.present = credential.Token{} }, authn.ReasonMalformed},
		"a value of another system is malformed where no class has a shape for it": {func(f *fixture) {
			f.present = parse(f.t, "ghp_abcdefghijklmnopqrstuvwxyz0123456789")
		}, authn.ReasonMalformed},
		"a credential without a record is unknown": {func(f *fixture) { f.rec = nil }, authn.ReasonUnknown},

		"a pending version is accepted": {func(f *fixture) {
			f.present = f.addVersion(2, v1alpha1.VersionPending)
		}, authn.ReasonAccepted},
		"a superseded version is accepted": {func(f *fixture) {
			f.rec.Versions[0].State = v1alpha1.VersionSuperseded
		}, authn.ReasonAccepted},
		"a sealed version in a state that is not accepted is retired": {func(f *fixture) {
			f.rec.Versions[0].State = v1alpha1.VersionRetired
		}, authn.ReasonRetired},
		"a sealed version in no state is retired": {func(f *fixture) { f.rec.Versions[0].State = "" }, authn.ReasonRetired},
		"a version that was sealed revoked is revoked": {func(f *fixture) {
			f.rec.Versions[0].State = v1alpha1.VersionRevoked
		}, authn.ReasonRevoked},
		"a version taken out of the record is unknown": {func(f *fixture) { f.rec.Versions = nil }, authn.ReasonUnknown},

		"a version is accepted in the second before it expires": {func(f *fixture) {
			f.rec.Versions[0].Expires = f.now.Unix() + 1
			f.now = f.now.Add(999 * time.Millisecond)
		}, authn.ReasonAccepted},
		"a version is expired in the second it expires": {func(f *fixture) {
			f.rec.Versions[0].Expires = f.now.Unix()
		}, authn.ReasonExpired},
		"an expiry before 1970 is no never": {func(f *fixture) { f.rec.Versions[0].Expires = -1 }, authn.ReasonExpired},
		"the live expiry ends what was sealed to live longer": {func(f *fixture) {
			f.rec.Versions[0].Expires = f.now.Unix() + 3600
			f.live.ExpiresAt = f.now
		}, authn.ReasonExpired},
		"a later live expiry does not lengthen the sealed one": {func(f *fixture) {
			f.rec.Versions[0].Expires = f.now.Unix()
			f.live.ExpiresAt = f.now.Add(time.Hour)
		}, authn.ReasonExpired},
		"a live expiry at the beginning of 1970 is no never": {func(f *fixture) {
			f.live.ExpiresAt = time.Unix(0, 0)
		}, authn.ReasonExpired},

		"a credential being deleted is refused": {func(f *fixture) { f.live.Deleting = true }, authn.ReasonDeleted},
		"spec.revoked takes every version before it is sealed": {func(f *fixture) {
			f.live.Revoked, _ = revokedWhole("leak")
		}, authn.ReasonRevoked},
		"spec.revoked takes versions above an earlier revocation": {func(f *fixture) {
			f.present = f.addVersion(2, v1alpha1.VersionActive)
			f.live.Revoked, _ = revokedWhole("again")
			_, f.rec.RevokedSpec = revokedWhole("leak")
			f.rec.RevokedThrough = 1
		}, authn.ReasonRevoked},
		"a version made after the revocation was sealed is accepted": {func(f *fixture) {
			f.present = f.addVersion(2, v1alpha1.VersionActive)
			f.live.Revoked, f.rec.RevokedSpec = revokedWhole("leak")
			f.rec.RevokedThrough = 1
		}, authn.ReasonAccepted},
		"a version up to the sealed revocation is revoked, sealed or not": {func(f *fixture) {
			f.addVersion(2, v1alpha1.VersionActive)
			f.live.Revoked, f.rec.RevokedSpec = revokedWhole("leak")
			f.rec.RevokedThrough = 1
		}, authn.ReasonRevoked},
		"a sealed revocation holds without spec.revoked": {func(f *fixture) { f.rec.RevokedThrough = 1 }, authn.ReasonRevoked},
		"a version named in spec.revoked is revoked": {func(f *fixture) {
			f.live.Revoked = &v1alpha1.Revoked{Versions: []int64{3, 1}, Reason: "leak"}
		}, authn.ReasonRevoked},
		"a version not named in spec.revoked is accepted": {func(f *fixture) {
			f.live.Revoked = &v1alpha1.Revoked{Versions: []int64{2}, Reason: "leak"}
		}, authn.ReasonAccepted},
		"a version sealed as revoked one by one is revoked": {func(f *fixture) {
			f.rec.RevokedVersions = []int64{1}
		}, authn.ReasonRevoked},

		"without its class a credential is refused":             {func(f *fixture) { f.class = nil }, authn.ReasonClass},
		"under another class than the one sealed it is refused": {func(f *fixture) { f.rec.Class = "other" }, authn.ReasonClass},
		"a class not pinned yet is no other class":              {func(f *fixture) { f.setClassName("") }, authn.ReasonAccepted},
		"a class whose rules select other namespaces refuses": {func(f *fixture) {
			f.class.Rules[0].NamespaceSelector = otherTeam
		}, authn.ReasonClass},
		"a class without rules refuses": {func(f *fixture) { f.class.Rules = nil }, authn.ReasonClass},
		"a namespace not seen yet is refused where its labels matter": {func(f *fixture) {
			f.labels = nil
			f.class.Rules[0].NamespaceSelector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
				{Key: "team", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"b"}},
			}}
		}, authn.ReasonClass},
		"a namespace not seen yet will do where its labels do not matter": {func(f *fixture) { f.labels = nil }, authn.ReasonAccepted},
		"a rule that cannot be read refuses": {func(f *fixture) {
			f.class.Rules = slices.Insert(f.class.Rules, 0, v1alpha1.ClassRule{NamespaceSelector: &metav1.LabelSelector{
				MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "team", Operator: "Like"}},
			}})
		}, authn.ReasonClass},

		"an address within the sealed network is accepted": {func(f *fixture) {
			f.rec.CIDRs, f.req.IP = []string{"10.0.0.0/8", "2001:db8::/32"}, netip.MustParseAddr("2001:db8::1%eth0")
		}, authn.ReasonAccepted},
		"an IPv4 address in IPv6 form is the IPv4 address": {func(f *fixture) {
			f.rec.CIDRs, f.req.IP = []string{"10.0.0.0/8"}, netip.MustParseAddr("::ffff:10.1.2.3")
		}, authn.ReasonAccepted},
		"an address outside of it is refused": {func(f *fixture) {
			f.rec.CIDRs, f.req.IP = []string{"10.0.0.0/8"}, netip.MustParseAddr("11.0.0.1")
		}, authn.ReasonNetwork},
		"an address that is not known is refused": {func(f *fixture) { f.rec.CIDRs = []string{"0.0.0.0/0", "::/0"} }, authn.ReasonNetwork},
		"the live network narrows at once": {func(f *fixture) {
			f.live.CIDRs, f.req.IP = []string{"10.0.0.0/8"}, netip.MustParseAddr("11.0.0.1")
		}, authn.ReasonNetwork},
		"the live network does not widen": {func(f *fixture) {
			f.rec.CIDRs, f.live.CIDRs, f.req.IP = []string{"10.0.0.0/8"}, []string{"0.0.0.0/0"}, netip.MustParseAddr("11.0.0.1")
		}, authn.ReasonNetwork},
		"taking the live networks away does not widen": {func(f *fixture) {
			f.rec.CIDRs, f.req.IP = []string{"10.0.0.0/8"}, netip.MustParseAddr("11.0.0.1")
		}, authn.ReasonNetwork},
		"networks none of which can be read allow nothing": {func(f *fixture) {
			f.live.CIDRs, f.req.IP = []string{"everywhere"}, netip.MustParseAddr("11.0.0.1")
		}, authn.ReasonNetwork},

		"a digest of the wrong length matches nothing": {func(f *fixture) {
			f.rec.Versions[0].Digest = f.rec.Versions[0].Digest[:31]
		}, authn.ReasonUnknown},
		"a version of no number matches nothing": {func(f *fixture) { f.rec.Versions[0].Number = 0 }, authn.ReasonUnknown},
		"of two versions of one value the first counts, so a revoked one stays revoked": {func(f *fixture) {
			f.tokens[2] = f.tokens[1]
			f.addVersion(2, v1alpha1.VersionActive)
			f.rec.RevokedVersions = []int64{1}
		}, authn.ReasonRevoked},
		"a value under a pepper that is not there is unknown": {func(f *fixture) {
			f.peppers = credential.Peppers{pepper(f.t, "p2")}
		}, authn.ReasonUnknown},
		"a value under an older pepper is accepted": {func(f *fixture) {
			f.peppers = credential.Peppers{pepper(f.t, "p2"), f.pepper}
		}, authn.ReasonAccepted},
		"without peppers everything is unknown": {func(f *fixture) { f.peppers = nil }, authn.ReasonUnknown},
	} {
		t.Run(sentence, func(t *testing.T) {
			f := newFixture(t)
			test.spoil(f)
			expectReason(t, f.verify(f.index()), test.want)
		})
	}
}

func (f *fixture) setClassName(name string) {
	f.t.Helper()
	class := f.live.ClassName
	f.live.ClassName = name
	f.rec.Class = class
	f.setUpClass = class
}

func TestARefusalSaysWhoseCredentialItWas(t *testing.T) {
	f := newFixture(t)
	f.live.Deleting = true
	v := f.verify(f.index())
	if v.Principal != nil || v.Refused == nil || v.Refused.Subject != "servicetoken:payments:ci-deploy" || v.Refused.Version != 1 {
		t.Errorf("%+v", v)
	}
	f.present = mint(t, v1alpha1.KindServiceToken)
	if v := f.verify(f.index()); v.Refused != nil {
		t.Errorf("an unknown value is said to be %s", v.Refused.Subject)
	}
}

func TestPrincipal(t *testing.T) {
	f := newFixture(t)
	f.live.Roles = []string{"reader", "deployer"}
	f.rec.Roles = []string{"deployer", "reader", "auditor"}
	f.rec.Versions[0].Expires = epoch.Add(time.Hour).Unix()
	f.rec.JWT = credential.RecordJWT{TTLSeconds: 900, Audiences: []string{"https://a.example", "https://b.example"}, Algorithm: "ES256"}
	f.live.JWTTTL, f.live.JWTAudiences = 5*time.Minute, []string{"https://b.example", "https://c.example"}
	got := f.verify(f.index()).Principal
	want := &authn.Principal{
		Identity: &authn.Identity{
			UID: "uid-1", Kind: v1alpha1.KindServiceToken, Namespace: "payments", Name: "ci-deploy", Subject: "servicetoken:payments:ci-deploy",
		},
		Version: 1, Prefix: f.present.Prefix(), Slot: authn.SlotCurrent, Expires: epoch.Add(time.Hour),
		Grant: &authn.Grant{
			Class: "default", Permissions: []string{"api:read", "deploy:*"}, Roles: []string{"deployer", "reader"},
			JWT: authn.JWT{TTL: 5 * time.Minute, Audiences: []string{"https://b.example"}, Algorithm: "ES256"},
		},
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(authn.Grant{}, authn.Identity{})); diff != "" {
		t.Error(diff)
	}
}

func TestGrant(t *testing.T) {
	for sentence, test := range map[string]struct {
		sealed, live        []string // "admin" stands for an admin
		ceiling             v1alpha1.ClassRule
		permissions         []string
		allowed, notAllowed []string
		admin               bool
	}{
		"what is sealed and wanted is allowed": {
			sealed: []string{"api:read", "deploy:*"}, live: []string{"api:read", "deploy:*"}, ceiling: rule("*"),
			permissions: []string{"api:read", "deploy:*"}, allowed: []string{"api:read", "deploy:write"}, notAllowed: []string{"api:write", "deploy", ""},
		},
		"what is not wanted any more is not allowed": {
			sealed: []string{"api:read", "deploy:*"}, live: []string{"api:read"}, ceiling: rule("*"),
			permissions: []string{"api:read"}, allowed: []string{"api:read"}, notAllowed: []string{"deploy:write"},
		},
		"what is wanted and not sealed is not allowed": {
			sealed: []string{"api:read"}, live: []string{"*"}, ceiling: rule("*"),
			permissions: []string{"api:read"}, allowed: []string{"api:read"}, notAllowed: []string{"deploy:write"},
		},
		"a wildcard narrowed to a permission allows that": {
			sealed: []string{"deploy:*"}, live: []string{"deploy:write"}, ceiling: rule("*"),
			permissions: []string{"deploy:write"}, allowed: []string{"deploy:write"}, notAllowed: []string{"deploy:read"},
		},
		"the ceiling narrows a wildcard": {
			sealed: []string{"*"}, live: []string{"*"}, ceiling: rule("deploy:*", "api:read"),
			permissions: []string{"api:read", "deploy:*"}, allowed: []string{"deploy:x", "api:read"}, notAllowed: []string{"api:write"},
		},
		"a wildcard with a hole is not listed, and what is left of it is allowed": {
			sealed: []string{"*", "api:read"}, live: []string{"*", "api:read"},
			ceiling:     v1alpha1.ClassRule{Permissions: []v1alpha1.Permission{"*"}, Except: []v1alpha1.Permission{"mintmark:*"}},
			permissions: []string{"api:read"}, allowed: []string{"deploy:x"}, notAllowed: []string{"mintmark:tokens"},
		},
		"an admin holds everything": {
			sealed: []string{"admin"}, live: []string{"admin"}, ceiling: v1alpha1.ClassRule{Admin: true},
			permissions: []string{"*"}, allowed: []string{"mintmark:tokens", "x"}, notAllowed: []string{""}, admin: true,
		},
		"an admin where the ceiling allows none holds nothing": {
			sealed: []string{"admin"}, live: []string{"admin"}, ceiling: rule("*"), notAllowed: []string{"x"},
		},
		"an admin no longer wanted holds what is wanted, under the ceiling": {
			sealed: []string{"admin"}, live: []string{"api:read", "deploy:x"}, ceiling: v1alpha1.ClassRule{Permissions: []v1alpha1.Permission{"api:*"}, Admin: true},
			permissions: []string{"api:read"}, allowed: []string{"api:read"}, notAllowed: []string{"api:write", "deploy:x"},
		},
		"an admin wanted and not sealed holds what is sealed": {
			sealed: []string{"api:read"}, live: []string{"admin"}, ceiling: v1alpha1.ClassRule{Permissions: []v1alpha1.Permission{"*"}, Admin: true},
			permissions: []string{"api:read"}, allowed: []string{"api:read"}, notAllowed: []string{"api:write"},
		},
		"an admin wanted, not sealed and not allowed holds nothing": {
			sealed: []string{"api:read"}, live: []string{"admin"}, ceiling: rule("*"), notAllowed: []string{"api:read"},
		},
	} {
		t.Run(sentence, func(t *testing.T) {
			f := newFixture(t)
			f.class.Rules = []v1alpha1.ClassRule{test.ceiling}
			f.rec.Permissions, f.rec.Admin = test.sealed, slices.Equal(test.sealed, []string{"admin"})
			f.live.Permissions, f.live.Admin = test.live, slices.Equal(test.live, []string{"admin"})
			if f.rec.Admin {
				f.rec.Permissions = nil
			}
			if f.live.Admin {
				f.live.Permissions = nil
			}
			p := f.verify(f.index()).Principal
			if diff := cmp.Diff(test.permissions, p.Permissions, cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
			if p.Admin != test.admin {
				t.Errorf("admin: %v", p.Admin)
			}
			for _, permission := range test.allowed {
				if !p.Allows(permission) {
					t.Errorf("%q is not allowed", permission)
				}
			}
			for _, permission := range test.notAllowed {
				if p.Allows(permission) {
					t.Errorf("%q is allowed", permission)
				}
			}
		})
	}
}

func rule(permissions ...v1alpha1.Permission) v1alpha1.ClassRule {
	return v1alpha1.ClassRule{Permissions: permissions}
}

func TestAGrantThatComesFromNoIndexAllowsNothing(t *testing.T) {
	for _, p := range []*authn.Principal{{}, {Grant: &authn.Grant{Admin: true, Permissions: []string{"*"}}}} {
		if p.Allows("api:read") {
			t.Errorf("%+v allows", p)
		}
	}
}

func TestTheClassNarrowsLive(t *testing.T) {
	f := newFixture(t)
	x := f.index()
	if !f.verify(x).Principal.Allows("deploy:write") {
		t.Fatal("the fixture may not deploy")
	}
	mustSetClass(t, x, "default", &v1alpha1.CredentialClassSpec{Rules: []v1alpha1.ClassRule{rule("api:*")}})
	if p := f.verify(x).Principal; p.Allows("deploy:write") || !p.Allows("api:read") {
		t.Errorf("under the lowered ceiling: %v", p.Permissions)
	}
	x.DeleteClass("default")
	expectReason(t, f.verify(x), authn.ReasonClass)
	mustSetClass(t, x, "default", f.class)
	expectReason(t, f.verify(x), authn.ReasonAccepted)
}

func mustSetClass(t testing.TB, x *authn.Index, name string, spec *v1alpha1.CredentialClassSpec) {
	t.Helper()
	if err := x.SetClass(name, spec); err != nil {
		t.Fatal(err)
	}
}

func TestTheNamespaceChoosesTheCeilingLive(t *testing.T) {
	f := newFixture(t)
	f.class.Rules = []v1alpha1.ClassRule{
		{NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"tier": "prod"}}, Permissions: []v1alpha1.Permission{"api:read"}},
		{NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"team": "a"}}, Permissions: []v1alpha1.Permission{"*"}},
	}
	x := f.index()
	if !f.verify(x).Principal.Allows("deploy:write") {
		t.Fatal("the fixture may not deploy")
	}
	x.SetNamespace("payments", map[string]string{"team": "a", "tier": "prod"})
	if f.verify(x).Principal.Allows("deploy:write") {
		t.Error("the first rule that selects the namespace does not hold")
	}
	x.DeleteNamespace("payments")
	expectReason(t, f.verify(x), authn.ReasonClass)
}

func TestExternalCredentials(t *testing.T) {
	const foreign = "ghp_abcdefghijklmnopqrstuvwxyz0123456789"
	for sentence, test := range map[string]struct {
		spoil func(*fixture)
		want  authn.Reason
	}{
		"a declared value is accepted": {func(*fixture) {}, authn.ReasonAccepted},
		"one no longer declared is refused": {func(f *fixture) {
			f.live.External = []string{declared(mint(f.t, v1alpha1.KindAPIKey))}
		}, authn.ReasonUndeclared},
		"one of two is accepted": {func(f *fixture) {
			f.live.External = []string{declared(mint(f.t, v1alpha1.KindAPIKey)), declared(f.present)}
		}, authn.ReasonAccepted},
		"a declaration that cannot be read declares nothing": {func(f *fixture) {
			f.live.External = []string{strings.ToUpper(declared(f.present))}
		}, authn.ReasonUndeclared},
		"an empty declaration declares nothing":           {func(f *fixture) { f.live.External = []string{} }, authn.ReasonUndeclared},
		"a declaration taken away is no way to be minted": {func(f *fixture) { f.live.External = nil }, authn.ReasonUndeclared},
		"a minted credential that comes to be declared is refused": {func(f *fixture) {
			f.rec.External, f.present = false, mint(f.t, v1alpha1.KindServiceToken)
			f.rec.Versions = []credential.SealedVersion{sealedVersion(1, f.present, f.pepper, v1alpha1.VersionActive)}
		}, authn.ReasonUndeclared},
		"where the class no longer allows them they are refused": {func(f *fixture) { f.class.Rules[0].External = false }, authn.ReasonClass},
		"where the class has no shape for them they are refused": {func(f *fixture) { f.class.ExternalFormat = nil }, authn.ReasonMalformed},
		"a shape that cannot be read matches nothing": {func(f *fixture) {
			f.class.ExternalFormat.Pattern = `ghp_(`
		}, authn.ReasonMalformed},
		"a pattern cannot close the group around it": {func(f *fixture) {
			f.class.ExternalFormat.Pattern = `nothing)|(?:.*`
		}, authn.ReasonMalformed},
		"the whole value has to match": {func(f *fixture) { f.class.ExternalFormat.Pattern = `ghp_[a-z]+` }, authn.ReasonMalformed},
		"the least length counts":      {func(f *fixture) { f.class.ExternalFormat.MinLength = 41 }, authn.ReasonMalformed},
		"a value of our own format is declared like any other": {func(f *fixture) {
			f.present = mint(f.t, v1alpha1.KindAPIKey)
			f.live.External = []string{declared(f.present)}
			f.rec.Versions = []credential.SealedVersion{sealedVersion(1, f.present, f.pepper, v1alpha1.VersionActive)}
		}, authn.ReasonAccepted},
	} {
		t.Run(sentence, func(t *testing.T) {
			f := newFixture(t)
			f.present = parse(t, foreign)
			f.class.ExternalFormat = &v1alpha1.ExternalFormat{Pattern: `ghp_[a-z0-9]{36}`, MinLength: 40}
			f.class.Rules[0].External = true
			f.rec.External, f.live.External = true, []string{declared(f.present)}
			f.rec.Versions = []credential.SealedVersion{sealedVersion(1, f.present, f.pepper, v1alpha1.VersionActive)}
			test.spoil(f)
			expectReason(t, f.verify(f.index()), test.want)
		})
	}
}

func TestAnExternalValueNeedsTheShapeOfItsOwnClass(t *testing.T) {
	f := newFixture(t)
	f.present = parse(t, "ghp_abcdefghijklmnopqrstuvwxyz0123456789")
	f.class.ExternalFormat = &v1alpha1.ExternalFormat{Pattern: `xoxb-.*`}
	f.class.Rules[0].External = true
	f.rec.External, f.live.External = true, []string{declared(f.present)}
	f.rec.Versions = []credential.SealedVersion{sealedVersion(1, f.present, f.pepper, v1alpha1.VersionActive)}
	x := f.index()
	mustSetClass(t, x, "github", &v1alpha1.CredentialClassSpec{ExternalFormat: &v1alpha1.ExternalFormat{Pattern: `ghp_.*`}})
	expectReason(t, f.verify(x), authn.ReasonMalformed)
	f.class.ExternalFormat = &v1alpha1.ExternalFormat{Pattern: `ghp_.*`}
	mustSetClass(t, x, "default", f.class)
	expectReason(t, f.verify(x), authn.ReasonAccepted)
}

func TestNewPeppersReachDeclaredValues(t *testing.T) {
	f := newFixture(t)
	f.rec.External, f.live.External = true, []string{declared(f.present)}
	f.class.Rules[0].External = true
	f.peppers = nil
	x := f.index()
	expectReason(t, f.verify(x), authn.ReasonUnknown)
	x.SetPeppers(credential.Peppers{f.pepper})
	expectReason(t, f.verify(x), authn.ReasonAccepted)
}

func TestClassErrorsNameTheFieldAndTheRemedy(t *testing.T) {
	x := authn.New(authn.Config{})
	err := x.SetClass("partner", &v1alpha1.CredentialClassSpec{
		ExternalFormat: &v1alpha1.ExternalFormat{Pattern: "("},
		Rules:          []v1alpha1.ClassRule{{NamespaceSelector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Like"}}}}},
	})
	for _, want := range []string{"CredentialClass partner", "spec.externalFormat.pattern", "spec.rules[0].namespaceSelector"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name %s", err, want)
		}
	}
}

func TestTheIndexRefusesEverythingAfterItsDeadline(t *testing.T) {
	f := newFixture(t)
	x := f.index()
	x.SetDeadline(f.now)
	expectReason(t, f.verify(x), authn.ReasonAccepted)
	expectReason(t, x.Verify(f.present, f.req, f.now.Add(1)), authn.ReasonStale)
	expectReason(t, x.VerifyUse("uid-1", 1, f.req, f.now.Add(1)), authn.ReasonStale)
	x.SetDeadline(time.Time{})
	expectReason(t, x.Verify(f.present, f.req, f.now.Add(time.Hour)), authn.ReasonAccepted)
}

func TestVerifyUse(t *testing.T) {
	for sentence, test := range map[string]struct {
		spoil   func(*fixture)
		version int64
		want    authn.Reason
	}{
		"a JWT of the current version passes":          {func(*fixture) {}, 1, authn.ReasonAccepted},
		"a JWT of a version retired meanwhile passes":  {func(f *fixture) { f.rec.Versions = nil; f.addVersion(2, v1alpha1.VersionActive) }, 1, authn.ReasonAccepted},
		"a JWT of a version not known here yet passes": {func(*fixture) {}, 2, authn.ReasonAccepted},
		"a JWT of a version still sealed as retired passes": {func(f *fixture) {
			f.rec.Versions[0].State = v1alpha1.VersionRetired
		}, 1, authn.ReasonAccepted},
		"a version that is none is refused":            {func(*fixture) {}, 0, authn.ReasonMalformed},
		"without a record it is refused":               {func(f *fixture) { f.rec = nil }, 1, authn.ReasonUnknown},
		"of a credential being deleted it is refused":  {func(f *fixture) { f.live.Deleting = true }, 1, authn.ReasonDeleted},
		"of a version sealed as revoked it is refused": {func(f *fixture) { f.rec.RevokedVersions = []int64{1}; f.rec.Versions = nil }, 1, authn.ReasonRevoked},
		"of a version whose state is revoked, it is refused": {func(f *fixture) {
			f.rec.Versions[0].State = v1alpha1.VersionRevoked
		}, 1, authn.ReasonRevoked},
		"of a version named in spec.revoked it is refused": {func(f *fixture) {
			f.live.Revoked = &v1alpha1.Revoked{Versions: []int64{1}, Reason: "leak"}
		}, 1, authn.ReasonRevoked},
		"while spec.revoked is not sealed it is refused": {func(f *fixture) { f.live.Revoked, _ = revokedWhole("leak") }, 2, authn.ReasonRevoked},
		"of a version up to the sealed revocation it is refused": {func(f *fixture) {
			f.rec.Versions, f.rec.RevokedThrough = nil, 4
		}, 4, authn.ReasonRevoked},
		"of a version after the sealed revocation it passes": {func(f *fixture) {
			f.live.Revoked, f.rec.RevokedSpec = revokedWhole("leak")
			f.rec.Versions, f.rec.RevokedThrough = nil, 4
		}, 5, authn.ReasonAccepted},
		"after the live expiry it is refused": {func(f *fixture) { f.live.ExpiresAt = f.now }, 7, authn.ReasonExpired},
		"after the version's expiry it is refused": {func(f *fixture) {
			f.rec.Versions[0].Expires = f.now.Unix()
		}, 1, authn.ReasonExpired},
		"without its class it is refused": {func(f *fixture) { f.class = nil }, 1, authn.ReasonClass},
		"from outside the networks it is refused": {func(f *fixture) {
			f.live.CIDRs, f.req.IP = []string{"10.0.0.0/8"}, netip.MustParseAddr("11.0.0.1")
		}, 9, authn.ReasonNetwork},
	} {
		t.Run(sentence, func(t *testing.T) {
			f := newFixture(t)
			test.spoil(f)
			v := f.index().VerifyUse("uid-1", test.version, f.req, f.now)
			expectReason(t, v, test.want)
			if v.OK && (v.Principal.Version != test.version || v.Principal.UID != "uid-1" || !v.Principal.Allows("deploy:write")) {
				t.Errorf("principal %+v", v.Principal)
			}
		})
	}
	f := newFixture(t)
	expectReason(t, f.index().VerifyUse("uid-2", 1, f.req, f.now), authn.ReasonUnknown)
}

func TestReasonsHaveCodesOfTheirOwn(t *testing.T) {
	seen := make(map[string]bool)
	for _, r := range authn.Reasons() {
		if r.Code() == "" || seen[r.Code()] {
			t.Errorf("reason %d has the code %q", r, r.Code())
		}
		seen[r.Code()] = true
	}
	if got := authn.Reason(200).String(); got != "Unknown" {
		t.Errorf("a reason that is none has the code %q", got)
	}
}

// TestAnotherClassIsNoWayOut: neither one that allows more, nor one that exists.
func TestAnotherClassIsNoWayOut(t *testing.T) {
	f := newFixture(t)
	x := f.index()
	mustSetClass(t, x, "other", f.class)
	f.live.ClassName = "other"
	x.Apply(f.live, f.rec)
	expectReason(t, f.verify(x), authn.ReasonClass)
	f.live.ClassName = "default"
	x.Apply(f.live, f.rec)
	expectReason(t, f.verify(x), authn.ReasonAccepted)
}
