package controllers

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
	"github.com/mintmark-dev/mintmark/internal/keyring"
	"github.com/mintmark-dev/mintmark/test/controlplane"
)

// installation is a namespace of a real API server, with a clock of its own.
type installation struct {
	t         *testing.T
	client    client.Client
	namespace string
	clock     time.Time
	skew      time.Duration
	recorder  *events.FakeRecorder
}

func newInstallation(t *testing.T) *installation {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	c, err := client.New(controlplane.ForTest(t).Config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "installation-"}}
	if err := c.Create(t.Context(), namespace); err != nil {
		t.Fatal(err)
	}
	return &installation{
		t: t, client: c, namespace: namespace.Name, recorder: events.NewFakeRecorder(1000),
		clock: time.Now().UTC().Truncate(time.Second),
	}
}

func (i *installation) secrets() installationSecrets {
	return installationSecrets{namespace: i.namespace, client: i.client, live: i.client, recorder: i.recorder}
}

// keys makes a reconciler as another process would have it.
func (i *installation) keys() *KeyReconciler {
	return &KeyReconciler{installationSecrets: i.secrets(), cfg: KeyConfig{
		Namespace: i.namespace, WatchNamespaces: []string{i.namespace}, Policy: keyring.DefaultPolicy(), Peppers: new(PepperHolder),
		Random: rand.Reader, Now: func() time.Time { return i.clock }, ClockSkew: func() (time.Duration, bool) { return i.skew, true },
	}}
}

// reconcile runs one pass and returns when to look again.
func (i *installation) reconcile(r reconcile.Reconciler, name string) time.Duration {
	i.t.Helper()
	result, err := r.Reconcile(i.t.Context(), reconcile.Request{NamespacedName: client.ObjectKey{Namespace: i.namespace, Name: name}})
	if err != nil {
		i.t.Fatal(err)
	}
	return result.RequeueAfter
}

// secret reads a Secret; nil where there is none.
func (i *installation) secret(name string) *corev1.Secret {
	i.t.Helper()
	secrets := i.secrets()
	secret, err := secrets.read(i.t.Context(), name)
	if err != nil {
		i.t.Fatal(err)
	}
	return secret
}

// must ends the test at an error.
func (i *installation) must(err error) {
	i.t.Helper()
	if err != nil {
		i.t.Fatal(err)
	}
}

func (i *installation) annotate(name, key, value string) {
	i.t.Helper()
	secret := i.secret(name)
	metav1.SetMetaDataAnnotation(&secret.ObjectMeta, key, value)
	i.must(i.client.Update(i.t.Context(), secret))
}

func (i *installation) requestRotation(name string, at time.Time) {
	i.t.Helper()
	i.annotate(name, v1alpha1.AnnotationRotateRequestedAt, at.Format(time.RFC3339))
}

// supply makes a Secret as somebody else would.
func (i *installation) supply(name string, data map[string][]byte) *corev1.Secret {
	i.t.Helper()
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: i.namespace, Name: name}, Data: data}
	i.must(i.client.Create(i.t.Context(), secret))
	return secret
}

// events are the reasons of the events since the last call.
func (i *installation) events() []string {
	var reasons []string
	for {
		select {
		case text := <-i.recorder.Events:
			reasons = append(reasons, strings.Fields(text)[1])
		default:
			return reasons
		}
	}
}

func (i *installation) expectEvents(want ...string) {
	i.t.Helper()
	if diff := cmp.Diff(want, i.events()); diff != "" {
		i.t.Errorf("events (-want +got):\n%s", diff)
	}
}

// credential makes a ServiceToken with this status.
func (i *installation) credential(name string, status v1alpha1.CredentialStatus) *v1alpha1.ServiceToken {
	i.t.Helper()
	token := &v1alpha1.ServiceToken{ObjectMeta: metav1.ObjectMeta{Namespace: i.namespace, Name: name}}
	i.must(i.client.Create(i.t.Context(), token))
	token.Status = status
	i.must(i.client.Status().Update(i.t.Context(), token))
	return token
}

func pepperIDs(t *testing.T, r *KeyReconciler) []string {
	t.Helper()
	peppers, err := r.cfg.Peppers.Peppers()
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, p := range peppers {
		ids = append(ids, p.ID())
	}
	return ids
}

func TestProcessesThatStartTogetherMakeOneOfEachKey(t *testing.T) {
	i := newInstallation(t)
	const processes = 6
	reconcilers := make([]*KeyReconciler, processes)
	var wait sync.WaitGroup
	for n := range reconcilers {
		reconcilers[n] = i.keys()
		wait.Go(func() {
			for _, name := range []string{keyring.PepperSecret, keyring.SigningKeysSecret} {
				key := client.ObjectKey{Namespace: i.namespace, Name: name}
				for range 2 { // who loses the race looks again
					if _, err := reconcilers[n].Reconcile(t.Context(), reconcile.Request{NamespacedName: key}); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wait.Wait()
	want := pepperIDs(t, reconcilers[0])
	for n, r := range reconcilers {
		if diff := cmp.Diff(want, pepperIDs(t, r)); diff != "" || len(want) != 1 {
			t.Errorf("process %d has other peppers (-want +got):\n%s", n, diff)
		}
	}
	made := i.events()
	slices.Sort(made)
	if diff := cmp.Diff([]string{"PepperMade", "SigningKeyActivated", "SigningKeyPublished"}, made); diff != "" {
		t.Errorf("events of all processes (-want +got):\n%s", diff)
	}
	for _, name := range []string{keyring.PepperSecret, keyring.SigningKeysSecret} {
		secret := i.secret(name)
		if !ours(secret) || secret.Type != corev1.SecretTypeOpaque || secret.Immutable == nil || *secret.Immutable {
			t.Errorf("Secret %s: labels %v, type %s, immutable %v", name, secret.Labels, secret.Type, secret.Immutable)
		}
	}
	if keys, err := keyring.DecodeSigningKeys(i.secret(keyring.SigningKeysSecret).Data); err != nil || keys[keyring.ES256].Next != nil || len(keys.All()) != 1 {
		t.Errorf("signing keys %+v, error %v, want one, that signs at once", keys, err)
	}
}

func TestNothingIsWrittenWhereNothingIsDue(t *testing.T) {
	i := newInstallation(t)
	for _, name := range []string{keyring.PepperSecret, keyring.SigningKeysSecret} {
		i.reconcile(i.keys(), name)
		before := i.secret(name).ResourceVersion
		if next := i.reconcile(i.keys(), name); next != keysResync {
			t.Errorf("%s is looked at again after %v, want %v", name, next, keysResync)
		}
		if after := i.secret(name).ResourceVersion; after != before {
			t.Errorf("a process that starts wrote %s", name)
		}
	}
}

func TestAPepperIsNotMadeWhereCredentialsDependOnOne(t *testing.T) {
	for name, status := range map[string]v1alpha1.CredentialStatus{
		"a sealed record": {Record: []byte{1}, Seal: "p1.tag"},
		"a version":       {Versions: []v1alpha1.CredentialVersion{{Version: 1, State: v1alpha1.VersionActive, Digest: "00", Pepper: "p1", Created: metav1.Now()}}},
	} {
		t.Run(name, func(t *testing.T) {
			i := newInstallation(t)
			token := i.credential("ci", status)
			r := i.keys()
			if next := i.reconcile(r, keyring.PepperSecret); next != foreignPoll {
				t.Errorf("looks again after %v, want %v", next, foreignPoll)
			}
			i.expectEvents("PepperMissing")
			if i.secret(keyring.PepperSecret) != nil {
				t.Fatal("made a pepper, and no credential can be verified any more")
			}
			_, err := r.cfg.Peppers.Peppers()
			if err == nil || !strings.Contains(err.Error(), "ServiceToken "+i.namespace+"/ci") || !strings.Contains(err.Error(), "backup") {
				t.Errorf("the reason given is %v: it must name a credential and the remedy", err)
			}
			i.must(i.client.Delete(t.Context(), token))
			i.reconcile(r, keyring.PepperSecret)
			i.expectEvents("PepperMade")
			pepperIDs(t, r)
		})
	}
}

func TestAnAPIKeyKeepsAPepperFromBeingMadeToo(t *testing.T) {
	i := newInstallation(t)
	key := &v1alpha1.APIKey{ObjectMeta: metav1.ObjectMeta{Namespace: i.namespace, Name: "partner"}}
	i.must(i.client.Create(t.Context(), key))
	key.Status.Seal = "p1.tag"
	i.must(i.client.Status().Update(t.Context(), key))
	i.reconcile(i.keys(), keyring.PepperSecret)
	i.expectEvents("PepperMissing")
}

// More credentials than a page holds, of which the last alone matters.
func TestEveryPageOfCredentialsIsLookedAt(t *testing.T) {
	i := newInstallation(t)
	for n := range 205 {
		token := &v1alpha1.ServiceToken{ObjectMeta: metav1.ObjectMeta{Namespace: i.namespace, Name: fmt.Sprintf("token-%03d", n)}}
		i.must(i.client.Create(t.Context(), token))
	}
	i.credential("z-last", v1alpha1.CredentialStatus{Seal: "p1.tag"})
	i.reconcile(i.keys(), keyring.PepperSecret)
	i.expectEvents("PepperMissing")
}

func TestADeletedPepperComesBackAsItWas(t *testing.T) {
	i := newInstallation(t)
	r := i.keys()
	i.reconcile(r, keyring.PepperSecret)
	i.credential("ci", v1alpha1.CredentialStatus{Seal: pepperIDs(t, r)[0] + ".tag"})
	before := i.secret(keyring.PepperSecret)
	i.must(i.client.Delete(t.Context(), before))
	i.reconcile(r, keyring.PepperSecret)
	i.expectEvents("PepperMade", "PepperRestored")
	if diff := cmp.Diff(before.Data, i.secret(keyring.PepperSecret).Data); diff != "" {
		t.Errorf("the Secret is another one (-before +after):\n%s", diff)
	}
}

func TestAPepperIsRotatedOncePerRequest(t *testing.T) {
	i := newInstallation(t)
	r := i.keys()
	i.reconcile(r, keyring.PepperSecret)
	changes := r.cfg.Peppers.Changes()
	first := pepperIDs(t, r)[0]

	i.requestRotation(keyring.PepperSecret, i.clock)
	i.reconcile(r, keyring.PepperSecret)
	i.expectEvents("PepperMade", "PepperRotated")
	ids := pepperIDs(t, r)
	if len(ids) != 2 || ids[0] == first || ids[1] != first {
		t.Fatalf("peppers %v, want a new one and then %s", ids, first)
	}
	select {
	case <-changes:
	default:
		t.Error("nobody was told that the current pepper changed")
	}

	before := i.secret(keyring.PepperSecret).ResourceVersion
	i.reconcile(i.keys(), keyring.PepperSecret) // a new leader
	i.reconcile(r, keyring.PepperSecret)
	if after := i.secret(keyring.PepperSecret).ResourceVersion; after != before {
		t.Error("a request that was carried out was carried out again")
	}
	i.requestRotation(keyring.PepperSecret, i.clock.Add(-time.Minute))
	i.reconcile(r, keyring.PepperSecret)
	i.expectEvents() // an older value put back, as by a tool that syncs from Git
	i.annotate(keyring.PepperSecret, v1alpha1.AnnotationRotateRequestedAt, "now")
	i.reconcile(r, keyring.PepperSecret)
	i.expectEvents("InvalidRequest")
	i.requestRotation(keyring.PepperSecret, i.clock.Add(time.Minute))
	i.reconcile(r, keyring.PepperSecret)
	i.expectEvents("PepperRotated")
	if got := pepperIDs(t, r); len(got) != 3 || slices.Contains(ids, got[0]) {
		t.Errorf("peppers %v after %v, want one more", got, ids)
	}
}

func TestTwoProcessesRotateAPepperOnce(t *testing.T) {
	i := newInstallation(t)
	i.reconcile(i.keys(), keyring.PepperSecret)
	i.requestRotation(keyring.PepperSecret, i.clock)
	a, b := i.keys(), i.keys()
	var wait sync.WaitGroup
	for _, r := range []*KeyReconciler{a, b} {
		wait.Go(func() {
			for range 2 {
				_, _ = r.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKey{Namespace: i.namespace, Name: keyring.PepperSecret}})
			}
		})
	}
	wait.Wait()
	if diff := cmp.Diff(pepperIDs(t, a), pepperIDs(t, b)); diff != "" || len(pepperIDs(t, a)) != 2 {
		t.Errorf("they disagree, or rotated twice: %v, %v", pepperIDs(t, a), pepperIDs(t, b))
	}
}

func TestAnOldPepperGoesWhenNothingDependsOnIt(t *testing.T) {
	// sealed is a status whose record holds a version digested with one pepper,
	// under the seal of another.
	sealed := func(t *testing.T, peppers credential.Peppers, seal, version string) v1alpha1.CredentialStatus {
		record := credential.Record{UID: "u", Kind: v1alpha1.KindServiceToken, Versions: []credential.SealedVersion{{Number: 1, Digest: make([]byte, 32), Pepper: version}}}
		text, tag, err := record.Seal(peppers.ByID(seal))
		if err != nil {
			t.Fatal(err)
		}
		return v1alpha1.CredentialStatus{Record: text, Seal: tag}
	}
	for name, test := range map[string]struct {
		status func(t *testing.T, peppers credential.Peppers, old, current string) v1alpha1.CredentialStatus
		stays  bool
	}{
		"nothing has a status": {},
		"a seal names it": {stays: true, status: func(t *testing.T, p credential.Peppers, old, _ string) v1alpha1.CredentialStatus {
			return v1alpha1.CredentialStatus{Seal: old + ".tag"}
		}},
		"a version in status names it, though it has ended": {stays: true, status: func(t *testing.T, p credential.Peppers, old, _ string) v1alpha1.CredentialStatus {
			return v1alpha1.CredentialStatus{Versions: []v1alpha1.CredentialVersion{
				{Version: 1, State: v1alpha1.VersionRevoked, Digest: "00", Pepper: old, Created: metav1.Now()},
			}}
		}},
		"a version in the record names it, whatever status says": {stays: true, status: func(t *testing.T, p credential.Peppers, old, current string) v1alpha1.CredentialStatus {
			return sealed(t, p, current, old)
		}},
		"a record cannot be read": {stays: true, status: func(t *testing.T, p credential.Peppers, _, current string) v1alpha1.CredentialStatus {
			return v1alpha1.CredentialStatus{Record: []byte("garbage"), Seal: current + ".tag"}
		}},
		"everything has moved to the new one": {status: func(t *testing.T, p credential.Peppers, _, current string) v1alpha1.CredentialStatus {
			return sealed(t, p, current, current)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			i := newInstallation(t)
			r := i.keys()
			i.reconcile(r, keyring.PepperSecret)
			i.requestRotation(keyring.PepperSecret, i.clock)
			i.reconcile(r, keyring.PepperSecret)
			ids := pepperIDs(t, r)
			if test.status != nil {
				peppers, _ := r.cfg.Peppers.Peppers()
				i.credential("ci", test.status(t, peppers, ids[1], ids[0]))
			}
			i.events()

			i.clock = i.clock.Add(pepperGrace - time.Second)
			if next := i.reconcile(r, keyring.PepperSecret); next != time.Second || len(pepperIDs(t, r)) != 2 {
				t.Fatalf("before the grace is over: peppers %v, next look after %v", pepperIDs(t, r), next)
			}
			i.clock = i.clock.Add(time.Second)
			i.skew = time.Hour
			i.reconcile(r, keyring.PepperSecret)
			i.expectEvents() // with a clock that is wrong nothing is dropped by time
			i.skew = 0
			i.reconcile(r, keyring.PepperSecret)
			if want := map[bool][]string{true: ids, false: ids[:1]}[test.stays]; !slices.Equal(pepperIDs(t, r), want) {
				t.Errorf("peppers %v, want %v", pepperIDs(t, r), want)
			}
		})
	}
}

func TestSuppliedKeysAreUsedAndNeverWritten(t *testing.T) {
	i := newInstallation(t)
	made, err := keyring.NewSigningKey(rand.Reader, keyring.ES256, i.clock)
	i.must(err)
	encoded, err := keyring.RingOf(&keyring.SigningKeys{Current: made}).Encode()
	i.must(err)
	_, key, err := keyring.NewPepper(rand.Reader)
	i.must(err)
	supplied := map[string]*corev1.Secret{
		keyring.PepperSecret:      i.supply(keyring.PepperSecret, keyring.EncodePeppers("vault-1", map[string][]byte{"vault-1": key})),
		keyring.SigningKeysSecret: i.supply(keyring.SigningKeysSecret, map[string][]byte{"signing-key.pem": encoded[made.ID+".pem"]}),
	}
	r := i.keys()
	for name := range supplied {
		i.requestRotation(name, i.clock)
		before := i.secret(name)
		i.clock = i.clock.Add(365 * 24 * time.Hour)
		if next := i.reconcile(r, name); next != foreignPoll {
			t.Errorf("%s is looked at again after %v, want %v: no watch tells of it", name, next, foreignPoll)
		}
		if diff := cmp.Diff(before, i.secret(name)); diff != "" {
			t.Errorf("%s was written (-before +after):\n%s", name, diff)
		}
	}
	i.expectEvents()
	if diff := cmp.Diff([]string{"vault-1"}, pepperIDs(t, r)); diff != "" {
		t.Errorf("peppers (-want +got):\n%s", diff)
	}
}

func TestBrokenKeysStopWhatNeedsThemAndAreLeftAlone(t *testing.T) {
	i := newInstallation(t)
	r := i.keys()
	i.supply(keyring.SigningKeysSecret, map[string][]byte{"a.pem": []byte("hello")})
	i.reconcile(r, keyring.SigningKeysSecret)
	i.expectEvents("KeysInvalid")

	i.reconcile(r, keyring.PepperSecret)
	good := i.secret(keyring.PepperSecret)
	broken := good.DeepCopy()
	broken.Data["current"] = []byte("gone")
	i.must(i.client.Update(t.Context(), broken))
	i.reconcile(r, keyring.PepperSecret)
	i.expectEvents("PepperMade", "KeysInvalid")
	if _, err := r.cfg.Peppers.Peppers(); err == nil || !strings.Contains(err.Error(), i.namespace+"/mintmark-pepper") {
		t.Errorf("error %v, want one that names the Secret", err)
	}
	if diff := cmp.Diff(broken.Data, i.secret(keyring.PepperSecret).Data); diff != "" {
		t.Errorf("a broken pepper was written over (-before +after):\n%s", diff)
	}
	changes := r.cfg.Peppers.Changes()
	broken.Data = good.Data
	i.must(i.client.Update(t.Context(), broken))
	i.reconcile(r, keyring.PepperSecret)
	pepperIDs(t, r)
	if len(changes) != 1 {
		t.Error("nobody was told that there is a pepper again")
	}
}

func TestSigningKeysRotateByAgeAndOnRequest(t *testing.T) {
	i := newInstallation(t)
	r, policy := i.keys(), keyring.DefaultPolicy()
	pass := func(after time.Duration, want ...string) *keyring.SigningKeys {
		t.Helper()
		i.clock = i.clock.Add(after)
		i.reconcile(r, keyring.SigningKeysSecret)
		i.expectEvents(want...)
		keys, err := keyring.DecodeSigningKeys(i.secret(keyring.SigningKeysSecret).Data)
		i.must(err)
		return keys[keyring.ES256]
	}
	first := pass(0, "SigningKeyPublished", "SigningKeyActivated").Current.ID
	second := pass(policy.RotateEvery-policy.PublishBefore, "SigningKeyPublished").Next.ID
	keys := pass(policy.PublishBefore, "SigningKeyActivated")
	if keys.Current.ID != second || keys.Previous[0].ID != first {
		t.Errorf("current %s, previous %s; want %s, %s", keys.Current.ID, keys.Previous[0].ID, second, first)
	}
	pass(policy.KeepAfter - time.Second)
	if keys := pass(time.Second, "SigningKeyDropped"); len(keys.All()) != 1 {
		t.Errorf("%d keys are published, want 1", len(keys.All()))
	}

	i.requestRotation(keyring.SigningKeysSecret, i.clock)
	third := pass(time.Second, "SigningKeyPublished").Next.ID
	pass(time.Second)
	i.requestRotation(keyring.SigningKeysSecret, i.clock.Add(time.Minute))
	if keys := pass(time.Second); keys.Next.ID != third {
		t.Error("a second request while the first is under way made another key")
	}
	i.skew = -time.Minute
	pass(policy.PublishBefore) // with a clock that is wrong nothing moves by time
	i.skew = 0
	if keys := pass(0, "SigningKeyActivated"); keys.Current.ID != third {
		t.Errorf("current %s, want %s", keys.Current.ID, third)
	}
}

func TestAnAlgorithmHasKeysWhenAClassAsksForIt(t *testing.T) {
	i := newInstallation(t)
	r, policy := i.keys(), keyring.DefaultPolicy()
	pass := func(after time.Duration, want ...string) keyring.Ring {
		t.Helper()
		i.clock = i.clock.Add(after)
		i.reconcile(r, keyring.SigningKeysSecret)
		i.expectEvents(want...)
		ring, err := keyring.DecodeSigningKeys(i.secret(keyring.SigningKeysSecret).Data)
		i.must(err)
		return ring
	}
	pass(0, "SigningKeyPublished", "SigningKeyActivated")

	class := &v1alpha1.CredentialClass{ObjectMeta: metav1.ObjectMeta{Name: "rsa-" + i.namespace}}
	class.Spec.JWTAlgorithm = keyring.RS256
	i.must(i.client.Create(t.Context(), class))
	t.Cleanup(func() { _ = i.client.Delete(context.WithoutCancel(t.Context()), class) })
	ring := pass(time.Minute, "SigningKeyPublished")
	if got := ring.Signer(keyring.RS256); got.Algorithm != keyring.ES256 || ring[keyring.RS256].Next == nil || ring[keyring.EdDSA] != nil {
		t.Fatalf("signed with %s, RS256 keys %+v: the key is to be published first, and none made that nobody asks for", got.Algorithm, ring[keyring.RS256])
	}
	pass(policy.PublishBefore - time.Second)
	ring = pass(time.Second, "SigningKeyActivated")
	rsaKey := ring.Signer(keyring.RS256)
	if rsaKey.Algorithm != keyring.RS256 {
		t.Fatalf("signed with %s once the key was published long enough", rsaKey.Algorithm)
	}
	i.requestRotation(keyring.SigningKeysSecret, i.clock)
	pass(0, "SigningKeyPublished", "SigningKeyPublished")
	ring = pass(policy.PublishBefore, "SigningKeyActivated", "SigningKeyActivated")
	if now := ring.Signer(keyring.RS256); now.ID == rsaKey.ID || now.Algorithm != keyring.RS256 || ring.ByID(rsaKey.ID) == nil {
		t.Errorf("after a rotation RS256 is signed with %s, and the key before it %v", now.ID, ring.ByID(rsaKey.ID))
	}
	pass(policy.KeepAfter, "SigningKeyDropped", "SigningKeyDropped")

	// A class that HS256 is enough for asks for no key, and nothing is undone at once.
	class.Spec.JWTAlgorithm = "HS256"
	i.must(i.client.Update(t.Context(), class))
	if ring = pass(time.Minute); ring.Signer(keyring.RS256).Algorithm != keyring.RS256 {
		t.Error("the key went with the class's wish: one deleted by mistake would do so too")
	}
	i.clock = i.clock.Add(policy.RotateEvery)
	i.reconcile(r, keyring.SigningKeysSecret)
	if got := i.events(); !slices.Contains(got, "SigningKeyRetired") {
		t.Errorf("events %v, want that the key was retired and not replaced", got)
	}
	i.clock = i.clock.Add(policy.KeepAfter)
	i.reconcile(r, keyring.SigningKeysSecret)
	if ring, err := keyring.DecodeSigningKeys(i.secret(keyring.SigningKeysSecret).Data); err != nil || ring[keyring.RS256] != nil {
		t.Errorf("RS256 keys %+v, error %v, want none left", ring[keyring.RS256], err)
	}
}

func TestPepperHolderTellsEverySubscriberOfEachChange(t *testing.T) {
	pepper := func(id string) credential.Peppers {
		p, err := credential.NewPepper(id, []byte(strings.Repeat(id, 32)))
		if err != nil {
			t.Fatal(err)
		}
		return credential.Peppers{p}
	}
	h := new(PepperHolder)
	if _, err := h.Peppers(); !errors.Is(err, errPeppersNotRead) {
		t.Errorf("error %v, want that nothing was read", err)
	}
	one, two := h.Changes(), h.Changes()
	drain := func(want int) {
		t.Helper()
		for n, subscriber := range []<-chan event.GenericEvent{one, two} {
			got := len(subscriber)
			if got != want {
				t.Errorf("subscriber %d has %d events, want %d", n, got, want)
			}
			for range got {
				<-subscriber
			}
		}
	}
	h.Set(pepper("a"), nil)
	drain(1)
	h.Set(pepper("a"), nil)
	drain(0)
	h.Set(pepper("b"), nil)
	h.Set(pepper("c"), nil)
	drain(1)
	h.Set(nil, errors.New("gone"))
	drain(0)
	if _, err := h.Peppers(); err == nil {
		t.Error("gives out a pepper that is gone")
	}
	h.Set(pepper("c"), nil)
	drain(1)
}

func TestErrorsOfTheAPIServerAreRetriedAndChangeNothing(t *testing.T) {
	i := newInstallation(t)
	r := i.keys()
	i.reconcile(r, keyring.PepperSecret)
	want := pepperIDs(t, r)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Reconcile(ctx, reconcile.Request{NamespacedName: client.ObjectKey{Namespace: i.namespace, Name: keyring.PepperSecret}}); err == nil {
		t.Error("no error where nothing could be read")
	}
	if diff := cmp.Diff(want, pepperIDs(t, r)); diff != "" {
		t.Errorf("peppers changed because of it (-want +got):\n%s", diff)
	}
	gone := i.keys()
	gone.namespace = "no-such-namespace"
	if _, err := gone.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKey{Name: keyring.PepperSecret}}); !apierrors.IsNotFound(err) {
		t.Errorf("error %v, want that the namespace is missing", err)
	}
}
