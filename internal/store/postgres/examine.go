package postgres

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mintmark-dev/mintmark/internal/store"
)

// Severity of a Finding.
type Severity int

// The severities, in order.
const (
	Sound Severity = iota
	Warning
	Failure
)

// Finding is one thing that Examine looked at, and what to do about it.
type Finding struct {
	Severity        Severity
	Message, Remedy string
}

// examined collects findings.
type examined struct {
	schema string
	all    []Finding
}

func (x *examined) ok(format string, args ...any) {
	x.all = append(x.all, Finding{Message: fmt.Sprintf(format, args...)})
}
func (x *examined) warn(message, remedy string) {
	x.all = append(x.all, Finding{Warning, message, remedy})
}
func (x *examined) fail(message, remedy string) {
	x.all = append(x.all, Finding{Failure, message, remedy})
}

const (
	oldestServer = 130000
	// maxClockSkew is how far the database's clock may be from the cluster's: months end
	// and tokens expire by both.
	maxClockSkew = 5 * time.Second
	grantsRemedy = "as the owner, run what docs/database.md has under Accounts"
)

// Examine looks whether a database is fit for a server with the account of the URL. now gives
// the cluster's time; nil leaves clocks out. It changes nothing. Its error says that the
// database cannot be asked.
func Examine(ctx context.Context, url string, now func() time.Time) ([]Finding, error) {
	s, err := Open(ctx, Config{URL: url, MaxConnections: 1})
	if err != nil {
		return nil, err
	}
	defer s.Close()
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return nil, fmt.Errorf("the database: %w", err)
	}
	x := &examined{schema: s.schema}
	fit, err := x.server(ctx, conn.Conn(), now)
	conn.Release()
	if err != nil || !fit {
		return x.all, err
	}
	have, need, err := s.versions(ctx)
	switch {
	case err != nil:
		x.fail(fmt.Sprintf("the version of the schema cannot be read: %v", err), grantsRemedy)
		return x.all, nil
	case have < need:
		x.fail(fmt.Sprintf("the schema is at version %d, and %d is needed", have, need), "run mintmark-server --migrate as the owner, or start a server whose account may migrate")
		return x.all, nil
	case have > need:
		x.warn(fmt.Sprintf("the schema is at version %d, later than the %d this command knows", have, need), "use the command of the version that is installed")
	default:
		x.ok("schema %s at version %d", s.schema, have)
	}
	return x.all, s.as(ctx, store.AllTenants(), reading, func(tx pgx.Tx) error {
		for _, part := range []func(context.Context, pgx.Tx) error{x.account, x.privileges, x.tables, x.partitions} {
			if err := part(ctx, tx); err != nil {
				return err
			}
		}
		return nil
	})
}

// server looks at the server and the way to it, and tells whether the rest can be looked at.
func (x *examined) server(ctx context.Context, conn *pgx.Conn, now func() time.Time) (fit bool, err error) {
	var version, encoding, fsync, full, commit string
	var number int
	var replica, encrypted, readOnly, language bool
	var tls *string
	var at time.Time
	err = conn.QueryRow(ctx, `SELECT current_setting('server_version'), current_setting('server_version_num')::int, pg_is_in_recovery(), current_setting('transaction_read_only')::boolean,
			current_setting('server_encoding'), current_setting('fsync'), current_setting('full_page_writes'), current_setting('synchronous_commit'),
			EXISTS (SELECT FROM pg_language WHERE lanname = 'plpgsql'), coalesce(s.ssl, false), s.version, clock_timestamp()
		FROM (SELECT pg_backend_pid() AS pid) me LEFT JOIN pg_stat_ssl s USING (pid)`).
		Scan(&version, &number, &replica, &readOnly, &encoding, &fsync, &full, &commit, &language, &encrypted, &tls, &at)
	if err != nil {
		return false, fmt.Errorf("the database: %w", err)
	}
	if number < oldestServer {
		x.fail("PostgreSQL "+version+" is too old", "use version 13 or later")
		return false, nil
	}
	x.ok("PostgreSQL %s", version)
	if replica || readOnly {
		x.fail("it is read-only here: a replica, or made so", "write every host into the URL, and target_session_attrs=read-write")
	}
	if encoding != "UTF8" {
		x.fail("the encoding of the database is "+encoding, "make a database with ENCODING 'UTF8'")
	}
	if !language {
		x.fail("the language plpgsql is missing, of which its functions are", "as an administrator: CREATE EXTENSION plpgsql")
	} else {
		x.ok("no extension is needed beside plpgsql, which is there")
	}
	if fsync == "off" || full == "off" {
		x.fail("fsync or full_page_writes is off: a crash of the database loses events that servers have let go of, or the database", "switch both on")
	} else if commit == "off" {
		x.warn("synchronous_commit is off: a crash of the database loses the events of its last moment", "switch it on, for the servers' account at least")
	}
	x.transport(conn.Config(), encrypted, tls)
	if now != nil {
		if skew := at.Sub(now()); skew.Abs() > maxClockSkew {
			x.fail(fmt.Sprintf("its clock is %s off the cluster's", skew.Round(time.Second)), "set both by NTP: months end and tokens expire by them")
		} else {
			x.ok("its clock and the cluster's agree")
		}
	}
	return true, nil
}

// transport looks at the way to the database.
func (x *examined) transport(c *pgx.ConnConfig, encrypted bool, version *string) {
	local := strings.HasPrefix(c.Host, "/") || c.Host == "localhost" || strings.HasPrefix(c.Host, "127.") || c.Host == "::1"
	switch {
	case !encrypted && local:
		x.ok("the connection is not encrypted, and does not leave the host")
	case !encrypted:
		x.fail("the connection is not encrypted", "write sslmode=verify-full into the URL, and sslrootcert where the authority is your own")
	case c.TLSConfig == nil || c.TLSConfig.InsecureSkipVerify && c.TLSConfig.VerifyPeerCertificate == nil || anyInTheClear(c):
		x.warn("the connection is encrypted, and would be with anybody: the certificate is not verified", "write sslmode=verify-full into the URL, and sslrootcert where the authority is your own")
	case c.TLSConfig.InsecureSkipVerify:
		x.warn("the connection is encrypted, and the name in the certificate is not verified", "write sslmode=verify-full into the URL")
	default:
		if version != nil {
			x.ok("the connection is encrypted (%s), and the certificate verified", *version)
		}
	}
}

// anyInTheClear: sslmode=prefer and allow fall back to a connection without encryption.
func anyInTheClear(c *pgx.ConnConfig) bool {
	for _, f := range c.Fallbacks {
		if f.TLSConfig == nil {
			return true
		}
	}
	return false
}

// account looks at what the account may do that a server's need not.
func (x *examined) account(ctx context.Context, tx pgx.Tx) error {
	var name string
	var super, bypass, owner bool
	err := tx.QueryRow(ctx, `SELECT current_user, rolsuper, rolbypassrls, pg_has_role(current_user, (SELECT relowner FROM pg_class WHERE oid = 'events'::regclass), 'MEMBER')
		FROM pg_roles WHERE rolname = current_user`).Scan(&name, &super, &bypass, &owner)
	if err != nil {
		return err
	}
	const remedy = "give servers the account mintmark_app, see docs/database.md"
	switch {
	case super || bypass:
		x.fail("row-level security does not hold account "+name+": it is a superuser, or has BYPASSRLS", remedy)
		return nil
	case owner:
		x.warn("account "+name+" owns the tables: it can alter and remove what is recorded", remedy)
		return nil
	}
	var may *string
	err = tx.QueryRow(ctx, `SELECT string_agg(c.relname, ', ' ORDER BY c.relname) FROM pg_class c
		WHERE (c.oid IN ('events'::regclass, 'batches'::regclass, 'event_ids'::regclass, 'retention'::regclass)
			OR c.oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'events'::regclass))
		AND has_table_privilege(c.oid, 'UPDATE, DELETE, TRUNCATE, TRIGGER')`).Scan(&may)
	if err != nil {
		return err
	}
	if may != nil {
		x.fail("account "+name+" can change or remove what is recorded, in "+*may, "as the owner: REVOKE UPDATE, DELETE, TRUNCATE, TRIGGER ON these FROM "+name)
		return nil
	}
	x.ok("account %s adds to the audit log, and cannot change or remove what is in it", name)
	return nil
}

// needed is what a server does with each table.
var needed = map[string]string{
	"events": "SELECT INSERT", "batches": "SELECT INSERT", "event_ids": "SELECT INSERT", "goose_db_version": "SELECT", "retention": "SELECT",
	"usage": "SELECT INSERT UPDATE DELETE", "usage_daily": "SELECT INSERT UPDATE DELETE", "latency_daily": "SELECT INSERT UPDATE DELETE",
	"credentials": "SELECT INSERT UPDATE DELETE", "credential_facts": "SELECT INSERT UPDATE DELETE", "tombstones": "SELECT INSERT UPDATE DELETE",
	"denied_tokens": "SELECT INSERT UPDATE DELETE",
}

// privileges looks whether the account may do what a server does.
func (x *examined) privileges(ctx context.Context, tx pgx.Tx) error {
	var lacking []string
	for _, table := range sortedKeys(needed, strings.Compare) {
		for privilege := range strings.FieldsSeq(needed[table]) {
			var may bool
			if err := tx.QueryRow(ctx, "SELECT has_table_privilege($1::regclass, $2)", table, privilege).Scan(&may); err != nil {
				return err
			}
			if !may {
				lacking = append(lacking, privilege+" on "+table)
			}
		}
	}
	for _, function := range []string{"ensure_events_partition(date)", "drop_events_before(date)"} {
		var may bool
		if err := tx.QueryRow(ctx, "SELECT has_function_privilege($1::regprocedure, 'EXECUTE')", function).Scan(&may); err != nil {
			return err
		}
		if !may {
			lacking = append(lacking, "EXECUTE on "+function)
		}
	}
	if len(lacking) > 0 {
		x.fail("the account lacks "+strings.Join(lacking, ", "), grantsRemedy)
		return nil
	}
	x.ok("the account may do all that a server does")
	return nil
}

// tables looks whether row-level security holds.
func (x *examined) tables(ctx context.Context, tx pgx.Tx) error {
	var open *string
	err := tx.QueryRow(ctx, `SELECT string_agg(relname, ', ' ORDER BY relname) FROM pg_class
		WHERE oid = ANY($1::regclass[]::oid[]) AND NOT (relrowsecurity AND relforcerowsecurity AND EXISTS (SELECT FROM pg_policy WHERE polrelid = pg_class.oid))`,
		[]string{"events", "usage", "usage_daily", "latency_daily", "credentials", "credential_facts", "tombstones", "denied_tokens"}).Scan(&open)
	if err != nil {
		return err
	}
	if open != nil {
		x.fail("row-level security is off, or not forced, for "+*open+": tenants are held apart by queries alone", "as the owner: ALTER TABLE ... ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
		return nil
	}
	x.ok("row-level security holds tenants apart")
	return nil
}

// partitions looks for those of this month and the next.
func (x *examined) partitions(ctx context.Context, tx pgx.Tx) error {
	var missing *string
	var cleared *time.Time
	err := tx.QueryRow(ctx, `SELECT (SELECT string_agg(to_char(m, 'YYYY-MM'), ' and ' ORDER BY m)
			FROM unnest(ARRAY[date_trunc('month', now() AT TIME ZONE 'UTC'), date_trunc('month', now() AT TIME ZONE 'UTC') + interval '1 month']) m
			WHERE to_regclass('events_' || to_char(m, 'YYYYMM')) IS NULL),
		(SELECT nullif(cleared_before, '-infinity') FROM retention)`).Scan(&missing, &cleared)
	if err != nil {
		return err
	}
	switch {
	case missing != nil:
		x.warn("there is no partition for "+*missing+" yet", "a server makes them when it starts, once a day, and when it needs one: see that one runs")
	case cleared != nil:
		x.ok("there are partitions for this month and the next; what is from before %s has been cleared out", cleared.UTC().Format(time.DateOnly))
	default:
		x.ok("there are partitions for this month and the next; nothing has been cleared out yet")
	}
	return nil
}
