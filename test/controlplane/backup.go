package controlplane

import (
	"context"
	"fmt"
	"os"
)

// Backup copies what etcd holds into a folder, which must not be there. The API server and
// etcd are down meanwhile, so that the copy is of one moment, as a snapshot is.
func (c *ControlPlane) Backup(ctx context.Context, dir string) error {
	return c.withoutEtcd(ctx, func() error { return os.CopyFS(dir, os.DirFS(c.dataDir())) })
}

// Restore puts a backup in the place of what etcd holds: revisions go back with it, as they do
// where a snapshot is restored.
func (c *ControlPlane) Restore(ctx context.Context, dir string) error {
	return c.withoutEtcd(ctx, func() error {
		if err := os.RemoveAll(c.dataDir()); err != nil {
			return err
		}
		if err := os.CopyFS(c.dataDir(), os.DirFS(dir)); err != nil {
			return err
		}
		return os.Chmod(c.dataDir(), 0o700) // etcd insists
	})
}

// withoutEtcd runs f while the API server and etcd are down.
func (c *ControlPlane) withoutEtcd(ctx context.Context, f func() error) error {
	c.StopAPIServer()
	c.etcd.Stop(stopGrace)
	if err := f(); err != nil {
		return fmt.Errorf("etcd's data: %w", err)
	}
	starting, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := c.startEtcd(starting); err != nil {
		return err
	}
	return c.StartAPIServer(ctx)
}
