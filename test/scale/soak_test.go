//go:build scale

package scale

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"text/tabwriter"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// The mix of a soak, for the whole of it.
const (
	soakCredentials = 1000
	soakWorkers     = 6
	soakRate        = 300 // requests a second, of all workers
	rotateEvery     = 500 * time.Millisecond
	revokeEvery     = 5 * time.Second
	// maxGrowth is how much more memory a process may have at the end than after the
	// first quarter, in MB beside a tenth.
	maxGrowth = 12
)

// TestSoak puts a mixed load on three servers while credentials are rotated, revoked and
// replaced, for as long as MINTMARK_SOAK says (10m). No request may be answered wrongly,
// and memory may not grow. Latencies are printed, and not judged.
func TestSoak(t *testing.T) {
	length := 10 * time.Minute
	if text := os.Getenv("MINTMARK_SOAK"); text != "" {
		var err error
		if length, err = time.ParseDuration(text); err != nil || length < time.Minute {
			t.Fatalf("MINTMARK_SOAK=%s: give a time of at least 1m", text)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), length+10*time.Minute)
	defer cancel()
	r, err := startPlane(ctx, t.TempDir())
	if r != nil {
		defer r.stop()
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(r.install(ctx), r.startAgain(ctx), r.createAll(ctx, soakCredentials), r.until(ctx, "Minted", soakCredentials), r.quiet(ctx)); err != nil {
		t.Fatal(err)
	}
	s := &soak{t: t, rig: r, holders: make([]holder, soakCredentials)}
	for i := range s.holders {
		if err := s.renew(ctx, i); err != nil {
			t.Fatal(err)
		}
	}
	s.run(ctx, length)
	s.print()
	s.check()
}

// soak is a run.
type soak struct {
	t *testing.T
	*rig
	holders []holder

	mu        sync.Mutex
	latencies []time.Duration
	minutes   []minute

	requests, wrong, rotations, revocations atomic.Int64
}

// holder is somebody who has the value of a credential.
type holder struct {
	mu      sync.RWMutex
	value   string
	revoked string // a value that has to be refused
}

// minute is a line of the table.
type minute struct {
	requests, wrong, rotations, revocations int64
	p50, p99, slowest                       time.Duration
	memory                                  []int // of the controller, and of each server, in MB
}

// renew reads a credential's value, as its holder does.
func (s *soak) renew(ctx context.Context, i int) error {
	value, err := s.value(ctx, i)
	if err != nil {
		return err
	}
	h := &s.holders[i]
	h.mu.Lock()
	defer h.mu.Unlock()
	h.value = value
	return nil
}

func (s *soak) run(ctx context.Context, length time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, length)
	defer cancel()
	var all sync.WaitGroup
	for i := range soakWorkers {
		all.Go(func() { s.work(ctx, rand.New(rand.NewPCG(1, uint64(i)))) })
	}
	// One half is rotated, the other revoked, for what a Revocation takes is not known
	// where a rotation is under way.
	half := len(s.holders) / 2
	all.Go(func() {
		s.every(ctx, rotateEvery, func(ctx context.Context, i int) error { return s.rotateOne(ctx, i%half) })
	})
	all.Go(func() {
		s.every(ctx, revokeEvery, func(ctx context.Context, i int) error { return s.revokeOne(ctx, half+i%half) })
	})
	began := time.Now()
	ticker := time.NewTicker(time.Minute)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			all.Wait()
			return
		case <-ticker.C:
			m := s.minute()
			s.t.Logf("%s: %d requests, %d wrong, %d rotations, %d revocations, p50 %s, p99 %s, memory %v MB", time.Since(began).Round(time.Second),
				m.requests, m.wrong, m.rotations, m.revocations, m.p50, m.p99, m.memory)
		}
	}
}

// every does something now and then. What it does may take longer than that.
func (s *soak) every(ctx context.Context, pause time.Duration, do func(context.Context, int) error) {
	random := rand.New(rand.NewPCG(2, uint64(pause)))
	ticker := time.NewTicker(pause)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			if err := do(ctx, random.IntN(len(s.holders))); err != nil && ctx.Err() == nil {
				s.t.Error(err)
			}
		}
	}
}

func (s *soak) rotateOne(ctx context.Context, i int) error {
	before, err := s.value(ctx, i)
	if err != nil {
		return err
	}
	if err := request(ctx, s.client, newToken("", i)); err != nil {
		return err
	}
	if err := s.replaced(ctx, i, before); err != nil {
		return err
	}
	s.rotations.Add(1)
	return nil
}

// replaced waits until the Secret carries another value, and has the holder read it.
func (s *soak) replaced(ctx context.Context, i int, before string) error {
	for {
		now, err := s.value(ctx, i)
		if err != nil {
			return err
		}
		if now != before && now != "" {
			return s.renew(ctx, i)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// revokeOne revokes a credential and has another value made.
func (s *soak) revokeOne(ctx context.Context, i int) error {
	h := &s.holders[i]
	h.mu.Lock() // nobody presents it until it is done
	defer h.mu.Unlock()
	before, err := s.value(ctx, i)
	if err != nil {
		return err
	}
	err = s.client.Create(ctx, &v1alpha1.Revocation{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "soak-"},
		Spec: v1alpha1.RevocationSpec{
			Reason: "soak", Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"serial": strconv.Itoa(i)}}, Replace: "Immediately",
		},
	})
	if err != nil {
		return err
	}
	for _, server := range s.servers {
		if _, err := s.refused(ctx, server, before); err != nil {
			return err
		}
	}
	for now := before; now == before || now == ""; {
		if now, err = s.value(ctx, i); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		h.value = now
	}
	h.revoked = before
	s.revocations.Add(1)
	return nil
}

// work sends requests at its share of the rate.
func (s *soak) work(ctx context.Context, random *rand.Rand) {
	ticker := time.NewTicker(time.Second * soakWorkers / soakRate)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			s.ask(ctx, &s.holders[random.IntN(len(s.holders))], s.servers[random.IntN(len(s.servers))], random)
		}
	}
}

// ask sends one request of the mix and judges the answer.
func (s *soak) ask(ctx context.Context, h *holder, server *program, random *rand.Rand) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	method, path, value, want := http.MethodGet, "/forward-auth?permission=api:read", h.value, http.StatusOK
	switch kind := random.IntN(100); {
	case kind < 8:
		value, want = "sk_"+strings.Repeat("0123456789abcdef", 4), http.StatusUnauthorized
	case kind < 12:
		path, want = "/forward-auth?permission=admin:everything", http.StatusForbidden
	case kind < 16 && h.revoked != "":
		value, want = h.revoked, http.StatusUnauthorized
	case kind < 18:
		path = "/api/auth/profile"
	case kind < 20:
		method, path = http.MethodPost, "/api/auth/token"
	}
	began := time.Now()
	req, err := http.NewRequestWithContext(ctx, method, server.url+path, nil)
	if err != nil {
		s.t.Error(err)
		return
	}
	req.Header.Set("Authorization", "Bearer "+value)
	res, err := s.http.Do(req)
	if err != nil {
		if ctx.Err() == nil {
			s.fault("%s %s at %s: %v", method, path, server.Name(), err)
		}
		return
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<16))
	_ = res.Body.Close()
	took := time.Since(began)
	if ctx.Err() != nil {
		return
	}
	if err != nil || res.StatusCode != want {
		s.fault("%s %s at %s answers %d, want %d: %v", method, path, server.Name(), res.StatusCode, want, err)
	}
	s.requests.Add(1)
	s.mu.Lock()
	s.latencies = append(s.latencies, took)
	s.mu.Unlock()
	if method == http.MethodPost && res.StatusCode == http.StatusOK {
		s.useJWT(ctx, body)
	}
}

// useJWT uses the JWT that was just issued, at every server.
func (s *soak) useJWT(ctx context.Context, body []byte) {
	var issued struct {
		Token string `json:"token"`
	}
	if err := json.Unmarshal(body, &issued); err != nil {
		s.fault("the token endpoint's answer: %v", err)
		return
	}
	for _, server := range s.servers {
		code, err := s.present(ctx, server, issued.Token)
		if ctx.Err() != nil {
			return
		}
		s.requests.Add(1)
		if err != nil || code != http.StatusOK {
			s.fault("a JWT just issued is answered %d at %s: %v", code, server.Name(), err)
		}
	}
}

// fault counts what was answered wrongly, and shows the first of it.
func (s *soak) fault(format string, args ...any) {
	if s.wrong.Add(1) <= 20 {
		s.t.Errorf(format, args...)
	}
}

// minute closes a line of the table.
func (s *soak) minute() minute {
	s.mu.Lock()
	taken := s.latencies
	s.latencies = nil
	s.mu.Unlock()
	slices.Sort(taken)
	at := func(share float64) time.Duration {
		if len(taken) == 0 {
			return 0
		}
		return taken[int(share*float64(len(taken)-1))].Round(10 * time.Microsecond)
	}
	m := minute{
		requests: s.requests.Swap(0), wrong: s.wrong.Load(), rotations: s.rotations.Swap(0), revocations: s.revocations.Swap(0),
		p50: at(0.5), p99: at(0.99), slowest: at(1),
	}
	for _, p := range append([]*program{s.controller}, s.servers...) {
		now, _ := p.memory()
		m.memory = append(m.memory, now)
	}
	s.minutes = append(s.minutes, m)
	return m
}

func (s *soak) print() {
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "minute\trequests\twrong\trotations\trevocations\tp50\tp99\tslowest\tcontroller MB\tservers MB\t")
	step := max(len(s.minutes)/20, 1)
	for i := 0; i < len(s.minutes); i += step {
		m := s.minutes[i]
		fmt.Fprintf(table, "%d\t%d\t%d\t%d\t%d\t%s\t%s\t%s\t%d\t%v\t\n", i+1, m.requests, m.wrong, m.rotations, m.revocations, m.p50, m.p99, m.slowest, m.memory[0], m.memory[1:])
	}
	_ = table.Flush()
	var total minute
	for _, m := range s.minutes {
		total.requests, total.rotations, total.revocations = total.requests+m.requests, total.rotations+m.rotations, total.revocations+m.revocations
	}
	fmt.Printf("in all: %d requests, %d answered wrongly, %d rotations, %d revocations in %d minutes\n",
		total.requests, s.wrong.Load(), total.rotations, total.revocations, len(s.minutes))
}

// check compares the end with the end of the first quarter.
func (s *soak) check() {
	if len(s.minutes) < 4 {
		return
	}
	first, last := s.minutes[len(s.minutes)/4], s.minutes[len(s.minutes)-1]
	for i := range last.memory {
		if bound := first.memory[i] + first.memory[i]/10 + maxGrowth; last.memory[i] > bound {
			s.t.Errorf("process %d has grown from %d to %d MB, over %d", i, first.memory[i], last.memory[i], bound)
		}
	}
	for i, m := range s.minutes {
		if m.requests == 0 || m.rotations == 0 {
			s.t.Errorf("minute %d had %d requests and %d rotations: nothing was tested", i+1, m.requests, m.rotations)
		}
	}
}
