"""Who could not be resolved can be asked for again by command, without touching the rest."""

from uuid import UUID, uuid4

from libs.common.contracts.operator import ResolveHeld
from libs.local.client import MapperAdmin
from tests.integration.resolution.batches import COMMANDS, cut, fa, idle, ids, opened, publish, resolved, run
from tests.support.simulator import SimulatorProcess
from tests.support.world import World


def ask(world: World, **named: object) -> int:
    """Send the command; how many people it asks for, from its audit row."""
    command = ResolveHeld.model_validate({"who": "ops", "why": "the mapper knows them now", **named})
    event_id = world.publish(COMMANDS, command, command.envelope_id or "all")
    [row] = world.until(lambda: world.sql("resolution", "SELECT * FROM ops_audit WHERE command_id = %(id)s", id=event_id))
    assert row.who == "ops"
    return int(row.affected)


def test_held_people_are_asked_for_again(world: World, mapper: MapperAdmin, mapper_process: SimulatorProcess) -> None:
    people = [f"{world.name}-{number}" for number in range(10)]
    mapper.put_people((person, fa(person)) for person in people[4:])
    batch = cut(people)
    run(world, mapper_process.base_url)
    publish(world, [batch])
    [first] = resolved(world, 1)
    assert ids(first)[1] == ["D1-0", "D1-1", "D1-2", "D1-3"]

    # Three are asked for, of whom the mapper knows one by now, and cannot say another's address properly.
    mapper.put_people([(people[0], fa(people[0])), (people[1], "somewhere")])
    envelope_id = batch.header.envelope_id
    assert ask(world, envelope_id=envelope_id, disbursement_ids=["D1-0", "D1-1", "D1-2", "D1-99"]) == 3
    second = resolved(world, 2)[1]
    assert second.data.part == 2
    assert ids(second) == (["D1-0"], ["D1-1", "D1-2"])
    assert [one.reason for one in second.data.unresolved] == ["ADDRESS_UNREADABLE", "NOT_LINKED"]
    assert opened(second)["D1-0"]["name"] == f"Name of {people[0]}"
    assert second.correlation_id == str(envelope_id)
    held = world.sql("resolution", "SELECT disbursement_id, reason FROM ops_held ORDER BY 1")
    assert [tuple(row) for row in held] == [
        ("D1-1", "ADDRESS_UNREADABLE"),
        ("D1-2", "NOT_LINKED"),
        ("D1-3", "NOT_LINKED"),
    ]

    # All the rest, of everything: the batch is done.
    mapper.put_people((person, fa(person)) for person in people)
    assert ask(world, expected=7) == 0  # the operator saw something else
    assert ask(world, expected=3) == 3
    third = resolved(world, 3)[2]
    assert (third.data.part, ids(third)) == (3, (["D1-1", "D1-2", "D1-3"], []))
    [row] = world.sql("resolution", "SELECT * FROM ops_batches")
    assert (row.parts, row.resolved, row.unresolved) == (3, 10, 0)
    assert not world.sql("resolution", "SELECT * FROM ops_held")
    steps = world.sql("resolution", "SELECT step FROM ops_history WHERE disbursement_id = 'D1-1' ORDER BY at")
    assert [row.step for row in steps] == ["held", "address resolved"]
    assert ask(world) == 0


def test_only_what_is_named_is_asked_for(world: World, mapper: MapperAdmin, mapper_process: SimulatorProcess) -> None:
    envelope_a, envelope_b = uuid4(), uuid4()
    batches = [
        cut([f"{world.name}-{number}-{i}" for i in range(3)], number, envelope_id)
        for number, envelope_id in enumerate([envelope_a, envelope_a, envelope_b])
    ]
    run(world, mapper_process.base_url)
    publish(world, batches)
    resolved(world, 3)
    mapper.put_people((item.beneficiary_id, fa(item.beneficiary_id)) for batch in batches for item in batch.items)

    assert ask(world, envelope_id=envelope_b, batch_ids=[batches[0].header.batch_id]) == 0
    assert ask(world, batch_ids=[batches[1].header.batch_id]) == 3
    assert ask(world, envelope_id=envelope_b) == 3
    assert parts(world, 5) == {batches[0].header.batch_id: 1, batches[1].header.batch_id: 2, batches[2].header.batch_id: 2}
    assert ask(world) == 3
    assert set(parts(world, 6).values()) == {2}
    assert ask(world) == 0
    world.publish(COMMANDS, ResolveHeld(who="ops", why="no envelope", disbursement_ids=["D0-0"]), "x")
    [letter] = world.until(lambda: world.sql("resolution", "SELECT code FROM ops_dead_letters"))
    assert letter.code == "ENVELOPE_MISSING"


def test_a_batch_that_is_being_asked_for_is_left_out(
    world: World, mapper: MapperAdmin, mapper_process: SimulatorProcess
) -> None:
    people = [f"{world.name}-{number}" for number in range(3)]
    run(world, mapper_process.base_url)
    publish(world, [cut(people)])
    resolved(world, 1)
    fault = mapper.add_fault("error_500")
    assert ask(world) == 3
    assert ask(world) == 0  # part 2 is under way
    mapper.put_people((person, fa(person)) for person in people)
    mapper.delete_faults(fault)
    assert resolved(world, 2)[1].data.count == 3
    world.until(lambda: idle(world))
    assert len(resolved(world, 2)) == 2


def parts(world: World, events: int) -> dict[UUID, int]:
    """Batch -> its last part."""
    found: dict[UUID, int] = {}
    for event in resolved(world, events):
        batch_id = event.data.header.batch_id
        found[batch_id] = max(found.get(batch_id, 0), event.data.part)
    return found
