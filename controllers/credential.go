package controllers

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
	"github.com/mintmark-dev/mintmark/internal/lifecycle"
)

const (
	// maxPasses bounds the writes of one reconcile. A rotation that finds
	// everything accepted makes four.
	maxPasses = 10
	// retryForeign is how often a Secret or a value that stands in the way is
	// looked at again: no watch tells of it.
	retryForeign = 15 * time.Second
	// catchUp is how long the cache is given to catch up with our own writes.
	catchUp = 20 * time.Millisecond
	// tryAgain is when to look again after somebody else wrote first.
	tryAgain = 200 * time.Millisecond
	// atOnce is when to look again at what others wrote while it was looked at.
	atOnce = time.Millisecond
	// defaultWorkers reconcile at the same time. More make the API server slower,
	// not the controller faster.
	defaultWorkers = 12
	// maxClockSkew is the difference from the API server's clock beyond which
	// nothing is done because of the time alone.
	maxClockSkew = 30 * time.Second
)

// indexClass is the cache's index of credentials by their class.
const indexClass = "class"

// CredentialConfig is what the credential reconcilers need.
type CredentialConfig struct {
	// Keys gives the peppers; its Changes re-seal every credential.
	Keys interface {
		KeySource
		Changes() <-chan event.GenericEvent
	}
	// Propagation asks the servers. The caller adds it to the manager.
	Propagation *Propagation
	// Usage tells what the servers saw used; nil is no evidence. The caller adds
	// it to the manager.
	Usage *UsageCollector
	// Transitions hands changes over for the audit log; nil leaves them in status. The
	// caller adds it to the manager.
	Transitions *Transitions
	// Restarts restarts workloads; nil restarts none. The caller adds it to the
	// manager.
	Restarts *Restarts
	// ClockSkew is ServerClock.Skew; nil means that the clock is right.
	ClockSkew func() (time.Duration, bool)
	// WatchNamespaces are those whose credentials the installation looks after;
	// empty means all.
	WatchNamespaces []string
	// Random is a cryptographically secure source; nil is crypto/rand.
	Random io.Reader
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// Workers of each kind; 0 is the default.
	Workers int
}

// SetupCredentials adds the reconcilers of ServiceToken and APIKey to the
// manager.
func SetupCredentials(mgr ctrl.Manager, cfg CredentialConfig) error {
	if cfg.Random == nil {
		cfg.Random = rand.Reader
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.ClockSkew == nil {
		cfg.ClockSkew = func() (time.Duration, bool) { return 0, true }
	}
	if cfg.Workers == 0 {
		cfg.Workers = defaultWorkers
	}
	claims := newClaims(mgr.GetCache())
	for _, kind := range []credentialKind{serviceTokens, apiKeys} {
		if err := setupKind(mgr, cfg, kind, claims); err != nil {
			return fmt.Errorf("setting up the reconciler of %s: %w", kind.kind, err)
		}
	}
	return nil
}

// credentialKind is how the one reconciler deals with two Go types.
type credentialKind struct {
	kind v1alpha1.Kind
	new  func() v1alpha1.Credential
	list func(ctx context.Context, r client.Reader, opts ...client.ListOption) ([]v1alpha1.Credential, error)
}

var serviceTokens = credentialKind{
	kind: v1alpha1.KindServiceToken,
	new:  func() v1alpha1.Credential { return &v1alpha1.ServiceToken{} },
	list: func(ctx context.Context, r client.Reader, opts ...client.ListOption) ([]v1alpha1.Credential, error) {
		var l v1alpha1.ServiceTokenList
		err := r.List(ctx, &l, opts...)
		return pointers[v1alpha1.ServiceToken](l.Items), err
	},
}

var apiKeys = credentialKind{
	kind: v1alpha1.KindAPIKey,
	new:  func() v1alpha1.Credential { return &v1alpha1.APIKey{} },
	list: func(ctx context.Context, r client.Reader, opts ...client.ListOption) ([]v1alpha1.Credential, error) {
		var l v1alpha1.APIKeyList
		err := r.List(ctx, &l, opts...)
		return pointers[v1alpha1.APIKey](l.Items), err
	},
}

func pointers[T any, P interface {
	*T
	v1alpha1.Credential
}](items []T) []v1alpha1.Credential {
	out := make([]v1alpha1.Credential, len(items))
	for i := range items {
		out[i] = P(&items[i])
	}
	return out
}

func setupKind(mgr ctrl.Manager, cfg CredentialConfig, kind credentialKind, claims *claims) error {
	recorder, err := newRecorder(mgr)
	if err != nil {
		return err
	}
	r := &credentials{
		cfg: cfg, kind: kind, client: mgr.GetClient(), live: mgr.GetAPIReader(), recorder: recorder, memory: newMemory(), claims: claims,
		cache: mgr.GetCache(), labels: newSealedLabels(),
	}
	if err := mgr.GetFieldIndexer().IndexField(context.Background(), kind.new(), indexClass, classOf); err != nil {
		return err
	}
	namespace := &metav1.PartialObjectMetadata{}
	namespace.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Namespace"))
	b := ctrl.NewControllerManagedBy(mgr)
	if cfg.Transitions != nil {
		b = b.WatchesRawSource(source.Channel(cfg.Transitions.Changes(kind.kind), &handler.EnqueueRequestForObject{}))
	}
	if cfg.Usage != nil {
		b = b.WatchesRawSource(source.Channel(cfg.Usage.Changes(kind.kind), handler.EnqueueRequestsFromMapFunc(r.used)))
	}
	if cfg.Restarts != nil {
		b = b.WatchesRawSource(source.Channel(cfg.Restarts.Changes(kind.kind), &handler.EnqueueRequestForObject{}))
	}
	return b.Named(strings.ToLower(string(kind.kind))).
		For(kind.new(), builder.WithPredicates(predicate.Funcs{UpdateFunc: r.others})).
		Owns(&corev1.Secret{}, builder.WithPredicates(predicate.Funcs{UpdateFunc: r.othersSecret, CreateFunc: r.othersNewSecret})).
		Watches(&v1alpha1.CredentialClass{}, handler.EnqueueRequestsFromMapFunc(r.ofClass)).
		WatchesMetadata(namespace, handler.EnqueueRequestsFromMapFunc(r.ofNamespace), builder.WithPredicates(predicate.LabelChangedPredicate{})).
		WatchesRawSource(claims.of(kind.kind)).
		Watches(&v1alpha1.Revocation{}, r.revoked()).
		WatchesRawSource(source.Channel(cfg.Keys.Changes(), handler.EnqueueRequestsFromMapFunc(r.all))).
		WatchesRawSource(source.Channel(cfg.Propagation.Changes(kind.kind), &handler.EnqueueRequestForObject{})).
		WithOptions(controller.Options{MaxConcurrentReconciles: cfg.Workers}).
		Complete(r)
}

// others lets through the changes that others made, and resyncs. What we wrote
// ourselves we have planned by already.
func (r *credentials) others(e event.UpdateEvent) bool {
	if c, ok := e.ObjectNew.(v1alpha1.Credential); ok {
		r.memory.cached(client.ObjectKeyFromObject(e.ObjectNew), c)
	}
	return e.ObjectOld.GetResourceVersion() == e.ObjectNew.GetResourceVersion() ||
		!r.memory.ours(client.ObjectKeyFromObject(e.ObjectNew), e.ObjectNew.GetResourceVersion())
}

func (r *credentials) othersSecret(e event.UpdateEvent) bool {
	return e.ObjectOld.GetResourceVersion() == e.ObjectNew.GetResourceVersion() || !r.ourSecret(e.ObjectNew)
}

func (r *credentials) othersNewSecret(e event.CreateEvent) bool { return !r.ourSecret(e.Object) }

// ourSecret tells whether a Secret is as we wrote it.
func (r *credentials) ourSecret(secret client.Object) bool {
	owner := metav1.GetControllerOf(secret)
	return owner != nil && owner.Kind == string(r.kind.kind) &&
		r.memory.ours(types.NamespacedName{Namespace: secret.GetNamespace(), Name: owner.Name}, secret.GetResourceVersion())
}

// credentials reconciles one kind of credential.
type credentials struct {
	cfg      CredentialConfig
	kind     credentialKind
	client   client.Client // reads come from the cache
	live     client.Reader // reads come from the API server
	recorder eventRecorder
	memory   *memory
	claims   *claims
	cache    cache.Informers
	labels   *sealedLabels
	// selectors of the Revocations.
	selectors selectors
}

// Reconcile implements reconcile.Reconciler.
func (r *credentials) Reconcile(ctx context.Context, req reconcile.Request) (result reconcile.Result, err error) {
	r.memory.begin(req.NamespacedName)
	defer func() {
		if r.memory.end(req.NamespacedName) {
			result.RequeueAfter = atOnce
		}
	}()
	return r.reconcile(ctx, req)
}

func (r *credentials) reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	s, err := r.observe(ctx, req.NamespacedName)
	switch {
	case abandoned(err):
		return reconcile.Result{RequeueAfter: catchUp}, nil
	case errors.Is(err, errPeppersNotRead):
		// Nothing has gone wrong: this controller has begun to lead a moment ago.
		return reconcile.Result{RequeueAfter: tryAgain}, nil
	case err != nil || s == nil:
		return reconcile.Result{}, err
	}
	for range maxPasses {
		decision := lifecycle.Plan(&s.observed, r.now())
		wrote, err := r.act(ctx, s, &decision)
		switch {
		case abandoned(err):
			// Somebody else wrote first. The cache will tell what; if it told
			// already, look again soon.
			return reconcile.Result{RequeueAfter: tryAgain}, nil
		case err != nil:
			return reconcile.Result{}, err
		case !wrote:
			r.follow(s, &decision)
			if r.cfg.Restarts != nil {
				r.cfg.Restarts.Ask(s.credential, decision.Restarts)
			}
			return reconcile.Result{RequeueAfter: r.after(s, &decision)}, nil
		}
	}
	return reconcile.Result{}, fmt.Errorf("%s %s: still writing after %d passes", r.kind.kind, req.NamespacedName, maxPasses)
}

// act makes the first write the decision asks for, and tells whether there was
// one.
func (r *credentials) act(ctx context.Context, s *scope, d *lifecycle.Decision) (wrote bool, err error) {
	if d.Mint != nil && !s.fresh && s.observed.Status.CurrentVersion+1 < d.Mint.Version {
		// In place of one that was lost, or so it seems: the Secret as it is now, and
		// not as the cache has it, says whether somebody delivered it after all.
		s.fresh = true
		return true, r.readSecret(ctx, s)
	}
	if wrote, err := r.commit(ctx, s, d); wrote || err != nil {
		return wrote, err
	}
	switch d.Secret.Action {
	case lifecycle.SecretWrite:
		if wrote, err := r.writeSecret(ctx, s, d.Secret); wrote || err != nil {
			return wrote, err
		}
	case lifecycle.SecretDelete:
		if wrote, err := r.deleteSecret(ctx, s); wrote || err != nil {
			return wrote, err
		}
	}
	if d.Delete {
		err := r.client.Delete(ctx, s.credential.(client.Object), client.Preconditions{
			UID: ptrTo(s.credential.GetUID()), ResourceVersion: ptrTo(s.credential.GetResourceVersion()),
		})
		return false, client.IgnoreNotFound(err)
	}
	if d.AwaitPropagation {
		if answer := r.cfg.Propagation.Ask(s.question()); answer.Accepted || len(answer.Lagging) != len(s.observed.Propagation.Lagging) {
			s.observed.Propagation = answer
			return true, nil // nothing was written, and yet there is something new to plan by
		}
	}
	return false, s.failed
}

// now is the time to plan by: where this process's clock is behind the API
// server's, that one. A promise that is made by a clock that is slow would be kept
// too short by any other.
func (r *credentials) now() time.Time {
	now := r.cfg.Now()
	if ahead, known := r.cfg.ClockSkew(); known && ahead < 0 {
		now = now.Add(-ahead)
	}
	return now
}

// follow has the servers asked for what the plan wants to know of uses.
func (r *credentials) follow(s *scope, d *lifecycle.Decision) {
	if r.cfg.Usage == nil {
		return
	}
	if d.AskUsage {
		r.cfg.Usage.Ask()
	}
	r.cfg.Usage.Keep(s.credential.GetUID(), d.Status.Versions)
	if d.Mark.Left > 0 {
		at := d.Mark.Left
		if s.observed.Usage != nil {
			for _, c := range s.observed.Usage.Uses[d.Mark.Version] {
				at += c.Uses
			}
		}
		r.cfg.Usage.TellAt(s.credential.GetUID(), d.Mark.Version, at)
	}
}

// after is when to look again though nothing happened.
func (r *credentials) after(s *scope, d *lifecycle.Decision) time.Duration {
	var wait time.Duration
	if !d.Next.IsZero() {
		wait = max(d.Next.Sub(r.now()), time.Millisecond)
	}
	if s.observed.Conflict != "" || (s.observed.Secret.Exists && !s.observed.Secret.Ours) || s.observed.ClockSkewed {
		if wait == 0 || wait > retryForeign {
			wait = retryForeign
		}
	}
	return wait
}

var errAbandoned = errors.New("somebody else wrote first")

func abandoned(err error) bool { return errors.Is(err, errAbandoned) || apierrors.IsConflict(err) }

func classOf(o client.Object) []string {
	return []string{o.(v1alpha1.Credential).CredentialSpec().CredentialClassName}
}

func (r *credentials) ofClass(ctx context.Context, class client.Object) []reconcile.Request {
	return r.requests(ctx, client.MatchingFields{indexClass: class.GetName()})
}

func (r *credentials) ofNamespace(ctx context.Context, namespace client.Object) []reconcile.Request {
	if watched := r.cfg.WatchNamespaces; len(watched) > 0 && !slices.Contains(watched, namespace.GetName()) {
		return nil // the cache has nothing of it
	}
	return r.requests(ctx, client.InNamespace(namespace.GetName()))
}

func (r *credentials) all(ctx context.Context, _ client.Object) []reconcile.Request {
	return r.those(ctx, func(v1alpha1.Credential) bool { return true })
}

// serversFirst is how much later than a Revocation its credentials are looked at. Servers
// refuse them already, and are not to wait for a processor that writes what people read.
const serversFirst = 100 * time.Millisecond

// revoked has those looked at that a Revocation takes.
func (r *credentials) revoked() handler.EventHandler {
	tell := func(ctx context.Context, o client.Object, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) {
		time.AfterFunc(serversFirst, func() {
			for _, request := range r.ofRevocation(ctx, o) {
				queue.Add(request)
			}
		})
	}
	return handler.Funcs{
		CreateFunc: func(ctx context.Context, e event.CreateEvent, q workqueue.TypedRateLimitingInterface[reconcile.Request]) {
			tell(ctx, e.Object, q)
		},
		UpdateFunc: func(ctx context.Context, e event.UpdateEvent, q workqueue.TypedRateLimitingInterface[reconcile.Request]) {
			// Its status is written every so often while some are left, and tells of it again.
			was, is := e.ObjectOld.(*v1alpha1.Revocation), e.ObjectNew.(*v1alpha1.Revocation)
			again := is.Generation != was.Generation || !equality.Semantic.DeepEqual(was.Status, is.Status)
			if again && !meta.IsStatusConditionTrue(is.Status.Conditions, v1alpha1.ConditionSettled) {
				tell(ctx, is, q)
			}
		},
		DeleteFunc: func(ctx context.Context, e event.DeleteEvent, q workqueue.TypedRateLimitingInterface[reconcile.Request]) {
			tell(ctx, e.Object, q)
		},
	}
}

func (r *credentials) ofRevocation(ctx context.Context, o client.Object) []reconcile.Request {
	if o.GetDeletionTimestamp() != nil && len(o.GetFinalizers()) == 0 {
		return nil // it is gone; until then it holds
	}
	rv := o.(*v1alpha1.Revocation)
	selector, err := credential.NewSelector(&rv.Spec)
	if err != nil {
		return nil
	}
	peppers, _ := r.cfg.Keys.Peppers() // without them labels are as they are now; all are looked at once they are there
	return r.those(ctx, func(c v1alpha1.Credential) bool {
		return selector.Selects(r.kind.kind, c.GetNamespace(), r.labels.sets(peppers, c)...) && !accounted(peppers, c, rv)
	})
}

// those of the kind that are meant.
func (r *credentials) those(ctx context.Context, meant func(v1alpha1.Credential) bool) []reconcile.Request {
	var requests []reconcile.Request
	there, err := r.kind.each(ctx, r.client, r.cache, func(c v1alpha1.Credential) {
		if meant(c) {
			requests = append(requests, reconcile.Request{NamespacedName: types.NamespacedName{Namespace: c.GetNamespace(), Name: c.GetName()}})
		}
	})
	if err != nil {
		ctrl.LoggerFrom(ctx).Error(err, "Listing credentials", "kind", r.kind.kind)
		return requests
	}
	r.labels.prune(there)
	return requests
}

func (r *credentials) requests(ctx context.Context, opts ...client.ListOption) []reconcile.Request {
	list, err := r.kind.list(ctx, r.client, append(opts, client.UnsafeDisableDeepCopy)...)
	if err != nil {
		ctrl.LoggerFrom(ctx).Error(err, "Listing credentials", "kind", r.kind.kind)
		return nil
	}
	var requests []reconcile.Request
	for _, c := range list {
		requests = append(requests, reconcile.Request{NamespacedName: types.NamespacedName{Namespace: c.GetNamespace(), Name: c.GetName()}})
	}
	return requests
}

func ptrTo[T any](v T) *T { return &v }
