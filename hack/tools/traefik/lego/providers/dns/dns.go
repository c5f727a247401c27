// Package dns would know the DNS services.
package dns

import (
	"github.com/go-acme/lego/v5/acme"
	"github.com/go-acme/lego/v5/challenge"
)

// NewDNSChallengeProviderByName fails.
func NewDNSChallengeProviderByName(string) (challenge.Provider, error) {
	return nil, acme.ErrNotBuiltIn
}
