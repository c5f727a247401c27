// Package dns01 stands in for the challenge of RFC 8555, section 8.4.
package dns01

import (
	"strings"
	"time"

	"github.com/go-acme/lego/v5/challenge"
)

// Options of a Client.
type Options struct{ RecursiveNameservers []string }

// Client asks nobody.
type Client struct{}

// NewClient makes one.
func NewClient(*Options) *Client { return new(Client) }

// SetDefaultClient does nothing.
func SetDefaultClient(*Client) {}

// CondOptions gives an option that nothing reads.
func CondOptions(bool, ...challenge.Option) challenge.Option { return challenge.Option{} }

// DisableAuthoritativeNssPropagationRequirement gives an option that nothing reads.
func DisableAuthoritativeNssPropagationRequirement() challenge.Option { return challenge.Option{} }

// DisableRecursiveNSsPropagationRequirement gives an option that nothing reads.
func DisableRecursiveNSsPropagationRequirement() challenge.Option { return challenge.Option{} }

// PropagationWait gives an option that nothing reads.
func PropagationWait(time.Duration, bool) challenge.Option { return challenge.Option{} }

// UnFqdn takes the root's dot off a name. Traefik asks it about names of certificates
// that have nothing to do with ACME.
func UnFqdn(name string) string { return strings.TrimSuffix(name, ".") }
