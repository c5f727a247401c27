package audit

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"time"

	"github.com/fxamacker/cbor/v2"
)

// ID is the identity of an event. A store keeps one event of an ID, however often it is
// handed in.
type ID [16]byte

// NewID makes the ID of an event that happens now: a UUID of version 7 (RFC 9562, section
// 5.7), so that IDs sort as time does. It fails only if random does.
func NewID(now time.Time, random io.Reader) (ID, error) {
	var bits [idRandom]byte
	if _, err := io.ReadFull(random, bits[:]); err != nil {
		return ID{}, fmt.Errorf("making the id of an event: %w", err)
	}
	return idOf(now, bits), nil
}

// idRandom is how many bytes of an ID are random.
const idRandom = 10

func idOf(now time.Time, random [idRandom]byte) (id ID) {
	var millis [8]byte
	binary.BigEndian.PutUint64(millis[:], uint64(max(now.UnixMilli(), 0)))
	copy(id[:6], millis[2:])
	copy(id[6:], random[:])
	id[6] = id[6]&0x0f | 0x70
	id[8] = id[8]&0x3f | 0x80
	return id
}

// FixedID is the ID of what has a name of its own: whoever tells of it, and however often,
// it is one event. It is a UUID of version 8 (RFC 9562, section 5.8).
func FixedID(parts ...string) ID {
	h := sha256.New()
	for _, part := range parts {
		_, _ = fmt.Fprintf(h, "%d:%s", len(part), part)
	}
	id := ID(h.Sum(nil)[:16])
	id[6] = id[6]&0x0f | 0x80
	id[8] = id[8]&0x3f | 0x80
	return id
}

// String is the UUID's text.
func (id ID) String() string {
	var b [36]byte
	hex.Encode(b[:8], id[:4])
	hex.Encode(b[9:13], id[4:6])
	hex.Encode(b[14:18], id[6:8])
	hex.Encode(b[19:23], id[8:10])
	hex.Encode(b[24:], id[10:])
	b[8], b[13], b[18], b[23] = '-', '-', '-', '-'
	return string(b[:])
}

// MarshalText implements encoding.TextMarshaler.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// ErrID is the error of [ParseID].
var ErrID = errors.New("not the id of an event: write a UUID such as 0190a5c4-7f00-7000-8000-000000000000")

// ParseID reads the text of a UUID.
func ParseID(text string) (ID, error) {
	if len(text) != 36 || text[8] != '-' || text[13] != '-' || text[18] != '-' || text[23] != '-' {
		return ID{}, ErrID
	}
	var id ID
	digits := text[:8] + text[9:13] + text[14:18] + text[19:23] + text[24:]
	if n, err := hex.Decode(id[:], []byte(digits)); err != nil || n != len(id) {
		return ID{}, ErrID
	}
	return id, nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *ID) UnmarshalText(text []byte) (err error) {
	*id, err = ParseID(string(text))
	return err
}

// Type is what an event is about.
type Type string

// The types of events. Those of credentials have the names of the controller's
// transitions.
const (
	TypeAuthentication Type = "authentication"
	TypeTokenIssued    Type = "token.issued"
	TypeTokenExchanged Type = "token.exchanged"
	TypeTokenRevoked   Type = "token.revoked"
	TypeIntrospection  Type = "token.introspected"
	TypeCredential     Type = "credential" // Reason is the transition: Minted, Rotated, ...
	TypeManagement     Type = "management"
	TypeManagementRead Type = "management.read"
	TypeConfiguration  Type = "configuration"
	TypeRecordRefused  Type = "record.refused"
	TypeRevocation     Type = "revocation"
	TypeAddressBlocked Type = "address.blocked"
	TypePolicyDryRun   Type = "policy.dry-run"
	TypeCICD           Type = "cicd"
	TypeEventsLost     Type = "audit.lost"
	TypeServerStarted  Type = "server.started"
	TypeServerStopped  Type = "server.stopped"
)

// Presents tells whether an event of the type is about a request with which somebody
// presents a credential.
func (t Type) Presents() bool {
	switch t {
	case TypeAuthentication, TypeTokenIssued, TypeTokenExchanged, TypeTokenRevoked, TypeIntrospection:
		return true
	}
	return t.Manages()
}

// Manages tells whether such a request is one to the management API.
func (t Type) Manages() bool { return t == TypeManagement || t == TypeManagementRead || t == TypeCICD }

// Use is a value of a credential being presented.
type Use struct {
	UID, Namespace, Subject string
	Version                 int64
	Slot                    Slot
	Prefix                  string
	// Allowed: what it was presented for went on.
	Allowed bool
}

// Names of details that tell of the credential that a request to the management API was
// made with, where the event is about another one.
const (
	detailActorUID       = "actor_uid"
	detailActorNamespace = "actor_namespace"
	detailActorVersion   = "actor_version"
	detailActorSlot      = "actor_slot"
	detailActorPrefix    = "actor_prefix"
)

// Use is the use of a credential that the event tells of; false where it tells of none.
func (e *Event) Use() (u Use, ok bool) {
	if !e.Type.Presents() {
		return u, false
	}
	u = Use{UID: e.UID, Namespace: e.Namespace, Subject: e.Subject, Version: e.Version, Slot: e.Slot, Prefix: e.Prefix}
	// What is asked of the management API may be amiss, and a pipeline may tell of a failure:
	// the credential was good for it.
	u.Allowed = e.Outcome == Allowed || e.Outcome == Done || e.Outcome == Failed && e.Type.Manages() && e.UID != ""
	uid, other := e.Detail[detailActorUID]
	if !other || !e.Type.Manages() {
		return u, true
	}
	version, err := strconv.ParseInt(string(e.Detail[detailActorVersion]), 10, 64)
	if err != nil {
		version = 0 // written before there was this detail
	}
	u.UID, u.Namespace, u.Subject = string(uid), string(e.Detail[detailActorNamespace]), string(e.Actor)
	u.Version, u.Slot, u.Prefix = version, Slot(e.Detail[detailActorSlot]), string(e.Detail[detailActorPrefix])
	return u, true
}

// KeepUse puts what [Event.Use] tells of into the details, for an event that is to be about
// another credential than the one that the request was made with. The details are its own.
func (e *Event) KeepUse() {
	e.Detail[detailActorUID] = Text(e.UID) // also of another issuer's, who has none here
	for name, text := range map[string]string{detailActorNamespace: e.Namespace, detailActorSlot: string(e.Slot), detailActorPrefix: e.Prefix} {
		if text != "" {
			e.Detail[name] = Text(text)
		}
	}
	if e.Version != 0 {
		e.Detail[detailActorVersion] = Text(strconv.FormatInt(e.Version, 10))
	}
	e.Version, e.Slot, e.Prefix = 0, "", ""
}

// Bounds of an event's fields, in bytes.
const (
	maxDetail     = 32 // entries
	maxDetailKey  = 64
	maxDetailText = 1024
	maxIdentifier = 512
	maxEndpoint   = 1024
	maxUserAgent  = 256
	maxRequestID  = 128
	maxActor      = 512

	longestTook = 24 * time.Hour
)

// Outcome is what came of it.
type Outcome string

// The outcomes.
const (
	Allowed Outcome = "allowed"
	Denied  Outcome = "denied"
	Failed  Outcome = "failed"
	Done    Outcome = "done"
)

// Slot is which of a credential's values was used.
type Slot string

// The slots. One that is neither is empty.
const (
	SlotCurrent  Slot = "current"
	SlotPrevious Slot = "previous"
)

// Event is one line of the audit log. Fields that do not apply are zero.
type Event struct {
	ID      ID
	At      time.Time // kept to the microsecond
	Type    Type
	Outcome Outcome
	// Reason is a code for operators, such as Expired, or the transition.
	Reason string

	// The credential it is about, and which version of it.
	Subject   string
	UID       string
	Kind      string
	Namespace string
	Name      string
	Class     string
	Version   int64
	Slot      Slot
	// Prefix is the public part of the value.
	Prefix string

	// Actor is who did it, where that is not the credential itself.
	Actor Text
	// Client is where it came from.
	Client    netip.Addr
	UserAgent Text
	Method    string
	// Endpoint is the route here, or the path that a gateway asked about, without query.
	Endpoint  Text
	RequestID Text
	// Server is the one that saw it.
	Server string
	// Took is how long it took, kept to the microsecond.
	Took time.Duration
	// Detail by name. What does not fit a field.
	Detail map[string]Text
}

// wire is an event as it is digested and spooled: CBOR (RFC 8949) in the core
// deterministic encoding. Numbers of fields are never used again.
type wire struct {
	ID        []byte          `cbor:"1,keyasint"`
	At        int64           `cbor:"2,keyasint"` // Unix microseconds
	Type      Type            `cbor:"3,keyasint"`
	Outcome   Outcome         `cbor:"4,keyasint"`
	Reason    string          `cbor:"5,keyasint,omitempty"`
	Subject   string          `cbor:"6,keyasint,omitempty"`
	UID       string          `cbor:"7,keyasint,omitempty"`
	Kind      string          `cbor:"8,keyasint,omitempty"`
	Namespace string          `cbor:"9,keyasint,omitempty"`
	Name      string          `cbor:"10,keyasint,omitempty"`
	Class     string          `cbor:"11,keyasint,omitempty"`
	Version   int64           `cbor:"12,keyasint,omitempty"`
	Slot      Slot            `cbor:"13,keyasint,omitempty"`
	Prefix    string          `cbor:"14,keyasint,omitempty"`
	Actor     Text            `cbor:"15,keyasint,omitempty"`
	Client    []byte          `cbor:"16,keyasint,omitempty"`
	UserAgent Text            `cbor:"17,keyasint,omitempty"`
	Method    string          `cbor:"18,keyasint,omitempty"`
	Endpoint  Text            `cbor:"19,keyasint,omitempty"`
	RequestID Text            `cbor:"20,keyasint,omitempty"`
	Server    string          `cbor:"21,keyasint,omitempty"`
	Took      int64           `cbor:"22,keyasint,omitempty"` // microseconds
	Detail    map[string]Text `cbor:"23,keyasint,omitempty"`
}

// normalise brings an event into the form in which any store gives it back: so that
// what is digested now is what is digested when it is checked. Text that was not made by
// Clean is cleaned, and all is cut to its length.
func (e *Event) normalise() {
	e.At = e.At.UTC().Truncate(time.Microsecond)
	e.Took = min(max(e.Took, 0), longestTook).Truncate(time.Microsecond)
	e.Client = e.Client.Unmap().WithZone("")
	for _, s := range []*string{&e.Reason, &e.Subject, &e.UID, &e.Kind, &e.Namespace, &e.Name, &e.Class, &e.Prefix, &e.Method, &e.Server} {
		if !plain(*s) || len(*s) > maxIdentifier {
			*s = cut(escape(*s), maxIdentifier)
		}
	}
	for _, t := range []struct {
		text  *Text
		limit int
	}{{&e.Actor, maxActor}, {&e.UserAgent, maxUserAgent}, {&e.Endpoint, maxEndpoint}, {&e.RequestID, maxRequestID}} {
		*t.text = Text(cut(escape(string(*t.text)), t.limit))
	}
	if len(e.Detail) == 0 {
		e.Detail = nil
		return
	}
	if e.detailIsNormal() {
		return
	}
	kept := make(map[string]Text, len(e.Detail))
	for name, text := range e.Detail {
		if len(kept) < maxDetail {
			kept[cut(escape(name), maxDetailKey)] = Text(cut(escape(string(text)), maxDetailText))
		}
	}
	e.Detail = kept
}

// detailIsNormal: nothing of it has to be escaped, cut or left out.
func (e *Event) detailIsNormal() bool {
	for name, text := range e.Detail {
		if len(name) > maxDetailKey || len(text) > maxDetailText || !plain(name) || !plain(string(text)) {
			return false
		}
	}
	return len(e.Detail) <= maxDetail
}

// length is about how many bytes it takes when it is spooled, at most: text is cut to its
// length before.
func (e *Event) length() int {
	n := 256
	for _, s := range []string{
		e.Reason, e.Subject, e.UID, e.Kind, e.Namespace, e.Name, e.Class, e.Prefix, string(e.Actor), string(e.UserAgent), e.Method, string(e.Endpoint),
		string(e.RequestID), e.Server,
	} {
		n += min(len(s), maxEndpoint)
	}
	for name, text := range e.Detail {
		n += min(len(name), maxDetailKey) + min(len(text), maxDetailText) + 8
	}
	return n
}

func (e *Event) wire() wire {
	w := wire{
		ID: e.ID[:], At: e.At.UnixMicro(), Type: e.Type, Outcome: e.Outcome, Reason: e.Reason, Subject: e.Subject, UID: e.UID, Kind: e.Kind,
		Namespace: e.Namespace, Name: e.Name, Class: e.Class, Version: e.Version, Slot: e.Slot, Prefix: e.Prefix, Actor: e.Actor,
		UserAgent: e.UserAgent, Method: e.Method, Endpoint: e.Endpoint, RequestID: e.RequestID, Server: e.Server,
		Took: e.Took.Microseconds(), Detail: e.Detail,
	}
	if e.Client.IsValid() {
		w.Client = e.Client.AsSlice()
	}
	return w
}

func (w *wire) event() (Event, error) {
	if len(w.ID) != len(ID{}) {
		return Event{}, fmt.Errorf("the id of an event has %d bytes, want %d", len(w.ID), len(ID{}))
	}
	e := Event{
		ID: ID(w.ID), At: time.UnixMicro(w.At).UTC(), Type: w.Type, Outcome: w.Outcome, Reason: w.Reason, Subject: w.Subject, UID: w.UID,
		Kind: w.Kind, Namespace: w.Namespace, Name: w.Name, Class: w.Class, Version: w.Version, Slot: w.Slot, Prefix: w.Prefix,
		Actor: w.Actor, UserAgent: w.UserAgent, Method: w.Method, Endpoint: w.Endpoint, RequestID: w.RequestID, Server: w.Server,
		Took: time.Duration(w.Took) * time.Microsecond, Detail: w.Detail,
	}
	if len(w.Client) > 0 {
		client, ok := netip.AddrFromSlice(w.Client)
		if !ok {
			return Event{}, fmt.Errorf("the client of event %s is not an address", e.ID)
		}
		e.Client = client
	}
	return e, nil
}

var (
	encoding = must(cbor.CoreDetEncOptions().EncMode())
	decoding = must(cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden, MaxNestedLevels: 8,
	}.DecMode())
)

// must is for calls that fail only where constants are wrong: any test finds it.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
