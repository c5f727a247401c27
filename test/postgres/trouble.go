package postgres

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
)

// fullAt is how long a file of a server that is Full can grow: Options.SmallSegments is as
// long, for the log of a server whose disk fills up has its place already.
const fullAt = 1 << 20

// Fill has the server's disk be full: no file can be made longer than a megabyte, and what is
// written beyond that fails as it does without space. The cluster is to have been started
// with Options.SmallSegments.
func (c *Cluster) Fill() error { return c.limitFiles(strconv.Itoa(fullAt)) }

// Empty is the opposite of Fill.
func (c *Cluster) Empty() error { return c.limitFiles("unlimited") }

// limitFiles sets the soft limit, which needs no privilege to be raised again. Servers ignore
// the signal that comes with it.
func (c *Cluster) limitFiles(size string) error {
	for _, pid := range c.pids() {
		args := []string{"prlimit", "--pid", strconv.Itoa(pid), "--fsize=" + size + ":"}
		if c.account != nil { // a process may be limited by its own account
			args = append([]string{"setpriv", "--reuid", c.account.Uid, "--regid", c.account.Gid, "--clear-groups", "--"}, args...)
		}
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if _, gone := os.Stat(filepath.Join("/proc", strconv.Itoa(pid))); err != nil && gone == nil {
			return fmt.Errorf("limit the files of process %d (on Debian: util-linux): %w: %s", pid, err, out)
		}
	}
	return nil
}

// Replica starts a cluster that follows this one, synchronously from then on: what this one
// has committed the other one has.
func (c *Cluster) Replica(ctx context.Context) (*Cluster, error) {
	r := &Cluster{options: c.options, binaries: c.binaries, account: c.account}
	var err error
	if r.dir, err = os.MkdirTemp("", "mintmark-postgres-"); err != nil {
		return nil, fmt.Errorf("make a temporary folder: %w", err)
	}
	if err := r.follow(ctx, c); err != nil {
		r.Stop()
		return nil, err
	}
	return r, nil
}

func (c *Cluster) follow(ctx context.Context, primary *Cluster) error {
	if err := c.handOver(); err != nil {
		return err
	}
	path, args := c.command("pg_basebackup", "--pgdata", c.data(), "--host", "127.0.0.1", "--port", strconv.Itoa(primary.port), "--username", "postgres",
		"--write-recovery-conf", "--checkpoint", "fast", "--no-sync")
	made := exec.CommandContext(ctx, path, args...)
	made.Dir = c.dir
	if out, err := made.CombinedOutput(); err != nil {
		return fmt.Errorf("pg_basebackup: %w: %s", err, out)
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	c.port = port
	if err := c.Restart(ctx); err != nil {
		return err
	}
	for _, statement := range []string{"ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()"} {
		if err := primary.admin(ctx, statement); err != nil {
			return err
		}
	}
	return primary.await(ctx, "SELECT count(*) > 0 FROM pg_stat_replication WHERE sync_state = 'sync'", "the replica follows synchronously")
}

// Promote has a replica go on by itself, as the one that is written to.
func (c *Cluster) Promote(ctx context.Context) error {
	for _, statement := range []string{"SELECT pg_promote()", "ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()"} {
		if err := c.admin(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) admin(ctx context.Context, statement string) error {
	conn, err := pgx.Connect(ctx, c.URL("postgres", "postgres"))
	if err != nil {
		return fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, statement); err != nil {
		return fmt.Errorf("%s: %w", statement, err)
	}
	return nil
}

func (c *Cluster) await(ctx context.Context, question, what string) error {
	conn, err := pgx.Connect(ctx, c.URL("postgres", "postgres"))
	if err != nil {
		return fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	defer conn.Close(ctx)
	for deadline := time.Now().Add(30 * time.Second); ; {
		var yes bool
		if err := conn.QueryRow(ctx, question).Scan(&yes); err != nil || yes {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not within 30 s: %s", what)
		}
	}
}
