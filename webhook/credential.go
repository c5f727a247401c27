package webhook

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/lifecycle"
)

// credentialAdmission decides about changes of ServiceTokens and APIKeys.
type credentialAdmission struct {
	classes classReader
	reviews *reviewer
	exempt  string
	now     func() time.Time
}

// credentialValidator is credentialAdmission for one kind.
type credentialValidator[T v1alpha1.Credential] struct{ credentialAdmission }

// ValidateCreate implements admission.Validator.
func (v *credentialValidator[T]) ValidateCreate(ctx context.Context, created T) (admission.Warnings, error) {
	return v.admit(ctx, nil, created)
}

// ValidateUpdate implements admission.Validator.
func (v *credentialValidator[T]) ValidateUpdate(ctx context.Context, old, updated T) (admission.Warnings, error) {
	return v.admit(ctx, old, updated)
}

// ValidateDelete implements admission.Validator. Deletion is never refused.
func (v *credentialValidator[T]) ValidateDelete(context.Context, T) (admission.Warnings, error) {
	return nil, nil
}

// admit decides about one change; old is nil where the credential is created.
func (a *credentialAdmission) admit(ctx context.Context, old, updated v1alpha1.Credential) (admission.Warnings, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	request, err := admission.RequestFromContext(ctx)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	spec, errs := updated.CredentialSpec(), append(validateRequests(old, updated, a.now()), validateSecretName(old, updated)...)
	if len(errs) > 0 {
		return nil, invalid(updated, errs)
	}
	if old != nil && !decides(old, updated) {
		return nil, nil
	}
	class, rule, err := a.classes.ceiling(ctx, updated.GetNamespace(), spec.CredentialClassName)
	if err != nil {
		return nil, classError(updated, err)
	}
	handover := credentialHandover(old, updated, class)
	errs = lifecycle.Validate(updated.CredentialKind(), updated.GetName(), spec, class, rule)
	if old != nil && len(handover.demands) == 0 {
		before := lifecycle.Validate(old.CredentialKind(), old.GetName(), old.CredentialSpec(), class, rule)
		errs = introduced(before, errs)
	}
	if len(errs) > 0 {
		return nil, invalid(updated, errs)
	}
	if request.UserInfo.Username != a.exempt {
		if err := review(ctx, a.reviews, request, updated.GetName(), handover); err != nil {
			return nil, err
		}
	}
	return lifecycle.Warnings(spec, class, a.now()), nil
}

// decides tells whether there is anything to decide about a change: it touches
// the spec other than to revoke, or revives what was revoked.
func decides(old, updated v1alpha1.Credential) bool {
	before, spec := old.CredentialSpec(), updated.CredentialSpec()
	if revoked(old) && revives(old, updated) {
		return true
	}
	return !equality.Semantic.DeepEqual(before, spec) && !onlyRevokes(before, spec)
}

// review asks whether the author of the request may hand out what it hands out.
func review(ctx context.Context, reviews *reviewer, request admission.Request, name string, h handover) error {
	refused, err := reviews.refused(ctx, request.UserInfo, h.demands)
	if err != nil {
		return apierrors.NewInternalError(fmt.Errorf("nothing was changed, for Mintmark could not find out whether you may: %w; try again, "+
			"and if it goes on, look at the log of mintmark-controller and whether its account may create subjectaccessreviews", err))
	}
	if len(refused) > 0 {
		return apierrors.NewForbidden(resourceOf(request), name, refusal(request.UserInfo.Username, h.because, refused))
	}
	return nil
}

// futureRequest is how far ahead of this clock a request may be dated.
const futureRequest = 5 * time.Minute

// maxReason bounds the reason of a request, as the schema does for spec.revoked.
const maxReason = 1024

// validateRequests looks at the requests made by annotation that are new. One
// dated into the future would be carried out now and stand in the way of every
// other until then, for each acts once, if later than the last one.
func validateRequests(old, updated v1alpha1.Credential, now time.Time) field.ErrorList {
	var errs field.ErrorList
	at, example := field.NewPath("metadata", "annotations"), now.UTC().Format(time.RFC3339)
	for _, annotation := range requestAnnotations {
		if !newRequest(old, updated, annotation) {
			continue
		}
		value := updated.GetAnnotations()[annotation]
		when, err := time.Parse(time.RFC3339Nano, value)
		switch {
		case err != nil:
			errs = append(errs, field.Invalid(at.Key(annotation), cut(value, 64), "not a time: write it like "+example+" (RFC 3339)"))
		case when.After(now.Add(futureRequest)):
			errs = append(errs, field.Invalid(at.Key(annotation), value, "lies in the future: give the present time, "+example))
		}
	}
	if reason := v1alpha1.AnnotationReason; newRequest(old, updated, reason) && len(updated.GetAnnotations()[reason]) > maxReason {
		errs = append(errs, field.TooLong(at.Key(reason), "", maxReason))
	}
	return errs
}

// validateSecretName keeps the value from being put into a second Secret beside
// the first, which nobody would take away. The schema sees to names that are
// written, and cannot see the credential's own, which counts where none is.
func validateSecretName(old, updated v1alpha1.Credential) field.ErrorList {
	if old == nil || updated.CredentialSpec().External != nil {
		return nil
	}
	before, after := lifecycle.SecretName(old.GetName(), old.CredentialSpec()), lifecycle.SecretName(updated.GetName(), updated.CredentialSpec())
	if before == after || old.CredentialStatus().CurrentVersion == 0 { // nothing is in it yet: another one may be in its way
		return nil
	}
	return field.ErrorList{field.Forbidden(field.NewPath("spec", "secret", "name"), fmt.Sprintf(
		"the value is in Secret %s, and its name cannot be changed: make a new credential and move its users over", before))}
}

// cut is the text, or as much of its beginning as the bytes allow.
func cut(text string, bytes int) string {
	if len(text) <= bytes {
		return text
	}
	return strings.ToValidUTF8(text[:bytes], "")
}

// introduced are the errors that were not there before the change: what a class
// stopped allowing since does not keep anybody from changing something else. A
// change that hands something out has no such favour.
func introduced(before, after field.ErrorList) field.ErrorList {
	known := map[string]bool{}
	for _, err := range before {
		known[withoutIndex(err)] = true
	}
	var errs field.ErrorList
	for _, err := range after {
		if !known[withoutIndex(err)] {
			errs = append(errs, err)
		}
	}
	return errs
}

var listIndex = regexp.MustCompile(`\[\d+\]`)

// withoutIndex tells an error by what it is about and not by its place in a
// list.
func withoutIndex(err *field.Error) string {
	return listIndex.ReplaceAllString(err.Field, "[]") + "\x00" + err.ErrorBody()
}

func invalid(c v1alpha1.Credential, errs field.ErrorList) error {
	return apierrors.NewInvalid(v1alpha1.GroupVersion.WithKind(string(c.CredentialKind())).GroupKind(), c.GetName(), errs)
}
