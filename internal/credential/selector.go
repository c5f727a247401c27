package credential

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// Selector is a RevocationSpec, compiled: which credentials it takes. Controller
// and servers ask the same one. It is safe for concurrent use; its zero value
// selects nothing.
type Selector struct {
	all        bool
	kinds      []string
	namespaces []string
	labels     labels.Selector // nil where the spec has none
}

// NewSelector compiles a spec. A spec that narrows by nothing and does not say
// all is an error, and so is an empty label selector, which would select
// everything and is no way to say so. The Selector returned with an error selects
// nothing.
func NewSelector(spec *v1alpha1.RevocationSpec) (Selector, error) {
	s := Selector{all: spec.All, kinds: clones(spec.Kinds), namespaces: clones(spec.Namespaces)}
	if spec.Selector != nil {
		selector, err := metav1.LabelSelectorAsSelector(spec.Selector)
		if err != nil {
			return Selector{}, fmt.Errorf("spec.selector cannot be read, so nothing is revoked by it: create another Revocation: %w", err)
		}
		if selector.Empty() {
			return Selector{}, errors.New("spec.selector is empty, so nothing is revoked by it: create another Revocation, with all: true if that is meant")
		}
		s.labels = selector
	}
	if !s.all && s.kinds == nil && s.namespaces == nil && s.labels == nil {
		return Selector{}, errors.New("spec selects nothing, so nothing is revoked by it: create another Revocation, with all: true if everything is meant")
	}
	return s, nil
}

// clones keeps a long-lived selector from holding on to the buffer an object was
// decoded from. It is nil where there is nothing.
func clones(list []string) []string {
	var out []string
	for _, s := range list {
		out = append(out, strings.Clone(s))
	}
	return out
}

// Namespaces are those the selector is narrowed to; nil is all of them.
func (s *Selector) Namespaces() []string {
	if s.all {
		return nil
	}
	return s.namespaces
}

// Fingerprint is one that the labels of whatever is selected have all bits of: that of the
// labels a credential must have, as far as the spec gives their values one by one. It is 0
// where it gives none.
func (s *Selector) Fingerprint() uint64 {
	if s.all || s.labels == nil {
		return 0
	}
	var bits uint64
	requirements, _ := s.labels.Requirements()
	for _, r := range requirements {
		values := r.ValuesUnsorted()
		switch r.Operator() {
		case selection.Equals, selection.DoubleEquals, selection.In:
			if len(values) == 1 {
				bits |= bitsOf(r.Key(), values[0])
			}
		}
	}
	return bits
}

// Fingerprint of labels has all bits of the fingerprints of their parts. To compare two
// finds out quickly that there is a label missing, which is so for most credentials that a
// Selector is asked about.
func Fingerprint(labels map[string]string) uint64 {
	var bits uint64
	for key, value := range labels {
		bits |= bitsOf(key, value)
	}
	return bits
}

// bitsOf a label are two bits of 64.
func bitsOf(key, value string) uint64 {
	h := fnv.New64a()
	_, _ = io.WriteString(h, key+"="+value)
	sum := h.Sum64()
	return 1<<(sum>>58) | 1<<(sum>>52&63)
}

// Selects tells whether a credential is taken, by any one of its sets of labels:
// as they are, and, where there is a record, as they were sealed. So nobody slips
// a revocation by relabelling.
func (s *Selector) Selects(kind v1alpha1.Kind, namespace string, labelSets ...map[string]string) bool {
	switch {
	case s.all:
		return true
	case s.kinds == nil && s.namespaces == nil && s.labels == nil:
		return false
	case s.kinds != nil && !slices.Contains(s.kinds, string(kind)):
		return false
	case s.namespaces != nil && !slices.Contains(s.namespaces, namespace):
		return false
	}
	return s.labels == nil || slices.ContainsFunc(labelSets, func(set map[string]string) bool { return s.labels.Matches(labels.Set(set)) })
}
