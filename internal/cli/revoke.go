package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// maxReason is the longest reason the API takes.
const maxReason = 1024

type revokeOptions struct {
	*app
	waitFlags
	selection
	reason   string
	versions []int64
}

func (a *app) revokeCommand() *cobra.Command {
	o := &revokeOptions{app: a}
	c := &cobra.Command{
		Use:   "revoke (KIND NAME... | KIND/NAME... | --id UID | --identifier NAME-OR-PREFIX | -l SELECTOR | --all-admin) --reason WHY [flags]",
		Short: "Revoke credentials, or single versions of one",
		Long: "Revoke credentials: every server refuses them, and the tokens issued for them, from now on. The objects stay, and\n" +
			"the reason with them. It cannot be undone; 'mintmark rotate --force' gives a revoked credential a new value.\n\n" +
			"Servers read the revocation themselves: it holds with the controller down, and the command does not wait for status\n" +
			"unless told to.",
		Example: `
			mintmark revoke servicetoken ci-deploy --reason "found in a public repository"

			# One version alone: the value before the last rotation leaked
			mintmark revoke servicetoken ci-deploy --version 3 --reason "leaked by a build log"

			# What a scanner found, by the part it showed
			mintmark revoke --identifier mk4Tq9Zx -A --reason "leak report 2026-118"

			# Every admin key of the cluster
			mintmark revoke --all-admin -A --reason "administrator's laptop stolen"`,
		ValidArgsFunction: a.completeRefs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.check(args); err != nil {
				return err
			}
			return o.run(cmd.Context(), args)
		},
	}
	o.selection.add(c)
	o.waitFlags.add(c.Flags(), false, "until status accounts for it")
	c.Flags().StringVar(&o.reason, "reason", "", "Why, for the record. Required.")
	c.Flags().Int64SliceVar(&o.versions, "version", nil, "Revoke these versions alone. Default: the whole credential.")
	return c
}

func (o *revokeOptions) check(args []string) error {
	if o.reason = strings.TrimSpace(o.reason); o.reason == "" {
		return usageError("say why: --reason \"...\" (it is kept with the credential and in the audit log)")
	}
	if err := checkReason(o.reason); err != nil {
		return err
	}
	if len(o.versions) > 0 && o.open() {
		return usageError("--version belongs to one credential: name it")
	}
	return o.selection.check(args)
}

func checkReason(reason string) error {
	if len(reason) > maxReason {
		return usageError("--reason has %d bytes: at most %d are kept", len(reason), maxReason)
	}
	return nil
}

func (o *revokeOptions) run(ctx context.Context, args []string) error {
	c, err := o.cluster()
	if err != nil {
		return err
	}
	found, err := o.resolve(ctx, c, args)
	if err != nil {
		return err
	}
	if len(o.versions) > 0 && len(found) != 1 {
		return usageError("--version belongs to one credential, and %d are selected", len(found))
	}
	if (len(found) > 1 || o.open()) && !o.yes {
		if err := printSelected(found, o.ErrOut); err != nil {
			return err
		}
		what := "this credential"
		if n := len(found); n > 1 {
			what = fmt.Sprintf("these %d credentials", n)
		}
		if err := o.confirm(ctx, "Revoke "+what+"? It cannot be undone."); err != nil {
			return err
		}
	}
	// All of them first, then the waiting: each second counts.
	var failed []error
	var revoked []v1alpha1.Credential
	for _, credential := range found {
		patched, err := o.revoke(ctx, c, credential)
		if err != nil {
			failed = append(failed, err)
		} else if patched != nil {
			revoked = append(revoked, patched)
		}
	}
	if o.wait {
		for _, credential := range revoked {
			failed = append(failed, o.settled(ctx, c, credential))
		}
	}
	return errors.Join(failed...)
}

// revoke writes spec.revoked of one credential; nil where it is revoked already.
func (o *revokeOptions) revoke(ctx context.Context, c *cluster, credential v1alpha1.Credential) (v1alpha1.Credential, error) {
	r := refOf(credential)
	if len(o.versions) > 0 {
		return o.revokeVersions(ctx, c, credential)
	}
	if isRevoked(credential) {
		o.note("%s is revoked already: %s", r, revocationReason(credential))
		return nil, nil
	}
	now, _ := c.clock.now()
	// No resourceVersion: whatever somebody else writes at this moment, this
	// holds.
	patched, err := c.patch(ctx, credential, map[string]any{"spec": map[string]any{"revoked": map[string]any{
		"reason": o.reason, "versions": nil, "requestedAt": o.requestedAt(credential, now).Format(metav1.RFC3339Micro),
	}}})
	if err != nil {
		return nil, explain(err, "revoking", r.String())
	}
	o.note("%s: revoked: every server refuses it as soon as it sees this, within about a second", r)
	return patched, nil
}

// requestedAt tells this revocation from the one before, which a rotation may
// have followed.
func (o *revokeOptions) requestedAt(credential v1alpha1.Credential, now time.Time) time.Time {
	if before := credential.CredentialSpec().Revoked; before != nil && before.RequestedAt != nil && !now.After(before.RequestedAt.Time) {
		return before.RequestedAt.UTC().Add(time.Millisecond)
	}
	return now
}

func revocationReason(o v1alpha1.Credential) string {
	if r := o.CredentialStatus().Revocation; r != nil {
		return r.Reason
	}
	return o.CredentialSpec().Revoked.Reason
}

func (o *revokeOptions) revokeVersions(ctx context.Context, c *cluster, credential v1alpha1.Credential) (v1alpha1.Credential, error) {
	r := refOf(credential)
	if isRevoked(credential) {
		o.note("%s is revoked as a whole already: %s", r, revocationReason(credential))
		return nil, nil
	}
	var live []string
	for _, v := range liveVersions(credential) {
		live = append(live, strconv.FormatInt(v.Version, 10))
	}
	for _, n := range o.versions {
		i := slices.IndexFunc(credential.CredentialStatus().Versions, func(v v1alpha1.CredentialVersion) bool { return v.Version == n })
		if i < 0 {
			return nil, fmt.Errorf("%s has no version %d; accepted now: %s", r, n, list(live))
		}
		if v := credential.CredentialStatus().Versions[i]; !v.State.Live() {
			o.note("%s: version %d is accepted no longer anyway (%s)", r, n, v.State)
		}
	}
	patched, err := c.update(ctx, credential, func(now v1alpha1.Credential) map[string]any {
		versions := slices.Clone(o.versions)
		if revoked := now.CredentialSpec().Revoked; revoked != nil {
			versions = append(versions, revoked.Versions...)
		}
		slices.Sort(versions)
		return map[string]any{
			"metadata": map[string]any{"resourceVersion": now.GetResourceVersion()},
			"spec":     map[string]any{"revoked": map[string]any{"reason": o.reason, "versions": slices.Compact(versions)}},
		}
	})
	if err != nil {
		return nil, explain(err, "revoking versions of", r.String())
	}
	o.note("%s: version %s revoked: every server refuses it as soon as it sees this, within about a second", r, list(texts(o.versions)))
	return patched, nil
}

// settled waits until status accounts for the revocation.
func (o *revokeOptions) settled(ctx context.Context, c *cluster, credential v1alpha1.Credential) error {
	r := refOf(credential)
	_, err := c.await(ctx, r, goal{
		what: "to account for the revocation", uid: credential.GetUID(),
		reached: func(now v1alpha1.Credential) bool {
			if now.CredentialStatus().ObservedGeneration < credential.GetGeneration() {
				return false
			}
			if len(o.versions) == 0 {
				return len(liveVersions(now)) == 0
			}
			return !slices.ContainsFunc(now.CredentialStatus().Versions, func(v v1alpha1.CredentialVersion) bool {
				return slices.Contains(o.versions, v.Version) && v.State.Live()
			})
		},
		hopeless: func(v1alpha1.Credential, *metav1.Condition) bool { return false },
	}, o.timeout, o.ErrOut)
	if err == nil {
		o.note("%s: status accounts for the revocation", r)
	}
	return err
}

func texts(numbers []int64) []string {
	var out []string
	for _, n := range numbers {
		out = append(out, strconv.FormatInt(n, 10))
	}
	return out
}

func list(items []string) string {
	if len(items) == 0 {
		return "none"
	}
	return strings.Join(items, ", ")
}
