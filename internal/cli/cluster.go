package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// fieldOwner is the manager's name in managedFields, so that it can be told who
// wrote an annotation.
const fieldOwner = client.FieldOwner("mintmark-cli")

// cluster is the connection to the Kubernetes API.
type cluster struct {
	client.WithWatch
	config    *rest.Config
	http      *http.Client
	clock     *serverClock
	namespace string
	// namespaceSet: -n was given.
	namespaceSet bool
}

var scheme = newScheme()

func newScheme() *runtime.Scheme {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		v1alpha1.AddToScheme, corev1.AddToScheme, appsv1.AddToScheme, coordinationv1.AddToScheme,
		admissionregistrationv1.AddToScheme, apiextensionsv1.AddToScheme,
	} {
		if err := add(s); err != nil {
			panic(err) // the types are fixed: found by any test
		}
	}
	return s
}

// newMapper knows the resources the commands touch, which saves every command
// the round trips of discovery.
func newMapper() meta.RESTMapper {
	m := meta.NewDefaultRESTMapper(nil)
	for _, k := range kinds {
		gv := v1alpha1.GroupVersion
		m.AddSpecific(gv.WithKind(string(k.name)), gv.WithResource(k.resource), gv.WithResource(k.singular), meta.RESTScopeNamespace)
	}
	for _, gvk := range []schema.GroupVersionKind{
		corev1.SchemeGroupVersion.WithKind("Secret"), corev1.SchemeGroupVersion.WithKind("Service"),
		appsv1.SchemeGroupVersion.WithKind("Deployment"), coordinationv1.SchemeGroupVersion.WithKind("Lease"),
	} {
		m.Add(gvk, meta.RESTScopeNamespace)
	}
	for _, gvk := range []schema.GroupVersionKind{
		v1alpha1.GroupVersion.WithKind("CredentialClass"), v1alpha1.GroupVersion.WithKind("Revocation"),
		v1alpha1.GroupVersion.WithKind("AccessRole"), v1alpha1.GroupVersion.WithKind("AccessPolicy"),
		corev1.SchemeGroupVersion.WithKind("Namespace"), apiextensionsv1.SchemeGroupVersion.WithKind("CustomResourceDefinition"),
		admissionregistrationv1.SchemeGroupVersion.WithKind("ValidatingWebhookConfiguration"),
		admissionregistrationv1.SchemeGroupVersion.WithKind("MutatingWebhookConfiguration"),
		admissionregistrationv1.SchemeGroupVersion.WithKind("ValidatingAdmissionPolicy"),
		admissionregistrationv1.SchemeGroupVersion.WithKind("ValidatingAdmissionPolicyBinding"),
	} {
		m.Add(gvk, meta.RESTScopeRoot)
	}
	return m
}

// cluster makes the connection the flags describe. It sends nothing yet.
func (a *app) cluster() (*cluster, error) {
	loader := a.kube.ToRawKubeConfigLoader()
	namespace, set, err := loader.Namespace()
	if err != nil {
		return nil, kubeconfigError(err)
	}
	config, err := a.kube.ToRESTConfig()
	if err != nil {
		return nil, kubeconfigError(err)
	}
	// Where there is nothing at all, kubectl's defaults name a port nobody
	// listens at any more.
	raw, err := loader.RawConfig()
	if err != nil {
		return nil, kubeconfigError(err)
	}
	if len(raw.Clusters) == 0 && *a.kube.APIServer == "" && config.Host == clientcmd.ClusterDefaults.Server {
		return nil, errNoCluster
	}
	clock := newServerClock()
	config.UserAgent = "mintmark/" + a.buildVersion()
	config.QPS = -1 // the API server's priority and fairness is the flow control
	config.WarningHandler = rest.NewWarningWriter(a.ErrOut, rest.WarningWriterOptions{Deduplicate: true})
	config.Wrap(clock.wrap)
	httpClient, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, kubeconfigError(err)
	}
	c, err := client.NewWithWatch(config, client.Options{HTTPClient: httpClient, Scheme: scheme, Mapper: newMapper()})
	if err != nil {
		return nil, kubeconfigError(err)
	}
	return &cluster{WithWatch: c, config: config, http: httpClient, clock: clock, namespace: namespace, namespaceSet: set}, nil
}

var errNoCluster = errors.New("no cluster to talk to: set KUBECONFIG, or give --kubeconfig")

func kubeconfigError(err error) error {
	if clientcmd.IsEmptyConfig(err) {
		return errNoCluster
	}
	return fmt.Errorf("reading the kubeconfig: %w", err)
}

// discovery gives a client for the versions and groups of the API server.
func (c *cluster) discovery() (*discovery.DiscoveryClient, error) {
	return discovery.NewDiscoveryClientForConfigAndClient(c.config, c.http)
}

// raw gives a client for requests of our group that controller-runtime does not
// make, such as those for tables.
func (c *cluster) raw() (rest.Interface, error) {
	config := rest.CopyConfig(c.config)
	config.APIPath = "/apis"
	config.GroupVersion = &v1alpha1.GroupVersion
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	return rest.RESTClientForConfigAndClient(config, c.http)
}

// get reads one credential.
func (c *cluster) get(ctx context.Context, r ref) (v1alpha1.Credential, error) {
	o := r.kind.object()
	err := c.Get(ctx, client.ObjectKey{Namespace: r.namespace, Name: r.name}, o)
	if err != nil {
		return nil, explain(err, "reading", r.String())
	}
	return o, nil
}

// value reads the plaintext of a Ready credential from its Secret.
func (c *cluster) value(ctx context.Context, o v1alpha1.Credential) (string, error) {
	r := refOf(o)
	if o.CredentialSpec().External != nil {
		return "", fmt.Errorf("%s is declared by its SHA-256: nobody but its holder has the value", r)
	}
	name := o.CredentialStatus().SecretName
	if name == "" {
		return "", fmt.Errorf("%s has no Secret yet: see '%s'", r, "kubectl describe "+r.kubectlArgs())
	}
	secret := new(corev1.Secret)
	if err := c.Get(ctx, client.ObjectKey{Namespace: r.namespace, Name: name}, secret); err != nil {
		return "", explain(err, "reading", fmt.Sprintf("Secret %s/%s, which holds the value of %s,", r.namespace, name, r))
	}
	if uid := secret.Annotations[v1alpha1.AnnotationCredentialUID]; uid != string(o.GetUID()) {
		return "", fmt.Errorf("Secret %s/%s does not belong to %s (its annotation %s says %q): not using it",
			r.namespace, name, r, v1alpha1.AnnotationCredentialUID, uid)
	}
	value := secret.Data[r.kind.name.SecretKey()]
	if len(value) == 0 {
		return "", fmt.Errorf("Secret %s/%s of %s has no key %s", r.namespace, name, r, r.kind.name.SecretKey())
	}
	return string(value), nil
}

// patch applies a JSON merge patch to one credential: those fields alone, so
// that what Git or another tool owns is left as it is.
func (c *cluster) patch(ctx context.Context, o v1alpha1.Credential, body any) (v1alpha1.Credential, error) {
	data, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	target := kindOf(o).object()
	target.SetNamespace(o.GetNamespace())
	target.SetName(o.GetName())
	if err := c.Patch(ctx, target, client.RawPatch("application/merge-patch+json", data), fieldOwner); err != nil {
		return nil, err
	}
	return target, nil
}

// update patches a credential by what body makes of it, and starts again from
// what is there now where somebody else wrote in between.
func (c *cluster) update(ctx context.Context, o v1alpha1.Credential, body func(v1alpha1.Credential) map[string]any) (v1alpha1.Credential, error) {
	r, uid := refOf(o), o.GetUID()
	var patched v1alpha1.Credential
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() (err error) {
		if patched, err = c.patch(ctx, o, body(o)); !apierrors.IsConflict(err) {
			return err
		}
		again, getErr := c.get(ctx, r)
		if getErr != nil {
			return getErr
		}
		if again.GetUID() != uid {
			return fmt.Errorf("%s was deleted and made again while this command worked on it: run it again", r)
		}
		o = again
		return err
	})
	return patched, err
}

// toUnstructured gives an object with the fields it really has, for printing.
func toUnstructured(o runtime.Object) (*unstructured.Unstructured, error) {
	gvks, _, err := scheme.ObjectKinds(o)
	if err != nil {
		return nil, err
	}
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		return nil, err
	}
	u := &unstructured.Unstructured{Object: content}
	u.SetGroupVersionKind(gvks[0])
	if u.GetUID() == "" { // not stored: a status of zeros is none
		unstructured.RemoveNestedField(content, "status")
	}
	for _, empty := range [][]string{{"metadata", "creationTimestamp"}, {"status"}} {
		if v, found, _ := unstructured.NestedFieldNoCopy(content, empty...); found && isEmpty(v) {
			unstructured.RemoveNestedField(content, empty...)
		}
	}
	return u, nil
}

func isEmpty(v any) bool {
	m, isMap := v.(map[string]any)
	return v == nil || isMap && len(m) == 0
}

// explain says what to do about an error of the Kubernetes API. doing is a
// participle ("reading"), what the object it is about.
func explain(err error, doing, what string) error {
	switch {
	case err == nil || errors.Is(err, context.Canceled):
		return err
	case isMissingResource(err):
		return fmt.Errorf("%s %s: Mintmark's resources are not served by this cluster: install Mintmark, or see what is missing with 'mintmark doctor' (%w)",
			doing, what, err)
	case apierrors.IsNotFound(err):
		return fmt.Errorf("%s %s: it does not exist (%w)", doing, what, err)
	case isRBAC(err):
		return fmt.Errorf("%s %s: your account may not. To work with credentials have the ClusterRole mintmark-edit bound to it (mintmark-view to read),"+
			" as by: kubectl create rolebinding mintmark-edit --clusterrole=mintmark-edit --user=YOU -n NAMESPACE (%w)", doing, what, err)
	case isWebhookDown(err):
		return fmt.Errorf("%s %s: Mintmark's admission webhook does not answer, and without it nothing is created or changed (revoking works):"+
			" is the controller running? See 'mintmark doctor' (%w)", doing, what, err)
	case apierrors.IsUnauthorized(err):
		return fmt.Errorf("%s %s: the API server does not accept your kubeconfig's credentials: log in again (%w)", doing, what, err)
	case apierrors.ReasonForError(err) == metav1.StatusReasonUnknown && !isStatus(err):
		return fmt.Errorf("%s %s: the API server cannot be reached: %w", doing, what, err)
	}
	return fmt.Errorf("%s %s: %w", doing, what, err)
}

func isStatus(err error) bool {
	var status apierrors.APIStatus
	return errors.As(err, &status)
}

// isMissingResource tells a resource that is not served from an object that
// does not exist: both are 404.
func isMissingResource(err error) bool {
	if meta.IsNoMatchError(err) {
		return true
	}
	var status apierrors.APIStatus
	if !apierrors.IsNotFound(err) || !errors.As(err, &status) {
		return false
	}
	details := status.Status().Details
	return details == nil || details.Name == "" && strings.Contains(status.Status().Message, "could not find the requested resource")
}

// isWebhookDown: the API server could not ask a webhook.
func isWebhookDown(err error) bool {
	return apierrors.IsInternalError(err) && strings.Contains(err.Error(), "failed calling webhook")
}

// isRBAC tells the authorizer's refusal from an admission plug-in's: only the
// first is a matter of roles.
func isRBAC(err error) bool {
	return apierrors.IsForbidden(err) && strings.Contains(err.Error(), " cannot ")
}
