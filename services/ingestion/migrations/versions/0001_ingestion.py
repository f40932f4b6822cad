"""Ingestion's tables."""

from alembic import op

from libs.common.migrate import run_sql
from libs.common.runtime_schema import RUNTIME_V1

revision = "0001"
down_revision = None

SQL = """
-- One row for each event that others published and that has an id: the same id with the same content is answered with the
-- same answer again, with other content ID_REUSED. `answer` holds the fields of the answer that are not columns here.
CREATE TABLE submissions (
    source text COLLATE "C" NOT NULL, id text COLLATE "C" NOT NULL, digest bytea NOT NULL, type text NOT NULL,
    envelope_id uuid, publisher_envelope_id text,
    outcome text CHECK (outcome IN ('accepted', 'parked', 'rejected', 'cancelled', 'stored', 'answered')),
    answer text,
    received_at timestamptz NOT NULL, answered_at timestamptz,
    PRIMARY KEY (source, id),
    CHECK ((outcome IS NULL) = (answer IS NULL)),       -- what is decided can be said again
    CHECK ((outcome IS NULL) = (answered_at IS NULL))
) WITH (fillfactor = 80);
-- The few of an envelope which are not chunks, for its history.
CREATE INDEX submissions_envelope ON submissions (envelope_id)
    WHERE type <> 'almoner.ingestion.DisbursementsAdded.v1' OR outcome = 'rejected';

CREATE TABLE envelopes (
    envelope_id uuid PRIMARY KEY,
    number bigint GENERATED ALWAYS AS IDENTITY UNIQUE,  -- the short key of the big tables
    source text COLLATE "C" NOT NULL, publisher_envelope_id text COLLATE "C" NOT NULL,
    digest bytea NOT NULL,                              -- of what was submitted: a second submission must say the same
    header jsonb NOT NULL,
    beneficiaries int NOT NULL, declared int NOT NULL, declared_minor bigint NOT NULL,  -- with what was amended since
    received int NOT NULL DEFAULT 0, received_minor bigint NOT NULL DEFAULT 0,
    batches int NOT NULL DEFAULT 0,                     -- cut
    open int NOT NULL DEFAULT 0,                        -- received, not yet cut
    open_since timestamptz,
    state text NOT NULL DEFAULT 'RECEIVING' CHECK (state IN ('RECEIVING', 'COMPLETED', 'CANCELLING', 'CANCELLED', 'SETTLED')),
    funds text NOT NULL DEFAULT 'NONE' CHECK (funds IN ('NONE', 'CHECKED', 'SHORT', 'BLOCKED')),
    dated int NOT NULL DEFAULT 0,                       -- revision of the date that funds accepted after all had come
    progress jsonb, settlement jsonb,                   -- as funds last said
    allocation jsonb,                                   -- of goods: as allocation last said
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(), updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    completed_at timestamptz, cancelling_at timestamptz,
    UNIQUE (source, publisher_envelope_id),
    CHECK (received <= declared AND received_minor <= declared_minor),  -- never more than the publisher declared
    CHECK (state <> 'COMPLETED' OR (received = declared AND received_minor = declared_minor)),
    CHECK (open >= 0 AND open < 1000 AND (open > 0) = (open_since IS NOT NULL)),
    CHECK (state = 'RECEIVING' OR open = 0)             -- nothing is cut once the envelope is closed
) WITH (fillfactor = 70);

-- What was folded and waits for the decision under the envelope's exclusive lock: in the order of its ids.
-- Parked: the envelope was not there yet.
CREATE TABLE staged (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    envelope_id uuid NOT NULL,
    kind text NOT NULL CHECK (kind IN ('disbursements', 'cancel_disbursements', 'cancel_envelope', 'amend_envelope')),
    items int NOT NULL CHECK (items > 0), parked boolean NOT NULL, sealed bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
ALTER TABLE staged ALTER COLUMN sealed SET STORAGE EXTERNAL;
CREATE INDEX staged_envelope ON staged (envelope_id, id);
CREATE INDEX staged_parked ON staged (created_at) WHERE parked;

-- Batch and position are known as soon as a disbursement is taken; the batch may be cut later. Written once.
CREATE TABLE disbursements (
    envelope bigint NOT NULL, disbursement_id text COLLATE "C" NOT NULL, beneficiary_id text COLLATE "C" NOT NULL,
    amount_minor bigint NOT NULL CHECK (amount_minor > 0), batch int NOT NULL, position int NOT NULL,
    PRIMARY KEY (envelope, disbursement_id)             -- an id is paid once, whatever else fails
);
-- One text: an index that begins with the envelope would be scanned for all its rows, wherever statistics know others only.
CREATE INDEX disbursements_beneficiary ON disbursements ((envelope::text || '/' || beneficiary_id) COLLATE "C");

-- The disbursements of each envelope's open batch, with what is personal.
CREATE TABLE uncut (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, envelope bigint NOT NULL, sealed bytea NOT NULL
);
ALTER TABLE uncut ALTER COLUMN sealed SET STORAGE EXTERNAL;
CREATE INDEX uncut_envelope ON uncut (envelope, id);

CREATE TABLE batches (
    envelope bigint NOT NULL, number int NOT NULL, batch_id uuid NOT NULL UNIQUE,
    count int NOT NULL CHECK (count BETWEEN 1 AND 1000), total_minor bigint NOT NULL CHECK (total_minor > 0),
    cut_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (envelope, number)
);

-- Statement files as they came. The id derives from the content: the same file again changes nothing.
CREATE TABLE statement_files (
    file_id uuid PRIMARY KEY, source text NOT NULL, bytes bigint NOT NULL,
    received_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE TABLE statement_pieces (
    file_id uuid NOT NULL, piece int NOT NULL, sealed bytea NOT NULL, PRIMARY KEY (file_id, piece)
);
ALTER TABLE statement_pieces ALTER COLUMN sealed SET STORAGE EXTERNAL;

-- The statements of a file. Lines from `next_byte` to `end_byte` are still to be read.
CREATE TABLE statements (
    statement_id uuid PRIMARY KEY, file_id uuid NOT NULL REFERENCES statement_files,
    account_token text NOT NULL, reference text NOT NULL, number text NOT NULL, sequence text NOT NULL, currency text,
    closing_date date, opening_minor bigint, closing_minor bigint, lines int NOT NULL, chunks int NOT NULL,
    chunks_read int NOT NULL DEFAULT 0, unparsable int NOT NULL DEFAULT 0,
    next_byte bigint NOT NULL, end_byte bigint NOT NULL,
    state text NOT NULL CHECK (state IN ('READING', 'READ', 'REJECTED')), reason text NOT NULL DEFAULT '',
    received_at timestamptz NOT NULL DEFAULT clock_timestamp(), read_at timestamptz,
    numbered boolean NOT NULL,                          -- false: from a bank whose numbers and balances say nothing
    -- what statements of an account are ordered by
    year int GENERATED ALWAYS AS (extract(year FROM closing_date)::int) STORED,
    n int GENERATED ALWAYS AS (CASE WHEN number ~ '^[0-9]{1,5}$' THEN number::int ELSE 0 END) STORED,
    part int GENERATED ALWAYS AS (CASE WHEN sequence ~ '^[0-9]{1,5}$' THEN sequence::int ELSE 0 END) STORED,
    CHECK (chunks_read <= chunks AND (state <> 'READ' OR chunks_read = chunks)),
    -- lines without a currency or between unknown balances are never passed on
    CHECK (state = 'REJECTED' OR num_nulls(currency, opening_minor, closing_minor) = 0)
) WITH (fillfactor = 70);

CREATE INDEX statements_file ON statements (file_id);
CREATE INDEX statements_account ON statements (account_token, currency, closing_date, n, part, received_at, statement_id)
    WHERE numbered AND state <> 'REJECTED';
CREATE INDEX statements_number ON statements (account_token, year, n, part) WHERE numbered AND state <> 'REJECTED';

CREATE VIEW ops_envelopes AS
    SELECT envelope_id, source, publisher_envelope_id, header->'programme'->>'id' AS programme,
           header->'benefit_code'->>'id' AS benefit_code, header->>'benefit_type' AS benefit_type,
           header->>'currency' AS currency, header->>'measurement_unit' AS measurement_unit,
           (header->>'unit_scale')::int AS unit_scale,
           (header->>'schedule_date')::date AS schedule_date, (header->>'revision')::int AS revision,
           state, beneficiaries, declared, declared_minor, received, received_minor, batches,
           created_at, updated_at FROM envelopes;
CREATE VIEW ops_batches AS
    SELECT b.batch_id, e.envelope_id, b.number, b.count, b.total_minor, b.cut_at
    FROM batches b JOIN envelopes e ON e.number = b.envelope;
CREATE VIEW ops_disbursements AS
    SELECT e.envelope_id, d.disbursement_id, d.beneficiary_id, d.amount_minor, b.batch_id, d.position
    FROM disbursements d JOIN envelopes e ON e.number = d.envelope
    LEFT JOIN batches b ON b.envelope = d.envelope AND b.number = d.batch;
CREATE VIEW ops_submissions AS
    SELECT source, id, type, envelope_id, outcome, CASE WHEN outcome = 'rejected' THEN answer END AS errors, received_at,
           answered_at FROM submissions;
-- What is strange beside the other statements of the account, whatever order they came in. It is told and stops nothing: there
-- are banks that write no numbers. Number 0 is no number; numbers begin anew each year. Of a bank that numbers every statement 1/1
-- (`numbered` is false) nothing is compared: a flag on each of them would hide those that mean something.
CREATE VIEW statement_flags AS
    SELECT s.statement_id, array_remove(ARRAY[
        CASE WHEN s.n > 0 AND EXISTS (
                 SELECT 1 FROM statements o WHERE o.account_token = s.account_token AND o.year = s.year AND o.n = s.n
                    AND o.part = s.part AND o.statement_id <> s.statement_id AND o.numbered AND o.state <> 'REJECTED')
             THEN 'SAME_NUMBER' END,
        CASE WHEN s.n > 0 AND b.n > 0 AND NOT (b.year = s.year AND b.n = s.n AND s.part - b.part IN (0, 1)
                 OR b.year = s.year AND b.n = s.n - 1 AND s.part <= 1 OR b.year < s.year AND s.n = 1 AND s.part <= 1)
             THEN 'NUMBER_GAP' END,
        CASE WHEN b.closing_minor <> s.opening_minor THEN 'BALANCE_GAP' END], NULL) AS flags
    FROM statements s
    LEFT JOIN LATERAL (  -- the one before it
        SELECT year, n, part, closing_minor FROM statements o
        WHERE o.account_token = s.account_token AND o.currency = s.currency AND o.numbered AND o.state <> 'REJECTED'
          AND (o.closing_date, o.n, o.part) <= (s.closing_date, s.n, s.part)
          AND ((o.closing_date, o.n, o.part) <> (s.closing_date, s.n, s.part)
               OR s.n = 0 AND (o.received_at, o.statement_id) < (s.received_at, s.statement_id))
        ORDER BY o.closing_date DESC, o.n DESC, o.part DESC, o.received_at DESC, o.statement_id DESC LIMIT 1) AS b ON true
    WHERE s.numbered AND s.state <> 'REJECTED';
-- `flags` looks at other statements, so it is worked out only where it is asked for.
CREATE VIEW ops_statements AS
    SELECT s.statement_id, s.account_token, s.number, s.sequence, s.lines, s.unparsable, s.state, s.received_at, s.reason, s.chunks,
           s.chunks_read, s.closing_date, s.currency, s.opening_minor, s.closing_minor, o.source,
           coalesce((SELECT f.flags FROM statement_flags f WHERE f.statement_id = s.statement_id), '{}') AS flags
    FROM statements s JOIN statement_files o USING (file_id);
CREATE VIEW ops_history AS
    SELECT envelope_id, NULL::uuid AS batch_id, NULL::text AS disbursement_id, created_at AS at, 'accepted' AS step,
           declared || ' disbursements declared, ' || declared_minor || ' minor units' AS detail FROM envelopes
    UNION ALL
    SELECT envelope_id, NULL, NULL, completed_at, 'complete', received || ' disbursements received in ' || batches || ' batches'
    FROM envelopes WHERE completed_at IS NOT NULL
    UNION ALL
    SELECT envelope_id, NULL, NULL, cancelling_at, 'cancellation passed on', received || ' disbursements received until then'
    FROM envelopes WHERE cancelling_at IS NOT NULL
    UNION ALL
    SELECT e.envelope_id, b.batch_id, NULL, b.cut_at, 'batch cut', 'number ' || b.number || ', ' || b.count || ' disbursements'
    FROM batches b JOIN envelopes e ON e.number = b.envelope
    UNION ALL
    SELECT envelope_id, NULL, NULL, coalesce(answered_at, received_at), 'submission ' || coalesce(outcome, 'received'),
           split_part(type, '.', 3) || ' ' || id
    FROM submissions WHERE envelope_id IS NOT NULL
        AND (type <> 'almoner.ingestion.DisbursementsAdded.v1' OR outcome = 'rejected');
"""


def upgrade() -> None:
    bind = op.get_bind()
    run_sql(bind, RUNTIME_V1)
    run_sql(bind, SQL)
