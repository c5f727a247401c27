//go:build scale

package scale

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
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

	// What a bare client does on this installation, and the pace of the machine when that
	// was measured.
	floor floor
	pace  cost
	rows  []row
}

// row is one phase of the run.
type row struct {
	name   string
	n      int
	took   time.Duration
	floor  cost // zero where there is none
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
func (m *measurement) phase(name string, n int, floor cost, do func() (note string, err error)) {
	m.t.Helper()
	faster, err := m.rig.pace(m.ctx)
	m.must(err)
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
	slower, err := m.rig.pace(m.ctx)
	m.must(err)
	w := row{name: name, n: n, took: took, floor: floor.beside(m.pace, mean(faster, slower)), each: each, writes: perCredential(before, after, n), note: note}
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
	size := min(m.n/4, 1000)
	m.say("a bare client makes the same writes where nothing is installed")
	alone, err := m.rig.floor(m.ctx, "floor-alone", size)
	m.must(err)
	m.say("mints %s, rotations %s", alone.mint, alone.rotation)
	m.must(m.install(m.ctx))
	m.say("and where webhooks and policies are asked, and servers watch")
	begin, err := m.rig.pace(m.ctx)
	m.must(err)
	m.floor, err = m.rig.floor(m.ctx, "floor", size)
	m.must(err)
	end, err := m.rig.pace(m.ctx)
	m.must(err)
	m.pace = mean(begin, end)
	m.say("floor: mints %s, rotations %s", m.floor.mint, m.floor.rotation)
	m.must(m.work(m.ctx))

	m.phase("created", m.n, m.floor.mint, func() (string, error) {
		if err := m.createAll(m.ctx, m.n); err != nil {
			return "", err
		}
		return "", m.until(m.ctx, v1alpha1.ReasonMinted, m.n)
	})
	m.rotation("rotated, by label")
	m.rotation("rotated again")
	m.byAge()
	m.revokeSome(oneByOne, 0)
	m.underLoad()
	m.emergency()
	m.check()
}

func (m *measurement) rotation(name string) {
	m.phase(name, m.n, m.floor.rotation, func() (string, error) {
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
	m.phase("rotated, by age", m.n, cost{}, func() (string, error) {
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
	m.phase(name, revocations, cost{}, func() (string, error) {
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
	m.phase("revoked, all", m.n, cost{}, func() (string, error) {
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
	var rotations []row
	for _, w := range m.rows {
		if w.peak > maxControllerMB {
			m.t.Errorf("%s: the controller had up to %d MB resident, more than %d", w.name, w.peak, maxControllerMB)
			break
		}
		if strings.HasPrefix(w.name, "rotated") {
			rotations = append(rotations, w)
		}
	}
	// The first one is the first that has two values for each; by the others, what is
	// not let go shows.
	first, last := rotations[0], rotations[len(rotations)-1]
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
