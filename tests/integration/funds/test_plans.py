"""How payments are looked up where statistics know others only: what is read grows with what is asked for."""

from types import SimpleNamespace

import pytest

from libs.common.db import Database
from services.funds import store
from services.funds.domain import Line
from tests.support.world import World

LISTS, PEOPLE, ASKED = 40, 1_000, 500
TABLES = ("payments", "facts", "cancelled", "held")


def add(world: World, first: int) -> None:
    """Lists of which every second payment is debited already."""
    numbers = f"generate_series({first}, {first + LISTS - 1}) AS i, generate_series(1, {PEOPLE}) AS p"
    world.sql("funds", f"INSERT INTO payments SELECT i, p, 100, 'D-' || i || '-' || p, 'B-' || p FROM {numbers}")
    world.sql("funds", f"INSERT INTO facts SELECT i, p, 'D', 'R-' || i || '-' || p, NULL, p FROM {numbers} WHERE mod(p, 2) = 0")


def read(world: World) -> int:
    [row] = world.sql(
        "funds",
        """SELECT (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE schemaname = 'funds' AND relname = ANY(%(tables)s))
                + (SELECT sum(seq_tup_read) FROM pg_stat_user_tables WHERE schemaname = 'funds' AND relname = ANY(%(tables)s)) AS n""",
        tables=list(TABLES),
    )
    return int(row.n)


@pytest.mark.parametrize("analysed", [[1], [], [1, 2]], ids=["the lists before", "none", "all"])
def test_lines_read_the_payments_they_name(world: World, analysed: list[int]) -> None:
    """Of lists of which nothing is debited yet, and of others."""
    for table in TABLES:
        world.sql("funds", f"ALTER TABLE {table} SET (autovacuum_enabled = false)")
    for since in (1, 2):
        add(world, since * 1000)
        if since in analysed:
            world.sql("funds", f"ANALYZE {', '.join(TABLES)}")
    lists = [2000, 2001]
    lines = [Line(number, "D", 100, lists[number % 2], 1 + number, f"B-{number}") for number in range(ASKED)]
    database = Database(world.database_url, "funds")
    for debited in (0, 1):
        known = {
            number: SimpleNamespace(count=ASKED, debited_count=debited, refused_count=0, cancelled_count=0) for number in lists
        }
        before = read(world)
        with database.transaction() as tx:
            named = store.payments_named(tx, lines, known, set())
            tx.rows("SELECT pg_stat_force_next_flush()")
        assert {(line.instruction, line.position) for line in lines} <= named.keys()
        assert read(world) - before <= 2 * PEOPLE * len(lists)  # of 80,000 payments and 40,000 facts
    database.close()
