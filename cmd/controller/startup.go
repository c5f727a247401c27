package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/controllers"
)

const installHint = "install Mintmark with its Helm chart, or from its source with `kubectl apply --server-side -k config/crd` and then " +
	"`kubectl apply --server-side -k config/default`"

// preflight finds at once what would otherwise show as caches that never fill:
// a namespace, resource definitions or rules that are missing.
func preflight(ctx context.Context, mgr ctrl.Manager, o options) error {
	for _, kind := range []string{"ServiceToken", "APIKey", "CredentialClass", "Revocation"} {
		_, err := mgr.GetRESTMapper().RESTMapping(v1alpha1.GroupVersion.WithKind(kind).GroupKind(), v1alpha1.GroupVersion.Version)
		if meta.IsNoMatchError(err) {
			return fmt.Errorf("the cluster does not know the kind %s of %s: %s", kind, v1alpha1.GroupVersion, installHint)
		}
		if err != nil {
			return fmt.Errorf("asking the API server which resources it has: %w", err)
		}
	}
	var missing []string
	for _, rule := range rules(o) {
		review := &authorizationv1.SelfSubjectAccessReview{
			Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &rule},
		}
		if err := mgr.GetClient().Create(ctx, review); err != nil {
			return fmt.Errorf("asking the API server what this account may do: %w", err)
		}
		if !review.Status.Allowed {
			missing = append(missing, describe(rule))
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("this account may not %s: its roles are part of every release, %s", strings.Join(missing, ", nor "), installHint)
	}
	return requireNamespace(ctx, mgr.GetAPIReader(), o.namespace)
}

func requireNamespace(ctx context.Context, reader client.Reader, name string) error {
	err := reader.Get(ctx, client.ObjectKey{Name: name}, new(corev1.Namespace))
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("the namespace %q of the installation does not exist: name it by --namespace, or make it with `kubectl create namespace %s`", name, name)
	}
	return err
}

// rules are what the controller must be allowed to start and to do its work.
func rules(o options) []authorizationv1.ResourceAttributes {
	var out []authorizationv1.ResourceAttributes
	add := func(namespaces []string, group, resource, name string, verbs ...string) {
		for _, namespace := range namespaces {
			for _, verb := range verbs {
				resource, subresource, _ := strings.Cut(resource, "/")
				out = append(out, authorizationv1.ResourceAttributes{
					Namespace: namespace, Group: group, Resource: resource, Subresource: subresource, Name: name, Verb: verb,
				})
			}
		}
	}
	everywhere, own, watched := []string{""}, []string{o.namespace}, o.watchNamespaces
	if len(watched) == 0 {
		watched = everywhere
	}
	mintmark := v1alpha1.GroupVersion.Group
	for _, resource := range []string{"servicetokens", "apikeys"} {
		add(watched, mintmark, resource, "", "get", "list", "watch")
		add(watched, mintmark, resource+"/status", "", "update", "patch")
	}
	add(watched, "", "secrets", "", "get", "list", "watch", "create", "update", "delete")
	add(own, "", "secrets", "", "get", "list", "watch", "create", "update")
	add(everywhere, mintmark, "credentialclasses", "", "get", "list", "watch")
	add(everywhere, mintmark, "revocations", "", "get", "list", "watch", "update")
	add(everywhere, mintmark, "revocations/status", "", "update", "patch")
	add(everywhere, "", "namespaces", "", "get", "list", "watch")
	add(everywhere, "authorization.k8s.io", "subjectaccessreviews", "", "create")
	add(own, "coordination.k8s.io", "leases", "", "get", "list", "create")
	add(own, "coordination.k8s.io", "leases", controllers.HeartbeatLease, "patch")
	add(own, "coordination.k8s.io", "leases", leaderLease, "update")
	for _, resource := range []string{"validatingwebhookconfigurations", "mutatingwebhookconfigurations"} {
		add(everywhere, "admissionregistration.k8s.io", resource, "", "get", "list", "watch")
		add(everywhere, "admissionregistration.k8s.io", resource, controllers.WebhookConfiguration, "patch")
	}
	return out
}

// describe says a rule as `kubectl auth can-i` takes it.
func describe(rule authorizationv1.ResourceAttributes) string {
	text := rule.Verb + " " + rule.Resource
	if rule.Group != "" {
		text += "." + rule.Group
	}
	if rule.Subresource != "" {
		text += "/" + rule.Subresource
	}
	if rule.Name != "" {
		text += " " + rule.Name
	}
	if rule.Namespace != "" {
		text += " in namespace " + rule.Namespace
	}
	return text
}

// explain adds what to do to the errors people meet at the first start.
func explain(err error, o options) error {
	var network *net.OpError
	switch {
	case errors.Is(err, syscall.EADDRINUSE) && errors.As(err, &network) && network.Addr != nil:
		return fmt.Errorf("the address %s is in use by another process: choose another with %s", network.Addr, o.flagOf(network.Addr))
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("the API server does not answer: is the cluster up, and the kubeconfig the right one? %w", err)
	case apierrors.IsForbidden(err):
		return fmt.Errorf("%w: the roles of this account are part of every release, %s", err, installHint)
	case apierrors.IsUnauthorized(err):
		return fmt.Errorf("the API server does not accept this account's token or certificate: %w", err)
	}
	return err
}

// flagOf names the flag an address came from.
func (o *options) flagOf(address net.Addr) string {
	tcp, ok := address.(*net.TCPAddr)
	for flag, text := range map[string]string{
		"--metrics-bind-address": o.metricsAddress, "--health-probe-bind-address": o.healthAddress, "--webhook-bind-address": o.webhookAddress,
	} {
		if _, port, err := splitAddress(text); ok && err == nil && port == tcp.Port {
			return flag
		}
	}
	return "its flag"
}
