"""What /metrics of a real process says while things go wrong, and that it says so no longer once they are right again."""

from typing import Any

import pytest

from libs.common.contracts import operator
from tests.support.other_side import OtherSide
from tests.support.probe.contracts import Ask, Decide, Note
from tests.support.process import Process
from tests.support.world import World

IN, COMMANDS = "probe.in.v1", "probe.commands.v1"
WHO: Any = {"who": "ann", "why": "a test"}


def series(process: Process, name: str) -> list[str]:
    """The samples of a metric, as they are written."""
    return [line for line in process.get("/metrics").text.splitlines() if line.startswith((f"{name} ", f"{name}{{"))]


@pytest.fixture(autouse=True)
def _measured_often(world: World) -> None:
    world.env["ALMONER_MEASURE_SECONDS"] = "0.2"


def test_dead_letters_are_open_until_they_are_dealt_with(world: World) -> None:
    process = world.run("probe")
    world.publish(IN, Note(number=1, behave="malformed"), "k")
    world.until(lambda: process.metric("almoner_dead_letters_open", topic=IN, code="NOT_LIKED") == 1)
    assert process.metric("almoner_dead_letters_total", topic=IN, code="NOT_LIKED") == 1
    [letter] = world.sql("probe", "SELECT id FROM dead_letters")
    world.publish(COMMANDS, operator.DiscardDeadLetters(ids=[letter.id], **WHO), "probe")
    world.until(lambda: not series(process, "almoner_dead_letters_open"))
    assert process.metric("almoner_dead_letters_total") == 1


def test_every_stage_says_whether_it_is_paused(world: World, other_side: OtherSide) -> None:
    process = world.run("probe", ALMONER_PROBE_URL=other_side.url)
    stages = ["ask", "consume", "decide"]
    world.until(lambda: len(series(process, "almoner_paused")) == len(stages))
    assert process.metric("almoner_paused") == 0
    world.sql("probe", "INSERT INTO paused (stage, who, why) VALUES ('of-an-earlier-release', 'ann', 'a test')")
    for stage in [*stages, "no-such-stage"]:
        world.publish(COMMANDS, operator.PauseStage(stage=stage, **WHO), "probe")
    stages.append("of-an-earlier-release")
    world.until(lambda: all(process.metric("almoner_paused", stage=stage) == 1 for stage in stages))
    [said] = world.until(lambda: world.sql("probe", "SELECT detail FROM ops_audit WHERE starts_with(detail, 'refused: ')"))
    assert said.detail.startswith("refused: has no stage 'no-such-stage': there are ask, consume, decide; {")
    for stage in stages:
        world.publish(COMMANDS, operator.ResumeStage(stage=stage, **WHO), "probe")
    world.until(lambda: process.metric("almoner_paused") == 0)
    world.until(lambda: len(series(process, "almoner_paused")) == len(stages) - 1)


def test_what_waits_is_as_old_as_its_oldest_row(world: World, other_side: OtherSide) -> None:
    """Calls that are put off and calls that were taken and never answered, decisions, and what the broker does not get."""
    world.publish(IN, Ask(subjects=["hang-1"]), "k")
    process = world.run(
        "probe",
        ALMONER_PROBE_URL=other_side.url,
        ALMONER_PROBE_ASK_TIMEOUT_SECONDS="300",
        ALMONER_PROBE_ASK_LEASE_SECONDS="400",
        ALMONER_PROBE_SHUTDOWN_SECONDS="310",
    )
    world.until(lambda: process.metric("almoner_work_rows", kind="ask", state="CLAIMED") == 1)
    for stage in ("ask", "decide"):
        world.publish(COMMANDS, operator.PauseStage(stage=stage, **WHO), "probe")
    world.until(lambda: len(world.sql("probe", "SELECT 1 FROM ops_paused")) == 2)
    world.publish(IN, Decide(subject="s"), "k")
    world.publish(IN, Ask(subjects=["later-1"]), "k")  # last: once it is there, both are
    world.until(lambda: process.metric("almoner_work_rows", kind="ask", state="PENDING") == 1)
    age = "created_at = created_at - interval '1 hour'"
    # Time passes: so as not to wait for it, rows are moved back.
    world.sql("probe", f"UPDATE work SET {age} WHERE state = 'PENDING'")
    world.until(lambda: 3600 <= process.metric("almoner_work_oldest_seconds", kind="ask") < 7200)
    world.sql("probe", f"UPDATE work SET {age.replace('1', '2')} WHERE state = 'CLAIMED'")
    world.until(lambda: process.metric("almoner_work_oldest_seconds", kind="ask") >= 7200)
    world.sql("probe", "UPDATE due SET due_at = due_at - interval '1 hour'")
    world.until(lambda: 3600 <= process.metric("almoner_jobs_oldest_seconds", decision="decide") < 7200)

    for stage in ("ask", "decide"):
        world.publish(COMMANDS, operator.ResumeStage(stage=stage, **WHO), "probe")
    other_side.mend()
    other_side.release()
    world.until(lambda: process.metric("almoner_work_oldest_seconds", kind="ask") == 0)
    world.until(lambda: process.metric("almoner_jobs_oldest_seconds", decision="decide") == 0)


def test_the_outbox_is_as_old_as_its_oldest_event(world: World) -> None:
    consuming = world.run("probe", "consume")  # and nobody relays
    world.publish(IN, Note(number=1), "k")
    world.until(lambda: consuming.metric("almoner_outbox_rows") == 1)
    world.sql("probe", "UPDATE outbox SET created_at = created_at - interval '1 hour'")
    world.until(lambda: 3600 <= consuming.metric("almoner_outbox_oldest_seconds") < 7200)
    world.run("probe", "relay")
    world.until(lambda: consuming.metric("almoner_outbox_rows") == 0)
    world.until(lambda: consuming.metric("almoner_outbox_oldest_seconds") == 0)


def test_lag_is_what_lies_there_and_the_offset_moves_with_it(world: World) -> None:
    process = world.run("probe")
    world.until(process.ready)
    group, topic = f"{world.prefix}almoner-probe", world.prefix + IN
    world.publish(COMMANDS, operator.PauseStage(stage="consume", **WHO), "probe")
    world.until(lambda: process.logged("consumption paused"))
    before = process.metric("kafka_consumergroup_current_offset", consumergroup=group, topic=topic)
    for number in range(5):
        world.publish(IN, Note(number=number), "k")
    world.publish(COMMANDS, operator.ResumeStage(stage="consume", **WHO), "probe")
    world.until(lambda: process.metric("kafka_consumergroup_current_offset", consumergroup=group, topic=topic) >= before + 5)
    world.until(lambda: process.metric("kafka_consumergroup_lag", consumergroup=group, topic=topic) == 0)


def test_readiness_and_the_age_of_gauges_are_metrics_too(world: World) -> None:
    process = world.run("probe")
    world.until(lambda: process.metric("almoner_ready") == 1)
    world.until(lambda: process.metric("almoner_measured_timestamp_seconds", measure="runtime") > 0)
    world.databases.cut_off(world.name)
    try:
        world.until(lambda: process.metric("almoner_ready") == 0, timeout=60)
        measured = process.metric("almoner_measured_timestamp_seconds", measure="runtime")
    finally:
        world.databases.bring_back(world.name)
    world.until(lambda: process.metric("almoner_ready") == 1, timeout=60)
    world.until(lambda: process.metric("almoner_measured_timestamp_seconds", measure="runtime") > measured)


def test_the_first_failure_of_a_call_is_counted_from_zero(world: World, other_side: OtherSide) -> None:
    """A counter that is born with its first failure shows no increase, and the burn of an error budget begins a failure late."""
    process = world.run("probe", ALMONER_PROBE_URL=other_side.url)
    world.until(lambda: len(series(process, "almoner_calls_total")) == 3)
    assert process.metric("almoner_calls_total", kind="ask") == 0
