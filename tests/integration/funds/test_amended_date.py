"""The date that counts is that of the envelope's last revision, whatever came first."""

from datetime import UTC, datetime, timedelta

from libs.common.contracts.scheduler import Tick
from libs.local.client import BankAdmin
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
    world.publish("scheduler.ticks.v1", Tick(job="funds-due", due_at=datetime.now(UTC)), key="funds-due")
    world.until(lambda: world.sql("funds", "SELECT 1 FROM consumed WHERE topic = 'scheduler.ticks.v1'"))
    world.until(lambda: away.position().get("state") == "WAITING")
    assert away.ledger() == {}
    assert world.sql("funds", "SELECT 1 FROM work WHERE correlation_id = %(id)s", id=str(away.envelope_id)) == []
    rows = world.sql("funds", "SELECT header::json->>'revision' AS revision FROM envelopes")
    assert [row.revision for row in rows] == ["2", "2"]
