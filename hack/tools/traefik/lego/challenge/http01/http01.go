// Package http01 stands in for the challenge of RFC 8555, section 8.3.
package http01

import (
	"time"

	"github.com/go-acme/lego/v5/challenge"
)

// PathPrefix is where the section has the answers.
const PathPrefix = "/.well-known/acme-challenge/"

// SetDelay gives an option that nothing reads.
func SetDelay(time.Duration) challenge.Option { return challenge.Option{} }
