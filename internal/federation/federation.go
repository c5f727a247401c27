package federation

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authz"
)

// Config of a Federation.
type Config struct {
	// OwnIssuer is the iss of our own tokens, of which no TrustedIssuer is believed.
	OwnIssuer string
	// Networks are where issuers may be although that is not the public internet.
	// Default: nowhere.
	Networks []netip.Prefix
	// Shielded are hosts that no issuer may be at, though they be public: the API
	// server's.
	Shielded []string
	// Log gets what changes about issuers. Default: nowhere.
	Log *slog.Logger
	// Now is the clock that the age of keys is taken by. Default: time.Now.
	Now func() time.Time
	// Resolve looks up a host. Default: the system's resolver.
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)
}

// Federation is the issuers that are trusted now. It is safe for concurrent use.
type Federation struct {
	own    string
	dialer *dialer
	log    *slog.Logger
	now    func() time.Time
	pace   pace

	table atomic.Pointer[table]

	mu      sync.Mutex
	ctx     context.Context // of Run; nil before it
	workers sync.WaitGroup
}

// table is what readers see. It does not change.
type table struct {
	byName   map[string]*trusted
	byIssuer map[string][]*trusted // sorted by name
	direct   bool                  // some of them says directUse
}

// trusted is one TrustedIssuer in force.
type trusted struct {
	*Compiled
	uid  string
	keys *source
	stop context.CancelFunc // nil while the source does not run
}

// New makes a Federation that trusts nobody yet. It does no I/O.
func New(c Config) *Federation {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Resolve == nil {
		c.Resolve = lookup
	}
	f := &Federation{
		own: c.OwnIssuer, dialer: &dialer{networks: c.Networks, shielded: c.Shielded, resolve: c.Resolve}, log: c.Log, now: c.Now, pace: defaultPace,
	}
	f.table.Store(&table{})
	return f
}

// Run fetches keys until the context ends. Before it nothing is fetched.
func (f *Federation) Run(ctx context.Context) {
	f.mu.Lock()
	f.ctx = ctx
	for _, t := range f.table.Load().byName {
		f.start(t)
	}
	f.mu.Unlock()
	<-ctx.Done()
	f.workers.Wait()
}

// start has the source run, if Run does. The caller holds mu.
func (f *Federation) start(t *trusted) {
	if f.ctx == nil || f.ctx.Err() != nil || t.stop != nil {
		return
	}
	ctx, stop := context.WithCancel(f.ctx)
	t.stop = stop
	f.workers.Go(func() { t.keys.run(ctx) })
}

// errOwnIssuer: whoever holds our tokens is known already, by what they were issued for.
var errOwnIssuer = errors.New("spec.issuer is this server's own: its tokens are accepted anyway")

// Set takes in a TrustedIssuer, new or changed. What cannot be compiled is not trusted
// any more, and the error says why.
func (f *Federation) Set(name, uid string, spec *v1alpha1.TrustedIssuerSpec) error {
	compiled, err := Compile(name, spec)
	if err == nil && compiled.issuer == f.own {
		err = errOwnIssuer
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil {
		f.replace(name, nil)
		return err
	}
	next := &trusted{Compiled: compiled, uid: strings.Clone(uid)}
	if have := f.table.Load().byName[name]; have != nil && have.uid == uid && have.keys.serves(compiled) {
		next.keys, next.stop = have.keys, have.stop
	} else {
		next.keys = newSource(compiled, f.dialer, f.pace, f.now, f.log)
	}
	f.replace(name, next)
	f.start(next)
	f.warn(next)
	return nil
}

// warn tells of TrustedIssuers that a token can fall under both of: the first by name has
// it then, whatever its validations say.
func (f *Federation) warn(t *trusted) {
	for _, other := range f.table.Load().byIssuer[t.issuer] {
		if other.name != t.name && t.overlaps(other.Compiled) {
			f.log.Warn("two TrustedIssuers have the issuer and an audience in common: tokens for it are judged by the first of them by name alone",
				"trustedIssuer", t.name, "other", other.name, "first", min(t.name, other.name), "remedy", "give each an audience of its own")
		}
	}
}

// Delete takes a TrustedIssuer out of force.
func (f *Federation) Delete(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.replace(name, nil)
}

// replace publishes the table with another TrustedIssuer of that name, or none. The caller
// holds mu.
func (f *Federation) replace(name string, next *trusted) {
	before := f.table.Load()
	after := &table{byName: maps.Clone(before.byName), byIssuer: map[string][]*trusted{}}
	if after.byName == nil {
		after.byName = map[string]*trusted{}
	}
	if have := before.byName[name]; have != nil {
		delete(after.byName, name)
		if have.stop != nil && (next == nil || next.keys != have.keys) {
			have.stop()
		}
	}
	if next != nil {
		after.byName[next.name] = next
	}
	for _, n := range slices.Sorted(maps.Keys(after.byName)) {
		t := after.byName[n]
		after.byIssuer[t.issuer] = append(after.byIssuer[t.issuer], t)
		after.direct = after.direct || t.direct
	}
	f.table.Store(after)
}

// Use says what a token is presented for.
type Use uint8

const (
	// ForExchange is to have one of ours for it.
	ForExchange Use = iota
	// ForAccess is to be let in with it as it is.
	ForAccess
)

// Holder is whose token it is, and what that is worth here.
type Holder struct {
	// Trust is what the TrustedIssuer allows its holders.
	Trust Trust
	// Subject is "issuer:<TrustedIssuer>:<subject>".
	Subject string
	// Email, empty where the mapping gives none.
	Email string
	// Roles and Permissions under the ceiling, sorted. What the roles hold is not among
	// the permissions.
	Roles, Permissions []string
	Attributes         map[string]string
	// Expires is the token's end.
	Expires time.Time
}

// Trust is what a TrustedIssuer allows now.
type Trust struct {
	// Name and UID of the TrustedIssuer, and the iss of its tokens.
	Name, UID, Issuer string
	// Version is another one whenever what decides who gets in as whom has changed. It
	// is positive, and the same on every server.
	Version int64
	// MaxTTL is the longest life of a token of ours, and Audiences what it may be for;
	// none: this server's issuer.
	MaxTTL    time.Duration
	Audiences []string

	compiled *Compiled
}

// Ceiling is what holders may do at most, by whatever roles.
func (t Trust) Ceiling() authz.Set {
	if t.compiled == nil {
		return authz.Set{}
	}
	return t.compiled.permissions
}

// Limit keeps of roles and permissions what the ceiling allows.
func (t Trust) Limit(roles, permissions []string) (allowedRoles, allowedPermissions []string) {
	if t.compiled == nil {
		return nil, nil
	}
	return t.compiled.limitRoles(roles), t.compiled.limitPermissions(permissions)
}

func (t *trusted) trust() Trust {
	return Trust{Name: t.name, UID: t.uid, Issuer: t.issuer, Version: t.version, MaxTTL: t.maxTTL, Audiences: t.issued, compiled: t.Compiled}
}

// Standing tells what the TrustedIssuer allows now under which a token of ours was issued.
// ok is false where it is gone, has been made anew, or would judge otherwise now.
func (f *Federation) Standing(name, uid string, version int64) (trust Trust, ok bool) {
	t := f.table.Load().byName[name]
	if t == nil || t.uid != uid || t.version != version {
		return Trust{}, false
	}
	return t.trust(), true
}

// Direct tells whether some issuer's tokens are accepted as they are.
func (f *Federation) Direct() bool { return f.table.Load().direct }

// Verify tells whose token this is. Every error is a [RefusedError]. It may wait for the
// keys of the issuer, at most MaxWait.
//
// What costs nothing is looked at first, so that a token which is no good in any case
// makes nobody fetch anything: form, issuer, audience, algorithm, times; then the
// signature; and last, what the issuer has vouched for.
func (f *Federation) Verify(ctx context.Context, text string, use Use, now time.Time) (*Holder, error) {
	t, err := parse(text)
	if err != nil {
		return nil, err
	}
	by, err := f.trusted(t)
	if err != nil {
		return nil, err
	}
	h, err := by.verify(ctx, t, use, now)
	var refused *RefusedError
	if errors.As(err, &refused) && refused.cause == nil {
		return nil, refused.because(errors.New("TrustedIssuer " + by.name))
	}
	return h, err
}

// trusted finds the TrustedIssuer that a token falls under, by its iss and aud; of
// several the first by name. Our own issuer is none of them: see Set.
func (f *Federation) trusted(t *token) (*trusted, error) {
	candidates := f.table.Load().byIssuer[t.issuer]
	for _, c := range candidates {
		if t.isFor(c.audiences) {
			return c, nil
		}
	}
	if len(candidates) > 0 {
		return nil, ErrAudience
	}
	return nil, ErrUnknownIssuer
}

func (t *trusted) verify(ctx context.Context, tok *token, use Use, now time.Time) (*Holder, error) {
	if use == ForAccess && !t.direct {
		return nil, ErrNotDirect
	}
	if !slices.Contains(t.algorithms, tok.alg) {
		return nil, ErrAlgorithm
	}
	expires, err := tok.checkTimes(now, t.maxTokenAge)
	if err != nil {
		return nil, err
	}
	keys, err := t.keys.find(ctx, tok.kid, tok.alg)
	if err != nil {
		return nil, err
	}
	if !tok.signedBy(keys) {
		return nil, ErrSignature
	}
	if err := t.validate(tok.claims); err != nil {
		return nil, ErrValidation.because(t.about(err))
	}
	h, err := t.apply(tok.claims)
	if err != nil {
		return nil, ErrMapping.because(t.about(err))
	}
	h.Trust, h.Expires = t.trust(), expires
	return h, nil
}

func (t *trusted) about(err error) error {
	return errors.New("TrustedIssuer " + t.name + ": " + err.Error())
}

// State of an issuer's keys, for metrics.
type State struct {
	// Name of the TrustedIssuer.
	Name string
	// Inline: the keys are in the TrustedIssuer itself and do not age.
	Inline bool
	// Keys is their number.
	Keys int
	// Fetched is when the keys were fetched; zero where they never were.
	Fetched time.Time
	// Failures is how many fetches failed.
	Failures uint64
}

// States lists the state of every TrustedIssuer's keys, by name.
func (f *Federation) States() []State {
	known := f.table.Load().byName
	states := make([]State, 0, len(known))
	for _, name := range slices.Sorted(maps.Keys(known)) {
		states = append(states, known[name].keys.state())
	}
	return states
}
