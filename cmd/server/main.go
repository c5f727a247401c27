// Command mintmark-server verifies credentials for gateways and services, and exchanges
// them for short-lived JWTs.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"google.golang.org/grpc/grpclog"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/mintmark-dev/mintmark/internal/management"
	"github.com/mintmark-dev/mintmark/internal/server"
)

// Exit codes.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

// version is set at build time: -ldflags "-X main.version=v0.1.0".
var version string

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	quietGRPC(os.Stderr)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	code := run(ctx, os.Args[1:], os.Getenv, os.Stderr)
	stop()
	os.Exit(code)
}

// quietGRPC has gRPC's errors, all that it says by itself, written as JSON lines too.
func quietGRPC(stderr io.Writer) {
	handler := slog.NewJSONHandler(stderr, nil).WithAttrs([]slog.Attr{slog.String("logger", "grpc")})
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, slog.NewLogLogger(handler, slog.LevelError).Writer()))
}

// run is main without the process around it.
func run(ctx context.Context, args []string, getenv func(string) string, stderr io.Writer) int {
	o, err := parse(args, getenv, stderr)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return exitOK
	case err != nil:
		fmt.Fprintf(stderr, "mintmark-server: %s\nRun mintmark-server --help for the flags.\n", err)
		return exitUsage
	case o.showVersion:
		fmt.Fprintln(stderr, "mintmark-server", buildVersion())
		return exitOK
	}
	log := slog.New(slog.NewJSONHandler(stderr, &slog.HandlerOptions{Level: o.level}))
	klog.SetSlogLogger(log.With("logger", "client-go"))
	slog.SetDefault(log.With("logger", "go")) // also what libraries write to the standard logger
	o.config.Log = log

	if o.audit.migrate {
		return migrate(ctx, o, log, stderr)
	}
	if o.config.Kubernetes, err = kubernetes(o.kubeconfig); err != nil {
		fmt.Fprintf(stderr, "mintmark-server: %s\n", err)
		return exitUsage
	}
	recording, err := o.audit.start(o.config.ID, log, os.Stdout)
	if err != nil {
		fmt.Fprintf(stderr, "mintmark-server: %s\n", err)
		return exitUsage
	}
	o.config.Audit = recording.Audit
	if db, ok := recording.Store.(management.Store); ok {
		o.config.Management.Store = db
	}
	if getenv("GOGC") == "" {
		go server.KeepHeapRoom(ctx)
	}
	code := serve(ctx, o, stderr)
	if err := recording.end(); err != nil {
		fmt.Fprintf(stderr, "mintmark-server: %s\n", err)
		code = max(code, exitFailure)
	}
	return code
}

// serve runs the server until the context ends.
func serve(ctx context.Context, o *options, stderr io.Writer) int {
	s, err := server.New(o.config)
	if err != nil {
		fmt.Fprintf(stderr, "mintmark-server: %s\n", err)
		return exitUsage
	}
	if err := s.Run(ctx); err != nil {
		fmt.Fprintf(stderr, "mintmark-server: %s\n", err)
		return exitFailure
	}
	return exitOK
}

// migrate brings the schema of the database up to date.
func migrate(ctx context.Context, o *options, log *slog.Logger, stderr io.Writer) int {
	if err := o.audit.migrateNow(ctx, log); err != nil {
		fmt.Fprintf(stderr, "mintmark-server: --migrate: %s\n", err)
		return exitFailure
	}
	log.Info("the schema of the database is up to date")
	return exitOK
}

// options are the flags, read.
type options struct {
	kubeconfig  string
	level       slog.Level
	config      server.Config
	audit       auditOptions
	showVersion bool
}

// buildVersion is the version built in, or what the Go toolchain knows of it.
func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

func parse(args []string, getenv func(string) string, stderr io.Writer) (*options, error) {
	o := new(options)
	c := &o.config
	var proxies, issuers, unblocked []string
	var identity map[string]string
	var level string
	flags := pflag.NewFlagSet("mintmark-server", pflag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.SortFlags = false
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig file (default: the service account of the pod, else $KUBECONFIG or ~/.kube/config)")
	flags.StringVar(&c.Namespace, "namespace", or(getenv("POD_NAMESPACE"), "mintmark-system"), "namespace of the installation ($POD_NAMESPACE)")
	flags.StringSliceVar(&c.WatchNamespaces, "watch-namespaces", nil, "namespaces whose credentials are served (default: all)")
	flags.StringVar(&c.BindAddress, "bind-address", ":8443", "address of the public HTTPS listener")
	flags.StringVar(&c.GRPCBindAddress, "grpc-bind-address", ":8445", "address of the gRPC listener for Envoy's ext_authz, over TLS (0: none)")
	flags.StringVar(&c.InternalBindAddress, "internal-bind-address", ":8444", "address of the HTTPS listener for the controllers")
	flags.StringVar(&c.InternalURL, "internal-advertise-url", "", "URL at which the controllers reach it (default: https://$POD_IP and its port)")
	flags.StringVar(&c.MetricsBindAddress, "metrics-bind-address", ":8080", "address of plain HTTP for /metrics, /healthz, /livez and /readyz")
	flags.StringVar(&c.Issuer, "issuer", "", "iss of the JWTs, an https URL (default: https://mintmark-server.NAMESPACE.svc)")
	flags.StringSliceVar(&proxies, "trusted-proxies", nil, "networks of the peers whose X-Forwarded-* headers are believed, such as 10.0.0.0/8 (default: none)")
	flags.StringToStringVar(&identity, "identity-headers", nil, "names of the identity headers, "+
		"such as id=X-Auth-User,email=X-Auth-Email,roles=X-Auth-Roles,permissions=X-Auth-Permissions (default: X-User-ID, X-User-Email, ...)")
	flags.StringSliceVar(&issuers, "allow-issuer-networks", nil, "networks in which the keys of TrustedIssuers may be fetched "+
		"although they are not the public internet, such as 10.96.0.0/12 (default: none)")
	flags.IntVar(&c.RateLimitPerAddress, "rate-limit-per-address", 0, "requests with a credential that an address may send in a second, at all servers together; 0: any number")
	flags.IntVar(&c.BlockFailures, "block-failures", 30, "bad credentials that an address may present in a minute before it is blocked; 0: any number")
	flags.StringSliceVar(&unblocked, "block-allow", nil, "networks that are neither blocked nor limited by address, such as 10.0.0.0/8 (default: none)")
	flags.DurationVar(&c.MaxStaleness, "max-staleness", 10*time.Minute, "how long to go on verifying while cut off from the API server; after that everything is denied")
	flags.StringVar(&c.TLSCertFile, "tls-cert-file", "", "certificate of the public listener (default: from the Secret mintmark-server-tls)")
	flags.StringVar(&c.TLSKeyFile, "tls-key-file", "", "its private key")
	flags.StringVar(&c.ID, "id", "", "name of this server among the others (default: $POD_NAME, else the host's name)")
	flags.DurationVar(&c.ShutdownDelay, "shutdown-delay", 5*time.Second, "how long to go on answering after going out of service")
	o.audit.addTo(flags, getenv)
	flags.StringSliceVar(&c.Management.Namespaces, "management-namespaces", nil,
		"namespaces in which credentials may be made, rotated and revoked over REST, or *: what RBAC lets this server write (default: none)")
	flags.StringVar(&c.Management.Class, "management-class", "mintmark-rest", "CredentialClass of the credentials that are made over REST")
	flags.StringVar(&level, "log-level", "info", "debug, info, warn or error; debug has a line for each request")
	flags.BoolVar(&o.showVersion, "version", false, "print the version and exit")
	if err := flags.Parse(args); err != nil || o.showVersion {
		return o, err
	}
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if err := o.level.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("--log-level %q: use debug, info, warn or error", level)
	}
	if err := o.audit.check(); err != nil {
		return nil, err
	}
	if c.MaxStaleness <= 0 {
		return nil, fmt.Errorf("--max-staleness %s: it must be positive", c.MaxStaleness)
	}
	var err error
	if c.TrustedProxies, err = prefixes("--trusted-proxies", proxies); err != nil {
		return nil, err
	}
	if c.IssuerNetworks, err = prefixes("--allow-issuer-networks", issuers); err != nil {
		return nil, err
	}
	if c.BlockAllow, err = prefixes("--block-allow", unblocked); err != nil {
		return nil, err
	}
	if c.IdentityHeaders, err = identityHeaders(identity); err != nil {
		return nil, err
	}
	if c.GRPCBindAddress == "0" {
		c.GRPCBindAddress = ""
	}
	if c.ID == "" {
		if c.ID, err = defaultID(getenv); err != nil {
			return nil, err
		}
	}
	c.Issuer = or(c.Issuer, "https://mintmark-server."+c.Namespace+".svc")
	if c.InternalURL == "" && !o.audit.migrate { // to migrate is to listen to nobody
		c.InternalURL, err = advertised(getenv("POD_IP"), c.InternalBindAddress)
	}
	return o, err
}

func or(value, fallback string) string {
	if value != "" {
		return value
	}
	return fallback
}

func prefixes(flag string, texts []string) (out []netip.Prefix, err error) {
	for _, text := range texts {
		text = strings.TrimSpace(text)
		if ip, err := netip.ParseAddr(text); err == nil {
			out = append(out, netip.PrefixFrom(ip.Unmap(), ip.Unmap().BitLen()))
			continue
		}
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %q is not a network: write it like 10.0.0.0/8 or 2001:db8::/32", flag, text)
		}
		out = append(out, prefix.Masked())
	}
	return out, nil
}

func identityHeaders(names map[string]string) (h server.IdentityHeaders, err error) {
	for what, name := range names {
		switch what {
		case "id":
			h.ID = name
		case "email":
			h.Email = name
		case "roles":
			h.Roles = name
		case "permissions":
			h.Permissions = name
		default:
			return h, fmt.Errorf("--identity-headers: %q is none of id, email, roles and permissions", what)
		}
	}
	return h, h.Check()
}

// defaultID is the pod's name, else the host's.
func defaultID(getenv func(string) string) (string, error) {
	if name := getenv("POD_NAME"); name != "" {
		return name, nil
	}
	name, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("the host has no name to take as --id: %w", err)
	}
	return strings.ToLower(name), nil
}

// advertised is the URL of the internal listener for a pod; empty leaves it to the address
// that is bound, which is right where everything runs on one host.
func advertised(podIP, bind string) (string, error) {
	_, port, err := net.SplitHostPort(bind)
	if err != nil {
		return "", fmt.Errorf("--internal-bind-address %q: write it like :8444 or 127.0.0.1:8444", bind)
	}
	host, _, _ := net.SplitHostPort(bind)
	switch {
	case podIP != "":
		host = podIP
	case host == "" || net.ParseIP(host).IsUnspecified():
		return "", errors.New("the address of the internal listener is not known to the controllers: " +
			"set $POD_IP or give --internal-advertise-url")
	case port == "0":
		return "", nil
	}
	return "https://" + net.JoinHostPort(host, port), nil
}

// kubernetes finds the API server: the file given, else the pod's service account, else
// kubectl's configuration.
func kubernetes(kubeconfig string) (*rest.Config, error) {
	if kubeconfig == "" {
		if config, err := rest.InClusterConfig(); err == nil {
			return config, nil
		} else if !errors.Is(err, rest.ErrNotInCluster) {
			return nil, fmt.Errorf("reading the pod's service account: %w", err)
		}
	}
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("no API server to work with: run in a pod, or give --kubeconfig: %w", err)
	}
	return config, nil
}
