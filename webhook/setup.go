package webhook

import (
	"errors"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/util/validation/field"
	authorizationclient "k8s.io/client-go/kubernetes/typed/authorization/v1"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// Paths of the webhooks that the builder does not name by itself.
const (
	PathMutateServiceToken = "/mutate-mintmark-dev-v1alpha1-servicetoken"
	PathMutateAPIKey       = "/mutate-mintmark-dev-v1alpha1-apikey"
	PathActor              = "/mutate-mintmark-dev-v1alpha1-actor"
	PathRevocation         = "/mutate-mintmark-dev-v1alpha1-revocation"
)

// answerWithin is how long a webhook takes at most: less than the
// timeoutSeconds of config/webhook, so that the author reads what was slow.
const answerWithin = 8 * time.Second

// Config of the webhooks.
type Config struct {
	// ControllerUser is the controller's own user name, such as
	// system:serviceaccount:mintmark-system:mintmark-controller: it hands out
	// nothing of its own, so it is not asked.
	ControllerUser string
	// Reader reads classes and namespaces. Default: the manager's, past its
	// cache, so that a class applied a moment before the credential is found and
	// a ceiling lowered a moment before holds.
	Reader client.Reader
	// ValidateIssuer says what is wrong with a TrustedIssuer beyond its schema.
	// Default: nothing.
	ValidateIssuer func(*v1alpha1.TrustedIssuerSpec) field.ErrorList
	// Now is the clock. Default: time.Now.
	Now func() time.Time
}

// Setup registers the webhooks with the manager's webhook server.
func Setup(mgr ctrl.Manager, cfg Config) error {
	if cfg.ControllerUser == "" {
		return errors.New("webhook: the controller's user name is not set")
	}
	if cfg.Reader == nil {
		cfg.Reader = mgr.GetAPIReader()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.ValidateIssuer == nil {
		cfg.ValidateIssuer = func(*v1alpha1.TrustedIssuerSpec) field.ErrorList { return nil }
	}
	reviews, err := newReviewer(mgr)
	if err != nil {
		return err
	}
	classes := classReader{reader: cfg.Reader}
	shared := credentialAdmission{classes: classes, reviews: reviews, exempt: cfg.ControllerUser, now: cfg.Now}
	if err := setupCredential(mgr, shared, PathMutateServiceToken, func() *v1alpha1.ServiceToken { return &v1alpha1.ServiceToken{} }); err != nil {
		return fmt.Errorf("webhooks of ServiceToken: %w", err)
	}
	if err := setupCredential(mgr, shared, PathMutateAPIKey, func() *v1alpha1.APIKey { return &v1alpha1.APIKey{} }); err != nil {
		return fmt.Errorf("webhooks of APIKey: %w", err)
	}
	class := &classValidator{classes: classes, reviews: reviews, exempt: cfg.ControllerUser}
	if err := ctrl.NewWebhookManagedBy(mgr, &v1alpha1.CredentialClass{}).WithValidator(class).Complete(); err != nil {
		return fmt.Errorf("webhook of CredentialClass: %w", err)
	}
	if err := setupAccess(mgr, reviews, cfg); err != nil {
		return err
	}
	mgr.GetWebhookServer().Register(PathChange, &admission.Webhook{Handler: admission.HandlerFunc(recordChanger)})
	mgr.GetWebhookServer().Register(PathActor, &admission.Webhook{Handler: admission.HandlerFunc(recordRevoker)})
	mgr.GetWebhookServer().Register(PathRevocation, &admission.Webhook{Handler: admission.HandlerFunc(recordRevocation)})
	return nil
}

// setupAccess registers the webhooks of what says who may do what.
func setupAccess(mgr ctrl.Manager, reviews *reviewer, cfg Config) error {
	role := &roleValidator{reviews: reviews, exempt: cfg.ControllerUser}
	if err := ctrl.NewWebhookManagedBy(mgr, &v1alpha1.AccessRole{}).WithValidator(role).Complete(); err != nil {
		return fmt.Errorf("webhook of AccessRole: %w", err)
	}
	if err := ctrl.NewWebhookManagedBy(mgr, &v1alpha1.AccessPolicy{}).WithValidator(policyValidator{}).Complete(); err != nil {
		return fmt.Errorf("webhook of AccessPolicy: %w", err)
	}
	issuer := &issuerValidator{reviews: reviews, exempt: cfg.ControllerUser, validate: cfg.ValidateIssuer}
	if err := ctrl.NewWebhookManagedBy(mgr, &v1alpha1.TrustedIssuer{}).WithValidator(issuer).Complete(); err != nil {
		return fmt.Errorf("webhook of TrustedIssuer: %w", err)
	}
	return nil
}

// setupCredential registers both webhooks of one kind. The mutating one is a
// plain handler, not the builder's defaulter: that one patches whatever its Go
// types write differently (the zone of a time, for one), and a manifest kept in
// Git would never again equal what is stored.
func setupCredential[T v1alpha1.Credential](mgr ctrl.Manager, shared credentialAdmission, mutatePath string, empty func() T) error {
	defaulter := &credentialDefaulter{classes: shared.classes, empty: func() v1alpha1.Credential { return empty() }}
	mgr.GetWebhookServer().Register(mutatePath, &admission.Webhook{Handler: defaulter})
	return ctrl.NewWebhookManagedBy(mgr, empty()).WithValidator(&credentialValidator[T]{shared}).Complete()
}

// newReviewer makes the client for SubjectAccessReviews. It has no rate limit of
// its own: the API server's flow control decides.
func newReviewer(mgr ctrl.Manager) (*reviewer, error) {
	config := rest.CopyConfig(mgr.GetConfig())
	config.QPS = -1
	api, err := authorizationclient.NewForConfigAndClient(config, mgr.GetHTTPClient())
	if err != nil {
		return nil, fmt.Errorf("make the client for SubjectAccessReviews: %w", err)
	}
	return &reviewer{api: api.SubjectAccessReviews()}, nil
}
