package server

import (
	"encoding/json"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/audit"
	"github.com/mintmark-dev/mintmark/internal/server/listwatch"
)

// changeSink tells the audit log of what is made, changed and taken away of a kind that
// says who may do what, and passes it on. Every server does, and each generation of an
// object is one event: its id is made of the two.
type changeSink struct {
	listwatch.Sink

	audit  *auditor
	kind   string
	listed roster
	last   map[string]metav1.Object // by UID; metadata alone
	// followed: everything has been listed once, so what comes is new.
	followed bool
}

// recorded has the audit log told of what the sink is fed.
func (f *feed) recorded(kind string, sink listwatch.Sink) listwatch.Sink {
	if f.audit == nil {
		return sink
	}
	return &changeSink{Sink: sink, audit: f.audit, kind: kind, last: map[string]metav1.Object{}}
}

// BeginList implements listwatch.Sink.
func (s *changeSink) BeginList() {
	s.listed.begin()
	s.Sink.BeginList()
}

// EndList implements listwatch.Sink.
func (s *changeSink) EndList() {
	s.Sink.EndList()
	s.listed.end(func(uid string) { s.gone(s.last[uid]) })
	s.followed = true
}

// Put implements listwatch.Sink.
func (s *changeSink) Put(object runtime.Object) {
	s.Sink.Put(object)
	o, ok := object.(metav1.Object)
	if !ok {
		return
	}
	uid := string(o.GetUID())
	s.listed.put(uid)
	before := s.last[uid]
	if before != nil && before.GetGeneration() >= o.GetGeneration() {
		return
	}
	s.last[uid] = &metav1.ObjectMeta{Name: o.GetName(), UID: o.GetUID(), Generation: o.GetGeneration()}
	if before == nil && !s.followed && s.audit.once == nil {
		return // as it was before: where nothing is recorded once, each start would tell of it
	}
	s.audit.later(s.change(object, o))
}

// Delete implements listwatch.Sink.
func (s *changeSink) Delete(object runtime.Object) {
	s.Sink.Delete(object)
	if o, ok := object.(metav1.Object); ok {
		s.listed.drop(string(o.GetUID()))
		s.gone(o)
	}
}

// change is the event of an object's generation.
func (s *changeSink) change(object runtime.Object, o metav1.Object) audit.Event {
	e := s.about(o)
	e.ID = audit.FixedID("changed", string(o.GetUID()), strconv.FormatInt(o.GetGeneration(), 10))
	e.At, e.Reason = changedAt(o), "Changed"
	if o.GetGeneration() <= 1 {
		e.Reason = "Created"
	}
	e.Actor = audit.Clean(changedBy(o), maxSubjectText)
	e.Detail = map[string]audit.Text{"generation": audit.Text(strconv.FormatInt(o.GetGeneration(), 10)), "spec": audit.Clean(specOf(object), maxPathText)}
	return e
}

// gone tells that the object is there no longer. Who took it away Kubernetes does not say.
func (s *changeSink) gone(o metav1.Object) {
	if o == nil {
		return
	}
	delete(s.last, string(o.GetUID()))
	e := s.about(o)
	e.ID, e.At, e.Reason = audit.FixedID("removed", string(o.GetUID())), time.Now(), "Deleted"
	s.audit.later(e)
}

func (s *changeSink) about(o metav1.Object) audit.Event {
	return audit.Event{
		Type: audit.TypeConfiguration, Outcome: audit.Done, UID: string(o.GetUID()), Kind: s.kind, Name: o.GetName(),
		Subject: strings.ToLower(s.kind) + ":" + o.GetName(),
	}
}

// changedAt is when the object was last written, apart from its status: about when its
// spec was. It is the same to every server.
func changedAt(o metav1.Object) time.Time {
	at := o.GetCreationTimestamp().Time
	for _, m := range o.GetManagedFields() {
		if m.Subresource == "" && m.Time != nil && m.Time.After(at) {
			at = m.Time.Time
		}
	}
	return at
}

// changedBy is who changed the object, as admission wrote it down for this generation. Where
// it did not, it is the tool that says it did.
func changedBy(o metav1.Object) string {
	generation, user, ok := strings.Cut(o.GetAnnotations()[v1alpha1.AnnotationChangedBy], " ")
	if ok && generation == strconv.FormatInt(o.GetGeneration(), 10) {
		return user
	}
	tool, latest := "", time.Time{}
	for _, m := range o.GetManagedFields() {
		if m.Subresource == "" && m.Time != nil && !m.Time.Time.Before(latest) {
			tool, latest = m.Manager, m.Time.Time
		}
	}
	if tool == "" {
		return ""
	}
	return "with " + tool
}

// specOf is the spec in JSON.
func specOf(object runtime.Object) string {
	text, err := json.Marshal(object)
	if err != nil {
		return ""
	}
	var of struct {
		Spec json.RawMessage `json:"spec"`
	}
	if err := json.Unmarshal(text, &of); err != nil {
		return ""
	}
	return string(of.Spec)
}
