// Package authority runs a server on the keys and the sealed records that a controller
// would have written, beside a real API server, for tests of what asks it.
package authority

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
	"github.com/mintmark-dev/mintmark/internal/keyring"
	"github.com/mintmark-dev/mintmark/internal/server"
	"github.com/mintmark-dev/mintmark/test/controlplane"
)

// Where things are.
const (
	Installation = "mintmark-system"
	Namespace    = "payments"
	ServerName   = "mintmark-server.mintmark-system.svc"
	// Issuer of the JWTs.
	Issuer = "https://" + ServerName
)

// Authority is a server, and the credentials it knows.
type Authority struct {
	// Address of the public listener, GRPCAddress of the one for ext_authz.
	Address, GRPCAddress string
	// CAFile holds the authority of its certificate, and Roots too.
	CAFile string
	Roots  *x509.CertPool
	// Client trusts it.
	Client *http.Client
	Kube   client.Client
	Plane  *controlplane.ControlPlane

	pepper *credential.Pepper
}

// Start runs a server, which trusts proxies on 127.0.0.1. The class "default" allows what
// it does as shipped, the class "checkers" mintmark:check too.
func Start(t testing.TB, change ...func(*server.Config)) *Authority {
	t.Helper()
	plane, err := controlplane.Start(t.Context(), controlplane.Options{Out: os.Stderr, CRDs: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(plane.Stop)
	a := &Authority{Kube: kubernetes(t, plane), Plane: plane}
	for _, name := range []string{Installation, Namespace} {
		a.Create(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
	}
	a.writeKeys(t)
	a.Create(t, &v1alpha1.CredentialClass{ObjectMeta: metav1.ObjectMeta{Name: "default"}})
	a.Create(t, &v1alpha1.CredentialClass{ObjectMeta: metav1.ObjectMeta{Name: "checkers"}, Spec: v1alpha1.CredentialClassSpec{
		Rules: []v1alpha1.ClassRule{{Permissions: []v1alpha1.Permission{server.PermissionCheck}}},
	}})
	config := server.Config{
		ID: "authority", Namespace: Installation, Kubernetes: plane.Config, Issuer: Issuer,
		BindAddress: "127.0.0.1:0", InternalBindAddress: "127.0.0.1:0", MetricsBindAddress: "127.0.0.1:0", GRPCBindAddress: "127.0.0.1:0",
		TrustedProxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")},
	}
	for _, c := range change {
		c(&config)
	}
	s, err := server.New(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	eventually(t, time.Minute, "the server is ready", s.Ready)
	a.Address, a.GRPCAddress = s.Addresses().Public.String(), s.Addresses().GRPC.String()
	return a
}

func kubernetes(t testing.TB, plane *controlplane.ControlPlane) client.Client {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	c, err := client.New(plane.Config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Create makes an object.
func (a *Authority) Create(t testing.TB, o client.Object) {
	t.Helper()
	if err := a.Kube.Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
}

// writeKeys makes the Secrets of the installation.
func (a *Authority) writeKeys(t testing.TB) {
	t.Helper()
	id, key, err := keyring.NewPepper(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if a.pepper, err = credential.NewPepper(id, key); err != nil {
		t.Fatal(err)
	}
	ring := keyring.Ring{}
	for _, algorithm := range keyring.Algorithms() {
		key, err := keyring.NewSigningKey(rand.Reader, algorithm, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		ring[algorithm] = &keyring.SigningKeys{Current: key}
	}
	signingData, err := ring.Encode()
	if err != nil {
		t.Fatal(err)
	}
	serving, err := keyring.NewServing(rand.Reader, []string{ServerName, "127.0.0.1"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	servingData, err := serving.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]map[string][]byte{
		keyring.PepperSecret: keyring.EncodePeppers(id, map[string][]byte{id: key}), keyring.SigningKeysSecret: signingData, keyring.ServerTLSSecret: servingData,
	} {
		a.Create(t, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: Installation, Name: name}, Data: data})
	}
	a.CAFile = filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(a.CAFile, serving.Authorities, 0o600); err != nil {
		t.Fatal(err)
	}
	a.Roots = x509.NewCertPool()
	a.Roots.AppendCertsFromPEM(serving.Authorities)
	a.Client = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: a.Roots, MinVersion: tls.VersionTLS12},
	}}
}

// Mint makes a credential as the controller does, of the class default unless it names
// another one, and gives its value. The server may take a moment to know it.
func (a *Authority) Mint(t testing.TB, o v1alpha1.Credential, permissions ...string) string {
	t.Helper()
	token, err := credential.Format{Kind: o.CredentialKind()}.Mint(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	o.SetNamespace(Namespace)
	if o.CredentialSpec().CredentialClassName == "" {
		o.CredentialSpec().CredentialClassName = "default"
	}
	for _, p := range permissions {
		o.CredentialSpec().Permissions = append(o.CredentialSpec().Permissions, v1alpha1.Permission(p))
	}
	a.Create(t, o.(client.Object))
	digest := a.pepper.Digest(token.Inner())
	record := &credential.Record{
		UID: string(o.GetUID()), Kind: o.CredentialKind(), Namespace: Namespace, Name: o.GetName(), Epoch: 1, Class: o.CredentialSpec().CredentialClassName, Permissions: permissions,
		Versions: []credential.SealedVersion{{Number: 1, Digest: digest[:], Pepper: a.pepper.ID(), Prefix: token.Prefix(), State: v1alpha1.VersionActive}},
	}
	record.JWT = a.jwtOf(t, o.CredentialSpec())
	status := o.CredentialStatus()
	if status.Record, status.Seal, err = record.Seal(a.pepper); err != nil {
		t.Fatal(err)
	}
	if err := a.Kube.Status().Update(t.Context(), o.(client.Object)); err != nil {
		t.Fatal(err)
	}
	a.awaitKnown(t, token.Reveal())
	return token.Reveal()
}

// jwtOf is what the controller seals of the tokens.
func (a *Authority) jwtOf(t testing.TB, spec *v1alpha1.CredentialSpec) credential.RecordJWT {
	t.Helper()
	class := new(v1alpha1.CredentialClass)
	if err := a.Kube.Get(t.Context(), client.ObjectKey{Name: spec.CredentialClassName}, class); err != nil {
		t.Fatal(err)
	}
	sealed := credential.RecordJWT{Algorithm: class.Spec.JWTAlgorithm}
	if spec.JWT != nil {
		sealed.Audiences = spec.JWT.Audiences
	}
	return sealed
}

// awaitKnown waits until the server takes the credential.
func (a *Authority) awaitKnown(t testing.TB, value string) {
	t.Helper()
	if a.Address == "" {
		return
	}
	eventually(t, 10*time.Second, "the server knows the credential", func() error {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+a.Address+"/api/auth/profile", nil)
		if err != nil {
			return err
		}
		req.Header.Set("X-Api-Key", value)
		resp, err := a.Client.Do(req)
		if err != nil {
			return err
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return nil
	})
}

// Exchange gives a JWT for a key.
func (a *Authority) Exchange(t testing.TB, key string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+a.Address+"/api/auth/token", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-API-Key", key)
	resp, err := a.Client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var issued struct {
		Token string `json:"token"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&issued); err != nil || issued.Token == "" {
		t.Fatalf("exchanging a key: %s (%v)", resp.Status, err)
	}
	return issued.Token
}

// eventually polls until check is nil.
func eventually(t testing.TB, within time.Duration, what string, check func() error) {
	t.Helper()
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-deadline.C:
			t.Fatalf("not within %s: %s: %v", within, what, err)
		case <-tick.C:
		}
	}
}
