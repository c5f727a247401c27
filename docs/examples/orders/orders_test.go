package main

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/mintmark-dev/mintmark/api/middleware"
	"github.com/mintmark-dev/mintmark/api/middleware/grpcmw"
	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/server"
	"github.com/mintmark-dev/mintmark/test/authority"
)

// call makes a request of the service.
func call(t *testing.T, base, method, path, body, credential string) (status int, text string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, base+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if credential != "" {
		req.Header.Set("Authorization", "Bearer "+credential)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var b strings.Builder
	_ = resp.Write(&b)
	return resp.StatusCode, b.String()
}

func serviceToken(name string) *v1alpha1.ServiceToken {
	return &v1alpha1.ServiceToken{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

// The service as main runs it, beside a real server: with keys and JWTs, with and without a
// credential of its own.
func TestTheServiceIsProtected(t *testing.T) {
	a := authority.Start(t)
	text, err := os.ReadFile("policy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	policy := new(v1alpha1.AccessPolicy)
	if err := yaml.UnmarshalStrict(text, policy); err != nil {
		t.Fatal(err)
	}
	a.Create(t, policy)
	clerk := a.Mint(t, serviceToken("clerk"), "orders:*")
	other := a.Mint(t, serviceToken("other"), "orders:*")
	reader := a.Mint(t, serviceToken("reader"), "orders:read")
	checker := &v1alpha1.ServiceToken{ObjectMeta: metav1.ObjectMeta{Name: "orders"}, Spec: v1alpha1.CredentialSpec{CredentialClassName: "checkers"}}
	own := a.Mint(t, checker, server.PermissionCheck)
	ownFile := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(ownFile, []byte(own+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	jwt := a.Exchange(t, clerk)

	for name, change := range map[string]func(*middleware.Config){
		"as its callers":               func(*middleware.Config) {},
		"with a credential of its own": func(c *middleware.Config) { c.Token = tokenFile(ownFile) },
		"asking about JWTs too":        func(c *middleware.Config) { c.CheckJWTs = true },
		"without a cache":              func(c *middleware.Config) { c.CacheTTL = -1 },
	} {
		t.Run(name, func(t *testing.T) {
			config := middleware.Config{ServerURL: "https://" + a.Address, Issuer: authority.Issuer, RootCAs: a.Roots}
			change(&config)
			guard, err := middleware.New(config)
			if err != nil {
				t.Fatal(err)
			}
			service := httptest.NewServer(newOrders(guard))
			defer service.Close()
			for _, credential := range []string{clerk, jwt} {
				if got, text := call(t, service.URL, "POST", "/orders", `{"item":"a book"}`, credential); got != 201 || !strings.Contains(text, "servicetoken:payments:clerk") {
					t.Fatalf("placing an order: %d %s", got, text)
				}
			}
			for what, c := range map[string]struct {
				method, path, credential string
				status                   int
			}{
				"reading with a key":               {"GET", "/orders/1", reader, 200},
				"reading with a JWT":               {"GET", "/orders/1", jwt, 200},
				"reading what is not there":        {"GET", "/orders/9", reader, 404},
				"reading as nobody":                {"GET", "/orders/1", "", 401},
				"reading with what is no key":      {"GET", "/orders/1", "sk_" + strings.Repeat("0", 64), 401},
				"reading with a JWT that is none":  {"GET", "/orders/1", jwt[:len(jwt)-4] + "AAAA", 401},
				"cancelling without permission":    {"DELETE", "/orders/1", reader, 403},
				"cancelling the order of somebody": {"DELETE", "/orders/1", other, 403},
			} {
				if got, text := call(t, service.URL, c.method, c.path, "", c.credential); got != c.status {
					t.Errorf("%s: %d, want %d: %s", what, got, c.status, text)
				}
			}
			for path, credential := range map[string]string{"/orders/1": clerk, "/orders/2": jwt} {
				if got, text := call(t, service.URL, "DELETE", path, "", credential); got != 204 {
					t.Errorf("cancelling one's own order: %d, want 204: %s", got, text)
				}
			}
		})
	}
	t.Run("a revoked key is refused within the time the cache keeps an answer", func(t *testing.T) {
		guard, err := middleware.New(middleware.Config{ServerURL: "https://" + a.Address, Issuer: authority.Issuer, RootCAs: a.Roots, CacheTTL: 200 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		service := httptest.NewServer(newOrders(guard))
		defer service.Close()
		lost := serviceToken("lost")
		key := a.Mint(t, lost, "orders:read")
		if got, _ := call(t, service.URL, "GET", "/orders/9", "", key); got != 404 {
			t.Fatalf("%d, want 404", got)
		}
		if err := a.Kube.Delete(t.Context(), lost); err != nil {
			t.Fatal(err)
		}
		deadline := time.Now().Add(10 * time.Second)
		for {
			if got, _ := call(t, service.URL, "GET", "/orders/9", "", key); got == 401 {
				return
			}
			if time.Now().After(deadline) {
				t.Fatal("it is still let in")
			}
		}
	})
	t.Run("over gRPC", func(t *testing.T) { overGRPC(t, a, clerk, reader, jwt) })
}

// overGRPC protects gRPC's health service, a method and a stream as good as any.
func overGRPC(t *testing.T, a *authority.Authority, clerk, reader, jwt string) {
	guard, err := middleware.New(middleware.Config{ServerURL: "https://" + a.Address, Issuer: authority.Issuer, RootCAs: a.Roots})
	if err != nil {
		t.Fatal(err)
	}
	dial := func(rules grpcmw.Rules) healthv1.HealthClient {
		s := grpc.NewServer(grpc.UnaryInterceptor(grpcmw.Unary(guard, rules)), grpc.StreamInterceptor(grpcmw.Stream(guard, rules)))
		healthv1.RegisterHealthServer(s, health.NewServer())
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() { _ = s.Serve(l) }()
		t.Cleanup(s.Stop)
		conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return healthv1.NewHealthClient(conn)
	}
	protected := dial(grpcmw.Rules{Methods: map[string][]string{healthv1.Health_Check_FullMethodName: {"orders:write"}, healthv1.Health_Watch_FullMethodName: {"orders:write"}}})
	unlisted := dial(grpcmw.Rules{})
	public := dial(grpcmw.Rules{Public: []string{healthv1.Health_Check_FullMethodName}})
	unary := func(c healthv1.HealthClient) func(context.Context) error {
		return func(ctx context.Context) error { _, err := c.Check(ctx, &healthv1.HealthCheckRequest{}); return err }
	}
	stream := func(c healthv1.HealthClient) func(context.Context) error {
		return func(ctx context.Context) error {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			s, err := c.Watch(ctx, &healthv1.HealthCheckRequest{})
			if err != nil {
				return err
			}
			_, err = s.Recv()
			return err
		}
	}
	for name, c := range map[string]struct {
		call     func(context.Context) error
		metadata []string
		want     codes.Code
	}{
		"a key":                             {unary(protected), []string{"x-api-key", clerk}, codes.OK},
		"a JWT":                             {unary(protected), []string{"authorization", "Bearer " + jwt}, codes.OK},
		"a stream":                          {stream(protected), []string{"authorization", "Bearer " + jwt}, codes.OK},
		"nothing":                           {unary(protected), nil, codes.Unauthenticated},
		"a stream of nobody":                {stream(protected), nil, codes.Unauthenticated},
		"two credentials":                   {unary(protected), []string{"x-api-key", clerk, "x-api-key", clerk}, codes.Unauthenticated},
		"without the permission":            {unary(protected), []string{"x-api-key", reader}, codes.PermissionDenied},
		"a stream without the permission":   {stream(protected), []string{"x-api-key", reader}, codes.PermissionDenied},
		"a method that no rule names":       {unary(unlisted), []string{"x-api-key", clerk}, codes.PermissionDenied},
		"the same of nobody":                {unary(unlisted), nil, codes.Unauthenticated},
		"a public method":                   {unary(public), nil, codes.OK},
		"another method of the same server": {stream(public), []string{"x-api-key", clerk}, codes.PermissionDenied},
	} {
		ctx := metadata.AppendToOutgoingContext(t.Context(), c.metadata...)
		if got := status.Code(c.call(ctx)); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}
