"""Local mail server: `python -m libs.local.mail --data DIR --port N`.

Takes real SMTP on a port of its own (`/admin/smtp` names it) and keeps every mail; nothing leaves the machine. HTTP is the admin's:
mails, the log of what was said in SMTP (a request per MAIL, RCPT and DATA), faults, addresses that are refused.
"""

import asyncio
import socket
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from email import message_from_bytes
from email.policy import default
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP, Envelope, Session
from pydantic import BaseModel
from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from libs.local.simulator import Answer, Call, Simulator, Store, application, json_response, main, now, page, rows

MAX_BYTES = 5_000_000
_SCHEMA = """
CREATE TABLE IF NOT EXISTS mails (
    id INTEGER PRIMARY KEY, message_id TEXT NOT NULL, sender TEXT NOT NULL, recipient TEXT NOT NULL, subject TEXT NOT NULL,
    text TEXT NOT NULL, html TEXT NOT NULL, content BLOB NOT NULL, at TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS refused (address TEXT PRIMARY KEY, reply TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS settings (one INTEGER PRIMARY KEY CHECK (one = 1), smtp_port INTEGER NOT NULL);
"""
_TEMPORARY = ("error_500", "error_503", "error_429")


class Refused(BaseModel):
    """`addresses`: recipient -> what the server says to it, such as "550 5.1.1 no such user"."""

    addresses: dict[str, str]


class Mail:
    """The application: an SMTP server beside the admin's API. A fault's path is MAIL, RCPT or DATA; "down" ends the connection
    at once, "timeout_after" takes the mail and never says so."""

    def __init__(self, data: Path) -> None:
        self.store = Store(data / "mail.sqlite", _SCHEMA)
        self.simulator = Simulator(self.store, parse=lambda body: {}, count_items=lambda body: 1)
        self.port = 0

    def application(self) -> Starlette:
        routes: list[BaseRoute] = [
            Route("/admin/smtp", self.smtp),
            Route("/admin/mails", self.mails),
            Route("/admin/mails/{id:int}", self.mail),
            Route("/admin/refused", self.put_refused, methods=["PUT"]),
        ]
        return application(self.store, routes + self.simulator.admin_routes(), self.serve)

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """The SMTP server, on the same port in each of its lives if it is still free."""
        loop = asyncio.get_running_loop()
        known = await self.store.read(rows("SELECT smtp_port FROM settings"))
        listener = _bind(known[0]["smtp_port"] if known else 0)
        self.port = listener.getsockname()[1]
        sql = "INSERT INTO settings VALUES (1, ?) ON CONFLICT (one) DO UPDATE SET smtp_port = excluded.smtp_port"
        await self.store.write(lambda db: db.execute(sql, (self.port,)).rowcount)

        def connection() -> SMTP:
            return SMTP(self, data_size_limit=MAX_BYTES, enable_SMTPUTF8=True, hostname="mail.local", loop=loop)

        server = await loop.create_server(connection, sock=listener)
        try:
            yield
        finally:
            server.close()

    # What aiosmtpd asks at each step; it says what is returned, "250 OK" to go on.

    async def handle_MAIL(  # noqa: N802 - aiosmtpd's name
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        said = await self._step(server, "MAIL", address, lambda db, call: Answer("250 OK", b""))
        if said == "250 OK":
            envelope.mail_from = address
        return said

    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        def act(db: sqlite3.Connection, call: Call) -> Answer:
            found = db.execute("SELECT reply FROM refused WHERE address = ?", (address,)).fetchone()
            return Answer(found["reply"] if found else "250 OK", b"")

        said = await self._step(server, "RCPT", address, act)
        if said == "250 OK":
            envelope.rcpt_tos.append(address)
        return said

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        content = envelope.content if isinstance(envelope.content, bytes) else b""

        def act(db: sqlite3.Connection, call: Call) -> Answer:
            for recipient in envelope.rcpt_tos:
                _keep(db, str(envelope.mail_from), recipient, content)
            return Answer("250 OK", b"")

        return await self._step(server, "DATA", ", ".join(envelope.rcpt_tos), act)

    async def _step(self, server: SMTP, path: str, address: str, act: Any) -> str:
        """Logs the step, does what its fault leaves of it; what is to be said."""

        def refuse(db: sqlite3.Connection, call: Call) -> Answer:
            return Answer(f"550 5.7.1 {address} is refused by order", b"")

        call = Call("smtp", path, None, None, address.encode())
        fault, answer = await self.simulator.receive(call, act, refuse)
        kind = fault.kind if fault else ""
        if fault and kind in ("late", "late_before", "timeout_after"):
            await asyncio.sleep(fault.seconds)
        if kind == "late_before":
            answer = await self.simulator.do(call, act)
        if kind in ("down", "fail_before", "timeout_after"):
            if isinstance(server.transport, asyncio.WriteTransport):
                server.transport.abort()
            return "421 4.3.2 gone"
        if kind in _TEMPORARY:
            return "451 4.3.0 not now"
        if kind == "nonsense":
            return "whatever"
        assert answer is not None
        return answer.outcome

    # The admin's.

    async def smtp(self, request: Request) -> Response:
        return json_response({"host": "127.0.0.1", "port": self.port})

    async def mails(self, request: Request) -> Response:
        after, limit = page(request)
        sql = "SELECT id, message_id, sender, recipient, subject, text, html, at FROM mails WHERE id > ? ORDER BY id LIMIT ?"
        return json_response({"mails": await self.store.read(rows(sql, (after, limit)))})

    async def mail(self, request: Request) -> Response:
        found = await self.store.read(rows("SELECT content FROM mails WHERE id = ?", (request.path_params["id"],)))
        return PlainTextResponse(found[0]["content"]) if found else json_response({"error": "no such mail"}, 404)

    async def put_refused(self, request: Request) -> Response:
        refused = Refused.model_validate_json(await request.body()).addresses

        def replace(db: sqlite3.Connection) -> int:
            db.execute("DELETE FROM refused")
            return db.executemany("INSERT INTO refused VALUES (?, ?)", refused.items()).rowcount

        await self.store.write(replace)
        return Response(to_json(refused), media_type="application/json")


def _keep(db: sqlite3.Connection, sender: str, recipient: str, content: bytes) -> None:
    mail = message_from_bytes(content, policy=default)
    parts = {kind: mail.get_body((kind,)) for kind in ("plain", "html")}
    text, html = (part.get_content() if part else "" for part in parts.values())
    db.execute(
        "INSERT INTO mails (message_id, sender, recipient, subject, text, html, content, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (str(mail["Message-ID"] or ""), sender, recipient, str(mail["Subject"] or ""), text, html, content, now()),
    )


def _bind(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with suppress(OSError):
        listener.bind(("127.0.0.1", port))
        return listener
    listener.bind(("127.0.0.1", 0))
    return listener


if __name__ == "__main__":
    main("mail server", lambda data: Mail(data).application())
