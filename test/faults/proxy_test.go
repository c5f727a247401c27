//go:build faults

package faults

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
)

// proxy stands between the API servers and the processes under test, each of which
// reaches one of them at an address of its own.
type proxy struct {
	upstreams []*httputil.ReverseProxy

	mu      sync.Mutex
	routes  map[string]route // by process
	writes  []*write
	faults  []*fault
	watches map[string]map[*stream]struct{} // by process
	gone    map[string]int                  // how many watches of a process are still to be answered with 410
	frozen  map[string]chan struct{}        // closed when the watches of a process go on
	status  map[string]string               // by path: what the last status written said, use aside
	uses    map[string]string               // by path: what it said of use
}

// route is the way of one process to the API servers.
type route struct {
	// upstream is which API server it reaches.
	upstream int
	// latency is added to every request.
	latency time.Duration
	// overloaded has every request answered with 429.
	overloaded bool
	// deaf has every event of its watches dropped.
	deaf bool
	// lag is how much later the watches that it opens tell anything.
	lag time.Duration
	// storm is what every write is answered with, those of Leases aside; 0 is none.
	storm int
	// behind is the resourceVersion at which its lists are answered that ask for no
	// consistent one, as by a server whose watch cache lags; empty is the present.
	behind string
}

// write is one write that a process sent.
type write struct {
	process, method, path string
	// usage marks one that tells of use alone. Those come when the servers are
	// next asked what was used, so they belong to no scenario.
	usage     bool
	began     time.Time
	forwarded bool
	code      int // of the answer; 0 as long as there is none
	// said and before are what the status says that is written, and what the one
	// before it said, where it is that of a credential.
	said, before string
}

func (w *write) String() string { return w.method + " " + w.path }

// fault is what is to befall one write.
type fault struct {
	process string
	about   func(*write) bool
	nth     int // counted from 1 among the writes it is about, from when it is armed
	// arming runs when the fault is armed.
	arming func()
	// before runs before the write is forwarded, after when the API server has
	// answered and nobody knows yet.
	before, after func()
	// abandon has the write not forwarded at all.
	abandon bool
	// answer is given in place of forwarding the write; 0 forwards it.
	answer int
	// drop cuts the connection in place of passing the answer on.
	drop bool

	seen int
	hit  *write
	over bool // it has befallen the write, to the end
}

// stream is one watch.
type stream struct {
	path   string
	cancel context.CancelFunc
	// listed: all that there was has been told, though perhaps not yet passed on.
	listed bool
}

func newProxy(upstreams ...*rest.Config) (*proxy, error) {
	p := &proxy{
		routes: map[string]route{}, watches: map[string]map[*stream]struct{}{}, gone: map[string]int{}, frozen: map[string]chan struct{}{},
		status: map[string]string{}, uses: map[string]string{},
	}
	for _, upstream := range upstreams {
		target, err := url.Parse(upstream.Host)
		if err != nil {
			return nil, err
		}
		transport, err := rest.TransportFor(rest.AnonymousClientConfig(upstream))
		if err != nil {
			return nil, err
		}
		p.upstreams = append(p.upstreams, &httputil.ReverseProxy{
			Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(target) },
			Transport:     transport,
			FlushInterval: -1,
			ErrorLog:      log.New(io.Discard, "", 0), // what is broken here is meant to be
			ErrorHandler:  func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
		})
	}
	return p, nil
}

// change changes the way of a process.
func (p *proxy) change(process string, change func(*route)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.routes[process]
	change(&r)
	p.routes[process] = r
}

func (p *proxy) route(process string) route {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.routes[process]
}

// upstream is the API server that a process reaches now.
func (p *proxy) upstream(process string) http.Handler { return p.upstreams[p.route(process).upstream] }

// listen opens the address of one process.
func (p *proxy) listen(process string) *httptest.Server {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { p.serve(process, w, r) }))
	s.EnableHTTP2 = true
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	return s
}

func (p *proxy) serve(process string, w http.ResponseWriter, r *http.Request) {
	way := p.route(process)
	if way.latency > 0 {
		last(r.Context(), way.latency)
	}
	if way.overloaded {
		refuse(w, http.StatusTooManyRequests)
		return
	}
	query := r.URL.Query()
	if way.behind != "" && query.Get("sendInitialEvents") == "true" {
		refuse(w, http.StatusUnprocessableEntity) // it will list instead
		return
	}
	if way.behind != "" && r.Method == http.MethodGet && query.Get("resourceVersion") == "0" {
		query.Set("resourceVersion", way.behind)
		query.Set("resourceVersionMatch", string(metav1.ResourceVersionMatchExact))
		r.URL.RawQuery = query.Encode()
	}
	switch r.Method {
	case http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete:
		p.serveWrite(process, w, r)
	default:
		if query.Get("watch") == "true" || query.Get("watch") == "1" {
			p.serveWatch(process, w, r)
			return
		}
		p.upstream(process).ServeHTTP(w, r)
	}
}

func (p *proxy) serveWrite(process string, w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	said, uses := statusOf(r, body)
	rec, f := p.take(process, r, said, uses)
	if f != nil {
		defer p.finished(f)
	}
	if storm := p.route(process).storm; f == nil && storm != 0 && !strings.Contains(r.URL.Path, "/leases") {
		p.answered(rec, storm, "", "")
		refuse(w, storm)
		return
	}
	if f != nil && f.before != nil {
		f.before()
	}
	if f != nil && f.abandon {
		panic(http.ErrAbortHandler)
	}
	if f != nil && f.answer != 0 {
		p.answered(rec, f.answer, "", "")
		refuse(w, f.answer)
		return
	}
	// What has arrived is carried out, whether or not its sender lives to see it.
	r = r.WithContext(context.WithoutCancel(r.Context()))
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	answer := httptest.NewRecorder()
	p.mu.Lock()
	rec.forwarded = true
	p.mu.Unlock()
	p.forward(process, answer, r)
	p.answered(rec, answer.Code, said, uses)
	if f != nil && f.after != nil {
		f.after()
	}
	if f != nil && f.drop {
		panic(http.ErrAbortHandler)
	}
	for k, v := range answer.Header() {
		w.Header()[k] = v
	}
	w.WriteHeader(answer.Code)
	_, _ = w.Write(answer.Body.Bytes())
}

// forward passes a write on. An API server that cannot be reached answers it as one
// that is going down does.
func (p *proxy) forward(process string, answer *httptest.ResponseRecorder, r *http.Request) {
	defer func() {
		if recover() != nil {
			answer.Code = http.StatusServiceUnavailable
		}
	}()
	p.upstream(process).ServeHTTP(answer, r)
}

// take records a write, and gives the fault that is to befall it.
func (p *proxy) take(process string, r *http.Request, said, uses string) (*write, *fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	rec := &write{
		process: process, method: r.Method, path: r.URL.Path, began: time.Now(),
		usage: said != "" && p.status[r.URL.Path] == said && p.uses[r.URL.Path] != uses, said: said, before: p.status[r.URL.Path],
	}
	p.writes = append(p.writes, rec)
	for _, f := range p.faults {
		if f.hit != nil || f.process != process || rec.usage || !f.about(rec) {
			continue
		}
		if f.seen++; f.seen == f.nth {
			f.hit = rec
			return rec, f
		}
	}
	return rec, nil
}

func (p *proxy) answered(rec *write, code int, said, uses string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	rec.code = code
	if code < 300 && said != "" {
		p.status[rec.path], p.uses[rec.path] = said, uses
	}
}

// statusOf is what the status of a credential says that is written, but for when it was
// used, which is apart, and for the transitions that are told of, which leave with any
// write; empty for every other write.
func statusOf(r *http.Request, body []byte) (said, uses string) {
	if path.Base(r.URL.Path) != "status" {
		return "", ""
	}
	var o struct {
		Status map[string]any `json:"status"`
	}
	if err := json.Unmarshal(body, &o); err != nil {
		return "", ""
	}
	versions, _ := o.Status["versions"].([]any)
	if len(versions) == 0 {
		return "", ""
	}
	delete(o.Status, "transitions")
	var use []any
	for _, one := range append(versions, o.Status) {
		if fields, ok := one.(map[string]any); ok {
			for _, name := range []string{"lastUsed", "uses", "usage"} {
				use = append(use, fields[name])
				delete(fields, name)
			}
		}
	}
	text, err := json.Marshal(o.Status)
	if err != nil {
		return "", ""
	}
	return string(text), fmt.Sprint(use...)
}

// refuse answers as the API server does.
func refuse(w http.ResponseWriter, code int) {
	reason := map[int]metav1.StatusReason{
		http.StatusConflict: metav1.StatusReasonConflict, http.StatusGone: metav1.StatusReasonExpired,
		http.StatusUnprocessableEntity: metav1.StatusReasonInvalid,
		http.StatusTooManyRequests:     metav1.StatusReasonTooManyRequests, http.StatusInternalServerError: metav1.StatusReasonInternalError,
	}[code]
	w.Header().Set("Content-Type", "application/json")
	if code == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", "1")
	}
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status:   metav1.StatusFailure, Code: int32(code), Reason: reason, Message: "a fault put in on purpose",
	})
}

func (p *proxy) serveWatch(process string, w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	s := &stream{path: r.URL.Path, cancel: cancel}
	p.mu.Lock()
	if n := p.gone[process]; n > 0 {
		p.gone[process]--
		p.mu.Unlock()
		if n%2 == 0 {
			refuse(w, http.StatusGone)
		} else {
			expire(w)
		}
		return
	}
	if p.watches[process] == nil {
		p.watches[process] = map[*stream]struct{}{}
	}
	p.watches[process][s] = struct{}{}
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.watches[process], s)
	}()
	if lag := p.route(process).lag; lag > 0 {
		l := newLateWriter(ctx, w, lag, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			s.listed = true
		})
		defer l.close()
		w = l
	}
	p.upstream(process).ServeHTTP(&eventWriter{
		ResponseWriter: w, open: func() { p.awaitThaw(ctx, process) }, deaf: func() bool { return p.route(process).deaf },
	}, r.WithContext(ctx))
}

// expire answers a watch as an API server does whose watch cache begins later.
func expire(w http.ResponseWriter) {
	status, err := json.Marshal(metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure,
		Code: http.StatusGone, Reason: metav1.StatusReasonExpired, Message: "too old resource version, on purpose",
	})
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("Content-Type", "application/json;stream=watch")
	_ = json.NewEncoder(w).Encode(metav1.WatchEvent{Type: string(watch.Error), Object: runtime.RawExtension{Raw: status}})
}

// eventWriter passes events on, whole ones: when the gate is open, and unless their
// receiver is deaf.
type eventWriter struct {
	http.ResponseWriter
	open func()
	deaf func() bool
	rest []byte
}

func (e *eventWriter) Write(b []byte) (int, error) {
	e.open()
	e.rest = append(e.rest, b...)
	for {
		n := e.frame()
		if n == 0 {
			return len(b), nil
		}
		if !e.deaf() {
			if _, err := e.ResponseWriter.Write(e.rest[:n]); err != nil {
				return 0, err
			}
		}
		e.rest = e.rest[n:]
	}
}

// frame is the length of the first event, 0 where it is not there whole. JSON ends at
// a line's end, protobuf says its length in front.
func (e *eventWriter) frame() int {
	if !strings.Contains(e.Header().Get("Content-Type"), "protobuf") {
		return bytes.IndexByte(e.rest, '\n') + 1
	}
	const header = 4
	if len(e.rest) < header {
		return 0
	}
	if n := header + int(binary.BigEndian.Uint32(e.rest)); len(e.rest) >= n {
		return n
	}
	return 0
}

// Unwrap lets the reverse proxy flush.
func (e *eventWriter) Unwrap() http.ResponseWriter { return e.ResponseWriter }

// lateWriter passes what is written to it on when some time has passed.
type lateWriter struct {
	http.ResponseWriter
	lag   time.Duration
	queue chan lateBytes
	done  chan struct{}
	// listed is called when all that there was has been written.
	listed func()

	mu sync.Mutex // of the ResponseWriter
}

type lateBytes struct {
	due  time.Time
	text []byte
}

func newLateWriter(ctx context.Context, w http.ResponseWriter, lag time.Duration, listed func()) *lateWriter {
	const many = 1 << 16
	l := &lateWriter{ResponseWriter: w, lag: lag, queue: make(chan lateBytes, many), done: make(chan struct{}), listed: listed}
	go func() {
		defer close(l.done)
		for b := range l.queue {
			last(ctx, time.Until(b.due))
			l.mu.Lock()
			_, _ = l.ResponseWriter.Write(b.text) // whoever has gone away misses nothing
			l.mu.Unlock()
			_ = l.FlushError()
		}
	}()
	return l
}

func (l *lateWriter) Write(b []byte) (int, error) {
	l.queue <- lateBytes{time.Now().Add(l.lag), bytes.Clone(b)}
	if bytes.Contains(b, []byte(metav1.InitialEventsAnnotationKey)) {
		l.listed()
	}
	return len(b), nil
}

// FlushError implements what http.ResponseController looks for: the header goes at once.
func (l *lateWriter) FlushError() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return http.NewResponseController(l.ResponseWriter).Flush()
}

// close waits until everything has been passed on.
func (l *lateWriter) close() {
	close(l.queue)
	<-l.done
}

// listed tells whether all there is of a resource was told to a process that lags, in a
// watch that is open.
func (p *proxy) listed(process, resource string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for s := range p.watches[process] {
		if path.Base(s.path) == resource && s.listed {
			return true
		}
	}
	return false
}

func (p *proxy) awaitThaw(ctx context.Context, process string) {
	p.mu.Lock()
	gate := p.frozen[process]
	p.mu.Unlock()
	if gate == nil {
		return
	}
	select {
	case <-gate:
	case <-ctx.Done():
	}
}

// freeze holds every event on its way to a process back until thaw is called.
func (p *proxy) freeze(process string) (thaw func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	gate := make(chan struct{})
	p.frozen[process] = gate
	return sync.OnceFunc(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		close(gate)
		if p.frozen[process] == gate {
			delete(p.frozen, process)
		}
	})
}

// cutWatches ends every watch of a process, and answers as many of the next ones
// with 410 Gone.
func (p *proxy) cutWatches(process string, gone int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gone[process] = gone
	for s := range p.watches[process] {
		s.cancel()
	}
}

// arm adds a fault to come.
func (p *proxy) arm(f *fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults = append(p.faults, f)
}

// disarm takes all faults away.
func (p *proxy) disarm() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults = nil
}

func (p *proxy) finished(f *fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f.over = true
}

// busy tells whether a fault is under way.
func (p *proxy) busy() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.faults, func(f *fault) bool { return f.hit != nil && !f.over })
}

// struck tells which write the fault has befallen; nil if none.
func (p *proxy) struck(f *fault) *write {
	p.mu.Lock()
	defer p.mu.Unlock()
	return f.hit
}

// written gives copies of the writes since a time that keep says are wanted.
func (p *proxy) written(since time.Time, keep func(*write) bool) []write {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []write
	for _, w := range p.writes {
		if !w.began.Before(since) && keep(w) {
			out = append(out, *w)
		}
	}
	return out
}

// lastSecretWrite is when the latest write of a Secret in a namespace began that
// the API server was given; zero where there is none.
func (p *proxy) lastSecretWrite(namespace string) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := len(p.writes) - 1; i >= 0; i-- {
		if w := p.writes[i]; w.forwarded && aboutSecret(namespace)(w) {
			return w.began
		}
	}
	return time.Time{}
}

// aboutNamespace tells which writes are about what is in a namespace, events aside,
// or about the Revocation of its name.
func aboutNamespace(namespace string) func(*write) bool {
	return func(w *write) bool {
		if strings.HasSuffix(strings.TrimSuffix(w.path, "/status"), "/revocations/"+namespace) {
			return true
		}
		_, rest, ok := strings.Cut(w.path, "/namespaces/"+namespace+"/")
		return ok && !strings.HasPrefix(rest, "events")
	}
}

// aboutSecret tells which writes are of Secrets in a namespace.
func aboutSecret(namespace string) func(*write) bool {
	return func(w *write) bool { return strings.HasPrefix(w.path, "/api/v1/namespaces/"+namespace+"/secrets") }
}

// last lets some time pass, unless the context ends.
func last(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
