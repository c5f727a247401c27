package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	"github.com/mintmark-dev/mintmark/internal/store"
)

// Usage gives how much the versions of a credential were used, latest first.
func (s *Store) Usage(ctx context.Context, tenant store.Tenant, uid string) ([]store.VersionUsage, error) {
	var w where
	w.tenant(tenant, "namespace")
	w.and("uid = ?", uid)
	rows, err := s.readers.QueryContext(ctx, w.query("SELECT version, prefix, uses, denied, last_used, last_client, last_slot FROM usage", "ORDER BY version DESC"), w.arguments...)
	usage, err := collect(rows, err, func(rows *sql.Rows) (u store.VersionUsage, err error) {
		var used sql.NullInt64
		var client sql.NullString
		if err := rows.Scan(&u.Version, &u.Prefix, &u.Uses, &u.Denied, &used, &client, &u.LastSlot); err != nil {
			return u, err
		}
		u.LastUsed = fromMicros(used)
		if client.Valid {
			u.LastClient, err = netip.ParsePrefix(client.String)
		}
		return u, err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the usage of %s: %w", uid, err)
	}
	return usage, nil
}

// Analytics works out what came of the requests of some days.
func (s *Store) Analytics(ctx context.Context, tenant store.Tenant, f store.AnalyticsFilter) (store.Analytics, error) {
	var a store.Analytics
	tx, err := s.readers.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return a, fmt.Errorf("working out analytics: %w", err)
	}
	defer tx.Rollback() //nolint:errcheck // it only read
	for _, part := range []func(context.Context, *sql.Tx, store.Tenant, store.AnalyticsFilter, *store.Analytics) error{daily, top, latency, idle, totals} {
		if err := part(ctx, tx, tenant, f, &a); err != nil {
			return store.Analytics{}, fmt.Errorf("working out analytics: %w", err)
		}
	}
	return a, nil
}

// days narrows to the days asked for, and to the credential.
func days(t store.Tenant, f store.AnalyticsFilter) where {
	var w where
	w.tenant(t, "namespace")
	if !f.Since.IsZero() {
		w.and("day >= ?", f.Since.UTC().Format(time.DateOnly))
	}
	if !f.Until.IsZero() {
		w.and("day <= ?", f.Until.UTC().Format(time.DateOnly))
	}
	if f.UID != "" {
		w.and("uid = ?", f.UID)
	}
	return w
}

func daily(ctx context.Context, tx *sql.Tx, t store.Tenant, f store.AnalyticsFilter, a *store.Analytics) error {
	w := days(t, f)
	rows, err := tx.QueryContext(ctx, w.query("SELECT day, sum(allowed), sum(denied) FROM usage_daily", "GROUP BY day ORDER BY day"), w.arguments...)
	a.Daily, err = collect(rows, err, func(rows *sql.Rows) (d store.Day, err error) {
		var day string
		if err := rows.Scan(&day, &d.Allowed, &d.Denied); err != nil {
			return d, err
		}
		d.Day, err = time.Parse(time.DateOnly, day)
		return d, err
	})
	for _, d := range a.Daily {
		a.Allowed += d.Allowed
		a.Denied += d.Denied
	}
	return err
}

func top(ctx context.Context, tx *sql.Tx, t store.Tenant, f store.AnalyticsFilter, a *store.Analytics) error {
	w := days(t, f)
	w.and("uid <> ''")
	rows, err := tx.QueryContext(ctx, w.query("SELECT uid, max(subject), max(namespace), sum(allowed), sum(denied) FROM usage_daily",
		fmt.Sprintf("GROUP BY uid ORDER BY sum(allowed) + sum(denied) DESC, uid LIMIT %d", f.TopSize())), w.arguments...)
	a.Top, err = collect(rows, err, func(rows *sql.Rows) (c store.CredentialTotal, err error) {
		return c, rows.Scan(&c.UID, &c.Subject, &c.Namespace, &c.Allowed, &c.Denied)
	})
	return err
}

// latency is of the whole tenant, for it is not counted by credential.
func latency(ctx context.Context, tx *sql.Tx, t store.Tenant, f store.AnalyticsFilter, a *store.Analytics) error {
	f.UID = ""
	w := days(t, f)
	rows, err := tx.QueryContext(ctx, w.query("SELECT bucket, sum(count) FROM latency_daily", "GROUP BY bucket"), w.arguments...)
	var buckets [store.LatencyBuckets]int64
	_, err = collect(rows, err, func(rows *sql.Rows) (struct{}, error) {
		var bucket, count int64
		if err := rows.Scan(&bucket, &count); err != nil {
			return struct{}{}, err
		}
		if bucket >= 0 && int(bucket) < len(buckets) {
			buckets[bucket] = count
		}
		return struct{}{}, nil
	})
	a.Latency = store.PercentilesOf(buckets)
	return err
}

func idle(ctx context.Context, tx *sql.Tx, t store.Tenant, f store.AnalyticsFilter, a *store.Analytics) error {
	if f.IdleBefore.IsZero() {
		return nil
	}
	var w where
	w.tenant(t, "c.namespace")
	w.and("c.state = 'Active'")
	if f.UID != "" {
		w.and("c.uid = ?", f.UID)
	}
	w.and("coalesce(u.last_used, 0) < ?", f.IdleBefore.UnixMicro())
	rows, err := tx.QueryContext(ctx, w.query(`SELECT c.uid, lower(c.kind) || ':' || c.namespace || ':' || c.name, c.namespace, u.last_used FROM credentials c
		LEFT JOIN (SELECT uid, max(last_used) AS last_used FROM usage GROUP BY uid) u ON u.uid = c.uid`, fmt.Sprintf("ORDER BY u.last_used NULLS FIRST, c.uid LIMIT %d", store.MaxIdle)), w.arguments...)
	a.Idle, err = collect(rows, err, func(rows *sql.Rows) (i store.IdleCredential, err error) {
		var used sql.NullInt64
		err = rows.Scan(&i.UID, &i.Subject, &i.Namespace, &used)
		i.LastUsed = fromMicros(used)
		return i, err
	})
	return err
}

// totals count the inventory.
func totals(ctx context.Context, tx *sql.Tx, t store.Tenant, f store.AnalyticsFilter, a *store.Analytics) error {
	if f.IdleBefore.IsZero() {
		return nil
	}
	w := where{arguments: []any{f.Now.UnixMicro(), f.IdleBefore.UnixMicro()}}
	w.tenant(t, "namespace")
	w.and("state <> 'Deleted'")
	if f.UID != "" {
		w.and("uid = ?", f.UID)
	}
	return tx.QueryRowContext(ctx, w.query(`SELECT count(*) FILTER (WHERE lives AND used), count(*) FILTER (WHERE lives AND NOT used),
			count(*) FILTER (WHERE NOT lives AND state <> 'Revoked'), count(*) FILTER (WHERE state = 'Revoked')
		FROM (SELECT state, state = 'Active' AND coalesce(expires > ?, true) AS lives,
			EXISTS (SELECT 1 FROM usage WHERE usage.uid = credentials.uid AND last_used >= ?) AS used FROM credentials`, ")"), w.arguments...).
		Scan(&a.Totals.Active, &a.Totals.Inactive, &a.Totals.Expired, &a.Totals.Revoked)
}

// PutCredentials takes credentials into the inventory, new or changed. What is there
// already, or of a newer object, is not written.
func (s *Store) PutCredentials(ctx context.Context, all []store.Credential) error {
	err := s.write(ctx, func(tx *sql.Tx) error {
		for i := range all {
			c := &all[i]
			labels, err := store.PlainJSON(c.Labels)
			if err != nil {
				return err
			}
			metadata, err := store.PlainJSON(c.Metadata)
			if err != nil {
				return err
			}
			_, err = tx.ExecContext(ctx, `INSERT INTO credentials (uid, kind, namespace, name, class, owner, description, labels, metadata, admin, created, expires, state, applied, updated)
				VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
				ON CONFLICT (uid) DO UPDATE SET class = excluded.class, owner = excluded.owner, description = excluded.description, labels = excluded.labels,
					metadata = excluded.metadata, admin = excluded.admin, expires = excluded.expires, state = excluded.state,
					applied = excluded.applied, updated = excluded.updated
				WHERE (excluded.applied = 0 OR excluded.applied >= credentials.applied)
					AND (credentials.class, credentials.owner, credentials.description, credentials.labels, credentials.metadata, credentials.admin,
						credentials.expires, credentials.state)
					IS NOT (excluded.class, excluded.owner, excluded.description, excluded.labels, excluded.metadata, excluded.admin, excluded.expires, excluded.state)`,
				c.UID, c.Kind, c.Namespace, c.Name, c.Class, store.Plain(c.Owner), store.Plain(c.Description), labels, metadata, c.Admin, c.Created.UnixMicro(),
				micros(c.Expires), c.State, c.Applied, time.Now().UnixMicro())
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("storing %d credentials of the inventory: %w", len(all), err)
	}
	return nil
}

// NewestCredential is the greatest resourceVersion that a row of the inventory was made of.
func (s *Store) NewestCredential(ctx context.Context) (newest int64, err error) {
	if err := s.readers.QueryRowContext(ctx, "SELECT coalesce(max(applied), 0) FROM credentials").Scan(&newest); err != nil {
		return 0, fmt.Errorf("reading the inventory: %w", err)
	}
	return newest, nil
}

// RewindCredentials forgets how new the rows are that were made of an object newer than
// a resourceVersion: a cluster that was restored from a backup gives it out again.
func (s *Store) RewindCredentials(ctx context.Context, after int64) error {
	if _, err := s.writer.ExecContext(ctx, "UPDATE credentials SET applied = 0 WHERE applied > ?", after); err != nil {
		return fmt.Errorf("rewinding the inventory: %w", err)
	}
	return nil
}

// Credentials lists the inventory of the tenant.
func (s *Store) Credentials(ctx context.Context, tenant store.Tenant, f store.CredentialFilter, p store.Page) (store.Credentials, error) {
	w, err := credentialFilter(tenant, f, p)
	if err != nil {
		return store.Credentials{}, err
	}
	rows, err := s.readers.QueryContext(ctx, w.query("SELECT uid, kind, namespace, name, class, owner, description, labels, metadata, admin, created, expires, state, applied FROM credentials",
		fmt.Sprintf("ORDER BY namespace, name, kind, uid LIMIT %d", p.Size()+1)), w.arguments...)
	var page store.Credentials
	if page.Items, err = collect(rows, err, scanCredential); err != nil {
		return store.Credentials{}, fmt.Errorf("listing the inventory: %w", err)
	}
	if len(page.Items) > p.Size() {
		page.Items = page.Items[:p.Size()]
		page.Next = store.CredentialCursor(page.Items[p.Size()-1])
	}
	return page, nil
}

func credentialFilter(tenant store.Tenant, f store.CredentialFilter, p store.Page) (w where, err error) {
	w.tenant(tenant, "namespace")
	for _, c := range []struct{ column, value string }{
		{"kind", f.Kind}, {"namespace", f.Namespace}, {"name", f.Name}, {"class", f.Class}, {"owner", f.Owner}, {"state", f.State},
	} {
		if c.value != "" {
			w.and(c.column+" = ?", c.value)
		}
	}
	if f.State == "" && !f.WithDeleted {
		w.and("state <> 'Deleted'")
	}
	for column, want := range map[string]map[string]string{"labels": f.Labels, "metadata": f.Metadata} {
		for key, value := range want {
			w.and("EXISTS (SELECT 1 FROM json_each("+column+") WHERE key = ? AND value = ?)", key, value)
		}
	}
	if p.Cursor != "" {
		after, err := store.ParseCredentialCursor(p.Cursor)
		if err != nil {
			return w, err
		}
		w.and("(namespace, name, kind, uid) > (?, ?, ?, ?)", after.Namespace, after.Name, after.Kind, after.UID)
	}
	return w, nil
}

func scanCredential(rows *sql.Rows) (c store.Credential, err error) {
	var labels, metadata string
	var created int64
	var expires sql.NullInt64
	err = rows.Scan(&c.UID, &c.Kind, &c.Namespace, &c.Name, &c.Class, &c.Owner, &c.Description, &labels, &metadata, &c.Admin, &created, &expires, &c.State, &c.Applied)
	if err != nil {
		return c, err
	}
	c.Created, c.Expires = time.UnixMicro(created).UTC(), fromMicros(expires)
	if err := json.Unmarshal([]byte(labels), &c.Labels); err != nil {
		return c, fmt.Errorf("the labels of %s: %w", c.UID, err)
	}
	if err := json.Unmarshal([]byte(metadata), &c.Metadata); err != nil {
		return c, fmt.Errorf("the metadata of %s: %w", c.UID, err)
	}
	return c, nil
}

// PutTombstones stores tombstones; those that are there already stay as they are.
func (s *Store) PutTombstones(ctx context.Context, all []store.Tombstone) error {
	err := s.write(ctx, func(tx *sql.Tx) error {
		for i := range all {
			t := &all[i]
			_, err := tx.ExecContext(ctx, `INSERT INTO tombstones (digest, pepper, uid, namespace, version, reason, revoked_at, until) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
				ON CONFLICT (digest) DO NOTHING`, t.Digest, t.Pepper, t.UID, t.Namespace, t.Version, t.Reason, t.RevokedAt.UnixMicro(), micros(t.Until))
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("storing %d tombstones: %w", len(all), err)
	}
	s.notify()
	return nil
}

// Tombstones gives those stored after a number, in order.
func (s *Store) Tombstones(ctx context.Context, after int64, limit int) ([]store.Tombstone, error) {
	rows, err := s.readers.QueryContext(ctx, `SELECT number, digest, pepper, uid, namespace, version, reason, revoked_at, until FROM tombstones
		WHERE number > ? ORDER BY number LIMIT ?`, after, limit)
	all, err := collect(rows, err, func(rows *sql.Rows) (t store.Tombstone, err error) {
		var revoked int64
		var until sql.NullInt64
		err = rows.Scan(&t.Number, &t.Digest, &t.Pepper, &t.UID, &t.Namespace, &t.Version, &t.Reason, &revoked, &until)
		t.RevokedAt, t.Until = time.UnixMicro(revoked).UTC(), fromMicros(until)
		return t, err
	})
	if err != nil {
		return nil, fmt.Errorf("reading tombstones: %w", err)
	}
	return all, nil
}

// DenyTokens stores JWTs to refuse.
func (s *Store) DenyTokens(ctx context.Context, all []store.DeniedToken) error {
	err := s.write(ctx, func(tx *sql.Tx) error {
		for i := range all {
			_, err := tx.ExecContext(ctx, "INSERT INTO denied_tokens (key, namespace, until) VALUES (?, ?, ?) ON CONFLICT (key) DO NOTHING",
				all[i].Key, all[i].Namespace, all[i].Until.UnixMicro())
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("storing %d refused tokens: %w", len(all), err)
	}
	s.notify()
	return nil
}

// DeniedTokens gives those stored after a number that have not expired, in order.
func (s *Store) DeniedTokens(ctx context.Context, after int64, now time.Time, limit int) ([]store.DeniedToken, error) {
	rows, err := s.readers.QueryContext(ctx, "SELECT number, key, namespace, until FROM denied_tokens WHERE number > ? AND until > ? ORDER BY number LIMIT ?",
		after, now.UnixMicro(), limit)
	all, err := collect(rows, err, func(rows *sql.Rows) (d store.DeniedToken, err error) {
		var until int64
		err = rows.Scan(&d.Number, &d.Key, &d.Namespace, &until)
		d.Until = time.UnixMicro(until).UTC()
		return d, err
	})
	if err != nil {
		return nil, fmt.Errorf("reading refused tokens: %w", err)
	}
	return all, nil
}

func (s *Store) notify() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.denied)
	s.denied = make(chan struct{})
}

// AwaitDenied waits until somebody has stored a tombstone or a token to refuse, or the
// context ends: its error then. What was stored before the call may not be told of.
func (s *Store) AwaitDenied(ctx context.Context) error {
	s.mu.Lock()
	denied := s.denied
	s.mu.Unlock()
	select {
	case <-denied:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
