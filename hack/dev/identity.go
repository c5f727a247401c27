package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/rest"

	"github.com/mintmark-dev/mintmark/test/controlplane"
)

const (
	namespace        = "mintmark-system"
	internalAudience = "mintmark-internal"
	// refreshTokens is well within the hour that tokens live.
	refreshTokens = 20 * time.Minute
)

// identity is what a process runs as: a kubeconfig with the token of its own
// service account, refreshed as the kubelet would in a pod.
type identity struct {
	account string
	dir     string
	plane   *controlplane.ControlPlane
	// internal adds a token for the servers' internal listener.
	internal bool
}

func (i identity) kubeconfig() string    { return filepath.Join(i.dir, "kubeconfig") }
func (i identity) token() string         { return filepath.Join(i.dir, "token") }
func (i identity) internalToken() string { return filepath.Join(i.dir, "internal-token") }

// write makes the files.
func (i identity) write(ctx context.Context) error {
	if err := os.MkdirAll(i.dir, 0o700); err != nil {
		return fmt.Errorf("make the folder of %s: %w", i.account, err)
	}
	if err := i.refresh(ctx); err != nil {
		return err
	}
	cfg := rest.AnonymousClientConfig(i.plane.Config)
	cfg.BearerTokenFile = i.token()
	return i.plane.WriteKubeconfig(i.kubeconfig(), cfg)
}

// refresh writes new tokens.
func (i identity) refresh(ctx context.Context) error {
	tokens := map[string][]string{i.token(): nil}
	if i.internal {
		tokens[i.internalToken()] = []string{internalAudience}
	}
	for path, audiences := range tokens {
		token, err := i.plane.ServiceAccount(ctx, namespace, i.account, audiences...)
		if err != nil {
			return err
		}
		if err := os.WriteFile(path+".tmp", []byte(token), 0o600); err != nil {
			return fmt.Errorf("write a token of %s: %w", i.account, err)
		}
		if err := os.Rename(path+".tmp", path); err != nil {
			return fmt.Errorf("write a token of %s: %w", i.account, err)
		}
	}
	return nil
}

// keep refreshes the tokens until ctx ends. A refresh that fails is tried again
// soon, for the old tokens are good for a while.
func (i identity) keep(ctx context.Context, out *reporter) {
	wait := refreshTokens
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = refreshTokens
		if err := i.refresh(ctx); err != nil && ctx.Err() == nil {
			out.line("! %v; trying again in a minute", err)
			wait = time.Minute
		}
	}
}
