"""Every message may come twice, late, or after the database was restored."""

import json
from datetime import UTC, datetime, timedelta

from libs.common import inbox
from libs.common.db import Database
from libs.common.runtime_schema import INBOX_DAYS
from tests.support.probe.contracts import Ask, Note, Noted
from tests.support.world import World

IN, OUT = "probe.in.v1", "probe.out.v1"


def test_every_message_twice_has_its_effect_once_and_other_content_is_refused(world: World) -> None:
    now = datetime.now(UTC)
    times = [now, None, now - timedelta(days=400), now + timedelta(days=400), now - timedelta(days=3)]
    messages = []
    for number in range(50):
        headers = {"ce_specversion": "1.0", "ce_id": f"n{number}", "ce_source": "s", "ce_type": Note.TYPE}
        time = times[number % len(times)]
        if time is not None:
            headers["ce_time"] = time.isoformat()
        messages.append((f"{number}".encode(), json.dumps({"number": number}).encode(), headers))
    world.publish_many(IN, [message for message in messages for _ in range(2)])  # in one poll
    world.publish_many(IN, messages)
    process = world.run("probe", ALMONER_PROBE_CONSUME_MAX_MESSAGES="30")
    world.until(lambda: len(world.sql("probe", "SELECT 1 FROM noted")) >= 50)
    world.publish_many(IN, messages)  # long after
    key, _, headers = messages[7]
    world.publish_raw(IN, key, b'{"number": 700}', headers)
    other_source = {**messages[8][2], "ce_source": "another"}
    world.publish_raw(IN, messages[8][0], b'{"number": 800}', other_source)
    world.until(lambda: world.sql("probe", "SELECT 1 FROM dead_letters"))
    world.until(lambda: world.sql("probe", "SELECT 1 FROM noted WHERE number = 800"))

    numbers = [row.number for row in world.sql("probe", "SELECT number FROM noted ORDER BY number")]
    assert numbers == [*range(50), 800]
    [letter] = world.sql("probe", "SELECT code, value FROM dead_letters")
    assert (letter.code, bytes(letter.value)) == ("ID_REUSED", b'{"number": 700}')
    assert len(world.events(OUT, Noted, at_least=51)) == 51
    world.until(lambda: process.metric("almoner_events_handled_total", outcome="repeated") == 150)  # on both partitions


def test_partitions_are_made_ahead_and_dropped_in_time(world: World) -> None:
    database = Database(world.database_url, "probe")
    try:
        now = datetime(2030, 3, 15, 12, tzinfo=UTC)
        inbox.keep_partitions(database, now)
        assert partitions(world) == days(now)
        world.sql("probe", "INSERT INTO inbox VALUES ('2030-03-10', 't', 's', 'i', '')")
        world.sql("probe", "INSERT INTO inbox VALUES ('1970-01-01', 't', 's', 'i', '')")
        later = now + timedelta(days=9)
        inbox.keep_partitions(database, later)
        inbox.keep_partitions(database, later)
        assert partitions(world) == days(later)
        assert len(world.sql("probe", "SELECT 1 FROM inbox")) == 2  # still within the days kept
        inbox.keep_partitions(database, now + timedelta(days=INBOX_DAYS - 4))
        assert [str(row.day) for row in world.sql("probe", "SELECT day FROM inbox")] == ["1970-01-01"]
    finally:
        database.close()


def partitions(world: World) -> list[str]:
    rows = world.sql(
        "probe",
        """SELECT inhrelid::regclass::text AS name FROM pg_inherits WHERE inhparent = 'inbox'::regclass
           AND inhrelid <> 'inbox_undated'::regclass ORDER BY 1""",
    )
    return [row.name for row in rows]


def days(now: datetime) -> list[str]:
    return sorted(f"inbox_{now.date() + timedelta(days=offset):%Y%m%d}" for offset in range(-INBOX_DAYS, 3))


def test_a_restored_database_is_refused_at_the_start(world: World) -> None:
    for number in range(20):
        world.publish(IN, Note(number=number), number)
    process = world.run("probe")
    world.until(lambda: len(world.sql("probe", "SELECT 1 FROM noted")) == 20)
    assert process.stop() == 0
    # As of an earlier moment: less was consumed, fewer effects.
    world.sql("probe", "DELETE FROM noted WHERE number >= 10")
    world.sql("probe", "UPDATE consumed SET next_offset = next_offset - 1 WHERE topic = %(topic)s", topic=IN)
    world.publish(IN, Note(number=99), 99)
    process = world.run("probe")
    assert process.wait() == 1
    [said] = process.logged("cannot go on")
    assert "The database is older than Kafka's offsets" in said["error"]
    assert "runbook" in said["error"]
    assert not world.sql("probe", "SELECT 1 FROM noted WHERE number = 99")


def test_an_older_schema_is_refused_and_a_newer_one_is_not(world: World) -> None:
    world.sql("probe", "UPDATE alembic_version SET version_num = '0002_probe'")
    world.publish(IN, Note(number=1), 1)
    process = world.run("probe")
    world.until(lambda: world.sql("probe", "SELECT 1 FROM noted"))
    assert process.stop() == 0
    world.sql("probe", "DELETE FROM alembic_version")
    process = world.run("probe")
    assert process.wait() == 1
    assert "migrate` first" in process.logged("cannot go on")[0]["error"]


def test_enqueued_work_is_made_once_whoever_asks_again(world: World) -> None:
    world.publish(IN, Ask(subjects=["a", "b"]), 1)
    world.publish(IN, Ask(subjects=["b", "c"]), 1)
    process = world.run("probe", "consume")
    world.until(lambda: len(world.sql("probe", "SELECT 1 FROM work")) == 3)
    assert process.stop() == 0
