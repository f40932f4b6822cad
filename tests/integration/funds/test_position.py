"""Where an envelope's money is, said while it is under way, and told to the publisher who asks."""

import time
from collections.abc import Callable

from libs.common.contracts import funds
from libs.common.contracts import ingestion as c
from libs.common.contracts.base import Mnemonic
from libs.local.client import BankAdmin
from tests.integration.funds.test_operations import until_position
from tests.integration.ingestion.publisher import DISBURSEMENTS, ENVELOPES, answers_to, chunk, envelope
from tests.support.money import Payout
from tests.support.statements import deliver_statements
from tests.support.world import World


def said(world: World) -> list[funds.EnvelopePosition]:
    events = {event.id: event.data for event in world.events("funds.envelopes.v1", funds.EnvelopePosition)}
    return sorted(events.values(), key=lambda data: data.revision)


def told(world: World, payout: Payout, wanted: Callable[[c.Progress], bool]) -> c.EnvelopeStatus:
    """Ask as a publisher does until the answer is as wanted."""

    def answer() -> c.EnvelopeStatus | None:
        question = world.publish(ENVELOPES, c.EnvelopeStatusRequested(envelope_id=payout.name), payout.name)
        status: c.EnvelopeStatus = answers_to(world, question)[0].data
        return status if status.progress is not None and wanted(status.progress) else None

    status = world.until(answer, timeout=40, what="the wanted progress")
    assert status is not None
    return status


def test_a_publisher_sees_how_far_an_envelope_with_somebody_held_has_come(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank)
    batch = payout.batch(5, unresolved=1)
    [missing] = [item.amount_minor for item in batch.unresolved]
    total = sum(item.amount_minor for item in payout.items())
    people = [
        c.Disbursement(disbursement_id=i.disbursement_id, beneficiary_id=i.beneficiary_id, amount_minor=i.amount_minor)
        for i in payout.items()
    ]
    world.run("ingestion")
    world.run("funds", **payout.env, ALMONER_FUNDS_PAY_FUTURE_SCHEDULES="true")
    world.publish(ENVELOPES, envelope(payout.name, 5, total, programme=Mnemonic(id="P1", mnemonic="Rice")), payout.name)
    world.publish(DISBURSEMENTS, chunk(payout.name, people), payout.name)
    status = told(world, payout, lambda progress: progress.waiting == 5)
    assert (status.funds, status.progress and status.progress.blocked_minor) == ("BLOCKED", total)
    payout.publish(batch)
    status = told(world, payout, lambda progress: progress.outstanding == 4 and progress.held == 1)
    assert (status.state, status.settlement) == ("COMPLETED", None)
    assert status.progress is not None
    assert (status.progress.held_minor, status.progress.outstanding_minor) == (missing, total - missing)
    after = deliver_statements(payout)
    status = told(world, payout, lambda progress: progress.confirmed == 4)
    assert (status.state, status.settlement) == ("COMPLETED", None)  # one is held: it does not settle by itself
    assert status.progress is not None
    assert (status.progress.confirmed_minor, status.progress.held, status.progress.outstanding) == (total - missing, 1, 0)
    payout.publish(payout.next_part(batch, 2))
    told(world, payout, lambda progress: progress.outstanding == 1 and progress.held == 0)
    deliver_statements(payout, after=after)
    status = told(world, payout, lambda progress: progress.confirmed == 5)
    assert status.state == "SETTLED"
    assert status.settlement is not None
    assert status.settlement.confirmed_minor == total
    payout.assert_balanced()
    revisions = [data.revision for data in said(world)]
    assert revisions == list(range(1, len(revisions) + 1))


def test_what_changes_is_said_once_in_a_stretch_and_at_its_end(world: World, bank: BankAdmin) -> None:
    payout = Payout(world, bank)
    payout.batch(5, unresolved=2)
    every = max(range(1800, 3601), key=lambda seconds: seconds - time.time() % seconds)  # its end is far away
    world.run("funds", **payout.env | {"ALMONER_FUNDS_POSITION_SECONDS": str(every)})
    payout.publish(payout.completed())
    until_position(payout, state="BLOCKED")
    world.until(lambda: said(world))
    payout.publish(payout.batches[0])
    until_position(payout, outstanding=3, held=2)
    later = """SELECT count(*) AS n FROM due WHERE due_at > clock_timestamp()
               AND extract(epoch FROM due_at)::bigint %% %(every)s = 0"""
    assert world.sql("funds", later, every=every)[0].n > 0  # a look is due at the end of the stretch
    assert [(data.waiting, data.held, data.outstanding) for data in said(world)] == [(5, 0, 0)]
    world.sql("funds", "UPDATE envelopes SET said_at = said_at - interval '1 hour'")
    world.sql("funds", "UPDATE due SET due_at = clock_timestamp()")
    world.until(lambda: len(said(world)) == 2)
    [_, last] = said(world)
    assert (last.revision, last.waiting, last.held, last.outstanding) == (2, 0, 2, 3)
    row = payout.position()
    assert last.position.model_dump() == {name: row[f"{name}_minor"] for name in funds.Position.model_fields}
    world.until(lambda: not world.sql("funds", "SELECT 1 FROM due"))  # nothing moves: nobody looks again
