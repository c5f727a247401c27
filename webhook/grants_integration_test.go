package webhook_test

import (
	"context"
	"slices"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

func TestAuthorsHandOutNoMoreThanTheyMay(t *testing.T) {
	in := cluster(t)
	external := in.class(t, v1alpha1.ClassRule{Permissions: []v1alpha1.Permission{"*"}, Admin: true, External: true, Adoption: true})
	everything := v1alpha1.CredentialSpec{CredentialClassName: external.Name}
	spec := func(change func(*v1alpha1.CredentialSpec)) v1alpha1.CredentialSpec {
		s := everything
		change(&s)
		return s
	}
	for sentence, test := range map[string]struct {
		may    []rbacv1.PolicyRule
		create v1alpha1.CredentialSpec
		says   []string
	}{
		"everything may be handed out by who may grant unnamed": {
			may: []rbacv1.PolicyRule{grants(), uses("credentialclasses"), uses("accessroles")},
			create: spec(func(s *v1alpha1.CredentialSpec) {
				s.Permissions = []v1alpha1.Permission{"*", "deploy:*"}
				s.Roles = []string{"ops"}
			}),
		},
		"a permission may be granted by its name": {
			may:    []rbacv1.PolicyRule{grants("deploy:write"), uses("credentialclasses", external.Name)},
			create: spec(func(s *v1alpha1.CredentialSpec) { s.Permissions = []v1alpha1.Permission{"deploy:write"} }),
		},
		"a permission may be granted by a wildcard over it": {
			may: []rbacv1.PolicyRule{grants("deploy:*"), uses("credentialclasses")},
			create: spec(func(s *v1alpha1.CredentialSpec) {
				s.Permissions = []v1alpha1.Permission{"deploy:a:b", "deploy:*", "deploy:x:*"}
			}),
		},
		"one of several is missing": {
			may: []rbacv1.PolicyRule{grants("deploy:*"), uses("credentialclasses")},
			create: spec(func(s *v1alpha1.CredentialSpec) {
				s.Permissions = []v1alpha1.Permission{"deploy:write", "api:read", "api:write"}
			}),
			says: []string{`may not hand out spec.permissions "api:read", spec.permissions "api:write": leave it out`,
				`{apiGroups: [mintmark.dev], resources: [permissions], resourceNames: ["api:read", "api:write"], verbs: [grant]}`},
		},
		"a wildcard needs more than a permission under it": {
			may:    []rbacv1.PolicyRule{grants("deploy:write"), uses("credentialclasses")},
			create: spec(func(s *v1alpha1.CredentialSpec) { s.Permissions = []v1alpha1.Permission{"deploy:*"} }),
			says:   []string{`spec.permissions "deploy:*"`},
		},
		"admin is not among what the star covers": {
			may:    []rbacv1.PolicyRule{grants("*"), uses("credentialclasses")},
			create: spec(func(s *v1alpha1.CredentialSpec) { s.Admin = true }),
			says:   []string{"spec.admin", `resourceNames: ["admin"]`},
		},
		"admin may be granted by its name": {
			may:    []rbacv1.PolicyRule{grants("admin"), uses("credentialclasses")},
			create: spec(func(s *v1alpha1.CredentialSpec) { s.Admin = true }),
		},
		"a role has to be usable": {
			may:    []rbacv1.PolicyRule{grants(), uses("credentialclasses"), uses("accessroles", "viewer")},
			create: spec(func(s *v1alpha1.CredentialSpec) { s.Roles = []string{"viewer", "ops"} }),
			says:   []string{`spec.roles "ops"`, `resources: [accessroles], resourceNames: ["ops"], verbs: [use]`},
		},
		"the class has to be usable": {
			may:    []rbacv1.PolicyRule{grants()},
			create: everything,
			says:   []string{"spec.credentialClassName", "resources: [credentialclasses]", "verbs: [use]"},
		},
		"the default class has to be usable like any other": {
			may:    []rbacv1.PolicyRule{grants()},
			create: v1alpha1.CredentialSpec{},
			says:   []string{`spec.credentialClassName "default"`},
		},
		"a credential without permissions needs the class alone": {
			may:    []rbacv1.PolicyRule{uses("credentialclasses", external.Name)},
			create: everything,
		},
		"a declared digest asks for nothing of its own": {
			may: []rbacv1.PolicyRule{uses("credentialclasses"), grants("deploy:write")},
			create: spec(func(s *v1alpha1.CredentialSpec) {
				s.External = &v1alpha1.External{SHA256: []string{digestA}}
				s.Permissions = []v1alpha1.Permission{"deploy:write"}
			}),
		},
		"workloads to restart have to be the author's to change": {
			may: []rbacv1.PolicyRule{uses("credentialclasses"), patches("deployments", "mine")},
			create: spec(func(s *v1alpha1.CredentialSpec) {
				s.Restart = &v1alpha1.Restart{Workloads: []v1alpha1.WorkloadReference{
					{Kind: "Deployment", Name: "mine"}, {Kind: "Deployment", Name: "theirs"}, {Kind: "StatefulSet", Name: "mine"},
				}}
			}),
			says: []string{`spec.restart.workloads Deployment "theirs", spec.restart.workloads StatefulSet "mine"`,
				`{apiGroups: [apps], resources: [deployments], resourceNames: ["theirs"], verbs: [patch]}`, "[statefulsets]"},
		},
		"a selector needs every kind of workload": {
			may:    []rbacv1.PolicyRule{uses("credentialclasses"), patches("deployments"), patches("statefulsets")},
			create: spec(func(s *v1alpha1.CredentialSpec) { s.Restart = &v1alpha1.Restart{Selector: labelled("app", "x")} }),
			says:   []string{"over every DaemonSet", "{apiGroups: [apps], resources: [daemonsets], verbs: [patch]}"},
		},
		"consumers need every kind of workload": {
			may:    []rbacv1.PolicyRule{uses("credentialclasses"), patches("deployments"), patches("daemonsets")},
			create: spec(func(s *v1alpha1.CredentialSpec) { s.Restart = &v1alpha1.Restart{Consumers: true} }),
			says:   []string{"spec.restart.consumers over every StatefulSet", "{apiGroups: [apps], resources: [statefulsets], verbs: [patch]}"},
		},
		"a selector may be written by who may patch them all": {
			may:    []rbacv1.PolicyRule{uses("credentialclasses"), patches("deployments"), patches("statefulsets"), patches("daemonsets")},
			create: spec(func(s *v1alpha1.CredentialSpec) { s.Restart = &v1alpha1.Restart{Selector: labelled("app", "x")} }),
		},
	} {
		t.Run(sentence, func(t *testing.T) {
			user, namespace := userOf(t), in.namespace(t, nil)
			in.allow(t, user, namespace, append(test.may, edits())...)
			forbidden(t, in.as(t, user).Create(t.Context(), token(namespace, "ci", test.create)), test.says...)
			// The same rights in another namespace are worth nothing here.
			elsewhere := in.namespace(t, nil)
			in.allow(t, user, elsewhere, edits())
			err := in.as(t, user).Create(t.Context(), &v1alpha1.APIKey{
				ObjectMeta: token(elsewhere, "ci", test.create).ObjectMeta, Spec: test.create,
			})
			forbidden(t, err, "may not hand out", "Role in namespace "+elsewhere)
		})
	}
}

func TestUpdatesAreAskedForWhatTheyAdd(t *testing.T) {
	in := cluster(t)
	class := in.class(t, v1alpha1.ClassRule{Permissions: []v1alpha1.Permission{"*"}, Admin: true, External: true, Adoption: true})
	base := v1alpha1.CredentialSpec{
		CredentialClassName: class.Name,
		Permissions:         []v1alpha1.Permission{"deploy:write"},
		Roles:               []string{"ops"},
		AllowedCIDRs:        []v1alpha1.CIDR{"10.0.0.0/8"},
	}
	declared := base
	declared.External = &v1alpha1.External{SHA256: []string{digestA}}
	for sentence, test := range map[string]struct {
		from   v1alpha1.CredentialSpec
		may    []rbacv1.PolicyRule
		change func(*v1alpha1.CredentialSpec)
		says   []string
	}{
		"what was granted by somebody else stays": {
			from: base, change: func(s *v1alpha1.CredentialSpec) { s.Description = "changed"; s.TTL = "30d" },
		},
		"an added permission is asked for": {
			from: base, change: func(s *v1alpha1.CredentialSpec) { s.Permissions = append(s.Permissions, "api:read") },
			says: []string{`may not hand out spec.permissions "api:read": leave`},
		},
		"an added permission is enough to be allowed": {
			from: base, may: []rbacv1.PolicyRule{grants("api:read")},
			change: func(s *v1alpha1.CredentialSpec) { s.Permissions = append(s.Permissions, "api:read") },
		},
		"a permission widened to its wildcard is asked for": {
			from: base, change: func(s *v1alpha1.CredentialSpec) { s.Permissions = []v1alpha1.Permission{"deploy:*"} },
			says: []string{`"deploy:*"`},
		},
		"taking away is free": {
			from: base, change: func(s *v1alpha1.CredentialSpec) { s.Permissions, s.Roles = nil, nil },
		},
		"an added role is asked for": {
			from: base, change: func(s *v1alpha1.CredentialSpec) { s.Roles = append(s.Roles, "root") },
			says: []string{`spec.roles "root"`},
		},
		"admin is asked for": {
			from: base, change: func(s *v1alpha1.CredentialSpec) { s.Permissions, s.Roles, s.Admin = nil, nil, true },
			says: []string{"spec.admin"},
		},
		"wider networks hand out everything anew": {
			from: base, change: func(s *v1alpha1.CredentialSpec) { s.AllowedCIDRs = nil },
			says: []string{"spec.allowedCIDRs is wider", `"deploy:write"`, `"ops"`},
		},
		"narrower networks do not": {
			from: base, change: func(s *v1alpha1.CredentialSpec) { s.AllowedCIDRs = []v1alpha1.CIDR{"10.1.0.0/16"} },
		},
		"another digest hands out everything anew": {
			from: declared, change: func(s *v1alpha1.CredentialSpec) { s.External.SHA256 = []string{digestA, digestB} },
			says: []string{"new holder", `"deploy:write"`, `"ops"`, "credentialclasses"},
		},
		"another digest may be declared by who may grant everything": {
			from: declared, may: []rbacv1.PolicyRule{grants(), uses("accessroles"), uses("credentialclasses")},
			change: func(s *v1alpha1.CredentialSpec) { s.External.SHA256 = []string{digestB, digestA} },
		},
		"attributes hand out everything anew": {
			from: base, change: func(s *v1alpha1.CredentialSpec) {
				s.Attributes = map[string]v1alpha1.MetadataValue{"department": "board"}
			},
			says: []string{"spec.attributes"},
		},
		"revoking needs nothing": {
			from: base, change: func(s *v1alpha1.CredentialSpec) { s.Revoked = &v1alpha1.Revoked{Reason: "leaked"} },
		},
	} {
		t.Run(sentence, func(t *testing.T) {
			user, namespace := userOf(t), in.namespace(t, nil)
			in.allow(t, user, namespace, append(test.may, edits())...)
			credential := token(namespace, "ci", *test.from.DeepCopy())
			in.create(t, credential)
			test.change(&credential.Spec)
			forbidden(t, in.as(t, user).Update(t.Context(), credential), test.says...)
			if len(test.says) > 0 {
				// "Nothing lost": what is stored is what was there.
				stored := &v1alpha1.ServiceToken{}
				if err := in.admin.Get(t.Context(), client.ObjectKeyFromObject(credential), stored); err != nil || stored.Generation != 1 {
					t.Errorf("the credential was changed: %v, generation %d", err, stored.Generation)
				}
			}
		})
	}
}

func TestWhoBringsBackARevokedCredentialHandsItOut(t *testing.T) {
	in := cluster(t)
	user, namespace := userOf(t), in.namespace(t, nil)
	in.allow(t, user, namespace, edits())
	credential := token(namespace, "ci", v1alpha1.CredentialSpec{Permissions: []v1alpha1.Permission{"deploy:write"}})
	in.create(t, credential)
	author := in.as(t, user)

	credential.Spec.Revoked = &v1alpha1.Revoked{Reason: "leaked"}
	expect(t, author.Update(t.Context(), credential))
	forgive := credential.DeepCopy()
	forgive.Spec.Revoked = nil
	forbidden(t, author.Update(t.Context(), forgive), "spec.revoked no longer ends the credential", `"deploy:write"`)
	rotate := credential.DeepCopy()
	rotate.Annotations[v1alpha1.AnnotationRotateRequestedAt] = now()
	forbidden(t, author.Update(t.Context(), rotate), "brings back a revoked credential", `"deploy:write"`)

	in.allow(t, user, namespace, grants("deploy:*"), uses("credentialclasses", "default"))
	expect(t, author.Update(t.Context(), rotate))
}

func TestEditingAClassNeedsWhatItAdds(t *testing.T) {
	in := cluster(t)
	trusted, others := labelled("trust", "yes"), labelled("trust", "no")
	narrow := v1alpha1.ClassRule{NamespaceSelector: others, Permissions: []v1alpha1.Permission{"api:read"}, MaxTTL: "1d"}
	wide := v1alpha1.ClassRule{Permissions: []v1alpha1.Permission{"*"}, Except: []v1alpha1.Permission{"mintmark:*", "deploy:prod"}, Admin: true}
	for sentence, test := range map[string]struct {
		may    []rbacv1.PolicyRule
		change func(*v1alpha1.CredentialClassSpec)
		says   []string
	}{
		"what is no ceiling is free": {
			change: func(s *v1alpha1.CredentialClassSpec) { s.Defaults.TTL = "30d"; s.MinOverlap = "2h" },
		},
		"lowering the ceiling is free": {
			change: func(s *v1alpha1.CredentialClassSpec) {
				s.Rules[0].Permissions, s.Rules[0].MaxTTL, s.Rules[1].Admin = nil, "12h", false
				s.Rules[1].Except = append(s.Rules[1].Except, "x")
			},
		},
		"a permission is asked for in the whole cluster": {
			change: func(s *v1alpha1.CredentialClassSpec) {
				s.Rules[0].Permissions = append(s.Rules[0].Permissions, "api:write")
			},
			says: []string{`spec.rules[0].permissions "api:write"`, "ClusterRole cluster-wide"},
		},
		"a permission may be granted by name": {
			may: []rbacv1.PolicyRule{grants("api:*")},
			change: func(s *v1alpha1.CredentialClassSpec) {
				s.Rules[0].Permissions = append(s.Rules[0].Permissions, "api:write")
			},
		},
		"what is no longer taken out is asked for": {
			may:    []rbacv1.PolicyRule{grants("deploy:prod")},
			change: func(s *v1alpha1.CredentialClassSpec) { s.Rules[1].Except = nil },
			says:   []string{`without "mintmark:*"`, `resourceNames: ["mintmark:*"]`},
		},
		"external, adoption and admin go by their names": {
			change: func(s *v1alpha1.CredentialClassSpec) {
				s.Rules[0].External, s.Rules[0].Adoption, s.Rules[0].Admin = true, true, true
			},
			says: []string{`"admin", "external", "adoption"`},
		},
		"a rule for other namespaces is new in full": {
			change: func(s *v1alpha1.CredentialClassSpec) { s.Rules[0].NamespaceSelector = trusted },
			says:   []string{"spec.rules[0] is new, or selects other namespaces", `"api:read"`, "spec.rules[1] reaches namespaces that a rule before it held", `"*"`},
		},
		"taking away a rule lets the next one reach further": {
			change: func(s *v1alpha1.CredentialClassSpec) { s.Rules = s.Rules[1:] },
			says:   []string{"spec.rules[0] reaches namespaces", `spec.rules[0].permissions "*"`, "spec.rules[0].admin"},
		},
		"so does changing their order": {
			change: func(s *v1alpha1.CredentialClassSpec) { s.Rules[0], s.Rules[1] = s.Rules[1], s.Rules[0] },
			says:   []string{"spec.rules[0] reaches namespaces"},
		},
		"a longer maxTTL is asked for": {
			change: func(s *v1alpha1.CredentialClassSpec) { s.Rules[0].MaxTTL = "Never" },
			says:   []string{"spec.rules[0].maxTTL is longer", `"api:read"`},
		},
	} {
		t.Run(sentence, func(t *testing.T) {
			user, class := userOf(t), in.class(t, narrow, wide)
			rule := ours("update", "credentialclasses")
			rule.Verbs = []string{"update", "create", "get"}
			in.allow(t, user, "", append(test.may, rule)...)
			// Rights in one namespace do not allow what holds in all.
			in.allow(t, user, in.namespace(t, nil), grants())
			test.change(&class.Spec)
			forbidden(t, in.as(t, user).Update(t.Context(), class), test.says...)
			fresh := &v1alpha1.CredentialClass{ObjectMeta: metaNamed("new-" + class.Name)}
			forbidden(t, in.as(t, user).Create(t.Context(), fresh), `spec.rules[0].permissions "*"`)
		})
	}
}

func TestWhatCannotBeFoundOutIsRefused(t *testing.T) {
	in := cluster(t)
	namespace := in.namespace(t, nil)
	probe := func(ctx context.Context, spec v1alpha1.CredentialSpec) error {
		return in.admin.Create(ctx, token(namespace, "ci", spec), client.DryRunAll)
	}
	for resource, test := range map[string]struct {
		spec v1alpha1.CredentialSpec
		says string
	}{
		"subjectaccessreviews": {v1alpha1.CredentialSpec{}, "whether its account may create subjectaccessreviews"},
		"namespaces":           {v1alpha1.CredentialSpec{}, "read the labels of namespace " + namespace},
		"credentialclasses":    {v1alpha1.CredentialSpec{CredentialClassName: "default"}, "read CredentialClass default"},
	} {
		t.Run("the controller's account has lost its right to "+resource, func(t *testing.T) {
			in.withoutRight(t, resource)
			var err error
			if waited := until(func() error {
				if err = probe(t.Context(), test.spec); err == nil {
					return errStillAllowed
				}
				return nil
			}); waited != nil {
				t.Fatal(waited)
			}
			expect(t, err, "nothing was changed", "try again", "the log of mintmark-controller", test.says)
		})
		if err := until(func() error { return probe(t.Context(), test.spec) }); err != nil {
			t.Fatal(err)
		}
	}
}

// withoutRight takes a resource out of the controller's ClusterRole for as long
// as the test runs.
func (in *installation) withoutRight(t *testing.T, resource string) {
	t.Helper()
	role := &rbacv1.ClusterRole{}
	if err := in.admin.Get(t.Context(), client.ObjectKey{Name: "mintmark-controller"}, role); err != nil {
		t.Fatal(err)
	}
	original := role.DeepCopy()
	t.Cleanup(func() { in.change(t, original.Name, role, func() { role.Rules = original.Rules }) })
	in.change(t, original.Name, role, func() {
		for i := range role.Rules {
			role.Rules[i].Resources = slices.DeleteFunc(slices.Clone(role.Rules[i].Resources), func(r string) bool { return r == resource })
		}
		role.Rules = slices.DeleteFunc(role.Rules, func(r rbacv1.PolicyRule) bool { return len(r.Resources) == 0 })
	})
}
