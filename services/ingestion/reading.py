"""What others published, read without ever raising: whatever it is, it becomes a submission with its faults."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import UUID

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from libs.common.clock import local_date
from libs.common.contracts.base import EventData, PublisherId, envelope_uuid
from libs.common.contracts.ingestion import EnvelopeAmendmentRequested, EnvelopeSubmitted, StatementSubmitted
from libs.common.contracts.registry import EVENT_BYTES
from libs.common.envelope import Attributes, RawMessage, attributes, pointer
from libs.common.errors import Malformed
from services.ingestion.domain import (
    ADVICE,
    AMENDABLE,
    MAX_FAULTS,
    Fault,
    Publishers,
    envelope_faults,
    field_code,
    nothing_amended,
)

# Of the id and of the source: together they are a key, and the answer repeats them.
NAME_CHARACTERS = 200

_CLOUDEVENT = "send a CloudEvent 1.0 in binary or structured mode"
_PUBLISHER_ID: TypeAdapter[str] = TypeAdapter(PublisherId)


@dataclass(frozen=True, slots=True)
class Submission:
    """One message at a door. Without an id (`named` is false) it can be answered by its place only."""

    message: RawMessage
    source: str
    id: str
    type: str
    digest: bytes
    data: EventData | None  # None where there are faults
    faults: Sequence[Fault]
    envelope_id: UUID | None
    publisher_envelope_id: str | None
    received_at: datetime
    traceparent: str | None

    @property
    def named(self) -> bool:
        return bool(self.id)

    @property
    def allowed(self) -> bool:
        """Whether its source may publish it."""
        return all(fault.code != "INVALID_SOURCE" for fault in self.faults)

    @property
    def key(self) -> tuple[str, str]:
        return self.source, self.id


class Reader:
    """Envelopes without a time zone get the default one."""

    def __init__(self, publishers: Publishers, default_time_zone: str, days_ahead: int) -> None:
        self._publishers = publishers
        self._default_time_zone = default_time_zone
        self._days_ahead = days_ahead

    def read(self, message: RawMessage, models: Mapping[str, type[EventData]], now: datetime) -> Submission:
        """`models` are the types of a door by their names."""
        received_at = _received_at(message, now)
        try:
            attrs = attributes(message)
        except Malformed as error:
            return self._unreadable(message, received_at, Fault(error.code, error.pointer, f"{error.message}; {_CLOUDEVENT}"))
        except RecursionError:
            return self._unreadable(message, received_at, Fault("INVALID_JSON", "", f"nested too deeply; {_CLOUDEVENT}"))
        if len(attrs.id) > NAME_CHARACTERS or len(attrs.source) > NAME_CHARACTERS:
            text = f"id and source have at most {NAME_CHARACTERS} characters; send shorter ones"
            return self._unreadable(message, received_at, Fault("INVALID_CLOUDEVENT", "", text))
        stranger = self._publishers.refusal(attrs.source)
        data, faults, publisher_envelope_id = (
            (None, [stranger], None) if stranger else self._data(attrs, message, models, received_at)
        )
        return Submission(
            message,
            attrs.source,
            attrs.id,
            attrs.type,
            hashlib.blake2b(attrs.type.encode() + b"\x00" + attrs.data, digest_size=16).digest(),
            data,
            faults,
            envelope_uuid(attrs.source, publisher_envelope_id) if publisher_envelope_id else None,
            publisher_envelope_id,
            received_at,
            attrs.traceparent
            if attrs.traceparent and len(attrs.traceparent) == 55 and attrs.traceparent.isprintable()
            else None,
        )

    def _data(
        self, attrs: Attributes, message: RawMessage, models: Mapping[str, type[EventData]], received_at: datetime
    ) -> tuple[EventData | None, Sequence[Fault], str | None]:
        """The data or its faults, and the publisher's envelope id as far as it can be read."""
        if len(message.value) > EVENT_BYTES:
            text = f"{len(message.value)} bytes; an event has at most {EVENT_BYTES}: send smaller chunks, statements by HTTP"
            return None, [Fault("EVENT_TOO_LARGE", "", text)], None
        model = models.get(attrs.type)
        if model is None:
            known = ", ".join(sorted(models))
            return None, [Fault("UNKNOWN_TYPE", "", f"{attrs.type} is not read on {message.topic}; send one of {known}")], None
        try:
            data = model.model_validate_json(attrs.data)
            faults: list[Fault] = []
        except ValidationError as error:
            data, faults = None, shape_faults(error)
        # Most events have no faults, and are not parsed a second time.
        fields = data.__dict__ if data is not None else _fields(attrs.data)
        if model is EnvelopeSubmitted:
            if isinstance(data, EnvelopeSubmitted):
                fields = {**data.model_dump(exclude_unset=True), "envelope_id": data.envelope_id}
            faults += self._programme_faults(attrs.source, fields)
            today = partial(local_date, received_at)
            faults += envelope_faults(fields, self._default_time_zone, today, self._days_ahead)
        elif model is StatementSubmitted:
            refusal = self._publishers.statement_refusal(attrs.source)
            faults += [refusal] if refusal else []
        elif isinstance(data, EnvelopeAmendmentRequested) and all(fields[name] is None for name in AMENDABLE):
            faults.append(nothing_amended())
        envelope_id = fields.get("envelope_id")
        if data is None:
            envelope_id = _publisher_id(envelope_id)
        return None if faults else data, faults[:MAX_FAULTS], envelope_id

    def _programme_faults(self, source: str, fields: Mapping[str, Any]) -> list[Fault]:
        programme = fields.get("programme")
        programme_id = _publisher_id(programme.get("id")) if isinstance(programme, Mapping) else None
        refusal = self._publishers.refusal(source, programme_id, "/programme/id") if programme_id else None
        return [refusal] if refusal else []

    def _unreadable(self, message: RawMessage, received_at: datetime, fault: Fault) -> Submission:
        """Named by the headers, where they at least have a usable name."""
        headers = {name.lower(): value.decode("utf-8", "replace") for name, value in message.headers}
        source, event_id = headers.get("ce_source", ""), headers.get("ce_id", "")
        usable = all(0 < len(text) <= NAME_CHARACTERS and text.isprintable() for text in (source, event_id))
        return Submission(
            message,
            source if usable else "",
            event_id if usable else "",
            "",
            message.digest,
            None,
            [fault],
            None,
            None,
            received_at,
            None,
        )


def shape_faults(error: ValidationError) -> list[Fault]:
    """The faults that the model found, with our codes and what to do; never the faulty value itself."""
    faults = []
    for fault in error.errors(include_url=False, include_input=False, include_context=False)[:MAX_FAULTS]:
        loc, message = fault["loc"], fault["msg"]
        if fault["type"] == "json_invalid":
            faults.append(Fault("INVALID_JSON", "", f"{message}; send the data as a JSON object"))
        elif not loc and fault["type"] == "value_error":  # only the control totals look at more than one field
            text = f"{message.removeprefix('Value error, ')}; send what the items come to"
            faults.append(Fault("INVALID_CONTROL_TOTALS", "", text))
        else:
            code = field_code(loc)
            faults.append(Fault(code, pointer(loc), f"{message}; {ADVICE[code]}"))
    return faults


def _fields(data: bytes) -> Mapping[str, Any]:
    try:
        fields = from_json(data)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def _publisher_id(value: object) -> str | None:
    try:
        return _PUBLISHER_ID.validate_python(value, strict=True)
    except ValidationError:
        return None


def _received_at(message: RawMessage, now: datetime) -> datetime:
    """When the broker took it: being slow to read must not turn a good date into a past one."""
    try:
        moment = datetime.fromtimestamp(message.timestamp_ms / 1000, UTC)
    except (OverflowError, OSError, ValueError):
        return now
    return min(moment, now) if message.timestamp_ms > 0 else now
