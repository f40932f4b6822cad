"""The runtime's own tables, made in a service's schema by its first migration. Never edited: a change is RUNTIME_V2."""

INBOX_DAYS = 16  # longer than topics are kept, so that whatever can be delivered again is known

RUNTIME_V1 = """
-- What was consumed. `day` is the day of the event's own time, which is the same at every delivery; partitions are dropped.
CREATE TABLE inbox (
    day date NOT NULL, topic text NOT NULL, source text NOT NULL, id text NOT NULL, digest bytea NOT NULL,
    PRIMARY KEY (day, topic, source, id)
) PARTITION BY RANGE (day);
-- Events without a time, or far from today: few, and kept.
CREATE TABLE inbox_undated PARTITION OF inbox FOR VALUES FROM ('1970-01-01') TO ('1970-01-02');

-- Partitions are DDL, which the service's own role may not do: a function of the schema's owner does just this.
CREATE FUNCTION maintain_inbox(days date[]) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE d date; t text;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext(current_schema() || '.maintain_inbox'));
    FOREACH d IN ARRAY days LOOP
        IF to_regclass('inbox_' || to_char(d, 'YYYYMMDD')) IS NULL THEN
            EXECUTE format('CREATE TABLE %I PARTITION OF inbox FOR VALUES FROM (%L) TO (%L)',
                           'inbox_' || to_char(d, 'YYYYMMDD'), d, d + 1);
        END IF;
    END LOOP;
    FOR t IN SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
             WHERE i.inhparent = 'inbox'::regclass AND c.relname ~ '^inbox_[0-9]{8}$'
               AND to_date(right(c.relname, 8), 'YYYYMMDD') < (SELECT min(x) FROM unnest(days) AS x) LOOP
        EXECUTE format('DROP TABLE %I', t);
    END LOOP;
END $$;

-- The next offset of each partition as of this data: Kafka's own may be behind, never ahead.
CREATE TABLE consumed (
    topic text NOT NULL, partition int NOT NULL, next_offset bigint NOT NULL, PRIMARY KEY (topic, partition)
);

-- How often one message made a handler fail, counted outside the transaction that failed.
CREATE TABLE failures (
    topic text NOT NULL, partition int NOT NULL, message_offset bigint NOT NULL, failures int NOT NULL,
    message text NOT NULL, PRIMARY KEY (topic, partition, message_offset)
);

CREATE TABLE dead_letters (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    topic text NOT NULL, partition int NOT NULL, message_offset bigint NOT NULL,
    key bytea, value bytea NOT NULL, headers text NOT NULL, timestamp_ms bigint NOT NULL,
    correlation_id text,  -- the envelope, where it could be read
    code text NOT NULL, message text NOT NULL, deliveries int NOT NULL,
    -- REDRIVEN is published again and not yet consumed; HANDLED is consumed (or set aside anew, as a letter of its own)
    state text NOT NULL DEFAULT 'OPEN' CHECK (state IN ('OPEN', 'REDRIVEN', 'HANDLED', 'DISCARDED')),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (topic, partition, message_offset)  -- one letter for one message, however often it is delivered
);

CREATE INDEX dead_letters_open ON dead_letters (correlation_id) WHERE state IN ('OPEN', 'REDRIVEN');

-- What to say: the exact wire bytes (zstd), with routing in columns. Rows go when the broker has acknowledged them.
CREATE TABLE outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    topic text NOT NULL, key bytea, headers text NOT NULL, body bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    stuck text  -- why the broker will never take it; stops its key, not the service
);
ALTER TABLE outbox ALTER COLUMN body SET STORAGE EXTERNAL;
CREATE INDEX outbox_stuck ON outbox (topic, key) WHERE stuck IS NOT NULL;

-- Outside calls: claim -> call -> settle.
CREATE TABLE work (
    kind text NOT NULL, subject text NOT NULL,
    lock_key bigint NOT NULL,                       -- of the envelope; shared while claiming
    state text NOT NULL DEFAULT 'PENDING' CHECK (state IN ('PENDING', 'CLAIMED', 'DONE', 'UNKNOWN', 'ERROR', 'VOID')),
    idempotency_key uuid NOT NULL DEFAULT uuidv7(), -- stored before the first attempt, the same at every attempt
    ambiguous boolean NOT NULL DEFAULT false,       -- an earlier attempt may have been acted upon
    attempts_started int NOT NULL DEFAULT 0, attempts_finished int NOT NULL DEFAULT 0,
    tries int NOT NULL DEFAULT 0,                   -- since an operator's last retry
    due_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    lease_token uuid, leased_until timestamptz,
    code text, message text, cause_id text NOT NULL, correlation_id text, traceparent text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(), updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (kind, subject),
    CHECK ((state = 'CLAIMED') = (lease_token IS NOT NULL AND leased_until IS NOT NULL)),  -- only a claim has a lease
    CHECK (attempts_finished <= attempts_started)
);
CREATE INDEX work_due ON work (kind, due_at) WHERE state = 'PENDING';
CREATE INDEX work_leased ON work (kind, leased_until) WHERE state = 'CLAIMED';
CREATE INDEX work_stuck ON work (kind, state) WHERE state IN ('UNKNOWN', 'ERROR');

-- Every attempt's story; a settle that came too late is kept here and nowhere else.
CREATE TABLE attempts (
    kind text NOT NULL, subject text NOT NULL, attempt int NOT NULL, lease_token uuid NOT NULL,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(), finished_at timestamptz,
    outcome text, code text, message text, late boolean NOT NULL DEFAULT false,
    PRIMARY KEY (kind, subject, attempt)
);

-- What must be decided after commit, under the exclusive lock. Appended by whoever has a reason, so that nobody waits here.
CREATE TABLE due (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job text NOT NULL, subject text NOT NULL, lock_key bigint NOT NULL,
    due_at timestamptz NOT NULL DEFAULT clock_timestamp(), cause_id text, correlation_id text, traceparent text,
    fault text,  -- of a decision that failed; it is tried again now and then, and stops nobody else
    failures int NOT NULL DEFAULT 0, gave_up boolean NOT NULL DEFAULT false  -- until an operator's retry
);
CREATE INDEX due_subject ON due (job, subject);
CREATE INDEX due_at ON due (job, due_at);

CREATE TABLE paused (
    stage text PRIMARY KEY, who text NOT NULL, why text NOT NULL, since timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Every operator's action. INSERT-only by grant.
CREATE TABLE audit (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(), who text NOT NULL, why text NOT NULL,
    action text NOT NULL, command_id text NOT NULL, detail text NOT NULL, affected bigint NOT NULL,
    UNIQUE (command_id)
);

CREATE VIEW ops_work AS
    SELECT kind, subject, state, ambiguous, attempts_started, attempts_finished, tries, due_at, leased_until, code, message,
           created_at, updated_at FROM work;
CREATE VIEW ops_attempts AS
    SELECT kind, subject, attempt, started_at, finished_at, outcome, code, message, late FROM attempts;
CREATE VIEW ops_work_summary AS
    SELECT kind, state, count(*) AS rows, min(created_at) AS oldest FROM work GROUP BY kind, state;
CREATE VIEW ops_due AS
    SELECT job, subject, count(*) AS rows, min(due_at) AS due_at, max(fault) AS fault,
           max(failures) AS failures, bool_or(gave_up) AS gave_up FROM due GROUP BY job, subject;
CREATE VIEW ops_outbox AS
    SELECT count(*) AS rows, min(created_at) AS oldest, count(stuck) AS stuck FROM outbox;
CREATE VIEW ops_dead_letters AS
    SELECT id, topic, partition, message_offset, correlation_id, code, message, deliveries, state, created_at
    FROM dead_letters;
CREATE VIEW ops_paused AS SELECT stage, who, why, since FROM paused;
CREATE VIEW ops_audit AS SELECT id, at, who, why, action, command_id, detail, affected FROM audit;
CREATE VIEW ops_consumed AS SELECT topic, partition, next_offset FROM consumed;
"""
