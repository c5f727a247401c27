package server

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/credential"
	"github.com/mintmark-dev/mintmark/internal/oauth"
)

// The benchmarks of this file put a door of a server beside its floor: a bare handler that
// answers "hello" or, for gRPC, nothing, behind the same TLS on the same port of call.
//
// Each is in a process of its own, on one and the same processor, and the load in a third:
// so it is the server that is measured, and not who asks, and the floor does not collect
// the garbage of our index. They are asked in turns of a quarter of a second, over the same
// number of connections, for a machine's speed drifts within seconds. What is printed:
//
//	req/s, floor-req/s      requests answered in a second
//	p99-us, floor-p99-us    how long the slowest hundredth took, at that load
//	cpu-us, floor-cpu-us    processor time of the server for one request
//	of-floor                floor-cpu-us / cpu-us: the share of the floor's throughput that
//	                        a busy processor has left
//
// of-floor is what the targets are about. It does not depend on who else uses the machine,
// nor on whether the load is slower than the server, as the ratio of req/s does.

// benchConnections is how many there are to each door.
const benchConnections = 16

// benchSizes are numbers of credentials in the index.
var benchSizes = []int{10, 10_000, 100_000, 1_000_000}

// benchServer makes this program the server of a benchmark in place of running tests: with
// so many credentials or, where it says benchFloor, one of the floors.
const (
	benchServer = "MINTMARK_BENCH_SERVER"
	benchFloor  = "floor"
)

// benchProfile names a file for a CPU profile of the server, from when its index is full:
// MINTMARK_BENCH_PROFILE=/tmp/cpu make bench BENCH='Endpoints/token$'.
const benchProfile = "MINTMARK_BENCH_PROFILE"

// doors is what the server tells of itself.
type doors struct {
	HTTP, RPC            string // addresses
	Roots, RPCRoots      []byte // PEM
	Good, Rated, Service string // keys
	JWT                  string
	JWTs                 []string // many of the same key
}

// serveBenchmark is the other process. It tells its doors, and for each line it reads how
// much processor time it has taken so far, in nanoseconds.
func serveBenchmark(what string) int {
	flag.Parse() // testing.Benchmark looks at flags
	served := false
	testing.Benchmark(func(b *testing.B) {
		if served {
			return
		}
		served = true
		if err := json.NewEncoder(os.Stdout).Encode(openDoors(b, what)); err != nil {
			b.Error(err)
		}
		runtime.GC()
		if what != benchFloor {
			go KeepHeapRoom(b.Context()) // as it is run
		}
		if name := os.Getenv(benchProfile); name != "" && what != benchFloor {
			defer profile(b, name)()
		}
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			fmt.Println(processorTime())
		}
	})
	return 0
}

// profile begins a CPU profile, which ends with the function it gives.
func profile(b *testing.B, name string) func() {
	file, err := os.Create(name)
	if err != nil {
		b.Fatal(err)
	}
	if err := pprof.StartCPUProfile(file); err != nil {
		b.Fatal(err)
	}
	return func() {
		pprof.StopCPUProfile()
		if err := file.Close(); err != nil {
			b.Error(err)
		}
	}
}

func processorTime() int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// Whom the load says it asks for. The second network is not blocked for its bad keys.
const (
	benchClient  = "203.0.113.7"
	benchUnknown = "198.51.100.7"
)

// asInstalled is an edge whose requests are recorded, limited, counted and logged.
func asInstalled(b *testing.B) *edge {
	e := newEdge(b, setup{discard: true, proxies: localProxies, audit: runRecorder(b)})
	e.public.log = slog.New(slog.NewJSONHandler(io.Discard, nil))
	e.limit(1)
	e.guard(30, func(c *guardConfig) { c.allowed = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")} })
	e.operators()
	return e
}

// openDoors serves an edge with so many credentials, or the floors. All have the time limits
// of our listeners, which take a tenth of what a bare handler takes: nobody serves the
// internet without.
func openDoors(b *testing.B, what string) *doors {
	d := new(doors)
	cert, key, _ := certificate(b, "mintmark-server")
	serving := new(serving)
	if err := serving.set(cert, key); err != nil {
		b.Fatal(err)
	}
	handler, rpc := floors(b), floorRPC(serving.config())
	if what != benchFloor {
		n, err := strconv.Atoi(what)
		if err != nil {
			b.Fatal(err)
		}
		e := asInstalled(b)
		e.crowd(n)
		d.hold(b, e)
		handler, rpc = e.public, newRPC(e.public, serving.config(), nil)
	}
	s := httptest.NewUnstartedServer(handler)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Config.ReadHeaderTimeout, s.Config.ReadTimeout, s.Config.IdleTimeout = readHeaderTimeout, readTimeout, idleTimeout
	s.Config.WriteTimeout, s.Config.MaxHeaderBytes, s.Config.DisableGeneralOptionsHandler = writeTimeout, maxHeaderBytes, true
	s.StartTLS()
	b.Cleanup(s.Close)
	d.HTTP, d.Roots, d.RPCRoots = s.Listener.Addr().String(), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), cert
	socket, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	go func() { _ = rpc.Serve(socket) }()
	b.Cleanup(rpc.Stop)
	d.RPC = socket.Addr().String()
	return d
}

// hold makes the credentials that are presented.
func (d *doors) hold(b *testing.B, e *edge) {
	good := e.mint("ci", func(r *credential.Record) { r.JWT.TTLSeconds = 3600 })
	d.Good, d.Rated, d.JWT = good.value(), e.mint("rated", rated(1e9, time.Second, 1e9)).value(), e.jwtFor(good, "")
	d.Service = e.operator("gateway", "payments", PermissionIntrospect).value()
	who := e.index.Verify(good.token, authn.Request{}, e.now()).Principal
	for range 8192 { // twice as many as are remembered
		token, _, err := e.issuer.Issue(who, e.now(), oauth.Options{})
		if err != nil {
			b.Fatal(err)
		}
		d.JWTs = append(d.JWTs, token)
	}
}

// crowd fills the index with n good credentials that nobody here holds.
func (e *edge) crowd(n int) {
	pepper := e.peppers.Current()
	for i := range n {
		inner := sha256.Sum256([]byte(strconv.Itoa(i)))
		digest := pepper.Digest(inner)
		live := authn.Live{
			UID: fmt.Sprintf("0b1f2c3d-0000-4000-8000-%012d", i), Kind: "ServiceToken", Namespace: "payments", Name: fmt.Sprintf("service-%07d", i),
			Created: noon, ClassName: "default", Permissions: []string{"api:read", "deploy:*", fmt.Sprintf("team:%d", i%50)},
		}
		e.index.Apply(live, &credential.Record{
			UID: live.UID, Kind: live.Kind, Namespace: live.Namespace, Name: live.Name, Epoch: 1, Class: "default", Permissions: live.Permissions,
			Versions: []credential.SealedVersion{{Number: 1, Digest: digest[:], Pepper: pepper.ID(), Prefix: "sk_0000", State: "Active"}},
		})
	}
}

// floors are bare handlers: one that says hello, and two that sign or verify one ES256
// signature before.
func floors(b *testing.B) http.Handler {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	text := bytes.Repeat([]byte("x"), 500)
	sum := sha256.Sum256(text)
	signature, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	if err != nil {
		b.Fatal(err)
	}
	hello := func(w http.ResponseWriter) { _, _ = io.WriteString(w, "hello\n") }
	mux := http.NewServeMux()
	mux.HandleFunc("/hello", func(w http.ResponseWriter, _ *http.Request) { hello(w) })
	mux.HandleFunc("/sign", func(w http.ResponseWriter, _ *http.Request) {
		sum := sha256.Sum256(text)
		if _, err := ecdsa.SignASN1(rand.Reader, key, sum[:]); err == nil {
			hello(w)
		}
	})
	mux.HandleFunc("/verify", func(w http.ResponseWriter, _ *http.Request) {
		sum := sha256.Sum256(text)
		if ecdsa.VerifyASN1(&key.PublicKey, sum[:], signature) {
			hello(w)
		}
	})
	return mux
}

// floorRPC is a bare gRPC server with one call that does nothing.
func floorRPC(config *tls.Config) *grpc.Server {
	bare := grpc.NewServer(grpc.Creds(credentials.NewTLS(config)))
	bare.RegisterService(&grpc.ServiceDesc{ServiceName: "floor.Floor", HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{{
		MethodName: "Nothing", Handler: func(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			return new(emptypb.Empty), decode(new(emptypb.Empty))
		},
	}}}, nil)
	return bare
}

// benched is another process, seen from here.
type benched struct {
	doors

	in  io.Writer
	out *bufio.Reader
}

// startBenched starts a server with so many credentials, or the floors.
func startBenched(b *testing.B, what string) *benched {
	b.Helper()
	args := []string{os.Args[0], "-test.run=^$"}
	if taskset, err := exec.LookPath("taskset"); err == nil && runtime.NumCPU() > 1 {
		args = append([]string{taskset, "-c", "0"}, args...)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), benchServer+"="+what, "GOMAXPROCS=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	s := &benched{in: in, out: bufio.NewReader(out)}
	line, err := s.out.ReadBytes('\n')
	if err != nil {
		b.Fatal(err)
	}
	if err := json.Unmarshal(line, &s.doors); err != nil {
		b.Fatalf("%v\n%s", err, line)
	}
	return s
}

// took is the processor time of the server so far.
func (s *benched) took(b *testing.B) time.Duration {
	b.Helper()
	if _, err := io.WriteString(s.in, "\n"); err != nil {
		b.Fatal(err)
	}
	line, err := s.out.ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return time.Duration(n)
}

// ask sends one request and reads the answer.
type ask func() error

// door opens a connection and gives what to ask over it, forever.
type door func() (ask, func(), error)

// turns that floor and subject are asked by, and their length.
const (
	benchTurns = 8
	benchTurn  = 250 * time.Millisecond
)

// run is what came of asking at one door.
type run struct {
	of             *benched
	asks           []ask
	answered       int
	elapsed, spent time.Duration
	latencies      []time.Duration
}

func open(b *testing.B, s *benched, d door) *run {
	b.Helper()
	r := &run{of: s}
	for range benchConnections {
		a, end, err := d()
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(end)
		r.asks = append(r.asks, a)
	}
	return r
}

// turn asks over all connections for a while.
func (r *run) turn(b *testing.B) {
	b.Helper()
	latencies := make([][]time.Duration, len(r.asks))
	var asking sync.WaitGroup
	before, began := r.of.took(b), time.Now()
	for i, ask := range r.asks {
		asking.Go(func() {
			taken := make([]time.Duration, 0, 1<<14)
			for last := time.Now(); last.Sub(began) < benchTurn; {
				if err := ask(); err != nil {
					b.Error(err)
					return
				}
				now := time.Now()
				taken, last = append(taken, now.Sub(last)), now
			}
			latencies[i] = taken
		})
	}
	asking.Wait()
	r.elapsed += time.Since(began)
	r.spent += r.of.took(b) - before
	for _, taken := range latencies {
		r.answered += len(taken)
		r.latencies = append(r.latencies, taken...)
	}
}

func (r *run) perSecond() float64 { return float64(r.answered) / r.elapsed.Seconds() }

// cpu is in microseconds.
func (r *run) cpu() float64 { return float64(r.spent.Microseconds()) / float64(max(r.answered, 1)) }

// p99 is in microseconds.
func (r *run) p99() float64 {
	if len(r.latencies) == 0 {
		return 0
	}
	slices.Sort(r.latencies)
	return float64(r.latencies[len(r.latencies)*99/100].Microseconds())
}

// beside asks both by turns, and prints how they stand to one another. It takes as long
// whatever b.N is.
func beside(b *testing.B, f, r *run) {
	b.Helper()
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(max(1, runtime.NumCPU()-1)))
	f.turn(b)
	r.turn(b)
	*f, *r = run{of: f.of, asks: f.asks}, run{of: r.of, asks: r.asks}
	for range benchTurns {
		f.turn(b)
		r.turn(b)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(r.perSecond(), "req/s")
	b.ReportMetric(f.perSecond(), "floor-req/s")
	b.ReportMetric(r.p99(), "p99-us")
	b.ReportMetric(f.p99(), "floor-p99-us")
	b.ReportMetric(r.cpu(), "cpu-us")
	b.ReportMetric(f.cpu(), "floor-cpu-us")
	b.ReportMetric(f.cpu()/r.cpu(), "of-floor")
}

// over is a door of HTTP/1.1, as gateways ask. The load does next to nothing: it sends the
// same bytes, those of each request in turn, and looks at the status and for the end.
func (s *benched) over(status int, requests ...string) door {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.Roots)
	var next atomic.Uint64
	texts := make([][]byte, len(requests))
	for i := range requests {
		texts[i] = []byte(requests[i])
	}
	return func() (ask, func(), error) {
		conn, err := tls.Dial("tcp", s.HTTP, &tls.Config{RootCAs: roots, ServerName: "example.com"})
		if err != nil {
			return nil, nil, err
		}
		answers, want := bufio.NewReader(conn), []byte("HTTP/1.1 "+strconv.Itoa(status))
		return func() error {
			if _, err := conn.Write(texts[next.Add(1)%uint64(len(texts))]); err != nil {
				return err
			}
			if got, err := answers.Peek(len(want)); err != nil || !bytes.Equal(got, want) {
				return fmt.Errorf("the answer is %q, %v; want %s", got, err, want)
			}
			return skipAnswer(answers)
		}, func() { _ = conn.Close() }, nil
	}
}

// overRPC is a call over one connection, as a worker of Envoy has it; every one of those
// who ask shares it.
func (s *benched) overRPC(b *testing.B, method string, message proto.Message) door {
	b.Helper()
	sent, err := proto.Marshal(message)
	if err != nil {
		b.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.RPCRoots)
	conn := dialRPC(b, s.RPC, roots)
	return func() (ask, func(), error) {
		return func() error {
			var answer []byte
			return conn.Invoke(context.Background(), method, &sent, &answer, grpc.ForceCodec(encoded{}))
		}, func() {}, nil
	}
}

// forwarded is what a gateway asks for a client, with the headers that it adds.
func forwarded(path, client, value string) string {
	return "GET " + path + " HTTP/1.1\r\nHost: mintmark-server\r\nUser-Agent: curl/8.14.1\r\nAccept: */*\r\n" +
		"X-Forwarded-For: " + client + "\r\nX-Forwarded-Host: reports.example.com\r\nX-Forwarded-Method: GET\r\nX-Forwarded-Proto: https\r\n" +
		"X-Forwarded-Uri: /reports/today?x=1\r\nAuthorization: Bearer " + value + "\r\n\r\n"
}

// posted sends a form.
func posted(path, value, body string) string {
	text := "POST " + path + " HTTP/1.1\r\nHost: mintmark-server\r\nUser-Agent: curl/8.14.1\r\nAccept: */*\r\nX-Forwarded-For: " + benchClient +
		"\r\nAuthorization: Bearer " + value + "\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\n"
	if body != "" {
		text += "Content-Type: application/x-www-form-urlencoded\r\n"
	}
	return text + "\r\n" + body
}

// BenchmarkEdge is forward-auth beside a bare handler, and ext_authz beside an empty unary
// call, with few credentials and with many.
func BenchmarkEdge(b *testing.B) {
	f := startBenched(b, benchFloor)
	for _, n := range benchSizes {
		b.Run(fmt.Sprintf("%d credentials", n), func(b *testing.B) {
			s := startBenched(b, strconv.Itoa(n))
			const path = "/forward-auth?permission=deploy:write"
			unknown := newValue(b, nil)
			for _, c := range []struct {
				name, client, value string
				status              int
			}{{"good", benchClient, s.Good, 200}, {"unknown", benchUnknown, unknown, 401}} {
				b.Run("forward-auth/"+c.name, func(b *testing.B) {
					beside(b, open(b, f, f.over(200, forwarded("/hello", c.client, c.value))), open(b, s, s.over(c.status, forwarded(path, c.client, c.value))))
				})
			}
			for _, c := range []struct{ name, client, value string }{{"good", benchClient, s.Good}, {"unknown", benchUnknown, unknown}} {
				q := envoy{
					headers: map[string]string{"authorization": "Bearer " + c.value}, extensions: map[string]string{"mintmark.permissions": "deploy:write"},
					source: c.client,
				}
				b.Run("ext_authz/"+c.name, func(b *testing.B) {
					beside(b, open(b, f, f.overRPC(b, "/floor.Floor/Nothing", new(emptypb.Empty))),
						open(b, s, s.overRPC(b, authv3.Authorization_Check_FullMethodName, q.request())))
				})
			}
		})
	}
}

// BenchmarkEndpoints puts the endpoints that sign, verify and tell beside floors of the same
// work: a handler that makes one ES256 signature, that checks one, and that does nothing.
func BenchmarkEndpoints(b *testing.B) {
	f, s := startBenched(b, benchFloor), startBenched(b, "10")
	const path = "/forward-auth?permission=deploy:write"
	var introspections, forwards []string
	for _, token := range s.JWTs {
		introspections = append(introspections, posted(introspectionPath, s.Service, "token="+token))
		forwards = append(forwards, forwarded(path, benchClient, token))
	}
	introspection := func(floor, token string) string { return posted(floor, s.Service, "token="+token) }
	for _, c := range []struct {
		name, floor string
		requests    []string
	}{
		{"forward-auth of a key", forwarded("/hello", benchClient, s.Good), []string{forwarded(path, benchClient, s.Good)}},
		{"forward-auth of a key with a rate", forwarded("/hello", benchClient, s.Rated), []string{forwarded(path, benchClient, s.Rated)}},
		{"forward-auth of a JWT seen before", forwarded("/hello", benchClient, s.JWT), []string{forwarded(path, benchClient, s.JWT)}},
		{"forward-auth of a JWT", forwarded("/verify", benchClient, s.JWT), forwards},
		{"token", posted("/sign", s.Good, ""), []string{posted("/api/auth/token", s.Good, "")}},
		{"renewal", posted("/sign", s.JWT, ""), []string{posted("/api/auth/renew", s.JWT, "")}},
		{"introspection of a key", introspection("/hello", s.Good), []string{introspection(introspectionPath, s.Good)}},
		{"introspection of a JWT seen before", introspection("/hello", s.JWT), []string{introspection(introspectionPath, s.JWT)}},
		{"introspection of a JWT", introspection("/verify", s.JWT), introspections},
	} {
		b.Run(c.name, func(b *testing.B) {
			beside(b, open(b, f, f.over(200, c.floor)), open(b, s, s.over(200, c.requests...)))
		})
	}
}
