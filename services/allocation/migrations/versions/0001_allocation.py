"""Envelopes, people in groups, places, what each place was given."""

from alembic import op

from libs.common.migrate import run_sql
from libs.common.runtime_schema import RUNTIME_V1

revision = "0001"
down_revision = None

TABLES = """
-- Whoever comes first (a batch, a cancellation, the envelope itself) makes the row; `declared` comes with the envelope.
CREATE TABLE envelopes (
    envelope_id uuid PRIMARY KEY, lock_key bigint NOT NULL, header text NOT NULL, revision int NOT NULL,
    benefit_type text NOT NULL, goods boolean NOT NULL, programme text NOT NULL, programme_id text NOT NULL,
    benefit_code_id text NOT NULL, cycle_id text NOT NULL, currency text NOT NULL, measurement_unit text NOT NULL,
    scale smallint NOT NULL CHECK (scale BETWEEN 0 AND 6),  -- decimals of an amount, whether money or goods
    declared bigint, declared_minor bigint,
    completed_at timestamptz,                               -- from here `declared` is what was received
    cancelling boolean NOT NULL DEFAULT false, cancelled_at timestamptz,
    said_revision int NOT NULL DEFAULT 0, said bigint[], said_at timestamptz,  -- of EnvelopeAllocated: what it said last
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK ((declared IS NULL) = (declared_minor IS NULL)),
    CHECK (completed_at IS NULL OR declared IS NOT NULL),
    CHECK (cancelled_at IS NULL OR cancelling)
);

CREATE TABLE batches (
    batch_id uuid PRIMARY KEY, envelope_id uuid NOT NULL REFERENCES envelopes, number int NOT NULL, header text NOT NULL,
    whole boolean NOT NULL DEFAULT false,  -- resolution's part 1 is here, which names everybody
    ready_at timestamptz,                  -- there is something to announce since then
    parts int NOT NULL DEFAULT 0,          -- announced
    gives_back boolean NOT NULL DEFAULT false  -- funds has cancelled cash of it since somebody looked
);
CREATE INDEX batches_envelope ON batches (envelope_id, number);
CREATE INDEX batches_ready ON batches (envelope_id, number) WHERE ready_at IS NOT NULL;
CREATE INDEX batches_giving_back ON batches (envelope_id, number) WHERE gives_back;

-- A part as resolution sent it. `sealed` goes when all of its people have reached their end.
CREATE TABLE arrivals (
    arrival int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, envelope_id uuid NOT NULL, batch_id uuid NOT NULL REFERENCES batches,
    part int NOT NULL CHECK (part BETWEEN 1 AND 10000), sealed_key text, sealed text,
    located int NOT NULL, unresolved int NOT NULL,
    received_at timestamptz NOT NULL DEFAULT clock_timestamp(), taken_at timestamptz,
    UNIQUE (batch_id, part),  -- one part, however often and by whatever event it comes
    CHECK ((sealed IS NULL) = (sealed_key IS NULL))
);
ALTER TABLE arrivals ALTER COLUMN sealed SET STORAGE EXTERNAL;
CREATE INDEX arrivals_new ON arrivals (envelope_id, arrival) WHERE taken_at IS NULL;

-- People of one arrival who live in one zone and are served alike: they have one state. Whoever fares otherwise (no capacity
-- left, cancelled) moves to a group of their own, so that each person is in exactly one, and every sum is a sum of groups.
CREATE TABLE groups (
    arrival int NOT NULL REFERENCES arrivals, grp int NOT NULL,
    envelope_id uuid NOT NULL, batch_id uuid NOT NULL,
    large_zone_id text COLLATE "C", large_zone_code text, small_zone_id text COLLATE "C", small_zone_code text,
    count int NOT NULL CHECK (count >= 0), total_minor bigint NOT NULL CHECK (total_minor >= count),
    state text NOT NULL DEFAULT 'NEW' CHECK (state IN ('NEW', 'PLANNED', 'ALLOCATED', 'HELD', 'CANCELLED')),
    reason text, message text,
    warehouse_id text COLLATE "C", warehouse_by text, agency_id text COLLATE "C", agency_by text,
    tried bigint NOT NULL DEFAULT 0,  -- the version of the reference data that had no place for them
    part int,                         -- of BatchAllocated
    given_back boolean NOT NULL DEFAULT false,  -- funds cancelled the cash that was said: no place's load has it any more
    since timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (arrival, grp),
    CHECK ((large_zone_id IS NULL) = (small_zone_id IS NULL)),
    CHECK (small_zone_id IS NOT NULL OR state IN ('NEW', 'HELD', 'CANCELLED')),   -- who lives nowhere is served by nobody
    CHECK (state NOT IN ('PLANNED', 'ALLOCATED') OR agency_id IS NOT NULL),      -- somebody hands it out
    CHECK (state <> 'HELD' OR (reason IS NOT NULL AND agency_id IS NULL)),       -- nobody is held without a reason
    CHECK ((state = 'ALLOCATED') = (part IS NOT NULL)),                          -- final is what was said
    CHECK (NOT given_back OR state = 'ALLOCATED'),
    CHECK ((warehouse_id IS NULL) = (warehouse_by IS NULL) AND (agency_id IS NULL) = (agency_by IS NULL))
);
CREATE INDEX groups_envelope ON groups (envelope_id);
CREATE INDEX groups_batch ON groups (batch_id);
CREATE INDEX groups_open ON groups (envelope_id) WHERE state IN ('NEW', 'PLANNED');
CREATE INDEX groups_held ON groups (envelope_id) WHERE state = 'HELD';
CREATE INDEX groups_unserved ON groups (envelope_id, tried) WHERE state = 'HELD' AND small_zone_id IS NOT NULL;

CREATE TABLE entitlements (
    arrival int NOT NULL, position smallint NOT NULL, grp int NOT NULL, amount_minor bigint NOT NULL CHECK (amount_minor > 0),
    disbursement_id text COLLATE "C" NOT NULL, beneficiary_id text COLLATE "C" NOT NULL,
    PRIMARY KEY (arrival, position)
);

-- The zones of an envelope that are known, and whose place each is. The first who needed it chose; later ones follow.
CREATE TABLE choices (
    envelope_id uuid NOT NULL REFERENCES envelopes, kind text NOT NULL CHECK (kind IN ('warehouse', 'agency')),
    zone_id text COLLATE "C" NOT NULL, place_id text COLLATE "C", chosen_by text,
    PRIMARY KEY (envelope_id, kind, zone_id),
    CHECK ((place_id IS NULL) = (chosen_by IS NULL))
);

-- What a place was given in a cycle, planned or announced and not given back, in whole units of the benefit: envelopes may count
-- with different decimals. Written under the cycle's lock in the transaction that plans or cancels.
CREATE TABLE loads (
    kind text NOT NULL, place_id text COLLATE "C" NOT NULL, programme_id text NOT NULL, benefit_code_id text NOT NULL,
    cycle_id text NOT NULL, units numeric NOT NULL CHECK (units >= 0),
    PRIMARY KEY (programme_id, benefit_code_id, cycle_id, kind, place_id)
);

CREATE TABLE announcements (
    batch_id uuid NOT NULL REFERENCES batches, part int NOT NULL, envelope_id uuid NOT NULL, count int NOT NULL, held int NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(), PRIMARY KEY (batch_id, part)
);
CREATE INDEX announcements_envelope ON announcements (envelope_id);
CREATE INDEX announcements_at ON announcements (at);

-- What cancellations of goods ask for; a tombstone, of goods or of cash that funds has cancelled, is for ever, whether its person
-- has come or not.
CREATE TABLE cancel_requests (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, envelope_id uuid NOT NULL REFERENCES envelopes, request_id text NOT NULL,
    whole boolean NOT NULL, batches int, disbursement_ids text[] NOT NULL,
    state text NOT NULL DEFAULT 'ASKED' CHECK (state IN ('ASKED', 'ANSWERED')),
    UNIQUE (envelope_id, request_id), CHECK (whole = (batches IS NOT NULL))
);
CREATE INDEX cancel_requests_asked ON cancel_requests (envelope_id) WHERE state = 'ASKED';
CREATE TABLE tombstones (
    envelope_id uuid NOT NULL, disbursement_id text COLLATE "C" NOT NULL, PRIMARY KEY (envelope_id, disbursement_id)
);

-- The copy of the reference data, of both sources; the setting says which of them is asked. What is gone keeps its row: people
-- may be planned there still, and an old message must not bring it back.
CREATE TABLE places (
    source text NOT NULL CHECK (source IN ('pbms', 'topic')), kind text NOT NULL CHECK (kind IN ('warehouse', 'agency')),
    id text COLLATE "C" NOT NULL, mnemonic text NOT NULL, name text NOT NULL,
    sealed bytea,             -- contact and accounts
    digest text NOT NULL,     -- a keyed hash of all that is known, to tell what changed
    gone boolean NOT NULL, message_partition int, message_offset bigint,
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (source, kind, id),
    CHECK (gone OR sealed IS NOT NULL)
);
CREATE TABLE serves (
    source text NOT NULL, kind text NOT NULL, id text COLLATE "C" NOT NULL, programme_id text NOT NULL, benefit_code_id text NOT NULL,
    capacity_minor bigint CHECK (capacity_minor >= 0), capacity_units numeric CHECK (capacity_units >= 0),
    has_account boolean NOT NULL,  -- without one that a bank can be told an agency can hand out no cash
    PRIMARY KEY (source, kind, id, programme_id, benefit_code_id),
    FOREIGN KEY (source, kind, id) REFERENCES places
);
CREATE TABLE place_zones (
    source text NOT NULL, kind text NOT NULL, zone_id text COLLATE "C" NOT NULL, id text COLLATE "C" NOT NULL,
    PRIMARY KEY (source, kind, zone_id, id), FOREIGN KEY (source, kind, id) REFERENCES places
);
CREATE INDEX place_zones_place ON place_zones (source, kind, id);
-- Counted up with each change, so that held zones are tried once for each.
CREATE TABLE reference (
    source text PRIMARY KEY, version bigint NOT NULL DEFAULT 1, taken_at timestamptz, faulty int NOT NULL DEFAULT 0
);
INSERT INTO reference (source) VALUES ('pbms'), ('topic');
"""

VIEWS = """
CREATE VIEW totals AS
    SELECT envelope_id,
        count(DISTINCT batch_id) AS batches, sum(count)::bigint AS arrived, sum(total_minor)::bigint AS arrived_minor,
        coalesce(sum(count) FILTER (WHERE state = 'PLANNED'), 0)::bigint AS planned,
        coalesce(sum(total_minor) FILTER (WHERE state = 'PLANNED'), 0)::bigint AS planned_minor,
        coalesce(sum(count) FILTER (WHERE state = 'ALLOCATED'), 0)::bigint AS allocated,
        coalesce(sum(total_minor) FILTER (WHERE state = 'ALLOCATED'), 0)::bigint AS allocated_minor,
        coalesce(sum(count) FILTER (WHERE state = 'HELD'), 0)::bigint AS held,
        coalesce(sum(total_minor) FILTER (WHERE state = 'HELD'), 0)::bigint AS held_minor,
        coalesce(sum(count) FILTER (WHERE state = 'CANCELLED'), 0)::bigint AS cancelled,
        coalesce(sum(total_minor) FILTER (WHERE state = 'CANCELLED'), 0)::bigint AS cancelled_minor
    FROM groups WHERE state <> 'NEW' GROUP BY envelope_id;  -- NEW is recorded and not yet looked at: it may replace somebody

CREATE VIEW ops_envelopes AS
    SELECT e.envelope_id, e.benefit_type, e.programme, e.currency, e.measurement_unit, e.scale AS unit_scale,
        CASE WHEN e.cancelled_at IS NOT NULL THEN 'CANCELLED' WHEN e.cancelling THEN 'CANCELLING'
             WHEN e.completed_at IS NULL THEN 'RECEIVING'
             WHEN coalesce(t.arrived, 0) < e.declared OR t.planned > 0 THEN 'ALLOCATING'
             WHEN t.held > 0 THEN 'HELD' ELSE 'ALLOCATED' END AS state,
        e.declared, e.declared_minor, coalesce(t.arrived, 0) AS arrived, coalesce(t.arrived_minor, 0) AS arrived_minor,
        coalesce(t.planned, 0) AS planned, coalesce(t.planned_minor, 0) AS planned_minor,
        coalesce(t.allocated, 0) AS allocated, coalesce(t.allocated_minor, 0) AS allocated_minor,
        coalesce(t.held, 0) AS held, coalesce(t.held_minor, 0) AS held_minor,
        coalesce(t.cancelled, 0) AS cancelled, coalesce(t.cancelled_minor, 0) AS cancelled_minor,
        coalesce(t.batches, 0)::int AS batches, e.said_revision AS revision, e.created_at, e.source, e.publisher_envelope_id
    FROM (SELECT *, header::json ->> 'source' AS source, header::json ->> 'publisher_envelope_id' AS publisher_envelope_id
          FROM envelopes) e LEFT JOIN totals t USING (envelope_id);
CREATE VIEW ops_zones AS
    SELECT z.envelope_id, z.large_zone_id, z.large_zone_code, z.small_zone_id, z.small_zone_code,
        z.warehouse_id, (SELECT name FROM places p WHERE p.kind = 'warehouse' AND p.id = z.warehouse_id
                         ORDER BY gone, updated_at DESC LIMIT 1) AS warehouse_name, z.warehouse_chosen_by,
        z.agency_id, (SELECT name FROM places p WHERE p.kind = 'agency' AND p.id = z.agency_id
                      ORDER BY gone, updated_at DESC LIMIT 1) AS agency_name, z.agency_chosen_by,
        z.planned, z.allocated, z.held, z.cancelled, z.total_minor, z.reason
    FROM (
        SELECT envelope_id, large_zone_id, max(large_zone_code) AS large_zone_code, small_zone_id,
            max(small_zone_code) AS small_zone_code, warehouse_id, max(warehouse_by) AS warehouse_chosen_by,
            agency_id, max(agency_by) AS agency_chosen_by,
            coalesce(sum(count) FILTER (WHERE state = 'PLANNED'), 0)::bigint AS planned,
            coalesce(sum(count) FILTER (WHERE state = 'ALLOCATED'), 0)::bigint AS allocated,
            coalesce(sum(count) FILTER (WHERE state = 'HELD'), 0)::bigint AS held,
            coalesce(sum(count) FILTER (WHERE state = 'CANCELLED'), 0)::bigint AS cancelled,
            sum(total_minor)::bigint AS total_minor, coalesce(max(reason) FILTER (WHERE state = 'HELD'), '') AS reason
        FROM groups WHERE small_zone_id IS NOT NULL AND state <> 'NEW'
        GROUP BY envelope_id, large_zone_id, small_zone_id, warehouse_id, agency_id) AS z;
CREATE VIEW ops_entitlements AS
    SELECT g.envelope_id, g.batch_id, e.disbursement_id, e.beneficiary_id, e.amount_minor, g.large_zone_id, g.small_zone_id,
        g.warehouse_id, g.agency_id, g.state, g.part, g.given_back
    FROM groups g JOIN entitlements e USING (arrival, grp) WHERE g.state <> 'NEW';
CREATE VIEW ops_held AS
    SELECT g.envelope_id, g.batch_id, e.disbursement_id, e.beneficiary_id, e.amount_minor, g.reason, g.message, g.since
    FROM groups g JOIN entitlements e USING (arrival, grp) WHERE g.state = 'HELD';
CREATE VIEW ops_places AS
    SELECT p.kind, p.id, p.mnemonic, p.name,
        coalesce((SELECT array_agg(z.zone_id ORDER BY z.zone_id) FROM place_zones z
                  WHERE (z.source, z.kind, z.id) = (p.source, p.kind, p.id)), '{}') AS zones,
        coalesce((SELECT array_agg(s.programme_id || '/' || s.benefit_code_id ORDER BY s.programme_id, s.benefit_code_id)
                  FROM serves s WHERE (s.source, s.kind, s.id) = (p.source, p.kind, p.id)), '{}') AS serves,
        p.source, p.updated_at
    FROM places p WHERE NOT p.gone;
CREATE VIEW ops_reference AS SELECT source, version, taken_at, faulty FROM reference;
CREATE VIEW ops_loads AS SELECT kind, place_id, programme_id, benefit_code_id, cycle_id, units FROM loads;
CREATE VIEW ops_history AS
    SELECT a.envelope_id, a.batch_id, NULL::text AS disbursement_id, a.received_at AS at, 'arrived at allocation' AS step,
        format('part %s: %s located, %s held', a.part, a.located, a.unresolved) AS detail FROM arrivals a
    UNION ALL SELECT envelope_id, NULL, NULL, said_at, 'all allocated', 'revision ' || said_revision
    FROM envelopes WHERE said_at IS NOT NULL
    UNION ALL SELECT envelope_id, batch_id, NULL, at, 'allocated', format('part %s: %s people, %s held', part, count, held)
    FROM announcements
    UNION ALL SELECT g.envelope_id, g.batch_id, e.disbursement_id, g.since, 'held',
        concat_ws(': ', g.reason, nullif(g.message, ''))
    FROM groups g JOIN entitlements e USING (arrival, grp) WHERE g.state = 'HELD'
    UNION ALL SELECT g.envelope_id, g.batch_id, e.disbursement_id, g.since, 'cancelled', ''
    FROM groups g JOIN entitlements e USING (arrival, grp) WHERE g.state = 'CANCELLED'
    UNION ALL SELECT CASE WHEN affected > 0 THEN (detail::json ->> 'envelope_id')::uuid END, NULL, NULL, at, 'zone reassigned',
        CASE WHEN affected > 0 THEN format('%s of zone %s is %s, for %s people: %s', detail::json ->> 'kind',
            detail::json ->> 'zone_id', detail::json ->> 'place_id', affected, why) END
    FROM audit WHERE action = 'almoner.operator.ReassignZone.v1' AND affected > 0
    UNION ALL SELECT envelope_id, NULL, NULL, cancelled_at, 'envelope cancelled', '' FROM envelopes WHERE cancelled_at IS NOT NULL;
"""


def upgrade() -> None:
    bind = op.get_bind()
    run_sql(bind, RUNTIME_V1)
    run_sql(bind, TABLES + VIEWS)
