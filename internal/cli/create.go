package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

// specFlags are the flags a credential's spec is made from.
type specFlags struct {
	class       string
	description string
	owner       string
	permissions []string
	roles       []string
	admin       bool
	ttl         string
	expiresAt   string
	rotateEvery string
	overlap     string
	secretName  string
	cidrs       []string
	jwtTTL      string
	audiences   []string
	sha256      []string
	labels      []string
	metadata    []string
}

func (f *specFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.class, "class", "", "CredentialClass it is made under. Default: the cluster's default class.")
	flags.StringVar(&f.description, "description", "", "What it is for.")
	flags.StringVar(&f.owner, "owner", "", "The person or team to ask about it.")
	flags.StringArrayVar(&f.permissions, "permissions", nil, "Permissions it holds, between commas or spaces: \"api:read, deploy:*\".")
	flags.StringArrayVar(&f.roles, "roles", nil, "AccessRoles it holds, between commas or spaces.")
	flags.BoolVar(&f.admin, "admin", false, "Make it hold every permission. Its class must allow that.")
	flags.StringVar(&f.ttl, "ttl", "", "How long each version lives, such as 180d, or Never. Default: the class's.")
	flags.StringVar(&f.expiresAt, "expires-at", "", "When the whole credential ends: RFC 3339, or a day such as 2027-01-31 (its end, UTC).")
	flags.StringVar(&f.rotateEvery, "rotate-every", "", "Age at which a version is replaced, such as 90d, or Never. Default: the class's.")
	flags.StringVar(&f.overlap, "overlap", "", "How long the previous version is accepted at least, such as 24h. Default: the class's.")
	flags.StringVar(&f.secretName, "secret-name", "", "Name of the Secret that carries the value. Default: the credential's.")
	flags.StringArrayVar(&f.cidrs, "cidr", nil, "Networks it may be used from, such as 10.0.0.0/8.")
	flags.StringVar(&f.jwtTTL, "jwt-ttl", "", "How long the short-lived tokens issued for it live, from 1m to 60m. Default: the class's.")
	flags.StringArrayVar(&f.audiences, "audience", nil, "Audiences of the short-lived tokens issued for it.")
	flags.StringArrayVar(&f.sha256, "external-sha256", nil,
		"Declare it by the SHA-256 (64 hexadecimal digits) of a value its holder keeps; then it gets no Secret.")
	flags.StringArrayVar(&f.labels, "label", nil, "Labels, KEY=VALUE.")
	flags.StringArrayVar(&f.metadata, "metadata", nil, "Facts to search by, KEY=VALUE.")
}

// words splits what people write between commas, spaces or both.
func words(args []string) []string {
	var out []string
	for _, a := range args {
		out = append(out, strings.FieldsFunc(a, func(r rune) bool { return r == ',' || r == ' ' || r == '\t' || r == '\n' })...)
	}
	return out
}

// unique drops what was said twice: the API would refuse it.
func unique[T comparable](in []T) []T {
	seen := make(map[T]bool, len(in))
	var out []T
	for _, v := range in {
		if !seen[v] {
			seen[v] = true
			out = append(out, v)
		}
	}
	return out
}

func typed[T ~string](in []string) []T {
	var out []T
	for _, s := range in {
		out = append(out, T(s))
	}
	return out
}

// object makes the credential the flags describe.
func (f *specFlags) object(k *kind, namespace, name string) (v1alpha1.Credential, error) {
	if problems := validation.IsDNS1123Subdomain(name); len(problems) > 0 {
		return nil, usageError("%s cannot be a name: %s", publicPart(name), problems[0])
	}
	labels, err := pairs("label", f.labels)
	if err != nil {
		return nil, err
	}
	metadata, err := pairs("metadata", f.metadata)
	if err != nil {
		return nil, err
	}
	o := k.object()
	o.GetObjectKind().SetGroupVersionKind(v1alpha1.GroupVersion.WithKind(string(k.name)))
	o.SetNamespace(namespace)
	o.SetName(name)
	o.SetLabels(labels)
	spec := o.CredentialSpec()
	*spec = v1alpha1.CredentialSpec{
		CredentialClassName: f.class, Description: f.description, Owner: f.owner, Admin: f.admin,
		Permissions:  unique(typed[v1alpha1.Permission](words(f.permissions))),
		Roles:        unique(words(f.roles)),
		AllowedCIDRs: unique(typed[v1alpha1.CIDR](words(f.cidrs))),
	}
	for key, value := range metadata {
		if spec.Metadata == nil {
			spec.Metadata = map[string]v1alpha1.MetadataValue{}
		}
		spec.Metadata[key] = v1alpha1.MetadataValue(value)
	}
	if f.admin && len(spec.Permissions)+len(spec.Roles) > 0 {
		return nil, usageError("--admin gives every permission: leave --permissions and --roles out, or --admin")
	}
	return o, f.complete(spec)
}

// complete sets what needs parsing.
func (f *specFlags) complete(spec *v1alpha1.CredentialSpec) error {
	var rotation v1alpha1.Rotation
	for _, d := range []struct {
		flag, value string
		never       bool
		set         func(v1alpha1.Duration)
	}{
		{"ttl", f.ttl, true, func(d v1alpha1.Duration) { spec.TTL = d }},
		{"rotate-every", f.rotateEvery, true, func(d v1alpha1.Duration) { rotation.Every = d; spec.Rotation = &rotation }},
		{"overlap", f.overlap, false, func(d v1alpha1.Duration) { rotation.Overlap = d; spec.Rotation = &rotation }},
		{"jwt-ttl", f.jwtTTL, false, func(d v1alpha1.Duration) { spec.JWT = &v1alpha1.JWT{TTL: d} }},
	} {
		if d.value == "" {
			continue
		}
		value, err := parseDuration(d.flag, d.value, d.never)
		if err != nil {
			return err
		}
		d.set(value)
	}
	if len(f.audiences) > 0 {
		if spec.JWT == nil {
			spec.JWT = new(v1alpha1.JWT)
		}
		spec.JWT.Audiences = unique(words(f.audiences))
	}
	if f.expiresAt != "" {
		at, err := parseTime("expires-at", f.expiresAt)
		if err != nil {
			return err
		}
		if !at.After(time.Now()) {
			return usageError("--expires-at %q has passed: nothing would be accepted", f.expiresAt)
		}
		spec.ExpiresAt = &metav1.Time{Time: at}
	}
	if f.secretName != "" {
		spec.Secret = &v1alpha1.SecretTarget{Name: f.secretName}
	}
	return f.completeExternal(spec)
}

func (f *specFlags) completeExternal(spec *v1alpha1.CredentialSpec) error {
	if len(f.sha256) == 0 {
		return nil
	}
	if f.secretName != "" {
		return usageError("--external-sha256 declares a value its holder keeps: there is no Secret, leave --secret-name out")
	}
	external := &v1alpha1.External{SHA256: words(f.sha256)}
	for i, s := range external.SHA256 {
		if _, err := credential.ParseInner(s); err != nil {
			// Not the text itself: whoever gets this wrong may have given the
			// value in the place of its hash.
			return usageError("--external-sha256 number %d is no SHA-256 in 64 lowercase hexadecimal digits: make it as by: printf %%s \"$KEY\" | sha256sum", i+1)
		}
	}
	spec.External = external
	return nil
}

func parseDuration(flag, value string, never bool) (v1alpha1.Duration, error) {
	d := v1alpha1.Duration(value)
	if strings.EqualFold(value, string(v1alpha1.Never)) {
		d = v1alpha1.Never
	}
	if _, ok, err := d.Parse(); err != nil {
		return "", usageError("--%s: %w", flag, err)
	} else if !ok && !never {
		return "", usageError("--%s cannot be Never: write it like 24h or 7d", flag)
	}
	return d, nil
}

func parseTime(flag, value string) (time.Time, error) {
	if at, err := time.Parse(time.RFC3339, value); err == nil {
		return at.UTC().Truncate(time.Second), nil
	}
	day, err := time.Parse(time.DateOnly, value)
	if err != nil {
		return time.Time{}, usageError("--%s %q is no time: write it like 2027-01-31T18:00:00Z or 2027-01-31", flag, value)
	}
	return day.AddDate(0, 0, 1).Add(-time.Second), nil
}

func pairs(flag string, args []string) (map[string]string, error) {
	if len(args) == 0 {
		return nil, nil
	}
	out := make(map[string]string, len(args))
	for _, arg := range args {
		for _, pair := range strings.Split(arg, ",") {
			key, value, ok := strings.Cut(strings.TrimSpace(pair), "=")
			if !ok || key == "" {
				return nil, usageError("--%s %q: write KEY=VALUE", flag, pair)
			}
			out[key] = value
		}
	}
	return out, nil
}

type createOptions struct {
	*app
	waitFlags
	spec    specFlags
	print   *genericclioptions.PrintFlags
	name    string
	kind    string
	dryRun  string
	noPrint bool
}

func (a *app) createCommand() *cobra.Command {
	o := &createOptions{app: a, print: genericclioptions.NewPrintFlags("created")}
	c := &cobra.Command{
		Use:   "create (servicetoken|apikey) NAME [flags]",
		Short: "Create a service token or an API key and print its value once",
		Long: "Create a service token or an API key, wait until it is Ready, and print its value to standard output.\n\n" +
			"The value is read from the Secret that carries it; the command keeps no copy. With -o the object is printed instead.\n" +
			"What a manifest in Git would hold is printed by --dry-run=client -o yaml.",
		Example: `
			# A service token with two permissions; the value goes into a file
			mintmark create servicetoken ci-deploy --permissions api:read,deploy:write > token

			# An API key for a partner, for half a year and from one network
			mintmark create apikey partner --permissions "orders:read orders:list" --ttl 180d --cidr 203.0.113.0/24

			# The manifest, for Git
			mintmark create servicetoken ci-deploy --permissions deploy:write --rotate-every 30d --dry-run=client -o yaml

			# Only the Secret is wanted, for a workload to mount
			mintmark create servicetoken backup --permissions backup:write --secret-name backup-token --no-print`,
		ValidArgsFunction: a.completeKinds,
		Args:              atMost(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			k, name, err := o.target(args)
			if err != nil {
				return err
			}
			return o.run(cmd.Context(), k, name)
		},
	}
	o.spec.add(c.Flags())
	o.print.AddFlags(c)
	o.waitFlags.add(c.Flags(), true, "until it is Ready")
	c.Flags().StringVar(&o.name, "name", "", "Its name, where it is not given as an argument.")
	c.Flags().StringVar(&o.kind, "kind", "servicetoken", "Its kind, where it is not given as an argument: servicetoken or apikey.")
	c.Flags().StringVar(&o.dryRun, "dry-run", "none", "none, client (print the object and send nothing) or server (have it checked, but not stored).")
	c.Flags().Lookup("dry-run").NoOptDefVal = "client"
	c.Flags().BoolVar(&o.noPrint, "no-print", false, "Do not print the value.")
	return c
}

// target is the kind and name from the arguments or the flags.
func (o *createOptions) target(args []string) (*kind, string, error) {
	kindName, name := o.kind, o.name
	switch len(args) {
	case 1:
		var slashed bool
		if kindName, name, slashed = strings.Cut(args[0], "/"); !slashed {
			name = o.name
		}
	case 2:
		kindName, name = args[0], args[1]
	}
	k, err := parseKind(kindName)
	if err != nil {
		return nil, "", err
	}
	if name == "" {
		return nil, "", usageError("give it a name: mintmark create %s NAME", k.singular)
	}
	if o.name != "" && o.name != name {
		return nil, "", usageError("two names given, %q and --name %q: one is enough", name, o.name)
	}
	return k, name, nil
}

func (o *createOptions) run(ctx context.Context, k *kind, name string) error {
	asObject := *o.print.OutputFormat != "" || *o.print.TemplatePrinterFlags.TemplateArgument != ""
	printer, err := printerFor(o.print, o.dryRun)
	if err != nil {
		return err
	}
	c, err := o.cluster()
	if err != nil {
		return err
	}
	object, err := o.spec.object(k, c.namespace, name)
	if err != nil {
		return err
	}
	if o.dryRun == "client" {
		return printObject(printer, object, o.Out)
	}
	r := refOf(object)
	var options []client.CreateOption
	if o.dryRun == "server" {
		options = append(options, client.DryRunAll)
	}
	if err := c.create(ctx, object, options...); err != nil {
		return err
	}
	if o.dryRun == "server" {
		return printObject(printer, object, o.Out)
	}
	o.note("%s created", r)
	if !o.wait {
		if asObject {
			return printObject(printer, object, o.Out)
		}
		return nil
	}
	ready, err := c.awaitReady(ctx, object, o.timeout, o.app)
	if err != nil {
		return err
	}
	if asObject {
		return printObject(printer, ready, o.Out)
	}
	if o.noPrint || ready.CredentialSpec().External != nil {
		return nil
	}
	return o.printValue(ctx, c, ready)
}

// create creates a credential, under the field owner.
func (c *cluster) create(ctx context.Context, o v1alpha1.Credential, options ...client.CreateOption) error {
	r := refOf(o)
	err := c.Create(ctx, o, append(options, fieldOwner)...)
	if apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("%s exists already: choose another name, or make it a new value with 'mintmark rotate %s -n %s'", r, r.slashed(), r.namespace)
	}
	if apierrors.IsNotFound(err) && !isMissingResource(err) {
		return fmt.Errorf("creating %s: namespace %s does not exist: create it, or choose another with -n (%w)", r, r.namespace, err)
	}
	return explain(err, "creating", r.String())
}

// awaitReady waits for a credential just created.
func (c *cluster) awaitReady(ctx context.Context, o v1alpha1.Credential, timeout time.Duration, a *app) (v1alpha1.Credential, error) {
	r := refOf(o)
	ready, err := c.await(ctx, r, goal{what: "to be Ready", uid: o.GetUID(), reached: isReady}, timeout, a.ErrOut)
	if err != nil {
		return nil, err
	}
	status := ready.CredentialStatus()
	a.note("%s is Ready%s", r, inWords(status))
	return ready, nil
}

// inWords tells what a person wants to know of a fresh version.
func inWords(status *v1alpha1.CredentialStatus) string {
	var parts []string
	if status.CurrentVersion > 0 {
		parts = append(parts, fmt.Sprintf("version %d", status.CurrentVersion))
	}
	if status.SecretName != "" {
		parts = append(parts, "Secret "+status.SecretName)
	}
	if status.Expires != "" {
		parts = append(parts, "expires "+status.Expires)
	}
	if status.NextRotation != "" {
		parts = append(parts, "rotates "+status.NextRotation)
	}
	if len(parts) == 0 {
		return ""
	}
	return " (" + strings.Join(parts, ", ") + ")"
}

// printValue writes the plaintext to standard output, the only place where this
// command puts one.
func (a *app) printValue(ctx context.Context, c *cluster, o v1alpha1.Credential) error {
	value, err := c.value(ctx, o)
	if err != nil {
		return errors.Join(fmt.Errorf("%s is Ready, but its value cannot be shown", refOf(o)), err)
	}
	_, err = fmt.Fprintln(a.Out, value)
	return err
}
