// Package manifests renders what users install (config/) and applies it to a
// control plane that has neither nodes nor a pod network.
package manifests

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// Install applies config/default of the repository at root, without what needs
// nodes, and with the webhooks expected at webhookPort of 127.0.0.1 (0: without
// webhooks). It returns what it applied.
func Install(ctx context.Context, cfg *rest.Config, root string, webhookPort int) ([]*unstructured.Unstructured, error) {
	objects, err := Build(filepath.Join(root, "config", "default"))
	if err != nil {
		return nil, err
	}
	objects = WithoutWorkloads(objects)
	if webhookPort == 0 {
		objects = slices.DeleteFunc(objects, isWebhook)
	} else if err := WebhooksOnLoopback(objects, webhookPort); err != nil {
		return nil, err
	}
	return objects, Apply(ctx, cfg, objects)
}

// FieldManager owns what Apply writes.
const FieldManager = "mintmark-install"

// Build renders a kustomization folder.
func Build(dir string) ([]*unstructured.Unstructured, error) {
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	if err != nil {
		return nil, fmt.Errorf("render %s: %w", dir, err)
	}
	var objects []*unstructured.Unstructured
	for _, r := range resources.Resources() {
		// By way of JSON, for its numbers are those that Unstructured knows.
		content, err := r.MarshalJSON()
		if err != nil {
			return nil, fmt.Errorf("render %s: %s: %w", dir, r.CurId(), err)
		}
		o := &unstructured.Unstructured{}
		if err := o.UnmarshalJSON(content); err != nil {
			return nil, fmt.Errorf("render %s: %s: %w", dir, r.CurId(), err)
		}
		objects = append(objects, o)
	}
	return objects, nil
}

// needNodes are the kinds that mean nothing where there are no nodes.
var needNodes = []string{"Deployment", "PodDisruptionBudget", "NetworkPolicy"}

// WithoutWorkloads leaves out what needs nodes.
func WithoutWorkloads(objects []*unstructured.Unstructured) []*unstructured.Unstructured {
	return slices.DeleteFunc(slices.Clone(objects), func(o *unstructured.Unstructured) bool {
		return slices.Contains(needNodes, o.GetKind())
	})
}

// WebhooksOnLoopback has the API server call the webhooks at a port of
// 127.0.0.1, for it cannot reach a Service without a pod network.
func WebhooksOnLoopback(objects []*unstructured.Unstructured, port int) error {
	for _, o := range objects {
		if !isWebhook(o) {
			continue
		}
		hooks, _, err := unstructured.NestedSlice(o.Object, "webhooks")
		if err != nil {
			return fmt.Errorf("%s %s: %w", o.GetKind(), o.GetName(), err)
		}
		for i := range hooks {
			hook, ok := hooks[i].(map[string]any)
			if !ok {
				return fmt.Errorf("%s %s: webhooks[%d] is no object", o.GetKind(), o.GetName(), i)
			}
			path, _, _ := unstructured.NestedString(hook, "clientConfig", "service", "path")
			hook["clientConfig"] = map[string]any{"url": "https://127.0.0.1:" + strconv.Itoa(port) + path}
		}
		if err := unstructured.SetNestedSlice(o.Object, hooks, "webhooks"); err != nil {
			return err
		}
	}
	return nil
}

func isWebhook(o *unstructured.Unstructured) bool {
	return o.GetKind() == "MutatingWebhookConfiguration" || o.GetKind() == "ValidatingWebhookConfiguration"
}

// rank orders objects so that each finds what it needs. Webhooks go last: they
// fail closed, and the controller that serves them may not run yet.
func rank(o *unstructured.Unstructured) int {
	switch {
	case o.GetKind() == "Namespace":
		return 0
	case o.GetKind() == "CustomResourceDefinition":
		return 1
	case o.GetKind() == "ServiceAccount":
		return 2
	case isWebhook(o):
		return 4
	}
	return 3
}

// Apply applies objects server-side, in an order in which they work, and waits
// for each CRD to be served before what follows.
func Apply(ctx context.Context, cfg *rest.Config, objects []*unstructured.Unstructured) error {
	dyn, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return err
	}
	disco, err := discovery.NewDiscoveryClientForConfig(cfg)
	if err != nil {
		return err
	}
	a := applier{dynamic: dyn, mapper: restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(disco))}
	ordered := slices.Clone(objects)
	slices.SortStableFunc(ordered, func(x, y *unstructured.Unstructured) int { return rank(x) - rank(y) })
	for i, o := range ordered {
		if err := a.apply(ctx, o); err != nil {
			return fmt.Errorf("apply %s %s: %w", o.GetKind(), o.GetName(), err)
		}
		last := i+1 == len(ordered) || rank(ordered[i+1]) > rank(o)
		if last && rank(o) == 1 {
			if err := a.established(ctx, ordered[:i+1]); err != nil {
				return err
			}
		}
	}
	return nil
}

type applier struct {
	dynamic dynamic.Interface
	mapper  *restmapper.DeferredDiscoveryRESTMapper
}

// apply waits for a kind that is not served yet: a CRD is established a moment
// before its objects can be written.
func (a applier) apply(ctx context.Context, o *unstructured.Unstructured) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	for {
		err := a.applyOnce(ctx, o)
		if !meta.IsNoMatchError(err) && !apierrors.IsNotFound(err) {
			return err
		}
		a.mapper.Reset()
		select {
		case <-ctx.Done():
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (a applier) applyOnce(ctx context.Context, o *unstructured.Unstructured) error {
	resource, err := a.resource(o)
	if err != nil {
		return err
	}
	_, err = resource.Apply(ctx, o.GetName(), o, metav1.ApplyOptions{FieldManager: FieldManager, Force: true})
	return err
}

func (a applier) resource(o *unstructured.Unstructured) (dynamic.ResourceInterface, error) {
	gvk := o.GroupVersionKind()
	mapping, err := a.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	if err != nil {
		return nil, err
	}
	if mapping.Scope.Name() == meta.RESTScopeNameRoot {
		return a.dynamic.Resource(mapping.Resource), nil
	}
	namespace := o.GetNamespace()
	if namespace == "" {
		namespace = metav1.NamespaceDefault
	}
	return a.dynamic.Resource(mapping.Resource).Namespace(namespace), nil
}

// established waits until the CRDs among objects are served.
func (a applier) established(ctx context.Context, objects []*unstructured.Unstructured) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for _, o := range objects {
		if rank(o) != 1 {
			continue
		}
		resource, err := a.resource(o)
		if err != nil {
			return err
		}
		for !isEstablished(ctx, resource, o.GetName()) {
			select {
			case <-ctx.Done():
				return fmt.Errorf("CustomResourceDefinition %s is not established: %w", o.GetName(), ctx.Err())
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
	a.mapper.Reset()
	return nil
}

func isEstablished(ctx context.Context, crds dynamic.ResourceInterface, name string) bool {
	o, err := crds.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return false
	}
	var crd apiextensionsv1.CustomResourceDefinition
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &crd); err != nil {
		return false
	}
	return slices.ContainsFunc(crd.Status.Conditions, func(c apiextensionsv1.CustomResourceDefinitionCondition) bool {
		return c.Type == apiextensionsv1.Established && c.Status == apiextensionsv1.ConditionTrue
	})
}
