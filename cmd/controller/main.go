// Command mintmark-controller reconciles credentials, makes and rotates the
// installation's keys and certificates, and serves the admission webhooks.
//
// Any number of replicas may run. One of them leads and reconciles; all serve
// webhooks.
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
	"strconv"
	"strings"
	"syscall"

	"github.com/go-logr/logr"
	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/util/validation"
	_ "k8s.io/client-go/plugin/pkg/client/auth" // kubeconfigs of exec, OIDC and cloud accounts
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/mintmark-dev/mintmark/controllers"
)

// version is set at build time: -ldflags "-X main.version=v0.1.0".
var version string

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := execute(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// execute is main without the process: it returns the exit code.
func execute(ctx context.Context, args []string, env func(string) string, out, log io.Writer) int {
	o, err := parse(args, env)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		fmt.Fprint(out, usage(env))
		return exitOK
	case err != nil:
		fmt.Fprintf(log, "mintmark-controller: %v\nRun mintmark-controller --help for all flags.\n", err)
		return exitUsage
	case o.showVersion:
		fmt.Fprintln(out, "mintmark-controller", buildVersion())
		return exitOK
	}
	if env("GOGC") == "" {
		go keepHeapRoom(ctx, debug.SetMemoryLimit(-1))
	}
	logger := slog.New(slog.NewJSONHandler(log, &slog.HandlerOptions{Level: o.level}))
	setLogger(logger)
	if err := run(ctx, o, logger); err != nil {
		logger.Error("The controller stopped", "error", explain(err, o).Error())
		return exitFailed
	}
	return exitOK
}

// setLogger gives controller-runtime, client-go and whoever writes to the standard
// library's logger, such as its HTTP server, the one logger of this process.
func setLogger(logger *slog.Logger) {
	own := logr.FromSlogHandler(logger.Handler())
	ctrl.SetLogger(own)
	klog.SetLogger(own.WithName("client-go"))
	slog.SetDefault(logger.With("logger", "go"))
}

// options are the flags.
type options struct {
	kubeconfig        string
	namespace         string
	watchNamespaces   []string
	leaderElect       bool
	metricsAddress    string
	healthAddress     string
	webhookAddress    string
	internalTokenFile string
	certificateNames  []string
	enableRestarts    bool
	parallelRestarts  int
	logLevel          string
	showVersion       bool

	// What is parsed from them.
	level       slog.Level
	webhookHost string
	webhookPort int
	identity    string
}

// flags binds the flags to the options.
func (o *options) flags(env func(string) string) *pflag.FlagSet {
	namespace := env("POD_NAMESPACE")
	if namespace == "" {
		namespace = "mintmark-system"
	}
	f := pflag.NewFlagSet("mintmark-controller", pflag.ContinueOnError)
	f.SortFlags = false
	f.Usage = func() {}
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig `file`; default: the pod's service account, else $KUBECONFIG or ~/.kube/config")
	f.StringVar(&o.namespace, "namespace", namespace, "namespace of the installation: its keys, certificates and Leases are there")
	f.StringSliceVar(&o.watchNamespaces, "watch-namespaces", nil, "namespaces whose credentials are looked after, separated by commas; default: all")
	f.BoolVar(&o.leaderElect, "leader-elect", true, "reconcile only while holding the Lease mintmark-controller; needed with more than one replica")
	f.StringVar(&o.metricsAddress, "metrics-bind-address", ":8080", "`address` of Prometheus metrics at /metrics, in plain HTTP; 0 serves none")
	f.StringVar(&o.healthAddress, "health-probe-bind-address", ":8081", "`address` of /healthz and /readyz; 0 serves none")
	f.StringVar(&o.webhookAddress, "webhook-bind-address", ":9443", "`address` of the admission webhooks, in HTTPS")
	f.StringVar(&o.internalTokenFile, "internal-token-file", "/var/run/secrets/mintmark/token",
		"`file` with the token shown to the servers: of the service account, for the audience mintmark-internal; read again when it changes")
	f.StringSliceVar(&o.certificateNames, "certificate-names", nil,
		"DNS `names` and IP addresses, separated by commas, for which the certificates made are valid besides those of the Services")
	f.BoolVar(&o.enableRestarts, "enable-restarts", false,
		"restart the workloads that credentials choose in spec.restart; needs the ClusterRole mintmark-controller-restart")
	f.IntVar(&o.parallelRestarts, "parallel-restarts", controllers.DefaultParallelRestarts, "rollouts for restarts that go on at once, in the whole cluster")
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	f.BoolVar(&o.showVersion, "version", false, "print the version and exit")
	return f
}

func usage(env func(string) string) string {
	return "mintmark-controller reconciles Mintmark's credentials and serves its admission webhooks.\n\n" +
		"Usage: mintmark-controller [flags]\n\nFlags:\n" + new(options).flags(env).FlagUsagesWrapped(120)
}

// parse reads and checks the flags.
func parse(args []string, env func(string) string) (options, error) {
	var o options
	f := o.flags(env)
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("argument %q is not understood: everything is set by flags", f.Arg(0))
	}
	if err := o.level.UnmarshalText([]byte(o.logLevel)); err != nil {
		return o, fmt.Errorf("--log-level=%s: write debug, info, warn or error", o.logLevel)
	}
	for _, namespace := range append([]string{o.namespace}, o.watchNamespaces...) {
		if problems := validation.IsDNS1123Label(namespace); len(problems) > 0 {
			return o, fmt.Errorf("%q (of --namespace or --watch-namespaces) is no namespace: %s", namespace, strings.Join(problems, "; "))
		}
	}
	for _, name := range o.certificateNames {
		if _, err := netip.ParseAddr(name); err != nil && len(validation.IsDNS1123Subdomain(strings.TrimPrefix(name, "*."))) > 0 {
			return o, fmt.Errorf("--certificate-names: %q is neither a DNS name nor an IP address", name)
		}
	}
	if o.parallelRestarts < 1 {
		return o, fmt.Errorf("--parallel-restarts=%d: write 1 or more, or leave --enable-restarts out to restart nothing", o.parallelRestarts)
	}
	var err error
	if o.webhookHost, o.webhookPort, err = splitAddress(o.webhookAddress); err != nil || o.webhookPort == 0 {
		return o, fmt.Errorf("--webhook-bind-address=%s: write HOST:PORT or :PORT, with a port from 1 to 65535", o.webhookAddress)
	}
	for flag, address := range map[string]string{"metrics-bind-address": o.metricsAddress, "health-probe-bind-address": o.healthAddress} {
		if _, _, err := splitAddress(address); address != "0" && address != "" && err != nil {
			return o, fmt.Errorf("--%s=%s: write HOST:PORT or :PORT, or 0 to serve none", flag, address)
		}
	}
	if o.identity = env("POD_NAME"); o.identity == "" {
		o.identity, _ = os.Hostname() // a name to read, nothing depends on it
	}
	return o, nil
}

func splitAddress(address string) (host string, port int, err error) {
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, err
	}
	number, err := strconv.ParseUint(text, 10, 16)
	return host, int(number), err
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
