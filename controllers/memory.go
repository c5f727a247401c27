package controllers

import (
	"bytes"
	"hash/maphash"
	"slices"
	"sync"

	"k8s.io/apimachinery/pkg/types"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

// memory is what one process remembers of the credentials of one kind: values
// that are committed and not delivered yet, and the last records it sealed or
// saw. Losing it is safe: a value that is lost is minted again.
type memory struct {
	seed    maphash.Seed
	mu      sync.Mutex
	entries map[types.NamespacedName]*memoryEntry
	// working are the credentials that a reconcile is at, with the resourceVersions that
	// events told of meanwhile: the event of a write can be here before its answer.
	working map[types.NamespacedName][]versionHash
}

type memoryEntry struct {
	uid     types.UID
	pending *heldValue
	sealed  *sealedRecord
	// replaced are the resourceVersions our latest writes replaced: an object of
	// one of them is our own of before, still in the cache.
	replaced []versionHash
	// written are the resourceVersions of our latest writes to the credential and
	// its Secret: their events tell nothing that was not planned by already.
	written []versionHash
}

// versionHash stands for a resourceVersion, which is opaque. It takes a fourth of the
// memory: there are many.
type versionHash uint64

func (m *memory) hash(resourceVersion string) versionHash {
	return versionHash(maphash.String(m.seed, resourceVersion))
}

// heldValue is a committed value that waits for delivery.
type heldValue struct {
	version int64
	digest  string
	token   credential.Token
	// secretVersion is the resourceVersion of the Secret that the commit saw;
	// empty where there was none. The delivery is under it.
	secretVersion string
}

// sealedRecord is a record as it stood in status.
type sealedRecord struct {
	epoch  int64
	record []byte
	seal   string
}

func newMemory() *memory {
	return &memory{
		seed: maphash.MakeSeed(), entries: map[types.NamespacedName]*memoryEntry{}, working: map[types.NamespacedName][]versionHash{},
	}
}

// entry gives the entry of a credential, new if the name is another object's
// now. The caller holds the lock.
func (m *memory) entry(key types.NamespacedName, uid types.UID) *memoryEntry {
	e := m.entries[key]
	if e == nil || e.uid != uid {
		e = &memoryEntry{uid: uid}
		m.entries[key] = e
	}
	return e
}

// forget drops the entry of a name, unless it is that of the UID given, and
// tells whose it was.
func (m *memory) forget(key types.NamespacedName, but types.UID) (types.UID, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.entries[key]
	if !ok || e.uid == but {
		return "", false
	}
	delete(m.entries, key)
	return e.uid, true
}

func (m *memory) remember(key types.NamespacedName, uid types.UID, epoch int64, record []byte, seal string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.entry(key, uid)
	if e.sealed != nil && e.sealed.epoch == epoch && e.sealed.seal == seal {
		return
	}
	e.sealed = &sealedRecord{epoch: epoch, record: bytes.Clone(record), seal: seal}
}

// cached tells that the cache holds an object: where its record is the one remembered, both
// have one copy of it.
func (m *memory) cached(key types.NamespacedName, c v1alpha1.Credential) {
	m.mu.Lock()
	defer m.mu.Unlock()
	st := c.CredentialStatus()
	if e := m.entries[key]; e != nil && e.uid == c.GetUID() && e.sealed != nil && e.sealed.seal == st.Seal && bytes.Equal(e.sealed.record, st.Record) {
		e.sealed = &sealedRecord{epoch: e.sealed.epoch, record: st.Record, seal: st.Seal}
	}
}

func (m *memory) sealed(key types.NamespacedName, uid types.UID) *sealedRecord {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.entries[key]; e != nil && e.uid == uid {
		return e.sealed
	}
	return nil
}

// keptVersions is how many resourceVersions of each sort are remembered: more
// than one reconcile writes.
const keptVersions = maxPasses + 2

// wrote notes that a write of ours made a resourceVersion, of the credential or
// its Secret, and which one of the credential's it replaced, if it did.
func (m *memory) wrote(key types.NamespacedName, uid types.UID, made, replaced string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.entry(key, uid)
	e.written = keepLast(e.written, m.hash(made))
	if replaced != "" && replaced != made {
		e.replaced = keepLast(e.replaced, m.hash(replaced))
	}
}

func keepLast(versions []versionHash, another versionHash) []versionHash {
	return append(versions[max(0, len(versions)-keptVersions+1):], another)
}

// begin tells that a reconcile is at a credential; there is one at a time.
func (m *memory) begin(key types.NamespacedName) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.working[key] = nil
}

// end tells that the reconcile has come to its end, and gives whether others wrote
// meanwhile.
func (m *memory) end(key types.NamespacedName) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	told := m.working[key]
	delete(m.working, key)
	return slices.ContainsFunc(told, func(v versionHash) bool { return !m.made(key, v) })
}

// ours tells whether a resourceVersion need not be looked at: it was made by a write of
// ours, or a reconcile is at the credential, and end will tell.
func (m *memory) ours(key types.NamespacedName, resourceVersion string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := m.hash(resourceVersion)
	if m.made(key, v) {
		return true
	}
	told, working := m.working[key]
	if working {
		m.working[key] = append(told, v)
	}
	return working
}

// made tells whether a write of ours made a resourceVersion. The caller holds the lock.
func (m *memory) made(key types.NamespacedName, v versionHash) bool {
	e := m.entries[key]
	return e != nil && slices.Contains(e.written, v)
}

// outdated tells whether an object is one that we have written over since.
func (m *memory) outdated(key types.NamespacedName, uid types.UID, resourceVersion string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.entries[key]
	return e != nil && e.uid == uid && slices.Contains(e.replaced, m.hash(resourceVersion))
}

func (m *memory) hold(key types.NamespacedName, uid types.UID, v *heldValue) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.entry(key, uid).pending = v
}

func (m *memory) pending(key types.NamespacedName, uid types.UID) *heldValue {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.entries[key]; e != nil && e.uid == uid {
		return e.pending
	}
	return nil
}

// held tells which Pending version of a status this process holds the value of.
// The value of one that is Pending no longer is dropped.
func (m *memory) held(key types.NamespacedName, uid types.UID, status *v1alpha1.CredentialStatus) int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.entries[key]
	if e == nil || e.uid != uid || e.pending == nil {
		return 0
	}
	for _, v := range status.Versions {
		if v.Version != e.pending.version {
			continue
		}
		if v.Digest == e.pending.digest && v.State == v1alpha1.VersionPending {
			return v.Version
		}
		e.pending = nil
		break
	}
	return 0
}
