package server

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// operations is the plain HTTP listener for probes and metrics. It tells nothing of a
// credential.
func operations(registry *prometheus.Registry, r *readiness, now func() time.Time) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{Registry: registry}))
	alive := func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) }
	// Alive is whoever answers: nothing that is missing gets better by a restart.
	mux.HandleFunc("GET /livez", alive)
	mux.HandleFunc("GET /healthz", alive)
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, req *http.Request) { readyz(w, req, r, now()) })
	return mux
}

// readyz lists every check where asked to, or where one fails.
func readyz(w http.ResponseWriter, req *http.Request, r *readiness, now time.Time) {
	var report strings.Builder
	ready := true
	for _, c := range r.checks() {
		if err := c.run(now); err != nil {
			ready = false
			fmt.Fprintf(&report, "[-] %s: %s\n", c.name, strings.ReplaceAll(err.Error(), "\n", "; "))
			continue
		}
		fmt.Fprintf(&report, "[+] %s\n", c.name)
	}
	r.describe(&report, now)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	_, verbose := req.URL.Query()["verbose"]
	switch {
	case !ready:
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintf(w, "%snot ready\n", report.String())
	case verbose:
		fmt.Fprintf(w, "%sready\n", report.String())
	default:
		fmt.Fprintln(w, "ready")
	}
}

// staleAfter is the age of a heartbeat that comes every 2 seconds from which on something
// is amiss.
const staleAfter = 5 * time.Second

// describe tells what does not decide readiness by itself.
func (r *readiness) describe(report *strings.Builder, now time.Time) {
	age, ok := r.age(now)
	if !ok {
		return
	}
	beat, seen := r.freshness.heartbeatAge(now)
	switch {
	case !seen:
		fmt.Fprintf(report, "[ ] heartbeat: none seen yet: no controller is running\n")
	case beat > staleAfter:
		fmt.Fprintf(report, "[ ] heartbeat: %s old: the controller, or the way to the API server, is down\n", beat.Round(time.Second))
	default:
		fmt.Fprintf(report, "[+] heartbeat: %s old\n", beat.Round(time.Second))
	}
	mark := "[+]"
	if age > staleAfter {
		mark = "[ ]"
	}
	fmt.Fprintf(report, "%s staleness: %s of at most %s\n", mark, age.Round(time.Second), r.maxStaleness)
	if loops := r.loops.Load(); loops != nil {
		for _, l := range *loops {
			if h := l.Health(); h.Err != nil {
				fmt.Fprintf(report, "[ ] %s: out of touch for %s: %s\n", l.Name(), now.Sub(h.BrokenSince).Round(time.Second), h.Err)
			}
		}
	}
}
