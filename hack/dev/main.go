// Command dev is what `make run` runs: a whole Mintmark on this machine, without
// containers. It starts a real control plane, installs what users install, runs
// the controller and the servers as their own service accounts, applies the
// samples, shows what happens, and stays up until Ctrl-C.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

// errAsked is why the system goes down when nothing is wrong.
var errAsked = errors.New("asked to stop")

func main() {
	// The libraries' logs are for servers; without a logger this one prints a stack after half a minute.
	log.SetLogger(logr.Discard())
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) int {
	cfg, err := parseSettings(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintln(stderr, err)
		return 2
	}
	ctx, stop := context.WithCancelCause(context.Background())
	defer stop(nil)
	go stopOnSignal(stop)

	out := &reporter{out: stdout}
	s := &system{settings: cfg, out: out, fail: stop}
	err = s.up(ctx)
	if err == nil && !cfg.exitAfterDemo {
		<-ctx.Done()
		err = context.Cause(ctx)
	}
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx) // what a step says then is only a consequence
	}
	began := time.Now()
	s.down()
	switch {
	case err == nil || errors.Is(err, errAsked):
		out.line("✓ stopped, nothing left running (%s)", short(time.Since(began)))
		return 0
	default:
		fmt.Fprintf(stderr, "✗ %v\n", err)
		return 1
	}
}

// stopOnSignal stops the system at the first signal. A second one ends the
// program at once; the kernel then ends its children.
func stopOnSignal(stop context.CancelCauseFunc) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	<-signals
	signal.Reset(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	stop(errAsked)
}
