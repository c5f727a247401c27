package postgres

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/mintmark-dev/mintmark/test/controlplane/process"
)

// Options of a Cluster.
type Options struct {
	// Settings by name, beside those that make a throwaway fast.
	Settings map[string]string
	// Durable keeps what is committed through a crash of the server, as in production.
	Durable bool
	// SmallSegments makes the files of the server's log a megabyte long, which is what
	// Cluster.Fill needs.
	SmallSegments bool
	// Certificate and Key, in PEM, have it speak TLS.
	Certificate, Key []byte
}

// Cluster is a running server with databases.
type Cluster struct {
	dir      string
	port     int
	binaries string
	options  Options
	account  *user.User // that the server runs as; nil is ours
	process  *process.Process

	mu        sync.Mutex
	databases int
}

// binaries finds the server's programs: in the folder that MINTMARK_TEST_POSTGRES names,
// on the PATH, or where Debian puts them.
func binaries() (string, error) {
	if dir := os.Getenv("MINTMARK_TEST_POSTGRES"); dir != "" {
		return dir, nil
	}
	if path, err := exec.LookPath("initdb"); err == nil {
		if real, err := filepath.EvalSymlinks(path); err == nil {
			path = real // where the others are
		}
		return filepath.Dir(path), nil
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(found) == 0 {
		return "", errors.New("PostgreSQL's server is not installed: install it (on Debian: postgresql), or name the folder of its programs in MINTMARK_TEST_POSTGRES")
	}
	return filepath.Dir(slices.MaxFunc(found, func(a, b string) int {
		return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b)) // the newest
	})), nil
}

// Start makes a cluster and starts its server. Stop ends it.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	c := &Cluster{options: o}
	var err error
	if c.binaries, err = binaries(); err != nil {
		return nil, err
	}
	if c.dir, err = os.MkdirTemp("", "mintmark-postgres-"); err != nil {
		return nil, fmt.Errorf("make a temporary folder: %w", err)
	}
	if err := c.start(ctx); err != nil {
		c.Stop()
		return nil, err
	}
	return c, nil
}

func (c *Cluster) start(ctx context.Context) error {
	if err := c.handOver(); err != nil {
		return err
	}
	initdb := []string{"--pgdata", c.data(), "--username", "postgres", "--auth", "trust", "--encoding", "UTF8", "--locale", "C.UTF-8", "--no-sync"}
	if c.options.SmallSegments {
		initdb = append(initdb, "--wal-segsize", "1")
	}
	path, args := c.command("initdb", initdb...)
	made := exec.CommandContext(ctx, path, args...)
	made.Dir = c.dir
	if out, err := made.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, out)
	}
	if err := c.writeCertificate(); err != nil {
		return err
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	c.port = port
	return c.Restart(ctx)
}

// writeCertificate puts the certificate where the server reads it by default.
func (c *Cluster) writeCertificate() error {
	if c.options.Certificate == nil {
		return nil
	}
	for name, text := range map[string][]byte{"server.crt": c.options.Certificate, "server.key": c.options.Key} {
		path := filepath.Join(c.data(), name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			return fmt.Errorf("write the server's certificate: %w", err)
		}
		if c.account == nil {
			continue
		}
		if err := c.chown(path); err != nil {
			return err
		}
	}
	return nil
}

// chown gives a file to the account the server runs as.
func (c *Cluster) chown(path string) error {
	uid, _ := strconv.Atoi(c.account.Uid)
	gid, _ := strconv.Atoi(c.account.Gid)
	if err := os.Chown(path, uid, gid); err != nil {
		return fmt.Errorf("hand over %s: %w", path, err)
	}
	return nil
}

// handOver finds the account the server runs as, and gives it the folder.
func (c *Cluster) handOver() error {
	if os.Geteuid() == 0 { // the server does not run as root
		account, err := user.Lookup("postgres")
		if err != nil {
			account, err = user.Lookup("nobody")
		}
		if err != nil {
			return fmt.Errorf("find an account for the server to run as: %w", err)
		}
		c.account = account
		return c.chown(c.dir)
	}
	return nil
}

func freePort() (int, error) {
	ports, err := process.FreePorts(1)
	if err != nil {
		return 0, err
	}
	return ports[0], nil
}

func (c *Cluster) data() string { return filepath.Join(c.dir, "data") }

// command is how to run a program of the server, as its account.
func (c *Cluster) command(program string, args ...string) (path string, all []string) {
	path = filepath.Join(c.binaries, program)
	if c.account == nil {
		return path, args
	}
	// The signal at the parent's death is lost with the change of account, unless it
	// is asked for after that.
	return "setpriv", append([]string{"--reuid", c.account.Uid, "--regid", c.account.Gid, "--clear-groups", "--pdeathsig", "KILL", "--", path}, args...)
}

// Restart starts the server, which has been stopped or killed, and waits until it
// answers.
func (c *Cluster) Restart(ctx context.Context) error {
	settings := map[string]string{
		"listen_addresses": "127.0.0.1", "port": strconv.Itoa(c.port), "unix_socket_directories": "", "max_connections": "200", "log_checkpoints": "off",
	}
	if !c.options.Durable {
		settings["fsync"], settings["synchronous_commit"], settings["full_page_writes"] = "off", "off", "off"
	}
	if c.options.Certificate != nil {
		settings["ssl"] = "on"
	}
	for name, value := range c.options.Settings {
		settings[name] = value
	}
	args := []string{"-D", c.data()}
	for name, value := range settings {
		args = append(args, "-c", name+"="+value)
	}
	path, args := c.command("postgres", args...)
	if c.account != nil {
		full, err := exec.LookPath(path)
		if err != nil {
			return fmt.Errorf("run PostgreSQL as %s: %w", c.account.Username, err)
		}
		path = full
	}
	started, err := process.Start(process.Config{Name: "postgres", Path: path, Args: args, Dir: c.dir, LogFile: filepath.Join(c.dir, "postgres.log")})
	if err != nil {
		return err
	}
	c.process = started
	deadline := time.Now().Add(30 * time.Second)
	for {
		attempt, cancel := context.WithTimeout(ctx, time.Second)
		conn, err := pgx.Connect(attempt, c.URL("postgres", "postgres"))
		cancel()
		if err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-started.Done():
			return started.Failure()
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("PostgreSQL does not answer: %w", err)
		}
	}
}

// Psql runs statements in psql, as a person would, and gives what it prints: rows as lines,
// columns parted by |. It stops at the first error, which is that of psql with what it said.
func (c *Cluster) Psql(ctx context.Context, account, database, statements string) (string, error) {
	path := filepath.Join(c.binaries, "psql")
	if _, err := os.Stat(path); err != nil { // clients can be elsewhere
		if path, err = exec.LookPath("psql"); err != nil {
			return "", fmt.Errorf("PostgreSQL's psql is not installed (on Debian: postgresql-client): %w", err)
		}
	}
	psql := exec.CommandContext(ctx, path, "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", c.URL(account, database))
	psql.Stdin = strings.NewReader(statements)
	var out, failure bytes.Buffer
	psql.Stdout, psql.Stderr = &out, &failure
	if err := psql.Run(); err != nil {
		return out.String(), fmt.Errorf("psql as %s: %w: %s", account, err, failure.String())
	}
	return out.String(), nil
}

// Log is the file that the server writes its log to.
func (c *Cluster) Log() string { return filepath.Join(c.dir, "postgres.log") }

// URL of a database, for an account that needs no password.
func (c *Cluster) URL(account, database string) string {
	return fmt.Sprintf("postgres://%s@127.0.0.1:%d/%s?sslmode=disable", account, c.port, database)
}

// Port the server listens at, on 127.0.0.1.
func (c *Cluster) Port() int { return c.port }

// PID of the server.
func (c *Cluster) PID() int { return c.process.PID() }

// Kill ends the server as a crash does, its children with it.
func (c *Cluster) Kill() {
	// The children of a server that is killed notice by themselves, but keep its memory
	// in use for a moment: an immediate shutdown leaves the same state on the disk.
	_ = c.process.Signal(syscall.SIGQUIT)
	select {
	case <-c.process.Done():
	case <-time.After(10 * time.Second):
		c.process.Kill()
	}
}

// Pause stops the server from answering; Resume lets it go on.
func (c *Cluster) Pause() error { return c.signalAll(syscall.SIGSTOP) }

// Resume is the opposite of Pause.
func (c *Cluster) Resume() error { return c.signalAll(syscall.SIGCONT) }

// signalAll signals the server and the children that serve connections.
func (c *Cluster) signalAll(s syscall.Signal) error {
	for _, pid := range c.pids() {
		if err := syscall.Kill(pid, s); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("signal PostgreSQL: %w", err)
		}
	}
	return nil
}

// pids are those of the server and of its children.
func (c *Cluster) pids() []int {
	pids := []int{c.process.PID()}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, stat := range stats {
		text, err := os.ReadFile(stat)
		if err != nil {
			continue // it has ended
		}
		var pid, parent int
		var name, state string
		if n, _ := fmt.Sscanf(string(text), "%d %s %s %d", &pid, &name, &state, &parent); n == 4 && parent == c.process.PID() {
			pids = append(pids, pid)
		}
	}
	return pids
}

// Stop ends the server and removes its folder.
func (c *Cluster) Stop() {
	if c.process != nil {
		_ = c.process.Signal(syscall.SIGINT) // a fast shutdown
		c.process.Stop(5 * time.Second)
	}
	_ = os.RemoveAll(c.dir)
}

// Owner is the account that owns the databases.
const Owner = "mintmark"

// Database makes an empty database and gives its name.
func (c *Cluster) Database(ctx context.Context) (string, error) {
	c.mu.Lock()
	c.databases++
	name := "test_" + strconv.Itoa(c.databases)
	c.mu.Unlock()
	conn, err := pgx.Connect(ctx, c.URL("postgres", "postgres"))
	if err != nil {
		return "", fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	defer conn.Close(ctx)
	// Not a superuser, for no policy of a table holds those.
	var pg *pgconn.PgError
	if _, err := conn.Exec(ctx, "CREATE ROLE "+Owner+" LOGIN"); err != nil && !(errors.As(err, &pg) && pg.Code == "42710") {
		return "", fmt.Errorf("make account %s: %w", Owner, err)
	}
	if _, err := conn.Exec(ctx, "CREATE DATABASE "+name+" OWNER "+Owner); err != nil {
		return "", fmt.Errorf("make database %s: %w", name, err)
	}
	return name, nil
}

// StartFor starts a cluster for one test, which stops it at its end.
func StartFor(t testing.TB, o Options) *Cluster {
	t.Helper()
	c, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Stop)
	return c
}

// DatabaseFor makes an empty database and gives its name.
func (c *Cluster) DatabaseFor(t testing.TB) string {
	t.Helper()
	name, err := c.Database(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return name
}

var shared struct {
	sync.Mutex
	cluster *Cluster
	err     error
}

// ForTest returns the cluster of this test binary. The first call starts it.
func ForTest(t testing.TB) *Cluster {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.cluster == nil && shared.err == nil {
		shared.cluster, shared.err = Start(context.Background(), Options{})
	}
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.cluster
}

// NewDatabase makes an empty database in the cluster of this test binary, and gives its
// URL for its owner.
func NewDatabase(t testing.TB) string {
	t.Helper()
	c := ForTest(t)
	return c.URL(Owner, c.DatabaseFor(t))
}

// Main runs the tests and then stops the cluster, if ForTest started one:
//
//	func TestMain(m *testing.M) { postgres.Main(m) }
func Main(m *testing.M) {
	code := m.Run()
	Close()
	os.Exit(code)
}

// Close stops the cluster that ForTest started, if it did.
func Close() {
	shared.Lock()
	defer shared.Unlock()
	if shared.cluster != nil {
		shared.cluster.Stop()
		shared.cluster = nil
	}
}
