package management

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/mintmark-dev/mintmark/internal/store"
)

// Bounds of what is read of the store, so that no search keeps it from what it is for.
const (
	// readTime is how long one question may take. The database is told to give it up then.
	readTime = 10 * time.Second
	// maxReads are answered at once, and tenantReads of them for one tenant. Who finds no
	// place waits for readWait.
	maxReads    = 4
	tenantReads = 2
	readWait    = 2 * time.Second
	// storeTime is how long storing one event may take.
	storeTime = 5 * time.Second
	// sameRead is for how long a search that is asked again, or paged through, counts as
	// the one that is recorded already.
	sameRead     = time.Minute
	maxSameReads = 4096
)

// reads are the questions under way, and those that were recorded lately.
type reads struct {
	now func() time.Time

	mu      sync.Mutex
	all     int
	tenants map[string]int
	freed   chan struct{} // closed when a place is free
	known   map[string]time.Time
}

func newReads(now func() time.Time) *reads {
	return &reads{now: now, tenants: map[string]int{}, freed: make(chan struct{}), known: map[string]time.Time{}}
}

// enter takes a place, and gives what frees it; false where there is none in time.
func (r *reads) enter(ctx context.Context, tenant string) (leave func(), ok bool) {
	timer := time.NewTimer(readWait)
	defer timer.Stop()
	for {
		r.mu.Lock()
		if r.all < maxReads && r.tenants[tenant] < tenantReads {
			r.all++
			r.tenants[tenant]++
			r.mu.Unlock()
			return func() { r.leave(tenant) }, true
		}
		freed := r.freed
		r.mu.Unlock()
		select {
		case <-freed:
		case <-timer.C:
			return nil, false
		case <-ctx.Done():
			return nil, false
		}
	}
}

func (r *reads) leave(tenant string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all--
	if r.tenants[tenant]--; r.tenants[tenant] == 0 {
		delete(r.tenants, tenant)
	}
	close(r.freed)
	r.freed = make(chan struct{})
}

// again tells whether this was read a moment ago, and notes that it is read now. What is
// followed would otherwise tell of nothing but of being followed.
func (r *reads) again(what string) bool {
	now := r.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if at, ok := r.known[what]; ok && now.Sub(at) < sameRead && !now.Before(at) {
		return true
	}
	if len(r.known) >= maxSameReads {
		for other, at := range r.known {
			if now.Sub(at) >= sameRead || now.Before(at) {
				delete(r.known, other)
			}
		}
		if len(r.known) >= maxSameReads {
			clear(r.known) // recorded once more is better than not at all
		}
	}
	r.known[what] = now
	return false
}

// read asks the store on behalf of the caller: within a time, and beside not too many
// others.
func read[T any](ctx context.Context, a *API, c *Caller, doing string, ask func(context.Context, Store, store.Tenant) (T, error)) (T, error) {
	var none T
	if a.config.Store == nil {
		return none, later(errNoStore, retryNoStore)
	}
	tenant := c.tenant()
	leave, ok := a.reads.enter(ctx, tenant.Setting())
	if !ok {
		return none, later(errBusy, retryBusy)
	}
	defer leave()
	asking, cancel := context.WithTimeout(ctx, readTime)
	defer cancel()
	got, err := ask(asking, a.config.Store, tenant)
	if err == nil {
		return got, nil
	}
	return none, a.readError(asking, c, doing, err)
}

// readError is the answer where a question to the store failed.
func (a *API) readError(ctx context.Context, c *Caller, doing string, err error) error {
	if p := (*Problem)(nil); errors.As(err, &p) {
		return err
	}
	switch {
	case errors.Is(err, store.ErrCursor):
		return problem(http.StatusBadRequest, "query.cursor: not one that a page before this has given.")
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return later(errSlow, retryDown)
	}
	a.config.Log.Warn("management: "+doing+" failed", "error", err.Error(), "request_id", c.RequestID, "caller", c.Subject)
	return later(errStoreDown, retryDown)
}

// Problems of reading, and after how many seconds to try again.
var (
	errBusy = problem(http.StatusServiceUnavailable, "Too much is asked of the database on this server. Try again in a moment.")
	errSlow = problem(http.StatusServiceUnavailable, "The search took longer than "+readTime.String()+
		" and was given up. Narrow it: by since and until, by uid or by namespace.")
	errStoreDown = problem(http.StatusServiceUnavailable, "The database cannot be asked at the moment: see GET /api/v1/system/status. "+
		"Credentials are verified without it.")
	errNotStored = problem(http.StatusServiceUnavailable, "The event is not stored: the database cannot be reached at the moment. "+
		"Send it again, with the same Idempotency-Key: it is stored once.")
	errNoLog          = problem(http.StatusServiceUnavailable, "This server keeps no audit log: it has neither a database nor --audit-log.")
	errAdministrators = problem(http.StatusForbidden, "Only an administrator may: this is of all tenants together.")
)

const (
	retryBusy    = 2
	retryDown    = 5
	retryNoStore = 60
)

// later has the caller told when to try again.
func later(p *Problem, seconds int) error {
	return huma.ErrorWithHeaders(p, http.Header{"Retry-After": {strconv.Itoa(seconds)}})
}

// searched notes for the audit log what the caller looked for. One that goes on with what
// was recorded a moment ago needs no event of its own.
func (a *API) searched(c *Caller, what, filter string) {
	if c.Report == nil {
		return
	}
	c.Report.note("search", filter)
	c.Report.Continued = a.reads.again(c.UID + " " + c.Subject + " " + what + " " + filter)
}
