package cli

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/pflag"
)

// Environment variables.
const (
	envURL    = "MINTMARK_URL"
	envCACert = "MINTMARK_CACERT"
	envKey    = "MINTMARK_KEY"
)

// maxAnswer is the longest answer of a server that is read.
const maxAnswer = 1 << 20

// serverFlags say where Mintmark's server is. kubectl's --server is the API
// server, so that ours is --url.
type serverFlags struct {
	url        string
	caCert     string
	serverName string
	timeout    time.Duration
}

func (f *serverFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.url, "url", "", "URL of Mintmark's server. Default: $"+envURL+".")
	flags.StringVar(&f.caCert, "cacert", "", "File with the CA certificates to trust it by. Default: $"+envCACert+", else the system's.")
	flags.StringVar(&f.serverName, "url-server-name", "", "Name its certificate is checked for, where that is not the URL's host (as behind a port-forward).")
	flags.DurationVar(&f.timeout, "url-timeout", 10*time.Second, "How long to wait for its answer.")
}

// server is a connection to the public port of Mintmark's server.
type server struct {
	base  *url.URL
	http  *http.Client
	clock *serverClock
	// limit is the longest answer that is read; 0: maxAnswer.
	limit int64
}

var errNoURL = errors.New("where is Mintmark's server? Give --url or set " + envURL + ", and --cacert or " + envCACert + " for its CA." +
	"\nFrom outside the cluster, for example:\n" +
	"  kubectl port-forward -n " + DefaultNamespace + " service/mintmark-server 8443:443 &\n" +
	"  kubectl get secret mintmark-server-tls -n " + DefaultNamespace + " -o go-template='{{index .data \"ca.crt\" | base64decode}}' > ca.crt\n" +
	"  mintmark token --url https://localhost:8443 --url-server-name mintmark-server." + DefaultNamespace + ".svc --cacert ca.crt ...")

// connect makes the connection the flags describe. It sends nothing yet.
func (a *app) connect(f *serverFlags) (*server, error) {
	address := f.url
	if address == "" {
		address = a.getenv(envURL)
	}
	if address == "" {
		return nil, &exitError{code: exitUsage, err: errNoURL}
	}
	base, err := url.Parse(address)
	if err != nil || base.Host == "" || base.Scheme != "https" && base.Scheme != "http" || base.RawQuery != "" || base.Fragment != "" {
		return nil, usageError("--url %q: write it like https://mintmark.example.com", address)
	}
	if base.User != nil {
		return nil, usageError("--url: leave the user and password out; the key goes into --key-file, $%s or standard input", envKey)
	}
	if base.Scheme == "http" && !isLoopback(base.Hostname()) {
		return nil, usageError("--url %q: a credential is sent over https only (http is for this machine itself)", address)
	}
	transport := a.transport
	if transport == nil {
		if transport, err = a.newTransport(f); err != nil {
			return nil, err
		}
	}
	clock := newServerClock()
	return &server{base: base, clock: clock, http: &http.Client{
		Transport: clock.wrap(transport), Timeout: f.timeout,
		// A redirect would carry the key to wherever it points.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (a *app) newTransport(f *serverFlags) (http.RoundTripper, error) {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: f.serverName}
	file := f.caCert
	if file == "" {
		file = a.getenv(envCACert)
	}
	if file == "" {
		return t, nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the CA certificates: %w", err)
	}
	t.TLSClientConfig.RootCAs = x509.NewCertPool()
	if !t.TLSClientConfig.RootCAs.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("%s holds no certificate in PEM form", file)
	}
	return t, nil
}

// answer is what the server said.
type answer struct {
	status     int
	requestID  string
	retryAfter time.Duration
	body       []byte
}

// problem is an RFC 9457 problem document.
type problem struct {
	Title  string `json:"title"`
	Detail string `json:"detail"`
}

// reason gives a refusal in words.
func (r answer) reason() string {
	var p problem
	text := http.StatusText(r.status)
	if json.Unmarshal(r.body, &p) == nil && p.Detail != "" {
		text = p.Detail
	}
	if r.requestID != "" {
		text += fmt.Sprintf(" (HTTP %d, request %s)", r.status, r.requestID)
	} else {
		text += fmt.Sprintf(" (HTTP %d)", r.status)
	}
	return text
}

// call sends one request, with the key if there is one.
func (s *server) call(ctx context.Context, method, path string, query url.Values, key string, body any) (answer, error) {
	target := s.base.JoinPath(path)
	target.RawQuery = query.Encode()
	var reader io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return answer{}, err
		}
		reader = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, target.String(), reader)
	if err != nil {
		return answer{}, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "mintmark-cli")
	resp, err := s.http.Do(req)
	if err != nil {
		return answer{}, s.unreachable(ctx, err)
	}
	defer resp.Body.Close()
	data, err := readAllLimited(resp.Body, cmp.Or(s.limit, maxAnswer))
	if err != nil {
		if ctx.Err() != nil {
			return answer{}, ctx.Err()
		}
		return answer{}, unanswered("reading the answer of %s: %w", s.base, err)
	}
	seconds, _ := strconv.ParseUint(resp.Header.Get("Retry-After"), 10, 16)
	return answer{
		status: resp.StatusCode, requestID: printable(resp.Header.Get("X-Request-Id")), retryAfter: time.Duration(seconds) * time.Second, body: data,
	}, nil
}

// printable keeps what a server sent from writing to the terminal what it likes.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s)
}

func (s *server) unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var unknown x509.UnknownAuthorityError
	var hostname x509.HostnameError
	hint := "is the URL right, and the server up? See 'mintmark doctor'"
	switch {
	case errors.As(err, &unknown):
		hint = "give the CA its certificate was made by with --cacert or " + envCACert
	case errors.As(err, &hostname):
		hint = "behind a port-forward or an address, say the name in its certificate with --url-server-name"
	}
	var inner *url.Error
	if errors.As(err, &inner) {
		err = inner.Err
	}
	return unanswered("%s cannot be reached: %w: %s", s.base, err, hint)
}

// exitUnanswered is the exit code where the server gave no answer to go by: not a yes,
// but no "no" either.
const exitUnanswered = 3

func unanswered(format string, args ...any) error {
	return &exitError{code: exitUnanswered, err: fmt.Errorf(format, args...)}
}

// keySource says where a key to be presented comes from. It never is an
// argument: those are in the process list and the shell's history.
type keySource struct {
	file string
	from string
}

func (k *keySource) add(flags *pflag.FlagSet, what string) {
	flags.StringVar(&k.file, "key-file", "", "File with the "+what+"; - is standard input. Default: $"+envKey+", else standard input.")
	flags.StringVar(&k.from, "from", "", "Take the value from the Secret of this credential, KIND/NAME (of the current namespace).")
}

// maxKey bounds what is read as a key: a JWT may be longer than any of ours.
const maxKey = 16 << 10

// read gives the key, without the line end that files and pipes put behind it.
func (k *keySource) read(ctx context.Context, a *app) (string, error) {
	var data []byte
	var err error
	switch {
	case k.from != "" && k.file != "":
		return "", usageError("--from and --key-file both name a key: one is enough")
	case k.from != "":
		return a.keyFrom(ctx, k.from)
	case k.file != "" && k.file != "-":
		if data, err = readFile(k.file, maxKey); err != nil {
			return "", fmt.Errorf("reading --key-file: %w", err)
		}
	case k.file == "" && a.getenv(envKey) != "":
		data = []byte(a.getenv(envKey))
	default:
		if data, err = a.readKey(ctx); err != nil {
			return "", fmt.Errorf("reading the key from standard input: %w", err)
		}
	}
	key := strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r")
	if key == "" {
		return "", usageError("no key given: put it into --key-file FILE, $%s or standard input, or take it --from KIND/NAME", envKey)
	}
	if strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", usageError("what was given is no key: it holds spaces, line ends or characters that no key has")
	}
	return key, nil
}

func (a *app) keyFrom(ctx context.Context, from string) (string, error) {
	c, err := a.cluster()
	if err != nil {
		return "", err
	}
	refs, err := parseRefs([]string{from}, c.namespace)
	if err != nil || len(refs) != 1 {
		return "", usageError("--from %s: write KIND/NAME, such as servicetoken/ci-deploy", publicPart(from))
	}
	credential, err := c.get(ctx, refs[0])
	if err != nil {
		return "", err
	}
	return c.value(ctx, credential)
}
