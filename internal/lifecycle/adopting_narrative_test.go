package lifecycle

import (
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// The part of the narratives' world that has workloads in it.

// workloadCommand carries out the commands about workloads, and tells whether
// this was one.
func (w *world) workloadCommand(args []string) bool {
	switch args[0] {
	case "restarts": // restarts on | off: whether the installation restarts workloads
		w.o.Restarts.Enabled = args[1] == "on"
	case "workload": // workload NAME: there is a Deployment, chosen by spec.restart
		w.o.Restarts.Workloads = append(w.o.Restarts.Workloads, Workload{
			WorkloadName: WorkloadName{w.o.Namespace, "Deployment", args[1]}, Created: w.now,
		})
	case "rollout": // rollout NAME complete | failed | rolling | paused | manual | idle
		w.workload(args[1]).Rollout = map[string]Rollout{
			"complete": RolloutComplete, "failed": RolloutFailed, "rolling": RolloutRolling, "paused": RolloutPaused,
			"manual": RolloutManual, "idle": RolloutIdle,
		}[args[2]]
	case "put-back": // put-back NAME: somebody deploys the pod template of before
		w.workload(args[1]).Restarted = time.Time{}
		w.workload(args[1]).Rollout = RolloutRolling
	case "by-hand": // by-hand NAME: kubectl rollout restart, and it has rolled out
		w.workload(args[1]).Restarted = w.now
		w.workload(args[1]).Rollout = RolloutComplete
	default:
		return false
	}
	w.run()
	return true
}

func (w *world) workload(name string) *Workload {
	for i := range w.o.Restarts.Workloads {
		if found := &w.o.Restarts.Workloads[i]; found.Name == name {
			return found
		}
	}
	w.t.Fatalf("there is no workload %s", name)
	return nil
}

// restart is the part of the controller that restarts workloads. It tells
// whether it did.
func (w *world) restart(d *Decision) bool {
	wishes := map[WorkloadName][]RestartWish{}
	for _, wish := range d.Restarts {
		wishes[wish.Workload] = append(wishes[wish.Workload], wish)
	}
	orders, next := NextRestarts(wishes, w.o.Created, 2, w.now)
	w.next = earliest(w.next, next)
	for _, order := range orders {
		found := w.workload(order.Workload.Name)
		found.Restarted, found.Recorded = later(w.now, order.After.Add(time.Second)), w.now
		if found.Rollout != RolloutManual {
			found.Rollout = RolloutRolling
		}
		w.say("restart %s", order.Workload)
	}
	return len(orders) > 0
}

func (w *world) sayAdopted(before *v1alpha1.CredentialStatus) {
	c, old := meta.FindStatusCondition(w.o.Status.Conditions, v1alpha1.ConditionAdopted), meta.FindStatusCondition(before.Conditions, v1alpha1.ConditionAdopted)
	if c != nil && (old == nil || old.Reason != c.Reason || old.Message != c.Message) {
		w.say("        Adopted=%s %s: %s", c.Status, c.Reason, strings.TrimSpace(c.Message))
	}
}
