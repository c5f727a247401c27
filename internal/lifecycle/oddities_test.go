package lifecycle

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

func TestAVeryLongLifeDoesNotMakeARotationDueAtOnce(t *testing.T) {
	for _, ttl := range []v1alpha1.Duration{"100y", "150y", "200y", "290y"} {
		t.Run(string(ttl), func(t *testing.T) {
			w := newWorld(t, &v1alpha1.CredentialSpec{TTL: ttl, Rotation: &v1alpha1.Rotation{Every: "30d"}})
			w.run()
			w.command([]string{"wait", "20d"})
			if n := len(w.o.Status.Versions); n != 1 || w.o.Status.NextRotation < w.now.Format(time.RFC3339) {
				t.Errorf("after 20 days there are %d versions, and the next rotation is at %s", n, w.o.Status.NextRotation)
			}
		})
	}
}

func TestARestartBeginsWithTheNextVersionAfterARollbackToo(t *testing.T) {
	o := owing(Workload{WorkloadName: named("web"), Created: delivered.Add(-time.Hour)})
	older := metav1.NewTime(delivered.Add(-time.Hour))
	// Rolled back from version 2 to version 1, before restarts were asked for or turned on.
	o.Status.Adopted = nil
	o.Status.CurrentVersion = 1
	o.Status.Versions[0].State, o.Status.Versions[0].Superseded = v1alpha1.VersionSuperseded, &metav1.Time{Time: delivered}
	o.Status.Versions[1].State, o.Status.Versions[1].Superseded, o.Status.Versions[1].Activated = v1alpha1.VersionActive, nil, &older
	o.Secret.Current, o.Secret.Previous = 1, 2
	d := Plan(o, delivered.Add(2*time.Minute))
	if a := d.Status.Adopted; a == nil || a.Version != 1 || len(d.Restarts) > 0 {
		t.Errorf("adopted %+v, wishes %+v; nothing was delivered since, so nothing is owed", a, d.Restarts)
	}
}

// A controller that begins does not know the workloads at first. What status said
// of them stays until it does, or each credential that waits for a window would
// be written twice, and each failure told again.
func TestAControllerThatBeginsLeavesAdoptedAsItIsUntilItKnowsTheWorkloads(t *testing.T) {
	window := []v1alpha1.Window{{Schedule: "0 3 * * *", Duration: "1h"}}
	old, since := delivered.Add(-time.Hour), delivered.Add(time.Minute)
	for sentence, test := range map[string]struct {
		workload Workload
		windows  []v1alpha1.Window
		reason   string
	}{
		"waiting for a window": {Workload{Created: old}, window, v1alpha1.ReasonAwaitingWindow},
		"failed":               {Workload{Created: old, Restarted: since, Rollout: RolloutFailed}, nil, v1alpha1.ReasonRestartFailed},
		"under way":            {Workload{Created: old, Restarted: since, Rollout: RolloutRolling}, nil, v1alpha1.ReasonRestarting},
	} {
		t.Run(sentence, func(t *testing.T) {
			test.workload.WorkloadName = named("web")
			o := owing(test.workload)
			o.Spec.Restart.Windows = test.windows
			now := delivered.Add(2 * time.Minute)
			o.Status = Plan(o, now).Status
			before := meta.FindStatusCondition(o.Status.Conditions, v1alpha1.ConditionAdopted)
			if before == nil || before.Reason != test.reason {
				t.Fatalf("the condition is %+v", before)
			}
			o.Restarts.Known = false
			d := Plan(o, now.Add(time.Second))
			if after := meta.FindStatusCondition(d.Status.Conditions, v1alpha1.ConditionAdopted); after == nil || *after != *before {
				t.Errorf("while the workloads are not known: %+v, before: %+v", after, before)
			}
			o.Status, o.Restarts.Known = d.Status, true
			if d := Plan(o, now.Add(2*time.Second)); len(d.Events) > 0 {
				t.Errorf("told again: %+v", d.Events)
			}
		})
	}
}

func TestWorkloadsThatMayNotBeListedAreNotLookedForAllTheTime(t *testing.T) {
	o := owing()
	o.Restarts = Restarts{Enabled: true, Problem: "the controller may not list workloads"}
	now := delivered.Add(2 * time.Minute)
	if d := Plan(o, now); d.Next.Before(now.Add(lookSoon)) {
		t.Errorf("looks again after %s", d.Next.Sub(now))
	}
}

func TestADeliveryThatIsHeldUpForAMomentIsNoAlarm(t *testing.T) {
	w := newWorld(t, &v1alpha1.CredentialSpec{TTL: "30d"})
	w.run()
	w.command([]string{"wait", "17d"})
	w.command([]string{"servers", "lag"})
	w.command([]string{"rotate", "monthly"})
	expiring := func() string {
		if c := meta.FindStatusCondition(w.o.Status.Conditions, v1alpha1.ConditionExpiring); c != nil {
			return c.Reason
		}
		return ""
	}
	if got := expiring(); got != "" {
		t.Errorf("alarmed at once: %s", got)
	}
	w.command([]string{"wait", "1h"})
	if got := expiring(); got != v1alpha1.ReasonWithin14Days {
		t.Errorf("after an hour: %q", got)
	}
}

// A record that is larger than status has room for could never be written: nothing
// would be told, and no Revocation that selects the credential would ever settle.
func TestWhatIsTooLargeToSealIsRefusedAndCanBeRevoked(t *testing.T) {
	w := newWorld(t, &v1alpha1.CredentialSpec{})
	w.o.Labels = map[string]string{"app": "x"}
	w.run()
	for i := range 1500 {
		w.o.Labels[fmt.Sprintf("%050d", i)] = strings.Repeat("v", 60)
	}
	w.run()
	ready := meta.FindStatusCondition(w.o.Status.Conditions, v1alpha1.ConditionReady)
	if ready == nil || ready.Reason != v1alpha1.ReasonInvalidSpec || !strings.Contains(ready.Message, "labels") {
		t.Errorf("Ready is %+v", ready)
	}
	if w.o.Record.Labels["app"] != "x" || len(w.o.Record.Labels) != 1 {
		t.Errorf("%d labels are sealed; want those of before", len(w.o.Record.Labels))
	}
	w.command([]string{"revocation", "leak"})
	if !w.o.Record.Accounts("uid-leak", w.now) || w.live() {
		t.Errorf("not settled: %+v", w.o.Record.Settled)
	}
}

func TestTheLargestRecordFitsIntoStatus(t *testing.T) {
	const room = 131072 / 4 * 3 // the schema's, in base64
	w := newWorld(t, &v1alpha1.CredentialSpec{})
	w.run()
	w.o.Labels = map[string]string{}
	settings := Effective(w.o.Spec, w.o.Class)
	for i := 0; w.o.sealedSize(&settings) < maxGranted-100; i++ {
		w.o.Labels[fmt.Sprintf("%05d", i)] = strings.Repeat("v", 10)
	}
	for i := range maxNamed {
		w.o.Revocations = append(w.o.Revocations, Revocation{UID: fmt.Sprintf("%036d", i), Created: w.now})
	}
	w.run()
	first := w.o.Record.Versions[0]
	for i := len(w.o.Record.Versions); i < 64; i++ {
		v := first
		v.Number, v.Pepper, v.Prefix = int64(i)<<40, strings.Repeat("p", 64), strings.Repeat("x", 64)
		w.o.Record.Versions = append(w.o.Record.Versions, v)
	}
	record, _, err := w.o.Record.Seal(w.pepper)
	if err != nil || len(record) > room || len(w.o.Record.Settled) != maxNamed || len(w.o.Record.Labels) < 1000 {
		t.Errorf("%d bytes, with room for %d; %d settled, %d labels (%v)", len(record), room, len(w.o.Record.Settled), len(w.o.Record.Labels), err)
	}
}

func (w *world) live() bool {
	return slices.ContainsFunc(w.o.Status.Versions, func(v v1alpha1.CredentialVersion) bool { return v.State.Live() })
}

// Rollouts that never come to an end, of one tenant, must not keep the workloads of
// all others from being restarted.
func TestNoNamespaceKeepsTheOthersFromRestarting(t *testing.T) {
	const limit = 3
	var (
		now    = delivered.Add(10 * time.Hour)
		hungry = func(name string) WorkloadName { return WorkloadName{"a-hungry", "Deployment", name} }
		wish   = func(name WorkloadName, at time.Time) RestartWish {
			return RestartWish{Workload: name, Delivered: at, Begin: true, Timeout: 10 * time.Minute}
		}
		rolls = func(name WorkloadName, since time.Time) RestartWish {
			return RestartWish{Workload: name, Delivered: since.Add(-time.Minute), Restarted: since, Timeout: 100 * 365 * 24 * time.Hour}
		}
		early, late = delivered, delivered.Add(time.Hour)
	)
	for sentence, test := range map[string]struct {
		wishes []RestartWish
		begin  []WorkloadName
		next   time.Time
	}{
		"rollouts that hang hold their places for a while": {
			wishes: []RestartWish{
				rolls(hungry("x"), now.Add(-time.Minute)), rolls(hungry("y"), now.Add(-2*time.Minute)), rolls(hungry("z"), now.Add(-time.Minute)),
				wish(named("web"), late),
			},
			next: now.Add(holdsPlaceFor - 2*time.Minute),
		},
		"and no longer": {
			wishes: []RestartWish{
				rolls(hungry("x"), now.Add(-holdsPlaceFor)), rolls(hungry("y"), now.Add(-5*time.Hour)), rolls(hungry("z"), now.Add(-5*time.Hour)),
				wish(named("web"), late), wish(hungry("x"), early),
			},
			begin: []WorkloadName{named("web")},
			next:  now.Add(-5 * time.Hour).Add(100 * 365 * 24 * time.Hour),
		},
		"namespaces take turns, whoever has waited longer": {
			wishes: []RestartWish{
				wish(hungry("a"), early), wish(hungry("b"), early), wish(hungry("c"), early), wish(hungry("d"), early), wish(named("web"), late),
			},
			begin: []WorkloadName{hungry("a"), named("web"), hungry("b")},
		},
		"one that has rollouts going on comes after the others": {
			wishes: []RestartWish{
				rolls(hungry("x"), now.Add(-time.Minute)), wish(hungry("a"), early), wish(named("web"), late), wish(named("worker"), late),
			},
			begin: []WorkloadName{named("web"), hungry("a")},
			next:  now.Add(holdsPlaceFor - time.Minute),
		},
	} {
		t.Run(sentence, func(t *testing.T) {
			wishes := map[WorkloadName][]RestartWish{}
			for _, w := range test.wishes {
				wishes[w.Workload] = append(wishes[w.Workload], w)
			}
			orders, next := NextRestarts(wishes, time.Time{}, limit, now)
			var begin []WorkloadName
			for _, order := range orders {
				begin = append(begin, order.Workload)
			}
			if diff := cmp.Diff(test.begin, begin); diff != "" {
				t.Error(diff)
			}
			if !next.Equal(test.next) {
				t.Errorf("next at %s, want %s", next, test.next)
			}
		})
	}
}

func TestNotEverythingThatIsUsedDayAfterDayIsWrittenAtMidnight(t *testing.T) {
	midnight := time.Date(2026, 1, 3, 0, 0, 0, 0, time.UTC)
	written := map[int]int{} // by the quarter of an hour
	for i := range 1000 {
		w := newWorld(t, &v1alpha1.CredentialSpec{})
		w.o.UID = "uid-" + strconv.Itoa(i)
		w.run()
		use := func(at time.Time) {
			w.now, w.o.Usage = at, &Usage{LastUsed: map[int64]time.Time{1: at}, Since: w.began, Through: at}
			w.run()
		}
		if use(midnight.Add(-time.Hour)); w.o.Status.LastUsed != "2026-01-02" {
			t.Fatalf("what was not used the day before is shown at once; shown: %q", w.o.Status.LastUsed)
		}
		for quarter := range 5 {
			use(midnight.Add(time.Duration(quarter) * 15 * time.Minute))
			if w.o.Status.LastUsed == "2026-01-03" {
				written[quarter]++
				break
			}
			if w.next.After(midnight.Add(usageTurns)) {
				t.Fatalf("looks again at %s", w.next)
			}
		}
	}
	for quarter := 1; quarter <= 4; quarter++ {
		if written[quarter] < 150 {
			t.Errorf("written by the quarter of an hour: %v", written)
		}
	}
	if written[0]+written[1]+written[2]+written[3]+written[4] != 1000 {
		t.Errorf("after an hour, %v are written", written)
	}
}

func TestARestartThatChoosesNothingIsRefused(t *testing.T) {
	class := &v1alpha1.CredentialClassSpec{}
	rule := &v1alpha1.ClassRule{}
	for sentence, test := range map[string]struct {
		restart v1alpha1.Restart
		refused bool
	}{
		"an empty list of workloads": {v1alpha1.Restart{Workloads: []v1alpha1.WorkloadReference{}}, true},
		"nothing at all":             {v1alpha1.Restart{}, true},
		"consumers":                  {v1alpha1.Restart{Consumers: true}, false},
		"a workload":                 {v1alpha1.Restart{Workloads: []v1alpha1.WorkloadReference{{Kind: "Deployment", Name: "web"}}}, false},
	} {
		t.Run(sentence, func(t *testing.T) {
			errs := Validate(v1alpha1.KindServiceToken, "ci", &v1alpha1.CredentialSpec{Restart: &test.restart}, class, rule)
			refused := slices.ContainsFunc(errs, func(e *field.Error) bool { return e.Field == "spec.restart" })
			if refused != test.refused {
				t.Errorf("refused %t: %v", refused, errs)
			}
		})
	}
}
