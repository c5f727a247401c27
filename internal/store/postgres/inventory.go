package postgres

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mintmark-dev/mintmark/internal/store"
)

// PutCredentials takes credentials into the inventory, new or changed. What is there already, or
// of a newer object, is not written.
func (s *Store) PutCredentials(ctx context.Context, all []store.Credential) error {
	var (
		uids, kinds, namespaces, names, classes, owners, descriptions, labels, metadata, states []string
		admins                                                                                  []bool
		created                                                                                 []time.Time
		expires                                                                                 []*time.Time
		applied                                                                                 []int64
	)
	for _, at := range sortedCredentials(all) {
		c := &all[at]
		label, err := store.PlainJSON(c.Labels)
		if err != nil {
			return err
		}
		data, err := store.PlainJSON(c.Metadata)
		if err != nil {
			return err
		}
		uids, kinds, namespaces, names = append(uids, c.UID), append(kinds, c.Kind), append(namespaces, c.Namespace), append(names, c.Name)
		classes, owners, descriptions = append(classes, c.Class), append(owners, store.Plain(c.Owner)), append(descriptions, store.Plain(c.Description))
		labels, metadata, states = append(labels, label), append(metadata, data), append(states, c.State)
		admins, created, applied = append(admins, c.Admin), append(created, c.Created), append(applied, c.Applied)
		expires = append(expires, optional(c.Expires, c.Expires.IsZero()))
	}
	err := s.as(ctx, store.AllTenants(), writing, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, putCredentials, uids, kinds, namespaces, names, classes, owners, descriptions, labels, metadata, admins, created, expires, states, applied)
		return err
	})
	if err != nil {
		return fmt.Errorf("storing %d credentials of the inventory: %w", len(all), err)
	}
	return nil
}

// putCredentials reads before it writes: a row that need not change is not locked, and
// the next server that sees the same writes nothing.
const putCredentials = `INSERT INTO credentials AS c (uid, kind, namespace, name, class, owner, description, labels, metadata, admin, created, expires, state, applied)
	SELECT n.uid, n.kind, n.namespace, n.name, n.class, n.owner, n.description, n.labels::jsonb, n.metadata::jsonb, n.admin, n.created, n.expires, n.state, n.applied
	FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[], $10::boolean[], $11::timestamptz[],
		$12::timestamptz[], $13::text[], $14::bigint[]) AS n (uid, kind, namespace, name, class, owner, description, labels, metadata, admin, created, expires, state, applied)
	LEFT JOIN credentials o ON o.uid = n.uid
	WHERE o.uid IS NULL OR (n.applied = 0 OR n.applied >= o.applied)
		AND (o.class, o.owner, o.description, o.labels, o.metadata, o.admin, o.expires, o.state)
			IS DISTINCT FROM (n.class, n.owner, n.description, n.labels::jsonb, n.metadata::jsonb, n.admin, n.expires, n.state)
	ORDER BY n.uid
	ON CONFLICT (uid) DO UPDATE SET class = excluded.class, owner = excluded.owner, description = excluded.description, labels = excluded.labels,
		metadata = excluded.metadata, admin = excluded.admin, expires = excluded.expires, state = excluded.state, updated = now(), applied = excluded.applied
	WHERE excluded.applied = 0 OR excluded.applied >= c.applied`

// NewestCredential is the greatest resourceVersion that a row of the inventory was made of.
func (s *Store) NewestCredential(ctx context.Context) (newest int64, err error) {
	err = s.as(ctx, store.AllTenants(), reading, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, "SELECT coalesce(max(applied), 0) FROM credentials").Scan(&newest)
	})
	if err != nil {
		return 0, fmt.Errorf("reading the inventory: %w", err)
	}
	return newest, nil
}

// RewindCredentials forgets how new the rows are that were made of an object newer than
// a resourceVersion: a cluster that was restored from a backup gives it out again.
func (s *Store) RewindCredentials(ctx context.Context, after int64) error {
	err := s.as(ctx, store.AllTenants(), writing, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "UPDATE credentials SET applied = 0 WHERE applied > $1", after)
		return err
	})
	if err != nil {
		return fmt.Errorf("rewinding the inventory: %w", err)
	}
	return nil
}

// sortedCredentials is an order in which two servers never wait for each other in a
// circle.
func sortedCredentials(all []store.Credential) []int {
	byUID := make(map[string]int, len(all))
	for i := range all {
		byUID[all[i].UID] = i // the last one of a UID counts
	}
	order := make([]int, 0, len(byUID))
	for _, uid := range sortedKeys(byUID, cmp.Compare) {
		order = append(order, byUID[uid])
	}
	return order
}

// Credentials lists the inventory of the tenant.
func (s *Store) Credentials(ctx context.Context, tenant store.Tenant, f store.CredentialFilter, p store.Page) (store.Credentials, error) {
	w, err := credentialFilter(tenant, f, p)
	if err != nil {
		return store.Credentials{}, err
	}
	var page store.Credentials
	err = s.as(ctx, tenant, reading, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `SELECT uid, kind, namespace, name, class, owner, description, labels, metadata, admin, created, expires, state, applied FROM credentials`+
			w.text()+fmt.Sprintf(" ORDER BY namespace, name, kind, uid LIMIT %d", p.Size()+1), w.arguments...)
		if err != nil {
			return err
		}
		page.Items, err = pgx.CollectRows(rows, scanCredential)
		return err
	})
	if err != nil {
		return store.Credentials{}, fmt.Errorf("listing the inventory: %w", err)
	}
	if len(page.Items) > p.Size() {
		page.Items = page.Items[:p.Size()]
		page.Next = store.CredentialCursor(page.Items[p.Size()-1])
	}
	return page, nil
}

func credentialFilter(tenant store.Tenant, f store.CredentialFilter, p store.Page) (w where, err error) {
	w.tenant(tenant)
	for _, c := range []struct{ column, value string }{
		{"kind", f.Kind}, {"namespace", f.Namespace}, {"name", f.Name}, {"class", f.Class}, {"owner", f.Owner}, {"state", f.State},
	} {
		if c.value != "" {
			w.and(c.column+" = ?", c.value)
		}
	}
	if f.State == "" && !f.WithDeleted {
		w.and("state <> ?", "Deleted")
	}
	for what, want := range map[string]map[string]string{"label": f.Labels, "metadata": f.Metadata} {
		for key, value := range want {
			n := len(w.arguments)
			w.arguments = append(w.arguments, what, store.Plain(key), store.Plain(value))
			w.conditions = append(w.conditions, fmt.Sprintf("uid IN (SELECT f.uid FROM credential_facts f WHERE f.fact = credential_fact($%d::text, $%d::text, $%d::text))", n+1, n+2, n+3))
		}
	}
	if p.Cursor != "" {
		after, err := store.ParseCredentialCursor(p.Cursor)
		if err != nil {
			return w, err
		}
		n := len(w.arguments)
		w.arguments = append(w.arguments, after.Namespace, after.Name, after.Kind, after.UID)
		w.conditions = append(w.conditions, fmt.Sprintf("(namespace, name, kind, uid) > ($%d, $%d, $%d, $%d)", n+1, n+2, n+3, n+4))
	}
	return w, nil
}

func scanCredential(row pgx.CollectableRow) (c store.Credential, err error) {
	var labels, metadata []byte
	var expires *time.Time
	err = row.Scan(&c.UID, &c.Kind, &c.Namespace, &c.Name, &c.Class, &c.Owner, &c.Description, &labels, &metadata, &c.Admin, &c.Created, &expires, &c.State, &c.Applied)
	if err != nil {
		return c, err
	}
	c.Created = c.Created.UTC()
	if expires != nil {
		c.Expires = expires.UTC()
	}
	if err := json.Unmarshal(labels, &c.Labels); err != nil {
		return c, fmt.Errorf("the labels of %s: %w", c.UID, err)
	}
	if err := json.Unmarshal(metadata, &c.Metadata); err != nil {
		return c, fmt.Errorf("the metadata of %s: %w", c.UID, err)
	}
	return c, nil
}

// channelDenied is notified when there is something new among what is refused.
const channelDenied = "mintmark_denied"

// PutTombstones stores tombstones; those that are there already stay as they are.
func (s *Store) PutTombstones(ctx context.Context, all []store.Tombstone) error {
	batch := new(pgx.Batch)
	for i := range all {
		t := &all[i]
		batch.Queue(`INSERT INTO tombstones (digest, pepper, uid, namespace, version, reason, revoked_at, until) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
			ON CONFLICT (digest) DO NOTHING`, t.Digest, t.Pepper, t.UID, t.Namespace, t.Version, t.Reason, t.RevokedAt, optional(t.Until, t.Until.IsZero()))
	}
	batch.Queue("SELECT pg_notify($1, '')", channelDenied)
	err := s.as(ctx, store.AllTenants(), writing, func(tx pgx.Tx) error { return tx.SendBatch(ctx, batch).Close() })
	if err != nil {
		return fmt.Errorf("storing %d tombstones: %w", len(all), err)
	}
	return nil
}

// settled is what no transaction that is still under way can add to: numbers are given
// out before they can be seen, so a later one may be seen first.
const settled = "stored_xid < pg_snapshot_xmin(pg_current_snapshot())"

// Tombstones gives those stored after a number, in order. While a transaction that
// stores others is under way it may give some again, and never leaves any out.
func (s *Store) Tombstones(ctx context.Context, after int64, limit int) ([]store.Tombstone, error) {
	var all []store.Tombstone
	err := s.as(ctx, store.AllTenants(), reading, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `SELECT number, digest, pepper, uid, namespace, version, reason, revoked_at, until FROM tombstones
			WHERE number > $1 AND `+settled+` ORDER BY number LIMIT $2`, after, limit)
		if err != nil {
			return err
		}
		all, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (t store.Tombstone, err error) {
			var until *time.Time
			err = row.Scan(&t.Number, &t.Digest, &t.Pepper, &t.UID, &t.Namespace, &t.Version, &t.Reason, &t.RevokedAt, &until)
			t.RevokedAt = t.RevokedAt.UTC()
			if until != nil {
				t.Until = until.UTC()
			}
			return t, err
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading tombstones: %w", err)
	}
	return all, nil
}

// DenyTokens stores JWTs to refuse.
func (s *Store) DenyTokens(ctx context.Context, all []store.DeniedToken) error {
	batch := new(pgx.Batch)
	for i := range all {
		batch.Queue("INSERT INTO denied_tokens (key, namespace, until) VALUES ($1, $2, $3) ON CONFLICT (key) DO NOTHING", all[i].Key, all[i].Namespace, all[i].Until)
	}
	batch.Queue("SELECT pg_notify($1, '')", channelDenied)
	err := s.as(ctx, store.AllTenants(), writing, func(tx pgx.Tx) error { return tx.SendBatch(ctx, batch).Close() })
	if err != nil {
		return fmt.Errorf("storing %d refused tokens: %w", len(all), err)
	}
	return nil
}

// DeniedTokens gives those stored after a number that have not expired, in order.
func (s *Store) DeniedTokens(ctx context.Context, after int64, now time.Time, limit int) ([]store.DeniedToken, error) {
	var all []store.DeniedToken
	err := s.as(ctx, store.AllTenants(), reading, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, "SELECT number, key, namespace, until FROM denied_tokens WHERE number > $1 AND until > $2 AND "+settled+" ORDER BY number LIMIT $3",
			after, now, limit)
		if err != nil {
			return err
		}
		all, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (d store.DeniedToken, err error) {
			err = row.Scan(&d.Number, &d.Key, &d.Namespace, &d.Until)
			d.Until = d.Until.UTC()
			return d, err
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading refused tokens: %w", err)
	}
	return all, nil
}

// AwaitDenied waits until somebody has stored a tombstone or a token to refuse, or
// the context ends: its error then. What was stored before the call may not be told of.
func (s *Store) AwaitDenied(ctx context.Context) error {
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("the database: %w", err)
	}
	defer conn.Release()
	if _, err := conn.Exec(ctx, "LISTEN "+channelDenied); err != nil {
		return fmt.Errorf("listening for what is refused: %w", err)
	}
	_, err = conn.Conn().WaitForNotification(ctx)
	if err != nil {
		// A connection that was waiting is of no use to others.
		_ = conn.Conn().Close(context.WithoutCancel(ctx))
		return fmt.Errorf("listening for what is refused: %w", err)
	}
	_, err = conn.Exec(ctx, "UNLISTEN "+channelDenied)
	return err
}
