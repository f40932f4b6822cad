"""Holding, cancelling, releasing, reversing, refusing, not knowing: events in, events and rows out, the bank's ledger as judge."""

import base64
import re
from datetime import UTC, datetime, time, timedelta
from typing import Any

import pytest

from libs.common.contracts import funds, operator
from libs.common.contracts.base import EventData
from libs.common.contracts.scheduler import Tick
from libs.common.seal import Sealer
from libs.local.client import BankAdmin, Profile
from tests.faults.bookkeeping import consumed, idle
from tests.support.money import Payout
from tests.support.statements import deliver_statements, publish_statement
from tests.support.world import TIMEOUT_SECONDS, World


def command(world: World, model: type[operator.Command], **fields: Any) -> None:
    world.publish("funds.commands.v1", model(who="tester", why="test", **fields), key="k")


def only(world: World, topic: str, model: type[EventData]) -> Any:
    [event] = world.events(topic, model, at_least=1)
    return event.data


def until_position(payout: Payout, timeout: float = TIMEOUT_SECONDS, **wanted: object) -> None:
    position: dict[str, Any] = {}

    def reached() -> bool:
        position.update(payout.position())
        return wanted.items() <= position.items()

    try:
        payout.world.until(reached, timeout)
    except AssertionError as error:
        raise AssertionError(f"wanted {wanted}, the last position is {position}") from error
    payout.assert_balanced()


def test_people_without_an_address_are_held_and_paid_alone_when_they_get_one(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank)
    batch = payout.batch(50, unresolved=3)
    world.run("funds", **payout.env)
    payout.publish_all()
    until_position(payout, outstanding=47, held=3)
    assert len(payout.ledger()) == 47
    held = only(world, "funds.payments.v1", funds.PaymentsHeld)
    assert {item.reason for item in held.items} == {"NOT_LINKED"}
    payout.publish(payout.next_part(batch, 2))
    until_position(payout, outstanding=50, held=0)
    assert payout.ledger() == {item.disbursement_id: 1 for item in payout.items()}


def test_of_a_batch_in_which_nobody_has_an_address_no_list_is_sent_until_they_have_one(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank)
    batch = payout.batch(3, unresolved=3)
    since = max((request["id"] for request in bank.requests()), default=0)
    world.run("funds", **payout.env)
    payout.publish_all()
    total = batch.unresolved_total_minor
    until_position(payout, blocked_minor=total, held=3, held_minor=total)
    world.until(lambda: idle(world))
    asked = [request["path"].rpartition("/")[2] for request in bank.requests(since)]
    assert sorted(asked) == ["block_funds", "check_funds"]  # and no payments, not even of nobody
    until_position(payout, held=3, held_minor=total, waiting=0, outstanding=0, dispatched=0, state="BLOCKED")
    assert payout.ledger() == {}
    payout.publish(payout.next_part(batch, 2))
    until_position(payout, outstanding=3, held=0)
    assert payout.ledger() == {item.disbursement_id: 1 for item in payout.items()}


def test_a_later_part_may_overtake_the_first(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank)
    batch = payout.batch(20, unresolved=5)
    world.run("funds", **payout.env)
    payout.publish(payout.completed())
    payout.publish(payout.next_part(batch, 2))
    until_position(payout, outstanding=5, waiting=15)
    payout.publish(batch)
    until_position(payout, outstanding=20, held=0, waiting=0)
    assert payout.ledger() == {item.disbursement_id: 1 for item in payout.items()}


@pytest.mark.parametrize("when", ["before anything", "before the block", "after dispatch", "while paused"])
def test_cancelled_disbursements_are_never_paid_unless_it_is_too_late(world: World, bank: BankAdmin, when: str) -> None:
    payout = Payout(world, bank)
    payout.batch(30)
    ids = [item.disbursement_id for item in payout.items()[:4]]
    world.run("funds", **payout.env)
    if when == "before anything":
        payout.publish(payout.cancelling_some(ids))
        world.until(lambda: world.events("funds.envelopes.v1", funds.DisbursementsCancelled))
        payout.publish_all()
    elif when == "before the block":
        payout.publish(payout.batches[0])
        world.until(lambda: payout.position().get("waiting") == 30)
        payout.publish(payout.cancelling_some(ids))
        world.until(lambda: world.events("funds.envelopes.v1", funds.DisbursementsCancelled))
        payout.publish(payout.completed())
    elif when == "while paused":
        command(world, operator.PauseStage, stage="dispatch")
        world.until(lambda: world.sql("funds", "SELECT 1 FROM paused"))
        payout.publish_all()
        until_position(payout, blocked_minor=sum(item.amount_minor for item in payout.items()), waiting=30)
        payout.publish(payout.cancelling_some(ids))
        until_position(payout, cancelled=4)
        command(world, operator.ResumeStage, stage="dispatch")
    else:
        payout.publish_all()
        until_position(payout, outstanding=30)
        payout.publish(payout.cancelling_some(ids))
    answer = only(world, "funds.envelopes.v1", funds.DisbursementsCancelled)
    if when == "after dispatch":
        assert {n.disbursement_id for n in answer.not_cancelled} == set(ids)
        assert answer.cancelled == []
        until_position(payout, outstanding=30, cancelled=0)
        return
    assert sorted(answer.cancelled) == sorted(ids)
    until_position(payout, outstanding=26, cancelled=4, waiting=0, releasing_minor=0)
    assert payout.ledger() == {item.disbursement_id: 1 for item in payout.items()[4:]}
    lost = sum(item.amount_minor for item in payout.items()[:4])
    # Cancelled before anything is known of them, they are in the block or not: the batch and the check race.
    possible = {"before anything": (0, lost), "before the block": (0,), "while paused": (lost,)}[when]
    assert payout.position()["released_minor"] in possible
    [block] = payout.bank.blocks("full", payout.account)
    assert block["amount_minor"] - block["released_minor"] == sum(item.amount_minor for item in payout.items()[4:])


@pytest.mark.parametrize("profile", ["full", "example"])
def test_cancelling_the_whole_envelope_stops_it_and_gives_the_money_back(
    world: World, bank: BankAdmin, profile: Profile
) -> None:
    payout = Payout(world, bank, profile)
    payout.batch(40, unresolved=5)
    payout.batch(40)
    world.run("funds", **payout.env)
    command(world, operator.PauseStage, stage="dispatch")
    world.until(lambda: world.sql("funds", "SELECT 1 FROM paused"))
    payout.publish_all()
    total = sum(item.amount_minor for item in payout.items())
    # Each batch that came later would have a release of its own.
    until_position(payout, blocked_minor=total, waiting=75, held=5, batches=2)
    payout.publish(payout.cancelling())
    answer = only(world, "funds.envelopes.v1", funds.EnvelopeCancelled)
    assert (answer.cancelled, answer.cancelled_minor, answer.already_dispatched) == (80, total, 0)
    command(world, operator.ResumeStage, stage="dispatch")
    if profile == "full":
        until_position(payout, released_minor=total, state="CANCELLED")
        assert only(world, "funds.envelopes.v1", funds.EnvelopeSettled).cancelled == 80
    else:  # this bank cannot release: the money is held until an operator says what became of it
        until_position(payout, held_minor=total, cancelled=80)
        [unknown] = world.sql("funds", "SELECT * FROM ops_unknown")
        assert (unknown.kind, unknown.code) == ("release", "NOT_OFFERED")
        command(
            world,
            operator.SettleUnknown,
            kind="release",
            subject=unknown.subject,
            outcome="happened",
            evidence="letter of 3 May",
        )
        until_position(payout, held_minor=0, released_minor=total)
    assert payout.ledger() == {}


def test_a_batch_that_comes_after_the_cancellation_is_cancelled(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank)
    payout.batch(10)
    payout.batch(10)
    world.run("funds", **payout.env)
    payout.publish(payout.batches[0])
    payout.publish(payout.cancelling())
    world.until(lambda: payout.position().get("cancelled") == 10)
    assert not world.events("funds.envelopes.v1", funds.EnvelopeCancelled)
    payout.publish(payout.batches[1])
    answer = only(world, "funds.envelopes.v1", funds.EnvelopeCancelled)
    assert answer.cancelled == 20
    assert payout.bank.blocks("full", payout.account) == []


def test_too_little_money_is_said_and_checked_again_on_the_next_tick(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank, balance_minor=100)
    payout.batch(10)
    world.run("funds", **payout.env)
    payout.publish_all()
    short = only(world, "funds.envelopes.v1", funds.FundsShort)
    assert short.amount_minor == sum(item.amount_minor for item in payout.items())
    bank.put_account("full", payout.account, "EUR", 1_000_000)
    tick(world)
    until_position(payout, outstanding=10)


def test_nothing_is_checked_before_its_day(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank, schedule_date=datetime.now(UTC).date() + timedelta(days=3))
    payout.batch(10)
    world.run("funds", **payout.env)
    payout.publish_all()
    until_position(payout, waiting=10, completed_count=10, batches=1)
    tick(world)
    world.until(lambda: world.sql("funds", "SELECT 1 FROM consumed WHERE topic = 'scheduler.ticks.v1'") and idle(world))
    assert world.sql("funds", "SELECT * FROM work") == []
    assert payout.position()["state"] == "WAITING"


def test_a_tick_speaks_for_when_it_was_due_however_late_it_comes(world: World, bank: BankAdmin) -> None:
    day = datetime.combine(datetime.now(UTC).date(), time.min, UTC)
    later = Payout(world, bank, schedule_date=day.date() + timedelta(days=3))
    short = Payout(world, bank, name="E2", balance_minor=100)
    world.run("funds", **later.env)
    for payout in (later, short):
        payout.batch(10)
        payout.publish_all()
    until_position(later, waiting=10, completed_count=10)
    until_position(short, waiting=10, state="SHORT")
    world.until(lambda: idle(world))
    # The day of both is today, and nothing happens by which anybody would look at them.
    world.sql("funds", "UPDATE envelopes SET schedule_date = %(day)s", day=day.date())
    bank.put_account("full", later.account, "EUR", 1_000_000)
    of_yesterday = tick(world, day - timedelta(seconds=1))
    world.until(lambda: world.sql("funds", "SELECT 1 FROM inbox WHERE id = %(id)s", id=of_yesterday) and idle(world))
    assert (later.position()["state"], short.position()["state"]) == ("WAITING", "SHORT")
    tick(world, day)
    for payout in (later, short):
        until_position(payout, outstanding=10)


def tick(world: World, due_at: datetime | None = None) -> str:
    due_at = due_at or datetime.now(UTC) + timedelta(days=30)  # one for the future makes nothing happen early
    return world.publish("scheduler.ticks.v1", Tick(job="funds-due", due_at=due_at), key="funds-due")


def test_the_bank_refuses_single_payments_which_are_held_and_paid_when_retried(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank)
    payout.batch(20)
    closed = [f"ACC-{item.beneficiary_id}" for item in payout.items()[:2]]
    bank.close_accounts("full", closed)
    try:
        world.run("funds", **payout.env)
        payout.publish_all()
        until_position(payout, outstanding=18, held=2)
        refused = only(world, "funds.payments.v1", funds.PaymentsRefused)
        assert {item.reason for item in refused.items} == {"ACCOUNT_CLOSED"}
    finally:
        bank.close_accounts("full", [])
    again = payout.publish(payout.batches[0])  # a part that comes again pays nobody, though the bank would now
    world.until(lambda: world.sql("funds", "SELECT 1 FROM inbox WHERE id = %(id)s", id=again) and idle(world))
    assert (len(payout.ledger()), payout.position()["held"]) == (18, 2)
    command(world, operator.RetryHeld, envelope_id=payout.envelope_id, expected=7)  # the operator saw something else
    world.until(lambda: world.sql("funds", "SELECT 1 FROM audit WHERE detail LIKE 'refused%%'"))
    command(world, operator.RetryHeld, envelope_id=payout.envelope_id, expected=2)
    until_position(payout, outstanding=20, held=0)
    assert payout.ledger() == {item.disbursement_id: 1 for item in payout.items()}
    deliver_statements(payout)
    until_position(payout, state="SETTLED", confirmed=20)


def test_held_money_is_released_and_who_is_resolved_later_waits_for_a_new_block(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank)
    batch = payout.batch(10, unresolved=2)
    world.run("funds", **payout.env)
    payout.publish_all()
    until_position(payout, outstanding=8, held=2)
    command(world, operator.ReleaseRequested, envelope_id=payout.envelope_id, expected=2)
    until_position(payout, held_minor=0, released_minor=batch.unresolved_total_minor)
    payout.publish(payout.next_part(batch, 2))
    world.until(lambda: world.sql("funds", "SELECT 1 FROM ops_held WHERE reason = 'BLOCK_RELEASED'"))
    assert len(payout.ledger()) == 8
    deliver_statements(payout)
    until_position(payout, state="SETTLED", confirmed=8)


def test_reversals_count_once_and_settle_again(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank)
    payout.batch(10)
    world.run("funds", **payout.env)
    payout.publish_all()
    until_position(payout, outstanding=10)
    last = deliver_statements(payout)
    until_position(payout, state="SETTLED", confirmed=10)
    closed = {item.disbursement_id for item in payout.items()[:3]}
    bank.reverse("full", reason="ACCOUNT CLOSED", disbursement_ids=sorted(closed))
    deliver_statements(payout, after=last)
    until_position(payout, confirmed=7, reversed=3, revision=2)
    reversed_now = only(world, "funds.payments.v1", funds.PaymentsReversed)
    assert set(reversed_now.items.disbursement_id) == closed
    assert reversed_now.reasons == ["ACCOUNT CLOSED"] * 3
    history = world.sql("funds", "SELECT disbursement_id, detail FROM ops_history WHERE step = 'reversed'")
    assert {row.disbursement_id for row in history} == closed
    assert all(row.detail.startswith("ACCOUNT CLOSED; line ") for row in history)
    deliver_statements(payout)  # all statements once more
    world.until(lambda: consumed(world, "ingestion.statements.v1") and idle(world))
    until_position(payout, confirmed=7, reversed=3, revision=2)


def test_a_reversal_before_its_debit_counts_when_both_are_there(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank)
    payout.batch(5)
    world.run("funds", **payout.env)
    payout.publish_all()
    until_position(payout, outstanding=5)
    bank.order_statement("full", payout.account)
    bank.reverse("full", reason="NO SUCH ACCOUNT 1234567", disbursement_ids=[payout.items()[0].disbursement_id])
    bank.order_statement("full", payout.account)
    contents = [bank.statement_content("full", info["id"]) for info in bank.statements("full", payout.account) if info["lines"]]
    publish_statement(payout, contents[1])
    world.until(
        lambda: world.sql("funds", "SELECT 1 FROM exceptions WHERE reason = 'REVERSAL_WITHOUT_DEBIT' AND state = 'OPEN'")
    )
    payout.assert_balanced()
    publish_statement(payout, contents[0])
    until_position(payout, confirmed=4, reversed=1, outstanding=0)
    assert not world.sql("funds", "SELECT 1 FROM exceptions WHERE state = 'OPEN'")
    reversed_now = only(world, "funds.payments.v1", funds.PaymentsReversed)
    assert (len(reversed_now.items), reversed_now.reasons) == (1, ["NO SUCH ACCOUNT …"])  # said when the reversal came
    [row] = world.sql("funds", "SELECT reversal_reason FROM ops_payments WHERE state = 'REVERSED'")
    assert row.reversal_reason == "NO SUCH ACCOUNT …"


def test_a_reversal_counts_although_the_seal_of_its_reason_cannot_be_opened(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank)
    payout.batch(5)
    world.run("funds", **payout.env)
    payout.publish_all()
    until_position(payout, outstanding=5)
    last = deliver_statements(payout)
    until_position(payout, confirmed=5)
    bank.reverse("full", reason="ACCOUNT CLOSED", disbursement_ids=[payout.items()[0].disbursement_id])
    payout.sealer = Sealer(f"lost:{base64.b64encode(bytes(32)).decode()}", world.env["ALMONER_TOKEN_KEY"])
    deliver_statements(payout, after=last)
    until_position(payout, confirmed=4, reversed=1)
    assert only(world, "funds.payments.v1", funds.PaymentsReversed).reasons == []


@pytest.mark.parametrize(
    ("profile", "fault"), [("example", "timeout_after"), ("example", "error_500_after"), ("example", "nonsense")]
)
def test_an_unknown_dispatch_is_never_sent_again_and_ends_by_the_statement(
    world: World, bank: BankAdmin, profile: Profile, fault: str
) -> None:
    payout = Payout(world, bank, profile)
    payout.batch(10)
    bank.add_fault(fault, profile=profile, path="/initiate_payment", count=1, seconds=20)
    world.run("funds", **payout.env, ALMONER_FUNDS_DISPATCH_TIMEOUT_SECONDS="2")
    payout.publish_all()
    until_position(payout, unknown=10)
    [row] = world.sql("funds", "SELECT * FROM ops_unknown")
    assert (row.kind, row.count) == ("dispatch", 10)
    assert len(only(world, "funds.payments.v1", funds.PaymentsUnknown).items) == 10
    command(world, operator.RetryWork, kind="dispatch")  # an operator's retry is not for what is unknown
    world.until(lambda: world.sql("funds", "SELECT 1 FROM audit"))
    world.until(payout.ledger, what="the payments at a bank that is slower than our patience")
    deliver_statements(payout)
    until_position(payout, state="SETTLED", confirmed=10, unknown=0)
    assert payout.ledger() == {item.disbursement_id: 1 for item in payout.items()}
    assert len(only(world, "funds.payments.v1", funds.PaymentsDispatched).items) == 10


def test_an_unknown_dispatch_is_settled_by_an_operator_who_knows(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank, "example")
    payout.batch(10)
    bank.add_fault("error_500", profile="example", path="/initiate_payment", count=1)
    world.run("funds", **payout.env)
    payout.publish_all()
    until_position(payout, unknown=10)
    [row] = world.sql("funds", "SELECT subject FROM ops_unknown")
    command(
        world, operator.SettleUnknown, kind="dispatch", subject=row.subject, outcome="did_not_happen", evidence="the bank's log"
    )
    until_position(payout, unknown=0, held=10)
    command(world, operator.RetryHeld, envelope_id=payout.envelope_id)
    until_position(payout, outstanding=10, held=0)
    assert payout.ledger() == {item.disbursement_id: 1 for item in payout.items()}


def test_an_unknown_block_stops_the_envelope_until_somebody_knows(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank, "example")
    payout.batch(10)
    bank.add_fault("error_500_after", profile="example", path="/block_funds", count=1)
    world.run("funds", **payout.env)
    payout.publish_all()
    until_position(payout, state="BLOCK_UNKNOWN")
    assert payout.ledger() == {}
    [block] = bank.blocks("example", payout.account)
    [row] = world.sql("funds", "SELECT subject FROM ops_unknown")
    command(
        world,
        operator.SettleUnknown,
        kind="block",
        subject=row.subject,
        outcome="happened",
        reference=block["block_reference_no"],
        evidence="the bank's web page",
    )
    until_position(payout, outstanding=10)
    assert len(bank.blocks("example", payout.account)) == 1


@pytest.mark.parametrize("fault", ["timeout_after", "error_500", "error_500_after", "nonsense", "fail_before", "down"])
def test_a_bank_that_can_be_asked_pays_exactly_once_whatever_it_answers(world: World, bank: BankAdmin, fault: str) -> None:
    payout = Payout(world, bank)
    payout.batch(30)
    bank.add_fault(fault, profile="full", count=2, seconds=20)
    limits = {
        f"ALMONER_FUNDS_{kind}_{name}": value
        for kind in ("CHECK", "BLOCK", "DISPATCH")
        for name, value in {
            "TIMEOUT_SECONDS": "1",
            "BACKOFF_FIRST_SECONDS": "0.1",
            "BACKOFF_MAX_SECONDS": "1",
            "MAX_ATTEMPTS": "30",  # the bank may be slower than that for a while
        }.items()
    }
    world.run("funds", **payout.env, **limits)
    payout.publish_all()
    until_position(payout, outstanding=30)
    assert payout.ledger() == {item.disbursement_id: 1 for item in payout.items()}
    assert len(bank.blocks("full", payout.account)) == 1


def test_a_dead_letter_holds_the_envelope_until_it_is_dealt_with(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank)
    payout.batch(5)
    world.run("funds", **payout.env)
    broken = payout.cancelling_some(["x"]).model_dump_json().replace('"reason":"test"', '"reason":7').encode()
    headers = {
        "ce_specversion": b"1.0",
        "ce_id": b"broken",
        "ce_source": b"test",
        "ce_type": b"almoner.ingestion.DisbursementsCancelling.v1",
        "ce_correlationid": str(payout.envelope_id).encode(),
    }
    world.publish_raw("ingestion.envelopes.v1", str(payout.envelope_id).encode(), broken, list(headers.items()))
    world.until(lambda: world.sql("funds", "SELECT 1 FROM dead_letters"))
    payout.publish_all()
    world.until(lambda: world.sql("funds", "SELECT 1 FROM work WHERE kind = 'dispatch' AND code = 'DEAD_LETTER_OPEN'"))
    assert payout.ledger() == {}
    [letter] = world.sql("funds", "SELECT id FROM ops_dead_letters")
    command(world, operator.DiscardDeadLetters, ids=[letter.id])
    until_position(payout, outstanding=5)


def test_a_statement_that_does_not_add_up_counts_and_is_flagged_once(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank)
    payout.batch(5)
    world.run("funds", **payout.env)
    payout.publish_all()
    until_position(payout, outstanding=5)
    bank.order_statement("full", payout.account)
    [info] = bank.statements("full", payout.account)
    text = bank.statement_content("full", info["id"]).decode()
    wrong = re.sub(r"(:62F:[CD]\d{6}EUR)\d+,", r"\g<1>7,", text)
    assert wrong != text
    for _ in range(2):
        publish_statement(payout, wrong)
    until_position(payout, confirmed=5, state="SETTLED")
    reconciled = only(world, "funds.statements.v1", funds.StatementReconciled)
    assert (reconciled.balances_agree, [one.reason for one in reconciled.exceptions]) == (False, ["BALANCE_MISMATCH"])
    [flagged] = world.sql("funds", "SELECT reason, line, state, amount_minor > 0 AS off FROM ops_exceptions")
    assert tuple(flagged) == ("BALANCE_MISMATCH", None, "OPEN", True)
