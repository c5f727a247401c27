package webhook_test

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

func TestTheDefaultClassIsWrittenOnce(t *testing.T) {
	in := cluster(t)
	namespace, named := in.namespace(t, nil), in.class(t, v1alpha1.ClassRule{})
	for _, credential := range []v1alpha1.Credential{
		token(namespace, "ci", v1alpha1.CredentialSpec{}),
		&v1alpha1.APIKey{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "ci"}},
		token(namespace, "named", v1alpha1.CredentialSpec{CredentialClassName: named.Name}),
	} {
		want := cmp.Or(credential.CredentialSpec().CredentialClassName, "default")
		in.create(t, credential)
		if got := credential.CredentialSpec().CredentialClassName; got != want {
			t.Fatalf("%s got class %q", credential.CredentialKind(), got)
		}
		credential.CredentialSpec().CredentialClassName = ""
		credential.CredentialSpec().Description = "applied again from a manifest that names no class"
		expect(t, in.admin.Update(t.Context(), credential))
		if got := credential.CredentialSpec().CredentialClassName; got != want {
			t.Errorf("%s lost its class: %q", credential.CredentialKind(), got)
		}
		credential.CredentialSpec().CredentialClassName = "mintmark-admin"
		expect(t, in.admin.Update(t.Context(), credential), "credentialClassName cannot be changed once it is set")
	}
}

func TestTheValueStaysInOneSecret(t *testing.T) {
	in := cluster(t)
	credential := token(in.namespace(t, nil), "ci", v1alpha1.CredentialSpec{})
	in.create(t, credential)
	credential.Status.CurrentVersion = 1
	expect(t, in.admin.Status().Update(t.Context(), credential))
	credential.Spec.Secret = &v1alpha1.SecretTarget{Name: "another"}
	expect(t, in.admin.Update(t.Context(), credential), "spec.secret.name", "the value is in Secret ci")
	credential.Spec.Secret.Name = "ci" // what it is anyway may be written
	expect(t, in.admin.Update(t.Context(), credential))

	undelivered := token(credential.Namespace, "undelivered", v1alpha1.CredentialSpec{})
	in.create(t, undelivered)
	undelivered.Spec.Secret = &v1alpha1.SecretTarget{Name: "another"}
	expect(t, in.admin.Update(t.Context(), undelivered))
}

func TestWithoutExactlyOneDefaultClassOneHasToBeNamed(t *testing.T) {
	in := cluster(t)
	namespace := in.namespace(t, nil)
	mark := func(name string, marked bool) {
		t.Helper()
		class := &v1alpha1.CredentialClass{}
		in.change(t, name, class, func() {
			delete(class.Annotations, v1alpha1.AnnotationDefaultClass)
			if marked {
				metav1.SetMetaDataAnnotation(&class.ObjectMeta, v1alpha1.AnnotationDefaultClass, "true")
			}
		})
	}
	t.Cleanup(func() { mark("default", true) })

	second := in.class(t, v1alpha1.ClassRule{})
	mark(second.Name, true)
	expect(t, in.admin.Create(t.Context(), token(namespace, "ci", v1alpha1.CredentialSpec{})),
		"spec.credentialClassName", "default, "+second.Name, "name one here", "kubectl annotate credentialclass NAME mintmark.dev/is-default-class-")
	mark(second.Name, false)
	mark("default", false)
	expect(t, in.admin.Create(t.Context(), token(namespace, "ci", v1alpha1.CredentialSpec{})),
		"spec.credentialClassName", "no CredentialClass is marked", "kubectl annotate credentialclass NAME mintmark.dev/is-default-class=true")
	expect(t, in.admin.Create(t.Context(), token(namespace, "ci", v1alpha1.CredentialSpec{CredentialClassName: "default"})))
}

func TestASecondDefaultClassIsWarnedOf(t *testing.T) {
	in := cluster(t)
	var warnings []string
	admin := in.withWarnings(t, &warnings)
	class := &v1alpha1.CredentialClass{ObjectMeta: metav1.ObjectMeta{
		GenerateName: "test-", Annotations: map[string]string{v1alpha1.AnnotationDefaultClass: "true"},
	}}
	if err := admin.Create(t.Context(), class); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.admin.Delete(context.Background(), class) })
	want := []string{"CredentialClass default is marked as the default too: until only one is, credentials that name no class are refused " +
		"(kubectl annotate credentialclass default mintmark.dev/is-default-class-)"}
	if diff := gocmp.Diff(want, warnings); diff != "" {
		t.Errorf("warnings (-want +got):\n%s", diff)
	}
}

func TestRiskySpecsAreWarnedOf(t *testing.T) {
	in := cluster(t)
	var warnings []string
	admin := in.withWarnings(t, &warnings)
	credential := token(in.namespace(t, nil), "ci", v1alpha1.CredentialSpec{TTL: v1alpha1.Never, Permissions: []v1alpha1.Permission{"deploy:*"}})
	if err := admin.Create(t.Context(), credential); err != nil {
		t.Fatal(err)
	}
	if len(warnings) != 2 {
		t.Errorf("expected warnings about ttl and the wildcard, got %q", warnings)
	}
	warnings = nil
	credential.Labels = map[string]string{"team": "a"}
	if err := admin.Update(t.Context(), credential); err != nil || len(warnings) != 0 {
		t.Errorf("a change of labels: %v, warnings %q", err, warnings)
	}
}

func TestWhoAskedIsRecordedAndCannotBeForged(t *testing.T) {
	in := cluster(t)
	namespace := in.namespace(t, nil)
	alice, bob := userOf(t)+"-alice", userOf(t)+"-bob"
	for _, user := range []string{alice, bob} {
		in.allow(t, user, namespace, edits(), uses("credentialclasses"))
	}
	requestedBy, revokedBy := v1alpha1.AnnotationRequestedBy, v1alpha1.AnnotationRevokedBy
	later := func(d time.Duration) string { return time.Now().UTC().Add(d).Format(time.RFC3339) }
	credential := token(namespace, "ci", v1alpha1.CredentialSpec{})
	credential.Annotations = map[string]string{requestedBy: "root", revokedBy: "root"}
	if err := in.as(t, alice).Create(t.Context(), credential); err != nil {
		t.Fatal(err)
	}
	steps := []struct {
		sentence string
		user     string
		change   func(*v1alpha1.ServiceToken)
		want     map[string]string
	}{
		{"who made it is who asked for its first version", alice, func(*v1alpha1.ServiceToken) {}, map[string]string{requestedBy: alice}},
		{"an unrelated change restores what was forged", bob, func(c *v1alpha1.ServiceToken) {
			c.Annotations[requestedBy], c.Annotations[revokedBy] = "root", "root"
		}, map[string]string{requestedBy: alice}},
		{"and what was taken away", bob, func(c *v1alpha1.ServiceToken) { c.Annotations = nil }, map[string]string{requestedBy: alice}},
		{"a request is recorded", bob, func(c *v1alpha1.ServiceToken) {
			c.Annotations[v1alpha1.AnnotationRotateRequestedAt] = later(0)
			c.Annotations[requestedBy] = alice
		}, map[string]string{requestedBy: bob}},
		{"a change of the spec is no request", alice, func(c *v1alpha1.ServiceToken) { c.Spec.Description = "x" }, map[string]string{requestedBy: bob}},
		{"a reason put to somebody's request is one's own", alice, func(c *v1alpha1.ServiceToken) {
			c.Annotations[v1alpha1.AnnotationReason] = "because"
		}, map[string]string{requestedBy: alice}},
		{"taking a request back is none", bob, func(c *v1alpha1.ServiceToken) {
			delete(c.Annotations, v1alpha1.AnnotationRotateRequestedAt)
		}, map[string]string{requestedBy: alice}},
		{"a rollback is a request", bob, func(c *v1alpha1.ServiceToken) {
			c.Annotations[v1alpha1.AnnotationRollbackRequestedAt] = later(time.Second)
		}, map[string]string{requestedBy: bob}},
		{"a discard is a request", alice, func(c *v1alpha1.ServiceToken) {
			c.Annotations[v1alpha1.AnnotationDiscardRequestedAt] = later(time.Second)
		}, map[string]string{requestedBy: alice}},
		{"who revokes a version is recorded", bob, func(c *v1alpha1.ServiceToken) {
			c.Spec.Revoked = &v1alpha1.Revoked{Versions: []int64{1}, Reason: "leaked"}
		}, map[string]string{requestedBy: alice, revokedBy: bob}},
		{"who revokes and does more is recorded", alice, func(c *v1alpha1.ServiceToken) {
			c.Spec.Revoked.Versions, c.Spec.Description = []int64{1, 2}, "y"
		}, map[string]string{requestedBy: alice, revokedBy: alice}},
		{"a revocation with somebody else's name on it is recorded", bob, func(c *v1alpha1.ServiceToken) {
			c.Spec.Revoked.Versions, c.Annotations[revokedBy] = []int64{1, 2, 3}, "root"
		}, map[string]string{requestedBy: alice, revokedBy: bob}},
		{"nobody else can be made the revoker afterwards", alice, func(c *v1alpha1.ServiceToken) {
			c.Annotations[revokedBy], c.Spec.Description = "root", "z"
		}, map[string]string{requestedBy: alice, revokedBy: bob}},
		{"for whom somebody asks is recorded after who does", bob, func(c *v1alpha1.ServiceToken) {
			c.Annotations[v1alpha1.AnnotationOnBehalfOf], c.Annotations[v1alpha1.AnnotationRollbackRequestedAt] = "carol", later(2*time.Second)
		}, map[string]string{requestedBy: bob + " for carol", revokedBy: bob}},
		{"what an earlier request was made for is not what the next one is", alice, func(c *v1alpha1.ServiceToken) {
			c.Annotations[v1alpha1.AnnotationRollbackRequestedAt] = later(3 * time.Second)
		}, map[string]string{requestedBy: alice, revokedBy: bob}},
		{"nor of a revocation", alice, func(c *v1alpha1.ServiceToken) {
			c.Spec.Revoked.Versions = []int64{1, 2, 3, 4}
		}, map[string]string{requestedBy: alice, revokedBy: alice}},
		{"for whom somebody revokes is recorded", bob, func(c *v1alpha1.ServiceToken) {
			c.Spec.Revoked.Versions, c.Annotations[v1alpha1.AnnotationOnBehalfOf] = []int64{1, 2, 3, 4, 5}, "dave"
		}, map[string]string{requestedBy: alice, revokedBy: bob + " for dave"}},
		{"without a revocation nobody revoked", alice, func(c *v1alpha1.ServiceToken) { c.Spec.Revoked = nil }, map[string]string{requestedBy: alice}},
	}
	for _, step := range steps {
		step.change(credential)
		if err := in.as(t, step.user).Update(t.Context(), credential); err != nil {
			t.Fatalf("%s: %v", step.sentence, err)
		}
		got := map[string]string{}
		for _, key := range []string{requestedBy, revokedBy} {
			if value, ok := credential.Annotations[key]; ok {
				got[key] = value
			}
		}
		if diff := gocmp.Diff(step.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", step.sentence, diff)
		}
	}
}

func TestWhoDeclaresAValueAskedForItsVersion(t *testing.T) {
	in := cluster(t)
	namespace := in.namespace(t, nil)
	alice, bob := userOf(t)+"-alice", userOf(t)+"-bob"
	for _, user := range []string{alice, bob} {
		in.allow(t, user, namespace, edits(), uses("credentialclasses"))
	}
	class := in.class(t, v1alpha1.ClassRule{Permissions: []v1alpha1.Permission{"*"}, External: true}).Name
	credential := token(namespace, "ci", v1alpha1.CredentialSpec{
		CredentialClassName: class, External: &v1alpha1.External{SHA256: []string{strings.Repeat("a", 64)}},
	})
	if err := in.as(t, alice).Create(t.Context(), credential); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		user, want string
		declared   []string
	}{
		{bob, bob, []string{"b", "a"}}, {alice, alice, []string{"b"}}, {bob, alice, []string{"b"}},
	} {
		credential.Spec.External.SHA256, credential.Spec.Description = nil, step.user
		for _, digit := range step.declared {
			credential.Spec.External.SHA256 = append(credential.Spec.External.SHA256, strings.Repeat(digit, 64))
		}
		if err := in.as(t, step.user).Update(t.Context(), credential); err != nil {
			t.Fatal(err)
		}
		if by := credential.Annotations[v1alpha1.AnnotationRequestedBy]; by != step.want {
			t.Errorf("after %s has declared %v, the request is %q's", step.user, step.declared, by)
		}
	}
}

func TestAdmissionChangesNothingElse(t *testing.T) {
	in := cluster(t)
	manifest := unstructuredToken(in.namespace(t, nil), "ci", map[string]any{
		"expiresAt": "2031-01-01T00:00:00+02:00",
		"metadata":  map[string]any{},
	})
	if err := in.admin.Create(t.Context(), manifest); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"credentialClassName": "default", "expiresAt": "2031-01-01T00:00:00+02:00", "metadata": map[string]any{}}
	if diff := gocmp.Diff(want, manifest.Object["spec"]); diff != "" {
		t.Errorf("the spec as stored (-want +got):\n%s", diff)
	}
}

func TestWhoMadeARevocationIsRecordedAndCannotBeForged(t *testing.T) {
	in := cluster(t)
	namespace := in.namespace(t, nil)
	alice, bob := userOf(t)+"-alice", userOf(t)+"-bob"
	for _, user := range []string{alice, bob} {
		in.allow(t, user, "", rbacv1.PolicyRule{APIGroups: []string{v1alpha1.GroupVersion.Group}, Resources: []string{"revocations"}, Verbs: []string{"create", "update"}})
	}
	brake := func(annotations map[string]string) *v1alpha1.Revocation {
		return &v1alpha1.Revocation{
			ObjectMeta: metav1.ObjectMeta{GenerateName: "leak-", Annotations: annotations},
			Spec:       v1alpha1.RevocationSpec{Reason: "leaked", Namespaces: []string{namespace}},
		}
	}
	for sentence, annotations := range map[string]map[string]string{
		"nothing is said":        nil,
		"another name is said":   {v1alpha1.AnnotationRevokedBy: "root", "example.com/kept": "yes"},
		"another one asked, too": {v1alpha1.AnnotationRequestedBy: "root"},
	} {
		t.Run(sentence, func(t *testing.T) {
			made := brake(annotations)
			if err := in.as(t, alice).Create(t.Context(), made); err != nil {
				t.Fatal(err)
			}
			if by := made.Annotations[v1alpha1.AnnotationRevokedBy]; by != alice || made.Annotations["example.com/kept"] != annotations["example.com/kept"] {
				t.Errorf("%s made it, and it says %q: %v", alice, by, made.Annotations)
			}
			for _, name := range []string{"root", ""} {
				made.Annotations[v1alpha1.AnnotationRevokedBy] = name
				if err := in.as(t, bob).Update(t.Context(), made); err != nil {
					t.Fatal(err)
				}
				if by := made.Annotations[v1alpha1.AnnotationRevokedBy]; by != alice {
					t.Errorf("%s wrote %q over it, and it says %q", bob, name, by)
				}
			}
		})
	}
	made := brake(map[string]string{v1alpha1.AnnotationOnBehalfOf: "carol"})
	if err := in.as(t, alice).Create(t.Context(), made); err != nil {
		t.Fatal(err)
	}
	if by := made.Annotations[v1alpha1.AnnotationRevokedBy]; by != alice+" for carol" {
		t.Errorf("%s made it for carol, and it says %q", alice, by)
	}
	in.withoutWebhooks(t)
	if err := in.as(t, alice).Create(t.Context(), brake(nil)); err != nil {
		t.Errorf("with every webhook down the brake does not hold: %v", err)
	}
}

func TestRevocationNeedsNoWebhook(t *testing.T) {
	in := cluster(t)
	user, namespace := userOf(t), in.namespace(t, nil)
	in.allow(t, user, namespace, edits())
	whole, some, key := token(namespace, "whole", v1alpha1.CredentialSpec{Permissions: []v1alpha1.Permission{"a"}}), token(namespace, "some", v1alpha1.CredentialSpec{}),
		&v1alpha1.APIKey{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "key"}}
	for _, c := range []client.Object{whole, some, key} {
		in.create(t, c)
	}
	in.withoutWebhooks(t)
	author := in.as(t, user)
	down := "failed calling webhook"

	expect(t, author.Create(t.Context(), token(namespace, "new", v1alpha1.CredentialSpec{})), down)
	for sentence, change := range map[string]func(*v1alpha1.ServiceToken){
		"a permission": func(c *v1alpha1.ServiceToken) { c.Spec.Permissions = append(c.Spec.Permissions, "b") },
		"a permission and revoked": func(c *v1alpha1.ServiceToken) {
			c.Spec.Permissions = nil
			c.Spec.Revoked = &v1alpha1.Revoked{Reason: "x"}
		},
		"a request": func(c *v1alpha1.ServiceToken) { c.Annotations[v1alpha1.AnnotationRotateRequestedAt] = now() },
		"a name under revoked": func(c *v1alpha1.ServiceToken) {
			c.Annotations[v1alpha1.AnnotationRevokedBy] = "root"
			c.Spec.Revoked = &v1alpha1.Revoked{Reason: "x"}
		},
	} {
		t.Run("nothing else passes: "+sentence, func(t *testing.T) {
			changed := whole.DeepCopy()
			change(changed)
			expect(t, author.Update(t.Context(), changed), down)
		})
	}

	some.Spec.Revoked = &v1alpha1.Revoked{Versions: []int64{1}, Reason: "leaked"}
	expect(t, author.Update(t.Context(), some))
	some.Spec.Revoked = &v1alpha1.Revoked{Versions: []int64{2, 1}, Reason: "leaked"}
	expect(t, author.Update(t.Context(), some))
	less := some.DeepCopy()
	less.Spec.Revoked.Versions = []int64{2}
	expect(t, author.Update(t.Context(), less), down)

	for _, c := range []v1alpha1.Credential{whole, some, key} {
		patch := []byte(`{"spec":{"revoked":{"reason":"all of it","versions":null}}}`)
		expect(t, author.Patch(t.Context(), c, client.RawPatch("application/merge-patch+json", patch)))
		forgiven := c.DeepCopyObject().(v1alpha1.Credential)
		forgiven.CredentialSpec().Revoked = nil
		expect(t, author.Update(t.Context(), forgiven), down)
		forgiven.CredentialSpec().Revoked = &v1alpha1.Revoked{Reason: "less", Versions: []int64{1}}
		expect(t, author.Update(t.Context(), forgiven), down)
	}

	// Neither labels nor finalizers are admission's business, nor is deletion.
	whole.Labels, whole.Finalizers = map[string]string{"team": "a"}, []string{"example.com/test"}
	expect(t, author.Update(t.Context(), whole))
	expect(t, author.Delete(t.Context(), whole))
	if err := in.admin.Get(t.Context(), client.ObjectKeyFromObject(whole), whole); err != nil {
		t.Fatal(err)
	}
	whole.Finalizers = nil
	expect(t, author.Update(t.Context(), whole))
	expect(t, author.Delete(t.Context(), some))
}

// The API server bounds what the conditions of a webhook may cost: a spec at
// every limit of the schema must not make its credential irrevocable.
func TestTheLargestCredentialCanBeRevoked(t *testing.T) {
	in := cluster(t)
	spec := v1alpha1.CredentialSpec{
		Description: strings.Repeat("x", 1024),
		Metadata:    map[string]v1alpha1.MetadataValue{},
		Attributes:  map[string]v1alpha1.MetadataValue{},
		Secret:      &v1alpha1.SecretTarget{Template: &v1alpha1.SecretTemplate{Data: map[string]v1alpha1.TemplateText{}}},
		Restart:     &v1alpha1.Restart{},
		Rotation:    &v1alpha1.Rotation{},
	}
	for i := range 256 {
		spec.Permissions = append(spec.Permissions, v1alpha1.Permission(fmt.Sprintf("%03d%s", i, strings.Repeat("x", 125))))
	}
	for i := range 64 {
		spec.Roles = append(spec.Roles, fmt.Sprintf("%03d%s", i, strings.Repeat("x", 250)))
		spec.AllowedCIDRs = append(spec.AllowedCIDRs, v1alpha1.CIDR(fmt.Sprintf("10.%d.0.0/16", i)))
		spec.Metadata[fmt.Sprintf("%03d%s", i, strings.Repeat("k", 125))] = v1alpha1.MetadataValue(strings.Repeat("v", 1024))
	}
	for i := range 32 {
		spec.Attributes[fmt.Sprintf("%03d%s", i, strings.Repeat("k", 61))] = v1alpha1.MetadataValue(strings.Repeat("v", 1024))
		spec.Secret.Template.Data[fmt.Sprintf("key-%d", i)] = v1alpha1.TemplateText(strings.Repeat("t", 12000))
		spec.Restart.Workloads = append(spec.Restart.Workloads, v1alpha1.WorkloadReference{Kind: "Deployment", Name: fmt.Sprintf("%03d%s", i, strings.Repeat("x", 250))})
	}
	for range 16 {
		spec.Rotation.Windows = append(spec.Rotation.Windows, v1alpha1.Window{Schedule: "0 2 * * *", Duration: "4h", TimeZone: "Europe/Berlin"})
	}
	credential := token(in.namespace(t, nil), "large", spec)
	in.create(t, credential)
	in.withoutWebhooks(t)
	credential.Spec.Revoked = &v1alpha1.Revoked{Reason: strings.Repeat("x", 1024)}
	expect(t, in.admin.Update(t.Context(), credential))
}

func TestClassesCanBeWrittenBeforeTheWebhooksRun(t *testing.T) {
	in := cluster(t)
	user := userOf(t)
	rule := ours("create", "credentialclasses")
	in.allow(t, user, "", rule)
	in.withoutWebhooks(t)
	class := in.class(t, v1alpha1.ClassRule{Permissions: []v1alpha1.Permission{"*"}})
	class.Spec.Rules[0].Admin = true
	expect(t, in.admin.Update(t.Context(), class))
	err := in.as(t, user).Create(t.Context(), &v1alpha1.CredentialClass{ObjectMeta: metaNamed("test-unasked")})
	expect(t, err, "failed calling webhook")
}
