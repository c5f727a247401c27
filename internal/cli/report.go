package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authz"
)

// Findings of a report.
const (
	findingExpired     = "expired"
	findingExpiresSoon = "expires-soon"
	findingNoEnd       = "no-end"
	findingNeverUsed   = "never-used"
	findingUnused      = "unused"
	findingSuperseded  = "superseded-in-use"
	findingNoRotation  = "no-rotation"
	findingWide        = "wide-permissions"
	findingAdmin       = "admin"
	findingNotReady    = "not-ready"
	findingNoOwner     = "no-owner"
)

// findings there are, the gravest first.
var findings = []string{
	findingSuperseded, findingExpiresSoon, findingExpired, findingNotReady, findingAdmin, findingWide, findingNoRotation, findingNoEnd,
	findingUnused, findingNeverUsed, findingNoOwner,
}

// States of a credential in a report.
const (
	stateActive   = "Active"
	statePending  = "Pending" // nothing is accepted yet
	stateExpired  = "Expired"
	stateRevoked  = "Revoked"
	stateDeleting = "Deleting"
	stateEnded    = "Ended"
)

var states = []string{stateActive, statePending, stateExpired, stateRevoked, stateEnded, stateDeleting}

type reportOptions struct {
	*app
	scope
	server       serverFlags
	key          keySource
	output       string
	expiring     string
	unused       string
	days         int
	analytics    string
	onlyFindings bool
	failOn       []string
}

func (a *app) reportCommand() *cobra.Command {
	o := &reportOptions{app: a}
	c := &cobra.Command{
		Use:   "report [flags]",
		Short: "Report on every credential: who, what, how long, and what is amiss",
		Long: "Report on every credential: state, class, owner, expiry, next rotation, last use, versions, and what is amiss. Counts come\n" +
			"first (with csv, on standard error), then a line for each, ordered by namespace, name and kind.\n\n" +
			"It is made from the Kubernetes API. Where --url and a key are given and the server keeps an audit log, requests and the\n" +
			"exact last use come from there. No value is in it, and none can be.\n\n" +
			"Findings: " + strings.Join(findings, ", ") + ".",
		Example: `
			mintmark report -A > credentials.md
			mintmark report -A -o csv > credentials.csv

			# What is amiss in one team, by jq
			mintmark report -A -l team=payments -o json --only-findings | jq '.credentials[].name'

			# In a pipeline: fail where a credential was never used, or an old value is still in use
			mintmark report -A --fail-on superseded-in-use,never-used --unused 60d > report.md

			# With requests and last use as the audit log has them
			mintmark report -A --key-file admin.key --days 90 > report.md`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context()) },
	}
	f := c.Flags()
	o.server.add(f)
	o.key.add(f, "key for the audit log")
	f.StringVarP(&o.output, "output", "o", "markdown", "Output format: markdown, csv or json.")
	o.scope.add(f)
	f.StringVar(&o.expiring, "expiring", "30d", "What ends within this time, and nothing renews, expires soon.")
	f.StringVar(&o.unused, "unused", "30d", "What was not used for so long is unused.")
	f.IntVar(&o.days, "days", 30, "Days of requests to ask the server for.")
	f.StringVar(&o.analytics, "analytics", "auto", "Ask the server: auto (where --url and a key are given), always or never.")
	f.BoolVar(&o.onlyFindings, "only-findings", false, "Leave out what nothing is amiss with.")
	f.StringSliceVar(&o.failOn, "fail-on", nil, "Exit with 1 where there is one of these findings, or any.")
	fixed(c, "output", []string{"markdown", "csv", "json"})
	fixed(c, "analytics", []string{"auto", "always", "never"})
	fixed(c, "fail-on", append([]string{"any"}, findings...))
	return c
}

// report is what there is to tell.
type report struct {
	Generated  time.Time       `json:"generated"`
	Namespace  string          `json:"namespace,omitempty"` // empty: all
	Selector   string          `json:"selector,omitempty"`
	Counts     reportCounts    `json:"counts"`
	Requests   *reportRequests `json:"requests,omitempty"`
	Lines      []*reportLine   `json:"credentials"`
	thresholds reportThresholds
}

type reportThresholds struct{ expiring, unused time.Duration }

type reportCounts struct {
	Total    int            `json:"total"`
	Kinds    map[string]int `json:"kinds"`
	States   map[string]int `json:"states"`
	Findings map[string]int `json:"findings"`
}

// reportRequests are those of every credential the key may see.
type reportRequests struct {
	Days        int      `json:"days"`
	Allowed     int64    `json:"allowed"`
	Denied      int64    `json:"denied"`
	SuccessRate *float64 `json:"success_rate,omitempty"`
}

// requestsLabel says whose they are: the server knows nothing of --selector.
const requestsLabel = "Requests (of all that the key may see)"

// String tells it in words.
func (r *reportRequests) String() string {
	text := fmt.Sprintf("%d allowed, %d denied in %d days", r.Allowed, r.Denied, r.Days)
	if r.SuccessRate != nil {
		text += " (" + percent(*r.SuccessRate) + " allowed)"
	}
	return text
}

// reportLine is one credential.
type reportLine struct {
	Namespace    string        `json:"namespace"`
	Name         string        `json:"name"`
	Kind         v1alpha1.Kind `json:"kind"`
	ID           string        `json:"id"`
	State        string        `json:"state"`
	Reason       string        `json:"reason,omitempty"` // of Ready
	Class        string        `json:"class"`
	Owner        string        `json:"owner,omitempty"`
	Description  string        `json:"description,omitempty"`
	Admin        bool          `json:"admin"`
	Permissions  []string      `json:"permissions,omitempty"`
	Roles        []string      `json:"roles,omitempty"`
	External     bool          `json:"external"`
	Created      time.Time     `json:"created"`
	Expires      string        `json:"expires,omitempty"` // RFC 3339, or Never
	NextRotation string        `json:"next_rotation,omitempty"`
	// LastUsed is a day, or a time where the server was asked.
	LastUsed string `json:"last_used,omitempty"`
	// Allowed and Denied requests; nil where they are not known.
	Allowed  *int64          `json:"allowed,omitempty"`
	Denied   *int64          `json:"denied,omitempty"`
	Versions []reportVersion `json:"versions,omitempty"`
	Findings []reportFinding `json:"findings,omitempty"`
}

type reportVersion struct {
	Version int64                 `json:"version"`
	State   v1alpha1.VersionState `json:"state"`
	Prefix  string                `json:"prefix,omitempty"`
}

// reportFinding is something amiss.
type reportFinding struct {
	Code   string `json:"code"`
	Detail string `json:"detail"`
}

func (o *reportOptions) check() error {
	switch o.output {
	case "markdown", "csv", "json":
	default:
		return usageError("unknown output format %q: markdown, csv or json", o.output)
	}
	switch o.analytics {
	case "auto", "always", "never":
	default:
		return usageError("--analytics %q: auto, always or never", o.analytics)
	}
	if err := o.scope.check(); err != nil {
		return err
	}
	for _, code := range o.failOn {
		if code != "any" && !slices.Contains(findings, code) {
			return usageError("--fail-on %q is no finding: %s, or any", code, strings.Join(findings, ", "))
		}
	}
	_, errExpiring := parseDuration("expiring", o.expiring, false)
	_, errUnused := parseDuration("unused", o.unused, false)
	if o.days < 1 || o.days > maxDays {
		return usageError("--days %d: from 1 to %d", o.days, maxDays)
	}
	return errors.Join(errExpiring, errUnused)
}

func (o *reportOptions) run(ctx context.Context) error {
	if err := o.check(); err != nil {
		return err
	}
	c, err := o.cluster()
	if err != nil {
		return err
	}
	q := o.query(c)
	all, err := c.credentials(ctx, q)
	if err != nil {
		return err
	}
	roles, err := o.roles(ctx, c)
	if err != nil {
		return err
	}
	now, _ := c.clock.now()
	r := &report{
		Generated: now, Namespace: q.namespace, Selector: o.selector,
		thresholds: reportThresholds{v1alpha1.Duration(o.expiring).Or(0), v1alpha1.Duration(o.unused).Or(0)},
	}
	known, err := o.usage(ctx)
	if err != nil {
		return err
	}
	r.fill(all, roles, known, o.days)
	if o.onlyFindings {
		r.Lines = slices.DeleteFunc(r.Lines, func(l *reportLine) bool { return len(l.Findings) == 0 })
	}
	if err := r.write(o.Out, o.output); err != nil {
		return err
	}
	if o.output == "csv" {
		r.writeCounts(o.ErrOut)
	}
	return o.verdict(r)
}

// verdict is the exit code that --fail-on asks for.
func (o *reportOptions) verdict(r *report) error {
	var there []string
	for _, code := range findings {
		if n := r.Counts.Findings[code]; n > 0 && (slices.Contains(o.failOn, code) || slices.Contains(o.failOn, "any")) {
			there = append(there, fmt.Sprintf("%s (%d)", code, n))
		}
	}
	if len(there) > 0 {
		return fmt.Errorf("found: %s", strings.Join(there, ", "))
	}
	return nil
}

// roles by name, to know what they let a credential do; nil where the account may not
// read them.
func (o *reportOptions) roles(ctx context.Context, c *cluster) (map[string][]string, error) {
	var list v1alpha1.AccessRoleList
	if err := c.List(ctx, &list); isRBAC(err) {
		o.note("Your account may not read AccessRoles: wide permissions that come from a role are not found.")
		return nil, nil
	} else if err != nil {
		return nil, explain(err, "listing", "AccessRoles")
	}
	roles := make(map[string][]string, len(list.Items))
	for _, role := range list.Items {
		roles[role.Name] = authz.Strings(role.Spec.Permissions)
	}
	return roles, nil
}

// usage asks the server, where it is to be asked. Where that was left open, an
// unreachable server costs the report its requests alone.
func (o *reportOptions) usage(ctx context.Context) (*analytics, error) {
	url := cmp.Or(o.server.url, o.getenv(envURL))
	given := o.key.file != "" || o.key.from != "" || o.getenv(envKey) != ""
	if o.analytics == "never" || o.analytics == "auto" && (url == "" || !given) {
		return nil, nil
	}
	got, err := o.askUsage(ctx)
	if err != nil && o.analytics == "auto" && ctx.Err() == nil {
		o.note("Without requests, for the server does not tell: %s", err)
		return nil, nil
	}
	return got, err
}

func (o *reportOptions) askUsage(ctx context.Context) (*analytics, error) {
	r, err := o.reader(ctx, &o.server, &o.key)
	if err != nil {
		return nil, err
	}
	return r.analytics(ctx, analyticsQuery{days: o.days, top: 100, idleDays: 1})
}

func (r *report) write(out io.Writer, format string) error {
	switch format {
	case "csv":
		return r.writeCSV(out)
	case "json":
		return writeJSON(out, r)
	}
	return r.writeMarkdown(terminal{out})
}

// counted gives "3 Active, 1 Revoked" in a fixed order.
func counted(counts map[string]int, order []string) string {
	var parts []string
	for _, name := range order {
		if counts[name] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", counts[name], name))
		}
	}
	return list(parts)
}

func (r *report) writeCounts(out io.Writer) {
	fmt.Fprintf(out, "Credentials: %d (%s)\n", r.Counts.Total, counted(r.Counts.Kinds, slices.Sorted(maps.Keys(r.Counts.Kinds))))
	fmt.Fprintf(out, "States: %s\n", counted(r.Counts.States, states))
	fmt.Fprintf(out, "Findings: %s\n", counted(r.Counts.Findings, findings))
	if r.Requests != nil {
		fmt.Fprintf(out, "%s: %s\n", requestsLabel, r.Requests)
	}
}
