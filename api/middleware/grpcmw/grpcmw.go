// Package grpcmw lets a gRPC service demand permissions of its callers, as package
// middleware does for net/http.
//
//	rules := grpcmw.Rules{Methods: map[string][]string{"/orders.v1.Orders/Get": {"orders:read"}}}
//	grpc.NewServer(grpc.UnaryInterceptor(grpcmw.Unary(guard, rules)), grpc.StreamInterceptor(grpcmw.Stream(guard, rules)))
//
// A method that no rule names is refused: a service that grows a method and forgets the
// rule is closed, not open. Callers present their credential in the metadata
// authorization ("Bearer ...") or x-api-key.
package grpcmw

import (
	"context"
	"errors"
	"net/http"
	"net/netip"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/mintmark-dev/mintmark/api/middleware"
)

// Rules say what each method needs.
type Rules struct {
	// Methods are full names such as "/orders.v1.Orders/Get", with the permissions all of
	// which a caller must hold. None: any good credential will do.
	Methods map[string][]string
	// Public methods need no credential, such as "/grpc.health.v1.Health/Check".
	Public []string
}

// table is Rules for look-up.
type table struct {
	methods map[string][]string
	public  map[string]bool
}

func (r Rules) table() table {
	t := table{methods: make(map[string][]string, len(r.Methods)), public: make(map[string]bool, len(r.Public))}
	for method, permissions := range r.Methods {
		t.methods[method] = permissions
	}
	for _, method := range r.Public {
		t.public[method] = true
	}
	return t
}

// Unary checks calls with one message. The rules are read once.
func Unary(guard *middleware.Guard, rules Rules) grpc.UnaryServerInterceptor {
	t := rules.table()
	return func(ctx context.Context, ask any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		ctx, err := t.admit(ctx, guard, info.FullMethod)
		if err != nil {
			return nil, err
		}
		return handler(ctx, ask)
	}
}

// Stream checks streams, once, when they begin: one that is open goes on when its
// credential is revoked. The rules are read once.
func Stream(guard *middleware.Guard, rules Rules) grpc.StreamServerInterceptor {
	t := rules.table()
	return func(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		ctx, err := t.admit(stream.Context(), guard, info.FullMethod)
		if err != nil {
			return err
		}
		return handler(server, &withContext{stream, ctx})
	}
}

// withContext is a stream whose context says who calls.
type withContext struct {
	grpc.ServerStream
	ctx context.Context //nolint:containedctx // it is what ServerStream.Context gives
}

func (s *withContext) Context() context.Context { return s.ctx }

func (t *table) admit(ctx context.Context, guard *middleware.Guard, method string) (context.Context, error) {
	if t.public[method] {
		return ctx, nil
	}
	md, _ := metadata.FromIncomingContext(ctx)
	presented, _ := middleware.Credential(md.Get("x-api-key"), md.Get("authorization"))
	permissions, listed := t.methods[method]
	call := middleware.Call{Credential: presented, Permissions: permissions, Method: http.MethodPost, Path: method, ClientIP: peerOf(ctx)}
	if agents := md.Get("user-agent"); len(agents) == 1 {
		call.UserAgent = agents[0]
	}
	if hosts := md.Get(":authority"); len(hosts) == 1 {
		call.Host = hosts[0]
	}
	id, err := guard.Check(ctx, call)
	switch {
	case errors.Is(err, middleware.ErrUnauthenticated):
		return nil, status.Error(codes.Unauthenticated, "a valid credential is needed")
	case errors.Is(err, middleware.ErrForbidden):
		return nil, status.Error(codes.PermissionDenied, "the credential may not call this method")
	case err != nil:
		return nil, status.Error(codes.Unavailable, "credentials cannot be checked at the moment")
	case !listed:
		return nil, status.Error(codes.PermissionDenied, "the credential may not call this method")
	}
	return middleware.NewContext(ctx, id, call), nil
}

func peerOf(ctx context.Context) netip.Addr {
	p, ok := peer.FromContext(ctx)
	if !ok || p.Addr == nil {
		return netip.Addr{}
	}
	at, err := netip.ParseAddrPort(p.Addr.String())
	if err != nil {
		return netip.Addr{}
	}
	return at.Addr().Unmap().WithZone("")
}
