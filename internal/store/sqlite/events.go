package sqlite

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strings"
	"time"

	"github.com/mintmark-dev/mintmark/internal/audit"
	"github.com/mintmark-dev/mintmark/internal/store"
)

// Append implements audit.Store. The batch and what it adds to usage are stored together.
func (s *Store) Append(ctx context.Context, b *audit.Batch) error { return s.append(ctx, b, false) }

// AppendOnce is Append for events that are recorded once for good, whoever tells of them:
// store.ErrDuplicate where one of them is there already, and then nothing is stored.
func (s *Store) AppendOnce(ctx context.Context, b *audit.Batch) error { return s.append(ctx, b, true) }

func (s *Store) append(ctx context.Context, b *audit.Batch, once bool) error {
	err := s.write(ctx, func(tx *sql.Tx) error {
		number, err := insertBatch(ctx, tx, b)
		if err != nil || number == 0 {
			return err
		}
		if once {
			if err := claim(ctx, tx, b.Events); err != nil {
				return err
			}
		}
		if err := insertEvents(ctx, tx, number, b.Events); err != nil {
			return err
		}
		return addUsage(ctx, tx, store.DeltaOf(b.Events))
	})
	if err != nil {
		return fmt.Errorf("storing batch %d of chain %s: %w", b.Sequence, b.Chain, err)
	}
	return nil
}

// insertBatch gives the batch's number; 0 where it is stored already.
func insertBatch(ctx context.Context, tx *sql.Tx, b *audit.Batch) (number int64, err error) {
	var first, last time.Time
	for i := range b.Events {
		if at := b.Events[i].At; i == 0 || at.Before(first) {
			first = at
		}
		if at := b.Events[i].At; at.After(last) {
			last = at
		}
	}
	err = tx.QueryRowContext(ctx, `INSERT INTO batches (chain, sequence, previous, digest, events, first_at, last_at) VALUES (?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (chain, sequence) DO NOTHING RETURNING id`,
		b.Chain, int64(b.Sequence), b.Previous[:], b.Digest[:], len(b.Events), first.UnixMicro(), last.UnixMicro()).Scan(&number)
	if err == nil || !errors.Is(err, sql.ErrNoRows) {
		return number, err
	}
	var digest []byte
	if err := tx.QueryRowContext(ctx, "SELECT digest FROM batches WHERE chain = ? AND sequence = ?", b.Chain, int64(b.Sequence)).Scan(&digest); err != nil {
		return 0, err
	}
	if !bytes.Equal(digest, b.Digest[:]) {
		return 0, store.ErrConflict
	}
	return 0, nil
}

// claim takes the events' IDs, once for good.
func claim(ctx context.Context, tx *sql.Tx, events []audit.Event) error {
	insert, err := tx.PrepareContext(ctx, "INSERT INTO event_ids (id, at) VALUES (?, ?)")
	if err != nil {
		return err
	}
	defer insert.Close()
	for i := range events {
		if _, err := insert.ExecContext(ctx, events[i].ID[:], events[i].At.UnixMicro()); duplicate(err) {
			return store.ErrDuplicate
		} else if err != nil {
			return err
		}
	}
	return nil
}

// Missing gives the IDs of those of the events that AppendOnce has not stored. What is
// older than what retention has cleared out counts as stored: it was, or would not stay.
func (s *Store) Missing(ctx context.Context, events []audit.Event) ([]audit.ID, error) {
	var missing []audit.ID
	for i := range events {
		var there bool
		err := s.readers.QueryRowContext(ctx, "SELECT EXISTS (SELECT 1 FROM event_ids WHERE id = ?) OR ? < (SELECT cleared_before FROM retention)",
			events[i].ID[:], events[i].At.UnixMicro()).Scan(&there)
		if err != nil {
			return nil, fmt.Errorf("looking for events: %w", err)
		}
		if !there {
			missing = append(missing, events[i].ID)
		}
	}
	return missing, nil
}

const eventColumns = `at, id, type, outcome, reason, subject, uid, kind, namespace, name, class, version, slot, prefix, actor, client, user_agent, method,
	endpoint, request_id, server, took, detail`

var insertEvent = fmt.Sprintf("INSERT INTO events (%s, batch, ordinal) VALUES (?%s)", eventColumns, strings.Repeat(", ?", 24))

func insertEvents(ctx context.Context, tx *sql.Tx, batch int64, events []audit.Event) error {
	insert, err := tx.PrepareContext(ctx, insertEvent)
	if err != nil {
		return err
	}
	defer insert.Close()
	for i := range events {
		e := &events[i]
		var client []byte
		if e.Client.IsValid() {
			client = e.Client.AsSlice()
		}
		var detail any
		if len(e.Detail) > 0 {
			text, err := json.Marshal(e.Detail)
			if err != nil {
				return err
			}
			detail = string(text)
		}
		_, err := insert.ExecContext(ctx, e.At.UnixMicro(), e.ID[:], string(e.Type), string(e.Outcome), e.Reason, e.Subject, e.UID, e.Kind, e.Namespace, e.Name,
			e.Class, e.Version, string(e.Slot), e.Prefix, string(e.Actor), client, string(e.UserAgent), e.Method, string(e.Endpoint), string(e.RequestID),
			e.Server, e.Took.Microseconds(), detail, batch, i)
		if err != nil {
			return err
		}
	}
	return nil
}

func addUsage(ctx context.Context, tx *sql.Tx, d store.Delta) error {
	for k, v := range d.Versions {
		var client any
		if v.LastClient.IsValid() {
			client = v.LastClient.String()
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO usage AS u (uid, version, namespace, subject, prefix, uses, denied, last_used, last_client, last_slot)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
			ON CONFLICT (uid, version) DO UPDATE SET uses = u.uses + excluded.uses, denied = u.denied + excluded.denied,
				prefix = coalesce(nullif(excluded.prefix, ''), u.prefix),
				last_client = CASE WHEN excluded.last_used >= coalesce(u.last_used, 0) THEN coalesce(excluded.last_client, u.last_client) ELSE u.last_client END,
				last_slot = CASE WHEN excluded.last_used >= coalesce(u.last_used, 0) THEN excluded.last_slot ELSE u.last_slot END,
				last_used = nullif(max(coalesce(u.last_used, 0), coalesce(excluded.last_used, 0)), 0)`,
			k.UID, k.Version, v.Namespace, v.Subject, v.Prefix, v.Uses, v.Denied, micros(v.LastUsed), client, string(v.LastSlot))
		if err != nil {
			return err
		}
	}
	for k, v := range d.Days {
		_, err := tx.ExecContext(ctx, `INSERT INTO usage_daily AS u (day, uid, namespace, subject, allowed, denied) VALUES (?, ?, ?, ?, ?, ?)
			ON CONFLICT (day, uid) DO UPDATE SET allowed = u.allowed + excluded.allowed, denied = u.denied + excluded.denied`,
			k.Day, k.UID, v.Namespace, v.Subject, v.Allowed, v.Denied)
		if err != nil {
			return err
		}
	}
	for k, n := range d.Latency {
		_, err := tx.ExecContext(ctx, `INSERT INTO latency_daily AS l (day, namespace, bucket, count) VALUES (?, ?, ?, ?)
			ON CONFLICT (day, namespace, bucket) DO UPDATE SET count = l.count + excluded.count`, k.Day, k.Namespace, k.Bucket, n)
		if err != nil {
			return err
		}
	}
	return nil
}

func scanEvent(rows *sql.Rows) (audit.Event, error) {
	var (
		e          audit.Event
		at, took   int64
		id, client []byte
		detail     sql.NullString
	)
	err := rows.Scan(&at, &id, &e.Type, &e.Outcome, &e.Reason, &e.Subject, &e.UID, &e.Kind, &e.Namespace, &e.Name, &e.Class, &e.Version, &e.Slot, &e.Prefix,
		&e.Actor, &client, &e.UserAgent, &e.Method, &e.Endpoint, &e.RequestID, &e.Server, &took, &detail)
	if err != nil {
		return e, err
	}
	if len(id) != len(e.ID) {
		return e, fmt.Errorf("the id of an event has %d bytes", len(id))
	}
	e.ID, e.At, e.Took = audit.ID(id), time.UnixMicro(at).UTC(), time.Duration(took)*time.Microsecond
	if len(client) > 0 {
		e.Client, _ = netip.AddrFromSlice(client)
	}
	if detail.Valid {
		if err := json.Unmarshal([]byte(detail.String), &e.Detail); err != nil {
			return e, fmt.Errorf("the details of event %s: %w", e.ID, err)
		}
	}
	return e, nil
}

// Events lists events of the tenant.
func (s *Store) Events(ctx context.Context, tenant store.Tenant, f store.EventFilter, p store.Page) (store.Events, error) {
	var w where
	w.tenant(tenant, "namespace")
	w.filter(f)
	order, beyond := "DESC", "<"
	if p.OldestFirst {
		order, beyond = "ASC", ">"
	}
	if p.Cursor != "" {
		after, err := store.ParseCursor(p.Cursor)
		if err != nil {
			return store.Events{}, err
		}
		w.and("(at, id) "+beyond+" (?, ?)", after.At.UnixMicro(), after.ID[:])
	}
	var page store.Events
	rows, err := s.readers.QueryContext(ctx, w.query("SELECT "+eventColumns+" FROM events", fmt.Sprintf("ORDER BY at %s, id %s", order, order)), w.arguments...)
	if err != nil {
		return store.Events{}, fmt.Errorf("listing events: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		e, err := scanEvent(rows)
		if err != nil {
			return store.Events{}, fmt.Errorf("listing events: %w", err)
		}
		if len(page.Items) == p.Size() {
			last := page.Items[p.Size()-1]
			page.Next = store.Position{At: last.At, ID: last.ID}.Cursor()
			return page, nil
		}
		page.Items = append(page.Items, e)
	}
	if err := rows.Err(); err != nil {
		return store.Events{}, fmt.Errorf("listing events: %w", err)
	}
	return page, nil
}

func (w *where) filter(f store.EventFilter) {
	if len(f.Types) > 0 {
		in(w, "type", f.Types)
	}
	if len(f.Outcomes) > 0 {
		in(w, "outcome", f.Outcomes)
	}
	for condition, value := range map[string]string{
		"reason = ?": f.Reason, "namespace = ?": f.Namespace, "uid = ? AND uid <> ''": f.UID, "subject = ?": f.Subject, "request_id = ?": f.RequestID,
	} {
		if value != "" {
			w.and(condition, value)
		}
	}
	if f.Client.IsValid() {
		// Addresses of four bytes and of sixteen sort among each other.
		first, last := store.RangeOf(f.Client)
		w.and("client >= ? AND client <= ? AND length(client) = ?", first.AsSlice(), last.AsSlice(), first.BitLen()/8)
	}
	if !f.Since.IsZero() {
		w.and("at >= ?", f.Since.UnixMicro())
	}
	if !f.Until.IsZero() {
		w.and("at < ?", f.Until.UnixMicro())
	}
}

func in[T ~string](w *where, column string, values []T) {
	arguments := make([]any, len(values))
	for i, v := range values {
		arguments[i] = string(v)
	}
	w.and(column+" IN (?"+strings.Repeat(", ?", len(values)-1)+")", arguments...)
}

// chainsAfter steps from one name of a chain to the next in the index over (chain, sequence),
// and reads of each its first and its last batch.
const chainsAfter = `WITH RECURSIVE names (chain) AS (
		SELECT min(chain) FROM batches WHERE chain > ?
		UNION ALL
		SELECT (SELECT min(b.chain) FROM batches b WHERE b.chain > n.chain) FROM names n WHERE n.chain IS NOT NULL
	), page AS (SELECT chain FROM names WHERE chain IS NOT NULL LIMIT ?)
	SELECT p.chain, f.first_at, l.last_at, f.sequence, l.sequence, l.digest FROM page p
	JOIN batches f ON f.chain = p.chain AND f.sequence = (SELECT min(sequence) FROM batches WHERE chain = p.chain)
	JOIN batches l ON l.chain = p.chain AND l.sequence = (SELECT max(sequence) FROM batches WHERE chain = p.chain)
	ORDER BY p.chain`

// Chains lists runs of servers that have stored anything, those after a name, in the order of
// their names.
func (s *Store) Chains(ctx context.Context, after string, limit int) ([]store.Chain, error) {
	rows, err := s.readers.QueryContext(ctx, chainsAfter, after, limit)
	chains, err := collect(rows, err, func(rows *sql.Rows) (c store.Chain, err error) {
		var first, last, from, to int64
		var head []byte
		err = rows.Scan(&c.Name, &first, &last, &from, &to, &head)
		c.First, c.Last, c.FirstNumber, c.LastNumber = time.UnixMicro(first).UTC(), time.UnixMicro(last).UTC(), uint64(from), uint64(to)
		copy(c.Head[:], head)
		return c, err
	})
	if err != nil {
		return nil, fmt.Errorf("listing the chains of the audit log: %w", err)
	}
	return chains, nil
}

// Batches gives batches of a chain, those after a sequence, with their events, in order: as
// many as store.Fitting lets be, and none where there are no more.
func (s *Store) Batches(ctx context.Context, chain string, after uint64, limit int) ([]*audit.Batch, error) {
	if after > math.MaxInt64 {
		return nil, nil
	}
	type stored struct {
		number int64
		batch  *audit.Batch
		old    bool
	}
	var sizes []int
	rows, err := s.readers.QueryContext(ctx, `SELECT id, sequence, previous, digest, events, first_at < (SELECT cleared_before FROM retention)
		FROM batches WHERE chain = ? AND sequence > ? ORDER BY sequence LIMIT ?`, chain, int64(after), limit)
	found, err := collect(rows, err, func(rows *sql.Rows) (b stored, err error) {
		var sequence int64
		var previous, digest []byte
		var events int
		err = rows.Scan(&b.number, &sequence, &previous, &digest, &events, &b.old)
		b.batch = &audit.Batch{Chain: chain, Sequence: uint64(sequence)}
		copy(b.batch.Previous[:], previous)
		copy(b.batch.Digest[:], digest)
		sizes = append(sizes, events)
		return b, err
	})
	if err != nil {
		return nil, fmt.Errorf("reading chain %s of the audit log: %w", chain, err)
	}
	var batches []*audit.Batch
	for i, b := range found[:store.Fitting(sizes)] {
		rows, err := s.readers.QueryContext(ctx, "SELECT "+eventColumns+" FROM events WHERE batch = ? ORDER BY ordinal", b.number)
		if b.batch.Events, err = collect(rows, err, scanEvent); err != nil {
			return nil, fmt.Errorf("reading chain %s of the audit log: %w", chain, err)
		}
		b.batch.Cleared = b.old && len(b.batch.Events) < sizes[i]
		batches = append(batches, b.batch)
	}
	return batches, nil
}
