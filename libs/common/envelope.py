"""CloudEvents 1.0 over Kafka: binary mode out, binary or structured in.

Source: cloudevents.io, Kafka protocol binding 1.0.2; `correlationid` and `causationid` are extension attributes of ours,
`traceparent` is W3C Trace Context.
"""

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic, TypeVar

from pydantic import ValidationError

from libs.common.contracts.base import EventData
from libs.common.errors import Malformed

D = TypeVar("D", bound=EventData)
STRUCTURED = "application/cloudevents+json"


@dataclass(frozen=True, slots=True)
class RawMessage:
    """What was polled, byte for byte."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes], ...]

    @property
    def digest(self) -> bytes:
        """Tells the same content from other content under the same id; headers which change on the way don't count."""
        return hashlib.blake2b(self.value, digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class Attributes:
    """The context attributes of one event; `data` is its undecoded JSON."""

    id: str
    source: str
    type: str
    time: datetime | None
    correlation_id: str | None
    traceparent: str | None
    data: bytes


@dataclass(frozen=True, slots=True)
class Event(Generic[D]):
    """A received event, validated."""

    id: str
    source: str
    type: str
    time: datetime | None
    correlation_id: str | None
    traceparent: str | None
    data: D
    raw: RawMessage


@dataclass(frozen=True, slots=True)
class Cause:
    """Whatever made us act; emitted events refer to it."""

    id: str
    correlation_id: str | None = None
    traceparent: str | None = None


def attributes(message: RawMessage) -> Attributes:
    """Read an event's context attributes, binary or structured. Raises Malformed, naming the attribute at fault."""
    headers = _texts(message.headers)
    if headers.get("content-type", "").startswith(STRUCTURED):
        return _structured(message.value)
    required = {name: headers.get(f"ce_{name}", "") for name in ("specversion", "id", "source", "type")}
    _check(required)
    return Attributes(
        required["id"],
        required["source"],
        required["type"],
        _time(headers.get("ce_time")),
        _optional(headers.get("ce_correlationid")),
        _optional(headers.get("ce_traceparent") or headers.get("traceparent")),
        message.value,
    )


def decode(message: RawMessage, attrs: Attributes, model: type[D]) -> Event[D]:
    """Validate an event's data. Raises Malformed with a JSON pointer to the first fault."""
    try:
        data = model.model_validate_json(attrs.data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise Malformed("INVALID_DATA", first["msg"], pointer(first["loc"])) from None
    return Event(attrs.id, attrs.source, attrs.type, attrs.time, attrs.correlation_id, attrs.traceparent, data, message)


def pointer(loc: Sequence[str | int]) -> str:
    """A JSON pointer (RFC 6901) from pydantic's location."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in loc)


def headers_for(model: type[EventData], *, event_id: str, source: str, time: datetime, cause: Cause | None) -> dict[str, str]:
    """The Kafka headers of an event of ours, in binary mode."""
    headers = {
        "ce_specversion": "1.0",
        "ce_id": event_id,
        "ce_source": source,
        "ce_type": model.TYPE,
        "ce_time": time.astimezone(UTC).isoformat().replace("+00:00", "Z"),
        "content-type": "application/json",
    }
    if cause is not None:
        headers["ce_causationid"] = cause.id
        if cause.correlation_id:
            headers["ce_correlationid"] = cause.correlation_id
    headers["ce_traceparent"] = next_traceparent(cause.traceparent if cause else None)
    return headers


def next_traceparent(parent: str | None) -> str:
    """The same trace with a new span; a new trace if the parent is missing or is no traceparent."""
    parts = (parent or "").split("-")
    valid = len(parts) >= 4 and len(parts[0]) == 2 and len(parts[1]) == 32 and parts[1].strip("0") and _hex(parts[1])
    trace, flags = (parts[1], parts[3]) if valid else (secrets.token_hex(16), "01")
    return f"00-{trace}-{secrets.token_hex(8)}-{flags}"


def cause_of(event: Event[D]) -> Cause:
    return Cause(event.id, event.correlation_id, event.traceparent)


def _structured(value: bytes) -> Attributes:
    try:
        document = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise Malformed("INVALID_JSON", str(error)) from None
    if not isinstance(document, dict):
        raise Malformed("INVALID_CLOUDEVENT", "a structured event is a JSON object")
    text = {name: item for name, item in document.items() if isinstance(item, str)}
    required = {name: text.get(name, "") for name in ("specversion", "id", "source", "type")}
    _check(required)
    return Attributes(
        required["id"],
        required["source"],
        required["type"],
        _time(text.get("time")),
        _optional(text.get("correlationid")),
        _optional(text.get("traceparent")),
        json.dumps(document.get("data")).encode(),
    )


def _check(required: Mapping[str, str]) -> None:
    for name, value in required.items():
        if not value:
            raise Malformed("INVALID_CLOUDEVENT", f"the attribute {name} is missing", f"/{name}")
        if not _is_plain(value):
            raise Malformed("INVALID_CLOUDEVENT", f"the attribute {name} is not printable text of up to 500 bytes", f"/{name}")
    if not required["specversion"].startswith("1."):
        raise Malformed("INVALID_CLOUDEVENT", f"specversion {required['specversion']} is not 1.0", "/specversion")


def _is_plain(text: str) -> bool:
    """Fit for a database's text and for its index; in that order, since what can't be printed may not be encodable."""
    return text.isprintable() and len(text.encode()) <= 500


def _optional(text: str | None) -> str | None:
    """An attribute without which the event is as good: dropped where it makes no sense."""
    return text if text and _is_plain(text) else None


def _texts(headers: Sequence[tuple[str, bytes | None]]) -> dict[str, str]:
    return {name.lower(): value.decode("utf-8", "replace") for name, value in headers if value is not None}


def _time(text: str | None) -> datetime | None:
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise Malformed("INVALID_CLOUDEVENT", "time is not an RFC 3339 time stamp", "/time") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _hex(text: str) -> bool:
    try:
        int(text, 16)
    except ValueError:
        return False
    return True
