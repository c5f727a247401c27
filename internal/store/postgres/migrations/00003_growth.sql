-- The inventory knows how new each row is and is searched by label and metadata below
-- row-level security; every list of events has an index; and what only served events that
-- retention dropped goes with them. The version before goes on working with all of it.

-- +goose Up

-- What indexes are built on below, in the order in which servers write to it: in another
-- one a server that writes meanwhile and this could each wait for the other.
LOCK TABLE event_ids, events, usage IN SHARE MODE;

-- The resourceVersion that a row was made of: of two servers the one that has seen more
-- wins, whichever writes last. 0 is not known.
ALTER TABLE credentials ADD COLUMN applied bigint NOT NULL DEFAULT 0;

-- Below row-level security PostgreSQL asks an index only with operators that tell nothing
-- about rows they pass over, and those of jsonb are not among these. So each label and each
-- entry of metadata has a row here, by its digest. A trigger writes them.
CREATE TABLE credential_facts (
  uid        text NOT NULL,
  fact       uuid NOT NULL,
  namespace  text NOT NULL,
  PRIMARY KEY (uid, fact)
);
CREATE INDEX credential_facts_fact ON credential_facts (fact, uid);

-- +goose StatementBegin
CREATE FUNCTION credential_fact(what text, key text, value text) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
  SELECT md5(what || ' ' || length(key) || ' ' || key || ' ' || value)::uuid
$$;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE FUNCTION note_credential_facts() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
  IF TG_OP = 'UPDATE' AND (NEW.labels, NEW.metadata, NEW.namespace) IS NOT DISTINCT FROM (OLD.labels, OLD.metadata, OLD.namespace) THEN
    RETURN NULL;
  END IF;
  IF TG_OP <> 'INSERT' THEN
    DELETE FROM credential_facts WHERE uid = OLD.uid;
  END IF;
  IF TG_OP <> 'DELETE' THEN
    INSERT INTO credential_facts (uid, fact, namespace)
      SELECT NEW.uid, credential_fact('label', key, value), NEW.namespace FROM jsonb_each_text(NEW.labels)
      UNION SELECT NEW.uid, credential_fact('metadata', key, value), NEW.namespace FROM jsonb_each_text(NEW.metadata);
  END IF;
  RETURN NULL;
END $$;
-- +goose StatementEnd
CREATE TRIGGER credential_facts AFTER INSERT OR UPDATE OR DELETE ON credentials FOR EACH ROW EXECUTE FUNCTION note_credential_facts();

-- +goose StatementBegin
DO $$
BEGIN
  PERFORM set_config('mintmark.tenant', '*', true);
  INSERT INTO credential_facts (uid, fact, namespace)
    SELECT uid, credential_fact('label', key, value), namespace FROM credentials, jsonb_each_text(labels)
    UNION SELECT uid, credential_fact('metadata', key, value), namespace FROM credentials, jsonb_each_text(metadata);
END $$;
-- +goose StatementEnd
ALTER TABLE credential_facts ENABLE ROW LEVEL SECURITY;
ALTER TABLE credential_facts FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON credential_facts USING ((SELECT tenant_setting()) = '*' OR namespace = (SELECT tenant_setting()));
CREATE POLICY tenant_role ON credential_facts FOR SELECT USING (namespace IN (SELECT tenant_namespaces()));

-- Who a subject is has no UID where somebody else vouches for it; a network is a range of
-- addresses; a request has one id. Each is asked for when something has happened.
CREATE INDEX events_subject_at ON events (subject, at) WHERE subject <> '';
CREATE INDEX events_client_at ON events (client, at) WHERE client IS NOT NULL;
CREATE INDEX events_request_id ON events USING hash (request_id) WHERE request_id <> '';
-- What changed a credential, and who was refused with it, among all its uses.
CREATE INDEX events_notable_uid ON events (uid, at) WHERE uid <> '' AND (outcome <> 'allowed' OR type <> 'authentication');
-- What is counted is written over and over: with room on its page it is so in place.
ALTER TABLE usage SET (fillfactor = 60);
ALTER TABLE usage_daily SET (fillfactor = 70);
ALTER TABLE latency_daily SET (fillfactor = 70);
CREATE INDEX usage_namespace ON usage (namespace);
CREATE INDEX event_ids_at ON event_ids USING brin (at);

-- What the owner allows to be cleared out, and what has been. Servers read it only: an
-- account of theirs can drop no event that is younger, whatever it asks for.
CREATE TABLE retention (
  one             boolean PRIMARY KEY DEFAULT true CHECK (one),
  least_months    integer NOT NULL DEFAULT 1 CHECK (least_months >= 1),
  cleared_before  timestamptz NOT NULL DEFAULT '-infinity'
);
INSERT INTO retention DEFAULT VALUES;

-- +goose StatementBegin
CREATE OR REPLACE FUNCTION drop_events_before(month date) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
  part record;
  dropped integer := 0;
  first date;
  before timestamptz;
  cleared timestamptz;
BEGIN
  SELECT least(date_trunc('month', month)::date, (date_trunc('month', now() AT TIME ZONE 'UTC') - make_interval(months => least_months))::date), cleared_before
    INTO first, cleared FROM retention FOR UPDATE;
  before := first::timestamp AT TIME ZONE 'UTC';
  FOR part IN
    SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = 'events'::regclass AND c.relname ~ '^events_[0-9]{6}$' AND c.relname < 'events_' || to_char(first, 'YYYYMM')
  LOOP
    EXECUTE format('DROP TABLE %I', part.relname);
    dropped := dropped + 1;
  END LOOP;
  IF before <= cleared THEN
    RETURN dropped;
  END IF;
  -- Who tells of an event that is older than this is told that it is stored.
  UPDATE retention SET cleared_before = before;
  DELETE FROM event_ids WHERE at < before;
  -- Of each chain the last batch whose events are gone stays: the next one follows it.
  DELETE FROM batches b USING (
    SELECT chain, coalesce(min(sequence) FILTER (WHERE last_at >= before) - 1, max(sequence)) AS last FROM batches GROUP BY chain
  ) gone WHERE b.chain = gone.chain AND b.sequence < gone.last;
  RETURN dropped;
END $$;
-- +goose StatementEnd
REVOKE ALL ON FUNCTION drop_events_before(date) FROM PUBLIC;

-- +goose StatementBegin
DO $$
BEGIN
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'mintmark_app') THEN
    GRANT SELECT, INSERT, UPDATE, DELETE ON credential_facts TO mintmark_app;
    GRANT SELECT ON retention TO mintmark_app;
    GRANT EXECUTE ON FUNCTION drop_events_before(date) TO mintmark_app;
  END IF;
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'mintmark_readonly') THEN
    GRANT SELECT ON credential_facts TO mintmark_readonly;
  END IF;
END $$;
-- +goose StatementEnd
