-- What a server of schema version 2 does, a transaction to a paragraph. $N is the number of the round.

SELECT coalesce(max(version_id), 0) FROM goose_db_version WHERE is_applied

SELECT current_setting('server_version'), pg_database_size(current_database())

SELECT ensure_events_partition('2026-01-01'::date)

SELECT set_config('mintmark.tenant', '*', true);
INSERT INTO batches (chain, sequence, previous, digest, events, first_at, last_at) VALUES ('old/1', $N, '\x00', '\x01', 1, '2026-01-15 12:00:00+00', '2026-01-15 12:00:00+00')
  ON CONFLICT (chain, sequence) DO NOTHING RETURNING id;
INSERT INTO event_ids (id, at) SELECT * FROM unnest(ARRAY[md5('$N')::uuid], ARRAY['2026-01-15 12:00:00+00'::timestamptz]);
INSERT INTO events_202601 (at, id, batch, ordinal, type, outcome, reason, subject, uid, kind, namespace, name, class, version, slot, prefix, actor, client, user_agent, method,
  endpoint, request_id, server, took, detail) VALUES ('2026-01-15 12:00:00+00', md5('$N')::uuid, $N, 0, 'authentication', 'allowed', 'Accepted', 'servicetoken:a:x', 'uid-1', 'ServiceToken', 'a', 'x',
  'default', 1, 'current', 'sk_', '', '192.0.2.1', 'curl', 'GET', '/', 'r-$N', 'one', 12, NULL);
INSERT INTO usage AS u (uid, version, namespace, subject, prefix, uses, denied, last_used, last_client, last_slot)
  SELECT * FROM unnest(ARRAY['uid-1'], ARRAY[1::bigint], ARRAY['a'], ARRAY['servicetoken:a:x'], ARRAY['sk_'], ARRAY[1::bigint], ARRAY[0::bigint], ARRAY['2026-01-15 12:00:00+00'::timestamptz],
    ARRAY['192.0.2.0/24'::cidr], ARRAY['current'])
  ON CONFLICT (uid, version) DO UPDATE SET uses = u.uses + excluded.uses, denied = u.denied + excluded.denied,
    prefix = coalesce(nullif(excluded.prefix, ''), u.prefix), last_used = greatest(u.last_used, excluded.last_used),
    last_client = CASE WHEN excluded.last_used >= coalesce(u.last_used, '-infinity') THEN coalesce(excluded.last_client, u.last_client) ELSE u.last_client END,
    last_slot = CASE WHEN excluded.last_used >= coalesce(u.last_used, '-infinity') THEN excluded.last_slot ELSE u.last_slot END;
INSERT INTO usage_daily AS u (day, uid, namespace, subject, allowed, denied) VALUES ('2026-01-15', 'uid-1', 'a', 'servicetoken:a:x', 1, 0)
  ON CONFLICT (day, uid) DO UPDATE SET allowed = u.allowed + excluded.allowed, denied = u.denied + excluded.denied;
INSERT INTO latency_daily AS l (day, namespace, bucket, count) VALUES ('2026-01-15', 'a', 4, 1)
  ON CONFLICT (day, namespace, bucket) DO UPDATE SET count = l.count + excluded.count

SELECT a.id FROM unnest(ARRAY[md5('$N')::uuid]) WITH ORDINALITY a (id, n) WHERE NOT EXISTS (SELECT FROM event_ids e WHERE e.id = a.id) ORDER BY n

SELECT set_config('mintmark.tenant', 'a', true);
SELECT at, id, type, outcome, reason, subject, uid, kind, namespace, name, class, version, slot, prefix, actor, client, user_agent, method,
  endpoint, request_id, server, took, detail FROM events WHERE client <<= '192.0.2.0/24' AND uid = 'uid-1' AND uid <> '' ORDER BY at DESC, id DESC LIMIT 3

SELECT set_config('mintmark.tenant', '*', true);
INSERT INTO credentials (uid, kind, namespace, name, class, owner, description, labels, metadata, admin, created, expires, state)
  VALUES ('uid-1', 'ServiceToken', 'a', 'x', 'default', 'team', '', '{"app":"old"}', '{"ticket":"T-$N"}', false, now(), NULL, 'Active')
  ON CONFLICT (uid) DO UPDATE SET class = excluded.class, owner = excluded.owner, description = excluded.description, labels = excluded.labels,
    metadata = excluded.metadata, admin = excluded.admin, expires = excluded.expires, state = excluded.state, updated = now()

SELECT set_config('mintmark.tenant', '*', true);
SELECT uid, kind, namespace, name, class, owner, description, labels, metadata, admin, created, expires, state FROM credentials
  WHERE metadata @> '{"ticket":"T-$N"}' AND (namespace, name, kind, uid) > ('', '', '', '') ORDER BY namespace, name, kind, uid LIMIT 101

SELECT set_config('mintmark.tenant', '*', true);
INSERT INTO tombstones (digest, pepper, uid, namespace, version, reason, revoked_at, until) VALUES (decode(md5('$N'), 'hex'), 'p1', 'uid-1', 'a', 1, 'leaked', now(), NULL) ON CONFLICT (digest) DO NOTHING;
SELECT pg_notify('mintmark_denied', '')

SELECT set_config('mintmark.tenant', '*', true);
SELECT number, digest, pepper, uid, namespace, version, reason, revoked_at, until FROM tombstones
  WHERE number > 0 AND stored_xid < pg_snapshot_xmin(pg_current_snapshot()) ORDER BY number LIMIT 1000

SELECT chain, count(*), sum(events), min(first_at), max(last_at), min(sequence), max(sequence),
  (SELECT digest FROM batches h WHERE h.chain = b.chain ORDER BY sequence DESC LIMIT 1) FROM batches b GROUP BY chain ORDER BY min(first_at), chain

SELECT set_config('mintmark.tenant', '*', true);
SELECT c.uid, lower(c.kind) || ':' || c.namespace || ':' || c.name, c.namespace, u.last_used FROM credentials c
  LEFT JOIN LATERAL (SELECT max(last_used) AS last_used FROM usage WHERE usage.uid = c.uid) u ON true WHERE (u.last_used IS NULL OR u.last_used < now()) AND c.state = 'Active'

SELECT drop_events_before('2020-01-01'::date)
