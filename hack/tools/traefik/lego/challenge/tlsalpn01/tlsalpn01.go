// Package tlsalpn01 stands in for the challenge of RFC 8737.
package tlsalpn01

import (
	"time"

	"github.com/go-acme/lego/v5/acme"
	"github.com/go-acme/lego/v5/challenge"
)

// ACMETLS1Protocol is the protocol's name in ALPN (RFC 8737, section 6.2).
const ACMETLS1Protocol = "acme-tls/1"

// ChallengeBlocks fails.
func ChallengeBlocks(_, _ string) (certificate, key []byte, err error) {
	return nil, nil, acme.ErrNotBuiltIn
}

// SetDelay gives an option that nothing reads.
func SetDelay(time.Duration) challenge.Option { return challenge.Option{} }
