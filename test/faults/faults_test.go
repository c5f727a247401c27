//go:build faults

package faults

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

var invariants = []string{"I1", "I2", "I3", "I4", "I5", "I9", "I13", "I14", "I18"}

// attack is what is done to one scenario.
type attack struct {
	scenario *scenario
	// each are the faults at each write, once those at the first one.
	each, once []mode
	// short is how many of these cases the short run takes, spread over them.
	short int
}

// family is a kind of fault.
type family struct {
	name    string
	attacks []attack
}

var (
	ordinary = []mode{killedBefore, killedAfter, answerLost, conflict, tooMany, broken}
	some     = []mode{killedBefore, killedAfter, answerLost, conflict}
	watching = []mode{watchesCut, watchesGone, stale}
)

var families = []family{
	{"writes", []attack{
		{&mint, ordinary, append([]mode{lagging, conflicts}, watching...), 2},
		{&rotate, ordinary, append([]mode{lagging, conflicts}, watching...), 3},
		{&rollBack, ordinary, append([]mode{lagging}, watching...), 0},
		{&retire, ordinary, watching, 0},
		{&retireAtOnce, some, watching, 0},
		{&discard, some, watching, 0},
		{&declare, some, watching, 0},
		{&revoke, ordinary, append([]mode{conflicts}, watching...), 1},
		{&replace, ordinary, watching, 1},
		{&revokeAmid, []mode{revokedAfter, revokedBefore, revokedKilled}, nil, 1},
		{&replaceAmid, []mode{replacedAfter, replacedBefore}, nil, 0},
		{&deleteAmid, []mode{deletedBefore, deletedAfter, deletedKilled}, nil, 0},
	}},
	{"leaders", []attack{
		{&mint, []mode{overtaken, crossed}, nil, 0},
		{&rotate, []mode{overtaken, crossed, ghost}, []mode{lapsed}, 3},
		{&rollBack, []mode{overtaken, crossed, ghost}, nil, 0},
		{&discard, []mode{overtaken}, nil, 0},
		{&revoke, []mode{overtaken}, nil, 0},
		{&replace, []mode{overtaken, ghost}, nil, 0},
	}},
	{"servers", []attack{
		{&rotate, []mode{serverJoinsBehind, serverKilledBefore, serverKilledAfter, serverJoins}, []mode{rolling, serverPaused}, 2},
		{&replace, []mode{serverKilledBefore}, []mode{serverJoins, rolling}, 1},
		{&revoke, nil, []mode{serverKilledBefore, unheardPaused}, 0},
	}},
	{"API servers", []attack{
		{&rotate, []mode{itsAPIPaused, restartedBehind}, []mode{
			oneAPIPaused, theAPIPaused, apiKilled, deafServer, deafServerGone, deafController, deafControllerGone,
		}, 3},
		{&revoke, nil, []mode{unheardGone, unheardDropped, unheardLate, unheardAPI, apiKilled}, 1},
		{&replace, []mode{restartedBehind}, []mode{apiKilled, theAPIPaused, unheardGone, unheardLate}, 1},
		{&deleteAmid, nil, []mode{deleting(unheardGone), deleting(unheardDropped), deleting(unheardLate), deleting(unheardAPI)}, 0},
	}},
	{"objects", []attack{
		{&mint, nil, []mode{overQuota, foreignSecret, foreignRaced}, 1},
		{&rotate, []mode{
			secretDeleted, secretForged, secretDeletedKilled, secretImmutable, specChangedBefore, specChangedAfter, namespaceDeleted,
		}, nil, 3},
	}},
	{"outages", []attack{
		{&rotate, nil, []mode{coldStart, slowAPI, apiDown, overloadedAPI}, 2},
		{&revoke, nil, []mode{silent, slowAPI, apiDown}, 0},
		{&replace, nil, []mode{overloadedAPI, slowAPI}, 0},
	}},
}

// least is what a whole run does at the least. One that did less has tested nothing.
type least struct{ cases, rotations, requests int }

var leastShort, leastLong = least{25, 12, 5_000}, least{240, 150, 60_000}

// tally is a row of the table.
type tally struct {
	family, scenario                    string
	cases, missed, delivered, rotations int
	tried                               int // faults at writes
	requests, failed                    int
	slowest                             time.Duration
	checks                              map[string]int
	writes                              []string
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
			MinOverlap: "1s", Rules: []v1alpha1.ClassRule{{Permissions: []v1alpha1.Permission{"api:*"}, External: true}},
		},
	}); err != nil {
		t.Fatal(err)
	}
	b := &bench{rig: r, learned: map[string][]string{}}
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			for i := range f.attacks {
				if a := &f.attacks[i]; !testing.Short() || a.short > 0 {
					t.Run(a.scenario.name, func(t *testing.T) { b.run(ctx, t, f.name, a) })
				}
			}
		})
	}
	b.end(ctx, t)
	cancel()
	r.prober.done.Wait()
}

// bench runs trials, and keeps count.
type bench struct {
	*rig
	count   int
	rows    []*tally
	learned map[string][]string // the writes, by scenario
	// open is the trial that has settled and is still watched, over those that have
	// been judged.
	open *trial
	row  *tally
	over []*trial
}

// attempt is a fault at a write, the nth of its name.
type attempt struct {
	mode  mode
	write string
	nth   int
}

func (b *bench) run(ctx context.Context, t *testing.T, family string, a *attack) {
	row := &tally{family: family, scenario: a.scenario.name, checks: map[string]int{}}
	b.rows = append(b.rows, row)
	row.writes = b.writesOf(ctx, t, a.scenario, row)
	for _, c := range a.attempts(row.writes) {
		b.try(ctx, t, a.scenario, row, c)
	}
	b.judgeOpen(ctx, t)
}

// attempts are the cases of an attack.
func (a *attack) attempts(writes []string) []attempt {
	var all []attempt
	seen := map[string]int{}
	for _, w := range writes {
		seen[w]++
		for _, m := range a.each {
			all = append(all, attempt{m, w, seen[w]})
		}
	}
	for _, m := range a.once {
		all = append(all, attempt{m, writes[0], 1})
	}
	if !testing.Short() || a.short >= len(all) {
		return all
	}
	var few []attempt
	for i := range a.short {
		at := i*len(all)/a.short + i // another write,
		for n := 0; n < len(all) && slices.ContainsFunc(few, func(f attempt) bool { return f.mode.name == all[at%len(all)].mode.name }); n++ {
			at++ // and another fault
		}
		few = append(few, all[at%len(all)])
	}
	return few
}

// writesOf gives the writes a scenario takes.
func (b *bench) writesOf(ctx context.Context, t *testing.T, s *scenario, row *tally) []string {
	if known := b.learned[s.name]; known != nil {
		return known
	}
	writes := b.learn(ctx, t, s, row)
	if !testing.Short() {
		// Some are left out now and then, for the next one says the same.
		if again := b.learn(ctx, t, s, row); len(again) < len(writes) {
			writes = again
		}
	}
	b.learned[s.name] = writes
	return writes
}

// learn runs the scenario without a fault, and gives the writes it takes.
func (b *bench) learn(ctx context.Context, t *testing.T, s *scenario, row *tally) []string {
	undisturbed := *s
	if s.undisturbed != nil {
		undisturbed.settled = s.undisturbed
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
	tr := &trial{
		rig: b.rig, scenario: s, number: b.count, fault: fault, namespace: fmt.Sprintf("trial-%03d", b.count), kind: v1alpha1.KindServiceToken,
	}
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
func (b *bench) try(ctx context.Context, t *testing.T, s *scenario, row *tally, c attempt) {
	what := fmt.Sprintf("%s: %s, number %d", c.mode.name, c.write, c.nth)
	row.tried++
	for range 2 {
		tr := b.trial(s, what)
		about := aboutNamespace(tr.namespace)
		f := &fault{
			process: controllerName, nth: c.nth,
			about: func(w *write) bool { return about(w) && kindOf(w, tr.namespace) == c.write },
		}
		c.mode.plan(ctx, tr, f)
		if err := b.carryOut(ctx, tr, f); err != nil {
			t.Errorf("%s: %v", tr, err)
		}
		b.settle(ctx, t, tr, row)
		if b.proxy.struck(f) != nil {
			return
		}
	}
	row.missed++
	t.Logf("%s: it never came", what)
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
		if f.arming != nil {
			f.arming()
		}
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
	if err := b.mend(ctx); err != nil {
		t.Fatalf("%s: %v", tr, err)
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
	values := b.prober.of(tr.namespace)
	row.delivered += len(values)
	row.rotations += max(0, len(values)-1)
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
	report(t, "at the end", append(problems, b.searchLogs(last)...))
	b.searchWrites(last)
	report(t, "at the end", last.problems)
	total := b.total(last)
	b.print(total, sent)
	b.demandEnough(t, total)
	if t.Failed() {
		if dir := os.Getenv("MINTMARK_FAULTS_LOGS"); dir != "" {
			if err := os.CopyFS(dir, os.DirFS(b.dir+"/log")); err != nil {
				t.Error(err)
			}
		}
	}
}

// searchLogs looks for every value in what every process under test has written (I13).
func (b *bench) searchLogs(v *verdict) []string {
	var problems []string
	for _, name := range append(b.everybody(), standbyName) {
		text, err := os.ReadFile(filepath.Join(b.dir, "log", name+".log"))
		if errors.Is(err, os.ErrNotExist) && name == standbyName {
			continue // it was never started
		}
		if err != nil || len(text) == 0 {
			problems = append(problems, fmt.Sprintf("%s has written no log (%v)", name, err))
		}
		for _, value := range b.prober.everyText() {
			v.check("I13", !bytes.Contains(text, []byte(value)), "a value stands in the log of %s", name)
		}
	}
	return problems
}

// searchWrites looks at every write of a Secret (I9): a controller writes those of the
// trials and the installation's keys, and a server none.
func (b *bench) searchWrites(v *verdict) {
	for _, w := range b.proxy.written(time.Time{}, func(w *write) bool { return w.forwarded && strings.Contains(w.path, "/secrets") }) {
		rest := strings.TrimPrefix(w.path, "/api/v1/namespaces/")
		namespace, name, _ := strings.Cut(rest, "/secrets")
		own := strings.HasPrefix(namespace, "trial-") || (namespace == systemNamespace && (name == "" || strings.HasPrefix(name, "/mintmark-")))
		v.check("I9", own && !strings.HasPrefix(w.process, "server-"), "%s wrote %s", w.process, w.String())
	}
}

// total adds the rows up, and what was checked at the end.
func (b *bench) total(last *verdict) *tally {
	total := &tally{family: "all", checks: map[string]int{}}
	total.add(last)
	for _, r := range b.rows {
		total.cases, total.missed = total.cases+r.cases, total.missed+r.missed
		total.delivered, total.rotations = total.delivered+r.delivered, total.rotations+r.rotations
		total.add(&verdict{requests: r.requests, failed: r.failed, slowest: r.slowest, checks: r.checks})
	}
	return total
}

// demandEnough fails a run that has not tested what it is there to test.
func (b *bench) demandEnough(t *testing.T, total *tally) {
	for _, r := range b.rows {
		const oneOf = 20
		if r.missed*oneOf > r.tried {
			t.Errorf("%s, %s: in %d of %d cases the write that was to be broken never came", r.family, r.scenario, r.missed, r.tried)
		}
		if r.cases == 0 || r.checks["I3"] == 0 || r.checks["I4"] == 0 || r.delivered == 0 {
			t.Errorf("%s, %s: nothing was tested", r.family, r.scenario)
		}
	}
	if chosen := flag.Lookup("test.run"); chosen != nil && chosen.Value.String() != "" && total.cases > 0 {
		return // somebody wants a part of it
	}
	want := leastLong
	if testing.Short() {
		want = leastShort
	}
	if total.cases < want.cases || total.rotations < want.rotations || total.requests < want.requests {
		t.Errorf("%d cases, %d rotations and %d requests: a run that tests anything has %d, %d and %d at the least",
			total.cases, total.rotations, total.requests, want.cases, want.rotations, want.requests)
	}
	for _, i := range invariants {
		if total.checks[i] == 0 {
			t.Errorf("%s was never checked", i)
		}
	}
}

func (b *bench) print(total *tally, sent int) {
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(out, "faults\tscenario\twrites\tcases\tmissed\tvalues\trotations\trequests\tfailed\trevoked within\t"+
		strings.Join(invariants, "\t")+"\t")
	for _, r := range append(slices.Clone(b.rows), total) {
		fmt.Fprintf(out, "%s\t%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%s\t", r.family, r.scenario, len(r.writes), r.cases, r.missed, r.delivered,
			r.rotations, r.requests, r.failed, r.slowest.Round(time.Millisecond))
		for _, i := range invariants {
			fmt.Fprintf(out, "%d\t", r.checks[i])
		}
		fmt.Fprintln(out)
	}
	_ = out.Flush()
	restarts, _ := b.controller.restarts()
	servers := 0
	for _, s := range b.servers {
		n, _ := s.restarts()
		servers += n
	}
	fmt.Printf("%d requests sent in all, %d restarts of the controller, %d of servers\n", sent, restarts, servers)
}
