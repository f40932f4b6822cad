"""The fold loop: a polled batch of events -> one transaction (inbox, state, outbox) -> offsets.

What the loop does with what is raised, tested line by line:

    nothing          commits the transaction, then the offsets
    Malformed        again, message by message under savepoints; the bad one becomes a dead letter in the same transaction
    Transient        rolls back, pauses, backs off, the same messages again; unready meanwhile; never a dead letter
    anything else    a bug: rolls back, narrows down to one message, counts the failure in a transaction of its own, and
                     exits; after `max_failures` of that message it becomes a dead letter
    dead letters in a row   a breaker: consumption is paused until an operator resumes it
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from libs.common import crash, deadletters, inbox, metrics
from libs.common.clock import Clock, utc_now
from libs.common.contracts.base import EventData
from libs.common.db import Database, Tx, is_transient
from libs.common.envelope import Event, RawMessage, attributes, decode
from libs.common.errors import Fatal, Malformed, Transient
from libs.common.log import get
from libs.common.restored import Guard
from libs.common.retry import backoff_seconds

CONSUME_STAGE = "consume"
_SPARE_SECONDS = 3.0  # without any partition, after which a replica counts as a spare one

Handler = Callable[[Tx, Sequence[Event[Any]]], None]
DoorHandler = Callable[[Tx, Sequence[RawMessage]], None]
Aside = Callable[[Tx, RawMessage], None]

_log = get("consumer")


@dataclass(frozen=True)
class Routes:
    """What a service reads. `doors` are topics which others publish to: their handler gets the raw messages, answers faults
    to the sender and keeps its own record of what it has seen, so that a hostile publisher never trips a breaker."""

    handlers: dict[tuple[str, type[EventData]], Handler]
    doors: dict[str, DoorHandler] = field(default_factory=dict)
    aside: Aside | None = None  # told of each message that becomes a dead letter, in the same transaction

    @property
    def topics(self) -> list[str]:
        return sorted({topic for topic, _ in self.handlers} | self.doors.keys())

    def models(self) -> dict[tuple[str, str], type[EventData]]:
        return {(topic, model.TYPE): model for topic, model in self.handlers}


@dataclass(frozen=True)
class Limits:
    max_messages: int = 500
    max_bytes: int = 8_000_000
    max_failures: int = 5
    breaker: int = 50
    backoff_max_seconds: float = 10.0


class Fold:
    """Messages in, one transaction out. Knows no Kafka, so that replays and tests fold as the loop does."""

    def __init__(
        self,
        database: Database,
        routes: Routes,
        limits: Limits,
        clock: Clock = utc_now,
    ) -> None:
        self.database = database
        self.limits = limits
        self._routes = routes
        self._models = routes.models()
        self._clock = clock
        self._bad_in_a_row = 0

    def fold(self, messages: Sequence[RawMessage]) -> int:
        """One transaction for all messages; returns how many were consumed (fewer only when the breaker opens)."""
        try:
            with self.database.transaction() as tx:
                self._handle(tx, messages)
                self._store_offsets(tx, messages)
                crash.reached("fold.before_commit", len(messages))
            self._bad_in_a_row = 0
            consumed = len(messages)
        except Malformed:
            consumed = self._fold_singly(messages)
        crash.reached("fold.after_commit", consumed)
        return consumed

    def _fold_singly(self, messages: Sequence[RawMessage]) -> int:
        bad_in_a_row = self._bad_in_a_row
        with self.database.transaction() as tx:
            consumed = 0
            for message in messages:
                try:
                    with tx.savepoint():
                        self._handle(tx, [message])
                    bad_in_a_row = 0
                except Malformed as error:
                    self._set_aside(tx, message, error.code, str(error))
                    bad_in_a_row += 1
                consumed += 1
                if bad_in_a_row >= self.limits.breaker:
                    bad_in_a_row = 0
                    self._open_breaker(tx)
                    break
            self._store_offsets(tx, messages[:consumed])
            crash.reached("fold.before_commit", consumed)
        self._bad_in_a_row = bad_in_a_row
        return consumed

    def narrow(self, messages: Sequence[RawMessage]) -> int:
        """After a bug: fold one by one, each in its own transaction, up to the message at fault. Its failure is counted
        and raised; at `max_failures` it is set aside instead and the rest goes on."""
        for index, message in enumerate(messages):
            try:
                self.fold([message])
            except Transient:
                if index:
                    return index
                raise
            except Exception as error:
                failures = self._count_failure(message, error)
                if failures < self.limits.max_failures:
                    raise
                with self.database.transaction() as tx:
                    text = f"{type(error).__name__} in {failures} deliveries"
                    self._set_aside(tx, message, "QUARANTINED", text, failures)
                    self._store_offsets(tx, [message])
        return len(messages)

    def _set_aside(self, tx: Tx, message: RawMessage, code: str, text: str, deliveries: int = 1) -> None:
        deadletters.set_aside(tx, self.database.service, message, code, text, deliveries)
        if self._routes.aside is not None:
            self._routes.aside(tx, message)

    def _handle(self, tx: Tx, messages: Sequence[RawMessage]) -> None:
        # There is no order between topics; within a topic runs of one type keep the order of what was polled.
        ordered = sorted(messages, key=lambda message: message.topic)
        for topic, of_topic in groupby(ordered, key=lambda message: message.topic):
            door = self._routes.doors.get(topic)
            if door is not None:
                knocking = list(of_topic)
                with _counted(topic, len(knocking)):
                    door(tx, knocking)
                continue
            events = [event for message in of_topic if (event := self._decode(message)) is not None]
            now = self._clock()
            fresh, reused = inbox.take(tx, events, now)
            if reused:
                raise Malformed("ID_REUSED", f"id {reused[0].id} of {reused[0].source} came before with other content")
            metrics.HANDLED.labels("any", "repeated").inc(len(events) - len(fresh))
            for kind, run in groupby(fresh, key=lambda event: type(event.data)):
                batch = list(run)
                with _counted(kind.TYPE, len(batch)):
                    self._routes.handlers[topic, kind](tx, batch)
                for event in batch:
                    if event.time is not None:
                        metrics.EVENT_AGE.labels(kind.TYPE).observe(max(0.0, (now - event.time).total_seconds()))

    def _decode(self, message: RawMessage) -> Event[Any] | None:
        attrs = attributes(message)
        model = self._models.get((message.topic, attrs.type))
        return None if model is None else decode(message, attrs, model)  # a type this service has no use for

    def _store_offsets(self, tx: Tx, messages: Sequence[RawMessage]) -> None:
        deadletters.close_redriven(tx, messages)
        after = next_offsets(messages)
        tx.run(
            """INSERT INTO consumed AS c (topic, partition, next_offset)
               SELECT * FROM unnest(%(topics)s::text[], %(partitions)s::int[], %(offsets)s::bigint[])
               ON CONFLICT (topic, partition) DO UPDATE SET next_offset = greatest(c.next_offset, excluded.next_offset)""",
            topics=[topic for topic, _ in after],
            partitions=[partition for _, partition in after],
            offsets=list(after.values()),
        )

    def _count_failure(self, message: RawMessage, error: Exception) -> int:
        with self.database.transaction() as tx:
            failures: int = tx.one(
                """INSERT INTO failures AS f (topic, partition, message_offset, failures, message)
                   VALUES (%(topic)s, %(partition)s, %(offset)s, 1, %(message)s)
                   ON CONFLICT (topic, partition, message_offset)
                   DO UPDATE SET failures = f.failures + 1, message = excluded.message RETURNING failures""",
                topic=message.topic,
                partition=message.partition,
                offset=message.offset,
                message=type(error).__name__,
            ).failures
        return failures

    def _open_breaker(self, tx: Tx) -> None:
        tx.run(
            """INSERT INTO paused (stage, who, why) VALUES (%(stage)s, 'breaker', %(why)s) ON CONFLICT DO NOTHING""",
            stage=CONSUME_STAGE,
            why=f"{self.limits.breaker} dead letters in a row: find out what its publisher does, then resume",
        )
        _log.error("breaker open: consumption is paused", dead_letters=self.limits.breaker)


@contextmanager
def _counted(kind: str, events: int) -> Iterator[None]:
    """How long a handler took, and what came of it; whether the transaction lasts is not known yet."""
    outcome = "failed"
    try:
        with metrics.timed(metrics.HANDLER, type=kind):
            yield
        outcome = "handled"
    except Malformed:
        outcome = "malformed"
        raise
    except Exception as error:
        if isinstance(error, Transient) or is_transient(error):
            outcome = "transient"
        raise
    finally:
        metrics.HANDLED.labels(kind, outcome).inc(events)


class Loop:
    """Polls, folds, commits offsets; `ready` is false while it cannot."""

    def __init__(self, consumer: Consumer, fold: Fold, routes: Routes, guard: Guard) -> None:
        self._consumer = consumer
        self._fold = fold
        self._routes = routes
        self._guard = guard
        self._group = guard.group
        self._prefix = guard.topic_prefix
        self._commands = f"{fold.database.service}.commands.v1"
        self._assigned: set[tuple[str, int]] = set()
        self._unchecked: set[tuple[str, int]] = set()  # newly assigned: their offsets are to be compared with the data
        self._lost: set[tuple[str, int]] = set()
        self._paused = False
        self._next_check = 0.0
        self._idle_since = time.monotonic()
        self.ready = False
        self.moved_at = time.monotonic()

    def run(self, stop: threading.Event) -> None:
        self._consumer.subscribe(
            [self._prefix + topic for topic in self._routes.topics],
            on_assign=self._on_assign,
            on_revoke=self._on_revoke,
        )
        try:
            while not stop.is_set():
                self.moved_at = time.monotonic()
                self._check()
                messages = self._poll()
                if messages:
                    self._consume(messages, stop)
        finally:
            self._consumer.close()  # leaves the group

    def _poll(self) -> list[RawMessage]:
        """Whatever is there now, at once; only an empty topic is waited for."""
        first = self._consumer.poll(0.25)
        if first is None:
            return []
        found: list[RawMessage] = []
        size = 0
        polled: Iterable[Message] = [first]
        while polled:
            for message in polled:
                raw = self._raw(message)
                if raw is not None:
                    found.append(raw)
                    size += len(raw.value)
            if len(found) >= self._fold.limits.max_messages or size >= self._fold.limits.max_bytes:
                break
            polled = self._consumer.consume(10, 0)
        return found

    def _raw(self, message: Message) -> RawMessage | None:
        error = message.error()
        if error is not None:
            if error.code() == KafkaError._PARTITION_EOF:
                return None
            if error.fatal():
                raise Fatal(f"Kafka: {error}")
            _log.warning("kafka", error=str(error))
            return None
        return RawMessage(
            topic=str(message.topic()).removeprefix(self._prefix),
            partition=message.partition() or 0,
            offset=message.offset() or 0,
            timestamp_ms=message.timestamp()[1],
            key=_bytes(message.key()),
            value=_bytes(message.value()) or b"",
            headers=tuple((str(pair[0]), _bytes(pair[1]) or b"") for pair in message.headers() or []),
        )

    def _consume(self, messages: list[RawMessage], stop: threading.Event) -> None:
        attempt = 0
        narrow = False
        while messages:
            try:
                self._refuse_lost_data()
                if self._next_check == 0.0:  # partitions came with these messages, perhaps into a pause
                    messages = self._without_paused(messages)
                if not messages:
                    return
                consumed = self._fold.narrow(messages) if narrow else self._fold.fold(messages)
            except Transient as error:
                attempt += 1
                self.ready = False
                _log.warning("waiting to fold again", error=str(error), attempt=attempt)
                messages = self._wait(messages, backoff_seconds(attempt, self._fold.limits.backoff_max_seconds), stop)
                continue
            except Fatal:
                raise
            except Exception:
                if narrow:
                    raise
                _log.exception("a handler failed; looking for the message", messages=len(messages))
                narrow = True
                continue
            self.ready = True
            self._commit(messages[:consumed])
            if consumed < len(messages):  # the breaker opened: the rest waits where it is
                self._seek(messages[consumed:])
                self._next_check = 0.0
                return
            return

    def _wait(self, messages: list[RawMessage], seconds: float, stop: threading.Event) -> list[RawMessage]:
        """Stay in the group while waiting; what was taken away from us meanwhile is somebody else's."""
        self._lost.clear()
        until = time.monotonic() + seconds
        while time.monotonic() < until and not stop.is_set():
            self.moved_at = time.monotonic()
            self._consumer.pause(self._consumer.assignment())  # all, also what came to us meanwhile
            message = self._consumer.poll(0.2)
            raw = None if message is None else self._raw(message)
            if raw is not None:  # of a partition that came to us within this poll
                messages = [*messages, raw]
        self._consumer.resume(self._consumer.assignment())
        self._paused = False
        self._next_check = 0.0  # an operator's pause is put in place again
        if stop.is_set():
            return []
        return [m for m in messages if (self._prefix + m.topic, m.partition) not in self._lost]

    def _without_paused(self, messages: list[RawMessage]) -> list[RawMessage]:
        """Put back what a pause holds. Raises Transient."""
        self._follow_pause()
        held = [message for message in messages if self._paused and message.topic != self._commands]
        if held:
            self._seek(held)
        return [message for message in messages if message not in held]

    def _commit(self, messages: Sequence[RawMessage]) -> None:
        offsets = [
            TopicPartition(self._prefix + topic, partition, offset)
            for (topic, partition), offset in next_offsets(messages).items()
            if (self._prefix + topic, partition) in self._assigned
        ]
        try:
            if offsets:
                self._consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:
            _log.warning("offsets not committed; the inbox knows what was done", error=str(error))
        crash.reached("fold.after_offsets", len(messages))

    def _seek(self, rest: Sequence[RawMessage]) -> None:
        first: dict[tuple[str, int], int] = {}
        for message in rest:
            place = (message.topic, message.partition)
            first[place] = min(first.get(place, message.offset), message.offset)
        for (topic, partition), offset in first.items():
            self._consumer.seek(TopicPartition(self._prefix + topic, partition, offset))

    def _check(self) -> None:
        """Once a second: compare offsets with the data, follow the table of paused stages, report lag."""
        if time.monotonic() < self._next_check:
            return
        self._next_check = time.monotonic() + 1.0
        try:
            self._refuse_lost_data()
            self._follow_pause()
        except Transient as error:
            self.ready = False
            _log.warning("not ready to consume", error=str(error))
            return
        self.ready = bool(self._assigned) or self._is_spare()
        self._report_lag()

    def _follow_pause(self) -> None:
        paused = bool(self._fold.database.look("SELECT 1 FROM paused WHERE stage = %(stage)s", stage=CONSUME_STAGE))
        if paused != self._paused:
            partitions = [tp for tp in self._consumer.assignment() if tp.topic != self._prefix + self._commands]
            if partitions:
                (self._consumer.pause if paused else self._consumer.resume)(partitions)
            self._paused = paused
            _log.info("consumption paused" if paused else "consumption resumed")

    def _is_spare(self) -> bool:
        """More replicas than partitions: whoever gets none, though the broker answers, is ready to take over."""
        if self.ready or time.monotonic() < self._idle_since + _SPARE_SECONDS:
            return self.ready
        try:
            self._consumer.list_topics(self._prefix + self._routes.topics[0], timeout=1)
        except KafkaException:
            return False
        return True

    def _report_lag(self) -> None:
        for position in self._consumer.position(self._consumer.assignment()):
            _, high = self._consumer.get_watermark_offsets(position, cached=True)
            if high >= 0 and position.offset >= 0:
                labels = (self._group, position.topic, str(position.partition))
                metrics.LAG.labels(*labels).set(high - position.offset)
                metrics.OFFSET.labels(*labels).set(position.offset)

    def _on_assign(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        new = {(tp.topic, tp.partition) for tp in partitions}
        self._assigned |= new
        self._unchecked |= new
        self._paused = False  # new partitions are not: the next check pauses all
        self._next_check = 0.0
        self._count_partitions()

    def _on_revoke(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        gone = {(tp.topic, tp.partition) for tp in partitions}
        self._assigned -= gone
        self._unchecked -= gone
        self._lost |= gone
        self._idle_since = time.monotonic()
        for topic, partition in gone:
            for gauge in (metrics.LAG, metrics.OFFSET):
                gauge.remove_by_labels({"consumergroup": self._group, "topic": topic, "partition": str(partition)})
        self._count_partitions()

    def _count_partitions(self) -> None:
        assigned = Counter(topic for topic, _ in self._assigned)
        for topic in self._routes.topics:
            metrics.PARTITIONS.labels(self._group, self._prefix + topic).set(assigned[self._prefix + topic])

    def _refuse_lost_data(self) -> None:
        """As at the start, of partitions that have come to us since."""
        if not self._unchecked:
            return
        try:
            committed = self._consumer.committed([TopicPartition(*place) for place in sorted(self._unchecked)], timeout=10)
        except KafkaException as error:
            raise Transient(f"Kafka: {error}") from error
        self._guard.compare(committed)
        self._unchecked.clear()


def next_offsets(messages: Sequence[RawMessage]) -> dict[tuple[str, int], int]:
    """(topic, partition) -> the offset after the last of these messages."""
    after: dict[tuple[str, int], int] = {}
    for message in messages:
        place = (message.topic, message.partition)
        after[place] = max(after.get(place, 0), message.offset + 1)
    return after


def _bytes(value: str | bytes | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value
