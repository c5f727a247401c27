package webhook

import (
	"context"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authz"
)

// roleValidator decides about changes of AccessRoles.
type roleValidator struct {
	reviews *reviewer
	exempt  string
}

// ValidateCreate implements admission.Validator.
func (v *roleValidator) ValidateCreate(ctx context.Context, created *v1alpha1.AccessRole) (admission.Warnings, error) {
	return v.admit(ctx, &v1alpha1.AccessRole{}, created)
}

// ValidateUpdate implements admission.Validator.
func (v *roleValidator) ValidateUpdate(ctx context.Context, old, updated *v1alpha1.AccessRole) (admission.Warnings, error) {
	return v.admit(ctx, old, updated)
}

// ValidateDelete implements admission.Validator. Deletion is never refused.
func (v *roleValidator) ValidateDelete(context.Context, *v1alpha1.AccessRole) (admission.Warnings, error) {
	return nil, nil
}

func (v *roleValidator) admit(ctx context.Context, old, updated *v1alpha1.AccessRole) (admission.Warnings, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	request, err := admission.RequestFromContext(ctx)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	if request.UserInfo.Username == v.exempt {
		return nil, nil
	}
	return nil, review(ctx, v.reviews, request, updated.Name, roleHandover(&old.Spec, &updated.Spec))
}

// roleHandover is what a change of a role hands out, to whoever holds the role,
// in whatever namespace that is.
func roleHandover(before, updated *v1alpha1.AccessRoleSpec) handover {
	var h handover
	for _, p := range authz.Added(authz.Strings(before.Permissions), authz.Strings(updated.Permissions)) {
		h.demands = append(h.demands, grantPermission("", "spec.permissions", p))
	}
	return h
}
