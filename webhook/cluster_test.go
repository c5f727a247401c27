package webhook_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	webhookserver "sigs.k8s.io/controller-runtime/pkg/webhook"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/test/controlplane"
	"github.com/mintmark-dev/mintmark/webhook"
)

func TestMain(m *testing.M) { controlplane.Main(m) }

const (
	systemNamespace = "mintmark-system"
	controllerUser  = "system:serviceaccount:mintmark-system:mintmark-controller"
	// patience is how long the API server gets to notice a change of RBAC or of
	// the webhook configurations.
	patience = 30 * time.Second
)

// installation is a control plane with Mintmark's RBAC, classes and webhooks;
// the webhooks run under the controller's own account.
type installation struct {
	config *rest.Config
	admin  client.Client
	hooks  *envtest.WebhookInstallOptions
	root   string
}

var install = sync.OnceValues(func() (*installation, error) {
	root, err := controlplane.Root()
	if err != nil {
		return nil, err
	}
	return &installation{root: root}, nil
})

var once sync.Once

// cluster is the installation all tests of this package share.
func cluster(t *testing.T) *installation {
	t.Helper()
	in, err := install()
	if err != nil {
		t.Fatal(err)
	}
	plane := controlplane.ForTest(t)
	once.Do(func() { err = in.start(plane) })
	if err != nil {
		t.Fatal(err)
	}
	if in.admin == nil {
		t.Fatal("the installation could not be started: see the first test that failed")
	}
	return in
}

func testScheme() *runtime.Scheme {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			panic(err)
		}
	}
	return scheme
}

func (in *installation) start(plane *controlplane.ControlPlane) error {
	ctx := context.Background()
	ctrl.SetLogger(logr.Discard())
	in.config = rest.CopyConfig(plane.Config)
	in.config.QPS = -1
	admin, err := client.New(in.config, client.Options{Scheme: testScheme()})
	if err != nil {
		return err
	}
	controller, err := plane.ServiceAccountConfig(ctx, systemNamespace, "mintmark-controller")
	if err != nil {
		return err
	}
	for _, file := range []string{"rbac/controller.yaml", "rbac/users.yaml", "classes/default.yaml", "classes/admin.yaml"} {
		if err := apply(ctx, admin, filepath.Join(in.root, "config", file)); err != nil {
			return err
		}
	}
	in.hooks = &envtest.WebhookInstallOptions{
		Paths:            []string{filepath.Join(in.root, "config", "webhook", "manifests.yaml")},
		LocalServingHost: "127.0.0.1",
	}
	if err := in.hooks.PrepWithoutInstalling(); err != nil {
		return err
	}
	mgr, err := ctrl.NewManager(controller, ctrl.Options{
		Scheme:  testScheme(),
		Metrics: metricsserver.Options{BindAddress: "0"},
		WebhookServer: webhookserver.NewServer(webhookserver.Options{
			Host: in.hooks.LocalServingHost, Port: in.hooks.LocalServingPort, CertDir: in.hooks.LocalServingCertDir,
		}),
	})
	if err != nil {
		return err
	}
	if err := webhook.Setup(mgr, webhook.Config{ControllerUser: controllerUser}); err != nil {
		return err
	}
	go func() {
		if err := mgr.Start(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, "manager:", err)
		}
	}()
	if err := in.hooks.Install(in.config); err != nil {
		return err
	}
	in.admin = admin
	return in.awaitWebhooks(ctx, func(err error) bool { return err == nil })
}

// awaitWebhooks tries out a credential until the answer is the one wanted.
func (in *installation) awaitWebhooks(ctx context.Context, wanted func(error) bool) error {
	return until(func() error {
		probe := token("default", "probe", v1alpha1.CredentialSpec{CredentialClassName: "no-such-class"})
		err := in.admin.Create(ctx, probe, client.DryRunAll)
		if err != nil && strings.Contains(err.Error(), "no-such-class") {
			err = nil // the webhook answers
		}
		if !wanted(err) {
			return fmt.Errorf("the webhooks are not as wanted: %w", errors.Join(err, errors.New("last answer")))
		}
		return nil
	})
}

// until retries for as long as the tests' patience lasts.
func until(try func() error) error { return controlplane.Until(patience, try) }

// apply applies the manifests of a file.
func apply(ctx context.Context, c client.Client, path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	for decoder := yaml.NewYAMLOrJSONDecoder(file, 4096); ; {
		object := &unstructured.Unstructured{}
		if err := decoder.Decode(object); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if len(object.Object) == 0 {
			continue
		}
		if err := c.Apply(ctx, client.ApplyConfigurationFromUnstructured(object), client.FieldOwner("test"), client.ForceOwnership); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
}

// as is a client of a user, who has the groups every user has.
func (in *installation) as(t *testing.T, user string) client.Client {
	t.Helper()
	config := rest.CopyConfig(in.config)
	config.Impersonate = rest.ImpersonationConfig{UserName: user, Groups: []string{"system:authenticated"}}
	c, err := client.New(config, client.Options{Scheme: testScheme()})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// withWarnings is the administrator's client, and keeps the warnings it gets.
func (in *installation) withWarnings(t *testing.T, warnings *[]string) client.Client {
	t.Helper()
	config := rest.CopyConfig(in.config)
	config.WarningHandlerWithContext = warningsTo(func(text string) { *warnings = append(*warnings, text) })
	c, err := client.New(config, client.Options{Scheme: testScheme()})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

type warningsTo func(text string)

func (w warningsTo) HandleWarningHeaderWithContext(_ context.Context, _ int, _, text string) { w(text) }

// namespace makes a namespace of the test's own.
func (in *installation) namespace(t *testing.T, labels map[string]string) string {
	t.Helper()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "test-", Labels: labels}}
	if err := in.admin.Create(t.Context(), namespace); err != nil {
		t.Fatal(err)
	}
	return namespace.Name
}

// allow gives a user rules in a namespace, or in the whole cluster where that is
// empty, and waits until they hold.
func (in *installation) allow(t *testing.T, user, namespace string, rules ...rbacv1.PolicyRule) {
	t.Helper()
	meta := metav1.ObjectMeta{GenerateName: "test-", Namespace: namespace}
	subjects := []rbacv1.Subject{{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: user}}
	ref := rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role"}
	var role client.Object = &rbacv1.Role{ObjectMeta: meta, Rules: rules}
	var binding client.Object
	if namespace == "" {
		role, ref.Kind = &rbacv1.ClusterRole{ObjectMeta: meta, Rules: rules}, "ClusterRole"
	}
	in.create(t, role)
	ref.Name = role.GetName()
	if namespace == "" {
		binding = &rbacv1.ClusterRoleBinding{ObjectMeta: meta, Subjects: subjects, RoleRef: ref}
		t.Cleanup(func() { _ = in.admin.Delete(context.Background(), role) })
	} else {
		binding = &rbacv1.RoleBinding{ObjectMeta: meta, Subjects: subjects, RoleRef: ref}
	}
	in.create(t, binding)
	for _, rule := range rules {
		if err := until(func() error { return in.check(t.Context(), user, namespace, rule) }); err != nil {
			t.Fatal(err)
		}
	}
}

func (in *installation) check(ctx context.Context, user, namespace string, rule rbacv1.PolicyRule) error {
	attributes := &authorizationv1.ResourceAttributes{
		Namespace: namespace, Verb: rule.Verbs[0], Group: rule.APIGroups[0], Resource: rule.Resources[0],
	}
	if len(rule.ResourceNames) > 0 {
		attributes.Name = rule.ResourceNames[0]
	}
	review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{User: user, ResourceAttributes: attributes}}
	if err := in.admin.Create(ctx, review); err != nil {
		return err
	}
	if !review.Status.Allowed {
		return fmt.Errorf("%s may still not %v", user, rule)
	}
	return nil
}

func (in *installation) create(t *testing.T, object client.Object) {
	t.Helper()
	if err := in.admin.Create(t.Context(), object); err != nil {
		t.Fatalf("make %T %s: %v", object, object.GetName(), err)
	}
}

// class makes a class with the rules, deleted after the test.
func (in *installation) class(t *testing.T, rules ...v1alpha1.ClassRule) *v1alpha1.CredentialClass {
	t.Helper()
	class := &v1alpha1.CredentialClass{ObjectMeta: metav1.ObjectMeta{GenerateName: "test-"}, Spec: v1alpha1.CredentialClassSpec{Rules: rules}}
	in.create(t, class)
	t.Cleanup(func() {
		if err := in.admin.Delete(context.Background(), class); client.IgnoreNotFound(err) != nil {
			t.Error(err)
		}
	})
	return class
}

// withoutWebhooks points the webhook configurations at a port where nobody
// listens for as long as the test runs.
func (in *installation) withoutWebhooks(t *testing.T) {
	t.Helper()
	nowhere := "https://127.0.0.1:1/nobody"
	in.redirect(t, func(string) string { return nowhere })
	t.Cleanup(func() {
		in.redirect(t, func(original string) string { return original })
		if err := in.awaitWebhooks(context.Background(), func(err error) bool { return err == nil }); err != nil {
			t.Fatal(err)
		}
	})
	unreachable := func(err error) bool { return err != nil && strings.Contains(err.Error(), "failed calling webhook") }
	if err := in.awaitWebhooks(t.Context(), unreachable); err != nil {
		t.Fatal(err)
	}
}

// redirect changes the URLs of the installed configurations from what they are
// as installed.
func (in *installation) redirect(t *testing.T, to func(original string) string) {
	t.Helper()
	for _, original := range in.hooks.MutatingWebhooks {
		config := &admissionregistrationv1.MutatingWebhookConfiguration{}
		in.change(t, original.Name, config, func() {
			for i := range config.Webhooks {
				url := to(*original.Webhooks[i].ClientConfig.URL)
				config.Webhooks[i].ClientConfig.URL = &url
			}
		})
	}
	for _, original := range in.hooks.ValidatingWebhooks {
		config := &admissionregistrationv1.ValidatingWebhookConfiguration{}
		in.change(t, original.Name, config, func() {
			for i := range config.Webhooks {
				url := to(*original.Webhooks[i].ClientConfig.URL)
				config.Webhooks[i].ClientConfig.URL = &url
			}
		})
	}
}

func (in *installation) change(t *testing.T, name string, object client.Object, change func()) {
	t.Helper()
	if err := until(func() error {
		if err := in.admin.Get(context.Background(), client.ObjectKey{Name: name}, object); err != nil {
			return err
		}
		change()
		return in.admin.Update(context.Background(), object)
	}); err != nil {
		t.Fatal(err)
	}
}

func token(namespace, name string, spec v1alpha1.CredentialSpec) *v1alpha1.ServiceToken {
	return &v1alpha1.ServiceToken{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: spec}
}

// Rules as an administrator writes them.
func grants(names ...string) rbacv1.PolicyRule { return ours("grant", "permissions", names...) }

func uses(resource string, names ...string) rbacv1.PolicyRule { return ours("use", resource, names...) }

func edits() rbacv1.PolicyRule {
	rule := ours("create", "servicetokens")
	rule.Resources = append(rule.Resources, "apikeys")
	rule.Verbs = []string{"create", "get", "update", "patch", "delete"}
	return rule
}

func ours(verb, resource string, names ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{APIGroups: []string{"mintmark.dev"}, Resources: []string{resource}, ResourceNames: names, Verbs: []string{verb}}
}

// expect compares an error with what it should say; nothing means no error.
func expect(t *testing.T, err error, says ...string) {
	t.Helper()
	if len(says) == 0 {
		if err != nil {
			t.Errorf("refused: %v", err)
		}
		return
	}
	if err == nil {
		t.Errorf("not refused; expected an error with %q", says)
		return
	}
	for _, part := range says {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the error does not say %q:\n%v", part, err)
		}
	}
}

func forbidden(t *testing.T, err error, says ...string) {
	t.Helper()
	if err != nil && !apierrors.IsForbidden(err) {
		t.Errorf("refused, but not as forbidden: %v", err)
	}
	expect(t, err, says...)
}
