package webhook_test

import (
	"errors"
	"fmt"
	"hash/fnv"
	"strings"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

var (
	digestA         = strings.Repeat("a1", 32)
	digestB         = strings.Repeat("b2", 32)
	errStillAllowed = errors.New("the change is still allowed")
)

// userOf is a user of the test's own.
func userOf(t *testing.T) string {
	hash := fnv.New64a()
	fmt.Fprint(hash, t.Name())
	return fmt.Sprintf("user-%x", hash.Sum64())
}

func now() string { return time.Now().UTC().Format(time.RFC3339) }

func labelled(key, value string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{key: value}}
}

func metaNamed(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Name: name} }

func patches(resource string, names ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{APIGroups: []string{"apps"}, Resources: []string{resource}, ResourceNames: names, Verbs: []string{"patch"}}
}

func unstructuredToken(namespace, name string, spec map[string]any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "mintmark.dev/v1alpha1", "kind": "ServiceToken",
		"metadata": map[string]any{"namespace": namespace, "name": name}, "spec": spec,
	}}
}
