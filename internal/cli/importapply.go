package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// create creates them in the cluster, but for those that are there. What the API server
// refuses is told, and the others go on.
func (o *importOptions) create(ctx context.Context, c *cluster, lines []*importLine) error {
	there, err := c.declared(ctx)
	if err != nil {
		return err
	}
	var done atomic.Int64
	var group errgroup.Group
	group.SetLimit(importWriters)
	for _, l := range lines {
		if l.object == nil {
			continue
		}
		if other, declared := there[l.hash]; declared {
			if l.outcome = outcomeUnchanged; other != refOf(l.object) {
				l.notes = append(l.notes, "is "+other.String()+" already")
			}
			continue
		}
		group.Go(func() error {
			if ctx.Err() != nil {
				return fmt.Errorf("stopped after %d; run it again to go on: %w", done.Load(), context.Canceled)
			}
			o.createOne(ctx, c, l)
			if n := done.Add(1); n%200 == 0 {
				o.note("%d of %d lines done", n, len(lines))
			}
			return nil
		})
	}
	return group.Wait()
}

// importWriters is how many credentials are created at once.
const importWriters = 8

func (o *importOptions) createOne(ctx context.Context, c *cluster, l *importLine) {
	options := []client.CreateOption{fieldOwner}
	if o.dryRun {
		options = append(options, client.DryRunAll)
	}
	switch err := c.Create(ctx, l.object, options...); {
	case apierrors.IsAlreadyExists(err):
		l.outcome, l.detail = outcomeTaken, fmt.Sprintf("%s is there, and is another credential", refOf(l.object))
	case err != nil:
		l.outcome, l.detail = outcomeFailed, oneLine(explain(err, "creating", refOf(l.object).String()).Error())
	default:
		l.done = true
	}
}

// declared are the credentials of the cluster that are declared by a hash, by it.
func (c *cluster) declared(ctx context.Context) (map[string]ref, error) {
	q := query{kinds: kinds}
	all, err := c.credentials(ctx, q)
	if isRBAC(err) { // those of the namespace will do: the controller finds the others
		q.namespace = c.namespace
		all, err = c.credentials(ctx, q)
	}
	if err != nil {
		return nil, err
	}
	there := map[string]ref{}
	for _, o := range all {
		if external := o.CredentialSpec().External; external != nil {
			for _, hash := range external.SHA256 {
				there[hash] = refOf(o)
			}
		}
	}
	return there, nil
}

// awaitAll waits until what was created is Ready, and tells what is not.
func (o *importOptions) awaitAll(ctx context.Context, c *cluster, lines []*importLine) error {
	if !slices.ContainsFunc(lines, func(l *importLine) bool { return l.outcome == outcomeImported }) {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, o.timeout, errTimeout)
	defer cancel()
	told := -1
	for {
		open, stuck, err := c.notReady(ctx, lines)
		if err != nil && ctx.Err() == nil {
			return err
		}
		if err == nil && len(open)+len(stuck) == 0 {
			o.note("every one of them is Ready: servers accept their values")
			return nil
		}
		if err == nil && len(open) == 0 {
			return &exitError{code: exitIncomplete, err: fmt.Errorf("not accepted, and they will not be by themselves: %s", strings.Join(stuck, "; "))}
		}
		if n := len(open); err == nil && n != told {
			told = n
			o.note("waiting for %d to be Ready", n)
		}
		select {
		case <-ctx.Done():
			if !errors.Is(context.Cause(ctx), errTimeout) {
				return fmt.Errorf("stopped waiting; what was created stays: %w", context.Canceled)
			}
			left := append(open, stuck...)
			if n := len(left); n > namesShown {
				left = append(left[:namesShown:namesShown], fmt.Sprintf("and %d more", n-namesShown))
			}
			return fmt.Errorf("not Ready within %s: %s. Is the controller running? See 'mintmark doctor'", o.timeout, strings.Join(left, "; "))
		case <-time.After(time.Second + time.Duration(len(open))*2*time.Millisecond): // each look lists them all
		}
	}
}

// notReady lists what was created and is not Ready yet, and what only a person can help.
func (c *cluster) notReady(ctx context.Context, lines []*importLine) (open, stuck []string, err error) {
	all, err := c.credentials(ctx, query{kinds: kinds, namespace: c.namespace})
	if err != nil {
		return nil, nil, err
	}
	now := map[ref]v1alpha1.Credential{}
	for _, o := range all {
		now[refOf(o)] = o
	}
	for _, l := range lines {
		if l.outcome != outcomeImported {
			continue
		}
		r := refOf(l.object)
		o, there := now[r]
		if !there {
			stuck = append(stuck, r.String()+" was deleted")
			continue
		}
		condition := readyCondition(o)
		switch {
		case isReady(o):
		case condition != nil && condition.ObservedGeneration == o.GetGeneration() && needsPerson(o, condition):
			stuck = append(stuck, fmt.Sprintf("%s: %s: %s", r, condition.Reason, oneLine(condition.Message)))
		default:
			open = append(open, r.String())
		}
	}
	return open, stuck, nil
}
