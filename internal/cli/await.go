package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// goal is what is waited for in a credential.
type goal struct {
	// what is waited for, for messages: "to become Ready".
	what string
	// reached tells whether it is there.
	reached func(v1alpha1.Credential) bool
	// uid of the credential; another one under its name is not it.
	uid types.UID
	// hopeless tells whether the Ready condition says that it will not come;
	// nil is any reason that needs a person.
	hopeless func(v1alpha1.Credential, *metav1.Condition) bool
}

// Reasons of Ready that stay until somebody changes something: waiting on would
// only hide them.
var needPerson = []string{
	v1alpha1.ReasonSecretConflict, v1alpha1.ReasonDigestConflict, v1alpha1.ReasonClassNotFound,
	v1alpha1.ReasonNotAllowed, v1alpha1.ReasonInvalidSpec, v1alpha1.ReasonExpired, v1alpha1.ReasonRevoked,
}

func needsPerson(_ v1alpha1.Credential, c *metav1.Condition) bool {
	return slices.Contains(needPerson, c.Reason)
}

func readyCondition(o v1alpha1.Credential) *metav1.Condition {
	return meta.FindStatusCondition(o.CredentialStatus().Conditions, v1alpha1.ConditionReady)
}

// progressOf is the state of things in a line: a credential stays Ready while a
// new version is on its way to the servers.
func progressOf(o v1alpha1.Credential, ready *metav1.Condition) string {
	if p := meta.FindStatusCondition(o.CredentialStatus().Conditions, v1alpha1.ConditionPropagated); p != nil && p.Status == metav1.ConditionFalse {
		return p.Reason + ": " + p.Message
	}
	return ready.Reason + ": " + ready.Message
}

// isReady tells whether the credential is Ready as its spec now stands.
func isReady(o v1alpha1.Credential) bool {
	c := readyCondition(o)
	return c != nil && c.Status == metav1.ConditionTrue && c.ObservedGeneration == o.GetGeneration()
}

// await follows one credential until the goal is reached, and tells of each
// new state on the way. It returns the credential as it was then.
func (c *cluster) await(ctx context.Context, r ref, g goal, timeout time.Duration, progress io.Writer) (v1alpha1.Credential, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, errTimeout)
	defer cancel()
	if g.hopeless == nil {
		g.hopeless = needsPerson
	}
	told := ""
	var last v1alpha1.Credential
	check := func(o v1alpha1.Credential) (done bool, err error) {
		last = o
		if g.uid != "" && o.GetUID() != g.uid {
			return false, fmt.Errorf("%s was deleted and made again while this command waited for it %s", r, g.what)
		}
		if g.reached(o) {
			return true, nil
		}
		cond := readyCondition(o)
		if cond == nil || cond.ObservedGeneration != o.GetGeneration() {
			return false, nil
		}
		if line := progressOf(o, cond); line != told {
			told = line
			fmt.Fprintf(progress, "%s: %s\n", r, line)
		}
		if cond.Status == metav1.ConditionFalse && g.hopeless(o, cond) {
			return false, fmt.Errorf("%s does not come %s: %s: %s", r, g.what, cond.Reason, cond.Message)
		}
		return false, nil
	}
	err := c.follow(ctx, r, progress, check)
	switch {
	case err == nil:
		return last, nil
	case errors.Is(context.Cause(ctx), errTimeout):
		return last, fmt.Errorf("%s did not come %s within %s%s", r, g.what, timeout, c.whyNot(r, last))
	case errors.Is(context.Cause(ctx), context.Canceled):
		return last, fmt.Errorf("stopped waiting for %s %s; what was asked for goes on, see 'kubectl get %s': %w",
			r, g.what, r.kubectlArgs(), context.Canceled)
	}
	return last, err
}

var errTimeout = errors.New("timeout")

// whyNot tells what is known about a wait that came to nothing.
func (c *cluster) whyNot(r ref, o v1alpha1.Credential) string {
	if o == nil {
		return fmt.Sprintf(": it could not be read; what was asked for goes on, see 'kubectl get %s'", r.kubectlArgs())
	}
	if cond := readyCondition(o); cond != nil && cond.ObservedGeneration == o.GetGeneration() {
		return fmt.Sprintf(" (%s: %s)", cond.Reason, cond.Message)
	}
	return ": the controller has not looked at it. Is it running? See 'mintmark doctor'"
}

// follow hands over every state of one object until check says it is done. It
// watches; where a watch ends, it reads the object again. An API server that is away
// for a moment does not end it: what was asked for goes on, and so does the waiting.
func (c *cluster) follow(ctx context.Context, r ref, progress io.Writer, check func(v1alpha1.Credential) (bool, error)) error {
	told := ""
	for {
		o, err := c.get(ctx, r)
		switch {
		case err != nil && ctx.Err() == nil && mayPass(err):
			if told != err.Error() {
				told = err.Error()
				fmt.Fprintf(progress, "%s; trying again\n", told)
			}
			err = pause(ctx)
		case err == nil:
			if done, err := check(o); done || err != nil {
				return err
			}
			err = c.followOnce(ctx, r, o.GetResourceVersion(), check)
		}
		if !errors.Is(err, errWatchEnded) {
			return err
		}
	}
}

// mayPass: what a busy or restarting API server answers for a moment.
func mayPass(err error) bool {
	return apierrors.IsServerTimeout(err) || apierrors.IsTimeout(err) || apierrors.IsTooManyRequests(err) || apierrors.IsInternalError(err) ||
		apierrors.IsServiceUnavailable(err) || !isStatus(err) && !errors.Is(err, context.Canceled)
}

var errWatchEnded = errors.New("the watch ended")

func (c *cluster) followOnce(ctx context.Context, r ref, from string, check func(v1alpha1.Credential) (bool, error)) error {
	list := r.kind.list()
	w, err := c.Watch(ctx, list, client.InNamespace(r.namespace), &client.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("metadata.name", r.name),
		Raw:           &metav1.ListOptions{ResourceVersion: from},
	})
	switch {
	case apierrors.IsForbidden(err), apierrors.IsGone(err), apierrors.IsResourceExpired(err), err != nil && mayPass(err):
		// Reading alone will do as well, and tells what is the matter.
		return pause(ctx)
	case err != nil:
		return explain(err, "watching", r.String())
	}
	defer w.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case event, ok := <-w.ResultChan():
			if !ok || event.Type == watch.Error {
				return pause(ctx)
			}
			if event.Type == watch.Deleted {
				return fmt.Errorf("%s was deleted while this command waited for it", r)
			}
			o, isCredential := event.Object.(v1alpha1.Credential)
			if !isCredential {
				continue
			}
			if done, err := check(o); done || err != nil {
				return err
			}
		}
	}
}

// pause lets a moment pass before the object is read again.
func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(500 * time.Millisecond):
		return errWatchEnded
	}
}
