package controllers

import (
	"fmt"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

func TestTheSelectorOfARevocationIsCompiledOnceAndIsItsOwn(t *testing.T) {
	revocation := func(uid types.UID, generation int64, app string) *v1alpha1.Revocation {
		rv := &v1alpha1.Revocation{ObjectMeta: metav1.ObjectMeta{UID: uid, Generation: generation}}
		if app != "" {
			rv.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}
		}
		return rv
	}
	var s selectors
	a := map[string]string{"app": "a"}
	for sentence, test := range map[string]struct {
		rv    *v1alpha1.Revocation
		takes bool
	}{
		"its own":                       {revocation("1", 1, "a"), true},
		"another":                       {revocation("2", 1, "b"), false},
		"changed, though it should not": {revocation("1", 2, "b"), false},
		"one that says nothing":         {revocation("3", 1, ""), false},
	} {
		for range 2 {
			if got := s.of(test.rv).Selects(v1alpha1.KindAPIKey, "ns", a); got != test.takes {
				t.Errorf("%s: takes it: %t", sentence, got)
			}
		}
	}
	rv := revocation("1", 1, "a")
	if first := s.of(rv); s.of(rv) != first {
		t.Error("compiled twice")
	}
	for i := range 1000 {
		s.of(revocation(types.UID(fmt.Sprint("gone-", i)), 1, "a"))
		if s.trim(4); len(s.compiled) > 80 {
			t.Fatalf("%d are kept, where there are four", len(s.compiled))
		}
	}
}
