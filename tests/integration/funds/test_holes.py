"""Rules of money which hold whatever comes together, late, twice, or wrong."""

import json
from datetime import date
from typing import Any

import pytest

from libs.common.clock import utc_now
from libs.common.consumer import Fold, Limits
from libs.common.contracts import funds, operator
from libs.common.contracts.base import Amounts, AmountsWithReason, AmountWithReason, BatchHeader, chunk, derived_id
from libs.common.contracts.ingestion import StatementLine
from libs.common.db import Database
from libs.common.inbox import keep_partitions
from libs.local.client import BankAdmin
from services.funds import decisions, domain
from services.funds.adapters.example_bank import read_response
from services.funds.config import Settings
from services.funds.wiring import wire
from tests.faults.bookkeeping import HELD_SECONDS, PATIENT, consumed
from tests.integration.funds.test_operations import command, until_position
from tests.support.money import Payout
from tests.support.statements import publish_lines
from tests.support.world import World


def pause(world: World, stage: str) -> None:
    command(world, operator.PauseStage, stage=stage)
    world.until(lambda: world.sql("funds", "SELECT 1 FROM paused WHERE stage = %(stage)s", stage=stage))


def resume(world: World, stage: str) -> None:
    """What was to be done there is done, or can be."""
    command(world, operator.ResumeStage, stage=stage)
    world.until(lambda: not world.sql("funds", "SELECT 1 FROM paused WHERE stage = %(stage)s", stage=stage))


def statement_line(payout: Payout, instruction: int, position: int, mark: str = "D", name: str = "s") -> None:
    """A statement of one line, which names a payment."""
    [payment] = payout.world.sql(
        "funds",
        "SELECT amount_minor FROM payments WHERE instruction = %(i)s AND position = %(p)s",
        i=instruction,
        p=position,
    )
    [reference] = domain.references(payout.incarnation, instruction, [position])
    line = StatementLine(
        line=1,
        mark=mark,
        amount_minor=payment.amount_minor,
        value_date=date(2026, 1, 2),
        customer_reference=reference,
        bank_reference=f"BR-{name}",
        fifth_narrative=reference,
    )
    token = payout.sealer.token(payout.account)
    publish_lines(payout, derived_id("statement", payout.account, name), token, [[line]])


def settled_jobs(world: World) -> None:
    world.until(lambda: not world.sql("funds", "SELECT 1 FROM due"))


def folded_at_once(world: World, payout: Payout, topic: str) -> None:
    """All messages of a topic in one transaction, as a service that catches up folds them."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**world.env, **payout.env}.items():
            patch.setenv(name, value)
        settings = Settings.load()
    database = Database(world.database_url, "funds")
    keep_partitions(database, utc_now())
    try:
        fold = Fold(database, wire(settings, database).routes, Limits())
        messages = world.messages(topic, at_least=2)
        assert fold.fold(messages) == len(messages) == 2
    finally:
        database.close()


def test_two_parts_of_a_batch_in_one_fold_neither_hold_nor_pay_anybody_twice(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank)
    batch = payout.batch(10, unresolved=3)
    payout.publish(batch)
    payout.publish(payout.next_part(batch, 2))
    folded_at_once(world, payout, "resolution.batches.v1")
    payout.publish(payout.completed())
    world.run("funds", **payout.env)
    until_position(payout, outstanding=10, held=0, waiting=0)
    assert payout.ledger() == {item.disbursement_id: 1 for item in payout.items()}


def test_who_is_resolved_by_two_parts_in_one_fold_is_paid_once(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank)
    batch = payout.batch(10, unresolved=3)
    payout.publish(payout.next_part(batch, 2))
    payout.publish(payout.next_part(batch, 3))
    folded_at_once(world, payout, "resolution.batches.v1")
    assert len(world.sql("funds", "SELECT 1 FROM payments")) == 3


def test_a_cancellation_while_the_check_is_under_way_does_not_end_the_process(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank)
    payout.batch(5)
    bank.add_fault("late", profile="full", path="/check_funds", count=1, seconds=HELD_SECONDS)
    process = world.run("funds", **payout.env, **PATIENT)
    payout.publish_all()
    world.until(lambda: world.sql("funds", "SELECT 1 FROM work WHERE kind = 'check' AND state = 'CLAIMED'"))
    payout.publish(payout.cancelling())
    world.until(lambda: world.sql("funds", "SELECT 1 FROM envelopes WHERE cancelling AND funds = 'WAITING'"))
    bank.delete_faults()
    world.until(
        lambda: (
            world.sql("funds", "SELECT 1 FROM work WHERE kind = 'check' AND state <> 'CLAIMED'")
            or process.logged("a part of the process failed")
        )
    )
    assert not process.logged("a part of the process failed")
    assert process.stop() == 0


def test_a_debit_of_a_waiting_payment_confirms_it_and_it_is_not_sent(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank)
    payout.batch(1)
    world.run("funds", **payout.env)
    pause(world, "dispatch")
    payout.publish_all()
    until_position(payout, waiting=1, batches=1, state="BLOCKED")
    statement_line(payout, 1, 1)
    until_position(payout, confirmed=1)
    resume(world, "dispatch")
    world.until(lambda: not world.sql("funds", "SELECT 1 FROM work WHERE state IN ('PENDING', 'CLAIMED')"))
    assert payout.ledger() == {}


def test_cancelling_an_envelope_with_a_debited_waiting_payment_does_not_end_the_process(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank)
    payout.batch(3)
    process = world.run("funds", **payout.env)
    pause(world, "dispatch")
    payout.publish_all()
    until_position(payout, waiting=3, batches=1, state="BLOCKED")
    statement_line(payout, 1, 1)
    until_position(payout, confirmed=1)
    payout.publish(payout.cancelling())
    world.until(
        lambda: (
            world.sql("funds", "SELECT 1 FROM envelopes WHERE cancelled_at IS NOT NULL")
            or process.logged("a part of the process failed")
        )
    )
    assert not process.logged("a part of the process failed")


def test_a_list_refused_after_an_early_reversal_leaves_nobody_out_of_the_books(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank, "example")
    payout.batch(4)
    bank.add_fault("error_500", profile="example", path="/initiate_payment", count=1)
    world.run("funds", **payout.env)
    payout.publish_all()
    until_position(payout, unknown=4)
    statement_line(payout, 1, 1, "RD")
    world.until(lambda: world.sql("funds", "SELECT 1 FROM exceptions WHERE reason = 'REVERSAL_WITHOUT_DEBIT'"))
    command(world, operator.SettleUnknown, kind="dispatch", subject="1", outcome="did_not_happen", evidence="log")
    world.until(lambda: world.sql("funds", "SELECT 1 FROM instructions WHERE state = 'REFUSED'"))
    payout.assert_balanced()
    until_position(payout, held=4)


def refused_and_retried(world: World, payout: Payout) -> None:
    """An operator was wrong: instruction 1 did happen (its debits come); instruction 2 waits to pay the same people."""
    payout.bank.add_fault("error_500", profile="example", path="/initiate_payment", count=1)
    world.run("funds", **payout.env)
    payout.publish_all()
    until_position(payout, unknown=len(payout.items()))
    command(world, operator.SettleUnknown, kind="dispatch", subject="1", outcome="did_not_happen", evidence="a wrong log")
    until_position(payout, held=len(payout.items()))
    pause(world, "dispatch")
    command(world, operator.RetryHeld, envelope_id=payout.envelope_id)
    until_position(payout, held=0, waiting=len(payout.items()))


def test_a_retry_is_not_sent_once_the_statement_shows_that_the_first_payment_was_paid(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank, "example")
    payout.batch(3)
    refused_and_retried(world, payout)
    for position in (1, 2, 3):
        statement_line(payout, 1, position, name=f"s{position}")
    world.until(lambda: len(world.sql("funds", "SELECT 1 FROM facts")) == 3)
    resume(world, "dispatch")
    world.until(lambda: not world.sql("funds", "SELECT 1 FROM work WHERE state IN ('PENDING', 'CLAIMED')"))
    assert payout.ledger() == {}  # of instruction 2; 1 is what the statement says


def test_the_books_balance_when_a_refused_payment_and_its_retry_are_both_debited(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank, "example")
    payout.batch(3)
    refused_and_retried(world, payout)
    command(world, operator.ResumeStage, stage="dispatch")
    until_position(payout, outstanding=3)
    statement_line(payout, 1, 1, name="first")
    world.until(lambda: world.sql("funds", "SELECT 1 FROM exceptions WHERE reason = 'PAID_AFTER_RETRY'"))
    payout.assert_balanced()


def test_one_confirmed_member_of_an_atomic_list_ends_the_holds_of_all(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank, "example")
    payout.batch(3)
    bank.add_fault("error_500", profile="example", path="/initiate_payment", count=1)
    world.run("funds", **payout.env)
    payout.publish_all()
    until_position(payout, unknown=3)
    command(world, operator.SettleUnknown, kind="dispatch", subject="1", outcome="did_not_happen", evidence="a wrong log")
    until_position(payout, held=3)
    statement_line(payout, 1, 1)
    until_position(payout, confirmed=1)
    command(world, operator.RetryHeld, envelope_id=payout.envelope_id)
    world.until(lambda: world.sql("funds", "SELECT 1 FROM audit WHERE action LIKE '%%RetryHeld%%'"))
    world.until(lambda: not world.sql("funds", "SELECT 1 FROM work WHERE state IN ('PENDING', 'CLAIMED')"))
    assert payout.ledger() == {}  # of instruction 2: the statement says that the bank took instruction 1


def test_confirmed_payments_are_not_said_to_be_refused(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank)
    payout.batch(3)
    bank.add_fault("error_500", profile="full", count=30, path="/initiate_payment")
    world.run("funds", **payout.env, ALMONER_FUNDS_DISPATCH_MAX_ATTEMPTS="1")
    payout.publish_all()
    until_position(payout, unknown=3)
    statement_line(payout, 1, 1)
    until_position(payout, confirmed=1, unknown=2)
    command(world, operator.SettleUnknown, kind="dispatch", subject="1", outcome="did_not_happen", evidence="log")
    until_position(payout, held=2)
    [event] = world.events("funds.payments.v1", funds.PaymentsRefused, at_least=1)
    assert event.data.count == 2


@pytest.mark.parametrize("gone", ["bank", "sponsor"])
def test_a_bank_or_sponsor_gone_from_the_configuration_stops_its_envelope_alone(
    world: World, bank: BankAdmin, gone: str
) -> None:
    payout = Payout(world, bank)
    payout.batch(3)
    first = world.run("funds", **payout.env)
    pause(world, "block")
    payout.publish_all()
    world.until(lambda: world.sql("funds", "SELECT 1 FROM blocks"))
    assert first.stop() == 0
    env = dict(payout.env)
    banks = json.loads(env["ALMONER_FUNDS_BANKS"])
    sponsor = json.loads(env["ALMONER_FUNDS_SPONSORS"])["default"]
    if gone == "bank":
        del banks["FULL"]
        env["ALMONER_FUNDS_SPONSORS"] = json.dumps({"default": {**sponsor, "bank": "EXAMPLE"}})
    else:
        env["ALMONER_FUNDS_SPONSORS"] = json.dumps({"other/other": sponsor})
    env["ALMONER_FUNDS_BANKS"] = json.dumps(banks)
    second = world.run("funds", **env)
    command(world, operator.ResumeStage, stage="block")
    world.until(
        lambda: (
            world.sql("funds", "SELECT 1 FROM work WHERE kind = 'block' AND (state <> 'PENDING' OR code IS NOT NULL)")
            or second.logged("a part of the process failed")
        )
    )
    assert not second.logged("a part of the process failed")
    [work] = world.sql("funds", "SELECT state FROM work WHERE kind = 'block'")
    assert work.state != "VOID"  # nobody would ever look at it again; the envelope would be BLOCKING for ever


def test_a_block_made_with_one_account_is_not_paid_from_another(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank)
    payout.batch(3)
    first = world.run("funds", **payout.env)
    pause(world, "dispatch")
    payout.publish_all()
    until_position(payout, waiting=3, state="BLOCKED")
    assert first.stop() == 0
    other = f"OTHER{world.name}".upper()[:34]
    bank.put_account("full", other, "EUR", 10_000_000)
    env = dict(payout.env)
    sponsor = json.loads(env["ALMONER_FUNDS_SPONSORS"])["default"]
    env["ALMONER_FUNDS_SPONSORS"] = json.dumps({"default": sponsor, "P1/B1": {**sponsor, "account": other}})
    world.run("funds", **env)
    command(world, operator.ResumeStage, stage="dispatch")
    world.until(
        lambda: world.sql("funds", "SELECT 1 FROM work WHERE kind = 'dispatch' AND (state <> 'PENDING' OR code IS NOT NULL)")
    )
    world.until(lambda: not world.sql("funds", "SELECT 1 FROM instructions WHERE state = 'SENDING'"))
    asked = world.sql("funds", "SELECT kind, state, code, message FROM work WHERE kind = 'dispatch'")
    assert other not in {payment.get("account") for payment in bank.payments("full")}, asked
    assert [row.state for row in asked] == ["PENDING"] or len(payout.ledger()) == 3, asked


@pytest.mark.parametrize("code", ["R", "", "7", "ß", "a b"])
def test_any_code_of_a_bank_fits_into_an_event(code: str) -> None:
    AmountWithReason(disbursement_id="d", amount_minor=1, reason=decisions.reason_code(code))


def test_what_a_bank_quotes_of_our_request_is_not_kept() -> None:
    answer: Any = read_response(
        422, b'{"detail":[{"input":{"beneficiary_name":"Amina Diallo","beneficiary_account":"DE021001"}}]}'
    )
    assert "Amina" not in answer.message


def test_a_bank_that_refuses_a_thousand_payments_at_length_does_not_break_the_limit_of_an_event() -> None:
    from libs.common.contracts.registry import EVENT_BYTES

    header = BatchHeader.model_validate(
        {
            "envelope_id": derived_id("e"),
            "source": "s",
            "publisher_envelope_id": "p",
            "programme": {"id": "P"},
            "benefit_code": {"id": "B"},
            "benefit_type": "CASH_DIGITAL",
            "cycle": {"id": "C"},
            "currency": "EUR",
            "schedule_date": "2026-01-02",
            "batch_id": derived_id("b"),
            "number": 1,
        }
    )
    items = AmountsWithReason.of((f"{n:064}", 1, "REFUSED", domain.plain("\x01" * 500)) for n in range(1000))
    body = funds.PaymentsRefused(header=header, instruction=1, **chunk(items))
    assert len(body.model_dump_json().encode()) <= EVENT_BYTES
    gone = Amounts.of(item[:2] for item in items)
    reasons = [domain.reversal_reason(["\u20ac" * 500], "D-1")] * 1000
    reversed_ones = funds.PaymentsReversed(header=header, instruction=1, **chunk(gone), statement_id=None, reasons=reasons)
    assert len(reversed_ones.model_dump_json().encode()) <= EVENT_BYTES


def test_a_cancelled_envelope_is_answered_when_first_parts_are_here_not_later_ones(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank)
    batch = payout.batch(10, unresolved=2)
    world.run("funds", **payout.env)
    payout.publish(payout.next_part(batch, 2))  # overtakes the first
    world.until(lambda: world.sql("funds", "SELECT 1 FROM parts"))
    payout.publish(payout.cancelling())
    world.until(lambda: world.sql("funds", "SELECT 1 FROM cancel_requests WHERE state <> 'ASKED'"))
    settled_jobs(world)
    payout.publish(batch)
    [event] = world.events("funds.envelopes.v1", funds.EnvelopeCancelled, at_least=1)
    assert event.data.cancelled == 10


def test_a_time_zone_the_database_does_not_know_stops_no_other_envelope(world: World, bank: BankAdmin) -> None:
    strange = Payout(world, bank, name="strange")
    strange.header = strange.header.model_copy(update={"time_zone": "right/UTC"})  # Python's zoneinfo knows it
    strange.batch(1)
    payout = Payout(world, bank)
    payout.batch(3)
    process = world.run("funds", **payout.env)
    strange.publish_all()
    payout.publish_all()
    until_position(payout, outstanding=3)
    world.until(lambda: consumed(world, "ingestion.envelopes.v1", "resolution.batches.v1"))
    assert not process.logged("a part of the process failed")
