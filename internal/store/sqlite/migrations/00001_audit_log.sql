-- Times are Unix microseconds. What is JSON is text.

-- +goose Up
CREATE TABLE batches (
  id         INTEGER PRIMARY KEY AUTOINCREMENT,
  chain      TEXT NOT NULL,
  sequence   INTEGER NOT NULL,
  previous   BLOB NOT NULL,
  digest     BLOB NOT NULL,
  events     INTEGER NOT NULL,
  first_at   INTEGER NOT NULL,
  last_at    INTEGER NOT NULL,
  UNIQUE (chain, sequence)
) STRICT;

CREATE TABLE events (
  at          INTEGER NOT NULL,
  id          BLOB NOT NULL,
  batch       INTEGER NOT NULL,
  ordinal     INTEGER NOT NULL,
  type        TEXT NOT NULL,
  outcome     TEXT NOT NULL,
  reason      TEXT NOT NULL,
  subject     TEXT NOT NULL,
  uid         TEXT NOT NULL,
  kind        TEXT NOT NULL,
  namespace   TEXT NOT NULL,
  name        TEXT NOT NULL,
  class       TEXT NOT NULL,
  version     INTEGER NOT NULL,
  slot        TEXT NOT NULL,
  prefix      TEXT NOT NULL,
  actor       TEXT NOT NULL,
  client      BLOB,
  user_agent  TEXT NOT NULL,
  method      TEXT NOT NULL,
  endpoint    TEXT NOT NULL,
  request_id  TEXT NOT NULL,
  server      TEXT NOT NULL,
  took        INTEGER NOT NULL,
  detail      TEXT
) STRICT;
CREATE INDEX events_at_id ON events (at, id);
CREATE INDEX events_uid_at ON events (uid, at) WHERE uid <> '';
CREATE INDEX events_namespace_at ON events (namespace, at);
CREATE INDEX events_batch ON events (batch, ordinal);

CREATE TABLE event_ids (
  id  BLOB PRIMARY KEY,
  at  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE usage (
  uid          TEXT NOT NULL,
  version      INTEGER NOT NULL,
  namespace    TEXT NOT NULL,
  subject      TEXT NOT NULL,
  prefix       TEXT NOT NULL,
  uses         INTEGER NOT NULL,
  denied       INTEGER NOT NULL,
  last_used    INTEGER,
  last_client  TEXT,
  last_slot    TEXT NOT NULL,
  PRIMARY KEY (uid, version)
) STRICT, WITHOUT ROWID;

CREATE TABLE usage_daily (
  day        TEXT NOT NULL,
  uid        TEXT NOT NULL,
  namespace  TEXT NOT NULL,
  subject    TEXT NOT NULL,
  allowed    INTEGER NOT NULL,
  denied     INTEGER NOT NULL,
  PRIMARY KEY (day, uid)
) STRICT, WITHOUT ROWID;
CREATE INDEX usage_daily_uid ON usage_daily (uid, day);
CREATE INDEX usage_daily_namespace ON usage_daily (namespace, day);

CREATE TABLE latency_daily (
  day        TEXT NOT NULL,
  namespace  TEXT NOT NULL,
  bucket     INTEGER NOT NULL,
  count      INTEGER NOT NULL,
  PRIMARY KEY (day, namespace, bucket)
) STRICT, WITHOUT ROWID;

CREATE TABLE credentials (
  uid          TEXT PRIMARY KEY,
  kind         TEXT NOT NULL,
  namespace    TEXT NOT NULL,
  name         TEXT NOT NULL,
  class        TEXT NOT NULL,
  owner        TEXT NOT NULL,
  description  TEXT NOT NULL,
  labels       TEXT NOT NULL,
  metadata     TEXT NOT NULL,
  admin        INTEGER NOT NULL,
  created      INTEGER NOT NULL,
  expires      INTEGER,
  state        TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX credentials_order ON credentials (namespace, name, kind, uid);

CREATE TABLE tombstones (
  number      INTEGER PRIMARY KEY AUTOINCREMENT,
  digest      BLOB NOT NULL UNIQUE,
  pepper      TEXT NOT NULL,
  uid         TEXT NOT NULL,
  namespace   TEXT NOT NULL,
  version     INTEGER NOT NULL,
  reason      TEXT NOT NULL,
  revoked_at  INTEGER NOT NULL,
  until       INTEGER
) STRICT;

CREATE TABLE denied_tokens (
  number      INTEGER PRIMARY KEY AUTOINCREMENT,
  key         BLOB NOT NULL UNIQUE,
  namespace   TEXT NOT NULL,
  until       INTEGER NOT NULL
) STRICT;
CREATE INDEX denied_tokens_until ON denied_tokens (until);
