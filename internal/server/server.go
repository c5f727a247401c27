package server

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/rest"

	"github.com/mintmark-dev/mintmark/internal/audit"
	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/federation"
	"github.com/mintmark-dev/mintmark/internal/keyring"
	"github.com/mintmark-dev/mintmark/internal/oauth"
)

// Config of a Server. Fields without a default must be set.
type Config struct {
	// ID names the server in its Lease, uniquely among those of the installation, and
	// the same after a restart if possible.
	ID string
	// Namespace of the installation: where its Leases and key Secrets are.
	Namespace string
	// WatchNamespaces limits the credentials known; empty means all namespaces.
	WatchNamespaces []string
	// Kubernetes is how the API server is reached.
	Kubernetes *rest.Config

	// BindAddress of the public HTTPS listener, InternalBindAddress of the one for the
	// controllers, MetricsBindAddress of plain HTTP for probes and metrics.
	BindAddress, InternalBindAddress, MetricsBindAddress string
	// GRPCBindAddress of Envoy's ext_authz, over TLS with the certificate of the public
	// listener. Empty: there is no such listener.
	GRPCBindAddress string
	// InternalURL is where the controllers reach the internal listener. Default: https
	// at the address it is bound to.
	InternalURL string

	// Issuer is the iss of JWTs, and the URL callers know this server by.
	Issuer string
	// TrustedProxies are the peers whose X-Forwarded-For, Forwarded, X-Request-Id and
	// original path are believed. Default: none.
	TrustedProxies []netip.Prefix
	// IdentityHeaders are what forward-auth and ext_authz call the headers that tell a
	// backend who calls.
	IdentityHeaders IdentityHeaders
	// IssuerNetworks are where TrustedIssuers may be although that is not the public
	// internet. Default: nowhere.
	IssuerNetworks []netip.Prefix
	// RateLimitPerAddress is how many requests with a credential an address may send in a
	// second, at all servers together. 0: any number.
	RateLimitPerAddress int
	// BlockFailures is how many bad credentials an address may present in a minute before
	// it is blocked. 0: any number.
	BlockFailures int
	// BlockAllow are networks that are neither blocked nor limited by address.
	BlockAllow []netip.Prefix
	// MaxStaleness is for how long a server that is cut off goes on verifying. Default:
	// 10 minutes.
	MaxStaleness time.Duration
	// TLSCertFile and TLSKeyFile are the certificate of the public listener. Default: that
	// of the Secret mintmark-server-tls.
	TLSCertFile, TLSKeyFile string
	// ShutdownDelay is how long requests are still taken after the server has gone out
	// of service, for load balancers to notice. 0 means none.
	ShutdownDelay time.Duration
	// RelistEvery bounds how long an event that the API server failed to send can matter.
	// Default: 10 minutes.
	RelistEvery time.Duration

	// Audit is how what happens is recorded. Default: it is not.
	Audit Audit
	// Management is what may be managed over REST. Default: what is there can be listed.
	Management Management

	// Log gets structured lines that never hold a credential. Default: none.
	Log *slog.Logger
}

// Limits of the public listener.
const (
	readHeaderTimeout    = 5 * time.Second
	readTimeout          = 15 * time.Second
	writeTimeout         = 30 * time.Second
	idleTimeout          = 2 * time.Minute
	maxHeaderBytes       = 32 << 10
	maxConcurrentStreams = 250
	// drainTimeout is how long requests under way are waited for at the end.
	drainTimeout = 25 * time.Second
)

// Server verifies credentials. Make it with New and Run it once.
type Server struct {
	config    Config
	clients   *clients
	registry  *prometheus.Registry
	metrics   *metrics
	index     *authn.Index
	issuer    *oauth.Issuer
	keys      *keys
	presence  *presence
	ready     *readiness
	feed      *feed
	policies  *policies
	denied    *sharedDenyList
	foreign   *foreign
	replicas  *replicas
	public    *public
	audit     *auditor     // nil: nothing is recorded
	buried    *tombstones  // nil without a store
	inventory *inventory   // nil without a store
	rpc       *rpcListener // once it listens; nil without one

	addresses  atomic.Pointer[Addresses]
	lastRelist atomic.Int64 // Unix nanoseconds
}

// Addresses a Server listens at. GRPC is nil where it does not.
type Addresses struct{ Public, Internal, Metrics, GRPC net.Addr }

// New checks the configuration and puts the parts together. It does no I/O.
func New(c Config) (*Server, error) {
	c = c.withDefaults()
	if err := c.check(); err != nil {
		return nil, err
	}
	if kept := keyring.DefaultPolicy().KeepAfter; c.MaxStaleness+oauth.MaxTTL > kept {
		c.Log.Warn("--max-staleness is so long that a JWT which a server signs while it is cut off may outlive the key that the others publish",
			"max_staleness", c.MaxStaleness.String(), "at_most", (kept - oauth.MaxTTL).String())
	}
	s := &Server{config: c, registry: prometheus.NewRegistry(), index: authn.New(authn.Config{}), keys: new(keys)}
	s.metrics = newMetrics(s.registry)
	s.policies = newPolicies(s.registry, c.Log)
	s.policies.noGateway = len(c.TrustedProxies) == 0
	s.audit = c.Audit.auditor(c.ID, c.Log)
	s.policies.audit = s.audit
	var err error
	if s.clients, err = newClients(c.Kubernetes); err != nil {
		return nil, fmt.Errorf("making clients for the API server: %w", err)
	}
	s.denied = &sharedDenyList{denyList: &denyList{now: time.Now}, core: s.clients.core.rest, namespace: c.Namespace}
	if s.issuer, err = oauth.NewIssuer(oauth.Config{
		Issuer: c.Issuer, Keys: s.keys.ring, Secrets: &isolated{peppers: s.keys.allPeppers, index: s.index}, Denied: s.denied.has,
	}); err != nil {
		return nil, fmt.Errorf("--issuer: %w", err)
	}
	s.foreign = newForeign(foreignConfig{index: s.index, registry: s.registry, log: c.Log, federation: federation.Config{
		OwnIssuer: c.Issuer, Networks: c.IssuerNetworks, Shielded: shieldedHosts(c.Kubernetes),
	}})
	s.keys.public = &s.keys.internal
	if c.TLSCertFile != "" {
		s.keys.public = new(serving)
	}
	s.presence = &presence{
		leases: s.clients.leases.Leases(c.Namespace), id: c.ID, holder: c.ID + "_" + processID(), url: s.internalURL, log: c.Log,
	}
	fresh := newFreshness(time.Now())
	s.ready = &readiness{presence: s.presence, keys: s.keys, freshness: fresh, maxStaleness: c.MaxStaleness}
	if c.Audit.DenyOnOverflow && c.Audit.Recorder != nil {
		s.ready.losing = c.Audit.Recorder.Full
	}
	if c.Audit.Store != nil {
		s.buried = newTombstones(c.Audit.Store, s.index, s.ready.warm.Load, c.Log, time.Now)
		s.inventory = newInventory(c.Audit.Store, s.ready.warm.Load, c.Log, time.Now)
	}
	s.feed = &feed{
		audit: s.audit, tombstones: s.buried, inventory: s.inventory,
		clients: s.clients, namespace: c.Namespace, namespaces: c.WatchNamespaces, index: s.index, keys: s.keys, ready: s.ready,
		freshness: fresh, policies: s.policies, foreign: s.foreign, denied: s.denied.denyList, metrics: s.metrics, log: c.Log, now: time.Now, relistEvery: c.RelistEvery,
	}
	s.keys.onPeppers = s.feed.peppersChanged
	s.presence.onTenure = func() {
		s.feed.relistAll()
		s.replicas.joined()
	}
	s.feed.prepare()
	s.replicas = newReplicas(s.clients.leases.Leases(c.Namespace), time.Now, c.Log)
	manager, err := s.newManagement()
	if err != nil {
		return nil, err
	}
	s.public = newPublic(publicConfig{
		manager: manager,
		index:   s.index, issuer: s.issuer, gate: s.ready, proxies: c.TrustedProxies, metrics: s.metrics, log: c.Log, now: time.Now,
		identity: c.IdentityHeaders, policies: s.policies, foreign: s.foreign, revoker: s.denied,
		audit: s.audit, system: s.system(),
		limits: newCredentialLimits(s.metrics, s.replicas.number), guard: newAddressGuard(guardConfig{
			perSecond: c.RateLimitPerAddress, failures: c.BlockFailures, allowed: c.BlockAllow, replicas: s.replicas.number, metrics: s.metrics, audit: s.audit, log: c.Log,
		}),
	})
	s.registerGauges()
	registerAudit(s.registry, c.Audit.Recorder, s.once(), c.Audit.Store)
	registerOTLP(s.registry, c.Audit.OTLP)
	return s, nil
}

func (c Config) withDefaults() Config {
	c.WatchNamespaces = slices.Compact(slices.Sorted(slices.Values(c.WatchNamespaces)))
	if c.MaxStaleness == 0 {
		c.MaxStaleness = 10 * time.Minute
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

func (c Config) check() error {
	var errs []error
	if problems := validation.IsDNS1123Subdomain(LeaseName(c.ID)); c.ID == "" || len(problems) > 0 {
		errs = append(errs, fmt.Errorf("--id %q cannot be part of a Lease's name: use lowercase letters, digits, - and .", c.ID))
	}
	if problems := validation.IsDNS1123Label(c.Namespace); len(problems) > 0 {
		errs = append(errs, fmt.Errorf("--namespace %q is not the name of a namespace: %s", c.Namespace, problems[0]))
	}
	for _, ns := range c.WatchNamespaces {
		if problems := validation.IsDNS1123Label(ns); len(problems) > 0 {
			errs = append(errs, fmt.Errorf("--watch-namespaces: %q is not the name of a namespace: %s", ns, problems[0]))
		}
	}
	if c.Kubernetes == nil {
		errs = append(errs, errors.New("no configuration of the API server: give --kubeconfig"))
	}
	if u, err := url.Parse(c.InternalURL); c.InternalURL != "" && (err != nil || u.Scheme != "https" || u.Host == "") {
		errs = append(errs, fmt.Errorf("--internal-advertise-url %q is not an https URL such as https://10.1.2.3:8444", c.InternalURL))
	}
	if (c.TLSCertFile == "") != (c.TLSKeyFile == "") {
		errs = append(errs, errors.New("--tls-cert-file and --tls-key-file: give both or neither"))
	}
	if c.MaxStaleness < 0 || c.ShutdownDelay < 0 {
		errs = append(errs, errors.New("--max-staleness and --shutdown-delay cannot be negative"))
	}
	if c.RateLimitPerAddress < 0 || c.BlockFailures < 0 {
		errs = append(errs, errors.New("--rate-limit-per-address and --block-failures cannot be negative: 0 switches them off"))
	}
	if err := c.IdentityHeaders.Check(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// processID tells this process from another one of the same id.
func processID() string {
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails (crypto/rand)
	return hex.EncodeToString(id[:])
}

func (s *Server) registerGauges() {
	now, truth := time.Now, func(ok bool) float64 {
		if ok {
			return 1
		}
		return 0
	}
	registerGauges(s.registry, gauges{
		indexed: func() float64 { return float64(s.index.Len()) },
		refused: func() float64 { return float64(s.feed.refusedNow()) },
		heartbeatAge: func() float64 {
			if age, seen := s.ready.freshness.heartbeatAge(now()); seen {
				return age.Seconds()
			}
			return math.NaN()
		},
		knownAge: func() float64 {
			if age, ok := s.ready.age(now()); ok {
				return age.Seconds()
			}
			return math.NaN()
		},
		leaseHeld:   func() float64 { _, err := s.presence.held(now()); return truth(err == nil) },
		ready:       func() float64 { return truth(s.ready.ready(now()) == nil) },
		signingKeys: func() float64 { return float64(len(s.issuer.KeySet().Keys)) },
		blocked:     func() float64 { return float64(s.public.guard.blockedNow(now())) },
		servers:     func() float64 { return float64(s.replicas.number()) },
	})
}

// Addresses the server listens at; nil before it does.
func (s *Server) Addresses() *Addresses { return s.addresses.Load() }

// Ready is nil while the server is in service; its error says what is missing.
func (s *Server) Ready() error { return s.ready.ready(time.Now()) }

func (s *Server) internalURL() string {
	if s.config.InternalURL != "" {
		return s.config.InternalURL
	}
	return "https://" + s.Addresses().Internal.String()
}

// Run serves until the context ends, and then stops in an order that drops no request:
// out of service first, then no more connections, then the Lease, and the internal
// listener last. It returns nil after that, or what made it stop otherwise.
func (s *Server) Run(ctx context.Context) error {
	listeners, err := s.listen(ctx)
	if err != nil {
		return err
	}
	running := context.WithoutCancel(ctx)
	feeding, stopFeeding := context.WithCancel(running)
	present, stopPresence := context.WithCancel(running)
	defer stopFeeding()
	defer stopPresence()

	var workers, leaseholder sync.WaitGroup
	failed := make(chan error, 8)
	for _, l := range listeners {
		workers.Go(func() {
			if err := l.serve(); !errors.Is(err, http.ErrServerClosed) {
				failed <- fmt.Errorf("serving %s: %w", l.name, err)
			}
		})
	}
	if s.rpc != nil {
		workers.Go(func() {
			if err := s.rpc.serve(); err != nil {
				failed <- fmt.Errorf("serving the gRPC listener: %w", err)
			}
		})
	}
	workers.Go(func() { s.foreign.Run(feeding) })
	s.runAudit(feeding, &workers)
	workers.Go(func() { s.replicas.Run(feeding) })
	leaseholder.Go(func() {
		if err := s.presence.Run(present); present.Err() == nil {
			failed <- err
		}
	})
	workers.Go(func() {
		if err := s.feed.Run(feeding); feeding.Err() == nil {
			failed <- err
		}
	})
	if s.config.TLSCertFile != "" {
		files := &certificateFiles{cert: s.config.TLSCertFile, key: s.config.TLSKeyFile, target: s.keys.public, log: s.config.Log}
		workers.Go(func() { files.Run(feeding) })
	}
	s.announce(feeding, &workers)

	var cause error
	select {
	case <-ctx.Done():
	case cause = <-failed:
		s.config.Log.Error("stopping", "error", cause.Error())
	}
	return errors.Join(cause, s.stop(listeners, stopPresence, &leaseholder, stopFeeding, &workers))
}

// stop is the end of Run.
func (s *Server) stop(listeners [3]listener, stopPresence func(), leaseholder *sync.WaitGroup, stopFeeding func(), workers *sync.WaitGroup) error {
	inService := s.Ready() == nil
	s.ready.leaves.Store(true)
	if inService {
		s.config.Log.Info("out of service; requests are still answered", "for", s.config.ShutdownDelay.String())
		time.Sleep(s.config.ShutdownDelay)
	}

	draining, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	public, internal, probes := listeners[0], listeners[1], listeners[2]
	var errs []error
	if err := public.server.Shutdown(draining); err != nil {
		errs = append(errs, fmt.Errorf("requests were cut off at shutdown: %w", err))
		_ = public.server.Close()
	}
	if err := s.rpc.stop(draining); err != nil {
		errs = append(errs, fmt.Errorf("gRPC calls were cut off at shutdown: %w", err))
	}
	// The Lease goes when nobody can reach this server any more, and a controller that
	// still asks it is answered until then.
	stopPresence()
	leaseholder.Wait()
	releasing, cancelRelease := context.WithTimeout(context.Background(), renewTimeout)
	defer cancelRelease()
	if err := s.presence.release(releasing); err != nil {
		// It lapses by itself.
		s.config.Log.Warn("the Lease was left behind", "error", err.Error())
	}
	stopFeeding()
	closing, cancelClosing := context.WithTimeout(context.Background(), time.Second)
	defer cancelClosing()
	for _, l := range []listener{internal, probes} {
		if l.server.Shutdown(closing) != nil {
			_ = l.server.Close()
		}
	}
	workers.Wait()
	s.audit.server(audit.TypeServerStopped, "Stopped")
	s.config.Log.Info("stopped")
	return errors.Join(errs...)
}

// announce logs once when the server is ready for the first time, and whenever that
// changes.
func (s *Server) announce(ctx context.Context, workers *sync.WaitGroup) {
	workers.Go(func() {
		ticker := time.NewTicker(100 * time.Millisecond)
		defer ticker.Stop()
		was, began := false, time.Now()
		for {
			err := s.Ready()
			switch {
			case err == nil && !was:
				s.config.Log.Info("ready", "credentials", s.index.Len(), "after", time.Since(began).Round(time.Millisecond).String())
			case err != nil && was:
				began = time.Now()
				s.config.Log.Warn("not ready", "cause", strings.ReplaceAll(err.Error(), "\n", "; "))
			}
			was = err == nil
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
		}
	})
}

// listener is one address and what answers there.
type listener struct {
	name   string
	server *http.Server
	serve  func() error
}

// listen opens the three HTTP listeners, public, internal and metrics, and that of gRPC.
func (s *Server) listen(ctx context.Context) (all [3]listener, err error) {
	quiet := slog.NewLogLogger(s.config.Log.Handler(), slog.LevelDebug)
	streams := &http.HTTP2Config{MaxConcurrentStreams: maxConcurrentStreams}
	if s.rpc, err = s.listenRPC(ctx); err != nil {
		return all, err
	}
	var opened [3]net.Listener
	for i, l := range []struct {
		name, flag, address string
		handler             http.Handler
		tls                 *tls.Config
		write               time.Duration
	}{
		{"the public listener", "--bind-address", s.config.BindAddress, s.public, s.keys.public.config(), writeTimeout},
		{"the internal listener", "--internal-bind-address", s.config.InternalBindAddress, s.internalHandler(), s.keys.internal.config(), writeTimeout},
		{"the metrics listener", "--metrics-bind-address", s.config.MetricsBindAddress, operations(s.registry, s.ready, time.Now), nil, writeTimeout},
	} {
		opened[i], err = new(net.ListenConfig).Listen(ctx, "tcp", l.address)
		if err != nil {
			for _, o := range opened[:i] {
				_ = o.Close()
			}
			if s.rpc != nil {
				_ = s.rpc.socket.Close()
			}
			return all, listenError(l.flag, l.address, err)
		}
		server := &http.Server{
			Handler: l.handler, TLSConfig: l.tls, ReadHeaderTimeout: readHeaderTimeout, ReadTimeout: readTimeout, WriteTimeout: l.write,
			IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaderBytes, ErrorLog: quiet, HTTP2: streams, DisableGeneralOptionsHandler: true,
		}
		all[i] = listener{name: l.name, server: server, serve: func() error {
			if l.tls == nil {
				return server.Serve(opened[i])
			}
			return server.ServeTLS(opened[i], "", "")
		}}
	}
	s.addresses.Store(&Addresses{Public: opened[0].Addr(), Internal: opened[1].Addr(), Metrics: opened[2].Addr(), GRPC: s.rpc.address()})
	s.config.Log.Info("listening", "public", opened[0].Addr().String(), "internal", opened[1].Addr().String(),
		"metrics", opened[2].Addr().String(), "grpc", s.config.GRPCBindAddress)
	return all, nil
}

func listenError(flag, address string, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%s %s: another process listens there: stop it or choose another address", flag, address)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("%s %s: not allowed to listen there: choose a port from 1024 on", flag, address)
	default:
		return fmt.Errorf("%s %s: %w", flag, address, err)
	}
}

func (s *Server) internalHandler() http.Handler {
	l := &internalListener{
		id: s.config.ID, started: time.Now(), index: s.index, metrics: s.metrics, log: s.config.Log,
		callers: newCallers(s.clients.authentication.TokenReviews(), s.config.Namespace, s.metrics, s.config.Log),
		overdue: s.overdue, ready: s.ready.warm.Load, once: s.once(), audit: s.audit,
	}
	return l.handler()
}

// overdueEvery bounds how often a question that stays unanswered has everything listed
// again.
const overdueEvery = 30 * time.Second

// overdue looks for what a controller says there should be.
func (s *Server) overdue() {
	last, now := s.lastRelist.Load(), time.Now().UnixNano()
	if now-last >= int64(overdueEvery) && s.lastRelist.CompareAndSwap(last, now) {
		s.config.Log.Info("a controller asks for what has not arrived here in time: listing credentials again")
		s.feed.relist()
	}
}
