package credential_test

import (
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
