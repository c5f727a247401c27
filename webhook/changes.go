package webhook

import (
	"bytes"
	"context"
	"encoding/json"
	"reflect"
	"strconv"
	"strings"

	"gomodules.xyz/jsonpatch/v2"
	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/lifecycle"
)

// PathChange is that of the webhook that writes down who changed what an object allows.
const PathChange = "/mutate-mintmark-dev-v1alpha1-change"

// changed is as much of an object as it takes to tell whether what it allows is another.
type changed struct {
	Metadata metav1.ObjectMeta `json:"metadata"`
	Spec     json.RawMessage   `json:"spec"`
}

// recordChanger writes down who changed what an object allows, for the audit log. It
// refuses nothing, whatever it is sent. Users cannot choose what stands there: where
// nothing was changed, the value from before does.
func recordChanger(_ context.Context, request admission.Request) admission.Response {
	var object, old changed
	if err := json.Unmarshal(request.Object.Raw, &object); err != nil {
		return admission.Allowed("")
	}
	update := request.Operation == admissionv1.Update
	if update {
		_ = json.Unmarshal(request.OldObject.Raw, &old) // empty where it cannot be read: then it counts as changed
	}
	before, after := marks(request.Kind.Kind, &old, &object, update)
	value := after + " " + actorOf(request, old.Metadata.Annotations, object.Metadata.Annotations)
	if update && before == after {
		value = old.Metadata.Annotations[v1alpha1.AnnotationChangedBy]
	}
	return admission.Patched("", annotationPatches(object.Metadata.Annotations, v1alpha1.AnnotationChangedBy, value)...)
}

// marks name what the object allowed and allows.
func marks(kind string, old, object *changed, update bool) (before, after string) {
	if kind == string(v1alpha1.KindServiceToken) || kind == string(v1alpha1.KindAPIKey) {
		return grantMark(old.Spec), grantMark(object.Spec)
	}
	before, after = strconv.FormatInt(old.Metadata.Generation, 10), "1"
	switch {
	case update && sameJSON(old.Spec, object.Spec):
		after = before
	case update: // the API server counts after admission
		after = strconv.FormatInt(old.Metadata.Generation+1, 10)
	}
	return before, after
}

func grantMark(text json.RawMessage) string {
	var spec v1alpha1.CredentialSpec
	if json.Unmarshal(text, &spec) != nil {
		return ""
	}
	return lifecycle.GrantMark(&spec)
}

// sameJSON compares by value, and numbers by their digits.
func sameJSON(a, b json.RawMessage) bool {
	read := func(text json.RawMessage) (v any) {
		decoder := json.NewDecoder(bytes.NewReader(text))
		decoder.UseNumber()
		if decoder.Decode(&v) != nil {
			return nil
		}
		return v
	}
	return reflect.DeepEqual(read(a), read(b))
}

// annotationPatches bring one annotation to the value wanted, an empty one being to be
// absent, and touch nothing else.
func annotationPatches(annotations map[string]string, key, value string) []jsonpatch.Operation {
	present, there := annotations[key]
	path := "/metadata/annotations/" + strings.ReplaceAll(key, "/", "~1")
	switch {
	case present == value && there == (value != ""):
		return nil
	case value == "":
		return []jsonpatch.Operation{jsonpatch.NewOperation("remove", path, nil)}
	case len(annotations) == 0:
		return []jsonpatch.Operation{jsonpatch.NewOperation("add", "/metadata/annotations", map[string]string{key: value})}
	}
	return []jsonpatch.Operation{jsonpatch.NewOperation("add", path, value)}
}
