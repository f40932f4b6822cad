"""Decisions after commit: once, whoever races, and not before they are due."""

from tests.support.probe.contracts import Decide, Decided
from tests.support.world import World

IN, OUT = "probe.in.v1", "probe.out.v1"


def test_racing_replicas_decide_each_reason_once(world: World) -> None:
    for process in [world.run("probe"), world.run("probe")]:
        process.started()
    for number in range(120):
        world.publish(IN, Decide(subject=f"s{number % 40}"), number)
    world.until(lambda: len(world.sql("probe", "SELECT 1 FROM consumed")) > 0)
    world.until(lambda: len(world.sql("probe", "SELECT DISTINCT subject FROM decided")) == 40)
    world.until(lambda: not world.sql("probe", "SELECT 1 FROM due"))
    decided = world.sql("probe", "SELECT subject, cause_id FROM decided")
    assert len({tuple(row) for row in decided}) == len(decided)  # never twice for one reason; reasons may share a decision
    events = world.events(OUT, Decided, at_least=len(decided))
    assert len({event.id for event in events}) == len(decided)


def test_what_is_due_later_waits(world: World) -> None:
    world.publish(IN, Decide(subject="later", delay_seconds=2), "k")
    world.publish(IN, Decide(subject="now"), "k")
    world.run("probe")
    [row] = world.until(lambda: world.sql("probe", "SELECT due_at FROM due WHERE subject = 'later'"))
    world.until(lambda: len(world.sql("probe", "SELECT 1 FROM decided")) == 2)
    decided = {row.subject: row.decided_at for row in world.sql("probe", "SELECT subject, decided_at FROM decided")}
    assert decided["now"] < row.due_at <= decided["later"]


def test_a_paused_job_waits(world: World) -> None:
    world.sql("probe", "INSERT INTO paused (stage, who, why) VALUES ('decide', 'ann', 'a test')")
    world.publish(IN, Decide(subject="a"), "k")
    process = world.run("probe")
    world.until(lambda: world.sql("probe", "SELECT 1 FROM due"))
    assert process.stop() == 0
    assert world.sql("probe", "SELECT 1 FROM due")
    assert not world.sql("probe", "SELECT 1 FROM decided")
