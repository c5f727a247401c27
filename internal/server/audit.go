package server

import (
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/audit"
	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/authz/policy"
)

// Audit is how a Server keeps the record of what it sees.
type Audit struct {
	// Recorder takes events in. Whoever made it runs it, for longer than the Server
	// runs. Nil: nothing is recorded.
	Recorder *audit.Recorder
	// Store keeps what is recorded once for good, and tombstones. Nil: there is none.
	Store Store
	// Exporter gets what goes into the Store past the Recorder; nil: nobody does.
	Exporter audit.Exporter
	// OTLP is the Exporter that sends events on, to be measured; nil: nobody does.
	OTLP *audit.OTLP
	// FailuresOnly leaves out requests that were let through.
	FailuresOnly bool
	// DenyOnOverflow denies everything while events are being lost.
	DenyOnOverflow bool
}

// auditor makes events of what this server sees. One that is nil makes none. It is safe
// for concurrent use.
type auditor struct {
	recorder     *audit.Recorder
	failuresOnly bool
	ids          *requestIDs
	// once stores what is to be there once, whichever server tells of it.
	once *ledger
}

// Bounds of what callers have a say in, in bytes.
const (
	maxAgentText   = 256
	maxPathText    = 1024
	maxNoteText    = 512
	maxSubjectText = 512
)

// request records what came of a request. For one that is let through by a key it takes
// no memory.
func (a *auditor) request(v *visit, took time.Duration) {
	if a == nil || v.route.event == "" || v.report != nil && v.report.Continued {
		return
	}
	e := audit.Event{
		At: v.began, Type: v.route.event, Outcome: auditOutcome(v.outcome), Reason: v.code, Client: v.client, Took: max(took, time.Microsecond),
	}
	if a.failuresOnly && e.Outcome == audit.Allowed && e.Type == audit.TypeAuthentication {
		return
	}
	if e.Reason == "" {
		e.Reason = v.verdict.Reason.Code()
		if e.Outcome != audit.Allowed && v.verdict.OK || v.route.access == accessAnyone {
			e.Reason = v.outcome.String()
		}
	}
	a.whose(&e, v)
	e.Method, e.Endpoint = methodName(v.method), audit.Text(v.route.path)
	if v.request.method != "" {
		e.Method = methodName(v.request.method)
	}
	if v.request.path != "" {
		e.Endpoint = audit.Clean(pathOnly(v.request.path), maxPathText)
	}
	agent := v.agent
	if v.request.userAgent != "" {
		agent = v.request.userAgent
	}
	e.UserAgent = audit.Clean(agent, maxAgentText)
	e.RequestID = a.requestID(v.id)
	e.Detail = detailOf(v)
	if v.route.managed {
		a.reported(&e, v)
	}
	a.recorder.Record(&e)
}

// pathOnly is what comes before a query, where somebody gave one for a path.
func pathOnly(path string) string {
	if end := strings.IndexAny(path, "?#"); end >= 0 {
		return path[:end]
	}
	return path
}

// whose tells of the credential that was presented, good or not.
func (a *auditor) whose(e *audit.Event, v *visit) {
	who := v.verdict.Principal
	if who == nil {
		who = v.verdict.Refused
	}
	if who == nil || who.Identity == nil {
		return
	}
	e.Subject, e.UID, e.Kind, e.Namespace, e.Name = who.Subject, who.UID, string(who.Kind), who.Namespace, who.Name
	e.Version, e.Prefix, e.Slot = who.Version, who.Prefix, slotOf(who.Slot)
	if who.Grant != nil {
		e.Class = who.Class
	}
	if who.Kind == "" { // another issuer's: the name is what that issuer says
		e.Subject = string(audit.Clean(e.Subject, maxSubjectText))
	}
}

func slotOf(s authn.Slot) audit.Slot {
	switch s {
	case authn.SlotCurrent:
		return audit.SlotCurrent
	case authn.SlotPrevious:
		return audit.SlotPrevious
	}
	return ""
}

func auditOutcome(o outcome) audit.Outcome {
	switch o {
	case outcomeOK:
		return audit.Allowed
	case outcomeUnauthenticated, outcomeForbidden, outcomeLimited:
		return audit.Denied
	default:
		return audit.Failed
	}
}

// byJWT is shared by all events of JWTs: a Recorder changes no detail it is handed.
var byJWT = map[string]audit.Text{"method": "jwt"}

// detailOf is what no field is for.
func detailOf(v *visit) map[string]audit.Text {
	if v.note == "" && v.request.action == "" {
		if v.how == presentedJWT {
			return byJWT
		}
		return nil
	}
	d := make(map[string]audit.Text, 3)
	if v.how == presentedJWT {
		d["method"] = "jwt"
	}
	if v.note != "" {
		d["note"] = audit.Clean(v.note, maxNoteText)
	}
	if v.request.action != "" {
		d["action"] = audit.Clean(v.request.action, maxNoteText)
	}
	return d
}

// traceIDLen is the length of the ids that nginx makes and that W3C Trace Context has, in
// hexadecimal digits. No value of ours is as short.
const traceIDLen = 32

// requestID is an id of ours as it is, and one that a proxy gave once it is safe.
func (a *auditor) requestID(id string) audit.Text {
	if a.ids != nil && strings.HasPrefix(id, a.ids.process) || len(id) == traceIDLen && isLowerHex(id) {
		return audit.Text(id)
	}
	return audit.Clean(id, maxRequestID)
}

func isLowerHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// agentOf is the User-Agent of a request.
func agentOf(h http.Header) string {
	if lines := h["User-Agent"]; len(lines) > 0 {
		return lines[0]
	}
	return ""
}

// recordRefused tells that somebody other than the controller wrote a status, or that
// what was written there cannot be used.
func (a *auditor) recordRefused(c v1alpha1.Credential, kind v1alpha1.Kind, reason string) {
	if a == nil {
		return
	}
	a.recorder.Record(&audit.Event{
		Type: audit.TypeRecordRefused, Outcome: audit.Denied, Reason: reason, UID: string(c.GetUID()), Kind: string(kind), Namespace: c.GetNamespace(),
		Name: c.GetName(), Subject: subjectOf(kind, c.GetNamespace(), c.GetName()), Class: c.CredentialSpec().CredentialClassName,
		Detail: map[string]audit.Text{"resource_version": audit.Clean(c.GetResourceVersion(), maxNoteText)},
	})
}

func subjectOf(kind v1alpha1.Kind, namespace, name string) string {
	return strings.ToLower(string(kind)) + ":" + namespace + ":" + name
}

// revocation tells of a Revocation, once however many servers apply it.
func (a *auditor) revocation(r *v1alpha1.Revocation) {
	if a == nil {
		return
	}
	a.later(audit.Event{
		ID: audit.FixedID("revocation", string(r.UID)), At: r.CreationTimestamp.Time, Type: audit.TypeRevocation, Outcome: audit.Done, Reason: "Created",
		Name: r.Name, Actor: audit.Clean(r.Annotations[v1alpha1.AnnotationRevokedBy], maxSubjectText),
		Detail: map[string]audit.Text{
			"revocation_uid": audit.Clean(string(r.UID), maxNoteText), "reason": audit.Clean(r.Spec.Reason, maxNoteText),
			"all": audit.Text(strconv.FormatBool(r.Spec.All)), "namespaces": audit.Clean(strings.Join(r.Spec.Namespaces, " "), maxNoteText),
		},
	})
}

// deleted tells that a credential is gone, once however many servers see it.
func (a *auditor) deleted(c v1alpha1.Credential, kind v1alpha1.Kind, at time.Time) {
	if a == nil {
		return
	}
	a.later(audit.Event{
		ID: audit.FixedID("deleted", string(c.GetUID())), At: at, Type: audit.TypeCredential, Outcome: audit.Done, Reason: "Deleted",
		UID: string(c.GetUID()), Kind: string(kind), Namespace: c.GetNamespace(), Name: c.GetName(), Subject: subjectOf(kind, c.GetNamespace(), c.GetName()),
		Class: c.CredentialSpec().CredentialClassName,
	})
}

// later stores an event once, or records it as others are where there is no store.
func (a *auditor) later(e audit.Event) {
	if a.once == nil {
		a.recorder.Record(&e)
		return
	}
	a.once.later(e)
}

// dryRun tells what a policy that only tries would have refused.
func (a *auditor) dryRun(f *policy.Finding, subject string) {
	if a == nil {
		return
	}
	a.recorder.Record(&audit.Event{
		Type: audit.TypePolicyDryRun, Outcome: audit.Denied, Reason: f.Code, Subject: string(audit.Clean(subject, maxSubjectText)),
		Detail: map[string]audit.Text{"policy": audit.Clean(f.Policy, maxNoteText), "rule": audit.Clean(f.Rule, maxNoteText)},
	})
}

// addressBlocked tells that an address is answered no more until a time.
func (a *auditor) addressBlocked(client netip.Addr, reason string, until time.Time) {
	if a == nil {
		return
	}
	a.recorder.Record(&audit.Event{
		Type: audit.TypeAddressBlocked, Outcome: audit.Denied, Reason: reason, Client: client,
		Detail: map[string]audit.Text{"until": audit.Text(until.UTC().Format(time.RFC3339))},
	})
}

// server tells that this server has started or stopped.
func (a *auditor) server(t audit.Type, reason string) {
	if a == nil {
		return
	}
	a.recorder.Record(&audit.Event{Type: t, Outcome: audit.Done, Reason: reason})
}
