package cli

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/validation"
	sigsyaml "sigs.k8s.io/yaml"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// exitIncomplete is the exit code of import where lines were left out that work in the
// old system.
const exitIncomplete = 4

type importOptions struct {
	*app
	waitFlags
	kind       string
	class      string
	adminClass string
	ttl        string
	columns    []string
	delimiter  string
	zone       string
	renames    []string
	labels     []string
	outputDir  string
	overwrite  bool
	apply      bool
	dryRun     bool
	report     string
}

func (a *app) importCommand() *cobra.Command {
	o := &importOptions{app: a}
	c := &cobra.Command{
		Use:   "import FILE [flags]",
		Short: "Take over tokens of another system by their SHA-256, so that nobody has to change one",
		Long: "Take over tokens of a system that stored their SHA-256, such as a service_tokens table, without issuing them anew: each\n" +
			"becomes a credential that is declared by that hash (spec.external.sha256). Nobody here ever sees a value.\n\n" +
			"FILE is CSV with a header, - is standard input. Usual names of columns are known; --column FIELD=COLUMN names others, and\n" +
			"--column metadata.KEY=COLUMN keeps a column as a fact to search by. The fields: " + fieldNames() + ".\n\n" +
			"Manifests go to standard output, to --output-dir, or with --apply to the cluster. The class must allow external\n" +
			"credentials, and say what shape they have. Every line is accounted for, on standard error and in --report.\n\n" +
			"Exit code: 0 where everything that works in the old system is taken over, 4 where it is not; 1 where it failed.",
		Example: `
			# From PostgreSQL, without the database's password leaving psql
			psql "$OLD_DATABASE" -c "\copy (SELECT * FROM service_tokens) TO 'tokens.csv' WITH CSV HEADER"

			# What would be imported? Nothing is written
			mintmark import tokens.csv --class legacy --dry-run

			# Manifests for Git
			mintmark import tokens.csv --class legacy -n payments --output-dir manifests/ --report import.csv

			# Straight into the cluster
			mintmark import tokens.csv --class legacy --admin-class legacy-admin -n payments --apply

			# Other names of columns and permissions
			mintmark import tokens.csv --class legacy --column name=label --column hash=digest --column metadata.team=team --permission read=api:read`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError("name one file of CSV, or - for standard input\nSee '%s --help'", cmd.CommandPath())
			}
			return nil
		},
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return []string{"csv"}, cobra.ShellCompDirectiveFilterFileExt
		},
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), args[0]) },
	}
	f := c.Flags()
	f.StringVar(&o.kind, "kind", "servicetoken", "What they become: servicetoken or apikey.")
	f.StringVar(&o.class, "class", "", "CredentialClass they are made under. Default: the cluster's default class.")
	f.StringVar(&o.adminClass, "admin-class", "", "CredentialClass of those that hold every permission. Without it they are left out.")
	f.StringVar(&o.ttl, "ttl", "", "How long they live from now, such as 90d, or Never. Default: until the end in the table, else the class's.")
	f.StringArrayVar(&o.columns, "column", nil, "FIELD=COLUMN: which column a field is in.")
	f.StringVar(&o.delimiter, "delimiter", ",", "What stands between columns; tab for a tab.")
	f.StringVar(&o.zone, "time-zone", "UTC", "Time zone of times that name none.")
	f.StringArrayVar(&o.renames, "permission", nil, "OLD=NEW: what a permission is called here; OLD= leaves it out.")
	f.StringArrayVar(&o.labels, "label", nil, "Labels that all of them get, KEY=VALUE.")
	f.StringVar(&o.outputDir, "output-dir", "", "Write a manifest for each into this directory.")
	f.BoolVar(&o.overwrite, "overwrite", false, "With --output-dir: replace manifests that say something else.")
	f.BoolVar(&o.apply, "apply", false, "Create them in the cluster.")
	f.BoolVar(&o.dryRun, "dry-run", false, "Write nothing; with --apply have everything checked by admission, and not stored.")
	f.StringVar(&o.report, "report", "", "Write what became of each line into this file, as CSV.")
	o.waitFlags.add(f, true, "with --apply, until all of them are Ready")
	fixed(c, "kind", []string{"servicetoken", "apikey"})
	a.completeObjects(c, "class", classList)
	a.completeObjects(c, "admin-class", classList)
	_ = c.MarkFlagDirname("output-dir")
	_ = c.MarkFlagFilename("report")
	return c
}

func fieldNames() string {
	var names []string
	for _, f := range importFields {
		names = append(names, f.name)
	}
	return strings.Join(names, ", ")
}

// rules are those the flags describe.
func (o *importOptions) rules() (r *importRules, err error) {
	r = &importRules{class: o.class, adminClass: o.adminClass, now: time.Now()}
	if r.kind, err = parseKind(o.kind); err != nil {
		return nil, err
	}
	for _, name := range []string{o.class, o.adminClass} {
		if name != "" && len(validation.IsDNS1123Subdomain(name)) > 0 {
			return nil, usageError("%s is no name of a class", publicPart(name))
		}
	}
	if o.ttl != "" {
		if r.ttl, err = parseDuration("ttl", o.ttl, true); err != nil {
			return nil, err
		}
	}
	if r.zone, err = time.LoadLocation(o.zone); err != nil {
		return nil, usageError("--time-zone %q: write a name such as Europe/Berlin", o.zone)
	}
	if r.labels, err = pairs("label", o.labels); err != nil {
		return nil, err
	}
	r.permissions, err = assignments("permission", o.renames)
	return r, err
}

// layout is how the table is written: which fields are in which columns, and what stands
// between those.
func (o *importOptions) layout() (columns map[string]string, delimiter rune, err error) {
	if columns, err = assignments("column", o.columns); err != nil {
		return nil, 0, err
	}
	for field, column := range columns {
		known := slices.ContainsFunc(importFields, func(f importField) bool { return f.name == field })
		if key, extra := strings.CutPrefix(field, "metadata."); !known && !(extra && key != "") || column == "" {
			return nil, 0, usageError("--column %s=%s: write FIELD=COLUMN, with one of the fields %s or metadata.KEY", field, column, fieldNames())
		}
	}
	delimiter, size := utf8.DecodeRuneInString(o.delimiter)
	switch {
	case o.delimiter == "tab":
		delimiter = '\t'
	case size != len(o.delimiter) || delimiter == utf8.RuneError || strings.ContainsRune("\"\r\n", delimiter):
		return nil, 0, usageError("--delimiter %q: one character, or tab", o.delimiter)
	}
	return columns, delimiter, nil
}

// assignments reads KEY=VALUE; a value may be empty.
func assignments(flag string, args []string) (map[string]string, error) {
	out := map[string]string{}
	for _, arg := range args {
		key, value, ok := strings.Cut(arg, "=")
		if key = strings.TrimSpace(key); !ok || key == "" {
			return nil, usageError("--%s %q: write it with an =", flag, arg)
		}
		if _, twice := out[key]; twice {
			return nil, usageError("--%s names %s twice", flag, key)
		}
		out[key] = strings.TrimSpace(value)
	}
	return out, nil
}

func (o *importOptions) run(ctx context.Context, file string) error {
	if o.apply && o.outputDir != "" {
		return usageError("--apply puts them into the cluster, --output-dir into files: choose one")
	}
	rules, err := o.rules()
	if err != nil {
		return err
	}
	columns, delimiter, err := o.layout()
	if err != nil {
		return err
	}
	var c *cluster
	if o.apply {
		if c, err = o.cluster(); err != nil {
			return err
		}
		rules.namespace = c.namespace
	} else if rules.namespace, _, err = o.kube.ToRawKubeConfigLoader().Namespace(); err != nil {
		return kubeconfigError(err)
	}
	table, err := o.table(ctx, file, delimiter, columns)
	if err != nil {
		return fmt.Errorf("%s: %w", fileName(file), err)
	}
	lines := rules.plan(table)
	switch {
	case o.apply:
		err = o.create(ctx, c, lines)
	case o.dryRun:
	case o.outputDir != "":
		err = o.writeFiles(lines)
	default:
		err = o.writeAll(lines)
	}
	if err != nil {
		notReached(lines)
	}
	o.tell(table, lines)
	if o.report != "" {
		err = errors.Join(err, writeImportReport(o.report, lines))
	}
	if err != nil {
		return err
	}
	if o.apply && o.wait && !o.dryRun {
		if err := o.awaitAll(ctx, c, lines); err != nil {
			return err
		}
	}
	if n := len(slices.DeleteFunc(slices.Clone(lines), func(l *importLine) bool { return !l.outcome.lost() })); n > 0 {
		return &exitError{code: exitIncomplete, err: fmt.Errorf("%d lines were left out that work in the old system", n)}
	}
	return nil
}

// notReached corrects what was planned for lines that an error kept from being written.
func notReached(lines []*importLine) {
	for _, l := range lines {
		if l.outcome == outcomeImported && !l.done {
			l.outcome, l.detail = outcomeFailed, "the command ended before it was written"
		}
	}
}

func fileName(file string) string {
	if file == "-" {
		return "standard input"
	}
	return file
}

func (o *importOptions) table(ctx context.Context, file string, delimiter rune, columns map[string]string) (*importTable, error) {
	if file == "-" {
		return interruptible(ctx, func() (*importTable, error) { return readTableCSV(o.In, delimiter, columns) })
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	defer f.Close()
	return readTableCSV(f, delimiter, columns)
}

// eachManifest hands over the manifests of what is imported, one after the other.
func eachManifest(lines []*importLine, write func(l *importLine, text []byte) error) error {
	for _, l := range lines {
		if l.object == nil {
			continue
		}
		text, err := manifest(l.object)
		if err == nil {
			err = write(l, text)
		}
		if err != nil {
			return err
		}
		l.done = true
	}
	return nil
}

func manifest(o v1alpha1.Credential) ([]byte, error) {
	u, err := toUnstructured(o)
	if err != nil {
		return nil, err
	}
	return sigsyaml.Marshal(u.Object)
}

// writeAll writes all manifests into one stream of documents.
func (o *importOptions) writeAll(lines []*importLine) error {
	return eachManifest(lines, func(_ *importLine, text []byte) error {
		_, err := fmt.Fprintf(o.Out, "---\n%s", text)
		return err
	})
}

// writeFiles writes a file for each. One that is there and says something else is left,
// and an error.
func (o *importOptions) writeFiles(lines []*importLine) error {
	if err := os.MkdirAll(o.outputDir, 0o755); err != nil {
		return fmt.Errorf("--output-dir: %w", err)
	}
	return eachManifest(lines, func(l *importLine, text []byte) error {
		name := filepath.Join(o.outputDir, kindOf(l.object).singular+"-"+l.object.GetName()+".yaml")
		switch there, err := os.ReadFile(name); {
		case err == nil && string(there) == string(text):
			l.outcome = outcomeUnchanged
			return nil
		case err == nil && !o.overwrite:
			l.outcome, l.detail = outcomeTaken, name+" is there and says something else: see what differs, or say --overwrite"
			return nil
		}
		return os.WriteFile(name, text, 0o644)
	})
}

// tell says on standard error what became of the lines.
func (o *importOptions) tell(table *importTable, lines []*importLine) {
	counts := map[importOutcome]int{}
	for _, l := range lines {
		counts[l.outcome]++
		name := l.source
		if l.object != nil {
			name = refOf(l.object).String()
		}
		if l.outcome.lost() {
			o.note("line %d: %s: left out (%s): %s", l.line, name, l.outcome, l.detail)
		}
		if !l.outcome.lost() && l.detail != "" {
			o.note("line %d: %s: %s", l.line, name, l.detail)
		}
		if l.object != nil && !l.outcome.lost() {
			for _, note := range l.notes {
				o.note("line %d: %s %s", l.line, name, note)
			}
		}
	}
	if len(table.ignored) > 0 {
		o.note("Columns that were not taken over: %s (--column metadata.KEY=COLUMN keeps one)", strings.Join(table.ignored, ", "))
	}
	var parts []string
	for _, outcome := range importOutcomes {
		if counts[outcome] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", counts[outcome], outcome))
		}
	}
	kind := ""
	if o.dryRun {
		kind = " (dry run)"
	}
	o.note("Lines: %d%s: %s", len(lines), kind, list(parts))
}

// writeImportReport writes what became of each line. No hash is in it.
func writeImportReport(name string, lines []*importLine) error {
	return atomically(name, func(out io.Writer) error {
		w := csv.NewWriter(out)
		w.UseCRLF = true
		if err := w.Write([]string{"line", "id", "name", "outcome", "detail", "kind", "namespace", "credential", "notes"}); err != nil {
			return err
		}
		for _, l := range lines {
			record := []string{strconv.Itoa(l.line), cell(l.id), cell(l.source), string(l.outcome), cell(l.detail), "", "", "", cell(strings.Join(l.notes, "; "))}
			if l.object != nil {
				record[5], record[6], record[7] = string(l.object.CredentialKind()), l.object.GetNamespace(), l.object.GetName()
			}
			if err := w.Write(record); err != nil {
				return err
			}
		}
		w.Flush()
		return w.Error()
	})
}

// atomically writes a file as a whole or not at all.
func atomically(name string, write func(io.Writer) error) error {
	var b strings.Builder
	if err := write(&b); err != nil {
		return err
	}
	return replaceFile(name, []byte(b.String()))
}
