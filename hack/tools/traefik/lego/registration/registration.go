// Package registration stands in for what makes accounts.
package registration

import (
	"context"

	"github.com/go-acme/lego/v5/acme"
)

// Registrar makes no accounts.
type Registrar struct{}

// RegisterOptions is what an account would be made from.
type RegisterOptions struct{ TermsOfServiceAgreed bool }

// RegisterEABOptions is the same, with an external account (RFC 8555, section 7.3.4).
type RegisterEABOptions struct {
	TermsOfServiceAgreed bool
	Kid                  string
	HmacEncoded          string
}

// Register fails.
func (*Registrar) Register(context.Context, RegisterOptions) (*acme.ExtendedAccount, error) {
	return nil, acme.ErrNotBuiltIn
}

// RegisterWithExternalAccountBinding fails.
func (*Registrar) RegisterWithExternalAccountBinding(context.Context, RegisterEABOptions) (*acme.ExtendedAccount, error) {
	return nil, acme.ErrNotBuiltIn
}
