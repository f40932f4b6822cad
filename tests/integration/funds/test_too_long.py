"""What lies too long: held money goes back by itself, payments without a statement line are listed."""

from typing import Any

from libs.common.contracts import funds, operator
from libs.local.client import BankAdmin, Profile
from tests.faults.bookkeeping import idle
from tests.integration.funds.test_holes import settled_jobs
from tests.integration.funds.test_operations import command, tick, until_position
from tests.support.money import Payout
from tests.support.statements import deliver_statements, publish_statement
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
    assert (found.instruction, found.amount_minor) == (1, total)
    assert found.detail.startswith(f"{PEOPLE} payments without a line")
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


def overdue(world: World, bank: BankAdmin, profile: Profile = "full", refused: int = 0) -> Payout:
    """An instruction of so many people of whom no statement came for too long; the bank refuses some of them."""
    payout = Payout(world, bank, profile)
    batch = payout.batch(PEOPLE)
    closed = [f"ACC-{item.beneficiary_id}" for item in batch.items][:refused]
    bank.close_accounts(profile, closed)
    world.run("funds", **payout.env, ALMONER_FUNDS_STATEMENT_DAYS="3")
    payout.publish_all()
    until_position(payout, outstanding=PEOPLE - refused)
    bank.close_accounts(profile, [])
    world.until(lambda: idle(world))  # nobody looks at it before the tick
    world.sql("funds", "UPDATE instructions SET dispatched_at = dispatched_at - interval '4 days'")
    return payout


def of_kind(world: World, kind: str) -> list[tuple[str, int]]:
    rows = world.sql("funds", "SELECT state, attempts_started FROM work WHERE kind = %(kind)s", kind=kind)
    return [(row.state, row.attempts_started) for row in rows]


def asked(bank: BankAdmin) -> int:
    return sum(request["path"].endswith("/query") for request in bank.requests())


def test_the_bank_says_what_became_of_them_which_changes_nothing(world: World, bank: BankAdmin) -> None:
    payout = overdue(world, bank, refused=2)
    before = payout.position()
    bank.add_fault("timeout_after", profile="full", path="/query", count=1)  # a lost answer is asked for again
    ticked(world)
    world.until(lambda: [state for state, _ in of_kind(world, "query")] == ["DONE"])
    [found] = listed(world)
    assert found.detail == "4 payments without a line; the bank says: accepted 4, refused 2"
    ticked(world)
    world.until(lambda: idle(world))
    assert (len(of_kind(world, "query")), payout.position()) == (1, before)
    assert max(payout.ledger().values()) == 1
    deliver_statements(payout)
    world.until(lambda: listed(world, "CLOSED"))
    [closed] = listed(world, "CLOSED")
    assert closed.detail == "0 payments without a line; the bank says: accepted 4, refused 2"


def test_a_bank_may_know_nothing_of_them(world: World, bank: BankAdmin) -> None:
    payout = overdue(world, bank)
    world.sql("funds", "UPDATE work SET idempotency_key = gen_random_uuid() WHERE kind = 'dispatch'")
    ticked(world)
    world.until(lambda: [state for state, _ in of_kind(world, "query")] == ["DONE"])
    assert [row.detail for row in listed(world)] == [f"{PEOPLE} payments without a line; the bank knows nothing of it"]
    assert payout.position()["outstanding"] == PEOPLE
    assert payout.ledger() == {item.disbursement_id: 1 for item in payout.items()}  # it is not sent again because of that


def test_a_bank_that_cannot_be_asked_is_asked_for_a_statement_only(world: World, bank: BankAdmin) -> None:
    overdue(world, bank, "example")
    before = asked(bank)
    ticked(world)
    world.until(lambda: of_kind(world, "order") == [("DONE", 1)])
    assert (of_kind(world, "query"), asked(bank)) == ([], before)
    assert [row.detail for row in listed(world)] == [f"{PEOPLE} payments without a line"]


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


def test_an_operator_may_say_that_what_has_no_line_will_not_be_paid(world: World, bank: BankAdmin) -> None:
    """Who is confirmed by then stays so, the others are held. If the bank was wrong, its lines count."""
    payout = overdue(world, bank)
    bank.set_statements("full", max_lines=2)
    evidence = "letter of the bank of 2026-11-27"
    unpaid = {"kind": "dispatch", "subject": "1", "outcome": "did_not_happen", "evidence": evidence}
    command(world, operator.SettleUnknown, **unpaid)
    [refusal] = world.until(lambda: world.sql("funds", "SELECT detail FROM ops_audit"))
    assert refusal.detail.startswith("refused: instruction 1 is neither unknown nor without a line")  # it is not listed yet
    ticked(world)
    [found] = listed(world)
    world.until(lambda: of_kind(world, "order") == [("DONE", 1)])
    bank.set_statements("full")
    first, *others = [bank.statement_content("full", info["id"]) for info in bank.statements("full", payout.account)]
    publish_statement(payout, first)
    until_position(payout, outstanding=PEOPLE - 2, confirmed=2)
    command(world, operator.SettleUnknown, **unpaid)
    until_position(payout, outstanding=0, held=PEOPLE - 2, confirmed=2)
    world.until(lambda: [row.id for row in listed(world, "CLOSED")] == [found.id])
    reasons = world.sql("funds", "SELECT DISTINCT reason, message FROM ops_held")
    assert [tuple(row) for row in reasons] == [("BANK_DID_NOT_HAPPEN", evidence)]
    for content in others:
        publish_statement(payout, content)
    until_position(payout, held=0, confirmed=PEOPLE, state="SETTLED")
