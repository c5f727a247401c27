package controllers

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/mintmark-dev/mintmark/internal/keyring"
)

// Names of the Services whose certificates are made here, and of the two webhook
// configurations, which share one.
const (
	WebhookService       = "mintmark-webhook"
	ServerService        = "mintmark-server"
	WebhookConfiguration = "mintmark-webhook"
)

// annotationCertManager is what cert-manager puts on the Secrets it fills.
const annotationCertManager = "cert-manager.io/certificate-name"

// CertificateHolder holds the certificate that the webhook server presents. The
// zero value holds none, and refuses connections. It is safe for concurrent use.
type CertificateHolder struct {
	current atomic.Pointer[tls.Certificate]
}

// GetCertificate is for tls.Config.
func (h *CertificateHolder) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if certificate := h.current.Load(); certificate != nil {
		return certificate, nil
	}
	return nil, errors.New("the webhook has no serving certificate yet")
}

// Configure makes a TLS server present what the holder holds. It is one of
// webhook.Options.TLSOpts.
func (h *CertificateHolder) Configure(c *tls.Config) {
	c.GetCertificate = h.GetCertificate
	c.MinVersion = tls.VersionTLS12
}

// CertificateConfig is what a CertificateReconciler needs.
type CertificateConfig struct {
	// Namespace of the installation.
	Namespace string
	// Names are DNS names and IP addresses that the certificates are for besides
	// those of their Services.
	Names []string
	// Webhook is given the webhook's certificate.
	Webhook *CertificateHolder
	// Random is a cryptographically secure source; nil is crypto/rand.
	Random io.Reader
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// CertificateReconciler makes and renews the serving certificates of the webhook
// and of the servers, and tells the API server which authorities to trust the
// webhook by.
//
// It runs in every replica, for each serves webhooks and none may have to wait
// for a leader, whose own start goes through admission. Several doing the same at
// once is harmless: a Secret is made by create, and changed under the
// resourceVersion it was read at, so that one wins and the others take what it
// wrote.
//
// A Secret that cert-manager fills, or that lacks Mintmark's label, is used as it
// is and never written.
type CertificateReconciler struct {
	installationSecrets
	cfg CertificateConfig
}

// SetupCertificates adds a CertificateReconciler to the manager. Bootstrap must
// have returned before the manager starts.
func SetupCertificates(mgr ctrl.Manager, cfg CertificateConfig) (*CertificateReconciler, error) {
	if cfg.Random == nil {
		cfg.Random = rand.Reader
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if err := registerMetrics(); err != nil {
		return nil, err
	}
	r := &CertificateReconciler{installationSecrets: secretsOf(mgr, cfg.Namespace), cfg: cfg}
	webhookSecret := handler.EnqueueRequestsFromMapFunc(func(context.Context, client.Object) []reconcile.Request {
		return []reconcile.Request{{NamespacedName: client.ObjectKey{Namespace: cfg.Namespace, Name: keyring.WebhookTLSSecret}}}
	})
	configuration := builder.WithPredicates(predicate.NewPredicateFuncs(func(o client.Object) bool {
		return o.GetName() == WebhookConfiguration
	}))
	return r, ctrl.NewControllerManagedBy(mgr).
		Named("certificates").
		WithOptions(controller.Options{NeedLeaderElection: ptr.To(false)}).
		For(&corev1.Secret{}, builder.WithPredicates(secretsNamed(cfg.Namespace, keyring.WebhookTLSSecret, keyring.ServerTLSSecret))).
		WatchesRawSource(atStart(cfg.Namespace, keyring.WebhookTLSSecret, keyring.ServerTLSSecret)).
		Watches(&admissionregistrationv1.ValidatingWebhookConfiguration{}, webhookSecret, configuration).
		Watches(&admissionregistrationv1.MutatingWebhookConfiguration{}, webhookSecret, configuration).
		Complete(r)
}

// Bootstrap makes the certificates if they are missing, and returns when the
// webhook server can present one. It needs nothing of the manager to run, since
// the webhook server starts before the manager's caches do.
//
// A certificate that somebody else supplies and that cannot be used is no reason
// not to start: what needs no admission goes on, the replica is not ready, and
// the log says why.
func (r *CertificateReconciler) Bootstrap(ctx context.Context) error {
	for _, name := range []string{keyring.WebhookTLSSecret, keyring.ServerTLSSecret} {
		err := r.ensure(ctx, name)
		for lost := 0; lost < 10 && (apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err)); lost++ {
			err = r.ensure(ctx, name)
		}
		var unusable *unusableError
		if err != nil && !errors.As(err, &unusable) {
			return err
		}
	}
	return nil
}

func (r *CertificateReconciler) ensure(ctx context.Context, name string) error {
	_, err := r.reconcile(ctx, name)
	return err
}

// Reconcile implements reconcile.Reconciler.
func (r *CertificateReconciler) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	next, err := r.reconcile(ctx, request.Name)
	return settle(ctx, next, err)
}

// reconcile brings one Secret up to date and puts what it holds to use. It
// returns after how long to look again.
func (r *CertificateReconciler) reconcile(ctx context.Context, name string) (time.Duration, error) {
	secret, err := r.read(ctx, name)
	if err != nil {
		return 0, err
	}
	names := r.names(name)
	foreign := secret != nil && (!ours(secret) || secret.Annotations[annotationCertManager] != "")
	var serving *keyring.Serving // nil: to be made
	if secret != nil {
		if serving, err = keyring.DecodeServing(secret.Data); err != nil && foreign {
			return 0, r.unusable(name, "CertificateInvalid", err)
		}
	}
	if !foreign {
		if serving, err = r.renew(ctx, name, secret, serving); err != nil {
			return 0, err
		}
	}
	if err := r.use(ctx, name, serving); err != nil {
		return 0, err
	}
	leaf := serving.Current.Leaf
	certificateExpiry.WithLabelValues(name).Set(float64(leaf.NotAfter.Unix()))
	switch now := r.cfg.Now(); {
	case !now.Before(leaf.NotAfter):
		return 0, r.unusable(name, "CertificateExpired", errors.New("its certificate has expired: whoever supplies it must renew it"))
	case leaf.VerifyHostname(names[0]) != nil:
		return 0, r.unusable(name, "CertificateName", fmt.Errorf("its certificate is not for %s, the name clients ask for", names[0]))
	}
	keySecretUsable.WithLabelValues(name).Set(1)
	if foreign {
		return foreignPoll, nil
	}
	return min(max(serving.NextChange().Sub(r.cfg.Now()), time.Second), keysResync), nil
}

// names are those a certificate made here is for. The first is the one by which
// the API server and the controller ask.
func (r *CertificateReconciler) names(secret string) []string {
	service := ServerService
	if secret == keyring.WebhookTLSSecret {
		service = WebhookService
	}
	qualified := service + "." + r.cfg.Namespace
	return append([]string{qualified + ".svc", qualified + ".svc.cluster.local", qualified, service}, r.cfg.Names...)
}

// renew makes the certificate where there is none that can be read, or takes the
// step in its life that is due, and writes the Secret if it did either.
func (r *CertificateReconciler) renew(
	ctx context.Context, name string, secret *corev1.Secret, serving *keyring.Serving,
) (*keyring.Serving, error) {
	serving, reason, note, err := r.step(name, serving)
	if err != nil || reason == "" {
		return serving, err
	}
	data, err := serving.Encode()
	if err != nil {
		return nil, err
	}
	if _, err := r.write(ctx, name, secret, data, nil); err != nil {
		return nil, err
	}
	r.report(ctx, name, corev1.EventTypeNormal, reason, "Update", note)
	return serving, nil
}

// step takes the certificate to what it should be now, and says how; an empty
// reason is no change.
func (r *CertificateReconciler) step(name string, serving *keyring.Serving) (_ *keyring.Serving, reason, note string, err error) {
	now, names := r.cfg.Now(), r.names(name)
	if serving == nil {
		serving, err = keyring.NewServing(r.cfg.Random, names, now)
		return serving, "CertificateMade", "Made a serving certificate", err
	}
	if lacking := serving.Missing(names); len(lacking) > 0 {
		err = serving.Replace(r.cfg.Random, names, now)
		return serving, "CertificateReplaced", fmt.Sprintf("Made another serving certificate, for the names it lacked: %v", lacking), err
	}
	if serving.ShouldStage(now) {
		reason, note = "CertificatePublished", "Made the serving certificate's successor and published its authority in ca.crt"
		err = serving.Stage(r.cfg.Random, names, now)
	}
	if err == nil && serving.ShouldActivate(now) {
		reason, note = "CertificateRenewed", "The serving certificate's successor is in use"
		serving.Activate()
	}
	return serving, reason, note, err
}

// use puts the webhook's certificate to use, once the API server has been told
// by which authority to trust it. In the other order, admission would fail for
// as long as the API server does not know. The servers read theirs themselves.
func (r *CertificateReconciler) use(ctx context.Context, name string, serving *keyring.Serving) error {
	if name != keyring.WebhookTLSSecret {
		return nil
	}
	err := r.injectAuthorities(ctx, serving.Authorities)
	if err == nil || r.cfg.Webhook.current.Load() == nil {
		r.cfg.Webhook.current.Store(&serving.Current)
	}
	return err
}

// injectAuthorities writes the bundle into every webhook of the two webhook
// configurations, where it differs. Configurations that do not exist are looked
// at when they do. A certificate supplied without its authorities leaves them as
// they are: whoever supplies it supplies the bundle too.
func (r *CertificateReconciler) injectAuthorities(ctx context.Context, bundle []byte) error {
	if len(bundle) == 0 {
		return nil
	}
	validating, mutating := new(admissionregistrationv1.ValidatingWebhookConfiguration), new(admissionregistrationv1.MutatingWebhookConfiguration)
	return errors.Join(
		r.inject(ctx, validating, bundle, func() (clients []*admissionregistrationv1.WebhookClientConfig) {
			for i := range validating.Webhooks {
				clients = append(clients, &validating.Webhooks[i].ClientConfig)
			}
			return clients
		}),
		r.inject(ctx, mutating, bundle, func() (clients []*admissionregistrationv1.WebhookClientConfig) {
			for i := range mutating.Webhooks {
				clients = append(clients, &mutating.Webhooks[i].ClientConfig)
			}
			return clients
		}),
	)
}

func (r *CertificateReconciler) inject(
	ctx context.Context, configuration client.Object, bundle []byte, clients func() []*admissionregistrationv1.WebhookClientConfig,
) error {
	err := r.live.Get(ctx, client.ObjectKey{Name: WebhookConfiguration}, configuration)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading %T %s: %w", configuration, WebhookConfiguration, err)
	}
	before := configuration.DeepCopyObject().(client.Object)
	changed := false
	for _, c := range clients() {
		if !bytes.Equal(c.CABundle, bundle) {
			c.CABundle, changed = bundle, true
		}
	}
	if !changed {
		return nil
	}
	// A strategic merge by the webhooks' names touches nothing else in them.
	if err := r.client.Patch(ctx, configuration, client.StrategicMergeFrom(before)); err != nil {
		return fmt.Errorf("writing the authorities into %T %s: %w", configuration, WebhookConfiguration, err)
	}
	return nil
}

var certificateExpiry = prometheus.NewGaugeVec(prometheus.GaugeOpts{
	Name: "mintmark_certificate_expiry_timestamp_seconds",
	Help: "When the serving certificate in the Secret with this name expires, in Unix time.",
}, []string{"secret"})
