package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/mintmark-dev/mintmark/test/controlplane"
	"github.com/mintmark-dev/mintmark/test/controlplane/manifests"
	"github.com/mintmark-dev/mintmark/test/controlplane/process"
)

// system is everything `make run` keeps up.
type system struct {
	settings settings
	out      *reporter
	// fail stops the whole run, with the reason.
	fail context.CancelCauseFunc

	lock     *os.File
	ports    ports
	plane    *controlplane.ControlPlane
	mu       sync.Mutex // guards children and stopping
	stopping bool
	children []*child
}

// child is a process of Mintmark itself.
type child struct {
	config  process.Config
	process *process.Process
	pidFile string
}

const (
	readyTimeout = 90 * time.Second
	// stopGrace lets a server finish the requests it has.
	stopGrace = 20 * time.Second
	// runSpace is the free disk space, in bytes, that a run takes for data, logs
	// and binaries.
	runSpace = 1 << 30
)

// up brings the system up, step by step, and shows what it does.
func (s *system) up(ctx context.Context) error {
	began := time.Now()
	if err := s.prepare(); err != nil {
		return err
	}
	for _, step := range []struct {
		name string
		do   func(context.Context) (string, error)
	}{
		{"control plane", s.startControlPlane},
		{"binaries built into bin/", s.build},
		{"installed config/default", s.install},
		{"controller is ready", s.startController},
		{"enabled management over REST", s.enableManagement},
		{"server is ready", s.startServers},
		{"applied config/samples", s.applySamples},
		{"wrote " + s.relative("env"), s.writeEnv},
	} {
		if err := s.out.step(step.name, func() (string, error) { return step.do(ctx) }); err != nil {
			return err
		}
	}
	if err := s.walkthrough(ctx); err != nil {
		return err
	}
	s.out.line("✓ everything works (%s in all)\n", short(time.Since(began)))
	if !s.settings.exitAfterDemo {
		s.sayHowToGoOn()
	}
	return nil
}

// prepare checks what can be checked before anything is started.
func (s *system) prepare() error {
	if err := os.MkdirAll(s.settings.dir, 0o755); err != nil {
		return fmt.Errorf("make %s: %w", s.settings.dir, err)
	}
	lock, err := os.OpenFile(s.path("lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("open the lock of %s: %w", s.settings.dir, err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = lock.Close()
		return fmt.Errorf("another `make run` uses %s: stop it, or give this one a folder and a port of its own "+
			"with MINTMARK_DEV_DIR and MINTMARK_PORT", s.settings.dir)
	}
	s.lock = lock
	if err := controlplane.CheckSpace(s.settings.dir, runSpace); err != nil {
		return err
	}
	if _, err := exec.LookPath("go"); err != nil {
		return errors.New("the go command is not in PATH: install Go 1.26 or newer (https://go.dev/dl/)")
	}
	// What an earlier run left, except its control plane, which is replaced
	// when the new one starts.
	for _, old := range []string{"env", "ca.crt", "identity", "pid", "log", "spool", "mintmark.db", "mintmark.db-wal", "mintmark.db-shm"} {
		if err := os.RemoveAll(s.path(old)); err != nil {
			return fmt.Errorf("remove what an earlier run left: %w", err)
		}
	}
	s.ports, err = choosePorts(s.settings)
	return err
}

func (s *system) path(elements ...string) string {
	return filepath.Join(append([]string{s.settings.dir}, elements...)...)
}

// relative is a path as people type it in the repository.
func (s *system) relative(elements ...string) string {
	path := s.path(elements...)
	if short, err := filepath.Rel(s.settings.root, path); err == nil && !strings.HasPrefix(short, "..") {
		return short
	}
	return path
}

func (s *system) startControlPlane(ctx context.Context) (string, error) {
	plane, err := controlplane.Start(ctx, controlplane.Options{
		Dir: s.path("controlplane"), LogDir: s.path("log"), Out: s.out, Port: s.settings.apiPort,
		ControllerManager: true, CRDs: true, Durable: true,
	})
	if err != nil {
		return "", err
	}
	s.plane = plane
	for _, p := range plane.Processes() {
		if err := writePID(s.path("pid", p.Name()), p); err != nil {
			return "", err
		}
		go s.watch(p)
	}
	return "etcd, kube-apiserver and kube-controller-manager at " + plane.Config.Host, nil
}

// watch ends the run when a process of the control plane ends by itself.
func (s *system) watch(p *process.Process) {
	<-p.Done()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stopping {
		s.fail(p.Failure())
	}
}

// build makes the binaries that run here, and the CLI.
func (s *system) build(ctx context.Context) (string, error) {
	bin := filepath.Join(s.settings.root, "bin")
	if err := controlplane.BuildMintmark(ctx, s.settings.root, nil, map[string]string{
		"controller": filepath.Join(bin, "mintmark-controller"), "server": filepath.Join(bin, "mintmark-server"),
		"mintmark": filepath.Join(bin, "mintmark"),
	}); err != nil {
		return "", err
	}
	plugin := filepath.Join(bin, "kubectl-mintmark")
	if err := os.Remove(plugin); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	return "", os.Symlink("mintmark", plugin)
}

func (s *system) install(ctx context.Context) (string, error) {
	objects, err := manifests.Install(ctx, s.plane.Config, s.settings.root, s.ports.webhook)
	if err != nil {
		return "", err
	}
	restarts, err := manifests.Build(filepath.Join(s.settings.root, "config", "components", "restart"))
	if err != nil {
		return "", err
	}
	if err := manifests.Apply(ctx, s.plane.Config, restarts); err != nil {
		return "", err
	}
	objects = append(objects, restarts...)
	return strconv.Itoa(len(objects)) + " objects", nil
}

func (s *system) startController(ctx context.Context) (string, error) {
	id := identity{account: "mintmark-controller", dir: s.path("identity", "controller"), plane: s.plane, internal: true}
	if err := id.write(ctx); err != nil {
		return "", err
	}
	go id.keep(ctx, s.out)
	err := s.start(ctx, "mintmark-controller", s.ports.health,
		"--kubeconfig="+id.kubeconfig(), "--namespace="+namespace, "--leader-elect", "--enable-restarts",
		"--internal-token-file="+id.internalToken(), "--certificate-names=127.0.0.1,localhost",
		"--webhook-bind-address="+process.Loopback(s.ports.webhook), "--health-probe-bind-address="+process.Loopback(s.ports.health),
		"--metrics-bind-address="+process.Loopback(s.ports.metrics))
	return "as service account " + id.account, err
}

// managedNamespace is where config/components/management lets servers write credentials.
const managedNamespace = "default"

// enableManagement comes after the controller is ready, for its webhook looks at the class.
func (s *system) enableManagement(ctx context.Context) (string, error) {
	objects, err := manifests.Build(filepath.Join(s.settings.root, "config", "components", "management"))
	if err != nil {
		return "", err
	}
	return "in namespace " + managedNamespace, manifests.Apply(ctx, s.plane.Config, objects)
}

func (s *system) startServers(ctx context.Context) (string, error) {
	id := identity{account: "mintmark-server", dir: s.path("identity", "server"), plane: s.plane}
	if err := id.write(ctx); err != nil {
		return "", err
	}
	go id.keep(ctx, s.out)
	for i, p := range s.ports.servers {
		name := "mintmark-server"
		if i > 0 {
			name += "-" + strconv.Itoa(i+1)
		}
		args := []string{
			"--kubeconfig=" + id.kubeconfig(), "--namespace=" + namespace, "--id=" + name,
			"--bind-address=" + process.Loopback(p.public), "--grpc-bind-address=" + process.Loopback(p.grpc), "--issuer=" + s.serverURL(0),
			"--internal-bind-address=" + process.Loopback(p.internal), "--internal-advertise-url=https://" + process.Loopback(p.internal),
			"--metrics-bind-address=" + process.Loopback(p.metrics), "--shutdown-delay=0s", "--management-namespaces=" + managedNamespace,
		}
		args = append(args, s.storeFlags(name)...)
		if s.settings.proxies != "" {
			args = append(args, "--trusted-proxies="+s.settings.proxies)
		}
		if err := s.start(ctx, name, p.metrics, args...); err != nil {
			return "", err
		}
	}
	if err := s.writeCA(ctx); err != nil {
		return "", err
	}
	var urls []string
	for i := range s.ports.servers {
		urls = append(urls, s.serverURL(i))
	}
	return "at " + strings.Join(urls, ", ") + " as service account " + id.account, nil
}

// storeFlags are where a server keeps the audit log. Several servers cannot share the file
// of SQLite: without a database of their own they write lines.
func (s *system) storeFlags(server string) []string {
	switch {
	case s.settings.database != "":
		return []string{"--database-url=" + s.settings.database, "--audit-spool-dir=" + s.path("spool", server)}
	case s.settings.servers > 1:
		return []string{"--audit-log=" + s.path("log", server+".audit.jsonl")}
	}
	return []string{"--database-url=sqlite://" + s.path("mintmark.db"), "--audit-spool-dir=" + s.path("spool", server)}
}

// serverURL is the public URL of a server.
func (s *system) serverURL(i int) string {
	return "https://" + process.Loopback(s.ports.servers[i].public)
}

// start runs one of the binaries and waits until /readyz at probePort says yes.
func (s *system) start(ctx context.Context, name string, probePort int, args ...string) error {
	binary, _, _ := strings.Cut(strings.TrimPrefix(name, "mintmark-"), "-")
	c := &child{
		config: process.Config{
			Name: name, Path: filepath.Join(s.settings.root, "bin", "mintmark-"+binary), Args: args,
			Dir: s.settings.dir, LogFile: s.path("log", name+".log"),
		},
		pidFile: s.path("pid", name),
	}
	if err := s.run(c); err != nil {
		return err
	}
	s.mu.Lock()
	s.children = append(s.children, c)
	p := c.process
	s.mu.Unlock()
	go s.supervise(c)
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	return p.Wait(ctx, func(ctx context.Context) error {
		return process.Probe(ctx, "http://"+process.Loopback(probePort)+"/readyz")
	})
}

// run starts the process of a child and writes its id down.
func (s *system) run(c *child) error {
	p, err := process.Start(c.config)
	if err != nil {
		return err
	}
	c.process = p
	return writePID(c.pidFile, p)
}

// writePID writes the id of a process down, for scripts that kill it.
func writePID(path string, p *process.Process) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path+".tmp", []byte(strconv.Itoa(p.PID())), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

// supervise ends the run when a child ends, or starts it again where that was
// asked for.
func (s *system) supervise(c *child) {
	for {
		s.mu.Lock()
		p := c.process
		s.mu.Unlock()
		<-p.Done()
		s.mu.Lock()
		if s.stopping {
			s.mu.Unlock()
			return
		}
		if !s.settings.restart {
			s.fail(p.Failure())
			s.mu.Unlock()
			return
		}
		s.out.line("! %s ended; starting it again", p.Name())
		err := s.run(c)
		s.mu.Unlock()
		if err != nil {
			s.fail(err)
			return
		}
	}
}

func (s *system) applySamples(ctx context.Context) (string, error) {
	objects, err := manifests.Build(filepath.Join(s.settings.root, "config", "samples"))
	if err != nil {
		return "", err
	}
	if err := manifests.Apply(ctx, s.plane.Config, objects); err != nil {
		return "", err
	}
	var names []string
	for _, o := range objects {
		if isCredential(o) {
			names = append(names, o.GetKind()+" "+o.GetNamespace()+"/"+o.GetName())
		}
	}
	return strings.Join(names, ", "), s.awaitReady(ctx, objects)
}

func isCredential(o *unstructured.Unstructured) bool {
	return o.GetKind() == "ServiceToken" || o.GetKind() == "APIKey"
}

// down ends everything, in the order in which it can be missed.
func (s *system) down() {
	s.mu.Lock()
	s.stopping = true
	children := s.children
	s.mu.Unlock()
	var waiting sync.WaitGroup
	for _, c := range children {
		waiting.Go(func() { c.process.Stop(stopGrace) })
	}
	waiting.Wait()
	if s.plane != nil {
		s.plane.Stop()
	}
	if s.lock == nil {
		return
	}
	// Nobody is to source the environment of a system that is gone.
	for _, gone := range []string{"env", "pid", "identity", "controlplane", "ca.crt"} {
		_ = os.RemoveAll(s.path(gone))
	}
	_ = s.lock.Close()
}
