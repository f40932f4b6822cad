"""Who is to be told what, in which mailing, and what became of it."""

from alembic import op

from libs.common.migrate import run_sql
from libs.common.runtime_schema import RUNTIME_V1

revision = "0001"
down_revision = None

TABLES = """
CREATE TABLE batches (
    batch_id uuid PRIMARY KEY, envelope_id uuid NOT NULL,
    header text NOT NULL, revision int NOT NULL,  -- as the newest event of the batch says
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX batches_envelope ON batches (envelope_id);

-- What notices are made of: the event's data (zstd of JSON), in which whatever is personal is sealed. The arrays, in the event's
-- order, answer without opening it who is in the part.
CREATE TABLE parts (
    batch_id uuid NOT NULL REFERENCES batches, part int NOT NULL,
    disbursement_ids text[] NOT NULL, beneficiary_ids text[] NOT NULL,
    agency_ids text[],  -- of each; none where people are paid by account
    body bytea NOT NULL, received_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (batch_id, part),
    CHECK (cardinality(disbursement_ids) = cardinality(beneficiary_ids)),
    CHECK (cardinality(disbursement_ids) = cardinality(agency_ids))
);
ALTER TABLE parts ALTER COLUMN body SET STORAGE EXTERNAL;

-- What agencies are paid, with whose shares. They are told by these lists, of which nothing changes and in which everybody of an
-- instruction is once: mostly there is one, of what the bank has; another one of what a statement shows besides.
CREATE TABLE instructions (
    batch_id uuid NOT NULL REFERENCES batches, instruction bigint NOT NULL, list_number int NOT NULL,
    disbursement_ids text[] NOT NULL, amounts bigint[] NOT NULL, agency_ids text[] NOT NULL,
    parts int[] NOT NULL,  -- where these people's names are
    received_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (batch_id, instruction, list_number)
);

-- Payments of people whose part has not come yet; taken up by the job when it does.
CREATE TABLE parked (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    batch_id uuid NOT NULL REFERENCES batches, step text NOT NULL CHECK (step IN ('DISPATCHED', 'CONFIRMED')),
    instruction bigint NOT NULL, disbursement_ids text[] NOT NULL, amounts bigint[] NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK (cardinality(disbursement_ids) = cardinality(amounts))
);
CREATE INDEX parked_batch ON parked (batch_id);

-- What the provider gets in one call: notices of one kind and channel, of one part (or one list of an instruction) of a batch. Work
-- of the kind named by the channel has the mailing's number as its subject. Nothing is added to it, ever; nothing is taken from
-- it once it was attempted, but what was certainly not sent.
CREATE SEQUENCE mailing_numbers;
CREATE TABLE mailings (
    mailing bigint PRIMARY KEY, envelope_id uuid NOT NULL, batch_id uuid NOT NULL REFERENCES batches,
    part int, instruction bigint, list_number int NOT NULL DEFAULT 1, page_items int NOT NULL,
    kind text NOT NULL CHECK (kind IN ('WAREHOUSE', 'AGENCY', 'BENEFICIARY')),
    channel text CHECK (channel IN ('novu', 'smtp', 'file')),  -- none: not sent at all
    not_before timestamptz,
    attempted_at timestamptz, settled_at timestamptz, created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK ((part IS NULL) <> (instruction IS NULL)),
    CHECK (instruction IS NULL OR kind = 'AGENCY')
);
CREATE INDEX mailings_batch ON mailings (batch_id);
CREATE INDEX mailings_envelope ON mailings (envelope_id);

-- One notice per subject and kind, ever: the id is made of both, and of how often an operator asked for another.
CREATE TABLE notices (
    notice_id uuid PRIMARY KEY, mailing bigint NOT NULL REFERENCES mailings, position smallint NOT NULL,
    subject text COLLATE "C" NOT NULL,  -- warehouse, agency, or disbursement
    party text COLLATE "C" NOT NULL,    -- the same, of a disbursement the person
    page smallint NOT NULL DEFAULT 1, pages smallint NOT NULL DEFAULT 1,
    serial smallint NOT NULL DEFAULT 1, replaces uuid REFERENCES notices,
    state text NOT NULL CHECK (state IN ('PENDING', 'SENT', 'FAILED', 'SUPPRESSED', 'UNKNOWN')),
    code text, message text NOT NULL DEFAULT '', delivery text CHECK (delivery IN ('DELIVERED', 'BOUNCED')),
    tries smallint NOT NULL DEFAULT 0,  -- that ended in certainly not sent, with others of its mailing settled
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(), sent_at timestamptz,
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK (page BETWEEN 1 AND pages),
    CHECK ((serial = 1) = (replaces IS NULL)),                       -- only an operator makes a second one
    CHECK (state IN ('PENDING', 'SENT') OR code IS NOT NULL),        -- whoever was not told has a reason
    CHECK (state <> 'SENT' OR sent_at IS NOT NULL),
    CHECK (delivery IS NULL OR state <> 'SUPPRESSED'),
    CHECK (state <> 'UNKNOWN' OR delivery IS NULL)                   -- what has arrived was sent
) WITH (fillfactor = 80);
CREATE INDEX notices_mailing ON notices (mailing, position);
CREATE UNIQUE INDEX notices_replaces ON notices (replaces) WHERE replaces IS NOT NULL;  -- and each has one successor at most
CREATE INDEX notices_subject ON notices (subject);
CREATE INDEX notices_open ON notices (state, created_at) WHERE state IN ('PENDING', 'UNKNOWN');
CREATE INDEX notices_failed ON notices (created_at) WHERE state = 'FAILED';

CREATE TABLE suppressed (
    kind text NOT NULL CHECK (kind IN ('WAREHOUSE', 'AGENCY', 'BENEFICIARY')), party text COLLATE "C" NOT NULL,
    who text NOT NULL, why text NOT NULL, since timestamptz NOT NULL DEFAULT clock_timestamp(), PRIMARY KEY (kind, party)
);
"""

VIEWS = """
CREATE VIEW ops_notices AS
    SELECT n.notice_id, m.envelope_id, m.batch_id, m.part, m.instruction, m.kind, n.subject, n.party, n.page, n.pages,
        coalesce(m.channel, 'none') AS channel, m.mailing, n.state,
        CASE WHEN n.state = 'PENDING' THEN coalesce(w.code, n.code) ELSE n.code END AS code,
        CASE WHEN n.state = 'PENDING' THEN coalesce(w.message, n.message) ELSE n.message END AS message,
        w.state AS work, n.delivery, n.created_at, n.sent_at, n.serial, n.replaces, m.list_number
    FROM notices n JOIN mailings m USING (mailing) LEFT JOIN work w ON w.kind = m.channel AND w.subject = m.mailing::text;
CREATE VIEW ops_notice_counts AS
    SELECT m.envelope_id, m.kind, coalesce(m.channel, 'none') AS channel, n.state, n.delivery, count(*) AS notices
    FROM notices n JOIN mailings m USING (mailing) GROUP BY 1, 2, 3, 4, 5;
CREATE VIEW ops_parked AS
    SELECT b.envelope_id, p.batch_id, p.step, p.instruction, cardinality(p.disbursement_ids) AS people, p.at
    FROM parked p JOIN batches b USING (batch_id);
CREATE VIEW ops_suppressed AS SELECT kind, party, who, why, since FROM suppressed;
CREATE VIEW ops_history AS
    SELECT m.envelope_id, m.batch_id, NULL::text AS disbursement_id, min(n.created_at) AS at, 'notices made' AS step,
        count(*) || ' ' || CASE m.kind WHEN 'BENEFICIARY' THEN 'people' WHEN 'AGENCY' THEN 'agencies' ELSE 'warehouses' END AS detail
    FROM notices n JOIN mailings m USING (mailing) WHERE n.serial = 1 GROUP BY m.envelope_id, m.batch_id, m.kind
    UNION ALL
    SELECT m.envelope_id, m.batch_id, CASE WHEN m.kind = 'BENEFICIARY' THEN n.subject END, coalesce(n.sent_at, n.updated_at),
        'notice ' || lower(n.state),
        concat_ws(', ', CASE WHEN m.kind <> 'BENEFICIARY' THEN lower(m.kind) || ' ' || n.subject END,
                  CASE WHEN n.pages > 1 THEN 'page ' || n.page || ' of ' || n.pages END, m.channel, n.code,
                  CASE WHEN n.serial > 1 THEN 'asked for again' END)
    FROM notices n JOIN mailings m USING (mailing) WHERE n.state <> 'PENDING'
    UNION ALL
    SELECT m.envelope_id, m.batch_id, CASE WHEN m.kind = 'BENEFICIARY' THEN n.subject END, n.updated_at, 'notice delivered',
        concat_ws(', ', CASE WHEN m.kind <> 'BENEFICIARY' THEN lower(m.kind) || ' ' || n.subject END, m.channel)
    FROM notices n JOIN mailings m USING (mailing) WHERE n.delivery = 'DELIVERED'
    UNION ALL
    SELECT b.envelope_id, b.batch_id, NULL, i.received_at, 'agencies are paid',
        cardinality(i.disbursement_ids) || ' people, instruction ' || i.instruction
    FROM instructions i JOIN batches b USING (batch_id);
"""


def upgrade() -> None:
    bind = op.get_bind()
    run_sql(bind, RUNTIME_V1)
    run_sql(bind, TABLES + VIEWS)
