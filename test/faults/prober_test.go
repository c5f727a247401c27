//go:build faults

package faults

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/test/controlplane/process"
)

const (
	// probeEvery is the pause between two requests to one server.
	probeEvery = 20 * time.Millisecond
	// readyEvery is how often a server is asked whether it is Ready.
	readyEvery = 100 * time.Millisecond
)

// value is a value that has been read from a Secret, and what has become of it.
type value struct {
	text      string
	namespace string
	version   int64
	// forged: somebody who is not the controller wrote it into the Secret.
	forged bool
	// misnamed are the versions besides its own that it was given out as.
	misnamed []string
	// seen is when it was first read.
	seen time.Time
	// left is when the write began that took it out of the Secret; zero as long as
	// it is there.
	left time.Time
	// superseded is when the write began that put another one in its place as the
	// current one; zero as long as it is that.
	superseded time.Time
	// ending is when the request to revoke or delete it was sent, ended when it had
	// been answered; zero as long as nobody asked.
	ending, ended time.Time

	probes []probe
}

// probe is one request that presented a value to a server.
type probe struct {
	server     int
	sent, done time.Time
	ready      bool // the server was, before and after
	first      bool // sent because the value had just appeared
	status     int
	err        error
}

// prober presents values to servers all the time. It reads them itself, from the
// Secrets, by a watch that no fault touches.
type prober struct {
	rig    *rig
	client *http.Client
	done   sync.WaitGroup
	ready  []readiness

	mu     sync.Mutex
	values []*value // of the trials that go on, the latest last
	ends   map[string]end
	ended  []*value // of those that are over: revoked for good
	forged map[string]bool
	texts  []string // of every value there was
	sent   int
	lost   error // why Secrets cannot be read any more
}

// end is that of the values of a namespace up to a version.
type end struct {
	through      int64
	asked, given time.Time
}

// readiness is what is known of a server.
type readiness struct {
	mu   sync.Mutex
	is   bool
	down time.Time // when it was last seen not to be
	// shown is what it said of itself, in order.
	shown []showing
}

func (r *readiness) shows(at time.Time, age time.Duration) {
	const rounded = time.Second / 2 // at most
	r.mu.Lock()
	defer r.mu.Unlock()
	r.shown = append(r.shown, showing{at: at, asOf: at.Add(-age - rounded)})
}

func (r *readiness) saw(is bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.is = is
	if !is {
		r.down = time.Now()
	}
}

// since tells whether the server has been Ready from some time on, as far as it has
// been asked.
func (r *readiness) since(t time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.is && r.down.Before(t.Add(-readyEvery))
}

func startProber(ctx context.Context, r *rig) (*prober, error) {
	p := &prober{rig: r, client: r.clientOf(), ready: make([]readiness, len(r.servers)), ends: map[string]end{}, forged: map[string]bool{}}
	kube, err := kubernetes.NewForConfig(r.plane.Config)
	if err != nil {
		return nil, err
	}
	options := metav1.ListOptions{LabelSelector: v1alpha1.LabelManaged + "=true"}
	list, err := kube.CoreV1().Secrets("").List(ctx, options)
	if err != nil {
		return nil, err
	}
	watcher, err := watchtools.NewRetryWatcherWithContext(ctx, list.ResourceVersion, &cache.ListWatch{
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.LabelSelector = options.LabelSelector
			return kube.CoreV1().Secrets("").Watch(ctx, o)
		},
	})
	if err != nil {
		return nil, err
	}
	p.done.Go(func() { p.read(ctx, watcher) })
	for i := range r.servers {
		p.done.Go(func() { p.askReady(ctx, i) })
		p.done.Go(func() { p.run(ctx, i) })
	}
	return p, nil
}

// read follows the Secrets.
func (p *prober) read(ctx context.Context, watcher *watchtools.RetryWatcher) {
	defer watcher.Stop()
	for e := range watcher.ResultChan() {
		secret, ok := e.Object.(*corev1.Secret)
		switch {
		case !ok:
		case e.Type == watch.Deleted:
			p.hold(ctx, secret.Namespace, nil)
		default:
			p.hold(ctx, secret.Namespace, secret.Data)
		}
	}
	if ctx.Err() == nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.lost = fmt.Errorf("the watch of Secrets ended by itself")
	}
}

// hold takes what the Secret of a namespace carries now, and presents to every
// server at once what has not been there before.
func (p *prober) hold(ctx context.Context, namespace string, data map[string][]byte) {
	now, written := time.Now(), p.rig.proxy.lastSecretWrite(namespace)
	current, previous := "", ""
	for _, kind := range []v1alpha1.Kind{v1alpha1.KindServiceToken, v1alpha1.KindAPIKey} {
		current += string(data[kind.SecretKey()])
		previous += string(data[kind.PreviousSecretKey()])
	}
	p.mu.Lock()
	var fresh []*value
	for text, number := range map[string]string{
		current: string(data[v1alpha1.SecretKeyVersion]), previous: string(data[v1alpha1.SecretKeyPreviousVersion]),
	} {
		if text == "" {
			continue
		}
		version, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			version = -1 // which no status has
		}
		if i := slices.IndexFunc(p.values, func(v *value) bool { return v.text == text }); i >= 0 {
			if known := p.values[i]; known.version != version || current == previous {
				known.misnamed = append(known.misnamed, number)
			}
			continue
		}
		fresh = append(fresh, p.add(&value{text: text, namespace: namespace, version: version, seen: now, forged: p.forged[text]}))
	}
	for _, v := range p.values {
		if v.namespace != namespace {
			continue
		}
		v.left = moved(v.left, written, v.text != current && v.text != previous)
		v.superseded = moved(v.superseded, written, v.text != current)
	}
	p.mu.Unlock()
	for _, v := range fresh {
		for i := range p.rig.servers {
			p.done.Go(func() { p.present(ctx, i, v, true) })
		}
	}
}

// add takes a value in. The caller holds the lock.
func (p *prober) add(v *value) *value {
	v.end(p.ends[v.namespace])
	p.values, p.texts = append(p.values, v), append(p.texts, v.text)
	return v
}

// declare takes in a value that its holder keeps, once every server accepts it.
func (p *prober) declare(namespace, text string, version int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !slices.ContainsFunc(p.values, func(v *value) bool { return v.text == text }) {
		p.add(&value{text: text, namespace: namespace, version: version, seen: time.Now()})
	}
}

// forge says that a value is about to be written into a Secret by somebody who must
// not: nobody may accept it.
func (p *prober) forge(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forged[text] = true
}

// moved is since when something holds.
func moved(since, now time.Time, holds bool) time.Time {
	if !holds {
		return time.Time{}
	}
	if since.IsZero() {
		return now
	}
	return since
}

func (p *prober) askReady(ctx context.Context, i int) {
	tick := time.NewTicker(readyEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		asked := time.Now()
		ready, age, known := p.rig.servers[i].look(ctx)
		p.ready[i].saw(ready)
		if known {
			p.ready[i].shows(asked, age)
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// sees is nil where a server has been Ready from some time on.
func (p *prober) sees(i int, since time.Time) error {
	if !p.ready[i].since(since) {
		return fmt.Errorf("%s has not been Ready for long enough", p.rig.servers[i].name)
	}
	return nil
}

// run presents to one server, in turn, every value of the trials that go on, and now
// and then one of those that are over.
func (p *prober) run(ctx context.Context, i int) {
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for n := 0; ctx.Err() == nil; n++ {
		if v := p.turn(n); v != nil {
			p.present(ctx, i, v, false)
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

func (p *prober) turn(n int) *value {
	p.mu.Lock()
	defer p.mu.Unlock()
	const share = 5
	if len(p.ended) > 0 {
		if n%share == share-1 {
			return p.ended[n/share%len(p.ended)]
		}
		n -= n / share // no turn of the others is left out
	}
	if len(p.values) == 0 {
		return nil
	}
	return p.values[n%len(p.values)]
}

func (p *prober) present(ctx context.Context, i int, v *value, first bool) {
	result := probe{server: i, first: first, sent: time.Now()}
	result.status, result.err = p.ask(ctx, i, v.text, "")
	result.done = time.Now()
	if ctx.Err() != nil {
		return // cut short by the end of the run
	}
	if result.status != http.StatusOK && p.ready[i].since(result.sent) {
		// It may have ended since it was last asked.
		p.ready[i].saw(process.Probe(ctx, p.rig.servers[i].probe) == nil)
	}
	result.ready = p.ready[i].since(result.sent)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sent++
	v.probes = append(v.probes, result)
}

func (p *prober) ask(ctx context.Context, i int, text, query string) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.rig.servers[i].url+"/forward-auth"+query, nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+text)
	resp, err := p.client.Do(req)
	if err != nil {
		return 0, err
	}
	_ = resp.Body.Close()
	return resp.StatusCode, nil
}

// ending notes that the values of a namespace up to a version are about to be
// revoked or deleted; call what it returns when the API server has accepted that.
func (p *prober) ending(namespace string, through int64) (ended func()) {
	e := end{through: through, asked: time.Now()}
	p.end(namespace, e)
	return func() {
		e.given = time.Now()
		p.end(namespace, e)
	}
}

func (p *prober) end(namespace string, e end) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ends[namespace] = e
	for _, v := range p.values {
		if v.namespace == namespace {
			v.end(e)
		}
	}
}

func (v *value) end(e end) {
	if v.version <= e.through {
		v.ending, v.ended = e.asked, e.given
	}
}

// shown gives copies of what the servers said of themselves.
func (p *prober) shown() [][]showing {
	out := make([][]showing, len(p.ready))
	for i := range p.ready {
		p.ready[i].mu.Lock()
		out[i] = slices.Clone(p.ready[i].shown)
		p.ready[i].mu.Unlock()
	}
	return out
}

// of gives copies of the values of a namespace, with their history.
func (p *prober) of(namespace string) []value {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []value
	for _, v := range p.values {
		if v.namespace == namespace {
			c := *v
			c.probes = slices.Clone(v.probes)
			out = append(out, c)
		}
	}
	return out
}

// retire ends the trial of a namespace: its values are forgotten, but for some of
// those that must never be accepted again.
func (p *prober) retire(namespace string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.values = slices.DeleteFunc(p.values, func(v *value) bool {
		if v.namespace != namespace {
			return false
		}
		if !v.ended.IsZero() {
			p.ended = append(p.ended, &value{text: v.text, namespace: v.namespace, version: v.version, ended: v.ended})
		}
		return true
	})
}

// everyText is every value there was, those aside that somebody forged.
func (p *prober) everyText() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(p.texts), func(text string) bool { return p.forged[text] })
}

// totals tells how many requests were sent in all, and which of those that presented
// a value that had ended for good were let through.
func (p *prober) totals() (sent int, problems []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lost != nil {
		problems = append(problems, p.lost.Error())
	}
	for _, v := range p.ended {
		for _, r := range v.probes {
			if r.status == http.StatusOK {
				problems = append(problems, fmt.Sprintf("I5: %s accepts version %d of %s again, %s after it was revoked",
					p.rig.servers[r.server].name, v.version, v.namespace, r.sent.Sub(v.ended).Round(time.Millisecond)))
			}
		}
	}
	return p.sent, problems
}
