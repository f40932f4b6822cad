"""The lateness of ticks, from a scheduler's real process."""

import json

from tests.support.world import World

LAG = "almoner_tick_lag_seconds"
YEARLY = {"interval_seconds": 366 * 86_400}  # hardly due while this runs
JOBS = json.dumps({"funds-due": {"interval_seconds": 3600}, "expire-parked": YEARLY, "reference-due": YEARLY})


def test_a_tick_that_nobody_fires_is_late_by_its_time(world: World) -> None:
    scheduler = world.run("scheduler", ALMONER_SCHEDULER_JOBS=JOBS)
    world.until(lambda: world.sql("scheduler", "SELECT 1 FROM jobs"))
    world.until(lambda: LAG + "{" in scheduler.get("/metrics").text)
    assert scheduler.metric(LAG) == 0
    assert scheduler.stop() == 0
    # This process only consumes and fires nothing, as if what ticks were hanging.
    idle = world.run("scheduler", "consume", ALMONER_SCHEDULER_JOBS=JOBS)
    world.sql("scheduler", "UPDATE jobs SET next_due_at = next_due_at - interval '3 hours' WHERE job = 'funds-due'")
    world.until(lambda: 3600 <= idle.metric(LAG, tick="funds-due") <= 4 * 3600)
    assert idle.metric(LAG, tick="expire-parked") == 0

    # A job that has left the settings is not late, it is gone.
    world.sql(
        "scheduler",
        """INSERT INTO jobs (job, schedule, time_zone, misfire, decided_until, next_due_at)
           SELECT 'gone', 'every 5 s', 'UTC', 'latest', d, d FROM (SELECT now() - interval '1 day' AS d) AS x""",
    )
    before = idle.metric("almoner_measured_timestamp_seconds", measure="ticks")
    world.until(lambda: idle.metric("almoner_measured_timestamp_seconds", measure="ticks") > before)
    assert 'tick="gone"' not in idle.get("/metrics").text

    world.run("scheduler", ALMONER_SCHEDULER_JOBS=JOBS)
    world.until(lambda: idle.metric(LAG, tick="funds-due") == 0)
