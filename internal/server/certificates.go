package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"
)

// serving is a serving certificate that can be replaced at any time. New handshakes
// take the latest.
type serving struct {
	certificate atomic.Pointer[tls.Certificate]
}

var errNoCertificate = errors.New("no serving certificate yet")

// set parses and installs a certificate; what cannot be used leaves the former one.
func (s *serving) set(cert, key []byte) error {
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return err
	}
	s.certificate.Store(&pair)
	return nil
}

func (s *serving) loaded() bool { return s.certificate.Load() != nil }

// config is the TLS configuration of a listener with this certificate.
func (s *serving) config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			if c := s.certificate.Load(); c != nil {
				return c, nil
			}
			return nil, errNoCertificate
		},
	}
}

// certificateFiles is a certificate that somebody else renews in files.
type certificateFiles struct {
	cert, key string
	target    *serving
	log       *slog.Logger

	lastCert, lastKey []byte
	lastError         string
}

// reloadEvery is how often the files are looked at. Reading them, rather than watching them,
// works with every way there is of replacing them.
const reloadEvery = 5 * time.Second

func (f *certificateFiles) Run(ctx context.Context) {
	ticker := time.NewTicker(reloadEvery)
	defer ticker.Stop()
	for {
		if err := f.load(); err != nil && err.Error() != f.lastError {
			f.lastError = err.Error()
			f.log.Warn("cannot load the certificate; the former one stays in use", "error", f.lastError)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (f *certificateFiles) load() error {
	cert, err := os.ReadFile(f.cert)
	if err != nil {
		return fmt.Errorf("--tls-cert-file: %w", err)
	}
	key, err := os.ReadFile(f.key)
	if err != nil {
		return fmt.Errorf("--tls-key-file: %w", err)
	}
	if bytes.Equal(cert, f.lastCert) && bytes.Equal(key, f.lastKey) {
		return nil
	}
	if err := f.target.set(cert, key); err != nil {
		return fmt.Errorf("%s with %s: %w", f.cert, f.key, err)
	}
	if f.lastCert != nil {
		f.log.Info("serving certificate reloaded", "file", f.cert)
	}
	f.lastCert, f.lastKey, f.lastError = cert, key, ""
	return nil
}
