package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"

	"github.com/spf13/pflag"

	"github.com/mintmark-dev/mintmark/internal/audit"
	"github.com/mintmark-dev/mintmark/internal/server"
	"github.com/mintmark-dev/mintmark/internal/store/database"
)

// auditOptions are the flags about what is kept, and where.
type auditOptions struct {
	url, urlFile        string
	maxConnections      int32
	migrate             bool
	autoMigrate         bool
	log                 string
	spoolDir            string
	spoolMaxBytes       int64
	overflow, successes string
	retention           int
	otlp                otlpOptions
}

func (o *auditOptions) addTo(flags *pflag.FlagSet, getenv func(string) string) {
	flags.StringVar(&o.url, "database-url", getenv("MINTMARK_DATABASE_URL"),
		"database for the audit log, usage and tombstones: postgres://... or sqlite:///path ($MINTMARK_DATABASE_URL; default: none)")
	flags.StringVar(&o.urlFile, "database-url-file", "", "file with that URL")
	flags.Int32Var(&o.maxConnections, "database-max-connections", 30, "connections to PostgreSQL at most")
	flags.BoolVar(&o.migrate, "migrate", false, "bring the schema of the database up to date and exit")
	flags.BoolVar(&o.autoMigrate, "auto-migrate", true, "bring the schema of the database up to date at the start, where the account may")
	flags.IntVar(&o.retention, "audit-retention", 13, "months for which events are kept in the database (0: for ever)")
	flags.StringVar(&o.log, "audit-log", "", "where events go as JSON lines as well: stdout, or a file that is appended to (default: nowhere)")
	o.otlp.addTo(flags)
	flags.StringVar(&o.spoolDir, "audit-spool-dir", "", "folder for events while the database is down (default: they wait in memory)")
	flags.Int64Var(&o.spoolMaxBytes, "audit-spool-max-bytes", 1<<30, "bytes in that folder at most")
	flags.StringVar(&o.overflow, "audit-overflow", "continue", "what to do while events are being lost: continue, or deny every request")
	flags.StringVar(&o.successes, "audit-successes", "all", "requests let through that are recorded: all or none; what is refused, and what changes something, always is")
}

func (o *auditOptions) check() error {
	switch {
	case o.url != "" && o.urlFile != "":
		return errors.New("--database-url and --database-url-file: give one")
	case o.overflow != "continue" && o.overflow != "deny":
		return fmt.Errorf("--audit-overflow %q: use continue or deny", o.overflow)
	case o.successes != "all" && o.successes != "none":
		return fmt.Errorf("--audit-successes %q: use all or none", o.successes)
	case o.retention < 0:
		return fmt.Errorf("--audit-retention %d: it cannot be negative", o.retention)
	case o.spoolMaxBytes <= 0:
		return fmt.Errorf("--audit-spool-max-bytes %d: it must be positive", o.spoolMaxBytes)
	case o.maxConnections <= 0:
		return fmt.Errorf("--database-max-connections %d: it must be positive", o.maxConnections)
	case o.migrate && !o.stored():
		return errors.New("--migrate: give --database-url or --database-url-file")
	case o.spoolDir != "" && !o.stored():
		return errors.New("--audit-spool-dir is for a database: give --database-url or --database-url-file")
	case o.overflow == "deny" && !o.stored():
		return errors.New("--audit-overflow=deny is for a database: give --database-url or --database-url-file")
	case o.url != "":
		if err := database.CheckURL(o.url); err != nil {
			return fmt.Errorf("--database-url: %w", err)
		}
	}
	return o.otlp.check()
}

// stored: there is a database.
func (o *auditOptions) stored() bool { return o.url != "" || o.urlFile != "" }

// databaseURL reads the URL, from its file anew each time.
func (o *auditOptions) databaseURL() (string, error) {
	if o.urlFile == "" {
		return o.url, nil
	}
	text, err := os.ReadFile(o.urlFile)
	if err != nil {
		return "", fmt.Errorf("--database-url-file: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}

// migrateNow brings the schema up to date.
func (o *auditOptions) migrateNow(ctx context.Context, log *slog.Logger) error {
	text, err := o.databaseURL()
	if err != nil {
		return err
	}
	engine, err := database.Open(ctx, text, o.maxConnections, log)
	if err != nil {
		return err
	}
	defer engine.Close()
	if err := engine.Migrate(ctx); err != nil {
		return err
	}
	return engine.CheckSchema(ctx)
}

// auditing is what records, running.
type auditing struct {
	server.Audit

	log     *slog.Logger
	stop    context.CancelFunc // of the recorder
	close   context.CancelFunc // of the database, after it
	running sync.WaitGroup
	storing sync.WaitGroup
	silence context.CancelFunc // of what sends events on, after the recorder
	sending sync.WaitGroup
	file    io.Closer // nil: none
	spool   *audit.Spool
	failed  error // of the recorder, once it has ended
}

// start runs what records; nothing where nothing is to be recorded. The database need
// not be there.
func (o *auditOptions) start(id string, log *slog.Logger, stdout io.Writer) (*auditing, error) {
	a := &auditing{log: log, stop: func() {}, close: func() {}, silence: func() {}}
	if !o.stored() && o.log == "" && o.otlp.endpoint == "" {
		return a, nil
	}
	a.FailuresOnly, a.DenyOnOverflow = o.successes == "none", o.overflow == "deny"
	config := audit.Config{Server: id, Chain: id + "_" + runID(), Log: log}
	if err := a.export(o.log, &config, stdout); err != nil {
		return nil, err
	}
	if err := a.send(id, &o.otlp, &config); err != nil {
		return nil, errors.Join(err, a.closeFile())
	}
	if o.stored() {
		if o.spoolDir != "" {
			spool, err := audit.OpenSpool(o.spoolDir, o.spoolMaxBytes)
			if err != nil {
				return nil, errors.Join(fmt.Errorf("--audit-spool-dir: %w", err), a.end())
			}
			a.spool, config.Spool = spool, spool
		}
		db := database.New(database.Config{
			URL: o.databaseURL, MaxConnections: o.maxConnections, AutoMigrate: o.autoMigrate, RetainMonths: o.retention, Log: log,
		})
		a.Store, config.Store = db, db
		ctx, cancel := context.WithCancel(context.Background())
		a.close = cancel
		a.storing.Go(func() { db.Run(ctx) })
	}
	a.Recorder = audit.New(config)
	ctx, cancel := context.WithCancel(context.Background())
	a.stop = cancel
	a.running.Go(func() { a.failed = a.Recorder.Run(ctx) })
	return a, nil
}

// runID tells this run from any other of the same server.
func runID() string {
	var id [12]byte
	_, _ = rand.Read(id[:]) // never fails (crypto/rand)
	return hex.EncodeToString(id[:])
}

// export has events written as lines too.
func (a *auditing) export(to string, config *audit.Config, stdout io.Writer) error {
	const mode = 0o640
	switch to {
	case "":
		return nil
	case "stdout":
	default:
		file, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_APPEND, mode)
		if err != nil {
			return fmt.Errorf("--audit-log: %w", err)
		}
		a.file, stdout = file, file
	}
	lines := audit.NewJSONLines(stdout)
	a.Exporter, config.Exporters = lines, []audit.Exporter{lines}
	return nil
}

// send has events sent on too.
func (a *auditing) send(id string, o *otlpOptions, config *audit.Config) error {
	otlp, err := o.open(id, a.log)
	if err != nil || otlp == nil {
		return err
	}
	config.Exporters = append(config.Exporters, otlp)
	a.OTLP, a.Exporter = otlp, exporters(config.Exporters)
	ctx, cancel := context.WithCancel(context.Background())
	a.silence = cancel
	a.sending.Go(func() { otlp.Run(ctx) })
	return nil
}

// end stores what is left, and stops.
func (a *auditing) end() error {
	a.stop()
	a.running.Wait()
	a.silence()
	a.sending.Wait()
	a.close()
	a.storing.Wait()
	errs := []error{a.failed, a.closeFile()}
	if a.spool != nil {
		errs = append(errs, a.spool.Close())
	}
	return errors.Join(errs...)
}

func (a *auditing) closeFile() error {
	if a.file == nil {
		return nil
	}
	return a.file.Close()
}
