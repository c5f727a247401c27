package server

import (
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/authz"
	"github.com/mintmark-dev/mintmark/internal/credential"
	"github.com/mintmark-dev/mintmark/internal/keyring"
)

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
