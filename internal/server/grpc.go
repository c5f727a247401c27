package server

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
)

// Limits of the gRPC listener.
const (
	// maxMessage holds what an Envoy lets through of headers, 60 KiB as it ships, and a
	// part of a body, which nobody here looks at.
	maxMessage = 256 << 10
	// maxCalls at once on one connection. Envoy opens one for each of its workers.
	maxCalls = 1000
	// maxConnectionAge spreads gateways over replicas that came later. gRPC varies it by
	// 10 % itself.
	maxConnectionAge = 10 * time.Minute
)

// newRPC makes the server of ext_authz and of gRPC health checking. It may be stopped
// when stopping is closed.
func newRPC(p *public, config *tls.Config, stopping <-chan struct{}) *grpc.Server {
	server := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(config)), grpc.ForceServerCodecV2(newCheckCodec()),
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxHeaderListSize(maxHeaderBytes), grpc.MaxConcurrentStreams(maxCalls),
		grpc.ConnectionTimeout(readHeaderTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionIdle: 30 * time.Minute, MaxConnectionAge: maxConnectionAge, MaxConnectionAgeGrace: drainTimeout,
			Time: time.Minute, Timeout: 10 * time.Second,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
	)
	server.RegisterService(&extAuthzService, newExtAuthz(p))
	healthv1.RegisterHealthServer(server, &rpcHealth{public: p, stopping: stopping})
	return server
}

// rpcHealth is gRPC's health checking protocol. It tells of readiness, for every
// service alike.
type rpcHealth struct {
	healthv1.UnimplementedHealthServer
	*public

	stopping <-chan struct{}
}

// watchEvery is how often readiness is looked at for those who watch it.
const watchEvery = time.Second

func (h *rpcHealth) status() *healthv1.HealthCheckResponse {
	if h.gate.ready(h.now()) != nil {
		return &healthv1.HealthCheckResponse{Status: healthv1.HealthCheckResponse_NOT_SERVING}
	}
	return &healthv1.HealthCheckResponse{Status: healthv1.HealthCheckResponse_SERVING}
}

func knownService(name string) bool {
	return name == "" || name == authv3.Authorization_ServiceDesc.ServiceName
}

// Check implements healthv1.HealthServer.
func (h *rpcHealth) Check(_ context.Context, ask *healthv1.HealthCheckRequest) (*healthv1.HealthCheckResponse, error) {
	if !knownService(ask.GetService()) {
		return nil, status.Error(codes.NotFound, "there is no such service here")
	}
	return h.status(), nil
}

// Watch implements healthv1.HealthServer.
func (h *rpcHealth) Watch(ask *healthv1.HealthCheckRequest, stream healthv1.Health_WatchServer) error {
	if !knownService(ask.GetService()) {
		return status.Error(codes.NotFound, "there is no such service here")
	}
	ticker := time.NewTicker(watchEvery)
	defer ticker.Stop()
	last := healthv1.HealthCheckResponse_UNKNOWN
	for {
		if now := h.status(); now.Status != last {
			last = now.Status
			if err := stream.Send(now); err != nil {
				return err
			}
		}
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-h.stopping:
			return status.Error(codes.Unavailable, "this server is stopping")
		case <-ticker.C:
		}
	}
}

// rpcListener is the gRPC listener, where there is one.
type rpcListener struct {
	server   *grpc.Server
	socket   net.Listener
	stopping chan struct{}
	once     sync.Once
}

// listenRPC opens the gRPC listener; nil where it is switched off.
func (s *Server) listenRPC(ctx context.Context) (*rpcListener, error) {
	if s.config.GRPCBindAddress == "" {
		return nil, nil
	}
	socket, err := new(net.ListenConfig).Listen(ctx, "tcp", s.config.GRPCBindAddress)
	if err != nil {
		return nil, listenError("--grpc-bind-address", s.config.GRPCBindAddress, err)
	}
	l := &rpcListener{socket: socket, stopping: make(chan struct{})}
	l.server = newRPC(s.public, s.keys.public.config(), l.stopping)
	return l, nil
}

func (l *rpcListener) address() net.Addr {
	if l == nil {
		return nil
	}
	return l.socket.Addr()
}

func (l *rpcListener) serve() error { return l.server.Serve(l.socket) }

// stop ends it: calls under way are waited for until the context ends.
func (l *rpcListener) stop(ctx context.Context) error {
	if l == nil {
		return nil
	}
	l.once.Do(func() { close(l.stopping) })
	done := make(chan struct{})
	go func() {
		l.server.GracefulStop()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		l.server.Stop()
		<-done
		return ctx.Err()
	}
}
