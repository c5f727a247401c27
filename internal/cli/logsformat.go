package cli

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/mintmark-dev/mintmark/internal/audit"
)

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
