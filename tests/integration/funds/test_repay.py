"""Paying again by command: a further block of exactly the sum, one live payment for each disbursement, the bank's ledger as judge."""

from collections import Counter
from typing import Any

import pytest

from libs.common.contracts import funds, operator
from libs.common.contracts.base import Item, Items, UnresolvedItems, chunk
from libs.common.contracts.resolution import BatchAddressesResolved
from libs.common.seal import by_column
from libs.local.client import BankAdmin
from tests.faults.bookkeeping import HELD_SECONDS, LIMITS, PATIENT, idle
from tests.integration.funds.test_holes import pause, resume, settled_jobs, statement_line
from tests.integration.funds.test_operations import command, until_position
from tests.support.money import Payout
from tests.support.statements import deliver_statements
from tests.support.world import World

PEOPLE = 6


def confirmed_and_reversed(world: World, payout: Payout, count: int, **env: str) -> list[str]:
    """An envelope at rest, of which the bank has sent back the first `count` payments; their disbursements."""
    if not payout.batches:
        payout.batch(PEOPLE)
    world.run("funds", **payout.env, **env)
    payout.publish_all()
    people = sum(len(batch.items) for batch in payout.batches)
    until_position(payout, outstanding=people)
    ids = [item.disbursement_id for item in payout.items()[:count]]
    payout.bank.reverse(payout.profile, reason="account closed", disbursement_ids=ids)
    deliver_statements(payout)
    until_position(payout, confirmed=people - count, reversed=count)
    world.until(lambda: idle(world))
    return ids


def repay(payout: Payout, ids: list[str], **fields: Any) -> None:
    command(payout.world, operator.Repay, envelope_id=payout.envelope_id, disbursement_ids=ids, **fields)


def refusals(world: World, at_least: int = 1) -> list[str]:
    """What the operator reads in the audit of commands that were not carried out, in their order."""
    query = "SELECT detail FROM audit WHERE affected = 0 AND detail LIKE 'refused: %%' ORDER BY id"
    world.until(lambda: len(world.sql("funds", query)) >= at_least)
    rows = world.sql("funds", query)
    return [row.detail.removeprefix("refused: ").partition("; {")[0] for row in rows]


def minor(payout: Payout, ids: list[str]) -> int:
    return sum(item.amount_minor for item in payout.items() if item.disbursement_id in ids)


def further(payout: Payout) -> list[dict[str, Any]]:
    """The bank's blocks after the first."""
    return payout.bank.blocks(payout.profile, payout.account)[1:]


def revisions(world: World) -> list[int]:
    return [event.data.revision for event in world.events("funds.envelopes.v1", funds.EnvelopeSettled)]


def with_address(payout: Payout, items: list[Item], part: int, account: str) -> BatchAddressesResolved:
    """A later part of the first batch, in which these people have another account."""
    header = payout.batches[0].header
    addresses = {
        item.disbursement_id: {
            "name": "N",
            "narrative": "November",
            "fa_type": "BANK_ACCOUNT",
            "account_number": f"{account}-{item.beneficiary_id}",
            "bank_code": "BANK1",
            "branch_code": "BR1",
        }
        for item in items
    }
    return BatchAddressesResolved(
        header=header,
        part=part,
        **chunk(Items.of(items)),
        sealed=payout.sealer.seal(by_column(addresses), "BatchAddressesResolved", payout.envelope_id, header.batch_id, part),
        unresolved=UnresolvedItems.of([]),
        unresolved_count=0,
        unresolved_total_minor=0,
    )


# --- What is paid again -----------------------------------------------------------------------------------------------


def test_a_reversed_payment_is_paid_again_from_a_further_block_of_its_sum(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank)
    reversed_ids = confirmed_and_reversed(world, payout, 3)
    again = reversed_ids[:2]
    repay(payout, again, expected=2)
    until_position(payout, outstanding=2, confirmed=PEOPLE - 3, reversed=3, state="BLOCKED")
    assert Counter(payout.ledger()) == Counter(item.disbursement_id for item in payout.items()) + Counter(again)
    [block] = further(payout)
    sums = (minor(payout, again),) * 2
    assert (block["amount_minor"], block["used_minor"]) == sums
    paid_from = Counter(
        row["block_reference"] for row in bank.payments("full") if row["disbursement_id"].startswith(payout.prefix)
    )
    assert paid_from[block["block_reference_no"]] == 2
    deliver_statements(payout)
    until_position(payout, outstanding=0, confirmed=PEOPLE - 1, reversed=3, state="SETTLED", revision=2)
    world.until(lambda: idle(world))
    assert payout.position()["blocked_minor"] == minor(payout, again) + sum(item.amount_minor for item in payout.items())
    blocked = [event.data for event in world.events("funds.envelopes.v1", funds.FundsBlocked)]
    assert [(one.block, one.amount_minor) for one in blocked][1:] == [(2, minor(payout, again))]
    assert len(world.events("funds.envelopes.v1", funds.FundsChecked)) == 2
    assert revisions(world) == [1, 2]
    assert not world.sql("funds", "SELECT 1 FROM exceptions")


def test_who_is_sent_back_again_is_paid_again_by_another_block(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank)
    [one] = confirmed_and_reversed(world, payout, 1)
    repay(payout, [one])
    until_position(payout, outstanding=1)
    [second] = world.sql("funds", "SELECT reference FROM ops_payments WHERE state = 'OUTSTANDING'")
    bank.reverse("full", reason="again", references=[second.reference])
    deliver_statements(payout)
    until_position(payout, reversed=2, outstanding=0)
    repay(payout, [one])
    until_position(payout, outstanding=1, reversed=2)
    deliver_statements(payout)
    until_position(payout, confirmed=PEOPLE, reversed=2, state="SETTLED")
    assert payout.ledger()[one] == 3
    assert [block["used_minor"] for block in further(payout)] == [minor(payout, [one])] * 2


def test_a_repayment_goes_to_the_newest_address(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank)
    old, new = confirmed_and_reversed(world, payout, 2)
    payout.publish(with_address(payout, [i for i in payout.batches[0].items if i.disbursement_id == new], 2, "CORRECTED"))
    world.until(lambda: world.sql("funds", "SELECT 1 FROM parts WHERE part = 2"))
    assert payout.position()["reversed"] == 2  # an address alone pays nobody
    repay(payout, [old, new])
    until_position(payout, outstanding=2)
    accounts = {}
    for payment in bank.payments("full"):
        accounts[payment["disbursement_id"]] = payment["beneficiary_account"]
    assert accounts[new].startswith("CORRECTED-")
    assert accounts[old].startswith("ACC-")
    assert (payout.ledger()[old], payout.ledger()[new]) == (2, 2)


def test_who_is_resolved_after_the_release_is_paid_from_a_further_block(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank)
    batch = payout.batch(PEOPLE, unresolved=2)
    late = [item.disbursement_id for item in batch.unresolved]
    world.run("funds", **payout.env)
    payout.publish_all()
    until_position(payout, outstanding=PEOPLE - 2, held=2)
    command(world, operator.ReleaseRequested, envelope_id=payout.envelope_id)
    until_position(payout, held_minor=0, released_minor=minor(payout, late))
    repay(payout, late)
    assert refusals(world) == [f"cannot be paid again: RELEASED: {', '.join(late)}"]  # nobody knows an address
    payout.publish(payout.next_part(batch, 2))
    world.until(lambda: len(world.sql("funds", "SELECT 1 FROM ops_held WHERE reason = 'BLOCK_RELEASED'")) == 2)
    repay(payout, late)
    until_position(payout, outstanding=PEOPLE, released_minor=minor(payout, late))
    assert payout.ledger() == {item.disbursement_id: 1 for item in payout.items()}
    assert [block["used_minor"] for block in further(payout)] == [minor(payout, late)]
    assert not world.sql("funds", "SELECT 1 FROM ops_held")
    deliver_statements(payout)
    until_position(payout, confirmed=PEOPLE, state="SETTLED")


def test_what_is_refused_in_a_repayment_is_held_in_its_block_and_released_from_it(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank)
    ids = confirmed_and_reversed(world, payout, 2)
    bank.close_accounts("full", [f"ACC-{item.beneficiary_id}" for item in payout.items()[:2]])
    try:
        repay(payout, ids)
        until_position(payout, held=2, outstanding=0)
        payout.publish(with_address(payout, [payout.batches[0].items[0]], 2, "CORRECTED"))  # no part pays from a further block
        world.until(lambda: world.sql("funds", "SELECT 1 FROM late_addresses"))
        assert payout.position()["held"] == 2
        repay(payout, ids[:1])
        until_position(payout, held=1, outstanding=1)
    finally:
        bank.close_accounts("full", [])
    command(world, operator.ReleaseRequested, envelope_id=payout.envelope_id)
    until_position(payout, held=0, held_minor=0, released_minor=minor(payout, ids[1:]))
    [block] = further(payout)
    given = tuple(block[name] for name in ("amount_minor", "used_minor", "released_minor"))
    assert given == (minor(payout, ids), minor(payout, ids[:1]), minor(payout, ids[1:]))
    assert (payout.ledger()[ids[0]], payout.ledger()[ids[1]]) == (2, 1)


def test_what_the_bank_refused_is_paid_again_from_where_it_is_held(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank)
    payout.batch(PEOPLE)
    bank.close_accounts("full", [f"ACC-{item.beneficiary_id}" for item in payout.items()[:2]])
    try:
        world.run("funds", **payout.env)
        payout.publish_all()
        until_position(payout, outstanding=PEOPLE - 2, held=2)
    finally:
        bank.close_accounts("full", [])
    repay(payout, [payout.items()[0].disbursement_id])
    until_position(payout, outstanding=PEOPLE - 1, held=1)
    assert further(payout) == []
    deliver_statements(payout)
    until_position(payout, confirmed=PEOPLE - 1, held=1)


# --- What is not ------------------------------------------------------------------------------------------------------


def test_nobody_is_repaid_unless_all_may_be_and_the_audit_names_who_and_why(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank)
    batch = payout.batch(PEOPLE, unresolved=1)
    ids = [item.disbursement_id for item in payout.items()]
    payout.publish(payout.cancelling_some(ids[:1]))
    world.run("funds", **payout.env)
    world.until(lambda: world.events("funds.envelopes.v1", funds.DisbursementsCancelled))
    payout.publish_all()
    until_position(payout, outstanding=PEOPLE - 2, cancelled=1, held=1)
    bank.reverse("full", reason="closed", disbursement_ids=[ids[1]])
    repay(payout, [ids[2]])
    assert refusals(world) == [f"cannot be paid again: OUTSTANDING: {ids[2]}"]
    deliver_statements(payout)
    until_position(payout, confirmed=PEOPLE - 3, reversed=1)
    repay(payout, [ids[0], ids[1], ids[2], ids[3], batch.unresolved[0].disbursement_id, "nobody"])
    said = refusals(world, 2)[1]
    wanted = f"CANCELLED: {ids[0]}; CONFIRMED: {ids[2]}, {ids[3]}; NOT_KNOWN: nobody; NO_ADDRESS: {ids[5]}"
    assert said == f"cannot be paid again: {wanted}"
    repay(payout, [ids[1]], expected=2)
    assert refusals(world, 3)[2] == "the operator saw 2, there are 1"
    facts = [event.data for event in world.events("funds.audit.v1", operator.CommandHandled, at_least=3)]
    assert sorted(fact.refused for fact in facts) == sorted(refusals(world))
    assert {fact.affected for fact in facts} == {0}
    settled_jobs(world)
    assert further(payout) == []
    assert not world.sql("funds", "SELECT 1 FROM repayments")


def test_an_unknown_payment_is_never_repaid(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank, "example")
    payout.batch(PEOPLE)
    bank.add_fault("error_500_after", profile="example", path="/initiate_payment", count=1)
    world.run("funds", **payout.env)
    payout.publish_all()
    until_position(payout, unknown=PEOPLE)
    repay(payout, [payout.items()[0].disbursement_id])
    assert refusals(world)[0].startswith("cannot be paid again: UNKNOWN: ")
    assert payout.ledger() == {item.disbursement_id: 1 for item in payout.items()}


def test_a_debit_that_comes_again_must_be_settled_before_anybody_is_repaid(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank)
    ids = confirmed_and_reversed(world, payout, 2)
    statement_line(payout, 1, 1, name="once more")
    [found] = world.until(lambda: world.sql("funds", "SELECT id, reason FROM ops_exceptions WHERE state = 'OPEN'"))
    assert found.reason == "DUPLICATE_DEBIT"
    repay(payout, ids)
    assert refusals(world) == [f"cannot be paid again: OPEN_EXCEPTION: {ids[0]}"]
    before = dict(payout.position())
    command(world, operator.SettleException, ids=[found.id, 4711], evidence="the bank's letter")
    assert refusals(world, 2)[1] == "not open: 4711: NOT_KNOWN"
    command(world, operator.SettleException, ids=[found.id], evidence="the bank's letter")
    [closed] = world.until(lambda: world.sql("funds", "SELECT * FROM ops_exceptions WHERE state = 'CLOSED'"))
    assert (closed.closed_by, closed.why, closed.evidence) == ("tester", "test", "the bank's letter")
    assert dict(payout.position()) == before  # no money moves by it
    [audit] = world.sql("funds", "SELECT affected FROM audit WHERE action LIKE '%%SettleException%%' AND affected > 0")
    assert audit.affected == 1
    repay(payout, ids)
    until_position(payout, outstanding=2)


# --- The further block ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["check", "block"])
def test_without_money_nothing_is_repaid_and_it_can_be_asked_for_again(world: World, bank: BankAdmin, step: str) -> None:
    payout = Payout(world, bank)
    ids = confirmed_and_reversed(world, payout, 1)
    before = dict(payout.position())
    assert before["state"] == "SETTLED"
    bank.add_fault("refuse", profile="full", path=f"/{step}_funds", count=1)
    repay(payout, ids)
    [short] = world.events("funds.envelopes.v1", funds.FundsShort, at_least=1)
    assert short.data.amount_minor == minor(payout, ids)
    until_position(payout, state="SETTLED", revision=before["revision"])
    assert [row.state for row in world.sql("funds", "SELECT state FROM ops_repayments")] == ["REFUSED"]
    assert payout.position()["blocked_minor"] == before["blocked_minor"]
    repay(payout, ids)
    until_position(payout, outstanding=1)
    assert [row.block for row in world.sql("funds", "SELECT block FROM ops_repayments ORDER BY block")] == [2, 3]
    assert payout.ledger()[ids[0]] == 2
    assert revisions(world) == [before["revision"]]


@pytest.mark.parametrize("happened", [True, False])
def test_while_a_further_block_is_unknown_nothing_of_the_envelope_is_dispatched(
    world: World, bank: BankAdmin, happened: bool
) -> None:
    payout = Payout(world, bank, "example")
    batch = payout.batch(PEOPLE, unresolved=1)
    ids = confirmed_and_reversed(world, payout, 2)
    fault = "error_500_after" if happened else "error_500"
    bank.add_fault(fault, profile="example", path="/block_funds", count=1)
    repay(payout, ids[:1])
    until_position(payout, state="BLOCK_UNKNOWN")
    payout.publish(payout.next_part(batch, 2))
    until_position(payout, waiting=1, held=0)
    repay(payout, ids[1:])
    assert refusals(world) == ["the envelope's money is not reserved: BLOCK_UNKNOWN"]
    world.until(lambda: idle(world))
    assert sum(payout.ledger().values()) == PEOPLE - 1
    [row] = world.sql("funds", "SELECT kind, subject FROM ops_unknown")
    assert row.kind == "block"
    command(
        world,
        operator.SettleUnknown,
        kind="block",
        subject=row.subject,
        outcome="happened" if happened else "did_not_happen",
        reference=further(payout)[0]["block_reference_no"] if happened else "",
        evidence="the bank's web page",
    )
    until_position(payout, waiting=0, in_flight=0, outstanding=1 + happened)
    assert payout.ledger()[ids[0]] == 1 + happened
    assert payout.ledger()[batch.unresolved[0].disbursement_id] == 1
    repay(payout, ids[1:])
    until_position(payout, outstanding=2 + happened)


# --- Races ------------------------------------------------------------------------------------------------------------


def test_two_who_repay_at_once_pay_once(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank)
    ids = confirmed_and_reversed(world, payout, 2)
    world.run("funds", **payout.env)
    for _ in range(2):
        repay(payout, ids)
    assert refusals(world)[0].startswith("cannot be paid again: ")
    until_position(payout, outstanding=2)
    world.until(lambda: idle(world))
    deliver_statements(payout)
    until_position(payout, confirmed=PEOPLE, state="SETTLED")
    assert [payout.ledger()[one] for one in ids] == [2, 2]
    assert len(further(payout)) == 1


def test_one_block_is_asked_for_at_a_time(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank)
    ids = confirmed_and_reversed(world, payout, 2)
    pause(world, "check")
    repay(payout, ids[:1])
    repay(payout, ids[:1])
    repay(payout, ids[1:])
    said = refusals(world, 2)
    assert said[0] == f"cannot be paid again: ALREADY_ASKED: {ids[0]}"
    assert said[1] == "block 2 is being asked for (CHECKING): one at a time"
    command(world, operator.ResumeStage, stage="check")
    until_position(payout, outstanding=1)


def test_a_late_debit_of_the_first_payment_takes_the_second_back(world: World, bank: BankAdmin) -> None:
    """What the bank refused, an operator repays; before it is sent the statement shows that the first was paid after all."""
    payout = Payout(world, bank)
    payout.batch(PEOPLE)
    [one] = payout.items()[:1]
    bank.close_accounts("full", [f"ACC-{one.beneficiary_id}"])
    try:
        world.run("funds", **payout.env)
        payout.publish_all()
        until_position(payout, outstanding=PEOPLE - 1, held=1)
    finally:
        bank.close_accounts("full", [])
    pause(world, "dispatch")
    repay(payout, [one.disbursement_id])
    until_position(payout, waiting=1, held=0)
    statement_line(payout, 1, 1)
    until_position(payout, confirmed=1, waiting=0)
    resume(world, "dispatch")
    world.until(lambda: idle(world))
    assert one.disbursement_id not in payout.ledger()  # of the second; the first is what the statement says


@pytest.mark.parametrize("stage", ["block", "dispatch"])
def test_a_second_debit_of_a_reversed_payment_stops_its_repayment_until_it_is_settled(
    world: World, bank: BankAdmin, stage: str
) -> None:
    payout = Payout(world, bank)
    first, other = confirmed_and_reversed(world, payout, 2)
    pause(world, stage)
    repay(payout, [first, other])
    if stage == "dispatch":
        until_position(payout, waiting=2)
    else:
        world.until(lambda: world.sql("funds", "SELECT 1 FROM blocks WHERE further AND state = 'PENDING'"))
    statement_line(payout, 1, 1, name="once more")
    [found] = world.until(lambda: world.sql("funds", "SELECT id, reason FROM ops_exceptions"))
    assert found.reason == "DUPLICATE_DEBIT"
    command(world, operator.ResumeStage, stage=stage)
    until_position(payout, outstanding=1, held=1, confirmed=PEOPLE - 2, reversed=2)
    world.until(lambda: idle(world))
    assert (payout.ledger()[first], payout.ledger()[other]) == (1, 2)
    held = [item for event in world.events("funds.payments.v1", funds.PaymentsHeld) for item in event.data.items]
    assert [(item.disbursement_id, item.reason) for item in held] == [(first, "OPEN_EXCEPTION")]
    command(world, operator.RetryHeld, envelope_id=payout.envelope_id)
    world.until(lambda: world.sql("funds", "SELECT 1 FROM audit WHERE action LIKE '%%RetryHeld%%'"))
    assert payout.position()["held"] == 1
    command(world, operator.SettleException, ids=[found.id], evidence="the bank's letter: a line of its own, by mistake")
    world.until(lambda: world.sql("funds", "SELECT 1 FROM ops_exceptions WHERE state = 'CLOSED'"))
    command(world, operator.RetryHeld, envelope_id=payout.envelope_id)
    until_position(payout, outstanding=2, held=0)
    assert (payout.ledger()[first], payout.ledger()[other]) == (2, 2)
    deliver_statements(payout)
    until_position(payout, state="SETTLED", confirmed=PEOPLE, reversed=2)


@pytest.mark.parametrize("moment", ["check", "block", "dispatch", "block is under way", "block is lost"])
def test_a_cancelled_envelope_repays_nobody_and_gives_the_further_block_back(
    world: World, bank: BankAdmin, moment: str
) -> None:
    payout = Payout(world, bank)
    ids = confirmed_and_reversed(world, payout, 2, **LIMITS | PATIENT)
    under_way = moment.startswith("block is")
    if under_way:
        fault = "late" if moment == "block is under way" else "timeout_after"
        bank.add_fault(fault, profile="full", path="/block_funds", count=1, seconds=HELD_SECONDS)
    else:
        pause(world, moment)
    repay(payout, ids)
    if moment == "dispatch":
        until_position(payout, waiting=2)
    elif under_way:
        world.until(lambda: further(payout))
    else:
        world.until(lambda: world.sql("funds", f"SELECT 1 FROM work WHERE kind = '{moment}' AND state = 'PENDING'"))
    payout.publish(payout.cancelling())
    if under_way:
        world.until(lambda: world.sql("funds", "SELECT 1 FROM cancel_requests WHERE state <> 'ASKED'"))
        bank.delete_faults()
    else:
        until_position(payout, state="CANCELLED", waiting=0)
        command(world, operator.ResumeStage, stage=moment)
    [event] = world.events("funds.envelopes.v1", funds.EnvelopeCancelled, at_least=1)
    assert event.data.already_dispatched == PEOPLE
    world.until(lambda: idle(world))
    until_position(payout, state="CANCELLED", releasing_minor=0, waiting=0, reversed=2, confirmed=PEOPLE - 2)
    assert payout.ledger() == {item.disbursement_id: 1 for item in payout.items()}
    blocks = further(payout)
    assert all(block["used_minor"] == 0 and block["released_minor"] == block["amount_minor"] for block in blocks)
    assert len(blocks) == (0 if moment in ("check", "block") else 1)
    repay(payout, ids)
    assert refusals(world) == ["the envelope is cancelled"]


def test_who_is_cancelled_while_the_block_is_asked_for_is_not_repaid_and_the_other_is(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank)
    ids = confirmed_and_reversed(world, payout, 2, **PATIENT)
    bank.add_fault("late", profile="full", path="/block_funds", count=1, seconds=HELD_SECONDS)
    repay(payout, ids)
    world.until(lambda: further(payout))
    payout.publish(payout.cancelling_some(ids[:1]))
    [answer] = world.events("funds.envelopes.v1", funds.DisbursementsCancelled, at_least=1)
    assert answer.data.cancelled == ids[:1]
    payout.assert_balanced()
    bank.delete_faults()
    until_position(payout, outstanding=1, cancelled=1, released_minor=minor(payout, ids[:1]))
    assert [payout.ledger()[one] for one in ids] == [1, 2]
    [block] = further(payout)
    assert (block["used_minor"], block["released_minor"]) == (minor(payout, ids[1:]), minor(payout, ids[:1]))
    repay(payout, ids[:1])
    assert refusals(world) == [f"cannot be paid again: CANCELLED: {ids[0]}"]


# --- Crash ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("point", "kind"),
    [
        ("fold.after_commit", ""),
        ("call.after_answer", "check"),
        ("call.after_answer", "block"),
        ("call.before_settle_commit", "block"),
        ("call.after_settle", "block"),
        ("call.after_answer", "dispatch"),
    ],
)
def test_killed_after_the_command_each_is_repaid_once(
    world: World, bank: BankAdmin, tmp_path: Any, point: str, kind: str
) -> None:
    payout = Payout(world, bank)
    ids = confirmed_and_reversed(world, payout, 2, **LIMITS)
    assert world.processes[0].stop() == 0  # its offsets are committed: the next one gets nothing but the command
    mark = tmp_path / "mark"
    env = {**payout.env, **LIMITS}
    repay(payout, ids)
    dying = {"ALMONER_CRASH_AT": point, "ALMONER_CRASH_KIND": kind, "ALMONER_CRASH_MARK": str(mark)}
    process = world.run("funds", **env, **dying)
    assert process.wait() == -9
    assert mark.read_text().split()[0] == point
    world.run("funds", **env)
    until_position(payout, timeout=60, outstanding=2)
    deliver_statements(payout)
    until_position(payout, state="SETTLED", confirmed=PEOPLE, reversed=2)
    assert [payout.ledger()[one] for one in ids] == [2, 2]
    assert [(block["amount_minor"], block["used_minor"]) for block in further(payout)] == [(minor(payout, ids),) * 2]
    assert not world.sql("funds", "SELECT 1 FROM exceptions")
    world.until(lambda: idle(world))
    said = Counter(
        (event.id, item.disbursement_id)
        for event in world.events("funds.payments.v1", funds.PaymentsDispatched)
        for item in event.data.items
        if item.disbursement_id in ids
    )
    assert len(said) == 4  # each twice, whatever was said again word for word
