//go:build faults

package faults

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
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
	startupTimeout = 90 * time.Second
)

// The API servers: the first one also serves the tests themselves and
// kube-controller-manager, so no fault befalls it; the other one is stopped, killed
// and cut off.
const (
	firstAPI  = 0
	secondAPI = 1
)

// serverSetups are the servers. They are split over the API servers, and the last one
// denies soon after it is cut off.
var serverSetups = []struct {
	api       int
	staleness time.Duration
}{
	{firstAPI, longStaleness}, {secondAPI, longStaleness}, {secondAPI, shortStaleness},
}

const (
	longStaleness  = 10 * time.Minute
	shortStaleness = 5 * time.Second
)

// Other binaries to run as the controller or the server: broken ones, to see that the
// checker notices.
var otherBinaries = map[string]string{"controller": "MINTMARK_FAULTS_CONTROLLER", "server": "MINTMARK_FAULTS_SERVER"}

// rig is an installation whose processes reach the API server through the proxy.
type rig struct {
	dir    string
	plane  *controlplane.ControlPlane
	second *controlplane.KubeAPIServer
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
	*supervised
	name, url, metrics string
	staleness          time.Duration
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
	if r.second, err = r.plane.AddAPIServer(ctx); err != nil {
		return err
	}
	if r.proxy, err = newProxy(r.plane.Config, r.second.Config); err != nil {
		return err
	}
	ports, err := process.FreePorts(1)
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
	if ports, err = process.FreePorts(1); err != nil {
		return err
	}
	if r.standby, err = r.newController(ctx, standbyName, ports[0]); err != nil {
		return err
	}
	for i := range serverSetups {
		if err := r.startServer(ctx, i); err != nil {
			return err
		}
	}
	return r.readAuthority(ctx)
}

// build makes the binaries, unless it is told of others.
func (r *rig) build(ctx context.Context, root string) error {
	missing := map[string]string{}
	for name, env := range otherBinaries {
		if r.binaries[name] = os.Getenv(env); r.binaries[name] == "" {
			r.binaries[name] = filepath.Join(r.dir, "mintmark-"+name)
			missing[name] = r.binaries[name]
		}
	}
	return controlplane.BuildMintmark(ctx, root, os.Stderr, missing)
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
	ports, err := process.FreePorts(1)
	if err != nil {
		return nil, err
	}
	return &supervised{
		probe:   "http://" + process.Loopback(ports[0]) + "/readyz",
		release: r.releaseLeadership,
		config: process.Config{
			Name: name, Path: r.binaries["controller"], LogFile: filepath.Join(r.dir, "log", name+".log"),
			Args: []string{
				"--kubeconfig=" + kubeconfig, "--namespace=" + systemNamespace, "--leader-elect", "--internal-token-file=" + token,
				"--certificate-names=127.0.0.1,localhost", "--webhook-bind-address=" + process.Loopback(webhooks),
				"--health-probe-bind-address=" + process.Loopback(ports[0]), "--metrics-bind-address=0",
			},
		},
	}, nil
}

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

func (r *rig) startServer(ctx context.Context, i int) error {
	setup, name := serverSetups[i], "server-"+strconv.Itoa(i+1)
	kubeconfig, _, err := r.identity(ctx, name, "mintmark-server")
	if err != nil {
		return err
	}
	r.proxy.change(name, func(w *route) { w.upstream = setup.api })
	ports, err := process.FreePorts(4)
	if err != nil {
		return err
	}
	s := &server{
		name: name, url: "https://" + process.Loopback(ports[0]), metrics: "http://" + process.Loopback(ports[2]) + "/metrics",
		staleness: setup.staleness,
		supervised: &supervised{
			probe:   "http://" + process.Loopback(ports[2]) + "/readyz",
			release: func(context.Context) error { return nil },
			config: process.Config{
				Name: name, Path: r.binaries["server"], LogFile: filepath.Join(r.dir, "log", name+".log"),
				Args: []string{
					"--kubeconfig=" + kubeconfig, "--namespace=" + systemNamespace, "--id=" + name,
					"--bind-address=" + process.Loopback(ports[0]), "--internal-bind-address=" + process.Loopback(ports[1]),
					"--internal-advertise-url=https://" + process.Loopback(ports[1]), "--metrics-bind-address=" + process.Loopback(ports[2]),
					"--grpc-bind-address=" + process.Loopback(ports[3]), "--shutdown-delay=0s", "--max-staleness=" + setup.staleness.String(),
				},
			},
		},
	}
	r.servers = append(r.servers, s)
	return s.start(ctx)
}

// everybody is every process under test that runs all the time.
func (r *rig) everybody() []string {
	all := []string{controllerName}
	for _, s := range r.servers {
		all = append(all, s.name)
	}
	return all
}

// serverStarts is how often a server was started.
func (r *rig) serverStarts() int {
	n := 0
	for _, s := range r.servers {
		s.mu.Lock()
		n += s.starts
		s.mu.Unlock()
	}
	return n
}

// move has processes reach another API server from now on.
func (r *rig) move(api int, processes ...string) {
	for _, name := range processes {
		moved := false
		r.proxy.change(name, func(w *route) { moved, w.upstream = w.upstream != api, api })
		if moved {
			r.proxy.cutWatches(name, 0)
		}
	}
}

// mend undoes every fault that lasts, and waits until every server is Ready.
func (r *rig) mend(ctx context.Context) error {
	for i, s := range r.servers {
		r.proxy.change(s.name, func(w *route) { *w = route{upstream: w.upstream} })
		r.move(serverSetups[i].api, s.name)
	}
	r.proxy.change(controllerName, func(w *route) { *w = route{upstream: w.upstream} })
	r.move(firstAPI, controllerName)
	for i, s := range r.servers {
		if _, err := s.restarts(); err != nil {
			return err
		}
		if err := poll(ctx, startupTimeout, func() error { return process.Probe(ctx, s.probe) }); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		// The prober is to know it as well: what comes next is judged by that.
		if err := poll(ctx, startupTimeout, func() error { return r.prober.sees(i, time.Now()) }); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// look asks the server whether it is Ready, and how old, to the second, it says that what
// it knows may be.
func (s *server) look(ctx context.Context) (ready bool, age time.Duration, known bool) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.probe+"?verbose", nil)
	if err != nil {
		return false, 0, false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false, 0, false
	}
	defer func() { _ = resp.Body.Close() }()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if _, text, found := strings.Cut(lines.Text(), "] staleness: "); found {
			text, _, _ = strings.Cut(text, " ")
			age, err = time.ParseDuration(text)
			known = err == nil
		}
	}
	return resp.StatusCode == http.StatusOK && lines.Err() == nil, age, known
}

// shownAge is how old the server says that what it knows may be.
func (s *server) shownAge(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.metrics, nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if text, ok := strings.CutPrefix(lines.Text(), "mintmark_server_staleness_seconds "); ok {
			seconds, err := strconv.ParseFloat(text, 64)
			return time.Duration(seconds * float64(time.Second)), err
		}
	}
	return 0, errors.Join(lines.Err(), errors.New("the server shows no age"))
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
		s.stop()
	}
	if r.plane != nil {
		r.plane.Stop()
	}
	for _, a := range r.addr {
		a.CloseClientConnections()
		a.Close()
	}
}

// supervised is a process that is started again at once when it ends.
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
	return p.Wait(ctx, func(ctx context.Context) error { return process.Probe(ctx, s.probe) })
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

// restart ends the process as a rollout does, and waits until the next one is ready.
func (s *supervised) restart(ctx context.Context) error {
	s.mu.Lock()
	before := s.starts
	s.mu.Unlock()
	if err := s.signal(syscall.SIGTERM); err != nil {
		return err
	}
	return poll(ctx, startupTimeout, func() error {
		s.mu.Lock()
		starts := s.starts
		s.mu.Unlock()
		if starts == before {
			return errors.New("it has not ended")
		}
		return process.Probe(ctx, s.probe)
	})
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
