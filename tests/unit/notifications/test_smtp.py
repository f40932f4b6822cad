"""A mail server that misbehaves at each step: what it had before it said so decides whether a mail is sent again."""

import asyncio
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from uuid import uuid4

import httpx
import pytest

from libs.common.envelope import Cause
from libs.common.errors import LeaseLost
from libs.common.workqueue import Claim, MaybeDone, NotSent
from services.notifications.adapters.smtp import Smtp
from services.notifications.content import sample
from services.notifications.domain import SENT, Outcome
from services.notifications.ports import Message
from services.notifications.rendering import Templates

Script = dict[str, bytes | None]  # command -> what is said to it; None: the connection ends
GOOD: Script = {
    "GREETING": b"220 hello\r\n",
    "EHLO": b"250 hello\r\n",
    "HELO": b"250 hello\r\n",
    "MAIL": b"250 ok\r\n",
    "RCPT": b"250 ok\r\n",
    "DATA": b"354 go on\r\n",
    ".": b"250 taken\r\n",
    "RSET": b"250 ok\r\n",
    "QUIT": b"221 bye\r\n",
}


@contextmanager
def server(script: Script) -> Iterator[tuple[int, list[str]]]:
    """(port, contents that arrived whole) of a server that says what the script has for each command."""
    arrived: list[str] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            if not self.say("GREETING"):
                return
            while line := self.rfile.readline():
                command = line.decode().split()[0].upper()
                if not self.say(command):
                    return
                if command == "DATA" and (script["DATA"] or b"").startswith(b"354"):
                    content = b""
                    while not content.endswith(b"\r\n.\r\n"):
                        content += self.rfile.readline()
                    arrived.append(content.decode())
                    if not self.say("."):
                        return

        def say(self, command: str) -> bool:
            said = script[command]
            if said is not None:
                self.wfile.write(said)
            return said is not None

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield listening.server_address[1], arrived
        finally:
            listening.shutdown()


def send(
    port: int, messages: list[Message], lease_seconds: float = 60.0, username: str = ""
) -> list[Outcome] | NotSent | MaybeDone:
    channel = Smtp("127.0.0.1", port, "none", username, "password", "almoner@almoner.example", "")
    deadline = time.monotonic() + lease_seconds
    claim = Claim("smtp", "1", 0, uuid4(), uuid4(), 1, False, deadline, 2.0, Cause("x"))

    async def call() -> list[Outcome] | NotSent | MaybeDone:
        async with httpx.AsyncClient(verify=False) as client:
            return await channel.send(client, claim, messages)

    return asyncio.run(call())


def message(email: str = "p@people.example") -> Message:
    found = sample("BENEFICIARY")
    return replace(found, email=email, mail=Templates().render(found, "smtp", "en"))


def all_are(state: str, code: str) -> Callable[[object], bool]:
    return lambda found: isinstance(found, list) and all((one.state, one.code) == (state, code) for one in found)


def not_sent(code: str, final: bool = False) -> Callable[[object], bool]:
    return lambda found: isinstance(found, NotSent) and (found.code, found.final) == (code, final)


@pytest.mark.parametrize(
    ("change", "expected", "arrive"),
    [
        ({}, lambda found: found == [SENT, SENT], 2),
        ({"GREETING": None}, not_sent("NOT_REACHED"), 0),
        ({"GREETING": b"554 go away\r\n"}, not_sent("NOT_REACHED"), 0),
        ({"MAIL": None}, not_sent("CONNECTION_LOST"), 0),
        ({"MAIL": b"451 4.3.0 later\r\n"}, not_sent("SMTP_451"), 0),  # nobody's mail: an outage, which is waited out
        ({"MAIL": b"553 5.1.8 bad sender\r\n"}, not_sent("SENDER_REFUSED", final=True), 0),
        (
            {"RCPT": b"550 5.1.1 p@people.example is nobody\r\n"},
            lambda found: found == [Outcome("FAILED", "REFUSED", "550 5.1.1")] * 2,
            0,
        ),
        ({"RCPT": b"451 4.7.1 grey\r\n"}, lambda found: found == [Outcome("PENDING", "SMTP_451", "451 4.7.1")] * 2, 0),
        ({"RCPT": b"421 4.3.2 closing\r\n"}, not_sent("CLOSING"), 0),
        ({"RCPT": b"nonsense\r\n"}, all_are("PENDING", "NONSENSE"), 0),
        ({"DATA": b"452 4.3.1 full\r\n"}, all_are("PENDING", "SMTP_452"), 0),
        ({".": b"554 5.7.1 spam\r\n"}, lambda found: found == [Outcome("FAILED", "REFUSED", "554 5.7.1")] * 2, 2),
        # What follows the content is lost: the first is unknown, the second was not handed over.
        ({".": None}, lambda found: [one.state for one in found] == ["UNKNOWN", "PENDING"], 1),
        ({".": b"what?\r\n"}, lambda found: [one.state for one in found] == ["UNKNOWN", "PENDING"], 1),
    ],
)
def test_what_a_server_says_or_does_not_say(change: Script, expected: Callable[[object], bool], arrive: int) -> None:
    with server({**GOOD, **change}) as (port, arrived):
        found = send(port, [message(), message("q@people.example")])
    assert expected(found), found
    assert len(arrived) == arrive


@pytest.mark.parametrize(("said", "final"), [(b"535 5.7.8 no\r\n", True), (b"454 4.7.0 later\r\n", False)])
def test_who_is_not_let_in_has_to_be_seen_to_unless_the_server_says_for_now(said: bytes, final: bool) -> None:
    with server({**GOOD, "EHLO": b"250-hello\r\n250 AUTH PLAIN\r\n", "AUTH": said}) as (port, _):
        found = send(port, [message()], username="almoner")
    assert found == NotSent("NOT_REACHED", f"SMTPAuthenticationError {said[:3].decode()}", final=final, outage=not final)


def test_an_answer_that_never_ends_is_cut_off() -> None:
    with server({**GOOD, ".": b"25"}) as (port, _):  # and no end of line
        found = send(port, [message()])
    assert isinstance(found, list)
    assert found[0].state == "UNKNOWN"


def test_nothing_is_sent_when_the_lease_would_end_first() -> None:
    with server(GOOD) as (port, arrived), pytest.raises(LeaseLost):
        send(port, [message()], lease_seconds=3.0)  # less than an answer may take
    assert arrived == []


def test_who_cannot_be_addressed_keeps_nobody_else_from_being_told() -> None:
    with server(GOOD) as (port, arrived):
        found = send(port, [message("pé@people.example"), message()])
    assert found == [Outcome("FAILED", "ADDRESS_UNUSABLE", "the mail server takes no such letters"), SENT]
    assert len(arrived) == 1
