//go:build faults

package faults

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"net/http"
	"path"
	"slices"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

const (
	// settleTimeout is how long a trial may take to come to its final state.
	settleTimeout = 90 * time.Second
	// grace and quiet: a while after the final state, nothing is written for the
	// time of quiet.
	grace = time.Second
	quiet = 2 * time.Second
	// className is the class of every credential here.
	className = "faults"
	// longOverlap is an overlap that no trial outlasts, shortOverlap one that ends
	// within it.
	longOverlap  = time.Hour
	shortOverlap = 3 * time.Second
)

// trial is one run of a scenario on a credential of its own, in a namespace of its
// own.
type trial struct {
	*rig
	scenario  *scenario
	number    int
	fault     string // in words
	namespace string
	kind      v1alpha1.Kind
	asked     metav1.MicroTime // of the latest request by annotation

	began, settled time.Time
	final          *v1alpha1.CredentialStatus // nil where the credential is gone
	unwatch        context.CancelFunc
	starts         int  // of servers, before
	calm           bool // nothing befell any server

	mu       sync.Mutex
	digests  map[int64]map[string]bool
	broken   error // why the fault could not be made
	overtook bool  // the standby has taken over
	dueled   bool  // two controllers led at the same time, so that both may have rotated
	// more values than the scenario asks for may have been delivered, for somebody
	// took them away.
	more        bool
	fewer       bool // than those, for what was asked for was revoked
	background  int  // faults that go on beside the write they befell
	impairments []impairment
	shown       []string                    // what was found amiss in how servers show that they are not fresh
	looks       int                         // how often that was looked at
	settles     func(context.Context) error // instead of the scenario's
	held        []string                    // the values that the holder of an external credential keeps
}

func (t *trial) key() types.NamespacedName {
	return types.NamespacedName{Namespace: t.namespace, Name: "it"}
}

func (t *trial) String() string {
	return fmt.Sprintf("%s, %s (%s)", t.scenario.name, t.fault, t.namespace)
}

// object makes the credential.
func (t *trial) object() v1alpha1.Credential {
	m := metav1.ObjectMeta{Namespace: t.namespace, Name: "it", Labels: map[string]string{"trial": t.namespace}}
	if t.kind == v1alpha1.KindAPIKey {
		return &v1alpha1.APIKey{ObjectMeta: m}
	}
	return &v1alpha1.ServiceToken{ObjectMeta: m}
}

// insist repeats a request of the trial's own until it succeeds: a controller that is
// being started again serves no webhooks for a moment.
func insist(ctx context.Context, do func() error) error {
	return poll(ctx, 30*time.Second, do)
}

// poll asks until the answer is nil.
func poll(ctx context.Context, patience time.Duration, ask func() error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ask()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %s: %w", patience, err)
		case <-tick.C:
		}
	}
}

// prepare makes the namespace, and follows what the status says of versions.
func (t *trial) prepare(ctx context.Context) error {
	if err := insist(ctx, func() error {
		err := t.admin.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: t.namespace}})
		return client.IgnoreAlreadyExists(err)
	}); err != nil {
		return err
	}
	var list client.ObjectList = &v1alpha1.ServiceTokenList{}
	if t.kind == v1alpha1.KindAPIKey {
		list = &v1alpha1.APIKeyList{}
	}
	t.starts = t.serverStarts()
	ctx, t.unwatch = context.WithCancel(ctx)
	watcher, err := t.admin.Watch(ctx, list, client.InNamespace(t.namespace))
	if err != nil {
		return err
	}
	t.digests = map[int64]map[string]bool{}
	go func() {
		defer watcher.Stop()
		for e := range watcher.ResultChan() {
			if c, ok := e.Object.(v1alpha1.Credential); ok {
				t.note(c.CredentialStatus())
			}
		}
	}()
	return nil
}

func (t *trial) note(s *v1alpha1.CredentialStatus) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, v := range s.Versions {
		if t.digests[v.Version] == nil {
			t.digests[v.Version] = map[string]bool{}
		}
		t.digests[v.Version][v.Pepper+"/"+v.Digest] = true
	}
}

func (t *trial) create(ctx context.Context) error {
	return insist(ctx, func() error {
		c := t.object()
		*c.CredentialSpec() = v1alpha1.CredentialSpec{
			CredentialClassName: className, Permissions: []v1alpha1.Permission{"api:read"},
			Rotation: &v1alpha1.Rotation{
				Overlap: v1alpha1.Duration(t.scenario.overlap.String()), Retire: v1alpha1.RetireAfterOverlap,
			},
		}
		if t.scenario.overlap == 0 {
			c.CredentialSpec().Rotation = &v1alpha1.Rotation{Retire: v1alpha1.RetireImmediately}
		}
		return client.IgnoreAlreadyExists(t.admin.Create(ctx, c.(client.Object)))
	})
}

// change patches the credential.
func (t *trial) change(ctx context.Context, change func(v1alpha1.Credential)) error {
	return insist(ctx, func() error {
		c := t.object()
		if err := t.admin.Get(ctx, t.key(), c.(client.Object)); err != nil {
			return err
		}
		before := c.DeepCopyObject().(client.Object)
		change(c)
		return t.admin.Patch(ctx, c.(client.Object), client.MergeFrom(before))
	})
}

func (t *trial) request(ctx context.Context, annotation string) error {
	t.asked = metav1.NewMicroTime(time.Now().UTC().Truncate(time.Microsecond))
	return t.change(ctx, func(c v1alpha1.Credential) {
		a := c.GetAnnotations()
		if a == nil {
			a = map[string]string{}
		}
		a[annotation] = t.asked.Format(time.RFC3339Nano)
		c.SetAnnotations(a)
	})
}

func (t *trial) rotate(ctx context.Context) error {
	return t.request(ctx, v1alpha1.AnnotationRotateRequestedAt)
}

func (t *trial) rollBack(ctx context.Context) error {
	return t.request(ctx, v1alpha1.AnnotationRollbackRequestedAt)
}

// discard gives what came before the current version up.
func (t *trial) discard(ctx context.Context) error {
	t.prober.ending(t.namespace, 1)
	return t.request(ctx, v1alpha1.AnnotationDiscardRequestedAt)
}

// declare declares the values that the holder keeps, the latest as the current one,
// and a new one before them; keep is how many of the earlier ones stay.
func (t *trial) declare(ctx context.Context, keep int) error {
	value, err := credential.Format{Kind: t.kind, Environment: ""}.Mint(rand.Reader)
	if err != nil {
		return err
	}
	t.held = append(t.held, value.Reveal())
	return t.declareHeld(ctx, keep+1)
}

// declareFirst declares one value, declareNext another one beside it, and declareLast
// gives the first one up.
func (t *trial) declareFirst(ctx context.Context) error { return t.declare(ctx, 0) }
func (t *trial) declareNext(ctx context.Context) error  { return t.declare(ctx, 1) }
func (t *trial) declareLast(ctx context.Context) error {
	t.prober.ending(t.namespace, 1)
	return t.declareHeld(ctx, 1)
}

// declareHeld declares the latest values, as many as told.
func (t *trial) declareHeld(ctx context.Context, most int) error {
	var digests []string
	for _, text := range slices.Backward(t.held) {
		if len(digests) < most {
			digests = append(digests, fmt.Sprintf("%x", sha256.Sum256([]byte(text))))
		}
	}
	external := &v1alpha1.External{SHA256: digests}
	if len(t.held) > 1 {
		return t.change(ctx, func(c v1alpha1.Credential) { c.CredentialSpec().External = external })
	}
	return insist(ctx, func() error {
		c := t.object()
		*c.CredentialSpec() = v1alpha1.CredentialSpec{
			CredentialClassName: className, Permissions: []v1alpha1.Permission{"api:read"}, External: external,
		}
		return client.IgnoreAlreadyExists(t.admin.Create(ctx, c.(client.Object)))
	})
}

// impair notes that something befalls servers; call over when it has ended.
func (t *trial) impair(what ailment, servers ...int) (over func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	first := len(t.impairments)
	for _, i := range servers {
		t.impairments = append(t.impairments, impairment{server: i, what: what, from: time.Now()})
	}
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		for i := range servers {
			t.impairments[first+i].until = time.Now()
		}
	}
}

// during runs a fault beside the write it befell. The trial waits for its end.
func (t *trial) during(do func()) {
	t.mu.Lock()
	t.background++
	t.mu.Unlock()
	go func() {
		do()
		t.mu.Lock()
		defer t.mu.Unlock()
		t.background--
	}()
}

// shows checks that a server shows how old what it knows is (I5).
func (t *trial) shows(ctx context.Context, i int, atLeast time.Duration) {
	age, err := t.servers[i].shownAge(ctx)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.looks++
	if err != nil || age < atLeast {
		t.shown = append(t.shown, fmt.Sprintf("%s shows an age of %s (%v), which is %s at least", t.servers[i].name, age, err, atLeast))
	}
}

func (t *trial) revoke(ctx context.Context) error {
	ended := t.prober.ending(t.namespace, math.MaxInt64)
	err := t.change(ctx, func(c v1alpha1.Credential) { c.CredentialSpec().Revoked = &v1alpha1.Revoked{Reason: "tried out"} })
	ended()
	return err
}

func (t *trial) remove(ctx context.Context) error {
	ended := t.prober.ending(t.namespace, math.MaxInt64)
	err := insist(ctx, func() error { return client.IgnoreNotFound(t.admin.Delete(ctx, t.object().(client.Object))) })
	ended()
	return err
}

// replace revokes by a Revocation that has the credential replaced.
func (t *trial) replace(ctx context.Context) error { return t.revocation(ctx, 1) }

// revocation makes a Revocation that takes the versions up to the one given, and has the
// credential replaced.
func (t *trial) revocation(ctx context.Context, through int64) error {
	ended := t.prober.ending(t.namespace, through)
	err := insist(ctx, func() error {
		return client.IgnoreAlreadyExists(t.admin.Create(ctx, &v1alpha1.Revocation{
			ObjectMeta: metav1.ObjectMeta{Name: t.namespace},
			Spec:       v1alpha1.RevocationSpec{Reason: "tried out", Namespaces: []string{t.namespace}, Replace: "Immediately"},
		}))
	})
	ended()
	return err
}

// look reads the credential and its Secret; nil is one that does not exist.
func (t *trial) look(ctx context.Context) (v1alpha1.Credential, *corev1.Secret, error) {
	c, secret := t.object(), &corev1.Secret{}
	if err := t.admin.Get(ctx, t.key(), c.(client.Object)); apierrors.IsNotFound(err) {
		c = nil
	} else if err != nil {
		return nil, nil, err
	}
	if err := t.admin.Get(ctx, t.key(), secret); apierrors.IsNotFound(err) {
		secret = nil
	} else if err != nil {
		return nil, nil, err
	}
	return c, secret, nil
}

// consistent tells what is amiss where a credential should be Ready: Secret and
// status say the same, and nothing is on its way. Where somebody took the Secret away,
// the previous value is lost with it.
func consistent(c v1alpha1.Credential, secret *corev1.Secret, lost bool) error {
	if c == nil || secret == nil {
		return errors.New("the credential or its Secret does not exist")
	}
	s := c.CredentialStatus()
	if s.ObservedGeneration != c.GetGeneration() {
		return fmt.Errorf("generation %d has not been observed", c.GetGeneration())
	}
	if !meta.IsStatusConditionTrue(s.Conditions, v1alpha1.ConditionReady) {
		return fmt.Errorf("it is not Ready: %v", s.Conditions)
	}
	superseded := map[int64]bool{}
	for _, v := range s.Versions {
		switch v.State {
		case v1alpha1.VersionPending:
			return fmt.Errorf("version %d is pending", v.Version)
		case v1alpha1.VersionActive:
			if v.Version != s.CurrentVersion {
				return fmt.Errorf("version %d is active, and %d current", v.Version, s.CurrentVersion)
			}
		case v1alpha1.VersionSuperseded:
			superseded[v.Version] = true
		case v1alpha1.VersionRetired, v1alpha1.VersionRevoked, v1alpha1.VersionExpired:
		}
	}
	carries := func(key string) int64 {
		n, _ := strconv.ParseInt(string(secret.Data[key]), 10, 64) // what is not there is version 0
		return n
	}
	if got := carries(v1alpha1.SecretKeyVersion); got != s.CurrentVersion {
		return fmt.Errorf("the Secret carries version %d, the status says %d", got, s.CurrentVersion)
	}
	if got := carries(v1alpha1.SecretKeyPreviousVersion); got == 0 && lost {
		return nil
	} else if (got != 0 || len(superseded) > 0) && !superseded[got] {
		return fmt.Errorf("the Secret carries version %d as the previous one, the status says %v", got, superseded)
	}
	return nil
}

// reached tells what keeps the final state from being reached.
func (t *trial) reached(ctx context.Context) error {
	t.mu.Lock()
	settles := t.settles
	t.mu.Unlock()
	if settles != nil {
		return settles(ctx)
	}
	return t.scenario.settled(ctx, t)
}

// settle waits for the final state.
func (t *trial) settle(ctx context.Context) error {
	err := poll(ctx, 2*settleTimeout, func() error {
		t.mu.Lock()
		background := t.background
		t.mu.Unlock()
		if background > 0 || t.proxy.busy() {
			return errors.New("the fault is still under way")
		}
		if err := t.reached(ctx); err != nil {
			return err
		}
		c, _, err := t.look(ctx)
		if err == nil && c != nil {
			t.final = c.CredentialStatus()
		}
		return err
	})
	t.settled = time.Now()
	t.mu.Lock()
	t.calm = len(t.impairments) == 0 && t.starts == t.serverStarts()
	t.mu.Unlock()
	return err
}

// presented tells whether every value so far has been presented a few times.
func (t *trial) presented() error {
	const few = 10
	for _, v := range t.prober.of(t.namespace) {
		if len(v.probes) < few {
			return fmt.Errorf("version %d has been presented %d times only", v.version, len(v.probes))
		}
	}
	return nil
}

// finish waits until the trial has been watched for long enough, and judges it.
func (t *trial) finish(ctx context.Context) (*verdict, error) {
	enough := time.NewTimer(time.Until(t.settled.Add(grace + quiet)))
	defer enough.Stop()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-enough.C:
	}
	t.unwatch()
	h := &history{
		values: t.prober.of(t.namespace), servers: t.servers, overlap: t.scenario.overlap, settled: t.settled, final: t.final,
		shown: t.prober.shown(), calm: t.calm,
		late: t.proxy.written(t.settled.Add(grace), func(w *write) bool { return !w.usage && aboutNamespace(t.namespace)(w) }),
	}
	t.mu.Lock()
	h.digests, h.impairments = t.digests, t.impairments
	t.mu.Unlock()
	v := judge(h)
	delivered, asked := 0, t.scenario.deliveries
	for i := range h.values {
		if !h.values[i].forged {
			delivered++
		}
	}
	v.check("I18", delivered == asked || ((t.final == nil || t.fewer) && delivered < asked) || ((t.dueled || t.more) && delivered > asked),
		"%d values were delivered, where %d were asked for", delivered, asked)
	for _, w := range t.proxy.written(t.began, func(w *write) bool { return w.forwarded && aboutSecret(t.namespace)(w) }) {
		name := path.Base(w.path)
		v.check("I9", name == "secrets" || name == "it", "%s, which is not its own", w.String())
	}
	for range t.looks - len(t.shown) {
		v.check("I5", true, "")
	}
	for _, p := range t.shown {
		v.check("I5", false, "%s", p)
	}
	t.prober.retire(t.namespace)
	return v, nil
}

// unchanged checks, at the end of everything, that no controller started since has
// rotated the credential, or written anything about it.
func (t *trial) unchanged(ctx context.Context, v *verdict) error {
	late := t.proxy.written(t.settled.Add(grace), func(w *write) bool {
		return w.forwarded && w.code < http.StatusBadRequest && !w.usage && aboutNamespace(t.namespace)(w)
	})
	v.check("I4", len(late) == 0, "%s: the controller has written since it had settled: %v", t, describe(late))
	if t.final == nil {
		return nil
	}
	c, _, err := t.look(ctx)
	if err != nil {
		return err
	}
	v.check("I18", c != nil && c.CredentialStatus().CurrentVersion == t.final.CurrentVersion &&
		len(c.CredentialStatus().Versions) == len(t.final.Versions), "%s: changed after it had settled", t)
	return nil
}
