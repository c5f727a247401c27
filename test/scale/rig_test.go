//go:build scale

package scale

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
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
	serverCount     = 3
	startupTimeout  = 2 * time.Minute
)

// rig is an installation.
type rig struct {
	dir, root string
	plane     *controlplane.ControlPlane
	client    client.Client
	http      *http.Client
	webhooks  int // the port at which the API server asks a controller

	controller *program
	servers    []*program
}

// program is a process of the installation.
type program struct {
	*process.Process
	url     string // of a server
	metrics string // host and port of its metrics
}

// startPlane starts the API server alone, for the floor is measured on it first.
func startPlane(ctx context.Context, dir string) (*rig, error) {
	root, err := controlplane.Root()
	if err != nil {
		return nil, err
	}
	r := &rig{dir: dir, root: root}
	for _, name := range []string{"controller", "server"} {
		build := controlplane.GoBuild{Dir: root, Package: "./cmd/" + name, Output: r.binary(name), Out: os.Stdout}
		if err := build.Run(ctx); err != nil {
			return nil, err
		}
	}
	r.plane, err = controlplane.Start(ctx, controlplane.Options{Dir: filepath.Join(dir, "controlplane"), Out: os.Stderr, CRDs: true})
	if err != nil {
		return nil, err
	}
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return r, err
	}
	config := rest.CopyConfig(r.plane.Config)
	config.QPS = -1
	r.client, err = client.New(config, client.Options{Scheme: scheme})
	return r, err
}

func (r *rig) binary(name string) string { return filepath.Join(r.dir, "mintmark-"+name) }

// install installs Mintmark, and starts a controller that looks after its own namespace
// alone, until it is started again, and three servers.
func (r *rig) install(ctx context.Context) error {
	ports, err := process.FreePorts(1)
	if err != nil {
		return err
	}
	r.webhooks = ports[0]
	if _, err := manifests.Install(ctx, r.plane.Config, r.root, r.webhooks); err != nil {
		return err
	}
	if err := r.startController(ctx, "--watch-namespaces="+systemNamespace); err != nil {
		return err
	}
	for i := range serverCount {
		if err := r.startServer(ctx, "server-"+strconv.Itoa(i+1)); err != nil {
			return err
		}
	}
	var secret corev1.Secret
	if err := r.client.Get(ctx, types.NamespacedName{Namespace: systemNamespace, Name: "mintmark-server-tls"}, &secret); err != nil {
		return fmt.Errorf("read the servers' certificate authority: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(secret.Data[corev1.ServiceAccountRootCAKey]) {
		return errors.New("the servers' certificate authority cannot be read")
	}
	r.http = &http.Client{
		Timeout:   10 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}, MaxIdleConnsPerHost: 8},
	}
	return nil
}

func (r *rig) identity(ctx context.Context, process, account string) (kubeconfig, internalToken string, err error) {
	dir := filepath.Join(r.dir, "identity", process)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", "", err
	}
	config, err := r.plane.ServiceAccountConfig(ctx, systemNamespace, account)
	if err != nil {
		return "", "", err
	}
	kubeconfig = filepath.Join(dir, "kubeconfig")
	if err := r.plane.WriteKubeconfig(kubeconfig, config); err != nil {
		return "", "", err
	}
	token, err := r.plane.ServiceAccount(ctx, systemNamespace, account, "mintmark-internal")
	if err != nil {
		return "", "", err
	}
	internalToken = filepath.Join(dir, "internal-token")
	return kubeconfig, internalToken, os.WriteFile(internalToken, []byte(token), 0o600)
}

// startAgain has the controller begin anew: to look after every namespace, if no argument
// says otherwise.
func (r *rig) startAgain(ctx context.Context, arguments ...string) error {
	r.controller.Stop(10 * time.Second)
	return r.startController(ctx, arguments...)
}

func (r *rig) startController(ctx context.Context, arguments ...string) error {
	kubeconfig, token, err := r.identity(ctx, "controller", "mintmark-controller")
	if err != nil {
		return err
	}
	ports, err := process.FreePorts(2)
	if err != nil {
		return err
	}
	health, metrics := process.Loopback(ports[0]), process.Loopback(ports[1])
	r.controller, err = r.run(ctx, "controller", "controller", "http://"+health+"/readyz", append(arguments,
		"--kubeconfig="+kubeconfig, "--namespace="+systemNamespace, "--leader-elect", "--internal-token-file="+token,
		"--certificate-names=127.0.0.1,localhost", "--webhook-bind-address="+process.Loopback(r.webhooks),
		"--health-probe-bind-address="+health, "--metrics-bind-address="+metrics)...)
	if err == nil {
		r.controller.metrics = metrics
	}
	return err
}

func (r *rig) startServer(ctx context.Context, name string) error {
	kubeconfig, _, err := r.identity(ctx, name, "mintmark-server")
	if err != nil {
		return err
	}
	ports, err := process.FreePorts(3)
	if err != nil {
		return err
	}
	public, internal, metrics := process.Loopback(ports[0]), process.Loopback(ports[1]), process.Loopback(ports[2])
	arguments := []string{
		"--kubeconfig=" + kubeconfig, "--namespace=" + systemNamespace, "--id=" + name, "--bind-address=" + public,
		"--internal-bind-address=" + internal, "--internal-advertise-url=https://" + internal, "--metrics-bind-address=" + metrics, "--shutdown-delay=0s",
		"--grpc-bind-address=0",
	}
	s, err := r.run(ctx, name, "server", "http://"+metrics+"/readyz", arguments...)
	if err == nil {
		s.url, s.metrics = "https://"+public, metrics
		r.servers = append(r.servers, s)
	}
	return err
}

func (r *rig) run(ctx context.Context, name, binary, ready string, arguments ...string) (*program, error) {
	p, err := process.Start(process.Config{
		Name: name, Path: r.binary(binary), LogFile: filepath.Join(r.dir, "log", name+".log"), Args: arguments,
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startupTimeout)
	defer cancel()
	return &program{Process: p}, p.Wait(ctx, func(ctx context.Context) error { return process.Probe(ctx, ready) })
}

func (r *rig) stop() {
	for _, s := range r.servers {
		s.Stop(5 * time.Second)
	}
	if r.controller != nil {
		r.controller.Stop(5 * time.Second)
	}
	if r.plane != nil {
		r.plane.Stop()
	}
}
