package webhook

import (
	"context"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authz/policy"
)

// policyValidator compiles AccessPolicies. Nobody is asked what they may hand
// out, for policies only narrow; who may write them at all, RBAC says.
type policyValidator struct{}

// ValidateCreate implements admission.Validator.
func (v policyValidator) ValidateCreate(_ context.Context, created *v1alpha1.AccessPolicy) (admission.Warnings, error) {
	return v.admit(created)
}

// ValidateUpdate implements admission.Validator. One that does not touch the spec
// is not refused for a policy that an earlier release let in.
func (v policyValidator) ValidateUpdate(_ context.Context, old, updated *v1alpha1.AccessPolicy) (admission.Warnings, error) {
	if equality.Semantic.DeepEqual(old.Spec, updated.Spec) {
		return nil, nil
	}
	return v.admit(updated)
}

// ValidateDelete implements admission.Validator. Deletion is never refused.
func (policyValidator) ValidateDelete(context.Context, *v1alpha1.AccessPolicy) (admission.Warnings, error) {
	return nil, nil
}

func (policyValidator) admit(p *v1alpha1.AccessPolicy) (admission.Warnings, error) {
	if errs := policy.Validate(&p.Spec); len(errs) > 0 {
		return nil, apierrors.NewInvalid(v1alpha1.GroupVersion.WithKind("AccessPolicy").GroupKind(), p.Name, errs)
	}
	return policy.Warnings(&p.Spec), nil
}
