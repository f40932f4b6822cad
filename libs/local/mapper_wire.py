"""The simulated mapper's wire formats: SPAR 1.x `POST /sync/resolve` and SPAR 2.x `POST /mapper/resolve`, over one table of people.

An id it doesn't know is no error: status `succ`, code `succ.fa.not_linked_to_id`, no address and `id` null, so answers can
only be matched by `reference_id`.
"""

import json
import re
import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic_core import to_json

from libs.local import mapper_guard
from libs.local.simulator import Action, Answer, Call, MalformedError, now

SCHEMA = """
CREATE TABLE IF NOT EXISTS people (id TEXT PRIMARY KEY, fa TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS codes (id TEXT PRIMARY KEY, code TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS message_ids (message_id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS settings (
    one INTEGER PRIMARY KEY CHECK (one = 1), max_items INTEGER NOT NULL, refuse_repeated_message_id INTEGER NOT NULL);
INSERT OR IGNORE INTO settings VALUES (1, 1000, 0);
"""
_FIELDS = {
    "BANK_ACCOUNT": ("account_number", "branch_code", "bank_code"),
    "MOBILE_WALLET": ("mobile_number", "wallet_provider_name", "wallet_provider_code"),
    "EMAIL_WALLET": ("email_address", "wallet_provider_name", "wallet_provider_code"),
}
_KEY = r"(account_number|branch_code|bank_code|mobile_number|email_address|wallet_provider_name|wallet_provider_code|fa_type)"
_PAIR = re.compile(rf"(?:^|\.){_KEY}:(.*?)(?=\.{_KEY}:|$)")


@dataclass(frozen=True)
class Request:
    """A request of either format. `head` is its header, `message_id` its own name, `fault` what is wrong with the header."""

    head: dict[str, Any]
    message_id: str
    transaction_id: str
    items: list[dict[str, Any]]
    fault: str | None


@dataclass(frozen=True)
class Format:
    """What the two differ in. `address` writes a stored address; `answer` puts items, or a fault, into an envelope."""

    read: Callable[[Any], Request]
    address: Callable[[str], Any]
    no_address: Any
    answer: Callable[[Request, str | None, list[dict[str, Any]]], Any]
    all_faulty_is_refused: bool  # a request of which every item is faulty is refused as a whole


def count_items(body: Any) -> int:
    """How many people a request asks for, of whatever format."""
    body = body if isinstance(body, dict) else {}
    payload = _object(_object(body, "request_body"), "request_payload") or _object(body, "message")
    requests = payload.get("resolve_request")
    return len(requests) if isinstance(requests, list) else 0


def verb(wire: Format) -> tuple[Action, Action]:
    """(act, refuse): `refuse` is what a fault of that kind makes of it."""

    def act(db: sqlite3.Connection, call: Call) -> Answer:
        rules = mapper_guard.guard(db)
        if not mapper_guard.let_in(db, rules, mapper_guard.bearer(call)):
            return mapper_guard.unauthorised()
        request = wire.read(call.json)
        signed = mapper_guard.well_signed(rules, call)
        fault = (None if signed else "rjct.jwt.invalid") or rules.refuse_with or request.fault or _limit_fault(db, request)
        answer = _refused(wire, request, fault) if fault else _resolved_all(db, wire, request, rules.too_many_from)
        return mapper_guard.sign_answer(rules, answer)

    def refuse(db: sqlite3.Connection, call: Call) -> Answer:
        return _refused(wire, wire.read(call.json), "rjct.internal.error")

    return act, refuse


def _refused(wire: Format, request: Request, fault: str) -> Answer:
    return Answer("rjct", to_json(wire.answer(request, fault, [])))


def _resolved_all(db: sqlite3.Connection, wire: Format, request: Request, too_many_from: int) -> Answer:
    at = now()
    faults = _item_faults(request.items)
    asked = [one["id"] for one, code in zip(request.items, faults, strict=True) if code is None]
    if request.items and not asked and wire.all_faulty_is_refused:
        return _refused(wire, request, "rjct.errors.too_many")
    found = db.cursor()
    found.row_factory = None  # plain tuples
    ids = (json.dumps(asked),)
    known: dict[Any, str] = dict(found.execute("SELECT id, fa FROM people WHERE id IN (SELECT value FROM json_each(?))", ids))
    codes: dict[Any, str] = dict(found.execute("SELECT id, code FROM codes WHERE id IN (SELECT value FROM json_each(?))", ids))
    responses = [
        _rejected(wire, one, code, at)
        if code
        else _resolved(wire, one, known.get(one["id"]), codes.get(one["id"]) if codes else None, at)
        for one, code in zip(request.items, faults, strict=True)
    ]
    if 0 < too_many_from <= sum(one["status"] == "rjct" for one in responses):
        return _refused(wire, request, "rjct.errors.too_many")
    return Answer("succ", to_json(wire.answer(request, None, responses)))


def _limit_fault(db: sqlite3.Connection, request: Request) -> str | None:
    settings = db.execute("SELECT * FROM settings").fetchone()
    if len(request.items) > settings["max_items"]:
        return "rjct.total_count.limit_exceeded"
    if settings["refuse_repeated_message_id"]:
        sql = "INSERT OR IGNORE INTO message_ids VALUES (?)"
        if not db.execute(sql, (request.message_id,)).rowcount:
            return "rjct.message_id.duplicate"
    return None


def _item_faults(requests: Iterable[dict[str, Any]]) -> list[str | None]:
    """A code for each request, None where there is nothing to say against it."""
    seen: set[str] = set()
    faults: list[str | None] = []
    time: Any = object()  # the last good one: nearly always that of all requests
    for one in requests:
        reference_id, person = one.get("reference_id"), one.get("id")
        if not reference_id or not isinstance(reference_id, str):
            fault: str | None = "rjct.reference_id.invalid"
        elif reference_id in seen:
            fault = "rjct.reference_id.duplicate"
        elif (timestamp := one.get("timestamp")) != time and not _is_time(timestamp):
            fault = "rjct.timestamp.invalid"
        elif not person or not isinstance(person, str):
            fault = "rjct.id.invalid"
        elif one.get("scope", "details") not in ("details", "yes_no"):
            fault = "rjct.resolve_type.not_supported"
        else:
            fault = None
            seen.add(reference_id)
            time = timestamp
        faults.append(fault)
    return faults


def _is_time(value: Any) -> bool:
    try:
        datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return False
    return True


def _resolved(wire: Format, one: dict[str, Any], fa: str | None, code: str | None, at: str) -> dict[str, Any]:
    if code is None:
        code = "succ.id.active" if fa else "succ.fa.not_linked_to_id"
    shown = fa if code.endswith(".active") and one.get("scope", "details") == "details" else None
    return {
        "reference_id": one["reference_id"],
        "timestamp": at,
        "fa": wire.address(shown) if shown else one.get("fa") or wire.no_address,
        "id": one["id"] if fa else None,
        "account_provider_info": None,
        "status": code.partition(".")[0],
        "status_reason_code": code,
        "status_reason_message": None if code.endswith(".active") else "ID doesnt exist please link first" if not fa else code,
        "additional_info": None,
        "locale": one.get("locale", "en"),
    }


def _rejected(wire: Format, one: dict[str, Any], code: str, at: str) -> dict[str, Any]:
    return {
        "reference_id": one.get("reference_id"),
        "timestamp": at,
        "fa": one.get("fa") or wire.no_address,
        "id": None,
        "account_provider_info": None,
        "status": "rjct",
        "status_reason_code": code,
        "status_reason_message": code,
        "additional_info": None,
        "locale": one.get("locale", "en"),
    }


def _object(of: dict[str, Any], name: str) -> dict[str, Any]:
    found = of.get(name)
    return found if isinstance(found, dict) else {}


def _payload(of: Any, name: str) -> tuple[str, list[dict[str, Any]]]:
    """(transaction id, requests); what SPAR's own schema would refuse is MalformedError."""
    payload = of if isinstance(of, dict) else {}
    requests = payload.get("resolve_request")
    if not isinstance(payload.get("transaction_id"), str):
        raise MalformedError(f"{name}.transaction_id is missing")
    if not isinstance(requests, list) or not all(isinstance(one, dict) for one in requests):
        raise MalformedError(f"{name}.resolve_request is not a list of objects")
    return payload["transaction_id"], requests


# --- SPAR 1.x -----------------------------------------------------------------------------------------------------------


def _read_1(body: Any) -> Request:
    if not isinstance(body, dict) or not isinstance(body.get("header"), dict):
        raise MalformedError("header is missing")
    header = body["header"]
    transaction_id, items = _payload(body.get("message"), "message")
    if not isinstance(header.get("message_id"), str) or not isinstance(header.get("total_count"), int):
        raise MalformedError("header.message_id or header.total_count is missing")
    return Request(header, header["message_id"], transaction_id, items, _header_fault_1(header, len(items)))


def _header_fault_1(header: dict[str, Any], items: int) -> str | None:
    if header.get("version", "1.0.0") != "1.0.0":
        return "rjct.version.invalid"
    if not _is_time(header.get("message_ts")):
        return "rjct.message_ts.invalid"
    if header.get("action") != "resolve":
        return "rjct.action.not_supported" if header.get("action") else "rjct.action.invalid"
    return "rjct.total_count.invalid" if header["total_count"] != items else None


def _answer_1(request: Request, fault: str | None, responses: list[dict[str, Any]]) -> Any:
    """Rejected as a whole with a code, or answered one by one. HTTP 200 either way."""
    header = {
        "version": "1.0.0",
        "message_id": request.message_id,
        "message_ts": now(),
        "action": request.head.get("action"),
        "status": "rjct" if fault else "succ",
        "status_reason_code": fault,
        "status_reason_message": fault,
        "total_count": len(request.items),
        "completed_count": sum(one["status"] == "succ" for one in responses),
        "sender_id": request.head.get("sender_id"),
        "receiver_id": request.head.get("receiver_id"),
        "is_msg_encrypted": False,
        "meta": {},
    }
    message = {"transaction_id": request.transaction_id, "correlation_id": None, "resolve_response": responses}
    return {"signature": None, "header": header, "message": {} if fault else message}


SPAR_1 = Format(_read_1, lambda fa: fa, "", _answer_1, all_faulty_is_refused=True)


# --- SPAR 2.x -----------------------------------------------------------------------------------------------------------


def _read_2(body: Any) -> Request:
    if not isinstance(body, dict) or not isinstance(body.get("request_header"), dict):
        raise MalformedError("request_header is missing")
    header = body["request_header"]
    transaction_id, items = _payload(_object(body, "request_body").get("request_payload"), "request_payload")
    if not all(isinstance(header.get(name), str) for name in ("request_id", "sender_app_mnemonic", "sender_app_url")):
        raise MalformedError("request_header.request_id or sender is missing")
    fault = None if _is_time(header.get("request_timestamp")) else "rjct.message_ts.invalid"
    return Request(header, header["request_id"], transaction_id, items, fault)


def _answer_2(request: Request, fault: str | None, responses: list[dict[str, Any]]) -> Any:
    header = {
        "request_id": request.message_id,
        "response_status": "ERROR" if fault else "SUCCESS",
        "response_error_code": fault,
        "response_error_message": fault,
        "response_timestamp": now(),
    }
    payload = {"transaction_id": request.transaction_id, "correlation_id": None, "resolve_response": responses}
    return {"response_header": header, "response_body": {"pagination_response": None, "response_payload": payload}}


def _address_2(text: str) -> dict[str, Any]:
    """A stored address as an object; a bank account's type is called BANK there."""
    pairs = {key: value for key, value, _ in _PAIR.findall(text)}
    kind = pairs.get("fa_type", "")
    address: dict[str, Any] = {name: pairs.get(name) for name in _FIELDS.get(kind, ())}
    if kind == "BANK_ACCOUNT":
        address |= {"bank_name": f"Bank {pairs.get('bank_code')}", "branch_name": f"Branch {pairs.get('branch_code')}"}
    return {**address, "fa_type": "BANK" if kind == "BANK_ACCOUNT" else kind, "strategy_id": 1}


SPAR_2 = Format(_read_2, _address_2, None, _answer_2, all_faulty_is_refused=False)
