package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilrand "k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/printers"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

const (
	// previewTimeout bounds how long the brake is held up by a look at what it will
	// hit.
	previewTimeout = 20 * time.Second
	// namesShown is how many names stand for many.
	namesShown = 10
	// settlePoll is how often a Revocation is read until it is settled.
	settlePoll = 500 * time.Millisecond
)

type emergencyOptions struct {
	*app
	waitFlags
	print      *genericclioptions.PrintFlags
	reason     string
	all        bool
	kinds      []string
	namespaces []string
	selector   string
	replace    bool
	name       string
	yes        bool
	dryRun     string
}

func (a *app) emergencyRevokeCommand() *cobra.Command {
	o := &emergencyOptions{app: a, print: genericclioptions.NewPrintFlags("created")}
	c := &cobra.Command{
		Use:   "emergency-revoke (--all | [--kind KIND] [-n NAMESPACE...] [-l SELECTOR]) --reason WHY [flags]",
		Short: "Revoke a whole selection, or everything, by one write",
		Long: "Revoke a whole selection of credentials, or every one, by one write that every server obeys as soon as it sees it: a\n" +
			"Revocation. --kind, --namespace and --selector each narrow it; without any of them it takes --all.\n\n" +
			"It shows what will be hit and asks to have that typed; without a terminal it needs --yes. It cannot be undone: deleting\n" +
			"the Revocation brings nothing back. It takes what there is now, by labels as they are and as they were when they were\n" +
			"sealed, and nothing that is created later. It cannot select by class or by admin: for every admin credential, see\n" +
			"'mintmark revoke --all-admin -A'.\n\n" +
			"Servers do not wait for what this command waits for: that the status of each credential says so too.",
		Example: `
			# What would be hit? Nothing is written
			mintmark emergency-revoke -n payments --reason "laptop stolen" --dry-run

			# Every credential of two namespaces; new values are made at once
			mintmark emergency-revoke -n payments -n orders --replace --reason "cluster of team payments compromised"

			# Every API key with a label, by a script
			mintmark emergency-revoke --kind apikey -l partner=acme --reason "breach at acme" --yes

			# Everything
			mintmark emergency-revoke --all --reason "etcd backup leaked"`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context()) },
	}
	o.print.AddFlags(c)
	f := c.Flags()
	o.waitFlags.add(f, true, "until the status of each credential accounts for it")
	f.StringVar(&o.reason, "reason", "", "Why, for the record. Required.")
	f.BoolVar(&o.all, "all", false, "Revoke every credential of the cluster.")
	f.StringSliceVar(&o.kinds, "kind", nil, "Revoke this kind alone: servicetoken or apikey.")
	// kubectl's own flag takes one namespace, and defaults to that of the context:
	// neither is meant here.
	f.StringSliceVarP(&o.namespaces, "namespace", "n", nil, "Revoke in this namespace alone; can be repeated. Default: in every one.")
	f.StringVarP(&o.selector, "selector", "l", "", "Revoke what has these labels alone, such as team=payments.")
	f.BoolVar(&o.replace, "replace", false, "Make new values at once, where Mintmark delivers them. Default: nothing is minted until a rotation is requested.")
	f.StringVar(&o.name, "name", "", "Name of the Revocation. Default: emergency- and something random.")
	f.BoolVarP(&o.yes, "yes", "y", false, "Do not ask.")
	f.StringVar(&o.dryRun, "dry-run", "none", "none, client (show what would be hit and print the object) or server (have it checked as well, but not stored).")
	f.Lookup("dry-run").NoOptDefVal = "client"
	fixed(c, "kind", []string{"servicetoken", "apikey"})
	fixed(c, "dry-run", []string{"none", "client", "server"})
	a.completeObjects(c, "namespace", namespaceList)
	return c
}

// object makes the Revocation the flags describe.
func (o *emergencyOptions) object() (*v1alpha1.Revocation, error) {
	if o.reason = strings.TrimSpace(o.reason); o.reason == "" {
		return nil, usageError("say why: --reason \"...\" (it is kept with the Revocation and in the audit log)")
	}
	if err := checkReason(o.reason); err != nil {
		return nil, err
	}
	narrowed := len(o.kinds)+len(o.namespaces) > 0 || o.selector != ""
	switch {
	case o.all && narrowed:
		return nil, usageError("--all takes everything: leave --kind, --namespace and --selector out, or --all")
	case !o.all && !narrowed:
		return nil, usageError("say what: --kind, --namespace or --selector, which each narrow it, or --all for everything")
	}
	r := &v1alpha1.Revocation{Spec: v1alpha1.RevocationSpec{Reason: o.reason, All: o.all, Replace: "Never"}}
	r.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("Revocation"))
	// Named here, so that what a dry run prints can be applied.
	r.Name = cmp.Or(o.name, "emergency-"+utilrand.String(5))
	if o.replace {
		r.Spec.Replace = "Immediately"
	}
	for _, name := range o.kinds {
		k, err := parseKind(name)
		if err != nil {
			return nil, err
		}
		r.Spec.Kinds = append(r.Spec.Kinds, string(k.name))
	}
	r.Spec.Kinds, r.Spec.Namespaces = unique(r.Spec.Kinds), unique(o.namespaces)
	if o.selector != "" {
		selector, err := metav1.ParseToLabelSelector(o.selector)
		if err != nil {
			return nil, usageError("--selector %q is no label selector: %w", o.selector, err)
		}
		r.Spec.Selector = selector
	}
	if _, err := credential.NewSelector(&r.Spec); err != nil {
		return nil, usageError("%w", err)
	}
	return r, nil
}

func (o *emergencyOptions) run(ctx context.Context) error {
	printer, err := printerFor(o.print, o.dryRun)
	if err != nil {
		return err
	}
	object, err := o.object()
	if err != nil {
		return err
	}
	if o.dryRun == "none" && !o.yes && !o.interactive() {
		return usageError("there is no terminal to ask at: look at what would be hit with --dry-run, then go on with --yes")
	}
	c, err := o.cluster()
	if err != nil {
		return err
	}
	hit, err := c.hitBy(ctx, object)
	if err != nil {
		// Whoever may pull the brake pulls it, whether or not they may look around.
		o.note("What will be hit cannot be shown: %s", err)
	} else if err := o.show(hit, object); err != nil {
		return err
	}
	if o.dryRun == "none" && !o.yes {
		if err := o.confirmTyped(ctx, hit); err != nil {
			return err
		}
	}
	if err := o.create(ctx, c, object); err != nil {
		return err
	}
	if err := printObject(printer, object, o.Out); err != nil || o.dryRun != "none" {
		return err
	}
	if o.wait {
		return o.settled(ctx, c, object)
	}
	return nil
}

// hit is what a Revocation selects.
type hit struct {
	credentials []v1alpha1.Credential
	accepted    int // those that servers still accept something of
	admins      int
}

// hitBy lists what a Revocation would take, as its labels are. What they were when
// sealed, the servers and the controller alone can read.
func (c *cluster) hitBy(ctx context.Context, object *v1alpha1.Revocation) (*hit, error) {
	ctx, cancel := context.WithTimeout(ctx, previewTimeout)
	defer cancel()
	selector, err := credential.NewSelector(&object.Spec)
	if err != nil {
		return nil, err
	}
	q := query{kinds: kinds}
	if only := selector.Namespaces(); len(only) == 1 {
		q.namespace = only[0]
	}
	all, err := c.credentials(ctx, q)
	if err != nil {
		return nil, err
	}
	h := new(hit)
	for _, o := range all {
		if o.GetDeletionTimestamp() != nil || !selector.Selects(o.CredentialKind(), o.GetNamespace(), o.GetLabels()) {
			continue
		}
		h.credentials = append(h.credentials, o)
		if len(liveVersions(o)) > 0 {
			h.accepted++
		}
		if o.CredentialSpec().Admin {
			h.admins++
		}
	}
	return h, nil
}

// show tells what will be hit, by namespace and kind, with some names. A selection
// that takes nothing is an error, unless labels of before could still match.
func (o *emergencyOptions) show(h *hit, object *v1alpha1.Revocation) error {
	if len(h.credentials) == 0 {
		if object.Spec.Selector == nil {
			return errors.New("nothing is selected: there is no such service token or API key (see 'mintmark list -A')")
		}
		o.note("NOTHING has these labels now. What had them when it was sealed would still be taken; a misspelt label takes nothing.")
		return nil
	}
	type group struct {
		namespace                  string
		kind                       v1alpha1.Kind
		selected, accepted, admins int
	}
	var groups []group
	for _, c := range h.credentials { // sorted by namespace
		i := slices.IndexFunc(groups, func(g group) bool { return g.namespace == c.GetNamespace() && g.kind == c.CredentialKind() })
		if i < 0 {
			groups = append(groups, group{namespace: c.GetNamespace(), kind: c.CredentialKind()})
			i = len(groups) - 1
		}
		groups[i].selected++
		if len(liveVersions(c)) > 0 {
			groups[i].accepted++
		}
		if c.CredentialSpec().Admin {
			groups[i].admins++
		}
	}
	w := printers.GetNewTabWriter(o.ErrOut)
	fmt.Fprintf(w, "NAMESPACE\tKIND\tCREDENTIALS\tACCEPTED NOW\tADMIN\n")
	for _, g := range groups {
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\n", g.namespace, g.kind, g.selected, g.accepted, g.admins)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	o.note("Among them: %s", someNames(h.credentials))
	if h.admins > 0 && slices.ContainsFunc(h.credentials, func(c v1alpha1.Credential) bool {
		return c.CredentialSpec().Admin && c.GetNamespace() == DefaultNamespace
	}) {
		o.note("Admin credentials of Mintmark itself are among them: 'mintmark rotate --force' gives one a new value afterwards.")
	}
	return nil
}

func someNames(credentials []v1alpha1.Credential) string {
	var names []string
	for i, c := range credentials {
		if i == namesShown {
			names = append(names, fmt.Sprintf("and %d more", len(credentials)-i))
			break
		}
		names = append(names, c.GetNamespace()+"/"+c.GetName())
	}
	return strings.Join(names, ", ")
}

// confirmTyped has the number of what will be hit typed: a habit types yes.
func (o *emergencyOptions) confirmTyped(ctx context.Context, h *hit) error {
	phrase := "revoke"
	if h != nil {
		phrase = fmt.Sprintf("revoke %d", len(h.credentials))
	}
	answer, err := o.ask(ctx, fmt.Sprintf("This cannot be undone. Type %q to go on: ", phrase))
	if err != nil || answer == phrase {
		return err
	}
	return errors.New("not confirmed, nothing was revoked")
}

func (o *emergencyOptions) create(ctx context.Context, c *cluster, object *v1alpha1.Revocation) error {
	options := []client.CreateOption{fieldOwner}
	switch o.dryRun {
	case "client":
		return nil
	case "server":
		options = append(options, client.DryRunAll)
	}
	if err := c.Create(ctx, object, options...); err != nil {
		return explainRevocation(object.Name, err)
	}
	if o.dryRun == "none" {
		o.note("Revocation %s: every server refuses what it selects as soon as it sees it, within about a second", object.Name)
	}
	return nil
}

func explainRevocation(name string, err error) error {
	switch {
	case isRBAC(err):
		return fmt.Errorf("creating Revocation %s: your account may not: it needs the verb create on revocations.mintmark.dev, which no aggregated role has."+
			" Who may change credentials can revoke them one by one with 'mintmark revoke' (%w)", name, err)
	case apierrors.IsAlreadyExists(err):
		return fmt.Errorf("creating Revocation %s: there is one of that name, and it cannot be changed: choose another --name (%w)", name, err)
	}
	return explain(err, "creating", "Revocation "+name)
}

// settled waits until the status of everything selected accounts for it.
func (o *emergencyOptions) settled(ctx context.Context, c *cluster, object *v1alpha1.Revocation) error {
	ctx, cancel := context.WithTimeoutCause(ctx, o.timeout, errTimeout)
	defer cancel()
	name, told := object.Name, int64(-1)
	last := new(v1alpha1.Revocation)
	for {
		now := new(v1alpha1.Revocation)
		err := c.Get(ctx, client.ObjectKey{Name: name}, now)
		if err == nil {
			last = now
			condition := meta.FindStatusCondition(now.Status.Conditions, v1alpha1.ConditionSettled)
			switch {
			case condition == nil:
			case condition.Status == metav1.ConditionTrue && condition.Reason != v1alpha1.ReasonNothingSelected:
				o.note("Revocation %s: %d of %d settled: each status accounts for it", name, now.Status.Settled, now.Status.Matched)
				return nil
			case condition.Reason != v1alpha1.ReasonSettling:
				return fmt.Errorf("Revocation %s: %s", name, condition.Message)
			case now.Status.Settled != told:
				told = now.Status.Settled
				o.note("Revocation %s: %d of %d settled", name, now.Status.Settled, now.Status.Matched)
			}
		} else if isRBAC(err) {
			o.note("Your account may not read Revocations: how far Revocation %s is, is not known here. It holds.", name)
			return nil
		} else if ctx.Err() == nil && !mayPass(err) {
			return explain(err, "reading", "Revocation "+name+", which has been made and holds,")
		}
		select {
		case <-ctx.Done():
			return o.unsettled(ctx, c, last, name)
		case <-time.After(settlePoll):
		}
	}
}

// unsettled tells what is still open when the waiting ends.
func (o *emergencyOptions) unsettled(ctx context.Context, c *cluster, object *v1alpha1.Revocation, name string) error {
	if !errors.Is(context.Cause(ctx), errTimeout) {
		return fmt.Errorf("stopped waiting; Revocation %s holds, and goes on being settled, see 'kubectl get revocation %s': %w", name, name, context.Canceled)
	}
	const holds = "every server refuses what it selects all the same"
	if object.UID == "" {
		return fmt.Errorf("Revocation %s could not be read within %s; %s", name, o.timeout, holds)
	}
	if meta.FindStatusCondition(object.Status.Conditions, v1alpha1.ConditionSettled) == nil {
		return fmt.Errorf("Revocation %s is not settled within %s: the controller has not looked at it (%s). Is it running? See 'mintmark doctor'", name, o.timeout, holds)
	}
	open := ""
	if h, err := c.hitBy(context.WithoutCancel(ctx), object); err == nil {
		left := slices.DeleteFunc(h.credentials, func(o v1alpha1.Credential) bool {
			return slices.Contains(o.CredentialStatus().SettledRevocations, string(object.UID)) ||
				o.GetCreationTimestamp().Time.After(object.CreationTimestamp.Time)
		})
		if len(left) > 0 {
			open = ": still open: " + someNames(left)
		}
	}
	return fmt.Errorf("Revocation %s: %d of %d settled within %s (%s)%s", name, object.Status.Settled, object.Status.Matched, o.timeout, holds, open)
}
