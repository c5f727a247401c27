package controllers

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/internalapi"
)

const (
	// callTimeout bounds one call of one server; a server holds a question back
	// for internalapi.MaxWait at most.
	callTimeout = internalapi.MaxWait + 3*time.Second
	// leaseGrace is added to a Lease's duration before its holder counts as gone.
	leaseGrace = 2 * time.Second
	// maxAnswer is the longest answer read, in bytes.
	maxAnswer = 16 << 20
	// leasePrefix begins the names of the servers' Leases; the id follows.
	leasePrefix = "mintmark-server-"
)

// FleetConfig is what a Fleet needs.
type FleetConfig struct {
	// Reader reads Leases and the servers' authorities from the API server
	// itself: what counts is the Leases that live after a commit.
	Reader client.Reader
	// Namespace of the installation.
	Namespace string
	// TokenFile holds the token for the servers' internal listeners. It is read
	// anew for each session, for it is replaced under our feet.
	TokenFile string
	// AuthoritySecret is the Secret with the servers' ca.crt.
	AuthoritySecret string
	// ServerName the servers' certificates are for.
	ServerName string
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Fleet is the servers as the controller sees them: those that hold a Lease,
// and how to talk to them. It is safe for concurrent use.
type Fleet struct {
	cfg FleetConfig

	mu     sync.Mutex
	seen   map[string]leaseSeen
	client *http.Client
	roots  []byte
}

// leaseSeen is when a Lease was seen to move, on our own clock: as in leader
// election, the clocks of other nodes do not count.
type leaseSeen struct {
	uid     types.UID
	renewed metav1.MicroTime
	at      time.Time
}

// server is one that holds a live Lease.
type server struct {
	name, url string
	// process tells one process from the next under the same name.
	process string
}

// NewFleet makes a Fleet. It does nothing until it is asked.
func NewFleet(cfg FleetConfig) *Fleet {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Fleet{cfg: cfg, seen: map[string]leaseSeen{}}
}

// session is the servers that hold a Lease now, with what it takes to call them.
type session struct {
	servers []server
	client  *http.Client
	token   string
}

// session lists the servers. Where there are none, nothing more is needed.
func (f *Fleet) session(ctx context.Context) (*session, error) {
	var leases coordinationv1.LeaseList
	if err := f.cfg.Reader.List(ctx, &leases, client.InNamespace(f.cfg.Namespace), client.MatchingLabels{v1alpha1.LabelServer: "true"}); err != nil {
		return nil, fmt.Errorf("listing the servers' Leases in %s: %w", f.cfg.Namespace, err)
	}
	s := &session{servers: f.live(leases.Items)}
	if len(s.servers) == 0 {
		return s, nil
	}
	token, err := os.ReadFile(f.cfg.TokenFile)
	if err != nil {
		return nil, fmt.Errorf("reading the token for the servers: %w", err)
	}
	s.token = strings.TrimSpace(string(token))
	s.client, err = f.httpClient(ctx)
	return s, err
}

// live picks the Leases that have moved lately. One not seen before lives for
// its whole duration from now: to wait for it is safe, to pass it over is not.
func (f *Fleet) live(leases []coordinationv1.Lease) []server {
	f.mu.Lock()
	defer f.mu.Unlock()
	now, seen := f.cfg.Now(), make(map[string]leaseSeen, len(leases))
	var live []server
	for i := range leases {
		l := &leases[i]
		var renewed metav1.MicroTime
		if l.Spec.RenewTime != nil {
			renewed = *l.Spec.RenewTime
		}
		s, known := f.seen[l.Name]
		if !known || s.uid != l.UID || !s.renewed.Equal(&renewed) {
			s = leaseSeen{uid: l.UID, renewed: renewed, at: now}
		}
		seen[l.Name] = s
		duration := 15 * time.Second
		if d := l.Spec.LeaseDurationSeconds; d != nil {
			duration = time.Duration(*d) * time.Second
		}
		if now.Sub(s.at) > duration+leaseGrace {
			continue
		}
		process := string(l.UID)
		if l.Spec.HolderIdentity != nil {
			process += "/" + *l.Spec.HolderIdentity
		}
		live = append(live, server{
			name: strings.TrimPrefix(l.Name, leasePrefix), url: l.Annotations[v1alpha1.AnnotationInternalURL], process: process,
		})
	}
	f.seen = seen
	return live
}

// httpClient gives a client that trusts the servers' authorities and no others.
func (f *Fleet) httpClient(ctx context.Context) (*http.Client, error) {
	var secret corev1.Secret
	if err := f.cfg.Reader.Get(ctx, types.NamespacedName{Namespace: f.cfg.Namespace, Name: f.cfg.AuthoritySecret}, &secret); err != nil {
		return nil, fmt.Errorf("reading the servers' authorities: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	roots := secret.Data["ca.crt"]
	if f.client != nil && bytes.Equal(roots, f.roots) {
		return f.client, nil
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(roots) {
		return nil, fmt.Errorf("the ca.crt of Secret %s/%s holds no certificate", f.cfg.Namespace, f.cfg.AuthoritySecret)
	}
	if f.client != nil {
		f.client.CloseIdleConnections()
	}
	f.roots = bytes.Clone(roots)
	f.client = &http.Client{
		Transport: &http.Transport{
			TLSClientConfig:   &tls.Config{RootCAs: pool, ServerName: f.cfg.ServerName, MinVersion: tls.VersionTLS12},
			ForceAttemptHTTP2: true, IdleConnTimeout: time.Minute, MaxIdleConnsPerHost: batches,
		},
		// A server has no business to send the token elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return f.client, nil
}

// call calls one server's internal listener. A nil question sends no body.
func (s *session) call(ctx context.Context, to server, method, path string, question, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	base, err := url.Parse(to.url)
	if err != nil || base.Scheme != "https" || base.Host == "" {
		return fmt.Errorf("server %s: the address in its Lease, %q, is not an https URL", to.name, to.url)
	}
	target, err := base.Parse(path)
	if err != nil {
		return err
	}
	var body io.Reader
	if question != nil {
		text, err := json.Marshal(question)
		if err != nil {
			return err
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, target.String(), body)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+s.token)
	req.Header.Set("Content-Type", "application/json")
	res, err := s.client.Do(req)
	if err != nil {
		return fmt.Errorf("server %s: %w", to.name, err)
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(res.Body, 512))
		return fmt.Errorf("server %s answered %s: %s", to.name, res.Status, bytes.TrimSpace(text))
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, maxAnswer)).Decode(answer); err != nil {
		return fmt.Errorf("server %s: reading its answer: %w", to.name, err)
	}
	return nil
}
