package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// lever is a one-off action: an annotation with a time, carried out once if it
// is later than the last one handled.
type lever struct {
	annotation string
	verb       string // "rotation"
	handled    func(*v1alpha1.HandledRequests) *metav1.MicroTime
}

var (
	rotateLever = lever{
		v1alpha1.AnnotationRotateRequestedAt, "rotation",
		func(h *v1alpha1.HandledRequests) *metav1.MicroTime { return h.Rotate },
	}
	rollbackLever = lever{
		v1alpha1.AnnotationRollbackRequestedAt, "rollback",
		func(h *v1alpha1.HandledRequests) *metav1.MicroTime { return h.Rollback },
	}
	discardLever = lever{
		v1alpha1.AnnotationDiscardRequestedAt, "discard",
		func(h *v1alpha1.HandledRequests) *metav1.MicroTime { return h.Discard },
	}
)

// handledAt is the time of the last request carried out; zero where none was.
func (l lever) handledAt(o v1alpha1.Credential) time.Time {
	h := o.CredentialStatus().Handled
	if h == nil {
		return time.Time{}
	}
	if t := l.handled(h); t != nil {
		return t.Time
	}
	return time.Time{}
}

// requestedAt is the time in the annotation; zero where there is none, or none
// that can be read.
func (l lever) requestedAt(o v1alpha1.Credential) time.Time {
	at, err := time.Parse(time.RFC3339, o.GetAnnotations()[l.annotation])
	if err != nil {
		return time.Time{}
	}
	return at.UTC()
}

// pending tells whether a request was made and not carried out yet.
func (l lever) pending(o v1alpha1.Credential) bool {
	at := l.requestedAt(o)
	return !at.IsZero() && o.CredentialStatus().Handled != nil && at.After(l.handledAt(o))
}

// done tells whether a request has been carried out.
func (l lever) done(o v1alpha1.Credential, at time.Time) bool { return !l.handledAt(o).Before(at) }

// nextTime is a time for a request that will act: the API server's now, but
// after the request handled last and after what the annotation says already.
// It has milliseconds where the second alone would not be later: status keeps
// microseconds.
func (l lever) nextTime(o v1alpha1.Credential, now time.Time) time.Time {
	at := now.UTC().Truncate(time.Second)
	for _, earlier := range []time.Time{l.handledAt(o), l.requestedAt(o)} {
		if !at.After(earlier) {
			at = earlier.UTC().Truncate(time.Millisecond).Add(time.Millisecond)
		}
	}
	return at
}

// pull writes the request. Its resourceVersion keeps two people who pull at the
// same moment from putting back each other's older time.
func (l lever) pull(ctx context.Context, c *cluster, o v1alpha1.Credential, reason string) (v1alpha1.Credential, time.Time, error) {
	r := refOf(o)
	var at time.Time
	patched, err := c.update(ctx, o, func(o v1alpha1.Credential) map[string]any {
		now, _ := c.clock.now()
		at = l.nextTime(o, now)
		annotations := map[string]any{l.annotation: at.Format(time.RFC3339Nano), v1alpha1.AnnotationReason: nil}
		if reason != "" {
			annotations[v1alpha1.AnnotationReason] = reason
		}
		return map[string]any{"metadata": map[string]any{"resourceVersion": o.GetResourceVersion(), "annotations": annotations}}
	})
	if err != nil {
		return nil, at, explain(err, "requesting the "+l.verb+" of", r.String())
	}
	return patched, at, nil
}

type rotateOptions struct {
	*app
	waitFlags
	selection
	reason string
	force  bool
	print  bool
}

func (a *app) rotateCommand() *cobra.Command {
	o := &rotateOptions{app: a}
	c := &cobra.Command{
		Use:   "rotate (KIND NAME... | KIND/NAME... | --id UID | --identifier NAME-OR-PREFIX | -l SELECTOR | --all-admin) [flags]",
		Short: "Give credentials a new value now",
		Long: "Give credentials a new value now, as their rotation would when due: every server accepts the new value before\n" +
			"it is delivered, and the previous one goes on being accepted for the credential's overlap.\n\n" +
			"The request is the annotation " + v1alpha1.AnnotationRotateRequestedAt + ", which Git or kubectl could write as well.\n" +
			"Its time is the API server's, not this machine's.",
		Example: `
			mintmark rotate servicetoken ci-deploy --reason "quarterly rotation"

			# By what the log shows of a value
			mintmark rotate --identifier sk_live_0a1b

			# Everything of a team, and every admin key of the cluster
			mintmark rotate -l team=payments --reason "team change"
			mintmark rotate --all-admin -A --yes --reason "administrator left"`,
		ValidArgsFunction: a.completeRefs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := errors.Join(o.check(args), checkReason(o.reason)); err != nil {
				return err
			}
			return o.run(cmd.Context(), args)
		},
	}
	o.selection.add(c)
	o.waitFlags.add(c.Flags(), true, "until the new value is delivered")
	c.Flags().StringVar(&o.reason, "reason", "", "Why, for the record.")
	c.Flags().BoolVar(&o.force, "force", false, "Rotate also what is revoked (which makes it usable again), and what has a rotation under way already.")
	c.Flags().BoolVar(&o.print, "print", false, "Print the new value, where one credential is rotated.")
	return c
}

func (o *rotateOptions) run(ctx context.Context, args []string) error {
	c, err := o.cluster()
	if err != nil {
		return err
	}
	found, err := o.resolve(ctx, c, args)
	if err != nil {
		return err
	}
	if o.print && len(found) != 1 {
		return usageError("--print prints one value, and %d credentials are selected", len(found))
	}
	if o.print && !o.wait {
		return usageError("--print waits for the new value: leave --wait=false out")
	}
	if found, err = o.rotatable(found); err != nil {
		return err
	}
	if len(found) > 1 && !o.yes {
		if err := printSelected(found, o.ErrOut); err != nil {
			return err
		}
		if err := o.confirm(ctx, fmt.Sprintf("Rotate these %d credentials?", len(found))); err != nil {
			return err
		}
	}
	var requests []rotation
	var failed []error
	for _, credential := range found {
		request, err := o.request(ctx, c, credential)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		requests = append(requests, request)
	}
	if o.wait {
		for _, request := range requests {
			failed = append(failed, o.finish(ctx, c, request))
		}
	}
	return errors.Join(failed...)
}

// rotatable refuses what a rotation could not, or should not, act on. In a
// selection such credentials are left out; named ones are an error.
func (o *rotateOptions) rotatable(found []v1alpha1.Credential) ([]v1alpha1.Credential, error) {
	var rest []v1alpha1.Credential
	for _, credential := range found {
		err := o.refuse(credential)
		if err == nil {
			rest = append(rest, credential)
			continue
		}
		if !o.open() {
			return nil, err
		}
		o.note("left out: %s", err)
	}
	if len(rest) == 0 {
		return nil, errors.New("nothing left to rotate")
	}
	return rest, nil
}

func (o *rotateOptions) refuse(credential v1alpha1.Credential) error {
	r := refOf(credential)
	if credential.CredentialSpec().External != nil {
		return fmt.Errorf("%s is declared by its SHA-256: its holder makes the new value, then add that one's hash to spec.external.sha256", r)
	}
	if isRevoked(credential) && !o.force {
		return fmt.Errorf("%s is revoked: a rotation would make it usable again; say --force if that is meant", r)
	}
	if live := len(liveVersions(credential)); live >= v1alpha1.MaxLiveVersions {
		return fmt.Errorf("%s has %d versions that are accepted, and there may be no more: end those before the current one with 'mintmark discard'", r, live)
	}
	return nil
}

// isRevoked tells whether the credential as a whole is revoked and has nothing
// that is accepted.
func isRevoked(o v1alpha1.Credential) bool {
	revoked := o.CredentialSpec().Revoked
	byStatus := o.CredentialStatus().Revocation != nil
	if !byStatus && (revoked == nil || len(revoked.Versions) > 0) {
		return false
	}
	return len(liveVersions(o)) == 0
}

// liveVersions are those that are accepted: a version a revocation of the whole
// credential took is not, even where status does not account for it yet.
func liveVersions(o v1alpha1.Credential) []v1alpha1.CredentialVersion {
	status := o.CredentialStatus()
	revoked := o.CredentialSpec().Revoked
	if revoked != nil && len(revoked.Versions) == 0 && status.Revocation == nil {
		return nil
	}
	var live []v1alpha1.CredentialVersion
	for _, v := range status.Versions {
		if v.State.Live() && (status.Revocation == nil || v.Version > status.Revocation.ThroughVersion) {
			live = append(live, v)
		}
	}
	return live
}

// rotation is a request made.
type rotation struct {
	credential v1alpha1.Credential
	at         time.Time
	before     int64 // the current version then
}

// request pulls the lever, unless a request is under way: a second one would
// make a second new value.
func (o *rotateOptions) request(ctx context.Context, c *cluster, credential v1alpha1.Credential) (rotation, error) {
	before := credential.CredentialStatus().CurrentVersion
	if rotateLever.pending(credential) && !o.force {
		at := rotateLever.requestedAt(credential)
		o.note("%s: a rotation requested at %s is under way", refOf(credential), at.Format(time.RFC3339))
		return rotation{credential, at, before}, nil
	}
	patched, at, err := rotateLever.pull(ctx, c, credential, o.reason)
	if err != nil {
		return rotation{}, err
	}
	o.note("%s: rotation requested", refOf(credential))
	return rotation{patched, at, before}, nil
}

// finish waits for the new value.
func (o *rotateOptions) finish(ctx context.Context, c *cluster, request rotation) error {
	r := refOf(request.credential)
	done, err := c.await(ctx, r, goal{
		what: "to carry its new value", uid: request.credential.GetUID(),
		reached: func(credential v1alpha1.Credential) bool {
			return rotateLever.done(credential, request.at) && isReady(credential) &&
				credential.CredentialStatus().CurrentVersion > request.before && !hasVersion(credential, v1alpha1.VersionPending)
		},
		// What the old value's end made of Ready says nothing about the new one.
		hopeless: func(credential v1alpha1.Credential, cond *metav1.Condition) bool {
			ended := cond.Reason == v1alpha1.ReasonRevoked || cond.Reason == v1alpha1.ReasonExpired
			return needsPerson(credential, cond) && (!ended || rotateLever.done(credential, request.at))
		},
	}, o.timeout, o.ErrOut)
	if err != nil {
		return err
	}
	o.note("%s: rotated%s", r, inWords(done.CredentialStatus()))
	if o.print {
		return o.printValue(ctx, c, done)
	}
	return nil
}

// simpleLever is rollback and discard: one credential, no selection.
type simpleLever struct {
	*app
	waitFlags
	lever  lever
	reason string
}

func (a *app) rollbackCommand() *cobra.Command {
	return a.leverCommand(rollbackLever, &cobra.Command{
		Use:   "rollback (KIND NAME | KIND/NAME) [flags]",
		Short: "Go back to the previous value",
		Long: "Go back to the previous value of a credential while that is still accepted: it becomes current again, and the\n" +
			"newer one ends as a superseded one would. The request is the annotation " + v1alpha1.AnnotationRollbackRequestedAt + ".",
		Example: `
			mintmark rollback servicetoken ci-deploy --reason "consumers cannot read the new value yet"`,
	})
}

func (a *app) discardCommand() *cobra.Command {
	return a.leverCommand(discardLever, &cobra.Command{
		Use:   "discard (KIND NAME | KIND/NAME) [flags]",
		Short: "End the previous value now, before its overlap is over",
		Long: "End the previous value of a credential now, before its overlap is over: it leaves the Secret and is accepted no\n" +
			"longer. The request is the annotation " + v1alpha1.AnnotationDiscardRequestedAt + ".",
		Example: `
			mintmark discard servicetoken ci-deploy --reason "every consumer has the new value"`,
	})
}

func (a *app) leverCommand(l lever, c *cobra.Command) *cobra.Command {
	o := &simpleLever{app: a, lever: l}
	c.ValidArgsFunction = a.completeRefs
	c.RunE = func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), args) }
	o.waitFlags.add(c.Flags(), true, "until it is carried out")
	c.Flags().StringVar(&o.reason, "reason", "", "Why, for the record.")
	return c
}

func (o *simpleLever) run(ctx context.Context, args []string) error {
	if err := checkReason(o.reason); err != nil {
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
	if credential.CredentialSpec().External != nil {
		return fmt.Errorf("%s is declared by its SHA-256: its holder says in spec.external.sha256 which values there are, the current one first", r)
	}
	if !hasVersion(credential, v1alpha1.VersionSuperseded) {
		return fmt.Errorf("%s has no previous value that is still accepted: there is nothing to %s", r, map[string]string{
			"rollback": "go back to", "discard": "discard",
		}[o.lever.verb])
	}
	patched, at, err := o.lever.pull(ctx, c, credential, o.reason)
	if err != nil {
		return err
	}
	o.note("%s: %s requested", r, o.lever.verb)
	if !o.wait {
		return nil
	}
	done, err := c.await(ctx, r, goal{
		what: "to carry out the " + o.lever.verb, uid: patched.GetUID(),
		// A rollback is handled when its intent is committed, and done when the
		// version is Pending no longer.
		reached: func(credential v1alpha1.Credential) bool {
			return o.lever.done(credential, at) && isReady(credential) && !hasVersion(credential, v1alpha1.VersionPending)
		},
	}, o.timeout, o.ErrOut)
	if err != nil {
		return err
	}
	if o.lever.verb == rollbackLever.verb && activation(done) == activation(credential) {
		return fmt.Errorf("%s was not rolled back: its Secret does not carry a previous value that is still accepted, as the event RequestRefused says "+
			"(kubectl describe %s); ask for a rotation instead", r, r.kubectlArgs())
	}
	o.note("%s: %s done%s", r, o.lever.verb, inWords(done.CredentialStatus()))
	return nil
}

// activation is the current version, and since when it is.
func activation(o v1alpha1.Credential) string {
	for _, v := range o.CredentialStatus().Versions {
		if v.State == v1alpha1.VersionActive && v.Activated != nil {
			return fmt.Sprintf("%d since %s", v.Version, v.Activated.UTC().Format(time.RFC3339))
		}
	}
	return ""
}

func hasVersion(o v1alpha1.Credential, state v1alpha1.VersionState) bool {
	return slices.ContainsFunc(o.CredentialStatus().Versions, func(v v1alpha1.CredentialVersion) bool { return v.State == state })
}
