"""What the simulated bank and mapper share: a durable store, a log of every request, faults on demand, serving.

A simulator answers only after its own commit, so whatever it answered survives a SIGKILL. A request is written to the
log before anything is done about it; what came of it is written in the transaction that did it. Faults are rows too:
they outlive a restart, and which calls they hit depends on a seed and a counter, never on chance.
"""

import argparse
import asyncio
import gc
import hashlib
import math
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import uvicorn
from pydantic import BaseModel, Field, ValidationError
from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

T = TypeVar("T")

FaultKind = Literal[
    "refuse",  # answers a definite no
    "fail_before",  # logged, not done, connection closed
    "timeout_after",  # done, never answered: the connection is held for `seconds`, or until all faults are deleted, then closed
    "late",  # done, answered after `seconds`, or when all faults are deleted
    "late_before",  # done and answered then, also when the caller has gone by then
    "error_500",  # not done, HTTP 500
    "error_500_after",  # done, HTTP 500
    "error_429",  # not done, HTTP 429, with `seconds` as Retry-After
    "error_503",  # not done, HTTP 503, with `seconds` as Retry-After
    "nonsense",  # done, HTTP 200 with a body nobody can read
    "down",  # closed at once, not even logged: the request never arrived
]

# Not done, and answered so.
_ERRORS: dict[str | None, int] = {"error_500": 500, "error_429": 429, "error_503": 503}

_SCHEMA = """
CREATE TABLE IF NOT EXISTS requests (
    id INTEGER PRIMARY KEY, at TEXT NOT NULL, profile TEXT NOT NULL, path TEXT NOT NULL, idempotency_key TEXT,
    request_id TEXT, body_sha256 TEXT NOT NULL, items INTEGER NOT NULL, fault TEXT,
    outcome TEXT NOT NULL, status_code INTEGER);
CREATE TABLE IF NOT EXISTS faults (
    id INTEGER PRIMARY KEY, profile TEXT, path TEXT, kind TEXT NOT NULL, share REAL NOT NULL, seed INTEGER NOT NULL,
    count INTEGER, seconds REAL NOT NULL, calls INTEGER NOT NULL DEFAULT 0, hits INTEGER NOT NULL DEFAULT 0);
"""


class MalformedError(Exception):
    """The body is not what the path takes: HTTP 422. Raised before anything was written."""


@dataclass(slots=True)
class Call:
    """One request on the wire. `json` is the parsed body; None when it could not be read."""

    profile: str
    path: str
    key: str | None
    request_id: str | None
    body: bytes
    body_sha256: str = ""
    json: Any = None
    id: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Answer:
    """`outcome` is the word for the log; `content` goes to the caller as JSON."""

    outcome: str
    content: bytes
    status_code: int = 200
    headers: dict[str, str] = field(default_factory=dict)


Action = Callable[[sqlite3.Connection, Call], Answer]


class Fault(BaseModel):
    """A fault as it is ordered. No profile or path: all of them. `count`: how often at most; None: without limit."""

    profile: str | None = None
    path: str | None = None
    kind: FaultKind
    share: float = Field(default=1.0, ge=0, le=1)
    seed: int = 0
    count: int | None = Field(default=None, ge=1)
    seconds: float = Field(default=0, ge=0)

    def hits(self, call_number: int) -> bool:
        digest = hashlib.sha256(f"{self.seed}:{call_number}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < self.share * 2**64


class Store:
    """One SQLite file. All writes go through one thread, so transactions never wait for or meet each other."""

    def __init__(self, path: Path, schema: str) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute(
            "PRAGMA synchronous = NORMAL"
        )  # outlives its process, killed at any moment; the machine's end need not be
        self._db.executescript(_SCHEMA + schema)
        self._reading = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._reading.execute("PRAGMA query_only = ON")
        for db in (self._db, self._reading):
            db.row_factory = sqlite3.Row
        self._writer = ThreadPoolExecutor(1, "writer")
        self._reader = ThreadPoolExecutor(1, "reader")

    async def on_writer(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Runs `work` on the writer's thread; it opens its own transactions."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, work, self._db)

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Runs `work` in one transaction and returns after its commit."""

        def in_transaction(db: sqlite3.Connection) -> T:
            with transaction(db):
                return work(db)

        return await self.on_writer(in_transaction)

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Runs `work` on a connection of its own: what it sees is committed, and it never holds up the wire."""
        return await asyncio.get_running_loop().run_in_executor(self._reader, work, self._reading)

    def close(self) -> None:
        self._writer.shutdown()
        self._reader.shutdown()
        self._reading.close()
        self._db.close()


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


class Simulator:
    """Serves verbs of a wire format and, under /admin, the log and the faults."""

    def __init__(
        self,
        store: Store,
        *,
        parse: Callable[[bytes], Any],
        count_items: Callable[[Any], int],
        after_commit: Callable[[str], None] = lambda profile: None,
    ) -> None:
        self.store = store
        self._parse = parse
        self._count_items = count_items
        self._after_commit = after_commit
        self._let_go = asyncio.Event()

    def wire(self, profile: str, prefix: str, path: str, act: Action, refuse: Action) -> Route:
        """A verb: `act` does it, `refuse` says no to it. Both run in a transaction on the writer's thread."""

        async def endpoint(request: Request) -> Response:
            return await self._handle(request, await _called(request, profile, path), act, refuse)

        return Route(prefix + path, endpoint, methods=["POST"])

    async def receive(self, call: Call, act: Action, refuse: Action) -> tuple[Fault | None, Answer | None]:
        """Logs a call and does what its fault leaves of it; no answer where that is nothing. For wires that are not HTTP as well."""
        return await self.store.on_writer(lambda db: self._receive_and_act(db, call, act, refuse))

    async def do(self, call: Call, act: Action) -> Answer:
        """Does what `receive` has put off."""
        return await self.store.on_writer(lambda db: self._act(db, call, act, None))

    async def _handle(self, request: Request, call: Call, act: Action, refuse: Action) -> Response:
        fault, answer = await self.receive(call, act, refuse)
        kind = fault.kind if fault else None
        try:
            if fault and kind == "late_before":
                await self._hold(fault.seconds)
                answer = await self.do(call, act)
            if answer is not None:
                self._after_commit(call.profile)
            if fault and kind == "late":
                await self._hold(fault.seconds)
        except asyncio.CancelledError:  # the server stops; it would answer 500 in our name
            return Hangup(request)
        if fault and kind in ("down", "fail_before", "timeout_after"):
            return Hangup(request, partial(self._hold, fault.seconds) if kind == "timeout_after" else None)
        if kind in ("error_500", "error_500_after"):
            return Response("Internal Server Error", 500)
        if fault and kind in _ERRORS:
            return Response("Not now", _ERRORS[kind], {"Retry-After": str(math.ceil(fault.seconds))})
        if kind == "nonsense":
            return Response(b"<html>\x00\xff{", 200, media_type="application/json")
        assert answer is not None
        return Response(answer.content, answer.status_code, answer.headers, media_type="application/json")

    async def _hold(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._let_go.wait(), seconds)

    def _receive_and_act(
        self, db: sqlite3.Connection, call: Call, act: Action, refuse: Action
    ) -> tuple[Fault | None, Answer | None]:
        with suppress(ValueError):
            call.json = self._parse(call.body)
        with transaction(db):
            fault = _take_fault(db, call)
            kind = fault.kind if fault else None
            if kind == "down":
                return fault, None
            call.id = _log(db, call, self._count_items(call.json) if call.json is not None else 0, kind)
        if kind in ("fail_before", "late_before", *_ERRORS):
            return fault, None
        return fault, self._act(db, call, refuse if kind == "refuse" else act, kind)

    def _act(self, db: sqlite3.Connection, call: Call, act: Action, kind: FaultKind | None) -> Answer:
        with transaction(db):
            try:
                if call.json is None:
                    raise MalformedError("the body is not JSON")
                answer = act(db, call)
            except MalformedError as fault:
                answer = Answer("malformed", to_json({"detail": str(fault)}), 422)
            sent = {"timeout_after": None, "error_500_after": 500, "nonsense": 200}.get(kind or "", answer.status_code)
            db.execute("UPDATE requests SET outcome = ?, status_code = ? WHERE id = ?", (answer.outcome, sent, call.id))
        return answer

    def admin_routes(self) -> list[BaseRoute]:
        return [
            Route("/healthz", _healthz),
            Route("/admin/requests", self._requests),
            Route("/admin/faults", self._add_fault, methods=["POST"]),
            Route("/admin/faults", self._faults, methods=["GET"]),
            Route("/admin/faults", self._delete_faults, methods=["DELETE"]),
            Route("/admin/faults/{id:int}", self._delete_faults, methods=["DELETE"]),
        ]

    async def _requests(self, request: Request) -> Response:
        after, limit = page(request)
        sql = "SELECT * FROM requests WHERE id > ? ORDER BY id LIMIT ?"
        return json_response({"requests": await self.store.read(rows(sql, (after, limit)))})

    async def _add_fault(self, request: Request) -> Response:
        fault = Fault.model_validate_json(await request.body()).model_dump()
        sql = (
            "INSERT INTO faults (profile, path, kind, share, seed, count, seconds)"
            " VALUES (:profile, :path, :kind, :share, :seed, :count, :seconds)"
        )
        return json_response({"id": await self.store.write(lambda db: db.execute(sql, fault).lastrowid)}, 201)

    async def _faults(self, request: Request) -> Response:
        return json_response({"faults": await self.store.read(rows("SELECT * FROM faults ORDER BY id"))})

    async def _delete_faults(self, request: Request) -> Response:
        one = request.path_params.get("id")
        sql = "DELETE FROM faults WHERE coalesce(id = ?, TRUE)"
        deleted = await self.store.write(lambda db: db.execute(sql, (one,)).rowcount)
        if one is None:
            self._let_go.set()
            self._let_go = asyncio.Event()
        return json_response({"deleted": deleted})


def _take_fault(db: sqlite3.Connection, call: Call) -> Fault | None:
    """The first fault that hits this call; counts the call for each one that was asked."""
    found = db.execute(
        "SELECT * FROM faults WHERE coalesce(profile = ?, TRUE) AND coalesce(path = ?, TRUE)"
        " AND coalesce(hits < count, TRUE) ORDER BY id",
        (call.profile, call.path),
    ).fetchall()
    for row in found:
        fault = Fault.model_validate(dict(row))
        hit = fault.hits(row["calls"])
        db.execute("UPDATE faults SET calls = calls + 1, hits = hits + ? WHERE id = ?", (hit, row["id"]))
        if hit:
            return fault
    return None


async def _called(request: Request, profile: str, path: str) -> Call:
    headers = request.headers
    key, request_id = headers.get("idempotency-key"), headers.get("x-request-id")
    return Call(profile, path, key, request_id, await request.body(), headers=headers)


def _log(db: sqlite3.Connection, call: Call, items: int, kind: FaultKind | None) -> int:
    call.body_sha256 = hashlib.sha256(call.body).hexdigest()
    not_done = kind == "fail_before" or kind in _ERRORS
    row = (
        now(), call.profile, call.path, call.key, call.request_id, call.body_sha256, items, kind,
        "not done" if not_done else "received", _ERRORS.get(kind),
    )  # fmt: skip
    cursor = db.execute(
        "INSERT INTO requests (at, profile, path, idempotency_key, request_id, body_sha256, items, fault, outcome,"
        " status_code) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        row,
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


class Hangup(Response):
    """No answer: keeps the connection while `held` lasts, or until the caller gives up, then cuts it."""

    def __init__(self, request: Request, held: Callable[[], Coroutine[Any, Any, None]] | None = None) -> None:
        super().__init__()
        self._transport: asyncio.Transport = request.scope["state"]["transport"]
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._held:
            ends = [asyncio.create_task(self._held()), asyncio.create_task(_gone(receive))]
            with suppress(asyncio.CancelledError):  # the server stops
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for end in ends:
                end.cancel()
        self._transport.abort()
        await _gone(receive)  # the server would answer 500 to a caller it believes to be still there


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _Connection(H11Protocol):
    """Lets a request reach its own connection, which is the only way to cut it without an answer."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.app_state = {**self.app_state, "transport": transport}
        super().connection_made(transport)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def json_response(content: Any, status_code: int = 200) -> Response:
    return Response(to_json(content), status_code, media_type="application/json")


def rows(sql: str, values: Sequence[Any] = ()) -> Callable[[sqlite3.Connection], list[dict[str, Any]]]:
    """A query as work for `Store.read`: rows as dicts."""
    return lambda db: [dict(row) for row in db.execute(sql, values)]


def page(request: Request) -> tuple[int, int]:
    """(after, limit) of a paged list."""
    return int(request.query_params.get("after", 0)), int(request.query_params.get("limit", 1000))


async def _healthz(request: Request) -> Response:
    return json_response({"status": "ok"})


async def _bad_request(request: Request, fault: Exception) -> Response:
    return json_response({"error": str(fault)}, 400)


def _nowhere(store: Store) -> Route:
    """What this side does not know is logged as well: a caller that asks for it is mistaken about its counterpart."""

    async def endpoint(request: Request) -> Response:
        call = await _called(request, "", request.url.path)

        def log(db: sqlite3.Connection) -> None:
            number = _log(db, call, 0, None)
            db.execute("UPDATE requests SET outcome = 'no such path', status_code = 404 WHERE id = ?", (number,))

        await store.write(log)
        return json_response({"error": "no such path"}, 404)

    return Route("/{path:path}", endpoint, methods=["GET", "POST", "PUT", "PATCH", "DELETE"])


def application(
    store: Store, routes: list[BaseRoute], background: Callable[[], AbstractAsyncContextManager[None]] | None = None
) -> Starlette:
    """`background` runs while the application serves; the store is closed after it."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        try:
            if background is None:
                yield
            else:
                async with background():
                    yield
        finally:
            store.close()

    handlers = {ValidationError: _bad_request, ValueError: _bad_request}
    return Starlette(routes=[*routes, _nowhere(store)], lifespan=lifespan, exception_handlers=handlers)


def main(name: str, build: Callable[[Path], Starlette]) -> None:
    """`--data DIR --port N`: serves on 127.0.0.1 until SIGTERM or Ctrl-C, then exits 0."""
    parser = argparse.ArgumentParser(description=f"Simulated {name} on 127.0.0.1.")
    parser.add_argument("--data", type=Path, required=True, help="folder of its durable state")
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    options.data.mkdir(parents=True, exist_ok=True)
    for stop in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises the signal again when it has stopped
        signal.signal(stop, lambda number, frame: sys.exit(0))
    gc.freeze()  # what was imported stays; a list of payments makes many short-lived objects and few cycles
    gc.set_threshold(10_000, 20, 100)
    uvicorn.run(
        partial(build, options.data),
        factory=True,
        host="127.0.0.1",
        port=options.port,
        http=_Connection,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=600,  # an idle connection that is closed under a request looks like an unknown payment
        timeout_graceful_shutdown=1,  # calls that a fault holds open must not hold up the stop
    )
