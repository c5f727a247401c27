package lifecycle

import (
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// Selector is a RevocationSpec, compiled: which credentials it takes. It is safe
// for concurrent use.
type Selector struct {
	all        bool
	kinds      []string
	namespaces []string
	labels     labels.Selector
}

// NewSelector compiles a spec. One that narrows by nothing and does not say all
// selects nothing, as does the one returned with an error.
func NewSelector(spec *v1alpha1.RevocationSpec) (Selector, error) {
	s := Selector{all: spec.All, kinds: spec.Kinds, namespaces: spec.Namespaces}
	if spec.Selector != nil && len(spec.Selector.MatchLabels)+len(spec.Selector.MatchExpressions) > 0 {
		selector, err := metav1.LabelSelectorAsSelector(spec.Selector)
		if err != nil {
			return Selector{}, fmt.Errorf("spec.selector: %w", err)
		}
		s.labels = selector
	}
	return s, nil
}

// Selects tells whether the revocation takes a credential, by any one of its
// sets of labels: as they are, and as they were sealed. So nobody slips a
// revocation by relabelling.
func (s Selector) Selects(kind v1alpha1.Kind, namespace string, labelSets ...map[string]string) bool {
	if s.all {
		return true
	}
	if len(s.kinds) == 0 && len(s.namespaces) == 0 && s.labels == nil {
		return false
	}
	if len(s.kinds) > 0 && !slices.Contains(s.kinds, string(kind)) {
		return false
	}
	if len(s.namespaces) > 0 && !slices.Contains(s.namespaces, namespace) {
		return false
	}
	return s.labels == nil || slices.ContainsFunc(labelSets, func(set map[string]string) bool { return s.labels.Matches(labels.Set(set)) })
}
