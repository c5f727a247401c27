package server

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/audit"
	"github.com/mintmark-dev/mintmark/internal/credential"
	"github.com/mintmark-dev/mintmark/internal/management"
	"github.com/mintmark-dev/mintmark/test/controlplane"
)

// example is a file of the example for GitHub Actions.
func example(t *testing.T, name string) string {
	t.Helper()
	root, err := controlplane.Root()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(root, "docs", "examples", "github-actions", name)
}

// runner runs the action's script as GitHub's runner does.
type runner struct {
	t     *testing.T
	dir   string
	env   map[string]string
	spied string // arguments and environments of every curl and jq
}

// newRunner has curl and jq note what others could see of them.
func newRunner(t *testing.T) *runner {
	t.Helper()
	for _, tool := range []string{"bash", "curl", "jq"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%s is not installed, which the script needs: %v", tool, err)
		}
	}
	r := &runner{t: t, dir: t.TempDir()}
	r.spied = filepath.Join(r.dir, "spied")
	for _, tool := range []string{"curl", "jq"} {
		real, _ := exec.LookPath(tool)
		spy := fmt.Sprintf("#!/bin/bash\nset +x\n{ printf '%%s ' %s \"$@\"; env; } >>%q\nexec %q \"$@\"\n", tool, r.spied, real)
		r.write(filepath.Join("bin", tool), spy, 0o700)
	}
	r.env = map[string]string{
		"PATH": filepath.Join(r.dir, "bin") + ":" + os.Getenv("PATH"), "HOME": r.dir, "TMPDIR": r.dir, "RUNNER_TEMP": r.dir, "GITHUB_ACTIONS": "true",
		"GITHUB_OUTPUT": filepath.Join(r.dir, "output"), "GITHUB_REPOSITORY": "octo-org/octo-repo", "GITHUB_RUN_ID": "9301230123", "GITHUB_RUN_ATTEMPT": "2",
		"GITHUB_JOB": "deploy", "GITHUB_WORKFLOW": "deploy", "GITHUB_REF": "refs/heads/main", "GITHUB_SHA": "6dcb09b5b57875f334f61aebed695e2e4193db5e",
		"GITHUB_SERVER_URL": "https://github.com",
	}
	return r
}

func (r *runner) write(name, text string, mode os.FileMode) string {
	r.t.Helper()
	path := filepath.Join(r.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		r.t.Fatal(err)
	}
	return path
}

// server has the script use this server.
func (r *runner) server(s *httptest.Server) {
	r.t.Helper()
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	r.env["MINTMARK_URL"], r.env["MINTMARK_CACERT"] = s.URL, r.write("server.crt", string(cert), 0o600)
}

// ran is what came of a run.
type ran struct {
	code   int
	output string            // as the runner shows it: with what was masked taken out
	set    map[string]string // outputs
	masked []string
	took   time.Duration
}

func (r *runner) run(what string, env ...string) ran {
	r.t.Helper()
	_ = os.Remove(r.env["GITHUB_OUTPUT"])
	_ = os.Remove(r.spied)
	all := map[string]string{}
	for name, value := range r.env {
		all[name] = value
	}
	for i := 0; i+1 < len(env); i += 2 {
		all[env[i]] = env[i+1]
	}
	cmd := exec.CommandContext(r.t.Context(), example(r.t, "mintmark/mintmark.sh"), what)
	cmd.Env = nil
	for name, value := range all {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	began := time.Now()
	err := cmd.Run()
	got := ran{took: time.Since(began), set: map[string]string{}}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got.code = exit.ExitCode()
	} else if err != nil {
		r.t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(out.String()) {
		if value, ok := strings.CutPrefix(line, "::add-mask::"); ok {
			got.masked = append(got.masked, strings.TrimSpace(value))
			continue
		}
		lines = append(lines, line)
	}
	got.output = strings.Join(lines, "")
	for _, value := range got.masked {
		if strings.Contains(got.output, value) {
			r.t.Errorf("a value is printed:\n%s", got.output)
		}
	}
	if text, err := os.ReadFile(r.env["GITHUB_OUTPUT"]); err == nil {
		for line := range strings.Lines(string(text)) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			got.set[name] = value
		}
	}
	r.secretless(all, &got)
	return got
}

// secretless checks that nobody else could have seen a value, and that none is left.
func (r *runner) secretless(env map[string]string, got *ran) {
	r.t.Helper()
	spied, _ := os.ReadFile(r.spied)
	values := append(slices.Clone(got.masked), env["MINTMARK_KEY"], env["MINTMARK_ID_TOKEN"], env["ACTIONS_ID_TOKEN_REQUEST_TOKEN"])
	for _, value := range values {
		if value != "" && (bytes.Contains(spied, []byte(value)) || strings.Contains(got.output, value)) {
			r.t.Errorf("a value is in the arguments or the environment of a process, or printed:\n%s", got.output)
		}
	}
	left, err := filepath.Glob(filepath.Join(r.dir, "tmp.*"))
	if err != nil || len(left) > 0 {
		r.t.Errorf("files are left behind: %v %v", left, err)
	}
}

// header reads the file that later steps present.
func (r *runner) header(got ran) string {
	r.t.Helper()
	path := got.set["header-file"]
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		r.t.Fatalf("the file %q: %v %v\n%s", path, info, err, got.output)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		r.t.Fatal(err)
	}
	name, value, _ := strings.Cut(strings.TrimSpace(string(text)), ": ")
	if name != "Authorization" {
		r.t.Errorf("the header is %s", name)
	}
	return value
}

// deployments is a server set up as the example's manifests say, and GitHub beside it.
type deployments struct {
	*edge
	trail  *trail
	github *idp
	runner *runner
	claims map[string]any // of the job
}

func newDeployments(t *testing.T) *deployments {
	t.Helper()
	tr, a := newTrail(t)
	store := openSQLite(t, filepath.Join(t.TempDir(), "mintmark.db"))
	a.once = newLedger(store, tr, "one", "one", slog.New(slog.DiscardHandler))
	d := &deployments{
		trail: tr, github: newIDP(t, "token.actions.example.com", "/.well-known/jwks"), runner: newRunner(t),
		edge: newFederatedEdge(t, setup{audit: a, management: &management.Config{Recorder: a.recorder, Once: a.once.put}}),
	}
	text, err := os.ReadFile(example(t, "mintmark.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range strings.Split(string(text), "\n---\n") {
		var issuer v1alpha1.TrustedIssuer
		var role v1alpha1.AccessRole
		if strings.Contains(part, "kind: TrustedIssuer") {
			if err := yaml.UnmarshalStrict([]byte(part), &issuer); err != nil {
				t.Fatal(err)
			}
			issuer.Spec.Issuer, issuer.Spec.CABundle, issuer.Spec.Audiences = d.github.iss, d.github.bundle, []string{d.http.URL}
			d.trust(issuer.Name, issuer.Spec)
			continue
		}
		if err := yaml.UnmarshalStrict([]byte(part), &role); err != nil {
			t.Fatal(err)
		}
		var permissions []string
		for _, p := range role.Spec.Permissions {
			permissions = append(permissions, string(p))
		}
		d.index.SetRole(role.Name, permissions)
	}
	// What a job asks for its OIDC token.
	tokens := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "bearer the-runner's-own" || r.URL.Query().Get("api-version") != "2.0" {
			http.Error(w, "{}", http.StatusForbidden)
			return
		}
		claims := githubClaims(map[string]any{"aud": r.URL.Query().Get("audience"), "environment": "staging"})
		for name, value := range d.claims {
			claims[name] = value
		}
		_ = json.NewEncoder(w).Encode(map[string]string{"value": d.github.token(claims)})
	}))
	t.Cleanup(tokens.Close)
	d.runner.server(d.http)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: tokens.Certificate().Raw})
	d.runner.env["CURL_CA_BUNDLE"] = d.runner.write("github.crt", string(ca), 0o600)
	d.runner.env["ACTIONS_ID_TOKEN_REQUEST_URL"] = tokens.URL + "/token?api-version=2.0"
	d.runner.env["ACTIONS_ID_TOKEN_REQUEST_TOKEN"] = "the-runner's-own"
	return d
}

// withoutOIDC: the job has no permission to ask for a token.
var withoutOIDC = []string{"ACTIONS_ID_TOKEN_REQUEST_URL", "", "ACTIONS_ID_TOKEN_REQUEST_TOKEN", ""}

func (d *deployments) may(authorization, permission string) int {
	return d.ask("GET", "/forward-auth?permission="+permission, "", "Authorization", authorization).status
}

func TestAJobDeploysAndSaysSoWithoutAKey(t *testing.T) {
	d := newDeployments(t)
	event := []string{"MINTMARK_EVENT", "deploy.started", "MINTMARK_STATUS", "started", "MINTMARK_ENVIRONMENT", "staging", "MINTMARK_DETAIL", `{"attempt": "2"}`}
	got := d.runner.run("event", event...)
	if got.code != 0 || len(got.masked) != 2 || got.set["subject"] != "issuer:github-deployments:octo-org/octo-repo:staging" || got.set["expires-in"] == "0" {
		t.Fatalf("%+v", got)
	}
	header := d.runner.header(got)
	if statuses := []int{d.may(header, "staging:deploy"), d.may(header, "production:deploy")}; !slices.Equal(statuses, []int{200, 403}) {
		t.Errorf("it may: %v", statuses)
	}
	// Told again, by a step that is run again, it is the same event.
	if again := d.runner.run("event", event...); again.code != 0 {
		t.Errorf("%+v", again)
	}
	d.claims = map[string]any{"environment": "production"}
	got = d.runner.run("event", "MINTMARK_EVENT", "deploy.finished", "MINTMARK_STATUS", "failure", "MINTMARK_ENVIRONMENT", "production")
	if header := d.runner.header(got); d.may(header, "production:deploy") != 200 || d.may(header, "staging:deploy") != 403 {
		t.Errorf("%+v", got)
	}
	events, _ := d.trail.all()
	var kept []string
	for _, e := range events {
		if e.Type == audit.TypeCICD {
			kept = append(kept, fmt.Sprint(e.Reason, " ", e.Outcome, " ", e.Subject, " ", e.Detail))
		}
	}
	common := "pipeline:deploy ref:refs/heads/main repository:octo-org/octo-repo status:"
	if diff := cmp.Diff([]string{
		"deploy.started done issuer:github-deployments:octo-org/octo-repo:staging map[commit:6dcb09b5b57875f334f61aebed695e2e4193db5e detail.attempt:2 environment:staging " +
			common + "started url:https://github.com/octo-org/octo-repo/actions/runs/9301230123]",
		"deploy.finished failed issuer:github-deployments:octo-org/octo-repo:production map[commit:6dcb09b5b57875f334f61aebed695e2e4193db5e environment:production " +
			common + "failure url:https://github.com/octo-org/octo-repo/actions/runs/9301230123]",
	}, kept); diff != "" {
		t.Error(diff)
	}
}

func TestAJobThatIsNotTrustedIsToldSo(t *testing.T) {
	d := newDeployments(t)
	for name, c := range map[string]struct {
		claims map[string]any
		env    []string
		code   int
		told   string
	}{
		"of another repository":      {map[string]any{"repository_id": "75"}, nil, 3, "no TrustedIssuer takes"},
		"of another branch":          {map[string]any{"ref": "refs/heads/evil"}, nil, 3, "no TrustedIssuer takes"},
		"of no environment":          {map[string]any{"environment": ""}, nil, 3, "no TrustedIssuer takes"},
		"for another audience":       {nil, []string{"MINTMARK_AUDIENCE", "https://other.example.com"}, 3, "no TrustedIssuer takes"},
		"that asks for more":         {nil, []string{"MINTMARK_SCOPE", "production:deploy"}, 5, "scope asks for more"},
		"that may not ask GitHub":    {nil, []string{"ACTIONS_ID_TOKEN_REQUEST_TOKEN", "another's"}, 6, "id-token: write"},
		"with nothing at all":        {nil, withoutOIDC, 2, "MINTMARK_KEY is empty"},
		"without a URL":              {nil, []string{"MINTMARK_URL", ""}, 2, "MINTMARK_URL is not an https URL"},
		"with a URL that is plain":   {nil, []string{"MINTMARK_URL", "http://mintmark.example.com"}, 2, "MINTMARK_URL is not an https URL"},
		"with a URL that is a trick": {nil, []string{"MINTMARK_URL", "https://x\" -o /tmp/x"}, 2, "MINTMARK_URL is not an https URL"},
		"with a detail that is none": {nil, []string{"MINTMARK_EVENT", "x", "MINTMARK_DETAIL", "{"}, 2, "MINTMARK_DETAIL is not a JSON object"},
		"with a status of its own":   {nil, []string{"MINTMARK_EVENT", "x", "MINTMARK_STATUS", "fine"}, 5, "answers 422"},
	} {
		t.Run(name, func(t *testing.T) {
			d.claims = c.claims
			got := d.runner.run("event", append([]string{"MINTMARK_EVENT", "deploy.started"}, c.env...)...)
			if got.code != c.code || !strings.Contains(got.output, c.told) || !strings.Contains(got.output, "::error title=Mintmark::") || got.set["header-file"] != "" {
				t.Errorf("exit %d, want %d: %s", got.code, c.code, got.output)
			}
		})
	}
}

func TestAJobWithAKeyExchangesItAtOnce(t *testing.T) {
	d := newDeployments(t)
	pipeline := d.mint("pipeline", func(rec *credential.Record) { rec.Permissions = []string{"staging:deploy", "audit_log"} })
	silent := d.mint("silent", func(rec *credential.Record) { rec.Permissions = []string{"staging:deploy"} })
	unknown, err := credential.Format{Kind: v1alpha1.KindAPIKey}.Mint(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	d.runner.env["MINTMARK_EVENT"] = "deploy.started"
	key := func(value string) []string { return append([]string{"MINTMARK_KEY", value}, withoutOIDC...) }
	got := d.runner.run("event", key(pipeline.value())...)
	if header := d.runner.header(got); got.code != 0 || strings.Contains(header, pipeline.value()) || d.may(header, "staging:deploy") != 200 {
		t.Errorf("%+v", got)
	}
	for name, c := range map[string]struct {
		value string
		code  int
		told  string
	}{
		"that nobody knows":      {unknown.Reveal(), 3, "answers 401"},
		"that may not":           {silent.value(), 4, "answers 403"},
		"that is mistyped":       {unknown.Reveal()[:57] + "!", 2, "wrong length or characters"},
		"that came with a break": {pipeline.value() + "\n", 2, "holds a space, a line end"},
	} {
		if got := d.runner.run("event", key(c.value)...); got.code != c.code || !strings.Contains(got.output, c.told) {
			t.Errorf("a key %s: exit %d, want %d: %s", name, got.code, c.code, got.output)
		}
	}
	// Where there is an OIDC token, the key is not looked at.
	if got := d.runner.run("login", "MINTMARK_KEY", "nonsense"); got.code != 0 || got.set["subject"] != "issuer:github-deployments:octo-org/octo-repo:staging" {
		t.Errorf("%+v", got)
	}
	// Elsewhere than on GitHub: GitLab's token stands in a variable.
	token := d.github.token(githubClaims(map[string]any{"aud": d.http.URL, "environment": "staging"}))
	env := append([]string{"MINTMARK_ID_TOKEN", token, "GITHUB_ACTIONS", "", "GITHUB_OUTPUT", "", "MINTMARK_EVENT", "x"}, withoutOIDC...)
	if got := d.runner.run("login", env...); got.code != 0 || !strings.Contains(got.output, "mintmark-header.") || len(got.masked) > 0 {
		t.Errorf("%+v", got)
	}
}

func TestTheFormOfAKeyIsCheckedAsTheServerChecksIt(t *testing.T) {
	r := newRunner(t)
	mint := func(f credential.Format) string {
		token, err := f.Mint(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return token.Reveal()
	}
	for _, good := range []string{
		mint(credential.Format{Kind: v1alpha1.KindAPIKey}), mint(credential.Format{Kind: v1alpha1.KindServiceToken}),
		mint(credential.Format{Kind: v1alpha1.KindServiceToken, Checksum: true}), mint(credential.Format{Kind: v1alpha1.KindServiceToken, Environment: "live", Checksum: true}),
	} {
		values := []string{good, good[:len(good)-1], good + "0", good + "\n", " " + good, strings.ToUpper(good)}
		for _, at := range []int{3, 12, len(good) / 2, len(good) - 1} {
			other := byte('a')
			if good[at] == other {
				other = 'b'
			}
			values = append(values, good[:at]+string(other)+good[at+1:])
		}
		for _, value := range values {
			parsed, err := credential.Parse(value)
			got := r.run("check", "MINTMARK_KEY", value)
			form := strings.Contains(got.output, "well formed")
			if ours := err == nil && !parsed.External(); form != ours || (got.code == 0) != (err == nil) && !strings.HasPrefix(value, "mk") {
				t.Errorf("%q: exit %d and well formed %t, and the server says %v, external %t: %s", value, got.code, form, err, err == nil && parsed.External(), got.output)
			}
		}
	}
	for value, code := range map[string]int{"": 2, "short": 2, strings.Repeat("x", 513): 2, "another-systems-token-0123456789": 0, "with space 0123456789012345": 2, "umläut-0123456789012345678": 2} {
		if got := r.run("check", "MINTMARK_KEY", value); got.code != code {
			t.Errorf("%q: exit %d, want %d: %s", value, got.code, code, got.output)
		}
	}
}

// flaky stands before a server, and answers in its place as long as it is told to.
type flaky struct {
	mu      sync.Mutex
	answers []func(w http.ResponseWriter, r *http.Request, forward http.Handler)
	path    string
	asked   int
	keys    []string
}

func (f *flaky) before(d *deployments) *httptest.Server {
	at, _ := url.Parse(d.http.URL)
	proxy := httputil.NewSingleHostReverseProxy(at)
	proxy.Transport = d.client.Transport
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		var answer func(http.ResponseWriter, *http.Request, http.Handler)
		if r.URL.Path == f.path {
			f.asked++
			f.keys = append(f.keys, r.Header.Get("Idempotency-Key"))
			if len(f.answers) > 0 {
				answer, f.answers = f.answers[0], f.answers[1:]
			}
		}
		f.mu.Unlock()
		if answer != nil {
			answer(w, r, proxy)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	d.t.Cleanup(server.Close)
	return server
}

func TestAServerThatIsBusyIsAskedAgain(t *testing.T) {
	refuse := func(status int, headers ...string) func(http.ResponseWriter, *http.Request, http.Handler) {
		return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			for i := 0; i+1 < len(headers); i += 2 {
				w.Header().Set(headers[i], headers[i+1])
			}
			w.WriteHeader(status)
			_, _ = io.WriteString(w, `{"detail":"busy\n::set-env name=PATH::evil"}`)
		}
	}
	lost := func(w http.ResponseWriter, r *http.Request, forward http.Handler) {
		forward.ServeHTTP(httptest.NewRecorder(), r) // done, and the answer is lost
		w.WriteHeader(http.StatusBadGateway)
	}
	for name, c := range map[string]struct {
		path    string
		answers []func(http.ResponseWriter, *http.Request, http.Handler)
		timeout string
		code    int
		asked   int
		least   time.Duration
	}{
		"when it says":                   {"/oauth2/token", []func(http.ResponseWriter, *http.Request, http.Handler){refuse(503, "Retry-After", "2")}, "60", 0, 2, 2 * time.Second},
		"when it says 429":               {"/api/v1/auth/me", []func(http.ResponseWriter, *http.Request, http.Handler){refuse(429, "Retry-After", "1")}, "60", 0, 2, time.Second},
		"when its answer was lost":       {"/api/v1/audit/cicd-event", []func(http.ResponseWriter, *http.Request, http.Handler){lost}, "60", 0, 2, 0},
		"not when it says tomorrow":      {"/oauth2/token", []func(http.ResponseWriter, *http.Request, http.Handler){refuse(503, "Retry-After", "86400")}, "5", 6, 1, 0},
		"not when it says never":         {"/oauth2/token", []func(http.ResponseWriter, *http.Request, http.Handler){refuse(503, "Retry-After", "99999999999999999999")}, "5", 6, 1, 0},
		"not when it refuses for good":   {"/oauth2/token", []func(http.ResponseWriter, *http.Request, http.Handler){refuse(500)}, "60", 6, 1, 0},
		"not after the time that it has": {"/oauth2/token", slices.Repeat([]func(http.ResponseWriter, *http.Request, http.Handler){refuse(503)}, 20), "3", 6, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDeployments(t)
			f := &flaky{path: c.path, answers: c.answers}
			audience := d.http.URL
			d.runner.server(f.before(d))
			got := d.runner.run("event", "MINTMARK_EVENT", "deploy.started", "MINTMARK_AUDIENCE", audience, "MINTMARK_TIMEOUT", c.timeout)
			if got.code != c.code || c.asked > 0 && f.asked != c.asked || got.took < c.least || got.took > 30*time.Second {
				t.Errorf("exit %d, want %d; asked %d times in %s:\n%s", got.code, c.code, f.asked, got.took, got.output)
			}
			for line := range strings.Lines(got.output) {
				if strings.HasPrefix(line, "::") && !strings.HasPrefix(line, "::error title=Mintmark::") {
					t.Errorf("the server has commanded the runner: %q", line)
				}
			}
			events, _ := d.trail.all()
			if n := len(slices.DeleteFunc(events, func(e audit.Event) bool { return e.Type != audit.TypeCICD })); n != map[bool]int{true: 1}[c.code == 0] {
				t.Errorf("%d events", n)
			}
			if c.path == "/api/v1/audit/cicd-event" && len(f.keys) == 2 && (f.keys[0] == "" || f.keys[0] != f.keys[1]) {
				t.Errorf("the keys of the attempts are %v", f.keys)
			}
		})
	}
}
