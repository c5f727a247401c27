package cli

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/printers"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

type getOptions struct {
	*app
	print *genericclioptions.PrintFlags
	usage bool
}

func (a *app) getCommand() *cobra.Command {
	o := &getOptions{app: a, print: genericclioptions.NewPrintFlags("")}
	c := &cobra.Command{
		Use:     "get (KIND NAME | KIND/NAME) [flags]",
		Aliases: []string{"describe", "show"},
		Short:   "Show one credential: what it may do, its versions, when it rotates",
		Long: "Show one credential: what it may do, its versions and their ends, its conditions, what was requested.\n\n" +
			"The value is not shown: only the Secret has it. How often and when each version was used is as of the day, or with\n" +
			"--usage as of now: the request is the annotation " + v1alpha1.AnnotationUsageRequestedAt + ".",
		Example: `
			mintmark get servicetoken ci-deploy -n payments
			mintmark get apikey/partner -o yaml

			# Exactly how often and when it was used, by what every server says now
			mintmark get servicetoken ci-deploy --usage
			mintmark get stok ci-deploy -o jsonpath='{.status.nextRotation}'`,
		ValidArgsFunction: a.completeRefs,
		RunE:              func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), args) },
	}
	o.print.AddFlags(c)
	c.Flags().BoolVar(&o.usage, "usage", false, "Have every server asked for the use of each version. Needs the permission to change the credential.")
	return c
}

func (o *getOptions) run(ctx context.Context, args []string) error {
	printer, err := printerFor(o.print, "none")
	if err != nil {
		return err
	}
	c, err := o.cluster()
	if err != nil {
		return err
	}
	r, err := oneRef(args, c.namespace)
	if err != nil {
		return err
	}
	credential, err := c.get(ctx, r)
	if err != nil {
		return err
	}
	if o.usage {
		if credential, err = c.freshUsage(ctx, credential, o.ErrOut); err != nil {
			return err
		}
	}
	if *o.print.OutputFormat == "" && *o.print.TemplatePrinterFlags.TemplateArgument == "" {
		now, _ := c.clock.now()
		return describe(o.Out, credential, now)
	}
	return printObject(printer, credential, o.Out)
}

// page writes "Label:   value" lines in columns.
type page struct{ w io.Writer }

func (p page) line(label, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if text = oneLine(text); text == "" {
		text = "<none>"
	}
	fmt.Fprintf(p.w, "%s:\t%s\n", label, text)
}

// maybe writes a line only where there is something to say.
func (p page) maybe(label, text string) {
	if text != "" {
		p.line(label, "%s", text)
	}
}

// describe writes what a person wants to know of a credential.
func describe(out io.Writer, o v1alpha1.Credential, now time.Time) error {
	out = terminal{out}
	w := printers.GetNewTabWriter(out)
	p := page{w}
	spec, status := o.CredentialSpec(), o.CredentialStatus()
	p.line("Name", "%s", o.GetName())
	p.line("Namespace", "%s", o.GetNamespace())
	p.line("Kind", "%s", o.CredentialKind())
	p.line("UID", "%s", o.GetUID())
	p.maybe("Labels", keyValues(o.GetLabels()))
	p.line("Class", "%s", spec.CredentialClassName)
	p.maybe("Description", spec.Description)
	p.maybe("Owner", spec.Owner)
	p.maybe("Metadata", keyValues(spec.Metadata))
	describeGrant(p, spec)
	describeLife(p, o, now)
	describeRequests(p, o, now)
	if err := w.Flush(); err != nil {
		return err
	}
	// Each table has columns of its own.
	w = printers.GetNewTabWriter(out)
	describeConditions(w, status.Conditions, now)
	if err := w.Flush(); err != nil {
		return err
	}
	w = printers.GetNewTabWriter(out)
	describeVersions(w, status.Versions, now)
	return w.Flush()
}

func describeGrant(p page, spec *v1alpha1.CredentialSpec) {
	if spec.Admin {
		p.line("Permissions", "every permission (admin)")
	} else {
		p.line("Permissions", "%s", joined(spec.Permissions))
		p.maybe("Roles", joined(spec.Roles))
	}
	p.maybe("Attributes", keyValues(spec.Attributes))
	p.maybe("Allowed from", joined(spec.AllowedCIDRs))
	if rate := spec.RateLimit; rate != nil {
		p.line("Rate limit", "%d requests per %s", rate.Requests, rate.Per)
	}
	if jwt := spec.JWT; jwt != nil {
		p.maybe("Token TTL", string(jwt.TTL))
		p.maybe("Audiences", joined(jwt.Audiences))
	}
}

func describeLife(p page, o v1alpha1.Credential, now time.Time) {
	spec, status := o.CredentialSpec(), o.CredentialStatus()
	switch {
	case spec.External != nil:
		p.line("Secret", "none: declared by its SHA-256, its holder keeps the value")
	case status.SecretName != "":
		p.line("Secret", "%s (key %s)", status.SecretName, o.CredentialKind().SecretKey())
	default:
		p.line("Secret", "")
	}
	version := ""
	if status.CurrentVersion > 0 {
		version = fmt.Sprint(status.CurrentVersion)
	}
	p.line("Version", "%s", version)
	p.line("Expires", "%s", future(status.Expires, now))
	p.line("Next rotation", "%s", future(status.NextRotation, now))
	p.line("Last used", "%s", status.LastUsed)
	if u := status.Usage; u != nil {
		p.line("Uses counted until", "%s (%s ago)", u.Through.UTC().Format(time.RFC3339), duration.HumanDuration(now.Sub(u.Through.Time)))
	}
	if ts := o.GetCreationTimestamp(); !ts.IsZero() {
		p.line("Created", "%s (%s ago)", ts.UTC().Format(time.RFC3339), duration.HumanDuration(now.Sub(ts.Time)))
	}
	if r := spec.Revoked; r != nil && len(r.Versions) > 0 {
		p.line("Revoked", "versions %s: %s", list(texts(r.Versions)), r.Reason)
	}
	if r := status.Revocation; r != nil {
		p.line("Revoked", "versions up to %d, %s%s: %s", r.ThroughVersion, r.At.UTC().Format(time.RFC3339), by(r.Actor), r.Reason)
	} else if r := spec.Revoked; r != nil && len(r.Versions) == 0 {
		p.line("Revoked", "whole credential: %s (status does not account for it yet)", r.Reason)
	}
}

func by(actor string) string {
	if actor == "" {
		return ""
	}
	return " by " + actor
}

func describeRequests(p page, o v1alpha1.Credential, now time.Time) {
	for _, l := range []lever{rotateLever, rollbackLever, discardLever} {
		at := l.requestedAt(o)
		if at.IsZero() {
			continue
		}
		state := "carried out"
		if l.handledAt(o).Before(at) {
			state = "not carried out yet"
		}
		p.line("Requested "+l.verb, "%s (%s ago)%s, %s", at.Format(time.RFC3339), duration.HumanDuration(now.Sub(at)),
			by(o.GetAnnotations()[v1alpha1.AnnotationRequestedBy]), state)
	}
}

func describeConditions(w io.Writer, conditions []metav1.Condition, now time.Time) {
	if len(conditions) == 0 {
		fmt.Fprintf(w, "Conditions:\t<none>: the controller has not looked at it yet\n")
		return
	}
	fmt.Fprintf(w, "Conditions:\n  TYPE\tSTATUS\tREASON\tSINCE\tMESSAGE\n")
	for _, c := range conditions {
		fmt.Fprintf(w, "  %s\t%s\t%s\t%s\t%s\n", c.Type, c.Status, c.Reason, ago(&c.LastTransitionTime, now), oneLine(c.Message))
	}
}

func describeVersions(w io.Writer, versions []v1alpha1.CredentialVersion, now time.Time) {
	if len(versions) == 0 {
		return
	}
	fmt.Fprintf(w, "Versions:\n  NUMBER\tSTATE\tPREFIX\tAGE\tEXPIRES\tUSES\tLAST USED\tENDED\tREASON\tACTOR\n")
	for _, v := range versions {
		expires := "Never"
		if v.Expires != nil {
			expires = future(v.Expires.UTC().Format(time.RFC3339), now)
		}
		fmt.Fprintf(w, "  %d\t%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\n", v.Version, v.State, v.Prefix, ago(&v.Created, now), expires,
			v.Uses, used(v, now), ago(v.Ended, now), oneLine(v.Reason), v.Actor)
	}
}

// oneLine keeps text that people wrote from breaking the table.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

func ago(t *metav1.Time, now time.Time) string {
	if t.IsZero() {
		return ""
	}
	return duration.HumanDuration(now.Sub(t.Time))
}

// future adds to a time how far off it is.
func future(text string, now time.Time) string {
	at, err := time.Parse(time.RFC3339, text)
	switch {
	case err != nil:
		return text
	case at.Before(now):
		return fmt.Sprintf("%s (%s ago)", text, duration.HumanDuration(now.Sub(at)))
	}
	return fmt.Sprintf("%s (in %s)", text, duration.HumanDuration(at.Sub(now)))
}

func joined[T ~string](items []T) string {
	out := make([]string, len(items))
	for i, item := range items {
		out[i] = string(item)
	}
	return strings.Join(out, ", ")
}

func keyValues[V ~string](m map[string]V) string {
	var out []string
	for _, key := range slices.Sorted(maps.Keys(m)) {
		out = append(out, key+"="+string(m[key]))
	}
	return strings.Join(out, ", ")
}
