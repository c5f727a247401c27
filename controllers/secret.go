package controllers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/delivery"
	"github.com/mintmark-dev/mintmark/internal/lifecycle"
)

// annotationEpoch on a target Secret is the epoch of the record it was written
// under: a second place to see that an older record was put back.
const annotationEpoch = "mintmark.dev/epoch"

// On a target Secret: the keys of the labels and annotations that its template
// gave.
const (
	annotationTemplateLabels      = "mintmark.dev/template-labels"
	annotationTemplateAnnotations = "mintmark.dev/template-annotations"
)

// writeSecret makes the Secret carry what is wanted, if it does not yet.
//
// A new value is written under the resourceVersion that its commit saw. If that
// has changed, somebody else has written: another controller, whose value then
// counts, or somebody who is none of ours. A live read tells which.
func (r *credentials) writeSecret(ctx context.Context, s *scope, want lifecycle.SecretWant) (wrote bool, err error) {
	value := r.memory.pending(s.key(), s.credential.GetUID())
	deliver := value != nil && value.version == want.Current && s.observed.Held == want.Current && s.observed.Secret.Current != want.Current
	secret, err := r.desired(s, want, value)
	if err != nil {
		return r.secretProblem(s, err)
	}
	if !deliver && s.secret != nil && equality.Semantic.DeepEqual(s.secret, secret) {
		return r.secretProblem(s, nil)
	}
	if deliver {
		secret.ResourceVersion = value.secretVersion
	}
	if secret.ResourceVersion == "" {
		err = r.client.Create(ctx, secret)
	} else {
		err = r.client.Update(ctx, secret)
	}
	switch {
	case err == nil:
		if deliver {
			r.memory.hold(s.key(), s.credential.GetUID(), nil)
		}
		r.memory.wrote(s.key(), s.credential.GetUID(), secret.ResourceVersion, "")
		s.setSecret(secret)
		s.observed.Secret.Problem = ""
		return true, nil
	case apierrors.IsAlreadyExists(err) || apierrors.IsConflict(err) || (apierrors.IsNotFound(err) && secret.ResourceVersion != ""):
		return r.lostRace(ctx, s, value, deliver)
	default:
		return r.secretProblem(s, err)
	}
}

// lostRace follows a write that found the Secret changed. If the status has not
// changed as well, the Secret as it is now is what to plan by; if it has, the
// plan is void.
func (r *credentials) lostRace(ctx context.Context, s *scope, value *heldValue, deliver bool) (bool, error) {
	fresh := r.kind.new()
	if err := r.live.Get(ctx, s.key(), fresh.(client.Object)); err != nil {
		return false, fmt.Errorf("%w: %w", errAbandoned, err)
	}
	if fresh.GetUID() != s.credential.GetUID() || fresh.GetResourceVersion() != s.credential.GetResourceVersion() {
		return false, errAbandoned
	}
	if err := r.readSecret(ctx, s); err != nil {
		return false, err
	}
	if deliver {
		again := *value
		again.secretVersion = ""
		if s.secret != nil {
			again.secretVersion = s.secret.ResourceVersion
		}
		r.memory.hold(s.key(), s.credential.GetUID(), &again)
	}
	return true, nil
}

// secretProblem has what stands in the way told in status, and the write tried
// again later. It reports whether there is something new to tell.
func (r *credentials) secretProblem(s *scope, err error) (bool, error) {
	problem := ""
	if err != nil {
		name := lifecycle.SecretName(s.observed.Name, s.observed.Spec)
		problem = cut(fmt.Sprintf("Secret %s could not be written: %s", name, lasting(err)), maxProblem)
		s.failed = fmt.Errorf("%s %s: Secret %s could not be written: %w", r.kind.kind, s.key(), name, err)
	}
	changed := s.observed.Secret.Problem != problem
	s.observed.Secret.Problem = problem
	return changed, nil
}

// maxProblem is how much of a problem status tells, in bytes.
const maxProblem = 1024

// lasting is an error as it can stand in status: without what differs from one
// attempt to the next, such as port numbers, for every change of status has the
// credential looked at again. The whole error goes into the log.
func lasting(err error) string {
	var (
		transport *url.Error
		answer    apierrors.APIStatus
	)
	switch {
	case errors.As(err, &transport):
		return "the API server did not answer; it is tried again"
	case errors.As(err, &answer) && answer.Status().Code >= http.StatusInternalServerError:
		return fmt.Sprintf("the API server answered %s; it is tried again, and the controller's log says more", answer.Status().Reason)
	default:
		return err.Error()
	}
}

// cut cuts a text to so many bytes, between two characters.
func cut(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "")
}

// desired is the Secret as it should be, on the basis of the one that is there.
func (r *credentials) desired(s *scope, want lifecycle.SecretWant, value *heldValue) (*corev1.Secret, error) {
	values := delivery.Values{
		Namespace: s.observed.Namespace, Name: s.observed.Name, Version: want.Current, PreviousVersion: want.Previous,
	}
	switch {
	case s.secret != nil && s.observed.Secret.Current == want.Current:
		values.Current = string(s.secret.Data[s.observed.Kind.SecretKey()])
		values.Previous = string(s.secret.Data[s.observed.Kind.PreviousSecretKey()])
	case s.secret != nil && s.observed.Secret.Ours && s.observed.Secret.Previous == want.Current: // rolled back
		values.Current = string(s.secret.Data[s.observed.Kind.PreviousSecretKey()])
		values.Previous = string(s.secret.Data[s.observed.Kind.SecretKey()])
	case value != nil && value.version == want.Current:
		values.Current = value.token.Reveal()
		if want.Previous != 0 { // what was current becomes previous
			values.Previous = string(s.secret.Data[s.observed.Kind.SecretKey()])
		}
	default:
		return nil, fmt.Errorf("version %d is to be delivered, and its value is neither in the Secret nor in memory", want.Current)
	}
	data, err := delivery.Render(s.observed.Kind, s.observed.Spec.Secret, values)
	if err != nil {
		return nil, err
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{
		Namespace: s.observed.Namespace, Name: lifecycle.SecretName(s.observed.Name, s.observed.Spec),
	}, Type: corev1.SecretTypeOpaque}
	if s.secret != nil {
		secret = s.secret.DeepCopy()
	}
	r.mark(s, secret)
	secret.Data = data
	return secret, nil
}

// mark puts our labels, annotations and owner on the Secret, and the template's.
// What others put on it stays.
func (r *credentials) mark(s *scope, secret *corev1.Secret) {
	labels, annotations := map[string]string{}, map[string]string{}
	maps.Copy(labels, secret.Labels)
	maps.Copy(annotations, secret.Annotations)
	template := &v1alpha1.TemplateMetadata{}
	if t := s.observed.Spec.Secret; t != nil && t.Template != nil && t.Template.Metadata != nil {
		template = t.Template.Metadata
	}
	overlay(labels, template.Labels, annotations, annotationTemplateLabels)
	overlay(annotations, template.Annotations, annotations, annotationTemplateAnnotations)
	labels[v1alpha1.LabelManaged] = "true"
	labels[v1alpha1.LabelKind] = string(s.observed.Kind)
	annotations[v1alpha1.AnnotationCredentialUID] = s.observed.UID
	if annotations[annotationEpoch] == "" || s.observed.Held != 0 {
		annotations[annotationEpoch] = strconv.FormatInt(s.observed.Status.Epoch, 10)
	}
	secret.Labels, secret.Annotations = labels, annotations
	owner := *metav1.NewControllerRef(s.credential, v1alpha1.GroupVersion.WithKind(string(s.observed.Kind)))
	owners := []metav1.OwnerReference{owner}
	for _, o := range secret.OwnerReferences {
		if o.UID != owner.UID && (o.Controller == nil || !*o.Controller) {
			owners = append(owners, o)
		}
	}
	secret.OwnerReferences = owners
}

// overlay puts what the template gives over what is there, and takes away what an
// earlier template gave and this one does not: notes, under its key, says what
// that was.
func overlay(there, given, notes map[string]string, note string) {
	for key := range strings.SplitSeq(notes[note], ",") {
		if _, still := given[key]; !still {
			delete(there, key)
		}
	}
	maps.Copy(there, given)
	delete(notes, note)
	if len(given) > 0 {
		notes[note] = strings.Join(slices.Sorted(maps.Keys(given)), ",")
	}
}

// deleteSecret deletes the Secret, if it is ours: under its UID and
// resourceVersion, so that nothing else of the same name goes.
func (r *credentials) deleteSecret(ctx context.Context, s *scope) (bool, error) {
	if s.secret == nil || !s.observed.Secret.Ours {
		return false, nil
	}
	err := r.client.Delete(ctx, s.secret, client.Preconditions{UID: ptrTo(s.secret.UID), ResourceVersion: ptrTo(s.secret.ResourceVersion)})
	switch {
	case apierrors.IsNotFound(err):
	case apierrors.IsConflict(err):
		return false, errAbandoned
	case err != nil:
		return r.secretProblem(s, err)
	}
	s.setSecret(nil)
	return true, nil
}
