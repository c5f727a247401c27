package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/mintmark-dev/mintmark/test/controlplane"
	"github.com/mintmark-dev/mintmark/test/controlplane/process"
)

// beController makes this test binary the controller itself, so that tests can
// run several of it as processes, and end them as a kubelet does.
const beController = "MINTMARK_TEST_BE_CONTROLLER"

func TestMain(m *testing.M) {
	if os.Getenv(beController) != "" {
		main()
		return
	}
	controlplane.Main(m)
}

// noEnvironment is that of a process outside of any pod.
func noEnvironment(string) string { return "" }

func TestParse(t *testing.T) {
	for name, test := range map[string]struct {
		args []string
		err  string
	}{
		"no flags are fine":                {},
		"everything set":                   {args: []string{"--namespace=ns", "--watch-namespaces=a,b", "--leader-elect=false", "--metrics-bind-address=0", "--health-probe-bind-address=127.0.0.1:0", "--webhook-bind-address=127.0.0.1:9443", "--certificate-names=127.0.0.1,localhost,::1,*.example.com", "--log-level=debug", "--enable-restarts", "--parallel-restarts=2"}},
		"a flag that is none":              {args: []string{"--metrics-addr=:8080"}, err: "unknown flag: --metrics-addr"},
		"an argument":                      {args: []string{"run"}, err: `argument "run" is not understood`},
		"a level that is none":             {args: []string{"--log-level=loud"}, err: "--log-level=loud: write debug"},
		"a namespace that is none":         {args: []string{"--namespace=My_NS"}, err: `"My_NS" (of --namespace`},
		"a watched namespace that is none": {args: []string{"--watch-namespaces=a, b"}, err: `" b" (of --namespace or --watch-namespaces)`},
		"a certificate name with a port":   {args: []string{"--certificate-names=localhost:9443"}, err: `"localhost:9443" is neither a DNS name nor an IP address`},
		"no restart at once":               {args: []string{"--parallel-restarts=0"}, err: "--parallel-restarts=0: write 1 or more"},
		"webhooks on no port":              {args: []string{"--webhook-bind-address=:0"}, err: "with a port from 1 to 65535"},
		"webhooks on a port without host":  {args: []string{"--webhook-bind-address=9443"}, err: "write HOST:PORT or :PORT"},
		"metrics on a port too high":       {args: []string{"--metrics-bind-address=:80800"}, err: "--metrics-bind-address=:80800: write HOST:PORT"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parse(test.args, noEnvironment)
			if test.err == "" && err != nil || test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)) {
				t.Errorf("error %v, want %q", err, test.err)
			}
		})
	}
	inPod := map[string]string{"POD_NAMESPACE": "elsewhere", "POD_NAME": "controller-0"}
	o, err := parse(nil, func(name string) string { return inPod[name] })
	if err != nil || o.namespace != "elsewhere" || o.identity != "controller-0" || !o.leaderElect {
		t.Errorf("in a pod: %+v, %v", o, err)
	}
	if o, _ := parse(nil, noEnvironment); o.namespace != "mintmark-system" {
		t.Errorf("outside: namespace %q, want mintmark-system", o.namespace)
	}
}

func TestWhatPeopleAskForIsPrintedOnStandardOutput(t *testing.T) {
	for flag, want := range map[string]string{"--help": "--webhook-bind-address", "--version": "mintmark-controller "} {
		var out, log bytes.Buffer
		if code := execute(t.Context(), []string{flag}, noEnvironment, &out, &log); code != exitOK || !strings.Contains(out.String(), want) || log.Len() > 0 {
			t.Errorf("%s: exit %d, printed %q, logged %q", flag, code, &out, &log)
		}
	}
	var out, log bytes.Buffer
	if code := execute(t.Context(), []string{"--nope"}, noEnvironment, &out, &log); code != exitUsage || !strings.Contains(log.String(), "unknown flag: --nope") {
		t.Errorf("a wrong flag: exit %d, logged %q", code, &log)
	}
}

// controller is a process of this program.
type controller struct {
	t    *testing.T
	cmd  *exec.Cmd
	exit chan error

	mu  sync.Mutex
	log bytes.Buffer

	health, metrics, webhook int
}

func (c *controller) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.log.Write(p)
}

func (c *controller) logged() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.log.String()
}

// freePort is one that nobody had a moment ago.
func freePort(t *testing.T) int {
	t.Helper()
	ports, err := process.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	return ports[0]
}

func loopback(port int) string { return "127.0.0.1:" + strconv.Itoa(port) }

// kubeconfig writes one for this configuration.
func kubeconfig(t *testing.T, plane *controlplane.ControlPlane, cfg *rest.Config) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := plane.WriteKubeconfig(path, cfg); err != nil {
		t.Fatal(err)
	}
	return path
}

// startController starts a process; webhookPort 0 chooses one.
func startController(t *testing.T, kubeconfig string, webhookPort int, args ...string) *controller {
	t.Helper()
	if webhookPort == 0 {
		webhookPort = freePort(t)
	}
	c := &controller{t: t, exit: make(chan error, 1), health: freePort(t), metrics: freePort(t), webhook: webhookPort}
	c.cmd = exec.Command(os.Args[0], append([]string{
		"--kubeconfig=" + kubeconfig, "--certificate-names=127.0.0.1,localhost", "--internal-token-file=/nonexistent",
		"--health-probe-bind-address=" + loopback(c.health), "--metrics-bind-address=" + loopback(c.metrics),
		"--webhook-bind-address=" + loopback(c.webhook),
	}, args...)...)
	c.cmd.Env = append(os.Environ(), beController+"=1")
	c.cmd.Stdout, c.cmd.Stderr = c, c
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { c.exit <- c.cmd.Wait() }()
	t.Cleanup(func() {
		_ = c.cmd.Process.Kill() // gone already, mostly
		if t.Failed() {
			t.Logf("log of process %d:\n%s", c.cmd.Process.Pid, c.logged())
		}
	})
	return c
}

// wait returns how the process ended by itself.
func (c *controller) wait() error {
	c.t.Helper()
	select {
	case err := <-c.exit:
		return err
	case <-time.After(30 * time.Second):
		c.t.Fatal("the process does not end")
		return nil
	}
}

// terminate ends the process as a kubelet does.
func (c *controller) terminate() {
	c.t.Helper()
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		c.t.Fatal(err)
	}
	if err := c.wait(); err != nil {
		c.t.Errorf("ended with %v, want without an error", err)
	}
}

// eventually polls until check returns nil.
func eventually(t *testing.T, what string, check func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := check(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, err)
		case <-ticker.C:
		}
	}
}

func notYet(ok bool, format string, args ...any) error {
	if ok {
		return nil
	}
	return fmt.Errorf(format, args...)
}
