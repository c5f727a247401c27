package server

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
	"github.com/mintmark-dev/mintmark/internal/keyring"
	"github.com/mintmark-dev/mintmark/test/controlplane"
	"github.com/mintmark-dev/mintmark/test/controlplane/manifests"
)

func TestMain(m *testing.M) {
	if credentials := os.Getenv(benchServer); credentials != "" {
		os.Exit(serveBenchmark(credentials))
	}
	controlplane.Main(m)
}

// soon is how long the server may take to see a change of the API server's (I5).
const soon = time.Second

// installation is a namespace on a real API server with what a controller would have made
// in it, and the server's account with exactly the permissions that users install.
type installation struct {
	t         testing.TB
	plane     *controlplane.ControlPlane
	client    client.Client
	namespace string
	class     string
	pepper    *credential.Pepper
	pool      *x509.CertPool
	config    *rest.Config
	made      int
	// fault is set on the wire before a server starts.
	fault func(*wire)
}

func newInstallation(t testing.TB) *installation {
	t.Helper()
	in := bareInstallation(t)
	in.createKeys()
	return in
}

// bareInstallation has no keys yet.
func bareInstallation(t testing.TB) *installation {
	t.Helper()
	return bareInstallationOn(t, controlplane.ForTest(t))
}

func bareInstallationOn(t testing.TB, plane *controlplane.ControlPlane) *installation {
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
	var random [5]byte
	_, _ = rand.Read(random[:])
	in := &installation{t: t, plane: plane, client: c, namespace: fmt.Sprintf("mintmark-%x", random)}
	in.class = in.namespace
	if in.config, err = plane.ServiceAccountConfig(t.Context(), in.namespace, "mintmark-server"); err != nil {
		t.Fatal(err)
	}
	in.grant()
	in.create(&v1alpha1.CredentialClass{ObjectMeta: metav1.ObjectMeta{Name: in.class}})
	t.Cleanup(func() {
		_ = c.Delete(context.WithoutCancel(t.Context()), &v1alpha1.CredentialClass{ObjectMeta: metav1.ObjectMeta{Name: in.class}})
	})
	return in
}

// grant applies config/rbac/server.yaml to this namespace.
func (in *installation) grant() {
	in.t.Helper()
	root, err := controlplane.Root()
	if err != nil {
		in.t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, "config", "rbac", "server.yaml"))
	if err != nil {
		in.t.Fatal(err)
	}
	var objects []*unstructured.Unstructured
	decoder := utilyaml.NewYAMLOrJSONDecoder(bytes.NewReader(bytes.ReplaceAll(text, []byte("mintmark-system"), []byte(in.namespace))), 4096)
	for {
		o := &unstructured.Unstructured{}
		if err := decoder.Decode(o); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			in.t.Fatal(err)
		}
		if o.GetKind() == "ClusterRoleBinding" {
			o.SetName(o.GetName() + "-" + in.namespace)
		}
		objects = append(objects, o)
	}
	if err := manifests.Apply(in.t.Context(), in.plane.Config, objects); err != nil {
		in.t.Fatal(err)
	}
}

func (in *installation) create(o client.Object) {
	in.t.Helper()
	if err := in.client.Create(in.t.Context(), o); err != nil {
		in.t.Fatal(err)
	}
}

func (in *installation) secret(name string, data map[string][]byte) {
	in.t.Helper()
	in.create(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: in.namespace}, Data: data})
}

func (in *installation) createKeys() {
	in.t.Helper()
	key := sha256.Sum256([]byte(in.namespace))
	var err error
	if in.pepper, err = credential.NewPepper("p1", key[:]); err != nil {
		in.t.Fatal(err)
	}
	in.secret(keyring.PepperSecret, keyring.EncodePeppers("p1", map[string][]byte{"p1": key[:]}))
	signing, err := keyring.RingOf(newSigningKeys(in.t)).Encode()
	if err != nil {
		in.t.Fatal(err)
	}
	in.secret(keyring.SigningKeysSecret, signing)
	cert, private, pool := certificate(in.t, in.serverName())
	in.pool = pool
	in.secret(certificateSecret, map[string][]byte{"tls.crt": cert, "tls.key": private, "ca.crt": cert})
}

func (in *installation) serverName() string { return "mintmark-server." + in.namespace + ".svc" }

// credential makes a ServiceToken with a version, as the controller does.
func (in *installation) credential(change ...func(*v1alpha1.ServiceToken)) *sealed {
	in.t.Helper()
	in.made++
	object := &v1alpha1.ServiceToken{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("key-%d", in.made), Namespace: in.namespace},
		Spec:       v1alpha1.CredentialSpec{CredentialClassName: in.class, Permissions: []v1alpha1.Permission{"api:read"}},
	}
	for _, c := range change {
		c(object)
	}
	in.create(object)
	s := &sealed{in: in, object: object}
	s.mint()
	return s
}

// sealed is a credential with its record.
type sealed struct {
	in     *installation
	object *v1alpha1.ServiceToken
	record *credential.Record
	token  credential.Token
}

// mint commits another version, the former ones being retired.
func (s *sealed) mint() {
	s.in.t.Helper()
	token, err := credential.Format{Kind: v1alpha1.KindServiceToken}.Mint(rand.Reader)
	if err != nil {
		s.in.t.Fatal(err)
	}
	digest := s.in.pepper.Digest(token.Inner())
	number, epoch := int64(1), int64(1)
	if s.record != nil {
		number, epoch = s.record.Versions[0].Number+1, s.record.Epoch+1
	}
	s.token = token
	s.record = &credential.Record{
		UID: string(s.object.UID), Kind: v1alpha1.KindServiceToken, Namespace: s.object.Namespace, Name: s.object.Name, Epoch: epoch,
		Class: s.in.class, Labels: s.object.Labels, Permissions: []string{"api:read"},
		Versions: []credential.SealedVersion{{Number: number, Digest: digest[:], Pepper: s.in.pepper.ID(), Prefix: token.Prefix(), State: v1alpha1.VersionActive}},
	}
	s.write(s.record, s.in.pepper)
}

// write writes a record into the status.
func (s *sealed) write(r *credential.Record, p *credential.Pepper) {
	s.in.t.Helper()
	record, seal, err := r.Seal(p)
	if err != nil {
		s.in.t.Fatal(err)
	}
	s.status(record, seal)
}

func (s *sealed) status(record []byte, seal string) {
	s.in.t.Helper()
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"record": record, "seal": seal}})
	if err != nil {
		s.in.t.Fatal(err)
	}
	if err := s.in.client.Status().Patch(s.in.t.Context(), s.object, client.RawPatch(types.MergePatchType, patch)); err != nil {
		s.in.t.Fatal(err)
	}
}

func (s *sealed) revoke(reason string) {
	s.in.t.Helper()
	patch := fmt.Sprintf(`{"spec":{"revoked":{"reason":%q}}}`, reason)
	if err := s.in.client.Patch(s.in.t.Context(), s.object, client.RawPatch(types.MergePatchType, []byte(patch))); err != nil {
		s.in.t.Fatal(err)
	}
}

// running is a server that runs.
type running struct {
	in     *installation
	server *Server
	wire   *wire
	log    *journal
	public *http.Client
	stop   func() error // ends it and gives what Run returned
	ended  chan struct{}
}

// start runs a server under the installed permissions.
func (in *installation) start(change ...func(*Config)) *running {
	in.t.Helper()
	r := &running{in: in, wire: newWire(), log: new(journal), ended: make(chan struct{})}
	if in.fault != nil {
		in.fault(r.wire)
	}
	config := rest.CopyConfig(in.config)
	config.WrapTransport = r.wire.wrap
	c := Config{
		ID: "one", Namespace: in.namespace, Kubernetes: config, Issuer: testIssuer, Log: r.log.logger(),
		BindAddress: "127.0.0.1:0", InternalBindAddress: "127.0.0.1:0", MetricsBindAddress: "127.0.0.1:0",
	}
	for _, f := range change {
		f(&c)
	}
	var err error
	if r.server, err = New(c); err != nil {
		in.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(in.t.Context()))
	var result error
	go func() {
		defer close(r.ended)
		result = r.server.Run(ctx)
	}()
	r.stop = sync.OnceValue(func() error {
		cancel()
		<-r.ended
		return result
	})
	in.t.Cleanup(func() {
		if err := r.stop(); err != nil && !in.t.Failed() && !errors.Is(err, errSuperseded) {
			in.t.Errorf("Run returned %v", err)
		}
		if in.t.Failed() {
			in.t.Logf("log of server %s:\n%s", c.ID, r.log)
		}
	})
	eventually(in.t, 5*time.Second, "the server listens", func() bool { return r.server.Addresses() != nil })
	r.public = tlsClient(in.pool, in.serverName(), r.server.Addresses().Public.String())
	return r
}

// startReady waits until it is ready, too.
func (in *installation) startReady(change ...func(*Config)) *running {
	in.t.Helper()
	r := in.start(change...)
	eventually(in.t, 15*time.Second, "the server is ready", func() bool { return r.server.Ready() == nil })
	return r
}

// check presents a value and gives the status; 0 where there was no answer.
func (r *running) check(value string) int {
	req, err := http.NewRequest(http.MethodGet, testIssuer+"/forward-auth", nil)
	if err != nil {
		r.in.t.Fatal(err)
	}
	req.Header.Set("X-API-Key", value)
	resp, err := r.public.Do(req)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

func (r *running) expect(within time.Duration, s *sealed, status int, what string) {
	r.in.t.Helper()
	began := time.Now()
	eventually(r.in.t, within, fmt.Sprintf("%s: %d", what, status), func() bool { return r.check(s.token.Reveal()) == status })
	r.in.t.Logf("%s: %d after %s", what, status, time.Since(began).Round(100*time.Microsecond))
}

// probe gets a path of the metrics listener.
func (r *running) probe(path string) (int, string) {
	r.in.t.Helper()
	resp, err := http.Get("http://" + r.server.Addresses().Metrics.String() + path)
	if err != nil {
		r.in.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		r.in.t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func (in *installation) lease(id string) (*coordinationv1.Lease, error) {
	lease := new(coordinationv1.Lease)
	return lease, in.client.Get(in.t.Context(), client.ObjectKey{Namespace: in.namespace, Name: LeaseName(id)}, lease)
}

// wire is what lies between a server and the API server: it writes down what passes, and
// fails in the ways networks and API servers do.
type wire struct {
	mu        sync.Mutex
	next      http.RoundTripper
	calls     []string // "LIST servicetokens", as they were answered
	down      bool
	muted     string // resource whose watches tell nothing any more
	gone      string // resource whose watches end in 410
	restored  bool   // lists tell a resourceVersion of long ago
	leaseless int    // Lease writes refused so far, while that is from 1 on; 0: none are
	watches   map[*watchBody]struct{}
}

func newWire() *wire { return &wire{watches: map[*watchBody]struct{}{}} }

func (w *wire) wrap(next http.RoundTripper) http.RoundTripper {
	w.next = next
	return w
}

// set changes how it fails. What is open is cut, so that it fails at once.
func (w *wire) set(change func(*wire)) {
	w.mu.Lock()
	change(w)
	open := w.watches
	w.watches = map[*watchBody]struct{}{}
	w.mu.Unlock()
	for body := range open {
		_ = body.Close()
	}
}

// verb of a request, as the API server names it, and its resource.
func verbOf(r *http.Request) (verb, resource string) {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	known := []string{"secrets", "leases", "servicetokens", "apikeys", "credentialclasses", "revocations", "tokenreviews", "namespaces",
		"accessroles", "accesspolicies", "trustedissuers", "configmaps"}
	named := false
	for i, p := range parts {
		for _, k := range known {
			if p == k && (k != "namespaces" || i == len(parts)-1) {
				resource, named = k, i < len(parts)-1
			}
		}
	}
	switch {
	case r.URL.Query().Get("watch") != "":
		return "WATCH", resource
	case r.Method == http.MethodGet && !named:
		return "LIST", resource
	}
	return r.Method, resource
}

func (w *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	verb, resource := verbOf(r)
	w.mu.Lock()
	down, gone, restored := w.down, verb == "WATCH" && w.gone != "" && w.gone == resource, verb == "LIST" && w.restored
	w.mu.Unlock()
	if down || w.refuseLease(verb, resource) {
		return nil, errors.New("connection refused by the test")
	}
	if gone {
		status := `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Expired","message":"too old resource version","code":410}`
		return &http.Response{StatusCode: http.StatusGone, Header: http.Header{"Content-Type": {"application/json"}},
			Body: io.NopCloser(strings.NewReader(status)), Request: r, ProtoMajor: 1}, nil
	}
	resp, err := w.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	call := verb
	if r.URL.Query().Get("sendInitialEvents") == "true" {
		call = "LIST" // as a stream
	}
	if resource == "leases" && r.URL.Query().Get("labelSelector") != "" {
		return resp, nil // servers are counted, on which nothing depends that is listed
	}
	w.calls = append(w.calls, call+" "+resource)
	switch {
	case verb == "WATCH":
		body := &watchBody{wire: w, resource: resource, ReadCloser: resp.Body}
		w.watches[body] = struct{}{}
		resp.Body = body
	case restored && resource == "revocations":
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			return nil, err
		}
		var list map[string]any
		if err := json.Unmarshal(text, &list); err != nil {
			return nil, err
		}
		list["metadata"].(map[string]any)["resourceVersion"] = "1"
		if text, err = json.Marshal(list); err != nil {
			return nil, err
		}
		resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(text)), int64(len(text))
	}
	return resp, nil
}

// refuseLease counts the writes it refuses.
func (w *wire) refuseLease(verb, resource string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.leaseless == 0 || resource != "leases" || verb == "LIST" || verb == "WATCH" {
		return false
	}
	w.leaseless++
	return true
}

func (w *wire) seen() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.calls...)
}

// watchBody is an open watch.
type watchBody struct {
	wire     *wire
	resource string
	io.ReadCloser
}

func (b *watchBody) Read(p []byte) (int, error) {
	for {
		n, err := b.ReadCloser.Read(p)
		b.wire.mu.Lock()
		muted := b.wire.muted == b.resource
		b.wire.mu.Unlock()
		if !muted || err != nil {
			return n, err
		}
	}
}
