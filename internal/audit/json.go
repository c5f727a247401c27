package audit

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"
)

// UnmarshalJSON implements json.Unmarshaler: it reads what MarshalJSON wrote. An event
// comes back as it was, to the bit, so that whoever has the JSON can work out digests.
func (e *Event) UnmarshalJSON(data []byte) error {
	var d document
	if err := json.Unmarshal(data, &d); err != nil {
		return fmt.Errorf("not an event of the audit log: %w", err)
	}
	at, err := time.Parse(time.RFC3339Nano, d.Time)
	if err != nil {
		return fmt.Errorf("the time of event %s: write it like 2026-01-15T12:00:00.123456Z: %w", d.ID, err)
	}
	// RFC 3339 has years of four digits, and in UTC this one may have another number of them.
	if year := at.UTC().Year(); year < 0 || year > 9999 {
		return fmt.Errorf("the time of event %s: in UTC its year is %d, and has to be between 0 and 9999", d.ID, year)
	}
	if d.TookMicros < 0 || d.TookMicros > math.MaxInt64/int64(time.Microsecond) {
		return fmt.Errorf("event %s: took_us is no length of time", d.ID)
	}
	*e = Event{
		ID: d.ID, At: at.UTC(), Type: d.Type, Outcome: d.Outcome, Reason: d.Reason, Subject: d.Subject, Actor: d.Actor, UserAgent: d.UserAgent,
		Method: d.Method, Endpoint: d.Endpoint, RequestID: d.RequestID, Server: d.Server, Took: time.Duration(d.TookMicros) * time.Microsecond,
		Detail: d.Detail,
	}
	if d.Client != "" {
		if e.Client, err = netip.ParseAddr(d.Client); err != nil {
			return fmt.Errorf("the client of event %s is not an address: %w", d.ID, err)
		}
	}
	if c := d.Credential; c != nil {
		e.UID, e.Kind, e.Namespace, e.Name, e.Class, e.Version, e.Slot, e.Prefix = c.ID, c.Kind, c.Namespace, c.Name, c.Class, c.Version, c.Slot, c.Prefix
	}
	return nil
}

// String is the digest in hexadecimal.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// MarshalText implements encoding.TextMarshaler.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Digest) UnmarshalText(text []byte) error {
	if n, err := hex.Decode(d[:], text); err != nil || n != len(d) {
		return errors.New("not a digest: it has 64 hexadecimal digits")
	}
	return nil
}

// batchDocument is a batch in JSON. Whoever has it can check it with [Batch.Verify].
type batchDocument struct {
	Chain    string  `json:"chain"`
	Sequence uint64  `json:"sequence"`
	Previous Digest  `json:"previous"`
	Digest   Digest  `json:"digest"`
	Events   []Event `json:"events"`
	Cleared  bool    `json:"cleared,omitempty"`
}

// MarshalJSON implements json.Marshaler.
func (b *Batch) MarshalJSON() ([]byte, error) {
	d := batchDocument(*b)
	if d.Events == nil {
		d.Events = []Event{}
	}
	return json.Marshal(d)
}

// UnmarshalJSON implements json.Unmarshaler: it reads what MarshalJSON wrote.
func (b *Batch) UnmarshalJSON(data []byte) error {
	var d batchDocument
	if err := json.Unmarshal(data, &d); err != nil {
		return fmt.Errorf("not a batch of the audit log: %w", err)
	}
	*b = Batch(d)
	return nil
}
