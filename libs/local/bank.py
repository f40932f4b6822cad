"""Simulated bank: `python -m libs.local.bank --data DIR --port N`.

Two profiles of one wire format, each with accounts of its own: `/example`, the OpenG2P example bank as it is (no
idempotency, no query, no release, a repeated reference is HTTP 500 for the whole list, every statement 1/1), and
`/full` (idempotency keys, query, release, results per payment, statements that count up). Its ledger, read under
`/admin`, is the judge of what was paid.
"""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import httpx
from pydantic import BaseModel, Field
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from libs.local import ledger
from libs.local.bank_wire import SCHEMA, VERBS, count_items, parse
from libs.local.simulator import Simulator, Store, application, json_response, main, now, page, rows

PROFILES = ("example", "full")
_PAYMENTS = """
SELECT id AS rowid, payment_reference_number, narrative_6 AS disbursement_id, narrative_4 AS beneficiary_id,
    beneficiary_account, amount_minor, currency, block_reference, key, booked_at,
    iif(reversals, 'reversed', 'paid') AS state, reversals
FROM (SELECT p.*, a.currency, printf('BLK%013d', p.block_id) AS block_reference,
        (SELECT count(*) FROM entries e WHERE e.payment_id = p.id) AS reversals
    FROM payments p JOIN accounts a ON a.id = p.account_id WHERE p.profile = ? AND p.id > ? ORDER BY p.id LIMIT ?)
ORDER BY id
"""
_MAX_WAIT_FACTOR = 10  # a stream of bookings delays a statement by at most this many times `push_after_ms`
_FIRST_BACKOFF_SECONDS = 0.1
_LAST_BACKOFF_SECONDS = 5.0


class Account(BaseModel):
    currency: str = Field(pattern="^[A-Z]{3}$")
    balance_minor: int = Field(ge=0)


class StatementSettings(BaseModel):
    """`push_after_ms` after the last booking a statement is cut and pushed; 0: at once; None: only on request."""

    callback_url: str | None = None
    token: str | None = None
    push_after_ms: int | None = Field(default=None, ge=0)
    max_lines: int | None = Field(default=None, ge=1)


class StatementOrder(BaseModel):
    account: str


class Reversal(BaseModel):
    references: list[str] = []
    disbursement_ids: list[str] = []
    reason: str


class ClosedAccounts(BaseModel):
    account_numbers: list[str]


class Pusher:
    """Cuts one profile's statements when they are due, and pushes them in order until each is acknowledged."""

    def __init__(self, store: Store, profile: str, http: httpx.AsyncClient) -> None:
        self.store = store
        self.profile = profile
        self.nudged = asyncio.Event()
        self._http = http
        self._backoff_seconds = 0.0
        self._retry_at = 0.0

    def retry_now(self) -> None:
        self._backoff_seconds = self._retry_at = 0.0
        self.nudged.set()

    async def run(self) -> None:
        while True:
            self.nudged.clear()
            settings = await self.store.read(lambda db: _settings(db, self.profile))
            wait_seconds = await self.store.on_writer(partial(_cut_due, profile=self.profile, settings=settings))
            if settings.callback_url:
                retry_seconds = self._retry_at - time.monotonic()
                if retry_seconds <= 0 and await self._push_next(settings):
                    continue
                retry_seconds = self._retry_at - time.monotonic()
                if retry_seconds > 0:
                    wait_seconds = min(retry_seconds, wait_seconds or retry_seconds)
            with suppress(TimeoutError):
                await asyncio.wait_for(self.nudged.wait(), wait_seconds)

    async def _push_next(self, settings: StatementSettings) -> bool:
        """Whether the next unacknowledged statement was acknowledged."""
        sql = "SELECT id, content FROM statements WHERE profile = ? AND acknowledged_at IS NULL ORDER BY id LIMIT 1"
        found = await self.store.read(rows(sql, (self.profile,)))
        if not found:
            return False
        statement_id, content = found[0]["id"], found[0]["content"]
        acknowledged = await self._post(settings, statement_id, content)
        at = now()
        sql = (
            "UPDATE statements SET attempts = attempts + 1, pushed_at = coalesce(pushed_at, ?), acknowledged_at = ?"
            " WHERE id = ?"
        )
        values = (at, at if acknowledged else None, statement_id)
        await self.store.write(lambda db: db.execute(sql, values).rowcount)
        if acknowledged:
            self._backoff_seconds = 0.0
        else:
            self._backoff_seconds = min(max(self._backoff_seconds * 2, _FIRST_BACKOFF_SECONDS), _LAST_BACKOFF_SECONDS)
            self._retry_at = time.monotonic() + self._backoff_seconds
        return acknowledged

    async def _post(self, settings: StatementSettings, statement_id: int, content: bytes) -> bool:
        headers = {"Authorization": f"Bearer {settings.token}"} if settings.token else {}
        file = (f"statement-{statement_id}.sta", content, "text/plain")
        try:
            answer = await self._http.post(
                str(settings.callback_url), headers=headers, files={"statement_file": file}, timeout=60
            )
        except (httpx.HTTPError, httpx.InvalidURL):
            return False
        return answer.is_success


def _settings(db: sqlite3.Connection, profile: str) -> StatementSettings:
    row = db.execute("SELECT * FROM statement_settings WHERE profile = ?", (profile,)).fetchone()
    return StatementSettings.model_validate(dict(row)) if row else StatementSettings()


def _cut_due(db: sqlite3.Connection, profile: str, settings: StatementSettings) -> float | None:
    """Cuts every statement that is due; seconds until the next one will be, None when nothing is booked.

    A file that is full needs no wait. Each statement is a transaction of its own, so that payments get in between.
    """
    if settings.push_after_ms is None:
        return None
    quiet_seconds = settings.push_after_ms / 1000
    waits: list[float] = []
    sql = "SELECT * FROM accounts WHERE profile = ? AND unstated_lines > 0"
    for account in db.execute(sql, (profile,)).fetchall():
        due_at = min(account["last_booked_at"] + quiet_seconds, account["unstated_since"] + quiet_seconds * _MAX_WAIT_FACTOR)
        full = settings.max_lines is not None and account["unstated_lines"] >= settings.max_lines
        wait_seconds = due_at - time.time()
        if full or wait_seconds <= 0:
            db.execute("BEGIN IMMEDIATE")
            ledger.cut_statement(db, account, settings.max_lines)
            db.execute("COMMIT")
            wait_seconds = 0.001  # there may be more: look again at once
        waits.append(wait_seconds)
    return max(min(waits), 0.001) if waits else None


class Bank:
    """The application: verbs of both profiles, the admin's API, and the pushing of statements."""

    def __init__(self, data: Path) -> None:
        self.store = Store(data / "bank.sqlite", ledger.SCHEMA + SCHEMA)
        self.pushers: dict[str, Pusher] = {}
        self.simulator = Simulator(self.store, parse=parse, count_items=count_items, after_commit=self._nudge)

    def application(self) -> Starlette:
        verbs: list[BaseRoute] = [
            self.simulator.wire(profile, f"/{profile}", path, act, refuse)
            for profile in PROFILES
            for path, (act, refuse) in VERBS[profile].items()
        ]
        return application(self.store, verbs + self.simulator.admin_routes() + self._admin_routes(), self._background)

    @asynccontextmanager
    async def _background(self) -> AsyncIterator[None]:
        async with httpx.AsyncClient(trust_env=False) as http:
            self.pushers = {profile: Pusher(self.store, profile, http) for profile in PROFILES}
            tasks = [asyncio.create_task(pusher.run()) for pusher in self.pushers.values()]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def _nudge(self, profile: str) -> None:
        self.pushers[profile].nudged.set()

    def _admin_routes(self) -> list[BaseRoute]:
        at = "/admin/{profile}"
        return [
            Route(at + "/accounts/{number}", self.put_account, methods=["PUT"]),
            Route(at + "/accounts/{number}", self.account),
            Route(at + "/closed-accounts", self.put_closed_accounts, methods=["PUT"]),
            Route(at + "/statements", self.put_statement_settings, methods=["PUT"]),
            Route(at + "/statements", self.statements),
            Route(at + "/statements/{id:int}", self.statement_text),
            Route(at + "/statement", self.order_statement, methods=["POST"]),
            Route(at + "/reverse", self.reverse, methods=["POST"]),
            Route(at + "/payments", self.payments),
            Route(at + "/blocks", self.blocks),
        ]

    async def put_account(self, request: Request) -> Response:
        body = Account.model_validate_json(await request.body())
        profile, number = _profile(request), request.path_params["number"]
        await self.store.write(lambda db: ledger.put_account(db, profile, number, body.currency, body.balance_minor))
        self._nudge(profile)
        return await self.account(request)

    async def account(self, request: Request) -> Response:
        """Without an account of that number: 404."""
        found = await self.store.read(
            rows(
                "SELECT number, currency, balance_minor, blocked_minor, balance_minor - blocked_minor AS"
                " available_minor, unstated_lines FROM accounts WHERE profile = ? AND number = ?",
                (_profile(request), request.path_params["number"]),
            )
        )
        return json_response(found[0]) if found else json_response({"error": "no such account"}, 404)

    async def put_closed_accounts(self, request: Request) -> Response:
        """Replaces the list of beneficiary accounts which are closed."""
        profile = _profile(request)
        numbers = ClosedAccounts.model_validate_json(await request.body()).account_numbers

        def replace(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM closed_accounts WHERE profile = ?", (profile,))
            db.executemany("INSERT OR IGNORE INTO closed_accounts VALUES (?, ?)", [(profile, one) for one in numbers])

        await self.store.write(replace)
        return json_response({"closed": len(numbers)})

    async def put_statement_settings(self, request: Request) -> Response:
        profile = _profile(request)
        settings = StatementSettings.model_validate_json(await request.body()).model_dump()
        sql = (
            "INSERT OR REPLACE INTO statement_settings (profile, callback_url, token, push_after_ms, max_lines)"
            " VALUES (:profile, :callback_url, :token, :push_after_ms, :max_lines)"
        )
        await self.store.write(lambda db: db.execute(sql, {"profile": profile, **settings}).rowcount)
        self.pushers[profile].retry_now()
        return json_response(settings)

    async def statements(self, request: Request) -> Response:
        account = request.query_params.get("account")
        found = await self.store.read(
            rows(
                "SELECT s.id, a.number AS account, s.year, s.number, s.lines, s.produced_at, s.attempts, s.pushed_at,"
                " s.acknowledged_at IS NOT NULL AS acknowledged FROM statements s JOIN accounts a ON"
                " a.id = s.account_id WHERE s.profile = ? AND coalesce(a.number = ?, TRUE) ORDER BY s.id",
                (_profile(request), account),
            )
        )
        return json_response({"statements": [{**row, "acknowledged": bool(row["acknowledged"])} for row in found]})

    async def statement_text(self, request: Request) -> Response:
        sql = "SELECT content FROM statements WHERE profile = ? AND id = ?"
        found = await self.store.read(rows(sql, (_profile(request), request.path_params["id"])))
        return Response(found[0]["content"], media_type="text/plain") if found else Response(status_code=404)

    async def order_statement(self, request: Request) -> Response:
        """Cuts all that is unstated now, at least one file; it is pushed if there is a call-back URL."""
        profile = _profile(request)
        order = StatementOrder.model_validate_json(await request.body())

        def cut(db: sqlite3.Connection) -> list[int]:
            account = ledger.find_account(db, profile, order.account)
            if account is None:
                raise ValueError(f"no account {order.account}")
            return ledger.cut_all(db, account)

        ids = await self.store.write(cut)
        self._nudge(profile)
        return json_response({"statements": ids})

    async def reverse(self, request: Request) -> Response:
        profile = _profile(request)
        body = Reversal.model_validate_json(await request.body())

        def book(db: sqlite3.Connection) -> int:
            by_reference = ledger.reverse(db, profile, "payment_reference_number", body.references, body.reason)
            return by_reference + ledger.reverse(db, profile, "narrative_6", body.disbursement_ids, body.reason)

        reversed_payments = await self.store.write(book)
        self._nudge(profile)
        return json_response({"reversed": reversed_payments})

    async def payments(self, request: Request) -> Response:
        found = await self.store.read(rows(_PAYMENTS, (_profile(request), *page(request))))
        return json_response({"payments": found})

    async def blocks(self, request: Request) -> Response:
        sql = (
            "SELECT printf('BLK%013d', b.id) AS block_reference_no, a.number AS account, b.amount_minor, b.used_minor,"
            " b.released_minor, b.key FROM blocks b JOIN accounts a ON a.id = b.account_id"
            " WHERE a.profile = ? AND coalesce(a.number = ?, TRUE) ORDER BY b.id"
        )
        values = (_profile(request), request.query_params.get("account"))
        return json_response({"blocks": await self.store.read(rows(sql, values))})


def _profile(request: Request) -> str:
    profile: str = request.path_params["profile"]
    if profile not in PROFILES:
        raise ValueError(f"no profile {profile}")
    return profile


if __name__ == "__main__":
    main("bank", lambda data: Bank(data).application())
