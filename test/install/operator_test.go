package install_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/test/controlplane"
	"github.com/mintmark-dev/mintmark/test/controlplane/process"
)

// TestOperatorWorksWithExactlyThesePermissions runs both programs with the tokens
// of the accounts the chart made, and takes a credential through its life: made,
// delivered, verified, rotated, revoked, deleted. What an account may not do would
// show in its log.
func TestOperatorWorksWithExactlyThesePermissions(t *testing.T) {
	plane := installation(t)
	api, _ := clients(t, plane.Config)
	for name, test := range map[string]struct {
		namespace    string
		values, args []string
	}{
		"in the whole cluster": {namespace: "operator"},
		"in some namespaces": {
			namespace: "watched",
			values:    []string{"--set", "watchNamespaces={watched}"},
			args:      []string{"--watch-namespaces=" + namespace + ",watched"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			newNamespace(t, api, test.namespace, nil)
			helm.run(t, upgradeFlags(test.values...)...)
			t.Cleanup(func() { restoreWebhooks(t) })
			operator := startOperator(t, plane, test.args...)
			operator.meetStrangers(t)
			operator.liveThrough(t, plane, test.namespace)
			rolesShippedHoldAtAdmission(t, plane, test.namespace)
			operator.wasNeverForbidden(t)
		})
	}
}

// meetStrangers connects to every port in a way nobody should, for libraries tell of
// that by ways of their own, and every line of a log is JSON.
func (o *operator) meetStrangers(t *testing.T) {
	t.Helper()
	for _, address := range o.ports {
		conn, err := net.DialTimeout("tcp", address, 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte("GET / HTTP/1.0\r\n\r\n")); err != nil {
			t.Fatal(err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		_, _ = io.Copy(io.Discard, conn) // until it is hung up
		_ = conn.Close()
	}
}

// liveThrough is the life of a credential.
func (o *operator) liveThrough(t *testing.T, plane *controlplane.ControlPlane, ns string) {
	t.Helper()
	api, admin := clients(t, plane.Config)
	credential := &v1alpha1.ServiceToken{
		ObjectMeta: metav1.ObjectMeta{Name: "ci-deploy", Namespace: ns},
		Spec:       v1alpha1.CredentialSpec{Permissions: []v1alpha1.Permission{"deploy:write"}},
	}
	eventually(t, time.Minute, func() error { // until the webhooks serve
		return client.IgnoreAlreadyExists(admin.Create(t.Context(), credential.DeepCopy()))
	})
	first := deliveredValue(t, api, admin, ns, 1)
	o.verify(t, first, http.StatusOK)

	patch := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:%q}}}`,
		v1alpha1.AnnotationRotateRequestedAt, time.Now().UTC().Format(time.RFC3339Nano))
	if err := admin.Patch(t.Context(), credential, client.RawPatch(types.MergePatchType, patch)); err != nil {
		t.Fatal(err)
	}
	second := deliveredValue(t, api, admin, ns, 2)
	o.verify(t, second, http.StatusOK)
	o.verify(t, first, http.StatusOK) // it is in its overlap

	nothingIsSelected(t, admin, ns)
	revocation := &v1alpha1.Revocation{
		ObjectMeta: metav1.ObjectMeta{Name: ns},
		Spec:       v1alpha1.RevocationSpec{Reason: "a test of the installation", Namespaces: []string{ns}},
	}
	if err := admin.Create(t.Context(), revocation); err != nil {
		t.Fatal(err)
	}
	o.verify(t, second, http.StatusUnauthorized)
	eventually(t, time.Minute, func() error {
		if err := admin.Get(t.Context(), client.ObjectKeyFromObject(revocation), revocation); err != nil {
			return err
		}
		if !meta.IsStatusConditionTrue(revocation.Status.Conditions, v1alpha1.ConditionSettled) {
			return fmt.Errorf("the Revocation is not settled: %+v", revocation.Status)
		}
		return nil
	})
	// The Revocation's finalizer goes, and the Secret goes with its owner.
	secret := &corev1.Secret{ObjectMeta: credential.ObjectMeta}
	for object, trace := range map[client.Object]client.Object{revocation: revocation, credential: secret} {
		if err := admin.Delete(t.Context(), object); err != nil {
			t.Fatal(err)
		}
		eventually(t, time.Minute, func() error {
			if err := admin.Get(t.Context(), client.ObjectKeyFromObject(trace), trace); !apierrors.IsNotFound(err) {
				return errors.Join(fmt.Errorf("%T %s is still there", trace, trace.GetName()), err)
			}
			return nil
		})
	}
}

// nothingIsSelected makes a Revocation that selects nothing, of which an event tells: one
// about what is in no namespace.
func nothingIsSelected(t *testing.T, admin client.Client, ns string) {
	t.Helper()
	revocation := &v1alpha1.Revocation{
		ObjectMeta: metav1.ObjectMeta{Name: ns + "-nothing"},
		Spec: v1alpha1.RevocationSpec{
			Reason: "a test of the installation", Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"no-such": "label"}},
		},
	}
	if err := admin.Create(t.Context(), revocation); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, func() error {
		var events eventsv1.EventList
		if err := admin.List(t.Context(), &events, client.InNamespace(metav1.NamespaceDefault)); err != nil {
			return err
		}
		for i := range events.Items {
			if events.Items[i].Regarding.UID == revocation.UID {
				return nil
			}
		}
		return fmt.Errorf("no event tells that Revocation %s selects nothing", revocation.Name)
	})
	if err := admin.Delete(t.Context(), revocation); err != nil {
		t.Fatal(err)
	}
}

// rolesShippedHoldAtAdmission has a person with the cluster's role edit make
// credentials: one that holds nothing may be made, one that hands out a permission
// may not, nor one of the administrators' class, until the person may grant.
func rolesShippedHoldAtAdmission(t *testing.T, plane *controlplane.ControlPlane, ns string) {
	t.Helper()
	api, _ := clients(t, plane.Config)
	bind := func(role string) {
		t.Helper()
		binding := &rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: "jane-" + role, Namespace: ns},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
			Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: "jane"}},
		}
		if _, err := api.RbacV1().RoleBindings(ns).Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	cfg := rest.CopyConfig(plane.Config)
	cfg.Impersonate = rest.ImpersonationConfig{UserName: "jane"}
	_, jane := clients(t, cfg)
	attempt := func(name string, spec v1alpha1.CredentialSpec) error {
		object := &v1alpha1.APIKey{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns}, Spec: spec}
		return jane.Create(t.Context(), object, client.DryRunAll)
	}
	granting := v1alpha1.CredentialSpec{Permissions: []v1alpha1.Permission{"deploy:write"}}

	bind("edit")
	eventually(t, 30*time.Second, func() error { return attempt("holds-nothing", v1alpha1.CredentialSpec{}) })
	if err := attempt("hands-out", granting); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "deploy:write") {
		t.Errorf("whoever has edit could hand out a permission: %v", err)
	}
	if err := attempt("other-class", v1alpha1.CredentialSpec{CredentialClassName: "mintmark-admin"}); err == nil || !strings.Contains(err.Error(), "class mintmark-admin") {
		t.Errorf("whoever has edit could use the class mintmark-admin: %v", err)
	}
	bind("mintmark-grant-all")
	eventually(t, 30*time.Second, func() error { return attempt("hands-out", granting) })
}

// deliveredValue waits until a version of the credential is delivered and Ready,
// and reads it as a workload would.
func deliveredValue(t testing.TB, api kubernetes.Interface, admin client.Client, ns string, version int64) string {
	t.Helper()
	var value string
	eventually(t, time.Minute, func() error {
		credential := &v1alpha1.ServiceToken{}
		if err := admin.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: "ci-deploy"}, credential); err != nil {
			return err
		}
		if !meta.IsStatusConditionTrue(credential.Status.Conditions, v1alpha1.ConditionReady) {
			return fmt.Errorf("it is not Ready: %+v", credential.Status.Conditions)
		}
		secret, err := api.CoreV1().Secrets(ns).Get(t.Context(), "ci-deploy", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if got := string(secret.Data[v1alpha1.SecretKeyVersion]); got != strconv.FormatInt(version, 10) {
			return fmt.Errorf("the Secret holds version %s, not %d", got, version)
		}
		value = string(secret.Data[credential.CredentialKind().SecretKey()])
		return nil
	})
	return value
}

// operator is both programs, running.
type operator struct {
	controller, server *process.Process
	serverURL          string
	controllerMetrics  string
	ports              []string // that speak TLS
	client             *http.Client
}

// startOperator builds and starts both programs. The API server cannot reach a
// Service here, so the webhooks are called where the controller listens.
func startOperator(t testing.TB, plane *controlplane.ControlPlane, args ...string) *operator {
	t.Helper()
	dir := t.TempDir()
	public, internal, serverHealth := address(t), address(t), address(t)
	hooks, controllerHealth, controllerMetrics := address(t), address(t), address(t)

	token, err := plane.ServiceAccount(t.Context(), namespace, "mintmark-controller", "mintmark-internal")
	if err != nil {
		t.Fatal(err)
	}
	tokenFile := filepath.Join(dir, "token")
	write(t, tokenFile, token)

	o := &operator{
		serverURL: "https://" + public, controllerMetrics: "http://" + controllerMetrics + "/metrics", ports: []string{public, internal, hooks},
	}
	permissionsHold(t, plane, args)
	o.server = start(t, plane, dir, "server", append(args,
		"--bind-address="+public, "--grpc-bind-address=0", "--internal-bind-address="+internal, "--internal-advertise-url=https://"+internal,
		"--metrics-bind-address="+serverHealth, "--shutdown-delay=0s")...)
	o.controller = start(t, plane, dir, "controller", append(args,
		"--webhook-bind-address="+hooks, "--health-probe-bind-address="+controllerHealth, "--metrics-bind-address="+controllerMetrics,
		"--internal-token-file="+tokenFile, "--certificate-names=127.0.0.1")...)
	callWebhooksAt(t, plane, "https://"+hooks)

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for p, url := range map[*process.Process]string{
		o.server: "http://" + serverHealth + "/readyz", o.controller: "http://" + controllerHealth + "/readyz",
	} {
		if err := p.Wait(ctx, func(ctx context.Context) error {
			_, err := get(ctx, url)
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	o.client = trusting(t, plane)
	return o
}

// permissionsHold waits until the API server goes by what Helm has just written: it
// learns of roles by a watch of its own.
func permissionsHold(t testing.TB, plane *controlplane.ControlPlane, args []string) {
	t.Helper()
	namespaces := []string{""} // all of them
	for _, arg := range args {
		if list, ok := strings.CutPrefix(arg, "--watch-namespaces="); ok {
			namespaces = strings.Split(list, ",")
		}
	}
	api, _ := clients(t, plane.Config)
	for _, program := range []string{"controller", "server"} {
		for _, ns := range namespaces {
			review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
				User: "system:serviceaccount:" + namespace + ":mintmark-" + program,
				ResourceAttributes: &authorizationv1.ResourceAttributes{
					Namespace: ns, Group: v1alpha1.GroupVersion.Group, Resource: "servicetokens", Verb: "watch",
				},
			}}
			eventually(t, 30*time.Second, func() error {
				answer, err := api.AuthorizationV1().SubjectAccessReviews().Create(t.Context(), review, metav1.CreateOptions{})
				if err == nil && !answer.Status.Allowed {
					err = fmt.Errorf("the %s may not watch ServiceTokens in namespace %q yet", program, ns)
				}
				return err
			})
		}
	}
}

// start builds one program and runs it as its service account.
func start(t testing.TB, plane *controlplane.ControlPlane, dir, program string, args ...string) *process.Process {
	t.Helper()
	binary := filepath.Join(workDir, program)
	build := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "./cmd/"+program)
	build.Dir = root(t)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build cmd/%s: %v\n%s", program, err, out)
	}
	cfg, err := plane.ServiceAccountConfig(t.Context(), namespace, "mintmark-"+program)
	if err != nil {
		t.Fatal(err)
	}
	kubeconfig := filepath.Join(dir, program+".kubeconfig")
	if err := plane.WriteKubeconfig(kubeconfig, cfg); err != nil {
		t.Fatal(err)
	}
	p, err := process.Start(process.Config{
		Name: "mintmark-" + program, Path: binary, LogFile: filepath.Join(dir, program+".log"),
		Args: append([]string{"--kubeconfig=" + kubeconfig, "--namespace=" + namespace}, args...),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Stop(10 * time.Second)
		if t.Failed() {
			t.Logf("the end of %s's log:\n%s", p.Name(), p.Tail(40))
		}
	})
	return p
}

// callWebhooksAt has the API server call a URL instead of the Service.
func callWebhooksAt(t testing.TB, plane *controlplane.ControlPlane, url string) {
	t.Helper()
	_, admin := clients(t, plane.Config)
	redirect := func(c *admissionv1.WebhookClientConfig) {
		if c.Service == nil {
			return
		}
		target := url + *c.Service.Path
		c.URL, c.Service = &target, nil
	}
	validating, mutating := &admissionv1.ValidatingWebhookConfiguration{}, &admissionv1.MutatingWebhookConfiguration{}
	// The controller writes them at the same time.
	eventually(t, 10*time.Second, func() error {
		if err := admin.Get(t.Context(), client.ObjectKey{Name: "mintmark-webhook"}, validating); err != nil {
			return err
		}
		for i := range validating.Webhooks {
			redirect(&validating.Webhooks[i].ClientConfig)
		}
		return admin.Update(t.Context(), validating)
	})
	eventually(t, 10*time.Second, func() error {
		if err := admin.Get(t.Context(), client.ObjectKey{Name: "mintmark-webhook"}, mutating); err != nil {
			return err
		}
		for i := range mutating.Webhooks {
			redirect(&mutating.Webhooks[i].ClientConfig)
		}
		return admin.Update(t.Context(), mutating)
	})
}

// trusting is an HTTP client that trusts the authority of the server's
// certificate, as people get it from its Secret.
func trusting(t testing.TB, plane *controlplane.ControlPlane) *http.Client {
	t.Helper()
	api, _ := clients(t, plane.Config)
	secret, err := api.CoreV1().Secrets(namespace).Get(t.Context(), "mintmark-server-tls", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(secret.Data[corev1.ServiceAccountRootCAKey]) {
		t.Fatalf("Secret %s/mintmark-server-tls holds no certificate authority", namespace)
	}
	return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
}

// verify asks the server about a value as a gateway does.
func (o *operator) verify(t testing.TB, value string, want int) {
	t.Helper()
	eventually(t, 5*time.Second, func() error {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, o.serverURL+"/forward-auth", nil)
		if err != nil {
			return err
		}
		request.Header.Set("Authorization", "Bearer "+value)
		response, err := o.client.Do(request)
		if err != nil {
			return err
		}
		defer func() { _ = response.Body.Close() }()
		if response.StatusCode != want {
			body, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
			return fmt.Errorf("/forward-auth answers %s, not %d: %s", response.Status, want, body)
		}
		return nil
	})
}

// wasNeverForbidden looks for refusals of the API server: in both logs, and in the
// controller's count of answers.
func (o *operator) wasNeverForbidden(t testing.TB) {
	t.Helper()
	for _, p := range []*process.Process{o.controller, o.server} {
		for line := range bytes.Lines([]byte(read(t, p.LogFile()))) {
			if bytes.Contains(line, []byte("is forbidden")) {
				t.Errorf("%s was refused something: %s", p.Name(), line)
			}
			if !json.Valid(line) {
				t.Errorf("%s wrote a line that is not JSON: %s", p.Name(), line)
			}
		}
	}
	metrics, err := get(t.Context(), o.controllerMetrics)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(metrics, []byte(`rest_client_requests_total{code="200"`)) {
		t.Error("the controller does not count the API server's answers")
	}
	if bytes.Contains(metrics, []byte(`rest_client_requests_total{code="403"`)) {
		t.Error("the API server refused the controller something (rest_client_requests_total, code 403)")
	}
}

// get reads a page that has to be there.
func get(ctx context.Context, url string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answers %s: %s", url, response.Status, body)
	}
	return body, err
}

// address is one of the loopback interface that nobody listens at.
func address(t testing.TB) string {
	t.Helper()
	address, err := process.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	return address
}
