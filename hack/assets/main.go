// Command assets obtains the binaries of the test control plane and prints the
// folder of etcd and kube-apiserver, fit for KUBEBUILDER_ASSETS:
//
//	export KUBEBUILDER_ASSETS=$(go run ./hack/assets)
//
// Further binaries (kube-controller-manager, kubectl) are given by name.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/mintmark-dev/mintmark/test/controlplane"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, names []string) error {
	dir, err := controlplane.Assets(ctx, os.Stderr)
	if err != nil {
		return err
	}
	for _, name := range names {
		if _, err := controlplane.Binary(ctx, os.Stderr, name); err != nil {
			return err
		}
	}
	fmt.Println(dir)
	return nil
}
