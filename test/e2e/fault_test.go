//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// pid of one of Mintmark's own processes, as the runner wrote it down.
func pid(t testing.TB, name string) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(running.dev(), "pid", name))
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// paused is a process that is stopped in its tracks.
type paused struct{ pid int }

// pause stops a process without ending it.
func pause(t testing.TB, name string) *paused {
	t.Helper()
	p := &paused{pid: pid(t, name)}
	if err := syscall.Kill(p.pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *paused) resume() { _ = syscall.Kill(p.pid, syscall.SIGCONT) }

func TestAControllerKilledDuringARotationLeavesAWorkingCredential(t *testing.T) {
	ns := namespace(t, "killed")
	apply(t, serviceToken(ns, "survivor", "api:read"))
	ready(t, ns, "servicetoken/survivor")
	watch := watchSecret(t, ns, "survivor")
	for round, delay := range []time.Duration{0, 15 * time.Millisecond, 60 * time.Millisecond} {
		t.Run(fmt.Sprintf("%s after the request", delay), func(t *testing.T) {
			before := value(t, ns, "survivor", "token")
			must(t, "kubectl -n "+ns+` annotate servicetoken survivor --overwrite mintmark.dev/rotate-requested-at="$(date -u +%FT%T.%NZ)"`)
			<-time.After(delay)
			killed := pid(t, "mintmark-controller")
			if err := syscall.Kill(killed, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			eventually(t, time.Minute, "the controller runs again", func() bool { return pid(t, "mintmark-controller") != killed })
			eventually(t, 2*time.Minute, "the rotation is finished", func() bool {
				version, err := strconv.Atoi(value(t, ns, "survivor", "version"))
				return err == nil && version >= round+2 && value(t, ns, "survivor", "token") != before
			})
			ready(t, ns, "servicetoken/survivor")
			accepted(t, value(t, ns, "survivor", "token"), "the value after the rotation")
			accepted(t, before, "the value before the rotation, in its overlap")
		})
	}
	watch.stop(t)
}

// secretWatch presents whatever the Secret holds, all the time.
type secretWatch struct {
	done    chan struct{}
	running sync.WaitGroup
	asked   int
	refused []string
}

// watchSecret reads the Secret again and again and presents its current and its
// previous value to every server: each is to be accepted whenever it can be read.
func watchSecret(t *testing.T, ns, name string) *secretWatch {
	w := &secretWatch{done: make(chan struct{})}
	urls := servers(t)
	w.running.Go(func() {
		for {
			select {
			case <-w.done:
				return
			default:
			}
			values, ok := shell(t, "kubectl -n "+ns+" get secret "+name+
				` -o go-template='{{range $key, $value := .data}}{{$key}} {{base64decode $value}}{{"\n"}}{{end}}'`)
			if !ok {
				continue
			}
			w.present(t, urls, values)
		}
	})
	return w
}

// present takes the values from lines of a key and a value.
func (w *secretWatch) present(t *testing.T, urls []string, values string) {
	for line := range strings.Lines(values) {
		what, v, _ := strings.Cut(strings.TrimSpace(line), " ")
		if what != "token" && what != "token.previous" {
			continue
		}
		for _, server := range urls {
			w.asked++
			if status, err := ask(t.Context(), server, v); status != http.StatusOK {
				w.refused = append(w.refused, fmt.Sprintf("%s: %s answered with %d, %v", time.Now().Format(time.TimeOnly), what, status, err))
			}
		}
	}
}

func (w *secretWatch) stop(t *testing.T) {
	t.Helper()
	close(w.done)
	w.running.Wait()
	if w.asked < 20 {
		t.Errorf("asked %d times only", w.asked)
	}
	for _, r := range w.refused {
		t.Error(r)
	}
	t.Logf("%d checks of values read from the Secret, %d refused", w.asked, len(w.refused))
}

func TestAServerThatIsKilledComesBackAndAcceptsTheSameValues(t *testing.T) {
	key := value(t, "payments", "ci-deploy", "token")
	killed := pid(t, "mintmark-server-2")
	if err := syscall.Kill(killed, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "the server runs again", func() bool { return pid(t, "mintmark-server-2") != killed })
	eventually(t, time.Minute, "it accepts the same value", func() bool {
		status, ok := shell(t, `curl -s -o /dev/null -w '%{http_code}' --cacert "$MINTMARK_CACERT" -H @- "$MINTMARK_URL_2/forward-auth" <<'HEADERS'`+
			"\n"+bearer(key)+"\nHEADERS")
		return ok && status == "200"
	})
	// A rotation is not held up by the Lease that the killed one left behind for
	// longer than that Lease lasts.
	ns := namespace(t, "after-a-kill")
	apply(t, serviceToken(ns, "fresh", "api:read"))
	ready(t, ns, "servicetoken/fresh")
}

func TestServersGoOnWithoutTheAPIServerAndSaySo(t *testing.T) {
	ns := namespace(t, "outage")
	apply(t, serviceToken(ns, "steady", "api:read"))
	ready(t, ns, "servicetoken/steady")
	key := value(t, ns, "steady", "token")

	apiServer := pause(t, "kube-apiserver")
	defer apiServer.resume()
	eventually(t, 10*time.Second, "the server says that it is out of touch", func() bool {
		return strings.Contains(must(t, `curl -sS "$MINTMARK_METRICS_URL/readyz?verbose"`), "[ ] staleness")
	})
	accepted(t, key, "a credential while the API server is down")
	if status, _ := curl(t, bearer(key), `-X POST "$MINTMARK_URL/api/auth/token"`); status != "200" {
		t.Errorf("exchanged for a JWT while the API server is down: %s, want 200", status)
	}
	apiServer.resume()

	eventually(t, time.Minute, "the server is in touch again", func() bool {
		return !strings.Contains(must(t, `curl -sS "$MINTMARK_METRICS_URL/readyz?verbose"`), "[ ]")
	})
	must(t, "kubectl -n "+ns+` patch servicetoken steady --type=merge -p '{"spec":{"revoked":{"reason":"after the outage"}}}'`)
	dies(t, key, bound)
}
