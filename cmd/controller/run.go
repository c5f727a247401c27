package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	ctrlwebhook "sigs.k8s.io/controller-runtime/pkg/webhook"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/controllers"
	"github.com/mintmark-dev/mintmark/internal/federation"
	"github.com/mintmark-dev/mintmark/internal/keyring"
	"github.com/mintmark-dev/mintmark/webhook"
)

// leaderLease is the Lease whose holder reconciles.
const leaderLease = "mintmark-controller"

// run is the whole wiring: what is made, in the order in which it is needed.
func run(ctx context.Context, o options, logger *slog.Logger) error {
	logger.Info("Starting", "version", buildVersion(), "namespace", o.namespace, "watchNamespaces", o.watchNamespaces)
	clock := controllers.NewServerClock(nil)
	config, err := restConfig(o, clock)
	if err != nil {
		return err
	}
	certificate := new(controllers.CertificateHolder)
	options, err := managerOptions(o, certificate)
	if err != nil {
		return err
	}
	mgr, err := ctrl.NewManager(config, options)
	if err != nil {
		return fmt.Errorf("making the manager: %w", err)
	}
	if err := preflight(ctx, mgr, o); err != nil {
		return err
	}
	certificates, err := setup(mgr, o, clock, certificate)
	if err != nil {
		return err
	}
	// The webhook server must not start without its certificate.
	if err := certificates.Bootstrap(ctx); err != nil {
		return err
	}
	if err := mgr.Start(ctx); err != nil {
		return err
	}
	logger.Info("Stopped")
	return nil
}

// restConfig finds the cluster. Flow control is left to the API server.
func restConfig(o options, clock *controllers.ServerClock) (*rest.Config, error) {
	config, err := rest.InClusterConfig()
	if o.kubeconfig != "" || errors.Is(err, rest.ErrNotInCluster) {
		rules := clientcmd.NewDefaultClientConfigLoadingRules()
		rules.ExplicitPath = o.kubeconfig
		config, err = clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	}
	switch {
	case clientcmd.IsEmptyConfig(err):
		return nil, errors.New("no cluster: this process is in no pod, and there is no kubeconfig: give one by --kubeconfig, or by $KUBECONFIG")
	case err != nil:
		return nil, fmt.Errorf("finding the cluster: %w", err)
	}
	config.QPS = -1
	config.UserAgent = "mintmark-controller/" + buildVersion()
	config.Wrap(clock.Wrap)
	return config, nil
}

func managerOptions(o options, certificate *controllers.CertificateHolder) (ctrl.Options, error) {
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return ctrl.Options{}, err
	}
	return ctrl.Options{
		Scheme: scheme,
		Cache:  cacheOptions(o),
		WebhookServer: ctrlwebhook.NewServer(ctrlwebhook.Options{
			Host: o.webhookHost, Port: o.webhookPort, TLSOpts: []func(*tls.Config){certificate.Configure},
		}),
		Metrics:                 metricsserver.Options{BindAddress: o.metricsAddress},
		HealthProbeBindAddress:  o.healthAddress,
		LeaderElection:          o.leaderElect,
		LeaderElectionID:        leaderLease,
		LeaderElectionNamespace: o.namespace,
		// The process ends when the manager does, so the Lease may be let go.
		LeaderElectionReleaseOnCancel: true,
	}, nil
}

// cacheOptions keep in memory what is needed and no more: of Secrets those that
// Mintmark wrote, and of the webhook configurations its own.
func cacheOptions(o options) cache.Options {
	ours := cache.ByObject{Label: labels.SelectorFromSet(labels.Set{v1alpha1.LabelManaged: "true"})}
	options := cache.Options{DefaultTransform: controllers.Transform}
	if len(o.watchNamespaces) > 0 {
		options.DefaultNamespaces = make(map[string]cache.Config)
		ours.Namespaces = map[string]cache.Config{o.namespace: {}}
		for _, namespace := range o.watchNamespaces {
			options.DefaultNamespaces[namespace] = cache.Config{}
			ours.Namespaces[namespace] = cache.Config{}
		}
	}
	configuration := cache.ByObject{Field: fields.OneTermEqualSelector("metadata.name", controllers.WebhookConfiguration)}
	options.ByObject = map[client.Object]cache.ByObject{
		&corev1.Secret{}: ours,
		&admissionregistrationv1.ValidatingWebhookConfiguration{}: configuration,
		&admissionregistrationv1.MutatingWebhookConfiguration{}:   configuration,
	}
	return options
}

// setup adds everything that runs to the manager.
func setup(
	mgr ctrl.Manager, o options, clock *controllers.ServerClock, certificate *controllers.CertificateHolder,
) (*controllers.CertificateReconciler, error) {
	peppers := new(controllers.PepperHolder)
	if err := controllers.SetupKeys(mgr, controllers.KeyConfig{
		Namespace: o.namespace, WatchNamespaces: o.watchNamespaces, Peppers: peppers, ClockSkew: clock.Skew,
	}); err != nil {
		return nil, fmt.Errorf("setting up the keys: %w", err)
	}
	certificates, err := controllers.SetupCertificates(mgr, controllers.CertificateConfig{
		Namespace: o.namespace, Names: o.certificateNames, Webhook: certificate,
	})
	if err != nil {
		return nil, fmt.Errorf("setting up the certificates: %w", err)
	}
	if err := mgr.Add(controllers.NewHeartbeat(controllers.HeartbeatConfig{
		Client: mgr.GetClient(), Namespace: o.namespace, Identity: o.identity,
	})); err != nil {
		return nil, fmt.Errorf("setting up the heartbeat: %w", err)
	}
	fleet := controllers.NewFleet(controllers.FleetConfig{
		Reader: mgr.GetAPIReader(), Namespace: o.namespace, TokenFile: o.internalTokenFile,
		AuthoritySecret: keyring.ServerTLSSecret, ServerName: controllers.ServerService + "." + o.namespace + ".svc",
	})
	propagation, usage, transitions := controllers.NewPropagation(fleet), controllers.NewUsageCollector(fleet), controllers.NewTransitions(fleet)
	if err := errors.Join(mgr.Add(propagation), mgr.Add(usage), mgr.Add(transitions)); err != nil {
		return nil, fmt.Errorf("setting up what asks the servers: %w", err)
	}
	restarts, err := setupRestarts(mgr, o)
	if err != nil {
		return nil, fmt.Errorf("setting up restarts: %w", err)
	}
	if err := controllers.SetupCredentials(mgr, controllers.CredentialConfig{
		Keys: peppers, Propagation: propagation, Usage: usage, Transitions: transitions, Restarts: restarts, ClockSkew: clock.Skew,
		WatchNamespaces: o.watchNamespaces,
	}); err != nil {
		return nil, err
	}
	if err := controllers.SetupInventory(mgr); err != nil {
		return nil, err
	}
	if err := controllers.SetupRevocations(mgr, peppers); err != nil {
		return nil, fmt.Errorf("setting up the reconciler of Revocation: %w", err)
	}
	if err := webhook.Setup(mgr, webhook.Config{
		ControllerUser: "system:serviceaccount:" + o.namespace + ":mintmark-controller", ValidateIssuer: federation.Validate,
	}); err != nil {
		return nil, fmt.Errorf("setting up the webhooks: %w", err)
	}
	return certificates, errors.Join(
		mgr.AddHealthzCheck("ping", healthz.Ping),
		mgr.AddReadyzCheck("caches", cachesSynced(mgr.GetCache())),
		mgr.AddReadyzCheck("webhooks", mgr.GetWebhookServer().StartedChecker()),
	)
}

// setupRestarts adds what restarts workloads, where that is enabled.
func setupRestarts(mgr ctrl.Manager, o options) (*controllers.Restarts, error) {
	if !o.enableRestarts {
		return nil, nil
	}
	restarts, err := controllers.NewRestarts(mgr, controllers.RestartConfig{WatchNamespaces: o.watchNamespaces, Parallel: o.parallelRestarts})
	if err != nil {
		return nil, err
	}
	return restarts, mgr.Add(restarts)
}

// cachesSynced is healthy when every cache in use holds what the API server has.
func cachesSynced(c cache.Cache) healthz.Checker {
	return func(request *http.Request) error {
		ctx, cancel := context.WithTimeout(request.Context(), time.Second)
		defer cancel()
		if !c.WaitForCacheSync(ctx) {
			return errors.New("the caches are not filled yet: if this lasts, the log names what may not be listed")
		}
		return nil
	}
}
