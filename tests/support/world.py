"""One test's world: its own database and topics on the session's broker, and the processes it starts."""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import sqlalchemy
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from libs.common import kafka
from libs.common.contracts.base import EventData
from libs.common.contracts.registry import TOPIC_BY_NAME, Topic
from libs.common.envelope import Event, RawMessage, attributes, decode, headers_for
from libs.local.stack import KAFKA_VARIABLE
from libs.local.supervisor import ROOT
from libs.local.topics import create
from tests.support.process import Process
from tests.support.stacks import Databases

T = TypeVar("T")
Headers = Mapping[str, str] | Iterable[tuple[str, str | bytes]]
SEAL_KEYS = "k1:c2l4dGVlbiBieXRlcyB0d2ljZSBpcyAzMiBieXRlcyE="
TOKEN_KEY = "a token key for tests only"
TIMEOUT_SECONDS = 30.0


class Kafka:
    """The session's clients of one broker."""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap
        environ = {**os.environ, KAFKA_VARIABLE: bootstrap}
        common = {**kafka.connection(environ), "log_level": 0}  # the broker ends before its clients: no news
        self.admin = AdminClient(common)
        self.producer = Producer(
            {
                **common,
                "enable.idempotence": True,
                "partitioner": "murmur2_random",
                "linger.ms": 0,
                "message.max.bytes": 4_500_000,
            }
        )
        self.consumer = Consumer(
            {
                **common,
                "group.id": "readers-of-tests",  # never joined: partitions are assigned by hand
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 20,
            }
        )


class World:
    """`env` is what a service's process needs; `name` is unique to the test, for accounts and the like."""

    def __init__(self, kafka: Kafka, databases: Databases, template: str, folder: Path) -> None:
        self.name = f"t{uuid4().hex[:10]}"
        self.prefix = f"{self.name}."
        self.kafka = kafka
        self.databases = databases
        self.processes: list[Process] = []
        self._folder = folder
        self._topics = dict(TOPIC_BY_NAME)
        self._made: set[str] = set()
        self.database_url = databases.create(self.name, template)
        # Kept open, since tests look every few milliseconds; some of them break every connection.
        self._engine = sqlalchemy.create_engine(
            self.database_url, isolation_level="AUTOCOMMIT", pool_pre_ping=True, use_native_hstore=False
        )
        self.env = {
            "ALMONER_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap,
            "DATABASE_URL": self.database_url,
            "ALMONER_TOPIC_PREFIX": self.prefix,
            "ALMONER_SEAL_KEYS": SEAL_KEYS,
            "ALMONER_TOKEN_KEY": TOKEN_KEY,
            "ALMONER_INGESTION_MODE": "open",
        }

    # Topics and events.

    def register(self, *topics: Topic) -> None:
        """Topics outside of the registry, for services which exist in tests only."""
        self._topics |= {topic.name: topic for topic in topics}

    def topics(self, *names: str) -> None:
        """Make topics; `publish`, `events` and `run` make what they need by themselves."""
        missing = [self._topics[name] for name in names if name not in self._made]
        create(self.kafka.admin, missing, self.prefix, partitions=2)
        self._made |= {topic.name for topic in missing}

    def publish(
        self,
        topic: str,
        data: EventData,
        key: object,
        source: str = "test",
        event_id: str | None = None,
        correlation_id: str | None = None,
        time: datetime | None = None,
    ) -> str:
        """Publish an event and wait for its delivery; returns its id."""
        event_id = event_id or str(uuid4())
        headers = headers_for(type(data), event_id=event_id, source=source, time=time or datetime.now(UTC), cause=None)
        if correlation_id:
            headers["ce_correlationid"] = correlation_id
        self.publish_raw(topic, str(key).encode(), data.model_dump_json().encode(), headers)
        return event_id

    def publish_raw(self, topic: str, key: bytes | None, value: bytes, headers: Headers = ()) -> None:
        """Publish any bytes and wait for their delivery."""
        self.publish_many(topic, [(key, value, headers)])

    def publish_many(self, topic: str, messages: Iterable[tuple[bytes | None, bytes, Headers]]) -> None:
        """Publish any number of (key, value, headers) in their order and wait for their delivery."""
        self.topics(topic)
        errors: list[KafkaError] = []
        for key, value, headers in messages:
            self.kafka.producer.produce(
                self.prefix + topic,
                key=key,
                value=value,
                headers=list(headers.items() if isinstance(headers, Mapping) else headers),
                on_delivery=lambda error, _message: errors.append(error) if error else None,
            )
        assert self.kafka.producer.flush(TIMEOUT_SECONDS) == 0
        assert not errors, errors

    def messages(
        self, topic: str, at_least: int = 0, timeout: float = TIMEOUT_SECONDS, *, types: Iterable[str] = ()
    ) -> list[RawMessage]:
        """All messages of a topic, from the beginning to its end; waits for `at_least` (of these types)."""
        self.topics(topic)
        consumer = self.kafka.consumer
        wanted = set(types)
        # A busy broker makes a topic before it knows of its partitions.
        partitions = self.until(
            lambda: consumer.list_topics(self.prefix + topic, timeout=10).topics[self.prefix + topic].partitions
        )
        consumer.assign([TopicPartition(self.prefix + topic, number, OFFSET_BEGINNING) for number in partitions])
        found: list[RawMessage] = []
        at_end: set[int | None] = set()
        until = time.monotonic() + timeout
        try:
            while len(at_end) < len(partitions) or len(found) < at_least:
                for message in consumer.consume(500, 0.05):
                    error = message.error()
                    if error is None:
                        at_end.discard(message.partition())
                        raw = self._raw(message)
                        if not wanted or attributes(raw).type in wanted:
                            found.append(raw)
                    elif error.code() == KafkaError._PARTITION_EOF:
                        at_end.add(message.partition())
                    else:
                        raise AssertionError(str(error))
                if time.monotonic() > until:
                    break
        finally:
            consumer.unassign()
        assert len(found) >= at_least, f"{topic}: {len(found)} of {at_least} {sorted(wanted)} within {timeout} s"
        return found

    def events(
        self, topic: str, *models: type[EventData], at_least: int = 0, timeout: float = TIMEOUT_SECONDS
    ) -> list[Event[Any]]:
        """The events of these types on a topic, validated, from the beginning to its end; waits for `at_least` of them."""
        by_type = {model.TYPE: model for model in models}
        found = []
        for message in self.messages(topic, at_least, timeout, types=by_type):
            attrs = attributes(message)
            found.append(decode(message, attrs, by_type[attrs.type]))
        return found

    def _raw(self, message: Any) -> RawMessage:
        return RawMessage(
            message.topic().removeprefix(self.prefix),
            message.partition(),
            message.offset(),
            message.timestamp()[1],
            message.key(),
            message.value() or b"",
            tuple(message.headers() or ()),
        )

    # Processes.

    def run(self, service: str, verb: str = "run", **env: str) -> Process:
        """Start `python -m services.<service> <verb>` as a process of its own, with more environment where given."""
        module = f"services.{service}" if (ROOT / "services" / service).is_dir() else f"tests.support.{service}"
        self.topics(*(t.name for t in self._topics.values() if t.owner == service or service in t.consumers))
        name = f"{service}-{len(self.processes) + 1}"
        process = Process(name, module, verb, {**self.env, **env}, self._folder / f"{name}.log")
        self.processes.append(process)
        return process

    # The database, and waiting.

    def sql(self, service: str | None, sql: str, /, **params: Any) -> list[Any]:
        """Rows of a statement run as the server's administrator, with the service's schema on the search path."""
        with self._engine.connect() as connection:
            connection.exec_driver_sql(f"SET search_path = {service or 'public'}")
            result = connection.exec_driver_sql(sql, params)
            return list(result) if result.returns_rows else []

    def until(self, condition: Callable[[], T], timeout: float = TIMEOUT_SECONDS, what: str = "it") -> T:
        """Wait for a condition to become true; returns what it returned. Raises AssertionError with its last value."""
        began = time.monotonic()
        while not (value := condition()):
            waited = time.monotonic() - began
            if waited > timeout:
                raise AssertionError(f"{what} did not come true within {timeout} s; last: {value!r}")
            time.sleep(min(0.03 + waited / 10, 0.3))  # who looks all the time keeps those busy whom it waits for
        return value

    def end_leases(self, service: str) -> None:
        """Time passes: so as not to wait for it, the leases of a process that is dead or frozen are moved back."""
        self.sql(service, "UPDATE work SET leased_until = clock_timestamp() WHERE state = 'CLAIMED'")

    def scanned(self, service: str, *tables: str) -> int:
        """Rows of these tables that were looked at so far."""
        self.sql(service, "SELECT pg_stat_force_next_flush()")  # what this session has looked at, to fill the tables
        [row] = self.sql(
            service,
            """SELECT sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0)) AS n FROM pg_stat_user_tables
               WHERE schemaname = %(service)s AND relname = ANY(%(tables)s)""",
            service=service,
            tables=list(tables),
        )
        return int(row.n)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
        self._engine.dispose()
        self.databases.drop(self.name)
        if self._made:
            self.kafka.admin.delete_topics([self.prefix + name for name in self._made])  # nobody waits for that
