// Package table is a hash table that is read without a lock.
//
// A [Table] finds pointers by a key that what they point to holds. It keeps
// nothing beside them but one byte each, so that a million of them cost eleven to
// thirteen megabytes, and nothing that a look-up would allocate or wait for.
//
// Slots are in groups of seven behind one word of tags, in the manner of Swiss
// tables, and a group is a cache line: a tag is some bits of the key's hash, and one
// load tells which of the seven can be meant. A key that is not there is told so by
// the tags alone, and so costs no more than one that is.
//
// What makes it safe to read while it is written: a slot holds the pointer before
// its tag tells of it, the tag is gone before the pointer is, and what a pointer
// points to does not change. A reader that sees an old tag compares the key and
// goes on. A table that has to grow is built anew beside the old one, which
// readers that are in it find as it was.
package table

import (
	"iter"
	"math/bits"
	"sync/atomic"
)

// Table holds pointers by key. Make it with [New]. Get, Len and All may be called by
// any number of goroutines at any time; the others by one at a time.
//
// A Get that runs while a key is being written finds it as it was or as it is. It
// never misses a key that was there all the while, and never finds one twice.
type Table[K comparable, V any] struct {
	key  func(*V) K
	hash func(K) uint64

	slots atomic.Pointer[[]group[V]]
	held  atomic.Int64
	used  int // slots that are not empty: held ones, and those left by deleted keys
}

// group is seven slots behind their tags, the first in the lowest byte. The highest byte
// is of no slot, and always tagDead.
type group[V any] struct {
	tags  atomic.Uint64
	items [groupSize]atomic.Pointer[V]
}

const (
	groupSize = 7
	minGroups = 2

	// What a tag means that stands for no key. In an empty slot every search ends; one
	// whose key was deleted is passed over.
	tagEmpty = 0
	tagDead  = 1
	firstTag = 2

	noSlot   = tagDead << 56
	lowBits  = 0x0101010101010101
	highBits = 0x8080808080808080
)

// New makes a table with room for a number of keys. key reads the key of an item,
// which must not change while the table holds it. The hash must spread over all 64
// bits, and must not be one for which others can make collisions.
func New[K comparable, V any](room int, key func(*V) K, hash func(K) uint64) *Table[K, V] {
	t := &Table[K, V]{key: key, hash: hash}
	t.clear(room)
	return t
}

func (t *Table[K, V]) clear(room int) {
	slots := newSlots[V](room)
	t.used = 0
	t.slots.Store(&slots)
}

func newSlots[V any](room int) []group[V] {
	slots := make([]group[V], groupsFor(room))
	for i := range slots {
		slots[i].tags.Store(noSlot)
	}
	return slots
}

// groupsFor leaves a table at most seven tenths full.
func groupsFor(held int) int { return max(minGroups, (held*10/7+groupSize)/groupSize) }

// tagOf gives the tag for a hash, of bits that do not choose the group.
func tagOf(hash uint64) uint8 { return max(uint8(hash), firstTag) }

// home is the group at which the search for a hash begins.
func home(hash uint64, groups int) int {
	high, _ := bits.Mul64(hash, uint64(groups))
	return int(high)
}

// matches has the high bit set of each byte of tags that is tag. Above a byte that is,
// there may be one too many, so the key has to be compared; none is left out.
func matches(tags uint64, tag uint8) uint64 {
	x := tags ^ lowBits*uint64(tag)
	return (x - lowBits) &^ x & highBits
}

// Get finds the item with this key; nil where there is none. It takes no lock and does
// not allocate.
func (t *Table[K, V]) Get(key K) *V {
	hash := t.hash(key)
	slots := *t.slots.Load()
	tag := tagOf(hash)
	for i := home(hash, len(slots)); ; {
		g := &slots[i]
		tags := g.tags.Load()
		for m := matches(tags, tag); m != 0; m &= m - 1 {
			// The pointer is gone where the key has been deleted since.
			if item := g.items[bits.TrailingZeros64(m)/8].Load(); item != nil && t.key(item) == key {
				return item
			}
		}
		if matches(tags, tagEmpty) != 0 {
			return nil
		}
		if i++; i == len(slots) {
			i = 0
		}
	}
}

// Len is the number of keys.
func (t *Table[K, V]) Len() int { return int(t.held.Load()) }

// All gives every item. Those put or deleted meanwhile may be among them or not; the
// others are given once. The loop's body may call anything.
func (t *Table[K, V]) All() iter.Seq[*V] {
	return func(yield func(*V) bool) {
		slots := *t.slots.Load()
		for i := range slots {
			for j := range slots[i].items {
				if item := slots[i].items[j].Load(); item != nil && !yield(item) {
					return
				}
			}
		}
	}
}

// Put puts an item, in the place of the one with the same key if there is one: no Get
// finds neither.
func (t *Table[K, V]) Put(item *V) {
	hash := t.hash(t.key(item))
	if g, i := t.find(hash, t.key(item)); g != nil {
		g.items[i].Store(item)
		return
	}
	if t.used++; t.used > len(*t.slots.Load())*groupSize*7/8 {
		t.rebuild(t.Len() + 1)
		t.used++
	}
	if reused := t.insert(*t.slots.Load(), hash, item); reused {
		t.used--
	}
	t.held.Add(1)
}

// find gives the slot of a key; a nil group where there is none.
func (t *Table[K, V]) find(hash uint64, key K) (g *group[V], slot int) {
	slots := *t.slots.Load()
	for i := home(hash, len(slots)); ; i = (i + 1) % len(slots) {
		g := &slots[i]
		tags := g.tags.Load()
		for m := matches(tags, tagOf(hash)); m != 0; m &= m - 1 {
			slot := bits.TrailingZeros64(m) / 8
			if item := g.items[slot].Load(); item != nil && t.key(item) == key {
				return g, slot
			}
		}
		if matches(tags, tagEmpty) != 0 {
			return nil, 0
		}
	}
}

// insert puts an item whose key is not there into the first slot that is free, and
// tells whether a deleted key had left it.
func (t *Table[K, V]) insert(slots []group[V], hash uint64, item *V) (reused bool) {
	for i := home(hash, len(slots)); ; i = (i + 1) % len(slots) {
		g := &slots[i]
		tags := g.tags.Load()
		free := freeSlot(tags)
		if free < 0 {
			continue
		}
		g.items[free].Store(item)
		g.setTag(free, tagOf(hash))
		return uint8(tags>>(8*free)) == tagDead
	}
}

// freeSlot is the first slot that holds nothing; negative where all do.
func freeSlot(tags uint64) int {
	for slot := range groupSize {
		if uint8(tags>>(8*slot)) < firstTag {
			return slot
		}
	}
	return -1
}

// setTag lets readers see what a slot holds now.
func (g *group[V]) setTag(slot int, tag uint8) {
	g.tags.Store(g.tags.Load()&^(0xff<<(8*slot)) | uint64(tag)<<(8*slot))
}

// Delete takes a key out, and tells whether it was there.
func (t *Table[K, V]) Delete(key K) bool {
	g, slot := t.find(t.hash(key), key)
	if g == nil {
		return false
	}
	if matches(g.tags.Load(), tagEmpty) != 0 {
		// No search goes on behind this group, so none has to be led past the slot.
		g.setTag(slot, tagEmpty)
		t.used--
	} else {
		g.setTag(slot, tagDead)
	}
	g.items[slot].Store(nil)
	held := int(t.held.Add(-1))
	if slots := len(*t.slots.Load()); slots > minGroups && held < slots*groupSize/4 {
		t.rebuild(held)
	}
	return true
}

// rebuild makes the table anew, with room for so many keys and none deleted.
func (t *Table[K, V]) rebuild(room int) {
	slots := newSlots[V](room)
	for item := range t.All() {
		t.insert(slots, t.hash(t.key(item)), item)
	}
	t.used = t.Len()
	t.slots.Store(&slots)
}

// Clear takes every key out.
func (t *Table[K, V]) Clear() {
	t.held.Store(0)
	t.clear(0)
}
