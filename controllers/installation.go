package controllers

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// unusableError is a state of a Secret that this process cannot put right.
type unusableError struct {
	secret client.ObjectKey
	err    error
}

func (e *unusableError) Error() string { return fmt.Sprintf("Secret %s: %v", e.secret, e.err) }
func (e *unusableError) Unwrap() error { return e.err }

// ours tells whether Mintmark made the Secret, and so may write it.
func ours(secret *corev1.Secret) bool { return secret.Labels[v1alpha1.LabelManaged] == "true" }

// installationSecrets reads, writes and reports on the Secrets of the
// installation's own namespace. Reads are live: these Secrets are few, and a
// stale one is where mistakes come from.
type installationSecrets struct {
	namespace string
	client    client.Client
	live      client.Reader
	recorder  eventRecorder
}

func secretsOf(mgr ctrl.Manager, namespace string) installationSecrets {
	return installationSecrets{
		namespace: namespace, client: mgr.GetClient(), live: mgr.GetAPIReader(), recorder: mgr.GetEventRecorder(reportingController),
	}
}

// read gets a Secret as it is now; nil where there is none.
func (s *installationSecrets) read(ctx context.Context, name string) (*corev1.Secret, error) {
	secret := new(corev1.Secret)
	switch err := s.live.Get(ctx, client.ObjectKey{Namespace: s.namespace, Name: name}, secret); {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("reading Secret %s/%s: %w", s.namespace, name, err)
	}
	return secret, nil
}

// write makes the Secret, or gives an existing one other data under the
// resourceVersion it was read at. It returns the Secret as it then is.
func (s *installationSecrets) write(
	ctx context.Context, name string, was *corev1.Secret, data map[string][]byte, annotations map[string]string,
) (*corev1.Secret, error) {
	if was == nil {
		secret := &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: s.namespace, Name: name, Labels: map[string]string{v1alpha1.LabelManaged: "true"}, Annotations: annotations,
			},
			Type: corev1.SecretTypeOpaque, Immutable: ptr.To(false), Data: data,
		}
		if err := s.client.Create(ctx, secret); err != nil {
			return nil, fmt.Errorf("making Secret %s/%s: %w", s.namespace, name, err)
		}
		return secret, nil
	}
	secret := was.DeepCopy()
	secret.Data = data
	for key, value := range annotations {
		metav1.SetMetaDataAnnotation(&secret.ObjectMeta, key, value)
	}
	if err := s.client.Update(ctx, secret); err != nil {
		return nil, fmt.Errorf("updating Secret %s/%s: %w", s.namespace, name, err)
	}
	return secret, nil
}

// event reports something about a Secret, which need not exist.
func (s *installationSecrets) event(name, kind, reason, action, note string) {
	const maxNote = 1024 // the API's limit
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: name}}
	s.recorder.Eventf(secret, nil, kind, reason, action, "%s", cut(note, maxNote))
}

// report tells of something done to a Secret, in an event and in the log.
func (s *installationSecrets) report(ctx context.Context, name, kind, reason, action, note string) {
	s.event(name, kind, reason, action, note)
	log.FromContext(ctx).Info(note, "secret", s.namespace+"/"+name, "reason", reason)
}

// unusable reports a Secret that needs somebody's attention.
func (s *installationSecrets) unusable(name, reason string, err error) error {
	keySecretUsable.WithLabelValues(name).Set(0)
	s.event(name, corev1.EventTypeWarning, reason, "Read", err.Error())
	return &unusableError{secret: client.ObjectKey{Namespace: s.namespace, Name: name}, err: err}
}
