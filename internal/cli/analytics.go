package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"k8s.io/cli-runtime/pkg/printers"
)

const (
	pathAnalytics       = "/api/v1/analytics"
	permissionAnalytics = "mintmark:analytics:read"
)

// analytics is the answer of GET /api/v1/analytics, and of that for one credential.
type analytics struct {
	Since    time.Time        `json:"since"`
	Until    time.Time        `json:"until"`
	Totals   *analyticsTotals `json:"totals,omitempty"`
	Requests struct {
		Allowed     int64    `json:"allowed"`
		Denied      int64    `json:"denied"`
		SuccessRate *float64 `json:"success_rate,omitempty"`
	} `json:"requests"`
	Daily    []analyticsDay     `json:"daily"`
	Latency  *analyticsLatency  `json:"latency_us,omitempty"`
	Top      []analyticsTop     `json:"top,omitempty"`
	Idle     []analyticsIdle    `json:"idle,omitempty"`
	Versions []analyticsVersion `json:"versions,omitempty"`
}

// analyticsLatency is in microseconds.
type analyticsLatency struct {
	P50 int64 `json:"p50"`
	P90 int64 `json:"p90"`
	P99 int64 `json:"p99"`
}

type analyticsTotals struct {
	All      int64 `json:"all"`
	Active   int64 `json:"active"`
	Inactive int64 `json:"inactive"`
	Expired  int64 `json:"expired"`
	Revoked  int64 `json:"revoked"`
}

type analyticsDay struct {
	Day     string `json:"day"`
	Allowed int64  `json:"allowed"`
	Denied  int64  `json:"denied"`
}

type analyticsTop struct {
	UID       string `json:"uid"`
	Subject   string `json:"subject"`
	Namespace string `json:"namespace"`
	Allowed   int64  `json:"allowed"`
	Denied    int64  `json:"denied"`
}

type analyticsIdle struct {
	UID       string     `json:"uid"`
	Subject   string     `json:"subject"`
	Namespace string     `json:"namespace"`
	LastUsed  *time.Time `json:"last_used,omitempty"`
}

type analyticsVersion struct {
	Version    int64      `json:"version"`
	Prefix     string     `json:"prefix"`
	Uses       int64      `json:"uses"`
	Denied     int64      `json:"denied"`
	LastUsed   *time.Time `json:"last_used,omitempty"`
	LastClient string     `json:"last_client,omitempty"`
	LastSlot   string     `json:"last_slot,omitempty"`
}

// analyticsQuery says what to ask for.
type analyticsQuery struct {
	days, top, idleDays int
	uid                 string
}

func (r *reader) analytics(ctx context.Context, q analyticsQuery) (*analytics, error) {
	path, values := pathAnalytics, url.Values{"days": {strconv.Itoa(q.days)}}
	if q.uid != "" {
		path = "/api/v1/auth/tokens/" + url.PathEscape(q.uid) + "/analytics"
	} else {
		values.Set("top", strconv.Itoa(q.top))
		values.Set("idle_days", strconv.Itoa(q.idleDays))
	}
	got := new(analytics)
	return got, r.get(ctx, path, values, permissionAnalytics, got)
}

type analyticsOptions struct {
	*app
	server     serverFlags
	key        keySource
	days       int
	top        int
	idle       int
	id         string
	identifier string
	ascii      bool
	output     string
}

func (a *app) analyticsCommand() *cobra.Command {
	o := &analyticsOptions{app: a}
	c := &cobra.Command{
		Use:   "analytics [KIND NAME | KIND/NAME | --id UID | --identifier NAME-OR-PREFIX] [flags]",
		Short: "Show how much credentials are used, and which are not",
		Long: "Show from the audit log how many requests there were each day and how many were refused, how long answers took, which\n" +
			"credentials are used most, and which nobody uses; of one credential, how much each of its versions is used.\n\n" +
			"The key needs the permission " + permissionAnalytics + ", and counts its own namespace; an admin's counts all. Days are UTC's.\n" +
			"Latencies are upper bounds, at most twice the true value.",
		Example: `
			mintmark analytics --key-file admin.key --days 30

			# One credential: is the old value still used?
			mintmark analytics servicetoken ci-deploy -n payments
			mintmark analytics --identifier sk_live_0a1b

			# What nobody has used for 90 days, for a script
			mintmark analytics --idle-days 90 -o json | jq -r '.idle[].subject'`,
		Args:              atMost(2),
		ValidArgsFunction: a.completeRefs,
		RunE:              func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), args) },
	}
	o.server.add(c.Flags())
	o.key.add(c.Flags(), "key")
	f := c.Flags()
	f.IntVar(&o.days, "days", 30, "How many days, today among them.")
	f.IntVar(&o.top, "top", 10, "How many of the most used to name, at most 100.")
	f.IntVar(&o.idle, "idle-days", 30, "What was not used for so many days is idle.")
	f.StringVar(&o.id, "id", "", "The credential of this UID alone.")
	f.StringVar(&o.identifier, "identifier", "", "The credential of this name, or whose value has this public prefix, alone (looked up in the cluster).")
	f.BoolVar(&o.ascii, "ascii", false, "Draw with ASCII characters. Default: where the locale is not UTF-8.")
	f.StringVarP(&o.output, "output", "o", "", "Output format: json or yaml.")
	fixed(c, "output", []string{"json", "yaml"})
	return c
}

func (o *analyticsOptions) run(ctx context.Context, args []string) error {
	if err := plainFormat(o.output); err != nil {
		return err
	}
	switch {
	case o.days < 1 || o.days > maxDays:
		return usageError("--days %d: from 1 to %d", o.days, maxDays)
	case o.top < 1 || o.top > 100:
		return usageError("--top %d: from 1 to 100", o.top)
	case o.idle < 1 || o.idle > maxDays:
		return usageError("--idle-days %d: from 1 to %d", o.idle, maxDays)
	}
	uid, err := o.credential(ctx, args)
	if err != nil {
		return err
	}
	r, err := o.reader(ctx, &o.server, &o.key)
	if err != nil {
		return err
	}
	got, err := r.analytics(ctx, analyticsQuery{o.days, o.top, o.idle, uid})
	if err != nil {
		return err
	}
	if o.output != "" {
		return o.printPlain(got, o.output)
	}
	return got.draw(o.Out, o.canvas(), o.idle, uid != "")
}

// credential is the UID of the one that is asked about; empty where it is all of them.
func (o *analyticsOptions) credential(ctx context.Context, args []string) (string, error) {
	ways := slices.DeleteFunc([]bool{len(args) > 0, o.id != "", o.identifier != ""}, func(used bool) bool { return !used })
	switch {
	case len(ways) == 0:
		return "", nil
	case len(ways) > 1:
		return "", usageError("name the credential in one way: KIND NAME, --id or --identifier")
	case o.id != "":
		return o.id, checkUID(o.id) // it may be gone from the cluster
	}
	c, err := o.cluster()
	if err != nil {
		return "", err
	}
	if o.identifier != "" {
		s := selection{scope: scope{allNamespaces: !c.namespaceSet}, identifiers: []string{o.identifier}}
		found, err := s.resolve(ctx, c, nil)
		if err != nil {
			return "", err
		}
		return string(found[0].GetUID()), nil // it fits exactly one
	}
	r, err := oneRef(args, c.namespace)
	if err != nil {
		return "", err
	}
	credential, err := c.get(ctx, r)
	if err != nil {
		return "", err
	}
	return string(credential.GetUID()), nil
}

// canvas is what charts are drawn on.
type canvas struct {
	width int
	ascii bool
}

// Bounds of a chart's width.
const (
	defaultWidth = 80
	widest       = 160
)

func (o *analyticsOptions) canvas() canvas {
	c := canvas{width: defaultWidth, ascii: o.ascii || !utf8Locale(o.getenv)}
	if f := asTerminal(o.Out); f != nil {
		if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 0 {
			c.width = width
		}
	} else if columns, err := strconv.Atoi(o.getenv("COLUMNS")); err == nil && columns > 0 {
		c.width = columns
	}
	c.width = min(max(c.width, 40), widest)
	return c
}

// utf8Locale tells whether what is read from standard output expects UTF-8 (POSIX, Locale).
func utf8Locale(getenv func(string) string) bool {
	locale := cmp.Or(getenv("LC_ALL"), getenv("LC_CTYPE"), getenv("LANG"))
	locale = strings.ToLower(strings.ReplaceAll(locale, "-", ""))
	return strings.Contains(locale, "utf8")
}

// eighths are blocks of 1 to 8 eighths of a character.
var eighths = []rune("▏▎▍▌▋▊▉█")

// bar is a line as long as n is of most, at most so many characters. What is not nothing
// is seen.
func (c canvas) bar(n, most int64, width int) string {
	if n <= 0 || most <= 0 || width <= 0 {
		return ""
	}
	share := float64(n) / float64(most)
	if c.ascii {
		return strings.Repeat("#", max(int(share*float64(width)+0.5), 1))
	}
	parts := max(int(share*float64(width*len(eighths))+0.5), 1)
	text := strings.Repeat(string(eighths[len(eighths)-1]), parts/len(eighths))
	if rest := parts % len(eighths); rest > 0 {
		text += string(eighths[rest-1])
	}
	return text
}

// draw writes what a person wants to see.
func (a *analytics) draw(out io.Writer, c canvas, idleDays int, one bool) error {
	out = terminal{out}
	fmt.Fprintf(out, "%s to %s (UTC)\n\n", a.Since.UTC().Format(time.DateOnly), a.Until.UTC().Format(time.DateOnly))
	w := printers.GetNewTabWriter(out)
	if t := a.Totals; t != nil && !one {
		fmt.Fprintf(w, "Credentials:\t%s\t(%s active, %s inactive, %s expired, %s revoked)\n",
			thousands(t.All), thousands(t.Active), thousands(t.Inactive), thousands(t.Expired), thousands(t.Revoked))
	}
	total := a.Requests.Allowed + a.Requests.Denied
	fmt.Fprintf(w, "Requests:\t%s\t(%s allowed, %s denied)\n", thousands(total), thousands(a.Requests.Allowed), thousands(a.Requests.Denied))
	if rate := a.Requests.SuccessRate; rate != nil {
		fmt.Fprintf(w, "Success rate:\t%s\n", percent(*rate))
	}
	if a.Latency != nil && total > 0 {
		fmt.Fprintf(w, "Latency:\t%s\t(p50), %s (p90), %s (p99)\n", micros(a.Latency.P50), micros(a.Latency.P90), micros(a.Latency.P99))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	a.drawDays(out, c)
	if err := a.drawTop(out, c, one); err != nil {
		return err
	}
	if err := a.drawVersions(out); err != nil || one {
		return err
	}
	return a.drawIdle(out, idleDays)
}

// drawDays draws a bar for each day.
func (a *analytics) drawDays(out io.Writer, c canvas) {
	if len(a.Daily) == 0 {
		return
	}
	var most int64
	longest := 0
	known := map[string]analyticsDay{}
	for _, d := range a.Daily {
		most = max(most, d.Allowed+d.Denied)
		longest = max(longest, len(dayText(d)))
		known[d.Day] = d
	}
	fmt.Fprintf(out, "\nRequests a day\n")
	line := func(d analyticsDay) {
		width := c.width - len(d.Day) - longest - 4
		bar := c.bar(d.Allowed+d.Denied, most, max(width, 8))
		fmt.Fprintln(out, strings.TrimRight(fmt.Sprintf("%s  %s%s  %s", printable(d.Day), bar,
			strings.Repeat(" ", max(max(width, 8)-utf8.RuneCountInString(bar), 0)), dayText(d)), " "))
	}
	// Days without requests tell something too.
	first, last := a.Since.UTC().Truncate(24*time.Hour), a.Until.UTC()
	if last.Before(first) || last.Sub(first) > (maxDays+1)*24*time.Hour {
		for _, d := range a.Daily {
			line(d)
		}
		return
	}
	for day := first; !day.After(last); day = day.AddDate(0, 0, 1) {
		name := day.Format(time.DateOnly)
		d := known[name]
		d.Day = name
		line(d)
	}
}

func dayText(d analyticsDay) string {
	text := thousands(d.Allowed + d.Denied)
	if d.Denied > 0 {
		text += " (" + thousands(d.Denied) + " denied)"
	}
	return text
}

// barOfTop is how wide the bars beside names are.
const barOfTop = 20

func (a *analytics) drawTop(out io.Writer, c canvas, one bool) error {
	if len(a.Top) == 0 || one {
		return nil
	}
	var most int64
	for _, t := range a.Top {
		most = max(most, t.Allowed+t.Denied)
	}
	fmt.Fprintf(out, "\nMost used\n")
	w := printers.GetNewTabWriter(out)
	for _, t := range a.Top {
		total := t.Allowed + t.Denied
		share := 0.0
		if total > 0 {
			share = float64(t.Allowed) / float64(total)
		}
		fmt.Fprintf(w, "  %s\t%s\t%s allowed\t%s\n", printable(cmp.Or(t.Subject, t.UID, "(nobody known)")), thousands(total), percent(share), c.bar(total, most, barOfTop))
	}
	return w.Flush()
}

func (a *analytics) drawVersions(out io.Writer) error {
	if len(a.Versions) == 0 {
		return nil
	}
	fmt.Fprintf(out, "\nVersions\n")
	w := printers.GetNewTabWriter(out)
	fmt.Fprintf(w, "  NUMBER\tPREFIX\tUSES\tDENIED\tLAST USED\tAS\tFROM\n")
	for _, v := range a.Versions {
		fmt.Fprintf(w, "  %d\t%s\t%s\t%s\t%s\t%s\t%s\n", v.Version, printable(v.Prefix), thousands(v.Uses), thousands(v.Denied), when(v.LastUsed),
			printable(v.LastSlot), printable(v.LastClient))
	}
	return w.Flush()
}

func (a *analytics) drawIdle(out io.Writer, days int) error {
	if len(a.Idle) == 0 {
		return nil
	}
	fmt.Fprintf(out, "\nNot used for %d days\n", days)
	w := printers.GetNewTabWriter(out)
	for _, i := range a.Idle {
		fmt.Fprintf(w, "  %s\t%s\n", printable(cmp.Or(i.Subject, i.UID)), when(i.LastUsed))
	}
	return w.Flush()
}

func when(t *time.Time) string {
	if t == nil || t.IsZero() {
		return "never"
	}
	return t.UTC().Format(time.RFC3339)
}

func micros(n int64) string { return (time.Duration(n) * time.Microsecond).String() }

// thousands writes 1234567 as 1,234,567.
func thousands(n int64) string {
	text := strconv.FormatInt(n, 10)
	sign := ""
	if text[0] == '-' {
		sign, text = "-", text[1:]
	}
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return sign + text
}
