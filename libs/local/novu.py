"""Simulated Novu: `python -m libs.local.novu --data DIR --port N`.

Triggers of workflows, single and in bulk; a key counts once, whatever comes under it again; a ledger of what each subscriber was
sent; webhooks about deliveries, signed, ordered by the admin.
"""

import asyncio
import hashlib
import hmac
import sqlite3
from pathlib import Path
from typing import Any

import httpx
from pydantic import BaseModel
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
    page,
    rows,
)

MAX_EVENTS = 100
_SCHEMA = """
CREATE TABLE IF NOT EXISTS keys (key TEXT PRIMARY KEY, body_sha256 TEXT NOT NULL, answer BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS triggered (
    id INTEGER PRIMARY KEY, transaction_id TEXT NOT NULL, name TEXT NOT NULL, subscriber_id TEXT NOT NULL, recipient TEXT NOT NULL,
    payload TEXT NOT NULL, key TEXT, at TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS triggered_transaction ON triggered (transaction_id);
CREATE TABLE IF NOT EXISTS refused (subscriber_id TEXT PRIMARY KEY, status TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS settings (one INTEGER PRIMARY KEY CHECK (one = 1), body TEXT NOT NULL);
INSERT OR IGNORE INTO settings VALUES (1, '{}');
"""


class Settings(BaseModel):
    """`api_key` empty: everybody is let in. `webhook_url`, `webhook_secret`: whom deliveries are told, and how that is signed."""

    api_key: str = ""
    webhook_url: str = ""
    webhook_secret: str = ""


class Refused(BaseModel):
    """`subscribers`: id -> status that each trigger for them ends in."""

    subscribers: dict[str, str]


class Webhook(BaseModel):
    """One request to tell of deliveries. `signature`: another one than the right one."""

    events: list[dict[str, Any]]
    signature: str | None = None


class Novu:
    """The application: the verbs, and the admin's API for refusals, settings and webhooks."""

    def __init__(self, data: Path) -> None:
        self.store = Store(data / "novu.sqlite", _SCHEMA)
        self.simulator = Simulator(self.store, parse=from_json, count_items=lambda body: len(_events(body)))

    def application(self) -> Starlette:
        routes: list[BaseRoute] = [
            self.simulator.wire("novu", "", "/v1/events/trigger", trigger, refuse),
            self.simulator.wire("novu", "", "/v1/events/trigger/bulk", trigger, refuse),
            Route("/admin/triggered", self.triggered),
            Route("/admin/refused", self.put_refused, methods=["PUT"]),
            Route("/admin/settings", self.put_settings, methods=["PUT"]),
            Route("/admin/webhooks", self.post_webhook, methods=["POST"]),
        ]
        return application(self.store, routes + self.simulator.admin_routes())

    async def triggered(self, request: Request) -> Response:
        after, limit = page(request)
        found = await self.store.read(rows("SELECT * FROM triggered WHERE id > ? ORDER BY id LIMIT ?", (after, limit)))
        for row in found:
            row["payload"], row["recipient"] = from_json(row["payload"]), from_json(row["recipient"])
        return json_response({"triggered": found})

    async def put_refused(self, request: Request) -> Response:
        refused = Refused.model_validate_json(await request.body()).subscribers

        def replace(db: sqlite3.Connection) -> int:
            db.execute("DELETE FROM refused")
            return db.executemany("INSERT INTO refused VALUES (?, ?)", refused.items()).rowcount

        await self.store.write(replace)
        return json_response(refused)

    async def put_settings(self, request: Request) -> Response:
        settings = Settings.model_validate_json(await request.body())
        await self.store.write(lambda db: db.execute("UPDATE settings SET body = ?", (settings.model_dump_json(),)).rowcount)
        return json_response({"set": True})

    async def post_webhook(self, request: Request) -> Response:
        """Tells the configured URL now; answers with what it answered."""
        webhook = Webhook.model_validate_json(await request.body())
        settings = await self.store.read(_settings)
        body = to_json(webhook.events[0] if len(webhook.events) == 1 else webhook.events)
        signature = hmac.new(settings.webhook_secret.encode(), body, hashlib.sha256).hexdigest()
        headers = {"X-Novu-Signature": webhook.signature or f"sha256={signature}", "Content-Type": "application/json"}
        async with httpx.AsyncClient(timeout=15, trust_env=False) as client:
            async with asyncio.timeout(20):
                answer = await client.post(settings.webhook_url, content=body, headers=headers)
        return json_response({"status_code": answer.status_code, "answer": answer.text})


def trigger(db: sqlite3.Connection, call: Call) -> Answer:
    settings = _settings(db)
    if settings.api_key and call.headers.get("authorization") != f"ApiKey {settings.api_key}":
        return Answer("unauthorised", to_json({"message": "API Key not found", "statusCode": 401}), 401)
    if call.key:
        known = db.execute("SELECT body_sha256, answer FROM keys WHERE key = ?", (call.key,)).fetchone()
        if known and known["body_sha256"] != call.body_sha256:
            return Answer("key reused", to_json({"message": "key was used with another body", "statusCode": 422}), 422)
        if known:
            return Answer("repeated", known["answer"], 201, {"Idempotency-Replay": "true"})
    events = _read(call)
    found = [_trigger_one(db, call, event) for event in events]
    content = to_json({"data": found if call.path.endswith("/bulk") else found[0]})
    if call.key:
        db.execute("INSERT INTO keys VALUES (?, ?, ?)", (call.key, call.body_sha256, content))
    return Answer("triggered", content, 201)


def refuse(db: sqlite3.Connection, call: Call) -> Answer:
    """What a fault of that kind makes of it: every event is refused, and nothing is sent."""
    found = [_answer(event, "error") for event in _read(call)]
    return Answer("refused", to_json({"data": found if call.path.endswith("/bulk") else found[0]}), 201)


def _trigger_one(db: sqlite3.Connection, call: Call, event: dict[str, Any]) -> dict[str, Any]:
    subscriber = event["to"]["subscriberId"]
    refused = db.execute("SELECT status FROM refused WHERE subscriber_id = ?", (subscriber,)).fetchone()
    if refused:
        return _answer(event, refused["status"])
    db.execute(
        "INSERT INTO triggered (transaction_id, name, subscriber_id, recipient, payload, key, at) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (event["transactionId"], event["name"], subscriber, to_json(event["to"]).decode(), to_json(event["payload"]).decode(),
         call.key, now()),
    )  # fmt: skip
    return _answer(event, "processed")


def _answer(event: dict[str, Any], status: str) -> dict[str, Any]:
    found = {"acknowledged": True, "status": status, "transactionId": event["transactionId"]}
    return found if status == "processed" else {**found, "error": [f"{status} for {event['to']}"]}


def _read(call: Call) -> list[dict[str, Any]]:
    """The events of a request. As the real one does, one that is wrong spoils all of them."""
    events = _events(call.json)
    if not events or len(events) > MAX_EVENTS:
        raise MalformedError(f"1 to {MAX_EVENTS} events, not {len(events)}")
    for event in events:
        if not isinstance(event, dict) or not isinstance(event.get("to"), dict) or not isinstance(event.get("payload"), dict):
            raise MalformedError("an event needs name, to and payload")
        to = event["to"]
        if not event.get("name") or not to.get("subscriberId") or not event.get("transactionId"):
            raise MalformedError("an event needs name, to.subscriberId and transactionId")
        if "email" in to and "@" not in to["email"].strip(".@"):
            raise MalformedError("to.email must be an email")
    return events


def _events(body: Any) -> list[Any]:
    if not isinstance(body, dict):
        return []
    found = body.get("events", [body])
    return found if isinstance(found, list) else []


def _settings(db: sqlite3.Connection) -> Settings:
    return Settings.model_validate_json(db.execute("SELECT body FROM settings").fetchone()["body"])


if __name__ == "__main__":
    main("Novu", lambda data: Novu(data).application())
