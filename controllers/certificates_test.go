package controllers

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/keyring"
	"github.com/mintmark-dev/mintmark/test/controlplane"
)

// certificates makes a reconciler as another process would have it.
func (i *installation) certificates(names ...string) *CertificateReconciler {
	return &CertificateReconciler{installationSecrets: i.secrets(), cfg: CertificateConfig{
		Namespace: i.namespace, Names: names, Webhook: new(CertificateHolder), Random: rand.Reader, Now: func() time.Time { return i.clock },
	}}
}

func (i *installation) serving(name string) *keyring.Serving {
	i.t.Helper()
	serving, err := keyring.DecodeServing(i.secret(name).Data)
	i.must(err)
	return serving
}

// dial connects to a TLS server that presents what the holder holds, as a client
// with this bundle at this time.
func (i *installation) dial(h *CertificateHolder, bundle []byte) error {
	i.t.Helper()
	server, clientSide := net.Pipe()
	configuration := new(tls.Config)
	h.Configure(configuration)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = tls.Server(server, configuration).HandshakeContext(i.t.Context()) // the client's error says it all
		_ = server.Close()
	}()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle)
	err := tls.Client(clientSide, &tls.Config{
		RootCAs: roots, ServerName: "mintmark-webhook." + i.namespace + ".svc", Time: func() time.Time { return i.clock },
	}).HandshakeContext(i.t.Context())
	_ = clientSide.Close()
	<-done
	return err
}

func TestProcessesThatStartTogetherMakeOneCertificate(t *testing.T) {
	i := newInstallation(t)
	var wait sync.WaitGroup
	replicas := make([]*CertificateReconciler, 6)
	for n := range replicas {
		replicas[n] = i.certificates()
		wait.Go(func() {
			if err := replicas[n].Bootstrap(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	if made := i.events(); len(made) != 2 {
		t.Errorf("events %v, want one certificate each for webhook and server", made)
	}
	for n, r := range replicas {
		if err := i.dial(r.cfg.Webhook, i.serving(keyring.WebhookTLSSecret).Authorities); err != nil {
			t.Errorf("replica %d presents what the Secret's ca.crt does not vouch for: %v", n, err)
		}
	}
	if err := i.serving(keyring.ServerTLSSecret).Current.Leaf.VerifyHostname("mintmark-server." + i.namespace + ".svc"); err != nil {
		t.Error(err)
	}
	for _, name := range []string{keyring.WebhookTLSSecret, keyring.ServerTLSSecret} {
		if before := i.secret(name).ResourceVersion; i.reconcile(i.certificates(), name) == 0 || i.secret(name).ResourceVersion != before {
			t.Errorf("a replica that starts later wrote %s, or never looks again", name)
		}
	}
}

func TestCertificatesAreRenewedWithoutCuttingAnyoneOff(t *testing.T) {
	i := newInstallation(t)
	r := i.certificates()
	i.must(r.Bootstrap(t.Context()))
	i.events()
	first := i.serving(keyring.WebhookTLSSecret)

	i.clock = i.clock.Add(keyring.CertificateLife / 2)
	i.reconcile(r, keyring.WebhookTLSSecret)
	i.expectEvents("CertificatePublished")
	published := i.serving(keyring.WebhookTLSSecret)
	if !published.Current.Leaf.Equal(first.Current.Leaf) {
		t.Error("the certificate changed at once")
	}
	i.clock = i.clock.Add(keyring.CertificateLife / 6)
	i.reconcile(r, keyring.WebhookTLSSecret)
	i.expectEvents("CertificateRenewed")
	renewed := i.serving(keyring.WebhookTLSSecret)
	if renewed.Current.Leaf.Equal(first.Current.Leaf) {
		t.Error("the certificate did not change")
	}
	if err := i.dial(r.cfg.Webhook, published.Authorities); err != nil {
		t.Errorf("a client that last read the bundle two months ago is cut off: %v", err)
	}
	if err := i.dial(i.holding(first), renewed.Authorities); err != nil {
		t.Errorf("a replica that has not seen the renewal is cut off: %v", err)
	}
	if at := renewed.NextChange(); !at.After(i.clock.Add(50 * 24 * time.Hour)) {
		t.Errorf("the next renewal begins at %v: this one did not last", at)
	}
}

func (i *installation) holding(s *keyring.Serving) *CertificateHolder {
	h := new(CertificateHolder)
	h.current.Store(&s.Current)
	return h
}

func TestCertificatesAreReplacedForNamesTheyLack(t *testing.T) {
	i := newInstallation(t)
	i.must(i.certificates("127.0.0.1").Bootstrap(t.Context()))
	i.events()
	first := i.serving(keyring.WebhookTLSSecret)
	other := i.certificates("localhost")
	i.reconcile(other, keyring.WebhookTLSSecret)
	i.expectEvents("CertificateReplaced")
	i.reconcile(i.certificates("127.0.0.1"), keyring.WebhookTLSSecret)
	i.reconcile(other, keyring.WebhookTLSSecret)
	i.expectEvents() // both are content
	if err := i.dial(i.holding(first), i.serving(keyring.WebhookTLSSecret).Authorities); err != nil {
		t.Errorf("a replica that presents the old one is cut off: %v", err)
	}
}

func TestABrokenCertificateOfOursIsMadeAnew(t *testing.T) {
	i := newInstallation(t)
	r := i.certificates()
	i.must(r.Bootstrap(t.Context()))
	secret := i.secret(keyring.WebhookTLSSecret)
	secret.Data["tls.key"] = []byte("hello")
	i.must(i.client.Update(t.Context(), secret))
	i.events()
	i.reconcile(r, keyring.WebhookTLSSecret)
	i.expectEvents("CertificateMade")
	if err := i.dial(r.cfg.Webhook, i.serving(keyring.WebhookTLSSecret).Authorities); err != nil {
		t.Error(err)
	}
}

func TestSuppliedCertificatesAreUsedAndNeverWritten(t *testing.T) {
	for name, test := range map[string]struct {
		names       []string
		labels      map[string]string
		annotations map[string]string
		data        map[string][]byte // over a good certificate
		age         time.Duration
		events      []string
		silent      bool // there is nothing to present
	}{
		"one without our label": {},
		"one of cert-manager, that somebody labelled": {
			labels:      map[string]string{v1alpha1.LabelManaged: "true"},
			annotations: map[string]string{"cert-manager.io/certificate-name": "mintmark-webhook"},
		},
		"one for another name":  {names: []string{"example.com"}, events: []string{"CertificateName"}},
		"one that has expired":  {age: 2 * keyring.CertificateLife, events: []string{"CertificateExpired"}},
		"one that is broken":    {data: map[string][]byte{"tls.key": nil}, events: []string{"CertificateInvalid"}, silent: true},
		"one without authority": {data: map[string][]byte{"ca.crt": nil}},
	} {
		t.Run(name, func(t *testing.T) {
			i := newInstallation(t)
			names := test.names
			if names == nil {
				names = []string{"mintmark-webhook." + i.namespace + ".svc"}
			}
			made, err := keyring.NewServing(rand.Reader, names, i.clock.Add(-test.age))
			i.must(err)
			data, err := made.Encode()
			i.must(err)
			for entry, value := range test.data {
				data[entry] = value
			}
			secret := i.supply(keyring.WebhookTLSSecret, data)
			secret.Labels, secret.Annotations = test.labels, test.annotations
			i.must(i.client.Update(t.Context(), secret))
			before := i.secret(keyring.WebhookTLSSecret)

			r := i.certificates("127.0.0.1")
			if next := i.reconcile(r, keyring.WebhookTLSSecret); next != foreignPoll {
				t.Errorf("looks again after %v, want %v", next, foreignPoll)
			}
			i.expectEvents(test.events...)
			if diff := cmp.Diff(before, i.secret(keyring.WebhookTLSSecret)); diff != "" {
				t.Errorf("it was written (-before +after):\n%s", diff)
			}
			if err := r.Bootstrap(t.Context()); err != nil {
				t.Errorf("start-up ends with %v, and with it everything that needs no certificate", err)
			}
			if _, err := r.cfg.Webhook.GetCertificate(nil); (err != nil) != test.silent {
				t.Errorf("presents a certificate: %v", err)
			}
		})
	}
}

// webhookConfigurations makes both, with two webhooks each. They are the
// cluster's, so tests that use them do not run beside each other.
func (i *installation) webhookConfigurations() {
	i.t.Helper()
	serviceOf := admissionregistrationv1.WebhookClientConfig{
		Service: &admissionregistrationv1.ServiceReference{Namespace: i.namespace, Name: "mintmark-webhook"},
	}
	never := []metav1.LabelSelectorRequirement{{Key: "kubernetes.io/metadata.name", Operator: metav1.LabelSelectorOpIn, Values: []string{"no-such-namespace"}}}
	validating := &admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: WebhookConfiguration}}
	mutating := &admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: WebhookConfiguration}}
	for _, name := range []string{"one.mintmark.dev", "two.mintmark.dev"} {
		validating.Webhooks = append(validating.Webhooks, admissionregistrationv1.ValidatingWebhook{
			Name: name, ClientConfig: *serviceOf.DeepCopy(), SideEffects: ptr.To(admissionregistrationv1.SideEffectClassNone), AdmissionReviewVersions: []string{"v1"},
			NamespaceSelector: &metav1.LabelSelector{MatchExpressions: never}, TimeoutSeconds: ptr.To(int32(7)),
		})
		mutating.Webhooks = append(mutating.Webhooks, admissionregistrationv1.MutatingWebhook{
			Name: name, ClientConfig: *serviceOf.DeepCopy(), SideEffects: ptr.To(admissionregistrationv1.SideEffectClassNone), AdmissionReviewVersions: []string{"v1"},
			NamespaceSelector: &metav1.LabelSelector{MatchExpressions: never},
		})
	}
	for _, o := range []client.Object{validating, mutating} {
		i.must(client.IgnoreNotFound(i.client.Delete(i.t.Context(), o)))
		i.must(i.client.Create(i.t.Context(), o))
		i.t.Cleanup(func() { _ = i.client.Delete(context.Background(), o) }) // the control plane ends with the tests
	}
}

// configured reads both back.
func (i *installation) configured() (v *admissionregistrationv1.ValidatingWebhookConfiguration, m *admissionregistrationv1.MutatingWebhookConfiguration) {
	i.t.Helper()
	v, m = new(admissionregistrationv1.ValidatingWebhookConfiguration), new(admissionregistrationv1.MutatingWebhookConfiguration)
	i.must(i.client.Get(i.t.Context(), client.ObjectKey{Name: WebhookConfiguration}, v))
	i.must(i.client.Get(i.t.Context(), client.ObjectKey{Name: WebhookConfiguration}, m))
	return v, m
}

func TestEveryWebhookIsGivenTheAuthorities(t *testing.T) {
	i := newInstallation(t)
	i.webhookConfigurations()
	r := i.certificates()
	i.must(r.Bootstrap(t.Context()))
	want := string(i.serving(keyring.WebhookTLSSecret).Authorities)
	check := func() (versions [2]string) {
		t.Helper()
		v, m := i.configured()
		for n := range 2 {
			if string(v.Webhooks[n].ClientConfig.CABundle) != want || string(m.Webhooks[n].ClientConfig.CABundle) != want {
				t.Errorf("webhook %d lacks the authorities", n)
			}
			if v.Webhooks[n].ClientConfig.Service.Name != "mintmark-webhook" || *v.Webhooks[n].TimeoutSeconds != 7 {
				t.Errorf("webhook %d is not what it was: %+v", n, v.Webhooks[n])
			}
		}
		return [2]string{v.ResourceVersion, m.ResourceVersion}
	}
	before := check()
	i.reconcile(r, keyring.WebhookTLSSecret)
	if after := check(); after != before {
		t.Error("written again though nothing differs")
	}
	// Somebody, or a tool that syncs from Git, takes one away.
	v, _ := i.configured()
	v.Webhooks[1].ClientConfig.CABundle = nil
	i.must(i.client.Update(t.Context(), v))
	i.reconcile(r, keyring.WebhookTLSSecret)
	check()
}

func TestTheWebhookPresentsNoCertificateTheAPIServerWasNotToldOf(t *testing.T) {
	i := newInstallation(t)
	i.webhookConfigurations()
	r := i.certificates()
	i.must(r.Bootstrap(t.Context()))
	first := i.serving(keyring.WebhookTLSSecret)
	plain := r.client
	refused := errors.New("refused")
	r.cfg.Names = []string{"localhost"}
	r.client = interceptor.NewClient(withWatch(t, i), interceptor.Funcs{
		Patch: func(context.Context, client.WithWatch, client.Object, client.Patch, ...client.PatchOption) error {
			return refused
		},
	})
	if _, err := r.reconcile(t.Context(), keyring.WebhookTLSSecret); !errors.Is(err, refused) {
		t.Fatalf("error %v, want the patch's", err)
	}
	if err := i.dial(r.cfg.Webhook, first.Authorities); err != nil {
		t.Errorf("admission is cut off: %v", err)
	}
	r.client = plain
	i.reconcile(r, keyring.WebhookTLSSecret)
	v, _ := i.configured()
	if err := i.dial(r.cfg.Webhook, v.Webhooks[0].ClientConfig.CABundle); err != nil {
		t.Error(err)
	}
	if err := i.dial(r.cfg.Webhook, first.Authorities); err == nil {
		t.Error("the new certificate is not presented")
	}
}

func withWatch(t *testing.T, i *installation) client.WithWatch {
	t.Helper()
	c, err := client.NewWithWatch(controlplane.ForTest(t).Config, client.Options{Scheme: i.client.Scheme()})
	i.must(err)
	return c
}

func TestAWebhookWithoutACertificateRefusesConnections(t *testing.T) {
	if _, err := new(CertificateHolder).GetCertificate(nil); err == nil {
		t.Error("presents a certificate it does not have")
	}
}
