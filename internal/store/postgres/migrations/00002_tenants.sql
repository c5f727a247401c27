-- Rows belong to namespaces. The servers' account sees those of the tenant that its
-- transaction has set, and none where it has set none, whatever the query says; the
-- owner of the tables too. An account of anybody else sees those of the namespaces that
-- tenant_roles gives it, and none otherwise. Batches are copied into the partitions,
-- which queries never name.

-- +goose Up
CREATE TABLE tenant_roles (
  role       name NOT NULL,
  namespace  text NOT NULL,
  PRIMARY KEY (role, namespace)
);

-- +goose StatementBegin
CREATE FUNCTION tenant_setting() RETURNS text LANGUAGE plpgsql STABLE SET search_path FROM CURRENT AS $$
BEGIN
  IF pg_has_role(current_user, (SELECT relowner FROM pg_class WHERE oid = 'events'::regclass), 'MEMBER')
    OR EXISTS (SELECT FROM pg_roles WHERE rolname = 'mintmark_app' AND pg_has_role(current_user, oid, 'MEMBER')) THEN
    RETURN nullif(current_setting('mintmark.tenant', true), '');
  END IF;
  RETURN NULL;
END $$;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE FUNCTION tenant_namespaces() RETURNS SETOF text LANGUAGE sql STABLE SECURITY DEFINER SET search_path FROM CURRENT AS $$
  SELECT t.namespace FROM tenant_roles t JOIN pg_roles r ON r.rolname = t.role WHERE pg_has_role(session_user, r.oid, 'MEMBER')
$$;
-- +goose StatementEnd
-- +goose StatementBegin
DO $$
DECLARE
  tab text;
BEGIN
  FOREACH tab IN ARRAY ARRAY['events', 'usage', 'usage_daily', 'latency_daily', 'credentials', 'tombstones', 'denied_tokens'] LOOP
    EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', tab);
    EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', tab);
    -- In brackets, so that each is asked once and not for every row.
    EXECUTE format('CREATE POLICY tenant ON %I USING ((SELECT tenant_setting()) = ''*'' OR namespace = (SELECT tenant_setting()))', tab);
    EXECUTE format('CREATE POLICY tenant_role ON %I FOR SELECT USING (namespace IN (SELECT tenant_namespaces()))', tab);
  END LOOP;
END $$;
-- +goose StatementEnd

-- What the accounts may do is here; who they are is the administrator's.
REVOKE ALL ON FUNCTION drop_events_before(date) FROM PUBLIC;
REVOKE ALL ON FUNCTION ensure_events_partition(date) FROM PUBLIC;
-- +goose StatementBegin
DO $$
DECLARE
  home text := current_schema();
BEGIN
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'mintmark_app') THEN
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO mintmark_app', home);
    GRANT SELECT, INSERT, UPDATE, DELETE ON usage, usage_daily, latency_daily, credentials, tombstones, denied_tokens TO mintmark_app;
    GRANT SELECT, INSERT ON events, batches, event_ids TO mintmark_app;
    GRANT SELECT ON goose_db_version TO mintmark_app;
    GRANT EXECUTE ON FUNCTION ensure_events_partition(date), drop_events_before(date) TO mintmark_app;
  END IF;
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'mintmark_readonly') THEN
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO mintmark_readonly', home);
    GRANT SELECT ON events, usage, usage_daily, latency_daily, credentials TO mintmark_readonly;
  END IF;
END $$;
-- +goose StatementEnd
