package postgres

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mintmark-dev/mintmark/internal/audit"
	"github.com/mintmark-dev/mintmark/internal/store"
)

var eventColumns = []string{
	"at", "id", "batch", "ordinal", "type", "outcome", "reason", "subject", "uid", "kind", "namespace", "name", "class", "version", "slot", "prefix",
	"actor", "client", "user_agent", "method", "endpoint", "request_id", "server", "took", "detail",
}

// Append implements audit.Store. The batch and what it adds to usage are stored together.
func (s *Store) Append(ctx context.Context, b *audit.Batch) error { return s.append(ctx, b, false) }

// AppendOnce is Append for events that are recorded once for good, whoever tells of them:
// store.ErrDuplicate where one of them is there already, and then nothing is stored.
func (s *Store) AppendOnce(ctx context.Context, b *audit.Batch) error { return s.append(ctx, b, true) }

func (s *Store) append(ctx context.Context, b *audit.Batch, once bool) error {
	months, err := s.byMonth(ctx, b.Events)
	if err != nil {
		return err
	}
	err = s.as(ctx, store.AllTenants(), writing, func(tx pgx.Tx) error {
		number, err := insertBatch(ctx, tx, b)
		if err != nil || number == 0 {
			return err
		}
		if once {
			if err := claim(ctx, tx, b.Events); err != nil {
				return err
			}
		}
		for partition, events := range months {
			if err := copyEvents(ctx, tx, partition, number, b.Events, events); err != nil {
				return err
			}
		}
		return addUsage(ctx, tx, store.DeltaOf(b.Events))
	})
	if err != nil {
		if hasCode(err, "42P01") { // a partition that retention dropped
			s.mu.Lock()
			clear(s.partitions)
			s.mu.Unlock()
		}
		return fmt.Errorf("storing batch %d of chain %s: %w", b.Sequence, b.Chain, err)
	}
	return nil
}

// byMonth gives the places of the events of each partition.
func (s *Store) byMonth(ctx context.Context, events []audit.Event) (map[string][]int, error) {
	months := map[string][]int{}
	for i := range events {
		partition, err := s.partition(ctx, events[i].At)
		if err != nil {
			return nil, err
		}
		months[partition] = append(months[partition], i)
	}
	return months, nil
}

// insertBatch gives the batch's number; 0 where it is stored already.
func insertBatch(ctx context.Context, tx pgx.Tx, b *audit.Batch) (number int64, err error) {
	first, last := span(b.Events)
	err = tx.QueryRow(ctx, `INSERT INTO batches (chain, sequence, previous, digest, events, first_at, last_at) VALUES ($1, $2, $3, $4, $5, $6, $7)
		ON CONFLICT (chain, sequence) DO NOTHING RETURNING id`,
		b.Chain, b.Sequence, b.Previous[:], b.Digest[:], len(b.Events), first, last).Scan(&number)
	if err == nil || !errors.Is(err, pgx.ErrNoRows) {
		return number, err
	}
	var digest []byte
	if err := tx.QueryRow(ctx, "SELECT digest FROM batches WHERE chain = $1 AND sequence = $2", b.Chain, b.Sequence).Scan(&digest); err != nil {
		return 0, err
	}
	if !bytes.Equal(digest, b.Digest[:]) {
		return 0, store.ErrConflict
	}
	return 0, nil
}

func span(events []audit.Event) (first, last time.Time) {
	for i := range events {
		if at := events[i].At; i == 0 || at.Before(first) {
			first = at
		}
		if at := events[i].At; at.After(last) {
			last = at
		}
	}
	return first, last
}

// claim takes the events' IDs, once for good.
func claim(ctx context.Context, tx pgx.Tx, events []audit.Event) error {
	ids, times := make([][16]byte, len(events)), make([]time.Time, len(events))
	for i := range events {
		ids[i], times[i] = events[i].ID, events[i].At
	}
	_, err := tx.Exec(ctx, "INSERT INTO event_ids (id, at) SELECT * FROM unnest($1::uuid[], $2::timestamptz[])", ids, times)
	if hasCode(err, "23505") {
		return store.ErrDuplicate
	}
	return err
}

// Missing gives the IDs of those of the events that AppendOnce has not stored. What is
// older than what retention has cleared out counts as stored: it was, or would not stay.
func (s *Store) Missing(ctx context.Context, events []audit.Event) ([]audit.ID, error) {
	asked, times := make([][16]byte, len(events)), make([]time.Time, len(events))
	for i := range events {
		asked[i], times[i] = events[i].ID, events[i].At
	}
	rows, err := s.pool.Query(ctx, `SELECT a.id FROM unnest($1::uuid[], $2::timestamptz[]) WITH ORDINALITY a (id, at, n)
		WHERE a.at >= (SELECT cleared_before FROM retention) AND NOT EXISTS (SELECT FROM event_ids e WHERE e.id = a.id) ORDER BY n`, asked, times)
	if err != nil {
		return nil, fmt.Errorf("looking for events: %w", err)
	}
	missing, err := pgx.CollectRows(rows, pgx.RowTo[[16]byte])
	if err != nil {
		return nil, fmt.Errorf("looking for events: %w", err)
	}
	out := make([]audit.ID, len(missing))
	for i := range missing {
		out[i] = missing[i]
	}
	return out, nil
}

func copyEvents(ctx context.Context, tx pgx.Tx, partition string, batch int64, events []audit.Event, which []int) error {
	_, err := tx.CopyFrom(ctx, pgx.Identifier{partition}, eventColumns, pgx.CopyFromSlice(len(which), func(i int) ([]any, error) {
		e := &events[which[i]]
		var client *netip.Prefix
		if e.Client.IsValid() {
			host := netip.PrefixFrom(e.Client, e.Client.BitLen())
			client = &host
		}
		var detail []byte
		if len(e.Detail) > 0 {
			text, err := json.Marshal(e.Detail)
			if err != nil {
				return nil, err
			}
			detail = text
		}
		return []any{
			e.At, [16]byte(e.ID), batch, int32(which[i]), string(e.Type), string(e.Outcome), e.Reason, e.Subject, e.UID, e.Kind, e.Namespace, e.Name,
			e.Class, e.Version, string(e.Slot), e.Prefix, string(e.Actor), client, string(e.UserAgent), e.Method, string(e.Endpoint),
			string(e.RequestID), e.Server, e.Took.Microseconds(), detail,
		}, nil
	}))
	return err
}

// addUsage adds in the order of the keys, so that two servers that do never wait for
// each other in a circle.
func addUsage(ctx context.Context, tx pgx.Tx, d store.Delta) error {
	batch := new(pgx.Batch)
	if len(d.Versions) > 0 {
		queueVersions(batch, d)
	}
	if len(d.Days) > 0 {
		queueDays(batch, d)
	}
	if len(d.Latency) > 0 {
		queueLatency(batch, d)
	}
	if batch.Len() == 0 {
		return nil
	}
	return tx.SendBatch(ctx, batch).Close()
}

func queueVersions(batch *pgx.Batch, d store.Delta) {
	var (
		uids, namespaces, subjects, prefixes, slots []string
		versions, uses, denied                      []int64
		used                                        []*time.Time
		clients                                     []*netip.Prefix
	)
	for _, k := range sortedKeys(d.Versions, func(a, b store.VersionKey) int {
		return cmp.Or(cmp.Compare(a.UID, b.UID), cmp.Compare(a.Version, b.Version))
	}) {
		v := d.Versions[k]
		uids, versions = append(uids, k.UID), append(versions, k.Version)
		namespaces, subjects, prefixes = append(namespaces, v.Namespace), append(subjects, v.Subject), append(prefixes, v.Prefix)
		uses, denied, slots = append(uses, v.Uses), append(denied, v.Denied), append(slots, string(v.LastSlot))
		used, clients = append(used, optional(v.LastUsed, v.LastUsed.IsZero())), append(clients, optional(v.LastClient, !v.LastClient.IsValid()))
	}
	batch.Queue(`INSERT INTO usage AS u (uid, version, namespace, subject, prefix, uses, denied, last_used, last_client, last_slot)
		SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::bigint[], $8::timestamptz[], $9::cidr[], $10::text[])
		ON CONFLICT (uid, version) DO UPDATE SET uses = u.uses + excluded.uses, denied = u.denied + excluded.denied,
			prefix = coalesce(nullif(excluded.prefix, ''), u.prefix), last_used = greatest(u.last_used, excluded.last_used),
			last_client = CASE WHEN excluded.last_used >= coalesce(u.last_used, '-infinity') THEN coalesce(excluded.last_client, u.last_client) ELSE u.last_client END,
			last_slot = CASE WHEN excluded.last_used >= coalesce(u.last_used, '-infinity') THEN excluded.last_slot ELSE u.last_slot END`,
		uids, versions, namespaces, subjects, prefixes, uses, denied, used, clients, slots)
}

func optional[T any](v T, none bool) *T {
	if none {
		return nil
	}
	return &v
}

func queueDays(batch *pgx.Batch, d store.Delta) {
	var (
		days, uids, namespaces, subjects []string
		allowed, denied                  []int64
	)
	for _, k := range sortedKeys(d.Days, func(a, b store.DayKey) int { return cmp.Or(cmp.Compare(a.Day, b.Day), cmp.Compare(a.UID, b.UID)) }) {
		v := d.Days[k]
		days, uids, namespaces, subjects = append(days, k.Day), append(uids, k.UID), append(namespaces, v.Namespace), append(subjects, v.Subject)
		allowed, denied = append(allowed, v.Allowed), append(denied, v.Denied)
	}
	batch.Queue(`INSERT INTO usage_daily AS u (day, uid, namespace, subject, allowed, denied)
		SELECT day::date, uid, namespace, subject, allowed, denied FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[])
			AS t (day, uid, namespace, subject, allowed, denied)
		ON CONFLICT (day, uid) DO UPDATE SET allowed = u.allowed + excluded.allowed, denied = u.denied + excluded.denied`,
		days, uids, namespaces, subjects, allowed, denied)
}

func queueLatency(batch *pgx.Batch, d store.Delta) {
	var (
		days, namespaces []string
		buckets          []int16
		counts           []int64
	)
	for _, k := range sortedKeys(d.Latency, func(a, b store.LatencyKey) int {
		return cmp.Or(cmp.Compare(a.Day, b.Day), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Bucket, b.Bucket))
	}) {
		days, namespaces = append(days, k.Day), append(namespaces, k.Namespace)
		buckets, counts = append(buckets, int16(k.Bucket)), append(counts, d.Latency[k])
	}
	batch.Queue(`INSERT INTO latency_daily AS l (day, namespace, bucket, count)
		SELECT day::date, namespace, bucket, count FROM unnest($1::text[], $2::text[], $3::smallint[], $4::bigint[]) AS t (day, namespace, bucket, count)
		ON CONFLICT (day, namespace, bucket) DO UPDATE SET count = l.count + excluded.count`, days, namespaces, buckets, counts)
}

const selectEvents = `SELECT at, id, type, outcome, reason, subject, uid, kind, namespace, name, class, version, slot, prefix, actor, client, user_agent, method,
	endpoint, request_id, server, took, detail FROM events`

func scanEvent(row pgx.CollectableRow) (audit.Event, error) {
	var (
		e       audit.Event
		id      [16]byte
		client  *netip.Prefix
		took    int64
		details []byte
	)
	err := row.Scan(&e.At, &id, &e.Type, &e.Outcome, &e.Reason, &e.Subject, &e.UID, &e.Kind, &e.Namespace, &e.Name, &e.Class, &e.Version, &e.Slot,
		&e.Prefix, &e.Actor, &client, &e.UserAgent, &e.Method, &e.Endpoint, &e.RequestID, &e.Server, &took, &details)
	if err != nil {
		return e, err
	}
	e.ID, e.At, e.Took = id, e.At.UTC(), time.Duration(took)*time.Microsecond
	if client != nil {
		e.Client = client.Addr()
	}
	if details != nil {
		if err := json.Unmarshal(details, &e.Detail); err != nil {
			return e, fmt.Errorf("the details of event %s: %w", e.ID, err)
		}
	}
	return e, nil
}

// Events lists events of the tenant.
func (s *Store) Events(ctx context.Context, tenant store.Tenant, f store.EventFilter, p store.Page) (store.Events, error) {
	l := listing{tenant: tenant, filter: f, order: "DESC", beyond: "<", size: p.Size() + 1}
	if p.OldestFirst {
		l.order, l.beyond = "ASC", ">"
	}
	if p.Cursor != "" {
		after, err := store.ParseCursor(p.Cursor)
		if err != nil {
			return store.Events{}, err
		}
		l.after = &after
	}
	var page store.Events
	err := s.as(ctx, tenant, reading, func(tx pgx.Tx) (err error) {
		if l.isNetwork() {
			page.Items, err = l.byMonth(ctx, tx)
		} else {
			page.Items, err = l.run(ctx, tx)
		}
		return err
	})
	if err != nil {
		return store.Events{}, fmt.Errorf("listing events: %w", err)
	}
	if len(page.Items) > p.Size() {
		page.Items = page.Items[:p.Size()]
		last := page.Items[p.Size()-1]
		page.Next = store.Position{At: last.At, ID: last.ID}.Cursor()
	}
	return page, nil
}

// listing is a page of events on its way.
type listing struct {
	tenant        store.Tenant
	filter        store.EventFilter
	after         *store.Position
	order, beyond string
	size          int
}

func (l *listing) where() (w where) {
	w.tenant(l.tenant)
	w.filter(l.filter)
	if l.after != nil {
		w.arguments = append(w.arguments, l.after.At, [16]byte(l.after.ID))
		w.conditions = append(w.conditions, fmt.Sprintf("(at, id) %s ($%d, $%d)", l.beyond, len(w.arguments)-1, len(w.arguments)))
	}
	return w
}

func (l *listing) run(ctx context.Context, tx pgx.Tx) ([]audit.Event, error) {
	w := l.where()
	return queryEvents(ctx, tx, selectEvents+w.text()+l.tail(), w.arguments)
}

func (l *listing) tail() string {
	return fmt.Sprintf(" ORDER BY at %s, id %s LIMIT %d", l.order, l.order, l.size)
}

func queryEvents(ctx context.Context, tx pgx.Tx, query string, arguments []any) ([]audit.Event, error) {
	rows, err := tx.Query(ctx, query, arguments...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scanEvent)
}

// isNetwork: the events of many addresses are asked for, which no index has in order.
func (l *listing) isNetwork() bool {
	if !l.filter.Client.IsValid() || l.filter.RequestID != "" || l.filter.UID != "" {
		return false
	}
	first, last := store.RangeOf(l.filter.Client)
	return first != last
}

// fewOfNetwork events of a month are sorted; of more, some are found soon by going back in
// time.
const fewOfNetwork = 20_000

// byMonth lists the events of a network a month at a time. The planner takes addresses to
// be spread over time, and looks for those of one bad week among all that came after it.
func (l *listing) byMonth(ctx context.Context, tx pgx.Tx) (all []audit.Event, err error) {
	months, err := l.months(ctx, tx)
	if err != nil {
		return nil, err
	}
	if _, err := tx.Exec(ctx, "SET LOCAL enable_seqscan = off"); err != nil {
		return nil, err
	}
	for _, month := range months {
		part := *l
		part.size = l.size - len(all)
		part.filter.Since = latest(l.filter.Since, month)
		if end := month.AddDate(0, 1, 0); l.filter.Until.IsZero() || end.Before(l.filter.Until) {
			part.filter.Until = end
		}
		if !part.filter.Since.Before(part.filter.Until) {
			continue
		}
		found, err := part.ofMonth(ctx, tx)
		if err != nil {
			return nil, err
		}
		if all = append(all, found...); len(all) >= l.size {
			break
		}
	}
	return all, nil
}

func (l *listing) ofMonth(ctx context.Context, tx pgx.Tx) ([]audit.Event, error) {
	w := l.where()
	var n int
	count := fmt.Sprintf("SELECT count(*) FROM (SELECT FROM events%s LIMIT %d) e", w.text(), fewOfNetwork+1)
	if err := tx.QueryRow(ctx, count, w.arguments...).Scan(&n); err != nil || n == 0 {
		return nil, err
	}
	if n > fewOfNetwork {
		return l.run(ctx, tx)
	}
	return queryEvents(ctx, tx, "WITH of_network AS MATERIALIZED ("+selectEvents+w.text()+") SELECT * FROM of_network"+l.tail(), w.arguments)
}

// months are those that there are partitions of, in the order of the list, from the
// cursor on.
func (l *listing) months(ctx context.Context, tx pgx.Tx) (months []time.Time, err error) {
	rows, err := tx.Query(ctx, `SELECT to_timestamp(right(c.relname, 6) || ' +00', 'YYYYMM TZH') AS month FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
		WHERE i.inhparent = 'events'::regclass AND c.relname ~ '^events_[0-9]{6}$' ORDER BY month `+l.order)
	if err != nil {
		return nil, err
	}
	var month time.Time
	_, err = pgx.ForEachRow(rows, []any{&month}, func() error {
		month = month.UTC()
		passed := l.after != nil && (l.beyond == "<" && month.After(l.after.At) || l.beyond == ">" && !month.AddDate(0, 1, 0).After(l.after.At))
		if !passed {
			months = append(months, month)
		}
		return nil
	})
	return months, err
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (w *where) filter(f store.EventFilter) {
	if len(f.Types) > 0 {
		w.and("type = ANY(?)", texts(f.Types))
	}
	if len(f.Outcomes) > 0 {
		w.and("outcome = ANY(?)", texts(f.Outcomes))
	}
	for condition, value := range map[string]string{
		"reason = ?": f.Reason, "namespace = ?": f.Namespace, "uid = ? AND uid <> ''": f.UID, "subject = ?": f.Subject, "request_id = ?": f.RequestID,
	} {
		if value != "" {
			w.and(condition, value)
		}
	}
	if f.Client.IsValid() {
		// As a range, which an index can answer below row-level security; one address as
		// such, for then the index has its events in order.
		first, last := store.RangeOf(f.Client)
		if first == last {
			w.and("client = ?", netip.PrefixFrom(first, first.BitLen()))
		} else {
			w.and("client >= ?", netip.PrefixFrom(first, first.BitLen()))
			w.and("client <= ?", netip.PrefixFrom(last, last.BitLen()))
		}
	}
	if !f.Since.IsZero() {
		w.and("at >= ?", f.Since)
	}
	if !f.Until.IsZero() {
		w.and("at < ?", f.Until)
	}
}

func texts[T ~string](values []T) []string {
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = string(v)
	}
	return out
}

// chainsAfter steps from one name of a chain to the next in the index over (chain, sequence),
// and reads of each its first and its last batch.
const chainsAfter = `WITH RECURSIVE names AS (
		(SELECT chain FROM batches WHERE chain > $1 ORDER BY chain LIMIT 1)
		UNION ALL
		SELECT (SELECT b.chain FROM batches b WHERE b.chain > n.chain ORDER BY b.chain LIMIT 1) FROM names n WHERE n.chain IS NOT NULL
	), page AS (SELECT chain FROM names WHERE chain IS NOT NULL LIMIT $2)
	SELECT p.chain, f.first_at, l.last_at, f.sequence, l.sequence, l.digest FROM page p
	CROSS JOIN LATERAL (SELECT first_at, sequence FROM batches b WHERE b.chain = p.chain ORDER BY sequence LIMIT 1) f
	CROSS JOIN LATERAL (SELECT last_at, sequence, digest FROM batches b WHERE b.chain = p.chain ORDER BY sequence DESC LIMIT 1) l
	ORDER BY p.chain`

// Chains lists runs of servers that have stored anything, those after a name, in the order of
// their names.
func (s *Store) Chains(ctx context.Context, after string, limit int) ([]store.Chain, error) {
	rows, err := s.pool.Query(ctx, chainsAfter, store.Plain(after), limit)
	if err != nil {
		return nil, fmt.Errorf("listing the chains of the audit log: %w", err)
	}
	chains, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (c store.Chain, err error) {
		var head []byte
		if err := row.Scan(&c.Name, &c.First, &c.Last, &c.FirstNumber, &c.LastNumber, &head); err != nil {
			return c, err
		}
		copy(c.Head[:], head)
		c.First, c.Last = c.First.UTC(), c.Last.UTC()
		return c, nil
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
		number      int64
		batch       *audit.Batch
		first, last time.Time
		old         bool
	}
	var batches []*audit.Batch
	err := s.as(ctx, store.AllTenants(), reading, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `SELECT id, sequence, previous, digest, events, first_at, last_at, first_at < (SELECT cleared_before FROM retention)
			FROM batches WHERE chain = $1 AND sequence > $2 ORDER BY sequence LIMIT $3`, store.Plain(chain), after, limit)
		if err != nil {
			return err
		}
		var sizes []int
		found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (b stored, err error) {
			var previous, digest []byte
			var events int
			b.batch = &audit.Batch{Chain: chain}
			err = row.Scan(&b.number, &b.batch.Sequence, &previous, &digest, &events, &b.first, &b.last, &b.old)
			copy(b.batch.Previous[:], previous)
			copy(b.batch.Digest[:], digest)
			sizes = append(sizes, events)
			return b, err
		})
		if err != nil {
			return err
		}
		for i, b := range found[:store.Fitting(sizes)] {
			rows, err := tx.Query(ctx, selectEvents+" WHERE batch = $1 AND at >= $2 AND at <= $3 ORDER BY ordinal", b.number, b.first, b.last)
			if err != nil {
				return err
			}
			if b.batch.Events, err = pgx.CollectRows(rows, scanEvent); err != nil {
				return err
			}
			b.batch.Cleared = b.old && len(b.batch.Events) < sizes[i]
			batches = append(batches, b.batch)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading chain %s of the audit log: %w", chain, err)
	}
	return batches, nil
}
