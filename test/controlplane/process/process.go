package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// Config says what to run.
type Config struct {
	// Name of the process, for messages and for its log file.
	Name string
	// Path of the binary.
	Path string
	Args []string
	// Env is the whole environment. Nil: the parent's.
	Env []string
	// Dir is the working directory. Empty: the parent's.
	Dir string
	// LogFile receives stdout and stderr, appended.
	LogFile string
}

// Process is a running (or ended) child. Its methods may be used by several
// goroutines at once.
type Process struct {
	name    string
	logFile string
	// logStart is where this run's output begins in the log file.
	logStart int64
	cmd      *exec.Cmd
	done     chan struct{}
	err      error
}

// Start runs the process. It returns as soon as the process exists, not when it
// is useful.
func Start(cfg Config) (*Process, error) {
	if err := os.MkdirAll(filepath.Dir(cfg.LogFile), 0o755); err != nil {
		return nil, fmt.Errorf("%s: make the folder of its log: %w", cfg.Name, err)
	}
	log, err := os.OpenFile(cfg.LogFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%s: open its log: %w", cfg.Name, err)
	}
	p := &Process{name: cfg.Name, logFile: cfg.LogFile, done: make(chan struct{})}
	if info, err := log.Stat(); err == nil {
		p.logStart = info.Size()
	}
	p.cmd = exec.Command(cfg.Path, cfg.Args...)
	p.cmd.Env, p.cmd.Dir = cfg.Env, cfg.Dir
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = attributes()

	started := make(chan error)
	go func() {
		defer func() { _ = log.Close() }()
		// The kernel sends the death signal when the thread that forked ends,
		// not the process: keep the thread for as long as the child lives.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", cfg.Name, err)
	}
	return p, nil
}

// Name of the process.
func (p *Process) Name() string { return p.name }

// LogFile is where the process writes.
func (p *Process) LogFile() string { return p.logFile }

// PID of the process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Signal sends a signal to the process. A process that has ended is no error.
func (p *Process) Signal(s os.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %s: %w", p.name, err)
	}
	return nil
}

// Stop asks the process to end, kills it after grace, and waits for its end.
func (p *Process) Stop(grace time.Duration) {
	if p == nil {
		return
	}
	_ = p.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
		return
	case <-time.After(grace):
	}
	p.Kill()
}

// Kill ends the process at once, as kill -9 does, and waits for its end.
func (p *Process) Kill() {
	_ = p.Signal(syscall.SIGKILL)
	<-p.done
}

// Wait polls ready until it answers nil. It gives up when ctx ends or the
// process does; the error then carries the end of the log.
func (p *Process) Wait(ctx context.Context, ready func(context.Context) error) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return p.Failure()
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w\n%s", p.name, err, p.Tail(20))
		case <-tick.C:
		}
	}
}

// Failure describes how the process ended, with the end of its log. It is nil
// while the process runs.
func (p *Process) Failure() error {
	select {
	case <-p.done:
	default:
		return nil
	}
	how := "ended with exit status 0"
	if p.err != nil {
		how = "ended: " + p.err.Error()
	}
	return fmt.Errorf("%s %s; the end of %s:\n%s", p.name, how, p.logFile, p.Tail(20))
}

// Tail is the last lines of what this run of the process has written.
func (p *Process) Tail(lines int) string {
	out := strings.TrimRight(string(p.output()), "\n")
	all := strings.Split(out, "\n")
	if len(all) > lines {
		all = all[len(all)-lines:]
	}
	return strings.Join(all, "\n")
}

// Wrote reports whether this run of the process has written text.
func (p *Process) Wrote(text string) bool {
	return bytes.Contains(p.output(), []byte(text))
}

// output reads at most the last MiB of this run's output.
func (p *Process) output() []byte {
	const most = 1 << 20
	f, err := os.Open(p.logFile)
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	from := p.logStart
	if info, err := f.Stat(); err == nil && info.Size()-from > most {
		from = info.Size() - most
	}
	if _, err := f.Seek(from, io.SeekStart); err != nil {
		return nil
	}
	out, _ := io.ReadAll(io.LimitReader(f, most))
	return out
}
