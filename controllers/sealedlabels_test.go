package controllers

import (
	"crypto/rand"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"

	"github.com/mintmark-dev/mintmark/internal/credential"
)

func TestLabelsAsTheyAreAndAsTheyWereSealed(t *testing.T) {
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		t.Fatal(err)
	}
	pepper, err := credential.NewPepper("p1", key)
	if err != nil {
		t.Fatal(err)
	}
	peppers := credential.Peppers{pepper}
	s, o := newSealedLabels(), serviceTokens.new()
	o.SetUID("u")
	seal := func(labels map[string]string) {
		t.Helper()
		record, tag, err := (&credential.Record{UID: "u", Labels: labels}).Seal(pepper)
		if err != nil {
			t.Fatal(err)
		}
		o.CredentialStatus().Record, o.CredentialStatus().Seal = record, tag
	}
	type labels = map[string]string
	expect := func(what string, want ...labels) {
		t.Helper()
		for range 2 { // looked up, and remembered
			if diff := cmp.Diff(want, s.sets(peppers, o)); diff != "" {
				t.Errorf("%s: %s", what, diff)
			}
		}
	}
	o.SetLabels(labels{"app": "a"})
	expect("what was never sealed", labels{"app": "a"})
	seal(labels{"app": "a"})
	expect("what was sealed as it is", labels{"app": "a"})
	o.SetLabels(labels{"app": "b"})
	expect("what was changed since", labels{"app": "b"}, labels{"app": "a"})
	seal(labels{"app": "b"})
	expect("what was sealed again", labels{"app": "b"})
	o.CredentialStatus().Record = append([]byte{}, "not what was sealed"...)
	o.SetLabels(labels{"app": "c"})
	expect("a record that was changed under its seal", labels{"app": "c"}, labels{"app": "b"})
	o.CredentialStatus().Seal = "p1.forged"
	expect("a seal that does not hold", labels{"app": "c"})

	for i := range 3000 {
		s.of[types.UID(rune(i))] = labelsSealed{}
	}
	s.prune(1)
	if len(s.of) != 0 {
		t.Errorf("%d are remembered of one that there is", len(s.of))
	}
}
