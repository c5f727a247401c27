//go:build faults

package faults

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

var invariants = []string{"I1", "I2", "I3", "I4", "I5", "I18"}

// tally is a row of the table.
type tally struct {
	scenario                 string
	cases, missed, delivered int
	requests, failed         int
	slowest                  time.Duration
	checks                   map[string]int
	writes                   []string
}

func (r *tally) add(v *verdict) {
	r.requests, r.failed, r.slowest = r.requests+v.requests, r.failed+v.failed, max(r.slowest, v.slowest)
	for _, i := range invariants {
		r.checks[i] += v.checks[i]
	}
}

// TestNothingThatBefallsAWriteFailsARequest learns the writes of every scenario, and
// runs it again with each fault at each of them.
func TestNothingThatBefallsAWriteFailsARequest(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, err := startRig(ctx, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer r.stop()
	if r.prober, err = startProber(ctx, r); err != nil {
		t.Fatal(err)
	}
	if err := r.admin.Create(ctx, &v1alpha1.CredentialClass{
		ObjectMeta: metav1.ObjectMeta{Name: className},
		Spec: v1alpha1.CredentialClassSpec{
			MinOverlap: "1s", Rules: []v1alpha1.ClassRule{{Permissions: []v1alpha1.Permission{"api:*"}}},
		},
	}); err != nil {
		t.Fatal(err)
	}
	b := &bench{rig: r}
	for i := range scenarios {
		s := &scenarios[i]
		if testing.Short() && !slices.Contains([]string{"mint", "rotate", "revoke"}, s.name) {
			continue
		}
		t.Run(s.name, func(t *testing.T) { b.run(ctx, t, s) })
	}
	b.end(ctx, t)
	cancel()
	r.prober.done.Wait()
}

// bench runs trials, and keeps count.
type bench struct {
	*rig
	count int
	rows  []*tally
	// open is the trial that has settled and is still watched, over those that have
	// been judged.
	open *trial
	row  *tally
	over []*trial
}

func (b *bench) run(ctx context.Context, t *testing.T, s *scenario) {
	row := &tally{scenario: s.name, checks: map[string]int{}}
	b.rows = append(b.rows, row)
	writes := b.learn(ctx, t, s, row)
	if !testing.Short() {
		// Some are left out now and then, for the next one says the same.
		if again := b.learn(ctx, t, s, row); len(again) < len(writes) {
			writes = again
		}
	}
	row.writes = writes
	seen := map[string]int{}
	for n, w := range writes {
		seen[w]++
		for i, m := range s.modes {
			if testing.Short() && (i >= len(ordinary) || (i+2*n)%len(ordinary) > 1) {
				continue // two ordinary faults at each write, and each of them at some write
			}
			b.try(ctx, t, s, row, m, w, seen[w])
		}
	}
	for i, m := range s.upsets {
		if testing.Short() && i > 0 {
			continue
		}
		b.try(ctx, t, s, row, m, writes[0], 1)
	}
	b.judgeOpen(ctx, t)
}

// learn runs the scenario without a fault, and gives the writes it takes.
func (b *bench) learn(ctx context.Context, t *testing.T, s *scenario, row *tally) []string {
	undisturbed := *s
	if s.name == "delete amid a rotation" {
		undisturbed.settled = settledAt(2)
	}
	tr := b.trial(&undisturbed, "undisturbed")
	if err := b.carryOut(ctx, tr, nil); err != nil {
		t.Fatalf("%s: %v", tr, err)
	}
	b.settle(ctx, t, tr, row)
	b.judgeOpen(ctx, t)
	var writes []string
	for _, w := range b.proxy.written(tr.began, func(w *write) bool { return !w.usage && aboutNamespace(tr.namespace)(w) }) {
		writes = append(writes, kindOf(&w, tr.namespace))
	}
	if len(writes) == 0 {
		t.Fatalf("%s: the controller wrote nothing", tr)
	}
	t.Logf("it takes these writes: %s", strings.Join(writes, ", "))
	return writes
}

func (b *bench) trial(s *scenario, fault string) *trial {
	b.count++
	tr := &trial{rig: b.rig, scenario: s, fault: fault, namespace: fmt.Sprintf("trial-%03d", b.count), kind: v1alpha1.KindServiceToken}
	if b.count%3 == 0 {
		tr.kind = v1alpha1.KindAPIKey
	}
	return tr
}

// kindOf names a write, whatever the credential's kind and namespace.
func kindOf(w *write, namespace string) string {
	return strings.NewReplacer(namespace, "NS", "/apikeys/", "/servicetokens/").Replace(w.String())
}

// try runs the scenario with one fault, at the nth write that has this name. How often
// some writes are made depends on what comes first, so where it did not come the
// scenario is tried once more.
func (b *bench) try(ctx context.Context, t *testing.T, s *scenario, row *tally, m mode, name string, nth int) {
	for range 2 {
		tr := b.trial(s, fmt.Sprintf("%s: %s, number %d", m.name, name, nth))
		about := aboutNamespace(tr.namespace)
		f := &fault{
			process: controllerName, nth: nth,
			about: func(w *write) bool { return about(w) && kindOf(w, tr.namespace) == name },
		}
		m.plan(ctx, tr, f)
		if err := b.carryOut(ctx, tr, f); err != nil {
			t.Errorf("%s: %v", tr, err)
		}
		b.settle(ctx, t, tr, row)
		if b.proxy.struck(f) != nil {
			return
		}
	}
	row.missed++
	t.Logf("%s: %s, number %d: it never came", m.name, name, nth)
}

// carryOut does what the scenario says, with the fault armed.
func (b *bench) carryOut(ctx context.Context, tr *trial, f *fault) error {
	if err := tr.prepare(ctx); err != nil {
		return err
	}
	if err := tr.steps(ctx, tr.scenario.setup); err != nil {
		return err
	}
	if err := poll(ctx, settleTimeout, tr.presented); err != nil {
		return err
	}
	if f != nil {
		b.proxy.arm(f)
	}
	tr.began = time.Now()
	return tr.steps(ctx, tr.scenario.act)
}

func (t *trial) steps(ctx context.Context, steps []step) error {
	for _, s := range steps {
		if err := s.do(t, ctx); err != nil {
			return err
		}
		if s.until == nil {
			continue
		}
		if err := poll(ctx, settleTimeout, func() error { return s.until(ctx, t) }); err != nil {
			return err
		}
	}
	return nil
}

// settle waits for the final state, and leaves the trial to be watched while the next
// one runs. The one before it is judged.
func (b *bench) settle(ctx context.Context, t *testing.T, tr *trial, row *tally) {
	err := tr.settle(ctx)
	b.proxy.disarm()
	tr.reinstate()
	tr.mu.Lock()
	err = errors.Join(err, tr.broken)
	tr.mu.Unlock()
	if err != nil {
		t.Errorf("I4: %s: %v", tr, err)
	}
	if _, err := b.controller.restarts(); err != nil {
		t.Fatalf("%s: %v", tr, err)
	}
	row.cases++
	b.judgeOpen(ctx, t)
	b.open, b.row = tr, row
}

// judgeOpen judges the trial that is still watched.
func (b *bench) judgeOpen(ctx context.Context, t *testing.T) {
	tr := b.open
	if tr == nil {
		return
	}
	b.open = nil
	row := b.row
	row.delivered += len(b.prober.of(tr.namespace))
	v, err := tr.finish(ctx)
	if err != nil {
		t.Fatal(err)
	}
	row.add(v)
	report(t, tr.String(), v.problems)
	b.over = append(b.over, tr)
}

func report(t *testing.T, what string, problems []string) {
	const most = 5
	for i, p := range problems {
		if i == most {
			t.Errorf("%s: and %d more", what, len(problems)-most)
			return
		}
		t.Errorf("%s: %s", what, p)
	}
}

// end checks what can only be seen at the end, and prints the table.
func (b *bench) end(ctx context.Context, t *testing.T) {
	last := &verdict{checks: map[string]int{}}
	for _, tr := range b.over {
		if err := tr.unchanged(ctx, last); err != nil {
			t.Error(err)
		}
	}
	sent, problems := b.prober.totals()
	report(t, "at the end", append(last.problems, problems...))
	for _, r := range b.rows {
		if r.missed > r.cases/5 {
			t.Errorf("%s: in %d of %d cases the write that was to be broken never came", r.scenario, r.missed, r.cases)
		}
	}
	restarts, _ := b.controller.restarts()
	b.print(sent, restarts)
	if t.Failed() {
		if dir := os.Getenv("MINTMARK_FAULTS_LOGS"); dir != "" {
			if err := os.CopyFS(dir, os.DirFS(b.dir+"/log")); err != nil {
				t.Error(err)
			}
		}
	}
}

func (b *bench) print(sent, restarts int) {
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(out, "scenario\twrites\tcases\tmissed\tvalues delivered\trequests\tfailed\trevoked within\t"+
		strings.Join(invariants, "\t")+"\t")
	total := &tally{scenario: "all", checks: map[string]int{}}
	line := func(r *tally, writes int) {
		fmt.Fprintf(out, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t%s\t", r.scenario, writes, r.cases, r.missed, r.delivered, r.requests, r.failed,
			r.slowest.Round(time.Millisecond))
		for _, i := range invariants {
			fmt.Fprintf(out, "%d\t", r.checks[i])
		}
		fmt.Fprintln(out)
	}
	writes := 0
	for _, r := range b.rows {
		line(r, len(r.writes))
		writes += len(r.writes)
		total.cases, total.missed, total.delivered = total.cases+r.cases, total.missed+r.missed, total.delivered+r.delivered
		total.add(&verdict{requests: r.requests, failed: r.failed, slowest: r.slowest, checks: r.checks})
	}
	line(total, writes)
	_ = out.Flush()
	fmt.Printf("%d requests sent in all, %d restarts of the controller\n", sent, restarts)
}
