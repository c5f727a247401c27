package webhook

import (
	"context"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authz"
	"github.com/mintmark-dev/mintmark/internal/lifecycle"
)

// classValidator decides about changes of CredentialClasses.
type classValidator struct {
	classes classReader
	reviews *reviewer
	exempt  string
}

// ValidateCreate implements admission.Validator.
func (v *classValidator) ValidateCreate(ctx context.Context, created *v1alpha1.CredentialClass) (admission.Warnings, error) {
	return v.admit(ctx, nil, created)
}

// ValidateUpdate implements admission.Validator.
func (v *classValidator) ValidateUpdate(ctx context.Context, old, updated *v1alpha1.CredentialClass) (admission.Warnings, error) {
	return v.admit(ctx, old, updated)
}

// ValidateDelete implements admission.Validator. Deletion is never refused.
func (v *classValidator) ValidateDelete(context.Context, *v1alpha1.CredentialClass) (admission.Warnings, error) {
	return nil, nil
}

func (v *classValidator) admit(ctx context.Context, old, updated *v1alpha1.CredentialClass) (admission.Warnings, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	request, err := admission.RequestFromContext(ctx)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	before, errs := &v1alpha1.CredentialClassSpec{}, lifecycle.ValidateClass(&updated.Spec)
	if old != nil {
		before, errs = &old.Spec, introduced(lifecycle.ValidateClass(&old.Spec), errs)
	}
	if len(errs) > 0 {
		return nil, apierrors.NewInvalid(v1alpha1.GroupVersion.WithKind("CredentialClass").GroupKind(), updated.Name, errs)
	}
	if request.UserInfo.Username != v.exempt {
		if err := review(ctx, v.reviews, request, updated.Name, classHandover(before, &updated.Spec)); err != nil {
			return nil, err
		}
	}
	return v.warnings(ctx, updated), nil
}

// warnings tells of a second default. That the other classes cannot be read is
// no reason to refuse this one.
func (v *classValidator) warnings(ctx context.Context, updated *v1alpha1.CredentialClass) []string {
	if !isDefault(updated) {
		return nil
	}
	marked, err := v.classes.defaults(ctx)
	others := slices.DeleteFunc(marked, func(name string) bool { return name == updated.Name })
	if err != nil || len(others) == 0 {
		return nil
	}
	return []string{fmt.Sprintf("CredentialClass %s is marked as the default too: until only one is, credentials that name no class are refused "+
		"(kubectl annotate credentialclass %s %s-)", others[0], others[0], v1alpha1.AnnotationDefaultClass)}
}

// classHandover is what a change of a class makes available that was not, to
// everybody who may use the class.
func classHandover(before, updated *v1alpha1.CredentialClassSpec) handover {
	var h handover
	at := field.NewPath("spec", "rules")
	for i := range updated.Rules {
		rule, at := &updated.Rules[i], at.Index(i)
		known, because := ruleBefore(before.Rules, updated.Rules, i)
		if because != "" && len(before.Rules) > 0 {
			h.because = append(h.because, at.String()+because)
		}
		h.demands = append(h.demands, ruleDemands(at, known, rule)...)
	}
	external := slices.ContainsFunc(updated.Rules, func(r v1alpha1.ClassRule) bool { return r.External })
	if external && !equality.Semantic.DeepEqual(before.ExternalFormat, updated.ExternalFormat) {
		h.demands = append(h.demands, grantName("", "spec.externalFormat", grantExternal))
	}
	return h
}

// ruleBefore finds the rule that allowed the i-th of the updated ones before:
// one for the same namespaces. Where there is none, or it now reaches further
// than it did, nothing counts as allowed before, and why says so.
func ruleBefore(before, updated []v1alpha1.ClassRule, i int) (known *v1alpha1.ClassRule, why string) {
	nothing := &v1alpha1.ClassRule{}
	j := slices.IndexFunc(before, func(r v1alpha1.ClassRule) bool { return sameNamespaces(r, updated[i]) })
	if j < 0 {
		return nothing, " is new, or selects other namespaces than before"
	}
	// The first rule that matches holds, so those that came before this one kept
	// their namespaces from it. Each of them must still come before it.
	for _, earlier := range before[:j] {
		if !slices.ContainsFunc(updated[:i], func(r v1alpha1.ClassRule) bool { return sameNamespaces(r, earlier) }) {
			return nothing, " reaches namespaces that a rule before it held"
		}
	}
	if longer(before[j].MaxTTL, updated[i].MaxTTL) {
		return nothing, ".maxTTL is longer than before"
	}
	if widerAttributes(before[j].Attributes, updated[i].Attributes) {
		return nothing, ".attributes, which policies go by, allows more than before"
	}
	return &before[j], ""
}

func ruleDemands(at *field.Path, before, rule *v1alpha1.ClassRule) []demand {
	var demands []demand
	permissions, except := authz.Strings(rule.Permissions), authz.Strings(rule.Except)
	for _, p := range authz.Added(authz.Strings(before.Permissions), permissions) {
		demands = append(demands, grantPermission("", at.Child("permissions").String(), p))
	}
	allowed := authz.NewSet(permissions)
	for _, p := range authz.Added(except, authz.Strings(before.Except)) {
		if allowed.Overlaps(p) {
			demands = append(demands, grantPermission("", at.Child("except").String()+" without", p))
		}
	}
	for _, extra := range []struct {
		name        string
		before, now bool
	}{
		{grantAdmin, before.Admin, rule.Admin},
		{grantExternal, before.External, rule.External},
		{grantAdoption, before.Adoption, rule.Adoption},
	} {
		if extra.now && !extra.before {
			demands = append(demands, grantName("", at.Child(extra.name).String(), extra.name))
		}
	}
	return demands
}

// sameNamespaces tells whether two rules select by the same words. No selector
// and an empty one both select every namespace.
func sameNamespaces(a, b v1alpha1.ClassRule) bool {
	everywhere := func(s *metav1.LabelSelector) bool { return s == nil || len(s.MatchLabels)+len(s.MatchExpressions) == 0 }
	if everywhere(a.NamespaceSelector) || everywhere(b.NamespaceSelector) {
		return everywhere(a.NamespaceSelector) && everywhere(b.NamespaceSelector)
	}
	return equality.Semantic.DeepEqual(a.NamespaceSelector, b.NamespaceSelector)
}

// widerAttributes tells whether a rule allows an attribute that it did not. No
// rules at all allow any.
func widerAttributes(before, updated []v1alpha1.AttributeRule) bool {
	if before == nil || updated == nil {
		return before != nil
	}
	ceiling := authz.NewCeiling(&v1alpha1.ClassRule{Attributes: before})
	for _, allowed := range updated {
		known := slices.IndexFunc(before, func(r v1alpha1.AttributeRule) bool { return r.Key == allowed.Key })
		if known < 0 || len(allowed.Values) == 0 && len(before[known].Values) > 0 {
			return true
		}
		for _, value := range allowed.Values {
			if !ceiling.AllowsAttribute(allowed.Key, string(value)) {
				return true
			}
		}
	}
	return false
}

// longer tells whether a limit allows more than before; none allows the most.
func longer(before, updated v1alpha1.Duration) bool {
	limit, limited, err := before.Parse()
	if err != nil || !limited {
		return false
	}
	length, ends, err := updated.Parse()
	return err != nil || !ends || length > limit
}
