package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

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
		Args:              cobra.MaximumNArgs(2),
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
	if !o.follow {
		return nil
	}
	return tail.follow(ctx)
}

// logEvent is an event with the JSON it came in.
type logEvent struct {
	audit.Event
	raw json.RawMessage
}

// UnmarshalJSON implements json.Unmarshaler.
func (e *logEvent) UnmarshalJSON(data []byte) error {
	e.raw = bytes.Clone(data)
	return json.Unmarshal(data, &e.Event)
}

// eventPage is the answer of GET /api/v1/audit/events.
type eventPage struct {
	Items []logEvent `json:"items"`
	Next  string     `json:"next"`
}

// events reads events, a page at a time, until there are no more or each says stop.
func (r *reader) events(ctx context.Context, filter url.Values, oldestFirst bool, most int, each func(logEvent) error) error {
	q := url.Values{}
	for name, values := range filter {
		q[name] = values
	}
	q.Set("order", "desc")
	if oldestFirst {
		q.Set("order", "asc")
	}
	for read := 0; ; {
		size := eventsPage
		if most > 0 {
			size = min(size, most-read)
		}
		q.Set("limit", strconv.Itoa(size))
		var page eventPage
		if err := r.get(ctx, pathEvents, q, permissionRead, &page); err != nil {
			return err
		}
		for _, e := range page.Items {
			if err := each(e); err != nil {
				return err
			}
		}
		read += len(page.Items)
		if page.Next == "" || most > 0 && read >= most {
			return nil
		}
		q.Set("cursor", page.Next)
	}
}

// tail shows events in the order of time, and goes on with those that come. Servers store
// theirs a moment after they happened, and not all at the same pace: so each look begins a
// little before the last, and what was shown is remembered.
type tail struct {
	reader *reader
	filter url.Values
	print  func(logEvent) error
	note   func(format string, args ...any)
	late   time.Duration
	// idle is the shortest pause between two looks.
	idle time.Duration

	from time.Time // nothing before is of interest
	last time.Time // the server's time at the last look
	seen map[audit.ID]time.Time
	// shown counts events.
	shown int
}

// begin shows what there is: the latest, or all since a time.
func (t *tail) begin(ctx context.Context, since time.Time, limit int) error {
	t.seen, t.from = map[audit.ID]time.Time{}, since
	if !since.IsZero() {
		t.filter.Set("since", since.UTC().Format(time.RFC3339Nano))
	}
	if limit == 0 {
		if err := t.reader.events(ctx, t.filter, true, 0, t.show); err != nil {
			return err
		}
	} else {
		var latest []logEvent
		if err := t.reader.events(ctx, t.filter, false, limit, func(e logEvent) error {
			if len(latest) == 0 {
				t.last = t.now() // what comes while older pages are read comes after this
			}
			latest = append(latest, e)
			return nil
		}); err != nil {
			return err
		}
		slices.Reverse(latest)
		for _, e := range latest {
			if err := t.show(e); err != nil {
				return err
			}
		}
		if len(latest) == limit { // there are others before them, which were not asked for
			t.from = latest[0].At
		}
	}
	if t.last.IsZero() {
		t.last = t.now()
	}
	return nil
}

// now is the server's time.
func (t *tail) now() time.Time {
	now, _ := t.reader.server.clock.now()
	return now
}

// show prints an event unless it was printed already. What no look will read again is not
// remembered.
func (t *tail) show(e logEvent) error {
	if _, known := t.seen[e.ID]; known {
		return nil
	}
	if t.shown++; e.At.After(t.now().Add(-t.late - forgetAfter)) {
		t.seen[e.ID] = e.At
	}
	return t.print(e)
}

// forgetAfter is how much longer events are remembered than they may come again.
const forgetAfter = time.Minute

// Pauses between two looks.
const (
	longestIdle    = 5 * time.Second
	longestBackOff = 30 * time.Second
)

// follow looks again and again until the context ends. What fails for a moment is told
// and tried again, and costs no event.
func (t *tail) follow(ctx context.Context) error {
	wait, told := t.idle, ""
	for {
		select {
		case <-ctx.Done():
			return &exitError{code: exitInterrupted}
		case <-time.After(wait):
		}
		before := t.shown
		err := t.look(ctx)
		switch {
		case ctx.Err() != nil:
			return &exitError{code: exitInterrupted}
		case err != nil && !passes(err):
			return err
		case err != nil:
			if err.Error() != told {
				told = err.Error()
				t.note("%s; trying again", told)
			}
			wait = min(max(2*wait, t.idle), longestBackOff)
			var refused *refusedError
			if errors.As(err, &refused) {
				wait = min(max(wait, refused.retryAfter), 10*longestBackOff)
			}
		case t.shown > before:
			wait, told = t.idle, ""
		default:
			wait, told = min(wait+t.idle/2, max(longestIdle, t.idle)), ""
		}
	}
}

// look reads what has come since the last look, and what may have come late before it.
func (t *tail) look(ctx context.Context) error {
	since := t.last.Add(-t.late)
	if since.Before(t.from) {
		since = t.from
	}
	t.filter.Set("since", since.UTC().Format(time.RFC3339Nano))
	var began time.Time // of the first page: the others are read later, and have more
	if err := t.reader.events(ctx, t.filter, true, 0, func(e logEvent) error {
		if began.IsZero() {
			began = t.now()
		}
		return t.show(e)
	}); err != nil {
		return err
	}
	if t.last = began; began.IsZero() {
		t.last = t.now()
	}
	for id, at := range t.seen {
		if at.Before(t.last.Add(-t.late - forgetAfter)) {
			delete(t.seen, id)
		}
	}
	return nil
}

// eventPrinter writes events.
type eventPrinter struct {
	*app
	output  string
	colours bool
	headed  bool
}

func (o *logsOptions) printer() (*eventPrinter, error) {
	switch o.output {
	case "table", "wide", "json":
	default:
		return nil, usageError("unknown output format %q: table, wide or json", o.output)
	}
	colours, err := o.colours(o.color)
	return &eventPrinter{app: o.app, output: o.output, colours: colours}, err
}

// field of a line, as wide as it usually is: what is followed cannot be aligned to what
// comes later.
type eventField struct {
	name  string
	width int
	wide  bool
	text  func(*audit.Event) string
}

var eventFields = []eventField{
	{"TIME", 24, false, func(e *audit.Event) string { return e.At.UTC().Format("2006-01-02T15:04:05.000Z07:00") }},
	{"OUTCOME", 7, false, func(e *audit.Event) string { return string(e.Outcome) }},
	{"TYPE", 16, false, func(e *audit.Event) string { return string(e.Type) }},
	{"REASON", 14, false, func(e *audit.Event) string { return e.Reason }},
	{"SUBJECT", 36, false, subjectInWords},
	{"CLIENT", 15, false, clientInWords},
	{"VERSION", 7, true, func(e *audit.Event) string {
		if e.Version == 0 {
			return ""
		}
		return strconv.FormatInt(e.Version, 10)
	}},
	{"SLOT", 8, true, func(e *audit.Event) string { return string(e.Slot) }},
	{"PREFIX", 16, true, func(e *audit.Event) string { return e.Prefix }},
	{"ACTOR", 20, true, func(e *audit.Event) string { return string(e.Actor) }},
	{"TOOK", 8, true, func(e *audit.Event) string {
		if e.Took == 0 {
			return ""
		}
		return e.Took.String()
	}},
	{"SERVER", 18, true, func(e *audit.Event) string { return e.Server }},
	{"REQUEST", 20, true, func(e *audit.Event) string { return string(e.RequestID) }},
	{"AGENT", 20, true, func(e *audit.Event) string { return string(e.UserAgent) }},
	{"ENDPOINT", 0, false, func(e *audit.Event) string { return strings.TrimSpace(e.Method + " " + string(e.Endpoint)) }},
	{"DETAIL", 0, true, func(e *audit.Event) string { return keyValues(e.Detail) }},
}

func subjectInWords(e *audit.Event) string {
	if e.Subject == "" && e.Name != "" {
		return strings.TrimPrefix(e.Namespace+"/"+e.Name, "/")
	}
	return cmp.Or(e.Subject, string(e.Actor))
}

func clientInWords(e *audit.Event) string {
	if !e.Client.IsValid() {
		return ""
	}
	return e.Client.String()
}

var outcomeColours = map[audit.Outcome]string{
	audit.Allowed: "\x1b[32m", audit.Denied: "\x1b[31m", audit.Failed: "\x1b[33m", audit.Done: "\x1b[36m",
}

const colourEnd = "\x1b[0m"

// event writes one. Whatever is in it, it is one line that commands no terminal.
func (p *eventPrinter) event(e logEvent) error {
	if p.output == "json" {
		var line bytes.Buffer
		if err := json.Compact(&line, e.raw); err != nil {
			return err
		}
		_, err := fmt.Fprintf(p.Out, "%s\n", safeJSON(line.Bytes()))
		return err
	}
	if !p.headed {
		p.headed = true
		if err := p.line(func(f eventField) (string, string) { return f.name, "" }); err != nil {
			return err
		}
	}
	return p.line(func(f eventField) (text, colour string) {
		if f.name == "OUTCOME" && p.colours {
			colour = outcomeColours[e.Outcome]
		}
		return cmp.Or(oneLine(visible(f.text(&e.Event))), "-"), colour
	})
}

func (p *eventPrinter) line(cell func(eventField) (text, colour string)) error {
	var b strings.Builder
	for _, f := range eventFields {
		if f.wide && p.output != "wide" {
			continue
		}
		text, colour := cell(f)
		pad := strings.Repeat(" ", max(f.width-utf8.RuneCountInString(text), 0))
		if colour != "" {
			text = colour + text + colourEnd
		}
		b.WriteString(text + pad + "  ")
	}
	_, err := fmt.Fprintln(p.Out, strings.TrimRight(b.String(), " "))
	return err
}

// safeJSON escapes within JSON what commands a terminal or hides in it: it stays the same
// JSON.
func safeJSON(data []byte) []byte {
	if !slices.ContainsFunc(data, func(b byte) bool { return b < ' ' && b != '\n' || b > '~' }) {
		return data
	}
	out := make([]byte, 0, len(data)+len(data)/8)
	for _, r := range string(data) {
		switch {
		case unicode.IsPrint(r) || r == '\n':
			out = utf8.AppendRune(out, r)
		case r > 0xffff:
			r -= 0x10000
			out = fmt.Appendf(out, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
	}
	return out
}
