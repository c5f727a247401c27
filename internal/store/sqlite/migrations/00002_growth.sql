-- The inventory knows how new each row is; and what only served events that were dropped
-- goes with them.

-- +goose Up

-- The resourceVersion that a row was made of; 0 is not known. updated: when it was.
ALTER TABLE credentials ADD COLUMN applied INTEGER NOT NULL DEFAULT 0;
ALTER TABLE credentials ADD COLUMN updated INTEGER NOT NULL DEFAULT 0;

CREATE INDEX events_subject_at ON events (subject, at) WHERE subject <> '';
CREATE INDEX events_request_id ON events (request_id) WHERE request_id <> '';
CREATE INDEX events_client_at ON events (client, at) WHERE client IS NOT NULL;
CREATE INDEX event_ids_at ON event_ids (at);

CREATE TABLE retention (
  one             INTEGER PRIMARY KEY CHECK (one = 1),
  cleared_before  INTEGER NOT NULL
) STRICT;
INSERT INTO retention VALUES (1, 0);
