package management

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/audit"
)

// cluster reads and writes objects at the API server. Its errors are those of
// k8s.io/apimachinery/pkg/api/errors.
type cluster struct {
	rest   rest.Interface
	params runtime.ParameterCodec
}

func newCluster(r rest.Interface) *cluster {
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, v1alpha1.GroupVersion)
	return &cluster{rest: r, params: runtime.NewParameterCodec(scheme)}
}

func resourceOf(kind v1alpha1.Kind) string {
	if kind == v1alpha1.KindAPIKey {
		return "apikeys"
	}
	return "servicetokens"
}

func empty(kind v1alpha1.Kind) v1alpha1.Credential {
	if kind == v1alpha1.KindAPIKey {
		return new(v1alpha1.APIKey)
	}
	return new(v1alpha1.ServiceToken)
}

// list gives a page of the credentials of a kind, in a namespace or in all.
func (c *cluster) list(ctx context.Context, kind v1alpha1.Kind, namespace string, o metav1.ListOptions) ([]v1alpha1.Credential, string, error) {
	request := c.rest.Get().Resource(resourceOf(kind)).NamespaceIfScoped(namespace, namespace != "").VersionedParams(&o, c.params)
	var items []v1alpha1.Credential
	if kind == v1alpha1.KindAPIKey {
		page := new(v1alpha1.APIKeyList)
		if err := request.Do(ctx).Into(page); err != nil {
			return nil, "", err
		}
		for i := range page.Items {
			items = append(items, &page.Items[i])
		}
		return items, page.Continue, nil
	}
	page := new(v1alpha1.ServiceTokenList)
	if err := request.Do(ctx).Into(page); err != nil {
		return nil, "", err
	}
	for i := range page.Items {
		items = append(items, &page.Items[i])
	}
	return items, page.Continue, nil
}

// get reads a credential as it is now.
func (c *cluster) get(ctx context.Context, kind v1alpha1.Kind, namespace, name string) (v1alpha1.Credential, error) {
	o := empty(kind)
	return o, c.rest.Get().Resource(resourceOf(kind)).Namespace(namespace).Name(name).Do(ctx).Into(o)
}

// fieldManager is who owns the fields written here.
const fieldManager = "mintmark-server"

// create makes a credential.
func (c *cluster) create(ctx context.Context, o v1alpha1.Credential) (v1alpha1.Credential, error) {
	kind := o.CredentialKind()
	created := empty(kind)
	o.GetObjectKind().SetGroupVersionKind(v1alpha1.GroupVersion.WithKind(string(kind)))
	err := c.rest.Post().Resource(resourceOf(kind)).Namespace(o.GetNamespace()).VersionedParams(&metav1.CreateOptions{FieldManager: fieldManager}, c.params).
		WarningHandlerWithContext(rest.NoWarnings{}).Body(o).Do(ctx).Into(created)
	return created, err
}

// patch changes a credential by a JSON merge patch (RFC 7386).
func (c *cluster) patch(ctx context.Context, o v1alpha1.Credential, change map[string]any) (v1alpha1.Credential, error) {
	text, err := json.Marshal(change)
	if err != nil {
		return nil, fmt.Errorf("writing a patch: %w", err)
	}
	kind := o.CredentialKind()
	patched := empty(kind)
	err = c.rest.Patch(types.MergePatchType).Resource(resourceOf(kind)).Namespace(o.GetNamespace()).Name(o.GetName()).
		VersionedParams(&metav1.PatchOptions{FieldManager: fieldManager}, c.params).
		WarningHandlerWithContext(rest.NoWarnings{}).Body(text).Do(ctx).Into(patched)
	return patched, err
}

// class reads a CredentialClass.
func (c *cluster) class(ctx context.Context, name string) (*v1alpha1.CredentialClass, error) {
	class := new(v1alpha1.CredentialClass)
	return class, c.rest.Get().Resource("credentialclasses").Name(name).Do(ctx).Into(class)
}

// createRevocation makes a Revocation.
func (c *cluster) createRevocation(ctx context.Context, r *v1alpha1.Revocation) (*v1alpha1.Revocation, error) {
	created := new(v1alpha1.Revocation)
	r.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("Revocation"))
	err := c.rest.Post().Resource("revocations").VersionedParams(&metav1.CreateOptions{FieldManager: fieldManager}, c.params).Body(r).Do(ctx).Into(created)
	return created, err
}

// revocation reads a Revocation.
func (c *cluster) revocation(ctx context.Context, name string) (*v1alpha1.Revocation, error) {
	r := new(v1alpha1.Revocation)
	return r, c.rest.Get().Resource("revocations").Name(name).Do(ctx).Into(r)
}

// refusesForGood tells whether the API server has said no, so that nothing was written.
func refusesForGood(err error) bool {
	for _, is := range []func(error) bool{
		apierrors.IsAlreadyExists, apierrors.IsConflict, apierrors.IsInvalid, apierrors.IsForbidden, apierrors.IsBadRequest, apierrors.IsNotFound,
		apierrors.IsUnauthorized, apierrors.IsRequestEntityTooLargeError, apierrors.IsTooManyRequests, apierrors.IsMethodNotSupported,
	} {
		if is(err) {
			return true
		}
	}
	return false
}

// refusal is the answer where the API server, or admission, did not take a write. What it
// says is about what the caller asked for, and is passed on.
func (a *API) refusal(c *Caller, doing string, err error) *Problem {
	// The kind's name is long enough to be masked.
	said := string(audit.Clean(strings.ReplaceAll(err.Error(), "ValidatingAdmissionPolicy", "policy"), maxDetail))
	switch {
	case apierrors.IsInvalid(err), apierrors.IsBadRequest(err):
		return problem(http.StatusUnprocessableEntity, said)
	case apierrors.IsForbidden(err):
		a.config.Log.Warn("management: "+doing+" was refused", "error", said, "request_id", c.RequestID, "caller", c.Subject)
		return problem(http.StatusForbidden, said)
	case apierrors.IsNotFound(err):
		return problem(http.StatusNotFound, said)
	case apierrors.IsConflict(err):
		return problem(http.StatusConflict, "It was changed at the same time. Look at it, and try again.")
	case apierrors.IsRequestEntityTooLargeError(err):
		return problem(http.StatusRequestEntityTooLarge, said)
	}
	return a.clusterError(c, doing, err)
}
