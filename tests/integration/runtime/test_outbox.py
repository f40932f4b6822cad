"""Outbox and relay: order within a key, what cannot be published, two relays."""

import json
import random

import zstandard

from libs.common.contracts.registry import Topic
from tests.support.probe.contracts import Note, Noted
from tests.support.process import Process
from tests.support.world import World

IN, OUT = "probe.in.v1", "probe.out.v1"
SMALL = Topic("probe.small.v1", "test", "any", (), (), max_message_bytes=20_000)


def put(world: World, topic: str, key: str, body: bytes) -> None:
    world.sql(
        "probe",
        "INSERT INTO outbox (topic, key, headers, body) VALUES (%(topic)s, %(key)s, '[]', %(body)s)",
        topic=topic,
        key=key.encode(),
        body=zstandard.compress(body),
    )


def values(world: World, topic: str, key: str, at_least: int = 0) -> list[bytes]:
    world.until(lambda: len([m for m in world.messages(topic) if m.key == key.encode()]) >= at_least)
    return [message.value for message in world.messages(topic) if message.key == key.encode()]


def rows(world: World) -> int:
    return int(world.sql("probe", "SELECT rows FROM ops_outbox")[0].rows)


def test_the_order_of_a_key_is_that_of_its_rows(world: World) -> None:
    headers = {"ce_specversion": "1.0", "ce_source": "s", "ce_type": Note.TYPE}
    world.publish_many(
        IN,
        [
            (f"k{number % 5}".encode(), json.dumps({"number": number}).encode(), {**headers, "ce_id": f"n{number}"})
            for number in range(1500)
        ],
    )
    world.run("probe", ALMONER_PROBE_CONSUME_MAX_MESSAGES="70")
    events = world.events(OUT, Noted, at_least=1500)
    assert sorted(event.data.number for event in events) == list(range(1500))
    for key in range(5):
        numbers = [event.data.number for event in events if event.raw.key == f"k{key}".encode()]
        assert numbers == list(range(key, 1500, 5))


def test_what_cannot_be_published_stops_its_key_and_nothing_else(world: World) -> None:
    world.register(SMALL)
    world.topics(OUT, SMALL.name)
    noise = random.Random(1).randbytes(100_000)
    put(world, "nobody.made.this.v1", "a", b"1")
    put(world, OUT, "a", b"same key, other topic")
    put(world, OUT, "large", b"before")
    put(world, OUT, "large", b"x" * 5_000_000)  # more than the client takes
    put(world, OUT, "large", b"after")
    put(world, SMALL.name, "small", b"before")
    put(world, SMALL.name, "small", noise)  # more than the topic takes: the broker refuses the whole batch
    put(world, SMALL.name, "small", b"after")
    put(world, SMALL.name, "innocent", b"in the same batch")
    put(world, OUT, "b", b"other key")
    relay = world.run("probe", "relay")
    assert values(world, OUT, "b", 1) == [b"other key"]
    assert values(world, OUT, "a", 1) == [b"same key, other topic"]
    assert values(world, SMALL.name, "innocent", 1) == [b"in the same batch"]
    world.until(lambda: world.sql("probe", "SELECT stuck FROM ops_outbox")[0].stuck == 3)
    put(world, OUT, "b", b"later")
    assert values(world, OUT, "b", 2) == [b"other key", b"later"]
    assert values(world, OUT, "large") == [b"before"]
    assert values(world, SMALL.name, "small") == [b"before"]
    world.until(lambda: rows(world) == 5)  # a row goes only after its event is there
    left = world.sql("probe", "SELECT topic, stuck IS NOT NULL AS stuck FROM outbox ORDER BY id")
    assert [(row.topic, row.stuck) for row in left] == [
        ("nobody.made.this.v1", True),
        (OUT, True),
        (OUT, False),
        (SMALL.name, True),
        (SMALL.name, False),
    ]
    assert relay.alive

    world.register(Topic("nobody.made.this.v1", "test", "any", (), ()))  # somebody makes it and restarts the relay
    world.topics("nobody.made.this.v1")
    assert relay.stop() == 0
    world.run("probe", "relay")
    assert values(world, "nobody.made.this.v1", "a", 1) == [b"1"]


def test_one_relay_is_active_and_the_other_takes_over(world: World) -> None:
    relays = [world.run("probe", "relay") for _ in range(2)]
    for relay in relays:
        relay.started()
    put(world, OUT, "k", b"0")
    active = world.until(lambda: active_of(relays))
    assert active is not None
    for number in range(1, 10):
        put(world, OUT, "k", str(number).encode())
    values(world, OUT, "k", 10)
    world.until(lambda: rows(world) == 0)  # killed before, it would have left rows to be said again
    assert active_of(relays) is active
    [spare] = [relay for relay in relays if relay is not active]
    assert spare.metric("almoner_relayed_total") == 0
    active.kill()
    for number in range(10, 20):
        put(world, OUT, "k", str(number).encode())
    assert values(world, OUT, "k", 20) == [str(number).encode() for number in range(20)]
    world.until(lambda: rows(world) == 0)


def active_of(relays: list[Process]) -> Process | None:
    active = [relay for relay in relays if relay.metric("almoner_relayed_total") > 0]
    assert len(active) < 2
    return active[0] if active else None


def test_events_carry_their_cause_and_trace(world: World) -> None:
    source_id = world.publish(IN, Note(number=1), "k", correlation_id="envelope-1")
    world.run("probe")
    [event] = world.events(OUT, Noted, at_least=1)
    headers = dict(event.raw.headers)
    assert headers["ce_causationid"] == source_id.encode()
    assert event.correlation_id == "envelope-1"
    [sent] = world.messages(IN)
    assert headers["ce_traceparent"].split(b"-")[1] == dict(sent.headers)["ce_traceparent"].split(b"-")[1]
    assert headers["ce_traceparent"] != dict(sent.headers)["ce_traceparent"]
    assert headers["content-type"] == b"application/json"
