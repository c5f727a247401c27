package postgres

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mintmark-dev/mintmark/internal/store"
)

// Usage gives how much the versions of a credential were used, latest first.
func (s *Store) Usage(ctx context.Context, tenant store.Tenant, uid string) ([]store.VersionUsage, error) {
	var usage []store.VersionUsage
	err := s.as(ctx, tenant, reading, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, "SELECT version, prefix, uses, denied, last_used, last_client, last_slot FROM usage WHERE uid = $1 ORDER BY version DESC", store.Plain(uid))
		if err != nil {
			return err
		}
		usage, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (u store.VersionUsage, err error) {
			var used *time.Time
			var client *netip.Prefix
			err = row.Scan(&u.Version, &u.Prefix, &u.Uses, &u.Denied, &used, &client, &u.LastSlot)
			if used != nil {
				u.LastUsed = used.UTC()
			}
			if client != nil {
				u.LastClient = *client
			}
			return u, err
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the usage of %s: %w", uid, err)
	}
	return usage, nil
}

// Analytics works out what came of the requests of some days.
func (s *Store) Analytics(ctx context.Context, tenant store.Tenant, f store.AnalyticsFilter) (store.Analytics, error) {
	var a store.Analytics
	err := s.as(ctx, tenant, pgx.TxOptions{AccessMode: pgx.ReadOnly, IsoLevel: pgx.RepeatableRead}, func(tx pgx.Tx) error {
		for _, part := range []func(context.Context, pgx.Tx, store.Tenant, store.AnalyticsFilter, *store.Analytics) error{daily, top, latency, idle, totals} {
			if err := part(ctx, tx, tenant, f, &a); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return store.Analytics{}, fmt.Errorf("working out analytics: %w", err)
	}
	return a, nil
}

// days narrows to the days asked for, and to the credential.
func days(t store.Tenant, f store.AnalyticsFilter) where {
	var w where
	w.tenant(t)
	if !f.Since.IsZero() {
		w.and("day >= ?::date", f.Since.UTC().Format(time.DateOnly))
	}
	if !f.Until.IsZero() {
		w.and("day <= ?::date", f.Until.UTC().Format(time.DateOnly))
	}
	if f.UID != "" {
		w.and("uid = ?", f.UID)
	}
	return w
}

func daily(ctx context.Context, tx pgx.Tx, t store.Tenant, f store.AnalyticsFilter, a *store.Analytics) error {
	w := days(t, f)
	rows, err := tx.Query(ctx, "SELECT day, sum(allowed)::bigint, sum(denied)::bigint FROM usage_daily"+w.text()+" GROUP BY day ORDER BY day", w.arguments...)
	if err != nil {
		return err
	}
	a.Daily, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (d store.Day, err error) {
		return d, row.Scan(&d.Day, &d.Allowed, &d.Denied)
	})
	for _, d := range a.Daily {
		a.Allowed += d.Allowed
		a.Denied += d.Denied
	}
	return err
}

func top(ctx context.Context, tx pgx.Tx, t store.Tenant, f store.AnalyticsFilter, a *store.Analytics) error {
	w := days(t, f)
	w.and("uid <> ?", "")
	rows, err := tx.Query(ctx, `SELECT uid, max(subject), max(namespace), sum(allowed)::bigint, sum(denied)::bigint FROM usage_daily`+w.text()+
		fmt.Sprintf(" GROUP BY uid ORDER BY sum(allowed) + sum(denied) DESC, uid LIMIT %d", f.TopSize()), w.arguments...)
	if err != nil {
		return err
	}
	a.Top, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (c store.CredentialTotal, err error) {
		return c, row.Scan(&c.UID, &c.Subject, &c.Namespace, &c.Allowed, &c.Denied)
	})
	return err
}

// latency is of the whole tenant, for it is not counted by credential.
func latency(ctx context.Context, tx pgx.Tx, t store.Tenant, f store.AnalyticsFilter, a *store.Analytics) error {
	f.UID = ""
	w := days(t, f)
	rows, err := tx.Query(ctx, "SELECT bucket, sum(count)::bigint FROM latency_daily"+w.text()+" GROUP BY bucket", w.arguments...)
	if err != nil {
		return err
	}
	var buckets [store.LatencyBuckets]int64
	var bucket int16
	var count int64
	_, err = pgx.ForEachRow(rows, []any{&bucket, &count}, func() error {
		if bucket >= 0 && int(bucket) < len(buckets) {
			buckets[bucket] = count
		}
		return nil
	})
	a.Latency = store.PercentilesOf(buckets)
	return err
}

// lastUsed is when each credential was used last. It is worked out once for all of them:
// looked up for each it takes as many look-ups as there are credentials.
const lastUsed = "SELECT uid, max(last_used) AS last_used FROM usage"

// ofInventory narrows both the inventory and usage.
func ofInventory(t store.Tenant, f store.AnalyticsFilter) (w where) {
	w.tenant(t)
	if f.UID != "" {
		w.and("uid = ?", f.UID)
	}
	return w
}

func idle(ctx context.Context, tx pgx.Tx, t store.Tenant, f store.AnalyticsFilter, a *store.Analytics) error {
	if f.IdleBefore.IsZero() {
		return nil
	}
	w := ofInventory(t, f)
	used := lastUsed + w.text() + " GROUP BY uid"
	w.and("(last_used IS NULL OR last_used < ?)", f.IdleBefore)
	w.and("state = ?", store.StateActive)
	rows, err := tx.Query(ctx, "SELECT uid, lower(kind) || ':' || namespace || ':' || name, namespace, last_used FROM credentials LEFT JOIN ("+used+") u USING (uid)"+w.text()+
		fmt.Sprintf(" ORDER BY last_used NULLS FIRST, uid LIMIT %d", store.MaxIdle), w.arguments...)
	if err != nil {
		return err
	}
	a.Idle, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (i store.IdleCredential, err error) {
		var used *time.Time
		if err := row.Scan(&i.UID, &i.Subject, &i.Namespace, &used); err != nil {
			return i, err
		}
		if used != nil {
			i.LastUsed = used.UTC()
		}
		return i, nil
	})
	return err
}

// totals count the inventory.
func totals(ctx context.Context, tx pgx.Tx, t store.Tenant, f store.AnalyticsFilter, a *store.Analytics) error {
	if f.IdleBefore.IsZero() {
		return nil
	}
	now := f.Now
	if now.IsZero() {
		now = time.Unix(0, 0)
	}
	w := ofInventory(t, f)
	used := lastUsed + w.text() + " GROUP BY uid"
	w.and("state <> ?", store.StateDeleted)
	n := len(w.arguments)
	return tx.QueryRow(ctx, fmt.Sprintf(`SELECT count(*) FILTER (WHERE lives AND used), count(*) FILTER (WHERE lives AND NOT used),
			count(*) FILTER (WHERE NOT lives AND state <> 'Revoked'), count(*) FILTER (WHERE state = 'Revoked')
		FROM (SELECT state, state = 'Active' AND coalesce(expires > $%d, true) AS lives, coalesce(last_used >= $%d, false) AS used
			FROM credentials LEFT JOIN (%s) u USING (uid)%s) c`, n+1, n+2, used, w.text()), append(w.arguments, now, f.IdleBefore)...).
		Scan(&a.Totals.Active, &a.Totals.Inactive, &a.Totals.Expired, &a.Totals.Revoked)
}
