package server

import (
	"context"
	"runtime/debug"
	gometrics "runtime/metrics"
	"time"
)

// With few credentials what is in use is so little that it would be looked through dozens
// of times a second, each time it has doubled: on a busy server a tenth of its time. So
// there is room for this much garbage at least, in bytes. With ten thousand credentials it
// is what the Go runtime leaves anyway. With a million it takes most of a second to look
// through what is in use, and there is half as much room again; where memory is limited,
// GOMEMLIMIT keeps below that all the same.
const (
	roomForGarbage = 16 << 20
	muchInUse      = 192 << 20 // bytes
	// garbageOfMuch is the percentage where much is in use.
	garbageOfMuch = 150
	// How often to look, and within which bounds the percentage of GOGC is.
	heapEvery         = time.Second
	minGarbagePercent = 100
	maxGarbagePercent = 400
)

// KeepHeapRoom sets by how much the heap may grow between two collections of garbage, as
// what is in use grows and shrinks, until the context ends. It is for the whole process,
// and not for one whose GOGC is set.
func KeepHeapRoom(ctx context.Context) {
	tick := time.NewTicker(heapEvery)
	defer tick.Stop()
	for set := 0; ; {
		if percent := garbagePercent(liveHeap()); percent != set {
			debug.SetGCPercent(percent)
			set = percent
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// garbagePercent is GOGC for so many bytes in use.
func garbagePercent(live uint64) int {
	if live >= muchInUse {
		return garbageOfMuch
	}
	return int(min(max(100*roomForGarbage/max(live, 1), minGarbagePercent), maxGarbagePercent))
}

// liveHeap is what the last collection found in use, in bytes.
func liveHeap() uint64 {
	sample := []gometrics.Sample{{Name: "/gc/heap/live:bytes"}}
	gometrics.Read(sample)
	if sample[0].Value.Kind() != gometrics.KindUint64 {
		return 0
	}
	return sample[0].Value.Uint64()
}
