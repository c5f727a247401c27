package controllers

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
	"github.com/mintmark-dev/mintmark/internal/keyring"
)

// Annotations the controller keeps on the Secrets with keys.
const (
	// AnnotationRotationHandled is the rotate-requested-at that was carried out
	// last.
	AnnotationRotationHandled = "mintmark.dev/rotation-handled-at"
	// AnnotationPepperRotated is when the current pepper became current.
	AnnotationPepperRotated = "mintmark.dev/pepper-rotated-at"
)

const (
	// foreignPoll is how often Secrets are read that somebody else supplies: they
	// lack our label, so no watch tells of them.
	foreignPoll = 30 * time.Second
	// pepperGrace is how long an old pepper is kept in any case, so that whoever
	// was about to seal with it when it was replaced has come to an end.
	pepperGrace = time.Hour
	// keysResync bounds how long the keys go without being looked at, should an
	// event be lost.
	keysResync = time.Hour
)

// KeySource gives the peppers to digest and seal with.
type KeySource interface {
	// Peppers are those the controller last saw, the current one first. The
	// error says why there are none, in words for a condition's message.
	Peppers() (credential.Peppers, error)
}

// PepperHolder is the KeySource the KeyReconciler fills. The zero value holds
// nothing yet. It is safe for concurrent use.
type PepperHolder struct {
	mu          sync.Mutex
	peppers     credential.Peppers
	err         error
	subscribers []chan event.GenericEvent
}

var errPeppersNotRead = errors.New("the pepper has not been read yet: the controller has just begun to lead")

// Peppers implements KeySource.
func (h *PepperHolder) Peppers() (credential.Peppers, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.peppers == nil && h.err == nil {
		return nil, errPeppersNotRead
	}
	return h.peppers, h.err
}

// Changes gives a channel on which an event comes when the current pepper has
// changed, or has become usable. Events that nobody has taken yet count as one.
// Each call makes a channel of its own, for source.Channel; the event's object is
// the Secret's name and nothing else.
func (h *PepperHolder) Changes() <-chan event.GenericEvent {
	h.mu.Lock()
	defer h.mu.Unlock()
	changes := make(chan event.GenericEvent, 1)
	h.subscribers = append(h.subscribers, changes)
	return changes
}

// Set replaces what the holder gives out: peppers, or the reason why there are
// none.
func (h *PepperHolder) Set(peppers credential.Peppers, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	before, after := h.peppers.Current(), peppers.Current()
	h.peppers, h.err = peppers, err
	if after == nil || (before != nil && before.ID() == after.ID()) {
		return
	}
	for _, subscriber := range h.subscribers {
		select {
		case subscriber <- event.GenericEvent{Object: &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: keyring.PepperSecret}}}:
		default:
		}
	}
}

// KeyConfig is what a KeyReconciler needs.
type KeyConfig struct {
	// Namespace of the installation.
	Namespace string
	// WatchNamespaces are those whose credentials the installation looks after;
	// empty means all.
	WatchNamespaces []string
	// Policy of the signing keys; the zero value is keyring.DefaultPolicy.
	Policy keyring.Policy
	// Peppers is filled with what is found.
	Peppers *PepperHolder
	// ClockSkew is ServerClock.Skew; nil means that the clock is right.
	ClockSkew func() (time.Duration, bool)
	// Random is a cryptographically secure source; nil is crypto/rand.
	Random io.Reader
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// KeyReconciler makes and rotates the installation's own keys: the pepper and
// the signing keys. It runs in the leader alone, and yet no step relies on there
// being one leader: a Secret is made by create, and changed under the
// resourceVersion it was read at.
//
// A Secret without Mintmark's label is somebody else's (Vault Agent, External
// Secrets, a person): it is used as it is, and never written.
type KeyReconciler struct {
	installationSecrets
	cfg KeyConfig
	// seenPepper is the data of our pepper Secret as last read, so that a Secret
	// deleted by mistake comes back as it was.
	seenPepper map[string][]byte
}

// SetupKeys adds a KeyReconciler to the manager.
func SetupKeys(mgr ctrl.Manager, cfg KeyConfig) error {
	if cfg.Policy == (keyring.Policy{}) {
		cfg.Policy = keyring.DefaultPolicy()
	}
	if cfg.Random == nil {
		cfg.Random = rand.Reader
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.ClockSkew == nil {
		cfg.ClockSkew = func() (time.Duration, bool) { return 0, true }
	}
	if err := registerMetrics(); err != nil {
		return err
	}
	r := &KeyReconciler{installationSecrets: secretsOf(mgr, cfg.Namespace), cfg: cfg}
	return ctrl.NewControllerManagedBy(mgr).
		Named("keys").
		For(&corev1.Secret{}, builder.WithPredicates(secretsNamed(cfg.Namespace, keyring.PepperSecret, keyring.SigningKeysSecret))).
		WatchesRawSource(atStart(cfg.Namespace, keyring.PepperSecret, keyring.SigningKeysSecret)).
		Complete(r)
}

// secretsNamed lets through the Secrets of the installation with these names.
func secretsNamed(namespace string, names ...string) predicate.Predicate {
	return predicate.NewPredicateFuncs(func(o client.Object) bool {
		for _, name := range names {
			if o.GetNamespace() == namespace && o.GetName() == name {
				return true
			}
		}
		return false
	})
}

// atStart asks once for each of these Secrets, so that one that does not exist
// is looked at as well.
func atStart(namespace string, names ...string) source.Source {
	start := make(chan event.GenericEvent, len(names))
	for _, name := range names {
		start <- event.GenericEvent{Object: &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}}
	}
	return source.Channel(start, &handler.EnqueueRequestForObject{})
}

// Reconcile implements reconcile.Reconciler.
func (r *KeyReconciler) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	secret, err := r.read(ctx, request.Name)
	if err != nil {
		return reconcile.Result{}, err
	}
	var next time.Duration
	switch request.Name {
	case keyring.PepperSecret:
		next, err = r.reconcilePepper(ctx, secret)
	case keyring.SigningKeysSecret:
		next, err = r.reconcileSigningKeys(ctx, secret)
	}
	return settle(ctx, next, err)
}

// settle turns what a reconciler found into a result. A lost race is no error:
// the winner's Secret is looked at next. Nor is a Secret that only people can
// put right retried ever more slowly: it is looked at again at a steady pace.
func settle(ctx context.Context, next time.Duration, err error) (reconcile.Result, error) {
	var unusable *unusableError
	switch {
	case err == nil:
		return reconcile.Result{RequeueAfter: next}, nil
	case apierrors.IsConflict(err), apierrors.IsAlreadyExists(err):
		return reconcile.Result{RequeueAfter: time.Second}, nil
	case errors.As(err, &unusable):
		log.FromContext(ctx).Error(err, "A Secret of the installation needs attention")
		return reconcile.Result{RequeueAfter: foreignPoll}, nil
	}
	return reconcile.Result{}, err
}

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
	recorder  events.EventRecorder
}

func secretsOf(mgr ctrl.Manager, namespace string) installationSecrets {
	return installationSecrets{
		namespace: namespace, client: mgr.GetClient(), live: mgr.GetAPIReader(), recorder: mgr.GetEventRecorder("mintmark-controller"),
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
	s.recorder.Eventf(secret, nil, kind, reason, action, "%s", note[:min(len(note), maxNote)])
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

// reconcilePepper sees to it that there is a pepper, hands it out, and takes the
// next step of a rotation. It returns after how long to look again.
func (r *KeyReconciler) reconcilePepper(ctx context.Context, secret *corev1.Secret) (time.Duration, error) {
	if secret == nil {
		var err error
		if secret, err = r.makePepper(ctx); err != nil {
			return 0, r.withoutPepper(err)
		}
	}
	peppers, err := keyring.DecodePeppers(secret.Data)
	if err != nil {
		return 0, r.withoutPepper(r.unusable(keyring.PepperSecret, "KeysInvalid", err))
	}
	r.cfg.Peppers.Set(peppers, nil)
	keySecretUsable.WithLabelValues(keyring.PepperSecret).Set(1)
	if !ours(secret) {
		r.seenPepper = nil
		return foreignPoll, nil
	}
	r.seenPepper = secret.Data
	if request := r.rotationRequest(secret); request != "" {
		return r.rotatePepper(ctx, secret, request)
	}
	if len(peppers) > 1 {
		return r.dropPeppers(ctx, secret, peppers)
	}
	return keysResync, nil
}

// withoutPepper stops minting where the pepper is gone or broken: what would be
// made with the one in memory, nobody could verify later. Errors of another kind
// change nothing of what was known.
func (r *KeyReconciler) withoutPepper(err error) error {
	var unusable *unusableError
	if errors.As(err, &unusable) {
		r.cfg.Peppers.Set(nil, unusable)
	}
	return err
}

// makePepper makes the pepper's Secret, if nothing can depend on the one that is
// missing. A Secret that was there while this process watched comes back as it
// was, for a deletion is a mistake or an attack: peppers are replaced by rotation.
func (r *KeyReconciler) makePepper(ctx context.Context) (*corev1.Secret, error) {
	if r.seenPepper != nil {
		secret, err := r.write(ctx, keyring.PepperSecret, nil, r.seenPepper, nil)
		if err == nil {
			r.report(ctx, keyring.PepperSecret, corev1.EventTypeWarning, "PepperRestored", "Create",
				"The Secret was deleted and has been put back as it was. To replace the pepper, annotate the Secret with "+
					v1alpha1.AnnotationRotateRequestedAt)
		}
		return secret, err
	}
	holder, err := r.anyRecord(ctx)
	if err != nil {
		return nil, err
	}
	if holder != "" {
		return nil, r.unusable(keyring.PepperSecret, "PepperMissing", fmt.Errorf(
			"it is missing, and credentials depend on it (%s for one), so no new pepper is made: they would all be refused. "+
				"Restore the Secret from a backup. If it is lost for good, make the Secret yourself (entries current=p1 and "+
				"p1=`openssl rand -base64 32`), and delete and create again what was sealed under the lost one", holder))
	}
	id, key, err := keyring.NewPepper(r.cfg.Random)
	if err != nil {
		return nil, err
	}
	secret, err := r.write(ctx, keyring.PepperSecret, nil, keyring.EncodePeppers(id, map[string][]byte{id: key}), nil)
	if err != nil {
		return nil, err
	}
	r.report(ctx, keyring.PepperSecret, corev1.EventTypeNormal, "PepperMade", "Create", "Made the pepper "+id)
	return secret, nil
}

// rotatePepper makes a new pepper current. The old one stays beside it: digests
// made with it cannot be made again without the values.
func (r *KeyReconciler) rotatePepper(ctx context.Context, secret *corev1.Secret, request string) (time.Duration, error) {
	data, id, err := keyring.RotatePeppers(secret.Data, r.cfg.Random)
	if err != nil {
		return 0, err
	}
	secret, err = r.write(ctx, keyring.PepperSecret, secret, data, map[string]string{
		AnnotationRotationHandled: request,
		AnnotationPepperRotated:   r.cfg.Now().UTC().Format(time.RFC3339),
	})
	if err != nil {
		return 0, err
	}
	r.report(ctx, keyring.PepperSecret, corev1.EventTypeNormal, "PepperRotated", "Update",
		"New credentials are digested with the pepper "+id+"; the older ones stay while anything depends on them")
	return r.reconcilePepper(ctx, secret)
}

// dropPeppers takes old peppers away that nothing depends on any more.
func (r *KeyReconciler) dropPeppers(ctx context.Context, secret *corev1.Secret, peppers credential.Peppers) (time.Duration, error) {
	if !r.clockTrusted() {
		return maxClockSkew, nil
	}
	rotated, err := time.Parse(time.RFC3339, secret.Annotations[AnnotationPepperRotated])
	if err != nil {
		rotated = secret.CreationTimestamp.Time // peppers that came with the Secret
	}
	if wait := rotated.Add(pepperGrace).Sub(r.cfg.Now()); wait > 0 {
		return min(wait, keysResync), nil
	}
	inUse, err := r.peppersInUse(ctx, peppers)
	if err != nil {
		return 0, err
	}
	data, dropped := keyring.DropPeppers(secret.Data, func(id string) bool { return inUse[id] })
	if len(dropped) == 0 {
		return keysResync, nil
	}
	secret, err = r.write(ctx, keyring.PepperSecret, secret, data, nil)
	if err != nil {
		return 0, err
	}
	r.report(ctx, keyring.PepperSecret, corev1.EventTypeNormal, "PepperDropped", "Update",
		"Nothing depends on these peppers any more: "+strings.Join(dropped, ", "))
	return r.reconcilePepper(ctx, secret)
}

// anyRecord names a credential that depends on a pepper; empty where none does.
func (r *KeyReconciler) anyRecord(ctx context.Context) (string, error) {
	var holder string
	err := r.eachCredential(ctx, func(c v1alpha1.Credential) bool {
		status := c.CredentialStatus()
		if status.Seal != "" || len(status.Record) > 0 || len(status.Versions) > 0 {
			holder = fmt.Sprintf("%s %s/%s", c.CredentialKind(), c.GetNamespace(), c.GetName())
		}
		return holder == ""
	})
	return holder, err
}

// peppersInUse are the ids that any status names, in its seal, its versions
// (ended ones too, for their digests are refused by comparison) or its record.
// A record that cannot be read keeps every pepper, for it may name any.
func (r *KeyReconciler) peppersInUse(ctx context.Context, peppers credential.Peppers) (map[string]bool, error) {
	inUse := make(map[string]bool)
	err := r.eachCredential(ctx, func(c v1alpha1.Credential) bool {
		status := c.CredentialStatus()
		if id, _, sealed := strings.Cut(status.Seal, "."); sealed {
			inUse[id] = true
		}
		for i := range status.Versions {
			inUse[status.Versions[i].Pepper] = true
		}
		if len(status.Record) == 0 {
			return true
		}
		record, err := credential.OpenRecord(peppers, status.Record, status.Seal)
		if err != nil {
			for _, pepper := range peppers {
				inUse[pepper.ID()] = true
			}
			return true
		}
		for _, version := range record.Versions {
			inUse[version.Pepper] = true
		}
		return true
	})
	return inUse, err
}

// eachCredential visits every credential as it is now, page by page, until visit
// returns false.
func (r *KeyReconciler) eachCredential(ctx context.Context, visit func(v1alpha1.Credential) bool) error {
	namespaces := r.cfg.WatchNamespaces
	if len(namespaces) == 0 {
		namespaces = []string{metav1.NamespaceAll}
	}
	for _, namespace := range namespaces {
		tokens, keys := new(v1alpha1.ServiceTokenList), new(v1alpha1.APIKeyList)
		more, err := r.eachPage(ctx, namespace, tokens, func() bool {
			return all(tokens.Items, func(i int) bool { return visit(&tokens.Items[i]) })
		})
		if err == nil && more {
			more, err = r.eachPage(ctx, namespace, keys, func() bool {
				return all(keys.Items, func(i int) bool { return visit(&keys.Items[i]) })
			})
		}
		if err != nil || !more {
			return err
		}
	}
	return nil
}

func all[T any](items []T, ok func(i int) bool) bool {
	for i := range items {
		if !ok(i) {
			return false
		}
	}
	return true
}

// eachPage lists in pages of moderate size: a record may have 128 KiB.
func (r *KeyReconciler) eachPage(ctx context.Context, namespace string, list client.ObjectList, visit func() (more bool)) (more bool, err error) {
	options := []client.ListOption{client.InNamespace(namespace), client.Limit(200)}
	for {
		if err := r.live.List(ctx, list, options...); err != nil {
			return false, fmt.Errorf("looking which credentials depend on the pepper: %w", err)
		}
		if !visit() {
			return false, nil
		}
		if list.GetContinue() == "" {
			return true, nil
		}
		options = append(options[:2], client.Continue(list.GetContinue()))
	}
}

// reconcileSigningKeys sees to it that there are signing keys, and moves them
// through their slots. It returns after how long to look again.
func (r *KeyReconciler) reconcileSigningKeys(ctx context.Context, secret *corev1.Secret) (time.Duration, error) {
	keys := new(keyring.SigningKeys)
	request := ""
	if secret != nil {
		var err error
		if keys, err = keyring.DecodeSigningKeys(secret.Data); err != nil {
			return 0, r.unusable(keyring.SigningKeysSecret, "KeysInvalid", err)
		}
		keySecretUsable.WithLabelValues(keyring.SigningKeysSecret).Set(1)
		switch request = r.rotationRequest(secret); {
		case !ours(secret):
			return foreignPoll, nil
		case !r.clockTrusted():
			return maxClockSkew, nil
		}
	}
	changes, err := r.advance(keys, request != "")
	if err != nil {
		return 0, err
	}
	if len(changes) > 0 || request != "" {
		if err := r.writeSigningKeys(ctx, secret, keys, request); err != nil {
			return 0, err
		}
		for _, change := range changes {
			r.report(ctx, keyring.SigningKeysSecret, corev1.EventTypeNormal, change.reason, "Update", change.note)
		}
	}
	due, ok := keys.NextChange(r.cfg.Policy)
	if !ok {
		return keysResync, nil
	}
	return min(max(due.Sub(r.cfg.Now()), time.Second), keysResync), nil
}

type keyChange struct{ reason, note string }

// advance takes every step that is due, in the keys handed in.
func (r *KeyReconciler) advance(keys *keyring.SigningKeys, requested bool) ([]keyChange, error) {
	now, policy := r.cfg.Now(), r.cfg.Policy
	var changes []keyChange
	if keys.ShouldPrepare(now, policy) || (requested && keys.Next == nil) {
		key, err := keyring.NewSigningKey(r.cfg.Random, now)
		if err != nil {
			return nil, err
		}
		keys.Prepare(key, now)
		changes = append(changes, keyChange{"SigningKeyPublished", fmt.Sprintf("Published the signing key %s", key.ID)})
	}
	if keys.ShouldActivate(now, policy) {
		keys.Activate(now)
		changes = append(changes, keyChange{"SigningKeyActivated", fmt.Sprintf("JWTs are signed with the key %s", keys.Current.ID)})
	}
	for _, key := range keys.Drop(now, policy) {
		changes = append(changes, keyChange{"SigningKeyDropped", fmt.Sprintf("Dropped the signing key %s: nothing it signed is alive", key.ID)})
	}
	return changes, nil
}

func (r *KeyReconciler) writeSigningKeys(ctx context.Context, secret *corev1.Secret, keys *keyring.SigningKeys, request string) error {
	data, err := keys.Encode()
	if err != nil {
		return err
	}
	var annotations map[string]string
	if request != "" {
		annotations = map[string]string{AnnotationRotationHandled: request}
	}
	_, err = r.write(ctx, keyring.SigningKeysSecret, secret, data, annotations)
	return err
}

// rotationRequest is the value of the annotation that asks for a rotation, if it
// is later than the one handled last; else empty.
func (r *KeyReconciler) rotationRequest(secret *corev1.Secret) string {
	request := secret.Annotations[v1alpha1.AnnotationRotateRequestedAt]
	if request == "" {
		return ""
	}
	at, err := time.Parse(time.RFC3339, request)
	if err != nil {
		r.event(secret.Name, corev1.EventTypeWarning, "InvalidRequest", "Rotate", fmt.Sprintf(
			"The annotation %s is no time in RFC 3339, such as 2026-01-31T08:00:00Z, and is ignored", v1alpha1.AnnotationRotateRequestedAt))
		return ""
	}
	if handled, err := time.Parse(time.RFC3339, secret.Annotations[AnnotationRotationHandled]); err == nil && !at.After(handled) {
		return ""
	}
	return request
}

// clockTrusted tells whether steps may be taken that only time calls for.
func (r *KeyReconciler) clockTrusted() bool {
	skew, known := r.cfg.ClockSkew()
	return known && skew.Abs() <= maxClockSkew
}

var keySecretUsable = prometheus.NewGaugeVec(prometheus.GaugeOpts{
	Name: "mintmark_key_secret_usable",
	Help: "1 where the Secret with this name holds usable keys, 0 where it is missing or broken. Set by the leading controller.",
}, []string{"secret"})

// registerMetrics registers what this package measures about keys, certificates
// and clocks, once per process.
func registerMetrics() error {
	for _, collector := range []prometheus.Collector{keySecretUsable, certificateExpiry, clockSkew, heartbeats, transitions, recordsRejected, propagationSeconds} {
		var twice prometheus.AlreadyRegisteredError
		if err := metrics.Registry.Register(collector); err != nil && !errors.As(err, &twice) {
			return fmt.Errorf("registering metrics: %w", err)
		}
	}
	return nil
}
