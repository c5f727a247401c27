package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/cli-runtime/pkg/printers"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/lifecycle"
)

type cleanupOptions struct {
	*app
	scope
	timeout        time.Duration
	deactivateOnly bool
	delete         bool
	managed        bool
	after          string
	dryRun         bool
	yes            bool
}

func (a *app) cleanupCommand() *cobra.Command {
	o := &cleanupOptions{app: a}
	c := &cobra.Command{
		Use:   "cleanup [--deactivate-only | --delete] [flags]",
		Short: "Clean up credentials that have expired for good",
		Long: "Clean up credentials that have expired for good: those past spec.expiresAt, and those that never rotate whose last version\n" +
			"has expired. One that a rotation will renew is none of them.\n\n" +
			"The controller does this by itself, by spec.expired of the class: at once it takes the Secret away (Deactivate), and where\n" +
			"the class says Delete it deletes the credential once spec.expired.after is over. This command does the same on demand, and\n" +
			"says what it leaves and why. --delete deletes also where the class says Deactivate, after the same time; --deactivate-only\n" +
			"deletes nothing, and waits until nothing of them is left in a Secret.\n\n" +
			"What Argo CD, Flux or Helm applied is left alone: they would make it again, with a new value. Take it out of Git.",
		Example: `
			# What is there to clean up?
			mintmark cleanup -A --dry-run

			# As the classes say
			mintmark cleanup -A --yes

			# Expired for 90 days, whatever the class says
			mintmark cleanup -n payments --delete --after 90d

			# Nothing is deleted
			mintmark cleanup --deactivate-only`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context()) },
	}
	f := c.Flags()
	o.scope.add(f)
	f.BoolVar(&o.deactivateOnly, "deactivate-only", false, "Delete nothing: see to it that no Secret carries an expired value.")
	f.BoolVar(&o.delete, "delete", false, "Delete also where the class says Deactivate.")
	f.StringVar(&o.after, "after", "", "How long after expiry to delete, such as 90d. Default: the class's spec.expired.after; sooner needs --delete.")
	f.BoolVar(&o.managed, "managed", false, "Delete also what Argo CD, Flux or Helm applied.")
	f.BoolVar(&o.dryRun, "dry-run", false, "Show what would be done, and do nothing.")
	f.BoolVarP(&o.yes, "yes", "y", false, "Do not ask before deleting.")
	f.DurationVar(&o.timeout, "timeout", 2*time.Minute, "How long to wait for Secrets to be gone.")
	return c
}

// disposal is what is to be done with an expired credential.
type disposal struct {
	credential v1alpha1.Credential
	expired    time.Time
	class      v1alpha1.ExpiredPolicy
	managedBy  string
	delete     bool
	// why says what is done, or why nothing is.
	why string
}

func (o *cleanupOptions) run(ctx context.Context) error {
	if err := o.check(); err != nil {
		return err
	}
	if o.deactivateOnly && (o.delete || o.after != "" || o.managed) {
		return usageError("--deactivate-only deletes nothing: leave --delete, --after and --managed out")
	}
	if o.after != "" {
		if _, err := parseDuration("after", o.after, false); err != nil {
			return err
		}
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
	classes, err := o.classes(ctx, c)
	if err != nil {
		return err
	}
	now, _ := c.clock.now()
	var found []disposal
	for _, credential := range all {
		if d, expired := o.disposal(credential, classes[credential.CredentialSpec().CredentialClassName], now); expired {
			found = append(found, d)
		}
	}
	if len(found) == 0 {
		o.note("Nothing to clean up: no service token or API key has expired for good %s (%d looked at).", q.where(), len(all))
		return nil
	}
	if err := o.show(found); err != nil {
		return err
	}
	if o.dryRun {
		return nil
	}
	return o.carryOut(ctx, c, found)
}

// classes by name. An account that may not read them gets none: then nothing is known of
// what a class says, and nothing is deleted for it.
func (o *cleanupOptions) classes(ctx context.Context, c *cluster) (map[string]*v1alpha1.CredentialClassSpec, error) {
	var list v1alpha1.CredentialClassList
	if err := c.List(ctx, &list); isRBAC(err) {
		o.note("Your account may not read CredentialClasses: what they say of expired credentials is not known here, and each counts as Deactivate.")
		return nil, nil
	} else if err != nil {
		return nil, explain(err, "listing", "CredentialClasses")
	}
	classes := make(map[string]*v1alpha1.CredentialClassSpec, len(list.Items))
	for i := range list.Items {
		classes[list.Items[i].Name] = &list.Items[i].Spec
	}
	return classes, nil
}

// expiredForGood tells since when a credential is over by expiry, so that only a request
// or another end would revive it: the same question the controller asks before it
// deletes one. What status does not account for yet is not.
func expiredForGood(o v1alpha1.Credential, class *v1alpha1.CredentialClassSpec, now time.Time) (since time.Time, ok bool) {
	status := o.CredentialStatus()
	var last *v1alpha1.CredentialVersion
	for i := range status.Versions {
		v := &status.Versions[i]
		if v.State.Live() {
			return time.Time{}, false
		}
		if last == nil || v.Version > last.Version {
			last = v
		}
	}
	if last == nil || last.State != v1alpha1.VersionExpired || last.Ended == nil || o.GetDeletionTimestamp() != nil ||
		status.ObservedGeneration != o.GetGeneration() {
		return time.Time{}, false
	}
	settings := lifecycle.Effective(o.CredentialSpec(), class)
	over := !settings.ExpiresAt.IsZero() && !now.Before(settings.ExpiresAt)
	revoked := status.Revocation != nil && status.Revocation.ThroughVersion >= last.Version
	return last.Ended.Time, (over || revoked || !settings.Revives(last)) && !rotateLever.pending(o)
}

// expiredAfter is the waiting time of a class that says none.
const expiredAfter = 30 * 24 * time.Hour

func (o *cleanupOptions) disposal(c v1alpha1.Credential, class *v1alpha1.CredentialClassSpec, now time.Time) (disposal, bool) {
	known := class != nil
	if !known {
		class = new(v1alpha1.CredentialClassSpec)
		// Without its class nobody knows whether it would be rotated.
		if at := c.CredentialSpec().ExpiresAt; at == nil || now.Before(at.Time) {
			return disposal{}, false
		}
	}
	since, expired := expiredForGood(c, class, now)
	if !expired {
		return disposal{}, false
	}
	d := disposal{credential: c, expired: since, class: class.Expired, managedBy: managedBy(c)}
	wait := class.Expired.After.Or(expiredAfter)
	if asked, given, _ := v1alpha1.Duration(o.after).Parse(); given && (o.delete || asked > wait) {
		wait = asked
	}
	due := since.Add(wait)
	switch {
	case o.deactivateOnly:
		d.why = "kept, deactivated"
	case class.Expired.Action != "Delete" && !o.delete:
		d.why = "kept, deactivated: its class says so; --delete deletes it"
		if !known {
			d.why = "kept, deactivated: its class is not known; --delete deletes it"
		}
	case now.Before(due):
		d.why = "kept until " + due.UTC().Format(time.RFC3339)
	case d.managedBy != "" && !o.managed:
		d.why = fmt.Sprintf("kept: %s would make it again; take it out of Git, or say --managed", d.managedBy)
	default:
		d.delete, d.why = true, "delete"
	}
	return d, true
}

// managedBy is the tool that applies the credential from elsewhere, as far as its marks
// tell; empty where none does.
func managedBy(o v1alpha1.Credential) string {
	l, a := o.GetLabels(), o.GetAnnotations()
	switch {
	case a["argocd.argoproj.io/tracking-id"] != "" || l["argocd.argoproj.io/instance"] != "":
		return "Argo CD"
	case l["kustomize.toolkit.fluxcd.io/name"] != "" || l["helm.toolkit.fluxcd.io/name"] != "":
		return "Flux"
	case l["app.kubernetes.io/managed-by"] == "Helm":
		return "Helm"
	}
	return ""
}

func (o *cleanupOptions) show(found []disposal) error {
	w := printers.GetNewTabWriter(terminal{o.Out})
	fmt.Fprintf(w, "NAMESPACE\tNAME\tKIND\tCLASS\tEXPIRED\tLAST USED\tOWNER\tACTION\n")
	for _, d := range found {
		spec := d.credential.CredentialSpec()
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", d.credential.GetNamespace(), d.credential.GetName(), d.credential.CredentialKind(),
			spec.CredentialClassName, d.expired.UTC().Format(time.DateOnly), d.credential.CredentialStatus().LastUsed, oneLine(spec.Owner), d.why)
	}
	return w.Flush()
}

func (o *cleanupOptions) carryOut(ctx context.Context, c *cluster, found []disposal) error {
	doomed := slices.DeleteFunc(slices.Clone(found), func(d disposal) bool { return !d.delete })
	if len(doomed) > 0 && !o.yes {
		if !o.interactive() {
			return usageError("there is no terminal to ask at: look at what would be deleted with --dry-run, then go on with --yes")
		}
		if err := o.confirm(ctx, fmt.Sprintf("Delete these %d credentials?", len(doomed))); err != nil {
			return err
		}
	}
	var failed []error
	deleted := 0
	for i, d := range doomed {
		if ctx.Err() != nil {
			return errors.Join(append(failed, fmt.Errorf("stopped after %d of %d; run it again to go on: %w", deleted, len(doomed), context.Canceled))...)
		}
		if err := c.deleteExpired(ctx, d.credential); err != nil {
			failed = append(failed, err)
			continue
		}
		deleted++
		if (i+1)%100 == 0 {
			o.note("%d of %d done", i+1, len(doomed))
		}
	}
	if len(doomed) > 0 {
		o.note("%d deleted, %d left", deleted, len(found)-deleted)
	}
	kept := slices.DeleteFunc(slices.Clone(found), func(d disposal) bool { return d.delete })
	return errors.Join(append(failed, o.deactivated(ctx, c, kept))...)
}

// deleteExpired deletes a credential as it was looked at: one that somebody extended in
// the meantime stays.
func (c *cluster) deleteExpired(ctx context.Context, o v1alpha1.Credential) error {
	r, uid, version := refOf(o), o.GetUID(), o.GetResourceVersion()
	err := c.Delete(ctx, o, client.Preconditions{UID: &uid, ResourceVersion: &version})
	switch {
	case apierrors.IsNotFound(err): // somebody was faster
		return nil
	case apierrors.IsConflict(err):
		return fmt.Errorf("%s was changed in the meantime and is left: run the command again", r)
	}
	return explain(err, "deleting", r.String())
}

// deactivated waits until the controller has taken the Secrets of expired credentials
// away: it alone writes Secrets.
func (o *cleanupOptions) deactivated(ctx context.Context, c *cluster, kept []disposal) error {
	ctx, cancel := context.WithTimeoutCause(ctx, o.timeout, errTimeout)
	defer cancel()
	told := -1
	for {
		var left []string
		for _, d := range kept {
			carries, err := c.carriesSecret(ctx, d.credential)
			if isRBAC(err) {
				o.note("Whether Secrets of expired credentials are left is not known: your account may not read them in %s.", d.credential.GetNamespace())
				return nil
			}
			if err != nil && ctx.Err() == nil {
				return explain(err, "reading", "the Secret of "+refOf(d.credential).String())
			}
			if carries || err != nil {
				left = append(left, refOf(d.credential).String())
			}
		}
		if len(left) == 0 {
			if len(kept) > 0 {
				o.note("%d deactivated: no server accepts them, and no Secret carries them", len(kept))
			}
			return nil
		}
		if len(left) != told {
			told = len(left)
			o.note("waiting for the controller to take away %d Secrets", told)
		}
		select {
		case <-ctx.Done():
			if !errors.Is(context.Cause(ctx), errTimeout) {
				return fmt.Errorf("stopped waiting for the controller to take away the Secrets of %s: %w", strings.Join(left, ", "), context.Canceled)
			}
			return fmt.Errorf("Secrets with expired values are left of %s: is the controller running? See 'mintmark doctor'", strings.Join(left, ", "))
		case <-time.After(time.Second):
		}
	}
}

// carriesSecret tells whether there still is a Secret of ours for a credential.
func (c *cluster) carriesSecret(ctx context.Context, o v1alpha1.Credential) (bool, error) {
	if o.CredentialSpec().External != nil {
		return false, nil
	}
	name := o.CredentialStatus().SecretName
	if name == "" {
		name = lifecycle.SecretName(o.GetName(), o.CredentialSpec())
	}
	secret := new(corev1.Secret)
	err := c.Get(ctx, client.ObjectKey{Namespace: o.GetNamespace(), Name: name}, secret)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	return err == nil && secret.Annotations[v1alpha1.AnnotationCredentialUID] == string(o.GetUID()), err
}
