// Command mintmark is the people's tool: it makes, rotates, revokes and checks
// credentials, and examines an installation. Installed as kubectl-mintmark it is
// the kubectl plugin "kubectl mintmark".
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/go-logr/logr"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	_ "k8s.io/client-go/plugin/pkg/client/auth" // kubeconfigs of exec, OIDC and cloud accounts
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/mintmark-dev/mintmark/internal/cli"
)

// version is set at build time: -ldflags "-X main.version=v0.1.0".
var version string

func main() {
	// The commands say what went wrong themselves; the libraries' logs are for servers.
	klog.SetLogger(logr.Discard())
	log.SetLogger(logr.Discard())
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := cli.Run(ctx, cli.Config{
		Streams: genericiooptions.IOStreams{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr},
		Version: version,
		Program: os.Args[0],
	}, os.Args[1:])
	stop()
	os.Exit(code)
}
