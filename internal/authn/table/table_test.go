package table_test

import (
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/mintmark-dev/mintmark/internal/authn/table"
)

type item struct {
	key   uint32
	value int
	check int // is -value, unless half of it has been written
}

func newItem(key uint32, value int) *item { return &item{key, value, -value} }

func keyOf(i *item) uint32 { return i.key }

// spread is a good hash; crowd is one under which many keys have the same home, or the
// same tag, or both.
func spread(key uint32) uint64 {
	high, low := bits.Mul64(uint64(key)+0x9e3779b97f4a7c15, 0xd1342543de82ef95)
	return (high ^ low) * 0x9e3779b97f4a7c15
}

func crowd(key uint32) uint64 { return uint64(key%3)<<62 | uint64(key%5) }

// TestItIsAMap compares it with Go's own under whatever is done to both, with hashes good
// and bad, small enough to be full of deleted keys and large enough to grow and shrink.
func TestItIsAMap(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		hash := rapid.SampledFrom([]func(uint32) uint64{spread, crowd}).Draw(rt, "hash")
		x, want := table.New(rapid.IntRange(0, 40).Draw(rt, "room"), keyOf, hash), map[uint32]int{}
		key := rapid.Uint32Range(0, uint32(rapid.SampledFrom([]int{8, 60, 2000}).Draw(rt, "keys")))
		step := 0
		rt.Repeat(map[string]func(*rapid.T){
			"put": func(rt *rapid.T) {
				k := key.Draw(rt, "key")
				step++
				x.Put(newItem(k, step))
				want[k] = step
			},
			"put many": func(rt *rapid.T) {
				first := key.Draw(rt, "first")
				for k := first; k < first+100; k++ {
					step++
					x.Put(newItem(k, step))
					want[k] = step
				}
			},
			"delete": func(rt *rapid.T) {
				k := key.Draw(rt, "key")
				if _, held := want[k]; x.Delete(k) != held {
					rt.Fatalf("deleting %d, which is held: %v", k, held)
				}
				delete(want, k)
			},
			"delete many": func(rt *rapid.T) {
				for _, k := range slices.Sorted(maps.Keys(want))[len(want)/5:] {
					x.Delete(k)
					delete(want, k)
				}
			},
			"clear": func(rt *rapid.T) {
				if rapid.IntRange(0, 9).Draw(rt, "really") == 0 {
					x.Clear()
					clear(want)
				}
			},
			"": func(rt *rapid.T) {
				got := map[uint32]int{}
				for i := range x.All() {
					if _, twice := got[i.key]; twice {
						rt.Fatalf("%d is there twice", i.key)
					}
					got[i.key] = i.value
				}
				if diff := cmp.Diff(want, got); diff != "" || x.Len() != len(want) {
					rt.Fatalf("%d held, want %d: %s", x.Len(), len(want), diff)
				}
				for k := range want {
					if found := x.Get(k); found == nil || found.value != want[k] {
						rt.Fatalf("%d: %+v", k, found)
					}
				}
				if k := key.Draw(rt, "asked"); (x.Get(k) != nil) != (want[k] != 0) {
					rt.Fatalf("%d: %+v", k, x.Get(k))
				}
			},
		})
	})
}

// TestReadersNeverMissWhatStays: while keys come and go around them and the table grows
// and shrinks, keys that stay are found at every moment, whole and never older than
// before, and keys that never were are not.
func TestReadersNeverMissWhatStays(t *testing.T) {
	for name, hash := range map[string]func(uint32) uint64{"spread": spread, "crowded": crowd} {
		t.Run(name, func(t *testing.T) {
			const stay, come = 16, 300
			x := table.New(0, keyOf, hash)
			for k := range uint32(stay) {
				x.Put(newItem(k, 1))
			}
			var done atomic.Bool
			var readers sync.WaitGroup
			for range 3 {
				readers.Go(func() {
					var last [stay]int
					for i := uint32(0); !done.Load(); i++ {
						k := i % stay
						found := x.Get(k)
						if found == nil || found.key != k || found.value < last[k] || found.check != -found.value {
							t.Errorf("%d: %+v after %d", k, found, last[k])
							return
						}
						last[k] = found.value
						if other := x.Get(stay + i%come); other != nil && (other.key != stay+i%come || other.check != -other.value) {
							t.Errorf("%d: %+v", stay+i%come, other)
							return
						}
						if x.Get(stay+come+i) != nil {
							t.Errorf("%d is there", stay+come+i)
							return
						}
					}
				})
			}
			for round := range 60 {
				for k := uint32(stay); k < stay+come; k++ {
					x.Put(newItem(k, round))
					x.Put(newItem(k%stay, round*come+int(k)))
				}
				for k := uint32(stay); k < stay+come; k++ {
					x.Delete(k)
				}
			}
			done.Store(true)
			readers.Wait()
		})
	}
}

func TestGetDoesNotAllocate(t *testing.T) {
	x := table.New(0, keyOf, spread)
	for k := range uint32(1000) {
		x.Put(newItem(k, 1))
	}
	if n := testing.AllocsPerRun(1000, func() { x.Get(7); x.Get(5000) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkGet(b *testing.B) {
	for _, size := range []uint32{10, 10_000, 1_000_000} {
		x, bare := table.New(int(size), keyOf, spread), make(map[uint32]*item, size)
		for k := range size {
			i := newItem(k, 1)
			x.Put(i)
			bare[k] = i
		}
		for _, asked := range []struct {
			name string
			from uint32
		}{{"held", 0}, {"unknown", size}} {
			b.Run(fmt.Sprintf("%d/%s", size, asked.name), func(b *testing.B) {
				for i := uint32(0); b.Loop(); i += 7919 {
					if (x.Get(asked.from+i%size) != nil) != (asked.from == 0) {
						b.Fatal(i)
					}
				}
			})
			b.Run(fmt.Sprintf("%d/map/%s", size, asked.name), func(b *testing.B) {
				for i := uint32(0); b.Loop(); i += 7919 {
					if (bare[asked.from+i%size] != nil) != (asked.from == 0) {
						b.Fatal(i)
					}
				}
			})
		}
	}
}
