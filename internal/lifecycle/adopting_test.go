package lifecycle

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

var delivered = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func named(name string) WorkloadName { return WorkloadName{"payments", "Deployment", name} }

// owing is a credential whose version 2 has been delivered to workloads that ran
// with version 1.
func owing(workloads ...Workload) *Observed {
	w := newWorld(nil, &v1alpha1.CredentialSpec{Restart: &v1alpha1.Restart{Consumers: true}})
	o := w.o
	o.Secret = Secret{Exists: true, Ours: true, Current: 2, Previous: 1, HasCurrent: true, HasPrevious: true}
	digest := "00000000000000000000000000000000000000000000000000000000000000"
	at, superseded := metav1.NewTime(delivered), metav1.NewTime(delivered)
	o.Status = &v1alpha1.CredentialStatus{
		CurrentVersion: 2, Handled: &v1alpha1.HandledRequests{}, Adopted: &v1alpha1.Adoption{Version: 1},
		Versions: []v1alpha1.CredentialVersion{
			{Version: 2, State: v1alpha1.VersionActive, Digest: digest + "02", Pepper: "p1", Created: at, Activated: &at},
			{Version: 1, State: v1alpha1.VersionSuperseded, Digest: digest + "01", Pepper: "p1", Created: at, Superseded: &superseded},
		},
	}
	o.Restarts = Restarts{Enabled: true, Known: true, Workloads: workloads}
	return &o
}

func TestWhereAWorkloadStands(t *testing.T) {
	var (
		before = delivered.Add(-time.Hour)
		after  = delivered.Add(time.Minute)
	)
	for sentence, test := range map[string]struct {
		workload Workload
		now      time.Time // zero is two minutes after the delivery
		begins   bool
		reason   string
	}{
		"one of before is restarted":                          {workload: Workload{}, begins: true, reason: v1alpha1.ReasonRestarting},
		"one restarted before is restarted":                   {workload: Workload{Restarted: before, Recorded: before, Completed: before}, begins: true, reason: v1alpha1.ReasonRestarting},
		"one restarted in the second of delivery is again":    {workload: Workload{Restarted: delivered}, begins: true, reason: v1alpha1.ReasonRestarting},
		"one made after the delivery is not":                  {workload: Workload{Created: after}, reason: v1alpha1.ReasonAdopted},
		"one made with the delivery is":                       {workload: Workload{Created: delivered.Add(time.Second)}, begins: true, reason: v1alpha1.ReasonRestarting},
		"one without pods is not":                             {workload: Workload{Rollout: RolloutIdle}, reason: v1alpha1.ReasonAdopted},
		"one that is not well is, for this may be why":        {workload: Workload{Rollout: RolloutUnavailable}, begins: true, reason: v1alpha1.ReasonRestarting},
		"one that others failed to roll out is":               {workload: Workload{Rollout: RolloutFailed}, begins: true, reason: v1alpha1.ReasonRestarting},
		"one that others are rolling out is left alone":       {workload: Workload{Rollout: RolloutRolling}, reason: v1alpha1.ReasonRestarting},
		"one that others have been rolling out for long is":   {workload: Workload{Rollout: RolloutRolling}, now: delivered.Add(11 * time.Minute), begins: true, reason: v1alpha1.ReasonRestarting},
		"one that people replace the pods of is":              {workload: Workload{Rollout: RolloutManual}, begins: true, reason: v1alpha1.ReasonRestarting},
		"a paused one waits":                                  {workload: Workload{Rollout: RolloutPaused}, reason: v1alpha1.ReasonRestarting},
		"one restarted since is waited for":                   {workload: Workload{Restarted: after, Rollout: RolloutRolling}, reason: v1alpha1.ReasonRestarting},
		"one restarted since that is not well is waited for":  {workload: Workload{Restarted: after, Rollout: RolloutUnavailable}, reason: v1alpha1.ReasonRestarting},
		"one restarted since that people see to is, for ever": {workload: Workload{Restarted: after, Rollout: RolloutManual}, now: delivered.Add(100 * time.Hour), reason: v1alpha1.ReasonRestarting},
		"one restarted since and paused is, for ever":         {workload: Workload{Restarted: after, Rollout: RolloutPaused}, now: delivered.Add(100 * time.Hour), reason: v1alpha1.ReasonRestarting},
		"one restarted since that runs is done":               {workload: Workload{Restarted: after}, reason: v1alpha1.ReasonAdopted},
		"one restarted since that gave up has failed":         {workload: Workload{Restarted: after, Rollout: RolloutFailed}, reason: v1alpha1.ReasonRestartFailed},
		"one restarted since that takes too long has failed":  {workload: Workload{Restarted: after, Rollout: RolloutRolling}, now: delivered.Add(11 * time.Minute), reason: v1alpha1.ReasonRestartFailed},
		"one that took too long and runs now is done":         {workload: Workload{Restarted: after}, now: delivered.Add(100 * time.Hour), reason: v1alpha1.ReasonAdopted},
		"one that was put back has failed":                    {workload: Workload{Recorded: after}, reason: v1alpha1.ReasonRestartFailed},
		"one that was put back to an older restart has":       {workload: Workload{Restarted: before, Recorded: after, Rollout: RolloutRolling}, reason: v1alpha1.ReasonRestartFailed},
		"one that was put back after it had run is done":      {workload: Workload{Recorded: after, Completed: after, Rollout: RolloutRolling}, reason: v1alpha1.ReasonAdopted},
		"one that may not be restarted is tried again":        {workload: Workload{Refused: "no"}, begins: true, reason: v1alpha1.ReasonRestartFailed},
	} {
		t.Run(sentence, func(t *testing.T) {
			test.workload.WorkloadName = named("web")
			if test.workload.Created.IsZero() {
				test.workload.Created = delivered.Add(-30 * 24 * time.Hour)
			}
			o, now := owing(test.workload), test.now
			if now.IsZero() {
				now = delivered.Add(2 * time.Minute)
			}
			d := Plan(o, now)
			begins := len(d.Restarts) == 1 && d.Restarts[0].Begin
			if got := meta.FindStatusCondition(d.Status.Conditions, v1alpha1.ConditionAdopted); begins != test.begins || got == nil || got.Reason != test.reason {
				t.Errorf("begins %t, condition %+v", begins, got)
			}
			if done := test.reason == v1alpha1.ReasonAdopted; done != (d.Status.Adopted.Version == 2) || done != (len(d.Restarts) == 0) {
				t.Errorf("adopted %+v, wishes %+v", d.Status.Adopted, d.Restarts)
			}
		})
	}
}

func TestWhichOfACredentialsWorkloadsMayBegin(t *testing.T) {
	var (
		old      = delivered.Add(-time.Hour)
		since    = delivered.Add(time.Minute)
		stale    = func(name string) Workload { return Workload{WorkloadName: named(name), Created: old} }
		rolling  = Workload{WorkloadName: named("rolling"), Created: old, Restarted: since, Rollout: RolloutRolling}
		done     = Workload{WorkloadName: named("done"), Created: old, Restarted: since}
		failed   = Workload{WorkloadName: named("failed"), Created: old, Restarted: since, Rollout: RolloutFailed}
		paused   = Workload{WorkloadName: named("paused"), Created: old, Rollout: RolloutPaused}
		busy     = Workload{WorkloadName: named("busy"), Created: old, Rollout: RolloutRolling}
		refused  = Workload{WorkloadName: named("refused"), Created: old, Refused: "no"}
		unwell   = Workload{WorkloadName: named("a-unwell"), Created: old, Rollout: RolloutUnavailable}
		newcomer = Workload{WorkloadName: named("newcomer"), Created: since}
	)
	for sentence, test := range map[string]struct {
		workloads []Workload
		change    func(*Observed)
		begin     []string
	}{
		"the first alone":                     {workloads: []Workload{stale("b"), stale("a"), stale("c")}, begin: []string{"a"}},
		"none while the first rolls out":      {workloads: []Workload{stale("a"), rolling}},
		"all once one is seen to run":         {workloads: []Workload{stale("a"), stale("b"), done}, begin: []string{"a", "b"}},
		"all beside others that roll out":     {workloads: []Workload{stale("a"), stale("b"), rolling, done}, begin: []string{"a", "b"}},
		"none once one has failed":            {workloads: []Workload{stale("a"), stale("b"), done, failed}},
		"others beside a paused one":          {workloads: []Workload{stale("z"), paused}, begin: []string{"z"}},
		"others beside a busy one":            {workloads: []Workload{stale("z"), busy}, begin: []string{"z"}},
		"the well before the unwell":          {workloads: []Workload{unwell, stale("z")}, begin: []string{"z"}},
		"the unwell where it is the only one": {workloads: []Workload{unwell}, begin: []string{"a-unwell"}},
		"what was refused and nothing else":   {workloads: []Workload{stale("a"), refused}, begin: []string{"refused"}},
		"a new one proves nothing":            {workloads: []Workload{stale("a"), stale("b"), newcomer}, begin: []string{"a"}},
		"none outside of the windows": {
			workloads: []Workload{stale("a")},
			change: func(o *Observed) {
				o.Spec.Restart.Windows = []v1alpha1.Window{{Schedule: "0 3 * * *", Duration: "1h"}}
			},
		},
		"the first in a window": {
			workloads: []Workload{stale("a"), stale("b")}, begin: []string{"a"},
			change: func(o *Observed) {
				o.Spec.Restart.Windows = []v1alpha1.Window{{Schedule: "0 3 * * *", Duration: "1h"}, {Schedule: "0 12 * * *", Duration: "1h"}}
			},
		},
		"none by a clock that is wrong":            {workloads: []Workload{stale("a")}, change: func(o *Observed) { o.ClockSkewed = true }},
		"none where restarts are off":              {workloads: []Workload{stale("a")}, change: func(o *Observed) { o.Restarts.Enabled = false }},
		"none where nobody asks for restarts":      {workloads: []Workload{stale("a")}, change: func(o *Observed) { o.Spec.Restart = nil }},
		"none before the workloads are known":      {workloads: []Workload{stale("a")}, change: func(o *Observed) { o.Restarts.Known = false }},
		"none where the version has been adopted":  {workloads: []Workload{stale("a")}, change: func(o *Observed) { o.Status.Adopted.Version = 2 }},
		"none where nothing is known of before":    {workloads: []Workload{stale("a")}, change: func(o *Observed) { o.Status.Adopted = nil }},
		"none while the class is gone":             {workloads: []Workload{stale("a")}, change: func(o *Observed) { o.Class = nil }},
		"the first though rotations are suspended": {workloads: []Workload{stale("a")}, begin: []string{"a"}, change: func(o *Observed) { o.Spec.Rotation = &v1alpha1.Rotation{Suspend: true} }},
	} {
		t.Run(sentence, func(t *testing.T) {
			o := owing(test.workloads...)
			if test.change != nil {
				test.change(o)
			}
			var begin []string
			for _, w := range Plan(o, delivered.Add(2*time.Minute)).Restarts {
				if w.Begin {
					begin = append(begin, w.Workload.Name)
				}
			}
			if diff := cmp.Diff(test.begin, begin); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestAnImmediateRetirementDoesNotWaitForRestarts(t *testing.T) {
	o := owing(Workload{WorkloadName: named("web")})
	o.Spec.Rotation = &v1alpha1.Rotation{Retire: v1alpha1.RetireImmediately}
	o.Secret.Previous = 0
	d := Plan(o, delivered.Add(time.Minute))
	if got := d.Status.Versions[1].State; got != v1alpha1.VersionRetired || len(d.Restarts) != 1 || !d.Restarts[0].Begin {
		t.Errorf("version 1 is %s, wishes %+v", got, d.Restarts)
	}
}

func TestNextRestarts(t *testing.T) {
	var (
		long = delivered.Add(-time.Hour)
		wish = func(name string, at time.Time) RestartWish {
			return RestartWish{Workload: named(name), Delivered: at, Begin: true, Timeout: 10 * time.Minute}
		}
		rolling = func(name string, at time.Time) RestartWish {
			return RestartWish{Workload: named(name), Delivered: at.Add(-time.Second), Restarted: at, Timeout: 10 * time.Minute}
		}
		waits = func(w RestartWish) RestartWish { w.Begin = false; return w }
		now   = delivered.Add(time.Minute)
	)
	for sentence, test := range map[string]struct {
		wishes []RestartWish
		since  time.Time
		begin  []RestartOrder
		next   time.Time
	}{
		"nothing is wanted": {},
		"one that has settled": {
			wishes: []RestartWish{wish("a", delivered)}, begin: []RestartOrder{{named("a"), delivered}},
		},
		"one order for all that wait, for the last of them": {
			wishes: []RestartWish{wish("a", delivered), wish("a", delivered.Add(5*time.Second)), waits(wish("a", delivered.Add(7*time.Second)))},
			begin:  []RestartOrder{{named("a"), delivered.Add(7 * time.Second)}},
		},
		"the latest gives others time to join": {
			wishes: []RestartWish{wish("a", delivered), wish("a", now.Add(-4*time.Second))}, next: now.Add(6 * time.Second),
		},
		"those that wait for a window give time as well": {
			wishes: []RestartWish{wish("a", delivered), waits(wish("a", now.Add(-4*time.Second)))}, next: now.Add(6 * time.Second),
		},
		"but not for ever": {
			wishes: []RestartWish{wish("a", now.Add(-2*time.Minute)), wish("a", now.Add(-time.Second))},
			begin:  []RestartOrder{{named("a"), now.Add(-time.Second)}},
		},
		"a process that begins listens first": {
			wishes: []RestartWish{wish("a", long)}, since: now.Add(-9 * time.Second), next: now.Add(time.Second),
		},
		"nobody may begin": {wishes: []RestartWish{waits(wish("a", long))}},
		"never one that rolls out": {
			wishes: []RestartWish{wish("a", long), rolling("a", now.Add(-time.Minute))}, next: now.Add(9 * time.Minute),
		},
		"what has rolled out for too long counts no more": {
			wishes: []RestartWish{wish("a", long), rolling("a", now.Add(-10*time.Minute))}, begin: []RestartOrder{{named("a"), now.Add(-10*time.Minute - time.Second)}},
		},
		"the longest waits first, and no more than the limit": {
			wishes: []RestartWish{wish("c", long), wish("b", long.Add(time.Second)), wish("a", long.Add(time.Second)), wish("d", long.Add(time.Second))},
			begin:  []RestartOrder{{named("c"), long}, {named("a"), long.Add(time.Second)}, {named("b"), long.Add(time.Second)}},
		},
		"what rolls out counts, whoever it is for": {
			wishes: []RestartWish{
				rolling("x", now.Add(-time.Minute)), rolling("x", now.Add(-time.Minute)), rolling("y", now.Add(-time.Second)), wish("a", long), wish("b", long),
			},
			begin: []RestartOrder{{named("a"), long}}, next: now.Add(9 * time.Minute),
		},
		"more than the limit rolls out": {
			wishes: []RestartWish{rolling("w", now), rolling("x", now), rolling("y", now), rolling("z", now), wish("a", long)}, next: now.Add(10 * time.Minute),
		},
	} {
		t.Run(sentence, func(t *testing.T) {
			wishes := map[WorkloadName][]RestartWish{}
			for _, w := range test.wishes {
				wishes[w.Workload] = append(wishes[w.Workload], w)
			}
			begin, next := NextRestarts(wishes, test.since, 3, now)
			if diff := cmp.Diff(test.begin, begin); diff != "" {
				t.Error(diff)
			}
			if !next.Equal(test.next) {
				t.Errorf("next at %s, want %s", next, test.next)
			}
		})
	}
}

// Whatever happens to workloads, controllers and rotations: a workload is
// restarted at most once for each delivery, no version that a pod may still run
// with ends before its longest overlap, and in the end everything is adopted.
func TestAnyHistoryOfRestartsIsSafeAndComesToAnEnd(t *testing.T) {
	for seed := range uint64(100) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { newWorkshop(t, seed).history() })
	}
}

// workshop is a world with three workloads, and what their oldest pods run with.
type workshop struct {
	*world
	random     *rand.Rand
	deliveries int
	of         map[WorkloadName]*worker
}

type worker struct {
	restarted time.Time
	restarts  int
	runs      int64 // 0: there are no pods
	next      int64 // what they run with once the restart is through
}

func newWorkshop(t *testing.T, seed uint64) *workshop {
	s := &workshop{random: rand.New(rand.NewPCG(seed, 7)), of: map[WorkloadName]*worker{}}
	s.world = newWorld(t, &v1alpha1.CredentialSpec{
		Restart: &v1alpha1.Restart{Consumers: true}, Rotation: &v1alpha1.Rotation{Retire: v1alpha1.RetireAfterOverlap, Overlap: "1h"},
	})
	s.o.Restarts.Enabled = true
	for _, name := range []string{"a", "b", "c"} {
		s.o.Restarts.Workloads = append(s.o.Restarts.Workloads, Workload{WorkloadName: named(name), Created: s.now})
		s.of[named(name)] = &worker{runs: 1}
	}
	s.run()
	return s
}

func (s *workshop) history() {
	for range 60 {
		switch s.random.IntN(6) {
		case 0:
			s.command([]string{"rotate", "x"})
			s.deliveries++
		case 1:
			s.command([]string{"restart"})
		case 2:
			s.set(s.random.IntN(3), RolloutComplete)
		case 3:
			s.set(s.random.IntN(3), Rollout(s.random.IntN(7)))
		default:
			s.command([]string{"wait", fmt.Sprintf("%dm", 1+s.random.IntN(40))})
		}
		s.check()
	}
	for range 20 {
		for i := range s.o.Restarts.Workloads {
			s.set(i, RolloutComplete)
		}
		s.command([]string{"wait", "12m"})
		s.check()
	}
	if a := s.o.Status.Adopted; a == nil || a.Version != s.o.Status.CurrentVersion {
		s.t.Errorf("in the end %+v is adopted of version %d", a, s.o.Status.CurrentVersion)
	}
}

// set has a rollout come to a point.
func (s *workshop) set(i int, rollout Rollout) {
	s.check()
	found := &s.o.Restarts.Workloads[i]
	pods := s.of[found.WorkloadName]
	switch {
	case rollout == RolloutIdle:
		pods.runs, pods.next = 0, 0
	case pods.runs == 0 || (rollout == RolloutComplete && pods.next == 0 && found.Rollout == RolloutIdle):
		pods.runs, pods.next = s.o.Status.CurrentVersion, 0
	case rollout == RolloutComplete && pods.next != 0:
		pods.runs, pods.next = pods.next, 0
	}
	found.Rollout = rollout
	s.run()
}

func (s *workshop) check() {
	for _, found := range s.o.Restarts.Workloads {
		pods := s.of[found.WorkloadName]
		if !found.Recorded.Equal(pods.restarted) {
			pods.restarted, pods.restarts, pods.next = found.Recorded, pods.restarts+1, s.o.Status.CurrentVersion
		}
		if pods.restarts > s.deliveries {
			s.t.Fatalf("%s was restarted %d times for %d deliveries", found.Name, pods.restarts, s.deliveries)
		}
		live := pods.runs == 0
		for _, v := range s.o.Status.Versions {
			live = live || (v.Version == pods.runs && v.State.Live())
		}
		if !live {
			s.t.Fatalf("%s runs with version %d, which has ended:\n%s", found.Name, pods.runs, s.out.String())
		}
	}
}
