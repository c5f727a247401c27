package server

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/credential"
	"github.com/mintmark-dev/mintmark/internal/keyring"
	"github.com/mintmark-dev/mintmark/internal/server/listwatch"
)

// feed tells the index what the API server holds. Objects pass through and are not kept.
//
// It runs in sessions. A session ends when the cluster turns out to have been restored
// from a backup; the index is dropped then, and the next session starts cold.
type feed struct {
	clients    *clients
	namespace  string   // of the installation
	namespaces []string // watched; empty means all
	index      *authn.Index
	keys       *keys
	ready      *readiness
	freshness  *freshness
	policies   *policies
	denied     *denyList
	foreign    *foreign
	metrics    *metrics
	audit      *auditor
	tombstones *tombstones
	inventory  *inventory
	log        *slog.Logger
	now        func() time.Time

	relistEvery time.Duration
	sinks       []sourced // with the sinks' memory, from one session to the next
	credentials []*credentialSink
}

// sourced is a sink and where it is fed from.
type sourced struct {
	name   string
	source listwatch.Source
	sink   listwatch.Sink
	// late: begun once the others have been listed, for every credential would have
	// to be worked out again for each class and namespace that comes after it.
	late bool
}

// defaultRelistEvery bounds how long an event that the API server failed to send can
// matter.
const defaultRelistEvery = 10 * time.Minute

// prepare makes the sinks.
func (f *feed) prepare() {
	if f.relistEvery == 0 {
		f.relistEvery = defaultRelistEvery
	}
	own := func(resource, name string) listwatch.Source {
		return f.clients.core.source(resource, f.namespace, name, &corev1.SecretList{})
	}
	for name, read := range map[string]func(*corev1.Secret) error{
		keyring.PepperSecret: f.keys.readPeppers, keyring.SigningKeysSecret: f.keys.readSigning, certificateSecret: f.keys.readCertificate,
	} {
		f.add("secrets/"+name, own("secrets", name), &secretSink{name: name, read: read, log: f.log})
	}
	f.add("leases.coordination.k8s.io/"+HeartbeatLease,
		f.clients.coordination.source("leases", f.namespace, HeartbeatLease, &coordinationv1.LeaseList{}), &heartbeatSink{f.freshness, f.now})
	f.add("configmaps/"+RevokedTokensConfigMap,
		f.clients.core.source("configmaps", f.namespace, RevokedTokensConfigMap, &corev1.ConfigMapList{}), f.denied)
	mintmark := f.clients.mintmark
	f.add("credentialclasses.mintmark.dev", mintmark.source("credentialclasses", "", "", &v1alpha1.CredentialClassList{}), f.recorded("CredentialClass", &classSink{f: f}))
	f.add("accessroles.mintmark.dev", mintmark.source("accessroles", "", "", &v1alpha1.AccessRoleList{}), f.recorded("AccessRole", &roleSink{f: f}))
	f.add("revocations.mintmark.dev", mintmark.source("revocations", "", "", &v1alpha1.RevocationList{}), &revocationSink{f: f})
	f.add("accesspolicies.mintmark.dev", mintmark.source("accesspolicies", "", "", &v1alpha1.AccessPolicyList{}),
		f.recorded("AccessPolicy", &policySink{policies: f.policies}))
	f.add("trustedissuers.mintmark.dev", mintmark.source("trustedissuers", "", "", &v1alpha1.TrustedIssuerList{}),
		f.recorded("TrustedIssuer", &issuerSink{foreign: f.foreign}))
	if len(f.namespaces) == 0 {
		f.add("namespaces", f.clients.namespaces(""), &namespaceSink{f: f})
		f.addCredentials("")
		return
	}
	for _, ns := range f.namespaces {
		f.add("namespaces/"+ns, f.clients.namespaces(ns), &namespaceSink{f: f})
		f.addCredentials(ns)
	}
}

func (f *feed) add(name string, source listwatch.Source, sink listwatch.Sink) {
	f.sinks = append(f.sinks, sourced{name: name, source: source, sink: sink})
}

func (f *feed) addCredentials(ns string) {
	for _, c := range []struct {
		kind     v1alpha1.Kind
		resource string
	}{{v1alpha1.KindServiceToken, "servicetokens"}, {v1alpha1.KindAPIKey, "apikeys"}} {
		name := c.resource + ".mintmark.dev"
		if ns != "" {
			name += " in namespace " + ns
		}
		sink := &credentialSink{f: f, kind: c.kind, namespace: ns, refused: map[string]recordRefusal{}}
		f.credentials = append(f.credentials, sink)
		source := f.clients.mintmark.slimSource(c.kind, c.resource, ns)
		f.sinks = append(f.sinks, sourced{name: name, source: source, sink: sink, late: true})
		f.inventory.add(shelf{kind: c.kind, namespace: ns, source: source, open: sink.open})
	}
}

// Run follows the API server until the context ends, whose error it returns.
func (f *feed) Run(ctx context.Context) error {
	for {
		// The Lease comes before the lists: see presence.
		if err := f.awaitLease(ctx); err != nil {
			return err
		}
		err := f.session(ctx)
		if !errors.Is(err, listwatch.ErrRestored) {
			return err
		}
		f.log.Error("the cluster was restored from a backup: dropping what was known and starting cold", "cause", err.Error())
		f.metrics.restored.Inc()
		f.ready.warm.Store(false)
		f.ready.loops.Store(nil)
		f.freshness.forget()
		f.index.Reset()
		for _, c := range f.credentials {
			c.forget()
		}
		f.inventory.restored()
		f.ready.presence.end()
	}
}

func (f *feed) awaitLease(ctx context.Context) error {
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		if _, err := f.ready.presence.held(f.now()); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}

// session lists everything, says so, and follows it.
func (f *feed) session(parent context.Context) error {
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	loops := make([]*listwatch.Loop, len(f.sinks))
	for i, s := range f.sinks {
		loops[i] = listwatch.New(listwatch.Config{Name: s.name, Source: s.source, Sink: s.sink, RelistEvery: f.relistEvery, Log: f.log})
	}
	f.ready.loops.Store(&loops)

	var running sync.WaitGroup
	defer running.Wait()
	start := func(late bool) {
		for i, s := range f.sinks {
			if s.late == late {
				running.Go(func() {
					if err := loops[i].Run(ctx); ctx.Err() == nil {
						cancel(err)
					}
				})
			}
		}
		for i, s := range f.sinks {
			if s.late == late {
				select {
				case <-loops[i].Synced():
				case <-ctx.Done():
				}
			}
		}
	}
	began := f.now()
	start(false)
	start(true)
	if ctx.Err() == nil {
		f.setDeadline(loops)
		f.ready.warm.Store(true)
		f.log.Info("everything has been listed", "credentials", f.index.Len(), "took", f.now().Sub(began).Round(time.Millisecond).String())
	}
	f.watchAge(ctx, loops)
	return context.Cause(ctx)
}

// ageEvery is how often the deadline of the index is moved on.
const ageEvery = 200 * time.Millisecond

// watchAge hands the index the time until which it may be trusted, and keeps what is known
// from ageing where only the heartbeat is missing: with no controller running, lists
// begun now are as good a sign that this server is not cut off.
func (f *feed) watchAge(ctx context.Context, loops []*listwatch.Loop) {
	ticker := time.NewTicker(min(ageEvery, f.ready.maxStaleness/4+time.Millisecond))
	defer ticker.Stop()
	var asked time.Time
	for {
		now := f.now()
		if age := f.setDeadline(loops); age > f.ready.maxStaleness/2 && now.Sub(asked) > f.ready.maxStaleness/8 {
			asked = now
			f.relistAll()
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// setDeadline sets until when what is known may be trusted, and gives its age.
func (f *feed) setDeadline(loops []*listwatch.Loop) time.Duration {
	f.freshness.listed(oldest(loops))
	now := f.now()
	age, ok := f.ready.age(now)
	if !ok {
		return 0
	}
	// The deadline is by the wall clock and the age is not: setting it anew each time
	// keeps a clock that is stepped from mattering.
	deadline := now.Add(f.ready.maxStaleness - age).Round(0)
	f.index.SetDeadline(deadline)
	f.ready.until.Store(deadline.UnixNano())
	return age
}

// oldest is when the oldest of the lists in force was begun; zero before the first.
func oldest(loops []*listwatch.Loop) time.Time {
	var at time.Time
	for i, l := range loops {
		if listed := l.Health().Listed; i == 0 || listed.Before(at) {
			at = listed
		}
	}
	return at
}

// relist has everything about credentials listed again.
func (f *feed) relist() {
	loops := f.ready.loops.Load()
	if loops == nil {
		return
	}
	for i, l := range *loops {
		if f.sinks[i].late {
			l.Relist()
		}
	}
}

// relistAll has everything listed again.
func (f *feed) relistAll() {
	if loops := f.ready.loops.Load(); loops != nil {
		for _, l := range *loops {
			l.Relist()
		}
	}
}

// peppersChanged opens again what could not be opened before.
func (f *feed) peppersChanged(peppers credential.Peppers) {
	f.index.SetPeppers(peppers)
	for _, c := range f.credentials {
		if c.awaitsPepper() {
			f.relist()
			return
		}
	}
}

// refusedNow counts the credentials whose latest record is refused.
func (f *feed) refusedNow() int {
	n := 0
	for _, c := range f.credentials {
		n += c.refusals()
	}
	return n
}
