package controllers

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/credential"
	"github.com/mintmark-dev/mintmark/internal/keyring"
)

// AnnotationPepperRotated is when the current pepper became current.
const AnnotationPepperRotated = "mintmark.dev/pepper-rotated-at"

// pepperGrace is how long an old pepper is kept in any case: until whoever was about to
// seal with it when it was replaced has come to an end, and until no JWT is alive whose
// secret was derived from it (see keyring.Policy.KeepAfter).
const pepperGrace = 90 * time.Minute

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
