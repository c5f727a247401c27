package controllers

import (
	"testing"

	"k8s.io/apimachinery/pkg/types"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

func TestAValueIsHeldOnlyWhileItsVersionIsPending(t *testing.T) {
	key := types.NamespacedName{Namespace: "payments", Name: "ci"}
	version := func(state v1alpha1.VersionState, digest string) *v1alpha1.CredentialStatus {
		return &v1alpha1.CredentialStatus{Versions: []v1alpha1.CredentialVersion{{Version: 2, State: state, Digest: digest}}}
	}
	for name, test := range map[string]struct {
		status *v1alpha1.CredentialStatus
		held   int64
		kept   bool
	}{
		"Pending":                      {version(v1alpha1.VersionPending, "a"), 2, true},
		"a status of before":           {&v1alpha1.CredentialStatus{}, 0, true},
		"delivered":                    {version(v1alpha1.VersionActive, "a"), 0, false},
		"revoked before delivery":      {version(v1alpha1.VersionRevoked, "a"), 0, false},
		"committed by somebody else":   {version(v1alpha1.VersionPending, "b"), 0, false},
		"never heard of, by any other": {&v1alpha1.CredentialStatus{Versions: []v1alpha1.CredentialVersion{{Version: 1, State: v1alpha1.VersionActive}}}, 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMemory()
			m.hold(key, "uid", &heldValue{version: 2, digest: "a"})
			if got := m.held(key, "uid", test.status); got != test.held {
				t.Errorf("held is version %d, want %d", got, test.held)
			}
			if kept := m.pending(key, "uid") != nil; kept != test.kept {
				t.Errorf("the value is kept: %t", kept)
			}
		})
	}
}

func TestForgettingANameSparesItsNewOwner(t *testing.T) {
	m, key := newMemory(), types.NamespacedName{Namespace: "payments", Name: "ci"}
	m.wrote(key, "old", "2", "1")
	if uid, ok := m.forget(key, "old"); ok {
		t.Errorf("%s was forgotten, and still has the name", uid)
	}
	if uid, ok := m.forget(key, "new"); !ok || uid != "old" {
		t.Errorf("forgot %q, %t: whoever had the name before is to be told of", uid, ok)
	}
	if m.outdated(key, "old", "1") || m.ours(key, "2") {
		t.Error("something is remembered")
	}
}

func TestOurOwnWritesAreKnownAgain(t *testing.T) {
	m, key := newMemory(), types.NamespacedName{Namespace: "payments", Name: "ci"}
	m.wrote(key, "uid", "2", "1") // the status
	m.wrote(key, "uid", "7", "")  // the Secret
	m.wrote(key, "uid", "2", "2") // a status that was none to the API server
	for version, want := range map[string]struct{ ours, outdated bool }{
		"1": {false, true}, "2": {true, false}, "7": {true, false}, "3": {false, false}, "": {false, false},
	} {
		if m.ours(key, version) != want.ours || m.outdated(key, "uid", version) != want.outdated {
			t.Errorf("%q: ours %t, outdated %t", version, m.ours(key, version), m.outdated(key, "uid", version))
		}
	}
	for range 3 * keptVersions {
		m.wrote(key, "uid", "9", "8")
	}
	if m.ours(key, "2") || len(m.entries[key].written) != keptVersions || len(m.entries[key].replaced) != keptVersions {
		t.Errorf("remembers %d and %d", len(m.entries[key].written), len(m.entries[key].replaced))
	}
}

// The event of a write can come before the answer to it, so while a reconcile is at a
// credential no event is judged.
func TestEventsOfAReconcileAreJudgedWhenItIsOver(t *testing.T) {
	key := types.NamespacedName{Namespace: "payments", Name: "ci"}
	for name, c := range map[string]struct {
		events []string
		others bool
	}{
		"none":                       {nil, false},
		"its own":                    {[]string{"2", "3"}, false},
		"another's":                  {[]string{"9"}, true},
		"another's between its own":  {[]string{"2", "9", "3"}, true},
		"of a write that was before": {[]string{"1"}, false},
	} {
		m := newMemory()
		m.wrote(key, "uid", "1", "0")
		m.begin(key)
		for _, version := range c.events {
			if !m.ours(key, version) {
				t.Errorf("%s: %s is looked at before the reconcile is over", name, version)
			}
		}
		m.wrote(key, "uid", "2", "1")
		m.wrote(key, "uid", "3", "")
		if others := m.end(key); others != c.others {
			t.Errorf("%s: others wrote: %t, want %t", name, others, c.others)
		}
		if m.ours(key, "9") || !m.ours(key, "2") || len(m.working) != 0 {
			t.Errorf("%s: after the reconcile events are judged as if it were going on", name)
		}
	}

	// One that has gone meanwhile has written nothing.
	m := newMemory()
	m.begin(key)
	m.ours(key, "2")
	if !m.end(key) {
		t.Error("an event of a credential that nothing is known of is taken for our own")
	}
}

func TestCacheAndMemoryHaveOneCopyOfARecord(t *testing.T) {
	key := types.NamespacedName{Namespace: "payments", Name: "ci"}
	written := []byte("a record")
	object := func(uid types.UID, record, seal string) *v1alpha1.ServiceToken {
		o := &v1alpha1.ServiceToken{}
		o.UID, o.Status.Record, o.Status.Seal = uid, []byte(record), seal
		return o
	}
	m := newMemory()
	m.cached(key, object("uid", "a record", "s1")) // of one that nothing is known of
	if m.sealed(key, "uid") != nil {
		t.Fatal("what the cache holds is believed, sealed or not")
	}
	m.remember(key, "uid", 3, written, "s1")
	for name, o := range map[string]*v1alpha1.ServiceToken{
		"another record": object("uid", "b record", "s1"), "another seal": object("uid", "a record", "s2"), "another credential": object("other", "a record", "s1"),
	} {
		if m.cached(key, o); string(m.sealed(key, "uid").record) != "a record" || &m.sealed(key, "uid").record[0] == &o.Status.Record[0] {
			t.Errorf("%s is taken for the one that was sealed", name)
		}
	}
	same := object("uid", "a record", "s1")
	m.cached(key, same)
	if known := m.sealed(key, "uid"); known.epoch != 3 || known.seal != "s1" || &known.record[0] != &same.Status.Record[0] {
		t.Errorf("there are two copies: %+v", known)
	}
}
