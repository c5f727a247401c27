package controlplane

import (
	"context"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/mintmark-dev/mintmark/test/controlplane/process"
)

// Options of a control plane.
type Options struct {
	// Dir holds data, keys, logs and the kubeconfig. What an earlier control
	// plane left in it is removed. Empty: a temporary folder, removed by Stop.
	Dir string
	// LogDir holds the logs of the processes. Empty: Dir/log.
	LogDir string
	// Out is told about progress. Nil: nobody.
	Out io.Writer
	// ControllerManager runs kube-controller-manager too: garbage collection,
	// namespace deletion and service accounts then work.
	ControllerManager bool
	// CRDs are installed before kube-controller-manager starts, so that its
	// garbage collector knows them from the beginning (it looks for new ones
	// only every 30 s).
	CRDs bool
	// Port of kube-apiserver. 0: a free one.
	Port int
	// Durable has etcd wait for the disk. Tests do not need that.
	Durable bool
}

// ControlPlane is a running control plane. Its methods may be used by several
// goroutines at once, except Stop, StopAPIServer and StartAPIServer.
type ControlPlane struct {
	// Config is that of a cluster admin (group system:masters), without
	// client-side rate limits.
	Config *rest.Config

	options   Options
	temporary *os.File // the lock of a temporary folder
	pki       pki
	admin     struct{ cert, key []byte }
	etcdURL   string
	port      int
	etcd      *process.Process
	apiserver *process.Process
	manager   *process.Process
	binaries  map[string]string
}

const (
	startTimeout = 90 * time.Second
	stopGrace    = 5 * time.Second
	// attempts to start a process on another port, where somebody took the one
	// just found free.
	attempts = 5
)

// Start obtains the binaries, starts the control plane and waits until it
// serves. Where the binaries exist it takes seconds. The caller calls Stop.
func Start(ctx context.Context, options Options) (*ControlPlane, error) {
	if options.Out == nil {
		options.Out = io.Discard
	}
	c := &ControlPlane{options: options, binaries: map[string]string{}}
	if err := c.start(ctx); err != nil {
		c.Stop()
		return nil, fmt.Errorf("start the control plane: %w", err)
	}
	return c, nil
}

func (c *ControlPlane) start(ctx context.Context) error {
	names := []string{Etcd, APIServer}
	if c.options.ControllerManager {
		names = append(names, ControllerManager)
	}
	for _, name := range names {
		path, err := Binary(ctx, c.options.Out, name)
		if err != nil {
			return err
		}
		c.binaries[name] = path
	}
	if err := c.prepareDir(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := c.prepareIdentities(); err != nil {
		return err
	}
	if err := c.startEtcd(ctx); err != nil {
		return err
	}
	if err := c.startAPIServer(ctx); err != nil {
		return err
	}
	if c.options.CRDs {
		if err := c.InstallCRDs(ctx); err != nil {
			return err
		}
	}
	if !c.options.ControllerManager {
		return nil
	}
	return c.startControllerManager(ctx)
}

// prepareDir empties Dir, or makes a temporary one.
func (c *ControlPlane) prepareDir() error {
	if c.options.Dir == "" {
		dir, lock, err := temporaryDir()
		if err != nil {
			return err
		}
		c.options.Dir, c.temporary = dir, lock
	}
	dir, err := filepath.Abs(c.options.Dir)
	if err != nil {
		return err
	}
	c.options.Dir = dir
	if c.options.LogDir == "" {
		c.options.LogDir = filepath.Join(dir, "log")
	}
	for _, old := range []string{c.dataDir(), filepath.Join(dir, "pki"), c.Kubeconfig()} {
		if err := os.RemoveAll(old); err != nil {
			return fmt.Errorf("remove what an earlier control plane left: %w", err)
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the control plane's folder: %w", err)
	}
	for name := range c.binaries {
		if err := os.Remove(c.logFile(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (c *ControlPlane) prepareIdentities() error {
	files, ca, err := writePKI(filepath.Join(c.options.Dir, "pki"))
	if err != nil {
		return err
	}
	c.pki = files
	c.admin.cert, c.admin.key, err = ca.issue(pkix.Name{CommonName: "mintmark-admin", Organization: []string{"system:masters"}})
	if err != nil {
		return fmt.Errorf("make the cluster admin's certificate: %w", err)
	}
	c.Config = &rest.Config{
		TLSClientConfig: rest.TLSClientConfig{CAData: ca.pem, CertData: c.admin.cert, KeyData: c.admin.key},
		QPS:             -1,
	}
	return nil
}

func (c *ControlPlane) dataDir() string { return filepath.Join(c.options.Dir, "etcd") }
func (c *ControlPlane) logFile(name string) string {
	return filepath.Join(c.options.LogDir, name+".log")
}

// Kubeconfig is the path of a kubeconfig of a cluster admin.
func (c *ControlPlane) Kubeconfig() string { return filepath.Join(c.options.Dir, "kubeconfig") }

// startEtcd starts etcd, with the certificates of this control plane on both
// ends, so that no other control plane on the machine can be mixed up with it.
func (c *ControlPlane) startEtcd(ctx context.Context) error {
	return onFreePort(0, func(port int) (*process.Process, error) {
		c.etcdURL = "https://127.0.0.1:" + strconv.Itoa(port)
		args := []string{
			"--name=default", "--data-dir=" + c.dataDir(),
			"--listen-client-urls=" + c.etcdURL, "--advertise-client-urls=" + c.etcdURL,
			"--listen-peer-urls=http://127.0.0.1:0",
			"--cert-file=" + c.pki.servingCert(), "--key-file=" + c.pki.servingKey(),
			"--client-cert-auth", "--trusted-ca-file=" + c.pki.caCert(),
			"--log-level=warn",
		}
		if !c.options.Durable {
			args = append(args, "--unsafe-no-fsync")
		}
		p, err := process.Start(process.Config{Name: Etcd, Path: c.binaries[Etcd], Args: args, LogFile: c.logFile(Etcd)})
		if err != nil {
			return nil, err
		}
		c.etcd = p
		return p, p.Wait(ctx, func(ctx context.Context) error { return connect(ctx, port) })
	})
}

// startAPIServer starts kube-apiserver and waits until it is ready.
func (c *ControlPlane) startAPIServer(ctx context.Context) error {
	return onFreePort(c.options.Port, func(port int) (*process.Process, error) {
		c.port = port
		c.Config.Host = "https://127.0.0.1:" + strconv.Itoa(port)
		return c.runAPIServer(ctx)
	})
}

func (c *ControlPlane) runAPIServer(ctx context.Context) (*process.Process, error) {
	p, err := process.Start(process.Config{
		Name: APIServer, Path: c.binaries[APIServer], Args: c.apiServerArgs(), LogFile: c.logFile(APIServer),
	})
	if err != nil {
		return nil, err
	}
	c.apiserver = p
	client, err := kubernetes.NewForConfig(c.Config)
	if err != nil {
		return p, err
	}
	if err := p.Wait(ctx, func(ctx context.Context) error {
		if _, err := client.CoreV1().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx); err != nil {
			return err
		}
		_, err := client.CoreV1().Namespaces().Get(ctx, metav1.NamespaceDefault, metav1.GetOptions{})
		return err
	}); err != nil {
		return p, err
	}
	return p, c.WriteKubeconfig(c.Kubeconfig(), c.Config)
}

func (c *ControlPlane) apiServerArgs() []string {
	args := []string{
		"--etcd-servers=" + c.etcdURL, "--etcd-cafile=" + c.pki.caCert(),
		"--etcd-certfile=" + c.pki.servingCert(), "--etcd-keyfile=" + c.pki.servingKey(),
		"--bind-address=127.0.0.1", "--secure-port=" + strconv.Itoa(c.port),
		// Nothing is reached at this address (of those set aside for
		// documentation): there is no pod network. Left out, it would be looked
		// for among the machine's, of which there may be none.
		"--advertise-address=192.0.2.1", "--endpoint-reconciler-type=none",
		"--tls-cert-file=" + c.pki.servingCert(), "--tls-private-key-file=" + c.pki.servingKey(),
		"--client-ca-file=" + c.pki.caCert(),
		"--authorization-mode=RBAC", "--anonymous-auth=false",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + c.pki.tokenKey(), "--service-account-signing-key-file=" + c.pki.tokenKey(),
		"--service-cluster-ip-range=10.0.0.0/24",
		"--profiling=false", "--v=1",
	}
	if !c.options.ControllerManager {
		// Nobody makes default service accounts then.
		args = append(args, "--disable-admission-plugins=ServiceAccount")
	}
	return args
}

// startControllerManager starts kube-controller-manager and waits until it
// works: until the default service account exists.
func (c *ControlPlane) startControllerManager(ctx context.Context) error {
	p, err := process.Start(process.Config{
		Name: ControllerManager, Path: c.binaries[ControllerManager], LogFile: c.logFile(ControllerManager),
		Args: []string{
			"--kubeconfig=" + c.Kubeconfig(), "--leader-elect=false", "--secure-port=0",
			"--controllers=serviceaccount-controller,serviceaccount-token-controller,root-ca-certificate-publisher-controller," +
				"namespace-controller,garbage-collector-controller,clusterrole-aggregation-controller," +
				"deployment-controller,replicaset-controller,statefulset-controller,daemonset-controller," +
				"validatingadmissionpolicy-status-controller,disruption-controller,job-controller,resourcequota-controller",
			"--service-account-private-key-file=" + c.pki.tokenKey(), "--root-ca-file=" + c.pki.caCert(),
			"--use-service-account-credentials=false", "--kube-api-qps=200", "--kube-api-burst=400", "--v=1",
		},
	})
	if err != nil {
		return err
	}
	c.manager = p
	client, err := kubernetes.NewForConfig(c.Config)
	if err != nil {
		return err
	}
	return p.Wait(ctx, func(ctx context.Context) error {
		_, err := client.CoreV1().ServiceAccounts(metav1.NamespaceDefault).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
}

// Processes are those of the control plane, for whoever watches over them.
func (c *ControlPlane) Processes() []*process.Process {
	var running []*process.Process
	for _, p := range []*process.Process{c.etcd, c.apiserver, c.manager} {
		if p != nil {
			running = append(running, p)
		}
	}
	return running
}

// StopAPIServer ends kube-apiserver alone, as an outage does. Its data stay.
func (c *ControlPlane) StopAPIServer() { c.apiserver.Stop(stopGrace) }

// StartAPIServer starts kube-apiserver again, on the same port, and waits until
// it is ready.
func (c *ControlPlane) StartAPIServer(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	_, err := c.runAPIServer(ctx)
	return err
}

// Stop ends every process and removes a temporary folder. It may be called more
// than once.
func (c *ControlPlane) Stop() {
	c.manager.Stop(stopGrace)
	c.apiserver.Stop(stopGrace)
	c.etcd.Stop(stopGrace)
	c.manager, c.apiserver, c.etcd = nil, nil, nil
	if c.temporary != nil {
		_ = os.RemoveAll(c.options.Dir)
		_ = c.temporary.Close()
		c.temporary = nil
	}
}

// onFreePort calls start with the port asked for, or with free ones until one
// was still free when the process came to bind it.
func onFreePort(port int, start func(port int) (*process.Process, error)) error {
	if port != 0 {
		if err := portFree(port); err != nil {
			return err
		}
		_, err := start(port)
		return err
	}
	for attempt := 1; ; attempt++ {
		free, err := freePort()
		if err != nil {
			return err
		}
		p, err := start(free)
		if err == nil {
			return nil
		}
		if p == nil {
			return err
		}
		taken := p.Wrote("address already in use")
		p.Stop(stopGrace)
		if !taken || attempt == attempts {
			return err
		}
	}
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port, nil
}

func portFree(port int) error {
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("port %d of 127.0.0.1 is in use: end the program that uses it or choose another port", port)
	}
	if err != nil {
		return fmt.Errorf("port %d of 127.0.0.1 cannot be used: %w", port, err)
	}
	return l.Close()
}

func connect(ctx context.Context, port int) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return err
	}
	return conn.Close()
}
