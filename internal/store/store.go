package store

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"net/netip"
	"strings"
	"time"

	"github.com/mintmark-dev/mintmark/internal/audit"
)

// Errors of stores.
var (
	// ErrConflict: another batch has this place in the chain.
	ErrConflict = errors.New("another batch has this place in the chain of the audit log")
	// ErrDuplicate: an event that is recorded once for good is there already.
	ErrDuplicate = errors.New("the event is in the audit log already")
	// ErrCursor: not a cursor that this store gave out.
	ErrCursor = errors.New("not a cursor: take the one of the page before, unchanged")
	// ErrSchema: the schema is newer or older than this program works with.
	ErrSchema = errors.New("the schema of the database does not fit this version")
)

// Tenant is whom a query is made for: one namespace, or all of them. The zero Tenant
// sees nothing.
type Tenant struct{ setting string }

// everyone is no name of a namespace.
const everyone = "*"

// AllTenants sees everything, what belongs to no namespace included.
func AllTenants() Tenant { return Tenant{everyone} }

// TenantOf sees what is of one namespace.
func TenantOf(namespace string) Tenant {
	if namespace == everyone {
		return Tenant{}
	}
	return Tenant{namespace}
}

// Setting is the tenant as a store writes it down: a namespace, "*" for all, or empty
// for none.
func (t Tenant) Setting() string { return t.setting }

// All tells whether it sees everything.
func (t Tenant) All() bool { return t.setting == everyone }

// EventFilter narrows a list of events. What is zero does not narrow it.
type EventFilter struct {
	Types     []audit.Type
	Outcomes  []audit.Outcome
	Reason    string
	Namespace string
	UID       string
	Subject   string
	RequestID string
	Client    netip.Prefix
	// Since is included, Until is not.
	Since, Until time.Time
}

// Page asks for a part of a list.
type Page struct {
	// Limit is how many at most; default 100, at most 1,000.
	Limit int
	// Cursor of the page before; empty for the first.
	Cursor string
	// OldestFirst lists forwards in time. Default: newest first.
	OldestFirst bool
}

// Bounds of pages.
const (
	defaultLimit = 100
	maxLimit     = 1000
)

// Size is how many the page holds at most.
func (p Page) Size() int {
	if p.Limit <= 0 {
		return defaultLimit
	}
	return min(p.Limit, maxLimit)
}

// Events is a page of events.
type Events struct {
	Items []audit.Event
	// Next is the cursor of the page after; empty where this is the last.
	Next string
}

// Position is a place in the order of events: by time, and by ID within one time.
type Position struct {
	At time.Time
	ID audit.ID
}

// Cursor writes a position down.
func (p Position) Cursor() string {
	var b [8 + len(audit.ID{})]byte
	binary.BigEndian.PutUint64(b[:8], uint64(p.At.UnixMicro()))
	copy(b[8:], p.ID[:])
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// ParseCursor reads a position. Its error is ErrCursor.
func ParseCursor(text string) (Position, error) {
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || len(b) != 8+len(audit.ID{}) {
		return Position{}, ErrCursor
	}
	micros := int64(binary.BigEndian.Uint64(b[:8]))
	if micros < 0 || micros > math.MaxInt64/1000 {
		return Position{}, ErrCursor
	}
	return Position{At: time.UnixMicro(micros).UTC(), ID: audit.ID(b[8:])}, nil
}

// VersionUsage is how much a version of a credential was used.
type VersionUsage struct {
	Version int64
	Prefix  string
	// Uses that were let through, and those that were Denied.
	Uses, Denied int64
	// LastUsed is when it was let through last, LastClient from where: an IPv4 /24 or
	// an IPv6 /48. Zero where it never was.
	LastUsed   time.Time
	LastClient netip.Prefix
	LastSlot   audit.Slot
}

// Network is the network that is kept of where a use came from.
func Network(client netip.Addr) netip.Prefix {
	client = client.Unmap().WithZone("")
	length := 48
	if client.Is4() {
		length = 24
	}
	p, err := client.Prefix(length)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

// RangeOf gives the first and the last address of a network.
func RangeOf(network netip.Prefix) (first, last netip.Addr) {
	if a := network.Addr(); a.Is4In6() && network.Bits() >= 96 {
		network = netip.PrefixFrom(a.Unmap(), network.Bits()-96)
	}
	first = network.Masked().Addr()
	b := first.AsSlice()
	for bit := network.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= 1 << (7 - bit%8)
	}
	last, _ = netip.AddrFromSlice(b) // it has the length of an address
	return first, last
}

// AnalyticsFilter says what to work out.
type AnalyticsFilter struct {
	// UID of one credential; empty for all of the tenant.
	UID string
	// Since and Until are days in UTC: the first and the last that count.
	Since, Until time.Time
	// Top is how many of the most used to name; default 10, at most 100.
	Top int
	// IdleBefore: credentials not used since then count as idle; zero leaves them out,
	// and the totals of the inventory.
	IdleBefore time.Time
	// Now: what expires before then counts as expired. Zero: what the inventory says.
	Now time.Time
}

// TopSize is how many of the most used are named.
func (f AnalyticsFilter) TopSize() int {
	if f.Top <= 0 {
		return 10
	}
	return min(f.Top, 100)
}

// Analytics is what came of many requests.
type Analytics struct {
	Allowed, Denied int64
	Daily           []Day
	Top             []CredentialTotal
	// Latency of what was recorded with how long it took, at some percentiles: the
	// upper bounds of buckets that double, so at most twice the true value.
	Latency Percentiles
	// Idle credentials, longest unused first, those never used before all others: at
	// most [MaxIdle].
	Idle []IdleCredential
	// Totals of the inventory, where AnalyticsFilter.IdleBefore is set.
	Totals Totals
}

// MaxIdle is how many idle credentials are named at most.
const MaxIdle = 1000

// Totals count the credentials of the inventory. Each is one of the four.
type Totals struct {
	// Active ones have been used since AnalyticsFilter.IdleBefore, Inactive ones have not.
	Active, Inactive int64
	// Expired and Revoked ones are there and are not accepted.
	Expired, Revoked int64
}

// All of them.
func (t Totals) All() int64 { return t.Active + t.Inactive + t.Expired + t.Revoked }

// Day is one day's share.
type Day struct {
	Day             time.Time // midnight in UTC
	Allowed, Denied int64
}

// CredentialTotal is one credential's share.
type CredentialTotal struct {
	UID, Subject, Namespace string
	Allowed, Denied         int64
}

// IdleCredential is one that nobody uses.
type IdleCredential struct {
	UID, Subject, Namespace string
	// LastUsed is zero where it never was.
	LastUsed time.Time
}

// Percentiles of a length of time.
type Percentiles struct{ P50, P90, P99 time.Duration }

// LatencyBuckets is the number of buckets that latencies are counted in. Bucket i holds
// those under 2^i microseconds that no bucket before holds, the last all the rest.
const LatencyBuckets = 32

// LatencyBucket is the bucket of a latency.
func LatencyBucket(took time.Duration) int {
	return min(bits.Len64(uint64(max(took.Microseconds(), 0))), LatencyBuckets-1)
}

// PercentilesOf works out percentiles from counted buckets.
func PercentilesOf(buckets [LatencyBuckets]int64) Percentiles {
	var total int64
	for _, n := range buckets {
		total += n
	}
	at := func(share float64) time.Duration {
		if total == 0 {
			return 0
		}
		rank, seen := int64(math.Ceil(share*float64(total))), int64(0)
		for i, n := range buckets {
			if seen += n; seen >= rank {
				return time.Duration(1<<i) * time.Microsecond
			}
		}
		return time.Duration(1<<(LatencyBuckets-1)) * time.Microsecond
	}
	return Percentiles{P50: at(0.5), P90: at(0.9), P99: at(0.99)}
}

// Credential is what the inventory holds of a credential, to search by.
type Credential struct {
	UID, Kind, Namespace, Name, Class string
	Owner, Description                string
	Labels, Metadata                  map[string]string
	Admin                             bool
	Created                           time.Time
	// Expires is zero for never.
	Expires time.Time
	// State is Active, Revoked, Expired or Deleted.
	State string
	// Applied is the resourceVersion of the object it was made of. A store keeps what
	// is newer. 0 is not known: what is put with it stands until something else is put.
	Applied int64
}

// Plain is text as a store keeps it: PostgreSQL cannot hold NUL, which the API server
// lets through, nor what is no UTF-8.
func Plain(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

// PlainJSON is a map of text as a store keeps it, in JSON with its keys in order.
func PlainJSON(m map[string]string) (string, error) {
	plain := make(map[string]string, len(m))
	for k, v := range m {
		plain[Plain(k)] = Plain(v)
	}
	text, err := json.Marshal(plain)
	return string(text), err
}

// The states of credentials in the inventory.
const (
	StateActive  = "Active"
	StateRevoked = "Revoked"
	StateExpired = "Expired"
	StateDeleted = "Deleted"
)

// CredentialFilter narrows a list of the inventory. What is zero does not narrow it.
type CredentialFilter struct {
	Kind, Namespace, Name, Class, Owner, State string
	// Labels and Metadata that all have to be there, with these values.
	Labels, Metadata map[string]string
	// Deleted ones are left out unless this asks for them, or State does.
	WithDeleted bool
}

// Credentials is a page of the inventory, ordered by namespace, name and kind.
type Credentials struct {
	Items []Credential
	Next  string
}

// Tombstone says that a digest has been revoked, whatever a restored cluster says.
type Tombstone struct {
	// Digest of the value, and the id of its pepper.
	Digest []byte
	Pepper string
	// UID and Namespace of the credential, and its version.
	UID, Namespace string
	Version        int64
	Reason         string
	RevokedAt      time.Time
	// Until is when the value would have expired, after which the tombstone may go;
	// zero keeps it.
	Until time.Time
	// Number orders tombstones by when they were stored. Stores give it.
	Number int64
}

// DeniedToken is a JWT that is refused before it expires.
type DeniedToken struct {
	// Key is the SHA-256 of what identifies the token: never the token.
	Key       []byte
	Namespace string
	// Until is when the token expires by itself.
	Until time.Time
	// Number orders them by when they were stored. Stores give it.
	Number int64
}

// Chain is one run of one server, as far as it is stored: what its first and its last batch
// tell. A server that is busy makes hundreds of thousands of batches a day, and whoever
// lists chains reads none of those between.
type Chain struct {
	Name string
	// First is the time of the earliest event of the first batch, Last that of the latest
	// event of the last one.
	First, Last time.Time
	Head        audit.Digest
	FirstNumber uint64
	LastNumber  uint64
}

// MaxBatchEvents is how many events the batches have that a store gives at once, unless a
// single batch has more.
const MaxBatchEvents = 5000

// Fitting is how many batches with so many events each are given at once.
func Fitting(events []int) int {
	total := 0
	for i, n := range events {
		if total += n; total > MaxBatchEvents && i > 0 {
			return i
		}
	}
	return len(events)
}

// Health of a store.
type Health struct {
	// Engine and its Version, and the version of the schema.
	Engine, Version string
	Schema          int64
	// Connections open, and how many there may be; 0 where that means nothing.
	Connections, MaxConnections int
	// Size in bytes.
	Size int64
	// Latency of a small question.
	Latency time.Duration
}

// Delta is what a batch adds to usage, worked out once for both engines.
type Delta struct {
	Versions map[VersionKey]*VersionDelta
	Days     map[DayKey]*DayDelta
	Latency  map[LatencyKey]int64
}

// VersionKey names a version of a credential.
type VersionKey struct {
	UID     string
	Version int64
}

// VersionDelta is what is added to a version.
type VersionDelta struct {
	VersionUsage
	Namespace, Subject string
}

// DayKey names a day of a credential; an empty UID is of nobody known.
type DayKey struct {
	Day string // 2006-01-02
	UID string
}

// DayDelta is what is added to a day.
type DayDelta struct {
	Namespace, Subject string
	Allowed, Denied    int64
}

// LatencyKey names a bucket of a day of a tenant.
type LatencyKey struct {
	Day, Namespace string
	Bucket         int
}

// DeltaOf works out what a batch adds to usage.
func DeltaOf(events []audit.Event) Delta {
	d := Delta{Versions: map[VersionKey]*VersionDelta{}, Days: map[DayKey]*DayDelta{}, Latency: map[LatencyKey]int64{}}
	for i := range events {
		if use, ok := events[i].Use(); ok {
			d.add(&events[i], use)
		}
	}
	return d
}

func (d *Delta) add(e *audit.Event, use audit.Use) {
	day := e.At.UTC().Format(time.DateOnly)
	of := d.Days[DayKey{day, use.UID}]
	if of == nil {
		of = &DayDelta{Namespace: use.Namespace, Subject: use.Subject}
		d.Days[DayKey{day, use.UID}] = of
	}
	if use.Allowed {
		of.Allowed++
	} else {
		of.Denied++
	}
	// What management takes is the API server's time, and a search the database's.
	if e.Took > 0 && !e.Type.Manages() {
		d.Latency[LatencyKey{day, use.Namespace, LatencyBucket(e.Took)}]++
	}
	if use.UID == "" || use.Version == 0 {
		return
	}
	v := d.Versions[VersionKey{use.UID, use.Version}]
	if v == nil {
		v = &VersionDelta{Namespace: use.Namespace, Subject: use.Subject, VersionUsage: VersionUsage{Version: use.Version, Prefix: use.Prefix}}
		d.Versions[VersionKey{use.UID, use.Version}] = v
	}
	if !use.Allowed {
		v.Denied++
		return
	}
	v.Uses++
	if e.At.After(v.LastUsed) {
		v.LastUsed, v.LastSlot = e.At, use.Slot
		if e.Client.IsValid() {
			v.LastClient = Network(e.Client)
		}
	}
}

// SchemaError says which schema there is and which is needed.
func SchemaError(have, need int64) error {
	remedy := "run mintmark-server --migrate, or start a server whose account may migrate"
	if have > need {
		remedy = "a later version has migrated it: upgrade this server"
	}
	return fmt.Errorf("%w: it is at %d, and %d is needed: %s", ErrSchema, have, need, remedy)
}

// credentialPosition is a place in the order of the inventory.
type credentialPosition struct{ Namespace, Name, Kind, UID string }

// CredentialCursor writes down the place of a credential in the order of the inventory.
func CredentialCursor(c Credential) string {
	text, err := json.Marshal(credentialPosition{c.Namespace, c.Name, c.Kind, c.UID})
	if err != nil {
		return "" // strings can be encoded
	}
	return base64.RawURLEncoding.EncodeToString(text)
}

// ParseCredentialCursor reads it. Its error is ErrCursor.
func ParseCredentialCursor(text string) (Credential, error) {
	data, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return Credential{}, ErrCursor
	}
	var p credentialPosition
	if err := json.Unmarshal(data, &p); err != nil || p.UID == "" {
		return Credential{}, ErrCursor
	}
	for _, text := range []string{p.Namespace, p.Name, p.Kind, p.UID} {
		if text != Plain(text) {
			return Credential{}, ErrCursor
		}
	}
	return Credential{Namespace: p.Namespace, Name: p.Name, Kind: p.Kind, UID: p.UID}, nil
}
