package authn

import (
	"math"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

// holder is one credential as the index holds it. It does not change once
// published: every write makes another one. What it has in common with others is
// in the cohort, and what few have is in more, so that of the usual credential
// there are three pieces of memory: this, the text, and the counters.
type holder struct {
	// entry is the newest version; its number is 0 where there is none.
	entry
	cohort *cohort
	labels *labels
	more   *more // nil for most
	epoch  int64 // of the record in force
	// created is in Unix seconds, as far as they fit.
	created uint32
	// seen is the latest relist that came by. Writers alone read and write it.
	seen uint32
}

// entry is what the table of digests holds: one version.
type entry struct {
	digest  credential.Digest
	holder  *holder
	use     *use
	expires int64 // as sealed: Unix seconds; 0 is never
	// told is the principal as it was told last. It is made when first needed, for
	// most credentials rest most of the time.
	told   atomic.Pointer[Principal]
	number int64

	// start is where the text starts: UID, subject and prefix, one after the other.
	start     *byte
	textLen   uint16
	uidLen    uint16
	prefixLen uint8
	state     state
	// refusal is what stands against this version alone: revoked, retired or not
	// declared.
	refusal Reason
	// declared: the credential came by a declared SHA-256.
	declared bool
}

// more is what few credentials have.
type more struct {
	expires  int64 // of the whole credential: Unix seconds; 0 is never
	external []credential.Inner
	revoked  revoked
	// others are the versions but the newest, ascending, and those of the same
	// digest as another.
	others []*other
	// disputed: the object carries another record than the one in force.
	disputed bool
}

// other is a version that is not the holder's newest.
type other struct {
	entry
	pepper string
	// shadowed: an earlier version has the same digest, and keeps it.
	shadowed bool
}

// state is what matters here of a v1alpha1.VersionState.
type state uint8

const (
	stateLive state = iota
	stateRevoked
	stateEnded
	stateSuperseded // and live
)

func stateOf(s v1alpha1.VersionState) state {
	switch {
	case s == v1alpha1.VersionSuperseded:
		return stateSuperseded
	case s.Live():
		return stateLive
	case s == v1alpha1.VersionRevoked:
		return stateRevoked
	}
	return stateEnded
}

// use counts the uses of one version. It outlives changes of the credential for
// as long as the version is sealed.
type use struct {
	uses atomic.Int64
	last atomic.Int64 // Unix seconds
	// changed belongs to Index.UsageSince: unreported, or when the uses were
	// noticed last.
	changed atomic.Uint64
}

// unreported in use.changed: used since Index.UsageSince looked.
const unreported = math.MaxUint64

// count counts a use; last is u.last as it was when the look-up began. To read it
// early has the counters fetched from memory along with the rest.
func (u *use) count(now, last int64) {
	u.uses.Add(1)
	// Most uses fall into the second of the one before: reading keeps the cache
	// line shared between cores.
	if last < now {
		u.last.Store(now)
	}
	// After the count: whoever takes the mark away sees what it stands for.
	if u.changed.Load() != unreported {
		u.changed.Store(unreported)
	}
}

func (e *entry) text() string    { return unsafe.String(e.start, e.textLen) }
func (e *entry) uid() string     { return e.text()[:e.uidLen] }
func (e *entry) prefix() string  { return e.text()[e.textLen-uint16(e.prefixLen):] }
func (e *entry) subject() string { return e.text()[e.uidLen : e.textLen-uint16(e.prefixLen)] }

// name is the end of the subject.
func (e *entry) name() string {
	c := e.holder.cohort
	return e.subject()[len(c.kind)+1+len(c.namespace)+1:]
}

// maxText bounds a text with room to spare: names in Kubernetes are of at most 253 bytes.
const maxText = 1 << 14

// write sets the text, which must not be empty.
func (e *entry) write(text string, uidLen, prefixLen int) {
	e.start, e.textLen, e.uidLen, e.prefixLen = unsafe.StringData(text), uint16(len(text)), uint16(uidLen), uint8(prefixLen)
}

// notAfter is when the version ends, in Unix seconds; 0 is never.
func (e *entry) notAfter() int64 {
	if m := e.holder.more; m != nil {
		return earlier(e.expires, m.expires)
	}
	return e.expires
}

// principal is whose version it is. It allocates only where it has not been told
// before, or something has changed since.
func (e *entry) principal(grant *Grant) *Principal {
	if p := e.told.Load(); p != nil && p.Grant == grant {
		return p
	}
	p := newPrincipal(e, e.number, e.prefix(), grant, e.notAfter())
	p.Slot = e.slot()
	e.told.Store(p)
	return p
}

// slot is the place of the version.
func (e *entry) slot() Slot {
	switch e.state {
	case stateLive:
		return SlotCurrent
	case stateSuperseded:
		return SlotPrevious
	}
	return SlotNone
}

// newPrincipal makes a Principal. Its strings are the entry's own.
func newPrincipal(e *entry, number int64, prefix string, grant *Grant, notAfter int64) *Principal {
	c := e.holder.cohort
	made := &struct {
		Principal
		identity Identity
	}{
		Principal: Principal{Version: number, Prefix: prefix, Grant: grant},
		identity: Identity{
			UID: e.uid(), Kind: c.kind, Namespace: c.namespace, Name: e.name(), Subject: e.subject(),
		},
	}
	made.Identity = &made.identity
	if notAfter != 0 {
		made.Expires = time.Unix(notAfter, 0).UTC()
	}
	return &made.Principal
}

// textOf is the text of an entry.
func textOf(uid string, kind v1alpha1.Kind, namespace, name, prefix string) string {
	return uid + strings.ToLower(string(kind)) + ":" + namespace + ":" + name + prefix
}

// versions gives every version that has a digest of its own.
func (h *holder) versions(yield func(*entry) bool) {
	if h.more != nil {
		for _, o := range h.more.others {
			if !o.shadowed && !yield(&o.entry) {
				return
			}
		}
	}
	if h.number != 0 {
		yield(&h.entry)
	}
}

// version finds one that has a digest of its own; nil where there is none.
func (h *holder) version(number int64) *entry {
	for e := range h.versions {
		if e.number == number {
			return e
		}
	}
	return nil
}

// counted gives every version that has counters, and the pepper it is under.
func (h *holder) counted(yield func(*entry, string) bool) {
	if h.more != nil {
		for _, o := range h.more.others {
			if !yield(&o.entry, o.pepper) {
				return
			}
		}
	}
	if h.number != 0 {
		yield(&h.entry, h.cohort.pepper)
	}
}

func (h *holder) has(d credential.Digest) bool {
	for e := range h.versions {
		if e.digest == d {
			return true
		}
	}
	return false
}

// revokes tells whether a version is revoked that is not held any more, or not yet.
func (h *holder) revokes(number int64) bool {
	if h.more == nil {
		return false
	}
	for _, o := range h.more.others {
		if o.number == number && o.state == stateRevoked {
			return true
		}
	}
	return h.more.revoked.takes(number)
}

// older tells whether h keeps a digest that both claim: what was minted before what
// is declared, for the digest of a value can be known to others; then by age.
func (h *holder) older(than *holder) bool {
	if h.declared != than.declared {
		return than.declared
	}
	if h.created != than.created {
		return h.created < than.created
	}
	return h.uid() < than.uid()
}

// earlier is the earlier of two times in Unix seconds, where 0 is never.
func earlier(a, b int64) int64 {
	switch {
	case a == 0:
		return b
	case b == 0:
		return a
	}
	return min(a, b)
}
