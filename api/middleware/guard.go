package middleware

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/mintmark-dev/mintmark/api/permission"
)

// Config of a Guard. ServerURL must be set.
type Config struct {
	// ServerURL is where Mintmark is reached, such as
	// https://mintmark-server.mintmark-system.svc.
	ServerURL string
	// Issuer is the iss that JWTs must have, compared byte by byte. Default: ServerURL.
	Issuer string
	// Audiences for one of which a credential must be. Default: the issuer, which is
	// what JWTs are for whose credential names no audiences.
	Audiences []string
	// RootCAs verify Mintmark's certificate; nil: those of the system. Not used with an
	// HTTPClient.
	RootCAs *x509.CertPool
	// HTTPClient to reach Mintmark. Default: one with a timeout of 5 seconds that
	// follows no redirects.
	HTTPClient *http.Client

	// Token gives the service's own credential, which has to hold mintmark:check. With
	// it the server learns where a caller is (networks of the credential hold), and the
	// service is not taken for an attacker for what its callers get wrong. Without it the
	// caller's credential is passed on as if the service were the caller. It is called for
	// each question and may be called concurrently.
	Token func(context.Context) (string, error)
	// ClientIP tells where a request came from, for Token. Default: its peer. An invalid
	// address is in no network.
	ClientIP func(*http.Request) netip.Addr

	// CheckJWTs has the server asked about JWTs too, so that revocation and AccessPolicies
	// hold for them as they do for keys.
	CheckJWTs bool
	// CacheTTL is for how long an answer of the server is used again for the same question:
	// the longest that a revoked key passes here. Default: 5 seconds. Negative: not at all.
	CacheTTL time.Duration
	// CacheSize bounds how many answers are kept. Default: 10,000.
	CacheSize int

	// Log gets what operators should know; never a credential. Default: nothing.
	Log *slog.Logger
	// Now is the clock; for tests. Default: time.Now.
	Now func() time.Time
}

// Identity is who calls.
type Identity struct {
	// Subject names the credential, such as "servicetoken:payments:ci-deploy".
	Subject string
	// UID of the credential: two of the same subject made one after the other differ.
	UID string
	// Version of its value.
	Version int64
	// Permissions are patterns, such as "orders:*"; see [Identity.Allows].
	Permissions []string
	Roles       []string
	// Admin holds every permission.
	Admin bool
	// Expires is when the credential is accepted no longer; zero is never.
	Expires time.Time
}

// Allows tells whether the identity holds a permission. It does not ask the server, so no
// AccessPolicy has a say; see [Guard.Allowed].
func (id *Identity) Allows(wanted string) bool {
	return id != nil && (id.Admin && wanted != "" || permission.Any(id.Permissions, wanted))
}

// Why a request is refused. Callers are told no more than these.
var (
	// ErrUnauthenticated: there is no credential, or a bad one: 401.
	ErrUnauthenticated = errors.New("a valid credential is needed")
	// ErrForbidden: the credential is good and may not do this: 403.
	ErrForbidden = errors.New("the credential may not do this")
	// ErrUnavailable: it cannot be told at present: 503.
	ErrUnavailable = errors.New("credentials cannot be checked at present")
)

// Call is what a credential is presented for.
type Call struct {
	// Credential as it was presented: a key or a JWT.
	Credential string
	// Permissions, all of which it must hold.
	Permissions []string
	// Method, Host, Path and UserAgent of the request, for AccessPolicies. Path is
	// without query, as it was sent.
	Method, Host, Path, UserAgent string
	// ClientIP is where the caller is.
	ClientIP netip.Addr
}

// Resource is what AccessPolicies are told of what is to be used. What is empty is not
// known to them.
type Resource struct {
	Type            string            `json:"type,omitempty"`
	ID              string            `json:"id,omitempty"`
	Owner           string            `json:"owner,omitempty"`
	OwnerDepartment string            `json:"ownerDepartment,omitempty"`
	Classification  string            `json:"classification,omitempty"`
	Created         *time.Time        `json:"created,omitempty"`
	Attributes      map[string]string `json:"attributes,omitempty"`
}

// Guard decides about calls. It is safe for concurrent use.
type Guard struct {
	config Config
	keys   *keySet
	server *checker
}

// New checks the configuration. It does no I/O: keys are fetched when the first JWT comes.
func New(c Config) (*Guard, error) {
	base, err := url.Parse(c.ServerURL)
	if err != nil || base.Scheme != "https" || base.Host == "" || base.User != nil || base.RawQuery != "" || base.Fragment != "" {
		return nil, fmt.Errorf("middleware: ServerURL %q is not an https URL such as https://mintmark-server.mintmark-system.svc", c.ServerURL)
	}
	c.ServerURL = strings.TrimRight(c.ServerURL, "/")
	if c.Issuer == "" {
		c.Issuer = c.ServerURL
	}
	if len(c.Audiences) == 0 {
		c.Audiences = []string{c.Issuer}
	}
	if slices.Contains(c.Audiences, "") {
		return nil, errors.New("middleware: Audiences has an empty entry")
	}
	if c.HTTPClient == nil {
		c.HTTPClient = newClient(c.RootCAs)
	}
	if c.ClientIP == nil {
		c.ClientIP = peerOf
	}
	if c.CacheTTL == 0 {
		c.CacheTTL = 5 * time.Second
	}
	if c.CacheSize <= 0 {
		c.CacheSize = 10_000
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	g := &Guard{config: c, keys: newKeySet(c), server: newChecker(c)}
	return g, nil
}

// Check tells who calls, if they may. The error is one of those above.
func (g *Guard) Check(ctx context.Context, call Call) (*Identity, error) {
	if call.Credential == "" {
		return nil, ErrUnauthenticated
	}
	if isJWT(call.Credential) && !g.config.CheckJWTs {
		id, err := g.verify(ctx, call.Credential)
		switch {
		case errors.Is(err, errAskServer):
		case err != nil:
			return nil, err
		default:
			for _, wanted := range call.Permissions {
				if !id.Allows(wanted) {
					return nil, ErrForbidden
				}
			}
			return id, nil
		}
	}
	return g.server.ask(ctx, question{call: call})
}

// Allowed asks the server whether the caller of this context, whom Require let in, may do
// this to the resource: where permissions alone cannot tell, AccessPolicies do. nil is a
// yes; the error is one of those above.
func (g *Guard) Allowed(ctx context.Context, action string, resource Resource) error {
	held, ok := ctx.Value(contextKey{}).(caller)
	if !ok || held.call.Credential == "" {
		return ErrUnauthenticated
	}
	held.call.Permissions = nil
	id, err := g.server.ask(ctx, question{call: held.call, action: action, resource: &resource})
	if err != nil {
		return err
	}
	if id.UID != held.identity.UID {
		return ErrForbidden // the credential has become another one's
	}
	return nil
}

type contextKey struct{}

// caller is what a context holds.
type caller struct {
	identity *Identity
	call     Call
}

// NewContext is ctx with who calls, for middleware of other protocols.
func NewContext(ctx context.Context, id *Identity, call Call) context.Context {
	return context.WithValue(ctx, contextKey{}, caller{id, call})
}

// FromContext tells who calls, behind Require.
func FromContext(ctx context.Context) (*Identity, bool) {
	held, ok := ctx.Value(contextKey{}).(caller)
	return held.identity, ok && held.identity != nil
}
