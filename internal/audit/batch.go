package audit

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
)

// Digest is a SHA-256.
type Digest [sha256.Size]byte

// Batch is a link of a chain of events. A chain is one run of one server. The digest is
// over the one before, the place in the chain, and every event in order:
//
//	Digest = SHA-256(Previous || uint64(Sequence) || uint32(len(Chain)) || Chain || SHA-256(event)...)
//
// with integers in big endian, and each event in deterministic CBOR.
type Batch struct {
	Chain    string
	Sequence uint64 // from 1
	Previous Digest // zero in the first
	Digest   Digest
	Events   []Event
	// Cleared: retention has dropped events of it. Its place in the chain can be checked
	// still, and what it held cannot.
	Cleared bool
}

// Sealer seals the batches of a chain, one after another. One goroutine uses it.
type Sealer struct {
	name     string
	sequence uint64
	head     Digest
}

// NewSealer begins a chain, whose name nobody else may use.
func NewSealer(name string) *Sealer { return &Sealer{name: name} }

// Seal makes the next batch of the chain. It keeps the slice, and brings the events in
// it into the form in which a store gives them back. They have their IDs already.
func (c *Sealer) Seal(events []Event) (*Batch, error) {
	for i := range events {
		events[i].normalise()
	}
	b := &Batch{Chain: c.name, Sequence: c.sequence + 1, Previous: c.head, Events: events}
	b.Digest = b.digest()
	c.sequence, c.head = b.Sequence, b.Digest
	return b, nil
}

func (b *Batch) digest() Digest {
	h := sha256.New()
	h.Write(b.Previous[:])
	var numbers [12]byte
	binary.BigEndian.PutUint64(numbers[:8], b.Sequence)
	binary.BigEndian.PutUint32(numbers[8:], uint32(len(b.Chain)))
	h.Write(numbers[:])
	h.Write([]byte(b.Chain))
	var text []byte
	for i := range b.Events {
		text = b.Events[i].appendCBOR(text[:0])
		sum := sha256.Sum256(text)
		h.Write(sum[:])
	}
	return Digest(h.Sum(nil))
}

// Errors of Batch.Verify.
var (
	// ErrAltered: what the batch holds is not what was sealed.
	ErrAltered = errors.New("the events are not those that were recorded")
	// ErrBroken: the batch is not the one that came next.
	ErrBroken = errors.New("the chain is broken")
)

// Verify checks the batch by itself, and that it follows the one before, which is nil
// for the first of a chain. Of one that is Cleared only the latter; and a chain may begin
// with it, for retention keeps of those it has cleared only the last. So whoever asks is
// to be told how many were, and since when.
func (b *Batch) Verify(before *Batch) error {
	if !b.Cleared && b.digest() != b.Digest {
		return fmt.Errorf("%w: batch %d of chain %s", ErrAltered, b.Sequence, b.Chain)
	}
	switch {
	case before == nil && b.Cleared:
	case before == nil && (b.Sequence != 1 || b.Previous != Digest{}):
		return fmt.Errorf("%w: chain %s begins with batch %d", ErrBroken, b.Chain, b.Sequence)
	case before != nil && (before.Chain != b.Chain || before.Sequence+1 != b.Sequence || before.Digest != b.Previous):
		return fmt.Errorf("%w: batch %d of chain %s does not follow batch %d", ErrBroken, b.Sequence, b.Chain, before.Sequence)
	}
	return nil
}

// batchWire is a batch as it is spooled.
type batchWire struct {
	Chain    string `cbor:"1,keyasint"`
	Sequence uint64 `cbor:"2,keyasint"`
	Previous []byte `cbor:"3,keyasint"`
	Digest   []byte `cbor:"4,keyasint"`
	Events   []wire `cbor:"5,keyasint"`
}

func (b *Batch) marshal() ([]byte, error) {
	w := batchWire{Chain: b.Chain, Sequence: b.Sequence, Previous: b.Previous[:], Digest: b.Digest[:], Events: make([]wire, len(b.Events))}
	for i := range b.Events {
		w.Events[i] = b.Events[i].wire()
	}
	return encoding.Marshal(w)
}

func unmarshalBatch(data []byte) (*Batch, error) {
	var w batchWire
	if err := decoding.Unmarshal(data, &w); err != nil {
		return nil, err
	}
	if len(w.Previous) != sha256.Size || len(w.Digest) != sha256.Size {
		return nil, errors.New("a digest has the wrong length")
	}
	b := &Batch{
		Chain: w.Chain, Sequence: w.Sequence, Previous: Digest(w.Previous), Digest: Digest(w.Digest), Events: make([]Event, len(w.Events)),
	}
	for i := range w.Events {
		e, err := w.Events[i].event()
		if err != nil {
			return nil, err
		}
		b.Events[i] = e
	}
	return b, nil
}
