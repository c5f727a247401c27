package credential_test

import (
	"strconv"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

func TestSelectorSelects(t *testing.T) {
	labelled := &metav1.LabelSelector{MatchLabels: map[string]string{"app": "x"}}
	for name, test := range map[string]struct {
		spec         v1alpha1.RevocationSpec
		live, sealed map[string]string
		want         bool
	}{
		"everything":                        {v1alpha1.RevocationSpec{All: true}, nil, nil, true},
		"its kind":                          {v1alpha1.RevocationSpec{Kinds: []string{"ServiceToken"}}, nil, nil, true},
		"another kind":                      {v1alpha1.RevocationSpec{Kinds: []string{"APIKey"}}, nil, nil, false},
		"its namespace":                     {v1alpha1.RevocationSpec{Namespaces: []string{"a", "payments"}}, nil, nil, true},
		"another namespace":                 {v1alpha1.RevocationSpec{Namespaces: []string{"a"}}, nil, nil, false},
		"its namespace, but another kind":   {v1alpha1.RevocationSpec{Namespaces: []string{"payments"}, Kinds: []string{"APIKey"}}, nil, nil, false},
		"its labels":                        {v1alpha1.RevocationSpec{Selector: labelled}, map[string]string{"app": "x"}, nil, true},
		"its labels of before the relabel":  {v1alpha1.RevocationSpec{Selector: labelled}, nil, map[string]string{"app": "x"}, true},
		"other labels":                      {v1alpha1.RevocationSpec{Selector: labelled}, map[string]string{"app": "y"}, map[string]string{}, false},
		"its labels, but another namespace": {v1alpha1.RevocationSpec{Selector: labelled, Namespaces: []string{"a"}}, map[string]string{"app": "x"}, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := credential.NewSelector(&test.spec)
			if err != nil {
				t.Fatal(err)
			}
			if got := s.Selects(v1alpha1.KindServiceToken, "payments", test.live, test.sealed); got != test.want {
				t.Errorf("selects: %t", got)
			}
		})
	}
	for name, spec := range map[string]v1alpha1.RevocationSpec{
		"nothing said":              {},
		"an empty selector":         {Selector: &metav1.LabelSelector{}},
		"an empty one beside kinds": {Kinds: []string{"APIKey"}, Selector: &metav1.LabelSelector{}},
		"a selector that is none":   {Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"a b": "c"}}},
	} {
		if s, err := credential.NewSelector(&spec); err == nil || s.Selects(v1alpha1.KindAPIKey, "a", nil) {
			t.Errorf("%s selects (%v)", name, err)
		}
	}
	var zero credential.Selector
	if zero.Selects(v1alpha1.KindAPIKey, "a", nil) {
		t.Error("the zero value selects")
	}
}

// To ask the fingerprint first must change no answer.
func TestAFingerprintHasThatOfWhateverSelectsIt(t *testing.T) {
	labelled := func(n int) map[string]string {
		labels := map[string]string{}
		for i, value := range []string{"", "a", "b"} {
			if n>>i&1 == 1 {
				labels["key-"+strconv.Itoa(i)] = value
			}
		}
		return labels
	}
	expressions := []metav1.LabelSelectorRequirement{
		{Key: "key-1", Operator: metav1.LabelSelectorOpIn, Values: []string{"a"}}, {Key: "key-1", Operator: metav1.LabelSelectorOpIn, Values: []string{"a", "b"}},
		{Key: "key-1", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"b"}}, {Key: "key-2", Operator: metav1.LabelSelectorOpExists},
		{Key: "key-2", Operator: metav1.LabelSelectorOpDoesNotExist},
	}
	passed := map[bool]int{}
	for n := range 8 {
		for m := range len(expressions) + 1 {
			selector := &metav1.LabelSelector{MatchLabels: labelled(n), MatchExpressions: expressions[:m]}
			for _, all := range []bool{false, true} {
				s, err := credential.NewSelector(&v1alpha1.RevocationSpec{All: all, Kinds: []string{"ServiceToken"}, Selector: selector})
				if err != nil {
					continue // an empty selector
				}
				for k := range 8 {
					fits := credential.Fingerprint(labelled(k))&s.Fingerprint() == s.Fingerprint()
					if s.Selects(v1alpha1.KindServiceToken, "payments", labelled(k)) && !fits {
						t.Errorf("%v (all: %t) selects %v, which has not its fingerprint", selector, all, labelled(k))
					}
					passed[fits]++
				}
			}
		}
	}
	if passed[false] < passed[true]/4 {
		t.Errorf("fingerprints tell apart too little to be worth anything: %v", passed)
	}
	var zero credential.Selector
	if zero.Fingerprint() != 0 || credential.Fingerprint(nil) != 0 {
		t.Error("nothing has a fingerprint")
	}
}
