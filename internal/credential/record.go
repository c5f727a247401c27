package credential

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// RecordVersion is the version of the record's encoding written here. A reader
// knows this version and those before it.
const RecordVersion = 1

// Record is what servers verify by: everything the controller vouches for about
// one credential. It is encoded in CBOR (RFC 8949, deterministic) behind one
// byte with the encoding's version, and worth nothing without its seal.
type Record struct {
	UID         string            `cbor:"1,keyasint"`
	Kind        v1alpha1.Kind     `cbor:"2,keyasint"`
	Namespace   string            `cbor:"3,keyasint"`
	Name        string            `cbor:"4,keyasint"`
	Epoch       int64             `cbor:"5,keyasint"`
	Class       string            `cbor:"6,keyasint"`
	Labels      map[string]string `cbor:"7,keyasint,omitempty"`
	Permissions []string          `cbor:"8,keyasint,omitempty"`
	Roles       []string          `cbor:"9,keyasint,omitempty"`
	Admin       bool              `cbor:"10,keyasint,omitempty"`
	Attributes  map[string]string `cbor:"11,keyasint,omitempty"`
	CIDRs       []string          `cbor:"12,keyasint,omitempty"`
	Rate        *RecordRate       `cbor:"13,keyasint,omitempty"`
	JWT         RecordJWT         `cbor:"14,keyasint,omitempty"`
	// Versions that are accepted, and revoked ones that are remembered, in
	// ascending order.
	Versions []SealedVersion `cbor:"15,keyasint,omitempty"`
	// RevokedThrough: the whole credential was revoked when this was its latest
	// version. Versions up to it are refused, and their JWTs with them.
	RevokedThrough int64 `cbor:"16,keyasint,omitempty"`
	// RevokedVersions were revoked one by one.
	RevokedVersions []int64 `cbor:"17,keyasint,omitempty"`
	// RevokedSpec is the RevokedDigest of the spec.revoked that RevokedThrough
	// accounts for. A spec.revoked with another digest is not accounted for yet,
	// and takes every version.
	RevokedSpec string `cbor:"18,keyasint,omitempty"`
	// Settled are the UIDs of the Revocations that RevokedThrough accounts for,
	// or that are older than the credential. Any other takes every version.
	Settled []string `cbor:"19,keyasint,omitempty"`
	// External: the digests were declared by SHA-256.
	External bool `cbor:"20,keyasint,omitempty"`
	// SettledBefore, in Unix seconds: Revocations created before it count as
	// settled, though Settled no longer names them. 0 is none.
	SettledBefore int64 `cbor:"21,keyasint,omitempty"`
}

// SealedVersion is one accepted version.
type SealedVersion struct {
	Number int64  `cbor:"1,keyasint"`
	Digest []byte `cbor:"2,keyasint"`
	Pepper string `cbor:"3,keyasint"`
	Prefix string `cbor:"4,keyasint,omitempty"`
	// State is Pending, Active or Superseded, or Revoked: then a use is refused,
	// and known for whose it is.
	State v1alpha1.VersionState `cbor:"5,keyasint"`
	// Created, Activated, Superseded and Expires are Unix seconds; 0 is not, or
	// never.
	Created    int64 `cbor:"6,keyasint,omitempty"`
	Superseded int64 `cbor:"7,keyasint,omitempty"`
	Expires    int64 `cbor:"8,keyasint,omitempty"`
	Activated  int64 `cbor:"9,keyasint,omitempty"`
}

// Accounts tells whether the record accounts for a Revocation, so that it takes
// nothing from the credential any more. A nil record accounts for none, and one
// whose age nobody knows is accounted for by name alone.
func (r *Record) Accounts(uid string, created time.Time) bool {
	if r == nil {
		return false
	}
	return r.settledByAge(created) || slices.Contains(r.Settled, uid)
}

func (r *Record) settledByAge(created time.Time) bool {
	return created.Unix() > 0 && created.Unix() < r.SettledBefore
}

// RevokedDigest tells one spec.revoked of a whole credential from another. It is
// empty where the whole credential is not revoked.
func RevokedDigest(r *v1alpha1.Revoked) string {
	if r == nil || len(r.Versions) > 0 {
		return ""
	}
	text := r.Reason
	if r.RequestedAt != nil {
		text += "\x00" + r.RequestedAt.UTC().Format(metav1.RFC3339Micro)
	}
	sum := sha256.Sum256([]byte(text))
	return base64.RawURLEncoding.EncodeToString(sum[:12])
}

// RecordRate is the credential's rate limit.
type RecordRate struct {
	Requests  int64 `cbor:"1,keyasint"`
	PerMillis int64 `cbor:"2,keyasint"`
	Burst     int64 `cbor:"3,keyasint"`
}

// RecordJWT shapes the tokens issued for the credential.
type RecordJWT struct {
	TTLSeconds int64    `cbor:"1,keyasint,omitempty"`
	Audiences  []string `cbor:"2,keyasint,omitempty"`
	Algorithm  string   `cbor:"3,keyasint,omitempty"`
}

// Errors of OpenRecord.
var (
	ErrSeal          = errors.New("the seal does not hold")
	ErrUnknownPepper = errors.New("the seal names an unknown pepper")
	ErrRecord        = errors.New("the record cannot be read")
)

var (
	recordEncoding = must(cbor.CoreDetEncOptions().EncMode())
	recordDecoding = must(cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden,
		MaxNestedLevels: 8, MaxArrayElements: maxRecordItems, MaxMapPairs: maxRecordItems,
	}.DecMode())
)

// maxRecordItems bounds each list and map of a record.
const maxRecordItems = 4096

// must is for calls that fail only where constants are wrong: any test finds it.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// Seal encodes the record and authenticates it with the pepper's seal key. The
// seal names the pepper, so that servers know which key to check it with. What
// OpenRecord could not read (text that is not UTF-8, more labels than it takes)
// is not sealed, but an error.
func (r *Record) Seal(p *Pepper) (record []byte, seal string, err error) {
	body, err := recordEncoding.Marshal(r)
	if err == nil {
		err = recordDecoding.Unmarshal(body, new(Record))
	}
	if err != nil {
		return nil, "", fmt.Errorf("encoding the record of %s %s/%s: %w", r.Kind, r.Namespace, r.Name, err)
	}
	record = append(make([]byte, 0, 1+len(body)), RecordVersion)
	record = append(record, body...)
	return record, p.id + "." + p.tag(record), nil
}

// tag authenticates a record.
func (p *Pepper) tag(record []byte) string {
	mac := hmac.New(sha256.New, p.sealKey)
	mac.Write(record)
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// OpenRecord checks the seal and decodes the record. Whether it belongs to the
// object it was found on, and is not older than what was seen before, is for
// the caller to check, by UID and Epoch.
func OpenRecord(peppers Peppers, record []byte, seal string) (*Record, error) {
	id, tag, ok := strings.Cut(seal, ".")
	if !ok {
		return nil, ErrSeal
	}
	p := peppers.ByID(id)
	if p == nil {
		return nil, fmt.Errorf("%w: %q", ErrUnknownPepper, id)
	}
	// As text, for base64 has several texts for the same bytes.
	if !hmac.Equal([]byte(tag), []byte(p.tag(record))) {
		return nil, ErrSeal
	}
	if len(record) == 0 || record[0] == 0 || record[0] > RecordVersion {
		return nil, fmt.Errorf("%w: its version is not known here: upgrade the server", ErrRecord)
	}
	r := new(Record)
	if err := recordDecoding.Unmarshal(record[1:], r); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	return r, nil
}

// Peppers is a set of peppers, of which the first is the one new digests are
// made with. It is not changed once made.
type Peppers []*Pepper

// Current is the pepper new digests are made with; nil where there is none.
func (ps Peppers) Current() *Pepper {
	if len(ps) == 0 {
		return nil
	}
	return ps[0]
}

// ByID finds a pepper; nil where there is none of that id.
func (ps Peppers) ByID(id string) *Pepper {
	for _, p := range ps {
		if p.id == id {
			return p
		}
	}
	return nil
}
