package controllers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authz"
	"github.com/mintmark-dev/mintmark/internal/credential"
	"github.com/mintmark-dev/mintmark/internal/keyring"
	"github.com/mintmark-dev/mintmark/internal/lifecycle"
)

// scope is one reconcile's view of a credential. It is filled once by observe,
// and after each write from what the API server answered.
type scope struct {
	credential v1alpha1.Credential
	secret     *corev1.Secret // nil where there is none
	peppers    credential.Peppers
	observed   lifecycle.Observed
	// tampered says what is wrong with the record found in status.
	tampered string
	// fresh: the Secret was read from the API server and not from the cache.
	fresh bool
	// failed is a write that could not be made, and is to be tried again.
	failed error
}

func (s *scope) key() types.NamespacedName {
	return types.NamespacedName{Namespace: s.credential.GetNamespace(), Name: s.credential.GetName()}
}

func (s *scope) question() Question {
	return Question{Kind: s.observed.Kind, Key: s.key(), UID: s.credential.GetUID(), Epoch: s.observed.Status.Epoch}
}

// observe reads everything Plan decides by. It returns nil where there is
// nothing to do: the credential is gone.
func (r *credentials) observe(ctx context.Context, key types.NamespacedName) (*scope, error) {
	c := r.kind.new()
	if err := r.client.Get(ctx, key, c.(client.Object)); err != nil {
		if apierrors.IsNotFound(err) {
			r.forget(key, "")
			return nil, nil
		}
		return nil, err
	}
	s := &scope{credential: c}
	if c.GetDeletionTimestamp() != nil {
		r.forget(key, "")
		return nil, nil
	}
	r.forget(key, c.GetUID()) // another one that had the name
	if r.memory.outdated(key, c.GetUID(), c.GetResourceVersion()) {
		return nil, errAbandoned // what we wrote is on its way into the cache
	}
	var err error
	if s.peppers, err = r.cfg.Keys.Peppers(); err != nil {
		// Without the pepper nobody can tell a good record from a forged one, and
		// nothing must be written over it. Its coming enqueues everything.
		return nil, fmt.Errorf("%s %s waits for the installation's keys: %w", r.kind.kind, key, err)
	}
	if err := r.observeRecord(ctx, s); err != nil {
		return nil, err
	}
	if err := r.observeClass(ctx, s); err != nil {
		return nil, err
	}
	if err := r.observeRevocations(ctx, s); err != nil {
		return nil, err
	}
	if err := r.observeDeclared(s); err != nil {
		return nil, err
	}
	if s.observed.Spec.External == nil {
		if err := r.observeSecret(ctx, s); err != nil {
			return nil, err
		}
	}
	s.observed.Held = r.memory.held(key, c.GetUID(), s.observed.Status)
	s.observed.Propagation = r.cfg.Propagation.Answer(s.question())
	if r.cfg.Transitions != nil {
		r.cfg.Transitions.Note(r.kind.kind, c)
	}
	if r.cfg.Usage != nil {
		s.observed.Usage = r.cfg.Usage.Of(c.GetUID())
	}
	if err := r.observeRestarts(ctx, s); err != nil {
		return nil, err
	}
	skew, known := r.cfg.ClockSkew()
	s.observed.ClockSkewed = known && skew.Abs() > maxClockSkew
	return s, nil
}

// observeRestarts finds the workloads to be restarted, while a restart is owed.
func (r *credentials) observeRestarts(ctx context.Context, s *scope) (err error) {
	o := &s.observed
	o.Restarts.Enabled = r.cfg.Restarts != nil
	if o.Restarts.Enabled && lifecycle.AwaitsAdoption(o.Spec, o.Status) {
		o.Restarts, err = r.cfg.Restarts.Observe(ctx, o.Namespace, lifecycle.SecretName(o.Name, o.Spec), o.Spec.Restart)
	}
	return err
}

// forget drops what is remembered of the credential of that name, unless it is
// the one of the UID given.
func (r *credentials) forget(key types.NamespacedName, but types.UID) {
	if uid, ok := r.memory.forget(key, but); ok {
		r.cfg.Propagation.Forget(uid)
		if r.cfg.Transitions != nil {
			r.cfg.Transitions.Forget(uid)
		}
		if r.cfg.Usage != nil {
			r.cfg.Usage.Forget(uid)
		}
		if r.cfg.Restarts != nil {
			r.cfg.Restarts.Forget(uid)
		}
	}
}

// observeRecord opens the record, and with it decides what of the status is to
// be believed.
func (r *credentials) observeRecord(ctx context.Context, s *scope) error {
	uid := s.credential.GetUID()
	known := r.memory.sealed(s.key(), uid)
	if r.sealedByUnknown(s, known) {
		return fmt.Errorf("%s %s is sealed under a pepper that is not there: restore it in Secret %s", r.kind.kind, s.key(), keyring.PepperSecret)
	}
	rec, problem := r.open(s, known)
	if problem != "" && known != nil {
		// A cache that lags looks like a record put back: ask the API server.
		// Into a new object, for decoding leaves what it finds no field for.
		fresh := r.kind.new()
		if err := r.live.Get(ctx, s.key(), fresh.(client.Object)); err != nil {
			return fmt.Errorf("%w: %w", errAbandoned, err)
		}
		if fresh.GetUID() != uid || fresh.GetDeletionTimestamp() != nil {
			return errAbandoned
		}
		s.credential = fresh
		rec, problem = r.open(s, known)
	}
	if problem != "" {
		s.tampered = problem
		if known != nil {
			rec, _ = credential.OpenRecord(s.peppers, known.record, known.seal)
		}
	}
	c := s.credential
	s.observed = lifecycle.Observed{
		Kind: r.kind.kind, Namespace: c.GetNamespace(), Name: c.GetName(), UID: string(c.GetUID()),
		Generation: c.GetGeneration(), Created: c.GetCreationTimestamp().Time, Labels: c.GetLabels(), Annotations: c.GetAnnotations(),
		Spec: c.CredentialSpec(), Record: rec, Status: lifecycle.Trusted(c.CredentialStatus(), rec), Pepper: s.peppers.Current().ID(),
	}
	if rec != nil && problem == "" {
		r.memory.remember(s.key(), c.GetUID(), rec.Epoch, c.CredentialStatus().Record, c.CredentialStatus().Seal)
	}
	return nil
}

// sealedByUnknown tells whether the seal names a pepper we do not have. To take
// the record for forged then would replace every credential because a key was
// mislaid.
// A seal that names an unknown pepper where the one we remember still holds is
// forged all the same.
func (r *credentials) sealedByUnknown(s *scope, known *sealedRecord) bool {
	record, seal := s.credential.CredentialStatus().Record, s.credential.CredentialStatus().Seal
	if known != nil {
		record, seal = known.record, known.seal
	}
	_, err := credential.OpenRecord(s.peppers, record, seal)
	return len(record) > 0 && errors.Is(err, credential.ErrUnknownPepper)
}

// open opens the record in status, and says what is wrong with it.
func (r *credentials) open(s *scope, known *sealedRecord) (*credential.Record, string) {
	c, st := s.credential, s.credential.CredentialStatus()
	if len(st.Record) == 0 {
		if known != nil {
			return nil, "the record is gone"
		}
		return nil, ""
	}
	rec, err := credential.OpenRecord(s.peppers, st.Record, st.Seal)
	switch {
	case err != nil:
		return nil, err.Error()
	case rec.UID != string(c.GetUID()) || rec.Kind != r.kind.kind || rec.Namespace != c.GetNamespace() || rec.Name != c.GetName():
		return nil, "the record is another credential's"
	case known != nil && rec.Epoch < known.epoch:
		return nil, fmt.Sprintf("the record of epoch %d was put back over that of epoch %d", rec.Epoch, known.epoch)
	default:
		return rec, ""
	}
}

func (r *credentials) observeClass(ctx context.Context, s *scope) error {
	name := s.observed.Spec.CredentialClassName
	if name == "" {
		s.observed.ClassProblem = "spec.credentialClassName is empty: name a class, or mark one with the annotation " + v1alpha1.AnnotationDefaultClass
		return nil
	}
	var class v1alpha1.CredentialClass
	if err := r.client.Get(ctx, types.NamespacedName{Name: name}, &class); apierrors.IsNotFound(err) {
		s.observed.ClassProblem = fmt.Sprintf("CredentialClass %s does not exist: create it", name)
		return nil
	} else if err != nil {
		return err
	}
	namespace := &metav1.PartialObjectMetadata{}
	namespace.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Namespace"))
	if err := r.client.Get(ctx, types.NamespacedName{Name: s.observed.Namespace}, namespace); err != nil {
		return fmt.Errorf("reading namespace %s for the class's rules: %w", s.observed.Namespace, err)
	}
	rule, err := authz.SelectRule(&class.Spec, namespace.GetLabels())
	if err != nil {
		s.observed.ClassProblem = fmt.Sprintf("CredentialClass %s: %v", name, err)
		return nil
	}
	s.observed.Class, s.observed.Rule, s.observed.Ceiling = &class.Spec, rule, authz.NewCeiling(rule)
	return nil
}

func (r *credentials) observeRevocations(ctx context.Context, s *scope) error {
	revocations, err := r.revocations(ctx)
	if err != nil {
		return err
	}
	sets := []map[string]string{s.observed.Labels}
	if s.observed.Record != nil {
		sets = append(sets, s.observed.Record.Labels)
	}
	for _, rv := range revocations {
		if selector := r.selectors.of(rv); !selector.Selects(s.observed.Kind, s.observed.Namespace, sets...) {
			continue
		}
		s.observed.Revocations = append(s.observed.Revocations, lifecycle.Revocation{
			UID: string(rv.UID), Name: rv.Name, Reason: rv.Spec.Reason, Actor: rv.Annotations[v1alpha1.AnnotationRevokedBy],
			Created: rv.CreationTimestamp.Time, Replace: rv.Spec.Replace == "Immediately",
		})
	}
	r.selectors.trim(len(revocations))
	slices.SortFunc(s.observed.Revocations, func(a, b lifecycle.Revocation) int {
		return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.UID, b.UID))
	})
	return nil
}

// revocations are those there are, as the cache holds them: they are kept for as long as
// anybody likes, and every credential is compared with each.
func (r *credentials) revocations(ctx context.Context) (revocations []*v1alpha1.Revocation, err error) {
	all, ok, err := stored(ctx, r.cache, &v1alpha1.Revocation{})
	if err != nil {
		return nil, err
	}
	if !ok {
		var list v1alpha1.RevocationList
		if err := r.client.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
			return nil, err
		}
		for i := range list.Items {
			revocations = append(revocations, &list.Items[i])
		}
		return revocations, nil
	}
	for _, o := range all {
		revocations = append(revocations, o.(*v1alpha1.Revocation))
	}
	return revocations, nil
}

// selectors are those of the Revocations, compiled: each is asked about every
// credential, again and again. The zero value is ready; it is safe for concurrent
// use.
type selectors struct {
	mu       sync.Mutex
	compiled map[selectorKey]*credential.Selector
}

// selectorKey tells one spec from another: it is immutable, and should that not be
// enforced, a change raises the generation.
type selectorKey struct {
	uid        types.UID
	generation int64
}

// of is the selector of a Revocation; of one that cannot be read, one that selects
// nothing.
func (s *selectors) of(rv *v1alpha1.Revocation) *credential.Selector {
	key := selectorKey{rv.UID, rv.Generation}
	s.mu.Lock()
	defer s.mu.Unlock()
	if known := s.compiled[key]; known != nil {
		return known
	}
	selector, err := credential.NewSelector(&rv.Spec)
	if err != nil {
		selector = credential.Selector{}
	}
	if s.compiled == nil {
		s.compiled = map[selectorKey]*credential.Selector{}
	}
	s.compiled[key] = &selector
	return &selector
}

// trim drops them all, to be compiled again, where most are of Revocations that are
// gone: there are so many.
func (s *selectors) trim(there int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.compiled) > 2*there+64 {
		clear(s.compiled)
	}
}

// observeDeclared digests what an external credential declares, and looks for
// an older credential that has one of the digests.
func (r *credentials) observeDeclared(s *scope) error {
	if s.observed.Spec.External == nil {
		return nil
	}
	for _, text := range s.observed.Spec.External.SHA256 {
		inner, err := credential.ParseInner(text)
		if err != nil {
			return nil //nolint:nilerr // Validate says so, with the field
		}
		digests, contested := map[string]string{}, false
		for _, p := range s.peppers {
			digest := p.Digest(inner)
			digests[p.ID()] = digest.String()
			if holder := r.olderHolder(s, digest); holder != "" {
				s.observed.Conflict, contested = holder, true
			}
		}
		s.observed.Declared = append(s.observed.Declared, digests)
		s.observed.Contested = append(s.observed.Contested, contested)
	}
	return nil
}

// observeSecret reads the target Secret. The cache holds only ours and may lag;
// where what it says would have consequences, the API server is asked.
func (r *credentials) observeSecret(ctx context.Context, s *scope) error {
	name := lifecycle.SecretName(s.observed.Name, s.observed.Spec)
	secret := &corev1.Secret{}
	err := r.client.Get(ctx, types.NamespacedName{Namespace: s.observed.Namespace, Name: name}, secret)
	if client.IgnoreNotFound(err) != nil {
		return err
	}
	if c := meta.FindStatusCondition(s.observed.Status.Conditions, v1alpha1.ConditionSecretDelivered); c != nil && c.Reason == v1alpha1.ReasonSecretNotWritten {
		s.observed.Secret.Problem = c.Message // until a write succeeds, or status would change with every attempt
	}
	if err == nil {
		s.setSecret(secret)
	}
	if !r.doubtful(s) {
		return nil
	}
	return r.readSecret(ctx, s)
}

// readSecret reads the target Secret from the API server.
func (r *credentials) readSecret(ctx context.Context, s *scope) error {
	name := lifecycle.SecretName(s.observed.Name, s.observed.Spec)
	secret := &corev1.Secret{}
	err := r.live.Get(ctx, types.NamespacedName{Namespace: s.observed.Namespace, Name: name}, secret)
	switch {
	case apierrors.IsNotFound(err):
		s.setSecret(nil)
	case err != nil:
		return err
	default:
		s.setSecret(secret)
	}
	return nil
}

// doubtful tells whether the cached Secret is not what status would lead one to
// expect.
func (r *credentials) doubtful(s *scope) bool {
	if c := meta.FindStatusCondition(s.observed.Status.Conditions, v1alpha1.ConditionSecretDelivered); c != nil && c.Reason == v1alpha1.ReasonSecretConflict {
		return true
	}
	if t := s.observed.Spec.Secret; s.secret == nil && t != nil && t.ConflictPolicy == v1alpha1.ConflictAdopt {
		return true // what is to be adopted carries no label of ours, so the cache lacks it
	}
	// Not less: after a rollback, the Secret of before it carries the higher one.
	current := s.observed.Status.CurrentVersion
	return current > 0 && s.observed.Secret.Current != current
}

// setSecret takes a Secret, or nil, for what there is now.
func (s *scope) setSecret(secret *corev1.Secret) {
	problem := s.observed.Secret.Problem
	s.secret = secret
	s.observed.Secret = lifecycle.Secret{Problem: problem}
	if secret == nil {
		return
	}
	o := &s.observed.Secret
	o.Exists = true
	controller := metav1.GetControllerOf(secret)
	o.Ours = secret.Labels[v1alpha1.LabelManaged] == "true" && secret.Type == corev1.SecretTypeOpaque &&
		secret.Annotations[v1alpha1.AnnotationCredentialUID] == string(s.credential.GetUID()) &&
		(controller == nil || controller.UID == s.credential.GetUID())
	// One whose controller has our kind and name and another UID is our own of
	// before a restore.
	o.Adoptable = secret.Type == corev1.SecretTypeOpaque && (secret.Immutable == nil || !*secret.Immutable) &&
		(controller == nil || (controller.Kind == string(s.observed.Kind) && controller.Name == s.observed.Name &&
			strings.HasPrefix(controller.APIVersion, v1alpha1.GroupVersion.Group+"/")))
	current, previous := secret.Data[s.observed.Kind.SecretKey()], secret.Data[s.observed.Kind.PreviousSecretKey()]
	o.HasCurrent, o.HasPrevious = len(current) > 0, len(previous) > 0
	if o.Ours {
		o.Current, o.Previous = s.match(string(current)), s.match(string(previous))
	}
}

// match finds the version a value belongs to; 0 is none.
func (s *scope) match(value string) int64 {
	token, err := credential.Parse(value)
	if err != nil {
		return 0
	}
	inner := token.Inner()
	for _, v := range s.observed.Status.Versions {
		if p := s.peppers.ByID(v.Pepper); p != nil && p.Digest(inner).String() == v.Digest {
			return v.Version
		}
	}
	return 0
}

// maxEpoch bounds what a Secret is believed of the epoch: whoever may edit it
// must not be able to use the numbers up.
const maxEpoch = 1 << 40

// lostEpochs is left for the records made after the Secret was written, where
// all of them are lost: servers that still hold the last one refuse any that is
// not later.
const lostEpochs = 1 << 16

// epochFloor is the least epoch the next record must exceed. The Secret repeats
// the epoch it was written at, for a process that was not there to remember it.
func (s *scope) epochFloor(known *sealedRecord) int64 {
	floor := s.observed.Status.Epoch
	if known != nil {
		floor = max(floor, known.epoch)
	}
	if s.secret != nil && s.observed.Secret.Ours {
		if n, err := strconv.ParseInt(s.secret.Annotations[annotationEpoch], 10, 64); err == nil && n > floor && n < maxEpoch {
			floor = n + lostEpochs
		}
	}
	return floor
}
