"""What to say, written in the transaction which makes it true; the relay publishes it afterwards."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

import zstandard

from libs.common.clock import utc_now
from libs.common.contracts.base import EventData, derived_id
from libs.common.contracts.registry import EVENT_BYTES, topic_of
from libs.common.db import Tx
from libs.common.envelope import Cause, headers_for

WAKE = "relay"


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One event to publish. `id` is derived from what it says, so that a re-run says the same thing again."""

    data: EventData
    key: str
    id: UUID
    cause: Cause | None


def outgoing(data: EventData, key: object, cause: Cause | None, *identity: object) -> Outgoing:
    """An event whose id is derived from its type and `identity` (what makes this fact itself and no other)."""
    return Outgoing(data, str(key), derived_id(data.TYPE, *identity), cause)


class Outbox:
    """Appends a service's events. `source` is the service's CloudEvents source."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._source = f"almoner/{service}"

    def append(self, tx: Tx, events: Sequence[Outgoing], owner: str = "") -> None:
        """One statement for all events. Raises ValueError for an event over the limit: cut smaller chunks. `owner` of the topic is
        another service where that is told to do something."""
        rows = []
        for event in events:
            body = event.data.model_dump_json().encode()
            if len(body) > EVENT_BYTES:
                raise ValueError(f"{event.data.TYPE} of {len(body)} bytes is over the limit of {EVENT_BYTES}")
            headers = headers_for(
                type(event.data), event_id=str(event.id), source=self._source, time=utc_now(), cause=event.cause
            )
            rows.append(
                (
                    topic_of(owner or self._service, type(event.data)),
                    event.key.encode(),
                    dump_headers({name: value.encode() for name, value in headers.items()}),
                    body,
                )
            )
        append_raw(tx, rows)


def append_raw(tx: Tx, rows: Sequence[tuple[str, bytes | None, str, bytes]]) -> None:
    """Append (topic, key, headers, body) as they are: dead letters and what is published again."""
    if not rows:
        return
    compress = zstandard.ZstdCompressor(level=1).compress
    columns = ("topic", "key", "headers", "body")
    tx.copy("outbox", columns, [(topic, key, headers, compress(body)) for topic, key, headers, body in rows])
    tx.wakes.add(WAKE)


def dump_headers(headers: Mapping[str, bytes] | Sequence[tuple[str, bytes]]) -> str:
    """Headers as JSON text which keeps every byte (latin-1 maps bytes to characters one to one)."""
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    return json.dumps([[name, (value or b"").decode("latin-1")] for name, value in pairs])


def load_headers(text: str) -> list[tuple[str, bytes]]:
    return [(name, value.encode("latin-1")) for name, value in json.loads(text)]
