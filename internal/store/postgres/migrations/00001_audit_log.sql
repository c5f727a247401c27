-- +goose Up
CREATE TABLE batches (
  id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  chain      text NOT NULL,
  sequence   bigint NOT NULL,
  previous   bytea NOT NULL,
  digest     bytea NOT NULL,
  events     integer NOT NULL,
  first_at   timestamptz NOT NULL,
  last_at    timestamptz NOT NULL,
  stored_at  timestamptz NOT NULL DEFAULT now(),
  UNIQUE (chain, sequence)
);

-- By month, so that what is kept long enough goes by dropping a table.
CREATE TABLE events (
  at          timestamptz NOT NULL,
  id          uuid NOT NULL,
  batch       bigint NOT NULL,
  ordinal     integer NOT NULL,
  type        text NOT NULL,
  outcome     text NOT NULL,
  reason      text NOT NULL,
  subject     text NOT NULL,
  uid         text NOT NULL,
  kind        text NOT NULL,
  namespace   text NOT NULL,
  name        text NOT NULL,
  class       text NOT NULL,
  version     bigint NOT NULL,
  slot        text NOT NULL,
  prefix      text NOT NULL,
  actor       text NOT NULL,
  client      inet,
  user_agent  text NOT NULL,
  method      text NOT NULL,
  endpoint    text NOT NULL,
  request_id  text NOT NULL,
  server      text NOT NULL,
  took        bigint NOT NULL,
  detail      jsonb
) PARTITION BY RANGE (at);
-- The order of every list, and the page after a cursor.
CREATE INDEX events_at_id ON events (at, id);
-- Of one credential, and of one namespace, newest first.
CREATE INDEX events_uid_at ON events (uid, at) WHERE uid <> '';
CREATE INDEX events_namespace_at ON events (namespace, at);
-- What is looked for is seldom what was let through.
CREATE INDEX events_notable ON events (at) WHERE outcome <> 'allowed' OR type <> 'authentication';
-- Events come in the order of their batches: a few bytes find those of one.
CREATE INDEX events_batch ON events USING brin (batch) WITH (pages_per_range = 16);

-- Events that are recorded once for good, whoever tells of them.
CREATE TABLE event_ids (
  id  uuid PRIMARY KEY,
  at  timestamptz NOT NULL
);

CREATE TABLE usage (
  uid          text NOT NULL,
  version      bigint NOT NULL,
  namespace    text NOT NULL,
  subject      text NOT NULL,
  prefix       text NOT NULL,
  uses         bigint NOT NULL DEFAULT 0,
  denied       bigint NOT NULL DEFAULT 0,
  last_used    timestamptz,
  last_client  cidr,
  last_slot    text NOT NULL DEFAULT '',
  PRIMARY KEY (uid, version)
);

CREATE TABLE usage_daily (
  day        date NOT NULL,
  uid        text NOT NULL,
  namespace  text NOT NULL,
  subject    text NOT NULL,
  allowed    bigint NOT NULL,
  denied     bigint NOT NULL,
  PRIMARY KEY (day, uid)
);
CREATE INDEX usage_daily_uid ON usage_daily (uid, day);
CREATE INDEX usage_daily_namespace ON usage_daily (namespace, day);

CREATE TABLE latency_daily (
  day        date NOT NULL,
  namespace  text NOT NULL,
  bucket     smallint NOT NULL,
  count      bigint NOT NULL,
  PRIMARY KEY (day, namespace, bucket)
);

CREATE TABLE credentials (
  uid          text PRIMARY KEY,
  kind         text NOT NULL,
  namespace    text NOT NULL,
  name         text NOT NULL,
  class        text NOT NULL,
  owner        text NOT NULL,
  description  text NOT NULL,
  labels       jsonb NOT NULL,
  metadata     jsonb NOT NULL,
  admin        boolean NOT NULL,
  created      timestamptz NOT NULL,
  expires      timestamptz,
  state        text NOT NULL,
  updated      timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX credentials_order ON credentials (namespace, name, kind, uid);
CREATE INDEX credentials_metadata ON credentials USING gin (metadata jsonb_path_ops);
CREATE INDEX credentials_labels ON credentials USING gin (labels jsonb_path_ops);

CREATE TABLE tombstones (
  number      bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
  digest      bytea PRIMARY KEY,
  pepper      text NOT NULL,
  uid         text NOT NULL,
  namespace   text NOT NULL,
  version     bigint NOT NULL,
  reason      text NOT NULL,
  revoked_at  timestamptz NOT NULL,
  until       timestamptz,
  stored_xid  xid8 NOT NULL DEFAULT pg_current_xact_id()
);

CREATE TABLE denied_tokens (
  number      bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
  key         bytea PRIMARY KEY,
  namespace   text NOT NULL,
  until       timestamptz NOT NULL,
  stored_xid  xid8 NOT NULL DEFAULT pg_current_xact_id()
);
CREATE INDEX denied_tokens_until ON denied_tokens (until);

-- A month's partition, made by whoever comes first. Who may write events need not be
-- allowed to make tables.
-- +goose StatementBegin
CREATE FUNCTION ensure_events_partition(month date) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
  first date := date_trunc('month', month);
  part  text := 'events_' || to_char(first, 'YYYYMM');
BEGIN
  PERFORM pg_advisory_xact_lock(hashtext('mintmark.' || part));
  IF to_regclass(quote_ident(part)) IS NULL THEN
    EXECUTE format('CREATE TABLE %I PARTITION OF events FOR VALUES FROM (%L) TO (%L)', part,
      first::timestamp AT TIME ZONE 'UTC', (first + interval '1 month')::timestamp AT TIME ZONE 'UTC');
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'mintmark_app') THEN
      EXECUTE format('GRANT INSERT ON %I TO mintmark_app', part);
    END IF;
  END IF;
  RETURN part;
END $$;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE FUNCTION drop_events_before(month date) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
  part record;
  dropped integer := 0;
BEGIN
  FOR part IN
    SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = 'events'::regclass AND c.relname ~ '^events_[0-9]{6}$'
      AND c.relname < 'events_' || to_char(date_trunc('month', month), 'YYYYMM')
  LOOP
    EXECUTE format('DROP TABLE %I', part.relname);
    dropped := dropped + 1;
  END LOOP;
  RETURN dropped;
END $$;
-- +goose StatementEnd
