package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"

	"gomodules.xyz/jsonpatch/v2"
	admissionv1 "k8s.io/api/admission/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// requestAnnotations ask for something to be done once.
var requestAnnotations = []string{
	v1alpha1.AnnotationRotateRequestedAt, v1alpha1.AnnotationRollbackRequestedAt, v1alpha1.AnnotationDiscardRequestedAt,
}

// credentialDefaulter writes into new and changed credentials what their authors
// leave out, or cannot be left to say: the class, and who asked.
type credentialDefaulter struct {
	classes classReader
	empty   func() v1alpha1.Credential
}

// Handle implements admission.Handler.
func (d *credentialDefaulter) Handle(ctx context.Context, request admission.Request) admission.Response {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	old, updated, err := d.decode(request)
	if err != nil {
		// The schema is applied after this, and says better what is wrong; what
		// it lets pass the validating webhook cannot read either, and refuses.
		return admission.Allowed("")
	}
	before := map[string]string(nil)
	if old != nil {
		before = old.GetAnnotations()
	}
	patches := actorPatches(updated.GetAnnotations(), actors(old, updated, actorOf(request, before, updated.GetAnnotations())))
	if updated.CredentialSpec().CredentialClassName == "" {
		class, err := d.className(ctx, old)
		if err != nil {
			return denied(classError(updated, err))
		}
		patches = append(patches, jsonpatch.NewOperation("add", "/spec/credentialClassName", class))
	}
	return admission.Patched("", patches...)
}

// decode reads the credential, and the one before where there is one.
func (d *credentialDefaulter) decode(request admission.Request) (old, updated v1alpha1.Credential, err error) {
	updated = d.empty()
	if err := json.Unmarshal(request.Object.Raw, updated); err != nil {
		return nil, nil, err
	}
	if request.Operation != admissionv1.Update {
		return nil, updated, nil
	}
	old = d.empty()
	return old, updated, json.Unmarshal(request.OldObject.Raw, old)
}

// className is the class of a credential that names none: the one it had, or the
// default as it is now, written once and for all.
func (d *credentialDefaulter) className(ctx context.Context, old v1alpha1.Credential) (string, error) {
	if old != nil && old.CredentialSpec().CredentialClassName != "" {
		return old.CredentialSpec().CredentialClassName, nil
	}
	return d.classes.theDefault(ctx)
}

// actors are the values of the annotations that say who asked and who revoked;
// an empty one is to be absent. Users cannot choose them: where nothing was
// asked, the value from before stands.
func actors(old, updated v1alpha1.Credential, user string) map[string]string {
	requestedBy, revokedBy := user, user
	if old != nil {
		// The reason counts as a part of the request, so that nobody puts words
		// into another's mouth; and so does for whom it is made. Whoever declares another
		// value asks for its version.
		parts := append(slices.Clone(requestAnnotations), v1alpha1.AnnotationReason, v1alpha1.AnnotationOnBehalfOf)
		asked := slices.ContainsFunc(parts, func(annotation string) bool { return newRequest(old, updated, annotation) })
		if !asked && equality.Semantic.DeepEqual(old.CredentialSpec().External, updated.CredentialSpec().External) {
			requestedBy = old.GetAnnotations()[v1alpha1.AnnotationRequestedBy]
		}
		if equality.Semantic.DeepEqual(old.CredentialSpec().Revoked, updated.CredentialSpec().Revoked) {
			revokedBy = old.GetAnnotations()[v1alpha1.AnnotationRevokedBy]
		}
	}
	if updated.CredentialSpec().Revoked == nil {
		revokedBy = ""
	}
	return map[string]string{v1alpha1.AnnotationRequestedBy: requestedBy, v1alpha1.AnnotationRevokedBy: revokedBy}
}

// recordRevoker answers for the updates that only revoke. It refuses nothing,
// whatever it is sent.
func recordRevoker(_ context.Context, request admission.Request) admission.Response {
	var object metav1.PartialObjectMetadata
	if err := json.Unmarshal(request.Object.Raw, &object); err != nil {
		return admission.Allowed("")
	}
	var old metav1.PartialObjectMetadata // empty where it cannot be read: then all there is counts as new
	_ = json.Unmarshal(request.OldObject.Raw, &old)
	actor := actorOf(request, old.Annotations, object.Annotations)
	return admission.Patched("", actorPatches(object.Annotations, map[string]string{v1alpha1.AnnotationRevokedBy: actor})...)
}

// recordRevocation writes down who made a Revocation, once and for all. It refuses nothing,
// whatever it is sent.
func recordRevocation(_ context.Context, request admission.Request) admission.Response {
	var object, old metav1.PartialObjectMetadata
	if err := json.Unmarshal(request.Object.Raw, &object); err != nil {
		return admission.Allowed("")
	}
	actor := actorOf(request, nil, object.Annotations)
	if request.Operation == admissionv1.Update && json.Unmarshal(request.OldObject.Raw, &old) == nil {
		actor = old.Annotations[v1alpha1.AnnotationRevokedBy]
	}
	return admission.Patched("", annotationPatches(object.Annotations, v1alpha1.AnnotationRevokedBy, actor)...)
}

// maxActor is how long a name status has room for.
const maxActor = 512

// actorOf is who asked, and for whom they say they did. Nobody need be trusted for that:
// who said it is named first. What an earlier request said is not this one's.
func actorOf(request admission.Request, before, annotations map[string]string) string {
	actor := request.UserInfo.Username
	if behalf := annotations[v1alpha1.AnnotationOnBehalfOf]; behalf != "" && behalf != before[v1alpha1.AnnotationOnBehalfOf] {
		actor += " for " + behalf
	}
	return cut(actor, maxActor)
}

// actorPatches bring the annotations to the values wanted, and touch nothing
// else.
func actorPatches(annotations, wanted map[string]string) []jsonpatch.Operation {
	var patches []jsonpatch.Operation
	added := map[string]string{}
	for _, key := range []string{v1alpha1.AnnotationRequestedBy, v1alpha1.AnnotationRevokedBy} {
		value, known := wanted[key]
		present, there := annotations[key]
		path := "/metadata/annotations/" + strings.ReplaceAll(key, "/", "~1")
		switch {
		case !known || present == value && there == (value != ""):
		case value == "":
			patches = append(patches, jsonpatch.NewOperation("remove", path, nil))
		case len(annotations) == 0:
			added[key] = value
		default:
			patches = append(patches, jsonpatch.NewOperation("add", path, value))
		}
	}
	if len(added) > 0 {
		patches = append(patches, jsonpatch.NewOperation("add", "/metadata/annotations", added))
	}
	return patches
}

// denied is the response to a change that is refused with an API error.
func denied(err error) admission.Response {
	response := admission.Denied(err.Error())
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		s := status.Status()
		response.Result = &s
	}
	return response
}
