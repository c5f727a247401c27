package main

import (
	"context"
	"math"
	"runtime/debug"
	"testing"
	"testing/synctest"
)

func TestMemoryIsOrdinaryUntilMuchIsInUse(t *testing.T) {
	const mb = 1 << 20
	for name, c := range map[string]struct {
		live, beside uint64
		most, want   int64
	}{
		"nothing yet":                   {0, 0, math.MaxInt64, ordinaryMemory},
		"little":                        {40 * mb, 10 * mb, math.MaxInt64, ordinaryMemory},
		"much":                          {200 * mb, 20 * mb, math.MaxInt64, 290 * mb},
		"much, and less that it may be": {200 * mb, 20 * mb, 256 * mb, 256 * mb},
		"little, and less than usual":   {40 * mb, 10 * mb, 64 * mb, 64 * mb},
	} {
		if got := memoryLimit(c.live, c.beside, c.most); got != c.want {
			t.Errorf("%s: %d MB, want %d", name, got/mb, c.want/mb)
		}
	}
	if live, beside := memoryInUse(); beside == 0 || beside > 1<<30 || live > 1<<30 {
		t.Errorf("the runtime tells of %d bytes in use and %d beside", live, beside)
	}
}

func TestTheMemoryLimitIsSetAndStaysBelowTheGivenOne(t *testing.T) {
	before := debug.SetMemoryLimit(-1)
	defer debug.SetMemoryLimit(before)
	for most, want := range map[int64]int64{math.MaxInt64: ordinaryMemory, ordinaryMemory - 1: ordinaryMemory - 1} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			go keepHeapRoom(ctx, most)
			synctest.Wait()
			cancel()
			synctest.Wait()
		})
		if got := debug.SetMemoryLimit(-1); got != want {
			t.Errorf("with %d at most the limit is %d, want %d", most, got, want)
		}
	}
}
