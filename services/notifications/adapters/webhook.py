"""`POST /webhooks/novu`: what became of notices that Novu has taken.

The body is one event or a list of them, `{"type": "message.delivered", "data": {"transactionId": "<notice id>"}}`; it is signed
(`X-Novu-Signature: sha256=<hex>`, HMAC-SHA256 of the raw body). Repeats and any order change nothing: a bounce outweighs a delivery.
202 only after the commit, also for what names no notice of ours. Refusals are JSON {code, message}.
"""

import hashlib
import hmac
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

from prometheus_client import Counter
from pydantic import SecretStr
from pydantic_core import from_json
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from libs.common.db import Database, Tx
from libs.common.envelope import Cause, next_traceparent
from libs.common.errors import Transient
from libs.common.log import get
from services.notifications.domain import Delivery

PATH = "/webhooks/novu"
SIGNATURE = "x-novu-signature"
MAX_BYTES = 1_000_000
_SAID: Mapping[str, Delivery] = {
    "message.delivered": "DELIVERED",
    "message.bounced": "BOUNCED",
    "message.failed": "BOUNCED",
}
EVENTS = Counter("almoner_webhook_events_total", "What providers said of notices", ["outcome"])

_log = get("webhook")

Deliver = Callable[[Tx, Mapping[UUID, Delivery], Cause], int]  # how many it names that nobody knows


def webhook_route(database: Database, deliver: Deliver, secret: SecretStr) -> Route:
    key = secret.get_secret_value().encode()

    def store(said: Mapping[UUID, Delivery], cause: Cause) -> int:
        with database.transaction() as tx:
            return deliver(tx, said, cause)

    async def post(request: Request) -> Response:
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > MAX_BYTES:
                return _refusal(413, "TOO_LARGE", f"at most {MAX_BYTES} bytes")
        if not _is_signed(key, bytes(body), request.headers.get(SIGNATURE, "")):
            EVENTS.labels("forged").inc()
            return _refusal(401, "UNAUTHORIZED", "send X-Novu-Signature: sha256= and HMAC-SHA256 of the body in hex")
        try:
            said, ignored = read(bytes(body))
        except ValueError:
            return _refusal(422, "INVALID_EVENTS", "send one JSON object with type and data, or a list of them")
        cause = Cause(
            f"http/novu/{hashlib.sha256(body).hexdigest()[:32]}", None, next_traceparent(request.headers.get("traceparent"))
        )
        try:
            unknown = await run_in_threadpool(store, said, cause) if said else 0
        except Transient as error:
            _log.warning("deliveries not stored", error=str(error))
            return _refusal(503, "TRY_AGAIN", "nothing was stored; send it again")
        for outcome, count in (("known", len(said) - unknown), ("unknown", unknown), ("ignored", ignored)):
            EVENTS.labels(outcome).inc(count)
        return JSONResponse({"known": len(said) - unknown, "unknown": unknown, "ignored": ignored}, 202)

    return Route(PATH, post, methods=["POST"])


def read(body: bytes) -> tuple[dict[UUID, Delivery], int]:
    """Notice -> what is said of it, and how many events are of no interest. Raises ValueError for what is no list of events."""
    content = from_json(body)
    events = content if isinstance(content, list) else [content]
    said: dict[UUID, Delivery] = {}
    ignored = 0
    for event in events:
        if not isinstance(event, dict):
            raise ValueError("an event is no object")
        delivery, notice_id = _SAID.get(str(event.get("type"))), _notice_id(event.get("data"))
        if delivery is None or notice_id is None:
            ignored += 1
        elif said.get(notice_id) != "BOUNCED":
            said[notice_id] = delivery
    return said, ignored


def _notice_id(data: Any) -> UUID | None:
    try:
        return UUID(data["transactionId"])
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _is_signed(key: bytes, body: bytes, given: str) -> bool:
    """Without a key nobody is believed."""
    expected = b"sha256=" + hmac.new(key, body, hashlib.sha256).hexdigest().encode()
    return hmac.compare_digest(expected, given.strip().lower().encode()) and bool(key)


def _refusal(status: int, code: str, message: str) -> Response:
    return JSONResponse({"code": code, "message": message}, status)
