package server

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/authz"
	"github.com/mintmark-dev/mintmark/internal/federation"
	"github.com/mintmark-dev/mintmark/internal/oauth"
)

// foreign lets in whom no record here tells of: the holders of tokens of the
// TrustedIssuers, and of those that such tokens were exchanged for. A nil foreign lets
// nobody in. It is safe for concurrent use.
type foreign struct {
	federation *federation.Federation
	index      *authn.Index
	own        string // our iss
	tokens     *prometheus.CounterVec
	lines      *lineLimit
	log        *slog.Logger
}

// foreignConfig is what foreign is made of.
type foreignConfig struct {
	federation federation.Config
	index      *authn.Index
	registry   prometheus.Registerer
	log        *slog.Logger
}

func newForeign(c foreignConfig) *foreign {
	c.federation.Log = c.log
	f := &foreign{
		federation: federation.New(c.federation), index: c.index, own: c.federation.OwnIssuer, lines: newLineLimit(), log: c.log,
		tokens: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mintmark_issuer_tokens_total",
			Help: "Tokens of other issuers that were presented, by what for and whether they were accepted, or else why not.",
		}, []string{"use", "result"}),
	}
	c.registry.MustRegister(f.tokens, &issuerStates{federation: f.federation, now: time.Now})
	return f
}

// Run keeps the issuers' keys fresh until the context ends.
func (f *foreign) Run(ctx context.Context) { f.federation.Run(ctx) }

const resultAccepted = "Accepted"

var useNames = [...]string{federation.ForExchange: "exchange", federation.ForAccess: "access"}

// verify tells whose token this is. Where its signature holds and it is refused all the
// same, an operator has something to mend, and is told in the log.
func (f *foreign) verify(token string, use federation.Use, now time.Time) (*federation.Holder, error) {
	// A caller who goes away leaves little behind: the wait for keys is bounded.
	holder, err := f.federation.Verify(context.Background(), token, use, now)
	f.tokens.WithLabelValues(useNames[use], codeOf(err)).Inc()
	if (errors.Is(err, federation.ErrValidation) || errors.Is(err, federation.ErrMapping)) && f.lines.allow() {
		f.log.Info("a token of a trusted issuer was refused", "use", useNames[use], "cause", err.Error())
	}
	return holder, err
}

func codeOf(err error) string {
	var refused *federation.RefusedError
	if errors.As(err, &refused) {
		return refused.Code
	}
	return resultAccepted
}

// principal is the holder, with what the roles hold now.
func (f *foreign) principal(h *federation.Holder) *authn.Principal {
	return f.make(h.Trust, h.Subject, h.Roles, h.Permissions, h.Attributes, h.Expires)
}

func (f *foreign) make(t federation.Trust, subject string, roles, permissions []string, attributes map[string]string, expires time.Time) *authn.Principal {
	return f.index.Foreign(authn.Foreign{
		Name: t.Name, UID: t.UID, Version: t.Version, Subject: subject, Expires: expires, Permissions: permissions, Roles: roles,
		Ceiling: t.Ceiling(), Attributes: attributes, JWT: authn.JWT{TTL: t.MaxTTL, Audiences: t.Audiences},
	})
}

// claim is what a token of ours says of the holder.
func claimOf(h *federation.Holder) *oauth.Foreign {
	return &oauth.Foreign{
		TrustedIssuer: h.Trust.Name, Permissions: h.Permissions, Roles: h.Roles, Attributes: h.Attributes, Email: h.Email,
	}
}

// admit lets in who presents another issuer's token as it is. It is asked about what is
// no token of ours, for the reason given, and answers false where it has nothing to say:
// what looked like one of ours until its signature was checked, and everything where no
// issuer's tokens are accepted so.
func (f *foreign) admit(e *evaluation, token string, notOurs error) bool {
	if !f.direct() || !neverSigned(notOurs) {
		return false
	}
	holder, err := f.verify(token, federation.ForAccess, e.now)
	if err != nil {
		e.verdict, e.note, e.blameless = authn.Verdict{Reason: authn.ReasonMalformed}, err.Error(), errors.Is(err, federation.ErrNoKeys)
		return true
	}
	who := f.principal(holder)
	audiences := who.JWT.Audiences
	if len(audiences) == 0 {
		audiences = []string{f.own}
	}
	// As if it had been exchanged just now.
	e.claims = oauth.Claims{
		Issuer: holder.Trust.Issuer, Subject: who.Subject, ClientID: who.Subject, Audience: audiences, IssuedAt: e.now, NotBefore: e.now,
		Expires: holder.Expires, AuthTime: e.now,
		Permissions: who.Permissions, Roles: who.Roles, CredentialUID: who.UID, Version: who.Version, Foreign: claimOf(holder),
	}
	e.scope = authz.NewSet(who.Permissions)
	e.verdict = authn.Verdict{OK: true, Reason: authn.ReasonAccepted, Principal: who}
	return true
}

// neverSigned tells whether a token was found not to be ours before any signature was
// checked, so that a token costs one check at most.
func neverSigned(err error) bool {
	return errors.Is(err, oauth.ErrMalformed) || errors.Is(err, oauth.ErrUnknownKey) || errors.Is(err, oauth.ErrAlgorithm) || errors.Is(err, oauth.ErrType)
}

// use tells whether a token of ours that another issuer's was exchanged for is still
// good: its TrustedIssuer is there, judges as it did, and allows what its ceiling does
// now.
func (f *foreign) use(claims oauth.Claims) (verdict authn.Verdict, note string) {
	if f == nil || claims.Foreign == nil {
		return authn.Verdict{Reason: authn.ReasonUnknown}, "issued for another issuer's token, and none is trusted here"
	}
	trust, ok := f.federation.Standing(claims.Foreign.TrustedIssuer, claims.CredentialUID, claims.Version)
	if !ok {
		return authn.Verdict{Reason: authn.ReasonRevoked}, "the TrustedIssuer it was issued under is gone, or judges otherwise now"
	}
	roles, permissions := trust.Limit(claims.Foreign.Roles, claims.Foreign.Permissions)
	who := f.make(trust, claims.Subject, roles, permissions, claims.Foreign.Attributes, claims.Expires)
	return authn.Verdict{OK: true, Reason: authn.ReasonAccepted, Principal: who}, ""
}

// email of the caller, where something tells it.
func (e *evaluation) email() string {
	if e.claims.Foreign == nil {
		return ""
	}
	return e.claims.Foreign.Email
}

// issuerSink applies TrustedIssuers.
type issuerSink struct {
	foreign *foreign
	listed  roster
	broken  map[string]string // by name: the error that was logged
}

func (s *issuerSink) BeginList() { s.listed.begin() }

func (s *issuerSink) EndList() { s.listed.end(s.remove) }

func (s *issuerSink) Put(object runtime.Object) {
	t, ok := object.(*v1alpha1.TrustedIssuer)
	if !ok {
		return
	}
	s.listed.put(t.Name)
	if t.DeletionTimestamp != nil {
		s.remove(t.Name)
		return
	}
	if s.broken == nil {
		s.broken = map[string]string{}
	}
	err := s.foreign.federation.Set(t.Name, string(t.UID), &t.Spec)
	if err == nil {
		delete(s.broken, t.Name)
		return
	}
	if s.broken[t.Name] != err.Error() {
		s.broken[t.Name] = err.Error()
		s.foreign.log.Error("TrustedIssuer cannot be applied and is not trusted until it is mended",
			"audit", true, "trustedIssuer", t.Name, "error", err.Error(), "remedy", "kubectl edit trustedissuer "+t.Name)
	}
}

func (s *issuerSink) Delete(object runtime.Object) {
	if t, ok := object.(*v1alpha1.TrustedIssuer); ok {
		s.listed.drop(t.Name)
		s.remove(t.Name)
	}
}

func (s *issuerSink) remove(name string) {
	delete(s.broken, name)
	s.foreign.federation.Delete(name)
}

// issuerStates are the metrics of the issuers' keys, read when they are scraped.
type issuerStates struct {
	federation *federation.Federation
	now        func() time.Time
}

var (
	issuerKeysAge = prometheus.NewDesc("mintmark_issuer_keys_age_seconds",
		"How long ago the keys of a trusted issuer were fetched; NaN where they never were. Inline keys have no age.", []string{"issuer"}, nil)
	issuerKeys = prometheus.NewDesc("mintmark_issuer_keys", "Keys of a trusted issuer in use.", []string{"issuer"}, nil)
	// One series for each TrustedIssuer, by its name.
	issuerFailures = prometheus.NewDesc("mintmark_issuer_refresh_failures_total",
		"Fetches of a trusted issuer's keys that failed.", []string{"issuer"}, nil)
)

// Describe implements prometheus.Collector.
func (s *issuerStates) Describe(out chan<- *prometheus.Desc) {
	out <- issuerKeysAge
	out <- issuerKeys
	out <- issuerFailures
}

// Collect implements prometheus.Collector.
func (s *issuerStates) Collect(out chan<- prometheus.Metric) {
	for _, state := range s.federation.States() {
		out <- prometheus.MustNewConstMetric(issuerKeys, prometheus.GaugeValue, float64(state.Keys), state.Name)
		if state.Inline {
			continue
		}
		age := math.NaN()
		if !state.Fetched.IsZero() {
			age = s.now().Sub(state.Fetched).Seconds()
		}
		out <- prometheus.MustNewConstMetric(issuerKeysAge, prometheus.GaugeValue, age, state.Name)
		out <- prometheus.MustNewConstMetric(issuerFailures, prometheus.CounterValue, float64(state.Failures), state.Name)
	}
}

// shieldedHosts are those of the API server, which no TrustedIssuer has us fetch from.
func shieldedHosts(config *rest.Config) []string {
	host := config.Host
	if u, err := url.Parse(host); err == nil && u.Host != "" {
		return []string{u.Hostname()}
	}
	if at, err := netip.ParseAddrPort(host); err == nil {
		return []string{at.Addr().String()}
	}
	return []string{host}
}

// assertionHeader is where Cloudflare Access puts the JWT that says whom it let through.
// It counts from trusted proxies only, for everybody else proves who they are themselves,
// and where the request carries no credential of its own, whose holder may do other
// things than the person at the browser.
const (
	assertionHeader      = "Cf-Access-Jwt-Assertion"
	assertionHeaderLower = "cf-access-jwt-assertion"
)

// readAssertion takes the JWT of an identity-aware proxy. A comma is how a proxy joins
// two headers into one.
func readAssertion(lines []string) (presented, presentation) {
	switch {
	case len(lines) == 0:
		return presented{}, presentedNone
	case len(lines) > 1 || strings.Count(lines[0], ".") != 2 || strings.IndexByte(lines[0], ',') >= 0:
		return presented{}, presentedBad
	}
	return presented{jwt: lines[0]}, presentedJWT
}

// direct tells whether some issuer's tokens are accepted as they are.
func (f *foreign) direct() bool { return f != nil && f.federation.Direct() }
