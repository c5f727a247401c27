package cli_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/mintmark-dev/mintmark/internal/cli"
	"github.com/mintmark-dev/mintmark/test/controlplane"
	"github.com/mintmark-dev/mintmark/test/controlplane/manifests"
	"github.com/mintmark-dev/mintmark/test/controlplane/process"
)

// running is the system the scripts talk to: a real control plane with what
// users install, the real controller and the real server.
var running installation

func TestMain(m *testing.M) {
	testscript.Main(tests{m}, map[string]func(){
		"mintmark":         command,
		"kubectl-mintmark": command,
	})
}

// command is the program, as cmd/mintmark has it.
func command() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := cli.Run(ctx, cli.Config{
		Streams: genericiooptions.IOStreams{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr},
		Version: "v0.0.0-test", Program: os.Args[0],
	}, os.Args[1:])
	stop()
	os.Exit(code)
}

// tests ends the system after the tests, if one of them started it.
type tests struct{ m *testing.M }

func (t tests) Run() int {
	code := t.m.Run()
	if code != 0 {
		for _, p := range []*process.Process{running.controller, running.server} {
			if p != nil {
				fmt.Fprintf(os.Stderr, "the end of the log of %s:\n%s\n", p.Name(), p.Tail(15))
			}
		}
	}
	running.stop()
	return code
}

// system starts what the scripts need, once.
func system(t *testing.T) {
	t.Helper()
	running.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 45*time.Minute)
		defer cancel()
		running.failure = running.start(ctx)
	})
	if running.failure != nil {
		t.Fatal(running.failure)
	}
}

type installation struct {
	once       sync.Once
	failure    error
	dir        string
	plane      *controlplane.ControlPlane
	kubectl    string
	controller *process.Process
	server     *process.Process
	ports      struct{ webhook, controllerHealth, server, serverInternal, serverMetrics int }
}

func (i *installation) path(elements ...string) string {
	return filepath.Join(append([]string{i.dir}, elements...)...)
}

func (i *installation) start(ctx context.Context) (err error) {
	if i.dir, err = os.MkdirTemp("", "mintmark-cli-"); err != nil {
		return err
	}
	root, err := controlplane.Root()
	if err != nil {
		return err
	}
	for _, port := range []*int{&i.ports.webhook, &i.ports.controllerHealth, &i.ports.server, &i.ports.serverInternal, &i.ports.serverMetrics} {
		if *port, err = freePort(); err != nil {
			return err
		}
	}
	for _, name := range []string{"controller", "server"} {
		build := exec.CommandContext(ctx, "go", "build", "-o", i.path("mintmark-"+name), "./cmd/"+name)
		build.Dir = root
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("build the %s: %w\n%s", name, err, out)
		}
	}
	i.plane, err = controlplane.Start(ctx, controlplane.Options{
		Dir: i.path("controlplane"), Out: os.Stderr, ControllerManager: true, CRDs: true,
	})
	if err != nil {
		return err
	}
	if i.kubectl, err = controlplane.Binary(ctx, os.Stderr, "kubectl"); err != nil {
		return err
	}
	if _, err := manifests.Install(ctx, i.plane.Config, root, i.ports.webhook); err != nil {
		return err
	}
	if err := i.startController(ctx); err != nil {
		return err
	}
	return i.startServer(ctx)
}

// identity writes the files a process is somebody by, and gives the kubeconfig.
func (i *installation) identity(ctx context.Context, account string) (string, error) {
	for file, audiences := range map[string][]string{"token": nil, "internal-token": {"mintmark-internal"}} {
		token, err := i.plane.ServiceAccount(ctx, cli.DefaultNamespace, account, audiences...)
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(i.path(account+"-"+file), []byte(token), 0o600); err != nil {
			return "", err
		}
	}
	config := rest.AnonymousClientConfig(i.plane.Config)
	config.BearerTokenFile = i.path(account + "-token")
	kubeconfig := i.path(account + "-kubeconfig")
	return kubeconfig, i.plane.WriteKubeconfig(kubeconfig, config)
}

func (i *installation) startController(ctx context.Context) error {
	kubeconfig, err := i.identity(ctx, "mintmark-controller")
	if err != nil {
		return err
	}
	i.controller, err = process.Start(process.Config{
		Name: "mintmark-controller", Path: i.path("mintmark-controller"), LogFile: i.path("controller.log"),
		Args: []string{
			"--kubeconfig=" + kubeconfig, "--namespace=" + cli.DefaultNamespace, "--leader-elect",
			"--internal-token-file=" + i.path("mintmark-controller-internal-token"), "--certificate-names=127.0.0.1,localhost",
			"--webhook-bind-address=" + loopback(i.ports.webhook), "--health-probe-bind-address=" + loopback(i.ports.controllerHealth),
			"--metrics-bind-address=0",
		},
	})
	if err != nil {
		return err
	}
	return i.ready(ctx, i.controller, i.ports.controllerHealth)
}

func (i *installation) startServer(ctx context.Context) error {
	kubeconfig, err := i.identity(ctx, "mintmark-server")
	if err != nil {
		return err
	}
	i.server, err = process.Start(process.Config{
		Name: "mintmark-server", Path: i.path("mintmark-server"), LogFile: i.path("server.log"),
		Args: []string{
			"--kubeconfig=" + kubeconfig, "--namespace=" + cli.DefaultNamespace, "--id=server-1", "--bind-address=" + loopback(i.ports.server),
			"--issuer=https://" + loopback(i.ports.server), "--grpc-bind-address=0", "--internal-bind-address=" + loopback(i.ports.serverInternal),
			"--internal-advertise-url=https://" + loopback(i.ports.serverInternal), "--metrics-bind-address=" + loopback(i.ports.serverMetrics),
			"--shutdown-delay=0s", "--database-url=sqlite://" + i.path("mintmark.db"), "--audit-spool-dir=" + i.path("spool"),
		},
	})
	if err != nil {
		return err
	}
	if err := i.ready(ctx, i.server, i.ports.serverMetrics); err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(i.plane.Config)
	if err != nil {
		return err
	}
	secret, err := client.CoreV1().Secrets(cli.DefaultNamespace).Get(ctx, "mintmark-server-tls", metav1.GetOptions{})
	if err != nil {
		return err
	}
	return os.WriteFile(i.path("ca.crt"), secret.Data["ca.crt"], 0o600)
}

// ready waits until a process says it is.
func (i *installation) ready(ctx context.Context, p *process.Process, port int) error {
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	return p.Wait(ctx, func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+loopback(port)+"/readyz", nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return nil
	})
}

func (i *installation) stop() {
	for _, p := range []*process.Process{i.server, i.controller} {
		if p != nil {
			p.Stop(20 * time.Second)
		}
	}
	if i.plane != nil {
		i.plane.Stop()
	}
	if i.dir != "" {
		_ = os.RemoveAll(i.dir)
	}
}

// namespace makes one.
func (i *installation) namespace(ctx context.Context, name string) error {
	client, err := kubernetes.NewForConfig(i.plane.Config)
	if err != nil {
		return err
	}
	_, err = client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

func freePort() (int, error) {
	ports, err := process.FreePorts(1)
	if err != nil {
		return 0, err
	}
	return ports[0], nil
}

func loopback(port int) string { return "127.0.0.1:" + strconv.Itoa(port) }
