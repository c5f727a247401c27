package cli

import (
	"net/http"
	"sync"
	"time"
)

// serverClock reads the API server's clock off its answers (RFC 9110, Date),
// for the times written into requests are compared with times the cluster wrote:
// the local clock may be minutes off.
type serverClock struct {
	mu   sync.Mutex
	date time.Time // as the server said, to the second
	at   time.Time // when it said so, with the monotonic reading
	skew time.Duration
}

func newServerClock() *serverClock { return &serverClock{} }

func (c *serverClock) wrap(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(r *http.Request) (*http.Response, error) {
		sent := time.Now()
		resp, err := next.RoundTrip(r)
		if err != nil {
			return resp, err
		}
		if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
			c.set(date, sent, time.Now())
		}
		return resp, nil
	})
}

func (c *serverClock) set(date, sent, received time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.date, c.at = date, received
	// The answer was dated between sent and received, and its Date is cut to
	// the second: the skew is what is left beyond that.
	switch ahead, behind := date.Sub(received), sent.Sub(date.Add(time.Second)); {
	case ahead > 0:
		c.skew = ahead
	case behind > 0:
		c.skew = -behind
	default:
		c.skew = 0
	}
}

// now is the API server's time, to the second. ok is false where no answer
// carried one: then it is the local time.
func (c *serverClock) now() (now time.Time, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.at.IsZero() {
		return time.Now().UTC().Truncate(time.Second), false
	}
	return c.date.Add(time.Since(c.at)).UTC().Truncate(time.Second), true
}

// ahead is how far the API server's clock is ahead of the local one, as far as
// a Date to the second can tell.
func (c *serverClock) ahead() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.skew
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
