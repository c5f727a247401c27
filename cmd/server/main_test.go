package main

import (
	"bytes"
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/mintmark-dev/mintmark/internal/server"
)

func environment(pairs ...string) func(string) string {
	return func(name string) string {
		for i := 0; i+1 < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1]
			}
		}
		return ""
	}
}

func TestThePodsEnvironmentGivesTheDefaults(t *testing.T) {
	o, err := parse(nil, environment("POD_NAMESPACE", "auth", "POD_NAME", "mintmark-server-0", "POD_IP", "10.1.2.3"), new(bytes.Buffer))
	if err != nil {
		t.Fatal(err)
	}
	want := server.Config{
		ID: "mintmark-server-0", Namespace: "auth", BindAddress: ":8443", InternalBindAddress: ":8444", MetricsBindAddress: ":8080", GRPCBindAddress: ":8445",
		InternalURL: "https://10.1.2.3:8444", Issuer: "https://mintmark-server.auth.svc", MaxStaleness: 10 * time.Minute, ShutdownDelay: 5 * time.Second,
		BlockFailures: 30, Management: server.Management{Class: "mintmark-rest"},
	}
	if diff := cmp.Diff(want, o.config, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("the configuration differs (-want +got):\n%s", diff)
	}
}

func TestFlagsWin(t *testing.T) {
	o, err := parse([]string{
		"--namespace=other", "--watch-namespaces=a,b", "--bind-address=127.0.0.1:1", "--internal-bind-address=127.0.0.1:2", "--metrics-bind-address=127.0.0.1:3",
		"--issuer=https://auth.example.com", "--trusted-proxies=10.0.0.0/8,192.0.2.1,2001:db8::/32", "--max-staleness=1m", "--tls-cert-file=c", "--tls-key-file=k",
		"--id=one", "--shutdown-delay=0s", "--log-level=debug", "--kubeconfig=f", "--grpc-bind-address=0", "--identity-headers=id=X-Auth-User,roles=X-Auth-Roles",
		"--rate-limit-per-address=100", "--block-failures=0", "--block-allow=10.1.0.0/16,192.0.2.9",
		"--management-namespaces=a,b", "--management-class=rest",
	}, environment("POD_NAMESPACE", "auth", "POD_NAME", "p"), new(bytes.Buffer))
	if err != nil {
		t.Fatal(err)
	}
	want := server.Config{
		ID: "one", Namespace: "other", WatchNamespaces: []string{"a", "b"}, BindAddress: "127.0.0.1:1", InternalBindAddress: "127.0.0.1:2",
		MetricsBindAddress: "127.0.0.1:3", InternalURL: "https://127.0.0.1:2", Issuer: "https://auth.example.com", MaxStaleness: time.Minute,
		TLSCertFile: "c", TLSKeyFile: "k", IdentityHeaders: server.IdentityHeaders{ID: "X-Auth-User", Roles: "X-Auth-Roles"},
		TrustedProxies:      []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("2001:db8::/32")},
		RateLimitPerAddress: 100, BlockAllow: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("192.0.2.9/32")},
		Management: server.Management{Namespaces: []string{"a", "b"}, Class: "rest"},
	}
	if diff := cmp.Diff(want, o.config, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("the configuration differs (-want +got):\n%s", diff)
	}
	if o.level != slog.LevelDebug || o.kubeconfig != "f" {
		t.Errorf("level %s, kubeconfig %q", o.level, o.kubeconfig)
	}
}

func TestWhatCannotBeRunEndsWithAMessageThatNamesTheRemedy(t *testing.T) {
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(kubeconfig, []byte("apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}]\n"+
		"contexts: [{name: c, context: {cluster: c}}]\ncurrent-context: c\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	local := []string{"--kubeconfig=" + kubeconfig, "--id=one", "--bind-address=127.0.0.1:0", "--internal-bind-address=127.0.0.1:0", "--metrics-bind-address=127.0.0.1:0",
		"--grpc-bind-address=0"}
	for name, c := range map[string]struct {
		args []string
		code int
		want string
	}{
		"help":                             {[]string{"--help"}, exitOK, "--max-staleness"},
		"an unknown flag":                  {[]string{"--nonsense"}, exitUsage, "--nonsense"},
		"an argument":                      {append(local, "run"), exitUsage, `"run"`},
		"a log level":                      {append(local, "--log-level=loud"), exitUsage, "--log-level"},
		"a proxy that is no network":       {append(local, "--trusted-proxies=me"), exitUsage, "--trusted-proxies"},
		"a rate below nothing":             {append(local, "--rate-limit-per-address=-1"), exitUsage, "--rate-limit-per-address"},
		"failures below nothing":           {append(local, "--block-failures=-1"), exitUsage, "--block-failures"},
		"a managed namespace that is none": {append(local, "--management-namespaces=A b"), exitUsage, "--management-namespaces"},
		"an allowed host":                  {append(local, "--block-allow=localhost"), exitUsage, "--block-allow"},
		"an identity header unknown":       {append(local, "--identity-headers=name=X-A"), exitUsage, "none of id"},
		"identity in Authorization":        {append(local, "--identity-headers=id=authorization"), exitUsage, "--identity-headers"},
		"two alike identity headers":       {append(local, "--identity-headers=id=X-User,email=XUser"), exitUsage, "--identity-headers"},
		"no staleness at all":              {append(local, "--max-staleness=0s"), exitUsage, "--max-staleness"},
		"no address for controllers":       {append(local, "--internal-bind-address=:8444"), exitUsage, "--internal-advertise-url"},
		"an address without a port":        {append(local, "--internal-bind-address=localhost"), exitUsage, "--internal-bind-address"},
		"no API server to be found":        {append(local, "--kubeconfig=/no/such/file"), exitUsage, "--kubeconfig"},
		"an id that is no name":            {append(local, "--id=A B"), exitUsage, "--id"},
		"half a certificate":               {append(local, "--tls-cert-file=x"), exitUsage, "--tls-key-file"},
		"an issuer without TLS":            {append(local, "--issuer=http://x"), exitUsage, "--issuer"},
		"an address that is not local":     {append(local, "--bind-address=192.0.2.1:1"), exitFailure, "--bind-address"},
		"a gRPC address not local":         {append(local, "--grpc-bind-address=192.0.2.1:1"), exitFailure, "--grpc-bind-address"},
	} {
		t.Run(name, func(t *testing.T) {
			var stderr bytes.Buffer
			if code := run(t.Context(), c.args, environment(), &stderr); code != c.code || !strings.Contains(stderr.String(), c.want) {
				t.Errorf("code %d, want %d; it says %s", code, c.code, stderr.String())
			}
		})
	}
	t.Run("a signal ends it in order, even without an API server", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		var stderr bytes.Buffer
		if code := run(ctx, append(local, "--shutdown-delay=0s"), environment(), &stderr); code != exitOK {
			t.Errorf("code %d: %s", code, stderr.String())
		}
	})
}
