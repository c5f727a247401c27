// Package postgres keeps what a server keeps in PostgreSQL, from version 13 on.
//
// Several servers may use one database. Row-level security holds tenants apart below
// every query, see migrations/00002_tenants.sql.
package postgres

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"github.com/mintmark-dev/mintmark/internal/store"
)

// Config of a Store.
type Config struct {
	// URL such as postgres://user:password@host:5432/database?sslmode=verify-full, or
	// pgx's keyword form. The usual PG* environment variables fill in what it leaves out.
	URL string
	// Schema the tables are in; default "mintmark".
	Schema string
	// MaxConnections; default 30. MinConnections are kept open; default 2.
	MaxConnections, MinConnections int32
	Log                            *slog.Logger
}

const (
	defaultSchema         = "mintmark"
	defaultMaxConnections = 30
	defaultMinConnections = 2
	connectTimeout        = 5 * time.Second
)

// Store is a database. It is safe for concurrent use.
type Store struct {
	pool   *pgxpool.Pool
	schema string
	log    *slog.Logger

	mu         sync.Mutex
	partitions map[string]string // by month, those known to be there
}

// Open makes a Store. It does not wait for the database, which may be down.
func Open(ctx context.Context, c Config) (*Store, error) {
	if c.Schema == "" {
		c.Schema = defaultSchema
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	pc, err := pgxpool.ParseConfig(c.URL)
	if err != nil {
		return nil, redacted(err)
	}
	pc.MaxConns, pc.MinConns = c.MaxConnections, c.MinConnections
	if pc.MaxConns <= 0 {
		pc.MaxConns = defaultMaxConnections
	}
	if pc.MinConns <= 0 {
		pc.MinConns = min(defaultMinConnections, pc.MaxConns)
	}
	pc.ConnConfig.RuntimeParams["search_path"] = pgx.Identifier{c.Schema}.Sanitize()
	pc.ConnConfig.RuntimeParams["timezone"] = "UTC"
	if pc.ConnConfig.RuntimeParams["application_name"] == "" {
		pc.ConnConfig.RuntimeParams["application_name"] = "mintmark-server"
	}
	if pc.ConnConfig.ConnectTimeout == 0 {
		pc.ConnConfig.ConnectTimeout = connectTimeout
	}
	pool, err := pgxpool.NewWithConfig(ctx, pc)
	if err != nil {
		return nil, redacted(err)
	}
	return &Store{pool: pool, schema: c.Schema, log: c.Log, partitions: map[string]string{}}, nil
}

// CheckURL is nil for a URL that can be read. Its error does not repeat it.
func CheckURL(text string) error {
	if _, err := pgxpool.ParseConfig(text); err != nil {
		return redacted(err)
	}
	return nil
}

// redacted leaves out of an error of parsing what was parsed: it holds a password.
func redacted(err error) error {
	var parse *pgconn.ParseConfigError
	if errors.As(err, &parse) {
		return fmt.Errorf("the URL of the database cannot be read: %w", errURL)
	}
	return fmt.Errorf("opening the database: %w", err)
}

var errURL = errors.New("write it like postgres://user:password@host:5432/database?sslmode=verify-full")

// Close ends every connection.
func (s *Store) Close() { s.pool.Close() }

//go:embed migrations/*.sql
var migrations embed.FS

// Migrate brings the schema up to date. One of several servers does it, the others wait;
// what a migration adds leaves the version before able to go on. It needs an account that
// may create in the database.
func (s *Store) Migrate(ctx context.Context) error {
	if _, err := s.pool.Exec(ctx, "CREATE SCHEMA IF NOT EXISTS "+pgx.Identifier{s.schema}.Sanitize()); err != nil && !alreadyThere(err) {
		return fmt.Errorf("creating schema %s: %w", s.schema, err)
	}
	provider, done, err := s.provider(true)
	if err != nil {
		return err
	}
	defer done()
	applied, err := provider.Up(ctx)
	for _, m := range applied {
		s.log.Info("migrated the database", "to", m.Source.Version, "took", m.Duration.Round(time.Millisecond).String())
	}
	if err != nil {
		return fmt.Errorf("migrating the database: %w", err)
	}
	return nil
}

// alreadyThere: two that create a schema at once can collide in the catalog.
func alreadyThere(err error) bool {
	return hasCode(err, "23505") || hasCode(err, "42P06")
}

func hasCode(err error, code string) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == code
}

func (s *Store) provider(locked bool) (provider *goose.Provider, done func(), err error) {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, nil, err
	}
	db := stdlib.OpenDBFromPool(s.pool)
	options := []goose.ProviderOption{goose.WithDisableGlobalRegistry(true)}
	if locked {
		locker, err := lock.NewPostgresSessionLocker()
		if err != nil {
			return nil, nil, err
		}
		options = append(options, goose.WithSessionLocker(locker))
	}
	provider, err = goose.NewProvider(goose.DialectPostgres, db, files, options...)
	if err != nil {
		_ = db.Close()
		return nil, nil, fmt.Errorf("reading the migrations: %w", err)
	}
	return provider, func() { _ = db.Close() }, nil
}

// CheckSchema is nil where the schema is the one this program works with, or a later one
// that an update under way has made. Its error is store.ErrSchema where it is older.
func (s *Store) CheckSchema(ctx context.Context) error {
	have, need, err := s.versions(ctx)
	if err != nil {
		return err
	}
	if have < need {
		return store.SchemaError(have, need)
	}
	return nil
}

func (s *Store) versions(ctx context.Context) (have, need int64, err error) {
	names, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil {
		return 0, 0, err
	}
	for _, name := range names {
		v, err := goose.NumericComponent(name)
		if err != nil {
			return 0, 0, err
		}
		need = max(need, v)
	}
	err = s.pool.QueryRow(ctx, "SELECT coalesce(max(version_id), 0) FROM goose_db_version WHERE is_applied").Scan(&have)
	if hasCode(err, "42P01") {
		return 0, need, nil
	}
	if err != nil {
		return 0, need, fmt.Errorf("reading the version of the schema: %w", err)
	}
	return have, need, nil
}

// Health asks the database how it is.
func (s *Store) Health(ctx context.Context) (store.Health, error) {
	began := time.Now()
	h := store.Health{Engine: "PostgreSQL"}
	err := s.pool.QueryRow(ctx, "SELECT current_setting('server_version'), pg_database_size(current_database())").Scan(&h.Version, &h.Size)
	if err != nil {
		return h, fmt.Errorf("the database: %w", err)
	}
	h.Latency = time.Since(began)
	stat := s.pool.Stat()
	h.Connections, h.MaxConnections = int(stat.TotalConns()), int(stat.MaxConns())
	h.Schema, _, err = s.versions(ctx)
	return h, err
}

// as runs f in a transaction that sees what is of the tenant. What reads is planned for
// its arguments: which index is best depends on them.
func (s *Store) as(ctx context.Context, tenant store.Tenant, options pgx.TxOptions, f func(pgx.Tx) error) error {
	set := "SELECT set_config('mintmark.tenant', $1, true)"
	if options.AccessMode == pgx.ReadOnly {
		set += ", set_config('plan_cache_mode', 'force_custom_plan', true)"
	}
	return pgx.BeginTxFunc(ctx, s.pool, options, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, set, tenant.Setting()); err != nil {
			return err
		}
		return f(tx)
	})
}

var (
	reading = pgx.TxOptions{AccessMode: pgx.ReadOnly}
	writing = pgx.TxOptions{}
)

// Retain drops the events of months that ended before the time, and what only they
// needed, and makes the partition of the month to come.
func (s *Store) Retain(ctx context.Context, before, now time.Time) (months int, err error) {
	next := time.Date(now.Year(), now.Month()+1, 1, 0, 0, 0, 0, time.UTC)
	if _, err := s.partition(ctx, next); err != nil {
		return 0, err
	}
	if !before.IsZero() {
		if err := s.pool.QueryRow(ctx, "SELECT drop_events_before($1::date)", before.UTC()).Scan(&months); err != nil {
			return 0, fmt.Errorf("dropping events before %s: %w", before.UTC().Format(time.DateOnly), err)
		}
		s.mu.Lock()
		clear(s.partitions)
		s.mu.Unlock()
	}
	err = s.as(ctx, store.AllTenants(), writing, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "DELETE FROM denied_tokens WHERE until < $1", now); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "DELETE FROM credentials WHERE state = $1 AND updated < $2", store.StateDeleted, before); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "DELETE FROM tombstones WHERE until < $1", now)
		return err
	})
	if err == nil && !before.IsZero() {
		err = s.clearDays(ctx, before)
	}
	if err != nil {
		return months, fmt.Errorf("clearing out what has expired: %w", err)
	}
	return months, nil
}

// clearDays clears usage by day out, a day in a transaction: there is a row for each
// credential that was used on it.
func (s *Store) clearDays(ctx context.Context, before time.Time) error {
	limit := time.Date(before.UTC().Year(), before.UTC().Month(), 1, 0, 0, 0, 0, time.UTC)
	for _, table := range []string{"usage_daily", "latency_daily"} {
		for removed := int64(1); removed > 0; {
			err := s.as(ctx, store.AllTenants(), writing, func(tx pgx.Tx) error {
				tag, err := tx.Exec(ctx, "DELETE FROM "+table+" WHERE day = (SELECT day FROM "+table+" WHERE day < $1 ORDER BY day LIMIT 1)", limit)
				removed = tag.RowsAffected()
				return err
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// partition is the name of the partition of a month, which it makes where there is none.
func (s *Store) partition(ctx context.Context, at time.Time) (string, error) {
	month := at.UTC().Format("2006-01")
	s.mu.Lock()
	name := s.partitions[month]
	s.mu.Unlock()
	if name != "" {
		return name, nil
	}
	if err := s.pool.QueryRow(ctx, "SELECT ensure_events_partition($1::date)", month+"-01").Scan(&name); err != nil {
		return "", fmt.Errorf("making the partition of %s: %w", month, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.partitions[month] = name
	return name, nil
}

// where collects conditions and their arguments.
type where struct {
	conditions []string
	arguments  []any
}

// and adds a condition; ? in it stands for the argument. Text is compared as it is kept.
func (w *where) and(condition string, argument any) {
	if text, ok := argument.(string); ok {
		argument = store.Plain(text)
	}
	w.arguments = append(w.arguments, argument)
	w.conditions = append(w.conditions, strings.ReplaceAll(condition, "?", fmt.Sprintf("$%d", len(w.arguments))))
}

// tenant narrows to a tenant's own namespace. Row-level security does so as well; this is
// for the planner, which can choose an index by it.
func (w *where) tenant(t store.Tenant) {
	if !t.All() {
		w.and("namespace = ?", t.Setting())
	}
}

func (w *where) text() string {
	if len(w.conditions) == 0 {
		return ""
	}
	return " WHERE " + strings.Join(w.conditions, " AND ")
}

func sortedKeys[K comparable, V any](m map[K]V, compare func(a, b K) int) []K {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, compare)
	return keys
}
