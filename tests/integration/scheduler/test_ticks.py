"""Ticks on a real database and broker: each once, whatever replicas do and whenever one dies."""

import json
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from libs.common.contracts.operator import FireTick
from libs.common.contracts.scheduler import Tick
from libs.common.envelope import Event
from tests.support.points import points
from tests.support.process import Process
from tests.support.world import World

TICKS = "scheduler.ticks.v1"
COMMANDS = "scheduler.commands.v1"
TICKING, BY_HAND = points("job", "relay"), points("fold")
QUIET: dict[str, Any] = {"interval_seconds": 366 * 86_400}  # the jobs that are there anyway, out of the way


def run(world: World, jobs: dict[str, dict[str, Any]], **env: str) -> Process:
    everything = {"expire-parked": QUIET, "funds-due": QUIET, "reference-due": QUIET, **jobs}
    return world.run("scheduler", ALMONER_SCHEDULER_JOBS=json.dumps(everything), **env)


def ticks(world: World, at_least: int) -> list[Event[Tick]]:
    return world.events(TICKS, Tick, at_least=at_least)


def stored(world: World, job: str) -> list[Any]:
    return world.sql("scheduler", "SELECT * FROM ops_ticks WHERE job = %(job)s ORDER BY due_at", job=job)


def test_two_replicas_tick_once(world: World) -> None:
    jobs = {"each-second": {"interval_seconds": 1}, "each-other": {"interval_seconds": 2}}
    replicas = [run(world, jobs) for _ in range(2)]
    for replica in replicas:
        world.until(replica.ready)
    events = ticks(world, 9)
    # Last the one whose relay publishes: what the other has committed until its end is published as well.
    for replica in sorted(replicas, key=lambda one: one.metric("almoner_relayed_total")):
        assert replica.stop() == 0
    events = ticks(world, len(events))
    assert len({event.id for event in events}) == len(events)
    said = Counter((event.data.job, event.data.due_at) for event in events)
    assert set(said.values()) == {1}
    assert set(said) == {(row.job, row.due_at) for job in jobs for row in stored(world, job)}
    each = [row.due_at for row in stored(world, "each-second")]
    assert all(moment.microsecond == 0 for moment in each)
    missed = sum(row.missed for row in stored(world, "each-second")[1:])
    assert each[-1] - each[0] == timedelta(seconds=len(each) - 1 + missed)
    assert all(event.raw.key == event.data.job.encode() for event in events)


def test_what_was_missed_collapses_or_is_skipped(world: World) -> None:
    jobs: dict[str, dict[str, Any]] = {
        "collapses": {"interval_seconds": 1},
        "is-skipped": {"interval_seconds": 3600, "misfire": "skip", "grace_seconds": 1},
    }
    first = run(world, jobs)
    world.until(lambda: stored(world, "collapses"))
    assert first.stop() == 0
    last = stored(world, "collapses")[-1].due_at
    # Time passes: so as not to wait for it, the last decision is moved back.
    world.sql(
        "scheduler",
        """UPDATE jobs SET decided_until = decided_until - interval '2 days', next_due_at = next_due_at - interval '2 days'
           WHERE job = 'is-skipped'""",
    )
    world.sql("scheduler", "UPDATE jobs SET decided_until = decided_until - interval '1 hour' WHERE job = 'collapses'")
    run(world, jobs)
    tick = world.until(lambda: [row for row in stored(world, "collapses") if row.due_at > last])[0]
    assert timedelta(seconds=tick.missed + 1) == tick.due_at - last + timedelta(hours=1)
    [event] = world.until(lambda: [event for event in ticks(world, 2) if event.data.due_at == tick.due_at])
    assert event.data.missed == tick.missed >= 3600
    world.until(lambda: world.sql("scheduler", "SELECT 1 FROM ops_jobs WHERE job = 'is-skipped' AND next_due_at > now()"))
    assert all(row.due_at > last for row in stored(world, "is-skipped"))  # none, unless the hour has just begun


def test_a_job_is_fired_by_hand(world: World) -> None:
    scheduler = run(world, {})
    event_id = world.publish(COMMANDS, FireTick(who="ops", why="money came late", job="funds-due"), "funds-due")
    world.publish(COMMANDS, FireTick(who="ops", why="typing error", job="funds-deu"), "funds-deu")
    [event] = ticks(world, 1)
    assert (event.data.job, event.data.reason, event.data.missed) == ("funds-due", "money came late", 0)
    [row] = stored(world, "funds-due")
    assert (row.due_at, row.reason) == (event.data.due_at, "money came late")
    [audit] = world.sql("scheduler", "SELECT * FROM ops_audit")
    assert (audit.who, audit.command_id, audit.affected) == ("ops", event_id, 1)
    [letter] = world.until(lambda: world.sql("scheduler", "SELECT * FROM ops_dead_letters"))
    assert letter.code == "UNKNOWN_JOB"
    assert "expire-parked, funds-due" in letter.message
    [job] = world.sql("scheduler", "SELECT * FROM ops_jobs WHERE job = 'funds-due'")
    assert job.last_due_at is None  # its own times are what they were
    assert scheduler.alive


def test_other_times_count_from_now_on(world: World) -> None:
    first = run(world, {"job": {"cron": "0 0 1 1 *", "time_zone": "Africa/Dakar"}})
    [row] = world.until(lambda: world.sql("scheduler", "SELECT * FROM ops_jobs WHERE job = 'job'"))
    assert (row.schedule, row.time_zone, row.misfire, row.last_due_at) == ("cron 0 0 1 1 *", "Africa/Dakar", "latest", None)
    assert (row.next_due_at.month, row.next_due_at.day) == (1, 1)
    assert first.stop() == 0
    world.sql("scheduler", "UPDATE jobs SET decided_until = decided_until - interval '9 years' WHERE job = 'job'")
    run(world, {"job": {"interval_seconds": 1}})
    tick = world.until(lambda: stored(world, "job"))[0]
    assert tick.missed < 60


def test_old_ticks_go(world: World) -> None:
    world.sql(
        "scheduler",
        """INSERT INTO ticks (job, due_at, at) SELECT 'funds-due', d, d
           FROM unnest(ARRAY[now() - interval '15 days', now() - interval '13 days']) AS d""",
    )
    world.sql(
        "scheduler",
        """INSERT INTO jobs SELECT 'gone', 'every 5 s', 'UTC', 'latest', d, d FROM (SELECT now() - interval '15 days' AS d) x""",
    )
    run(world, {})
    world.until(lambda: len(stored(world, "funds-due")) == 1)
    assert not world.sql("scheduler", "SELECT 1 FROM ops_jobs WHERE job = 'gone'")


def test_the_database_goes_and_comes_back(world: World) -> None:
    scheduler = run(world, {"job": {"interval_seconds": 1}})
    world.until(lambda: stored(world, "job"))
    world.databases.cut_off(world.name)
    time.sleep(2.5)
    world.databases.bring_back(world.name)
    before = world.until(lambda: stored(world, "job"))
    world.until(lambda: len(stored(world, "job")) >= len(before) + 2)
    assert scheduler.alive
    rows = stored(world, "job")
    moments = [row.due_at for row in rows]
    missed = sum(row.missed for row in rows[1:])
    assert moments[-1] - moments[0] == timedelta(seconds=len(moments) - 1 + missed)


@pytest.mark.parametrize("point", TICKING)
def test_a_tick_survives(world: World, tmp_path: Path, point: str) -> None:
    env = {"ALMONER_CRASH_AT": point, "ALMONER_CRASH_MARK": str(tmp_path / "mark")}
    if point.startswith("job."):
        env["ALMONER_CRASH_KIND"] = "job"
    jobs = {"job": {"interval_seconds": 1}}
    died = run(world, jobs, **env)
    assert died.wait() == -9
    assert (tmp_path / "mark").read_text() == f"{point} 1\n"
    run(world, jobs, **env)
    events = ticks(world, 4)
    said = Counter(event.data.due_at for event in events)
    # What the broker took before the relay died is said again; its id tells.
    assert sorted(said.values(), reverse=True)[1:] == [1] * (len(said) - 1)
    assert max(said.values()) <= (2 if point in ("relay.after_produce", "relay.after_delivery") else 1)
    assert len({event.id for event in events}) == len(said)
    moments = sorted(said)
    rows = {row.due_at: row.missed for row in stored(world, "job")}
    assert moments == [moment for moment in rows if moment <= moments[-1]]
    assert moments[-1] - moments[0] == timedelta(seconds=sum(1 + rows[moment] for moment in moments[1:]))


@pytest.mark.parametrize("point", BY_HAND)
def test_a_tick_by_hand_survives(world: World, tmp_path: Path, point: str) -> None:
    env = {"ALMONER_CRASH_AT": point, "ALMONER_CRASH_MARK": str(tmp_path / "mark")}
    died = run(world, {}, **env)
    world.publish(COMMANDS, FireTick(who="ops", why="by hand", job="funds-due"), "funds-due")
    assert died.wait() == -9
    assert (tmp_path / "mark").read_text() == f"{point} 1\n"
    again = run(world, {}, **env)
    event = ticks(world, 1)[0]
    world.until(again.ready)
    assert again.stop() == 0
    said = [one.id for one in ticks(world, 1)]
    assert set(said) == {event.id}
    assert len(said) <= 2  # perhaps said again by the second relay
    assert len(stored(world, "funds-due")) == 1
