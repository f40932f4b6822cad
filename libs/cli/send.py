"""Publishing: submissions as any other system would, and operators' commands; and waiting for what is answered."""

import hashlib
import sys
import time
from collections.abc import Collection, Iterator
from typing import Any, TypeVar
from uuid import uuid4

from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicPartition

from libs.cli.context import NotReachable, Refused, Views, locate, topic
from libs.common import kafka
from libs.common.clock import utc_now
from libs.common.contracts.base import CHUNK_ITEMS, EventData, derived_id
from libs.common.contracts.operator import Command
from libs.common.envelope import Event, RawMessage, attributes, decode, headers_for
from libs.common.errors import Malformed

T = TypeVar("T")
SOURCE = "almoner/cli"
_DELIVERY_SECONDS = 30.0
_REACH_SECONDS = 5.0
_CLOCKS_MS = 1_000  # by how much the clocks of a database and of its relay may differ
_QUIET: dict[str, Any] = {"log_level": 0}  # what goes wrong is said in our own words
_PRODUCER: dict[str, Any] = {
    **_QUIET,
    "message.timeout.ms": int(_DELIVERY_SECONDS * 1000),
    "queue.buffering.max.kbytes": 8_192,  # whoever submits millions waits for the broker, in flat memory
}


class Publisher:
    """An idempotent producer which counts delivery reports. Raises NotReachable where the broker takes nothing."""

    def __init__(self, source: str = SOURCE) -> None:
        locate()
        self._source = source
        self._producer: Producer = kafka.producer("almoner-cli", **_PRODUCER)
        self._failed: KafkaError | None = None
        self.delivered = 0
        self.first_delivered_at: float | None = None  # Unix time of the first delivery report

    def submit(self, name: str, key: str, data: EventData) -> str:
        """Publish a submission; its id is derived from its content, so that the same file again is the same submission."""
        return self.submit_encoded(name, key, type(data), data.model_dump_json().encode())

    def submit_encoded(self, name: str, key: str, model: type[EventData], body: bytes) -> str:
        """The same for the JSON of a model."""
        event_id = str(derived_id(model.TYPE, self._source, hashlib.sha256(body).hexdigest()))
        self._publish(name, key, model, body, event_id)
        return event_id

    def command(self, name: str, key: str, command: EventData) -> str:
        """Publish what is meant anew each time it is said: the same command given twice is two commands."""
        event_id = str(uuid4())
        self._publish(name, key, type(command), command.model_dump_json().encode(), event_id)
        return event_id

    def _publish(self, name: str, key: str, model: type[EventData], body: bytes, event_id: str) -> None:
        headers = headers_for(model, event_id=event_id, source=self._source, time=utc_now(), cause=None)
        while True:
            try:
                self._producer.produce(
                    topic(name),
                    key=key.encode(),
                    value=body,
                    headers=list[tuple[str, str | bytes | None]](headers.items()),
                    on_delivery=self._report,
                )
                break
            except BufferError:
                self._producer.poll(0.1)
                self._check()
        self._producer.poll(0)

    def flush(self) -> None:
        """Wait until all is acknowledged."""
        if self._producer.flush(_DELIVERY_SECONDS + 1):
            raise NotReachable(f"Kafka acknowledged nothing for {_DELIVERY_SECONDS:.0f} s: is the broker up? (`./almoner up`)")
        self._check()

    def _report(self, error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            self._failed = error
            return
        self.delivered += 1
        if self.first_delivered_at is None:
            self.first_delivered_at = time.time()

    def _check(self) -> None:
        if self._failed is None:
            return
        if self._failed.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC):
            raise NotReachable(f"a topic is missing ({self._failed.str()}): `./almoner up` makes them")
        raise NotReachable(f"Kafka did not take an event: {self._failed.str()}")


class Reader:
    """Reads topics from given offsets to the end they have now, or on and on; belongs to no group."""

    def __init__(self, name: str, *, from_end: bool = False) -> None:
        locate()
        self._consumer = kafka.consumer(
            "almoner-cli",
            "almoner-cli",
            **{**_QUIET, "group.protocol": "classic", "enable.partition.eof": False, "queued.max.messages.kbytes": 16_384},
        )
        self.name = name
        self._name = topic(name)
        try:
            listed = self._consumer.list_topics(self._name, timeout=_REACH_SECONDS).topics[self._name]
            if listed.error is not None:
                raise NotReachable(f"topic {self._name} is missing: `./almoner up` makes the topics")
            self.ends: dict[int, int] = {}
            self.starts: dict[int, int] = {}
            for partition in listed.partitions:
                low, high = self._consumer.get_watermark_offsets(
                    TopicPartition(self._name, partition), timeout=_REACH_SECONDS, cached=False
                )
                self.starts[partition], self.ends[partition] = low, high
        except KafkaException as error:
            raise NotReachable(f"Kafka does not answer: {error.args[0].str()}; is the broker up? (`./almoner up`)") from None
        self._first: dict[int, RawMessage] = {}
        begin = self.ends if from_end else self.starts
        self._consumer.assign([TopicPartition(self._name, partition, offset) for partition, offset in begin.items()])

    def until_end(self, idle_seconds: float = 30.0) -> Iterator[RawMessage]:
        """Everything up to the end offsets which the topic had when this reader was made, in flat memory."""
        left = {partition for partition, end in self.ends.items() if end > self.starts[partition]}
        quiet_since = time.monotonic()
        while left:
            messages = self._consumer.consume(500, 0.2)
            for message in messages:
                raw = _raw(message)
                if raw is None:
                    continue
                if raw.offset < self.ends[raw.partition]:
                    self._first.setdefault(raw.partition, raw)
                    yield raw
            if messages:
                quiet_since = time.monotonic()
            for place in self._consumer.position([TopicPartition(self._name, partition) for partition in left]):
                if place.offset >= self.ends[place.partition]:
                    left.discard(place.partition)
            if left and time.monotonic() - quiet_since > idle_seconds:
                raise NotReachable(f"{self._name} gave nothing for {idle_seconds:.0f} s before its end was reached")

    def older(self, key: str | None, at_ms: int | None) -> bool:
        """Whether what was said of this key no earlier than `at_ms` (Unix) may be gone, with all that is older than the first message
        its partition still has. Known once `until_end` has ended."""
        if key is None or at_ms is None:
            return False
        partition = kafka.partition_of(key.encode(), len(self.ends))
        first = self._first.get(partition)
        if first is None:
            return self.ends[partition] > 0  # there were messages, and none is left
        return first.offset > 0 and at_ms <= first.timestamp_ms + _CLOCKS_MS

    def next(self, limit_seconds: float) -> list[RawMessage]:
        """What has come since, after at most `limit_seconds`."""
        return [raw for message in self._consumer.consume(500, limit_seconds) if (raw := _raw(message))]

    def at(self, partition: int, offset: int) -> RawMessage | None:
        """The message at this offset; None where there is none (a transaction's mark, or compacted)."""
        self._consumer.assign([TopicPartition(self._name, partition, offset)])
        until = time.monotonic() + _REACH_SECONDS
        while time.monotonic() < until:
            for raw in self.next(0.2):
                return raw if raw.offset == offset else None
        return None

    def close(self) -> None:
        self._consumer.close()


def _raw(message: Message) -> RawMessage | None:
    error = message.error()
    if error is not None:
        if error.fatal():
            raise NotReachable(f"Kafka: {error.str()}")
        return None
    return RawMessage(
        str(message.topic()),
        message.partition() or 0,
        message.offset() or 0,
        message.timestamp()[1],
        message.key(),
        message.value() or b"",
        tuple(message.headers() or ()),  # type: ignore[arg-type]
    )


def read_one(name: str, partition: int, offset: int) -> RawMessage | None:
    """The message at this place, or None where Kafka does not keep it any more. `name` is without the prefix."""
    reader = Reader(name)
    try:
        if not reader.starts.get(partition, 0) <= offset < reader.ends.get(partition, 0):
            return None
        return reader.at(partition, offset)
    finally:
        reader.close()


def event_of(message: RawMessage, models: dict[str, type[EventData]]) -> Event[Any] | None:
    """The event, if it is of one of these types."""
    attrs = attributes(message)
    model = models.get(attrs.type)
    return decode(message, attrs, model) if model else None


class Answers:
    """What ingestion answers from now on. Make it before publishing."""

    def __init__(self) -> None:
        from libs.common.contracts import ingestion

        models = (ingestion.SubmissionAccepted, ingestion.SubmissionRejected, ingestion.EnvelopeStatus)
        self._models: dict[str, type[EventData]] = {model.TYPE: model for model in models}
        self._reader = Reader("ingestion.results.v1", from_end=True)

    def to(self, ids: set[str], quiet_seconds: float, not_yet: Collection[str] = ("parked",)) -> Iterator[Event[Any]]:
        """Answers that name one of `ids`, until each has its last one (it leaves the set) or nothing comes for so long.

        Outcomes in `not_yet` are followed by another answer."""
        quiet_since = time.monotonic()
        while ids and time.monotonic() - quiet_since < quiet_seconds:
            for message in self._reader.next(0.5):
                try:
                    event = event_of(message, self._models)
                except Malformed:
                    continue
                if event is not None and ids.intersection(event.data.submission_ids):
                    if getattr(event.data, "outcome", "") not in not_yet:
                        ids.difference_update(event.data.submission_ids)
                    quiet_since = time.monotonic()
                    yield event
        self._reader.close()


def in_portions(items: list[T], rate: float | None) -> Iterator[list[T]]:
    """As many as a command takes; with a rate never more than so many a second."""
    size = CHUNK_ITEMS if rate is None else max(1, min(CHUNK_ITEMS, int(rate)))
    for start in range(0, len(items), size):
        began = time.monotonic()
        portion = items[start : start + size]
        yield portion
        if rate is not None and len(items) > size:
            print(f"{start + len(portion):,} of {len(items):,}", file=sys.stderr, flush=True)
            time.sleep(max(0.0, len(portion) / rate - (time.monotonic() - began)))


def send_command(views: Views, service: str, key: str, command: Command, wait_seconds: float = 20.0) -> int:
    """Send a command and wait for its audit row; returns how many rows it touched. Raises Refused."""
    name, letters = f"{service}.commands.v1", f"FROM {service}.ops_dead_letters WHERE topic = %(topic)s"
    last = views.one(f"SELECT coalesce(max(id), 0) AS id {letters}", topic=name).id
    publisher = Publisher()
    command_id = publisher.command(name, key, command)
    publisher.flush()
    until = time.monotonic() + wait_seconds
    while time.monotonic() < until:
        row = views.one(f"SELECT affected, detail FROM {service}.ops_audit WHERE command_id = %(id)s", id=command_id)
        if row is not None:
            if row.detail.startswith("refused: "):
                raise Refused(f"{service} {row.detail.partition('; {')[0]}")
            return int(row.affected)
        time.sleep(0.1)
    refused = views.one(f"SELECT message {letters} AND id > %(last)s ORDER BY id LIMIT 1", topic=name, last=last)
    hint = f"; a dead letter came instead, which says: {refused.message}" if refused else ""
    raise Refused(
        f"{service} has not carried out the command within {wait_seconds:.0f} s (it will, once it runs: "
        f"command {command_id}){hint}"
    )
