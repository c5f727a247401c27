package management_test

import (
	"context"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// What a server that was taken over could write with its account: nothing beyond what the
// management API writes, in the namespaces it is bound in.
func TestTheServersAccountWritesNothingElse(t *testing.T) {
	s := running(t)
	config, err := s.plane.ServiceAccountConfig(t.Context(), systemNamespace, "mintmark-server")
	if err != nil {
		t.Fatal(err)
	}
	taken, err := client.New(config, client.Options{Scheme: scheme()})
	if err != nil {
		t.Fatal(err)
	}
	digest := func(c string) []string { return []string{strings.Repeat(c, 64)} }
	spec := func(change func(*v1alpha1.CredentialSpec)) v1alpha1.CredentialSpec {
		made := v1alpha1.CredentialSpec{CredentialClassName: restClass, Permissions: []v1alpha1.Permission{"orders:read"}, External: &v1alpha1.External{SHA256: digest("a")}}
		if change != nil {
			change(&made)
		}
		return made
	}
	create := func(namespace string, made v1alpha1.CredentialSpec) func() error {
		return func() error {
			o := &v1alpha1.APIKey{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: unique("taken")}, Spec: made}
			return taken.Create(t.Context(), o, client.DryRunAll)
		}
	}
	declared := &v1alpha1.APIKey{ObjectMeta: metav1.ObjectMeta{Namespace: managed, Name: unique("declared"), Labels: map[string]string{"team": "a"}}, Spec: spec(nil)}
	declared.Spec.External.SHA256 = digest("b")
	over := &v1alpha1.APIKey{ObjectMeta: metav1.ObjectMeta{Namespace: managed, Name: unique("over")}, Spec: spec(func(s *v1alpha1.CredentialSpec) {
		s.External.SHA256 = digest("c")
		s.Revoked = &v1alpha1.Revoked{Reason: "leaked"}
	})}
	delivered := &v1alpha1.ServiceToken{ObjectMeta: metav1.ObjectMeta{Namespace: managed, Name: unique("delivered")}, Spec: v1alpha1.CredentialSpec{
		Permissions: []v1alpha1.Permission{"orders:read"}, Revoked: &v1alpha1.Revoked{Versions: []int64{7}, Reason: "x"},
	}}
	ended := &v1alpha1.ServiceToken{ObjectMeta: metav1.ObjectMeta{Namespace: managed, Name: unique("ended")}, Spec: v1alpha1.CredentialSpec{Revoked: &v1alpha1.Revoked{Reason: "x"}}}
	elsewhere := &v1alpha1.APIKey{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-public", Name: unique("elsewhere")}, Spec: spec(func(s *v1alpha1.CredentialSpec) { s.External.SHA256 = digest("d") })}
	for _, o := range []client.Object{declared, over, delivered, ended, elsewhere} {
		if err := s.cluster.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	patch := func(o client.Object, text string) func() error {
		return func() error {
			return taken.Patch(t.Context(), o.DeepCopyObject().(client.Object), client.RawPatch(types.MergePatchType, []byte(text)), client.DryRunAll)
		}
	}
	now := `"2026-11-22T12:00:00Z"`
	// webhook: it is the webhooks that refuse it, and, with these gone, the ceiling of the class.
	const webhook = true
	cases := map[string]struct {
		try     func() error
		want    bool
		webhook bool
	}{
		"makes one that is declared":               {create(managed, spec(nil)), true, false},
		"not one that a Secret delivers":           {create(managed, spec(func(s *v1alpha1.CredentialSpec) { s.External = nil })), false, false},
		"not of another class":                     {create(managed, spec(func(s *v1alpha1.CredentialSpec) { s.CredentialClassName = "default" })), false, false},
		"not of the default class":                 {create(managed, spec(func(s *v1alpha1.CredentialSpec) { s.CredentialClassName = "" })), false, false},
		"not of the administrators' class":         {create(managed, spec(func(s *v1alpha1.CredentialSpec) { s.CredentialClassName = "mintmark-admin" })), false, false},
		"not an administrator's":                   {create(managed, spec(func(s *v1alpha1.CredentialSpec) { s.Admin, s.Permissions = true, nil })), false, false},
		"not over the ceiling":                     {create(managed, spec(func(s *v1alpha1.CredentialSpec) { s.Permissions = []v1alpha1.Permission{"mintmark:status"} })), false, webhook},
		"not with a role":                          {create(managed, spec(func(s *v1alpha1.CredentialSpec) { s.Roles = []string{"operators"} })), false, webhook},
		"not in another namespace":                 {create("kube-public", spec(nil)), false, false},
		"not in Mintmark's own":                    {create(systemNamespace, spec(nil)), false, false},
		"not with restarts":                        {create(managed, spec(func(s *v1alpha1.CredentialSpec) { s.Restart = &v1alpha1.Restart{Consumers: true} })), false, false},
		"gives it another value":                   {patch(declared, `{"spec":{"external":{"sha256":["`+strings.Repeat("e", 64)+`"]}}}`), true, false},
		"revokes it":                               {patch(declared, `{"spec":{"revoked":{"reason":"x"}}}`), true, false},
		"does not raise its permissions":           {patch(declared, `{"spec":{"permissions":["orders:read","orders:write"]}}`), false, false},
		"nor with its value":                       {patch(declared, `{"spec":{"permissions":["orders:*"],"external":{"sha256":["`+strings.Repeat("e", 64)+`"]}}}`), false, false},
		"does not give it roles":                   {patch(declared, `{"spec":{"roles":["operators"]}}`), false, false},
		"does not make it an administrator's":      {patch(declared, `{"spec":{"admin":true,"permissions":null}}`), false, false},
		"does not give it attributes":              {patch(declared, `{"spec":{"attributes":{"clearance":"secret"}}}`), false, false},
		"does not lengthen its life":               {patch(declared, `{"spec":{"ttl":"Never"}}`), false, false},
		"does not change its networks":             {patch(declared, `{"spec":{"allowedCIDRs":["10.0.0.0/8"]}}`), false, false},
		"does not change its labels":               {patch(declared, `{"metadata":{"labels":{"team":null}}}`), false, false},
		"does not change its owners":               {patch(declared, `{"metadata":{"finalizers":["example.com/x"]}}`), false, false},
		"does not bring it back by forgiving":      {patch(over, `{"spec":{"revoked":null}}`), false, false},
		"does not bring it back by a new value":    {patch(over, `{"spec":{"external":{"sha256":["`+strings.Repeat("f", 64)+`"]}}}`), false, false},
		"does not change its reason to a version":  {patch(over, `{"spec":{"revoked":{"versions":[1]}}}`), false, false},
		"asks for another's rotation":              {patch(delivered, `{"metadata":{"annotations":{"mintmark.dev/rotate-requested-at":`+now+`}}}`), true, false},
		"not for a rollback":                       {patch(delivered, `{"metadata":{"annotations":{"mintmark.dev/rollback-requested-at":`+now+`}}}`), false, false},
		"not for discarding":                       {patch(delivered, `{"metadata":{"annotations":{"mintmark.dev/discard-requested-at":`+now+`}}}`), false, false},
		"revokes another":                          {patch(delivered, `{"spec":{"revoked":{"versions":null,"reason":"x"}}}`), true, false},
		"revokes another version":                  {patch(delivered, `{"spec":{"revoked":{"versions":[7,8],"reason":"x"}}}`), true, false},
		"does not take a version's back":           {patch(delivered, `{"spec":{"revoked":{"versions":[8],"reason":"x"}}}`), false, false},
		"does not change another's permissions":    {patch(delivered, `{"spec":{"permissions":["orders:write"]}}`), false, false},
		"does not point another's Secret anywhere": {patch(delivered, `{"spec":{"secret":{"name":"x","conflictPolicy":"Adopt"}}}`), false, false},
		"does not bring another back":              {patch(ended, `{"metadata":{"annotations":{"mintmark.dev/rotate-requested-at":`+now+`}}}`), false, false},
		"does not revoke in another namespace":     {patch(elsewhere, `{"spec":{"revoked":{"reason":"x"}}}`), false, false},
		"deletes none":                             {func() error { return taken.Delete(t.Context(), declared.DeepCopy(), client.DryRunAll) }, false, false},
		"writes no status": {func() error {
			return taken.Status().Patch(t.Context(), declared.DeepCopy(), client.RawPatch(types.MergePatchType, []byte(`{"status":{"currentVersion":9}}`)), client.DryRunAll)
		}, false, false},
		"pulls the emergency brake": {func() error {
			return taken.Create(t.Context(), &v1alpha1.Revocation{ObjectMeta: metav1.ObjectMeta{Name: unique("taken")}, Spec: v1alpha1.RevocationSpec{Reason: "x", Namespaces: []string{"nobody-is-here"}}}, client.DryRunAll)
		}, true, false},
		"makes no class": {func() error {
			return taken.Create(t.Context(), &v1alpha1.CredentialClass{ObjectMeta: metav1.ObjectMeta{Name: unique("taken")}}, client.DryRunAll)
		}, false, false},
		"reads no workload's Secret": {func() error {
			return taken.List(t.Context(), &corev1.SecretList{}, client.InNamespace(managed))
		}, false, false},
	}
	try := func(t *testing.T, gone bool) {
		for sentence, tc := range cases {
			if gone && tc.webhook {
				continue
			}
			t.Run(sentence, func(t *testing.T) {
				err := tc.try()
				if tc.want && err != nil || !tc.want && !apierrors.IsForbidden(err) && !apierrors.IsInvalid(err) {
					t.Errorf("the API server says %v", err)
				}
			})
		}
	}
	try(t, false)
	t.Run("with the webhooks gone", func(t *testing.T) {
		s.withoutWebhooks(t)
		eventually(t, "the webhooks are asked no more", func() bool {
			return create(managed, spec(func(s *v1alpha1.CredentialSpec) { s.Permissions = []v1alpha1.Permission{"mintmark:status"} }))() == nil
		})
		try(t, true)
	})
}

// withoutWebhooks takes them away until the test ends.
func (s *system) withoutWebhooks(t *testing.T) {
	t.Helper()
	name := metav1.ObjectMeta{Name: "mintmark-webhook"}
	for _, o := range []client.Object{
		&admissionv1.ValidatingWebhookConfiguration{ObjectMeta: name}, &admissionv1.MutatingWebhookConfiguration{ObjectMeta: name},
	} {
		if err := s.cluster.Get(t.Context(), client.ObjectKeyFromObject(o), o); err != nil {
			t.Fatal(err)
		}
		if err := s.cluster.Delete(t.Context(), o.DeepCopyObject().(client.Object)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			o.SetResourceVersion("")
			if err := s.cluster.Create(context.WithoutCancel(t.Context()), o); err != nil {
				t.Error(err)
			}
		})
	}
}
