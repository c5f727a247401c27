package controllers

import (
	"bytes"
	"context"
	"slices"
	"unique"

	corev1 "k8s.io/api/core/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// Transform makes an object smaller before it is cached: without what nobody
// reads here, and with one copy of the texts that many objects have in common.
// It is for cache.Options, and keeps everything that is written back.
func Transform(o any) (any, error) {
	object, ok := o.(client.Object)
	if !ok {
		return o, nil // a tombstone
	}
	object.SetManagedFields(nil)
	object.SetLabels(sharedLabels(object.GetLabels()))
	object.SetNamespace(share(object.GetNamespace()))
	switch object := object.(type) {
	case v1alpha1.Credential:
		// Taken out here alone: the metadata in a write of the status is ignored.
		annotations := object.GetAnnotations()
		delete(annotations, corev1.LastAppliedConfigAnnotation)
		object.SetAnnotations(shared(annotations))
		shrinkSpec(object.CredentialSpec())
		shrinkStatus(object.CredentialStatus())
	case *corev1.Secret:
		object.Annotations = shared(object.Annotations)
		owners := object.OwnerReferences
		for i := range owners {
			owners[i].APIVersion, owners[i].Kind = share(owners[i].APIVersion), share(owners[i].Kind)
		}
		data := make(map[string][]byte, len(object.Data))
		for key, value := range object.Data {
			data[share(key)] = value
		}
		object.Data = data
	}
	return object, nil
}

// stored gives what the cache holds of a type, as it holds it: to be read, and not to be
// changed. A list would copy each of them. ok is false where the cache has an informer for
// each of several namespaces, and where informers is nil.
func stored(ctx context.Context, informers cache.Informers, of client.Object) (all []any, ok bool, err error) {
	if informers == nil {
		return nil, false, nil
	}
	informer, err := informers.GetInformer(ctx, of)
	if err != nil {
		return nil, false, err
	}
	one, ok := informer.(toolscache.SharedIndexInformer)
	if !ok {
		return nil, false, nil
	}
	return one.GetStore().List(), true, nil
}

func shrinkSpec(s *v1alpha1.CredentialSpec) {
	s.CredentialClassName, s.Owner = share(s.CredentialClassName), share(s.Owner)
	for i, p := range s.Permissions {
		s.Permissions[i] = share(p)
	}
	for i, role := range s.Roles {
		s.Roles[i] = share(role)
	}
}

func shrinkStatus(s *v1alpha1.CredentialStatus) {
	for i := range s.Conditions {
		c := &s.Conditions[i]
		c.Type, c.Status, c.Reason = share(c.Type), share(c.Status), share(c.Reason)
		if c.Type != v1alpha1.ConditionReady && c.Type != v1alpha1.ConditionSecretDelivered { // these name the Secret
			c.Message = share(c.Message)
		}
	}
	for i := range s.Versions {
		v := &s.Versions[i]
		v.State, v.Pepper, v.Reason, v.Actor = share(v.State), share(v.Pepper), share(v.Reason), share(v.Actor)
	}
	for i := range s.Transitions {
		t := &s.Transitions[i]
		t.Type, t.Reason, t.Actor = share(t.Type), share(t.Reason), share(t.Actor)
	}
	s.LastUsed = share(s.LastUsed)
	// Decoding leaves room behind what it has decoded.
	s.Conditions, s.Versions, s.Record = slices.Clone(s.Conditions), slices.Clone(s.Versions), bytes.Clone(s.Record)
}

// share gives a text that equal ones share, for as long as any of them is held. For one that
// has no equal it takes much more memory than that text.
func share[T ~string](s T) T { return unique.Make(s).Value() }

// sharedLabels are the labels of an object. Nearly every Secret has but one, ours, and all
// those have one map: nothing is written into what the cache holds.
func sharedLabels(m map[string]string) map[string]string {
	if len(m) == 1 && m[v1alpha1.LabelManaged] == managedOnly[v1alpha1.LabelManaged] {
		return managedOnly
	}
	return shared(m)
}

var managedOnly = map[string]string{v1alpha1.LabelManaged: "true"}

// shared is a map with keys that others share. Values differ more often than not.
func shared(m map[string]string) map[string]string {
	if len(m) == 0 {
		return nil
	}
	out := make(map[string]string, len(m))
	for k, v := range m {
		out[share(k)] = v
	}
	return out
}
