// Command orders is a small service whose routes Mintmark protects: reading orders needs
// orders:read, placing them orders:write, and cancelling one has to be allowed by the
// AccessPolicies, which are told whose order it is.
//
//	go run ./docs/examples/orders -mintmark https://mintmark-server.mintmark-system.svc -ca ca.crt
package main

import (
	"context"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/mintmark-dev/mintmark/api/middleware"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "orders:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	var config middleware.Config
	flags := flag.NewFlagSet("orders", flag.ContinueOnError)
	listen := flags.String("listen", "127.0.0.1:8090", "address to listen at")
	ca := flags.String("ca", "", "file with the authority of Mintmark's certificate (default: the system's)")
	token := flags.String("token-file", "", "file with a credential of this service's own, which holds mintmark:check")
	flags.StringVar(&config.ServerURL, "mintmark", "", "URL of Mintmark")
	flags.StringVar(&config.Issuer, "issuer", "", "iss of its JWTs (default: its URL)")
	if err := flags.Parse(args); err != nil {
		return err
	}
	var err error
	if config.RootCAs, err = authorities(*ca); err != nil {
		return err
	}
	if *token != "" {
		config.Token = tokenFile(*token)
	}
	config.Log = slog.New(slog.NewJSONHandler(os.Stderr, nil))
	guard, err := middleware.New(config)
	if err != nil {
		return err
	}
	server := &http.Server{Addr: *listen, Handler: newOrders(guard), ReadHeaderTimeout: 5 * time.Second}
	context.AfterFunc(ctx, func() { _ = server.Shutdown(context.WithoutCancel(ctx)) })
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func authorities(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil // the system's
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s: there is no certificate in it", file)
	}
	return pool, nil
}

// tokenFile reads the file for each question, so that a rotated credential is taken up
// as soon as its Secret is.
func tokenFile(file string) func(context.Context) (string, error) {
	return func(context.Context) (string, error) {
		text, err := os.ReadFile(file)
		return strings.TrimSpace(string(text)), err
	}
}
