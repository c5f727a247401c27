package server

import (
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"
)

// asked is a request to forward-auth as the handler sees it, from a client behind a
// gateway that is trusted.
func asked(b *testing.B, client, value string) *http.Request {
	b.Helper()
	req, err := http.NewRequest(http.MethodGet, "/forward-auth", nil)
	if err != nil {
		b.Fatal(err)
	}
	req.RemoteAddr = "127.0.0.1:4711"
	req.Header["X-Forwarded-For"], req.Header["Authorization"] = []string{client}, []string{"Bearer " + value}
	return req
}

// block has the address blocked.
func (e *edge) block(b *testing.B, client string) {
	b.Helper()
	for range 30 {
		e.public.ServeHTTP(&discardWriter{header: http.Header{}}, asked(b, client, newValue(b, nil)))
	}
	if e.public.guard.blockedNow(e.now()) == 0 {
		b.Fatal("it is not blocked")
	}
}

// BenchmarkAbuse is what a request costs this server, without net/http around it. A forged
// JWT costs the check of a signature, until its address is blocked (I17).
func BenchmarkAbuse(b *testing.B) {
	e := newEdge(b, setup{discard: true, proxies: localProxies})
	good, jwt := e.mint("ci"), ""
	jwt = e.jwtFor(good, "")
	over := e.mint("over", rated(1, time.Hour, 1))
	within := e.mint("within", rated(1e9, time.Second, 1e9))
	e.limit(3)
	e.guard(30)
	const patient = "203.0.113.1"
	e.block(b, attacker)
	run := func(name, client, value string) {
		b.Run(name, func(b *testing.B) {
			req, w := asked(b, client, value), &discardWriter{header: http.Header{}}
			b.ReportAllocs()
			for b.Loop() {
				clear(w.header)
				e.public.ServeHTTP(w, req)
			}
		})
	}
	run("good key", patient, good.value())
	run("good key, its address blocked", attacker, good.value())
	run("good key within its rate", patient, within.value())
	run("good key over its rate", patient, over.value())
	run("unknown key, its address blocked", attacker, newValue(b, nil))
	run("forged JWT, its address blocked", attacker, forged(jwt))
	e.guard(0)
	run("unknown key", patient, newValue(b, nil))
	run("forged JWT", patient, forged(jwt))
}

// BenchmarkBesideAFlood is how long a good key of one tenant takes while somebody else
// asks as fast as a processor can. The bound is twice as long as alone in the middle: the
// flood may take a processor, and may hold no lock that others wait for.
func BenchmarkBesideAFlood(b *testing.B) {
	e := newEdge(b, setup{discard: true, proxies: localProxies})
	good, other := e.mint("ci", rated(1e9, time.Second, 1e9)), e.mint("other", rated(10, time.Second, 10))
	jwt := e.jwtFor(good, "")
	e.limit(1)
	e.guard(30)
	e.block(b, attacker)
	for _, flood := range []struct{ name, value string }{
		{"alone", ""}, {"a credential over its rate", other.value()}, {"unknown keys", newValue(b, nil)}, {"forged JWTs", forged(jwt)},
	} {
		b.Run(flood.name, func(b *testing.B) {
			stop := make(chan struct{})
			var flooding sync.WaitGroup
			defer flooding.Wait()
			defer close(stop)
			if flood.value != "" {
				req := asked(b, attacker, flood.value)
				flooding.Go(func() {
					w := &discardWriter{header: http.Header{}}
					for {
						select {
						case <-stop:
							return
						default:
							clear(w.header)
							e.public.ServeHTTP(w, req)
						}
					}
				})
			}
			req, w := asked(b, bystander, good.value()), &discardWriter{header: http.Header{}}
			var took []time.Duration
			for b.Loop() {
				clear(w.header)
				began := time.Now()
				e.public.ServeHTTP(w, req)
				took = append(took, time.Since(began))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Nanoseconds()), "p50-ns")
			b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds()), "p99-ns")
		})
	}
}
