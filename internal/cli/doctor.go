package cli

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// state of a finding.
type state string

const (
	sound   state = "ok"
	warning state = "warning"
	failed  state = "failed"
)

var marks = map[state]string{sound: "✓", warning: "!", failed: "✗"}

// finding is one thing doctor looked at, and what to do about it.
type finding struct {
	Check   string `json:"check"`
	State   state  `json:"state"`
	Message string `json:"message"`
	Remedy  string `json:"remedy,omitempty"`
}

// diagnosis is what doctor prints.
type diagnosis struct {
	Sound    bool      `json:"sound"`
	Findings []finding `json:"findings"`
}

type doctorOptions struct {
	*app
	server          serverFlags
	systemNamespace string
	database        string // URL
	output          string
}

func (a *app) doctorCommand() *cobra.Command {
	o := &doctorOptions{app: a}
	c := &cobra.Command{
		Use:   "doctor [flags]",
		Short: "Check an installation, and say what is wrong and what to do",
		Long: "Check an installation from end to end, and say what is wrong and what to do about it.\n\n" +
			"Nothing is changed: admission is tried by a dry run in the current namespace. What your account may not read is\n" +
			"reported as such. Exit code: 0 where nothing failed (warnings may remain), 1 otherwise.",
		Example: `
			mintmark doctor
			mintmark doctor --url https://mintmark.example.com
			mintmark doctor -o json | jq '.findings[] | select(.state != "ok")'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context()) },
	}
	o.server.add(c.Flags())
	c.Flags().StringVar(&o.systemNamespace, "system-namespace", DefaultNamespace, "Namespace Mintmark is installed in.")
	c.Flags().StringVar(&o.database, "database-url", "", "Check this PostgreSQL too, with the account in the URL: that of the servers ($"+envDatabaseURL+").")
	c.Flags().StringVarP(&o.output, "output", "o", "", "Output format: json or yaml.")
	return c
}

// examination is a run of doctor.
type examination struct {
	*cluster
	options  *doctorOptions
	system   string // namespace of the installation
	check    string // the one running
	findings []finding
	now      time.Time // the API server's
	report   func(finding)
}

func (e *examination) add(s state, message, remedy string) {
	f := finding{Check: e.check, State: s, Message: message, Remedy: remedy}
	e.findings = append(e.findings, f)
	e.report(f)
}

func (e *examination) ok(format string, args ...any) { e.add(sound, fmt.Sprintf(format, args...), "") }

// warn and fail take the message first and the remedy second.
func (e *examination) warn(message, remedy string) { e.add(warning, message, remedy) }
func (e *examination) fail(message, remedy string) { e.add(failed, message, remedy) }

// unread reports that something could not be read: not being allowed to is no
// fault of the installation.
func (e *examination) unread(err error, what, remedy string) {
	switch {
	case isRBAC(err):
		e.warn("cannot tell: your account may not read "+what, "run doctor as somebody who may, such as a cluster administrator")
	case apierrors.IsNotFound(err):
		e.fail(what+" does not exist", remedy)
	default:
		e.fail(fmt.Sprintf("%s cannot be read: %v", what, err), "see whether the API server is well: kubectl get --raw /readyz?verbose")
	}
}

// checks in the order of what rests on what. One that returns false ends the
// examination: nothing after it could be told.
var checks = []struct {
	name string
	run  func(*examination, context.Context) (goOn bool)
}{
	{"API server", (*examination).apiServer},
	{"clock", (*examination).clocks},
	{"resources", (*examination).resources},
	{"namespace", (*examination).installed},
	{"controller", (*examination).controller},
	{"heartbeat", (*examination).heartbeat},
	{"webhooks", (*examination).webhooks},
	{"admission", (*examination).admission},
	{"policies", (*examination).policies},
	{"classes", (*examination).classes},
	{"keys", (*examination).keys},
	{"servers", (*examination).servers},
	{"public port", (*examination).public},
	{"database", (*examination).database},
	{"credentials", (*examination).credentials},
}

func (o *doctorOptions) run(ctx context.Context) error {
	if err := plainFormat(o.output); err != nil {
		return err
	}
	c, err := o.cluster()
	if err != nil {
		return err
	}
	e := &examination{cluster: c, options: o, system: o.systemNamespace, report: o.print}
	if o.output != "" {
		e.report = func(finding) {}
	}
	for _, check := range checks {
		e.check = check.name
		goOn := check.run(e, ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !goOn {
			break
		}
	}
	return o.conclude(e)
}

func (o *doctorOptions) print(f finding) {
	fmt.Fprintf(o.Out, "%s %-12s %s\n", marks[f.State], f.Check, oneLine(printable(strings.ReplaceAll(f.Message, "\n", "; "))))
	if f.Remedy != "" {
		fmt.Fprintf(o.Out, "  %-12s → %s\n", "", f.Remedy)
	}
}

func (o *doctorOptions) conclude(e *examination) error {
	count := map[state]int{}
	for _, f := range e.findings {
		count[f.State]++
	}
	if o.output != "" {
		if err := o.printPlain(diagnosis{Sound: count[failed] == 0, Findings: e.findings}, o.output); err != nil {
			return err
		}
	} else {
		fmt.Fprintln(o.Out)
		switch {
		case count[failed] > 0:
			fmt.Fprintf(o.Out, "Not sound: %d failed, %d warnings.\n", count[failed], count[warning])
		case count[warning] > 0:
			fmt.Fprintf(o.Out, "Sound, as far as could be told, with %d warnings.\n", count[warning])
		default:
			fmt.Fprintln(o.Out, "Sound.")
		}
	}
	if count[failed] > 0 {
		return &exitError{code: 1}
	}
	return nil
}

// public asks the public port, by the URL given or through the API server.
func (e *examination) public(ctx context.Context) bool {
	if e.options.server.url == "" && e.options.getenv(envURL) == "" {
		e.proxied(ctx)
		return true
	}
	s, err := e.options.connect(&e.options.server)
	if err != nil {
		e.fail(err.Error(), "see 'mintmark doctor --help' for --url, --cacert and --url-server-name")
		return true
	}
	health, err := s.call(ctx, http.MethodGet, "/api/v1/auth/health", nil, "", nil)
	if err != nil {
		e.fail(err.Error(), "kubectl get pods,endpointslices -n "+e.system+" -l app.kubernetes.io/component=server")
		return true
	}
	if health.status != http.StatusOK {
		e.fail(fmt.Sprintf("%s is up but not ready: %s", s.base, health.reason()),
			"its /readyz?verbose says why: kubectl logs -n "+e.system+" -l app.kubernetes.io/component=server")
		return true
	}
	keys, err := s.call(ctx, http.MethodGet, "/.well-known/jwks.json", nil, "", nil)
	if err != nil {
		e.fail(err.Error(), "try again")
		return true
	}
	e.judgeKeys(s.base.String(), keys.status, keys.body)
	return true
}

// proxied asks through the API server's proxy, where no URL was given.
func (e *examination) proxied(ctx context.Context) {
	const remedy = "give its URL: --url https://... (see 'mintmark token' without --url for a port-forward)"
	raw, err := e.raw()
	if err != nil {
		e.warn("not asked: "+err.Error(), remedy)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, e.options.server.timeout)
	defer cancel()
	get := func(path string) (int, []byte, error) {
		var status int
		result := raw.Get().AbsPath("/api/v1/namespaces/" + e.system + "/services/https:mintmark-server:443/proxy" + path).Do(ctx)
		result.StatusCode(&status)
		if err := result.Error(); err != nil {
			return status, nil, err
		}
		body, err := result.Raw()
		return status, body, err
	}
	if _, _, err := get("/api/v1/auth/health"); err != nil {
		e.warn("not asked: no URL was given, and it cannot be reached through the API server: "+err.Error(), remedy)
		return
	}
	status, body, err := get("/.well-known/jwks.json")
	if err != nil {
		body = []byte(err.Error())
	}
	e.judgeKeys("the server, asked through the API server,", status, body)
}

func (e *examination) judgeKeys(who string, status int, body []byte) {
	n, err := countKeys(status, body)
	if err != nil {
		e.fail(fmt.Sprintf("%s publishes no signing keys: %v", who, err),
			"the controller makes them in Secret mintmark-signing-keys: kubectl logs -n "+e.system+" deployment/mintmark-controller")
		return
	}
	keys := "1 signing key"
	if n > 1 {
		keys = fmt.Sprintf("%d signing keys", n)
	}
	e.ok("%s is ready and publishes %s", who, keys)
}

var errNoKeys = errors.New("the key set is empty")
