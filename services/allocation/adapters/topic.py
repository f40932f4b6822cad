"""Warehouses and agencies as messages on compacted topics: the key names one, the value says all about it, an empty one removes it."""

from collections.abc import Mapping, Sequence

from pydantic import TypeAdapter, ValidationError

from libs.common.contracts.base import PublisherId
from libs.common.contracts.reference import AgencyListed, Listed, ReferenceFault, WarehouseListed
from libs.common.contracts.registry import EVENT_BYTES
from libs.common.envelope import RawMessage, attributes, pointer
from libs.common.errors import Malformed
from services.allocation.domain import AGENCY, WAREHOUSE
from services.allocation.ports import Listing, Serving

_KINDS: Mapping[str, tuple[str, type[Listed]]] = {
    "reference.warehouses.v1": (WAREHOUSE, WarehouseListed),
    "reference.agencies.v1": (AGENCY, AgencyListed),
}
_MAX_FAULTS = 100
_ID = TypeAdapter(PublisherId)


def read(message: RawMessage) -> Listing | Sequence[ReferenceFault]:
    """What the message says of a place. Faults never repeat what was sent: it may be personal."""
    kind, model = _KINDS[message.topic]
    try:
        key = _ID.validate_python((message.key or b"").decode())
    except (ValidationError, UnicodeDecodeError):
        return [_fault("INVALID_KEY", "", "the key is the place's id: 1 to 64 printable characters")]
    if not message.value:
        return Listing(kind, key)
    if len(message.value) > EVENT_BYTES:
        return [_fault("EVENT_TOO_LARGE", "", f"{len(message.value)} bytes; an event has at most {EVENT_BYTES}")]
    try:
        attrs = attributes(message)
    except Malformed as error:
        return [_fault(error.code, error.pointer, error.message)]
    except RecursionError:
        return [_fault("INVALID_JSON", "", "nested too deeply")]
    if attrs.type != model.TYPE:
        return [_fault("UNKNOWN_TYPE", "", f"on {message.topic} only {model.TYPE} is read")]
    try:
        data = model.model_validate_json(attrs.data)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)[:_MAX_FAULTS]
        return [_fault("INVALID_DATA", pointer(one["loc"]), one["msg"]) for one in found]
    if data.id != key:
        return [_fault("KEY_DIFFERS", "/id", "the message's key names another place than its data")]
    return listing(kind, data)


def listing(kind: str, data: Listed) -> Listing | Sequence[ReferenceFault]:
    """A place in the domain's words."""
    seen: set[tuple[str, str]] = set()
    account = None
    if isinstance(data, AgencyListed) and data.account is not None:
        account = data.account.model_dump()
    for number, one in enumerate(data.serves):
        if (one.programme_id, one.benefit_code_id) in seen:
            return [_fault("SERVED_TWICE", f"/serves/{number}", "a programme's benefit code is named once")]
        seen.add((one.programme_id, one.benefit_code_id))
    zones = data.large_zone_ids if isinstance(data, WarehouseListed) else getattr(data, "small_zone_ids", [])
    return Listing(
        kind=kind,
        id=data.id,
        mnemonic=data.mnemonic,
        name=data.name,
        contact={"admin_name": data.admin_name, "admin_email": data.admin_email, "admin_mobile": data.admin_mobile},
        zone_ids=sorted(set(zones)),
        serves=[
            Serving(one.programme_id, one.benefit_code_id, capacity_minor=one.capacity_minor, account=account)
            for one in data.serves
        ],
    )


def _fault(code: str, where: str, text: str) -> ReferenceFault:
    return ReferenceFault(code=code, pointer=where[:500], message=text[:500])
