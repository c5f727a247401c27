// Package sqlite keeps what a server keeps in one file, for an installation with a
// single server. It gives the results that PostgreSQL gives.
//
// There is one writer. Readers do not wait for it (write-ahead log), and what is
// committed is on the disk.
package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/pressly/goose/v3"
	driver "modernc.org/sqlite"
	codes "modernc.org/sqlite/lib"

	"github.com/mintmark-dev/mintmark/internal/store"
)

// Config of a Store.
type Config struct {
	// Path of the file, which is made where there is none. Its folder must be there.
	Path string
	Log  *slog.Logger
}

// Store is a file. It is safe for concurrent use by one process.
type Store struct {
	path    string
	log     *slog.Logger
	readers *sql.DB
	writer  *sql.DB // one connection

	mu     sync.Mutex
	denied chan struct{} // closed when there is something new among what is refused
}

// maxReaders read at the same time.
const maxReaders = 4

// Open opens the file.
func Open(ctx context.Context, c Config) (*Store, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	path, err := filepath.Abs(c.Path)
	if err != nil {
		return nil, fmt.Errorf("the database %s: %w", c.Path, err)
	}
	if info, err := os.Stat(filepath.Dir(path)); err != nil || !info.IsDir() {
		return nil, fmt.Errorf("the database %s: its folder is not there: make it, or mount a volume", path)
	}
	s := &Store{path: path, log: c.Log, denied: make(chan struct{})}
	if s.writer, err = connect(path, "immediate"); err != nil {
		return nil, err
	}
	s.writer.SetMaxOpenConns(1)
	if err := s.writer.PingContext(ctx); err != nil {
		_ = s.writer.Close()
		return nil, fmt.Errorf("the database %s: %w", path, err)
	}
	if s.readers, err = connect(path, "deferred"); err != nil {
		_ = s.writer.Close()
		return nil, err
	}
	s.readers.SetMaxOpenConns(maxReaders)
	return s, nil
}

func connect(path, lock string) (*sql.DB, error) {
	query := url.Values{"_txlock": {lock}, "_pragma": {
		"busy_timeout(5000)", "journal_mode(wal)", "synchronous(full)", "foreign_keys(on)", "trusted_schema(off)", "journal_size_limit(67108864)",
	}}
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Opaque: url.PathEscape(path), RawQuery: query.Encode()}).String())
	if err != nil {
		return nil, fmt.Errorf("the database %s: %w", path, err)
	}
	return db, nil
}

// Close closes the file.
func (s *Store) Close() {
	if err := errors.Join(s.readers.Close(), s.writer.Close()); err != nil {
		s.log.Error("closing the database", "path", s.path, "error", err.Error())
	}
}

//go:embed migrations/*.sql
var migrations embed.FS

// Migrate brings the schema up to date.
func (s *Store) Migrate(ctx context.Context) error {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	provider, err := goose.NewProvider(goose.DialectSQLite3, s.writer, files, goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return fmt.Errorf("reading the migrations: %w", err)
	}
	applied, err := provider.Up(ctx)
	for _, m := range applied {
		s.log.Info("migrated the database", "to", m.Source.Version, "took", m.Duration.Round(time.Millisecond).String())
	}
	if err != nil {
		return fmt.Errorf("migrating the database %s: %w", s.path, err)
	}
	return nil
}

// CheckSchema is nil where the schema is the one this program works with, or a later one.
// Its error is store.ErrSchema where it is older.
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
	err = s.readers.QueryRowContext(ctx, "SELECT coalesce(max(version_id), 0) FROM goose_db_version WHERE is_applied").Scan(&have)
	if err != nil && strings.Contains(err.Error(), "no such table") {
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
	h := store.Health{Engine: "SQLite"}
	err := s.readers.QueryRowContext(ctx, "SELECT sqlite_version(), (SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size())").Scan(&h.Version, &h.Size)
	if err != nil {
		return h, fmt.Errorf("the database %s: %w", s.path, err)
	}
	h.Latency = time.Since(began)
	h.Schema, _, err = s.versions(ctx)
	return h, err
}

// write runs f in a transaction.
func (s *Store) write(ctx context.Context, f func(*sql.Tx) error) error {
	tx, err := s.writer.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // after Commit it does nothing
	if err := f(tx); err != nil {
		return err
	}
	return tx.Commit()
}

// Retain removes the events of months that ended before the time, and what has expired.
// It does so in steps, between which others write.
func (s *Store) Retain(ctx context.Context, before, now time.Time) (months int, err error) {
	if !before.IsZero() {
		limit := time.Date(before.UTC().Year(), before.UTC().Month(), 1, 0, 0, 0, 0, time.UTC)
		err := s.readers.QueryRowContext(ctx, `SELECT count(DISTINCT strftime('%Y%m', at / 1000000, 'unixepoch')) FROM events WHERE at < ?`, limit.UnixMicro()).Scan(&months)
		if err != nil {
			return 0, fmt.Errorf("dropping old events: %w", err)
		}
		const step = 10_000
		for removed := int64(step); removed == step; {
			result, err := s.writer.ExecContext(ctx, "DELETE FROM events WHERE rowid IN (SELECT rowid FROM events WHERE at < ? LIMIT ?)", limit.UnixMicro(), step)
			if err != nil {
				return 0, fmt.Errorf("dropping old events: %w", err)
			}
			if removed, err = result.RowsAffected(); err != nil {
				return 0, err
			}
		}
		if err := s.clear(ctx, limit); err != nil {
			return months, fmt.Errorf("clearing out what only old events needed: %w", err)
		}
	}
	err = s.write(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, "DELETE FROM denied_tokens WHERE until < ?", now.UnixMicro()); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, "DELETE FROM credentials WHERE state = 'Deleted' AND updated < ?", before.UnixMicro()); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, "DELETE FROM tombstones WHERE until < ?", now.UnixMicro())
		return err
	})
	if err != nil {
		return months, fmt.Errorf("clearing out what has expired: %w", err)
	}
	return months, nil
}

// clear removes what only served the events from before a time.
func (s *Store) clear(ctx context.Context, before time.Time) error {
	return s.write(ctx, func(tx *sql.Tx) error {
		at, day := before.UnixMicro(), before.Format(time.DateOnly)
		for _, c := range []struct {
			statement string
			argument  any
		}{
			// Who tells of an event that is older than this is told that it is stored.
			{"UPDATE retention SET cleared_before = max(cleared_before, ?)", at},
			{"DELETE FROM event_ids WHERE at < ?", at},
			{"DELETE FROM usage_daily WHERE day < ?", day},
			{"DELETE FROM latency_daily WHERE day < ?", day},
			// Of each chain the last batch whose events are gone stays: the next one follows it.
			{`DELETE FROM batches WHERE sequence < (SELECT coalesce(min(b.sequence) FILTER (WHERE b.last_at >= ?) - 1, max(b.sequence))
				FROM batches b WHERE b.chain = batches.chain)`, at},
		} {
			if _, err := tx.ExecContext(ctx, c.statement, c.argument); err != nil {
				return err
			}
		}
		return nil
	})
}

// duplicate tells whether a row was there already.
func duplicate(err error) bool {
	var failed *driver.Error
	return errors.As(err, &failed) && (failed.Code() == codes.SQLITE_CONSTRAINT_PRIMARYKEY || failed.Code() == codes.SQLITE_CONSTRAINT_UNIQUE)
}

// where collects conditions and their arguments.
type where struct {
	conditions []string
	arguments  []any
}

// and adds a condition. Text is compared as it is kept.
func (w *where) and(condition string, arguments ...any) {
	for i := range arguments {
		if text, ok := arguments[i].(string); ok {
			arguments[i] = store.Plain(text)
		}
	}
	w.conditions = append(w.conditions, condition)
	w.arguments = append(w.arguments, arguments...)
}

func (w *where) text() string {
	if len(w.conditions) == 0 {
		return ""
	}
	return " WHERE " + strings.Join(w.conditions, " AND ")
}

// query is a whole statement. What comes before and after the conditions is ours, as they
// are; values are arguments.
func (w *where) query(before, after string) string { return before + w.text() + " " + after }

// tenant narrows to what the tenant sees.
func (w *where) tenant(t store.Tenant, column string) {
	switch {
	case t.All():
	case t.Setting() == "":
		w.and("false")
	default:
		w.and(column+" = ?", t.Setting())
	}
}

// micros is a time as it is stored; nil where it is zero.
func micros(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UnixMicro()
}

func fromMicros(n sql.NullInt64) time.Time {
	if !n.Valid {
		return time.Time{}
	}
	return time.UnixMicro(n.Int64).UTC()
}

// collect reads every row.
func collect[T any](rows *sql.Rows, err error, scan func(*sql.Rows) (T, error)) ([]T, error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []T
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, rows.Err()
}
