"""Agency cash: one payment for each batch, part and zone, of the sum of its people's shares; the bank's ledger is the judge."""

from collections import Counter
from datetime import date
from typing import Any

import pytest

from libs.common.contracts import funds, operator
from libs.common.contracts.base import UnresolvedItems, derived_id
from libs.common.contracts.ingestion import StatementLine
from libs.local.client import BankAdmin, Profile
from services.funds import domain
from tests.faults.bookkeeping import consumed, idle
from tests.integration.funds.test_holes import pause, resume
from tests.integration.funds.test_operations import command, until_position
from tests.support.agencies import AgencyPayout
from tests.support.statements import deliver_statements, publish_lines
from tests.support.world import World

PEOPLE = 10
TOPICS = ("ingestion.envelopes.v1", "allocation.batches.v1", "ingestion.statements.v1")


def agency_payments(world: World, **wanted: object) -> list[Any]:
    rows = world.sql("funds", "SELECT * FROM ops_agency_payments ORDER BY instruction, head")
    return [row for row in rows if wanted.items() <= row._mapping.items()]


def line(
    payout: AgencyPayout,
    instruction: int,
    position: int,
    amount_minor: int,
    mark: str = "D",
    name: str = "s",
    bank_reference: str = "",
) -> None:
    """A statement of one line with the reference of (instruction, position)."""
    [reference] = domain.references(payout.incarnation, instruction, [position])
    found = StatementLine(
        line=1,
        mark=mark,
        amount_minor=amount_minor,
        value_date=date(2026, 1, 2),
        customer_reference=reference,
        bank_reference=bank_reference or f"BR-{name}",
        fifth_narrative=reference,
    )
    token = payout.sealer.token(payout.account)
    publish_lines(payout, derived_id("statement", payout.account, name), token, [[found]])


def reasons(world: World, state: str = "OPEN") -> list[str]:
    query = "SELECT reason FROM ops_exceptions WHERE state = %(state)s ORDER BY id"
    return [row.reason for row in world.sql("funds", query, state=state)]


def zone(payout: AgencyPayout, number: int, batch: int = 1, part: int = 1) -> dict[str, int]:
    """Disbursement -> amount of the people of a zone."""
    return payout.members[f"{payout.prefix}{batch}-{part}-Z{number}"]


def paid(world: World, payout: AgencyPayout, **env: str) -> None:
    """One batch of which everybody's agency is paid."""
    payout.batch(PEOPLE)
    world.run("funds", **payout.env, **env)
    payout.publish_all()
    until_position(payout, outstanding=PEOPLE)


@pytest.mark.parametrize("profile", ["full", "example"])
def test_each_agency_is_paid_once_for_each_batch_and_zone_whatever_comes_twice(
    world: World, bank: BankAdmin, profile: Profile
) -> None:
    payout = AgencyPayout(world, bank, profile)
    for _ in range(2):
        payout.batch(PEOPLE)
    goods = AgencyPayout(world, bank, profile, name="GOODS")
    kilograms = {"benefit_type": "COMMODITY", "currency": "", "measurement_unit": "kg", "unit_scale": 3}
    goods.header = goods.header.model_copy(update=kilograms)
    goods.batch(PEOPLE)
    world.run("funds", **payout.env)
    for _ in range(2):
        goods.publish_all()
        goods.publish(goods.cancelling())
        payout.publish_all()
    until_position(payout, outstanding=2 * PEOPLE)
    assert payout.ledger() == {item.disbursement_id: 1 for item in payout.items()}
    assert Counter(code for code, _ in payout.lists()) == Counter(
        dict.fromkeys(payout.members.keys() - goods.members.keys(), 1)
    )
    assert {p["beneficiary_id"] for p in payout.payments()} == {"A0", "A1", "A2"}  # the fourth narrative
    for payment in payout.payments():
        assert payment["beneficiary_account"] == payout.account_of(int(payment["beneficiary_id"][1:]))
    rows = agency_payments(world, state="OUTSTANDING")
    assert sorted((row.small_zone_code, row.amount_minor, row.people) for row in rows) == sorted(
        (code, amount, len(payout.members[code])) for code, amount in payout.lists()
    )
    assert {row.reference for row in rows} == {p["payment_reference_number"] for p in payout.payments()}
    for _ in range(2):
        deliver_statements(payout)
    until_position(payout, state="SETTLED", confirmed=2 * PEOPLE)
    world.until(lambda: consumed(world, *TOPICS) and idle(world))
    said = [event.data for event in world.events("funds.payments.v1", funds.PaymentsConfirmed)]
    assert Counter(item.disbursement_id for one in said for item in one.items) == payout.ledger()
    assert {row.state for row in agency_payments(world)} == {"CONFIRMED"}
    assert reasons(world) == []
    assert not goods.position()  # of goods funds knows nothing
    assert not world.sql("funds", "SELECT 1 FROM dead_letters")


def test_whom_allocation_held_is_paid_by_the_next_part_but_never_an_agency_without_an_account(
    world: World, bank: BankAdmin
) -> None:
    """Allocation names no agency that can't be paid. An event that does so all the same is the last word on whom it names: they are
    held until their money is given back."""
    payout = AgencyPayout(world, bank, poor={1})
    batch = payout.batch(PEOPLE, unresolved=2)
    world.run("funds", **payout.env)
    payout.publish_all()
    poor = zone(payout, 1)
    until_position(payout, outstanding=PEOPLE - 2 - len(poor), held=2 + len(poor))
    held = [item for event in world.events("funds.payments.v1", funds.PaymentsHeld, at_least=1) for item in event.data.items]
    assert Counter(item.reason for item in held) == {"NO_AGENCY_ACCOUNT": len(poor), "NO_AGENCY": 2}
    assert f"{payout.prefix}1-1-Z1" not in dict(payout.lists())
    # The next part brings whom allocation held, and somebody who was paid already.
    payout.poor.clear()
    everybody = [*batch.unresolved, batch.items[0]]
    late = batch.model_copy(update={"unresolved": UnresolvedItems.of((*one[:3], "NO_AGENCY", "") for one in everybody)})
    payout.publish(payout.next_part(late, 2))
    until_position(payout, outstanding=PEOPLE - len(poor), held=len(poor))
    second = {code: minor for code, minor in payout.lists() if "-2-Z" in code}
    assert sum(second.values()) == sum(item.amount_minor for item in batch.unresolved)
    # The bank was never asked: there is nothing to try again.
    command(world, operator.RetryHeld, envelope_id=payout.envelope_id)
    audit = "SELECT affected FROM ops_audit WHERE action = %(action)s"
    [row] = world.until(lambda: world.sql("funds", audit, action=operator.RetryHeld.TYPE))
    assert row.affected == 0
    command(world, operator.ReleaseRequested, envelope_id=payout.envelope_id, expected=len(poor))
    deliver_statements(payout)
    until_position(payout, state="SETTLED", confirmed=PEOPLE - len(poor), held=0, released_minor=sum(poor.values()))
    everything = sum(item.amount_minor for item in payout.items())
    assert sum(minor for _, minor in payout.lists()) == everything - sum(poor.values())
    assert reasons(world) == []


def test_who_is_cancelled_before_dispatch_makes_the_payment_smaller(world: World, bank: BankAdmin) -> None:
    payout = AgencyPayout(world, bank)
    payout.batch(PEOPLE)
    world.run("funds", **payout.env)
    pause(world, "dispatch")
    payout.publish_all()
    until_position(payout, waiting=PEOPLE, batches=1, state="BLOCKED")
    first, *_, last = zone(payout, 0)  # the first is the head
    payout.gone = {first, last, *zone(payout, 2)}
    payout.publish(payout.cancelling_some(sorted(payout.gone)))
    until_position(payout, cancelled=len(payout.gone))
    command(world, operator.ResumeStage, stage="dispatch")
    left = PEOPLE - len(payout.gone)
    until_position(payout, outstanding=left, releasing_minor=0)
    assert payout.ledger() == {one: 1 for one in [*zone(payout, 0), *zone(payout, 1)] if one not in payout.gone}
    assert [(row.agency_id, row.state, row.people) for row in agency_payments(world)] == [
        ("A0", "OUTSTANDING", 2),
        ("A1", "OUTSTANDING", 3),
        ("A2", "CANCELLED", 0),
    ]
    deliver_statements(payout)
    until_position(payout, state="SETTLED", confirmed=left)
    assert reasons(world) == []


def test_a_payment_the_bank_refuses_holds_all_its_people_and_is_made_anew_as_one(world: World, bank: BankAdmin) -> None:
    payout = AgencyPayout(world, bank)
    bank.close_accounts("full", [payout.account_of(1), payout.account_of(2)])
    try:
        payout.batch(PEOPLE)
        world.run("funds", **payout.env)
        payout.publish_all()
        refused = {**zone(payout, 1), **zone(payout, 2)}
        until_position(payout, outstanding=PEOPLE - len(refused), held=len(refused))
        said = [event.data for event in world.events("funds.payments.v1", funds.PaymentsRefused, at_least=1)]
        assert {item.disbursement_id: item.amount_minor for one in said for item in one.items} == refused
        assert {item.reason for one in said for item in one.items} == {"ACCOUNT_CLOSED"}
    finally:
        bank.close_accounts("full", [])
    one, *others = zone(payout, 1)
    command(world, operator.RetryHeld, envelope_id=payout.envelope_id, disbursement_ids=others)
    until_position(payout, outstanding=PEOPLE - len(zone(payout, 2)) - 1)
    command(world, operator.RetryHeld, envelope_id=payout.envelope_id)
    until_position(payout, outstanding=PEOPLE, held=0)
    sums = {number: sum(zone(payout, number).values()) for number in range(3)}
    code = f"{payout.prefix}1-1-Z"
    assert sorted(payout.lists()) == sorted(
        [(f"{code}0", sums[0]), (f"{code}1", sums[1] - refused[one]), (f"{code}1", refused[one]), (f"{code}2", sums[2])]
    )
    deliver_statements(payout)
    until_position(payout, state="SETTLED", confirmed=PEOPLE)
    assert reasons(world) == []
    assert Counter(row.state for row in agency_payments(world)) == {"CONFIRMED": 4, "REFUSED": 2}


def test_a_line_is_for_the_whole_payment(world: World, bank: BankAdmin) -> None:
    payout = AgencyPayout(world, bank)
    paid(world, payout)
    whole = sum(zone(payout, 0).values())
    line(payout, 1, 1, whole, "RD", name="early")
    world.until(lambda: reasons(world) == ["REVERSAL_WITHOUT_DEBIT"])
    line(payout, 1, 1, 1000, name="of the head alone")
    line(payout, 1, 4, 1003, name="of no head")
    world.until(lambda: sorted(reasons(world)) == ["AMOUNT_MISMATCH", "REVERSAL_WITHOUT_DEBIT", "UNKNOWN_REFERENCE"])
    until_position(payout, outstanding=PEOPLE)
    line(payout, 1, 1, whole, name="debit")
    until_position(payout, outstanding=PEOPLE - 4, reversed=4, confirmed=0)
    assert sorted(reasons(world)) == ["AMOUNT_MISMATCH", "UNKNOWN_REFERENCE"]
    line(payout, 1, 1, whole, name="debit again")
    line(payout, 1, 1, whole, "RD", name="reversal again")
    world.until(lambda: {"DUPLICATE_DEBIT", "DUPLICATE_REVERSAL"} <= set(reasons(world)))
    until_position(payout, outstanding=PEOPLE - 4, reversed=4)
    # Each of the four is named by what is wrong with their payment.
    [row] = world.sql(
        "funds",
        """SELECT count(DISTINCT disbursement_id) AS people, count(*) AS n FROM ops_history
           WHERE step = 'exception' AND detail = 'DUPLICATE_DEBIT'""",
    )
    assert (row.people, row.n) == (4, 4)


def test_reversed_shares_are_repaid_as_one_from_a_further_block(world: World, bank: BankAdmin) -> None:
    payout = AgencyPayout(world, bank)
    paid(world, payout)
    back = zone(payout, 2)
    bank.reverse("full", reason="agency closed", disbursement_ids=[f"{payout.prefix}1-1-Z2"])
    deliver_statements(payout)
    until_position(payout, confirmed=PEOPLE - len(back), reversed=len(back), state="SETTLED")
    again = sorted(back)[:2]
    command(world, operator.Repay, envelope_id=payout.envelope_id, disbursement_ids=again)
    until_position(payout, outstanding=2)
    assert payout.lists()[-1] == (f"{payout.prefix}1-1-Z2", sum(back[one] for one in again))
    [block] = bank.blocks("full", payout.account)[1:]
    assert block["amount_minor"] == block["used_minor"] == sum(back[one] for one in again)
    deliver_statements(payout)
    until_position(payout, state="SETTLED", confirmed=PEOPLE - len(back) + 2, reversed=len(back))
    assert reasons(world) == []


def test_who_is_found_after_the_release_is_repaid_through_the_agency_of_that_part(world: World, bank: BankAdmin) -> None:
    payout = AgencyPayout(world, bank)
    batch = payout.batch(PEOPLE, unresolved=4)
    world.run("funds", **payout.env)
    payout.publish_all()
    until_position(payout, outstanding=PEOPLE - 4, held=4)
    command(world, operator.ReleaseRequested, envelope_id=payout.envelope_id)
    until_position(payout, held_minor=0, releasing_minor=0)
    payout.publish(payout.next_part(batch, 2))
    world.until(lambda: len(world.sql("funds", "SELECT 1 FROM ops_held WHERE reason = 'BLOCK_RELEASED'")) == 4)
    late = [item.disbursement_id for item in batch.unresolved]
    command(world, operator.Repay, envelope_id=payout.envelope_id, disbursement_ids=late)
    until_position(payout, outstanding=PEOPLE)
    assert payout.ledger() == {item.disbursement_id: 1 for item in payout.items()}
    deliver_statements(payout)
    until_position(payout, state="SETTLED", confirmed=PEOPLE)


def refused(world: World, payout: AgencyPayout) -> list[str]:
    """One batch of which the first zone is refused and held; its people."""
    payout.bank.close_accounts("full", [payout.account_of(0)])
    try:
        payout.batch(PEOPLE)
        world.run("funds", **payout.env)
        payout.publish_all()
        until_position(payout, outstanding=PEOPLE - 4, held=4)
    finally:
        payout.bank.close_accounts("full", [])
    return sorted(zone(payout, 0))


def test_a_late_debit_takes_back_what_was_made_of_all_its_shares_or_of_none(world: World, bank: BankAdmin) -> None:
    payout = AgencyPayout(world, bank)
    people = refused(world, payout)
    pause(world, "dispatch")
    for some in (people[:1], people[1:3]):  # the fourth is held still
        command(world, operator.RetryHeld, envelope_id=payout.envelope_id, disbursement_ids=some)
    until_position(payout, waiting=3, held=1)
    line(payout, 1, 1, sum(zone(payout, 0).values()), name="late")
    until_position(payout, confirmed=4, waiting=0, held=0)
    resume(world, "dispatch")
    world.until(lambda: idle(world))
    assert f"{payout.prefix}1-1-Z0" not in dict(payout.lists())
    assert reasons(world) == []


def test_a_late_debit_of_which_a_share_was_sent_anew_counts_for_none_and_holds_the_rest(world: World, bank: BankAdmin) -> None:
    payout = AgencyPayout(world, bank)
    people = refused(world, payout)
    command(world, operator.RetryHeld, envelope_id=payout.envelope_id, disbursement_ids=people[:1])
    until_position(payout, outstanding=PEOPLE - 3, held=3)
    pause(world, "dispatch")
    command(world, operator.RetryHeld, envelope_id=payout.envelope_id, disbursement_ids=people[1:2])
    until_position(payout, waiting=1, held=2)
    line(payout, 1, 1, sum(zone(payout, 0).values()), name="late")
    world.until(lambda: reasons(world) == ["PAID_AFTER_RETRY"])
    until_position(payout, waiting=0, held=3, confirmed=0)
    command(world, operator.ResumeStage, stage="dispatch")
    command(world, operator.RetryHeld, envelope_id=payout.envelope_id)
    command(world, operator.Repay, envelope_id=payout.envelope_id, disbursement_ids=people[2:])
    world.until(lambda: len(world.sql("funds", "SELECT 1 FROM audit WHERE affected = 0")) == 2)
    world.until(lambda: idle(world))
    assert [minor for code, minor in payout.lists() if code.endswith("Z0")] == [zone(payout, 0)[people[0]]]
    # The operator has heard from the bank that the line was an error of its own.
    [found] = world.sql("funds", "SELECT id FROM ops_exceptions")
    command(world, operator.SettleException, ids=[found.id], evidence="the bank's letter")
    world.until(lambda: reasons(world) == [])
    command(world, operator.RetryHeld, envelope_id=payout.envelope_id)
    until_position(payout, outstanding=PEOPLE, held=0)
    assert sum(minor for code, minor in payout.lists() if code.endswith("Z0")) == sum(zone(payout, 0).values())


def test_places_whose_seal_does_not_open_stop_the_envelope_and_nothing_is_paid(world: World, bank: BankAdmin) -> None:
    payout = AgencyPayout(world, bank)
    first = payout.allocated(payout.batch(PEOPLE))
    other = payout.allocated(payout.batch(PEOPLE))
    moved = first.model_copy(update={"places": other.places})  # of another batch
    world.run("funds", **payout.env)
    key = str(first.header.batch_id)
    world.publish("allocation.batches.v1", moved, key=key, correlation_id=str(payout.envelope_id))
    [letter] = world.until(lambda: world.sql("funds", "SELECT * FROM ops_dead_letters"))
    assert letter.topic == "allocation.batches.v1"
    payout.publish(payout.batches[1])
    payout.publish(payout.completed())
    world.until(lambda: world.sql("funds", "SELECT 1 FROM work WHERE kind = 'dispatch' AND code = 'DEAD_LETTER_OPEN'"))
    assert payout.lists() == []
