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

// A new version can wait for servers for long. What came before the current one goes its way
// all the same: when it is discarded, and when its overlap is over.
func TestWhatIsOverLeavesTheSecretThoughANewVersionWaitsForServers(t *testing.T) {
	for sentence, command := range map[string][]string{
		"discarded": {"discard"}, "its overlap is over": {"wait", "25h"}, "revoked": {"revoke", "1", "leaked"},
	} {
		t.Run(sentence, func(t *testing.T) {
			w := newWorld(t, &v1alpha1.CredentialSpec{Rotation: &v1alpha1.Rotation{Retire: v1alpha1.RetireAfterOverlap}})
			w.run()
			w.now = w.now.Add(time.Minute)
			w.command([]string{"rotate", "first"})
			w.now = w.now.Add(time.Minute)
			w.command([]string{"servers", "lag"})
			w.command([]string{"rotate", "second"})
			if w.now = w.now.Add(time.Minute); w.versions() != "[1 Superseded][2 Active][3 Pending]" || w.o.Secret.Previous != 1 {
				t.Fatalf("%s, and the Secret carries %+v", w.versions(), w.o.Secret)
			}
			w.command(command)
			first := (&plan{Observed: &w.o, status: w.o.Status}).version(1)
			if w.o.Secret.Current != 2 || w.o.Secret.Previous != 0 || first.State.Live() {
				t.Errorf("the Secret carries %d and %d, and version 1 is %s\n%s", w.o.Secret.Current, w.o.Secret.Previous, first.State, w.out.String())
			}
			w.command([]string{"servers", "accept"})
			if w.o.Secret.Current != 3 || w.o.Secret.Previous != 2 {
				t.Errorf("in the end the Secret carries %d and %d\n%s", w.o.Secret.Current, w.o.Secret.Previous, w.out.String())
			}
		})
	}
}

// What is discarded is what came before the version that is current when it is asked for. That
// one has its overlap, though its successor is delivered before the discard can be carried out.
func TestADiscardDoesNotTakeWhatWasCurrentWhenItWasAskedFor(t *testing.T) {
	w := newWorld(t, &v1alpha1.CredentialSpec{})
	w.run()
	for _, command := range [][]string{{"rotate", "first"}, {"write", "refused"}, {"rotate", "second"}, {"discard"}, {"write", "allowed"}} {
		w.now = w.now.Add(time.Minute)
		w.command(command)
	}
	if got := w.versions(); got != "[1 Retired][2 Superseded][3 Active]" || w.o.Secret.Current != 3 || w.o.Secret.Previous != 2 {
		t.Errorf("%s, and the Secret carries %d and %d\n%s", got, w.o.Secret.Current, w.o.Secret.Previous, w.out.String())
	}
}

// Back, and away with what was current: discarding must not be taken for done because what is
// to go is still the current version.
func TestARollbackAndADiscardAskedForTogetherEndTheNewerVersion(t *testing.T) {
	w := newWorld(t, &v1alpha1.CredentialSpec{})
	w.run()
	w.now = w.now.Add(time.Minute)
	w.command([]string{"rotate", "first"})
	w.now = w.now.Add(time.Minute)
	w.o.Annotations[v1alpha1.AnnotationRollbackRequestedAt] = w.now.Format(time.RFC3339)
	w.command([]string{"discard"})
	if got := w.versions(); got != "[1 Active][2 Retired]" || w.o.Secret.Current != 1 || w.o.Secret.Previous != 0 {
		t.Errorf("%s, and the Secret carries %d and %d\n%s", got, w.o.Secret.Current, w.o.Secret.Previous, w.out.String())
	}
	if told := w.out.String(); strings.Count(told, "event Discarded") != 1 || strings.Index(told, "event Discarded") < strings.Index(told, "event RolledBack") {
		t.Errorf("it is told so:\n%s", told)
	}
}

// Whoever asks for what cannot be done is told, and told what to do instead.
func TestWhatCannotBeDoneWithADeclaredValueIsRefused(t *testing.T) {
	for _, what := range []string{"rollback", "discard"} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t, &v1alpha1.CredentialSpec{})
			w.command([]string{"declare", "a"})
			w.command([]string{"declare", "b", "a"})
			w.now = w.now.Add(time.Minute)
			w.command([]string{what})
			handled := map[string]*metav1.MicroTime{"rollback": w.o.Status.Handled.Rollback, "discard": w.o.Status.Handled.Discard}[what]
			if handled == nil || !strings.Contains(w.out.String(), "event RequestRefused") || !strings.Contains(w.out.String(), "spec.external.sha256") {
				t.Errorf("handled: %v\n%s", handled, w.out.String())
			}
			if got := w.versions(); got != "[1 Superseded][2 Active]" {
				t.Errorf("the versions are %s", got)
			}
		})
	}
}

// What is rotated by a schedule alone is rotated by itself: that nobody was there to do it in
// time does not end it, no more than an end that has been put off.
func TestWhatExpiredWhileNobodyWasThereIsMadeAnew(t *testing.T) {
	never := func(r v1alpha1.Rotation) *v1alpha1.Rotation {
		r.Every = v1alpha1.Never
		return &r
	}
	for sentence, test := range map[string]struct {
		spec v1alpha1.CredentialSpec
		then []string
		want string
	}{
		"rotated by a schedule": {
			spec: v1alpha1.CredentialSpec{TTL: "10d", Rotation: never(v1alpha1.Rotation{Schedule: "0 3 * * SUN"})}, then: []string{"run"}, want: "[1 Expired][2 Active]",
		},
		"never rotated": {spec: v1alpha1.CredentialSpec{TTL: "10d", Rotation: never(v1alpha1.Rotation{})}, then: []string{"run"}, want: "[1 Expired]"},
		"never rotated, and its end put off": {
			spec: v1alpha1.CredentialSpec{ExpiresAt: stamp(time.Date(2026, 1, 5, 0, 0, 0, 0, time.UTC)), Rotation: never(v1alpha1.Rotation{})},
			then: []string{"spec", "expiresAt", `"2026-06-01T00:00:00Z"`}, want: "[1 Expired][2 Active]",
		},
		"never rotated, and its end put off when its own life was over": {
			spec: v1alpha1.CredentialSpec{TTL: "2d", ExpiresAt: stamp(time.Date(2026, 1, 5, 0, 0, 0, 0, time.UTC)), Rotation: never(v1alpha1.Rotation{})},
			then: []string{"spec", "expiresAt", `"2026-06-01T00:00:00Z"`}, want: "[1 Expired]",
		},
	} {
		t.Run(sentence, func(t *testing.T) {
			w := newWorld(t, &test.spec)
			w.run()
			w.now = w.now.Add(20 * aDay)
			w.run()
			w.command(test.then)
			if got := w.versions(); got != test.want {
				t.Errorf("the versions are %s, want %s", got, test.want)
			}
			w.command([]string{"class", "deletes", "30d"})
			w.command([]string{"wait", "31d"})
			if deleted := strings.Contains(w.out.String(), "deletes the credential"); deleted != (test.want == "[1 Expired]") {
				t.Errorf("deleted by its class: %t\n%s", deleted, w.out.String())
			}
		})
	}
}

func TestAnEarlierTimeRevivesNothingThatHasExpired(t *testing.T) {
	w := newWorld(t, &v1alpha1.CredentialSpec{TTL: "10d", Rotation: &v1alpha1.Rotation{Every: v1alpha1.Never}})
	w.run()
	w.command([]string{"wait", "11d"})
	w.now = w.now.AddDate(0, 0, -5)
	if w.run(); w.versions() != "[1 Expired]" {
		t.Errorf("the versions are %s", w.versions())
	}
}

// A Secret that may be taken over can be put in the place of ours at any time. The current
// value is gone with ours, so a new one is made.
func TestASecretPutInThePlaceOfOursIsTakenOverAgain(t *testing.T) {
	w := newWorld(t, &v1alpha1.CredentialSpec{Secret: &v1alpha1.SecretTarget{ConflictPolicy: v1alpha1.ConflictAdopt}})
	w.run()
	w.now = w.now.Add(time.Hour)
	w.command([]string{"secret", "foreign"})
	if ready := readyOf(w); w.versions() != "[1 Superseded][2 Active]" || !w.o.Secret.Ours || w.o.Secret.Current != 2 || ready.Status != metav1.ConditionTrue {
		t.Errorf("%s, the Secret is %+v, Ready is %s: %s", w.versions(), w.o.Secret, ready.Reason, ready.Message)
	}
}

// A restart waits for company, for its turn, or to be tried again. Its window may close
// meanwhile.
func TestNoRestartBeginsWhenItsWindowHasClosed(t *testing.T) {
	o := owing(Workload{WorkloadName: named("web"), Created: delivered.Add(-time.Hour)})
	o.Spec.Restart.Windows = []v1alpha1.Window{{Schedule: "0 12 * * *", Duration: "5m"}, {Schedule: "0 11 * * *", Duration: "62m"}}
	closes := delivered.Add(5 * time.Minute)
	d := Plan(o, delivered.Add(time.Minute))
	if len(d.Restarts) != 1 || !d.Restarts[0].Begin || !d.Next.Equal(closes) {
		t.Fatalf("wishes %+v, looks again at %s", d.Restarts, d.Next)
	}
	wishes := map[WorkloadName][]RestartWish{named("web"): d.Restarts}
	for at, begins := range map[time.Time]int{closes.Add(-time.Second): 1, closes: 0, closes.Add(time.Minute): 0} {
		if orders, next := NextRestarts(wishes, time.Time{}, 5, at); len(orders) != begins || !next.IsZero() {
			t.Errorf("at %s there are %d orders, and another look at %s", at.Format(time.TimeOnly), len(orders), next)
		}
	}
	o.Spec.Restart.Windows = nil
	if d := Plan(o, delivered.Add(time.Minute)); !d.Restarts[0].Begin || !d.Restarts[0].Until.IsZero() {
		t.Errorf("without windows: %+v", d.Restarts)
	}
}

// AfterOverlap ends a version by the time. But where workloads have never been restarted it
// ends under their feet, and somebody should hear of it.
func TestTheEndOfAVersionThatWorkloadsMayRunWithIsToldOf(t *testing.T) {
	for _, policy := range []v1alpha1.RetirePolicy{v1alpha1.RetireAfterOverlap, v1alpha1.RetireWhenUnused} {
		o := owing(Workload{WorkloadName: named("web"), Created: delivered.Add(-time.Hour), Restarted: delivered.Add(time.Minute), Rollout: RolloutFailed})
		o.Spec.Rotation = &v1alpha1.Rotation{Retire: policy}
		o.Secret.Previous = 0
		for after, told := range map[time.Duration]bool{6 * aDay: false, 8 * aDay: true} {
			d := Plan(o, delivered.Add(after))
			tells := slices.ContainsFunc(d.Events, func(e Event) bool {
				return e.Reason == v1alpha1.ReasonOverlapEnded && e.Warning && strings.Contains(e.Message, "Adopted names the workloads")
			})
			if ended := !d.Status.Versions[1].State.Live(); tells != told || ended != told {
				t.Errorf("%s: after %s version 1 has ended: %t, and it is told of: %t", policy, after, ended, tells)
			}
		}
	}
}

// Back, and back again: the second time the version gone back to is the newer one.
func TestARollbackOfARollbackIsToldAsOne(t *testing.T) {
	w := newWorld(t, &v1alpha1.CredentialSpec{})
	w.run()
	for _, command := range []string{"rotate", "rollback", "rollback"} {
		w.now = w.now.Add(time.Minute)
		w.command([]string{command})
	}
	second := (&plan{Observed: &w.o, status: w.o.Status}).version(2)
	if w.versions() != "[1 Superseded][2 Active]" || second.Superseded != nil {
		t.Errorf("%s; version 2 counts as superseded since %v", w.versions(), second.Superseded)
	}
	if told := w.out.String(); !strings.Contains(told, "event RolledBack: Rolled back from version 1 to 2") || strings.Count(told, "event Rotated") != 1 {
		t.Errorf("it is told so:\n%s", told)
	}
}

// The value to be rolled back to can be lost before it is delivered. What is made in its place
// is made for whoever wanted to go back, and not for whoever had the old one made.
func TestWhatReplacesALostRollbackIsHisWhoAskedForIt(t *testing.T) {
	w := newWorld(t, &v1alpha1.CredentialSpec{})
	w.o.Annotations[v1alpha1.AnnotationRequestedBy] = "carol"
	w.run()
	w.now = w.now.Add(time.Minute)
	w.command([]string{"rotate", "tidy"})
	w.now = w.now.Add(time.Minute)
	w.command([]string{"write", "refused"})
	w.o.Annotations[v1alpha1.AnnotationRequestedBy], w.o.Annotations[v1alpha1.AnnotationReason] = "bob", "it does not work"
	w.command([]string{"rollback"})
	w.command([]string{"secret", "deleted"})
	minted := w.o.Status.Transitions[len(w.o.Status.Transitions)-1]
	if minted.Type != v1alpha1.ReasonMinted || minted.Version != 3 || minted.Actor != "bob" || !strings.HasPrefix(minted.Reason, "it does not work (again: version 1 was lost") {
		t.Errorf("the last transition is %+v", minted)
	}
}
