// Package database opens the store that a URL names and looks after it: it goes on trying
// while it is down, brings the schema up to date, and clears out what has been kept long
// enough. Whoever uses it never waits for that.
package database

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/mintmark-dev/mintmark/internal/audit"
	"github.com/mintmark-dev/mintmark/internal/store"
	"github.com/mintmark-dev/mintmark/internal/store/postgres"
	"github.com/mintmark-dev/mintmark/internal/store/sqlite"
)

// Engine is a store that is open.
type Engine interface {
	audit.Store
	Migrate(ctx context.Context) error
	CheckSchema(ctx context.Context) error
	Health(ctx context.Context) (store.Health, error)
	AppendOnce(ctx context.Context, b *audit.Batch) error
	Missing(ctx context.Context, events []audit.Event) ([]audit.ID, error)
	Events(ctx context.Context, t store.Tenant, f store.EventFilter, p store.Page) (store.Events, error)
	Chains(ctx context.Context, after string, limit int) ([]store.Chain, error)
	Batches(ctx context.Context, chain string, after uint64, limit int) ([]*audit.Batch, error)
	Usage(ctx context.Context, t store.Tenant, uid string) ([]store.VersionUsage, error)
	Analytics(ctx context.Context, t store.Tenant, f store.AnalyticsFilter) (store.Analytics, error)
	PutCredentials(ctx context.Context, all []store.Credential) error
	NewestCredential(ctx context.Context) (int64, error)
	RewindCredentials(ctx context.Context, after int64) error
	Credentials(ctx context.Context, t store.Tenant, f store.CredentialFilter, p store.Page) (store.Credentials, error)
	PutTombstones(ctx context.Context, all []store.Tombstone) error
	Tombstones(ctx context.Context, after int64, limit int) ([]store.Tombstone, error)
	DenyTokens(ctx context.Context, all []store.DeniedToken) error
	DeniedTokens(ctx context.Context, after int64, now time.Time, limit int) ([]store.DeniedToken, error)
	AwaitDenied(ctx context.Context) error
	Retain(ctx context.Context, before, now time.Time) (months int, err error)
	Close()
}

// Config of a Database.
type Config struct {
	// URL is postgres://... or sqlite:///path/of/a/file. It is asked for each time the
	// database is opened, for a password in a file may have changed.
	URL func() (string, error)
	// MaxConnections to PostgreSQL; default 30.
	MaxConnections int32
	// AutoMigrate brings the schema up to date at the start, where the account may.
	AutoMigrate bool
	// RetainMonths is for how many months events are kept; 0 keeps them.
	RetainMonths int
	// Log; default none. Now; default time.Now.
	Log *slog.Logger
	Now func() time.Time
}

// Times of a Database.
const (
	firstRetry, lastRetry = 500 * time.Millisecond, 30 * time.Second
	checkEvery            = 10 * time.Second
	checkTimeout          = 5 * time.Second
	retainEvery           = 24 * time.Hour
	retainRetry           = 10 * time.Minute
)

// Database is the store, open or not. It is safe for concurrent use.
type Database struct {
	cfg     Config
	current atomic.Pointer[opened]
	state   atomic.Pointer[store.State]
}

type opened struct{ Engine }

// ErrNotOpen is the error of methods while the database is not open, or its schema does not fit.
var ErrNotOpen = errors.New("the database is not open")

// New makes a Database; Run opens it. It does no I/O.
func New(c Config) *Database {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	d := &Database{cfg: c}
	d.state.Store(&store.State{Configured: true, Since: c.Now(), Trouble: "not opened yet"})
	return d
}

// CheckURL is nil for a URL that can be opened as far as its form goes. Its error does
// not repeat the URL, which may hold a password.
func CheckURL(text string) error {
	scheme, _, _ := strings.Cut(text, "://")
	if scheme == "postgres" || scheme == "postgresql" {
		return postgres.CheckURL(text)
	}
	u, err := url.Parse(text)
	if err != nil {
		return errURL
	}
	if u.Scheme == "sqlite" {
		if u.Host != "" || len(u.Path) < 2 || u.RawQuery != "" {
			return errors.New("write the path of the file whole: sqlite:///var/lib/mintmark/mintmark.db")
		}
		return nil
	}
	return errURL
}

var errURL = errors.New("write it like postgres://user:password@host:5432/database?sslmode=verify-full or sqlite:///path/of/the/file")

// IsSQLite tells whether a URL names a file.
func IsSQLite(text string) bool {
	u, err := url.Parse(text)
	return err == nil && u.Scheme == "sqlite"
}

// Open opens the engine a URL names. PostgreSQL is not waited for.
func Open(ctx context.Context, text string, maxConnections int32, log *slog.Logger) (Engine, error) {
	if err := CheckURL(text); err != nil {
		return nil, err
	}
	if IsSQLite(text) {
		u, err := url.Parse(text)
		if err != nil {
			return nil, errURL
		}
		return typed(sqlite.Open(ctx, sqlite.Config{Path: u.Path, Log: log}))
	}
	return typed(postgres.Open(ctx, postgres.Config{URL: text, MaxConnections: maxConnections, Log: log}))
}

// typed keeps a nil of a type from becoming an Engine that is not nil.
func typed[E Engine](e E, err error) (Engine, error) {
	if err != nil {
		return nil, err
	}
	return e, nil
}

// State implements what servers ask: how the database was when it was last looked at.
func (d *Database) State() store.State { return *d.state.Load() }

// Engine is the open store. Its error is ErrNotOpen, with the cause.
func (d *Database) Engine() (Engine, error) {
	if o := d.current.Load(); o != nil {
		return o.Engine, nil
	}
	return nil, fmt.Errorf("%w: %s", ErrNotOpen, d.state.Load().Trouble)
}

// Run opens the database and looks after it until the context ends, and closes it then.
func (d *Database) Run(ctx context.Context) {
	engine := d.open(ctx)
	if engine == nil {
		return
	}
	defer engine.Close()
	d.current.Store(&opened{engine})
	d.look(ctx, engine)
	check, retain := time.NewTicker(checkEvery), time.NewTimer(0)
	defer check.Stop()
	defer retain.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-check.C:
			d.look(ctx, engine)
		case <-retain.C:
			retain.Reset(d.retain(ctx, engine))
		}
	}
}

// open tries until it succeeds; nil once the context has ended.
func (d *Database) open(ctx context.Context) Engine {
	for wait := firstRetry; ctx.Err() == nil; wait = min(2*wait, lastRetry) {
		engine, err := d.attempt(ctx)
		if err == nil {
			d.note(nil)
			return engine
		}
		d.note(err)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
	return nil
}

func (d *Database) attempt(ctx context.Context) (Engine, error) {
	text, err := d.cfg.URL()
	if err != nil {
		return nil, err
	}
	engine, err := Open(ctx, text, d.cfg.MaxConnections, d.cfg.Log)
	if err != nil {
		return nil, err
	}
	if err := d.prepare(ctx, engine); err != nil {
		engine.Close()
		return nil, err
	}
	return engine, nil
}

// prepare brings the schema up to date where it is not, and checks it. An account that
// may not migrate is fine with a schema that fits.
func (d *Database) prepare(ctx context.Context, engine Engine) error {
	checking, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	err := engine.CheckSchema(checking)
	if err == nil || !d.cfg.AutoMigrate || !errors.Is(err, store.ErrSchema) {
		return err
	}
	if migration := engine.Migrate(ctx); migration != nil {
		return errors.Join(err, migration)
	}
	return engine.CheckSchema(ctx)
}

// look asks the database how it is.
func (d *Database) look(ctx context.Context, engine Engine) {
	asking, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	health, err := engine.Health(asking)
	if ctx.Err() != nil {
		return
	}
	d.note(err)
	if err == nil {
		next := *d.state.Load()
		next.Health = health
		d.state.Store(&next)
	}
}

// note keeps how the database is, and logs where that changes.
func (d *Database) note(err error) {
	before, now := d.state.Load(), d.cfg.Now()
	next := store.State{Configured: true, Up: err == nil, Since: before.Since, Checked: now, Health: before.Health}
	if err != nil {
		next.Trouble = err.Error()
	}
	if before.Up != next.Up {
		next.Since = now
	}
	d.state.Store(&next)
	switch {
	case err != nil && (before.Up || before.Checked.IsZero()):
		d.cfg.Log.Error("the database cannot be used; requests are answered without it, and it is tried again", "error", next.Trouble)
	case err == nil && !before.Up:
		d.cfg.Log.Info("the database is there")
	}
}

// retain clears out, and gives when to do so again. Several servers may: what is gone is
// gone.
func (d *Database) retain(ctx context.Context, engine Engine) time.Duration {
	now := d.cfg.Now().UTC()
	var before time.Time
	if d.cfg.RetainMonths > 0 {
		before = time.Date(now.Year(), now.Month()-time.Month(d.cfg.RetainMonths), 1, 0, 0, 0, 0, time.UTC)
	}
	months, err := engine.Retain(ctx, before, now)
	if err != nil {
		if ctx.Err() == nil {
			d.cfg.Log.Warn("what has been kept long enough could not be cleared out of the database; it is tried again", "error", err.Error())
		}
		return retainRetry
	}
	if months > 0 {
		d.cfg.Log.Info("cleared old events out of the database", "months", months, "before", before.Format(time.DateOnly))
	}
	return retainEvery
}

// Append implements audit.Store.
func (d *Database) Append(ctx context.Context, b *audit.Batch) error {
	e, err := d.Engine()
	if err != nil {
		return err
	}
	return e.Append(ctx, b)
}

// AppendOnce is that of the engine.
func (d *Database) AppendOnce(ctx context.Context, b *audit.Batch) error {
	e, err := d.Engine()
	if err != nil {
		return err
	}
	return e.AppendOnce(ctx, b)
}

// Missing is that of the engine.
func (d *Database) Missing(ctx context.Context, events []audit.Event) ([]audit.ID, error) {
	e, err := d.Engine()
	if err != nil {
		return nil, err
	}
	return e.Missing(ctx, events)
}

// PutCredentials is that of the engine.
func (d *Database) PutCredentials(ctx context.Context, all []store.Credential) error {
	e, err := d.Engine()
	if err != nil {
		return err
	}
	return e.PutCredentials(ctx, all)
}

// NewestCredential is that of the engine.
func (d *Database) NewestCredential(ctx context.Context) (int64, error) {
	e, err := d.Engine()
	if err != nil {
		return 0, err
	}
	return e.NewestCredential(ctx)
}

// RewindCredentials is that of the engine.
func (d *Database) RewindCredentials(ctx context.Context, after int64) error {
	e, err := d.Engine()
	if err != nil {
		return err
	}
	return e.RewindCredentials(ctx, after)
}

// Credentials is that of the engine.
func (d *Database) Credentials(ctx context.Context, t store.Tenant, f store.CredentialFilter, p store.Page) (store.Credentials, error) {
	e, err := d.Engine()
	if err != nil {
		return store.Credentials{}, err
	}
	return e.Credentials(ctx, t, f, p)
}

// PutTombstones is that of the engine.
func (d *Database) PutTombstones(ctx context.Context, all []store.Tombstone) error {
	e, err := d.Engine()
	if err != nil {
		return err
	}
	return e.PutTombstones(ctx, all)
}

// Tombstones is that of the engine.
func (d *Database) Tombstones(ctx context.Context, after int64, limit int) ([]store.Tombstone, error) {
	e, err := d.Engine()
	if err != nil {
		return nil, err
	}
	return e.Tombstones(ctx, after, limit)
}

// AwaitDenied is that of the engine.
func (d *Database) AwaitDenied(ctx context.Context) error {
	e, err := d.Engine()
	if err != nil {
		return err
	}
	return e.AwaitDenied(ctx)
}
