package webhook_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/lifecycle"
)

func TestWhoChangedWhatIsAllowedIsRecordedAndCannotBeForged(t *testing.T) {
	in := cluster(t)
	ann, bob := userOf(t)+"-ann", userOf(t)+"-bob"
	namespace := in.namespace(t, nil)
	for _, user := range []string{ann, bob} {
		in.allow(t, user, "", writes("accessroles"), grants(), grants("api:*", "deploy:*"))
		in.allow(t, user, namespace, edits(), grants("api:read", "api:write"), uses("credentialclasses"), uses("accessroles"))
	}
	changedBy := func(o client.Object) string { return o.GetAnnotations()[v1alpha1.AnnotationChangedBy] }
	update := func(user string, o client.Object, change func()) {
		t.Helper()
		if err := in.admin.Get(t.Context(), client.ObjectKeyFromObject(o), o); err != nil {
			t.Fatal(err)
		}
		change()
		expect(t, in.as(t, user).Update(t.Context(), o))
	}

	role := &v1alpha1.AccessRole{Spec: v1alpha1.AccessRoleSpec{Permissions: []v1alpha1.Permission{"api:read"}}}
	role.GenerateName, role.Annotations = "test-", map[string]string{v1alpha1.AnnotationChangedBy: "1 somebody else"}
	expect(t, in.as(t, ann).Create(t.Context(), role))
	t.Cleanup(func() { _ = in.admin.Delete(context.WithoutCancel(t.Context()), role) })
	if got := changedBy(role); got != "1 "+ann {
		t.Errorf("a new role was made by %q", got)
	}
	update(bob, role, func() { role.Labels = map[string]string{"a": "b"} })
	update(bob, role, func() { role.Annotations[v1alpha1.AnnotationChangedBy] = "1 " + bob })
	update(bob, role, func() { delete(role.Annotations, v1alpha1.AnnotationChangedBy) })
	if got := changedBy(role); got != "1 "+ann || role.Generation != 1 {
		t.Errorf("after nothing was changed: %q, generation %d", got, role.Generation)
	}
	update(bob, role, func() { role.Spec.Permissions = append(role.Spec.Permissions, "api:write") })
	if got := changedBy(role); got != "2 "+bob || role.Generation != 2 {
		t.Errorf("after a change: %q, generation %d", got, role.Generation)
	}
	update(ann, role, func() {
		role.Spec.Permissions, role.Annotations[v1alpha1.AnnotationChangedBy] = role.Spec.Permissions[:1], "3 "+bob
	})
	if got := changedBy(role); got != "3 "+ann || role.Generation != 3 {
		t.Errorf("after a change that was to be another's: %q, generation %d", got, role.Generation)
	}

	token := token(namespace, "ci", v1alpha1.CredentialSpec{CredentialClassName: in.class(t, v1alpha1.ClassRule{Permissions: []v1alpha1.Permission{"api:*"}}).Name, Permissions: []v1alpha1.Permission{"api:read"}})
	forged := token.DeepCopy()
	forged.Name, forged.Annotations = "forged", map[string]string{v1alpha1.AnnotationChangedBy: lifecycle.GrantMark(&token.Spec) + " " + bob}
	expect(t, in.as(t, ann).Create(t.Context(), forged))
	if got := changedBy(forged); got != lifecycle.GrantMark(&forged.Spec)+" "+ann {
		t.Errorf("a new credential that says who made it was made by %q", got)
	}
	expect(t, in.as(t, ann).Create(t.Context(), token))
	if got := changedBy(token); got != "" {
		t.Errorf("a new credential was changed by %q", got)
	}
	update(bob, token, func() { token.Spec.TTL = "30d" })
	update(bob, token, func() { token.Annotations[v1alpha1.AnnotationChangedBy] = "forged " + bob })
	if got := changedBy(token); got != "" {
		t.Errorf("after a change of something else: %q", got)
	}
	update(bob, token, func() { token.Spec.Permissions = append(token.Spec.Permissions, "api:write") })
	if got := changedBy(token); got != lifecycle.GrantMark(&token.Spec)+" "+bob {
		t.Errorf("after a change of what it grants: %q", got)
	}
}

func TestChangesGoThroughWhereNobodyCanBeAskedWhoMadeThem(t *testing.T) {
	in := cluster(t)
	role := made(t, in, &v1alpha1.AccessRole{Spec: v1alpha1.AccessRoleSpec{Permissions: []v1alpha1.Permission{"api:read"}}})
	// The API server takes a moment to see that a configuration has changed.
	isAsked := func(want bool) func() error {
		return func() error {
			probe := &v1alpha1.AccessRole{Spec: v1alpha1.AccessRoleSpec{Permissions: []v1alpha1.Permission{"api:read"}}}
			probe.GenerateName = "probe-"
			err := in.admin.Create(context.WithoutCancel(t.Context()), probe, client.DryRunAll)
			if got := probe.Annotations[v1alpha1.AnnotationChangedBy] != ""; err == nil && got != want {
				err = fmt.Errorf("that the webhook is asked is %v, want %v", got, want)
			}
			return err
		}
	}
	t.Cleanup(func() {
		in.redirect(t, func(original string) string { return original })
		if err := until(isAsked(true)); err != nil {
			t.Error(err)
		}
	})
	in.redirect(t, func(original string) string {
		if strings.HasSuffix(original, "-change") {
			return original + "-nowhere"
		}
		return original
	})
	expect(t, until(isAsked(false)))
	role.Spec.Description = "changed"
	expect(t, in.admin.Update(t.Context(), role))
	if by, _, _ := strings.Cut(role.Annotations[v1alpha1.AnnotationChangedBy], " "); role.Generation != 2 || by != "1" {
		t.Errorf("generation %d, by %q: the mark has to be of the generation before", role.Generation, by)
	}
}
