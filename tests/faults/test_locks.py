"""The envelope's lock: whoever folds or claims waits for who decides, whoever decides waits for who folds, and each reads anew
what the other has done. A connection of the test holds the lock, so nothing depends on chance."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
import pytest
import sqlalchemy

from libs.common.contracts import operator
from libs.common.db import lock_key
from libs.local.client import BankAdmin
from tests.faults.bookkeeping import HELD_SECONDS, PATIENT, command, idle, reach
from tests.support.money import Payout
from tests.support.statements import deliver_statements
from tests.support.world import World

PEOPLE = 10
# Who says the position decides, and would wait for the test's shared lock, and all others behind it.
UNHURRIED = {"ALMONER_FUNDS_POSITION_SECONDS": "3600"}


@contextmanager
def holding(payout: Payout, function: str, *, cancel: bool = True) -> Iterator[Any]:
    """A transaction which has taken the envelope's lock as funds does, and cancels the envelope when it commits."""
    url = sqlalchemy.make_url(payout.world.database_url).set(drivername="postgresql")
    connection = psycopg2.connect(url.render_as_string(hide_password=False))
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(f"SELECT {function}(%s)", (lock_key("funds", payout.envelope_id),))
            if cancel:
                cursor.execute("UPDATE funds.envelopes SET cancelling = true WHERE envelope_id = %s", (payout.envelope_id,))
                assert cursor.rowcount == 1
            yield cursor
    finally:
        connection.close()


def somebody_waits(world: World, mode: str) -> None:
    query = """SELECT 1 FROM pg_locks l JOIN pg_database d ON d.oid = l.database
               WHERE d.datname = current_database() AND l.locktype = 'advisory' AND NOT l.granted AND l.mode = %(mode)s"""
    world.until(lambda: world.sql(None, query, mode=mode), what="waiting for the lock")


@pytest.fixture
def payout(world: World, bank: BankAdmin) -> Payout:
    payout = Payout(world, bank)
    payout.batch(PEOPLE)
    return payout


def test_a_claim_waits_for_who_decides(world: World, payout: Payout) -> None:
    process = world.run("funds", **payout.env)
    command(world, operator.PauseStage, stage="dispatch")
    world.until(lambda: world.sql("funds", "SELECT 1 FROM paused"))
    payout.publish_all()
    reach(payout, waiting=PEOPLE, state="BLOCKED")
    due = "SELECT 1 FROM due"  # a decision would find the cancellation, and no claim would
    world.until(lambda: world.sql("funds", "SELECT 1 FROM work WHERE kind = 'dispatch'") and not world.sql("funds", due))
    with holding(payout, "pg_advisory_xact_lock"):
        world.sql("funds", "DELETE FROM paused")
        somebody_waits(world, "ShareLock")
        assert payout.ledger() == {}
    world.until(lambda: world.sql("funds", "SELECT 1 FROM work WHERE kind = 'dispatch' AND code = 'CANCELLATION_PENDING'"))
    assert payout.ledger() == {}
    assert process.alive


def test_intake_waits_for_who_decides(world: World, payout: Payout) -> None:
    world.run("funds", **payout.env)
    payout.publish(payout.completed())
    reach(payout, state="BLOCKED")
    with holding(payout, "pg_advisory_xact_lock"):
        payout.publish(payout.batches[0])
        somebody_waits(world, "ShareLock")
    reach(payout, cancelled=PEOPLE)
    assert world.sql("funds", "SELECT 1 FROM instructions") == []


def test_batches_of_one_envelope_do_not_wait_for_each_other(world: World, payout: Payout) -> None:
    """While somebody folds a batch of the same envelope, another is folded, claimed, sent and settled."""
    process = world.run("funds", **{**payout.env, **UNHURRIED})
    payout.publish(payout.completed())
    reach(payout, state="BLOCKED")
    world.until(lambda: idle(world))
    with holding(payout, "pg_advisory_xact_lock_shared", cancel=False):
        payout.publish(payout.batches[0])
        reach(payout, outstanding=PEOPLE)
    assert payout.ledger() == {item.disbursement_id: 1 for item in payout.items()}
    assert process.alive


def test_who_decides_waits_for_who_folds(world: World, payout: Payout) -> None:
    world.run("funds", **payout.env)
    payout.publish(payout.batches[0])
    reach(payout, waiting=PEOPLE)
    with holding(payout, "pg_advisory_xact_lock_shared"):
        # Beside the envelope's row, which is ours: what the fold of its completion writes before the job looks.
        world.sql(
            "funds",
            """INSERT INTO due (job, subject, lock_key, cause_id) VALUES ('advance', %(id)s, %(key)s, 'test')""",
            id=str(payout.envelope_id),
            key=lock_key("funds", payout.envelope_id),
        )
        somebody_waits(world, "ExclusiveLock")
    reach(payout, cancelled=PEOPLE)
    assert world.sql("funds", "SELECT 1 FROM work") == []


def test_a_statement_takes_the_work_before_its_instruction_as_who_settles_does(world: World, payout: Payout) -> None:
    """Of a payment whose answer is still on its way. In the other order each would wait for the other until the database
    ends one of them, a second later, and all who wait behind them would as well."""
    payout.bank.add_fault("late", profile=payout.profile, path="/initiate_payment", seconds=HELD_SECONDS)
    world.run("funds", **{**payout.env, **PATIENT, **UNHURRIED})
    payout.publish_all()
    world.until(payout.ledger)
    world.until(lambda: not world.sql("funds", "SELECT 1 FROM due WHERE due_at <= clock_timestamp()"))
    with holding(payout, "pg_advisory_xact_lock_shared", cancel=False) as cursor:
        cursor.execute("SELECT 1 FROM funds.work WHERE kind = 'dispatch' FOR UPDATE")
        assert cursor.rowcount == 1
        deliver_statements(payout)
        waiting = """SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
                     AND wait_event <> 'advisory'"""  # for a row, not for the envelope
        world.until(lambda: world.sql(None, waiting), what="the statement's waiting")
        cursor.execute("SELECT 1 FROM funds.instructions FOR NO KEY UPDATE NOWAIT")
    payout.bank.delete_faults()
    reach(payout, confirmed=PEOPLE)
    assert payout.ledger() == {item.disbursement_id: 1 for item in payout.items()}
