"""Somebody who was resolved may have another address by now: an operator names them, and they arrive as the next part."""

from libs.common.contracts.base import totals
from libs.common.contracts.ingestion import EnvelopeCompleted
from libs.common.contracts.operator import Repay
from libs.local.client import BankAdmin, MapperAdmin
from tests.integration.funds.test_operations import command, until_position
from tests.integration.resolution.batches import PATIENT, cut, fa, idle, ids, opened, publish, resolved, run
from tests.integration.resolution.test_held import ask
from tests.support.money import Payout
from tests.support.simulator import SimulatorProcess
from tests.support.statements import deliver_statements
from tests.support.world import World


def test_a_corrected_address_arrives_as_the_next_part(
    world: World, mapper: MapperAdmin, mapper_process: SimulatorProcess
) -> None:
    people = [f"{world.name}-{number}" for number in range(6)]
    mapper.put_people((person, fa(person)) for person in people[1:])
    batch, other = cut(people), cut(people[1:], 2)
    envelope_id = batch.header.envelope_id
    run(world, mapper_process.base_url)
    publish(world, [batch, other])
    resolved(world, 2)
    assert ask(world, envelope_id=other.header.envelope_id) == 0  # nobody is held, and nobody is named

    # One was held and is still unknown, one has moved, one is not to be found any more; of two nobody has asked.
    mapper.put_people([(people[1], fa("moved-0")), (people[2], "nonsense")])
    named = ["D1-0", "D1-1", "D1-2", "D1-9", "D2-0"]
    assert ask(world, envelope_id=envelope_id, disbursement_ids=named, expected=4) == 0  # the operator saw something else
    assert ask(world, envelope_id=envelope_id, disbursement_ids=named, expected=3) == 3
    [second] = [event for event in resolved(world, 3) if event.data.part == 2]
    assert ids(second) == (["D1-1"], ["D1-0"])
    assert opened(second)["D1-1"] == {
        **opened(second)["D1-1"],
        "name": f"Name of {people[1]}",
        "account_number": "ACC0",
    }
    rows = world.sql("resolution", "SELECT count, resolved, unresolved, parts FROM ops_batches WHERE number = 1")
    assert [tuple(row) for row in rows] == [(6, 5, 1, 2)]
    [held] = world.sql("resolution", "SELECT disbursement_id FROM ops_held")
    assert held.disbursement_id == "D1-0"
    [step] = world.sql(
        "resolution", "SELECT detail FROM ops_history WHERE step = 'addresses resolved' AND detail LIKE 'part 2%%'"
    )
    assert step.detail == "part 2: 1 resolved, 1 held, 1 as before"
    told = world.sql("resolution", "SELECT disbursement_id FROM ops_history WHERE detail LIKE 'asked again though%%'")
    assert [row.disbursement_id for row in told] == ["D1-1"]

    # In vain: there is nothing to be said, and all is as it was.
    assert ask(world, envelope_id=envelope_id, disbursement_ids=["D1-2"]) == 1
    world.until(lambda: idle(world))
    # Everybody is found in the end; the one who was held counts once, those resolved before do not count again.
    mapper.put_people((person, fa(person)) for person in people)
    assert ask(world, envelope_id=envelope_id, disbursement_ids=[f"D1-{number}" for number in range(6)]) == 6
    [last] = [event for event in resolved(world, 4) if event.data.part > 2]
    assert (last.data.part, ids(last)) == (4, ([f"D1-{number}" for number in range(6)], []))
    rows = world.sql("resolution", "SELECT resolved, unresolved, body IS NOT NULL FROM batches WHERE number = 1")
    assert [tuple(row) for row in rows] == [(6, 0, True)]


def test_who_was_paid_to_a_wrong_account_is_paid_again_to_the_corrected_one(
    world: World, mapper: MapperAdmin, bank: BankAdmin
) -> None:
    """Through resolution, funds and the bank: sent back, corrected at the mapper, asked for by name, paid again."""
    payout = Payout(world, bank)
    people = [f"{world.name}-{number}" for number in (3, 6)]
    mapper.put_people((person, fa(person)) for person in people)
    batch = cut(people, 1, payout.envelope_id, **payout.header.model_dump(exclude={"envelope_id"}))
    run(world, mapper.base_url, **PATIENT)
    world.run("funds", **payout.env)
    payout.publish(EnvelopeCompleted(header=payout.header, batches=1, **totals(batch.items.amount_minor)))
    publish(world, [batch])
    until_position(payout, outstanding=2)
    [wrong] = world.sql("funds", "SELECT reference FROM ops_payments WHERE disbursement_id = 'D1-0'")
    bank.reverse("full", reason="account closed", references=[wrong.reference])
    deliver_statements(payout)
    until_position(payout, confirmed=1, reversed=1)

    mapper.put_people([(people[0], fa("corrected-9"))])
    assert ask(world, envelope_id=payout.envelope_id, disbursement_ids=["D1-0"]) == 1
    world.until(lambda: world.sql("funds", "SELECT 1 FROM parts WHERE part = 2"))
    command(world, Repay, envelope_id=payout.envelope_id, disbursement_ids=["D1-0"])
    until_position(payout, confirmed=1, reversed=1, outstanding=1)
    paid = [(one["beneficiary_id"], one["beneficiary_account"]) for one in bank.payments("full")]
    assert [one for one in paid if one[0] in people] == [
        (people[0], "ACC3"),
        (people[1], "ACC6"),
        (people[0], "ACC9"),
    ]


def test_a_batch_is_kept_for_corrections_as_long_as_configured(
    world: World, mapper: MapperAdmin, mapper_process: SimulatorProcess
) -> None:
    people = [f"{world.name}-{number}" for number in range(3)]
    mapper.put_people((person, fa(person)) for person in people[1:])
    settings = {"BODY_KEEP_DAYS": "2", "SWEEP_SECONDS": "0.1", "RESOLVE_MAX_ATTEMPTS": "100", "RESOLVE_BREAKER_FAILURES": "0"}
    envelopes = [cut(people[1:], 1), cut(people[1:], 2), cut(people, 3), cut(people[1:], 4)]
    publish(world, envelopes)
    run(world, mapper_process.base_url, **{f"ALMONER_RESOLUTION_{name}": text for name, text in settings.items()})
    resolved(world, 4)
    # The first and the fourth were resolved three days ago, the third as well, but somebody is held; of the fourth a part is
    # under way, whose answer does not come yet.
    fault = mapper.add_fault("error_500")
    named = {"envelope_id": envelopes[3].header.envelope_id, "disbursement_ids": ["D4-0"]}
    assert ask(world, **named) == 1
    world.sql("resolution", "UPDATE batches SET resolved_at = resolved_at - interval '3 days' WHERE number IN (1, 3, 4)")
    world.until(lambda: kept(world) == [2, 3, 4])
    world.sql("resolution", "UPDATE batches SET resolved_at = resolved_at - interval '3 days' WHERE number = 2")
    world.until(lambda: kept(world) == [3, 4])  # a whole sweep later the fourth is still there
    mapper.delete_faults(fault)
    [fifth] = [event for event in resolved(world, 5) if event.data.part == 2]
    assert (fifth.data.header.number, ids(fifth)) == (4, (["D4-0"], []))
    assert ask(world, envelope_id=envelopes[0].header.envelope_id, disbursement_ids=["D1-0"]) == 0


def kept(world: World) -> list[int]:
    return [row.number for row in world.sql("resolution", "SELECT number FROM batches WHERE body IS NOT NULL ORDER BY number")]
