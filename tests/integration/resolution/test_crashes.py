"""Resolution dies of SIGKILL at every registered point: each part still has exactly one event."""

from pathlib import Path

import pytest

from libs.common.contracts.operator import ResolveHeld
from libs.local.client import MapperAdmin
from tests.integration.resolution.batches import COMMANDS, PATIENT, cut, fa, idle, ids, publish, resolved, run
from tests.support.points import points
from tests.support.simulator import SimulatorProcess
from tests.support.world import World

CALLS, OTHERS = points("call"), points("fold", "relay")


@pytest.mark.parametrize("point", CALLS + OTHERS)
def test_a_batch_survives(
    world: World, mapper: MapperAdmin, mapper_process: SimulatorProcess, tmp_path: Path, point: str
) -> None:
    people = [f"{world.name}-{number}" for number in range(5)]
    mapper.put_people((person, fa(person)) for person in people[1:])
    mark = tmp_path / "mark"
    env = {"ALMONER_CRASH_AT": point, "ALMONER_CRASH_MARK": str(mark)}
    if point in CALLS:
        env["ALMONER_CRASH_KIND"] = "resolve"
    process = run(world, mapper_process.base_url, **env)
    publish(world, [cut(people)])
    assert process.wait() == -9
    assert mark.read_text() == f"{point} 1\n"

    world.end_leases("resolution")
    run(world, mapper_process.base_url, **env)
    first = resolved(world, 1)[0]
    assert ids(first) == ([f"D1-{number}" for number in range(1, 5)], ["D1-0"])
    mapper.put_people([(people[0], fa(people[0]))])
    world.until(lambda: idle(world))
    world.publish(COMMANDS, ResolveHeld(who="ops", why="known now"), "all")
    world.until(lambda: any(event.data.part == 2 for event in resolved(world, 2)))
    world.until(lambda: idle(world))
    events = resolved(world, 2)
    # A process dies with its relay, which may just have published: then that is said again, with the same id.
    assert 2 <= len(events) <= 3
    said = {(event.id, event.data.part) for event in events}
    assert (first.id, 1) in said
    assert sorted(part for _, part in said) == [1, 2]
    assert len({event_id for event_id, _ in said}) == 2
    [row] = world.sql("resolution", "SELECT resolved, unresolved FROM ops_batches")
    assert tuple(row) == (5, 0)


def test_a_later_part_survives(world: World, mapper: MapperAdmin, mapper_process: SimulatorProcess, tmp_path: Path) -> None:
    people = [f"{world.name}-{number}" for number in range(3)]
    env = {
        "ALMONER_CRASH_AT": "call.before_settle_commit:2",
        "ALMONER_CRASH_KIND": "resolve",
        "ALMONER_CRASH_MARK": str(tmp_path / "mark"),
        **PATIENT,  # the second settle is that of the second part
    }
    process = run(world, mapper_process.base_url, **env)
    publish(world, [cut(people)])
    resolved(world, 1)
    world.until(lambda: idle(world))
    mapper.put_people((person, fa(person)) for person in people[1:])
    world.publish(COMMANDS, ResolveHeld(who="ops", why="known now"), "all")
    assert process.wait() == -9
    world.end_leases("resolution")
    run(world, mapper_process.base_url, **env)
    first, second = resolved(world, 2)
    assert (first.data.part, second.data.part) == (1, 2)
    assert ids(second) == (["D1-1", "D1-2"], ["D1-0"])
    world.until(lambda: idle(world))
    assert len(resolved(world, 2)) == 2
