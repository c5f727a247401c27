// Package acme stands in for the objects of RFC 8555 that Traefik keeps.
//
// All of this module is a stand-in for the ACME client that Traefik is built with: no
// more than the names Traefik refers to, and an error wherever one of them would do
// something. The tests need no certificates of ACME, and without this the build would
// compile the client libraries of a hundred and more DNS services.
package acme

import "errors"

// ErrNotBuiltIn is what everything ends with that would speak ACME.
var ErrNotBuiltIn = errors.New("ACME is not built into this Traefik, which is for tests: give it certificates in files")

// Account is one at an ACME server (RFC 8555, section 7.1.2).
type Account struct{}

// ExtendedAccount is an account and where it is.
type ExtendedAccount struct {
	Account

	Location string
}
