package management_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	webhookserver "sigs.k8s.io/controller-runtime/pkg/webhook"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/controllers"
	"github.com/mintmark-dev/mintmark/internal/audit"
	"github.com/mintmark-dev/mintmark/internal/keyring"
	"github.com/mintmark-dev/mintmark/internal/server"
	"github.com/mintmark-dev/mintmark/internal/store/database"
	"github.com/mintmark-dev/mintmark/test/controlplane"
	"github.com/mintmark-dev/mintmark/test/controlplane/manifests"
	"github.com/mintmark-dev/mintmark/test/controlplane/process"
	"github.com/mintmark-dev/mintmark/webhook"
)

func TestMain(m *testing.M) { controlplane.Main(m) }

const (
	systemNamespace = "mintmark-system"
	managed         = "default" // where config/components/management lets servers write
	restClass       = "mintmark-rest"
	patience        = 30 * time.Second
)

// system is a whole Mintmark on a real API server: what users install, with the component
// for management, a controller with its webhooks, and two servers, each under its own
// account.
type system struct {
	plane   *controlplane.ControlPlane
	cluster client.Client // a cluster administrator's
	servers []*replica
	pool    *x509.CertPool
	log     *lines // of the controller and the servers
	events  *lines // of the audit log, as JSON lines

	admin string // value of an administrator's credential
}

// replica is one server.
type replica struct {
	server *server.Server
	client *http.Client
}

// lines is text that tests read while it is written.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

var started struct {
	once   sync.Once
	system *system
	err    error
}

// running is the system that all tests of this package share.
func running(t testing.TB) *system {
	t.Helper()
	plane := controlplane.ForTest(t)
	started.once.Do(func() { started.system, started.err = start(plane) })
	if started.err != nil {
		t.Fatal(started.err)
	}
	return started.system
}

func scheme() *runtime.Scheme {
	s := runtime.NewScheme()
	if err := errors.Join(clientscheme.AddToScheme(s), v1alpha1.AddToScheme(s)); err != nil {
		panic(err)
	}
	return s
}

func start(plane *controlplane.ControlPlane) (*system, error) {
	ctx := context.Background()
	s := &system{plane: plane, log: new(lines), events: new(lines)}
	config := rest.CopyConfig(plane.Config)
	config.QPS = -1
	var err error
	if s.cluster, err = client.New(config, client.Options{Scheme: scheme()}); err != nil {
		return nil, err
	}
	for _, step := range []func(context.Context) error{s.install, s.startServers, s.makeAdmin} {
		if err := step(ctx); err != nil {
			return nil, fmt.Errorf("%w\n%s", err, s.log)
		}
	}
	return s, nil
}

// install applies what users apply, and starts the controller whose webhooks it names.
func (s *system) install(ctx context.Context) error {
	root, err := controlplane.Root()
	if err != nil {
		return err
	}
	ports, err := process.FreePorts(1)
	if err != nil {
		return err
	}
	if _, err := manifests.Install(ctx, s.plane.Config, root, ports[0]); err != nil {
		return err
	}
	management, err := manifests.Build(filepath.Join(root, "config", "components", "management"))
	if err != nil {
		return err
	}
	if err := s.startController(ctx, ports[0]); err != nil {
		return err
	}
	// The class passes the webhook, which is answered once the controller has written its
	// certificate into the configuration.
	return until(func() error { return manifests.Apply(ctx, s.plane.Config, management) })
}

// startController wires a controller as its main does.
func (s *system) startController(ctx context.Context, port int) error {
	const account = "mintmark-controller"
	config, err := s.plane.ServiceAccountConfig(ctx, systemNamespace, account)
	if err != nil {
		return err
	}
	internal, err := s.plane.ServiceAccount(ctx, systemNamespace, account, "mintmark-internal")
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "mintmark-management-")
	if err != nil {
		return err
	}
	tokenFile := filepath.Join(dir, "token")
	if err := os.WriteFile(tokenFile, []byte(internal), 0o600); err != nil {
		return err
	}
	config.QPS = -1
	clock := controllers.NewServerClock(nil)
	config.Wrap(clock.Wrap)
	ctrl.SetLogger(logr.FromSlogHandler(slog.NewJSONHandler(s.log, nil)))
	certificate := new(controllers.CertificateHolder)
	mgr, err := ctrl.NewManager(config, ctrl.Options{
		Scheme: scheme(), Metrics: metricsserver.Options{BindAddress: "0"}, WebhookServer: webhookserver.NewServer(webhookserver.Options{
			Host: "127.0.0.1", Port: port, TLSOpts: []func(*tls.Config){certificate.Configure},
		}),
	})
	if err != nil {
		return err
	}
	peppers := new(controllers.PepperHolder)
	certificates, certErr := controllers.SetupCertificates(mgr, controllers.CertificateConfig{
		Namespace: systemNamespace, Names: []string{"127.0.0.1", "localhost"}, Webhook: certificate,
	})
	fleet := controllers.NewFleet(controllers.FleetConfig{
		Reader: mgr.GetAPIReader(), Namespace: systemNamespace, TokenFile: tokenFile, AuthoritySecret: keyring.ServerTLSSecret,
		ServerName: controllers.ServerService + "." + systemNamespace + ".svc",
	})
	propagation, usage, transitions := controllers.NewPropagation(fleet), controllers.NewUsageCollector(fleet), controllers.NewTransitions(fleet)
	if err := errors.Join(certErr,
		controllers.SetupKeys(mgr, controllers.KeyConfig{Namespace: systemNamespace, Peppers: peppers, ClockSkew: clock.Skew}),
		mgr.Add(controllers.NewHeartbeat(controllers.HeartbeatConfig{Client: mgr.GetClient(), Namespace: systemNamespace, Identity: "test"})),
		mgr.Add(propagation), mgr.Add(usage), mgr.Add(transitions),
		controllers.SetupCredentials(mgr, controllers.CredentialConfig{
			Keys: peppers, Propagation: propagation, Usage: usage, Transitions: transitions, ClockSkew: clock.Skew,
		}),
		controllers.SetupRevocations(mgr, peppers),
		webhook.Setup(mgr, webhook.Config{ControllerUser: "system:serviceaccount:" + systemNamespace + ":" + account}),
	); err != nil {
		return err
	}
	if err := certificates.Bootstrap(ctx); err != nil {
		return err
	}
	go func() {
		if err := mgr.Start(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, "controller:", err)
		}
	}()
	return nil
}

// startServers runs two of them.
func (s *system) startServers(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "mintmark-management-")
	if err != nil {
		return err
	}
	db := database.New(database.Config{URL: func() (string, error) { return "sqlite://" + filepath.Join(dir, "mintmark.db"), nil }, AutoMigrate: true})
	go db.Run(ctx)
	recorder := audit.New(audit.Config{Server: "test", Chain: "test", Store: db, Exporters: []audit.Exporter{audit.NewJSONLines(s.events)}})
	go func() { _ = recorder.Run(ctx) }()
	for i := range 2 {
		config, err := s.plane.ServiceAccountConfig(ctx, systemNamespace, "mintmark-server")
		if err != nil {
			return err
		}
		r, err := server.New(server.Config{
			ID: "server-" + strconv.Itoa(i), Namespace: systemNamespace, Kubernetes: config, Issuer: "https://mintmark.example.com",
			BindAddress: "127.0.0.1:0", InternalBindAddress: "127.0.0.1:0", MetricsBindAddress: "127.0.0.1:0",
			Audit: server.Audit{Recorder: recorder, Store: db}, Management: server.Management{Namespaces: []string{managed}, Class: restClass, Store: db},
			Log: slog.New(slog.NewJSONHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		})
		if err != nil {
			return err
		}
		go func() { _ = r.Run(context.Background()) }()
		s.servers = append(s.servers, &replica{server: r})
	}
	if err := until(func() error {
		var errs []error
		for _, r := range s.servers {
			if r.server.Addresses() == nil {
				return errors.New("a server does not listen")
			}
			errs = append(errs, r.server.Ready())
		}
		return errors.Join(errs...)
	}); err != nil {
		return err
	}
	secret := &corev1.Secret{}
	if err := s.cluster.Get(ctx, client.ObjectKey{Namespace: systemNamespace, Name: keyring.ServerTLSSecret}, secret); err != nil {
		return err
	}
	s.pool = x509.NewCertPool()
	s.pool.AppendCertsFromPEM(secret.Data["ca.crt"])
	for _, r := range s.servers {
		address := r.server.Addresses().Public.String()
		r.client = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: s.pool, ServerName: "127.0.0.1", MinVersion: tls.VersionTLS12},
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, address)
			},
		}}
	}
	return nil
}

// makeAdmin makes an administrator's credential, as the first one is made.
func (s *system) makeAdmin(ctx context.Context) (err error) {
	s.admin, err = s.mint(ctx, systemNamespace, "admin", v1alpha1.CredentialSpec{CredentialClassName: "mintmark-admin", Admin: true})
	return err
}

// mint makes a ServiceToken that is delivered by a Secret, and gives its value once every
// server accepts it.
func (s *system) mint(ctx context.Context, namespace, name string, spec v1alpha1.CredentialSpec) (string, error) {
	o := &v1alpha1.ServiceToken{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: spec}
	if err := until(func() error { return s.cluster.Create(ctx, o.DeepCopy()) }); err != nil {
		return "", err
	}
	var value string
	return value, until(func() error {
		secret := &corev1.Secret{}
		if err := s.cluster.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, secret); err != nil {
			return err
		}
		value = string(secret.Data["token"])
		for i := range s.servers {
			if status, _ := s.try(i, "GET", "/api/auth/profile", value, nil); status != http.StatusOK {
				return fmt.Errorf("server %d answers %d", i, status)
			}
		}
		return nil
	})
}

// until tries for as long as the tests' patience lasts.
func until(try func() error) error { return controlplane.Until(patience, try) }

// reply is what a server answered.
type reply struct {
	status int
	header http.Header
	body   []byte
}

// field of the body, a JSON object; nil where it is not there.
func (r *reply) field(name string) any {
	var object map[string]any
	_ = json.Unmarshal(r.body, &object)
	return object[name]
}

// text is a field that is a string.
func (r *reply) text(name string) string {
	s, _ := r.field(name).(string)
	return s
}

// value is the value that the answer shows; empty where it shows none.
func (r *reply) value() string { return r.text("key") + r.text("token") }

func (r *reply) String() string { return fmt.Sprintf("%d %s", r.status, r.body) }

// send sends a request to a server. Headers come in pairs.
func (s *system) send(t testing.TB, i int, method, path, credential string, body any, headers ...string) *reply {
	t.Helper()
	r, err := s.exchange(i, method, path, credential, body, headers...)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return r
}

func (s *system) try(i int, method, path, credential string, body any) (int, error) {
	r, err := s.exchange(i, method, path, credential, body)
	if err != nil {
		return 0, err
	}
	return r.status, nil
}

func (s *system) exchange(i int, method, path, credential string, body any, headers ...string) (*reply, error) {
	var text io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		text = strings.NewReader(b)
	default:
		encoded, err := json.Marshal(b)
		if err != nil {
			return nil, err
		}
		text = bytes.NewReader(encoded)
	}
	req, err := http.NewRequest(method, "https://127.0.0.1"+path, text)
	if err != nil {
		return nil, err
	}
	if credential != "" {
		req.Header.Set("Authorization", "Bearer "+credential)
	}
	if text != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for h := 0; h+1 < len(headers); h += 2 {
		req.Header.Set(headers[h], headers[h+1])
	}
	resp, err := s.servers[i].client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	read, err := io.ReadAll(resp.Body)
	return &reply{resp.StatusCode, resp.Header, read}, err
}

// want fails the test where the answer has another status.
func (r *reply) want(t testing.TB, status int) *reply {
	t.Helper()
	if r.status != status {
		t.Fatalf("answered %s, want %d", r, status)
	}
	return r
}

// good tells whether a server accepts a value.
func (s *system) good(t testing.TB, i int, value string) bool {
	t.Helper()
	return s.send(t, i, "GET", "/api/auth/profile", value, nil).status == http.StatusOK
}

// eventually waits until a condition holds.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	if err := until(func() error {
		if !holds() {
			return errors.New("not yet")
		}
		return nil
	}); err != nil {
		t.Fatalf("%s: it is not so within %s", what, patience)
	}
}

var names struct {
	sync.Mutex
	last int
}

// unique is a name that no other test has.
func unique(prefix string) string {
	names.Lock()
	defer names.Unlock()
	names.last++
	return fmt.Sprintf("%s-%d", prefix, names.last)
}

// operatorClass is a class under which callers of the management API can be made: the
// shipped ones allow none of its permissions.
func (s *system) operatorClass(t testing.TB) string {
	t.Helper()
	class := &v1alpha1.CredentialClass{ObjectMeta: metav1.ObjectMeta{Name: "operators"}, Spec: v1alpha1.CredentialClassSpec{
		Rules: []v1alpha1.ClassRule{{Permissions: []v1alpha1.Permission{"*"}}},
	}}
	if err := s.cluster.Create(t.Context(), class); err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	return class.Name
}

// caller makes a credential with these permissions in a namespace.
func (s *system) caller(t testing.TB, namespace string, permissions ...string) string {
	t.Helper()
	if err := s.cluster.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}); err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	spec := v1alpha1.CredentialSpec{CredentialClassName: s.operatorClass(t)}
	for _, p := range permissions {
		spec.Permissions = append(spec.Permissions, v1alpha1.Permission(p))
	}
	value, err := s.mint(t.Context(), namespace, unique("caller"), spec)
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// object reads a credential.
func (s *system) object(t testing.TB, r *reply) v1alpha1.Credential {
	t.Helper()
	var o v1alpha1.Credential = new(v1alpha1.ServiceToken)
	if r.text("kind") == string(v1alpha1.KindAPIKey) {
		o = new(v1alpha1.APIKey)
	}
	if err := s.cluster.Get(t.Context(), client.ObjectKey{Namespace: r.text("namespace"), Name: r.text("name")}, o.(client.Object)); err != nil {
		t.Fatal(err)
	}
	return o
}

// sorted are the keys of a map.
func sorted[M ~map[string]V, V any](m M) []string { return slices.Sorted(maps.Keys(m)) }
