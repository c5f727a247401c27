//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mintmark-dev/mintmark/test/controlplane"
	"github.com/mintmark-dev/mintmark/test/controlplane/process"
)

// running is the system under test.
var running *installation

// installation is a copy of what `make run` starts, with two servers, its own
// folder and free ports.
type installation struct {
	dir    string
	binary string
	runner *process.Process
}

func TestMain(m *testing.M) {
	code, err := runAll(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func runAll(m *testing.M) (int, error) {
	dir, err := os.MkdirTemp("", "mintmark-e2e-")
	if err != nil {
		return 1, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	began := time.Now()
	running, err = start(dir)
	if err != nil {
		return 1, err
	}
	fmt.Printf("the system is up after %s\n", time.Since(began).Round(time.Second))
	code := m.Run()
	if code != 0 {
		for _, log := range []string{"mintmark-controller", "mintmark-server", "mintmark-server-2"} {
			fmt.Printf("the end of %s.log:\n%s\n", log, tail(filepath.Join(running.dev(), "log", log+".log"), 25))
		}
	}
	if err := running.stop(); err != nil {
		return 1, err
	}
	return code, nil
}

func tail(file string, lines int) string {
	text, _ := os.ReadFile(file)
	all := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// start builds the runner, starts it, and waits until it has shown that
// everything works.
func start(dir string) (*installation, error) {
	root, err := controlplane.Root()
	if err != nil {
		return nil, err
	}
	s := &installation{dir: dir, binary: filepath.Join(dir, "mintmark-dev")}
	build := exec.Command("go", "build", "-o", s.binary, "./hack/dev")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the runner: %w\n%s", err, out)
	}
	s.runner, err = process.Start(process.Config{
		Name: "runner", Path: s.binary, Args: []string{"--restart"}, Dir: root,
		Env:     s.environment("MINTMARK_PORT=0", "MINTMARK_SERVERS=2", "MINTMARK_TRUSTED_PROXIES=127.0.0.0/8"),
		LogFile: filepath.Join(dir, "runner.log"),
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 25*time.Minute)
	defer cancel()
	return s, s.runner.Wait(ctx, func(context.Context) error {
		if !s.runner.Wrote("everything works") {
			return errors.New("the demonstration has not ended")
		}
		return nil
	})
}

func (s *installation) dev() string { return filepath.Join(s.dir, "dev") }

func (s *installation) environment(more ...string) []string {
	return append(append(os.Environ(), "MINTMARK_DEV_DIR="+s.dev()), more...)
}

// stop ends the system as `kill` does, and checks that nothing is left of it.
func (s *installation) stop() error {
	pids, err := children(s.runner.PID())
	if err != nil {
		return err
	}
	if len(pids) < 6 {
		return fmt.Errorf("the runner has %d children: want etcd, kube-apiserver, kube-controller-manager, a controller and two servers", len(pids))
	}
	s.runner.Stop(time.Minute)
	for _, pid := range pids {
		if syscall.Kill(pid, 0) == nil {
			return fmt.Errorf("process %d outlived the runner", pid)
		}
	}
	if !s.runner.Wrote("✓ stopped") {
		return fmt.Errorf("the runner did not stop in order:\n%s", s.runner.Tail(10))
	}
	if _, err := os.Stat(filepath.Join(s.dev(), "env")); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf(".dev/env outlived the system: %w", err)
	}
	return nil
}

// children of a process, by their ids.
func children(pid int) ([]int, error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil || len(files) == 0 {
		return nil, fmt.Errorf("read the children of process %d: %w", pid, errors.Join(err, os.ErrNotExist))
	}
	var pids []int
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // a thread that has just ended
		}
		for _, field := range bytes.Fields(text) {
			var child int
			if _, err := fmt.Sscan(string(field), &child); err != nil {
				return nil, err
			}
			pids = append(pids, child)
		}
	}
	return pids, nil
}
