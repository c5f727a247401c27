package server

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	authenticationclient "k8s.io/client-go/kubernetes/typed/authentication/v1"
	strictjson "sigs.k8s.io/json"

	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/internalapi"
)

// internalListener answers the controllers (see package internalapi). It has a mux of its
// own, and nothing on it is reachable through the public one.
type internalListener struct {
	id      string
	started time.Time
	index   *authn.Index
	callers callers
	metrics *metrics
	log     *slog.Logger
	// overdue is told when the index was asked again and again for something it has not
	// heard of: an event may have been lost.
	overdue func()
	late    lateItems
	// ready tells whether the index speaks for the cluster.
	ready func() bool
	// once stores what controllers hand over; nil without a store.
	once  *ledger
	audit *auditor // nil: nothing is recorded
}

// maxAcceptsBody leaves room for MaxAcceptsItems of about 64 bytes and more.
const maxAcceptsBody = 2 << 20

func (l *internalListener) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("POST "+internalapi.AcceptsPath, l.authenticated(l.accepts))
	mux.Handle("GET "+internalapi.UsagePath, l.authenticated(l.usage))
	mux.Handle("POST "+internalapi.TransitionsPath, l.authenticated(l.transitions))
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { problemNotFound.write(w) })
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if thrown := recover(); thrown != nil {
				l.metrics.panics.Inc()
				l.log.Error("a request on the internal listener ended in a panic", "panic", fmt.Sprintf("%T", thrown), "stack", stack())
				problemInternal.write(w)
			}
		}()
		w.Header()["X-Content-Type-Options"] = nosniff
		w.Header()["Cache-Control"] = noStore
		mux.ServeHTTP(w, r)
	})
}

// authenticated lets only the controllers through.
func (l *internalListener) authenticated(next func(http.ResponseWriter, *http.Request) *problem) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p := l.callers.check(r); p != nil {
			p.write(w)
			return
		}
		if p := next(w, r); p != nil {
			p.write(w)
		}
	})
}

// accepts answers AcceptsPath as soon as everything asked for is accepted, or when the
// time is over.
func (l *internalListener) accepts(w http.ResponseWriter, r *http.Request) *problem {
	ask, p := readAccepts(w, r)
	if p != nil {
		return p
	}
	deadline := time.NewTimer(min(time.Duration(ask.WaitMillis)*time.Millisecond, internalapi.MaxWait))
	defer deadline.Stop()
	answer := internalapi.AcceptsResponse{Server: l.id, Accepted: make([]bool, len(ask.Items))}
	for {
		changed := l.index.Changed() // before looking, so that no change falls between
		if l.look(ask.Items, answer.Accepted) {
			break
		}
		select {
		case <-changed:
			continue
		case <-r.Context().Done():
			return problemUnavailable
		case <-deadline.C:
			if ask.WaitMillis >= internalapi.MaxWait.Milliseconds()/4 && l.late.overdue(ask.Items, answer.Accepted, time.Now()) {
				l.overdue()
			}
		}
		break
	}
	return writeJSON(w, answer)
}

// patience is how long something that is asked for again and again may stay unheard of
// before an event counts as lost. An API server that has much to do can send one a second
// late, and would have even more to do if every server listed everything then.
const patience = 2 * time.Second

// lateItems remembers what was asked for in vain. The zero value is ready; it is safe for
// concurrent use.
type lateItems struct {
	mu    sync.Mutex
	items map[internalapi.AcceptsItem]late
}

// late is when something was asked for in vain, first and last.
type late struct{ first, last time.Time }

const (
	// maxLateItems bounds what is remembered; for what is forgotten the patience begins
	// anew.
	maxLateItems = 2 * internalapi.MaxAcceptsItems
	// forgotten is how long after the last question another one is no continuation.
	forgotten = 10 * patience
)

// overdue takes in the answer to a question that has waited for as long as it may, and tells
// whether anything has been asked for in vain for too long.
func (l *lateItems) overdue(items []internalapi.AcceptsItem, accepted []bool, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.items) > maxLateItems || l.items == nil {
		l.items = map[internalapi.AcceptsItem]late{}
	}
	overdue := false
	for i, item := range items {
		if accepted[i] {
			delete(l.items, item)
			continue
		}
		known := l.items[item]
		if now.Sub(known.last) > forgotten {
			known.first = now
		}
		known.last = now
		l.items[item] = known
		overdue = overdue || now.Sub(known.first) >= patience
	}
	return overdue
}

// look fills in what is accepted by now and tells whether everything is.
func (l *internalListener) look(items []internalapi.AcceptsItem, accepted []bool) bool {
	if !l.ready() {
		clear(accepted)
		return false
	}
	all := true
	for i, item := range items {
		accepted[i] = accepted[i] || l.index.Accepts(item.UID, item.Epoch)
		all = all && accepted[i]
	}
	return all
}

func readAccepts(w http.ResponseWriter, r *http.Request) (*internalapi.AcceptsRequest, *problem) {
	body, p := readBody(w, r, maxAcceptsBody)
	if p != nil {
		return nil, p
	}
	ask := new(internalapi.AcceptsRequest)
	strict, err := strictjson.UnmarshalStrict(body, ask)
	if err != nil || len(strict) > 0 {
		return nil, badRequest("The body is not an AcceptsRequest in JSON: {\"waitMillis\": 500, \"items\": [{\"uid\": \"...\", \"epoch\": 1}]}.")
	}
	if len(ask.Items) > internalapi.MaxAcceptsItems {
		return nil, badRequest(fmt.Sprintf("items has more than %d entries: ask in parts.", internalapi.MaxAcceptsItems))
	}
	if ask.WaitMillis < 0 {
		return nil, badRequest("waitMillis is negative.")
	}
	return ask, nil
}

// usage answers UsagePath.
func (l *internalListener) usage(w http.ResponseWriter, r *http.Request) *problem {
	var cursor uint64
	if text := r.URL.Query().Get(internalapi.CursorParameter); text != "" {
		var err error
		if cursor, err = strconv.ParseUint(text, 10, 64); err != nil {
			return badRequest("cursor is not a number: leave it out or send the one of the last answer.")
		}
	}
	used, next := l.index.UsageSince(cursor, internalapi.MaxUsageItems)
	answer := internalapi.UsageResponse{Server: l.id, Since: l.started.UTC(), Cursor: next, Items: make([]internalapi.UsageItem, len(used))}
	for i, u := range used {
		answer.Items[i] = internalapi.UsageItem{UID: u.UID, Version: u.Version, Uses: u.Uses, LastUsed: u.LastUsed}
	}
	return writeJSON(w, answer)
}

func writeJSON(w http.ResponseWriter, answer any) *problem {
	body, err := json.Marshal(answer)
	if err != nil {
		return problemInternal
	}
	w.Header()["Content-Type"] = jsonContentType
	_, _ = w.Write(body)
	return nil
}

// callers decides who may use the internal listener: the controller's service account, by
// a token made for this audience, as the API server says (TokenReview).
type callers struct {
	reviews authenticationclient.TokenReviewInterface
	user    string // system:serviceaccount:NAMESPACE:mintmark-controller
	metrics *metrics
	log     *slog.Logger

	mu    sync.Mutex
	known map[[sha256.Size]byte]time.Time // until when a token is taken without asking again
	slots chan struct{}
}

const (
	reviewFor        = 30 * time.Second // how long a good answer is kept
	reviewTimeout    = 5 * time.Second
	maxKnownCallers  = 64
	maxReviewsAtOnce = 4
)

func newCallers(reviews authenticationclient.TokenReviewInterface, namespace string, m *metrics, log *slog.Logger) callers {
	return callers{
		reviews: reviews, user: "system:serviceaccount:" + namespace + ":mintmark-controller", metrics: m, log: log,
		known: map[[sha256.Size]byte]time.Time{}, slots: make(chan struct{}, maxReviewsAtOnce),
	}
}

var errCaller = errors.New("not the controller's token for this audience")

// check is nil for a controller.
func (c *callers) check(r *http.Request) *problem {
	auth := r.Header["Authorization"]
	if len(auth) != 1 {
		return c.refuse("no bearer token")
	}
	token, ok := bearer(auth[0])
	if !ok || strings.Count(token, ".") != 2 {
		return c.refuse("no bearer token")
	}
	key := sha256.Sum256([]byte(token))
	if c.remembered(key, time.Now()) {
		return nil
	}
	switch err := c.review(r.Context(), token); {
	case err == nil:
		c.remember(key, time.Now())
		c.metrics.reviews.WithLabelValues("accepted").Inc()
		return nil
	case errors.Is(err, errCaller):
		return c.refuse(err.Error())
	default:
		c.metrics.reviews.WithLabelValues("unknown").Inc()
		remedy := "check that the API server can be reached"
		if apierrors.IsForbidden(err) {
			remedy = "grant this service account the verb create on tokenreviews.authentication.k8s.io (ClusterRole mintmark-server)"
		}
		c.log.Warn("cannot authenticate a caller of the internal listener", "error", err.Error(), "remedy", remedy)
		return problemUnavailable
	}
}

func (c *callers) refuse(reason string) *problem {
	c.metrics.reviews.WithLabelValues("refused").Inc()
	c.log.Info("caller of the internal listener refused", "reason", reason)
	return problemUnauthenticated
}

// review asks the API server. Few reviews run at once, so that a flood of bad tokens
// becomes no flood of reviews.
func (c *callers) review(ctx context.Context, token string) error {
	ctx, cancel := context.WithTimeout(ctx, reviewTimeout)
	defer cancel()
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	review, err := c.reviews.Create(ctx, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{internalapi.Audience}},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	status := review.Status
	// An authenticator that does not know audiences leaves the list empty: that is no
	// token for this audience.
	if !status.Authenticated || status.User.Username != c.user || !slices.Contains(status.Audiences, internalapi.Audience) {
		return errCaller
	}
	return nil
}

func (c *callers) remembered(key [sha256.Size]byte, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return now.Before(c.known[key])
}

func (c *callers) remember(key [sha256.Size]byte, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, until := range c.known {
		if !now.Before(until) || len(c.known) >= maxKnownCallers {
			delete(c.known, k)
		}
	}
	c.known[key] = now.Add(reviewFor)
}
