//go:build faults

package faults

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
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
	"k8s.io/client-go/rest"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// proxy stands between the API server and the processes under test, each of which
// reaches it at an address of its own.
type proxy struct {
	reverse *httputil.ReverseProxy

	mu      sync.Mutex
	writes  []*write
	faults  []*fault
	watches map[string]map[*stream]struct{} // by process
	gone    map[string]int                  // how many watches of a process are still to be answered with 410
	frozen  map[string]chan struct{}        // closed when the watches of a process go on
	status  map[string]string               // by path: what the last status written said, use aside
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
}

func (w *write) String() string { return w.method + " " + w.path }

// fault is what is to befall one write.
type fault struct {
	process string
	about   func(*write) bool
	nth     int // counted from 1 among the writes it is about, from when it is armed
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
type stream struct{ cancel context.CancelFunc }

func newProxy(upstream *rest.Config) (*proxy, error) {
	target, err := url.Parse(upstream.Host)
	if err != nil {
		return nil, err
	}
	transport, err := rest.TransportFor(rest.AnonymousClientConfig(upstream))
	if err != nil {
		return nil, err
	}
	return &proxy{
		reverse: &httputil.ReverseProxy{
			Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(target) },
			Transport:     transport,
			FlushInterval: -1,
			ErrorHandler:  func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
		},
		watches: map[string]map[*stream]struct{}{}, gone: map[string]int{}, frozen: map[string]chan struct{}{}, status: map[string]string{},
	}, nil
}

// listen opens the address of one process.
func (p *proxy) listen(process string) *httptest.Server {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { p.serve(process, w, r) }))
	s.EnableHTTP2 = true
	s.Config.ErrorLog = nil
	s.StartTLS()
	return s
}

func (p *proxy) serve(process string, w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete:
		p.serveWrite(process, w, r)
	default:
		if r.URL.Query().Get("watch") == "true" || r.URL.Query().Get("watch") == "1" {
			p.serveWatch(process, w, r)
			return
		}
		p.reverse.ServeHTTP(w, r)
	}
}

func (p *proxy) serveWrite(process string, w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	said := statusOf(r, body)
	rec, f := p.take(process, r, said)
	if f != nil {
		defer p.finished(f)
	}
	if f != nil && f.before != nil {
		f.before()
	}
	if f != nil && f.abandon {
		panic(http.ErrAbortHandler)
	}
	if f != nil && f.answer != 0 {
		p.answered(rec, f.answer, "")
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
	p.reverse.ServeHTTP(answer, r)
	p.answered(rec, answer.Code, said)
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

// take records a write, and gives the fault that is to befall it.
func (p *proxy) take(process string, r *http.Request, said string) (*write, *fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	rec := &write{
		process: process, method: r.Method, path: r.URL.Path, began: time.Now(),
		usage: said != "" && p.status[r.URL.Path] == said,
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

func (p *proxy) answered(rec *write, code int, said string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	rec.code = code
	if code < 300 && said != "" {
		p.status[rec.path] = said
	}
}

// statusOf is what the status of a credential says that is written, but for when
// it was used; empty for every other write.
func statusOf(r *http.Request, body []byte) string {
	if path.Base(r.URL.Path) != "status" {
		return ""
	}
	var o struct {
		Status v1alpha1.CredentialStatus `json:"status"`
	}
	if err := json.Unmarshal(body, &o); err != nil {
		return ""
	}
	o.Status.LastUsed = ""
	text, err := json.Marshal(o.Status)
	if err != nil {
		return ""
	}
	return string(text)
}

// refuse answers as the API server does.
func refuse(w http.ResponseWriter, code int) {
	reason := map[int]metav1.StatusReason{
		http.StatusConflict: metav1.StatusReasonConflict, http.StatusGone: metav1.StatusReasonExpired,
		http.StatusTooManyRequests: metav1.StatusReasonTooManyRequests, http.StatusInternalServerError: metav1.StatusReasonInternalError,
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
	s := &stream{cancel: cancel}
	p.mu.Lock()
	if p.gone[process] > 0 {
		p.gone[process]--
		p.mu.Unlock()
		refuse(w, http.StatusGone)
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
	p.reverse.ServeHTTP(&gatedWriter{ResponseWriter: w, open: func() { p.awaitThaw(ctx, process) }}, r.WithContext(ctx))
}

// gatedWriter passes events on when the gate is open.
type gatedWriter struct {
	http.ResponseWriter
	open func()
}

func (g *gatedWriter) Write(b []byte) (int, error) {
	g.open()
	return g.ResponseWriter.Write(b)
}

// Unwrap lets the reverse proxy flush.
func (g *gatedWriter) Unwrap() http.ResponseWriter { return g.ResponseWriter }

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
		delete(p.frozen, process)
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
		if w := p.writes[i]; w.forwarded && strings.HasPrefix(w.path, "/api/v1/namespaces/"+namespace+"/secrets") {
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

// freePorts finds ports nobody uses.
func freePorts(n int) ([]int, error) {
	var ports []int
	var held []net.Listener
	var problem error
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			problem = errors.Join(problem, fmt.Errorf("find a free port: %w", err))
			continue
		}
		held, ports = append(held, l), append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	for _, l := range held {
		_ = l.Close()
	}
	return ports, problem
}
