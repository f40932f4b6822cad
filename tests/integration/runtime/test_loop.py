"""The consumer loop's table, line by line, through real Kafka and PostgreSQL, with the probe as a real process."""

import json
from functools import partial
from pathlib import Path

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions

from libs.common.contracts import operator
from libs.common.envelope import RawMessage, attributes
from tests.support.other_side import OtherSide
from tests.support.probe.contracts import Ask, Note, Noted, Unheard
from tests.support.process import Process
from tests.support.world import World

IN, COMMANDS, DEAD, OUT = "probe.in.v1", "probe.commands.v1", "probe.dlq.v1", "probe.out.v1"
WHO = {"who": "ann", "why": "a test"}


def noted(world: World) -> list[int]:
    return [row.number for row in world.sql("probe", "SELECT number FROM noted ORDER BY number")]


def letters(world: World, state: str = "OPEN") -> list[str]:
    rows = world.sql("probe", "SELECT code FROM dead_letters WHERE state = %(state)s ORDER BY id", state=state)
    return [row.code for row in rows]


def headers(**changed: str | bytes | None) -> list[tuple[str, str | bytes]]:
    plain: dict[str, str | bytes | None] = {
        "ce_specversion": "1.0", "ce_id": "id-1", "ce_source": "s", "ce_type": Note.TYPE, "content-type": "application/json"
    }  # fmt: skip
    return [(name, value) for name, value in (plain | changed).items() if value is not None]


def is_consumed(world: World) -> bool:
    """Whether everything on the topic is behind the offsets stored with the data."""
    ends: dict[int, int] = {}
    for message in world.messages(IN):
        ends[message.partition] = max(ends.get(message.partition, 0), message.offset + 1)
    rows = world.sql("probe", "SELECT partition, next_offset FROM consumed WHERE topic = %(topic)s", topic=IN)
    return {row.partition: row.next_offset for row in rows} == ends


def test_malformed_becomes_a_dead_letter_and_the_rest_goes_on(world: World) -> None:
    binary = bytes(range(256))
    bad: list[tuple[bytes | None, bytes, list[tuple[str, str | bytes]], str]] = [
        (b"k", b'{"number": 1}', headers(ce_id=None), "INVALID_CLOUDEVENT"),
        (binary, binary, [*headers(ce_id="bad-data"), ("raw", binary)], "INVALID_DATA"),
        (None, b"{", [("content-type", "application/cloudevents+json")], "INVALID_JSON"),
        (b"k", b'{"number": "x\\u0000"}', headers(ce_id="bad-type", ce_correlationid=b"nul \x00"), "INVALID_DATA"),
        (b"k", b'{"number": 9, "behave": "malformed"}', headers(ce_id="not-liked", ce_correlationid="e-1"), "NOT_LIKED"),
    ]
    for number, (key, value, header, _) in enumerate(bad):
        world.publish(IN, Note(number=number), "k")
        world.publish_raw(IN, key, value, header)
    world.publish(IN, Unheard(), "k")
    world.publish(IN, Note(number=99), "k")
    process = world.run("probe")

    world.until(lambda: len(noted(world)) == 6, what="all good events")
    world.until(lambda: is_consumed(world))
    assert noted(world) == [0, 1, 2, 3, 4, 99]
    assert sorted(letters(world)) == sorted(code for *_, code in bad)
    dead = world.messages(DEAD, at_least=len(bad))
    sent = {(message.key, message.value): message for message in world.messages(IN)}
    for key, value, header, code in bad:
        [letter] = [message for message in dead if (message.key, message.value) == (key, value)]
        check_letter(letter, sent[key, value], code, len(header))
    rows = world.sql("probe", "SELECT correlation_id FROM ops_dead_letters WHERE correlation_id IS NOT NULL")
    assert [row.correlation_id for row in rows] == ["e-1"]
    world.until(process.ready)
    redrive_and_discard(world)


def check_letter(letter: RawMessage, original: RawMessage, code: str, count: int) -> None:
    assert letter.headers[:count] == original.headers
    assert dict(letter.headers[count:]) == {
        "__dlq.errors.topic": IN.encode(),
        "__dlq.errors.partition": str(original.partition).encode(),
        "__dlq.errors.offset": str(original.offset).encode(),
        "__dlq.errors.group": b"almoner-probe",
        "__dlq.errors.delivery.count": b"1",
        "__dlq.errors.message": code.encode(),
        "kafka_dlt-original-topic": IN.encode(),
    }


def redrive_and_discard(world: World) -> None:
    [wanted] = [row.id for row in world.sql("probe", "SELECT id FROM dead_letters WHERE code = 'NOT_LIKED'")]
    world.sql("probe", "INSERT INTO mended DEFAULT VALUES")
    world.publish(COMMANDS, operator.RedriveDeadLetters(ids=[wanted], **WHO), "probe")
    world.until(lambda: 9 in noted(world), what="the redriven event")
    assert world.sql("probe", "SELECT event_id FROM noted WHERE number = 9")[0].event_id == "not-liked"
    again = [m for m in world.messages(IN) if dict(m.headers).get("almoner-redrive") == str(wanted).encode()]
    assert [attributes(message).id for message in again] == ["not-liked"]
    assert not any(name.startswith("__dlq") for name, _ in again[0].headers)
    assert letters(world, "HANDLED") == ["NOT_LIKED"]

    rest = [row.id for row in world.sql("probe", "SELECT id FROM dead_letters WHERE state = 'OPEN'")]
    world.publish(COMMANDS, operator.DiscardDeadLetters(ids=[*rest, wanted], **WHO), "probe")
    world.until(lambda: not letters(world))
    assert letters(world, "HANDLED") == ["NOT_LIKED"]
    audit = world.sql("probe", "SELECT who, why, action, affected FROM ops_audit ORDER BY id")
    assert [tuple(row) for row in audit] == [
        ("ann", "a test", operator.RedriveDeadLetters.TYPE, 1),
        ("ann", "a test", operator.DiscardDeadLetters.TYPE, 4),
    ]
    facts = [event.data for event in world.events("probe.audit.v1", operator.CommandHandled, at_least=2)]
    assert {(fact.who, fact.why, fact.action, fact.affected) for fact in facts} == {tuple(row) for row in audit}
    commands = {row.command_id for row in world.sql("probe", "SELECT command_id FROM ops_audit")}
    assert {fact.command_id for fact in facts} == commands


def test_a_redriven_letter_that_fails_again_is_a_letter_of_its_own(world: World) -> None:
    world.publish(IN, Note(number=1, behave="malformed"), "k")
    world.run("probe")
    world.until(lambda: letters(world) == ["NOT_LIKED"])
    world.publish(COMMANDS, operator.RedriveDeadLetters(**WHO), "probe")
    world.until(lambda: letters(world, "HANDLED") == ["NOT_LIKED"])
    assert letters(world) == ["NOT_LIKED"]
    assert noted(world) == []


def test_transient_waits_unready_and_takes_the_same_messages_again(world: World) -> None:
    process = world.run("probe", ALMONER_PROBE_CONSUME_MAX_MESSAGES="20")
    world.until(process.ready)
    for number in range(100):
        world.publish(IN, Note(number=number), number)
        if number in (10, 40):  # connections break under way, and come back at once
            world.databases.break_connections(world.name)
        if number == 60:
            world.databases.cut_off(world.name)
    world.until(lambda: not process.ready(), what="unready while the database is away")
    assert process.get("/livez").status_code == 200
    world.until(lambda: process.logged("waiting to fold again") or process.logged("not ready to consume"))
    world.databases.bring_back(world.name)
    world.until(lambda: len(noted(world)) >= 100, what="all events")
    world.until(process.ready)
    assert noted(world) == list(range(100))
    assert letters(world) == []
    assert len({event.id for event in world.events(OUT, Noted, at_least=100)}) == 100
    assert process.alive


def _failed_more(process: Process, before: float) -> bool:
    return process.metric("almoner_events_handled_total", outcome="transient") > before


def _is_noted(world: World, number: int) -> bool:
    return number in noted(world)


def test_what_the_database_takes_when_asked_again_is_no_bug(world: World) -> None:
    """Serialization failure, deadlock, no room for another connection, lock time-out."""
    process = world.run("probe")
    states = ("40001", "40P01", "53300", "55P03")
    for done, state in enumerate(states):
        before = process.metric("almoner_events_handled_total", outcome="transient")
        world.publish(IN, Note(number=done, behave=state), "k")
        world.until(partial(_failed_more, process, before))
        world.until(lambda: not process.ready())
        world.sql("probe", "INSERT INTO mended DEFAULT VALUES")
        world.until(partial(_is_noted, world, done))
        world.sql("probe", "DELETE FROM mended")
    assert process.metric("almoner_events_handled_total", type=Note.TYPE, outcome="handled") == 4
    assert letters(world) == []
    assert world.sql("probe", "SELECT 1 FROM failures") == []
    assert process.alive


def test_partitions_that_change_hands_during_an_outage_lose_nothing(world: World) -> None:
    replicas = [world.run("probe", ALMONER_PROBE_CONSUME_MAX_MESSAGES="5") for _ in range(2)]
    for replica in replicas:
        world.until(replica.ready)
    world.databases.cut_off(world.name)
    for number in range(60):
        world.publish(IN, Note(number=number), number)
    # One replica may hold both partitions of the topic.
    waiting = world.until(lambda: [replica for replica in replicas if replica.logged("waiting to fold again")])
    waiting[0].kill()
    group = f"{world.prefix}almoner-probe"
    world.until(lambda: len(world.kafka.admin.describe_consumer_groups([group])[group].result(30).members) == 1)
    world.databases.bring_back(world.name)
    world.until(lambda: len(noted(world)) >= 60, what="all events")
    assert noted(world) == list(range(60))
    assert letters(world) == []


def test_a_database_that_is_away_at_the_start_is_waited_for(world: World, free_port: int) -> None:
    world.publish(IN, Note(number=1), "k")
    world.databases.cut_off(world.name)
    process = world.run("probe", ALMONER_PROBE_HTTP_PORT=str(free_port))
    world.until(lambda: process.logged("waiting for the database and the broker"))
    process.at(free_port)
    assert process.get("/livez").status_code == 200
    assert process.get("/readyz").status_code == 503
    world.databases.bring_back(world.name)
    world.until(lambda: noted(world) == [1])
    world.until(process.ready)


def test_a_bug_ends_the_process_and_is_set_aside_after_so_many_failures(world: World) -> None:
    world.publish(IN, Note(number=1), "k")
    world.publish(IN, Note(number=2, behave="bug"), "k")
    world.publish(IN, Note(number=3), "k")
    for failures in (1, 2):
        process = world.run("probe", ALMONER_PROBE_CONSUME_MAX_FAILURES="3")
        assert process.wait() == 1
        [row] = world.sql("probe", "SELECT failures, message FROM failures")
        assert (row.failures, row.message) == (failures, "RuntimeError")
        assert noted(world) == [1]
        assert letters(world) == []
    process = world.run("probe", ALMONER_PROBE_CONSUME_MAX_FAILURES="3")
    world.until(lambda: noted(world) == [1, 3], what="the events around the bug")
    assert letters(world) == ["QUARANTINED"]
    [letter] = world.messages(DEAD, at_least=1)
    assert dict(letter.headers)["__dlq.errors.delivery.count"] == b"3"
    assert b"belongs in no log" not in b"".join(value for _, value in letter.headers)
    world.until(process.ready)


def test_many_dead_letters_in_a_row_pause_consumption_until_resumed(world: World) -> None:
    for number in range(3):
        world.publish(IN, Note(number=number, behave="malformed"), "one partition")
    world.publish_many(IN, [(b"one partition", json.dumps({"number": n}).encode(), headers(ce_id=f"n{n}")) for n in range(9)])
    process = world.run("probe", ALMONER_PROBE_CONSUME_BREAKER="3")
    [row] = world.until(lambda: world.sql("probe", "SELECT stage, who, why FROM ops_paused"))
    assert (row.stage, row.who) == ("consume", "breaker")
    world.until(lambda: process.logged("consumption paused"))
    world.publish(IN, Note(number=77), "one partition")
    assert letters(world) == ["NOT_LIKED"] * 3
    assert noted(world) == []
    world.publish(COMMANDS, operator.ResumeStage(stage="consume", **WHO), "probe")  # commands are still heard
    world.until(lambda: len(noted(world)) == 10, what="what was behind the breaker")
    assert noted(world) == [*range(9), 77]
    assert letters(world) == ["NOT_LIKED"] * 3


def test_doors_get_what_came_and_trip_no_breaker(world: World) -> None:
    values = [b"\x00\xff", b"{", b""]
    world.publish_many("probe.door.v1", [(None, value, []) for value in values])
    world.run("probe", ALMONER_PROBE_CONSUME_BREAKER="1")
    world.until(lambda: len(world.sql("probe", "SELECT 1 FROM knocked")) == 3)
    assert sorted(bytes(row.value) for row in world.sql("probe", "SELECT value FROM knocked")) == sorted(values)
    assert letters(world) == []


def test_pause_and_resume_of_consumption_and_of_a_kind_of_call(world: World, other_side: OtherSide) -> None:
    process = world.run("probe", ALMONER_PROBE_URL=other_side.url)
    for stage in ("ask", "consume"):
        world.publish(COMMANDS, operator.PauseStage(stage=stage, **WHO), "probe")
        if stage == "ask":
            world.until(lambda: world.sql("probe", "SELECT 1 FROM ops_paused"))
            world.publish(IN, Ask(subjects=["a", "b"]), "k")
            world.until(lambda: len(world.sql("probe", "SELECT 1 FROM work WHERE state = 'PENDING'")) == 2)
    world.until(lambda: process.logged("consumption paused"))
    world.publish(IN, Note(number=1), "k")

    restarted = restart(world, process, ALMONER_PROBE_URL=other_side.url)  # a pause outlives the process
    world.until(lambda: restarted.logged("consumption paused"))
    world.until(restarted.ready)
    assert noted(world) == []
    assert other_side.requests == []
    assert [row.stage for row in world.sql("probe", "SELECT stage FROM ops_paused ORDER BY stage")] == ["ask", "consume"]

    for stage in ("consume", "ask"):
        world.publish(COMMANDS, operator.ResumeStage(stage=stage, **WHO), "probe")
    world.until(lambda: noted(world) == [1])
    world.until(lambda: len(world.sql("probe", "SELECT 1 FROM work WHERE state = 'DONE'")) == 2)
    audit = world.sql("probe", "SELECT who, action, affected, detail FROM ops_audit ORDER BY id")
    assert [row.action.split(".")[2] for row in audit] == ["PauseStage", "PauseStage", "ResumeStage", "ResumeStage"]
    assert all(row.who == "ann" and row.affected == 1 for row in audit)
    assert [json.loads(row.detail)["stage"] for row in audit] == ["ask", "consume", "consume", "ask"]


def restart(world: World, process: Process, **env: str) -> Process:
    assert process.stop() == 0
    return world.run("probe", **env)


def test_a_graceful_stop_drains_commits_and_leaves_the_group(world: World, other_side: OtherSide) -> None:
    world.publish_many(IN, [(str(n).encode(), json.dumps({"number": n}).encode(), headers(ce_id=f"n{n}")) for n in range(3000)])
    world.publish(IN, Ask(subjects=["slow-1"]), "k")
    process = world.run("probe", ALMONER_PROBE_URL=other_side.url, ALMONER_PROBE_CONSUME_MAX_MESSAGES="50")
    world.until(lambda: other_side.asked("slow-1"), what="a call under way")
    assert process.stop() == 0, process.log_text()
    assert [row.state for row in world.sql("probe", "SELECT state FROM settled")] == ["DONE"]  # it was waited for
    assert world.sql("probe", "SELECT rows FROM ops_outbox")[0].rows == 0  # what was committed is published

    group = f"{world.prefix}almoner-probe"
    description = world.kafka.admin.describe_consumer_groups([group])[group].result(30)
    assert description.members == []
    stored = {(r.topic, r.partition): r.next_offset for r in world.sql("probe", "SELECT * FROM ops_consumed")}
    [listed] = world.kafka.admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)]).values()
    kafka = {(tp.topic.removeprefix(world.prefix), tp.partition): tp.offset for tp in listed.result(30).topic_partitions}
    assert kafka == stored

    world.run("probe", ALMONER_PROBE_URL=other_side.url)
    world.until(lambda: len(noted(world)) >= 3000)
    assert noted(world) == list(range(3000))
    assert len(other_side.requests) == 1


def test_a_stop_does_not_wait_for_the_next_poll(world: World, other_side: OtherSide) -> None:
    polls = dict.fromkeys(("ALMONER_PROBE_ASK_POLL_SECONDS", "ALMONER_PROBE_JOBS_POLL_SECONDS"), "3600")
    process = world.run("probe", ALMONER_PROBE_URL=other_side.url, **polls)
    world.until(process.ready)
    assert process.stop() == 0, process.log_text()


def test_a_stop_waits_for_a_call_that_takes_its_time(world: World, other_side: OtherSide) -> None:
    world.publish(IN, Ask(subjects=["late-1"]), "k")
    process = world.run(
        "probe",
        ALMONER_PROBE_URL=other_side.url,
        ALMONER_PROBE_ASK_AGAIN="false",  # cut off, it would be unknown
        ALMONER_PROBE_ASK_TIMEOUT_SECONDS="4",  # the answer comes after 1.7 s, or later where the machine is busy
        ALMONER_PROBE_ASK_LEASE_SECONDS="7",
        ALMONER_PROBE_SHUTDOWN_SECONDS="6.1",
    )
    world.until(lambda: other_side.asked("late-1"))
    assert process.stop() == 0, process.log_text()
    assert [(row.state, row.attempts_started) for row in world.sql("probe", "SELECT * FROM work")] == [("DONE", 1)]
    assert len(other_side.requests) == 1


def test_a_stop_that_takes_too_long_ends_the_process_with_an_error(world: World, other_side: OtherSide) -> None:
    process = world.run(
        "probe",
        ALMONER_PROBE_URL=other_side.url,
        ALMONER_PROBE_ASK_TIMEOUT_SECONDS="1",
        ALMONER_PROBE_SHUTDOWN_SECONDS="3.1",
    )
    waiting = """SELECT 1 FROM pg_locks WHERE relation = 'settled'::regclass AND NOT granted
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
    with world._engine.connect() as connection:
        connection.exec_driver_sql("BEGIN; LOCK TABLE probe.settled IN EXCLUSIVE MODE")  # no answer can be stored
        world.publish(IN, Ask(subjects=["a"]), "k")
        world.until(lambda: world.sql("probe", waiting))
        assert process.stop() == 1
        connection.exec_driver_sql("ROLLBACK")
    assert "work" in process.logged("stopped")[0]["not_drained"]  # others may be late as well on a busy machine
    assert world.sql("probe", "SELECT state FROM work")[0].state == "CLAIMED"  # its lease will tell


@pytest.fixture
def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_a_wrong_setting_is_named_with_its_rule(world: World, tmp_path: Path) -> None:
    process = world.run(
        "probe", ALMONER_PROBE_CONSUME_BREAKER="none", ALMONER_SEAL_KEYS="k1:c2hvcnQ=", ALMONER_PROBE_LOG_LEVEL="LOUD"
    )
    assert process.wait() == 2
    said = process.log_text()
    assert "ALMONER_PROBE_CONSUME_BREAKER='none': Input should be a valid integer" in said
    assert "ALMONER_PROBE_LOG_LEVEL='LOUD': String should match" in said
    assert "ALMONER_SEAL_KEYS: must be name:base64 of 32 bytes" in said  # the variable that was set
    assert "c2hvcnQ=" not in said
