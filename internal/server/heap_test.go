package server

import (
	"context"
	"os"
	"runtime/debug"
	"testing"
	"testing/synctest"
)

func TestGarbageHasRoomWhereLittleIsInUse(t *testing.T) {
	for live, want := range map[uint64]int{
		0: maxGarbagePercent, 1 << 20: maxGarbagePercent, 4 << 20: 400, 8 << 20: 200, 16 << 20: 100, 191 << 20: minGarbagePercent, 192 << 20: 150, 1 << 40: 150,
	} {
		if got := garbagePercent(live); got != want {
			t.Errorf("with %d bytes in use there are %d percent, want %d", live, got, want)
		}
	}
	if liveHeap() == 0 && os.Getenv("GOGC") == "" {
		t.Error("the runtime does not tell what is in use")
	}
}

func TestTheRoomForGarbageIsSetAndStays(t *testing.T) {
	before := debug.SetGCPercent(77)
	defer debug.SetGCPercent(before)
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		go KeepHeapRoom(ctx)
		synctest.Wait()
		cancel()
		synctest.Wait()
	})
	got := debug.SetGCPercent(77)
	if got < minGarbagePercent || got > maxGarbagePercent {
		t.Errorf("GOGC is %d, which is none of ours", got)
	}
}
