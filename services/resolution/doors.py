"""The door of `reference.people.v1`: other systems say where the people of a registry live, and a copy of it is kept here.

Whatever comes is taken or answered to its publisher; nothing of it stops us. The key says whom a message concerns, the last
message of a key counts, and an empty one removes. Kafka keeps the order of a key; what comes again changes nothing.
"""

import asyncio
from collections.abc import Mapping, Sequence

from pydantic import TypeAdapter, ValidationError

from libs.common.contracts.base import PublisherId
from libs.common.contracts.reference import PersonLocated, ReferenceFault, ReferenceRejected
from libs.common.contracts.registry import EVENT_BYTES
from libs.common.db import Database, Tx
from libs.common.envelope import Cause, RawMessage, attributes, pointer
from libs.common.errors import Malformed, Transient
from libs.common.log import get
from libs.common.outbox import Outbox, Outgoing, outgoing
from libs.common.workqueue import Claim, NotSent
from services.resolution import store
from services.resolution.domain import Home

_MAX_FAULTS = 100
_KEY = "the key is <registry>/<beneficiary id>; a registry's name has no slash"
_PUBLISHER_ID: TypeAdapter[str] = TypeAdapter(PublisherId)

_log = get("people")


class Rejected(Exception):
    def __init__(self, *faults: ReferenceFault) -> None:
        super().__init__(faults[0].code)
        self.faults = faults


class People:
    """The door, and a `ports.Registry` of what came through it."""

    def __init__(self, database: Database, outbox: Outbox) -> None:
        self._database = database
        self._outbox = outbox

    def receive(self, tx: Tx, messages: Sequence[RawMessage]) -> None:
        """Never raises for what others publish. A constant number of statements."""
        said: dict[tuple[str, str], store.Said] = {}
        answers: list[Outgoing] = []
        for message in messages:
            try:
                person, home = read(message)
                said[person] = store.Said(home, message.timestamp_ms, message.offset)
            except Rejected as rejected:
                answers.append(_rejection(message, rejected.faults))
        store.put_people(tx, said)
        self._outbox.append(tx, answers)
        if answers:
            _log.warning("not taken", messages=len(answers), topic=messages[0].topic)

    async def locate(self, _claim: Claim, registry: str, people: Sequence[str]) -> Mapping[str, Sequence[Home]] | NotSent:
        return await asyncio.to_thread(self._find, registry, people)

    def _find(self, registry: str, people: Sequence[str]) -> Mapping[str, Sequence[Home]] | NotSent:
        try:
            with self._database.transaction() as tx:
                return store.people(tx, registry, people)
        except Transient as error:
            return NotSent("NOT_REACHED", str(error))


def read(message: RawMessage) -> tuple[tuple[str, str], Home | None]:
    """(registry, beneficiary id) and where this person lives; None: to be removed. Raises Rejected."""
    person = _person(message.key)
    if not message.value:
        return person, None
    if len(message.value) > EVENT_BYTES:
        raise Rejected(_fault("EVENT_TOO_LARGE", f"an event has at most {EVENT_BYTES} bytes"))
    try:
        attrs = attributes(message)
    except Malformed as error:
        raise Rejected(_fault(error.code, error.message, error.pointer)) from None
    except RecursionError:
        raise Rejected(_fault("INVALID_JSON", "nested too deeply")) from None
    if attrs.type != PersonLocated.TYPE:
        raise Rejected(_fault("UNKNOWN_TYPE", f"send {PersonLocated.TYPE}, or an empty value to remove a person"))
    try:
        data = PersonLocated.model_validate_json(attrs.data)
    except ValidationError as error:
        raise Rejected(*_shape_faults(error)) from None
    if (data.target_registry, data.beneficiary_id) != person:
        raise Rejected(_fault("KEY_MISMATCH", f"the key names somebody else; {_KEY}"))
    return person, Home(data.large_zone_id, data.large_zone_code, data.small_zone_id, data.small_zone_code)


def _person(key: bytes | None) -> tuple[str, str]:
    try:
        registry, slash, beneficiary_id = (key or b"").decode().partition("/")
        _PUBLISHER_ID.validate_python(beneficiary_id)
    except (UnicodeDecodeError, ValidationError):
        slash = ""
    if not slash or "\x00" in registry or len(registry) > 200:
        raise Rejected(_fault("INVALID_KEY", _KEY))
    return registry, beneficiary_id


def _shape_faults(error: ValidationError) -> list[ReferenceFault]:
    """What is wrong, never the value itself."""
    return [
        _fault("INVALID_JSON" if one["type"] == "json_invalid" else "INVALID_DATA", one["msg"], pointer(one["loc"]))
        for one in error.errors(include_url=False, include_input=False, include_context=False)[:_MAX_FAULTS]
    ]


def _fault(code: str, message: str, at: str = "") -> ReferenceFault:
    return ReferenceFault(code=code, pointer=at, message=message[:500])


def _rejection(message: RawMessage, faults: Sequence[ReferenceFault]) -> Outgoing:
    """Said by the message's place: delivered again, it is answered with the same id."""
    place = (message.topic, message.partition, message.offset)
    key = (message.key or b"").decode(errors="replace")[:300]
    answer = ReferenceRejected(topic=place[0], partition=place[1], offset=place[2], key=key, errors=list(faults))
    return outgoing(answer, key, Cause("/".join(map(str, place))), *place)
