"""Batches, their parts, who is held, and a copy of the registries that are published."""

from alembic import op

from libs.common.migrate import run_sql
from libs.common.runtime_schema import RUNTIME_V1

revision = "0001"
down_revision = None

SQL = """
CREATE TABLE batches (
    batch_id uuid PRIMARY KEY,
    envelope_id uuid NOT NULL, number int NOT NULL,
    -- Who is asked: the mapper for addresses (resolve), or the registry for zones (locate).
    benefit_type text NOT NULL, kind text NOT NULL CHECK (kind IN ('resolve', 'locate')), registry text NOT NULL,
    count int NOT NULL CHECK (count > 0),
    resolved int NOT NULL DEFAULT 0, unresolved int NOT NULL DEFAULT 0,
    -- The event's data (zstd of JSON, names sealed): what later parts are made of. It goes when nobody is left to resolve; of
    -- addresses some days later, since one that is wrong may be corrected. Until then their disbursements can be named.
    body bytea, disbursements text[] COLLATE "C",
    received_at timestamptz NOT NULL DEFAULT clock_timestamp(), resolved_at timestamptz,
    CHECK (resolved >= 0 AND unresolved >= 0 AND resolved + unresolved <= count),
    CHECK (resolved_at IS NULL OR resolved + unresolved = count),  -- after the first answer everybody has one
    CHECK (body IS NOT NULL OR resolved = count),                  -- nobody is left without what resolves them
    CHECK ((disbursements IS NOT NULL) = (kind = 'resolve' AND body IS NOT NULL))
);
ALTER TABLE batches ALTER COLUMN body SET STORAGE EXTERNAL;
CREATE INDEX batches_envelope ON batches (envelope_id);
CREATE INDEX batches_kept ON batches (resolved_at) WHERE body IS NOT NULL AND resolved = count;

-- Part 1 asks for everybody, each later one for some of them. One event per answered part that has something new to say.
CREATE TABLE parts (
    batch_id uuid NOT NULL REFERENCES batches, part int NOT NULL CHECK (part BETWEEN 1 AND 10000),
    asked int NOT NULL CHECK (asked > 0), resolved int, unresolved int,
    kept int NOT NULL DEFAULT 0,  -- resolved before, asked for again in vain: they stay as they were
    asked_at timestamptz NOT NULL DEFAULT clock_timestamp(), answered_at timestamptz,
    PRIMARY KEY (batch_id, part),
    CHECK ((answered_at IS NULL) = (resolved IS NULL) AND (answered_at IS NULL) = (unresolved IS NULL)),
    CHECK (resolved + unresolved + kept = asked)  -- every person asked for is in exactly one of them
);
-- At most one part of a batch is under way.
CREATE UNIQUE INDEX parts_under_way ON parts (batch_id) WHERE answered_at IS NULL;

-- Whoever could not be resolved, and what became of them. Nobody else has a row before an operator names them.
CREATE TABLE held (
    batch_id uuid NOT NULL REFERENCES batches, disbursement_id text COLLATE "C" NOT NULL,
    beneficiary_id text COLLATE "C" NOT NULL, amount_minor bigint NOT NULL CHECK (amount_minor > 0),
    reason text NOT NULL, message text NOT NULL,
    asked_in int,  -- the part under way that asks for this person again
    since timestamptz NOT NULL DEFAULT clock_timestamp(), resolved_at timestamptz,
    PRIMARY KEY (batch_id, disbursement_id),
    CHECK (resolved_at IS NULL OR asked_in IS NULL),
    FOREIGN KEY (batch_id, asked_in) REFERENCES parts (batch_id, part)
);
CREATE INDEX held_open ON held (batch_id) WHERE resolved_at IS NULL;

-- Who was resolved and is asked for once more, because an operator says that the address is another by now.
CREATE TABLE again (
    batch_id uuid NOT NULL, part int NOT NULL, disbursement_id text COLLATE "C" NOT NULL, found boolean NOT NULL DEFAULT false,
    PRIMARY KEY (batch_id, part, disbursement_id), FOREIGN KEY (batch_id, part) REFERENCES parts
);

-- Where people live, of the registries that are published on reference.people.v1: the last word on each, and when and where in
-- the topic it was said. Who was removed keeps a row without a zone, so that an older word does not bring them back.
CREATE TABLE people (
    registry text COLLATE "C" NOT NULL, beneficiary_id text COLLATE "C" NOT NULL,
    large_zone_id text, large_zone_code text, small_zone_id text, small_zone_code text,
    said_ms bigint NOT NULL, said_offset bigint NOT NULL,
    PRIMARY KEY (registry, beneficiary_id),
    CHECK (num_nulls(large_zone_id, large_zone_code, small_zone_id, small_zone_code) IN (0, 4))  -- a zone, or none
);

CREATE VIEW ops_batches AS
    SELECT batch_id, envelope_id, number, (SELECT count(*)::int FROM parts p WHERE p.batch_id = b.batch_id) AS parts, count,
           resolved, unresolved, received_at, resolved_at, benefit_type, kind, registry
    FROM batches b;
CREATE VIEW ops_held AS
    SELECT envelope_id, batch_id, disbursement_id, beneficiary_id, amount_minor, reason, message, since, kind, registry
    FROM held JOIN batches USING (batch_id) WHERE held.resolved_at IS NULL;
CREATE VIEW ops_history AS
    SELECT envelope_id, batch_id, NULL::text AS disbursement_id, received_at AS at,
           CASE kind WHEN 'resolve' THEN 'batch received' ELSE 'batch to be located' END AS step,
           format('batch %s, %s people', number, count) AS detail, kind FROM batches
    UNION ALL
    SELECT envelope_id, batch_id, NULL, asked_at, CASE kind WHEN 'resolve' THEN 'asked again' ELSE 'registry asked again' END,
           format('part %s, %s people', part, asked), kind
    FROM parts JOIN batches USING (batch_id) WHERE part > 1
    UNION ALL
    SELECT envelope_id, batch_id, NULL, answered_at,
           CASE kind WHEN 'resolve' THEN 'addresses resolved' ELSE 'zones resolved' END,
           format('part %s: %s resolved, %s held', part, parts.resolved, parts.unresolved)
               || CASE WHEN kept > 0 THEN format(', %s as before', kept) ELSE '' END, kind
    FROM parts JOIN batches USING (batch_id) WHERE answered_at IS NOT NULL
    UNION ALL
    SELECT envelope_id, batch_id, disbursement_id, since, 'held', concat_ws(': ', reason, nullif(message, '')), kind
    FROM held JOIN batches USING (batch_id)
    UNION ALL
    SELECT envelope_id, batch_id, disbursement_id, held.resolved_at,
           CASE kind WHEN 'resolve' THEN 'address resolved' ELSE 'zone resolved' END, 'after it was held', kind
    FROM held JOIN batches USING (batch_id) WHERE held.resolved_at IS NOT NULL
    UNION ALL
    SELECT envelope_id, batch_id, disbursement_id, answered_at, 'address resolved', 'asked again though it was known', kind
    FROM again JOIN parts USING (batch_id, part) JOIN batches USING (batch_id) WHERE found;
"""


def upgrade() -> None:
    bind = op.get_bind()
    run_sql(bind, RUNTIME_V1)
    run_sql(bind, SQL)
