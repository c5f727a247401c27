// Package lego stands in for the client of ACME.
package lego

import (
	"crypto"
	"crypto/x509"
	"net/http"
	"time"

	"github.com/go-acme/lego/v5/acme"
	"github.com/go-acme/lego/v5/certificate"
	"github.com/go-acme/lego/v5/challenge"
	"github.com/go-acme/lego/v5/registration"
)

// DirectoryURLLetsEncrypt is the server by default.
const DirectoryURLLetsEncrypt = "https://acme-v02.api.letsencrypt.org/directory"

// User has an account.
type User interface {
	GetEmail() string
	GetRegistration() *acme.ExtendedAccount
	GetPrivateKey() crypto.Signer
}

// Config is what a Client would be made from.
type Config struct {
	CADirURL    string
	UserAgent   string
	HTTPClient  *http.Client
	Certificate struct{ Timeout time.Duration }
}

// NewConfig makes one.
func NewConfig(User) *Config { return new(Config) }

// Client is never made.
type Client struct {
	Certificate  *certificate.Certifier
	Challenge    *Solvers
	Registration *registration.Registrar
}

// NewClient fails.
func NewClient(*Config) (*Client, error) { return nil, acme.ErrNotBuiltIn }

// CreateCertPool fails.
func CreateCertPool([]string, bool) (*x509.CertPool, error) { return nil, acme.ErrNotBuiltIn }

// Solvers are those of a Client.
type Solvers struct{}

// SetHTTP01Provider fails.
func (*Solvers) SetHTTP01Provider(challenge.Provider, ...challenge.Option) error {
	return acme.ErrNotBuiltIn
}

// SetTLSALPN01Provider fails.
func (*Solvers) SetTLSALPN01Provider(challenge.Provider, ...challenge.Option) error {
	return acme.ErrNotBuiltIn
}

// SetDNS01Provider fails.
func (*Solvers) SetDNS01Provider(challenge.Provider, ...challenge.Option) error {
	return acme.ErrNotBuiltIn
}
