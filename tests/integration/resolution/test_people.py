"""A registry that is published on a compacted topic: what is said of each person last is where they live."""

import json
from pathlib import Path
from typing import Any

import pytest

from libs.common.clock import utc_now
from libs.common.contracts.reference import PersonLocated, ReferenceRejected
from libs.common.contracts.registry import EVENT_BYTES
from libs.common.db import Database
from libs.common.envelope import RawMessage, headers_for
from libs.common.outbox import Outbox
from services.resolution.doors import People
from tests.integration.resolution.batches import publish
from tests.integration.resolution.test_held import ask
from tests.integration.resolution.zones import goods, homes, located, reasons, start, zone
from tests.support.world import TIMEOUT_SECONDS, World

PEOPLE = "reference.people.v1"
RESULTS = "resolution.results.v1"
TOPIC = {"source": "topic"}


def person(beneficiary_id: str, number: int, registry: str = "farmers") -> tuple[bytes, bytes, dict[str, str]]:
    """A message: who lives in which zone from now on."""
    data = PersonLocated(
        target_registry=registry,
        beneficiary_id=beneficiary_id,
        **dict(zip(("large_zone_id", "large_zone_code", "small_zone_id", "small_zone_code"), zone(number), strict=True)),
    )
    headers = headers_for(PersonLocated, event_id=f"{beneficiary_id}-{number}", source="registry", time=utc_now(), cause=None)
    return f"{registry}/{beneficiary_id}".encode(), data.model_dump_json().encode(), headers


def remove(world: World, beneficiary_id: str, value: bytes | None) -> None:
    """As Kafka's own tools do it, with null, and as those do it that know no null."""
    world.kafka.producer.produce(world.prefix + PEOPLE, key=f"farmers/{beneficiary_id}".encode(), value=value)
    assert world.kafka.producer.flush(TIMEOUT_SECONDS) == 0


def consumed(world: World) -> bool:
    ends: dict[int, int] = {}
    for message in world.messages(PEOPLE):
        ends[message.partition] = message.offset + 1
    rows = world.sql("resolution", "SELECT partition, next_offset FROM consumed WHERE topic = %(topic)s", topic=PEOPLE)
    return {row.partition: row.next_offset for row in rows} == ends


def test_the_last_word_on_each_person_counts(world: World) -> None:
    people = [f"{world.name}/{number}" for number in range(1000)]  # an id may have a slash
    process = start(world, {"farmers": TOPIC})
    first = [person(one, n) for n, one in enumerate(people)]
    moved = [person(people[n], n + 1) for n in range(0, 100, 2)]
    world.publish_many(PEOPLE, [*first, *first[:50], *moved, *moved, person(people[0], 9, registry="fishers")])
    for number, value in ((1, None), (3, b""), (5, None)):
        remove(world, people[number], value)
    world.publish_many(PEOPLE, [person(people[5], 17)])  # and is back
    world.until(lambda: consumed(world))

    publish(world, [goods(people)])
    [event] = located(world, 1)
    expected = {f"D1-{n}": zone(n) for n in range(1000)} | {f"D1-{n}": zone(n + 1) for n in range(0, 100, 2)}
    expected |= {"D1-5": zone(17)}
    del expected["D1-1"], expected["D1-3"]
    assert homes(event.data) == {one: (place[0], place[2]) for one, place in expected.items()}
    assert reasons(event.data) == {"D1-1": "NOT_IN_REGISTRY", "D1-3": "NOT_IN_REGISTRY"}

    # Another process, and the same topic from its beginning: nothing is different.
    process.kill()
    world.sql("resolution", "DELETE FROM consumed; DELETE FROM people")
    world.topics(PEOPLE)
    group = f"{world.prefix}almoner-resolution"
    world.until(lambda: _forgotten(world, group))
    start(world, {"farmers": TOPIC})
    world.until(lambda: consumed(world))
    world.publish_many(PEOPLE, [person(people[1], 1)])
    world.until(lambda: consumed(world))
    assert ask(world) == 2
    second = located(world, 2)[1]
    assert homes(second.data) == {"D1-1": (zone(1)[0], zone(1)[2])}
    assert reasons(second.data) == {"D1-3": "NOT_IN_REGISTRY"}
    assert not world.messages(RESULTS)


def _forgotten(world: World, group: str) -> bool:
    """Whether the group's offsets could be dropped: not before the broker has noticed that its member died."""
    [result] = world.kafka.admin.delete_consumer_groups([group]).values()
    return result.exception() is None


def test_an_older_word_changes_nothing(world: World) -> None:
    """As from a replica that was frozen in a fold, while another took over what it had and went on."""
    database = Database(world.database_url, "resolution")
    door = People(database, Outbox("resolution"))

    def receive(number: int | None, offset: int, timestamp_ms: int) -> str | None:
        key, value, headers = person("P1", number or 0)
        pairs = tuple((name, text.encode()) for name, text in headers.items())
        message = RawMessage(PEOPLE, 0, offset, timestamp_ms, key, b"" if number is None else value, pairs)
        with database.transaction() as tx:
            door.receive(tx, [message])
        [row] = world.sql("resolution", "SELECT small_zone_code FROM people")
        code: str | None = row.small_zone_code
        return code

    assert receive(1, 10, 1000) == "small-1"
    assert receive(2, 11, 1000) == "small-2"
    assert receive(1, 10, 1000) == "small-2"
    assert receive(3, 12, 990) == "small-3"  # a broker's clock that was set back
    assert receive(None, 13, 2000) is None
    assert receive(3, 12, 1500) is None
    assert receive(None, 13, 2000) is None
    assert receive(4, 0, 3000) == "small-4"  # the topic was made anew
    database.close()


@pytest.mark.parametrize("point", ["fold.before_commit", "fold.after_commit"])
def test_what_was_published_survives(world: World, tmp_path: Path, point: str) -> None:
    mark = tmp_path / "mark"
    env = {"ALMONER_CRASH_AT": point, "ALMONER_CRASH_MARK": str(mark)}
    process = start(world, {"farmers": TOPIC}, **env)
    world.publish_many(PEOPLE, [person("P1", 1), person("P2", 2), (b"no slash", b"", {})])
    assert process.wait() == -9
    assert mark.exists()
    start(world, {"farmers": TOPIC}, **env)
    world.until(lambda: consumed(world))
    rows = world.sql("resolution", "SELECT beneficiary_id, small_zone_code FROM people ORDER BY beneficiary_id")
    assert [tuple(row) for row in rows] == [("P1", "small-1"), ("P2", "small-2")]
    assert len({event.id for event in world.events(RESULTS, ReferenceRejected, at_least=1)}) == 1


def test_hostile_messages_are_answered_and_good_ones_taken(world: World) -> None:
    key, value, headers = person("good", 1)
    changed: Any = json.loads(value)

    def with_field(name: str, content: Any) -> bytes:
        return json.dumps({**changed, name: content}).encode()

    hostile: list[tuple[str, bytes, bytes, dict[str, str]]] = [
        ("INVALID_KEY", b"\xff/x", value, headers),
        ("INVALID_KEY", b"no slash", b"", {}),
        ("INVALID_KEY", b"farmers/", b"", {}),
        ("INVALID_KEY", b"farmers/" + b"x" * 65, value, headers),
        ("INVALID_KEY", b"far\x00mers/x", b"", {}),
        ("INVALID_KEY", b"farmers/a\nb", b"", {}),
        ("KEY_MISMATCH", b"farmers/other", value, headers),
        ("KEY_MISMATCH", b"far/mers/good", with_field("target_registry", "far/mers"), headers),
        ("INVALID_CLOUDEVENT", key, value, {}),
        ("INVALID_CLOUDEVENT", key, value, {**headers, "ce_id": "x" * 600}),
        ("UNKNOWN_TYPE", key, value, {**headers, "ce_type": "almoner.reference.AgencyListed.v1"}),
        ("INVALID_JSON", key, b"{", headers),
        ("INVALID_JSON", key, b"[" * 300_000, {"content-type": "application/cloudevents+json"}),
        ("INVALID_JSON", key, value.decode().encode("utf-16"), headers),
        ("INVALID_DATA", key, b"null", headers),
        ("INVALID_DATA", key, with_field("small_zone_id", "a\x00b"), headers),
        ("INVALID_DATA", key, with_field("large_zone_id", ["secret"] * 3), headers),
        ("INVALID_DATA", key, with_field("small_zone_code", "x" * 201), headers),
        ("EVENT_TOO_LARGE", key, value + b" " * EVENT_BYTES, headers),
    ]
    process = start(world, {"farmers": TOPIC})
    world.publish_many(PEOPLE, [(key, value, headers)])
    for _, bad_key, bad_value, bad_headers in hostile:
        world.publish_many(PEOPLE, [(bad_key, bad_value, bad_headers)])
    world.publish_many(PEOPLE, [person("behind", 2)])
    world.until(lambda: consumed(world))

    answers = world.events(RESULTS, ReferenceRejected, at_least=len(hostile))
    assert len(answers) == len(hostile)
    sent = {(m.partition, m.offset): (m.key or b"", m.value) for m in world.messages(PEOPLE)}
    codes = sorted((code, bad_key, bad_value) for code, bad_key, bad_value, _ in hostile)
    assert sorted((one.data.errors[0].code, *sent[one.data.partition, one.data.offset]) for one in answers) == codes
    assert all(one.data.topic == PEOPLE and one.data.errors[0].message for one in answers)
    assert all(b"secret" not in one.raw.value for one in answers)
    assert len({one.id for one in answers}) == len(hostile)
    people = world.sql("resolution", "SELECT registry, beneficiary_id FROM people ORDER BY beneficiary_id")
    assert [tuple(row) for row in people] == [("farmers", "behind"), ("farmers", "good")]
    assert process.ready()
    assert not world.sql("resolution", "SELECT 1 FROM dead_letters")
