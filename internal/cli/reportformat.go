package cli

import (
	"encoding/csv"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// column of a report.
type column struct {
	name string
	cell func(*reportLine) string
}

// columns of the CSV file. New ones are added at the end.
var columns = []column{
	{"namespace", func(l *reportLine) string { return l.Namespace }},
	{"name", func(l *reportLine) string { return l.Name }},
	{"kind", func(l *reportLine) string { return string(l.Kind) }},
	{"id", func(l *reportLine) string { return l.ID }},
	{"state", func(l *reportLine) string { return l.State }},
	{"reason", func(l *reportLine) string { return l.Reason }},
	{"class", func(l *reportLine) string { return l.Class }},
	{"owner", func(l *reportLine) string { return l.Owner }},
	{"description", func(l *reportLine) string { return l.Description }},
	{"admin", func(l *reportLine) string { return strconv.FormatBool(l.Admin) }},
	{"permissions", func(l *reportLine) string { return strings.Join(l.Permissions, " ") }},
	{"roles", func(l *reportLine) string { return strings.Join(l.Roles, " ") }},
	{"external", func(l *reportLine) string { return strconv.FormatBool(l.External) }},
	{"created", func(l *reportLine) string { return l.Created.Format(time.RFC3339) }},
	{"expires", func(l *reportLine) string { return l.Expires }},
	{"next_rotation", func(l *reportLine) string { return l.NextRotation }},
	{"last_used", func(l *reportLine) string { return l.LastUsed }},
	{"allowed", func(l *reportLine) string { return maybeNumber(l.Allowed) }},
	{"denied", func(l *reportLine) string { return maybeNumber(l.Denied) }},
	{"versions", versionsInWords},
	{"findings", func(l *reportLine) string { return strings.Join(codes(l), " ") }},
	{"details", detailsInWords},
}

func maybeNumber(n *int64) string {
	if n == nil {
		return ""
	}
	return strconv.FormatInt(*n, 10)
}

func versionsInWords(l *reportLine) string {
	var parts []string
	for _, v := range l.Versions {
		text := fmt.Sprintf("%d %s", v.Version, v.State)
		if v.Prefix != "" {
			text += " " + v.Prefix
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, "; ")
}

func codes(l *reportLine) []string {
	var out []string
	for _, f := range l.Findings {
		out = append(out, f.Code)
	}
	return out
}

func detailsInWords(l *reportLine) string {
	var out []string
	for _, f := range l.Findings {
		out = append(out, f.Code+": "+f.Detail)
	}
	return strings.Join(out, "; ")
}

// writeCSV writes RFC 4180: a header, and a line for each. Counts would be lines that
// are no credential.
func (r *report) writeCSV(out io.Writer) error {
	w := csv.NewWriter(out)
	w.UseCRLF = true
	record := make([]string, len(columns))
	for i, c := range columns {
		record[i] = c.name
	}
	if err := w.Write(record); err != nil {
		return err
	}
	for _, l := range r.Lines {
		for i, c := range columns {
			record[i] = cell(c.cell(l))
		}
		if err := w.Write(record); err != nil {
			return err
		}
	}
	w.Flush()
	return w.Error()
}

// cell makes text that people wrote safe for a spreadsheet, which takes what begins like
// a formula for one: it gets an apostrophe in front, which spreadsheets do not show. It
// stays on one line, and what would hide in it or command a terminal is gone.
func cell(text string) string {
	text = oneLine(visible(text))
	if text != "" && strings.ContainsRune("=+-@|%＝＋－＠'", []rune(text)[0]) {
		return "'" + text
	}
	return text
}

// visible replaces what is not shown, and might command a terminal or hide, by spaces.
func visible(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, text)
}

// writeMarkdown writes the counts, what is amiss, and a table of all.
func (r *report) writeMarkdown(out io.Writer) error {
	var b strings.Builder
	b.WriteString("# Credentials\n\n")
	where := "every namespace"
	if r.Namespace != "" {
		where = "namespace " + r.Namespace
	}
	if r.Selector != "" {
		where += ", with labels " + r.Selector
	}
	fmt.Fprintf(&b, "%s, %s.\n\n", r.Generated.Format(time.RFC3339), markdown(where))
	b.WriteString("| | |\n|---|---|\n")
	row := func(label, text string) { fmt.Fprintf(&b, "| %s | %s |\n", label, text) }
	row("Credentials", fmt.Sprintf("%d (%s)", r.Counts.Total, counted(r.Counts.Kinds, slices.Sorted(maps.Keys(r.Counts.Kinds)))))
	row("States", counted(r.Counts.States, states))
	row("Findings", counted(r.Counts.Findings, findings))
	if r.Requests != nil {
		row(requestsLabel, r.Requests.String())
	}
	if len(r.Lines) == 0 {
		b.WriteString("\nNone.\n")
	} else {
		r.markdownFindings(&b)
		r.markdownTable(&b)
	}
	_, err := io.WriteString(out, b.String())
	return err
}

func (r *report) markdownFindings(b *strings.Builder) {
	if len(r.Counts.Findings) == 0 {
		return
	}
	b.WriteString("\n## Findings\n\n| finding | credential | |\n|---|---|---|\n")
	for _, code := range findings {
		for _, l := range r.Lines {
			for _, f := range l.Findings {
				if f.Code == code {
					fmt.Fprintf(b, "| %s | %s %s | %s |\n", code, l.Kind, markdown(l.Namespace+"/"+l.Name), markdown(f.Detail))
				}
			}
		}
	}
}

func (r *report) markdownTable(b *strings.Builder) {
	b.WriteString("\n## All of them\n\n| namespace | name | kind | state | class | owner | expires | next rotation | last used | requests | versions | findings |\n" +
		"|---|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, l := range r.Lines {
		state := l.State
		if l.Reason != "" {
			state += " (" + l.Reason + ")"
		}
		requests := ""
		if l.Allowed != nil {
			requests = fmt.Sprintf("%d (%d denied)", *l.Allowed, *l.Denied)
		}
		for _, text := range []string{
			l.Namespace, l.Name, string(l.Kind), state, l.Class, l.Owner, l.Expires, l.NextRotation, l.LastUsed, requests, versionsInWords(l), strings.Join(codes(l), " "),
		} {
			b.WriteString("| " + markdown(text) + " ")
		}
		b.WriteString("|\n")
	}
}

// markdownSpecial is what means something in Markdown, or in the HTML within it.
const markdownSpecial = "\\`*_{}[]<>()#+!|&~"

// markdown makes text that people wrote stay the text it is, in a cell of a table.
func markdown(text string) string {
	var b strings.Builder
	for _, r := range oneLine(visible(text)) {
		if strings.ContainsRune(markdownSpecial, r) {
			b.WriteByte('\\')
		}
		b.WriteRune(r)
	}
	return b.String()
}

// percent of a share.
func percent(share float64) string { return strconv.FormatFloat(100*share, 'f', 2, 64) + " %" }
