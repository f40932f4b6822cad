"""Decisions after commit: once, whoever races, and not before they are due."""

import math
import time

from libs.common.contracts import operator
from tests.support.probe.contracts import Decide, Decided
from tests.support.world import World

IN, COMMANDS, OUT = "probe.in.v1", "probe.commands.v1", "probe.out.v1"


def consumed(world: World) -> int:
    """How many messages on the topic are behind the offsets stored with the data."""
    sql = "SELECT coalesce(sum(next_offset), 0) AS n FROM consumed WHERE topic = %(topic)s"
    return int(world.sql("probe", sql, topic=IN)[0].n)


def test_racing_replicas_decide_each_reason_once(world: World) -> None:
    for process in [world.run("probe"), world.run("probe")]:
        process.started()
    for number in range(120):
        world.publish(IN, Decide(subject=f"s{number % 40}"), number)
    world.until(lambda: consumed(world) == 120)
    world.until(lambda: not world.sql("probe", "SELECT 1 FROM due"))
    assert len(world.sql("probe", "SELECT DISTINCT subject FROM decided")) == 40
    decided = world.sql("probe", "SELECT subject, cause_id FROM decided")
    assert len({tuple(row) for row in decided}) == len(decided)  # never twice for one reason; reasons may share a decision
    events = world.events(OUT, Decided, at_least=len(decided))
    assert len({event.id for event in events}) == len(decided)


def test_what_is_due_later_waits(world: World) -> None:
    [asked] = world.sql("probe", "SELECT clock_timestamp() + interval '1 hour' AS due_at")
    world.publish(IN, Decide(subject="later", delay_seconds=3600), "k")
    world.publish(IN, Decide(subject="now"), "k")
    world.run("probe")
    world.until(lambda: world.sql("probe", "SELECT 1 FROM decided"))
    [row] = world.sql("probe", "SELECT subject, due_at FROM due")
    assert (row.subject, row.due_at >= asked.due_at) == ("later", True)
    # Time passes: so as not to wait for it, the row is moved back.
    [row] = world.sql("probe", "UPDATE due SET due_at = clock_timestamp() + interval '1 second' RETURNING due_at")
    world.until(lambda: len(world.sql("probe", "SELECT 1 FROM decided")) == 2)
    decided = {row.subject: row.decided_at for row in world.sql("probe", "SELECT subject, decided_at FROM decided")}
    assert decided["now"] < row.due_at <= decided["later"]


def test_who_asks_within_a_stretch_asks_for_one_decision(world: World) -> None:
    process = world.run("probe")
    process.started()
    asked_at = time.time()
    for number in range(8):
        world.publish(IN, Decide(subject="often", every_seconds=3), number)
        time.sleep(0.1)
    world.until(lambda: consumed(world) == 8)
    asked_for = math.floor(time.time() / 3) - math.floor(asked_at / 3) + 1  # stretches; on a machine with time one or two
    world.until(lambda: not world.sql("probe", "SELECT 1 FROM due"))
    rows = world.sql("probe", "SELECT decided_at FROM decided ORDER BY 1")
    stretches = {math.floor(row.decided_at.timestamp() / 3) for row in rows}
    assert 1 <= len(rows) == len(stretches) <= asked_for
    assert rows[0].decided_at.timestamp() >= math.ceil(asked_at / 3) * 3


def test_a_paused_job_waits(world: World) -> None:
    world.sql("probe", "INSERT INTO paused (stage, who, why) VALUES ('decide', 'ann', 'a test')")
    world.publish(IN, Decide(subject="a"), "k")
    process = world.run("probe")
    world.until(lambda: world.sql("probe", "SELECT 1 FROM due"))
    assert process.stop() == 0
    assert world.sql("probe", "SELECT 1 FROM due")
    assert not world.sql("probe", "SELECT 1 FROM decided")


def test_a_subject_that_fails_too_often_waits_for_an_operator_and_stops_nobody(world: World) -> None:
    world.publish(IN, Decide(subject="bug-1"), "k")
    world.publish(IN, Decide(subject="a"), "k")
    world.run("probe", ALMONER_PROBE_DECIDE_MAX_ATTEMPTS="1")
    world.until(lambda: world.sql("probe", "SELECT 1 FROM ops_due WHERE subject = 'bug-1' AND gave_up"))
    world.until(lambda: world.sql("probe", "SELECT 1 FROM decided WHERE subject = 'a'"))
    [row] = world.sql("probe", "SELECT fault, failures FROM ops_due")
    assert (row.fault, row.failures) == ("RuntimeError", 1)
    world.sql("probe", "INSERT INTO mended DEFAULT VALUES")
    world.publish(COMMANDS, operator.RetryWork(kind="decide", subjects=["bug-1"], who="ann", why="mended"), "probe")
    world.until(lambda: world.sql("probe", "SELECT 1 FROM decided WHERE subject = 'bug-1'"))
    world.until(lambda: [row.affected for row in world.sql("probe", "SELECT affected FROM ops_audit")] == [1])


def test_a_replica_leaves_a_job_that_is_off_to_others(world: World) -> None:
    world.publish(IN, Decide(subject="a"), "k")
    off = world.run("probe", ALMONER_PROBE_DECIDE_ENABLED="false")
    world.until(lambda: world.sql("probe", "SELECT 1 FROM due"))
    assert off.stop() == 0
    assert not world.sql("probe", "SELECT 1 FROM decided")
    world.run("probe")
    world.until(lambda: world.sql("probe", "SELECT 1 FROM decided"))
