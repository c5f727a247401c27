package lifecycle

import (
	"bytes"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// Whatever happens to a credential, in whatever order, once the controller has
// come to rest: at most one version is active, the Secret carries it and no
// value that is not accepted, numbers only grow, what has ended stays ended, and
// the status does not change again by itself. Another controller that begins, or a clock
// that jumps back, makes no version where none was on its way.
func TestPlanKeepsTheInvariants(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		spec := &v1alpha1.CredentialSpec{Permissions: []v1alpha1.Permission{"api:read"}}
		retire := rapid.SampledFrom([]v1alpha1.RetirePolicy{"", v1alpha1.RetireAfterOverlap, v1alpha1.RetireImmediately}).Draw(rt, "retire")
		spec.Rotation = &v1alpha1.Rotation{Every: rapid.SampledFrom([]v1alpha1.Duration{"", "10d", v1alpha1.Never}).Draw(rt, "every"), Retire: retire}
		w := newWorld(t, spec)
		commands := [][]string{
			{"run"}, {"wait", "1h"}, {"wait", "30d"}, {"wait", "200d"}, {"rotate", "x"}, {"rollback"}, {"discard"}, {"revoke", "1", "x"}, {"revoke", "3", "x"}, {"revoke", "all"},
			{"revocation", "a"}, {"revocation", "b", "replace"}, {"servers", "lag"}, {"servers", "accept"}, {"restart"},
			{"crash", "after", "commit"}, {"crash", "after", "deliver"}, {"crash", "after", "promote"},
			{"secret", "deleted"}, {"secret", "edited"}, {"clock", "wrong"}, {"clock", "right"}, {"write", "refused"}, {"write", "allowed"}, {"used", "1", "2"},
			{"spec", "permissions", `["mintmark:admin"]`}, {"spec", "permissions", `["api:write"]`}, {"spec", "ttl", "5d"},
			{"another controller"}, {"a clock that jumps back"},
		}
		ended := map[int64]bool{}
		var highest int64
		for range rapid.IntRange(1, 25).Draw(rt, "steps") {
			command := rapid.SampledFrom(commands).Draw(rt, "command")
			w.now = w.now.Add(time.Minute)
			switch command[0] {
			case "another controller":
				checkNothingNew(rt, w, func() { w.command([]string{"restart"}) })
			case "a clock that jumps back":
				checkNothingNew(rt, w, func() {
					w.now = w.now.Add(-24 * time.Hour)
					w.run()
				})
			default:
				w.command(command)
			}
			checkRest(rt, w, ended, &highest)
		}
		w.crashing = ""
		w.now = w.now.Add(time.Minute)
		w.run()
		w.out = bytes.Buffer{}
		w.run()
		if w.out.Len() > 0 {
			rt.Fatalf("at rest, and yet: %s", w.out.String())
		}
	})
}

// checkNothingNew checks that something makes no version, of a credential that has come
// to rest.
func checkNothingNew(t *rapid.T, w *world, happens func()) {
	w.run()
	p := &plan{Observed: &w.o, status: w.o.Status}
	before, onItsWay := p.latest(), p.pending() != nil
	happens()
	if after := (&plan{Observed: &w.o, status: w.o.Status}).latest(); after != before && !onItsWay {
		t.Fatalf("version %d was made of itself: %s", after, w.versions())
	}
}

func checkRest(t *rapid.T, w *world, ended map[int64]bool, highest *int64) {
	active, live := int64(0), map[int64]bool{}
	for _, v := range w.o.Status.Versions {
		if v.State.Live() {
			live[v.Version] = true
			if ended[v.Version] {
				t.Fatalf("version %d came back to life as %s", v.Version, v.State)
			}
		} else {
			ended[v.Version] = true
		}
		if v.State == v1alpha1.VersionActive {
			if active != 0 {
				t.Fatalf("versions %d and %d are both active", active, v.Version)
			}
			active = v.Version
		}
	}
	latest := (&plan{Observed: &w.o, status: w.o.Status}).latest()
	if latest < *highest {
		t.Fatalf("the latest version was %d and is %d", *highest, latest)
	}
	*highest = latest
	s := w.o.Secret
	// What keeps a dead value in the Secret is that nothing may be written, or
	// that its replacement is on its way.
	waiting := w.refused != "" || (&plan{Observed: &w.o, status: w.o.Status}).pending() != nil || w.lagging || w.o.Class == nil
	for _, value := range []int64{s.Current, s.Previous} {
		if s.Ours && value != 0 && !live[value] && !waiting {
			t.Fatalf("the Secret carries version %d, which is not accepted: %s", value, w.versions())
		}
	}
	if active != 0 && s.Ours && s.Current > active {
		t.Fatalf("version %d was delivered and %d is active", s.Current, active)
	}
}

// Whoever asks for rotations faster than the overlap lets versions go, and
// whatever controller dies with a value it has committed: the versions fit into
// status, and what was asked for is made once there is room.
func TestVersionsNeverOutgrowStatus(t *testing.T) {
	for name, crash := range map[string]string{"rotated again and again": "", "lost again and again": "commit"} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, &v1alpha1.CredentialSpec{Permissions: []v1alpha1.Permission{"api:read"}, Rotation: &v1alpha1.Rotation{Retire: v1alpha1.RetireAfterOverlap}})
			if crash != "" {
				w.refused = "exceeded quota" // so that what is lost stays lost
			}
			for range 100 {
				w.now = w.now.Add(time.Second)
				w.command([]string{"rotate", "again"})
				if crash != "" {
					w.command([]string{"restart"})
				}
				const schema = 64
				if n := len(w.o.Status.Versions); n > schema {
					t.Fatalf("%d versions in status: the API server refuses that", n)
				}
			}
			before := (&plan{Observed: &w.o, status: w.o.Status}).latest()
			w.command([]string{"write", "allowed"})
			w.command([]string{"wait", "25h"})
			w.command([]string{"rotate", "and", "again"})
			p := &plan{Observed: &w.o, status: w.o.Status}
			if p.active() == nil || p.live() > 2 || p.latest() != before+1 && crash == "" {
				t.Errorf("it does not recover: %s", w.versions())
			}
		})
	}
}
