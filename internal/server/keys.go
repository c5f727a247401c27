package server

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/mintmark-dev/mintmark/internal/credential"
	"github.com/mintmark-dev/mintmark/internal/keyring"
)

// certificateSecret is the name of the Secret with the serving certificate.
const certificateSecret = "mintmark-server-tls"

// keys are the server's own key material, as the Secrets have it. What cannot be read, or
// is deleted, leaves the former keys in use: a mistake in a Secret must not end what
// works.
type keys struct {
	peppers  atomic.Pointer[credential.Peppers]
	signing  atomic.Pointer[keyring.Ring]
	internal serving  // of the internal listener
	public   *serving // of the public one; the same unless it has files of its own

	// onPeppers is called with what was read.
	onPeppers func(credential.Peppers)
}

// missing tells what a server cannot do without and does not have yet.
func (k *keys) missing() error {
	var errs []error
	if k.peppers.Load() == nil {
		errs = append(errs, errors.New("no pepper: the Secret "+keyring.PepperSecret+" has not been read"))
	}
	if k.signing.Load() == nil {
		errs = append(errs, errors.New("no signing key: the Secret "+keyring.SigningKeysSecret+" has not been read"))
	}
	if !k.internal.loaded() {
		errs = append(errs, errors.New("no certificate: the Secret "+certificateSecret+" has not been read"))
	}
	if !k.public.loaded() {
		errs = append(errs, errors.New("no certificate for the public listener"))
	}
	return errors.Join(errs...)
}

func (k *keys) readPeppers(s *corev1.Secret) error {
	peppers, err := keyring.DecodePeppers(s.Data)
	if err != nil {
		return err
	}
	k.peppers.Store(&peppers)
	k.onPeppers(peppers)
	return nil
}

func (k *keys) readSigning(s *corev1.Secret) error {
	signing, err := keyring.DecodeSigningKeys(s.Data)
	if err != nil {
		return err
	}
	k.signing.Store(&signing)
	return nil
}

// allPeppers are the peppers; nil while there are none.
func (k *keys) allPeppers() credential.Peppers {
	if peppers := k.peppers.Load(); peppers != nil {
		return *peppers
	}
	return nil
}

// ring is the signing keys; nil while there are none.
func (k *keys) ring() keyring.Ring {
	if signing := k.signing.Load(); signing != nil {
		return *signing
	}
	return nil
}

func (k *keys) readCertificate(s *corev1.Secret) error {
	err := k.internal.set(s.Data[corev1.TLSCertKey], s.Data[corev1.TLSPrivateKeyKey])
	if err != nil {
		return fmt.Errorf("%s and %s: %w", corev1.TLSCertKey, corev1.TLSPrivateKeyKey, err)
	}
	return nil
}

// secretSink reads one Secret whenever it changes.
type secretSink struct {
	name string
	read func(*corev1.Secret) error
	log  *slog.Logger

	listed    bool // in the list that is under way
	lastError string
}

func (s *secretSink) BeginList() { s.listed = false }

func (s *secretSink) EndList() {
	if !s.listed {
		s.complain("the Secret does not exist; the controller makes it, or whoever supplies the keys")
	}
}

func (s *secretSink) Put(object runtime.Object) {
	secret, ok := object.(*corev1.Secret)
	if !ok || secret.Name != s.name {
		return
	}
	s.listed = true
	if err := s.read(secret); err != nil {
		s.complain(err.Error())
		return
	}
	if s.lastError != "" {
		s.log.Info("the Secret can be read now", "secret", s.name)
	}
	s.lastError = ""
}

func (s *secretSink) Delete(runtime.Object) {
	s.complain("the Secret was deleted")
}

func (s *secretSink) complain(message string) {
	if message = strings.TrimSpace(message); message != s.lastError {
		s.lastError = message
		s.log.Warn("own key material cannot be read; what was read before stays in use", "secret", s.name, "error", message)
	}
}
