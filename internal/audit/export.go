package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"
)

// document is an event in JSON, as it is exported and as the API answers with it. What
// does not apply is left out.
type document struct {
	ID         ID                  `json:"id"`
	Time       string              `json:"time"` // RFC 3339, with microseconds
	Type       Type                `json:"type"`
	Outcome    Outcome             `json:"outcome"`
	Reason     string              `json:"reason,omitempty"`
	Subject    string              `json:"subject,omitempty"`
	Credential *documentCredential `json:"credential,omitempty"`
	Actor      Text                `json:"actor,omitempty"`
	Client     string              `json:"client,omitempty"`
	UserAgent  Text                `json:"user_agent,omitempty"`
	Method     string              `json:"method,omitempty"`
	Endpoint   Text                `json:"endpoint,omitempty"`
	RequestID  Text                `json:"request_id,omitempty"`
	Server     string              `json:"server,omitempty"`
	TookMicros int64               `json:"took_us,omitempty"`
	Detail     map[string]Text     `json:"detail,omitempty"`
}

type documentCredential struct {
	ID        string `json:"id,omitempty"`
	Kind      string `json:"kind,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	Class     string `json:"class,omitempty"`
	Version   int64  `json:"version,omitempty"`
	Slot      Slot   `json:"slot,omitempty"`
	Prefix    string `json:"prefix,omitempty"`
}

// timeLayout is RFC 3339 with as many digits as are kept.
const timeLayout = "2006-01-02T15:04:05.000000Z07:00"

// MarshalJSON implements json.Marshaler.
func (e Event) MarshalJSON() ([]byte, error) {
	d := document{
		ID: e.ID, Time: e.At.UTC().Format(timeLayout), Type: e.Type, Outcome: e.Outcome, Reason: e.Reason, Subject: e.Subject, Actor: e.Actor,
		UserAgent: e.UserAgent, Method: e.Method, Endpoint: e.Endpoint, RequestID: e.RequestID, Server: e.Server,
		TookMicros: int64(e.Took / time.Microsecond), Detail: e.Detail,
	}
	of := documentCredential{
		ID: e.UID, Kind: e.Kind, Namespace: e.Namespace, Name: e.Name, Class: e.Class, Version: e.Version, Slot: e.Slot, Prefix: e.Prefix,
	}
	if of != (documentCredential{}) {
		d.Credential = &of
	}
	if e.Client.IsValid() {
		d.Client = e.Client.String()
	}
	return json.Marshal(d)
}

// JSONLines exports events as JSON, one on each line.
type JSONLines struct {
	mu sync.Mutex
	w  io.Writer
}

// NewJSONLines makes an Exporter that writes to w, a batch at a time. It
// is safe for concurrent use.
func NewJSONLines(w io.Writer) *JSONLines { return &JSONLines{w: w} }

// Export implements Exporter.
func (j *JSONLines) Export(_ context.Context, events []Event) error {
	var lines bytes.Buffer
	encoder := json.NewEncoder(&lines)
	encoder.SetEscapeHTML(false)
	for i := range events {
		if err := encoder.Encode(events[i]); err != nil {
			return fmt.Errorf("encoding event %s: %w", events[i].ID, err)
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, err := j.w.Write(lines.Bytes()); err != nil {
		return fmt.Errorf("writing events: %w", err)
	}
	return nil
}
