package webhook

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authz"
)

// issuerValidator decides about changes of TrustedIssuers.
type issuerValidator struct {
	reviews  *reviewer
	exempt   string
	validate func(*v1alpha1.TrustedIssuerSpec) field.ErrorList
}

// ValidateCreate implements admission.Validator.
func (v *issuerValidator) ValidateCreate(ctx context.Context, created *v1alpha1.TrustedIssuer) (admission.Warnings, error) {
	return v.admit(ctx, nil, created)
}

// ValidateUpdate implements admission.Validator.
func (v *issuerValidator) ValidateUpdate(ctx context.Context, old, updated *v1alpha1.TrustedIssuer) (admission.Warnings, error) {
	return v.admit(ctx, old, updated)
}

// ValidateDelete implements admission.Validator. Deletion is never refused.
func (v *issuerValidator) ValidateDelete(context.Context, *v1alpha1.TrustedIssuer) (admission.Warnings, error) {
	return nil, nil
}

func (v *issuerValidator) admit(ctx context.Context, old, updated *v1alpha1.TrustedIssuer) (admission.Warnings, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	request, err := admission.RequestFromContext(ctx)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	if old != nil && equality.Semantic.DeepEqual(old.Spec, updated.Spec) {
		return nil, nil
	}
	if errs := v.validate(&updated.Spec); len(errs) > 0 {
		return nil, apierrors.NewInvalid(v1alpha1.GroupVersion.WithKind("TrustedIssuer").GroupKind(), updated.Name, errs)
	}
	if request.UserInfo.Username == v.exempt {
		return nil, nil
	}
	var before *v1alpha1.TrustedIssuerSpec
	if old != nil {
		before = &old.Spec
	}
	return nil, review(ctx, v.reviews, request, updated.Name, issuerHandover(before, &updated.Spec))
}

// issuerHandover is what a change of a TrustedIssuer hands out, to whoever holds
// a token of that issuer; before is nil where it is created.
func issuerHandover(before, updated *v1alpha1.TrustedIssuerSpec) handover {
	var h handover
	held := v1alpha1.IssuerCeiling{}
	if before != nil {
		if h.because = reachesFurther(before, updated); len(h.because) == 0 {
			held = before.Ceiling
		}
	}
	for _, p := range authz.Added(authz.Strings(held.Permissions), authz.Strings(updated.Ceiling.Permissions)) {
		h.demands = append(h.demands, grantPermission("", "spec.ceiling.permissions", p))
	}
	for _, role := range updated.Ceiling.Roles {
		if !slices.Contains(held.Roles, role) {
			h.demands = append(h.demands, use("", fmt.Sprintf("spec.ceiling.roles %q", role), "accessroles", role))
		}
	}
	return h
}

// reachesFurther says why a change that may leave the ceiling as it is lets in
// others than before, makes more of them, or does so for longer.
func reachesFurther(before, updated *v1alpha1.TrustedIssuerSpec) []string {
	var because []string
	for _, c := range []struct {
		is  bool
		why string
	}{
		{before.Issuer != updated.Issuer, "spec.issuer is another one"},
		{
			before.JWKSURL != updated.JWKSURL || before.JWKS != updated.JWKS || !bytes.Equal(before.CABundle, updated.CABundle),
			"the issuer's keys come from elsewhere (spec.jwksURL, spec.jwks, spec.caBundle)",
		},
		{widened(before.Audiences, updated.Audiences), "spec.audiences has a new audience"},
		{beyondDefault(before.Algorithms, updated.Algorithms), "spec.algorithms has a new algorithm"},
		{beyondDefault(before.IssuedAudiences, updated.IssuedAudiences), "spec.issuedAudiences has a new audience"},
		{widened(expressions(updated), expressions(before)), "spec.validations checks less than before"},
		{before.Mapping != updated.Mapping, "spec.mapping says otherwise who a holder is"},
		{longer(before.MaxTTL, updated.MaxTTL), "spec.maxTTL is longer than before"},
		{longer(before.MaxTokenAge, updated.MaxTokenAge), "spec.maxTokenAge is longer than before"},
		{updated.DirectUse && !before.DirectUse, "spec.directUse accepts the issuer's tokens as they are"},
	} {
		if c.is {
			because = append(because, c.why)
		}
	}
	return because
}

// widened tells whether updated has something that before has not.
func widened(before, updated []string) bool {
	return slices.ContainsFunc(updated, func(s string) bool { return !slices.Contains(before, s) })
}

// beyondDefault is widened where there is a default, which is another package's: to
// begin or to stop saying which counts as new.
func beyondDefault(before, updated []string) bool {
	return len(before) == 0 != (len(updated) == 0) || widened(before, updated)
}

func expressions(spec *v1alpha1.TrustedIssuerSpec) []string {
	var all []string
	for _, v := range spec.Validations {
		all = append(all, v.Expression)
	}
	return all
}
