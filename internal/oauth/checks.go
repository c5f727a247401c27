package oauth

import (
	"runtime"
	"time"
)

// checks bounds how many signatures are checked at once, to half of the processors. Anybody
// can send tokens that were never signed, each of which costs as much as twenty keys, and
// behind a gateway that is not trusted nobody knows whom to hold that against. So those
// who present a key or a token that was verified before find a processor whatever is
// going on, and a token that was not waits for its turn among the others. No turn is taken
// away from one for what another did.
type checks chan struct{}

// checkWait is how long a token waits. Thousands of checks end in that time.
const checkWait = 250 * time.Millisecond

func newChecks() checks { return make(checks, max(1, runtime.GOMAXPROCS(0)/2)) }

// enter waits for a turn, which leave ends. It is false where there was none in time.
func (c checks) enter() bool {
	select {
	case c <- struct{}{}:
		return true
	default:
	}
	late := time.NewTimer(checkWait)
	defer late.Stop()
	select {
	case c <- struct{}{}:
		return true
	case <-late.C:
		return false
	}
}

func (c checks) leave() { <-c }
