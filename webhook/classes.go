package webhook

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authz"
)

// classReader reads the classes, and the namespaces their rules select.
type classReader struct{ reader client.Reader }

// classField is where a credential names its class. Its author can do something
// about an error there; that is a *field.Error, any other is a failure.
var classField = field.NewPath("spec", "credentialClassName")

// ceiling reads a class and its rule for a namespace; the rule is nil where none
// matches.
func (c classReader) ceiling(ctx context.Context, namespace, name string) (*v1alpha1.CredentialClassSpec, *v1alpha1.ClassRule, error) {
	if name == "" {
		return nil, nil, field.Required(classField, "name a CredentialClass")
	}
	class := &v1alpha1.CredentialClass{}
	if err := c.reader.Get(ctx, client.ObjectKey{Name: name}, class); apierrors.IsNotFound(err) {
		missing := field.NotFound(classField, name)
		missing.Detail = "name one that exists (kubectl get credentialclasses), or have this one made"
		return nil, nil, missing
	} else if err != nil {
		return nil, nil, fmt.Errorf("read CredentialClass %s: %w", name, err)
	}
	labels := &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}}
	if err := c.reader.Get(ctx, client.ObjectKey{Name: namespace}, labels); err != nil {
		return nil, nil, fmt.Errorf("read the labels of namespace %s: %w", namespace, err)
	}
	rule, err := authz.SelectRule(&class.Spec, labels.Labels)
	if err != nil {
		return nil, nil, fmt.Errorf("CredentialClass %s: %w", name, err)
	}
	return &class.Spec, rule, nil
}

// defaults are the names of the classes marked as the default, sorted.
func (c classReader) defaults(ctx context.Context) ([]string, error) {
	var list v1alpha1.CredentialClassList
	if err := c.reader.List(ctx, &list); err != nil {
		return nil, fmt.Errorf("list CredentialClasses: %w", err)
	}
	var marked []string
	for i := range list.Items {
		if isDefault(&list.Items[i]) {
			marked = append(marked, list.Items[i].Name)
		}
	}
	slices.Sort(marked)
	return marked, nil
}

// theDefault is the default class, if there is exactly one.
func (c classReader) theDefault(ctx context.Context) (string, error) {
	marked, err := c.defaults(ctx)
	if err != nil {
		return "", err
	}
	switch len(marked) {
	case 1:
		return marked[0], nil
	case 0:
		return "", field.Required(classField, "no CredentialClass is marked as the default: name one here, or have one marked: "+
			"kubectl annotate credentialclass NAME "+v1alpha1.AnnotationDefaultClass+"=true")
	default:
		return "", field.Required(classField, fmt.Sprintf("more than one CredentialClass is marked as the default (%s): name one here, or have "+
			"the mark taken off all but one: kubectl annotate credentialclass NAME %s-", strings.Join(marked, ", "), v1alpha1.AnnotationDefaultClass))
	}
}

func isDefault(class *v1alpha1.CredentialClass) bool {
	return class.Annotations[v1alpha1.AnnotationDefaultClass] == "true"
}

// classError is what the author of a credential is told about a class that could
// not be had.
func classError(c v1alpha1.Credential, err error) error {
	var problem *field.Error
	if errors.As(err, &problem) {
		return invalid(c, field.ErrorList{problem})
	}
	return apierrors.NewInternalError(fmt.Errorf("nothing was changed: %w; try again, and if it goes on, look at the log of mintmark-controller", err))
}

func resourceOf(request admission.Request) schema.GroupResource {
	return schema.GroupResource{Group: request.Resource.Group, Resource: request.Resource.Resource}
}
