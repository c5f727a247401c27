package main

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// What is in use is mostly the cache, which never becomes garbage, and to look through it
// is most of the work of a collection: with ten thousand credentials, more than all else
// that a mass rotation takes of the controller. So there is as much room as ordinary memory
// leaves, and where more is in use, a third of it.
const (
	// ordinaryMemory is what the Go runtime may hold in any case, in bytes. The program's
	// own code takes 40 MB beside it.
	ordinaryMemory = 155 << 20
	// roomPercent of what is in use is for garbage and for what lies between objects.
	roomPercent = 35
	heapEvery   = time.Second
)

// keepHeapRoom sets how much memory may be held before garbage is collected, as what is in
// use grows and shrinks, until the context ends. It never sets more than most, which is
// GOMEMLIMIT.
func keepHeapRoom(ctx context.Context, most int64) {
	tick := time.NewTicker(heapEvery)
	defer tick.Stop()
	for {
		live, beside := memoryInUse()
		debug.SetMemoryLimit(memoryLimit(live, beside, most))
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// memoryLimit is how much may be held, in bytes, where the last collection found so much in
// use, and so much is held that is no heap, such as stacks.
func memoryLimit(live, beside uint64, most int64) int64 {
	return min(most, int64(max(ordinaryMemory, beside+live*(100+roomPercent)/100)))
}

func memoryInUse() (live, beside uint64) {
	samples := []metrics.Sample{
		{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/total:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/unused:bytes"},
		{Name: "/memory/classes/heap/free:bytes"}, {Name: "/memory/classes/heap/released:bytes"},
	}
	metrics.Read(samples)
	beside = samples[1].Value.Uint64()
	for _, heap := range samples[2:] {
		beside -= min(beside, heap.Value.Uint64())
	}
	return samples[0].Value.Uint64(), beside
}
