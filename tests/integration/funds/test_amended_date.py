"""The date that counts is that of the envelope's last revision, whatever came first."""

from datetime import UTC, date, datetime, timedelta

from libs.common.contracts import funds
from libs.common.contracts.ingestion import EnvelopeRescheduling
from libs.common.contracts.scheduler import Tick
from libs.local.client import BankAdmin
from tests.faults.bookkeeping import idle
from tests.support.money import Payout
from tests.support.world import World


def test_an_envelope_moved_nearer_is_paid_and_one_moved_away_waits(world: World, bank: BankAdmin) -> None:
    today = datetime.now(UTC).date()
    nearer = Payout(world, bank, name="E1", schedule_date=today + timedelta(days=3))
    away = Payout(world, bank, name="E2", schedule_date=today - timedelta(days=1))
    world.run("funds", **nearer.env)
    for payout, day in ((nearer, today - timedelta(days=1)), (away, today + timedelta(days=3))):
        payout.publish(payout.batch(10))
        world.until(lambda payout=payout: payout.position().get("waiting") == 10)  # type: ignore[misc]
        payout.header = payout.header.model_copy(update={"schedule_date": day, "revision": 2})
        payout.publish(payout.completed())
    world.until(lambda: nearer.position().get("outstanding") == 10)
    world.until(lambda: away.position().get("state") == "WAITING")
    world.publish("scheduler.ticks.v1", Tick(job="funds-due", due_at=datetime.now(UTC)), key="funds-due")
    world.until(lambda: world.sql("funds", "SELECT 1 FROM consumed WHERE topic = 'scheduler.ticks.v1'") and idle(world))
    assert away.position()["state"] == "WAITING"
    assert away.ledger() == {}
    assert world.sql("funds", "SELECT 1 FROM work WHERE correlation_id = %(id)s", id=str(away.envelope_id)) == []
    rows = world.sql("funds", "SELECT header::json->>'revision' AS revision FROM envelopes")
    assert [row.revision for row in rows] == ["2", "2"]


def moved(payout: Payout, day: date, revision: int, request_id: str) -> EnvelopeRescheduling:
    return EnvelopeRescheduling(
        header=payout.header.model_copy(update={"revision": revision}),
        request_id=request_id,
        reason="the sponsor pays on another day",
        schedule_date=day,
    )


def decided(world: World, at_least: int) -> dict[str, funds.RescheduleDecided]:
    events = world.events("funds.envelopes.v1", funds.RescheduleDecided, at_least=at_least)
    assert len({event.data.request_id for event in events}) == len(events)  # each is answered once
    return {event.data.request_id: event.data for event in events}


def test_another_date_for_a_complete_envelope_is_taken_until_its_check_has_started(world: World, bank: BankAdmin) -> None:
    today = datetime.now(UTC).date()
    payout = Payout(world, bank, schedule_date=today + timedelta(days=3))
    world.run("funds", **payout.env)
    # Requests in the wrong order, one of them twice, and all of them before it is known that the envelope is complete.
    far, near = today + timedelta(days=30), today + timedelta(days=5)
    for request in (moved(payout, far, 3, "second"), moved(payout, near, 2, "first"), moved(payout, far, 3, "second")):
        payout.publish(request)
    payout.publish(payout.batch(10))
    world.until(lambda: world.sql("funds", "SELECT 1 FROM batches"))
    assert world.sql("funds", "SELECT 1 FROM reschedules WHERE state <> 'ASKED'") == []
    payout.publish(payout.completed())
    answers = decided(world, 2)
    assert {(a.refusal, a.header.revision, a.header.schedule_date) for a in answers.values()} == {(None, 3, far)}
    payout.publish(moved(payout, near, 2, "late"))  # an older one that was long on its way
    assert decided(world, 3)["late"].header.schedule_date == far
    assert (payout.position()["schedule_date"], payout.ledger()) == (far, {})
    # Nearer: it is paid at once, and its date stays from there.
    payout.publish(moved(payout, today - timedelta(days=1), 4, "third"))
    assert decided(world, 4)["third"].refusal is None
    world.until(lambda: payout.position().get("outstanding") == 10)
    payout.publish(moved(payout, far, 5, "too late"))
    refused = decided(world, 5)["too late"]
    assert (refused.refusal, refused.header.revision) == ("CHECK_STARTED", 4)
    assert payout.position()["schedule_date"] == today - timedelta(days=1)
    payout.assert_balanced()
    steps = world.sql("funds", "SELECT step, detail FROM ops_history WHERE step LIKE 'date %%' ORDER BY at DESC")
    assert tuple(steps[0]) == ("date kept", f"{far} was asked for")


def test_the_date_stays_when_a_check_said_no_and_when_all_is_cancelled(world: World, bank: BankAdmin) -> None:
    today = datetime.now(UTC).date()
    poor = Payout(world, bank, name="E1", balance_minor=1)
    world.run("funds", **poor.env)
    poor.publish(poor.batch(10))
    poor.publish(poor.completed())
    world.until(lambda: poor.position().get("state") == "SHORT")
    poor.publish(moved(poor, today + timedelta(days=3), 2, "short"))
    assert decided(world, 1)["short"].refusal == "CHECK_STARTED"
    given_up = Payout(world, bank, name="E2", schedule_date=today + timedelta(days=3))
    given_up.publish(given_up.batch(10))
    given_up.publish(given_up.cancelling())
    given_up.publish(moved(given_up, today + timedelta(days=4), 2, "cancelled"))
    assert decided(world, 2)["cancelled"].refusal == "CANCELLED"
    world.until(lambda: given_up.position().get("state") == "CANCELLED")
    assert given_up.ledger() == {}
