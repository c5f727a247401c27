package controlplane

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/mintmark-dev/mintmark/test/controlplane/process"
)

// KubeAPIServer is one kube-apiserver of a control plane. Signal may be called at any
// time, the other methods by one goroutine at a time.
type KubeAPIServer struct {
	// Config is that of a cluster admin who talks to this server.
	Config *rest.Config

	plane *ControlPlane
	name  string
	port  int
	flags []string // beside those of every one

	mu      sync.Mutex
	process *process.Process
}

// AddAPIServer starts one more kube-apiserver, on the same etcd and with a watch cache
// of its own, as in a control plane of several nodes, with further flags such as
// "--authentication-config=FILE". Stop of the control plane ends it.
func (c *ControlPlane) AddAPIServer(ctx context.Context, flags ...string) (*KubeAPIServer, error) {
	s := &KubeAPIServer{Config: rest.CopyConfig(c.Config), plane: c, name: APIServer + "-" + strconv.Itoa(len(c.others)+2), flags: flags}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	c.others = append(c.others, s)
	if err := s.startOn(ctx, 0); err != nil {
		return nil, fmt.Errorf("start another API server: %w", err)
	}
	return s, nil
}

// startAPIServer starts the first kube-apiserver and waits until it is ready.
func (c *ControlPlane) startAPIServer(ctx context.Context) error {
	c.apiserver = &KubeAPIServer{Config: c.Config, plane: c, name: APIServer}
	return c.apiserver.startOn(ctx, c.options.Port)
}

func (s *KubeAPIServer) startOn(ctx context.Context, port int) error {
	return onFreePort(port, func(port int) (*process.Process, error) {
		s.port, s.Config.Host = port, "https://"+process.Loopback(port)
		return s.run(ctx)
	})
}

// Start starts the server again after Stop or Kill, on the port it had, and waits until
// it is ready.
func (s *KubeAPIServer) Start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	_, err := s.run(ctx)
	return err
}

// Stop ends the server.
func (s *KubeAPIServer) Stop() {
	if s != nil {
		s.running().Stop(stopGrace)
	}
}

// Kill ends the server at once, as kill -9 does.
func (s *KubeAPIServer) Kill() { s.running().Kill() }

// Signal sends a signal to the server. SIGSTOP has it hold every connection and answer
// nothing until SIGCONT.
func (s *KubeAPIServer) Signal(what os.Signal) error { return s.running().Signal(what) }

// running is the process, or the last one there was.
func (s *KubeAPIServer) running() *process.Process {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.process
}

func (s *KubeAPIServer) run(ctx context.Context) (*process.Process, error) {
	p, err := process.Start(process.Config{
		Name: s.name, Path: s.plane.binaries[APIServer], Args: append(s.plane.apiServerArgs(s.port), s.flags...), LogFile: s.plane.logFile(s.name),
	})
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.process = p
	s.mu.Unlock()
	client, err := kubernetes.NewForConfig(s.Config)
	if err != nil {
		return p, err
	}
	return p, p.Wait(ctx, func(ctx context.Context) error {
		if _, err := client.CoreV1().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx); err != nil {
			return err
		}
		_, err := client.CoreV1().Namespaces().Get(ctx, metav1.NamespaceDefault, metav1.GetOptions{})
		return err
	})
}

func (c *ControlPlane) apiServerArgs(port int) []string {
	args := []string{
		"--etcd-servers=" + c.etcdURL, "--etcd-cafile=" + c.pki.caCert(),
		"--etcd-certfile=" + c.pki.servingCert(), "--etcd-keyfile=" + c.pki.servingKey(),
		"--bind-address=127.0.0.1", "--secure-port=" + strconv.Itoa(port),
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
