"""How the rows of an envelope are looked up where statistics know others only: what is read grows with what is asked for."""

import pytest

from libs.common.db import Database, Tx
from services.ingestion import store
from tests.support.world import World

ROWS = 20_000
ASKED = 1_000


def add(tx: Tx, envelope: int) -> list[tuple[str, str]]:
    people = [(f"E{envelope}-{number:07d}", f"NRB{number * 7919 % ROWS:07d}") for number in range(ROWS)]
    store.add_disbursements(tx, envelope, [(one, person, 100, "", "") for one, person in people], 1, 0)
    return people


def read(world: World) -> int:
    [row] = world.sql(
        "ingestion",
        """SELECT sum(idx_tup_read) + (SELECT seq_tup_read FROM pg_stat_user_tables WHERE relid = 'disbursements'::regclass) AS n
           FROM pg_stat_user_indexes WHERE relid = 'disbursements'::regclass""",
    )
    return int(row.n)


@pytest.mark.parametrize("analysed", [[1], [], [1, 2]], ids=["the one before", "none", "both"])
def test_known_reads_what_it_is_asked_for(world: World, analysed: list[int]) -> None:
    database = Database(world.database_url, "ingestion")
    world.sql("ingestion", "ALTER TABLE disbursements SET (autovacuum_enabled = false)")
    for envelope in (1, 2):
        with database.transaction() as tx:
            people = add(tx, envelope)
        if envelope in analysed:
            world.sql("ingestion", "ANALYZE disbursements")
    asked = [*people[-ASKED // 2 :], *((f"new-{number}", f"new-{number}") for number in range(ASKED // 2))]
    before = read(world)
    with database.transaction() as tx:
        ids, persons = store.known(tx, 2, [one for one, _ in asked], [person for _, person in asked])
        tx.rows("SELECT pg_stat_force_next_flush()")
    assert ids == {one for one, _ in people[-ASKED // 2 :]}
    assert persons == {person for _, person in people[-ASKED // 2 :]}
    assert read(world) - before <= 2 * ASKED
    database.close()
