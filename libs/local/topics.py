"""Make the registry's topics on a broker; brokers here create none by themselves."""

import os
from collections.abc import Collection, Iterable

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from libs.common import kafka
from libs.common.contracts.registry import TOPICS, Topic
from libs.local.stack import KAFKA_VARIABLE

LIMIT_SECONDS = 30


def ensure_topics(
    bootstrap: str, prefix: str = "", partitions: int | None = None, names: Collection[str] | None = None
) -> list[str]:
    """Make those of the registry's topics that are missing (`names`: only these); returns the ones made, with their prefix.

    `partitions` replaces the registry's numbers. Raises KafkaException where the broker refuses, Fatal for a setting that is none."""
    wanted = [topic for topic in TOPICS if names is None or topic.name in names]
    admin = kafka.admin({**os.environ, KAFKA_VARIABLE: bootstrap})
    return create(admin, wanted, prefix, partitions)


def create(admin: AdminClient, topics: Iterable[Topic], prefix: str = "", partitions: int | None = None) -> list[str]:
    """As `ensure_topics`, for any topics. Replicas and their minimum are the broker's defaults."""
    new = [
        NewTopic(prefix + topic.name, num_partitions=partitions or topic.partitions, replication_factor=-1, config=topic.config)
        for topic in topics
    ]
    made = []
    for name, future in admin.create_topics(new, operation_timeout=LIMIT_SECONDS).items() if new else ():
        try:
            future.result(LIMIT_SECONDS)
            made.append(name)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
    return made
