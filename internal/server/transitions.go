package server

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	strictjson "sigs.k8s.io/json"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/audit"
	"github.com/mintmark-dev/mintmark/internal/internalapi"
)

// maxTransitionsBody leaves room for MaxTransitions with long reasons and actors.
const maxTransitionsBody = 8 << 20

// auditor makes what records; nil where nothing does.
func (a Audit) auditor(id string, log *slog.Logger) *auditor {
	if a.Recorder == nil {
		return nil
	}
	made := &auditor{recorder: a.Recorder, failuresOnly: a.FailuresOnly}
	if a.Store != nil {
		made.once = newLedger(a.Store, a.Exporter, id, id+"_"+processID(), log)
	}
	return made
}

// once is what stores events that are recorded once for good; nil without a store.
func (s *Server) once() *ledger {
	if s.audit == nil {
		return nil
	}
	return s.audit.once
}

func (s *Server) system() *system {
	return &system{
		id: s.config.ID, started: time.Now(), ready: s.ready, indexed: s.index.Len, recorder: s.config.Audit.Recorder, store: s.config.Audit.Store,
		once: s.once(), tombstone: s.buried,
	}
}

// runAudit runs what records beside the Recorder.
func (s *Server) runAudit(ctx context.Context, workers *sync.WaitGroup) {
	s.audit.server(audit.TypeServerStarted, "Started")
	if once := s.once(); once != nil {
		workers.Go(func() { once.Run(ctx) })
	}
	if s.buried != nil {
		workers.Go(func() { s.buried.Run(ctx) })
		workers.Go(func() { s.inventory.Run(ctx) })
	}
}

// transitions answers TransitionsPath: once it says stored, every item is.
func (l *internalListener) transitions(w http.ResponseWriter, r *http.Request) *problem {
	ask, events, p := l.readTransitions(w, r)
	if p != nil {
		return p
	}
	if l.once == nil {
		if ask.Export && l.audit != nil {
			for i := range events {
				l.audit.recorder.Record(&events[i])
			}
		}
		return writeJSON(w, internalapi.TransitionsResponse{Server: l.id, NoStore: true})
	}
	ctx, cancel := context.WithTimeout(r.Context(), onceTimeout)
	defer cancel()
	if err := l.once.put(ctx, events); err != nil {
		l.log.Warn("transitions of credentials cannot be stored; the controller keeps them until they are", "transitions", len(events), "error", err.Error())
		return problemUnavailable
	}
	return writeJSON(w, internalapi.TransitionsResponse{Server: l.id, Stored: true})
}

func (l *internalListener) readTransitions(w http.ResponseWriter, r *http.Request) (*internalapi.TransitionsRequest, []audit.Event, *problem) {
	body, p := readBody(w, r, maxTransitionsBody)
	if p != nil {
		return nil, nil, p
	}
	ask := new(internalapi.TransitionsRequest)
	if strict, err := strictjson.UnmarshalStrict(body, ask); err != nil || len(strict) > 0 {
		return nil, nil, badRequest("The body is not a TransitionsRequest in JSON.")
	}
	if len(ask.Items) > internalapi.MaxTransitions {
		return nil, nil, badRequest(fmt.Sprintf("items has more than %d entries: hand them over in parts.", internalapi.MaxTransitions))
	}
	events := make([]audit.Event, len(ask.Items))
	for i := range ask.Items {
		var err error
		if events[i], err = eventOf(&ask.Items[i], l.id, time.Now()); err != nil {
			return nil, nil, badRequest(fmt.Sprintf("items[%d].id: %s.", i, err))
		}
	}
	return ask, events, nil
}

// A time far from now is not when anything happened, and a store has a partition for each
// month.
const (
	oldestTransition = 2 * 365 * 24 * time.Hour
	latestTransition = 24 * time.Hour
)

// eventOf is a transition as it is stored. Reason and actor are people's text.
func eventOf(t *internalapi.TransitionItem, server string, now time.Time) (audit.Event, error) {
	id, err := audit.ParseID(t.ID)
	if err != nil {
		return audit.Event{}, err
	}
	at := t.At
	if at.Before(now.Add(-oldestTransition)) || at.After(now.Add(latestTransition)) {
		at = now
	}
	e := audit.Event{
		ID: id, At: at, Type: audit.TypeCredential, Outcome: audit.Done, Reason: string(audit.Clean(t.Type, 64)),
		Subject: subjectOf(v1alpha1.Kind(t.Kind), t.Namespace, t.Name), UID: t.UID, Kind: t.Kind, Namespace: t.Namespace, Name: t.Name,
		Class: t.Class, Version: t.Version, Prefix: t.Prefix, Actor: audit.Clean(t.Actor, maxSubjectText), Server: server,
	}
	if t.Reason != "" {
		e.Detail = map[string]audit.Text{"reason": audit.Clean(t.Reason, maxPathText)}
	}
	return e, nil
}
