package management

import (
	"context"
	"net/netip"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/authz"
	"github.com/mintmark-dev/mintmark/internal/store"
)

// Caller is who sent a request: somebody whose credential was found good, and who holds
// the permission of the operation.
type Caller struct {
	// Principal is whose credential it is; never nil.
	*authn.Principal
	// Scope narrows what the credential may do to what a JWT is for; nil where the
	// credential itself was presented, or a JWT of everything.
	Scope *authz.Set
	// Roles, where a JWT has fewer than its credential.
	Roles []string
	// Administrator: it holds every permission, and was not narrowed.
	Administrator bool
	// Client is where the request came from, and RequestID names it in the log.
	Client    netip.Addr
	RequestID string
	UserAgent string
	// Report is filled in by the operation for the audit log.
	Report *Report
}

// Report is what an operation says of itself for the audit log.
type Report struct {
	// About is the credential that the operation was about; nil: none, or several.
	About *authn.Identity
	Class string
	// Reason is a code, such as Created; empty: the outcome says it all.
	Reason string
	// Continued: what is to be recorded is recorded already, and the request needs no
	// event of its own.
	Continued bool
	// Detail by name. It is cleaned before it is recorded.
	Detail map[string]string
}

// note adds a detail to the report.
func (r *Report) note(name, text string) {
	if text == "" {
		return
	}
	if r.Detail == nil {
		r.Detail = map[string]string{}
	}
	r.Detail[name] = text
}

type callerKey struct{}

// WithCaller hands the caller to the handlers.
func WithCaller(ctx context.Context, c *Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// callerOf is who sent the request. That there is none is a mistake in how the API is
// mounted, and answered as if nobody had come.
func callerOf(ctx context.Context) (*Caller, error) {
	c, ok := ctx.Value(callerKey{}).(*Caller)
	if !ok || c == nil || c.Principal == nil || c.Identity == nil {
		return nil, errUnauthenticated
	}
	return c, nil
}

// handle registers what serves an operation. It is told who calls, and does not run where
// that is not known.
func handle[I, O any](a *API, o huma.Operation, serve func(context.Context, *Caller, *I) (*O, error)) {
	huma.Register(a.huma, o, func(ctx context.Context, in *I) (*O, error) {
		c, err := callerOf(ctx)
		if err != nil {
			return nil, err
		}
		return serve(ctx, c, in)
	})
}

// forAdministrators lets those alone through who see all tenants.
func forAdministrators[I, O any](serve func(context.Context, *Caller, *I) (*O, error)) func(context.Context, *Caller, *I) (*O, error) {
	return func(ctx context.Context, c *Caller, in *I) (*O, error) {
		if !c.Administrator {
			return nil, errAdministrators
		}
		return serve(ctx, c, in)
	}
}

// mayUse tells whether the caller holds a permission.
func (c *Caller) mayUse(permission string) bool {
	return (c.Scope == nil || c.Scope.Allows(permission)) && c.Allows(permission)
}

// mayGrant tells whether the caller holds everything that the pattern covers, and so may
// hand it on.
func (c *Caller) mayGrant(pattern string) bool {
	return (c.Scope == nil || c.Scope.Allows(pattern)) && c.Principal.Covers(pattern)
}

// hasRole tells whether the caller has the role itself. An administrator has them all.
func (c *Caller) hasRole(name string) bool {
	return c.Administrator || slices.Contains(c.Roles, name)
}

// tenant is what the caller may see: everything, or its own namespace. Somebody of another
// issuer has no namespace here, and sees nothing.
func (c *Caller) tenant() store.Tenant {
	if c.Administrator {
		return store.AllTenants()
	}
	return store.TenantOf(c.Namespace)
}

// sees tells whether what is in the namespace is the caller's to know of.
func (c *Caller) sees(namespace string) bool {
	return c.Administrator || namespace != "" && namespace == c.Namespace
}

// behalf says for whom this server writes, as the annotation has it. The request makes it
// another one each time.
func (c *Caller) behalf() string { return c.Subject + " (request " + c.RequestID + ")" }

// report notes what was done.
func (c *Caller) report(reason string) {
	if c.Report != nil {
		c.Report.Reason = reason
	}
}
