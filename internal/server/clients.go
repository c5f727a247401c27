package server

import (
	"context"
	"fmt"
	"net/http"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/watch"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	authenticationclient "k8s.io/client-go/kubernetes/typed/authentication/v1"
	coordinationclient "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/server/listwatch"
)

// clients reach the API server, all over one connection.
type clients struct {
	mintmark, core, coordination *reader

	metadata       metadata.Interface
	leases         coordinationclient.LeasesGetter
	authentication authenticationclient.AuthenticationV1Interface
}

// newClients makes the clients. It does not connect.
func newClients(config *rest.Config) (*clients, error) {
	config = rest.CopyConfig(config)
	config.QPS = -1 // flow control is the API server's
	config.DisableCompression = true
	transport, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, err
	}
	own := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(own); err != nil {
		return nil, err
	}
	c := new(clients)
	for _, r := range []struct {
		into   **reader
		group  schema.GroupVersion
		scheme *runtime.Scheme
		prefix string
	}{
		{&c.mintmark, v1alpha1.GroupVersion, own, "/apis"},
		{&c.core, corev1.SchemeGroupVersion, clientscheme.Scheme, "/api"},
		{&c.coordination, coordinationv1.SchemeGroupVersion, clientscheme.Scheme, "/apis"},
	} {
		if *r.into, err = newReader(config, transport, r.group, r.scheme, r.prefix); err != nil {
			return nil, err
		}
	}
	if c.metadata, err = metadata.NewForConfigAndClient(config, transport); err != nil {
		return nil, err
	}
	if c.leases, err = coordinationclient.NewForConfigAndClient(config, transport); err != nil {
		return nil, err
	}
	c.authentication, err = authenticationclient.NewForConfigAndClient(config, transport)
	return c, err
}

func newReader(config *rest.Config, transport *http.Client, group schema.GroupVersion, scheme *runtime.Scheme, prefix string) (*reader, error) {
	config = rest.CopyConfig(config)
	config.GroupVersion, config.APIPath = &group, prefix
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	client, err := rest.RESTClientForConfigAndClient(config, transport)
	if err != nil {
		return nil, fmt.Errorf("client for %s: %w", group, err)
	}
	return &reader{rest: client, params: runtime.NewParameterCodec(scheme)}, nil
}

// namespaces is the source of the namespaces' metadata: of all, or of one.
func (c *clients) namespaces(name string) listwatch.Source {
	resource := c.metadata.Resource(corev1.SchemeGroupVersion.WithResource("namespaces"))
	named := func(options metav1.ListOptions) metav1.ListOptions {
		if name != "" {
			options.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()
		}
		return options
	}
	return listwatch.Source{
		List: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			return resource.List(ctx, named(options))
		},
		Watch: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			return resource.Watch(ctx, named(options))
		},
	}
}

// reader lists and watches the resources of one group.
type reader struct {
	rest   rest.Interface
	params runtime.ParameterCodec
}

// source of a resource: of one namespace or all, of one object or all. list is an empty list
// of its kind.
func (c *reader) source(resource, namespace, name string, list runtime.Object) listwatch.Source {
	request := func(options *metav1.ListOptions) *rest.Request {
		if name != "" {
			// RBAC that names the object allows this list and this watch and no other.
			options.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()
		}
		r := c.rest.Get().Resource(resource).VersionedParams(options, c.params)
		if namespace != "" {
			r = r.Namespace(namespace)
		}
		return r
	}
	return listwatch.Source{
		List: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			into := list.DeepCopyObject()
			if err := request(&options).Do(ctx).Into(into); err != nil {
				return nil, err
			}
			return into, nil
		},
		Watch: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.Watch = true
			return request(&options).Watch(ctx)
		},
	}
}
