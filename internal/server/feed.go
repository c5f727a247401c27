package server

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/authz"
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

// credentialSink applies credentials of one kind, of one namespace or all.
type credentialSink struct {
	f         *feed
	kind      v1alpha1.Kind
	namespace string
	relist    *authn.Relist // while a list is under way

	mu       sync.Mutex
	refused  map[string]recordRefusal // by UID
	awaiting int                      // of these, for a pepper
}

// recordRefusal is a refusal as it was logged.
type recordRefusal struct{ reason, resourceVersion string }

func (s *credentialSink) BeginList() { s.relist = s.f.index.BeginRelist(s.kind, s.namespace) }

func (s *credentialSink) EndList() {
	for _, uid := range s.relist.End() {
		s.settled(uid)
		s.f.inventory.missed(uid)
		s.f.log.Debug("credential is gone, and no event told so", "kind", s.kind, "uid", uid)
	}
	s.relist = nil
}

func (s *credentialSink) Put(object runtime.Object) {
	c, ok := object.(v1alpha1.Credential)
	if !ok {
		return
	}
	if s.relist != nil {
		s.relist.Seen(string(c.GetUID()))
	}
	record, reason := s.open(c)
	outcome := s.f.index.Apply(authn.LiveOf(c), record)
	s.f.tombstones.see(c)
	s.f.inventory.see(c, record)
	switch {
	case outcome.Record.Refused():
		reason = string(outcome.Record)
	case outcome.Orphaned && reason == "":
		reason = refusedMissing
	}
	if len(outcome.Conflicts) > 0 && reason == "" {
		reason = authn.ReasonDigestConflict.Code()
	}
	if reason == "" {
		s.settled(string(c.GetUID()))
		return
	}
	s.refuse(c, reason)
}

// Why a record can be refused before the index sees it.
const (
	refusedSeal    = "Seal"
	refusedPepper  = "UnknownPepper"
	refusedContent = "Unreadable"
	refusedMissing = "Missing"
)

// open gives the record whose seal holds, or why there is none.
func (s *credentialSink) open(c v1alpha1.Credential) (record *credential.Record, refused string) {
	status := c.CredentialStatus()
	if len(status.Record) == 0 && status.Seal == "" {
		return nil, "" // not minted yet
	}
	var peppers credential.Peppers
	if known := s.f.keys.peppers.Load(); known != nil {
		peppers = *known
	}
	record, err := credential.OpenRecord(peppers, status.Record, status.Seal)
	switch {
	case err == nil:
		return record, ""
	case errors.Is(err, credential.ErrUnknownPepper):
		return nil, refusedPepper
	case errors.Is(err, credential.ErrRecord):
		return nil, refusedContent
	default:
		return nil, refusedSeal
	}
}

func (s *credentialSink) Delete(object runtime.Object) {
	if c, ok := object.(v1alpha1.Credential); ok {
		s.f.tombstones.going(c)
		s.f.audit.deleted(c, s.kind, s.f.now())
		s.f.inventory.going(c)
		s.f.index.Delete(string(c.GetUID()))
		s.settled(string(c.GetUID()))
	}
}

// refuse notes a refusal, and logs it unless it is the one already known: this belongs
// into the audit trail.
func (s *credentialSink) refuse(c v1alpha1.Credential, reason string) {
	uid := string(c.GetUID())
	s.mu.Lock()
	former, now := s.refused[uid], recordRefusal{reason, c.GetResourceVersion()}
	s.refused[uid] = now
	s.awaiting += awaits(reason) - awaits(former.reason)
	s.mu.Unlock()
	if former == now {
		return
	}
	s.f.metrics.refused.WithLabelValues(reason).Inc()
	s.f.audit.recordRefused(c, s.kind, reason)
	s.f.log.Warn("record refused; the last good one, if there is one, stays in force",
		"audit", true, "kind", s.kind, "namespace", c.GetNamespace(), "name", c.GetName(), "uid", uid,
		"resourceVersion", c.GetResourceVersion(), "reason", reason, "remedy", refusalRemedy(reason))
}

func awaits(reason string) int {
	if reason == refusedPepper {
		return 1
	}
	return 0
}

func refusalRemedy(reason string) string {
	switch reason {
	case refusedPepper:
		return "keep the peppers that records are sealed with in the Secret " + keyring.PepperSecret
	case refusedContent:
		return "upgrade the servers before the controllers"
	case authn.ReasonDigestConflict.Code():
		return "an older credential has the same value: give this one another"
	default:
		return "somebody other than the controller wrote the status: see who in the audit log of the API server; the controller writes it anew"
	}
}

func (s *credentialSink) settled(uid string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.awaiting -= awaits(s.refused[uid].reason)
	delete(s.refused, uid)
}

func (s *credentialSink) awaitsPepper() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.awaiting > 0
}

func (s *credentialSink) refusals() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.refused)
}

func (s *credentialSink) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused, s.awaiting = map[string]recordRefusal{}, 0
}

// classSink applies CredentialClasses.
type classSink struct {
	f      *feed
	listed roster
}

func (s *classSink) BeginList() { s.listed.begin() }

func (s *classSink) EndList() { s.listed.end(s.f.index.DeleteClass) }

func (s *classSink) Put(object runtime.Object) {
	c, ok := object.(*v1alpha1.CredentialClass)
	if !ok {
		return
	}
	s.listed.put(c.Name)
	if err := s.f.index.SetClass(c.Name, &c.Spec); err != nil {
		s.f.log.Warn("CredentialClass cannot be applied whole; what cannot be read allows nothing", "class", c.Name, "error", err.Error())
	}
}

func (s *classSink) Delete(object runtime.Object) {
	if c, ok := object.(*v1alpha1.CredentialClass); ok {
		s.listed.drop(c.Name)
		s.f.index.DeleteClass(c.Name)
	}
}

// roleSink applies AccessRoles.
type roleSink struct {
	f      *feed
	listed roster
}

func (s *roleSink) BeginList() { s.listed.begin() }

func (s *roleSink) EndList() { s.listed.end(s.f.index.DeleteRole) }

func (s *roleSink) Put(object runtime.Object) {
	if r, ok := object.(*v1alpha1.AccessRole); ok {
		s.listed.put(r.Name)
		s.f.index.SetRole(r.Name, authz.Strings(r.Spec.Permissions))
	}
}

func (s *roleSink) Delete(object runtime.Object) {
	if r, ok := object.(*v1alpha1.AccessRole); ok {
		s.listed.drop(r.Name)
		s.f.index.DeleteRole(r.Name)
	}
}

// namespaceSink applies the labels of namespaces.
type namespaceSink struct {
	f      *feed
	listed roster
}

func (s *namespaceSink) BeginList() { s.listed.begin() }

func (s *namespaceSink) EndList() { s.listed.end(s.f.index.DeleteNamespace) }

func (s *namespaceSink) Put(object runtime.Object) {
	if ns, ok := object.(*metav1.PartialObjectMetadata); ok {
		s.listed.put(ns.Name)
		s.f.index.SetNamespace(ns.Name, ns.Labels)
	}
}

func (s *namespaceSink) Delete(object runtime.Object) {
	if ns, ok := object.(*metav1.PartialObjectMetadata); ok {
		s.listed.drop(ns.Name)
		s.f.index.DeleteNamespace(ns.Name)
	}
}

// revocationSink applies Revocations. They are few, and it keeps what it needs of each to
// take it back if a list turns out not to hold it.
type revocationSink struct {
	f      *feed
	listed roster
	last   map[string]*v1alpha1.Revocation // by UID
}

func (s *revocationSink) BeginList() { s.listed.begin() }

func (s *revocationSink) EndList() {
	s.listed.end(func(uid string) { s.remove(s.last[uid]) })
}

func (s *revocationSink) Put(object runtime.Object) {
	r, ok := object.(*v1alpha1.Revocation)
	if !ok {
		return
	}
	uid := string(r.UID)
	s.listed.put(uid)
	first := s.last[uid] == nil
	if s.last == nil {
		s.last = map[string]*v1alpha1.Revocation{}
	}
	s.last[uid] = &v1alpha1.Revocation{ObjectMeta: metav1.ObjectMeta{Name: r.Name, UID: r.UID}, Status: r.Status}
	err := s.f.index.SetRevocation(r)
	if !first {
		return
	}
	if err != nil {
		s.f.log.Warn("Revocation cannot be applied", "audit", true, "revocation", r.Name, "uid", uid, "error", err.Error())
		return
	}
	s.f.audit.revocation(r)
	s.f.log.Info("Revocation applied", "audit", true, "revocation", r.Name, "uid", uid, "reason", r.Spec.Reason)
}

func (s *revocationSink) Delete(object runtime.Object) {
	if r, ok := object.(*v1alpha1.Revocation); ok {
		s.listed.drop(string(r.UID))
		s.remove(r)
	}
}

func (s *revocationSink) remove(r *v1alpha1.Revocation) {
	if r != nil {
		delete(s.last, string(r.UID))
		s.f.index.DeleteRevocation(r)
	}
}

// heartbeatSink reads the controller's heartbeat.
type heartbeatSink struct {
	freshness *freshness
	now       func() time.Time
}

func (s *heartbeatSink) BeginList() {}
func (s *heartbeatSink) EndList()   {}

func (s *heartbeatSink) Put(object runtime.Object) {
	lease, ok := object.(*coordinationv1.Lease)
	if !ok || lease.Name != HeartbeatLease || lease.Spec.RenewTime == nil {
		return
	}
	holder := ""
	if lease.Spec.HolderIdentity != nil {
		holder = *lease.Spec.HolderIdentity
	}
	s.freshness.heartbeat(holder, lease.Spec.RenewTime.Time, s.now())
}

func (s *heartbeatSink) Delete(runtime.Object) {}

// roster is what is known by name, to find what a list no longer holds.
type roster struct {
	known, listed map[string]struct{}
}

func (r *roster) begin() { r.listed = map[string]struct{}{} }

func (r *roster) put(name string) {
	if r.known == nil {
		r.known = map[string]struct{}{}
	}
	r.known[name] = struct{}{}
	if r.listed != nil {
		r.listed[name] = struct{}{}
	}
}

func (r *roster) drop(name string) {
	delete(r.known, name)
	delete(r.listed, name)
}

func (r *roster) end(gone func(name string)) {
	for _, name := range slices.Sorted(maps.Keys(r.known)) {
		if _, ok := r.listed[name]; !ok {
			delete(r.known, name)
			gone(name)
		}
	}
	r.listed = nil
}
