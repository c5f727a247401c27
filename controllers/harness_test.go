package controllers

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
	"github.com/mintmark-dev/mintmark/test/controlplane"
)

// cluster is a namespace of the real API server, a class, and a person's client.
type cluster struct {
	t           testing.TB
	config      *rest.Config
	client      client.Client
	scheme      *runtime.Scheme
	namespace   string
	class       string
	peppers     *PepperHolder
	now         func() time.Time
	skew        func() (time.Duration, bool)
	transitions *Transitions
	usage       *UsageCollector
	restarts    *RestartConfig // nil: restarts are off
}

func newCluster(t testing.TB) *cluster {
	t.Helper()
	plane := controlplane.ForTest(t)
	scheme := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	cfg := rest.CopyConfig(plane.Config)
	cfg.QPS = -1
	c, err := client.New(cfg, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "test-"}}
	if err := c.Create(t.Context(), namespace); err != nil {
		t.Fatal(err)
	}
	class := &v1alpha1.CredentialClass{ObjectMeta: metav1.ObjectMeta{Name: namespace.Name}, Spec: v1alpha1.CredentialClassSpec{
		Environment: "test", MinOverlap: "1s",
		Defaults: v1alpha1.ClassDefaults{Rotation: v1alpha1.RotationDefaults{Retire: v1alpha1.RetireAfterOverlap}},
		Rules: []v1alpha1.ClassRule{{
			Permissions: []v1alpha1.Permission{"*"}, Except: []v1alpha1.Permission{"mintmark:*"}, External: true, Adoption: true,
		}},
	}}
	if err := c.Create(t.Context(), class); err != nil {
		t.Fatal(err)
	}
	holder := new(PepperHolder)
	pepper, err := credential.NewPepper("p1", make([]byte, credential.PepperLen))
	if err != nil {
		t.Fatal(err)
	}
	holder.Set(credential.Peppers{pepper}, nil)
	return &cluster{
		t: t, config: cfg, client: c, scheme: scheme, namespace: namespace.Name, class: class.Name, peppers: holder,
		now: time.Now,
	}
}

// process is one controller process: its own cache, memory and connections.
type process struct {
	stop   func()
	writes *writes
	keys   *PepperHolder
	cache  client.Reader // what the process itself sees
}

// writes counts what a process asks the API server to change.
type writes struct {
	mu   sync.Mutex
	list []string
	// before is called before each write is sent, and after when it is answered;
	// an error from either is what the process sees.
	before, after func(n int, what string) error
}

func (w *writes) wrap(next http.RoundTripper) http.RoundTripper {
	return roundTripperFunc(func(r *http.Request) (*http.Response, error) {
		if r.Method == http.MethodGet {
			return next.RoundTrip(r)
		}
		what := r.Method + " " + r.URL.Path
		w.mu.Lock()
		w.list = append(w.list, what)
		n, before, after := len(w.list), w.before, w.after
		w.mu.Unlock()
		if before != nil {
			if err := before(n, what); err != nil {
				return nil, err
			}
		}
		res, err := next.RoundTrip(r)
		if err == nil && after != nil {
			if err := after(n, what); err != nil {
				res.Body.Close()
				return nil, err
			}
		}
		return res, err
	})
}

func (w *writes) all() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.list...)
}

// start runs a controller for the cluster's namespace.
func (c *cluster) start(w *writes, propagation *Propagation) *process {
	c.t.Helper()
	if w == nil {
		w = &writes{}
	}
	cfg := rest.CopyConfig(c.config)
	cfg.Wrap(w.wrap)
	mgr, err := ctrl.NewManager(cfg, ctrl.Options{
		Scheme: c.scheme, Metrics: metricsserver.Options{BindAddress: "0"},
		Controller: config.Controller{SkipNameValidation: ptrTo(true)},
		Cache: cache.Options{
			DefaultNamespaces: map[string]cache.Config{c.namespace: {}},
			ByObject: map[client.Object]cache.ByObject{
				&corev1.Secret{}: {Label: labels.SelectorFromSet(labels.Set{v1alpha1.LabelManaged: "true"})},
			},
		},
	})
	if err != nil {
		c.t.Fatal(err)
	}
	if propagation == nil {
		propagation = NewPropagation(NewFleet(FleetConfig{Reader: mgr.GetAPIReader(), Namespace: c.namespace}))
	}
	if err := mgr.Add(propagation); err != nil {
		c.t.Fatal(err)
	}
	keys := new(PepperHolder)
	peppers, err := c.peppers.Peppers()
	keys.Set(peppers, err)
	if c.usage != nil {
		if err := mgr.Add(c.usage); err != nil {
			c.t.Fatal(err)
		}
	}
	if c.transitions != nil {
		if err := mgr.Add(c.transitions); err != nil {
			c.t.Fatal(err)
		}
	}
	if err := SetupCredentials(mgr, CredentialConfig{Transitions: c.transitions, Keys: keys, Propagation: propagation, Restarts: c.restarter(mgr), Now: c.now, ClockSkew: c.skew, Usage: c.usage}); err != nil {
		c.t.Fatal(err)
	}
	if err := SetupRevocations(mgr, keys); err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- mgr.Start(ctx) }()
	if !mgr.GetCache().WaitForCacheSync(ctx) {
		c.t.Fatal("the cache does not fill")
	}
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			c.t.Errorf("the manager ended with %v", err)
		}
	})
	c.t.Cleanup(stop)
	return &process{stop: stop, writes: w, keys: keys, cache: mgr.GetCache()}
}

func (c *cluster) token(name string, change ...func(*v1alpha1.CredentialSpec)) *v1alpha1.ServiceToken {
	c.t.Helper()
	token := &v1alpha1.ServiceToken{
		ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: name},
		Spec:       v1alpha1.CredentialSpec{CredentialClassName: c.class, Permissions: []v1alpha1.Permission{"api:read"}},
	}
	for _, f := range change {
		f(&token.Spec)
	}
	if err := c.client.Create(c.t.Context(), token); err != nil {
		c.t.Fatal(err)
	}
	return token
}

func (c *cluster) read(o client.Object) {
	c.t.Helper()
	if err := c.client.Get(c.t.Context(), client.ObjectKeyFromObject(o), o); err != nil {
		c.t.Fatal(err)
	}
}

// eventually reads an object until it is as wanted.
func (c *cluster) eventually(o client.Object, what string, as func() bool) {
	c.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := c.client.Get(c.t.Context(), client.ObjectKeyFromObject(o), o)
		if err == nil && as() {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("%s: not so after 20 s (%v); it is %s", what, err, describe(o))
		}
		select {
		case <-c.t.Context().Done():
			c.t.Fatal(what)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func describe(o client.Object) string {
	if cr, ok := o.(v1alpha1.Credential); ok {
		st := cr.CredentialStatus()
		text := ""
		for _, v := range st.Versions {
			text += fmt.Sprintf("[%d %s]", v.Version, v.State)
		}
		for _, cond := range st.Conditions {
			text += fmt.Sprintf(" %s=%s %s %q", cond.Type, cond.Status, cond.Reason, cond.Message)
		}
		return text
	}
	return fmt.Sprintf("%T %s", o, o.GetName())
}

func ready(cr v1alpha1.Credential) bool {
	return meta.IsStatusConditionTrue(cr.CredentialStatus().Conditions, v1alpha1.ConditionReady) &&
		cr.CredentialStatus().ObservedGeneration == cr.GetGeneration()
}

func reason(cr v1alpha1.Credential, condition string) string {
	if c := meta.FindStatusCondition(cr.CredentialStatus().Conditions, condition); c != nil {
		return c.Reason
	}
	return ""
}

func (c *cluster) ready(cr v1alpha1.Credential) {
	c.t.Helper()
	c.eventually(cr.(client.Object), "Ready", func() bool { return ready(cr) })
}

func (c *cluster) secret(name string) *corev1.Secret {
	c.t.Helper()
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: name}}
	c.read(s)
	return s
}

// annotate requests something, later than anything before.
func (c *cluster) annotate(o client.Object, key string) {
	c.t.Helper()
	before := o.DeepCopyObject().(client.Object)
	annotations := o.GetAnnotations()
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[key] = time.Now().UTC().Format(time.RFC3339Nano)
	o.SetAnnotations(annotations)
	if err := c.client.Patch(c.t.Context(), o, client.MergeFrom(before)); err != nil {
		c.t.Fatal(err)
	}
}
