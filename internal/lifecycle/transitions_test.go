package lifecycle

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// told are the transitions in status, as "Type version".
func (w *world) told() (all []string) {
	for _, t := range w.o.Status.Transitions {
		all = append(all, fmt.Sprintf("%s %d", t.Type, t.Version))
	}
	return all
}

func TestEachChangeOfAVersionIsATransition(t *testing.T) {
	for what, tc := range map[string]struct {
		commands []string
		want     []string
	}{
		"minted, and delivered": {[]string{"run"}, []string{"Minted 1", "Delivered 1"}},
		"rotated, and the previous version retired": {
			[]string{"run", "wait 100d"}, []string{"Minted 1", "Delivered 1", "Minted 2", "Rotated 2", "Retired 1"},
		},
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t, &v1alpha1.CredentialSpec{Permissions: []v1alpha1.Permission{"api:read"}})
			for _, c := range tc.commands {
				w.command(strings.Fields(c))
			}
			if diff := cmp.Diff(tc.want, w.told()); diff != "" {
				t.Errorf("the transitions differ (-want +got):\n%s", diff)
			}
		})
	}
}

func TestARevocationIsATransitionOfEachVersion(t *testing.T) {
	w := newWorld(t, &v1alpha1.CredentialSpec{Permissions: []v1alpha1.Permission{"api:read"}})
	w.command([]string{"run"})
	w.o.Spec.Revoked = &v1alpha1.Revoked{Reason: "leaked"}
	w.command([]string{"run"})
	if diff := cmp.Diff([]string{"Minted 1", "Delivered 1", "Revoked 1"}, w.told()); diff != "" {
		t.Error(diff)
	}
	last := w.o.Status.Transitions[2]
	if !strings.Contains(last.Reason, "leaked") || last.At.IsZero() {
		t.Errorf("the revocation is told as %+v", last)
	}
	before := len(w.o.Status.Transitions)
	w.command([]string{"run"})
	if len(w.o.Status.Transitions) != before {
		t.Errorf("told again: %v", w.told())
	}
	seen := map[string]bool{}
	for _, tr := range w.o.Status.Transitions {
		if seen[tr.ID] || len(tr.ID) != 36 {
			t.Errorf("the id %q is there twice, or is none", tr.ID)
		}
		seen[tr.ID] = true
	}
}

// Who asked for a version is seldom who ended it, and nobody is told to have done what
// came by itself.
func TestATransitionNamesWhoWantedIt(t *testing.T) {
	for what, tc := range map[string]struct {
		commands []string
		want     []string
	}{
		"a rotation that was asked for, an overlap that ends, and a rotation that was due": {
			[]string{"by ann", "run", "rotate leaked", "by bob", "wait 100d"},
			[]string{"Minted 1 ann", "Delivered 1 ann", "Minted 2 alice", "Rotated 2 alice", "Retired 1 ", "Minted 3 ", "Rotated 3 ", "Retired 2 "},
		},
		"the end of a version that nothing replaces": {
			[]string{"by ann", "spec rotation {every: Never}", "by bob", "wait 181d"}, []string{"Minted 1 ann", "Delivered 1 ann", "Expired 1 "},
		},
		"a revocation of the whole": {
			[]string{"by ann", "run", "by bob", "revoke leaked"}, []string{"Minted 1 ann", "Delivered 1 ann", "Revoked 1 bob"},
		},
		"a revocation of one version": {
			[]string{"by ann", "run", "by bob", "revoke 1 leaked"}, []string{"Minted 1 ann", "Delivered 1 ann", "Revoked 1 bob", "Minted 2 ", "Rotated 2 "},
		},
		"a rollback, and a discard": {
			[]string{"by ann", "run", "rotate for CI", "by bob", "rollback", "by carol", "wait 1s", "discard"},
			[]string{"Minted 1 ann", "Delivered 1 ann", "Minted 2 alice", "Rotated 2 alice", "RolledBack 1 bob", "Retired 2 carol"},
		},
		"the values of a holder that change places, and back, and one that is taken out": {
			[]string{"by ann", "declare a b", "declare b a", "by bob", "declare a b", "by carol", "declare a"},
			[]string{"Minted 1 ann", "Delivered 1 ann", "Minted 2 ann", "Rotated 2 ann", "RolledBack 1 bob", "Retired 2 carol"},
		},
		"a name that the schema has no room for": {
			[]string{"run", "by " + strings.Repeat("x", 600), "revoke leaked"},
			[]string{"Minted 1 ", "Delivered 1 ", "Revoked 1 " + strings.Repeat("x", maxActor)},
		},
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t, &v1alpha1.CredentialSpec{Permissions: []v1alpha1.Permission{"api:read"}})
			for _, c := range tc.commands {
				words := strings.Fields(c)
				if words[0] == "by" {
					w.o.Annotations[v1alpha1.AnnotationRequestedBy], w.o.Annotations[v1alpha1.AnnotationRevokedBy] = words[1], words[1]
					continue
				}
				w.command(words)
			}
			var got []string
			for _, tr := range w.o.Status.Transitions {
				got = append(got, fmt.Sprintf("%s %d %s", tr.Type, tr.Version, tr.Actor))
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("the transitions differ (-want +got):\n%s", diff)
			}
		})
	}
}

// Why a version was made is not why it was gone back to.
func TestARollbackHasAReasonOfItsOwn(t *testing.T) {
	for reason, want := range map[string]string{"not yet": "not yet", "": "Requested"} {
		w := newWorld(t, &v1alpha1.CredentialSpec{Permissions: []v1alpha1.Permission{"api:read"}})
		w.command([]string{"run"})
		w.command([]string{"rotate", "quarterly"})
		w.o.Annotations[v1alpha1.AnnotationReason] = reason
		w.command([]string{"rollback"})
		if last := w.o.Status.Transitions[len(w.o.Status.Transitions)-1]; last.Type != v1alpha1.ReasonRolledBack || last.Reason != want {
			t.Errorf("asked for with %q, it is told as %s because of %q", reason, last.Type, last.Reason)
		}
	}
}

func TestTransitionsThatNobodyStoresMakeRoomAndSaySo(t *testing.T) {
	w := newWorld(t, &v1alpha1.CredentialSpec{Permissions: []v1alpha1.Permission{"api:read"}})
	for i := range MaxTransitions {
		w.o.Status.Transitions = append(w.o.Status.Transitions, v1alpha1.Transition{ID: fmt.Sprint(i), Type: "Rotated", Version: int64(i)})
	}
	w.command([]string{"run"})
	all := w.o.Status.Transitions
	if len(all) != MaxTransitions || all[0].Type != TransitionLost || all[0].Version != 3 || all[len(all)-1].Type != TransitionDelivered {
		t.Fatalf("%d transitions, the first %+v, the last %+v; want %d, of which the first stands for 3", len(all), all[0], all[len(all)-1], MaxTransitions)
	}
}

func TestATransitionIDIsOfTheStatusItIsWorkedOutFrom(t *testing.T) {
	now := time.Unix(1, 0)
	id := transitionID("u", "Rotated", 2, 7, 0, now)
	for what, other := range map[string]string{
		"another object": transitionID("v", "Rotated", 2, 7, 0, now), "another change": transitionID("u", "Retired", 2, 7, 0, now),
		"another version": transitionID("u", "Rotated", 3, 7, 0, now), "another epoch": transitionID("u", "Rotated", 2, 8, 0, now),
		"another time": transitionID("u", "Rotated", 2, 7, 0, now.Add(1)),
	} {
		if other == id {
			t.Errorf("%s has the same id", what)
		}
	}
	if later := transitionID("u", "Minted", 1, 7, 1, now); later <= id {
		t.Errorf("%s comes after %s, and does not sort so", later, id)
	}
	if transitionID("u", "Rotated", 2, 7, 0, now) != id {
		t.Error("the same has another id")
	}
}

func TestALongReasonFitsIntoATransition(t *testing.T) {
	w := newWorld(t, &v1alpha1.CredentialSpec{Permissions: []v1alpha1.Permission{"api:read"}})
	w.command([]string{"run"})
	w.o.Spec.Revoked = &v1alpha1.Revoked{Reason: strings.Repeat("ü", 1024)}
	w.command([]string{"run"})
	for _, tr := range w.o.Status.Transitions {
		if len(tr.Reason) > maxTransitionReason {
			t.Errorf("%s %d has a reason of %d bytes, and the API allows %d", tr.Type, tr.Version, len(tr.Reason), maxTransitionReason)
		}
	}
}
