//go:build e2e

package operations

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mintmark-dev/mintmark/test/controlplane/process"
	"github.com/mintmark-dev/mintmark/test/postgres"
)

// drill is a running installation that runbooks are tried on, and a folder to work in.
type drill struct {
	t         *testing.T
	dev, work string
	database  *postgres.Cluster
	name      string // of the database
}

// newDrill starts what `make run` starts: one server, with PostgreSQL.
func newDrill(t *testing.T) *drill {
	t.Helper()
	d := &drill{t: t, dev: filepath.Join(t.TempDir(), "dev"), work: t.TempDir()}
	var err error
	if d.database, err = postgres.Start(t.Context(), postgres.Options{Durable: true}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.database.Stop)
	if d.name, err = d.database.Database(t.Context()); err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(t.TempDir(), "mintmark-dev")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "./hack/dev")
	build.Dir = root(t)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the runner: %v\n%s", err, out)
	}
	runner, err := process.Start(process.Config{
		Name: "runner", Path: binary, Dir: root(t), LogFile: filepath.Join(t.TempDir(), "runner.log"),
		Env: append(os.Environ(), "MINTMARK_DEV_DIR="+d.dev, "MINTMARK_PORT=0", "MINTMARK_SERVERS=1",
			"MINTMARK_DEV_DATABASE_URL="+d.database.URL(postgres.Owner, d.name)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { runner.Stop(time.Minute) })
	ctx, cancel := context.WithTimeout(t.Context(), 25*time.Minute)
	defer cancel()
	if err := runner.Wait(ctx, func(context.Context) error {
		if !runner.Wrote("everything works") {
			return errors.New("the demonstration has not ended")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return d
}

// shell runs a script as whoever is on call would, with the tools of `make run`.
func (d *drill) shell(script string) (string, error) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-uo", "pipefail", "-c", ". "+filepath.Join(d.dev, "env")+"\n"+script)
	cmd.Dir = d.work
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

func (d *drill) must(script string) string {
	d.t.Helper()
	out, err := d.shell("set -e\n" + script)
	if err != nil {
		d.t.Fatalf("%s\n%v\n%s", script, err, out)
	}
	return strings.TrimSpace(out)
}

func (d *drill) eventually(what, script string) {
	d.t.Helper()
	deadline := time.After(time.Minute)
	for {
		out, err := d.shell("set -e\n" + script)
		if err == nil {
			return
		}
		select {
		case <-deadline:
			d.t.Fatalf("%s does not come about: %v\n%s", what, err, out)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// failedLine is what a script says of a command that failed.
const failedLine = "THIS FAILED: "

// asWritten runs blocks of a page one after the other in one shell, and fails the test for
// each command that fails, except those that are to.
func (d *drill) asWritten(blocks []string, expected ...string) string {
	d.t.Helper()
	out, err := d.shell(`trap 'echo "` + failedLine + `$BASH_COMMAND"' ERR` + "\n" + strings.Join(blocks, "\n"))
	for line := range strings.Lines(out) {
		if command, ok := strings.CutPrefix(strings.TrimSpace(line), failedLine); ok &&
			!slices.ContainsFunc(expected, func(prefix string) bool { return strings.HasPrefix(command, prefix) }) {
			d.t.Errorf("it fails as it is written: %s", command)
		}
	}
	if d.t.Failed() {
		d.t.Logf("(%v) what was written:\n%s", err, out)
	}
	return out
}

func pageAt(t testing.TB, path string) page {
	t.Helper()
	for _, p := range pages(t) {
		if p.path == path {
			return p
		}
	}
	t.Fatalf("there is no page %s", path)
	return page{}
}

// What a page says is to be typed is typed here.
func TestTheRunbooksWorkAsTheyAreWritten(t *testing.T) {
	d := newDrill(t)
	d.must("(umask 077; mintmark bootstrap > admin.key)")
	t.Run("the drill of the emergency brake", func(t *testing.T) {
		d := d.with(t)
		blocks := page{text: pageAt(t, "docs/operations.md").section("the-drill")}.shell()
		d.must("kubectl create namespace mintmark-drill --dry-run=client") // nothing of that name is there
		if out := d.asWritten(blocks, "mintmark verify"); !strings.Contains(out, "refused, as it should be") || strings.Count(out, "Accepted:") != 1 {
			t.Errorf("the value was not accepted before and refused after:\n%s", out)
		}
	})
	t.Run("credentials are not as they should be", func(t *testing.T) { d.with(t).lookAtCredentials() })
	t.Run("signing keys", func(t *testing.T) { d.with(t).loseSigningKeys() })
	t.Run("the controller is down", func(t *testing.T) { d.with(t).stopController() })
	t.Run("the database is down", func(t *testing.T) { d.with(t).stopDatabase() })
	t.Run("a credential has leaked", func(t *testing.T) { d.with(t).leak() })
	t.Run("the database is lost", func(t *testing.T) { d.with(t).loseDatabase() })
}

// with is the same installation for another test.
func (d *drill) with(t *testing.T) *drill {
	own := *d
	own.t = t
	return &own
}

// spooled is a script that is true where this many batches wait on the disk.
func spooled(is string) string {
	return `curl -sS "$MINTMARK_METRICS_URL/metrics" > metrics.txt; awk '$1 == "mintmark_audit_spool_batches" && $2 ` + is + ` {found = 1} END {exit !found}' metrics.txt`
}

// request is one that leaves an event.
const request = "mintmark verify --key-file admin.key"

// lookAtCredentials types what the page says of one that has been rotated.
func (d *drill) lookAtCredentials() {
	d.must(`mintmark create servicetoken looked-at -n payments --permissions deploy:write > looked-at.txt
		mintmark rotate servicetoken looked-at -n payments --reason "drill"`)
	set := "NS=payments NAME=looked-at SUSPECT=jane"
	// Jane may not write status, which is what can-i says.
	out := d.asWritten(append([]string{set}, pageAt(d.t, "docs/runbooks/credentials.md").shell()...), "kubectl auth can-i")
	for what, want := range map[string]string{
		"the credential is explained":    "servicetoken:payments:looked-at, version 2",
		"those that are not well":        "walkthrough\tRevoked",
		"it is rolled back":              "version 1",
		"it is rotated":                  "rotated (version 3",
		"the policies of the cluster":    "AccessPolicy office-hours compiles",
		"the policy that guards status":  "mintmark-status",
		"nobody else may write a status": "no",
	} {
		if !strings.Contains(out, want) {
			d.t.Errorf("%s: there is no %q in what was written:\n%s", what, want, out)
		}
	}
}

// stopDatabase kills it, and looks for what the page promises.
func (d *drill) stopDatabase() {
	d.database.Kill()
	for range 20 {
		d.must(request)
	}
	d.eventually("events wait on the disk", spooled("> 0"))
	d.eventually("the status says so", `printf 'Authorization: Bearer %s\n' "$(cat admin.key)" > admin.header
		curl -sS --cacert "$MINTMARK_CACERT" -H @admin.header "$MINTMARK_URL/api/v1/system/status" | jq -e '.status == "degraded" and .audit.lost == 0'`)
	if err := d.database.Restart(d.t.Context()); err != nil {
		d.t.Fatal(err)
	}
	d.eventually("they are stored", spooled("== 0"))
	d.must("mintmark logs verify --key-file admin.key")
}

// loseDatabase puts an empty one in its place.
func (d *drill) loseDatabase() {
	admin := d.database.URL("postgres", "postgres")
	d.must("psql -q '" + admin + "' -c 'DROP DATABASE " + d.name + " WITH (FORCE)' -c 'CREATE DATABASE " + d.name + " OWNER " + postgres.Owner + "'")
	for range 5 {
		d.must(request)
	}
	d.eventually("events wait on the disk", spooled("> 0"))
	d.must(`mintmark-server --migrate --database-url="$DATABASE_URL"`)
	d.eventually("they are stored, without a restart", spooled("== 0"))
	d.must("mintmark logs --limit 1 --key-file admin.key")
}

// loseSigningKeys does what the page says for a signing key that has leaked.
func (d *drill) loseSigningKeys() {
	d.must("mintmark token --key-file admin.key > before.jwt && mintmark verify --key-file before.jwt")
	block := ""
	for _, candidate := range (page{text: pageAt(d.t, "docs/runbooks/keys-lost.md").section("a-key-has-leaked")}).shell() {
		if strings.Contains(candidate, "mintmark-signing-keys") {
			block = candidate
		}
	}
	if block == "" {
		d.t.Fatal("the page does not say how")
	}
	d.asWritten([]string{block})
	d.eventually("JWTs of before are refused", "! mintmark verify --key-file before.jwt")
	d.eventually("others are issued", "mintmark token --key-file admin.key > after.jwt && mintmark verify --key-file after.jwt")
}

// stopController pauses it, and looks for what the page promises.
func (d *drill) stopController() {
	text, err := os.ReadFile(filepath.Join(d.dev, "pid", "mintmark-controller"))
	if err != nil {
		d.t.Fatal(err)
	}
	pid, err := strconv.Atoi(string(text))
	if err != nil {
		d.t.Fatal(err)
	}
	d.must("kubectl -n payments get secret ci-deploy -o jsonpath='{.data.token}' | base64 -d > steady.txt; mintmark verify --key-file steady.txt")
	d.must("mintmark create servicetoken paused -n payments > paused.txt && mintmark verify --key-file paused.txt")
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		d.t.Fatal(err)
	}
	resume := func() { _ = syscall.Kill(pid, syscall.SIGCONT) }
	defer resume()
	d.eventually("doctor misses it", `if mintmark doctor > doctor.txt 2>&1; then false; fi; grep -q "no controller leads" doctor.txt`)
	d.eventually("servers miss it", `curl -sS "$MINTMARK_METRICS_URL/readyz?verbose" > readyz.txt; grep -q "\[ \] heartbeat" readyz.txt`)
	d.must("mintmark verify --key-file steady.txt")
	d.must(`mintmark revoke servicetoken paused -n payments --reason "drill"`)
	d.eventually("a revocation holds", "! mintmark verify --key-file paused.txt")
	resume()
	d.eventually("all is well again", "mintmark doctor")
	d.eventually("status says so", `kubectl -n payments get servicetoken paused -o jsonpath='{.status.conditions[?(@.type=="Ready")].reason}' | grep Revoked`)
}

// leak goes through the runbook from its beginning to its end.
func (d *drill) leak() {
	d.must(`kubectl -n payments create deployment deployer --image=example.com/deployer --dry-run=client -o json |
		jq '.spec.template.spec.containers[0].envFrom = [{secretRef: {name: "ci-deploy"}}]' | kubectl apply -f -
		kubectl -n payments get secret ci-deploy -o jsonpath='{.data.token}' | base64 -d > leaked.txt
		mintmark verify --key-file leaked.txt`)
	version := d.must("kubectl -n payments get secret ci-deploy -o jsonpath='{.data.version}' | base64 -d")
	prefix := d.must(`kubectl -n payments get servicetoken ci-deploy -o jsonpath='{.status.versions[?(@.version==` + version + `)].prefix}'`)
	blocks := pageAt(d.t, "docs/runbooks/leaked-credential.md").shell()
	brake := regexp.MustCompile(`(?m)^(mintmark emergency-revoke [^\n#]*?)( *#[^\n]*)?$`)
	for i, block := range blocks {
		block = strings.ReplaceAll(block, "sk_live_0a1b", prefix)
		block = strings.ReplaceAll(block, "VERSION=3", "VERSION="+version)
		blocks[i] = brake.ReplaceAllString(block, "$1 --yes") // nobody is there to be asked
	}
	// A credential that is revoked may do nothing, which is what explain says.
	out := d.asWritten(blocks, "mintmark explain")
	for what, want := range map[string]string{
		"the credential is found by its prefix":  "ServiceToken payments/ci-deploy uid ",
		"the version is revoked":                 "version " + version + " revoked",
		"the brake settles":                      "settled",
		"the log has who used it":                "127.0.0.1",
		"the log has that it was revoked":        "Revoked",
		"analytics has its versions":             prefix,
		"it comes back with a new value":         "rotated (version ",
		"its consumer is found":                  "Deployment/deployer",
		"the log is whole":                       "holds",
		"the brake over REST makes a Revocation": `"matched":`,
	} {
		if !strings.Contains(out, want) {
			d.t.Errorf("%s: there is no %q in what was written", what, want)
		}
	}
	d.eventually("the leaked value is refused", "! mintmark verify --key-file leaked.txt")
	d.must("kubectl -n payments get secret ci-deploy -o jsonpath='{.data.token}' | base64 -d > replaced.txt; mintmark verify --key-file replaced.txt")
	for _, file := range []string{"incident-118-report.md", "incident-118-events.jsonl", "incident-118-credential.yaml", "incident-118-revocations.yaml"} {
		text, err := os.ReadFile(filepath.Join(d.work, file))
		if err != nil || len(text) == 0 {
			d.t.Errorf("%s was not written: %v", file, err)
		}
		value, err := os.ReadFile(filepath.Join(d.work, "leaked.txt"))
		if err != nil || bytes.Contains(text, value) {
			d.t.Errorf("%s holds the value: %v", file, fmt.Sprint(err))
		}
	}
}
