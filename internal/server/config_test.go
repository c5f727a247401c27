package server

import (
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"
)

func validConfig() Config {
	return Config{
		ID: "one", Namespace: "mintmark-system", Kubernetes: &rest.Config{Host: "https://127.0.0.1:1"}, Issuer: testIssuer,
		BindAddress: "127.0.0.1:0", InternalBindAddress: "127.0.0.1:0", MetricsBindAddress: "127.0.0.1:0",
	}
}

func TestAWrongConfigurationIsRefusedByName(t *testing.T) {
	for want, spoil := range map[string]func(*Config){
		"--id":                     func(c *Config) { c.ID = "Not_A_Name" },
		`--id ""`:                  func(c *Config) { c.ID = "" },
		"--namespace":              func(c *Config) { c.Namespace = "a/b" },
		"--watch-namespaces":       func(c *Config) { c.WatchNamespaces = []string{"good", "not good"} },
		"--issuer":                 func(c *Config) { c.Issuer = "http://plain.example.com" },
		"--internal-advertise-url": func(c *Config) { c.InternalURL = "http://10.0.0.1:8444" },
		"--tls-cert-file":          func(c *Config) { c.TLSCertFile = "tls.crt" },
		"--max-staleness":          func(c *Config) { c.MaxStaleness = -1 },
		"--kubeconfig":             func(c *Config) { c.Kubernetes = nil },
	} {
		c := validConfig()
		spoil(&c)
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: the error is %v", want, err)
		}
	}
	if _, err := New(validConfig()); err != nil {
		t.Errorf("a valid configuration: %v", err)
	}
}

func TestSoLongAStalenessThatJWTsOutliveTheirKeyIsWarnedOf(t *testing.T) {
	for staleness, warned := range map[time.Duration]bool{0: false, 30 * time.Minute: false, 31 * time.Minute: true} {
		var log strings.Builder
		c := validConfig()
		c.MaxStaleness, c.Log = staleness, slog.New(slog.NewTextHandler(&log, nil))
		if _, err := New(c); err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(log.String(), "--max-staleness") && strings.Contains(log.String(), "at_most=30m0s"); got != warned {
			t.Errorf("%s: warned of: %v\n%s", staleness, got, &log)
		}
	}
}

func TestAPortInUseIsNamed(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	c := validConfig()
	c.InternalBindAddress = taken.Addr().String()
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	err = s.Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "--internal-bind-address "+taken.Addr().String()) || !strings.Contains(err.Error(), "another process") {
		t.Errorf("the error is %v", err)
	}
}
