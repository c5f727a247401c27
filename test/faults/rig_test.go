//go:build faults

package faults

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/test/controlplane"
	"github.com/mintmark-dev/mintmark/test/controlplane/manifests"
	"github.com/mintmark-dev/mintmark/test/controlplane/process"
)

const (
	systemNamespace = "mintmark-system"
	// controllerName is the process that leads; the other one, where a test starts
	// it, is standbyName.
	controllerName = "controller"
	standbyName    = "standby"
	serverCount    = 2
	startupTimeout = 90 * time.Second
)

// controllerEnv names another binary to run as the controller: a broken one, to
// see that the checker notices.
const controllerEnv = "MINTMARK_FAULTS_CONTROLLER"

// rig is an installation whose processes reach the API server through the proxy.
type rig struct {
	dir    string
	plane  *controlplane.ControlPlane
	admin  client.WithWatch
	proxy  *proxy
	prober *prober
	addr   map[string]*httptest.Server // of the proxy, by process

	binaries   map[string]string
	webhooks   int // the port that the API server calls
	controller *supervised
	standby    *supervised // runs only where a trial starts it
	servers    []*server
	ca         *x509.CertPool
}

// server is one server under test.
type server struct {
	name, url, probe string
	process          *process.Process
}

func startRig(ctx context.Context, dir string) (*rig, error) {
	r := &rig{dir: dir, addr: map[string]*httptest.Server{}, binaries: map[string]string{}}
	if err := r.start(ctx); err != nil {
		r.stop()
		return nil, err
	}
	return r, nil
}

func (r *rig) start(ctx context.Context) error {
	root, err := controlplane.Root()
	if err != nil {
		return err
	}
	if err := r.build(ctx, root); err != nil {
		return err
	}
	r.plane, err = controlplane.Start(ctx, controlplane.Options{
		Dir: filepath.Join(r.dir, "controlplane"), Out: os.Stderr, ControllerManager: true, CRDs: true,
	})
	if err != nil {
		return err
	}
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return err
	}
	if r.admin, err = client.NewWithWatch(r.plane.Config, client.Options{Scheme: scheme}); err != nil {
		return err
	}
	if r.proxy, err = newProxy(r.plane.Config); err != nil {
		return err
	}
	ports, err := freePorts(1)
	if err != nil {
		return err
	}
	r.webhooks = ports[0]
	if _, err := manifests.Install(ctx, r.plane.Config, root, r.webhooks); err != nil {
		return err
	}
	if r.controller, err = r.newController(ctx, controllerName, r.webhooks); err != nil {
		return err
	}
	if err := r.controller.start(ctx); err != nil {
		return err
	}
	if ports, err = freePorts(1); err != nil {
		return err
	}
	if r.standby, err = r.newController(ctx, standbyName, ports[0]); err != nil {
		return err
	}
	for i := range serverCount {
		if err := r.startServer(ctx, "server-"+strconv.Itoa(i+1)); err != nil {
			return err
		}
	}
	return r.readAuthority(ctx)
}

// build makes the binaries, unless it is told of another controller.
func (r *rig) build(ctx context.Context, root string) error {
	for _, name := range []string{"controller", "server"} {
		r.binaries[name] = filepath.Join(r.dir, "mintmark-"+name)
		if other := os.Getenv(controllerEnv); name == "controller" && other != "" {
			r.binaries[name] = other
			continue
		}
		cmd := exec.CommandContext(ctx, "go", "build", "-o", r.binaries[name], "./cmd/"+name)
		cmd.Dir = root
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build the %s: %w\n%s", name, err, out)
		}
	}
	return nil
}

// identity writes down what a process runs as: a kubeconfig with a token of its own
// service account, which points at the proxy.
func (r *rig) identity(ctx context.Context, process, account string) (kubeconfig, internalToken string, err error) {
	dir := filepath.Join(r.dir, "identity", process)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", "", err
	}
	token, err := r.plane.ServiceAccount(ctx, systemNamespace, account)
	if err != nil {
		return "", "", err
	}
	if r.addr[process] == nil {
		r.addr[process] = r.proxy.listen(process)
	}
	address := r.addr[process]
	kubeconfig = filepath.Join(dir, "kubeconfig")
	if err := r.plane.WriteKubeconfig(kubeconfig, &rest.Config{
		Host: address.URL, BearerToken: token,
		TLSClientConfig: rest.TLSClientConfig{CAData: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: address.Certificate().Raw})},
	}); err != nil {
		return "", "", err
	}
	internal, err := r.plane.ServiceAccount(ctx, systemNamespace, account, "mintmark-internal")
	if err != nil {
		return "", "", err
	}
	internalToken = filepath.Join(dir, "internal-token")
	return kubeconfig, internalToken, os.WriteFile(internalToken, []byte(internal), 0o600)
}

// newController prepares a controller; start starts it.
func (r *rig) newController(ctx context.Context, name string, webhooks int) (*supervised, error) {
	kubeconfig, token, err := r.identity(ctx, name, "mintmark-controller")
	if err != nil {
		return nil, err
	}
	ports, err := freePorts(1)
	if err != nil {
		return nil, err
	}
	return &supervised{
		probe:   "http://" + loopback(ports[0]) + "/readyz",
		release: r.releaseLeadership,
		config: process.Config{
			Name: name, Path: r.binaries["controller"], LogFile: filepath.Join(r.dir, "log", name+".log"),
			Args: []string{
				"--kubeconfig=" + kubeconfig, "--namespace=" + systemNamespace, "--leader-elect", "--internal-token-file=" + token,
				"--certificate-names=127.0.0.1,localhost", "--webhook-bind-address=" + loopback(webhooks),
				"--health-probe-bind-address=" + loopback(ports[0]), "--metrics-bind-address=0",
			},
		},
	}, nil
}

func loopback(port int) string { return "127.0.0.1:" + strconv.Itoa(port) }

// releaseLeadership takes the Lease from a controller that is dead or stopped, so
// that the next one need not wait until it lapses.
func (r *rig) releaseLeadership(ctx context.Context) error {
	for {
		var lease coordinationv1.Lease
		err := r.admin.Get(ctx, types.NamespacedName{Namespace: systemNamespace, Name: "mintmark-controller"}, &lease)
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err == nil {
			nobody := ""
			lease.Spec.HolderIdentity = &nobody
			err = r.admin.Update(ctx, &lease)
		}
		if err == nil || !apierrors.IsConflict(err) {
			return err
		}
	}
}

func (r *rig) startServer(ctx context.Context, name string) error {
	kubeconfig, _, err := r.identity(ctx, name, "mintmark-server")
	if err != nil {
		return err
	}
	ports, err := freePorts(3)
	if err != nil {
		return err
	}
	s := &server{name: name, url: "https://" + loopback(ports[0]), probe: "http://" + loopback(ports[2]) + "/readyz"}
	s.process, err = process.Start(process.Config{
		Name: name, Path: r.binaries["server"], LogFile: filepath.Join(r.dir, "log", name+".log"),
		Args: []string{
			"--kubeconfig=" + kubeconfig, "--namespace=" + systemNamespace, "--id=" + name,
			"--bind-address=" + loopback(ports[0]), "--internal-bind-address=" + loopback(ports[1]),
			"--internal-advertise-url=https://" + loopback(ports[1]), "--metrics-bind-address=" + loopback(ports[2]), "--shutdown-delay=0s",
		},
	})
	if err != nil {
		return err
	}
	r.servers = append(r.servers, s)
	ctx, cancel := context.WithTimeout(ctx, startupTimeout)
	defer cancel()
	return s.process.Wait(ctx, func(ctx context.Context) error { return ready(ctx, s.probe) })
}

func (r *rig) readAuthority(ctx context.Context) error {
	var secret corev1.Secret
	if err := r.admin.Get(ctx, types.NamespacedName{Namespace: systemNamespace, Name: "mintmark-server-tls"}, &secret); err != nil {
		return fmt.Errorf("read the servers' certificate authority: %w", err)
	}
	r.ca = x509.NewCertPool()
	if !r.ca.AppendCertsFromPEM(secret.Data[corev1.ServiceAccountRootCAKey]) {
		return errors.New("the servers' certificate authority cannot be read")
	}
	return nil
}

// clientOf makes a client of the servers, with connections of its own.
func (r *rig) clientOf() *http.Client {
	return &http.Client{
		Timeout:   10 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: r.ca, MinVersion: tls.VersionTLS13}, MaxIdleConnsPerHost: 16},
	}
}

func (r *rig) stop() {
	for _, c := range []*supervised{r.standby, r.controller} {
		if c != nil {
			c.stop()
		}
	}
	for _, s := range r.servers {
		s.process.Stop(5 * time.Second)
	}
	if r.plane != nil {
		r.plane.Stop()
	}
	for _, a := range r.addr {
		a.CloseClientConnections()
		a.Close()
	}
}

// ready asks a process whether it is.
func ready(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", url, resp.Status)
	}
	return nil
}

// supervised is a controller that is started again at once when it ends.
type supervised struct {
	config  process.Config
	probe   string
	release func(context.Context) error

	mu       sync.Mutex
	process  *process.Process
	stopping bool
	starts   int
	problem  error // why it could not be started again
	over     chan struct{}
}

// start starts the process and waits until it is ready.
func (s *supervised) start(ctx context.Context) error {
	p, err := process.Start(s.config)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.process, s.starts, s.stopping, s.over = p, s.starts+1, false, make(chan struct{})
	over := s.over
	s.mu.Unlock()
	go s.supervise(p, over)
	ctx, cancel := context.WithTimeout(ctx, startupTimeout)
	defer cancel()
	return p.Wait(ctx, func(ctx context.Context) error { return ready(ctx, s.probe) })
}

func (s *supervised) supervise(p *process.Process, over chan struct{}) {
	defer close(over)
	for {
		<-p.Done()
		s.mu.Lock()
		if s.stopping {
			s.mu.Unlock()
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), startupTimeout)
		err := s.release(ctx)
		cancel()
		if err == nil {
			p, err = process.Start(s.config)
		}
		s.process, s.starts, s.problem = p, s.starts+1, err
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// signal sends a signal to the process as it is now.
func (s *supervised) signal(what syscall.Signal) error {
	s.mu.Lock()
	p := s.process
	s.mu.Unlock()
	return p.Signal(what)
}

// kill ends the process at once, and waits for its end.
func (s *supervised) kill() {
	s.mu.Lock()
	p := s.process
	s.mu.Unlock()
	p.Kill()
}

func (s *supervised) restarts() (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.starts - 1, s.problem
}

// stop ends the process for good.
func (s *supervised) stop() {
	s.mu.Lock()
	s.stopping = true
	p, over := s.process, s.over
	s.mu.Unlock()
	if p == nil {
		return
	}
	_ = p.Signal(syscall.SIGCONT)
	p.Stop(5 * time.Second)
	<-over
}
