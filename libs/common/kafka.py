"""Connections to Kafka. Whatever stands in ALMONER_KAFKA_* goes to librdkafka as it is (SASL, TLS and all the rest)."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from libs.common.errors import Fatal, Transient

T = TypeVar("T")

PREFIX = "ALMONER_KAFKA_"
DURABLE: dict[str, Any] = {"enable.idempotence": True, "acks": "all"}  # of every producer, whatever the environment says


def connection(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """ALMONER_KAFKA_SASL_MECHANISM=… -> {"sasl.mechanism": …}. Raises Fatal without ALMONER_KAFKA_BOOTSTRAP_SERVERS."""
    config = {
        name.removeprefix(PREFIX).lower().replace("_", "."): value for name, value in environ.items() if name.startswith(PREFIX)
    }
    if not config.get("bootstrap.servers"):
        raise Fatal(f"{PREFIX}BOOTSTRAP_SERVERS is not set: name the Kafka brokers as host:port, comma between")
    return config


def _made(client: Callable[[dict[str, Any]], T], config: dict[str, Any]) -> T:
    """Raises Fatal, with variable and rule, where librdkafka does not take what stands in the environment."""
    try:
        return client(config)
    except KafkaException as error:
        rule = error.args[0].str()
        named = re.search('property:? "([^"]+)"', rule)
        raise Fatal(f"{PREFIX}{named[1].upper().replace('.', '_') if named else '*'}: {rule}") from error


def producer(client_id: str, environ: Mapping[str, str] = os.environ, **overrides: Any) -> Producer:
    """Idempotent, acknowledged by all in-sync replicas, keys on the partitions that Java's clients choose."""
    return _made(
        Producer,
        {
            "compression.type": "zstd",
            "partitioner": "murmur2_random",
            "linger.ms": 2,
            "message.max.bytes": 4_500_000,
            "queue.buffering.max.kbytes": 65_536,
            "topic.metadata.propagation.max.ms": 5_000,  # how long a topic that isn't there holds up the others
            "client.id": client_id,
            **connection(environ),
            **overrides,
            **DURABLE,
        },
    )


def partition_of(key: bytes, partitions: int) -> int:
    """Where `producer` puts a key: murmur2, as Java's clients have it."""
    mask, m = 0xFFFFFFFF, 0x5BD1E995
    h = 0x9747B28C ^ len(key)
    whole = len(key) & ~3
    for at in range(0, whole, 4):
        k = int.from_bytes(key[at : at + 4], "little") * m & mask
        h = (h * m & mask) ^ ((k ^ k >> 24) * m & mask)
    if rest := key[whole:]:
        h = (h ^ int.from_bytes(rest, "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return ((h ^ h >> 15) & 0x7FFFFFFF) % partitions


def consumer(group: str, client_id: str, **overrides: Any) -> Consumer:
    """A member of a group of the new protocol (KIP-848; ALMONER_KAFKA_GROUP_PROTOCOL=classic for brokers before 4.0)."""
    config: dict[str, Any] = {
        "group.id": group,
        "client.id": client_id,
        "group.protocol": "consumer",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "earliest",
        # Bounds what is prefetched, in bytes: one event may be hundreds of kilobytes, and what is fetched is compressed.
        "queued.max.messages.kbytes": 2_048,
        "fetch.queue.backoff.ms": 20,
        "fetch.max.bytes": 1_000_000,
        "max.partition.fetch.bytes": 1_000_000,
        "fetch.wait.max.ms": 500,
        **connection(),
        **overrides,
    }
    if config["group.protocol"] == "consumer":
        # Each topic is shared out by itself. The broker's default evens out the sum over all topics, by which one replica may
        # get all of the busy topic and the others the idle ones.
        config.setdefault("group.remote.assignor", "range")
    return _made(Consumer, config)


def admin(environ: Mapping[str, str] = os.environ, **overrides: Any) -> AdminClient:
    """For questions, and for who makes topics."""
    return _made(AdminClient, {**connection(environ), **overrides})


def committed(group: str) -> Sequence[TopicPartition]:
    """All offsets that a group has committed, in one request. Raises Transient where the broker cannot say."""
    client = admin(log_level=4)  # answers only as long as it is held; that it ends is no news
    try:
        [listed] = client.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)]).values()
        found: list[TopicPartition] = listed.result(timeout=10).topic_partitions
    except KafkaException as error:
        if error.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND:
            return []
        raise Transient(f"Kafka: {error}") from error
    except TimeoutError as error:
        raise Transient("Kafka: no answer") from error
    if unread := [tp for tp in found if tp.error]:
        raise Transient(f"Kafka: {unread[0].topic}/{unread[0].partition}: {unread[0].error}")
    return found
