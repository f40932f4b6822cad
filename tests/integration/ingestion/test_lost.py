"""A fault of ours at a door must not let payments overtake a cancellation: ingestion and funds as they are, and the bank."""

from datetime import date

import pytest

from libs.common.contracts import funds, operator
from libs.common.contracts import ingestion as c
from libs.common.contracts.base import EventData, Mnemonic
from libs.local.client import BankAdmin
from tests.integration.funds.test_operations import command, until_position
from tests.integration.ingestion.publisher import DISBURSEMENTS, ENVELOPES, STATEMENTS, chunk, envelope
from tests.support.money import Payout
from tests.support.world import World

AT_ONCE = {"ALMONER_INGESTION_CONSUME_MAX_FAILURES": "1"}


def break_ingestion(world: World, table: str, condition: str) -> None:
    """Whatever writes such a row meets a fault that is no outage."""
    world.sql(
        "ingestion",
        """CREATE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'broken'; END $$""",
    )
    world.sql(
        "ingestion", f"CREATE TRIGGER broken BEFORE INSERT ON {table} FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION broken()"
    )


def mend_ingestion(world: World, table: str) -> None:
    world.sql("ingestion", f"DROP TRIGGER broken ON {table}")


def pauses(world: World) -> list[tuple[str, str]]:
    return [(row.stage, row.who) for row in world.sql("funds", "SELECT stage, who FROM ops_paused")]


def letter(world: World) -> int:
    [row] = world.until(lambda: world.sql("ingestion", "SELECT id, code FROM dead_letters WHERE state = 'OPEN'"))
    assert row.code == "QUARANTINED"
    found: int = row.id
    return found


def submit(world: World, payout: Payout) -> None:
    """What funds is told of comes through ingestion's door; the addresses are there already."""
    batch = payout.batch(5)
    people = [
        c.Disbursement(disbursement_id=item.disbursement_id, beneficiary_id=item.beneficiary_id, amount_minor=item.amount_minor)
        for item in batch.items
    ]
    declared = envelope(
        payout.name,
        5,
        sum(item.amount_minor for item in batch.items),
        programme=Mnemonic(id="P1", mnemonic="Rice"),
        benefit_code=c.BenefitCode(id="B1", mnemonic="CASH", type="CASH_DIGITAL"),
    )
    world.publish(ENVELOPES, declared, payout.name)
    world.publish(DISBURSEMENTS, chunk(payout.name, people), payout.name)
    payout.publish(batch)


def test_a_cancellation_that_is_set_aside_pauses_dispatch_until_it_is_redriven(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank)
    break_ingestion(world, "staged", "NEW.kind = 'cancel_envelope'")
    world.run("ingestion", **AT_ONCE)
    world.run("funds", **payout.env, ALMONER_FUNDS_PAY_FUTURE_SCHEDULES="true")
    world.publish(ENVELOPES, c.EnvelopeCancellationRequested(envelope_id=payout.name, reason="fraud"), payout.name)
    world.until(lambda: pauses(world) == [("dispatch", "ingestion")], what="the pause")
    submit(world, payout)
    until_position(payout, state="BLOCKED", waiting=5)

    mend_ingestion(world, "staged")
    command_ingestion(world, operator.RedriveDeadLetters, ids=[letter(world)])
    world.events("funds.envelopes.v1", funds.EnvelopeCancelled, at_least=1)
    assert pauses(world) == [("dispatch", "ingestion")]
    command(world, operator.ResumeStage, stage="dispatch")
    world.until(lambda: not pauses(world))
    until_position(payout, state="CANCELLED", waiting=0)
    assert payout.ledger() == {}


def command_ingestion(world: World, model: type[operator.Command], **fields: object) -> None:
    world.publish("ingestion.commands.v1", model(who="tester", why="test", **fields), key="k")


REQUESTS: dict[str, tuple[str, EventData | bytes, bool]] = {
    "amendment": (
        ENVELOPES,
        c.EnvelopeAmendmentRequested(envelope_id="E", schedule_date=date(2026, 12, 1), reason="late"),
        True,
    ),
    "some": (DISBURSEMENTS, c.DisbursementsCancellationRequested(envelope_id="E", disbursement_ids=["d"], reason="x"), True),
    "unreadable": (DISBURSEMENTS, b"\xff", True),
    "disbursements": (
        DISBURSEMENTS,
        chunk("E", [c.Disbursement(disbursement_id="d", beneficiary_id="p", amount_minor=1)]),
        False,
    ),
    "question": (ENVELOPES, c.EnvelopeStatusRequested(envelope_id="E"), False),
    "unreadable statement": (STATEMENTS, b"\xff", False),
}


@pytest.mark.parametrize("what", REQUESTS)
def test_only_what_may_cancel_or_amend_pauses_dispatch(world: World, what: str) -> None:
    topic, data, pausing = REQUESTS[what]
    world.topics("funds.commands.v1")
    break_ingestion(world, "outbox", "NEW.topic = 'ingestion.results.v1'")  # its answer cannot be written
    if isinstance(data, bytes):
        world.publish_raw(topic, b"k", data)
    else:
        world.publish(topic, data, "k")
    world.run("ingestion", **AT_ONCE)
    letter(world)
    world.until(lambda: not world.sql("ingestion", "SELECT 1 FROM outbox"))
    asked = world.events("funds.commands.v1", operator.PauseStage, at_least=int(pausing))
    assert [(event.data.stage, event.data.who) for event in asked] == [("dispatch", "ingestion")] * pausing
    for event in asked:
        [raw] = world.messages(topic, at_least=1)
        assert f"{topic}/{raw.partition}/{raw.offset}" in event.data.why


def test_a_second_reason_for_a_pause_is_shown_with_the_first(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank)
    world.run("funds", **payout.env)
    for who, why in (("ann", "the bank has called"), ("ingestion", "a letter"), ("ingestion", "a letter")):
        world.publish("funds.commands.v1", operator.PauseStage(who=who, why=why, stage="dispatch"), key="dispatch")
    world.until(lambda: len(world.sql("funds", "SELECT 1 FROM audit")) == 3)
    [row] = world.sql("funds", "SELECT who, why FROM ops_paused")
    assert (row.who, row.why) == ("ann", "the bank has called; ingestion: a letter")
    assert [row.affected for row in world.sql("funds", "SELECT affected FROM audit ORDER BY id")] == [1, 1, 0]
