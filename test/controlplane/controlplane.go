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
	"slices"
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
// goroutines at once, except Stop, AddAPIServer, StopAPIServer and StartAPIServer.
type ControlPlane struct {
	// Config is that of a cluster admin (group system:masters), without
	// client-side rate limits.
	Config *rest.Config

	options   Options
	temporary *os.File // the lock of a temporary folder
	pki       pki
	admin     struct{ cert, key []byte }
	etcdURL   string
	etcd      *process.Process
	apiserver *KubeAPIServer
	others    []*KubeAPIServer
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
	if err := c.WriteKubeconfig(c.Kubeconfig(), c.Config); err != nil {
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
	all := []*process.Process{c.etcd, c.apiserver.running(), c.manager}
	for _, other := range c.others {
		all = append(all, other.running())
	}
	return slices.DeleteFunc(all, func(p *process.Process) bool { return p == nil })
}

// StopAPIServer ends kube-apiserver alone, as an outage does. Its data stay.
func (c *ControlPlane) StopAPIServer() { c.apiserver.Stop() }

// StartAPIServer starts kube-apiserver again, on the same port, and waits until
// it is ready.
func (c *ControlPlane) StartAPIServer(ctx context.Context) error { return c.apiserver.Start(ctx) }

// Stop ends every process and removes a temporary folder. It may be called more
// than once.
func (c *ControlPlane) Stop() {
	c.manager.Stop(stopGrace)
	for _, other := range c.others {
		other.Stop()
	}
	c.apiserver.Stop()
	c.etcd.Stop(stopGrace)
	c.manager, c.others, c.apiserver, c.etcd = nil, nil, nil, nil
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
		free, err := process.FreePorts(1)
		if err != nil {
			return err
		}
		p, err := start(free[0])
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
