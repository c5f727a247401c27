package lifecycle

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// What has workloads restarted, and tells when they run with the current
// version.
//
// A restart is owed for one reason alone: a version was delivered while
// spec.restart was there and restarts were on. status.adopted says up to which
// version nothing is owed any more. Where it is missing, nothing is owed for
// what was delivered before: so a new controller, a restored backup, restarts
// that are turned on, and a workload that is new among the selected ones
// restart nothing.
//
// Whether a workload has been restarted since, it tells itself: by a time in the
// annotations of its pod template, ours or that of kubectl rollout restart. A time
// and not a version, so that one restart serves every credential delivered
// before it.

const (
	// settleRestart is how long a restart waits for more credentials that are
	// being rotated with the one that asks for it, and settleAtMost how long in
	// all.
	settleRestart = 10 * time.Second
	settleAtMost  = 2 * time.Minute
	// holdsPlaceFor is how long a rollout counts among those that go on at once. One
	// that hangs must not keep those of others from beginning.
	holdsPlaceFor = 30 * time.Minute
	// bornAfter is how long after a delivery a workload must have been made for
	// its first pods to be sure to have read what was delivered: two clocks are
	// compared.
	bornAfter = 5 * time.Second
	// drained is how long pods that have been replaced may go on ending.
	drained = 5 * time.Minute
	// findWorkloads is when to look again for workloads that are not known yet.
	findWorkloads = 5 * time.Second

	// fallbackRestartTimeout is that of a spec that says none.
	fallbackRestartTimeout v1alpha1.Duration = "10m"
)

// Restarts is what was found of the workloads to be restarted.
type Restarts struct {
	// Enabled: this installation restarts workloads.
	Enabled bool
	// Known: the workloads have been looked for. They are while a restart is owed;
	// see AwaitsAdoption. Problem says why they could not be, for people.
	Known   bool
	Problem string
	// Workloads are those that spec.restart chooses, and Missing those that it
	// names and that do not exist: nothing of theirs runs with an old value.
	Workloads []Workload
	Missing   []WorkloadName
}

// WorkloadName names a workload of the cluster.
type WorkloadName struct{ Namespace, Kind, Name string }

// String is the name as people who know the namespace read it.
func (n WorkloadName) String() string { return n.Kind + " " + n.Name }

func (n WorkloadName) compare(other WorkloadName) int {
	return cmp.Or(cmp.Compare(n.Namespace, other.Namespace), cmp.Compare(n.Kind, other.Kind), cmp.Compare(n.Name, other.Name))
}

// Workload is what was found of a workload.
type Workload struct {
	WorkloadName
	Created time.Time
	// Restarted is the latest restart that its pod template tells of; zero is
	// none.
	Restarted time.Time
	// Recorded is our latest restart of it by other evidence. Where it is later
	// than Restarted, the pod template has been put back since.
	Recorded time.Time
	// Completed is a restart of which every pod has been seen to run.
	Completed time.Time
	Rollout   Rollout
	// Refused is why its last restart could not be asked for, for people.
	Refused string
}

// Rollout says how far a workload's pods are those of its pod template.
type Rollout int

const (
	// RolloutComplete means that all are, and available.
	RolloutComplete Rollout = iota
	// RolloutIdle means that there are no pods, and none are wanted.
	RolloutIdle
	// RolloutUnavailable means that all are, but not all are available.
	RolloutUnavailable
	// RolloutRolling means that pods of an older one are being replaced.
	RolloutRolling
	// RolloutFailed means that the workload's own deadline has passed.
	RolloutFailed
	// RolloutPaused means that nobody replaces pods until the workload is resumed.
	RolloutPaused
	// RolloutManual means that pods of an older one remain, for its update strategy
	// leaves them to people.
	RolloutManual
)

// RestartWish is one credential's wait for one workload.
type RestartWish struct {
	Workload WorkloadName
	// Delivered is when the version was that the workload is to run with.
	Delivered time.Time
	// Begin: as far as the credential is concerned the restart may begin, before Until,
	// when its window closes. Zero is any time.
	Begin bool
	Until time.Time
	// Restarted is when it began, zero where it has not; its rollout is waited for
	// until Timeout later.
	Restarted time.Time
	Timeout   time.Duration
}

// begins tells whether the restart may begin now.
func (w *RestartWish) begins(now time.Time) bool {
	return w.Begin && (w.Until.IsZero() || now.Before(w.Until))
}

// rolling tells whether the wish is for the end of a rollout.
func (w *RestartWish) rolling(now time.Time) bool {
	return !w.Restarted.IsZero() && now.Before(w.Restarted.Add(w.Timeout))
}

// RestartOrder is a restart to be made now. The time it leaves in the pod
// template must be later than After, that of the last delivery it serves.
type RestartOrder struct {
	Workload WorkloadName
	After    time.Time
}

// NextRestarts chooses the workloads to restart now, of those that credentials
// wait for, and says when to choose again though nothing changes.
//
// One restart serves every credential that waits, so it gives others that are
// being rotated a moment to join. since is when this process began to hear of
// them. At most limit rollouts go on at once, whoever they are for; those that
// have gone on for long do not count. The namespace comes first that has the
// fewest, and then what has waited longest.
func NextRestarts(
	wishes map[WorkloadName][]RestartWish, since time.Time, limit int, now time.Time,
) (begin []RestartOrder, next time.Time) {
	var (
		candidates []candidate
		going      = map[string]int{} // rollouts, by namespace
		places     = limit
	)
	for workload, all := range wishes {
		var (
			c                       = candidate{RestartOrder: RestartOrder{Workload: workload}}
			wanted, underway, holds bool
		)
		for _, w := range all {
			if w.rolling(now) {
				underway = true
				until := w.Restarted.Add(min(w.Timeout, holdsPlaceFor))
				if now.Before(until) {
					holds = true
				} else {
					until = w.Restarted.Add(w.Timeout)
				}
				next = earliest(next, until)
			}
			wanted = wanted || w.begins(now)
			c.first, c.After = earliest(c.first, w.Delivered), later(c.After, w.Delivered)
		}
		switch settled := later(settledAt(c.first, c.After), since.Add(settleRestart)); {
		case holds:
			going[workload.Namespace]++
			places--
		case underway:
		case wanted && now.Before(settled):
			next = earliest(next, settled)
		case wanted:
			candidates = append(candidates, c)
		}
	}
	for ; places > 0 && len(candidates) > 0; places-- {
		c := slices.MinFunc(candidates, func(a, b candidate) int {
			return cmp.Or(cmp.Compare(going[a.Workload.Namespace], going[b.Workload.Namespace]), a.first.Compare(b.first), a.Workload.compare(b.Workload))
		})
		candidates = slices.DeleteFunc(candidates, func(other candidate) bool { return other.Workload == c.Workload })
		going[c.Workload.Namespace]++
		begin = append(begin, c.RestartOrder)
	}
	return begin, next
}

// candidate is a workload that could be restarted now.
type candidate struct {
	RestartOrder
	first time.Time // the first delivery that it waits for
}

// settledAt is when a restart need not wait for company any more that was first
// asked for at one time and last at another.
func settledAt(first, last time.Time) time.Time {
	at, limit := last.Add(settleRestart), first.Add(settleAtMost)
	if limit.Before(at) {
		return limit
	}
	return at
}

// AwaitsAdoption tells whether a restart is owed, so that the workloads are to be
// looked for.
func AwaitsAdoption(spec *v1alpha1.CredentialSpec, status *v1alpha1.CredentialStatus) bool {
	if spec.Restart == nil || spec.External != nil || status.Adopted == nil {
		return false
	}
	return slices.ContainsFunc(status.Versions, func(v v1alpha1.CredentialVersion) bool {
		return v.State == v1alpha1.VersionActive && v.Version != status.Adopted.Version
	})
}

// restarting tells whether a delivery has workloads restarted.
func (p *plan) restarting() bool {
	return p.Spec.Restart != nil && p.Spec.External == nil && p.Restarts.Enabled
}

// expectAdoption notes, before anything is promoted, up to where no restart is
// owed.
func (p *plan) expectAdoption() {
	if !p.restarting() {
		p.status.Adopted = nil
		return
	}
	if p.status.Adopted == nil {
		if active := p.active(); active != nil { // not the latest that ever was, where it was rolled back to
			p.status.Adopted = &v1alpha1.Adoption{Version: active.Version}
			return
		}
		for _, v := range p.status.Versions {
			if v.Activated != nil && (p.status.Adopted == nil || v.Version > p.status.Adopted.Version) {
				p.status.Adopted = &v1alpha1.Adoption{Version: v.Version}
			}
		}
		return
	}
	// Rolled back to: what ran with it may have been restarted since.
	delivered, active := p.version(p.Secret.Current), p.active()
	if delivered != nil && delivered.State == v1alpha1.VersionPending && active != nil && delivered.Version == p.status.Adopted.Version {
		p.status.Adopted = &v1alpha1.Adoption{Version: active.Version}
	}
}

// adopt says which workloads are to be restarted, and notes when they all run
// with the active version.
func (p *plan) adopt() {
	active := p.active()
	if !p.restarting() || active == nil {
		return
	}
	if p.status.Adopted == nil { // the first there is
		p.status.Adopted = &v1alpha1.Adoption{Version: active.Version}
	}
	if p.status.Adopted.Version == active.Version || p.Class == nil {
		return
	}
	if !p.Restarts.Known {
		soon := findWorkloads
		if p.Restarts.Problem != "" {
			soon = lookSoon // it lasts until somebody puts it right
		}
		p.wake(p.now.Add(soon))
		return
	}
	p.adoption = p.survey(active)
	if len(p.adoption.wishes) > 0 {
		p.wake(p.now.Add(lookAgain))
		return
	}
	p.status.Adopted = &v1alpha1.Adoption{Version: active.Version, At: stampUp(p.now)}
	if len(p.adoption.proved) > 0 {
		p.event(false, v1alpha1.ReasonAdopted, "%s restarted for version %d, and running with it", names(p.adoption.proved), active.Version)
	}
}

// unadopted tells whether workloads may still run with what came before the
// active version.
func (p *plan) unadopted() bool {
	active, adopted := p.active(), p.status.Adopted
	if !p.restarting() || active == nil || adopted == nil {
		return false
	}
	if adopted.Version != active.Version {
		return true
	}
	return adopted.At != nil && !p.due(adopted.At.Add(drained))
}

// adoption is how far the workloads of a credential are.
type adoption struct {
	proved  []WorkloadName // restarted, and running
	rolling []WorkloadName
	stale   []WorkloadName // to be restarted
	held    []obstacle     // wait for people
	refused []obstacle
	failed  []obstacle
	wishes  []RestartWish
	// shut: no window is open.
	shut bool
}

// wishesOf are the wishes, of which there are none where nothing was looked at.
func (a *adoption) wishesOf() []RestartWish {
	if a == nil {
		return nil
	}
	return a.wishes
}

type obstacle struct {
	WorkloadName
	why string
}

// survey sorts the workloads by where they stand.
func (p *plan) survey(active *v1alpha1.CredentialVersion) *adoption {
	var (
		a         = new(adoption)
		delivered = p.now
		timeout   = p.settings.RestartTimeout
	)
	if active.Activated != nil {
		delivered = active.Activated.Time
	}
	// What is well is restarted first: if the new value is no good, it shows
	// where it can be told.
	workloads := slices.Clone(p.Restarts.Workloads)
	slices.SortFunc(workloads, func(x, y Workload) int {
		return cmp.Or(cmp.Compare(x.unwell(), y.unwell()), x.compare(y.WorkloadName))
	})
	for _, w := range workloads {
		wish := RestartWish{Workload: w.WorkloadName, Delivered: delivered, Timeout: timeout}
		switch stands, why := p.stand(&w, delivered); stands {
		case adopted:
			continue
		case proved:
			a.proved = append(a.proved, w.WorkloadName)
			continue
		case rolling:
			a.rolling = append(a.rolling, w.WorkloadName)
			wish.Restarted = w.Restarted
		case stale:
			a.stale = append(a.stale, w.WorkloadName)
			wish.Begin = true
		case busy:
			a.stale = append(a.stale, w.WorkloadName)
		case held:
			a.held = append(a.held, obstacle{w.WorkloadName, why})
		case refused:
			a.refused = append(a.refused, obstacle{w.WorkloadName, why})
			wish.Begin = true
		case failed:
			a.failed = append(a.failed, obstacle{w.WorkloadName, why})
		}
		a.wishes = append(a.wishes, wish)
	}
	p.limit(a)
	return a
}

// limit lets no more begin than should: none outside of the windows, none once
// one has failed, and one alone until it is seen to run.
func (p *plan) limit(a *adoption) {
	opening := p.settings.RestartCalendar.Opening(p.now)
	if a.shut = !opening.Equal(p.now); a.shut && len(a.stale) > 0 {
		p.wake(opening)
	}
	closing := p.settings.RestartCalendar.Closing(p.now)
	alone := len(a.proved) == 0
	begun := len(a.rolling) > 0
	for i := range a.wishes {
		w := &a.wishes[i]
		again := slices.ContainsFunc(a.refused, func(o obstacle) bool { return o.WorkloadName == w.Workload })
		switch {
		case !w.Begin:
		case a.shut || p.ClockSkewed || len(a.failed) > 0, len(a.refused) > 0 && !again, alone && begun:
			w.Begin = false
		default:
			begun, w.Until = true, closing
			p.wake(closing)
		}
	}
}

// Where a workload stands.
type standing int

const (
	adopted standing = iota // none of its pods can be older than the delivery
	proved                  // adopted, after a restart
	rolling
	stale
	busy // stale, and in the middle of a rollout of others
	held
	refused
	failed
)

// stand tells where a workload stands that is to run with what was delivered at
// a time.
func (p *plan) stand(w *Workload, delivered time.Time) (standing, string) {
	timeout := p.settings.RestartTimeout
	switch {
	case w.Rollout == RolloutIdle, w.Created.After(delivered.Add(bornAfter)):
		return adopted, ""
	case w.Completed.After(delivered):
		return proved, ""
	case w.Restarted.After(delivered):
		switch {
		case w.Rollout == RolloutComplete:
			return proved, ""
		case w.Rollout == RolloutFailed:
			return failed, "did not roll out within its progressDeadlineSeconds"
		case w.Rollout == RolloutManual:
			return held, "leaves the replacement of pods to people: delete those that are older than the restart"
		case w.Rollout == RolloutPaused:
			return held, "is paused"
		case p.due(w.Restarted.Add(timeout)):
			return failed, fmt.Sprintf("did not roll out within %s of its restart", cmp.Or(p.Spec.Restart.Timeout, fallbackRestartTimeout))
		}
		return rolling, ""
	case w.Recorded.After(delivered):
		return failed, "has had its pod template put back after the restart, by people or by what deploys it"
	case w.Refused != "":
		return refused, "could not be restarted: " + w.Refused
	case w.Rollout == RolloutPaused:
		return held, "is paused"
	case w.Rollout == RolloutRolling && !p.due(delivered.Add(timeout)):
		return busy, ""
	}
	return stale, ""
}

// unwell is 0 of a workload that is well.
func (w *Workload) unwell() int {
	if w.Rollout == RolloutComplete {
		return 0
	}
	return 1
}

// adoptedCondition says whether the workloads run with the active version. It
// tells nothing where there is none.
func (p *plan) adoptedCondition(active *v1alpha1.CredentialVersion) (verdict, bool) {
	a, before := p.adoption, meta.FindStatusCondition(p.status.Conditions, v1alpha1.ConditionAdopted)
	switch {
	case p.Spec.Restart == nil || p.Spec.External != nil || active == nil:
		return verdict{}, false
	case !p.Restarts.Enabled:
		return verdict{false, v1alpha1.ReasonRestartDisabled, "this installation restarts no workloads: " +
			"restart them within the overlap, or have restart.enabled set in the chart (--enable-restarts)"}, true
	case p.status.Adopted == nil || p.status.Adopted.Version == active.Version:
		return verdict{true, v1alpha1.ReasonAdopted, p.adoptedMessage(active)}, true
	case a == nil && p.Restarts.Problem != "":
		return verdict{false, v1alpha1.ReasonRestartFailed, p.Restarts.Problem}, true
	case a == nil && !p.promoted && unfinished(before):
		// A controller that begins has yet to look: what was found by the one before it
		// stands, or every credential that waits would be written, and told of, twice.
		return verdict{false, before.Reason, before.Message}, true
	case a == nil:
		return verdict{false, v1alpha1.ReasonRestarting, fmt.Sprintf("version %d has been delivered; what is to be restarted is being looked for", active.Version)}, true
	case len(a.failed)+len(a.refused) > 0:
		return verdict{false, v1alpha1.ReasonRestartFailed, p.failedMessage(active)}, true
	case a.shut && len(a.stale) > 0 && len(a.rolling) == 0:
		return verdict{false, v1alpha1.ReasonAwaitingWindow, p.windowMessage(active)}, true
	default:
		var parts []string
		if unfinished := slices.Concat(a.rolling, a.stale); len(unfinished) > 0 {
			parts = append(parts, fmt.Sprintf("%s to be restarted for version %d", names(unfinished), active.Version))
		}
		if len(a.held) > 0 {
			parts = append(parts, obstacles(a.held))
		}
		return verdict{false, v1alpha1.ReasonRestarting, strings.Join(parts, "; ")}, true
	}
}

// unfinished tells whether a condition says that workloads are to be restarted.
func unfinished(adopted *metav1.Condition) bool {
	return adopted != nil && adopted.Status == metav1.ConditionFalse && adopted.Reason != v1alpha1.ReasonRestartDisabled
}

// windowMessage says what waits for a window, and warns of one that comes too
// late.
func (p *plan) windowMessage(active *v1alpha1.CredentialVersion) string {
	message := fmt.Sprintf("%s to be restarted for version %d in the next of spec.restart.windows", names(p.adoption.stale), active.Version)
	opening := p.settings.RestartCalendar.Opening(p.now)
	switch v := p.latestIn(v1alpha1.VersionSuperseded); {
	case v == nil:
		message += "; what they run with is accepted no more: restart them by hand if that cannot wait"
	case v.Superseded != nil && v.Superseded.Add(p.settings.MaxOverlap).Before(opening):
		message += ", which comes after what they run with has ended: restart them before, and make spec.rotation.maxOverlap longer"
	}
	return message
}

// adoptedMessage says what runs with the active version, as it was when the last
// of it was found to.
func (p *plan) adoptedMessage(active *v1alpha1.CredentialVersion) string {
	before := meta.FindStatusCondition(p.status.Conditions, v1alpha1.ConditionAdopted)
	switch {
	case p.adoption != nil:
		message := fmt.Sprintf("no workload runs with a version before %d", active.Version)
		if len(p.adoption.proved) > 0 {
			message = fmt.Sprintf("%s restarted for version %d", names(p.adoption.proved), active.Version)
		}
		if missing := p.Restarts.Missing; len(missing) > 0 {
			message += fmt.Sprintf("; %s named in spec.restart.workloads and not there", names(missing))
		}
		return message
	case before != nil && before.Reason == v1alpha1.ReasonAdopted:
		return before.Message
	default:
		return fmt.Sprintf("restarts begin with the version after %d", active.Version)
	}
}

func (p *plan) failedMessage(active *v1alpha1.CredentialVersion) string {
	message := fmt.Sprintf("%s; nothing else is restarted for version %d until that is put right", obstacles(slices.Concat(p.adoption.failed, p.adoption.refused)), active.Version)
	if p.latestIn(v1alpha1.VersionSuperseded) != nil && p.settings.Retire != v1alpha1.RetireImmediately {
		message += ", and what came before it is accepted until spec.rotation.maxOverlap"
	}
	return message
}

// reportAdoption writes the condition, and tells of a failure once.
func (p *plan) reportAdoption(active *v1alpha1.CredentialVersion) {
	v, tells := p.adoptedCondition(active)
	if !tells {
		meta.RemoveStatusCondition(&p.status.Conditions, v1alpha1.ConditionAdopted)
		return
	}
	before := meta.FindStatusCondition(p.status.Conditions, v1alpha1.ConditionAdopted)
	if v.reason == v1alpha1.ReasonRestartFailed && (before == nil || before.Reason != v.reason) {
		p.event(true, v.reason, "%s", v.message)
	}
	p.condition(v1alpha1.ConditionAdopted, v)
}

func obstacles(all []obstacle) string {
	texts := make([]string, 0, len(all))
	for _, o := range all[:min(len(all), 3)] {
		texts = append(texts, o.String()+" "+o.why)
	}
	if more := len(all) - len(texts); more > 0 {
		texts = append(texts, fmt.Sprintf("%d more", more))
	}
	return strings.Join(texts, "; ")
}

// names lists workloads, with the verb that fits their number.
func names(all []WorkloadName) string {
	texts := make([]string, len(all))
	for i, n := range slices.SortedFunc(slices.Values(all), WorkloadName.compare) {
		texts[i] = n.String()
	}
	verb := "are"
	if len(all) == 1 {
		verb = "is"
	}
	return list(texts) + " " + verb
}

func validateRestart(at *field.Path, r *v1alpha1.Restart) field.ErrorList {
	if r == nil {
		return nil
	}
	errs := validateSelector(at.Child("selector"), r.Selector)
	if len(r.Workloads) == 0 && r.Selector == nil && !r.Consumers { // the schema takes an empty list for a list
		errs = append(errs, field.Required(at, "chooses nothing: name workloads, give a selector, or say consumers: true"))
	}
	_, windows := parseWindows(at.Child("windows"), r.Windows)
	errs = append(errs, windows...)
	return append(errs, validateLength(at.Child("timeout"), r.Timeout, false, time.Minute)...)
}
