"""What funds' /metrics says of money, from a real process which pays at the simulated bank."""

import pytest

from libs.common.contracts import operator
from libs.common.db import Database
from libs.local.client import BankAdmin
from services.funds import gauges
from tests.support.money import Payout
from tests.support.process import Process
from tests.support.world import World

HELD, UNKNOWN, OFF, CHECKED = (
    "almoner_held_minor",
    "almoner_unknown_minor",
    "almoner_books_off_balance_envelopes",
    "almoner_books_checked_envelopes",
)
OFTEN = {"ALMONER_FUNDS_MONEY_SECONDS": "1", "ALMONER_FUNDS_BOOKS_SECONDS": "1"}


def measured_anew(world: World, process: Process, measure: str) -> None:
    """Until the gauges are read once more from now on."""
    before = process.metric("almoner_measured_timestamp_seconds", measure=measure)
    world.until(lambda: process.metric("almoner_measured_timestamp_seconds", measure=measure) > before)


def test_held_money_is_shown_by_programme_and_reason_until_it_is_released(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank)
    payout.batch(20, unresolved=3)
    minor = sum(item.amount_minor for item in payout.batches[0].unresolved)
    process = world.run("funds", **payout.env, **OFTEN)
    payout.publish_all()
    labels = {"programme": "Rice", "currency": "EUR", "reason": "NOT_LINKED"}
    world.until(lambda: process.metric(HELD, **labels) == minor)
    assert process.metric(HELD) == minor
    # A bank's own code may quote an account.
    world.sql("funds", "UPDATE held SET reason = 'ACCOUNT_4711471147_CLOSED' WHERE held_id = (SELECT min(held_id) FROM held)")
    world.until(lambda: process.metric(HELD, reason="OTHER") > 0)
    assert "4711471147" not in process.get("/metrics").text
    assert process.metric(HELD) == minor
    release = operator.ReleaseRequested(who="tester", why="test", envelope_id=payout.envelope_id)
    world.publish("funds.commands.v1", release, key="k")
    world.until(lambda: HELD + "{" not in process.get("/metrics").text)


@pytest.mark.parametrize("kind", ["dispatch", "block"])
def test_unknown_money_is_shown_until_somebody_knows(world: World, bank: BankAdmin, kind: str) -> None:
    payout = Payout(world, bank, "example")
    payout.batch(10)
    minor = sum(item.amount_minor for item in payout.items())
    path = {"dispatch": "/initiate_payment", "block": "/block_funds"}[kind]
    bank.add_fault("error_500", profile="example", path=path, count=1)
    process = world.run("funds", **payout.env, **OFTEN)
    payout.publish_all()
    world.until(lambda: process.metric(UNKNOWN, programme="Rice", currency="EUR", kind=kind) == minor)
    assert process.metric(UNKNOWN) == minor
    [row] = world.sql("funds", "SELECT subject FROM ops_unknown")
    settle = operator.SettleUnknown(
        who="tester", why="test", kind=kind, subject=row.subject, outcome="did_not_happen", evidence="the bank's log"
    )
    world.publish("funds.commands.v1", settle, key="k")
    world.until(lambda: UNKNOWN + "{" not in process.get("/metrics").text)


def test_books_that_do_not_balance_are_counted(world: World, bank: BankAdmin) -> None:
    first, second = Payout(world, bank, name="E1"), Payout(world, bank, name="E2")
    process = world.run("funds", **first.env, **OFTEN)
    for payout in (first, second):
        payout.batch(5)
        payout.publish_all()
    world.until(lambda: all(payout.position().get("outstanding") == 5 for payout in (first, second)))
    world.until(lambda: process.metric(CHECKED) == 2)
    assert process.metric(OFF) == 0
    # Money out of nothing: the block is one unit larger than what was made of it.
    world.sql("funds", "UPDATE blocks SET amount_minor = amount_minor + 1 WHERE envelope_id = %(id)s", id=first.envelope_id)
    world.until(lambda: process.metric(OFF) == 1)
    [line] = process.logged("books out of balance: run `almoner books`")[-1:]
    assert line["some"] == [str(first.envelope_id)]
    world.sql("funds", "UPDATE blocks SET amount_minor = amount_minor - 1 WHERE envelope_id = %(id)s", id=first.envelope_id)
    world.until(lambda: process.metric(OFF) == 0)
    # Paid, and no block to be paid from.
    world.sql(
        "funds", "UPDATE blocks SET state = 'VOID', bank_reference = NULL WHERE envelope_id = %(id)s", id=first.envelope_id
    )
    world.until(lambda: process.metric(OFF) == 1)


def test_what_is_settled_for_long_is_looked_at_again_only_if_it_is_paid_again(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank)
    payout.batch(5)
    process = world.run("funds", **payout.env, **OFTEN)
    payout.publish_all()
    world.until(lambda: payout.position().get("outstanding") == 5)
    world.until(lambda: process.metric(CHECKED) == 1)
    world.sql("funds", "UPDATE blocks SET created_at = created_at - interval '9 days'")
    world.sql("funds", "UPDATE envelopes SET settled_at = clock_timestamp() - interval '2 days'")
    world.until(lambda: process.metric(CHECKED) == 0)
    world.sql("funds", "UPDATE blocks SET created_at = clock_timestamp()")
    world.until(lambda: process.metric(CHECKED) == 1)


def test_reading_the_books_uses_the_indexes_of_each_envelope(world: World) -> None:
    """Not the sum of all payments there ever were, which grows for ever."""
    world.sql(
        "funds",
        """INSERT INTO envelopes (envelope_id, lock_key, header, source, publisher_envelope_id, programme, currency, schedule_date,
                                  time_zone, settled_at)
           SELECT uuidv7(), n, '{}', 's', n::text, 'P', 'EUR', '2026-01-02', 'UTC',
                  CASE WHEN n > 3 THEN clock_timestamp() - interval '9 days' END FROM generate_series(1, 2000) AS n""",
    )
    world.sql("funds", "INSERT INTO batches SELECT uuidv7(), envelope_id, 1, '{}', 1, 1 FROM envelopes")
    world.sql(
        "funds",
        """INSERT INTO instructions (envelope_id, batch_id, part, incarnation, sealed_key, sealed, count, total_minor)
           SELECT envelope_id, batch_id, 1, 0, 'k', 's', 1, 1 FROM batches, generate_series(1, 10)""",
    )
    world.sql("funds", "ANALYZE")
    database = Database(world.database_url, "funds")
    try:
        before = world.scanned("funds", "instructions")
        with database.transaction() as tx:
            gauges.read_books(tx)
            tx.run("SELECT pg_stat_force_next_flush()")
        assert world.scanned("funds", "instructions") - before < 1000
    finally:
        database.close()
