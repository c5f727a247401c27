package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationclient "k8s.io/client-go/kubernetes/typed/coordination/v1"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// The times of the Lease. A server is out of service well before its Lease can lapse
// for a controller whose clock differs a little.
const (
	leaseDuration = 15 * time.Second
	renewEvery    = 3 * time.Second
	retryEvery    = 500 * time.Millisecond
	holdFor       = 10 * time.Second // after the last renewal was sent
	renewTimeout  = 4 * time.Second
)

// LeaseName is the name of the Lease of the server with this id.
func LeaseName(id string) string { return "mintmark-server-" + id }

// errSuperseded: another process works under this server's id.
var errSuperseded = errors.New("another server has taken the Lease: give each server an --id of its own")

// presence is the server's Lease. While it is held, a controller delivers no value
// before it has heard from this server that it accepts it.
//
// A tenure is an unbroken time of holding it. What was listed before the tenure began may
// lack what a controller committed, asking nobody, while no Lease was held; so only lists
// begun within the tenure count for readiness.
type presence struct {
	leases coordinationclient.LeaseInterface
	id     string
	holder string // unique to this process
	url    func() string
	log    *slog.Logger
	// onTenure is called when a tenure begins.
	onTenure func()

	lease *coordinationv1.Lease // as last written; belongs to the goroutine of Run
	gap   bool                  // the Lease was missing for a while; likewise

	mu      sync.Mutex
	renewed time.Time // when the last successful renewal was sent
	tenure  time.Time // when the tenure's first write was acknowledged
	err     error     // of the latest renewal
}

// Run renews the Lease until the context ends, or until another process holds it:
// errSuperseded.
func (p *presence) Run(ctx context.Context) error {
	for {
		pause := renewEvery
		switch err := p.renew(ctx); {
		case errors.Is(err, errSuperseded):
			return fmt.Errorf("lease %s: %w", LeaseName(p.id), err)
		case err != nil:
			pause = retryEvery
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// renew writes the Lease once.
func (p *presence) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	sent := time.Now()
	written, err := p.write(ctx, sent)
	if err != nil {
		p.failed(err)
		return err
	}
	p.lease = written
	p.succeeded(sent, time.Now(), p.gap)
	p.gap = false
	return nil
}

func (p *presence) write(ctx context.Context, now time.Time) (*coordinationv1.Lease, error) {
	if p.lease == nil {
		return p.take(ctx, now)
	}
	written, err := p.leases.Update(ctx, p.wanted(p.lease, now), metav1.UpdateOptions{})
	if !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
		return written, err
	}
	// Deleted, or written by somebody else: a successor under the same id, or a person.
	found, err := p.leases.Get(ctx, LeaseName(p.id), metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		p.gap = true // a controller that looked meanwhile saw nobody to ask
		return p.leases.Create(ctx, p.wanted(nil, now), metav1.CreateOptions{})
	case err != nil:
		return nil, err
	case found.Spec.HolderIdentity != nil && *found.Spec.HolderIdentity != p.holder:
		return nil, errSuperseded
	}
	return p.leases.Update(ctx, p.wanted(found, now), metav1.UpdateOptions{})
}

// take makes the Lease, or takes it over from a former process of the same id, of
// which nothing is presumed: the controller asks the URL, and it is ours from here on.
func (p *presence) take(ctx context.Context, now time.Time) (*coordinationv1.Lease, error) {
	created, err := p.leases.Create(ctx, p.wanted(nil, now), metav1.CreateOptions{})
	if !apierrors.IsAlreadyExists(err) {
		return created, err
	}
	found, err := p.leases.Get(ctx, LeaseName(p.id), metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	return p.leases.Update(ctx, p.wanted(found, now), metav1.UpdateOptions{})
}

// wanted is the Lease to write over what was found; nil makes a new one.
func (p *presence) wanted(found *coordinationv1.Lease, now time.Time) *coordinationv1.Lease {
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: LeaseName(p.id)}}
	if found != nil {
		lease = found.DeepCopy()
	}
	if lease.Labels == nil {
		lease.Labels = map[string]string{}
	}
	lease.Labels[v1alpha1.LabelServer] = "true"
	if lease.Annotations == nil {
		lease.Annotations = map[string]string{}
	}
	lease.Annotations[v1alpha1.AnnotationInternalURL] = p.url()
	renewed := metav1.NewMicroTime(now)
	if lease.Spec.HolderIdentity == nil || *lease.Spec.HolderIdentity != p.holder {
		if lease.Spec.HolderIdentity != nil {
			transitions := int32(1)
			if lease.Spec.LeaseTransitions != nil {
				transitions += *lease.Spec.LeaseTransitions
			}
			lease.Spec.LeaseTransitions = &transitions
		}
		lease.Spec.HolderIdentity, lease.Spec.AcquireTime = &p.holder, &renewed
	}
	seconds := int32(leaseDuration / time.Second)
	lease.Spec.LeaseDurationSeconds, lease.Spec.RenewTime = &seconds, &renewed
	return lease
}

func (p *presence) succeeded(sent, acknowledged time.Time, gap bool) {
	p.mu.Lock()
	began := gap || p.renewed.IsZero() || acknowledged.Sub(p.renewed) >= leaseDuration
	recovered := p.err != nil
	p.renewed, p.err = sent, nil
	if began {
		p.tenure = acknowledged
	}
	p.mu.Unlock()
	if recovered {
		p.log.Info("renewing the Lease succeeds again", "lease", LeaseName(p.id))
	}
	if began && p.onTenure != nil {
		p.onTenure()
	}
}

func (p *presence) failed(err error) {
	p.mu.Lock()
	first := p.err == nil
	p.err = err
	p.mu.Unlock()
	if first {
		p.log.Warn("cannot renew the Lease; this server goes out of service if that goes on",
			"lease", LeaseName(p.id), "error", err.Error(), "remedy", leaseRemedy(err))
	}
}

func leaseRemedy(err error) string {
	if apierrors.IsForbidden(err) {
		return "grant this service account the verbs get, create, update and delete on leases.coordination.k8s.io " +
			"in the installation's namespace (Role mintmark-server)"
	}
	return "check that the API server can be reached; trying again"
}

// held tells whether the Lease is held at now, since when, and if not, why.
func (p *presence) held(now time.Time) (tenure time.Time, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.renewed.IsZero() && p.err != nil:
		return time.Time{}, fmt.Errorf("no Lease yet: %w", p.err)
	case p.renewed.IsZero():
		return time.Time{}, errors.New("no Lease yet")
	case now.Sub(p.renewed) >= holdFor:
		return time.Time{}, fmt.Errorf("the Lease has not been renewed for %s", now.Sub(p.renewed).Round(time.Second))
	}
	return p.tenure, nil
}

// end ends the tenure: the next renewal begins another.
func (p *presence) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.renewed = time.Time{}
}

// release deletes the Lease, unless it is another's by now. Call it when Run has returned
// and nothing is served any more.
func (p *presence) release(ctx context.Context) error {
	if p.lease == nil {
		return nil
	}
	// Read anew: a renewal may have been cut short whose answer was not seen.
	found, err := p.leases.Get(ctx, p.lease.Name, metav1.GetOptions{})
	if err == nil {
		if found.Spec.HolderIdentity == nil || *found.Spec.HolderIdentity != p.holder {
			return nil
		}
		err = p.leases.Delete(ctx, found.Name, metav1.DeleteOptions{
			Preconditions: &metav1.Preconditions{UID: &found.UID, ResourceVersion: &found.ResourceVersion},
		})
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("deleting lease %s: %w", p.lease.Name, err)
	}
	return nil
}
