"""The runtime's tables and the probe's."""

from alembic import op

from libs.common.migrate import run_sql
from libs.common.runtime_schema import RUNTIME_V1

revision = "0001_probe"
down_revision = None

# No uniqueness: what is done twice is to be seen.
SQL = """
CREATE TABLE noted (at bigint GENERATED ALWAYS AS IDENTITY, event_id text NOT NULL, number int NOT NULL);
CREATE TABLE settled (at bigint GENERATED ALWAYS AS IDENTITY, subject text NOT NULL, state text NOT NULL);
CREATE TABLE decided (at bigint GENERATED ALWAYS AS IDENTITY, subject text NOT NULL, cause_id text NOT NULL,
                      decided_at timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE TABLE mended (at bigint GENERATED ALWAYS AS IDENTITY);
CREATE TABLE knocked (at bigint GENERATED ALWAYS AS IDENTITY, value bytea NOT NULL);
CREATE VIEW ops_noted AS SELECT count(*) AS rows FROM noted;
"""


def upgrade() -> None:
    bind = op.get_bind()
    run_sql(bind, RUNTIME_V1)
    run_sql(bind, SQL)
