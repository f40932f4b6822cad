"""Funds: envelopes, blocks, instructions, payments, facts, exceptions."""

from alembic import op

from libs.common.migrate import run_sql
from libs.common.runtime_schema import RUNTIME_V1

revision = "0001"
down_revision = None

TABLES = """
CREATE TABLE envelopes (
    envelope_id uuid PRIMARY KEY, lock_key bigint NOT NULL,
    header text NOT NULL,                               -- JSON; whoever comes first creates the row, any event carries it
    source text NOT NULL, publisher_envelope_id text NOT NULL, programme text NOT NULL, currency text NOT NULL,
    schedule_date date NOT NULL, time_zone text NOT NULL,
    completed_batches int, completed_count bigint, completed_minor bigint,
    funds text NOT NULL DEFAULT 'WAITING' CHECK (funds IN
        ('WAITING', 'CHECKING', 'SHORT', 'BLOCKING', 'BLOCK_UNKNOWN', 'BLOCKED')),
    round int NOT NULL DEFAULT 0,                       -- of checks; each has its own work row
    cancelling boolean NOT NULL DEFAULT false,          -- stops claims at once
    cancelled_at timestamptz, settled_revision int NOT NULL DEFAULT 0, settled_position text, settled_at timestamptz,
    said_revision int NOT NULL DEFAULT 0, said_position text, said_at timestamptz,  -- of the position, settled or not
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(), completed_at timestamptz,
    CHECK ((completed_count IS NULL) = (completed_minor IS NULL))  -- frozen together, when ingestion says complete
);
CREATE INDEX envelopes_waiting ON envelopes (schedule_date) WHERE funds IN ('WAITING', 'SHORT') AND completed_minor IS NOT NULL;
CREATE INDEX envelopes_publisher ON envelopes (publisher_envelope_id);

-- Money reserved at the bank. The amount is fixed before the first attempt; cancelled later, it is released. The envelope's own
-- block is for whoever has not been paid; a further one is for repayments, and pays only what it was asked for.
CREATE TABLE blocks (
    envelope_id uuid NOT NULL REFERENCES envelopes, block int NOT NULL,
    further boolean NOT NULL DEFAULT false, round int,  -- of the check which must say yes to a further block
    bank text NOT NULL, sponsor text NOT NULL,          -- the key of the sponsor's configuration, not its account
    account_token text NOT NULL,                        -- of the account it was made on: nothing is paid from another
    amount_minor bigint NOT NULL CHECK (amount_minor > 0),
    state text NOT NULL DEFAULT 'PENDING' CHECK (state IN
        ('CHECKING', 'PENDING', 'SENDING', 'UNKNOWN', 'BLOCKED', 'REFUSED', 'VOID')),
    bank_reference text, blocked_at timestamptz, created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (envelope_id, block),
    CHECK ((state = 'BLOCKED') = (bank_reference IS NOT NULL)),
    CHECK (further = (round IS NOT NULL) AND (further OR state <> 'CHECKING'))
);
-- An envelope has one block of its own.
CREATE UNIQUE INDEX blocks_own ON blocks (envelope_id) WHERE NOT further AND state IN ('PENDING', 'SENDING', 'UNKNOWN', 'BLOCKED');
-- One asking at a time: while a block is unknown nobody asks for another.
CREATE UNIQUE INDEX blocks_asked ON blocks (envelope_id) WHERE state IN ('CHECKING', 'PENDING', 'SENDING', 'UNKNOWN');

CREATE TABLE batches (
    batch_id uuid PRIMARY KEY, envelope_id uuid NOT NULL REFERENCES envelopes, number int NOT NULL, header text NOT NULL,
    arrived_count bigint NOT NULL, arrived_minor bigint NOT NULL   -- disbursements seen for the first time, by any part
);
CREATE INDEX batches_envelope ON batches (envelope_id);
CREATE TABLE parts (
    batch_id uuid NOT NULL, part int NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp(), PRIMARY KEY (batch_id, part)
);

-- One call to the bank. Its list of payments is immutable from the first attempt on; state of sending lives here.
CREATE TABLE instructions (
    instruction bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    envelope_id uuid NOT NULL REFERENCES envelopes, batch_id uuid NOT NULL REFERENCES batches, part int NOT NULL,
    incarnation int NOT NULL, sealed_key text NOT NULL, sealed text NOT NULL,  -- addresses; of agency cash the agencies'
    grouped boolean NOT NULL DEFAULT false,             -- agency cash: the bank's list has one payment for each head
    state text NOT NULL DEFAULT 'WAITING' CHECK (state IN ('WAITING', 'SENDING', 'UNKNOWN', 'DISPATCHED', 'REFUSED', 'VOID')),
    block int, payment_date date,                       -- fixed at the first attempt; a repayment's block from the start
    count int NOT NULL CHECK (count > 0), total_minor bigint NOT NULL CHECK (total_minor > 0),
    -- Counters of the rows beside it; `books` compares them.
    cancelled_count int NOT NULL DEFAULT 0, cancelled_minor bigint NOT NULL DEFAULT 0,
    refused_count int NOT NULL DEFAULT 0, refused_minor bigint NOT NULL DEFAULT 0,
    debited_count int NOT NULL DEFAULT 0, debited_minor bigint NOT NULL DEFAULT 0,
    reversed_count int NOT NULL DEFAULT 0, reversed_minor bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(), dispatched_at timestamptz, last_confirmed_at timestamptz,
    CHECK (cancelled_count + refused_count + debited_count <= count),   -- a payment is one of them at most
    CHECK (cancelled_minor + refused_minor + debited_minor <= total_minor),
    CHECK (reversed_count <= debited_count),                            -- a reversal needs its debit
    CHECK (state NOT IN ('SENDING', 'UNKNOWN', 'DISPATCHED') OR block IS NOT NULL)  -- paid from blocked money only
);
ALTER TABLE instructions ALTER COLUMN sealed SET STORAGE EXTERNAL;
CREATE INDEX instructions_envelope ON instructions (envelope_id, state);
CREATE INDEX instructions_batch ON instructions (batch_id);

-- Inserted once, never changed: what happens to a payment is a row of its own elsewhere. Of agency cash each is a person's share:
-- those of one head go to the bank as one payment, their sum, under the reference of (instruction, head).
CREATE TABLE payments (
    instruction bigint NOT NULL, position smallint NOT NULL, amount_minor bigint NOT NULL CHECK (amount_minor > 0),
    disbursement_id text COLLATE "C" NOT NULL, beneficiary_id text COLLATE "C" NOT NULL,
    head smallint,                                      -- the lowest position of its group; null: a payment by itself
    PRIMARY KEY (instruction, position), CHECK (head <= position)
);
-- Who pays out the agency cash of a part, by the number its items give their zone.
CREATE TABLE zones (
    batch_id uuid NOT NULL, part int NOT NULL, zone int NOT NULL,
    small_zone_id text NOT NULL, small_zone_code text NOT NULL, agency_id text NOT NULL, agency_name text NOT NULL,
    PRIMARY KEY (batch_id, part, zone)
);
CREATE TABLE heads (                                    -- a payment to an agency; `zone` of its instruction's part
    instruction bigint NOT NULL REFERENCES instructions, head smallint NOT NULL, zone int NOT NULL,
    PRIMARY KEY (instruction, head)
);

-- What the bank's statement proves: a debit, a reversal, once each.
CREATE TABLE facts (
    instruction bigint NOT NULL, position smallint NOT NULL, kind "char" NOT NULL CHECK (kind IN ('D', 'R')),
    bank_reference text COLLATE "C" NOT NULL, statement_id uuid, line int NOT NULL,
    PRIMARY KEY (instruction, position, kind)
);
-- Why the bank gave a payment back, where it says so: its own words, shortened and without long numbers.
CREATE TABLE reversal_reasons (
    instruction bigint NOT NULL, position smallint NOT NULL, reason text NOT NULL CHECK (reason <> ''),
    PRIMARY KEY (instruction, position)
);
-- Reversals which came before their debit, until it comes.
CREATE TABLE early_reversals (
    instruction bigint NOT NULL, position smallint NOT NULL, PRIMARY KEY (instruction, position)
);

-- Not sent, with a reason and an owner.
CREATE TABLE held (
    held_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    envelope_id uuid NOT NULL REFERENCES envelopes, batch_id uuid NOT NULL,
    disbursement_id text COLLATE "C" NOT NULL, beneficiary_id text COLLATE "C" NOT NULL, amount_minor bigint NOT NULL,
    reason text NOT NULL, message text NOT NULL DEFAULT '',
    instruction bigint, position smallint,              -- of the payment the bank refused
    state text NOT NULL DEFAULT 'HELD' CHECK (state IN  -- SUPERSEDED: an earlier payment of the same disbursement was made
        ('HELD', 'PAYING', 'CANCELLED', 'RELEASING', 'RELEASED', 'PAID', 'SUPERSEDED')),
    release_id bigint, since timestamptz NOT NULL DEFAULT clock_timestamp(),
    repaid boolean NOT NULL DEFAULT false CHECK (NOT repaid OR state = 'RELEASED')  -- from a further block
);
-- A disbursement is held once at a time.
CREATE UNIQUE INDEX held_live ON held (envelope_id, disbursement_id)
    WHERE state IN ('HELD', 'RELEASING', 'RELEASED') AND NOT repaid;
CREATE INDEX held_payment ON held (instruction, position) WHERE instruction IS NOT NULL;
CREATE INDEX held_since ON held (since) WHERE state = 'HELD';

-- Addresses of people who could not be paid when these came (paid already, or their money was given back): a repayment goes there.
CREATE TABLE late_parts (
    batch_id uuid NOT NULL, part int NOT NULL, sealed_key text NOT NULL, sealed text NOT NULL,
    grouped boolean NOT NULL DEFAULT false, PRIMARY KEY (batch_id, part)
);
ALTER TABLE late_parts ALTER COLUMN sealed SET STORAGE EXTERNAL;
CREATE TABLE late_addresses (
    envelope_id uuid NOT NULL, disbursement_id text COLLATE "C" NOT NULL, part int NOT NULL, zone int,
    PRIMARY KEY (envelope_id, disbursement_id, part)
);

-- Disbursements to be paid from a further block. They become payments when the money is reserved, in the same transaction.
CREATE TABLE repayments (
    envelope_id uuid NOT NULL, block int NOT NULL, disbursement_id text COLLATE "C" NOT NULL,
    batch_id uuid NOT NULL REFERENCES batches, part int NOT NULL,  -- where the address is
    beneficiary_id text COLLATE "C" NOT NULL, amount_minor bigint NOT NULL CHECK (amount_minor > 0),
    instruction bigint, position smallint,              -- the payment that was reversed
    held_id bigint REFERENCES held,                     -- or the hold whose money was given back
    state text NOT NULL DEFAULT 'ASKED' CHECK (state IN ('ASKED', 'PAYING', 'REFUSED', 'CANCELLED')),
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (envelope_id, block, disbursement_id),
    FOREIGN KEY (envelope_id, block) REFERENCES blocks,
    CHECK ((instruction IS NULL) <> (held_id IS NULL))
);
-- A reversed payment, or what was given back, is repaid once.
CREATE UNIQUE INDEX repayments_payment ON repayments (instruction, position) WHERE state IN ('ASKED', 'PAYING');
CREATE UNIQUE INDEX repayments_held ON repayments (held_id) WHERE state IN ('ASKED', 'PAYING');

-- Disbursements which must never be paid, whether or not they have been seen.
CREATE TABLE tombstones (
    envelope_id uuid NOT NULL, disbursement_id text COLLATE "C" NOT NULL, batch_id uuid, request_id text NOT NULL,
    PRIMARY KEY (envelope_id, disbursement_id)
);
CREATE TABLE cancel_requests (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    envelope_id uuid NOT NULL REFERENCES envelopes, request_id text NOT NULL,
    whole boolean NOT NULL, batches int,                -- of the whole envelope: how many batches will have arrived
    state text NOT NULL DEFAULT 'ASKED' CHECK (state IN ('ASKED', 'DECIDED', 'ANSWERED')),
    disbursement_ids text[] NOT NULL DEFAULT '{}', at timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (envelope_id, request_id)
);
CREATE INDEX cancel_requests_open ON cancel_requests (envelope_id) WHERE state <> 'ANSWERED';
-- Other dates that were asked for after the envelope was complete; of those accepted the highest revision holds.
CREATE TABLE reschedules (
    envelope_id uuid NOT NULL REFERENCES envelopes, request_id text NOT NULL, revision int NOT NULL, schedule_date date NOT NULL,
    reason text NOT NULL, state text NOT NULL DEFAULT 'ASKED' CHECK (state IN ('ASKED', 'ACCEPTED', 'REFUSED')),
    decided_at timestamptz, PRIMARY KEY (envelope_id, request_id),
    CHECK ((state = 'ASKED') = (decided_at IS NULL))
);
CREATE TABLE cancelled (
    envelope_id uuid NOT NULL, disbursement_id text COLLATE "C" NOT NULL, batch_id uuid NOT NULL,
    instruction bigint, position smallint, amount_minor bigint NOT NULL,
    in_block boolean NOT NULL,                          -- its money was reserved, so it must be released
    block int,                                          -- null: in the envelope's own
    release_id bigint, at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (envelope_id, disbursement_id)          -- cancelled once, for ever
);
CREATE INDEX cancelled_to_release ON cancelled (envelope_id) WHERE in_block AND release_id IS NULL;
CREATE INDEX cancelled_payment ON cancelled (instruction, position) WHERE instruction IS NOT NULL;

-- Money given back to the sponsor.
CREATE TABLE releases (
    release_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    envelope_id uuid NOT NULL, block int NOT NULL, amount_minor bigint NOT NULL CHECK (amount_minor > 0),
    reason text NOT NULL,
    state text NOT NULL CHECK (state IN ('PENDING', 'SENDING', 'UNKNOWN', 'RELEASED', 'REFUSED', 'NOT_OFFERED')),
    bank_reference text, created_at timestamptz NOT NULL DEFAULT clock_timestamp(), released_at timestamptz,
    FOREIGN KEY (envelope_id, block) REFERENCES blocks
);
CREATE INDEX releases_envelope ON releases (envelope_id);

CREATE TABLE statements (
    statement_id uuid PRIMARY KEY, account_token text NOT NULL, number text, sequence text, currency text,
    opening_minor bigint, closing_minor bigint, lines int, chunks int,   -- null until StatementOpened comes
    known_account boolean NOT NULL, reconciled_at timestamptz, created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE TABLE statement_chunks (
    statement_id uuid NOT NULL REFERENCES statements, chunk int NOT NULL, lines int NOT NULL, balance_minor bigint NOT NULL,
    confirmed int NOT NULL, confirmed_minor bigint NOT NULL, reversed int NOT NULL, reversed_minor bigint NOT NULL,
    PRIMARY KEY (statement_id, chunk)
);
CREATE TABLE exceptions (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    statement_id uuid, line int,                        -- null where no line is meant, or none came
    reason text NOT NULL, reference text NOT NULL DEFAULT '',
    instruction bigint, position smallint, amount_minor bigint, currency text NOT NULL, detail text NOT NULL DEFAULT '',
    state text NOT NULL DEFAULT 'OPEN' CHECK (state IN ('OPEN', 'CLOSED')),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(), closed_at timestamptz,
    closed_by text, why text, evidence text,            -- where an operator has settled it
    UNIQUE (statement_id, line, reason)                 -- the same statement again changes nothing
);
CREATE UNIQUE INDEX exceptions_whole ON exceptions (reason, statement_id, instruction) NULLS NOT DISTINCT WHERE line IS NULL;
CREATE INDEX exceptions_payment ON exceptions (instruction, position) WHERE state = 'OPEN';
"""

VIEWS = """
-- The same reference as domain.references, for reading; a test compares them.
CREATE FUNCTION base36(n bigint, width int) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT string_agg(substr('0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ', (n / (36::numeric ^ p)::bigint % 36)::int + 1, 1), ''
                      ORDER BY p DESC) FROM generate_series(0, width - 1) AS p
$$;
CREATE FUNCTION payment_reference(incarnation int, instruction bigint, pos int) RETURNS text LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT AS $$
    SELECT head || base36(pos, 2)
           || base36(((('x' || substr(md5(head), 1, 12))::bit(48)::bigint + pos * 104729::bigint) % 1679616), 4)
    FROM (SELECT 'A' || base36(incarnation, 2) || base36(instruction, 7) AS head) AS h
$$;

-- Whom an open exception names: the bank may have paid them, against what we believe. Nobody of them is paid anew.
CREATE VIEW disputed AS
    SELECT i.envelope_id, i.batch_id, p.disbursement_id
    FROM exceptions x JOIN instructions i USING (instruction)
    JOIN payments p ON p.instruction = x.instruction AND (p.position = x.position OR p.head = x.position)
    WHERE x.state = 'OPEN';

-- Of a REFUSED list everybody is held; whoever were not would show up as unknown.
-- Where each envelope's money is: both identities of the books, from counters and rows. One definition, for deciding and for
-- reading. `live` is what an instruction still has to do with: not cancelled, not refused.
CREATE VIEW money AS
WITH i AS (
    SELECT envelope_id,
        sum(total_minor - cancelled_minor - refused_minor - debited_minor) FILTER (WHERE state = 'WAITING') AS waiting,
        sum(count - cancelled_count - refused_count - debited_count) FILTER (WHERE state = 'WAITING') AS waiting_n,
        sum(total_minor - cancelled_minor - refused_minor - debited_minor) FILTER (WHERE state = 'SENDING') AS in_flight,
        sum(count - cancelled_count - refused_count - debited_count) FILTER (WHERE state = 'SENDING') AS in_flight_n,
        sum(total_minor - cancelled_minor - refused_minor - debited_minor) FILTER (WHERE state IN ('UNKNOWN', 'REFUSED')) AS unknown,
        sum(count - cancelled_count - refused_count - debited_count) FILTER (WHERE state IN ('UNKNOWN', 'REFUSED')) AS unknown_n,
        sum(total_minor - cancelled_minor - refused_minor - debited_minor) FILTER (WHERE state = 'DISPATCHED') AS outstanding,
        sum(count - cancelled_count - refused_count - debited_count) FILTER (WHERE state = 'DISPATCHED') AS outstanding_n,
        sum(debited_minor) AS debited, sum(debited_count) AS debited_n,
        sum(reversed_minor) AS reversed, sum(reversed_count) AS reversed_n,
        max(last_confirmed_at) AS last_confirmed_at
    FROM instructions GROUP BY envelope_id
), h AS (
    SELECT envelope_id, sum(amount_minor) FILTER (WHERE state = 'HELD') AS held, count(*) FILTER (WHERE state = 'HELD') AS held_n
    FROM held WHERE state = 'HELD' GROUP BY envelope_id
), r AS (
    SELECT envelope_id,
        sum(amount_minor) FILTER (WHERE state IN ('PENDING', 'SENDING', 'UNKNOWN')) AS releasing,
        sum(amount_minor) FILTER (WHERE state IN ('REFUSED', 'NOT_OFFERED')) AS kept,
        sum(amount_minor) FILTER (WHERE state = 'RELEASED') AS released
    FROM releases GROUP BY envelope_id
), c AS (
    -- What was to be repaid from a block that is not there yet is nowhere yet.
    SELECT envelope_id, count(*) AS cancelled_n, sum(c.amount_minor) AS cancelled,
           sum(c.amount_minor) FILTER (WHERE in_block AND release_id IS NULL AND (block IS NULL OR k.state = 'BLOCKED')) AS to_release,
           sum(c.amount_minor) FILTER (WHERE NOT in_block) AS unblocked
    FROM cancelled c LEFT JOIN blocks k USING (envelope_id, block) GROUP BY envelope_id
), b AS (
    SELECT envelope_id, sum(amount_minor) FILTER (WHERE state = 'BLOCKED') AS blocked,
           min(blocked_at) AS blocked_at, bool_or(state IN ('PENDING', 'SENDING', 'UNKNOWN', 'BLOCKED')) AS fixed
    FROM blocks GROUP BY envelope_id
), a AS (
    SELECT envelope_id, sum(arrived_minor) AS arrived, sum(arrived_count) AS arrived_n, count(*) AS batches
    FROM batches GROUP BY envelope_id
)
SELECT e.envelope_id,
    coalesce(b.blocked, 0)::bigint AS blocked_minor,
    (coalesce(i.waiting, 0) + coalesce(e.completed_minor - coalesce(a.arrived, 0), 0))::bigint AS waiting_minor,
    coalesce(i.in_flight, 0)::bigint AS in_flight_minor, coalesce(i.unknown, 0)::bigint AS unknown_minor,
    (coalesce(h.held, 0) + coalesce(r.kept, 0))::bigint AS held_minor,
    (coalesce(i.outstanding, 0) + coalesce(i.debited, 0))::bigint AS dispatched_minor,
    (coalesce(r.releasing, 0) + coalesce(c.to_release, 0))::bigint AS releasing_minor,
    coalesce(r.released, 0)::bigint AS released_minor,
    coalesce(i.outstanding, 0)::bigint AS outstanding_minor,
    (coalesce(i.debited, 0) - coalesce(i.reversed, 0))::bigint AS confirmed_minor,
    coalesce(i.reversed, 0)::bigint AS reversed_minor,
    coalesce(c.cancelled, 0)::bigint AS cancelled_minor, coalesce(c.unblocked, 0)::bigint AS cancelled_before_block_minor,
    coalesce(a.arrived, 0)::bigint AS arrived_minor,
    (coalesce(i.waiting_n, 0) + coalesce(e.completed_count - coalesce(a.arrived_n, 0), 0))::bigint AS waiting,
    coalesce(i.in_flight_n, 0)::bigint AS in_flight, coalesce(i.unknown_n, 0)::bigint AS unknown,
    coalesce(h.held_n, 0)::bigint AS held,
    (coalesce(i.outstanding_n, 0) + coalesce(i.debited_n, 0))::bigint AS dispatched,
    coalesce(i.outstanding_n, 0)::bigint AS outstanding,
    (coalesce(i.debited_n, 0) - coalesce(i.reversed_n, 0))::bigint AS confirmed, coalesce(i.reversed_n, 0)::bigint AS reversed,
    coalesce(c.cancelled_n, 0)::bigint AS cancelled, coalesce(a.batches, 0)::int AS batches,
    coalesce(b.fixed, false) AS block_fixed, b.blocked_at, i.last_confirmed_at
FROM envelopes e
LEFT JOIN i USING (envelope_id) LEFT JOIN h USING (envelope_id) LEFT JOIN r USING (envelope_id)
LEFT JOIN c USING (envelope_id) LEFT JOIN b USING (envelope_id) LEFT JOIN a USING (envelope_id);

CREATE VIEW ops_envelopes AS
    SELECT e.envelope_id, e.source, e.publisher_envelope_id, e.programme, e.currency, e.schedule_date,
        CASE WHEN e.cancelled_at IS NOT NULL THEN 'CANCELLED' WHEN e.cancelling THEN 'CANCELLING'
             WHEN e.settled_at IS NOT NULL THEN 'SETTLED' WHEN e.funds = 'WAITING' AND e.completed_minor IS NULL THEN 'RECEIVING'
             ELSE e.funds END AS state,
        e.completed_count, e.completed_minor, m.blocked_minor, m.waiting_minor, m.in_flight_minor, m.unknown_minor, m.held_minor,
        m.dispatched_minor, m.releasing_minor, m.released_minor, m.outstanding_minor, m.confirmed_minor, m.reversed_minor,
        m.cancelled_minor, m.cancelled_before_block_minor, m.arrived_minor,
        m.waiting, m.in_flight, m.unknown, m.held, m.dispatched, m.outstanding, m.confirmed, m.reversed, m.cancelled,
        m.batches, e.settled_revision AS revision, e.created_at, m.blocked_at, e.settled_at, m.last_confirmed_at
    FROM envelopes e JOIN money m USING (envelope_id);
CREATE VIEW ops_blocks AS
    SELECT envelope_id, block, further, bank, amount_minor, state, bank_reference, created_at, blocked_at FROM blocks;
CREATE VIEW ops_releases AS
    SELECT release_id, envelope_id, block, amount_minor, state, bank_reference, reason, created_at, released_at FROM releases;
CREATE VIEW ops_instructions AS
    SELECT instruction, incarnation, envelope_id, batch_id, part, state, block, count, total_minor, cancelled_count,
        cancelled_minor, refused_count, refused_minor, debited_count, debited_minor, reversed_count, reversed_minor,
        created_at, dispatched_at, last_confirmed_at FROM instructions;
CREATE VIEW ops_payments AS
    SELECT i.envelope_id, i.batch_id, p.instruction, p.position, p.disbursement_id, p.beneficiary_id, p.amount_minor,
        payment_reference(i.incarnation, p.instruction, coalesce(p.head, p.position)) AS reference,
        CASE WHEN r.kind IS NOT NULL AND d.kind IS NOT NULL THEN 'REVERSED' WHEN d.kind IS NOT NULL THEN 'CONFIRMED'
             WHEN c.disbursement_id IS NOT NULL THEN 'CANCELLED' WHEN h.held_id IS NOT NULL THEN 'REFUSED'
             WHEN i.state = 'SENDING' THEN 'IN_FLIGHT' WHEN i.state = 'DISPATCHED' THEN 'OUTSTANDING' ELSE i.state END AS state,
        d.statement_id AS confirmed_by, d.line AS confirmed_line, r.statement_id AS reversed_by, r.line AS reversed_line, p.head,
        w.reason AS reversal_reason
    FROM payments p JOIN instructions i USING (instruction)
    LEFT JOIN facts d ON d.instruction = p.instruction AND d.position = p.position AND d.kind = 'D'
    LEFT JOIN facts r ON r.instruction = p.instruction AND r.position = p.position AND r.kind = 'R'
    LEFT JOIN reversal_reasons w ON w.instruction = p.instruction AND w.position = p.position
    LEFT JOIN cancelled c ON c.instruction = p.instruction AND c.position = p.position
    LEFT JOIN held h ON h.instruction = p.instruction AND h.position = p.position AND h.state <> 'PAID';
-- What an agency is paid: of those whose share is neither cancelled nor refused; of all who were refused where nobody else is left.
CREATE VIEW ops_agency_payments AS
    SELECT g.envelope_id, g.batch_id, g.instruction, g.head,
        payment_reference(i.incarnation, g.instruction, g.head) AS reference, z.small_zone_id, z.small_zone_code, z.agency_id,
        z.agency_name, CASE WHEN g.live IS NULL THEN g.refused ELSE g.people END AS people,
        CASE WHEN g.live IS NULL THEN g.refused_minor ELSE g.amount_minor END AS amount_minor,
        coalesce(g.live, CASE WHEN g.refused > 0 THEN 'REFUSED' ELSE 'CANCELLED' END) AS state
    FROM (SELECT p.envelope_id, p.batch_id, p.instruction, p.head, h.zone,
              min(p.state) FILTER (WHERE p.state NOT IN ('CANCELLED', 'REFUSED')) AS live,
              count(*) FILTER (WHERE p.state NOT IN ('CANCELLED', 'REFUSED'))::int AS people,
              coalesce(sum(p.amount_minor) FILTER (WHERE p.state NOT IN ('CANCELLED', 'REFUSED')), 0)::bigint AS amount_minor,
              count(*) FILTER (WHERE p.state = 'REFUSED')::int AS refused,
              coalesce(sum(p.amount_minor) FILTER (WHERE p.state = 'REFUSED'), 0)::bigint AS refused_minor
          FROM heads h JOIN ops_payments p ON p.instruction = h.instruction AND p.head = h.head
          GROUP BY p.envelope_id, p.batch_id, p.instruction, p.head, h.zone) AS g
    JOIN instructions i USING (instruction)
    JOIN zones z ON z.batch_id = i.batch_id AND z.part = i.part AND z.zone = g.zone;
CREATE VIEW ops_held AS
    SELECT envelope_id, batch_id, disbursement_id, beneficiary_id, amount_minor, reason, message, since, state, release_id
    FROM held WHERE state = 'HELD' OR (state = 'RELEASED' AND reason = 'BLOCK_RELEASED' AND NOT repaid);
CREATE VIEW retriable AS  -- whom the bank has definitely refused, and nothing stands against paying them again
    SELECT h.held_id, h.envelope_id, h.disbursement_id, h.reason FROM held h JOIN envelopes e ON e.envelope_id = h.envelope_id
    WHERE h.state = 'HELD' AND h.instruction IS NOT NULL AND e.funds = 'BLOCKED' AND NOT e.cancelling
      AND NOT EXISTS (SELECT 1 FROM disputed d WHERE d.envelope_id = h.envelope_id AND d.disbursement_id = h.disbursement_id)
      AND NOT EXISTS (SELECT 1 FROM tombstones t WHERE t.envelope_id = h.envelope_id AND t.disbursement_id = h.disbursement_id);
CREATE VIEW ops_retriable AS SELECT envelope_id, disbursement_id, reason FROM retriable;
CREATE VIEW ops_given_back AS  -- whose money which release takes
    SELECT envelope_id, batch_id, disbursement_id, release_id FROM held WHERE release_id IS NOT NULL
    UNION ALL SELECT envelope_id, batch_id, disbursement_id, release_id FROM cancelled WHERE release_id IS NOT NULL;
CREATE VIEW ops_repayments AS  -- instruction and position name the reversed payment, release_id where the money went back
    SELECT r.envelope_id, r.block, r.batch_id, r.disbursement_id, r.beneficiary_id, r.amount_minor, r.instruction, r.position,
        h.release_id, r.state, r.at
    FROM repayments r LEFT JOIN held h USING (held_id);
CREATE VIEW ops_cancelled AS
    SELECT c.envelope_id, c.disbursement_id, c.batch_id, c.amount_minor,
        c.in_block AND (c.block IS NULL OR k.state = 'BLOCKED') AS in_block, c.release_id, c.at AS cancelled_at
    FROM cancelled c LEFT JOIN blocks k USING (envelope_id, block);
CREATE VIEW ops_unknown AS
    SELECT 'dispatch' AS kind, i.instruction::text AS subject, i.envelope_id,
        (i.count - i.cancelled_count - i.refused_count - i.debited_count) AS count,
        (i.total_minor - i.cancelled_minor - i.refused_minor - i.debited_minor) AS amount_minor, w.code, w.message,
        w.updated_at AS since
    FROM instructions i JOIN work w ON w.kind = 'dispatch' AND w.subject = i.instruction::text WHERE i.state = 'UNKNOWN'
    UNION ALL
    SELECT 'block', b.envelope_id || '/' || b.block, b.envelope_id, 1, b.amount_minor, w.code, w.message, w.updated_at
    FROM blocks b JOIN work w ON w.kind = 'block' AND w.subject = b.envelope_id || '/' || b.block WHERE b.state = 'UNKNOWN'
    UNION ALL
    SELECT 'release', r.release_id::text, r.envelope_id, 1, r.amount_minor, coalesce(w.code, r.state), coalesce(w.message, ''),
        coalesce(w.updated_at, r.created_at)
    FROM releases r LEFT JOIN work w ON w.kind = 'release' AND w.subject = r.release_id::text
    WHERE r.state IN ('UNKNOWN', 'NOT_OFFERED', 'REFUSED');
CREATE VIEW ops_exceptions AS
    SELECT id, statement_id, line, reason, reference, instruction, position, amount_minor, currency, detail, state, created_at,
        closed_at, closed_by, why, evidence
    FROM exceptions;
CREATE VIEW ops_statements AS
    SELECT s.statement_id, s.account_token, s.number, s.sequence, s.currency, s.opening_minor, s.closing_minor, s.lines,
        (SELECT count(*) FROM statement_chunks c WHERE c.statement_id = s.statement_id)::int AS chunks_done, s.chunks,
        (SELECT coalesce(sum(confirmed), 0) FROM statement_chunks c WHERE c.statement_id = s.statement_id)::bigint AS confirmed,
        (SELECT coalesce(sum(reversed), 0) FROM statement_chunks c WHERE c.statement_id = s.statement_id)::bigint AS reversed,
        (SELECT count(*) FROM exceptions x WHERE x.statement_id = s.statement_id)::bigint AS exceptions,
        s.created_at, s.reconciled_at
    FROM statements s;
CREATE VIEW ops_history AS
    SELECT envelope_id, NULL::uuid AS batch_id, NULL::text AS disbursement_id, completed_at AS at, 'complete at funds' AS step,
           completed_count || ' disbursements in ' || completed_batches || ' batches' AS detail
    FROM envelopes WHERE completed_at IS NOT NULL
    UNION ALL SELECT envelope_id, NULL, NULL, blocked_at, 'funds blocked', 'block ' || block || ', reference ' || bank_reference
    FROM blocks WHERE state = 'BLOCKED'
    UNION ALL SELECT b.envelope_id, b.batch_id, NULL, p.at, 'arrived at funds', 'part ' || p.part
    FROM parts p JOIN batches b USING (batch_id)
    UNION ALL SELECT envelope_id, batch_id, NULL, dispatched_at, 'dispatched',
        (count - cancelled_count - refused_count) || ' payments, instruction ' || instruction
    FROM instructions WHERE dispatched_at IS NOT NULL
    UNION ALL SELECT envelope_id, batch_id, NULL, last_confirmed_at, 'confirmed',
        debited_count || ' payments of instruction ' || instruction
    FROM instructions WHERE last_confirmed_at IS NOT NULL
    UNION ALL SELECT envelope_id, batch_id, disbursement_id, since, 'held',
        reason || CASE WHEN message = '' THEN '' ELSE ': ' || message END
    FROM held
    UNION ALL SELECT envelope_id, batch_id, disbursement_id, at, 'cancelled',
        CASE WHEN in_block THEN 'its money is released' ELSE 'before the block' END
    FROM cancelled
    UNION ALL SELECT envelope_id, NULL, NULL, decided_at, CASE state WHEN 'ACCEPTED' THEN 'date moved' ELSE 'date kept' END,
        schedule_date || ' was asked for'
    FROM reschedules WHERE decided_at IS NOT NULL
    UNION ALL SELECT envelope_id, batch_id, disbursement_id, at, 'repayment asked', 'block ' || block || ', ' || lower(state)
    FROM repayments
    UNION ALL SELECT i.envelope_id, i.batch_id, p.disbursement_id, s.created_at, 'reversed',
        coalesce(w.reason || '; ', '') || 'line ' || f.line || ' of statement ' || f.statement_id
    FROM facts f JOIN payments p USING (instruction, position) JOIN instructions i USING (instruction)
    JOIN statements s USING (statement_id) LEFT JOIN reversal_reasons w USING (instruction, position) WHERE f.kind = 'R'
    UNION ALL SELECT i.envelope_id, i.batch_id, p.disbursement_id, x.created_at, 'exception', x.reason
    FROM exceptions x JOIN payments p USING (instruction, position) JOIN instructions i USING (instruction)
    UNION ALL SELECT i.envelope_id, i.batch_id, p.disbursement_id, x.created_at, 'exception', x.reason  -- the rest of a group
    FROM exceptions x JOIN heads h ON h.instruction = x.instruction AND h.head = x.position
    JOIN payments p ON p.instruction = h.instruction AND p.head = h.head AND p.position <> h.head
    JOIN instructions i ON i.instruction = h.instruction
    UNION ALL SELECT i.envelope_id, i.batch_id, NULL, x.created_at, 'exception', x.reason || ': ' || x.detail
    FROM exceptions x JOIN instructions i USING (instruction) WHERE x.position IS NULL
    UNION ALL SELECT envelope_id, NULL, NULL, released_at, 'released', 'release ' || release_id || ', ' || reason
    FROM releases WHERE released_at IS NOT NULL
    UNION ALL SELECT envelope_id, NULL, NULL, cancelled_at, 'envelope cancelled', '' FROM envelopes WHERE cancelled_at IS NOT NULL
    UNION ALL SELECT envelope_id, NULL, NULL, settled_at, 'settled', 'revision ' || settled_revision
    FROM envelopes WHERE settled_at IS NOT NULL;
"""


def upgrade() -> None:
    bind = op.get_bind()
    run_sql(bind, RUNTIME_V1)
    run_sql(bind, TABLES + VIEWS)
