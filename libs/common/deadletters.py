"""Messages set aside, byte for byte, and their way back. A dead letter leaves no inbox row, so that a redrive works."""

from collections.abc import Sequence

from libs.common import metrics
from libs.common.db import Tx
from libs.common.envelope import RawMessage, attributes
from libs.common.errors import Malformed
from libs.common.log import get
from libs.common.outbox import append_raw, dump_headers, load_headers

_OURS = "__dlq."
_ORIGINAL = "kafka_dlt-original-topic"
REDRIVE = "almoner-redrive"  # header of a message published again: the id of its dead letter

_log = get("deadletters")


def set_aside(tx: Tx, service: str, message: RawMessage, code: str, text: str, deliveries: int = 1) -> None:
    """Store a message as a dead letter and publish it on `<service>.dlq.v1`, with the headers of KIP-1191."""
    stored = tx.rows(
        """INSERT INTO dead_letters (topic, partition, message_offset, key, value, headers, timestamp_ms, code, message,
                                     deliveries, correlation_id)
           VALUES (%(topic)s, %(partition)s, %(offset)s, %(key)s, %(value)s, %(headers)s, %(timestamp_ms)s, %(code)s,
                   %(message)s, %(deliveries)s, %(correlation_id)s)
           ON CONFLICT (topic, partition, message_offset) DO NOTHING RETURNING id""",
        topic=message.topic,
        partition=message.partition,
        offset=message.offset,
        key=message.key,
        value=message.value,
        headers=dump_headers(message.headers),
        timestamp_ms=message.timestamp_ms,
        code=code,
        message=text[:500].replace("\x00", "�"),
        deliveries=deliveries,
        correlation_id=correlation_id(message),
    )
    if not stored:
        return
    why = {
        "__dlq.errors.topic": message.topic,
        "__dlq.errors.partition": str(message.partition),
        "__dlq.errors.offset": str(message.offset),
        "__dlq.errors.group": f"almoner-{service}",
        "__dlq.errors.delivery.count": str(deliveries),
        "__dlq.errors.message": code,  # no personal data, no stack trace: the text stays in the database
        _ORIGINAL: message.topic,
    }
    headers = [*message.headers, *((name, value.encode()) for name, value in why.items())]
    append_raw(tx, [(f"{service}.dlq.v1", message.key, dump_headers(headers), message.value)])
    metrics.DEAD_LETTERS.labels(message.topic, code).inc()
    _log.error("dead letter", topic=message.topic, partition=message.partition, offset=message.offset, code=code)


def redrive(tx: Tx, ids: Sequence[int]) -> int:
    """Publish open dead letters again on their topics, as they were; all of them if `ids` is empty. Returns how many."""
    rows = tx.rows(
        """UPDATE dead_letters SET state = 'REDRIVEN'
           WHERE state = 'OPEN' AND (cardinality(%(ids)s::bigint[]) = 0 OR id = ANY(%(ids)s::bigint[]))
           RETURNING id, topic, key, headers, value""",
        ids=list(ids),
    )
    again = []
    for row in rows:
        headers = [pair for pair in load_headers(row.headers) if not pair[0].startswith((_OURS, _ORIGINAL, REDRIVE))]
        headers.append((REDRIVE, str(row.id).encode()))
        key = bytes(row.key) if row.key is not None else None
        again.append((row.topic, key, dump_headers(headers), bytes(row.value)))
    append_raw(tx, again)
    return len(rows)


def close_redriven(tx: Tx, messages: Sequence[RawMessage]) -> None:
    """The letters whose redrive is among these messages are handled now; nothing is held back for them any more."""
    # Anybody may send any header: what counts is a number which names a letter of this very topic.
    found = [
        (int(value), message.topic)
        for message in messages
        for name, value in message.headers
        if name == REDRIVE and value.isdigit() and len(value) <= 18
    ]
    if found:
        tx.run(
            """UPDATE dead_letters d SET state = 'HANDLED' FROM unnest(%(ids)s::bigint[], %(topics)s::text[]) AS r (id, topic)
               WHERE d.state = 'REDRIVEN' AND d.id = r.id AND d.topic = r.topic""",
            ids=[letter for letter, _ in found],
            topics=[topic for _, topic in found],
        )


def correlation_id(message: RawMessage) -> str | None:
    try:
        return attributes(message).correlation_id
    except Malformed:
        return None


def discard(tx: Tx, ids: Sequence[int]) -> int:
    """Give open dead letters up, for good. Returns how many."""
    return tx.run(
        "UPDATE dead_letters SET state = 'DISCARDED' WHERE state IN ('OPEN', 'REDRIVEN') AND id = ANY(%(ids)s)", ids=list(ids)
    )
