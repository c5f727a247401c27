//go:build scale

package scale

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/go-logr/logr"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/test/controlplane"
)

func TestMain(m *testing.M) {
	log.SetLogger(logr.Discard())
	controlplane.Main(m)
}

// Targets, on two cores with nothing else to do.
const (
	maxControllerMB  = 200
	minOfFloor       = 0.85
	maxRevocationP50 = 3 * time.Millisecond
	maxRevocationP99 = 25 * time.Millisecond
	// settledAfter is how long after a Revocation the next one is made where nothing else is
	// to go on: by then the status of what the first one took says so.
	settledAfter = 500 * time.Millisecond
	revocations  = 100
)

// TestTenThousandCredentials measures. MINTMARK_SCALE is another number of
// credentials than 10,000.
func TestTenThousandCredentials(t *testing.T) {
	n := 10_000
	if text := os.Getenv("MINTMARK_SCALE"); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil || n < 2*revocations {
			t.Fatalf("MINTMARK_SCALE=%s: give a number of credentials, at least %d", text, 2*revocations)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	dir := t.TempDir()
	if keep := os.Getenv("MINTMARK_SCALE_DIR"); keep != "" {
		dir = keep
	}
	r, err := startPlane(ctx, dir)
	if r != nil {
		defer r.stop()
	}
	if err != nil {
		t.Fatal(err)
	}
	m := &measurement{t: t, ctx: ctx, rig: r, n: n}
	m.run()
	m.print()
}

// measurement is a run.
type measurement struct {
	t   *testing.T
	ctx context.Context
	*rig
	n int

	rows []row
}

// row is one phase of the run.
type row struct {
	name   string
	n      int
	took   time.Duration
	floor  cost // of a bare client right before and after; zero where there is none
	each   cost
	writes string
	// MB
	rss, peak, heap, server int
	note                    string
}

func (m *measurement) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *measurement) say(format string, args ...any) {
	fmt.Printf("%s  "+format+"\n", append([]any{time.Now().Format(time.TimeOnly)}, args...)...)
}

// phase does something to n credentials and measures it.
func (m *measurement) phase(name string, n int, do func() (note string, err error)) {
	m.t.Helper()
	before, err := m.writes(m.ctx)
	m.must(err)
	note, begin := "", time.Now()
	each, err := m.each(n, func() (err error) {
		note, err = do()
		return err
	})
	took := time.Since(begin)
	m.must(err)
	after, err := m.writes(m.ctx)
	m.must(err)
	m.must(m.quiet(m.ctx))
	w := row{name: name, n: n, took: took, each: each, writes: perCredential(before, after, n), note: note}
	w.rss, w.peak = m.controller.memory()
	w.heap = m.controller.heap(m.ctx)
	for _, s := range m.servers {
		rss, _ := s.memory()
		w.server = max(w.server, rss)
	}
	m.rows = append(m.rows, w)
	m.say("%s: %d in %s, %.0f/s; controller %d MB resident (peak %d, heap %d), servers up to %d MB; each: %s; CPU: %s; %s",
		name, n, took.Round(time.Millisecond), float64(n)/took.Seconds(), w.rss, w.peak, w.heap, w.server, w.writes, each.of, note)
}

func (m *measurement) run() {
	m.say("a bare client makes the same writes where nothing is installed")
	alone, err := m.rig.floor(m.ctx, "floor-alone", m.sample(), usual[:2]...)
	m.must(err)
	m.say("mints %s, rotations %s", alone[0], alone[1])
	m.must(m.install(m.ctx))

	empty := m.bare("floor-1", usual[0])
	m.phase("created", m.n, func() (string, error) {
		if err := m.createAll(m.ctx, m.n); err != nil {
			return "", err
		}
		return "", m.until(m.ctx, v1alpha1.ReasonMinted, m.n)
	})
	minted := m.written()
	before := m.bare("floor-2", minted, usual[1])
	m.beside("created", empty[0], before[0])
	m.rotation("rotated, by label")
	rotated := m.written()
	between := m.bare("floor-3", minted, rotated, usual[2])
	m.beside("rotated, by label", before[1], between[1])
	m.rotation("rotated again")
	again := m.written()
	m.byAge() // by the same process, for its memory not to grow
	after := m.bare("floor-4", minted, rotated, again)
	m.beside("rotated again", between[2], after[2])
	m.revokeSome(oneByOne, 0)
	m.underLoad()
	m.emergency()
	m.check()
}

// sample is how many credentials the bare client has.
func (m *measurement) sample() int { return min(m.n/4, 1500) }

// bare has a bare client make the writes of mints and rotations, with the controller
// looking elsewhere meanwhile. It is done before and after what is measured beside it:
// machines that are shared change their pace within minutes, and the more there is in a
// cluster, the longer each write takes.
func (m *measurement) bare(namespace string, shapes ...shape) []cost {
	m.must(m.startAgain(m.ctx, "--watch-namespaces="+systemNamespace))
	costs, err := m.rig.floor(m.ctx, namespace, m.sample(), shapes...)
	m.must(err)
	m.must(m.startAgain(m.ctx))
	m.must(m.quiet(m.ctx))
	for i, c := range costs {
		m.say("%s, to %d versions and %d bytes of status: %s", namespace, shapes[i].versions, shapes[i].size, c)
	}
	return costs
}

// written is the shape of what the controller has written.
func (m *measurement) written() shape {
	token := newToken("", 0)
	m.must(m.client.Get(m.ctx, client.ObjectKeyFromObject(token), token))
	text, err := json.Marshal(token.Status)
	m.must(err)
	return shape{len(token.Status.Versions), len(text)}
}

// beside sets a phase beside what was measured before and after it.
func (m *measurement) beside(name string, before, after cost) {
	i := slices.IndexFunc(m.rows, func(w row) bool { return w.name == name })
	m.rows[i].floor = mean(before, after)
}

func (m *measurement) rotation(name string) {
	m.phase(name, m.n, func() (string, error) {
		before, err := m.transitions(m.ctx, v1alpha1.ReasonRotated)
		if err != nil {
			return "", err
		}
		if err := m.rotateAll(m.ctx, m.n); err != nil {
			return "", err
		}
		return "", m.until(m.ctx, v1alpha1.ReasonRotated, before+m.n)
	})
}

// byAge makes every credential due by age, by lowering the age in the class; what
// was activated over a while falls due over the same while, less a jitter of a
// twentieth of the age.
func (m *measurement) byAge() {
	m.phase("rotated, by age", m.n, func() (string, error) {
		before, err := m.transitions(m.ctx, v1alpha1.ReasonRotated)
		if err != nil {
			return "", err
		}
		// The oldest one was activated when the last rotation began.
		last := m.rows[len(m.rows)-1]
		if err := m.age(fmt.Sprintf("%ds", max(60, int((last.took+10*time.Second).Seconds())))); err != nil {
			return "", err
		}
		if err := m.until(m.ctx, v1alpha1.ReasonRotated, before+m.n); err != nil {
			return "", err
		}
		return "", m.age("90d")
	})
}

func (m *measurement) age(every string) error {
	return retry.RetryOnConflict(retry.DefaultRetry, func() error {
		var class v1alpha1.CredentialClass
		if err := m.client.Get(m.ctx, client.ObjectKey{Name: "default"}, &class); err != nil {
			return err
		}
		class.Spec.Defaults.Rotation.Every = v1alpha1.Duration(every)
		return m.client.Update(m.ctx, &class)
	})
}

// revokeSome measures from the API server's answer to a Revocation to the refusal
// on all three servers.
func (m *measurement) revokeSome(name string, from int) {
	m.phase(name, revocations, func() (string, error) {
		var took []time.Duration
		for i := range revocations {
			d, err := m.revoke(m.ctx, from+i)
			if err != nil {
				return "", err
			}
			took = append(took, d)
			if name == oneByOne {
				time.Sleep(settledAfter)
			}
		}
		slices.Sort(took)
		p50, p99 := took[len(took)/2], took[len(took)*99/100]
		if m.full() && name == oneByOne && (p50 > maxRevocationP50 || p99 > maxRevocationP99) {
			m.t.Errorf("a Revocation holds on every server after %s (p50) and %s (p99), more than %s and %s", p50, p99, maxRevocationP50, maxRevocationP99)
		}
		return fmt.Sprintf("refused on all servers after p50 %s, p99 %s, at most %s", tenths(p50), tenths(p99), tenths(took[len(took)-1])), nil
	})
}

// oneByOne is the phase in which nothing else goes on.
const oneByOne = "revoked one by one"

func tenths(d time.Duration) string {
	return strconv.FormatFloat(float64(d.Microseconds())/1000, 'f', 1, 64) + " ms"
}

// underLoad revokes while two thousand others rotate.
func (m *measurement) underLoad() {
	done := make(chan error, 1)
	rest := min(m.n-2*revocations, 2000)
	go func() {
		done <- inParallel(m.ctx, rest, func(ctx context.Context, i int) error { return request(ctx, m.client, newToken("", 2*revocations+i)) })
	}()
	m.revokeSome("revoked while others rotate", revocations)
	m.must(<-done)
}

// emergency revokes everything there is.
func (m *measurement) emergency() {
	const watched = 50
	values := make([]string, watched)
	for i := range values {
		var err error
		values[i], err = m.value(m.ctx, 2*revocations+i*(m.n-2*revocations)/watched)
		m.must(err)
	}
	m.phase("revoked, all", m.n, func() (string, error) {
		revocation := &v1alpha1.Revocation{ObjectMeta: metav1.ObjectMeta{Name: "emergency"}, Spec: v1alpha1.RevocationSpec{Reason: "drill", All: true}}
		if err := m.client.Create(m.ctx, revocation); err != nil {
			return "", err
		}
		accepted := time.Now()
		for _, value := range values {
			for _, s := range m.servers {
				if _, err := m.refused(m.ctx, s, value); err != nil {
					return "", err
				}
			}
		}
		refused := time.Since(accepted)
		for {
			if err := m.client.Get(m.ctx, client.ObjectKeyFromObject(revocation), revocation); err != nil {
				return "", err
			}
			if revocation.Status.Matched == int64(m.n) && revocation.Status.Settled == int64(m.n) {
				return fmt.Sprintf("%d values refused on all servers after %s, one after the other", watched, tenths(refused)), nil
			}
			select {
			case <-m.ctx.Done():
				return "", fmt.Errorf("%d of %d are settled: %w", revocation.Status.Settled, revocation.Status.Matched, m.ctx.Err())
			case <-time.After(200 * time.Millisecond):
			}
		}
	})
}

// full tells whether the run is the one that the targets are for. One with less
// measures, and judges nothing.
func (m *measurement) full() bool { return m.n == 10_000 }

// check holds the run against the targets.
func (m *measurement) check() {
	if !m.full() {
		return
	}
	for _, w := range m.rows {
		if w.peak > maxControllerMB {
			m.t.Errorf("%s: the controller had up to %d MB resident, more than %d", w.name, w.peak, maxControllerMB)
			break
		}
		if byCPU := w.floor.cpu / w.each.cpu; w.floor.cpu > 0 && byCPU < minOfFloor {
			m.t.Errorf("%s: %.2f of what a bare client does with the same processor time, less than %.2f", w.name, byCPU, minOfFloor)
		}
	}
	// Both rotations by one process: what it does not let go shows.
	again := slices.IndexFunc(m.rows, func(w row) bool { return w.name == "rotated again" })
	first, last := m.rows[again], m.rows[again+1]
	if last.rss > first.rss*5/4+10 {
		m.t.Errorf("the controller grew from %d MB after %q to %d MB after %q", first.rss, first.name, last.rss, last.name)
	}
}

func (m *measurement) print() {
	fmt.Println()
	w := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
	// By CPU is the floor's processor time for each by ours: what the machine is busy with
	// beside changes it less than it does rates.
	fmt.Fprintln(w, "PHASE\tCREDENTIALS\tTOOK\tPER S\tFLOOR\tRATIO\tBY CPU\tCONTROLLER MB (PEAK, HEAP)\tSERVER MB\t")
	for _, r := range m.rows {
		rate := float64(r.n) / r.took.Seconds()
		floor, ratio, byCPU := "", "", ""
		if r.floor.rate > 0 {
			floor, ratio, byCPU = fmt.Sprintf("%.0f", r.floor.rate), fmt.Sprintf("%.2f", rate/r.floor.rate), fmt.Sprintf("%.2f", r.floor.cpu/r.each.cpu)
		}
		fmt.Fprintf(w, "%s\t%d\t%s\t%.0f\t%s\t%s\t%s\t%d (%d, %d)\t%d\t\n",
			r.name, r.n, r.took.Round(100*time.Millisecond), rate, floor, ratio, byCPU, r.rss, r.peak, r.heap, r.server)
	}
	_ = w.Flush()
	fmt.Println("\nRequests for each credential, the person's own among them:")
	for _, r := range m.rows {
		fmt.Printf("  %s: %s\n    CPU: %s\n", r.name, r.writes, r.each.of)
		if r.note != "" {
			fmt.Printf("    %s\n", r.note)
		}
	}
}

func (r *rig) apiClient() (*http.Client, error) { return rest.HTTPClientFor(r.plane.Config) }
