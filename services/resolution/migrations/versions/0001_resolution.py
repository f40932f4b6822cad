"""Batches, their parts, and who is held."""

from alembic import op

from libs.common.migrate import run_sql
from libs.common.runtime_schema import RUNTIME_V1

revision = "0001"
down_revision = None

SQL = """
CREATE TABLE batches (
    batch_id uuid PRIMARY KEY,
    envelope_id uuid NOT NULL, number int NOT NULL,
    count int NOT NULL CHECK (count > 0),
    resolved int NOT NULL DEFAULT 0, unresolved int NOT NULL DEFAULT 0,
    -- The event's data (zstd of JSON, names sealed): what later parts are made of. It goes when nobody is left to resolve.
    body bytea,
    received_at timestamptz NOT NULL DEFAULT clock_timestamp(), resolved_at timestamptz,
    CHECK (resolved >= 0 AND unresolved >= 0 AND resolved + unresolved <= count),
    CHECK (resolved_at IS NULL OR resolved + unresolved = count),  -- after the first answer everybody has one
    CHECK (body IS NOT NULL OR resolved = count)                   -- nobody is left without what resolves them
);
ALTER TABLE batches ALTER COLUMN body SET STORAGE EXTERNAL;
CREATE INDEX batches_envelope ON batches (envelope_id);

-- Part 1 asks for everybody, each later one for some who were held. One event per answered part.
CREATE TABLE parts (
    batch_id uuid NOT NULL REFERENCES batches, part int NOT NULL CHECK (part BETWEEN 1 AND 10000),
    asked int NOT NULL CHECK (asked > 0), resolved int, unresolved int,
    asked_at timestamptz NOT NULL DEFAULT clock_timestamp(), answered_at timestamptz,
    PRIMARY KEY (batch_id, part),
    CHECK ((answered_at IS NULL) = (resolved IS NULL) AND (answered_at IS NULL) = (unresolved IS NULL)),
    CHECK (resolved + unresolved = asked)  -- every person asked for is either resolved or held
);
-- At most one part of a batch is under way.
CREATE UNIQUE INDEX parts_under_way ON parts (batch_id) WHERE answered_at IS NULL;

-- Whoever could not be resolved, and what became of them. Nobody else is stored one by one.
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

CREATE VIEW ops_batches AS
    SELECT batch_id, envelope_id, number, (SELECT count(*)::int FROM parts p WHERE p.batch_id = b.batch_id) AS parts, count,
           resolved, unresolved, received_at, resolved_at
    FROM batches b;
CREATE VIEW ops_held AS
    SELECT envelope_id, batch_id, disbursement_id, beneficiary_id, amount_minor, reason, message, since
    FROM held JOIN batches USING (batch_id) WHERE held.resolved_at IS NULL;
CREATE VIEW ops_history AS
    SELECT envelope_id, batch_id, NULL::text AS disbursement_id, received_at AS at, 'batch received' AS step,
           format('batch %s, %s people', number, count) AS detail FROM batches
    UNION ALL
    SELECT envelope_id, batch_id, NULL, asked_at, 'asked again', format('part %s, %s people', part, asked)
    FROM parts JOIN batches USING (batch_id) WHERE part > 1
    UNION ALL
    SELECT envelope_id, batch_id, NULL, answered_at, 'addresses resolved',
           format('part %s: %s resolved, %s held', part, parts.resolved, parts.unresolved)
    FROM parts JOIN batches USING (batch_id) WHERE answered_at IS NOT NULL
    UNION ALL
    SELECT envelope_id, batch_id, disbursement_id, since, 'held', concat_ws(': ', reason, nullif(message, ''))
    FROM held JOIN batches USING (batch_id)
    UNION ALL
    SELECT envelope_id, batch_id, disbursement_id, held.resolved_at, 'address resolved', 'after it was held'
    FROM held JOIN batches USING (batch_id) WHERE held.resolved_at IS NOT NULL;
"""


def upgrade() -> None:
    bind = op.get_bind()
    run_sql(bind, RUNTIME_V1)
    run_sql(bind, SQL)
