"""Outbox -> Kafka. One relay is active per service, the others stand by; two at once would only repeat themselves.

Rows go in the order of their ids among those that are committed, and are deleted on their delivery report. There is no
cursor: sequence order is not commit order. A row that the broker will never take stops its key, not the service; whoever
has removed the cause (a missing topic, a limit) restarts the relay, which tries such rows once more.
"""

import threading
from collections.abc import Sequence
from typing import Any

import psycopg2
import sqlalchemy
import zstandard
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from libs.common import crash, metrics
from libs.common.db import Database, Tx, lock_key_text
from libs.common.errors import Transient
from libs.common.log import get
from libs.common.outbox import load_headers

BATCH_ROWS = 500
BATCH_BYTES = 8_000_000
POLL_SECONDS = 0.05  # for rows of other processes; those of our own wake us
IDLE_POLL_SECONDS = 0.25  # where the service runs with us and only its other replicas' rows come so, and none has for a while
DELIVERY_SECONDS = 30
SILENT_SECONDS = DELIVERY_SECONDS + 15  # after which the database ends the session of a process that is frozen, for a replica
MAX_BODY_BYTES = 8_000_000

# Answers of the broker or the client which no repetition changes.
_NEVER = {
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.INVALID_MSG,
    KafkaError.INVALID_RECORD,
    KafkaError.TOPIC_EXCEPTION,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._INVALID_ARG,
}

_log = get("relay")


class Relay:
    """Publishes a service's outbox until `stop` is set; `wake` saves the wait for the next poll. `woken`: whoever commits here
    sets it."""

    def __init__(self, database: Database, producer: Producer, topic_prefix: str, *, woken: bool) -> None:
        self._database = database
        self._producer = producer
        self._prefix = topic_prefix
        self._slowest = IDLE_POLL_SECONDS if woken else POLL_SECONDS
        self.wake = threading.Event()

    def run(self, stop: threading.Event) -> None:
        key = lock_key_text(f"relay/{self._database.service}")
        tried = False
        while not stop.is_set():
            try:
                engine = self._database.engine.execution_options(isolation_level="AUTOCOMMIT")
                with engine.connect() as connection:
                    session = Tx(connection)
                    if not session.one("SELECT pg_try_advisory_lock(%(key)s)", key=key)[0]:
                        stop.wait(1.0)  # another replica's relay is active
                        continue
                    try:
                        session.run(f"SET idle_session_timeout = '{SILENT_SECONDS}s'")
                        if not tried:
                            session.run("UPDATE outbox SET stuck = NULL WHERE stuck IS NOT NULL")
                            tried = True
                        self._drain_until(stop, session)
                    finally:
                        connection.invalidate()  # ends the session and with it the lock, whatever state it is in
            except (sqlalchemy.exc.DBAPIError, sqlalchemy.exc.TimeoutError, psycopg2.Error, Transient) as error:
                _log.warning("relay waits", error=str(error).partition("\n")[0])  # perhaps empty
                stop.wait(1.0)

    def _drain_until(self, stop: threading.Event, session: Tx) -> None:
        while True:
            self.wake.clear()
            last = stop.is_set()  # whatever was committed before the stop still goes out
            published, more = self.publish_once(session)
            if last and not published:
                return
            if not more and not last:
                self._wait(stop, session)

    def _wait(self, stop: threading.Event, session: Tx) -> None:
        """Until there may be something to publish."""
        seconds = POLL_SECONDS
        while not self.wake.wait(seconds) and not stop.is_set():
            if session.rows("SELECT 1 FROM outbox WHERE stuck IS NULL LIMIT 1"):
                return
            seconds = min(seconds * 1.2, self._slowest)

    def publish_once(self, session: Tx) -> tuple[int, bool]:
        """Publish what is there, at most one batch; returns the number of rows that went, and whether there may be more of those
        that were there. All is asked and done on the session which holds the lock, each statement by itself: without the session
        there is no lock."""
        rows = session.rows(
            """SELECT id, topic, key, headers, body FROM (
                   SELECT *, sum(length(body)) OVER (ORDER BY id) AS bytes FROM (
                       SELECT * FROM outbox o WHERE stuck IS NULL AND NOT EXISTS (
                           SELECT 1 FROM outbox s
                           WHERE s.stuck IS NOT NULL AND s.topic = o.topic AND s.key IS NOT DISTINCT FROM o.key)
                       ORDER BY id LIMIT %(rows)s) AS head) AS summed
               WHERE bytes - length(body) < %(bytes)s ORDER BY id""",
            rows=BATCH_ROWS,
            bytes=BATCH_BYTES,
        )
        if not rows:
            return 0, False
        delivered, stuck = self._produce_in_order(rows)
        crash.reached("relay.after_delivery", len(delivered))
        if delivered:
            session.run("DELETE FROM outbox WHERE id = ANY(%(ids)s)", ids=delivered)
        if stuck:
            session.run(
                """UPDATE outbox SET stuck = reason FROM unnest(%(ids)s::bigint[], %(reasons)s::text[]) AS s (stuck_id, reason)
                   WHERE id = stuck_id""",
                ids=list(stuck),
                reasons=list(stuck.values()),
            )
        crash.reached("relay.after_delete", len(delivered))
        metrics.RELAYED.inc(len(delivered))
        if not delivered and not stuck:
            raise Transient(f"the broker acknowledged none of {len(rows)} events")
        size = sum(len(row.body) for row in rows)
        return len(delivered), len(delivered) < len(rows) or len(rows) == BATCH_ROWS or size >= BATCH_BYTES

    def _produce_in_order(self, rows: Sequence[Any]) -> tuple[list[int], dict[int, str]]:
        """Ids which the broker has acknowledged, and those which it will never take, with its reason."""
        delivered, refused = self._produce(rows)
        stuck: dict[int, str] = {}
        stopped: set[tuple[str, bytes | None]] = set()
        # A whole batch is refused for one message in it: one by one, to find out which.
        for row in (row for row in rows if row.id in refused):
            place = (row.topic, _key(row))
            if place in stopped:
                continue
            sent, fault = self._produce([row])
            delivered += sent
            stuck |= fault
            if not sent:
                stopped.add(place)
        for row_id, reason in stuck.items():
            _log.error("event cannot be published; its key is stopped", outbox_id=row_id, error=reason)
        return delivered, stuck

    def _produce(self, rows: Sequence[Any]) -> tuple[list[int], dict[int, str]]:
        delivered: list[int] = []
        refused: dict[int, str] = {}
        failed_keys: set[tuple[str, bytes | None]] = set()

        def on_delivery(row_id: int) -> Any:
            def report(error: KafkaError | None, _message: Message) -> None:
                if error is None:
                    delivered.append(row_id)
                elif error.code() in _NEVER:
                    refused[row_id] = str(error)
                else:
                    _log.warning("event not acknowledged, will be sent again", outbox_id=row_id, error=str(error))

            return report

        for row in rows:
            key = _key(row)
            if (row.topic, key) in failed_keys:
                continue
            try:
                self._producer.produce(
                    self._prefix + row.topic,
                    key=key,
                    value=zstandard.decompress(bytes(row.body), max_output_size=MAX_BODY_BYTES),
                    headers=list[tuple[str, str | bytes | None]](load_headers(row.headers)),
                    on_delivery=on_delivery(row.id),
                )
            except KafkaException as error:
                failed_keys.add((row.topic, key))
                if error.args[0].code() in _NEVER:
                    refused[row.id] = str(error.args[0])
            except BufferError:
                self._producer.flush(DELIVERY_SECONDS)
                break  # the rest goes with the next batch
        crash.reached("relay.after_produce", len(rows))
        self._producer.flush(DELIVERY_SECONDS)
        return delivered, refused


def _key(row: Any) -> bytes | None:
    return None if row.key is None else bytes(row.key)
