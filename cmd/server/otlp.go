package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"time"

	"github.com/spf13/pflag"

	"github.com/mintmark-dev/mintmark/internal/audit"
)

// otlpOptions are the flags about who gets events by OTLP.
type otlpOptions struct {
	endpoint, headersFile, caFile string
}

func (o *otlpOptions) addTo(flags *pflag.FlagSet) {
	flags.StringVar(&o.endpoint, "audit-otlp-endpoint", "",
		"URL of an OTLP/HTTP receiver that gets events as OpenTelemetry log records, such as https://collector.example.com:4318 (default: none)")
	flags.StringVar(&o.headersFile, "audit-otlp-headers-file", "", "file with headers for it, one on each line, such as Authorization: Bearer TOKEN; read anew for each request")
	flags.StringVar(&o.caFile, "audit-otlp-ca-file", "", "certificates of the authorities that its certificate is checked against (default: the system's)")
}

func (o *otlpOptions) check() error {
	if o.endpoint == "" {
		if o.headersFile != "" || o.caFile != "" {
			return errors.New("--audit-otlp-headers-file and --audit-otlp-ca-file are for --audit-otlp-endpoint: give it too")
		}
		return nil
	}
	if _, err := audit.NewOTLP(audit.OTLPConfig{Endpoint: o.endpoint}); err != nil {
		return fmt.Errorf("--audit-otlp-endpoint: %w", err)
	}
	return nil
}

const otlpTimeout = 10 * time.Second

// open makes the exporter; nil where nobody gets events.
func (o *otlpOptions) open(id string, log *slog.Logger) (*audit.OTLP, error) {
	if o.endpoint == "" {
		return nil, nil
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	if o.caFile != "" {
		text, err := os.ReadFile(o.caFile)
		if err != nil {
			return nil, fmt.Errorf("--audit-otlp-ca-file: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("--audit-otlp-ca-file: %s holds no certificate in PEM", o.caFile)
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	client := &http.Client{
		Transport: transport, Timeout: otlpTimeout,
		// Headers that authenticate go to nobody else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return audit.NewOTLP(audit.OTLPConfig{
		Endpoint: o.endpoint, Headers: o.headers, Client: client, Instance: id, Version: buildVersion(), Log: log,
	})
}

func (o *otlpOptions) headers() (http.Header, error) {
	if o.headersFile == "" {
		return nil, nil
	}
	text, err := os.ReadFile(o.headersFile)
	if err != nil {
		return nil, fmt.Errorf("--audit-otlp-headers-file: %w", err)
	}
	headers, err := audit.ParseHeaders(string(text))
	if err != nil {
		return nil, fmt.Errorf("--audit-otlp-headers-file: %w", err)
	}
	return headers, nil
}

// exporters are several in one.
type exporters []audit.Exporter

// Export implements audit.Exporter.
func (all exporters) Export(ctx context.Context, events []audit.Event) error {
	var errs []error
	for _, e := range all {
		errs = append(errs, e.Export(ctx, events))
	}
	return errors.Join(errs...)
}
