"""Simulated mapper: `python -m libs.local.mapper --data DIR --port N`.

SPAR 1.x (G2P Connect) `POST /sync/resolve` over a table of people. An id it doesn't know is no error: status `succ`,
code `succ.fa.not_linked_to_id`, `fa` empty and `id` null, so answers can only be matched by `reference_id`.
"""

import json
import sqlite3
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field
from pydantic_core import from_json, to_json
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from libs.local.simulator import (
    Answer,
    Call,
    MalformedError,
    Simulator,
    Store,
    application,
    json_response,
    main,
    now,
    rows,
)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS people (id TEXT PRIMARY KEY, fa TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS message_ids (message_id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS settings (
    one INTEGER PRIMARY KEY CHECK (one = 1), max_items INTEGER NOT NULL, refuse_repeated_message_id INTEGER NOT NULL);
INSERT OR IGNORE INTO settings VALUES (1, 1000, 0);
"""
_UPSERT_ROWS = 10_000


class Settings(BaseModel):
    """`refuse_repeated_message_id`: whether a message id is good for one request only."""

    max_items: int = Field(default=1000, ge=1)
    refuse_repeated_message_id: bool = False


def count_items(body: Any) -> int:
    message = body.get("message") if isinstance(body, dict) else None
    requests = message.get("resolve_request") if isinstance(message, dict) else None
    return len(requests) if isinstance(requests, list) else 0


def resolve(db: sqlite3.Connection, call: Call) -> Answer:
    header, transaction_id, requests = _taken_apart(call.json)
    fault = _header_fault(db, header, len(requests))
    if fault:
        return _answer(header, len(requests), fault, {})
    at = now()
    faults = _item_faults(requests)
    asked = [one["id"] for one, code in zip(requests, faults, strict=True) if code is None]
    found = db.cursor()
    found.row_factory = None  # plain tuples
    sql = "SELECT id, fa FROM people WHERE id IN (SELECT value FROM json_each(?))"
    known: dict[Any, str] = dict(found.execute(sql, (json.dumps(asked),)))
    responses = [
        _rejected(one, code, at) if code else _resolved(one, known.get(one["id"]), at)
        for one, code in zip(requests, faults, strict=True)
    ]
    if requests and not asked:
        return _answer(header, len(requests), "rjct.errors.too_many", {})
    message = {"transaction_id": transaction_id, "correlation_id": None, "resolve_response": responses}
    return _answer(header, len(requests), None, message, completed_count=len(asked))


def refuse(db: sqlite3.Connection, call: Call) -> Answer:
    header, _, requests = _taken_apart(call.json)
    return _answer(header, len(requests), "rjct.errors.too_many", {})


def _taken_apart(body: Any) -> tuple[dict[str, Any], Any, list[dict[str, Any]]]:
    """(header, transaction id, requests); what SPAR's own schema would refuse is MalformedError."""
    if not isinstance(body, dict) or not isinstance(body.get("header"), dict):
        raise MalformedError("header is missing")
    header, message = body["header"], body.get("message")
    if not isinstance(message, dict) or not isinstance(message.get("transaction_id"), str):
        raise MalformedError("message.transaction_id is missing")
    requests = message.get("resolve_request")
    if not isinstance(requests, list) or not all(isinstance(one, dict) for one in requests):
        raise MalformedError("message.resolve_request is not a list of objects")
    if not isinstance(header.get("message_id"), str) or not isinstance(header.get("total_count"), int):
        raise MalformedError("header.message_id or header.total_count is missing")
    return header, message["transaction_id"], requests


def _header_fault(db: sqlite3.Connection, header: dict[str, Any], items: int) -> str | None:
    settings = db.execute("SELECT * FROM settings").fetchone()
    if header.get("version", "1.0.0") != "1.0.0":
        return "rjct.version.invalid"
    if not _is_time(header.get("message_ts")):
        return "rjct.message_ts.invalid"
    if header.get("action") != "resolve":
        return "rjct.action.not_supported" if header.get("action") else "rjct.action.invalid"
    if header["total_count"] != items:
        return "rjct.total_count.invalid"
    if items > settings["max_items"]:
        return "rjct.total_count.limit_exceeded"
    if settings["refuse_repeated_message_id"]:
        sql = "INSERT OR IGNORE INTO message_ids VALUES (?)"
        if not db.execute(sql, (header["message_id"],)).rowcount:
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


def _resolved(one: dict[str, Any], fa: str | None, at: str) -> dict[str, Any]:
    asked_details = one.get("scope", "details") == "details"
    return {
        "reference_id": one["reference_id"],
        "timestamp": at,
        "fa": fa if fa and asked_details else one.get("fa") or "",
        "id": one["id"] if fa else None,
        "account_provider_info": None,
        "status": "succ",
        "status_reason_code": "succ.id.active" if fa else "succ.fa.not_linked_to_id",
        "status_reason_message": None if fa else "ID doesnt exist please link first",
        "additional_info": None,
        "locale": one.get("locale", "en"),
    }


def _rejected(one: dict[str, Any], code: str, at: str) -> dict[str, Any]:
    return {
        "reference_id": one.get("reference_id"),
        "timestamp": at,
        "fa": one.get("fa") or "",
        "id": None,
        "account_provider_info": None,
        "status": "rjct",
        "status_reason_code": code,
        "status_reason_message": code,
        "additional_info": None,
        "locale": one.get("locale", "en"),
    }


def _answer(
    header: dict[str, Any], total_count: int, fault: str | None, message: dict[str, Any], completed_count: int = 0
) -> Answer:
    """Rejected as a whole with a code, or answered one by one. HTTP 200 either way."""
    status = "rjct" if fault else "succ"
    answered = {
        "version": "1.0.0",
        "message_id": header["message_id"],
        "message_ts": now(),
        "action": header.get("action"),
        "status": status,
        "status_reason_code": fault,
        "status_reason_message": fault,
        "total_count": total_count,
        "completed_count": completed_count,
        "sender_id": header.get("sender_id"),
        "receiver_id": header.get("receiver_id"),
        "is_msg_encrypted": False,
        "meta": {},
    }
    return Answer(status, to_json({"signature": None, "header": answered, "message": message}))


class Mapper:
    """The application: the verb, and the admin's API for people and settings."""

    def __init__(self, data: Path) -> None:
        self.store = Store(data / "mapper.sqlite", _SCHEMA)
        self.simulator = Simulator(self.store, parse=from_json, count_items=count_items)

    def application(self) -> Starlette:
        routes: list[BaseRoute] = [
            self.simulator.wire("spar", "", "/sync/resolve", resolve, refuse),
            Route("/admin/people", self.put_people, methods=["POST"]),
            Route("/admin/people/count", self.count),
            Route("/admin/people/{id:path}", self.delete_person, methods=["DELETE"]),
            Route("/admin/settings", self.put_settings, methods=["PUT"]),
        ]
        return application(self.store, routes + self.simulator.admin_routes())

    async def put_people(self, request: Request) -> Response:
        """Lines of JSON {id, fa}: inserts or replaces, in transactions of 10,000. A bad line stops it: HTTP 400."""
        count, rest = 0, b""
        lines: list[bytes] = []
        async for chunk in request.stream():
            *complete, rest = (rest + chunk).split(b"\n")
            lines += complete
            if len(lines) >= _UPSERT_ROWS:
                count += await self._upsert(lines)
                lines = []
        return json_response({"upserted": count + await self._upsert([*lines, rest])})

    async def _upsert(self, lines: list[bytes]) -> int:
        def upsert(db: sqlite3.Connection) -> int:
            people = from_json(b"[" + b",".join(line for line in lines if line.strip()) + b"]")
            try:
                values = [(str(person["id"]), str(person["fa"])) for person in people]
            except (KeyError, TypeError):
                raise ValueError("every line has to be an object with id and fa") from None
            db.executemany("INSERT OR REPLACE INTO people (id, fa) VALUES (?, ?)", values)
            return len(values)

        return await self.store.write(upsert)

    async def count(self, request: Request) -> Response:
        found = await self.store.read(rows("SELECT count(*) AS count FROM people"))
        return json_response(found[0])

    async def delete_person(self, request: Request) -> Response:
        values = (request.path_params["id"],)
        deleted = await self.store.write(lambda db: db.execute("DELETE FROM people WHERE id = ?", values).rowcount)
        return json_response({"deleted": deleted})

    async def put_settings(self, request: Request) -> Response:
        settings = Settings.model_validate_json(await request.body()).model_dump()
        sql = "UPDATE settings SET max_items = :max_items, refuse_repeated_message_id = :refuse_repeated_message_id"
        await self.store.write(lambda db: db.execute(sql, settings).rowcount)
        return json_response(settings)


if __name__ == "__main__":
    main("mapper", lambda data: Mapper(data).application())
