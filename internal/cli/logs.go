package cli

import (
	"context"
	"errors"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/audit"
)

const (
	pathEvents     = "/api/v1/audit/events"
	permissionRead = "mintmark:audit:read"
	// eventsPage is how many events are asked for at a time.
	eventsPage = 500
)

type logsOptions struct {
	*app
	server  serverFlags
	key     keySource
	types   []string
	outcome []string
	reason  string
	uid     string
	subject string
	request string
	client  string
	since   string
	until   string
	limit   int
	limited bool // --limit was given
	follow  bool
	late    time.Duration
	output  string
	color   string
}

var (
	eventTypes    = audit.Types()
	eventOutcomes = []audit.Outcome{audit.Allowed, audit.Denied, audit.Failed, audit.Done}
)

func (a *app) logsCommand() *cobra.Command {
	o := &logsOptions{app: a}
	c := &cobra.Command{
		Use:   "logs [KIND NAME | KIND/NAME] [flags]",
		Short: "Show the audit log, and follow it",
		Long: "Show the audit log that servers keep in a database: who used which credential, from where, for what, and what was done to\n" +
			"credentials. The latest events are shown, the oldest first; --follow goes on with those that come.\n\n" +
			"The key needs the permission " + permissionRead + ", and sees the events of its own namespace; an admin's sees all. It comes from\n" +
			"--key-file, $" + envKey + " or standard input, or straight from a credential's Secret (--from).",
		Example: `
			mintmark logs --key-file admin.key
			mintmark logs servicetoken ci-deploy -n payments --since 24h

			# Who is refused, as it happens
			mintmark logs -f --outcome denied

			# Who still uses the old value since the rotation
			mintmark logs servicetoken/ci-deploy --since 2h -o json | jq -r 'select(.credential.slot=="previous").client' | sort | uniq -c

			# One request, by the id the gateway logged
			mintmark logs --request-id 7f3c2a -o wide`,
		ValidArgsFunction: a.completeRefs,
		Args:              atMost(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.limited = cmd.Flags().Changed("limit")
			return o.run(cmd.Context(), args)
		},
	}
	o.server.add(c.Flags())
	o.key.add(c.Flags(), "key")
	f := c.Flags()
	f.StringSliceVar(&o.types, "type", nil, "Events of these types alone: "+joined(eventTypes)+".")
	f.StringSliceVar(&o.outcome, "outcome", nil, "Events with these outcomes alone: "+joined(eventOutcomes)+".")
	f.StringVar(&o.reason, "reason", "", "Events with this reason alone, such as Expired or Rotated.")
	f.StringVar(&o.uid, "id", "", "Events of the credential of this UID alone, also if it is deleted.")
	f.StringVar(&o.subject, "subject", "", "Events of this subject alone, such as servicetoken:payments:ci-deploy.")
	f.StringVar(&o.request, "request-id", "", "Events of the request of this id alone.")
	f.StringVar(&o.client, "client", "", "Events from this address or network alone, such as 203.0.113.0/24.")
	f.StringVar(&o.since, "since", "", "Events of this time and later: a length of time before now (90m, 7d), or RFC 3339. Shows all of them.")
	f.StringVar(&o.until, "until", "", "Events before this time, likewise.")
	f.IntVar(&o.limit, "limit", 100, "How many of the latest events to show; 0: all. Default with --since: all.")
	f.BoolVarP(&o.follow, "follow", "f", false, "Go on with the events that come.")
	f.DurationVar(&o.late, "late", 15*time.Second, "With --follow: how late an event may reach the database and still be shown.")
	f.StringVarP(&o.output, "output", "o", "table", "Output format: table, wide, or json (one event on each line).")
	f.StringVar(&o.color, "color", "auto", "Colours: auto (at a terminal, unless $NO_COLOR is set), always or never.")
	c.AddCommand(a.logsVerifyCommand())
	fixed(c, "type", eventTypes)
	fixed(c, "outcome", eventOutcomes)
	fixed(c, "output", []string{"table", "wide", "json"})
	fixed(c, "color", []string{"auto", "always", "never"})
	return c
}

// filter is the query that the flags describe. Times stay open.
func (o *logsOptions) filter(args []string) (url.Values, error) {
	q := url.Values{}
	set := func(name, value string) {
		if value != "" {
			q.Set(name, value)
		}
	}
	for _, t := range o.types {
		if !slices.Contains(eventTypes, audit.Type(t)) {
			// A server may be newer than this command.
			o.note("No type %q is known here: there are %s", t, joined(eventTypes))
		}
	}
	for _, outcome := range o.outcome {
		if !slices.Contains(eventOutcomes, audit.Outcome(outcome)) {
			return nil, usageError("--outcome %q is none: %s", outcome, joined(eventOutcomes))
		}
	}
	if err := checkUID(o.uid); err != nil {
		return nil, err
	}
	for flag, value := range map[string]string{"subject": o.subject, "reason": o.reason, "request-id": o.request} {
		if isValue(value) { // it would stand in a URL, which proxies log
			return nil, usageError("--%s %s is the value of a credential: say which one by its kind and name, or --id", flag, publicPart(value))
		}
	}
	set("type", strings.Join(o.types, ","))
	set("outcome", strings.Join(o.outcome, ","))
	set("reason", o.reason)
	set("uid", o.uid)
	set("subject", o.subject)
	set("request_id", o.request)
	set("namespace", *o.kube.Namespace)
	if o.client != "" {
		network, err := netip.ParsePrefix(o.client)
		if address, isAddress := netip.ParseAddr(o.client); err != nil && isAddress == nil {
			network, err = address.Prefix(address.BitLen())
		}
		if err != nil {
			return nil, usageError("--client %q is no address or network such as 203.0.113.0/24", o.client)
		}
		set("client", network.String())
	}
	if len(args) > 0 {
		if o.uid != "" || o.subject != "" {
			return nil, usageError("name the credential in one way: KIND NAME, --id or --subject")
		}
		subject, err := o.subjectOf(args)
		if err != nil {
			return nil, err
		}
		set("subject", subject)
		q.Del("namespace")
	}
	return q, nil
}

// subjectOf names a credential as the audit log does: it may be gone from the cluster.
func (o *logsOptions) subjectOf(args []string) (string, error) {
	namespace, _, err := o.kube.ToRawKubeConfigLoader().Namespace()
	if err != nil {
		return "", kubeconfigError(err)
	}
	r, err := oneRef(args, namespace)
	if err != nil {
		return "", err
	}
	return strings.ToLower(string(r.kind.name)) + ":" + r.namespace + ":" + r.name, nil
}

// moment reads a time, or a length of time before now.
func moment(flag, value string, now time.Time) (time.Time, error) {
	if value == "" {
		return time.Time{}, nil
	}
	if at, err := time.Parse(time.RFC3339, value); err == nil {
		return at.UTC(), nil
	}
	if day, err := time.Parse(time.DateOnly, value); err == nil {
		return day, nil
	}
	if length, ok, err := v1alpha1.Duration(value).Parse(); err == nil && ok {
		return now.Add(-length), nil
	}
	return time.Time{}, usageError("--%s %q: write a length of time such as 90m or 7d, or a time such as 2026-01-31T18:00:00Z", flag, value)
}

func (o *logsOptions) run(ctx context.Context, args []string) error {
	printer, err := o.printer()
	if err != nil {
		return err
	}
	filter, err := o.filter(args)
	if err != nil {
		return err
	}
	now := time.Now()
	since, errSince := moment("since", o.since, now)
	until, errUntil := moment("until", o.until, now)
	if err := errors.Join(errSince, errUntil); err != nil {
		return err
	}
	switch {
	case o.limit < 0:
		return usageError("--limit %d: 0 is all of them", o.limit)
	case !since.IsZero() && !until.IsZero() && !since.Before(until):
		return usageError("--since %s is not before --until %s", since.Format(time.RFC3339), until.Format(time.RFC3339))
	case o.follow && !until.IsZero():
		return usageError("--follow goes on without an end: leave --until out")
	case o.late < 0 || o.late > time.Hour:
		return usageError("--late %s: at most 1h", o.late)
	}
	r, err := o.reader(ctx, &o.server, &o.key)
	if err != nil {
		return err
	}
	if !until.IsZero() {
		filter.Set("until", until.UTC().Format(time.RFC3339Nano))
	}
	tail := &tail{reader: r, filter: filter, print: printer.event, note: o.note, late: o.late, idle: time.Second}
	limit := o.limit
	if !since.IsZero() && !o.limited {
		limit = 0
	}
	if err := tail.begin(ctx, since, limit); err != nil {
		return err
	}
	if o.follow {
		return tail.follow(ctx)
	}
	if tail.shown == 0 {
		o.note("No such events.")
	}
	return nil
}
