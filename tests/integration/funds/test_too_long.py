"""What lies too long: held money goes back by itself, payments without a statement line are listed."""

from typing import Any

from libs.common.contracts import funds, operator
from libs.local.client import BankAdmin
from tests.faults.bookkeeping import idle
from tests.integration.funds.test_holes import settled_jobs
from tests.integration.funds.test_operations import command, tick, until_position
from tests.support.money import Payout
from tests.support.statements import deliver_statements
from tests.support.world import World

PEOPLE = 6


def ticked(world: World) -> None:
    """A tick more is folded, and what it made due is decided."""
    query = "SELECT coalesce(sum(next_offset), 0) AS n FROM consumed WHERE topic = 'scheduler.ticks.v1'"
    [before] = world.sql("funds", query)
    tick(world)
    world.until(lambda: world.sql("funds", query)[0].n > before.n)
    settled_jobs(world)


def listed(world: World, state: str = "OPEN") -> list[Any]:
    query = "SELECT * FROM ops_exceptions WHERE reason = 'NO_STATEMENT_LINE' AND state = %(state)s"
    return world.sql("funds", query, state=state)


def test_held_money_is_released_when_its_days_are_over(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank)
    batch = payout.batch(PEOPLE, unresolved=2)
    world.run("funds", **payout.env, ALMONER_FUNDS_HELD_TTL_DAYS="30")
    payout.publish_all()
    until_position(payout, outstanding=PEOPLE - 2, held=2)
    first, second = (item.disbursement_id for item in batch.unresolved)
    older = "UPDATE held SET since = since - interval '29 days 23 hours' WHERE disbursement_id = %(id)s"
    world.sql("funds", older, id=first)
    ticked(world)
    assert payout.position()["held"] == 2  # not yet
    world.sql("funds", "UPDATE held SET since = since - interval '1 hour' WHERE disbursement_id = %(id)s", id=first)
    ticked(world)
    gone = next(item.amount_minor for item in batch.unresolved if item.disbursement_id == first)
    until_position(payout, held=1, released_minor=gone)
    [release] = world.sql("funds", "SELECT reason FROM ops_releases")
    assert release.reason == "HELD_TTL"
    [event] = world.events("funds.envelopes.v1", funds.FundsReleased, at_least=1)
    assert event.data.amount_minor == gone
    assert [row.disbursement_id for row in world.sql("funds", "SELECT disbursement_id FROM ops_held")] == [second]


def test_held_money_stays_where_nothing_else_is_configured(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank)
    payout.batch(PEOPLE, unresolved=2)
    world.run("funds", **payout.env)
    payout.publish_all()
    until_position(payout, outstanding=PEOPLE - 2, held=2)
    world.sql("funds", "UPDATE held SET since = since - interval '9 years'")
    ticked(world)
    assert payout.position()["held"] == 2


def test_payments_without_a_line_are_listed_until_it_comes_and_never_sent_again(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank)
    payout.batch(PEOPLE)
    world.run("funds", **payout.env, ALMONER_FUNDS_STATEMENT_DAYS="3")
    payout.publish_all()
    until_position(payout, outstanding=PEOPLE)
    ticked(world)
    assert listed(world) == []
    world.sql("funds", "UPDATE instructions SET dispatched_at = dispatched_at - interval '3 days'")
    ticked(world)
    [found] = listed(world)
    total = sum(item.amount_minor for item in payout.items())
    assert (found.instruction, found.amount_minor, found.detail) == (1, total, f"{PEOPLE} payments without a line")
    world.until(lambda: world.sql("funds", "SELECT 1 FROM work WHERE kind = 'order' AND state = 'DONE'"))
    assert [info["lines"] for info in bank.statements("full", payout.account)] == [PEOPLE]  # the bank was asked for one
    ticked(world)  # once more: it is listed already
    assert len(listed(world)) == 1
    assert len(world.sql("funds", "SELECT 1 FROM work WHERE kind = 'order'")) == 1
    assert payout.ledger() == {item.disbursement_id: 1 for item in payout.items()}
    deliver_statements(payout)
    until_position(payout, confirmed=PEOPLE, state="SETTLED")
    world.until(lambda: idle(world))
    assert listed(world) == []
    [closed] = listed(world, "CLOSED")
    assert (closed.amount_minor, closed.closed_by) == (0, None)


def test_an_operator_may_settle_what_has_no_line(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank)
    payout.batch(PEOPLE)
    world.run("funds", **payout.env, ALMONER_FUNDS_STATEMENT_DAYS="3")
    payout.publish_all()
    until_position(payout, outstanding=PEOPLE)
    world.sql("funds", "UPDATE instructions SET dispatched_at = dispatched_at - interval '4 days'")
    ticked(world)
    [found] = listed(world)
    command(world, operator.SettleException, ids=[found.id], evidence="the bank sends its statement on Monday")
    world.until(lambda: listed(world, "CLOSED"))
    ticked(world)
    assert listed(world) == []  # it is not listed again
    assert payout.position()["outstanding"] == PEOPLE
