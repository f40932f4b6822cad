"""Jobs and their ticks."""

from alembic import op

from libs.common.migrate import run_sql
from libs.common.runtime_schema import RUNTIME_V1

revision = "0001"
down_revision = None

SQL = """
-- What the settings of the replica started last say, and where each job stands.
CREATE TABLE jobs (
    job text PRIMARY KEY, schedule text NOT NULL, time_zone text NOT NULL, misfire text NOT NULL,
    decided_until timestamptz NOT NULL,  -- due times up to here are fired or passed over
    next_due_at timestamptz NOT NULL, last_due_at timestamptz
);

-- A tick is its job and due time: whoever inserts it says it, nobody else can.
CREATE TABLE ticks (
    job text NOT NULL, due_at timestamptz NOT NULL,
    missed int NOT NULL DEFAULT 0 CHECK (missed >= 0), reason text NOT NULL DEFAULT '',
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (job, due_at)
);

CREATE VIEW ops_jobs AS SELECT job, schedule, time_zone, misfire, last_due_at, next_due_at FROM jobs;
CREATE VIEW ops_ticks AS SELECT job, due_at, missed, reason, at FROM ticks;
-- Ticks concern no envelope: this is here because every service has it.
CREATE VIEW ops_history AS
    SELECT NULL::uuid AS envelope_id, NULL::uuid AS batch_id, NULL::text AS disbursement_id, at, 'tick' AS step, job AS detail
    FROM ticks;
"""


def upgrade() -> None:
    bind = op.get_bind()
    run_sql(bind, RUNTIME_V1)
    run_sql(bind, SQL)
